//! How every change of who may do what begins and ends: one at a time in a tenant, by an actor as it is at that moment,
//! never leaving the tenant without an admin, and told to proxies.

use uuid::Uuid;
use waffles_core::policy::{Effect, Mode, Permission, PermissionSet, Scope, Who};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::store::{Tx, changes, grants, namespaces, principals, rules};

impl Identity {
    /// Begins a change. Changes of a tenant wait for each other, and the actor is read again once it is its turn: what it
    /// was allowed a moment ago may just have been taken from it.
    pub(super) async fn change(&self, ctx: &OpCtx, permission: Permission) -> Result<(Tx, OpCtx), Error> {
        ctx.require(permission)?;
        ctx.require_change()?;
        ctx.require_whole()?;
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        namespaces::lock(&mut tx, ctx.tenant()).await?;
        if ctx.is_system() {
            return Ok((tx, ctx.clone()));
        }
        let now = principals::principal(&mut tx, ctx.principal().id).await?;
        let now = now.filter(|now| now.active).ok_or(Error::Unauthenticated)?;
        let ctx = ctx.holding(now);
        ctx.require(permission)?;
        Ok((tx, ctx))
    }

    /// How many admins a tenant has, for [`Self::keeps_an_admin`].
    pub(super) async fn admins(&self, tx: &mut Tx, tenant: &str) -> Result<i64, Error> {
        Ok(grants::admins(tx, tenant).await?)
    }

    /// Refuses a change that took the last admin from a tenant, which nobody in it could undo. To be asked after the
    /// change, in its transaction.
    pub(super) async fn keeps_an_admin(&self, tx: &mut Tx, tenant: &str, before: i64) -> Result<(), Error> {
        if before > 0 && grants::admins(tx, tenant).await? == 0 {
            let reason = "nobody who can act would hold the role admin on the tenant any more; give it to another first";
            return Err(Error::Conflict(reason.into()));
        }
        Ok(())
    }

    /// Refuses to bring somebody under a rule that allows, or out from under one that forbids, where the actor could not give
    /// that access otherwise: rules go by names of groups, roles and principals, so whoever moves one of these gives what the
    /// rule does. Who may write rules may; and who may use the whole gateway may have others allowed to.
    pub(super) async fn may_move(
        &self,
        tx: &mut Tx,
        ctx: &OpCtx,
        (effect, field): (Effect, &str),
        named: impl Fn(&Who) -> bool,
    ) -> Result<(), Error> {
        let holds = |permission| {
            let wanted: PermissionSet = [permission].into_iter().collect();
            ctx.lacks(wanted, &Scope::Tenant).is_empty()
        };
        let gives = effect == Effect::Allow && holds(Permission::GatewayUse);
        if ctx.is_system() || gives || holds(Permission::PoliciesWrite) {
            return Ok(());
        }
        for rule in rules::all(tx, ctx.tenant()).await? {
            let spec = &rule.rule.spec;
            if spec.effect == effect && spec.mode == Mode::Enforce && named(&spec.principals) {
                let reason = format!(
                    "is what the rule {} goes by, and changing who that is takes the permission policies:write",
                    spec.name
                );
                return Err(Error::invalid(field, reason));
            }
        }
        Ok(())
    }

    /// Tells proxies of principals whose rights or state changed.
    pub(super) async fn touch(&self, tx: &mut Tx, ids: &[Uuid]) -> Result<(), Error> {
        for some in ids.chunks(MOST_AT_ONCE) {
            for principal in principals::principals(tx, Some(some)).await? {
                principals::note_roles(tx, &principal).await?;
            }
        }
        let keys: Vec<_> =
            ids.iter().map(|id| (ResourceKey::new(Kind::Principal, id.to_string()), false)).collect();
        changes::append_all(tx, &keys).await?;
        Ok(())
    }
}

/// Principals a statement.
const MOST_AT_ONCE: usize = 200;
