//! Passwords that change: by their owner, who shows the present one, or by a token that is good once. Whoever makes such a
//! token could use it, so nobody makes one for somebody who holds more.

use chrono::{TimeDelta, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use waffles_core::audit::{Event, Outcome, micros};
use waffles_core::credential::random_text;
use waffles_core::policy::Permission;
use waffles_core::principal::{Principal, PrincipalKind};
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::{DEFAULT_TENANT, FieldError};

use crate::audit;
use crate::authz::{OpCtx, Rule};
use crate::error::Error;
use crate::identity::accounts::{PasswordToken, resource};
use crate::identity::local::PASSWORD_MOST;
use crate::identity::session::Tokens;
use crate::identity::{Identity, next_second};
use crate::store::accounts::{self as store, TokenRow};
use crate::store::{Tx, changes, principals, sessions};

/// What every token begins with.
const PREFIX: &str = "wfs_";
/// Characters after it: 256 bits.
const SECRET_LEN: usize = 43;
/// How long a token is good at the most, and where nothing is said.
const LIFE_MOST: TimeDelta = TimeDelta::hours(24);
const LIFE_LEAST: TimeDelta = TimeDelta::minutes(1);
/// Bytes of a new password at the least.
const PASSWORD_LEAST: usize = 12;

impl Identity {
    /// Makes a token with which a user sets a new password once. The one made before is void; the present password stays
    /// good until the token is used.
    pub async fn create_password_token(
        &self,
        ctx: &OpCtx,
        user: &str,
        valid_for: Option<TimeDelta>,
    ) -> Result<PasswordToken, Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::PrincipalsWrite).await?;
        let user = self.account(&mut tx, &ctx, PrincipalKind::User, user).await?.principal;
        if !user.active {
            return Err(Error::Conflict(format!("user {} is deactivated; reactivate it first", user.name)));
        }
        if !ctx.covers(&user) {
            return Err(Error::Denied);
        }
        let token = self.issue_token(&mut tx, &ctx, &user, valid_for).await?;
        tx.commit().await?;
        Ok(token)
    }

    pub(super) async fn issue_token(
        &self,
        tx: &mut Tx,
        ctx: &OpCtx,
        user: &Principal,
        valid_for: Option<TimeDelta>,
    ) -> Result<PasswordToken, Error> {
        let life = valid_for.unwrap_or(LIFE_MOST);
        if !(LIFE_LEAST..=LIFE_MOST).contains(&life) {
            return Err(Error::invalid("valid_for", "must be one minute to 24 hours"));
        }
        let now = micros(Utc::now());
        let secret: SecretString = format!("{PREFIX}{}", random_text(SECRET_LEN)?).into();
        let expires_at = now + life;
        let by = (!ctx.is_system()).then_some(ctx.principal().id);
        let row = TokenRow { tenant: user.tenant.clone(), user_id: user.id, created_by: by };
        store::put_token(tx, &self.pepper.hash(secret.expose_secret()), &row, now, expires_at).await?;
        let detail = json!({ "id": user.id, "expires_at": expires_at });
        audit::note(tx, ctx, "user.password_token", &resource(user), detail).await?;
        Ok(PasswordToken { secret, expires_at })
    }

    /// Sets a password with a token, which is used up. Sessions and access tokens of before end.
    pub async fn set_password(
        &self,
        ctx: &OpCtx,
        token: &SecretString,
        password: SecretString,
    ) -> Result<(), Error> {
        ctx.check(Rule::Public)?;
        check(&password, "")?;
        let budgets = self.address_budget(ctx);
        if let Err(retry_after) = self.throttle.spend(&budgets).await {
            return Err(Error::Throttled { retry_after });
        }
        let now = micros(Utc::now());
        let text = token.expose_secret();
        let known =
            is_ours(text) && store::is_token(&self.db.everywhere(), &self.pepper.hash(text), now).await?;
        if !known {
            self.note_bad_token(ctx).await?;
            return Err(Error::Unauthenticated);
        }
        let hash = self.passwords.hash(password.clone()).await?;
        let mut tx = self.db.everywhere().begin().await?;
        let Some(row) = store::take_token(&mut tx, &self.pepper.hash(text), now).await? else {
            return Err(Error::Unauthenticated);
        };
        let user = principals::principal(&mut tx, row.user_id).await?.filter(|user| user.active);
        let user = user.ok_or(Error::Unauthenticated)?;
        check(&password, &user.name)?;
        // The user may have been given more since. A token must not be worth more than whoever made it.
        if let Some(maker) = row.created_by {
            let maker = principals::principal(&mut tx, maker).await?.filter(|maker| maker.active);
            let maker = maker.ok_or(Error::Unauthenticated)?;
            if !OpCtx::authenticated(maker, None, None, ctx.request_id(), None).covers(&user) {
                return Err(Error::Unauthenticated);
            }
        }
        self.replace_password(&mut tx, &user, &hash).await?;
        let ctx = OpCtx::authenticated(user.clone(), None, None, ctx.request_id(), ctx.address());
        audit::note(&mut tx, &ctx, "user.set_password", &resource(&user), json!({ "id": user.id })).await?;
        let key = ResourceKey::new(Kind::Principal, user.id.to_string());
        changes::append(&mut tx, &key, false).await?;
        tx.commit().await?;
        self.throttle.refund(&budgets).await;
        self.discovery.poke();
        Ok(())
    }

    /// Changes the actor's own password. Every session and access token of before ends, this one too: the answer is a new
    /// session. A key changes no password, nor does whoever only found a session open: the present one is asked for.
    pub async fn change_password(
        &self,
        ctx: &OpCtx,
        present: SecretString,
        password: SecretString,
    ) -> Result<(Tokens, Principal), Error> {
        ctx.require_change()?;
        let user = ctx.principal();
        if ctx.session().is_none() || user.kind != PrincipalKind::User {
            return Err(Error::Denied);
        }
        check(&password, &user.name)?;
        if present.expose_secret().len() > PASSWORD_MOST {
            return Err(Error::invalid("present_password", "must have at most 1024 bytes"));
        }
        let budgets = self.budgets(ctx, &user.tenant, &user.name);
        if let Err(retry_after) = self.throttle.spend(&budgets).await {
            return Err(Error::Throttled { retry_after });
        }
        let db = self.db.of(ctx.tenant());
        let mut tx = db.begin_read().await?;
        let stored = store::password_hash(&mut tx, &user.tenant, user.id).await?;
        drop(tx);
        if !self.passwords.verify(present, stored.clone()).await? {
            return Err(Error::invalid("present_password", "is not the present password"));
        }
        self.throttle.refund(&budgets).await;
        let hash = self.passwords.hash(password).await?;
        let mut tx = db.begin().await?;
        // The first to change it wins: the other one's idea of the present password is wrong by then.
        crate::store::namespaces::lock(&mut tx, &user.tenant).await?;
        if store::password_hash(&mut tx, &user.tenant, user.id).await? != stored {
            return Err(Error::invalid("present_password", "is not the present password"));
        }
        let not_before = self.replace_password(&mut tx, user, &hash).await?;
        let user = Principal { tokens_not_before: Some(not_before), ..user.clone() };
        audit::note(&mut tx, ctx, "user.change_password", &resource(&user), json!({ "id": user.id })).await?;
        let tokens = self.open_session(&mut tx, ctx, &user, "password_change").await?;
        let key = ResourceKey::new(Kind::Principal, user.id.to_string());
        changes::append(&mut tx, &key, false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok((tokens, user))
    }

    /// Puts a password in place and ends what the one before began.
    async fn replace_password(
        &self,
        tx: &mut Tx,
        user: &Principal,
        hash: &str,
    ) -> Result<chrono::DateTime<Utc>, Error> {
        let now = micros(Utc::now());
        let not_before = next_second(now);
        store::set_password(tx, &user.tenant, user.id, hash, not_before, now).await?;
        store::drop_tokens(tx, &user.tenant, user.id).await?;
        sessions::end_of_user(tx, &user.tenant, user.id, None, "password", now).await?;
        Ok(not_before)
    }

    /// Notes a token that was refused. The throttle bounds how many there can be.
    async fn note_bad_token(&self, ctx: &OpCtx) -> Result<(), Error> {
        let event = Event {
            tenant: DEFAULT_TENANT.to_owned(),
            action: "user.set_password".to_owned(),
            outcome: Outcome::Unauthenticated,
            reason: "bad_token".to_owned(),
            client_ip: ctx.address().map(|address| address.to_string()).unwrap_or_default(),
            ..Event::new(ctx.request_id(), Utc::now())
        };
        let mut tx = self.db.of(DEFAULT_TENANT).begin().await?;
        tx.note(event);
        Ok(tx.commit().await?)
    }
}

