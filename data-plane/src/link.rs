//! The way to the control plane: mutual TLS over a connection that notices when it is dead, and the waits between
//! attempts. What is said over it is left to `discovery`, `audit::uplink` and `enrolment`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};
use waffles_runtime::outbound;
use waffles_runtime::tls::mutual;

use crate::enrolment::{Member, Membership};

/// No message of either stream comes near it.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// How long opening a connection or a stream may take.
pub(crate) const OPEN_TIME: Duration = Duration::from_secs(10);
/// How long a start waits to learn where the control plane is.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
/// A connection that is silent for both is dead, which makes 18 seconds at the most.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(8);

/// Where the control plane is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads `https://host:port`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let wrong = "must be https://HOST:PORT, the address of the control plane's gRPC port";
        let url = url::Url::parse(text).map_err(|_| wrong)?;
        if url.scheme() == "http" {
            return Err("must begin with https://: proxies and the control plane speak mutual TLS");
        }
        let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("https", Some(host), Some(port)) if bare => Ok(Self { host: host.to_owned(), port }),
            _ => Err(wrong),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

/// The way to the control plane; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    membership: Arc<Membership>,
    address: Address,
    /// A control plane that a test plays in the clear, with the group that this proxy is of.
    #[cfg(test)]
    plain: Option<(std::net::SocketAddr, String)>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No certificate.
    #[error("not enrolled with the control plane yet: a join token is needed (--join-token-file)")]
    NotEnrolled,
    /// No certificate any more.
    #[error("the certificate has ended: a new join token is needed (--join-token-file)")]
    CertificateEnded,
    /// A certificate that cannot be used.
    #[error("the control plane's certificate for this proxy cannot be used: {0}")]
    Certificate(String),
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

impl LinkError {
    /// Nothing was heard of the control plane's host, not even a no.
    pub(crate) fn is_silence(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        let causes = std::iter::successors(Some(source as &dyn std::error::Error), |error| error.source());
        let mut kinds =
            causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        kinds.any(|kind| {
            use std::io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
            matches!(kind, HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut)
        })
    }
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// An open connection.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    /// The group that this proxy has on it.
    pub(crate) group: String,
}

impl Link {
    /// To a control plane, as a member.
    pub fn new(address: Address, membership: Arc<Membership>) -> Self {
        Self {
            membership,
            address,
            #[cfg(test)]
            plain: None,
        }
    }

    /// To one that a test plays.
    #[cfg(test)]
    pub(crate) fn plain(addr: std::net::SocketAddr, dir: &std::path::Path) -> Self {
        let address = Address::parse(&format!("https://{addr}")).expect("it is one");
        let config = crate::enrolment::Config {
            address: address.clone(),
            data_dir: dir.to_owned(),
            token_file: None,
            proxy_id: uuid::Uuid::from_u128(1),
            name: "proxy-1".into(),
        };
        let membership = Membership::open(config).expect("a test has a place to write");
        Self { membership, address, plain: Some((addr, "default".into())) }
    }

    /// Opens a connection.
    #[cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test plays the control plane"))]
    pub(crate) async fn connect(&self) -> Result<Connection, LinkError> {
        #[cfg(test)]
        if let Some((addr, group)) = self.plain.clone() {
            let endpoint = endpoint(&format!("http://{addr}"))?;
            let failed = |source| LinkError::Connect { address: addr.to_string(), source };
            return Ok(Connection { channel: endpoint.connect().await.map_err(failed)?, group });
        }
        let member: Arc<Member> = self.membership.current()?;
        let channel = dial(&self.address, Arc::clone(&member.tls)).await?;
        Ok(Connection { channel, group: member.identity.group.clone() })
    }

    /// Whom this proxy is a member of.
    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Tells of new certificates, with which an attempt may succeed that did not before.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.membership.news()
    }
}

