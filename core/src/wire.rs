//! The domain to and from protobuf, side by side, and an update applied to a snapshot. What arrives is
//! checked resource by resource: the sound ones are taken, the others refused by name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;
use waffles_proto::{
    audit::v1 as audit_pb, auth::v1 as auth_pb, discovery::v1 as pb, registry::v1 as registry_pb,
};

use crate::FieldError;
use crate::audit::{Event, Outcome};
use crate::credential::{ApiKey, ApiKeyParts, KeyHash, KeyLimits};
use crate::health::{Check, HealthPolicy, State};
use crate::namespace::NamespaceEntry;
use crate::policy::Permission;
use crate::principal::{Principal, PrincipalKind};
use crate::seal::{SealKey, SealRing};
use crate::server::{
    AuditMode, Capture, Credential, Endpoint, Marks, Server, Spec, Timeouts, ToolFilter, ToolMark, ToolSet,
    Transport,
};
use crate::snapshot::{Kind, ResourceKey, ServerEntry, Settings, Snapshot, TokenKey};

// === Small parts ===

/// A time on the wire.
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    // `timestamp_subsec_nanos` is below 2e9, also within a leap second.
    Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0) }
}

/// A time from the wire; none where it is absent or out of range.
pub fn time(timestamp: Option<Timestamp>) -> Option<DateTime<Utc>> {
    let Timestamp { seconds, nanos } = timestamp?;
    DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?)
}

/// A span of time on the wire.
pub fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

fn duration_or(value: Option<prost_types::Duration>, default: Duration) -> Duration {
    value.map_or(default, |d| Duration::try_from(d).unwrap_or(Duration::ZERO))
}

// === Servers ===

/// A specification on the wire, with the credential; `show_secrets` only towards proxies.
pub fn spec_to_proto(spec: &Spec, credential: &Credential, show_secrets: bool) -> registry_pb::ServerSpec {
    registry_pb::ServerSpec {
        name: spec.name.clone(),
        description: spec.description.clone(),
        tags: spec.tags.clone(),
        transport: match spec.transport {
            Transport::Auto => registry_pb::Transport::Auto,
            Transport::StreamableHttp => registry_pb::Transport::StreamableHttp,
            Transport::Sse => registry_pb::Transport::Sse,
        }
        .into(),
        endpoints: spec
            .endpoints
            .iter()
            .map(|e| registry_pb::Endpoint {
                url: e.url.to_string(),
                weight: e.weight.into(),
                zone: e.zone.clone(),
            })
            .collect(),
        credential: Some(credential_to_proto(credential, show_secrets)),
        timeouts: Some(registry_pb::Timeouts {
            connect: Some(duration(spec.timeouts.connect)),
            first_byte: Some(duration(spec.timeouts.first_byte)),
            idle: Some(duration(spec.timeouts.idle)),
            total: Some(duration(spec.timeouts.total)),
        }),
        tools: Some(registry_pb::ToolFilter {
            allow: spec.tools.allow.clone(),
            deny: spec.tools.deny.clone(),
        }),
        audit: match spec.audit {
            AuditMode::Count => registry_pb::AuditMode::Count,
            AuditMode::Strict => registry_pb::AuditMode::Strict,
        }
        .into(),
        capture: match spec.capture {
            Capture::None => registry_pb::Capture::None,
            Capture::Metadata => registry_pb::Capture::Metadata,
            Capture::Full => registry_pb::Capture::Full,
        }
        .into(),
        redact: spec.redact.clone(),
        methods: spec.methods.clone(),
        health: Some(health_to_proto(&spec.health)),
        marks: spec.marks.iter().map(mark_to_proto).collect(),
        groups: spec.groups.clone(),
        resilience: Some(resilience::to_proto(&spec.resilience)),
    }
}

/// A health policy on the wire.
pub fn health_to_proto(policy: &HealthPolicy) -> registry_pb::HealthPolicy {
    registry_pb::HealthPolicy {
        check: match policy.check {
            Check::Handshake => registry_pb::HealthCheck::Handshake,
            Check::Tools => registry_pb::HealthCheck::Tools,
            Check::Off => registry_pb::HealthCheck::Off,
        }
        .into(),
        interval: Some(duration(policy.interval)),
        timeout: Some(duration(policy.timeout)),
        jitter_percent: Some(policy.jitter.into()),
        fall: policy.fall.into(),
        rise: policy.rise.into(),
        proxies: policy.proxies.into(),
    }
}

