//! The audit trail: batches in, pages out, and how far each proxy's spool has been stored.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, QueryBuilder};
use uuid::Uuid;
use waffles_core::audit::{Event, Outcome, micros};
use waffles_core::trail::{self, Hash, Link};

use super::changes::{signed, unsigned};
use super::{Db, Pool, Tx, on_db, on_tx, owner, push_in, read};

/// Rows a statement; 33 values each stay below the limits of both databases.
const ROWS: usize = 500;

/// How often the time of an act is moved by a microsecond, since there is one at that time.
const MOST_DOUBLES: usize = 10;

/// Names the lock under which partitions are made: "waffles" and a number.
const PARTITIONS: i64 = 0x7761_6666_6c65_7301;

/// The columns of an event, in the order of [`EventRow`].
pub(super) const COLUMNS: &str = "position, id, tenant, occurred_at, action, outcome, principal_id, principal_name, api_key_id,
    client_ip, client_name, protocol_version, server_id, server_name, target, rule, reason, http_status, rpc_code,
    duration_us, upstream_us, request_bytes, response_bytes, request_payload, response_payload, revision, proxy_id,
    resource, detail";

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which chain: that of a proxy's spool, or [`trail::OWN_CHAIN`].
    pub chain: Uuid,
    /// Which record of it.
    pub sequence: u64,
    /// What ties it to the one before.
    pub link: Link,
}

/// How far a chain is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its last record.
    pub through: u64,
    /// That one's hash; none before the first record that has one.
    pub head: Option<Hash>,
}

/// What a transaction adds to a chain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Advance {
    /// Records that the proxy says were lost since the spool began.
    pub lost: u64,
    /// Numbers that were passed over.
    pub gaps: u64,
    /// Records that did not follow from the one before.
    pub breaks: u64,
}

/// Adds acts of ours to their chain.
pub(super) async fn append_own(tx: &mut Tx, notes: Vec<Event>) -> sqlx::Result<()> {
    let Stored { mut through, head } = lock_spool(tx, Uuid::nil(), trail::OWN_CHAIN).await?;
    let mut hash = head.unwrap_or(Hash::START);
    for mut event in notes {
        through += 1;
        // Two notes of one request at one moment would be one row.
        for _ in 0..MOST_DOUBLES {
            let link = Link::new(trail::OWN_CHAIN, through, &hash, &event);
            let place = Place { chain: trail::OWN_CHAIN, sequence: through, link };
            if insert(tx, &[(&event, place)]).await? == 1 {
                hash = link.hash;
                break;
            }
            event.occurred_at += chrono::TimeDelta::microseconds(1);
        }
    }
    let to = Stored { through, head: Some(hash) };
    advance_spool(tx, Uuid::nil(), trail::OWN_CHAIN, to, Advance::default()).await
}

