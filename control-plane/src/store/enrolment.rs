//! Who certifies proxies, what they join with, the certificates that were issued, and who is shut out. Proxies serve
//! every tenant, so that none of it is a tenant's.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::credential::KeyHash;

use super::{Db, Tx, on_db, on_tx, push_in, read};

/// An authority as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AuthorityRow {
    /// Its id.
    pub id: Uuid,
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// The same key certified by the authority before (DER), for those who know only that one.
    pub bridge: Option<Vec<u8>>,
    /// Its key, sealed.
    pub sealed_key: Vec<u8>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A join token as it is stored.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Its id.
    pub id: Uuid,
    /// The hash of its text.
    pub hash: KeyHash,
    /// The group of whoever joins with it.
    pub group: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// A certificate as it is stored.
#[derive(Debug, Clone)]
pub struct CertificateRow {
    /// Its number.
    pub serial: Uuid,
    /// Whose it is.
    pub proxy: Uuid,
    /// The proxy's group.
    pub group: String,
    /// The authority that issued it; none for one from a file.
    pub authority: Option<Uuid>,
    /// SHA-256 of the key.
    pub key_hash: Vec<u8>,
    /// When it was issued.
    pub issued_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// Gives this Waffles its trust domain, if it has none yet, and says which it has.
pub async fn claim_trust_domain(tx: &mut Tx, fresh: &str) -> sqlx::Result<String> {
    const CLAIM: &str = "UPDATE meta SET trust_domain = $1 WHERE trust_domain = ''";
    const READ: &str = "SELECT trust_domain FROM meta";
    on_tx!(tx, |conn| sqlx::query(CLAIM).bind(fresh).execute(conn).await.map(drop))?;
    on_tx!(tx, |conn| sqlx::query_scalar(READ).fetch_one(conn).await)
}

/// Every authority, newest first.
pub async fn authorities(db: &Db) -> sqlx::Result<Vec<AuthorityRow>> {
    const SQL: &str = "SELECT id, certificate, bridge, sealed_key, created_at FROM authorities
        ORDER BY created_at DESC, id DESC";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).fetch_all(pool).await) }).await
}

/// The same, within a transaction.
pub async fn authorities_in(tx: &mut Tx) -> sqlx::Result<Vec<AuthorityRow>> {
    const SQL: &str = "SELECT id, certificate, bridge, sealed_key, created_at FROM authorities
        ORDER BY created_at DESC, id DESC";
    on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_all(conn).await)
}

/// Stores a new authority.
pub async fn insert_authority(tx: &mut Tx, row: &AuthorityRow) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO authorities (id, certificate, bridge, sealed_key, created_at)
        VALUES ($1, $2, $3, $4, $5)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(row.id)
        .bind(&row.certificate)
        .bind(&row.bridge)
        .bind(&row.sealed_key)
        .bind(micros(row.created_at))
        .execute(conn)
        .await
        .map(drop))
}

/// Drops authorities, but for the newest, whose last certificate has ended, once the newest is older than `settled`.
pub async fn drop_ended_authorities(
    tx: &mut Tx,
    now: DateTime<Utc>,
    settled: DateTime<Utc>,
) -> sqlx::Result<Vec<Uuid>> {
    const SQL: &str = "DELETE FROM authorities
        WHERE created_at < (SELECT MAX(created_at) FROM authorities)
            AND (SELECT MAX(created_at) FROM authorities) < $2
            AND NOT EXISTS (SELECT 1 FROM proxy_certificates c
                WHERE c.authority = authorities.id AND c.expires_at > $1)
        RETURNING id";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(micros(now)).bind(micros(settled)).fetch_all(conn).await)
}

/// When the last certificate of each authority ends.
pub async fn authority_ends(db: &Db) -> sqlx::Result<Vec<(Uuid, DateTime<Utc>)>> {
    const SQL: &str = "SELECT authority, MAX(expires_at) FROM proxy_certificates
        WHERE authority IS NOT NULL GROUP BY authority";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).fetch_all(pool).await) }).await
}

/// Stores a new join token.
pub async fn insert_token(tx: &mut Tx, row: &TokenRow) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO join_tokens (id, hash, proxy_group, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(row.id)
        .bind(row.hash.as_slice())
        .bind(&row.group)
        .bind(micros(row.created_at))
        .bind(micros(row.expires_at))
        .execute(conn)
        .await
        .map(drop))
}

