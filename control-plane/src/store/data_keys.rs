//! The keys that seal what is secret in the database, each sealed under the master key; and what they have sealed, by the
//! id of the key, which is the first byte of everything that is sealed.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Tx, on_tx};

/// How far a key has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It opens, and will seal once everybody knows it.
    Next,
    /// It seals.
    Sealing,
    /// It opens what it has sealed.
    Retired,
}

impl Stage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Sealing => "sealing",
            Self::Retired => "retired",
        }
    }
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataKey {
    /// What it seals.
    pub purpose: String,
    /// Its id among those of its purpose, 1 to 255.
    pub id: u8,
    /// The key, sealed.
    pub sealed: Vec<u8>,
    /// How far it has come.
    pub stage: Stage,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it came to its stage.
    pub changed_at: DateTime<Utc>,
}

/// All keys, those of a purpose in the order in which they were made.
pub async fn all(tx: &mut Tx) -> sqlx::Result<Vec<DataKey>> {
    const SQL: &str = "SELECT purpose, id, sealed, stage, created_at, changed_at FROM data_keys
        ORDER BY purpose, created_at, id";
    type Row = (String, i64, Vec<u8>, String, DateTime<Utc>, DateTime<Utc>);
    let rows: Vec<Row> = on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_all(conn).await)?;
    let key = |(purpose, id, sealed, stage, created_at, changed_at): Row| {
        let stage = match stage.as_str() {
            "next" => Stage::Next,
            "sealing" => Stage::Sealing,
            _ => Stage::Retired,
        };
        Some(DataKey { purpose, id: u8::try_from(id).ok()?, sealed, stage, created_at, changed_at })
    };
    Ok(rows.into_iter().filter_map(key).collect())
}

/// Adds a key.
pub async fn insert(tx: &mut Tx, key: &DataKey) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO data_keys (purpose, id, sealed, stage, created_at, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(&key.purpose)
        .bind(i64::from(key.id))
        .bind(&key.sealed)
        .bind(key.stage.as_str())
        .bind(key.created_at)
        .bind(key.changed_at)
        .execute(conn)
        .await
        .map(drop))
}

/// Brings a key from one stage to another. Of two replicas that do so at once, one does.
pub async fn advance(
    tx: &mut Tx,
    purpose: &str,
    id: u8,
    [from, to]: [Stage; 2],
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    const SQL: &str =
        "UPDATE data_keys SET stage = $4, changed_at = $5 WHERE purpose = $1 AND id = $2 AND stage = $3";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(purpose)
        .bind(i64::from(id))
        .bind(from.as_str())
        .bind(to.as_str())
        .bind(now)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Writes the sealed form of a key anew.
pub async fn reseal(tx: &mut Tx, purpose: &str, id: u8, sealed: &[u8]) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE data_keys SET sealed = $3 WHERE purpose = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(purpose)
        .bind(i64::from(id))
        .bind(sealed)
        .execute(conn)
        .await
        .map(drop))
}

/// Forgets a retired key.
pub async fn delete(tx: &mut Tx, purpose: &str, id: u8) -> sqlx::Result<bool> {
    const SQL: &str = "DELETE FROM data_keys WHERE purpose = $1 AND id = $2 AND stage = 'retired'";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(purpose)
        .bind(i64::from(id))
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))
}

/// Keeps others from changing keys until the transaction ends.
pub async fn lock(tx: &mut Tx) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE meta SET master_key = master_key";
    on_tx!(tx, |conn| sqlx::query(SQL).execute(conn).await.map(drop))
}

/// Whether anything was sealed before there were keys of their own.
pub async fn is_older(tx: &mut Tx) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM signing_keys) OR EXISTS (SELECT 1 FROM servers)";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_one(conn).await)
}

/// Ties the database to another master key.
pub async fn set_master_key(tx: &mut Tx, fingerprint: &str) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE meta SET master_key = $1";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(fingerprint).execute(conn).await.map(drop))
}

