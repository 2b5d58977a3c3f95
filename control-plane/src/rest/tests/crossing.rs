//! No route lets one tenant feel what is in another: an id or name that another tenant has gets the answer of one that
//! nobody has, byte for byte but for the request's id. New routes and parameters are walked without being named here.

use super::*;
use crate::authz::ROUTES;

const MARK: &str = "globex keeps this to itself";

/// What `globex` has, and beside each something of the same form that nobody has.
async fn pairs(world: &World) -> Vec<(String, String)> {
    let admin = world.user("globex", "zeta@example.com", "admin").await;
    let mut pairs = Vec::new();
    for (path, body) in [
        (
            "servers",
            json!({"name": "zeta-maps", "description": MARK, "endpoints": [{"url": "http://127.0.0.1:9/mcp"}]}),
        ),
        ("namespaces", json!({"name": "zeta-team", "description": MARK})),
        ("users", json!({"email": "zeta-user@example.com", "display_name": MARK})),
        ("service-accounts", json!({"name": "zeta-bot", "display_name": MARK})),
        ("groups", json!({"name": "zeta-crew", "description": MARK})),
        ("roles", json!({"name": "zeta-role", "description": MARK, "permissions": ["servers:read"]})),
        (
            "limits",
            json!({"name": "zeta-limit", "description": MARK, "kind": "rate", "amount": 5, "window_seconds": 60}),
        ),
        ("api-keys", json!({"name": MARK})),
    ] {
        let made = world.call("POST", &format!("/api/v1/{path}"), &admin, body.clone()).await;
        assert_eq!(made.status, StatusCode::CREATED, "{path}: {}", made.body);
        if let Some(name) = body["name"].as_str().or(body["email"].as_str()).filter(|name| *name != MARK) {
            pairs.push((name.to_owned(), name.replacen("zeta", "yeta", 1)));
        }
        let ids = ["", "/user", "/service_account", "/api_key"];
        let id =
            ids.iter().find_map(|at| made.body.pointer(&format!("{at}/id"))?.as_str().map(str::to_owned));
        if let Some(id) = id {
            let unknown = match id.parse::<uuid::Uuid>() {
                Ok(_) => uuid::Uuid::now_v7().to_string(),
                Err(_) => id.chars().rev().collect(),
            };
            pairs.push((id, unknown));
        }
    }
    let sessions = world.get("/api/v1/sessions", &admin).await.body;
    let session = sessions["sessions"][0]["id"].as_str().unwrap().to_owned();
    pairs.push((session, uuid::Uuid::now_v7().to_string()));
    pairs.push(("globex".into(), "yloxeg".into()));
    pairs
}

/// The path with a text in the place of one of its variables, and in the others what we have ourselves.
fn fill(pattern: &str, at: usize, text: &str) -> String {
    let mut seen = 0;
    let mut before = "";
    let mut path = String::new();
    for part in pattern.split('/').skip(1) {
        path.push('/');
        if part.starts_with('{') {
            path.push_str(match before {
                _ if seen == at => text,
                "groups" => "ours-crew",
                "members" => "ours-bot",
                "namespaces" => "ours-team",
                _ => "ours-maps",
            });
            seen += 1;
        } else {
            path.push_str(part);
        }
        before = part;
    }
    path
}

/// A body with which the look for what the path names is not cut short.
fn body_for(method: &Method, pattern: &str) -> Value {
    match (method, pattern) {
        (&Method::GET | &Method::DELETE, _) => Value::Null,
        (_, "/api/v1/servers/{name}") => {
            json!({"version": 1, "endpoints": [{"url": "http://127.0.0.1:9/mcp"}]})
        }
        (_, "/api/v1/namespaces/{name}") => json!({"version": 1}),
        (_, "/api/v1/limits/{name}") => json!({"version": 1, "kind": "streams", "amount": 5}),
        (_, "/api/v1/roles/{name}") => json!({"version": 1, "permissions": ["servers:read"]}),
        (_, "/api/v1/service-accounts/{name}/api-keys") => json!({"name": "k"}),
        _ => json!({}),
    }
}

/// Status and body, without the request's id and what was asked for.
fn told(answer: &Answer, asked: [&str; 2]) -> String {
    let mut body = answer.body.clone();
    if let Some(body) = body.as_object_mut() {
        body.remove("request_id");
    }
    // The first line of an export says when it was made.
    if let Some(first) = body.get_mut(0).and_then(Value::as_object_mut) {
        first.remove("exported_at");
    }
    let text = asked.iter().fold(body.to_string(), |text, one| text.replace(one, "ASKED"));
    format!("{} {text}", answer.status)
}

#[tokio::test]
async fn an_id_of_another_tenant_gets_the_answer_of_an_unknown_one() {
    let world = World::new().await;
    let theirs = pairs(&world).await;
    let admin = world.user("acme", "ours@example.com", "admin").await;
    for (path, body) in [
        ("servers", json!({"name": "ours-maps", "endpoints": [{"url": "http://127.0.0.1:9/mcp"}]})),
        ("namespaces", json!({"name": "ours-team"})),
        ("service-accounts", json!({"name": "ours-bot"})),
        ("groups", json!({"name": "ours-crew"})),
    ] {
        let made = world.call("POST", &format!("/api/v1/{path}"), &admin, body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{path}: {}", made.body);
    }
    let issued = world.call("POST", "/api/v1/api-keys", &admin, json!({"name": "k"})).await;
    let key = issued.text("secret");
    let document: Value = serde_json::from_str(&openapi()).unwrap();

    let mut walked = 0;
    for (method, pattern, rule, _) in ROUTES {
        if *rule == Rule::Public {
            continue;
        }
        type Spelling = Box<dyn Fn(&str) -> String>;
        let mut places: Vec<Spelling> = Vec::new();
        for at in 0..pattern.matches('{').count() {
            places.push(Box::new(move |text| fill(pattern, at, text)));
        }
        let operation = &document["paths"][pattern][method.as_str().to_lowercase()];
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] == "query" {
                let name = parameter["name"].as_str().unwrap().to_owned();
                let path = fill(pattern, usize::MAX, "");
                places.push(Box::new(move |text| format!("{path}?{name}={text}")));
            }
        }
        for place in &places {
            for (foreign, unknown) in &theirs {
                let mut answers = Vec::new();
                for text in [foreign, unknown] {
                    let path = place(text);
                    let answer = world.call(method.as_str(), &path, &key, body_for(method, pattern)).await;
                    assert!(!answer.body.to_string().contains(MARK), "{method} {path}: {}", answer.body);
                    assert!(answer.status.as_u16() < 500, "{method} {path}: {}", answer.body);
                    answers.push(told(&answer, [foreign, unknown]));
                    walked += 1;
                }
                let [one, other] = answers.as_slice() else { unreachable!() };
                assert_eq!(one, other, "{method} {pattern} tells {foreign} from {unknown}");
            }
        }
    }
    assert!(walked > 500, "only {walked} requests were made");
}
