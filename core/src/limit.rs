//! Limits: how many messages somebody may send in a time, or have open at once. What an operator writes, whom and what
//! it is about, and the arithmetic of a window. Time is an argument; who keeps the counts is another's business.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::Who;
use crate::principal::Principal;
use crate::server::{fits, is_pattern};
use crate::{FieldError, is_dns_label};

/// Entries of one list of a limit.
const MOST: usize = 1000;
/// The longest window: 31 days.
pub const WINDOW_MOST: u64 = 31 * 24 * 3600;
/// Characters of a tool's name that tell it from others.
const NAME_MOST: usize = 128;
/// The highest amount.
pub const AMOUNT_MOST: u64 = 1_000_000_000;
/// Into how many slots the window of a rate is cut. What was spent counts until its whole slot is past, so that in no
/// time of the window's length more than the limit passes; what a caller who always asks loses by that is one part in
/// as many.
const SLOTS: u64 = 100;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Messages in any time of the window's length.
    Rate,
    /// Messages in each period of the window's length, counted from 1970-01-01 UTC.
    Quota,
    /// Messages that wait for their answers at the same time.
    Concurrent,
    /// Streams on which somebody listens, open at the same time.
    Streams,
}

impl LimitKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rate, Self::Quota, Self::Concurrent, Self::Streams];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::Concurrent => "concurrent",
            Self::Streams => "streams",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Whether it counts in a window; the others count what is open.
    pub fn has_window(self) -> bool {
        matches!(self, Self::Rate | Self::Quota)
    }
}

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// Each user and service account, whatever keys it has.
    Principal,
    /// Each API key; what comes with an access token is counted by its principal.
    Key,
    /// Each server.
    Server,
    /// Each tool of each server.
    Tool,
}

impl Per {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Principal, Self::Key, Self::Server, Self::Tool];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Key => "key",
            Self::Server => "server",
            Self::Tool => "tool",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|per| per.as_str() == word)
    }
}

/// A class of methods. Handshakes, pings, notifications and answers are in none: only a limit that names no class counts
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// What does or reads something.
    Calls,
    /// Lists.
    Lists,
    /// Opens a stream to listen on.
    Listens,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Calls, Self::Lists, Self::Listens];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Lists => "lists",
            Self::Listens => "listens",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }
}

/// What an operator writes. Unknown fields of a stored one are passed over: each narrows what the limit is about, and
/// without it the limit is about more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSpec {
    /// A DNS label, unique in the tenant. Those who are limited are told it.
    pub name: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What is limited.
    pub kind: LimitKind,
    /// How many.
    pub amount: u64,
    /// Seconds, of a rate or quota.
    #[serde(default)]
    pub window_seconds: u64,
    /// What is counted apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per: Vec<Per>,
    /// Whom it is about.
    #[serde(default)]
    pub principals: Who,
    /// Names of servers, or patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Names of tools, or patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// Classes of methods; none: every message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<Class>,
}

/// A limit of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// What the operator wrote.
    pub spec: LimitSpec,
}

