//! Namespaces: make, show, change and remove them, and take servers in and out. As in the registry, a change, its place
//! in the revision log and its audit event are one transaction.

use std::collections::HashSet;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::namespace::{DEFAULT_NAMESPACE, MOST_WEIGHT, Member, Namespace, NamespaceSpec, TOO_HEAVY};
use waffles_core::policy::{Permission, Policy, Target, level};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::audit;
use crate::authz::OpCtx;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::page::{Page, Paged};
use crate::store::{Db, Tx, changes, grants, namespaces as store};

pub use crate::store::namespaces::NamespaceFilter;

const MOST_PER_PAGE: u32 = 500;
/// Names the list in cursors.
const LIST: &str = "namespaces";
const NO_SUCH_SERVER: &str = "is not the name of a server";

/// The namespaces.
#[derive(Debug, Clone)]
pub struct Namespaces {
    db: Db,
    discovery: Discovery,
}

impl Namespaces {
    /// On a database.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        Self { db, discovery }
    }

    /// Gives every tenant that lacks it the namespace `default`, with all of its servers.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        let mut tx = self.db.everywhere().begin().await?;
        let tenants = store::tenants_without(&mut tx, DEFAULT_NAMESPACE).await?;
        for tenant in &tenants {
            store::lock(&mut tx, tenant).await?;
            let servers = store::all_servers(&mut tx, tenant).await?;
            let members: Vec<(Uuid, Member)> =
                servers.into_iter().map(|(id, name)| (id, Member::whole(name))).collect();
            first(&mut tx, &OpCtx::system_of(tenant), &members).await?;
        }
        tx.commit().await?;
        if !tenants.is_empty() {
            self.discovery.poke();
        }
        Ok(())
    }

    /// Makes a namespace.
    pub async fn create(&self, ctx: &OpCtx, spec: NamespaceSpec) -> Result<Namespace, Error> {
        may_make(ctx)?;
        if !ctx.sees_namespace(&spec.name) {
            return Err(Error::Denied);
        }
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        let servers = checked(&mut tx, ctx, &spec).await?;
        let mut namespace = made(ctx.tenant(), spec);
        if !store::insert(&mut tx, &namespace).await? {
            let name = &namespace.spec.name;
            return Err(Error::Conflict(format!("there is a namespace {name} already")));
        }
        put_members(&mut tx, &namespace, &servers).await?;
        let (id, detail) = (namespace.id, detail(&namespace));
        self.finish(tx, ctx, "namespace.create", &namespace.spec.name, id, false, detail).await?;
        in_order(&mut namespace);
        Ok(namespace)
    }

    /// Namespaces of the actor's tenant by name: those that the actor may change or use.
    pub async fn list(
        &self,
        ctx: &OpCtx,
        filter: &NamespaceFilter,
        page: &Page,
    ) -> Result<Paged<Namespace>, Error> {
        somewhere(ctx, Permission::NamespacesRead)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let after: Option<String> = page.after(LIST)?;
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let unknown = |text: &str| !text.chars().all(part);
        let hidden = !filter.server.is_empty() && !ctx.sees_member(&filter.server);
        if unknown(&filter.name_contains) || unknown(&filter.server) || hidden {
            return Ok(Paged { items: Vec::new(), next: String::new() });
        }
        let found =
            store::list(&self.db.of(ctx.tenant()), ctx.tenant(), filter, after.as_deref(), limit + 1).await?;
        let limit = limit.min(fitting(&found));
        let mut paged = Paged::cut(found, limit, LIST, |namespace| namespace.spec.name.clone());
        // After the cut: a page may be short, but its cursor is right.
        paged.items = paged.items.into_iter().filter_map(|namespace| shown(ctx, namespace)).collect();
        Ok(paged)
    }

    /// One namespace of the actor's tenant.
    pub async fn get(&self, ctx: &OpCtx, name: &str) -> Result<Namespace, Error> {
        somewhere(ctx, Permission::NamespacesRead)?;
        know(ctx, name)?;
        let found = store::get(&self.db.of(ctx.tenant()), ctx.tenant(), name).await?;
        found.and_then(|namespace| shown(ctx, namespace)).ok_or_else(|| missing(name))
    }

    /// Replaces a namespace that is still at the version given, its members included.
    pub async fn update(&self, ctx: &OpCtx, spec: NamespaceSpec, version: u64) -> Result<Namespace, Error> {
        may_write(ctx, &spec.name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        // Whether it exists comes before whether the rest is right, so that a wrong name is told as one.
        let before = existing(&mut tx, ctx, &spec.name).await?;
        let servers = checked(&mut tx, ctx, &spec).await?;
        let present: HashSet<&str> =
            before.spec.servers.iter().map(|member| member.server.as_str()).collect();
        let joining = spec.servers.iter().enumerate().filter(|(_, m)| !present.contains(m.server.as_str()));
        let foreign = joining.filter(|(_, member)| !may_take_in(ctx, &member.server));
        let foreign: Vec<_> =
            foreign.map(|(i, _)| FieldError::new(format!("servers[{i}].server"), NO_SUCH_SERVER)).collect();
        if !foreign.is_empty() {
            return Err(Error::Invalid(foreign));
        }
        let now = micros(Utc::now());
        if !store::update(&mut tx, ctx.tenant(), &spec, version, now).await? {
            return Err(Error::Stale { current: before.version });
        }
        let mut namespace = Namespace { spec, version: version.saturating_add(1), updated_at: now, ..before };
        put_members(&mut tx, &namespace, &servers).await?;
        let (id, detail) = (namespace.id, detail(&namespace));
        self.finish(tx, ctx, "namespace.update", &namespace.spec.name, id, false, detail).await?;
        in_order(&mut namespace);
        Ok(namespace)
    }

    /// Removes a namespace; its servers stay. `default` cannot go.
    pub async fn delete(&self, ctx: &OpCtx, name: &str) -> Result<(), Error> {
        may_write(ctx, name)?;
        if name == DEFAULT_NAMESPACE {
            return Err(Error::invalid("name", "is `default`, which every tenant keeps"));
        }
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        let id = store::delete(&mut tx, ctx.tenant(), name).await?.ok_or_else(|| missing(name))?;
        // Before its name is another one's.
        let held = grants::drop_namespace(&mut tx, ctx.tenant(), name).await?;
        let held: Vec<_> =
            held.iter().map(|id| (ResourceKey::new(Kind::Principal, id.to_string()), false)).collect();
        changes::append_all(&mut tx, &held).await?;
        self.finish(tx, ctx, "namespace.delete", name, id, true, json!({ "id": id })).await
    }

    /// Takes a server into a namespace, or changes how a member is shown there.
    pub async fn add_server(&self, ctx: &OpCtx, name: &str, member: Member) -> Result<Namespace, Error> {
        may_write(ctx, name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        let namespace = existing(&mut tx, ctx, name).await?;
        let mut problems = member.problems("member.");
        let servers = store::server_ids(&mut tx, ctx.tenant(), &[&member.server]).await?;
        let present = namespace.spec.servers.iter().any(|known| known.server == member.server);
        let server = servers.get(&member.server).filter(|_| present || may_take_in(ctx, &member.server));
        if server.is_none() && problems.iter().all(|problem| problem.field != "member.server") {
            problems.push(FieldError::new("member.server", NO_SUCH_SERVER));
        }
        if with(&namespace.spec, &member).weight() > MOST_WEIGHT {
            problems.push(FieldError::new("member.expose", TOO_HEAVY));
        }
        let (Some(server), []) = (server, problems.as_slice()) else { return Err(Error::Invalid(problems)) };
        store::put_member(&mut tx, ctx.tenant(), namespace.id, *server, &member).await?;
        let detail = json!({ "server": member.server, "prefix": member.prefix });
        self.touched(tx, ctx, "namespace.add_server", namespace.id, name, detail).await
    }

    /// Takes a server out of a namespace.
    pub async fn remove_server(&self, ctx: &OpCtx, name: &str, server: &str) -> Result<Namespace, Error> {
        may_write(ctx, name)?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        let namespace = existing(&mut tx, ctx, name).await?;
        let no_member =
            || Error::NotFound(format!("server {} in namespace {}", clean(server, 64), clean(name, 64)));
        let member = namespace.spec.servers.iter().find(|member| member.server == server);
        let member = member.ok_or_else(no_member)?;
        let ids = store::server_ids(&mut tx, ctx.tenant(), &[&member.server]).await?;
        let id = ids.get(&member.server).ok_or_else(no_member)?;
        if !store::take_member(&mut tx, ctx.tenant(), namespace.id, *id).await? {
            return Err(no_member());
        }
        let detail = json!({ "server": server });
        self.touched(tx, ctx, "namespace.remove_server", namespace.id, name, detail).await
    }

    /// The end of a change of members: the namespace as it is now.
    async fn touched(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        action: &str,
        id: Uuid,
        name: &str,
        detail: Value,
    ) -> Result<Namespace, Error> {
        store::touch(&mut tx, ctx.tenant(), id, micros(Utc::now())).await?;
        let namespace = existing(&mut tx, ctx, name).await?;
        self.finish(tx, ctx, action, name, id, false, detail).await?;
        Ok(namespace)
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
        detail: Value,
    ) -> Result<(), Error> {
        note(&mut tx, ctx, action, name, detail).await?;
        append(&mut tx, id, removed).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }
}

/// Makes the namespace `default` of the actor's tenant, within the transaction of whoever found that it lacks it.
pub(crate) async fn first(tx: &mut Tx, ctx: &OpCtx, members: &[(Uuid, Member)]) -> Result<(), Error> {
    let namespace = made(ctx.tenant(), NamespaceSpec::first());
    // Another replica that starts just now may have been faster.
    if store::insert(tx, &namespace).await? {
        let members: Vec<_> = members.iter().map(|(id, member)| (*id, member)).collect();
        store::put_members(tx, ctx.tenant(), namespace.id, &members).await?;
        note(tx, ctx, "namespace.create", &namespace.spec.name, detail(&namespace)).await?;
        append(tx, namespace.id, false).await?;
    }
    Ok(())
}

async fn note(tx: &mut Tx, ctx: &OpCtx, action: &str, name: &str, detail: Value) -> Result<(), Error> {
    audit::note(tx, ctx, action, &format!("namespace/{name}"), detail).await
}

async fn append(tx: &mut Tx, id: Uuid, removed: bool) -> Result<(), Error> {
    changes::append(tx, &ResourceKey::new(Kind::Namespace, id.to_string()), removed).await?;
    Ok(())
}

async fn existing(tx: &mut Tx, ctx: &OpCtx, name: &str) -> Result<Namespace, Error> {
    store::find(tx, ctx.tenant(), name).await?.ok_or_else(|| missing(name))
}

async fn put_members(tx: &mut Tx, namespace: &Namespace, servers: &[Uuid]) -> Result<(), Error> {
    let members: Vec<_> = servers.iter().copied().zip(&namespace.spec.servers).collect();
    Ok(store::put_members(tx, &namespace.tenant, namespace.id, &members).await?)
}

/// The ids of the members, in their order, of a specification in which nothing is wrong.
async fn checked(tx: &mut Tx, ctx: &OpCtx, spec: &NamespaceSpec) -> Result<Vec<Uuid>, Error> {
    let mut problems = spec.problems();
    let names: Vec<&str> = spec.servers.iter().map(|member| member.server.as_str()).collect();
    let wrong: HashSet<String> = problems.iter().map(|problem| problem.field.clone()).collect();
    let known = store::server_ids(tx, ctx.tenant(), &names).await?;
    let mut ids = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        let field = format!("servers[{i}].server");
        match known.get(name) {
            Some(id) => ids.push(*id),
            None if wrong.contains(&field) => {}
            None => problems.push(FieldError::new(field, NO_SUCH_SERVER)),
        }
    }
    if problems.is_empty() { Ok(ids) } else { Err(Error::Invalid(problems)) }
}

