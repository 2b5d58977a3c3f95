//! What results look like. The field names here are what scripts rely on: they change only by addition.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use waffles_core::audit::Outcome;
use waffles_core::wire::{outcome_from_proto, time};
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::auth::v1 as auth_pb;
use waffles_proto::proxy::v1 as proxy_pb;
use waffles_proto::registry::v1 as registry_pb;

use super::{Shape, clean_lines, columns, fields};
use crate::moment::age;

use access::roles;
pub(crate) use access::{Account, Grant, Group, HeldRole, Member, PasswordToken, Role, Session};
pub(crate) use credential::SealKey;
pub(crate) use enrolment::{Authority, JoinToken};
pub(crate) use health::ServerHealth;
pub(crate) use limit::{Limit, Usage};
pub(crate) use namespace::Namespace;
pub(crate) use policy::{Explanation, Finding, PolicyVersion, RuleChange, StoredRule, TestResult, Trial};
pub(crate) use resilience::Resilience;
pub(crate) use stdio::{Imported, Running, StdioProgram};
pub(crate) use tenant::Tenant;

mod access;
mod credential;
mod enrolment;
mod health;
mod limit;
mod namespace;
mod policy;
mod resilience;
mod stdio;
mod tenant;

fn list(items: &[String]) -> String {
    items.join(", ")
}

fn since(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| age(time, Utc::now()))
}

fn stamp(time: Option<DateTime<Utc>>) -> String {
    time.map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)).unwrap_or_default()
}

/// The address of a server.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint {
    url: String,
    weight: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    zone: String,
}

/// Time limits of a call, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Timeouts {
    connect_ms: u64,
    first_byte_ms: u64,
    idle_ms: u64,
    total_ms: u64,
}

/// What the registry says of tools.
#[derive(Debug, Serialize)]
pub(crate) struct Mark {
    pattern: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destructive: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotent: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_world: Option<bool>,
}

impl From<registry_pb::ToolMark> for Mark {
    fn from(mark: registry_pb::ToolMark) -> Self {
        let registry_pb::ToolMark { pattern, read_only, destructive, idempotent, open_world } = mark;
        Self { pattern, read_only, destructive, idempotent, open_world }
    }
}

impl Mark {
    /// As `--mark` takes it.
    fn text(&self) -> String {
        let words = [
            ("read-only", self.read_only),
            ("destructive", self.destructive),
            ("idempotent", self.idempotent),
            ("open-world", self.open_world),
        ];
        let word = |(word, said): (&str, Option<bool>)| {
            said.map(|said| if said { word.to_owned() } else { format!("not-{word}") })
        };
        let words: Vec<String> = words.into_iter().filter_map(word).collect();
        format!("{}={}", self.pattern, words.join(","))
    }
}

/// A registered server.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    id: String,
    tenant: String,
    name: String,
    description: String,
    tags: Vec<String>,
    enabled: bool,
    version: u64,
    transport: &'static str,
    endpoints: Vec<Endpoint>,
    credential: &'static str,
    credential_name: Option<String>,
    timeouts: Timeouts,
    resilience: Resilience,
    allow: Vec<String>,
    deny: Vec<String>,
    marks: Vec<Mark>,
    methods: Vec<String>,
    audit: &'static str,
    capture: &'static str,
    redact: Vec<String>,
    groups: Vec<String>,
    health: health::Policy,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
    seen: Vec<Seen>,
    status: Option<health::Status>,
}

/// What a proxy found a server to speak.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    proxy: String,
    endpoint: u32,
    era: String,
    revision: String,
    found_at: Option<DateTime<Utc>>,
}

impl From<registry_pb::SeenEra> for Seen {
    fn from(seen: registry_pb::SeenEra) -> Self {
        let registry_pb::SeenEra { proxy_id, proxy, endpoint, era, revision, found_at } = seen;
        let proxy = if proxy.is_empty() { proxy_id } else { proxy };
        Self { proxy, endpoint, era, revision, found_at: time(found_at) }
    }
}

