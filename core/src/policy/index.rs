//! The rules of a tenant, compiled and indexed: of all of them only the few are looked at that can be about a principal
//! and an item, and what was found is remembered as long as the configuration stands.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, Hasher as _, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::condition::{Condition, Looks};
use super::rule::{Effect, Mode, Rule, RuleSpec};
use crate::principal::Principal;
use crate::server::Marks;

/// Entries that one shard remembers; it is emptied when it is full.
const REMEMBERED: usize = 4096;
const SHARDS: usize = 16;

/// A rule with what is compiled from it.
#[derive(Debug)]
pub struct CompiledRule {
    /// The rule.
    pub rule: Rule,
    /// How decisions name it.
    pub(super) label: Arc<str>,
    pub(super) condition: Option<Condition>,
    /// It is about tools, and says nothing of anything else.
    pub(super) of_tools: bool,
}

impl CompiledRule {
    /// Compiles a rule. The error says what cannot be read.
    pub fn compile(rule: Rule) -> Result<Self, String> {
        if let Some(problem) = rule.spec.problems().into_iter().next() {
            return Err(problem.to_string());
        }
        Self::of_sound(rule).map_err(|reasons| format!("condition: {}", reasons.join("; ")))
    }

    fn of_sound(rule: Rule) -> Result<Self, Vec<String>> {
        let condition = match rule.spec.condition.trim() {
            "" => None,
            text => Some(Condition::compile(text)?),
        };
        let looks = condition.as_ref().map(Condition::looks).unwrap_or_default();
        let items = &rule.spec.items;
        let marked = [items.read_only, items.destructive, items.idempotent, items.open_world];
        let of_tools =
            looks.args || looks.tool || !items.tools.is_empty() || marked.iter().any(Option::is_some);
        let label = format!("rule:{}", rule.spec.name).into();
        Ok(Self { rule, label, condition, of_tools })
    }

    /// What stands for a rule that cannot be read: it forbids all that it may have been about. Of a rule whose selectors
    /// cannot be believed either, that is everything in the tenant.
    pub fn closed(id: Uuid, tenant: &str) -> Self {
        let rule = Rule { id, tenant: tenant.to_owned(), spec: RuleSpec::forbid_all("unreadable") };
        Self { rule, label: "rule:unreadable".into(), condition: None, of_tools: false }
    }

    /// What its condition looks at.
    pub(super) fn looks(&self) -> Looks {
        self.condition.as_ref().map(Condition::looks).unwrap_or_default()
    }

    /// Its condition; none: it always applies.
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }

    fn is_about(&self, principal: &Principal) -> bool {
        let who = &self.rule.spec.principals;
        let everybody = who.roles.is_empty() && who.groups.is_empty() && who.names.is_empty();
        everybody
            || who.names.contains(&principal.name)
            || principal.roles.iter().any(|role| who.roles.contains(role))
            || principal.groups.iter().any(|group| who.groups.contains(group))
    }

    fn is_of_place(&self, server: &str, namespace: Option<&str>) -> bool {
        let items = &self.rule.spec.items;
        let at = namespace.is_some_and(|namespace| items.namespaces.iter().any(|name| name == namespace));
        (items.namespaces.is_empty() || at)
            && (items.servers.is_empty() || items.servers.iter().any(|name| name == server))
    }
}

/// What rules are asked about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) principal: &'a Principal,
    pub(super) server_id: Uuid,
    pub(super) server: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) tool: Option<&'a str>,
    pub(super) marks: Marks,
}

/// The rules that can be about one place, by what they do.
#[derive(Debug, Default)]
pub(super) struct Applicable {
    pub(super) rules: Vec<Arc<CompiledRule>>,
    /// What all their conditions look at together.
    pub(super) looks: Looks,
}

/// What rules said together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruling {
    /// The first rule that permits.
    pub allow: Option<Arc<str>>,
    /// The first rule that forbids.
    pub forbid: Option<Arc<str>>,
    /// A rule permits something of the server, if not what was asked about.
    pub touches: bool,
    /// The rule that forbids looked at the arguments: what it forbids may be known of.
    pub by_args: bool,
    /// Rules that only take note, and would have decided.
    pub noted: Vec<Arc<str>>,
    /// Conditions that failed.
    pub failed: u32,
}

/// The rules of one tenant.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Arc<CompiledRule>>,
    by_server: HashMap<String, Vec<u32>>,
    by_tool: HashMap<String, Vec<u32>>,
    by_subject: HashMap<(Subject, String), Vec<u32>>,
    everywhere: Vec<u32>,
    memory: Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Role,
    Group,
    Name,
}

