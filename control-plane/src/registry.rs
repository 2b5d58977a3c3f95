//! The registry: register, show, change and retire MCP servers. A change, its place in the revision log and
//! its audit event are one transaction.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Permission, Scope, Target};
use waffles_core::seal::SealRing;
use waffles_core::server::{Credential, Server, Spec};
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_runtime::outbound;

use crate::audit;
use crate::authz::OpCtx;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::page::{Page, Paged};
use crate::quota::{self, Limited};
use crate::store::namespaces::{self, Touched};
use crate::store::servers::{self, Broken, NameClaim, ServerRow};
use crate::store::{Db, Tx, changes, eras, grants, health};

pub use crate::store::health::Summary;
pub use crate::store::servers::ServerFilter;

const MOST_PER_PAGE: u32 = 500;
const MOST_TAGS: usize = 32;
/// Names the list in cursors.
const LIST: &str = "servers";

/// What a proxy found a server to speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The proxy and its name; none for an actor who may not see proxies.
    pub proxy: Option<(Uuid, String)>,
    /// Which of the server's endpoints, from 0.
    pub endpoint: u32,
    /// `stateless`, `sessions` or `http_sse`.
    pub era: String,
    /// The revision of the protocol.
    pub revision: String,
    /// When it was found.
    pub found_at: DateTime<Utc>,
}

/// The registered servers.
#[derive(Debug, Clone)]
pub struct Registry {
    db: Db,
    seal: Arc<SealRing>,
    discovery: Discovery,
}

impl Registry {
    /// On a database, with the ring that credentials are sealed with.
    pub fn new(db: Db, seal: SealRing, discovery: Discovery) -> Self {
        Self { db, seal: Arc::new(seal), discovery }
    }