impl LimitSpec {
    /// Everything that is wrong with it, field by field; empty when it is sound.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, reason: String| problems.push(FieldError::new(field, reason));
        if !is_dns_label(&self.name) {
            wrong("name".into(), "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens".into());
        }
        if self.description.chars().count() > 1000 || self.description.contains('\0') {
            wrong("description".into(), "must have at most 1000 characters and no NUL".into());
        }
        if !(1..=AMOUNT_MOST).contains(&self.amount) {
            wrong("amount".into(), format!("must be 1 to {AMOUNT_MOST}; to forbid something write a rule"));
        }
        match (self.kind.has_window(), self.window_seconds) {
            (true, 1..=WINDOW_MOST) | (false, 0) => {}
            (true, _) => wrong("window_seconds".into(), "must be 1 second to 31 days".into()),
            (false, _) => {
                wrong("window_seconds".into(), "must be absent: what is open at once has no window".into());
            }
        }
        for (i, per) in self.per.iter().enumerate() {
            if self.per.iter().take(i).any(|before| before == per) {
                wrong(format!("per[{i}]"), format!("{} is there already", per.as_str()));
            }
        }
        for (i, class) in self.classes.iter().enumerate() {
            if self.classes.iter().take(i).any(|before| before == class) {
                wrong(format!("classes[{i}]"), format!("{} is there already", class.as_str()));
            }
            match (self.kind, class) {
                (LimitKind::Streams, Class::Calls | Class::Lists) => {
                    wrong(format!("classes[{i}]"), "a limit of streams is about listens only".into());
                }
                (LimitKind::Concurrent, Class::Listens) => {
                    let reason = "listens are limited with a limit of streams";
                    wrong(format!("classes[{i}]"), reason.into());
                }
                _ if *class != Class::Calls && self.is_of_tools() => {
                    let reason = "a limit of tools is about calls only";
                    wrong(format!("classes[{i}]"), reason.into());
                }
                _ => {}
            }
        }
        if self.kind == LimitKind::Streams && self.is_of_tools() {
            let field = if self.tools.is_empty() { "per" } else { "tools" };
            wrong(field.into(), "no stream is about a tool".into());
        }
        let text = |name: &str| !name.is_empty() && name.len() <= 320 && !name.chars().any(char::is_control);
        let text: fn(&str) -> bool = text;
        let (names, label) = ("must have 1 to 320 bytes and no control characters", "is not a name");
        let pattern = "must be 1 to 128 letters, digits or any of `_./-*`";
        let Who { roles, groups, names: principals } = &self.principals;
        for (field, list, fits, reason) in [
            ("principals.roles", roles, is_dns_label as fn(&str) -> bool, label),
            ("principals.groups", groups, text, names),
            ("principals.names", principals, text, names),
            ("servers", &self.servers, is_pattern, pattern),
            ("tools", &self.tools, is_pattern, pattern),
        ] {
            if list.len() > MOST {
                wrong(field.into(), format!("must be at most {MOST}"));
            }
            for (i, _) in list.iter().enumerate().filter(|(_, entry)| !fits(entry)) {
                wrong(format!("{field}[{i}]"), reason.into());
            }
        }
        problems
    }

    /// Whether it is about calls of tools, and of nothing else.
    pub fn is_of_tools(&self) -> bool {
        !self.tools.is_empty() || self.per.contains(&Per::Tool)
    }

    /// Whether it is about servers, and of no message that reaches none.
    fn is_of_servers(&self) -> bool {
        !self.servers.is_empty() || self.per.contains(&Per::Server) || self.is_of_tools()
    }

    /// How its window is counted.
    pub fn shape(&self) -> Shape {
        let window = self.window_seconds.max(1).saturating_mul(1_000_000);
        match self.kind {
            LimitKind::Quota => Shape { step: window, slots: 1 },
            _ => Shape { step: window.div_ceil(SLOTS), slots: SLOTS + 1 },
        }
    }
}

/// What a limit is asked about: a message, by those names that nobody can choose for themselves.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Who sends it.
    pub principal: &'a Principal,
    /// The API key that was shown, by its public id.
    pub key: Option<&'a str>,
    /// The server that it reaches; none where the gateway itself answers.
    pub server: Option<(Uuid, &'a str)>,
    /// The tool that is called, by the server's own name.
    pub tool: Option<&'a str>,
    /// The class of its method.
    pub class: Option<Class>,
    /// Somebody waits for its answer.
    pub is_asked: bool,
}

/// A limit, ready to be asked.
#[derive(Debug)]
pub struct CompiledLimit {
    /// The limit.
    pub limit: Limit,
    /// How its window is counted.
    pub shape: Shape,
    /// How answers name it: an item of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    pub policy: String,
    servers: Vec<String>,
    tools: Vec<String>,
}

impl CompiledLimit {
    /// Compiles a limit. The error says what cannot be read.
    pub fn compile(limit: Limit) -> Result<Self, String> {
        if let Some(problem) = limit.spec.problems().into_iter().next() {
            return Err(problem.to_string());
        }
        let spec = &limit.spec;
        let policy = match spec.kind {
            LimitKind::Rate | LimitKind::Quota => {
                format!("\"{}\";q={};w={}", spec.name, spec.amount, spec.window_seconds)
            }
            LimitKind::Concurrent | LimitKind::Streams => {
                format!("\"{}\";q={};qu=\"concurrent-requests\"", spec.name, spec.amount)
            }
        };
        // A server that does not care for case would be called past a limit that does.
        let lower = |list: &[String]| list.iter().map(|entry| entry.to_ascii_lowercase()).collect();
        let (servers, tools) = (lower(&spec.servers), lower(&spec.tools));
        Ok(Self { shape: spec.shape(), policy, servers, tools, limit })
    }

