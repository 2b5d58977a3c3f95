//! How servers stand: for each endpoint its breaker, how long it takes and what is under way at it; for each server its
//! places and what may still be sent again. Shared by all threads, and kept when a registration changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::resilience::Resilience;
use waffles_core::server::Server;
use waffles_core::snapshot::Snapshot;

use super::breaker::{Breaker, Circuit, Why};
use super::gate::Gate;
use super::latency::Latency;
use super::pick::Dice;
use super::window::Window;
use crate::metrics::UpstreamMetrics;
use crate::reject::UpstreamFault;

/// How all servers stand that were asked something.
#[derive(Debug, Default)]
pub struct Standings {
    zone: Option<String>,
    metrics: UpstreamMetrics,
    servers: Mutex<HashMap<Uuid, Arc<Standing>>>,
}

/// How one server stands.
#[derive(Debug)]
pub(super) struct Standing {
    version: u64,
    tenant: String,
    name: Arc<str>,
    pub(super) rules: Resilience,
    pub(super) endpoints: Vec<Arc<EndpointState>>,
    pub(super) total_weight: u64,
    pub(super) gate: Arc<Gate>,
    /// What was sent again of late.
    repeats: Arc<Window>,
    pub(super) dice: Dice,
    pub(super) turn: AtomicU64,
    pub(super) metrics: UpstreamMetrics,
}

/// How one endpoint stands. What its registration says of it is a copy: a changed one makes a new state out of the old.
#[derive(Debug)]
pub(super) struct EndpointState {
    address: String,
    zone: String,
    pub(super) own_zone: bool,
    pub(super) weight: u16,
    pub(super) breaker: Arc<Breaker>,
    pub(super) latency: Arc<Latency>,
    under_way: Arc<AtomicU32>,
}

/// What the proxy has seen of an endpoint while it called it.
#[derive(Debug, Clone)]
pub struct EndpointSignal {
    /// Which of the server's endpoints, from 0.
    pub endpoint: u16,
    /// What it is let through.
    pub circuit: Circuit,
    /// Why it is left alone, or was before it is tried.
    pub reason: Option<Why>,
    /// Since when that is so.
    pub since: DateTime<Utc>,
    /// How long it is left alone still.
    pub left_alone_for: Duration,
    /// What last went wrong, and when.
    pub last_error: Option<(UpstreamFault, DateTime<Utc>)>,
    /// How long it takes to the first byte of an answer: rises at once, falls slowly. None: it has answered nothing.
    pub latency: Option<Duration>,
    /// Calls under way.
    pub in_flight: u32,
    /// Calls within the breaker's window.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
}

impl Standings {
    /// Of a proxy that stands in a zone.
    pub fn new(zone: Option<String>, metrics: UpstreamMetrics) -> Self {
        Self { zone, metrics, servers: Mutex::default() }
    }

    /// What was seen of a server's endpoints; empty where none was called yet.
    pub fn signals(&self, server: Uuid) -> Vec<EndpointSignal> {
        let standing = self.servers.lock().get(&server).cloned();
        standing.map(|standing| standing.signals(Instant::now())).unwrap_or_default()
    }

    /// How a server stands, under its registration of now.
    pub(super) fn of(&self, server: &Server) -> Arc<Standing> {
        let mut servers = self.servers.lock();
        let known = servers.get(&server.id);
        if let Some(standing) = known.filter(|standing| standing.version == server.version) {
            return Arc::clone(standing);
        }
        let standing = Arc::new(self.make(server, known.map(Arc::as_ref)));
        // An exchange that still goes by an older registration does not put it back.
        if known.is_none_or(|known| known.version < server.version) {
            standing.gate.set(standing.rules.max_concurrent, standing.rules.queue);
            servers.insert(server.id, Arc::clone(&standing));
        }
        standing
    }

    fn make(&self, server: &Server, before: Option<&Standing>) -> Standing {
        let now = Instant::now();
        let endpoint = |endpoint: &waffles_core::server::Endpoint| {
            let address = endpoint.url.to_string();
            let old = before.and_then(|old| old.endpoints.iter().find(|state| state.address == address));
            Arc::new(EndpointState {
                own_zone: self.zone.as_ref().is_some_and(|zone| *zone == endpoint.zone),
                zone: endpoint.zone.clone(),
                weight: endpoint.weight,
                breaker: old.map_or_else(|| Arc::new(Breaker::new(now)), |old| Arc::clone(&old.breaker)),
                latency: old.map_or_else(|| Arc::new(Latency::new(now)), |old| Arc::clone(&old.latency)),
                under_way: old.map(|old| Arc::clone(&old.under_way)).unwrap_or_default(),
                address,
            })
        };
        let spec = &server.spec;
        let mut seed = [0; 8];
        // Without random numbers load is merely spread in the same order everywhere.
        let seed = rand::fill(&mut seed).map_or(0, |()| u64::from_le_bytes(seed));
        Standing {
            version: server.version,
            tenant: server.tenant.clone(),
            name: spec.name.as_str().into(),
            rules: spec.resilience,
            endpoints: spec.endpoints.iter().map(endpoint).collect(),
            total_weight: spec.endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum(),
            gate: before.map(|old| Arc::clone(&old.gate)).unwrap_or_default(),
            repeats: before.map_or_else(|| Arc::new(Window::new(now)), |old| Arc::clone(&old.repeats)),
            dice: Dice::new(seed),
            turn: AtomicU64::new(0),
            metrics: self.metrics.clone(),
        }
    }

