//! `PolicyService`: decode, one call of the policy, encode. A trial tells of its progress until its result, its caller's
//! patience or its caller's right to it ends.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::policy::{Effect, Notice, Outcome, RuleSpec};
use waffles_core::wire;
use waffles_proto::policy::v1 as pb;
use waffles_proto::policy::v1::policy_service_server::PolicyService;
use waffles_runtime::drain::Drain;
use waffles_runtime::task;

use super::actor;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::page::Page;
use crate::policy::{
    About, Answer, Difference, Draft, Imagined, Policy, PolicyVersion, RuleChange, StoredRule, Trial,
};
use crate::services::Services;

/// Messages that wait for a slow reader. Progress that finds no room is left out; the result waits.
const WAITING: usize = 8;
/// A reader that takes nothing for this long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);
/// A trial takes no longer than this.
const MOST_TIME: Duration = Duration::from_secs(600);

pub(super) struct Rules {
    policy: Policy,
    drain: Drain,
}

impl Rules {
    pub(super) fn new(services: &Services, drain: Drain) -> Self {
        Self { policy: services.policy.clone(), drain }
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PolicyService for Rules {
    type TryRulesStream = ReceiverStream<Result<pb::TryRulesResponse, Status>>;

    async fn create_rule(&self, request: Request<pb::CreateRuleRequest>) -> Answered<pb::CreateRuleResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let saved = async { self.policy.create(&ctx, spec(message.spec)?, &message.comment).await };
        let saved = saved.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let (rule, warnings) = (Some(shown(saved.rule)), saved.warnings.into_iter().map(warning).collect());
        Ok(Response::new(pb::CreateRuleResponse { rule, warnings }))
    }

    async fn list_rules(&self, request: Request<pb::ListRulesRequest>) -> Answered<pb::ListRulesResponse> {
        let ctx = actor(&request)?;
        let pb::ListRulesRequest { page_size, cursor } = request.into_inner();
        let found = self.policy.list(&ctx, &Page { size: page_size, cursor }).await;
        let found = found.map_err(|error| error.into_status(ctx.request_id()))?;
        let rules = found.page.items.into_iter().map(shown).collect();
        let (next_cursor, version) = (found.page.next, found.version);
        Ok(Response::new(pb::ListRulesResponse { rules, next_cursor, version }))
    }

    async fn get_rule(&self, request: Request<pb::GetRuleRequest>) -> Answered<pb::GetRuleResponse> {
        let ctx = actor(&request)?;
        let found = self.policy.get(&ctx, &request.into_inner().name).await;
        let found = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetRuleResponse { rule: Some(shown(found)) }))
    }

    async fn update_rule(&self, request: Request<pb::UpdateRuleRequest>) -> Answered<pb::UpdateRuleResponse> {
        let ctx = actor(&request)?;
        let pb::UpdateRuleRequest { spec: rule, version, comment } = request.into_inner();
        let saved = async { self.policy.update(&ctx, spec(rule)?, version, &comment).await };
        let saved = saved.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let (rule, warnings) = (Some(shown(saved.rule)), saved.warnings.into_iter().map(warning).collect());
        Ok(Response::new(pb::UpdateRuleResponse { rule, warnings }))
    }

    async fn delete_rule(&self, request: Request<pb::DeleteRuleRequest>) -> Answered<pb::DeleteRuleResponse> {
        let ctx = actor(&request)?;
        let pb::DeleteRuleRequest { name, comment } = request.into_inner();
        let removed = self.policy.remove(&ctx, &name, &comment).await;
        let version = removed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteRuleResponse { version }))
    }

    async fn replace_rules(
        &self,
        request: Request<pb::ReplaceRulesRequest>,
    ) -> Answered<pb::ReplaceRulesResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let saved = async {
            self.policy.replace(&ctx, specs(message.rules)?, message.version, &message.comment).await
        };
        let saved = saved.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::ReplaceRulesResponse {
            version: saved.version,
            changes: saved.changes.iter().map(change).collect(),
            warnings: saved.warnings.into_iter().map(warning).collect(),
        }))
    }

    async fn check_rules(&self, request: Request<pb::CheckRulesRequest>) -> Answered<pb::CheckRulesResponse> {
        let ctx = actor(&request)?;
        let checked = async { self.policy.check(&ctx, &specs(request.into_inner().rules)?).await };
        let warnings = checked.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CheckRulesResponse { warnings: warnings.into_iter().map(warning).collect() }))
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Answered<pb::ListVersionsResponse> {
        let ctx = actor(&request)?;
        let pb::ListVersionsRequest { page_size, cursor } = request.into_inner();
        let found = self.policy.versions(&ctx, &Page { size: page_size, cursor }).await;
        let page = found.map_err(|error| error.into_status(ctx.request_id()))?;
        let versions = page.items.into_iter().map(version).collect();
        Ok(Response::new(pb::ListVersionsResponse { versions, next_cursor: page.next }))
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Answered<pb::GetVersionResponse> {
        let ctx = actor(&request)?;
        let wanted = Some(request.into_inner().version).filter(|version| *version != 0);
        let found = self.policy.at(&ctx, wanted).await;
        let (noted, rules) = found.map_err(|error| error.into_status(ctx.request_id()))?;
        let rules = rules.iter().map(wire::rule_spec_to_proto).collect();
        Ok(Response::new(pb::GetVersionResponse { version: noted.map(version), rules }))
    }

    async fn compare_versions(
        &self,
        request: Request<pb::CompareVersionsRequest>,
    ) -> Answered<pb::CompareVersionsResponse> {
        let ctx = actor(&request)?;
        let pb::CompareVersionsRequest { from, to } = request.into_inner();
        let found = self.policy.compare(&ctx, from, Some(to).filter(|to| *to != 0)).await;
        let changes = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CompareVersionsResponse { changes: changes.iter().map(change).collect() }))
    }

    async fn rollback(&self, request: Request<pb::RollbackRequest>) -> Answered<pb::RollbackResponse> {
        let ctx = actor(&request)?;
        let pb::RollbackRequest { to, version, comment } = request.into_inner();
        let at = Some(version).filter(|version| *version != 0);
        let saved = self.policy.roll_back(&ctx, to, at, &comment).await;
        let saved = saved.map_err(|error| error.into_status(ctx.request_id()))?;
        let changes = saved.changes.iter().map(change).collect();
        Ok(Response::new(pb::RollbackResponse { version: saved.version, changes }))
    }

    async fn explain(&self, request: Request<pb::ExplainRequest>) -> Answered<pb::ExplainResponse> {
        let ctx = actor(&request)?;
        let explained = async { self.policy.explain(&ctx, about(request.into_inner())?).await };
        let answer = explained.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(explained_to_proto(answer)))
    }

    async fn try_rules(&self, request: Request<pb::TryRulesRequest>) -> Answered<Self::TryRulesStream> {
        let ctx = actor(&request)?;
        let pb::TryRulesRequest { rules, days } = request.into_inner();
        let draft = specs(rules).map(|rules| Draft { rules, days, time: Some(MOST_TIME) });
        let draft = draft.map_err(|error| error.into_status(ctx.request_id()))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (policy, drain) = (self.policy.clone(), self.drain.clone());
        task::spawn("policy-trial", async move {
            tokio::select! {
                () = drain.started() => {}
                () = sender.closed() => {}
                () = run(&policy, &ctx, draft, &sender) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Sender = mpsc::Sender<Result<pb::TryRulesResponse, Status>>;

async fn run(policy: &Policy, ctx: &OpCtx, draft: Draft, sender: &Sender) {
    use pb::try_rules_response::Message;
    let tell = |calls, total| {
        let message = Some(Message::Progress(pb::Progress { calls, total }));
        if sender.try_send(Ok(pb::TryRulesResponse { message })).is_err() {
            tracing::debug!("progress of a trial is left out, its reader is slow");
        }
    };
    let end = match policy.try_rules(ctx, draft, tell).await {
        Ok(found) => Ok(pb::TryRulesResponse { message: Some(Message::Trial(trial(found))) }),
        Err(error) => Err(error.into_status(ctx.request_id())),
    };
    if tokio::time::timeout(PATIENCE, sender.send(end)).await.is_err() {
        tracing::debug!("the result of a trial was not read");
    }
}

fn spec(message: Option<pb::RuleSpec>) -> Result<RuleSpec, Error> {
    let message = message.ok_or_else(|| Error::invalid("spec", "is missing"))?;
    Ok(wire::rule_spec_from_proto(message)?)
}

fn specs(messages: Vec<pb::RuleSpec>) -> Result<Vec<RuleSpec>, Error> {
    let (mut rules, mut problems) = (Vec::with_capacity(messages.len()), Vec::new());
    for (i, message) in messages.into_iter().enumerate() {
        match wire::rule_spec_from_proto(message) {
            Ok(spec) => rules.push(spec),
            Err(found) => {
                let placed = |problem: FieldError| FieldError {
                    field: format!("rules[{i}].{}", problem.field),
                    ..problem
                };
                problems.extend(found.into_iter().map(placed));
            }
        }
    }
    if problems.is_empty() { Ok(rules) } else { Err(Error::Invalid(problems)) }
}

fn about(message: pb::ExplainRequest) -> Result<About, Error> {
    use pb::explain_request::About as Asked;
    match message.about {
        None => Err(Error::invalid("about", "is missing")),
        Some(Asked::AuditId(id)) => {
            id.parse().map(About::Past).map_err(|_| Error::invalid("audit_id", "is not a UUID"))
        }
        Some(Asked::Call(call)) => {
            let address = match call.address.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| Error::invalid("call.address", "is not an address"))?),
            };
            let time = match (call.time, wire::time(call.time)) {
                (Some(_), None) => return Err(Error::invalid("call.time", "is out of range")),
                (_, time) => time,
            };
            Ok(About::Imagined(Box::new(Imagined {
                principal: call.principal,
                api_key: call.api_key,
                server: call.server,
                namespace: call.namespace,
                tool: call.tool,
                arguments: call.arguments,
                era: call.era,
                address,
                time,
            })))
        }
    }
}

fn shown(stored: StoredRule) -> pb::PolicyRule {
    pb::PolicyRule {
        id: stored.rule.id.to_string(),
        spec: Some(wire::rule_spec_to_proto(&stored.rule.spec)),
        version: stored.version,
        created_at: Some(wire::timestamp(stored.created_at)),
        updated_at: Some(wire::timestamp(stored.updated_at)),
    }
}

fn warning(notice: Notice) -> pb::Warning {
    pb::Warning { rule: notice.rule, field: notice.field, message: notice.message }
}

fn version(version: PolicyVersion) -> pb::PolicyVersion {
    pb::PolicyVersion {
        version: version.version,
        revision: version.revision,
        author_id: version.author.map(|id| id.to_string()).unwrap_or_default(),
        author: version.author_name,
        comment: version.comment,
        restored: version.restored.unwrap_or_default(),
        created_at: Some(wire::timestamp(version.created_at)),
    }
}

fn change(change: &RuleChange) -> pb::RuleChange {
    pb::RuleChange {
        name: change.name.clone(),
        before: change.before.as_ref().map(wire::rule_spec_to_proto),
        after: change.after.as_ref().map(wire::rule_spec_to_proto),
    }
}

fn explained_to_proto(answer: Answer) -> pb::ExplainResponse {
    let recorded = answer.recorded.map(|recorded| pb::Recorded {
        decision: if recorded.allowed { "allowed" } else { "denied" }.to_owned(),
        rule: recorded.rule,
        reason: recorded.reason,
        outcome: recorded.outcome.as_str().to_owned(),
        revision: recorded.revision,
    });
    let step = |(step, condition): (waffles_core::policy::Step, String)| pb::Step {
        effect: match step.effect {
            Effect::Allow => "allow",
            Effect::Forbid => "forbid",
        }
        .to_owned(),
        log_only: !step.enforced,
        result: step.outcome.as_str().to_owned(),
        detail: match step.outcome {
            Outcome::Failed(reason) => reason,
            _ => String::new(),
        },
        rule: step.what,
        condition,
    };
    pb::ExplainResponse {
        decision: answer.decision.to_owned(),
        rule: answer.rule,
        steps: answer.steps.into_iter().map(step).collect(),
        inputs: answer.inputs.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect(),
        version: answer.version,
        revision: answer.revision,
        recorded,
        now: answer.now.map(|(decision, rule)| format!("{decision} by {rule}")).unwrap_or_default(),
        notes: answer.notes,
    }
}

fn trial(trial: Trial) -> pb::Trial {
    let differences =
        |found: Vec<Difference>| found.into_iter().map(difference).collect::<Vec<pb::Difference>>();
    pb::Trial {
        calls: trial.calls,
        gained: trial.gained,
        lost: trial.lost,
        unknown: trial.unknown,
        gone: trial.gone,
        gains: differences(trial.gains),
        losses: differences(trial.losses),
        unknowns: differences(trial.unknowns),
        logged: trial.logged.into_iter().map(|(rule, calls)| pb::Logged { rule, calls }).collect(),
        complete: trial.complete,
        cut: trial.cut,
        warnings: trial.warnings.into_iter().map(warning).collect(),
    }
}

fn difference(found: Difference) -> pb::Difference {
    let stamp = |time: DateTime<Utc>| Some(wire::timestamp(time));
    pb::Difference {
        principal: found.principal,
        server: found.server,
        target: found.target,
        calls: found.calls,
        first_at: stamp(found.first_at),
        last_at: stamp(found.last_at),
        before: found.before,
        after: found.after,
        examples: found.examples.iter().map(Uuid::to_string).collect(),
    }
}
