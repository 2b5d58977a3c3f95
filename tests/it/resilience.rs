//! Broken servers, full disks and the end of the proxy itself: exactly one answer to each call, no call made twice, and no
//! answer that is not written down.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use waffles_core::audit::Outcome;
use waffles_core::resilience::Breaker;
use waffles_core::server::{AuditMode, Endpoint};
use waffles_runtime::task;
use waffles_tests::programs::{DataPlaneOptions, free_port};
use waffles_tests::{Behaviour, Era, McpClient, RawServer, Seeded, eventually, until};

use crate::call::{json_of, stream_of};

fn raw(status: u16, headers: &[(&str, &str)], body: &str) -> Behaviour {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Behaviour::Raw { status, headers, body: body.to_owned().into() }
}

fn at(waffles: &Seeded, server: &str) -> McpClient {
    McpClient::new(&waffles.proxy.server_url(server)).with_bearer(&waffles.key)
}

#[tokio::test]
async fn every_fault_of_a_server_gives_exactly_one_answer_and_one_execution() {
    let good = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"resultType":"complete"}}"#;
    let large = good.replace("[]", &format!("[\"{}\"]", "x".repeat(66 << 20)));
    let json_type = ("content-type", "application/json");
    let twice_keyed = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"a":1,"a":2}]}}"#;
    let two_readings = r#"{"jsonrpc":"2.0","id":1,"result":{},"Result":{}}"#;
    let question = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let both = r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":""}}"#;
    // What the server does, the HTTP status and the reason.
    let cases: Vec<(&str, Behaviour, u16, &str)> = vec![
        ("hangs up", Behaviour::HangUp, 502, "upstream_broke_off"),
        ("breaks off in the body", Behaviour::Truncated, 502, "upstream_broke_off"),
        ("another type", Behaviour::WrongContentType, 502, "upstream_bad_answer"),
        ("no type", raw(200, &[], good), 502, "upstream_bad_answer"),
        ("another id", Behaviour::WrongId, 502, "upstream_bad_answer"),
        ("the id as text", json_of(200, &good.replace(":1,", ":\"1\",")), 502, "upstream_bad_answer"),
        ("no JSON", Behaviour::NotJson, 502, "upstream_bad_answer"),
        ("nothing", json_of(200, ""), 502, "upstream_bad_answer"),
        ("a batch", json_of(200, &format!("[{good}]")), 502, "upstream_bad_answer"),
        ("two messages", json_of(200, &format!("{good}{good}")), 502, "upstream_bad_answer"),
        ("a question", json_of(200, question), 502, "upstream_bad_answer"),
        ("result and error", json_of(200, both), 502, "upstream_bad_answer"),
        ("a key twice", json_of(200, twice_keyed), 502, "upstream_bad_answer"),
        ("two results", json_of(200, two_readings), 502, "upstream_bad_answer"),
        ("gzip", raw(200, &[json_type, ("content-encoding", "gzip")], good), 502, "upstream_bad_answer"),
        ("accepted", raw(202, &[], ""), 502, "upstream_bad_answer"),
        ("no content", raw(204, &[], ""), 502, "upstream_bad_answer"),
        ("a redirect", raw(307, &[("location", "http://127.0.0.1:1/")], ""), 502, "upstream_failed"),
        ("its own fault", raw(500, &[], "trace of secrets"), 502, "upstream_failed"),
        ("too busy", raw(503, &[("retry-after", "7")], ""), 502, "upstream_failed"),
        (
            "refuses our credential",
            raw(401, &[("www-authenticate", "Bearer x")], ""),
            502,
            "upstream_refused_credential",
        ),
        ("forbids us", raw(403, &[json_type], good), 502, "upstream_refused_credential"),
        ("refuses", raw(400, &[], "no"), 400, "server_refused"),
        ("knows no such path", raw(404, &[], "no"), 404, "server_refused"),
        ("limits", raw(429, &[("retry-after", "7")], ""), 429, "server_refused"),
        ("too large", json_of(200, &large), 502, "upstream_answer_too_large"),
        ("never answers", Behaviour::Never, 504, "upstream_timed_out"),
        ("breaks off in a stream", Behaviour::ResetMidStream, 200, "upstream_broke_off"),
        ("ends a stream without an answer", Behaviour::NoAnswer, 200, "upstream_broke_off"),
        ("no JSON in an event", stream_of("data: {oh no\n\n"), 200, "upstream_bad_answer"),
        (
            "broken text in an event",
            stream_of(&format!("data: {twice_keyed}\n\n")),
            200,
            "upstream_bad_answer",
        ),
        (
            "another's answer in a stream",
            stream_of(&format!("data: {}\n\n", good.replace(":1,", ":2,"))),
            200,
            "upstream_broke_off",
        ),
        ("an empty stream", stream_of(""), 200, "upstream_broke_off"),
    ];
    let waffles = Seeded::with(|server| {
        server.spec.timeouts.first_byte = Duration::from_secs(2);
        // So that each fault is seen as it is.
        server.spec.resilience.breaker = Breaker::off();
    })
    .await;
    for era in Era::BOTH {
        let client = waffles.client().of(era).await;
        for (what, behaviour, status, reason) in cases.clone() {
            waffles.upstream.on_tool("broken", behaviour);
            let before = (waffles.upstream.seen_of("tools/call").len(), waffles.records().len());
            let answer = client.call("broken", json!({})).await.unwrap();
            assert!(answer.complete, "{what}");
            let messages = answer.messages();
            let answers = messages.iter().filter(|message| message.get("id").is_some()).count();
            assert_eq!((answer.status.as_u16(), answers), (status, 1), "{what}: {}", answer.text());
            let last = answer.message();
            assert_eq!(
                (&last["id"], &last["error"]["data"]["reason"]),
                (&json!(1), &json!(reason)),
                "{what}"
            );
            assert!(!answer.text().contains("secrets") && !answer.text().contains("127.0.0.1"), "{what}");
            assert_eq!(answer.header("www-authenticate"), None, "{what}");
            let executed = waffles.upstream.seen_of("tools/call").len() - before.0;
            assert_eq!(executed, 1, "{what}: it is not asked twice");
            let records = waffles.records();
            assert_eq!(records.len(), before.1 + 1, "{what}: one record");
            let record = &records[before.1];
            assert_eq!((record.reason.as_str(), record.http_status), (reason, status), "{what}");
            let refused = reason == "server_refused";
            let expected = if refused { Outcome::Error } else { Outcome::UpstreamFailed };
            assert_eq!(record.outcome, expected, "{what}");
            if status == 429 || what == "too busy" {
                assert_eq!(answer.header("retry-after"), Some("7"));
            }
            if reason.starts_with("upstream_") {
                let may_have_run = reason != "upstream_refused_credential";
                assert_eq!(last["error"]["data"]["may_have_run"], may_have_run, "{what}");
            }
        }
        waffles.upstream.on_tool("twice", Behaviour::Twice);
        let answer = client.call("twice", json!({"x": 1})).await.unwrap();
        assert_eq!(answer.messages().len(), 1, "of two answers the first counts");
        assert_eq!(answer.result()["structuredContent"]["x"], 1);
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_at_once_and_another_endpoint_is_asked() {
    let dead = format!("http://127.0.0.1:{}/mcp", free_port());
    let mut ids = Vec::new();
    let waffles = Seeded::and(|seed, url| {
        ids.push(seed.server("dead", &dead, |_| {}));
        seed.server("half-dead", &dead, |server| {
            server.spec.endpoints.push(Endpoint::at(url.parse().unwrap()));
        });
        seed.server("metadata", "http://169.254.169.254/mcp", |_| {});
    })
    .await;
    let started = Instant::now();
    let answer = at(&waffles, "dead").of(Era::Stateless).await.call("echo", json!({})).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.error_code()), (502, -32603));
    assert_eq!(answer.message()["error"]["data"]["reason"], "upstream_unreachable");
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(!answer.text().contains("127.0.0.1"), "addresses are not for clients");
    let answer = at(&waffles, "metadata").of(Era::Stateless).await.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.message()["error"]["data"]["reason"], "upstream_address_closed");
    let client = at(&waffles, "half-dead").of(Era::Stateless).await;
    for _ in 0..4 {
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
    }
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 4);
    assert!(waffles.records().iter().take(2).all(|record| record.outcome == Outcome::UpstreamFailed));
}

