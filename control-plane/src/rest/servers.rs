//! `/api/v1/servers`.

mod resilience;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::server::{self as core, Spec, ToolFilter};

use super::extract::{Actor, Body, Name, Params, based_on, tagged};
use super::health::{HealthPolicy, HealthSummary};
use super::{Door, Problem};
use crate::error::Error;
use crate::registry::{Seen, ServerFilter, Summary};
use resilience::Resilience;

const PAGE_MOST: u32 = 500;

/// How a server speaks MCP on the wire.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Transport {
    /// The proxy finds out.
    #[default]
    Auto,
    /// Streamable HTTP, 2025-03-26 and later.
    StreamableHttp,
    /// HTTP+SSE of 2024-11-05.
    Sse,
}

/// What happens to a call whose audit record cannot be made durable.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AuditMode {
    /// The call is served, and the lost record is counted.
    #[default]
    Count,
    /// The call is refused before it reaches the server.
    Strict,
}

/// How much of a call's payload the audit keeps.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Capture {
    /// No payload.
    #[default]
    None,
    /// Argument names and JSON types.
    Metadata,
    /// Arguments and results, redacted and cut.
    Full,
}

/// One address of a server.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    /// Absolute http or https URL, without user information or fragment.
    url: String,
    /// Share of the traffic relative to the other endpoints, 1 to 1000.
    #[serde(default = "one")]
    weight: u16,
    /// Where it stands: 1 to 63 letters, digits or any of `_.-`. A proxy prefers its own zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
}

fn one() -> u16 {
    1
}

/// What Waffles presents to a server.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum NewCredential {
    /// Nothing.
    None {},
    /// `Authorization: Bearer …`.
    Bearer {
        /// The token.
        #[schema(value_type = String, write_only)]
        token: SecretString,
    },
    /// `Authorization: Basic …`.
    Basic {
        /// Without a colon.
        username: String,
        /// The password.
        #[schema(value_type = String, write_only)]
        password: SecretString,
    },
    /// A header of the server's own.
    Header {
        /// Not one that HTTP, MCP or Waffles uses itself.
        name: String,
        /// Its value.
        #[schema(value_type = String, write_only)]
        value: SecretString,
    },
}

/// What Waffles presents to a server, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Credential {
    /// Nothing.
    None {},
    /// `Authorization: Bearer …`.
    Bearer {},
    /// `Authorization: Basic …`.
    Basic {
        /// The user name.
        username: String,
    },
    /// A header of the server's own.
    Header {
        /// Its name.
        name: String,
    },
}

/// Time limits of one call, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Timeouts {
    /// To open a connection.
    connect_ms: u64,
    /// From the request's end to the answer's first byte.
    first_byte_ms: u64,
    /// Between two bytes of an answer.
    idle_ms: u64,
    /// From start to end; listening streams are exempt.
    total_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        core::Timeouts::default().into()
    }
}

impl From<core::Timeouts> for Timeouts {
    fn from(timeouts: core::Timeouts) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            connect_ms: ms(timeouts.connect),
            first_byte_ms: ms(timeouts.first_byte),
            idle_ms: ms(timeouts.idle),
            total_ms: ms(timeouts.total),
        }
    }
}

impl From<Timeouts> for core::Timeouts {
    fn from(timeouts: Timeouts) -> Self {
        Self {
            connect: Duration::from_millis(timeouts.connect_ms),
            first_byte: Duration::from_millis(timeouts.first_byte_ms),
            idle: Duration::from_millis(timeouts.idle_ms),
            total: Duration::from_millis(timeouts.total_ms),
        }
    }
}

/// Which tools exist for callers: names, or patterns in which `*` stands for any run of characters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tools {
    /// Empty: all tools.
    allow: Vec<String>,
    /// Taken away again; deny wins.
    deny: Vec<String>,
}

/// What the registry says of tools. Rules and read-only keys go by it, and never by what a server says of its own tools.
/// Absent: nothing is said.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolMark {
    /// A name, or a pattern in which `*` stands for any run of characters. Of two marks that fit, the earlier one counts.
    pattern: String,
    /// They only read.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    /// They may destroy something.
    #[serde(skip_serializing_if = "Option::is_none")]
    destructive: Option<bool>,
    /// Calling one twice is as calling it once.
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotent: Option<bool>,
    /// They reach beyond their server.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_world: Option<bool>,
}

impl From<core::ToolMark> for ToolMark {
    fn from(mark: core::ToolMark) -> Self {
        let core::Marks { read_only, destructive, idempotent, open_world } = mark.marks;
        Self { pattern: mark.pattern, read_only, destructive, idempotent, open_world }
    }
}

