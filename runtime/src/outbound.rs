//! The one way out: every connection our programs open to an address that someone configured goes
//! through here. It resolves the name, checks *every* address, and connects to one that was
//! checked, on every connection, so that a name cannot change its mind after registration.

mod address;
mod names;
mod ports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub use address::Kind;
pub use names::Names;
pub use ports::Ports;

/// Where our programs may connect to. By default: the public internet.
#[derive(Debug, Clone, Default)]
pub struct OutboundPolicy {
    /// Opens loopback, RFC 1918 and unique local addresses; for one machine, not for production.
    pub allow_private: bool,
    /// Loopback, private and shared (RFC 6598) networks that are open one by one.
    pub allow_cidrs: Vec<IpNet>,
    /// What stays closed whatever the above say: addresses of our own.
    pub denied: Vec<Denied>,
    /// Names that stay closed whatever they resolve to.
    pub denied_names: Vec<String>,
    /// The ports that are open.
    pub ports: Ports,
    /// What names resolved to.
    pub names: Names,
}

/// A network, or one port of it, that stays closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    net: IpNet,
    port: Option<u16>,
}

impl Denied {
    /// A whole network.
    pub fn network(net: IpNet) -> Self {
        Self { net, port: None }
    }

    /// Where one of our programs listens. Loopback is shared with the servers that people run beside us, so only the
    /// port is closed there; any other machine of ours is closed altogether.
    pub fn own(addr: SocketAddr) -> Vec<Self> {
        let ip = addr.ip().to_canonical();
        if ip.is_loopback() || ip.is_unspecified() {
            let port = Some(addr.port());
            let v4 = IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8);
            let v6 = IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128);
            return vec![Self { net: v4.trunc(), port }, Self { net: v6, port }];
        }
        vec![Self::network(ip.into())]
    }
}

/// An address the policy keeps closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connections to {addr} are not allowed: {kind}")]
pub struct Refused {
    /// The address.
    pub addr: SocketAddr,
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
    /// The name or port is closed by policy.
    #[error("{host}:{port} is not allowed: {reason}")]
    Closed {
        /// The name as given.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        reason: &'static str,
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
    pub fn check(&self, addr: SocketAddr) -> Result<(), Refused> {
        let ip = addr.ip();
        let (inner, kind) = address::classify(ip);
        let holds = |net: &IpNet| net.contains(&inner) || net.contains(&ip);
        let denied =
            |denied: &Denied| holds(&denied.net) && denied.port.is_none_or(|port| port == addr.port());
        if self.denied.iter().any(denied) {
            return Err(Refused { addr, kind: Kind::Denied });
        }
        let listed = || self.allow_cidrs.iter().any(holds);
        let open = match kind {
            Kind::Public => true,
            Kind::Loopback | Kind::Private => self.allow_private || listed(),
            Kind::Shared => listed(),
            _ => false,
        };
        if open { Ok(()) } else { Err(Refused { addr, kind }) }
    }

    /// What is closed without looking anything up.
    fn check_name(&self, host: &str, port: u16) -> Result<(), ConnectError> {
        let closed = |reason| ConnectError::Closed { host: host.to_owned(), port, reason };
        if !self.ports.contains(port) {
            return Err(closed("its port is not one that proxies connect to"));
        }
        let bare = host.trim_end_matches('.');
        if self.denied_names.iter().any(|name| name.eq_ignore_ascii_case(bare)) {
            return Err(closed("it is one of ours"));
        }
        Ok(())
    }

    /// All addresses of a name, every one checked. A name with one closed address is refused as a
    /// whole: it would otherwise be a matter of luck which one is used.
    async fn resolve<R>(&self, look_up: R, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError>
    where
        R: AsyncFnOnce(&str, u16) -> std::io::Result<Vec<SocketAddr>>,
    {
        self.check_name(host, port)?;
        let addrs = match literal(host) {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => (self.names.look_up(look_up, host, port).await)
                .map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?,
        };
        for addr in &addrs {
            self.check(*addr).map_err(|source| ConnectError::Refused { host: host.to_owned(), source })?;
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
        self.connect_by(look_up, host, port, timeout).await
    }

    /// The same with another way to look names up than the system's.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_by<R>(
        &self,
        look_up: R,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<TcpStream, ConnectError>
    where
        R: AsyncFnOnce(&str, u16) -> std::io::Result<Vec<SocketAddr>>,
    {
        let deadline = Instant::now() + timeout;
        let late = || ConnectError::Timeout { host: host.to_owned(), port };
        let addrs = tokio::time::timeout_at(deadline, self.resolve(look_up, host, port))
            .await
            .map_err(|_| late())??;

        let mut last = late();
        let mut left = u32::try_from(addrs.len()).unwrap_or(u32::MAX);
        for addr in addrs {
            let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            last = match tokio::time::timeout(share, open(addr)).await {
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

#[expect(clippy::disallowed_methods, reason = "this is the one place, and the address was checked")]
async fn open(addr: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect(addr).await
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

/// Why an address, written as a literal in a URL, is closed on every proxy whatever its settings; none where that is up
/// to the settings, or for a name.
pub fn never(host: &str) -> Option<Kind> {
    let (_, kind) = address::classify(literal(host)?);
    let settings = matches!(kind, Kind::Public | Kind::Loopback | Kind::Private | Kind::Shared);
    (!settings).then_some(kind)
}

/// The addresses that a name has now, for whoever must know its own.
///
/// # Errors
/// What the resolver said.
#[expect(clippy::disallowed_methods, reason = "what it finds is checked before it is connected to")]
pub async fn look_up(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let addrs: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if addrs.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addrs)
}

#[cfg(test)]
mod tests;
