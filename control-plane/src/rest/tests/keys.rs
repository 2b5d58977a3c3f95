//! API keys over REST.

use super::*;

async fn issue(world: &World, credential: &str, body: Value) -> Answer {
    world.call("POST", "/api/v1/api-keys", credential, body).await
}

#[tokio::test]
async fn a_key_is_shown_once_works_and_can_be_revoked() {
    let world = World::new().await;
    let admin = world.admin().await;
    let issued = issue(&world, &admin, json!({"name": "ci"})).await;
    assert_eq!(issued.status, StatusCode::CREATED, "{}", issued.body);
    let secret = issued.text("secret");
    let id = issued.body["api_key"]["id"].as_str().unwrap().to_owned();
    assert!(secret.starts_with(&format!("wfl_{id}")));
    assert_eq!(issued.body["api_key"]["owner_name"], "admin@localhost");

    let me = world.get("/api/v1/auth/me", &secret).await;
    assert_eq!(me.body["api_key_id"], id.as_str());
    let by_header = Request::builder().uri("/api/v1/auth/me").header("x-api-key", &secret);
    assert_eq!(world.send(by_header.body(Body::empty()).unwrap()).await.body, me.body);

    let path = format!("/api/v1/api-keys/{id}");
    assert_eq!(world.get(&path, &admin).await.body, issued.body["api_key"]);
    assert!(!world.get("/api/v1/api-keys", &admin).await.body.to_string().contains(&secret));
    let revoked = world.call("DELETE", &path, &admin, Value::Null).await;
    assert!(revoked.body["revoked_at"].is_string(), "{}", revoked.body);
    assert_eq!(world.get("/api/v1/auth/me", &secret).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.call("DELETE", &path, &admin, Value::Null).await.body, revoked.body);
    assert_eq!(world.get("/api/v1/api-keys", &admin).await.body["api_keys"], json!([]));
    let ended = world.get("/api/v1/api-keys?include_ended=true", &admin).await;
    assert_eq!(ended.body["api_keys"][0], revoked.body);
    assert_eq!(world.acts(&admin).await[..2], ["api_key.revoke", "api_key.create"]);
}

