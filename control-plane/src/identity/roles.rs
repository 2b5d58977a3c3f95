//! Roles of a tenant's own, beside the built-in ones, which nobody changes and no name hides. Whoever adds a permission to
//! a role gives it to everyone who holds the role, and so has to hold it.

use chrono::Utc;
use serde_json::json;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Permission, PermissionSet, Role, RoleDef, Scope};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::audit;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::store::changes;
use crate::store::grants::{self as store, StoredRole};

/// Roles of a tenant's own: every one of them is in the memory of every proxy, and a list shows all.
const ROLES_MOST: i64 = 200;

/// A role to make, or what one shall become.
#[derive(Debug, Clone, Default)]
pub struct NewRole {
    /// A DNS label that no built-in role has.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Such as `servers:read`.
    pub permissions: Vec<String>,
}

impl Identity {
    /// Makes a role.
    pub async fn create_role(&self, ctx: &OpCtx, new: NewRole) -> Result<StoredRole, Error> {
        ctx.require(Permission::AccessWrite)?;
        let role = read(ctx, new)?;
        let (mut tx, ctx) = self.change(ctx, Permission::AccessWrite).await?;
        may_add(&ctx, role.permissions)?;
        if store::count_roles(&mut tx, ctx.tenant()).await? >= ROLES_MOST {
            return Err(Error::Conflict(format!("there are {ROLES_MOST} roles already")));
        }
        let now = micros(Utc::now());
        if !store::insert_role(&mut tx, &role, ctx.principal().id, now).await? {
            return Err(Error::Conflict(format!("there is a role {} already", role.name)));
        }
        let detail = json!({ "id": role.id, "permissions": words(role.permissions) });
        audit::note(&mut tx, &ctx, "role.create", &resource(&role.name), detail).await?;
        changes::append(&mut tx, &key(&role), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(StoredRole { role, version: 1, created_at: now, updated_at: now })
    }

    /// The roles of the actor's tenant's own, by name.
    pub async fn list_roles(&self, ctx: &OpCtx) -> Result<Vec<StoredRole>, Error> {
        ctx.require(Permission::AccessRead)?;
        Ok(store::roles(&self.db.of(ctx.tenant()), ctx.tenant()).await?)
    }

    /// One role of the actor's tenant's own.
    pub async fn get_role(&self, ctx: &OpCtx, name: &str) -> Result<StoredRole, Error> {
        ctx.require(Permission::AccessRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        store::role(&mut tx, ctx.tenant(), name).await?.ok_or_else(|| missing(name))
    }

    /// Gives a role that is at the version given another description and other permissions.
    pub async fn update_role(&self, ctx: &OpCtx, new: NewRole, version: u64) -> Result<StoredRole, Error> {
        ctx.require(Permission::AccessWrite)?;
        is_changeable(&new.name)?;
        let role = read(ctx, new)?;
        let (mut tx, ctx) = self.change(ctx, Permission::AccessWrite).await?;
        let before = store::role(&mut tx, ctx.tenant(), &role.name).await?;
        let before = before.ok_or_else(|| missing(&role.name))?;
        let role = RoleDef { id: before.role.id, ..role };
        let added = role.permissions.iter().filter(|p| !before.role.permissions.contains(*p)).collect();
        may_add(&ctx, added)?;
        let now = micros(Utc::now());
        if !store::update_role(&mut tx, &role, version, now).await? {
            return Err(Error::Stale { current: before.version });
        }
        let detail = json!({
            "id": role.id, "before": words(before.role.permissions), "permissions": words(role.permissions),
        });
        audit::note(&mut tx, &ctx, "role.update", &resource(&role.name), detail).await?;
        changes::append(&mut tx, &key(&role), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(StoredRole { role, version: version.saturating_add(1), updated_at: now, ..before })
    }

    /// Removes a role that nobody holds.
    pub async fn delete_role(&self, ctx: &OpCtx, name: &str) -> Result<(), Error> {
        ctx.require(Permission::AccessWrite)?;
        is_changeable(name)?;
        let (mut tx, ctx) = self.change(ctx, Permission::AccessWrite).await?;
        let found = store::role(&mut tx, ctx.tenant(), name).await?;
        let role = found.ok_or_else(|| missing(name))?.role;
        let grants = store::count_of_role(&mut tx, ctx.tenant(), name).await?;
        if grants > 0 {
            let reason = format!("the role {name} is granted {grants} times; take those grants back first");
            return Err(Error::Conflict(reason));
        }
        store::delete_role(&mut tx, ctx.tenant(), name).await?;
        audit::note(&mut tx, &ctx, "role.delete", &resource(name), json!({ "id": role.id })).await?;
        changes::append(&mut tx, &key(&role), true).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }
}

/// A built-in role is there, and is not to be changed.
fn is_changeable(name: &str) -> Result<(), Error> {
    match Role::parse(name) {
        Some(_) => Err(Error::invalid("name", "is a built-in role, which nobody changes")),
        None => Ok(()),
    }
}

fn read(ctx: &OpCtx, new: NewRole) -> Result<RoleDef, Error> {
    let mut problems = Vec::new();
    let mut permissions = PermissionSet::NONE;
    for (i, name) in new.permissions.iter().enumerate() {
        match Permission::parse(name) {
            Some(permission) => permissions = permissions | [permission].into_iter().collect(),
            None => problems.push(FieldError::new(format!("permissions[{i}]"), "is not a permission")),
        }
    }
    let role = RoleDef {
        id: Uuid::now_v7(),
        tenant: ctx.tenant().to_owned(),
        name: new.name,
        description: new.description,
        permissions,
    };
    let unreadable = !problems.is_empty();
    problems.extend(role.problems().into_iter().filter(|wrong| !unreadable || wrong.field != "permissions"));
    if problems.is_empty() { Ok(role) } else { Err(Error::Invalid(problems)) }
}

/// In the whole tenant, since the role may be held there.
fn may_add(ctx: &OpCtx, added: PermissionSet) -> Result<(), Error> {
    let lacking = ctx.lacks(added, &Scope::Tenant);
    match lacking.iter().next() {
        Some(permission) => {
            let reason = format!("has {}, which you do not hold in the whole tenant", permission.as_str());
            Err(Error::invalid("permissions", reason))
        }
        None => Ok(()),
    }
}

fn words(permissions: PermissionSet) -> Vec<&'static str> {
    permissions.iter().map(Permission::as_str).collect()
}

fn key(role: &RoleDef) -> ResourceKey {
    ResourceKey::new(Kind::Role, role.id.to_string())
}

fn resource(name: &str) -> String {
    format!("role/{name}")
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("role {}", clean(name, 64)))
}
