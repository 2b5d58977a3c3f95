//! The servers: real ones of each revision.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::Wire;
use crate::programs::{DemoServer, Program, free_port};
use crate::watchdog::Dir;
use crate::{PATIENCE, sdk};

/// A server in one of the ways it can speak.
#[derive(Debug)]
pub struct Server {
    /// As it is registered.
    pub name: &'static str,
    pub title: &'static str,
    /// What it offers, by the name of its vocabulary.
    pub vocabulary: &'static str,
    pub wire: Wire,
    /// The newest revision that it speaks.
    pub revision: &'static str,
    /// Whether it agrees to what a client asks for, rather than to its own revision alone.
    pub agrees: bool,
    /// Whether it has no sessions and no streams, and answers in JSON.
    pub plain: bool,
}

const fn fixture(name: &'static str, title: &'static str, revision: &'static str) -> Server {
    Server { name, title, vocabulary: "fixture", wire: Wire::Http, revision, agrees: false, plain: false }
}

const fn sse(name: &'static str, title: &'static str) -> Server {
    Server { wire: Wire::Sse, ..fixture(name, title, "2024-11-05") }
}

const fn plain(name: &'static str, title: &'static str) -> Server {
    Server { plain: true, ..fixture(name, title, "2025-11-25") }
}

const fn everything(name: &'static str, title: &'static str, wire: Wire) -> Server {
    Server { wire, vocabulary: "everything", agrees: true, ..fixture(name, title, "2025-11-25") }
}

/// Every server, oldest revision first.
pub static SERVERS: [Server; 17] = [
    sse("ts-v1-2024-11-05", "TypeScript SDK 1.x, 2024-11-05 over HTTP+SSE"),
    sse("py-v1-2024-11-05", "Python SDK 1.x, 2024-11-05 over HTTP+SSE"),
    everything("everything-sse", "server-everything over HTTP+SSE", Wire::Sse),
    fixture("ts-v1-2025-03-26", "TypeScript SDK 1.x, 2025-03-26", "2025-03-26"),
    fixture("py-v1-2025-03-26", "Python SDK 1.x, 2025-03-26", "2025-03-26"),
    fixture("ts-v1-2025-06-18", "TypeScript SDK 1.x, 2025-06-18", "2025-06-18"),
    fixture("py-v1-2025-06-18", "Python SDK 1.x, 2025-06-18", "2025-06-18"),
    fixture("ts-v1-2025-11-25", "TypeScript SDK 1.x, 2025-11-25", "2025-11-25"),
    fixture("py-v1-2025-11-25", "Python SDK 1.x, 2025-11-25", "2025-11-25"),
    fixture("ts-v2-2025-11-25", "TypeScript SDK 2.x, 2025-11-25", "2025-11-25"),
    fixture("py-v2-2025-11-25", "Python SDK 2.x, 2025-11-25", "2025-11-25"),
    everything("everything", "server-everything", Wire::Http),
    plain("ts-v1-json", "TypeScript SDK 1.x, no sessions, JSON only"),
    plain("py-v1-json", "Python SDK 1.x, no sessions, JSON only"),
    fixture("ts-v2-2026-07-28", "TypeScript SDK 2.x, 2026-07-28", "2026-07-28"),
    fixture("py-v2-2026-07-28", "Python SDK 2.x, 2026-07-28", "2026-07-28"),
    Server {
        vocabulary: "demo",
        agrees: true,
        ..fixture("demo", "demo server (Rust SDK), sessions and 2026-07-28", "2026-07-28")
    },
];

impl Server {
    /// Whether it serves the stateless revision.
    pub fn stateless(&self) -> bool {
        self.revision == "2026-07-28"
    }

    /// Whether it serves a revision with a handshake.
    pub fn sessions(&self) -> bool {
        !self.stateless() || self.agrees
    }
}

/// All servers, running until this is dropped.
#[derive(Debug)]
pub struct Servers {
    urls: BTreeMap<String, String>,
    _programs: Vec<Program>,
    _demo: DemoServer,
    _dirs: Vec<Dir>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Announced {
    One { url: String },
    Many { urls: BTreeMap<String, String> },
}

impl Servers {
    /// Starts all of them.
    pub async fn start() -> Self {
        let root = sdk::installed().await;
        let node = |file: &str| {
            let mut command = Command::new("node");
            command.arg(root.join(file));
            command
        };
        let python = |folder: &str| {
            let mut command = Command::new(root.join(folder).join("venv/bin/python"));
            command.arg(root.join(folder).join("fixture.py"));
            command
        };
        let mut over_http = node("everything/start.mjs");
        over_http.arg(free_port().to_string());
        let mut over_sse = node("everything/start.mjs");
        over_sse.args([free_port().to_string(), "sse".to_owned()]);
        let commands = [
            ("ts-v1", node("ts-v1/fixture.mjs")),
            ("ts-v2", node("ts-v2/fixture.mjs")),
            ("py-v1", python("py-v1")),
            ("py-v2", python("py-v2")),
            ("everything", over_http),
            ("everything-sse", over_sse),
        ];
        let mut dirs = Vec::new();
        let mut programs = Vec::new();
        for (name, command) in commands {
            let dir = Dir::new("waffles-matrix-");
            programs.push((name, Program::spawn(name, command, dir.path().join("stderr.log"))));
            dirs.push(dir);
        }
        let mut urls = BTreeMap::new();
        for (name, program) in &mut programs {
            match program.announced(PATIENCE).await {
                Announced::One { url } => {
                    urls.insert((*name).to_owned(), url);
                }
                Announced::Many { urls: many } => {
                    urls.extend(many.into_iter().map(|(door, url)| (format!("{name}-{door}"), url)));
                }
            }
        }
        let demo = DemoServer::start().await;
        urls.insert("demo".to_owned(), demo.url.clone());
        let programs = programs.into_iter().map(|(_, program)| program).collect();
        Self { urls, _programs: programs, _demo: demo, _dirs: dirs }
    }

    /// Where a server serves.
    pub fn url(&self, server: &Server) -> &str {
        self.urls.get(server.name).unwrap_or_else(|| panic!("{} does not run: {:?}", server.name, self.urls))
    }
}

/// What a server offers, as the clients read it.
pub fn vocabulary(server: &Server) -> Value {
    let all: Value =
        serde_json::from_str(include_str!("../../sdk/matrix/vocabulary.json")).expect("it is JSON");
    all.get(server.vocabulary).expect("every server has a vocabulary").clone()
}