/// Adds events. One that is there already, by id and time, is left as it is; the answer says how many were added.
pub async fn insert(tx: &mut Tx, events: &[(&Event, Place)]) -> sqlx::Result<u64> {
    const INTO: &str = "INSERT INTO audit_events (id, tenant, occurred_at, action, outcome, principal_id,
        principal_name, api_key_id, client_ip, client_name, protocol_version, server_id, server_name, target, rule,
        reason, http_status, rpc_code, duration_us, upstream_us, request_bytes, response_bytes, request_payload,
        response_payload, revision, proxy_id, resource, detail, spool_id, sequence, digest, hash, attest) ";
    let mut added = 0;
    for rows in events.chunks(ROWS) {
        added += on_tx!(tx, |conn| {
            let mut query = QueryBuilder::new(INTO);
            query.push_values(rows, |mut row, (event, place)| {
                row.push_bind(event.id)
                    .push_bind(&event.tenant)
                    .push_bind(event.occurred_at)
                    .push_bind(&event.action)
                    .push_bind(event.outcome.as_str())
                    .push_bind(event.principal_id)
                    .push_bind(&event.principal_name)
                    .push_bind(&event.api_key_id)
                    .push_bind(&event.client_ip)
                    .push_bind(&event.client_name)
                    .push_bind(&event.protocol_version)
                    .push_bind(event.server_id)
                    .push_bind(&event.server_name)
                    .push_bind(&event.target)
                    .push_bind(&event.rule)
                    .push_bind(&event.reason)
                    .push_bind(i32::from(event.http_status))
                    .push_bind(event.rpc_code)
                    .push_bind(signed(event.duration_us))
                    .push_bind(signed(event.upstream_us))
                    .push_bind(signed(event.request_bytes))
                    .push_bind(signed(event.response_bytes))
                    .push_bind(&event.request_payload)
                    .push_bind(&event.response_payload)
                    .push_bind(signed(event.revision))
                    .push_bind(event.proxy_id)
                    .push_bind(&event.resource)
                    .push_bind(&event.detail)
                    .push_bind(place.chain)
                    .push_bind(signed(place.sequence))
                    .push_bind(place.link.digest.0.as_slice())
                    .push_bind(place.link.hash.0.as_slice())
                    .push_bind(place.link.attest.as_ref().map(|signature| signature.0.as_slice()));
            });
            query.push(" ON CONFLICT DO NOTHING");
            // Each length is a text of its own, so only whole chunks are worth remembering as prepared.
            let query = query.build().persistent(rows.len() == ROWS || rows.len() == 1);
            query.execute(conn).await.map(|done| done.rows_affected())
        })?;
    }
    Ok(added)
}

/// Locks the row of a chain, made where there is none, and gives how far it is stored.
pub async fn lock_spool(tx: &mut Tx, proxy: Uuid, spool: Uuid) -> sqlx::Result<Stored> {
    const SQL: &str = "INSERT INTO audit_spools (proxy_id, spool_id, stored_through, lost, updated_at)
        VALUES ($1, $2, 0, 0, $3)
        ON CONFLICT (proxy_id, spool_id) DO UPDATE SET updated_at = excluded.updated_at
        RETURNING stored_through, head";
    let (through, head): (i64, Option<Vec<u8>>) = on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(proxy)
        .bind(spool)
        .bind(micros(Utc::now()))
        .fetch_one(conn)
        .await)?;
    Ok(Stored { through: unsigned(through), head: head.and_then(|head| Hash::read(&head)) })
}

/// Notes how far a locked chain is stored; what is lost is never found again.
pub async fn advance_spool(
    tx: &mut Tx,
    proxy: Uuid,
    spool: Uuid,
    to: Stored,
    by: Advance,
) -> sqlx::Result<()> {
    const SQL: &str =
        "UPDATE audit_spools SET stored_through = $3, lost = CASE WHEN lost < $4 THEN $4 ELSE lost END,
            head = $5, gaps = gaps + $6, breaks = breaks + $7
        WHERE proxy_id = $1 AND spool_id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(proxy)
        .bind(spool)
        .bind(signed(to.through))
        .bind(signed(by.lost))
        .bind(to.head.as_ref().map(|head| head.0.as_slice()))
        .bind(signed(by.gaps))
        .bind(signed(by.breaks))
        .execute(conn)
        .await
        .map(drop))
}

/// How far a spool is stored; 0 for one that is not known.
pub async fn stored_through(db: &Db, proxy: Uuid, spool: Uuid) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT stored_through FROM audit_spools WHERE proxy_id = $1 AND spool_id = $2";
    let through: Option<i64> = read(|| async {
        on_db!(db, |pool| sqlx::query_scalar(SQL).bind(proxy).bind(spool).fetch_optional(pool).await)
    })
    .await?;
    Ok(through.map_or(0, unsigned))
}