fn health_from_proto(message: registry_pb::HealthPolicy, problems: &mut Vec<FieldError>) -> HealthPolicy {
    let defaults = HealthPolicy::default();
    // What does not fit is no sound value either, and is refused with the others.
    let small = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    let or = |value: u32, default: u8| if value == 0 { default } else { small(value) };
    HealthPolicy {
        check: match registry_pb::HealthCheck::try_from(message.check) {
            Ok(registry_pb::HealthCheck::Unspecified | registry_pb::HealthCheck::Handshake) => {
                Check::Handshake
            }
            Ok(registry_pb::HealthCheck::Tools) => Check::Tools,
            Ok(registry_pb::HealthCheck::Off) => Check::Off,
            Err(_) => {
                problems.push(FieldError::new("health.check", "is not a value this version knows"));
                Check::Off
            }
        },
        interval: duration_or(message.interval, defaults.interval),
        timeout: duration_or(message.timeout, defaults.timeout),
        jitter: message.jitter_percent.map_or(defaults.jitter, small),
        fall: or(message.fall, defaults.fall),
        rise: or(message.rise, defaults.rise),
        proxies: or(message.proxies, defaults.proxies),
    }
}

/// A state on the wire.
pub fn state_to_proto(state: State) -> registry_pb::HealthState {
    match state {
        State::Up => registry_pb::HealthState::Up,
        State::Degraded => registry_pb::HealthState::Degraded,
        State::Down => registry_pb::HealthState::Down,
        State::Unknown => registry_pb::HealthState::Unknown,
    }
}

/// A state from the wire; unknown where this version does not know it.
pub fn state_from_proto(state: i32) -> State {
    match registry_pb::HealthState::try_from(state) {
        Ok(registry_pb::HealthState::Up) => State::Up,
        Ok(registry_pb::HealthState::Degraded) => State::Degraded,
        Ok(registry_pb::HealthState::Down) => State::Down,
        Ok(registry_pb::HealthState::Unknown | registry_pb::HealthState::Unspecified) | Err(_) => {
            State::Unknown
        }
    }
}

fn mark_to_proto(mark: &ToolMark) -> registry_pb::ToolMark {
    let Marks { read_only, destructive, idempotent, open_world } = mark.marks;
    registry_pb::ToolMark { pattern: mark.pattern.clone(), read_only, destructive, idempotent, open_world }
}

fn mark_from_proto(message: registry_pb::ToolMark) -> ToolMark {
    let registry_pb::ToolMark { pattern, read_only, destructive, idempotent, open_world } = message;
    ToolMark { pattern, marks: Marks { read_only, destructive, idempotent, open_world } }
}

/// A specification from the wire, checked; the credential is none where the message has none.
pub fn spec_from_proto(
    message: registry_pb::ServerSpec,
) -> Result<(Spec, Option<Credential>), Vec<FieldError>> {
    let mut problems = Vec::new();
    let mut endpoints = Vec::new();
    for (i, endpoint) in message.endpoints.iter().enumerate() {
        match Url::parse(&endpoint.url) {
            Ok(url) => {
                let weight = u16::try_from(endpoint.weight.max(1)).unwrap_or(u16::MAX);
                endpoints.push(Endpoint { url, weight, zone: endpoint.zone.clone() });
            }
            Err(error) => problems.push(FieldError::new(format!("endpoints[{i}].url"), error.to_string())),
        }
    }
    let defaults = Timeouts::default();
    let timeouts = message.timeouts.unwrap_or_default();
    let tools = message.tools.unwrap_or_default();
    let credential = message.credential.and_then(|c| credential_from_proto(c, &mut problems));
    let health = health_from_proto(message.health.unwrap_or_default(), &mut problems);
    let mut unknown =
        |field: &str| problems.push(FieldError::new(field, "is not a value this version knows"));
    let spec = Spec {
        name: message.name,
        description: message.description,
        tags: message.tags,
        transport: match registry_pb::Transport::try_from(message.transport) {
            Ok(registry_pb::Transport::Unspecified | registry_pb::Transport::Auto) => Transport::Auto,
            Ok(registry_pb::Transport::StreamableHttp) => Transport::StreamableHttp,
            Ok(registry_pb::Transport::Sse) => Transport::Sse,
            Err(_) => {
                unknown("transport");
                Transport::Auto
            }
        },
        endpoints,
        timeouts: Timeouts {
            connect: duration_or(timeouts.connect, defaults.connect),
            first_byte: duration_or(timeouts.first_byte, defaults.first_byte),
            idle: duration_or(timeouts.idle, defaults.idle),
            total: duration_or(timeouts.total, defaults.total),
        },
        tools: ToolFilter { allow: tools.allow, deny: tools.deny },
        audit: match registry_pb::AuditMode::try_from(message.audit) {
            Ok(registry_pb::AuditMode::Unspecified | registry_pb::AuditMode::Count) => AuditMode::Count,
            Ok(registry_pb::AuditMode::Strict) => AuditMode::Strict,
            Err(_) => {
                unknown("audit");
                AuditMode::Strict
            }
        },
        capture: match registry_pb::Capture::try_from(message.capture) {
            Ok(registry_pb::Capture::Unspecified | registry_pb::Capture::None) => Capture::None,
            Ok(registry_pb::Capture::Metadata) => Capture::Metadata,
            Ok(registry_pb::Capture::Full) => Capture::Full,
            Err(_) => {
                unknown("capture");
                Capture::None
            }
        },
        redact: message.redact,
        methods: message.methods,
        marks: message.marks.into_iter().map(mark_from_proto).collect(),
        groups: message.groups,
        resilience: resilience::from_proto(message.resilience.unwrap_or_default()),
        health,
    };
    // An endpoint that could not be read was named above; the rest of the check must not complain of its absence.
    let mut rest = spec.problems();
    if !problems.is_empty() {
        rest.retain(|p| p.field != "endpoints");
    }
    problems.extend(rest);
    problems.extend(credential.iter().flat_map(Credential::problems));
    if problems.is_empty() { Ok((spec, credential)) } else { Err(problems) }
}

