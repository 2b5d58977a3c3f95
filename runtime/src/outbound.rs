//! The one way out: every connection our programs open to an address that someone configured goes
//! through here. It resolves the name, checks *every* address, and connects to one that was
//! checked, on every connection, so that a name cannot change its mind after registration.

mod address;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub use address::Kind;

/// Where our programs may connect to. By default: the public internet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundPolicy {
    /// Opens loopback, RFC 1918 and unique local addresses; for one machine, not for production.
    pub allow_private: bool,
    /// Loopback, private and shared (RFC 6598) networks that are open one by one.
    pub allow_cidrs: Vec<IpNet>,
    /// Networks that stay closed whatever the above say: the control plane's own, its database's.
    pub denied: Vec<IpNet>,
}

/// An address the policy keeps closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connections to {ip} are not allowed: {kind}")]
pub struct Refused {
    /// The address.
    pub ip: IpAddr,
    /// Why.
    pub kind: Kind,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// An address is closed by policy. Trying again does not help.
    #[error("{host} is not allowed")]
    Refused {
        /// The name as given.
        host: String,
        /// The first address that was refused.
        source: Refused,
    },
    /// The time was up.
    #[error("no connection to {host}:{port} in time")]
    Timeout {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// No address took the connection; the error is the last one's.
    #[error("cannot connect to {host}:{port}")]
    Io {
        /// The name.
        host: String,
        /// The port.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
}

impl OutboundPolicy {
    /// Whether this address is open.
    ///
    /// # Errors
    /// When it is not, with the reason.
    pub fn check(&self, ip: IpAddr) -> Result<(), Refused> {
        let (inner, kind) = address::classify(ip);
        let listed = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&inner) || net.contains(&ip));
        if listed(&self.denied) {
            return Err(Refused { ip, kind: Kind::Denied });
        }
        let open = match kind {
            Kind::Public => true,
            Kind::Loopback | Kind::Private => self.allow_private || listed(&self.allow_cidrs),
            Kind::Shared => listed(&self.allow_cidrs),
            Kind::Metadata
            | Kind::LinkLocal
            | Kind::Multicast
            | Kind::Unspecified
            | Kind::Broadcast
            | Kind::Tunnel
            | Kind::Reserved
            | Kind::Denied => false,
        };
        if open { Ok(()) } else { Err(Refused { ip, kind }) }
    }

    /// All addresses of a name, every one checked. A name with one closed address is refused as a
    /// whole: it would otherwise be a matter of luck which one is used.
    ///
    /// An HTTP client with a resolver hook may use this, but must not follow IP literals around it.
    ///
    /// # Errors
    /// [`ConnectError::Resolve`] or [`ConnectError::Refused`].
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let addrs = match literal(host) {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => lookup(host, port)
                .await
                .map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?,
        };
        for addr in &addrs {
            self.check(addr.ip())
                .map_err(|source| ConnectError::Refused { host: host.to_owned(), source })?;
        }
        Ok(addrs)
    }

    /// Connects, with `TCP_NODELAY` and keep-alive. The time covers resolving and all attempts; each address gets
    /// an equal share of what is left, so that one that swallows packets does not cost the others
    /// their turn.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ConnectError> {
        let deadline = Instant::now() + timeout;
        let late = || ConnectError::Timeout { host: host.to_owned(), port };
        let addrs =
            tokio::time::timeout_at(deadline, self.resolve(host, port)).await.map_err(|_| late())??;

        let mut last = late();
        let mut left = u32::try_from(addrs.len()).unwrap_or(u32::MAX);
        for addr in addrs {
            let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            last = match tokio::time::timeout(share, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => match keep_alive(&stream).and_then(|()| stream.set_nodelay(true)) {
                    Ok(()) => return Ok(stream),
                    Err(source) => ConnectError::Io { host: host.to_owned(), port, source },
                },
                Ok(Err(source)) => ConnectError::Io { host: host.to_owned(), port, source },
                Err(_) => late(),
            };
        }
        Err(last)
    }
}

/// A connection that only listens would not notice that the other side is gone; so it does within twenty seconds.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    let (first, next) = (Duration::from_secs(10), Duration::from_secs(3));
    let probes = TcpKeepalive::new().with_time(first).with_interval(next).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// A host that is an address already, with or without the brackets of a URL.
fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

async fn lookup(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let addrs: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if addrs.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(5);

    fn local() -> OutboundPolicy {
        OutboundPolicy { allow_private: true, ..OutboundPolicy::default() }
    }

    fn check(policy: &OutboundPolicy, ip: &str, open: bool) {
        let result = policy.check(ip.parse().unwrap());
        assert_eq!(result.is_ok(), open, "{ip}: {result:?}");
    }

    #[test]
    fn private_networks_are_closed_until_allowed() {
        for ip in ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "::1", "fd12::1", "::ffff:10.1.2.3"]
        {
            check(&OutboundPolicy::default(), ip, false);
            check(&local(), ip, true);
        }
        let listed =
            OutboundPolicy { allow_cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..OutboundPolicy::default() };
        check(&listed, "10.1.2.3", true);
        check(&listed, "::ffff:10.1.2.3", true);
        check(&listed, "10.2.0.1", false);
        check(&listed, "127.0.0.1", false);
    }

    #[test]
    fn metadata_and_special_addresses_stay_closed_whatever_is_allowed() {
        let policy = OutboundPolicy {
            allow_private: true,
            allow_cidrs: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            denied: Vec::new(),
        };
        for ip in [
            "169.254.169.254",
            "169.254.1.1",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "192.0.0.192",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "fec0::1",
            "64:ff9b::e000:1",
        ] {
            check(&policy, ip, false);
        }
        for ip in ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "100.64.0.1"] {
            check(&policy, ip, true);
        }
    }

    #[test]
    fn a_denied_network_beats_every_permission() {
        let policy = OutboundPolicy { denied: vec!["10.9.0.0/16".parse().unwrap()], ..local() };
        check(&policy, "10.9.0.1", false);
        check(&policy, "::ffff:10.9.0.1", false);
        check(&policy, "10.8.0.1", true);
    }

    #[tokio::test]
    async fn connects_to_a_checked_address() {
        let listener = crate::listen::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "[::ffff:127.0.0.1]"] {
            let stream = local().connect(host, port, TIME).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap().port(), port);
            assert!(stream.nodelay().unwrap());
            assert!(SockRef::from(&stream).keepalive().unwrap());
        }
    }

    #[tokio::test]
    async fn refuses_a_name_by_its_address_and_odd_spellings_too() {
        for host in ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"] {
            let error = OutboundPolicy::default().connect(host, 9, TIME).await.unwrap_err();
            assert!(matches!(error, ConnectError::Refused { .. }), "{host}: {error:?}");
        }
    }

    #[tokio::test]
    async fn tells_a_name_without_address_from_a_closed_port() {
        let listener = crate::listen::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = local().connect("127.0.0.1", port, TIME).await.unwrap_err();
        assert!(matches!(error, ConnectError::Io { .. }), "{error:?}");
        let error = local().connect("no such host", port, TIME).await.unwrap_err();
        assert!(matches!(error, ConnectError::Resolve { .. }), "{error:?}");
        let error = local().connect("127.0.0.1", port, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. } | ConnectError::Io { .. }), "{error:?}");
    }
}
