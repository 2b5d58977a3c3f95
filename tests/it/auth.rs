//! Who is let in: one good credential in a header, shown at one of our names, by no page of another origin.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{TimeDelta, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use waffles_core::audit::Outcome;
use waffles_core::credential::{KeyLimits, generate_key};
use waffles_tests::programs::DataPlaneOptions;
use waffles_tests::seed::KID;
use waffles_tests::{Era, McpClient, Seeded};

use crate::call::masked;

fn base64(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn keys_and_tokens_are_good_in_every_place_they_belong() {
    let waffles = Seeded::start().await;
    let token = waffles.seed.token(&waffles.seed.claims(waffles.alice));
    let anonymous = waffles.anonymous().of(Era::Stateless).await;
    for (what, client, key_id) in [
        ("a key", anonymous.clone().with_bearer(&waffles.key), &waffles.key[4..20]),
        (
            "a key in capitals",
            anonymous.clone().with("authorization", &format!("BEARER  {} ", waffles.key)),
            &waffles.key[4..20],
        ),
        ("a key of its own header", anonymous.clone().with("x-api-key", &waffles.key), &waffles.key[4..20]),
        ("a token", anonymous.clone().with_bearer(&token), ""),
        ("a token again", anonymous.clone().with_bearer(&token), ""),
        ("a token as a key", anonymous.clone().with("x-api-key", &token), ""),
    ] {
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        let record = waffles.records().pop().unwrap();
        assert_eq!(record.principal_id, Some(waffles.alice), "{what}");
        assert_eq!(record.api_key_id, key_id, "{what}");
    }
    for seen in waffles.upstream.seen() {
        assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("x-api-key"));
    }
}

