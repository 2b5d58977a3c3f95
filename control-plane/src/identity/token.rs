//! Our own access tokens: JWTs signed with Ed25519 (RFC 8037), and the keys they are signed with, which rotate.
//! Proxies check the same tokens with the public halves that discovery carries.

use std::collections::HashMap;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::credential::{Claims, RandomFailed, random_text, token_key_id};
use waffles_core::principal::Principal;
use waffles_core::seal::SealRing;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_runtime::{task, telemetry};

use crate::error::Error;
use crate::identity::Identity;
use crate::store::principals::{self as store, SigningKeyRow};
use crate::store::{Db, accounts, changes, sessions};

/// `iss` of access tokens.
pub const ISSUER: &str = "waffles";
/// `aud` of access tokens.
pub const AUDIENCE: &str = "waffles";
/// How long an access token lives.
pub const ACCESS_LIFE: TimeDelta = TimeDelta::minutes(15);
/// How far two clocks may be apart, in seconds.
const LEEWAY: u64 = 30;
/// How long a key signs.
const KEY_LIFE: TimeDelta = TimeDelta::days(30);
/// A new key signs once every proxy has had time to hear of it.
const SETTLE: TimeDelta = TimeDelta::minutes(5);
/// However many tokens name an unknown key, the store is asked no more often than this.
const RELOAD: Duration = Duration::from_secs(10);

/// The keys, as they were when last read from the store.
pub(super) struct Keyring {
    keys: ArcSwap<Keys>,
    reloaded: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Keys {
    /// Newest first.
    signing: Vec<SigningKey>,
    checking: HashMap<String, DecodingKey>,
}

struct SigningKey {
    kid: String,
    created_at: DateTime<Utc>,
    key: EncodingKey,
}

impl Keyring {
    pub(super) fn new() -> Self {
        Self { keys: ArcSwap::default(), reloaded: Mutex::new(None) }
    }

    /// Reads the keys from the store.
    pub(super) async fn reload(&self, db: &Db, seal: &SealRing) -> Result<usize, Error> {
        let mut tx = db.everywhere().begin_read().await?;
        let rows = store::signing_keys(&mut tx).await?;
        drop(tx);
        let mut keys = Keys::default();
        for row in rows {
            keys.checking.insert(row.kid.clone(), checking_key(&row.public_key)?);
            let private = seal.open(&purpose(&row.kid), &row.sealed_private)?;
            let key = EncodingKey::from_ed_der(&private);
            keys.signing.push(SigningKey { kid: row.kid, created_at: row.created_at, key });
        }
        let count = keys.signing.len();
        self.keys.store(keys.into());
        Ok(count)
    }

    /// Signs claims with the newest key that everyone knows; at the very start with the only one.
    pub(super) fn sign(&self, claims: &Claims, now: DateTime<Utc>) -> Result<String, Error> {
        let keys = self.keys.load();
        let settled = keys.signing.iter().find(|key| key.created_at + SETTLE <= now);
        let key =
            settled.or(keys.signing.last()).ok_or_else(|| Error::internal("there is no signing key"))?;
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &key.key).map_err(Error::internal)
    }

    /// Checks a token. The cheap checks come first; the store is asked only for a key that nobody here knows.
    pub(super) async fn verify(&self, db: &Db, seal: &SealRing, token: &str) -> Result<Claims, Error> {
        let kid = token_key_id(token).ok_or(Error::Unauthenticated)?;
        let known = self.keys.load().checking.contains_key(&kid);
        if !known && self.may_reload() {
            self.reload(db, seal).await?;
        }
        let keys = self.keys.load();
        let key = keys.checking.get(&kid).ok_or(Error::Unauthenticated)?;
        check(token, key, Utc::now()).ok_or(Error::Unauthenticated)
    }

    fn may_reload(&self) -> bool {
        let mut reloaded = self.reloaded.lock();
        let due = reloaded.is_none_or(|at| at.elapsed() >= RELOAD);
        if due {
            *reloaded = Some(Instant::now());
        }
        due
    }
}

/// Signature, then claims. `Claims` is strictly typed, so that an `exp` that is a text or an `aud` that is a
/// list is refused.
fn check(token: &str, key: &DecodingKey, now: DateTime<Utc>) -> Option<Claims> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = jsonwebtoken::decode::<Claims>(token, key, &validation).ok()?.claims;
    let leeway = i64::try_from(LEEWAY).unwrap_or(0);
    let issued_before_now = claims.iat <= now.timestamp() + leeway;
    let of_our_making = claims.exp.checked_sub(claims.iat) == Some(ACCESS_LIFE.num_seconds());
    (issued_before_now && of_our_making).then_some(claims)
}

