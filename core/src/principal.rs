//! Who is asking: users and service accounts, with the roles that they hold and where.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::policy::{Held, Permission, PermissionSet, Role, RoleDef, Scope, Target};

/// What kind of principal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrincipalKind {
    /// A person, who logs in.
    #[default]
    User,
    /// A program, which has API keys only.
    ServiceAccount,
}

impl PrincipalKind {
    /// One word, as in conditions and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServiceAccount => "service_account",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::User, Self::ServiceAccount].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A user or service account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Principal {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant: String,
    /// E-mail address of a user, name of a service account.
    pub name: String,
    /// What kind it is.
    pub kind: PrincipalKind,
    /// Names of its groups.
    pub groups: Vec<String>,
    /// The roles that it holds in the whole tenant, itself or through groups. One that this program does not know gives
    /// nothing.
    pub roles: Vec<String>,
    /// The roles that it holds on less, itself or through groups.
    pub grants: Vec<Held>,
    /// What those of its roles permit that are not built in.
    pub custom: Vec<Arc<RoleDef>>,
    /// A deactivated principal is refused.
    pub active: bool,
    /// Access tokens issued before this time are refused.
    pub tokens_not_before: Option<DateTime<Utc>>,
}

impl Principal {
    /// What its roles permit together in the whole tenant.
    pub fn permissions(&self) -> PermissionSet {
        let roles = self.roles.iter().map(|role| self.permissions_of(role));
        roles.fold(PermissionSet::NONE, |all, more| all | more)
    }

    /// What it may do to one thing: what it may do in the whole tenant, and what it holds on that.
    pub fn permissions_on(&self, target: Target<'_>) -> PermissionSet {
        let on = |scope: &Scope| match (scope, target) {
            (Scope::Tenant, _) => true,
            (Scope::Namespace(held), Target::Namespace(name))
            | (Scope::Server(held), Target::Server(name)) => held == name,
            _ => false,
        };
        let held = self.grants.iter().filter(|held| on(&held.scope));
        held.fold(self.permissions(), |all, held| all | self.permissions_of(&held.role))
    }

    /// Whether it may do something somewhere.
    pub fn holds_anywhere(&self, permission: Permission) -> bool {
        self.permissions().contains(permission)
            || self.grants.iter().any(|held| self.permissions_of(&held.role).contains(permission))
    }

    /// What one of its roles permits, wherever that is held. Nothing where the role is not known.
    pub fn permissions_of(&self, role: &str) -> PermissionSet {
        let permitted = match Role::parse(role) {
            Some(role) => role.permissions(),
            None => {
                let custom = self.custom.iter().find(|custom| custom.name == role);
                custom.map_or(PermissionSet::NONE, |custom| custom.permissions)
            }
        };
        permitted.of_tenant(&self.tenant)
    }

    /// The names of the custom roles that it holds anywhere: those whose definitions `custom` has to hold.
    pub fn custom_names(&self) -> impl Iterator<Item = &str> {
        let narrower = self.grants.iter().map(|held| &held.role);
        self.roles.iter().chain(narrower).map(String::as_str).filter(|name| Role::parse(name).is_none())
    }
}
