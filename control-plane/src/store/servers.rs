//! Servers, and every name that one ever had. Credentials are sealed here on their way in and opened on their
//! way out, so that no other file sees their stored form.

mod resilience;

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use url::Url;
use uuid::Uuid;
use waffles_core::health::{Check, HealthPolicy};
use waffles_core::seal::SealRing;
use waffles_core::server::{
    AuditMode, Capture, Credential, Endpoint, Marks, Server, Spec, Timeouts, ToolFilter, ToolMark, Transport,
};
use zeroize::Zeroizing;

use super::changes::{signed, unsigned};
use super::{Db, Tx, on_db, on_tx, push_in, read};
use resilience::ResilienceDoc;

/// The stored form cannot be turned into a server.
#[derive(Debug, thiserror::Error)]
#[error("the stored form of server {name} cannot be used: {reason}")]
pub struct Broken {
    /// Which server.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// A server as it is stored.
#[derive(Debug, sqlx::FromRow)]
pub struct ServerRow {
    id: Uuid,
    tenant: String,
    name: String,
    spec: Json<SpecDoc>,
    credential: Vec<u8>,
    enabled: bool,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, tenant, name, spec, credential, enabled, version, created_at, updated_at";

impl ServerRow {
    /// The server's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server without its credential, for what does not call it.
    pub fn described(self) -> Result<Server, Broken> {
        let broken = |reason: String| Broken { name: self.name.clone(), reason };
        let spec = self.spec.0.into_spec(self.name.clone()).map_err(broken)?;
        Ok(Server {
            id: self.id,
            tenant: self.tenant,
            spec,
            credential: Credential::None,
            enabled: self.enabled,
            version: unsigned(self.version),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }

    /// Opens the credential and puts the server together.
    pub fn open(self, seal: &SealRing) -> Result<Server, Broken> {
        let broken = |reason: String| Broken { name: self.name.clone(), reason };
        let plain =
            seal.open(&purpose(self.id), &self.credential).map_err(|error| broken(error.to_string()))?;
        let plain = Zeroizing::new(plain);
        let credential: CredentialDoc =
            serde_json::from_slice(&plain).map_err(|_| broken("credential: is of an unknown form".into()))?;
        let spec = self.spec.0.into_spec(self.name.clone()).map_err(broken)?;
        Ok(Server {
            id: self.id,
            tenant: self.tenant,
            spec,
            credential: credential.into(),
            enabled: self.enabled,
            version: unsigned(self.version),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// Whether a name can be given to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameClaim {
    /// It is the server's now.
    Granted,
    /// Another server has it.
    Taken,
    /// Another server had it, and the audit trail still tells of that one.
    Remembered,
}

/// Claims a name for a new server.
pub async fn claim_name(tx: &mut Tx, tenant: &str, name: &str, server: Uuid) -> sqlx::Result<NameClaim> {
    const CLAIM: &str = "INSERT INTO server_names (tenant, name, server_id) VALUES ($1, $2, $3)
        ON CONFLICT (tenant, name) DO NOTHING";
    const RETIRED: &str = "SELECT retired_at IS NOT NULL FROM server_names WHERE tenant = $1 AND name = $2";
    const REMEMBERED: &str =
        "SELECT EXISTS (SELECT 1 FROM audit_events WHERE tenant = $1 AND server_name = $2)";
    const TAKE_OVER: &str =
        "UPDATE server_names SET server_id = $3, retired_at = NULL WHERE tenant = $1 AND name = $2";
    let granted = on_tx!(tx, |conn| sqlx::query(CLAIM)
        .bind(tenant)
        .bind(name)
        .bind(server)
        .execute(conn)
        .await
        .map(|done| done.rows_affected() == 1))?;
    if granted {
        return Ok(NameClaim::Granted);
    }
    let retired: bool =
        on_tx!(tx, |conn| sqlx::query_scalar(RETIRED).bind(tenant).bind(name).fetch_one(conn).await)?;
    if !retired {
        return Ok(NameClaim::Taken);
    }
    let remembered: bool =
        on_tx!(tx, |conn| sqlx::query_scalar(REMEMBERED).bind(tenant).bind(name).fetch_one(conn).await)?;
    if remembered {
        return Ok(NameClaim::Remembered);
    }
    on_tx!(tx, |conn| sqlx::query(TAKE_OVER)
        .bind(tenant)
        .bind(name)
        .bind(server)
        .execute(conn)
        .await
        .map(drop))?;
    Ok(NameClaim::Granted)
}

/// Stores a new server.
pub async fn insert(tx: &mut Tx, server: &Server, sealed: &[u8]) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO servers
        (id, tenant, name, spec, credential, enabled, version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(server.id)
        .bind(&server.tenant)
        .bind(&server.spec.name)
        .bind(Json(SpecDoc::from(&server.spec)))
        .bind(sealed)
        .bind(server.enabled)
        .bind(signed(server.version))
        .bind(server.created_at)
        .bind(server.updated_at)
        .execute(conn)
        .await
        .map(drop))?;
    put_tags(tx, &server.tenant, server.id, &server.spec.tags).await
}

/// Replaces the specification if the version is still the one given; `sealed` keeps the credential when absent.
pub async fn update(
    tx: &mut Tx,
    tenant: &str,
    spec: &Spec,
    sealed: Option<Vec<u8>>,
    version: u64,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<ServerRow>> {
    const SQL: &str = "UPDATE servers SET spec = $1, credential = COALESCE($2, credential),
            version = version + 1, updated_at = $3
        WHERE tenant = $4 AND name = $5 AND version = $6
        RETURNING id, tenant, name, spec, credential, enabled, version, created_at, updated_at";
    let row: Option<ServerRow> = on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(Json(SpecDoc::from(spec)))
        .bind(sealed)
        .bind(now)
        .bind(tenant)
        .bind(&spec.name)
        .bind(signed(version))
        .fetch_optional(conn)
        .await)?;
    if let Some(row) = &row {
        put_tags(tx, tenant, row.id, &spec.tags).await?;
    }
    Ok(row)
}

/// Lets calls through or stops them. A server that is that way already keeps its version.
pub async fn set_enabled(
    tx: &mut Tx,
    tenant: &str,
    name: &str,
    enabled: bool,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<ServerRow>> {
    const SQL: &str = "UPDATE servers SET enabled = $1, version = version + 1, updated_at = $2
        WHERE tenant = $3 AND name = $4 AND enabled <> $1
        RETURNING id, tenant, name, spec, credential, enabled, version, created_at, updated_at";
    on_tx!(tx, |conn| sqlx::query_as(SQL)
        .bind(enabled)
        .bind(now)
        .bind(tenant)
        .bind(name)
        .fetch_optional(conn)
        .await)
}

/// Removes a server; its name stays behind. Gives its id.
pub async fn delete(tx: &mut Tx, tenant: &str, name: &str, now: DateTime<Utc>) -> sqlx::Result<Option<Uuid>> {
    const SQL: &str = "DELETE FROM servers WHERE tenant = $1 AND name = $2 RETURNING id";
    const RETIRE: &str = "UPDATE server_names SET retired_at = $1 WHERE tenant = $2 AND name = $3";
    let id: Option<Uuid> =
        on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(name).fetch_optional(conn).await)?;
    if id.is_some() {
        on_tx!(tx, |conn| sqlx::query(RETIRE)
            .bind(now)
            .bind(tenant)
            .bind(name)
            .execute(conn)
            .await
            .map(drop))?;
    }
    Ok(id)
}

/// One server, within a transaction.
pub async fn find(tx: &mut Tx, tenant: &str, name: &str) -> sqlx::Result<Option<ServerRow>> {
    on_tx!(tx, |conn| sqlx::query_as(FIND).bind(tenant).bind(name).fetch_optional(conn).await)
}

/// One server.
pub async fn get(db: &Db, tenant: &str, name: &str) -> sqlx::Result<Option<ServerRow>> {
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(FIND).bind(tenant).bind(name).fetch_optional(pool).await)
    })
    .await
}

const FIND: &str = "SELECT id, tenant, name, spec, credential, enabled, version, created_at, updated_at
    FROM servers WHERE tenant = $1 AND name = $2";

/// Which servers a list shows.
#[derive(Debug, Clone, Default)]
pub struct ServerFilter {
    /// Part of the name; empty for all.
    pub name_contains: String,
    /// All of these tags.
    pub tags: Vec<String>,
    /// Only enabled, or only disabled, ones.
    pub enabled: Option<bool>,
}

/// Servers by name, after a name.
pub async fn list(
    db: &Db,
    tenant: &str,
    filter: &ServerFilter,
    only: Option<&[String]>,
    after: Option<&str>,
    limit: u32,
) -> sqlx::Result<Vec<ServerRow>> {
    if only.is_some_and(<[String]>::is_empty) {
        return Ok(Vec::new());
    }
    read(|| async {
        on_db!(db, |pool| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM servers s WHERE tenant = "));
            query.push_bind(tenant);
            if !filter.name_contains.is_empty() {
                // Names have no `%` and no `_`, and the service asks for none that do.
                query.push(" AND name LIKE ").push_bind(format!("%{}%", filter.name_contains));
            }
            for tag in &filter.tags {
                query.push(" AND EXISTS (SELECT 1 FROM server_tags t WHERE t.tenant = s.tenant AND t.server_id = s.id AND t.tag = ");
                query.push_bind(tag).push(")");
            }
            if let Some(enabled) = filter.enabled {
                query.push(" AND enabled = ").push_bind(enabled);
            }
            if let Some(names) = only {
                push_in(&mut query, " AND name", names);
            }
            if let Some(after) = after {
                query.push(" AND name > ").push_bind(after);
            }
            query.push(" ORDER BY name LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await
        })
    })
    .await
}

/// Every server, or those of some ids, of every tenant: for proxies.
pub async fn load(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<ServerRow>> {
    on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM servers"));
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })
}

/// How many servers a tenant has.
pub async fn count(db: &Db, tenant: &str) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT COUNT(*) FROM servers WHERE tenant = $1";
    read(|| async { on_db!(db, |pool| sqlx::query_scalar(SQL).bind(tenant).fetch_one(pool).await) })
        .await
        .map(unsigned)
}

async fn put_tags(tx: &mut Tx, tenant: &str, server: Uuid, tags: &[String]) -> sqlx::Result<()> {
    const CLEAR: &str = "DELETE FROM server_tags WHERE tenant = $1 AND server_id = $2";
    const SQL: &str =
        "INSERT INTO server_tags (tenant, server_id, tag) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    on_tx!(tx, |conn| sqlx::query(CLEAR).bind(tenant).bind(server).execute(conn).await.map(drop))?;
    for tag in tags {
        on_tx!(tx, |conn| sqlx::query(SQL)
            .bind(tenant)
            .bind(server)
            .bind(tag)
            .execute(conn)
            .await
            .map(drop))?;
    }
    Ok(())
}

/// Seals a credential for the server that it belongs to: moved to another row it does not open.
pub fn seal(
    ring: &SealRing,
    server: Uuid,
    credential: &Credential,
) -> Result<Vec<u8>, waffles_core::seal::SealError> {
    let plain = Zeroizing::new(
        serde_json::to_vec(&CredentialDoc::from(credential)).map_err(|_| waffles_core::seal::SealError)?,
    );
    ring.seal(&purpose(server), &plain)
}

/// What the credential of a server is sealed for.
pub(crate) fn purpose(server: Uuid) -> Vec<u8> {
    [b"server credential ", server.as_bytes().as_slice()].concat()
}

/// The stored form of a credential, before it is sealed.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum CredentialDoc {
    None,
    Bearer { token: String },
    Basic { username: String, password: String },
    Header { name: String, value: String },
}

