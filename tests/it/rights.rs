//! What is listed can be called, and what can be called is listed: over made-up policies, principals, keys, items, eras
//! and doors. And what is denied reaches no server.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use waffles_core::credential::KeyLimits;
use waffles_core::namespace::{Expose, Level, Member, NamespaceSpec, RoleLevel};
use waffles_core::policy::{Held, RuleSpec, Scope};
use waffles_core::server::{Marks, ToolFilter, ToolMark};
use waffles_tests::mcp_server::tool;
use waffles_tests::{Behaviour, Dice, Era, McpClient, McpServer, Seed, Seeded};

const TOOLS: [&str; 6] = ["get_user", "get_order", "set_user", "delete_user", "search", "a__b"];
/// All are tried: a tool whose rules look at the arguments is listed where some of them pass.
fn arguments() -> Vec<Value> {
    let n = [1, 5, 9];
    let missing = [Value::Null, json!(1), json!(2)];
    let with = |n: i64, missing: &Value| match missing {
        Value::Null => json!({"n": n}),
        missing => json!({"n": n, "missing": missing}),
    };
    n.iter().flat_map(|n| missing.iter().map(|missing| with(*n, missing))).collect()
}

fn some(dice: &mut Dice, of: &[&str]) -> Vec<String> {
    of.iter().filter(|_| dice.roll(3) == 0).map(ToString::to_string).collect()
}

fn rule(dice: &mut Dice, number: usize) -> RuleSpec {
    // One rule of a policy looks at the arguments: two can forbid all that there are between them, which nobody can tell
    // from the rules alone.
    let of_args = [
        "args.n < 5",
        "args.n > 5 || principal.name == 'p1'",
        "has(args.n) && args.n == 1",
        "args.missing == 1",
    ];
    let conditions = [
        "",
        "",
        "tool.name.startsWith('get_')",
        "tool.read_only == true",
        "request.era == 'stateless'",
        "request.address == '127.0.0.1'",
        "'ops' in principal.groups",
        "tool.server == 'crm'",
        "tool.namespace == 'team'",
    ];
    let read_only = match dice.roll(6) {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    };
    let patterns = ["get_*", "set_user", "*user", "delete_user", "a__*", "*"];
    serde_json::from_value(json!({
        "name": format!("rule-{number}"),
        "effect": if dice.roll(2) == 0 { "allow" } else { "forbid" },
        "mode": if dice.roll(8) == 0 { "log_only" } else { "enforce" },
        "principals": match dice.roll(5) {
            0 => json!({"roles": ["user"]}),
            1 => json!({"groups": ["ops"]}),
            2 => json!({"names": ["p0", "p2"]}),
            _ => json!({}),
        },
        "items": {
            "namespaces": if dice.roll(6) == 0 { vec!["team"] } else { vec![] },
            "servers": if dice.roll(2) == 0 { vec![dice.pick(&["demo", "crm"])] } else { vec![] },
            "tools": if dice.roll(2) == 0 { some(dice, &patterns) } else { vec![] },
            "read_only": read_only,
        },
        "condition": if number == 0 { dice.pick(&of_args) } else { dice.pick(&conditions) },
    }))
    .unwrap()
}

fn scope(dice: &mut Dice) -> Scope {
    match dice.roll(4) {
        0 => Scope::Server(dice.pick(&["demo", "crm"]).to_string()),
        1 => Scope::Namespace("team".into()),
        _ => Scope::Tools {
            server: dice.pick(&["demo", "crm", "*"]).to_string(),
            pattern: dice.pick(&["get_*", "set_user", "*"]).to_string(),
        },
    }
}

fn limits(dice: &mut Dice) -> KeyLimits {
    let mut limits = KeyLimits::default();
    match dice.roll(7) {
        0 => limits.servers = vec!["demo".into()],
        1 => limits.tools = vec!["get_*".into(), "search".into()],
        2 => limits.read_only = true,
        3 => limits.namespaces = vec!["team".into()],
        _ => {}
    }
    limits
}

/// Somebody with rights of their own, and a key. Their number is their name.
fn person(seed: &mut Seed, dice: &mut Dice, number: usize) -> String {
    let role = dice.pick(&["user", "user", "operator"]);
    let id = seed.principal_with(&format!("p{number}"), role, |principal| {
        if dice.roll(2) == 0 {
            principal.groups = vec!["ops".into()];
        }
        for _ in 0..dice.roll(3) {
            principal.grants.push(Held { role: "user".into(), scope: scope(dice) });
        }
    });
    let limits = limits(dice);
    seed.key(id, limits)
}

