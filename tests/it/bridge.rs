//! A client of one era and a server of another: what one says reaches the other in its own words, questions in mid-call
//! included, and what one gives up is given up at the other.

use serde_json::{Value, json};
use waffles_core::credential::KeyLimits;
use waffles_core::server::Transport;
use waffles_runtime::task;
use waffles_tests::{Behaviour, DataPlane, Era, McpClient, McpServer, PATIENCE, Seeded, eventually};

/// A proxy with a server of one era, registered as `old` or `new`, beside the usual `demo`.
struct Pair {
    waffles: Seeded,
    server: McpServer,
    name: &'static str,
    bob: String,
}

impl Pair {
    async fn of(era: Era) -> Self {
        let server = McpServer::only(era).await;
        let name = if era == Era::Sessions { "old" } else { "new" };
        let mut bob = String::new();
        let url = server.url();
        let waffles = Seeded::and(|seed, _| {
            seed.server(name, &url, |_| {});
            let owner = seed.principal("bob", "user");
            bob = seed.key(owner, KeyLimits::default());
        })
        .await;
        Self { waffles, server, name, bob }
    }

    fn at(&self, proxy: &DataPlane, key: &str) -> McpClient {
        McpClient::new(&proxy.server_url(self.name)).with_bearer(key)
    }

    fn client(&self) -> McpClient {
        self.at(&self.waffles.proxy, &self.waffles.key)
    }
}

fn elicit() -> Behaviour {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    let params = json!({"message": "Who?", "requestedSchema": schema});
    Behaviour::Ask { method: "elicitation/create".into(), params }
}

#[tokio::test]
async fn a_stateless_client_uses_a_server_with_sessions() {
    let pair = Pair::of(Era::Sessions).await;
    let client = pair.client().of(Era::Stateless).await;
    let found = client.ask(1, "server/discover", json!({})).await.unwrap().result();
    assert_eq!(found["resultType"], "complete");
    assert!(found["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")), "{found}");
    assert!(found["capabilities"]["tools"].is_object() && found["ttlMs"].is_u64(), "{found}");
    let listed = client.ask("a", "tools/list", json!({})).await.unwrap();
    assert_eq!(listed.message()["id"], "a");
    let listed = listed.result();
    assert_eq!((&listed["resultType"], &listed["cacheScope"]), (&json!("complete"), &json!("private")));
    assert_eq!(listed["tools"].as_array().unwrap().len(), 2);
    let called = client.call("echo", json!({"x": [1, {"y": null}]})).await.unwrap().result();
    assert_eq!(called["structuredContent"], json!({"x": [1, {"y": null}]}));
    assert_eq!(called["resultType"], "complete");
    assert_eq!(called["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "scripted");
    let seen = pair.server.seen_of("tools/call").remove(0);
    assert!(seen.json()["params"].get("_meta").is_none_or(|meta| meta == &json!({})), "{}", seen.json());
    assert!(seen.header("mcp-session-id").is_some() && seen.header("mcp-method").is_none());
    assert_eq!(pair.server.seen_of("initialize").len(), 1, "one session for one client");
    let unknown = client.call("nothing", json!({})).await.unwrap();
    assert_eq!((unknown.status.as_u16(), unknown.error_code()), (200, -32602));
    for (method, status) in [("ping", 404), ("resources/subscribe", 404), ("vendor/thing", 404)] {
        let answer = client.ask(9, method, json!({})).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.error_code()), (status, -32601), "{method}");
    }
}

