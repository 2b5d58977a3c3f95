//! Requests through a federated door: the right server gets them in its own words, and answers come back in the door's.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use waffles_core::audit::Outcome;
use waffles_tests::mcp_server::tool;
use waffles_tests::{Behaviour, Era, McpClient};

use super::{Farm, names};

#[tokio::test]
async fn a_name_of_two_servers_and_names_that_look_joined_reach_the_right_one() {
    let farm = Farm::start().await;
    let odd = ["echo", "a__b", "_x", "beta__echo", "-y-aaaaaaaaaaaaaaaa"];
    let answering = |who: &str| Behaviour::Result(json!({"content": [], "structuredContent": {"who": who}}));
    for (server, who) in [(&farm.alpha, "alpha"), (&farm.beta, "beta"), (&farm.waffles.upstream, "demo")] {
        server.set_tools(odd.map(tool).to_vec());
        for name in odd {
            server.on_tool(name, answering(&format!("{who} {name}")));
        }
    }
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let shown = names(&listed, "tools", "name");
        let expected: Vec<_> =
            ["alpha", "beta", "demo"].iter().flat_map(|who| odd.map(|name| (*who, name))).collect();
        assert_eq!(shown.len(), expected.len());
        for (public, (who, own)) in shown.iter().zip(expected) {
            let called = client.call(public, json!({})).await.unwrap();
            assert_eq!(called.result()["structuredContent"]["who"], format!("{who} {own}"), "{public}");
        }
    }
}

#[tokio::test]
async fn links_and_embedded_resources_can_be_read_through_the_door() {
    let farm = Farm::start().await;
    let content = json!([
        {"type": "resource_link", "uri": "test://one", "name": "one", "vendor": {"x": [1]}},
        {"type": "resource", "resource": {"uri": "test://two", "text": "two"}},
        {"type": "resource_link", "uri": "https://example.com/x", "name": "web"},
        {"type": "text", "text": "see test://one"},
    ]);
    let result = json!({"content": content, "_meta": {"vendor.example/uri": "test://one"}});
    let prompt = json!({"messages": [
        {"role": "user", "content": {"type": "resource", "resource": {"uri": "test://two", "text": "two"}}},
    ]});
    for server in [&farm.alpha, &farm.beta] {
        server.on_tool("link", Behaviour::Result(result.clone()));
        server.on_method("prompts/get", Behaviour::Result(prompt.clone()));
    }
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        for server in ["alpha", "beta"] {
            let called = client.call(&format!("{server}__link"), json!({})).await.unwrap();
            let result = called.result();
            let one = format!("wfl+{server}+test://one");
            assert_eq!(result["content"][0]["uri"], one, "{era:?}");
            assert_eq!(result["content"][1]["resource"]["uri"], format!("wfl+{server}+test://two"));
            assert_eq!(result["content"][2]["uri"], "https://example.com/x", "that is the client's to fetch");
            assert_eq!(result["content"][3]["text"], "see test://one", "text is nobody's to change");
            assert_eq!(result["_meta"]["vendor.example/uri"], "test://one");
            assert_eq!(result["content"][0]["vendor"], json!({"x": [1]}));
            let read = client.ask(2, "resources/read", json!({"uri": one})).await.unwrap().result();
            assert_eq!(read["contents"][0]["uri"], one);
            let name = format!("{server}__greet");
            let got = client.ask(3, "prompts/get", json!({"name": name})).await.unwrap().result();
            let uri = &got["messages"][0]["content"]["resource"]["uri"];
            assert_eq!(*uri, format!("wfl+{server}+test://two"), "{era:?}");
        }
    }
    for server in [&farm.alpha, &farm.beta] {
        for read in server.seen_of("resources/read") {
            assert_eq!(read.json()["params"]["uri"], "test://one");
        }
        assert_eq!(server.seen_of("resources/read").len(), 2);
    }
    assert_eq!(farm.beta.seen_of("resources/read")[0].header("mcp-name"), Some("test://one"));
}

