//! Who may do what: roles and where they are held, rules, and the one decision every door asks for: may this caller do
//! this to that? The answer names what it came from: the proxy audits it, the control plane explains it.

mod args;
mod condition;
mod explain;
mod index;
mod lint;
mod permission;
mod role;
mod rule;
mod typing;

use std::borrow::Cow;
use std::hash::Hash as _;
use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::credential::ApiKey;
use crate::namespace::{Level, MemberEntry, Namespace, NamespaceEntry};
use crate::principal::Principal;
use crate::server::{Marks, Server, ToolSet};
use condition::whole_second;
use index::{Applicable, Place, enforced};

pub use condition::{Asked, CONDITION_MOST, Condition, Looks};
pub use explain::{Explanation, Outcome, Step, explain};
pub use index::{CompiledRule, Policy, Ruling};
pub use lint::{Findings, Inspector, Names, Notice, Tool};
pub use permission::{Permission, PermissionSet};
pub use role::{Held, Role, RoleDef, Scope, Target};
pub use rule::{Effect, Mode, Rule, RuleSpec, What, Who};

/// Who asks, with the credential that was shown.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The principal.
    pub principal: &'a Principal,
    /// The API key that was shown; none for an access token.
    pub key: Option<&'a ApiKey>,
    /// Where the call comes from; none where the address is not known.
    pub address: Option<IpAddr>,
}

impl Caller<'_> {
    /// What principal and key permit together, in the whole tenant.
    pub fn permissions(&self) -> PermissionSet {
        self.narrowed(self.principal.permissions())
    }

    /// What principal and key permit together on one thing.
    pub fn permissions_on(&self, target: Target<'_>) -> PermissionSet {
        self.narrowed(self.principal.permissions_on(target))
    }

    /// Whether principal and key permit something somewhere.
    pub fn holds_anywhere(&self, permission: Permission) -> bool {
        self.principal.holds_anywhere(permission)
            && self.key.is_none_or(|key| key.scopes().contains(permission))
    }

    /// Whether the credential itself is good at this moment: active owner, not expired, address allowed.
    pub fn is_current(&self, now: DateTime<Utc>) -> bool {
        let key_good = self.key.is_none_or(|key| key.is_current(now) && key.allows_address(self.address));
        self.principal.active && key_good
    }

    fn narrowed(&self, held: PermissionSet) -> PermissionSet {
        self.key.map_or(held, |key| held.and(key.scopes()))
    }
}

/// How deep a message reaches into a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Handshake and lists.
    List,
    /// Reading: changes nothing at the server as far as the protocol tells.
    Read,
    /// Runs something.
    Call,
}

/// The arguments of a call, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Args<'a> {
    /// Any may come: what a list is filtered by. A rule that looks at them may permit, and does not forbid.
    Any,
    /// `arguments` as they came; none: there are none.
    Given(Option<&'a [u8]>),
}

/// What is known of a message beside who sends it and what it is about.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The revision that the client speaks.
    pub era: &'a str,
    /// When.
    pub now: DateTime<Utc>,
    /// The arguments.
    pub args: Args<'a>,
}

/// What is asked: may this caller do this to that?
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who asks.
    pub caller: Caller<'a>,
    /// The rules of the caller's tenant.
    pub policy: &'a Policy,
    /// The server.
    pub server: &'a Server,
    /// Its tool filter.
    pub tools: &'a ToolSet,
    /// The namespace at whose door it is asked.
    pub namespace: Option<&'a NamespaceEntry>,
    /// How deep the message reaches.
    pub access: Access,
    /// The tool, by the server's own name: given for `tools/call`, and for each entry of a list of tools.
    pub tool: Option<&'a str>,
    /// What else is known.
    pub facts: Facts<'a>,
}

