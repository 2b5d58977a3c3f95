//! May this actor do this? One table names what every REST route and every RPC needs; what stands in no row
//! is denied. `OpCtx` is who acts: only the doors in `identity` make one, and every service asks it.

mod holding;

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use http::Method;
use uuid::Uuid;
use waffles_core::DEFAULT_TENANT;
use waffles_core::credential::ApiKey;
use waffles_core::policy::{Caller, Permission, PermissionSet};
use waffles_core::principal::Principal;
use waffles_core::proxy::ProxyIdentity;

use crate::error::Error;

/// Who acts, in which request, from where.
#[derive(Debug, Clone)]
pub struct OpCtx {
    principal: Principal,
    key: Option<ApiKey>,
    session: Option<Uuid>,
    /// What is held in the whole tenant.
    permissions: PermissionSet,
    /// What the credential lets through of what its owner holds anywhere.
    passed: PermissionSet,
    request_id: Uuid,
    address: Option<IpAddr>,
}

impl OpCtx {
    /// Someone whose credential was checked. Only `identity` calls this.
    pub(crate) fn authenticated(
        principal: Principal,
        key: Option<ApiKey>,
        session: Option<Uuid>,
        request_id: Uuid,
        address: Option<IpAddr>,
    ) -> Self {
        let mut passed = key.as_ref().map_or_else(PermissionSet::all, ApiKey::scopes);
        if key.as_ref().is_some_and(|key| key.limits.read_only) {
            passed = passed.iter().filter(|p| !changes(*p)).collect();
        }
        let permissions = principal.permissions().and(passed);
        Self { principal, key, session, permissions, passed, request_id, address }
    }

    /// Nobody yet: may do what is public.
    pub(crate) fn anonymous(request_id: Uuid, address: Option<IpAddr>) -> Self {
        let principal = internal_principal("anonymous");
        let none = PermissionSet::NONE;
        Self { principal, key: None, session: None, permissions: none, passed: none, request_id, address }
    }

    /// Whether it is Waffles itself.
    pub fn is_system(&self) -> bool {
        self.principal.id.is_nil() && self.principal.active
    }

    /// A proxy, in what it does to itself. It has no permission of an operator.
    pub(crate) fn of_proxy(proxy: &ProxyPeer, request_id: Uuid, address: Option<IpAddr>) -> Self {
        let principal = internal_principal(&format!("proxy {}", proxy.id()));
        let none = PermissionSet::NONE;
        Self { principal, key: None, session: None, permissions: none, passed: none, request_id, address }
    }

    /// The user who has just shown a password or a refresh token, in the same request.
    pub(crate) fn on_behalf_of(&self, user: Principal, session: Uuid) -> Self {
        Self::authenticated(user, None, Some(session), self.request_id, self.address)
    }

    /// Waffles itself, for what happens at start and in tasks.
    pub fn system() -> Self {
        Self::system_of(DEFAULT_TENANT)
    }

    /// Waffles itself, in a tenant.
    pub fn system_of(tenant: &str) -> Self {
        Self {
            principal: Principal { tenant: tenant.to_owned(), ..internal_principal("system") },
            key: None,
            session: None,
            permissions: PermissionSet::all(),
            passed: PermissionSet::all(),
            request_id: Uuid::now_v7(),
            address: None,
        }
    }

    /// Refuses unless the actor has the permission in the whole tenant.
    pub fn require(&self, permission: Permission) -> Result<(), Error> {
        if self.may(permission) { Ok(()) } else { Err(self.refusal()) }
    }

    /// Refuses a key that may only read; for changes whose permission also covers reading.
    pub fn require_change(&self) -> Result<(), Error> {
        match &self.key {
            Some(key) if key.limits.read_only => Err(Error::Denied),
            _ => Ok(()),
        }
    }

    /// Refuses unless the row of a route or method lets the actor through.
    pub fn enter(&self, (rule, act): (Rule, Act)) -> Result<(), Error> {
        self.check(rule)?;
        if act == Act::Changes { self.require_change() } else { Ok(()) }
    }

