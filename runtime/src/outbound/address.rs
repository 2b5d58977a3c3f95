//! What kind of address an address is, once what is wrapped in it is unwrapped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Kinds of addresses, as far as leaving the process is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anywhere on the internet.
    Public,
    /// This machine.
    Loopback,
    /// RFC 1918 or unique local.
    Private,
    /// RFC 6598, between a carrier and its customers; some clusters number their pods from it.
    Shared,
    /// A cloud's metadata service, which gives credentials to whoever asks.
    Metadata,
    /// One link, which is where metadata services live.
    LinkLocal,
    /// Many receivers.
    Multicast,
    /// No address, which the kernel takes for this machine.
    Unspecified,
    /// Everyone on the link.
    Broadcast,
    /// An obsolete or local translation to IPv4 (6to4, Teredo, local NAT64, site-local).
    Tunnel,
    /// Set aside: documentation, benchmarks, protocols, the future.
    Reserved,
    /// Denied by the policy's own list.
    Denied,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address; a platform admin can allow its network",
            Self::Private => "a private address; a platform admin can allow its network",
            Self::Shared => "a shared (RFC 6598) address; a platform admin can allow its network",
            Self::Metadata => "a cloud metadata service",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Unspecified => "the unspecified address",
            Self::Broadcast => "the broadcast address",
            Self::Tunnel => "a translated or obsolete address",
            Self::Reserved => "a reserved address",
            Self::Denied => "its network is on the deny list",
        })
    }
}

/// The address to judge, IPv4 where one is wrapped, and its kind.
pub(super) fn classify(ip: IpAddr) -> (IpAddr, Kind) {
    match ip {
        IpAddr::V4(v4) => (ip, kind_v4(v4)),
        IpAddr::V6(v6) => match wrapped_v4(v6) {
            Some(v4) => (IpAddr::V4(v4), kind_v4(v4)),
            None => (ip, kind_v6(v6)),
        },
    }
}

/// IPv4-mapped, and NAT64 with the well-known prefix (RFC 6052), which an IPv6-only cluster needs
/// for the public internet. Other translations are refused instead of unwrapped.
fn wrapped_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

fn kind_v4(ip: Ipv4Addr) -> Kind {
    match ip.octets() {
        // Azure's and Alibaba's; the others' are link-local.
        [168, 63, 129, 16] | [100, 100, 100, 200] => Kind::Metadata,
        [169, 254, _, _] => Kind::LinkLocal,
        [0, _, _, _] => Kind::Unspecified,
        [127, _, _, _] => Kind::Loopback,
        [10, _, _, _] | [172, 16..=31, _, _] | [192, 168, _, _] => Kind::Private,
        [100, 64..=127, _, _] => Kind::Shared,
        [255, 255, 255, 255] => Kind::Broadcast,
        [224..=239, _, _, _] => Kind::Multicast,
        [240..=255, _, _, _]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18..=19, _, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Kind::Reserved,
        _ => Kind::Public,
    }
}

fn kind_v6(ip: Ipv6Addr) -> Kind {
    match ip.segments() {
        // Amazon's, with its name servers and clocks, Google's and Scaleway's.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => {
            Kind::Metadata
        }
        [0, 0, 0, 0, 0, 0, 0, 0] => Kind::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        [0xfe80..=0xfebf, ..] => Kind::LinkLocal,
        [0xff00..=0xffff, ..] => Kind::Multicast,
        [0xfc00..=0xfdff, ..] => Kind::Private,
        // Local NAT64, 6to4, Teredo, site-local, and ISATAP within whatever prefix.
        [0x64, 0xff9b, 1, ..]
        | [0x2002, ..]
        | [0x2001, 0, ..]
        | [0xfec0..=0xfeff, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Kind::Tunnel,
        // Protocol assignments and documentation within what is global otherwise.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Reserved,
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Reserved,
    }
}