impl Seen {
    /// On one line. Which endpoint it was says something only where there are several.
    fn text(&self, endpoints: usize) -> String {
        let Self { proxy, endpoint, era, revision, found_at } = self;
        let at = if endpoints > 1 { format!(" at endpoint {endpoint}") } else { String::new() };
        format!("{} ({revision}){at}, found by {proxy} at {}", era.replace('_', "-"), stamp(*found_at))
    }
}

impl From<registry_pb::Server> for Server {
    fn from(server: registry_pb::Server) -> Self {
        use registry_pb::credential::Kind;
        let spec = server.spec.unwrap_or_default();
        let (credential, credential_name) = match spec.credential.and_then(|credential| credential.kind) {
            None | Some(Kind::None(_)) => ("none", None),
            Some(Kind::Bearer(_)) => ("bearer", None),
            Some(Kind::Basic(basic)) => ("basic", Some(basic.username)),
            Some(Kind::Header(header)) => ("header", Some(header.name)),
        };
        let timeouts = spec.timeouts.unwrap_or_default();
        let defaults = waffles_core::server::Timeouts::default();
        let millis = |duration: Option<prost_types::Duration>, default: std::time::Duration| {
            let duration = duration.and_then(|d| d.try_into().ok()).unwrap_or(default);
            u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
        };
        Self {
            id: server.id,
            tenant: server.tenant,
            name: spec.name,
            description: spec.description,
            tags: spec.tags,
            enabled: server.enabled,
            version: server.version,
            transport: match registry_pb::Transport::try_from(spec.transport) {
                Ok(registry_pb::Transport::StreamableHttp) => "streamable-http",
                Ok(registry_pb::Transport::Sse) => "sse",
                Ok(registry_pb::Transport::Auto | registry_pb::Transport::Unspecified) => "auto",
                Err(_) => "unknown",
            },
            endpoints: spec
                .endpoints
                .into_iter()
                .map(|e| Endpoint { url: e.url, weight: e.weight.max(1), zone: e.zone })
                .collect(),
            credential,
            credential_name,
            timeouts: Timeouts {
                connect_ms: millis(timeouts.connect, defaults.connect),
                first_byte_ms: millis(timeouts.first_byte, defaults.first_byte),
                idle_ms: millis(timeouts.idle, defaults.idle),
                total_ms: millis(timeouts.total, defaults.total),
            },
            resilience: spec.resilience.unwrap_or_default().into(),
            allow: spec.tools.as_ref().map(|tools| tools.allow.clone()).unwrap_or_default(),
            deny: spec.tools.map(|tools| tools.deny).unwrap_or_default(),
            marks: spec.marks.into_iter().map(Mark::from).collect(),
            methods: spec.methods,
            audit: match registry_pb::AuditMode::try_from(spec.audit) {
                Ok(registry_pb::AuditMode::Strict) => "strict",
                Ok(registry_pb::AuditMode::Count | registry_pb::AuditMode::Unspecified) => "count",
                Err(_) => "unknown",
            },
            capture: match registry_pb::Capture::try_from(spec.capture) {
                Ok(registry_pb::Capture::Metadata) => "metadata",
                Ok(registry_pb::Capture::Full) => "full",
                Ok(registry_pb::Capture::None | registry_pb::Capture::Unspecified) => "none",
                Err(_) => "unknown",
            },
            redact: spec.redact,
            groups: spec.groups,
            health: spec.health.unwrap_or_default().into(),
            created_at: time(server.created_at),
            updated_at: time(server.updated_at),
            seen: server.seen.into_iter().map(Seen::from).collect(),
            status: server.health.map(health::Status::from),
        }
    }
}