/// How far the spools of some proxies are stored.
pub async fn marks(db: &Db, proxies: &[Uuid]) -> sqlx::Result<Vec<((Uuid, Uuid), u64)>> {
    if proxies.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(Uuid, Uuid, i64)> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new("SELECT proxy_id, spool_id, stored_through FROM audit_spools");
            push_in(&mut query, " WHERE proxy_id", proxies.iter().copied());
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(|(proxy, spool, through)| ((proxy, spool), unsigned(through))).collect())
}

/// Every tenant.
pub async fn tenants(db: &Db) -> sqlx::Result<Vec<String>> {
    const SQL: &str = "SELECT id FROM tenants";
    read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).fetch_all(pool).await) }).await
}

/// Filters; those left empty do not filter.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// At or after.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
    /// Principal id or name.
    pub principal: String,
    /// Server name.
    pub server: String,
    /// Tool, prompt or URI.
    pub target: String,
    /// Action, exactly; or its beginning when it ends with a dot.
    pub action: String,
    /// Any of these.
    pub outcomes: Vec<Outcome>,
    /// The event with this id.
    pub id: Option<Uuid>,
    /// By this proxy.
    pub proxy_id: Option<Uuid>,
}

/// Adds a tenant and a filter to a statement that has no condition yet.
macro_rules! push_filter {
    ($query:expr, $tenant:expr, $filter:expr) => {{
        let (query, filter): (_, &EventFilter) = ($query, $filter);
        query.push(" WHERE tenant = ").push_bind($tenant);
        if let Some(since) = filter.since {
            query.push(" AND occurred_at >= ").push_bind(since);
        }
        if let Some(until) = filter.until {
            query.push(" AND occurred_at < ").push_bind(until);
        }
        if let Ok(id) = filter.principal.parse::<Uuid>() {
            query.push(" AND principal_id = ").push_bind(id);
        } else if !filter.principal.is_empty() {
            query.push(" AND principal_name = ").push_bind(&filter.principal);
        }
        if !filter.server.is_empty() {
            query.push(" AND server_name = ").push_bind(&filter.server);
        }
        if !filter.target.is_empty() {
            query.push(" AND target = ").push_bind(&filter.target);
        }
        if filter.action.ends_with('.') {
            // Not LIKE, which is blind to case on one of the two databases.
            query
                .push(" AND substr(action, 1, ")
                .push_bind(i32::try_from(filter.action.len()).unwrap_or(i32::MAX));
            query.push(") = ").push_bind(&filter.action);
        } else if !filter.action.is_empty() {
            query.push(" AND action = ").push_bind(&filter.action);
        }
        if !filter.outcomes.is_empty() {
            push_in(query, " AND outcome", filter.outcomes.iter().map(|outcome| outcome.as_str()));
        }
        if let Some(id) = filter.id {
            query.push(" AND id = ").push_bind(id);
        }
        if let Some(proxy) = filter.proxy_id {
            query.push(" AND proxy_id = ").push_bind(proxy);
        }
    }};
}

pub(super) use push_filter;

