//! Updates, put together from their chunks and judged as a whole before they touch anything.

use prost::Message as _;
use waffles_core::snapshot::Snapshot;
use waffles_core::wire::{Refusal, Update};
use waffles_proto::discovery::v1 as pb;

use crate::link::LinkError;

/// The most that one update may hold in all.
const MAX_UPDATE: usize = 256 << 20;

/// Chunks of an update that is not complete.
#[derive(Debug, Default)]
pub(super) struct Collector {
    nonce: String,
    update: Option<Update>,
    bytes: usize,
}

impl Collector {
    pub(super) fn is_empty(&self) -> bool {
        self.update.is_none()
    }

    /// Adds a chunk. With the last one, gives the update and its nonce.
    pub(super) fn add(&mut self, chunk: pb::StreamResponse) -> Result<Option<(Update, String)>, LinkError> {
        self.bytes = self.bytes.saturating_add(chunk.encoded_len());
        if self.bytes > MAX_UPDATE {
            return Err(LinkError::Contract("an update of more than 256 MiB"));
        }
        let last = chunk.last;
        match &mut self.update {
            None => {
                self.nonce.clone_from(&chunk.nonce);
                self.update = Some(chunk.into());
            }
            Some(update) => {
                let is_same = self.nonce == chunk.nonce
                    && update.lineage == chunk.lineage
                    && update.revision == chunk.revision
                    && update.full == chunk.full;
                if !is_same {
                    return Err(LinkError::Contract("the chunks of two updates mixed"));
                }
                update.resources.extend(chunk.resources);
                update.removed.extend(chunk.removed);
            }
        }
        if !last {
            return Ok(None);
        }
        self.bytes = 0;
        Ok(self.update.take().map(|update| (update, std::mem::take(&mut self.nonce))))
    }
}

/// What becomes of an update.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is in order, but for the resources named.
    Taken(Box<Snapshot>, Vec<Refusal>),
    /// It holds differences to something else than what is held.
    NoBase,
    /// Nothing of it may be used.
    Refused(String),
}

/// Works out the snapshot after an update. Blocks for as long as that takes.
pub(super) fn judge(held: &Snapshot, update: Update) -> Verdict {
    let is_known = !held.lineage.is_empty() && held.lineage == update.lineage;
    if update.lineage.is_empty() || update.revision == 0 {
        return Verdict::Refused("an update without lineage or revision".into());
    }
    if is_known && update.revision < held.revision {
        // An old configuration would bring revoked keys back to life.
        return Verdict::Refused(format!(
            "revision {} is older than {}, which is in force",
            update.revision, held.revision
        ));
    }
    if !update.full && !is_known {
        return Verdict::NoBase;
    }
    let has_settings =
        update.resources.iter().any(|r| matches!(r.kind, Some(pb::resource::Kind::Settings(_))));
    if update.full && !has_settings {
        // The state always has them; without, something went wrong where it was read.
        return Verdict::Refused("a whole state without settings".into());
    }
    let (next, refusals) = held.with_update(update);
    if held.is_usable() && !next.is_usable() {
        return Verdict::Refused("nothing could be served after it".into());
    }
    Verdict::Taken(Box::new(next), refusals)
}
