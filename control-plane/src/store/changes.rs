//! The revision log: what changed, in the order in which it became visible, and the one row that says which
//! database this is.

use chrono::Utc;
use sqlx::QueryBuilder;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::snapshot::{Kind, ResourceKey};

use super::{Begun, Db, Tx, on_db, on_tx, read};

/// Rows a statement.
const ROWS: usize = 500;

/// The channel that replicas listen on, on Postgres.
pub const CHANNEL: &str = "waffles_revision";

/// Appends a change and gives its revision. Two transactions that append wait for each other until the first
/// has ended, so that revisions become visible in their order; append last, to keep that wait short. On
/// Postgres the other replicas are told when the transaction commits.
pub async fn append(tx: &mut Tx, key: &ResourceKey, removed: bool) -> sqlx::Result<u64> {
    const NEXT: &str = "UPDATE meta SET revision = revision + 1 RETURNING revision";
    const INSERT: &str =
        "INSERT INTO revisions (revision, kind, resource_id, removed, at) VALUES ($1, $2, $3, $4, $5)";
    const NOTIFY: &str = "SELECT pg_notify($1, '')";
    let revision: i64 = on_tx!(tx, |conn| sqlx::query_scalar(NEXT).fetch_one(conn).await)?;
    on_tx!(tx, |conn| sqlx::query(INSERT)
        .bind(revision)
        .bind(key.kind.as_str())
        .bind(&key.id)
        .bind(removed)
        .bind(micros(Utc::now()))
        .execute(conn)
        .await
        .map(drop))?;
    if let Begun::Pg(pg) = &mut tx.begun {
        sqlx::query(NOTIFY).bind(CHANNEL).execute(&mut **pg).await?;
    }
    Ok(unsigned(revision))
}

/// Appends many changes as one, each with its revision, and gives the last of these; as [`append`], but with few
/// statements. Of none it gives the revision that there is.
pub async fn append_all(tx: &mut Tx, changes: &[(ResourceKey, bool)]) -> sqlx::Result<u64> {
    const NEXT: &str = "UPDATE meta SET revision = revision + $1 RETURNING revision";
    const NOTIFY: &str = "SELECT pg_notify($1, '')";
    if changes.is_empty() {
        const SQL: &str = "SELECT revision FROM meta";
        return on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_one(conn).await).map(unsigned);
    }
    let count = i64::try_from(changes.len()).unwrap_or(i64::MAX);
    let last: i64 = on_tx!(&mut *tx, |conn| sqlx::query_scalar(NEXT).bind(count).fetch_one(conn).await)?;
    let now = micros(Utc::now());
    let numbered: Vec<_> = (last - count + 1..).zip(changes).collect();
    for rows in numbered.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query =
                QueryBuilder::new("INSERT INTO revisions (revision, kind, resource_id, removed, at) ");
            query.push_values(rows, |mut row, (revision, (key, removed))| {
                row.push_bind(*revision)
                    .push_bind(key.kind.as_str())
                    .push_bind(&key.id)
                    .push_bind(*removed)
                    .push_bind(now);
            });
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    if let Begun::Pg(pg) = &mut tx.begun {
        sqlx::query(NOTIFY).bind(CHANNEL).execute(&mut **pg).await?;
    }
    Ok(unsigned(last))
}

/// Which database this is and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Names the sequence of revisions.
    pub lineage: String,
    /// The latest revision.
    pub revision: u64,
    /// Log entries up to this revision were cut off.
    pub floor: u64,
    /// API keys are not sent to proxies, which ask for those that they meet.
    pub keys_on_demand: bool,
}

/// Reads which database this is and how far it has come.
pub async fn head(tx: &mut Tx) -> sqlx::Result<Head> {
    const SQL: &str = "SELECT lineage, revision, log_floor, keys_on_demand FROM meta";
    let (lineage, revision, floor, keys_on_demand): (String, i64, i64, bool) =
        on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_one(conn).await)?;
    Ok(Head { lineage, revision: unsigned(revision), floor: unsigned(floor), keys_on_demand })
}

/// Whether any tenant is seen. One is always there, so that this is false only of a connection that sees nothing.
pub async fn sees_tenants(tx: &mut Tx) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM tenants)";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).fetch_one(conn).await)
}

/// The latest revision.
pub async fn latest(db: &Db) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT revision FROM meta";
    let revision: i64 =
        read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).fetch_one(pool).await) }).await?;
    Ok(unsigned(revision))
}

/// The latest change of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// At which revision.
    pub revision: u64,
    /// Of which resource.
    pub key: ResourceKey,
    /// Whether the resource is gone.
    pub removed: bool,
}

