//! The chains of the audit trail: how far each has come, its records in order, the checkpoints that were signed for it, and
//! what was dropped because of its age.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, QueryBuilder};
use uuid::Uuid;
use waffles_core::audit::Event;
use waffles_core::trail::{Bound, Checkpoint, Forgotten, Hash, Head, Link, Signature};

use super::audit::{COLUMNS, EventFilter, EventRow, month_of, push_filter};
use super::changes::{signed, unsigned};
use super::{Begun, Db, Pool, Tx, on_db, on_tx, push_in, read, scope};

/// An event without a place in a chain. The text of the index `audit_events_unchained`, by which they are found.
const UNCHAINED: &str = "(spool_id IS NULL OR sequence IS NULL OR digest IS NULL OR hash IS NULL)";

/// A chain and how far it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainEnd {
    /// The proxy; nil for our own chain.
    pub proxy: Uuid,
    /// The chain.
    pub chain: Uuid,
    /// Its last record, where it has one with a hash.
    pub end: Option<Bound>,
}

/// The chains that we know of.
pub async fn chain_ends(tx: &mut Tx) -> sqlx::Result<Vec<ChainEnd>> {
    const SQL: &str =
        "SELECT proxy_id, spool_id, stored_through, head FROM audit_spools ORDER BY proxy_id, spool_id";
    let rows: Vec<(Uuid, Uuid, i64, Option<Vec<u8>>)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_all(conn).await)?;
    let end = |(proxy, chain, through, head): (Uuid, Uuid, i64, Option<Vec<u8>>)| {
        let hash = head.and_then(|head| Hash::read(&head));
        ChainEnd { proxy, chain, end: hash.map(|hash| Bound { sequence: unsigned(through), hash }) }
    };
    Ok(rows.into_iter().map(end).collect())
}

/// The chain behind another one among those that events name, and its last record.
pub async fn next_chain(tx: &mut Tx, after: Option<Uuid>) -> sqlx::Result<Option<(Uuid, u64)>> {
    // One step along the index, since `DISTINCT` would read all of it.
    const FIRST: &str =
        "SELECT spool_id FROM audit_events WHERE spool_id IS NOT NULL ORDER BY spool_id LIMIT 1";
    const NEXT: &str = "SELECT spool_id FROM audit_events WHERE spool_id > $1 ORDER BY spool_id LIMIT 1";
    const LAST: &str = "SELECT sequence FROM audit_events WHERE spool_id = $1 AND sequence IS NOT NULL
        ORDER BY sequence DESC LIMIT 1";
    let chain: Option<Uuid> = on_tx!(&mut *tx, |conn| match after {
        None => sqlx::query_scalar(FIRST).fetch_optional(conn).await,
        Some(after) => sqlx::query_scalar(NEXT).bind(after).fetch_optional(conn).await,
    })?;
    let Some(chain) = chain else { return Ok(None) };
    let last: Option<i64> =
        on_tx!(tx, |conn| sqlx::query_scalar(LAST).bind(chain).fetch_optional(conn).await)?;
    Ok(Some((chain, last.map_or(0, unsigned))))
}

/// A record of a chain, without its event.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// Its number.
    pub sequence: u64,
    /// The event's id.
    pub id: Uuid,
    /// Its link.
    pub link: Link,
}

