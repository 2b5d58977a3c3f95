//! Roles that tenants made, and grants: who holds which role where.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::policy::{Permission, Role, RoleDef, Scope};

use super::changes::{signed, unsigned};
use super::rights::{columns_of, scope_of};
use super::{Db, Tx, on_db, on_tx, push_in, read};

// === Roles ===

/// A role with how often and when it was changed.
#[derive(Debug, Clone)]
pub struct StoredRole {
    /// The role.
    pub role: RoleDef,
    /// Grows with every change.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct RoleRow {
    id: Uuid,
    tenant: String,
    name: String,
    description: String,
    permissions: Json<Vec<String>>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<RoleRow> for StoredRole {
    fn from(row: RoleRow) -> Self {
        let permissions = row.permissions.iter().filter_map(|name| Permission::parse(name)).collect();
        let RoleRow { id, tenant, name, description, .. } = row;
        Self {
            role: RoleDef { id, tenant, name, description, permissions },
            version: unsigned(row.version),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

const ROLE: &str = "id, tenant, name, description, permissions, version, created_at, updated_at";

fn names(role: &RoleDef) -> Json<Vec<&'static str>> {
    Json(role.permissions.iter().map(Permission::as_str).collect())
}

/// The roles of a tenant's own, by name.
pub async fn roles(db: &Db, tenant: &str) -> sqlx::Result<Vec<StoredRole>> {
    const SQL: &str = "SELECT id, tenant, name, description, permissions, version, created_at, updated_at
        FROM roles WHERE tenant = $1 ORDER BY name";
    let rows: Vec<RoleRow> =
        read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(tenant).fetch_all(pool).await) }).await?;
    Ok(rows.into_iter().map(StoredRole::from).collect())
}

/// One role of a tenant's own.
pub async fn role(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<StoredRole>> {
    const SQL: &str = "SELECT id, tenant, name, description, permissions, version, created_at, updated_at
        FROM roles WHERE tenant = $1 AND name = $2";
    let row: Option<RoleRow> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(name).fetch_optional(conn).await)?;
    Ok(row.map(StoredRole::from))
}

/// Every role, or those of some ids, of every tenant: for proxies.
pub async fn load_roles(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<RoleDef>> {
    let rows: Vec<RoleRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {ROLE} FROM roles"));
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().map(|row| StoredRole::from(row).role).collect())
}

/// How many roles a tenant made.
pub async fn count_roles(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM roles WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await)
}