#[tokio::test]
async fn any_other_credential_is_refused_before_its_message_is_read() {
    let now = Utc::now();
    let mut keys = Vec::new();
    let (mut gone, mut late, mut other) = (None, None, None);
    let waffles = Seeded::and(|seed, _| {
        let bob = seed.principal("bob", "user");
        keys.push(("expired", seed.key_with(bob, |key| key.expires_at = Some(now - TimeDelta::seconds(1)))));
        keys.push(("revoked", seed.key_with(bob, |key| key.revoked_at = Some(now))));
        keys.push(("past its last day", seed.key_with(bob, |key| key.not_after = Some(now))));
        let far = KeyLimits { ip_ranges: vec!["10.0.0.0/8".parse().unwrap()], ..KeyLimits::default() };
        keys.push(("from elsewhere", seed.key(bob, far)));
        keys.push(("of nobody", seed.key(uuid::Uuid::now_v7(), KeyLimits::default())));
        let inactive = seed.principal_with("carol", "user", |carol| carol.active = false);
        keys.push(("of one who left", seed.key(inactive, KeyLimits::default())));
        gone = Some(inactive);
        late = Some(seed.principal_with("dan", "user", |dan| {
            dan.tokens_not_before = Some(now + TimeDelta::seconds(60));
        }));
        other = Some(seed.principal_with("eve", "user", |eve| eve.tenant = "other".into()));
    })
    .await;
    let seed = &waffles.seed;
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = serde_json::to_value(seed.claims(waffles.alice)).unwrap();
        change(&mut claims);
        seed.token(&claims)
    };
    let sealed = |header: Header, key: &EncodingKey| {
        jsonwebtoken::encode(&header, &seed.claims(waffles.alice), key).unwrap()
    };
    let kid = |algorithm| Header { kid: Some(KID.into()), ..Header::new(algorithm) };
    let shared = EncodingKey::from_secret(&seed.public_key);
    let good = claims(&|_| {});
    let parts: Vec<&str> = good.split('.').collect();
    let none = |alg: &str| {
        let header = base64(&json!({"alg": alg, "typ": "JWT", "kid": KID}));
        format!("{header}.{}.", parts[1])
    };
    let forged = base64(&serde_json::to_value(seed.claims(late.unwrap())).unwrap());
    let second = now.timestamp();
    let tokens: Vec<(&str, String)> = vec![
        ("expired", claims(&|c| c["exp"] = json!(second - 1))),
        ("without an end", claims(&|c| drop(c.as_object_mut().unwrap().remove("exp")))),
        ("with an end in words", claims(&|c| c["exp"] = json!((second + 60).to_string()))),
        ("for another audience", claims(&|c| c["aud"] = json!("other"))),
        ("for a longer audience", claims(&|c| c["aud"] = json!("waffles/"))),
        ("for two audiences", claims(&|c| c["aud"] = json!(["waffles", "other"]))),
        ("without an audience", claims(&|c| drop(c.as_object_mut().unwrap().remove("aud")))),
        ("of another issuer", claims(&|c| c["iss"] = json!("Waffles"))),
        ("without an issuer", claims(&|c| drop(c.as_object_mut().unwrap().remove("iss")))),
        ("without a subject", claims(&|c| drop(c.as_object_mut().unwrap().remove("sub")))),
        ("of nobody", claims(&|c| c["sub"] = json!(uuid::Uuid::now_v7()))),
        ("of one who left", claims(&|c| c["sub"] = json!(gone.unwrap()))),
        ("of a session that was ended", claims(&|c| c["sub"] = json!(late.unwrap()))),
        ("of another tenant's user", claims(&|c| c["sub"] = json!(other.unwrap()))),
        ("for another tenant", claims(&|c| c["tenant"] = json!("other"))),
        ("alg none", none("none")),
        ("alg nOnE", none("nOnE")),
        ("HS256 with the public key", sealed(kid(Algorithm::HS256), &shared)),
        ("HS512 with the public key", sealed(kid(Algorithm::HS512), &shared)),
        ("another kid", {
            let pair = waffles_tests::Seed::new();
            let token = pair.token(&seed.claims(waffles.alice));
            let header = base64(&json!({"alg": "EdDSA", "kid": "other"}));
            format!("{header}.{}", token.split_once('.').unwrap().1)
        }),
        ("another key under this kid", waffles_tests::Seed::new().token(&seed.claims(waffles.alice))),
        ("without a kid", {
            let header = base64(&json!({"alg": "EdDSA"}));
            format!("{header}.{}.{}", parts[1], parts[2])
        }),
        ("other claims under this signature", format!("{}.{forged}.{}", parts[0], parts[2])),
        ("without a signature", format!("{}.{}.", parts[0], parts[1])),
        ("in two parts", format!("{}.{}", parts[0], parts[1])),
        ("too long", format!("{}.{}.{}", parts[0], "A".repeat(17_000), parts[2])),
    ];
    let unknown = generate_key().unwrap().text.expose_secret().to_owned();
    let typo = format!(
        "{}{}",
        &waffles.key[..waffles.key.len() - 1],
        if waffles.key.ends_with('0') { '1' } else { '0' }
    );
    let texts =
        [("unknown", unknown), ("with a typo", typo), ("empty", String::new()), ("a word", "secret".into())];
    let anonymous = waffles.anonymous().of(Era::Stateless).await;
    let mut cases: Vec<(String, McpClient)> = Vec::new();
    for (what, text) in keys.iter().cloned().chain(texts) {
        cases.push((format!("a key {what}"), anonymous.clone().with_bearer(&text)));
        cases.push((format!("a key {what}, in its own header"), anonymous.clone().with("x-api-key", &text)));
    }
    for (what, text) in tokens {
        cases.push((format!("a token {what}"), anonymous.clone().with_bearer(&text)));
    }
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(&waffles.key));
    cases.extend([
        ("none".to_owned(), anonymous.clone()),
        ("two".to_owned(), waffles.client().with("x-api-key", &waffles.key)),
        ("basic".to_owned(), anonymous.clone().with("authorization", &basic)),
        ("without a scheme".to_owned(), anonymous.clone().with("authorization", &waffles.key)),
        ("in a cookie".to_owned(), anonymous.clone().with("cookie", &format!("key={}", waffles.key))),
    ]);
    let count = cases.len();
    for (what, client) in cases {
        // The message is broken: who is not let in is not told so.
        for body in ["{", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#] {
            let answer = client.post(body).await.unwrap();
            assert_eq!(answer.status, 401, "{what}: {}", answer.text());
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"waffles\""));
            let error = &answer.message()["error"];
            assert_eq!(error["message"], "a valid API key or access token is required", "{what}");
            assert!(answer.message().get("id").is_none(), "{what}");
        }
        for answer in [client.get().await.unwrap(), client.delete().await.unwrap()] {
            assert_eq!(answer.status, 401, "{what}");
        }
    }
    assert_eq!(waffles.upstream.accepted(), 0, "nothing reached the server");
    let records = waffles.records();
    assert_eq!(records.len(), 4 * count);
    assert!(
        records.iter().all(|record| record.outcome == Outcome::Unauthenticated && record.http_status == 401)
    );
    let expired = records.iter().filter(|record| record.reason == "credential_not_current").count();
    assert!(expired > 0, "the audit trail says why");
}