impl From<ToolMark> for core::ToolMark {
    fn from(mark: ToolMark) -> Self {
        let ToolMark { pattern, read_only, destructive, idempotent, open_world } = mark;
        Self { pattern, marks: core::Marks { read_only, destructive, idempotent, open_world } }
    }
}

/// A server to register.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewServer {
    /// A DNS label, unique in the tenant, never changed.
    name: String,
    /// Free text of at most 1000 characters.
    #[serde(default)]
    description: String,
    /// Labels to filter by.
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    transport: Transport,
    /// 1 to 16 addresses.
    endpoints: Vec<Endpoint>,
    /// None where it is absent.
    credential: Option<NewCredential>,
    #[serde(default)]
    timeouts: Timeouts,
    #[serde(default)]
    resilience: Resilience,
    #[serde(default)]
    tools: Tools,
    /// What the registry says of tools.
    #[serde(default)]
    marks: Vec<ToolMark>,
    /// Methods that no revision of the protocol names and that callers may use here: names or `*` patterns.
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    audit: AuditMode,
    #[serde(default)]
    capture: Capture,
    /// Field names that are blanked in captured payloads.
    #[serde(default)]
    redact: Vec<String>,
    /// Groups of proxies that serve it; empty: all.
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    health: HealthPolicy,
    /// Whether calls may reach it at once.
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// The whole new specification of a server; what is absent gets its default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerUpdate {
    /// The version that the change is based on; may stand in `If-Match` instead.
    version: Option<u64>,
    /// If given, the name in the path.
    name: Option<String>,
    /// Free text of at most 1000 characters.
    #[serde(default)]
    description: String,
    /// Labels to filter by.
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    transport: Transport,
    /// 1 to 16 addresses.
    endpoints: Vec<Endpoint>,
    /// The present one stays where it is absent.
    credential: Option<NewCredential>,
    #[serde(default)]
    timeouts: Timeouts,
    #[serde(default)]
    resilience: Resilience,
    #[serde(default)]
    tools: Tools,
    /// What the registry says of tools.
    #[serde(default)]
    marks: Vec<ToolMark>,
    /// Methods that no revision of the protocol names and that callers may use here: names or `*` patterns.
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    audit: AuditMode,
    #[serde(default)]
    capture: Capture,
    /// Field names that are blanked in captured payloads.
    #[serde(default)]
    redact: Vec<String>,
    /// Groups of proxies that serve it; empty: all.
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    health: HealthPolicy,
}

/// A registered MCP server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Server {
    id: Uuid,
    tenant: String,
    name: String,
    description: String,
    tags: Vec<String>,
    transport: Transport,
    endpoints: Vec<Endpoint>,
    credential: Credential,
    timeouts: Timeouts,
    resilience: Resilience,
    tools: Tools,
    marks: Vec<ToolMark>,
    methods: Vec<String>,
    audit: AuditMode,
    capture: Capture,
    redact: Vec<String>,
    /// Groups of proxies that serve it; empty: all.
    groups: Vec<String>,
    /// How its health is found out.
    health: HealthPolicy,
    /// Whether calls may reach it.
    enabled: bool,
    /// Grows by one with each change; also the `ETag`.
    version: u64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// What proxies found it to speak; only where one server is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seen: Vec<SeenEra>,
    /// How it is; only where servers are listed or shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<HealthSummary>,
}

/// What a proxy found a server to speak.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SeenEra {
    /// The proxy; absent for a caller who may not see proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_id: Option<Uuid>,
    /// The proxy's name; absent for a caller who may not see proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    /// Which of the server's endpoints, from 0.
    endpoint: u32,
    /// `stateless`, `sessions` or `http_sse`.
    era: String,
    /// The revision of the protocol, such as `2025-11-25`.
    revision: String,
    found_at: DateTime<Utc>,
}

/// A page of servers in the order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServerPage {
    servers: Vec<Server>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl From<core::Server> for Server {
    fn from(server: core::Server) -> Self {
        let spec = server.spec;
        let endpoint =
            |e: core::Endpoint| Endpoint { url: e.url.to_string(), weight: e.weight, zone: e.zone };
        Self {
            id: server.id,
            tenant: server.tenant,
            name: spec.name,
            description: spec.description,
            tags: spec.tags,
            transport: match spec.transport {
                core::Transport::Auto => Transport::Auto,
                core::Transport::StreamableHttp => Transport::StreamableHttp,
                core::Transport::Sse => Transport::Sse,
            },
            endpoints: spec.endpoints.into_iter().map(endpoint).collect(),
            credential: match server.credential {
                core::Credential::None => Credential::None {},
                core::Credential::Bearer { .. } => Credential::Bearer {},
                core::Credential::Basic { username, .. } => Credential::Basic { username },
                core::Credential::Header { name, .. } => Credential::Header { name },
            },
            timeouts: spec.timeouts.into(),
            resilience: spec.resilience.into(),
            tools: Tools { allow: spec.tools.allow, deny: spec.tools.deny },
            marks: spec.marks.into_iter().map(ToolMark::from).collect(),
            methods: spec.methods,
            audit: match spec.audit {
                core::AuditMode::Count => AuditMode::Count,
                core::AuditMode::Strict => AuditMode::Strict,
            },
            capture: match spec.capture {
                core::Capture::None => Capture::None,
                core::Capture::Metadata => Capture::Metadata,
                core::Capture::Full => Capture::Full,
            },
            redact: spec.redact,
            groups: spec.groups,
            health: spec.health.into(),
            enabled: server.enabled,
            version: server.version,
            created_at: server.created_at,
            updated_at: server.updated_at,
            seen: Vec::new(),
            status: None,
        }
    }
}

