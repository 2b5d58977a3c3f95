//! Who is asking: users and service accounts, with their roles.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::policy::{PermissionSet, Role};

/// A user or service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant: String,
    /// E-mail address of a user, name of a service account.
    pub name: String,
    /// Its roles. A role that this program does not know gives nothing.
    pub roles: Vec<String>,
    /// A deactivated principal is refused.
    pub active: bool,
    /// Access tokens issued before this time are refused.
    pub tokens_not_before: Option<DateTime<Utc>>,
}

impl Principal {
    /// What its roles permit together.
    pub fn permissions(&self) -> PermissionSet {
        self.roles
            .iter()
            .filter_map(|name| Role::parse(name))
            .fold(PermissionSet::NONE, |all, role| all | role.permissions())
    }
}
