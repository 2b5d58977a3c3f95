//! Servers that go down and come back, as the proxies near them see it, and who of them looks.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::Code;
use waffles_proto::registry::v1::health_service_client::HealthServiceClient;
use waffles_proto::registry::v1::{
    CheckServerRequest, EndpointFinding, GetServerHealthRequest, GetServerRequest, HealthChange, HealthCheck,
    HealthPolicy, HealthState, ListServersRequest, ServerHealth, ServerSpec,
};
use waffles_tests::programs::{command, http_client};
use waffles_tests::waffles::{Authorized, endpoint, spec};
use waffles_tests::{Behaviour, Era, Figure, McpServer, PATIENCE, Waffles, WafflesOptions, eventually};

/// Every second, down after two, up after one.
fn often() -> HealthPolicy {
    HealthPolicy {
        interval: Some(Duration::from_secs(1).try_into().unwrap()),
        timeout: Some(Duration::from_secs(2).try_into().unwrap()),
        fall: 2,
        rise: 1,
        ..HealthPolicy::default()
    }
}

/// Once, and then when it is asked for.
fn once() -> HealthPolicy {
    HealthPolicy { interval: Some(Duration::from_secs(3600).try_into().unwrap()), ..often() }
}

fn with(name: &str, url: &str, policy: HealthPolicy) -> ServerSpec {
    ServerSpec {
        name: name.into(),
        endpoints: vec![endpoint(url)],
        health: Some(policy),
        transport: 0,
        ..spec()
    }
}

fn service(waffles: &Waffles) -> HealthServiceClient<Authorized> {
    HealthServiceClient::new(waffles.authorized(&waffles.admin.secret))
}

async fn health(waffles: &Waffles, name: &str) -> ServerHealth {
    let request = GetServerHealthRequest { name: name.into() };
    service(waffles).get_server_health(request).await.unwrap().into_inner().health.unwrap()
}

/// Has it looked at, and gives what was found at its first endpoint, by the first proxy.
async fn look(waffles: &Waffles, name: &str) -> (ServerHealth, EndpointFinding) {
    let request = CheckServerRequest { name: name.into() };
    let health = service(waffles).check_server(request).await.unwrap().into_inner().health.unwrap();
    assert!(health.proxies.iter().all(|view| view.fresh), "{health:#?}");
    let found = health.proxies[0].endpoints[0].clone();
    (health, found)
}

fn state(health: &ServerHealth) -> (HealthState, String) {
    let summary = health.summary.clone().unwrap_or_default();
    (summary.state(), summary.reason)
}

async fn becomes(waffles: &Waffles, name: &str, wanted: HealthState, reason: &str) -> ServerHealth {
    eventually(PATIENCE, || async {
        let health = health(waffles, name).await;
        ensure!(state(&health) == (wanted, reason.to_owned()), "it is {health:#?}");
        Ok(health)
    })
    .await
}

#[tokio::test]
async fn a_server_that_goes_is_down_and_one_that_comes_back_is_up() {
    let (mut server, waffles) = (McpServer::start().await, Waffles::start().await);
    waffles.add(with("demo", &server.url(), often())).await;
    let up = becomes(&waffles, "demo", HealthState::Up, "").await;
    assert_eq!(up.proxies[0].endpoints[0].saw, "2026-07-28 without sessions");
    assert_eq!(up.proxies[0].proxy, "proxy-0");
    server.kill();
    let killed = Instant::now();
    becomes(&waffles, "demo", HealthState::Down, "unreachable").await;
    let took = killed.elapsed();
    Figure {
        promise: "health".into(),
        what: "from the end of a server to the operator's list, at a check a second and fall 2".into(),
        goal: "≤ 4 s".into(),
        measured: format!("{:.2} s", took.as_secs_f64()),
        extent: "1 kill".into(),
        met: took <= Duration::from_secs(4),
    }
    .note();
    let listed = waffles.registry().list_servers(ListServersRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.servers[0].health.as_ref().unwrap().state(), HealthState::Down);
    let metrics = waffles.proxies[0].metrics().await;
    let gauge = "waffles_server_health{tenant=\"default\",server=\"demo\"} 1";
    assert!(metrics.contains(gauge), "{metrics}");
    server.restart().await;
    let back = becomes(&waffles, "demo", HealthState::Up, "").await;
    let history: Vec<HealthState> = back.history.iter().map(HealthChange::state).collect();
    assert_eq!(history[..3], [HealthState::Up, HealthState::Down, HealthState::Up], "{back:#?}");

    // One that is disabled is nobody's business.
    waffles.set_enabled("demo", false).await;
    becomes(&waffles, "demo", HealthState::Unknown, "disabled").await;
    waffles.settled().await;
    let before = server.seen_of("server/discover").len();
    waffles.set_enabled("demo", true).await;
    server.arrived("server/discover", before + 1).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
}

