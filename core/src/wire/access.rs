//! Roles, where they are held, and rules, to and from protobuf.

use std::sync::Arc;

use uuid::Uuid;
use waffles_proto::{discovery::v1 as pb, policy::v1 as policy_pb};

use super::resource;
use crate::FieldError;
use crate::policy::{
    CompiledRule, Effect, Held, Mode, Permission, RoleDef, Rule, RuleSpec, Scope, What, Who,
};

/// Where a role is held, on the wire.
pub fn scope_to_proto(scope: &Scope) -> policy_pb::Scope {
    use policy_pb::scope::Kind;
    let kind = match scope {
        Scope::Tenant => Kind::Tenant(policy_pb::WholeTenant {}),
        Scope::Namespace(name) => Kind::Namespace(name.clone()),
        Scope::Server(name) => Kind::Server(name.clone()),
        Scope::Tools { server, pattern } => {
            Kind::Tools(policy_pb::ToolScope { server: server.clone(), pattern: pattern.clone() })
        }
    };
    policy_pb::Scope { kind: Some(kind) }
}

/// Where a role is held, from the wire. None for a kind of place that this program does not know.
pub fn scope_from_proto(message: policy_pb::Scope) -> Option<Scope> {
    use policy_pb::scope::Kind;
    Some(match message.kind? {
        Kind::Tenant(_) => Scope::Tenant,
        Kind::Namespace(name) => Scope::Namespace(name),
        Kind::Server(name) => Scope::Server(name),
        Kind::Tools(policy_pb::ToolScope { server, pattern }) => Scope::Tools { server, pattern },
    })
}

pub(super) fn held_to_proto(held: &Held) -> policy_pb::HeldRole {
    policy_pb::HeldRole { role: held.role.clone(), scope: Some(scope_to_proto(&held.scope)) }
}

/// A grant that cannot be read gives nothing, so it is left out.
pub(super) fn held_from_proto(message: policy_pb::HeldRole) -> Option<Held> {
    Some(Held { role: message.role, scope: scope_from_proto(message.scope?)? })
}

/// A role that a tenant made, on the wire.
pub fn role_to_proto(role: &RoleDef) -> policy_pb::Role {
    policy_pb::Role {
        id: role.id.to_string(),
        tenant: role.tenant.clone(),
        name: role.name.clone(),
        description: role.description.clone(),
        permissions: role.permissions.iter().map(|p| p.as_str().to_owned()).collect(),
        built_in: false,
    }
}

/// A role from the wire. A permission that this program does not know is none.
pub(super) fn role_from_proto(message: policy_pb::Role) -> Result<RoleDef, String> {
    Ok(RoleDef {
        id: message.id.parse().map_err(|_| "id: is not a UUID")?,
        tenant: message.tenant,
        name: message.name,
        description: message.description,
        permissions: message.permissions.iter().filter_map(|name| Permission::parse(name)).collect(),
    })
}

/// A custom role as a resource.
pub fn role_resource(role: &RoleDef) -> pb::Resource {
    resource(role.id.to_string(), pb::resource::Kind::Role(role_to_proto(role)))
}

/// A session that was ended, as a resource.
pub fn session_resource(session: Uuid) -> pb::Resource {
    resource(session.to_string(), pb::resource::Kind::Session(pb::EndedSession {}))
}

/// What an operator wrote of a rule, on the wire.
pub fn rule_spec_to_proto(spec: &RuleSpec) -> policy_pb::RuleSpec {
    let RuleSpec { name, description, effect, mode, principals, items, condition } = spec.clone();
    let effect = match effect {
        Effect::Allow => policy_pb::Effect::Allow,
        Effect::Forbid => policy_pb::Effect::Forbid,
    };
    let mode = match mode {
        Mode::Enforce => policy_pb::Mode::Enforce,
        Mode::LogOnly => policy_pb::Mode::LogOnly,
    };
    let Who { roles, groups, names } = principals;
    let What { namespaces, servers, tools, read_only, destructive, idempotent, open_world } = items;
    policy_pb::RuleSpec {
        name,
        description,
        effect: effect.into(),
        mode: mode.into(),
        principals: Some(policy_pb::Who { roles, groups, names }),
        items: Some(policy_pb::What {
            namespaces,
            servers,
            tools,
            read_only,
            destructive,
            idempotent,
            open_world,
        }),
        condition,
    }
}