#[tokio::test]
async fn progress_and_log_messages_come_back_under_the_clients_own_token() {
    let pair = Pair::of(Era::Sessions).await;
    let steps = Behaviour::Progress { steps: 3, pause: std::time::Duration::from_millis(5) };
    pair.server.on_tool("steps", steps);
    let client = pair.client().of(Era::Stateless).await;
    let params = json!({"name": "steps", "arguments": {}, "_meta": {"progressToken": "mine"}});
    let answer = client.ask(7, "tools/call", params).await.unwrap();
    let messages = answer.messages();
    let tokens: Vec<_> =
        messages.iter().filter_map(|message| message["params"].get("progressToken")).collect();
    assert_eq!(tokens, [&json!("mine"); 3], "{messages:?}");
    assert_eq!(answer.message()["id"], 7);
    // Without a token the scripted server logs instead.
    let quiet = client.call("steps", json!({})).await.unwrap();
    assert_eq!(quiet.messages().len(), 1, "who asks for no log gets none: {}", quiet.text());
    let meta = json!({"io.modelcontextprotocol/logLevel": "debug"});
    let params = json!({"name": "steps", "arguments": {}, "_meta": meta});
    let loud = client.ask(8, "tools/call", params).await.unwrap();
    assert_eq!(loud.messages().len(), 4, "{}", loud.text());
    assert!(!pair.server.seen_of("logging/setLevel").is_empty(), "the session's level was set");
}

#[tokio::test]
async fn a_question_in_mid_call_is_answered_by_a_stateless_client() {
    let pair = Pair::of(Era::Sessions).await;
    pair.server.on_tool("ask", elicit());
    let client = pair.client().of(Era::Stateless).await;
    let params = json!({"name": "ask", "arguments": {"b": 1, "a": 2}});
    let first = client.ask(1, "tools/call", params).await.unwrap().result();
    assert_eq!(first["resultType"], "input_required", "{first}");
    let requests = first["inputRequests"].as_object().unwrap();
    let (key, request) = requests.iter().next().unwrap();
    assert_eq!(
        (request["method"].as_str(), &request["params"]["message"]),
        (Some("elicitation/create"), &json!("Who?"))
    );
    let state = first["requestState"].as_str().unwrap().to_owned();
    let answer = json!({"action": "accept", "content": {"name": "Ada"}});
    let retry = |state: &str, arguments: Value| json!({"name": "ask", "arguments": arguments, "requestState": state, "inputResponses": {key.as_str(): answer}});
    // Nobody else, and for nothing else.
    let same = json!({"a": 2, "b": 1});
    let bob = pair.at(&pair.waffles.proxy, &pair.bob).of(Era::Stateless).await;
    let mut changed = state.clone();
    changed.replace_range(20..21, if &changed[20..21] == "A" { "B" } else { "A" });
    for (who, state, arguments) in [
        (&bob, state.as_str(), same.clone()),
        (&client, state.as_str(), json!({"a": 3, "b": 1})),
        (&client, changed.as_str(), same.clone()),
        (&client, "made-up", same.clone()),
    ] {
        let refused = who.ask(2, "tools/call", retry(state, arguments)).await.unwrap();
        assert_eq!(refused.error_code(), -32602, "{}", refused.text());
    }
    let last = client.ask("two", "tools/call", retry(&state, same.clone())).await.unwrap();
    assert_eq!(last.message()["id"], "two");
    assert_eq!(last.result()["structuredContent"]["result"], answer, "{}", last.text());
    // A duplicate answers nothing twice.
    let again = client.ask(3, "tools/call", retry(&state, same)).await.unwrap();
    assert_eq!(again.error_code(), -32602);
    assert_eq!(again.message()["error"]["data"]["reason"], "request_state_used");
    assert_eq!(pair.server.seen_of("tools/call").len(), 1, "the call was made once");
}

