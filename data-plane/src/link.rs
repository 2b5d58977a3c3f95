//! The way to the control plane: a connection that notices when it is dead, the proxy's credential, and the
//! waits between attempts. What is said over it is left to `discovery` and `audit::uplink`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use waffles_runtime::outbound;
use zeroize::Zeroizing;

/// No message of either stream comes near it.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// How long opening a connection or a stream may take.
pub(crate) const OPEN_TIME: Duration = Duration::from_secs(10);
/// How long a start waits to learn where the control plane is.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
/// A connection that is silent for both is dead, which makes 18 seconds at the most.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(8);

/// Where the control plane is, and where the credential for it lies.
#[derive(Debug, Clone)]
pub struct Link {
    /// Its gRPC address, `http://host:port`.
    pub control_plane: String,
    /// The file with the proxy token. Read at each connection, so that a rotated token needs no restart.
    pub token_file: PathBuf,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The token.
    #[error("cannot read the proxy token from {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token again.
    #[error("{path} holds no proxy token: one line that begins with wfp_")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The connection.
    #[error("cannot reach the control plane at {address}")]
    Connect {
        /// Where.
        address: String,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// A wait was over.
    #[error("the control plane did not answer in time: {0}")]
    Timeout(&'static str),
    /// It ended the stream.
    #[error("the control plane ended the stream ({:?}): {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    /// It ended the stream without saying why.
    #[error("the control plane closed the stream")]
    Closed,
    /// It broke the contract.
    #[error("the control plane broke the contract: {0}")]
    Contract(&'static str),
    /// The spool.
    #[error("cannot read the audit spool")]
    Spool(#[source] std::io::Error),
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// An open connection and the credential to present on it.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    bearer: MetadataValue<Ascii>,
}

impl Link {
    /// Opens a connection.
    #[expect(
        clippy::disallowed_methods,
        reason = "where the control plane is, the operator says at the start"
    )]
    pub(crate) async fn connect(&self) -> Result<Connection, LinkError> {
        let bearer = self.bearer().await?;
        let failed = |source| LinkError::Connect { address: self.control_plane.clone(), source };
        let channel = Endpoint::from_shared(self.control_plane.clone())
            .map_err(failed)?
            .connect_timeout(OPEN_TIME)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(failed)?;
        Ok(Connection { channel, bearer })
    }

    async fn bearer(&self) -> Result<MetadataValue<Ascii>, LinkError> {
        let path = || self.token_file.clone();
        let text = tokio::fs::read_to_string(&self.token_file)
            .await
            .map(Zeroizing::new)
            .map_err(|source| LinkError::Token { path: path(), source })?;
        let token = SecretString::from(text.trim());
        let malformed = || LinkError::Malformed { path: path() };
        if !token.expose_secret().starts_with("wfp_") || token.expose_secret().len() > 256 {
            return Err(malformed());
        }
        let header = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
        let mut bearer = MetadataValue::try_from(header.as_str()).map_err(|_| malformed())?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

impl Connection {
    /// A request that carries the credential.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }
}

/// The name of the control plane, unless it is one that everybody has, and where it is. Asked at the start alone: a
/// control plane that moves later is still closed by its name, and by what `--deny-upstream-cidr` says.
pub(crate) async fn places(control_plane: &str) -> (Vec<String>, Vec<SocketAddr>) {
    let Ok(uri) = control_plane.parse::<http::Uri>() else { return Default::default() };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let found = tokio::time::timeout(RESOLVE_TIME, outbound::look_up(&host, port)).await;
    let addrs = match found {
        Ok(Ok(addrs)) => addrs,
        _ => {
            tracing::warn!(
                host,
                "where the control plane is cannot be found out; it is closed to servers by name only"
            );
            Vec::new()
        }
    };
    let shared = host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok();
    (if shared { Vec::new() } else { vec![host] }, addrs)
}

/// Waits between attempts: at random up to a limit that doubles, so that many proxies that lost their control
/// plane at once do not return at once.
#[derive(Debug)]
pub(crate) struct BackOff {
    limit: Duration,
    least: Duration,
    most: Duration,
}

impl BackOff {
    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(15);

    pub(crate) fn new() -> Self {
        Self::between(Self::LEAST, Self::MOST)
    }

    /// Other limits than those for the control plane.
    pub(crate) fn between(least: Duration, most: Duration) -> Self {
        Self { limit: least * 2, least, most }
    }

    /// How long to wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let mut random = [0; 4];
        // Without random numbers the wait is merely not spread.
        let spread = match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX),
            Err(_) => 1.0,
        };
        let wait = self.least + (self.limit - self.least).mul_f64(spread);
        self.limit = (self.limit * 2).min(self.most);
        wait
    }

    /// The other side is well: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        *self = Self::between(self.least, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_are_spread_and_end_at_fifteen_seconds() {
        let mut back_off = BackOff::new();
        let waits: Vec<Duration> = (0..50).map(|_| back_off.next()).collect();
        assert!(waits[0] <= Duration::from_millis(200), "{waits:?}");
        assert!(waits.iter().all(|w| (BackOff::LEAST..=BackOff::MOST).contains(w)), "{waits:?}");
        assert!(waits[20..].iter().any(|w| *w > Duration::from_secs(5)), "{waits:?}");
        assert!(waits[20..].iter().any(|w| *w < Duration::from_secs(10)), "{waits:?}");
        back_off.reset();
        assert!(back_off.next() <= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn a_token_file_that_holds_no_token_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("proxy.token");
        let link = Link { control_plane: "http://127.0.0.1:1".into(), token_file: token_file.clone() };
        let error = link.bearer().await.unwrap_err();
        assert!(error.to_string().contains("proxy.token"), "{error}");
        std::fs::write(&token_file, "hello").unwrap();
        assert!(matches!(link.bearer().await, Err(LinkError::Malformed { .. })));
        std::fs::write(&token_file, "wfp_abc\n").unwrap();
        let bearer = link.bearer().await.unwrap();
        assert_eq!(bearer.to_str().unwrap(), "Bearer wfp_abc");
        assert!(!format!("{bearer:?}").contains("abc"));
    }
}
