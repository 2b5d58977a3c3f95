//! What one may be permitted to do: one enumerated list, resource and action, for roles, scopes of keys and every route
//! and method.

use crate::DEFAULT_TENANT;

macro_rules! permissions {
    ($($name:ident = $text:literal: $doc:literal,)*) => {
        /// A resource and an action on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Permission { $(#[doc = $doc] $name,)* }

        impl Permission {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Permission] = &[$(Permission::$name,)*];

            /// `resource:action`, as in key scopes.
            pub fn as_str(self) -> &'static str {
                match self { $(Permission::$name => $text,)* }
            }

            /// Reads `resource:action`.
            pub fn parse(text: &str) -> Option<Permission> {
                match text { $($text => Some(Permission::$name),)* _ => None }
            }
        }
    };
}

permissions! {
    GatewayUse = "gateway:use": "List and call what servers offer.",
    ServersRead = "servers:read": "See registered servers.",
    ServersWrite = "servers:write": "Register, change and retire servers.",
    NamespacesRead = "namespaces:read": "See the namespaces that one may use.",
    NamespacesWrite = "namespaces:write": "Make, change and remove namespaces, and see all of them.",
    ProxiesRead = "proxies:read": "See proxies and what they acknowledged.",
    ProxiesWrite = "proxies:write": "Enrol proxies, and shut them out.",
    AuditRead = "audit:read": "Search the audit trail, without payloads.",
    AuditPayloads = "audit:payloads": "See captured payloads.",
    KeysOwn = "keys:own": "Issue and revoke API keys of one's own.",
    KeysManage = "keys:manage": "See and revoke the API keys of others.",
    StatusRead = "status:read": "See how the control plane is doing.",
    PrincipalsRead = "principals:read": "See users, service accounts, groups and sessions.",
    PrincipalsWrite = "principals:write": "Make, change and deactivate users, service accounts and groups; end sessions.",
    AccessRead = "access:read": "See roles and grants, and have the calls of others explained.",
    AccessWrite = "access:write": "Make roles, and grant what one holds oneself.",
    PoliciesRead = "policies:read": "See the rules of the policy, and try drafts on the audit trail.",
    PoliciesWrite = "policies:write": "Change the rules of the policy.",
    TenantsManage = "tenants:manage": "Make tenants, suspend them, and set their limits.",
    SecretsRotate = "secrets:rotate": "Rotate the keys that secrets are sealed with.",
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PermissionSet(u64);

impl PermissionSet {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Every permission.
    pub fn all() -> Self {
        Permission::ALL.iter().copied().collect()
    }

    /// Whether it holds a permission.
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u8) != 0
    }

    /// Without what is of the whole installation and not of one tenant: only principals of the tenant `default` hold that.
    #[must_use]
    pub fn of_tenant(self, tenant: &str) -> Self {
        if tenant == DEFAULT_TENANT { self } else { Self(self.0 & !Self::platform().0) }
    }

    fn platform() -> Self {
        use Permission as P;
        [P::ProxiesRead, P::ProxiesWrite, P::TenantsManage, P::SecretsRotate].into_iter().collect()
    }

    /// Whether it holds all that the other one holds.
    pub fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it holds nothing.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What both sets hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Its permissions in order.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |p| self.contains(*p))
    }
}

impl std::ops::BitOr for PermissionSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, |set, p| Self(set.0 | 1 << p as u8))
    }
}
