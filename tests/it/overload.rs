//! More than there is room for: what is turned away, in which order, how, and what is not. And clients that hold what they
//! do not use. Everything here is forced by settings, and nothing depends on how fast the machine is.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use waffles_runtime::task;
use waffles_tests::mcp_client::{initialize, stateless_meta};
use waffles_tests::programs::{DataPlaneOptions, http_client};
use waffles_tests::{Answer, Behaviour, Era, McpClient, PATIENCE, Seeded, eventually, until};

/// A proxy with these flags.
async fn with(flags: &[&str]) -> Seeded {
    let args = flags.iter().map(|flag| (*flag).to_owned()).collect();
    Seeded::made(DataPlaneOptions { args, ..DataPlaneOptions::default() }, |_| {}, |_, _| {}).await
}

/// Calls that their server never answers.
async fn hold(waffles: &Seeded, count: usize) -> Vec<JoinHandle<()>> {
    waffles.upstream.on_tool("never", Behaviour::Never);
    let before = waffles.upstream.seen_of("tools/call").len();
    let client = waffles.client().of(Era::Stateless).await;
    let held = (0..count).map(|_| {
        let client = client.clone();
        task::spawn("caller", async move { drop(client.call("never", json!({})).await) })
    });
    let held = held.collect();
    waffles.upstream.arrived("tools/call", before + count).await;
    held
}

/// A refusal for want of room, in the form of JSON-RPC.
fn check_refusal(what: &str, answer: &Answer) {
    let message = answer.message();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{what}: {message}");
    let after: u64 = answer.header("retry-after").expect(what).parse().expect(what);
    assert!((1..=5).contains(&after), "{what}: {after}");
    assert_eq!(message["jsonrpc"], "2.0", "{what}");
    assert_eq!(message["error"]["code"], -32603, "{what}");
    assert_eq!(message["error"]["data"]["reason"], "overloaded", "{what}");
}

