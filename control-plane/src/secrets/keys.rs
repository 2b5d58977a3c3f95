//! The keys that seal what is secret in the database and in session ids, and their rotation. Each is random, and stored
//! sealed under the master key. A new one opens at first and seals nothing, until every replica and proxy knows it; then it
//! seals, everything in the database is sealed anew with it bit by bit, and the old one is forgotten when nothing needs it.
//! All of it can be read off the database, so that a crash in between is made up for by the next run.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::policy::Permission;
use waffles_core::seal::{SealError, SealKey, SealRing};
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::trail::Signer;
use waffles_runtime::task::{Driver, Task};
use waffles_runtime::telemetry;
use zeroize::Zeroizing;

use super::Secrets;
use crate::audit;
use crate::authz::OpCtx;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::store::data_keys::{self, DataKey, Owner, Stage, Value};
use crate::store::{Db, Tx, changes, servers};

/// Seals what is secret in the database.
const REST: &str = "rest";
/// Seals session ids; proxies have it.
const SESSIONS: &str = "sessions";
/// Makes the hashes of API keys. It is not rotated, since a hash cannot be made anew without its key.
const PEPPER: &str = "pepper";
/// Signs for the audit trail. It is not rotated: what it signed is verified with its public half, for ever.
const AUDIT: &str = "audit";

/// After this time every replica, which looks more often, and every proxy that is connected knows a key.
const SETTLE: TimeDelta = TimeDelta::seconds(6);
/// How long session ids that an older key has sealed are still opened.
const OVERLAP: TimeDelta = TimeDelta::hours(24);
/// Values of each kind that are sealed anew in one transaction.
const AT_ONCE: i64 = 100;
const MOST_ROUNDS: usize = 1000;
const MOST_TIME: Duration = Duration::from_secs(300);

/// A key, as operators see it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct KeyStatus {
    /// What it seals: `rest` or `sessions`.
    pub purpose: String,
    /// Its id, 1 to 255.
    pub id: u8,
    /// `next`, `sealing` or `retired`.
    pub stage: &'static str,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// How many values in the database it has sealed.
    pub values: u64,
}

/// Rotates the keys.
#[derive(Debug, Clone)]
pub struct Keys {
    db: Db,
    secrets: Secrets,
    discovery: Discovery,
}

/// What the private half of a token key is sealed for.
pub(crate) fn signing_key(kid: &str) -> Vec<u8> {
    [b"token-key:", kid.as_bytes()].concat()
}

/// What the private key of an authority is sealed for.
pub(crate) fn authority(id: Uuid) -> Vec<u8> {
    [b"authority:".as_slice(), id.as_bytes()].concat()
}

/// Opens the database's keys with the master key, and makes them where there are none: at random, or, for a database that
/// was made before it had any, those that its values were sealed with.
pub async fn unlock(tx: &mut Tx, secrets: &mut Secrets) -> Result<(), Error> {
    data_keys::lock(tx).await?;
    let mut keys = data_keys::all(tx).await?;
    if keys.is_empty() {
        let older = data_keys::is_older(tx).await?;
        let derived = |ring: &SealRing| ring.keys().first().map(|key| *key.expose());
        let legacy = [
            (REST, derived(&secrets.seal)),
            (SESSIONS, derived(&secrets.session_seal)),
            (PEPPER, Some(secrets.pepper)),
        ];
        for (purpose, derived) in legacy {
            let key = match derived.filter(|_| older) {
                Some(derived) => Zeroizing::new(derived),
                None => random()?,
            };
            data_keys::insert(tx, &made(secrets, purpose, 1, &key, Stage::Sealing)?).await?;
        }
        keys = data_keys::all(tx).await?;
    }
    let pepper = keys.iter().find(|key| key.purpose == PEPPER);
    let pepper = pepper.ok_or_else(|| Error::internal("the database has no key to hash API keys with"))?;
    secrets.pepper = *opened(secrets, pepper)?;
    let audit = match keys.iter().find(|key| key.purpose == AUDIT) {
        Some(key) => opened(secrets, key)?,
        None => {
            let seed = random()?;
            data_keys::insert(tx, &made(secrets, AUDIT, 1, &seed, Stage::Sealing)?).await?;
            seed
        }
    };
    secrets.audit = Arc::new(Signer::new(&audit));
    take(secrets, &keys)
}

