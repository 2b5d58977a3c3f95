//! Namespaces over REST.

use super::*;

const PATH: &str = "/api/v1/namespaces";

fn team() -> Value {
    json!({
        "name": "team",
        "description": "Weather and more",
        "servers": [
            {"server": "weather", "prefix": false, "expose": {"allow": ["get_*"], "resources_deny": ["db://x/*"]}},
            {"server": "maps"},
        ],
        "levels": [{"role": "user", "level": "execute"}, {"role": "readonly", "level": "view"}],
        "principals": [{"principal": "eve@test", "level": "view"}],
        "tool_search": true,
    })
}

async fn with_servers(names: &[&str]) -> (World, String) {
    let world = World::new().await;
    let admin = world.admin().await;
    for name in names {
        let made = world.call("POST", "/api/v1/servers", &admin, demo(name)).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }
    (world, admin)
}

fn members(answer: &Answer) -> Vec<&str> {
    answer.body["servers"].as_array().unwrap().iter().map(|m| m["server"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_namespace_lives_from_its_making_to_its_removal() {
    let (world, admin) = with_servers(&["weather", "maps"]).await;
    let made = world.call("POST", PATH, &admin, team()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.headers[header::LOCATION], "/api/v1/namespaces/team");
    assert_eq!(made.headers[header::ETAG], "\"1\"");
    assert_eq!(members(&made), ["maps", "weather"]);
    assert_eq!(made.body["servers"][0]["prefix"], true);
    assert_eq!(made.body["servers"][1]["expose"]["allow"], json!(["get_*"]));
    let shown = world.get("/api/v1/namespaces/team", &admin).await;
    assert_eq!(shown.body, made.body);
    assert_eq!(world.call("POST", PATH, &admin, team()).await.status, StatusCode::CONFLICT);

    let member = json!({"expose": {"deny": ["drop_*"]}});
    let path = "/api/v1/namespaces/team/servers/maps";
    let changed = world.call("PUT", path, &admin, member).await;
    assert_eq!((changed.status, &changed.body["version"]), (StatusCode::OK, &json!(2)));
    assert_eq!(changed.body["servers"][0]["expose"]["deny"], json!(["drop_*"]));
    let left = world.call("DELETE", path, &admin, Value::Null).await;
    assert_eq!((left.status, members(&left)), (StatusCode::OK, vec!["weather"]));
    assert_eq!(world.call("DELETE", path, &admin, Value::Null).await.status, StatusCode::NOT_FOUND);

    let list = world.get("/api/v1/namespaces?server=weather&name=ea", &admin).await;
    assert_eq!(list.body["namespaces"][0], left.body);
    assert_eq!(world.get("/api/v1/namespaces?server=nothing", &admin).await.body["namespaces"], json!([]));
    let gone = world.call("DELETE", "/api/v1/namespaces/team", &admin, Value::Null).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/api/v1/namespaces/team", &admin).await.status, StatusCode::NOT_FOUND);
    let acts = world.acts(&admin).await;
    assert_eq!(
        acts[..4],
        ["namespace.delete", "namespace.remove_server", "namespace.add_server", "namespace.create"]
    );
}

#[tokio::test]
async fn a_lost_update_is_refused_and_changes_nothing() {
    let (world, admin) = with_servers(&["weather", "maps"]).await;
    world.call("POST", PATH, &admin, team()).await;
    let path = "/api/v1/namespaces/team";
    let update = |version: Value| json!({"version": version, "servers": [{"server": "maps"}]});
    let first = world.call("PUT", path, &admin, update(json!(1))).await;
    assert_eq!((first.status, &first.body["version"]), (StatusCode::OK, &json!(2)));
    assert_eq!((members(&first), &first.body["levels"]), (vec!["maps"], &json!([])));
    let lost = world.call("PUT", path, &admin, json!({"version": 1})).await;
    assert_eq!((lost.status, &lost.body["current_version"]), (StatusCode::CONFLICT, &json!(2)));
    assert_eq!(world.get(path, &admin).await.body, first.body);
    assert_eq!(world.call("PUT", path, &admin, json!({})).await.fields(), ["version"]);
    let renamed = json!({"version": 2, "name": "other"});
    assert_eq!(world.call("PUT", path, &admin, renamed).await.fields(), ["name"]);
}

#[tokio::test]
async fn every_wrong_field_is_named_and_nothing_is_written() {
    let (world, admin) = with_servers(&["weather"]).await;
    let bad = json!({
        "name": "Not A Label",
        "servers": [
            {"server": "weather", "expose": {"allow": ["not ok"]}},
            {"server": "absent"},
            {"server": "weather"},
            {"server": "NO"},
        ],
        "levels": [{"role": "owner", "level": "view"}],
        "principals": [{"principal": "", "level": "view"}],
    });
    let answer = world.call("POST", PATH, &admin, bad).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        answer.fields(),
        [
            "name",
            "levels[0].role",
            "principals[0].principal",
            "servers[0].expose.allow[0]",
            "servers[2].server",
            "servers[3].server",
            "servers[1].server",
        ]
    );
    for (body, field) in [
        (json!({"name": "a", "colour": 1}), "colour"),
        (json!({"name": "a", "levels": [{"role": "user", "level": "own"}]}), "levels[0].level"),
        (json!({"name": "a", "servers": [{"server": "weather", "prefixed": true}]}), "servers[0].prefixed"),
    ] {
        let answer = world.call("POST", PATH, &admin, body.clone()).await;
        let fields = answer.fields();
        assert!(fields.len() == 1 && fields[0].starts_with(field), "{body}: {fields:?}");
    }
    let member = world
        .call("PUT", "/api/v1/namespaces/default/servers/absent", &admin, json!({"expose": {"deny": [""]}}))
        .await;
    assert_eq!(member.fields(), ["expose.deny[0]", "server"]);
    let names: Vec<_> = world.get(PATH, &admin).await.body["namespaces"].as_array().unwrap().clone();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn default_takes_new_servers_in_and_lets_none_stay_that_is_gone() {
    let (world, admin) = with_servers(&["weather", "maps"]).await;
    let path = "/api/v1/namespaces/default";
    let shown = world.get(path, &admin).await;
    assert_eq!((members(&shown), &shown.body["version"]), (vec!["maps", "weather"], &json!(3)));
    let levels = json!([
        {"role": "admin", "level": "execute"},
        {"role": "user", "level": "execute"},
        {"role": "readonly", "level": "view"},
    ]);
    assert_eq!((&shown.body["is_default"], &shown.body["levels"]), (&json!(true), &levels));
    world.call("POST", PATH, &admin, team()).await;
    world.call("DELETE", "/api/v1/servers/maps", &admin, Value::Null).await;
    let shown = world.get(path, &admin).await;
    assert_eq!((members(&shown), &shown.body["version"]), (vec!["weather"], &json!(4)));
    let team = world.get("/api/v1/namespaces/team", &admin).await;
    assert_eq!((members(&team), &team.body["version"]), (vec!["weather"], &json!(2)));
    let kept = world.call("DELETE", path, &admin, Value::Null).await;
    assert_eq!((kept.status, kept.fields()), (StatusCode::BAD_REQUEST, vec!["name"]));
    // It stays out when an operator takes it out, and new servers join no more when an operator says so.
    let closed = world.call("PUT", path, &admin, json!({"version": 4})).await;
    assert_eq!(closed.status, StatusCode::OK, "{}", closed.body);
    world.call("POST", "/api/v1/servers", &admin, demo("late")).await;
    assert!(members(&world.get(path, &admin).await).is_empty());
}

#[tokio::test]
async fn only_those_see_a_namespace_who_may_change_or_use_it() {
    let (world, admin) = with_servers(&["weather", "maps"]).await;
    let mut private = team();
    private["levels"] = json!([]);
    world.call("POST", PATH, &admin, private).await;
    let see = async |credential: &str| {
        let list = world.get(PATH, credential).await;
        let names = list.body["namespaces"].as_array().cloned().unwrap_or_default();
        let one = world.get("/api/v1/namespaces/team", credential).await.status;
        let names: Vec<_> = names.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names.contains(&"team".to_owned()), one == StatusCode::OK);
        names
    };
    assert_eq!(see(&world.user("default", "otto@test", "operator").await).await, ["default", "team"]);
    assert_eq!(see(&world.user("default", "eve@test", "user").await).await, ["default", "team"]);
    assert_eq!(see(&world.user("default", "bob@test", "user").await).await, ["default"]);
    assert_eq!(see(&world.user("default", "ann@test", "readonly").await).await, ["default"]);
    let auditor = world.user("default", "aud@test", "auditor").await;
    assert_eq!(world.get(PATH, &auditor).await.status, StatusCode::FORBIDDEN);
    let user = world.user("default", "carl@test", "user").await;
    assert_eq!(world.call("POST", PATH, &user, team()).await.status, StatusCode::FORBIDDEN);

    let stranger = world.user("other", "eve@other", "admin").await;
    for (method, suffix, body) in [
        ("GET", "", Value::Null),
        ("DELETE", "", Value::Null),
        ("PUT", "", json!({"version": 1})),
        ("PUT", "/servers/weather", json!({})),
        ("DELETE", "/servers/weather", Value::Null),
    ] {
        let path = format!("/api/v1/namespaces/team{suffix}");
        assert_eq!(
            world.call(method, &path, &stranger, body).await.status,
            StatusCode::NOT_FOUND,
            "{method}"
        );
    }
    let mut theirs = team();
    theirs["name"] = "theirs".into();
    let refused = world.call("POST", PATH, &stranger, theirs).await;
    assert_eq!(refused.fields(), ["servers[0].server", "servers[1].server"], "another tenant's servers");
}

#[tokio::test]
async fn a_key_for_some_namespaces_or_servers_knows_of_those_alone() {
    let (world, admin) = with_servers(&["weather", "maps"]).await;
    world.call("POST", PATH, &admin, team()).await;
    let key = async |limits: Value| {
        let issued =
            world.call("POST", "/api/v1/api-keys", &admin, json!({"name": "k", "limits": limits})).await;
        issued.text("secret")
    };
    let one = key(json!({"namespaces": ["team"]})).await;
    let list = world.get(PATH, &one).await;
    assert_eq!(list.body["namespaces"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("/api/v1/namespaces/default", &one).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/api/v1/servers/weather", &one).await.status, StatusCode::NOT_FOUND);
    let other = json!({"name": "other"});
    assert_eq!(world.call("POST", PATH, &one, other).await.status, StatusCode::FORBIDDEN);
    let wider = json!({"name": "wide", "limits": {}});
    let wider = world.call("POST", "/api/v1/api-keys", &one, wider).await;
    assert_eq!(wider.fields(), ["limits.namespaces"]);

    let narrow = key(json!({"servers": ["maps"]})).await;
    let shown = world.get("/api/v1/namespaces/team", &narrow).await;
    assert_eq!(members(&shown), ["maps"]);
    let change = world.call("PUT", "/api/v1/namespaces/team", &narrow, json!({"version": 1})).await;
    assert_eq!(change.status, StatusCode::FORBIDDEN, "it has not the whole to write");
    let read_only = key(json!({"read_only": true})).await;
    assert_eq!(world.get("/api/v1/namespaces/team", &read_only).await.status, StatusCode::OK);
    let change = world.call("DELETE", "/api/v1/namespaces/team", &read_only, Value::Null).await;
    assert_eq!(change.status, StatusCode::FORBIDDEN);
}
