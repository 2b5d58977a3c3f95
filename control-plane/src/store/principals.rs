//! Users, their API keys and sessions, and the keys that tokens are signed with.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::credential::{ApiKey, ApiKeyParts, KeyHash, KeyLimits};
use waffles_core::policy::Scope;
use waffles_core::principal::{Principal, PrincipalKind};
use waffles_core::snapshot::{Kind, ResourceKey, TokenKey};

use crate::store::grants::{self, Grant, Holder};
use crate::store::{Db, Tx, changes, on_db, on_tx, push_in, read, rights};

// === Users ===

/// A user or service account as it is stored, without what it holds.
#[derive(sqlx::FromRow)]
pub(super) struct UserRow {
    user_id: Uuid,
    user_tenant: String,
    kind: String,
    email: String,
    active: bool,
    tokens_not_before: Option<DateTime<Utc>>,
}

/// The columns of a principal, of `users u`. Nobody in a suspended tenant is active.
pub(super) const USER: &str =
    "u.id AS user_id, u.tenant AS user_tenant, u.kind, u.email, u.active AND NOT EXISTS (SELECT 1 FROM tenants t
        WHERE t.id = u.tenant AND t.suspended_at IS NOT NULL) AS active, u.tokens_not_before";

impl From<UserRow> for Principal {
    fn from(row: UserRow) -> Self {
        // A kind of a later version is none that could log in.
        let kind = PrincipalKind::parse(&row.kind).unwrap_or(PrincipalKind::ServiceAccount);
        Self {
            id: row.user_id,
            tenant: row.user_tenant,
            name: row.email,
            kind,
            active: row.active,
            tokens_not_before: row.tokens_not_before,
            ..Self::default()
        }
    }
}

/// A user as the log-in needs it.
#[derive(sqlx::FromRow)]
struct LoginRow {
    #[sqlx(flatten)]
    user: UserRow,
    password_hash: Option<String>,
}

/// Makes principals of rows, with what they hold.
async fn principals_of(tx: &mut Tx, rows: Vec<UserRow>) -> sqlx::Result<Vec<Principal>> {
    let mut principals: Vec<Principal> = rows.into_iter().map(Principal::from).collect();
    rights::add(tx, &mut principals).await?;
    Ok(principals)
}

async fn one_principal(tx: &mut Tx, row: Option<UserRow>) -> sqlx::Result<Option<Principal>> {
    let rows = row.into_iter().collect();
    Ok(principals_of(tx, rows).await?.pop())
}

/// Every principal of every tenant, or those of some ids: for proxies.
pub async fn principals(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<Principal>> {
    let rows: Vec<UserRow> = on_tx!(&mut *tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {USER} FROM users u"));
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE u.id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    principals_of(tx, rows).await
}

/// One principal.
pub async fn principal(tx: &mut Tx, id: Uuid) -> sqlx::Result<Option<Principal>> {
    const SQL: &str =
        "SELECT u.id AS user_id, u.tenant AS user_tenant, u.kind, u.email, u.active AND NOT EXISTS (SELECT 1 FROM tenants t
                WHERE t.id = u.tenant AND t.suspended_at IS NOT NULL) AS active, u.tokens_not_before
        FROM users u WHERE u.id = $1";
    let row: Option<UserRow> =
        on_tx!(&mut *tx, |conn| sqlx::query_as(SQL).bind(id).fetch_optional(conn).await)?;
    one_principal(tx, row).await
}

/// A user by its address, with the hash of its password.
pub async fn user_by_email(
    db: &Db,
    tenant: &str,
    email: &str,
) -> sqlx::Result<Option<(Principal, Option<String>)>> {
    const SQL: &str =
        "SELECT u.id AS user_id, u.tenant AS user_tenant, u.kind, u.email, u.active AND NOT EXISTS (SELECT 1 FROM tenants t
                WHERE t.id = u.tenant AND t.suspended_at IS NOT NULL) AS active, u.tokens_not_before,
            u.password_hash
        FROM users u WHERE u.tenant = $1 AND u.email = $2 AND u.kind = 'user'";
    read(|| async {
        let mut tx = db.begin_read().await?;
        let row: Option<LoginRow> =
            on_tx!(&mut tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(email).fetch_optional(conn).await)?;
        let Some(LoginRow { user, password_hash }) = row else { return Ok(None) };
        Ok(one_principal(&mut tx, Some(user)).await?.map(|user| (user, password_hash)))
    })
    .await
}