#[tokio::test]
async fn a_session_stays_at_the_endpoint_that_began_it() {
    let other = waffles_tests::McpServer::start().await;
    let waffles = Seeded::with(|server| {
        server.spec.endpoints.push(Endpoint::at(other.url().parse().unwrap()));
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(waffles.client().of(Era::Sessions).await);
    }
    for client in &clients {
        for _ in 0..3 {
            assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
        }
    }
    // Not quite half each: one that has answered slowly gets fewer.
    let (lost, kept) = (waffles.upstream.sessions().len(), other.sessions().len());
    assert_eq!((lost + kept, lost > 0, kept > 0), (12, true, true));
    let before = other.seen().len();
    waffles.upstream.kill();
    let mut statuses = Vec::new();
    for client in &clients {
        statuses.push(client.call("echo", json!({})).await.unwrap().status.as_u16());
    }
    let well = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(well, kept, "no session is taken to another endpoint");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 502 | 503)), "{statuses:?}");
    assert_eq!(other.seen().len(), before + kept);
}

const GOOD: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete"}}"#;

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_call() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let upstream = RawServer::start(move |mut connection| {
        let counted = Arc::clone(&counted);
        async move {
            // Without a word, as Node and uvicorn do.
            connection.request().await;
            connection.json(GOOD).await;
            drop(connection);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("raw", &upstream.url(), |_| {});
    })
    .await;
    let client = at(&waffles, "raw").with("mcp-protocol-version", "2025-11-25");
    for number in 1..=50 {
        let answer = client.call("x", json!({})).await.unwrap();
        assert_eq!(answer.status, 200, "call {number}: {}", answer.text());
        until("it is closed", Duration::from_secs(5), || async { closed.load(Ordering::SeqCst) == number })
            .await;
    }
    assert_eq!(upstream.requests(), 50);
}

