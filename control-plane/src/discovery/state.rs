//! The published state: every resource, encoded once, with the revision of its latest change, and what a proxy of some
//! other revision lacks.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;
use waffles_core::health::HealthPolicy;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::wire;
use waffles_proto::{discovery::v1 as pb, registry::v1 as registry_pb};

use super::Held;
use super::rollout::{Reach, waits};

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
    resources: HashMap<ResourceKey, Stored>,
    /// The latest change of each resource, of those that are gone too.
    latest: HashMap<ResourceKey, u64>,
    log: BTreeMap<u64, ResourceKey>,
    /// Changes that one proxy of a group tries before the others, with what the others have meanwhile.
    on_trial: HashMap<ResourceKey, Trial>,
}

/// A resource as it goes to proxies. All streams share the bytes.
#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    /// The groups that it is for; none for all.
    groups: Box<[String]>,
}

/// A change that is on trial.
#[derive(Debug)]
struct Trial {
    revision: u64,
    /// The form before it; none for a new resource.
    before: Option<Stored>,
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
    /// Everything that does not wait for a trial is in it up to this revision.
    pub urgent: u64,
    /// Resources that are in it in the form before one that is on trial.
    pub(crate) earlier: Vec<ResourceKey>,
    /// Everything, not only differences.
    pub full: bool,
    /// New and changed resources.
    pub resources: Vec<(ResourceKey, Bytes)>,
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

/// A `StreamResponse` whose resources are encoded already: the same bytes on the wire, without making them anew for each
/// of hundreds of streams.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Chunk {
    /// As in `StreamResponse`, like all that follow.
    #[prost(string, tag = "1")]
    pub lineage: String,
    /// The revision.
    #[prost(uint64, tag = "2")]
    pub revision: u64,
    /// The nonce.
    #[prost(string, tag = "3")]
    pub nonce: String,
    /// Whether the update is the whole state.
    #[prost(bool, tag = "4")]
    pub full: bool,
    /// Encoded resources.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub resources: Vec<Bytes>,
    /// Resources that are gone.
    #[prost(message, repeated, tag = "6")]
    pub removed: Vec<pb::ResourceRef>,
    /// Whether it is the last of its update.
    #[prost(bool, tag = "7")]
    pub last: bool,
    /// The authorities.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub authorities: Vec<Vec<u8>>,
    /// Servers to check now.
    #[prost(message, repeated, tag = "15")]
    pub orders: Vec<pb::CheckOrder>,
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
        self.resources.insert(key, Stored::new(&resource));
    }

    /// Takes in a change of a resource that one proxy of each group shall try first, if that may wait.
    pub(super) fn change(&mut self, key: ResourceKey, revision: u64, resource: pb::Resource) {
        let before = self.resources.get(&key).cloned();
        self.try_first(&key, revision, before, &resource);
        self.put(key, Some(revision), resource);
    }

    /// What a state that was read as a whole changed of the one before it is tried first as well.
    pub(super) fn succeed(&mut self, before: &State) {
        if before.lineage != self.lineage || before.revision == 0 {
            return;
        }
        let changed: Vec<(u64, ResourceKey)> =
            self.log.range(before.revision.saturating_add(1)..).map(|(at, key)| (*at, key.clone())).collect();
        for (revision, key) in changed {
            if let Some(resource) = self.resources.get(&key).and_then(Stored::read) {
                self.try_first(&key, revision, before.resources.get(&key).cloned(), &resource);
            }
        }
    }

    fn try_first(&mut self, key: &ResourceKey, revision: u64, before: Option<Stored>, now: &pb::Resource) {
        // While a change is on trial, the others still have the form before it.
        let before = match self.on_trial.remove(key) {
            Some(trial) => trial.before,
            None => before,
        };
        if waits(before.as_ref().and_then(Stored::read).as_ref(), now) {
            self.on_trial.insert(key.clone(), Trial { revision, before });
        }
    }

    /// Takes in that a resource is gone.
    pub(super) fn remove(&mut self, key: ResourceKey, revision: u64) {
        self.resources.remove(&key);
        self.on_trial.remove(&key);
        self.enter(key, revision);
    }

    /// Keys are not shipped any more: those that proxies have stay theirs, until they change.
    pub(super) fn unship_keys(&mut self) {
        self.resources.retain(|key, _| key.kind != Kind::ApiKey);
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

    /// Forgets trials that are over everywhere.
    pub(super) fn end_trials(&mut self, is_over: impl Fn(&ResourceKey, u64) -> bool) {
        self.on_trial.retain(|key, trial| !is_over(key, trial.revision));
    }

    /// The revision of a change that is on trial.
    pub(super) fn trial(&self, key: &ResourceKey) -> Option<u64> {
        self.on_trial.get(key).map(|trial| trial.revision)
    }

    /// Whether anything is on trial.
    pub(super) fn has_trials(&self) -> bool {
        !self.on_trial.is_empty()
    }

    pub(super) fn holds(&self, key: &ResourceKey) -> bool {
        self.resources.contains_key(key)
    }

    pub(super) fn resource(&self, key: &ResourceKey) -> Option<pb::Resource> {
        self.resources.get(key).and_then(Stored::read)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.resources.keys().filter(|key| key.kind == kind).count()
    }

    /// The servers that are to be checked.
    pub(super) fn checked(&self) -> Vec<Checked> {
        let checked = |resource: pb::Resource| {
            let Some(pb::resource::Kind::Server(server)) = resource.kind else { return None };
            let spec = server.spec?;
            let policy = spec.health.unwrap_or_default();
            let off = policy.check == i32::from(registry_pb::HealthCheck::Off);
            let proxies = usize::try_from(policy.proxies).ok().filter(|count| *count > 0);
            let proxies = proxies.unwrap_or(usize::from(HealthPolicy::default().proxies));
            let id = server.id.parse().ok().filter(|_| server.enabled && !off)?;
            Some(Checked { id, groups: spec.groups, proxies })
        };
        let servers = self.resources.iter().filter(|(key, _)| key.kind == Kind::Server);
        servers.filter_map(|(_, stored)| stored.read()).filter_map(checked).collect()
    }

    /// Whether proxies of a group have a resource.
    pub(super) fn concerns(&self, key: &ResourceKey, group: &str) -> bool {
        self.resources.get(key).is_some_and(|stored| stored.concerns(group))
    }

    /// What does not concern the group is not sent to it, and what concerns it no longer is sent as gone. What is on
    /// trial beyond the reach of the stream is left out, and sent in its form of before with a whole state.
    pub(super) fn offer(&self, group: &str, held: &Held, again: &[ResourceKey], reach: &Reach) -> Offer {
        if self.revision == 0 {
            return Offer::NotReady;
        }
        let lineage = lineage_for(&self.lineage, group);
        let known = held.revision > 0 && held.lineage == lineage;
        if known && held.revision > self.revision {
            return Offer::Ahead { ours: self.revision };
        }
        let through = reach.through.min(self.revision);
        let full = !known || held.revision < self.floor;
        let mut update = Update {
            lineage,
            // A proxy that was the first to try things may be ahead of what the others may have.
            revision: if full { through } else { through.max(held.revision) },
            urgent: self.revision,
            earlier: Vec::new(),
            full,
            resources: Vec::new(),
            removed: Vec::new(),
            orders: Vec::new(),
        };
        if update.full {
            let earlier =
                |key: &ResourceKey| self.on_trial.get(key).filter(|trial| !reach.has(key, trial.revision));
            let theirs = self.resources.iter().filter_map(|(key, stored)| match earlier(key) {
                Some(trial) => Some((key, trial.before.as_ref()?)),
                None => Some((key, stored)),
            });
            update.earlier.extend(self.on_trial.keys().filter(|key| earlier(key).is_some()).cloned());
            let theirs = theirs.filter(|(_, stored)| stored.concerns(group));
            update.resources.extend(theirs.map(|(key, stored)| (key.clone(), stored.bytes.clone())));
            return Offer::Update(update);
        }
        let changed = self.log.range(held.revision.saturating_add(1)..).filter(|(at, key)| {
            match self.on_trial.contains_key(key) {
                true => reach.has(key, **at),
                // What does not wait was sent already when it happened.
                false => **at <= through || **at > reach.urgent,
            }
        });
        let changed = changed.map(|(_, key)| key);
        let released = reach.released.iter().filter(|key| self.resources.contains_key(key));
        let unchanged = again
            .iter()
            .chain(released)
            .filter(|key| self.latest.get(key).is_none_or(|at| *at <= held.revision));
        let unchanged =
            unchanged.filter(|key| self.on_trial.get(key).is_none_or(|trial| reach.has(key, trial.revision)));
        for key in changed.chain(unchanged) {
            match self.resources.get(key).filter(|stored| stored.concerns(group)) {
                Some(stored) => update.resources.push((key.clone(), stored.bytes.clone())),
                None => update.removed.push(key.clone()),
            }
        }
        if update.resources.is_empty() && update.removed.is_empty() && held.revision == update.revision {
            return Offer::Nothing;
        }
        Offer::Update(update)
    }
}