/// Whether there is any user.
pub async fn any_user(tx: &mut Tx) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT count(*) FROM (SELECT id FROM users LIMIT 1) AS any_one";
    let count: i64 = on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_one(conn).await)?;
    Ok(count > 0)
}

/// Writes a user, or gives an existing one with the same id a new password and state; it holds its roles on the tenant from
/// then on.
pub async fn put_user(
    tx: &mut Tx,
    user: &Principal,
    password_hash: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO users
        (id, tenant, email, name, password_hash, roles, active, tokens_not_before, created_at, updated_at)
        VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $8)
        ON CONFLICT (id) DO UPDATE SET password_hash = excluded.password_hash, roles = excluded.roles,
            active = excluded.active, tokens_not_before = excluded.tokens_not_before,
            updated_at = excluded.updated_at";
    on_tx!(&mut *tx, |conn| sqlx::query(SQL)
        .bind(user.id)
        .bind(&user.tenant)
        .bind(&user.name)
        .bind(password_hash)
        .bind(Json(&user.roles))
        .bind(user.active)
        .bind(user.tokens_not_before.map(micros))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(drop))?;
    for role in &user.roles {
        let grant = Grant {
            id: Uuid::now_v7(),
            tenant: user.tenant.clone(),
            role: role.clone(),
            holder: Holder::Principal(user.id),
            holder_name: user.name.clone(),
            to_service_account: user.kind == PrincipalKind::ServiceAccount,
            scope: Scope::Tenant,
            created_at: now,
            created_by: None,
        };
        grants::insert(tx, &grant).await?;
    }
    Ok(())
}

/// Notes the roles of a principal where a replica of the version before reads them.
pub async fn note_roles(tx: &mut Tx, principal: &Principal) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE users SET roles = $3 WHERE tenant = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&principal.tenant)
        .bind(principal.id)
        .bind(Json(&principal.roles))
        .execute(conn)
        .await
        .map(drop))
}

// === API keys ===

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: String,
    tenant: String,
    owner: Uuid,
    name: String,
    hash: Vec<u8>,
    limits: Json<KeyLimits>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    not_after: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

impl KeyRow {
    fn compile(self) -> sqlx::Result<(ApiKey, KeyHash)> {
        let id = self.id.clone();
        let unreadable = |what: &str| sqlx::Error::Decode(format!("API key {id}: {what}").into());
        let hash = self.hash.try_into().map_err(|_| unreadable("its hash has not 32 bytes"))?;
        let key = ApiKey::compile(ApiKeyParts {
            id: self.id,
            tenant: self.tenant,
            name: self.name,
            owner: self.owner,
            limits: self.limits.0,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            not_after: self.not_after,
        })
        .map_err(|pattern| unreadable(&format!("cannot read the tool pattern {pattern}")))?;
        Ok((key, hash))
    }
}

/// A key with its owner, as the door needs it.
#[derive(sqlx::FromRow)]
struct ShownKeyRow {
    #[sqlx(flatten)]
    key: KeyRow,
    #[sqlx(flatten)]
    owner: UserRow,
}

#[derive(sqlx::FromRow)]
struct OwnedKeyRow {
    #[sqlx(flatten)]
    key: KeyRow,
    owner_name: String,
    last_used_at: Option<DateTime<Utc>>,
}

impl OwnedKeyRow {
    fn compile(self) -> sqlx::Result<OwnedKey> {
        let (owner_name, last_used_at) = (self.owner_name, self.last_used_at);
        Ok(OwnedKey { key: self.key.compile()?.0, owner_name, last_used_at })
    }
}

