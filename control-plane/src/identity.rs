//! One door: a credential goes in, who acts comes out. REST and gRPC both ask here. Also who there is, what they hold, and
//! who is there at the first start.

mod accounts;
mod founder;
mod grants;
mod groups;
mod holding;
mod keys;
mod local;
mod passwords;
mod roles;
mod session;
mod token;

use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;
use waffles_core::DEFAULT_TENANT;
use waffles_core::credential::{Pepper, key_id, looks_like_key};
use waffles_core::policy::{Caller, Role};
use waffles_core::principal::Principal;
use waffles_core::seal::{SealKey, SealRing};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::audit;
use crate::authz::OpCtx;
use crate::cache::Throttle;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::secrets::Secrets;
use crate::store::principals as store;
use crate::store::{Db, changes, sessions};
use crate::usage::Usage;

pub use accounts::PasswordToken;
pub use grants::{GrantTo, GrantsOf, NewGrant};
pub use keys::NewApiKey;
pub use roles::NewRole;
pub use session::{Login, Tokens};
pub use token::{ACCESS_LIFE, AUDIENCE, ISSUER, Rotation, RotationReport};

/// The id of the key for refresh tokens: none that a rotation gives.
const REFRESH_KEY: u8 = 0;
/// The account that exists from the start.
pub const ADMIN: &str = "admin@localhost";

/// Users, sessions, tokens and keys; cheap to clone.
#[derive(Clone)]
pub struct Identity {
    db: Db,
    pepper: Pepper,
    seal: SealRing,
    /// Seals refresh tokens. It stays when keys are rotated, for it hides only which session a token is of.
    refresh_seal: SealRing,
    discovery: Discovery,
    passwords: local::Passwords,
    throttle: Throttle,
    keyring: Arc<token::Keyring>,
    usage: Usage,
}

/// An account with a password that is shown this once.
#[derive(Debug)]
pub struct OneTime {
    /// The account.
    pub email: String,
    /// Its password.
    pub password: SecretString,
}

impl Identity {
    /// On a database; log-ins are counted in Redis where there is one.
    pub fn new(
        db: Db,
        secrets: &Secrets,
        discovery: Discovery,
        redis_url: Option<&SecretString>,
    ) -> Result<Self, Error> {
        let throttle = Throttle::new(redis_url.map(ExposeSecret::expose_secret))
            .map_err(|error| Error::internal(format!("--redis-url: {error}")))?;
        let pepper = Pepper::new(&secrets.pepper);
        Ok(Self {
            db,
            refresh_seal: SealRing::new(vec![SealKey::new(
                REFRESH_KEY,
                &pepper.hash("seal refresh tokens 1"),
            )]),
            pepper,
            seal: secrets.seal.clone(),
            discovery,
            passwords: local::Passwords::new()?,
            throttle,
            keyring: Arc::new(token::Keyring::new()),
            usage: Usage::default(),
        })
    }

    /// Makes what must be there before the first request: a signing key, and at the very first start the
    /// admin, whose password nobody chose. To be called once the migrations are done.
    pub async fn bootstrap(&self) -> Result<Option<OneTime>, Error> {
        self.rotate_token_keys(Utc::now()).await?;
        let mut tx = self.db.everywhere().begin_read().await?;
        let settled = store::any_user(&mut tx).await?;
        drop(tx);
        if settled {
            return Ok(None);
        }
        let admin = new_admin();
        let password = local::generate_password()?;
        let hash = self.passwords.hash(password.clone()).await?;
        let mut tx = self.db.everywhere().begin().await?;
        // The append makes replicas that start together wait for each other.
        changes::append(&mut tx, &principal_key(&admin), false).await?;
        if store::any_user(&mut tx).await? {
            return Ok(None);
        }
        store::put_user(&mut tx, &admin, &hash, Utc::now()).await?;
        let detail = json!({"name": admin.name, "roles": admin.roles});
        audit::note(&mut tx, &OpCtx::system(), "user.create", &user_resource(&admin), detail).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(Some(OneTime { email: admin.name, password }))
    }

