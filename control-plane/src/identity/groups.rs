//! Groups: what is granted to one, its members hold. A name never changes, since grants and rules of the policy mean it.

use chrono::Utc;
use serde_json::json;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Effect, Permission, PermissionSet, Role, Who};

use crate::audit;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::identity::accounts::named;
use crate::page::{Page, Paged};
use crate::store::accounts::{self, Account};
use crate::store::groups::{self as store, Group, GroupMember};
use crate::store::{Tx, grants};

const PAGE_MOST: u32 = 500;
/// Names the list in cursors.
const LIST: &str = "groups";
/// Groups of a tenant, and members of a group: a change of a group is told to proxies member by member.
const GROUPS_MOST: i64 = 1000;
const MEMBERS_MOST: i64 = 1000;
const DESCRIPTION_MOST: usize = 1000;

impl Identity {
    /// Makes a group, with nobody in it.
    pub async fn create_group(&self, ctx: &OpCtx, name: &str, description: &str) -> Result<Group, Error> {
        ctx.require(Permission::PrincipalsWrite)?;
        let mut problems = Vec::new();
        if !waffles_core::is_dns_label(name) {
            let reason = "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens";
            problems.push(FieldError::new("name", reason));
        }
        if description.chars().count() > DESCRIPTION_MOST || description.contains('\0') {
            problems.push(FieldError::new("description", "must have at most 1000 characters and no NUL"));
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        if store::count(&mut tx, ctx.tenant()).await? >= GROUPS_MOST {
            return Err(Error::Conflict(format!("there are {GROUPS_MOST} groups already")));
        }
        let group = Group {
            id: Uuid::now_v7(),
            tenant: ctx.tenant().to_owned(),
            name: name.to_owned(),
            description: description.to_owned(),
            created_at: micros(Utc::now()),
            members: 0,
        };
        if !store::insert(&mut tx, &group, ctx.principal().id).await? {
            return Err(Error::Conflict(format!("there is a group {name} already")));
        }
        audit::note(&mut tx, &ctx, "group.create", &resource(name), json!({ "id": group.id })).await?;
        tx.commit().await?;
        Ok(group)
    }

    /// Groups of the actor's tenant by name.
    pub async fn list_groups(&self, ctx: &OpCtx, page: &Page) -> Result<Paged<Group>, Error> {
        ctx.require(Permission::PrincipalsRead)?;
        let limit = page.limit(PAGE_MOST)?;
        let after: Option<String> = page.after(LIST)?;
        let groups =
            store::list(&self.db.of(ctx.tenant()), ctx.tenant(), after.as_deref(), limit + 1).await?;
        Ok(Paged::cut(groups, limit, LIST, |group| group.name.clone()))
    }

    /// One group of the actor's tenant, and who is in it.
    pub async fn get_group(&self, ctx: &OpCtx, name: &str) -> Result<(Group, Vec<GroupMember>), Error> {
        ctx.require(Permission::PrincipalsRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        let group = existing(&mut tx, ctx, name).await?;
        let members = store::members(&mut tx, ctx.tenant(), group.id).await?;
        Ok((group, members))
    }

    /// Removes a group. Its members lose what they held through it.
    pub async fn delete_group(&self, ctx: &OpCtx, name: &str) -> Result<(), Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let group = existing(&mut tx, &ctx, name).await?;
        let admins = self.admins(&mut tx, ctx.tenant()).await?;
        let named = |who: &Who| who.groups.contains(&group.name);
        self.may_move(&mut tx, &ctx, (Effect::Forbid, "group"), named).await?;
        let members = store::member_ids(&mut tx, ctx.tenant(), group.id).await?;
        let held = grants::of_group(&mut tx, ctx.tenant(), group.id).await?.len();
        store::delete(&mut tx, ctx.tenant(), group.id).await?;
        self.keeps_an_admin(&mut tx, ctx.tenant(), admins).await?;
        let detail = json!({ "id": group.id, "members": members.len(), "grants": held });
        audit::note(&mut tx, &ctx, "group.delete", &resource(name), detail).await?;
        self.touch(&mut tx, &members).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }

    /// Puts a user or service account, named by its id or name, into a group. Whoever does so gives it all that the group
    /// holds, and so has to hold that. Nothing happens where it is in it already.
    pub async fn add_group_member(&self, ctx: &OpCtx, name: &str, member: &str) -> Result<Group, Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let group = existing(&mut tx, &ctx, name).await?;
        let account = existing_account(&mut tx, &ctx, member).await?;
        let mut lacking = PermissionSet::NONE;
        for grant in grants::of_group(&mut tx, ctx.tenant(), group.id).await? {
            let wanted = self.permissions_of(&mut tx, ctx.tenant(), &grant.role).await?.unwrap_or_default();
            lacking = lacking | ctx.lacks(wanted, &grant.scope);
        }
        if let Some(permission) = lacking.iter().next() {
            let reason = format!("holds {}, which you do not hold where it does", permission.as_str());
            return Err(Error::invalid("group", reason));
        }
        let named = |who: &Who| who.groups.contains(&group.name);
        self.may_move(&mut tx, &ctx, (Effect::Allow, "group"), named).await?;
        if group.members >= MEMBERS_MOST {
            return Err(Error::Conflict(format!("there are {MEMBERS_MOST} members in it already")));
        }
        let (now, id) = (micros(Utc::now()), account.principal.id);
        if !store::add_member(&mut tx, ctx.tenant(), group.id, id, now).await? {
            return Ok(group);
        }
        self.moved(tx, &ctx, "group.add_member", &group, &account).await
    }

