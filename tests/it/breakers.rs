//! Servers that hang, are slow, break off or flood: they are left alone, their calls get exactly one answer and run at most
//! once, and those beside them do not notice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use waffles_core::resilience::{Breaker, Resilience};
use waffles_core::server::{Endpoint, Marks, Server, ToolMark};
use waffles_runtime::task;
use waffles_tests::programs::{DataPlaneOptions, free_port, http_client};
use waffles_tests::{Behaviour, Era, Figure, McpClient, McpServer, RawServer, Seeded, eventually, until};

/// Callers of one server at the same time, at the most.
const TOGETHER: usize = 40;
const SOON: Duration = Duration::from_secs(10);

/// Opens after three failures, for a time that a test can wait for.
fn quick(server: &mut Server) {
    server.spec.resilience.breaker =
        Breaker { failures: 3, open: Duration::from_millis(300), trials: 1, ..Breaker::default() };
}

fn at(waffles: &Seeded, server: &str) -> McpClient {
    McpClient::new(&waffles.proxy.server_url(server)).with_bearer(&waffles.key)
}

fn reason(answer: &waffles_tests::Answer) -> (u16, String) {
    let reason = answer.message()["error"]["data"]["reason"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), reason)
}

/// What the admin port says of a server; null where it was not called yet.
async fn upstreams(waffles: &Seeded, server: &str) -> Value {
    let answer = http_client().get(waffles.proxy.admin_url("/upstreams")).send().await.unwrap();
    let report: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let found = report["servers"].as_array().unwrap().iter().find(|known| known["server"] == server);
    found.cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_and_asked_again_when_it_may_be_well() {
    let waffles = Seeded::with(quick).await;
    waffles.upstream.on_tool("sick", Behaviour::HangUp);
    let client = waffles.client().of(Era::Stateless).await;
    for _ in 0..3 {
        assert_eq!(
            reason(&client.call("sick", json!({})).await.unwrap()),
            (502, "upstream_broke_off".into())
        );
    }
    let started = Instant::now();
    let answer = client.call("sick", json!({})).await.unwrap();
    assert_eq!(reason(&answer), (503, "circuit_open".into()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.message()["error"]["data"]["may_have_run"], false);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 3, "it was left alone");
    let seen = upstreams(&waffles, "demo").await;
    let endpoint = &seen["endpoints"][0];
    assert_eq!(
        (&endpoint["reason"], &endpoint["last_error"]),
        (&json!("failures"), &json!("upstream_broke_off"))
    );
    let counted = "waffles_endpoints_left_alone_total{server=\"demo\",reason=\"failures\"} 1";
    assert!(waffles.proxy.metrics().await.contains(counted));
    waffles.upstream.on_tool("sick", Behaviour::Echo);
    eventually(SOON, || async {
        let answer = client.call("sick", json!({})).await?;
        anyhow::ensure!(answer.status == 200, "{}", answer.text());
        anyhow::Ok(())
    })
    .await;
    assert_eq!(upstreams(&waffles, "demo").await["endpoints"][0]["circuit"], "closed");
}

#[tokio::test]
async fn one_sick_endpoint_of_several_costs_a_few_calls_and_then_none() {
    let sick = McpServer::start().await;
    let waffles = Seeded::with(|server| {
        quick(server);
        server.spec.resilience.breaker.open = Duration::from_secs(60);
        server.spec.resilience.breaker.open_most = Duration::from_secs(60);
        server.spec.endpoints.push(Endpoint::at(sick.url().parse().unwrap()));
    })
    .await;
    sick.on_tool("echo", Behaviour::HangUp);
    let client = waffles.client().of(Era::Stateless).await;
    let mut statuses: HashMap<u16, usize> = HashMap::new();
    for _ in 0..60 {
        *statuses.entry(client.call("echo", json!({})).await.unwrap().status.as_u16()).or_default() += 1;
    }
    assert_eq!(statuses.get(&502), Some(&3), "{statuses:?}");
    assert_eq!(statuses.get(&200), Some(&57), "{statuses:?}");
    assert_eq!(sick.seen_of("tools/call").len(), 3);
}

#[tokio::test]
async fn an_endpoint_in_the_proxys_own_zone_comes_first() {
    let (near, far) = (McpServer::start().await, McpServer::start().await);
    let options =
        DataPlaneOptions { args: vec!["--zone".into(), "eu-1".into()], ..DataPlaneOptions::default() };
    let endpoint =
        |url: String, zone: &str| Endpoint { zone: zone.into(), ..Endpoint::at(url.parse().unwrap()) };
    let waffles = Seeded::made(
        options,
        |server| {
            quick(server);
            server.spec.endpoints = vec![endpoint(far.url(), "eu-2"), endpoint(near.url(), "eu-1")];
        },
        |_, _| {},
    )
    .await;
    let client = waffles.client().of(Era::Stateless).await;
    for _ in 0..10 {
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
    }
    assert_eq!((near.seen_of("tools/call").len(), far.seen_of("tools/call").len()), (10, 0));
    near.kill();
    for _ in 0..10 {
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200, "the other zone takes over");
    }
}