/// Takes the keys over as they are now.
pub(crate) async fn refresh(tx: &mut Tx, secrets: &Secrets) -> Result<(), Error> {
    take(secrets, &data_keys::all(tx).await?)
}

/// All or nothing: a replica that cannot open a key goes on with those that it has.
fn take(secrets: &Secrets, keys: &[DataKey]) -> Result<(), Error> {
    let ring = |purpose: &str| {
        let mut of: Vec<&DataKey> = keys.iter().filter(|key| key.purpose == purpose).collect();
        of.sort_by_key(|key| (key.stage != Stage::Sealing, std::cmp::Reverse(key.created_at)));
        let key = |key: &DataKey| opened(secrets, key).map(|bytes| SealKey::new(key.id, &bytes));
        of.into_iter().map(key).collect::<Result<Vec<_>, _>>()
    };
    let (rest, sessions) = (ring(REST)?, ring(SESSIONS)?);
    if rest.is_empty() || sessions.is_empty() {
        return Err(Error::internal("the database has no key to seal with"));
    }
    secrets.seal.replace(rest);
    secrets.session_seal.replace(sessions);
    Ok(())
}

fn wrapping(purpose: &str, id: u8) -> Vec<u8> {
    format!("data key {purpose} {id}").into_bytes()
}

fn opened(secrets: &Secrets, key: &DataKey) -> Result<Zeroizing<[u8; 32]>, Error> {
    let plain = Zeroizing::new(secrets.wrap.open(&wrapping(&key.purpose, key.id), &key.sealed)?);
    plain.as_slice().try_into().map(Zeroizing::new).map_err(|_| SealError.into())
}

fn made(secrets: &Secrets, purpose: &str, id: u8, key: &[u8; 32], stage: Stage) -> Result<DataKey, Error> {
    let sealed = secrets.wrap.seal(&wrapping(purpose, id), key)?;
    let now = micros(Utc::now());
    Ok(DataKey { purpose: purpose.to_owned(), id, sealed, stage, created_at: now, changed_at: now })
}

fn random() -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(&mut *key).map_err(|_| Error::internal("the system gave no random numbers"))?;
    Ok(key)
}

fn settings() -> ResourceKey {
    ResourceKey::new(Kind::Settings, "settings")
}

/// Adds a key of each kind, which will take over.
async fn add(tx: &mut Tx, secrets: &Secrets, keys: &[DataKey]) -> Result<(), Error> {
    for purpose in [REST, SESSIONS] {
        let of = || keys.iter().filter(|key| key.purpose == purpose);
        let newest = of().next_back().map_or(0, |key| key.id);
        let is_free = |id: &u8| *id > newest || !of().any(|key| key.id == *id);
        let id = (newest.saturating_add(1)..=u8::MAX).chain(1..newest).find(is_free);
        let id = id.ok_or_else(|| Error::Conflict("all 255 ids of keys are in use".into()))?;
        data_keys::insert(tx, &made(secrets, purpose, id, &*random()?, Stage::Next)?).await?;
    }
    changes::append(tx, &settings(), false).await?;
    Ok(())
}

