//! How servers are. The proxies near a server look at it: here is decided which of them, what they say is put together and
//! kept, and whoever asks is told, or has them look now.

mod plan;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use prost::Message as _;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use waffles_core::audit::{clean, micros};
use waffles_core::health::{Check, HealthPolicy, State};
use waffles_core::policy::{Permission, Target};
use waffles_core::server::Server;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::wire;
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::discovery::v1 as pb;
use waffles_runtime::task::{Driver, Poker, Task};

use crate::audit;
use crate::authz::{OpCtx, ProxyPeer};
use crate::discovery::{Discovery, Held, Update};
use crate::error::Error;
use crate::store::Db;
use crate::store::health::{self as store, FoundDoc, OrderRow, Report, Said};
use crate::store::servers;

pub use crate::store::health::{ChangeRow, Summary};
use plan::{Share, shares};

const MOST_REASON: usize = 64;
const MOST_SAW: usize = 200;
const MOST_ENDPOINTS: usize = 16;
/// Reports that wait to be written, of different servers and proxies. What is turned away, a proxy says again.
const MOST_WAITING: usize = 100_000;
/// What is as it was is written again after so long, so that it does not grow stale.
const WRITTEN_AGAIN: Duration = Duration::from_secs(25);
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How long a proxy that another replica said is connected counts as connected.
const FRESH: TimeDelta = TimeDelta::seconds(30);
/// How often it is looked which proxies other replicas have, and which of them are silent.
const LOOK_ROUND: Duration = Duration::from_secs(5);
/// An order is passed on to proxies for so long.
const ORDER_LIFE: TimeDelta = TimeDelta::seconds(15);
/// Changes shown at the most.
const MOST_HISTORY: u32 = 100;
/// Those who wait for a check at a time. One more is asked to try again.
const MOST_ASKING: usize = 64;
/// What a check takes beside its own time: to be told of, to end a session, to be reported.
const ON_TOP: Duration = Duration::from_secs(4);
/// The doors give an answer 15 seconds.
const MOST_WAIT: Duration = Duration::from_secs(12);
/// Other replicas write what their proxies say without a word to this one.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How a server is, at length.
#[derive(Debug)]
pub struct Health {
    /// The server's name.
    pub name: String,
    /// From all proxies that look.
    pub summary: Summary,
    /// From each of them.
    pub views: Vec<ProxyView>,
    /// How it was, newest first.
    pub history: Vec<ChangeRow>,
    /// How it is found out.
    pub policy: HealthPolicy,
}

/// How a server is from one proxy.
#[derive(Debug)]
pub struct ProxyView {
    /// The proxy, its name and group; none for an actor who may not see proxies.
    pub proxy: Option<(Uuid, String, String)>,
    /// Whether it checks the server.
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
    /// The check that was asked for is in.
    pub fresh: bool,
}

/// The health of servers.
#[derive(Debug, Clone)]
pub struct Ward {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    discovery: Discovery,
    desk: Mutex<Desk>,
    /// Counts what streams must look at: another plan, another order.
    told: watch::Sender<u64>,
    /// Counts what was written, for those who wait for it.
    written: watch::Sender<u64>,
    asking: Semaphore,
    poker: OnceLock<Poker>,
}

#[derive(Debug, Default)]
struct Desk {
    /// The proxies that hold a stream here and check servers.
    here: HashMap<Uuid, Here>,
    /// Those of other replicas, with their groups.
    elsewhere: HashMap<Uuid, String>,
    /// Proxies came or went since the plan was made.
    moved: bool,
    shares: HashMap<Uuid, Arc<Share>>,
    /// The orders of the last seconds, oldest first, each with its number here.
    orders: VecDeque<(u64, OrderRow, DateTime<Utc>)>,
    numbers: u64,
    waiting: HashMap<(Uuid, Uuid), Report>,
    /// What was written last, and when.
    known: HashMap<(Uuid, Uuid), (Said, Instant)>,
}

#[derive(Debug)]
struct Here {
    group: String,
    streams: usize,
}

impl Ward {
    /// Nobody looks yet.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        let shared = Shared {
            db,
            discovery,
            desk: Mutex::default(),
            told: watch::Sender::default(),
            written: watch::Sender::default(),
            asking: Semaphore::new(MOST_ASKING),
            poker: OnceLock::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The driver of the task that plans and writes.
    pub fn driver(&self) -> Driver<Rounds> {
        let rounds = Rounds {
            ward: self.clone(),
            published: 0,
            planned: None,
            looked_round: None,
            swept: None,
            failing: false,
        };
        let driver = Driver::new(rounds, Rounds::PERIOD);
        if self.shared.poker.set(driver.poker()).is_err() {
            tracing::warn!("a second task for the health of servers was made; only the first is woken");
        }
        driver
    }

