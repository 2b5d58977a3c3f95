//! What roles permit, and the one decision every door asks for: may this caller do this to that? The answer
//! names the rule it came from: the proxy audits it, the control plane explains it.

use std::borrow::Cow;
use std::net::IpAddr;

use chrono::{DateTime, Utc};

use crate::credential::ApiKey;
use crate::namespace::{Level, MemberEntry, Namespace};
use crate::principal::Principal;
use crate::server::{Server, ToolSet};

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
    AuditRead = "audit:read": "Search the audit trail, without payloads.",
    AuditPayloads = "audit:payloads": "See captured payloads.",
    KeysOwn = "keys:own": "Issue and revoke API keys of one's own.",
    KeysManage = "keys:manage": "See and revoke the API keys of others.",
    StatusRead = "status:read": "See how the control plane is doing.",
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PermissionSet(u32);

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

/// The built-in roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Manages servers, namespaces and proxies, reads audit.
    Operator,
    /// Discovers and uses the gateway.
    User,
    /// Sees servers and health, calls nothing.
    Readonly,
    /// Reads the audit with payloads, nothing else.
    Auditor,
}

impl Role {
    /// All of them, from most to least.
    pub const ALL: [Role; 5] = [Role::Admin, Role::Operator, Role::User, Role::Readonly, Role::Auditor];

    /// The role's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::User => "user",
            Self::Readonly => "readonly",
            Self::Auditor => "auditor",
        }
    }

    /// Reads a role's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// What the role permits.
    pub fn permissions(self) -> PermissionSet {
        use Permission as P;
        match self {
            Self::Admin => PermissionSet::all(),
            Self::Operator => {
                let servers = [P::ServersRead, P::ServersWrite, P::NamespacesRead, P::NamespacesWrite];
                let others = [P::ProxiesRead, P::AuditRead, P::KeysOwn, P::StatusRead];
                servers.into_iter().chain(others).collect()
            }
            Self::User => [P::GatewayUse, P::ServersRead, P::NamespacesRead, P::KeysOwn, P::StatusRead]
                .into_iter()
                .collect(),
            Self::Readonly => {
                [P::ServersRead, P::NamespacesRead, P::KeysOwn, P::StatusRead].into_iter().collect()
            }
            Self::Auditor => [P::AuditRead, P::AuditPayloads].into_iter().collect(),
        }
    }
}

/// Who asks, with the credential that was shown.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The principal.
    pub principal: &'a Principal,
    /// The API key that was shown; none for an access token.
    pub key: Option<&'a ApiKey>,
    /// Where the call comes from; none where the address is not known.
    pub address: Option<IpAddr>,
}

impl Caller<'_> {
    /// What principal and key permit together.
    pub fn permissions(&self) -> PermissionSet {
        let held = self.principal.permissions();
        match self.key {
            Some(key) => held.and(key.scopes()),
            None => held,
        }
    }

    /// Whether the credential itself is good at this moment: active owner, not expired, address allowed.
    pub fn is_current(&self, now: DateTime<Utc>) -> bool {
        let key_good = self.key.is_none_or(|key| key.is_current(now) && key.allows_address(self.address));
        self.principal.active && key_good
    }
}

/// How deep a message reaches into a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Handshake and lists.
    List,
    /// Reading: changes nothing at the server as far as the protocol tells.
    Read,
    /// Runs something.
    Call,
}

