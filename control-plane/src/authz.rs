//! May this actor do this? One table names what every REST route and every RPC needs; what stands in no row
//! is denied. `OpCtx` is who acts: only the doors in `identity` make one, and every service asks it.

use std::net::IpAddr;

use http::Method;
use uuid::Uuid;
use waffles_core::DEFAULT_TENANT;
use waffles_core::credential::ApiKey;
use waffles_core::policy::{Caller, Permission, PermissionSet};
use waffles_core::principal::Principal;

use crate::error::Error;

/// Who acts, in which request, from where.
#[derive(Debug, Clone)]
pub struct OpCtx {
    principal: Principal,
    key: Option<ApiKey>,
    session: Option<Uuid>,
    permissions: PermissionSet,
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
        let mut permissions = Caller { principal: &principal, key: key.as_ref(), address }.permissions();
        if key.as_ref().is_some_and(|key| key.limits.read_only) {
            permissions = permissions.iter().filter(|p| !changes(*p)).collect();
        }
        Self { principal, key, session, permissions, request_id, address }
    }

    /// Nobody yet: may do what is public.
    pub(crate) fn anonymous(request_id: Uuid, address: Option<IpAddr>) -> Self {
        let principal = internal_principal("anonymous");
        Self { principal, key: None, session: None, permissions: PermissionSet::NONE, request_id, address }
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
            request_id: Uuid::now_v7(),
            address: None,
        }
    }

    /// Refuses unless the actor has the permission.
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

    /// Refuses unless the rule of a route or method lets the actor through. `Proxy` lets no operator through.
    pub fn check(&self, rule: Rule) -> Result<(), Error> {
        let permitted = match rule {
            Rule::Public => true,
            Rule::Authenticated => self.is_authenticated(),
            Rule::Needs(permission) => self.may(permission),
            Rule::NeedsEither(a, b) => self.may(a) || self.may(b),
            Rule::Proxy => false,
        };
        if permitted { Ok(()) } else { Err(self.refusal()) }
    }

    /// Whether the actor has the permission.
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

    /// What principal and key permit together.
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

fn internal_principal(name: &str) -> Principal {
    Principal {
        id: Uuid::nil(),
        tenant: DEFAULT_TENANT.to_owned(),
        name: name.to_owned(),
        roles: Vec::new(),
        active: name == "system",
        tokens_not_before: None,
    }
}

/// Permissions that are for changing only; a read-only key has none of them.
fn changes(permission: Permission) -> bool {
    matches!(permission, Permission::ServersWrite | Permission::NamespacesWrite)
}

/// What a route or method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    Public,
    /// Any valid credential of an operator.
    Authenticated,
    /// A permission.
    Needs(Permission),
    /// One of two permissions; the service narrows what the lesser one sees.
    NeedsEither(Permission, Permission),
    /// The credential of a proxy.
    Proxy,
}

const OWN_OR_ALL_KEYS: Rule = Rule::NeedsEither(Permission::KeysOwn, Permission::KeysManage);

/// Every REST route, as the router spells it.
pub const ROUTES: &[(Method, &str, Rule)] = &[
    (Method::GET, "/health", Rule::Public),
    (Method::GET, "/ready", Rule::Public),
    (Method::GET, "/api/v1/openapi.json", Rule::Public),
    (Method::POST, "/api/v1/auth/login", Rule::Public),
    (Method::POST, "/api/v1/auth/refresh", Rule::Public),
    (Method::POST, "/api/v1/auth/logout", Rule::Public),
    (Method::GET, "/api/v1/auth/me", Rule::Authenticated),
    (Method::GET, "/api/v1/servers", Rule::Needs(Permission::ServersRead)),
    (Method::POST, "/api/v1/servers", Rule::Needs(Permission::ServersWrite)),
    (Method::GET, "/api/v1/servers/{name}", Rule::Needs(Permission::ServersRead)),
    (Method::PUT, "/api/v1/servers/{name}", Rule::Needs(Permission::ServersWrite)),
    (Method::DELETE, "/api/v1/servers/{name}", Rule::Needs(Permission::ServersWrite)),
    (Method::POST, "/api/v1/servers/{name}/enable", Rule::Needs(Permission::ServersWrite)),
    (Method::POST, "/api/v1/servers/{name}/disable", Rule::Needs(Permission::ServersWrite)),
    (Method::GET, "/api/v1/namespaces", Rule::Needs(Permission::NamespacesRead)),
    (Method::POST, "/api/v1/namespaces", Rule::Needs(Permission::NamespacesWrite)),
    (Method::GET, "/api/v1/namespaces/{name}", Rule::Needs(Permission::NamespacesRead)),
    (Method::PUT, "/api/v1/namespaces/{name}", Rule::Needs(Permission::NamespacesWrite)),
    (Method::DELETE, "/api/v1/namespaces/{name}", Rule::Needs(Permission::NamespacesWrite)),
    (Method::PUT, "/api/v1/namespaces/{name}/servers/{server}", Rule::Needs(Permission::NamespacesWrite)),
    (Method::DELETE, "/api/v1/namespaces/{name}/servers/{server}", Rule::Needs(Permission::NamespacesWrite)),
    (Method::GET, "/api/v1/api-keys", OWN_OR_ALL_KEYS),
    (Method::POST, "/api/v1/api-keys", Rule::Needs(Permission::KeysOwn)),
    (Method::GET, "/api/v1/api-keys/{id}", OWN_OR_ALL_KEYS),
    (Method::DELETE, "/api/v1/api-keys/{id}", OWN_OR_ALL_KEYS),
    (Method::GET, "/api/v1/audit", Rule::Needs(Permission::AuditRead)),
    (Method::GET, "/api/v1/proxies", Rule::Needs(Permission::ProxiesRead)),
    (Method::GET, "/api/v1/proxies/{proxy}", Rule::Needs(Permission::ProxiesRead)),
    (Method::GET, "/api/v1/status", Rule::Needs(Permission::StatusRead)),
];