fn credential_to_proto(credential: &Credential, show_secrets: bool) -> registry_pb::Credential {
    use registry_pb::credential::Kind as Pb;
    let show = |secret: &SecretString| {
        if show_secrets { secret.expose_secret().to_owned() } else { String::new() }
    };
    let kind = match credential {
        Credential::None => Pb::None(registry_pb::NoCredential {}),
        Credential::Bearer { token } => Pb::Bearer(registry_pb::BearerCredential { token: show(token) }),
        Credential::Basic { username, password } => {
            Pb::Basic(registry_pb::BasicCredential { username: username.clone(), password: show(password) })
        }
        Credential::Header { name, value } => {
            Pb::Header(registry_pb::HeaderCredential { name: name.clone(), value: show(value) })
        }
    };
    registry_pb::Credential { kind: Some(kind) }
}

fn credential_from_proto(
    message: registry_pb::Credential,
    problems: &mut Vec<FieldError>,
) -> Option<Credential> {
    use registry_pb::credential::Kind as Pb;
    match message.kind {
        Some(Pb::None(_)) => Some(Credential::None),
        Some(Pb::Bearer(bearer)) => Some(Credential::Bearer { token: bearer.token.into() }),
        Some(Pb::Basic(basic)) => {
            Some(Credential::Basic { username: basic.username, password: basic.password.into() })
        }
        Some(Pb::Header(header)) => {
            Some(Credential::Header { name: header.name.to_ascii_lowercase(), value: header.value.into() })
        }
        None => {
            problems.push(FieldError::new("credential", "is of a kind this version does not know"));
            None
        }
    }
}

/// A server on the wire; `show_secrets` only towards proxies.
pub fn server_to_proto(server: &Server, show_secrets: bool) -> registry_pb::Server {
    registry_pb::Server {
        id: server.id.to_string(),
        tenant: server.tenant.clone(),
        spec: Some(spec_to_proto(&server.spec, &server.credential, show_secrets)),
        enabled: server.enabled,
        version: server.version,
        created_at: Some(timestamp(server.created_at)),
        updated_at: Some(timestamp(server.updated_at)),
        seen: Vec::new(),
        health: None,
    }
}

/// A server from the wire, with its secrets. The error is the first thing wrong with it.
pub fn server_from_proto(message: registry_pb::Server) -> Result<Server, String> {
    let spec = message.spec.ok_or("spec: is missing")?;
    let (spec, credential) = spec_from_proto(spec).map_err(|problems| join(&problems))?;
    Ok(Server {
        id: message.id.parse().map_err(|_| "id: is not a UUID")?,
        tenant: message.tenant,
        spec,
        credential: credential.ok_or("credential: is missing")?,
        enabled: message.enabled,
        version: message.version,
        created_at: time(message.created_at).ok_or("created_at: is missing")?,
        updated_at: time(message.updated_at).ok_or("updated_at: is missing")?,
    })
}

