use super::*;

fn hosts(bound: &str, names: &[&str]) -> Hosts {
    Hosts::new(bound.parse().unwrap(), names.iter().map(ToString::to_string))
}

fn ask(hosts: &Hosts, target: &str, host: &[&str], origin: &[&str]) -> Result<(), Foreign> {
    let mut headers = HeaderMap::new();
    for host in host {
        headers.append(HOST, HeaderValue::from_str(host).unwrap());
    }
    for origin in origin {
        headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
    }
    hosts.check(&target.parse().unwrap(), &headers)
}

fn answers(hosts: &Hosts, host: &str) -> bool {
    ask(hosts, "/mcp", &[host], &[]).is_ok()
}

fn takes(hosts: &Hosts, host: &str, origin: &str) -> bool {
    ask(hosts, "/mcp", &[host], &[origin]).is_ok()
}

/// What no port takes as a `Host`, whatever it is bound to and called.
const NEVER: [&str; 22] = [
    "",
    ":80",
    "evil.test",
    "localhost.evil.test",
    "x.mcp.example.com",
    "mcp.example.com.",
    "localhost.",
    "127.0.0.1.",
    "user@localhost",
    "user:pass@127.0.0.1:80",
    "localhost:",
    "localhost:80:80",
    "localhost:99999",
    "localhost:8o",
    "localhost/",
    "localhost?x",
    "127.0.0.1#x",
    "localhost,evil.test",
    "[::1",
    "::1",
    "[fe80::1%25eth0]",
    "0x7f.1",
];

#[test]
fn a_loopback_port_answers_to_loopback_and_its_names() {
    let local = hosts("127.0.0.1:8080", &["mcp.example.com"]).or_any_name();
    for host in [
        "localhost",
        "LocalHost:1",
        "127.0.0.1:8080",
        "127.9.9.9",
        "[::1]",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "MCP.example.com:443",
    ] {
        assert!(answers(&local, host), "{host}");
    }
    for host in NEVER.into_iter().chain(["10.0.0.1", "[::2]:80"]) {
        assert_eq!(ask(&local, "/", &[host], &[]), Err(Foreign::Host), "{host:?}");
    }
}

#[test]
fn a_port_on_the_network_answers_to_addresses_and_its_names() {
    let public = hosts("0.0.0.0:8080", &["mcp.example.com"]);
    for host in ["10.0.0.1:8080", "[fd00::1]", "127.0.0.1", "mcp.example.com:443"] {
        assert!(answers(&public, host), "{host}");
    }
    for host in NEVER.into_iter().chain(["localhost"]) {
        assert!(!answers(&public, host), "{host:?}");
    }
    let nameless = hosts("0.0.0.0:8080", &[]);
    assert!(!answers(&nameless, "waffles.corp"));
    let any = nameless.or_any_name();
    assert!(answers(&any, "waffles.corp:8082") && !answers(&any, "waffles.corp/x") && !answers(&any, "a@b"));
}

#[test]
fn the_target_and_the_header_name_the_same_host() {
    let local = hosts("127.0.0.1:8080", &[]);
    assert_eq!(ask(&local, "http://localhost:1/x", &[], &[]), Ok(()));
    assert_eq!(ask(&local, "http://localhost:1/x", &["LOCALHOST:1"], &[]), Ok(()));
    for (target, host) in [
        ("http://localhost/x", &["127.0.0.1"][..]),
        ("http://evil.test/x", &["localhost"]),
        ("http://localhost/x", &["evil.test"]),
        ("http://evil.test/x", &["evil.test"]),
        ("http://a@localhost/x", &[]),
        ("/x", &[]),
        ("/x", &["localhost", "localhost"]),
        ("/x", &["localhost", "evil.test"]),
    ] {
        assert_eq!(ask(&local, target, host, &[]), Err(Foreign::Host), "{target} {host:?}");
    }
}

/// What no port takes as an `Origin`.
const NO_PAGE: [&str; 20] = [
    "",
    "null",
    "NULL",
    "*",
    "localhost",
    "localhost:8080",
    "file://",
    "file://localhost",
    "http://evil.test",
    "https://localhost.evil.test",
    "http://localhost.evil.test:8080",
    "http://localhost:8080.evil.test",
    "http://localhost.:8080",
    "http://a@localhost:8080",
    "http://localhost:8080/",
    "http://localhost:8080/path",
    "http://localhost:8080?x",
    "http://localhost:8080#x",
    "http://localhost:8080 http://evil.test",
    "http://localhost:8080, http://evil.test",
];

#[test]
fn pages_of_others_do_not_call() {
    for pages in [Pages::None, Pages::Same, Pages::Own] {
        for bound in ["127.0.0.1:8080", "0.0.0.0:8080"] {
            let hosts = hosts(bound, &["localhost", "mcp.example.com"]).pages(pages);
            for origin in NO_PAGE.into_iter().chain(["http://mcp.example.com.", "http://[::1"]) {
                let refused = ask(&hosts, "/", &["localhost:8080"], &[origin]);
                assert_eq!(refused, Err(Foreign::Origin), "{pages:?} {bound} {origin:?}");
            }
            let twice = ["http://localhost:8080", "http://localhost:8080"];
            assert_eq!(ask(&hosts, "/", &["localhost:8080"], &twice), Err(Foreign::Origin));
            let same = takes(&hosts, "localhost:8080", "http://LOCALHOST:8080");
            assert_eq!(same, pages != Pages::None, "{pages:?} {bound}");
        }
    }
}

#[test]
fn own_pages_are_those_of_our_names_and_on_loopback_of_this_machine() {
    let same = hosts("127.0.0.1:8081", &[]).pages(Pages::Same);
    assert!(takes(&same, "localhost:8081", "https://localhost:8081"));
    assert!(!takes(&same, "localhost:8081", "http://localhost:8082"));
    let local = hosts("127.0.0.1:8080", &["mcp.example.com"]).pages(Pages::Own);
    for origin in ["http://localhost:6274", "http://127.0.0.1", "http://[::1]:1", "https://mcp.example.com"] {
        assert!(takes(&local, "localhost", origin), "{origin}");
    }
    for origin in ["http://10.0.0.1", "http://203.0.113.9"] {
        assert!(!takes(&local, "localhost", origin), "{origin}");
    }
    let public = hosts("0.0.0.0:8080", &["mcp.example.com"]).pages(Pages::Own);
    for (origin, host, own) in [
        ("https://mcp.example.com", "10.0.0.7:8080", true),
        ("http://10.0.0.7:8080", "10.0.0.7:8080", true),
        ("http://10.0.0.7", "10.0.0.7:8080", false),
        ("http://203.0.113.9", "mcp.example.com", false),
        ("http://localhost", "10.0.0.7", false),
    ] {
        assert_eq!(takes(&public, host, origin), own, "{origin} at {host}");
    }
}

#[test]
fn an_allowed_origin_calls_as_it_is_written_and_not_otherwise() {
    let console: Origin = "https://Console.example.com".parse().unwrap();
    for pages in [Pages::None, Pages::Same, Pages::Own] {
        let hosts = hosts("127.0.0.1:1", &[]).pages(pages).origins(vec![console.clone()]);
        assert!(takes(&hosts, "localhost", "https://console.example.com"));
        for other in [
            "http://console.example.com",
            "https://console.example.com:444",
            "https://console.example.com/",
            "https://x.console.example.com",
            "null",
        ] {
            assert!(!takes(&hosts, "localhost", other), "{other}");
        }
    }
    for bad in ["", "*", "null", "console.example.com", "https://", "https://a/", "https://a@b", "://a"] {
        assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
    }
}
