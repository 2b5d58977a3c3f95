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
        ..Principal::default()
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

fn no_policy() -> &'static Policy {
    Box::leak(Box::default())
}

fn question<'a>(caller: &Caller<'a>, server: &'a Server, tools: &'a ToolSet) -> Question<'a> {
    Question {
        caller: *caller,
        policy: no_policy(),
        server,
        tools,
        namespace: None,
        access: Access::Call,
        tool: None,
        facts: Facts { era: "stateless", now: DateTime::UNIX_EPOCH, args: Args::Given(None) },
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
    let tools = ToolSet::compile(&filter).unwrap();
    decide(&Question { tool, ..question(&caller, server, &tools) }).decision
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
        let found = level(&caller, &Policy::default(), &namespace("default", levels, principals).namespace);
        assert_eq!(found, expected, "{role} {levels:?} {principals:?}");
        assert_eq!(
            level(&caller, &Policy::default(), &namespace("other", levels, principals).namespace),
            None
        );
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
        (KeyLimits { scopes: vec![Permission::NamespacesRead], ..KeyLimits::default() }, Some(Level::View)),
        (KeyLimits { scopes: vec![Permission::KeysOwn], ..KeyLimits::default() }, None),
    ] {
        let key = ApiKey::for_test(limits);
        let caller = Caller { principal: &principal, key: Some(&key), address: None };
        assert_eq!(level(&caller, &Policy::default(), &namespace.namespace), expected, "{:?}", key.limits);
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
    let (principal, namespace) = (principal(role), namespace("default", &[(role, level)], &[]));
    let key = key.map(ApiKey::for_test);
    let caller = Caller { principal: &principal, key: key.as_ref(), address: None };
    let filter = ToolFilter { allow: vec![], deny: vec!["hidden".into()] };
    let tools = ToolSet::compile(&filter).unwrap();
    let question = question(&caller, server, &tools);
    decide(&Question { namespace: Some(&namespace), access, tool, ..question }).decision
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
    // Who may use no server at all sees what there is, and no more.
    assert_eq!(execute("readonly", "echo"), Decision::Forbid("namespace:view".into()));
    let off = self::server("default", false);
    assert_eq!(check_in(Level::Execute, "user", None, &off, Access::Read, None), Decision::Disabled);
}

#[test]
fn a_tool_outside_the_allow_list_does_not_exist() {
    let server = server("default", true);
    assert!(matches!(check("admin", None, &server, &["add"], Some("echo")), Decision::HideTool(_)));
}

// === Grants and rules ===

fn policy(specs: &[serde_json::Value]) -> Policy {
    let compile = |(i, spec): (usize, &serde_json::Value)| {
        let spec: RuleSpec = serde_json::from_value(spec.clone()).unwrap();
        let rule = Rule { id: Uuid::from_u128(i as u128 + 1), tenant: "default".into(), spec };
        Arc::new(CompiledRule::compile(rule).unwrap())
    };
    Policy::new(specs.iter().enumerate().map(compile).collect())
}

/// What is decided about calls of a tool, about its entry in a list, and about the server itself.
fn asks(principal: &Principal, policy: &Policy, tool: &str, args: &str) -> [Decision; 3] {
    let server = Server {
        spec: Spec {
            name: "demo".into(),
            marks: vec![crate::server::ToolMark {
                pattern: "get_*".into(),
                marks: crate::server::Marks { read_only: Some(true), ..Default::default() },
            }],
            ..Spec::default()
        },
        ..server("default", true)
    };
    let caller = Caller { principal, key: None, address: Some("10.0.0.1".parse().unwrap()) };
    let tools = ToolSet::default();
    let base = Question { policy, ..question(&caller, &server, &tools) };
    let given = Args::Given(Some(args.as_bytes()));
    let call = Question { tool: Some(tool), facts: Facts { args: given, ..base.facts }, ..base };
    let entry = Question { tool: Some(tool), facts: Facts { args: Args::Any, ..base.facts }, ..base };
    let door = Question { access: Access::List, ..base };
    [decide(&call).decision, decide(&entry).decision, decide(&door).decision]
}

fn allowed(decisions: &[Decision; 3]) -> [bool; 3] {
    [0, 1, 2].map(|i| decisions[i].is_allowed())
}

#[test]
fn a_grant_reaches_what_it_is_on_and_no_more() {
    let nothing = Policy::default();
    let tools = |server: &str, pattern: &str| Scope::Tools { server: server.into(), pattern: pattern.into() };
    for (scope, expected) in [
        (Scope::Tenant, [true, true, true]),
        (Scope::Server("demo".into()), [true, true, true]),
        (Scope::Server("other".into()), [false, false, false]),
        (Scope::Namespace("team".into()), [false, false, false]),
        (tools("demo", "get_*"), [true, true, true]),
        (tools("*", "get_user"), [true, true, true]),
        (tools("demo", "set_*"), [false, false, true]),
        (tools("other", "get_*"), [false, false, false]),
    ] {
        let held = Held { role: "user".into(), scope: scope.clone() };
        let principal = Principal { roles: vec![], grants: vec![held], ..principal("user") };
        assert_eq!(allowed(&asks(&principal, &nothing, "get_user", "{}")), expected, "{scope}");
        // Prompts and resources are the server's, so a grant on tools does not reach them.
        let server = server("default", true);
        let caller = Caller { principal: &principal, key: None, address: None };
        let tools = ToolSet::default();
        let read = Question { access: Access::Read, ..question(&caller, &server, &tools) };
        let whole = matches!(scope, Scope::Tenant) || scope == Scope::Server("demo".into());
        assert_eq!(decide(&read).decision.is_allowed(), whole, "{scope}");
    }
    let reader = Held { role: "readonly".into(), scope: Scope::Server("demo".into()) };
    let reader = Principal { roles: vec![], grants: vec![reader], ..principal("user") };
    assert_eq!(allowed(&asks(&reader, &nothing, "get_user", "{}")), [false; 3]);
}

