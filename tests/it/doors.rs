//! The doors beside Streamable HTTP: HTTP+SSE of 2024-11-05, batches of 2025-03-26, and the REST form for scripts. All of
//! them end at the same checks and leave the same records.

use std::time::Duration;

use http::{Method, header};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use waffles_core::audit::Outcome;
use waffles_core::credential::KeyLimits;
use waffles_core::server::ToolFilter;
use waffles_tests::mcp_client::{Stream, initialize};
use waffles_tests::{
    Answer, Behaviour, DataPlaneOptions, Era, McpClient, McpServer, PATIENCE, Seeded, until,
};

use crate::call::{json_of, masked, stream_of};

/// A client of HTTP+SSE.
struct Sse {
    stream: Stream,
    endpoint: String,
    /// Posts to the session.
    post: McpClient,
    /// What has come that nobody has asked for yet.
    heard: Vec<Value>,
}

impl Sse {
    /// Opens a session at a door, such as `/mcp/servers/demo`.
    async fn open(waffles: &Seeded, door: &str, key: &str) -> Self {
        let client = at(waffles, &format!("{door}/sse")).with_bearer(key);
        let mut stream = client.get_stream().await.unwrap();
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers[header::CONTENT_TYPE], "text/event-stream");
        let event = stream.event().await.unwrap().unwrap();
        assert_eq!(event.event.as_deref(), Some("endpoint"));
        let endpoint = String::from_utf8(event.data.to_vec()).unwrap();
        let id = endpoint.strip_prefix(&format!("{door}/messages?sessionId=")).unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{endpoint}");
        let post = at(waffles, &endpoint).with_bearer(key);
        Self { stream, endpoint, post, heard: Vec::new() }
    }

    /// Opens one and shakes hands, in a revision that the server speaks.
    async fn start(waffles: &Seeded, door: &str, key: &str) -> Self {
        Self::of(waffles, door, key, "2025-11-25").await
    }

    /// Opens one and shakes hands.
    async fn of(waffles: &Seeded, door: &str, key: &str, revision: &str) -> Self {
        let mut sse = Self::open(waffles, door, key).await;
        sse.send(&initialize(revision)).await;
        let answer = sse.message(|message| message["id"] == 0).await;
        assert_eq!(answer["result"]["protocolVersion"], revision, "{answer}");
        sse.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        sse
    }

    async fn send(&self, message: &Value) {
        let answer = self.post.post(message.to_string()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (202, ""), "{message}");
    }

    /// The next message that is so, of those that have come and those that will.
    async fn message(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(at) = self.heard.iter().position(&is_it) {
                return self.heard.remove(at);
            }
            let event = self.stream.event().await.unwrap().expect("the stream has not ended");
            assert_eq!((event.event.as_deref(), event.id), (Some("message"), None));
            self.heard.push(serde_json::from_slice(&event.data).unwrap());
        }
    }

    async fn ask(&mut self, id: &str, method: &str, params: Value) -> Value {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        self.message(|message| message["id"] == id).await
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.ask("call", "tools/call", json!({"name": tool, "arguments": arguments})).await
    }
}

/// A client of any path, without a credential.
fn at(waffles: &Seeded, path: &str) -> McpClient {
    let url = waffles.proxy.server_url("demo");
    McpClient::new(&url.replace("/mcp/servers/demo", path))
}

const DEMO: &str = "/mcp/servers/demo";

#[tokio::test]
async fn a_client_of_http_sse_uses_a_server_with_sessions() {
    for revision in ["2025-11-25", "2024-11-05"] {
        uses_a_server_with_sessions(revision).await;
    }
}

