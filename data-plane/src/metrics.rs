//! Every metric family of the proxy. Labels are bounded: servers by the registry, methods and outcomes by lists.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use waffles_runtime::telemetry;

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
                "waffles_refused_requests",
                "HTTP requests that no door took, which leave no audit record",
                m.refused_requests,
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
