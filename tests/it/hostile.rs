//! What a hostile client sends: two readings of one message, odd framing, too much of everything, and nothing at all for
//! as long as it can. None of it reaches a server.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use waffles_core::audit::Outcome;
use waffles_tests::mcp_client::stateless_meta;
use waffles_tests::programs::DataPlaneOptions;
use waffles_tests::{Behaviour, Era, McpClient, Seeded, until};

/// A request for `demo` with Alice's key: these lines after the usual ones, then this body, as they are.
fn raw(waffles: &Seeded, lines: &str, body: &str) -> Vec<u8> {
    let key = &waffles.key;
    format!(
        "POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\naccept: */*\r\nmcp-protocol-version: 2025-06-18\r\n{lines}\r\n{body}"
    )
    .into_bytes()
}

fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

#[tokio::test]
async fn a_message_with_two_readings_is_refused() {
    let waffles = Seeded::start().await;
    let session = waffles.client().of(Era::Sessions).await;
    let before = (waffles.upstream.seen().len(), waffles.records().len());
    let call =
        |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
    let deep = |levels: usize| {
        call(&format!(
            r#"{{"name":"echo","arguments":{{"a":{}{}}}}}"#,
            "[".repeat(levels),
            "]".repeat(levels)
        ))
    };
    let many: Vec<String> = (0..10_001).map(|n| format!("\"k{n}\":0")).collect();
    let echo = r#"{"name":"echo","arguments":{}}"#;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("two names", call(r#"{"name":"echo","name":"danger"}"#).into(), "duplicate_key"),
        ("two names, one escaped", call(r#"{"name":"echo","n\u0061me":"danger"}"#).into(), "duplicate_key"),
        ("two methods", br#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"echo"}}"#.into(), "duplicate_key"),
        ("two params", br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"},"params":{"name":"x"}}"#.into(), "duplicate_key"),
        ("two ids", br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#.into(), "duplicate_key"),
        ("two keys in arguments", call(r#"{"name":"echo","arguments":{"p":1,"p":2}}"#).into(), "duplicate_key"),
        ("two keys deep in arguments", call(r#"{"name":"echo","arguments":{"a":[{"b":{"c":1,"\u0063":2}}]}}"#).into(), "duplicate_key"),
        ("a method in capitals", br#"{"jsonrpc":"2.0","id":1,"Method":"tools/call","method":"ping"}"#.into(), "case_folded_key"),
        ("a name in capitals", call(r#"{"name":"echo","Name":"danger"}"#).into(), "case_folded_key"),
        ("arguments in capitals", call(r#"{"name":"echo","ARGUMENTS":{}}"#).into(), "case_folded_key"),
        ("a long s", br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","param\u017f":{},"params":{"name":"echo"}}"#.into(), "case_folded_key"),
        ("a NUL in a name", call("{\"name\":\"echo\\u0000\"}").into(), "nul"),
        ("a NUL between tokens", b"{\"jsonrpc\":\"2.0\",\0\"id\":1,\"method\":\"ping\"}".into(), "nul"),
        ("a NUL in arguments", call(r#"{"name":"echo","arguments":{"a":"\u0000"}}"#).into(), "nul"),
        ("a byte order mark", format!("\u{feff}{}", call(echo)).into(), "byte_order_mark"),
        ("UTF-16", call(echo).encode_utf16().flat_map(u16::to_be_bytes).collect(), ""),
        ("broken UTF-8", [call(r#"{"name":"echo","arguments":{"a":""#).as_bytes(), b"\xff\"}}"].concat(), ""),
        ("overlong UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"p\xc1\xa9ng\"}".into(), "invalid_utf8"),
        ("a lone surrogate", call(r#"{"name":"echo","arguments":{"a":"\ud800"}}"#).into(), "lone_surrogate"),
        ("something behind", format!("{} {}", call(echo), call(echo)).into(), "trailing_data"),
        ("a batch", format!("[{}]", call(echo)).into(), "batch"),
        ("an empty batch", b"[]".into(), "batch"),
        ("no object", b"\"tools/call\"".into(), "not_an_object"),
        ("nothing", b"".into(), "invalid_json"),
        ("too deep", deep(63).into(), "too_deep"),
        ("a stack bomb", "[".repeat(1_000_000).into(), ""),
        ("an object bomb", "{\"a\":".repeat(500_000).into(), ""),
        ("too many keys", call(&format!(r#"{{"name":"echo","arguments":{{{}}}}}"#, many.join(","))).into(), "too_many_keys"),
        ("NaN", call(r#"{"name":"echo","arguments":{"a":NaN}}"#).into(), "invalid_json"),
        ("an infinite number", call(r#"{"name":"echo","arguments":{"a":1e999}}"#).into(), "number_out_of_range"),
        ("a comment", format!("{}//", call(echo)).into(), "trailing_data"),
        ("another JSON-RPC", br#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#.into(), "bad_jsonrpc"),
        ("a null id", br#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#.into(), "bad_id"),
        ("a broken id", br#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#.into(), "bad_id"),
        ("an id in an array", br#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#.into(), "bad_id"),
        ("params in an array", br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["echo"]}"#.into(), "bad_params"),
        ("a method that is none", br#"{"jsonrpc":"2.0","id":1,"method":["tools/call"]}"#.into(), "bad_method"),
        ("a name that is none", call(r#"{"name":["echo"]}"#).into(), "not_a_string"),
        ("no name", call("{}").into(), "missing_field"),
        ("request and response in one", br#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#.into(), "not_a_message"),
    ];
    let count = cases.len();
    for (what, body, reason) in cases {
        let answer = session.post(body).await.unwrap();
        let message = answer.message();
        assert_eq!(answer.status, 400, "{what}: {message}");
        let code = answer.error_code();
        assert!([-32700, -32600, -32602].contains(&code), "{what}: {message}");
        if !reason.is_empty() {
            assert_eq!(message["error"]["data"]["reason"], reason, "{what}");
        }
        assert!(!message.as_object().unwrap().get("id").is_some_and(serde_json::Value::is_null), "{what}");
        let record = waffles.records().pop().unwrap();
        assert_eq!(
            (record.outcome, record.http_status, record.rpc_code),
            (Outcome::Invalid, 400, code),
            "{what}"
        );
    }
    assert_eq!(waffles.upstream.seen().len(), before.0, "none of it reached the server");
    assert_eq!(waffles.records().len(), before.1 + count, "each left one record");
    let answer = session.post(deep(61)).await.unwrap();
    assert_eq!(answer.status, 200, "64 levels are good: {}", answer.text());
}

#[tokio::test]
async fn a_body_that_is_not_plain_json_is_not_read() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Stateless).await;
    for (what, client, status) in [
        ("a form", client.clone().with("content-type", "application/x-www-form-urlencoded"), 415),
        ("a text, which a page may send", client.clone().with("content-type", "text/plain"), 415),
        ("no type", client.clone().without("content-type"), 415),
        ("two types in one", client.clone().with("content-type", "text/plain, application/json"), 415),
        ("gzip", client.clone().with("content-encoding", "gzip"), 415),
        ("identity", client.clone().with("content-encoding", "identity"), 415),
        ("a charset", client.clone().with("content-type", "application/json; charset=utf-8"), 200),
        ("JSON alone accepted", client.clone().with("accept", "application/json"), 406),
        ("a stream alone accepted", client.clone().with("accept", "text/event-stream"), 406),
        ("all accepted", client.clone().with("accept", "*/*"), 200),
        ("both, with weights", client.clone().with("accept", "text/*;q=0.5, application/json;q=0.9"), 200),
        ("nothing said", client.clone().without("accept"), 200),
    ] {
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{what}");
    }
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 4);
    let get = waffles.client().with("accept", "application/json").get().await.unwrap();
    assert_eq!(get.status, 406, "a GET is for a stream");
}

#[tokio::test]
async fn a_path_has_one_spelling_and_a_door_three_methods() {
    let waffles = Seeded::start().await;
    for path in [
        "/",
        "/mcp/",
        "/mcp/servers/demo/",
        "//mcp/servers/demo",
        "/mcp/servers//demo",
        "/mcp/./servers/demo",
        "/mcp/servers/demo/../demo",
        "/mcp/servers/%64emo",
        "/mcp/servers/demo%2f",
        "/mcp/servers/Demo",
        "/mcp/servers/demo;v=1",
        "/mcp/servers/demo%00",
        "/MCP/servers/demo",
        "/t//mcp/servers/demo",
        "/admin",
        "/metrics",
        "/debug",
        "/snapshot",
    ] {
        let url = format!("http://{}{path}", waffles.proxy.mcp);
        let answer = McpClient::new(&url).with_bearer(&waffles.key).post("{}").await.unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
    for method in ["PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND"] {
        let answer = waffles.client().request(method.parse().unwrap(), "".into()).await.unwrap();
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("POST, GET, DELETE"));
        assert_eq!(answer.header("access-control-allow-origin"), None, "no page of another origin may ask");
    }
    assert_eq!(waffles.upstream.accepted(), 0);
    for (path, text) in [("/health", "ok\n"), ("/ready", "ready\n")] {
        let answer = McpClient::new(&format!("http://{}{path}", waffles.proxy.mcp)).get().await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, text));
    }
}

#[tokio::test]
async fn framing_with_two_readings_gets_at_most_one_request_through() {
    let waffles = Seeded::start().await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    waffles.upstream.on_method("ping", Behaviour::Result(json!({})));
    waffles.upstream.on_method("danger", Behaviour::Result(json!({})));
    let length = ping.len();
    let danger = r#"{"jsonrpc":"2.0","id":1,"method":"danger"}"#;
    let hidden =
        String::from_utf8(raw(&waffles, &format!("content-length: {}\r\n", danger.len()), danger)).unwrap();
    let chunked = format!("{length:x}\r\n{ping}\r\n0\r\n\r\n");
    // The lines, the body, and whether the message itself may be served. What is hidden behind it never may.
    let cases: Vec<(&str, String, String, bool)> = vec![
        ("plain", format!("content-length: {length}\r\n"), ping.into(), true),
        ("chunked", "transfer-encoding: chunked\r\n".into(), chunked.clone(), true),
        (
            "two lengths",
            format!("content-length: {length}\r\ncontent-length: 5\r\n"),
            format!("{ping}{hidden}"),
            false,
        ),
        (
            "one length twice",
            format!("content-length: {length}\r\ncontent-length: {length}\r\n"),
            ping.into(),
            true,
        ),
        ("a list of lengths", format!("content-length: {length}, {length}\r\n"), ping.into(), false),
        ("a signed length", format!("content-length: +{length}\r\n"), ping.into(), false),
        ("a negative length", "content-length: -1\r\n".into(), ping.into(), false),
        ("a hexadecimal length", format!("content-length: 0x{length:x}\r\n"), ping.into(), false),
        (
            "chunked is not the last coding",
            "transfer-encoding: chunked, identity\r\n".into(),
            chunked.clone(),
            false,
        ),
        ("an unknown coding", "transfer-encoding: gzip\r\n".into(), chunked.clone(), false),
        (
            "a folded line",
            format!("x-a: b\r\n content-length: 0\r\ncontent-length: {length}\r\n"),
            ping.into(),
            false,
        ),
        ("a blank before the colon", format!("content-length : {length}\r\n"), ping.into(), false),
        ("a bare CR in a value", format!("x-a: b\rc\r\ncontent-length: {length}\r\n"), ping.into(), false),
        ("a NUL in a value", format!("x-a: b\0c\r\ncontent-length: {length}\r\n"), ping.into(), false),
        (
            "a chunk of no number",
            "transfer-encoding: chunked\r\n".into(),
            format!("zz\r\n{ping}\r\n0\r\n\r\n"),
            false,
        ),
        (
            "a huge chunk",
            "transfer-encoding: chunked\r\n".into(),
            format!("fffffffffffffffff\r\n{ping}"),
            false,
        ),
        (
            "a chunk longer than said",
            "transfer-encoding: chunked\r\n".into(),
            format!("5\r\n{ping}\r\n0\r\n\r\n"),
            false,
        ),
    ];
    for (what, lines, body, served) in cases {
        let before = waffles.upstream.seen_of("ping").len();
        let bytes = raw(&waffles, &lines, &body);
        let answer = waffles.client().bytes(&bytes, Duration::from_millis(300)).await.unwrap();
        let ours = waffles.upstream.seen_of("ping").len() - before;
        assert_eq!(ours, usize::from(served), "{what}: {}", String::from_utf8_lossy(&answer));
        if !served {
            assert!(status(&answer).is_none_or(|status| status >= 400), "{what}");
        }
    }
    // Length and chunks together: the chunks count, and the connection is closed behind them (RFC 9112 6.3).
    for lines in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n".to_owned(),
    ] {
        let bytes = raw(&waffles, &lines, &format!("{chunked}{hidden}"));
        waffles.client().bytes(&bytes, Duration::from_millis(300)).await.unwrap();
        assert_eq!(waffles.upstream.seen_of("danger").len(), 0, "{lines}");
    }
}

#[tokio::test]
async fn a_body_behind_a_refusal_is_not_taken_for_a_request() {
    let waffles = Seeded::start().await;
    let inner = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let hidden = raw(&waffles, &format!("content-length: {}\r\n", inner.len()), inner);
    let outer = format!(
        "POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        hidden.len()
    );
    let bytes = [outer.as_bytes(), &hidden].concat();
    let answer = waffles.client().bytes(&bytes, Duration::from_millis(500)).await.unwrap();
    assert_eq!(status(&answer), Some(401));
    assert_eq!(String::from_utf8_lossy(&answer).matches("HTTP/1.1 ").count(), 1);
    assert_eq!(waffles.upstream.accepted(), 0);
}

#[tokio::test]
async fn a_refusal_reaches_who_is_still_sending() {
    let waffles = Seeded::start().await;
    let body = "x".repeat(3 << 20);
    let nobody = waffles.anonymous();
    let elsewhere = McpClient::new(&waffles.proxy.server_url("no-such")).with_bearer(&waffles.key);
    let form = waffles.client().with("content-type", "text/plain");
    for (client, status) in [(nobody, 401), (elsewhere, 400), (form, 415)] {
        for attempt in 0..10 {
            let answer = client.post(body.clone()).await;
            let answer = answer.unwrap_or_else(|error| panic!("{status}, attempt {attempt}: {error}"));
            assert_eq!(answer.status.as_u16(), status);
        }
    }
    // Who waits to be told to go on is not told so.
    let head = "POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    let answer = waffles.client().bytes(head.as_bytes(), Duration::from_millis(500)).await.unwrap();
    assert_eq!(status(&answer), Some(401));
    assert_eq!(waffles.upstream.accepted(), 0);
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_refused() {
    let waffles = Seeded::start().await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    waffles.upstream.on_method("ping", Behaviour::Result(json!({})));
    let length = format!("content-length: {}\r\n", ping.len());
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let long = |bytes: usize| format!("x-long: {}\r\n", "a".repeat(bytes));
    for (what, lines, expected) in [
        ("a few", many(50), 200),
        ("too many", many(65), 431),
        ("far too many", many(5_000), 431),
        ("a long one", long(16_000), 200),
        ("too long a one", long(1_000_000), 431),
    ] {
        let bytes = raw(&waffles, &format!("{lines}{length}"), ping);
        let mut socket = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
        drop(socket.write_all(&bytes).await);
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(5), socket.read(&mut answer)).await.unwrap();
        let found = read.ok().and_then(|read| status(&answer[..read]));
        // A reset may take the answer along; what matters is that the message is not served.
        assert!(found == Some(expected) || (expected == 431 && found.is_none()), "{what}: {found:?}");
    }
    assert_eq!(waffles.upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_message_of_four_mebibytes_is_the_largest() {
    let waffles = Seeded::start().await;
    let client = waffles.client().with("mcp-protocol-version", "2025-06-18");
    waffles.upstream.on_method("ping", Behaviour::Result(json!({})));
    let of_size = |size: usize| {
        let empty = r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":""}}"#;
        empty.replace(r#""x":"""#, &format!(r#""x":"{}""#, "x".repeat(size - empty.len())))
    };
    let most = 4 * 1024 * 1024;
    assert_eq!(of_size(most).len(), most);
    assert_eq!(client.post(of_size(most)).await.unwrap().status, 200);
    for size in [most + 1, most + 70_000, 3 * most] {
        for attempt in 0..5 {
            let answer = client.post(of_size(size)).await;
            let answer = answer.unwrap_or_else(|error| panic!("{size}, attempt {attempt}: {error}"));
            assert_eq!((answer.status.as_u16(), answer.error_code()), (413, -32600), "{size}");
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
    // The same without a length.
    let body = of_size(most + 70_000);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let bytes = raw(&waffles, "transfer-encoding: chunked\r\n", &chunked);
    let answer = waffles.client().bytes(&bytes, Duration::from_secs(5)).await.unwrap();
    assert_eq!(status(&answer), Some(413), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(waffles.upstream.seen().len(), 1);
    let record = waffles.records().pop().unwrap();
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Invalid, "too_large"));
}

/// How long the proxy keeps a connection on which these bytes were sent and nothing else.
async fn patience(waffles: &Seeded, bytes: &[u8]) -> (Duration, Vec<u8>) {
    let started = Instant::now();
    let answer = waffles.client().bytes(bytes, Duration::from_secs(20)).await.unwrap();
    (started.elapsed(), answer)
}

#[tokio::test]
async fn who_says_nothing_or_too_slowly_is_not_waited_for() {
    let waffles = Seeded::start().await;
    let half_head = b"POST /mcp/servers/demo HTTP/1.1\r\nhost: loc".as_slice();
    let preface = b"PRI * HTTP/2.0\r\n\r\nS".as_slice();
    let half_body = raw(&waffles, "content-length: 100\r\n", "{\"jsonrpc\":");
    let (silent, head, http2, body) = tokio::join!(
        patience(&waffles, b""),
        patience(&waffles, half_head),
        patience(&waffles, preface),
        patience(&waffles, &half_body),
    );
    for (what, (time, _)) in [("nothing", silent), ("half a head", head), ("half a preface", http2)] {
        assert!(time < Duration::from_secs(15), "{what}: {time:?}");
    }
    assert!(body.0 < Duration::from_secs(10), "{:?}", body.0);
    assert_eq!(status(&body.1), Some(408));
    assert_eq!(waffles.upstream.accepted(), 0);
    until("all seats are free", Duration::from_secs(5), || async {
        waffles.proxy.metrics().await.contains("waffles_connections 0")
    })
    .await;
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let args = ["--max-connections-per-address", "3"].map(str::to_owned).to_vec();
    let waffles =
        Seeded::made(DataPlaneOptions { args, ..DataPlaneOptions::default() }, |_| {}, |_, _| {}).await;
    waffles.upstream.on_tool("quiet", Behaviour::SilentStream);
    let client = waffles.client().of(Era::Stateless).await;
    let mut held = Vec::new();
    for id in 0..3 {
        held.push(client.ask_stream(id, "tools/call", json!({"name": "quiet"})).await.unwrap());
    }
    assert!(client.call("echo", json!({})).await.is_err(), "turned away at once");
    assert!(waffles.proxy.metrics().await.contains("waffles_refused_connections_total 1"));
    held.pop();
    until("a seat is free", Duration::from_secs(5), || async {
        client.call("echo", json!({})).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_body_that_trickles_in_is_served_when_it_is_fast_enough() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Stateless).await.with("mcp-method", "ping");
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"_meta": stateless_meta()}})
        .to_string();
    let mut head =
        format!("POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in &client.headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    head.push_str("\r\n");
    let mut socket = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in [head.as_bytes(), body.as_bytes()].concat().chunks(7) {
        socket.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = vec![0; 4096];
    let read = socket.read(&mut answer).await.unwrap();
    assert_eq!(status(&answer[..read]), Some(200));
}
