//! What all threads of the proxy share beside the snapshot, and what a step that talks to servers is given. All of it
//! may be lost at any moment: another proxy, or the next start, finds out or opens anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waffles_mcp::Id;
use waffles_runtime::drain::Drain;

use crate::bridge::parked::Lot;
use crate::federation::catalogue::Catalogue;
use crate::front::Sessions;
use crate::hub::Hub;
use crate::limit::Limits;
use crate::overload::Buffers;
use crate::record::Desk;
use crate::state::Current;
use crate::upstream::backs::Backs;
use crate::upstream::eras::Eras;
use crate::upstream::schemas::Schemas;
use crate::upstream::{Standings, Upstream};

/// Shared by all threads.
#[derive(Debug, Default)]
pub struct Shared {
    /// Which era each server speaks.
    pub eras: Eras,
    /// Sessions with servers, opened on clients' behalf.
    pub backs: Backs,
    /// The gateway's own sessions.
    pub sessions: Sessions,
    /// What servers list.
    pub catalogue: Catalogue,
    /// Who listens to what.
    pub hub: Hub,
    /// Calls that wait for their client to come back with answers.
    pub lot: Lot,
    /// Which arguments of servers' tools are mirrored in headers.
    pub schemas: Schemas,
    /// What callers have spent of limits.
    pub limits: Limits,
    /// Where other proxies of the group reach this one.
    pub address: Option<String>,
    /// How much of messages may be held.
    pub buffers: Arc<Buffers>,
    /// How servers stand: who is left alone, who is busy.
    pub standings: Arc<Standings>,
    next_id: AtomicU64,
}

impl Shared {
    /// Of a proxy that the others of its group reach at this address, that counts limits in this way, that may hold so
    /// much of messages, and that knows this of servers.
    pub fn new(address: Option<String>, limits: Limits, buffers: Arc<Buffers>, standings: Standings) -> Self {
        Self { address, limits, buffers, standings: Arc::new(standings), ..Self::default() }
    }

    /// A fresh id for a request to a server without a session.
    pub fn fresh_id(&self) -> Id {
        Id::number(self.next_id.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What a step needs to talk to servers; cheap to clone.
#[derive(Clone)]
pub struct Means {
    /// Shared by all threads.
    pub shared: Arc<Shared>,
    /// This thread's way to the servers.
    pub upstream: Upstream,
    /// The configuration in force.
    pub current: Arc<Current>,
    /// Where records go.
    pub desk: Arc<Desk>,
    /// The process's end.
    pub drain: Drain,
}
