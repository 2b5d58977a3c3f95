//! The published state: every resource with the revision of its latest change, and what a proxy of some other
//! revision lacks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prost::Message as _;
use uuid::Uuid;
use waffles_core::health::HealthPolicy;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::wire;
use waffles_proto::{discovery::v1 as pb, registry::v1 as registry_pb};

use super::Held;

/// A chunk is far below the 4 MiB that a message may have.
const CHUNK_BYTES: usize = 512 * 1024;
const CHUNK_RESOURCES: usize = 500;

/// What is published.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) lineage: String,
    pub(super) revision: u64,
    /// The log reaches back to here: a proxy that is further behind gets everything.
    floor: u64,
    resources: HashMap<ResourceKey, Arc<pb::Resource>>,
    /// The latest change of each resource, of those that are gone too.
    latest: HashMap<ResourceKey, u64>,
    log: BTreeMap<u64, ResourceKey>,
}

/// What a proxy is to be sent.
#[derive(Debug)]
pub enum Offer {
    /// Nothing was read yet.
    NotReady,
    /// It holds all there is.
    Nothing,
    /// It holds a later revision of the same lineage: the database was restored from an older state.
    Ahead {
        /// The revision here.
        ours: u64,
    },
    /// What it lacks.
    Update(Update),
}

/// What a proxy lacks.
#[derive(Debug)]
pub struct Update {
    /// The lineage.
    pub lineage: String,
    /// The revision that the proxy holds afterwards.
    pub revision: u64,
    /// Everything, not only differences.
    pub full: bool,
    /// New and changed resources.
    pub resources: Vec<(ResourceKey, Arc<pb::Resource>)>,
    /// Resources that are gone.
    pub removed: Vec<ResourceKey>,
    /// Servers to check now.
    pub orders: Vec<pb::CheckOrder>,
}

/// A server that is to be checked, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Which.
    pub id: Uuid,
    /// Groups of proxies that serve it; empty: all.
    pub groups: Vec<String>,
    /// How many proxies of each group look.
    pub proxies: usize,
}

impl Checked {
    /// Whether proxies of a group serve it.
    pub fn is_for(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|name| name == group)
    }
}

impl State {
    /// Begins anew, with another database or with one that was read as a whole.
    pub(super) fn new(lineage: String, floor: u64) -> Self {
        Self { lineage, floor, ..Self::default() }
    }

    /// Takes in a resource at the revision of its latest change; one from before the log began at `floor`.
    pub(super) fn put(&mut self, key: ResourceKey, revision: Option<u64>, resource: pb::Resource) {
        if let Some(revision) = revision {
            self.enter(key.clone(), revision);
        }
        self.resources.insert(key, Arc::new(resource));
    }

    /// Takes in that a resource is gone.
    pub(super) fn remove(&mut self, key: ResourceKey, revision: u64) {
        self.resources.remove(&key);
        self.enter(key, revision);
    }

    fn enter(&mut self, key: ResourceKey, revision: u64) {
        if let Some(earlier) = self.latest.insert(key.clone(), revision) {
            self.log.remove(&earlier);
        }
        self.log.insert(revision, key);
    }

    /// Moves on to a revision, when everything up to it was taken in.
    pub(super) fn advance(&mut self, revision: u64) {
        self.revision = revision;
    }

    pub(super) fn resource(&self, key: &ResourceKey) -> Option<&pb::Resource> {
        self.resources.get(key).map(AsRef::as_ref)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.resources.keys().filter(|key| key.kind == kind).count()
    }

    pub(super) fn checked(&self) -> Vec<Checked> {
        let checked = |resource: &Arc<pb::Resource>| {
            let Some(pb::resource::Kind::Server(server)) = &resource.kind else { return None };
            let spec = server.spec.as_ref()?;
            let policy = spec.health.unwrap_or_default();
            let off = policy.check == i32::from(registry_pb::HealthCheck::Off);
            let proxies = usize::try_from(policy.proxies).ok().filter(|count| *count > 0);
            let proxies = proxies.unwrap_or(usize::from(HealthPolicy::default().proxies));
            let id = server.id.parse().ok().filter(|_| server.enabled && !off)?;
            Some(Checked { id, groups: spec.groups.clone(), proxies })
        };
        self.resources.values().filter_map(checked).collect()
    }

