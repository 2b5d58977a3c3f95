//! Every metric family of the proxy. Labels are bounded: servers by the registry, methods and outcomes by lists.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use waffles_runtime::telemetry;

use crate::overload::{Cause, Priority};

/// What an exchange is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    server: Arc<str>,
    method: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    tenant: String,
    server: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FoundLabels {
    found: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShedLabels {
    priority: &'static str,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    server: Arc<str>,
    reason: &'static str,
}

/// What the way to the servers counts. The servers are those that were called.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    left_alone: Family<WhyLabels, Counter>,
    turned_away: Family<ServerLabels, Counter>,
    repeated: Family<WhyLabels, Counter>,
    open: Family<ServerLabels, Gauge>,
    under_way: Family<ServerLabels, Gauge>,
    waiting: Family<ServerLabels, Gauge>,
    queue_wait: Family<ServerLabels, Histogram, fn() -> Histogram>,
    queue_refused: Family<ServerLabels, Counter>,
}

impl Default for UpstreamMetrics {
    fn default() -> Self {
        Self {
            left_alone: Family::default(),
            turned_away: Family::default(),
            repeated: Family::default(),
            open: Family::default(),
            under_way: Family::default(),
            waiting: Family::default(),
            queue_wait: Family::new_with_constructor(histogram),
            queue_refused: Family::default(),
        }
    }
}

impl UpstreamMetrics {
    /// An endpoint is left alone from now on.
    pub fn left_alone(&self, server: &Arc<str>, reason: &'static str) {
        self.left_alone.get_or_create(&WhyLabels { server: Arc::clone(server), reason }).inc();
    }

    /// A message was refused, since all endpoints are left alone.
    pub fn turned_away(&self, server: &Arc<str>) {
        self.turned_away.get_or_create(&ServerLabels { server: Arc::clone(server) }).inc();
    }

    /// A message is sent again.
    pub fn repeated(&self, server: &Arc<str>, reason: &'static str) {
        self.repeated.get_or_create(&WhyLabels { server: Arc::clone(server), reason }).inc();
    }

    /// A call has waited for a place, and has it or not.
    pub fn waited(&self, server: &Arc<str>, wait: Duration, entered: bool) {
        let labels = ServerLabels { server: Arc::clone(server) };
        self.queue_wait.get_or_create(&labels).observe(wait.as_secs_f64());
        if !entered {
            self.queue_refused.get_or_create(&labels).inc();
        }
    }

    /// How a server stands.
    pub fn stands(&self, server: &Arc<str>, open: usize, under_way: u32, waiting: u32) {
        let labels = ServerLabels { server: Arc::clone(server) };
        self.open.get_or_create(&labels).set(i64::try_from(open).unwrap_or(i64::MAX));
        self.under_way.get_or_create(&labels).set(under_way.into());
        self.waiting.get_or_create(&labels).set(waiting.into());
    }

    /// A server is gone: what it does now is not shown any more.
    pub fn forget(&self, server: &Arc<str>) {
        let labels = ServerLabels { server: Arc::clone(server) };
        self.open.remove(&labels);
        self.under_way.remove(&labels);
        self.waiting.remove(&labels);
    }
}

/// From 1 ms to 60 s: a tool answers in milliseconds or thinks for a minute.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The proxy's metrics.
#[derive(Clone)]
pub struct Metrics {
    exchanges: Family<ExchangeLabels, Counter>,
    duration: Family<ServerLabels, Histogram, fn() -> Histogram>,
    upstream_duration: Family<ServerLabels, Histogram, fn() -> Histogram>,
    dropped_events: Family<ReasonLabels, Counter>,
    refused_requests: Family<ReasonLabels, Counter>,
    key_lookups: Family<ReasonLabels, Counter>,
    /// The way to the servers.
    pub upstream: UpstreamMetrics,
    health: Family<HealthLabels, Gauge>,
    checks: Family<FoundLabels, Counter>,
    /// Exchanges since the start.
    pub served: Counter,
    /// Streams that are open to clients.
    pub open_streams: Gauge,
    /// Of those, clients that listen to changes.
    pub listeners: Gauge,
    /// Subscriptions at servers, which listeners share.
    pub subscriptions: Gauge,
    /// Connections of clients.
    pub connections: Gauge,
    /// Conditions of rules that failed, and so counted against a caller.
    pub failed_conditions: Counter,
    /// Rules that only take note, where they would have decided.
    pub noted_rules: Counter,
    /// Callers of limits of whom something is counted.
    pub limit_counts: Gauge,
    /// Whether the Redis that counts limits for all proxies answers.
    pub limits_shared: Gauge,
    /// Round trips to it.
    pub limit_asks: Counter,
    /// Those that failed, or took too long.
    pub failed_limit_asks: Counter,
    /// Connections turned away at the cap.
    pub refused_connections: Counter,
    /// The revision in force.
    pub revision: Gauge,
    /// Seconds since the control plane was last heard.
    pub config_age: Gauge,
    /// Whether the configuration stream is up.
    pub connected: Gauge,
    /// Seconds that the certificate for the control plane is good still.
    pub certificate_left: Gauge,
    /// Audit records that wait for upload.
    pub spool_depth: Gauge,
    /// Audit records lost for want of space.
    pub lost_records: Gauge,
    /// Overload.
    pub overload: Overload,
}

