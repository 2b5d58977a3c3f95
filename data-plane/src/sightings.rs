//! Tools that servers were seen to list, for the control plane: a rule that looks at an argument is checked against what
//! tools take. What was told is not told again until it differs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_proto::audit::v1::{SeenTool, SeenTools};

/// Bytes of the longest schema that is told of.
const MAX_SCHEMA: usize = 64 * 1024;
/// Bytes that are told at a time; the rest waits.
const MAX_TOLD: usize = 1 << 20;
/// After so long it is told again what is listed again: what was told last may have been lost with its stream.
const RETOLD: Duration = Duration::from_secs(600);
/// Tools that are remembered, of all servers. Beyond it nothing new is told until all is told again.
const MAX_TOOLS: usize = 100_000;

/// What servers were seen to list.
#[derive(Debug, Default)]
pub struct Sightings {
    inner: Mutex<Inner>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Inner {
    /// The hash of what was told or waits to be told.
    known: HashMap<(Uuid, String), u64>,
    waiting: Vec<(Uuid, SeenTool)>,
    /// Since when it is remembered what was told.
    since: Option<Instant>,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    tools: Vec<Tool<'a>>,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "inputSchema")]
    schema: Option<&'a RawValue>,
}

impl Sightings {
    /// Notes the result of `tools/list`.
    pub fn note_result(&self, server: Uuid, result: &[u8]) {
        let Ok(listed) = serde_json::from_slice::<Listed<'_>>(result) else { return };
        for tool in listed.tools {
            self.note(server, tool);
        }
    }

    /// Notes one entry of such a list.
    pub fn note_entry(&self, server: Uuid, entry: &[u8]) {
        if let Ok(tool) = serde_json::from_slice(entry) {
            self.note(server, tool);
        }
    }

    fn note(&self, server: Uuid, tool: Tool<'_>) {
        let schema = tool.schema.map(RawValue::get).filter(|schema| schema.len() <= MAX_SCHEMA);
        let hash = self.hasher.hash_one(schema);
        let key = (server, tool.name.into_owned());
        let mut inner = self.inner.lock();
        let full = inner.known.len() >= MAX_TOOLS && !inner.known.contains_key(&key);
        if full || inner.known.get(&key) == Some(&hash) {
            return;
        }
        let input_schema = schema.unwrap_or_default().to_owned();
        inner.waiting.push((server, SeenTool { name: key.1.clone(), input_schema }));
        inner.known.insert(key, hash);
    }

    /// What is to be told now.
    pub fn take(&self) -> Vec<SeenTools> {
        let mut inner = self.inner.lock();
        let since = *inner.since.get_or_insert_with(Instant::now);
        if since.elapsed() > RETOLD && inner.waiting.is_empty() {
            inner.known.clear();
            inner.since = Some(Instant::now());
        }
        let mut bytes = 0;
        let size = |tool: &SeenTool| tool.name.len() + tool.input_schema.len() + 16;
        let now = inner.waiting.iter().take_while(|(_, tool)| {
            bytes += size(tool);
            bytes <= MAX_TOLD
        });
        let now = now.count().max(1).min(inner.waiting.len());
        let mut told: Vec<SeenTools> = Vec::new();
        for (server, tool) in inner.waiting.drain(..now) {
            let server_id = server.to_string();
            match told.last_mut() {
                Some(last) if last.server_id == server_id => last.tools.push(tool),
                _ => told.push(SeenTools { server_id, tools: vec![tool] }),
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_not_told_again_until_it_differs() {
        let (seen, server) = (Sightings::default(), Uuid::from_u128(1));
        let list = |schema: &str| {
            format!(r#"{{"tools": [{{"name": "a", "inputSchema": {schema}}}, {{"name": "b"}}]}}"#)
        };
        seen.note_result(server, list(r#"{"type": "object"}"#).as_bytes());
        let told = seen.take();
        assert_eq!(told.len(), 1);
        let names: Vec<&str> = told[0].tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(
            (names.as_slice(), told[0].tools[0].input_schema.as_str()),
            (["a", "b"].as_slice(), r#"{"type": "object"}"#)
        );
        seen.note_result(server, list(r#"{"type": "object"}"#).as_bytes());
        assert!(seen.take().is_empty());
        seen.note_result(server, list("true").as_bytes());
        assert_eq!(seen.take()[0].tools.len(), 1);
        tokio::time::advance(RETOLD + Duration::from_secs(1)).await;
        assert!(seen.take().is_empty());
        seen.note_entry(server, br#"{"name": "a", "inputSchema": true}"#);
        assert_eq!(seen.take()[0].tools.len(), 1);
        seen.note_result(server, b"{\"tools\": 7}");
        seen.note_result(server, b"nonsense");
        assert!(seen.take().is_empty());
    }

    #[tokio::test]
    async fn much_is_told_in_parts() {
        let seen = Sightings::default();
        let schema = format!("\"{}\"", "x".repeat(60_000));
        for i in 0..40 {
            let entry = format!(r#"{{"name": "t{i}", "inputSchema": {schema}}}"#);
            seen.note_entry(Uuid::from_u128(2), entry.as_bytes());
        }
        let parts: Vec<usize> =
            std::iter::from_fn(|| seen.take().first().map(|told| told.tools.len())).collect();
        assert_eq!(parts.iter().sum::<usize>(), 40);
        assert!(parts.len() > 1 && parts.iter().all(|count| *count <= 17), "{parts:?}");
    }
}