fn join(problems: &[FieldError]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

// === Principals and keys ===

/// Who a principal is, on the wire.
pub fn principal_to_proto(principal: &Principal) -> auth_pb::Principal {
    auth_pb::Principal {
        id: principal.id.to_string(),
        tenant: principal.tenant.clone(),
        name: principal.name.clone(),
        roles: principal.roles.clone(),
        kind: principal.kind.as_str().to_owned(),
        groups: principal.groups.clone(),
        grants: principal.grants.iter().map(access::held_to_proto).collect(),
    }
}

fn principal_from_proto(message: pb::Principal) -> Result<Principal, String> {
    let who = message.principal.ok_or("principal: is missing")?;
    Ok(Principal {
        id: who.id.parse().map_err(|_| "id: is not a UUID")?,
        tenant: who.tenant,
        name: who.name,
        kind: PrincipalKind::parse(&who.kind).unwrap_or_default(),
        groups: who.groups,
        roles: who.roles,
        grants: who.grants.into_iter().filter_map(access::held_from_proto).collect(),
        custom: Vec::new(),
        active: message.active,
        tokens_not_before: time(message.tokens_not_before),
    })
}

/// What narrows a key, on the wire.
pub fn limits_to_proto(limits: &KeyLimits) -> auth_pb::KeyLimits {
    auth_pb::KeyLimits {
        scopes: limits.scopes.iter().map(|p| p.as_str().to_owned()).collect(),
        servers: limits.servers.clone(),
        tools: limits.tools.clone(),
        ip_ranges: limits.ip_ranges.iter().map(ToString::to_string).collect(),
        read_only: limits.read_only,
        namespaces: limits.namespaces.clone(),
    }
}

/// What narrows a key, from the wire, checked.
pub fn limits_from_proto(message: auth_pb::KeyLimits) -> Result<KeyLimits, Vec<FieldError>> {
    let mut problems = Vec::new();
    let mut limits = KeyLimits {
        servers: message.servers,
        tools: message.tools,
        read_only: message.read_only,
        namespaces: message.namespaces,
        ..KeyLimits::default()
    };
    for (i, scope) in message.scopes.iter().enumerate() {
        match Permission::parse(scope) {
            Some(permission) => limits.scopes.push(permission),
            None => problems.push(FieldError::new(format!("limits.scopes[{i}]"), "is not a permission")),
        }
    }
    for (i, range) in message.ip_ranges.iter().enumerate() {
        match range.parse().or_else(|_| range.parse::<IpAddr>().map(Into::into)) {
            Ok(range) => limits.ip_ranges.push(range),
            Err(_) => {
                problems.push(FieldError::new(format!("limits.ip_ranges[{i}]"), "is not an address or range"))
            }
        }
    }
    for (i, server) in limits.servers.iter().enumerate() {
        if !crate::is_dns_label(server) {
            problems.push(FieldError::new(format!("limits.servers[{i}]"), "is not a server name"));
        }
    }
    for (i, namespace) in limits.namespaces.iter().enumerate() {
        if !crate::is_dns_label(namespace) {
            problems.push(FieldError::new(format!("limits.namespaces[{i}]"), "is not a namespace's name"));
        }
    }
    for (i, tool) in limits.tools.iter().enumerate() {
        if !crate::server::is_pattern(tool) {
            problems.push(FieldError::new(format!("limits.tools[{i}]"), "is not a tool name or pattern"));
        }
    }
    for (field, count) in [
        ("scopes", limits.scopes.len()),
        ("servers", limits.servers.len()),
        ("tools", limits.tools.len()),
        ("ip_ranges", limits.ip_ranges.len()),
        ("namespaces", limits.namespaces.len()),
    ] {
        if count > 100 {
            problems.push(FieldError::new(format!("limits.{field}"), "must be at most 100"));
        }
    }
    if problems.is_empty() { Ok(limits) } else { Err(problems) }
}

/// A key on the wire, without its secret.
pub fn key_to_proto(key: &ApiKey, owner_name: &str) -> auth_pb::ApiKey {
    auth_pb::ApiKey {
        id: key.id.clone(),
        tenant: key.tenant.clone(),
        name: key.name.clone(),
        owner_id: key.owner.to_string(),
        owner_name: owner_name.to_owned(),
        limits: Some(limits_to_proto(&key.limits)),
        created_at: Some(timestamp(key.created_at)),
        expires_at: key.expires_at.map(timestamp),
        revoked_at: key.revoked_at.map(timestamp),
        not_after: key.not_after.map(timestamp),
        // How it is used is no part of what a key is; whoever knows adds it.
        last_used_at: None,
    }
}

/// An API key from the wire. The error is the first thing wrong with it: such a key counts as absent.
pub fn key_from_proto(message: pb::ApiKey) -> Result<(KeyHash, ApiKey), String> {
    let key = message.api_key.ok_or("api_key: is missing")?;
    let hash = message.hash.try_into().map_err(|_| "hash: is not 32 bytes")?;
    // An end that is present but cannot be read must not become "no end".
    for (field, given) in
        [("expires_at", key.expires_at), ("revoked_at", key.revoked_at), ("not_after", key.not_after)]
    {
        if given.is_some() && time(given).is_none() {
            return Err(format!("{field}: is out of range"));
        }
    }
    let key = ApiKey::compile(ApiKeyParts {
        id: key.id,
        tenant: key.tenant,
        name: key.name,
        owner: key.owner_id.parse().map_err(|_| "owner_id: is not a UUID")?,
        limits: limits_from_proto(key.limits.unwrap_or_default()).map_err(|problems| join(&problems))?,
        created_at: time(key.created_at).ok_or("created_at: is missing")?,
        expires_at: time(key.expires_at),
        revoked_at: time(key.revoked_at),
        not_after: time(key.not_after),
    })
    .map_err(|pattern| format!("limits.tools: cannot read {pattern}"))?;
    Ok((hash, key))
}

// === Discovery resources ===

/// A server as a resource.
pub fn server_resource(server: &Server) -> pb::Resource {
    resource(server.id.to_string(), pb::resource::Kind::Server(server_to_proto(server, true)))
}

/// A principal as a resource.
pub fn principal_resource(principal: &Principal) -> pb::Resource {
    let message = pb::Principal {
        principal: Some(principal_to_proto(principal)),
        active: principal.active,
        tokens_not_before: principal.tokens_not_before.map(timestamp),
    };
    resource(principal.id.to_string(), pb::resource::Kind::Principal(message))
}

/// An API key as a resource.
pub fn key_resource(key: &ApiKey, hash: &KeyHash) -> pb::Resource {
    resource(key.id.clone(), pb::resource::Kind::ApiKey(found_key(key, hash)))
}

/// An API key as a proxy needs it.
pub fn found_key(key: &ApiKey, hash: &KeyHash) -> pb::ApiKey {
    pb::ApiKey { api_key: Some(key_to_proto(key, "")), hash: hash.to_vec() }
}

/// A token key as a resource.
pub fn token_key_resource(key: &TokenKey) -> pb::Resource {
    let message = pb::TokenKey { kid: key.kid.clone(), public_key: key.public_key.to_vec() };
    resource(key.kid.clone(), pb::resource::Kind::TokenKey(message))
}

/// The settings as a resource.
pub fn settings_resource(settings: &Settings) -> pb::Resource {
    let message = pb::Settings {
        api_key_pepper: settings.pepper_bytes.to_vec(),
        seal_keys: settings
            .seal
            .keys()
            .iter()
            .map(|key| pb::SealKey { id: key.id().into(), key: key.expose().to_vec() })
            .collect(),
        token_issuer: settings.token_issuer.clone(),
        token_audience: settings.token_audience.clone(),
        closed: settings.closed.iter().map(ToString::to_string).collect(),
        keys_on_demand: settings.keys_on_demand,
    };
    resource("settings".into(), pb::resource::Kind::Settings(message))
}

fn resource(id: String, kind: pb::resource::Kind) -> pb::Resource {
    pb::Resource { id, kind: Some(kind) }
}

fn settings_from_proto(message: pb::Settings) -> Result<Settings, String> {
    let pepper = message.api_key_pepper.try_into().map_err(|_| "api_key_pepper: is not 32 bytes")?;
    let mut keys = Vec::new();
    for key in message.seal_keys {
        let id = u8::try_from(key.id).ok().filter(|id| *id > 0).ok_or("seal_keys: an id is not 1 to 255")?;
        let bytes: [u8; 32] = key.key.try_into().map_err(|_| "seal_keys: a key is not 32 bytes")?;
        keys.push(SealKey::new(id, &bytes));
    }
    if keys.is_empty() {
        return Err("seal_keys: must not be empty".into());
    }
    let closed = message.closed.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    let closed = closed.map_err(|_| "closed: holds what is no address and port")?;
    let settings = Settings::new(pepper, SealRing::new(keys), message.token_issuer, message.token_audience);
    Ok(Settings { keys_on_demand: message.keys_on_demand, ..settings.closing(closed) })
}

/// The name of a resource on the wire.
pub fn reference(key: &ResourceKey) -> pb::ResourceRef {
    let kind = match key.kind {
        Kind::Server => pb::ResourceKind::Server,
        Kind::Principal => pb::ResourceKind::Principal,
        Kind::ApiKey => pb::ResourceKind::ApiKey,
        Kind::TokenKey => pb::ResourceKind::TokenKey,
        Kind::Settings => pb::ResourceKind::Settings,
        Kind::Namespace => pb::ResourceKind::Namespace,
        Kind::Role => pb::ResourceKind::Role,
        Kind::Rule => pb::ResourceKind::Rule,
        Kind::Session => pb::ResourceKind::Session,
        Kind::Limit => pb::ResourceKind::Limit,
        Kind::Checks => pb::ResourceKind::Checks,
    };
    pb::ResourceRef { kind: kind.into(), id: key.id.clone() }
}

/// The name of a resource from the wire; none for a kind that this program does not know.
pub fn resource_key(reference: &pb::ResourceRef) -> Option<ResourceKey> {
    let kind = match pb::ResourceKind::try_from(reference.kind).ok()? {
        pb::ResourceKind::Server => Kind::Server,
        pb::ResourceKind::Principal => Kind::Principal,
        pb::ResourceKind::ApiKey => Kind::ApiKey,
        pb::ResourceKind::TokenKey => Kind::TokenKey,
        pb::ResourceKind::Settings => Kind::Settings,
        pb::ResourceKind::Namespace => Kind::Namespace,
        pb::ResourceKind::Role => Kind::Role,
        pb::ResourceKind::Rule => Kind::Rule,
        pb::ResourceKind::Session => Kind::Session,
        pb::ResourceKind::Limit => Kind::Limit,
        pb::ResourceKind::Checks => Kind::Checks,
        pb::ResourceKind::Unspecified => return None,
    };
    Some(ResourceKey::new(kind, reference.id.clone()))
}

/// The key under which a resource stands; none for a kind that this program does not know.
pub fn key_of(resource: &pb::Resource) -> Option<ResourceKey> {
    let kind = match resource.kind.as_ref()? {
        pb::resource::Kind::Server(_) => Kind::Server,
        pb::resource::Kind::Principal(_) => Kind::Principal,
        pb::resource::Kind::ApiKey(_) => Kind::ApiKey,
        pb::resource::Kind::TokenKey(_) => Kind::TokenKey,
        pb::resource::Kind::Settings(_) => Kind::Settings,
        pb::resource::Kind::Namespace(_) => Kind::Namespace,
        pb::resource::Kind::Role(_) => Kind::Role,
        pb::resource::Kind::Rule(_) => Kind::Rule,
        pb::resource::Kind::Session(_) => Kind::Session,
        pb::resource::Kind::Limit(_) => Kind::Limit,
        pb::resource::Kind::Checks(_) => Kind::Checks,
    };
    Some(ResourceKey::new(kind, resource.id.clone()))
}

// === Snapshots ===

/// A refused resource, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which; none when its kind is unknown.
    pub key: Option<ResourceKey>,
    /// Why.
    pub reason: String,
}

