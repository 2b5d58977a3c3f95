//! Many servers behind one door: names and URIs that say whose they are, lists that are whole without the servers that do
//! not answer, and calls that reach the right one.

mod calls;
mod faults;
mod handshake;
mod lists;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use waffles_core::credential::KeyLimits;
use waffles_tests::mcp_server::tool;
use waffles_tests::{Behaviour, DataPlaneOptions, Era, McpClient, McpServer, RawServer, Seed, Seeded};

/// A proxy in front of an older server (`alpha`), a stateless one (`beta`) and the usual one (`demo`).
struct Farm {
    waffles: Seeded,
    alpha: McpServer,
    beta: McpServer,
    narrow: String,
}

impl Farm {
    async fn start() -> Self {
        Self::paged(1000).await
    }

    async fn paged(page_size: usize) -> Self {
        Self::with(page_size, |_| {}).await
    }

    /// One with more servers.
    async fn with(page_size: usize, more: impl FnOnce(&mut Seed)) -> Self {
        let (alpha, beta) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
        let (at_alpha, at_beta) = (alpha.url(), beta.url());
        let mut narrow = String::new();
        let options = DataPlaneOptions {
            args: vec!["--list-page-size".into(), page_size.to_string()],
            ..DataPlaneOptions::default()
        };
        let waffles = Seeded::made(
            options,
            |_| {},
            |seed, _| {
                seed.server("alpha", &at_alpha, |_| {});
                seed.server("beta", &at_beta, |server| server.spec.tools.deny = vec!["secret*".into()]);
                let bob = seed.principal("bob", "user");
                narrow = seed.key(bob, KeyLimits { servers: vec!["beta".into()], ..KeyLimits::default() });
                more(seed);
            },
        )
        .await;
        Self { waffles, alpha, beta, narrow }
    }

    /// Takes all tools away.
    fn empty(&self) {
        for server in [&self.alpha, &self.beta, &self.waffles.upstream] {
            server.set_tools(Vec::new());
        }
    }

    fn with_key(&self, key: &str) -> McpClient {
        McpClient::new(&format!("http://{}/mcp", self.waffles.proxy.mcp)).with_bearer(key)
    }

    fn client(&self) -> McpClient {
        self.with_key(&self.waffles.key)
    }
}

fn names(result: &Value, list: &str, field: &str) -> Vec<String> {
    let entries = result[list].as_array().unwrap_or_else(|| panic!("no {list} in {result}"));
    entries.iter().map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
}

/// All pages of a list.
async fn walk(client: &McpClient, method: &str, list: &str, field: &str) -> (Vec<String>, usize) {
    let (mut all, mut pages, mut params) = (Vec::new(), 0, json!({}));
    loop {
        let page = client.ask(1, method, params.clone()).await.unwrap().result();
        all.extend(names(&page, list, field));
        pages += 1;
        match page.get("nextCursor") {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => return (all, pages),
        }
    }
}

#[tokio::test]
async fn every_server_is_reached_through_one_door_in_every_era() {
    let farm = Farm::start().await;
    for era in Era::BOTH {
        let client = farm.client().of(era).await;
        let tools = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        let expected = ["alpha__echo", "alpha__add", "beta__echo", "beta__add", "demo__echo", "demo__add"];
        assert_eq!(names(&tools, "tools", "name"), expected, "{era:?}");
        assert_eq!(tools.get("resultType").is_some(), era == Era::Stateless);
        for server in ["alpha", "beta", "demo"] {
            let call = client.call(&format!("{server}__add"), json!({"a": 1, "b": 2})).await.unwrap();
            assert_eq!(call.result()["content"][0]["text"], "3", "{server} {era:?}: {}", call.text());
            let uri = format!("wfl+{server}+test://one");
            let read = client.ask(2, "resources/read", json!({"uri": uri})).await.unwrap().result();
            assert_eq!(read["contents"][0]["uri"], uri, "contents echo what was asked for");
            let prompt =
                client.ask(3, "prompts/get", json!({"name": format!("{server}__greet")})).await.unwrap();
            assert!(prompt.result()["messages"].is_array(), "{}", prompt.text());
        }
        let resources = client.ask(4, "resources/list", json!({})).await.unwrap().result();
        let uris = ["wfl+alpha+test://one", "wfl+beta+test://one", "wfl+demo+test://one"];
        assert_eq!(names(&resources, "resources", "uri"), uris);
        let prompts = client.ask(5, "prompts/list", json!({})).await.unwrap().result();
        assert_eq!(names(&prompts, "prompts", "name"), ["alpha__greet", "beta__greet", "demo__greet"]);
    }
    let call = farm.beta.seen_of("tools/call").remove(0);
    assert_eq!((call.header("mcp-name"), &call.json()["params"]["name"]), (Some("add"), &json!("add")));
    let records = farm.waffles.records_of("mcp.tools/call");
    let first: Vec<_> =
        records.iter().map(|record| (record.server_name.as_str(), record.target.as_str())).collect();
    assert_eq!(&first[..3], [("alpha", "add"), ("beta", "add"), ("demo", "add")]);
}

