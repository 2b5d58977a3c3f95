//! Users, service accounts, groups, sessions, roles and grants.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::wire::time;
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::grant_holder::Who;
use waffles_proto::policy::v1 as policy_pb;

use super::{list, since, stamp};
use crate::output::{Shape, columns, fields};

/// A role and where it is held.
#[derive(Debug, Serialize)]
pub(crate) struct HeldRole {
    role: String,
    /// `tenant`, `namespace/NAME`, `server/NAME` or `tools/SERVER/PATTERN`.
    scope: String,
}

impl From<policy_pb::HeldRole> for HeldRole {
    fn from(held: policy_pb::HeldRole) -> Self {
        Self { role: held.role, scope: scope(held.scope) }
    }
}

fn scope(scope: Option<policy_pb::Scope>) -> String {
    let scope = scope.and_then(waffles_core::wire::scope_from_proto);
    scope.map_or_else(|| "unknown".to_owned(), |scope| scope.to_string())
}

/// Roles on one line each; where one is held in the whole tenant, that goes without saying.
pub(super) fn roles(held: &[HeldRole]) -> String {
    let one = |held: &HeldRole| match held.scope.as_str() {
        "tenant" => held.role.clone(),
        scope => format!("{} on {scope}", held.role),
    };
    held.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// A user or service account.
#[derive(Debug, Serialize)]
pub(crate) struct Account {
    id: String,
    tenant: String,
    name: String,
    display_name: String,
    status: &'static str,
    groups: Vec<String>,
    roles: Vec<HeldRole>,
    created_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_token: Option<PasswordToken>,
}

impl From<pb::Account> for Account {
    fn from(account: pb::Account) -> Self {
        Self {
            id: account.id,
            tenant: account.tenant,
            name: account.name,
            display_name: account.display_name,
            status: match (account.active, account.invited) {
                (false, _) => "deactivated",
                (true, true) => "invited",
                (true, false) => "active",
            },
            groups: account.groups,
            roles: account.roles.into_iter().map(HeldRole::from).collect(),
            created_at: time(account.created_at),
            password_token: None,
        }
    }
}

impl Account {
    /// A user that was just made, with what is shown this once.
    pub(crate) fn with_token(self, token: pb::PasswordToken) -> Self {
        Self { password_token: Some(token.into()), ..self }
    }
}

impl Shape for Account {
    fn text(&self) -> String {
        let token = self.password_token.as_ref();
        fields([
            ("token", token.map(|token| token.secret.clone()).unwrap_or_default()),
            ("token ends", stamp(token.and_then(|token| token.expires_at))),
            ("name", self.name.clone()),
            ("display name", self.display_name.clone()),
            ("id", self.id.clone()),
            ("tenant", self.tenant.clone()),
            ("status", self.status.to_owned()),
            ("groups", list(&self.groups)),
            ("roles", roles(&self.roles)),
            ("created", stamp(self.created_at)),
        ])
    }
}

impl Shape for [Account] {
    fn text(&self) -> String {
        let rows = self.iter().map(|account| {
            [
                account.name.clone(),
                account.status.to_owned(),
                list(&account.groups),
                roles(&account.roles).replace('\n', ", "),
                since(account.created_at),
            ]
        });
        columns(["NAME", "STATUS", "GROUPS", "ROLES", "AGE"], rows, "There are none.")
    }
}

/// A token that sets a password once.
#[derive(Debug, Serialize)]
pub(crate) struct PasswordToken {
    secret: String,
    expires_at: Option<DateTime<Utc>>,
}

impl From<pb::PasswordToken> for PasswordToken {
    fn from(token: pb::PasswordToken) -> Self {
        Self { secret: token.secret, expires_at: time(token.expires_at) }
    }
}

impl Shape for PasswordToken {
    fn text(&self) -> String {
        fields([("token", self.secret.clone()), ("token ends", stamp(self.expires_at))])
    }
}

/// A session that lives.
#[derive(Debug, Serialize)]
pub(crate) struct Session {
    id: String,
    user_id: String,
    user_name: String,
    created_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    client_ip: String,
    current: bool,
}

impl From<pb::Session> for Session {
    fn from(session: pb::Session) -> Self {
        Self {
            id: session.id,
            user_id: session.user_id,
            user_name: session.user_name,
            created_at: time(session.created_at),
            last_used_at: time(session.last_used_at),
            expires_at: time(session.expires_at),
            client_ip: session.client_ip,
            current: session.current,
        }
    }
}

impl Shape for [Session] {
    fn text(&self) -> String {
        let rows = self.iter().map(|session| {
            [
                session.id.clone(),
                session.user_name.clone(),
                session.client_ip.clone(),
                since(session.created_at),
                since(session.last_used_at),
                if session.current { "this one" } else { "" }.to_owned(),
            ]
        });
        columns(["ID", "USER", "FROM", "AGE", "LAST USED", ""], rows, "There are none.")
    }
}

/// A group.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    id: String,
    tenant: String,
    name: String,
    description: String,
    member_count: u32,
    created_at: Option<DateTime<Utc>>,
}