/// A whole update, its chunks put together.
#[derive(Debug, Default)]
pub struct Update {
    /// The store that the revision counts in.
    pub lineage: String,
    /// The revision after the update.
    pub revision: u64,
    /// The update holds the whole state.
    pub full: bool,
    /// New and changed resources.
    pub resources: Vec<pb::Resource>,
    /// Resources that are gone.
    pub removed: Vec<pb::ResourceRef>,
}

impl Update {
    /// Whether a snapshot would be the same after it.
    pub fn is_nothing_after(&self, held: &Snapshot) -> bool {
        let same = self.lineage == held.lineage && self.revision == held.revision;
        same && !self.full && self.resources.is_empty() && self.removed.is_empty()
    }
}

impl Snapshot {
    /// The snapshot after an update, and what of the update was refused. A removal is always applied. A refused
    /// server or limit keeps its last good form; a refused principal, key, role or namespace counts as absent, so that a
    /// right that cannot be read is no right; a refused rule that forbids goes on forbidding all that it may be about;
    /// refused settings keep the last good ones.
    pub fn with_update(&self, update: Update) -> (Snapshot, Vec<Refusal>) {
        let mut next = self.draft();
        if update.full {
            next = Snapshot::default();
            next.settings.clone_from(&self.settings);
        }
        next.lineage = update.lineage;
        next.revision = update.revision;
        if let Some(found) = &next.found {
            found.advance(next.revision);
        }
        for reference in &update.removed {
            if let Some(key) = resource_key(reference) {
                next.remove(&key);
            }
        }
        let mut refusals = Vec::new();
        for resource in update.resources {
            let Some(key) = key_of(&resource) else {
                refusals.push(Refusal {
                    key: None,
                    reason: format!("{}: unknown kind of resource", resource.id),
                });
                continue;
            };
            match next.put(resource) {
                Ok(()) => {
                    next.refused.remove(&key);
                }
                Err(reason) => {
                    match key.kind {
                        Kind::Server => next.keep_server(self, &key),
                        Kind::Limit => next.keep_limit(self, &key),
                        Kind::Principal | Kind::ApiKey | Kind::TokenKey | Kind::Namespace | Kind::Role => {
                            next.remove(&key)
                        }
                        // What stands for a refused rule was put in its place.
                        Kind::Settings | Kind::Rule | Kind::Session | Kind::Checks => {}
                    }
                    next.refused.insert(key.clone());
                    refusals.push(Refusal { key: Some(key), reason });
                }
            }
        }
        (next.index(), refusals)
    }

