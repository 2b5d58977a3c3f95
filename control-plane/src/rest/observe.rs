//! `/api/v1/audit`, `/api/v1/proxies`, `/api/v1/status`, and what load balancers ask: `/health`, `/ready`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::audit::{self as core, Outcome};

use super::extract::{Actor, Name, Params};
use super::{Door, Problem};
use crate::audit::EventFilter;
use crate::error::Error;
use crate::proxies;

const AUDIT_PAGE_MOST: u32 = 1000;
const PROXY_PAGE_MOST: u32 = 500;

/// The durable record of one exchange or administrative act. What does not apply is absent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Event {
    /// Also the request id that clients see.
    id: Uuid,
    tenant: String,
    occurred_at: DateTime<Utc>,
    /// `mcp.<method>` for exchanges, `<resource>.<action>` for acts.
    action: String,
    /// How it ended: `ok`, `error`, `unauthenticated`, `denied`, `invalid`, `upstream_failed`, `cancelled`,
    /// `shed` or `internal`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal_id: Option<Uuid>,
    #[serde(skip_serializing_if = "String::is_empty")]
    principal_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_key_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    client_ip: String,
    /// What the client calls itself; not to be trusted.
    #[serde(skip_serializing_if = "String::is_empty")]
    client_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    protocol_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_id: Option<Uuid>,
    #[serde(skip_serializing_if = "String::is_empty")]
    server_name: String,
    /// Tool, prompt or URI.
    #[serde(skip_serializing_if = "String::is_empty")]
    target: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    rule: String,
    /// Why it was refused or failed, one stable word.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rpc_code: Option<i64>,
    duration_us: u64,
    upstream_us: u64,
    request_bytes: u64,
    response_bytes: u64,
    /// Captured arguments; needs `audit:payloads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_payload: Option<Value>,
    /// Captured result; needs `audit:payloads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_payload: Option<Value>,
    /// The revision of the configuration that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_id: Option<Uuid>,
    /// What was acted upon.
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    /// Details of an act.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Value>,
}

/// A page of events, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventPage {
    events: Vec<Event>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl From<core::Event> for Event {
    fn from(event: core::Event) -> Self {
        // What is no JSON is shown as the text that it is.
        let json = |text: String| match text.is_empty() {
            true => None,
            false => Some(serde_json::from_str(&text).unwrap_or(Value::String(text))),
        };
        Self {
            id: event.id,
            tenant: event.tenant,
            occurred_at: event.occurred_at,
            action: event.action,
            outcome: event.outcome.as_str(),
            principal_id: event.principal_id,
            principal_name: event.principal_name,
            api_key_id: event.api_key_id,
            client_ip: event.client_ip,
            client_name: event.client_name,
            protocol_version: event.protocol_version,
            server_id: event.server_id,
            server_name: event.server_name,
            target: event.target,
            rule: event.rule,
            reason: event.reason,
            http_status: Some(event.http_status).filter(|status| *status != 0),
            rpc_code: Some(event.rpc_code).filter(|code| *code != 0),
            duration_us: event.duration_us,
            upstream_us: event.upstream_us,
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
            request_payload: json(event.request_payload),
            response_payload: json(event.response_payload),
            revision: Some(event.revision).filter(|revision| *revision != 0),
            proxy_id: event.proxy_id,
            resource: event.resource,
            detail: json(event.detail),
        }
    }
}

/// Which events, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct EventQuery {
    /// At or after (RFC 3339).
    since: Option<DateTime<Utc>>,
    /// Before (RFC 3339).
    until: Option<DateTime<Utc>>,
    /// Principal id or name.
    principal: Option<String>,
    /// Server name.
    server: Option<String>,
    /// Tool, prompt or URI.
    target: Option<String>,
    /// Action, exactly; or its beginning when it ends with a dot.
    action: Option<String>,
    /// May be given several times: any of these.
    outcome: Option<Vec<String>>,
    /// Proxy id.
    proxy: Option<Uuid>,
    /// The event with this id.
    id: Option<Uuid>,
    /// How many at the most: 1 to 1000; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Searches the audit trail, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", operation_id = "searchAudit",
    params(EventQuery), responses((status = 200, body = EventPage)))]
