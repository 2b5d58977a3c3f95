//! Sessions: a password opens one, refresh tokens keep it going, each good for one use. A refresh token is
//! sealed, so that a used one can be told from an invented one, and holds 256 random bits of which the store
//! keeps a keyed hash, so that neither the store nor the sealing key alone can make one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;
use waffles_core::DEFAULT_TENANT;
use waffles_core::audit::{Event, Outcome, clean, micros};
use waffles_core::credential::random_text;
use waffles_core::policy::Permission;
use waffles_core::principal::{Principal, PrincipalKind};

use crate::authz::OpCtx;
use crate::cache::Budget;
use crate::error::Error;
use crate::identity::local::PASSWORD_MOST;
use crate::identity::{Identity, token};
use crate::store::principals::{self as store, NewSession};
use crate::store::{Tx, sessions};
use crate::{audit, authz};

/// What every refresh token begins with.
const REFRESH_PREFIX: &str = "wfr_";
/// How long a refresh token lives; each use gives a new one.
const REFRESH_LIFE: TimeDelta = TimeDelta::days(30);
const PURPOSE: &[u8] = b"refresh-token";
/// How long after its issue an access token may still be taken for good somewhere, with clocks that differ.
pub(super) const TOKENS_LIVE: TimeDelta = TimeDelta::seconds(token::ACCESS_LIFE.num_seconds() + 60);
/// Characters of the secret in a refresh token: 256 bits.
const SECRET_LEN: usize = 43;
const EMAIL_MOST: usize = 254;
const REFRESH_MOST: usize = 512;

/// Failed attempts in five minutes: of one address on one account, of one address, on one account. The last is
/// wide, because whoever exhausts it keeps the owner out.
const PAIR_MOST: u32 = 10;
const ADDRESS_MOST: u32 = 50;
const ACCOUNT_MOST: u32 = 100;

/// What someone logs in with.
#[derive(Debug)]
pub struct Login {
    /// Empty means `default`.
    pub tenant: String,
    /// The account's address.
    pub email: String,
    /// Its password.
    pub password: SecretString,
}

/// A pair of tokens.
#[derive(Debug)]
pub struct Tokens {
    /// The access token.
    pub access: SecretString,
    /// When it ends.
    pub access_expires_at: DateTime<Utc>,
    /// The refresh token.
    pub refresh: SecretString,
    /// When it ends.
    pub refresh_expires_at: DateTime<Utc>,
}

impl Identity {
    /// Opens a session. An unknown account, a wrong password and a deactivated user get the same answer after
    /// the same work.
    pub async fn login(&self, ctx: &OpCtx, login: Login) -> Result<(Tokens, Principal), Error> {
        ctx.check(authz::Rule::Public)?;
        let (tenant, email) = account(&login)?;
        let budgets = self.budgets(ctx, &tenant, &email);
        if let Err(retry_after) = self.throttle.spend(&budgets).await {
            return Err(Error::Throttled { retry_after });
        }
        let found = store::user_by_email(&self.db.of(&tenant), &tenant, &email).await?;
        let known = found.is_some();
        let (user, stored) = found.unzip();
        let matches = self.passwords.verify(login.password, stored.flatten()).await?;
        let Some(user) = user.filter(|user| matches && user.active) else {
            // The trail of a tenant tells of its own accounts only; an address that is nobody's belongs to none.
            let tenant = if known { tenant.as_str() } else { DEFAULT_TENANT };
            self.note_refusal(ctx, tenant, &email).await?;
            return Err(Error::Unauthenticated);
        };
        self.throttle.refund(&budgets).await;
        let mut tx = self.db.of(&user.tenant).begin().await?;
        let tokens = self.open_session(&mut tx, ctx, &user, "password").await?;
        tx.commit().await?;
        Ok((tokens, user))
    }

    /// Opens a session in a transaction that goes on.
    pub(super) async fn open_session(
        &self,
        tx: &mut Tx,
        ctx: &OpCtx,
        user: &Principal,
        method: &str,
    ) -> Result<Tokens, Error> {
        let now = Utc::now();
        let (refresh, session) = self.new_refresh_token(Uuid::now_v7(), now)?;
        let ctx = ctx.on_behalf_of(user.clone(), session.id);
        let client_ip = ctx.address().map(|address| address.to_string()).unwrap_or_default();
        store::insert_session(tx, user, &session, &client_ip, now).await?;
        audit::note(tx, &ctx, "session.start", &resource(session.id), json!({"method": method})).await?;
        self.tokens(user, refresh, &session, now)
    }

