//! Listening: a client of either era hears of changes at servers of either era, many clients share one subscription, and
//! what may have been missed is announced.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};
use waffles_core::audit::Outcome;
use waffles_core::credential::KeyLimits;
use waffles_proto::auth::v1::KeyLimits as Limits;
use waffles_proto::registry::v1::{ToolFilter, UpdateServerRequest};
use waffles_tests::mcp_client::Stream;
use waffles_tests::{Era, McpClient, McpServer, RawServer, Seeded, Waffles, until};

const TOOLS: &str = "notifications/tools/list_changed";
const UPDATED: &str = "notifications/resources/updated";
const TAG: &str = "io.modelcontextprotocol/subscriptionId";
const SOON: Duration = Duration::from_secs(5);

fn all() -> Value {
    json!({"tools": {"listChanged": true}, "resources": {"subscribe": true, "listChanged": true}, "prompts": {}})
}

/// A proxy in front of a server of one era, registered as `other`.
async fn before(era: Era) -> (Seeded, McpServer) {
    let server = McpServer::only(era).await;
    server.offer(all());
    let url = server.url();
    let waffles = Seeded::and(|seed, _| {
        seed.server("other", &url, |_| {});
    })
    .await;
    (waffles, server)
}

fn client(waffles: &Seeded) -> McpClient {
    McpClient::new(&waffles.proxy.server_url("other")).with_bearer(&waffles.key)
}

async fn listen(client: &McpClient, id: impl Into<Value>, filter: Value) -> (Stream, Value) {
    let client = client.of(Era::Stateless).await;
    let params = json!({"notifications": filter});
    let mut stream = client.ask_stream(id, "subscriptions/listen", params).await.unwrap();
    assert_eq!(stream.status, 200);
    let first = stream.message().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
    (stream, first["params"].clone())
}

async fn is_open(server: &McpServer, count: usize) {
    until("the subscriptions are open", SOON, || async { server.listeners() == count }).await;
}

#[tokio::test]
async fn a_listener_is_told_first_what_it_gets_and_then_only_that() {
    for era in Era::BOTH {
        let (waffles, server) = before(era).await;
        let filter = json!({"toolsListChanged": true, "promptsListChanged": true,
            "resourceSubscriptions": ["test://one", "test://two"]});
        let (mut number, told) = listen(&client(&waffles), 1, filter.clone()).await;
        let honoured =
            json!({"toolsListChanged": true, "resourceSubscriptions": ["test://one", "test://two"]});
        assert_eq!(told["notifications"], honoured, "{era:?}");
        assert_eq!(told["_meta"][TAG], json!(1));
        let (mut text, told) = listen(&client(&waffles), "1", filter).await;
        assert_eq!(told["_meta"][TAG], json!("1"));
        assert_eq!(server.announce("notifications/resources/list_changed", json!({})).await, 1);
        assert_eq!(server.announce("notifications/prompts/list_changed", json!({})).await, 1);
        assert_eq!(server.announce(UPDATED, json!({"uri": "test://three"})).await, 1);
        assert_eq!(server.announce(UPDATED, json!({"uri": "test://two"})).await, 1);
        for (stream, id) in [(&mut number, json!(1)), (&mut text, json!("1"))] {
            let message = stream.message().await.unwrap();
            let expected = json!({"jsonrpc": "2.0", "method": UPDATED,
                "params": {"uri": "test://two", "_meta": {TAG: id}}});
            assert_eq!(message, expected, "{era:?}");
        }
        let subscribed = server.seen_of("resources/subscribe");
        assert_eq!(subscribed.len(), if era == Era::Sessions { 2 } else { 0 });
    }
}

#[tokio::test]
async fn a_server_that_offers_nothing_honours_nothing() {
    let (waffles, server) = before(Era::Sessions).await;
    server.offer(json!({"tools": {}}));
    let (_stream, told) = listen(&client(&waffles), 1, json!({"toolsListChanged": true})).await;
    assert_eq!(told["notifications"], json!({}));
    let none = waffles_tests::Behaviour::Raw { status: 405, headers: Vec::new(), body: Vec::new().into() };
    let (waffles, server) = before(Era::Sessions).await;
    server.on_get(none);
    let (_stream, told) = listen(&client(&waffles), 1, json!({"toolsListChanged": true})).await;
    assert_eq!(told["notifications"], json!({}), "a server may have no stream");
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_ended_at_the_server() {
    let (waffles, server) = before(Era::Sessions).await;
    let uri = |uri: &str| json!({"resourceSubscriptions": [uri]});
    let (one, _) = listen(&client(&waffles), 1, uri("test://one")).await;
    let (two, _) = listen(&client(&waffles), 2, uri("test://two")).await;
    assert_eq!((server.listeners(), server.sessions().len()), (1, 1));
    assert_eq!(server.seen_of("resources/subscribe").len(), 2);
    drop(one);
    server.arrived("resources/unsubscribe", 1).await;
    assert_eq!(server.seen_of("resources/unsubscribe")[0].json()["params"]["uri"], "test://one");
    drop(two);
    server.arrived("resources/unsubscribe", 2).await;
    is_open(&server, 0).await;
    until("the listeners are gone", SOON, || async {
        let metrics = waffles.proxy.metrics().await;
        metrics.contains("waffles_listeners 0") && metrics.contains("waffles_subscriptions 0")
    })
    .await;
    let records = waffles.records_of("mcp.subscriptions/listen");
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.reason == "client_gone"), "{records:#?}");
}

