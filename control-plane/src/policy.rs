//! The policy of a tenant: its rules, who changed them, why and when. Every save is a version that one can come back to.
//! A save, its place in the revision log and its audit event are one transaction.

mod check;
mod explain;
mod trial;
mod world;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use chrono::Utc;
use serde_json::json;
use tokio::sync::Semaphore;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::{Effect, Notice, Permission, RuleSpec};
use waffles_core::snapshot::{Kind, ResourceKey};

use crate::audit;
use crate::authz::OpCtx;
use crate::discovery::Discovery;
use crate::error::Error;
use crate::page::{Page, Paged};
use crate::store::rules::{self as store, Change};
use crate::store::{Db, Tx, changes};

pub use crate::store::rules::{PolicyVersion, StoredRule};
pub use explain::{About, Answer, Imagined, Recorded};
pub use trial::{Difference, Draft, Trial};

/// Rules of a tenant.
const MOST_RULES: usize = 5000;
const MOST_PER_PAGE: u32 = 500;
/// Bytes of the rules in one answer, roughly: an answer has the bound of one message.
const MOST_PAGE_BYTES: usize = 2 * 1024 * 1024;
const MOST_COMMENT: usize = 1000;
/// Names the lists in cursors.
const RULES: &str = "policy-rules";
const VERSIONS: &str = "policy-versions";
/// Drafts that are tried at the same time; each keeps a core busy for a while.
const TRIALS: usize = 2;

/// The policy.
#[derive(Debug, Clone)]
pub struct Policy {
    db: Db,
    discovery: Discovery,
    trials: Arc<Semaphore>,
}

/// A rule as it was saved, and what may not be meant with it.
#[derive(Debug, Clone)]
pub struct SavedRule {
    /// The rule.
    pub rule: StoredRule,
    /// What may not be meant.
    pub warnings: Vec<Notice>,
}

/// How one rule differs between two states of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleChange {
    /// The rule's name.
    pub name: String,
    /// As it was.
    pub before: Option<RuleSpec>,
    /// As it is.
    pub after: Option<RuleSpec>,
}

/// The policy after all its rules were replaced.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The version that it is at; the one before where nothing differs.
    pub version: u64,
    /// What changed.
    pub changes: Vec<RuleChange>,
    /// What may not be meant.
    pub warnings: Vec<Notice>,
}

/// A page of rules.
#[derive(Debug, Clone)]
pub struct RulePage {
    /// The rules, in the order of their names.
    pub page: Paged<StoredRule>,
    /// The version that the policy is at.
    pub version: u64,
}