#[tokio::test]
async fn a_header_that_decides_stands_there_once() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Stateless).await.with("mcp-method", "ping");
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping",
        "params": {"_meta": waffles_tests::mcp_client::stateless_meta()}})
    .to_string();
    assert_eq!(client.post(body.clone()).await.unwrap().status, 200);
    let before = waffles.upstream.seen().len();
    let bearer = format!("Bearer {}", waffles.key);
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("x-api-key", waffles.key.as_str()),
        ("content-type", "application/json"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "ping"),
        ("mcp-session-id", "a"),
        ("last-event-id", "1"),
    ] {
        let mut twice = client.clone().with(name, value);
        twice.headers.append(http::HeaderName::from_static(name), value.parse().unwrap());
        let answer = twice.post(body.clone()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.error_code()), (400, -32020), "{name}");
        assert_eq!(answer.message()["error"]["data"]["reason"], "header_duplicate", "{name}");
    }
    // Two that say where and whence are foreign, to whoever shows nothing as well.
    let host = waffles.proxy.mcp.to_string();
    for (name, value) in [("host", host.as_str()), ("origin", "http://localhost")] {
        let mut twice = client.clone().without("authorization").with(name, value);
        twice.headers.append(http::HeaderName::from_static(name), value.parse().unwrap());
        assert_eq!(twice.post(body.clone()).await.unwrap().status, 403, "{name}");
    }
    assert_eq!(waffles.upstream.seen().len(), before);
}

#[tokio::test]
async fn a_credential_in_the_url_is_refused_even_beside_a_good_one() {
    let waffles = Seeded::start().await;
    for query in ["api_key=x", "a=1&ACCESS_TOKEN=x", "token", "authorization=Bearer%20x", "key=1"] {
        let url = format!("{}?{query}", waffles.proxy.server_url("demo"));
        let client = McpClient::new(&url).with_bearer(&waffles.key).of(Era::Stateless).await;
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.message()["error"]["data"]["reason"], "credential_in_url");
    }
    assert_eq!(waffles.upstream.accepted(), 0);
    let url = format!("{}?page=1", waffles.proxy.server_url("demo"));
    let client = McpClient::new(&url).with_bearer(&waffles.key).of(Era::Stateless).await;
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
}

