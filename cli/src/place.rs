//! Where the control plane's gRPC port is, and how it is spoken to: in the clear on this machine alone, and anywhere else
//! over TLS 1.3 to whom the context's authority has certified.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::client::root;
use crate::context::Context;
use crate::failure::Failure;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// An address, and the authority that whoever is there must be certified by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    grpc: &'a str,
    ca: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// An address with its authority, where it needs one.
    pub(crate) fn new(grpc: &'a str, ca: Option<&'a str>) -> Self {
        Self { grpc, ca }
    }
}

impl<'a> From<&'a Context> for Place<'a> {
    fn from(context: &'a Context) -> Self {
        Self { grpc: &context.grpc, ca: context.ca.as_deref() }
    }
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(grpc: &'a str) -> Self {
        Self { grpc, ca: None }
    }
}

impl<'a> From<&'a String> for Place<'a> {
    fn from(grpc: &'a String) -> Self {
        Self { grpc, ca: None }
    }
}

impl Place<'_> {
    /// Opens a channel.
    #[expect(clippy::disallowed_methods, reason = "a person says where to, on their own machine")]
    pub(crate) async fn connect(self) -> anyhow::Result<Channel> {
        let grpc = self.grpc;
        let endpoint = Endpoint::from_shared(grpc.to_owned())
            .map_err(|error| Failure::usage(format!("{grpc} is not an address: {error}")))?
            .user_agent(concat!("wafflectl/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT);
        let uri = endpoint.uri().clone();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let opened = match uri.scheme_str() {
            Some("http") if is_here(&host) => endpoint.connect().await,
            Some("http") => {
                return Err(Failure::usage(format!("{grpc} would be spoken to in the clear, over a network"))
                    .next("Use https:// and `wafflectl login --ca FILE`, with what `waffles-control-plane ca` prints.")
                    .into());
            }
            Some("https") => {
                let connector = TlsConnector::from(self.tls()?);
                let port = uri.port_u16().unwrap_or(443);
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| Failure::usage(format!("{grpc} is not an address: {error}")))?;
                let dial = tower::service_fn(move |_: Uri| {
                    let (connector, name, host) = (connector.clone(), name.clone(), host.clone());
                    async move {
                        let stream = TcpStream::connect((host.as_str(), port)).await?;
                        stream.set_nodelay(true)?;
                        connector.connect(name, stream).await.map(TokioIo::new)
                    }
                });
                endpoint.connect_with_connector(dial).await
            }
            _ => return Err(Failure::usage(format!("{grpc} is not an http:// or https:// address")).into()),
        };
        opened.map_err(|error| {
            let message = format!("cannot reach the control plane at {grpc}: {}", root(&error));
            Failure::unreachable(message)
                .next("Start it (`wafflectl up`), or check the address with `wafflectl context show`.")
                .into()
        })
    }

    fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let missing = || {
            Failure::usage(format!("it is not known who certifies {}", self.grpc))
                .next("Name a file with `wafflectl login --ca FILE`: `waffles-control-plane ca` prints it.")
        };
        let unusable = || {
            Failure::usage("the authority of this context is no certificate in PEM form")
                .next("See `wafflectl login --ca FILE`.")
        };
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(self.ca.ok_or_else(missing)?.as_bytes()) {
            roots.add(authority.map_err(|_| unusable())?).map_err(|_| unusable())?;
        }
        if roots.is_empty() {
            return Err(unusable().into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Whether a host is this machine, whatever the network says.
fn is_here(host: &str) -> bool {
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(grpc: &str, ca: Option<&str>) -> String {
        let error = Place::new(grpc, ca).connect().await.unwrap_err();
        crate::failure::report(&error).1
    }

    #[tokio::test]
    async fn a_network_is_spoken_to_over_tls_and_to_a_known_authority_only() {
        assert!(refusal("http://10.0.0.7:8082", None).await.contains("in the clear"));
        assert!(refusal("http://cp.example:8082", None).await.contains("in the clear"));
        assert!(refusal("https://cp.example:8082", None).await.contains("who certifies"));
        assert!(refusal("https://cp.example:8082", Some("nonsense")).await.contains("no certificate"));
        assert!(refusal("ftp://cp.example", None).await.contains("is not an http://"));
        for here in ["localhost", "127.0.0.1", "127.1.2.3", "::1"] {
            assert!(is_here(here), "{here}");
        }
        assert!(!is_here("localhost.example") && !is_here("10.0.0.1"));
    }
}
