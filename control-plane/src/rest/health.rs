//! `/api/v1/servers/{name}/health`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use waffles_core::health::{self as core, State as Health};

use super::extract::{Actor, Name};
use super::{Door, Problem};
use crate::health::{self, ProxyView, Summary};
use crate::store::health::FoundDoc;

/// What a check asks a server.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HealthCheck {
    /// `server/discover`, or `initialize` and `ping` where the server is of an older revision.
    #[default]
    Handshake,
    /// The same, and then its list of tools.
    Tools,
    /// Nothing: only calls tell.
    Off,
}

/// How a server's health is found out. What is absent has its default.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HealthPolicy {
    check: HealthCheck,
    /// Between two checks: 1000 to 3600000.
    interval_ms: u64,
    /// How long a check may take: 100 to 60000.
    timeout_ms: u64,
    /// By how many hundredths of the interval a check may be earlier or later: 0 to 50.
    jitter_percent: u8,
    /// How many checks, or calls, in a row make it worse than it was: 1 to 10.
    fall: u8,
    /// How many checks in a row make it better than it was: 1 to 10.
    rise: u8,
    /// How many proxies of each group look: 1 to 10.
    proxies: u8,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        core::HealthPolicy::default().into()
    }
}

impl From<core::HealthPolicy> for HealthPolicy {
    fn from(policy: core::HealthPolicy) -> Self {
        Self {
            check: match policy.check {
                core::Check::Handshake => HealthCheck::Handshake,
                core::Check::Tools => HealthCheck::Tools,
                core::Check::Off => HealthCheck::Off,
            },
            interval_ms: millis(policy.interval),
            timeout_ms: millis(policy.timeout),
            jitter_percent: policy.jitter,
            fall: policy.fall,
            rise: policy.rise,
            proxies: policy.proxies,
        }
    }
}

impl From<HealthPolicy> for core::HealthPolicy {
    fn from(policy: HealthPolicy) -> Self {
        Self {
            check: match policy.check {
                HealthCheck::Handshake => core::Check::Handshake,
                HealthCheck::Tools => core::Check::Tools,
                HealthCheck::Off => core::Check::Off,
            },
            interval: Duration::from_millis(policy.interval_ms),
            timeout: Duration::from_millis(policy.timeout_ms),
            jitter: policy.jitter_percent,
            fall: policy.fall,
            rise: policy.rise,
            proxies: policy.proxies,
        }
    }
}

/// The domain's names of fields in the names that they have here.
pub(super) fn in_our_words(field: &str) -> Option<&'static str> {
    match field {
        "health.interval" => Some("health.interval_ms"),
        "health.timeout" => Some("health.timeout_ms"),
        "health.jitter" => Some("health.jitter_percent"),
        _ => None,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How a server is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HealthState {
    /// It answers.
    Up,
    /// It answers, and something about it does not work.
    Degraded,
    /// It does not answer as an MCP server does.
    Down,
    /// Nobody has looked, or nobody can.
    Unknown,
}

impl From<Health> for HealthState {
    fn from(state: Health) -> Self {
        match state {
            Health::Up => Self::Up,
            Health::Degraded => Self::Degraded,
            Health::Down => Self::Down,
            Health::Unknown => Self::Unknown,
        }
    }
}

fn state(word: &str) -> HealthState {
    Health::parse(word).unwrap_or_default().into()
}

/// How a server is, in short.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthSummary {
    state: HealthState,
    /// Why, in one word; absent where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Since when it is in this state; absent where nobody has ever looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<DateTime<Utc>>,
}

impl From<Summary> for HealthSummary {
    fn from(summary: Summary) -> Self {
        Self { state: summary.state.into(), reason: summary.reason, since: summary.since }
    }
}

/// How a server is, at length.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServerHealth {
    /// The server's name.
    name: String,
    /// From all proxies that look.
    #[serde(flatten)]
    summary: HealthSummary,
    /// From each of them.
    proxies: Vec<HealthView>,
    /// How it was, newest first; at most 100 changes.
    history: Vec<HealthChange>,
    /// How it is found out.
    policy: HealthPolicy,
}

/// How a server is from one proxy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthView {
    /// The proxy; absent for a caller who may not see proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_id: Option<Uuid>,
    /// Its name; absent for a caller who may not see proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    /// Its group; absent for a caller who may not see proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// Whether it checks the server. One that does not can tell of its calls only.
    checks: bool,
    state: HealthState,
    /// Why, in one word; absent where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    since: DateTime<Utc>,
    /// When it was last checked; absent for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_at: Option<DateTime<Utc>>,
    /// What that check found.
    endpoints: Vec<EndpointFinding>,
    /// In the answer to a check that was asked for: it is in.
    fresh: bool,
}

/// What a check found at one endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EndpointFinding {
    /// Which of the server's endpoints, from 0.
    endpoint: u32,
    /// The state that this speaks for.
    state: HealthState,
    /// Why, in one word; absent where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// What was seen, for people.
    saw: String,
    took_ms: f64,
}

/// A change of a server's state.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthChange {
    at: DateTime<Utc>,
    /// How it was from then on.
    state: HealthState,
    /// Why, in one word; absent where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl From<health::Health> for ServerHealth {
    fn from(health: health::Health) -> Self {
        let change = |row: health::ChangeRow| HealthChange {
            at: row.at,
            state: state(&row.state),
            reason: row.reason,
        };
        Self {
            name: health.name,
            summary: health.summary.into(),
            proxies: health.views.into_iter().map(HealthView::from).collect(),
            history: health.history.into_iter().map(change).collect(),
            policy: health.policy.into(),
        }
    }
}

impl From<ProxyView> for HealthView {
    fn from(view: ProxyView) -> Self {
        let (proxy_id, proxy, group) = match view.proxy {
            Some((id, name, group)) => (Some(id), Some(name), Some(group)),
            None => (None, None, None),
        };
        let finding = |found: FoundDoc| EndpointFinding {
            endpoint: found.endpoint,
            state: state(&found.state),
            reason: found.reason,
            saw: found.saw,
            took_ms: Duration::from_micros(found.took_us).as_secs_f64() * 1000.0,
        };
        Self {
            proxy_id,
            proxy,
            group,
            checks: view.checks,
            state: view.state.into(),
            reason: view.reason,
            since: view.since,
            checked_at: view.checked_at,
            endpoints: view.found.into_iter().map(finding).collect(),
            fresh: view.fresh,
        }
    }
}

/// Shows how a server is.
///
/// As each proxy that looks at it sees it, all of them together, and how it was.
#[utoipa::path(get, path = "/api/v1/servers/{name}/health", tag = "servers", operation_id = "getServerHealth",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 200, body = ServerHealth)))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Json<ServerHealth>, Problem> {
    Ok(Json(door.services.health.get(&ctx, &name).await?.into()))
}

/// Has a server looked at now.
///
/// The proxies that look at it do so at once, and the answer waits for what they find; one whose word did not come in
/// time is not `fresh`. A server that is disabled, or that no connected proxy may serve, is a 409.
#[utoipa::path(post, path = "/api/v1/servers/{name}/health", tag = "servers", operation_id = "checkServer",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 200, body = ServerHealth)))]
pub(super) async fn check(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Json<ServerHealth>, Problem> {
    Ok(Json(door.services.health.check(&ctx, &name).await?.into()))
}
