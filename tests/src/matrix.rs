//! The compatibility matrix: every client with every server, feature by feature, directly where the two speak one
//! language, and through a gateway always. The clients and most of the servers are programs in `sdk`; what they share
//! is the vocabulary in `sdk/matrix/vocabulary.json`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub mod clients;
pub mod impossible;
pub mod servers;
pub mod table;

pub use clients::{CLIENTS, Client};
pub use servers::{Server, Servers};

/// What is checked, in the order of the checks.
pub const FEATURES: [&str; 16] = [
    "handshake",
    "list",
    "call",
    "error",
    "progress",
    "log",
    "cancel",
    "elicitation",
    "sampling",
    "roots",
    "resources",
    "templates",
    "subscribe",
    "prompts",
    "completion",
    "list-changed",
];

/// How a client reaches a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// Without a gateway.
    Direct,
    /// At the server's own address of the gateway.
    Alone,
    /// At the gateway's federated address, beside all other servers.
    Federated,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Alone => "alone",
            Self::Federated => "federated",
        })
    }
}

/// The transport a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    Http,
    /// HTTP+SSE of 2024-11-05.
    Sse,
}

/// One run of a client, as its program reads it.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    pub id: String,
    pub url: String,
    pub token: String,
    /// `sessions` or `stateless`.
    pub era: &'static str,
    pub transport: Wire,
    /// What a client asks for that leaves the choice to us.
    pub revision: &'static str,
    pub vocabulary: Value,
    /// Before the server's names.
    pub prefix: String,
    /// Before the server's URIs.
    pub uris: String,
    /// Checks that are impossible, with the reason.
    pub skip: BTreeMap<&'static str, &'static str>,
}

/// What a client program says of one run.
#[derive(Debug, Clone, Deserialize)]
pub struct Report {
    pub id: String,
    pub revision: String,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Check {
    pub name: String,
    pub status: Status,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    /// The server or the client lacks the feature, or the caller said that it is impossible.
    Unsupported,
}

/// One cell of the matrix.
#[derive(Debug, Clone)]
pub struct Cell {
    pub client: &'static str,
    pub server: &'static str,
    pub door: Door,
    pub feature: &'static str,
    pub status: Status,
    pub detail: String,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, door, feature, status, detail } = self;
        write!(f, "{client} × {server} ({door}), {feature}: {status:?}: {detail}")
    }
}

/// The cells of one run.
pub fn cells(client: &'static Client, server: &'static str, door: Door, report: &Report) -> Vec<Cell> {
    let cell = |feature: &'static str| {
        let check = report.checks.iter().find(|check| check.name == feature);
        let (status, detail) = match check {
            Some(check) => (check.status, check.detail.clone()),
            None => (Status::Fail, "the client never came to it".to_owned()),
        };
        Cell { client: client.name, server, door, feature, status, detail }
    };
    FEATURES.into_iter().map(cell).collect()
}
