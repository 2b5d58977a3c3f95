//! Programs on standard streams: run by `wafflectl run` and `wafflectl up`, served by the data plane in both eras, alone
//! in their sessions, started again when they end, and out of service when their run ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use waffles_proto::registry::v1::{GetServerRequest, Server};
use waffles_tests::programs::{Program, command};
use waffles_tests::sdk::{self, Sdk};
use waffles_tests::{Era, McpClient, PATIENCE, Waffles, eventually, until};

/// A Waffles and a context for it.
struct Host {
    waffles: Waffles,
    folder: TempDir,
}

impl Host {
    async fn start() -> Self {
        let waffles = Waffles::start().await;
        let folder = TempDir::new().unwrap();
        let (grpc, mcp) = (waffles.control_plane.grpc_url(), waffles.proxies[0].mcp);
        let key = &waffles.admin.secret;
        let context =
            format!("[contexts.here]\ngrpc = {grpc:?}\nmcp = \"http://{mcp}/mcp\"\napi_key = {key:?}\n");
        std::fs::write(folder.path().join("wafflectl.toml"), context).unwrap();
        Self { waffles, folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("wafflectl.toml")
    }

    /// Runs a program as a server until the value is dropped.
    async fn run(&self, name: &str, options: &[&str], words: &[&str]) -> Run {
        let mut run = self.wafflectl(&["--output", "json", "run", name]);
        run.args(options);
        if !words.is_empty() {
            run.arg("--").args(words);
        }
        let log = self.folder.path().join(format!("{name}.log"));
        let mut program = Program::spawn("wafflectl run", run, log);
        let line: Value = program.announced(PATIENCE * 2).await;
        self.waffles.settled().await;
        Run { program, line }
    }

    fn wafflectl(&self, args: &[&str]) -> tokio::process::Command {
        let mut wafflectl = command("wafflectl", None);
        wafflectl.arg("--config").arg(self.config()).args(args);
        wafflectl
    }

    /// Exit code, output and messages of a command.
    async fn say(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = tokio::time::timeout(PATIENCE, self.wafflectl(args).output()).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    async fn server(&self, name: &str) -> Option<Server> {
        let request = GetServerRequest { name: name.to_owned() };
        self.waffles.registry().get_server(request).await.ok().and_then(|answer| answer.into_inner().server)
    }
}

struct Run {
    program: Program,
    line: Value,
}

impl Run {
    fn url(&self) -> &str {
        self.line["url"].as_str().unwrap()
    }

    /// The process ids of the program's runs.
    async fn children(&self) -> Vec<String> {
        let found =
            tokio::process::Command::new("pgrep").args(["-P", &self.program.pid().to_string()]).output();
        let text = String::from_utf8(found.await.unwrap().stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// The demo server on standard streams: it speaks both eras.
fn demo() -> Vec<String> {
    let program = waffles_tests::programs::path("wafflectl");
    vec![program.to_str().unwrap().to_owned(), "demo-server".to_owned(), "--stdio".to_owned()]
}

/// The reference server on standard streams: it has sessions.
async fn everything() -> Vec<String> {
    let script = "everything/node_modules/@modelcontextprotocol/server-everything/dist/index.js";
    let script = sdk::installed().await.join(script);
    vec!["node".to_owned(), script.to_str().unwrap().to_owned(), "stdio".to_owned()]
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

async fn text_of(client: &McpClient, tool: &str, arguments: Value) -> anyhow::Result<String> {
    let answer = client.call(tool, arguments).await?;
    let message = answer.message();
    let text = message["result"]["content"][0]["text"].as_str();
    text.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{} {message}", answer.status))
}

async fn kill(signal: &str, pid: &str) {
    let status = tokio::process::Command::new("kill").args([signal, pid]).status().await.unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

/// Passes all on but `server/discover`, so that the program behind is one of the older revisions.
const OLDER: &str = r#"
import json, subprocess, sys, threading

program = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
lock = threading.Lock()

def say(line):
    with lock:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

def answers():
    for line in program.stdout:
        say(line)

threading.Thread(target=answers, daemon=True).start()
for line in sys.stdin.buffer:
    message = json.loads(line)
    if message.get("method") == "server/discover":
        error = {"code": -32601, "message": "Method not found"}
        say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode() + b"\n")
    else:
        program.stdin.write(line)
program.stdin.close()
program.wait()
"#;

async fn every_official_client_is_content(words: &[String], eras: Value) {
    let host = Host::start().await;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = host.run("demo", &[], &words).await;
    assert_eq!(run.line["eras"], eras, "{}", run.line);
    let url = host.waffles.proxies[0].server_url("demo");
    for (client, era) in Sdk::ALL {
        let report = sdk::check(client, era, &url, &host.waffles.admin.secret).await;
        assert!(report.failed.is_empty(), "{client:?} {era:?}: {:#?}", report.failed);
        assert!(report.passed.len() >= 18, "{client:?} {era:?} ran only {:?}", report.passed);
    }
}

#[tokio::test]
async fn every_official_client_does_all_it_does_with_a_server_of_its_own() {
    every_official_client_is_content(&demo(), json!(["sessions", "stateless"])).await;
}

#[tokio::test]
async fn every_official_client_does_all_it_does_with_a_program_of_an_older_revision() {
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("older.py");
    std::fs::write(&script, OLDER).unwrap();
    let mut words = vec!["python3".to_owned(), script.to_str().unwrap().to_owned()];
    words.extend(demo());
    every_official_client_is_content(&words, json!(["sessions"])).await;
}

#[tokio::test]
async fn a_program_with_sessions_serves_clients_of_both_eras() {
    let host = Host::start().await;
    let run = host.run("every", &[], &words(&everything().await)).await;
    assert_eq!(run.line["eras"], json!(["sessions"]));
    let client = host.waffles.client("every");
    for era in Era::BOTH {
        let client = client.of(era).await;
        let said = text_of(&client, "echo", json!({"message": "é\n\u{2028}\"x\""})).await.unwrap();
        assert_eq!(said, "Echo: é\n\u{2028}\"x\"");
    }
    // A question in mid-call, as the client's era has it. The tools that ask are there once the handshake is over.
    let session = client.of(Era::Sessions).await;
    eventually(PATIENCE, || async {
        let listed = session.ask(2, "tools/list", json!({})).await?.result().to_string();
        anyhow::ensure!(listed.contains("trigger-elicitation-request"), "{listed}");
        Ok(())
    })
    .await;
    let params = json!({"name": "trigger-elicitation-request", "arguments": {}});
    let mut stream = session.ask_stream(3, "tools/call", params.clone()).await.unwrap();
    let mut asked = Vec::new();
    let answer = loop {
        let message = stream.message().await.unwrap();
        let Some(method) = message["method"].as_str() else { break message };
        let reply = json!({"jsonrpc": "2.0", "id": message["id"], "result": reply_to(method)});
        assert_eq!(session.post(reply.to_string()).await.unwrap().status, 202);
        asked.push(method.to_owned());
    };
    assert!(asked.iter().any(|method| method == "elicitation/create"), "{asked:?}");
    assert_eq!(answer["id"], 3);
    assert!(answer["result"]["content"].to_string().contains("declined"), "{answer}");

    let stateless = client.of(Era::Stateless).await;
    let asked = eventually(PATIENCE, || async {
        let asked = stateless.ask(4, "tools/call", params.clone()).await?.result();
        anyhow::ensure!(asked["resultType"] == "input_required", "{asked}");
        Ok(asked)
    })
    .await;
    let (mut answer, mut methods) = (asked, Vec::new());
    while answer["resultType"] == "input_required" {
        let mut again = params.clone();
        again["requestState"] = answer["requestState"].clone();
        for (key, request) in answer["inputRequests"].as_object().unwrap() {
            let method = request["method"].as_str().unwrap();
            again["inputResponses"][key] = reply_to(method);
            methods.push(method.to_owned());
        }
        assert!(methods.len() < 10, "{methods:?}");
        answer = stateless.ask(5, "tools/call", again).await.unwrap().result();
    }
    assert!(methods.iter().any(|method| method == "elicitation/create"), "{methods:?}");
    assert!(answer["content"].to_string().contains("declined"), "{answer}");
}

/// What the client of a test says to a server's question. server-everything asks for roots after the handshake, which
/// may fall into the first call.
fn reply_to(method: &str) -> serde_json::Value {
    match method {
        "roots/list" => json!({"roots": []}),
        "elicitation/create" => json!({"action": "decline"}),
        _ => panic!("nobody expects to be asked for {method}"),
    }
}

#[tokio::test]
async fn sessions_do_not_share_a_run_and_one_that_dies_takes_no_other_along() {
    let host = Host::start().await;
    let mut run = host.run("every", &[], &words(&everything().await)).await;
    let client = host.waffles.client("every");
    let one = client.of(Era::Sessions).await;
    assert_eq!(text_of(&one, "echo", json!({"message": "1"})).await.unwrap(), "Echo: 1");
    let of_one = run.children().await;
    let other = client.of(Era::Sessions).await;
    assert_eq!(text_of(&other, "echo", json!({"message": "2"})).await.unwrap(), "Echo: 2");
    let all = run.children().await;
    assert_eq!((of_one.len(), all.len()), (1, 2), "one run a session");

    let slow = json!({"duration": 60, "steps": 60});
    let broken = waffles_runtime::task::spawn("a call that breaks off", {
        let one = one.clone();
        async move { one.call("trigger-long-running-operation", slow).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill("-KILL", &of_one[0]).await;
    let answer = broken.await.unwrap().unwrap();
    assert!(answer.message()["error"].is_object(), "{}", answer.text());
    assert_eq!(text_of(&other, "echo", json!({"message": "3"})).await.unwrap(), "Echo: 3");
    // The state of a program is gone with it, which a client learns; one that begins again has a new run.
    assert_eq!(one.call("echo", json!({"message": "4"})).await.unwrap().status, 404);
    let again = client.of(Era::Sessions).await;
    assert_eq!(text_of(&again, "echo", json!({"message": "5"})).await.unwrap(), "Echo: 5");
    // A client of the stateless revision needs to know nothing of that: its next call works.
    let stateless = client.of(Era::Stateless).await;
    assert_eq!(text_of(&stateless, "echo", json!({"message": "6"})).await.unwrap(), "Echo: 6");
    for pid in run.children().await {
        kill("-KILL", &pid).await;
    }
    let said = eventually(PATIENCE, || text_of(&stateless, "echo", json!({"message": "7"}))).await;
    assert_eq!(said, "Echo: 7");
    let left = run.children().await;
    assert!(run.program.stop().await.success());
    for pid in left {
        until("no run outlives the command", PATIENCE, || async { !Path::new("/proc").join(&pid).exists() })
            .await;
    }
}

#[tokio::test]
async fn a_deleted_session_ends_its_run() {
    let host = Host::start().await;
    let run = host.run("demo", &[], &words(&demo())).await;
    let client = host.waffles.client("demo").of(Era::Sessions).await;
    assert_eq!(text_of(&client, "echo", json!({"message": "x"})).await.unwrap(), "x");
    assert_eq!(run.children().await.len(), 1);
    client.delete().await.unwrap();
    until("its run has ended", PATIENCE, || async { run.children().await.is_empty() }).await;
}

#[tokio::test]
async fn stateless_clients_with_the_same_ids_share_a_run_and_get_their_own_answers() {
    let host = Host::start().await;
    let run = host.run("demo", &[], &words(&demo())).await;
    let client = host.waffles.client("demo").of(Era::Stateless).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let client = client.clone();
        calls.spawn(async move {
            let steps = if n % 4 == 0 { 3 } else { 0 };
            let params = json!({"name": "progress", "arguments": {"steps": steps, "delay_ms": 5},
                "_meta": {"progressToken": "same"}});
            let progress = client.ask("same", "tools/call", params).await.unwrap();
            let messages = progress.messages();
            assert_eq!(messages.len(), steps + 1, "{messages:?}");
            assert!(
                messages[..steps].iter().all(|one| one["params"]["progressToken"] == "same"),
                "{messages:?}"
            );
            assert_eq!(messages[steps]["id"], "same");
            let id = if n % 2 == 0 { json!(1) } else { json!("1") };
            let params = json!({"name": "echo", "arguments": {"message": n.to_string()}});
            let answer = client.ask(id.clone(), "tools/call", params).await.unwrap();
            assert_eq!(answer.message()["id"], id);
            assert_eq!(answer.result()["content"][0]["text"], n.to_string());
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    assert_eq!(run.children().await.len(), 1, "one run serves them all");
    // One that goes away cancels its call; the demo says how often that happened.
    let slow = json!({"name": "slow", "arguments": {"seconds": 300}});
    let gone = tokio::time::timeout(Duration::from_millis(500), client.ask(1, "tools/call", slow)).await;
    assert!(gone.is_err());
    eventually(PATIENCE, || async {
        let read =
            client.ask(2, "resources/read", json!({"uri": "demo://readme"})).await?.result().to_string();
        anyhow::ensure!(read.contains("Slow calls cancelled: 1"), "{read}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_port_is_for_the_data_plane_only() {
    let host = Host::start().await;
    let run = host.run("demo", &[], &words(&demo())).await;
    let client = McpClient::new(run.url());
    for client in [client.clone(), client.clone().with_bearer("wrong"), client.with_bearer(&"x".repeat(43))] {
        let answer =
            client.post(waffles_tests::mcp_client::initialize("2025-11-25").to_string()).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(client.get().await.unwrap().status, 401);
    }
    assert!(run.children().await.is_empty(), "nothing is started for strangers");
    let server = host.server("demo").await.unwrap();
    let urls: Vec<String> = server.spec.unwrap().endpoints.into_iter().map(|endpoint| endpoint.url).collect();
    assert_eq!(urls, [run.url()]);
}

#[tokio::test]
async fn a_run_leaves_with_its_end_and_comes_back_under_its_name() {
    let host = Host::start().await;
    let client = || async {
        text_of(&host.waffles.client("demo").of(Era::Stateless).await, "echo", json!({"message": "x"})).await
    };
    let mut run = host.run("demo", &[], &words(&demo())).await;
    assert_eq!(client().await.unwrap(), "x");
    let first = host.server("demo").await.unwrap();
    assert!(run.program.stop().await.success());
    let left = host.server("demo").await.unwrap();
    assert!(!left.enabled, "calls do not reach a run that has ended");
    host.waffles.settled().await;
    assert!(client().await.is_err());

    // The audit trail tells of the first run, and the second is the same server all the same.
    let mut run = host.run("demo", &[], &words(&demo())).await;
    assert_eq!(client().await.unwrap(), "x");
    let second = host.server("demo").await.unwrap();
    assert_eq!((first.id, true), (second.id, second.enabled));
    // What an operator disabled stays disabled.
    host.waffles.set_enabled("demo", false).await;
    assert!(run.program.stop().await.success());
    let mut run = host.run("demo", &["--forget"], &words(&demo())).await;
    assert_eq!(run.line["enabled"], false);
    assert!(run.program.log().contains("wafflectl server enable demo"), "{}", run.program.log());
    assert!(run.program.stop().await.success());
    assert!(host.server("demo").await.is_none(), "--forget retires it");
}

#[tokio::test]
async fn what_cannot_be_served_is_said_and_changes_nothing() {
    let host = Host::start().await;
    host.waffles.add_server("taken", "http://127.0.0.1:9/mcp").await;
    let program = words(&demo()).join(" ");
    let demo: Vec<&str> = program.split(' ').collect();
    for (name, words, said) in [
        ("taken", demo.clone(), "there is a server taken already"),
        ("No Name", demo, "is no server name"),
        ("missing", vec!["/nowhere/program"], "cannot run /nowhere/program"),
        ("mute", vec!["true"], "answers neither"),
        ("talks", vec!["echo", "hello"], "what is no message: hello"),
        ("absent", vec![], "no program is given"),
    ] {
        let args = [&["run", name, "--"][..], &words].concat();
        let (code, out, err) = host.say(&args).await;
        assert!(code != Some(0) && out.is_empty() && err.contains(said), "{name}: {code:?} {out} {err}");
        assert!(name == "taken" || host.server(name).await.is_none());
    }
    let taken = host.server("taken").await.unwrap();
    assert_eq!((taken.version, taken.enabled), (1, true));
}

#[tokio::test]
async fn a_configuration_file_is_imported_whole_or_not_at_all() {
    let host = Host::start().await;
    let file = host.folder.path().join("mcp.json");
    let demo = demo();
    let content = |more: &str| {
        format!(
            r#"{{ // As VS Code writes it.
              "servers": {{
                "Demo Program": {{"type": "stdio", "command": {:?}, "args": {:?}, "env": {{"KEY": "s3cret"}}}},
                "remote": {{"type": "http", "url": "https://example.com/mcp", "headers": {{"Authorization": "Bearer t0ken"}}}},
                {more}
              }},
            }}"#,
            demo[0],
            &demo[1..]
        )
    };
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        content(r#""asks": {"url": "https://example.com/", "headers": {"X-K": "${input:k}"}},"#),
    )
    .unwrap();
    let (code, out, err) = host.say(&["server", "import", path]).await;
    assert_eq!(code, Some(1), "{out} {err}");
    assert!(out.contains("needs a value for ${input:k}") && err.contains("nothing was done"), "{out} {err}");
    assert!(host.server("remote").await.is_none() && !host.folder.path().join("stdio.toml").exists());

    std::fs::write(&file, content("")).unwrap();
    let (code, out, _) = host.say(&["server", "import", path, "--dry-run"]).await;
    assert_eq!((code, out.contains("to register")), (Some(0), true), "{out}");
    assert!(host.server("remote").await.is_none());
    let (code, out, err) = host.say(&["server", "import", path]).await;
    assert_eq!(code, Some(0), "{out} {err}");
    assert!(out.contains("registered") && out.contains("noted") && !out.contains("t0ken"), "{out}");
    let remote = host.server("remote").await.unwrap().spec.unwrap();
    assert_eq!(remote.endpoints[0].url, "https://example.com/mcp");
    let (code, out, _) = host.say(&["--output", "json", "server", "import", path]).await;
    let rows: Value = serde_json::from_str(&out).unwrap();
    let results: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["result"].as_str().unwrap()).collect();
    assert_eq!((code, results.as_slice()), (Some(0), &["unchanged", "unchanged"][..]), "{out}");

    let run = host.run("demo-program", &[], &[]).await;
    let client = host.waffles.client("demo-program").of(Era::Sessions).await;
    assert_eq!(text_of(&client, "echo", json!({"message": "imported"})).await.unwrap(), "imported");
    drop(run);
}

#[tokio::test]
async fn up_runs_what_was_imported() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("data");
    std::fs::create_dir_all(&dir).unwrap();
    let demo = demo();
    let text = format!(
        "[servers.mine]\ncommand = {:?}\nargs = {:?}\n[servers.broken]\ncommand = \"/nowhere/x\"\n",
        demo[0],
        &demo[1..]
    );
    let file = dir.join("stdio.toml");
    std::fs::write(&file, text).unwrap();
    let start = || {
        let mut up = command("wafflectl", None);
        up.args(["up", "--output", "json", "--data-dir"]).arg(&dir);
        up.args(["--mcp-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]);
        Program::spawn("wafflectl up", up, dir.join("up.log"))
    };
    // What others can write is not run.
    let mode =
        |mode| std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o666);
    let mut refused = start();
    assert!(!refused.wait(PATIENCE).await.success());
    assert!(refused.log().contains("is open to other users"), "{}", refused.log());

    mode(0o600);
    let mut key = String::new();
    for _ in 0..2 {
        let mut up = start();
        let line: Value = up.announced(PATIENCE * 2).await;
        if let Some(new) = line["api_key"].as_str() {
            key = new.to_owned();
        }
        let states: Vec<(&str, &str)> = line["stdio"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["name"].as_str().unwrap(), one["state"].as_str().unwrap()))
            .collect();
        assert_eq!(states, [("broken", "ended"), ("mine", "served")], "{line}");
        let url = format!("{}/servers/mine", line["mcp"].as_str().unwrap());
        let said = eventually(PATIENCE, || async {
            let client = McpClient::new(&url).with_bearer(&key).of(Era::Stateless).await;
            text_of(&client, "echo", json!({"message": "up"})).await
        })
        .await;
        assert_eq!(said, "up");
        assert!(up.stop().await.success());
    }
}