/// The families of overload.
#[derive(Clone)]
pub struct Overload {
    /// Looked up once, since a refusal must be cheap.
    shed: [[Counter; Cause::ALL.len()]; Priority::ALL.len()],
    /// Exchanges in flight.
    pub in_flight: Gauge,
    /// What part of the work the latest thread turns away, from 0 to 1.
    pub pressure: Gauge<f64, AtomicU64>,
    /// How late the latest thread is.
    pub lag: Gauge<f64, AtomicU64>,
    /// How short memory is, from 0 to 3.
    pub stage: Gauge,
    /// Bytes of messages that are held.
    pub buffered: Gauge,
    /// Connections that were closed for what their clients did or did not do.
    closed_connections: Family<ReasonLabels, Counter>,
}

impl Overload {
    fn new(registry: &telemetry::Metrics) -> Self {
        let family = Family::<ShedLabels, Counter>::default();
        let counter = |priority: Priority, cause: Cause| {
            family.get_or_create(&ShedLabels { priority: priority.as_str(), cause: cause.as_str() }).clone()
        };
        let overload = Self {
            shed: Priority::ALL.map(|priority| Cause::ALL.map(|cause| counter(priority, cause))),
            in_flight: Gauge::default(),
            pressure: Gauge::default(),
            lag: Gauge::default(),
            stage: Gauge::default(),
            buffered: Gauge::default(),
            closed_connections: Family::default(),
        };
        let m = overload.clone();
        registry.register(|r| {
            r.register("waffles_shed_requests", "Requests turned away for want of room", family);
            r.register("waffles_in_flight", "Exchanges in flight", m.in_flight);
            r.register("waffles_overload_pressure", "Part of the work that is turned away", m.pressure);
            r.register("waffles_thread_lag_seconds", "How late the latest thread is", m.lag);
            r.register("waffles_memory_stage", "How short memory is, from 0 to 3", m.stage);
            r.register("waffles_buffered_bytes", "Bytes of messages that are held", m.buffered);
            r.register(
                "waffles_closed_connections",
                "Connections closed for what their clients did or did not do",
                m.closed_connections,
            );
        });
        overload
    }

    /// Counts a request that was turned away.
    pub fn shed(&self, priority: Priority, cause: Cause) {
        if let Some(counter) = self.shed.get(priority as usize).and_then(|causes| causes.get(cause as usize))
        {
            counter.inc();
        }
    }

