//! Namespaces to and from protobuf.

use waffles_proto::{discovery::v1 as discovery_pb, registry::v1 as pb};

use super::{join, resource, time, timestamp};
use crate::FieldError;
use crate::namespace::{Expose, Level, Member, Namespace, NamespaceSpec, PrincipalLevel, RoleLevel};
use crate::policy::Role;

fn level_to_proto(level: Level) -> pb::Level {
    match level {
        Level::View => pb::Level::View,
        Level::Execute => pb::Level::Execute,
    }
}

fn level_from_proto(level: i32) -> Option<Level> {
    match pb::Level::try_from(level).ok()? {
        pb::Level::Unspecified => None,
        pb::Level::View => Some(Level::View),
        pb::Level::Execute => Some(Level::Execute),
    }
}

fn member_to_proto(member: &Member) -> pb::NamespaceMember {
    let Expose { allow, deny, resources_allow, resources_deny } = member.expose.clone();
    pb::NamespaceMember {
        server: member.server.clone(),
        prefix: Some(member.prefix),
        expose: Some(pb::Expose { allow, deny, resources_allow, resources_deny }),
    }
}

fn read_member(message: pb::NamespaceMember) -> Member {
    let pb::Expose { allow, deny, resources_allow, resources_deny } = message.expose.unwrap_or_default();
    Member {
        server: message.server,
        prefix: message.prefix.unwrap_or(true),
        expose: Expose { allow, deny, resources_allow, resources_deny },
    }
}

/// A member from the wire, checked; problems name fields of `member`.
pub fn member_from_proto(message: pb::NamespaceMember) -> Result<Member, Vec<FieldError>> {
    let member = read_member(message);
    let problems = member.problems("member.");
    if problems.is_empty() { Ok(member) } else { Err(problems) }
}

fn spec_to_proto(spec: &NamespaceSpec) -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        name: spec.name.clone(),
        description: spec.description.clone(),
        servers: spec.servers.iter().map(member_to_proto).collect(),
        levels: spec
            .levels
            .iter()
            .map(|entry| pb::RoleLevel {
                role: entry.role.clone(),
                level: level_to_proto(entry.level).into(),
            })
            .collect(),
        principals: spec
            .principals
            .iter()
            .map(|entry| pb::PrincipalLevel {
                principal: entry.principal.clone(),
                level: level_to_proto(entry.level).into(),
            })
            .collect(),
        is_default: spec.is_default,
        tool_search: spec.tool_search,
    }
}