/// An API key with the name of its owner.
#[derive(Debug, Clone)]
pub struct OwnedKey {
    /// The key.
    pub key: ApiKey,
    /// Name of its owner.
    pub owner_name: String,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Which keys, how many, and from where on.
#[derive(Debug, Clone)]
pub struct KeyPage {
    /// Only keys of this owner.
    pub owner: Option<Uuid>,
    /// Revoked and expired keys too.
    pub ended: bool,
    /// The time and id of the last key of the page before.
    pub after: Option<(DateTime<Utc>, String)>,
    /// At the most.
    pub limit: u32,
}

/// A key by the hash of its text, with its owner.
pub async fn key_by_hash(db: &Db, hash: &KeyHash) -> sqlx::Result<Option<(ApiKey, Principal)>> {
    const SQL: &str = "SELECT k.id, k.tenant, k.owner, k.name, k.hash, k.limits, k.created_at, k.expires_at,
            k.not_after, k.revoked_at,
            u.id AS user_id, u.tenant AS user_tenant, u.kind, u.email, u.active AND NOT EXISTS (SELECT 1 FROM tenants t
                WHERE t.id = u.tenant AND t.suspended_at IS NOT NULL) AS active, u.tokens_not_before
        FROM api_keys k JOIN users u ON u.id = k.owner AND u.tenant = k.tenant WHERE k.hash = $1";
    read(|| async {
        let mut tx = db.begin_read().await?;
        let row: Option<ShownKeyRow> =
            on_tx!(&mut tx, |conn| sqlx::query_as(SQL).bind(hash.as_slice()).fetch_optional(conn).await)?;
        let Some(ShownKeyRow { key, owner }) = row else { return Ok(None) };
        let (key, _) = key.compile()?;
        Ok(one_principal(&mut tx, Some(owner)).await?.map(|owner| (key, owner)))
    })
    .await
}

/// A key by its id.
pub async fn key(db: &Db, tenant: &str, id: &str) -> sqlx::Result<Option<OwnedKey>> {
    const SQL: &str = "SELECT k.id, k.tenant, k.owner, k.name, k.hash, k.limits, k.created_at, k.expires_at,
            k.not_after, k.revoked_at, k.last_used_at, u.email AS owner_name
        FROM api_keys k JOIN users u ON u.id = k.owner AND u.tenant = k.tenant
        WHERE k.tenant = $1 AND k.id = $2";
    let row: Option<OwnedKeyRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL).bind(tenant).bind(id).fetch_optional(pool).await)
    })
    .await?;
    row.map(OwnedKeyRow::compile).transpose()
}

/// Keys of a tenant, newest first.
pub async fn keys(db: &Db, tenant: &str, page: &KeyPage, now: DateTime<Utc>) -> sqlx::Result<Vec<OwnedKey>> {
    const SQL: &str = "SELECT k.id, k.tenant, k.owner, k.name, k.hash, k.limits, k.created_at, k.expires_at,
            k.not_after, k.revoked_at, k.last_used_at, u.email AS owner_name
        FROM api_keys k JOIN users u ON u.id = k.owner AND u.tenant = k.tenant
        WHERE k.tenant = $1
            AND ($2 IS NULL OR k.owner = $2)
            AND ($3 OR (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $4)
                AND (k.not_after IS NULL OR k.not_after > $4)))
            AND ($5 IS NULL OR (k.created_at, k.id) < ($5, $6))
        ORDER BY k.created_at DESC, k.id DESC LIMIT $7";
    let (after, after_id) = page.after.clone().unzip();
    let rows: Vec<OwnedKeyRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(page.owner)
            .bind(page.ended)
            .bind(micros(now))
            .bind(after)
            .bind(&after_id)
            .bind(i64::from(page.limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    rows.into_iter().map(OwnedKeyRow::compile).collect()
}

/// Every key that may still be used, of every tenant, with its hash. One that cannot be read counts as absent,
/// since what narrows it is not understood.
pub async fn live_keys(tx: &mut Tx, now: DateTime<Utc>) -> sqlx::Result<Vec<(ApiKey, KeyHash)>> {
    const SQL: &str =
        "SELECT id, tenant, owner, name, hash, limits, created_at, expires_at, not_after, revoked_at
        FROM api_keys
        WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)
            AND (not_after IS NULL OR not_after > $1)";
    let rows: Vec<KeyRow> = on_tx!(tx, |conn| sqlx::query_as(SQL).bind(micros(now)).fetch_all(conn).await)?;
    Ok(rows.into_iter().filter_map(sound).collect())
}