#[test]
fn a_custom_role_gives_what_its_definition_says_and_nothing_without_one() {
    let role = RoleDef {
        id: Uuid::nil(),
        tenant: "default".into(),
        name: "caller".into(),
        description: String::new(),
        permissions: [Permission::GatewayUse].into_iter().collect(),
    };
    let nothing = Policy::default();
    let undefined = principal("caller");
    assert_eq!(allowed(&asks(&undefined, &nothing, "x", "{}")), [false; 3]);
    let defined = Principal { custom: vec![Arc::new(role)], ..undefined };
    assert_eq!(asks(&defined, &nothing, "x", "{}")[0], Decision::Allow("role:caller".into()));
}

#[test]
fn what_is_of_the_installation_is_held_in_its_own_tenant_only() {
    let here = Principal { tenant: "default".into(), roles: vec!["admin".into()], ..Principal::default() };
    let there = Principal { tenant: "acme".into(), ..here.clone() };
    for permission in [Permission::TenantsManage, Permission::ProxiesWrite, Permission::SecretsRotate] {
        assert!(here.permissions().contains(permission) && !there.permissions().contains(permission));
    }
    assert!(there.permissions().contains(Permission::PoliciesWrite));
    let platform = Role::Platform.permissions();
    assert!(!platform.contains(Permission::AuditPayloads) && !platform.contains(Permission::ServersRead));
}

#[test]
fn forbid_wins_and_allow_adds() {
    let forbid =
        |items: serde_json::Value| serde_json::json!({"name": "no", "effect": "forbid", "items": items});
    for (rules, expected) in [
        (vec![], [true, true, true]),
        (vec![forbid(serde_json::json!({}))], [false, false, false]),
        (vec![forbid(serde_json::json!({"servers": ["demo"]}))], [false, false, false]),
        (vec![forbid(serde_json::json!({"servers": ["other"]}))], [true, true, true]),
        (vec![forbid(serde_json::json!({"tools": ["get_*"]}))], [false, false, true]),
        (vec![forbid(serde_json::json!({"tools": ["get_user"]}))], [false, false, true]),
        (vec![forbid(serde_json::json!({"read_only": true}))], [false, false, true]),
        (vec![forbid(serde_json::json!({"read_only": false}))], [true, true, true]),
        (vec![forbid(serde_json::json!({"namespaces": ["team"]}))], [true, true, true]),
        (
            vec![forbid(serde_json::json!({})), serde_json::json!({"name": "yes", "effect": "allow"})],
            [false, false, false],
        ),
    ] {
        let decided = asks(&principal("user"), &policy(&rules), "get_user", "{}");
        assert_eq!(allowed(&decided), expected, "{rules:?}: {decided:?}");
    }
    let stranger = Principal { roles: vec![], groups: vec!["ops".into()], ..principal("user") };
    for (rule, expected) in [
        (serde_json::json!({"name": "r", "effect": "allow"}), [true, true, true]),
        (
            serde_json::json!({"name": "r", "effect": "allow", "principals": {"groups": ["ops"]}}),
            [true, true, true],
        ),
        (serde_json::json!({"name": "r", "effect": "allow", "principals": {"groups": ["dev"]}}), [false; 3]),
        (serde_json::json!({"name": "r", "effect": "allow", "principals": {"names": ["alice"]}}), [true; 3]),
        (
            serde_json::json!({"name": "r", "effect": "allow", "items": {"tools": ["get_*"]}}),
            [true, true, true],
        ),
        (
            serde_json::json!({"name": "r", "effect": "allow", "items": {"tools": ["set_*"]}}),
            [false, false, true],
        ),
        (
            serde_json::json!({"name": "r", "effect": "allow", "items": {"read_only": true}}),
            [true, true, true],
        ),
        (serde_json::json!({"name": "r", "effect": "allow", "mode": "log_only"}), [false; 3]),
    ] {
        let decided = asks(&stranger, &policy(std::slice::from_ref(&rule)), "get_user", "{}");
        assert_eq!(allowed(&decided), expected, "{rule}: {decided:?}");
    }
}

