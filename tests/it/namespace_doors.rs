//! The doors of namespaces: who stands behind them, under which names, how far a caller may go, and a search in the place of
//! a long list.

use serde_json::{Value, json};
use waffles_core::credential::KeyLimits;
use waffles_core::namespace::{Expose, Level, Member, NamespaceSpec, RoleLevel};
use waffles_tests::mcp_server::tool;
use waffles_tests::{Era, McpClient, McpServer, Seeded};

/// A proxy with two servers in three namespaces: `team` (prefixes, all), `plain` (no prefixes, `alpha` without its secrets)
/// and `found` (a search in the place of the list).
struct Farm {
    waffles: Seeded,
    alpha: McpServer,
    _beta: McpServer,
    viewer: String,
    stranger: String,
}

impl Farm {
    async fn start() -> Self {
        let (alpha, beta) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
        alpha.set_tools(["get_user", "secret_key", "shared"].map(tool).to_vec());
        beta.set_tools(["send_mail", "shared"].map(tool).to_vec());
        let (mut viewer, mut stranger) = (String::new(), String::new());
        let waffles = Seeded::and(|seed, _| {
            seed.server("alpha", &alpha.url(), |_| {});
            seed.server("beta", &beta.url(), |_| {});
            let whole = || vec![Member::whole("alpha"), Member::whole("beta")];
            let levels = || {
                vec![
                    RoleLevel { role: "user".into(), level: Level::Execute },
                    RoleLevel { role: "readonly".into(), level: Level::View },
                ]
            };
            let spec = |name: &str| NamespaceSpec {
                name: name.into(),
                servers: whole(),
                levels: levels(),
                ..NamespaceSpec::default()
            };
            seed.namespace(spec("team"));
            let mut plain = spec("plain");
            for member in &mut plain.servers {
                member.prefix = false;
            }
            plain.servers[0].expose = Expose {
                deny: vec!["secret*".into(), "greet".into()],
                resources_deny: vec!["test://*".into()],
                ..Expose::default()
            };
            seed.namespace(plain);
            seed.namespace(NamespaceSpec { tool_search: true, ..spec("found") });
            let owner = seed.principal("vera", "readonly");
            viewer = seed.key(owner, KeyLimits::default());
            let owner = seed.principal("otto", "auditor");
            stranger = seed.key(owner, KeyLimits::default());
        })
        .await;
        Self { waffles, alpha, _beta: beta, viewer, stranger }
    }

    fn at(&self, namespace: &str, key: &str) -> McpClient {
        let url = format!("http://{}/mcp/namespaces/{namespace}", self.waffles.proxy.mcp);
        McpClient::new(&url).with_bearer(key)
    }

    async fn client(&self, namespace: &str, era: Era) -> McpClient {
        self.at(namespace, &self.waffles.key).of(era).await
    }
}

async fn listed(client: &McpClient, method: &str, list: &str, field: &str) -> Vec<String> {
    let result = client.ask(1, method, json!({})).await.unwrap().result();
    let entries = result[list].as_array().unwrap_or_else(|| panic!("{result}")).iter();
    entries.map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_namespace_shows_its_members_and_no_others() {
    let farm = Farm::start().await;
    for era in Era::BOTH {
        let client = farm.client("team", era).await;
        let tools = listed(&client, "tools/list", "tools", "name").await;
        let expected =
            ["alpha__get_user", "alpha__secret_key", "alpha__shared", "beta__send_mail", "beta__shared"];
        assert_eq!(tools, expected, "the demo server is not in it");
        client.call("beta__send_mail", json!({"to": "x"})).await.unwrap().result();
        let outside = client.call("demo__echo", json!({})).await.unwrap();
        assert_eq!(outside.error_code(), -32602, "{}", outside.text());
    }
    let record = farm.waffles.records_of("mcp.tools/call").remove(0);
    assert_eq!((record.server_name.as_str(), record.target.as_str()), ("beta", "send_mail"));
    assert_eq!(record.rule, "role:user");
}

#[tokio::test]
async fn own_names_stay_where_they_do_not_collide_and_what_is_not_exposed_does_not_exist() {
    let farm = Farm::start().await;
    let client = farm.client("plain", Era::Stateless).await;
    let tools = listed(&client, "tools/list", "tools", "name").await;
    assert_eq!(tools, ["get_user", "alpha__shared", "send_mail", "beta__shared"]);
    for tool in ["get_user", "alpha__shared", "send_mail", "beta__shared"] {
        let called = client.call(tool, json!({"tool": tool})).await.unwrap().result();
        assert_eq!(called["structuredContent"]["tool"], tool);
    }
    let prompts = listed(&client, "prompts/list", "prompts", "name").await;
    let resources = listed(&client, "resources/list", "resources", "uri").await;
    assert_eq!(
        (prompts.as_slice(), resources.as_slice()),
        (&["greet".to_owned()][..], &["wfl+beta+test://one".to_owned()][..])
    );
    let before = farm.alpha.seen_of("tools/call").len();
    for tool in ["secret_key", "alpha__secret_key", "shared", "nothing"] {
        let refused = client.call(tool, json!({})).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.error_code()), (200, -32602), "{tool}");
    }
    for (method, params) in [
        ("prompts/get", json!({"name": "alpha__greet"})),
        ("resources/read", json!({"uri": "wfl+alpha+test://one"})),
    ] {
        let refused = client.ask(2, method, params).await.unwrap();
        assert_eq!(refused.error_code(), -32602, "{method}: {}", refused.text());
    }
    assert_eq!(farm.alpha.seen_of("tools/call").len(), before);
    assert!(farm.alpha.seen_of("resources/read").is_empty() && farm.alpha.seen_of("prompts/get").is_empty());
}

