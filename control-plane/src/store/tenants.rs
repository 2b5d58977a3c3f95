//! Tenants: what each may have, how much each has, and whether it is suspended.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;
use waffles_core::audit::micros;

use super::changes::{signed, unsigned};
use super::{Db, Tx, on_db, on_tx, read};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// A DNS label.
    pub id: String,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Since when it is suspended; none while it is not.
    pub suspended_at: Option<DateTime<Utc>>,
    /// How much it may have.
    pub limits: Limits,
}

/// How much a tenant may have; none is as much as it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Registered servers.
    pub max_servers: Option<u64>,
    /// Active users and service accounts.
    pub max_principals: Option<u64>,
    /// API keys that may still be used.
    pub max_api_keys: Option<u64>,
}

/// How much there is in a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registered servers.
    pub servers: u64,
    /// Namespaces.
    pub namespaces: u64,
    /// Active users and service accounts.
    pub principals: u64,
    /// API keys that may still be used.
    pub api_keys: u64,
}

/// What a tenant may have only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Registered servers.
    Servers,
    /// Active users and service accounts.
    Principals,
    /// API keys that may still be used.
    ApiKeys,
}

#[derive(sqlx::FromRow)]
struct TenantRow {
    id: String,
    description: String,
    created_at: DateTime<Utc>,
    suspended_at: Option<DateTime<Utc>>,
    max_servers: Option<i64>,
    max_principals: Option<i64>,
    max_api_keys: Option<i64>,
}

impl From<TenantRow> for Tenant {
    fn from(row: TenantRow) -> Self {
        let limits = Limits {
            max_servers: row.max_servers.map(unsigned),
            max_principals: row.max_principals.map(unsigned),
            max_api_keys: row.max_api_keys.map(unsigned),
        };
        Self {
            id: row.id,
            description: row.description,
            created_at: row.created_at,
            suspended_at: row.suspended_at,
            limits,
        }
    }
}

/// Stores a new tenant; false where the id is taken.
pub async fn insert(tx: &mut Tx, tenant: &Tenant) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO tenants
        (id, description, created_at, suspended_at, max_servers, max_principals, max_api_keys)
        VALUES ($1, $2, $3, NULL, $4, $5, $6) ON CONFLICT (id) DO NOTHING";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&tenant.id)
        .bind(&tenant.description)
        .bind(micros(tenant.created_at))
        .bind(tenant.limits.max_servers.map(signed))
        .bind(tenant.limits.max_principals.map(signed))
        .bind(tenant.limits.max_api_keys.map(signed))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Tenants by id, after an id.
pub async fn list(db: &Db, after: Option<&str>, limit: u32) -> sqlx::Result<Vec<Tenant>> {
    let rows: Vec<TenantRow> = read(|| async {
        on_db!(db, |conn| {
            let mut query = QueryBuilder::new(
                "SELECT id, description, created_at, suspended_at, max_servers, max_principals, max_api_keys
                FROM tenants",
            );
            if let Some(after) = after {
                query.push(" WHERE id > ").push_bind(after);
            }
            query.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(conn).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(Tenant::from).collect())
}

/// One tenant.
pub async fn find(tx: &mut Tx, id: &str) -> sqlx::Result<Option<Tenant>> {
    const SQL: &str =
        "SELECT id, description, created_at, suspended_at, max_servers, max_principals, max_api_keys
        FROM tenants WHERE id = $1";
    let row: Option<TenantRow> = on_tx!(tx, |conn| sqlx::query_as(SQL).bind(id).fetch_optional(conn).await)?;
    Ok(row.map(Tenant::from))
}

/// How much there is in a tenant.
pub async fn usage(tx: &mut Tx, tenant: &str, now: DateTime<Utc>) -> sqlx::Result<Usage> {
    const SQL: &str = "SELECT (SELECT count(*) FROM servers WHERE tenant = $1),
        (SELECT count(*) FROM namespaces WHERE tenant = $1),
        (SELECT count(*) FROM users WHERE tenant = $1 AND active),
        (SELECT count(*) FROM api_keys WHERE tenant = $1 AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > $2) AND (not_after IS NULL OR not_after > $2))";
    let (servers, namespaces, principals, api_keys): (i64, i64, i64, i64) =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(micros(now)).fetch_one(conn).await)?;
    Ok(Usage {
        servers: unsigned(servers),
        namespaces: unsigned(namespaces),
        principals: unsigned(principals),
        api_keys: unsigned(api_keys),
    })
}

/// Suspends a tenant, or lets it go on. False where it is so already, or where there is no such tenant.
pub async fn set_suspended(tx: &mut Tx, id: &str, since: Option<DateTime<Utc>>) -> sqlx::Result<bool> {
    const SQL: &str = "UPDATE tenants SET suspended_at = $2
        WHERE id = $1 AND (suspended_at IS NULL) <> ($2 IS NULL)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(id)
        .bind(since.map(micros))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Replaces what a tenant may have. False where there is no such tenant.
pub async fn set_limits(tx: &mut Tx, id: &str, limits: Limits) -> sqlx::Result<bool> {
    const SQL: &str =
        "UPDATE tenants SET max_servers = $2, max_principals = $3, max_api_keys = $4 WHERE id = $1";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(id)
        .bind(limits.max_servers.map(signed))
        .bind(limits.max_principals.map(signed))
        .bind(limits.max_api_keys.map(signed))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Everybody in a tenant, the deactivated too.
pub async fn principals(tx: &mut Tx, tenant: &str) -> sqlx::Result<Vec<Uuid>> {
    const SQL: &str = "SELECT id FROM users WHERE tenant = $1 ORDER BY id";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_all(conn).await)
}

/// The limit that a tenant has reached; none while there is room for one more. Holds others off who ask the same of this
/// tenant, until the transaction ends: asked early, it waits for nobody who waits for us.
pub async fn reached(
    tx: &mut Tx,
    tenant: &str,
    what: Limited,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<u64>> {
    const LIMITS: &str = "UPDATE tenants SET created_at = created_at WHERE id = $1
        RETURNING id, description, created_at, suspended_at, max_servers, max_principals, max_api_keys";
    let row: Option<TenantRow> =
        on_tx!(&mut *tx, |conn| sqlx::query_as(LIMITS).bind(tenant).fetch_optional(conn).await)?;
    let limits = row.map(|row| Tenant::from(row).limits).unwrap_or_default();
    let most = match what {
        Limited::Servers => limits.max_servers,
        Limited::Principals => limits.max_principals,
        Limited::ApiKeys => limits.max_api_keys,
    };
    let Some(most) = most else { return Ok(None) };
    let usage = usage(tx, tenant, now).await?;
    let present = match what {
        Limited::Servers => usage.servers,
        Limited::Principals => usage.principals,
        Limited::ApiKeys => usage.api_keys,
    };
    Ok((present >= most).then_some(most))
}