#[tokio::test]
async fn what_a_caller_may_not_use_does_not_exist() {
    let farm = Farm::start().await;
    farm.beta.set_tools(["echo", "secret_key"].map(tool).to_vec());
    let client = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    let tools = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    assert_eq!(names(&tools, "tools", "name"), ["beta__echo"]);
    let mut answers = BTreeSet::new();
    for name in
        ["alpha__echo", "nobody__echo", "beta__secret_key", "beta__", "echo", "beta_-echo-aaaaaaaaaaaaaaaa"]
    {
        let answer = client.call(name, json!({})).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.error_code()), (200, -32602), "{name}: {}", answer.text());
        let text = answer.message()["error"]["message"].as_str().unwrap().replace(name, "NAME");
        answers.insert((text, answer.message()["error"]["data"]["reason"].to_string()));
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    for uri in ["wfl+alpha+test://one", "wfl+nobody+test://one", "test://one", "https://example.com/x"] {
        let answer = client.ask(2, "resources/read", json!({"uri": uri})).await.unwrap();
        assert_eq!(answer.error_code(), -32602, "{uri}: {}", answer.text());
    }
    assert_eq!(farm.alpha.seen().len(), 0, "nothing of it reached the other server");
}

#[tokio::test]
async fn any_page_size_gives_each_tool_exactly_once() {
    for page_size in [1, 2, 3, 7, 100] {
        let farm = Farm::paged(page_size).await;
        let many = |prefix: &str, count: usize| (0..count).map(|n| tool(&format!("{prefix}{n}"))).collect();
        farm.alpha.set_tools(many("a", 5));
        farm.beta.set_tools(Vec::new());
        farm.waffles.upstream.set_tools(many("d", 7));
        let client = farm.client().of(Era::Stateless).await;
        let (all, pages) = walk(&client, "tools/list", "tools", "name").await;
        let expected: Vec<String> =
            (0..5).map(|n| format!("alpha__a{n}")).chain((0..7).map(|n| format!("demo__d{n}"))).collect();
        assert_eq!(all, expected, "pages of {page_size}");
        assert_eq!(pages, 12usize.div_ceil(page_size));
    }
}

#[tokio::test]
async fn a_cursor_is_worth_nothing_elsewhere() {
    let farm = Farm::paged(1).await;
    let client = farm.client().of(Era::Stateless).await;
    let page = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    let cursor = page["nextCursor"].as_str().unwrap().to_owned();
    let bob = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    let mut changed = cursor.clone();
    changed.pop();
    for (who, method, cursor) in [
        (&bob, "tools/list", cursor.as_str()),
        (&client, "prompts/list", cursor.as_str()),
        (&client, "tools/list", changed.as_str()),
        (&client, "tools/list", ""),
        (&client, "tools/list", "made-up"),
    ] {
        let answer = who.ask(2, method, json!({"cursor": cursor})).await.unwrap();
        assert_eq!(answer.error_code(), -32602, "{}", answer.text());
    }
    let next = client.ask(3, "tools/list", json!({"cursor": cursor})).await.unwrap().result();
    assert_eq!(names(&next, "tools", "name"), ["alpha__add"]);
}

