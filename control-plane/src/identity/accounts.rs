//! Users and service accounts: made, shown, deactivated and taken up again. Nobody is ever deleted, so that the audit
//! trail keeps meaning somebody.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Effect, Permission};
use waffles_core::principal::{Principal, PrincipalKind};

use crate::audit;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::{Identity, next_second};
use crate::page::{Page, Paged};
use crate::quota::{self, Limited};
use crate::store::accounts::{self as store, Account, AccountPage, Named};
use crate::store::{Tx, sessions};

const PAGE_MOST: u32 = 500;
const EMAIL_MOST: usize = 254;
const DISPLAY_MOST: usize = 100;

/// A token that sets a password once, shown this once.
#[derive(Debug)]
pub struct PasswordToken {
    /// `wfs_…`.
    pub secret: SecretString,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

impl Identity {
    /// Invites a user, who sets a password with the token. It holds nothing yet.
    pub async fn create_user(
        &self,
        ctx: &OpCtx,
        email: &str,
        display_name: &str,
        valid_for: Option<TimeDelta>,
    ) -> Result<(Account, PasswordToken), Error> {
        ctx.require(Permission::PrincipalsWrite)?;
        let email = email.trim().to_lowercase();
        let mut problems = display_problems(display_name);
        if !is_email(&email) {
            problems.push(FieldError::new("email", "is not an e-mail address"));
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let account = self.insert(&mut tx, &ctx, PrincipalKind::User, email, display_name).await?;
        let token = self.issue_token(&mut tx, &ctx, &account.principal, valid_for).await?;
        self.touch(&mut tx, &[account.principal.id]).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok((account, token))
    }

    /// Makes a service account, for which keys are made by those who may. It holds nothing yet.
    pub async fn create_service_account(
        &self,
        ctx: &OpCtx,
        name: &str,
        display_name: &str,
    ) -> Result<Account, Error> {
        ctx.require(Permission::PrincipalsWrite)?;
        let mut problems = display_problems(display_name);
        if !waffles_core::is_dns_label(name) {
            let reason = "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens";
            problems.push(FieldError::new("name", reason));
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let kind = PrincipalKind::ServiceAccount;
        let account = self.insert(&mut tx, &ctx, kind, name.to_owned(), display_name).await?;
        self.touch(&mut tx, &[account.principal.id]).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(account)
    }

    /// Users or service accounts of the actor's tenant by name.
    pub async fn list_accounts(
        &self,
        ctx: &OpCtx,
        kind: PrincipalKind,
        inactive: bool,
        page: &Page,
    ) -> Result<Paged<Account>, Error> {
        ctx.require(Permission::PrincipalsRead)?;
        let list = kind.as_str();
        let limit = page.limit(PAGE_MOST)?;
        let wanted = AccountPage { kind, inactive, after: page.after(list)?, limit: limit + 1 };
        let accounts = store::list(&self.db.of(ctx.tenant()), ctx.tenant(), &wanted).await?;
        Ok(Paged::cut(accounts, limit, list, |account| account.principal.name.clone()))
    }

    /// One user or service account of the actor's tenant, by its id or name.
    pub async fn get_account(&self, ctx: &OpCtx, kind: PrincipalKind, name: &str) -> Result<Account, Error> {
        ctx.require(Permission::PrincipalsRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        self.account(&mut tx, ctx, kind, name).await
    }

    /// Deactivates a user or service account, whose sessions end and whose credentials are refused everywhere, or takes it
    /// up again: its keys are good again then, its sessions are not. Nothing happens where it is so already.
    pub async fn set_account_active(
        &self,
        ctx: &OpCtx,
        kind: PrincipalKind,
        name: &str,
        active: bool,
    ) -> Result<Account, Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let mut account = self.account(&mut tx, &ctx, kind, name).await?;
        if account.principal.active == active {
            return Ok(account);
        }
        let (now, id, tenant) = (micros(Utc::now()), account.principal.id, ctx.tenant());
        if active {
            quota::admit(&mut tx, tenant, Limited::Principals).await?;
        }
        let admins = self.admins(&mut tx, tenant).await?;
        // Tokens of before stay refused when the account is taken up again.
        let not_before = next_second(now);
        store::set_active(&mut tx, tenant, id, active, not_before, now).await?;
        if !active {
            self.keeps_an_admin(&mut tx, tenant, admins).await?;
            sessions::end_of_user(&mut tx, tenant, id, None, "deactivated", now).await?;
            store::drop_tokens(&mut tx, tenant, id).await?;
        }
        let verb = if active { "reactivate" } else { "deactivate" };
        let detail = json!({ "id": id });
        audit::note(
            &mut tx,
            &ctx,
            &format!("{}.{verb}", kind.as_str()),
            &resource(&account.principal),
            detail,
        )
        .await?;
        self.touch(&mut tx, &[id]).await?;
        tx.commit().await?;
        self.discovery.poke();
        account.principal.active = active;
        account.principal.tokens_not_before = Some(not_before);
        Ok(account)
    }

    /// An account of the actor's tenant; what is not there or another's is the same.
    pub(super) async fn account(
        &self,
        tx: &mut Tx,
        ctx: &OpCtx,
        kind: PrincipalKind,
        name: &str,
    ) -> Result<Account, Error> {
        let found = store::find(tx, ctx.tenant(), Some(kind), &named(name)).await?;
        found.ok_or_else(|| missing(kind, name))
    }

    pub(super) async fn insert(
        &self,
        tx: &mut Tx,
        ctx: &OpCtx,
        kind: PrincipalKind,
        name: String,
        display_name: &str,
    ) -> Result<Account, Error> {
        quota::admit(tx, ctx.tenant(), Limited::Principals).await?;
        self.may_move(tx, ctx, (Effect::Allow, "name"), |who| who.names.contains(&name)).await?;
        let now = micros(Utc::now());
        let principal = Principal {
            id: Uuid::now_v7(),
            tenant: ctx.tenant().to_owned(),
            name,
            kind,
            active: true,
            ..Principal::default()
        };
        if !store::insert(tx, &principal, display_name, ctx.principal().id, now).await? {
            return Err(Error::Conflict(format!("there is a {} already", words(kind, &principal.name))));
        }
        let detail = json!({ "id": principal.id });
        audit::note(tx, ctx, &format!("{}.create", kind.as_str()), &resource(&principal), detail).await?;
        let display_name = display_name.to_owned();
        Ok(Account { principal, display_name, has_password: false, created_at: now })
    }
}

/// An account by its id where the text is one, else by its name.
pub(super) fn named(text: &str) -> Named {
    match text.parse() {
        Ok(id) => Named::Id(id),
        Err(_) => Named::Name(text.trim().to_lowercase()),
    }
}

pub(super) fn resource(principal: &Principal) -> String {
    format!("{}/{}", principal.kind.as_str(), principal.name)
}

fn missing(kind: PrincipalKind, name: &str) -> Error {
    Error::NotFound(words(kind, &clean(name, EMAIL_MOST)))
}

fn words(kind: PrincipalKind, name: &str) -> String {
    match kind {
        PrincipalKind::User => format!("user {name}"),
        PrincipalKind::ServiceAccount => format!("service account {name}"),
    }
}

fn display_problems(name: &str) -> Vec<FieldError> {
    let sound = name.chars().count() <= DISPLAY_MOST && !name.chars().any(char::is_control);
    if sound {
        return Vec::new();
    }
    vec![FieldError::new("display_name", "must have at most 100 characters and no control characters")]
}

/// The form of an address, as far as one can tell without sending to it: no spaces, one `@` with something on each side.
pub(super) fn is_email(text: &str) -> bool {
    let sound = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && c != '@');
    text.len() <= EMAIL_MOST
        && text.split_once('@').is_some_and(|(local, domain)| sound(local) && sound(domain))
        && !text.contains(['/', '\\', '"', '<', '>', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_two_sides_and_no_spaces() {
        for good in ["a@b", "admin@localhost", "uma.o'brien+x@example.org"] {
            assert!(is_email(good), "{good}");
        }
        for bad in ["", "a", "@b", "a@", "a@b@c", "a b@c", "a/b@c", "ä@b", &format!("{}@b", "a".repeat(254))]
        {
            assert!(!is_email(bad), "{bad}");
        }
    }
}
