//! The proxies that were ever heard of, and how each was last.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;

use super::changes::unsigned;
use super::{Db, on_db, read};

/// Rows a statement.
const ROWS: usize = 500;

/// A proxy as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ProxyRow {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its group.
    pub proxy_group: String,
    /// The program's version.
    pub version: String,
    /// Whether it held a stream when last heard of.
    pub connected: bool,
    /// When it was first heard of.
    pub first_seen: DateTime<Utc>,
    /// When it was last heard of.
    pub last_seen: DateTime<Utc>,
    /// The revision that it acknowledged last.
    pub acknowledged_revision: i64,
    /// What it refuses.
    pub nack: Option<Json<NackDoc>>,
    /// How it says it is.
    pub health: Option<Json<HealthDoc>>,
}

/// What a proxy refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NackDoc {
    /// The revision in which it last refused something.
    pub revision: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// Resources that it refuses still.
    pub rejections: Vec<RejectionDoc>,
}

/// One refused resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectionDoc {
    /// Its kind.
    pub kind: String,
    /// Its id within the kind.
    pub id: String,
    /// Its name, or its id where it has none.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How a proxy says it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthDoc {
    /// The revision it serves.
    pub revision: u64,
    /// Streams open to clients.
    pub open_streams: u64,
    /// Records that wait for upload.
    pub spool_depth: u64,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Exchanges since it started.
    pub exchanges: u64,
    /// It checks servers.
    pub checks: bool,
}

/// Stores how proxies are. A replica that heard of a proxy later wins over one that writes later.
pub async fn put(db: &Db, proxies: &[ProxyRow]) -> sqlx::Result<()> {
    const INTO: &str =
        "INSERT INTO proxies (id, name, proxy_group, version, connected, first_seen, last_seen,
        acknowledged_revision, nack, health) ";
    const UPDATE: &str =
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, proxy_group = excluded.proxy_group,
        version = excluded.version, connected = excluded.connected, last_seen = excluded.last_seen,
        acknowledged_revision = excluded.acknowledged_revision, nack = excluded.nack,
        health = COALESCE(excluded.health, proxies.health)
        WHERE excluded.last_seen >= proxies.last_seen";
    for rows in proxies.chunks(ROWS) {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(INTO);
            query.push_values(rows, |mut row, proxy| {
                row.push_bind(proxy.id)
                    .push_bind(&proxy.name)
                    .push_bind(&proxy.proxy_group)
                    .push_bind(&proxy.version)
                    .push_bind(proxy.connected)
                    .push_bind(proxy.first_seen)
                    .push_bind(proxy.last_seen)
                    .push_bind(proxy.acknowledged_revision)
                    .push_bind(proxy.nack.as_ref())
                    .push_bind(proxy.health.as_ref());
            });
            query.push(UPDATE);
            query.build().persistent(false).execute(pool).await.map(drop)
        })?;
    }
    Ok(())
}

/// Stores how a known proxy says it is, where another replica writes the rest.
pub async fn put_health(db: &Db, proxy: Uuid, health: HealthDoc) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE proxies SET health = $2 WHERE id = $1";
    on_db!(db, |pool| sqlx::query(SQL).bind(proxy).bind(Json(health)).execute(pool).await.map(drop))
}

const COLUMNS: &str =
    "id, name, proxy_group, version, connected, first_seen, last_seen, acknowledged_revision, nack, health";

/// Proxies by name, after a place.
pub async fn list(db: &Db, after: Option<&(String, Uuid)>, limit: u32) -> sqlx::Result<Vec<ProxyRow>> {
    read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM proxies"));
            if let Some((name, id)) = after {
                query.push(" WHERE (name, id) > (").push_bind(name).push(", ").push_bind(*id).push(")");
            }
            query.push(" ORDER BY name, id LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await
}

/// One proxy by its id.
pub async fn by_id(db: &Db, id: Uuid) -> sqlx::Result<Option<ProxyRow>> {
    const SQL: &str = "SELECT id, name, proxy_group, version, connected, first_seen, last_seen,
        acknowledged_revision, nack, health FROM proxies WHERE id = $1";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(id).fetch_optional(pool).await) }).await
}

/// One proxy by its name: of several the one heard of last.
pub async fn by_name(db: &Db, name: &str) -> sqlx::Result<Option<ProxyRow>> {
    const SQL: &str = "SELECT id, name, proxy_group, version, connected, first_seen, last_seen,
        acknowledged_revision, nack, health FROM proxies WHERE name = $1 ORDER BY last_seen DESC LIMIT 1";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(name).fetch_optional(pool).await) }).await
}

/// Audit records that each of some proxies lost for want of space, over all its spools.
pub async fn lost_records(db: &Db, proxies: &[Uuid]) -> sqlx::Result<Vec<(Uuid, u64)>> {
    if proxies.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(Uuid, i64)> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT proxy_id, CAST(SUM(CASE WHEN lost < gaps THEN gaps ELSE lost END) AS BIGINT)
                FROM audit_spools WHERE proxy_id IN (",
            );
            let mut list = query.separated(", ");
            for proxy in proxies {
                list.push_bind(*proxy);
            }
            query.push(") GROUP BY proxy_id");
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(|(id, lost)| (id, unsigned(lost))).collect())
}

/// How many proxies were heard of since a time.
pub async fn count_since(db: &Db, time: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT COUNT(*) FROM proxies WHERE connected AND last_seen >= $1";
    read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).bind(time).fetch_one(pool).await) })
        .await
        .map(unsigned)
}

/// Forgets proxies that were not heard of since a time. Their spools stay known, so that a proxy that comes
/// back after all stores no record twice.
pub async fn forget(db: &Db, before: DateTime<Utc>) -> sqlx::Result<u64> {
    const ERAS: &str =
        "DELETE FROM server_eras WHERE proxy_id IN (SELECT id FROM proxies WHERE last_seen < $1)";
    const SQL: &str = "DELETE FROM proxies WHERE last_seen < $1";
    on_db!(db, |pool| sqlx::query(ERAS).bind(before).execute(pool).await.map(drop))?;
    on_db!(db, |pool| sqlx::query(SQL).bind(before).execute(pool).await.map(|done| done.rows_affected()))
}
