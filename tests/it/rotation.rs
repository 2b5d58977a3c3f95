//! The keys that secrets are sealed with are rotated while calls go on and the control plane dies in between, and the
//! master key is replaced: what was there opens, what is new does not open with what is old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::ensure;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use waffles_proto::registry::v1 as registry;
use waffles_runtime::task;
use waffles_tests::programs::command;
use waffles_tests::waffles::{endpoint, spec};
use waffles_tests::{
    ControlPlaneOptions, Era, McpServer, PATIENCE, Postgres, Waffles, WafflesOptions, eventually,
};

async fn wafflectl(waffles: &Waffles, args: &[&str]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("wafflectl.toml");
    let (grpc, key) = (waffles.control_plane.grpc_url(), &waffles.admin.secret);
    std::fs::write(&config, format!("[contexts.here]\ngrpc = {grpc:?}\napi_key = {key:?}\n")).unwrap();
    let mut wafflectl = command("wafflectl", None);
    wafflectl.arg("--config").arg(&config).args(["--output", "json"]).args(args);
    let output = tokio::time::timeout(PATIENCE * 2, wafflectl.output()).await.unwrap().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

async fn register(waffles: &Waffles, name: &str, url: &str, token: &str) {
    let bearer = registry::BearerCredential { token: token.to_owned() };
    let credential = registry::Credential { kind: Some(registry::credential::Kind::Bearer(bearer)) };
    let spec = registry::ServerSpec {
        name: name.into(),
        endpoints: vec![endpoint(url)],
        credential: Some(credential),
        ..spec()
    };
    waffles.add(spec).await;
}

/// A call of the server, and the credential that reached it.
async fn called(waffles: &Waffles, server: &McpServer, name: &str, token: &str) {
    let client = waffles.client(name).of(Era::Stateless).await;
    let answer = client.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = server.seen().pop().unwrap();
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {token}").as_str()));
}

/// The ids of the keys that everything secret in the database is sealed with.
async fn ids(database: &mut PgConnection) -> Vec<i32> {
    let sql = "SELECT DISTINCT get_byte(sealed, 0) FROM (SELECT credential AS sealed FROM servers
        UNION ALL SELECT sealed_private FROM signing_keys UNION ALL SELECT sealed_key FROM authorities) AS all_of_them
        ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(database).await.unwrap()
}

async fn keys(database: &mut PgConnection, purpose: &str) -> Vec<(i64, String)> {
    let sql = "SELECT id, stage FROM data_keys WHERE purpose = $1 ORDER BY id";
    sqlx::query_as(sql).bind(purpose).fetch_all(database).await.unwrap()
}

#[tokio::test]
async fn keys_rotate_under_load_through_a_crash_and_the_master_key_after_them() {
    let url = Postgres::shared().await.database().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let control_plane = ControlPlaneOptions { database_url: Some(url), ..ControlPlaneOptions::default() };
    let mut waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let server = McpServer::start().await;
    for i in 0..30 {
        register(&waffles, &format!("s{i}"), &server.url(), &format!("token-{i}")).await;
    }
    called(&waffles, &server, "s3", "token-3").await;
    assert_eq!(ids(&mut database).await, [1]);
    let session = waffles.client("s1").of(Era::Sessions).await;
    let refresh = waffles.tokens().await.refresh_token;

    // Calls all the while, in a session and without one; none fails.
    let stop = Arc::new(AtomicBool::new(false));
    let (made, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load = task::spawn("load", {
        let (stop, made, failed) = (Arc::clone(&stop), Arc::clone(&made), Arc::clone(&failed));
        let (session, stateless) = (session.clone(), waffles.client("s2").of(Era::Stateless).await);
        async move {
            while !stop.load(Ordering::Relaxed) {
                for client in [&session, &stateless] {
                    let good = client.call("echo", json!({})).await.is_ok_and(|answer| answer.status == 200);
                    made.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(u64::from(!good), Ordering::Relaxed);
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    });
    let (good, said) = wafflectl(&waffles, &["credential", "rotate-key"]).await;
    assert!(good, "{said}");
    let (good, said) = wafflectl(&waffles, &["credential", "rotate-key"]).await;
    assert!(!good && said.contains("rotated already"), "{said}");
    // The control plane dies as soon as the new key seals, and comes back.
    eventually(PATIENCE, || async {
        let (_, said) = wafflectl(&waffles, &["credential", "keys"]).await;
        let listed: Value = serde_json::from_str(&said)?;
        let sealing = |key: &Value| key["purpose"] == "rest" && key["id"] == 2 && key["stage"] == "sealing";
        ensure!(listed.as_array().is_some_and(|keys| keys.iter().any(sealing)), "{said}");
        Ok(())
    })
    .await;
    waffles.control_plane.restart().await;
    register(&waffles, "new", &server.url(), "token-new").await;
    eventually(PATIENCE, || async {
        let (_, said) = wafflectl(&waffles, &["credential", "keys"]).await;
        let listed: Vec<Value> = serde_json::from_str(&said)?;
        let rest: Vec<&Value> = listed.iter().filter(|key| key["purpose"] == "rest").collect();
        ensure!(rest.len() == 1 && rest[0]["id"] == 2, "{said}");
        Ok(())
    })
    .await;
    assert_eq!(ids(&mut database).await, [2], "everything is sealed anew");
    assert_eq!(keys(&mut database, "rest").await, [(2, "sealing".to_owned())]);
    assert_eq!(
        keys(&mut database, "sessions").await,
        [(1, "retired".to_owned()), (2, "sealing".to_owned())],
        "sessions overlap"
    );
    waffles.settled().await;
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert!(made.load(Ordering::Relaxed) > 100);
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} calls", made.load(Ordering::Relaxed));
    called(&waffles, &server, "s3", "token-3").await;
    called(&waffles, &server, "new", "token-new").await;

    // Another master key. The old one is told from it by name, and opens nothing any more.
    assert!(waffles.control_plane.stop().await.success());
    let dir = waffles.control_plane.data_dir().to_owned();
    let (old, new) = (dir.join("master.key"), dir.join("new.key"));
    for said in ["belongs to the key in", "already"] {
        let mut program = waffles.control_plane.program_command();
        program.args(["rekey", "--new-master-key-file"]).arg(&new);
        let output = tokio::time::timeout(PATIENCE, program.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains(said),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut program = waffles.control_plane.program_command();
    program.args(["migrate"]);
    let output = tokio::time::timeout(PATIENCE, program.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("--master-key-file"), "{text}");
    std::fs::rename(&new, &old).unwrap();
    waffles.control_plane.restart().await;
    // Keys that only the new one has ever opened take over by themselves.
    eventually(PATIENCE, || async {
        let (_, said) = wafflectl(&waffles, &["credential", "keys"]).await;
        let listed: Vec<Value> = serde_json::from_str(&said)?;
        let rest: Vec<&Value> = listed.iter().filter(|key| key["purpose"] == "rest").collect();
        ensure!(rest.len() == 1 && rest[0]["id"] == 3, "{said}");
        Ok(())
    })
    .await;
    assert_eq!(ids(&mut database).await, [3]);
    waffles.settled().await;
    // API keys, refresh tokens, sessions and credentials are what they were.
    called(&waffles, &server, "s5", "token-5").await;
    let answer = session.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let http = waffles_tests::programs::http_client();
    let refreshed = http
        .post(waffles.control_plane.http_url("/api/v1/auth/refresh"))
        .json(&json!({"refresh_token": refresh}))
        .send()
        .await
        .unwrap();
    assert_eq!(refreshed.status(), 200);
}