#[tokio::test]
async fn a_parked_call_is_answered_through_another_proxy() {
    let pair = Pair::of(Era::Sessions).await;
    pair.server.on_tool("ask", elicit());
    let other = pair.waffles.another().await;
    let client = pair.client().of(Era::Stateless).await;
    let first = client.call("ask", json!({})).await.unwrap().result();
    let key = first["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();
    let there = pair.at(&other, &pair.waffles.key).of(Era::Stateless).await;
    let answer = json!({"action": "accept", "content": {"name": "Bea"}});
    let params = json!({"name": "ask", "arguments": {}, "requestState": first["requestState"],
        "inputResponses": {key: answer}});
    let last = there.ask(5, "tools/call", params.clone()).await.unwrap();
    assert_eq!(last.result()["structuredContent"]["result"], answer, "{}", last.text());
    let again = there.ask(6, "tools/call", params).await.unwrap();
    assert_eq!(again.message()["error"]["data"]["reason"], "request_state_used", "{}", again.text());
}

#[tokio::test]
async fn a_stateless_client_that_vanishes_cancels_at_the_server() {
    let pair = Pair::of(Era::Sessions).await;
    // One that has begun its answer, and one that has not said a word.
    for (number, behaviour) in [Behaviour::SilentStream, Behaviour::Never].into_iter().enumerate() {
        pair.server.on_tool("never", behaviour);
        let client = pair.client().of(Era::Stateless).await;
        let asked =
            task::spawn("a client that vanishes", async move { client.call("never", json!({})).await });
        pair.server.arrived("tools/call", number + 1).await;
        asked.abort();
        pair.server.arrived("notifications/cancelled", number + 1).await;
        let call = pair.server.seen_of("tools/call").remove(number).json();
        let told = pair.server.seen_of("notifications/cancelled").remove(number).json();
        assert_eq!(told["params"]["requestId"], call["id"]);
    }
}

#[tokio::test]
async fn a_lost_session_is_opened_anew_once() {
    let pair = Pair::of(Era::Sessions).await;
    let client = pair.client().of(Era::Stateless).await;
    client.call("echo", json!({})).await.unwrap().result();
    pair.server.forget_sessions();
    client.call("echo", json!({"again": true})).await.unwrap().result();
    assert_eq!(pair.server.seen_of("initialize").len(), 2);
    let alice = pair.server.sessions().len();
    let bob = pair.at(&pair.waffles.proxy, &pair.bob).of(Era::Stateless).await;
    bob.call("echo", json!({})).await.unwrap().result();
    assert_eq!(pair.server.sessions().len(), alice + 1, "sessions are never shared between principals");
}

#[tokio::test]
async fn a_session_client_uses_a_stateless_server() {
    let pair = Pair::of(Era::Stateless).await;
    let client = pair.client().of(Era::Sessions).await;
    assert!(client.headers["mcp-session-id"].to_str().unwrap().starts_with("g."));
    client.ask(1, "ping", json!({})).await.unwrap().result();
    let listed = client.ask(2, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(listed["tools"].as_array().unwrap().len(), 2);
    for gone in ["resultType", "ttlMs", "cacheScope"] {
        assert!(listed.get(gone).is_none(), "{listed}");
    }
    let called = client.call("echo", json!({"x": 1})).await.unwrap().result();
    assert_eq!(called["structuredContent"], json!({"x": 1}));
    let seen = pair.server.seen_of("tools/call").remove(0);
    assert_eq!((seen.header("mcp-method"), seen.header("mcp-name")), (Some("tools/call"), Some("echo")));
    let meta = seen.json()["params"]["_meta"].clone();
    assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
    assert!(meta["io.modelcontextprotocol/clientCapabilities"]["elicitation"].is_object(), "{meta}");
    assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "waffles-tests");
    client.ask(3, "logging/setLevel", json!({"level": "warning"})).await.unwrap().result();
    client.call("echo", json!({})).await.unwrap().result();
    let meta = pair.server.seen_of("tools/call")[1].json()["params"]["_meta"].clone();
    assert_eq!(meta["io.modelcontextprotocol/logLevel"], "warning");
    let bad = client.ask(4, "logging/setLevel", json!({"level": "loud"})).await.unwrap();
    assert_eq!(bad.error_code(), -32602);
    let unknown = client.ask(5, "vendor/thing", json!({})).await.unwrap();
    assert_eq!((unknown.status.as_u16(), unknown.error_code()), (200, -32601), "404 would end the session");
    assert_eq!(client.delete().await.unwrap().status, 204);
    assert_eq!(client.ask(6, "ping", json!({})).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_session_client_gets_the_exact_revision_that_it_asked_for() {
    let pair = Pair::of(Era::Stateless).await;
    for (asked, agreed) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2099-01-01", "2025-11-25"),
    ] {
        let body = waffles_tests::mcp_client::initialize(asked);
        let answer = pair.client().post(body.to_string()).await.unwrap();
        assert_eq!(answer.result()["protocolVersion"], agreed);
        assert_eq!(answer.result()["serverInfo"]["name"], "scripted");
        assert!(answer.header("mcp-session-id").is_some());
    }
}

#[tokio::test]
async fn a_question_of_a_stateless_server_becomes_a_request_to_a_session_client() {
    let pair = Pair::of(Era::Stateless).await;
    pair.server.on_tool("ask", elicit());
    let client = pair.client().of(Era::Sessions).await;
    let params = json!({"name": "ask", "arguments": {}});
    let mut stream = client.ask_stream(1, "tools/call", params).await.unwrap();
    let question = stream.message().await.unwrap();
    assert_eq!(question["method"], "elicitation/create");
    assert_eq!(question["params"]["message"], "Who?");
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}});
    let told = client.post(answer.to_string()).await.unwrap();
    assert_eq!(told.status, 202);
    let last = stream.message().await.unwrap();
    assert_eq!(last["id"], 1, "{last}");
    assert!(last["result"].to_string().contains("decline"), "{last}");
    assert_eq!(pair.server.seen_of("tools/call").len(), 2, "asked, and asked again with the answer");
    // The answer may come in through another proxy.
    let other = pair.waffles.another().await;
    let mut stream =
        client.ask_stream(2, "tools/call", json!({"name": "ask", "arguments": {}})).await.unwrap();
    let question = stream.message().await.unwrap();
    let mut there = pair.at(&other, &pair.waffles.key);
    there.headers = client.headers.clone();
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "cancel"}});
    assert_eq!(there.post(answer.to_string()).await.unwrap().status, 202);
    assert!(stream.message().await.unwrap()["result"].to_string().contains("cancel"));
}