impl Shape for Server {
    fn text(&self) -> String {
        let seen: Vec<String> = self.seen.iter().map(|seen| seen.text(self.endpoints.len())).collect();
        let urls: Vec<String> = self
            .endpoints
            .iter()
            .map(|Endpoint { url, weight, zone }| match (weight, zone.as_str()) {
                (1, "") => url.clone(),
                (weight, "") => format!("{url} (weight {weight})"),
                (1, zone) => format!("{url} (zone {zone})"),
                (weight, zone) => format!("{url} (weight {weight}, zone {zone})"),
            })
            .collect();
        let Timeouts { connect_ms, first_byte_ms, idle_ms, total_ms } = self.timeouts;
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("tenant", self.tenant.clone()),
            ("description", self.description.clone()),
            ("tags", list(&self.tags)),
            ("enabled", if self.enabled { "yes" } else { "no" }.to_owned()),
            ("state", self.status.as_ref().map(health::Status::text).unwrap_or_default()),
            ("version", self.version.to_string()),
            ("transport", self.transport.to_owned()),
            ("speaks", seen.join("\n")),
            ("endpoints", urls.join("\n")),
            (
                "credential",
                match &self.credential_name {
                    Some(name) => format!("{} ({name})", self.credential),
                    None => self.credential.to_owned(),
                },
            ),
            (
                "timeouts",
                format!(
                    "connect {connect_ms} ms, first byte {first_byte_ms} ms, idle {idle_ms} ms, total {total_ms} ms"
                ),
            ),
            ("breaker", self.resilience.breaker()),
            ("capacity", self.resilience.capacity()),
            ("retries", self.resilience.retries()),
            ("allow", list(&self.allow)),
            ("deny", list(&self.deny)),
            ("marks", self.marks.iter().map(Mark::text).collect::<Vec<_>>().join("\n")),
            ("methods", list(&self.methods)),
            ("audit", self.audit.to_owned()),
            ("capture", self.capture.to_owned()),
            ("redact", list(&self.redact)),
            ("groups", list(&self.groups)),
            ("health checks", self.health.text()),
            ("created", stamp(self.created_at)),
            ("updated", stamp(self.updated_at)),
        ])
    }
}

impl Shape for [Server] {
    fn text(&self) -> String {
        let rows = self.iter().map(|server| {
            let more = match server.endpoints.len() {
                0 | 1 => String::new(),
                n => format!(" (+{})", n - 1),
            };
            let url = server.endpoints.first().map(|endpoint| endpoint.url.clone()).unwrap_or_default();
            [
                server.name.clone(),
                if server.enabled { "yes" } else { "no" }.to_owned(),
                server.status.as_ref().map_or_else(|| "-".to_owned(), health::Status::word),
                server.transport.to_owned(),
                format!("{url}{more}"),
                server.credential.to_owned(),
                list(&server.tags),
                since(server.updated_at),
            ]
        });
        columns(
            ["NAME", "ENABLED", "STATE", "TRANSPORT", "ENDPOINT", "CREDENTIAL", "TAGS", "CHANGED"],
            rows,
            "There are no servers. Register one with `wafflectl server add NAME URL`.",
        )
    }
}

/// A tool that a server offers, as the proxy lists it.
#[derive(Debug, Serialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) title: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) input_schema: Value,
}

impl Shape for [Tool] {
    fn text(&self) -> String {
        let rows = self.iter().map(|tool| {
            let properties = tool.input_schema.get("properties").and_then(Value::as_object);
            let required = tool.input_schema.get("required").and_then(Value::as_array);
            let arguments: Vec<String> = properties
                .into_iter()
                .flat_map(|properties| properties.keys())
                .map(|name| {
                    let needed = required.is_some_and(|all| all.iter().any(|one| one == name));
                    format!("{name}{}", if needed { "" } else { "?" })
                })
                .collect();
            let about = tool.description.as_deref().or(tool.title.as_deref()).unwrap_or_default();
            let about = about.lines().next().unwrap_or_default().to_owned();
            [tool.name.clone(), arguments.join(", "), about]
        });
        columns(["TOOL", "ARGUMENTS", "DESCRIPTION"], rows, "The server offers you no tools.")
    }
}

