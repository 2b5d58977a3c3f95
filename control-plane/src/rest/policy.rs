//! `/api/v1/policy`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::policy as core;

use super::extract::{Actor, Body, Name, Params, based_on, tagged};
use super::{Door, Problem};
use crate::error::Error;
use crate::policy as service;

const PAGE_MOST: u32 = 500;
/// A trial ends with what there is before the request would be given up.
const TRIAL_TIME: Duration = Duration::from_secs(10);

/// What a rule does where it applies.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Effect {
    /// Permits, unless another rule forbids.
    Allow,
    /// Forbids, whatever else permits.
    Forbid,
}

/// Whether a rule decides.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It is counted and noted where it applies, and decides nothing.
    LogOnly,
}

/// Whom a rule is about: everybody of any of the lists; with all of them empty, everybody.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RuleSubjects {
    /// Names of roles, held in the whole tenant.
    roles: Vec<String>,
    /// Names of groups.
    groups: Vec<String>,
    /// Names of principals: e-mail addresses of users, names of service accounts.
    names: Vec<String>,
}

/// What a rule is about: what fits in every list that is not empty, and has every mark that is given.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RuleItems {
    /// Names of namespaces; the rule is then about their doors only.
    namespaces: Vec<String>,
    /// Names of servers.
    servers: Vec<String>,
    /// Names of tools, or patterns in which `*` stands for any run of characters.
    tools: Vec<String>,
    /// Tools that the registry marks as reading only, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    /// Tools that the registry marks as destructive, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    destructive: Option<bool>,
    /// Tools that the registry marks as idempotent, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotent: Option<bool>,
    /// Tools that the registry marks as reaching beyond their server, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_world: Option<bool>,
}

/// What an operator writes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSpec {
    /// A DNS label, unique in the tenant, never changed.
    name: String,
    /// Free text of at most 1000 characters.
    #[serde(default)]
    description: String,
    effect: Effect,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    principals: RuleSubjects,
    #[serde(default)]
    items: RuleItems,
    /// When it applies: an expression in CEL; empty: always.
    #[serde(default)]
    condition: String,
}

/// A rule to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRule {
    rule: RuleSpec,
    /// Why, for the history.
    #[serde(default)]
    comment: String,
}

/// The whole new rule.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleUpdate {
    rule: RuleSpec,
    /// The rule's version that the change is based on; may stand in `If-Match` instead.
    version: Option<u64>,
    /// Why, for the history.
    #[serde(default)]
    comment: String,
}

/// All rules.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RulesUpdate {
    /// A rule that is not among them is removed.
    rules: Vec<RuleSpec>,
    /// The version of the policy that the change is based on; may stand in `If-Match` instead.
    version: Option<u64>,
    /// Why, for the history.
    #[serde(default)]
    comment: String,
}

/// Where to go back to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    /// The version to go back to; 0 is the empty policy.
    to: u64,
    /// The version that the policy has to be at still; absent where that does not matter.
    version: Option<u64>,
    /// Why, for the history.
    #[serde(default)]
    comment: String,
}

/// A rule in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rule {
    id: Uuid,
    #[serde(flatten)]
    spec: RuleSpec,
    /// The version of the policy in which it changed last; also the `ETag`.
    version: u64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// What may not be meant; only after a change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// Something about a rule that is no error, but may not be meant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Warning {
    rule: String,
    /// The field of the rule.
    field: String,
    message: String,
}

/// A page of rules in the order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RulePage {
    rules: Vec<Rule>,
    /// The version that the policy is at; 0 before the first save.
    version: u64,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

/// How one rule differs between two states of the policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RuleChange {
    name: String,
    /// As it was; absent where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<RuleSpec>,
    /// As it is; absent where it is not any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<RuleSpec>,
}

/// The policy after a change of many rules.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PolicySaved {
    /// The version that it is at; the one before where nothing differs.
    version: u64,
    changes: Vec<RuleChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// One save of the policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PolicyVersion {
    version: u64,
    /// The revision of the configuration at which proxies were told.
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    author_id: Option<Uuid>,
    author: String,
    comment: String,
    /// The version that a rollback went back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<u64>,
    created_at: DateTime<Utc>,
}

/// A page of versions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionPage {
    versions: Vec<PolicyVersion>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

/// One version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionDetail {
    /// Who made it, and why; absent for the empty policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<PolicyVersion>,
    rules: Vec<RuleSpec>,
    /// How it differs from the version that `against` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<RuleChange>>,
}

/// A past call, or an imagined one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    /// The id of a past call in the audit trail, which is the request id that its caller was told.
    audit_id: Option<Uuid>,
    call: Option<ImaginedCall>,
}

