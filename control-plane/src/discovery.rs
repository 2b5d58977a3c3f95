//! What proxies are told. A task reads the revision log into memory, and every stream takes from there what its
//! proxy lacks. Removals come from the log alone: a read that fails, or finds nothing, removes nothing.

mod publisher;
mod state;

use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tokio::sync::watch;
use uuid::Uuid;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_proto::discovery::v1 as pb;
use waffles_runtime::task::Poker;

pub use publisher::{Listener, Publisher};
use state::State;
pub use state::{Checked, Offer, Update};

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
    poker: OnceLock<Poker>,
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

    /// Tells when something was published.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.published.subscribe()
    }

    /// What a proxy of a group lacks. `again` names resources that it refused, and gets once more.
    pub fn offer(&self, group: &str, held: &Held, again: &[ResourceKey]) -> Offer {
        self.shared.state.read().offer(group, held, again)
    }

    /// Whether proxies of a group serve a server.
    pub fn serves(&self, group: &str, server: Uuid) -> bool {
        let key = ResourceKey::new(Kind::Server, server.to_string());
        self.shared.state.read().resource(&key).is_some_and(|resource| state::concerns(resource, group))
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
        self.shared.state.read().resource(key).and_then(name).unwrap_or_else(|| key.id.clone())
    }

    /// How many resources are published, by kind: for the admin port.
    pub fn counts(&self) -> serde_json::Value {
        let state = self.shared.state.read();
        let count = |kind| state.count(kind);
        serde_json::json!({
            "lineage": state.lineage, "revision": state.revision, "servers": count(Kind::Server),
            "namespaces": count(Kind::Namespace), "principals": count(Kind::Principal), "rules": count(Kind::Rule), "api_keys": count(Kind::ApiKey), "token_keys": count(Kind::TokenKey),
        })
    }

    fn publish(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.write());
        self.shared.published.send_modify(|count| *count += 1);
    }
}
