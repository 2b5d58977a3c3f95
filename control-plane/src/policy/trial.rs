//! What a draft would change: the audited calls of the last days under the rules of now and under those of the draft, newest
//! first, page by page. What was decided is kept for each distinct kind of call, so that only conditions which look at
//! arguments, times or addresses are asked for every call; and memory has a bound, whatever the trail holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::audit::clean;
use waffles_core::policy::{
    Access, Args, Condition, Looks, Mode, Notice, Permission, Policy as Rules, RuleSpec, Verdict, about,
    decide,
};

use super::world::{Parties, World, as_args, captured, compiled, era_of, namespace_of, reach};
use super::{Policy, limit};
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::audit::{self, CallRow};
use crate::store::rules as store;

/// Calls a page.
const PAGE: u32 = 2000;
/// Calls between two looks at whether someone else wants the processor.
const SLICE: usize = 200;
/// Kinds of calls whose decision is kept.
const MOST_KINDS: usize = 100_000;
/// Differences that are kept apart, of each sort.
const MOST_APART: usize = 5000;
/// Differences that are told, of each sort.
const MOST_TOLD: usize = 1000;
const EXAMPLES: usize = 3;
const DAYS: u32 = 7;
const MOST_DAYS: u32 = 90;

/// A draft, and how much of the trail it is tried on.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The rules, as the whole policy.
    pub rules: Vec<RuleSpec>,
    /// How many days back; 0 means 7.
    pub days: u32,
    /// When to end with what there is; none: when all is done.
    pub time: Option<Duration>,
}

/// Calls that a draft decides otherwise, or cannot be judged about, of one principal to one tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the principal.
    pub principal: String,
    /// Name of the server.
    pub server: String,
    /// Name of the tool, or what the call was about.
    pub target: String,
    /// How many calls.
    pub calls: u64,
    /// The first of them.
    pub first_at: DateTime<Utc>,
    /// The last of them.
    pub last_at: DateTime<Utc>,
    /// What decides now about the latest of them.
    pub before: String,
    /// What would decide.
    pub after: String,
    /// A few of them.
    pub examples: Vec<Uuid>,
}

/// What a draft would change.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// Calls that were looked at.
    pub calls: u64,
    /// Of these, calls that are refused now and would be permitted.
    pub gained: u64,
    /// Of these, calls that are permitted now and would be refused.
    pub lost: u64,
    /// Of these, calls that cannot be judged, since their arguments were not captured whole.
    pub unknown: u64,
    /// Of these, calls of principals, keys or servers that are not there any more.
    pub gone: u64,
    /// Who would gain, most calls first.
    pub gains: Vec<Difference>,
    /// Who would lose, most calls first.
    pub losses: Vec<Difference>,
    /// Whose calls cannot be judged, most calls first.
    pub unknowns: Vec<Difference>,
    /// Rules of the draft that only log, and how many calls each would have decided.
    pub logged: Vec<(String, u64)>,
    /// Whether all calls of these days were looked at.
    pub complete: bool,
    /// Whether there were more differences than are told.
    pub cut: bool,
    /// What may not be meant with the draft.
    pub warnings: Vec<Notice>,
}

impl Policy {
    /// Tries a draft on the audited calls of the last days. `progress` hears how many calls were looked at, and of how many.
    pub async fn try_rules(
        &self,
        ctx: &OpCtx,
        draft: Draft,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<Trial, Error> {
        ctx.require(Permission::PoliciesRead)?;
        limit(draft.rules.len())?;
        let days = if draft.days == 0 { DAYS } else { draft.days };
        if days > MOST_DAYS {
            return Err(Error::invalid("days", format!("must be 1 to {MOST_DAYS}")));
        }
        let Ok(_turn) = self.trials.try_acquire() else {
            return Err(Error::Throttled { retry_after: Duration::from_secs(10) });
        };
        let warnings = self.checked(ctx, &draft.rules, |_| true).await?;
        let db = self.db.of(ctx.tenant());
        let mut tx = db.begin_read().await?;
        let current = store::all(&mut tx, ctx.tenant()).await?;
        drop(tx);
        let now =
            compiled(ctx.tenant(), current.into_iter().map(|stored| (stored.rule.id, stored.rule.spec)));
        // Ids are of no account here, but of two rules one must not be taken for the other.
        let draft_rules = draft.rules.into_iter().map(|spec| (Uuid::now_v7(), spec));
        let then = compiled(ctx.tenant(), draft_rules);
        let mut run = Run {
            world: World::new(db.clone(), ctx.tenant()),
            now,
            then,
            kinds: HashMap::new(),
            tables: Default::default(),
            logged: HashMap::new(),
            trial: Trial { warnings, ..Trial::default() },
        };
        let since = Utc::now() - TimeDelta::days(i64::from(days));
        let total = audit::count_since(&db, ctx.tenant(), since).await.unwrap_or(0);
        let (started, mut seen) = (Instant::now(), 0_u64);
        let mut before = (Utc::now() + TimeDelta::days(1), Uuid::max());
        progress(0, total);
        loop {
            let page = audit::calls(&db, ctx.tenant(), since, before, PAGE).await?;
            let Some(last) = page.last() else { break };
            before = (last.occurred_at, last.id);
            seen += u64::try_from(page.len()).unwrap_or(0);
            for slice in page.chunks(SLICE) {
                for call in slice {
                    run.look(call).await?;
                }
                tokio::task::yield_now().await;
            }
            progress(seen, total.max(seen));
            if draft.time.is_some_and(|time| started.elapsed() >= time) {
                return Ok(run.finish(false));
            }
        }
        Ok(run.finish(true))
    }
}

/// What makes two calls one kind: the same is decided about them, but for what conditions look at of each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    principal: Uuid,
    key: String,
    server: Uuid,
    namespace: Option<String>,
    action: String,
    target: String,
    era: &'static str,
}