/// Events of a tenant, newest first, before a place.
pub async fn search(
    db: &Db,
    tenant: &str,
    filter: &EventFilter,
    before: Option<(DateTime<Utc>, Uuid)>,
    limit: u32,
) -> sqlx::Result<Vec<Event>> {
    let rows: Vec<EventRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM audit_events"));
            push_filter!(&mut query, tenant, filter);
            if let Some((time, id)) = before {
                query.push(" AND (occurred_at, id) < (").push_bind(time).push(", ").push_bind(id).push(")");
            }
            query.push(" ORDER BY occurred_at DESC, id DESC LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// What of an audited call decides about it.
#[derive(Debug, sqlx::FromRow)]
pub struct CallRow {
    /// Its id.
    pub id: Uuid,
    /// When it was made.
    pub occurred_at: DateTime<Utc>,
    /// `mcp.<method>`.
    pub action: String,
    /// Who made it.
    pub principal_id: Option<Uuid>,
    /// The same, by name.
    pub principal_name: String,
    /// The API key used.
    pub api_key_id: String,
    /// The client's address.
    pub client_ip: String,
    /// The client's revision of MCP.
    pub protocol_version: String,
    /// The server.
    pub server_id: Option<Uuid>,
    /// The same, by name.
    pub server_name: String,
    /// Tool, prompt or URI.
    pub target: String,
    /// Captured parameters, JSON.
    pub request_payload: String,
    /// What else the proxy says of it, JSON.
    pub detail: String,
}

/// Calls to servers of a tenant within a span of time, newest first, before a place.
pub async fn calls(
    db: &Db,
    tenant: &str,
    since: DateTime<Utc>,
    before: (DateTime<Utc>, Uuid),
    limit: u32,
) -> sqlx::Result<Vec<CallRow>> {
    const SQL: &str = "SELECT id, occurred_at, action, principal_id, principal_name, api_key_id, client_ip,
            protocol_version, server_id, server_name, target, request_payload, detail
        FROM audit_events WHERE tenant = $1 AND occurred_at >= $2 AND (occurred_at, id) < ($3, $4)
        ORDER BY occurred_at DESC, id DESC LIMIT $5";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(since)
            .bind(before.0)
            .bind(before.1)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await
}

/// How many events a tenant has since a time.
pub async fn count_since(db: &Db, tenant: &str, since: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT COUNT(*) FROM audit_events WHERE tenant = $1 AND occurred_at >= $2";
    read(|| async {
        on_db!(db, |pool| sqlx::query_scalar(SQL).bind(tenant).bind(since).fetch_one(pool).await)
    })
    .await
    .map(unsigned)
}

/// The place of the event that was stored last; 0 where there is none.
pub async fn last_position(db: &Db) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT COALESCE(MAX(position), 0) FROM audit_events";
    read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).fetch_one(pool).await) }).await
}

/// Places of a tenant's events after a place, in the order of storing.
pub async fn positions_after(
    db: &Db,
    tenant: &str,
    filter: &EventFilter,
    after: i64,
    limit: u32,
) -> sqlx::Result<Vec<i64>> {
    read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new("SELECT position FROM audit_events");
            push_filter!(&mut query, tenant, filter);
            query.push(" AND position > ").push_bind(after);
            query.push(" ORDER BY position LIMIT ").push_bind(i64::from(limit));
            query.build_query_scalar().fetch_all(pool).await
        })
    })
    .await
}

/// Events of a tenant by their places, in the order of storing.
pub async fn at_positions(db: &Db, tenant: &str, positions: &[i64]) -> sqlx::Result<Vec<Event>> {
    if positions.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<EventRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM audit_events WHERE tenant = "));
            query.push_bind(tenant);
            push_in(&mut query, " AND position", positions.iter().copied());
            query.push(" ORDER BY position");
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
    })
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// Makes the monthly partition that a time falls into, on Postgres. Tells whether it was missing.
pub async fn make_partition(db: &Db, month: DateTime<Utc>) -> sqlx::Result<bool> {
    let Pool::Pg(pool, _) = &db.pool else { return Ok(false) };
    let Some((name, from, to)) = partition(month) else { return Ok(false) };
    let mut conn = owner(pool).await?;
    // Asking first spares the parent a lock that every insert would wait for.
    const THERE: &str = "SELECT to_regclass($1) IS NOT NULL";
    if sqlx::query_scalar(THERE).bind(&name).fetch_one(&mut conn).await? {
        conn.close().await?;
        return Ok(false);
    }
    // IF NOT EXISTS does not hold between two replicas that make it at the same moment.
    let mut tx = conn.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(PARTITIONS).execute(&mut *tx).await?;
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {name} PARTITION OF audit_events FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    // Made of numbers only.
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await?;
    // Its rows are reached through the parent, whose policy counts. By itself it shows nothing.
    let secure = format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY");
    sqlx::query(sqlx::AssertSqlSafe(secure)).execute(&mut *tx).await?;
    tx.commit().await?;
    conn.close().await?;
    Ok(true)
}