#[tokio::test]
async fn only_a_cancellation_cancels_for_a_session_client() {
    let pair = Pair::of(Era::Stateless).await;
    pair.server.on_tool("never", Behaviour::SilentStream);
    let client = pair.client().of(Era::Sessions).await;
    let gone = task::spawn("a client that vanishes", {
        let client = client.clone();
        async move { client.ask(1, "tools/call", json!({"name": "never", "arguments": {}})).await }
    });
    pair.server.arrived("tools/call", 1).await;
    gone.abort();
    let asked = task::spawn("a client that vanishes", {
        let client = client.clone();
        async move { client.ask(2, "tools/call", json!({"name": "never", "arguments": {}})).await }
    });
    pair.server.arrived("tools/call", 2).await;
    assert_eq!(pair.server.abandoned(), 0, "a lost connection is no cancellation");
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
    assert_eq!(client.post(cancel.to_string()).await.unwrap().status, 202);
    eventually(PATIENCE, || async {
        anyhow::ensure!(pair.server.abandoned() == 1, "{} streams were closed", pair.server.abandoned());
        Ok(())
    })
    .await;
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.messages(), Vec::<Value>::new(), "a cancelled request has no answer");
}

#[tokio::test]
async fn a_session_that_began_on_one_proxy_goes_on_at_another() {
    let pair = Pair::of(Era::Stateless).await;
    let other = pair.waffles.another().await;
    let client = pair.client().of(Era::Sessions).await;
    let mut there = pair.at(&other, &pair.waffles.key);
    there.headers = client.headers.clone();
    assert_eq!(there.call("echo", json!({"x": 2})).await.unwrap().result()["structuredContent"]["x"], 2);
    let stolen = there.with_bearer(&pair.bob);
    assert_eq!(stolen.call("echo", json!({})).await.unwrap().status, 404);
}

