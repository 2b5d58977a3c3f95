//! The clients, and how their programs are run.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Report, Server, Target, Wire};
use crate::{Era, sdk};

/// Every check has ten seconds; a program in which most of them fail must still end.
const LIMIT: Duration = Duration::from_secs(300);
/// How many runs a program has in progress at once.
const PARALLEL: usize = 4;

/// What a client is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A program of Node's in this folder.
    Node(&'static str),
    /// A program of Python's in this folder.
    Python(&'static str),
    /// The Rust SDK, which runs in the test itself.
    Rmcp,
}

/// A client in one of the ways it can speak.
#[derive(Debug)]
pub struct Client {
    pub name: &'static str,
    pub title: &'static str,
    pub program: Program,
    pub wire: Wire,
    pub era: Era,
    /// The newest revision that it speaks on this wire.
    pub revision: &'static str,
    /// Whether it accepts no other revision.
    pub strict: bool,
}

const fn client(name: &'static str, title: &'static str, program: Program) -> Client {
    Client {
        name,
        title,
        program,
        wire: Wire::Http,
        era: Era::Sessions,
        revision: "2025-11-25",
        strict: false,
    }
}

const fn stateless(client: Client) -> Client {
    Client { era: Era::Stateless, revision: "2026-07-28", ..client }
}

const fn sse(client: Client) -> Client {
    Client { wire: Wire::Sse, ..client }
}

const fn strict(client: Client, revision: &'static str) -> Client {
    Client { revision, strict: true, ..client }
}

const TS_V1: Program = Program::Node("ts-v1/client.mjs");
const TS_V2: Program = Program::Node("ts-v2/client.mjs");
const PY_V1: Program = Program::Python("py-v1");
const PY_V2: Program = Program::Python("py-v2");
const INSPECTOR: Program = Program::Node("inspector/client.mjs");
const RAW: Program = Program::Node("matrix/raw.mjs");

/// Every client, oldest revision first.
pub static CLIENTS: [Client; 15] = [
    sse(strict(client("raw-2024-11-05", "no SDK, 2024-11-05 over HTTP+SSE", RAW), "2024-11-05")),
    strict(client("raw-2025-03-26", "no SDK, 2025-03-26", RAW), "2025-03-26"),
    strict(client("raw-2025-06-18", "no SDK, 2025-06-18", RAW), "2025-06-18"),
    sse(client("ts-v1-sse", "TypeScript SDK 1.x over HTTP+SSE", TS_V1)),
    sse(client("py-v1-sse", "Python SDK 1.x over HTTP+SSE", PY_V1)),
    client("ts-v1", "TypeScript SDK 1.x, 2025-11-25", TS_V1),
    client("py-v1", "Python SDK 1.x, 2025-11-25", PY_V1),
    client("ts-v2", "TypeScript SDK 2.x, 2025-11-25", TS_V2),
    client("py-v2", "Python SDK 2.x, 2025-11-25", PY_V2),
    client("rmcp", "Rust SDK (rmcp), 2025-11-25", Program::Rmcp),
    client("inspector", "MCP Inspector CLI, 2025-11-25", INSPECTOR),
    stateless(client("ts-v2-stateless", "TypeScript SDK 2.x, 2026-07-28", TS_V2)),
    stateless(client("py-v2-stateless", "Python SDK 2.x, 2026-07-28", PY_V2)),
    stateless(client("rmcp-stateless", "Rust SDK (rmcp), 2026-07-28", Program::Rmcp)),
    stateless(client("inspector-stateless", "MCP Inspector CLI, 2026-07-28", INSPECTOR)),
];

impl Client {
    /// Whether the two can speak without a gateway between them.
    pub fn meets(&self, server: &Server) -> bool {
        let era = match self.era {
            Era::Stateless => server.stateless(),
            Era::Sessions => server.sessions(),
        };
        let revision = !self.strict || server.agrees || server.revision == self.revision;
        self.wire == server.wire && era && revision
    }

    /// Runs the program on all targets. A target that it does not report on is missing in the answer, which says what
    /// the program wrote to its standard error instead.
    pub async fn run(&self, targets: &[Target]) -> (Vec<Report>, String) {
        let root = sdk::installed().await;
        let mut command = match self.program {
            Program::Node(file) => {
                let mut command = Command::new("node");
                command.arg(root.join(file));
                command
            }
            Program::Python(folder) => {
                let mut command = Command::new(root.join(folder).join("venv/bin/python"));
                command.arg(root.join(folder).join("client.py"));
                command
            }
            Program::Rmcp => panic!("the Rust SDK runs in the test itself"),
        };
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.kill_on_drop(true).spawn().expect("it can be started");
        let input = json!({"parallel": PARALLEL, "targets": targets}).to_string();
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(input.as_bytes()).await.expect("it reads its targets");
        drop(stdin);
        let Ok(output) = tokio::time::timeout(LIMIT, child.wait_with_output()).await else {
            return (Vec::new(), format!("{} did not end within {LIMIT:?}", self.name));
        };
        let output = output.expect("a child can be waited for");
        let mut errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut reports = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match serde_json::from_str(line) {
                Ok(report) => reports.push(report),
                Err(err) => writeln!(errors, "no report ({err}): {line}").expect("a string takes all"),
            }
        }
        (reports, errors)
    }
}