#[test]
fn a_condition_that_fails_counts_against_the_caller() {
    let rule = |effect: &str, condition: &str| {
        policy(&[serde_json::json!({"name": "r", "effect": effect, "condition": condition})])
    };
    let stranger = Principal { roles: vec![], ..principal("user") };
    for (args, holds) in [
        (r#"{"n": 1}"#, Some(true)),
        (r#"{"n": 9}"#, Some(false)),
        ("{}", None),
        (r#"{"n": null}"#, None),
        (r#"{"n": "1"}"#, None),
        (r#"{"n": 1e999}"#, None),
    ] {
        let allow = asks(&stranger, &rule("allow", "args.n < 5"), "get_user", args);
        assert_eq!(allowed(&allow), [holds == Some(true), true, true], "allow {args}: {allow:?}");
        let forbid = asks(&principal("user"), &rule("forbid", "args.n < 5"), "get_user", args);
        assert_eq!(allowed(&forbid), [holds == Some(false), true, true], "forbid {args}: {forbid:?}");
        if holds != Some(false) {
            // It may be known of, since other arguments may pass.
            assert_eq!(forbid[0], Decision::Forbid("rule:r".into()), "{args}");
        }
    }
    let caller = Caller { principal: &stranger, key: None, address: None };
    let (server, tools) = (server("default", true), ToolSet::default());
    let failing = rule("allow", "args.n < 5");
    let asked = Question { policy: &failing, tool: Some("x"), ..question(&caller, &server, &tools) };
    assert_eq!(decide(&asked).failed, 1);
    let noted = policy(&[serde_json::json!({"name": "r", "effect": "forbid", "mode": "log_only"})]);
    let user = principal("user");
    let caller = Caller { principal: &user, ..caller };
    let asked = Question { policy: &noted, caller, ..asked };
    let verdict = decide(&asked);
    assert!(verdict.decision.is_allowed());
    assert_eq!(verdict.noted, [Arc::from("rule:r")]);
}

#[test]
fn what_was_decided_is_remembered_no_longer_than_it_holds() {
    let night = policy(&[serde_json::json!(
        {"name": "night", "effect": "forbid", "condition": "request.time.getHours() < 8 || request.address == '10.0.0.9'"}
    )]);
    let user = principal("user");
    let (server, tools) = (server("default", true), ToolSet::default());
    let ask = |hour: i64, address: &str| {
        let caller = Caller { principal: &user, key: None, address: Some(address.parse().unwrap()) };
        let base = question(&caller, &server, &tools);
        let now = DateTime::from_timestamp(hour * 3600, 0).unwrap();
        let facts = Facts { now, ..base.facts };
        decide(&Question { policy: &night, tool: Some("x"), facts, ..base }).decision.is_allowed()
    };
    for _ in 0..2 {
        assert!(ask(9, "10.0.0.1") && !ask(7, "10.0.0.1") && !ask(9, "10.0.0.9") && ask(10, "10.0.0.1"));
    }
}

#[test]
fn an_explanation_decides_as_the_decision_does() {
    let rules = policy(&[
        serde_json::json!({"name": "a", "effect": "allow", "principals": {"groups": ["ops"]}}),
        serde_json::json!({"name": "b", "effect": "forbid", "condition": "args.n > 5"}),
        serde_json::json!({"name": "c", "effect": "forbid", "items": {"servers": ["other"]}}),
        serde_json::json!({"name": "d", "effect": "forbid", "mode": "log_only"}),
    ]);
    let held = Held { role: "user".into(), scope: Scope::Server("other".into()) };
    let who = Principal { grants: vec![held], ..principal("readonly") };
    let caller = Caller { principal: &who, key: None, address: None };
    let (server, tools) = (server("default", true), ToolSet::default());
    let asked = Question { policy: &rules, tool: Some("x"), ..question(&caller, &server, &tools) };
    let explained = explain(&asked);
    assert_eq!(explained.verdict, decide(&asked));
    let steps: Vec<(String, &str, bool)> = explained
        .steps
        .iter()
        .map(|step| (step.what.clone(), step.outcome.as_str(), step.enforced))
        .collect();
    let step = |what: &str, outcome, enforced| (what.to_owned(), outcome, enforced);
    assert_eq!(
        steps,
        [
            step("role:readonly", "does_not_apply", true),
            step("role:user@server/other", "elsewhere", true),
            step("rule:a", "elsewhere", true),
            step("rule:b", "failed", true),
            step("rule:c", "elsewhere", true),
            step("rule:d", "applies", false),
        ]
    );
}

#[test]
fn a_read_only_key_calls_what_the_registry_marks_as_reading_only() {
    let user = principal("user");
    let key = ApiKey::for_test(KeyLimits { read_only: true, ..KeyLimits::default() });
    let caller = Caller { principal: &user, key: Some(&key), address: None };
    let mut server = server("default", true);
    let marks = crate::server::Marks { read_only: Some(true), ..Default::default() };
    server.spec.marks = vec![crate::server::ToolMark { pattern: "get_*".into(), marks }];
    let tools = ToolSet::default();
    for (tool, expected) in [("get_user", true), ("set_user", false)] {
        let asked = Question { tool: Some(tool), ..question(&caller, &server, &tools) };
        assert_eq!(decide(&asked).decision.is_allowed(), expected, "{tool}");
    }
}
