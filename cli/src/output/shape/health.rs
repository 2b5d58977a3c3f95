//! How servers are.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::health::HealthPolicy as Defaults;
use waffles_core::wire::{state_from_proto, time};
use waffles_proto::registry::v1 as pb;

use super::super::{Shape, columns, fields};
use super::{since, stamp};

/// How a server's health is found out.
#[derive(Debug, Serialize)]
pub(crate) struct Policy {
    check: &'static str,
    interval_ms: u64,
    timeout_ms: u64,
    jitter_percent: u32,
    fall: u32,
    rise: u32,
    proxies: u32,
}

impl From<pb::HealthPolicy> for Policy {
    fn from(policy: pb::HealthPolicy) -> Self {
        let defaults = Defaults::default();
        let or = |value: u32, default: u8| if value == 0 { default.into() } else { value };
        Self {
            check: match pb::HealthCheck::try_from(policy.check) {
                Ok(pb::HealthCheck::Handshake | pb::HealthCheck::Unspecified) => "handshake",
                Ok(pb::HealthCheck::Tools) => "tools",
                Ok(pb::HealthCheck::Off) => "off",
                Err(_) => "unknown",
            },
            interval_ms: millis(policy.interval, defaults.interval),
            timeout_ms: millis(policy.timeout, defaults.timeout),
            jitter_percent: policy.jitter_percent.unwrap_or(defaults.jitter.into()),
            fall: or(policy.fall, defaults.fall),
            rise: or(policy.rise, defaults.rise),
            proxies: or(policy.proxies, defaults.proxies),
        }
    }
}

fn millis(span: Option<prost_types::Duration>, default: Duration) -> u64 {
    let span = span.and_then(|span| span.try_into().ok()).unwrap_or(default);
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Policy {
    /// On one line.
    pub(super) fn text(&self) -> String {
        let Self { check, interval_ms, timeout_ms, jitter_percent, fall, rise, proxies } = self;
        match *check {
            "off" => "off: only calls tell".to_owned(),
            check => format!(
                "{check} every {interval_ms} ms ± {jitter_percent} %, at most {timeout_ms} ms, fall {fall}, rise {rise}, \
                 by {proxies} proxies a group"
            ),
        }
    }
}

/// How a server is, in short.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    state: &'static str,
    reason: String,
    since: Option<DateTime<Utc>>,
}

impl From<pb::HealthSummary> for Status {
    fn from(summary: pb::HealthSummary) -> Self {
        let pb::HealthSummary { state, reason, since } = summary;
        Self { state: state_from_proto(state).as_str(), reason, since: time(since) }
    }
}

impl Status {
    /// For a column.
    pub(super) fn word(&self) -> String {
        because(self.state, &self.reason)
    }

    /// With its time.
    pub(super) fn text(&self) -> String {
        match self.since {
            Some(_) => format!("{} since {}", self.word(), stamp(self.since)),
            None => self.word(),
        }
    }
}

fn because(state: &str, reason: &str) -> String {
    if reason.is_empty() { state.to_owned() } else { format!("{state} ({reason})") }
}

/// How a server is, at length.
#[derive(Debug, Serialize)]
pub(crate) struct ServerHealth {
    name: String,
    state: &'static str,
    reason: String,
    since: Option<DateTime<Utc>>,
    proxies: Vec<View>,
    history: Vec<Change>,
    policy: Policy,
    #[serde(skip)]
    asked: bool,
}

/// How it is from one proxy.
#[derive(Debug, Serialize)]
struct View {
    proxy: String,
    group: String,
    checks: bool,
    state: &'static str,
    reason: String,
    since: Option<DateTime<Utc>>,
    checked_at: Option<DateTime<Utc>>,
    endpoints: Vec<Found>,
    fresh: bool,
}

/// What a check found at one endpoint.
#[derive(Debug, Serialize)]
struct Found {
    endpoint: u32,
    state: &'static str,
    reason: String,
    saw: String,
    took_ms: f64,
}

#[derive(Debug, Serialize)]
struct Change {
    at: Option<DateTime<Utc>>,
    state: &'static str,
    reason: String,
}

impl From<pb::ServerHealth> for ServerHealth {
    fn from(health: pb::ServerHealth) -> Self {
        let Status { state, reason, since } = health.summary.unwrap_or_default().into();
        let change = |change: pb::HealthChange| Change {
            at: time(change.at),
            state: state_from_proto(change.state).as_str(),
            reason: change.reason,
        };
        Self {
            name: health.name,
            state,
            reason,
            since,
            proxies: health.proxies.into_iter().map(View::from).collect(),
            history: health.history.into_iter().map(change).collect(),
            policy: health.policy.unwrap_or_default().into(),
            asked: false,
        }
    }
}

impl From<pb::ProxyView> for View {
    fn from(view: pb::ProxyView) -> Self {
        let found = |found: pb::EndpointFinding| Found {
            endpoint: found.endpoint,
            state: state_from_proto(found.state).as_str(),
            reason: found.reason,
            saw: found.saw,
            took_ms: found
                .took
                .and_then(|took| Duration::try_from(took).ok())
                .unwrap_or_default()
                .as_secs_f64()
                * 1000.0,
        };
        Self {
            proxy: if view.proxy.is_empty() { view.proxy_id } else { view.proxy },
            group: view.group,
            checks: view.checks,
            state: state_from_proto(view.state).as_str(),
            reason: view.reason,
            since: time(view.since),
            checked_at: time(view.checked_at),
            endpoints: view.endpoints.into_iter().map(found).collect(),
            fresh: view.fresh,
        }
    }
}

impl ServerHealth {
    /// The answer to a check that was asked for.
    pub(crate) fn asked(mut self) -> Self {
        self.asked = true;
        self
    }

    /// Whether every proxy that was asked has looked, and found it well.
    pub(crate) fn is_well(&self) -> bool {
        let well = |view: &View| view.endpoints.iter().all(|found| found.state == "up");
        self.proxies.iter().any(|view| view.fresh)
            && self.proxies.iter().filter(|view| view.checks).all(|view| view.fresh && well(view))
    }
}

impl Shape for ServerHealth {
    fn text(&self) -> String {
        let status = Status { state: self.state, reason: self.reason.clone(), since: self.since };
        let head =
            fields([("server", self.name.clone()), ("state", status.text()), ("checks", self.policy.text())]);
        let rows = self.proxies.iter().map(|view| {
            let found = view.endpoints.iter().map(|found| {
                let which =
                    if view.endpoints.len() > 1 { format!("#{} ", found.endpoint) } else { String::new() };
                format!(
                    "{which}{}: {}, {:.1} ms",
                    because(found.state, &found.reason),
                    found.saw,
                    found.took_ms
                )
            });
            let late = if self.asked && view.checks && !view.fresh { " (no answer in time)" } else { "" };
            [
                if view.proxy.is_empty() { "-".to_owned() } else { view.proxy.clone() },
                view.group.clone(),
                because(view.state, &view.reason),
                since(view.since),
                format!("{}{late}", since(view.checked_at)),
                found.collect::<Vec<_>>().join("; "),
            ]
        });
        let views = columns(
            ["PROXY", "GROUP", "STATE", "SINCE", "CHECKED", "FOUND"],
            rows,
            "No proxy says anything of it.",
        );
        let history = self.history.iter().take(10);
        let rows = history.map(|change| [stamp(change.at), because(change.state, &change.reason)]);
        let history = columns(["AT", "STATE"], rows, "");
        if history.is_empty() {
            format!("{head}\n\n{views}")
        } else {
            format!("{head}\n\n{views}\n\n{history}")
        }
    }
}
