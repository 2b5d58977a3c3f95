//! How servers are from here: what checks found and how calls ended becomes a state for each, which goes up with the audit
//! stream. Who is to be checked, and when at once, comes down with the configuration; `checks` does the looking.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::audit::Outcome;
use waffles_core::health::{Check, Finding, HealthPolicy, State, Track};
use waffles_core::server::Server;
use waffles_core::wire;
use waffles_proto::audit::v1::{HealthReport, ServerReport};
use waffles_proto::discovery::v1 as pb;
use waffles_proto::registry::v1::EndpointFinding;

use crate::metrics::Metrics;
use crate::state::Current;

/// How often news is told, since what was told may have been lost with its stream.
const TELLINGS: u8 = 3;
/// After so long everything is told again.
const RETOLD: Duration = Duration::from_secs(30);
/// Servers in one report; the others are in the next.
const MOST_TOLD: usize = 5000;
/// Orders that wait to be taken up. Beyond it they are dropped: whoever asked is told that nothing came.
const MOST_ORDERS: usize = 1024;
/// Servers whose calls fail that wait to be looked at. Beyond it their next check comes when it is due.
const MOST_NUDGES: usize = 256;
/// Calls that fail hurry a check no more often than this.
const NUDGE: Duration = Duration::from_secs(1);

/// The servers that this proxy is to check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Assigned {
    /// None.
    #[default]
    None,
    /// All that it serves.
    All,
    /// These.
    These(HashSet<Uuid>),
}

impl Assigned {
    /// Whether a server is among them.
    pub fn contains(&self, server: &Uuid) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(servers) => servers.contains(server),
        }
    }

    fn from_proto(message: pb::Checks) -> Self {
        match message.all {
            true => Self::All,
            false => {
                let ids = message.server_ids.iter().filter_map(|id| Uuid::from_slice(id).ok());
                Self::These(ids.collect())
            }
        }
    }
}

/// A server to check before its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The server.
    pub server: Uuid,
    /// The order that the report is to name; none where calls that fail are the reason.
    pub id: Option<Uuid>,
}

/// What a check found at one endpoint.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which, from 0.
    pub endpoint: u16,
    /// What it comes to.
    pub finding: Finding,
    /// What was seen, for people.
    pub saw: String,
    /// How long it took.
    pub took: Duration,
}

/// How servers are from here.
pub struct Monitor {
    current: Arc<Current>,
    metrics: Metrics,
    known: Mutex<Known>,
    /// Servers of which a call has failed since one went well: while there are none, calls that go well cost nothing.
    suspects: AtomicUsize,
    assigned: watch::Sender<Assigned>,
    orders: (mpsc::Sender<Order>, Mutex<Option<mpsc::Receiver<Order>>>),
    nudges: (mpsc::Sender<Order>, Mutex<Option<mpsc::Receiver<Order>>>),
    /// Wakes the stream up: there is news.
    pub news: Arc<Notify>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("assigned", &self.assigned).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Known {
    servers: HashMap<Uuid, Entry>,
    /// Servers of which there is nothing to say any more, and how often that is told still.
    gone: HashMap<Uuid, u8>,
    retold: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    tenant: String,
    name: String,
    policy: HealthPolicy,
    track: Track,
    checks: bool,
    checked_at: Option<DateTime<Utc>>,
    took: Duration,
    found: Vec<Found>,
    order: Option<Uuid>,
    nudged: Option<Instant>,
    tellings: u8,
}

impl Entry {
    fn new(server: &Server, now: DateTime<Utc>) -> Self {
        let policy = server.spec.health;
        Self {
            tenant: server.tenant.clone(),
            name: server.spec.name.clone(),
            policy,
            track: Track::new(&policy, now),
            checks: false,
            checked_at: None,
            took: Duration::ZERO,
            found: Vec::new(),
            order: None,
            nudged: None,
            tellings: TELLINGS,
        }
    }

    /// Whether there is anything to say of a server that is not checked here.
    fn is_of_interest(&self) -> bool {
        self.checks
            || self.track.is_suspect()
            || (self.policy.check == Check::Off && self.track.calls_are_known())
    }