/// How many keys may still be used, of every tenant.
pub async fn count_all_live_keys(tx: &mut Tx, now: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT count(*) FROM api_keys
        WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)
            AND (not_after IS NULL OR not_after > $1)";
    let count: i64 = on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(micros(now)).fetch_one(conn).await)?;
    Ok(changes::unsigned(count))
}

/// The keys with some hashes that may still be used, of every tenant.
pub async fn live_keys_by_hash(
    tx: &mut Tx,
    hashes: &[KeyHash],
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<(ApiKey, KeyHash)>> {
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<KeyRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(
            "SELECT id, tenant, owner, name, hash, limits, created_at, expires_at, not_after, revoked_at
            FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ",
        );
        query.push_bind(micros(now)).push(") AND (not_after IS NULL OR not_after > ").push_bind(micros(now));
        query.push(")");
        push_in(&mut query, " AND hash", hashes.iter().map(|hash| hash.as_slice()));
        query.build_query_as().persistent(hashes.len() == 1).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().filter_map(sound).collect())
}

/// Some keys with their hashes, whatever their state, without those that cannot be read.
pub async fn keys_by_id(tx: &mut Tx, ids: &[&str]) -> sqlx::Result<Vec<(ApiKey, KeyHash)>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<KeyRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(
            "SELECT id, tenant, owner, name, hash, limits, created_at, expires_at, not_after, revoked_at
            FROM api_keys",
        );
        push_in(&mut query, " WHERE id", ids.iter().copied());
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().filter_map(sound).collect())
}

/// Takes keys that ended by themselves from the proxies, which refuse them already, so that they do not gather there.
/// They count as revoked at their end.
pub async fn end_expired_keys(db: &Db, now: DateTime<Utc>) -> sqlx::Result<usize> {
    const SQL: &str = "UPDATE api_keys SET revoked_at = CASE
            WHEN not_after IS NULL OR expires_at < not_after THEN expires_at ELSE not_after END
        WHERE revoked_at IS NULL AND (expires_at <= $1 OR not_after <= $1)
        RETURNING id";
    let mut tx = db.begin().await?;
    let ended: Vec<String> =
        on_tx!(&mut tx, |conn| sqlx::query_scalar(SQL).bind(micros(now)).fetch_all(conn).await)?;
    for id in &ended {
        changes::append(&mut tx, &ResourceKey::new(Kind::ApiKey, id), true).await?;
    }
    tx.commit().await?;
    Ok(ended.len())
}

fn sound(row: KeyRow) -> Option<(ApiKey, KeyHash)> {
    row.compile().inspect_err(|error| tracing::error!(%error, "an API key is left out")).ok()
}

/// Notes when keys were last used, with one statement. Keys are named with their tenant, since proxies tell of them.
pub async fn note_uses(db: &Db, uses: &[(String, String, DateTime<Utc>)]) -> sqlx::Result<()> {
    on_db!(db, |pool| {
        let mut query = QueryBuilder::new("WITH used (id, tenant, at) AS (");
        query.push_values(uses, |mut row, (id, tenant, at)| {
            row.push_bind(id).push_bind(tenant).push_bind(micros(*at));
        });
        query.push(
            ") UPDATE api_keys SET last_used_at = used.at FROM used
            WHERE api_keys.id = used.id AND api_keys.tenant = used.tenant
                AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < used.at)",
        );
        query.build().persistent(false).execute(pool).await.map(drop)
    })
}

