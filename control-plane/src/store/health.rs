//! How servers are: from each proxy, together, and as it was; and the checks that somebody has asked for.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::health::{DISABLED, NO_REPORT, NOT_CHECKED, State, View, merge};

use super::{Db, Tx, on_db, on_tx, push_in, read};

/// Rows a statement.
const ROWS: usize = 200;
/// A proxy says again every half minute how servers are. After so long without a word its last one counts no more.
pub const STALE: TimeDelta = TimeDelta::seconds(100);
/// Changes that are kept of one server at the most.
const MOST_KEPT: i64 = 500;

/// How a server is from one proxy, as it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which server.
    pub server: Uuid,
    /// Which proxy.
    pub proxy: Uuid,
    /// What it says; none where it has nothing to say any more.
    pub said: Option<Said>,
}

/// What a proxy says of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Whether it checks it.
    pub checks: bool,
    /// How it is.
    pub state: State,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// When it was last checked.
    pub checked_at: Option<DateTime<Utc>>,
    /// What that check found.
    pub found: Vec<FoundDoc>,
    /// The latest order that it has answered.
    pub answered: Option<Uuid>,
}

/// What a check found at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundDoc {
    /// Which, from 0.
    pub endpoint: u32,
    /// The state that it speaks for.
    pub state: String,
    /// Why.
    pub reason: String,
    /// What was seen.
    pub saw: String,
    /// How long it took.
    pub took_us: u64,
}

/// How a server is from one proxy.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ViewRow {
    /// The proxy.
    pub proxy_id: Uuid,
    /// Its name; empty where it is not known yet.
    pub proxy: String,
    /// Its group.
    pub proxy_group: String,
    /// Whether it checks the server.
    pub checks: bool,
    /// How it is.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// When it was last checked.
    pub checked_at: Option<DateTime<Utc>>,
    /// What that check found.
    pub found: Json<Vec<FoundDoc>>,
    /// The latest order that it has answered.
    pub answered: Option<Uuid>,
}

/// How a server is, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it is.
    pub state: State,
    /// Why; empty where all is well.
    pub reason: String,
    /// Since when; none where nobody has ever looked.
    pub since: Option<DateTime<Utc>>,
}

impl Summary {
    /// Of a server of which nobody has said anything.
    pub fn unknown(reason: &str) -> Self {
        Self { state: State::Unknown, reason: reason.to_owned(), since: None }
    }

    /// Of a server, of which this may be known: of one that is disabled it does not count.
    pub fn of(enabled: bool, known: Option<Self>) -> Self {
        match known {
            _ if !enabled => Self::unknown(DISABLED),
            Some(known) => known,
            None => Self::unknown(NO_REPORT),
        }
    }
}

/// A change of a server's state.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ChangeRow {
    /// When.
    pub at: DateTime<Utc>,
    /// How it was from then on.
    pub state: String,
    /// Why.
    pub reason: String,
}

/// A check that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct OrderRow {
    /// UUID of version 7.
    pub id: Uuid,
    /// Which server.
    pub server_id: Uuid,
}

#[derive(sqlx::FromRow)]
struct StateRow {
    tenant: String,
    server_id: Uuid,
    state: String,
    reason: String,
    since: DateTime<Utc>,
}

/// Stores what proxies say, puts it together, and notes what is another than before. Servers that are not there any more
/// are passed over. Tells how many states changed.
pub async fn put(db: &Db, reports: &[Report], now: DateTime<Utc>) -> sqlx::Result<usize> {
    let mut changed = 0;
    for reports in reports.chunks(ROWS) {
        let mut tx = db.begin().await?;
        let servers: Vec<Uuid> = reports.iter().map(|report| report.server).collect();
        let tenants = lock(&mut tx, &servers, now).await?;
        let (gone, said): (Vec<&Report>, Vec<&Report>) = reports
            .iter()
            .filter(|report| tenants.contains_key(&report.server))
            .partition(|r| r.said.is_none());
        for report in gone {
            const GONE: &str =
                "DELETE FROM server_health WHERE tenant = $1 AND server_id = $2 AND proxy_id = $3";
            on_tx!(&mut tx, |conn| sqlx::query(GONE)
                .bind(tenants.get(&report.server).map(String::as_str))
                .bind(report.server)
                .bind(report.proxy)
                .execute(conn)
                .await
                .map(drop))?;
        }
        write(&mut tx, &tenants, &said, now).await?;
        changed += settle(&mut tx, &servers, now).await?;
        tx.commit().await?;
    }
    Ok(changed)
}