#[tokio::test]
async fn a_check_that_is_asked_for_is_made_at_once() {
    let (mut server, waffles) = (McpServer::start().await, Waffles::start().await);
    waffles.add(with("demo", &server.url(), once())).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
    server.kill();
    let (first, found) = look(&waffles, "demo").await;
    assert_eq!((found.state(), found.reason.as_str()), (HealthState::Down, "unreachable"));
    assert_eq!(state(&first).0, HealthState::Up, "one of two");
    let (second, _) = look(&waffles, "demo").await;
    assert_eq!(state(&second), (HealthState::Down, "unreachable".into()));
    server.restart().await;

    // The same by REST and on the command line.
    let url = waffles.control_plane.http_url("/api/v1/servers/demo/health");
    let answer = http_client().post(&url).bearer_auth(&waffles.admin.secret).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(
        (&answer["state"], &answer["proxies"][0]["fresh"]),
        (&json!("up"), &json!(true)),
        "{answer:#}"
    );
    let shown: Value = http_client()
        .get(&url)
        .bearer_auth(&waffles.admin.secret)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(shown["history"][0]["state"], "up");
    let folder = TempDir::new().unwrap();
    let (grpc, key) = (waffles.control_plane.grpc_url(), &waffles.admin.secret);
    let context = format!("[contexts.here]\ngrpc = {grpc:?}\napi_key = {key:?}\n");
    std::fs::write(folder.path().join("wafflectl.toml"), context).unwrap();
    let say = async |now: &[&str]| {
        let mut wafflectl = command("wafflectl", None);
        wafflectl.arg("--config").arg(folder.path().join("wafflectl.toml"));
        wafflectl.args([&["server", "health", "demo"], now].concat());
        let output = tokio::time::timeout(PATIENCE, wafflectl.output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = say(&["--now"]).await;
    assert!(code == Some(0) && text.contains("2026-07-28 without sessions"), "{text}");
    server.kill();
    let (code, text) = say(&["--now"]).await;
    assert!(code == Some(1) && text.contains("down (unreachable)"), "{text}");
    let (code, text) = say(&[]).await;
    assert!(code == Some(0) && text.contains("handshake every 3600000 ms"), "{text}");
}

#[tokio::test]
async fn where_nobody_can_look_that_is_said() {
    let options = WafflesOptions { proxies: 0, ..WafflesOptions::default() };
    let waffles = Waffles::with(options).await;
    waffles.add(with("demo", "http://127.0.0.1:9/mcp", often())).await;
    let check = async |name: &str| {
        let request = CheckServerRequest { name: name.into() };
        service(&waffles).check_server(request).await.unwrap_err()
    };
    let refused = check("demo").await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no proxy that may serve demo is connected"), "{refused}");
    assert_eq!(state(&health(&waffles, "demo").await), (HealthState::Unknown, "no_report".into()));
    waffles.set_enabled("demo", false).await;
    assert!(check("demo").await.message().contains("is disabled"));
    waffles.add(with("quiet", "http://127.0.0.1:9/mcp", spec().health.unwrap())).await;
    assert!(check("quiet").await.message().contains("checks of server quiet are off"));
    assert_eq!(check("nobody").await.code(), Code::NotFound);
}

#[tokio::test]
async fn a_server_of_an_older_revision_keeps_no_session_of_a_check() {
    let (server, waffles) = (McpServer::only(Era::Sessions).await, Waffles::start().await);
    let tools = HealthPolicy { check: HealthCheck::Tools.into(), ..once() };
    waffles.add(with("demo", &server.url(), tools)).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
    let checks = checks();
    for _ in 0..checks {
        let (_, found) = look(&waffles, "demo").await;
        assert_eq!(found.saw, "2025-11-25 with a session, 2 tools");
    }
    // What is given up half way is ended as well.
    server.on_method("ping", Behaviour::Never);
    let (_, found) = look(&waffles, "demo").await;
    assert_eq!((found.state(), found.reason.as_str()), (HealthState::Down, "timed_out"));
    eventually(PATIENCE, || async {
        ensure!(server.sessions().is_empty(), "{} sessions are open", server.sessions().len());
        Ok(())
    })
    .await;
    let opened = server.seen_of("initialize").len();
    let ended = server.seen().iter().filter(|seen| seen.method == "DELETE").count();
    Figure {
        promise: "health".into(),
        what: "sessions that checks leave open at a server".into(),
        goal: "0".into(),
        measured: format!("{}", opened.abs_diff(ended)),
        extent: format!("{opened} checks"),
        met: opened == ended,
    }
    .note();
    assert!(opened >= checks + 2 && opened == ended, "{opened} were opened and {ended} ended");
}

#[tokio::test]
async fn what_was_seen_is_said_and_judged_for_what_it_is() {
    let waffles = Waffles::start().await;
    let raw = |status: u16| Behaviour::Raw { status, headers: vec![], body: "no".into() };
    let refusal = |code: i64| Behaviour::Error { code, message: "no".into(), data: Value::Null };
    let (tools, plain) = (HealthPolicy { check: HealthCheck::Tools.into(), ..once() }, once());
    let both = |behaviour: Behaviour| vec![("server/discover", behaviour.clone()), ("initialize", behaviour)];
    type Case<'a> = (&'a str, HealthPolicy, Vec<(&'a str, Behaviour)>, HealthState, &'a str, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (
            "none",
            tools,
            vec![("tools/list", Behaviour::Result(json!({"tools": []})))],
            HealthState::Up,
            "",
            "no tools",
        ),
        (
            "broken-list",
            tools,
            vec![("tools/list", refusal(-32603))],
            HealthState::Degraded,
            "tools_list_failed",
            "error -32603",
        ),
        (
            "unauthorized",
            plain,
            both(raw(401)),
            HealthState::Degraded,
            "credential",
            "refused the gateway's credential",
        ),
        (
            "forbidden",
            plain,
            both(raw(403)),
            HealthState::Degraded,
            "credential",
            "refused the gateway's credential",
        ),
        ("fails", plain, both(raw(500)), HealthState::Down, "failed", "the server failed"),
        ("hangs", plain, both(Behaviour::Never), HealthState::Down, "timed_out", "no answer in time"),
        ("hangs-up", plain, both(Behaviour::HangUp), HealthState::Down, "broke_off", "broke off"),
        (
            "talks-nonsense",
            plain,
            both(Behaviour::NotJson),
            HealthState::Down,
            "bad_answer",
            "invalid answer",
        ),
    ];
    let mut servers = Vec::new();
    for (name, policy, script, ..) in &cases {
        let server = McpServer::start().await;
        script.iter().for_each(|(method, behaviour)| server.on_method(method, behaviour.clone()));
        waffles.add(with(name, &server.url(), *policy)).await;
        servers.push(server);
    }
    for (name, _, _, expected, reason, saw) in &cases {
        becomes_known(&waffles, name).await;
        let (health, found) = look(&waffles, name).await;
        assert_eq!((found.state(), found.reason.as_str()), (*expected, *reason), "{name}: {found:?}");
        assert!(found.saw.contains(saw), "{name}: {found:?}");
        assert_eq!(state(&health), (*expected, (*reason).to_owned()), "{name}");
    }
}

/// How many checks are asked for, one after the other.
#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn checks() -> usize {
    std::env::var("WAFFLES_TEST_CHECKS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// Waits for the first word of a server, whatever it is.
async fn becomes_known(waffles: &Waffles, name: &str) {
    eventually(PATIENCE, || async {
        let health = health(waffles, name).await;
        let looked = health.proxies.iter().any(|view| view.checked_at.is_some());
        ensure!(looked, "nobody has looked at {name}: {health:#?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn as_many_proxies_look_as_are_to_and_others_take_over() {
    let servers = [McpServer::start().await, McpServer::start().await, McpServer::start().await];
    let mut waffles = Waffles::with(WafflesOptions { proxies: 2, ..WafflesOptions::default() }).await;
    let alone = HealthPolicy { proxies: 1, ..often() };
    for (i, server) in servers.iter().enumerate() {
        waffles.add(with(&format!("demo-{i}"), &server.url(), alone)).await;
    }
    waffles.add(with("both", &servers[0].url(), often())).await;
    let looking = async |waffles: &Waffles, name: &str, count: usize| {
        eventually(PATIENCE, || async {
            let health = health(waffles, name).await;
            let looking = health.proxies.iter().filter(|view| view.checks && view.state() == HealthState::Up);
            let looking: Vec<String> = looking.map(|view| view.proxy.clone()).collect();
            ensure!(looking.len() == count, "{looking:?} look at {name}, not {count}");
            Ok(looking)
        })
        .await
    };
    assert_eq!(looking(&waffles, "both", 2).await.len(), 2);
    let mut who = Vec::new();
    for i in 0..servers.len() {
        who.extend(looking(&waffles, &format!("demo-{i}"), 1).await);
    }
    // The proxy that looks at the first goes, and the other one takes its place. They are named by their places.
    let place: usize = who[0].strip_prefix("proxy-").unwrap().parse().unwrap();
    waffles.proxies[place].kill9().await;
    eventually(PATIENCE, || async {
        let health = health(&waffles, "demo-0").await;
        let other = health
            .proxies
            .iter()
            .any(|view| view.checks && view.proxy != who[0] && view.checked_at.is_some());
        ensure!(other, "nobody has taken over: {health:#?}");
        Ok(())
    })
    .await;
    let request = CheckServerRequest { name: "demo-0".into() };
    let health = service(&waffles).check_server(request).await.unwrap().into_inner().health.unwrap();
    assert_eq!(health.proxies.iter().filter(|view| view.fresh).count(), 1, "{health:#?}");
}

#[tokio::test]
async fn calls_that_fail_count_though_checks_go_well() {
    let (server, waffles) = (McpServer::start().await, Waffles::start().await);
    server.on_tool("break", Behaviour::HangUp);
    waffles.add(with("demo", &server.url(), once())).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
    let client = waffles.client("demo").of(Era::Stateless).await;
    for _ in 0..2 {
        assert_eq!(client.call("break", json!({})).await.unwrap().status, 502);
    }
    becomes(&waffles, "demo", HealthState::Degraded, "calls_fail").await;
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
    becomes(&waffles, "demo", HealthState::Up, "").await;
}

#[tokio::test]
async fn a_tenant_knows_of_its_own_servers_only() {
    let (server, waffles) = (McpServer::start().await, Waffles::start().await);
    waffles.add(with("demo", &server.url(), once())).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
    let tenant = waffles.add_tenant("acme").await;
    let mut theirs = HealthServiceClient::new(waffles.authorized(&tenant.key.secret));
    let request = GetServerHealthRequest { name: "demo".into() };
    assert_eq!(theirs.get_server_health(request).await.unwrap_err().code(), Code::NotFound);
    let request = CheckServerRequest { name: "demo".into() };
    assert_eq!(theirs.check_server(request).await.unwrap_err().code(), Code::NotFound);
    // A key that may only read sees, and has nobody look.
    let limits = waffles_proto::auth::v1::KeyLimits { read_only: true, ..Default::default() };
    let reader = waffles.key(limits).await;
    let mut reader = HealthServiceClient::new(waffles.authorized(&reader.secret));
    let request = GetServerHealthRequest { name: "demo".into() };
    assert!(reader.get_server_health(request).await.is_ok());
    let request = CheckServerRequest { name: "demo".into() };
    assert_eq!(reader.check_server(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn on_postgres_it_is_the_same() {
    let (server, waffles) = (McpServer::start().await, Waffles::on_postgres().await);
    waffles.add(with("demo", &server.url(), often())).await;
    becomes(&waffles, "demo", HealthState::Up, "").await;
    server.kill();
    let down = becomes(&waffles, "demo", HealthState::Down, "unreachable").await;
    assert!(down.history.len() >= 2, "{down:#?}");
    let (_, found) = look(&waffles, "demo").await;
    assert_eq!(found.state(), HealthState::Down);
    let request = GetServerRequest { name: "demo".into() };
    let shown = waffles.registry().get_server(request).await.unwrap().into_inner().server.unwrap();
    assert_eq!(shown.health.unwrap().state(), HealthState::Down);
}

#[tokio::test]
async fn wrong_fields_of_a_policy_are_named() {
    let waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    let url = waffles.control_plane.http_url("/api/v1/servers");
    let body = json!({
        "name": "demo", "endpoints": [{"url": "http://127.0.0.1:9/mcp"}],
        "health": {"interval_ms": 10, "fall": 0, "jitter_percent": 90},
    });
    let answer =
        http_client().post(&url).bearer_auth(&waffles.admin.secret).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let problem = answer.text().await.unwrap();
    for field in ["health.interval_ms", "health.fall", "health.jitter_percent"] {
        assert!(problem.contains(field), "{problem}");
    }
}