/// The scripted server does not speak 2024-11-05, so there is a bridge between.
async fn uses_a_server_with_sessions(revision: &str) {
    let options = DataPlaneOptions { workers: 2, ..DataPlaneOptions::default() };
    let waffles = Seeded::made(options, |_| {}, |_, _| {}).await;
    waffles.upstream.on_tool("stream", Behaviour::EchoSse);
    waffles.upstream.on_tool("steps", Behaviour::Progress { steps: 3, pause: Duration::from_millis(5) });
    let asking = Behaviour::Ask { method: "elicitation/create".into(), params: json!({"message": "?"}) };
    waffles.upstream.on_tool("ask", asking);
    let mut sse = Sse::of(&waffles, DEMO, &waffles.key, revision).await;
    assert_eq!(sse.ask("p", "ping", json!({})).await["result"], json!({}));
    for tool in ["echo", "stream"] {
        let called = sse.call(tool, json!({"x": 1})).await;
        assert_eq!(called["result"]["structuredContent"], json!({"x": 1}), "{tool}");
    }
    let params = json!({"name": "steps", "_meta": {"progressToken": "t"}});
    sse.ask("steps", "tools/call", params).await;
    let steps: Vec<_> = sse.heard.drain(..).map(|message| message["params"]["progress"].clone()).collect();
    assert_eq!(steps, [1, 2, 3]);
    let params = json!({"name": "ask", "arguments": {}});
    sse.send(&json!({"jsonrpc": "2.0", "id": "ask", "method": "tools/call", "params": params})).await;
    let question = sse.message(|message| message["method"] == "elicitation/create").await;
    sse.send(&json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept"}})).await;
    let answer = sse.message(|message| message["id"] == "ask").await;
    assert!(answer.to_string().contains("accept"), "{answer}");
    let unknown = sse.call("nothing", json!({})).await;
    assert_eq!(unknown["error"]["code"], -32602);
    if revision == "2025-11-25" {
        // What belongs to no request comes as well.
        let note = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
        assert_eq!(waffles.upstream.push(&note).await, 1, "the stream was open before the first call");
        assert_eq!(sse.message(|message| message == &note).await, note);
    }
    // The server sees one session of Streamable HTTP, which ends with the stream.
    assert_eq!(waffles.upstream.sessions().len(), 1);
    drop(sse);
    until("the session has ended", PATIENCE, || async { waffles.upstream.sessions().is_empty() }).await;
    let calls = waffles.records_of("mcp.tools/call");
    assert_eq!(calls.len(), 5, "each message leaves one record");
    assert!(calls.iter().all(|record| record.principal_name == "alice" && record.server_name == "demo"));
    let record = waffles.record_of("mcp.sse_session");
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Cancelled, "client_gone"));
    assert_eq!((record.server_name.as_str(), record.principal_name.as_str()), ("demo", "alice"));
    assert!(waffles.records_of("mcp.sse_message").is_empty());
}

#[tokio::test]
async fn a_client_of_2024_uses_a_stateless_server() {
    let modern = McpServer::only(Era::Stateless).await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("modern", &modern.url(), |_| {});
    })
    .await;
    modern.on_tool("steps", Behaviour::Progress { steps: 2, pause: Duration::from_millis(5) });
    let asking = Behaviour::Ask { method: "elicitation/create".into(), params: json!({"message": "?"}) };
    modern.on_tool("ask", asking);
    let mut sse = Sse::open(&waffles, "/t/default/mcp/servers/modern", &waffles.key).await;
    sse.send(&initialize("2024-11-05")).await;
    let answer = sse.message(|message| message["id"] == 0).await;
    assert_eq!(answer["result"]["protocolVersion"], "2024-11-05");
    sse.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let listed = sse.ask("l", "tools/list", json!({})).await["result"].clone();
    assert!(listed["tools"].is_array() && listed.get("ttlMs").is_none(), "{listed}");
    assert_eq!(sse.call("echo", json!({"x": 1})).await["result"]["structuredContent"], json!({"x": 1}));
    sse.ask("s", "tools/call", json!({"name": "steps", "_meta": {"progressToken": 5}})).await;
    assert_eq!(sse.heard.drain(..).filter(|message| message["params"]["progressToken"] == 5).count(), 2);
    let params = json!({"name": "ask", "arguments": {}});
    sse.send(&json!({"jsonrpc": "2.0", "id": "ask", "method": "tools/call", "params": params})).await;
    let question = sse.message(|message| message["method"] == "elicitation/create").await;
    sse.send(&json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}})).await;
    let answer = sse.message(|message| message["id"] == "ask").await;
    assert!(answer["result"].to_string().contains("decline"), "{answer}");
    drop(sse);
    until("the gateway's session has ended", PATIENCE, || async {
        waffles.records_of("mcp.session_end").iter().any(|record| record.http_status == 204)
    })
    .await;
}