impl Policy {
    /// On a database.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        Self { db, discovery, trials: Arc::new(Semaphore::new(TRIALS)) }
    }

    /// Makes a rule.
    pub async fn create(&self, ctx: &OpCtx, spec: RuleSpec, comment: &str) -> Result<SavedRule, Error> {
        let save = self.begin(ctx, comment).await?;
        if save.rules.contains_key(&spec.name) {
            return Err(Error::Conflict(format!("there is a rule {} already", clean(&spec.name, 64))));
        }
        self.put(ctx, save, spec, "policy.create").await
    }

    /// Replaces a rule that is still at the version given.
    pub async fn update(
        &self,
        ctx: &OpCtx,
        spec: RuleSpec,
        version: u64,
        comment: &str,
    ) -> Result<SavedRule, Error> {
        let save = self.begin(ctx, comment).await?;
        let before = save.rules.get(&spec.name).ok_or_else(|| missing(&spec.name))?;
        if before.version != version {
            return Err(Error::Stale { current: before.version });
        }
        self.put(ctx, save, spec, "policy.update").await
    }

    /// Removes a rule. Gives the version that the policy is at then.
    pub async fn remove(&self, ctx: &OpCtx, name: &str, comment: &str) -> Result<u64, Error> {
        let save = self.begin(ctx, comment).await?;
        let before = save.rules.get(name).ok_or_else(|| missing(name))?;
        let change =
            RuleChange { name: name.to_owned(), before: Some(before.rule.spec.clone()), after: None };
        self.finish(ctx, save, &[change], "policy.remove", None).await
    }

    /// Makes these all the rules there are, if the policy is still at the version given.
    pub async fn replace(
        &self,
        ctx: &OpCtx,
        rules: Vec<RuleSpec>,
        version: u64,
        comment: &str,
    ) -> Result<Saved, Error> {
        let save = self.begin(ctx, comment).await?;
        if save.version != version {
            return Err(Error::Stale { current: save.version });
        }
        let before: BTreeMap<&str, &RuleSpec> =
            save.rules.iter().map(|(name, stored)| (name.as_str(), &stored.rule.spec)).collect();
        let is_new = |spec: &RuleSpec| before.get(spec.name.as_str()).is_none_or(|before| **before != *spec);
        let new: HashSet<String> =
            rules.iter().filter(|spec| is_new(spec)).map(|spec| spec.name.clone()).collect();
        limit(rules.len())?;
        let warnings = self.checked(ctx, &rules, |spec| new.contains(&spec.name)).await?;
        let changes = difference(before, rules.iter().map(|spec| (spec.name.as_str(), spec)).collect());
        let version = self.finish(ctx, save, &changes, "policy.replace", None).await?;
        Ok(Saved { version, changes, warnings })
    }

    /// Goes back to the rules of an earlier version, as a new one. `at` is the version that the policy has to be at still;
    /// none where that does not matter.
    pub async fn roll_back(
        &self,
        ctx: &OpCtx,
        to: u64,
        at: Option<u64>,
        comment: &str,
    ) -> Result<Saved, Error> {
        let mut save = self.begin(ctx, comment).await?;
        if let Some(at) = at
            && at != save.version
        {
            return Err(Error::Stale { current: save.version });
        }
        let target = rules_at(&mut save.tx, ctx.tenant(), to, save.version).await?;
        let changes = difference(
            save.rules.iter().map(|(name, stored)| (name.as_str(), &stored.rule.spec)).collect(),
            target.iter().map(|spec| (spec.name.as_str(), spec)).collect(),
        );
        // A rule that was right then may be of no use now, but it never permits more than it did: it is not checked again
        // against tools, so that a way back is always there.
        let version = self.finish(ctx, save, &changes, "policy.rollback", Some(to)).await?;
        Ok(Saved { version, changes, warnings: Vec::new() })
    }

    /// Rules of the actor's tenant by name.
    pub async fn list(&self, ctx: &OpCtx, page: &Page) -> Result<RulePage, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let after: Option<String> = page.after(RULES)?;
        let db = self.db.of(ctx.tenant());
        let found = store::list(&db, ctx.tenant(), after.as_deref(), limit + 1).await?;
        let limit = limit.min(fitting(&found));
        let page = Paged::cut(found, limit, RULES, |stored| stored.rule.spec.name.clone());
        Ok(RulePage { page, version: self.version(ctx).await? })
    }

    /// One rule of the actor's tenant.
    pub async fn get(&self, ctx: &OpCtx, name: &str) -> Result<StoredRule, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let found = store::get(&self.db.of(ctx.tenant()), ctx.tenant(), name).await?;
        found.ok_or_else(|| missing(name))
    }

    /// The versions of the actor's policy, newest first.
    pub async fn versions(&self, ctx: &OpCtx, page: &Page) -> Result<Paged<PolicyVersion>, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let before: Option<u64> = page.after(VERSIONS)?;
        let found = store::versions(&self.db.of(ctx.tenant()), ctx.tenant(), before, limit + 1).await?;
        Ok(Paged::cut(found, limit, VERSIONS, |version| version.version))
    }

    /// The rules of one version, and who made it; none: of the latest. No one made the empty policy.
    pub async fn at(
        &self,
        ctx: &OpCtx,
        version: Option<u64>,
    ) -> Result<(Option<PolicyVersion>, Vec<RuleSpec>), Error> {
        ctx.require(Permission::PoliciesRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        let current = store::current(&mut tx, ctx.tenant()).await?;
        let version = version.unwrap_or(current);
        let rules = rules_at(&mut tx, ctx.tenant(), version, current).await?;
        Ok((store::version(&mut tx, ctx.tenant(), version).await?, rules))
    }

    /// What differs between two versions; `to` is none for the latest.
    pub async fn compare(&self, ctx: &OpCtx, from: u64, to: Option<u64>) -> Result<Vec<RuleChange>, Error> {
        ctx.require(Permission::PoliciesRead)?;
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        let current = store::current(&mut tx, ctx.tenant()).await?;
        let from = rules_at(&mut tx, ctx.tenant(), from, current).await?;
        let to = rules_at(&mut tx, ctx.tenant(), to.unwrap_or(current), current).await?;
        let by_name = |rules: &'_ [RuleSpec]| -> Vec<(String, RuleSpec)> {
            rules.iter().map(|spec| (spec.name.clone(), spec.clone())).collect()
        };
        let (from, to) = (by_name(&from), by_name(&to));
        Ok(difference(
            from.iter().map(|(name, spec)| (name.as_str(), spec)).collect(),
            to.iter().map(|(name, spec)| (name.as_str(), spec)).collect(),
        ))
    }

    /// Checks rules as `replace` would, and saves nothing.
    pub async fn check(&self, ctx: &OpCtx, rules: &[RuleSpec]) -> Result<Vec<Notice>, Error> {
        ctx.require(Permission::PoliciesRead)?;
        limit(rules.len())?;
        self.checked(ctx, rules, |_| true).await
    }

    async fn version(&self, ctx: &OpCtx) -> Result<u64, Error> {
        let mut tx = self.db.of(ctx.tenant()).begin_read().await?;
        Ok(store::current(&mut tx, ctx.tenant()).await?)
    }

    /// The beginning of every change: the right to it, and the policy as it is, held until the end.
    async fn begin(&self, ctx: &OpCtx, comment: &str) -> Result<Save, Error> {
        ctx.require(Permission::PoliciesWrite)?;
        ctx.require_change()?;
        if comment.chars().count() > MOST_COMMENT || comment.contains('\0') {
            let reason = format!("must have at most {MOST_COMMENT} characters and no NUL");
            return Err(Error::invalid("comment", reason));
        }
        let mut tx = self.db.of(ctx.tenant()).begin().await?;
        store::lock(&mut tx, ctx.tenant()).await?;
        let version = store::current(&mut tx, ctx.tenant()).await?;
        let rules = store::all(&mut tx, ctx.tenant()).await?;
        let rules = rules.into_iter().map(|stored| (stored.rule.spec.name.clone(), stored)).collect();
        Ok(Save { tx, version, rules, comment: comment.to_owned() })
    }

    async fn put(&self, ctx: &OpCtx, save: Save, spec: RuleSpec, action: &str) -> Result<SavedRule, Error> {
        let name = spec.name.clone();
        let before = save.rules.get(&name).cloned();
        limit(save.rules.len() + usize::from(before.is_none()))?;
        let mut all: Vec<RuleSpec> = save
            .rules
            .values()
            .filter(|stored| stored.rule.spec.name != name)
            .map(|s| s.rule.spec.clone())
            .collect();
        all.insert(0, spec.clone());
        let warnings = self.checked(ctx, &all, |one| one.name == name).await.map_err(of_one)?;
        let change = RuleChange {
            name: name.clone(),
            before: before.map(|stored| stored.rule.spec),
            after: Some(spec),
        };
        let changes: Vec<_> =
            Some(change).filter(|change| change.before != change.after).into_iter().collect();
        self.finish(ctx, save, &changes, action, None).await?;
        let rule = store::get(&self.db.of(ctx.tenant()), ctx.tenant(), &name).await?;
        Ok(SavedRule { rule: rule.ok_or_else(|| missing(&name))?, warnings })
    }

    /// The end of every change: the rules, the history, the revision log, the audit event, the commit, and proxies hear of
    /// it. Gives the version; nothing is written where nothing differs.
    async fn finish(
        &self,
        ctx: &OpCtx,
        mut save: Save,
        differences: &[RuleChange],
        action: &str,
        restored: Option<u64>,
    ) -> Result<u64, Error> {
        may_allow(ctx, differences)?;
        if differences.is_empty() {
            return Ok(save.version);
        }
        let (now, version) = (micros(Utc::now()), save.version.saturating_add(1));
        let former: HashMap<String, Uuid> =
            store::former_ids(&mut save.tx, ctx.tenant()).await?.into_iter().collect();
        let rows: Vec<Change> = differences
            .iter()
            .map(|change| Change {
                id: former.get(&change.name).copied().unwrap_or_else(Uuid::now_v7),
                name: change.name.clone(),
                spec: change.after.clone(),
            })
            .collect();
        store::write(&mut save.tx, ctx.tenant(), version, &rows, now).await?;
        let detail = json!({
            "version": version, "comment": save.comment, "restored": restored,
            "rules": differences.iter().take(100).map(what_changed).collect::<Vec<_>>(), "changes": differences.len(),
        });
        let resource = match differences {
            [one] => format!("rule/{}", one.name),
            _ => "policy".to_owned(),
        };
        audit::note(&mut save.tx, ctx, action, &resource, detail).await?;
        let keys: Vec<(ResourceKey, bool)> = rows
            .iter()
            .map(|row| (ResourceKey::new(Kind::Rule, row.id.to_string()), row.spec.is_none()))
            .collect();
        let revision = changes::append_all(&mut save.tx, &keys).await?;
        let principal = ctx.principal();
        let noted = PolicyVersion {
            version,
            revision,
            author: (!principal.id.is_nil()).then_some(principal.id),
            author_name: clean(&principal.name, 320),
            comment: save.comment,
            restored,
            created_at: now,
        };
        store::note(&mut save.tx, ctx.tenant(), &noted).await?;
        save.tx.commit().await?;
        self.discovery.poke();
        Ok(version)
    }
}