impl Policy {
    /// Indexes rules, which come in the order of their names.
    pub fn new(mut rules: Vec<Arc<CompiledRule>>) -> Self {
        rules.sort_by(|one, other| one.rule.spec.name.cmp(&other.rule.spec.name));
        let mut policy = Self::default();
        for (number, rule) in rules.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let RuleSpec { principals: who, items, .. } = &rule.rule.spec;
            let exact = !items.tools.is_empty() && items.tools.iter().all(|tool| !tool.contains('*'));
            if !items.servers.is_empty() {
                for server in &items.servers {
                    policy.by_server.entry(server.clone()).or_default().push(number);
                }
            } else if exact && rule.rule.spec.effect == Effect::Forbid {
                for tool in &items.tools {
                    policy.by_tool.entry(tool.clone()).or_default().push(number);
                }
            } else if who.roles.is_empty() && who.groups.is_empty() && who.names.is_empty() {
                policy.everywhere.push(number);
            } else {
                let subjects =
                    [(Subject::Role, &who.roles), (Subject::Group, &who.groups), (Subject::Name, &who.names)];
                for (subject, names) in subjects {
                    for name in names {
                        policy.by_subject.entry((subject, name.clone())).or_default().push(number);
                    }
                }
            }
        }
        policy.rules = rules;
        policy
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in the order of their names.
    pub fn rules(&self) -> &[Arc<CompiledRule>] {
        &self.rules
    }

    /// Whether a rule may permit something to a principal.
    pub(super) fn may_permit(&self, principal: &Principal) -> bool {
        let allows = |rule: &&Arc<CompiledRule>| rule.rule.spec.effect == Effect::Allow && enforced(rule);
        self.rules.iter().filter(allows).any(|rule| rule.is_about(principal))
    }

    /// The rules that can be about a place, whatever their conditions say.
    pub(super) fn applicable(&self, place: &Place<'_>) -> Arc<Applicable> {
        let key = self.memory.key(|hasher| {
            place.principal.id.hash(hasher);
            (place.server_id, place.namespace, place.tool).hash(hasher);
        });
        if let Some(Remembered::Rules(found)) = self.memory.get(key) {
            return found;
        }
        let found = Arc::new(self.find(place));
        self.memory.put(key, Remembered::Rules(Arc::clone(&found)));
        found
    }

    fn find(&self, place: &Place<'_>) -> Applicable {
        let mut numbers: Vec<u32> = self.everywhere.clone();
        numbers.extend(self.by_server.get(place.server).into_iter().flatten());
        if let Some(tool) = place.tool {
            numbers.extend(self.by_tool.get(tool).into_iter().flatten());
        }
        let Principal { roles, groups, name, .. } = place.principal;
        for (subject, names) in [
            (Subject::Role, roles.as_slice()),
            (Subject::Group, groups),
            (Subject::Name, std::slice::from_ref(name)),
        ] {
            for name in names {
                numbers.extend(self.by_subject.get(&(subject, name.clone())).into_iter().flatten());
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let mut found = Applicable::default();
        for rule in numbers.iter().filter_map(|number| self.rules.get(*number as usize)) {
            let of_tool = match place.tool {
                Some(tool) => rule.rule.spec.items.has_tool(tool, place.marks),
                // Where no tool is asked about, a rule of tools can only say that there may be one.
                None => !rule.of_tools || rule.rule.spec.effect == Effect::Allow,
            };
            if of_tool && rule.is_about(place.principal) && rule.is_of_place(place.server, place.namespace) {
                found.looks = found.looks.or(rule.looks());
                found.rules.push(Arc::clone(rule));
            }
        }
        found
    }

    /// What was decided before about the same, or what `decide` says now. `facts` writes what decides beside the place.
    pub(super) fn remembered(
        &self,
        place: &Place<'_>,
        facts: impl Fn(&mut dyn std::hash::Hasher),
        decide: impl FnOnce() -> Ruling,
    ) -> Arc<Ruling> {
        let key = self.memory.key(|hasher| {
            place.principal.id.hash(hasher);
            (place.server_id, place.namespace, place.tool, "ruling").hash(hasher);
            facts(hasher);
        });
        if let Some(Remembered::Ruling(ruling)) = self.memory.get(key) {
            return ruling;
        }
        let ruling = Arc::new(decide());
        self.memory.put(key, Remembered::Ruling(Arc::clone(&ruling)));
        ruling
    }
}

/// Whether a rule decides.
pub(super) fn enforced(rule: &CompiledRule) -> bool {
    rule.rule.spec.mode == Mode::Enforce
}

/// What was found before, under 128 bits of hash with keys that nobody outside knows.
#[derive(Debug)]
struct Memory {
    hashers: (RandomState, RandomState),
    shards: [Mutex<HashMap<(u64, u64), Remembered>>; SHARDS],
}

#[derive(Debug, Clone)]
enum Remembered {
    Rules(Arc<Applicable>),
    Ruling(Arc<Ruling>),
}

impl Default for Memory {
    fn default() -> Self {
        Self { hashers: (RandomState::new(), RandomState::new()), shards: Default::default() }
    }
}

impl Memory {
    fn key(&self, write: impl Fn(&mut std::hash::DefaultHasher)) -> (u64, u64) {
        let (mut one, mut two) = (self.hashers.0.build_hasher(), self.hashers.1.build_hasher());
        write(&mut one);
        write(&mut two);
        (one.finish(), two.finish())
    }

    fn shard(&self, key: (u64, u64)) -> Option<&Mutex<HashMap<(u64, u64), Remembered>>> {
        self.shards.get(usize::try_from(key.0).unwrap_or(0) % SHARDS)
    }

    fn get(&self, key: (u64, u64)) -> Option<Remembered> {
        self.shard(key)?.lock().get(&key).cloned()
    }

    fn put(&self, key: (u64, u64), found: Remembered) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        if shard.len() >= REMEMBERED {
            shard.clear();
        }
        shard.insert(key, found);
    }
}