    fn report(&self, id: Uuid) -> ServerReport {
        let status = self.track.status();
        ServerReport {
            server_id: id.to_string(),
            checks: self.checks,
            gone: false,
            state: wire::state_to_proto(status.state).into(),
            reason: status.reason.to_string(),
            since: Some(wire::timestamp(status.since)),
            checked_at: self.checked_at.map(wire::timestamp),
            took: Some(wire::duration(self.took)),
            endpoints: self.found.iter().map(shown).collect(),
            order: self.order.map(|order| order.to_string()).unwrap_or_default(),
        }
    }
}

fn shown(found: &Found) -> EndpointFinding {
    EndpointFinding {
        endpoint: found.endpoint.into(),
        state: wire::state_to_proto(found.finding.state()).into(),
        reason: found.finding.reason().into_owned(),
        saw: found.saw.clone(),
        took: Some(wire::duration(found.took)),
    }
}

impl Monitor {
    /// Knows nothing yet.
    pub fn new(current: Arc<Current>, metrics: Metrics) -> Self {
        let (orders, taken) = mpsc::channel(MOST_ORDERS);
        let (nudges, heeded) = mpsc::channel(MOST_NUDGES);
        Self {
            current,
            metrics,
            known: Mutex::default(),
            suspects: AtomicUsize::new(0),
            assigned: watch::Sender::default(),
            orders: (orders, Mutex::new(Some(taken))),
            nudges: (nudges, Mutex::new(Some(heeded))),
            news: Arc::default(),
        }
    }

    // === What comes down ===

    /// Takes what concerns it out of the resources of an update: what to check is no part of what calls are served from,
    /// and changes when proxies come and go.
    pub fn take(&self, resources: &mut Vec<pb::Resource>) {
        resources.retain_mut(|resource| match resource.kind.take() {
            Some(pb::resource::Kind::Checks(checks)) => {
                self.assign(Assigned::from_proto(checks));
                false
            }
            kind => {
                resource.kind = kind;
                true
            }
        });
    }

    fn assign(&self, assigned: Assigned) {
        self.assigned.send_if_modified(|held| {
            let differs = *held != assigned;
            *held = assigned;
            differs
        });
    }

    /// Takes orders to check now.
    pub fn order(&self, orders: Vec<pb::CheckOrder>) {
        for order in orders {
            let (Ok(id), Ok(server)) = (order.id.parse(), order.server_id.parse()) else { continue };
            if self.orders.0.try_send(Order { server, id: Some(id) }).is_err() {
                tracing::warn!("too many checks are asked for at once; one is dropped");
            }
        }
    }

    /// Who is to be checked, for whoever checks.
    pub fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.subscribe()
    }

    /// The orders and the nudges, for whoever checks; once.
    pub fn work(&self) -> Option<(mpsc::Receiver<Order>, mpsc::Receiver<Order>)> {
        self.orders.1.lock().take().zip(self.nudges.1.lock().take())
    }

    // === What is found ===

    /// A server is checked from now on, or was registered anew.
    pub fn begin(&self, server: &Server) {
        let mut known = self.known.lock();
        known.gone.remove(&server.id);
        let entry = known.servers.entry(server.id).or_insert_with(|| Entry::new(server, Utc::now()));
        if !entry.checks || entry.policy != server.spec.health {
            (entry.checks, entry.policy, entry.tellings) = (true, server.spec.health, TELLINGS);
        }
        self.gauge(entry);
    }

    /// A server is not checked here any more.
    pub fn end(&self, server: Uuid) {
        let mut known = self.known.lock();
        let Some(entry) = known.servers.remove(&server) else { return };
        if entry.track.is_suspect() {
            self.suspects.fetch_sub(1, Ordering::Relaxed);
        }
        self.metrics.forget_health(&entry.tenant, &entry.name);
        known.gone.insert(server, TELLINGS);
        drop(known);
        self.news.notify_one();
    }

    /// A check is done.
    pub fn checked(&self, server: &Server, found: Vec<Found>, order: Option<Uuid>, took: Duration) {
        let findings: Vec<Finding> = found.iter().map(|found| found.finding.clone()).collect();
        let finding = Finding::of_endpoints(&findings);
        self.metrics.check(finding.state().as_str());
        let now = Utc::now();
        let mut known = self.known.lock();
        let entry = match known.servers.entry(server.id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            // It was ordered here, though it is not for here to check: by a word that came a moment too late.
            std::collections::hash_map::Entry::Vacant(place) if order.is_some() => {
                place.insert(Entry::new(server, now))
            }
            std::collections::hash_map::Entry::Vacant(_) => return,
        };
        let before = entry.track.status().state;
        let policy = entry.policy;
        let changed = entry.track.checked(&policy, &finding, now);
        (entry.checked_at, entry.took, entry.found) = (Some(now), took, found);
        entry.order = order.or(entry.order);
        let status = entry.track.status();
        if status.state != before {
            tracing::info!(
                server.name = entry.name, state = status.state.as_str(), reason = %status.reason, before = before.as_str(),
                "a server is in another state"
            );
        }
        if changed || order.is_some() {
            entry.tellings = TELLINGS;
            self.gauge(entry);
            drop(known);
            self.news.notify_one();
        }
    }