/// Opens a connection, with a handshake of this configuration.
pub(crate) async fn dial(address: &Address, tls: Arc<ClientConfig>) -> Result<Channel, LinkError> {
    let to = address.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (to, tls) = (to.clone(), Arc::clone(&tls));
        async move { mutual::connect(tls, &to.host, to.port, OPEN_TIME).await.map(TokioIo::new) }
    });
    let failed = |source| LinkError::Connect { address: address.to_string(), source };
    endpoint(&address.to_string())?.connect_with_connector(connector).await.map_err(failed)
}

fn endpoint(address: &str) -> Result<Endpoint, LinkError> {
    let failed = |source| LinkError::Connect { address: address.to_owned(), source };
    Ok(Endpoint::from_shared(address.to_owned())
        .map_err(failed)?
        .connect_timeout(OPEN_TIME)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME)
        .keep_alive_while_idle(true))
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
    /// The longest wait where nothing is heard.
    const UNHEARD: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self::between(Self::LEAST, Self::MOST)
    }

    /// Other limits than those for the control plane.
    pub(crate) fn between(least: Duration, most: Duration) -> Self {
        Self { limit: least * 2, least, most }
    }

    /// How long to wait before the next attempt, after one that failed so. Who is not heard at all is not burdened by who
    /// knocks, and is to be found soon after the way is open again.
    pub(crate) fn after(&mut self, error: &LinkError) -> Duration {
        if !error.is_silence() {
            return self.next();
        }
        let wait = self.spread(self.limit.min(Self::UNHEARD));
        self.limit = self.limit.max((self.limit * 2).min(Self::UNHEARD));
        wait
    }

    /// How long to wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.spread(self.limit);
        self.limit = (self.limit * 2).min(self.most);
        wait
    }

    /// A wait at random, up to a limit.
    fn spread(&self, limit: Duration) -> Duration {
        let mut random = [0; 4];
        // Without random numbers the wait is merely not spread.
        let spread = match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX),
            Err(_) => 1.0,
        };
        self.least + limit.saturating_sub(self.least).mul_f64(spread)
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
    async fn who_is_not_heard_is_knocked_at_soon_again() {
        let failed = |kind: std::io::ErrorKind| async move {
            let connector = tower::service_fn(move |_: Uri| async move {
                Err::<TokioIo<tokio::net::TcpStream>, _>(std::io::Error::from(kind))
            });
            let source =
                endpoint("https://cp:1").unwrap().connect_with_connector(connector).await.unwrap_err();
            LinkError::Connect { address: "https://cp:1".into(), source }
        };
        let silence = failed(std::io::ErrorKind::TimedOut).await;
        let refusal = failed(std::io::ErrorKind::ConnectionRefused).await;
        assert!(silence.is_silence() && !refusal.is_silence() && !LinkError::Closed.is_silence());
        let mut back_off = BackOff::new();
        let waits: Vec<Duration> = (0..50).map(|_| back_off.after(&silence)).collect();
        assert!(waits.iter().all(|wait| *wait <= BackOff::UNHEARD), "{waits:?}");
        let grown = (0..50).map(|_| back_off.after(&refusal)).max().unwrap();
        assert!(grown > BackOff::UNHEARD);
        let waits: Vec<Duration> = (0..50).map(|_| back_off.after(&silence)).collect();
        assert!(waits.iter().all(|wait| *wait <= BackOff::UNHEARD), "{waits:?}");
    }

    #[test]
    fn the_control_plane_is_reached_over_tls_only() {
        for (text, address) in [
            ("https://cp:8082", "https://cp:8082"),
            ("https://cp", "https://cp:443"),
            ("https://[::1]:8082/", "https://[::1]:8082"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), address);
        }
        assert!(Address::parse("http://127.0.0.1:8082").unwrap_err().contains("mutual TLS"));
        for wrong in ["", "cp:8082", "https://", "https://u@cp", "https://cp/x", "https://cp?x", "ftp://cp"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
