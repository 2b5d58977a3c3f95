//! Users, service accounts, groups, roles and grants over REST: who may give what to whom, and what that ends.

use super::*;

const PASSWORD: &str = "correct horse battery";

impl World {
    async fn post(&self, path: &str, credential: &str, body: Value) -> Answer {
        self.call("POST", path, credential, body).await
    }

    /// Grants a role as the admin does.
    async fn grant(&self, admin: &str, role: &str, to: &str, scope: Value) -> Answer {
        let body = json!({"role": role, "principal": to, "scope": scope});
        self.post("/api/v1/grants", admin, body).await
    }

    /// A user who holds nothing but a role of the tenant's own; answers with a token.
    async fn with_role(&self, admin: &str, email: &str, permissions: &[&str]) -> String {
        let role = email.split('@').next().unwrap();
        let made = self.post("/api/v1/roles", admin, json!({"name": role, "permissions": permissions})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let token = self.user("default", email, "nothing").await;
        let granted = self.grant(admin, role, email, json!({"kind": "tenant"})).await;
        assert_eq!(granted.status, StatusCode::CREATED, "{}", granted.body);
        token
    }

    async fn invite(&self, admin: &str, email: &str) -> (String, String) {
        let made = self.post("/api/v1/users", admin, json!({"email": email})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&made.body["user"]["id"]), text(&made.body["password_token"]["secret"]))
    }

    async fn set_password(&self, token: &str, password: &str) -> StatusCode {
        let body = json!({"token": token, "password": password});
        self.post("/api/v1/auth/password/reset", "", body).await.status
    }

    async fn status(&self, credential: &str) -> StatusCode {
        self.get("/api/v1/auth/me", credential).await.status
    }
}

#[tokio::test]
async fn an_invited_user_sets_a_password_once_however_many_try() {
    let world = World::new().await;
    let admin = world.admin().await;
    let (id, token) = world.invite(&admin, "Uma@Test").await;
    let shown = world.get("/api/v1/users/uma@test", &admin).await;
    assert_eq!((shown.body["id"].as_str(), &shown.body["invited"]), (Some(id.as_str()), &json!(true)));
    assert_eq!(world.login("uma@test", PASSWORD).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.set_password(&token, "short").await, StatusCode::BAD_REQUEST);
    let (one, other) =
        tokio::join!(world.set_password(&token, PASSWORD), world.set_password(&token, "another password"));
    let mut both = [one, other];
    both.sort();
    assert_eq!(both, [StatusCode::NO_CONTENT, StatusCode::UNAUTHORIZED]);
    assert_eq!(world.set_password(&token, PASSWORD).await, StatusCode::UNAUTHORIZED);
    let password = if one == StatusCode::NO_CONTENT { PASSWORD } else { "another password" };
    assert_eq!(world.login("uma@test", password).await.status, StatusCode::OK);
    assert_eq!(world.get(&format!("/api/v1/users/{id}"), &admin).await.body["invited"], json!(false));
    let again = world.post("/api/v1/users", &admin, json!({"email": "UMA@test"})).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let acts = world.acts(&admin).await;
    for act in ["user.create", "user.password_token", "user.set_password"] {
        assert!(acts.iter().any(|one| one == act), "{acts:?}");
    }
}