/// Which master key the database is tied to.
pub async fn master_key(tx: &mut Tx) -> sqlx::Result<String> {
    const SQL: &str = "SELECT master_key FROM meta";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_one(conn).await)
}

/// Something that is sealed in a table of ours.
#[derive(Debug, Clone)]
pub struct Value {
    /// Whose it is.
    pub owner: Owner,
    /// Its sealed form.
    pub sealed: Vec<u8>,
}

/// Whose a sealed value is: the key of its row.
#[derive(Debug, Clone)]
pub enum Owner {
    /// What is presented to this server.
    Server(Uuid),
    /// The private half of the token key of this name.
    SigningKey(String),
    /// The private key of this authority.
    Authority(Uuid),
}

/// Values that another key than this one has sealed, at most so many of each kind.
pub async fn stale(tx: &mut Tx, id: u8, most: i64) -> sqlx::Result<Vec<Value>> {
    const SERVERS: &str = "SELECT id, credential FROM servers WHERE substr(credential, 1, 1) <> $1 LIMIT $2";
    const SIGNING_KEYS: &str =
        "SELECT kid, sealed_private FROM signing_keys WHERE substr(sealed_private, 1, 1) <> $1 LIMIT $2";
    const AUTHORITIES: &str =
        "SELECT id, sealed_key FROM authorities WHERE substr(sealed_key, 1, 1) <> $1 LIMIT $2";
    let id = vec![id];
    let servers: Vec<(Uuid, Vec<u8>)> =
        on_tx!(tx, |conn| sqlx::query_as(SERVERS).bind(&id).bind(most).fetch_all(conn).await)?;
    let signing: Vec<(String, Vec<u8>)> =
        on_tx!(tx, |conn| sqlx::query_as(SIGNING_KEYS).bind(&id).bind(most).fetch_all(conn).await)?;
    let authorities: Vec<(Uuid, Vec<u8>)> =
        on_tx!(tx, |conn| sqlx::query_as(AUTHORITIES).bind(&id).bind(most).fetch_all(conn).await)?;
    let servers = servers.into_iter().map(|(id, sealed)| Value { owner: Owner::Server(id), sealed });
    let signing = signing.into_iter().map(|(kid, sealed)| Value { owner: Owner::SigningKey(kid), sealed });
    let authorities =
        authorities.into_iter().map(|(id, sealed)| Value { owner: Owner::Authority(id), sealed });
    Ok(servers.chain(signing).chain(authorities).collect())
}

/// Puts another sealed form in a value's place. No, where the value was changed meanwhile.
pub async fn replace(tx: &mut Tx, value: &Value, new: &[u8]) -> sqlx::Result<bool> {
    const SERVERS: &str = "UPDATE servers SET credential = $3 WHERE id = $1 AND credential = $2";
    const SIGNING_KEYS: &str =
        "UPDATE signing_keys SET sealed_private = $3 WHERE kid = $1 AND sealed_private = $2";
    const AUTHORITIES: &str = "UPDATE authorities SET sealed_key = $3 WHERE id = $1 AND sealed_key = $2";
    on_tx!(tx, |conn| {
        let query = match &value.owner {
            Owner::Server(id) => sqlx::query(SERVERS).bind(*id),
            Owner::SigningKey(kid) => sqlx::query(SIGNING_KEYS).bind(kid.as_str()),
            Owner::Authority(id) => sqlx::query(AUTHORITIES).bind(*id),
        };
        query.bind(&value.sealed).bind(new).execute(conn).await.map(|done| done.rows_affected() == 1)
    })
}

/// How many values a key has sealed that are still there.
pub async fn count(tx: &mut Tx, id: u8) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT (SELECT COUNT(*) FROM servers WHERE substr(credential, 1, 1) = $1)
        + (SELECT COUNT(*) FROM signing_keys WHERE substr(sealed_private, 1, 1) = $1)
        + (SELECT COUNT(*) FROM authorities WHERE substr(sealed_key, 1, 1) = $1)";
    let count: i64 = on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(vec![id]).fetch_one(conn).await)?;
    Ok(super::changes::unsigned(count))
}