#[tokio::test]
async fn a_call_that_may_have_been_read_is_never_sent_again() {
    for touched_only in [false, true] {
        let upstream = RawServer::start(move |mut connection| async move {
            connection.request().await;
            connection.json(GOOD).await;
            // The second one, on the connection that was kept.
            if touched_only {
                connection.touched().await;
            } else {
                connection.request().await;
            }
            connection.reset();
        })
        .await;
        let near = DataPlaneOptions { args: vec!["--zone".into(), "near".into()], ..Default::default() };
        let more = |seed: &mut waffles_tests::Seed, url: &str| {
            seed.server("raw", &upstream.url(), |server| {
                server.spec.endpoints.push(Endpoint::at(url.parse().unwrap()));
                server.spec.endpoints[0].zone = "near".into();
            });
        };
        let waffles = Seeded::made(near, |_| {}, more).await;
        let client = at(&waffles, "raw").with("mcp-protocol-version", "2025-11-25");
        assert_eq!(client.call("x", json!({})).await.unwrap().status, 200);
        let long = "x".repeat(2 << 20);
        let answer = client.call("x", json!({"long": long})).await.unwrap();
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert_eq!(answer.message()["error"]["data"]["reason"], "upstream_broke_off");
        assert_eq!(upstream.requests(), if touched_only { 1 } else { 2 });
        assert_eq!(waffles.upstream.seen().len(), 0, "the other endpoint is not asked either");
    }
}

#[tokio::test]
async fn a_server_that_answers_before_it_has_read_holds_up_no_later_call() {
    let upstream = RawServer::start(|mut connection| async move {
        connection.touched().await;
        connection.json(GOOD).await;
        // Keeps the connection open and reads no more.
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("raw", &upstream.url(), |server| {
            server.spec.timeouts.first_byte = Duration::from_secs(2)
        });
    })
    .await;
    let client = at(&waffles, "raw").with("mcp-protocol-version", "2025-11-25");
    let answer = client.call("x", json!({"long": "x".repeat(3 << 20)})).await.unwrap();
    assert_eq!(answer.status, 200);
    let started = Instant::now();
    let answer = client.call("x", json!({})).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(matches!(answer.status.as_u16(), 200 | 504), "{}", answer.text());
}

#[tokio::test]
async fn a_broken_server_does_not_hurt_its_neighbour() {
    let waffles = Seeded::and(|seed, url| {
        seed.server("other", url, |_| {});
    })
    .await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let stuck = waffles.client().of(Era::Stateless).await;
    let hung: Vec<_> = (0..100)
        .map(|_| {
            let stuck = stuck.clone();
            task::spawn("caller", async move { stuck.call("never", json!({})).await })
        })
        .collect();
    waffles.upstream.arrived("tools/call", 100).await;
    let client = at(&waffles, "other").of(Era::Stateless).await;
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    }
    hung.iter().for_each(tokio::task::JoinHandle::abort);
    until("all are given up", Duration::from_secs(2), || async { waffles.upstream.abandoned() == 100 }).await;
    assert_eq!(waffles.records().iter().filter(|record| record.outcome == Outcome::Cancelled).count(), 100);
}

