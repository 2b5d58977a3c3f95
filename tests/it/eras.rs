//! What each era asks of a gateway: sessions that belong to one principal and one server, and requests that speak for
//! themselves and say the same in headers and body.

use std::time::Duration;

use serde_json::{Value, json};
use waffles_core::audit::Outcome;
use waffles_core::credential::KeyLimits;
use waffles_runtime::task;
use waffles_tests::mcp_client::{events, initialize, stateless_meta};
use waffles_tests::{Behaviour, Era, McpClient, Seeded, until};

use crate::call::{json_of, masked, stream_of};

fn session(client: &McpClient) -> String {
    client.headers["mcp-session-id"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_id_is_sealed_and_the_server_gets_its_own_back() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Sessions).await;
    let own = waffles.upstream.sessions().remove(0);
    assert!(!session(&client).contains(&own) && session(&client).len() > 64);
    client.call("echo", json!({})).await.unwrap().result();
    let seen = waffles.upstream.seen_of("tools/call").remove(0);
    assert_eq!(seen.header("mcp-session-id"), Some(own.as_str()));
    assert_eq!(seen.header("mcp-protocol-version"), Some("2025-11-25"));
    let records: Vec<String> = waffles.records().into_iter().map(|record| record.action).collect();
    assert_eq!(records, ["mcp.initialize", "mcp.notifications/initialized", "mcp.tools/call"]);
    assert_eq!(waffles.record_of("mcp.initialize").client_name, "waffles-tests");
}

#[tokio::test]
async fn a_session_of_another_principal_or_server_is_as_unknown_as_a_forged_one() {
    let mut bob_key = String::new();
    let mut second = String::new();
    let waffles = Seeded::and(|seed, url| {
        let bob = seed.principal("bob", "user");
        bob_key = seed.key(bob, KeyLimits::default());
        seed.server("twin", url, |_| {});
    })
    .await;
    second.push_str(&waffles.proxy.server_url("twin"));
    let alice = waffles.client().of(Era::Sessions).await;
    let id = session(&alice);
    let cut = &id[..id.len() - 2];
    let stolen = waffles.anonymous().with_bearer(&bob_key).with("mcp-session-id", &id);
    let elsewhere = McpClient::new(&second).with_bearer(&waffles.key).with("mcp-session-id", &id);
    let cases = [
        ("another principal's", stolen.clone()),
        ("another server's", elsewhere),
        ("the server's own", alice.clone().with("mcp-session-id", &waffles.upstream.sessions()[0])),
        ("made up", alice.clone().with("mcp-session-id", "made-up")),
        ("cut", alice.clone().with("mcp-session-id", cut)),
        ("changed", alice.clone().with("mcp-session-id", &format!("{cut}AA"))),
        ("empty", alice.clone().with("mcp-session-id", "")),
    ];
    let before = waffles.upstream.seen().len();
    let mut texts = Vec::new();
    for (what, client) in cases {
        let answer = client.with("mcp-protocol-version", "2025-11-25").call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status, 404, "{what}");
        texts.push(masked(&answer));
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
    for answer in [stolen.get().await.unwrap(), stolen.delete().await.unwrap()] {
        assert_eq!(answer.status, 404);
        assert_eq!(masked(&answer), texts[0].replace(r#""id":1,"#, ""));
    }
    assert_eq!(waffles.upstream.seen().len(), before, "none of it reached the server");
    assert_eq!(waffles.upstream.sessions().len(), 1, "nobody else ended the session");
    alice.call("echo", json!({})).await.unwrap().result();
    // A second key of the same principal may go on with it.
}

#[tokio::test]
async fn a_session_goes_on_at_another_proxy_with_the_same_keys() {
    let waffles = Seeded::start().await;
    let other = waffles.another().await;
    let client = waffles.client().of(Era::Sessions).await;
    let mut there = McpClient::new(&other.server_url("demo"));
    there.headers = client.headers.clone();
    there.call("echo", json!({"x": 1})).await.unwrap().result();
    assert_eq!(waffles.upstream.seen_of("initialize").len(), 1);
    let mut stream = there.get_stream().await.unwrap();
    let note = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    waffles.upstream.push(&note).await;
    assert_eq!(stream.message().await.unwrap(), note);
}

#[tokio::test]
async fn a_session_ends_with_delete_and_is_unknown_from_then_on() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Sessions).await;
    assert_eq!(client.delete().await.unwrap().status, 200);
    assert_eq!(waffles.upstream.sessions().len(), 0);
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 404);
    assert_eq!(waffles.record_of("mcp.session_end").outcome, Outcome::Ok);
    let again = waffles.client().of(Era::Sessions).await;
    waffles.upstream.forget_sessions();
    let answer = again.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 404, "a server that lost its sessions sends its clients to initialize anew");
    assert_eq!(answer.error_code(), -32001, "in the server's own words");
}