/// What is held on no namespace at all is no question of one namespace.
fn somewhere(ctx: &OpCtx, permission: Permission) -> Result<(), Error> {
    if ctx.may_somewhere(permission) { Ok(()) } else { ctx.require(permission) }
}

/// A key that is for some servers sees a namespace with those alone, so it has not the whole to write.
fn has_the_whole(ctx: &OpCtx) -> Result<(), Error> {
    if ctx.key().is_none_or(|key| key.limits.servers.is_empty()) { Ok(()) } else { Err(Error::Denied) }
}

fn may_make(ctx: &OpCtx) -> Result<(), Error> {
    ctx.require(Permission::NamespacesWrite)?;
    has_the_whole(ctx)
}

/// Refuses who may not change this namespace; for those who may not even see it, it is not there.
fn may_write(ctx: &OpCtx, name: &str) -> Result<(), Error> {
    somewhere(ctx, Permission::NamespacesWrite)?;
    know(ctx, name)?;
    let on = Target::Namespace(name);
    if !ctx.may_on(Permission::NamespacesWrite, on) && !ctx.may_on(Permission::NamespacesRead, on) {
        return Err(missing(name));
    }
    ctx.require_on(Permission::NamespacesWrite, on)?;
    has_the_whole(ctx)
}

/// Whoever may change one namespace only must not reach through it what they may not use or change otherwise.
fn may_take_in(ctx: &OpCtx, server: &str) -> bool {
    let on = Target::Server(server);
    ctx.may(Permission::NamespacesWrite)
        || ctx.may_on(Permission::ServersWrite, on)
        || ctx.may_on(Permission::GatewayUse, on)
}