    /// A call that reached for a server is over. One relaxed load while no server is suspect and calls go well.
    pub fn called(&self, tenant: &str, name: &str, outcome: Outcome) {
        let went_well = match outcome {
            Outcome::Ok | Outcome::Error => true,
            Outcome::UpstreamFailed => false,
            _ => return,
        };
        if went_well && self.suspects.load(Ordering::Relaxed) == 0 {
            return;
        }
        let snapshot = self.current.load();
        let Some(found) = snapshot.server(tenant, name) else { return };
        let (server, now) = (&found.server, Utc::now());
        let mut known = self.known.lock();
        let known = &mut *known;
        if went_well && !known.servers.contains_key(&server.id) {
            return;
        }
        known.gone.remove(&server.id);
        let entry = known.servers.entry(server.id).or_insert_with(|| Entry::new(server, now));
        let was_suspect = entry.track.is_suspect();
        let policy = entry.policy;
        let changed = entry.track.called(&policy, went_well, now);
        match (was_suspect, entry.track.is_suspect()) {
            (false, true) => drop(self.suspects.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.suspects.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        if !went_well && entry.checks && entry.nudged.is_none_or(|at| at.elapsed() >= NUDGE) {
            entry.nudged = Some(Instant::now());
            // Full: the next check comes when it is due.
            let _full = self.nudges.0.try_send(Order { server: server.id, id: None });
        }
        if changed {
            entry.tellings = TELLINGS;
            self.gauge(entry);
        }
        if !entry.is_of_interest() {
            self.metrics.forget_health(&entry.tenant, &entry.name);
            known.servers.remove(&server.id);
            known.gone.insert(server.id, TELLINGS);
        }
        if changed {
            self.news.notify_one();
        }
    }

    /// Forgets servers that are not checked here, where they are gone or disabled, or all is told of them: nobody else does.
    pub fn sweep(&self) {
        let snapshot = self.current.load();
        let served = |entry: &Entry| {
            snapshot.server(&entry.tenant, &entry.name).is_some_and(|found| found.server.enabled)
        };
        let over: Vec<Uuid> = {
            let known = self.known.lock();
            let done = |entry: &Entry| entry.tellings == 0 && !entry.is_of_interest();
            let stray =
                known.servers.iter().filter(|(_, entry)| !entry.checks && (!served(entry) || done(entry)));
            stray.map(|(id, _)| *id).collect()
        };
        over.into_iter().for_each(|id| self.end(id));
    }

    // === What is told ===

    /// The news, and from time to time everything.
    pub fn report(&self) -> HealthReport {
        let mut known = self.known.lock();
        let known = &mut *known;
        let now = Instant::now();
        if known.retold.is_none_or(|at| now.duration_since(at) >= RETOLD) {
            known.retold = Some(now);
            known.servers.values_mut().for_each(|entry| entry.tellings = entry.tellings.max(1));
        }
        let mut servers = Vec::new();
        for (id, entry) in known.servers.iter_mut().filter(|(_, entry)| entry.tellings > 0).take(MOST_TOLD) {
            entry.tellings -= 1;
            servers.push(entry.report(*id));
        }
        for (id, tellings) in &mut known.gone {
            *tellings -= 1;
            servers.push(ServerReport { server_id: id.to_string(), gone: true, ..ServerReport::default() });
        }
        known.gone.retain(|_, tellings| *tellings > 0);
        HealthReport { servers }
    }

    /// For the admin port.
    pub fn describe(&self) -> serde_json::Value {
        let known = self.known.lock();
        let mut servers: Vec<_> = known.servers.values().collect();
        servers.sort_unstable_by(|one, other| (&one.tenant, &one.name).cmp(&(&other.tenant, &other.name)));
        let show = |entry: &&Entry| {
            let status = entry.track.status();
            let found: Vec<_> = entry
                .found
                .iter()
                .map(|found| {
                    json!({
                        "endpoint": found.endpoint, "state": found.finding.state().as_str(),
                        "reason": found.finding.reason(), "saw": found.saw, "took_ms": found.took.as_millis(),
                    })
                })
                .collect();
            json!({
                "tenant": entry.tenant, "server": entry.name, "state": status.state.as_str(), "reason": status.reason,
                "since": status.since, "checks": entry.checks, "checked_at": entry.checked_at, "endpoints": found,
            })
        };
        json!({ "servers": servers.iter().map(show).collect::<Vec<_>>() })
    }

    fn gauge(&self, entry: &Entry) {
        let value = match entry.track.status().state {
            State::Unknown => 0,
            State::Down => 1,
            State::Degraded => 2,
            State::Up => 3,
        };
        self.metrics.health(&entry.tenant, &entry.name, value);
    }
}

#[cfg(test)]
mod tests;
