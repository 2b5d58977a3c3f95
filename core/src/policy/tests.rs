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
