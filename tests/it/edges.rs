//! What every port of ours refuses before anything else: foreign names, foreign pages, credentials in cookies.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use waffles_runtime::task;
use waffles_tests::{ControlPlaneOptions, DataPlaneOptions, PATIENCE, Waffles, WafflesOptions, until};

/// The head of the answer to a head that is written as it stands.
async fn raw(addr: SocketAddr, head: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever is refused early may find the connection closed before the request was read.
    drop(socket.read_to_end(&mut answer).await);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let head = text.split_once("\r\n\r\n").map_or(text.as_str(), |(head, _)| head).to_ascii_lowercase();
    (status, head)
}

/// Header lines that say where and whence, none of which may pass; `{own}` stands for the port's own authority.
const FOREIGN: [&str; 30] = [
    "host: evil.test",
    "host: localhost.evil.test",
    "host: localhost.",
    "host: {own}.",
    "host: user@{own}",
    "host: user:pass@localhost",
    "host: {own}/",
    "host: localhost?x",
    "host: localhost#x",
    "host: LOCALHOST.EVIL.TEST",
    "host: 0x7f.1",
    "host: 2130706433",
    "host: 10.0.0.1",
    "host: [::2]",
    "host: ::1",
    "host: [::1",
    "host: localhost:",
    "host:",
    "x-nothing: the host is missing",
    "host: {own}\r\nhost: {own}",
    "host: {own}\r\nhost: evil.test",
    "host: {own}\r\norigin: null",
    "host: {own}\r\norigin:",
    "host: {own}\r\norigin: http://evil.test",
    "host: {own}\r\norigin: http://localhost.evil.test",
    "host: {own}\r\norigin: http://{own}.",
    "host: {own}\r\norigin: http://{own}/path",
    "host: {own}\r\norigin: http://user@{own}",
    "host: {own}\r\norigin: http://{own}\r\norigin: http://{own}",
    "host: {own}\r\norigin: http://{own}\r\norigin: http://evil.test",
];

#[tokio::test]
async fn every_port_refuses_foreign_names_and_pages_on_every_path_and_method() {
    let waffles = Waffles::start().await;
    let (proxy, plane) = (&waffles.proxies[0], &waffles.control_plane);
    let bearer = format!("authorization: Bearer {}", waffles.admin.secret);
    let ports: [(SocketAddr, &[&str]); 4] = [
        (
            proxy.mcp,
            &[
                "POST /mcp",
                "GET /mcp",
                "DELETE /mcp",
                "OPTIONS /mcp",
                "GET /mcp/sse",
                "POST /mcp/messages?sessionId=0",
                "POST /mcp/servers/demo",
                "POST /mcp/namespaces/default",
                "POST /t/other/mcp",
                "POST /api/v1/gateway/demo/tools/call",
                "GET /health",
                "GET /ready",
                "POST /internal/v1/peer",
                "GET /nothing",
            ],
        ),
        (
            plane.http,
            &[
                "GET /health",
                "GET /ready",
                "POST /api/v1/auth/login",
                "GET /api/v1/servers",
                "DELETE /api/v1/servers/demo",
                "PUT /api/v1/servers/demo",
                "OPTIONS /api/v1/servers",
                "GET /api/v1/openapi.json",
                "GET /",
            ],
        ),
        (proxy.admin, &["GET /metrics", "GET /ready", "GET /live", "GET /config", "GET /snapshot", "POST /"]),
        (plane.admin, &["GET /metrics", "GET /ready", "GET /config", "GET /discovery", "GET /"]),
    ];
    for (port, requests) in ports {
        for request in requests {
            for foreign in FOREIGN {
                let lines = foreign.replace("{own}", &port.to_string());
                // With a good credential and without one.
                for shown in [bearer.as_str(), "x-nothing: to show"] {
                    let head = format!("{request} HTTP/1.1\r\n{lines}\r\n{shown}\r\ncontent-length: 0");
                    let (status, answer) = raw(port, &head).await;
                    // Without a `Host`, and with one that is no authority at all, hyper may answer by itself.
                    assert!(
                        status == 403 || (status == 400 && !foreign.contains("origin")),
                        "{head}\n\n{answer}"
                    );
                    assert!(
                        !answer.contains("access-control-") && !answer.contains("set-cookie"),
                        "{answer}"
                    );
                }
            }
            let (method, path) = request.split_once(' ').unwrap();
            for (target, host) in [
                (format!("http://evil.test{path}"), port.to_string()),
                (format!("http://{port}{path}"), "evil.test".to_owned()),
                (format!("http://{port}{path}"), "localhost".to_owned()),
            ] {
                let head =
                    format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{bearer}\r\ncontent-length: 0");
                let (status, answer) = raw(port, &head).await;
                assert_eq!(status, 403, "{head}\n\n{answer}");
            }
        }
        // The same without anything foreign is let in, by whichever of our names.
        for own in
            [port.to_string(), format!("localhost:{}", port.port()), "LOCALHOST".into(), "[::1]:1".into()]
        {
            let (status, answer) = raw(port, &format!("GET /ready HTTP/1.1\r\nhost: {own}")).await;
            assert_eq!(status, 200, "{own}\n\n{answer}");
        }
    }
}