/// What is known of a kind.
#[derive(Clone)]
enum Known {
    /// Somebody or something of it is not there any more.
    Gone,
    /// The same is decided about all of them.
    Decided(Arc<Outcome>),
    /// Conditions look at more than the kind.
    Each(Arc<Each>),
}

/// What the draft changes about a call.
struct Outcome {
    sort: Sort,
    before: String,
    after: String,
    logged: Vec<Arc<str>>,
}

/// Who and what a kind is about, to ask about each of its calls.
struct Each {
    parties: Parties,
    looks: Looks,
    /// The rules about it are the same now and in the draft, so only those that log are of interest.
    same: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Same,
    Gained,
    Lost,
    Unknown,
}

/// Differences by principal, server and target.
#[derive(Default)]
struct Table {
    rows: HashMap<(Uuid, Uuid, String), Difference>,
    cut: bool,
}

/// One run over the trail.
struct Run {
    world: World,
    now: Rules,
    then: Rules,
    kinds: HashMap<Kind, Known>,
    /// Gains, losses, and what cannot be judged.
    tables: [Table; 3],
    logged: HashMap<Arc<str>, u64>,
    trial: Trial,
}

impl Run {
    async fn look(&mut self, call: &CallRow) -> Result<(), Error> {
        let Some((access, of_tool)) = reach(&call.action).filter(|(access, _)| *access != Access::List)
        else {
            return Ok(());
        };
        let (Some(principal), Some(server)) = (call.principal_id, call.server_id) else { return Ok(()) };
        self.trial.calls += 1;
        let kind = Kind {
            principal,
            key: call.api_key_id.clone(),
            server,
            namespace: namespace_of(&call.detail),
            action: call.action.clone(),
            target: if of_tool { call.target.clone() } else { String::new() },
            era: era_of(&call.protocol_version),
        };
        let known = match self.kinds.get(&kind) {
            Some(known) => known.clone(),
            None => {
                let known = self.survey(&kind, call, access, of_tool).await?;
                if self.kinds.len() >= MOST_KINDS {
                    self.kinds.clear();
                }
                self.kinds.insert(kind, known.clone());
                known
            }
        };
        match known {
            Known::Gone => self.trial.gone += 1,
            Known::Decided(outcome) => self.count(call, principal, server, &outcome),
            Known::Each(each) => {
                let outcome = self.judge(&each, call);
                self.count(call, principal, server, &outcome);
            }
        }
        Ok(())
    }

    /// Finds out what can be known of a kind.
    async fn survey(
        &mut self,
        kind: &Kind,
        call: &CallRow,
        access: Access,
        of_tool: bool,
    ) -> Result<Known, Error> {
        let principal = self.world.principal(kind.principal).await?.filter(|principal| principal.active);
        let key = match kind.key.as_str() {
            "" => None,
            id => match self.world.key(id).await?.filter(|key| key.is_current(Utc::now())) {
                Some(key) => Some(key),
                None => return Ok(Known::Gone),
            },
        };
        let server = self.world.server(&call.server_name).await?;
        let server = server.filter(|entry| entry.server.id == kind.server);
        let namespace = match &kind.namespace {
            None => None,
            Some(name) => match self.world.namespace(name).await? {
                Some(namespace) => Some(namespace),
                None => return Ok(Known::Gone),
            },
        };
        let (Some(principal), Some(server)) = (principal, server) else { return Ok(Known::Gone) };
        let tool = of_tool.then(|| kind.target.clone());
        let parties = Parties { principal, key, server, namespace, access, tool, era: kind.era };
        let ask = |rules| parties.question(rules, call.client_ip.parse().ok(), call.occurred_at, Args::Any);
        let (now, then) = (ask(&self.now), ask(&self.then));
        let (rules_now, rules_then) = (about(&now), about(&then));
        let enforced = |rules: &[Arc<waffles_core::policy::CompiledRule>]| -> Vec<RuleSpec> {
            rules
                .iter()
                .map(|rule| rule.rule.spec.clone())
                .filter(|spec| spec.mode == Mode::Enforce)
                .collect()
        };
        let logs = rules_then.iter().any(|rule| rule.rule.spec.mode == Mode::LogOnly);
        let same =
            enforced(&rules_now) == enforced(&rules_then) && decide(&now).decision == decide(&then).decision;
        if same && !logs {
            let outcome =
                Outcome { sort: Sort::Same, before: String::new(), after: String::new(), logged: Vec::new() };
            return Ok(Known::Decided(Arc::new(outcome)));
        }
        let looks =
            rules_now.iter().chain(&rules_then).filter_map(|rule| rule.condition()).map(Condition::looks);
        let looks = looks.fold(Looks::default(), Looks::or);
        let each = Each { parties, looks, same };
        if looks.args || looks.time || looks.address {
            return Ok(Known::Each(Arc::new(each)));
        }
        Ok(Known::Decided(Arc::new(self.judge(&each, call))))
    }