/// Seals the keys under another master key, and adds keys that only that one has ever opened. Says whether anything was
/// to be done.
pub async fn rekey(db: &Db, old: &Secrets, new: &Secrets) -> Result<bool, Error> {
    let mut tx = db.everywhere().begin().await?;
    data_keys::lock(&mut tx).await?;
    if data_keys::master_key(&mut tx).await? == new.fingerprint() {
        return Ok(false);
    }
    let keys = data_keys::all(&mut tx).await?;
    for key in &keys {
        let sealed = new.wrap.seal(&wrapping(&key.purpose, key.id), &*opened(old, key)?)?;
        data_keys::reseal(&mut tx, &key.purpose, key.id, &sealed).await?;
    }
    if !keys.iter().any(|key| key.stage == Stage::Next) {
        add(&mut tx, new, &keys).await?;
    }
    data_keys::set_master_key(&mut tx, new.fingerprint()).await?;
    let detail = json!({ "from": old.fingerprint(), "to": new.fingerprint() });
    audit::note(&mut tx, &OpCtx::system(), "secrets.rekey", "secrets", detail).await?;
    tx.commit().await?;
    Ok(true)
}

impl Keys {
    /// How often replicas look at the keys.
    pub const PERIOD: Duration = Duration::from_secs(2);

    /// Over the database that the secrets were unlocked from.
    pub fn new(db: &Db, secrets: Secrets, discovery: Discovery) -> Self {
        Self { db: db.everywhere(), secrets, discovery }
    }

    /// The task that brings a rotation to its end.
    pub fn driver(&self) -> Driver<Rekeying> {
        Driver::new(Rekeying(self.clone()), Self::PERIOD)
    }

    /// Starts a rotation, of which [`Keys::list`] tells how far it has come.
    pub async fn rotate(&self, ctx: &OpCtx) -> Result<Vec<KeyStatus>, Error> {
        ctx.require(Permission::SecretsRotate)?;
        ctx.require_change()?;
        let mut tx = self.db.begin().await?;
        data_keys::lock(&mut tx).await?;
        let keys = data_keys::all(&mut tx).await?;
        let busy =
            |key: &DataKey| key.stage == Stage::Next || (key.purpose == REST && key.stage == Stage::Retired);
        if keys.iter().any(busy) {
            return Err(Error::Conflict(
                "the keys are being rotated already; wait until that has ended".into(),
            ));
        }
        add(&mut tx, &self.secrets, &keys).await?;
        audit::note(&mut tx, ctx, "secrets.rotate", "secrets", json!({})).await?;
        let status = status(&mut tx).await?;
        tx.commit().await?;
        self.discovery.poke();
        tracing::info!("the keys that secrets are sealed with are being rotated");
        Ok(status)
    }

    /// The keys, and what each has sealed.
    pub async fn list(&self, ctx: &OpCtx) -> Result<Vec<KeyStatus>, Error> {
        ctx.require(Permission::SecretsRotate)?;
        let mut tx = self.db.begin_read().await?;
        status(&mut tx).await
    }

    /// One run: takes over what is new, and does what is due.
    async fn run(&self, report: &mut Report) -> Result<(), Error> {
        let mut tx = self.db.begin_read().await?;
        let keys = data_keys::all(&mut tx).await?;
        drop(tx);
        take(&self.secrets, &keys)?;
        let now = micros(Utc::now());
        let due = |key: &DataKey, stage, after| key.stage == stage && key.changed_at + after <= now;
        for next in keys.iter().filter(|key| due(key, Stage::Next, SETTLE)) {
            report.promoted += usize::from(self.promote(next, &keys, now).await?);
        }
        if keys.iter().any(|key| key.purpose == REST && key.stage == Stage::Retired) {
            report.resealed = self.reseal().await?;
        }
        for old in &keys {
            let after = if old.purpose == REST { SETTLE } else { OVERLAP };
            if due(old, Stage::Retired, after) {
                report.forgotten += usize::from(self.forget(old).await?);
            }
        }
        Ok(())
    }

