//! What a federated door says of itself, and its sessions.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use waffles_tests::mcp_client::initialize;
use waffles_tests::{Era, McpClient, McpServer, RawServer, Seeded, until};

use super::{Farm, names};

const SOON: Duration = Duration::from_secs(10);

/// Both handshakes of a client: the result of each.
async fn handshakes(client: &McpClient) -> [Value; 2] {
    let opened = client.post(initialize("2025-11-25").to_string()).await.unwrap().result();
    let stateless = client.of(Era::Stateless).await;
    [opened, stateless.ask(1, "server/discover", json!({})).await.unwrap().result()]
}

#[tokio::test]
async fn a_door_can_do_what_its_servers_can_do_together() {
    let farm = Farm::start().await;
    farm.alpha.offer(json!({"prompts": {}, "logging": {}}));
    farm.beta.offer(json!({"tools": {}, "completions": {}, "resources": {"subscribe": true}}));
    farm.waffles.upstream.offer(json!({"tools": {}}));
    let [opened, found] = handshakes(&farm.client()).await;
    let together = json!({
        "completions": {}, "logging": {}, "prompts": {"listChanged": true},
        "resources": {"subscribe": true, "listChanged": true}, "tools": {"listChanged": true},
    });
    for said in [&opened, &found] {
        assert_eq!(said["capabilities"], together, "{said}");
        let instructions = said["instructions"].as_str().unwrap();
        assert!(["alpha", "beta", "demo"].iter().all(|name| instructions.contains(name)), "{instructions}");
    }
    assert_eq!(
        (&opened["protocolVersion"], &opened["serverInfo"]["name"]),
        (&json!("2025-11-25"), &json!("waffles"))
    );
    assert_eq!(found["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "waffles");
    assert_eq!(
        (&found["supportedVersions"], &found["resultType"]),
        (&json!(["2026-07-28"]), &json!("complete"))
    );
    let [opened, found] = handshakes(&farm.with_key(&farm.narrow)).await;
    for said in [&opened, &found] {
        assert_eq!(said["capabilities"].get("prompts"), None, "{said}");
        assert_eq!(said["capabilities"].get("logging"), None, "{said}");
        let instructions = said["instructions"].as_str().unwrap();
        assert!(!instructions.contains("alpha") && !instructions.contains("demo"), "{instructions}");
    }
}

#[tokio::test]
async fn a_second_handshake_asks_no_server() {
    let farm = Farm::start().await;
    handshakes(&farm.client()).await;
    let servers = [&farm.alpha, &farm.beta, &farm.waffles.upstream];
    let asked = || -> usize {
        let of =
            |server: &McpServer| server.seen_of("initialize").len() + server.seen_of("server/discover").len();
        servers.iter().map(|server| of(server)).sum()
    };
    let before = asked();
    for _ in 0..5 {
        handshakes(&farm.client()).await;
    }
    assert_eq!(asked(), before);
}

#[tokio::test]
async fn a_hung_server_holds_up_no_handshake_for_long() {
    let hung =
        RawServer::start(|mut connection| async move { while connection.request().await.is_some() {} }).await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("dead", "http://127.0.0.1:1/mcp", |_| {});
        seed.server("hung", &hung.url(), |_| {});
    })
    .await;
    let client = McpClient::new(&format!("http://{}/mcp", waffles.proxy.mcp)).with_bearer(&waffles.key);
    let started = Instant::now();
    for said in handshakes(&client).await {
        assert!(said["capabilities"]["prompts"].is_object(), "the others can: {said}");
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_session_belongs_to_its_door_and_its_principal() {
    let farm = Farm::start().await;
    let session = farm.client().of(Era::Sessions).await;
    assert!(session.ask(1, "ping", json!({})).await.unwrap().result().as_object().unwrap().is_empty());
    let id = session.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let base = format!("http://{}/mcp", farm.waffles.proxy.mcp);
    for (url, key) in [
        (format!("{base}/servers/alpha"), &farm.waffles.key),
        (format!("{base}/servers/beta"), &farm.waffles.key),
        (base.clone(), &farm.narrow),
    ] {
        let client = McpClient::new(&url).with_bearer(key).with("mcp-session-id", &id);
        let client = client.with("mcp-protocol-version", "2025-11-25");
        let answer = client.ask(1, "tools/list", json!({})).await.unwrap();
        assert_eq!(answer.status, 404, "{url}: {}", answer.text());
    }
    let other = farm.waffles.another().await;
    let moved = McpClient::new(&format!("http://{}/mcp", other.mcp)).with_bearer(&farm.waffles.key);
    let moved = moved.with("mcp-session-id", &id).with("mcp-protocol-version", "2025-11-25");
    let listed = moved.ask(2, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(names(&listed, "tools", "name").len(), 6, "any proxy serves it");
    for (field, value) in
        [("resultType", json!("complete")), ("ttlMs", json!(0)), ("cacheScope", json!("private"))]
    {
        assert_eq!(listed.get(field), None, "{value} is not of this era");
    }
    let bare = session.clone().without("mcp-session-id");
    assert_eq!(bare.ask(3, "tools/list", json!({})).await.unwrap().status, 400);
    assert_eq!(session.delete().await.unwrap().status.as_u16() / 100, 2);
    assert_eq!(session.ask(4, "tools/list", json!({})).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_session_keeps_its_log_level_and_hears_of_its_resources() {
    let farm = Farm::start().await;
    for server in [&farm.alpha, &farm.beta] {
        server
            .offer(json!({"tools": {"listChanged": true}, "resources": {"subscribe": true}, "logging": {}}));
    }
    let session = farm.client().of(Era::Sessions).await;
    let level = |level: &str| json!({"level": level});
    session.ask(1, "logging/setLevel", level("debug")).await.unwrap().result();
    assert_eq!(session.ask(2, "logging/setLevel", level("loud")).await.unwrap().error_code(), -32602);
    let mut stream = session.get_stream().await.unwrap();
    for uri in ["wfl+alpha+test://one", "wfl+beta+test://one", "wfl+nobody+test://one"] {
        let subscribed = session.ask(3, "resources/subscribe", json!({"uri": uri})).await.unwrap();
        assert_eq!(subscribed.result(), json!({}), "{uri}");
    }
    until("the servers are subscribed to", SOON, || async {
        let alpha = farm.alpha.seen_of("resources/subscribe");
        let beta = farm.beta.seen_of("subscriptions/listen");
        alpha.iter().any(|seen| seen.json()["params"]["uri"] == "test://one")
            && beta.iter().any(|seen| {
                seen.json()["params"]["notifications"]["resourceSubscriptions"] == json!(["test://one"])
            })
    })
    .await;
    for (server, name) in [(&farm.alpha, "alpha"), (&farm.beta, "beta")] {
        let update = json!({"uri": "test://one"});
        assert!(server.announce("notifications/resources/updated", update).await > 0);
        let told = loop {
            let message = stream.message().await.unwrap();
            if message["method"] == "notifications/resources/updated" {
                break message;
            }
        };
        assert_eq!(told["params"]["uri"], format!("wfl+{name}+test://one"));
    }
    session.call("beta__echo", json!({})).await.unwrap().result();
    let call = farm.beta.seen_of("tools/call").remove(0).json();
    assert_eq!(call["params"]["_meta"]["io.modelcontextprotocol/logLevel"], "debug");
}
