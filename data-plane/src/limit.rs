//! How much callers may do: every message is counted against the limits that cover it, by the authenticated principal and
//! the names of the registry, never by anything that a client can choose. Counts are kept here first; only what they
//! cannot decide is asked of the store that proxies share.

mod count;
mod global;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::limit::{About, Class, CompiledLimit, LimitKind, Limits as Covering, Subject};
use waffles_core::snapshot::Snapshot;
use waffles_mcp::Method;
use waffles_proto::audit::v1::LimitUse;

use crate::reject::{Limited, Reject};
use count::{Left, Mode, State, Take};

pub use global::{Counts, Global, Keeper};

/// What is left of limits (draft-ietf-httpapi-ratelimit-headers).
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What limits there are.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Counts that are kept. With more, new callers of a limit are counted together until old ones are forgotten.
const MOST: usize = 100_000;
const SHARDS: usize = 64;
/// How often a message asks the shared store anew when others were faster.
const ROUNDS: usize = 3;
/// Entries of one report.
const MOST_REPORTED: usize = 1000;

/// What a method counts as. Handshakes, pings, notifications and answers are in no class.
pub fn class_of(method: &Method) -> Option<Class> {
    match method {
        Method::SubscriptionsListen => Some(Class::Listens),
        method if method.is_list() => Some(Class::Lists),
        Method::Initialize
        | Method::Initialized
        | Method::Ping
        | Method::ServerDiscover
        | Method::LoggingSetLevel
        | Method::Cancelled
        | Method::Progress
        | Method::LoggingMessage
        | Method::ToolsListChanged
        | Method::PromptsListChanged
        | Method::ResourcesListChanged
        | Method::ResourcesUpdated
        | Method::RootsListChanged
        | Method::SubscriptionsAcknowledged
        | Method::ElicitationCompleted
        | Method::TasksChanged
        | Method::TasksStatus => None,
        // Methods that no revision names may do anything, so they count as calls.
        _ => Some(Class::Calls),
    }
}

/// All counts of this proxy, shared by its threads.
#[derive(Debug)]
pub struct Limits {
    shards: Vec<Mutex<HashMap<Subject, Arc<Counter>>>>,
    hasher: RandomState,
    kept: AtomicUsize,
    clock: Clock,
    global: Option<Global>,
}

/// Microseconds that only go forward, from the calendar's time at the start on, so that periods begin when the calendar's
/// do.
#[derive(Debug, Clone, Copy)]
struct Clock {
    started: Instant,
    at: u64,
}

impl Clock {
    fn new() -> Self {
        let at = u64::try_from(chrono::Utc::now().timestamp_micros()).unwrap_or(0);
        Self { started: Instant::now(), at }
    }

