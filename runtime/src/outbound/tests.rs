use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::task;

const TIME: Duration = Duration::from_secs(5);

fn local() -> OutboundPolicy {
    OutboundPolicy { allow_private: true, ..OutboundPolicy::default() }
}

fn check(policy: &OutboundPolicy, ip: &str, open: bool) {
    let result = policy.check(SocketAddr::new(ip.parse().unwrap(), 8080));
    assert_eq!(result.is_ok(), open, "{ip}: {result:?}");
}

/// A port on all addresses of this machine that counts who comes.
fn canary() -> (u16, Arc<AtomicUsize>) {
    let listener = crate::listen::bind("[::]:0".parse().unwrap(), false).unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    task::spawn("canary", async move {
        let listener = crate::listen::adopt(listener).unwrap();
        loop {
            crate::listen::accept(&listener).await;
            seen.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, count)
}

#[test]
fn private_networks_are_closed_until_allowed() {
    for ip in ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "::1", "fd12::1", "::ffff:10.1.2.3"] {
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

/// What nothing opens.
const NEVER: [&str; 38] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.1.1",
    "100.100.100.200",
    "168.63.129.16",
    "fd00:ec2::254",
    "fd00:ec2::253",
    "fd20:ce::254",
    "fd00:42::42",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "febf::1",
    "224.0.0.1",
    "239.255.255.255",
    "ff02::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
    "192.0.0.192",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "2001:db8::1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "::169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fec0::1",
    "2001:470::5efe:7f00:1",
];

#[test]
fn metadata_and_special_addresses_stay_closed_whatever_is_allowed() {
    let policy = OutboundPolicy {
        allow_private: true,
        allow_cidrs: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        ports: Ports::any(),
        ..OutboundPolicy::default()
    };
    for ip in NEVER.into_iter().chain(["64:ff9b::e000:1"]) {
        check(&policy, ip, false);
        assert!(never(ip).is_some(), "{ip}");
    }
    for ip in ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "100.64.0.1"] {
        check(&policy, ip, true);
        assert_eq!(never(ip), None, "{ip}");
    }
    for ip in ["127.0.0.1", "[::1]", "10.0.0.1", "[fd12::1]", "100.64.0.1", "example.com"] {
        assert_eq!(never(ip), None, "{ip} is up to the settings");
    }
}

#[test]
fn what_is_denied_beats_every_permission() {
    let denied = vec![Denied::network("10.9.0.0/16".parse().unwrap())];
    let policy = OutboundPolicy { denied, ..local() };
    check(&policy, "10.9.0.1", false);
    check(&policy, "::ffff:10.9.0.1", false);
    check(&policy, "10.8.0.1", true);
}

#[test]
fn our_own_addresses_are_closed_and_on_loopback_only_the_port() {
    for (own, closed, open) in [
        ("127.0.0.1:8082", &["127.0.0.1:8082", "127.0.0.9:8082", "[::1]:8082"][..], &["127.0.0.1:8083"][..]),
        ("0.0.0.0:8082", &["127.0.0.1:8082", "[::1]:8082", "[::ffff:127.0.0.1]:8082"], &["127.0.0.1:80"]),
        ("10.0.0.7:8082", &["10.0.0.7:8082", "10.0.0.7:80", "[::ffff:10.0.0.7]:443"], &["10.0.0.8:8082"]),
        ("[fd12::7]:8082", &["[fd12::7]:80"], &["[fd12::8]:80"]),
    ] {
        let policy = OutboundPolicy { denied: Denied::own(own.parse().unwrap()), ..local() };
        for addr in closed {
            let refused = policy.check(addr.parse().unwrap()).unwrap_err();
            assert_eq!(refused.kind, Kind::Denied, "{addr} of {own}");
        }
        for addr in open {
            assert!(policy.check(addr.parse().unwrap()).is_ok(), "{addr} beside {own}");
        }
    }
}

#[tokio::test]
async fn a_port_that_is_not_open_and_a_name_of_ours_are_not_even_looked_up() {
    let policy = OutboundPolicy { denied_names: vec!["db.internal".into()], ..local() };
    for (host, port) in [("example.com", 22), ("127.0.0.1", 25), ("db.internal", 8080), ("DB.Internal.", 443)]
    {
        let look_up = async |_: &str, _: u16| -> std::io::Result<Vec<SocketAddr>> { panic!("looked up") };
        let error = policy.connect_by(look_up, host, port, TIME).await.unwrap_err();
        assert!(matches!(error, ConnectError::Closed { .. }), "{host}:{port}: {error:?}");
    }
}

#[tokio::test]
async fn connects_to_a_checked_address() {
    let (port, seen) = canary();
    for (i, host) in ["127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"].into_iter().enumerate() {
        let stream = local().connect(host, port, TIME).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), port);
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
        while seen.load(Ordering::Relaxed) <= i {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn refuses_a_name_by_its_address_and_odd_spellings_too() {
    let (port, seen) = canary();
    for host in ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"] {
        let error = OutboundPolicy::default().connect(host, port, TIME).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{host}: {error:?}");
    }
    assert_eq!(seen.load(Ordering::Relaxed), 0);
}

/// `127.0.0.2` stands for the public address here: it is open, and everything else of this machine is not.
#[tokio::test]
async fn a_name_that_changes_its_mind_is_checked_each_time() {
    let open =
        OutboundPolicy { allow_cidrs: vec!["127.0.0.2/32".parse().unwrap()], ..OutboundPolicy::default() };
    let (port, seen) = canary();
    let answers = |ips: &'static [&'static str]| {
        async move |_: &str, port: u16| -> std::io::Result<Vec<SocketAddr>> {
            Ok(ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect())
        }
    };
    let connected = open.connect_by(answers(&["127.0.0.2"]), "rebind.test", port, TIME).await.unwrap();
    assert_eq!(connected.peer_addr().unwrap().ip().to_string(), "127.0.0.2");
    while seen.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
    // The same name at the next connection; and beside an open address, wherever in the list.
    for ips in [
        &["127.0.0.1"][..],
        &["127.0.0.2", "127.0.0.1"],
        &["127.0.0.1", "127.0.0.2"],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["127.0.0.2", "::ffff:127.0.0.1"],
        &["169.254.169.254"],
        &["127.0.0.2", "fd00:ec2::254"],
        &["0.0.0.0"],
        &["::"],
    ] {
        let error = open.connect_by(answers(ips), "rebind.test", port, TIME).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{ips:?}: {error:?}");
    }
    assert_eq!(seen.load(Ordering::Relaxed), 1, "nothing but the one that was open was connected to");
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_a_connection() {
    let open =
        OutboundPolicy { allow_cidrs: vec!["127.0.0.2/32".parse().unwrap()], ..OutboundPolicy::default() };
    let (port, _) = canary();
    let count = AtomicUsize::new(0);
    // Whoever asked twice would be told another address the second time.
    let flips = async |_: &str, port: u16| -> std::io::Result<Vec<SocketAddr>> {
        let last = if count.fetch_add(1, Ordering::Relaxed) == 0 { 2 } else { 1 };
        Ok(vec![SocketAddr::from(([127, 0, 0, last], port))])
    };
    let stream = open.connect_by(flips, "rebind.test", port, TIME).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().ip().to_string(), "127.0.0.2");
    assert_eq!(count.load(Ordering::Relaxed), 1);
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