impl From<Seen> for SeenEra {
    fn from(seen: Seen) -> Self {
        let (proxy_id, proxy) = seen.proxy.unzip();
        let Seen { endpoint, era, revision, found_at, .. } = seen;
        Self { proxy_id, proxy, endpoint, era, revision, found_at }
    }
}

impl From<NewCredential> for core::Credential {
    fn from(credential: NewCredential) -> Self {
        match credential {
            NewCredential::None {} => Self::None,
            NewCredential::Bearer { token } => Self::Bearer { token },
            NewCredential::Basic { username, password } => Self::Basic { username, password },
            NewCredential::Header { name, value } => Self::Header { name: name.to_ascii_lowercase(), value },
        }
    }
}

impl NewServer {
    fn into_spec(self) -> Result<(Spec, Option<core::Credential>), Error> {
        let update = ServerUpdate {
            version: None,
            name: None,
            description: self.description,
            tags: self.tags,
            transport: self.transport,
            endpoints: self.endpoints,
            credential: self.credential,
            timeouts: self.timeouts,
            resilience: self.resilience,
            tools: self.tools,
            marks: self.marks,
            methods: self.methods,
            audit: self.audit,
            capture: self.capture,
            redact: self.redact,
            groups: self.groups,
            health: self.health,
        };
        update.into_spec(self.name)
    }
}

impl ServerUpdate {
    /// The specification as the registry takes it; an address that cannot be read is refused together with
    /// everything else that is wrong.
    fn into_spec(self, name: String) -> Result<(Spec, Option<core::Credential>), Error> {
        let mut problems = Vec::new();
        let mut endpoints = Vec::new();
        for (i, endpoint) in self.endpoints.into_iter().enumerate() {
            match Url::parse(&endpoint.url) {
                Ok(url) => {
                    endpoints.push(core::Endpoint { url, weight: endpoint.weight, zone: endpoint.zone })
                }
                Err(error) => {
                    problems.push(FieldError::new(format!("endpoints[{i}].url"), error.to_string()));
                }
            }
        }
        let spec = Spec {
            name,
            description: self.description,
            tags: self.tags,
            transport: match self.transport {
                Transport::Auto => core::Transport::Auto,
                Transport::StreamableHttp => core::Transport::StreamableHttp,
                Transport::Sse => core::Transport::Sse,
            },
            endpoints,
            timeouts: self.timeouts.into(),
            resilience: self.resilience.into(),
            tools: ToolFilter { allow: self.tools.allow, deny: self.tools.deny },
            marks: self.marks.into_iter().map(core::ToolMark::from).collect(),
            methods: self.methods,
            audit: match self.audit {
                AuditMode::Count => core::AuditMode::Count,
                AuditMode::Strict => core::AuditMode::Strict,
            },
            capture: match self.capture {
                Capture::None => core::Capture::None,
                Capture::Metadata => core::Capture::Metadata,
                Capture::Full => core::Capture::Full,
            },
            redact: self.redact,
            groups: self.groups,
            health: self.health.into(),
        };
        let credential = self.credential.map(core::Credential::from);
        if problems.is_empty() {
            return Ok((spec, credential));
        }
        problems
            .extend(spec.problems().into_iter().filter(|problem| !problem.field.starts_with("endpoints")));
        problems.extend(credential.iter().flat_map(core::Credential::problems));
        Err(in_our_words(Error::Invalid(problems)))
    }
}

/// The domain's names of fields in the names that they have here.
fn in_our_words(error: Error) -> Error {
    let Error::Invalid(fields) = error else { return error };
    let renamed = fields.into_iter().map(|mut problem| {
        let field = &problem.field;
        let in_resilience = ["queue_wait", ".window", ".open", ".open_most", ".retry_after_most", ".backoff"];
        let is_time = field.starts_with("timeouts.")
            || field.starts_with("resilience.") && in_resilience.iter().any(|leaf| field.ends_with(leaf));
        if let Some(ours) = super::health::in_our_words(field) {
            problem.field = ours.to_owned();
        } else if is_time && !field.ends_with("_ms") {
            problem.field = format!("{field}_ms");
        } else if let Some(rest) = field.strip_prefix("credential.") {
            let leaf = rest.rsplit('.').next().unwrap_or(rest);
            problem.field = format!("credential.{leaf}");
        }
        problem
    });
    Error::Invalid(renamed.collect())
}