/// Name and bounds of a month's partition.
fn partition(time: DateTime<Utc>) -> Option<(String, String, String)> {
    use chrono::{Datelike as _, Months, NaiveDate};
    let from = NaiveDate::from_ymd_opt(time.year(), time.month(), 1)?;
    let to = from.checked_add_months(Months::new(1))?;
    Some((
        format!("audit_events_{:04}_{:02}", from.year(), from.month()),
        format!("{from}T00:00:00Z"),
        format!("{to}T00:00:00Z"),
    ))
}

/// The time that a month's partition is for; none for another table.
pub(super) fn month_of(table: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let (year, month) = table.strip_prefix("audit_events_")?.split_once('_')?;
    let from = chrono::NaiveDate::from_ymd_opt(year.parse().ok()?, month.parse().ok()?, 1)?;
    let to = from.checked_add_months(chrono::Months::new(1))?;
    Some((from.and_hms_opt(0, 0, 0)?.and_utc(), to.and_hms_opt(0, 0, 0)?.and_utc()))
}

/// An event as it is stored.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct EventRow {
    id: Uuid,
    tenant: String,
    occurred_at: DateTime<Utc>,
    action: String,
    outcome: String,
    principal_id: Option<Uuid>,
    principal_name: String,
    api_key_id: String,
    client_ip: String,
    client_name: String,
    protocol_version: String,
    server_id: Option<Uuid>,
    server_name: String,
    target: String,
    rule: String,
    reason: String,
    http_status: i32,
    rpc_code: i64,
    duration_us: i64,
    upstream_us: i64,
    request_bytes: i64,
    response_bytes: i64,
    request_payload: String,
    response_payload: String,
    revision: i64,
    proxy_id: Option<Uuid>,
    resource: String,
    detail: String,
}

impl From<EventRow> for Event {
    fn from(row: EventRow) -> Self {
        Self {
            id: row.id,
            tenant: row.tenant,
            occurred_at: row.occurred_at,
            action: row.action,
            // An outcome of a later version reads as a fault rather than as a success.
            outcome: Outcome::parse(&row.outcome).unwrap_or(Outcome::Internal),
            principal_id: row.principal_id,
            principal_name: row.principal_name,
            api_key_id: row.api_key_id,
            client_ip: row.client_ip,
            client_name: row.client_name,
            protocol_version: row.protocol_version,
            server_id: row.server_id,
            server_name: row.server_name,
            target: row.target,
            rule: row.rule,
            reason: row.reason,
            http_status: u16::try_from(row.http_status).unwrap_or(0),
            rpc_code: row.rpc_code,
            duration_us: unsigned(row.duration_us),
            upstream_us: unsigned(row.upstream_us),
            request_bytes: unsigned(row.request_bytes),
            response_bytes: unsigned(row.response_bytes),
            request_payload: row.request_payload,
            response_payload: row.response_payload,
            revision: unsigned(row.revision),
            proxy_id: row.proxy_id,
            resource: row.resource,
            detail: row.detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_has_a_partition_that_ends_where_the_next_begins() {
        let time = "2026-12-31T23:59:59Z".parse().unwrap();
        let (name, from, to) = partition(time).unwrap();
        assert_eq!(name, "audit_events_2026_12");
        assert_eq!((from.as_str(), to.as_str()), ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"));
    }

    #[test]
    fn only_months_of_ours_are_dropped() {
        for (table, expected) in [
            ("audit_events_2026_12", Some("2027-01-01T00:00:00Z")),
            ("audit_events_default", None),
            ("audit_events_2026_13", None),
            ("servers", None),
        ] {
            let end = month_of(table).map(|(_, to)| to);
            assert_eq!(end, expected.map(|end| end.parse().unwrap()), "{table}");
        }
    }
}
