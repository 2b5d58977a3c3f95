//! Who hears of a change first. Of each group one proxy tries what may break a proxy, and the others get it when that one
//! has taken it in, or after a short time. What a proxy refused goes to no other one until it is changed. What takes
//! rights away never waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_proto::discovery::v1 as pb;
use waffles_proto::policy::v1 as policy_pb;

/// How long the others wait for the first one. A proxy that takes longer is not the first next time.
const TRIAL_TIME: Duration = Duration::from_secs(2);
/// Resources that were let go again, which streams may not have heard of yet.
const MOST_RELEASED: usize = 256;

/// How far a stream may look.
#[derive(Debug, Clone, Default)]
pub(super) struct Reach {
    /// Changes up to this revision are for it.
    pub(super) through: u64,
    /// What does not wait was sent to it up to this revision.
    pub(super) urgent: u64,
    /// Changes that it is not sent, with their revisions.
    pub(super) held_back: Arc<HashMap<ResourceKey, u64>>,
    /// Changes that were held back and are not any more.
    pub(super) released: Vec<ResourceKey>,
    /// When to look again at the latest.
    pub(super) until: Option<Instant>,
}

impl Reach {
    /// Everything.
    #[cfg(test)]
    pub(super) fn all() -> Self {
        Self { through: u64::MAX, ..Self::default() }
    }

    /// Whether a change that is on trial is for it.
    pub(super) fn has(&self, key: &ResourceKey, revision: u64) -> bool {
        revision <= self.through && self.held_back.get(key) != Some(&revision)
    }
}

/// Whether a change may wait for the first proxy. One that may take something away from somebody does not: only what is
/// new, and what of a server says how it is reached rather than what may be done there.
pub(super) fn waits(before: Option<&pb::Resource>, now: &pb::Resource) -> bool {
    use pb::resource::Kind as Of;
    match (before.and_then(|resource| resource.kind.as_ref()), now.kind.as_ref()) {
        (None, Some(Of::Server(_) | Of::Namespace(_) | Of::Role(_))) => true,
        (None, Some(Of::Rule(rule))) => {
            rule.spec.as_ref().is_some_and(|spec| spec.effect == i32::from(policy_pb::Effect::Allow))
        }
        (Some(Of::Server(before)), Some(Of::Server(now))) => {
            let rights = |server: &waffles_proto::registry::v1::Server| {
                let spec = server.spec.clone().unwrap_or_default();
                (spec.groups, spec.tools.unwrap_or_default(), spec.methods, spec.marks)
            };
            now.enabled && rights(before) == rights(now)
        }
        _ => false,
    }
}

/// The roll-outs of all groups.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    published: u64,
    streams: u64,
    groups: HashMap<String, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// Streams; the first of them tries what is new.
    members: VecDeque<u64>,
    /// Changes up to this revision are for all.
    through: u64,
    /// When the others wait no longer.
    due: Option<Instant>,
    held_back: Arc<HashMap<ResourceKey, u64>>,
    /// The latest that were let go again, with the stream that took them, and how many there were before them.
    released: VecDeque<(ResourceKey, u64)>,
    forgotten: usize,
}

impl Rollouts {
    /// A stream of a group begins; answers with its number.
    pub(super) fn join(&mut self, group: &str) -> u64 {
        self.streams += 1;
        let published = self.published;
        let group = self.groups.entry(group.to_owned()).or_default();
        if group.members.is_empty() {
            // Nobody waits where nobody tries.
            group.through = published;
            group.due = None;
        }
        group.members.push_back(self.streams);
        self.streams
    }

