//! API keys and access tokens as data: the key's form, its keyed hash, what narrows it, a token's claims.
//!
//! A key reads `wfl_` + id (16) + secret (43) + checksum (6), all of [0-9A-Za-z] after the prefix, so that
//! secret scanners find leaked keys. The secret has 256 bits; the checksum is the CRC-32 of all before it and
//! lets a typo be told from a wrong key without any look-up.

use std::net::IpAddr;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::{Permission, PermissionSet};
use crate::server::NameSet;

/// What every key begins with.
pub const KEY_PREFIX: &str = "wfl_";
/// Characters of the public id.
pub const KEY_ID_LEN: usize = 16;
const SECRET_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;
/// Characters of a whole key.
pub const KEY_LEN: usize = KEY_PREFIX.len() + KEY_ID_LEN + SECRET_LEN + CHECKSUM_LEN;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The stored form of a key: HMAC-SHA-256 under a pepper that is kept outside the database. A slow password
/// hash would only be a lever for denial of service, since the secret has 256 random bits.
pub type KeyHash = [u8; 32];

/// The secret that key hashes are made with.
#[derive(Clone)]
pub struct Pepper(hmac::Key);

impl std::fmt::Debug for Pepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pepper(..)")
    }
}

impl Pepper {
    /// Takes 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The stored form of a key.
    pub fn hash(&self, key: &str) -> KeyHash {
        let tag = hmac::sign(&self.0, key.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(tag.as_ref());
        hash
    }
}

/// A new key: the whole text, shown once, and its public id.
pub struct NewKey {
    /// `wfl_…`.
    pub text: SecretString,
    /// The public part.
    pub id: String,
}

/// Makes a key from the system's random numbers. Fails only where those fail.
pub fn generate_key() -> Result<NewKey, RandomFailed> {
    let id = random_text(KEY_ID_LEN)?;
    let secret = random_text(SECRET_LEN)?;
    let body = format!("{KEY_PREFIX}{id}{secret}");
    let text = format!("{body}{}", checksum(&body));
    Ok(NewKey { text: text.into(), id })
}

/// Random text of [0-9A-Za-z], for ids and secrets: 5.95 bits a character.
pub fn random_text(len: usize) -> Result<String, RandomFailed> {
    let mut text = String::with_capacity(len);
    let mut bytes = [0; 64];
    while text.len() < len {
        rand::fill(&mut bytes).map_err(|_| RandomFailed)?;
        // Bytes of 248 and above would make the first characters of the alphabet likelier.
        let wanted = len - text.len();
        let fair = bytes.iter().filter(|b| **b < 248).take(wanted);
        text.extend(fair.filter_map(|b| ALPHABET.get(usize::from(b % 62))).map(|c| char::from(*c)));
    }
    Ok(text)
}

/// The system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random numbers")]
pub struct RandomFailed;

/// The public id of a key whose form and checksum are right. Says nothing about whether the key is good.
pub fn key_id(text: &str) -> Option<&str> {
    if text.len() != KEY_LEN || !text.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at_checked(KEY_LEN - CHECKSUM_LEN)?;
    let rest = body.strip_prefix(KEY_PREFIX)?;
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric()) || checksum(body) != sum {
        return None;
    }
    rest.get(..KEY_ID_LEN)
}

fn checksum(body: &str) -> String {
    let mut sum = crc32fast::hash(body.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET.get((sum % 62) as usize).copied().unwrap_or(b'0');
        sum /= 62;
    }
    digits.iter().map(|b| char::from(*b)).collect()
}

/// What a key may be used for. Empty lists do not narrow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyLimits {
    /// Permissions; empty means all that the owner has.
    #[serde(with = "permission_names")]
    pub scopes: Vec<Permission>,
    /// Names of servers.
    pub servers: Vec<String>,
    /// Names or patterns of tools.
    pub tools: Vec<String>,
    /// Addresses that the key may be used from.
    pub ip_ranges: Vec<IpNet>,
    /// Only listing and reading.
    pub read_only: bool,
    /// Names of namespaces; a key that is for some reaches servers through them only.
    pub namespaces: Vec<String>,
}

/// An API key as proxies and services see it: never the secret.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The public part.
    pub id: String,
    /// The tenant it belongs to.
    pub tenant: String,
    /// What its owner calls it.
    pub name: String,
    /// Its owner.
    pub owner: Uuid,
    /// What it may be used for.
    pub limits: KeyLimits,
    /// When it was issued.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// After this time it is refused even by a proxy that lost the control plane.
    pub not_after: Option<DateTime<Utc>>,
    scopes: PermissionSet,
    tools: NameSet,
}

/// The stored fields of a key, from which `ApiKey` is compiled.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of ApiKey")]
pub struct ApiKeyParts {
    pub id: String,
    pub tenant: String,
    pub name: String,
    pub owner: Uuid,
    pub limits: KeyLimits,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub not_after: Option<DateTime<Utc>>,
}

impl ApiKey {
    /// Compiles the key's limits. The error is a tool pattern that cannot be read; such a key must count as
    /// absent, since what narrows it is not understood.
    pub fn compile(parts: ApiKeyParts) -> Result<Self, String> {
        let scopes = match parts.limits.scopes.as_slice() {
            [] => PermissionSet::all(),
            scopes => scopes.iter().copied().collect(),
        };
        let tools = NameSet::compile(&parts.limits.tools)?;
        let ApiKeyParts { id, tenant, name, owner, limits, created_at, expires_at, revoked_at, not_after } =
            parts;
        Ok(Self {
            id,
            tenant,
            name,
            owner,
            limits,
            created_at,
            expires_at,
            revoked_at,
            not_after,
            scopes,
            tools,
        })
    }