/// Writes a new role; false where the name is taken.
pub async fn insert_role(tx: &mut Tx, role: &RoleDef, by: Uuid, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO roles
        (id, tenant, name, description, permissions, version, created_by, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $7) ON CONFLICT (tenant, name) DO NOTHING";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(role.id)
        .bind(&role.tenant)
        .bind(&role.name)
        .bind(&role.description)
        .bind(names(role))
        .bind(by)
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Gives a role that is at a version another description and other permissions; false where it is at another version.
pub async fn update_role(
    tx: &mut Tx,
    role: &RoleDef,
    version: u64,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    const SQL: &str =
        "UPDATE roles SET description = $4, permissions = $5, version = version + 1, updated_at = $6
        WHERE tenant = $1 AND name = $2 AND version = $3";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&role.tenant)
        .bind(&role.name)
        .bind(signed(version))
        .bind(&role.description)
        .bind(names(role))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Removes a role.
pub async fn delete_role(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<()> {
    const SQL: &str = "DELETE FROM roles WHERE tenant = $1 AND name = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(name).execute(conn).await.map(drop))
}

// === Grants ===

/// To whom a role is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// To a user or service account.
    Principal(Uuid),
    /// To a group.
    Group(Uuid),
}

/// A role that somebody holds somewhere.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Its id.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant: String,
    /// The role's name.
    pub role: String,
    /// Who holds it.
    pub holder: Holder,
    /// E-mail address of a user, name of a service account or group.
    pub holder_name: String,
    /// Whether the holder is a service account.
    pub to_service_account: bool,
    /// Where.
    pub scope: Scope,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By whom; none for the first one.
    pub created_by: Option<Uuid>,
}

#[derive(sqlx::FromRow)]
struct GrantRow {
    id: Uuid,
    tenant: String,
    role: String,
    principal_id: Option<Uuid>,
    group_id: Option<Uuid>,
    holder_name: Option<String>,
    holder_kind: Option<String>,
    scope: String,
    scope_name: String,
    pattern: String,
    created_at: DateTime<Utc>,
    created_by: Option<Uuid>,
}

impl GrantRow {
    /// None where this version does not understand it.
    fn read(self) -> Option<Grant> {
        let holder = match (self.principal_id, self.group_id) {
            (Some(id), _) => Holder::Principal(id),
            (None, Some(id)) => Holder::Group(id),
            (None, None) => return None,
        };
        Some(Grant {
            id: self.id,
            tenant: self.tenant,
            role: self.role,
            holder,
            holder_name: self.holder_name.unwrap_or_default(),
            to_service_account: self.holder_kind.is_some_and(|kind| kind == "service_account"),
            scope: scope_of(&self.scope, self.scope_name, self.pattern)?,
            created_at: self.created_at,
            created_by: self.created_by,
        })
    }
}

const GRANTS: &str = "SELECT g.id, g.tenant, g.role, g.principal_id, g.group_id, g.scope, g.scope_name,
    g.pattern, g.created_at, g.created_by, COALESCE(u.email, c.name) AS holder_name, u.kind AS holder_kind
    FROM grants g LEFT JOIN users u ON u.id = g.principal_id AND u.tenant = g.tenant
        LEFT JOIN principal_groups c ON c.id = g.group_id AND c.tenant = g.tenant
    WHERE g.tenant = ";

/// Filters; those left empty do not filter.
#[derive(Debug, Clone, Default)]
pub struct GrantFilter {
    /// Of this principal, itself.
    pub principal: Option<Uuid>,
    /// Of this group.
    pub group: Option<Uuid>,
    /// Of this role.
    pub role: String,
}

/// Grants of a tenant, newest first, before a place.
pub async fn list(
    db: &Db,
    tenant: &str,
    filter: &GrantFilter,
    before: Option<(DateTime<Utc>, Uuid)>,
    limit: u32,
) -> sqlx::Result<Vec<Grant>> {
    let rows: Vec<GrantRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(GRANTS);
            query.push_bind(tenant);
            if let Some(principal) = filter.principal {
                query.push(" AND g.principal_id = ").push_bind(principal);
            }
            if let Some(group) = filter.group {
                query.push(" AND g.group_id = ").push_bind(group);
            }
            if !filter.role.is_empty() {
                query.push(" AND g.role = ").push_bind(&filter.role);
            }
            if let Some((at, id)) = before {
                query.push(" AND (g.created_at, g.id) < (").push_bind(at).push(", ").push_bind(id).push(")");
            }
            query.push(" ORDER BY g.created_at DESC, g.id DESC LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().filter_map(GrantRow::read).collect())
}

/// One grant.
pub async fn get(tx: &mut Tx, tenant: &str, id: Uuid) -> sqlx::Result<Option<Grant>> {
    let row: Option<GrantRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(GRANTS);
        query.push_bind(tenant).push(" AND g.id = ").push_bind(id);
        query.build_query_as().fetch_optional(conn).await
    })?;
    Ok(row.and_then(GrantRow::read))
}

/// What a group holds.
pub async fn of_group(tx: &mut Tx, tenant: &str, group: Uuid) -> sqlx::Result<Vec<Grant>> {
    let rows: Vec<GrantRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(GRANTS);
        query.push_bind(tenant).push(" AND g.group_id = ").push_bind(group);
        query.build_query_as().fetch_all(conn).await
    })?;
    Ok(rows.into_iter().filter_map(GrantRow::read).collect())
}

