//! The audit draft of one exchange. It is finished exactly once: by the gateway with an answer, by a stream with its
//! last event, or by its own drop, since a client that goes away is seen nowhere else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::audit::{Event, Outcome, capture, clean};
use waffles_core::snapshot::ServerEntry;
use waffles_mcp::Head;

use crate::audit::Trail;
use crate::authn::Identity;
use crate::health::Monitor;
use crate::limit::Held;
use crate::metrics::Metrics;
use crate::overload::Ticket;
use crate::permit::Notes;
use crate::reject::{Fault, Reject};
use crate::sightings::Sightings;

/// Most bytes of one captured payload.
const MAX_CAPTURE: usize = 64 * 1024;
/// Most bytes of a name or URI in a record.
const MAX_TEXT: usize = 512;
/// Rules that only take note which one record names.
const MAX_NOTED: usize = 8;

/// Where finished records go.
pub struct Desk {
    /// The audit spool.
    pub trail: Trail,
    /// The counters.
    pub metrics: Metrics,
    /// This proxy.
    pub proxy_id: Uuid,
    /// Tools that servers list.
    pub sightings: Sightings,
    /// How servers are.
    pub monitor: Arc<Monitor>,
    /// The label of exchanges that reached no server.
    pub no_server: Arc<str>,
}

/// An open record.
pub struct Record {
    desk: Arc<Desk>,
    event: Option<Box<Event>>,
    id: Uuid,
    opened_at: DateTime<Utc>,
    started: Instant,
    asked: Option<Instant>,
    upstream: Option<Duration>,
    server: Arc<str>,
    method: &'static str,
    /// What limits count as open while the exchange lasts.
    held: Vec<Held>,
    /// The exchange's place among what is in flight, given back when it is over.
    place: Option<Ticket>,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    /// The outcome.
    pub outcome: Outcome,
    /// HTTP status of the answer.
    pub status: u16,
    /// JSON-RPC error code of the answer.
    pub code: i64,
    /// One stable word, or nothing.
    pub reason: &'static str,
}

impl Record {
    /// Opens the record of an exchange that begins now.
    pub fn open(desk: Arc<Desk>, peer: IpAddr, revision: u64) -> Self {
        let id = Uuid::now_v7();
        let opened_at = Utc::now();
        let mut event = Event::new(id, opened_at);
        // Until its message is read; one that never is must still be found among the others.
        event.action = "mcp.none".into();
        event.client_ip = peer.to_string();
        event.revision = revision;
        event.proxy_id = Some(desk.proxy_id);
        let server = Arc::clone(&desk.no_server);
        Self {
            desk,
            event: Some(Box::new(event)),
            id,
            opened_at,
            started: Instant::now(),
            asked: None,
            upstream: None,
            server,
            method: "none",
            held: Vec::new(),
            place: None,
        }
    }

    /// Moves the record to a stream that finishes it. Nothing is left behind.
    #[must_use]
    pub fn hand_over(&mut self) -> Self {
        Self {
            desk: Arc::clone(&self.desk),
            event: self.event.take(),
            id: self.id,
            opened_at: self.opened_at,
            started: self.started,
            asked: self.asked,
            upstream: self.upstream,
            server: Arc::clone(&self.server),
            method: self.method,
            held: std::mem::take(&mut self.held),
            place: self.place.take(),
        }
    }

    /// Keeps what limits count as open, until the record is finished.
    pub fn hold(&mut self, held: Vec<Held>) {
        self.held.extend(held);
    }

    /// What limits count as open, for what goes on when the record is finished.
    pub fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// Keeps the exchange's place among what is in flight until it is over.
    pub fn keep_place(&mut self, place: Ticket) {
        self.place = Some(place);
    }

    /// The request id that clients see.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// When the exchange began, by the calendar: what expires is judged by it.
    pub fn opened_at(&self) -> DateTime<Utc> {
        self.opened_at
    }