type LinkRow = (i64, Uuid, Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Records of a chain behind a place, in order, through a number. All tenants'.
pub async fn links(
    db: &Db,
    chain: Uuid,
    after: (u64, Uuid),
    through: u64,
    limit: u32,
) -> sqlx::Result<Vec<Placed>> {
    const SQL: &str = "SELECT sequence, id, digest, hash, attest FROM audit_events
        WHERE spool_id = $1 AND (sequence, id) > ($2, $3) AND sequence <= $4
            AND digest IS NOT NULL AND hash IS NOT NULL
        ORDER BY sequence, id LIMIT $5";
    let rows: Vec<LinkRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(chain)
            .bind(signed(after.0))
            .bind(after.1)
            .bind(signed(through))
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    let placed = |(sequence, id, digest, hash, attest): LinkRow| {
        // What has the wrong length was altered, and is shown as something that cannot be right.
        let hash_of = |bytes: &[u8]| Hash::read(bytes).unwrap_or(Hash::START);
        let attest = attest.map(|bytes| Signature::read(&bytes).unwrap_or(Signature([0; 64])));
        let link = Link { digest: hash_of(&digest), hash: hash_of(&hash), attest };
        Placed { sequence: unsigned(sequence), id, link }
    };
    Ok(rows.into_iter().map(placed).collect())
}

/// Events of a tenant within a stretch of a chain that match a filter.
pub async fn events_in(
    db: &Db,
    tenant: &str,
    filter: &EventFilter,
    chain: Uuid,
    (first, last): (u64, u64),
) -> sqlx::Result<Vec<Event>> {
    let rows: Vec<EventRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM audit_events"));
            push_filter!(&mut query, tenant, filter);
            query.push(" AND spool_id = ").push_bind(chain);
            query.push(" AND sequence >= ").push_bind(signed(first));
            query.push(" AND sequence <= ").push_bind(signed(last));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// Events of a tenant that match a filter and have no place in a chain, oldest first, behind a place.
pub async fn unchained(
    db: &Db,
    tenant: &str,
    filter: &EventFilter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: u32,
) -> sqlx::Result<Vec<Event>> {
    let rows: Vec<EventRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM audit_events"));
            push_filter!(&mut query, tenant, filter);
            query.push(format!(" AND {UNCHAINED}"));
            if let Some((time, id)) = after {
                query.push(" AND (occurred_at, id) > (").push_bind(time).push(", ").push_bind(id).push(")");
            }
            query.push(" ORDER BY occurred_at, id LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// Whether any event, of whichever tenant, has no place in a chain.
pub async fn has_unchained(tx: &mut Tx) -> sqlx::Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM audit_events WHERE {UNCHAINED})");
    on_tx!(tx, |conn| sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await)
}

// === Checkpoints ===

/// The number of the last checkpoint, and when it was made.
pub async fn last_checkpoint(tx: &mut Tx) -> sqlx::Result<Option<(u64, DateTime<Utc>)>> {
    const SQL: &str = "SELECT number, made_at FROM audit_checkpoints ORDER BY number DESC LIMIT 1";
    let row: Option<(i64, DateTime<Utc>)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_optional(conn).await)?;
    Ok(row.map(|(number, made_at)| (unsigned(number), made_at)))
}

/// The number of the last checkpoint that was made by a time.
pub async fn checkpoint_before(tx: &mut Tx, time: DateTime<Utc>) -> sqlx::Result<Option<u64>> {
    const SQL: &str = "SELECT number FROM audit_checkpoints WHERE made_at <= $1 ORDER BY number DESC LIMIT 1";
    let number: Option<i64> =
        on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(time).fetch_optional(conn).await)?;
    Ok(number.map(unsigned))
}

/// A chain's head in the last checkpoint that has one, up to a number.
pub async fn head_by(tx: &mut Tx, chain: Uuid, number: u64) -> sqlx::Result<Option<Bound>> {
    const SQL: &str = "SELECT sequence, hash FROM audit_heads WHERE chain = $1 AND number <= $2
        ORDER BY number DESC LIMIT 1";
    let row: Option<(i64, Vec<u8>)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(chain).bind(signed(number)).fetch_optional(conn).await)?;
    Ok(row.and_then(bound))
}

fn bound((sequence, hash): (i64, Vec<u8>)) -> Option<Bound> {
    Some(Bound { sequence: unsigned(sequence), hash: Hash::read(&hash)? })
}