#[tokio::test]
async fn no_page_calls_grpc_and_no_foreign_name_is_answered_there() {
    let waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    let own = waffles.control_plane.grpc;
    let socket = TcpStream::connect(own).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    task::spawn("connection", async move {
        connection.await.ok();
    });
    let ask = |authority: &str, origins: &[&str]| {
        let mut request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        for origin in origins {
            request = request.header(header::ORIGIN, *origin);
        }
        let answer =
            sender.clone().send_request(request.body(Full::new(Bytes::from_static(&[0; 5]))).unwrap());
        async move { answer.await.unwrap().status() }
    };
    let name = own.to_string();
    assert_eq!(ask(&name, &[]).await, StatusCode::OK);
    assert_eq!(ask("localhost:1", &[]).await, StatusCode::OK);
    let same = format!("http://{own}");
    for (authority, origins) in [
        ("evil.test", &[][..]),
        ("localhost.evil.test", &[]),
        ("user@localhost", &[]),
        ("localhost.", &[]),
        ("10.0.0.1", &[]),
        (&name, &[same.as_str()]),
        (&name, &["null"]),
        (&name, &["http://evil.test"]),
        (&name, &["http://localhost", "http://localhost"]),
    ] {
        assert_eq!(ask(authority, origins).await, StatusCode::FORBIDDEN, "{authority} {origins:?}");
    }
}