#[tokio::test]
async fn a_server_without_sessions_gets_none() {
    let waffles = Seeded::start().await;
    let body = json!({"jsonrpc": "2.0", "id": 0, "result": {"protocolVersion": "2025-06-18",
        "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}});
    waffles.upstream.on_method("initialize", json_of(200, &body.to_string()));
    waffles.upstream.on_method("tools/call", Behaviour::Echo);
    let answer = waffles.client().post(initialize("2025-06-18").to_string()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("mcp-session-id")), (200, None));
    let client = waffles.client().with("mcp-protocol-version", "2025-06-18");
    client.call("echo", json!({})).await.unwrap().result();
    let seen = waffles.upstream.seen_of("tools/call").remove(0);
    assert_eq!(seen.header("mcp-session-id"), None);
    assert_eq!(seen.header("mcp-protocol-version"), Some("2025-06-18"));
    let old = waffles.client().call("echo", json!({})).await.unwrap();
    assert_eq!(old.status, 200, "a client that states no version speaks 2025-03-26");
    assert_eq!(waffles.records().pop().unwrap().protocol_version, "2025-03-26");
}

#[tokio::test]
async fn a_session_id_that_no_header_can_carry_is_the_servers_fault() {
    let waffles = Seeded::start().await;
    let body = json!({"jsonrpc": "2.0", "id": 0, "result": {"protocolVersion": "2025-06-18"}}).to_string();
    for id in ["with blank".to_owned(), "x".repeat(1025)] {
        let headers = vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("mcp-session-id".to_owned(), id),
        ];
        let behaviour = Behaviour::Raw { status: 200, headers, body: body.clone().into() };
        waffles.upstream.on_method("initialize", behaviour);
        let answer = waffles.client().post(initialize("2025-06-18").to_string()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.error_code()), (502, -32603));
    }
}

#[tokio::test]
async fn a_server_asks_its_client_on_the_stream_and_gets_the_reply() {
    let waffles = Seeded::start().await;
    let params = json!({"message": "?", "requestedSchema": {"type": "object"}});
    let ask = Behaviour::Ask { method: "elicitation/create".into(), params: params.clone() };
    waffles.upstream.on_tool("ask", ask);
    let client = waffles.client().of(Era::Sessions).await;
    let mut stream = client.ask_stream(1, "tools/call", json!({"name": "ask"})).await.unwrap();
    let question = stream.message().await.unwrap();
    assert_eq!((&question["method"], &question["params"]), (&json!("elicitation/create"), &params));
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept"}});
    assert_eq!(client.post(reply.to_string()).await.unwrap().status, 202);
    let answer = stream.message().await.unwrap();
    assert_eq!(answer["result"]["structuredContent"]["result"]["action"], "accept");
    assert_eq!(stream.rest().await.unwrap(), Vec::<Value>::new());
    let records: Vec<String> = waffles.records().into_iter().skip(2).map(|record| record.action).collect();
    assert_eq!(records, ["mcp.response", "mcp.tools/call"]);
}