fn checking_key(public_key: &[u8]) -> Result<DecodingKey, Error> {
    DecodingKey::from_ed_components(&URL_SAFE_NO_PAD.encode(public_key)).map_err(Error::internal)
}

/// What the private half of a key is sealed for.
fn purpose(kid: &str) -> Vec<u8> {
    crate::secrets::keys::signing_key(kid)
}

/// What a new token for a session says. A token that is issued in the second of a password change must count
/// as issued after it.
pub(super) fn claims(principal: &Principal, session: Uuid, now: DateTime<Utc>) -> Claims {
    let earliest = principal.tokens_not_before.map_or(i64::MIN, |time| time.timestamp());
    let iat = now.timestamp().max(earliest);
    Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: principal.id,
        tenant: principal.tenant.clone(),
        sid: session,
        iat,
        exp: iat + ACCESS_LIFE.num_seconds(),
    }
}

fn generate(seal: &SealRing, now: DateTime<Utc>) -> Result<SigningKeyRow, Error> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| RandomFailed)?;
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|e| Error::internal(e.to_string()))?;
    let kid = random_text(16)?;
    let sealed_private = seal.seal(&purpose(&kid), pkcs8.as_ref())?;
    let public_key = pair.public_key().as_ref().to_vec();
    Ok(SigningKeyRow { kid, public_key, sealed_private, created_at: now, retire_at: None })
}

impl Identity {
    /// Makes a signing key where there is none or the newest is old, and takes out those whose tokens have all
    /// ended. Answers with how many were made and taken out.
    pub(super) async fn rotate_token_keys(&self, now: DateTime<Utc>) -> Result<(usize, usize), Error> {
        let mut tx = self.db.everywhere().begin_read().await?;
        let rows = store::signing_keys(&mut tx).await?;
        drop(tx);
        let mut made = 0;
        if is_due(&rows, now) {
            made = usize::from(self.add_token_key(now).await?);
        }
        let mut taken = Vec::new();
        if rows.iter().any(|row| row.retire_at.is_some_and(|at| at <= now)) {
            let mut tx = self.db.everywhere().begin().await?;
            taken = store::delete_retired_signing_keys(&mut tx, now).await?;
            for kid in &taken {
                changes::append(&mut tx, &ResourceKey::new(Kind::TokenKey, kid), true).await?;
            }
            tx.commit().await?;
        }
        if made > 0 || !taken.is_empty() {
            self.discovery.poke();
        }
        self.keyring.reload(&self.db, &self.seal).await?;
        Ok((made, taken.len()))
    }

    async fn add_token_key(&self, now: DateTime<Utc>) -> Result<bool, Error> {
        let row = generate(&self.seal, now)?;
        let mut tx = self.db.everywhere().begin().await?;
        // The append comes first: it makes replicas wait for each other, and the second then sees that the
        // first has made a key.
        changes::append(&mut tx, &ResourceKey::new(Kind::TokenKey, &row.kid), false).await?;
        if !is_due(&store::signing_keys(&mut tx).await?, now) {
            return Ok(false);
        }
        store::insert_signing_key(&mut tx, &row).await?;
        let ended = now + SETTLE + ACCESS_LIFE + TimeDelta::minutes(5);
        store::retire_signing_keys(&mut tx, &row.kid, ended).await?;
        tx.commit().await?;
        tracing::info!(key.id = row.kid, "a new token key was made");
        Ok(true)
    }
}

fn is_due(rows: &[SigningKeyRow], now: DateTime<Utc>) -> bool {
    rows.iter().all(|row| row.created_at + KEY_LIFE <= now)
}

/// Rotates token keys, learns of those that another replica made, and forgets old sessions and tokens.
pub struct Rotation {
    identity: Identity,
}

/// What one run did.
#[derive(Debug, Default, Serialize)]
pub struct RotationReport {
    made: usize,
    taken_out: usize,
    sessions_forgotten: u64,
    password_tokens_forgotten: u64,
    revocations_over: usize,
    error: Option<String>,
}

impl Rotation {
    /// How often it runs.
    pub const PERIOD: Duration = Duration::from_secs(60);

    pub(super) fn new(identity: Identity) -> Self {
        Self { identity }
    }

    async fn run(&self) -> Result<RotationReport, Error> {
        let now = Utc::now();
        let (made, taken_out) = self.identity.rotate_token_keys(now).await?;
        let mut tx = self.identity.db.everywhere().begin().await?;
        let sessions_forgotten = store::forget_sessions(&mut tx, now - TimeDelta::days(7)).await?;
        let password_tokens_forgotten = accounts::forget_tokens(&mut tx, now).await?;
        let revocations_over = sessions::take_back(&mut tx, now).await?;
        tx.commit().await?;
        if revocations_over > 0 {
            self.identity.discovery.poke();
        }
        let error = None;
        Ok(RotationReport {
            made,
            taken_out,
            sessions_forgotten,
            password_tokens_forgotten,
            revocations_over,
            error,
        })
    }
}

