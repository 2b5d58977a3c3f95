//! Log-in, refresh, log-out.

use super::*;

async fn refresh(world: &World, token: &str) -> Answer {
    world.call("POST", "/api/v1/auth/refresh", "", json!({"refresh_token": token})).await
}

#[tokio::test]
async fn a_session_goes_on_by_refresh_and_ends_by_logout() {
    let world = World::new().await;
    let session = world.login("Admin@LocalHost ", &world.admin_password).await;
    assert_eq!(session.status, StatusCode::OK, "{}", session.body);
    assert_eq!(session.body["token_type"], "Bearer");
    assert_eq!(session.body["principal"]["roles"], json!(["admin"]));
    let me = world.get("/api/v1/auth/me", &session.text("access_token")).await;
    assert_eq!(me.body["principal"], session.body["principal"]);
    assert!(me.body["permissions"].as_array().unwrap().contains(&json!("servers:write")));

    let second = refresh(&world, &session.text("refresh_token")).await;
    assert_eq!(second.status, StatusCode::OK);
    let access = second.text("access_token");
    assert_eq!(world.get("/api/v1/auth/me", &access).await.status, StatusCode::OK);
    let logout = json!({"refresh_token": second.text("refresh_token")});
    let ended = world.call("POST", "/api/v1/auth/logout", "", logout.clone()).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/api/v1/auth/me", &access).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&world, &second.text("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
    let again = world.call("POST", "/api/v1/auth/logout", "", logout).await;
    assert_eq!(again.status, StatusCode::NO_CONTENT);
    let admin = world.admin().await;
    assert_eq!(world.acts(&admin).await[..3], ["session.start", "session.end", "session.start"]);
}

#[tokio::test]
async fn a_refresh_token_used_twice_ends_the_session() {
    let world = World::new().await;
    let first = world.login("admin@localhost", &world.admin_password).await.text("refresh_token");
    let second = refresh(&world, &first).await;
    let third = refresh(&world, &second.text("refresh_token")).await;
    assert_eq!(third.status, StatusCode::OK);
    // Two generations old, so that not only the last one is remembered.
    assert_eq!(refresh(&world, &first).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&world, &third.text("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        world.get("/api/v1/auth/me", &third.text("access_token")).await.status,
        StatusCode::UNAUTHORIZED
    );
    let admin = world.admin().await;
    let trail = world.get("/api/v1/audit?action=session.end", &admin).await;
    let detail = trail.body["events"][0]["detail"]["reason"].as_str().unwrap();
    assert_eq!(detail, "a refresh token was used twice");
}

#[tokio::test]
async fn two_refreshes_at_once_give_at_most_one_session() {
    let world = World::new().await;
    let token = world.login("admin@localhost", &world.admin_password).await.text("refresh_token");
    let (a, b) = tokio::join!(refresh(&world, &token), refresh(&world, &token));
    let good = [&a, &b].into_iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(good, 1, "{a:?} {b:?}");
}

#[tokio::test]
async fn invented_refresh_tokens_end_nothing() {
    let world = World::new().await;
    let token = world.login("admin@localhost", &world.admin_password).await.text("refresh_token");
    let mut changed = token.clone().into_bytes();
    let last = changed.len() - 2;
    changed[last] = if changed[last] == b'A' { b'B' } else { b'A' };
    for bad in ["", "wfr_", "x", &String::from_utf8(changed).unwrap(), &"wfr_".repeat(500)] {
        assert_eq!(refresh(&world, bad).await.status, StatusCode::UNAUTHORIZED, "{bad}");
    }
    assert_eq!(refresh(&world, &token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn unknown_accounts_and_wrong_passwords_get_the_same_answer() {
    let world = World::new().await;
    let mut answers = Vec::new();
    for (email, password) in [("admin@localhost", "wrong"), ("nobody@localhost", "wrong")] {
        let mut answer = world.login(email, password).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        answer.body["request_id"] = Value::Null;
        answers.push(answer.body);
    }
    assert_eq!(answers[0], answers[1]);
    let admin = world.admin().await;
    let trail = world.get("/api/v1/audit?outcome=unauthenticated&action=session.start", &admin).await;
    let refused: Vec<_> = trail.body["events"].as_array().unwrap().iter().map(|e| &e["resource"]).collect();
    assert_eq!(refused, ["user/nobody@localhost", "user/admin@localhost"]);
    let other = json!({"email": "admin@localhost", "password": world.admin_password, "tenant": "other"});
    let other = world.call("POST", "/api/v1/auth/login", "", other).await;
    assert_eq!(other.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.login("", "").await.fields(), ["email", "password"]);
    assert_eq!(world.login("a@b", &"x".repeat(2000)).await.fields(), ["password"]);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_the_right_password_waits_too() {
    let world = World::new().await;
    for _ in 0..10 {
        assert_eq!(world.login("admin@localhost", "wrong").await.status, StatusCode::UNAUTHORIZED);
    }
    let answer = world.login("admin@localhost", &world.admin_password).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = answer.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=300).contains(&wait));
}

#[tokio::test]
async fn a_new_admin_password_ends_what_the_old_one_began() {
    let world = World::new().await;
    let session = world.login("admin@localhost", &world.admin_password).await;
    let key =
        world.call("POST", "/api/v1/api-keys", &session.text("access_token"), json!({"name": "k"})).await;
    let reset = world.services.identity.reset_admin_password().await.unwrap();
    for answer in [
        world.get("/api/v1/auth/me", &session.text("access_token")).await,
        refresh(&world, &session.text("refresh_token")).await,
        world.login("admin@localhost", &world.admin_password).await,
    ] {
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let again = world.login("admin@localhost", reset.password.expose_secret()).await;
    let me = world.get("/api/v1/auth/me", &again.text("access_token")).await;
    assert_eq!(me.status, StatusCode::OK, "a token of the same second is good");
    assert_eq!(world.get("/api/v1/auth/me", &key.text("secret")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn tokens_outlive_a_rotation_of_their_key_and_old_keys_go() {
    let world = World::new().await;
    let identity = &world.services.identity;
    let token = world.admin().await;
    let month = chrono::Utc::now() + chrono::TimeDelta::days(31);
    assert_eq!(identity.rotate_for_test(month).await, (1, 0));
    assert_eq!(identity.rotate_for_test(month).await, (0, 0), "once is enough");
    assert_eq!(world.get("/api/v1/auth/me", &token).await.status, StatusCode::OK);
    assert_eq!(identity.rotate_for_test(month + chrono::TimeDelta::hours(1)).await, (0, 1));
    assert_eq!(world.get("/api/v1/auth/me", &token).await.status, StatusCode::UNAUTHORIZED);
    let fresh = world.admin().await;
    assert_eq!(world.get("/api/v1/auth/me", &fresh).await.status, StatusCode::OK);
}