#[tokio::test]
async fn event_ids_pass_in_both_directions_within_a_session() {
    let waffles = Seeded::start().await;
    let primed = "id: e-1\nretry: 250\ndata:\n\n";
    waffles.upstream.on_tool("poll", stream_of(primed));
    let client = waffles.client().of(Era::Sessions).await;
    let answer = client.call("poll", json!({})).await.unwrap();
    assert!(answer.complete, "a server may close a stream after an event with an id; it is no error");
    let found = events(&answer.body);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id.as_deref(), found[0].retry, found[0].data.len()), (Some("e-1"), Some(250), 0));
    let record = waffles.record_of("mcp.tools/call");
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Ok, "stream_closed"));

    // The rest of it comes on a GET: also the answer, which no GET stream carries otherwise.
    let rest = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": []}});
    waffles.upstream.on_get(stream_of(&format!("id: e-2\ndata: {rest}\n\n")));
    let resumed = client.with("last-event-id", "e-1").get().await.unwrap();
    assert_eq!(waffles.upstream.seen().pop().unwrap().header("last-event-id"), Some("e-1"));
    assert_eq!(resumed.message(), rest);
    assert_eq!(events(&resumed.body)[0].id.as_deref(), Some("e-2"));
    assert_eq!(waffles.record_of("mcp.stream").outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_resumed_list_is_filtered_like_any_other() {
    let waffles = Seeded::with(|server| server.spec.tools.deny = vec!["secret".into()]).await;
    let client = waffles.client().of(Era::Sessions).await;
    let list =
        json!({"jsonrpc": "2.0", "id": 9, "result": {"tools": [{"name": "secret"}, {"name": "open"}]}});
    waffles.upstream.on_get(stream_of(&format!("data: {list}\n\n")));
    let answer = client.get().await.unwrap();
    assert_eq!(answer.result()["tools"], json!([{"name": "open"}]));
}

#[tokio::test]
async fn headers_of_the_stateless_era_must_say_what_the_body_says() {
    let waffles = Seeded::start().await;
    let base = || waffles.client().of(Era::Stateless).await_now();
    let meta = stateless_meta();
    let call = |name: &str| {
        json!({"jsonrpc": "2.0", "id": "q", "method": "tools/call",
            "params": {"name": name, "arguments": {}, "_meta": meta}})
        .to_string()
    };
    let good = || base().with("mcp-method", "tools/call").with("mcp-name", "echo");
    let twice = |name: &'static str, value: &'static str| {
        let mut client = good();
        client.headers.append(name, value.parse().unwrap());
        client
    };
    let sentinel = "=?base64?ZWNobw==?=";
    // The status, the code (0: a result) and the reason.
    let cases: Vec<(&str, McpClient, &str, u16, i64, &str)> = vec![
        ("as it should be", good(), "echo", 200, 0, ""),
        ("blanks round values", good().with("mcp-name", " \techo\t "), "echo", 200, 0, ""),
        ("in base64", good().with("mcp-name", sentinel), "echo", 200, 0, ""),
        ("in base64 with blanks", good().with("mcp-name", &format!("  {sentinel} ")), "echo", 200, 0, ""),
        ("without a method", good().without("mcp-method"), "echo", 400, -32020, "header_missing"),
        ("without a name", good().without("mcp-name"), "echo", 400, -32020, "header_missing"),
        ("without a version", good().without("mcp-protocol-version"), "echo", 400, -32020, "header_missing"),
        ("another method", good().with("mcp-method", "tools/list"), "echo", 400, -32020, "header_mismatch"),
        (
            "a method in capitals",
            good().with("mcp-method", "TOOLS/CALL"),
            "echo",
            400,
            -32020,
            "header_mismatch",
        ),
        ("another name", good().with("mcp-name", "add"), "echo", 400, -32020, "header_mismatch"),
        ("a name in capitals", good().with("mcp-name", "Echo"), "echo", 400, -32020, "header_mismatch"),
        ("an empty name", good().with("mcp-name", ""), "echo", 400, -32020, "header_mismatch"),
        ("two methods", twice("mcp-method", "tools/call"), "echo", 400, -32020, "header_duplicate"),
        ("two names", twice("mcp-name", "echo"), "echo", 400, -32020, "header_duplicate"),
        (
            "two versions",
            twice("mcp-protocol-version", "2026-07-28"),
            "echo",
            400,
            -32020,
            "header_duplicate",
        ),
        ("two sessions", twice("mcp-session-id", "a").with("x", "y"), "echo", 200, 0, ""),
        (
            "broken base64",
            good().with("mcp-name", "=?base64?ZWNobw?="),
            "echo",
            400,
            -32020,
            "header_bad_encoding",
        ),
        (
            "base64 of no text",
            good().with("mcp-name", "=?base64?/w==?="),
            "echo",
            400,
            -32020,
            "header_bad_encoding",
        ),
        (
            "capital marker",
            good().with("mcp-name", "=?BASE64?ZWNobw==?="),
            "echo",
            400,
            -32020,
            "header_mismatch",
        ),
        (
            "half a marker",
            good().with("mcp-name", "=?base64?ZWNobw=="),
            "echo",
            400,
            -32020,
            "header_mismatch",
        ),
        (
            "base64 twice",
            good().with("mcp-name", "=?base64?PT9iYXNlNjQ/WldOb2J3PT0/PQ==?="),
            "echo",
            400,
            -32020,
            "header_mismatch",
        ),
        (
            "bytes above ASCII",
            good().with("mcp-name", "\u{e9}cho"),
            "echo",
            400,
            -32020,
            "header_bad_character",
        ),
        (
            "a name that looks like base64",
            good().with("mcp-name", sentinel),
            sentinel,
            400,
            -32020,
            "header_mismatch",
        ),
        (
            "another version in the header",
            good().with("mcp-protocol-version", "2025-11-25"),
            "echo",
            400,
            -32020,
            "header_mismatch",
        ),
    ];
    for (what, client, name, status, code, reason) in cases {
        let before = waffles.upstream.seen_of("tools/call").len();
        let answer = client.post(call(name)).await.unwrap();
        let message = answer.message();
        let found = message["error"]["code"].as_i64().unwrap_or(0);
        assert_eq!((answer.status.as_u16(), found), (status, code), "{what}: {message}");
        let reached = waffles.upstream.seen_of("tools/call").len() - before;
        assert_eq!(reached, usize::from(code == 0), "{what}");
        let record = waffles.records().pop().unwrap();
        assert_eq!(record.reason, reason, "{what}");
        if code != 0 {
            assert_eq!(message["error"]["data"]["reason"], reason, "{what}");
            assert_eq!(record.outcome, Outcome::Invalid, "{what}");
        }
    }
    // What goes on has headers made from the body.
    for seen in waffles.upstream.seen_of("tools/call") {
        assert_eq!(seen.header("mcp-name"), Some("echo"));
        assert_eq!(seen.header("mcp-session-id"), None);
    }
}

/// For tables: a stateless client is ready without a word to the server.
trait Now {
    fn await_now(self) -> McpClient;
}

impl<F: Future<Output = McpClient>> Now for F {
    fn await_now(self) -> McpClient {
        use futures_util::FutureExt as _;
        self.now_or_never().expect("nothing is waited for")
    }
}

#[tokio::test]
async fn a_stateless_request_without_its_meta_is_refused() {
    let waffles = Seeded::start().await;
    let version = "io.modelcontextprotocol/protocolVersion";
    let capabilities = "io.modelcontextprotocol/clientCapabilities";
    let client = waffles.client().of(Era::Stateless).await.with("mcp-method", "tools/list");
    let ask = |meta: Value| {
        json!({"jsonrpc": "2.0", "id": 4, "method": "tools/list", "params": {"_meta": meta}}).to_string()
    };
    for (what, body) in [
        ("no capabilities", ask(json!({version: "2026-07-28"}))),
        ("no version", ask(json!({capabilities: {}}))),
        ("an empty meta", ask(json!({}))),
        ("a meta that is none", ask(json!([]))),
        ("a version that is none", ask(json!({version: 20260728, capabilities: {}}))),
        ("no params", json!({"jsonrpc": "2.0", "id": 4, "method": "tools/list"}).to_string()),
    ] {
        let answer = client.post(body).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.error_code()), (400, -32602), "{what}");
        assert_eq!(answer.message()["id"], 4, "{what}");
    }
    assert_eq!(waffles.upstream.seen().len(), 0);
}