#[tokio::test]
async fn trouble_is_no_evidence_of_an_era() {
    let pair = Pair::of(Era::Sessions).await;
    let busy = Behaviour::Raw { status: 503, headers: vec![], body: "busy".into() };
    pair.server.on_method("server/discover", busy);
    let client = pair.client().of(Era::Stateless).await;
    let refused = client.call("echo", json!({})).await.unwrap();
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert_eq!(pair.server.seen_of("initialize").len(), 0, "nothing was concluded");
    // What only asks is asked again where the server says that it is busy.
    let asked = pair.server.seen_of("server/discover").len();
    assert_eq!(asked, 3);
    let foreign = Behaviour::Raw { status: 404, headers: vec![], body: "nothing here".into() };
    pair.server.on_method("server/discover", foreign);
    client.call("echo", json!({})).await.unwrap().result();
    let again = pair.server.seen_of("server/discover").len() - asked;
    assert_eq!(again, 1, "asked again, and then remembered");
}

#[tokio::test]
async fn a_transport_that_is_stated_is_not_probed() {
    let mut url = String::new();
    let waffles = Seeded::and(|seed, at| {
        url = at.to_owned();
        seed.server("lines", at, |server| server.spec.transport = Transport::Sse);
    })
    .await;
    let client = McpClient::new(&waffles.proxy.server_url("lines")).with_bearer(&waffles.key);
    let client = client.of(Era::Stateless).await;
    let answer = client.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 502, "the scripted server has no HTTP+SSE: {}", answer.text());
    assert!(waffles.upstream.seen().iter().all(|seen| seen.method == http::Method::GET));
}

#[tokio::test]
async fn a_task_belongs_to_its_caller_and_server_at_every_door() {
    let pair = Pair::of(Era::Stateless).await;
    let task = json!({"resultType": "task", "taskId": "t/1", "status": "working",
        "createdAt": "2026-11-25T00:00:00Z", "lastUpdatedAt": "2026-11-25T00:00:00Z", "ttlMs": 60000});
    pair.server.on_tool("job", Behaviour::Result(task.clone()));
    pair.server.on_method("tasks/get", Behaviour::Result(task));
    let federated =
        |key: &str| McpClient::new(&format!("http://{}/mcp", pair.waffles.proxy.mcp)).with_bearer(key);
    for (client, tool) in [(pair.client(), "job"), (federated(&pair.waffles.key), "new__job")] {
        let client = client.of(Era::Stateless).await;
        let made = client.call(tool, json!({})).await.unwrap().result();
        let id = made["taskId"].as_str().unwrap().to_owned();
        assert!(id.starts_with("task.new.") && made["status"] == "working", "{made}");
        let ask = |client: McpClient, id: String| async move {
            let client = client.with("mcp-name", &id);
            client.ask(2, "tasks/get", json!({"taskId": id})).await.unwrap()
        };
        let got = ask(client.clone(), id.clone()).await.result();
        assert_eq!(got["taskId"], json!(id), "the same task has the same id");
        let seen = pair.server.seen_of("tasks/get").pop().unwrap();
        assert_eq!((seen.header("mcp-name"), &seen.json()["params"]["taskId"]), (Some("t/1"), &json!("t/1")));
        let bob = if tool == "job" { pair.at(&pair.waffles.proxy, &pair.bob) } else { federated(&pair.bob) };
        let bob = bob.of(Era::Stateless).await;
        for (who, id) in
            [(bob, id.clone()), (client.clone(), "t/1".into()), (client.clone(), format!("{id}A"))]
        {
            let refused = ask(who, id).await;
            assert_eq!((refused.status.as_u16(), refused.error_code()), (200, -32602), "{}", refused.text());
        }
    }
    assert_eq!(pair.server.seen_of("tasks/get").len(), 2, "nothing of the others' reached the server");
}
