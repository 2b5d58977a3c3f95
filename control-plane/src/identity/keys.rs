//! API keys: issued to whoever asks, shown once, and never wider than their owner or the key that asked.

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::credential::{ApiKey, ApiKeyParts, KeyHash, KeyLimits, generate_key};
use waffles_core::policy::Permission;
use waffles_core::principal::{Principal, PrincipalKind};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::audit;
use crate::authz::{OpCtx, ProxyPeer};
use crate::error::Error;
use crate::identity::Identity;
use crate::page::{Page, Paged};
use crate::quota::{self, Limited};
use crate::store::changes::Head;
use crate::store::principals::{self as store, KeyPage, OwnedKey};
use crate::store::{Tx, changes, read};

const NAME_MOST: usize = 100;
/// Keys of one owner that may be used at a time. Every one of them may be in the memory of every proxy.
const LIVE_MOST: i64 = 200;
const PAGE_MOST: u32 = 500;
const LIST: &str = "api-keys";

/// A key to issue.
#[derive(Debug, Clone, Default)]
pub struct NewApiKey {
    /// 1 to 100 characters.
    pub name: String,
    /// What it may be used for.
    pub limits: KeyLimits,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it ends also on a proxy that lost the control plane.
    pub not_after: Option<DateTime<Utc>>,
}

impl Identity {
    /// Issues a key to the actor. Its text is in the answer and nowhere else.
    pub async fn create_key(&self, ctx: &OpCtx, new: NewApiKey) -> Result<(OwnedKey, SecretString), Error> {
        // Held anywhere, since a key is never wider than its owner.
        if !ctx.may_somewhere(Permission::KeysOwn) {
            return Err(Error::Denied);
        }
        ctx.require_change()?;
        let tx = self.db.of(ctx.tenant()).begin().await?;
        self.issue_key(tx, ctx, ctx.principal(), new).await
    }

    /// Issues a key to a service account, named by its id or name. Whoever has the key is that account, so nobody issues
    /// one to an account that holds more than they do.
    pub async fn create_key_for(
        &self,
        ctx: &OpCtx,
        account: &str,
        new: NewApiKey,
    ) -> Result<(OwnedKey, SecretString), Error> {
        let (mut tx, ctx) = self.change(ctx, Permission::KeysManage).await?;
        let account = self.account(&mut tx, &ctx, PrincipalKind::ServiceAccount, account).await?.principal;
        if !ctx.covers(&account) {
            return Err(Error::Denied);
        }
        if !account.active {
            return Err(Error::Conflict(format!("service account {} is deactivated", account.name)));
        }
        self.issue_key(tx, &ctx, &account, new).await
    }

    async fn issue_key(
        &self,
        mut tx: Tx,
        ctx: &OpCtx,
        owner: &Principal,
        mut new: NewApiKey,
    ) -> Result<(OwnedKey, SecretString), Error> {
        let now = micros(Utc::now());
        new.expires_at = new.expires_at.map(micros);
        new.not_after = new.not_after.map(micros);
        let mut problems = problems(&new, now);
        problems.extend(widenings(ctx, &new));
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let generated = generate_key()?;
        let key = ApiKey::compile(ApiKeyParts {
            id: generated.id,
            tenant: ctx.tenant().to_owned(),
            name: new.name,
            owner: owner.id,
            limits: new.limits,
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            not_after: new.not_after,
        })
        .map_err(|pattern| Error::invalid("limits.tools", format!("cannot read {pattern}")))?;
        let hash = self.pepper.hash(generated.text.expose_secret());
        quota::admit(&mut tx, ctx.tenant(), Limited::ApiKeys).await?;
        if store::count_live_keys(&mut tx, &key.tenant, key.owner, now).await? >= LIVE_MOST {
            return Err(Error::Conflict(format!("there are {LIVE_MOST} keys already; revoke some first")));
        }
        store::insert_key(&mut tx, &key, &hash).await?;
        let detail = json!({"name": key.name, "owner": owner.name, "limits": key.limits, "expires_at": key.expires_at,
            "not_after": key.not_after});
        audit::note(&mut tx, ctx, "api_key.create", &resource(&key.id), detail).await?;
        changes::append(&mut tx, &ResourceKey::new(Kind::ApiKey, &key.id), false).await?;
        tx.commit().await?;
        self.discovery.poke();
        Ok((OwnedKey { key, owner_name: owner.name.clone(), last_used_at: None }, generated.text))
    }

    /// The actor's keys, or all of the tenant, newest first.
    pub async fn list_keys(&self, ctx: &OpCtx, ended: bool, page: &Page) -> Result<Paged<OwnedKey>, Error> {
        let owner = owner_seen_by(ctx)?;
        let limit = page.limit(PAGE_MOST)?;
        let after: Option<(i64, String)> = page.after(LIST)?;
        let after = match after {
            Some((at, id)) => {
                let at = DateTime::from_timestamp_micros(at);
                Some((at.ok_or_else(|| Error::invalid("cursor", "is not a cursor of this list"))?, id))
            }
            None => None,
        };
        let wanted = KeyPage { owner, ended, after, limit: limit + 1 };
        let keys = store::keys(&self.db.of(ctx.tenant()), ctx.tenant(), &wanted, Utc::now()).await?;
        let place = |owned: &OwnedKey| (owned.key.created_at.timestamp_micros(), owned.key.id.clone());
        Ok(Paged::cut(keys, limit, LIST, place))
    }