#[tokio::test]
async fn a_version_that_is_not_served_is_refused_with_those_that_are() {
    let waffles = Seeded::start().await;
    let future = json!({
        "io.modelcontextprotocol/protocolVersion": "2027-01-01",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": future}});
    let client = waffles.client().with("mcp-method", "server/discover");
    let answer = client.with("mcp-protocol-version", "2027-01-01").post(body.to_string()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.error_code()), (400, -32022));
    let data = &answer.message()["error"]["data"];
    assert_eq!((&data["supported"], &data["requested"]), (&json!(["2026-07-28"]), &json!("2027-01-01")));
    for unknown in ["2025-11-26", "1.0", "2025-06-18, 2026-07-28"] {
        let client = waffles.client().with("mcp-protocol-version", unknown);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
        assert_eq!(client.post(body.to_string()).await.unwrap().status, 400, "{unknown}");
    }
    assert_eq!(waffles.upstream.seen().len(), 0);
}

#[tokio::test]
async fn the_stateless_era_has_post_only_and_no_sessions() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Stateless).await;
    assert_eq!(client.get().await.unwrap().status, 405);
    assert_eq!(client.delete().await.unwrap().status, 405);
    let answer = client.post(json!({"jsonrpc": "2.0", "id": 1, "result": {}}).to_string()).await.unwrap();
    assert_eq!(answer.status, 400, "such a client has nothing to answer");
    assert_eq!(waffles.upstream.seen().len(), 0);
    // A session id is not looked at, and none is ever made.
    let headers = vec![
        ("content-type".to_owned(), "application/json".to_owned()),
        ("mcp-session-id".to_owned(), "stray".to_owned()),
    ];
    let body = json!({"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete"}}).to_string();
    for method in ["ping", "initialize"] {
        let behaviour = Behaviour::Raw { status: 200, headers: headers.clone(), body: body.clone().into() };
        waffles.upstream.on_method(method, behaviour);
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
        let answer = client.clone().with("mcp-session-id", "x").ask(1, method, params).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("mcp-session-id")), (200, None), "{method}");
        let seen = waffles.upstream.seen().pop().unwrap();
        assert_eq!(seen.header("mcp-session-id"), None);
    }
}