/// The answer, and the rule it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Permitted by this rule.
    Allow(Cow<'static, str>),
    /// The server does not exist for this caller.
    HideServer(Cow<'static, str>),
    /// The caller may know of the server, but it is switched off.
    Disabled,
    /// The tool does not exist for this caller.
    HideTool(Cow<'static, str>),
    /// The caller may know of it, but not do this.
    Forbid(Cow<'static, str>),
}

impl Decision {
    /// Whether it permits.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// What it came from.
    pub fn rule(&self) -> &str {
        match self {
            Self::Allow(rule) | Self::HideServer(rule) | Self::HideTool(rule) | Self::Forbid(rule) => rule,
            Self::Disabled => "server:disabled",
        }
    }
}

/// A decision, with what is to be counted of the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The answer.
    pub decision: Decision,
    /// Rules that only take note, and would have decided.
    pub noted: Vec<Arc<str>>,
    /// Conditions that failed, and so counted against the caller.
    pub failed: u32,
}

/// How far a caller may go in a namespace: the highest of the levels of its roles and of its own, narrowed by its key.
/// A role that it holds on the namespace alone counts there as well, and gives what it permits. None: the namespace does
/// not exist for this caller.
pub fn level(caller: &Caller<'_>, policy: &Policy, namespace: &Namespace) -> Option<Level> {
    let Principal { tenant, name, roles, .. } = caller.principal;
    let spec = &namespace.spec;
    if namespace.tenant != *tenant {
        return None;
    }
    let here = |held: &&Held| matches!(&held.scope, Scope::Namespace(name) if *name == spec.name);
    let held_here = || caller.principal.grants.iter().filter(here);
    let has = |role: &String| roles.contains(role) || held_here().any(|held| held.role == *role);
    let by_role = spec.levels.iter().filter(|entry| has(&entry.role)).map(|entry| entry.level);
    let own = spec.principals.iter().filter(|entry| entry.principal == *name).map(|entry| entry.level);
    let by_grant = held_here().filter_map(|held| {
        let permits = caller.principal.permissions_of(&held.role);
        match () {
            () if permits.contains(Permission::GatewayUse) => Some(Level::Execute),
            () if permits.contains(Permission::NamespacesRead) => Some(Level::View),
            () => None,
        }
    });
    let given = by_role.chain(own).chain(by_grant).max()?;
    let mut scopes = PermissionSet::all();
    if let Some(key) = caller.key {
        scopes = key.scopes();
        let may_see = scopes.contains(Permission::NamespacesRead) || scopes.contains(Permission::GatewayUse);
        if !may_see || !key.allows_namespace(&spec.name) {
            return None;
        }
    }
    // Who may use no server at all sees what there is, and no more.
    let uses = caller.principal.holds_anywhere(Permission::GatewayUse) || policy.may_permit(caller.principal);
    Some(if uses && scopes.contains(Permission::GatewayUse) { given } else { Level::View })
}

/// The decision about one message to one server. With the level `view` in a namespace, lists show what could be called
/// with `execute`, and nothing else is done. What cannot be called is not listed, because both ask here.
pub fn decide(question: &Question<'_>) -> Verdict {
    let ruling = ruling(question);
    let decision = judge(question, &ruling);
    match ruling {
        Ruled::Nothing => Verdict { decision, noted: Vec::new(), failed: 0 },
        Ruled::By(ruling) => {
            let noted = ruling.noted.iter().map(Arc::clone).collect();
            Verdict { decision, noted, failed: ruling.failed }
        }
    }
}

/// The rules that can be about what is asked, whatever their conditions say.
pub fn about(question: &Question<'_>) -> Vec<Arc<CompiledRule>> {
    if question.server.tenant != question.caller.principal.tenant {
        return Vec::new();
    }
    question.policy.applicable(&place(question)).rules.clone()
}

fn judge(question: &Question<'_>, ruled: &Ruled) -> Decision {
    let Question { caller, server, namespace, access, tool, .. } = *question;
    let hidden = |rule: &'static str| Decision::HideServer(Cow::Borrowed(rule));
    if server.tenant != caller.principal.tenant {
        return hidden("tenant");
    }
    let member = match namespace {
        None => None,
        Some(namespace) => {
            let Some(level) = level(&caller, question.policy, &namespace.namespace) else {
                return hidden("namespace:levels");
            };
            let Some(member) = namespace.member(&server.spec.name) else {
                return hidden("namespace:servers");
            };
            Some((level, member))
        }
    };
    if let Some(key) = caller.key {
        let views = matches!(member, Some((Level::View, _)));
        if !views && !key.scopes().contains(Permission::GatewayUse) {
            return hidden("key:scopes");
        }
        if !key.allows_server(&server.spec.name) {
            return hidden("key:servers");
        }
        // A key that is for some namespaces is not for what stands outside of them.
        if member.is_none() && !key.limits.namespaces.is_empty() {
            return hidden("key:namespaces");
        }
    }
    let rule = match member {
        Some((Level::View, _)) => Cow::Borrowed("namespace:view"),
        _ => match covered(question, ruled) {
            Ok(rule) => rule,
            Err(decision) => return decision,
        },
    };
    if tool.is_none()
        && let Some(forbid) = ruled.forbid()
    {
        return Decision::HideServer(forbid);
    }
    if !server.enabled {
        return Decision::Disabled;
    }
    if let Some((level, member)) = member
        && let Some(decision) = exposed(level, member, access, tool)
    {
        return decision;
    }
    match narrowed(question) {
        Some(decision) => decision,
        None => match ruled.forbid() {
            Some(forbid) if ruled.by_args() => Decision::Forbid(forbid),
            Some(forbid) => Decision::HideTool(forbid),
            None => Decision::Allow(rule),
        },
    }
}

/// What permits the message, before anything that forbids: a role held in the tenant or on the thing, or a rule.
fn covered(question: &Question<'_>, ruled: &Ruled) -> Result<Cow<'static, str>, Decision> {
    let Question { caller, server, namespace, access, tool, .. } = *question;
    let principal = caller.principal;
    let uses = |role: &str| principal.permissions_of(role).contains(Permission::GatewayUse);
    if let Some(role) = principal.roles.iter().find(|role| uses(role)) {
        return Ok(label_of(role));
    }
    let mut touched = false;
    for held in principal.grants.iter().filter(|held| uses(&held.role)) {
        let covers = match &held.scope {
            Scope::Tenant => true,
            Scope::Server(name) => *name == server.spec.name,
            Scope::Namespace(name) => namespace.is_some_and(|entry| entry.namespace.spec.name == *name),
            tools @ Scope::Tools { server: of, .. } => {
                touched |= of == "*" || *of == server.spec.name;
                tool.is_some_and(|tool| tools.reaches_tool(&server.spec.name, tool))
            }
        };
        if covers {
            return Ok(Cow::Owned(format!("role:{}@{}", held.role, held.scope)));
        }
    }
    if let Some(rule) = ruled.allow() {
        return Ok(rule);
    }
    touched |= ruled.touches();
    match (touched, access, tool) {
        (true, Access::List, None) => Ok(Cow::Borrowed("tools")),
        (true, _, Some(_)) => Err(Decision::HideTool(Cow::Borrowed("no role or rule permits this tool"))),
        (true, ..) => Err(Decision::Forbid(Cow::Borrowed("tools only"))),
        (false, ..) => Err(Decision::HideServer(Cow::Borrowed("no role permits gateway:use"))),
    }
}

/// What stands against a message at the door of a namespace.
fn exposed(level: Level, member: &MemberEntry, access: Access, tool: Option<&str>) -> Option<Decision> {
    if tool.is_some_and(|tool| !member.names.contains(tool)) {
        return Some(Decision::HideTool(Cow::Borrowed("namespace:expose")));
    }
    (level == Level::View && access != Access::List)
        .then_some(Decision::Forbid(Cow::Borrowed("namespace:view")))
}

/// What stands against a message to a server that exists for the caller, but for rules.
fn narrowed(question: &Question<'_>) -> Option<Decision> {
    let Question { caller, server, tools, access, tool, .. } = *question;
    if let Some(tool) = tool {
        if !tools.contains(tool) {
            return Some(Decision::HideTool(Cow::Borrowed("server:tools")));
        }
        let key = caller.key?;
        if !key.allows_tool(tool) {
            return Some(Decision::HideTool(Cow::Borrowed("key:tools")));
        }
        if key.limits.read_only && server.spec.marks_of(tool).read_only != Some(true) {
            return Some(Decision::HideTool(Cow::Borrowed("key:read_only")));
        }
    } else if access == Access::Call
        && let Some(key) = caller.key
    {
        if key.limits.read_only {
            return Some(Decision::Forbid(Cow::Borrowed("key:read_only")));
        }
        // What runs something without naming a tool is none of the tools that the key is for.
        if !key.limits.tools.is_empty() {
            return Some(Decision::Forbid(Cow::Borrowed("key:tools")));
        }
    }
    None
}

/// What the rules say of a question.
enum Ruled {
    /// There are none about it.
    Nothing,
    /// This.
    By(Arc<Ruling>),
}

impl Ruled {
    fn allow(&self) -> Option<Cow<'static, str>> {
        let Self::By(ruling) = self else { return None };
        ruling.allow.as_ref().map(|rule| Cow::Owned(rule.to_string()))
    }

    fn forbid(&self) -> Option<Cow<'static, str>> {
        let Self::By(ruling) = self else { return None };
        ruling.forbid.as_ref().map(|rule| Cow::Owned(rule.to_string()))
    }

    fn by_args(&self) -> bool {
        matches!(self, Self::By(ruling) if ruling.by_args)
    }

    fn touches(&self) -> bool {
        matches!(self, Self::By(ruling) if ruling.touches)
    }
}

fn ruling(question: &Question<'_>) -> Ruled {
    let Question { caller, policy, facts, .. } = question;
    if policy.is_empty() || question.server.tenant != caller.principal.tenant {
        return Ruled::Nothing;
    }
    let place = place(question);
    let applicable = policy.applicable(&place);
    if applicable.rules.is_empty() {
        return Ruled::Nothing;
    }
    let looks = applicable.looks;
    if looks.args && facts.args != Args::Any && question.tool.is_some() {
        return Ruled::By(Arc::new(evaluate(question, &place, &applicable)));
    }
    let write = |mut hasher: &mut dyn std::hash::Hasher| {
        (facts.args == Args::Any).hash(&mut hasher);
        looks.time.then(|| facts.now.timestamp()).hash(&mut hasher);
        looks.address.then_some(caller.address).hash(&mut hasher);
        looks.era.then_some(facts.era).hash(&mut hasher);
        looks.key.then(|| caller.key.map(|key| &key.id)).hash(&mut hasher);
    };
    Ruled::By(policy.remembered(&place, write, || evaluate(question, &place, &applicable)))
}

fn place<'a>(question: &Question<'a>) -> Place<'a> {
    let Question { caller, server, namespace, tool, .. } = *question;
    Place {
        principal: caller.principal,
        server_id: server.id,
        server: &server.spec.name,
        namespace: namespace.map(|entry| entry.namespace.spec.name.as_str()),
        tool,
        marks: tool.map_or(Marks::default(), |tool| server.spec.marks_of(tool)),
    }
}