/// An API key; the secret only when it was just made.
#[derive(Debug, Serialize)]
pub(crate) struct Key {
    id: String,
    tenant: String,
    name: String,
    owner_id: String,
    owner_name: String,
    status: &'static str,
    scopes: Vec<String>,
    servers: Vec<String>,
    tools: Vec<String>,
    namespaces: Vec<String>,
    ip_ranges: Vec<String>,
    read_only: bool,
    created_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    not_after: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl From<auth_pb::ApiKey> for Key {
    fn from(key: auth_pb::ApiKey) -> Self {
        let limits = key.limits.unwrap_or_default();
        let expires_at = time(key.expires_at);
        let revoked_at = time(key.revoked_at);
        let status = match () {
            () if revoked_at.is_some() => "revoked",
            () if expires_at.is_some_and(|end| end <= Utc::now()) => "expired",
            () => "active",
        };
        Self {
            id: key.id,
            tenant: key.tenant,
            name: key.name,
            owner_id: key.owner_id,
            owner_name: key.owner_name,
            status,
            scopes: limits.scopes,
            servers: limits.servers,
            tools: limits.tools,
            namespaces: limits.namespaces,
            ip_ranges: limits.ip_ranges,
            read_only: limits.read_only,
            created_at: time(key.created_at),
            expires_at,
            revoked_at,
            not_after: time(key.not_after),
            last_used_at: time(key.last_used_at),
            secret: None,
        }
    }
}

impl Key {
    /// A key that was just made, with what is shown this once.
    pub(crate) fn with_secret(self, secret: String) -> Self {
        Self { secret: Some(secret), ..self }
    }
}

impl Shape for Key {
    fn text(&self) -> String {
        fields([
            ("key", self.secret.clone().unwrap_or_default()),
            ("id", self.id.clone()),
            ("name", self.name.clone()),
            ("owner", self.owner_name.clone()),
            ("tenant", self.tenant.clone()),
            ("status", self.status.to_owned()),
            ("scopes", list(&self.scopes)),
            ("servers", list(&self.servers)),
            ("tools", list(&self.tools)),
            ("namespaces", list(&self.namespaces)),
            ("ip ranges", list(&self.ip_ranges)),
            ("read only", if self.read_only { "yes" } else { "" }.to_owned()),
            ("created", stamp(self.created_at)),
            ("expires", stamp(self.expires_at)),
            ("revoked", stamp(self.revoked_at)),
            ("not after", stamp(self.not_after)),
            ("last used", stamp(self.last_used_at)),
        ])
    }
}

impl Shape for [Key] {
    fn text(&self) -> String {
        let rows = self.iter().map(|key| {
            [
                key.id.clone(),
                key.name.clone(),
                key.owner_name.clone(),
                key.status.to_owned(),
                since(key.created_at),
                since(key.last_used_at),
                key.expires_at.map_or_else(|| "never".to_owned(), |end| age(end, Utc::now())),
            ]
        });
        columns(
            ["ID", "NAME", "OWNER", "STATUS", "AGE", "LAST USED", "EXPIRES"],
            rows,
            "There are no API keys. Make one with `wafflectl key create NAME`.",
        )
    }
}

/// Who the caller is.
#[derive(Debug, Serialize)]
pub(crate) struct Whoami {
    context: String,
    id: String,
    tenant: String,
    name: String,
    kind: String,
    groups: Vec<String>,
    roles: Vec<String>,
    grants: Vec<HeldRole>,
    permissions: Vec<String>,
    api_key_id: Option<String>,
}

impl Whoami {
    /// The answer to `whoami` in a context.
    pub(crate) fn new(context: &str, answer: auth_pb::GetSelfResponse) -> Self {
        let principal = answer.principal.unwrap_or_default();
        Self {
            context: context.to_owned(),
            id: principal.id,
            tenant: principal.tenant,
            name: principal.name,
            kind: principal.kind,
            groups: principal.groups,
            roles: principal.roles,
            grants: principal.grants.into_iter().map(HeldRole::from).collect(),
            permissions: answer.permissions,
            api_key_id: Some(answer.api_key_id).filter(|id| !id.is_empty()),
        }
    }
}

impl Shape for Whoami {
    fn text(&self) -> String {
        let by = match &self.api_key_id {
            Some(id) => format!("API key {id}"),
            None => "session".to_owned(),
        };
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("tenant", self.tenant.clone()),
            ("groups", list(&self.groups)),
            ("roles", list(&self.roles)),
            ("roles on less", roles(&self.grants)),
            ("permissions", list(&self.permissions)),
            ("credential", by),
            ("context", self.context.clone()),
        ])
    }
}