#[tokio::test]
async fn only_our_own_names_are_served_and_only_to_our_own_pages() {
    let options = DataPlaneOptions {
        args: vec!["--public-host".into(), "mcp.example.com".into()],
        ..DataPlaneOptions::default()
    };
    let waffles = Seeded::made(options, |_| {}, |_, _| {}).await;
    let own = waffles.proxy.mcp.to_string();
    // The host, the origin and the answer's status.
    let table = [
        (own.as_str(), None, 200),
        ("localhost", None, 200),
        ("LocalHost:1", None, 200),
        ("[::1]:8080", None, 200),
        ("mcp.example.com", None, 200),
        ("MCP.EXAMPLE.COM:443", None, 200),
        ("evil.test", None, 403),
        ("localhost.evil.test", None, 403),
        ("localhost.", None, 403),
        ("10.0.0.1", None, 403),
        ("user@localhost", None, 403),
        ("localhost/", None, 403),
        ("localhost#x", None, 403),
        ("", None, 403),
        ("localhost", Some("http://localhost:6274"), 200),
        ("localhost", Some("http://127.0.0.1"), 200),
        ("localhost", Some("https://mcp.example.com"), 200),
        ("localhost", Some("null"), 403),
        ("localhost", Some("http://evil.test"), 403),
        ("localhost", Some("http://localhost.evil.test"), 403),
        ("localhost", Some("http://10.0.0.1"), 403),
        ("localhost", Some("http://203.0.113.9"), 403),
        ("localhost", Some("http://a@localhost"), 403),
        ("localhost", Some("http://localhost/path"), 403),
        ("localhost", Some("file://localhost"), 403),
        ("localhost", Some("localhost"), 403),
        ("localhost", Some(""), 403),
    ];
    let client = waffles.client().of(Era::Stateless).await;
    for (host, origin, status) in table {
        let mut client = client.clone().with("host", host);
        if let Some(origin) = origin {
            client = client.with("origin", origin);
        }
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{host:?} {origin:?}: {}", answer.text());
        if status == 403 {
            // Before any credential, and on every method alike.
            let nobody = client.without("authorization");
            for answer in [nobody.get().await.unwrap(), nobody.delete().await.unwrap()] {
                assert_eq!(answer.status, 403, "{host:?} {origin:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_public_listener_takes_no_page_from_another_address() {
    let options = DataPlaneOptions {
        args: vec!["--public-host".into(), "mcp.example.com".into()],
        ..DataPlaneOptions::default()
    };
    let waffles = Seeded::public(options).await;
    let client = waffles.client().of(Era::Stateless).await;
    for (host, origin, status) in [
        ("10.0.0.7:8080", None, 200),
        ("10.0.0.7:8080", Some("http://10.0.0.7:8080"), 200),
        ("mcp.example.com", Some("https://mcp.example.com"), 200),
        ("localhost", None, 403),
        ("10.0.0.7:8080", Some("http://203.0.113.9"), 403),
        ("mcp.example.com", Some("http://203.0.113.9"), 403),
        ("mcp.example.com", Some("http://10.0.0.7"), 403),
        ("10.0.0.7", Some("http://localhost"), 403),
    ] {
        let mut client = client.clone().with("host", host);
        if let Some(origin) = origin {
            client = client.with("origin", origin);
        }
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{host:?} {origin:?}");
    }
}

#[tokio::test]
async fn a_principal_without_the_permission_knows_of_no_server() {
    let mut keys = Vec::new();
    let waffles = Seeded::and(|seed, _| {
        for role in ["readonly", "operator", "auditor", "made-up"] {
            let id = seed.principal(role, role);
            keys.push(seed.key(id, KeyLimits::default()));
        }
    })
    .await;
    let missing = McpClient::new(&waffles.proxy.server_url("no-such")).with_bearer(&waffles.key);
    let unknown = masked(&missing.of(Era::Stateless).await.call("echo", json!({})).await.unwrap());
    for key in keys {
        let client = waffles.anonymous().with_bearer(&key).of(Era::Stateless).await;
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!((answer.status.as_u16(), masked(&answer)), (404, unknown.clone()));
    }
    assert_eq!(waffles.upstream.accepted(), 0);
}
