//! The two planes together: a call from registry to audit trail, changes that reach every proxy, and either plane
//! killed in the middle of traffic.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use waffles_proto::audit::v1::{EventFilter, Outcome};
use waffles_proto::auth::v1::KeyLimits;
use waffles_proto::registry::v1::ToolFilter;
use waffles_tests::waffles::{endpoint, spec};
use waffles_tests::{Behaviour, Era, McpClient, McpServer, PATIENCE, Waffles, WafflesOptions, eventually};

/// Calls `echo` without end from several clients, and remembers what was answered and what failed.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<String>>>,
    failed: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Traffic {
    fn start(url: &str, credential: &str, clients: usize) -> Self {
        let (stop, answered, failed) =
            <(Arc<AtomicBool>, Arc<Mutex<Vec<String>>>, Arc<Mutex<Vec<String>>>)>::default();
        let tasks = (0..clients)
            .map(|_| {
                let (stop, answered, failed) = (stop.clone(), answered.clone(), failed.clone());
                let client = McpClient::new(url).with_bearer(credential);
                waffles_runtime::task::spawn("traffic", async move {
                    let client = client.of(Era::Stateless).await;
                    while !stop.load(Ordering::SeqCst) {
                        let mark = format!("mark-{}", NEXT.fetch_add(1, Ordering::SeqCst));
                        match client.call(&mark, json!({"message": mark})).await {
                            Ok(answer)
                                if answer.status == 200
                                    && answer.complete
                                    && is_result(&answer.message()) =>
                            {
                                answered.lock().push(mark);
                            }
                            Ok(answer) => {
                                failed.lock().push(format!("{mark}: {} {}", answer.status, answer.text()))
                            }
                            Err(error) => failed.lock().push(format!("{mark}: {error:#}")),
                        }
                    }
                })
            })
            .collect();
        Self { stop, answered, failed, tasks }
    }

    fn count(&self) -> usize {
        self.answered.lock().len()
    }

    async fn reach(&self, count: usize) {
        eventually(PATIENCE, || async {
            ensure!(
                self.count() >= count,
                "only {} answers; failed: {:?}",
                self.count(),
                self.failed.lock().last()
            );
            Ok(())
        })
        .await;
    }

    async fn stop(self) -> (Vec<String>, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        (std::mem::take(&mut *self.answered.lock()), std::mem::take(&mut *self.failed.lock()))
    }
}

/// A server that answers a call of whatever tool.
async fn any_tool() -> McpServer {
    let server = McpServer::start().await;
    server.on_method("tools/call", Behaviour::Echo);
    server
}

fn is_result(message: &Value) -> bool {
    message.get("result").is_some()
}

/// How often each tool name stands in the audit trail.
async fn audited(waffles: &Waffles) -> anyhow::Result<Vec<String>> {
    let calls = EventFilter { action: "mcp.tools/call".into(), ..EventFilter::default() };
    let events = waffles.audit_search(calls).await?;
    Ok(events.into_iter().filter(|e| e.outcome() == Outcome::Ok).map(|e| e.target).collect())
}