/// A call that is only imagined.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImaginedCall {
    /// Name or id of the principal; absent for the caller.
    #[serde(default)]
    principal: String,
    /// Public id of the API key; absent for an access token.
    #[serde(default)]
    api_key: String,
    /// Name of the server.
    server: String,
    /// Name of the namespace at whose door it is made; absent for the server's own.
    #[serde(default)]
    namespace: String,
    /// Name of the tool, by the server's own name; absent for a list of tools.
    #[serde(default)]
    tool: String,
    /// Arguments; absent for none.
    #[schema(value_type = Option<Object>)]
    arguments: Option<Box<serde_json::value::RawValue>>,
    /// The client's era: `http_sse`, `sessions` or `stateless`; absent for the last of them.
    #[serde(default)]
    era: String,
    /// The client's address.
    #[schema(value_type = Option<String>)]
    address: Option<IpAddr>,
    /// When; absent for now.
    time: Option<DateTime<Utc>>,
}

/// What decided about a call.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Explanation {
    /// `allow`, `hide_server`, `hide_tool`, `disabled` or `forbid`; empty where policy was not asked.
    decision: &'static str,
    /// What decided, such as `role:user` or `rule:no-deletes`.
    rule: String,
    /// What was looked at: roles, then rules by name.
    steps: Vec<ExplainStep>,
    /// What was decided on.
    #[schema(value_type = Object)]
    inputs: BTreeMap<&'static str, Value>,
    /// The version of the policy that was asked.
    version: u64,
    /// The revision of the configuration that was asked.
    revision: u64,
    /// What the proxy recorded, of a past call.
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<RecordedDecision>,
    /// What would be decided now, of a past call, where the policy has changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<DecisionNow>,
    /// What to know about this answer.
    notes: Vec<String>,
}

/// What would be decided now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecisionNow {
    decision: &'static str,
    rule: String,
}

/// What a proxy recorded of a call.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RecordedDecision {
    /// `allowed` or `denied`, whatever came after.
    decision: &'static str,
    rule: String,
    reason: String,
    outcome: &'static str,
    revision: u64,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExplainStep {
    rule: String,
    effect: Effect,
    /// Whether it only logs.
    log_only: bool,
    /// `applies`, `does_not_apply`, `elsewhere` or `failed`.
    result: &'static str,
    /// Why its condition failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    condition: String,
}

/// A draft.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DraftPolicy {
    /// The rules, as the whole policy.
    rules: Vec<RuleSpec>,
    /// How many days back: 1 to 90; absent means 7.
    #[serde(default)]
    days: u32,
}

/// Calls that a draft would decide otherwise, of one principal to one tool.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CallDifference {
    principal: String,
    server: String,
    /// Tool, prompt or URI.
    target: String,
    calls: u64,
    first_at: DateTime<Utc>,
    last_at: DateTime<Utc>,
    /// What decides now.
    before: String,
    /// What would decide.
    after: String,
    /// Ids of a few of them in the audit trail.
    examples: Vec<Uuid>,
}

/// How often a rule that only logs would have decided.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoggedRule {
    rule: String,
    calls: u64,
}

/// What a draft would change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DraftTrial {
    /// Calls that were looked at, newest first.
    calls: u64,
    /// Of these, calls that are refused now and would be permitted.
    gained: u64,
    /// Of these, calls that are permitted now and would be refused.
    lost: u64,
    /// Of these, calls that cannot be judged, since their arguments were not captured whole.
    unknown: u64,
    /// Of these, calls of principals, keys or servers that are not there any more.
    gone: u64,
    /// Most calls first.
    gains: Vec<CallDifference>,
    /// Most calls first.
    losses: Vec<CallDifference>,
    /// Most calls first.
    unknowns: Vec<CallDifference>,
    logged: Vec<LoggedRule>,
    /// Whether all calls of these days were looked at; here only as many are as ten seconds are enough for.
    complete: bool,
    /// Whether there were more differences than are told; they are in the counts.
    cut: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

impl From<core::Effect> for Effect {
    fn from(effect: core::Effect) -> Self {
        match effect {
            core::Effect::Allow => Self::Allow,
            core::Effect::Forbid => Self::Forbid,
        }
    }
}

