//! The limits of tenants, and what proxies said last of how much of them is used.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::limit::{Limit, LimitSpec};

use super::changes::{signed, unsigned};
use super::{Db, Tx, on_db, on_tx, push_in, read};

/// Rows a statement.
const ROWS: usize = 200;

/// A limit with how often and when it was changed.
#[derive(Debug, Clone)]
pub struct StoredLimit {
    /// The limit.
    pub limit: Limit,
    /// Grows with every change.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// How much one caller, or all together, used of a limit at one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// The principal that is counted apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<Uuid>,
    /// The API key that is counted apart.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// The server that is counted apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Uuid>,
    /// The tool that is counted apart.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tool: String,
    /// How many.
    pub used: u64,
}

/// What one proxy said of one limit.
#[derive(Debug, Clone)]
pub struct UsageRow {
    /// The limit.
    pub limit: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// The proxy.
    pub proxy: Uuid,
    /// The callers that used most.
    pub used: Vec<Used>,
    /// When.
    pub noted_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct LimitRow {
    id: Uuid,
    tenant: String,
    name: String,
    spec: Json<Value>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl LimitRow {
    /// None for one that a later version wrote in a form that this one cannot read at all.
    fn read(self) -> Option<StoredLimit> {
        let spec = match serde_json::from_value::<LimitSpec>(self.spec.0) {
            Ok(spec) => LimitSpec { name: self.name, ..spec },
            Err(error) => {
                tracing::error!(limit.name = self.name, %error, "a stored limit cannot be read");
                return None;
            }
        };
        Some(StoredLimit {
            limit: Limit { id: self.id, tenant: self.tenant, spec },
            version: unsigned(self.version),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// The limits of a tenant, by name.
pub async fn list(db: &Db, tenant: &str) -> sqlx::Result<Vec<StoredLimit>> {
    const SQL: &str = "SELECT id, tenant, name, spec, version, created_at, updated_at FROM limits
        WHERE tenant = $1 ORDER BY name";
    let rows: Vec<LimitRow> =
        read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(tenant).fetch_all(pool).await) }).await?;
    Ok(rows.into_iter().filter_map(LimitRow::read).collect())
}

/// One limit of a tenant.
pub async fn get(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<StoredLimit>> {
    const SQL: &str = "SELECT id, tenant, name, spec, version, created_at, updated_at FROM limits
        WHERE tenant = $1 AND name = $2";
    let row: Option<LimitRow> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(name).fetch_optional(conn).await)?;
    Ok(row.and_then(LimitRow::read))
}

/// Every limit, or those of some ids, of every tenant: for proxies.
pub async fn load(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<Limit>> {
    let rows: Vec<LimitRow> = on_tx!(tx, |conn| {
        let mut query =
            QueryBuilder::new("SELECT id, tenant, name, spec, version, created_at, updated_at FROM limits");
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().filter_map(LimitRow::read).map(|stored| stored.limit).collect())
}

/// How many limits a tenant has.
pub async fn count(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM limits WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await)
}

/// Writes a new limit; false where the name is taken.
pub async fn insert(tx: &mut Tx, limit: &Limit, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO limits (id, tenant, name, spec, version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, 1, $5, $5) ON CONFLICT (tenant, name) DO NOTHING";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(limit.id)
        .bind(&limit.tenant)
        .bind(&limit.spec.name)
        .bind(Json(&limit.spec))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Replaces a limit that is at a version; false where it is at another one.
pub async fn update(tx: &mut Tx, limit: &Limit, version: u64, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str = "UPDATE limits SET spec = $4, version = version + 1, updated_at = $5
        WHERE tenant = $1 AND name = $2 AND version = $3";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&limit.tenant)
        .bind(&limit.spec.name)
        .bind(signed(version))
        .bind(Json(&limit.spec))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Removes a limit.
pub async fn delete(tx: &mut Tx, tenant: &str, id: Uuid) -> sqlx::Result<()> {
    const SQL: &str = "DELETE FROM limits WHERE tenant = $1 AND id = $2";
    const USAGE: &str = "DELETE FROM limit_usage WHERE tenant = $1 AND limit_id = $2";
    on_tx!(&mut *tx, |conn| sqlx::query(SQL).bind(tenant).bind(id).execute(conn).await.map(drop))?;
    on_tx!(tx, |conn| sqlx::query(USAGE).bind(tenant).bind(id).execute(conn).await.map(drop))
}

/// Writes what proxies said, over what they said before.
pub async fn put_usage(db: &Db, rows: &[UsageRow]) -> sqlx::Result<()> {
    for rows in rows.chunks(ROWS) {
        on_db!(db, |pool| {
            let mut query =
                QueryBuilder::new("INSERT INTO limit_usage (tenant, limit_id, proxy, used, noted_at) ");
            query.push_values(rows, |mut row, usage| {
                row.push_bind(&usage.tenant)
                    .push_bind(usage.limit)
                    .push_bind(usage.proxy)
                    .push_bind(Json(&usage.used))
                    .push_bind(usage.noted_at);
            });
            query.push(
                " ON CONFLICT (tenant, limit_id, proxy) DO UPDATE SET used = excluded.used,
                    noted_at = excluded.noted_at",
            );
            query.build().persistent(false).execute(pool).await.map(drop)
        })?;
    }
    Ok(())
}

/// What proxies said of the limits of a tenant, not before a time.
pub async fn usage(db: &Db, tenant: &str, since: DateTime<Utc>) -> sqlx::Result<Vec<UsageRow>> {
    const SQL: &str = "SELECT limit_id, proxy, used, noted_at FROM limit_usage
        WHERE tenant = $1 AND noted_at >= $2 ORDER BY limit_id, proxy";
    type Row = (Uuid, Uuid, Json<Vec<Used>>, DateTime<Utc>);
    let rows: Vec<Row> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL).bind(tenant).bind(micros(since)).fetch_all(pool).await)
    })
    .await?;
    let row = |(limit, proxy, used, noted_at): Row| UsageRow {
        limit,
        tenant: tenant.to_owned(),
        proxy,
        used: used.0,
        noted_at,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Forgets what proxies said before a time.
pub async fn forget_usage(db: &Db, before: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "DELETE FROM limit_usage WHERE noted_at < $1";
    on_db!(db, |pool| sqlx::query(SQL)
        .bind(micros(before))
        .execute(pool)
        .await
        .map(|done| done.rows_affected()))
}

/// What principals of a tenant are called.
pub async fn principal_names(db: &Db, tenant: &str, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, String>> {
    names(db, "SELECT id, email AS name FROM users WHERE tenant = ", tenant, ids).await
}

/// What servers of a tenant are called.
pub async fn server_names(db: &Db, tenant: &str, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, String>> {
    names(db, "SELECT id, name FROM servers WHERE tenant = ", tenant, ids).await
}

async fn names(db: &Db, select: &str, tenant: &str, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, String>> {
    let mut found = HashMap::new();
    for ids in ids.chunks(ROWS) {
        let rows: Vec<(Uuid, String)> = read(|| async {
            on_db!(db, |pool| {
                let mut query = QueryBuilder::new(select);
                query.push_bind(tenant);
                push_in(&mut query, " AND id", ids.iter().copied());
                query.build_query_as().persistent(false).fetch_all(pool).await
            })
        })
        .await?;
        found.extend(rows);
    }
    Ok(found)
}