    /// Asks about one call, now and with the draft.
    fn judge(&self, each: &Each, call: &CallRow) -> Outcome {
        let parties = &each.parties;
        let raw = match each.looks.args {
            true => captured(&call.request_payload, parties.server.server.spec.capture),
            false => Some(None),
        };
        let (address, args) = (call.client_ip.parse().ok(), as_args(raw.as_ref()));
        let ask = |rules| decide(&parties.question(rules, address, call.occurred_at, args));
        let (now, then) = (ask(&self.now), ask(&self.then));
        let (before, after) = (now.decision.is_allowed(), then.decision.is_allowed());
        let sort = match (before, after) {
            _ if each.same => Sort::Same,
            // Without the arguments the decision is the best that there may be: when even that is a refusal, it is one.
            (false, false) => Sort::Same,
            _ if raw.is_none() => Sort::Unknown,
            (true, true) => Sort::Same,
            (false, true) => Sort::Gained,
            (true, false) => Sort::Lost,
        };
        let logged = if raw.is_some() { then.noted.clone() } else { Vec::new() };
        Outcome { sort, before: said(&now), after: said(&then), logged }
    }

    fn count(&mut self, call: &CallRow, principal: Uuid, server: Uuid, outcome: &Outcome) {
        for rule in &outcome.logged {
            *self.logged.entry(Arc::clone(rule)).or_default() += 1;
        }
        let table = match outcome.sort {
            Sort::Same => return,
            Sort::Gained => {
                self.trial.gained += 1;
                &mut self.tables[0]
            }
            Sort::Lost => {
                self.trial.lost += 1;
                &mut self.tables[1]
            }
            Sort::Unknown => {
                self.trial.unknown += 1;
                &mut self.tables[2]
            }
        };
        table.add(call, principal, server, outcome);
    }

    fn finish(self, complete: bool) -> Trial {
        let Self { tables: [gains, losses, unknowns], logged, mut trial, .. } = self;
        trial.complete = complete;
        trial.cut =
            [&gains, &losses, &unknowns].iter().any(|table| table.cut || table.rows.len() > MOST_TOLD);
        trial.gains = gains.told();
        trial.losses = losses.told();
        trial.unknowns = unknowns.told();
        let name =
            |(rule, calls): (Arc<str>, u64)| (rule.strip_prefix("rule:").unwrap_or(&rule).to_owned(), calls);
        trial.logged = logged.into_iter().map(name).collect();
        trial.logged.sort();
        trial
    }
}

impl Table {
    fn add(&mut self, call: &CallRow, principal: Uuid, server: Uuid, outcome: &Outcome) {
        let full = self.rows.len() >= MOST_APART;
        let row = match self.rows.entry((principal, server, call.target.clone())) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(_) if full => {
                self.cut = true;
                return;
            }
            Entry::Vacant(place) => place.insert(Difference {
                principal: clean(&call.principal_name, 320),
                server: call.server_name.clone(),
                target: clean(&call.target, 512),
                calls: 0,
                first_at: call.occurred_at,
                last_at: call.occurred_at,
                before: outcome.before.clone(),
                after: outcome.after.clone(),
                examples: Vec::new(),
            }),
        };
        row.calls += 1;
        row.first_at = row.first_at.min(call.occurred_at);
        row.last_at = row.last_at.max(call.occurred_at);
        if row.examples.len() < EXAMPLES {
            row.examples.push(call.id);
        }
    }

    /// Most calls first.
    fn told(self) -> Vec<Difference> {
        let mut rows: Vec<Difference> = self.rows.into_values().collect();
        rows.sort_by(|one, other| {
            let names = |row: &Difference| (row.principal.clone(), row.server.clone(), row.target.clone());
            other.calls.cmp(&one.calls).then_with(|| names(one).cmp(&names(other)))
        });
        rows.truncate(MOST_TOLD);
        rows
    }
}

/// What a verdict came from, with what it says.
fn said(verdict: &Verdict) -> String {
    match verdict.decision.is_allowed() {
        true => format!("allow by {}", verdict.decision.rule()),
        false => format!("{} by {}", super::explain::word(&verdict.decision), verdict.decision.rule()),
    }
}