#[tokio::test]
async fn a_strict_server_is_not_called_when_the_spool_is_full() {
    let args = ["--spool-max-bytes", "40000"].map(str::to_owned).to_vec();
    let options = DataPlaneOptions { args, ..DataPlaneOptions::default() };
    let strict = |server: &mut waffles_core::server::Server| server.spec.audit = AuditMode::Strict;
    let waffles = Seeded::made(options, strict, |seed, url| {
        seed.server("lax", url, |_| {});
    })
    .await;
    let client = waffles.client().of(Era::Stateless).await;
    let mut served = 0;
    let refused = loop {
        let answer = client.call("echo", json!({})).await.unwrap();
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 1000, "the spool is never full");
    };
    assert!(served > 10);
    assert_eq!((refused.status.as_u16(), refused.error_code()), (503, -32603));
    assert_eq!(refused.message()["error"]["data"]["reason"], "audit_unavailable");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 503);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "a refusal costs nothing");
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), served, "no call without a record");
    let written = waffles.records().iter().filter(|record| record.outcome == Outcome::Ok).count();
    assert_eq!(written, served, "and every call has one on disk");
    let lax = at(&waffles, "lax").of(Era::Stateless).await;
    for _ in 0..200 {
        assert_eq!(lax.call("echo", json!({})).await.unwrap().status, 200, "the others are served");
    }
}

#[tokio::test]
async fn a_draining_proxy_finishes_what_it_began() {
    let mut waffles = Seeded::start().await;
    waffles.upstream.on_tool("slow", Behaviour::Slow(Duration::from_secs(2)));
    let pause = Duration::from_millis(400);
    waffles.upstream.on_tool("steps", Behaviour::Progress { steps: 5, pause });
    let feed = waffles.upstream.on_stream("subscriptions/listen");
    let stateless = waffles.client().of(Era::Stateless).await;
    let session = waffles.client().of(Era::Sessions).await;
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let listening = task::spawn("caller", {
        let client = stateless.clone();
        async move { client.ask("sub", "subscriptions/listen", filter).await.unwrap() }
    });
    let get = task::spawn("caller", {
        let session = session.clone();
        async move { session.get().await.unwrap() }
    });
    let [slow, steps] = ["slow", "steps"].map(|tool| {
        let client = stateless.clone();
        task::spawn("caller", async move { client.call(tool, json!({"x": 1})).await.unwrap() })
    });
    waffles.upstream.arrived("tools/call", 2).await;
    feed.message(&json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged"})).await;
    until("both streams are open", Duration::from_secs(5), || async {
        waffles.proxy.metrics().await.contains("waffles_open_streams 3")
    })
    .await;
    let idle = TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    let started = Instant::now();
    let ended = waffles.proxy.stop().await;
    assert!(ended.success(), "{ended}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(slow.await.unwrap().result()["structuredContent"], json!({"x": 1}));
    let steps = steps.await.unwrap();
    assert!(steps.complete && steps.messages().len() == 6, "a stream goes on to its end");
    let last = listening.await.unwrap().message();
    let tag = json!({"io.modelcontextprotocol/subscriptionId": "sub"});
    assert_eq!(
        last,
        json!({"jsonrpc": "2.0", "id": "sub", "result": {"resultType": "complete", "_meta": tag}})
    );
    assert!(get.await.unwrap().complete, "a GET stream ends in good order");
    drop(idle);
    assert!(TcpStream::connect(waffles.proxy.mcp).await.is_err(), "nobody listens any more");
    for action in ["mcp.subscriptions/listen", "mcp.stream"] {
        let record = waffles.record_of(action);
        assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Ok, "drained"), "{action}");
    }
    assert_eq!(waffles.records_of("mcp.tools/call").len(), 2);
}

