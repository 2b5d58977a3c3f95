//! Who the caller thinks it talks to: the one rule of every port of ours. A page that rebinds its own name to our
//! address sends that name as `Host`, a page of another site sends its own `Origin`; both are refused before anything
//! else is looked at. What is there twice counts as foreign: whoever stands in between might read the other one.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::header::{self, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// Whatever a browser makes of an answer of ours, it is no page, stands in no frame, and is not kept.
pub const BROWSERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Which pages a browser may call from, beside the allowed origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// None at all: the port is not for browsers.
    #[default]
    None,
    /// Those served by the very authority that is called.
    Same,
    /// Those of any port of our own names; on loopback also of this machine's.
    Own,
}

/// The names that a port answers to, and the pages that may call it.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    loopback: bool,
    names: Vec<String>,
    any_name: bool,
    pages: Pages,
    origins: Vec<Origin>,
}

/// An origin as browsers write it: a scheme, a host, a port unless it is the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

/// What does not belong to this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// `Host`, or the authority of the request's target: missing, twice, two that differ, malformed, or not ours.
    #[error("this Host is not one that this port answers to")]
    Host,
    /// `Origin`: twice, malformed, or of a page that may not call.
    #[error("pages of this origin may not call this port")]
    Origin,
}

impl Hosts {
    /// For a bound port. On loopback it answers to `localhost`, loopback addresses and the names; elsewhere to
    /// addresses, which nobody can rebind, and the names.
    #[must_use]
    pub fn new(bound: SocketAddr, names: impl IntoIterator<Item = String>) -> Self {
        let names = names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { loopback: bound.ip().to_canonical().is_loopback(), names, ..Self::default() }
    }

    /// Lets pages of our own call.
    #[must_use]
    pub fn pages(mut self, pages: Pages) -> Self {
        self.pages = pages;
        self
    }

    /// Lets pages of these origins call as well.
    #[must_use]
    pub fn origins(mut self, origins: Vec<Origin>) -> Self {
        self.origins = origins;
        self
    }

    /// Off loopback: answers to any name. For a port that no browser can speak to, and whose callers know it by names
    /// that it is not told, such as those of a cluster.
    #[must_use]
    pub fn or_any_name(mut self) -> Self {
        self.any_name = true;
        self
    }

    /// Refuses what a page of another site could make a browser send [2025-11-25 basic/transports#security-warning].
    ///
    /// # Errors
    /// What is foreign.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        // HTTP/2 and the absolute form name the host in the request's target. Where the header does too, they must agree.
        let stated = only(headers, &HOST).map_err(|()| Foreign::Host)?;
        let target = uri.authority().map(Authority::as_str);
        let authority = match (target, stated) {
            (Some(target), Some(stated)) if !target.eq_ignore_ascii_case(stated) => {
                return Err(Foreign::Host);
            }
            (Some(authority), _) | (None, Some(authority)) => authority,
            (None, None) => return Err(Foreign::Host),
        };
        if !host_of(authority).is_some_and(|host| self.is_ours(host)) {
            return Err(Foreign::Host);
        }
        match only(headers, &ORIGIN).map_err(|()| Foreign::Origin)? {
            None => Ok(()),
            Some(origin) if self.may_call(origin, authority) => Ok(()),
            Some(_) => Err(Foreign::Origin),
        }
    }

    /// A name can be rebound to our address by whoever owns it; an address cannot.
    fn is_ours(&self, host: &str) -> bool {
        if self.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            return true;
        }
        match address(host) {
            Some(ip) => !self.loopback || ip.to_canonical().is_loopback(),
            None if host.eq_ignore_ascii_case("localhost") && self.loopback => true,
            None => self.any_name && !self.loopback,
        }
    }

    /// Anybody has a page at an address, so beyond loopback it must be the very address that is asked.
    fn may_call(&self, origin: &str, authority: &str) -> bool {
        if self.origins.iter().any(|allowed| allowed.0.eq_ignore_ascii_case(origin)) {
            return true;
        }
        // The scheme is not compared further, since TLS may end before us.
        let page = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
        let Some((page, host)) = page.and_then(|page| host_of(page).map(|host| (page, host))) else {
            return false;
        };
        let same = page.eq_ignore_ascii_case(authority);
        match self.pages {
            Pages::None => false,
            Pages::Same => same,
            Pages::Own => self.is_ours(host) && (same || self.loopback || address(host).is_none()),
        }
    }
}

/// Names: `scheme://host` or `scheme://host:port`. Neither `null`, which any page can have, nor `*`.
impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be an origin as browsers send it, such as `https://console.example.com`";
        let (scheme, authority) = text.split_once("://").ok_or(FORM)?;
        let letters = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if scheme.is_empty() || !letters || host_of(authority).is_none() {
            return Err(FORM);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The one value of a header; the error is that there are several, or one that is no text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(()),
    }
}

/// The host of an authority, in brackets where it is IPv6. None for whatever else is written there: user information,
/// a path, a query, a fragment, a port that is none.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of a bare `[::1]` is inside the brackets.
        Some((_, rest)) if rest.ends_with(']') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let sound = !host.is_empty() && (name(host) || (host.starts_with('[') && address(host).is_some()));
    (sound && port.is_none_or(digits)).then_some(host)
}

fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests;
