//! The check programs of the official client SDKs, the reference server and the conformance suite, in `tests/sdk`. Its
//! README says what each does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::programs::Program;
use crate::watchdog::Dir;
use crate::{Era, PATIENCE};

/// Packages are downloaded on the first run of a machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(900);
/// A client's checks have ten seconds each, and normally take five altogether.
const CHECK_LIMIT: Duration = Duration::from_secs(200);
const CONFORMANCE_LIMIT: Duration = Duration::from_secs(300);

static INSTALLED: OnceCell<PathBuf> = OnceCell::const_new();

/// A client SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    TsV1,
    TsV2,
    PyV1,
    PyV2,
}

impl Sdk {
    /// Each client with each era that it speaks.
    pub const ALL: [(Self, Era); 6] = [
        (Self::TsV1, Era::Sessions),
        (Self::TsV2, Era::Sessions),
        (Self::TsV2, Era::Stateless),
        (Self::PyV1, Era::Sessions),
        (Self::PyV2, Era::Sessions),
        (Self::PyV2, Era::Stateless),
    ];

    fn command(self, sdk: &Path) -> Command {
        let node = |folder: &str| {
            let mut command = Command::new("node");
            command.arg(sdk.join(folder).join("check.mjs"));
            command
        };
        let python = |folder: &str| {
            let mut command = Command::new(sdk.join(folder).join("venv/bin/python"));
            command.arg(sdk.join(folder).join("check.py"));
            command
        };
        match self {
            Self::TsV1 => node("ts-v1"),
            Self::TsV2 => node("ts-v2"),
            Self::PyV1 => python("py-v1"),
            Self::PyV2 => python("py-v2"),
        }
    }
}

/// What a check program found.
#[derive(Debug, Clone, Deserialize)]
pub struct Report {
    pub client: String,
    pub era: String,
    pub passed: Vec<String>,
    pub failed: Vec<Failure>,
}

/// A check that failed.
#[derive(Debug, Clone, Deserialize)]
pub struct Failure {
    pub name: String,
    pub error: String,
}

/// The folder with everything installed.
pub async fn installed() -> &'static Path {
    let folder = INSTALLED.get_or_init(|| async {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/install.sh");
        let (status, stdout, stderr) = run(Command::new(script), INSTALL_LIMIT).await;
        assert!(status, "the SDKs cannot be installed:\n{stderr}");
        PathBuf::from(stdout.trim().lines().last().expect("it prints the folder last"))
    });
    folder.await
}

/// Runs the checks of a client against the demo server at `url`.
pub async fn check(sdk: Sdk, era: Era, url: &str, token: &str) -> Report {
    let mut command = sdk.command(installed().await);
    let era = match era {
        Era::Sessions => "sessions",
        Era::Stateless => "stateless",
    };
    command.args([url, "--token", token, "--era", era]);
    let (_, stdout, stderr) = run(command, CHECK_LIMIT).await;
    serde_json::from_str(stdout.trim())
        .unwrap_or_else(|err| panic!("{sdk:?} reported {stdout:?} ({err})\n{stderr}"))
}

/// A server of the SDK folder that runs until it is dropped.
#[derive(Debug)]
pub struct SdkServer {
    pub program: Program,
    /// Its MCP endpoint.
    pub url: String,
    _dir: Dir,
}

#[derive(Debug, Deserialize)]
struct Announced {
    url: String,
}

impl SdkServer {
    /// `@modelcontextprotocol/server-everything`; sessions only.
    pub async fn everything() -> Self {
        let mut command = Command::new("node");
        command
            .arg(installed().await.join("everything/start.mjs"))
            .arg(crate::programs::free_port().to_string());
        Self::start("server-everything", command).await
    }

    /// What the conformance suite is pointed at; both eras.
    pub async fn conformance() -> Self {
        let mut command = Command::new("node");
        command.arg(installed().await.join("conformance/server.mjs"));
        Self::start("conformance server", command).await
    }

    /// As `conformance`, in one era alone.
    pub async fn conformance_of(era: Era) -> Self {
        let mut command = Command::new("node");
        let only = if era == Era::Sessions { "sessions" } else { "stateless" };
        command.arg(installed().await.join("conformance/server.mjs")).args(["--only", only]);
        Self::start("conformance server", command).await
    }

    async fn start(name: &str, command: Command) -> Self {
        let dir = Dir::new("waffles-sdk-");
        let mut program = Program::spawn(name, command, dir.path().join("stderr.log"));
        let Announced { url } = program.announced(PATIENCE).await;
        Self { program, url, _dir: dir }
    }
}

/// Runs the conformance suite's server scenarios of one revision and writes what came of them to `out`.
pub async fn conformance(url: &str, revision: &str, token: Option<&str>, out: &Path) {
    let mut command = Command::new("node");
    command.arg(installed().await.join("conformance/run.mjs"));
    command.args([url, "--spec", revision, "--out"]).arg(out);
    if let Some(token) = token {
        command.args(["--token", token]);
    }
    let (status, stdout, stderr) = run(command, CONFORMANCE_LIMIT).await;
    assert!(status, "the conformance suite did not run:\n{stdout}\n{stderr}");
}

/// What passed directly and not through the gateway; empty when nothing was lost.
pub async fn lost(direct: &Path, via: &Path) -> String {
    let mut command = Command::new("node");
    command.arg(installed().await.join("conformance/compare.mjs")).arg(direct).arg(via);
    let (status, stdout, stderr) = run(command, PATIENCE).await;
    if status { String::new() } else { format!("{stdout}{stderr}") }
}

async fn run(mut command: Command, limit: Duration) -> (bool, String, String) {
    let running = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let done = tokio::time::timeout(limit, running).await;
    let output = done
        .unwrap_or_else(|_| panic!("{command:?} did not end within {limit:?}"))
        .expect("it can be started");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}
