//! The tools that proxies saw in lists of servers, until they are written. A proxy tells of a tool when it is new to it or
//! differs, and again after a while.

use std::collections::{BTreeMap, HashMap};

use chrono::Utc;
use parking_lot::Mutex;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_proto::audit::v1 as pb;

use crate::store::Db;
use crate::store::tools::{self, SeenTool};

/// Bytes of a schema at the most; of a tool with a longer one only the name is kept.
const MOST_SCHEMA: usize = 64 * 1024;
const MOST_NAME: usize = 512;
/// Bytes that wait to be written; what is turned away, a proxy says again.
const MOST_WAITING: usize = 32 * 1024 * 1024;

/// What proxies saw and is not written yet.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Schemas by tool, by server.
    waiting: HashMap<Uuid, BTreeMap<String, String>>,
    bytes: usize,
}

impl Sightings {
    /// Takes in what a proxy saw. Tells whether there is anything to write.
    pub(super) fn hear(&self, seen: &[pb::SeenTools]) -> bool {
        let mut new = false;
        for list in seen {
            let Ok(server) = list.server_id.parse::<Uuid>() else { continue };
            for tool in list.tools.iter().filter(|tool| is_sound(tool)) {
                let fits = tool.input_schema.len() <= MOST_SCHEMA && !tool.input_schema.contains('\0');
                let schema = if fits { tool.input_schema.clone() } else { String::new() };
                let mut seen = self.0.lock();
                // One that takes the place of another is counted beside it, which errs on the side of less.
                let bytes = seen.bytes + tool.name.len() + schema.len();
                if bytes > MOST_WAITING {
                    return new;
                }
                seen.bytes = bytes;
                seen.waiting.entry(server).or_default().insert(tool.name.clone(), schema);
                new = true;
            }
        }
        new
    }

    /// Writes what waits. What cannot be written is let go: a proxy says it again.
    pub(super) async fn write(&self, db: &Db) -> sqlx::Result<()> {
        let Seen { waiting, .. } = std::mem::take(&mut *self.0.lock());
        for (server, tools) in waiting {
            let seen = |(name, input_schema)| SeenTool { name, input_schema };
            let tools: Vec<SeenTool> = tools.into_iter().map(seen).collect();
            tools::put(db, server, &tools, micros(Utc::now())).await?;
        }
        Ok(())
    }
}

fn is_sound(tool: &pb::SeenTool) -> bool {
    !tool.name.is_empty() && tool.name.len() <= MOST_NAME && !tool.name.contains('\0')
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
    fn what_waits_is_believable_and_has_a_bound() {
        let (sightings, server) = (Sightings::default(), Uuid::now_v7());
        let large = "x".repeat(MOST_SCHEMA + 1);
        let seen = [("a", large.as_str()), ("", "{}"), ("b\0", "{}"), ("c", "{}"), ("c", "{\"n\":1}")];
        assert!(sightings.hear(&[list(server, &seen)]));
        let waiting: Vec<(String, String)> =
            sightings.0.lock().waiting[&server].clone().into_iter().collect();
        assert_eq!(waiting, [("a".to_owned(), String::new()), ("c".to_owned(), "{\"n\":1}".to_owned())]);
        assert!(!sightings.hear(&[pb::SeenTools { server_id: "x".into(), tools: vec![] }]));
        let most = "x".repeat(MOST_SCHEMA);
        let names: Vec<String> = (0..600).map(|i| format!("t{i}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), most.as_str())).collect();
        assert!(sightings.hear(&[list(server, &many)]));
        assert!(sightings.0.lock().waiting[&server].len() < 600);
    }
}