pub(super) async fn search(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<EventPage>, Problem> {
    let page = params.page(AUDIT_PAGE_MOST);
    let filter = filter_of(params)?;
    let paged = door.services.audit.search(&ctx, &filter, &page).await?;
    let events = paged.items.into_iter().map(Event::from).collect();
    Ok(Json(EventPage { events, next_cursor: paged.next }))
}

/// Reads the filter, which is all that is left to read.
fn filter_of(mut params: Params) -> Result<EventFilter, Problem> {
    let time = |text: &str| DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc));
    let outcomes = params.all("outcome");
    let known: Option<Vec<Outcome>> = outcomes.iter().map(|word| Outcome::parse(word)).collect();
    let filter = EventFilter {
        since: params.read_as("since", "a time (RFC 3339)", time),
        until: params.read_as("until", "a time (RFC 3339)", time),
        principal: params.one("principal").unwrap_or_default(),
        server: params.one("server").unwrap_or_default(),
        target: params.one("target").unwrap_or_default(),
        action: params.one("action").unwrap_or_default(),
        outcomes: known.clone().unwrap_or_default(),
        id: params.read_as("id", "a UUID", |text| text.parse().ok()),
        proxy_id: params.read_as("proxy", "a UUID", |text| text.parse().ok()),
    };
    params.done()?;
    match known {
        Some(_) => Ok(filter),
        None => Err(Error::invalid("outcome", "is not an outcome").into()),
    }
}

/// Which events stand in an export. The others do as well, but only with their digests.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct ExportQuery {
    /// At or after (RFC 3339). The chains begin a little before.
    since: Option<DateTime<Utc>>,
    /// Before (RFC 3339).
    until: Option<DateTime<Utc>>,
    /// Principal id or name.
    principal: Option<String>,
    /// Server name.
    server: Option<String>,
    /// Tool, prompt or URI.
    target: Option<String>,
    /// Action, exactly; or its beginning when it ends with a dot.
    action: Option<String>,
    /// May be given several times: any of these.
    outcome: Option<Vec<String>>,
    /// Proxy id.
    proxy: Option<Uuid>,
    /// The event with this id.
    id: Option<Uuid>,
}

/// Exports the audit trail with all that it takes to verify offline that it is as it was written. The answer is JSON Lines;
/// without a last line of the kind `end` it was cut off.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit", operation_id = "exportAudit",
    params(ExportQuery), responses((status = 200, content_type = "application/jsonl", body = String)))]
pub(super) async fn export(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    params: Params,
) -> Result<Response, Problem> {
    let parts = door.services.audit.export(&ctx, filter_of(params)?)?;
    let body = Body::from_stream(ReceiverStream::new(parts));
    Ok(([(CONTENT_TYPE, "application/jsonl")], body).into_response())
}

/// One running data plane.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Proxy {
    id: Uuid,
    name: String,
    group: String,
    /// The program's version.
    version: String,
    /// Whether it holds a configuration stream now.
    connected: bool,
    first_seen_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    /// The revision that it acknowledged last.
    acknowledged_revision: u64,
    /// How many revisions it is behind.
    lag: u64,
    /// What it refuses; absent when it refuses nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_nack: Option<Nack>,
    open_streams: u64,
    /// Audit records that wait for upload.
    spool_depth: u64,
    /// Audit records lost for want of space.
    lost_records: u64,
    /// When its certificate ends; absent for one that never had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires_at: Option<DateTime<Utc>>,
    /// It is shut out.
    denied: bool,
}

/// What a proxy refuses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Nack {
    revision: u64,
    at: DateTime<Utc>,
    rejections: Vec<Rejection>,
}

/// One refused resource.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rejection {
    /// Such as `server`.
    kind: String,
    name: String,
    reason: String,
}

