//! Namespaces.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::wire::time;
use waffles_proto::registry::v1 as pb;

use super::super::{Shape, columns, fields};
use super::{list, since, stamp};

/// A namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Namespace {
    id: String,
    tenant: String,
    name: String,
    description: String,
    version: u64,
    servers: Vec<Member>,
    roles: Vec<Level>,
    principals: Vec<Level>,
    takes_new: bool,
    tool_search: bool,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
}

/// A server in it, and what of it is shown.
#[derive(Debug, Serialize)]
struct Member {
    server: String,
    prefix: bool,
    allow: Vec<String>,
    deny: Vec<String>,
    allow_resources: Vec<String>,
    deny_resources: Vec<String>,
}

/// How far a role or a principal may go.
#[derive(Debug, Serialize)]
struct Level {
    name: String,
    level: &'static str,
}

impl Level {
    fn new(name: String, level: i32) -> Self {
        let level = match pb::Level::try_from(level) {
            Ok(pb::Level::View) => "view",
            Ok(pb::Level::Execute) => "execute",
            Ok(pb::Level::Unspecified) | Err(_) => "unknown",
        };
        Self { name, level }
    }
}

impl From<pb::NamespaceMember> for Member {
    fn from(member: pb::NamespaceMember) -> Self {
        let expose = member.expose.unwrap_or_default();
        Self {
            server: member.server,
            prefix: member.prefix.unwrap_or(true),
            allow: expose.allow,
            deny: expose.deny,
            allow_resources: expose.resources_allow,
            deny_resources: expose.resources_deny,
        }
    }
}

impl From<pb::Namespace> for Namespace {
    fn from(namespace: pb::Namespace) -> Self {
        let spec = namespace.spec.unwrap_or_default();
        Self {
            id: namespace.id,
            tenant: namespace.tenant,
            name: spec.name,
            description: spec.description,
            version: namespace.version,
            servers: spec.servers.into_iter().map(Member::from).collect(),
            roles: spec.levels.into_iter().map(|one| Level::new(one.role, one.level)).collect(),
            principals: spec.principals.into_iter().map(|one| Level::new(one.principal, one.level)).collect(),
            takes_new: spec.is_default,
            tool_search: spec.tool_search,
            created_at: time(namespace.created_at),
            updated_at: time(namespace.updated_at),
        }
    }
}

impl Member {
    fn text(&self) -> String {
        let lists = [
            ("only", &self.allow),
            ("not", &self.deny),
            ("only resources", &self.allow_resources),
            ("no resources", &self.deny_resources),
        ];
        let mut notes: Vec<String> = lists
            .into_iter()
            .filter(|(_, patterns)| !patterns.is_empty())
            .map(|(word, patterns)| format!("{word} {}", list(patterns)))
            .collect();
        if !self.prefix {
            notes.insert(0, "without prefix".to_owned());
        }
        match notes.is_empty() {
            true => self.server.clone(),
            false => format!("{} ({})", self.server, notes.join("; ")),
        }
    }
}

fn levels(levels: &[Level]) -> String {
    let levels: Vec<String> = levels.iter().map(|one| format!("{} {}", one.name, one.level)).collect();
    levels.join(", ")
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

impl Shape for Namespace {
    fn text(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(Member::text).collect();
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("tenant", self.tenant.clone()),
            ("description", self.description.clone()),
            ("version", self.version.to_string()),
            ("servers", servers.join("\n")),
            ("roles", levels(&self.roles)),
            ("principals", levels(&self.principals)),
            ("takes new", yes(self.takes_new)),
            ("tool search", yes(self.tool_search)),
            ("created", stamp(self.created_at)),
            ("updated", stamp(self.updated_at)),
        ])
    }
}

impl Shape for [Namespace] {
    fn text(&self) -> String {
        let rows = self.iter().map(|namespace| {
            [
                namespace.name.clone(),
                namespace.servers.len().to_string(),
                levels(&namespace.roles),
                yes(namespace.takes_new),
                since(namespace.updated_at),
            ]
        });
        columns(
            ["NAME", "SERVERS", "ROLES", "TAKES NEW", "CHANGED"],
            rows,
            "There are no namespaces. Make one with `wafflectl namespace add NAME --server SERVER`.",
        )
    }
}