fn namespace(dice: &mut Dice) -> NamespaceSpec {
    let level = |role: &str| RoleLevel { role: role.into(), level: Level::Execute };
    let mut demo = Member::whole("demo");
    if dice.roll(2) == 0 {
        demo.expose =
            Expose { allow: vec!["get_*".into(), "search".into(), "greet".into()], ..Expose::default() };
    }
    NamespaceSpec {
        name: "team".into(),
        servers: vec![demo, Member::whole("crm")],
        // Who may use no server has the level `view`, which lists what others can call; that is not what is asked here.
        levels: vec![level("user")],
        ..NamespaceSpec::default()
    }
}

struct World {
    /// How many pairs were let through.
    allowed: std::cell::Cell<usize>,
    /// The last answer, for the message of a mismatch.
    last: std::cell::RefCell<String>,
    waffles: Seeded,
    crm: McpServer,
    keys: Vec<String>,
    /// For the message of a mismatch.
    rules: Vec<String>,
}

impl World {
    async fn make(dice: &mut Dice) -> Self {
        let crm = McpServer::start().await;
        let (mut keys, mut rules) = (Vec::new(), Vec::new());
        let marks = vec![ToolMark {
            pattern: "get_*".into(),
            marks: Marks { read_only: Some(true), ..Marks::default() },
        }];
        let deny = if dice.roll(2) == 0 { vec!["delete_*".to_owned()] } else { vec![] };
        let waffles = Seeded::and(|seed, url| {
            let url = url.to_owned();
            seed.server("crm", &crm.url(), |server| {
                server.spec.marks = marks.clone();
                server.spec.tools = ToolFilter { allow: vec![], deny };
            });
            // The first one is made by the harness and has no marks.
            assert!(!url.is_empty());
            for number in 0..dice.roll(5) + 1 {
                let rule = rule(dice, number);
                rules.push(serde_json::to_string(&rule).unwrap());
                seed.rule(rule);
            }
            let namespace = namespace(dice);
            seed.namespace(namespace);
            keys.extend((0..4).map(|number| person(seed, dice, number)));
        })
        .await;
        for server in [&waffles.upstream, &crm] {
            server.set_tools(TOOLS.map(tool).to_vec());
            let completion = json!({"completion": {"values": ["one"], "hasMore": false}});
            server.on_method("completion/complete", Behaviour::Result(completion));
        }
        Self { allowed: Default::default(), last: Default::default(), waffles, crm, keys, rules }
    }

    fn reached(&self, method: &str) -> usize {
        self.waffles.upstream.seen_of(method).len() + self.crm.seen_of(method).len()
    }
}

