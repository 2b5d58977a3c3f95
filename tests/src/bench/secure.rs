//! A proxy that its clients speak TLS to, over connections that are kept: what it costs to seal and open every message.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use waffles_core::credential::KeyLimits;

use super::rules::seeded;
use super::{Cores, Target, Way, alone, both};
use crate::DataPlane;
use crate::programs::certificate;
use crate::watchdog::Dir;

/// A proxy with a certificate of its own.
pub(super) struct Secure {
    proxy: DataPlane,
    key: String,
}

impl Secure {
    pub(super) async fn start(cores: &Cores, upstream: &str, rules: usize, dir: &Dir) -> Self {
        certificate(dir.path());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (mut seed, caller) = seeded(upstream, rules);
        let key = seed.key(caller, KeyLimits::default());
        let flags = ["--log", "warn", "--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")];
        Self { proxy: alone(&seed, cores, &flags).await, key }
    }

    pub(super) fn target(&self, dir: &Dir) -> Target {
        Target {
            way: Way::Tls,
            urls: both(&self.proxy.server_url("bench").replacen("http:", "https:", 1)),
            trusted: Some(dir.path().join("cert.pem")),
            ..Target::of(&self.proxy, "bench", self.key.clone())
        }
    }
}

/// Shakes hands with a server whose certificate is the one of the file.
pub(super) async fn connect(
    socket: TcpStream,
    addr: SocketAddr,
    trusted: &Path,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).context("no certificate")?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector.connect(ServerName::IpAddress(addr.ip().into()), socket).await?)
}
