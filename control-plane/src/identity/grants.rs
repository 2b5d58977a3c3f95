//! Grants: a role, given to a user, service account or group, in the whole tenant or on less. Whoever grants a role has to
//! hold all of it there.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Effect, Permission, Scope, Who};

use crate::audit;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::identity::groups::{existing, existing_account};
use crate::page::{Page, Paged};
use crate::store::grants::{self as store, Grant, GrantFilter, Holder};
use crate::store::{Tx, groups, namespaces};

const PAGE_MOST: u32 = 500;
/// Names the list in cursors.
const LIST: &str = "grants";
/// Grants of a tenant: what follows from them is in the memory of every proxy.
const GRANTS_MOST: i64 = 20_000;

/// Who shall hold a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantTo {
    /// A user or service account, by its id or name.
    Principal(String),
    /// A group, by its name.
    Group(String),
}

/// A grant to make.
#[derive(Debug, Clone)]
pub struct NewGrant {
    /// The role's name.
    pub role: String,
    /// To whom.
    pub to: GrantTo,
    /// Where.
    pub scope: Scope,
}

/// Which grants to list; what is left empty does not filter.
#[derive(Debug, Clone, Default)]
pub struct GrantsOf {
    /// Of this user or service account itself, by its id or name.
    pub principal: String,
    /// Of this group.
    pub group: String,
    /// Of this role.
    pub role: String,
}

