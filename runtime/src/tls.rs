//! Certificates: load, watch, swap; and the client and server configurations of both programs.
//! TLS 1.3, and 1.2 with the AEAD suites only, which are all that rustls knows; between our own programs `mutual`.

pub mod certificate;
pub mod mutual;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::task::Task;
use crate::telemetry::chain;

/// What a certificate, key or authority file can lack.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds no PEM of the wanted kind.
    #[error("{} holds no usable {wanted} in PEM form", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// What the parser said.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or are of a kind that is not supported.
    #[error("certificate {} and key {} cannot be used", .chain.display(), .key.display())]
    Unusable {
        /// The certificate chain.
        chain: PathBuf,
        /// The key.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// A certificate authority that rustls cannot take.
    #[error("certificate authority {} cannot be used", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// A configuration that rustls refuses.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
}

/// Makes aws-lc-rs the provider of the process, for libraries that ask for the default. May be
/// called more than once.
pub fn install_provider() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
}

/// Where a server's certificate chain and private key are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPaths {
    /// The certificate, then those that lead to an authority; PEM.
    pub chain: PathBuf,
    /// The private key; PEM.
    pub key: PathBuf,
}

/// A server's TLS: the configuration, and, as a [`Task`], the watch over its files. Run it by a
/// [`Driver`](crate::task::Driver) every few seconds; new connections use the new certificate.
#[derive(Debug)]
pub struct ServerTls {
    paths: ServerPaths,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    /// Of the contents last tried, good or bad, so that a bad file is complained of once.
    tried: Option<u64>,
    error: Option<String>,
}

impl ServerTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file cannot be read or the two do not go together.
    pub fn load(paths: ServerPaths) -> Result<Self, TlsError> {
        let files = Files::read(&paths)?;
        let current = Arc::new(Current { key: RwLock::new(Arc::new(files.parse(&paths)?)) });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { paths, current, config: Arc::new(config), tried: Some(files.fingerprint()), error: None })
    }

    /// The configuration, which goes on to serve whatever certificate is current.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    fn reload(&mut self) -> Result<bool, TlsError> {
        let files = Files::read(&self.paths).inspect_err(|_| self.tried = None)?;
        let fingerprint = files.fingerprint();
        if self.tried == Some(fingerprint) {
            return Ok(false);
        }
        self.tried = Some(fingerprint);
        let key = files.parse(&self.paths)?;
        *self.current.key.write() = Arc::new(key);
        Ok(true)
    }
}

/// What one look at the files found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// A new certificate is in use.
    pub changed: bool,
    /// Why the files as they are now are not in use; the last good ones are.
    pub error: Option<String>,
}

impl Task for ServerTls {
    const NAME: &'static str = "certificates";
    type Report = Reload;

    /// Reads both files each time: they are small, and their times of change are not to be trusted
    /// when a whole folder is swapped by a symbolic link, as Kubernetes does.
    async fn activate(&mut self) -> Reload {
        let changed = match self.reload() {
            Ok(true) => {
                self.error = None;
                tracing::info!(path = %self.paths.chain.display(), "certificate reloaded");
                true
            }
            Ok(false) => false,
            Err(error) => {
                let message = chain(&error).to_string();
                if self.error.as_ref() != Some(&message) {
                    tracing::error!(
                        error = message,
                        "certificate not reloaded, the last good one stays in use"
                    );
                }
                self.error = Some(message);
                false
            }
        };
        Reload { changed, error: self.error.clone() }
    }
}

/// What a client trusts and offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTrust {
    /// Authorities beside the system's; PEM.
    pub extra_ca: Option<PathBuf>,
    /// Leaves the system's authorities out, which a private control plane wants.
    pub only_extra: bool,
}

impl ClientTrust {
    /// A client that speaks HTTP/1.1.
    ///
    /// # Errors
    /// When the extra authorities cannot be read or used.
    pub fn http1(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.config(&[b"http/1.1"])
    }

    /// A client that offers these protocols.
    ///
    /// # Errors
    /// When the extra authorities cannot be read or used.
    pub fn config(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The authorities themselves.
    ///
    /// # Errors
    /// When the extra authorities cannot be read or used.
    pub fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        if !self.only_extra {
            let native = rustls_native_certs::load_native_certs();
            // One odd file in a system's store is no reason to trust none of it.
            for error in &native.errors {
                tracing::warn!(error = %chain(error), "skipped a part of the system's certificate authorities");
            }
            roots.add_parsable_certificates(native.certs);
        }
        if let Some(path) = &self.extra_ca {
            for authority in certificates(&read(path)?, path)? {
                roots.add(authority).map_err(|source| TlsError::Authority { path: path.clone(), source })?;
            }
        }
        if roots.is_empty() {
            tracing::warn!("no certificate authorities found: TLS connections will fail");
        }
        Ok(roots)
    }
}

/// The certificate in use. Read once a handshake, written once a rotation.
#[derive(Debug)]
struct Current {
    key: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().clone())
    }
}

struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(paths: &ServerPaths) -> Result<Self, TlsError> {
        Ok(Self { chain: read(&paths.chain)?, key: read(&paths.key)? })
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.chain, &self.key).hash(&mut hasher);
        hasher.finish()
    }

    /// Checks that key and certificate belong together, so half of a rotation is refused.
    fn parse(&self, paths: &ServerPaths) -> Result<CertifiedKey, TlsError> {
        let chain = certificates(&self.chain, &paths.chain)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| TlsError::Pem {
            path: paths.key.clone(),
            wanted: "private key",
            source,
        })?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Unusable {
            chain: paths.chain.clone(),
            key: paths.key.clone(),
            source,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |source| TlsError::Pem { path: path.to_owned(), wanted: "certificate", source };
    let certificates =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    if certificates.is_empty() {
        return Err(unusable(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
mod tests;