impl From<core::RuleSpec> for RuleSpec {
    fn from(spec: core::RuleSpec) -> Self {
        let core::RuleSpec { name, description, effect, mode, principals, items, condition } = spec;
        let core::What { namespaces, servers, tools, read_only, destructive, idempotent, open_world } = items;
        Self {
            name,
            description,
            effect: effect.into(),
            mode: match mode {
                core::Mode::Enforce => Mode::Enforce,
                core::Mode::LogOnly => Mode::LogOnly,
            },
            principals: RuleSubjects {
                roles: principals.roles,
                groups: principals.groups,
                names: principals.names,
            },
            items: RuleItems { namespaces, servers, tools, read_only, destructive, idempotent, open_world },
            condition,
        }
    }
}

impl From<RuleSpec> for core::RuleSpec {
    fn from(spec: RuleSpec) -> Self {
        let RuleSpec { name, description, effect, mode, principals, items, condition } = spec;
        let RuleItems { namespaces, servers, tools, read_only, destructive, idempotent, open_world } = items;
        Self {
            name,
            description,
            effect: match effect {
                Effect::Allow => core::Effect::Allow,
                Effect::Forbid => core::Effect::Forbid,
            },
            mode: match mode {
                Mode::Enforce => core::Mode::Enforce,
                Mode::LogOnly => core::Mode::LogOnly,
            },
            principals: core::Who {
                roles: principals.roles,
                groups: principals.groups,
                names: principals.names,
            },
            items: core::What { namespaces, servers, tools, read_only, destructive, idempotent, open_world },
            condition,
        }
    }
}

impl From<core::Notice> for Warning {
    fn from(notice: core::Notice) -> Self {
        Self { rule: notice.rule, field: notice.field, message: notice.message }
    }
}

impl From<service::RuleChange> for RuleChange {
    fn from(change: service::RuleChange) -> Self {
        let (before, after) = (change.before.map(RuleSpec::from), change.after.map(RuleSpec::from));
        Self { name: change.name, before, after }
    }
}

impl From<service::PolicyVersion> for PolicyVersion {
    fn from(version: service::PolicyVersion) -> Self {
        Self {
            version: version.version,
            revision: version.revision,
            author_id: version.author,
            author: version.author_name,
            comment: version.comment,
            restored: version.restored,
            created_at: version.created_at,
        }
    }
}

impl From<service::StoredRule> for Rule {
    fn from(stored: service::StoredRule) -> Self {
        Self {
            id: stored.rule.id,
            spec: stored.rule.spec.into(),
            version: stored.version,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            warnings: Vec::new(),
        }
    }
}

impl From<service::Saved> for PolicySaved {
    fn from(saved: service::Saved) -> Self {
        Self {
            version: saved.version,
            changes: saved.changes.into_iter().map(RuleChange::from).collect(),
            warnings: saved.warnings.into_iter().map(Warning::from).collect(),
        }
    }
}

impl From<service::Answer> for Explanation {
    fn from(answer: service::Answer) -> Self {
        let step = |(step, condition): (core::Step, String)| ExplainStep {
            rule: step.what,
            effect: step.effect.into(),
            log_only: !step.enforced,
            result: step.outcome.as_str(),
            detail: match step.outcome {
                core::Outcome::Failed(reason) => reason,
                _ => String::new(),
            },
            condition,
        };
        let recorded = |recorded: service::Recorded| RecordedDecision {
            decision: if recorded.allowed { "allowed" } else { "denied" },
            rule: recorded.rule,
            reason: recorded.reason,
            outcome: recorded.outcome.as_str(),
            revision: recorded.revision,
        };
        Self {
            decision: answer.decision,
            rule: answer.rule,
            steps: answer.steps.into_iter().map(step).collect(),
            inputs: answer.inputs.into_iter().collect(),
            version: answer.version,
            revision: answer.revision,
            recorded: answer.recorded.map(recorded),
            now: answer.now.map(|(decision, rule)| DecisionNow { decision, rule }),
            notes: answer.notes,
        }
    }
}

impl From<service::Difference> for CallDifference {
    fn from(found: service::Difference) -> Self {
        let service::Difference {
            principal,
            server,
            target,
            calls,
            first_at,
            last_at,
            before,
            after,
            examples,
        } = found;
        Self { principal, server, target, calls, first_at, last_at, before, after, examples }
    }
}

impl From<service::Trial> for DraftTrial {
    fn from(trial: service::Trial) -> Self {
        let differences =
            |found: Vec<service::Difference>| found.into_iter().map(CallDifference::from).collect();
        Self {
            calls: trial.calls,
            gained: trial.gained,
            lost: trial.lost,
            unknown: trial.unknown,
            gone: trial.gone,
            gains: differences(trial.gains),
            losses: differences(trial.losses),
            unknowns: differences(trial.unknowns),
            logged: trial.logged.into_iter().map(|(rule, calls)| LoggedRule { rule, calls }).collect(),
            complete: trial.complete,
            cut: trial.cut,
            warnings: trial.warnings.into_iter().map(Warning::from).collect(),
        }
    }
}