    /// Forgets servers that are gone, and brings the gauges up to date.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let mut servers = self.servers.lock();
        servers.retain(|id, standing| {
            let here = snapshot.server(&standing.tenant, &standing.name).is_some_and(|e| e.server.id == *id);
            if !here {
                self.metrics.forget(&standing.name);
            }
            here
        });
        for standing in servers.values() {
            let open = standing.endpoints.iter().filter(|state| !state.breaker.is_closed()).count();
            let (held, waiting) = standing.gate.load();
            self.metrics.stands(&standing.name, open, held, waiting);
        }
    }

    /// All of it, for the admin port. Addresses are shown without what may be a secret in them.
    pub fn report(&self) -> Value {
        let now = Instant::now();
        let mut standings: Vec<_> = self.servers.lock().values().cloned().collect();
        standings.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        let server = |standing: &Arc<Standing>| {
            let (held, waiting) = standing.gate.load();
            json!({
                "tenant": standing.tenant, "server": *standing.name,
                "under_way": held, "waiting": waiting,
                "endpoints": standing.endpoints.iter().zip(standing.signals(now)).map(|(state, signal)| json!({
                    "endpoint": signal.endpoint, "address": plain(&state.address), "zone": state.zone,
                    "weight": state.weight, "circuit": signal.circuit.as_str(),
                    "reason": signal.reason.map(Why::as_str), "since": signal.since,
                    "left_alone_ms": u64::try_from(signal.left_alone_for.as_millis()).unwrap_or(u64::MAX),
                    "last_error": signal.last_error.map(|(fault, _)| fault.reason()),
                    "last_error_at": signal.last_error.map(|(_, at)| at),
                    "latency_ms": signal.latency.map(|latency| latency.as_secs_f64() * 1000.0),
                    "in_flight": signal.in_flight, "calls": signal.calls, "failures": signal.failures,
                })).collect::<Vec<_>>(),
            })
        };
        json!({"zone": self.zone, "servers": standings.iter().map(server).collect::<Vec<_>>()})
    }
}

/// An address without its query, where people put keys.
fn plain(address: &str) -> &str {
    address.split('?').next().unwrap_or_default()
}

impl Standing {
    fn signals(&self, now: Instant) -> Vec<EndpointSignal> {
        let signal = |(endpoint, state): (u16, &Arc<EndpointState>)| {
            let report = state.breaker.report(now);
            let (calls, failures) = state.breaker.window.counts(self.rules.breaker.window, now);
            EndpointSignal {
                endpoint,
                circuit: report.circuit,
                reason: report.why,
                since: report.since,
                left_alone_for: report.opens_in,
                last_error: report.last_error,
                latency: state.latency.last(),
                in_flight: state.in_flight(),
                calls,
                failures,
            }
        };
        (0..).zip(&self.endpoints).map(signal).collect()
    }

    /// The server's name, as metrics have it.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn endpoint(&self, endpoint: u16) -> Option<&Arc<EndpointState>> {
        self.endpoints.get(usize::from(endpoint))
    }

    /// Whether a message may be sent again; counts it if so.
    pub(super) fn may_repeat(&self, now: Instant) -> bool {
        let (retry, window) = (&self.rules.retry, self.rules.breaker.window);
        let calls: u64 = self.endpoints.iter().map(|state| state.breaker.window.counts(window, now).0).sum();
        let share = calls * u64::from(retry.budget_percent) / 100;
        let least = u64::from(retry.budget_least) * window.as_secs().max(1);
        let allowed = self.repeats.counts(window, now).0 < share.max(least);
        if allowed {
            self.repeats.add(window, now, false);
        }
        allowed
    }

    /// Counts a failed call of an endpoint, and leaves it alone where that is one too many.
    pub(super) fn failed(&self, endpoint: u16, fault: UpstreamFault, now: Instant) {
        let Some(state) = self.endpoint(endpoint) else { return };
        let tripped = state.breaker.failed(&self.rules.breaker, now, fault, self.dice.roll());
        let tripped = tripped.or_else(|| match self.is_outlier(endpoint, now) {
            true => state.breaker.open(&self.rules.breaker, now, Why::Outlier, self.dice.roll()),
            false => None,
        });
        if let Some(why) = tripped {
            self.metrics.left_alone(&self.name, why.as_str());
            tracing::warn!(
                server.name = %self.name, endpoint, reason = why.as_str(), fault = fault.reason(),
                "an endpoint of a server is left alone for a while"
            );
        }
    }

    /// Whether it fails so much more than the others that it is left out, and not too many are already.
    fn is_outlier(&self, endpoint: u16, now: Instant) -> bool {
        let (outlier, breaker) = (&self.rules.outlier, &self.rules.breaker);
        let count = self.endpoints.len() as u64;
        if count < 2 || outlier.margin_percent == 0 {
            return false;
        }
        let left_out = self.endpoints.iter().filter(|state| !state.breaker.is_closed()).count() as u64;
        let most = (count * u64::from(outlier.most_percent) / 100).min(count - 1);
        if left_out >= most {
            return false;
        }
        let (mut own, mut others) = ((0, 0), (0, 0));
        for (i, state) in (0..).zip(&self.endpoints) {
            let (calls, failures) = state.breaker.window.counts(breaker.window, now);
            let sum = if i == endpoint { &mut own } else { &mut others };
            *sum = (sum.0 + calls, sum.1 + failures);
        }
        let enough = u64::from(breaker.least_calls);
        let share = |(calls, failures): (u64, u64)| failures * 100 / calls.max(1);
        own.0 >= enough
            && others.0 >= enough
            && share(own) >= share(others) + u64::from(outlier.margin_percent)
    }
}

impl EndpointState {
    pub(super) fn in_flight(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
