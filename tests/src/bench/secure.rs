//! A proxy that its clients speak TLS to, over connections that are kept: what it costs to seal and open every message.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use waffles_core::credential::KeyLimits;

use super::rules::specs;
use super::{Cores, Target, Way, alone, both};
use crate::watchdog::Dir;
use crate::{DataPlane, Seed};

/// A proxy with a certificate of its own.
pub(super) struct Secure {
    proxy: DataPlane,
    key: String,
}

impl Secure {
    pub(super) async fn start(
        cores: &Cores,
        upstream: &str,
        rules: usize,
        dir: &Dir,
    ) -> anyhow::Result<Self> {
        let pair = rcgen::KeyPair::generate()?;
        let signed = rcgen::CertificateParams::new(vec!["127.0.0.1".into()])?.self_signed(&pair)?;
        let private = dir.path().join("key.pem");
        std::fs::write(&private, pair.serialize_pem())?;
        std::fs::write(certificate(dir), signed.pem())?;
        let mut seed = Seed::new();
        let caller = seed.principal("caller", "user");
        let key = seed.key(caller, KeyLimits::default());
        seed.server("bench", upstream, |_| {});
        for spec in specs(rules) {
            seed.rule(spec);
        }
        let (certificate, private) = (certificate(dir).display().to_string(), private.display().to_string());
        let flags = ["--log", "warn", "--tls-cert", &certificate, "--tls-key", &private];
        Ok(Self { proxy: alone(&seed, cores, &flags).await, key })
    }

    pub(super) fn target(&self, dir: &Dir) -> Target {
        Target {
            way: Way::Tls,
            urls: both(&self.proxy.server_url("bench").replacen("http:", "https:", 1)),
            bearer: Some(self.key.clone()),
            bearers: None,
            trusted: Some(certificate(dir)),
            pid: self.proxy.program.pid(),
        }
    }
}

fn certificate(dir: &Dir) -> PathBuf {
    dir.path().join("cert.pem")
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
