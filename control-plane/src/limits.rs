//! The limits of a tenant: how much somebody may do in a time, or at once. Proxies keep the counts; what they say of them
//! is shown here. A change, its place in the revision log and its audit event are one transaction.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;
use waffles_core::audit::{clean, micros};
use waffles_core::limit::{Limit, LimitSpec};
use waffles_core::policy::Permission;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_proto::audit::v1 as audit_pb;

use crate::audit;
use crate::authz::{OpCtx, ProxyPeer};
use crate::discovery::Discovery;
use crate::error::Error;
use crate::store::limits::{self as store, UsageRow, Used};
use crate::store::{Db, changes, tenants};

pub use crate::store::limits::StoredLimit;

/// Limits of a tenant: every one of them is in the memory of every proxy, and a list shows all.
const MOST: i64 = 1000;
/// Callers of one limit that are shown.
const MOST_SHOWN: usize = 100;
/// Entries of one report that are read; a proxy sends no more.
const MOST_HEARD: usize = 1000;
/// What a proxy has not said again for so long is about a proxy that is gone.
const FRESH: TimeDelta = TimeDelta::seconds(15);
/// How often what one proxy says is written.
const WRITE_EVERY: TimeDelta = TimeDelta::seconds(2);

/// The limits; cheap to clone.
#[derive(Debug, Clone)]
pub struct Limits {
    db: Db,
    discovery: Discovery,
    /// When what a proxy said was last written. As many as there are proxies.
    written: Arc<Mutex<HashMap<Uuid, DateTime<Utc>>>>,
}

/// How much one caller, or all together, used of a limit.
#[derive(Debug, Clone)]
pub struct LimitUse {
    /// What was written of the limit.
    pub spec: LimitSpec,
    /// Name of the principal that is counted apart.
    pub principal: String,
    /// Public id of the key that is counted apart.
    pub key: String,
    /// Name of the server that is counted apart.
    pub server: String,
    /// Name of the tool that is counted apart.
    pub tool: String,
    /// How many, at all proxies together.
    pub used: u64,
    /// When proxies said so last; none where none has.
    pub noted_at: Option<DateTime<Utc>>,
}

/// How many of one thing a tenant has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantUse {
    /// Of what.
    pub what: &'static str,
    /// How many there are.
    pub used: u64,
    /// How many there may be.
    pub amount: Option<u64>,
}

/// How much is used.
#[derive(Debug, Clone)]
pub struct Report {
    /// Of the limits.
    pub limits: Vec<LimitUse>,
    /// Of what the tenant may have.
    pub tenant: Vec<TenantUse>,
}