impl From<&Credential> for CredentialDoc {
    fn from(credential: &Credential) -> Self {
        match credential {
            Credential::None => Self::None,
            Credential::Bearer { token } => Self::Bearer { token: token.expose_secret().into() },
            Credential::Basic { username, password } => {
                Self::Basic { username: username.clone(), password: password.expose_secret().into() }
            }
            Credential::Header { name, value } => {
                Self::Header { name: name.clone(), value: value.expose_secret().into() }
            }
        }
    }
}

impl From<CredentialDoc> for Credential {
    fn from(doc: CredentialDoc) -> Self {
        match doc {
            CredentialDoc::None => Self::None,
            CredentialDoc::Bearer { token } => Self::Bearer { token: token.into() },
            CredentialDoc::Basic { username, password } => {
                Self::Basic { username, password: password.into() }
            }
            CredentialDoc::Header { name, value } => Self::Header { name, value: value.into() },
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The stored form of a specification. The name stands in a column of its own.
#[derive(Debug, Serialize, Deserialize)]
struct SpecDoc {
    description: String,
    tags: Vec<String>,
    transport: String,
    endpoints: Vec<EndpointDoc>,
    timeouts_us: TimeoutsDoc,
    tools_allow: Vec<String>,
    tools_deny: Vec<String>,
    #[serde(default)]
    marks: Vec<MarkDoc>,
    #[serde(default)]
    methods: Vec<String>,
    audit: String,
    capture: String,
    redact: Vec<String>,
    /// Absent in what an older version wrote.
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    resilience: ResilienceDoc,
    #[serde(default)]
    health: HealthDoc,
}

/// The stored form of a health policy. What is absent has its default.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct HealthDoc {
    check: String,
    interval_us: u64,
    timeout_us: u64,
    jitter: u8,
    fall: u8,
    rise: u8,
    proxies: u8,
}

impl Default for HealthDoc {
    fn default() -> Self {
        Self::from(&HealthPolicy::default())
    }
}

impl From<&HealthPolicy> for HealthDoc {
    fn from(policy: &HealthPolicy) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            check: policy.check.as_str().to_owned(),
            interval_us: micros(policy.interval),
            timeout_us: micros(policy.timeout),
            jitter: policy.jitter,
            fall: policy.fall,
            rise: policy.rise,
            proxies: policy.proxies,
        }
    }
}