/// What an operator wrote of a rule, from the wire, checked.
pub fn rule_spec_from_proto(message: policy_pb::RuleSpec) -> Result<RuleSpec, Vec<FieldError>> {
    let (spec, mut problems) = rule_spec_unchecked(message);
    problems.extend(spec.problems());
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

fn rule_spec_unchecked(message: policy_pb::RuleSpec) -> (RuleSpec, Vec<FieldError>) {
    let mut problems = Vec::new();
    let effect = match policy_pb::Effect::try_from(message.effect) {
        Ok(policy_pb::Effect::Allow) => Effect::Allow,
        Ok(policy_pb::Effect::Forbid) => Effect::Forbid,
        _ => {
            problems.push(FieldError::new("effect", "must be `allow` or `forbid`"));
            Effect::Forbid
        }
    };
    let mode = match policy_pb::Mode::try_from(message.mode) {
        Ok(policy_pb::Mode::Unspecified | policy_pb::Mode::Enforce) => Mode::Enforce,
        Ok(policy_pb::Mode::LogOnly) => Mode::LogOnly,
        Err(_) => {
            problems.push(FieldError::new("mode", "must be `enforce` or `log_only`"));
            Mode::Enforce
        }
    };
    let who = message.principals.unwrap_or_default();
    let what = message.items.unwrap_or_default();
    let spec = RuleSpec {
        name: message.name,
        description: message.description,
        effect,
        mode,
        principals: Who { roles: who.roles, groups: who.groups, names: who.names },
        items: What {
            namespaces: what.namespaces,
            servers: what.servers,
            tools: what.tools,
            read_only: what.read_only,
            destructive: what.destructive,
            idempotent: what.idempotent,
            open_world: what.open_world,
        },
        condition: message.condition,
    };
    (spec, problems)
}

/// A rule on the wire.
pub fn rule_to_proto(rule: &Rule) -> policy_pb::Rule {
    policy_pb::Rule {
        id: rule.id.to_string(),
        tenant: rule.tenant.clone(),
        spec: Some(rule_spec_to_proto(&rule.spec)),
    }
}

/// A rule as a resource.
pub fn rule_resource(rule: &Rule) -> pb::Resource {
    resource(rule.id.to_string(), pb::resource::Kind::Rule(rule_to_proto(rule)))
}

/// A rule from the wire, compiled. One that cannot be read never leaves more access than it would: beside the reason
/// comes what stands for it until it can be read, and that is none where the rule only permitted or took note.
pub(super) fn rule_from_proto(
    message: policy_pb::Rule,
) -> Result<Arc<CompiledRule>, (String, Option<Arc<CompiledRule>>)> {
    let id: Uuid = message.id.parse().map_err(|_| ("id: is not a UUID".to_owned(), None))?;
    let tenant = message.tenant;
    let closed = |reason: String| (reason, Some(Arc::new(CompiledRule::closed(id, &tenant))));
    let spec = message.spec.ok_or_else(|| closed("spec: is missing".into()))?;
    let (spec, unknown) = rule_spec_unchecked(spec);
    if let Some(problem) = unknown.first() {
        return Err(closed(problem.to_string()));
    }
    let harmless = spec.effect == Effect::Allow || spec.mode == Mode::LogOnly;
    CompiledRule::compile(Rule { id, tenant: tenant.clone(), spec: spec.clone() }).map(Arc::new).map_err(
        |reason| {
            if harmless {
                return (reason, None);
            }
            // Its selectors may be sound where its condition is not.
            let unconditional = RuleSpec { condition: String::new(), ..spec };
            let whole = CompiledRule::compile(Rule { id, tenant: tenant.clone(), spec: unconditional });
            (reason, Some(Arc::new(whole.unwrap_or_else(|_| CompiledRule::closed(id, &tenant)))))
        },
    )
}