    /// A stream is over. The next one in line tries what this one may have been trying; whether there is anything.
    pub(super) fn leave(&mut self, name: &str, stream: u64, now: Instant) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        let was_first = group.members.front() == Some(&stream);
        group.members.retain(|member| *member != stream);
        let goes_on = was_first && group.due.is_some() && !group.members.is_empty();
        if goes_on {
            group.due = Some(now + TRIAL_TIME);
        }
        // What was refused is remembered as long as there is anything to remember.
        if group.members.is_empty() && group.held_back.is_empty() {
            self.groups.remove(name);
        }
        goes_on
    }

    /// A revision was published; whether it holds anything that must be tried.
    pub(super) fn publish(&mut self, revision: u64, trials: bool, now: Instant) {
        self.published = revision;
        for group in self.groups.values_mut() {
            if !trials || group.members.len() < 2 {
                group.through = revision;
                group.due = None;
            } else if group.through < revision {
                group.due.get_or_insert(now + TRIAL_TIME);
            }
        }
    }

    /// How far a stream may look now.
    pub(super) fn reach(&mut self, name: &str, stream: u64, released: &mut usize, now: Instant) -> Reach {
        let published = self.published;
        let Some(group) = self.groups.get_mut(name) else { return Reach::default() };
        if group.due.is_some_and(|due| due <= now) {
            tracing::warn!(
                proxy.group = name,
                revision = published,
                "the proxy that tries changes first took too long; the others of its group get them too"
            );
            group.through = published;
            group.due = None;
            group.members.rotate_left(1);
        }
        let total = group.forgotten + group.released.len();
        let new = total.saturating_sub((*released).max(group.forgotten));
        *released = total;
        let latest = group.released.iter().skip(group.released.len() - new);
        let released: Vec<_> = latest.filter(|(_, by)| *by != stream).map(|(key, _)| key.clone()).collect();
        match group.members.front() == Some(&stream) {
            true => Reach { through: published, released, ..Reach::default() },
            false => Reach {
                through: group.through,
                held_back: Arc::clone(&group.held_back),
                released,
                until: group.due,
                ..Reach::default()
            },
        }
    }

    /// A stream's proxy took an update in, but for what it refused. Whether the others have something to look at.
    pub(super) fn answered(
        &mut self,
        name: &str,
        stream: u64,
        revision: u64,
        taken: impl Iterator<Item = ResourceKey>,
        refused: &[(ResourceKey, u64)],
        now: Instant,
    ) -> bool {
        let published = self.published;
        let Some(group) = self.groups.get_mut(name) else { return false };
        let mut news = false;
        if !refused.is_empty() {
            Arc::make_mut(&mut group.held_back).extend(refused.iter().cloned());
            for (key, at) in refused {
                tracing::error!(
                    proxy.group = name,
                    resource.kind = key.kind.as_str(),
                    resource.id = key.id,
                    revision = at,
                    "a change was refused by a proxy that tried it; no other one of its group gets it until it is changed"
                );
            }
        }
        if !group.held_back.is_empty() {
            for key in taken {
                if group.held_back.contains_key(&key) && refused.iter().all(|(refused, _)| *refused != key) {
                    Arc::make_mut(&mut group.held_back).remove(&key);
                    group.released.push_back((key, stream));
                    news = true;
                }
            }
            while group.released.len() > MOST_RELEASED {
                group.released.pop_front();
                group.forgotten += 1;
            }
        }
        if group.members.front() == Some(&stream) && revision > group.through {
            group.through = revision;
            group.due = (revision < published).then_some(now + TRIAL_TIME);
            news = true;
        }
        news
    }

    /// Whether a change is not on trial anywhere any more.
    pub(super) fn is_over(&self, key: &ResourceKey, revision: u64) -> bool {
        self.groups
            .values()
            .all(|group| group.through >= revision && group.held_back.get(key) != Some(&revision))
    }

    /// How many changes are held back, of all groups.
    pub(super) fn held_back(&self) -> u64 {
        self.groups.values().map(|group| u64::try_from(group.held_back.len()).unwrap_or(u64::MAX)).sum()
    }

    /// For the admin port.
    pub(super) fn report(&self) -> serde_json::Value {
        let report = |(name, group): (&String, &Group)| {
            let held_back: Vec<_> =
                group.held_back.keys().map(|key| format!("{}/{}", key.kind.as_str(), key.id)).collect();
            let report = serde_json::json!({
                "streams": group.members.len(), "through": group.through, "trying": group.due.is_some(),
                "held_back": held_back,
            });
            (name.clone(), report)
        };
        self.groups.iter().map(report).collect()
    }
}