/// How many keys of an owner may still be used.
pub async fn count_live_keys(
    tx: &mut Tx,
    tenant: &str,
    owner: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM api_keys
        WHERE tenant = $1 AND owner = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $3)
            AND (not_after IS NULL OR not_after > $3)";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL)
        .bind(tenant)
        .bind(owner)
        .bind(micros(now))
        .fetch_one(conn)
        .await)
}

/// Writes a new key.
pub async fn insert_key(tx: &mut Tx, key: &ApiKey, hash: &KeyHash) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO api_keys
        (id, tenant, owner, name, hash, limits, created_at, expires_at, not_after, revoked_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&key.id)
        .bind(&key.tenant)
        .bind(key.owner)
        .bind(&key.name)
        .bind(hash.as_slice())
        .bind(Json(&key.limits))
        .bind(micros(key.created_at))
        .bind(key.expires_at.map(micros))
        .bind(key.not_after.map(micros))
        .execute(conn)
        .await
        .map(drop))
}

/// Revokes a key; false when it was revoked before.
pub async fn revoke_key(tx: &mut Tx, tenant: &str, id: &str, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str =
        "UPDATE api_keys SET revoked_at = $3 WHERE tenant = $1 AND id = $2 AND revoked_at IS NULL";
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(id)
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

// === Sessions ===

/// A session that begins.
#[derive(Debug)]
pub struct NewSession {
    /// Its id.
    pub id: Uuid,
    /// Hash of its first refresh token.
    pub refresh_hash: KeyHash,
    /// When that ends.
    pub expires_at: DateTime<Utc>,
}

/// Writes a session.
pub async fn insert_session(
    tx: &mut Tx,
    user: &Principal,
    session: &NewSession,
    client_ip: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO sessions
        (id, tenant, user_id, refresh_hash, created_at, expires_at, last_used_at, client_ip)
        VALUES ($1, $2, $3, $4, $5, $6, $5, $7)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(session.id)
        .bind(&user.tenant)
        .bind(user.id)
        .bind(session.refresh_hash.as_slice())
        .bind(micros(now))
        .bind(micros(session.expires_at))
        .bind(client_ip)
        .execute(conn)
        .await
        .map(drop))
}

/// Puts a new refresh token in the place of the present one, if `old` is the present one and the session lives.
/// The one statement decides between two that try at once. Answers with the user.
pub async fn rotate_session(
    tx: &mut Tx,
    old: &KeyHash,
    new: &NewSession,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<Principal>> {
    const ROTATE: &str =
        "UPDATE sessions SET refresh_hash = $3, previous_hash = $2, expires_at = $4, last_used_at = $5
        WHERE id = $1 AND refresh_hash = $2 AND ended_at IS NULL AND expires_at > $5
        RETURNING user_id";
    let user: Option<Uuid> = on_tx!(&mut *tx, |conn| sqlx::query_scalar(ROTATE)
        .bind(new.id)
        .bind(old.as_slice())
        .bind(new.refresh_hash.as_slice())
        .bind(micros(new.expires_at))
        .bind(micros(now))
        .fetch_optional(conn)
        .await)?;
    let Some(user) = user else { return Ok(None) };
    principal(tx, user).await
}

/// The user of a session that lives, whoever's it is: for one who shows a refresh token, which names the session only.
pub async fn session_owner(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> sqlx::Result<Option<Principal>> {
    const SQL: &str = "SELECT user_id FROM sessions WHERE id = $1 AND ended_at IS NULL AND expires_at > $2";
    let user: Option<Uuid> = on_tx!(&mut *tx, |conn| sqlx::query_scalar(SQL)
        .bind(id)
        .bind(micros(now))
        .fetch_optional(conn)
        .await)?;
    let Some(user) = user else { return Ok(None) };
    principal(tx, user).await
}

/// The user of a session that lives.
pub async fn session_user(
    db: &Db,
    session: Uuid,
    user: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<Principal>> {
    const SQL: &str =
        "SELECT u.id AS user_id, u.tenant AS user_tenant, u.kind, u.email, u.active AND NOT EXISTS (SELECT 1 FROM tenants t
                WHERE t.id = u.tenant AND t.suspended_at IS NOT NULL) AS active, u.tokens_not_before
        FROM sessions s JOIN users u ON u.id = s.user_id AND u.tenant = s.tenant
        WHERE s.id = $1 AND s.user_id = $2 AND s.ended_at IS NULL AND s.expires_at > $3";
    read(|| async {
        let mut tx = db.begin_read().await?;
        let row: Option<UserRow> = on_tx!(&mut tx, |conn| sqlx::query_as(SQL)
            .bind(session)
            .bind(user)
            .bind(micros(now))
            .fetch_optional(conn)
            .await)?;
        one_principal(&mut tx, row).await
    })
    .await
}

/// Forgets sessions that expired before a time.
pub async fn forget_sessions(tx: &mut Tx, before: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "DELETE FROM sessions WHERE expires_at < $1";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(micros(before))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))
}

