//! Servers over REST.

use super::*;

#[tokio::test]
async fn a_server_lives_from_registration_to_retirement() {
    let world = World::new().await;
    let admin = world.admin().await;
    let mut new = demo("weather");
    new["tags"] = json!(["prod", "eu"]);
    new["timeouts"] = json!({"connect_ms": 1000});
    new["resilience"] = json!({"max_concurrent": 5, "breaker": {"failures": 0, "open_ms": 250}});
    new["endpoints"][0]["zone"] = json!("eu-1");
    new["credential"] = json!({"type": "bearer", "token": "hunter2"});
    let created = world.call("POST", "/api/v1/servers", &admin, new).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.body);
    assert_eq!(created.headers[header::LOCATION], "/api/v1/servers/weather");
    assert_eq!(created.headers[header::ETAG], "\"1\"");
    assert_eq!(created.body["credential"], json!({"type": "bearer"}));
    assert_eq!(created.body["timeouts"]["connect_ms"], 1000);
    assert_eq!(created.body["timeouts"]["total_ms"], 600_000);
    let resilience = &created.body["resilience"];
    assert_eq!((&resilience["max_concurrent"], &resilience["queue"]), (&json!(5), &json!(200)));
    assert_eq!(
        (&resilience["breaker"]["failures"], &resilience["breaker"]["open_ms"]),
        (&json!(0), &json!(250))
    );
    assert_eq!((&resilience["breaker"]["trials"], &resilience["retry"]["attempts"]), (&json!(2), &json!(2)));
    assert_eq!(created.body["endpoints"][0]["zone"], "eu-1");
    assert_eq!(created.body["enabled"], true);

    // Only who looks is told how it is.
    let of = |shown: &Value| {
        let mut body = shown.clone();
        let status = body.as_object_mut().unwrap().remove("status");
        (body, status)
    };
    let shown = world.get("/api/v1/servers/weather", &admin).await;
    let unknown = Some(json!({"state": "unknown", "reason": "no_report"}));
    assert_eq!(of(&shown.body), (created.body.clone(), unknown));
    assert!(!shown.body.to_string().contains("hunter2"));

    let disabled = world.call("POST", "/api/v1/servers/weather/disable", &admin, Value::Null).await;
    assert_eq!((&disabled.body["enabled"], &disabled.body["version"]), (&json!(false), &json!(2)));
    let list = world.get("/api/v1/servers?tag=prod&tag=eu&enabled=false&name=wea", &admin).await;
    let unknown = Some(json!({"state": "unknown", "reason": "disabled"}));
    assert_eq!(of(&list.body["servers"][0]), (disabled.body.clone(), unknown));
    assert_eq!(world.get("/api/v1/servers?enabled=true", &admin).await.body["servers"], json!([]));

    let deleted = world.call("DELETE", "/api/v1/servers/weather", &admin, Value::Null).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(world.get("/api/v1/servers/weather", &admin).await.status, StatusCode::NOT_FOUND);
    let acts = world.acts(&admin).await;
    assert_eq!(acts[..3], ["server.delete", "server.disable", "server.create"]);
}

#[tokio::test]
async fn a_lost_update_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.call("POST", "/api/v1/servers", &admin, demo("weather")).await;
    let update = |description: &str, version: Value| {
        let mut update = demo("weather");
        update["description"] = description.into();
        update["version"] = version;
        update
    };
    let path = "/api/v1/servers/weather";
    let first = world.call("PUT", path, &admin, update("first", json!(1))).await;
    assert_eq!((first.status, &first.body["version"]), (StatusCode::OK, &json!(2)));
    let lost = world.call("PUT", path, &admin, update("second", json!(1))).await;
    assert_eq!(lost.status, StatusCode::CONFLICT);
    assert_eq!((&lost.body["reason"], &lost.body["current_version"]), (&json!("stale"), &json!(2)));
    assert_eq!(world.get(path, &admin).await.body["description"], "first");

    let missing = world.call("PUT", path, &admin, update("x", Value::Null)).await;
    assert_eq!(missing.fields(), ["version"]);
    let with_tag = |tag: &str, body: Value| {
        let request = Request::builder().method("PUT").uri(path).header(header::IF_MATCH, tag);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {admin}"));
        request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())).unwrap()
    };
    let stale = world.send(with_tag("\"1\"", update("x", Value::Null))).await;
    assert_eq!(stale.status, StatusCode::CONFLICT);
    assert_eq!(world.send(with_tag("*", update("x", Value::Null))).await.fields(), ["if-match"]);
    assert_eq!(world.send(with_tag("\"2\"", update("x", json!(1)))).await.fields(), ["version"]);
    let third = world.send(with_tag("\"2\"", update("third", Value::Null))).await;
    assert_eq!((third.status, &third.headers[header::ETAG]), (StatusCode::OK, &"\"3\"".parse().unwrap()));
}