/// A rule that is wrong, in the words of the body that it stands in.
fn in_rule(error: Error) -> Error {
    let Error::Invalid(fields) = error else { return error };
    let placed = fields.into_iter().map(|mut problem| {
        if problem.field != "comment" {
            problem.field = format!("rule.{}", problem.field);
        }
        problem
    });
    Error::Invalid(placed.collect())
}

fn saved(status: StatusCode, saved: service::SavedRule) -> Response {
    let version = saved.rule.version;
    let warnings = saved.warnings.into_iter().map(Warning::from).collect();
    tagged((status, Json(Rule { warnings, ..Rule::from(saved.rule) })).into_response(), version)
}

/// Which page of rules.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct PolicyQuery {
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists rules by name, one page at a time.
#[utoipa::path(get, path = "/api/v1/policy/rules", tag = "policy", operation_id = "listRules",
    params(PolicyQuery), responses((status = 200, body = RulePage)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<RulePage>, Problem> {
    let page = params.page(PAGE_MOST);
    params.done()?;
    let found = door.services.policy.list(&ctx, &page).await?;
    let rules = found.page.items.into_iter().map(Rule::from).collect();
    Ok(Json(RulePage { rules, version: found.version, next_cursor: found.page.next }))
}

/// Makes a rule.
///
/// A name that is taken is a 409. A rule that allows needs `gateway:use` in the whole tenant too.
#[utoipa::path(post, path = "/api/v1/policy/rules", tag = "policy", operation_id = "createRule",
    request_body = NewRule, responses((status = 201, body = Rule,
        headers(("ETag" = String, description = "The version, in quotes"), ("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewRule>,
) -> Result<Response, Problem> {
    let rule = door.services.policy.create(&ctx, new.rule.into(), &new.comment).await.map_err(in_rule)?;
    let location = HeaderValue::from_str(&format!("/api/v1/policy/rules/{}", rule.rule.rule.spec.name));
    let mut response = saved(StatusCode::CREATED, rule);
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Replaces all rules.
///
/// The version of the policy that the change is based on stands in the body or in `If-Match`; if it is not the current one,
/// the answer is a 409 and nothing changes.
#[utoipa::path(put, path = "/api/v1/policy/rules", tag = "policy", operation_id = "replaceRules",
    params(("If-Match" = Option<String>, Header, description = "The version, in quotes")),
    request_body = RulesUpdate, responses((status = 200, body = PolicySaved)))]
pub(super) async fn replace(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    headers: HeaderMap,
    Body(update): Body<RulesUpdate>,
) -> Result<Json<PolicySaved>, Problem> {
    let version = based_on(update.version, &headers)?;
    let rules = update.rules.into_iter().map(core::RuleSpec::from).collect();
    Ok(Json(door.services.policy.replace(&ctx, rules, version, &update.comment).await?.into()))
}

/// Shows one rule.
#[utoipa::path(get, path = "/api/v1/policy/rules/{name}", tag = "policy", operation_id = "getRule",
    params(("name" = String, Path, description = "The rule's name")),
    responses((status = 200, body = Rule, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    let rule = door.services.policy.get(&ctx, &name).await?;
    Ok(saved(StatusCode::OK, service::SavedRule { rule, warnings: Vec::new() }))
}

/// Replaces a rule.
///
/// The version that the change is based on stands in the body or in `If-Match`; if it is not the current one, the answer is
/// a 409 and nothing changes.
#[utoipa::path(put, path = "/api/v1/policy/rules/{name}", tag = "policy", operation_id = "updateRule",
    params(("name" = String, Path, description = "The rule's name"),
        ("If-Match" = Option<String>, Header, description = "The version, in quotes")),
    request_body = RuleUpdate,
    responses((status = 200, body = Rule, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn update(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    headers: HeaderMap,
    Body(update): Body<RuleUpdate>,
) -> Result<Response, Problem> {
    if update.rule.name != name {
        return Err(Error::invalid("rule.name", "cannot be changed; it must be the one in the path").into());
    }
    let version = based_on(update.version, &headers)?;
    let policy = &door.services.policy;
    let rule = policy.update(&ctx, update.rule.into(), version, &update.comment).await.map_err(in_rule)?;
    Ok(saved(StatusCode::OK, rule))
}

/// Why a rule is removed.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct RemovalQuery {
    /// Why, for the history.
    comment: Option<String>,
}

/// Removes a rule.
#[utoipa::path(delete, path = "/api/v1/policy/rules/{name}", tag = "policy", operation_id = "deleteRule",
    params(("name" = String, Path, description = "The rule's name"), RemovalQuery),
    responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    mut params: Params,
) -> Result<StatusCode, Problem> {
    let comment = params.one("comment").unwrap_or_default();
    params.done()?;
    door.services.policy.remove(&ctx, &name, &comment).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the versions of the policy, newest first.
#[utoipa::path(get, path = "/api/v1/policy/versions", tag = "policy", operation_id = "listPolicyVersions",
    params(PolicyQuery), responses((status = 200, body = VersionPage)))]
pub(super) async fn versions(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<VersionPage>, Problem> {
    let page = params.page(PAGE_MOST);
    params.done()?;
    let found = door.services.policy.versions(&ctx, &page).await?;
    let versions = found.items.into_iter().map(PolicyVersion::from).collect();
    Ok(Json(VersionPage { versions, next_cursor: found.next }))
}

/// What to compare a version with.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct AgainstQuery {
    /// An earlier version, to show what differs; 0 is the empty policy.
    against: Option<u64>,
}

/// Shows the rules of one version, and what differs from another one.
#[utoipa::path(get, path = "/api/v1/policy/versions/{version}", tag = "policy", operation_id = "getPolicyVersion",
    params(("version" = u64, Path, description = "Which; 0 is the empty policy"), AgainstQuery),
    responses((status = 200, body = VersionDetail)))]
pub(super) async fn version(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(version): Name,
    mut params: Params,
) -> Result<Json<VersionDetail>, Problem> {
    let against: Option<u64> = params.read_as("against", "a version", |text| text.parse().ok());
    params.done()?;
    let number: u64 = version.parse().map_err(|_| Error::invalid("version", "is not a number"))?;
    let policy = &door.services.policy;
    let (noted, rules) = policy.at(&ctx, Some(number)).await?;
    let changes = match against {
        Some(from) => Some(policy.compare(&ctx, from, Some(number)).await?),
        None => None,
    };
    Ok(Json(VersionDetail {
        version: noted.map(PolicyVersion::from),
        rules: rules.into_iter().map(RuleSpec::from).collect(),
        changes: changes.map(|changes| changes.into_iter().map(RuleChange::from).collect()),
    }))
}

/// Makes the rules of an earlier version the rules of a new one.
#[utoipa::path(post, path = "/api/v1/policy/rollback", tag = "policy", operation_id = "rollbackPolicy",
    request_body = Rollback, responses((status = 200, body = PolicySaved)))]