/// A key that is for some namespaces is told of the others what everyone is told of those that are not there.
fn know(ctx: &OpCtx, name: &str) -> Result<(), Error> {
    if ctx.sees_namespace(name) { Ok(()) } else { Err(missing(name)) }
}

/// A namespace as the actor sees it: whoever may write namespaces sees all, others those that they may use.
fn shown(ctx: &OpCtx, mut namespace: Namespace) -> Option<Namespace> {
    let (read, write) = (Permission::NamespacesRead, Permission::NamespacesWrite);
    let on = Target::Namespace(&namespace.spec.name);
    // A key that may not write sees what its owner may change.
    let owner_writes = ctx.principal().permissions_on(on).contains(write);
    let all = ctx.may_on(write, on) || (owner_writes && ctx.may_on(read, on));
    let seen = ctx.sees_namespace(&namespace.spec.name)
        && (all || level(&ctx.caller(), &Policy::default(), &namespace).is_some());
    if !seen {
        return None;
    }
    namespace.spec.servers.retain(|member| ctx.sees_member(&member.server));
    Some(namespace)
}

/// How many of these fit in one answer, which has the bound of one message: one at the least.
fn fitting(namespaces: &[Namespace]) -> u32 {
    let heavier = namespaces.iter().scan(0, |sum: &mut usize, namespace| {
        *sum += namespace.spec.weight();
        Some(*sum)
    });
    let count = heavier.take_while(|sum| *sum <= MOST_WEIGHT).count().max(1);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A namespace with one more member, or with another form of a member that it has.
fn with(spec: &NamespaceSpec, member: &Member) -> NamespaceSpec {
    let mut spec = spec.clone();
    spec.servers.retain(|present| present.server != member.server);
    spec.servers.push(member.clone());
    spec
}

fn made(tenant: &str, spec: NamespaceSpec) -> Namespace {
    let now = micros(Utc::now());
    Namespace {
        id: Uuid::now_v7(),
        tenant: tenant.to_owned(),
        spec,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

fn in_order(namespace: &mut Namespace) {
    namespace.spec.servers.sort_by(|one, other| one.server.cmp(&other.server));
}

/// What the audit says of a namespace: who may go how far in it is what people look for later.
fn detail(namespace: &Namespace) -> Value {
    use waffles_core::namespace::Level;
    let word = |level| match level {
        Level::View => "view",
        Level::Execute => "execute",
    };
    let spec = &namespace.spec;
    let levels: Vec<_> = spec.levels.iter().map(|entry| json!([entry.role, word(entry.level)])).collect();
    let principals: Vec<_> =
        spec.principals.iter().map(|entry| json!([entry.principal, word(entry.level)])).collect();
    let servers: Vec<_> = spec.servers.iter().map(|member| &member.server).collect();
    json!({
        "id": namespace.id, "version": namespace.version, "servers": servers, "levels": levels,
        "principals": principals, "is_default": spec.is_default, "tool_search": spec.tool_search,
    })
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("namespace {}", clean(name, 64)))
}