impl Limits {
    /// On a database.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        Self { db, discovery, written: Arc::default() }
    }

    /// Makes a limit.
    pub async fn create(&self, ctx: &OpCtx, spec: LimitSpec) -> Result<StoredLimit, Error> {
        ctx.require(Permission::PoliciesWrite)?;
        ctx.require_change()?;
        ctx.require_whole()?;
        check(&spec)?;
        let limit = Limit { id: Uuid::now_v7(), tenant: ctx.tenant().to_owned(), spec };
        let name = limit.spec.name.clone();
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        if store::count(&mut tx, ctx.tenant()).await? >= MOST {
            return Err(Error::Conflict(format!("there are {MOST} limits already; remove some first")));
        }
        let now = micros(Utc::now());
        if !store::insert(&mut tx, &limit, now).await? {
            return Err(Error::Conflict(format!("there is a limit {name} already")));
        }
        let detail = json!({ "id": limit.id, "after": limit.spec });
        audit::note(&mut tx, ctx, "limit.create", &resource(&name), detail).await?;
        changes::append(&mut tx, &key(limit.id), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(StoredLimit { limit, version: 1, created_at: now, updated_at: now })
    }

    /// The limits of the actor's tenant, by name.
    pub async fn list(&self, ctx: &OpCtx) -> Result<Vec<StoredLimit>, Error> {
        ctx.require(Permission::PoliciesRead)?;
        Ok(store::list(&self.db.of(ctx.tenant()), ctx.tenant()).await?)
    }

    /// One limit of the actor's tenant.
    pub async fn get(&self, ctx: &OpCtx, name: &str) -> Result<StoredLimit, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        store::get(&mut tx, ctx.tenant(), name).await?.ok_or_else(|| missing(name))
    }

    /// Replaces a limit that is still at the version given.
    pub async fn update(&self, ctx: &OpCtx, spec: LimitSpec, version: u64) -> Result<StoredLimit, Error> {
        ctx.require(Permission::PoliciesWrite)?;
        ctx.require_change()?;
        ctx.require_whole()?;
        check(&spec)?;
        let name = spec.name.clone();
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        let before = store::get(&mut tx, ctx.tenant(), &name).await?.ok_or_else(|| missing(&name))?;
        let limit = Limit { spec, ..before.limit.clone() };
        let now = micros(Utc::now());
        if !store::update(&mut tx, &limit, version, now).await? {
            return Err(Error::Stale { current: before.version });
        }
        let detail = json!({ "id": limit.id, "before": before.limit.spec, "after": limit.spec });
        audit::note(&mut tx, ctx, "limit.update", &resource(&name), detail).await?;
        changes::append(&mut tx, &key(limit.id), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(StoredLimit { limit, version: version.saturating_add(1), updated_at: now, ..before })
    }

    /// Removes a limit.
    pub async fn remove(&self, ctx: &OpCtx, name: &str) -> Result<(), Error> {
        ctx.require(Permission::PoliciesWrite)?;
        ctx.require_change()?;
        ctx.require_whole()?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        let found = store::get(&mut tx, ctx.tenant(), name).await?.ok_or_else(|| missing(name))?;
        let id = found.limit.id;
        store::delete(&mut tx, ctx.tenant(), id).await?;
        let detail = json!({ "id": id, "before": found.limit.spec });
        audit::note(&mut tx, ctx, "limit.delete", &resource(name), detail).await?;
        changes::append(&mut tx, &key(id), true).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }

    /// How much of the limits is used, as proxies said last, and what the tenant has of what it may have. A proxy counts
    /// what passed through itself, so that the sum is what was used.
    pub async fn usage(&self, ctx: &OpCtx) -> Result<Report, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let db = self.db.of(ctx.tenant());
        let limits = store::list(&db, ctx.tenant()).await?;
        let said = store::usage(&db, ctx.tenant(), Utc::now() - FRESH).await?;
        let names = Names::read(&db, ctx.tenant(), &said).await?;
        let mut shown = Vec::new();
        for stored in limits {
            let of_limit = said.iter().filter(|row| row.limit == stored.limit.id);
            shown.extend(uses(&stored.limit.spec, of_limit, &names));
        }
        Ok(Report { limits: shown, tenant: self.tenant_use(ctx).await? })
    }

    async fn tenant_use(&self, ctx: &OpCtx) -> Result<Vec<TenantUse>, Error> {
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        let found = tenants::find(&mut tx, ctx.tenant()).await?;
        let limits = found.map(|tenant| tenant.limits).unwrap_or_default();
        let used = tenants::usage(&mut tx, ctx.tenant(), Utc::now()).await?;
        Ok(vec![
            TenantUse { what: "servers", used: used.servers, amount: limits.max_servers },
            TenantUse { what: "principals", used: used.principals, amount: limits.max_principals },
            TenantUse { what: "api_keys", used: used.api_keys, amount: limits.max_api_keys },
            TenantUse { what: "namespaces", used: used.namespaces, amount: None },
        ])
    }

    /// A proxy says how much of limits is used. What it says of a limit that there is not is shown to nobody.
    pub async fn hear(&self, peer: &ProxyPeer, said: &[audit_pb::LimitUse]) {
        let now = micros(Utc::now());
        {
            let mut written = self.written.lock();
            let last = written.get(&peer.id());
            if said.is_empty() && last.is_none() || last.is_some_and(|last| *last + WRITE_EVERY > now) {
                return;
            }
            written.retain(|_, last| *last + FRESH > now);
            written.insert(peer.id(), now);
        }
        let mut rows: HashMap<(String, Uuid), Vec<Used>> = HashMap::new();
        for one in said.iter().take(MOST_HEARD) {
            let Ok(limit) = one.limit_id.parse() else { continue };
            rows.entry((clean(&one.tenant, 63), limit)).or_default().push(Used {
                principal: one.principal_id.parse().ok(),
                key: clean(&one.api_key_id, 64),
                server: one.server_id.parse().ok(),
                tool: clean(&one.tool, 256),
                used: one.used,
            });
        }
        let row = |((tenant, limit), used)| UsageRow { limit, tenant, proxy: peer.id(), used, noted_at: now };
        let rows: Vec<UsageRow> = rows.into_iter().map(row).collect();
        if let Err(error) = store::put_usage(&self.db.everywhere(), &rows).await {
            tracing::warn!(proxy.id = %peer.id(), %error, "what a proxy said of limits is not kept");
        }
    }
}

