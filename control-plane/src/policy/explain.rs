//! Why a call is decided as it is: a past one under the rules of its time, an imagined one under those of now. The decision
//! is the one that a proxy makes, by the same evaluator.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;
use waffles_core::audit::{Event, Outcome, clean};
use waffles_core::policy::{
    Access, Decision, Explanation, Permission, Policy as Rules, Question, Step, decide, explain,
};

use super::Policy;
use super::world::{Parties, World, as_args, captured, compiled, era_of, namespace_of, reach};
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::rules as store;
use crate::store::{Tx, audit, changes};

/// The era of an imagined client where nothing else is said.
const ERA: &str = "stateless";
/// Bytes of imagined arguments.
const MOST_ARGUMENTS: usize = 256 * 1024;

/// A call that is only imagined.
#[derive(Debug, Clone, Default)]
pub struct Imagined {
    /// Name or id of the principal; empty for the actor.
    pub principal: String,
    /// Public id of the API key; empty for a token.
    pub api_key: String,
    /// Name of the server.
    pub server: String,
    /// Name of the namespace at whose door it is made; empty for the server's own.
    pub namespace: String,
    /// Name of the tool; empty for a list of tools.
    pub tool: String,
    /// Arguments as JSON; empty for none.
    pub arguments: String,
    /// The client's era: `http_sse`, `sessions` or `stateless`; empty for the last of them.
    pub era: String,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// When; none for now.
    pub time: Option<DateTime<Utc>>,
}

/// What is to be explained.
#[derive(Debug, Clone)]
pub enum About {
    /// A past call, by the id of its audit event.
    Past(Uuid),
    /// An imagined one.
    Imagined(Box<Imagined>),
}

/// What a past call came to, as a proxy recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Whether it was let through, whatever came after.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: String,
    /// Why it was refused or failed.
    pub reason: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The revision that decided.
    pub revision: u64,
}