    fn keep_server(&mut self, last: &Snapshot, key: &ResourceKey) {
        if let Ok(id) = key.id.parse::<Uuid>()
            && let Some(entry) = last.servers.get(&id)
        {
            self.servers.insert(id, Arc::clone(entry));
        }
    }

    /// What cannot be read was meant to limit something: the last good form goes on doing so.
    fn keep_limit(&mut self, last: &Snapshot, key: &ResourceKey) {
        if let Ok(id) = key.id.parse::<Uuid>()
            && let Some(limit) = last.limits.get(&id)
        {
            self.limits.insert(id, Arc::clone(limit));
        }
    }

    fn put(&mut self, resource: pb::Resource) -> Result<(), String> {
        let pb::Resource { id, kind } = resource;
        let same = |found: &str| {
            if found == id { Ok(()) } else { Err("id: differs from the resource's".to_owned()) }
        };
        match kind.ok_or("kind: is missing")? {
            pb::resource::Kind::Server(message) => {
                let server = server_from_proto(message)?;
                same(&server.id.to_string())?;
                let tools =
                    ToolSet::compile(&server.spec.tools).map_err(|p| format!("tools: cannot read {p}"))?;
                self.servers.insert(server.id, Arc::new(ServerEntry { server, tools }));
            }
            pb::resource::Kind::Principal(message) => {
                let principal = principal_from_proto(message)?;
                same(&principal.id.to_string())?;
                self.principals.insert(principal.id, Arc::new(principal));
            }
            pb::resource::Kind::ApiKey(message) => {
                let (hash, key) = key_from_proto(message)?;
                same(&key.id)?;
                self.keys.insert(key.id.clone(), (hash, Arc::new(key)));
            }
            pb::resource::Kind::TokenKey(message) => {
                same(&message.kid)?;
                let public_key = message.public_key.try_into().map_err(|_| "public_key: is not 32 bytes")?;
                self.token_keys.insert(id, TokenKey { kid: message.kid, public_key });
            }
            pb::resource::Kind::Namespace(message) => {
                let namespace = namespace_from_proto(message)?;
                same(&namespace.id.to_string())?;
                let entry = NamespaceEntry::compile(namespace)
                    .map_err(|pattern| format!("expose: cannot read {pattern}"))?;
                self.namespaces.insert(entry.namespace.id, Arc::new(entry));
            }
            pb::resource::Kind::Role(message) => {
                let role = role_from_proto(message)?;
                same(&role.id.to_string())?;
                self.roles.insert(role.id, Arc::new(role));
            }
            pb::resource::Kind::Rule(message) => {
                same(&message.id)?;
                let rule_id: Uuid = id.parse().map_err(|_| "id: is not a UUID")?;
                let (rule, refused) = match access::rule_from_proto(message) {
                    Ok(rule) => (Some(rule), None),
                    Err((reason, standing)) => (standing, Some(reason)),
                };
                match rule {
                    Some(rule) => self.rules.insert(rule_id, rule),
                    None => self.rules.remove(&rule_id),
                };
                if let Some(reason) = refused {
                    return Err(reason);
                }
            }
            pb::resource::Kind::Session(_) => {
                self.sessions.insert(id.parse().map_err(|_| "id: is not a UUID")?);
            }
            pb::resource::Kind::Limit(message) => {
                same(&message.id)?;
                let limit = limits::limit_from_proto(message)?;
                self.limits.insert(limit.limit.id, limit);
            }
            // Taken out before: what to check is no part of what calls are served from.
            pb::resource::Kind::Checks(_) => {}
            pb::resource::Kind::Settings(message) => {
                self.settings = Some(Arc::new(settings_from_proto(message)?));
            }
        }
        Ok(())
    }