    /// What does not concern the group is not sent to it, and what concerns it no longer is sent as gone.
    pub(super) fn offer(&self, group: &str, held: &Held, again: &[ResourceKey]) -> Offer {
        if self.revision == 0 {
            return Offer::NotReady;
        }
        let lineage = lineage_for(&self.lineage, group);
        let known = held.revision > 0 && held.lineage == lineage;
        if known && held.revision > self.revision {
            return Offer::Ahead { ours: self.revision };
        }
        let mut update = Update {
            lineage,
            revision: self.revision,
            full: !known || held.revision < self.floor,
            resources: Vec::new(),
            removed: Vec::new(),
            orders: Vec::new(),
        };
        if update.full {
            let theirs = self.resources.iter().filter(|(_, resource)| concerns(resource, group));
            update.resources.extend(theirs.map(|(key, resource)| (key.clone(), Arc::clone(resource))));
            return Offer::Update(update);
        }
        let changed = self.log.range(held.revision.saturating_add(1)..).map(|(_, key)| key);
        let unchanged = again.iter().filter(|key| self.latest.get(key).is_none_or(|at| *at <= held.revision));
        for key in changed.chain(unchanged) {
            match self.resources.get(key).filter(|resource| concerns(resource, group)) {
                Some(resource) => update.resources.push((key.clone(), Arc::clone(resource))),
                None => update.removed.push(key.clone()),
            }
        }
        if update.resources.is_empty() && update.removed.is_empty() && held.revision == self.revision {
            return Offer::Nothing;
        }
        Offer::Update(update)
    }
}

/// The lineage as proxies of a group know it.
pub(super) fn lineage_for(lineage: &str, group: &str) -> String {
    format!("{lineage}/{group}")
}

/// Whether proxies of a group need a resource. Servers may be for some groups only; all else is for all.
pub(super) fn concerns(resource: &pb::Resource, group: &str) -> bool {
    let Some(pb::resource::Kind::Server(server)) = &resource.kind else { return true };
    let groups = server.spec.as_ref().map(|spec| spec.groups.as_slice()).unwrap_or_default();
    groups.is_empty() || groups.iter().any(|name| name == group)
}

