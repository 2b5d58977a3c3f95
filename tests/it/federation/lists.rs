//! Lists of many servers: whole whatever the pages, gone on with when they change, and whole without who fails.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use waffles_tests::mcp_server::tool;
use waffles_tests::{Behaviour, Era, McpClient, McpServer, RawServer, Seeded, until};

use super::{Farm, names, walk};

const CHANGED: &str = "notifications/tools/list_changed";
const SOON: Duration = Duration::from_secs(10);

/// A server of this era that lists so many tools, so many on a page.
async fn paged(era: Era, tools: usize, size: usize) -> RawServer {
    RawServer::start(move |mut connection| async move {
        while let Some((head, body)) = connection.request().await {
            let message: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let method = message["method"].as_str().unwrap_or_default();
            let known = head.contains("2026-07-28") == (era == Era::Stateless);
            let capabilities = json!({"tools": {}});
            let result = match method {
                _ if message.get("id").is_none() => {
                    connection.write("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await;
                    continue;
                }
                "server/discover" if known => json!({"resultType": "complete", "capabilities": capabilities,
                    "supportedVersions": [era.revision()], "ttlMs": 0, "cacheScope": "private"}),
                "initialize" if era == Era::Sessions => json!({"protocolVersion": era.revision(),
                    "capabilities": capabilities, "serverInfo": {"name": "paged", "version": "1"}}),
                "tools/list" if known || era == Era::Sessions => {
                    let from = message["params"]["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
                    let to = tools.min(from + size);
                    let page: Vec<_> = (from..to).map(|n| tool(&format!("t{n}"))).collect();
                    let mut result = json!({"resultType": "complete", "tools": page, "ttlMs": 0,
                        "cacheScope": "private"});
                    if to < tools {
                        result["nextCursor"] = json!(to.to_string());
                    }
                    result
                }
                _ => {
                    let error = json!({"code": -32600, "message": "not here"});
                    let body = json!({"jsonrpc": "2.0", "id": message["id"], "error": error}).to_string();
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {length}"
                    );
                    connection.write(format!("{head}\r\n\r\n{body}")).await;
                    continue;
                }
            };
            connection.json(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string()).await;
        }
    })
    .await
}

#[tokio::test]
async fn pages_of_servers_and_pages_of_the_door_do_not_meet() {
    for (theirs, ours) in [(1, 3), (2, 2), (3, 1), (4, 5), (100, 4)] {
        let old = paged(Era::Sessions, 7, theirs).await;
        let new = paged(Era::Stateless, 5, theirs).await;
        let farm = Farm::with(ours, |seed| {
            seed.server("old", &old.url(), |_| {});
            seed.server("young", &new.url(), |server| {
                server.spec.tools.deny = vec!["t0".into(), "t3".into()]
            });
        })
        .await;
        farm.empty();
        let expected: Vec<String> =
            (0..7).map(|n| format!("old__t{n}")).chain([1, 2, 4].map(|n| format!("young__t{n}"))).collect();
        for era in Era::BOTH {
            let (all, pages) = walk(&farm.client().of(era).await, "tools/list", "tools", "name").await;
            assert_eq!(all, expected, "{theirs} and {ours}, {era:?}");
            assert_eq!(pages, 10usize.div_ceil(ours), "{theirs} and {ours}, {era:?}");
        }
    }
}

/// Has the servers say that they have changed until the door lists these first.
async fn shows(server: &McpServer, client: &McpClient, first: &[&str]) {
    until("the door lists what has changed", SOON, || async {
        server.announce(CHANGED, json!({})).await;
        let page = client.ask(9, "tools/list", json!({})).await.unwrap().result();
        names(&page, "tools", "name").iter().zip(first).all(|(shown, wanted)| shown == wanted)
    })
    .await;
}

#[tokio::test]
async fn a_list_that_changes_between_pages_is_neither_skipped_nor_repeated() {
    let farm = Farm::paged(2).await;
    farm.empty();
    let tools = |numbers: &[usize]| numbers.iter().map(|n| tool(&format!("a{n}"))).collect();
    farm.alpha.set_tools(tools(&[0, 1, 2, 3, 4]));
    let client = farm.client().of(Era::Stateless).await;
    let page = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(names(&page, "tools", "name"), ["alpha__a0", "alpha__a1"]);
    farm.alpha.set_tools(tools(&[9, 1, 2, 3, 4, 5]));
    shows(&farm.alpha, &client, &["alpha__a9", "alpha__a1"]).await;
    let page = client.ask(2, "tools/list", json!({"cursor": page["nextCursor"]})).await.unwrap().result();
    assert_eq!(names(&page, "tools", "name"), ["alpha__a2", "alpha__a3"]);
    farm.alpha.set_tools(tools(&[2, 3, 4, 5]));
    shows(&farm.alpha, &client, &["alpha__a2", "alpha__a3"]).await;
    let last = client.ask(3, "tools/list", json!({"cursor": page["nextCursor"]})).await.unwrap().result();
    assert_eq!(names(&last, "tools", "name"), ["alpha__a4", "alpha__a5"], "two before it went");
    assert_eq!(last.get("nextCursor"), None);
    farm.alpha.set_tools(tools(&[2, 4, 5]));
    shows(&farm.alpha, &client, &["alpha__a2", "alpha__a4"]).await;
    let lost = client.ask(4, "tools/list", json!({"cursor": page["nextCursor"]})).await.unwrap();
    assert_eq!(lost.error_code(), -32602, "nobody knows where it was: {}", lost.text());
}

#[tokio::test]
async fn a_cursor_is_good_at_every_proxy() {
    let farm = Farm::paged(1).await;
    let client = farm.client().of(Era::Stateless).await;
    let page = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    let other = farm.waffles.another().await;
    let client = McpClient::new(&format!("http://{}/mcp", other.mcp)).with_bearer(&farm.waffles.key);
    let client = client.of(Era::Stateless).await;
    let rest = client.ask(2, "tools/list", json!({"cursor": page["nextCursor"]})).await.unwrap().result();
    let expected = ["alpha__add", "beta__echo", "beta__add", "demo__echo", "demo__add"];
    assert_eq!(names(&rest, "tools", "name"), expected);
}

#[tokio::test]
async fn a_server_that_answers_badly_is_left_out_and_named() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    let raw = |status, body: &'static str| Behaviour::Raw {
        status,
        headers: vec![("content-type".into(), "application/json".into())],
        body: body.into(),
    };
    let refusal = Behaviour::Error { code: -32603, message: "out of order".into(), data: Value::Null };
    for behaviour in [
        Behaviour::NotJson,
        Behaviour::Truncated,
        Behaviour::HangUp,
        Behaviour::WrongId,
        Behaviour::NoAnswer,
        Behaviour::ResetMidStream,
        Behaviour::WrongContentType,
        raw(500, ""),
        raw(503, "{}"),
        refusal,
        Behaviour::Result(json!({"tools": 5})),
        Behaviour::Result(json!({"tools": [], "nextCursor": "again"})),
    ] {
        let said = format!("{behaviour:?}");
        farm.alpha.on_method("tools/list", behaviour);
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let expected = ["beta__echo", "beta__add", "demo__echo", "demo__add"];
        assert_eq!(names(&listed, "tools", "name"), expected, "{said}");
        let missing = &listed["_meta"]["io.waffles/unavailable"];
        assert_eq!(missing.as_array().map(Vec::len), Some(1), "{said}: {listed}");
        assert_eq!(missing[0]["server"], "alpha", "{said}");
        assert!(missing[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{said}");
        assert_eq!((&listed["ttlMs"], listed.get("nextCursor")), (&json!(0), None), "{said}");
    }
    let session = farm.client().of(Era::Sessions).await;
    let listed = session.ask(2, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(listed["_meta"]["io.waffles/unavailable"][0]["server"], "alpha", "in a session too");
}

#[tokio::test]
async fn what_was_good_is_served_while_its_server_is_away() {
    let mut farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    let whole = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    let whole = names(&whole, "tools", "name");
    farm.alpha.kill();
    farm.beta.on_method("tools/list", Behaviour::HangUp);
    farm.waffles.upstream.on_method("tools/list", Behaviour::NotJson);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let listed = client.ask(2, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(names(&listed, "tools", "name"), whole);
    farm.alpha.set_tools(vec![tool("new")]);
    farm.alpha.restart().await;
    until("the server that is back is asked again", SOON, || async {
        let page = client.ask(3, "tools/list", json!({})).await.unwrap().result();
        names(&page, "tools", "name").first().is_some_and(|name| name == "alpha__new")
    })
    .await;
}

#[tokio::test]
async fn only_what_a_server_calls_public_is_shared_among_principals() {
    let farm = Farm::start().await;
    // Without a word when its list changes: with it, what was read before that is heard is read again.
    farm.beta.offer(json!({"tools": {}}));
    let list = |tools: &[&str], scope: &str| {
        let tools: Vec<_> = tools.iter().map(|name| tool(name)).collect();
        Behaviour::Result(json!({"tools": tools, "ttlMs": 60_000, "cacheScope": scope}))
    };
    let alice = farm.client().of(Era::Stateless).await;
    let bob = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    farm.beta.on_method("tools/list", list(&["all", "secret_one"], "public"));
    for client in [&alice, &bob, &alice, &bob] {
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let shown = names(&listed, "tools", "name");
        assert!(shown.contains(&"beta__all".to_owned()) && !shown.join(" ").contains("secret"), "{shown:?}");
        assert_eq!(listed["cacheScope"], "private", "which servers there are is each caller's own");
    }
    assert_eq!(farm.beta.seen_of("tools/list").len(), 1);
    let ttl = bob.ask(1, "tools/list", json!({})).await.unwrap().result()["ttlMs"].as_u64().unwrap();
    assert!((30_000..=60_000).contains(&ttl), "{ttl}");
    let farm = Farm::start().await;
    farm.beta.offer(json!({"tools": {}}));
    let alice = farm.client().of(Era::Stateless).await;
    let bob = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    farm.beta.on_method("tools/list", list(&["hers"], "private"));
    for _ in 0..2 {
        alice.ask(1, "tools/list", json!({})).await.unwrap().result();
    }
    farm.beta.on_method("tools/list", list(&["his"], "private"));
    for (client, own, other) in [(&bob, "beta__his", "beta__hers"), (&alice, "beta__hers", "beta__his")] {
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let shown = names(&listed, "tools", "name");
        assert!(shown.contains(&own.to_owned()) && !shown.contains(&other.to_owned()), "{shown:?}");
    }
    assert_eq!(farm.beta.seen_of("tools/list").len(), 2, "one for each");
}

#[tokio::test]
async fn a_tool_whose_headers_nobody_could_write_is_not_shown() {
    let farm = Farm::start().await;
    let annotated = |name: &str, header: &str, kind: &str| {
        json!({"name": name, "inputSchema": {"type": "object", "properties":
            {"region": {"type": kind, "x-mcp-header": header}}}})
    };
    let tools = [
        annotated("good", "Region", "string"),
        annotated("no-token", "a b", "string"),
        annotated("empty", "", "string"),
        annotated("no-scalar", "Region", "object"),
    ];
    for server in [&farm.alpha, &farm.beta, &farm.waffles.upstream] {
        server.set_tools(tools.to_vec());
    }
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        assert_eq!(names(&listed, "tools", "name"), ["alpha__good", "beta__good", "demo__good"], "{era:?}");
        let schema = &listed["tools"][1]["inputSchema"]["properties"]["region"];
        assert_eq!(schema["x-mcp-header"], "Region", "the schema is as the server wrote it");
        let client = client.with("mcp-param-region", "eu");
        let called = client.call("beta__good", json!({"region": "eu"})).await.unwrap().result();
        assert_eq!(called["structuredContent"]["region"], "eu");
    }
    for call in farm.beta.seen_of("tools/call") {
        assert_eq!((call.header("mcp-name"), call.header("mcp-param-region")), (Some("good"), Some("eu")));
    }
    assert_eq!(farm.beta.seen_of("tools/call").len(), 2);
}

#[tokio::test]
async fn a_disabled_server_is_neither_listed_nor_missing() {
    let farm = Farm::with(1000, |seed| {
        seed.server("asleep", "http://127.0.0.1:1/mcp", |server| server.enabled = false);
    })
    .await;
    let client = farm.client().of(Era::Stateless).await;
    let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(listed["tools"].as_array().map(Vec::len), Some(6));
    assert!(!listed.to_string().contains("asleep"), "{listed}");
    let call = client.call("asleep__echo", json!({})).await.unwrap();
    let unknown = client.call("nobody__echo", json!({})).await.unwrap();
    let text =
        |answer: &waffles_tests::Answer| answer.message()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(text(&call).replace("asleep", "nobody"), text(&unknown));
}

#[tokio::test]
async fn lists_that_are_good_for_long_cost_their_servers_one_question() {
    let servers: Vec<McpServer> = join_all((0..20).map(|_| McpServer::start())).await;
    let waffles = Seeded::and(|seed, _| {
        for (number, server) in servers.iter().enumerate() {
            let tools: Vec<_> = (0..200).map(|n| tool(&format!("tool{n}"))).collect();
            let list = json!({"tools": tools, "ttlMs": 60_000, "cacheScope": "public"});
            server.on_method("tools/list", Behaviour::Result(list));
            server.offer(json!({"tools": {}}));
            seed.server(&format!("s{number:02}"), &server.url(), |_| {});
        }
    })
    .await;
    let client = McpClient::new(&format!("http://{}/mcp", waffles.proxy.mcp)).with_bearer(&waffles.key);
    let client = client.of(Era::Stateless).await;
    for _ in 0..5 {
        let (all, pages) = walk(&client, "tools/list", "tools", "name").await;
        assert_eq!((all.len(), pages), (4002, 5));
    }
    for server in &servers {
        assert_eq!(server.seen_of("tools/list").len(), 1);
    }
}
