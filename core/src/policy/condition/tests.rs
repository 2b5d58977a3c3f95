use std::net::IpAddr;

use super::*;
use crate::principal::Principal;
use crate::server::Marks;

fn wrong(text: &str) -> String {
    Condition::compile(text).unwrap_err().join("; ")
}

fn holds(text: &str, args: &str) -> Result<bool, String> {
    let principal = Principal {
        name: "alice@example.test".into(),
        roles: vec!["user".into()],
        groups: vec!["ops".into()],
        ..Principal::default()
    };
    let condition = Condition::compile(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
    condition.holds(&Asked {
        principal: &principal,
        tool: Some("get_user"),
        marks: Marks { read_only: Some(true), ..Marks::default() },
        server: "crm",
        namespace: None,
        era: "stateless",
        address: Some("10.1.2.3".parse::<IpAddr>().unwrap()),
        key: None,
        // A Wednesday.
        now: DateTime::from_timestamp(1_795_600_800, 5_000).unwrap(),
        args: Some(args.as_bytes()),
    })
}

#[test]
fn what_is_asked_is_answered() {
    for (text, expected) in [
        ("true", true),
        ("principal.name == 'alice@example.test'", true),
        ("'ops' in principal.groups && !('admin' in principal.roles)", true),
        ("principal.kind == 'service_account'", false),
        ("tool.name.startsWith('get_') && tool.server == 'crm'", true),
        ("tool.read_only == true && tool.destructive == null", true),
        ("request.address.in_cidr('10.0.0.0/8')", true),
        ("request.address.in_cidr('192.168.0.0/16')", false),
        ("request.time.getHours() == 10 && request.time.getDayOfWeek() == 3", true),
        ("request.time < timestamp('2027-01-01T00:00:00Z')", true),
        ("request.era in ['stateless', 'sessions']", true),
        ("request.key == ''", true),
        ("args.amount <= 100 && args.currency == 'EUR'", true),
        ("args.to.all(address, address.endsWith('@example.test'))", true),
        ("args.to.exists(address, address == 'eve@elsewhere.test')", false),
        ("size(args.to) == 2 && args.to[0] == 'a@example.test'", true),
        ("args.currency.matches('^[A-Z]{3}$')", true),
        ("has(args.note) && args.note == null", true),
        ("has(args.absent)", false),
        ("args['odd-name'].inner == 1", true),
        ("args.whole == 42", true),
        ("args.big == 9007199254740993", true),
        ("args.rate > 0.25 && args.rate < 1.0", true),
        ("args.amount > 10 ? args.flag : false", true),
    ] {
        let args = r#"{"amount": 50, "currency": "EUR", "to": ["a@example.test", "b@example.test"], "note": null,
            "odd-name": {"inner": 1}, "whole": 42.0, "big": 9007199254740993, "rate": 0.5, "flag": true}"#;
        assert_eq!(holds(text, args), Ok(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_said_is_a_failure_that_says_why_and_no_value() {
    for (text, args, reason) in [
        ("args.path == 'x'", "{}", "there is no `path`"),
        ("args.path.startsWith('/tmp')", r#"{"path": 7}"#, "`startsWith` does not take such values"),
        ("args.path.startsWith('/tmp')", r#"{"path": null}"#, "`startsWith` does not take such values"),
        ("args.a.b == 1", r#"{"a": "text"}"#, ""),
        ("args.n < 5", r#"{"n": "4"}"#, ""),
        ("args.n < 5", r#"{"n": 1e400}"#, "a number cannot be kept exactly"),
        ("args.n * 2 > 0", r#"{"n": 9223372036854775807}"#, ""),
        ("1 / args.n > 0", r#"{"n": 0}"#, "division by zero"),
        ("args.list[3] == 1", r#"{"list": [1]}"#, ""),
        ("args.n == 1", "[1]", "the arguments are no object"),
    ] {
        let said = holds(text, args).expect_err(text);
        assert!(said.contains(reason), "{text}: {said}");
        assert!(!said.contains("9223372036854775807") && !said.contains("text"), "{said}");
    }
    // What does not depend on the part that fails is still said, as CEL has it.
    assert_eq!(holds("args.absent == 1 || true", "{}"), Ok(true));
    assert_eq!(holds("args.absent == 1 && false", "{}"), Ok(false));
}

#[test]
fn what_is_wrong_is_said_when_it_is_written() {
    for (text, reason) in [
        ("", "no expression"),
        ("args.a ==", "no expression"),
        ("1 + 1", "is a number and not true or false"),
        ("'yes'", "is a string and not true or false"),
        ("user.name == 'x'", "`user` is not known here"),
        ("principal.email == 'x'", "`principal` has no `email`"),
        ("request.ip == 'x'", "`request` has no `ip`"),
        ("tool.title == 'x'", "`tool` has no `title`"),
        ("principal.name == 7", "compares a string with a number"),
        ("principal.roles == 'admin'", "compares a list with a string"),
        ("principal.name < 5", "compares a string with a number"),
        ("'admin' in principal.name", "`in` looks in a string"),
        ("principal.name && true", "take bools"),
        ("!principal.name", "takes a bool"),
        ("principal.roles.startsWith('a')", "is for strings"),
        ("frobnicate(principal.name)", "there is no function `frobnicate`"),
        ("principal.name.matches(tool.name)", "takes a text that is written down"),
        ("principal.name.matches('(')", "cannot be used"),
        ("request.address.in_cidr('10.0.0.0/99')", "takes a network"),
        ("principal.name.startsWith('a', 'b')", "is not called like this"),
        ("args.a.all(x, args.a.all(y, args.a.all(z, x == y && y == z)))", "costs too much"),
    ] {
        let said = wrong(text);
        assert!(said.contains(reason), "{text}: {said}");
    }
}

#[test]
fn a_text_that_nests_is_refused_before_it_is_parsed() {
    for text in [
        format!("{}true{}", "(".repeat(2000), ")".repeat(1000)),
        format!("{}true", "!".repeat(3999)),
        format!("args{} == 1", ".a".repeat(1900)),
        format!("1{} == 1", " + 1".repeat(400)),
        format!("{}1{}", "[".repeat(1999), "]".repeat(1999)),
        "x".repeat(CONDITION_MOST + 1),
    ] {
        assert!(Condition::compile(&text).is_err(), "{}", text.get(..40).unwrap_or_default());
    }
    // What is let through can be read and asked on a small stack.
    let long = format!("true{}", " && true".repeat(140));
    let deep = format!("{}true{}", "(".repeat(24), ")".repeat(24));
    let work = move || (holds(&long, "{}"), holds(&deep, "{}"));
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap();
    assert_eq!(thread.join().unwrap(), (Ok(true), Ok(true)));
}

#[test]
fn what_does_not_depend_on_the_arguments_is_said_without_them() {
    let principal = Principal { name: "alice".into(), ..Principal::default() };
    let ask = |text: &str, tool: Option<&str>| {
        Condition::compile(text).unwrap().holds_anyway(&Asked {
            principal: &principal,
            tool,
            marks: Marks::default(),
            server: "crm",
            namespace: None,
            era: "sessions",
            address: None,
            key: None,
            now: DateTime::UNIX_EPOCH,
            args: None,
        })
    };
    for (text, expected) in [
        ("args.n < 5", Ok(None)),
        ("args.n < 5 || principal.name == 'alice'", Ok(Some(true))),
        ("args.n < 5 || principal.name == 'bob'", Ok(None)),
        ("args.n < 5 && principal.name == 'bob'", Ok(Some(false))),
        ("!(args.n < 5 && principal.name == 'bob')", Ok(Some(true))),
        ("args.n < 5 && principal.name == 'alice'", Ok(None)),
        ("args.list.exists(x, x == principal.name)", Ok(None)),
        ("tool.name == 'get'", Ok(Some(true))),
        ("1 / 0 > 0 || principal.name == 'alice'", Ok(Some(true))),
        ("1 / 0 > 0 && args.n < 5", Ok(None)),
    ] {
        assert_eq!(ask(text, Some("get")), expected, "{text}");
    }
    assert!(ask("1 / (1 - 1) > 0", Some("get")).is_err());
    assert_eq!(ask("tool.name == 'get'", None), Ok(None));
    assert_eq!(ask("tool.server == 'crm'", None), Ok(Some(true)));
}

#[test]
fn what_it_looks_at_is_known() {
    let looks = |text: &str| Condition::compile(text).unwrap().looks();
    let none = Looks::default();
    assert_eq!(looks("principal.name == 'x' && tool.server == 'y'"), none);
    assert_eq!(looks("args.a == 1"), Looks { args: true, ..none });
    assert_eq!(looks("tool.name == 'x'"), Looks { tool: true, ..none });
    assert_eq!(looks("request.time.getHours() > 8"), Looks { time: true, ..none });
    assert_eq!(
        looks("request.address == 'x' || request.era == 'y'"),
        Looks { address: true, era: true, ..none }
    );
    assert_eq!(looks("request.key == 'x'"), Looks { key: true, ..none });
    let paths = |text: &str| Condition::compile(text).unwrap().arg_paths().to_vec();
    let path = |steps: &[&str]| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(paths("args.a.b == 1 && has(args.c)"), [path(&["a", "b"]), path(&["c"])]);
    assert_eq!(paths("args['a'][\"b\"].c == 1"), [path(&["a", "b", "c"])]);
    assert_eq!(paths("args.list.all(x, x.y == args.z)"), [path(&["list"]), path(&["z"])]);
    assert_eq!(paths("args[principal.name] == 1"), [path(&[])]);
}

#[test]
fn a_typo_in_a_path_is_found_against_the_schema() {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "count": {"type": "integer"},
            "options": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "additionalProperties": false},
            "free": {"type": "object"},
            "any": {},
            "list": {"type": "array", "items": {"type": "string"}},
        },
    });
    for (text, wrong) in [
        ("args.path == 'x' && args.count > 3 && args.options.deep", ""),
        ("args.pth == 'x'", "args.pth is no argument"),
        ("args.options.dep == true", "args.options.dep is no argument"),
        ("args.count == 'x'", "compares a number with a string"),
        ("args.path > 5", "compares a string with a number"),
        ("args.count.startsWith('1')", "is for strings"),
        ("args.free.anything == 1 && args.any.thing == 2", ""),
        ("args.list.exists(x, x == 'y') && 'z' in args.list", ""),
        ("has(args.pth)", "args.pth is no argument"),
        ("args.path.all(x, x == 'y')", "a loop goes over a string"),
    ] {
        let found = Condition::compile(text).unwrap().check_args(&schema).join("; ");
        assert!(if wrong.is_empty() { found.is_empty() } else { found.contains(wrong) }, "{text}: {found}");
    }
    let open = serde_json::json!({"type": "object", "additionalProperties": true});
    assert!(Condition::compile("args.x == 1").unwrap().check_args(&open).is_empty());
    let shut = serde_json::json!({"type": "object", "properties": {}});
    assert_eq!(Condition::compile("args.x == 1").unwrap().check_args(&shut), ["args.x is no argument"]);
}