fn is_ours(text: &str) -> bool {
    let secret = text.strip_prefix(PREFIX);
    secret.is_some_and(|s| s.len() == SECRET_LEN && s.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// What a new password must be: long, and not the name of its account. No rule about kinds of characters, which makes
/// passwords worse (NIST SP 800-63B, 3.1.1.2).
fn check(password: &SecretString, name: &str) -> Result<(), Error> {
    let text = password.expose_secret();
    let mut problems = Vec::new();
    if !(PASSWORD_LEAST..=PASSWORD_MOST).contains(&text.len()) {
        problems.push(FieldError::new("password", "must have 12 to 1024 bytes"));
    } else if text.eq_ignore_ascii_case(name) || text.bytes().all(|b| Some(b) == text.bytes().next()) {
        problems.push(FieldError::new("password", "is too easy to guess"));
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_passwords_and_names_are_none() {
        for (password, good) in [
            ("correct horse", true),
            ("short", false),
            ("aaaaaaaaaaaaaaaa", false),
            ("uma@example.org", false),
            ("UMA@example.org", false),
            (&"x1".repeat(600), false),
        ] {
            assert_eq!(check(&password.into(), "uma@example.org").is_ok(), good, "{password}");
        }
    }

    #[test]
    fn a_token_has_its_form() {
        assert!(is_ours(&format!("wfs_{}", "a".repeat(43))));
        for bad in
            ["", "wfs_", "wfr_x", &format!("wfs_{}", "a".repeat(44)), &format!("wfs_{}-", "a".repeat(42))]
        {
            assert!(!is_ours(bad), "{bad}");
        }
    }
}
