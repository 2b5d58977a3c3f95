//! Who is asking: an API key or the control plane's own access token, checked against the snapshot alone. Cheap
//! checks come first, and a token's verdict is remembered by the hash of the whole token.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use waffles_core::credential::{ApiKey, Claims, KeyHash, key_id, token_key_id};
use waffles_core::policy::Caller;
use waffles_core::principal::Principal;
use waffles_core::snapshot::{Settings, Snapshot};
use waffles_mcp::headers::{X_API_KEY, singleton};

use crate::reject::Reject;

const REMEMBERED: u64 = 10_000;
/// By how many seconds two clocks may differ.
const LEEWAY: i64 = 30;

/// A principal and the credential that was shown.
#[derive(Debug, Clone)]
pub struct Identity {
    principal: Arc<Principal>,
    shown: Shown,
    address: IpAddr,
}

#[derive(Debug, Clone)]
enum Shown {
    Key(Arc<ApiKey>),
    Token { kid: Arc<str>, session: Uuid, issued_at: i64, expires_at: i64 },
}

/// An identity on its way to another proxy: names, no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Carried {
    principal: Uuid,
    key: Option<String>,
    token: Option<(String, Uuid, i64, i64)>,
}

impl Identity {
    /// For another proxy.
    pub fn carry(&self) -> Carried {
        let principal = self.principal.id;
        match &self.shown {
            Shown::Key(key) => Carried { principal, key: Some(key.id.clone()), token: None },
            Shown::Token { kid, session, issued_at, expires_at } => {
                let token = Some((kid.to_string(), *session, *issued_at, *expires_at));
                Carried { principal, key: None, token }
            }
        }
    }

    /// From another proxy, under our own configuration; none when it is good no more.
    pub fn carried(snapshot: &Snapshot, carried: Carried, address: IpAddr) -> Option<Self> {
        let principal = Arc::clone(snapshot.principal(&carried.principal)?);
        let shown = match (carried.key, carried.token) {
            (Some(id), _) => Shown::Key(snapshot.key_by_id(&id).filter(|key| key.owner == principal.id)?),
            (None, Some((kid, session, issued_at, expires_at))) => {
                snapshot.token_key(&kid).filter(|_| !snapshot.is_ended(&session))?;
                Shown::Token { kid: kid.into(), session, issued_at, expires_at }
            }
            (None, None) => return None,
        };
        let identity = Self { principal, shown, address };
        identity.is_current(Utc::now()).then_some(identity)
    }

    /// The proxy itself, which holds no right at all.
    pub(crate) fn of_this_proxy() -> Self {
        let principal = Principal { name: "waffles".to_owned(), ..Principal::default() };
        let shown = Shown::Token { kid: "".into(), session: Uuid::nil(), issued_at: 0, expires_at: 0 };
        Self { principal: Arc::new(principal), shown, address: std::net::Ipv4Addr::LOCALHOST.into() }
    }

    /// Where the client is.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The principal.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// The API key; none for a token.
    pub fn key(&self) -> Option<&Arc<ApiKey>> {
        match &self.shown {
            Shown::Key(key) => Some(key),
            Shown::Token { .. } => None,
        }
    }

    /// As the policy wants it.
    pub fn caller(&self) -> Caller<'_> {
        Caller { principal: &self.principal, key: self.key().map(Arc::as_ref), address: Some(self.address) }
    }

    /// The same identity under a newer configuration; none when it is good no more.
    pub fn renew(&self, snapshot: &Snapshot) -> Option<Self> {
        let principal = Arc::clone(snapshot.principal(&self.principal.id)?);
        let shown = match &self.shown {
            Shown::Key(key) => Shown::Key(snapshot.key_by_id(&key.id)?),
            Shown::Token { kid, session, .. } => {
                snapshot.token_key(kid).filter(|_| !snapshot.is_ended(session))?;
                self.shown.clone()
            }
        };
        let renewed = Self { principal, shown, address: self.address };
        renewed.is_current(Utc::now()).then_some(renewed)
    }

    fn is_current(&self, now: DateTime<Utc>) -> bool {
        let token_good = match &self.shown {
            Shown::Key(_) => true,
            Shown::Token { issued_at, expires_at, .. } => {
                let not_before = self.principal.tokens_not_before.map_or(i64::MIN, |at| at.timestamp());
                now.timestamp() < *expires_at && *issued_at >= not_before
            }
        };
        token_good && self.caller().is_current(now)
    }
}

/// Checks credentials.
pub struct Authenticator {
    verified: Cache<[u8; 32], Arc<Verified>>,
}

/// A token that was found good, and by which key.
struct Verified {
    kid: String,
    key: [u8; 32],
    claims: Claims,
}

impl Default for Authenticator {
    fn default() -> Self {
        Self { verified: Cache::new(REMEMBERED) }
    }
}

