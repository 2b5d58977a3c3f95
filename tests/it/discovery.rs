//! What a proxy refuses is named to operators, and holds nothing else back.

use anyhow::{Context as _, ensure};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use waffles_tests::programs::command;
use waffles_tests::{
    ControlPlaneOptions, Era, McpServer, PATIENCE, Postgres, Waffles, WafflesOptions, eventually,
};

#[tokio::test]
async fn a_refused_server_is_named_and_keeps_its_last_good_form() {
    let url = Postgres::shared().await.database().await;
    let control_plane =
        ControlPlaneOptions { database_url: Some(url.clone()), ..ControlPlaneOptions::default() };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    let server = waffles.add_server("demo", &upstream.url()).await;

    // No door lets such a specification in; a hand in the database does.
    let mut database = PgConnection::connect(&url).await.unwrap();
    let spoiled = "UPDATE servers SET spec = jsonb_set(spec, '{redact}', '[\"\"]'), version = version + 1";
    assert_eq!(sqlx::query(spoiled).execute(&mut database).await.unwrap().rows_affected(), 1);
    let log = "WITH next AS (UPDATE meta SET revision = revision + 1 RETURNING revision)
        INSERT INTO revisions (revision, kind, resource_id, removed, at)
        SELECT revision, 'server', $1, false, now() FROM next";
    sqlx::query(log).bind(&server.id).execute(&mut database).await.unwrap();

    let refused = eventually(PATIENCE, || async {
        let (proxies, _) = waffles.proxy_list().await?;
        let nack = proxies[0].last_nack.clone().context("nothing is refused yet")?;
        ensure!(!nack.rejections.is_empty(), "a refusal without a name: {nack:?}");
        Ok(nack.rejections[0].clone())
    })
    .await;
    assert_eq!(
        (refused.kind.as_str(), refused.name.contains("demo") || refused.name == server.id),
        ("server", true)
    );
    assert!(refused.reason.contains("redact"), "{refused:?}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), &waffles.admin.secret).unwrap();
    let wafflectl = async |args: &[&str]| {
        let mut run = command("wafflectl", None);
        run.arg("--config").arg(dir.path().join("wafflectl.toml")).args(args).current_dir(dir.path());
        let output = run.output().await.unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    wafflectl(&["login", "--api-key-file", "key", "--grpc", &waffles.control_plane.grpc_url()]).await;
    let shown = wafflectl(&["proxy", "get", &waffles.proxies[0].proxy_id]).await;
    assert!(shown.contains(&refused.name) && shown.contains("redact"), "{shown}");

    let answer = waffles.client("demo").of(Era::Stateless).await.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Nothing else is held back.
    waffles.add_server("other", &upstream.url()).await;
    let answer = waffles.client("other").of(Era::Stateless).await.call("echo", json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}