    /// Takes a user or service account out of a group, and so from it what it held through that.
    pub async fn remove_group_member(&self, ctx: &OpCtx, name: &str, member: &str) -> Result<Group, Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let group = existing(&mut tx, &ctx, name).await?;
        let account = existing_account(&mut tx, &ctx, member).await?;
        let named = |who: &Who| who.groups.contains(&group.name);
        self.may_move(&mut tx, &ctx, (Effect::Forbid, "group"), named).await?;
        let admins = self.admins(&mut tx, ctx.tenant()).await?;
        if !store::take_member(&mut tx, ctx.tenant(), group.id, account.principal.id).await? {
            let member = clean(member, 254);
            return Err(Error::NotFound(format!("{member} in group {}", clean(name, 64))));
        }
        self.keeps_an_admin(&mut tx, ctx.tenant(), admins).await?;
        self.moved(tx, &ctx, "group.remove_member", &group, &account).await
    }

    /// The end of a change of members: the group as it is now.
    async fn moved(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        action: &str,
        group: &Group,
        account: &Account,
    ) -> Result<Group, Error> {
        let detail = json!({ "id": account.principal.id, "member": account.principal.name });
        audit::note(&mut tx, ctx, action, &resource(&group.name), detail).await?;
        let group = existing(&mut tx, ctx, &group.name).await?;
        self.touch(&mut tx, &[account.principal.id]).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(group)
    }

    /// What a role permits, built in or of the tenant's own; none where there is no such role.
    pub(super) async fn permissions_of(
        &self,
        tx: &mut Tx,
        tenant: &str,
        role: &str,
    ) -> Result<Option<PermissionSet>, Error> {
        let permissions = match Role::parse(role) {
            Some(role) => Some(role.permissions()),
            None => grants::role(tx, tenant, role).await?.map(|stored| stored.role.permissions),
        };
        Ok(permissions.map(|permissions| permissions.of_tenant(tenant)))
    }
}

pub(super) async fn existing(tx: &mut Tx, ctx: &OpCtx, name: &str) -> Result<Group, Error> {
    let found = store::find(tx, ctx.tenant(), name).await?;
    found.ok_or_else(|| Error::NotFound(format!("group {}", clean(name, 64))))
}

/// A user or a service account, whichever has the name: no name is that of both.
pub(super) async fn existing_account(tx: &mut Tx, ctx: &OpCtx, name: &str) -> Result<Account, Error> {
    let found = accounts::find(tx, ctx.tenant(), None, &named(name)).await?;
    found.ok_or_else(|| Error::NotFound(format!("user or service account {}", clean(name, 254))))
}

fn resource(name: &str) -> String {
    format!("group/{name}")
}