    // === Proxies ===

    /// A proxy opens its configuration stream. It is told what to check while the value lives.
    pub fn connect(&self, peer: &ProxyPeer, hello: &pb::Hello) -> Feed {
        let told = self.shared.told.subscribe();
        let (id, checks) = (peer.id(), hello.checks_servers);
        let mut after = 0;
        if checks {
            let mut desk = self.shared.desk.lock();
            after = desk.numbers;
            let here = desk.here.entry(id).or_insert_with(|| Here { group: String::new(), streams: 0 });
            here.streams += 1;
            here.group = peer.group().to_owned();
            desk.moved = true;
            drop(desk);
            self.poke();
        }
        Feed { ward: self.clone(), proxy: id, checks, told, share: None, after }
    }

    /// A proxy says how servers are. What it says of those that are none of its group's business counts for nothing.
    pub fn hear(&self, peer: &ProxyPeer, report: &audit_pb::HealthReport) {
        let mut news = false;
        for said in &report.servers {
            let Ok(server) = said.server_id.parse::<Uuid>() else { continue };
            let report = Report { server, proxy: peer.id(), said: (!said.gone).then(|| believable(said)) };
            if report.said.is_some() && !self.shared.discovery.serves(peer.group(), server) {
                continue;
            }
            news |= self.shared.desk.lock().take(report);
        }
        if news {
            self.poke();
        }
    }

    fn poke(&self) {
        if let Some(poker) = self.shared.poker.get() {
            poker.poke();
        }
    }

    // === Operators ===

    /// How a server of the actor's tenant is.
    pub async fn get(&self, ctx: &OpCtx, name: &str) -> Result<Health, Error> {
        let server = self.find(ctx, name, Permission::ServersRead).await?;
        self.show(ctx, server, None).await
    }

    /// Has the proxies that look at a server look now, and waits for what they find.
    pub async fn check(&self, ctx: &OpCtx, name: &str) -> Result<Health, Error> {
        let server = self.find(ctx, name, Permission::ServersWrite).await?;
        if !server.enabled {
            return Err(Error::NotNow(format!(
                "server {name} is disabled, so nobody looks at it; enable it first"
            )));
        }
        let policy = server.spec.health;
        if policy.check == Check::Off {
            return Err(Error::NotNow(format!("checks of server {name} are off; set `health.check` first")));
        }
        let lookers = self.lookers(&server);
        if lookers.is_empty() {
            return Err(Error::NotNow(format!(
                "no proxy that may serve {name} is connected, so nobody can look at it; see `wafflectl proxy list`"
            )));
        }
        let Ok(_asking) = self.shared.asking.try_acquire() else {
            return Err(Error::Throttled { retry_after: Duration::from_secs(1) });
        };
        let mut written = self.shared.written.subscribe();
        let order = OrderRow { id: Uuid::now_v7(), server_id: server.id };
        let now = micros(Utc::now());
        let mut tx = self.shared.db.of(ctx.tenant()).begin().await?;
        store::order(&mut tx, ctx.tenant(), order, now).await?;
        let detail = json!({ "id": server.id, "order": order.id });
        audit::note(&mut tx, ctx, "server.check", &format!("server/{name}"), detail).await?;
        tx.commit().await?;
        if self.shared.desk.lock().pass_on(order, now) {
            self.shared.told.send_modify(|count| *count += 1);
        }
        let until = Instant::now() + (policy.timeout + ON_TOP).min(MOST_WAIT);
        loop {
            let health = self.show(ctx, server.clone(), Some(order.id)).await?;
            let fresh = health.views.iter().filter(|view| view.fresh).count();
            if fresh >= lookers.len() || Instant::now() >= until {
                return Ok(health);
            }
            let next = until.min(Instant::now() + LOOK_AGAIN);
            // A time-out is a reason to look as well.
            let _elapsed = timeout_at(next, written.changed()).await;
        }
    }

