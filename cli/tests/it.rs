//! What scripts see of `wafflectl`: exit codes, and what goes to which stream.

use std::path::Path;
use std::process::{Command, Output};

fn wafflectl(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wafflectl"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .output()
        .expect("wafflectl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(args: &[&str], exit: i32, said: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = wafflectl(folder.path(), args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
    assert!(stderr.contains(said), "{args:?}: {stderr}");
    assert!(exit == 0 || output.stdout.is_empty(), "{args:?} printed a result though it failed");
}

#[test]
fn wrong_usage_exits_with_2_and_says_the_next_step() {
    check(&["serve"], 2, "unrecognized subcommand");
    check(&["server", "add", "demo"], 2, "<URL>");
    check(&["whoami"], 2, "wafflectl up");
    check(&["--context", "nowhere", "whoami"], 2, "wafflectl context list");
    check(&["login"], 2, "wafflectl login --grpc");
    check(&["call", "demo", "echo", "--args", "[1]"], 2, "--args '{");
    check(
        &["server", "add", "a", "http://h/", "--bearer-file", "f", "--header", "x"],
        2,
        "cannot be used with",
    );
    check(&["key", "create", "k", "--expires", "soon"], 2, "give a span");
}

#[test]
fn an_unreachable_control_plane_exits_with_3() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.toml");
    // Port 9 (discard) of loopback: nothing listens there.
    let content = "[contexts.a]\ngrpc = \"http://127.0.0.1:9\"\napi_key = \"wfl_x\"\n";
    std::fs::write(&file, content).expect("the file is written");
    let file = file.to_str().expect("UTF-8");
    for command in [&["whoami"][..], &["server", "list"], &["proxy", "list"], &["audit", "search"]] {
        let mut args = vec!["--config", file];
        args.extend(command);
        let output = wafflectl(folder.path(), &args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {stderr}");
        assert!(stderr.contains("cannot reach the control plane at http://127.0.0.1:9"), "{stderr}");
        assert!(!stderr.contains("wfl_x"), "{stderr}");
    }
}

#[test]
fn a_failed_check_of_doctor_exits_with_1_and_its_report_is_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.toml");
    let content =
        "[contexts.a]\ngrpc = \"http://127.0.0.1:9\"\nhttp = \"http://127.0.0.1:9\"\napi_key = \"wfl_x\"\n";
    std::fs::write(&file, content).expect("the file is written");
    let output =
        wafflectl(folder.path(), &["--config", file.to_str().expect("UTF-8"), "-o", "json", "doctor"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let failed = checks.as_array().expect("an array").iter().filter(|check| check["status"] == "failed");
    let failed: Vec<_> = failed.collect();
    assert!(!failed.is_empty() && failed.iter().all(|check| check["next_step"].is_string()), "{checks:#}");
}

#[test]
fn the_file_of_up_in_the_working_folder_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("waffles-data");
    std::fs::create_dir(&data).expect("a folder");
    std::fs::write(data.join("wafflectl.toml"), "[contexts.here]\ngrpc = \"http://127.0.0.1:9\"\n")
        .expect("written");
    let output = wafflectl(folder.path(), &["context", "show", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let context: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&context["name"], &context["credential"]), (&"here".into(), &"none".into()));
}

#[test]
fn contexts_are_chosen_and_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.toml");
    let content = "[contexts.a]\ngrpc = \"http://a:1\"\n[contexts.b]\ngrpc = \"http://b:1\"\n";
    std::fs::write(&file, content).expect("the file is written");
    let file = file.to_str().expect("UTF-8");
    let run = |args: &[&str]| {
        let mut all = vec!["--config", file, "-o", "json"];
        all.extend(args);
        let output = wafflectl(folder.path(), &all);
        (output.status.code(), serde_json::from_slice::<serde_json::Value>(&output.stdout).ok())
    };
    assert_eq!(run(&["context", "show"]).0, Some(2));
    assert_eq!(run(&["context", "use", "b"]).0, Some(0));
    assert_eq!(run(&["context", "show"]).1.expect("JSON")["grpc"], "http://b:1");
    assert_eq!(run(&["context", "remove", "b"]).0, Some(0));
    assert_eq!(run(&["context", "remove", "b"]).0, Some(2));
    assert_eq!(run(&["context", "list"]).1.expect("JSON").as_array().expect("an array").len(), 1);
}

#[test]
fn completion_and_version_need_no_context() {
    check(&["completion", "bash"], 0, "");
    check(&["version"], 0, "");
    let folder = tempfile::tempdir().expect("a folder");
    let output = wafflectl(folder.path(), &["version", "--output", "json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}