impl Authenticator {
    /// Who is asking. The reason of a refusal is for the audit trail; clients see one and the same message.
    pub fn authenticate(
        &self,
        snapshot: &Snapshot,
        headers: &HeaderMap,
        address: IpAddr,
        now: DateTime<Utc>,
    ) -> Result<Identity, Reject> {
        let settings = snapshot.settings().ok_or(Reject::NotReady)?;
        let credential = presented(headers)?;
        let identity = if let Some(id) = key_id(credential) {
            self.by_key(snapshot, settings, credential, id, address)?
        } else {
            self.by_token(snapshot, settings, credential, address)?
        };
        if identity.is_current(now) {
            Ok(identity)
        } else {
            Err(Reject::Unauthenticated("credential_not_current"))
        }
    }

    /// The hash of a key that is not here and may be asked for; none where all keys are here.
    pub fn stranger(&self, snapshot: &Snapshot, headers: &HeaderMap) -> Option<KeyHash> {
        snapshot.found()?;
        let text = presented(headers).ok()?;
        key_id(text)?;
        Some(snapshot.settings()?.pepper.hash(text))
    }

    fn by_key(
        &self,
        snapshot: &Snapshot,
        settings: &Settings,
        text: &str,
        id: &str,
        address: IpAddr,
    ) -> Result<Identity, Reject> {
        // Found by hash equality: no branch depends on how much of a secret was right.
        let key = snapshot.key(&settings.pepper.hash(text)).ok_or(Reject::Unauthenticated("unknown_key"))?;
        if key.id != id {
            return Err(Reject::Unauthenticated("unknown_key"));
        }
        let principal = snapshot.principal(&key.owner).ok_or(Reject::Unauthenticated("unknown_principal"))?;
        Ok(Identity { principal: Arc::clone(principal), shown: Shown::Key(key), address })
    }

    fn by_token(
        &self,
        snapshot: &Snapshot,
        settings: &Settings,
        token: &str,
        address: IpAddr,
    ) -> Result<Identity, Reject> {
        let verified = self.verify(snapshot, settings, token)?;
        let Verified { kid, claims, .. } = &*verified;
        let principal =
            snapshot.principal(&claims.sub).ok_or(Reject::Unauthenticated("unknown_principal"))?;
        if principal.tenant != claims.tenant {
            return Err(Reject::Unauthenticated("foreign_tenant"));
        }
        if snapshot.is_ended(&claims.sid) {
            return Err(Reject::Unauthenticated("session_ended"));
        }
        let (session, issued_at, expires_at) = (claims.sid, claims.iat, claims.exp);
        let shown = Shown::Token { kid: kid.as_str().into(), session, issued_at, expires_at };
        Ok(Identity { principal: Arc::clone(principal), shown, address })
    }

    fn verify(&self, snapshot: &Snapshot, settings: &Settings, token: &str) -> Result<Arc<Verified>, Reject> {
        let refused = || Reject::Unauthenticated("invalid_token");
        let kid = token_key_id(token).ok_or(Reject::Unauthenticated("malformed_credential"))?;
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(verified) = self.verified.get(&hash) {
            // A key that was taken away, or replaced under its name, takes its tokens with it.
            let still = snapshot.token_key(&verified.kid).is_some_and(|key| key.public_key == verified.key);
            return still.then_some(verified).ok_or_else(refused);
        }
        let signer = snapshot.token_key(&kid).ok_or_else(refused)?;
        let key = DecodingKey::from_ed_components(&URL_SAFE_NO_PAD.encode(signer.public_key))
            .map_err(|_| refused())?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.token_issuer]);
        validation.set_audience(&[&settings.token_audience]);
        validation.leeway = LEEWAY.unsigned_abs();
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| refused())?.claims;
        if claims.iat > Utc::now().timestamp() + LEEWAY {
            return Err(refused());
        }
        let verified = Arc::new(Verified { kid, key: signer.public_key, claims });
        self.verified.insert(hash, Arc::clone(&verified));
        Ok(verified)
    }
}

/// The one credential of a request.
fn presented(headers: &HeaderMap) -> Result<&str, Reject> {
    let bearer = match singleton(headers, &header::AUTHORIZATION)? {
        None => None,
        Some(value) => {
            let (scheme, token) =
                value.split_once(' ').ok_or(Reject::Unauthenticated("malformed_credential"))?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(Reject::Unauthenticated("unsupported_scheme"));
            }
            Some(token.trim_matches(' '))
        }
    };
    match (bearer, singleton(headers, &X_API_KEY)?) {
        (Some(_), Some(_)) => Err(Reject::Unauthenticated("two_credentials")),
        (Some(credential), None) | (None, Some(credential)) => Ok(credential),
        (None, None) => Err(Reject::Unauthenticated("no_credential")),
    }
}
