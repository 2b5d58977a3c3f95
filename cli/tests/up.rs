//! How `wafflectl up` keeps its two programs, shown with stand-ins for them. The real ones are started by the
//! whole-system tests.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Runs until it is told to end, and says so in its log.
const PATIENT: &str =
    "#!/bin/sh\ntrap 'echo stopped >&2; exit 0' TERM\necho \"pid $$\" >&2\nwhile :; do sleep 0.02; done\n";
const BROKEN: &str = "#!/bin/sh\necho 'cannot open the database' >&2\nexit 3\n";

/// A folder with `wafflectl` and two stand-ins.
fn install(control: &str, data: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    std::fs::hard_link(env!("CARGO_BIN_EXE_wafflectl"), folder.path().join("wafflectl")).expect("a link");
    for (name, text) in [("waffles-control-plane", control), ("waffles-data-plane", data)] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    folder
}

fn up(folder: &Path) -> Command {
    let mut command = Command::new(folder.join("wafflectl"));
    command.args(["up", "--output", "json", "--mcp-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]);
    command.args(["--grpc-addr", "127.0.0.1:0"]).current_dir(folder).env_clear().env("HOME", folder);
    command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until a condition holds.
fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = check() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what} did not happen within ten seconds");
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("waffles-data/logs/control-plane.log")).unwrap_or_default()
}

fn started(folder: &Path) -> (Child, String) {
    let child = up(folder).spawn().expect("wafflectl runs");
    let pid = eventually("the start of the control plane", || {
        Some(log(folder).lines().find_map(|line| line.strip_prefix("pid "))?.to_owned())
    });
    (child, pid)
}

fn signal(name: &str, pid: &str) {
    let sent = Command::new("kill").args([name, pid]).status().expect("kill runs");
    assert!(sent.success(), "kill {name} {pid}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check_end(output: &Output, exit: i32) {
    assert_eq!(output.status.code(), Some(exit), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "nothing is announced before everything is ready");
}

#[test]
fn a_program_that_fails_at_its_start_is_shown_with_its_log() {
    let folder = install(BROKEN, PATIENT);
    let output = up(folder.path()).output().expect("wafflectl runs");
    check_end(&output, 1);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cannot open the database") && stderr.contains("control-plane.log"), "{stderr}");
}

#[test]
fn a_signal_stops_the_programs_and_is_no_failure() {
    for name in ["-TERM", "-INT"] {
        let folder = install(PATIENT, PATIENT);
        let (child, _) = started(folder.path());
        signal(name, &child.id().to_string());
        check_end(&child.wait_with_output().expect("wafflectl ends"), 0);
        assert!(log(folder.path()).contains("stopped"));
    }
}

#[test]
fn one_data_folder_has_one_keeper() {
    let folder = install(PATIENT, PATIENT);
    let (child, _) = started(folder.path());
    let second = up(folder.path()).output().expect("wafflectl runs");
    check_end(&second, 1);
    assert!(text(&second.stderr).contains("another `wafflectl up` runs on"), "{}", text(&second.stderr));
    signal("-TERM", &child.id().to_string());
    check_end(&child.wait_with_output().expect("wafflectl ends"), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn no_program_outlives_a_keeper_that_was_killed() {
    let folder = install(PATIENT, PATIENT);
    let (mut child, pid) = started(folder.path());
    child.kill().expect("wafflectl is killed");
    child.wait().expect("wafflectl ends");
    eventually("the end of the control plane", || log(folder.path()).contains("stopped").then_some(()));
    eventually("its process' end", || (!Path::new("/proc").join(&pid).exists()).then_some(()));
}

#[test]
fn a_missing_program_is_named() {
    let folder = install(PATIENT, PATIENT);
    std::fs::remove_file(folder.path().join("waffles-data-plane")).expect("it is removed");
    let output = up(folder.path()).output().expect("wafflectl runs");
    check_end(&output, 1);
    assert!(text(&output.stderr).contains("cannot find waffles-data-plane"), "{}", text(&output.stderr));
}

#[test]
fn an_address_that_is_taken_is_refused_with_its_flag() {
    let folder = install(PATIENT, PATIENT);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let addr = taken.local_addr().expect("an address").to_string();
    let mut command = Command::new(folder.path().join("wafflectl"));
    command.args(["up", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--mcp-addr", &addr]);
    let output = command.current_dir(folder.path()).env_clear().output().expect("wafflectl runs");
    check_end(&output, 1);
    assert!(text(&output.stderr).contains("--mcp-addr"), "{}", text(&output.stderr));
}