    /// The whole snapshot as one update, for the disk.
    pub fn to_update(&self) -> pb::StreamResponse {
        let mut resources: Vec<pb::Resource> = Vec::new();
        resources.extend(self.settings.iter().map(|s| settings_resource(s)));
        resources.extend(self.token_keys.values().map(token_key_resource));
        resources.extend(self.principals.values().map(|p| principal_resource(p)));
        resources.extend(self.keys.values().map(|(hash, key)| key_resource(key, hash)));
        resources.extend(self.servers.values().map(|entry| server_resource(&entry.server)));
        resources.extend(self.namespaces.values().map(|entry| namespace_resource(&entry.namespace)));
        resources.extend(self.roles.values().map(|role| role_resource(role)));
        resources.extend(self.rules.values().map(|rule| rule_resource(&rule.rule)));
        resources.extend(self.sessions.iter().map(|session| session_resource(*session)));
        resources.extend(self.limits.values().map(|limit| limit_resource(&limit.limit)));
        pb::StreamResponse {
            lineage: self.lineage.clone(),
            revision: self.revision,
            nonce: String::new(),
            full: true,
            resources,
            removed: Vec::new(),
            last: true,
            authorities: Vec::new(),
            orders: Vec::new(),
        }
    }
}

impl From<pb::StreamResponse> for Update {
    fn from(message: pb::StreamResponse) -> Self {
        let pb::StreamResponse { lineage, revision, full, resources, removed, .. } = message;
        Self { lineage, revision, full, resources, removed }
    }
}

// === Audit events ===

