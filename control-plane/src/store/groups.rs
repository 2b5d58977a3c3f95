//! Groups and their members.

use chrono::{DateTime, Utc};
use uuid::Uuid;
use waffles_core::audit::micros;

use super::{Db, Tx, on_db, on_tx, read};

/// A group.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Group {
    /// Its id.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant: String,
    /// Its name, which never changes.
    pub name: String,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// How many members it has.
    pub members: i64,
}

/// A member of a group.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct GroupMember {
    /// Its id.
    pub id: Uuid,
    /// `user` or `service_account`.
    pub kind: String,
    /// E-mail address of a user, name of a service account.
    pub name: String,
    /// Whether it is active.
    pub active: bool,
    /// Since when it is a member.
    pub added_at: DateTime<Utc>,
}

/// Groups of a tenant by name, from after one on.
pub async fn list(db: &Db, tenant: &str, after: Option<&str>, limit: u32) -> sqlx::Result<Vec<Group>> {
    const SQL: &str = "SELECT g.id, g.tenant, g.name, g.description, g.created_at,
            (SELECT count(*) FROM group_members m WHERE m.group_id = g.id) AS members
        FROM principal_groups g WHERE g.tenant = $1 AND g.name > $2 ORDER BY g.name LIMIT $3";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(after.unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await
}

/// One group of a tenant.
pub async fn find(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<Group>> {
    const SQL: &str = "SELECT g.id, g.tenant, g.name, g.description, g.created_at,
            (SELECT count(*) FROM group_members m WHERE m.group_id = g.id) AS members
        FROM principal_groups g WHERE g.tenant = $1 AND g.name = $2";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(name).fetch_optional(conn).await)
}

/// How many groups a tenant has.
pub async fn count(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM principal_groups WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await)
}

/// Writes a new group; false where the name is taken.
pub async fn insert(tx: &mut Tx, group: &Group, by: Uuid) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO principal_groups (id, tenant, name, description, created_by, created_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, name) DO NOTHING";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(group.id)
        .bind(&group.tenant)
        .bind(&group.name)
        .bind(&group.description)
        .bind(by)
        .bind(micros(group.created_at))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Removes a group, with what it holds and who was in it.
pub async fn delete(tx: &mut Tx, tenant: &str, id: Uuid) -> sqlx::Result<()> {
    const SQL: &str = "DELETE FROM principal_groups WHERE tenant = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(id).execute(conn).await.map(drop))
}

/// The members of a group by name.
pub async fn members(tx: &mut Tx, tenant: &str, group: Uuid) -> sqlx::Result<Vec<GroupMember>> {
    const SQL: &str = "SELECT u.id, u.kind, u.email AS name, u.active, m.added_at
        FROM group_members m JOIN users u ON u.id = m.principal_id AND u.tenant = m.tenant
        WHERE m.tenant = $1 AND m.group_id = $2 ORDER BY u.email";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(group).fetch_all(conn).await)
}

/// The ids of the members of a group.
pub async fn member_ids(tx: &mut Tx, tenant: &str, group: Uuid) -> sqlx::Result<Vec<Uuid>> {
    const SQL: &str = "SELECT principal_id FROM group_members WHERE tenant = $1 AND group_id = $2";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(group).fetch_all(conn).await)
}

/// Puts a principal into a group; false where it is in it already.
pub async fn add_member(
    tx: &mut Tx,
    tenant: &str,
    group: Uuid,
    principal: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO group_members (tenant, group_id, principal_id, added_at)
        VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(group)
        .bind(principal)
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Takes a principal out of a group; false where it is not in it.
pub async fn take_member(tx: &mut Tx, tenant: &str, group: Uuid, principal: Uuid) -> sqlx::Result<bool> {
    const SQL: &str = "DELETE FROM group_members WHERE tenant = $1 AND group_id = $2 AND principal_id = $3";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(group)
        .bind(principal)
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}