    /// When the exchange began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.desk.metrics
    }

    /// Notes what it is about when there is no message: the HTTP method.
    pub fn note_stream(&mut self, action: &'static str) {
        self.method = action;
        if let Some(event) = &mut self.event {
            event.action = format!("mcp.{action}");
        }
    }

    /// Notes the client's message.
    pub fn note_message(&mut self, head: Option<&Head>, version: &str, bytes: usize) {
        let Some(event) = &mut self.event else { return };
        event.request_bytes = bytes as u64;
        event.protocol_version = clean(version, 64);
        let Some(head) = head else {
            self.method = "response";
            event.action = "mcp.response".into();
            return;
        };
        self.method = head.method.label();
        event.action = ["mcp.", &clean(head.method.as_str(), 128)].concat();
        if let Some(name) = &head.name {
            event.target = clean(name, MAX_TEXT);
        }
        if let Some(info) = &head.client_info {
            event.client_name = client_name(info);
        }
    }

    /// Notes who asks.
    pub fn note_identity(&mut self, identity: &Identity) {
        let Some(event) = &mut self.event else { return };
        let principal = identity.principal();
        event.tenant.clone_from(&principal.tenant);
        event.principal_id = Some(principal.id);
        event.principal_name.clone_from(&principal.name);
        if let Some(key) = identity.key() {
            event.api_key_id.clone_from(&key.id);
        }
    }

    /// Notes the server.
    pub fn note_server(&mut self, entry: &ServerEntry, label: Arc<str>) {
        self.server = label;
        let Some(event) = &mut self.event else { return };
        event.server_id = Some(entry.server.id);
        event.server_name.clone_from(&entry.server.spec.name);
    }

    /// Notes what it is about in the server's own name, where the client's differs.
    pub fn note_target(&mut self, target: &str) {
        if let Some(event) = &mut self.event {
            event.target = clean(target, MAX_TEXT);
        }
    }

    /// Notes the rule that decided.
    pub fn note_rule(&mut self, rule: &str) {
        if let Some(event) = &mut self.event {
            rule.clone_into(&mut event.rule);
        }
    }

    /// Notes the namespace at whose door it is asked, without which a decision could not be explained later.
    pub fn note_namespace(&mut self, name: &str) {
        if let Some(event) = &mut self.event {
            event.detail = serde_json::json!({"namespace": name}).to_string();
        }
    }

    /// Notes what is to be counted of the decision.
    pub fn note_policy(&mut self, notes: &Notes) {
        if notes.failed > 0 {
            self.desk.metrics.failed_conditions.inc_by(notes.failed.into());
        }
        if notes.noted.is_empty() {
            return;
        }
        self.desk.metrics.noted_rules.inc_by(notes.noted.len() as u64);
        if let Some(event) = &mut self.event {
            let mut detail: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&event.detail).unwrap_or_default();
            let noted: Vec<&str> = notes.noted.iter().take(MAX_NOTED).map(AsRef::as_ref).collect();
            detail.insert("noted".to_owned(), noted.into());
            event.detail = serde_json::Value::Object(detail).to_string();
        }
    }

    /// Notes that the server is asked now.
    pub fn note_asked(&mut self) {
        self.asked = Some(Instant::now());
    }

    /// Notes that the server has answered, whatever that means for the exchange.
    pub fn note_answered(&mut self) {
        if let (Some(asked), None) = (self.asked, self.upstream) {
            self.upstream = Some(asked.elapsed());
        }
    }

    /// Adds to the bytes of the answer.
    pub fn note_bytes(&mut self, bytes: usize) {
        if let Some(event) = &mut self.event {
            event.response_bytes += bytes as u64;
        }
    }

    /// Notes the result of `tools/list`.
    pub fn note_tools(&self, entry: &ServerEntry, result: &[u8]) {
        self.desk.sightings.note_result(entry.server.id, result);
    }

    /// Keeps what the server's registration says of the arguments.
    pub fn capture_request(&mut self, entry: &ServerEntry, raw: Option<&[u8]>) {
        let spec = &entry.server.spec;
        if let (Some(event), Some(raw)) = (&mut self.event, raw) {
            event.request_payload = capture(raw, spec.capture, &spec.redact, MAX_CAPTURE);
        }
    }

    /// Keeps what the server's registration says of the result.
    pub fn capture_response(&mut self, entry: &ServerEntry, raw: Option<&[u8]>) {
        let spec = &entry.server.spec;
        if let (Some(event), Some(raw)) = (&mut self.event, raw) {
            event.response_payload = capture(raw, spec.capture, &spec.redact, MAX_CAPTURE);
        }
    }

    /// Finishes the record with a refusal. What is not the client's fault is said in the log as well, under the request id
    /// that the client was told.
    pub fn refuse(&mut self, reject: &Reject, status: u16) {
        let (server, reason) = (&*self.server, reject.reason());
        match (reject.fault(), reject.outcome()) {
            (Fault::Client, _) => {
                tracing::debug!(request.id = %self.id, server.name = server, reason, "a message is refused");
            }
            (_, Outcome::Internal) => {
                tracing::error!(request.id = %self.id, server.name = server, reason, "a message cannot be served");
            }
            _ => {
                tracing::warn!(request.id = %self.id, server.name = server, reason, "a message is not served")
            }
        }
        // What the policy allowed may be stopped by a limit, and then that is what decided.
        if let Some(event) = &mut self.event
            && (event.rule.is_empty() || matches!(reject, Reject::Limited(_)))
        {
            reject.rule().clone_into(&mut event.rule);
        }
        self.finish(End { outcome: reject.outcome(), status, code: reject.code(), reason: reject.reason() });
    }

    /// Leaves no record: another proxy keeps it, or the message was turned away before it was looked at. A flood of those
    /// must not fill the spool; they are counted instead.
    pub fn leave(&mut self) {
        self.event = None;
        self.place = None;
    }

    /// Finishes the record: it is on disk when this returns. Later calls do nothing.
    pub fn finish(&mut self, end: End) {
        self.held.clear();
        let Some(mut event) = self.event.take() else { return };
        self.place = None;
        let duration = self.started.elapsed();
        event.outcome = end.outcome;
        event.http_status = end.status;
        event.rpc_code = end.code;
        if event.reason.is_empty() {
            end.reason.clone_into(&mut event.reason);
        }
        event.duration_us = micros(duration);
        event.upstream_us = self.upstream.map_or(0, micros);
        self.desk.metrics.exchange(&self.server, self.method, end.outcome.as_str(), duration, self.upstream);
        if self.asked.is_some() {
            self.desk.monitor.called(&event.tenant, &event.server_name, end.outcome);
        }
        self.desk.trail.record(*event);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // A panic unwinds through here as well, and is no client's doing.
        let (outcome, reason) = match std::thread::panicking() {
            true => (Outcome::Internal, "panicked"),
            false => (Outcome::Cancelled, "client_gone"),
        };
        self.finish(End { outcome, reason, ..End::default() });
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a client calls itself, for display only.
fn client_name(info: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Info<'a> {
        #[serde(borrow, default)]
        name: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Info<'_>>(info).map(|info| clean(&info.name, 128)).unwrap_or_default()
}