#[tokio::test]
async fn a_dead_and_a_hung_server_are_left_out_and_named() {
    let hung =
        RawServer::start(|mut connection| async move { while connection.request().await.is_some() {} }).await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("dead", "http://127.0.0.1:1/mcp", |_| {});
        seed.server("hung", &hung.url(), |_| {});
    })
    .await;
    let client = McpClient::new(&format!("http://{}/mcp", waffles.proxy.mcp)).with_bearer(&waffles.key);
    let client = client.of(Era::Stateless).await;
    let started = Instant::now();
    let tools = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(names(&tools, "tools", "name"), ["demo__echo", "demo__add"]);
    let missing = tools["_meta"]["io.waffles/unavailable"].as_array().unwrap();
    let servers: Vec<_> = missing.iter().map(|entry| entry["server"].as_str().unwrap()).collect();
    assert_eq!(servers, ["dead", "hung"], "{tools}");
    assert_eq!(tools["ttlMs"], 0, "what is not whole is not kept");
    let found = client.ask(2, "server/discover", json!({})).await.unwrap().result();
    assert!(found["capabilities"]["tools"].is_object(), "{found}");
}

#[tokio::test]
async fn many_agents_listing_are_one_question_to_a_server() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    let asked = (0..40).map(|id| {
        let client = client.clone();
        async move { client.ask(id, "tools/list", json!({})).await.unwrap().result() }
    });
    for listed in futures_util::future::join_all(asked).await {
        assert_eq!(listed["tools"].as_array().unwrap().len(), 6);
    }
    for server in [&farm.alpha, &farm.beta, &farm.waffles.upstream] {
        assert!(server.seen_of("tools/list").len() <= 2, "{}", server.seen_of("tools/list").len());
    }
}

#[tokio::test]
async fn a_name_that_is_too_long_has_a_short_form_that_works() {
    let farm = Farm::start().await;
    let long = "x".repeat(70);
    let odd = "name/with/slashes";
    farm.alpha.set_tools([long.as_str(), odd].map(tool).to_vec());
    let client = farm.client().of(Era::Stateless).await;
    let tools = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    let shown = names(&tools, "tools", "name");
    for (public, own) in shown.iter().zip([long.as_str(), odd]) {
        assert!(public.len() <= 64 && public.starts_with("alpha_-"), "{public}");
        let called = client.call(public, json!({"n": own})).await.unwrap().result();
        assert_eq!(called["structuredContent"]["n"], own);
        let exact = client.call(&format!("alpha__{own}"), json!({})).await.unwrap();
        assert_eq!(exact.error_code(), -32602, "a name has one spelling");
    }
    let seen: Vec<_> =
        farm.alpha.seen_of("tools/call").iter().map(|seen| seen.json()["params"]["name"].clone()).collect();
    assert_eq!(seen, [json!(long), json!(odd)]);
}

#[tokio::test]
async fn a_question_in_mid_call_finds_its_way_through_the_door() {
    let farm = Farm::start().await;
    let ask = || Behaviour::Ask {
        method: "elicitation/create".into(),
        params: json!({"message": "?",
        "requestedSchema": {"type": "object", "properties": {}}}),
    };
    farm.alpha.on_tool("ask", ask());
    farm.beta.on_tool("ask", ask());
    let answer = json!({"action": "accept", "content": {}});
    for server in ["alpha", "beta"] {
        let client = farm.client().of(Era::Stateless).await;
        let tool = format!("{server}__ask");
        let first = client.call(&tool, json!({})).await.unwrap().result();
        assert_eq!(first["resultType"], "input_required", "{server}: {first}");
        let key = first["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();
        let mut params = json!({"name": tool, "arguments": {}, "inputResponses": {key: answer}});
        if let Some(state) = first.get("requestState") {
            params["requestState"] = state.clone();
        }
        let elsewhere = if server == "alpha" { "beta__ask" } else { "alpha__ask" };
        let mut foreign = params.clone();
        foreign["name"] = json!(elsewhere);
        let refused = client.ask(2, "tools/call", foreign).await.unwrap();
        assert_eq!(refused.error_code(), -32602, "the state belongs to its server: {}", refused.text());
        let last = client.ask(3, "tools/call", params).await.unwrap();
        assert!(last.text().contains("accept"), "{server}: {}", last.text());
        let session = farm.client().of(Era::Sessions).await;
        let mut stream =
            session.ask_stream(4, "tools/call", json!({"name": tool, "arguments": {}})).await.unwrap();
        let question = stream.message().await.unwrap();
        assert_eq!(question["method"], "elicitation/create", "{server}");
        let told = json!({"jsonrpc": "2.0", "id": question["id"], "result": answer});
        assert_eq!(session.post(told.to_string()).await.unwrap().status, 202);
        assert!(stream.message().await.unwrap()["result"].to_string().contains("accept"));
    }
}