    /// Lets a key seal from now on. Of the replicas that do so at once, one does.
    async fn promote(&self, next: &DataKey, keys: &[DataKey], now: DateTime<Utc>) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        data_keys::lock(&mut tx).await?;
        if !data_keys::advance(&mut tx, &next.purpose, next.id, [Stage::Next, Stage::Sealing], now).await? {
            return Ok(false);
        }
        for old in keys.iter().filter(|key| key.purpose == next.purpose && key.stage == Stage::Sealing) {
            data_keys::advance(&mut tx, &old.purpose, old.id, [Stage::Sealing, Stage::Retired], now).await?;
        }
        changes::append(&mut tx, &settings(), false).await?;
        refresh(&mut tx, &self.secrets).await?;
        tx.commit().await?;
        self.discovery.poke();
        tracing::info!(key.purpose = next.purpose, key.id = next.id, "another key seals from now on");
        Ok(true)
    }

    /// Seals anew what older keys have sealed, some at a time.
    async fn reseal(&self) -> Result<usize, Error> {
        let mut done = 0;
        for _ in 0..MOST_ROUNDS {
            let Some(id) = self.secrets.seal.keys().first().map(SealKey::id) else { break };
            let mut tx = self.db.begin().await?;
            let mut changed = 0;
            for value in data_keys::stale(&mut tx, id, AT_ONCE).await? {
                match self.anew(&value) {
                    Ok(sealed) => {
                        changed += usize::from(data_keys::replace(&mut tx, &value, &sealed).await?);
                    }
                    // It was lost before. Its key stays, for as long as it is there.
                    Err(error) => {
                        tracing::error!(owner = ?value.owner, %error, "what is sealed does not open")
                    }
                }
            }
            tx.commit().await?;
            done += changed;
            if changed == 0 {
                break;
            }
        }
        Ok(done)
    }

    fn anew(&self, value: &Value) -> Result<Vec<u8>, SealError> {
        let purpose = match &value.owner {
            Owner::Server(id) => servers::purpose(*id),
            Owner::SigningKey(kid) => signing_key(kid),
            Owner::Authority(id) => authority(*id),
        };
        let plain = Zeroizing::new(self.secrets.seal.open(&purpose, &value.sealed)?);
        self.secrets.seal.seal(&purpose, &plain)
    }

    /// Forgets a key that nothing needs any more.
    async fn forget(&self, old: &DataKey) -> Result<bool, Error> {
        let mut tx = self.db.begin().await?;
        data_keys::lock(&mut tx).await?;
        if old.purpose == REST && data_keys::count(&mut tx, old.id).await? > 0 {
            return Ok(false);
        }
        if !data_keys::delete(&mut tx, &old.purpose, old.id).await? {
            return Ok(false);
        }
        changes::append(&mut tx, &settings(), false).await?;
        refresh(&mut tx, &self.secrets).await?;
        tx.commit().await?;
        self.discovery.poke();
        tracing::info!(key.purpose = old.purpose, key.id = old.id, "a key that nothing needs was forgotten");
        Ok(true)
    }
}

async fn status(tx: &mut Tx) -> Result<Vec<KeyStatus>, Error> {
    let mut found = Vec::new();
    for key in
        data_keys::all(tx).await?.into_iter().filter(|key| key.purpose != PEPPER && key.purpose != AUDIT)
    {
        let values = if key.purpose == REST { data_keys::count(tx, key.id).await? } else { 0 };
        let DataKey { purpose, id, stage, created_at, .. } = key;
        found.push(KeyStatus { purpose, id, stage: stage.as_str(), created_at, values });
    }
    Ok(found)
}

/// Brings rotations to their end, whoever started them.
#[derive(Debug)]
pub struct Rekeying(Keys);

/// What one run did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    promoted: usize,
    resealed: usize,
    forgotten: usize,
    error: Option<String>,
}

impl Task for Rekeying {
    const NAME: &'static str = "rekeying";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        let mut report = Report::default();
        let run = tokio::time::timeout(MOST_TIME, self.0.run(&mut report)).await;
        let failed = match run {
            Ok(Ok(())) => return report,
            Ok(Err(error)) => telemetry::chain(&error).to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(error = failed, "the keys cannot be looked at, or their rotation does not go on");
        report.error = Some(failed);
        report
    }
}