    /// Refuses unless the rule of a route or method lets the actor through. `Proxy` lets no operator through.
    pub fn check(&self, rule: Rule) -> Result<(), Error> {
        let permitted = match rule {
            Rule::Public => true,
            Rule::Authenticated => self.is_authenticated(),
            Rule::Needs(permission) => self.may_somewhere(permission),
            Rule::NeedsEither(a, b) => self.may_somewhere(a) || self.may_somewhere(b),
            Rule::Proxy | Rule::Join => false,
        };
        if permitted { Ok(()) } else { Err(self.refusal()) }
    }

    /// Whether the actor has the permission in the whole tenant.
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }

    /// Whether a server exists for the actor: a key that is for some servers does not know of others,
    /// and one that is for some namespaces knows of servers through them only.
    pub fn sees_server(&self, name: &str) -> bool {
        let within = |key: &ApiKey| key.allows_server(name) && key.limits.namespaces.is_empty();
        self.key.as_ref().is_none_or(within)
    }

    /// Whether a namespace exists for the actor: a key that is for some namespaces does not know of others.
    pub fn sees_namespace(&self, name: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.allows_namespace(name))
    }

    /// Whether a server exists for the actor as a member of a namespace that the actor sees.
    pub fn sees_member(&self, server: &str) -> bool {
        self.key.as_ref().is_none_or(|key| key.allows_server(server))
    }

    /// The actor as policy knows it.
    pub fn caller(&self) -> Caller<'_> {
        Caller { principal: &self.principal, key: self.key.as_ref(), address: self.address }
    }

    /// What principal and key permit together in the whole tenant.
    pub fn permissions(&self) -> PermissionSet {
        self.permissions
    }

    /// The tenant in which everything happens.
    pub fn tenant(&self) -> &str {
        &self.principal.tenant
    }

    /// Who acts.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The API key used; none for a token.
    pub fn key(&self) -> Option<&ApiKey> {
        self.key.as_ref()
    }

    /// The session of the token used; none for a key.
    pub fn session(&self) -> Option<Uuid> {
        self.session
    }

    /// The request.
    pub fn request_id(&self) -> Uuid {
        self.request_id
    }

    /// Where it comes from.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    fn is_authenticated(&self) -> bool {
        self.principal.active
    }

    fn refusal(&self) -> Error {
        if self.is_authenticated() { Error::Denied } else { Error::Unauthenticated }
    }
}

/// A proxy whose certificate was checked. Services that serve proxies ask for one.
#[derive(Debug, Clone)]
pub struct ProxyPeer {
    identity: ProxyIdentity,
    issued_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
}

impl ProxyPeer {
    /// The holder of a certificate of ours. Only `enrolment` calls this.
    pub(crate) fn certified(
        identity: ProxyIdentity,
        issued_at: DateTime<Utc>,
        ends_at: DateTime<Utc>,
    ) -> Self {
        Self { identity, issued_at, ends_at }
    }

    /// Who it is.
    pub fn id(&self) -> Uuid {
        self.identity.id
    }

    /// Its group.
    pub fn group(&self) -> &str {
        &self.identity.group
    }

    /// When its certificate was issued.
    pub fn issued_at(&self) -> DateTime<Utc> {
        self.issued_at
    }

    /// When its certificate ends.
    pub fn ends_at(&self) -> DateTime<Utc> {
        self.ends_at
    }
}

/// How a connection came in.
#[derive(Debug, Clone, Default)]
pub enum Channel {
    /// In the clear, on this machine.
    #[default]
    Plain,
    /// Encrypted, from someone without a certificate.
    Encrypted,
    /// Encrypted, from a proxy.
    Proxy(ProxyPeer),
}

fn internal_principal(name: &str) -> Principal {
    Principal {
        id: Uuid::nil(),
        tenant: DEFAULT_TENANT.to_owned(),
        name: name.to_owned(),
        active: name == "system",
        ..Principal::default()
    }
}