/// A page of proxies in the order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProxyPage {
    proxies: Vec<Proxy>,
    /// The current revision.
    revision: u64,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl From<proxies::Proxy> for Proxy {
    fn from(proxy: proxies::Proxy) -> Self {
        let rejection = |r: crate::store::proxies::RejectionDoc| Rejection {
            kind: r.kind,
            name: r.name,
            reason: r.reason,
        };
        Self {
            id: proxy.id,
            name: proxy.name,
            group: proxy.group,
            version: proxy.version,
            connected: proxy.connected,
            first_seen_at: proxy.first_seen_at,
            last_seen_at: proxy.last_seen_at,
            acknowledged_revision: proxy.acknowledged_revision,
            lag: proxy.lag,
            last_nack: proxy.last_nack.map(|nack| Nack {
                revision: nack.revision,
                at: nack.at,
                rejections: nack.rejections.into_iter().map(rejection).collect(),
            }),
            open_streams: proxy.health.open_streams,
            spool_depth: proxy.health.spool_depth,
            lost_records: proxy.lost_records,
            certificate_expires_at: proxy.certificate_ends_at,
            denied: proxy.denied,
        }
    }
}

/// Which page of proxies.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct ProxyQuery {
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists proxies by name, with what each acknowledged.
#[utoipa::path(get, path = "/api/v1/proxies", tag = "proxies", operation_id = "listProxies",
    params(ProxyQuery), responses((status = 200, body = ProxyPage)))]
pub(super) async fn list_proxies(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<ProxyPage>, Problem> {
    let page = params.page(PROXY_PAGE_MOST);
    params.done()?;
    let proxies = &door.services.proxies;
    let paged = proxies.list(&ctx, &page).await?;
    let revision = proxies.revision().await?;
    let shown = paged.items.into_iter().map(Proxy::from).collect();
    Ok(Json(ProxyPage { proxies: shown, revision, next_cursor: paged.next }))
}

/// Shows one proxy.
#[utoipa::path(get, path = "/api/v1/proxies/{proxy}", tag = "proxies", operation_id = "getProxy",
    params(("proxy" = String, Path, description = "Its id or its name")),
    responses((status = 200, body = Proxy)))]
pub(super) async fn get_proxy(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(proxy): Name,
) -> Result<Json<Proxy>, Problem> {
    Ok(Json(door.services.proxies.get(&ctx, &proxy).await?.into()))
}

/// How the control plane is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The program's version.
    version: &'static str,
    /// `postgres` or `sqlite`.
    database: &'static str,
    /// The current revision of the configuration.
    revision: u64,
    /// Registered servers of the caller's tenant.
    servers: u64,
    /// Proxies that are connected now.
    connected_proxies: u64,
    /// Seconds since the program started.
    uptime_seconds: u64,
}

/// Shows how the control plane is doing.
#[utoipa::path(get, path = "/api/v1/status", tag = "status", operation_id = "getStatus",
    responses((status = 200, body = Status)))]
pub(super) async fn status(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<Json<Status>, Problem> {
    let services = &door.services;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        database: services.db.kind(),
        revision: services.proxies.revision().await?,
        servers: services.registry.count(&ctx).await?,
        connected_proxies: services.proxies.count_connected(&ctx).await?,
        uptime_seconds: door.started.elapsed().as_secs(),
    }))
}

/// An answer to a load balancer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// Says that the process lives.
#[utoipa::path(get, path = "/health", tag = "status", operation_id = "getHealth",
    responses((status = 200, body = Alive)))]
pub(super) async fn health() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Says whether requests can be served: the database answers, its migrations are done, the configuration was
/// read once, and the program does not end.
#[utoipa::path(get, path = "/ready", tag = "status", operation_id = "getReady",
    responses((status = 200, body = Alive)))]
pub(super) async fn ready(State(door): State<Arc<Door>>) -> Result<Json<Alive>, Problem> {
    let unavailable = |source| Error::Unavailable { retry_after: super::SOON, source };
    let missing = door.gates.missing();
    if !missing.is_empty() {
        return Err(unavailable(format!("waiting for {}", missing.join(", ")).into()).into());
    }
    // The port opens once the migrations are done, and the ping reads a table that they make.
    door.services.db.ping().await.map_err(|error| unavailable(error.into()))?;
    Ok(Json(Alive { status: "ok" }))
}
