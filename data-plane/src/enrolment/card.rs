//! Key, certificate and authorities of a proxy, and the one file that they lie in: readable by its owner only, whole or
//! absent.

use std::io;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use waffles_core::proxy::{Fingerprint, ProxyIdentity};
use waffles_runtime::tls::certificate::{self, Facts, fingerprint, to_pem};
use waffles_runtime::tls::mutual::Own;
use zeroize::Zeroizing;

use crate::durable;
use crate::state::DiskError;

/// Key first, then the certificate, then the authorities.
const FILE: &str = "identity.pem";

/// A private key, which cannot print itself.
#[derive(Clone)]
pub(super) struct Key(Arc<KeyPair>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// Makes one.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        Ok(Self(Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)))
    }

    /// A request for a certificate, which proves that the key is held.
    pub(super) fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        Ok(CertificateParams::default().serialize_request(&*self.0)?.der().to_vec())
    }
}

/// A certificate and what it is used with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    /// The certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Whom the proxy believes.
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

impl Card {
    /// Whose it is, from when and until when.
    pub(super) fn read(&self) -> Option<(ProxyIdentity, DateTime<Utc>, DateTime<Utc>)> {
        let facts = Facts::read(self.chain.first()?)?;
        let [uri] = facts.uris.as_slice() else { return None };
        let moment = |seconds| DateTime::from_timestamp(seconds, 0);
        Some((ProxyIdentity::parse(uri)?, moment(facts.not_before)?, moment(facts.not_after)?))
    }

    /// For handshakes.
    pub(super) fn own(&self, key: &Key) -> Own {
        Own { chain: self.chain.clone(), key: PrivateKeyDer::Pkcs8(key.0.serialize_der().into()) }
    }

    /// Whether the proxy believes the authority of this fingerprint.
    pub(super) fn knows(&self, authority: &Fingerprint) -> bool {
        self.authorities.iter().any(|known| fingerprint(known) == *authority)
    }

    /// For operators.
    pub(super) fn fingerprints(&self) -> Vec<String> {
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.authorities.iter().map(|authority| hex(fingerprint(authority))).collect()
    }
}

/// Reads the file. Without a key in it, one is made and written before it is used: a control plane that has certified it
/// would know this proxy by no other.
pub(super) fn load(dir: &Path) -> Result<(Key, Option<Card>), DiskError> {
    let path = dir.join(FILE);
    let failed = |source| DiskError::Io { path: path.clone(), source };
    match std::fs::read(&path).map(Zeroizing::new) {
        Ok(pem) => match parse(&pem) {
            Some(found) => return Ok(found),
            None => tracing::error!("{} is damaged, a join token is needed", path.display()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let key = Key::generate().map_err(|_| DiskError::Random)?;
    save(dir, &key, None)?;
    Ok((key, None))
}

/// Writes the file.
pub(super) fn save(dir: &Path, key: &Key, card: Option<&Card>) -> Result<(), DiskError> {
    let mut pem = Zeroizing::new(key.0.serialize_pem());
    let certificates = card.iter().flat_map(|card| card.chain.iter().take(1).chain(&card.authorities));
    certificates.for_each(|certificate| pem.push_str(&to_pem(certificate)));
    let path = dir.join(FILE);
    durable::directory(dir)
        .and_then(|()| durable::replace(&path, pem.as_bytes()))
        .map_err(|source| DiskError::Io { path, source })
}

fn parse(pem: &[u8]) -> Option<(Key, Option<Card>)> {
    let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
    let key = Key(Arc::new(KeyPair::try_from(der.secret_der()).ok()?));
    let mut certificates = certificate::from_pem(pem)?.into_iter();
    let card =
        certificates.next().map(|leaf| Card { chain: vec![leaf], authorities: certificates.collect() });
    Some((key, card))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_from_the_first_moment_and_the_certificate_with_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (key, card) = load(dir.path()).unwrap();
        assert!(card.is_none());
        let (again, _) = load(dir.path()).unwrap();
        assert_eq!(key.0.serialize_der(), again.0.serialize_der());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        let card = Card { chain: vec![der.clone()], authorities: vec![der.clone(), der] };
        save(dir.path(), &key, Some(&card)).unwrap();
        assert_eq!(load(dir.path()).unwrap().1, Some(card));
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(format!("{key:?}"), "Key(..)");
        std::fs::write(dir.path().join(FILE), "damaged").unwrap();
        assert!(load(dir.path()).unwrap().1.is_none());
    }
}