/// Every RPC, as in the request's path.
pub const METHODS: &[(&str, Rule)] = &[
    ("/waffles.registry.v1.RegistryService/CreateServer", Rule::Needs(Permission::ServersWrite)),
    ("/waffles.registry.v1.RegistryService/ListServers", Rule::Needs(Permission::ServersRead)),
    ("/waffles.registry.v1.RegistryService/GetServer", Rule::Needs(Permission::ServersRead)),
    ("/waffles.registry.v1.RegistryService/UpdateServer", Rule::Needs(Permission::ServersWrite)),
    ("/waffles.registry.v1.RegistryService/SetServerEnabled", Rule::Needs(Permission::ServersWrite)),
    ("/waffles.registry.v1.RegistryService/DeleteServer", Rule::Needs(Permission::ServersWrite)),
    ("/waffles.registry.v1.NamespaceService/CreateNamespace", Rule::Needs(Permission::NamespacesWrite)),
    ("/waffles.registry.v1.NamespaceService/ListNamespaces", Rule::Needs(Permission::NamespacesRead)),
    ("/waffles.registry.v1.NamespaceService/GetNamespace", Rule::Needs(Permission::NamespacesRead)),
    ("/waffles.registry.v1.NamespaceService/UpdateNamespace", Rule::Needs(Permission::NamespacesWrite)),
    ("/waffles.registry.v1.NamespaceService/DeleteNamespace", Rule::Needs(Permission::NamespacesWrite)),
    ("/waffles.registry.v1.NamespaceService/AddServer", Rule::Needs(Permission::NamespacesWrite)),
    ("/waffles.registry.v1.NamespaceService/RemoveServer", Rule::Needs(Permission::NamespacesWrite)),
    ("/waffles.auth.v1.AuthService/Login", Rule::Public),
    ("/waffles.auth.v1.AuthService/Refresh", Rule::Public),
    ("/waffles.auth.v1.AuthService/Logout", Rule::Public),
    ("/waffles.auth.v1.AuthService/GetSelf", Rule::Authenticated),
    ("/waffles.auth.v1.AuthService/CreateApiKey", Rule::Needs(Permission::KeysOwn)),
    ("/waffles.auth.v1.AuthService/ListApiKeys", OWN_OR_ALL_KEYS),
    ("/waffles.auth.v1.AuthService/GetApiKey", OWN_OR_ALL_KEYS),
    ("/waffles.auth.v1.AuthService/RevokeApiKey", OWN_OR_ALL_KEYS),
    ("/waffles.audit.v1.AuditService/SearchEvents", Rule::Needs(Permission::AuditRead)),
    ("/waffles.audit.v1.AuditService/TailEvents", Rule::Needs(Permission::AuditRead)),
    ("/waffles.audit.v1.AuditIngestService/Upload", Rule::Proxy),
    ("/waffles.proxy.v1.ProxyService/ListProxies", Rule::Needs(Permission::ProxiesRead)),
    ("/waffles.proxy.v1.ProxyService/GetProxy", Rule::Needs(Permission::ProxiesRead)),
    ("/waffles.discovery.v1.DiscoveryService/Stream", Rule::Proxy),
    ("/grpc.health.v1.Health/Check", Rule::Public),
    ("/grpc.health.v1.Health/List", Rule::Public),
    ("/grpc.health.v1.Health/Watch", Rule::Public),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::Needs(Permission::StatusRead)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Rule::Needs(Permission::StatusRead)),
];

/// What a REST route needs; none denies. `path` is the router's pattern, not the request's path.
pub fn route_rule(method: &Method, path: &str) -> Option<Rule> {
    // HEAD is GET without the body.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|(m, p, _)| m == method && *p == path).map(|(_, _, rule)| *rule)
}

/// What an RPC needs; none denies.
pub fn method_rule(path: &str) -> Option<Rule> {
    METHODS.iter().find(|(p, _)| *p == path).map(|(_, rule)| *rule)
}

#[cfg(test)]
mod tests;