#[tokio::test]
async fn templates_are_listed_expanded_and_completed() {
    let farm = Farm::start().await;
    for server in [&farm.alpha, &farm.beta] {
        let templates = json!([{"uriTemplate": "test://{+path}", "name": "files"}]);
        let listed = json!({"resourceTemplates": templates, "ttlMs": 0, "cacheScope": "private"});
        server.on_method("resources/templates/list", Behaviour::Result(listed));
        let completion = json!({"completion": {"values": ["one", "two"], "hasMore": false}});
        server.on_method("completion/complete", Behaviour::Result(completion));
    }
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        let listed = client.ask(1, "resources/templates/list", json!({})).await.unwrap().result();
        let templates = names(&listed, "resourceTemplates", "uriTemplate");
        assert_eq!(templates, ["wfl+alpha+test://{+path}", "wfl+beta+test://{+path}"], "{era:?}");
        assert_eq!(
            listed["_meta"].get("io.waffles/unavailable"),
            None,
            "not to have such a list is no fault"
        );
        for template in &templates {
            let uri = template.replace("{+path}", "a/b%20c?d=e+f");
            let read = client.ask(2, "resources/read", json!({"uri": uri})).await.unwrap().result();
            assert_eq!(read["contents"][0]["uri"], uri);
            let argument = json!({"name": "path", "value": "o"});
            let params = json!({"ref": {"type": "ref/resource", "uri": template}, "argument": argument,
                "context": {"arguments": {"other": "x"}}});
            let completed = client.ask(3, "completion/complete", params).await.unwrap().result();
            assert_eq!(completed["completion"]["values"], json!(["one", "two"]), "{era:?}");
        }
        for server in ["alpha", "beta"] {
            let prompt = json!({"type": "ref/prompt", "name": format!("{server}__greet")});
            let params = json!({"ref": prompt, "argument": {"name": "who", "value": "w"}});
            let completed = client.ask(4, "completion/complete", params).await.unwrap().result();
            assert_eq!(completed["completion"]["values"], json!(["one", "two"]), "{era:?}");
        }
        for reference in [
            json!({"type": "ref/prompt", "name": "nobody__greet"}),
            json!({"type": "ref/prompt", "name": "greet"}),
            json!({"type": "ref/resource", "uri": "wfl+nobody+test://{+path}"}),
            json!({"type": "ref/resource", "uri": "test://{+path}"}),
        ] {
            let params = json!({"ref": reference, "argument": {"name": "who", "value": "w"}});
            let refused = client.ask(5, "completion/complete", params).await.unwrap();
            assert_eq!(refused.error_code(), -32602, "{}", refused.text());
        }
    }
    for server in [&farm.alpha, &farm.beta] {
        let asked = server.seen_of("completion/complete");
        let refs: Vec<Value> = asked.iter().map(|seen| seen.json()["params"]["ref"].clone()).collect();
        let template = json!({"type": "ref/resource", "uri": "test://{+path}"});
        let prompt = json!({"type": "ref/prompt", "name": "greet"});
        assert_eq!(refs, [template.clone(), prompt.clone(), template, prompt]);
        assert_eq!(asked[0].json()["params"]["context"]["arguments"]["other"], "x");
        for read in server.seen_of("resources/read") {
            assert_eq!(read.json()["params"]["uri"], "test://a/b%20c?d=e+f");
        }
    }
}

#[tokio::test]
async fn resources_of_the_web_keep_their_uris_and_are_found_by_who_lists_them() {
    let farm = Farm::start().await;
    let listed = json!({"resources": [{"uri": "https://example.com/x", "name": "x"}], "ttlMs": 0,
        "cacheScope": "private"});
    farm.beta.on_method("resources/list", Behaviour::Result(listed));
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        let listed = client.ask(1, "resources/list", json!({})).await.unwrap().result();
        let expected = ["wfl+alpha+test://one", "https://example.com/x", "wfl+demo+test://one"];
        assert_eq!(names(&listed, "resources", "uri"), expected);
        let web = json!({"uri": "https://example.com/x"});
        let read = client.ask(2, "resources/read", web).await.unwrap().result();
        assert_eq!(read["contents"][0]["uri"], "https://example.com/x");
        let other = json!({"uri": "https://example.com/y"});
        assert_eq!(client.ask(3, "resources/read", other).await.unwrap().error_code(), -32602);
    }
    assert_eq!(farm.beta.seen_of("resources/read").len(), 2);
    assert_eq!(
        farm.alpha.seen_of("resources/read").len() + farm.waffles.upstream.seen_of("resources/read").len(),
        0
    );
}

#[tokio::test]
async fn errors_and_progress_of_a_server_come_back() {
    let farm = Farm::start().await;
    let error = Behaviour::Error { code: -32010, message: "no".into(), data: json!({"why": "test://one"}) };
    for server in [&farm.alpha, &farm.beta] {
        server.on_tool("fail", error.clone());
        server.on_tool("work", Behaviour::Flood(3));
    }
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        for server in ["alpha", "beta"] {
            let failed = client.call(&format!("{server}__fail"), json!({})).await.unwrap();
            let error = failed.message()["error"].clone();
            assert_eq!(
                (&error["code"], &error["message"]),
                (&json!(-32010), &json!("no")),
                "{server} {era:?}"
            );
            assert_eq!(error["data"]["why"], "test://one");
            for token in [json!("t"), json!(7)] {
                let params = json!({"name": format!("{server}__work"), "arguments": {},
                    "_meta": {"progressToken": token}});
                let stream = client.ask_stream("w", "tools/call", params).await.unwrap();
                let messages = stream.rest().await.unwrap();
                let steps: Vec<_> = messages.iter().filter(|message| message.get("id").is_none()).collect();
                assert_eq!(steps.len(), 3, "{server} {era:?}: {messages:?}");
                assert!(steps.iter().all(|step| step["params"]["progressToken"] == token), "{steps:?}");
                assert_eq!(messages.last().unwrap()["id"], "w");
            }
        }
    }
}

