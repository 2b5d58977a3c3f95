//! The trail: every exchange leaves one record, in the spool on disk before its answer is finished. What
//! happens to a record that cannot be written is decided here and nowhere else. `spool` keeps the records,
//! `uplink` sends them up.

pub mod spool;
pub mod uplink;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use waffles_core::DEFAULT_TENANT;
use waffles_core::audit::{Event, Outcome};
use waffles_core::server::AuditMode;
use waffles_core::wire;
use waffles_proto::audit::v1 as pb;

use spool::{Limits, OpenError, Spool};

/// No durable record can be made, so the server's `audit = strict` forbids the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail takes no records")]
pub struct AuditUnavailable;

/// Where the records of exchanges go. Cheap to clone; used by every worker thread.
#[derive(Debug, Clone)]
pub struct Trail {
    spool: Arc<Spool>,
}

impl Trail {
    /// Opens the trail in a directory of its own.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self { spool: Arc::new(Spool::open(dir, limits)?) })
    }

    /// Whether a call may go ahead; asked before anything leaves. One atomic load.
    pub fn admit(&self, mode: AuditMode) -> Result<(), AuditUnavailable> {
        match mode {
            AuditMode::Count => Ok(()),
            AuditMode::Strict if self.spool.is_sound() => Ok(()),
            AuditMode::Strict => Err(AuditUnavailable),
        }
    }

    /// Takes a record. When this returns the record survives the end of this process; a record for which
    /// there is neither disk nor memory is counted as lost. One short blocking write, by design: a queue to
    /// another thread costs as much and loses what is in it.
    pub fn record(&self, mut event: Event) {
        thread_local! {
            static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        if event.tenant.is_empty() {
            // Nobody was authenticated: what the default tenant's operators look after. Said here, so that the record is
            // stored as it was linked.
            DEFAULT_TENANT.clone_into(&mut event.tenant);
        }
        let of_stranger = event.outcome == Outcome::Unauthenticated;
        let message = fitting(wire::event_to_proto(event));
        FRAME.with_borrow_mut(|frame| {
            frame.clear();
            frame.resize(spool::HEAD, 0);
            message.encode(frame).expect("a vector grows");
            if of_stranger {
                self.spool.append_of_stranger(frame);
            } else {
                self.spool.append(frame);
            }
            // A few large records must not stay in the memory of every thread.
            frame.shrink_to(64 << 10);
        });
    }

    /// How many records wait for upload.
    pub fn depth(&self) -> u64 {
        self.spool.depth()
    }

    /// How many records were lost since the spool began.
    pub fn lost(&self) -> u64 {
        self.spool.lost()
    }

    /// Whether records go to disk and there is room for more.
    pub fn healthy(&self) -> bool {
        self.spool.is_sound()
    }

    /// How the trail is, for the admin port.
    pub fn report(&self) -> serde_json::Value {
        self.spool.report()
    }

    pub(crate) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }
}

/// A record that is too long for the way up is kept without its payloads, rather than not at all.
fn fitting(mut message: pb::Event) -> pb::Event {
    if message.encoded_len() <= spool::MAX_PAYLOAD {
        return message;
    }
    for text in [&mut message.request_payload, &mut message.response_payload, &mut message.detail] {
        if !text.is_empty() {
            *text = format!("\"[left out: {} bytes]\"", text.len());
        }
    }
    if message.encoded_len() > spool::MAX_PAYLOAD {
        // Only the target and the client's name come from outside; both are cut where they are read.
        message.target = "[left out]".into();
        message.client_name = "[left out]".into();
    }
    message
}

#[cfg(test)]
mod tests;