    /// Whether a message counts. What the index has looked at already is looked at again: it is little.
    fn covers(&self, about: &About<'_>, tool: Option<&str>) -> bool {
        let spec = &self.limit.spec;
        let in_kind = match spec.kind {
            LimitKind::Rate | LimitKind::Quota => true,
            LimitKind::Concurrent => about.is_asked && about.class != Some(Class::Listens),
            LimitKind::Streams => about.class == Some(Class::Listens),
        };
        let in_class =
            spec.classes.is_empty() || about.class.is_some_and(|class| spec.classes.contains(&class));
        let in_server = match about.server {
            Some((_, name)) => {
                self.servers.is_empty() || self.servers.iter().any(|pattern| fits(pattern, name))
            }
            None => !spec.is_of_servers(),
        };
        let in_tool = match tool {
            Some(tool) => self.tools.is_empty() || self.tools.iter().any(|pattern| fits(pattern, tool)),
            None => !spec.is_of_tools(),
        };
        in_kind && in_class && in_server && in_tool && is_about(&spec.principals, about.principal)
    }

    /// Under what the message is counted: the limit, and what of the message is counted apart. Two messages have one
    /// name exactly where they are counted together.
    pub fn subject(&self, about: &About<'_>) -> Subject {
        let spec = &self.limit.spec;
        let mut subject = Subject { limit: self.limit.id, ..Subject::default() };
        for per in &spec.per {
            match (per, about.key) {
                (Per::Key, Some(key)) => subject.key = Some(key.to_owned()),
                (Per::Principal, _) | (Per::Key, None) => subject.principal = Some(about.principal.id),
                (Per::Server, _) => subject.server = about.server.map(|(id, _)| id),
                (Per::Tool, _) => {
                    subject.server = about.server.map(|(id, _)| id);
                    // Names that differ only far behind are counted together: nobody shall fill our memory with them.
                    let short = |tool: &str| tool.chars().take(NAME_MOST).collect::<String>();
                    subject.tool = about.tool.map(|tool| short(tool).to_ascii_lowercase());
                }
            }
        }
        subject
    }
}

fn is_about(who: &Who, principal: &Principal) -> bool {
    let everybody = who.roles.is_empty() && who.groups.is_empty() && who.names.is_empty();
    everybody
        || who.names.contains(&principal.name)
        || principal.roles.iter().any(|role| who.roles.contains(role))
        || principal.groups.iter().any(|group| who.groups.contains(group))
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Subject {
    /// The limit.
    pub limit: Uuid,
    /// The principal that is counted apart.
    pub principal: Option<Uuid>,
    /// The API key that is counted apart.
    pub key: Option<String>,
    /// The server that is counted apart.
    pub server: Option<Uuid>,
    /// The tool that is counted apart.
    pub tool: Option<String>,
}

/// The limits of one tenant, so indexed that of all of them only those are looked at that can be about a message.
#[derive(Debug, Default)]
pub struct Limits {
    /// By the names of the principals that they are about.
    by_principal: HashMap<String, Vec<Arc<CompiledLimit>>>,
    /// By the names of the servers that they are about.
    by_server: HashMap<String, Vec<Arc<CompiledLimit>>>,
    others: Vec<Arc<CompiledLimit>>,
}

impl Limits {
    /// Indexes the limits of a tenant.
    pub fn new(mut limits: Vec<Arc<CompiledLimit>>) -> Self {
        // Always in one order, so that two proxies name the same limit where several refuse.
        limits.sort_unstable_by(|one, other| one.limit.spec.name.cmp(&other.limit.spec.name));
        let mut index = Self::default();
        for limit in limits {
            let Who { roles, groups, names } = &limit.limit.spec.principals;
            let of_names = roles.is_empty() && groups.is_empty() && !names.is_empty();
            let of_servers =
                !limit.servers.is_empty() && limit.servers.iter().all(|pattern| !pattern.contains('*'));
            let (map, mut keys) = match (of_names, of_servers) {
                (true, _) => (&mut index.by_principal, names.clone()),
                (false, true) => (&mut index.by_server, limit.servers.clone()),
                (false, false) => {
                    index.others.push(limit);
                    continue;
                }
            };
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                map.entry(key).or_default().push(Arc::clone(&limit));
            }
        }
        index
    }

    /// The limits that a message counts against.
    pub fn covering<'a>(&'a self, about: &'a About<'a>) -> impl Iterator<Item = &'a Arc<CompiledLimit>> {
        let tool = about.tool.map(str::to_ascii_lowercase);
        let of_principal = self.by_principal.get(&about.principal.name).into_iter().flatten();
        let of_server = about.server.and_then(|(_, name)| self.by_server.get(name)).into_iter().flatten();
        let candidates = of_principal.chain(of_server).chain(&self.others);
        candidates.filter(move |limit| limit.covers(about, tool.as_deref()))
    }
}