    async fn find(&self, ctx: &OpCtx, name: &str, wanted: Permission) -> Result<Server, Error> {
        if !ctx.may_somewhere(wanted) {
            ctx.require(wanted)?;
        }
        let missing = || Error::NotFound(format!("server {}", clean(name, 64)));
        let on = Target::Server(name);
        let knows = ctx.may_on(Permission::ServersRead, on) || ctx.may_on(wanted, on);
        if !(knows && ctx.sees_server(name)) {
            return Err(missing());
        }
        ctx.require_on(wanted, on)?;
        let row = servers::get(&self.shared.db.of(ctx.tenant()), ctx.tenant(), name).await?;
        row.ok_or_else(missing)?.described().map_err(Error::internal)
    }

    async fn show(&self, ctx: &OpCtx, server: Server, order: Option<Uuid>) -> Result<Health, Error> {
        let db = self.shared.db.of(ctx.tenant());
        let rows = store::views(&db, ctx.tenant(), server.id, micros(Utc::now())).await?;
        let known = store::summaries(&db, ctx.tenant(), &[server.id]).await?.remove(&server.id);
        let history = store::history(&db, ctx.tenant(), server.id, MOST_HISTORY).await?;
        let may_know = ctx.may(Permission::ProxiesRead);
        let view = |row: store::ViewRow| ProxyView {
            proxy: may_know.then_some((row.proxy_id, row.proxy, row.proxy_group)),
            checks: row.checks,
            state: State::parse(&row.state).unwrap_or_default(),
            reason: row.reason,
            since: row.since,
            checked_at: row.checked_at,
            found: row.found.0,
            // Ids of version 7 are in the order of their times: a later order was answered by a later check.
            fresh: order.is_some() && row.answered >= order,
        };
        Ok(Health {
            summary: Summary::of(server.enabled, known),
            views: rows.into_iter().map(view).collect(),
            history,
            policy: server.spec.health,
            name: server.spec.name,
        })
    }

    /// The proxies that are connected, here or elsewhere, and look at a server.
    fn lookers(&self, server: &Server) -> HashSet<Uuid> {
        let count = usize::from(server.spec.health.proxies);
        let groups = self.shared.desk.lock().groups();
        let serve = |group: &String| server.spec.groups.is_empty() || server.spec.groups.contains(group);
        groups
            .iter()
            .filter(|(group, _)| serve(group))
            .flat_map(|(_, proxies)| waffles_core::health::lookers(server.id, proxies, count))
            .collect()
    }
}

impl Desk {
    /// Keeps a report until it is written. Tells whether it is worth being written at once.
    fn take(&mut self, report: Report) -> bool {
        let key = (report.server, report.proxy);
        let as_before = match (&report.said, self.known.get(&key)) {
            (Some(said), Some((known, at))) => {
                let same = known.state == said.state
                    && known.reason == said.reason
                    && known.checks == said.checks
                    && known.answered == said.answered
                    && known
                        .found
                        .iter()
                        .map(|found| &found.saw)
                        .eq(said.found.iter().map(|found| &found.saw));
                same && at.elapsed() < WRITTEN_AGAIN
            }
            (None, None) => false,
            _ => false,
        };
        if as_before || (self.waiting.len() >= MOST_WAITING && !self.waiting.contains_key(&key)) {
            return false;
        }
        self.waiting.insert(key, report);
        true
    }

    /// Takes an order in, once, for the streams to pass on.
    fn pass_on(&mut self, order: OrderRow, now: DateTime<Utc>) -> bool {
        if self.orders.iter().any(|(_, known, _)| known.id == order.id) {
            return false;
        }
        self.numbers += 1;
        self.orders.push_back((self.numbers, order, now));
        true
    }

    /// The proxies of each group.
    fn groups(&self) -> HashMap<String, Vec<Uuid>> {
        let here = self.here.iter().map(|(id, here)| (id, &here.group));
        let elsewhere = self.elsewhere.iter().filter(|(id, _)| !self.here.contains_key(id));
        let mut groups: HashMap<String, Vec<Uuid>> = HashMap::new();
        for (id, group) in here.chain(elsewhere) {
            groups.entry(group.clone()).or_default().push(*id);
        }
        groups.values_mut().for_each(|proxies| proxies.sort_unstable());
        groups
    }
}

/// What can be believed of what a proxy says.
fn believable(said: &audit_pb::ServerReport) -> Said {
    let now = micros(Utc::now());
    // A clock that is ahead must not make a state younger than the word of it.
    let past = |time: Option<prost_types::Timestamp>| wire::time(time).map(|time| micros(time).min(now));
    let found = said.endpoints.iter().take(MOST_ENDPOINTS).map(|found| FoundDoc {
        endpoint: found.endpoint,
        state: wire::state_from_proto(found.state).as_str().to_owned(),
        reason: clean(&found.reason, MOST_REASON),
        saw: clean(&found.saw, MOST_SAW),
        took_us: found
            .took
            .and_then(|took| Duration::try_from(took).ok())
            .map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
    });
    Said {
        checks: said.checks,
        state: wire::state_from_proto(said.state),
        reason: clean(&said.reason, MOST_REASON),
        since: past(said.since).unwrap_or(now),
        checked_at: past(said.checked_at),
        found: found.collect(),
        answered: said.order.parse().ok(),
    }
}

