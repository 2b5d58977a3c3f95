//! The tools that proxies saw in lists of servers, until they are written: only what differs from what was written before.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use chrono::Utc;
use parking_lot::Mutex;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_proto::audit::v1 as pb;

use crate::store::Db;
use crate::store::tools::{self, SeenTool};

/// Tools of a server at the most; those beyond are not in the catalogue.
const MOST_TOOLS: usize = 10_000;
/// Bytes of a schema at the most; of a tool with a longer one only the name is kept.
const MOST_SCHEMA: usize = 64 * 1024;
const MOST_NAME: usize = 512;
/// Servers whose tools wait to be written; a proxy says again what was turned away.
const MOST_WAITING: usize = 64;
/// Servers of which is remembered what was written.
const MOST_KNOWN: usize = 50_000;

/// What proxies saw and is not written yet, and what was.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    waiting: HashMap<Uuid, Vec<SeenTool>>,
    /// Hashes of what was written last.
    known: HashMap<Uuid, u64>,
}

impl Sightings {
    /// Takes in what a proxy saw. Tells whether there is anything to write.
    pub(super) fn hear(&self, seen: &[pb::SeenTools]) -> bool {
        let mut new = false;
        for list in seen {
            let Ok(server) = list.server_id.parse::<Uuid>() else { continue };
            let tools = believable(&list.tools);
            let hash = hash_of(&tools);
            let mut seen = self.0.lock();
            let full = seen.waiting.len() >= MOST_WAITING && !seen.waiting.contains_key(&server);
            if full || seen.known.get(&server) == Some(&hash) {
                continue;
            }
            if seen.known.len() >= MOST_KNOWN {
                seen.known.clear();
            }
            seen.known.insert(server, hash);
            seen.waiting.insert(server, tools);
            new = true;
        }
        new
    }

    /// Writes what waits. What cannot be written waits for a proxy to say it again.
    pub(super) async fn write(&self, db: &Db) -> sqlx::Result<()> {
        let waiting = std::mem::take(&mut self.0.lock().waiting);
        let mut result = Ok(());
        for (server, tools) in waiting {
            // Written is what came to its end: until then a proxy may say it again.
            let hash = self.0.lock().known.remove(&server);
            if result.is_ok() {
                result = tools::put(db, server, &tools, micros(Utc::now())).await.map(drop);
            }
            if let (Ok(()), Some(hash)) = (&result, hash) {
                self.0.lock().known.insert(server, hash);
            }
        }
        result
    }
}

/// What can be believed of a list, in one order, each name once.
fn believable(tools: &[pb::SeenTool]) -> Vec<SeenTool> {
    let sound = |tool: &&pb::SeenTool| {
        !tool.name.is_empty() && tool.name.len() <= MOST_NAME && !tool.name.contains('\0')
    };
    let seen = |tool: &pb::SeenTool| {
        let fits = tool.input_schema.len() <= MOST_SCHEMA && !tool.input_schema.contains('\0');
        let input_schema = if fits { tool.input_schema.clone() } else { String::new() };
        SeenTool { name: tool.name.clone(), input_schema }
    };
    let mut tools: Vec<SeenTool> = tools.iter().filter(sound).take(MOST_TOOLS).map(seen).collect();
    tools.sort_by(|one, other| one.name.cmp(&other.name));
    tools.dedup_by(|later, earlier| later.name == earlier.name);
    tools
}

fn hash_of(tools: &[SeenTool]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for tool in tools {
        (&tool.name, &tool.input_schema).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(server: Uuid, tools: &[(&str, &str)]) -> pb::SeenTools {
        let tool = |(name, schema): &(&str, &str)| pb::SeenTool {
            name: (*name).to_owned(),
            input_schema: (*schema).to_owned(),
        };
        pb::SeenTools { server_id: server.to_string(), tools: tools.iter().map(tool).collect() }
    }

    #[test]
    fn only_what_differs_waits_to_be_written() {
        let (sightings, server) = (Sightings::default(), Uuid::now_v7());
        assert!(sightings.hear(&[list(server, &[("b", "{}"), ("a", "{}")])]));
        assert!(!sightings.hear(&[list(server, &[("a", "{}"), ("b", "{}")])]), "only the order differs");
        assert!(sightings.hear(&[list(server, &[("a", "{}")])]));
        assert!(!sightings.hear(&[pb::SeenTools { server_id: "x".into(), tools: vec![] }]));
    }

    #[test]
    fn what_is_too_large_or_doubled_is_cut() {
        let large = "x".repeat(MOST_SCHEMA + 1);
        let seen = [("a", large.as_str()), ("", "{}"), ("b\0", "{}"), ("c", "{\"n\":1}"), ("c", "{}")];
        let tools = believable(&list(Uuid::nil(), &seen).tools);
        let texts: Vec<_> = tools.iter().map(|t| (t.name.as_str(), t.input_schema.as_str())).collect();
        assert_eq!(texts, [("a", ""), ("c", "{\"n\":1}")]);
    }
}