const GOOD: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"resultType":"complete"}}"#;

#[tokio::test]
async fn what_lists_or_is_marked_is_sent_again_and_no_other_call_is() {
    let mark = |read_only, idempotent| Marks { read_only, idempotent, ..Marks::default() };
    let marks = [
        ("get_*", mark(Some(true), None)),
        ("put", mark(None, Some(true))),
        ("odd", mark(Some(false), None)),
    ];
    let call = |tool: &str| ("tools/call", json!({"name": tool, "arguments": {}}));
    for ((method, params), sent) in [
        (("tools/list", json!({})), 2),
        (call("get_one"), 2),
        (call("put"), 2),
        (call("odd"), 1),
        (call("send_mail"), 1),
    ] {
        // Reads the first message that asks for something and breaks off; answers every other one.
        let broken = Arc::new(AtomicUsize::new(0));
        let upstream = RawServer::start(move |mut connection| {
            let broken = Arc::clone(&broken);
            async move {
                while connection.request().await.is_some() {
                    if broken.fetch_add(1, Ordering::SeqCst) == 0 {
                        return connection.reset();
                    }
                    connection.json(GOOD).await;
                }
            }
        })
        .await;
        let waffles = Seeded::and(|seed, _| {
            seed.server("raw", &upstream.url(), |server| {
                server.spec.marks = marks
                    .iter()
                    .map(|(pattern, marks)| ToolMark { pattern: (*pattern).into(), marks: *marks })
                    .collect();
            });
        })
        .await;
        let client = at(&waffles, "raw").with("mcp-protocol-version", "2025-11-25");
        let answer = client.ask(1, method, params.clone()).await.unwrap();
        assert_eq!(upstream.requests(), sent, "{method} {params}: {}", answer.text());
        if sent == 2 {
            assert_eq!(answer.status, 200, "{method} {params}: {}", answer.text());
        } else {
            assert_eq!(reason(&answer), (502, "upstream_broke_off".into()));
            assert_eq!(answer.message()["error"]["data"]["may_have_run"], true);
        }
        assert_eq!(waffles.records().len(), 1, "{method}: one record, however many attempts");
    }
}

#[tokio::test]
async fn what_is_sent_again_has_a_budget() {
    let waffles = Seeded::with(|server| {
        server.spec.resilience.breaker = Breaker { window: Duration::from_secs(60), ..Breaker::off() };
        server.spec.resilience.retry.budget_least = 0;
        server.spec.resilience.retry.budget_percent = 10;
    })
    .await;
    let client = waffles.client().of(Era::Stateless).await;
    for _ in 0..30 {
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
    }
    waffles.upstream.on_method("tools/list", Behaviour::HangUp);
    let before = waffles.upstream.seen_of("tools/list").len();
    for _ in 0..20 {
        client.ask(1, "tools/list", json!({})).await.unwrap();
    }
    let again = waffles.upstream.seen_of("tools/list").len() - before - 20;
    assert!((3..=6).contains(&again), "{again} of 20 were sent again, with 30 to 55 messages in all");
}