    /// Counts a connection that was closed.
    pub fn closed(&self, reason: &'static str) {
        self.closed_connections.get_or_create(&ReasonLabels { reason }).inc();
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    /// Makes the families and registers them.
    pub fn new(registry: &telemetry::Metrics) -> Self {
        let metrics = Self {
            exchanges: Family::default(),
            duration: Family::new_with_constructor(histogram),
            upstream_duration: Family::new_with_constructor(histogram),
            dropped_events: Family::default(),
            refused_requests: Family::default(),
            key_lookups: Family::default(),
            upstream: UpstreamMetrics::default(),
            health: Family::default(),
            checks: Family::default(),
            served: Counter::default(),
            open_streams: Gauge::default(),
            listeners: Gauge::default(),
            subscriptions: Gauge::default(),
            connections: Gauge::default(),
            failed_conditions: Counter::default(),
            noted_rules: Counter::default(),
            limit_counts: Gauge::default(),
            limits_shared: Gauge::default(),
            limit_asks: Counter::default(),
            failed_limit_asks: Counter::default(),
            refused_connections: Counter::default(),
            revision: Gauge::default(),
            config_age: Gauge::default(),
            connected: Gauge::default(),
            certificate_left: Gauge::default(),
            spool_depth: Gauge::default(),
            lost_records: Gauge::default(),
            overload: Overload::new(registry),
        };
        let m = metrics.clone();
        registry.register(|r| {
            r.register("waffles_exchanges", "Exchanges by server, method and outcome", m.exchanges);
            r.register(
                "waffles_exchange_duration_seconds",
                "From first byte in to last byte out",
                m.duration,
            );
            r.register(
                "waffles_upstream_duration_seconds",
                "Of an exchange, the wait for the server",
                m.upstream_duration,
            );
            r.register(
                "waffles_dropped_events",
                "Events of servers that were not passed on",
                m.dropped_events,
            );
            r.register(
                "waffles_key_lookups",
                "API keys that were asked for at the control plane, by what came of it",
                m.key_lookups,
            );
            r.register(
                "waffles_refused_requests",
                "HTTP requests that no door took, which leave no audit record",
                m.refused_requests,
            );
            let up = m.upstream;
            r.register(
                "waffles_endpoints_left_alone",
                "How often an endpoint of a server was left alone for a while, and why",
                up.left_alone,
            );
            r.register(
                "waffles_circuit_refusals",
                "Messages refused since all endpoints of their server are left alone",
                up.turned_away,
            );
            r.register(
                "waffles_repeated_messages",
                "Messages that were sent again: of which nothing was sent before, or something was",
                up.repeated,
            );
            r.register("waffles_open_circuits", "Endpoints of a server that are left alone", up.open);
            r.register("waffles_calls_under_way", "Calls of a server under way", up.under_way);
            r.register("waffles_calls_waiting", "Calls that wait for a place at a server", up.waiting);
            r.register(
                "waffles_queue_wait_seconds",
                "How long calls waited for a place at a server, where they did",
                up.queue_wait,
            );
            r.register(
                "waffles_queue_refusals",
                "Calls refused since no place at their server would be free in time",
                up.queue_refused,
            );
            r.register(
                "waffles_server_health",
                "How servers are from here: 3 up, 2 degraded, 1 down, 0 unknown",
                m.health,
            );
            r.register("waffles_health_checks", "Checks of servers by what they found", m.checks);
            r.register("waffles_served_exchanges", "Exchanges since the start", m.served);
            r.register("waffles_open_streams", "Streams open to clients", m.open_streams);
            r.register("waffles_listeners", "Clients that listen to changes", m.listeners);
            r.register("waffles_subscriptions", "Subscriptions at servers", m.subscriptions);
            r.register("waffles_connections", "Connections of clients", m.connections);
            r.register(
                "waffles_refused_connections",
                "Connections turned away at the cap",
                m.refused_connections,
            );
            r.register(
                "waffles_failed_conditions",
                "Conditions of rules that failed, and so counted against a caller",
                m.failed_conditions,
            );
            r.register(
                "waffles_limit_counts",
                "Callers of limits of whom something is counted",
                m.limit_counts,
            );
            r.register(
                "waffles_limits_shared",
                "Whether the Redis that counts limits for all proxies answers; -1 where there is none",
                m.limits_shared,
            );
            r.register("waffles_limit_asks", "Round trips to that Redis", m.limit_asks);
            r.register(
                "waffles_failed_limit_asks",
                "Round trips to that Redis that failed or took too long",
                m.failed_limit_asks,
            );
            r.register("waffles_noted_rules", "Log-only rules that would have decided", m.noted_rules);
            r.register("waffles_config_revision", "The configuration revision in force", m.revision);
            r.register("waffles_config_age_seconds", "Since the control plane was last heard", m.config_age);
            r.register("waffles_config_connected", "Whether the configuration stream is up", m.connected);
            r.register(
                "waffles_certificate_left_seconds",
                "How long the certificate for the control plane is good still",
                m.certificate_left,
            );
            r.register("waffles_audit_spool_depth", "Audit records that wait for upload", m.spool_depth);
            r.register("waffles_audit_lost_records", "Audit records lost for want of space", m.lost_records);
        });
        metrics
    }

    /// Counts an exchange.
    pub fn exchange(
        &self,
        server: &Arc<str>,
        method: &'static str,
        outcome: &'static str,
        duration: Duration,
        upstream: Option<Duration>,
    ) {
        self.served.inc();
        let server_labels = ServerLabels { server: Arc::clone(server) };
        self.duration.get_or_create(&server_labels).observe(duration.as_secs_f64());
        if let Some(upstream) = upstream {
            self.upstream_duration.get_or_create(&server_labels).observe(upstream.as_secs_f64());
        }
        self.exchanges.get_or_create(&ExchangeLabels { server: Arc::clone(server), method, outcome }).inc();
    }

    /// What came of asking for an API key: `found`, `unknown`, `away` or `busy`.
    pub fn key_lookup(&self, reason: &'static str) {
        self.key_lookups.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a request that no door took.
    pub fn refused(&self, reason: &'static str) {
        self.refused_requests.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Shows how a server is.
    pub fn health(&self, tenant: &str, server: &str, value: i64) {
        self.health.get_or_create(&HealthLabels { tenant: tenant.into(), server: server.into() }).set(value);
    }

    /// Shows no more how a server is.
    pub fn forget_health(&self, tenant: &str, server: &str) {
        self.health.remove(&HealthLabels { tenant: tenant.into(), server: server.into() });
    }

    /// Counts a check by what it found.
    pub fn check(&self, found: &'static str) {
        self.checks.get_or_create(&FoundLabels { found }).inc();
    }

    /// Counts an event of a server that was not passed on.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped_events.get_or_create(&ReasonLabels { reason }).inc();
    }
}