/// What one stream passes on to its proxy.
#[derive(Debug)]
pub struct Feed {
    ward: Ward,
    proxy: Uuid,
    checks: bool,
    told: watch::Receiver<u64>,
    /// What the proxy was told last on this stream.
    share: Option<Arc<Share>>,
    /// The number of the last order that it was told.
    after: u64,
}

impl Feed {
    /// Resolves when there may be something to tell.
    pub async fn changed(&mut self) {
        if !self.checks || self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is to be told now, to a proxy that holds this; none where there is nothing.
    pub fn due(&mut self, held: &Held) -> Option<Update> {
        if !self.checks {
            return None;
        }
        self.told.borrow_and_update();
        let desk = self.ward.shared.desk.lock();
        // Before the first plan nothing is known, and what a proxy checks already, it goes on to check.
        let share = desk.shares.get(&self.proxy).cloned()?;
        let mut update = Update {
            lineage: held.lineage.clone(),
            revision: held.revision,
            urgent: 0,
            earlier: Vec::new(),
            full: false,
            resources: Vec::new(),
            removed: Vec::new(),
            orders: Vec::new(),
        };
        if self.share.as_ref() != Some(&share) {
            let key = ResourceKey::new(Kind::Checks, "checks");
            update.resources.push((key, share.resource().encode_to_vec().into()));
        }
        let after = self.after;
        for (number, order, _) in desk.orders.iter().filter(|(number, ..)| *number > after) {
            self.after = *number;
            if share.contains(&order.server_id) {
                let (id, server_id) = (order.id.to_string(), order.server_id.to_string());
                update.orders.push(pb::CheckOrder { id, server_id });
            }
        }
        self.share = Some(share);
        let is_something = !update.resources.is_empty() || !update.orders.is_empty();
        is_something.then_some(update)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.checks {
            return;
        }
        let mut desk = self.ward.shared.desk.lock();
        if let Some(here) = desk.here.get_mut(&self.proxy) {
            here.streams = here.streams.saturating_sub(1);
            if here.streams == 0 {
                desk.here.remove(&self.proxy);
                // Until it turns up elsewhere, or here again.
                desk.elsewhere.remove(&self.proxy);
                desk.shares.remove(&self.proxy);
                desk.moved = true;
            }
        }
        drop(desk);
        self.ward.poke();
    }
}

/// Plans who looks at what, and writes what is found.
#[derive(Debug)]
pub struct Rounds {
    ward: Ward,
    /// What was published when the plan was made.
    published: u64,
    planned: Option<Instant>,
    looked_round: Option<Instant>,
    swept: Option<Instant>,
    failing: bool,
}

/// What one round did.
#[derive(Debug, Default, Serialize)]
pub struct Done {
    written: usize,
    changed: usize,
    lookers: usize,
    planned: bool,
    error: Option<String>,
}

impl Rounds {
    /// How often it is looked for orders of other replicas, and for another plan.
    pub const PERIOD: Duration = Duration::from_secs(1);
    /// Reports within this time are one write.
    const GATHER: Duration = Duration::from_millis(30);
    /// A plan is made no more often than this: many proxies that come at once are one change.
    const PLAN_AGAIN: Duration = Duration::from_millis(500);
    const SWEEP: Duration = Duration::from_secs(20);

    async fn round(&mut self, report: &mut Done) -> sqlx::Result<()> {
        self.write(report).await?;
        self.look_round().await?;
        self.plan(report).await;
        self.hear_orders().await?;
        if self.swept.is_none_or(|at| at.elapsed() >= Self::SWEEP) {
            self.swept = Some(Instant::now());
            let db = self.ward.shared.db.everywhere();
            report.changed += store::sweep(&db, micros(Utc::now())).await?;
        }
        Ok(())
    }