#[tokio::test]
async fn a_server_that_says_when_to_come_back_is_left_alone_until_then() {
    let waffles = Seeded::with(|server| server.spec.resilience.breaker.trials = 1).await;
    let headers = vec![("retry-after".to_owned(), "2".to_owned())];
    waffles.upstream.on_tool("busy", Behaviour::Raw { status: 503, headers, body: "".into() });
    let client = waffles.client().of(Era::Stateless).await;
    let started = Instant::now();
    let answer = client.call("busy", json!({})).await.unwrap();
    assert_eq!(reason(&answer), (502, "upstream_failed".into()));
    assert_eq!(answer.header("retry-after"), Some("2"));
    let answer = client.call("echo", json!({})).await.unwrap();
    assert_eq!(reason(&answer), (503, "circuit_open".into()));
    assert_eq!(upstreams(&waffles, "demo").await["endpoints"][0]["reason"], "retry_after");
    let calls = waffles.upstream.seen_of("tools/call").len();
    assert_eq!(calls, 1);
    until("it is asked again", SOON, || async {
        client.call("echo", json!({})).await.unwrap().status == 200
    })
    .await;
    assert!(started.elapsed() >= Duration::from_millis(1_900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn calls_beyond_the_cap_wait_in_line_and_those_beyond_the_line_are_refused_at_once() {
    let waffles = Seeded::with(|server| {
        server.spec.resilience = Resilience {
            max_concurrent: 2,
            queue: 2,
            queue_wait: Duration::from_secs(20),
            ..Resilience::default()
        };
    })
    .await;
    waffles.upstream.on_tool("slow", Behaviour::Slow(Duration::from_secs(2)));
    let client = waffles.client().of(Era::Stateless).await;
    let call = |number: u64| {
        let client = client.clone();
        task::spawn("caller", async move {
            let started = Instant::now();
            let answer = client.call("slow", json!({"number": number})).await.unwrap();
            (answer, started.elapsed())
        })
    };
    let first: Vec<_> = (0..4).map(call).collect();
    until("two are under way, and two wait", SOON, || async {
        let seen = upstreams(&waffles, "demo").await;
        (&seen["under_way"], &seen["waiting"]) == (&json!(2), &json!(2))
    })
    .await;
    let (refused, took) = call(5).await.unwrap();
    assert_eq!(reason(&refused), (503, "server_busy".into()));
    assert!(refused.header("retry-after").is_some() && took < Duration::from_secs(1), "{took:?}");
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 2, "no more than two at a time");
    for caller in first {
        assert_eq!(caller.await.unwrap().0.status, 200);
    }
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 4);
    let metrics = waffles.proxy.metrics().await;
    assert!(metrics.contains("waffles_queue_refusals_total{server=\"demo\"} 1"), "{metrics}");
}

#[tokio::test]
async fn neither_who_listens_nor_a_call_that_asks_a_person_holds_a_place() {
    let waffles = Seeded::with(|server| {
        server.spec.resilience.max_concurrent = 1;
        server.spec.resilience.queue = 0;
    })
    .await;
    let params = json!({"message": "?"});
    waffles.upstream.on_tool("ask", Behaviour::Ask { method: "elicitation/create".into(), params });
    let client = waffles.client().of(Era::Sessions).await;
    let _listening = client.get_stream().await.unwrap();
    let mut stream = client.ask_stream(1, "tools/call", json!({"name": "ask"})).await.unwrap();
    let question = stream.message().await.unwrap();
    let answer = client.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}});
    client.post(reply.to_string()).await.unwrap();
    assert!(stream.message().await.unwrap()["result"].is_object());
}

#[tokio::test]
async fn what_waits_for_a_place_waits_no_longer_than_it_may() {
    let waffles = Seeded::with(|server| {
        server.spec.resilience.max_concurrent = 1;
        server.spec.resilience.queue_wait = Duration::from_millis(300);
    })
    .await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let client = waffles.client().of(Era::Stateless).await;
    let stuck = task::spawn("caller", {
        let client = client.clone();
        async move { client.call("never", json!({})).await }
    });
    waffles.upstream.arrived("tools/call", 1).await;
    let started = Instant::now();
    assert_eq!(reason(&client.call("echo", json!({})).await.unwrap()), (503, "server_busy".into()));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(5), "{took:?}");
    // Who goes away gives the place back.
    stuck.abort();
    until("there is a place", SOON, || async { client.call("echo", json!({})).await.unwrap().status == 200 })
        .await;
}