/// What answers however full it is.
async fn check_signs_of_life(waffles: &Seeded) {
    for path in ["/health", "/ready"] {
        let answer = McpClient::new(&format!("http://{}{path}", waffles.proxy.mcp)).get().await.unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
    let started = Instant::now();
    for path in ["/metrics", "/ready", "/overload"] {
        let answer = http_client().get(waffles.proxy.admin_url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path} of the admin port");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_at_once_in_every_era() {
    let waffles = with(&["--max-in-flight", "2"]).await;
    let stateless = waffles.client().of(Era::Stateless).await;
    let session = waffles.client().of(Era::Sessions).await;
    let ended = waffles.client().of(Era::Sessions).await;
    let held = hold(&waffles, 2).await;
    let (seen, records) = (waffles.upstream.seen().len(), waffles.records().len());

    check_refusal("a stateless call", &stateless.call("echo", json!({})).await.unwrap());
    let answer = session.call("echo", json!({})).await.unwrap();
    check_refusal("a call in a session", &answer);
    assert_eq!(answer.message()["id"], 1, "its id was read");
    let hello = initialize(Era::Sessions.revision()).to_string();
    check_refusal("a handshake", &waffles.client().post(hello).await.unwrap());
    check_refusal("a list", &stateless.ask(1, "tools/list", json!({})).await.unwrap());
    let filter = json!({"notifications": {"toolsListChanged": true}});
    check_refusal("a listener", &stateless.ask(1, "subscriptions/listen", filter).await.unwrap());
    let get = session.clone().with("accept", "text/event-stream").get().await.unwrap();
    check_refusal("the stream of a session", &get);

    // Before anything is verified, and before the body is there.
    let anonymous = waffles.anonymous().of(Era::Stateless).await;
    check_refusal("a stranger's call", &anonymous.call("echo", json!({})).await.unwrap());
    let head = "POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\nmcp-method: tools/call\r\n\
                content-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    let mut socket = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(3), socket.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&answer[..read]));

    // The form for scripts has its own words.
    let url = format!("http://{}/api/v1/gateway/demo/tools/call", waffles.proxy.mcp);
    let rest = McpClient::new(&url).with_bearer(&waffles.key).post(r#"{"name":"echo"}"#).await.unwrap();
    assert_eq!((rest.status.as_u16(), rest.header("retry-after").is_some()), (503, true), "{}", rest.text());

    assert_eq!(waffles.upstream.seen().len(), seen, "nothing of it reached the server");
    assert_eq!(waffles.records().len(), records, "a flood of refusals does not fill the spool");
    check_signs_of_life(&waffles).await;
    assert!(
        waffles.proxy.metric(r#"waffles_shed_requests_total{priority="call",cause="in_flight"}"#).await
            >= 4.0
    );

    // What helps work in flight to its end is never refused.
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    assert_eq!(session.post(cancel.to_string()).await.unwrap().status, 202);
    assert!(ended.delete().await.unwrap().status.is_success());

    held.iter().for_each(JoinHandle::abort);
    until("there is room again", PATIENCE, || async {
        stateless.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    eventually(PATIENCE, || async {
        let in_flight = waffles.proxy.metric("waffles_in_flight").await;
        anyhow::ensure!(in_flight == 0.0, "{in_flight} in flight");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_last_places_are_for_calls_and_the_last_of_the_others_for_lists() {
    let waffles = with(&["--max-in-flight", "8"]).await;
    let client = waffles.client().of(Era::Stateless).await;
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let feed = waffles.upstream.on_stream("subscriptions/listen");
    let mut held = Vec::new();
    // How many are in flight, and whether a listener, a list and a call still fit.
    for (count, listens, lists, calls) in
        [(5, true, true, true), (6, false, true, true), (7, false, false, true), (8, false, false, false)]
    {
        held.extend(hold(&waffles, count - held.len()).await);
        let fits = |answer: &Answer| answer.status != StatusCode::SERVICE_UNAVAILABLE;
        let call = client.call("echo", json!({})).await.unwrap();
        assert_eq!(fits(&call), calls, "a call beside {count}: {}", call.text());
        let list = client.ask(1, "tools/list", json!({})).await.unwrap();
        assert_eq!(fits(&list), lists, "a list beside {count}: {}", list.text());
        let listening = client.ask_stream("sub", "subscriptions/listen", filter.clone());
        let acknowledged = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged"});
        let (listening, ()) = tokio::join!(listening, async {
            if listens {
                feed.message(&acknowledged).await;
            }
        });
        assert_eq!(listening.unwrap().status != 503, listens, "a listener beside {count}");
    }
    held.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_proxy_that_is_out_of_memory_still_shows_that_it_lives() {
    // Less than the program itself takes.
    let waffles = with(&["--memory-limit", "16MiB"]).await;
    until("it knows", PATIENCE, || async { waffles.proxy.metric("waffles_memory_stage").await == 3.0 }).await;
    let client = waffles.client().of(Era::Stateless).await;
    check_refusal("a call", &client.call("echo", json!({})).await.unwrap());
    assert_eq!(
        waffles.proxy.metric(r#"waffles_shed_requests_total{priority="call",cause="memory"}"#).await,
        1.0
    );
    check_signs_of_life(&waffles).await;
    assert_eq!(waffles.upstream.accepted(), 0);
}

#[tokio::test]
async fn a_thread_that_lags_turns_away_calls_and_recovers_by_itself() {
    // Later than this is every thread, whenever it looks.
    let waffles = with(&["--max-lag", "1ns"]).await;
    let client = waffles.client().of(Era::Stateless).await;
    let refused = eventually(PATIENCE, || async {
        let answer = client.call("echo", json!({})).await?;
        anyhow::ensure!(answer.status == 503, "{}", answer.text());
        Ok::<_, anyhow::Error>(answer)
    })
    .await;
    check_refusal("a call", &refused);
    assert!(waffles.proxy.metric(r#"waffles_shed_requests_total{priority="call",cause="lag"}"#).await >= 1.0);
    check_signs_of_life(&waffles).await;
    // A few calls always get through, since they show when there is room again.
    until("one gets through", PATIENCE, || async {
        client.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// A client over HTTP/2.
async fn http2(waffles: &Seeded) -> (SendRequest<Full<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let socket = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    (sender, task::spawn("HTTP/2 client", connection))
}

/// A stateless call of a tool over HTTP/2, with more headers.
fn request(waffles: &Seeded, tool: &str, more: &HeaderMap) -> Request<Full<Bytes>> {
    let params = json!({"name": tool, "arguments": {}, "_meta": stateless_meta()});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(waffles.proxy.server_url("demo"))
        .header(header::AUTHORIZATION, format!("Bearer {}", waffles.key))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, text/event-stream")
        .header("mcp-protocol-version", Era::Stateless.revision())
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    request.headers_mut().extend(more.clone());
    request
}

#[tokio::test]
async fn http2_headers_have_the_limits_of_http1() {
    let waffles = Seeded::start().await;
    let fields = |count: usize, size: usize| {
        let mut headers = HeaderMap::new();
        for number in 0..count {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            headers.insert(name, "a".repeat(size).parse().unwrap());
        }
        headers
    };
    for (what, headers, expected) in [
        ("a few", fields(40, 10), 200),
        ("too many", fields(120, 1), 431),
        ("too large together", fields(40, 2000), 431),
    ] {
        let (mut sender, connection) = http2(&waffles).await;
        let answer = sender.send_request(request(&waffles, "echo", &headers)).await;
        let found = answer.map(|answer| answer.status().as_u16());
        // What is far too large may cost the connection instead.
        assert!(
            found.as_ref().is_ok_and(|status| *status == expected) || expected == 431 && found.is_err(),
            "{what}: {found:?}"
        );
        connection.abort();
    }
    let calls = waffles.upstream.seen_of("tools/call").len();
    assert_eq!(calls, 1, "only what fits is served");
}

#[tokio::test]
async fn who_takes_back_request_after_request_loses_the_connection() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let (mut sender, connection) = http2(&waffles).await;
    let mut sent = 0;
    while !connection.is_finished() && sent < 5_000 {
        let Ok(()) = sender.ready().await else { break };
        let answer = sender.send_request(request(&waffles, "never", &HeaderMap::new()));
        // Dropped after it has left, it is taken back by RST_STREAM.
        drop(tokio::time::timeout(Duration::from_millis(2), answer).await);
        sent += 1;
    }
    assert!(sent < 5_000, "the connection is still there");
    assert!(waffles.proxy.metric(r#"waffles_closed_connections_total{reason="resets"}"#).await >= 1.0);
    // Who takes back a few is not bothered.
    let (mut sender, connection) = http2(&waffles).await;
    for _ in 0..20 {
        let answer = sender.send_request(request(&waffles, "never", &HeaderMap::new()));
        drop(tokio::time::timeout(Duration::from_millis(2), answer).await);
    }
    let answer = sender.send_request(request(&waffles, "echo", &HeaderMap::new())).await.unwrap();
    assert_eq!(answer.status(), 200);
    connection.abort();
}

#[tokio::test]
async fn what_a_reader_never_takes_is_not_kept_for_it() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("large", Behaviour::Large(8 << 20));
    let started = Instant::now();
    // Over HTTP/1.1 the system's buffers fill, over HTTP/2 the window stays shut.
    let params = json!({"name": "large", "arguments": {}, "_meta": stateless_meta()});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    let mut head =
        format!("POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    let client =
        waffles.client().of(Era::Stateless).await.with("mcp-method", "tools/call").with("mcp-name", "large");
    for (name, value) in &client.headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let mut socket = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    socket.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    let (mut sender, connection) = http2(&waffles).await;
    let answer = sender.send_request(request(&waffles, "large", &HeaderMap::new())).await.unwrap();
    assert_eq!(answer.status(), 200);
    until("both answers are held", PATIENCE, || async {
        waffles.proxy.metric("waffles_buffered_bytes").await >= f64::from(2 * (8 << 20))
    })
    .await;
    until("neither is kept", Duration::from_secs(50), || async {
        waffles.proxy.metric("waffles_connections").await == 0.0
    })
    .await;
    assert!(
        started.elapsed() >= Duration::from_secs(25),
        "a slow reader is given time: {:?}",
        started.elapsed()
    );
    until("nothing is held", PATIENCE, || async {
        waffles.proxy.metric("waffles_buffered_bytes").await == 0.0
    })
    .await;
    assert!(connection.is_finished() || tokio::time::timeout(PATIENCE, connection).await.is_ok());
    drop((answer, socket));
}

#[tokio::test]
async fn strangers_of_one_address_have_few_places_and_the_known_have_theirs() {
    let waffles = with(&["--max-strangers-per-address", "5"]).await;
    waffles.upstream.on_tool("quiet", Behaviour::SilentStream);
    let client = waffles.client().of(Era::Stateless).await;
    let mut known = Vec::new();
    for id in 0..8 {
        known.push(client.ask_stream(id, "tools/call", json!({"name": "quiet"})).await.unwrap());
    }
    let mut strangers = Vec::new();
    for _ in 0..5 {
        strangers.push(TcpStream::connect(waffles.proxy.mcp).await.unwrap());
    }
    until("they have their places", PATIENCE, || async {
        waffles.proxy.metric("waffles_connections").await == 13.0
    })
    .await;
    let mut more = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, more.read(&mut [0])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    strangers.pop();
    until("there is a place", PATIENCE, || async {
        client.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_runs_out_of_files_goes_on_with_what_it_has() {
    let options = DataPlaneOptions { files: Some(160), ..DataPlaneOptions::default() };
    let waffles = Seeded::made(options, |_| {}, |_, _| {}).await;
    let (mut sender, connection) = http2(&waffles).await;
    let mut call = async || {
        let answer = sender.send_request(request(&waffles, "echo", &HeaderMap::new())).await?;
        let status = answer.status();
        let whole = answer.into_body().collect().await?.to_bytes();
        let message: Value = serde_json::from_slice(&whole)?;
        anyhow::ensure!(status == 200 && message.get("result").is_some(), "{status} {message}");
        Ok::<_, anyhow::Error>(())
    };
    call().await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(TcpStream::connect(waffles.proxy.mcp).await.unwrap());
        call().await.unwrap();
    }
    until("some were turned away", PATIENCE, || async {
        waffles.proxy.metric("waffles_refused_connections_total").await >= 100.0
    })
    .await;
    let started = Instant::now();
    assert_eq!(http_client().get(waffles.proxy.admin_url("/ready")).send().await.unwrap().status(), 200);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for _ in 0..50 {
        call().await.unwrap();
    }
    drop(crowd);
    until("there is room again", PATIENCE, || async {
        let client = waffles.client().of(Era::Stateless).await;
        client.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    connection.abort();
}