#[tokio::test]
async fn view_lists_and_does_nothing_else_and_without_a_level_there_is_nothing() {
    let farm = Farm::start().await;
    let viewer = farm.at("team", &farm.viewer).of(Era::Stateless).await;
    assert_eq!(listed(&viewer, "tools/list", "tools", "name").await.len(), 5);
    viewer.ask(1, "server/discover", json!({})).await.unwrap().result();
    for (method, params) in [
        ("tools/call", json!({"name": "alpha__get_user"})),
        ("prompts/get", json!({"name": "alpha__greet"})),
        ("resources/read", json!({"uri": "wfl+alpha+test://one"})),
    ] {
        let refused = viewer.ask(2, method, params).await.unwrap();
        assert_eq!(refused.status, 403, "{method}: {}", refused.text());
    }
    assert!(farm.alpha.seen_of("tools/call").is_empty());
    let stranger = farm.at("team", &farm.stranger).of(Era::Stateless).await;
    let hidden = stranger.ask(1, "tools/list", json!({})).await.unwrap();
    let unknown = farm.at("nothing", &farm.waffles.key).of(Era::Stateless).await;
    let unknown = unknown.ask(1, "tools/list", json!({})).await.unwrap();
    assert_eq!((hidden.status.as_u16(), unknown.status.as_u16()), (404, 404));
    let error = |answer: &Value| (answer["error"]["code"].clone(), answer["error"]["message"].clone());
    assert_eq!(error(&hidden.message()), error(&unknown.message()), "hidden and unknown look alike");
}

#[tokio::test]
async fn a_search_finds_tools_and_calls_them_as_what_they_are() {
    let farm = Farm::start().await;
    for era in Era::BOTH {
        let client = farm.client("found", era).await;
        assert_eq!(listed(&client, "tools/list", "tools", "name").await, ["search_tools", "call_tool"]);
        let found = client.call("search_tools", json!({"query": "send a mail", "limit": 1})).await.unwrap();
        let tools = found.result()["structuredContent"]["tools"].clone();
        assert_eq!(tools[0]["name"], "beta__send_mail", "{}", found.text());
        assert_eq!(tools.as_array().unwrap().len(), 1);
        let arguments = json!({"name": "beta__send_mail", "arguments": {"to": "x"}});
        let called = client.call("call_tool", arguments).await.unwrap().result();
        assert_eq!(called["structuredContent"]["to"], "x");
        for (tool, arguments) in [
            ("beta__send_mail", json!({})),
            ("call_tool", json!({"name": "demo__echo"})),
            ("call_tool", json!({"name": "call_tool"})),
        ] {
            let refused = client.call(tool, arguments).await.unwrap();
            assert_eq!(refused.error_code(), -32602, "{tool}: {}", refused.text());
        }
        let wrong = client.call("call_tool", json!({})).await.unwrap().result();
        assert_eq!(wrong["isError"], true);
    }
    let records = farm.waffles.records_of("mcp.tools/call");
    assert!(records.iter().any(|record| record.server_name == "beta" && record.target == "send_mail"));
}

#[tokio::test]
async fn a_session_belongs_to_its_namespace() {
    let farm = Farm::start().await;
    let client = farm.client("team", Era::Sessions).await;
    let mut elsewhere = farm.at("plain", &farm.waffles.key);
    elsewhere.headers = client.headers.clone();
    assert_eq!(elsewhere.ask(1, "tools/list", json!({})).await.unwrap().status, 404);
    client.ask(2, "tools/list", json!({})).await.unwrap().result();
}