    /// One key; another's does not exist for an actor who sees only their own.
    pub async fn get_key(&self, ctx: &OpCtx, id: &str) -> Result<OwnedKey, Error> {
        let owner = owner_seen_by(ctx)?;
        let found = store::key(&self.db.of(ctx.tenant()), ctx.tenant(), id).await?;
        let seen = found.filter(|owned| owner.is_none_or(|owner| owner == owned.key.owner));
        seen.ok_or_else(|| Error::NotFound(format!("API key {}", clean(id, 64))))
    }

    /// The keys with these hashes that may be used, for a proxy that met them, and the state of the database that says so.
    pub async fn find_keys(
        &self,
        _peer: &ProxyPeer,
        hashes: &[KeyHash],
    ) -> Result<(Head, Vec<(ApiKey, KeyHash)>), Error> {
        let db = self.db.everywhere();
        Ok(read(|| async {
            let mut tx = db.begin_read().await?;
            // From one moment: what is revoked after this revision is in a later one.
            let head = changes::head(&mut tx).await?;
            let keys = store::live_keys_by_hash(&mut tx, hashes, Utc::now()).await?;
            Ok((head, keys))
        })
        .await?)
    }

    /// Revokes a key. It stays listed; revoking it again changes nothing.
    pub async fn revoke_key(&self, ctx: &OpCtx, id: &str) -> Result<OwnedKey, Error> {
        ctx.require_change()?;
        let mut owned = self.get_key(ctx, id).await?;
        let now = micros(Utc::now());
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        if !store::revoke_key(&mut tx, ctx.tenant(), id, now).await? {
            drop(tx);
            return self.get_key(ctx, id).await;
        }
        let detail = json!({"name": owned.key.name, "owner": owned.owner_name});
        audit::note(&mut tx, ctx, "api_key.revoke", &resource(id), detail).await?;
        changes::append(&mut tx, &ResourceKey::new(Kind::ApiKey, id), true).await?;
        tx.commit().await?;
        self.discovery.poke();
        owned.key.revoked_at = Some(now);
        Ok(owned)
    }
}

/// None: all of the tenant.
fn owner_seen_by(ctx: &OpCtx) -> Result<Option<uuid::Uuid>, Error> {
    if ctx.may(Permission::KeysManage) {
        return Ok(None);
    }
    if ctx.may_somewhere(Permission::KeysOwn) { Ok(Some(ctx.principal().id)) } else { Err(Error::Denied) }
}

fn resource(id: &str) -> String {
    format!("api_key/{id}")
}

fn problems(new: &NewApiKey, now: DateTime<Utc>) -> Vec<FieldError> {
    let mut problems = Vec::new();
    let mut wrong = |field: &str, reason: &str| problems.push(FieldError::new(field, reason));
    let characters = new.name.chars().count();
    if !(1..=NAME_MOST).contains(&characters) || new.name.chars().any(char::is_control) {
        wrong("name", "must have 1 to 100 characters and no control characters");
    }
    for (field, end) in [("expires_at", new.expires_at), ("not_after", new.not_after)] {
        if end.is_some_and(|end| end <= now) {
            wrong(field, "must be in the future");
        }
    }
    if let (Some(expires_at), Some(not_after)) = (new.expires_at, new.not_after)
        && not_after > expires_at
    {
        wrong("not_after", "must not be after expires_at");
    }
    problems
}

/// Where the new key would do more than its owner, or than the key that asks for it. A stolen narrow key must
/// not become a wide one, nor outlive itself.
fn widenings(ctx: &OpCtx, new: &NewApiKey) -> Vec<FieldError> {
    let mut problems = Vec::new();
    for (i, scope) in new.limits.scopes.iter().enumerate() {
        if !ctx.may_somewhere(*scope) {
            let reason = "is a permission that you do not have";
            problems.push(FieldError::new(format!("limits.scopes[{i}]"), reason));
        }
    }
    let Some(key) = ctx.key() else { return problems };
    let mut wider = |field: &str| problems.push(FieldError::new(field, "would be wider than the key in use"));
    let (old, new_limits) = (&key.limits, &new.limits);
    if !old.scopes.is_empty() && new_limits.scopes.is_empty() {
        wider("limits.scopes");
    }
    for (field, old, new) in [
        ("limits.servers", &old.servers, &new_limits.servers),
        ("limits.tools", &old.tools, &new_limits.tools),
        ("limits.namespaces", &old.namespaces, &new_limits.namespaces),
    ] {
        if !old.is_empty() && (new.is_empty() || !new.iter().all(|name| old.contains(name))) {
            wider(field);
        }
    }
    let within = |range: &ipnet::IpNet| old.ip_ranges.iter().any(|old| old.contains(range));
    if !old.ip_ranges.is_empty()
        && (new_limits.ip_ranges.is_empty() || !new_limits.ip_ranges.iter().all(within))
    {
        wider("limits.ip_ranges");
    }
    for (field, old, new) in
        [("expires_at", key.expires_at, new.expires_at), ("not_after", key.not_after, new.not_after)]
    {
        if old.is_some_and(|old| new.is_none_or(|new| new > old)) {
            wider(field);
        }
    }
    problems
}