#[tokio::test]
async fn every_wrong_field_is_named_and_nothing_is_written() {
    let world = World::new().await;
    let admin = world.admin().await;
    let bad = json!({
        "name": "Not A Label",
        "tags": ["ok", "not ok"],
        "endpoints": [{"url": "ftp://x/"}, {"url": "nonsense"}],
        "timeouts": {"connect_ms": 0},
        "resilience": {"queue_wait_ms": 90_000, "breaker": {"error_percent": 101}},
        "credential": {"type": "header", "name": "Host", "value": "x"},
    });
    let answer = world.call("POST", "/api/v1/servers", &admin, bad).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let fields = answer.fields();
    for field in [
        "name",
        "tags[1]",
        "endpoints[1].url",
        "timeouts.connect_ms",
        "credential.name",
        "resilience.queue_wait_ms",
        "resilience.breaker.error_percent",
    ] {
        assert!(fields.contains(&field), "{field} is not among {fields:?}");
    }
    for (body, field) in [
        (json!({"name": "a", "endpoints": [], "colour": 1}), "colour"),
        (json!({"name": "a", "endpoints": [{"url": "http://x/", "wieght": 1}]}), "endpoints[0].wieght"),
        (json!({"endpoints": []}), "name"),
        (json!({"name": "a", "endpoints": [], "transport": "stdio"}), "transport"),
        (json!({"name": "a", "endpoints": [], "credential": {"type": "bearer", "tokn": "x"}}), "credential"),
        (json!({"name": "a\u{0}", "endpoints": []}), "name"),
        (json!({"name": "a", "endpoints": [], "version": 1}), "version"),
    ] {
        let answer = world.call("POST", "/api/v1/servers", &admin, body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let fields = answer.fields();
        assert!(fields.len() == 1 && fields[0].starts_with(field), "{body}: {fields:?}");
    }
    assert_eq!(world.get("/api/v1/servers", &admin).await.body["servers"], json!([]));
}

#[tokio::test]
async fn another_tenants_server_looks_like_one_that_does_not_exist() {
    let world = World::new().await;
    let admin = world.admin().await;
    let stranger = world.user("other", "eve@test", "admin").await;
    world.call("POST", "/api/v1/servers", &admin, demo("secret")).await;
    for (method, suffix, body) in [
        ("GET", "", Value::Null),
        ("DELETE", "", Value::Null),
        ("POST", "/enable", Value::Null),
        ("PUT", "", json!({"version": 1, "endpoints": [{"url": "http://127.0.0.1/"}]})),
    ] {
        let foreign = format!("/api/v1/servers/secret{suffix}");
        let unknown = format!("/api/v1/servers/absent{suffix}");
        let mut foreign = world.call(method, &foreign, &stranger, body.clone()).await;
        let mut unknown = world.call(method, &unknown, &stranger, body).await;
        assert_eq!(foreign.status, StatusCode::NOT_FOUND, "{method}{suffix}");
        for answer in [&mut foreign, &mut unknown] {
            answer.body["request_id"] = Value::Null;
            answer.body["detail"] = answer.text("detail").replace("secret", "absent").into();
        }
        assert_eq!(foreign.body, unknown.body);
    }
    assert_eq!(world.get("/api/v1/servers", &stranger).await.body["servers"], json!([]));
    assert!(!world.acts(&stranger).await.contains(&"server.create".to_owned()));
    let taken = world.call("POST", "/api/v1/servers", &stranger, demo("secret")).await;
    assert_eq!(taken.status, StatusCode::CREATED, "a name is unique in its tenant only");
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let world = World::new().await;
    let admin = world.admin().await;
    for i in 0..7 {
        world.call("POST", "/api/v1/servers", &admin, demo(&format!("s{i}"))).await;
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/api/v1/servers?limit=3&cursor={cursor}"), &admin).await;
        for server in page.body["servers"].as_array().unwrap() {
            names.push(server["name"].as_str().unwrap().to_owned());
        }
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]);
    let twice = world.call("POST", "/api/v1/servers", &admin, demo("s1")).await;
    assert_eq!((twice.status, twice.text("reason").as_str()), (StatusCode::CONFLICT, "conflict"));
}