pub(super) async fn rollback(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(back): Body<Rollback>,
) -> Result<Json<PolicySaved>, Problem> {
    let saved = door.services.policy.roll_back(&ctx, back.to, back.version, &back.comment).await?;
    Ok(Json(saved.into()))
}

/// Explains what is decided about a call, past or imagined, and by which rules.
///
/// One's own calls may be explained by anybody; those of others need `access:read`.
#[utoipa::path(post, path = "/api/v1/policy/explain", tag = "policy", operation_id = "explainCall",
    request_body = ExplainQuery, responses((status = 200, body = Explanation)))]
pub(super) async fn explain(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(query): Body<ExplainQuery>,
) -> Result<Json<Explanation>, Problem> {
    let about = match (query.audit_id, query.call) {
        (Some(id), None) => service::About::Past(id),
        (None, Some(call)) => service::About::Imagined(Box::new(service::Imagined {
            principal: call.principal,
            api_key: call.api_key,
            server: call.server,
            namespace: call.namespace,
            tool: call.tool,
            arguments: call.arguments.map(|raw| raw.get().to_owned()).unwrap_or_default(),
            era: call.era,
            address: call.address,
            time: call.time,
        })),
        _ => return Err(Error::invalid("audit_id", "give either this or `call`").into()),
    };
    Ok(Json(door.services.policy.explain(&ctx, about).await?.into()))
}

/// Runs a draft over the audited calls of the last days: who would gain, who would lose.
///
/// Looks at as many calls as ten seconds are enough for, newest first; `wafflectl policy diff` looks at all.
#[utoipa::path(post, path = "/api/v1/policy/diff", tag = "policy", operation_id = "tryRules",
    request_body = DraftPolicy, responses((status = 200, body = DraftTrial)))]
pub(super) async fn diff(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(draft): Body<DraftPolicy>,
) -> Result<Json<DraftTrial>, Problem> {
    let rules = draft.rules.into_iter().map(core::RuleSpec::from).collect();
    let draft = service::Draft { rules, days: draft.days, time: Some(TRIAL_TIME) };
    Ok(Json(door.services.policy.try_rules(&ctx, draft, |_, _| {}).await?.into()))
}
