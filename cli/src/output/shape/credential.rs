//! The keys that secrets are sealed with.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::wire::time;
use waffles_proto::secret::v1 as pb;

use super::super::{Shape, columns};
use super::since;

/// A key, without itself.
#[derive(Debug, Serialize)]
pub(crate) struct SealKey {
    purpose: String,
    id: u32,
    stage: String,
    created_at: Option<DateTime<Utc>>,
    values: u64,
}

impl SealKey {
    /// Whether nothing is under way with it. One for sessions is kept for as long as they may last.
    pub(crate) fn is_settled(&self) -> bool {
        self.stage == "sealing" || (self.stage == "retired" && self.purpose == "sessions")
    }
}

impl From<pb::Key> for SealKey {
    fn from(key: pb::Key) -> Self {
        let pb::Key { purpose, id, stage, created_at, values } = key;
        Self { purpose, id, stage, created_at: time(created_at), values }
    }
}

impl Shape for [SealKey] {
    fn text(&self) -> String {
        let rows = self.iter().map(|key| {
            let values = if key.purpose == "rest" { key.values.to_string() } else { "-".to_owned() };
            [key.purpose.clone(), key.id.to_string(), key.stage.clone(), since(key.created_at), values]
        });
        columns(["PURPOSE", "ID", "STAGE", "MADE", "VALUES"], rows, "There are no keys.")
    }
}