#[tokio::test]
async fn a_new_token_voids_the_one_before_and_a_reset_ends_sessions() {
    let world = World::new().await;
    let admin = world.admin().await;
    let session = world.user("default", "uma@test", "user").await;
    let path = "/api/v1/users/uma@test/password-token";
    let first = world.post(path, &admin, json!({})).await.text("secret");
    let second = world.post(path, &admin, json!({"valid_for": 60})).await.text("secret");
    for life in [0, 59, 86_401] {
        assert_eq!(world.post(path, &admin, json!({"valid_for": life})).await.fields(), ["valid_for"]);
    }
    assert_eq!(world.set_password(&first, PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(world.status(&session).await, StatusCode::OK);
    assert_eq!(world.set_password(&second, PASSWORD).await, StatusCode::NO_CONTENT);
    assert_eq!(world.status(&session).await, StatusCode::UNAUTHORIZED);
    assert_eq!(world.login("uma@test", "password").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.login("uma@test", PASSWORD).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_password_is_changed_by_who_knows_it_and_ends_all_else() {
    let world = World::new().await;
    let (one, other) =
        (world.user("default", "uma@test", "user").await, world.login("uma@test", "password").await);
    let other = other.text("access_token");
    let key = world.post("/api/v1/api-keys", &one, json!({"name": "k"})).await.text("secret");
    let change = |present: &str| json!({"present_password": present, "password": PASSWORD});
    let path = "/api/v1/auth/password";
    assert_eq!(world.post(path, &key, change("password")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(world.post(path, &one, change("wrong")).await.fields(), ["present_password"]);
    let changed = world.post(path, &one, change("password")).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    for ended in [&one, &other] {
        assert_eq!(world.status(ended).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.status(&changed.text("access_token")).await, StatusCode::OK);
    assert_eq!(world.status(&key).await, StatusCode::OK);
    assert_eq!(world.login("uma@test", "password").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn guessing_the_present_password_is_slowed_down() {
    let world = World::new().await;
    let token = world.user("default", "uma@test", "user").await;
    let wrong = json!({"present_password": "wrong", "password": PASSWORD});
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(world.post("/api/v1/auth/password", &token, wrong.clone()).await.status);
    }
    assert_eq!(statuses.last(), Some(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
}

#[tokio::test]
async fn who_is_deactivated_is_out_and_comes_back_without_old_sessions() {
    let world = World::new().await;
    let admin = world.admin().await;
    let token = world.user("default", "uma@test", "user").await;
    let key = world.post("/api/v1/api-keys", &token, json!({"name": "k"})).await.text("secret");
    let reset = world.post("/api/v1/users/uma@test/password-token", &admin, json!({})).await.text("secret");
    let off = world.post("/api/v1/users/uma@test/deactivate", &admin, Value::Null).await;
    assert_eq!((off.status, &off.body["active"]), (StatusCode::OK, &json!(false)));
    for dead in [&token, &key] {
        assert_eq!(world.status(dead).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.login("uma@test", "password").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.set_password(&reset, PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(world.get("/api/v1/users", &admin).await.body["accounts"].as_array().unwrap().len(), 1);
    let all = world.get("/api/v1/users?include_inactive=true", &admin).await;
    assert_eq!(all.body["accounts"].as_array().unwrap().len(), 2);
    let on = world.post("/api/v1/users/uma@test/reactivate", &admin, Value::Null).await;
    assert_eq!(on.body["active"], json!(true), "{}", on.body);
    assert_eq!(world.status(&token).await, StatusCode::UNAUTHORIZED, "the session stays ended");
    assert_eq!(world.status(&key).await, StatusCode::OK);
    assert_eq!(world.login("uma@test", "password").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_last_admin_stays_also_when_two_go_at_once() {
    let world = World::new().await;
    let (one, two) = (world.admin().await, world.user("default", "two@test", "admin").await);
    let (a, b) = tokio::join!(
        world.post("/api/v1/users/two@test/deactivate", &one, Value::Null),
        world.post("/api/v1/users/admin@localhost/deactivate", &two, Value::Null),
    );
    let good = [&a, &b].into_iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(good, 1, "{a:?} {b:?}");
    let (left, name) = if a.status == StatusCode::OK { (one, "admin@localhost") } else { (two, "two@test") };
    let off = world.post(&format!("/api/v1/users/{name}/deactivate"), &left, Value::Null).await;
    assert_eq!(off.status, StatusCode::CONFLICT);
    let path = format!("/api/v1/grants?principal={name}&role=admin");
    let grants = world.get(&path, &left).await;
    let own = grants.body["grants"][0]["id"].as_str().unwrap().to_owned();
    let delete = async |path: String| world.call("DELETE", &path, &left, Value::Null).await.status;
    assert_eq!(delete(format!("/api/v1/grants/{own}")).await, StatusCode::CONFLICT);

    // Through a group it is the same.
    world.post("/api/v1/groups", &left, json!({"name": "staff"})).await;
    let to_group = json!({"role": "admin", "group": "staff", "scope": {"kind": "tenant"}});
    assert_eq!(world.post("/api/v1/grants", &left, to_group).await.status, StatusCode::CREATED);
    let member = format!("/api/v1/groups/staff/members/{name}");
    assert_eq!(world.call("PUT", &member, &left, Value::Null).await.status, StatusCode::OK);
    assert_eq!(delete(format!("/api/v1/grants/{own}")).await, StatusCode::NO_CONTENT);
    assert_eq!(world.status(&left).await, StatusCode::OK);
    assert_eq!(delete(member).await, StatusCode::CONFLICT);
    assert_eq!(delete("/api/v1/groups/staff".into()).await, StatusCode::CONFLICT);
    assert_eq!(world.get("/api/v1/groups/staff", &left).await.body["members"][0]["name"], json!(name));
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_hold() {
    let world = World::new().await;
    let admin = world.admin().await;
    let held = ["access:read", "access:write", "principals:read", "principals:write", "keys:manage"];
    let granter = world.with_role(&admin, "granter@test", &held).await;
    world.post("/api/v1/groups", &admin, json!({"name": "staff"})).await;
    let to_group = json!({"role": "auditor", "group": "staff", "scope": {"kind": "tenant"}});
    assert_eq!(world.post("/api/v1/grants", &admin, to_group).await.status, StatusCode::CREATED);
    world.post("/api/v1/service-accounts", &admin, json!({"name": "robot"})).await;
    world.grant(&admin, "user", "robot", json!({"kind": "tenant"})).await;
    let before = world.acts(&admin).await.len();

    for (role, scope) in [
        ("admin", json!({"kind": "tenant"})),
        ("user", json!({"kind": "tenant"})),
        ("user", json!({"kind": "tools", "server": "*", "pattern": "a*"})),
        ("platform", json!({"kind": "tenant"})),
    ] {
        let refused = world.grant(&granter, role, "granter@test", scope).await;
        assert_eq!(refused.fields(), ["role"], "{role}: {}", refused.body);
    }
    let wide = json!({"name": "wide", "permissions": ["access:read", "audit:payloads"]});
    assert_eq!(world.post("/api/v1/roles", &granter, wide).await.fields(), ["permissions"]);
    let mut more = held.to_vec();
    more.push("audit:payloads");
    let more = json!({"permissions": more, "version": 1});
    assert_eq!(world.call("PUT", "/api/v1/roles/granter", &granter, more).await.fields(), ["permissions"]);
    let join = world.call("PUT", "/api/v1/groups/staff/members/granter@test", &granter, Value::Null).await;
    assert_eq!(join.fields(), ["group"], "{}", join.body);
    for path in ["/api/v1/users/admin@localhost/password-token", "/api/v1/service-accounts/robot/api-keys"] {
        let body = if path.ends_with("keys") { json!({"name": "k"}) } else { json!({}) };
        assert_eq!(world.post(path, &granter, body).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    for (path, body) in [
        (
            "/api/v1/grants",
            json!({"role": "user", "principal": "robot", "scope": {"kind": "tenant"},
            "created_by": "01a210b9-6dc1-75c8-be15-d403c64d2d9d"}),
        ),
        ("/api/v1/users", json!({"email": "eve@test", "tenant": "other"})),
        ("/api/v1/service-accounts", json!({"name": "eve", "roles": ["admin"]})),
        ("/api/v1/service-accounts/robot/api-keys", json!({"name": "k", "owner": "admin@localhost"})),
        ("/api/v1/groups", json!({"name": "eve", "members": ["eve"]})),
    ] {
        let refused = world.post(path, &granter, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path}: {}", refused.body);
    }
    assert_eq!(world.acts(&admin).await.len(), before, "a refused write changes nothing");

    // What is held may be given.
    world.post("/api/v1/users", &granter, json!({"email": "uma@test"})).await;
    let given = world.grant(&granter, "granter", "uma@test", json!({"kind": "tenant"})).await;
    assert_eq!(given.status, StatusCode::CREATED, "{}", given.body);
    let twice = world.grant(&granter, "granter", "uma@test", json!({"kind": "tenant"})).await;
    assert_eq!(twice.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_token_is_worth_no_more_than_who_made_it() {
    let world = World::new().await;
    let admin = world.admin().await;
    let granter = world.with_role(&admin, "inviter@test", &["principals:read", "principals:write"]).await;
    let (_, token) = world.invite(&granter, "uma@test").await;
    world.grant(&admin, "auditor", "uma@test", json!({"kind": "tenant"})).await;
    assert_eq!(world.set_password(&token, PASSWORD).await, StatusCode::UNAUTHORIZED);
    let again = world.post("/api/v1/users/uma@test/password-token", &admin, json!({})).await.text("secret");
    assert_eq!(world.set_password(&again, PASSWORD).await, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn built_in_roles_never_change_and_names_are_not_shadowed() {
    let world = World::new().await;
    let admin = world.admin().await;
    let listed = world.get("/api/v1/roles", &admin).await;
    assert_eq!(listed.body["roles"].as_array().unwrap().len(), Role::ALL.len());
    for role in Role::ALL {
        let name = role.as_str();
        let draft = json!({"name": name, "permissions": ["servers:read"]});
        assert_eq!(world.post("/api/v1/roles", &admin, draft).await.fields(), ["name"], "{name}");
        let change = json!({"permissions": ["servers:read"], "version": 0});
        let path = format!("/api/v1/roles/{name}");
        assert_eq!(world.call("PUT", &path, &admin, change).await.fields(), ["name"], "{name}");
        assert_eq!(world.call("DELETE", &path, &admin, Value::Null).await.fields(), ["name"], "{name}");
    }
    let draft = json!({"name": "reader", "permissions": ["servers:read", "no:such"]});
    assert_eq!(world.post("/api/v1/roles", &admin, draft).await.fields(), ["permissions[1]"]);
    let draft = json!({"name": "reader", "permissions": ["servers:read"]});
    assert_eq!(world.post("/api/v1/roles", &admin, draft).await.status, StatusCode::CREATED);
    let user = world.user("default", "uma@test", "nothing").await;
    assert_eq!(world.get("/api/v1/servers", &user).await.status, StatusCode::FORBIDDEN);
    let grant = world.grant(&admin, "reader", "uma@test", json!({"kind": "tenant"})).await;
    assert_eq!(world.get("/api/v1/servers", &user).await.status, StatusCode::OK);
    let stale = json!({"permissions": ["status:read"], "version": 7});
    let stale = world.call("PUT", "/api/v1/roles/reader", &admin, stale).await;
    assert_eq!(stale.status, StatusCode::CONFLICT, "{}", stale.body);
    let change = json!({"permissions": ["status:read"], "version": 1});
    assert_eq!(world.call("PUT", "/api/v1/roles/reader", &admin, change).await.status, StatusCode::OK);
    assert_eq!(world.get("/api/v1/servers", &user).await.status, StatusCode::FORBIDDEN);
    let delete = async |path: &str| world.call("DELETE", path, &admin, Value::Null).await.status;
    assert_eq!(delete("/api/v1/roles/reader").await, StatusCode::CONFLICT);
    assert_eq!(delete(&format!("/api/v1/grants/{}", grant.text("id"))).await, StatusCode::NO_CONTENT);
    assert_eq!(delete("/api/v1/roles/reader").await, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_is_held_on_one_server_is_about_that_server() {
    let world = World::new().await;
    let admin = world.admin().await;
    for name in ["a", "b"] {
        world.post("/api/v1/servers", &admin, demo(name)).await;
    }
    let user = world.user("default", "uma@test", "nothing").await;
    let nowhere = world.grant(&admin, "operator", "uma@test", json!({"kind": "server", "server": "c"})).await;
    assert_eq!(nowhere.fields(), ["scope.server"]);
    assert_eq!(world.get("/api/v1/servers", &user).await.status, StatusCode::FORBIDDEN);
    let granted = world.grant(&admin, "operator", "uma@test", json!({"kind": "server", "server": "a"})).await;
    assert_eq!(granted.status, StatusCode::CREATED, "{}", granted.body);
    let listed = world.get("/api/v1/servers?limit=1", &user).await;
    assert_eq!(listed.body["servers"][0]["name"], "a");
    assert!(listed.body.get("next_cursor").is_none(), "a cursor tells of others");
    assert_eq!(world.get("/api/v1/servers/a", &user).await.status, StatusCode::OK);
    assert_eq!(world.get("/api/v1/servers/b", &user).await.status, StatusCode::NOT_FOUND);
    let post = async |path: &str| world.post(path, &user, Value::Null).await.status;
    assert_eq!(post("/api/v1/servers/a/disable").await, StatusCode::OK);
    assert_eq!(post("/api/v1/servers/b/disable").await, StatusCode::NOT_FOUND);
    assert_eq!(world.post("/api/v1/servers", &user, demo("c")).await.status, StatusCode::FORBIDDEN);
    for elsewhere in ["/api/v1/audit", "/api/v1/users", "/api/v1/grants", "/api/v1/status"] {
        assert_eq!(world.get(elsewhere, &user).await.status, StatusCode::FORBIDDEN, "{elsewhere}");
    }
    // It goes with the server.
    assert_eq!(
        world.call("DELETE", "/api/v1/servers/a", &user, Value::Null).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        world.get("/api/v1/grants?principal=uma@test&role=operator", &admin).await.body["grants"],
        json!([])
    );
    assert_eq!(world.get("/api/v1/servers", &user).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn who_may_change_one_namespace_takes_in_no_server_of_others() {
    let world = World::new().await;
    let admin = world.admin().await;
    for name in ["a", "b"] {
        world.post("/api/v1/servers", &admin, demo(name)).await;
    }
    world.post("/api/v1/namespaces", &admin, json!({"name": "team", "servers": [{"server": "a"}]})).await;
    let user = world.user("default", "uma@test", "nothing").await;
    let scope = json!({"kind": "namespace", "namespace": "team"});
    assert_eq!(world.grant(&admin, "operator", "uma@test", scope).await.status, StatusCode::CREATED);
    let listed = world.get("/api/v1/namespaces", &user).await;
    let names: Vec<_> = listed.body["namespaces"].as_array().unwrap().iter().map(|n| &n["name"]).collect();
    assert_eq!(names, ["team"]);
    assert_eq!(world.get("/api/v1/namespaces/default", &user).await.status, StatusCode::NOT_FOUND);
    let put = async |path: &str| world.call("PUT", path, &user, json!({})).await;
    assert_eq!(put("/api/v1/namespaces/team/servers/a").await.status, StatusCode::OK);
    assert_eq!(put("/api/v1/namespaces/team/servers/b").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(put("/api/v1/namespaces/default/servers/a").await.status, StatusCode::NOT_FOUND);
    let wider = json!({"servers": [{"server": "a"}, {"server": "b"}], "version": listed.body["namespaces"][0]["version"]});
    assert_eq!(
        world.call("PUT", "/api/v1/namespaces/team", &user, wider).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(world.get("/api/v1/servers", &user).await.body["servers"], json!([]));
}

#[tokio::test]
async fn sessions_are_seen_and_ended_by_their_owner_and_by_who_may() {
    let world = World::new().await;
    let admin = world.admin().await;
    let one = world.user("default", "uma@test", "user").await;
    let two = world.login("uma@test", "password").await.text("access_token");
    let stranger = world.user("default", "sam@test", "user").await;
    let listed = world.get("/api/v1/sessions", &one).await;
    let sessions = listed.body["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 2);
    let id = |current: bool| {
        let found = sessions.iter().find(|session| session["current"] == json!(current)).unwrap();
        assert_eq!(found["client_ip"], "127.0.0.1");
        found["id"].as_str().unwrap().to_owned()
    };
    let delete = async |path: String, who: &str| world.call("DELETE", &path, who, Value::Null).await.status;
    let other = format!("/api/v1/sessions/{}", id(false));
    assert_eq!(delete(other.clone(), &stranger).await, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/api/v1/sessions?user=uma@test", &stranger).await.status, StatusCode::FORBIDDEN);
    assert_eq!(delete("/api/v1/sessions?user=uma@test".into(), &stranger).await, StatusCode::FORBIDDEN);
    assert_eq!(delete(other.clone(), &one).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(other, &one).await, StatusCode::NOT_FOUND);
    assert_eq!(
        (world.status(&two).await, world.status(&one).await),
        (StatusCode::UNAUTHORIZED, StatusCode::OK)
    );
    let seen = world.get("/api/v1/sessions?user=uma@test", &admin).await;
    assert_eq!(seen.body["sessions"].as_array().unwrap().len(), 1);
    let ended = world.call("DELETE", "/api/v1/sessions?user=uma@test", &admin, Value::Null).await;
    assert_eq!(ended.body, json!({"revoked": 1}));
    assert_eq!(world.status(&one).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_service_account_has_keys_and_no_password() {
    let world = World::new().await;
    let admin = world.admin().await;
    let made = world.post("/api/v1/service-accounts", &admin, json!({"name": "robot"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let path = "/api/v1/service-accounts/robot/api-keys";
    let key = world.post(path, &admin, json!({"name": "k"})).await;
    assert_eq!(key.body["api_key"]["owner_name"], "robot", "{}", key.body);
    let key = key.text("secret");
    let me = world.get("/api/v1/auth/me", &key).await;
    assert_eq!(
        (&me.body["principal"]["kind"], &me.body["permissions"]),
        (&json!("service_account"), &json!([]))
    );
    world.post("/api/v1/groups", &admin, json!({"name": "robots"})).await;
    let to_group = json!({"role": "readonly", "group": "robots", "scope": {"kind": "tenant"}});
    world.post("/api/v1/grants", &admin, to_group).await;
    assert_eq!(world.get("/api/v1/servers", &key).await.status, StatusCode::FORBIDDEN);
    world.call("PUT", "/api/v1/groups/robots/members/robot", &admin, Value::Null).await;
    assert_eq!(world.get("/api/v1/servers", &key).await.status, StatusCode::OK);
    assert_eq!(world.login("robot", "password").await.status, StatusCode::UNAUTHORIZED);
    let no_user = world.post("/api/v1/users/robot/password-token", &admin, json!({})).await;
    assert_eq!(no_user.status, StatusCode::NOT_FOUND);
    world.call("DELETE", "/api/v1/groups/robots", &admin, Value::Null).await;
    assert_eq!(world.get("/api/v1/servers", &key).await.status, StatusCode::FORBIDDEN);
    world.post("/api/v1/service-accounts/robot/deactivate", &admin, Value::Null).await;
    assert_eq!(world.status(&key).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_key_says_when_it_was_used() {
    let world = World::new().await;
    let admin = world.admin().await;
    let made = world.post("/api/v1/api-keys", &admin, json!({"name": "k"})).await;
    let path = format!("/api/v1/api-keys/{}", made.body["api_key"]["id"].as_str().unwrap());
    assert_eq!(world.get(&path, &admin).await.body["last_used_at"], Value::Null);
    world.get("/api/v1/auth/me", &made.text("secret")).await;
    let (usage, db) = (world.services.identity.usage(), &world.services.db);
    assert_eq!(usage.write(db, false).await.unwrap(), 1);
    assert!(world.get(&path, &admin).await.body["last_used_at"].is_string());
    world.get("/api/v1/auth/me", &made.text("secret")).await;
    assert_eq!(usage.write(db, false).await.unwrap(), 0, "once a minute is enough");
}

#[tokio::test]
async fn a_key_that_may_only_read_changes_nothing_anywhere() {
    let world = World::new().await;
    let admin = world.admin().await;
    let key = json!({"name": "ro", "limits": {"read_only": true}});
    let key = world.post("/api/v1/api-keys", &admin, key).await.text("secret");
    let before = world.acts(&admin).await.len();
    for (method, path, rule, act) in crate::authz::ROUTES {
        if *rule == Rule::Public {
            continue;
        }
        let answer = world.call(method.as_str(), &access::concrete(path), &key, Value::Null).await;
        let refused = answer.status == StatusCode::FORBIDDEN;
        assert_eq!(refused, *act == crate::authz::Act::Changes, "{method} {path}: {answer:?}");
    }
    assert_eq!(world.acts(&admin).await.len(), before);
}

#[tokio::test]
async fn a_key_for_some_servers_gives_no_rights_away() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.post("/api/v1/servers", &admin, demo("a")).await;
    for limits in [json!({"servers": ["a"]}), json!({"tools": ["x"]}), json!({"namespaces": ["default"]})] {
        let key = json!({"name": "k", "limits": limits});
        let key = world.post("/api/v1/api-keys", &admin, key).await.text("secret");
        let granted = world.grant(&key, "user", "admin@localhost", json!({"kind": "tenant"})).await;
        assert_eq!(granted.status, StatusCode::FORBIDDEN);
        let invited = world.post("/api/v1/users", &key, json!({"email": "eve@test"})).await;
        assert_eq!(invited.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn another_tenants_people_are_not_there() {
    let world = World::new().await;
    let admin = world.admin().await;
    let stranger = world.user("other", "eve@test", "admin").await;
    let (id, _) = world.invite(&admin, "uma@test").await;
    world.post("/api/v1/groups", &admin, json!({"name": "staff"})).await;
    let grants = world.get("/api/v1/grants", &admin).await;
    let grant = grants.body["grants"][0]["id"].as_str().unwrap().to_owned();
    let mut there = Vec::new();
    for path in
        [format!("/api/v1/users/{id}"), "/api/v1/users/uma@test".into(), "/api/v1/groups/staff".into()]
    {
        there.push(world.get(&path, &stranger).await.status);
    }
    for path in [format!("/api/v1/users/{id}/deactivate"), format!("/api/v1/users/{id}/password-token")] {
        there.push(world.post(&path, &stranger, json!({})).await.status);
    }
    let member = format!("/api/v1/groups/staff/members/{id}");
    for (method, path) in [("DELETE", format!("/api/v1/grants/{grant}")), ("PUT", member)] {
        there.push(world.call(method, &path, &stranger, Value::Null).await.status);
    }
    assert!(there.iter().all(|status| *status == StatusCode::NOT_FOUND), "{there:?}");
    assert_eq!(
        world.grant(&stranger, "user", &id, json!({"kind": "tenant"})).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn nobody_brings_somebody_under_a_rule_that_gives_more_than_they_hold() {
    let world = World::new().await;
    let admin = world.admin().await;
    for group in ["staff", "guests"] {
        world.post("/api/v1/groups", &admin, json!({"name": group})).await;
    }
    let roles = json!({"name": "empty", "permissions": ["status:read"]});
    assert_eq!(world.post("/api/v1/roles", &admin, roles).await.status, StatusCode::CREATED);
    for (name, effect, principals) in [
        ("staff-may", "allow", json!({"groups": ["staff"]})),
        ("guests-may-not", "forbid", json!({"groups": ["guests"], "roles": ["empty"]})),
        ("empty-may", "allow", json!({"roles": ["empty"]})),
        ("robot-may", "allow", json!({"names": ["robot"]})),
    ] {
        let rule = json!({"rule": {"name": name, "effect": effect, "principals": principals}});
        let made = world.post("/api/v1/policy/rules", &admin, rule).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }
    let clerk = ["principals:read", "principals:write", "access:read", "access:write", "status:read"];
    let caller = ["principals:read", "principals:write", "access:write", "gateway:use", "status:read"];
    let author = ["principals:read", "principals:write", "access:write", "policies:write", "status:read"];
    let clerk = world.with_role(&admin, "clerk@test", &clerk).await;
    let caller = world.with_role(&admin, "caller@test", &caller).await;
    let author = world.with_role(&admin, "author@test", &author).await;
    let member = |group: &str| format!("/api/v1/groups/{group}/members/clerk@test");
    let put = async |by: &str, group: &str| world.call("PUT", &member(group), by, Value::Null).await;
    let take = async |by: &str, group: &str| world.call("DELETE", &member(group), by, Value::Null).await;
    let robot = async |by: &str| world.post("/api/v1/service-accounts", by, json!({"name": "robot"})).await;

    // Under a rule that allows: by who could do so oneself, or could write the rule.
    assert_eq!(put(&clerk, "staff").await.fields(), ["group"]);
    assert_eq!(
        world.grant(&clerk, "empty", "clerk@test", json!({"kind": "tenant"})).await.fields(),
        ["role"]
    );
    assert_eq!(robot(&clerk).await.fields(), ["name"]);
    assert_eq!(put(&caller, "staff").await.status, StatusCode::OK);
    assert_eq!(robot(&author).await.status, StatusCode::CREATED);
    let granted = world.grant(&caller, "empty", "clerk@test", json!({"kind": "tenant"})).await;
    assert_eq!(granted.status, StatusCode::CREATED, "{}", granted.body);

    // Out from under one that forbids: only by who could remove the rule.
    assert_eq!(put(&clerk, "guests").await.status, StatusCode::OK);
    let path = format!("/api/v1/grants/{}", granted.body["id"].as_str().unwrap());
    for by in [&clerk, &caller] {
        assert_eq!(take(by, "guests").await.fields(), ["group"]);
        let deleted = world.call("DELETE", "/api/v1/groups/guests", by, Value::Null).await;
        assert_eq!(deleted.fields(), ["group"]);
        assert_eq!(world.call("DELETE", &path, by, Value::Null).await.fields(), ["role"]);
    }
    assert_eq!(take(&author, "guests").await.status, StatusCode::OK);
    assert_eq!(world.call("DELETE", &path, &author, Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(take(&clerk, "staff").await.status, StatusCode::OK);
}