    /// Exchanges a refresh token for new tokens. One that was used before ends the session: either its owner or
    /// a thief has it too, and nobody can tell which of them asks.
    pub async fn refresh(&self, ctx: &OpCtx, token: &SecretString) -> Result<Tokens, Error> {
        ctx.check(authz::Rule::Public)?;
        let id = self.session_of(token).ok_or(Error::Unauthenticated)?;
        let now = Utc::now();
        let (refresh, session) = self.new_refresh_token(id, now)?;
        let old = self.pepper.hash(token.expose_secret());
        let mut tx = self.db.everywhere().begin().await?;
        match store::rotate_session(&mut tx, &old, &session, now).await? {
            Some(user) if user.active => {
                tx.commit().await?;
                self.tokens(&user, refresh, &session, now)
            }
            // Dropping the transaction leaves the token as it was; an inactive user cannot use it anyway.
            Some(_) => Err(Error::Unauthenticated),
            None => {
                if self.end_shown(tx, ctx, id, "reuse", "a refresh token was used twice").await? {
                    tracing::warn!(session.id = %id, "a refresh token was used twice; the session has ended");
                }
                Err(Error::Unauthenticated)
            }
        }
    }

    /// Ends the session of a refresh token. Tells nobody whether there was one.
    pub async fn logout(&self, ctx: &OpCtx, token: &SecretString) -> Result<(), Error> {
        ctx.check(authz::Rule::Public)?;
        let Some(id) = self.session_of(token) else { return Ok(()) };
        let tx = self.db.everywhere().begin().await?;
        self.end_shown(tx, ctx, id, "logout", "logout").await?;
        Ok(())
    }

    /// Ends the session that a refresh token named, whoever shows it; tells whether it lived.
    async fn end_shown(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        id: Uuid,
        reason: &str,
        words: &str,
    ) -> Result<bool, Error> {
        let now = Utc::now();
        let Some(user) = store::session_owner(&mut tx, id, now).await? else { return Ok(false) };
        let Some(ended) = sessions::end(&mut tx, &user.tenant, id, reason, now).await? else {
            return Ok(false);
        };
        let ctx = ctx.on_behalf_of(user, id);
        audit::note(&mut tx, &ctx, "session.end", &resource(id), json!({"reason": words})).await?;
        sessions::announce(&mut tx, &[ended], TOKENS_LIVE, now).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(true)
    }

    /// The sessions that live: the actor's own, or those of another user, named by its id or address.
    pub async fn list_sessions(&self, ctx: &OpCtx, user: &str) -> Result<Vec<sessions::Session>, Error> {
        let db = self.db.of(ctx.tenant());
        let user = if user.is_empty() {
            ctx.principal().id
        } else {
            ctx.require(Permission::PrincipalsRead)?;
            let mut tx = db.begin_read().await?;
            self.account(&mut tx, ctx, PrincipalKind::User, user).await?.principal.id
        };
        Ok(sessions::of_user(&db, ctx.tenant(), user, Utc::now()).await?)
    }

    /// Ends a session: one's own, or with the right to change principals another's. Its access tokens are refused by every
    /// proxy within a second.
    pub async fn revoke_session(&self, ctx: &OpCtx, id: &str) -> Result<(), Error> {
        ctx.require_change()?;
        let missing = || Error::NotFound(format!("session {}", clean(id, 64)));
        let id: Uuid = id.parse().map_err(|_| missing())?;
        let now = Utc::now();
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        let found = sessions::find(&mut tx, ctx.tenant(), id, now).await?;
        let session = found.filter(|session| may_end(ctx, session.user_id)).ok_or_else(missing)?;
        let ended = sessions::end(&mut tx, ctx.tenant(), id, "revoked", now).await?.ok_or_else(missing)?;
        let detail = json!({"reason": "revoked", "user": session.user_name});
        audit::note(&mut tx, ctx, "session.end", &resource(id), detail).await?;
        sessions::announce(&mut tx, &[ended], TOKENS_LIVE, now).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(())
    }

    /// Ends every session of the actor, or of another user, named by its id or address; tells how many there were.
    pub async fn revoke_sessions(&self, ctx: &OpCtx, user: &str) -> Result<usize, Error> {
        ctx.require_change()?;
        if !user.is_empty() {
            ctx.require(Permission::PrincipalsWrite)?;
        }
        let now = Utc::now();
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        let user = match user {
            "" if may_end(ctx, ctx.principal().id) => ctx.principal().clone(),
            "" => return Err(Error::Denied),
            user => self.account(&mut tx, ctx, PrincipalKind::User, user).await?.principal,
        };
        let ended = sessions::end_of_user(&mut tx, ctx.tenant(), user.id, None, "revoked", now).await?;
        if !ended.is_empty() {
            let detail = json!({"reason": "revoked", "sessions": ended.len()});
            audit::note(&mut tx, ctx, "session.end", &format!("user/{}", user.name), detail).await?;
            sessions::announce(&mut tx, &ended, TOKENS_LIVE, now).await?;
            tx.commit().await?;
            self.discovery.poke();
        }
        Ok(ended.len())
    }