/// The answer, and the rule it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Permitted by this rule.
    Allow(Cow<'static, str>),
    /// The server does not exist for this caller.
    HideServer(Cow<'static, str>),
    /// The caller may know of the server, but it is switched off.
    Disabled,
    /// The tool does not exist for this caller.
    HideTool(Cow<'static, str>),
    /// The caller may know of it, but not do this.
    Forbid(Cow<'static, str>),
}

/// How far a caller may go in a namespace: the highest of the levels of its roles and of its own, narrowed by its key.
/// None: the namespace does not exist for this caller.
pub fn level(caller: &Caller<'_>, namespace: &Namespace) -> Option<Level> {
    let Principal { tenant, name, roles, .. } = caller.principal;
    if namespace.tenant != *tenant {
        return None;
    }
    let by_role = namespace.spec.levels.iter().filter(|entry| roles.contains(&entry.role));
    let own = namespace.spec.principals.iter().filter(|entry| entry.principal == *name);
    let given = by_role.map(|entry| entry.level).chain(own.map(|entry| entry.level)).max()?;
    if let Some(key) = caller.key {
        let scopes = key.scopes();
        let may_see = scopes.contains(Permission::NamespacesRead) || scopes.contains(Permission::GatewayUse);
        if !may_see || !key.allows_namespace(&namespace.spec.name) {
            return None;
        }
    }
    // Who may use no server at all sees what there is, and no more.
    let may_use = caller.permissions().contains(Permission::GatewayUse);
    Some(if may_use { given } else { Level::View })
}

/// Decides about one message to a member of a namespace, for a caller who has this level there; `tool` as in `decide`,
/// by the server's own name. With `view`, lists show what could be called with `execute`, and nothing else is done.
pub fn decide_in(
    level: Level,
    caller: &Caller<'_>,
    member: &MemberEntry,
    server: &Server,
    tools: &ToolSet,
    access: Access,
    tool: Option<&str>,
) -> Decision {
    let rule = match level {
        Level::Execute => match permitted(caller, server) {
            Ok(role) => rule_of(role),
            Err(rule) => return Decision::HideServer(Cow::Borrowed(rule)),
        },
        Level::View => {
            if server.tenant != caller.principal.tenant {
                return Decision::HideServer(Cow::Borrowed("tenant"));
            }
            if caller.key.is_some_and(|key| !key.allows_server(&server.spec.name)) {
                return Decision::HideServer(Cow::Borrowed("key:servers"));
            }
            "namespace:view"
        }
    };
    if server.enabled {
        if tool.is_some_and(|tool| !member.names.contains(tool)) {
            return Decision::HideTool(Cow::Borrowed("namespace:expose"));
        }
        if level == Level::View && access != Access::List {
            return Decision::Forbid(Cow::Borrowed("namespace:view"));
        }
    }
    narrowed(caller, server, tools, access, tool).unwrap_or(Decision::Allow(Cow::Borrowed(rule)))
}

/// Decides about one message to one server. `tool` is given for `tools/call`, and for each entry of a list:
/// what cannot be called is not listed, because both ask here.
pub fn decide(
    caller: &Caller<'_>,
    server: &Server,
    tools: &ToolSet,
    access: Access,
    tool: Option<&str>,
) -> Decision {
    let role = match permitted(caller, server) {
        Ok(role) => role,
        Err(rule) => return Decision::HideServer(Cow::Borrowed(rule)),
    };
    // A key that is for some namespaces is not for what stands outside of them.
    if caller.key.is_some_and(|key| !key.limits.namespaces.is_empty()) {
        return Decision::HideServer(Cow::Borrowed("key:namespaces"));
    }
    narrowed(caller, server, tools, access, tool).unwrap_or(Decision::Allow(Cow::Borrowed(rule_of(role))))
}

/// The role by which a server exists for a caller, or the rule by which it does not.
fn permitted(caller: &Caller<'_>, server: &Server) -> Result<Role, &'static str> {
    if server.tenant != caller.principal.tenant {
        return Err("tenant");
    }
    let role = role_with(caller.principal, Permission::GatewayUse).ok_or("no role permits gateway:use")?;
    if let Some(key) = caller.key {
        if !key.scopes().contains(Permission::GatewayUse) {
            return Err("key:scopes");
        }
        if !key.allows_server(&server.spec.name) {
            return Err("key:servers");
        }
    }
    Ok(role)
}

/// What stands against a message to a server that exists for the caller.
fn narrowed(
    caller: &Caller<'_>,
    server: &Server,
    tools: &ToolSet,
    access: Access,
    tool: Option<&str>,
) -> Option<Decision> {
    if !server.enabled {
        return Some(Decision::Disabled);
    }
    if let Some(tool) = tool {
        if !tools.contains(tool) {
            return Some(Decision::HideTool(Cow::Borrowed("server:tools")));
        }
        if caller.key.is_some_and(|key| !key.allows_tool(tool)) {
            return Some(Decision::HideTool(Cow::Borrowed("key:tools")));
        }
        if caller.key.is_some_and(|key| key.limits.read_only) {
            return Some(Decision::HideTool(Cow::Borrowed("key:read_only")));
        }
    } else if access == Access::Call
        && let Some(key) = caller.key
    {
        if key.limits.read_only {
            return Some(Decision::Forbid(Cow::Borrowed("key:read_only")));
        }
        // What runs something without naming a tool is none of the tools that the key is for.
        if !key.limits.tools.is_empty() {
            return Some(Decision::Forbid(Cow::Borrowed("key:tools")));
        }
    }
    None
}

fn rule_of(role: Role) -> &'static str {
    match role {
        Role::Admin => "role:admin",
        Role::Operator => "role:operator",
        Role::User => "role:user",
        Role::Readonly => "role:readonly",
        Role::Auditor => "role:auditor",
    }
}

fn role_with(principal: &Principal, permission: Permission) -> Option<Role> {
    principal
        .roles
        .iter()
        .filter_map(|name| Role::parse(name))
        .find(|role| role.permissions().contains(permission))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::KeyLimits;
    use crate::namespace::{Expose, Member, NamespaceEntry, NamespaceSpec, PrincipalLevel, RoleLevel};
    use crate::server::{Credential, Spec, ToolFilter};
    use uuid::Uuid;

    fn principal(role: &str) -> Principal {
        Principal {
            id: Uuid::nil(),
            tenant: "default".into(),
            name: "alice".into(),
            roles: vec![role.into()],
            active: true,
            tokens_not_before: None,
        }
    }

    fn server(tenant: &str, enabled: bool) -> Server {
        Server {
            id: Uuid::nil(),
            tenant: tenant.into(),
            spec: Spec { name: "demo".into(), ..Spec::default() },
            credential: Credential::None,
            enabled,
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        }
    }

    fn check(
        role: &str,
        key: Option<KeyLimits>,
        server: &Server,
        allow: &[&str],
        tool: Option<&str>,
    ) -> Decision {
        let principal = principal(role);
        let key = key.map(ApiKey::for_test);
        let caller = Caller { principal: &principal, key: key.as_ref(), address: None };
        let filter = ToolFilter { allow: allow.iter().map(ToString::to_string).collect(), deny: vec![] };
        decide(&caller, server, &ToolSet::compile(&filter).unwrap(), Access::Call, tool)
    }

    #[test]
    fn only_roles_that_use_the_gateway_see_a_server() {
        let server = server("default", true);
        for (role, allowed) in [
            ("admin", true),
            ("user", true),
            ("operator", false),
            ("readonly", false),
            ("auditor", false),
            ("made-up", false),
        ] {
            let decision = check(role, None, &server, &[], Some("echo"));
            assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{role}: {decision:?}");
        }
    }

    #[test]
    fn another_tenants_server_does_not_exist() {
        assert!(matches!(check("admin", None, &server("other", true), &[], None), Decision::HideServer(_)));
    }

    #[test]
    fn a_disabled_server_is_not_called() {
        assert_eq!(check("user", None, &server("default", false), &[], Some("echo")), Decision::Disabled);
    }

    #[test]
    fn a_key_only_narrows_its_owner() {
        let server = server("default", true);
        let limits = |f: fn(&mut KeyLimits)| {
            let mut limits = KeyLimits::default();
            f(&mut limits);
            Some(limits)
        };
        let hidden_server = limits(|l| l.servers = vec!["other".into()]);
        assert!(matches!(check("user", hidden_server, &server, &[], Some("echo")), Decision::HideServer(_)));
        let scoped = limits(|l| l.scopes = vec![Permission::ServersRead]);
        assert!(matches!(check("user", scoped, &server, &[], Some("echo")), Decision::HideServer(_)));
        let tools = limits(|l| l.tools = vec!["add*".into()]);
        assert!(matches!(check("user", tools.clone(), &server, &[], Some("echo")), Decision::HideTool(_)));
        assert!(matches!(check("user", tools.clone(), &server, &[], Some("add_two")), Decision::Allow(_)));
        assert!(matches!(check("readonly", tools, &server, &[], Some("add_two")), Decision::HideServer(_)));
        let read_only = limits(|l| l.read_only = true);
        assert!(matches!(check("user", read_only, &server, &[], Some("echo")), Decision::HideTool(_)));
    }

    fn namespace(tenant: &str, levels: &[(&str, Level)], principals: &[(&str, Level)]) -> NamespaceEntry {
        let levels = levels.iter().map(|(role, level)| RoleLevel { role: (*role).into(), level: *level });
        let own = |(name, level): &(&str, Level)| PrincipalLevel { principal: (*name).into(), level: *level };
        let expose = Expose { deny: vec!["drop_*".into()], ..Expose::default() };
        NamespaceEntry::compile(Namespace {
            id: Uuid::nil(),
            tenant: tenant.into(),
            spec: NamespaceSpec {
                name: "team".into(),
                servers: vec![Member { expose, ..Member::whole("demo") }],
                levels: levels.collect(),
                principals: principals.iter().map(own).collect(),
                ..NamespaceSpec::default()
            },
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        })
        .unwrap()
    }

    #[test]
    fn the_highest_level_counts_and_without_one_a_namespace_does_not_exist() {
        let view_for_users = [("user", Level::View)];
        type Given<'a> = &'a [(&'a str, Level)];
        let cases: [(&str, Given<'_>, Given<'_>, Option<Level>); 7] = [
            ("user", &[], &[], None),
            ("user", &view_for_users, &[], Some(Level::View)),
            ("admin", &view_for_users, &[], None),
            ("user", &view_for_users, &[("alice", Level::Execute)], Some(Level::Execute)),
            ("user", &[("user", Level::Execute)], &[("alice", Level::View)], Some(Level::Execute)),
            ("user", &view_for_users, &[("bob", Level::Execute)], Some(Level::View)),
            ("readonly", &[("readonly", Level::Execute)], &[], Some(Level::View)),
        ];
        for (role, levels, principals, expected) in cases {
            let principal = principal(role);
            let caller = Caller { principal: &principal, key: None, address: None };
            let found = level(&caller, &namespace("default", levels, principals).namespace);
            assert_eq!(found, expected, "{role} {levels:?} {principals:?}");
            assert_eq!(level(&caller, &namespace("other", levels, principals).namespace), None);
        }
    }

    #[test]
    fn a_key_narrows_what_its_owner_may_do_in_a_namespace() {
        let namespace = namespace("default", &[("user", Level::Execute)], &[]);
        let principal = principal("user");
        for (limits, expected) in [
            (KeyLimits::default(), Some(Level::Execute)),
            (KeyLimits { namespaces: vec!["team".into()], ..KeyLimits::default() }, Some(Level::Execute)),
            (KeyLimits { namespaces: vec!["other".into()], ..KeyLimits::default() }, None),
            (
                KeyLimits { scopes: vec![Permission::NamespacesRead], ..KeyLimits::default() },
                Some(Level::View),
            ),
            (KeyLimits { scopes: vec![Permission::KeysOwn], ..KeyLimits::default() }, None),
        ] {
            let key = ApiKey::for_test(limits);
            let caller = Caller { principal: &principal, key: Some(&key), address: None };
            assert_eq!(level(&caller, &namespace.namespace), expected, "{:?}", key.limits);
        }
    }

    #[test]
    fn a_key_for_a_namespace_reaches_servers_through_it_only() {
        let limits = KeyLimits { namespaces: vec!["team".into()], ..KeyLimits::default() };
        let server = server("default", true);
        let outside = check("user", Some(limits.clone()), &server, &[], Some("echo"));
        assert_eq!(outside, Decision::HideServer("key:namespaces".into()));
        let inside = check_in(Level::Execute, "user", Some(limits), &server, Access::Call, Some("echo"));
        assert_eq!(inside, Decision::Allow("role:user".into()));
    }

    fn check_in(
        level: Level,
        role: &str,
        key: Option<KeyLimits>,
        server: &Server,
        access: Access,
        tool: Option<&str>,
    ) -> Decision {
        let (principal, namespace) = (principal(role), namespace("default", &[], &[]));
        let key = key.map(ApiKey::for_test);
        let caller = Caller { principal: &principal, key: key.as_ref(), address: None };
        let filter = ToolFilter { allow: vec![], deny: vec!["hidden".into()] };
        let tools = ToolSet::compile(&filter).unwrap();
        decide_in(level, &caller, namespace.member("demo").unwrap(), server, &tools, access, tool)
    }

    #[test]
    fn view_lists_and_does_nothing_else() {
        let server = server("default", true);
        let view = |key, access, tool| check_in(Level::View, "readonly", key, &server, access, tool);
        assert!(matches!(view(None, Access::List, None), Decision::Allow(_)));
        assert!(matches!(view(None, Access::List, Some("echo")), Decision::Allow(_)));
        assert!(matches!(view(None, Access::List, Some("hidden")), Decision::HideTool(_)));
        assert!(matches!(view(None, Access::Read, None), Decision::Forbid(_)));
        assert!(matches!(view(None, Access::Call, Some("echo")), Decision::Forbid(_)));
        assert!(matches!(view(None, Access::Call, Some("drop_all")), Decision::HideTool(_)));
        let elsewhere = KeyLimits { servers: vec!["other".into()], ..KeyLimits::default() };
        assert!(matches!(view(Some(elsewhere), Access::List, None), Decision::HideServer(_)));
    }

    #[test]
    fn execute_needs_what_the_server_needs_and_what_the_namespace_shows() {
        let server = server("default", true);
        let execute = |role, tool| check_in(Level::Execute, role, None, &server, Access::Call, Some(tool));
        assert!(matches!(execute("user", "echo"), Decision::Allow(_)));
        assert_eq!(execute("user", "drop_all"), Decision::HideTool("namespace:expose".into()));
        assert_eq!(execute("user", "hidden"), Decision::HideTool("server:tools".into()));
        assert!(matches!(execute("readonly", "echo"), Decision::HideServer(_)));
        let off = self::server("default", false);
        assert_eq!(check_in(Level::Execute, "user", None, &off, Access::Read, None), Decision::Disabled);
    }

    #[test]
    fn a_tool_outside_the_allow_list_does_not_exist() {
        let server = server("default", true);
        assert!(matches!(check("admin", None, &server, &["add"], Some("echo")), Decision::HideTool(_)));
    }
}