/// Checkpoints behind a number, through another one, in order.
pub async fn checkpoints(db: &Db, after: u64, through: u64, limit: u32) -> sqlx::Result<Vec<Checkpoint>> {
    const SQL: &str = "SELECT number, made_at, previous, unchained, signature FROM audit_checkpoints
        WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3";
    const HEADS: &str = "SELECT number, chain, sequence, hash FROM audit_heads
        WHERE number > $1 AND number <= $2 ORDER BY number, chain";
    type Row = (i64, DateTime<Utc>, Vec<u8>, i64, Vec<u8>);
    let rows: Vec<Row> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(signed(after))
            .bind(signed(through))
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    let Some(last) = rows.last().map(|row| row.0) else { return Ok(Vec::new()) };
    let heads: Vec<(i64, Uuid, i64, Vec<u8>)> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(HEADS).bind(signed(after)).bind(last).fetch_all(pool).await)
    })
    .await?;
    let mut heads = heads.into_iter().peekable();
    let mut found = Vec::with_capacity(rows.len());
    for (number, made_at, previous, unchained, signature) in rows {
        let mut of = Vec::new();
        while let Some((_, chain, sequence, hash)) = heads.next_if(|head| head.0 <= number) {
            let hash = Hash::read(&hash).unwrap_or(Hash::START);
            of.push(Head { chain, sequence: unsigned(sequence), hash });
        }
        of.sort_by_key(|head| head.chain);
        found.push(Checkpoint {
            number: unsigned(number),
            made_at,
            previous: Hash::read(&previous).unwrap_or(Hash::START),
            unchained: unchained != 0,
            heads: of,
            signature: Signature::read(&signature).unwrap_or(Signature([0; 64])),
        });
    }
    Ok(found)
}

/// Takes the heads of the chains that have moved since they were last taken.
pub async fn take_moved(tx: &mut Tx) -> sqlx::Result<Vec<Head>> {
    const SQL: &str = "UPDATE audit_spools SET checkpointed = stored_through
        WHERE head IS NOT NULL AND stored_through > checkpointed
        RETURNING spool_id, stored_through, head";
    let rows: Vec<(Uuid, i64, Vec<u8>)> = on_tx!(tx, |conn| sqlx::query_as(SQL).fetch_all(conn).await)?;
    let head = |(chain, sequence, hash): (Uuid, i64, Vec<u8>)| {
        Some(Head { chain, sequence: unsigned(sequence), hash: Hash::read(&hash)? })
    };
    Ok(rows.into_iter().filter_map(head).collect())
}

/// Stores a checkpoint.
pub async fn insert_checkpoint(tx: &mut Tx, checkpoint: &Checkpoint) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO audit_checkpoints (number, made_at, previous, unchained, signature)
        VALUES ($1, $2, $3, $4, $5)";
    on_tx!(&mut *tx, |conn| sqlx::query(SQL)
        .bind(signed(checkpoint.number))
        .bind(checkpoint.made_at)
        .bind(checkpoint.previous.0.as_slice())
        .bind(i64::from(checkpoint.unchained))
        .bind(checkpoint.signature.0.as_slice())
        .execute(conn)
        .await
        .map(drop))?;
    for heads in checkpoint.heads.chunks(500) {
        on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new("INSERT INTO audit_heads (number, chain, sequence, hash) ");
            query.push_values(heads, |mut row, head| {
                row.push_bind(signed(checkpoint.number))
                    .push_bind(head.chain)
                    .push_bind(signed(head.sequence))
                    .push_bind(head.hash.0.as_slice());
            });
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    Ok(())
}

// === What was dropped because of its age ===

/// A transaction of the tables' owner, who alone may take something out of the trail.
pub async fn begin_as_owner(db: &Db) -> sqlx::Result<Tx> {
    match &db.pool {
        Pool::Pg(pool, _) => {
            let options = pool.connect_options().as_ref().clone();
            let timeouts = [("statement_timeout", "0"), ("lock_timeout", "0"), ("waffles.scope", scope::ALL)];
            let options = options.options(timeouts).disable_statement_logging();
            let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await?;
            Ok(Tx::new(Begun::Pg(pool.begin().await?)))
        }
        Pool::Lite(_) => db.begin().await,
    }
}