/// How many grants there are of a role.
pub async fn count_of_role(tx: &mut Tx, tenant: &str, role: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM grants WHERE tenant = $1 AND role = $2";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(role).fetch_one(conn).await)
}

/// How many grants a tenant has.
pub async fn count(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM grants WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await)
}

/// Writes a grant; false where there is the same one already.
pub async fn insert(tx: &mut Tx, grant: &Grant) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO grants
        (id, tenant, role, principal_id, group_id, scope, scope_name, pattern, created_by, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
    let (principal, group) = match grant.holder {
        Holder::Principal(id) => (Some(id), None),
        Holder::Group(id) => (None, Some(id)),
    };
    let (scope, name, pattern) = columns_of(&grant.scope);
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(grant.id)
        .bind(&grant.tenant)
        .bind(&grant.role)
        .bind(principal)
        .bind(group)
        .bind(scope)
        .bind(name)
        .bind(pattern)
        .bind(grant.created_by)
        .bind(micros(grant.created_at))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Removes a grant.
pub async fn delete(tx: &mut Tx, tenant: &str, id: Uuid) -> sqlx::Result<()> {
    const SQL: &str = "DELETE FROM grants WHERE tenant = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(id).execute(conn).await.map(drop))
}

/// How many there are in a tenant who hold the role `admin` on all of it and can act: users who have a password, and
/// service accounts, neither deactivated.
pub async fn admins(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM users u
        WHERE u.tenant = $1 AND u.active AND (u.password_hash IS NOT NULL OR u.kind <> 'user') AND EXISTS (
            SELECT 1 FROM grants g WHERE g.tenant = $1 AND g.role = $2 AND g.scope = 'tenant'
                AND (g.principal_id = u.id OR g.group_id IN (
                    SELECT m.group_id FROM group_members m WHERE m.tenant = $1 AND m.principal_id = u.id)))";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(Role::Admin.as_str()).fetch_one(conn).await)
}

/// Removes the grants on something that goes, so that another thing of its name is nobody's. Answers with whom that
/// changed something for.
pub async fn drop_server(tx: &mut Tx, tenant: &str, server: &str) -> sqlx::Result<Vec<Uuid>> {
    let holders = holders(tx, tenant, &["server", "tools"], server).await?;
    const SQL: &str =
        "DELETE FROM grants WHERE tenant = $1 AND scope IN ('server', 'tools') AND scope_name = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(server).execute(conn).await.map(drop))?;
    Ok(holders)
}

/// The same for a namespace.
pub async fn drop_namespace(tx: &mut Tx, tenant: &str, namespace: &str) -> sqlx::Result<Vec<Uuid>> {
    let holders = holders(tx, tenant, &["namespace"], namespace).await?;
    const SQL: &str = "DELETE FROM grants WHERE tenant = $1 AND scope = 'namespace' AND scope_name = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(namespace).execute(conn).await.map(drop))?;
    Ok(holders)
}

/// Who holds something there, itself or through a group.
async fn holders(tx: &mut Tx, tenant: &str, scopes: &[&str], name: &str) -> sqlx::Result<Vec<Uuid>> {
    on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new("SELECT principal_id FROM grants WHERE tenant = ");
        let narrow = |query: &mut QueryBuilder<_>| {
            push_in(query, " AND scope", scopes.iter().map(|scope| (*scope).to_owned()));
            query.push(" AND scope_name = ").push_bind(name.to_owned());
        };
        query.push_bind(tenant.to_owned()).push(" AND principal_id IS NOT NULL");
        narrow(&mut query);
        query.push(
            " UNION SELECT m.principal_id FROM group_members m JOIN grants g ON g.group_id = m.group_id
            WHERE m.tenant = ",
        );
        query.push_bind(tenant.to_owned());
        narrow(&mut query);
        query.build_query_scalar().fetch_all(conn).await
    })
}