#[tokio::test]
async fn a_session_belongs_to_one_principal_and_one_door() {
    let mut bob = String::new();
    let waffles = Seeded::and(|seed, url| {
        let id = seed.principal("bob", "user");
        bob = seed.key(id, KeyLimits::default());
        seed.server("other", url, |_| {});
    })
    .await;
    let mut sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    let posted = || waffles.upstream.seen().iter().filter(|seen| seen.method == Method::POST).count();
    waffles.upstream.arrived("notifications/initialized", 1).await;
    let before = posted();
    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo"}}).to_string();
    let unknown = at(&waffles, &format!("{DEMO}/messages?sessionId={}", "0".repeat(32)));
    let never = unknown.with_bearer(&waffles.key).post(call.clone()).await.unwrap();
    assert_eq!(never.status, 404);
    let theirs = sse.post.clone().with_bearer(&bob).post(call.clone()).await.unwrap();
    assert_eq!((theirs.status, masked(&theirs)), (never.status, masked(&never)));
    let endpoint = &sse.endpoint;
    for path in [
        endpoint.replace("/demo/", "/other/"),
        endpoint.replace("/servers/demo/", "/"),
        endpoint.replace("/mcp/", "/t/default/mcp/"),
        endpoint.replace("sessionId", "sessionid"),
        format!("{endpoint}&x=1"),
        format!("{DEMO}/messages"),
    ] {
        let answer = at(&waffles, &path).with_bearer(&waffles.key).post(call.clone()).await.unwrap();
        assert_eq!((answer.status, masked(&answer)), (never.status, masked(&never)), "{path}");
    }
    assert_eq!(posted(), before, "nothing of it reached the server");
    let refused = waffles.records_of("mcp.sse_message");
    assert_eq!(refused.len(), 8);
    assert!(refused.iter().all(|record| (record.http_status, &*record.reason) == (404, "unknown_session")));
    assert_eq!(refused.iter().filter(|record| record.principal_name == "bob").count(), 1);
    assert!(sse.call("echo", json!({})).await["result"].is_object(), "and it still works");
}

#[tokio::test]
async fn what_is_wrong_with_a_post_is_its_answer() {
    let waffles = Seeded::start().await;
    let sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let post = &sse.post;
    let check = |answer: Answer, status: u16, reason: &str| {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.message()["error"]["data"]["reason"], reason);
    };
    check(post.clone().without("authorization").post(ping).await.unwrap(), 401, "no_credential");
    check(post.post("{").await.unwrap(), 400, "invalid_json");
    check(post.post(format!("[{ping}]")).await.unwrap(), 400, "batch");
    check(
        post.post(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#).await.unwrap(),
        400,
        "duplicate_key",
    );
    check(
        post.clone().with("content-type", "text/plain").post(ping).await.unwrap(),
        415,
        "unsupported_media_type",
    );
    check(post.clone().with("origin", "http://evil.test").post(ping).await.unwrap(), 403, "foreign_origin");
    check(post.get().await.unwrap(), 405, "method_not_allowed");
    let door = at(&waffles, "/mcp/servers/demo/sse");
    check(door.get().await.unwrap(), 401, "no_credential");
    let door = door.with_bearer(&waffles.key);
    check(door.post(ping).await.unwrap(), 405, "method_not_allowed");
    check(door.clone().with("accept", "application/json").get().await.unwrap(), 406, "not_acceptable");
    let nothing = at(&waffles, "/mcp/servers/nothing/sse").with_bearer(&waffles.key);
    check(nothing.get().await.unwrap(), 404, "unknown_server");
    let secret = at(&waffles, "/mcp/servers/demo/sse?token=x").with_bearer(&waffles.key);
    check(secret.get().await.unwrap(), 400, "credential_in_url");
    // What only the server or the gateway's path can tell comes on the stream, under the id of the request.
    let mut sse = sse;
    let answer = sse.ask("x", "tools/call", json!({"arguments": {}})).await;
    assert_eq!(answer["error"]["data"]["reason"], "missing_field");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_nothing() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("slow", Behaviour::Slow(Duration::from_millis(800)));
    let sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    sse.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "slow"}})).await;
    waffles.upstream.arrived("tools/call", 1).await;
    let post = sse.post.clone();
    drop(sse);
    until("the session is unknown", PATIENCE, || async {
        post.post(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).await.unwrap().status == 404
    })
    .await;
    until("the call was answered", PATIENCE, || async { waffles.records_of("mcp.tools/call").len() == 1 })
        .await;
    let record = waffles.record_of("mcp.tools/call");
    assert_eq!((record.outcome, record.http_status), (Outcome::Ok, 200));
    // The server's own stream was closed, and nothing else.
    assert!(waffles.upstream.seen_of("notifications/cancelled").is_empty());
}

