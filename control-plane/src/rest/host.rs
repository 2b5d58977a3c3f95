//! Who the caller thinks it talks to. A page that rebinds its own name to our address sends that name as
//! `Host`; a page of another site sends its own `Origin`. Both are refused before anything else is looked at.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, Uri, header};

/// The names that this port answers to.
#[derive(Debug, Clone)]
pub struct Hosts {
    loopback: bool,
    public: Vec<String>,
}

impl Hosts {
    /// For a port. On loopback: `localhost`, loopback addresses and the public names. On the network: where
    /// public names are given, those and addresses, since an address cannot be rebound; else any.
    pub fn new(bound: SocketAddr, public: Vec<String>) -> Self {
        Self { loopback: bound.ip().is_loopback(), public }
    }

    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
        let authority = authority(uri, headers)?;
        if !self.is_ours(authority) {
            return Err("this Host is not one that the control plane answers to; see --public-host");
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if is_same(origin, authority) => Ok(()),
            _ => Err("pages of other origins may not call the control plane"),
        }
    }

    fn is_ours(&self, authority: &str) -> bool {
        let Some(host) = without_port(authority) else { return false };
        if self.public.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            return true;
        }
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(ip) => !self.loopback || ip.to_canonical().is_loopback(),
            Err(_) if host.eq_ignore_ascii_case("localhost") => true,
            Err(_) => !self.loopback && self.public.is_empty() && is_name(host),
        }
    }
}

/// HTTP/1.1 names the host in one `Host`, HTTP/2 in the target's authority; two that differ are refused.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| "the Host header cannot be read")?),
        _ => return Err("one Host header is needed"),
    };
    match (host, uri.authority().map(http::uri::Authority::as_str)) {
        (Some(host), None) => Ok(host),
        (None, Some(target)) => Ok(target),
        (Some(host), Some(target)) if host.eq_ignore_ascii_case(target) => Ok(host),
        (Some(_), Some(_)) => Err("the Host header differs from the request's target"),
        (None, None) => Err("one Host header is needed"),
    }
}

/// Compared as text: `null`, user information, a path and a trailing dot make another origin. The scheme is not
/// compared, since TLS may end before us.
fn is_same(origin: &HeaderValue, authority: &str) -> bool {
    let text = origin.to_str().unwrap_or_default();
    let origin = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(authority))
}

fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of a bare `[::1]` is inside the brackets.
        Some((_, rest)) if rest.ends_with(']') => (authority, "0"),
        Some((host, port)) => (host, port),
        None => (authority, "0"),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(host)
}

fn is_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bound: &str, public: &[&str], host: &str, origin: &[&str]) -> bool {
        let public = public.iter().map(ToString::to_string).collect();
        let hosts = Hosts::new(bound.parse().unwrap(), public);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        for origin in origin {
            headers.append(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        hosts.check(&Uri::from_static("/api/v1/status"), &headers).is_ok()
    }

    #[test]
    fn a_loopback_port_answers_to_loopback_and_public_names() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "[::1]:8081", "waffles.test"] {
            assert!(check("127.0.0.1:8081", &["waffles.test"], host, &[]), "{host}");
        }
        for host in [
            "evil.test",
            "localhost.evil.test",
            "localhost.",
            "user@localhost",
            "10.0.0.1",
            "localhost:",
            "localhost:1:2",
            "",
            "localhost/x",
            "127.0.0.1#",
        ] {
            assert!(!check("127.0.0.1:8081", &["waffles.test"], host, &[]), "{host}");
        }
    }

    #[test]
    fn a_port_on_the_network_answers_to_what_it_was_told() {
        assert!(check("0.0.0.0:8081", &[], "waffles.corp", &[]));
        assert!(!check("0.0.0.0:8081", &[], "waffles.corp/x", &[]));
        assert!(!check("0.0.0.0:8081", &["waffles.test"], "waffles.corp", &[]));
        assert!(check("0.0.0.0:8081", &["waffles.test"], "10.1.2.3:8081", &[]));
    }

    #[test]
    fn only_pages_of_our_own_origin_may_call() {
        let on = |origins: &[&str]| check("127.0.0.1:8081", &[], "localhost:8081", origins);
        assert!(on(&["http://localhost:8081"]) && on(&["https://LOCALHOST:8081"]));
        for origins in [
            &["null"][..],
            &["http://evil.test"],
            &["http://localhost:8081.evil.test"],
            &["http://localhost:8082"],
            &["http://localhost:8081/"],
            &["http://user@localhost:8081"],
            &["http://localhost:8081", "http://localhost:8081"],
            &[""],
        ] {
            assert!(!on(origins), "{origins:?}");
        }
    }
}