    /// Registers a server, which joins the namespaces that new servers join. A name that is taken, or that the audit trail knows as another server's, is refused.
    pub async fn create(
        &self,
        ctx: &OpCtx,
        spec: Spec,
        credential: Credential,
        enabled: bool,
    ) -> Result<Server, Error> {
        ctx.require(Permission::ServersWrite)?;
        if !ctx.sees_server(&spec.name) {
            return Err(Error::Denied);
        }
        check(&spec, Some(&credential))?;
        let now = micros(Utc::now());
        let server = Server {
            id: Uuid::now_v7(),
            tenant: ctx.tenant().to_owned(),
            spec,
            credential,
            enabled,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let name = &server.spec.name;
        let sealed = servers::seal(&self.seal, server.id, &server.credential)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        namespaces::lock(&mut tx, &server.tenant).await?;
        quota::admit(&mut tx, &server.tenant, Limited::Servers).await?;
        match servers::claim_name(&mut tx, &server.tenant, name, server.id).await? {
            NameClaim::Granted => {}
            NameClaim::Taken => return Err(Error::Conflict(format!("there is a server {name} already"))),
            NameClaim::Remembered => {
                return Err(Error::Conflict(format!(
                    "the name {name} was another server's and the audit trail still tells of it; choose another one"
                )));
            }
        }
        servers::insert(&mut tx, &server, &sealed).await?;
        let joined = namespaces::join(&mut tx, &server.tenant, server.id, name, now).await?;
        let detail = json!({
            "id": server.id, "enabled": enabled, "credential": kind_of(&server.credential), "endpoints": urls(&server.spec),
            "namespaces": names(&joined),
        });
        hear_of(&mut tx, &joined).await?;
        self.finish(tx, ctx, "server.create", &server.spec.name, server.id, false, detail).await?;
        Ok(server)
    }

    /// Servers of the actor's tenant by name.
    pub async fn list(
        &self,
        ctx: &OpCtx,
        filter: &ServerFilter,
        page: &Page,
    ) -> Result<Paged<(Server, Summary)>, Error> {
        somewhere(ctx, Permission::ServersRead)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let after: Option<String> = page.after(LIST)?;
        if filter.tags.len() > MOST_TAGS {
            return Err(Error::invalid("tags", format!("must be at most {MOST_TAGS}")));
        }
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !filter.name_contains.chars().all(part) {
            // No name has such a character.
            return Ok(Paged { items: Vec::new(), next: String::new() });
        }
        let only = seen_by(ctx);
        let rows = servers::list(
            &self.db.of(ctx.tenant()),
            ctx.tenant(),
            filter,
            only.as_deref(),
            after.as_deref(),
            limit + 1,
        )
        .await?;
        let found: Vec<Server> = rows.into_iter().map(|row| self.open(row)).collect::<Result<_, _>>()?;
        let ids: Vec<Uuid> = found.iter().map(|server| server.id).collect();
        let mut known = health::summaries(&self.db.of(ctx.tenant()), ctx.tenant(), &ids).await?;
        let with = |server: Server| {
            let summary = Summary::of(server.enabled, known.remove(&server.id));
            (server, summary)
        };
        let found = found.into_iter().map(with).collect();
        Ok(Paged::cut(found, limit, LIST, |(server, _)| server.spec.name.clone()))
    }

    /// One server of the actor's tenant, what proxies found it to speak, and how it is.
    pub async fn get(&self, ctx: &OpCtx, name: &str) -> Result<(Server, Vec<Seen>, Summary), Error> {
        somewhere(ctx, Permission::ServersRead)?;
        know(ctx, name)?;
        ctx.require_on(Permission::ServersRead, Target::Server(name))?;
        let row = servers::get(&self.db.of(ctx.tenant()), ctx.tenant(), name).await?;
        let server = self.open(row.ok_or_else(|| missing(name))?)?;
        let found = eras::of_server(&self.db.of(ctx.tenant()), server.id).await?;
        let may_know = ctx.may(Permission::ProxiesRead);
        let seen = found.into_iter().map(|row| Seen {
            proxy: may_know.then_some((row.proxy_id, row.proxy)),
            endpoint: u32::try_from(row.endpoint).unwrap_or(u32::MAX),
            era: row.era,
            revision: row.revision,
            found_at: row.found_at,
        });
        let known = health::summaries(&self.db.of(ctx.tenant()), ctx.tenant(), &[server.id]).await?;
        let summary = Summary::of(server.enabled, known.into_values().next());
        Ok((server, seen.collect(), summary))
    }

    /// Replaces the specification of a server that is still at the version given. Without a credential the
    /// present one stays.
    pub async fn update(
        &self,
        ctx: &OpCtx,
        spec: Spec,
        credential: Option<Credential>,
        version: u64,
    ) -> Result<Server, Error> {
        may_write(ctx, &spec.name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        // Whether it exists comes before whether the rest is right, so that a wrong name is told as one.
        let row = servers::find(&mut tx, ctx.tenant(), &spec.name).await?;
        let before = self.open(row.ok_or_else(|| missing(&spec.name))?)?;
        check(&spec, credential.as_ref())?;
        if credential.is_none() {
            keeps_its_secret(&before, &spec)?;
        }
        let sealed = credential.as_ref().map(|c| servers::seal(&self.seal, before.id, c)).transpose()?;
        let row = servers::update(&mut tx, ctx.tenant(), &spec, sealed, version, micros(Utc::now())).await?;
        let Some(row) = row else {
            return Err(match servers::find(&mut tx, ctx.tenant(), &spec.name).await? {
                Some(row) => Error::Stale { current: self.open(row)?.version },
                None => missing(&spec.name),
            });
        };
        let server = self.open(row)?;
        let mut changed = differences(&before.spec, &server.spec);
        changed.extend(credential.is_some().then_some("credential"));
        let detail = json!({ "id": server.id, "version": server.version, "changed": changed });
        self.finish(tx, ctx, "server.update", &server.spec.name, server.id, false, detail).await?;
        Ok(server)
    }

    /// Lets calls reach a server, or stops them. Nothing happens where it is so already.
    pub async fn set_enabled(&self, ctx: &OpCtx, name: &str, enabled: bool) -> Result<Server, Error> {
        may_write(ctx, name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        let Some(row) =
            servers::set_enabled(&mut tx, ctx.tenant(), name, enabled, micros(Utc::now())).await?
        else {
            let row = servers::find(&mut tx, ctx.tenant(), name).await?;
            return self.open(row.ok_or_else(|| missing(name))?);
        };
        let server = self.open(row)?;
        let action = if enabled { "server.enable" } else { "server.disable" };
        let detail = json!({ "id": server.id, "version": server.version });
        self.finish(tx, ctx, action, name, server.id, false, detail).await?;
        Ok(server)
    }

    /// Retires a server, which leaves its namespaces. Its name stays taken as long as the audit trail tells of it.
    pub async fn delete(&self, ctx: &OpCtx, name: &str) -> Result<(), Error> {
        may_write(ctx, name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        namespaces::lock(&mut tx, ctx.tenant()).await?;
        let now = micros(Utc::now());
        let left = namespaces::leave(&mut tx, ctx.tenant(), name, now).await?;
        let id = servers::delete(&mut tx, ctx.tenant(), name, now).await?;
        let id = id.ok_or_else(|| missing(name))?;
        hear_of(&mut tx, &left).await?;
        // Before its name is somebody else's.
        let held = grants::drop_server(&mut tx, ctx.tenant(), name).await?;
        let held: Vec<_> =
            held.iter().map(|id| (ResourceKey::new(Kind::Principal, id.to_string()), false)).collect();
        changes::append_all(&mut tx, &held).await?;
        let detail = json!({ "id": id, "namespaces": names(&left) });
        self.finish(tx, ctx, "server.delete", name, id, true, detail).await
    }

    /// How many servers the actor's tenant has.
    pub async fn count(&self, ctx: &OpCtx) -> Result<u64, Error> {
        ctx.require(Permission::StatusRead)?;
        Ok(servers::count(&self.db.of(ctx.tenant()), ctx.tenant()).await?)
    }

    /// The end of every change: the audit event, the revision log, the commit, and proxies hear of it.
    #[allow(clippy::too_many_arguments, reason = "one place that every change ends in")]
    async fn finish(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        action: &str,
        name: &str,
        id: Uuid,
        removed: bool,
        detail: serde_json::Value,
    ) -> Result<(), Error> {
        audit::note(&mut tx, ctx, action, &format!("server/{name}"), detail).await?;
        changes::append(&mut tx, &ResourceKey::new(Kind::Server, id.to_string()), removed).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }

    fn open(&self, row: ServerRow) -> Result<Server, Error> {
        row.open(&self.seal).map_err(|broken: Broken| Error::internal(broken))
    }
}

/// Puts namespaces whose members changed with a server into the revision log.
async fn hear_of(tx: &mut Tx, touched: &[Touched]) -> Result<(), Error> {
    for namespace in touched {
        changes::append(tx, &ResourceKey::new(Kind::Namespace, namespace.id.to_string()), false).await?;
    }
    Ok(())
}

fn names(touched: &[Touched]) -> Vec<&str> {
    touched.iter().map(|namespace| namespace.name.as_str()).collect()
}

fn check(spec: &Spec, credential: Option<&Credential>) -> Result<(), Error> {
    let mut problems: Vec<FieldError> = spec.problems();
    problems.extend(credential.into_iter().flat_map(Credential::problems));
    // What proxies may be told to open is theirs to judge, at each connection; the rest need not be stored first.
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        if let Some(kind) = endpoint.url.host_str().and_then(outbound::never) {
            let reason = format!("is {kind}, which no proxy connects to");
            problems.push(FieldError::new(format!("endpoints[{i}].url"), reason));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

/// What is held on no server at all is no question of one server.
fn somewhere(ctx: &OpCtx, permission: Permission) -> Result<(), Error> {
    if ctx.may_somewhere(permission) { Ok(()) } else { ctx.require(permission) }
}

/// Whoever may not see a server, by its key or by what it holds, is told what everyone is told of those that are not there.
fn know(ctx: &OpCtx, name: &str) -> Result<(), Error> {
    let on = Target::Server(name);
    let may = ctx.may_on(Permission::ServersRead, on) || ctx.may_on(Permission::ServersWrite, on);
    if may && ctx.sees_server(name) { Ok(()) } else { Err(missing(name)) }
}

fn may_write(ctx: &OpCtx, name: &str) -> Result<(), Error> {
    somewhere(ctx, Permission::ServersWrite)?;
    know(ctx, name)?;
    ctx.require_on(Permission::ServersWrite, Target::Server(name))
}

/// The names of the servers that the actor may see; none: all of the tenant. Asked of the store, so that not even a cursor
/// tells of others.
fn seen_by(ctx: &OpCtx) -> Option<Vec<String>> {
    let limits = ctx.key().map(|key| &key.limits);
    // Such a key knows of servers through its namespaces only.
    if limits.is_some_and(|limits| !limits.namespaces.is_empty()) {
        return Some(Vec::new());
    }
    let of_key = limits.map(|limits| &limits.servers).filter(|servers| !servers.is_empty());
    if ctx.may(Permission::ServersRead) {
        return of_key.cloned();
    }
    let held = ctx.scopes_of(Permission::ServersRead).filter_map(|scope| match scope {
        Scope::Server(name) => Some(name.clone()),
        _ => None,
    });
    Some(held.filter(|name| ctx.sees_server(name)).collect())
}

/// A credential that is kept goes to the origins it was given for: whoever may write servers may not read secrets, by
/// having them sent elsewhere.
fn keeps_its_secret(before: &Server, spec: &Spec) -> Result<(), Error> {
    let knows = |url: &url::Url| before.spec.endpoints.iter().any(|known| known.url.origin() == url.origin());
    if matches!(before.credential, Credential::None)
        || spec.endpoints.iter().all(|endpoint| knows(&endpoint.url))
    {
        return Ok(());
    }
    let reason = "must be given again, or as none, when an endpoint has another origin";
    Err(Error::Invalid(vec![FieldError::new("credential", reason)]))
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("server {}", clean(name, 64)))
}

fn kind_of(credential: &Credential) -> &'static str {
    match credential {
        Credential::None => "none",
        Credential::Bearer { .. } => "bearer",
        Credential::Basic { .. } => "basic",
        Credential::Header { .. } => "header",
    }
}

/// Addresses for the audit, without their query, where people put secrets.
fn urls(spec: &Spec) -> Vec<String> {
    let plain = |url: &url::Url| {
        let mut url = url.clone();
        url.set_query(None);
        url.to_string()
    };
    spec.endpoints.iter().map(|endpoint| plain(&endpoint.url)).collect()
}

/// Names of the fields that differ.
fn differences(before: &Spec, after: &Spec) -> Vec<&'static str> {
    [
        ("description", before.description != after.description),
        ("tags", before.tags != after.tags),
        ("transport", before.transport != after.transport),
        ("endpoints", before.endpoints != after.endpoints),
        ("timeouts", before.timeouts != after.timeouts),
        ("tools", before.tools != after.tools),
        ("marks", before.marks != after.marks),
        ("methods", before.methods != after.methods),
        ("audit", before.audit != after.audit),
        ("capture", before.capture != after.capture),
        ("redact", before.redact != after.redact),
        ("groups", before.groups != after.groups),
        ("resilience", before.resilience != after.resilience),
        ("health", before.health != after.health),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}
