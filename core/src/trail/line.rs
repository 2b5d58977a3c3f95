//! An export of the trail, line by line, each a JSON object: who exported what, the checkpoints, then every chain with its
//! records, what was dropped, and an end, so that a file that was cut off is recognised.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Checkpoint, Forgotten, Hash, Link, PublicKey, Signature};
use crate::audit::Event;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// The first one.
    Export(Header),
    /// Signed heads.
    Checkpoint(Checkpoint),
    /// The records after it belong to this chain.
    Chain(Chain),
    /// A record: with its event where the exporter asked for it, else only with its digest. Other tenants' are of the latter kind.
    Record(Box<Recorded>),
    /// Records that are not there because of their age.
    Forgotten(Forgotten),
    /// The last one.
    End(End),
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The form of the lines: 1.
    pub version: u32,
    /// Whose events stand in it.
    pub tenant: String,
    /// When it was begun.
    pub exported_at: DateTime<Utc>,
    /// The chains begin with what was stored at about this time; none where they begin with their first records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Whether the exporter may see payloads. Without them, the content of events that have any is not verified.
    pub payloads: bool,
    /// By which the signatures are verified.
    pub public_key: PublicKey,
}

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// The record's number.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

/// A chain, of which some records follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// Its id: that of the proxy's spool; the nil UUID for the control plane's own acts.
    pub chain: Uuid,
    /// The proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Uuid>,
    /// What was before the first of these records and is left out; none where these begin the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Bound>,
    /// The last of these records, if it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Bound>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Its chain; none for an event from before there were chains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Uuid>,
    /// Its number in the chain.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u64,
    /// Over everything up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// The digest of the event, where that is not here, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Hash>,
    /// The control plane's word that it came so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attest: Option<Signature>,
    /// The event, of the exporter's own tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
}

impl Recorded {
    /// A record with its event; without the payloads where they were taken out, of which `digest` then tells.
    pub fn own(place: Option<(Uuid, u64, Link)>, event: Event, redacted: bool) -> Self {
        Self {
            digest: place.filter(|_| redacted).map(|(.., link)| link.digest),
            event: Some(event),
            ..Self::foreign(place)
        }
    }

    /// A record of another tenant.
    pub fn foreign(place: Option<(Uuid, u64, Link)>) -> Self {
        Self {
            chain: place.map(|(chain, ..)| chain),
            sequence: place.map_or(0, |(_, sequence, _)| sequence),
            hash: place.map(|(.., link)| link.hash),
            digest: place.map(|(.., link)| link.digest),
            attest: place.and_then(|(.., link)| link.attest),
            event: None,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Lines of the kind `record`.
    pub records: u64,
    /// Lines of the kind `checkpoint`.
    pub checkpoints: u64,
}