/// An audit event.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    id: String,
    occurred_at: Option<DateTime<Utc>>,
    tenant: String,
    action: String,
    outcome: &'static str,
    principal_id: String,
    principal_name: String,
    api_key_id: String,
    client_ip: String,
    client_name: String,
    protocol_version: String,
    server_id: String,
    server_name: String,
    target: String,
    rule: String,
    reason: String,
    http_status: u32,
    rpc_code: i64,
    duration_us: u64,
    upstream_us: u64,
    request_bytes: u64,
    response_bytes: u64,
    request_payload: Option<Value>,
    response_payload: Option<Value>,
    revision: u64,
    proxy_id: String,
    resource: String,
    detail: Option<Value>,
}

/// JSON in a text, as JSON; a text that was cut stays a text.
fn payload(text: String) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

impl From<audit_pb::Event> for Event {
    fn from(event: audit_pb::Event) -> Self {
        Self {
            id: event.id,
            occurred_at: time(event.occurred_at),
            tenant: event.tenant,
            action: event.action,
            outcome: outcome_from_proto(event.outcome).map_or("unknown", Outcome::as_str),
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
            http_status: event.http_status,
            rpc_code: event.rpc_code,
            duration_us: event.duration_us,
            upstream_us: event.upstream_us,
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
            request_payload: payload(event.request_payload),
            response_payload: payload(event.response_payload),
            revision: event.revision,
            proxy_id: event.proxy_id,
            resource: event.resource,
            detail: payload(event.detail),
        }
    }
}

impl Event {
    fn cells(&self) -> [String; 8] {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let what = if self.target.is_empty() { &self.resource } else { &self.target };
        let why = if self.reason.is_empty() { &self.rule } else { &self.reason };
        [
            stamp(self.occurred_at),
            self.outcome.to_owned(),
            self.action.clone(),
            or_dash(&self.principal_name),
            or_dash(&self.server_name),
            or_dash(what),
            format!("{:.1}", self.duration_us as f64 / 1000.0),
            or_dash(why),
        ]
    }
}

impl Shape for Event {
    /// One line, for a trail that is followed.
    fn text(&self) -> String {
        let [at, outcome, action, who, server, what, took, why] = self.cells();
        super::clean(&format!("{at}  {outcome:<15} {action:<24} {who}  {server}  {what}  {took} ms  {why}"))
    }
}

impl Shape for [Event] {
    fn text(&self) -> String {
        columns(
            ["TIME", "OUTCOME", "ACTION", "PRINCIPAL", "SERVER", "TARGET", "MS", "RULE OR REASON"],
            self.iter().map(Event::cells),
            "There are no such events.",
        )
    }
}

/// A resource that a proxy refused.
#[derive(Debug, Serialize)]
pub(crate) struct Rejection {
    kind: String,
    name: String,
    reason: String,
}

/// What a proxy refused of a revision.
#[derive(Debug, Serialize)]
pub(crate) struct Nack {
    revision: u64,
    at: Option<DateTime<Utc>>,
    rejections: Vec<Rejection>,
}

/// A running data plane.
#[derive(Debug, Serialize)]
pub(crate) struct Proxy {
    id: String,
    pub(crate) name: String,
    group: String,
    version: String,
    pub(crate) connected: bool,
    last_seen_at: Option<DateTime<Utc>>,
    acknowledged_revision: u64,
    current_revision: u64,
    pub(crate) lag: u64,
    last_nack: Option<Nack>,
    open_streams: u64,
    spool_depth: u64,
    pub(crate) lost_records: u64,
    certificate_expires_at: Option<DateTime<Utc>>,
    denied: bool,
}

/// Whether a proxy can come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It can.
    Good,
    /// It is shut out.
    Denied,
    /// Its certificate has ended.
    Ended,
}

impl Proxy {
    /// Whether it can come in.
    pub(crate) fn standing(&self) -> Standing {
        let has_ended = self.certificate_expires_at.is_none_or(|end| end <= Utc::now());
        match (self.denied, has_ended) {
            (true, _) => Standing::Denied,
            (false, true) => Standing::Ended,
            (false, false) => Standing::Good,
        }
    }