/// Permissions that are for changing only; a read-only key has none of them.
fn changes(permission: Permission) -> bool {
    use Permission as P;
    matches!(
        permission,
        P::ServersWrite
            | P::NamespacesWrite
            | P::ProxiesWrite
            | P::PrincipalsWrite
            | P::AccessWrite
            | P::PoliciesWrite
    )
}

/// What a route or method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    Public,
    /// Any valid credential of an operator.
    Authenticated,
    /// A permission, somewhere; the service asks whether it is held on what the request is about.
    Needs(Permission),
    /// One of two permissions, somewhere; the service narrows what the lesser one sees.
    NeedsEither(Permission, Permission),
    /// The certificate of a proxy.
    Proxy,
    /// A join token in the request, over a connection that is encrypted.
    Join,
}

/// Whether a route or method changes anything. A key that may only read is let through where nothing is changed,
/// whatever its permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing is changed.
    Reads,
    /// Something is changed, issued or sent.
    Changes,
}

use Act::{Changes, Reads};
use Permission as P;
use Rule::Needs;

const OWN_OR_ALL_KEYS: Rule = Rule::NeedsEither(Permission::KeysOwn, Permission::KeysManage);

/// Every REST route, as the router spells it: what it needs, and whether it changes anything.
pub const ROUTES: &[(Method, &str, Rule, Act)] = &[
    (Method::GET, "/health", Rule::Public, Reads),
    (Method::GET, "/ready", Rule::Public, Reads),
    (Method::GET, "/api/v1/openapi.json", Rule::Public, Reads),
    (Method::POST, "/api/v1/auth/login", Rule::Public, Changes),
    (Method::POST, "/api/v1/auth/refresh", Rule::Public, Changes),
    (Method::POST, "/api/v1/auth/logout", Rule::Public, Changes),
    (Method::GET, "/api/v1/auth/me", Rule::Authenticated, Reads),
    (Method::POST, "/api/v1/auth/password", Rule::Authenticated, Changes),
    (Method::POST, "/api/v1/auth/password/reset", Rule::Public, Changes),
    (Method::GET, "/api/v1/sessions", Rule::Authenticated, Reads),
    (Method::DELETE, "/api/v1/sessions", Rule::Authenticated, Changes),
    (Method::DELETE, "/api/v1/sessions/{id}", Rule::Authenticated, Changes),
    (Method::GET, "/api/v1/users", Needs(P::PrincipalsRead), Reads),
    (Method::POST, "/api/v1/users", Needs(P::PrincipalsWrite), Changes),
    (Method::GET, "/api/v1/users/{name}", Needs(P::PrincipalsRead), Reads),
    (Method::POST, "/api/v1/users/{name}/deactivate", Needs(P::PrincipalsWrite), Changes),
    (Method::POST, "/api/v1/users/{name}/reactivate", Needs(P::PrincipalsWrite), Changes),
    (Method::POST, "/api/v1/users/{name}/password-token", Needs(P::PrincipalsWrite), Changes),
    (Method::GET, "/api/v1/service-accounts", Needs(P::PrincipalsRead), Reads),
    (Method::POST, "/api/v1/service-accounts", Needs(P::PrincipalsWrite), Changes),
    (Method::GET, "/api/v1/service-accounts/{name}", Needs(P::PrincipalsRead), Reads),
    (Method::POST, "/api/v1/service-accounts/{name}/deactivate", Needs(P::PrincipalsWrite), Changes),
    (Method::POST, "/api/v1/service-accounts/{name}/reactivate", Needs(P::PrincipalsWrite), Changes),
    (Method::POST, "/api/v1/service-accounts/{name}/api-keys", Needs(P::KeysManage), Changes),
    (Method::GET, "/api/v1/groups", Needs(P::PrincipalsRead), Reads),
    (Method::POST, "/api/v1/groups", Needs(P::PrincipalsWrite), Changes),
    (Method::GET, "/api/v1/groups/{name}", Needs(P::PrincipalsRead), Reads),
    (Method::DELETE, "/api/v1/groups/{name}", Needs(P::PrincipalsWrite), Changes),
    (Method::PUT, "/api/v1/groups/{name}/members/{member}", Needs(P::PrincipalsWrite), Changes),
    (Method::DELETE, "/api/v1/groups/{name}/members/{member}", Needs(P::PrincipalsWrite), Changes),
    (Method::GET, "/api/v1/roles", Needs(P::AccessRead), Reads),
    (Method::POST, "/api/v1/roles", Needs(P::AccessWrite), Changes),
    (Method::GET, "/api/v1/roles/{name}", Needs(P::AccessRead), Reads),
    (Method::PUT, "/api/v1/roles/{name}", Needs(P::AccessWrite), Changes),
    (Method::DELETE, "/api/v1/roles/{name}", Needs(P::AccessWrite), Changes),
    (Method::GET, "/api/v1/grants", Needs(P::AccessRead), Reads),
    (Method::POST, "/api/v1/grants", Needs(P::AccessWrite), Changes),
    (Method::DELETE, "/api/v1/grants/{id}", Needs(P::AccessWrite), Changes),
    (Method::GET, "/api/v1/servers", Needs(P::ServersRead), Reads),
    (Method::POST, "/api/v1/servers", Needs(P::ServersWrite), Changes),
    (Method::GET, "/api/v1/servers/{name}", Needs(P::ServersRead), Reads),
    (Method::PUT, "/api/v1/servers/{name}", Needs(P::ServersWrite), Changes),
    (Method::DELETE, "/api/v1/servers/{name}", Needs(P::ServersWrite), Changes),
    (Method::POST, "/api/v1/servers/{name}/enable", Needs(P::ServersWrite), Changes),
    (Method::POST, "/api/v1/servers/{name}/disable", Needs(P::ServersWrite), Changes),
    (Method::GET, "/api/v1/servers/{name}/health", Needs(P::ServersRead), Reads),
    (Method::POST, "/api/v1/servers/{name}/health", Needs(P::ServersWrite), Changes),
    (Method::GET, "/api/v1/namespaces", Needs(P::NamespacesRead), Reads),
    (Method::POST, "/api/v1/namespaces", Needs(P::NamespacesWrite), Changes),
    (Method::GET, "/api/v1/namespaces/{name}", Needs(P::NamespacesRead), Reads),
    (Method::PUT, "/api/v1/namespaces/{name}", Needs(P::NamespacesWrite), Changes),
    (Method::DELETE, "/api/v1/namespaces/{name}", Needs(P::NamespacesWrite), Changes),
    (Method::PUT, "/api/v1/namespaces/{name}/servers/{server}", Needs(P::NamespacesWrite), Changes),
    (Method::DELETE, "/api/v1/namespaces/{name}/servers/{server}", Needs(P::NamespacesWrite), Changes),
    (Method::GET, "/api/v1/api-keys", OWN_OR_ALL_KEYS, Reads),
    (Method::POST, "/api/v1/api-keys", Needs(P::KeysOwn), Changes),
    (Method::GET, "/api/v1/api-keys/{id}", OWN_OR_ALL_KEYS, Reads),
    (Method::DELETE, "/api/v1/api-keys/{id}", OWN_OR_ALL_KEYS, Changes),
    (Method::GET, "/api/v1/policy/rules", Needs(P::PoliciesRead), Reads),
    (Method::POST, "/api/v1/policy/rules", Needs(P::PoliciesWrite), Changes),
    (Method::PUT, "/api/v1/policy/rules", Needs(P::PoliciesWrite), Changes),
    (Method::GET, "/api/v1/policy/rules/{name}", Needs(P::PoliciesRead), Reads),
    (Method::PUT, "/api/v1/policy/rules/{name}", Needs(P::PoliciesWrite), Changes),
    (Method::DELETE, "/api/v1/policy/rules/{name}", Needs(P::PoliciesWrite), Changes),
    (Method::GET, "/api/v1/policy/versions", Needs(P::PoliciesRead), Reads),
    (Method::GET, "/api/v1/policy/versions/{version}", Needs(P::PoliciesRead), Reads),
    (Method::POST, "/api/v1/policy/rollback", Needs(P::PoliciesWrite), Changes),
    (Method::POST, "/api/v1/policy/explain", Rule::Authenticated, Reads),
    (Method::POST, "/api/v1/policy/diff", Needs(P::PoliciesRead), Reads),
    (Method::GET, "/api/v1/limits", Needs(P::PoliciesRead), Reads),
    (Method::POST, "/api/v1/limits", Needs(P::PoliciesWrite), Changes),
    (Method::GET, "/api/v1/limits/{name}", Needs(P::PoliciesRead), Reads),
    (Method::PUT, "/api/v1/limits/{name}", Needs(P::PoliciesWrite), Changes),
    (Method::DELETE, "/api/v1/limits/{name}", Needs(P::PoliciesWrite), Changes),
    (Method::GET, "/api/v1/usage", Needs(P::PoliciesRead), Reads),
    (Method::GET, "/api/v1/tenants", Needs(P::TenantsManage), Reads),
    (Method::POST, "/api/v1/tenants", Needs(P::TenantsManage), Changes),
    (Method::GET, "/api/v1/tenants/{id}", Needs(P::TenantsManage), Reads),
    (Method::POST, "/api/v1/tenants/{id}/suspend", Needs(P::TenantsManage), Changes),
    (Method::POST, "/api/v1/tenants/{id}/resume", Needs(P::TenantsManage), Changes),
    (Method::PUT, "/api/v1/tenants/{id}/limits", Needs(P::TenantsManage), Changes),
    (Method::GET, "/api/v1/audit", Needs(P::AuditRead), Reads),
    (Method::GET, "/api/v1/audit/export", Needs(P::AuditRead), Reads),
    (Method::GET, "/api/v1/proxies", Needs(P::ProxiesRead), Reads),
    (Method::GET, "/api/v1/proxies/{proxy}", Needs(P::ProxiesRead), Reads),
    (Method::GET, "/api/v1/secrets/keys", Needs(P::SecretsRotate), Reads),
    (Method::POST, "/api/v1/secrets/keys/rotate", Needs(P::SecretsRotate), Changes),
    (Method::POST, "/api/v1/proxies/{proxy}/deny", Needs(P::ProxiesWrite), Changes),
    (Method::POST, "/api/v1/proxies/{proxy}/allow", Needs(P::ProxiesWrite), Changes),
    (Method::POST, "/api/v1/join-tokens", Needs(P::ProxiesWrite), Changes),
    (Method::POST, "/api/v1/authorities", Needs(P::ProxiesWrite), Changes),
    (Method::GET, "/api/v1/status", Needs(P::StatusRead), Reads),
];