/// How a window is counted: in slots of some microseconds, of which the latest so many count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Microseconds of a slot.
    pub step: u64,
    /// How many slots count, the present one included.
    pub slots: u64,
}

impl Shape {
    /// The length of what counts, in microseconds.
    pub fn length(self) -> u64 {
        self.step.saturating_mul(self.slots)
    }
}

/// What was spent of one limit by one subject: slot by slot, as many as are not empty. Time is in microseconds and never
/// goes back; where it seems to, what is newest counts as of now.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    slots: VecDeque<(u64, u64)>,
    sum: u64,
}

impl Tally {
    /// What counts now.
    pub fn used(&mut self, shape: Shape, now: u64) -> u64 {
        let oldest = (now / shape.step.max(1)).saturating_sub(shape.slots.saturating_sub(1));
        while let Some((slot, spent)) = self.slots.front().copied()
            && slot < oldest
        {
            self.slots.pop_front();
            self.sum = self.sum.saturating_sub(spent);
        }
        self.sum
    }

    /// What counts now in another window, which is no longer than the one that it is kept for.
    pub fn recent(&self, shape: Shape, now: u64) -> u64 {
        let oldest = (now / shape.step.max(1)).saturating_sub(shape.slots.saturating_sub(1));
        self.slots.iter().filter(|(slot, _)| *slot >= oldest).map(|(_, spent)| *spent).sum()
    }

    /// Spends, whatever the limit is.
    pub fn add(&mut self, shape: Shape, now: u64, amount: u64) {
        let slot = now / shape.step.max(1);
        match self.slots.back_mut() {
            Some((last, spent)) if *last >= slot => *spent = spent.saturating_add(amount),
            _ => self.slots.push_back((slot, amount)),
        }
        self.sum = self.sum.saturating_add(amount);
    }

    /// Takes back what was spent last.
    pub fn give_back(&mut self, amount: u64) {
        let mut left = amount;
        while let Some((_, spent)) = self.slots.back_mut() {
            let taken = left.min(*spent);
            *spent -= taken;
            left -= taken;
            self.sum = self.sum.saturating_sub(taken);
            if *spent > 0 || left == 0 {
                return;
            }
            self.slots.pop_back();
        }
    }

    /// Spends one, if that is within the limit; else says in how many microseconds it would be.
    pub fn take(&mut self, shape: Shape, now: u64, most: u64) -> Result<(), u64> {
        if self.used(shape, now) < most {
            self.add(shape, now, 1);
            return Ok(());
        }
        Err(self.wait(shape, now, most))
    }

    /// In how many microseconds one more will be within the limit, if nothing else is spent; 0 when it is now.
    pub fn wait(&mut self, shape: Shape, now: u64, most: u64) -> u64 {
        let mut used = self.used(shape, now);
        for (slot, spent) in &self.slots {
            if used < most {
                break;
            }
            used = used.saturating_sub(*spent);
            if used < most {
                let free = slot.saturating_add(shape.slots).saturating_mul(shape.step.max(1));
                return free.saturating_sub(now).max(1);
            }
        }
        // Nobody may ever where the limit is nothing; a share of a limit is never that.
        if used < most { 0 } else { shape.length() }
    }

    /// In how many microseconds all will be free again, if nothing else is spent.
    pub fn clear_in(&self, shape: Shape, now: u64) -> u64 {
        let last = self.slots.back().map(|(slot, _)| *slot);
        let clear = |slot: u64| slot.saturating_add(shape.slots).saturating_mul(shape.step.max(1));
        last.map_or(0, |slot| clear(slot).saturating_sub(now))
    }

    /// Whether nothing counts any more.
    pub fn is_clear(&mut self, shape: Shape, now: u64) -> bool {
        self.used(shape, now) == 0
    }
}

#[cfg(test)]
mod tests;
