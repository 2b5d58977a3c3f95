//! What `wafflectl` does with a running Waffles, beyond what the tests of each feature use of it.

use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;
use waffles_tests::programs::command;
use waffles_tests::{Era, McpServer, PATIENCE, Waffles, eventually};

pub(crate) struct Operator {
    pub(crate) waffles: Waffles,
    folder: TempDir,
}

impl Operator {
    pub(crate) async fn start() -> Self {
        let waffles = Waffles::start().await;
        let folder = TempDir::new().unwrap();
        let (grpc, mcp) = (waffles.control_plane.grpc_url(), waffles.proxies[0].mcp);
        let key = &waffles.admin.secret;
        let context =
            format!("[contexts.here]\ngrpc = {grpc:?}\nmcp = \"http://{mcp}/mcp\"\napi_key = {key:?}\n");
        std::fs::write(folder.path().join("wafflectl.toml"), context).unwrap();
        Self { waffles, folder }
    }

    pub(crate) async fn say(&self, args: &[&str]) -> Output {
        let mut wafflectl = command("wafflectl", None);
        wafflectl.arg("--config").arg(self.folder.path().join("wafflectl.toml")).args(args);
        tokio::time::timeout(PATIENCE, wafflectl.output()).await.unwrap().unwrap()
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let output = self.say(&[&["--output", "json"], args].concat()).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}{err}"))
    }

    /// What is said of a refusal.
    pub(crate) async fn refused(&self, args: &[&str]) -> String {
        let output = self.say(args).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

fn servers(namespace: &Value) -> Vec<&str> {
    namespace["servers"].as_array().unwrap().iter().map(|one| one["server"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn namespaces_are_made_changed_and_removed() {
    let operator = Operator::start().await;
    for name in ["files", "weather"] {
        operator.json(&["server", "add", name, "http://127.0.0.1:9/mcp"]).await;
    }
    let listed = operator.json(&["namespace", "list"]).await;
    assert_eq!(listed[0]["name"], "default");
    assert_eq!(servers(&listed[0]), ["files", "weather"], "new servers join it");

    let made = operator
        .json(&[
            "namespace",
            "add",
            "research",
            "--server",
            "files",
            "--role",
            "user=execute",
            "--tool-search",
        ])
        .await;
    assert_eq!(servers(&made), ["files"]);
    assert_eq!(made["roles"], json!([{"name": "user", "level": "execute"}]));
    assert_eq!((&made["tool_search"], &made["takes_new"]), (&json!(true), &json!(false)));
    let added = operator
        .json(&["namespace", "add-server", "research", "weather", "--no-prefix", "--allow", "read_*"])
        .await;
    assert_eq!(servers(&added), ["files", "weather"]);
    assert_eq!(
        (&added["servers"][1]["prefix"], &added["servers"][1]["allow"]),
        (&json!(false), &json!(["read_*"]))
    );
    let edited = operator
        .json(&["namespace", "edit", "research", "--description", "Reading", "--tool-search", "false"])
        .await;
    assert_eq!(edited["servers"], added["servers"], "what is not named stays");
    assert_eq!((&edited["description"], &edited["tool_search"]), (&json!("Reading"), &json!(false)));
    let table = operator.say(&["namespace", "get", "research"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("weather (without prefix; only read_*)") && table.contains("user execute"),
        "{table}"
    );
    let old = edited["version"].as_u64().unwrap() - 1;
    let stale = ["namespace", "edit", "research", "--clear", "roles", "--version", &old.to_string()];
    assert!(operator.refused(&stale).await.contains("`get` command"));
    let left = operator.json(&["namespace", "remove-server", "research", "files"]).await;
    assert_eq!(servers(&left), ["weather"]);
    let of = operator.json(&["namespace", "list", "--server", "files"]).await;
    assert_eq!(of.as_array().unwrap().len(), 1);

    for (args, said) in [
        (&["add-server", "research", "nobody"][..], "server"),
        (&["add", "research"], "research"),
        (&["remove", "default"], "default"),
    ] {
        let refusal = operator.refused(&[&["namespace"], args].concat()).await;
        assert!(refusal.contains(said), "{args:?}: {refusal}");
    }
    assert!(operator.say(&["namespace", "remove", "research"]).await.status.success());
    operator.refused(&["namespace", "get", "research"]).await;
}

#[tokio::test]
async fn a_server_is_shown_with_the_era_that_proxies_saw() {
    let operator = Operator::start().await;
    let server = McpServer::only(Era::Sessions).await;
    operator.waffles.add_server("old", &server.url()).await;
    let client = operator.waffles.client("old").of(Era::Stateless).await;
    assert_eq!(client.call("echo", json!({"x": 1})).await.unwrap().status, 200);
    let seen = eventually(PATIENCE, || async {
        let shown = operator.json(&["server", "get", "old"]).await;
        anyhow::ensure!(shown["seen"][0].is_object(), "{shown}");
        Ok(shown["seen"][0].clone())
    })
    .await;
    assert_eq!(
        (&seen["era"], &seen["revision"], &seen["proxy"]),
        (&json!("sessions"), &json!("2025-11-25"), &json!("proxy-0"))
    );
    let table = operator.say(&["server", "get", "old"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("sessions (2025-11-25), found by proxy-0"), "{table}");
    let added =
        operator.json(&["server", "add", "older", "http://127.0.0.1:9/sse", "--transport", "sse"]).await;
    assert_eq!(added["transport"], "sse");
}