/// The kinds whose changes may wait.
pub(super) fn may_wait(kind: Kind) -> bool {
    matches!(kind, Kind::Server | Kind::Namespace | Kind::Role | Kind::Rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> ResourceKey {
        ResourceKey::new(Kind::Server, id)
    }

    fn server(change: impl FnOnce(&mut waffles_proto::registry::v1::Server)) -> pb::Resource {
        let spec = waffles_proto::registry::v1::ServerSpec { name: "s".into(), ..Default::default() };
        let mut server =
            waffles_proto::registry::v1::Server { enabled: true, spec: Some(spec), ..Default::default() };
        change(&mut server);
        pb::Resource { id: "s".into(), kind: Some(pb::resource::Kind::Server(server)) }
    }

    #[test]
    fn what_takes_rights_away_does_not_wait() {
        let before = server(|_| {});
        let spec = |change: fn(&mut waffles_proto::registry::v1::ServerSpec)| {
            server(|server| change(server.spec.as_mut().unwrap()))
        };
        assert!(waits(None, &before));
        assert!(waits(Some(&before), &spec(|spec| spec.transport = 1)));
        assert!(waits(Some(&server(|server| server.enabled = false)), &before), "it is let in again");
        assert!(!waits(Some(&before), &server(|server| server.enabled = false)));
        assert!(!waits(Some(&before), &spec(|spec| spec.methods = vec!["x/y".into()])));
        assert!(!waits(Some(&before), &spec(|spec| spec.groups = vec!["eu".into()])));
        for effect in [policy_pb::Effect::Allow, policy_pb::Effect::Forbid] {
            let spec = policy_pb::RuleSpec { effect: effect.into(), ..Default::default() };
            let rule = policy_pb::Rule { spec: Some(spec), ..Default::default() };
            let rule = pb::Resource { id: "r".into(), kind: Some(pb::resource::Kind::Rule(rule)) };
            assert_eq!(waits(None, &rule), effect == policy_pb::Effect::Allow);
            assert!(!waits(Some(&rule), &rule), "it may have become narrower");
        }
    }

    #[test]
    fn one_proxy_tries_and_the_others_follow() {
        let mut rollouts = Rollouts::default();
        let now = Instant::now();
        rollouts.publish(5, false, now);
        let (one, two) = (rollouts.join("g"), rollouts.join("g"));
        rollouts.publish(6, true, now);
        let mut seen = 0;
        assert_eq!(rollouts.reach("g", one, &mut seen, now).through, 6);
        let reach = rollouts.reach("g", two, &mut 0, now);
        assert_eq!((reach.through, reach.until), (5, Some(now + TRIAL_TIME)));
        assert!(!rollouts.is_over(&key("s"), 6));
        assert!(rollouts.answered("g", one, 6, std::iter::once(key("s")), &[], now));
        assert_eq!(rollouts.reach("g", two, &mut 0, now).through, 6);
        assert!(rollouts.is_over(&key("s"), 6));
    }

    #[test]
    fn what_one_refused_no_other_gets_until_it_is_taken() {
        let mut rollouts = Rollouts::default();
        let now = Instant::now();
        rollouts.publish(5, false, now);
        let (one, two) = (rollouts.join("g"), rollouts.join("g"));
        rollouts.publish(6, true, now);
        rollouts.answered("g", one, 6, std::iter::once(key("s")), &[(key("s"), 6)], now);
        let mut seen = 0;
        let reach = rollouts.reach("g", two, &mut seen, now);
        assert!(reach.through == 6 && !reach.has(&key("s"), 6) && reach.has(&key("other"), 6));
        assert!(reach.has(&key("s"), 7) || reach.through < 7, "its next form is another one");
        assert!(rollouts.answered("g", one, 6, std::iter::once(key("s")), &[], now));
        let reach = rollouts.reach("g", two, &mut seen, now);
        assert!(reach.has(&key("s"), 6));
        assert_eq!(reach.released, [key("s")]);
        assert!(rollouts.reach("g", two, &mut seen, now).released.is_empty());
    }

    #[test]
    fn a_proxy_that_hangs_is_not_waited_for_twice() {
        let mut rollouts = Rollouts::default();
        let now = Instant::now();
        rollouts.publish(5, false, now);
        let (one, two) = (rollouts.join("g"), rollouts.join("g"));
        rollouts.publish(6, true, now);
        let later = now + TRIAL_TIME;
        assert_eq!(rollouts.reach("g", two, &mut 0, later).through, 6);
        rollouts.publish(7, true, later);
        assert_eq!(rollouts.reach("g", two, &mut 0, later).through, 7, "it tries now");
        assert_eq!(rollouts.reach("g", one, &mut 0, later).through, 6);
        rollouts.leave("g", two, later);
        assert_eq!(rollouts.reach("g", one, &mut 0, later).through, 7);
    }
}