impl Identity {
    /// Grants a role. Granting it twice is a conflict.
    pub async fn create_grant(&self, ctx: &OpCtx, new: NewGrant) -> Result<Grant, Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::AccessWrite).await?;
        let mut problems = new.scope.problems("scope.");
        if problems.is_empty() {
            problems.extend(absent(&mut tx, &ctx, &new.scope).await?);
        }
        let permissions = self.permissions_of(&mut tx, ctx.tenant(), &new.role).await?;
        match permissions {
            None => problems.push(FieldError::new("role", "is not the name of a role")),
            Some(permissions) => {
                if let Some(lacking) = ctx.lacks(permissions, &new.scope).iter().next() {
                    let reason = format!("permits {}, which you do not hold there", lacking.as_str());
                    problems.push(FieldError::new("role", reason));
                }
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        if new.scope == Scope::Tenant {
            let named = |who: &Who| who.roles.contains(&new.role);
            self.may_move(&mut tx, &ctx, (Effect::Allow, "role"), named).await?;
        }
        let (holder, holder_name, service, touched) = match &new.to {
            GrantTo::Principal(name) => {
                let account = existing_account(&mut tx, &ctx, name).await?.principal;
                let service = account.kind == waffles_core::principal::PrincipalKind::ServiceAccount;
                (Holder::Principal(account.id), account.name, service, vec![account.id])
            }
            GrantTo::Group(name) => {
                let group = existing(&mut tx, &ctx, name).await?;
                let members = groups::member_ids(&mut tx, ctx.tenant(), group.id).await?;
                (Holder::Group(group.id), group.name, false, members)
            }
        };
        if store::count(&mut tx, ctx.tenant()).await? >= GRANTS_MOST {
            return Err(Error::Conflict(format!("there are {GRANTS_MOST} grants already")));
        }
        let grant = Grant {
            id: Uuid::now_v7(),
            tenant: ctx.tenant().to_owned(),
            role: new.role,
            holder,
            holder_name,
            to_service_account: service,
            scope: new.scope,
            created_at: micros(Utc::now()),
            created_by: (!ctx.is_system()).then_some(ctx.principal().id),
        };
        if !store::insert(&mut tx, &grant).await? {
            let Grant { role, holder_name, .. } = &grant;
            return Err(Error::Conflict(format!("{holder_name} holds the role {role} there already")));
        }
        self.granted(tx, &ctx, "grant.create", &grant, &touched).await?;
        Ok(grant)
    }

    /// Grants of the actor's tenant, newest first.
    pub async fn list_grants(&self, ctx: &OpCtx, of: &GrantsOf, page: &Page) -> Result<Paged<Grant>, Error> {
        ctx.require(Permission::AccessRead)?;
        let limit = page.limit(PAGE_MOST)?;
        let before: Option<(i64, Uuid)> = page.after(LIST)?;
        let before = match before {
            Some((at, id)) => {
                let at = DateTime::from_timestamp_micros(at);
                Some((at.ok_or_else(|| Error::invalid("cursor", "is not a cursor of this list"))?, id))
            }
            None => None,
        };
        let db = self.db.of(ctx.tenant());
        let mut filter = GrantFilter { role: of.role.clone(), ..GrantFilter::default() };
        if !of.principal.is_empty() || !of.group.is_empty() {
            let mut tx = db.begin_read().await?;
            if !of.principal.is_empty() {
                filter.principal = Some(existing_account(&mut tx, ctx, &of.principal).await?.principal.id);
            }
            if !of.group.is_empty() {
                filter.group = Some(existing(&mut tx, ctx, &of.group).await?.id);
            }
        }
        let grants = store::list(&db, ctx.tenant(), &filter, before, limit + 1).await?;
        Ok(Paged::cut(grants, limit, LIST, |grant| (grant.created_at.timestamp_micros(), grant.id)))
    }

    /// Takes a grant back.
    pub async fn delete_grant(&self, ctx: &OpCtx, id: &str) -> Result<(), Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::AccessWrite).await?;
        let missing = || Error::NotFound(format!("grant {}", clean(id, 64)));
        let id: Uuid = id.parse().map_err(|_| missing())?;
        let grant = store::get(&mut tx, ctx.tenant(), id).await?.ok_or_else(missing)?;
        if grant.scope == Scope::Tenant {
            let named = |who: &Who| who.roles.contains(&grant.role);
            self.may_move(&mut tx, &ctx, (Effect::Forbid, "role"), named).await?;
        }
        let admins = self.admins(&mut tx, ctx.tenant()).await?;
        let touched = match grant.holder {
            Holder::Principal(id) => vec![id],
            Holder::Group(id) => groups::member_ids(&mut tx, ctx.tenant(), id).await?,
        };
        store::delete(&mut tx, ctx.tenant(), id).await?;
        self.keeps_an_admin(&mut tx, ctx.tenant(), admins).await?;
        self.granted(tx, &ctx, "grant.delete", &grant, &touched).await
    }

    /// The end of every change of grants: the audit event, the revision log, the commit, and proxies hear of it.
    async fn granted(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        action: &str,
        grant: &Grant,
        touched: &[Uuid],
    ) -> Result<(), Error> {
        let to = match grant.holder {
            Holder::Principal(id) => json!({ "principal": id, "name": grant.holder_name }),
            Holder::Group(id) => json!({ "group": id, "name": grant.holder_name }),
        };
        let detail = json!({ "role": grant.role, "to": to, "scope": grant.scope.to_string() });
        audit::note(&mut tx, ctx, action, &format!("grant/{}", grant.id), detail).await?;
        self.touch(&mut tx, touched).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }
}

/// What a scope names and is not there. What is granted on a name for later would be somebody else's by then.
async fn absent(tx: &mut Tx, ctx: &OpCtx, scope: &Scope) -> Result<Option<FieldError>, Error> {
    Ok(match scope {
        Scope::Tenant => None,
        Scope::Tools { server, .. } if server == "*" => None,
        Scope::Server(name) | Scope::Tools { server: name, .. } => {
            let known = namespaces::server_ids(tx, ctx.tenant(), &[name]).await?.contains_key(name.as_str());
            (!known).then(|| FieldError::new("scope.server", "is not the name of a server"))
        }
        Scope::Namespace(name) => {
            let known = namespaces::find(tx, ctx.tenant(), name).await?.is_some();
            (!known).then(|| FieldError::new("scope.namespace", "is not the name of a namespace"))
        }
    })
}