impl Update {
    /// Cuts the update into messages; the last says that it is.
    pub fn chunks(&self, nonce: &str) -> impl Iterator<Item = pb::StreamResponse> {
        let mut resources = self.resources.iter().peekable();
        let mut removed = self.removed.iter().peekable();
        let mut done = false;
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            let mut chunk = pb::StreamResponse {
                lineage: self.lineage.clone(),
                revision: self.revision,
                nonce: nonce.to_owned(),
                full: self.full,
                ..pb::StreamResponse::default()
            };
            let mut bytes = 0;
            while let Some((_, resource)) = resources.peek() {
                let size = resource.encoded_len();
                let full = chunk.resources.len() >= CHUNK_RESOURCES || bytes + size > CHUNK_BYTES;
                if full && !chunk.resources.is_empty() {
                    return Some(chunk);
                }
                bytes += size;
                chunk.resources.push(pb::Resource::clone(resource));
                resources.next();
            }
            while let Some(key) = removed.peek() {
                if chunk.resources.len() + chunk.removed.len() >= CHUNK_RESOURCES {
                    return Some(chunk);
                }
                chunk.removed.push(wire::reference(key));
                removed.next();
            }
            done = true;
            chunk.orders.clone_from(&self.orders);
            chunk.last = true;
            Some(chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new(Kind::TokenKey, id)
    }

    fn resource(id: &str, bytes: usize) -> pb::Resource {
        let token = pb::TokenKey { kid: id.into(), public_key: vec![0; bytes] };
        pb::Resource { id: id.into(), kind: Some(pb::resource::Kind::TokenKey(token)) }
    }

    fn state() -> State {
        let mut state = State::new("here".into(), 2);
        state.put(key("old"), None, resource("old", 32));
        state.put(key("a"), Some(3), resource("a", 32));
        state.put(key("b"), Some(4), resource("b", 32));
        state.remove(key("gone"), 5);
        state.advance(5);
        state
    }

    fn check(lineage: &str, revision: u64, again: &[&str]) -> Option<(bool, Vec<String>, Vec<String>)> {
        let again: Vec<_> = again.iter().map(|id| key(id)).collect();
        let lineage = if lineage == "here" { "here/g" } else { lineage };
        match state().offer("g", &Held { lineage: lineage.into(), revision }, &again) {
            Offer::Update(update) => {
                let mut resources: Vec<_> = update.resources.into_iter().map(|(key, _)| key.id).collect();
                resources.sort();
                Some((update.full, resources, update.removed.into_iter().map(|key| key.id).collect()))
            }
            Offer::Nothing => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_proxy_gets_what_it_lacks_and_no_more() {
        let strings = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = Some((true, strings(&["a", "b", "old"]), vec![]));
        assert_eq!(check("", 0, &[]), all);
        assert_eq!(check("elsewhere", 5, &[]), all);
        assert_eq!(check("here", 1, &[]), all, "further behind than the log reaches");
        assert_eq!(check("here", 2, &[]), Some((false, strings(&["a", "b"]), strings(&["gone"]))));
        assert_eq!(check("here", 4, &[]), Some((false, vec![], strings(&["gone"]))));
        assert_eq!(check("here", 5, &[]), None);
    }

    #[test]
    fn what_was_refused_is_sent_again_once() {
        assert_eq!(check("here", 5, &["a"]), Some((false, vec!["a".into()], vec![])));
        assert_eq!(check("here", 3, &["b"]), Some((false, vec!["b".into()], vec!["gone".into()])));
        assert_eq!(check("here", 5, &["never"]), Some((false, vec![], vec!["never".into()])));
    }

    #[test]
    fn a_restored_database_takes_nothing_back() {
        let held = Held { lineage: "here/g".into(), revision: 9 };
        assert!(matches!(state().offer("g", &held, &[]), Offer::Ahead { ours: 5 }));
        assert!(matches!(State::default().offer("g", &held, &[]), Offer::NotReady));
    }

    #[test]
    fn a_later_change_takes_the_place_of_an_earlier_one() {
        let mut state = state();
        state.remove(key("a"), 6);
        state.advance(6);
        let Offer::Update(update) = state.offer("g", &Held { lineage: "here/g".into(), revision: 2 }, &[])
        else {
            panic!()
        };
        assert_eq!(update.resources.len(), 1);
        assert_eq!(update.removed, [key("gone"), key("a")]);
    }

    fn server(groups: &[&str]) -> pb::Resource {
        let groups = groups.iter().map(ToString::to_string).collect();
        let spec = waffles_proto::registry::v1::ServerSpec { groups, ..Default::default() };
        let server = waffles_proto::registry::v1::Server { spec: Some(spec), ..Default::default() };
        pb::Resource { id: "s".into(), kind: Some(pb::resource::Kind::Server(server)) }
    }

    #[test]
    fn a_group_gets_its_servers_only_and_one_that_leaves_it_as_gone() {
        let key = ResourceKey::new(Kind::Server, "s");
        let mut state = state();
        let offered = |state: &State, group: &str, revision: u64| {
            let held = Held { lineage: lineage_for("here", group), revision };
            match state.offer(group, &held, &[]) {
                Offer::Update(update) => {
                    let has = update.resources.iter().any(|(sent, _)| *sent == key);
                    (update.full, has, update.removed.contains(&key))
                }
                other => panic!("{other:?}"),
            }
        };
        state.put(key.clone(), Some(6), server(&["eu", "us"]));
        state.advance(6);
        for (group, concerned) in [("eu", true), ("us", true), ("asia", false)] {
            assert_eq!(offered(&state, group, 0), (true, concerned, false), "{group}");
            assert_eq!(offered(&state, group, 5), (false, concerned, !concerned), "{group}");
        }
        state.put(key.clone(), Some(7), server(&["us"]));
        state.advance(7);
        assert_eq!(offered(&state, "eu", 6), (false, false, true));
        assert_eq!(offered(&state, "us", 6), (false, true, false));
        state.put(key.clone(), Some(8), server(&[]));
        state.advance(8);
        assert_eq!(offered(&state, "asia", 7), (false, true, false));
        // What another group holds is no base for differences.
        let held = Held { lineage: lineage_for("here", "eu"), revision: 8 };
        assert!(matches!(state.offer("us", &held, &[]), Offer::Update(update) if update.full));
    }

    #[test]
    fn an_update_is_cut_by_size_and_count_and_loses_nothing() {
        for (count, bytes, chunks) in [(0, 0, 1), (1, 2 * CHUNK_BYTES, 1), (3, CHUNK_BYTES, 3), (1001, 8, 3)]
        {
            let mut update = Update {
                lineage: "l".into(),
                revision: 1,
                full: true,
                resources: vec![],
                removed: vec![],
                orders: vec![],
            };
            for i in 0..count {
                let id = i.to_string();
                update.resources.push((key(&id), Arc::new(resource(&id, bytes))));
            }
            update.removed = vec![key("x"); 3];
            let sent: Vec<_> = update.chunks("n").collect();
            assert_eq!(sent.len(), chunks, "{count} of {bytes} bytes");
            assert_eq!(sent.iter().map(|c| c.resources.len()).sum::<usize>(), count);
            assert_eq!(sent.iter().map(|c| c.removed.len()).sum::<usize>(), 3);
            assert!(sent.iter().rev().skip(1).all(|c| !c.last) && sent.last().unwrap().last);
        }
    }
}