/// A namespace's specification from the wire, checked, but for whether its servers exist.
pub fn namespace_spec_from_proto(message: pb::NamespaceSpec) -> Result<NamespaceSpec, Vec<FieldError>> {
    let mut problems = Vec::new();
    let mut level = |field: String, level: i32| {
        level_from_proto(level).unwrap_or_else(|| {
            problems.push(FieldError::new(field, "must be view or execute"));
            Level::View
        })
    };
    let mut levels = Vec::with_capacity(message.levels.len());
    for (i, entry) in message.levels.into_iter().enumerate() {
        let level = level(format!("levels[{i}].level"), entry.level);
        levels.push(RoleLevel { role: entry.role, level });
    }
    let mut principals = Vec::with_capacity(message.principals.len());
    for (i, entry) in message.principals.into_iter().enumerate() {
        let level = level(format!("principals[{i}].level"), entry.level);
        principals.push(PrincipalLevel { principal: entry.principal, level });
    }
    let spec = NamespaceSpec {
        name: message.name,
        description: message.description,
        servers: message.servers.into_iter().map(read_member).collect(),
        levels,
        principals,
        is_default: message.is_default,
        tool_search: message.tool_search,
    };
    problems.extend(spec.problems());
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

/// A namespace on the wire.
pub fn namespace_to_proto(namespace: &Namespace) -> pb::Namespace {
    pb::Namespace {
        id: namespace.id.to_string(),
        tenant: namespace.tenant.clone(),
        spec: Some(spec_to_proto(&namespace.spec)),
        version: namespace.version,
        created_at: Some(timestamp(namespace.created_at)),
        updated_at: Some(timestamp(namespace.updated_at)),
    }
}

/// A namespace from the wire. The error is the first thing wrong with it. A role that this program does not know gives
/// nothing here, as everywhere.
pub fn namespace_from_proto(message: pb::Namespace) -> Result<Namespace, String> {
    let mut spec = message.spec.ok_or("spec: is missing")?;
    spec.levels.retain(|entry| Role::parse(&entry.role).is_some());
    Ok(Namespace {
        id: message.id.parse().map_err(|_| "id: is not a UUID")?,
        tenant: message.tenant,
        spec: namespace_spec_from_proto(spec).map_err(|problems| join(&problems))?,
        version: message.version,
        created_at: time(message.created_at).ok_or("created_at: is missing")?,
        updated_at: time(message.updated_at).ok_or("updated_at: is missing")?,
    })
}

/// A namespace as a resource.
pub fn namespace_resource(namespace: &Namespace) -> discovery_pb::Resource {
    let kind = discovery_pb::resource::Kind::Namespace(namespace_to_proto(namespace));
    resource(namespace.id.to_string(), kind)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::snapshot::{Kind, ResourceKey, Snapshot};
    use crate::wire::Update;

    fn namespace() -> Namespace {
        let expose = Expose {
            allow: vec!["get_*".into()],
            deny: vec!["get_secret".into()],
            resources_allow: vec!["db://*".into()],
            resources_deny: vec!["db://private/*".into()],
        };
        Namespace {
            id: Uuid::from_u128(11),
            tenant: "default".into(),
            spec: NamespaceSpec {
                name: "team".into(),
                description: "d".into(),
                servers: vec![Member { server: "b".into(), prefix: false, expose }, Member::whole("a")],
                levels: vec![RoleLevel { role: "user".into(), level: Level::Execute }],
                principals: vec![PrincipalLevel { principal: "a@b.example".into(), level: Level::View }],
                is_default: true,
                tool_search: true,
            },
            version: 3,
            created_at: DateTime::from_timestamp(1, 0).unwrap(),
            updated_at: DateTime::from_timestamp(2, 500_000).unwrap(),
        }
    }

    fn update(resource: discovery_pb::Resource) -> Update {
        let resources = vec![resource];
        Update { lineage: "l".into(), revision: 1, full: false, resources, removed: vec![] }
    }

    #[test]
    fn a_namespace_survives_the_wire_and_the_snapshot() {
        let (snapshot, refusals) = Snapshot::default().with_update(update(namespace_resource(&namespace())));
        assert_eq!(refusals, []);
        assert_eq!(snapshot.namespace("default", "team").unwrap().namespace, namespace());
        assert!(snapshot.namespace("other", "team").is_none());
        let (again, refusals) = Snapshot::default().with_update(snapshot.to_update().into());
        assert_eq!(refusals, []);
        assert_eq!(again.namespace("default", "team").unwrap().namespace, namespace());
        let gone =
            vec![super::super::reference(&ResourceKey::new(Kind::Namespace, namespace().id.to_string()))];
        let update =
            Update { lineage: "l".into(), revision: 2, full: false, resources: vec![], removed: gone };
        assert!(again.with_update(update).0.namespace("default", "team").is_none());
    }

    #[test]
    fn a_refused_namespace_counts_as_absent() {
        let (snapshot, _) = Snapshot::default().with_update(update(namespace_resource(&namespace())));
        let mut bad = namespace();
        bad.spec.servers.push(Member::whole("b"));
        let (next, refusals) = snapshot.with_update(update(namespace_resource(&bad)));
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].reason, "servers[2].server: is named twice");
        assert!(next.namespace("default", "team").is_none());
        assert!(next.refused.contains(&ResourceKey::new(Kind::Namespace, bad.id.to_string())));
    }

    #[test]
    fn a_role_of_a_later_version_gives_nothing_and_takes_nothing() {
        let mut later = namespace();
        later.spec.levels.push(RoleLevel { role: "owner".into(), level: Level::Execute });
        assert_eq!(namespace_from_proto(namespace_to_proto(&later)).unwrap(), namespace());
        let message = spec_to_proto(&later.spec);
        assert_eq!(namespace_spec_from_proto(message).unwrap_err()[0].field, "levels[1].role");
    }

    #[test]
    fn a_member_has_its_prefix_unless_it_is_taken_away_and_a_level_is_never_guessed() {
        let message = pb::NamespaceMember { server: "a".into(), ..pb::NamespaceMember::default() };
        assert_eq!(member_from_proto(message).unwrap(), Member::whole("a"));
        let mut message = spec_to_proto(&namespace().spec);
        message.levels[0].level = 0;
        message.principals[0].level = 7;
        let fields: Vec<_> = namespace_spec_from_proto(message)
            .unwrap_err()
            .into_iter()
            .map(|problem| problem.field)
            .collect();
        assert_eq!(fields, ["levels[0].level", "principals[0].level"]);
    }
}