#[tokio::test]
async fn nothing_overtakes_the_end_of_the_handshake() {
    let waffles = Seeded::start().await;
    let slow = Behaviour::Slow(Duration::from_millis(700));
    waffles.upstream.on_method("notifications/initialized", slow);
    let started = Instant::now();
    let mut sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    sse.ask("l", "tools/list", json!({})).await;
    assert!(started.elapsed() >= Duration::from_millis(700), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_session_has_so_many_requests_under_way_and_no_more() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("never", Behaviour::SilentStream);
    let sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    for id in 0..32 {
        sse.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "never"}}))
            .await;
    }
    let ping = r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#;
    let refused = sse.post.post(ping).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (429, Some("1")));
    // A client can always take back and answer.
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}});
    sse.send(&cancel).await;
}

#[tokio::test]
async fn a_session_ends_with_its_key() {
    let mut key = String::new();
    let waffles = Seeded::and(|seed, _| {
        let bob = seed.principal("bob", "user");
        key = seed.key_with(bob, |parts| {
            parts.expires_at = Some(chrono::Utc::now() + chrono::TimeDelta::seconds(4));
        });
    })
    .await;
    let sse = Sse::start(&waffles, DEMO, &key).await;
    let rest = timeout(Duration::from_secs(12), sse.stream.rest()).await;
    assert!(rest.is_ok(), "the stream outlives its key");
    let record = waffles.record_of("mcp.sse_session");
    assert_eq!((record.outcome, record.rule.as_str()), (Outcome::Denied, "revoked while open"));
}

#[tokio::test]
async fn a_drain_lets_what_is_under_way_end_and_then_ends_the_stream() {
    let mut waffles = Seeded::start().await;
    waffles.upstream.on_tool("slow", Behaviour::Slow(Duration::from_secs(3)));
    let mut sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    let call = json!({"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": {"name": "slow"}});
    sse.send(&call).await;
    waffles.upstream.arrived("tools/call", 1).await;
    let (status, ()) = tokio::join!(waffles.proxy.stop(), async {
        let answer = sse.message(|message| message["id"] == "c").await;
        assert!(answer["result"].is_object(), "{answer}");
        assert!(sse.stream.event().await.unwrap().is_none());
    });
    assert!(status.success());
    let record = waffles.record_of("mcp.sse_session");
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Ok, "drained"));
    assert!(waffles.upstream.sessions().is_empty(), "the server was told");
}

/// A client in a session of 2025-03-26.
async fn batching(waffles: &Seeded) -> McpClient {
    let client = waffles.client();
    let answer = client.post(initialize("2025-03-26").to_string()).await.unwrap();
    assert_eq!(answer.result()["protocolVersion"], "2025-03-26");
    client.with("mcp-session-id", answer.header("mcp-session-id").unwrap())
}

fn request(id: impl Into<Value>, tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": {"name": tool}})
}

fn array(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn a_batch_is_served_message_by_message() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("slow", Behaviour::Slow(Duration::from_millis(300)));
    let client = batching(&waffles).await;
    let note = json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"});
    let late = json!({"jsonrpc": "2.0", "id": "nobody", "result": {}});
    let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
    let batch = json!([request(1, "slow"), note, ping, late, request("1", "echo"), request(2, "nothing")]);
    for client in [client.clone(), client.clone().with("mcp-protocol-version", "2025-03-26")] {
        let answer = client.post(format!(" \r\n\t{batch}")).await.unwrap();
        assert_eq!(answer.status, 200);
        let answers = array(&answer);
        let ids: Vec<_> = answers.iter().map(|answer| answer["id"].clone()).collect();
        assert_eq!(ids, [json!(1), json!("p"), json!("1"), json!(2)]);
        assert_eq!(answers[3]["error"]["code"], -32602);
    }
    assert_eq!(client.post(json!([note, late]).to_string()).await.unwrap().status, 202);
    assert!(waffles.upstream.seen().iter().all(|seen| !seen.json().is_array()), "never forwarded as one");
    assert_eq!(waffles.records_of("mcp.tools/call").len(), 6);
    assert_eq!(waffles.records_of("mcp.none").len(), 0, "the batch itself is no message");
}