/// Every RPC, as in the request's path: what it needs, and whether it changes anything.
pub const METHODS: &[(&str, Rule, Act)] = &[
    ("/waffles.registry.v1.RegistryService/CreateServer", Needs(P::ServersWrite), Changes),
    ("/waffles.registry.v1.RegistryService/ListServers", Needs(P::ServersRead), Reads),
    ("/waffles.registry.v1.RegistryService/GetServer", Needs(P::ServersRead), Reads),
    ("/waffles.registry.v1.RegistryService/UpdateServer", Needs(P::ServersWrite), Changes),
    ("/waffles.registry.v1.RegistryService/SetServerEnabled", Needs(P::ServersWrite), Changes),
    ("/waffles.registry.v1.RegistryService/DeleteServer", Needs(P::ServersWrite), Changes),
    ("/waffles.registry.v1.HealthService/GetServerHealth", Needs(P::ServersRead), Reads),
    ("/waffles.registry.v1.HealthService/CheckServer", Needs(P::ServersWrite), Changes),
    ("/waffles.registry.v1.NamespaceService/CreateNamespace", Needs(P::NamespacesWrite), Changes),
    ("/waffles.registry.v1.NamespaceService/ListNamespaces", Needs(P::NamespacesRead), Reads),
    ("/waffles.registry.v1.NamespaceService/GetNamespace", Needs(P::NamespacesRead), Reads),
    ("/waffles.registry.v1.NamespaceService/UpdateNamespace", Needs(P::NamespacesWrite), Changes),
    ("/waffles.registry.v1.NamespaceService/DeleteNamespace", Needs(P::NamespacesWrite), Changes),
    ("/waffles.registry.v1.NamespaceService/AddServer", Needs(P::NamespacesWrite), Changes),
    ("/waffles.registry.v1.NamespaceService/RemoveServer", Needs(P::NamespacesWrite), Changes),
    ("/waffles.auth.v1.AuthService/Login", Rule::Public, Changes),
    ("/waffles.auth.v1.AuthService/Refresh", Rule::Public, Changes),
    ("/waffles.auth.v1.AuthService/Logout", Rule::Public, Changes),
    ("/waffles.auth.v1.AuthService/GetSelf", Rule::Authenticated, Reads),
    ("/waffles.auth.v1.AuthService/CreateApiKey", Needs(P::KeysOwn), Changes),
    ("/waffles.auth.v1.AuthService/ListApiKeys", OWN_OR_ALL_KEYS, Reads),
    ("/waffles.auth.v1.AuthService/GetApiKey", OWN_OR_ALL_KEYS, Reads),
    ("/waffles.auth.v1.AuthService/RevokeApiKey", OWN_OR_ALL_KEYS, Changes),
    ("/waffles.auth.v1.PrincipalService/CreateUser", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/ListUsers", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/GetUser", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/SetUserActive", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/CreatePasswordToken", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/SetPassword", Rule::Public, Changes),
    ("/waffles.auth.v1.PrincipalService/ChangePassword", Rule::Authenticated, Changes),
    ("/waffles.auth.v1.PrincipalService/CreateServiceAccount", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/ListServiceAccounts", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/GetServiceAccount", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/SetServiceAccountActive", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/CreateServiceAccountKey", Needs(P::KeysManage), Changes),
    ("/waffles.auth.v1.PrincipalService/CreateGroup", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/ListGroups", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/GetGroup", Needs(P::PrincipalsRead), Reads),
    ("/waffles.auth.v1.PrincipalService/DeleteGroup", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/AddGroupMember", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/RemoveGroupMember", Needs(P::PrincipalsWrite), Changes),
    ("/waffles.auth.v1.PrincipalService/ListSessions", Rule::Authenticated, Reads),
    ("/waffles.auth.v1.PrincipalService/RevokeSession", Rule::Authenticated, Changes),
    ("/waffles.auth.v1.PrincipalService/RevokeSessions", Rule::Authenticated, Changes),
    ("/waffles.auth.v1.RoleService/CreateRole", Needs(P::AccessWrite), Changes),
    ("/waffles.auth.v1.RoleService/ListRoles", Needs(P::AccessRead), Reads),
    ("/waffles.auth.v1.RoleService/GetRole", Needs(P::AccessRead), Reads),
    ("/waffles.auth.v1.RoleService/UpdateRole", Needs(P::AccessWrite), Changes),
    ("/waffles.auth.v1.RoleService/DeleteRole", Needs(P::AccessWrite), Changes),
    ("/waffles.auth.v1.GrantService/CreateGrant", Needs(P::AccessWrite), Changes),
    ("/waffles.auth.v1.GrantService/ListGrants", Needs(P::AccessRead), Reads),
    ("/waffles.auth.v1.GrantService/DeleteGrant", Needs(P::AccessWrite), Changes),
    ("/waffles.policy.v1.PolicyService/CreateRule", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.PolicyService/ListRules", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/GetRule", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/UpdateRule", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.PolicyService/DeleteRule", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.PolicyService/ReplaceRules", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.PolicyService/CheckRules", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/ListVersions", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/GetVersion", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/CompareVersions", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.PolicyService/Rollback", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.PolicyService/Explain", Rule::Authenticated, Reads),
    ("/waffles.policy.v1.PolicyService/TryRules", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.LimitService/CreateLimit", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.LimitService/ListLimits", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.LimitService/GetLimit", Needs(P::PoliciesRead), Reads),
    ("/waffles.policy.v1.LimitService/UpdateLimit", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.LimitService/DeleteLimit", Needs(P::PoliciesWrite), Changes),
    ("/waffles.policy.v1.LimitService/GetUsage", Needs(P::PoliciesRead), Reads),
    ("/waffles.tenant.v1.TenantService/CreateTenant", Needs(P::TenantsManage), Changes),
    ("/waffles.tenant.v1.TenantService/ListTenants", Needs(P::TenantsManage), Reads),
    ("/waffles.tenant.v1.TenantService/GetTenant", Needs(P::TenantsManage), Reads),
    ("/waffles.tenant.v1.TenantService/SuspendTenant", Needs(P::TenantsManage), Changes),
    ("/waffles.tenant.v1.TenantService/ResumeTenant", Needs(P::TenantsManage), Changes),
    ("/waffles.tenant.v1.TenantService/SetTenantLimits", Needs(P::TenantsManage), Changes),
    ("/waffles.audit.v1.AuditService/SearchEvents", Needs(P::AuditRead), Reads),
    ("/waffles.audit.v1.AuditService/TailEvents", Needs(P::AuditRead), Reads),
    ("/waffles.audit.v1.AuditService/ExportEvents", Needs(P::AuditRead), Reads),
    ("/waffles.audit.v1.AuditIngestService/Upload", Rule::Proxy, Changes),
    ("/waffles.proxy.v1.ProxyService/ListProxies", Needs(P::ProxiesRead), Reads),
    ("/waffles.proxy.v1.ProxyService/GetProxy", Needs(P::ProxiesRead), Reads),
    ("/waffles.proxy.v1.ProxyService/CreateJoinToken", Needs(P::ProxiesWrite), Changes),
    ("/waffles.proxy.v1.ProxyService/DenyProxy", Needs(P::ProxiesWrite), Changes),
    ("/waffles.proxy.v1.ProxyService/AllowProxy", Needs(P::ProxiesWrite), Changes),
    ("/waffles.proxy.v1.ProxyService/RotateAuthority", Needs(P::ProxiesWrite), Changes),
    ("/waffles.secret.v1.SecretService/ListKeys", Needs(P::SecretsRotate), Reads),
    ("/waffles.secret.v1.SecretService/RotateKeys", Needs(P::SecretsRotate), Changes),
    ("/waffles.proxy.v1.EnrolmentService/Enroll", Rule::Join, Changes),
    ("/waffles.proxy.v1.EnrolmentService/Renew", Rule::Proxy, Changes),
    ("/waffles.discovery.v1.DiscoveryService/Stream", Rule::Proxy, Changes),
    ("/waffles.discovery.v1.KeyService/FindKeys", Rule::Proxy, Reads),
    ("/grpc.health.v1.Health/Check", Rule::Public, Reads),
    ("/grpc.health.v1.Health/List", Rule::Public, Reads),
    ("/grpc.health.v1.Health/Watch", Rule::Public, Reads),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs(P::StatusRead), Reads),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Needs(P::StatusRead), Reads),
];

/// The row of a REST route; none denies. `path` is the router's pattern, not the request's path.
pub fn route(method: &Method, path: &str) -> Option<(Rule, Act)> {
    // HEAD is GET without the body.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|(m, p, ..)| m == method && *p == path).map(|(_, _, rule, act)| (*rule, *act))
}

/// What a REST route needs; none denies.
pub fn route_rule(method: &Method, path: &str) -> Option<Rule> {
    route(method, path).map(|(rule, _)| rule)
}

/// The row of an RPC; none denies.
pub fn method(path: &str) -> Option<(Rule, Act)> {
    METHODS.iter().find(|(p, ..)| *p == path).map(|(_, rule, act)| (*rule, *act))
}

/// What an RPC needs; none denies.
pub fn method_rule(path: &str) -> Option<Rule> {
    method(path).map(|(rule, _)| rule)
}

#[cfg(test)]
mod tests;