    /// Gives the admin a new password and ends the account's sessions and tokens; makes the account where it
    /// is missing. For whoever has the machine and lost the password.
    pub async fn reset_admin_password(&self) -> Result<OneTime, Error> {
        let password = local::generate_password()?;
        let hash = self.passwords.hash(password.clone()).await?;
        let found = store::user_by_email(&self.db.everywhere(), DEFAULT_TENANT, ADMIN).await?;
        let mut admin = found.map_or_else(new_admin, |(admin, _)| admin);
        let now = Utc::now();
        admin.active = true;
        admin.tokens_not_before = Some(next_second(now));
        if !admin.roles.iter().any(|role| role == Role::Admin.as_str()) {
            admin.roles.push(Role::Admin.as_str().to_owned());
        }
        let mut tx = self.db.everywhere().begin().await?;
        store::put_user(&mut tx, &admin, &hash, now).await?;
        sessions::end_of_user(&mut tx, &admin.tenant, admin.id, None, "password", now).await?;
        let detail = json!({"name": admin.name});
        audit::note(&mut tx, &OpCtx::system(), "user.reset_password", &user_resource(&admin), detail).await?;
        changes::append(&mut tx, &principal_key(&admin), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok(OneTime { email: admin.name, password })
    }

    /// Who shows this credential: an API key or an access token. Every refusal is the same one.
    pub async fn authenticate(
        &self,
        credential: &SecretString,
        request_id: Uuid,
        address: Option<IpAddr>,
    ) -> Result<OpCtx, Error> {
        let now = Utc::now();
        if looks_like_key(credential) {
            let text = credential.expose_secret();
            key_id(text).ok_or(Error::Unauthenticated)?;
            let found = store::key_by_hash(&self.db.everywhere(), &self.pepper.hash(text)).await?;
            let (key, owner) = found.ok_or(Error::Unauthenticated)?;
            let caller = Caller { principal: &owner, key: Some(&key), address };
            return match caller.is_current(now) {
                true => {
                    self.usage.note(&key.tenant, &key.id, now);
                    Ok(OpCtx::authenticated(owner, Some(key), None, request_id, address))
                }
                false => Err(Error::Unauthenticated),
            };
        }
        let claims = self.keyring.verify(&self.db, &self.seal, credential.expose_secret()).await?;
        let found = store::session_user(&self.db.everywhere(), claims.sid, claims.sub, now).await?;
        let user = found.ok_or(Error::Unauthenticated)?;
        let too_old = user.tokens_not_before.is_some_and(|time| claims.iat < time.timestamp());
        if !user.active || too_old || user.tenant != claims.tenant {
            return Err(Error::Unauthenticated);
        }
        Ok(OpCtx::authenticated(user, None, Some(claims.sid), request_id, address))
    }

    /// Someone without a credential, who may do what is public.
    pub fn anonymous(&self, request_id: Uuid, address: Option<IpAddr>) -> OpCtx {
        OpCtx::anonymous(request_id, address)
    }

    /// When keys were last used, as far as it is not written yet.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The periodic work on signing keys and sessions.
    pub fn rotation(&self) -> Rotation {
        Rotation::new(self.clone())
    }
}

fn new_admin() -> Principal {
    Principal {
        id: Uuid::now_v7(),
        tenant: DEFAULT_TENANT.to_owned(),
        name: ADMIN.to_owned(),
        roles: vec![Role::Admin.as_str().to_owned()],
        active: true,
        ..Principal::default()
    }
}

/// Tokens say when they were issued in whole seconds, so the border between old and new ones is one.
fn next_second(now: DateTime<Utc>) -> DateTime<Utc> {
    let cut = DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now);
    cut + TimeDelta::seconds(1)
}

fn principal_key(principal: &Principal) -> ResourceKey {
    ResourceKey::new(Kind::Principal, principal.id.to_string())
}

fn user_resource(principal: &Principal) -> String {
    format!("user/{}", principal.name)
}

#[cfg(test)]
impl Identity {
    pub(crate) async fn hash_for_test(&self, password: &str) -> String {
        self.passwords.hash(password.into()).await.unwrap()
    }

    pub(crate) async fn rotate_for_test(&self, now: DateTime<Utc>) -> (usize, usize) {
        self.rotate_token_keys(now).await.unwrap()
    }
}