#[tokio::test]
async fn a_key_cannot_be_wider_than_its_owner() {
    let world = World::new().await;
    let user = world.user("default", "uma@test", "user").await;
    let refused = issue(&world, &user, json!({"name": "k", "limits": {"scopes": ["servers:write"]}})).await;
    assert_eq!((refused.status, refused.fields()), (StatusCode::BAD_REQUEST, vec!["limits.scopes[0]"]));
    let plain = issue(&world, &user, json!({"name": "k"})).await.text("secret");
    let answer = world.call("POST", "/api/v1/servers", &plain, demo("x")).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_narrow_key_makes_no_wide_one() {
    let world = World::new().await;
    let admin = world.admin().await;
    let soon = (chrono::Utc::now() + chrono::TimeDelta::hours(1)).to_rfc3339();
    let later = (chrono::Utc::now() + chrono::TimeDelta::hours(2)).to_rfc3339();
    let limits = json!({"scopes": ["keys:own", "servers:read"], "servers": ["a"], "tools": ["x*"],
        "ip_ranges": ["127.0.0.0/8"]});
    let narrow = issue(&world, &admin, json!({"name": "narrow", "limits": limits, "expires_at": soon})).await;
    let narrow = narrow.text("secret");
    let wide = issue(&world, &narrow, json!({"name": "wide"})).await;
    let expected = ["limits.scopes", "limits.servers", "limits.tools", "limits.ip_ranges", "expires_at"];
    assert_eq!(wide.fields(), expected);
    let beyond = json!({"scopes": ["servers:read", "audit:read"], "servers": ["a", "b"], "tools": ["x*"],
        "ip_ranges": ["0.0.0.0/0"]});
    let beyond = issue(&world, &narrow, json!({"name": "w", "limits": beyond, "expires_at": later})).await;
    assert_eq!(beyond.fields(), ["limits.scopes[1]", "limits.servers", "limits.ip_ranges", "expires_at"]);
    let same = issue(&world, &narrow, json!({"name": "same", "limits": limits, "expires_at": soon})).await;
    assert_eq!(same.status, StatusCode::CREATED, "{}", same.body);
    let read_only = json!({"name": "ro", "limits": {"read_only": true}});
    let read_only = issue(&world, &admin, read_only).await.text("secret");
    assert_eq!(world.get("/api/v1/api-keys", &read_only).await.status, StatusCode::OK);
    assert_eq!(issue(&world, &read_only, json!({"name": "x"})).await.status, StatusCode::FORBIDDEN);
    let write = world.call("POST", "/api/v1/servers", &read_only, demo("x")).await;
    assert_eq!(write.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_key_for_some_servers_knows_of_no_others() {
    let world = World::new().await;
    let admin = world.admin().await;
    for name in ["a", "b"] {
        world.call("POST", "/api/v1/servers", &admin, demo(name)).await;
    }
    let key = issue(&world, &admin, json!({"name": "k", "limits": {"servers": ["a", "c"]}})).await;
    let key = key.text("secret");
    let listed = world.get("/api/v1/servers", &key).await;
    assert_eq!(listed.body["servers"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("/api/v1/servers/a", &key).await.status, StatusCode::OK);
    for (method, path) in
        [("GET", "/api/v1/servers/b"), ("DELETE", "/api/v1/servers/b"), ("POST", "/api/v1/servers/b/disable")]
    {
        let answer = world.call(method, path, &key, Value::Null).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    for (name, status) in [("c", StatusCode::CREATED), ("d", StatusCode::FORBIDDEN)] {
        assert_eq!(world.call("POST", "/api/v1/servers", &key, demo(name)).await.status, status);
    }
}

#[tokio::test]
async fn a_key_is_refused_outside_its_addresses_and_after_its_end() {
    let world = World::new().await;
    let admin = world.admin().await;
    let elsewhere = json!({"name": "k", "limits": {"ip_ranges": ["10.0.0.0/8"]}});
    let elsewhere = issue(&world, &admin, elsewhere).await.text("secret");
    assert_eq!(world.get("/api/v1/auth/me", &elsewhere).await.status, StatusCode::UNAUTHORIZED);
    for field in ["expires_at", "not_after"] {
        let soon = (chrono::Utc::now() + chrono::TimeDelta::milliseconds(300)).to_rfc3339();
        let short = issue(&world, &admin, json!({"name": "k", field: soon})).await.text("secret");
        assert_eq!(world.get("/api/v1/auth/me", &short).await.status, StatusCode::OK);
        let deadline = Instant::now() + Duration::from_secs(5);
        while world.get("/api/v1/auth/me", &short).await.status == StatusCode::OK {
            assert!(Instant::now() < deadline, "{field} does not end the key");
        }
    }
    let past = (chrono::Utc::now() - chrono::TimeDelta::hours(1)).to_rfc3339();
    let both = issue(&world, &admin, json!({"name": "", "expires_at": past, "not_after": past})).await;
    assert_eq!(both.fields(), ["name", "expires_at", "not_after"]);
    let future = (chrono::Utc::now() + chrono::TimeDelta::hours(1)).to_rfc3339();
    let later = (chrono::Utc::now() + chrono::TimeDelta::hours(2)).to_rfc3339();
    let order = issue(&world, &admin, json!({"name": "k", "expires_at": future, "not_after": later})).await;
    assert_eq!(order.fields(), ["not_after"]);
    let limits = json!({"scopes": ["all"], "servers": ["A"], "tools": ["a b"], "ip_ranges": ["x"]});
    let odd = issue(&world, &admin, json!({"name": "k", "limits": limits})).await;
    assert_eq!(odd.fields().len(), 4);
}

#[tokio::test]
async fn others_see_only_their_own_keys_and_admins_those_of_their_tenant() {
    let world = World::new().await;
    let admin = world.admin().await;
    let user = world.user("default", "uma@test", "user").await;
    let stranger = world.user("other", "eve@test", "admin").await;
    let of_admin = issue(&world, &admin, json!({"name": "a"})).await;
    let of_admin = of_admin.body["api_key"]["id"].as_str().unwrap().to_owned();
    let of_user = issue(&world, &user, json!({"name": "u"})).await;
    let of_user = of_user.body["api_key"]["id"].as_str().unwrap().to_owned();
    for (who, id) in [(&user, &of_admin), (&stranger, &of_admin), (&stranger, &of_user)] {
        for method in ["GET", "DELETE"] {
            let answer = world.call(method, &format!("/api/v1/api-keys/{id}"), who, Value::Null).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND);
        }
    }
    let count = async |who: &str| {
        let answer = world.get("/api/v1/api-keys", who).await;
        answer.body["api_keys"].as_array().unwrap().len()
    };
    assert_eq!((count(&admin).await, count(&user).await, count(&stranger).await), (2, 1, 0));
    let first = world.get("/api/v1/api-keys?limit=1", &admin).await;
    assert_eq!(first.body["api_keys"][0]["id"], of_user.as_str());
    let next = format!("/api/v1/api-keys?limit=1&cursor={}", first.text("next_cursor"));
    let second = world.get(&next, &admin).await;
    assert_eq!(second.body["api_keys"][0]["id"], of_admin.as_str());
    assert!(second.body.get("next_cursor").is_none());
    let revoked = world.call("DELETE", &format!("/api/v1/api-keys/{of_user}"), &admin, Value::Null).await;
    assert_eq!(revoked.status, StatusCode::OK);
}