#[tokio::test]
async fn a_session_client_hears_a_stateless_server_on_its_stream() {
    let (waffles, server) = before(Era::Stateless).await;
    let client = client(&waffles).of(Era::Sessions).await;
    let mut stream = client.get_stream().await.unwrap();
    assert_eq!(stream.status, 200);
    is_open(&server, 1).await;
    server.announce(TOOLS, json!({})).await;
    let untagged = json!({"jsonrpc": "2.0", "method": TOOLS});
    let told = stream.message().await.unwrap();
    assert_eq!(
        (&told["method"], &told["params"]["_meta"][TAG]),
        (&untagged["method"], &Value::Null),
        "{told}"
    );
    for (method, heard) in [("resources/subscribe", true), ("resources/unsubscribe", false)] {
        let answer = client.ask(5, method, json!({"uri": "test://one"})).await.unwrap();
        assert_eq!(answer.result(), json!({}));
        if heard {
            server.arrived("subscriptions/listen", 2).await;
            is_open(&server, 1).await;
        }
        server.announce(UPDATED, json!({"uri": "test://one"})).await;
        server.announce(TOOLS, json!({})).await;
        let mut told = vec![stream.message().await.unwrap()["method"].clone()];
        if heard {
            told.push(stream.message().await.unwrap()["method"].clone());
        }
        assert_eq!(told, if heard { vec![json!(UPDATED), json!(TOOLS)] } else { vec![json!(TOOLS)] });
    }
    assert_eq!(client.delete().await.unwrap().status, 204);
    assert_eq!(stream.rest().await.unwrap(), Vec::<Value>::new());
    assert_eq!(waffles.record_of("mcp.stream").reason, "stream_closed");
}

#[tokio::test]
async fn a_session_client_that_comes_back_is_told_that_it_may_have_missed_something() {
    let (waffles, server) = before(Era::Stateless).await;
    let client = client(&waffles).of(Era::Sessions).await;
    let mut stream = client.get_stream().await.unwrap();
    is_open(&server, 1).await;
    server.announce(TOOLS, json!({})).await;
    let id = stream.event().await.unwrap().unwrap().id.expect("its events have ids");
    drop(stream);
    until("the stream is given up", SOON, || async {
        waffles.proxy.metrics().await.contains("waffles_listeners 0")
    })
    .await;
    let mut stream = client.with("last-event-id", &id).get_stream().await.unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(stream.message().await.unwrap()["method"].as_str().unwrap().to_owned());
    }
    assert!(told.contains(&TOOLS.to_owned()), "{told:?}");
}