impl task::Task for Rotation {
    const NAME: &'static str = "token_keys";
    type Report = RotationReport;

    async fn activate(&mut self) -> RotationReport {
        match self.run().await {
            Ok(report) => report,
            Err(error) => {
                let error = telemetry::chain(&error).to_string();
                tracing::warn!(%error, "token keys could not be looked after; the present ones stay");
                RotationReport { error: Some(error), ..RotationReport::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    struct World {
        pair: EncodingKey,
        public: DecodingKey,
    }

    fn world() -> World {
        let ring = SealRing::new(vec![waffles_core::seal::SealKey::new(1, &[7; 32])]);
        let row = generate(&ring, Utc::now()).unwrap();
        let private = ring.open(&purpose(&row.kid), &row.sealed_private).unwrap();
        World { pair: EncodingKey::from_ed_der(&private), public: checking_key(&row.public_key).unwrap() }
    }

    fn good() -> Value {
        let now = Utc::now().timestamp();
        json!({"iss": ISSUER, "aud": AUDIENCE, "sub": Uuid::nil(), "tenant": "default", "sid": Uuid::nil(),
            "iat": now, "exp": now + ACCESS_LIFE.num_seconds()})
    }

    impl World {
        fn token(&self, claims: &Value) -> String {
            let header = Header { kid: Some("k".into()), ..Header::new(Algorithm::EdDSA) };
            jsonwebtoken::encode(&header, claims, &self.pair).unwrap()
        }

        fn accepts(&self, token: &str) -> bool {
            token_key_id(token).is_some() && check(token, &self.public, Utc::now()).is_some()
        }
    }

    #[test]
    fn a_token_of_ours_is_accepted_and_a_changed_one_is_not() {
        let world = world();
        let token = world.token(&good());
        assert!(world.accepts(&token));
        assert!(!super::tests::world().accepts(&token), "another key");
        for i in [5, token.len() / 2, token.len() - 3] {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            assert!(!world.accepts(&String::from_utf8(bytes).unwrap()), "byte {i}");
        }
    }

    #[test]
    fn wrong_claims_are_refused() {
        let world = world();
        let now = Utc::now().timestamp();
        for (field, value) in [
            ("exp", json!(now - 60)),
            ("exp", json!((now + 900).to_string())),
            ("exp", json!(now + 1_000_000)),
            ("exp", json!(null)),
            ("iat", json!(now + 3600)),
            ("iat", json!("1")),
            ("nbf", json!(now + 3600)),
            ("iss", json!("Waffles")),
            ("iss", json!("waffles/")),
            ("iss", json!(["waffles"])),
            ("aud", json!("other")),
            ("aud", json!(["waffles", "other"])),
            ("aud", json!(["waffles"])),
            ("sub", json!("admin")),
            ("sid", json!(1)),
        ] {
            let mut claims = good();
            claims[field] = value.clone();
            assert!(!world.accepts(&world.token(&claims)), "{field}: {value}");
        }
        for field in ["exp", "iat", "iss", "aud", "sub", "sid", "tenant"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(field);
            assert!(!world.accepts(&world.token(&claims)), "without {field}");
        }
    }

    #[test]
    fn a_header_that_is_not_ours_is_refused() {
        let encode = |header: &str| {
            format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("{}"), "AA")
        };
        assert!(token_key_id(&encode(r#"{"typ":"JWT","alg":"EdDSA","kid":"k"}"#)).is_some());
        for header in [
            r#"{"typ":"JWT","alg":"none","kid":"k"}"#,
            r#"{"typ":"JWT","alg":"nOnE","kid":"k"}"#,
            r#"{"typ":"JWT","alg":"HS256","kid":"k"}"#,
            r#"{"typ":"JWT","alg":"EdDSA"}"#,
            r#"{"typ":"JWT","alg":"EdDSA","kid":"k","kid":"l"}"#,
            r#"{"typ":"JWT","alg":"EdDSA","kid":"k","jku":"https://evil.test"}"#,
            r#"{"typ":"JWT","alg":"EdDSA","kid":"k","jwk":{}}"#,
            r#"{"typ":"JWT","alg":"EdDSA","kid":"k","crit":["b64"],"b64":false}"#,
            r#"{"typ":"JWT","alg":"EdDSA","kid":["k"]}"#,
            "{}",
            "",
        ] {
            assert_eq!(token_key_id(&encode(header)), None, "{header}");
        }
        let none = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"EdDSA","kid":"k"}"#);
        for token in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            none.as_str(),
            &format!("{none}.{}.", "x".repeat(waffles_core::credential::TOKEN_MOST)),
        ] {
            assert_eq!(token_key_id(token), None);
        }
    }
}