/// Makes sure of the rows of states, which are the locks as well: taken in one order, so that two replicas wait for each
/// other instead of standing in each other's way. Gives the tenants of the servers that are there.
async fn lock(tx: &mut Tx, servers: &[Uuid], now: DateTime<Utc>) -> sqlx::Result<HashMap<Uuid, String>> {
    if servers.is_empty() {
        return Ok(HashMap::new());
    }
    let mut there: Vec<(Uuid, String)> = on_tx!(&mut *tx, |conn| {
        let mut query = QueryBuilder::new("SELECT id, tenant FROM servers");
        push_in(&mut query, " WHERE id", servers.iter().copied());
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    there.sort_unstable();
    if there.is_empty() {
        return Ok(HashMap::new());
    }
    on_tx!(tx, |conn| {
        let mut query =
            QueryBuilder::new("INSERT INTO server_states (tenant, server_id, state, reason, since) ");
        query.push_values(&there, |mut row, (id, tenant)| {
            row.push_bind(tenant)
                .push_bind(*id)
                .push_bind(State::Unknown.as_str())
                .push_bind(NOT_CHECKED)
                .push_bind(now);
        });
        query.push(" ON CONFLICT (server_id) DO UPDATE SET server_id = excluded.server_id");
        query.build().persistent(false).execute(conn).await.map(drop)
    })?;
    Ok(there.into_iter().collect())
}

async fn write(
    tx: &mut Tx,
    tenants: &HashMap<Uuid, String>,
    said: &[&Report],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let rows: Vec<(&String, &Report, &Said)> =
        said.iter().filter_map(|r| Some((tenants.get(&r.server)?, *r, r.said.as_ref()?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(
            "INSERT INTO server_health (tenant, server_id, proxy_id, checks, state, reason, since, checked_at, found,
                answered, heard_at) ",
        );
        query.push_values(&rows, |mut row, (tenant, report, said)| {
            row.push_bind(*tenant)
                .push_bind(report.server)
                .push_bind(report.proxy)
                .push_bind(said.checks)
                .push_bind(said.state.as_str())
                .push_bind(&said.reason)
                .push_bind(said.since)
                .push_bind(said.checked_at)
                .push_bind(Json(&said.found))
                .push_bind(said.answered)
                .push_bind(now);
        });
        query.push(
            " ON CONFLICT (server_id, proxy_id) DO UPDATE SET checks = excluded.checks, state = excluded.state,
                reason = excluded.reason, since = excluded.since, checked_at = excluded.checked_at,
                found = excluded.found, answered = COALESCE(excluded.answered, server_health.answered),
                heard_at = excluded.heard_at",
        );
        query.build().persistent(false).execute(conn).await.map(drop)
    })
}

/// Puts together what the proxies say of some servers, whose states are locked.
async fn settle(tx: &mut Tx, servers: &[Uuid], now: DateTime<Utc>) -> sqlx::Result<usize> {
    const CHANGE: &str =
        "UPDATE server_states SET state = $3, reason = $4, since = $5 WHERE tenant = $1 AND server_id = $2";
    const NOTE: &str = "INSERT INTO server_history (tenant, id, server_id, at, state, reason) VALUES ($1, $2, $3, $4, $5, $6)";
    if servers.is_empty() {
        return Ok(0);
    }
    let views: Vec<(Uuid, bool, String, String)> = on_tx!(&mut *tx, |conn| {
        let mut query = QueryBuilder::new("SELECT server_id, checks, state, reason FROM server_health");
        push_in(&mut query, " WHERE server_id", servers.iter().copied());
        query
            .push(" AND heard_at >= ")
            .push_bind(now - STALE)
            .push(" ORDER BY server_id, since DESC, proxy_id");
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    let mut by_server: HashMap<Uuid, Vec<View<'_>>> = HashMap::new();
    for (server, checks, state, reason) in &views {
        let state = State::parse(state).unwrap_or_default();
        by_server.entry(*server).or_default().push(View { checks: *checks, state, reason });
    }
    let states: Vec<StateRow> = on_tx!(&mut *tx, |conn| {
        let mut query =
            QueryBuilder::new("SELECT tenant, server_id, state, reason, since FROM server_states");
        push_in(&mut query, " WHERE server_id", servers.iter().copied());
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    let mut changed = 0;
    for row in states {
        let (state, reason) = merge(by_server.get(&row.server_id).map(Vec::as_slice).unwrap_or_default());
        let (same_state, same_reason) = (row.state == state.as_str(), row.reason == reason);
        if same_state && same_reason {
            continue;
        }
        let since = if same_state { row.since } else { now };
        on_tx!(&mut *tx, |conn| sqlx::query(CHANGE)
            .bind(&row.tenant)
            .bind(row.server_id)
            .bind(state.as_str())
            .bind(&*reason)
            .bind(since)
            .execute(conn)
            .await
            .map(drop))?;
        on_tx!(&mut *tx, |conn| sqlx::query(NOTE)
            .bind(&row.tenant)
            .bind(Uuid::now_v7())
            .bind(row.server_id)
            .bind(now)
            .bind(state.as_str())
            .bind(&*reason)
            .execute(conn)
            .await
            .map(drop))?;
        changed += 1;
    }
    Ok(changed)
}

/// Forgets what proxies said that have been silent for too long, and what it comes to without them.
pub async fn sweep(db: &Db, now: DateTime<Utc>) -> sqlx::Result<usize> {
    const OLD: &str =
        "SELECT DISTINCT server_id FROM server_health WHERE heard_at < $1 ORDER BY server_id LIMIT 200";
    const FORGET: &str = "DELETE FROM server_health WHERE server_id = $1 AND heard_at < $2";
    let old: Vec<Uuid> =
        read(|| async { on_db!(db, |pool| sqlx::query_scalar(OLD).bind(now - STALE).fetch_all(pool).await) })
            .await?;
    if old.is_empty() {
        return Ok(0);
    }
    let mut tx = db.begin().await?;
    lock(&mut tx, &old, now).await?;
    for server in &old {
        on_tx!(&mut tx, |conn| sqlx::query(FORGET)
            .bind(*server)
            .bind(now - STALE)
            .execute(conn)
            .await
            .map(drop))?;
    }
    let changed = settle(&mut tx, &old, now).await?;
    tx.commit().await?;
    Ok(changed)
}

/// How some servers of a tenant are, in short.
pub async fn summaries(db: &Db, tenant: &str, servers: &[Uuid]) -> sqlx::Result<HashMap<Uuid, Summary>> {
    if servers.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<StateRow> = read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT tenant, server_id, state, reason, since FROM server_states WHERE tenant = ",
            );
            query.push_bind(tenant);
            push_in(&mut query, " AND server_id", servers.iter().copied());
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
    })
    .await?;
    let summary = |row: StateRow| {
        let state = State::parse(&row.state).unwrap_or_default();
        (row.server_id, Summary { state, reason: row.reason, since: Some(row.since) })
    };
    Ok(rows.into_iter().map(summary).collect())
}

/// How a server of a tenant is from each proxy that speaks of it.
pub async fn views(db: &Db, tenant: &str, server: Uuid, now: DateTime<Utc>) -> sqlx::Result<Vec<ViewRow>> {
    const SQL: &str =
        "SELECT h.proxy_id, COALESCE(p.name, '') AS proxy, COALESCE(p.proxy_group, '') AS proxy_group,
            h.checks, h.state, h.reason, h.since, h.checked_at, h.found, h.answered
        FROM server_health h LEFT JOIN proxies p ON p.id = h.proxy_id
        WHERE h.tenant = $1 AND h.server_id = $2 AND h.heard_at >= $3
        ORDER BY p.proxy_group, p.name, h.proxy_id";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(server)
            .bind(now - STALE)
            .fetch_all(pool)
            .await)
    })
    .await
}