/// A hung, a slow, a resetting and a flooding server, and one that cannot be reached, under many callers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_servers_give_one_answer_to_each_call_run_nothing_twice_and_hurt_only_themselves() {
    #[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
    let calls: usize = std::env::var("WAFFLES_TEST_BROKEN_CALLS").map_or(40, |text| text.parse().unwrap());
    let faults = [
        ("hung", Behaviour::Never),
        ("slow", Behaviour::Slow(Duration::from_millis(200))),
        ("resetting", Behaviour::ResetMidStream),
        ("hanging-up", Behaviour::HangUp),
        ("flooding", Behaviour::Flood(2_000)),
        ("failing", Behaviour::Raw { status: 500, headers: Vec::new(), body: "".into() }),
    ];
    let mut servers = Vec::new();
    for (name, behaviour) in faults {
        let server = McpServer::start().await;
        server.on_tool("work", behaviour);
        servers.push((name, server));
    }
    let dead = format!("http://127.0.0.1:{}/mcp", free_port());
    let waffles = Seeded::and(|seed, _| {
        for (name, server) in &servers {
            seed.server(name, &server.url(), |server| {
                server.spec.timeouts.first_byte = Duration::from_secs(1);
                server.spec.resilience.max_concurrent = 8;
                server.spec.resilience.queue = 8;
            });
        }
        seed.server("unreachable", &dead, |_| {});
    })
    .await;
    waffles.upstream.on_tool("work", Behaviour::Echo);
    let mut callers = Vec::new();
    let names: Vec<&str> = servers.iter().map(|(name, _)| *name).chain(["unreachable", "demo"]).collect();
    for era in Era::BOTH {
        for name in &names {
            let client = match *name {
                // A handshake with it fails, of course.
                "unreachable" => at(&waffles, name).of(Era::Stateless).await,
                _ => at(&waffles, name).of(era).await,
            };
            let together = calls.min(TOGETHER);
            for first in 0..together {
                let (client, name) = (client.clone(), (*name).to_owned());
                callers.push(task::spawn("caller", async move {
                    let (mut asked, mut well) = (0, 0);
                    for number in (first..calls).step_by(together) {
                        let arguments = json!({"number": format!("{era:?} {number}")});
                        let answer = client.call("work", arguments).await.unwrap();
                        assert!(answer.complete, "{name}");
                        let answers =
                            answer.messages().iter().filter(|message| message.get("id").is_some()).count();
                        assert_eq!(answers, 1, "{name}: {}", answer.text());
                        asked += 1;
                        well += usize::from(answer.message().get("result").is_some());
                    }
                    (name, asked, well)
                }));
            }
        }
    }
    let mut asked = 0;
    let mut well: HashMap<String, usize> = HashMap::new();
    for caller in callers {
        let (name, made, good) = caller.await.unwrap();
        asked += made;
        *well.entry(name).or_default() += good;
    }
    let mut repeated = 0;
    for (name, server) in
        servers.iter().map(|(name, server)| (*name, server)).chain([("demo", &waffles.upstream)])
    {
        let mut numbers: HashMap<String, usize> = HashMap::new();
        for seen in server.seen_of("tools/call") {
            *numbers.entry(seen.json()["params"]["arguments"]["number"].to_string()).or_default() += 1;
        }
        let again = numbers.values().filter(|count| **count > 1).count();
        assert_eq!(again, 0, "{name} ran calls twice");
        repeated += again;
    }
    Figure {
        promise: "P22".into(),
        what: "calls of broken servers: one answer each, none run twice".into(),
        goal: "exactly 1 answer, 0 repeated".into(),
        measured: format!("{asked} answers to {asked} calls, {repeated} repeated"),
        extent: format!("{calls} calls of each of 8 servers in each era"),
        met: repeated == 0,
    }
    .note();
    assert_eq!(well.get("demo"), Some(&(2 * calls)), "the healthy one answers every call: {well:?}");
    assert_eq!((well.get("hung"), well.get("unreachable")), (Some(&0), Some(&0)), "{well:?}");
}