    /// A proxy beside the current revision.
    pub(crate) fn new(proxy: proxy_pb::Proxy, current_revision: u64) -> Self {
        let nack = |nack: proxy_pb::Nack| Nack {
            revision: nack.revision,
            at: time(nack.at),
            rejections: nack
                .rejections
                .into_iter()
                .map(|proxy_pb::Rejection { kind, name, reason }| Rejection { kind, name, reason })
                .collect(),
        };
        Self {
            id: proxy.id,
            name: proxy.name,
            group: proxy.group,
            version: proxy.version,
            connected: proxy.connected,
            last_seen_at: time(proxy.last_seen_at),
            acknowledged_revision: proxy.acknowledged_revision,
            current_revision,
            lag: proxy.lag,
            last_nack: proxy.last_nack.map(nack),
            open_streams: proxy.open_streams,
            spool_depth: proxy.spool_depth,
            lost_records: proxy.lost_records,
            certificate_expires_at: time(proxy.certificate_expires_at),
            denied: proxy.denied,
        }
    }

    fn certificate(&self) -> String {
        match (self.denied, self.certificate_expires_at) {
            (true, _) => "shut out".to_owned(),
            (false, None) => "none".to_owned(),
            (false, end) => format!("until {}", stamp(end)),
        }
    }

    /// The refused resources, each on a line.
    pub(crate) fn refused(&self) -> Vec<String> {
        let rejections = self.last_nack.iter().flat_map(|nack| &nack.rejections);
        rejections.map(|one| format!("{} {}: {}", one.kind, one.name, one.reason)).collect()
    }
}

impl Shape for Proxy {
    fn text(&self) -> String {
        let refused = self.last_nack.as_ref().map(|nack| {
            format!("of revision {} at {}\n{}", nack.revision, stamp(nack.at), self.refused().join("\n"))
        });
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("group", self.group.clone()),
            ("version", self.version.clone()),
            ("connected", if self.connected { "yes" } else { "no" }.to_owned()),
            ("last seen", stamp(self.last_seen_at)),
            ("certificate", self.certificate()),
            (
                "revision",
                format!("{} of {}, {} behind", self.acknowledged_revision, self.current_revision, self.lag),
            ),
            ("refused", refused.unwrap_or_default()),
            ("open streams", self.open_streams.to_string()),
            ("audit spool", format!("{} waiting, {} lost", self.spool_depth, self.lost_records)),
        ])
    }
}

impl Shape for [Proxy] {
    fn text(&self) -> String {
        let rows = self.iter().map(|proxy| {
            [
                proxy.name.clone(),
                proxy.group.clone(),
                match (proxy.denied, proxy.connected) {
                    (true, _) => "denied",
                    (false, true) => "yes",
                    (false, false) => "no",
                }
                .to_owned(),
                since(proxy.last_seen_at),
                format!("{}/{}", proxy.acknowledged_revision, proxy.current_revision),
                proxy.lag.to_string(),
                proxy.refused().len().to_string(),
                proxy.open_streams.to_string(),
                proxy.spool_depth.to_string(),
                proxy.version.clone(),
            ]
        });
        columns(
            [
                "NAME",
                "GROUP",
                "CONNECTED",
                "SEEN",
                "REVISION",
                "LAG",
                "REFUSED",
                "STREAMS",
                "SPOOL",
                "VERSION",
            ],
            rows,
            "No proxy has connected yet.",
        )
    }
}

/// A context, without its secrets.
#[derive(Debug, Serialize)]
pub(crate) struct ContextShape {
    pub(crate) name: String,
    pub(crate) current: bool,
    pub(crate) grpc: String,
    pub(crate) http: Option<String>,
    pub(crate) mcp: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) credential: String,
    pub(crate) file: String,
}

