//! Who the caller thinks it talks to. A page that rebinds its own name to our address sends that
//! name as `Host`, so names nobody gave us are refused, and so is every browser script (`Origin`).

use std::net::IpAddr;

use http::{HeaderMap, Uri, header};

/// Checks `Host`, the authority of an absolute request target, and `Origin`.
pub(super) fn check(
    uri: &Uri,
    headers: &HeaderMap,
    loopback: bool,
    hosts: &[String],
) -> Result<(), &'static str> {
    if headers.contains_key(header::ORIGIN) {
        return Err("the admin port does not answer browser scripts");
    }
    let mut named = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return Err("one Host header is needed");
    };
    let allowed = |authority: &str| is_allowed(authority, loopback, hosts);
    if !host.to_str().is_ok_and(allowed) {
        return Err("this Host is not allowed on the admin port; use an IP address or localhost");
    }
    match uri.authority() {
        Some(authority) if !allowed(authority.as_str()) => {
            Err("this request target is not allowed on the admin port")
        }
        _ => Ok(()),
    }
}

/// Bound to loopback: `localhost` and loopback addresses. Bound elsewhere: any address, since
/// probes and scrapers use the pod's and a page cannot rebind an address; and the given names.
fn is_allowed(authority: &str, loopback: bool, hosts: &[String]) -> bool {
    let Some(host) = without_port(authority) else { return false };
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => !loopback || ip.to_canonical().is_loopback(),
        Err(_) => !loopback && hosts.iter().any(|name| name.eq_ignore_ascii_case(host)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(authority: &str, loopback: bool, allowed: bool) {
        let hosts = ["waffles.internal".to_owned()];
        assert_eq!(is_allowed(authority, loopback, &hosts), allowed, "{authority}, loopback: {loopback}");
    }

    #[test]
    fn a_loopback_port_answers_to_loopback_names_only() {
        for authority in ["localhost", "LOCALHOST:15000", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"] {
            check(authority, true, true);
        }
        for authority in [
            "",
            ":80",
            "evil.test",
            "localhost.evil.test",
            "localhost.",
            "user@localhost",
            "localhost:80:80",
            "localhost:",
            "localhost/",
            "10.0.0.1",
            "[::2]:80",
            "waffles.internal",
            "0x7f.1",
            "127.0.0.1.",
        ] {
            check(authority, true, false);
        }
    }

    #[test]
    fn a_port_on_the_network_answers_to_addresses_and_given_names() {
        for authority in ["10.0.0.1:15000", "[fd00::1]", "localhost", "Waffles.internal:80"] {
            check(authority, false, true);
        }
        for authority in ["evil.test", "x.waffles.internal", "waffles.internal."] {
            check(authority, false, false);
        }
    }
}