fn answer(status: StatusCode, server: core::Server) -> Response {
    let version = server.version;
    tagged((status, Json(Server::from(server))).into_response(), version)
}

/// Which servers, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct ServerQuery {
    /// Part of the name.
    name: Option<String>,
    /// A tag that it carries; may be given several times, then it carries all of them.
    tag: Option<Vec<String>>,
    /// Only those that calls may reach, or only those that they may not.
    enabled: Option<bool>,
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists servers by name, one page at a time.
#[utoipa::path(get, path = "/api/v1/servers", tag = "servers", operation_id = "listServers",
    params(ServerQuery), responses((status = 200, body = ServerPage)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<ServerPage>, Problem> {
    let filter = ServerFilter {
        name_contains: params.one("name").unwrap_or_default(),
        tags: params.all("tag"),
        enabled: params.read_as("enabled", "true or false", |text| text.parse().ok()),
    };
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.registry.list(&ctx, &filter, &page).await?;
    let with = |(server, summary): (core::Server, Summary)| Server {
        status: Some(summary.into()),
        ..Server::from(server)
    };
    let servers = paged.items.into_iter().map(with).collect();
    Ok(Json(ServerPage { servers, next_cursor: paged.next }))
}

/// Registers a server.
///
/// A name that is taken, or that the audit trail knows as another server's, is a 409.
#[utoipa::path(post, path = "/api/v1/servers", tag = "servers", operation_id = "createServer",
    request_body = NewServer, responses((status = 201, body = Server,
        headers(("ETag" = String, description = "The version, in quotes"), ("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewServer>,
) -> Result<Response, Problem> {
    let enabled = new.enabled;
    let (spec, credential) = new.into_spec()?;
    let registry = &door.services.registry;
    let server = registry.create(&ctx, spec, credential.unwrap_or_default(), enabled).await;
    let server = server.map_err(in_our_words)?;
    let location = HeaderValue::from_str(&format!("/api/v1/servers/{}", server.spec.name));
    let mut response = answer(StatusCode::CREATED, server);
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Shows one server.
#[utoipa::path(get, path = "/api/v1/servers/{name}", tag = "servers", operation_id = "getServer",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 200, body = Server, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    let (server, seen, summary) = door.services.registry.get(&ctx, &name).await?;
    let version = server.version;
    let shown = Server {
        seen: seen.into_iter().map(SeenEra::from).collect(),
        status: Some(summary.into()),
        ..Server::from(server)
    };
    Ok(tagged(Json(shown).into_response(), version))
}

/// Replaces the specification of a server.
///
/// The version that the change is based on stands in the body or in `If-Match`; if it is not the current one,
/// the answer is a 409 and nothing changes.
#[utoipa::path(put, path = "/api/v1/servers/{name}", tag = "servers", operation_id = "updateServer",
    params(("name" = String, Path, description = "The server's name"),
        ("If-Match" = Option<String>, Header, description = "The version, in quotes")),
    request_body = ServerUpdate,
    responses((status = 200, body = Server, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn update(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    headers: HeaderMap,
    Body(update): Body<ServerUpdate>,
) -> Result<Response, Problem> {
    if update.name.as_ref().is_some_and(|given| *given != name) {
        return Err(Error::invalid("name", "cannot be changed; it must be the one in the path").into());
    }
    let version = based_on(update.version, &headers)?;
    let (spec, credential) = update.into_spec(name)?;
    let server = door.services.registry.update(&ctx, spec, credential, version).await;
    Ok(answer(StatusCode::OK, server.map_err(in_our_words)?))
}

/// Retires a server.
///
/// Its name stays taken as long as audit events refer to it.
#[utoipa::path(delete, path = "/api/v1/servers/{name}", tag = "servers", operation_id = "deleteServer",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    door.services.registry.delete(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets calls reach a server.
#[utoipa::path(post, path = "/api/v1/servers/{name}/enable", tag = "servers", operation_id = "enableServer",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 200, body = Server)))]
pub(super) async fn enable(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, door.services.registry.set_enabled(&ctx, &name, true).await?))
}

/// Stops calls to a server.
#[utoipa::path(post, path = "/api/v1/servers/{name}/disable", tag = "servers", operation_id = "disableServer",
    params(("name" = String, Path, description = "The server's name")),
    responses((status = 200, body = Server)))]
pub(super) async fn disable(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, door.services.registry.set_enabled(&ctx, &name, false).await?))
}