/// An explanation.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `allow`, `hide_server`, `hide_tool`, `disabled` or `forbid`; empty where policy was not asked.
    pub decision: &'static str,
    /// What decided.
    pub rule: String,
    /// What was looked at, with the condition of each rule.
    pub steps: Vec<(Step, String)>,
    /// What was decided on.
    pub inputs: Vec<(&'static str, Value)>,
    /// The version of the policy that was asked.
    pub version: u64,
    /// The revision of the configuration that was asked.
    pub revision: u64,
    /// What the proxy recorded, of a past call.
    pub recorded: Option<Recorded>,
    /// What would be decided now, of a past call, and by what.
    pub now: Option<(&'static str, String)>,
    /// What to know about this answer.
    pub notes: Vec<String>,
}

/// A call as it is asked about.
struct Call {
    parties: Parties,
    address: Option<IpAddr>,
    time: DateTime<Utc>,
    /// None: they are not known.
    args: Option<Option<Box<RawValue>>>,
}

impl Call {
    fn question<'a>(&'a self, policy: &'a Rules) -> Question<'a> {
        self.parties.question(policy, self.address, self.time, as_args(self.args.as_ref()))
    }

    fn inputs(&self, with_args: bool) -> Vec<(&'static str, Value)> {
        let principal = &self.parties.principal;
        let held: Vec<String> =
            principal.grants.iter().map(|held| format!("{}@{}", held.role, held.scope)).collect();
        let mut inputs = vec![
            ("principal", json!(principal.name)),
            ("principal.kind", json!(principal.kind.as_str())),
            ("principal.roles", json!(principal.roles)),
            ("principal.groups", json!(principal.groups)),
            ("principal.grants", json!(held)),
            ("server", json!(self.parties.server.server.spec.name)),
            ("request.era", json!(self.parties.era)),
            ("request.time", json!(self.time)),
        ];
        if let Some(key) = &self.parties.key {
            inputs.push(("request.key", json!(key.id)));
        }
        if let Some(address) = self.address {
            inputs.push(("request.address", json!(address)));
        }
        if let Some(namespace) = &self.parties.namespace {
            inputs.push(("namespace", json!(namespace.namespace.spec.name)));
        }
        if let Some(tool) = &self.parties.tool {
            let marks = self.parties.server.server.spec.marks_of(tool);
            inputs.push(("tool", json!(tool)));
            for (name, mark) in [
                ("tool.read_only", marks.read_only),
                ("tool.destructive", marks.destructive),
                ("tool.idempotent", marks.idempotent),
                ("tool.open_world", marks.open_world),
            ] {
                inputs.extend(mark.map(|mark| (name, json!(mark))));
            }
        }
        if let (true, Some(Some(args))) = (with_args, &self.args) {
            // As they were captured: to read them would change their numbers.
            inputs.push(("args", serde_json::from_str(args.get()).unwrap_or(Value::Null)));
        }
        inputs
    }
}

impl Policy {
    /// Explains what is decided about a call. One's own calls may be explained by anybody; those of others need
    /// `access:read`. What the actor may not know of does not exist.
    pub async fn explain(&self, ctx: &OpCtx, about: About) -> Result<Answer, Error> {
        match about {
            About::Past(id) => self.explain_past(ctx, id).await,
            About::Imagined(imagined) => self.explain_imagined(ctx, *imagined).await,
        }
    }

    async fn explain_imagined(&self, ctx: &OpCtx, imagined: Imagined) -> Result<Answer, Error> {
        let db = self.db.of(ctx.tenant());
        let mut world = World::new(db.clone(), ctx.tenant());
        let own = [ctx.principal().name.clone(), ctx.principal().id.to_string(), String::new()]
            .contains(&imagined.principal);
        if !own {
            ctx.require(Permission::AccessRead)?;
        }
        let principal = match own {
            true => world.principal(ctx.principal().id).await?,
            false => world.named(&imagined.principal).await?,
        };
        let missing = |what: &str, name: &str| Error::NotFound(format!("{what} {}", clean(name, 320)));
        let principal = principal.ok_or_else(|| missing("principal", &imagined.principal))?;
        let key = match imagined.api_key.as_str() {
            "" => None,
            id => {
                let key = world.key(id).await?.filter(|key| key.owner == principal.id);
                Some(key.ok_or_else(|| missing("API key", id))?)
            }
        };
        let server = world.server(&imagined.server).await?;
        let server = server.ok_or_else(|| missing("server", &imagined.server))?;
        let namespace = match imagined.namespace.as_str() {
            "" => None,
            name => Some(world.namespace(name).await?.ok_or_else(|| missing("namespace", name))?),
        };
        let args = arguments(&imagined.arguments)?;
        let era = match imagined.era.as_str() {
            "" => ERA,
            "http_sse" => "http_sse",
            "sessions" => "sessions",
            "stateless" => "stateless",
            _ => return Err(Error::invalid("era", "must be `http_sse`, `sessions` or `stateless`")),
        };
        let tool = Some(imagined.tool).filter(|tool| !tool.is_empty());
        let access = if tool.is_some() { Access::Call } else { Access::List };
        let call = Call {
            parties: Parties { principal, key, server, namespace, access, tool, era },
            address: imagined.address,
            time: imagined.time.unwrap_or_else(Utc::now),
            args: Some(args),
        };
        let mut tx = db.begin_read().await?;
        let revision = changes::head(&mut tx).await?.revision;
        let version = store::current(&mut tx, ctx.tenant()).await?;
        let rules = rules_of(&mut tx, ctx.tenant(), version).await?;
        drop(tx);
        let explanation = explain(&call.question(&rules));
        let hidden = matches!(explanation.verdict.decision, Decision::HideServer(_));
        if hidden && !ctx.may(Permission::AccessRead) {
            return Err(missing("server", &imagined.server));
        }
        let mut answer = told(ctx, explanation, &rules);
        (answer.version, answer.revision) = (version, revision);
        answer.inputs = call.inputs(true);
        if !call.question(&rules).caller.is_current(call.time) {
            answer.notes.push(
                "the credential is not good at this time or from this address, so nothing is permitted"
                    .into(),
            );
        }
        Ok(answer)
    }

    async fn explain_past(&self, ctx: &OpCtx, id: Uuid) -> Result<Answer, Error> {
        let db = self.db.of(ctx.tenant());
        let missing = || Error::NotFound(format!("call {id}"));
        let filter = audit::EventFilter { id: Some(id), ..audit::EventFilter::default() };
        let event = audit::search(&db, ctx.tenant(), &filter, None, 1).await?.pop().ok_or_else(missing)?;
        let own = event.principal_id == Some(ctx.principal().id);
        if !own && !ctx.may(Permission::AccessRead) {
            return Err(missing());
        }
        if !event.action.starts_with("mcp.") {
            return Err(Error::invalid("audit_id", "is of an administrative act, and not of a call"));
        }
        let mut world = World::new(db.clone(), ctx.tenant());
        let mut notes = Vec::new();
        let call = past_call(&mut world, &event, &mut notes).await?;
        let mut tx = db.begin_read().await?;
        let version = store::version_at(&mut tx, ctx.tenant(), event.revision).await?;
        let current = store::current(&mut tx, ctx.tenant()).await?;
        let then = rules_of(&mut tx, ctx.tenant(), version).await?;
        let latest =
            if current == version { None } else { Some(rules_of(&mut tx, ctx.tenant(), current).await?) };
        drop(tx);
        let recorded = recorded(&event);
        let Some(call) = call else {
            return Ok(Answer {
                decision: "",
                rule: String::new(),
                steps: Vec::new(),
                inputs: Vec::new(),
                version,
                revision: event.revision,
                recorded: Some(recorded),
                now: None,
                notes,
            });
        };
        let explanation = explain(&call.question(&then));
        let mut answer = told(ctx, explanation, &then);
        answer.notes.append(&mut notes);
        answer.notes.push(
            "rules are those of the time of the call; principals, roles, keys and servers those of now"
                .into(),
        );
        if (answer.decision == "allow") != recorded.allowed && event.outcome != Outcome::Invalid {
            answer
                .notes
                .push("the proxy decided otherwise: what is not kept in versions has changed since".into());
        }
        if let Some(latest) = &latest {
            let verdict = decide(&call.question(latest));
            answer.now = Some((word(&verdict.decision), verdict.decision.rule().to_owned()));
        }
        (answer.version, answer.revision) = (version, event.revision);
        answer.inputs = call.inputs(own || ctx.may(Permission::AuditPayloads));
        if answer.decision == "hide_server" && !ctx.may(Permission::AccessRead) {
            // Whether there is such a server is not for everyone to know.
            answer.rule.clear();
            answer.steps.clear();
            answer.now = None;
        }
        answer.recorded = Some(recorded);
        Ok(answer)
    }
}

/// A past call, as far as it can be asked about again; what is missing is said in the notes.
async fn past_call(world: &mut World, event: &Event, notes: &mut Vec<String>) -> Result<Option<Call>, Error> {
    let mut without = |note: String| {
        notes.push(note);
        Ok(None)
    };
    let Some((access, of_tool)) = reach(&event.action) else {
        return without(format!("{} is decided about by what it belongs to", clean(&event.action, 100)));
    };
    let Some(principal) = event.principal_id else {
        return without("nobody was known to ask, so policy was not asked".into());
    };
    let (Some(server_id), false) = (event.server_id, event.server_name.is_empty()) else {
        return without("it reached no server that there is, so policy was not asked".into());
    };
    let Some(principal) = world.principal(principal).await? else {
        return without(format!("principal {} is not there any more", event.principal_name));
    };
    let key = match event.api_key_id.as_str() {
        "" => None,
        id => match world.key(id).await? {
            Some(key) => Some(key),
            None => return without(format!("API key {id} is not there any more")),
        },
    };
    let server = world.server(&event.server_name).await?.filter(|entry| entry.server.id == server_id);
    let Some(server) = server else {
        return without(format!("server {} is not there any more", event.server_name));
    };
    let namespace = match namespace_of(&event.detail) {
        None => None,
        Some(name) => match world.namespace(&name).await? {
            Some(namespace) => Some(namespace),
            None => return without(format!("namespace {} is not there any more", clean(&name, 64))),
        },
    };
    let args = captured(&event.request_payload, server.server.spec.capture);
    if args.is_none() && of_tool {
        notes.push("the arguments were not captured whole, so conditions about them are not judged".into());
    }
    let (tool, era) = (of_tool.then(|| event.target.clone()), era_of(&event.protocol_version));
    Ok(Some(Call {
        parties: Parties { principal, key, server, namespace, access, tool, era },
        address: event.client_ip.parse().ok(),
        time: event.occurred_at,
        args,
    }))
}

fn recorded(event: &Event) -> Recorded {
    let allowed = match event.outcome {
        Outcome::Denied | Outcome::Unauthenticated => false,
        // What is malformed may be refused before or after policy is asked; which rule permitted it tells.
        Outcome::Invalid => !event.rule.is_empty(),
        _ => true,
    };
    Recorded {
        allowed,
        rule: event.rule.clone(),
        reason: event.reason.clone(),
        outcome: event.outcome,
        revision: event.revision,
    }
}

async fn rules_of(tx: &mut Tx, tenant: &str, version: u64) -> Result<Rules, Error> {
    let rules = store::at(tx, tenant, version).await?;
    Ok(compiled(tenant, rules.into_iter().filter_map(|change| Some((change.id, change.spec?)))))
}

/// An explanation as the actor may see it: rules that are about others are shown to those only who may read the policy.
fn told(ctx: &OpCtx, explanation: Explanation, rules: &Rules) -> Answer {
    use waffles_core::policy::Outcome as Became;
    let all = ctx.may(Permission::PoliciesRead);
    let condition = |what: &str| {
        let name = what.strip_prefix("rule:")?;
        let rule = rules.rules().iter().find(|rule| rule.rule.spec.name == name)?;
        Some(rule.rule.spec.condition.clone())
    };
    let steps = explanation.steps.into_iter().filter(|step| all || step.outcome != Became::Elsewhere);
    let steps = steps.map(|step| {
        let condition = condition(&step.what).unwrap_or_default();
        (step, condition)
    });
    let decision = &explanation.verdict.decision;
    Answer {
        decision: word(decision),
        rule: decision.rule().to_owned(),
        steps: steps.collect(),
        inputs: Vec::new(),
        version: 0,
        revision: 0,
        recorded: None,
        now: None,
        notes: Vec::new(),
    }
}

/// A decision in one word.
pub(super) fn word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::HideServer(_) => "hide_server",
        Decision::HideTool(_) => "hide_tool",
        Decision::Disabled => "disabled",
        Decision::Forbid(_) => "forbid",
    }
}

fn arguments(text: &str) -> Result<Option<Box<RawValue>>, Error> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    if text.len() > MOST_ARGUMENTS {
        return Err(Error::invalid("arguments", format!("must have at most {MOST_ARGUMENTS} bytes")));
    }
    let raw: Box<RawValue> =
        serde_json::from_str(text).map_err(|_| Error::invalid("arguments", "is not JSON"))?;
    if raw.get().starts_with('{') {
        Ok(Some(raw))
    } else {
        Err(Error::invalid("arguments", "must be a JSON object"))
    }
}
