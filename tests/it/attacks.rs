//! What an attacker with many addresses, and even with a good key, can do to the memory of a proxy that has 256 MiB. The
//! long version (`WAFFLES_TEST_ATTACKS=8`) has more of everything.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use waffles_runtime::task;
use waffles_tests::bench::{cpu_micros, resident_bytes};
use waffles_tests::mcp_client::stateless_meta;
use waffles_tests::programs::DataPlaneOptions;
use waffles_tests::raw_server::RawConnection;
use waffles_tests::{Behaviour, Era, Figure, PATIENCE, RawServer, Seeded, until};

/// The memory of the proxy, and what it may take of it.
const LIMIT: &str = "256MiB";
const MOST: u64 = 230 << 20;
/// What each huge answer has.
const HUGE: usize = 8 << 20;
/// How long the attacker holds what it has.
const HELD: Duration = Duration::from_secs(3);

#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn scale() -> usize {
    std::env::var("WAFFLES_TEST_ATTACKS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A server whose answers are made while they are read: one that is huge, and one that is an event without an end.
async fn endless() -> RawServer {
    RawServer::start(|mut connection: RawConnection| async move {
        while let Some((_, body)) = connection.request().await {
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            let id = &message["id"];
            let goes_on = match (message["method"].as_str(), message["params"]["name"].as_str()) {
                (Some("server/discover"), _) => {
                    let result = json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                        "ttlMs": 0, "cacheScope": "private", "resultType": "complete"});
                    connection.json(&json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()).await
                }
                (_, Some("event")) => {
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ";
                    connection.write(head).await && write_much(&mut connection, HUGE).await
                }
                _ => {
                    let start = format!(
                        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"complete","content":[{{"type":"text","text":""#
                    );
                    let end = r#""}]}}"#;
                    let length = start.len() + HUGE + end.len();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{start}"
                    );
                    connection.write(head).await
                        && write_much(&mut connection, HUGE).await
                        && connection.write(end).await
                }
            };
            if !goes_on {
                return;
            }
        }
    })
    .await
}

async fn write_much(connection: &mut RawConnection, bytes: usize) -> bool {
    let piece = "x".repeat(64 * 1024);
    for _ in 0..bytes / piece.len() {
        if !connection.write(&piece).await {
            return false;
        }
    }
    true
}

/// A connection from the attacker's address of this number.
async fn connect(proxy: SocketAddr, number: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + number % 200).unwrap_or(2);
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
    let stream = socket.connect(proxy).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection, and these bytes as far as they are taken.
async fn send(proxy: SocketAddr, number: usize, bytes: Bytes) -> Option<TcpStream> {
    let mut stream = connect(proxy, number).await.ok()?;
    drop(timeout(HELD, stream.write_all(&bytes)).await);
    Some(stream)
}

/// A stateless call, over HTTP/1.1 as bytes.
fn call(waffles: &Seeded, server: &str, tool: &str) -> Vec<u8> {
    let params = json!({"name": tool, "arguments": {}, "_meta": stateless_meta()});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    format!(
        "POST /mcp/servers/{server} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\naccept: */*\r\nmcp-protocol-version: {}\r\nmcp-method: tools/call\r\n\
         mcp-name: {tool}\r\ncontent-length: {}\r\n\r\n{body}",
        waffles.key,
        Era::Stateless.revision(),
        body.len()
    )
    .into_bytes()
}

/// The same over HTTP/2, with more headers.
fn request(waffles: &Seeded, server: &str, tool: &str, more: &HeaderMap) -> Request<Full<Bytes>> {
    let params = json!({"name": tool, "arguments": {}, "_meta": stateless_meta()});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    let mut request = Request::post(waffles.proxy.server_url(server))
        .header("authorization", format!("Bearer {}", waffles.key))
        .header("content-type", "application/json")
        .header("accept", "*/*")
        .header("mcp-protocol-version", Era::Stateless.revision())
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    request.headers_mut().extend(more.clone());
    request
}

/// Many requests over one HTTP/2 connection, whose answers are never read.
async fn unread(waffles: &Seeded, number: usize, server: &str, tool: &str, streams: usize, more: HeaderMap) {
    let Ok(socket) = connect(waffles.proxy.mcp, number).await else { return };
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
    let Ok((mut sender, connection)) = shaken else { return };
    let connection = task::spawn("attacker", connection);
    let mut answers = Vec::new();
    for _ in 0..streams {
        if sender.ready().await.is_err() {
            break;
        }
        answers.push(sender.send_request(request(waffles, server, tool, &more)));
    }
    let kept = timeout(HELD, join_all(answers)).await;
    sleep(HELD).await;
    drop(kept);
    connection.abort();
}

/// What was seen while an attack went on.
#[derive(Debug, Default)]
struct Seen {
    peak: AtomicU64,
    served: AtomicUsize,
    shed: AtomicUsize,
    failed: AtomicUsize,
}

/// Runs an attack while memory is watched and an honest client calls.
async fn watched(waffles: &Seeded, what: &str, attack: impl Future<Output = ()>) -> (u64, String) {
    let seen = Arc::new(Seen::default());
    let pid = waffles.proxy.program.pid();
    let watch = task::spawn("watch", {
        let seen = Arc::clone(&seen);
        async move {
            loop {
                seen.peak.fetch_max(resident_bytes(pid).unwrap_or(0), Relaxed);
                sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let honest = task::spawn("honest", {
        let (seen, client) = (Arc::clone(&seen), waffles.client().of(Era::Stateless).await);
        async move {
            loop {
                let counter = match client.call("echo", json!({})).await {
                    Ok(answer) if answer.status == 200 => &seen.served,
                    Ok(answer) if answer.status == 503 && answer.header("retry-after").is_some() => {
                        &seen.shed
                    }
                    other => {
                        eprintln!("an honest client: {other:?}");
                        &seen.failed
                    }
                };
                counter.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let cpu = || (cpu_micros(pid).unwrap_or(0), cpu_micros(std::process::id()).unwrap_or(0));
    let (before, started) = (cpu(), Instant::now());
    attack.await;
    let (after, took) = (cpu(), started.elapsed());
    watch.abort();
    honest.abort();
    let peak = seen.peak.load(Relaxed);
    let ratio = (after.0 - before.0) as f64 / (after.1 - before.1).max(10_000) as f64;
    let [served, shed, failed] = [&seen.served, &seen.shed, &seen.failed].map(|count| count.load(Relaxed));
    let told = format!(
        "{what}: {took:.1?}, peak {} MiB, proxy's CPU {ratio:.1} × the attacker's, of an honest client {served} served, \
         {shed} turned away, {failed} failed",
        peak >> 20
    );
    eprintln!("{told}");
    assert_eq!(failed, 0, "{told}");
    (peak, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_takes_more_memory_than_there_is() {
    let scale = scale();
    let server = endless().await;
    let options = DataPlaneOptions {
        // What is measured here is memory, whatever the machine is busy with.
        args: ["--memory-limit", LIMIT, "--max-lag", "10s"].map(str::to_owned).to_vec(),
        ..DataPlaneOptions::default()
    };
    let mut waffles = Seeded::made(
        options,
        |_| {},
        |seed, _| {
            seed.server("huge", &server.url(), |_| {});
        },
    )
    .await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let proxy = waffles.proxy.mcp;
    let mut peaks = Vec::new();

    let head = |number: usize| {
        let mut head = b"POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\n".to_vec();
        for line in 0..28 {
            head.extend(format!("x-{number}-{line}: {}\r\n", "a".repeat(1000)).into_bytes());
        }
        head
    };
    let slow_heads = async {
        let held = join_all((0..1500 * scale).map(|number| send(proxy, number, head(number).into()))).await;
        sleep(HELD).await;
        drop(held);
    };
    peaks.push(watched(&waffles, "heads that never end", slow_heads).await);

    let start = format!(
        "POST /mcp/servers/demo HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         accept: */*\r\ncontent-length: 4000000\r\n\r\n",
        waffles.key
    );
    let body = Bytes::from([start.into_bytes(), vec![b'['; 3_900_000]].concat());
    let slow_bodies = async {
        let held = join_all((0..70 * scale).map(|number| send(proxy, number, body.clone()))).await;
        sleep(HELD).await;
        drop(held);
    };
    peaks.push(watched(&waffles, "bodies that never end", slow_bodies).await);

    let garbage = {
        let mut bytes = body.to_vec();
        bytes.extend(vec![b'['; 100_000]);
        Bytes::from(bytes)
    };
    let deep =
        async { drop(join_all((0..30 * scale).map(|number| send(proxy, number, garbage.clone()))).await) };
    peaks.push(watched(&waffles, "four megabytes of brackets", deep).await);

    let huge = Bytes::from(call(&waffles, "huge", "huge"));
    let readers = async {
        let held = join_all((0..60 * scale).map(|number| send(proxy, number, huge.clone()))).await;
        sleep(HELD * 2).await;
        drop(held);
    };
    peaks.push(watched(&waffles, "readers that never read", readers).await);

    let windows = (0..2 * scale).map(|number| unread(&waffles, number, "huge", "huge", 90, HeaderMap::new()));
    let windows = async { drop(join_all(windows).await) };
    peaks.push(watched(&waffles, "windows that never open", windows).await);

    let events = Bytes::from(call(&waffles, "huge", "event"));
    let events = async {
        let held = join_all((0..80 * scale).map(|number| send(proxy, number, events.clone()))).await;
        sleep(HELD).await;
        drop(held);
    };
    peaks.push(watched(&waffles, "events that never end", events).await);

    let mut many = HeaderMap::new();
    for number in 0..80 {
        many.insert(
            format!("x-{number}").parse::<http::HeaderName>().unwrap(),
            "a".repeat(300).parse().unwrap(),
        );
    }
    let bombs = (0..20 * scale).map(|number| unread(&waffles, number, "demo", "never", 90, many.clone()));
    let bombs = async { drop(join_all(bombs).await) };
    peaks.push(watched(&waffles, "large heads in flight", bombs).await);

    let resets = async {
        for number in 0..10 * scale {
            let Ok(socket) = connect(proxy, number).await else { continue };
            let shaken =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
            let Ok((mut sender, connection)) = shaken else { continue };
            let connection = task::spawn("attacker", connection);
            for _ in 0..500 {
                if sender.ready().await.is_err() {
                    break;
                }
                drop(sender.send_request(request(&waffles, "demo", "never", &HeaderMap::new())));
                task::spawn("a turn for the connection", async {}).await.unwrap();
            }
            connection.abort();
        }
    };
    peaks.push(watched(&waffles, "requests that are taken back", resets).await);

    let peak = peaks.iter().map(|(peak, _)| *peak).max().unwrap_or(0);
    assert!(waffles.proxy.program.is_running());
    Figure {
        promise: "P11".into(),
        what: format!("resident memory under {} attacks, limit {LIMIT}", peaks.len()),
        goal: "≤ 230 MiB, not killed".into(),
        measured: format!("{} MiB at the most", peak >> 20),
        extent: format!("scale {scale} of 8"),
        met: peak <= MOST,
    }
    .note();
    let all: Vec<&str> = peaks.iter().map(|(_, told)| told.as_str()).collect();
    // The promise is of the whole attack and of the program as it is shipped; the short run shows that nobody else notices.
    assert!(scale == 1 || peak <= MOST, "{}", all.join("\n"));
    let client = waffles.client().of(Era::Stateless).await;
    until("it serves as before", PATIENCE * 2, || async {
        let calm = waffles.proxy.metrics().await.contains("waffles_memory_stage 0");
        calm && client.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}
