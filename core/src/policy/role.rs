//! Roles: sets of permissions, the built-in ones and those that a tenant makes; and where somebody holds one.

use uuid::Uuid;

use super::permission::{Permission, PermissionSet};
use crate::server::{fits, is_pattern};
use crate::{FieldError, is_dns_label};

/// The built-in roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything in the tenant; in the tenant `default` also what is of the whole installation.
    Admin,
    /// Manages servers, namespaces and proxies, reads audit.
    Operator,
    /// Discovers and uses the gateway.
    User,
    /// Sees servers and health, calls nothing.
    Readonly,
    /// Reads the audit with payloads, nothing else.
    Auditor,
    /// Manages the installation: tenants, proxies, keys. Sees no tenant's data.
    Platform,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 6] =
        [Role::Admin, Role::Operator, Role::User, Role::Readonly, Role::Auditor, Role::Platform];

    /// The role's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::User => "user",
            Self::Readonly => "readonly",
            Self::Auditor => "auditor",
            Self::Platform => "platform",
        }
    }

    /// One sentence about it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Admin => "Everything.",
            Self::Operator => "Manages servers, namespaces and proxies; reads audit and analytics.",
            Self::User => "Discovers and uses the gateway.",
            Self::Readonly => "Sees servers, health and analytics; calls nothing.",
            Self::Auditor => "Reads the audit with payloads, nothing else.",
            Self::Platform => "Manages tenants, proxies and keys of the installation; sees no tenant's data.",
        }
    }

    /// Reads a role's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// What the role permits.
    pub fn permissions(self) -> PermissionSet {
        use Permission as P;
        let set: &[P] = match self {
            Self::Admin => Permission::ALL,
            Self::Operator => &[
                P::ServersRead,
                P::ServersWrite,
                P::NamespacesRead,
                P::NamespacesWrite,
                P::ProxiesRead,
                P::ProxiesWrite,
                P::AuditRead,
                P::KeysOwn,
                P::StatusRead,
                P::PrincipalsRead,
                P::AccessRead,
                P::PoliciesRead,
            ],
            Self::User => &[P::GatewayUse, P::ServersRead, P::NamespacesRead, P::KeysOwn, P::StatusRead],
            Self::Readonly => &[P::ServersRead, P::NamespacesRead, P::KeysOwn, P::StatusRead],
            Self::Auditor => &[P::AuditRead, P::AuditPayloads],
            Self::Platform => {
                &[P::TenantsManage, P::ProxiesRead, P::ProxiesWrite, P::SecretsRotate, P::StatusRead]
            }
        };
        set.iter().copied().collect()
    }
}

/// A role that a tenant made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleDef {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// A DNS label, unique in the tenant, never that of a built-in role.
    pub name: String,
    /// Free text.
    pub description: String,
    /// What it permits.
    pub permissions: PermissionSet,
}

impl RoleDef {
    /// Everything that is wrong with it, field by field.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: &str, reason: &str| problems.push(FieldError::new(field, reason));
        if !is_dns_label(&self.name) {
            wrong("name", "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
        } else if Role::parse(&self.name).is_some() {
            wrong("name", "is the name of a built-in role");
        }
        if self.description.chars().count() > 1000 || self.description.contains('\0') {
            wrong("description", "must have at most 1000 characters and no NUL");
        }
        if self.permissions.is_empty() {
            wrong("permissions", "must not be empty");
        }
        problems
    }
}

/// Where a role is held.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// In the whole tenant.
    Tenant,
    /// At the door of a namespace, by its name.
    Namespace(String),
    /// On one server, by its name.
    Server(String),
    /// On tools of a server, or of every server (`*`), by pattern.
    Tools {
        /// The server's name, or `*`.
        server: String,
        /// A name, or a pattern in which `*` stands for any run of characters.
        pattern: String,
    },
}

impl Scope {
    /// What is wrong with it; `at` is put before the names of its fields.
    pub fn problems(&self, at: &str) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut label = |field: &str, name: &str| {
            if !is_dns_label(name) {
                problems.push(FieldError::new(format!("{at}{field}"), "is not a name"));
            }
        };
        match self {
            Self::Tenant => {}
            Self::Namespace(name) => label("namespace", name),
            Self::Server(name) => label("server", name),
            Self::Tools { server, pattern } => {
                if server != "*" {
                    label("server", server);
                }
                if !is_pattern(pattern) {
                    let reason = "must be 1 to 128 letters, digits or any of `_./-*`";
                    problems.push(FieldError::new(format!("{at}tools"), reason));
                }
            }
        }
        problems
    }

    /// Whether it reaches a tool of a server.
    pub(super) fn reaches_tool(&self, server: &str, tool: &str) -> bool {
        match self {
            Self::Tools { server: of, pattern } => (of == "*" || of == server) && fits(pattern, tool),
            _ => false,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tenant => f.write_str("tenant"),
            Self::Namespace(name) => write!(f, "namespace/{name}"),
            Self::Server(name) => write!(f, "server/{name}"),
            Self::Tools { server, pattern } => write!(f, "tools/{server}/{pattern}"),
        }
    }
}

/// A role held somewhere narrower than the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The role's name.
    pub role: String,
    /// Where.
    pub scope: Scope,
}

/// What an administrative act is about, for permissions that are held on less than the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The tenant as a whole.
    Tenant,
    /// A namespace, by its name.
    Namespace(&'a str),
    /// A server, by its name.
    Server(&'a str),
}
