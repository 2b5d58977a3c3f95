//! `wafflectl up`: a whole Waffles from one command, and the commands that then just work.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use waffles_tests::programs::{Program, command};
use waffles_tests::{PATIENCE, Postgres, until};

struct Up {
    program: Program,
    line: Value,
}

impl Up {
    async fn start(dir: &Path, more: &[&str]) -> Self {
        let mut up = command("wafflectl", None);
        up.args(["up", "--output", "json", "--demo", "--data-dir"]).arg(dir);
        up.args(["--mcp-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]);
        up.args(more);
        std::fs::create_dir_all(dir).unwrap();
        let mut program = Program::spawn("wafflectl up", up, dir.join("up.log"));
        let line = program.announced(PATIENCE).await;
        Self { program, line }
    }
}

async fn wafflectl(dir: &Path, args: &[&str]) -> Output {
    let mut run = command("wafflectl", None);
    run.arg("--config").arg(dir.join("wafflectl.toml")).args(args);
    tokio::time::timeout(PATIENCE, run.output()).await.unwrap().unwrap()
}

fn json(output: &Output) -> Value {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}

async fn a_first_start_makes_an_admin_and_everything_works(more: &[&str]) {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("data");
    let mut up = Up::start(&dir, more).await;
    for key in ["mcp", "http", "grpc", "context"] {
        assert!(up.line[key].is_string(), "{}", up.line);
    }
    assert_eq!(up.line["admin"]["email"], "admin@localhost");
    assert!(up.line["admin"]["password"].as_str().unwrap().len() >= 16);
    let key = up.line["api_key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("wfl_"));

    let sum =
        wafflectl(&dir, &["--output", "json", "call", "demo", "add", "--args", r#"{"a":2,"b":3}"#]).await;
    assert!(json(&sum).to_string().contains('5'), "{}", json(&sum));
    let servers = json(&wafflectl(&dir, &["--output", "json", "server", "list"]).await);
    assert_eq!(servers[0]["name"], "demo");
    let tools = wafflectl(&dir, &["server", "tools", "demo"]).await;
    assert!(String::from_utf8_lossy(&tools.stdout).contains("echo"));
    let doctor = wafflectl(&dir, &["doctor"]).await;
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
    until("the call is in the audit trail", PATIENCE, || async {
        let events = wafflectl(&dir, &["--output", "json", "audit", "search"]).await;
        String::from_utf8_lossy(&events.stdout).contains("tools/call")
    })
    .await;
    let unknown = wafflectl(&dir, &["server", "get", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(wafflectl(&dir, &["server", "frobnicate"]).await.status.code(), Some(2));

    assert!(up.program.stop().await.success());
    let unreachable = wafflectl(&dir, &["server", "list"]).await;
    assert_eq!(unreachable.status.code(), Some(3));

    // Secrets are shown on the first start only.
    let mut again = Up::start(&dir, more).await;
    assert!(again.line["admin"]["password"].is_null() && again.line["api_key"].is_null(), "{}", again.line);
    json(&wafflectl(&dir, &["--output", "json", "server", "list"]).await);
    assert!(again.program.stop().await.success());
    assert_eq!(again.program.rest_of_stdout().await, "");
}

#[tokio::test]
async fn up_on_sqlite() {
    a_first_start_makes_an_admin_and_everything_works(&[]).await;
}

#[tokio::test]
async fn up_on_an_empty_postgres() {
    let url = Postgres::shared().await.database().await;
    a_first_start_makes_an_admin_and_everything_works(&["--database-url", &url]).await;
}

#[tokio::test]
async fn up_from_an_existing_build_waits_for_nothing() {
    // A clock of a shared machine decides nothing: this says that start-up waits for nothing, with room to spare.
    let folder = TempDir::new().unwrap();
    let begun = Instant::now();
    let mut up = Up::start(&folder.path().join("data"), &[]).await;
    let took = begun.elapsed();
    up.program.stop().await;
    assert!(took < Duration::from_secs(10), "it took {took:?}");
}

#[tokio::test]
async fn when_one_program_dies_the_other_is_stopped() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("data");
    let mut up = Up::start(&dir, &[]).await;
    let parent = up.program.pid().to_string();
    let children =
        tokio::process::Command::new("pgrep").args(["-P", &parent, "-f", "waffles-data-plane"]).output();
    let pid = String::from_utf8(children.await.unwrap().stdout).unwrap().trim().to_owned();
    assert!(!pid.is_empty(), "up has no data plane");
    let killed = tokio::process::Command::new("kill").args(["-KILL", &pid]).status().await.unwrap();
    assert!(killed.success());
    let status = up.program.wait(PATIENCE).await;
    assert!(!status.success());
}
