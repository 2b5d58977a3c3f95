//! Who gets in: every route with every role, and what is refused before anyone asks who calls.

use super::*;
use crate::authz::{ROUTES, route_rule};

/// A path in which every variable part is something that is not there.
pub(super) fn concrete(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "nobody" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_route_denies_who_may_not() {
    let world = World::new().await;
    let mut tokens = Vec::new();
    for role in Role::ALL {
        let email = format!("{}@test", role.as_str());
        tokens.push((role, world.user("default", &email, role.as_str()).await));
    }
    for (method, path, rule, _) in ROUTES {
        if *rule == Rule::Public {
            continue;
        }
        let target = concrete(path);
        let answer = world.call(method.as_str(), &target, "", Value::Null).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} without a credential");
        assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
        for (role, token) in &mut tokens {
            let permitted = match rule {
                Rule::Needs(permission) => role.permissions().contains(*permission),
                Rule::NeedsEither(a, b) => role.permissions().contains(*a) || role.permissions().contains(*b),
                _ => true,
            };
            let answer = world.call(method.as_str(), &target, token, Value::Null).await;
            assert_eq!(
                answer.status != StatusCode::FORBIDDEN && answer.status != StatusCode::UNAUTHORIZED,
                permitted,
                "{method} {path} as {role:?}: {answer:?}"
            );
            if *path == "/api/v1/sessions" && *method == Method::DELETE {
                *token =
                    world.login(&format!("{}@test", role.as_str()), "password").await.text("access_token");
            }
        }
    }
}

#[tokio::test]
async fn the_published_document_is_the_router_and_the_table() {
    let text = openapi();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(expected == text, "the API changed; if on purpose, run with UPDATE_GOLDEN=1");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut documented = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            assert!(route_rule(&method, path).is_some(), "{method} {path} has no row in authz.rs");
            documented += 1;
        }
    }
    // The document itself is the one route that it does not describe.
    assert_eq!(documented + 1, ROUTES.len(), "a row of authz.rs has no route");
    let world = World::new().await;
    let served = world.get(OPENAPI_PATH, "").await;
    assert_eq!(served.body, document);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_not_permitted_methods_say_so() {
    let world = World::new().await;
    let admin = world.admin().await;
    for path in ["/", "/api/v1", "/api/v1/user", "/api/v1/servers/", "/metrics"] {
        assert_eq!(world.get(path, &admin).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = world.call("PATCH", "/api/v1/servers", &admin, Value::Null).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(answer.headers.contains_key(header::ALLOW));
}

#[tokio::test]
async fn health_and_readiness_need_no_credential() {
    let world = World::new().await;
    assert_eq!(world.get("/health", "").await.body, json!({"status": "ok"}));
    assert_eq!(world.get("/ready", "").await.status, StatusCode::OK);
    let gate = world.gates.gate("configuration");
    assert_eq!(world.get("/ready", "").await.status, StatusCode::SERVICE_UNAVAILABLE);
    gate.open();
    assert_eq!(world.get("/ready", "").await.status, StatusCode::OK);
    world.services.db.close().await;
    assert_eq!(world.get("/health", "").await.status, StatusCode::OK);
    let answer = world.get("/ready", "").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn bad_requests_are_refused_before_anyone_asks_who_calls() {
    let world = World::new().await;
    let admin = world.admin().await;
    let bearer = format!("Bearer {admin}");
    let base = || Request::builder().uri("/api/v1/status");
    let good = || base().header(header::AUTHORIZATION, &bearer);
    let at = |path: &str| Request::builder().uri(path).header(header::AUTHORIZATION, &bearer);
    assert_eq!(world.send(good().body(Body::empty()).unwrap()).await.status, StatusCode::OK);
    for (what, request, status) in [
        ("rebound host", good().header(header::HOST, "evil.test"), 403),
        ("other origin", good().header(header::ORIGIN, "https://evil.test"), 403),
        ("null origin", good().header(header::ORIGIN, "null"), 403),
        ("two credentials", good().header(header::AUTHORIZATION, &bearer), 400),
        ("both kinds", good().header("x-api-key", "wfl_x"), 400),
        ("encoded body", good().header(header::CONTENT_ENCODING, "gzip"), 415),
        ("token in query", at("/api/v1/status?access_token=x"), 400),
        ("key in query", at("/api/v1/servers?name=wfl_x"), 400),
        ("escaped path", at("/api/v1/servers/a%2fb"), 400),
        ("nul in path", at("/api/v1/servers/a%00"), 400),
        ("doubled slash", at("/api/v1//servers"), 400),
        ("dot segment", at("/api/v1/servers/../status"), 400),
        ("nul in query", at("/api/v1/servers?name=a%00b"), 400),
        ("unknown parameter", at("/api/v1/servers?nmae=a"), 400),
        ("forged cursor", at("/api/v1/servers?cursor=AAAA"), 400),
        ("page too large", at("/api/v1/servers?limit=501"), 400),
        ("not a time", at("/api/v1/audit?since=yesterday"), 400),
        ("basic", base().header(header::AUTHORIZATION, "Basic YTpi"), 401),
        ("empty bearer", base().header(header::AUTHORIZATION, "Bearer "), 401),
        ("nonsense", base().header(header::AUTHORIZATION, "Bearer x.y.z"), 401),
        ("join token", base().header(header::AUTHORIZATION, format!("Bearer wfj_{}", "a".repeat(43))), 401),
        ("long url", at(&format!("/api/v1/servers?name={}", "a".repeat(9000))), 414),
    ] {
        let answer = world.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.body);
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{what}");
    }
    let same = good().header(header::ORIGIN, "http://localhost:8081").body(Body::empty()).unwrap();
    assert_eq!(world.send(same).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_are_read_strictly() {
    let world = World::new().await;
    let admin = world.admin().await;
    let post = |kind: &str, body: Vec<u8>| {
        let request = Request::builder().method("POST").uri("/api/v1/servers");
        let request = request.header(header::AUTHORIZATION, format!("Bearer {admin}"));
        request.header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap()
    };
    for (kind, body, status) in [
        ("text/plain", b"{}".to_vec(), 415),
        ("application/x-www-form-urlencoded", b"name=x".to_vec(), 415),
        ("application/json", b"{".to_vec(), 400),
        ("application/json", b"\xff".to_vec(), 400),
        ("application/json", b"{\"name\":\"a\",\"name\":\"b\",\"endpoints\":[]}".to_vec(), 400),
        ("application/json", vec![b'['; 100_000], 400),
        ("application/json", vec![b' '; 600 * 1024], 413),
    ] {
        let short = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let answer = world.send(post(kind, body)).await;
        assert_eq!(answer.status.as_u16(), status, "{kind} {short}: {}", answer.body);
    }
}
