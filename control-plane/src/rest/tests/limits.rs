//! Limits over REST: what can be made, what is wrong with what cannot, and what is left of all of it.

use super::*;

const LIMITS: &str = "/api/v1/limits";

#[tokio::test]
async fn a_limit_is_made_changed_shown_and_removed() {
    let world = World::new().await;
    let admin = world.admin().await;
    let body = json!({
        "name": "calls", "kind": "rate", "amount": 100, "window_seconds": 60, "per": ["principal", "tool"],
        "principals": {"roles": ["user"]}, "servers": ["crm-*"], "classes": ["calls"],
    });
    let made = world.call("POST", LIMITS, &admin, body.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.headers[header::LOCATION], "/api/v1/limits/calls");
    for (name, value) in body.as_object().unwrap().iter().filter(|(name, _)| *name != "principals") {
        assert_eq!(&made.body[name], value, "{name}");
    }
    assert_eq!(world.call("POST", LIMITS, &admin, body).await.status, StatusCode::CONFLICT);
    let path = format!("{LIMITS}/calls");
    let change =
        |version: u64| json!({"kind": "quota", "amount": 5, "window_seconds": 86400, "version": version});
    let changed = world.call("PUT", &path, &admin, change(1)).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    assert_eq!((&changed.body["kind"], &changed.body["version"]), (&json!("quota"), &json!(2)));
    assert_eq!(changed.body["per"], json!([]), "what is not given is not kept");
    let stale = world.call("PUT", &path, &admin, change(1)).await;
    assert_eq!((stale.status, &stale.body["reason"]), (StatusCode::CONFLICT, &json!("stale")));
    assert_eq!(world.get(&path, &admin).await.body["version"], 2);
    assert_eq!(world.get(LIMITS, &admin).await.body["limits"].as_array().unwrap().len(), 1);
    let usage = world.get("/api/v1/usage", &admin).await;
    assert_eq!(usage.body["limits"][0]["used"], 0, "{}", usage.body);
    assert_eq!(usage.body["tenant"][0], json!({"what": "servers", "used": 0, "amount": null}));
    assert_eq!(world.call("DELETE", &path, &admin, Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get(&path, &admin).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.acts(&admin).await[..3], ["limit.delete", "limit.update", "limit.create"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_limit_is_named_and_nothing_is_written() {
    let world = World::new().await;
    let admin = world.admin().await;
    let sound = json!({"name": "calls", "kind": "rate", "amount": 1, "window_seconds": 1});
    for (field, value, named) in [
        ("name", json!("No Name"), "name"),
        ("kind", json!("speed"), "kind"),
        ("amount", json!(0), "amount"),
        ("window_seconds", json!(0), "window_seconds"),
        ("window_seconds", json!(40 * 86400), "window_seconds"),
        ("per", json!(["planet"]), "per[0]"),
        ("classes", json!(["calls", "naps"]), "classes[1]"),
        ("tools", json!(["a b"]), "tools[0]"),
    ] {
        let mut body = sound.clone();
        body[field] = value;
        let refused = world.call("POST", LIMITS, &admin, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{field}: {}", refused.body);
        assert_eq!(refused.fields(), [named], "{field}");
    }
    let mut unknown = sound.clone();
    unknown["burst"] = json!(5);
    assert!(world.call("POST", LIMITS, &admin, unknown).await.status.is_client_error());
    assert_eq!(world.get(LIMITS, &admin).await.body["limits"], json!([]));
    let reader = world.user("default", "op@test", "operator").await;
    assert_eq!(world.get(LIMITS, &reader).await.status, StatusCode::OK);
    assert_eq!(world.call("POST", LIMITS, &reader, sound).await.status, StatusCode::FORBIDDEN);
}