impl Shape for ContextShape {
    fn text(&self) -> String {
        fields([
            ("name", self.name.clone()),
            ("current", if self.current { "yes" } else { "no" }.to_owned()),
            ("grpc", self.grpc.clone()),
            ("http", self.http.clone().unwrap_or_default()),
            ("mcp", self.mcp.clone().unwrap_or_default()),
            ("tenant", self.tenant.clone().unwrap_or_default()),
            ("credential", self.credential.clone()),
            ("file", self.file.clone()),
        ])
    }
}

impl Shape for [ContextShape] {
    fn text(&self) -> String {
        let rows = self.iter().map(|context| {
            [
                if context.current { "*" } else { "" }.to_owned(),
                context.name.clone(),
                context.grpc.clone(),
                context.mcp.clone().unwrap_or_default(),
                context.credential.clone(),
            ]
        });
        columns(
            ["", "NAME", "GRPC", "MCP", "CREDENTIAL"],
            rows,
            "There are no contexts. Start a Waffles with `wafflectl up`, or log in to one with `wafflectl login`.",
        )
    }
}

/// The answer of a tool.
#[derive(Debug, Serialize)]
pub(crate) struct Called {
    pub(crate) server: String,
    pub(crate) tool: String,
    pub(crate) protocol_version: Option<String>,
    pub(crate) is_error: bool,
    /// Content blocks as MCP writes them.
    pub(crate) content: Vec<Value>,
    pub(crate) structured_content: Option<Value>,
}

impl Shape for Called {
    fn text(&self) -> String {
        let field = |block: &Value, name: &str| {
            block.get(name).and_then(Value::as_str).map(str::to_owned).unwrap_or_default()
        };
        let block = |block: &Value| match field(block, "type").as_str() {
            "text" => field(block, "text"),
            kind @ ("image" | "audio") => {
                format!(
                    "[{kind} {}, {} bytes as base64]",
                    field(block, "mimeType"),
                    field(block, "data").len()
                )
            }
            "resource_link" => format!("[resource {}]", field(block, "uri")),
            "resource" => {
                let resource = block.get("resource").unwrap_or(&Value::Null);
                match resource.get("text").and_then(Value::as_str) {
                    Some(text) => text.to_owned(),
                    None => format!("[resource {}]", field(resource, "uri")),
                }
            }
            _ => block.to_string(),
        };
        let mut parts: Vec<String> = self.content.iter().map(block).collect();
        if let (true, Some(structured)) = (parts.is_empty(), &self.structured_content) {
            parts.push(format!("{structured:#}"));
        }
        let text = parts.join("\n");
        if super::is_terminal() { clean_lines(&text) } else { text }
    }
}

/// One check of `doctor`.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// `ok`, `warning`, `failed` or `skipped`.
    pub(crate) status: &'static str,
    pub(crate) detail: String,
    pub(crate) next_step: Option<String>,
}

impl Shape for [Check] {
    fn text(&self) -> String {
        let lines: Vec<String> = self
            .iter()
            .map(|check| {
                let next = check.next_step.as_ref().map(|next| format!("\n            → {next}"));
                let text = format!("{:<9} {}: {}", check.status, check.name, check.detail);
                clean_lines(&format!("{text}{}", next.unwrap_or_default()))
            })
            .collect();
        lines.join("\n")
    }
}

/// The two versions that matter.
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
}

impl Shape for Version {
    fn text(&self) -> String {
        format!("wafflectl {}", self.version)
    }
}

/// A Waffles that `up` started.
#[derive(Debug, Serialize)]
pub(crate) struct Up {
    pub(crate) mcp: String,
    pub(crate) http: String,
    pub(crate) grpc: String,
    pub(crate) admin_ports: AdminPorts,
    pub(crate) admin: Admin,
    pub(crate) api_key: Option<String>,
    pub(crate) context: String,
    /// Only where there are some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stdio: Vec<StdioProgram>,
}

/// Where the two planes show their state.
#[derive(Debug, Serialize)]
pub(crate) struct AdminPorts {
    pub(crate) data_plane: String,
    pub(crate) control_plane: String,
}

/// The first account.
#[derive(Debug, Serialize)]
pub(crate) struct Admin {
    pub(crate) email: String,
    pub(crate) password: Option<String>,
}

#[cfg(test)]
mod tests;
