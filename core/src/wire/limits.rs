//! Limits to and from protobuf.

use std::sync::Arc;

use waffles_proto::discovery::v1 as pb;
use waffles_proto::policy::v1 as policy_pb;

use super::resource;
use crate::FieldError;
use crate::limit::{Class, CompiledLimit, Limit, LimitKind, LimitSpec, Per};
use crate::policy::Who;

/// The kind of a limit on the wire.
pub fn limit_kind_to_proto(kind: LimitKind) -> policy_pb::LimitKind {
    match kind {
        LimitKind::Rate => policy_pb::LimitKind::Rate,
        LimitKind::Quota => policy_pb::LimitKind::Quota,
        LimitKind::Concurrent => policy_pb::LimitKind::Concurrent,
        LimitKind::Streams => policy_pb::LimitKind::Streams,
    }
}

/// The kind of a limit from the wire.
pub fn limit_kind_from_proto(kind: i32) -> Option<LimitKind> {
    Some(match policy_pb::LimitKind::try_from(kind).ok()? {
        policy_pb::LimitKind::Unspecified => return None,
        policy_pb::LimitKind::Rate => LimitKind::Rate,
        policy_pb::LimitKind::Quota => LimitKind::Quota,
        policy_pb::LimitKind::Concurrent => LimitKind::Concurrent,
        policy_pb::LimitKind::Streams => LimitKind::Streams,
    })
}

/// What an operator wrote of a limit, on the wire.
pub fn limit_spec_to_proto(spec: &LimitSpec) -> policy_pb::LimitSpec {
    let per = |per: &Per| match per {
        Per::Principal => policy_pb::LimitPer::Principal,
        Per::Key => policy_pb::LimitPer::Key,
        Per::Server => policy_pb::LimitPer::Server,
        Per::Tool => policy_pb::LimitPer::Tool,
    };
    let class = |class: &Class| match class {
        Class::Calls => policy_pb::MethodClass::Calls,
        Class::Lists => policy_pb::MethodClass::Lists,
        Class::Listens => policy_pb::MethodClass::Listens,
    };
    let Who { roles, groups, names } = spec.principals.clone();
    policy_pb::LimitSpec {
        name: spec.name.clone(),
        description: spec.description.clone(),
        kind: limit_kind_to_proto(spec.kind).into(),
        amount: spec.amount,
        window_seconds: spec.window_seconds,
        per: spec.per.iter().map(|one| per(one).into()).collect(),
        principals: Some(policy_pb::Who { roles, groups, names }),
        servers: spec.servers.clone(),
        tools: spec.tools.clone(),
        classes: spec.classes.iter().map(|one| class(one).into()).collect(),
    }
}

/// What an operator wrote of a limit, from the wire, checked.
pub fn limit_spec_from_proto(message: policy_pb::LimitSpec) -> Result<LimitSpec, Vec<FieldError>> {
    let mut problems = Vec::new();
    let kind = limit_kind_from_proto(message.kind);
    if kind.is_none() {
        problems.push(FieldError::new("kind", "must be `rate`, `quota`, `concurrent` or `streams`"));
    }
    let mut per = Vec::new();
    for (i, one) in message.per.into_iter().enumerate() {
        match policy_pb::LimitPer::try_from(one) {
            Ok(policy_pb::LimitPer::Principal) => per.push(Per::Principal),
            Ok(policy_pb::LimitPer::Key) => per.push(Per::Key),
            Ok(policy_pb::LimitPer::Server) => per.push(Per::Server),
            Ok(policy_pb::LimitPer::Tool) => per.push(Per::Tool),
            Ok(policy_pb::LimitPer::Unspecified) | Err(_) => {
                problems.push(FieldError::new(format!("per[{i}]"), "is unknown"));
            }
        }
    }
    let mut classes = Vec::new();
    for (i, one) in message.classes.into_iter().enumerate() {
        match policy_pb::MethodClass::try_from(one) {
            Ok(policy_pb::MethodClass::Calls) => classes.push(Class::Calls),
            Ok(policy_pb::MethodClass::Lists) => classes.push(Class::Lists),
            Ok(policy_pb::MethodClass::Listens) => classes.push(Class::Listens),
            Ok(policy_pb::MethodClass::Unspecified) | Err(_) => {
                problems.push(FieldError::new(format!("classes[{i}]"), "is unknown"));
            }
        }
    }
    let who = message.principals.unwrap_or_default();
    let spec = LimitSpec {
        name: message.name,
        description: message.description,
        kind: kind.unwrap_or(LimitKind::Rate),
        amount: message.amount,
        window_seconds: message.window_seconds,
        per,
        principals: Who { roles: who.roles, groups: who.groups, names: who.names },
        servers: message.servers,
        tools: message.tools,
        classes,
    };
    // Of what could not be read nothing more is said.
    if problems.is_empty() {
        problems = spec.problems();
    }
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

/// A limit as a resource.
pub fn limit_resource(limit: &Limit) -> pb::Resource {
    let Limit { id, tenant, spec } = limit;
    let (id, spec) = (id.to_string(), Some(limit_spec_to_proto(spec)));
    let message = policy_pb::Limit { id: id.clone(), tenant: tenant.clone(), spec };
    resource(id, pb::resource::Kind::Limit(message))
}

/// A limit from the wire, compiled.
pub(super) fn limit_from_proto(message: policy_pb::Limit) -> Result<Arc<CompiledLimit>, String> {
    let id = message.id.parse().map_err(|_| "id: is not a UUID")?;
    let spec = limit_spec_from_proto(message.spec.ok_or("spec: is missing")?).map_err(|problems| {
        problems.first().map_or_else(|| "spec: cannot be read".to_owned(), ToString::to_string)
    })?;
    CompiledLimit::compile(Limit { id, tenant: message.tenant, spec }).map(Arc::new)
}