/// Uses a join token up: of two proxies that show it at once, one gets its id and group. None for one that is not
/// known, was used, or has ended.
pub async fn use_token(
    tx: &mut Tx,
    hash: &KeyHash,
    proxy: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<(Uuid, String)>> {
    const SQL: &str = "UPDATE join_tokens SET used_at = $3, used_by = $2
        WHERE hash = $1 AND used_at IS NULL AND expires_at > $3
        RETURNING id, proxy_group";
    on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(hash.as_slice())
        .bind(proxy)
        .bind(micros(now))
        .fetch_optional(conn)
        .await)
}

/// Stores a certificate that is about to be given out.
pub async fn insert_certificate(tx: &mut Tx, row: &CertificateRow) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO proxy_certificates
        (serial, proxy_id, proxy_group, authority, key_hash, issued_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(row.serial)
        .bind(row.proxy)
        .bind(&row.group)
        .bind(row.authority)
        .bind(&row.key_hash)
        .bind(micros(row.issued_at))
        .bind(micros(row.expires_at))
        .execute(conn)
        .await
        .map(drop))
}

/// The hashes of the keys that a proxy had certificates for.
pub async fn keys_of(tx: &mut Tx, proxy: Uuid) -> sqlx::Result<Vec<Vec<u8>>> {
    const SQL: &str = "SELECT DISTINCT key_hash FROM proxy_certificates WHERE proxy_id = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(proxy).fetch_all(conn).await)
}

/// When the latest certificate of each of some proxies ends.
pub async fn ends(db: &Db, proxies: &[Uuid]) -> sqlx::Result<Vec<(Uuid, DateTime<Utc>)>> {
    if proxies.is_empty() {
        return Ok(Vec::new());
    }
    read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new("SELECT proxy_id, expires_at FROM proxy_certificates");
            push_in(&mut query, " WHERE proxy_id", proxies.iter().copied());
            query.push(" ORDER BY expires_at");
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
    })
    .await
}

/// Who was ever shut out, and when that was lifted.
pub async fn denials(db: &Db) -> sqlx::Result<Vec<(Uuid, Option<DateTime<Utc>>)>> {
    const SQL: &str = "SELECT proxy_id, lifted_at FROM proxy_denials";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).fetch_all(pool).await) }).await
}

/// Whether a proxy is shut out.
pub async fn is_denied(tx: &mut Tx, proxy: Uuid) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM proxy_denials WHERE proxy_id = $1 AND lifted_at IS NULL)";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(proxy).fetch_one(conn).await)
}

/// Shuts a proxy out.
pub async fn deny(tx: &mut Tx, proxy: Uuid, now: DateTime<Utc>) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO proxy_denials (proxy_id, denied_at) VALUES ($1, $2)
        ON CONFLICT (proxy_id) DO UPDATE SET denied_at = excluded.denied_at, lifted_at = NULL";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(proxy).bind(micros(now)).execute(conn).await.map(drop))
}

/// Lets a proxy join again; false for one that is not shut out.
pub async fn allow(tx: &mut Tx, proxy: Uuid, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str = "UPDATE proxy_denials SET lifted_at = $2 WHERE proxy_id = $1 AND lifted_at IS NULL";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(proxy)
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// The proxy with this id that ever had a certificate.
pub async fn has_certificate(db: &Db, proxy: Uuid) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM proxy_certificates WHERE proxy_id = $1)";
    read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).bind(proxy).fetch_one(pool).await) }).await
}

/// Forgets tokens that ended before a time, and certificates, of which the latest of each proxy is kept: its key is how
/// the proxy is known when it joins again.
pub async fn forget(db: &Db, before: DateTime<Utc>) -> sqlx::Result<u64> {
    const TOKENS: &str = "DELETE FROM join_tokens WHERE expires_at < $1";
    const CERTIFICATES: &str = "DELETE FROM proxy_certificates WHERE expires_at < $1
        AND EXISTS (SELECT 1 FROM proxy_certificates later
            WHERE later.proxy_id = proxy_certificates.proxy_id
                AND later.issued_at > proxy_certificates.issued_at)";
    let tokens = on_db!(db, |pool| sqlx::query(TOKENS)
        .bind(micros(before))
        .execute(pool)
        .await
        .map(|done| done.rows_affected()))?;
    let certificates = on_db!(db, |pool| sqlx::query(CERTIFICATES)
        .bind(micros(before))
        .execute(pool)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(tokens + certificates)
}