impl Stored {
    fn new(resource: &pb::Resource) -> Self {
        let groups = match &resource.kind {
            Some(pb::resource::Kind::Server(server)) => {
                server.spec.as_ref().map(|spec| spec.groups.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        Self { bytes: resource.encode_to_vec().into(), groups: groups.into() }
    }

    fn read(&self) -> Option<pb::Resource> {
        pb::Resource::decode(self.bytes.clone()).ok()
    }

    /// Whether proxies of a group need it. Servers may be for some groups only; all else is for all.
    fn concerns(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|name| name == group)
    }
}

/// The lineage as proxies of a group know it.
pub(super) fn lineage_for(lineage: &str, group: &str) -> String {
    format!("{lineage}/{group}")
}

impl Update {
    /// Cuts the update into messages; the last says that it is.
    pub fn chunks(&self, nonce: &str) -> impl Iterator<Item = Chunk> {
        let mut resources = self.resources.iter().peekable();
        let mut removed = self.removed.iter().peekable();
        let mut done = false;
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            let mut chunk = Chunk {
                lineage: self.lineage.clone(),
                revision: self.revision,
                nonce: nonce.to_owned(),
                full: self.full,
                ..Chunk::default()
            };
            let mut bytes = 0;
            while let Some((_, resource)) = resources.peek() {
                let full = chunk.resources.len() >= CHUNK_RESOURCES || bytes + resource.len() > CHUNK_BYTES;
                if full && !chunk.resources.is_empty() {
                    return Some(chunk);
                }
                bytes += resource.len();
                chunk.resources.push(resource.clone());
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
        match state().offer("g", &Held { lineage: lineage.into(), revision }, &again, &Reach::all()) {
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
        assert!(matches!(state().offer("g", &held, &[], &Reach::all()), Offer::Ahead { ours: 5 }));
        assert!(matches!(State::default().offer("g", &held, &[], &Reach::all()), Offer::NotReady));
    }

    #[test]
    fn a_later_change_takes_the_place_of_an_earlier_one() {
        let mut state = state();
        state.remove(key("a"), 6);
        state.advance(6);
        let Offer::Update(update) =
            state.offer("g", &Held { lineage: "here/g".into(), revision: 2 }, &[], &Reach::all())
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
            match state.offer(group, &held, &[], &Reach::all()) {
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
        assert!(matches!(state.offer("us", &held, &[], &Reach::all()), Offer::Update(update) if update.full));
    }

    #[test]
    fn an_update_is_cut_by_size_and_count_and_loses_nothing() {
        for (count, bytes, chunks) in [(0, 0, 1), (1, 2 * CHUNK_BYTES, 1), (3, CHUNK_BYTES, 3), (1001, 8, 3)]
        {
            let mut update = Update {
                lineage: "l".into(),
                revision: 1,
                urgent: 1,
                earlier: vec![],
                full: true,
                resources: vec![],
                removed: vec![],
                orders: vec![],
            };
            for i in 0..count {
                let id = i.to_string();
                update.resources.push((key(&id), resource(&id, bytes).encode_to_vec().into()));
            }
            update.removed = vec![key("x"); 3];
            let sent: Vec<_> = update.chunks("n").collect();
            assert_eq!(sent.len(), chunks, "{count} of {bytes} bytes");
            assert_eq!(sent.iter().map(|c| c.resources.len()).sum::<usize>(), count);
            assert_eq!(sent.iter().map(|c| c.removed.len()).sum::<usize>(), 3);
            assert!(sent.iter().rev().skip(1).all(|c| !c.last) && sent.last().unwrap().last);
        }
    }

    #[test]
    fn a_chunk_reads_as_the_message_of_the_contract() {
        let mut update = Update {
            lineage: "l".into(),
            revision: 7,
            urgent: 7,
            earlier: vec![],
            full: true,
            resources: vec![(key("a"), resource("a", 32).encode_to_vec().into())],
            removed: vec![key("x")],
            orders: vec![pb::CheckOrder { id: "o".into(), server_id: "s".into() }],
        };
        update.full = false;
        let mut chunk = update.chunks("n").next().unwrap();
        chunk.authorities = vec![vec![1, 2]];
        let read = pb::StreamResponse::decode(chunk.encode_to_vec().as_slice()).unwrap();
        let wanted = pb::StreamResponse {
            lineage: "l".into(),
            revision: 7,
            nonce: "n".into(),
            full: false,
            resources: vec![resource("a", 32)],
            removed: vec![wire::reference(&key("x"))],
            last: true,
            authorities: vec![vec![1, 2]],
            orders: update.orders.clone(),
        };
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_is_on_trial_is_kept_from_the_others_and_a_removal_is_not() {
        let key = ResourceKey::new(Kind::Server, "s");
        let mut state = state();
        state.change(key.clone(), 6, server(&[]));
        state.remove(self::key("a"), 7);
        state.advance(7);
        let held = Held { lineage: "here/g".into(), revision: 5 };
        let others = Reach { through: 5, ..Reach::all() };
        let Offer::Update(update) = state.offer("g", &held, &[], &others) else { panic!() };
        assert_eq!((update.revision, update.urgent), (5, 7));
        assert!(update.resources.is_empty(), "{update:?}");
        assert_eq!(update.removed, [self::key("a")]);
        let told = Reach { urgent: 7, through: 5, ..Reach::all() };
        assert!(matches!(state.offer("g", &held, &[], &told), Offer::Nothing));
        let Offer::Update(update) = state.offer("g", &Held::default(), &[], &others) else { panic!() };
        assert!(update.resources.iter().all(|(sent, _)| *sent != key), "a whole state leaves it out too");
        let Offer::Update(update) = state.offer("g", &held, &[], &Reach::all()) else { panic!() };
        assert_eq!((update.revision, update.resources.len(), update.removed.len()), (7, 1, 1));
    }
}
