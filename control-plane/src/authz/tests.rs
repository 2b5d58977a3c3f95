use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use waffles_core::credential::{ApiKeyParts, KeyLimits};
use waffles_core::policy::Role;

use super::*;

fn actor(role: &str, limits: Option<KeyLimits>) -> OpCtx {
    let principal = Principal { roles: vec![role.to_owned()], active: true, ..internal_principal("alice") };
    let key = limits.map(|limits| {
        let parts = ApiKeyParts {
            id: "k".into(),
            tenant: "default".into(),
            name: "k".into(),
            owner: Uuid::nil(),
            limits,
            created_at: chrono::DateTime::UNIX_EPOCH,
            expires_at: None,
            revoked_at: None,
            not_after: None,
        };
        ApiKey::compile(parts).unwrap()
    });
    OpCtx::authenticated(principal, key, None, Uuid::nil(), None)
}

fn row(table: &mut String, action: &str, rule: Rule, act: Act) {
    write!(table, "{action:66}").unwrap();
    let anonymous = OpCtx::anonymous(Uuid::nil(), None);
    let mut column = |name: &str, permitted: bool| {
        let shown = if permitted { name } else { "-" };
        write!(table, " {shown:9}").unwrap();
    };
    column("anonymous", anonymous.check(rule).is_ok());
    for role in Role::ALL {
        column(role.as_str(), actor(role.as_str(), None).check(rule).is_ok());
    }
    match rule {
        Rule::Join => column("join-token", true),
        _ => column("proxy", rule == Rule::Proxy),
    }
    column("changes", act == Changes);
    let kept = table.trim_end().len();
    table.truncate(kept);
    table.push('\n');
}

#[test]
fn who_may_do_what() {
    let mut table =
        String::from("# Who may do what. Written by the test `who_may_do_what` with UPDATE_GOLDEN=1.\n");
    for (method, path, rule, act) in ROUTES {
        row(&mut table, &format!("{method} {path}"), *rule, *act);
    }
    for (path, rule, act) in METHODS {
        row(&mut table, path.trim_start_matches('/'), *rule, *act);
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/authz_matrix.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &table).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(expected == table, "rights changed; if on purpose, run with UPDATE_GOLDEN=1. Now:\n{table}");
}

#[test]
fn every_rpc_has_a_row_and_every_row_an_rpc() {
    let set = FileDescriptorSet::decode(waffles_proto::DESCRIPTORS).unwrap();
    let mut rpcs = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                rpcs.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    for rpc in &rpcs {
        assert!(method_rule(rpc).is_some(), "{rpc} has no row in authz.rs");
    }
    for (path, ..) in METHODS.iter().filter(|(path, ..)| path.starts_with("/waffles.")) {
        assert!(rpcs.iter().any(|rpc| rpc == path), "{path} is no RPC");
    }
}

#[test]
fn what_stands_in_no_row_is_denied() {
    assert_eq!(route_rule(&Method::PATCH, "/api/v1/servers"), None);
    assert_eq!(route_rule(&Method::GET, "/api/v1/servers/x"), None);
    assert_eq!(method_rule("/waffles.registry.v1.RegistryService/createServer"), None);
    assert_eq!(route_rule(&Method::HEAD, "/health"), Some(Rule::Public));
}

#[test]
fn an_anonymous_actor_is_asked_for_a_credential_and_a_known_one_is_denied() {
    let needs = Rule::Needs(Permission::ServersWrite);
    let anonymous = OpCtx::anonymous(Uuid::nil(), None);
    assert!(matches!(anonymous.check(needs), Err(Error::Unauthenticated)));
    assert!(matches!(anonymous.check(Rule::Proxy), Err(Error::Unauthenticated)));
    assert!(matches!(actor("readonly", None).check(needs), Err(Error::Denied)));
    assert!(matches!(actor("admin", None).check(Rule::Proxy), Err(Error::Denied)));
    assert_eq!(method_rule("/waffles.discovery.v1.KeyService/FindKeys"), Some(Rule::Proxy));
    assert!(OpCtx::system().require(Permission::ServersWrite).is_ok());
}

#[test]
fn a_key_only_narrows_its_owner() {
    let scoped = |scope| Some(KeyLimits { scopes: vec![scope], ..KeyLimits::default() });
    assert!(actor("admin", scoped(Permission::ServersRead)).require(Permission::ServersRead).is_ok());
    assert!(actor("admin", scoped(Permission::ServersRead)).require(Permission::ServersWrite).is_err());
    assert!(actor("user", scoped(Permission::ServersWrite)).require(Permission::ServersWrite).is_err());
    let read_only = actor("admin", Some(KeyLimits { read_only: true, ..KeyLimits::default() }));
    assert!(read_only.require(Permission::ServersRead).is_ok());
    assert!(read_only.require(Permission::ServersWrite).is_err());
    assert!(read_only.require_change().is_err());
}

#[test]
fn the_table_of_permissions_in_the_documentation_is_right() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/access.md");
    let page = std::fs::read_to_string(page).unwrap();
    for permission in Permission::ALL {
        let elsewhere = [*permission].into_iter().collect::<PermissionSet>().of_tenant("other");
        let mark = if elsewhere.is_empty() { r" (\*)" } else { "" };
        let held = Role::ALL.map(|role| if role.permissions().contains(*permission) { "yes" } else { "" });
        let row = format!("| `{}`{mark} | {} |", permission.as_str(), held.join(" | "));
        assert!(page.lines().any(|line| line == row), "docs/access.md lacks the row\n{row}");
    }
}