/// How a server of a tenant was, newest first.
pub async fn history(db: &Db, tenant: &str, server: Uuid, limit: u32) -> sqlx::Result<Vec<ChangeRow>> {
    const SQL: &str = "SELECT at, state, reason FROM server_history WHERE tenant = $1 AND server_id = $2
        ORDER BY at DESC, id DESC LIMIT $3";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(server)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await
}

/// Notes that a check is asked for.
pub async fn order(tx: &mut Tx, tenant: &str, order: OrderRow, now: DateTime<Utc>) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO check_orders (tenant, id, server_id, asked_at) VALUES ($1, $2, $3, $4)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(order.id)
        .bind(order.server_id)
        .bind(now)
        .execute(conn)
        .await
        .map(drop))
}

/// The checks that were asked for since a time, whoever asked.
pub async fn orders_since(db: &Db, since: DateTime<Utc>) -> sqlx::Result<Vec<OrderRow>> {
    const SQL: &str = "SELECT id, server_id FROM check_orders WHERE asked_at >= $1 ORDER BY id LIMIT 1000";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(since).fetch_all(pool).await) }).await
}

/// Forgets orders and changes from before these times, and of each server all changes but the newest.
pub async fn forget(db: &Db, orders: DateTime<Utc>, history: DateTime<Utc>) -> sqlx::Result<u64> {
    const ORDERS: &str = "DELETE FROM check_orders WHERE asked_at < $1";
    const OLD: &str = "DELETE FROM server_history WHERE at < $1";
    const MANY: &str = "DELETE FROM server_history WHERE id IN (SELECT id FROM (
        SELECT id, ROW_NUMBER() OVER (PARTITION BY server_id ORDER BY at DESC, id DESC) AS place
        FROM server_history) AS placed WHERE place > $1)";
    on_db!(db, |pool| sqlx::query(ORDERS).bind(orders).execute(pool).await.map(drop))?;
    let old = on_db!(db, |pool| sqlx::query(OLD)
        .bind(history)
        .execute(pool)
        .await
        .map(|done| done.rows_affected()))?;
    let many = on_db!(db, |pool| sqlx::query(MANY)
        .bind(MOST_KEPT)
        .execute(pool)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(old + many)
}

/// The proxies that are connected to any replica and check servers, with their groups.
pub async fn lookers(db: &Db, heard_since: DateTime<Utc>) -> sqlx::Result<Vec<(Uuid, String)>> {
    const SQL: &str = "SELECT id, proxy_group, health FROM proxies WHERE connected AND last_seen >= $1";
    let rows: Vec<(Uuid, String, Option<Json<super::proxies::HealthDoc>>)> =
        read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(heard_since).fetch_all(pool).await) })
            .await?;
    let looks = |health: &Option<Json<super::proxies::HealthDoc>>| health.as_ref().is_some_and(|h| h.checks);
    Ok(rows.into_iter().filter(|(.., health)| looks(health)).map(|(id, group, _)| (id, group)).collect())
}