fn evaluate(question: &Question<'_>, place: &Place<'_>, applicable: &Applicable) -> Ruling {
    let asked = asked(question, place);
    let mut ruling = Ruling::default();
    for rule in &applicable.rules {
        let holds = match holds(rule, question, &asked) {
            Ok(holds) => holds,
            Err(_) => {
                ruling.failed += 1;
                rule.rule.spec.effect == Effect::Forbid
            }
        };
        if !holds {
            continue;
        }
        let label = || Arc::clone(&rule.label);
        if !enforced(rule) {
            ruling.noted.push(label());
            continue;
        }
        match rule.rule.spec.effect {
            // Of a server, a rule of tools only says that there may be one that is permitted.
            Effect::Allow if rule.of_tools && place.tool.is_none() => ruling.touches = true,
            Effect::Allow => ruling.allow = ruling.allow.take().or_else(|| Some(label())),
            // One that would forbid whatever the arguments comes first: what it forbids is not to be known of.
            Effect::Forbid if ruling.forbid.is_none() || (ruling.by_args && !rule.looks().args) => {
                ruling.forbid = Some(label());
                ruling.by_args = rule.looks().args;
            }
            Effect::Forbid => {}
        }
    }
    ruling
}

fn asked<'a>(question: &Question<'a>, place: &Place<'a>) -> Asked<'a> {
    let facts = question.facts;
    Asked {
        principal: place.principal,
        tool: place.tool,
        marks: place.marks,
        server: place.server,
        namespace: place.namespace,
        era: facts.era,
        address: question.caller.address,
        key: question.caller.key.map(|key| key.id.as_str()),
        now: whole_second(facts.now),
        args: match facts.args {
            Args::Any => None,
            Args::Given(args) => args,
        },
    }
}