/// A partition, and the time that it is for.
#[derive(Debug, Clone)]
pub struct Month {
    /// The table.
    pub table: String,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// The partitions that ended before a time; none on SQLite.
pub async fn months_before(tx: &mut Tx, time: DateTime<Utc>) -> sqlx::Result<Vec<Month>> {
    const SQL: &str = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'audit_events'::regclass ORDER BY c.relname";
    let Begun::Pg(pg) = &mut tx.begun else { return Ok(Vec::new()) };
    let tables: Vec<String> = sqlx::query_scalar(SQL).fetch_all(&mut **pg).await?;
    let month = |table: String| {
        let (from, to) = month_of(&table)?;
        (to <= time).then_some(Month { table, from, to })
    };
    Ok(tables.into_iter().filter_map(month).collect())
}

/// Keeps writers off a partition that is about to be dropped. Readers go on.
pub async fn close_month(tx: &mut Tx, month: &Month) -> sqlx::Result<()> {
    let Begun::Pg(pg) = &mut tx.begun else { return Ok(()) };
    // The name comes from the catalogue and was matched against our own form.
    let sql = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", month.table);
    sqlx::query(AssertSqlSafe(sql)).execute(&mut **pg).await.map(drop)
}

/// Drops a partition.
pub async fn drop_month(tx: &mut Tx, month: &Month) -> sqlx::Result<()> {
    let Begun::Pg(pg) = &mut tx.begun else { return Ok(()) };
    // As above.
    sqlx::query(AssertSqlSafe(format!("DROP TABLE {}", month.table))).execute(&mut **pg).await.map(drop)
}

/// What of a chain is to be dropped: a record's number and its hash.
pub type Old = (Uuid, u64, Hash);

/// Records of a partition that have a place in a chain, by chain and number, behind one of them. Asked of the parent, since a
/// partition by itself shows nothing.
pub async fn of_month(
    tx: &mut Tx,
    month: &Month,
    after: Option<(Uuid, u64)>,
    limit: u32,
) -> sqlx::Result<Vec<Old>> {
    const SQL: &str = "SELECT spool_id, sequence, hash FROM audit_events
        WHERE occurred_at >= $1 AND occurred_at < $2 AND (spool_id, sequence) > ($3, $4) AND hash IS NOT NULL
        ORDER BY spool_id, sequence LIMIT $5";
    let (chain, sequence) = after.map_or((Uuid::nil(), -1), |(chain, sequence)| (chain, signed(sequence)));
    let rows: Vec<(Uuid, i64, Vec<u8>)> = on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(month.from)
        .bind(month.to)
        .bind(chain)
        .bind(sequence)
        .bind(i64::from(limit))
        .fetch_all(conn)
        .await)?;
    Ok(rows.into_iter().map(old).collect())
}

/// Records from before a time that have a place in a chain, by chain and number.
pub async fn older(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> sqlx::Result<Vec<Old>> {
    const SQL: &str = "SELECT spool_id, sequence, hash FROM audit_events
        WHERE occurred_at < $1 AND spool_id IS NOT NULL AND sequence IS NOT NULL AND hash IS NOT NULL
        ORDER BY spool_id, sequence LIMIT $2";
    let rows: Vec<(Uuid, i64, Vec<u8>)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(before).bind(i64::from(limit)).fetch_all(conn).await)?;
    Ok(rows.into_iter().map(old).collect())
}

fn old((chain, sequence, hash): (Uuid, i64, Vec<u8>)) -> Old {
    (chain, unsigned(sequence), Hash::read(&hash).unwrap_or(Hash::START))
}

