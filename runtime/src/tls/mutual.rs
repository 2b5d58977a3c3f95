//! TLS between our own programs: 1.3 and nothing older, certified by an authority of our own. A server asks for a
//! certificate and takes connections without one too, so that whoever joins can come in; what a connection may do
//! is for the door to say. There is no resumption: each connection proves itself anew.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::fingerprint;
use super::{TlsError, provider};
use crate::outbound;

/// The protocol that is agreed on: HTTP/2, for gRPC.
const ALPN: &[u8] = b"h2";
/// How long one address may take to answer at all: a packet that is lost is sent again after a second.
const REACH_TIME: Duration = Duration::from_secs(2);

/// A certificate with what leads to its authority, and its key.
#[derive(Debug)]
pub struct Own {
    /// The certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Own {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Whom a client believes.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Servers that one of these certified.
    Authorities(&'a [CertificateDer<'static>]),
    /// Servers that show the certificate with this fingerprint among their own, and were certified by it.
    Fingerprint([u8; 32]),
}

/// A server's side, which believes clients that one of the authorities certified.
///
/// # Errors
/// When key and certificate do not belong together, or an authority cannot be used.
pub fn server(own: Own, authorities: &[CertificateDer<'static>]) -> Result<Arc<ServerConfig>, TlsError> {
    let roots = Arc::new(store(authorities)?);
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.chain, own.key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A ticket would let a client in again whose certificate has ended meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client's side, with its own certificate where it has one.
///
/// # Errors
/// When key and certificate do not belong together, or an authority cannot be used.
pub fn client(trust: Trust<'_>, own: Option<Own>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Config)?;
    let builder = match trust {
        Trust::Authorities(authorities) => builder.with_root_certificates(store(authorities)?),
        Trust::Fingerprint(authority) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pin { authority }))
        }
    };
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key).map_err(TlsError::Config)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects and shakes hands.
///
/// # Errors
/// When the host is none, the network fails, the handshake fails, or the time is up.
pub async fn connect(
    config: Arc<ClientConfig>,
    host: &str,
    port: u16,
    most: Duration,
) -> io::Result<TlsStream<TcpStream>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
    let connect = async {
        let stream = reach(bare, port).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(most, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The first address of the host that answers.
#[expect(clippy::disallowed_methods, reason = "where the control plane is, an operator says")]
async fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::ErrorKind::NotFound.into();
    for addr in outbound::look_up(host, port).await? {
        match tokio::time::timeout(REACH_TIME, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

fn store(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(TlsError::Config)?;
    }
    Ok(roots)
}

/// Believes the one authority of a fingerprint, which the server sends along.
#[derive(Debug)]
struct Pin {
    authority: [u8; 32],
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|shown| fingerprint(shown) == self.authority);
        let pinned = pinned.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