    fn now(&self) -> u64 {
        self.at.saturating_add(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// What one subject of a limit did.
#[derive(Debug)]
pub(crate) struct Counter {
    subject: Subject,
    /// What is open now.
    open: AtomicU64,
    state: Mutex<State>,
}

/// What was spent for a message. What it holds open is given back when it is dropped.
#[derive(Debug, Default)]
pub struct Spent {
    told: Vec<Told>,
    held: Vec<Held>,
}

/// What an answer says of a limit.
#[derive(Debug)]
struct Told {
    limit: Arc<CompiledLimit>,
    left: Left,
}

/// Something open that a limit counts.
#[derive(Debug)]
pub struct Held(Arc<Counter>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spent {
    /// What is held open, to be kept until it is closed.
    pub fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// Tells the client where it stands.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let items = self.told.iter();
        let policies: Vec<&str> = items.clone().map(|told| told.limit.policy.as_str()).collect();
        let states: Vec<String> = items.map(|told| status(&told.limit, told.left)).collect();
        say(headers, &policies.join(", "), &states.join(", "));
    }

    /// Whether there is anything to tell.
    pub fn is_told(&self) -> bool {
        !self.told.is_empty()
    }
}

/// Puts both fields into a head.
pub fn say(headers: &mut HeaderMap, policy: &str, state: &str) {
    for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
}

fn status(limit: &CompiledLimit, left: Left) -> String {
    let name = &limit.limit.spec.name;
    match limit.limit.spec.kind {
        LimitKind::Rate | LimitKind::Quota => {
            format!("\"{name}\";r={};t={}", left.remaining, seconds(left.reset))
        }
        LimitKind::Concurrent | LimitKind::Streams => format!("\"{name}\";r={}", left.remaining),
    }
}

/// Whole seconds, rounded up: who comes earlier is turned away again.
fn seconds(micros: u64) -> u64 {
    micros.div_ceil(1_000_000)
}

/// What a message takes of one limit.
struct Claim {
    limit: Arc<CompiledLimit>,
    counter: Arc<Counter>,
    got: Option<Left>,
    /// What is open by it, closed again also where its client goes away in the middle.
    held: Option<Held>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Limits {
    /// Of a proxy that counts for itself, or with others.
    pub fn new(global: Option<Global>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (hasher, kept) = (RandomState::new(), AtomicUsize::new(0));
        let clock = global.as_ref().map_or_else(Clock::new, |global| global.clock);
        Self { shards, hasher, kept, clock, global }
    }

    /// Spends what a message costs of every limit that covers it, or of none: then the first of them that refuses says so.
    pub async fn spend(&self, covering: &Covering, about: &About<'_>) -> Result<Spent, Reject> {
        let mut claims: Vec<Claim> = Vec::new();
        for limit in covering.covering(about) {
            let counter = self.counter(limit.subject(about));
            claims.push(Claim { limit: Arc::clone(limit), counter, got: None, held: None });
        }
        if claims.is_empty() {
            return Ok(Spent::default());
        }
        let mut open = self.try_all(&mut claims, self.mode())?;
        if !open.is_empty() {
            Box::pin(self.ask_for(&mut claims, &mut open)).await?;
        }
        let mut spent = Spent::default();
        for Claim { limit, got, held, .. } in claims {
            spent.held.extend(held);
            spent.told.push(Told { limit, left: got.unwrap_or_default() });
        }
        Ok(spent)
    }

    fn mode(&self) -> Mode {
        match &self.global {
            None => Mode::Alone,
            Some(global) => global.mode(),
        }
    }

    /// Takes what can be taken here. Gives the places of the claims that only the shared store can decide.
    fn try_all(&self, claims: &mut [Claim], mode: Mode) -> Result<Vec<usize>, Reject> {
        let now = self.clock.now();
        let mut undecided = Vec::new();
        let mut refused = None;
        for (at, claim) in claims.iter_mut().enumerate().filter(|(_, claim)| claim.got.is_none()) {
            match claim.counter.take(&claim.limit, now, mode) {
                Take::Granted(left) => {
                    claim.got = Some(left);
                    let opens = !claim.limit.limit.spec.kind.has_window();
                    claim.held = opens.then(|| Held(Arc::clone(&claim.counter)));
                }
                Take::Ask => undecided.push(at),
                Take::Refused(left) => {
                    refused = Some(reject(&claim.limit, left));
                    break;
                }
            }
        }
        match refused {
            Some(reject) => {
                give_back(claims);
                Err(reject)
            }
            None => Ok(undecided),
        }
    }

    /// Asks the shared store for what is undecided; what it does not answer in time, the share of this proxy decides.
    async fn ask_for(&self, claims: &mut [Claim], undecided: &mut Vec<usize>) -> Result<(), Reject> {
        let Some(global) = &self.global else { return Ok(()) };
        for _ in 0..ROUNDS {
            let asked = undecided.iter().filter_map(|at| claims.get(*at));
            let asked = asked.map(|claim| (Arc::clone(&claim.limit), Arc::clone(&claim.counter))).collect();
            let answered = global.ask(asked).await;
            *undecided = self.try_all(claims, if answered { self.mode() } else { global.share() })?;
            if undecided.is_empty() {
                return Ok(());
            }
        }
        // Others took what was given, again and again: the share of this proxy is small and certain.
        *undecided = self.try_all(claims, global.share())?;
        Ok(())
    }

    fn counter(&self, subject: Subject) -> Arc<Counter> {
        if let Some(found) = self.shard(&subject).and_then(|shard| shard.lock().get(&subject).map(Arc::clone))
        {
            return found;
        }
        let full = self.kept.load(Ordering::Relaxed) >= MOST;
        // Who is one too many is counted with all others that are.
        let subject = if full { Subject { limit: subject.limit, ..Subject::default() } } else { subject };
        let Some(shard) = self.shard(&subject) else { return Arc::new(Counter::new(subject)) };
        let mut shard = shard.lock();
        let counter = shard.entry(subject).or_insert_with_key(|subject| {
            self.kept.fetch_add(1, Ordering::Relaxed);
            Arc::new(Counter::new(subject.clone()))
        });
        Arc::clone(counter)
    }

    fn shard(&self, subject: &Subject) -> Option<&Mutex<HashMap<Subject, Arc<Counter>>>> {
        let hash = self.hasher.hash_one(subject);
        self.shards.get(usize::try_from(hash % SHARDS as u64).unwrap_or(0))
    }

    /// Forgets whom nothing is counted of any more, and what belongs to limits that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let now = self.clock.now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|subject, counter| {
                // One that somebody holds is about to be counted on.
                Arc::strong_count(counter) > 1
                    || counter.open.load(Ordering::Relaxed) > 0
                    || snapshot.limit(&subject.limit).is_some() && !counter.state.lock().is_clear(now)
            });
            self.kept.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    /// How many counts are kept.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Whether the shared store answers; none where there is none.
    pub fn is_shared(&self) -> Option<bool> {
        self.global.as_ref().map(Global::answers)
    }

    /// The part of it that proxies share.
    pub fn global(&self) -> Option<&Global> {
        self.global.as_ref()
    }

    /// How much is used here, for the control plane: the callers that used most of each limit.
    pub fn report(&self, snapshot: &Snapshot) -> Vec<LimitUse> {
        let now = self.clock.now();
        let mut found: HashMap<Uuid, Vec<(u64, Subject)>> = HashMap::new();
        for shard in &self.shards {
            for (subject, counter) in &*shard.lock() {
                let Some(limit) = snapshot.limit(&subject.limit) else { continue };
                let used = match limit.limit.spec.kind.has_window() {
                    true => counter.state.lock().used(limit.shape, now),
                    false => counter.open.load(Ordering::Relaxed),
                };
                if used > 0 {
                    found.entry(subject.limit).or_default().push((used, subject.clone()));
                }
            }
        }
        let each = MOST_REPORTED / found.len().max(1);
        let mut report = Vec::new();
        for (limit, mut uses) in found {
            let Some(tenant) = snapshot.limit(&limit).map(|limit| limit.limit.tenant.clone()) else {
                continue;
            };
            uses.sort_unstable_by(|one, other| other.cmp(one));
            let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
            report.extend(uses.into_iter().take(each.max(1)).map(|(used, subject)| LimitUse {
                limit_id: limit.to_string(),
                tenant: tenant.clone(),
                principal_id: text(subject.principal),
                api_key_id: subject.key.unwrap_or_default(),
                server_id: text(subject.server),
                tool: subject.tool.unwrap_or_default(),
                used,
            }));
        }
        report.truncate(MOST_REPORTED);
        report
    }
}

impl Counter {
    fn new(subject: Subject) -> Self {
        Self { subject, open: AtomicU64::new(0), state: Mutex::default() }
    }

    fn take(&self, limit: &CompiledLimit, now: u64, mode: Mode) -> Take {
        let most = limit.limit.spec.amount;
        let mut state = self.state.lock();
        if limit.limit.spec.kind.has_window() {
            return state.take(limit.shape, now, most, mode);
        }
        let taken = state.enter(now, self.open.load(Ordering::Relaxed), most, mode);
        if matches!(taken, Take::Granted(_)) {
            // Under the lock, which all enter by.
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

/// Gives back what a message took that another limit refuses.
fn give_back(claims: &mut [Claim]) {
    for claim in claims {
        if claim.got.take().is_none() {
            continue;
        }
        if claim.held.take().is_none() {
            claim.counter.state.lock().give_back();
        }
    }
}

fn reject(limit: &CompiledLimit, left: Left) -> Reject {
    let spec = &limit.limit.spec;
    Reject::Limited(Box::new(Limited {
        kind: spec.kind,
        rule: format!("limit:{}", spec.name),
        limit: spec.name.clone(),
        retry_after: Duration::from_secs(seconds(left.wait).max(1)),
        policy: limit.policy.clone(),
        state: status(limit, Left { remaining: 0, ..left }),
    }))
}

#[cfg(test)]
mod tests;