    async fn write(&self, report: &mut Done) -> sqlx::Result<()> {
        let shared = &self.ward.shared;
        let mut reports: Vec<Report> =
            std::mem::take(&mut shared.desk.lock().waiting).into_values().collect();
        if reports.is_empty() {
            return Ok(());
        }
        reports.sort_unstable_by_key(|report| (report.server, report.proxy));
        let written = store::put(&shared.db.everywhere(), &reports, micros(Utc::now())).await;
        let mut desk = shared.desk.lock();
        match written {
            Ok(changed) => {
                report.written = reports.len();
                report.changed = changed;
                let now = Instant::now();
                for Report { server, proxy, said } in reports {
                    match said {
                        Some(said) => drop(desk.known.insert((server, proxy), (said, now))),
                        None => drop(desk.known.remove(&(server, proxy))),
                    }
                }
                // Whoever was not heard of for long is written anew when it is.
                desk.known.retain(|_, (_, at)| at.elapsed() < WRITTEN_AGAIN * 4);
                drop(desk);
                shared.written.send_modify(|count| *count += 1);
                Ok(())
            }
            Err(error) => {
                for report in reports {
                    // A later word has taken its place meanwhile.
                    desk.waiting.entry((report.server, report.proxy)).or_insert(report);
                }
                Err(error)
            }
        }
    }

    /// Which proxies other replicas have.
    async fn look_round(&mut self) -> sqlx::Result<()> {
        if self.looked_round.is_some_and(|at| at.elapsed() < LOOK_ROUND) {
            return Ok(());
        }
        let shared = &self.ward.shared;
        let found = store::lookers(&shared.db.everywhere(), micros(Utc::now()) - FRESH).await?;
        self.looked_round = Some(Instant::now());
        let mut desk = shared.desk.lock();
        let found: HashMap<Uuid, String> =
            found.into_iter().filter(|(id, _)| !desk.here.contains_key(id)).collect();
        if found != desk.elsewhere {
            desk.elsewhere = found;
            desk.moved = true;
        }
        Ok(())
    }

    /// Shares the servers out among the proxies, where those or these are others than before.
    async fn plan(&mut self, report: &mut Done) {
        let shared = &self.ward.shared;
        let published = *shared.discovery.subscribe().borrow();
        let groups = {
            let mut desk = shared.desk.lock();
            report.lookers = desk.here.len() + desk.elsewhere.len();
            let due = desk.moved || published != self.published;
            let early = self.planned.is_some_and(|at| at.elapsed() < Self::PLAN_AGAIN);
            if shared.discovery.revision() == 0 || !due || early {
                return;
            }
            desk.moved = false;
            desk.groups()
        };
        self.published = published;
        self.planned = Some(Instant::now());
        report.planned = true;
        let servers = shared.discovery.checked();
        // Thousands of servers times hundreds of proxies take a while.
        let Ok(made) = tokio::task::spawn_blocking(move || shares(&servers, &groups)).await else { return };
        let mut desk = shared.desk.lock();
        let mut differs = false;
        let here: Vec<Uuid> = desk.here.keys().copied().collect();
        for id in here {
            let Some(share) = made.get(&id) else { continue };
            if desk.shares.get(&id).is_none_or(|known| **known != *share) {
                desk.shares.insert(id, Arc::new(share.clone()));
                differs = true;
            }
        }
        drop(desk);
        if differs {
            shared.told.send_modify(|count| *count += 1);
        }
    }

    /// Orders that were given to other replicas, for proxies that are connected here.
    async fn hear_orders(&self) -> sqlx::Result<()> {
        let (shared, now) = (&self.ward.shared, micros(Utc::now()));
        let orders = store::orders_since(&shared.db.everywhere(), now - ORDER_LIFE).await?;
        let mut desk = shared.desk.lock();
        desk.orders.retain(|(.., at)| *at >= now - ORDER_LIFE * 2);
        let mut new = false;
        for order in orders {
            new |= desk.pass_on(order, now);
        }
        drop(desk);
        if new {
            shared.told.send_modify(|count| *count += 1);
        }
        Ok(())
    }
}

impl Task for Rounds {
    const NAME: &'static str = "server-health";
    type Report = Done;

    async fn activate(&mut self) -> Done {
        tokio::time::sleep(Self::GATHER).await;
        let mut report = Done::default();
        let round = tokio::time::timeout(WRITE_TIME, self.round(&mut report)).await;
        let error = round.unwrap_or(Err(sqlx::Error::PoolTimedOut)).err();
        let was = std::mem::replace(&mut self.failing, error.is_some());
        if let (Some(error), false) = (&error, was) {
            tracing::warn!(%error, "how servers are cannot be written or shared out at the moment");
        }
        report.error = error.map(|error| error.to_string());
        report
    }
}