#[tokio::test]
async fn what_is_not_legal_on_a_stateless_stream_does_not_leave() {
    let waffles = Seeded::start().await;
    let note =
        json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}});
    let request = json!({"jsonrpc": "2.0", "id": 5, "method": "sampling/createMessage", "params": {}});
    let other = json!({"jsonrpc": "2.0", "id": 2, "result": {"secret": "another's"}});
    let result = json!({"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete"}});
    let body = format!(
        "id: 7\nretry: 10\n\nid: 8\ndata: {note}\n\ndata: {request}\n\ndata: {other}\n\nevent: custom\ndata: {note}\n\nid: 9\ndata: {result}\n\n"
    );
    waffles.upstream.on_tool("loud", stream_of(&body));
    let client = waffles.client().of(Era::Stateless).await;
    let answer = client.call("loud", json!({})).await.unwrap();
    assert_eq!(answer.messages(), [note, result]);
    assert!(events(&answer.body).iter().all(|event| event.id.is_none() && event.retry.is_none()));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    assert_eq!(answer.header("cache-control"), Some("no-cache, no-transform"));
    let metrics = waffles.proxy.metrics().await;
    for reason in ["request_on_stateless_stream", "answer_to_another_request", "unknown_event_type"] {
        let line = format!("waffles_dropped_events_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn input_that_is_required_is_asked_for_and_brought_again() {
    let waffles = Seeded::start().await;
    let state = "opaque \u{2603} =?base64?x?=";
    let asked = json!({"resultType": "input_required", "requestState": state,
        "inputRequests": {"k": {"method": "elicitation/create", "params": {"message": "?"}}}});
    waffles.upstream.on_tool("ask", Behaviour::Result(asked.clone()));
    let client = waffles.client().of(Era::Stateless).await;
    assert_eq!(client.call("ask", json!({})).await.unwrap().result(), asked);
    waffles.upstream.on_tool("ask", Behaviour::Echo);
    let again = json!({"name": "ask", "arguments": {"x": 1}, "requestState": state,
        "inputResponses": {"k": {"action": "accept", "content": {"n": 1.5}}}});
    client.ask(2, "tools/call", again.clone()).await.unwrap().result();
    let seen = waffles.upstream.seen_of("tools/call").pop().unwrap().json();
    for field in ["requestState", "inputResponses"] {
        assert_eq!(seen["params"][field], again[field]);
    }
}

#[tokio::test]
async fn a_subscription_stays_open_and_its_messages_pass() {
    let waffles = Seeded::start().await;
    let tagged = |method: &str, id: &Value, mut params: Value| {
        params["_meta"] = json!({"io.modelcontextprotocol/subscriptionId": id});
        json!({"jsonrpc": "2.0", "method": method, "params": params})
    };
    let feed = waffles.upstream.on_stream("subscriptions/listen");
    let client = waffles.client().of(Era::Stateless).await;
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let opened = task::spawn("caller", {
        let client = client.clone();
        async move { client.ask_stream("s1", "subscriptions/listen", filter).await }
    });
    waffles.upstream.arrived("subscriptions/listen", 1).await;
    let asked = waffles.upstream.seen_of("subscriptions/listen")[0].json();
    feed.message(&tagged("notifications/subscriptions/acknowledged", &asked["id"], json!({}))).await;
    let mut stream = opened.await.unwrap().unwrap();
    let honoured = json!({"notifications": {"toolsListChanged": true}});
    let first = tagged("notifications/subscriptions/acknowledged", &json!("s1"), honoured);
    assert_eq!(stream.message().await.unwrap(), first);
    assert!(waffles.proxy.metrics().await.contains("waffles_open_streams 1"));
    feed.message(&tagged("notifications/tools/list_changed", &asked["id"], json!({"x": 1.0}))).await;
    let second = tagged("notifications/tools/list_changed", &json!("s1"), json!({"x": 1.0}));
    assert_eq!(stream.message().await.unwrap(), second);
    assert_eq!(waffles.records().len(), 0, "it is written down when it ends");
    let last = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"resultType": "complete"}});
    feed.message(&last).await;
    waffles.upstream.arrived("subscriptions/listen", 2).await;
    let third = tagged("notifications/tools/list_changed", &json!("s1"), json!({}));
    assert_eq!(stream.message().await.unwrap(), third, "a server that ends it is asked again");
    drop(stream);
    until("the stream is given up", Duration::from_secs(2), || async {
        waffles.proxy.metrics().await.contains("waffles_open_streams 0")
    })
    .await;
    assert_eq!(waffles.record_of("mcp.subscriptions/listen").outcome, Outcome::Cancelled);
}

#[tokio::test]
async fn a_servers_refusal_reaches_the_client_as_it_is() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Stateless).await;
    for (status, code) in [(404, -32601), (400, -32021), (400, -32022), (500, -32603), (429, -1)] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"m\u0041","data":{{"requiredCapabilities":{{}}}}}}}}"#
        );
        waffles.upstream.on_tool("no", json_of(status, &body));
        let answer = client.call("no", json!({})).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (status, body));
        let record = waffles.records().pop().unwrap();
        assert_eq!((record.outcome, record.rpc_code), (Outcome::Error, code));
    }
    let none = Behaviour::Raw { status: 405, headers: Vec::new(), body: Vec::new().into() };
    waffles.upstream.on_get(none);
    assert_eq!(waffles.client().get().await.unwrap().status, 405, "there is no stream to be had");
    let answer = waffles.client().delete().await.unwrap();
    assert_eq!(answer.status, 400, "a server that wants a session says so itself");
}