impl From<pb::Group> for Group {
    fn from(group: pb::Group) -> Self {
        Self {
            id: group.id,
            tenant: group.tenant,
            name: group.name,
            description: group.description,
            member_count: group.member_count,
            created_at: time(group.created_at),
        }
    }
}

impl Shape for Group {
    fn text(&self) -> String {
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("tenant", self.tenant.clone()),
            ("description", self.description.clone()),
            ("members", self.member_count.to_string()),
            ("created", stamp(self.created_at)),
        ])
    }
}

impl Shape for [Group] {
    fn text(&self) -> String {
        let rows = self.iter().map(|group| {
            let description = group.description.clone();
            [group.name.clone(), group.member_count.to_string(), description, since(group.created_at)]
        });
        columns(["NAME", "MEMBERS", "DESCRIPTION", "AGE"], rows, "There are no groups.")
    }
}

/// A member of a group.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    id: String,
    name: String,
    kind: &'static str,
    active: bool,
    added_at: Option<DateTime<Utc>>,
}

impl From<pb::GroupMember> for Member {
    fn from(member: pb::GroupMember) -> Self {
        Self {
            id: member.id,
            name: member.name,
            kind: if member.service_account { "service_account" } else { "user" },
            active: member.active,
            added_at: time(member.added_at),
        }
    }
}

impl Shape for [Member] {
    fn text(&self) -> String {
        let rows = self.iter().map(|member| {
            let active = if member.active { "yes" } else { "no" };
            [member.name.clone(), member.kind.replace('_', " "), active.to_owned(), since(member.added_at)]
        });
        columns(["NAME", "KIND", "ACTIVE", "SINCE"], rows, "There are no members.")
    }
}

/// A role.
#[derive(Debug, Serialize)]
pub(crate) struct Role {
    id: String,
    name: String,
    description: String,
    permissions: Vec<String>,
    built_in: bool,
    version: u64,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
}

impl From<pb::Role> for Role {
    fn from(role: pb::Role) -> Self {
        Self {
            id: role.id,
            name: role.name,
            description: role.description,
            permissions: role.permissions,
            built_in: role.built_in,
            version: role.version,
            created_at: time(role.created_at),
            updated_at: time(role.updated_at),
        }
    }
}

impl Shape for Role {
    fn text(&self) -> String {
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("description", self.description.clone()),
            ("built in", if self.built_in { "yes" } else { "" }.to_owned()),
            ("permissions", self.permissions.join("\n")),
            ("version", if self.built_in { String::new() } else { self.version.to_string() }),
            ("created", stamp(self.created_at)),
            ("changed", stamp(self.updated_at)),
        ])
    }
}

impl Shape for [Role] {
    fn text(&self) -> String {
        let rows = self.iter().map(|role| {
            let kind = if role.built_in { "built in" } else { "own" };
            let (count, description) = (role.permissions.len().to_string(), role.description.clone());
            [role.name.clone(), kind.to_owned(), count, description]
        });
        columns(["NAME", "KIND", "PERMISSIONS", "DESCRIPTION"], rows, "There are no roles.")
    }
}

/// A role that somebody holds somewhere.
#[derive(Debug, Serialize)]
pub(crate) struct Grant {
    id: String,
    role: String,
    principal: Option<String>,
    group: Option<String>,
    holder_id: String,
    scope: String,
    created_at: Option<DateTime<Utc>>,
    created_by: Option<String>,
}

impl From<pb::Grant> for Grant {
    fn from(grant: pb::Grant) -> Self {
        let (principal, group) = match grant.holder.and_then(|holder| holder.who) {
            Some(Who::Principal(name)) => (Some(name), None),
            Some(Who::Group(name)) => (None, Some(name)),
            None => (None, None),
        };
        Self {
            id: grant.id,
            role: grant.role,
            principal,
            group,
            holder_id: grant.holder_id,
            scope: scope(grant.scope),
            created_at: time(grant.created_at),
            created_by: Some(grant.created_by).filter(|id| !id.is_empty()),
        }
    }
}

impl Grant {
    fn holder(&self) -> String {
        match (&self.principal, &self.group) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => format!("group {name}"),
            (None, None) => String::new(),
        }
    }
}

impl Shape for Grant {
    fn text(&self) -> String {
        fields([
            ("id", self.id.clone()),
            ("role", self.role.clone()),
            ("to", self.holder()),
            ("on", self.scope.clone()),
            ("created", stamp(self.created_at)),
        ])
    }
}

impl Shape for [Grant] {
    fn text(&self) -> String {
        let rows = self.iter().map(|grant| {
            let (id, role, scope) = (grant.id.clone(), grant.role.clone(), grant.scope.clone());
            [id, role, grant.holder(), scope, since(grant.created_at)]
        });
        columns(["ID", "ROLE", "TO", "ON", "AGE"], rows, "There are no grants.")
    }
}