/// What those are called that are counted apart.
struct Names {
    principals: HashMap<Uuid, String>,
    servers: HashMap<Uuid, String>,
}

impl Names {
    async fn read(db: &Db, tenant: &str, said: &[UsageRow]) -> Result<Self, Error> {
        let used = || said.iter().flat_map(|row| &row.used);
        let mut people: Vec<Uuid> = used().filter_map(|used| used.principal).collect();
        people.sort_unstable();
        people.dedup();
        let mut hosts: Vec<Uuid> = used().filter_map(|used| used.server).collect();
        hosts.sort_unstable();
        hosts.dedup();
        Ok(Self {
            principals: store::principal_names(db, tenant, &people).await?,
            servers: store::server_names(db, tenant, &hosts).await?,
        })
    }
}

/// What was used of one limit: the callers that used most, most first; nobody has used it where no proxy says so.
fn uses<'a>(spec: &LimitSpec, said: impl Iterator<Item = &'a UsageRow>, names: &Names) -> Vec<LimitUse> {
    let mut sums: HashMap<(Option<Uuid>, String, Option<Uuid>, String), u64> = HashMap::new();
    let mut noted_at = None;
    for row in said {
        noted_at = noted_at.max(Some(row.noted_at));
        for used in &row.used {
            let sum = sums.entry((used.principal, used.key.clone(), used.server, used.tool.clone()));
            let sum = sum.or_default();
            *sum = sum.saturating_add(used.used);
        }
    }
    let named = |names: &HashMap<Uuid, String>, id: Option<Uuid>| {
        id.map(|id| names.get(&id).cloned().unwrap_or_else(|| id.to_string())).unwrap_or_default()
    };
    let shown = sums.into_iter().map(|((principal, key, server, tool), used)| LimitUse {
        spec: spec.clone(),
        principal: named(&names.principals, principal),
        key,
        server: named(&names.servers, server),
        tool,
        used,
        noted_at,
    });
    let mut shown: Vec<LimitUse> = shown.collect();
    shown.sort_by(|one, other| {
        let name = |of: &LimitUse| (of.principal.clone(), of.key.clone(), of.server.clone(), of.tool.clone());
        other.used.cmp(&one.used).then_with(|| name(one).cmp(&name(other)))
    });
    shown.truncate(MOST_SHOWN);
    if shown.is_empty() {
        let (principal, key, server, tool) = Default::default();
        shown.push(LimitUse { spec: spec.clone(), principal, key, server, tool, used: 0, noted_at });
    }
    shown
}

fn check(spec: &LimitSpec) -> Result<(), Error> {
    let problems = spec.problems();
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

fn key(id: Uuid) -> ResourceKey {
    ResourceKey::new(Kind::Limit, id.to_string())
}

fn resource(name: &str) -> String {
    format!("limit/{name}")
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("limit {}", clean(name, 64)))
}