#[tokio::test]
async fn an_idle_proxy_ends_within_a_second_and_one_that_lingers_takes_calls() {
    let mut waffles = Seeded::start().await;
    waffles.client().of(Era::Stateless).await.call("echo", json!({})).await.unwrap();
    let started = Instant::now();
    assert!(waffles.proxy.stop().await.success());
    assert!(started.elapsed() < Duration::from_millis(2_500), "{:?}", started.elapsed());

    let options = |linger: &str| DataPlaneOptions {
        args: ["--linger", linger].map(str::to_owned).to_vec(),
        ..DataPlaneOptions::default()
    };
    let mut waffles = Seeded::made(options("20s"), |_| {}, |_, _| {}).await;
    waffles
        .client()
        .with("connection", "close")
        .of(Era::Stateless)
        .await
        .call("echo", json!({}))
        .await
        .unwrap();
    let started = Instant::now();
    assert!(waffles.proxy.stop().await.success());
    assert!(started.elapsed() < Duration::from_millis(2_500), "nobody is connected: {:?}", started.elapsed());

    let mut waffles = Seeded::made(options("2s"), |_| {}, |_, _| {}).await;
    let client = waffles.client().of(Era::Stateless).await;
    waffles.proxy.program.signal(rustix::process::Signal::TERM);
    let ready = McpClient::new(&format!("http://{}/ready", waffles.proxy.mcp));
    until("it is not ready any more", Duration::from_secs(1), || async {
        ready.get().await.is_ok_and(|answer| answer.status == 503)
    })
    .await;
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200, "load balancers are slow");
    assert!(waffles.proxy.program.wait(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn a_grace_period_that_is_over_cuts_off_what_is_left() {
    let args = ["--grace", "1s"].map(str::to_owned).to_vec();
    let mut waffles =
        Seeded::made(DataPlaneOptions { args, ..DataPlaneOptions::default() }, |_| {}, |_, _| {}).await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let client = waffles.client().of(Era::Stateless).await;
    let call = task::spawn("caller", async move { client.call("never", json!({})).await });
    waffles.upstream.arrived("tools/call", 1).await;
    let started = Instant::now();
    assert!(waffles.proxy.stop().await.success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(call.await.unwrap().is_err());
    assert_eq!(waffles.record().outcome, Outcome::Cancelled, "it is written down all the same");
}

#[tokio::test]
async fn every_answer_that_a_client_got_is_in_the_spool_of_a_killed_proxy() {
    for round in 0..5 {
        let mut waffles = Seeded::start().await;
        waffles
            .upstream
            .on_method("tools/call", if round % 2 == 0 { Behaviour::Echo } else { Behaviour::EchoSse });
        let answered: Arc<Mutex<HashSet<String>>> = Arc::default();
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let (client, answered) = (waffles.client(), Arc::clone(&answered));
                task::spawn("caller", async move {
                    let client = client.of(Era::Stateless).await;
                    for call in 0.. {
                        let name = format!("tool-{caller}-{call}");
                        let Ok(answer) = client.call(&name, json!({})).await else { return };
                        let whole =
                            answer.messages().pop().is_some_and(|message| message.get("result").is_some());
                        if !whole {
                            return;
                        }
                        answered.lock().insert(name);
                    }
                })
            })
            .collect();
        eventually(Duration::from_secs(20), || async {
            let count = answered.lock().len();
            anyhow::ensure!(count >= 200 + 37 * round, "{count} answers");
            Ok(())
        })
        .await;
        waffles.proxy.kill9().await;
        for caller in callers {
            caller.await.unwrap();
        }
        let records = waffles.records_of("mcp.tools/call");
        let written: HashSet<String> = records.iter().map(|record| record.target.clone()).collect();
        let missing: Vec<String> = answered.lock().difference(&written).cloned().collect();
        assert_eq!(missing, Vec::<String>::new(), "round {round}");
        assert_eq!(written.len(), records.len(), "each once");
        // The next start goes on behind them.
        waffles.proxy.restart().await;
        waffles.proxy.ready().await;
        let client = waffles.client().of(Era::Stateless).await;
        assert_eq!(client.call("after", Value::Null).await.unwrap().status, 200);
        assert_eq!(waffles.records_of("mcp.tools/call").len(), records.len() + 1);
    }
}

#[tokio::test]
async fn a_proxy_without_a_configuration_lets_nobody_in() {
    let mut proxy = waffles_tests::DataPlane::start_seeded(|_| {}, DataPlaneOptions::default()).await;
    let client = McpClient::new(&proxy.server_url("demo")).with_bearer("x");
    let answer = client.post("{}").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.error_code()), (503, -32603));
    assert_eq!(answer.header("retry-after"), Some("1"));
    let ready = McpClient::new(&format!("http://{}/ready", proxy.mcp)).get().await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(proxy.program.is_running());
}