/// Whether a rule that is about the place applies. The error says why its condition failed.
fn holds(rule: &CompiledRule, question: &Question<'_>, asked: &Asked<'_>) -> Result<bool, String> {
    let Some(condition) = rule.condition() else { return Ok(true) };
    let looks = condition.looks();
    let open = match question.tool {
        Some(_) => looks.args && question.facts.args == Args::Any,
        None => looks.args || looks.tool,
    };
    if !open {
        return condition.holds(asked);
    }
    // What is not known yet may turn out in the caller's favour: an allow may apply, a forbid may not.
    Ok(condition.holds_anyway(asked)?.unwrap_or(rule.rule.spec.effect == Effect::Allow))
}

fn label_of(role: &str) -> Cow<'static, str> {
    match Role::parse(role) {
        Some(Role::Admin) => Cow::Borrowed("role:admin"),
        Some(Role::Operator) => Cow::Borrowed("role:operator"),
        Some(Role::User) => Cow::Borrowed("role:user"),
        Some(Role::Readonly) => Cow::Borrowed("role:readonly"),
        Some(Role::Auditor) => Cow::Borrowed("role:auditor"),
        Some(Role::Platform) => Cow::Borrowed("role:platform"),
        None => Cow::Owned(format!("role:{role}")),
    }
}

#[cfg(test)]
mod tests;
