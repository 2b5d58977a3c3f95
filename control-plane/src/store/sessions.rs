//! Sessions as their owners see them, and those that ended before their access tokens did: proxies refuse such tokens by
//! the session, until the last of them would have ended by itself.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::snapshot::{Kind, ResourceKey};

use super::{Db, Tx, changes, on_db, on_tx, read};

/// Sessions a list shows at the most; nobody has that many on purpose.
const MOST_SHOWN: i64 = 500;
/// Rows a statement.
const ROWS: usize = 200;

/// A session that lives.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Session {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub user_id: Uuid,
    /// The user's e-mail address.
    pub user_name: String,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When its last tokens were issued.
    pub last_used_at: DateTime<Utc>,
    /// When it ends, if it is not used before.
    pub expires_at: DateTime<Utc>,
    /// Where it was opened.
    pub client_ip: String,
}

/// The sessions of a user that live, newest first.
pub async fn of_user(db: &Db, tenant: &str, user: Uuid, now: DateTime<Utc>) -> sqlx::Result<Vec<Session>> {
    const SQL: &str =
        "SELECT s.id, s.user_id, u.email AS user_name, s.created_at, s.last_used_at, s.expires_at,
            s.client_ip
        FROM sessions s JOIN users u ON u.id = s.user_id AND u.tenant = s.tenant
        WHERE s.tenant = $1 AND s.user_id = $2 AND s.ended_at IS NULL AND s.expires_at > $3
        ORDER BY s.created_at DESC, s.id DESC LIMIT $4";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(user)
            .bind(micros(now))
            .bind(MOST_SHOWN)
            .fetch_all(pool)
            .await)
    })
    .await
}

/// One session that lives.
pub async fn find(tx: &mut Tx, tenant: &str, id: Uuid, now: DateTime<Utc>) -> sqlx::Result<Option<Session>> {
    const SQL: &str =
        "SELECT s.id, s.user_id, u.email AS user_name, s.created_at, s.last_used_at, s.expires_at,
            s.client_ip
        FROM sessions s JOIN users u ON u.id = s.user_id AND u.tenant = s.tenant
        WHERE s.tenant = $1 AND s.id = $2 AND s.ended_at IS NULL AND s.expires_at > $3";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(id).bind(micros(now)).fetch_optional(conn).await)
}

/// A session that has just ended.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Ended {
    /// Its id.
    pub id: Uuid,
    tenant: String,
    last_used_at: DateTime<Utc>,
}

/// Ends every session of a user that lives, but for one that is kept.
pub async fn end_of_user(
    tx: &mut Tx,
    tenant: &str,
    user: Uuid,
    kept: Option<Uuid>,
    reason: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Ended>> {
    const SQL: &str = "UPDATE sessions SET ended_at = $4, ended_reason = $5
        WHERE tenant = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > $4 AND id <> $3
        RETURNING id, tenant, last_used_at";
    on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(tenant)
        .bind(user)
        .bind(kept.unwrap_or_default())
        .bind(micros(now))
        .bind(reason)
        .fetch_all(conn)
        .await)
}

/// Ends one session that lives.
pub async fn end(
    tx: &mut Tx,
    tenant: &str,
    id: Uuid,
    reason: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<Ended>> {
    const SQL: &str = "UPDATE sessions SET ended_at = $3, ended_reason = $4
        WHERE tenant = $1 AND id = $2 AND ended_at IS NULL AND expires_at > $3
        RETURNING id, tenant, last_used_at";
    on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(tenant)
        .bind(id)
        .bind(micros(now))
        .bind(reason)
        .fetch_optional(conn)
        .await)
}

/// Tells proxies of sessions whose access tokens would still be good: they live `life` at the most.
pub async fn announce(tx: &mut Tx, ended: &[Ended], life: TimeDelta, now: DateTime<Utc>) -> sqlx::Result<()> {
    let told: Vec<&Ended> = ended.iter().filter(|session| session.last_used_at + life > now).collect();
    for sessions in told.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new("INSERT INTO ended_sessions (session_id, tenant, until) ");
            query.push_values(sessions, |mut row, session| {
                row.push_bind(session.id)
                    .push_bind(&session.tenant)
                    .push_bind(micros(session.last_used_at + life));
            });
            query.push(" ON CONFLICT DO NOTHING");
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    let keys: Vec<_> = told.iter().map(|session| (key(session.id), false)).collect();
    changes::append_all(tx, &keys).await?;
    Ok(())
}

/// Every session that proxies are told of, of every tenant.
pub async fn announced(tx: &mut Tx) -> sqlx::Result<Vec<Uuid>> {
    const SQL: &str = "SELECT session_id FROM ended_sessions";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_all(conn).await)
}

/// Takes back what proxies were told of sessions whose last access token has ended by itself.
pub async fn take_back(tx: &mut Tx, now: DateTime<Utc>) -> sqlx::Result<usize> {
    const SQL: &str = "DELETE FROM ended_sessions WHERE until <= $1 RETURNING session_id";
    let over: Vec<Uuid> =
        on_tx!(&mut *tx, |conn| sqlx::query_scalar(SQL).bind(micros(now)).fetch_all(conn).await)?;
    let keys: Vec<_> = over.iter().map(|id| (key(*id), true)).collect();
    changes::append_all(tx, &keys).await?;
    Ok(over.len())
}

fn key(session: Uuid) -> ResourceKey {
    ResourceKey::new(Kind::Session, session.to_string())
}