#[tokio::test]
async fn a_call_goes_from_the_registry_to_the_audit_trail() {
    let server = McpServer::start().await;
    let waffles = Waffles::start().await;
    waffles.add_server("demo", &server.url()).await;
    for era in Era::BOTH {
        let answer = waffles.client("demo").of(era).await.call("echo", json!({"n": 1})).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let calls = EventFilter { action: "mcp.tools/call".into(), ..EventFilter::default() };
    let events = waffles.audited(calls, 2).await;
    assert_eq!(events.len(), 2);
    for event in events {
        assert_eq!(event.outcome(), Outcome::Ok);
        assert_eq!(event.target, "echo");
        assert_eq!(event.rule, "role:admin");
        assert_eq!(event.api_key_id, waffles.admin.id);
        assert_eq!(event.proxy_id, waffles.proxies[0].proxy_id);
        assert!(event.request_payload.is_empty() && event.response_payload.is_empty());
    }
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn the_same_call_on_postgres() {
    let server = McpServer::start().await;
    let waffles = Waffles::on_postgres().await;
    waffles.add_server("demo", &server.url()).await;
    let answer = waffles.client("demo").of(Era::Stateless).await.call("echo", json!({"n": 1})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let calls = EventFilter { action: "mcp.tools/call".into(), ..EventFilter::default() };
    assert_eq!(waffles.audited(calls, 1).await.len(), 1);
}

#[tokio::test]
async fn a_revoked_key_and_a_disabled_server_are_refused_on_every_proxy_within_a_second() {
    let server = McpServer::start().await;
    let waffles = Waffles::with(WafflesOptions { proxies: 2, ..WafflesOptions::default() }).await;
    waffles.add_server("demo", &server.url()).await;
    let key = waffles.key(KeyLimits::default()).await;
    let ask = |proxy: usize, credential: &str| {
        let client = McpClient::new(&waffles.proxies[proxy].server_url("demo")).with_bearer(credential);
        async move { client.of(Era::Stateless).await.call("echo", json!({})).await.unwrap().status.as_u16() }
    };
    for proxy in 0..2 {
        assert_eq!(ask(proxy, &key.secret).await, 200);
    }
    waffles.revoke(&key).await;
    let revoked = Instant::now();
    for proxy in 0..2 {
        eventually(Duration::from_secs(1), || async {
            let status = ask(proxy, &key.secret).await;
            ensure!(status == 401, "proxy {proxy} answers {status} after {:?}", revoked.elapsed());
            Ok(())
        })
        .await;
    }
    waffles.set_enabled("demo", false).await;
    for proxy in 0..2 {
        eventually(Duration::from_secs(1), || async {
            let status = ask(proxy, &waffles.admin.secret).await;
            ensure!(status == 404, "proxy {proxy} answers {status}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_revoked_key_stops_an_open_stream() {
    let server = McpServer::start().await;
    let waffles = Waffles::start().await;
    waffles.add_server("demo", &server.url()).await;
    let key = waffles.key(KeyLimits::default()).await;
    let client = McpClient::new(&waffles.proxies[0].server_url("demo")).with_bearer(&key.secret);
    let stream = client.of(Era::Sessions).await.get_stream().await.unwrap();
    waffles.revoke(&key).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.rest()).await;
    assert!(ended.is_ok(), "the stream is open five seconds later");
}

#[tokio::test]
async fn what_cannot_be_called_is_not_listed() {
    let server = McpServer::start().await;
    let waffles = Waffles::start().await;
    let tools = Some(ToolFilter { allow: vec![], deny: vec!["add".into()] });
    let endpoints = vec![endpoint(&server.url())];
    waffles
        .add(waffles_proto::registry::v1::ServerSpec { name: "demo".into(), endpoints, tools, ..spec() })
        .await;
    for era in Era::BOTH {
        let client = waffles.client("demo").of(era).await;
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let names: Vec<_> =
            listed["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
        assert!(names.contains(&json!("echo")) && !names.contains(&json!("add")), "{names:?}");
        let refused = client.call("add", json!({"a": 1, "b": 2})).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.error_code()), (200, -32602));
    }
    assert!(server.seen_of("tools/call").is_empty());
}

#[tokio::test]
async fn a_killed_control_plane_fails_no_call_and_loses_no_record() {
    let server = any_tool().await;
    let mut waffles = Waffles::with(WafflesOptions { proxies: 2, ..WafflesOptions::default() }).await;
    waffles.add_server("demo", &server.url()).await;
    let traffic = Traffic::start(&waffles.proxies[0].server_url("demo"), &waffles.admin.secret, 4);
    traffic.reach(200).await;
    waffles.control_plane.kill9().await;
    let at_kill = traffic.count();
    traffic.reach(at_kill + 500).await;

    // A proxy that starts now knows only what is on its disk.
    waffles.proxies[1].kill9().await;
    waffles.proxies[1].restart().await;
    waffles.proxies[1].ready_within(Duration::from_secs(1)).await;
    let client = McpClient::new(&waffles.proxies[1].server_url("demo")).with_bearer(&waffles.admin.secret);
    let alone = client.of(Era::Stateless).await.call("alone", json!({})).await.unwrap();
    assert_eq!(alone.status, 200, "{}", alone.text());

    waffles.control_plane.restart().await;
    let at_return = traffic.count();
    traffic.reach(at_return + 200).await;
    let (mut answered, failed) = traffic.stop().await;
    assert!(failed.is_empty(), "{} calls failed: {:?}", failed.len(), failed.first());
    answered.push("alone".into());
    eventually(PATIENCE, || async {
        let events = audited(&waffles).await?;
        let distinct: HashSet<_> = events.iter().collect();
        ensure!(distinct.len() == events.len(), "{} records are doubled", events.len() - distinct.len());
        let missing: Vec<_> = answered.iter().filter(|mark| !distinct.contains(mark)).collect();
        ensure!(missing.is_empty(), "{} of {} records are missing", missing.len(), answered.len());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_proxy_killed_a_hundred_times_loses_no_answered_call() {
    const KILLS: usize = 100;
    let server = any_tool().await;
    let mut waffles = Waffles::start().await;
    waffles.add_server("demo", &server.url()).await;
    let mut answered = Vec::new();
    for kill in 0..KILLS {
        let traffic = Traffic::start(&waffles.proxies[0].server_url("demo"), &waffles.admin.secret, 4);
        // Not always after the same number of calls, so that the kill falls on different steps.
        traffic.reach(8 + kill % 7).await;
        waffles.proxies[0].kill9().await;
        answered.extend(traffic.stop().await.0);
        waffles.proxies[0].restart().await;
        waffles.proxies[0].ready().await;
    }
    assert!(answered.len() >= KILLS * 8);
    eventually(PATIENCE, || async {
        let events = audited(&waffles).await?;
        let distinct: HashSet<_> = events.iter().collect();
        ensure!(distinct.len() == events.len(), "{} records are doubled", events.len() - distinct.len());
        let missing: Vec<_> = answered.iter().filter(|mark| !distinct.contains(mark)).collect();
        ensure!(
            missing.is_empty(),
            "{} of {} are missing: {:?}",
            missing.len(),
            answered.len(),
            missing.first()
        );
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_postgres_fails_no_call_and_changes_nothing() {
    let postgres = waffles_tests::Postgres::start().await;
    let server = any_tool().await;
    let control_plane = waffles_tests::ControlPlaneOptions {
        database_url: Some(postgres.database().await),
        ..waffles_tests::ControlPlaneOptions::default()
    };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    waffles.add_server("demo", &server.url()).await;
    let traffic = Traffic::start(&waffles.proxies[0].server_url("demo"), &waffles.admin.secret, 2);
    traffic.reach(50).await;
    postgres.kill9();
    let at_kill = traffic.count();
    traffic.reach(at_kill + 200).await;
    let asked = Instant::now();
    assert!(waffles.audit_search(EventFilter::default()).await.is_err());
    assert!(asked.elapsed() < Duration::from_secs(5), "a dead database was waited for {:?}", asked.elapsed());
    postgres.restart().await;
    let at_return = traffic.count();
    traffic.reach(at_return + 50).await;
    let (answered, failed) = traffic.stop().await;
    assert!(failed.is_empty(), "{} calls failed: {:?}", failed.len(), failed.first());
    eventually(PATIENCE, || async {
        let events = audited(&waffles).await?;
        let distinct: HashSet<_> = events.iter().collect();
        ensure!(distinct.len() == events.len(), "{} records are doubled", events.len() - distinct.len());
        ensure!(answered.iter().all(|mark| distinct.contains(mark)), "records are missing");
        Ok(())
    })
    .await;
}