#[tokio::test]
async fn a_record_names_the_server_and_its_own_name_or_nobody() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    client.call("beta__echo", json!({})).await.unwrap().result();
    client.call("beta__secret_key", json!({})).await.unwrap().error_code();
    client.call("nobody__echo", json!({})).await.unwrap().error_code();
    client.ask(1, "resources/read", json!({"uri": "wfl+alpha+test://one"})).await.unwrap().result();
    client.ask(1, "tools/list", json!({})).await.unwrap().result();
    let calls = farm.waffles.records_of("mcp.tools/call");
    let told: Vec<_> =
        calls.iter().map(|call| (call.server_name.as_str(), call.target.as_str(), call.outcome)).collect();
    let expected = [
        ("beta", "echo", Outcome::Ok),
        ("beta", "secret_key", Outcome::Denied),
        ("", "nobody__echo", Outcome::Denied),
    ];
    assert_eq!(told, expected);
    let read = farm.waffles.record_of("mcp.resources/read");
    assert_eq!((read.server_name.as_str(), read.target.as_str()), ("alpha", "test://one"));
    let list = farm.waffles.record_of("mcp.tools/list");
    assert_eq!((list.server_name.as_str(), list.outcome), ("", Outcome::Ok));
}

#[tokio::test]
async fn a_task_is_found_again_by_who_began_it() {
    let farm = Farm::start().await;
    let task = |status: &str, kind: &str| {
        Behaviour::Result(json!({"resultType": kind, "taskId": "t1", "status": status, "ttlMs": 60_000,
            "createdAt": "2026-07-28T00:00:00Z", "lastUpdatedAt": "2026-07-28T00:00:00Z"}))
    };
    farm.beta.on_tool("slow", task("working", "task"));
    farm.beta.on_method("tasks/get", task("completed", "complete"));
    let capabilities = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
    let meta = json!({"io.modelcontextprotocol/clientCapabilities": capabilities});
    let client = farm.client().of(Era::Stateless).await;
    let params = json!({"name": "beta__slow", "arguments": {}, "_meta": meta});
    let begun = client.ask(1, "tools/call", params).await.unwrap().result();
    assert_eq!((&begun["resultType"], &begun["status"]), (&json!("task"), &json!("working")));
    let id = begun["taskId"].as_str().unwrap().to_owned();
    let get = |client: &McpClient, id: &str| {
        let (client, params) = (client.clone().with("mcp-name", id), json!({"taskId": id, "_meta": meta}));
        async move { client.ask(2, "tasks/get", params).await.unwrap() }
    };
    let got = get(&client, &id).await.result();
    assert_eq!((&got["status"], &got["taskId"]), (&json!("completed"), &json!(id)));
    let bob = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    let mut refusals = BTreeSet::new();
    let elsewhere = ["alpha", "nobody"].map(|server| id.replacen("beta", server, 1));
    for (client, id) in [(&bob, &id), (&bob, &elsewhere[0]), (&bob, &elsewhere[1]), (&client, &elsewhere[0])]
    {
        let refused = get(client, id).await;
        assert_eq!(refused.error_code(), -32602, "{}", refused.text());
        refusals.insert(refused.message()["error"]["message"].as_str().unwrap().replace(id, "ID"));
    }
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let asked = farm.beta.seen_of("tasks/get");
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (asked[0].header("mcp-name"), &asked[0].json()["params"]["taskId"]),
        (Some("t1"), &json!("t1"))
    );
}

#[tokio::test]
async fn what_no_door_of_many_has_is_refused_as_each_era_does() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    for method in ["vendor/method", "ping", "logging/setLevel", "resources/subscribe"] {
        let refused = client.ask(1, method, json!({"uri": "wfl+alpha+test://one"})).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.error_code()), (404, -32601), "{method}");
    }
    let session = farm.client().of(Era::Sessions).await;
    for method in ["vendor/method", "tasks/list", "server/discover"] {
        let refused = session.ask(2, method, json!({})).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.error_code()), (200, -32601), "{method}");
    }
    let told = session.post(json!({"jsonrpc": "2.0", "method": "vendor/notice"}).to_string()).await.unwrap();
    assert_eq!(told.status, 202);
    for server in [&farm.alpha, &farm.beta, &farm.waffles.upstream] {
        assert!(server.seen().iter().all(|seen| !seen.rpc_method.starts_with("vendor/")));
    }
}