/// A change that has begun.
struct Save {
    tx: Tx,
    /// The version that the policy is at.
    version: u64,
    rules: BTreeMap<String, StoredRule>,
    comment: String,
}

/// Nobody grants what they do not hold: a rule that allows can only be written by who may use the gateway everywhere in the
/// tenant. To take one away, or to forbid, needs no more than the right to write rules.
fn may_allow(ctx: &OpCtx, changes: &[RuleChange]) -> Result<(), Error> {
    let allows = |change: &RuleChange| change.after.as_ref().is_some_and(|spec| spec.effect == Effect::Allow);
    if changes.iter().any(allows) { ctx.require(Permission::GatewayUse) } else { Ok(()) }
}

async fn rules_at(tx: &mut Tx, tenant: &str, version: u64, current: u64) -> Result<Vec<RuleSpec>, Error> {
    if version > current {
        return Err(Error::NotFound(format!("version {version} of the policy")));
    }
    let rules = store::at(tx, tenant, version).await?;
    Ok(rules.into_iter().filter_map(|change| change.spec).collect())
}

/// What differs between two states, in the order of the names.
fn difference(before: BTreeMap<&str, &RuleSpec>, after: BTreeMap<&str, &RuleSpec>) -> Vec<RuleChange> {
    let names: std::collections::BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let change = |name: &str| RuleChange {
        name: name.to_owned(),
        before: before.get(name).map(|spec| (*spec).clone()),
        after: after.get(name).map(|spec| (*spec).clone()),
    };
    names.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

/// What the audit says of a change of a rule: the whole of it, since what it permitted is what people look for later.
fn what_changed(change: &RuleChange) -> serde_json::Value {
    json!({ "name": change.name, "before": change.before, "after": change.after })
}

fn limit(count: usize) -> Result<(), Error> {
    if count <= MOST_RULES {
        Ok(())
    } else {
        Err(Error::invalid("rules", format!("must be at most {MOST_RULES}")))
    }
}

/// How many of these fit in one answer: one at the least.
fn fitting(rules: &[StoredRule]) -> u32 {
    let heavier = rules.iter().scan(0, |sum: &mut usize, stored| {
        *sum += weight(&stored.rule.spec);
        Some(*sum)
    });
    let count = heavier.take_while(|sum| *sum <= MOST_PAGE_BYTES).count().max(1);
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn weight(spec: &RuleSpec) -> usize {
    let (who, what) = (&spec.principals, &spec.items);
    let lists = [&who.roles, &who.groups, &who.names, &what.namespaces, &what.servers, &what.tools];
    let names: usize = lists.into_iter().flatten().map(|name| name.len() + 8).sum();
    names + 4 * spec.description.len() + spec.condition.len() + 512
}

/// The fields of the one rule that is saved, in the words of its own form.
fn of_one(error: Error) -> Error {
    let Error::Invalid(fields) = error else { return error };
    let renamed = fields.into_iter().map(|problem| FieldError {
        field: problem.field.strip_prefix("rules[0].").unwrap_or(&problem.field).to_owned(),
        ..problem
    });
    Error::Invalid(renamed.collect())
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("rule {}", clean(name, 64)))
}
