//! Tenants: made with what each starts with, shown, suspended and limited by those who run the whole Waffles. Nothing here
//! shows what is in a tenant, and none is ever removed, so that its audit trail keeps meaning somebody.

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::Permission;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::{DEFAULT_TENANT, FieldError};

use crate::authz::OpCtx;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::identity::{Identity, PasswordToken};
use crate::page::{Page, Paged};
use crate::store::{Db, Tx, changes, namespaces as locks, tenants as store};
use crate::{audit, namespaces};

pub use crate::store::tenants::{Limits, Tenant, Usage};

const MOST_PER_PAGE: u32 = 500;
const MOST_TEXT: usize = 1000;
/// Names the list in cursors.
const LIST: &str = "tenants";
/// What a tenant may have that is given no limits: far from what anyone needs, near to what one Waffles can bear.
const GENEROUS: Limits =
    Limits { max_servers: Some(1000), max_principals: Some(10_000), max_api_keys: Some(50_000) };

/// The tenants.
#[derive(Clone)]
pub struct Tenants {
    db: Db,
    identity: Identity,
    discovery: Discovery,
}

/// A tenant to make.
#[derive(Debug, Clone, Default)]
pub struct NewTenant {
    /// A DNS label.
    pub id: String,
    /// At most 1000 characters.
    pub description: String,
    /// The address of its first admin.
    pub admin_email: String,
    /// How much it may have; none for what is generous.
    pub limits: Option<Limits>,
}

/// A new tenant, and the way in for its first admin.
#[derive(Debug)]
pub struct Founded {
    /// The tenant.
    pub tenant: Tenant,
    /// Its first admin.
    pub admin_email: String,
    /// Sets the admin's password, once.
    pub token: PasswordToken,
}

impl Tenants {
    /// On a database; the first admin of each tenant is made by `identity`.
    pub fn new(db: Db, identity: Identity, discovery: Discovery) -> Self {
        // Who runs all tenants is of none of them.
        Self { db: db.everywhere(), identity, discovery }
    }

    /// Makes a tenant with its namespace `default` and its first admin.
    pub async fn create(&self, ctx: &OpCtx, new: NewTenant) -> Result<Founded, Error> {
        may_change(ctx)?;
        check(&new)?;
        let tenant = Tenant {
            id: new.id,
            description: new.description,
            created_at: micros(Utc::now()),
            suspended_at: None,
            limits: new.limits.unwrap_or(GENEROUS),
        };
        let mut tx = self.db.begin().await?;
        if !store::insert(&mut tx, &tenant).await? {
            return Err(Error::Conflict(format!("there is a tenant {} already", tenant.id)));
        }
        // What comes with it stands in its own trail, under no name of another tenant's.
        let there = OpCtx::system_of(&tenant.id);
        namespaces::first(&mut tx, &there, &[]).await?;
        let (admin, token) = self.identity.found_admin(&mut tx, &there, &new.admin_email).await?;
        let detail = json!({ "admin": admin.name, "limits": words(tenant.limits) });
        note(&mut tx, ctx, "tenant.create", &tenant.id, detail).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(Founded { tenant, admin_email: admin.name, token })
    }

    /// Tenants by id.
    pub async fn list(&self, ctx: &OpCtx, page: &Page) -> Result<Paged<Tenant>, Error> {
        ctx.require(Permission::TenantsManage)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let after: Option<String> = page.after(LIST)?;
        let tenants = store::list(&self.db, after.as_deref(), limit + 1).await?;
        Ok(Paged::cut(tenants, limit, LIST, |tenant| tenant.id.clone()))
    }

    /// One tenant, and how much there is in it.
    pub async fn get(&self, ctx: &OpCtx, id: &str) -> Result<(Tenant, Usage), Error> {
        ctx.require(Permission::TenantsManage)?;
        let mut tx = self.db.begin_read().await?;
        let tenant = existing(&mut tx, id).await?;
        let usage = store::usage(&mut tx, &tenant.id, Utc::now()).await?;
        Ok((tenant, usage))
    }

    /// Has everybody of a tenant refused everywhere, or lets them in again: each is published as one that is not active.
    /// Nothing happens where it is so already.
    pub async fn set_suspended(&self, ctx: &OpCtx, id: &str, suspended: bool) -> Result<Tenant, Error> {
        may_change(ctx)?;
        if suspended && id == DEFAULT_TENANT {
            return Err(Error::invalid("id", "is `default`, from which the others are run"));
        }
        let mut tx = self.db.begin().await?;
        locks::lock(&mut tx, id).await?;
        let mut tenant = existing(&mut tx, id).await?;
        let since = suspended.then(|| micros(Utc::now()));
        if !store::set_suspended(&mut tx, id, since).await? {
            return Ok(tenant);
        }
        tenant.suspended_at = since;
        let action = if suspended { "tenant.suspend" } else { "tenant.resume" };
        note(&mut tx, ctx, action, id, json!({})).await?;
        // Its own admins shall find out, too, though not by whom.
        note(&mut tx, &OpCtx::system_of(id), action, id, json!({})).await?;
        let everybody = store::principals(&mut tx, id).await?;
        let key = |id: &Uuid| (ResourceKey::new(Kind::Principal, id.to_string()), false);
        let keys: Vec<(ResourceKey, bool)> = everybody.iter().map(key).collect();
        changes::append_all(&mut tx, &keys).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(tenant)
    }

    /// Replaces what a tenant may have. What there is stays, also where it is more.
    pub async fn set_limits(&self, ctx: &OpCtx, id: &str, limits: Limits) -> Result<Tenant, Error> {
        may_change(ctx)?;
        let mut tx = self.db.begin().await?;
        locks::lock(&mut tx, id).await?;
        let before = existing(&mut tx, id).await?;
        store::set_limits(&mut tx, id, limits).await?;
        let detail = json!({ "limits": words(limits), "before": words(before.limits) });
        note(&mut tx, ctx, "tenant.set_limits", id, detail).await?;
        tx.commit().await?;
        Ok(Tenant { limits, ..before })
    }
}

fn may_change(ctx: &OpCtx) -> Result<(), Error> {
    ctx.require(Permission::TenantsManage)?;
    ctx.require_change()
}

async fn existing(tx: &mut Tx, id: &str) -> Result<Tenant, Error> {
    // What is no label is the id of none, and a NUL would be the database's fault to tell.
    let found = if waffles_core::is_dns_label(id) { store::find(tx, id).await? } else { None };
    found.ok_or_else(|| Error::NotFound(format!("tenant {}", clean(id, 64))))
}

async fn note(tx: &mut Tx, ctx: &OpCtx, action: &str, id: &str, detail: Value) -> Result<(), Error> {
    audit::note(tx, ctx, action, &format!("tenant/{id}"), detail).await
}

fn check(new: &NewTenant) -> Result<(), Error> {
    let mut problems = Vec::new();
    if !waffles_core::is_dns_label(&new.id) {
        let reason = "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens";
        problems.push(FieldError::new("id", reason));
    }
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if new.description.chars().count() > MOST_TEXT || new.description.chars().any(control) {
        let reason = "must have at most 1000 characters and no control characters";
        problems.push(FieldError::new("description", reason));
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

fn words(limits: Limits) -> Value {
    let Limits { max_servers, max_principals, max_api_keys } = limits;
    json!({ "max_servers": max_servers, "max_principals": max_principals, "max_api_keys": max_api_keys })
}