#[tokio::test]
async fn a_batch_is_a_stream_where_any_answer_is() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("steps", Behaviour::Progress { steps: 3, pause: Duration::from_millis(200) });
    waffles.upstream.on_tool("large", Behaviour::Large(700_000));
    let client = batching(&waffles).await;
    let batch = json!([request(1, "steps"), request(2, "echo"), request(3, "steps")]);
    let started = Instant::now();
    let answer = client.post(batch.to_string()).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(1_100), "they run beside one another");
    assert!(answer.is_sse() && answer.complete);
    let messages = answer.messages();
    assert_eq!(messages.len(), 9, "{}", answer.text());
    let mut ids: Vec<_> = messages.iter().filter_map(|message| message["id"].as_i64()).collect();
    assert_eq!(ids.remove(0), 2, "what is quick comes first");
    ids.sort_unstable();
    assert_eq!(ids, [1, 3]);
    // Large answers go at the client's pace.
    let batch = json!([request(1, "large"), request(2, "large"), request(3, "large")]);
    let answer = client.post(batch.to_string()).await.unwrap();
    assert!(answer.is_sse());
    assert_eq!(answer.messages().len(), 3);
}

#[tokio::test]
async fn a_batch_runs_eight_messages_at_once() {
    let waffles = Seeded::start().await;
    let pause = Duration::from_millis(150);
    waffles.upstream.on_tool("slow", Behaviour::Slow(pause));
    let client = batching(&waffles).await;
    let batch: Vec<Value> = (0..50).map(|id| request(id, "slow")).collect();
    let started = Instant::now();
    let answer = client.post(json!(batch).to_string()).await.unwrap();
    assert!(started.elapsed() >= pause * 7, "{:?}", started.elapsed());
    let ids: Vec<_> = array(&answer).iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_item_of_a_batch_is_judged_by_itself() {
    let waffles = Seeded::start().await;
    let client = batching(&waffles).await;
    let before = waffles.records().len();
    let echo = request("good", "echo").to_string();
    let first = initialize("2025-03-26").to_string();
    let modern = r#"{"jsonrpc":"2.0","id":"m","method":"ping","params":{"_meta":{
        "io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let nameless = r#"{"jsonrpc":"2.0","id":"t","method":"tools/call","params":{}}"#;
    let batch = format!("[1, {{}}, [{echo}], {first}, {nameless}, {modern}, {echo}]");
    let answer = client.post(batch).await.unwrap();
    assert_eq!(answer.status, 200);
    let answers = array(&answer);
    let told: Vec<_> = answers
        .iter()
        .map(|answer| (answer.get("id").cloned(), answer["error"]["data"]["reason"].as_str().unwrap_or("ok")))
        .collect();
    let expected = [
        (None, "not_an_object"),
        (None, "bad_jsonrpc"),
        (None, "batch"),
        (Some(json!(0)), "initialize_in_batch"),
        (Some(json!("t")), "missing_field"),
        (Some(json!("m")), "missing_field"),
        (Some(json!("good")), "ok"),
    ];
    assert_eq!(told, expected);
    assert_eq!(waffles.records().len(), before + 7, "each leaves one record");
    assert_eq!(waffles.upstream.seen_of("initialize").len(), 1);
    assert_eq!(waffles.upstream.seen_of("tools/call").len(), 1);
}

#[tokio::test]
async fn a_batch_that_is_none_is_refused_as_a_whole() {
    let waffles = Seeded::start().await;
    let client = batching(&waffles).await;
    let echo = request(1, "echo");
    let good = json!([echo]).to_string();
    let many = json!(vec![echo.clone(); 51]).to_string();
    let keys: Vec<String> = (0..10_001).map(|n| format!("\"k{n}\":0")).collect();
    let keys = format!("[{{{}}}]", keys.join(","));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let newer = client.clone().with("mcp-protocol-version", "2025-06-18");
    let modern = waffles.client().with("mcp-protocol-version", "2026-07-28");
    let stranger = client.clone().without("authorization");
    let before = waffles.upstream.seen().len();
    for (client, body, status, reason) in [
        (&client, "[]", 400, "batch_size"),
        (&client, many.as_str(), 400, "batch_size"),
        (&client, "[", 400, "invalid_json"),
        (&client, "[{}] x", 400, "trailing_data"),
        (&client, r#"[{"a":1,"\u0061":2}]"#, 400, "duplicate_key"),
        (&client, deep.as_str(), 400, "too_deep"),
        (&client, keys.as_str(), 400, "too_many_keys"),
        (&newer, good.as_str(), 400, "batch"),
        (&modern, good.as_str(), 400, "batch"),
        (&stranger, good.as_str(), 401, "no_credential"),
    ] {
        let answer = client.post(body.to_owned()).await.unwrap();
        assert_eq!(answer.status, status, "{reason}: {}", answer.text());
        assert_eq!(answer.message()["error"]["data"]["reason"], reason);
        let record = waffles.records().pop().unwrap();
        assert_eq!((record.reason.as_str(), record.action.as_str()), (reason, "mcp.none"));
    }
    // A session that is gone is gone for all of them.
    let gone = client.with("mcp-session-id", "made-up");
    let answer = gone.post(json!([echo, echo]).to_string()).await.unwrap();
    assert_eq!(answer.status, 404);
    assert_eq!(array(&answer).len(), 2);
    let note = json!([{"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}]);
    assert_eq!(gone.post(note.to_string()).await.unwrap().status, 404);
    assert_eq!(waffles.upstream.seen().len(), before, "nothing of it reached the server");
}

/// A REST call: no headers but the credential.
async fn rest(waffles: &Seeded, key: &str, method: Method, path: &str, body: &str) -> Answer {
    let mut client = at(waffles, &format!("/api/v1/gateway/{path}")).without("accept");
    if body.is_empty() {
        client = client.without("content-type");
    }
    client.with_bearer(key).request(method, body.to_owned().into()).await.unwrap()
}

#[tokio::test]
async fn each_rest_call_works_with_servers_of_either_era() {
    let (sessions, stateless) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
    let waffles = Seeded::and(|seed, _| {
        seed.server("old", &sessions.url(), |_| {});
        seed.server("new", &stateless.url(), |_| {});
    })
    .await;
    for (name, server) in [("old", &sessions), ("new", &stateless)] {
        server.on_tool("steps", Behaviour::Progress { steps: 3, pause: Duration::from_millis(5) });
        let call = async |method: Method, path: &str, body: &str| {
            let answer = rest(&waffles, &waffles.key, method, &format!("{name}/{path}"), body).await;
            assert_eq!(answer.status, 200, "{name} {path}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some("application/json"));
            serde_json::from_slice::<Value>(&answer.body).unwrap()
        };
        let described = call(Method::POST, "initialize", "").await;
        assert_eq!(described["serverInfo"]["name"], "scripted", "{described}");
        assert!(described["capabilities"]["tools"].is_object(), "{described}");
        let tools = call(Method::POST, "tools/list", "{}").await;
        assert_eq!(tools["tools"].as_array().unwrap().len(), 3);
        let body = r#"{"name":"echo","arguments":{"x":[1.0,{"y":null}]}}"#;
        let called = call(Method::POST, "tools/call", body).await;
        assert_eq!(called["structuredContent"], json!({"x": [1.0, {"y": null}]}));
        let stepped = call(Method::POST, "tools/call", r#"{"name":"steps","arguments":{}}"#).await;
        assert!(stepped["content"].is_array(), "{stepped}");
        assert_eq!(call(Method::GET, "resources/list", "").await["resources"][0]["uri"], "test://one");
        let read = call(Method::GET, "resources/read?uri=test%3A%2F%2Fone%3Fa%3D1", "").await;
        assert_eq!(read["contents"][0]["uri"], "test://one?a=1");
        assert_eq!(call(Method::POST, "prompts/list", "").await["prompts"][0]["name"], "greet");
        assert!(call(Method::POST, "prompts/get", r#"{"name":"greet"}"#).await["messages"].is_array());
    }
    let records = waffles.records_of("mcp.tools/call");
    assert_eq!(records.len(), 4);
    assert!(
        records.iter().all(|record| record.client_name == "waffles-rest" && record.principal_name == "alice")
    );
    assert_eq!(waffles.records().len(), 16, "one for each call");
}

#[tokio::test]
async fn a_rest_call_that_fails_says_so_in_a_problem_document() {
    let mut narrow = String::new();
    let waffles = Seeded::made(
        DataPlaneOptions::default(),
        |server| {
            server.spec.tools = ToolFilter { allow: Vec::new(), deny: vec!["hidden".into()] };
            server.spec.timeouts.first_byte = Duration::from_secs(1);
            server.spec.timeouts.idle = Duration::from_secs(1);
        },
        |seed, _| {
            let bob = seed.principal("bob", "user");
            let limits = KeyLimits { read_only: true, ..KeyLimits::default() };
            narrow = seed.key(bob, limits);
            seed.server("dead", "http://127.0.0.1:1024/mcp", |_| {});
        },
    )
    .await;
    let upstream = &waffles.upstream;
    let error = |code, message: &str| Behaviour::Error { code, message: message.into(), data: Value::Null };
    upstream.on_tool("never", Behaviour::Never);
    upstream.on_tool("quiet", Behaviour::SilentStream);
    upstream.on_tool("reset", Behaviour::ResetMidStream);
    upstream.on_tool("broken", error(-32603, "it broke"));
    upstream.on_tool("picky", error(-32602, "a is required"));
    upstream.on_tool("unknown", error(-32602, "Unknown tool: unknown"));
    upstream.on_tool("html", json_of(500, "<html>"));
    upstream.on_tool("failed", Behaviour::Result(json!({"content": [], "isError": true})));
    let asking = Behaviour::Ask { method: "elicitation/create".into(), params: json!({"message": "?"}) };
    upstream.on_tool("ask", asking);
    let call = |tool: &str| format!(r#"{{"name":"{tool}","arguments":{{}}}}"#);
    let key = waffles.key.as_str();
    let post = Method::POST;
    for (key, method, path, body, status, reason) in [
        ("wfl_nobody", &post, "demo/tools/list", String::new(), 401, "invalid_credential"),
        (key, &post, "nothing/tools/list", String::new(), 404, "unknown_server"),
        (key, &post, "demo/tools/call", call("hidden"), 404, "unknown_tool"),
        (key, &post, "demo/tools/call", call("unknown"), 404, "unknown_tool"),
        (key, &post, "demo/tools/call", call("picky"), 400, "server_error"),
        (key, &post, "demo/tools/call", call("broken"), 502, "server_error"),
        (key, &post, "demo/tools/call", "{}".into(), 400, "missing_field"),
        (key, &post, "demo/tools/call", "{".into(), 400, "invalid_json"),
        (key, &post, "demo/tools/call", "[]".into(), 400, "bad_params"),
        (key, &post, "demo/tools/call", r#"{"name":"echo"},"method":"ping""#.into(), 400, "trailing_data"),
        (key, &Method::GET, "demo/resources/read", String::new(), 400, "missing_field"),
        (key, &Method::GET, "demo/tools/call", String::new(), 405, "method_not_allowed"),
        (key, &post, "dead/tools/list", String::new(), 502, "upstream_unreachable"),
        (key, &post, "demo/tools/call", call("never"), 504, "upstream_timed_out"),
        (key, &post, "demo/tools/call", call("quiet"), 504, "upstream_timed_out"),
        (key, &post, "demo/tools/call", call("reset"), 502, "upstream_broke_off"),
        (key, &post, "demo/tools/call", call("html"), 502, "upstream_failed"),
        (key, &post, "demo/tools/call", call("ask"), 409, "needs_input"),
        (narrow.as_str(), &post, "demo/tools/call", call("echo"), 404, "unknown_tool"),
    ] {
        let before = waffles.records().len();
        let answer = rest(&waffles, key, method.clone(), path, &body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&problem["reason"], &problem["status"]), (&json!(reason), &json!(status)), "{problem}");
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        assert!(problem["code"].is_i64(), "{problem}");
        assert_eq!(waffles.records().len(), before + 1, "{path} {body} leaves one record");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    let form = at(&waffles, "/api/v1/gateway/demo/tools/call").with_bearer(key);
    let form = form.with("content-type", "application/x-www-form-urlencoded");
    assert_eq!(form.post(call("echo")).await.unwrap().status, 415);
    let page = at(&waffles, "/api/v1/gateway/demo/tools/call").with_bearer(key).with("origin", "null");
    let refused = page.post(call("echo")).await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), refused.header("content-type")),
        (403, Some("application/problem+json"))
    );
    assert!(refused.text().contains(r#""reason":"foreign_origin""#), "{}", refused.text());
    let failed = rest(&waffles, key, Method::POST, "demo/tools/call", &call("failed")).await;
    assert_eq!(failed.status, 200, "a tool's own error is a result");
    assert_eq!(serde_json::from_slice::<Value>(&failed.body).unwrap()["isError"], true);
    let told = waffles.records_of("mcp.tools/call");
    let timed_out = told.iter().find(|record| record.reason == "upstream_timed_out").unwrap();
    assert_eq!(timed_out.outcome, Outcome::UpstreamFailed);
}

#[tokio::test]
async fn the_rest_path_of_a_server_is_a_door_like_any_other() {
    let waffles = Seeded::start().await;
    let native = at(&waffles, "/api/v1/gateway/demo").with_bearer(&waffles.key);
    for era in Era::BOTH {
        let client = native.of(era).await;
        assert_eq!(client.call("echo", json!({"x": 1})).await.unwrap().result()["structuredContent"]["x"], 1);
    }
    let session = native.initialize().await;
    assert_eq!(session.get_stream().await.unwrap().status, 200);
    assert_eq!(session.delete().await.unwrap().status, 200);
    for path in ["/api/v1/gateway/demo/", "/api/v1/gateway/demo/tools", "/api/v1/gateway/demo/mcp"] {
        let answer = at(&waffles, path).with_bearer(&waffles.key).post("{}").await.unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
}

/// A server that closes the stream of a call for a while, as 2025-11-25 lets it, and answers on the next one.
fn polled(waffles: &Seeded) {
    waffles.upstream.on_tool("later", stream_of("id: e1\nretry: 50\ndata: \n\n"));
    let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
    let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[]}}"#;
    waffles.upstream.on_get(stream_of(&format!("id: e2\ndata: {note}\n\nid: e3\ndata: {answer}\n\n")));
}

fn resumed(waffles: &Seeded) -> usize {
    let seen = waffles.upstream.seen();
    seen.iter()
        .filter(|seen| seen.method == Method::GET && seen.header("last-event-id") == Some("e1"))
        .count()
}

#[tokio::test]
async fn a_stream_that_its_server_lets_go_is_taken_up_again() {
    let waffles = Seeded::start().await;
    polled(&waffles);
    let mut sse = Sse::open(&waffles, DEMO, &waffles.key).await;
    sse.send(&initialize("2025-11-25")).await;
    sse.message(|message| message["id"] == 0).await;
    sse.send(&request(7, "later")).await;
    let answer = sse.message(|message| message["id"] == 7).await;
    assert!(answer["result"]["content"].is_array(), "{answer}");
    assert_eq!(sse.heard.len(), 1, "what came before the answer came as well");
    assert_eq!(resumed(&waffles), 1);
    let client = batching(&waffles).await;
    let answer = client.post(json!([request(7, "later"), request(8, "echo")]).to_string()).await.unwrap();
    let mut ids: Vec<_> = answer.messages().iter().filter_map(|message| message["id"].as_i64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [7, 8], "{}", answer.text());
    assert_eq!(resumed(&waffles), 2);
    assert!(!answer.text().contains("id: e"), "a stream of several has no event ids");
}

#[tokio::test]
async fn a_stream_that_cannot_be_taken_up_ends_with_an_answer() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("later", stream_of("id: e1\nretry: 20\ndata: \n\n"));
    waffles.upstream.on_get(json_of(405, ""));
    let mut sse = Sse::start(&waffles, DEMO, &waffles.key).await;
    sse.send(&request(7, "later")).await;
    let answer = sse.message(|message| message["id"] == 7).await;
    assert_eq!(answer["error"]["data"]["reason"], "upstream_broke_off");
    assert!((1..=5).contains(&resumed(&waffles)), "{} times", resumed(&waffles));
}

#[tokio::test]
async fn a_client_that_leaves_its_batch_is_noticed() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("quiet", Behaviour::SilentStream);
    let client = batching(&waffles).await;
    let batch = json!([request(1, "quiet"), request(2, "quiet")]).to_string();
    let stream = client.post_stream(batch).await.unwrap();
    waffles.upstream.arrived("tools/call", 2).await;
    drop(stream);
    until("both streams are given up", PATIENCE, || async { waffles.upstream.abandoned() == 2 }).await;
    until("both are recorded", PATIENCE, || async { waffles.records_of("mcp.tools/call").len() == 2 }).await;
    assert!(waffles.upstream.seen_of("notifications/cancelled").is_empty());
}

#[tokio::test]
async fn one_principal_holds_so_many_sessions_and_no_more() {
    let mut bob = String::new();
    let waffles = Seeded::and(|seed, _| {
        let id = seed.principal("bob", "user");
        bob = seed.key(id, KeyLimits::default());
    })
    .await;
    let door = at(&waffles, "/mcp/servers/demo/sse").with_bearer(&waffles.key);
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.push(door.get_stream().await.unwrap());
    }
    let refused = door.get_stream().await.unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(door.clone().with_bearer(&bob).get_stream().await.unwrap().status, 200);
    assert!(waffles.proxy.metrics().await.contains("waffles_open_streams 100"));
    held.clear();
    until("there is room again", PATIENCE, || async { door.get_stream().await.unwrap().status == 200 }).await;
    until("nothing is left of them", PATIENCE, || async {
        waffles.proxy.metrics().await.contains("waffles_open_streams 0")
    })
    .await;
    assert!(waffles.upstream.seen().is_empty(), "a server hears of none of it");
}
