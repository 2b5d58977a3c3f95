//! The secrets that this program keeps itself. The master key lives in a file or the environment, never in the database,
//! so that a stolen dump opens nothing; it seals the keys that everything else is hashed and sealed with (`keys`).

pub mod keys;
mod strength;

pub(crate) use strength::is_placeholder;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{hkdf, rand};
use base64::Engine as _;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;
use waffles_core::seal::{SealKey, SealRing};
use waffles_core::trail::Signer;
use zeroize::Zeroizing;

/// Bytes of the longest secret file that makes sense.
const MOST: u64 = 4096;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("{what}: cannot use {path}")]
    File {
        /// The flag that names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{what}: {path} must hold {wanted}")]
    Form {
        /// The flag that names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// It is no secret.
    #[error("{what}: {reason}; make another one with `openssl rand -hex 32`")]
    Weak {
        /// The flag that names it.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Others can read it.
    #[error("{what}: {path} can be read by every user of this machine; `chmod 600` it")]
    Exposed {
        /// The flag that names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
}

/// The master key, and the keys that it opens. Clones see the same keys for sealing, also after they were rotated.
#[derive(Clone)]
pub struct Secrets {
    /// Makes the hashes of API keys.
    pub pepper: [u8; 32],
    /// Seals what is secret in the database.
    pub seal: SealRing,
    /// Seals session ids; proxies get it.
    pub session_seal: SealRing,
    /// Signs for the audit trail.
    pub audit: Arc<Signer>,
    fingerprint: String,
    /// Seals the keys in the database.
    wrap: SealRing,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Reads the master key, 32 bytes in hexadecimal or Base64, or makes one where there is no file.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        const WHAT: &str = "--master-key-file";
        let text = read_or_make(WHAT, path, || {
            let mut key = Zeroizing::new([0; 32]);
            rand::fill(&mut *key).map_err(|_| SecretError::Random)?;
            Ok(Zeroizing::new(hex(&*key)))
        })?;
        let wanted = "32 random bytes, in hexadecimal or Base64";
        let key =
            decode(text.trim()).ok_or(SecretError::Form { what: WHAT, path: path.to_owned(), wanted })?;
        match strength::weakness(&key) {
            Some(reason) => Err(SecretError::Weak { what: WHAT, reason }),
            None => Ok(Self::from_master(&key)),
        }
    }

    /// Takes the master key as it was given in the environment.
    pub fn given(text: &SecretString) -> Result<Self, SecretError> {
        const WHAT: &str = "WAFFLES_MASTER_KEY";
        let key = decode(text.expose_secret().trim());
        let reason = match &key {
            None => Some("must be 32 random bytes, in hexadecimal or Base64"),
            Some(key) => strength::weakness(key),
        };
        match (key, reason) {
            (Some(key), None) => Ok(Self::from_master(&key)),
            (_, reason) => Err(SecretError::Weak { what: WHAT, reason: reason.unwrap_or_default() }),
        }
    }

    /// Derives the keys. Those for hashing and sealing are the ones of databases that were made before keys could be
    /// rotated; `keys::unlock` puts the database's own in their place.
    pub fn from_master(master: &[u8; 32]) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"waffles control plane").extract(master);
        let derive = |purpose: &str| {
            let mut key = [0; 32];
            root.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut key))
                .expect("HKDF-SHA-256 gives 32 bytes");
            key
        };
        let ring = |purpose| SealRing::new(vec![SealKey::new(1, &Zeroizing::new(derive(purpose)))]);
        let fingerprint = derive("fingerprint 1");
        Self {
            pepper: derive("api-key pepper 1"),
            seal: ring("seal at rest 1"),
            session_seal: ring("seal sessions 1"),
            audit: Arc::new(Signer::new(&Zeroizing::new(derive("audit signatures 1")))),
            fingerprint: hex(fingerprint.get(..8).unwrap_or_default()),
            wrap: ring("seal data keys 1"),
        }
    }

    /// Tells master keys apart and gives nothing of them away; stored in the database.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Reads a secret file, or makes it, readable by its owner only. Of two processes that make it at the same
/// moment one wins and both read the winner's, since a link to a name that exists fails.
fn read_or_make(
    what: &'static str,
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<String>, SecretError>,
) -> Result<Zeroizing<String>, SecretError> {
    let failed = |source| SecretError::File { what, path: path.to_owned(), source };
    if !path.try_exists().map_err(failed)? {
        let secret = make()?;
        let draft = path.with_extension(format!("{}.tmp", Uuid::now_v7().simple()));
        let written =
            write_private(&draft, secret.as_bytes()).and_then(|()| match std::fs::hard_link(&draft, path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                result => result,
            });
        if let Err(error) = std::fs::remove_file(&draft) {
            tracing::debug!(%error, "a draft of a secret file was not there to remove");
        }
        written.map_err(failed)?;
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.permissions().mode() & 0o007 != 0 {
        return Err(SecretError::Exposed { what, path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MOST).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn write_private(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(secret)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// 32 bytes in hexadecimal, or in Base64 of either alphabet, with or without padding.
fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let bare = text.trim_end_matches('=');
    let base64 = || {
        let bytes = STANDARD_NO_PAD.decode(bare).or_else(|_| URL_SAFE_NO_PAD.decode(bare)).ok()?;
        Zeroizing::new(bytes).as_slice().try_into().ok().map(Zeroizing::new)
    };
    unhex(text).or_else(base64)
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_and_privately() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let first = Secrets::load(&path).unwrap();
        let again = Secrets::load(&path).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.pepper, again.pepper);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a draft was left behind");
        assert_ne!(Secrets::from_master(&[1; 32]).fingerprint(), first.fingerprint());
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_by_the_name_of_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let zeros = "0".repeat(64);
        for text in ["changeme", "", &zeros, &"deadbeef".repeat(8)] {
            write(&path, text, 0o600);
            let error = Secrets::load(&path).unwrap_err().to_string();
            assert!(error.contains("--master-key-file"), "{text}: {error}");
            let error = Secrets::given(&text.into()).unwrap_err().to_string();
            assert!(
                error.contains("WAFFLES_MASTER_KEY") && (text.is_empty() || !error.contains(text)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_none_and_one_in_either_form_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let bytes: Vec<u8> = (0..32_u32).map(|i| (i * i * 7 + 13 * i + 5).to_le_bytes()[0]).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(&bytes);
        let as_hex = hex(&bytes);
        for text in [&base64, &as_hex] {
            write(&path, text, 0o644);
            assert!(matches!(Secrets::load(&path), Err(SecretError::Exposed { .. })));
            write(&path, text, 0o640);
            let loaded = Secrets::load(&path).unwrap();
            assert_eq!(loaded.fingerprint(), Secrets::given(&text.as_str().into()).unwrap().fingerprint());
        }
        assert_eq!(
            Secrets::given(&base64.into()).unwrap().pepper,
            Secrets::given(&as_hex.into()).unwrap().pepper
        );
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn purposes_have_keys_of_their_own() {
        let secrets = Secrets::from_master(&[7; 32]);
        let sealed = secrets.seal.seal(b"p", b"v").unwrap();
        assert!(secrets.session_seal.open(b"p", &sealed).is_err());
    }
}