/// A door, and how it names what servers have.
#[derive(Debug, Clone, Copy)]
enum Door {
    Server(&'static str),
    Federated(&'static str),
}

impl Door {
    fn path(self) -> String {
        match self {
            Self::Server(server) => format!("mcp/servers/{server}"),
            Self::Federated(path) => path.into(),
        }
    }

    fn names(self, kind: &str) -> Vec<String> {
        let own: &[&str] = if kind == "tools" { &TOOLS } else { &["greet"] };
        let joined = |server: &str| own.iter().map(|own| format!("{server}__{own}")).collect::<Vec<_>>();
        match self {
            Self::Server(_) => own.iter().map(ToString::to_string).collect(),
            Self::Federated(_) => [joined("crm"), joined("demo")].concat(),
        }
    }
}

const DOORS: [Door; 4] = [
    Door::Server("demo"),
    Door::Server("crm"),
    Door::Federated("mcp"),
    Door::Federated("mcp/namespaces/team"),
];

async fn listed(client: &McpClient, method: &str, kind: &str, field: &str) -> BTreeSet<String> {
    let answer = client.ask(1, method, json!({})).await.unwrap();
    let message: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| answer.message());
    let entries = message["result"][kind].as_array().cloned().unwrap_or_default();
    entries.iter().filter_map(|entry| entry[field].as_str().map(ToOwned::to_owned)).collect()
}

/// Whether a request was let through: whatever the server then says of it is no refusal.
async fn passes(world: &World, client: &McpClient, method: &str, params: Value, what: &str) -> bool {
    let before = world.reached(method);
    let answer = client.ask(2, method, params).await.unwrap();
    let refused = answer.status.as_u16() >= 400 || answer.message().get("error").is_some();
    let reached = world.reached(method) - before;
    assert_eq!(reached, usize::from(!refused), "{what}: a refusal reaches nobody: {}", answer.text());
    *world.last.borrow_mut() = answer.text();
    !refused
}

/// Compares one principal's lists and calls at one door in one era, and says how many pairs that were.
async fn compare(world: &World, key: &str, door: Door, era: Era, what: &str) -> usize {
    let url = world.waffles.proxy.server_url("demo");
    let url = url.replace("mcp/servers/demo", &door.path());
    let anonymous = McpClient::new(&url).with_bearer(key);
    let mut pairs = 0;
    // A session client that may not open one has no door here, and lists and calls nothing.
    let client = match era {
        Era::Stateless => anonymous.of(era).await,
        Era::Sessions => {
            let opening = waffles_tests::mcp_client::initialize("2025-11-25");
            let opened = anonymous.post(opening.to_string()).await.unwrap();
            if opened.status != 200 {
                let stateless = anonymous.of(Era::Stateless).await;
                let seen = listed(&stateless, "tools/list", "tools", "name").await;
                assert!(seen.is_empty(), "{what}: no session, but a list");
                return 1;
            }
            anonymous.of(era).await
        }
    };
    let tools = listed(&client, "tools/list", "tools", "name").await;
    for name in door.names("tools") {
        let mut callable = false;
        for arguments in arguments() {
            let params = json!({"name": name, "arguments": arguments});
            callable |= passes(world, &client, "tools/call", params, &format!("{what} {name}")).await;
        }
        assert_eq!(
            tools.contains(&name),
            callable,
            "{what}: tool {name}; listed {tools:?}; {} {:#?}",
            world.last.borrow(),
            world.rules
        );
        world.allowed.set(world.allowed.get() + usize::from(callable));
        pairs += 1;
    }
    let prompts = listed(&client, "prompts/list", "prompts", "name").await;
    for name in door.names("prompts") {
        let gets = passes(world, &client, "prompts/get", json!({"name": name}), what).await;
        assert_eq!(prompts.contains(&name), gets, "{what}: prompt {name}; listed {prompts:?}");
        let argument = json!({"name": "who", "value": ""});
        let asked = json!({"ref": {"type": "ref/prompt", "name": name}, "argument": argument});
        let completes = passes(world, &client, "completion/complete", asked, what).await;
        assert_eq!(prompts.contains(&name), completes, "{what}: completion of {name}");
        pairs += 2;
    }
    let resources = listed(&client, "resources/list", "resources", "uri").await;
    let own = "test://one".to_owned();
    let uris = match door {
        Door::Server(_) => vec![own],
        Door::Federated(_) => ["crm", "demo"].map(|server| format!("wfl+{server}+test://one")).to_vec(),
    };
    for uri in uris {
        let reads = passes(world, &client, "resources/read", json!({"uri": uri}), what).await;
        assert_eq!(resources.contains(&uri), reads, "{what}: resource {uri}; listed {resources:?}");
        pairs += 1;
    }
    pairs
}

/// The same at the door for scripts.
async fn compare_rest(world: &World, key: &str, server: &str, what: &str) -> usize {
    let url = world.waffles.proxy.server_url("demo").replace("mcp/servers/demo", "");
    let at = |path: &str| McpClient::new(&format!("{url}api/v1/gateway/{server}/{path}")).with_bearer(key);
    let answer = at("tools/list").request(Method::POST, "{}".into()).await.unwrap();
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let tools: BTreeSet<&str> =
        body["tools"].as_array().into_iter().flatten().filter_map(|t| t["name"].as_str()).collect();
    for name in TOOLS {
        let mut callable = false;
        for arguments in arguments() {
            let before = world.reached("tools/call");
            let body = json!({"name": name, "arguments": arguments}).to_string();
            let answer = at("tools/call").request(Method::POST, body.into()).await.unwrap();
            let allowed = answer.status == 200;
            assert_eq!(world.reached("tools/call") - before, usize::from(allowed), "{what} {name}");
            callable |= allowed;
        }
        assert_eq!(tools.contains(name), callable, "{what}: REST {name}; listed {tools:?}");
    }
    TOOLS.len()
}

#[tokio::test]
async fn what_is_listed_is_what_can_be_called() {
    let wanted: usize = std::env::var("WAFFLES_TEST_PAIRS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    let mut dice = Dice::new(0x5EED_0004);
    let mut pairs = 0;
    let mut allowed = 0;
    let mut world_number = 0;
    while pairs < wanted {
        world_number += 1;
        let state = dice.state();
        let world = World::make(&mut dice).await;
        for (number, key) in world.keys.iter().enumerate() {
            for door in DOORS {
                for era in Era::BOTH {
                    let what = format!("world {world_number} (dice {state:#x}) p{number} {door:?} {era:?}");
                    pairs += compare(&world, key, door, era, &what).await;
                }
            }
            for server in ["demo", "crm"] {
                let what = format!("world {world_number} (dice {state:#x}) p{number} REST {server}");
                pairs += compare_rest(&world, key, server, &what).await;
            }
        }
        allowed += world.allowed.get();
    }
    assert!(
        (pairs / 10..pairs).contains(&allowed),
        "{allowed} of {pairs} pairs: a test of one answer tests nothing"
    );
}