// === Signing keys ===

/// A key that tokens are signed with; the private half is sealed.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SigningKeyRow {
    /// `kid` of its tokens.
    pub kid: String,
    /// Ed25519 public key.
    pub public_key: Vec<u8>,
    /// PKCS#8, sealed.
    pub sealed_private: Vec<u8>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its last token has ended; none while it signs.
    pub retire_at: Option<DateTime<Utc>>,
}

/// Every signing key, newest first.
pub async fn signing_keys(tx: &mut Tx) -> sqlx::Result<Vec<SigningKeyRow>> {
    const SQL: &str = "SELECT kid, public_key, sealed_private, created_at, retire_at
        FROM signing_keys ORDER BY created_at DESC, kid DESC";
    on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_all(conn).await)
}

/// The public halves, for proxies.
pub async fn token_keys(tx: &mut Tx) -> sqlx::Result<Vec<TokenKey>> {
    Ok(signing_keys(tx).await?.into_iter().filter_map(public_half).collect())
}

/// One public half; none also when it cannot be read.
pub async fn token_key(tx: &mut Tx, kid: &str) -> sqlx::Result<Option<TokenKey>> {
    Ok(token_keys(tx).await?.into_iter().find(|key| key.kid == kid))
}

fn public_half(row: SigningKeyRow) -> Option<TokenKey> {
    match row.public_key.try_into() {
        Ok(public_key) => Some(TokenKey { kid: row.kid, public_key }),
        Err(_) => {
            tracing::error!(key.id = row.kid, "a token key is left out: its public half has not 32 bytes");
            None
        }
    }
}

/// Writes a new signing key.
pub async fn insert_signing_key(tx: &mut Tx, key: &SigningKeyRow) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO signing_keys (kid, public_key, sealed_private, created_at, retire_at)
        VALUES ($1, $2, $3, $4, NULL)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&key.kid)
        .bind(&key.public_key)
        .bind(&key.sealed_private)
        .bind(micros(key.created_at))
        .execute(conn)
        .await
        .map(drop))
}

/// Says when the other signing keys have served their time.
pub async fn retire_signing_keys(tx: &mut Tx, except: &str, at: DateTime<Utc>) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE signing_keys SET retire_at = $2 WHERE kid <> $1 AND retire_at IS NULL";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(except).bind(micros(at)).execute(conn).await.map(drop))
}

/// Takes out signing keys whose time is over; answers with their ids.
pub async fn delete_retired_signing_keys(tx: &mut Tx, now: DateTime<Utc>) -> sqlx::Result<Vec<String>> {
    const SQL: &str =
        "DELETE FROM signing_keys WHERE retire_at IS NOT NULL AND retire_at <= $1 RETURNING kid";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(micros(now)).fetch_all(conn).await)
}