/// An event on the wire.
pub fn event_to_proto(event: Event) -> audit_pb::Event {
    // Written by hand, since one is made for every call and formatting costs as much as all the rest of it.
    let text = |id: Uuid| id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned();
    let id = |id: Option<Uuid>| id.map(text).unwrap_or_default();
    audit_pb::Event {
        id: text(event.id),
        tenant: event.tenant,
        occurred_at: Some(timestamp(event.occurred_at)),
        action: event.action,
        outcome: outcome_to_proto(event.outcome).into(),
        principal_id: id(event.principal_id),
        principal_name: event.principal_name,
        api_key_id: event.api_key_id,
        client_ip: event.client_ip,
        client_name: event.client_name,
        protocol_version: event.protocol_version,
        server_id: id(event.server_id),
        server_name: event.server_name,
        target: event.target,
        rule: event.rule,
        reason: event.reason,
        http_status: event.http_status.into(),
        rpc_code: event.rpc_code,
        duration_us: event.duration_us,
        upstream_us: event.upstream_us,
        request_bytes: event.request_bytes,
        response_bytes: event.response_bytes,
        request_payload: event.request_payload,
        response_payload: event.response_payload,
        revision: event.revision,
        proxy_id: id(event.proxy_id),
        resource: event.resource,
        detail: event.detail,
    }
}

/// An event from the wire. The error says what makes it unusable.
pub fn event_from_proto(message: audit_pb::Event) -> Result<Event, String> {
    let id = |field: &str, id: &str| match id {
        "" => Ok(None),
        id => id.parse::<Uuid>().map(Some).map_err(|_| format!("{field}: is not a UUID")),
    };
    Ok(Event {
        id: message.id.parse().map_err(|_| "id: is not a UUID")?,
        tenant: message.tenant,
        occurred_at: time(message.occurred_at).map(crate::audit::micros).ok_or("occurred_at: is missing")?,
        action: message.action,
        outcome: outcome_from_proto(message.outcome).ok_or("outcome: is unknown")?,
        principal_id: id("principal_id", &message.principal_id)?,
        principal_name: message.principal_name,
        api_key_id: message.api_key_id,
        client_ip: message.client_ip,
        client_name: message.client_name,
        protocol_version: message.protocol_version,
        server_id: id("server_id", &message.server_id)?,
        server_name: message.server_name,
        target: message.target,
        rule: message.rule,
        reason: message.reason,
        http_status: u16::try_from(message.http_status).map_err(|_| "http_status: is out of range")?,
        rpc_code: message.rpc_code,
        duration_us: message.duration_us,
        upstream_us: message.upstream_us,
        request_bytes: message.request_bytes,
        response_bytes: message.response_bytes,
        request_payload: message.request_payload,
        response_payload: message.response_payload,
        revision: message.revision,
        proxy_id: id("proxy_id", &message.proxy_id)?,
        resource: message.resource,
        detail: message.detail,
    })
}

/// An outcome on the wire.
pub fn outcome_to_proto(outcome: Outcome) -> audit_pb::Outcome {
    match outcome {
        Outcome::Ok => audit_pb::Outcome::Ok,
        Outcome::Error => audit_pb::Outcome::Error,
        Outcome::Unauthenticated => audit_pb::Outcome::Unauthenticated,
        Outcome::Denied => audit_pb::Outcome::Denied,
        Outcome::Invalid => audit_pb::Outcome::Invalid,
        Outcome::UpstreamFailed => audit_pb::Outcome::UpstreamFailed,
        Outcome::Cancelled => audit_pb::Outcome::Cancelled,
        Outcome::Shed => audit_pb::Outcome::Shed,
        Outcome::Internal => audit_pb::Outcome::Internal,
    }
}

/// An outcome from the wire.
pub fn outcome_from_proto(outcome: i32) -> Option<Outcome> {
    Some(match audit_pb::Outcome::try_from(outcome).ok()? {
        audit_pb::Outcome::Unspecified => return None,
        audit_pb::Outcome::Ok => Outcome::Ok,
        audit_pb::Outcome::Error => Outcome::Error,
        audit_pb::Outcome::Unauthenticated => Outcome::Unauthenticated,
        audit_pb::Outcome::Denied => Outcome::Denied,
        audit_pb::Outcome::Invalid => Outcome::Invalid,
        audit_pb::Outcome::UpstreamFailed => Outcome::UpstreamFailed,
        audit_pb::Outcome::Cancelled => Outcome::Cancelled,
        audit_pb::Outcome::Shed => Outcome::Shed,
        audit_pb::Outcome::Internal => Outcome::Internal,
    })
}

pub use resilience::from_proto as resilience_from_proto;

mod access;
mod limits;
mod namespaces;
mod resilience;

use access::role_from_proto;
pub use access::{
    role_resource, role_to_proto, rule_resource, rule_spec_from_proto, rule_spec_to_proto, rule_to_proto,
    scope_from_proto, scope_to_proto, session_resource,
};

pub use limits::{
    limit_kind_from_proto, limit_kind_to_proto, limit_resource, limit_spec_from_proto, limit_spec_to_proto,
};
pub use namespaces::{
    member_from_proto, namespace_from_proto, namespace_resource, namespace_spec_from_proto,
    namespace_to_proto,
};

#[cfg(test)]
mod tests;
