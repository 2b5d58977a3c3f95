//! An enrolled proxy as data: who it is, written as a URI in the manner of SPIFFE, and the token that it joins with.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use crate::credential::{RandomFailed, random_text};
use crate::is_dns_label;

/// What every join token begins with.
pub const JOIN_TOKEN_PREFIX: &str = "wfj_";
/// The group of a proxy that is given none.
pub const DEFAULT_GROUP: &str = "default";
/// Letters and digits that hold 256 random bits.
const RANDOM_LEN: usize = 43;
const SCHEME: &str = "spiffe://";

/// Who a proxy is, as its certificate says: `spiffe://<trust domain>/proxy/<group>/<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyIdentity {
    /// Whose certificates these are: one Waffles.
    pub trust_domain: String,
    /// Its group.
    pub group: String,
    /// The id that it gave itself at its first start.
    pub id: Uuid,
}

impl std::fmt::Display for ProxyIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/proxy/{}/{}", self.trust_domain, self.group, self.id)
    }
}

impl ProxyIdentity {
    /// Reads the URI. There is one way to write an identity; every other is none.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let (trust_domain, kind, group, id) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let identity =
            Self { trust_domain: trust_domain.to_owned(), group: group.to_owned(), id: id.parse().ok()? };
        let sound = kind == "proxy" && is_group(group) && is_dns_label(trust_domain);
        (sound && identity.to_string() == uri).then_some(identity)
    }
}

/// Whether a text can name a group of proxies.
pub fn is_group(text: &str) -> bool {
    is_dns_label(text)
}

/// The SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// What a proxy joins with, once: `wfj_`, 256 random bits, a dot, and the fingerprint of the authority that certifies
/// the control plane, so that this one line is all that a proxy needs to know whom it talks to.
#[derive(Debug, Clone)]
pub struct JoinToken {
    text: SecretString,
    authority: Fingerprint,
}

impl JoinToken {
    /// Makes one from the system's random numbers. Fails only where those fail.
    pub fn generate(authority: &Fingerprint) -> Result<Self, RandomFailed> {
        let hex: String = authority.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("{JOIN_TOKEN_PREFIX}{}.{hex}", random_text(RANDOM_LEN)?);
        Ok(Self { text: text.into(), authority: *authority })
    }

    /// Reads one. Says nothing about whether it is good.
    pub fn parse(text: &str) -> Option<Self> {
        let (random, hex) = text.strip_prefix(JOIN_TOKEN_PREFIX)?.split_once('.')?;
        let is_random = random.len() == RANDOM_LEN && random.bytes().all(|b| b.is_ascii_alphanumeric());
        let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_random || !is_hex {
            return None;
        }
        let mut authority = [0; 32];
        for (i, byte) in authority.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self { text: text.to_owned().into(), authority })
    }

    /// The whole text.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// The authority that certifies the control plane which made it.
    pub fn authority(&self) -> &Fingerprint {
        &self.authority
    }

    /// Whether two are the same one.
    pub fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.expose().as_bytes(), other.expose().as_bytes()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_in_one_way() {
        let identity =
            ProxyIdentity { trust_domain: "waffles-1".into(), group: "eu".into(), id: Uuid::from_u128(7) };
        let uri = identity.to_string();
        assert_eq!(uri, "spiffe://waffles-1/proxy/eu/00000000-0000-0000-0000-000000000007");
        assert_eq!(ProxyIdentity::parse(&uri), Some(identity));
        for wrong in [
            "spiffe://waffles-1/proxy/eu/7",
            "spiffe://waffles-1/proxy/eu/00000000-0000-0000-0000-000000000007/",
            "spiffe://waffles-1/proxy/eu/00000000-0000-0000-0000-00000000000A",
            "spiffe://waffles-1/proxy/EU/00000000-0000-0000-0000-000000000007",
            "spiffe://waffles-1/proxy//00000000-0000-0000-0000-000000000007",
            "spiffe:///proxy/eu/00000000-0000-0000-0000-000000000007",
            "spiffe://waffles-1/server/eu/00000000-0000-0000-0000-000000000007",
            "https://waffles-1/proxy/eu/00000000-0000-0000-0000-000000000007",
            "spiffe://waffles-1/control-plane",
            "",
        ] {
            assert_eq!(ProxyIdentity::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_join_token_names_its_authority_and_does_not_print() {
        let token = JoinToken::generate(&[0xa5; 32]).unwrap();
        let read = JoinToken::parse(token.expose()).unwrap();
        assert_eq!(read.authority(), &[0xa5; 32]);
        assert!(read.is(&token) && !read.is(&JoinToken::generate(&[0xa5; 32]).unwrap()));
        assert!(!format!("{token:?}").contains(token.expose()));
        let text = token.expose().to_owned();
        for wrong in [
            "",
            "wfj_",
            "wfj_.",
            &text.replace("wfj_", "wfl_"),
            &text.replace("a5", "A5"),
            &format!("{text}0"),
            text.strip_suffix('5').unwrap(),
            &text.replace('.', ""),
        ] {
            assert!(JoinToken::parse(wrong).is_none(), "{wrong}");
        }
    }
}