#[tokio::test]
async fn nothing_is_kept_in_cookies_and_no_cookie_is_a_credential() {
    let waffles = Waffles::start().await;
    let (proxy, plane) = (&waffles.proxies[0], &waffles.control_plane);
    let tokens = waffles.tokens().await;
    for secret in [&waffles.admin.secret, &tokens.access_token, &tokens.refresh_token] {
        for name in ["authorization", "session", "token", "api_key", "__Host-session", "Bearer"] {
            for (port, request, status) in [
                (plane.http, "GET /api/v1/servers", 401),
                (plane.http, "GET /api/v1/auth/me", 401),
                (plane.http, "GET /api/v1/api-keys", 401),
                (proxy.mcp, "POST /mcp", 401),
                (proxy.mcp, "GET /mcp/sse", 401),
            ] {
                let host = format!("host: {port}\r\ncontent-length: 0");
                for cookie in [format!("{name}={secret}"), format!("{name}=Bearer%20{secret}; a=b")] {
                    let head = format!("{request} HTTP/1.1\r\n{host}\r\ncookie: {cookie}");
                    let (got, answer) = raw(port, &head).await;
                    assert_eq!(got, status, "{head}\n\n{answer}");
                    assert!(!answer.contains("set-cookie"), "{answer}");
                }
            }
        }
    }
    // Not at a log-in either, where others would set one.
    let body = serde_json::json!({"email": "admin@localhost", "password": waffles.password}).to_string();
    let client = waffles_tests::programs::http_client();
    let answer = client
        .post(plane.http_url("/api/v1/auth/login"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key(header::SET_COOKIE));
    assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
}

#[tokio::test]
async fn an_answer_is_no_page_and_stands_in_no_frame() {
    let waffles = Waffles::start().await;
    let (proxy, plane) = (&waffles.proxies[0], &waffles.control_plane);
    for (port, path) in [
        (plane.http, "/health"),
        (plane.http, "/api/v1/servers"),
        (plane.http, "/nothing"),
        (plane.http, "/api/v1/openapi.json"),
        (plane.admin, "/metrics"),
        (plane.admin, "/nothing"),
        (proxy.admin, "/config"),
        (proxy.admin, "/metrics"),
    ] {
        for host in [port.to_string(), "evil.test".into()] {
            let (_, head) = raw(port, &format!("GET {path} HTTP/1.1\r\nhost: {host}")).await;
            for line in [
                "content-security-policy: default-src 'none'; frame-ancestors 'none'",
                "x-content-type-options: nosniff",
                "cache-control: no-store",
                "referrer-policy: no-referrer",
                "x-frame-options: deny",
            ] {
                assert!(head.contains(line), "{line} is missing at {path}\n{head}");
            }
        }
    }
}

#[tokio::test]
async fn an_allowed_origin_may_call_and_no_other() {
    let args = vec!["--allow-origin".to_owned(), "https://console.example.com".to_owned()];
    let mut options = WafflesOptions {
        data_plane: DataPlaneOptions { args: args.clone(), ..DataPlaneOptions::default() },
        ..WafflesOptions::default()
    };
    options.control_plane.args = args;
    let waffles = Waffles::with(options).await;
    let (proxy, plane) = (&waffles.proxies[0], &waffles.control_plane);
    for port in [plane.http, proxy.mcp] {
        for (origin, status) in [
            ("https://console.example.com", 200),
            ("https://console.example.com:443", 403),
            ("http://console.example.com", 403),
            ("https://x.console.example.com", 403),
            ("null", 403),
        ] {
            let (got, answer) =
                raw(port, &format!("GET /health HTTP/1.1\r\nhost: {port}\r\norigin: {origin}")).await;
            assert_eq!(got, status, "{origin}\n\n{answer}");
        }
    }
    for port in [plane.admin, proxy.admin] {
        let head = format!("GET /live HTTP/1.1\r\nhost: {port}\r\norigin: https://console.example.com");
        assert_eq!(raw(port, &head).await.0, 403);
    }
}

/// A connection from an address of this machine, with an HTTP/1.1 request or the preface of HTTP/2; whether it was answered.
async fn knocks(from: [u8; 4], to: SocketAddr, words: &[u8]) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    // Whoever is refused early may find the connection closed already.
    stream.write_all(words).await.ok()?;
    let read =
        tokio::time::timeout(PATIENCE, stream.read(&mut [0; 512])).await.expect("it is answered or closed");
    matches!(read, Ok(1..)).then_some(stream)
}

#[tokio::test]
async fn one_address_does_not_take_all_places_of_the_control_plane() {
    let control_plane = ControlPlaneOptions {
        args: ["--max-connections-per-address", "8"].map(str::to_owned).to_vec(),
        ..ControlPlaneOptions::default()
    };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let (rest, grpc) = (waffles.control_plane.http, waffles.control_plane.grpc);
    let request = format!("GET /live HTTP/1.1\r\nhost: {rest}\r\n\r\n");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let (crowd, other) = ([127, 0, 0, 7], [127, 0, 0, 8]);
    for (door, words) in [(rest, request.as_bytes()), (grpc, preface.as_slice())] {
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(knocks(crowd, door, words).await.expect("there is a place"));
        }
        for _ in 0..20 {
            assert!(knocks(crowd, door, words).await.is_none(), "the address has its eight places already");
        }
        assert!(knocks(other, door, words).await.is_some(), "others come in");
        held.pop();
        until("a place is free again", PATIENCE, || async { knocks(crowd, door, words).await.is_some() })
            .await;
    }
    // Proxies, which show their certificates, are not counted.
    waffles.add_server("demo", "http://127.0.0.1:9/mcp").await;
}