#[tokio::test]
async fn many_listeners_of_both_eras_share_one_subscription() {
    for era in Era::BOTH {
        let (waffles, server) = before(era).await;
        let filter = json!({"toolsListChanged": true});
        let mut streams = Vec::new();
        for id in 0..200 {
            streams.push(listen(&client(&waffles), id, filter.clone()).await.0);
        }
        if era == Era::Stateless {
            let session = client(&waffles).of(Era::Sessions).await;
            streams.push(session.get_stream().await.unwrap());
        }
        assert_eq!(server.listeners(), 1, "{era:?}");
        for _ in 0..5 {
            assert_eq!(server.announce(TOOLS, json!({})).await, 1);
        }
        for stream in &mut streams {
            assert_eq!(stream.message().await.unwrap()["method"], TOOLS);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.announce("notifications/tools/list_changed", json!({"_meta": {"v": 2}})).await;
        for stream in &mut streams {
            let message = stream.message().await.unwrap();
            assert_eq!(
                message["params"]["_meta"]["v"],
                if era == Era::Sessions { json!(2) } else { Value::Null }
            );
        }
        let asked = server.seen_of("subscriptions/listen").len();
        assert_eq!(asked, usize::from(era == Era::Stateless));
    }
}

#[tokio::test]
async fn other_principals_with_the_same_rights_share_and_other_rights_do_not() {
    let server = McpServer::only(Era::Stateless).await;
    let (url, mut keys) = (server.url(), Vec::new());
    let waffles = Seeded::and(|seed, _| {
        seed.server("other", &url, |_| {});
        for name in ["bob", "carol"] {
            let id = seed.principal(name, "user");
            keys.push(seed.key(id, KeyLimits::default()));
        }
        let dave = seed.principal("dave", "user");
        keys.push(seed.key(dave, KeyLimits { tools: vec!["echo".into()], ..KeyLimits::default() }));
    })
    .await;
    let mut streams = Vec::new();
    for (key, open) in keys.iter().zip([1, 1, 2]) {
        let client = client(&waffles).with_bearer(key);
        streams.push(listen(&client, 1, json!({"toolsListChanged": true})).await.0);
        assert_eq!(server.listeners(), open);
    }
}

#[tokio::test]
async fn what_may_have_been_missed_is_announced() {
    for era in Era::BOTH {
        let (waffles, server) = before(era).await;
        let filter = json!({"toolsListChanged": true, "resourceSubscriptions": ["test://one"]});
        let (mut stream, _) = listen(&client(&waffles), 1, filter).await;
        server.hang_up();
        let started = Instant::now();
        let mut told = Vec::new();
        for _ in 0..2 {
            told.push(stream.message().await.unwrap());
        }
        assert!(started.elapsed() < SOON, "{era:?}: {:?}", started.elapsed());
        let methods: Vec<_> = told.iter().map(|message| message["method"].clone()).collect();
        assert_eq!(methods, [TOOLS, UPDATED], "{era:?}");
        assert!(told.iter().all(|message| message["params"]["_meta"][TAG] == 1), "{told:?}");
        assert_eq!(server.listeners(), 1);
        server.announce(TOOLS, json!({})).await;
        assert_eq!(stream.message().await.unwrap()["method"], TOOLS, "it is heard again");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_found_again() {
    let (waffles, mut server) = before(Era::Sessions).await;
    let (mut stream, _) = listen(&client(&waffles), 1, json!({"toolsListChanged": true})).await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.restart().await;
    assert_eq!(timeout(SOON * 2, stream.message()).await.unwrap().unwrap()["method"], TOOLS);
    server.kill();
    until("it is known to be away", SOON, || async {
        let client = client(&waffles).of(Era::Stateless).await;
        let params = json!({"notifications": {"toolsListChanged": true}});
        let answer = timeout(Duration::from_secs(2), client.ask(1, "subscriptions/listen", params)).await;
        answer.is_ok_and(|answer| answer.unwrap().status == 502)
    })
    .await;
}

#[tokio::test]
async fn a_drain_ends_a_subscription_with_its_result() {
    let (mut waffles, _server) = before(Era::Sessions).await;
    let (stream, _) = listen(&client(&waffles), "s", json!({"toolsListChanged": true})).await;
    let started = Instant::now();
    assert!(waffles.proxy.stop().await.success());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let last =
        json!({"jsonrpc": "2.0", "id": "s", "result": {"resultType": "complete", "_meta": {TAG: "s"}}});
    assert_eq!(stream.rest().await.unwrap(), [last]);
    let record = waffles.record_of("mcp.subscriptions/listen");
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Ok, "drained"));
}

#[tokio::test]
async fn a_change_of_what_a_listener_sees_is_announced_and_a_lost_right_ends_the_stream() {
    let server = McpServer::only(Era::Sessions).await;
    let waffles = Waffles::start().await;
    let registered = waffles.add_server("demo", &server.url()).await;
    let key = waffles.key(Limits::default()).await;
    let client = McpClient::new(&waffles.proxies[0].server_url("demo")).with_bearer(&key.secret);
    let (mut stream, _) = listen(&client, "s", json!({"toolsListChanged": true})).await;
    let mut spec = registered.spec.clone().unwrap();
    spec.tools = Some(ToolFilter { allow: Vec::new(), deny: vec!["add".into()] });
    let changed = UpdateServerRequest { spec: Some(spec), version: registered.version };
    waffles.registry().update_server(changed).await.unwrap();
    let told = timeout(SOON, stream.message()).await.unwrap().unwrap();
    assert_eq!((&told["method"], &told["params"]["_meta"][TAG]), (&json!(TOOLS), &json!("s")));
    waffles.revoke(&key).await;
    let rest = timeout(SOON, stream.rest()).await.expect("the stream is open five seconds later").unwrap();
    let last = rest.last().expect("it ends with a result");
    assert_eq!(last["result"]["resultType"], "complete", "{last}");
    is_open(&server, 0).await;
}

/// A server of 2024-11-05: what it is sent is written down, what it says comes from `say`.
async fn http_sse(say: broadcast::Sender<String>, heard: Arc<Mutex<Vec<Value>>>) -> RawServer {
    RawServer::start(move |mut connection| {
        let (say, heard) = (say.clone(), Arc::clone(&heard));
        async move {
            while let Some((head, body)) = connection.request().await {
                if head.starts_with("get ") {
                    let mut said = say.subscribe();
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                    connection.write(format!("{head}event: endpoint\ndata: /messages?s=1\n\n")).await;
                    while let Ok(message) = said.recv().await {
                        connection.write(format!("event: message\ndata: {message}\n\n")).await;
                    }
                    return;
                }
                if !head.starts_with("post /messages?s=1 ") {
                    connection.write("HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n").await;
                    continue;
                }
                connection.write("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await;
                let message: Value = serde_json::from_slice(&body).unwrap();
                let result = match message["method"].as_str() {
                    Some("initialize") => json!({"protocolVersion": "2024-11-05", "capabilities": all(),
                        "serverInfo": {"name": "old", "version": "1"}}),
                    _ => json!({}),
                };
                heard.lock().push(message.clone());
                if message.get("id").is_some() {
                    drop(
                        say.send(
                            json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string(),
                        ),
                    );
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_http_sse_server_is_heard_on_its_one_stream() {
    let (say, heard) = (broadcast::channel(64).0, Arc::new(Mutex::new(Vec::<Value>::new())));
    let server = http_sse(say.clone(), Arc::clone(&heard)).await;
    let url = server.url();
    let waffles = Seeded::and(|seed, _| {
        seed.server("other", &url, |_| {});
    })
    .await;
    let filter = json!({"toolsListChanged": true, "resourceSubscriptions": ["test://one"]});
    let (mut stream, told) = listen(&client(&waffles), 7, filter.clone()).await;
    assert_eq!(told["notifications"], filter);
    let asked = |method: &str| heard.lock().iter().filter(|message| message["method"] == method).count();
    assert_eq!((asked("initialize"), asked("resources/subscribe")), (1, 1));
    for (method, params) in [(TOOLS, json!({})), (UPDATED, json!({"uri": "test://one/part"}))] {
        say.send(json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).unwrap();
        let told = stream.message().await.unwrap();
        assert_eq!((&told["method"], &told["params"]["_meta"][TAG]), (&json!(method), &json!(7)));
    }
}

#[tokio::test]
async fn a_federated_listener_hears_all_servers_under_their_names() {
    let (one, two) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
    one.offer(all());
    two.offer(all());
    let urls = [one.url(), two.url()];
    let waffles = Seeded::and(|seed, _| {
        seed.server("one", &urls[0], |_| {});
        seed.server("two", &urls[1], |_| {});
        seed.server("away", "http://127.0.0.1:9/mcp", |_| {});
    })
    .await;
    let client = McpClient::new(&format!("http://{}/mcp", waffles.proxy.mcp)).with_bearer(&waffles.key);
    let filter = json!({"toolsListChanged": true,
        "resourceSubscriptions": ["wfl+one+test://x", "wfl+two+test://x", "wfl+three+test://x"]});
    let (mut stream, told) = listen(&client, "f", filter).await;
    let honoured = json!({"toolsListChanged": true,
        "resourceSubscriptions": ["wfl+one+test://x", "wfl+two+test://x"]});
    assert_eq!(told["notifications"], honoured);
    for (server, name) in [(&one, "one"), (&two, "two")] {
        assert_eq!(server.listeners(), 1, "{name}");
        server.announce(UPDATED, json!({"uri": "test://x"})).await;
        let message = stream.message().await.unwrap();
        assert_eq!(message["params"]["uri"], format!("wfl+{name}+test://x"), "{message}");
        assert_eq!(message["params"]["_meta"][TAG], "f");
        server.announce(TOOLS, json!({})).await;
        assert_eq!(stream.message().await.unwrap()["method"], TOOLS);
    }
    let session = client.of(Era::Sessions).await;
    let mut standing = session.get_stream().await.unwrap();
    let answer = session.ask(3, "resources/subscribe", json!({"uri": "wfl+one+test://y"})).await.unwrap();
    assert_eq!(answer.result(), json!({}));
    one.arrived("resources/subscribe", 2).await;
    assert_eq!(
        (one.listeners(), two.listeners()),
        (2, 1),
        "in a session of its own, and shared where there are none"
    );
    one.announce(UPDATED, json!({"uri": "test://y"})).await;
    assert_eq!(standing.message().await.unwrap()["params"]["uri"], "wfl+one+test://y");
}