/// Whether a chain has a record strictly between two numbers.
pub async fn has_between(tx: &mut Tx, chain: Uuid, after: u64, before: u64) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM audit_events
        WHERE spool_id = $1 AND sequence > $2 AND sequence < $3)";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL)
        .bind(chain)
        .bind(signed(after))
        .bind(signed(before))
        .fetch_one(conn)
        .await)
}

/// The hash that a chain had before a record.
pub async fn hash_before(tx: &mut Tx, chain: Uuid, sequence: u64) -> sqlx::Result<Hash> {
    const KEPT: &str = "SELECT sequence, hash FROM audit_events
        WHERE spool_id = $1 AND sequence < $2 AND hash IS NOT NULL ORDER BY sequence DESC LIMIT 1";
    const DROPPED: &str =
        "SELECT high, hash FROM audit_forgotten WHERE chain = $1 AND high < $2 ORDER BY high DESC LIMIT 1";
    let mut found = None::<Bound>;
    for sql in [KEPT, DROPPED] {
        let row: Option<(i64, Vec<u8>)> = on_tx!(&mut *tx, |conn| sqlx::query_as(sql)
            .bind(chain)
            .bind(signed(sequence))
            .fetch_optional(conn)
            .await)?;
        found = [found, row.and_then(bound)].into_iter().flatten().max_by_key(|bound| bound.sequence);
    }
    Ok(found.map_or(Hash::START, |bound| bound.hash))
}

/// Notes what is dropped.
pub async fn insert_forgotten(tx: &mut Tx, forgotten: &Forgotten) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO audit_forgotten (chain, low, high, previous, hash, cutoff, signature)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(forgotten.chain)
        .bind(signed(forgotten.first))
        .bind(signed(forgotten.last))
        .bind(forgotten.previous.0.as_slice())
        .bind(forgotten.hash.0.as_slice())
        .bind(forgotten.before)
        .bind(forgotten.signature.0.as_slice())
        .execute(conn)
        .await
        .map(drop))
}

/// Takes a stretch out of a chain.
pub async fn delete_stretch(tx: &mut Tx, chain: Uuid, first: u64, last: u64) -> sqlx::Result<u64> {
    const SQL: &str = "DELETE FROM audit_events WHERE spool_id = $1 AND sequence >= $2 AND sequence <= $3";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(chain)
        .bind(signed(first))
        .bind(signed(last))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))
}

/// Takes out events from before a time that have no place in a chain.
pub async fn delete_unchained(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> sqlx::Result<u64> {
    let sql = format!(
        "DELETE FROM audit_events WHERE (id, occurred_at) IN (
        SELECT id, occurred_at FROM audit_events WHERE occurred_at < $1 AND {UNCHAINED} LIMIT $2)"
    );
    on_tx!(tx, |conn| sqlx::query(AssertSqlSafe(sql))
        .bind(before)
        .bind(i64::from(limit))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))
}

/// What was dropped of all chains, behind a place, in order.
pub async fn forgotten(db: &Db, after: Option<(Uuid, u64)>, limit: u32) -> sqlx::Result<Vec<Forgotten>> {
    const SQL: &str = "SELECT chain, low, high, previous, hash, cutoff, signature FROM audit_forgotten
        WHERE (chain, low) > ($1, $2) ORDER BY chain, low LIMIT $3";
    type Row = (Uuid, i64, i64, Vec<u8>, Vec<u8>, DateTime<Utc>, Vec<u8>);
    let (chain, low) = after.map_or((Uuid::nil(), -1), |(chain, low)| (chain, signed(low)));
    let rows: Vec<Row> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(chain)
            .bind(low)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    let forgotten = |(chain, low, high, previous, hash, before, signature): Row| Forgotten {
        chain,
        first: unsigned(low),
        last: unsigned(high),
        previous: Hash::read(&previous).unwrap_or(Hash::START),
        hash: Hash::read(&hash).unwrap_or(Hash::START),
        before,
        signature: Signature::read(&signature).unwrap_or(Signature([0; 64])),
    };
    Ok(rows.into_iter().map(forgotten).collect())
}
