//! Namespaces and their members. Who changes a namespace, or which servers there are, locks the tenant's membership
//! first: a server that goes while it is taken in somewhere would leave a member behind that is not one.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::namespace::{Expose, Level, Member, Namespace, NamespaceSpec, PrincipalLevel, RoleLevel};

use super::changes::{signed, unsigned};
use super::{Db, Tx, on_tx, push_in, read};

/// Rows or names a statement.
const ROWS: usize = 200;

/// A namespace as it is stored, without its members.
#[derive(Debug, sqlx::FromRow)]
struct NamespaceRow {
    id: Uuid,
    tenant: String,
    name: String,
    spec: Json<SpecDoc>,
    is_default: bool,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, tenant, name, spec, is_default, version, created_at, updated_at";

/// The stored form of a specification, without what has columns or rows of its own.
#[derive(Debug, Serialize, Deserialize)]
struct SpecDoc {
    #[serde(default)]
    description: String,
    #[serde(default)]
    levels: Vec<(String, LevelDoc)>,
    #[serde(default)]
    principals: Vec<(String, LevelDoc)>,
    #[serde(default)]
    tool_search: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LevelDoc {
    View,
    Execute,
}

/// The stored form of a member, without its server.
#[derive(Debug, Serialize, Deserialize)]
struct MemberDoc {
    prefix: bool,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    #[serde(default)]
    resources_allow: Vec<String>,
    #[serde(default)]
    resources_deny: Vec<String>,
}

impl From<Level> for LevelDoc {
    fn from(level: Level) -> Self {
        match level {
            Level::View => Self::View,
            Level::Execute => Self::Execute,
        }
    }
}

impl From<LevelDoc> for Level {
    fn from(level: LevelDoc) -> Self {
        match level {
            LevelDoc::View => Self::View,
            LevelDoc::Execute => Self::Execute,
        }
    }
}

impl From<&NamespaceSpec> for SpecDoc {
    fn from(spec: &NamespaceSpec) -> Self {
        let levels = spec.levels.iter().map(|entry| (entry.role.clone(), entry.level.into()));
        let principals = spec.principals.iter().map(|entry| (entry.principal.clone(), entry.level.into()));
        Self {
            description: spec.description.clone(),
            levels: levels.collect(),
            principals: principals.collect(),
            tool_search: spec.tool_search,
        }
    }
}

impl From<&Member> for MemberDoc {
    fn from(member: &Member) -> Self {
        let Expose { allow, deny, resources_allow, resources_deny } = member.expose.clone();
        Self { prefix: member.prefix, allow, deny, resources_allow, resources_deny }
    }
}

impl MemberDoc {
    fn of(self, server: String) -> Member {
        let Self { prefix, allow, deny, resources_allow, resources_deny } = self;
        Member { server, prefix, expose: Expose { allow, deny, resources_allow, resources_deny } }
    }
}

impl NamespaceRow {
    fn with(self, servers: Vec<Member>) -> Namespace {
        let SpecDoc { description, levels, principals, tool_search } = self.spec.0;
        let role = |(role, level): (String, LevelDoc)| RoleLevel { role, level: level.into() };
        let principal =
            |(principal, level): (String, LevelDoc)| PrincipalLevel { principal, level: level.into() };
        Namespace {
            id: self.id,
            tenant: self.tenant,
            spec: NamespaceSpec {
                name: self.name,
                description,
                servers,
                levels: levels.into_iter().map(role).collect(),
                principals: principals.into_iter().map(principal).collect(),
                is_default: self.is_default,
                tool_search,
            },
            version: unsigned(self.version),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// Holds others off who change the namespaces or the servers of a tenant, until the transaction ends. The first thing
/// in it, so that two of them never wait for each other.
pub async fn lock(tx: &mut Tx, tenant: &str) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE tenants SET created_at = created_at WHERE id = $1";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).execute(conn).await.map(drop))
}

/// Stores a new namespace, without its members; false where the name is taken.
pub async fn insert(tx: &mut Tx, namespace: &Namespace) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO namespaces
        (id, tenant, name, spec, is_default, version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, name) DO NOTHING";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(namespace.id)
        .bind(&namespace.tenant)
        .bind(&namespace.spec.name)
        .bind(Json(SpecDoc::from(&namespace.spec)))
        .bind(namespace.spec.is_default)
        .bind(signed(namespace.version))
        .bind(namespace.created_at)
        .bind(namespace.updated_at)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Replaces what is stored of a namespace, but for its members; false where it is not at this version.
pub async fn update(
    tx: &mut Tx,
    tenant: &str,
    spec: &NamespaceSpec,
    version: u64,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    const SQL: &str =
        "UPDATE namespaces SET spec = $1, is_default = $2, version = version + 1, updated_at = $3
        WHERE tenant = $4 AND name = $5 AND version = $6";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(Json(SpecDoc::from(spec)))
        .bind(spec.is_default)
        .bind(now)
        .bind(tenant)
        .bind(&spec.name)
        .bind(signed(version))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Counts a change of a namespace's members as one of the namespace.
pub async fn touch(tx: &mut Tx, tenant: &str, id: Uuid, now: DateTime<Utc>) -> sqlx::Result<()> {
    const SQL: &str =
        "UPDATE namespaces SET version = version + 1, updated_at = $1 WHERE tenant = $2 AND id = $3";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(now).bind(tenant).bind(id).execute(conn).await.map(drop))
}

/// Removes a namespace. Gives its id.
pub async fn delete(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<Uuid>> {
    const SQL: &str = "DELETE FROM namespaces WHERE tenant = $1 AND name = $2 RETURNING id";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(name).fetch_optional(conn).await)
}

/// Makes these the members of a namespace.
pub async fn put_members(
    tx: &mut Tx,
    tenant: &str,
    namespace: Uuid,
    members: &[(Uuid, &Member)],
) -> sqlx::Result<()> {
    const CLEAR: &str = "DELETE FROM namespace_servers WHERE tenant = $1 AND namespace_id = $2";
    on_tx!(tx, |conn| sqlx::query(CLEAR).bind(tenant).bind(namespace).execute(conn).await.map(drop))?;
    for members in members.chunks(ROWS) {
        on_tx!(tx, |conn| {
            let mut query =
                QueryBuilder::new("INSERT INTO namespace_servers (tenant, namespace_id, server_id, member) ");
            query.push_values(members, |mut row, (server, member)| {
                row.push_bind(tenant)
                    .push_bind(namespace)
                    .push_bind(*server)
                    .push_bind(Json(MemberDoc::from(*member)));
            });
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    Ok(())
}

/// Takes a server into a namespace, or changes how it is shown there.
pub async fn put_member(
    tx: &mut Tx,
    tenant: &str,
    namespace: Uuid,
    server: Uuid,
    member: &Member,
) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO namespace_servers (tenant, namespace_id, server_id, member)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (namespace_id, server_id) DO UPDATE SET member = excluded.member";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(namespace)
        .bind(server)
        .bind(Json(MemberDoc::from(member)))
        .execute(conn)
        .await
        .map(drop))
}

/// Takes a server out of a namespace; false where it is no member.
pub async fn take_member(tx: &mut Tx, tenant: &str, namespace: Uuid, server: Uuid) -> sqlx::Result<bool> {
    const SQL: &str =
        "DELETE FROM namespace_servers WHERE tenant = $1 AND namespace_id = $2 AND server_id = $3";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(namespace)
        .bind(server)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// A namespace whose members changed.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Touched {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
}

/// Takes a new server into every namespace that new servers join.
pub async fn join(
    tx: &mut Tx,
    tenant: &str,
    server: Uuid,
    name: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Touched>> {
    const SQL: &str = "SELECT id, name FROM namespaces WHERE tenant = $1 AND is_default ORDER BY name";
    let joined: Vec<Touched> = on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).fetch_all(conn).await)?;
    for namespace in &joined {
        put_member(tx, tenant, namespace.id, server, &Member::whole(name)).await?;
        touch(tx, tenant, namespace.id, now).await?;
    }
    Ok(joined)
}

/// Takes a server out of every namespace.
pub async fn leave(
    tx: &mut Tx,
    tenant: &str,
    server: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Touched>> {
    const SQL: &str = "SELECT n.id, n.name FROM namespaces n
        JOIN namespace_servers m ON m.namespace_id = n.id JOIN servers s ON s.id = m.server_id
        WHERE n.tenant = $1 AND s.tenant = $1 AND s.name = $2 ORDER BY n.name";
    const LEAVE: &str = "DELETE FROM namespace_servers WHERE tenant = $1
        AND server_id = (SELECT id FROM servers WHERE tenant = $1 AND name = $2)";
    let left: Vec<Touched> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(server).fetch_all(conn).await)?;
    on_tx!(tx, |conn| sqlx::query(LEAVE).bind(tenant).bind(server).execute(conn).await.map(drop))?;
    for namespace in &left {
        touch(tx, tenant, namespace.id, now).await?;
    }
    Ok(left)
}

/// The ids of those of some servers that a tenant has, by name.
pub async fn server_ids(tx: &mut Tx, tenant: &str, names: &[&str]) -> sqlx::Result<HashMap<String, Uuid>> {
    let mut found = HashMap::new();
    for names in names.chunks(ROWS) {
        let rows: Vec<(String, Uuid)> = on_tx!(tx, |conn| {
            let mut query = QueryBuilder::new("SELECT name, id FROM servers WHERE tenant = ");
            query.push_bind(tenant);
            push_in(&mut query, " AND name", names.iter().copied());
            query.build_query_as().persistent(false).fetch_all(conn).await
        })?;
        found.extend(rows);
    }
    Ok(found)
}

/// The servers of a tenant, by id and name.
pub async fn all_servers(tx: &mut Tx, tenant: &str) -> sqlx::Result<Vec<(Uuid, String)>> {
    const SQL: &str = "SELECT id, name FROM servers WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).fetch_all(conn).await)
}

/// Tenants that lack a namespace of this name.
pub async fn tenants_without(tx: &mut Tx, name: &str) -> sqlx::Result<Vec<String>> {
    const SQL: &str = "SELECT id FROM tenants t WHERE NOT EXISTS (
        SELECT 1 FROM namespaces n WHERE n.tenant = t.id AND n.name = $1) ORDER BY id";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(name).fetch_all(conn).await)
}

/// One namespace, within a transaction.
pub async fn find(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<Namespace>> {
    const SQL: &str = "SELECT id, tenant, name, spec, is_default, version, created_at, updated_at
        FROM namespaces WHERE tenant = $1 AND name = $2";
    let row: Option<NamespaceRow> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(name).fetch_optional(conn).await)?;
    Ok(complete(tx, row.into_iter().collect()).await?.pop())
}

/// One namespace.
pub async fn get(db: &Db, tenant: &str, name: &str) -> sqlx::Result<Option<Namespace>> {
    read(|| async {
        let mut tx = db.begin_read().await?;
        find(&mut tx, tenant, name).await
    })
    .await
}

/// Which namespaces a list shows.
#[derive(Debug, Clone, Default)]
pub struct NamespaceFilter {
    /// Part of the name; empty for all.
    pub name_contains: String,
    /// Only those that this server is a member of; empty for all.
    pub server: String,
}

/// Namespaces by name, after a name.
pub async fn list(
    db: &Db,
    tenant: &str,
    filter: &NamespaceFilter,
    after: Option<&str>,
    limit: u32,
) -> sqlx::Result<Vec<Namespace>> {
    read(|| async {
        let mut tx = db.begin_read().await?;
        let rows = on_tx!(&mut tx, |conn| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM namespaces n WHERE tenant = "));
            query.push_bind(tenant);
            if !filter.name_contains.is_empty() {
                // Names have no `%` and no `_`, and the service asks for none that do.
                query.push(" AND name LIKE ").push_bind(format!("%{}%", filter.name_contains));
            }
            if !filter.server.is_empty() {
                query.push(
                    " AND EXISTS (SELECT 1 FROM namespace_servers m JOIN servers s ON s.id = m.server_id
                        WHERE m.namespace_id = n.id AND s.tenant = n.tenant AND s.name = ",
                );
                query.push_bind(&filter.server).push(")");
            }
            if let Some(after) = after {
                query.push(" AND name > ").push_bind(after);
            }
            query.push(" ORDER BY name LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(conn).await
        })?;
        complete(&mut tx, rows).await
    })
    .await
}

/// Every namespace, or those of some ids, of every tenant: for proxies.
pub async fn load(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<Namespace>> {
    let rows = on_tx!(&mut *tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM namespaces"));
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    complete(tx, rows).await
}

/// Gives namespaces their members, in the order of the servers' names.
async fn complete(tx: &mut Tx, rows: Vec<NamespaceRow>) -> sqlx::Result<Vec<Namespace>> {
    let mut members: HashMap<Uuid, Vec<Member>> = HashMap::new();
    for rows in rows.chunks(ROWS) {
        let found: Vec<(Uuid, String, Json<MemberDoc>)> = on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new(
                "SELECT m.namespace_id, s.name, m.member FROM namespace_servers m
                    JOIN servers s ON s.id = m.server_id AND s.tenant = m.tenant WHERE m.namespace_id IN (",
            );
            let mut list = query.separated(", ");
            for row in rows {
                list.push_bind(row.id);
            }
            query.push(")");
            query.build_query_as().persistent(false).fetch_all(conn).await
        })?;
        for (namespace, server, member) in found {
            members.entry(namespace).or_default().push(member.0.of(server));
        }
    }
    let complete = |row: NamespaceRow| {
        let mut members = members.remove(&row.id).unwrap_or_default();
        // Not by the database, whose order of hyphens may be another than ours.
        members.sort_by(|one, other| one.server.cmp(&other.server));
        row.with(members)
    };
    Ok(rows.into_iter().map(complete).collect())
}