    /// The permissions that it lets through.
    pub fn scopes(&self) -> PermissionSet {
        self.scopes
    }

    /// Whether it is neither revoked nor past one of its ends.
    pub fn is_current(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_none()
            && self.expires_at.is_none_or(|end| now < end)
            && self.not_after.is_none_or(|end| now < end)
    }

    /// Whether it may be used from an address. An unknown address is outside every range.
    pub fn allows_address(&self, address: Option<IpAddr>) -> bool {
        let ranges = &self.limits.ip_ranges;
        ranges.is_empty()
            || address.is_some_and(|a| ranges.iter().any(|range| range.contains(&a.to_canonical())))
    }

    /// Whether it may be used for a server.
    pub fn allows_server(&self, name: &str) -> bool {
        self.limits.servers.is_empty() || self.limits.servers.iter().any(|server| server == name)
    }

    /// Whether it may be used at a namespace.
    pub fn allows_namespace(&self, name: &str) -> bool {
        self.limits.namespaces.is_empty() || self.limits.namespaces.iter().any(|namespace| namespace == name)
    }

    /// Whether it may be used for a tool.
    pub fn allows_tool(&self, name: &str) -> bool {
        self.tools.is_empty() || self.tools.contains(name)
    }

    #[cfg(test)]
    pub(crate) fn for_test(limits: KeyLimits) -> Self {
        Self::compile(ApiKeyParts {
            id: "k".into(),
            tenant: "default".into(),
            name: "test".into(),
            owner: Uuid::nil(),
            limits,
            created_at: DateTime::UNIX_EPOCH,
            expires_at: None,
            revoked_at: None,
            not_after: None,
        })
        .unwrap()
    }
}

/// What an access token says (RFC 9068 in spirit; signed with `EdDSA`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer: the control plane.
    pub iss: String,
    /// Audience: this Waffles.
    pub aud: String,
    /// UUID of the principal.
    pub sub: Uuid,
    /// The principal's tenant.
    pub tenant: String,
    /// The session that it belongs to.
    pub sid: Uuid,
    /// Seconds since the epoch.
    pub iat: i64,
    /// Seconds since the epoch.
    pub exp: i64,
}

/// Longest token that is looked at, in bytes.
pub const TOKEN_MOST: usize = 16 * 1024;

/// The `kid` of a token whose header says nothing but what our own headers say: one that points elsewhere (`jku`, `jwk`,
/// `x5u`) or wants something special (`crit`, `b64`, `enc`, `zip`) is not ours. Says nothing about the signature.
pub fn token_key_id(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OurHeader {
        typ: String,
        alg: String,
        kid: String,
    }
    if token.len() > TOKEN_MOST || token.bytes().filter(|b| *b == b'.').count() != 2 {
        return None;
    }
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    let header: OurHeader = serde_json::from_slice(&header).ok()?;
    (header.typ == "JWT" && header.alg == "EdDSA" && header.kid.len() <= 64).then_some(header.kid)
}

/// Whether a text begins as a key does, rather than a token.
pub fn looks_like_key(text: &SecretString) -> bool {
    text.expose_secret().starts_with(KEY_PREFIX)
}

mod permission_names {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::policy::Permission;

    pub(super) fn serialize<S: Serializer>(scopes: &[Permission], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(scopes.iter().map(|p| p.as_str()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Permission>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|name| {
                Permission::parse(name).ok_or_else(|| D::Error::custom(format!("unknown permission {name}")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_its_form_and_hides_itself() {
        let key = generate_key().unwrap();
        let text = key.text.expose_secret();
        assert_eq!(text.len(), KEY_LEN);
        assert_eq!(key_id(text), Some(key.id.as_str()));
        assert!(!format!("{:?}", key.text).contains(&key.id));
        assert_ne!(generate_key().unwrap().text.expose_secret(), text);
    }

    #[test]
    fn a_typo_is_told_from_a_key() {
        let key = generate_key().unwrap();
        let text = key.text.expose_secret();
        for i in 0..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[i] = if typo[i] == b'a' { b'b' } else { b'a' };
            assert_eq!(key_id(std::str::from_utf8(&typo).unwrap()), None, "position {i}");
        }
        for bad in ["", "wfl_", "Bearer x", "wfl_ä"] {
            assert_eq!(key_id(bad), None);
        }
    }

    #[test]
    fn hashes_differ_by_pepper_and_by_key() {
        let (a, b) = (Pepper::new(&[1; 32]), Pepper::new(&[2; 32]));
        assert_eq!(a.hash("k"), a.hash("k"));
        assert_ne!(a.hash("k"), a.hash("l"));
        assert_ne!(a.hash("k"), b.hash("k"));
    }

    #[test]
    fn a_key_ends_when_it_is_revoked_expired_or_past_not_after() {
        let at = |s| DateTime::from_timestamp(s, 0);
        let mut key = ApiKey::for_test(KeyLimits::default());
        assert!(key.is_current(at(10).unwrap()));
        key.expires_at = at(10);
        assert!(!key.is_current(at(10).unwrap()));
        key.expires_at = None;
        key.not_after = at(9);
        assert!(!key.is_current(at(10).unwrap()));
        key.not_after = None;
        key.revoked_at = at(1);
        assert!(!key.is_current(at(0).unwrap()));
    }

    #[test]
    fn an_address_outside_the_ranges_is_refused_also_as_a_mapped_one() {
        let key = ApiKey::for_test(KeyLimits {
            ip_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            ..KeyLimits::default()
        });
        assert!(key.allows_address(Some("10.1.2.3".parse().unwrap())));
        assert!(key.allows_address(Some("::ffff:10.1.2.3".parse().unwrap())));
        assert!(!key.allows_address(Some("11.1.2.3".parse().unwrap())));
        assert!(!key.allows_address(None));
    }
}
