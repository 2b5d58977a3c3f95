//! Join tokens, denials and authorities over REST.

use waffles_core::proxy::JoinToken;

use super::*;

#[tokio::test]
async fn a_join_token_is_made_and_its_wrong_fields_are_named() {
    let world = World::new().await;
    let admin = world.admin().await;
    let make = async |body: Value| world.call("POST", "/api/v1/join-tokens", &admin, body).await;
    let made = make(json!({"group": "eu"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert!(JoinToken::parse(&made.text("token")).is_some());
    assert_eq!(made.body["group"], "eu");
    assert_eq!(make(json!({})).await.body["group"], "default");
    for (body, field) in [
        (json!({"group": "Not A Label"}), "group"),
        (json!({"ttl_seconds": 0}), "ttl"),
        (json!({"ttl_seconds": 601}), "ttl"),
        (json!({"tenant": "x"}), "tenant"),
    ] {
        let refused = make(body).await;
        assert!(
            refused.status.is_client_error() && refused.body.to_string().contains(field),
            "{}",
            refused.body
        );
    }
    assert_eq!(world.acts(&admin).await[..2], ["proxy.create_join_token", "proxy.create_join_token"]);
}

#[tokio::test]
async fn a_proxy_that_never_was_is_not_shut_out_and_authorities_rotate() {
    let world = World::new().await;
    let admin = world.admin().await;
    for act in ["deny", "allow"] {
        let path = format!("/api/v1/proxies/nobody/{act}");
        assert_eq!(world.call("POST", &path, &admin, Value::Null).await.status, StatusCode::NOT_FOUND);
    }
    let rotated = world.call("POST", "/api/v1/authorities", &admin, Value::Null).await;
    assert_eq!(rotated.status, StatusCode::CREATED, "{}", rotated.body);
    assert_eq!(rotated.body["authorities"].as_array().unwrap().len(), 2);
    assert!(!rotated.body.to_string().contains("PRIVATE"));
}
