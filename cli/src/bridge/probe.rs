//! Finds out which eras a program speaks, with one run for each question: a program that was asked what it does not know
//! may not be fit for anything else. `server/discover` comes first; whatever is said to it that is no sign of the
//! stateless revision, or nothing at all, means that the program may know `initialize`
//! [2026-07-28 basic/transports/stdio#backward-compatibility].

use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::line::{Line, Said};
use super::message::Message;
use super::{Command, Eras, START_LIMIT};
use crate::failure::Failure;

const STATELESS: &str = "2026-07-28";
const SESSIONS: &str = "2025-11-25";
/// How long `server/discover` may take before `initialize` is tried beside it. Some older programs answer nothing
/// before `initialize`.
const PATIENCE: Duration = Duration::from_secs(10);
/// JSON-RPC errors that only the stateless revision has.
const UNSUPPORTED_VERSION: i64 = -32022;

/// Asks a program which eras it speaks.
pub(crate) async fn probe(command: &Command, name: &str) -> anyhow::Result<Eras> {
    let mut stateless = pin!(asked(command, name, discover()));
    let early = timeout(PATIENCE, &mut stateless).await;
    let sessions = asked(command, name, initialize()).await?;
    let stateless = match early {
        Ok(answer) => answer?,
        Err(_) if sessions.is_some() => None,
        Err(_) => stateless.await?,
    };
    let eras = Eras {
        sessions: sessions.is_some_and(|answer| answer.result().is_some()),
        stateless: stateless.is_some_and(|answer| speaks_stateless(&answer)),
    };
    if eras.sessions || eras.stateless {
        return Ok(eras);
    }
    let what = command.program.display();
    Err(Failure::failed(format!(
        "{what} answers neither `server/discover` nor `initialize` on its standard output"
    ))
    .next("Run it by hand: an MCP server on standard streams waits for messages, and writes nothing else.")
    .into())
}

fn speaks_stateless(answer: &Message) -> bool {
    match answer.result() {
        Some(result) => result.get("supportedVersions").is_some_and(|listed| listed.contains(STATELESS)),
        // It wants another stateless revision: nothing that we could serve.
        None => {
            if answer.error_code() == Some(UNSUPPORTED_VERSION) {
                crate::output::note("The program speaks a stateless revision, but not 2026-07-28.");
            }
            false
        }
    }
}

/// The answer to one request of a fresh run; none where it ended or was silent.
async fn asked(command: &Command, name: &str, request: String) -> anyhow::Result<Option<Message>> {
    let tracker = TaskTracker::new();
    let request = Message::parse(&request).context("cannot make a request")?;
    let line = Line::start(command, name, false, &tracker)?;
    let answer = async {
        let mut answers = line.ask(request).await.ok()?;
        while let Some(said) = answers.next().await {
            if let Said::Answer(text, _) = said {
                return line.is_open().then_some(text);
            }
        }
        None
    };
    let answer = timeout(START_LIMIT, answer).await.ok().flatten();
    line.stop();
    tracker.close();
    tracker.wait().await;
    Ok(answer.and_then(|text| Message::parse(&text).ok()))
}

fn discover() -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientInfo": client(),
        "io.modelcontextprotocol/clientCapabilities": {},
    }}})
    .to_string()
}

fn initialize() -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": SESSIONS, "capabilities": {}, "clientInfo": client(),
    }})
    .to_string()
}

fn client() -> serde_json::Value {
    json!({ "name": "wafflectl", "version": env!("CARGO_PKG_VERSION") })
}