    /// Notes a log-in that was refused. The throttle bounds how many there can be.
    async fn note_refusal(&self, ctx: &OpCtx, tenant: &str, email: &str) -> Result<(), Error> {
        let event = Event {
            tenant: tenant.to_owned(),
            action: "session.start".to_owned(),
            outcome: Outcome::Unauthenticated,
            reason: "bad_credentials".to_owned(),
            client_ip: ctx.address().map(|address| address.to_string()).unwrap_or_default(),
            resource: format!("user/{}", clean(email, EMAIL_MOST)),
            ..Event::new(ctx.request_id(), Utc::now())
        };
        let mut tx = self.db.of(tenant).begin().await?;
        tx.note(event);
        Ok(tx.commit().await?)
    }

    fn tokens(
        &self,
        user: &Principal,
        refresh: SecretString,
        session: &NewSession,
        now: DateTime<Utc>,
    ) -> Result<Tokens, Error> {
        let claims = token::claims(user, session.id, now);
        Ok(Tokens {
            access: self.keyring.sign(&claims, now)?.into(),
            access_expires_at: DateTime::from_timestamp(claims.exp, 0).unwrap_or(now),
            refresh,
            refresh_expires_at: micros(session.expires_at),
        })
    }

    fn new_refresh_token(&self, id: Uuid, now: DateTime<Utc>) -> Result<(SecretString, NewSession), Error> {
        let plain = [id.as_bytes().as_slice(), random_text(SECRET_LEN)?.as_bytes()].concat();
        let sealed = self.refresh_seal.seal(PURPOSE, &plain)?;
        let text = format!("{REFRESH_PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed));
        let refresh_hash = self.pepper.hash(&text);
        Ok((text.into(), NewSession { id, refresh_hash, expires_at: now + REFRESH_LIFE }))
    }

    /// The session of a refresh token that we made, used or not.
    fn session_of(&self, token: &SecretString) -> Option<Uuid> {
        let text = token.expose_secret();
        if text.len() > REFRESH_MOST {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(text.strip_prefix(REFRESH_PREFIX)?).ok()?;
        // Earlier versions sealed them as what lies in the database.
        let plain =
            self.refresh_seal.open(PURPOSE, &sealed).or_else(|_| self.seal.open(PURPOSE, &sealed)).ok()?;
        Uuid::from_slice(plain.get(..16)?).ok()
    }

    /// What an attempt counts against. The names are keyed hashes, so that Redis holds no addresses.
    pub(super) fn budgets(&self, ctx: &OpCtx, tenant: &str, email: &str) -> Vec<Budget> {
        let address = ctx.address().map(network).unwrap_or_default();
        vec![
            self.budget("pair", &format!("{tenant}/{email} {address}"), PAIR_MOST),
            self.budget("address", &address, ADDRESS_MOST),
            self.budget("account", &format!("{tenant}/{email}"), ACCOUNT_MOST),
        ]
    }

    /// What an attempt that names no account counts against.
    pub(super) fn address_budget(&self, ctx: &OpCtx) -> Vec<Budget> {
        let address = ctx.address().map(network).unwrap_or_default();
        vec![self.budget("address", &address, ADDRESS_MOST)]
    }

    fn budget(&self, kind: &str, what: &str, most: u32) -> Budget {
        let hash = self.pepper.hash(&format!("throttle:{kind}:{what}"));
        Budget { key: URL_SAFE_NO_PAD.encode(hash), most }
    }
}

/// Checks the form of what was given; addresses are compared without case.
fn account(login: &Login) -> Result<(String, String), Error> {
    let tenant = match login.tenant.as_str() {
        "" => DEFAULT_TENANT,
        tenant => tenant,
    };
    let email = login.email.trim().to_lowercase();
    let mut problems = Vec::new();
    let mut wrong = |field: &str, reason: &str| problems.push(waffles_core::FieldError::new(field, reason));
    if !waffles_core::is_dns_label(tenant) {
        wrong("tenant", "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
    }
    if email.is_empty() || email.len() > EMAIL_MOST || email.chars().any(char::is_control) {
        wrong("email", "must have 1 to 254 bytes and no control characters");
    }
    let password = login.password.expose_secret();
    if password.is_empty() || password.len() > PASSWORD_MOST {
        wrong("password", "must have 1 to 1024 bytes");
    }
    if problems.is_empty() { Ok((tenant.to_owned(), email)) } else { Err(Error::Invalid(problems)) }
}

/// One subscriber usually has a whole /64 of IPv6.
fn network(address: std::net::IpAddr) -> String {
    match address.to_canonical() {
        std::net::IpAddr::V4(v4) => v4.to_string(),
        std::net::IpAddr::V6(v6) => format!("{:x}/64", u128::from(v6) >> 64),
    }
}

/// Whether the actor may end the sessions of a user. A key ends those of others only: it is no session, and whoever has it
/// shall not be able to lock its owner out.
fn may_end(ctx: &OpCtx, user: Uuid) -> bool {
    let own = ctx.principal().id == user && ctx.session().is_some();
    own || ctx.may(Permission::PrincipalsWrite)
}

fn resource(session: Uuid) -> String {
    format!("session/{session}")
}
