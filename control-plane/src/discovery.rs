//! What proxies are told. A task reads the revision log into memory, and every stream takes from there what its
//! proxy lacks. Removals come from the log alone: a read that fails, or finds nothing, removes nothing.

mod publisher;
mod rollout;
mod state;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_proto::discovery::v1 as pb;
use waffles_runtime::task::Poker;

pub use publisher::{Listener, Publisher};
use rollout::{Rollouts, may_wait};
use state::State;
pub use state::{Checked, Chunk, Offer, Update};

/// Proxies that are sent the whole state at the same time. The others wait in line, each with an open stream: a herd that
/// knows nothing must not make the control plane send hundreds of copies at once.
const WHOLE_AT_ONCE: usize = 8;

/// What a proxy holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The lineage; empty for none.
    pub lineage: String,
    /// The revision; 0 for none.
    pub revision: u64,
}

/// What is published; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: RwLock<State>,
    /// Counts the states published, of which several may have one revision when the lineage changed.
    published: watch::Sender<u64>,
    rollouts: Mutex<Rollouts>,
    line: Line,
    /// There are too many API keys to send, which the database does not say yet.
    keys_pending: AtomicBool,
    poker: OnceLock<Poker>,
}

/// Where proxies wait that are to be sent everything.
#[derive(Debug)]
struct Line(Semaphore);

impl Default for Line {
    fn default() -> Self {
        Self(Semaphore::new(WHOLE_AT_ONCE))
    }
}

impl Discovery {
    /// One that has published nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the task after a commit, so that proxies hear of it at once.
    pub fn poke(&self) {
        if let Some(poker) = self.shared.poker.get() {
            poker.poke();
        }
    }

    /// The revision that is published; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.shared.state.read().revision
    }

    /// The lineage that is published; empty before the first.
    pub fn lineage(&self) -> String {
        self.shared.state.read().lineage.clone()
    }

    /// The lineage as proxies of a group know it: what they hold is not what those of another group hold, so that one
    /// that has changed its group gets everything anew.
    pub fn lineage_for(&self, group: &str) -> String {
        state::lineage_for(&self.shared.state.read().lineage, group)
    }

    /// The same of the lineage that the database says it is of.
    pub fn lineage_of(lineage: &str, group: &str) -> String {
        state::lineage_for(lineage, group)
    }

    /// Tells when something was published.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.published.subscribe()
    }

    /// A place among the streams of a group, held for as long as the stream.
    pub fn join(&self, group: &str) -> Place {
        let stream = self.shared.rollouts.lock().join(group);
        Place { discovery: self.clone(), group: group.to_owned(), stream, urgent: 0, released: 0 }
    }

    /// Waits until it is a proxy's turn to be sent everything. The wait ends: each one before it has a time limit.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.shared.line.0.acquire().await.ok()
    }

    /// Whether proxies of a group serve a server.
    pub fn serves(&self, group: &str, server: Uuid) -> bool {
        let key = ResourceKey::new(Kind::Server, server.to_string());
        self.shared.state.read().concerns(&key, group)
    }

    /// The servers that are to be checked, of all tenants.
    pub fn checked(&self) -> Vec<Checked> {
        self.shared.state.read().checked()
    }

    /// What people call a resource: the name of a server, namespace or principal, otherwise its id.
    pub fn name_of(&self, key: &ResourceKey) -> String {
        let name = |resource: &pb::Resource| match resource.kind.as_ref()? {
            pb::resource::Kind::Server(server) => Some(server.spec.as_ref()?.name.clone()),
            pb::resource::Kind::Namespace(namespace) => Some(namespace.spec.as_ref()?.name.clone()),
            pb::resource::Kind::Rule(rule) => Some(rule.spec.as_ref()?.name.clone()),
            pb::resource::Kind::Principal(principal) => Some(principal.principal.as_ref()?.name.clone()),
            _ => None,
        };
        self.shared.state.read().resource(key).as_ref().and_then(name).unwrap_or_else(|| key.id.clone())
    }

    /// How many resources are published, by kind: for the admin port.
    pub fn counts(&self) -> serde_json::Value {
        let state = self.shared.state.read();
        let count = |kind| state.count(kind);
        serde_json::json!({
            "lineage": state.lineage, "revision": state.revision, "servers": count(Kind::Server),
            "namespaces": count(Kind::Namespace), "principals": count(Kind::Principal), "rules": count(Kind::Rule), "api_keys": count(Kind::ApiKey), "token_keys": count(Kind::TokenKey), "rollouts": self.rollouts(),
        })
    }

    /// How many changes are held back from a group, since a proxy refused them.
    pub(crate) fn held_back(&self) -> u64 {
        self.shared.rollouts.lock().held_back()
    }

    /// How changes are rolled out to each group: for the admin port.
    pub fn rollouts(&self) -> serde_json::Value {
        self.shared.rollouts.lock().report()
    }

    fn publish(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.shared.state.write();
            let mut rollouts = self.shared.rollouts.lock();
            // First, or what is over would still count as the form that others have.
            state.end_trials(|key, revision| rollouts.is_over(key, revision));
            change(&mut state);
            rollouts.publish(state.revision, state.has_trials(), Instant::now());
        }
        self.shared.published.send_modify(|count| *count += 1);
    }
}

/// A stream's place among those of its group. Left when it is dropped.
#[derive(Debug)]
pub struct Place {
    discovery: Discovery,
    group: String,
    stream: u64,
    urgent: u64,
    released: usize,
}

impl Place {
    /// What the proxy lacks, and when to look again at the latest. `again` names resources that it refused, and gets
    /// once more.
    pub fn offer(&mut self, held: &Held, again: &[ResourceKey]) -> (Offer, Option<Instant>) {
        let now = Instant::now();
        let shared = &self.discovery.shared;
        let state = shared.state.read();
        let mut reach = shared.rollouts.lock().reach(&self.group, self.stream, &mut self.released, now);
        reach.urgent = self.urgent;
        let offer = state.offer(&self.group, held, again, &reach);
        if let Offer::Update(update) = &offer {
            self.urgent = update.urgent;
        }
        (offer, reach.until)
    }

    /// The proxy took an update in, but for what it refused.
    pub fn answered(&self, update: &Update, rejections: &[pb::Rejection]) {
        let shared = &self.discovery.shared;
        let refused: Vec<ResourceKey> = rejections
            .iter()
            .filter_map(|rejection| waffles_core::wire::resource_key(rejection.resource.as_ref()?))
            .filter(|key| may_wait(key.kind))
            .collect();
        let refused = {
            let state = shared.state.read();
            let on_trial = |key: ResourceKey| state.trial(&key).map(|revision| (key, revision));
            refused.into_iter().filter_map(on_trial).collect::<Vec<_>>()
        };
        let taken = update.resources.iter().map(|(key, _)| key).filter(|key| !update.earlier.contains(key));
        let taken = taken.cloned();
        let revision = update.revision;
        let news = shared.rollouts.lock().answered(
            &self.group,
            self.stream,
            revision,
            taken,
            &refused,
            Instant::now(),
        );
        if news {
            shared.published.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.discovery.shared;
        if shared.rollouts.lock().leave(&self.group, self.stream, Instant::now()) {
            shared.published.send_modify(|count| *count += 1);
        }
    }
}