impl HealthDoc {
    fn into_policy(self) -> Result<HealthPolicy, String> {
        let check = Check::parse(&self.check);
        Ok(HealthPolicy {
            check: check
                .ok_or_else(|| format!("health.check: {:?} is not known to this version", self.check))?,
            interval: Duration::from_micros(self.interval_us),
            timeout: Duration::from_micros(self.timeout_us),
            jitter: self.jitter,
            fall: self.fall,
            rise: self.rise,
            proxies: self.proxies,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct EndpointDoc {
    url: Url,
    weight: u16,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct MarkDoc {
    pattern: String,
    read_only: Option<bool>,
    destructive: Option<bool>,
    idempotent: Option<bool>,
    open_world: Option<bool>,
}

impl From<&ToolMark> for MarkDoc {
    fn from(mark: &ToolMark) -> Self {
        let Marks { read_only, destructive, idempotent, open_world } = mark.marks;
        Self { pattern: mark.pattern.clone(), read_only, destructive, idempotent, open_world }
    }
}

impl From<MarkDoc> for ToolMark {
    fn from(mark: MarkDoc) -> Self {
        let MarkDoc { pattern, read_only, destructive, idempotent, open_world } = mark;
        Self { pattern, marks: Marks { read_only, destructive, idempotent, open_world } }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct TimeoutsDoc {
    connect: u64,
    first_byte: u64,
    idle: u64,
    total: u64,
}

impl From<&Spec> for SpecDoc {
    fn from(spec: &Spec) -> Self {
        Self {
            description: spec.description.clone(),
            tags: spec.tags.clone(),
            transport: match spec.transport {
                Transport::Auto => "auto",
                Transport::StreamableHttp => "streamable-http",
                Transport::Sse => "sse",
            }
            .into(),
            endpoints: spec
                .endpoints
                .iter()
                .map(|e| EndpointDoc { url: e.url.clone(), weight: e.weight, zone: e.zone.clone() })
                .collect(),
            timeouts_us: TimeoutsDoc {
                connect: micros(spec.timeouts.connect),
                first_byte: micros(spec.timeouts.first_byte),
                idle: micros(spec.timeouts.idle),
                total: micros(spec.timeouts.total),
            },
            tools_allow: spec.tools.allow.clone(),
            tools_deny: spec.tools.deny.clone(),
            marks: spec.marks.iter().map(MarkDoc::from).collect(),
            methods: spec.methods.clone(),
            audit: match spec.audit {
                AuditMode::Count => "count",
                AuditMode::Strict => "strict",
            }
            .into(),
            capture: match spec.capture {
                Capture::None => "none",
                Capture::Metadata => "metadata",
                Capture::Full => "full",
            }
            .into(),
            redact: spec.redact.clone(),
            groups: spec.groups.clone(),
            resilience: ResilienceDoc::from(&spec.resilience),
            health: HealthDoc::from(&spec.health),
        }
    }
}

impl SpecDoc {
    /// A word that this version does not know makes the server unusable rather than something else.
    fn into_spec(self, name: String) -> Result<Spec, String> {
        let unknown = |field: &str, word: &str| format!("{field}: {word:?} is not known to this version");
        Ok(Spec {
            name,
            description: self.description,
            tags: self.tags,
            transport: match self.transport.as_str() {
                "auto" => Transport::Auto,
                "streamable-http" => Transport::StreamableHttp,
                "sse" => Transport::Sse,
                word => return Err(unknown("transport", word)),
            },
            endpoints: self
                .endpoints
                .into_iter()
                .map(|e| Endpoint { url: e.url, weight: e.weight, zone: e.zone })
                .collect(),
            timeouts: Timeouts {
                connect: Duration::from_micros(self.timeouts_us.connect),
                first_byte: Duration::from_micros(self.timeouts_us.first_byte),
                idle: Duration::from_micros(self.timeouts_us.idle),
                total: Duration::from_micros(self.timeouts_us.total),
            },
            tools: ToolFilter { allow: self.tools_allow, deny: self.tools_deny },
            marks: self.marks.into_iter().map(ToolMark::from).collect(),
            methods: self.methods,
            audit: match self.audit.as_str() {
                "count" => AuditMode::Count,
                "strict" => AuditMode::Strict,
                word => return Err(unknown("audit", word)),
            },
            capture: match self.capture.as_str() {
                "none" => Capture::None,
                "metadata" => Capture::Metadata,
                "full" => Capture::Full,
                word => return Err(unknown("capture", word)),
            },
            redact: self.redact,
            groups: self.groups,
            resilience: self.resilience.into(),
            health: self.health.into_policy()?,
        })
    }
}