/// The latest change of every resource that changed after a revision, oldest first. Kinds that this version
/// does not know are left out: its proxies do not know them either.
pub async fn since(tx: &mut Tx, revision: u64) -> sqlx::Result<Vec<Change>> {
    const SQL: &str = "SELECT r.revision, r.kind, r.resource_id, r.removed FROM revisions r
        WHERE r.revision > $1 AND NOT EXISTS (
            SELECT 1 FROM revisions later WHERE later.kind = r.kind AND later.resource_id = r.resource_id
                AND later.revision > r.revision)
        ORDER BY r.revision";
    let rows: Vec<(i64, String, String, bool)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(signed(revision)).fetch_all(conn).await)?;
    let known = |(revision, kind, id, removed): (i64, String, String, bool)| {
        let key = ResourceKey::new(Kind::parse(&kind)?, id);
        Some(Change { revision: unsigned(revision), key, removed })
    };
    Ok(rows.into_iter().filter_map(known).collect())
}

/// What a database that was just made, or made by an older version, still lacks.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The master key is the one that the database was made with.
    Ours,
    /// The database was made with another master key, of this fingerprint.
    Foreign(String),
}

/// Gives a new database its lineage and ties it to the master key; compares the key in one that has both.
pub async fn claim(tx: &mut Tx, fingerprint: &str) -> sqlx::Result<Claim> {
    const FIRST: &str = "UPDATE meta SET lineage = $1, master_key = $2 WHERE lineage = ''";
    const KEY: &str = "SELECT master_key FROM meta";
    let lineage = Uuid::now_v7().to_string();
    let made = on_tx!(tx, |conn| sqlx::query(FIRST)
        .bind(&lineage)
        .bind(fingerprint)
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    if made == 1 {
        append(tx, &ResourceKey::new(Kind::Settings, "settings"), false).await?;
        return Ok(Claim::Ours);
    }
    let key: String = on_tx!(tx, |conn| sqlx::query_scalar(KEY).fetch_one(conn).await)?;
    Ok(if key == fingerprint { Claim::Ours } else { Claim::Foreign(key) })
}

/// Starts a new lineage: for a database that was restored from an older state, whose revisions proxies would
/// otherwise take for ones that they hold already.
pub async fn new_lineage(tx: &mut Tx) -> sqlx::Result<String> {
    // Proxies take everything anew, so that it can be decided anew whether that is with the API keys.
    const SQL: &str = "UPDATE meta SET lineage = $1, keys_on_demand = FALSE";
    let lineage = Uuid::now_v7().to_string();
    on_tx!(tx, |conn| sqlx::query(SQL).bind(&lineage).execute(conn).await.map(drop))?;
    Ok(lineage)
}

/// Notes that API keys are too many to be sent to proxies, of which these hear as a change of the settings. Nothing but a
/// new lineage takes it back: proxies that ask for keys lack most of them.
pub async fn set_keys_on_demand(tx: &mut Tx) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE meta SET keys_on_demand = TRUE WHERE NOT keys_on_demand";
    let changed =
        on_tx!(tx, |conn| sqlx::query(SQL).execute(conn).await.map(|done| done.rows_affected() == 1))?;
    if changed {
        append(tx, &ResourceKey::new(Kind::Settings, "settings"), false).await?;
    }
    Ok(())
}

/// Notes where servers may never be. A change of it is one of the settings, which proxies hear of.
pub async fn set_closed(tx: &mut Tx, closed: &str) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE meta SET closed = $1 WHERE closed <> $1";
    let changed = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(closed)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))?;
    if changed {
        append(tx, &ResourceKey::new(Kind::Settings, "settings"), false).await?;
    }
    Ok(())
}

/// Cuts off log entries older than a time, but never the latest. A proxy that was away for longer gets the
/// whole state. Returns how many were cut off.
pub async fn cut_off(db: &Db, before: chrono::DateTime<Utc>) -> sqlx::Result<u64> {
    const FLOOR: &str = "UPDATE meta SET log_floor = (
            SELECT COALESCE(MAX(revision), meta.log_floor) FROM revisions
            WHERE at < $1 AND revision < (SELECT MAX(revision) FROM revisions))
        RETURNING log_floor";
    const DELETE: &str = "DELETE FROM revisions WHERE revision <= $1";
    let mut tx = db.begin().await?;
    let floor: i64 = on_tx!(&mut tx, |conn| sqlx::query_scalar(FLOOR).bind(before).fetch_one(conn).await)?;
    let cut = on_tx!(&mut tx, |conn| sqlx::query(DELETE)
        .bind(floor)
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    tx.commit().await?;
    Ok(cut)
}

/// Revisions and versions are never negative.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Counts beyond what a column holds are kept as its largest value.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
