//! What can be said of rules without a control plane, by the code that it and the proxies use: whether they are sound, and
//! what they decide.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use waffles_core::DEFAULT_TENANT;
use waffles_core::credential::{ApiKey, ApiKeyParts, KeyLimits};
use waffles_core::namespace::{Level, Member, Namespace, NamespaceEntry, NamespaceSpec, PrincipalLevel};
use waffles_core::policy::{
    Access, Args, Caller, CompiledRule, Facts, Inspector, Policy, Question, Rule, RuleSpec, Tool, decide,
};
use waffles_core::principal::{Principal, PrincipalKind};
use waffles_core::server::{Credential, Marks, Server, Spec, ToolFilter, ToolMark, ToolSet};

use super::file;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::{Finding, TestResult};

/// The era of a client where a case says nothing of it.
const ERA: &str = "stateless";

/// The tools of each server.
type Schemas = BTreeMap<String, ServerTools>;

/// The tools of a server: what `wafflectl server tools NAME --output json` prints, or the schema of each by its name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ServerTools {
    Listed(Vec<ListedTool>),
    ByName(BTreeMap<String, Value>),
}

#[derive(Debug, Deserialize)]
struct ListedTool {
    name: String,
    #[serde(alias = "inputSchema", default)]
    input_schema: Option<Value>,
    #[serde(default)]
    marks: MarksDoc,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MarksDoc {
    read_only: Option<bool>,
    destructive: Option<bool>,
    idempotent: Option<bool>,
    open_world: Option<bool>,
}

impl From<MarksDoc> for Marks {
    fn from(doc: MarksDoc) -> Self {
        let MarksDoc { read_only, destructive, idempotent, open_world } = doc;
        Self { read_only, destructive, idempotent, open_world }
    }
}

/// `policy lint`.
pub(super) fn lint(global: &Global, path: &Path, schemas: Option<&Path>) -> anyhow::Result<()> {
    let schemas = schemas.map(read_schemas).transpose()?;
    let (mut findings, mut places, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    for file in files(path)? {
        match file::parse(&file::text(&file)?) {
            Ok(found) => {
                places.extend((0..found.len()).map(|i| (file.clone(), i)));
                rules.extend(found);
            }
            Err(reason) => findings.push(Finding::error(shown(&file), String::new(), String::new(), reason)),
        }
    }
    findings.extend(inspect(&rules, &places, schemas.as_ref()));
    print(global.output, findings.as_slice())?;
    match findings.iter().filter(|finding| finding.is_error()).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("1 error").into()),
        errors => Err(Failure::failed(format!("{errors} errors")).into()),
    }
}

fn inspect(rules: &[RuleSpec], places: &[(PathBuf, usize)], schemas: Option<&Schemas>) -> Vec<Finding> {
    let mut inspector = Inspector::new(rules, |_| true);
    for (server, tools) in schemas.into_iter().flatten() {
        let mut show = |name: &str, schema: Option<&Value>, marks: Marks| {
            inspector.tool(&Tool { server, namespaces: &[], name, marks, schema });
        };
        match tools {
            ServerTools::Listed(tools) => {
                tools.iter().for_each(|tool| show(&tool.name, tool.input_schema.as_ref(), tool.marks.into()));
            }
            ServerTools::ByName(tools) => {
                tools.iter().for_each(|(name, schema)| show(name, Some(schema), Marks::default()));
            }
        }
    }
    let found = inspector.finish();
    let place = |i: usize| places.get(i).map(|(file, i)| (shown(file), *i)).unwrap_or_default();
    let errors = found.errors.into_iter().map(|error| {
        let read = || {
            let (at, field) = error.field.strip_prefix("rules[")?.split_once(']')?;
            Some((at.parse::<usize>().ok()?, field.trim_start_matches('.').to_owned()))
        };
        let (at, field) = read().unwrap_or_default();
        let (file, i) = place(at);
        let name = rules.get(at).map(|rule| rule.name.clone()).unwrap_or_default();
        // Places of other rules in the text count over all files, which says nothing to someone who looks at one.
        let reason = match error.reason.strip_prefix("is the name of rules[") {
            Some(rest) => {
                let other = rest.split(']').next().and_then(|at| at.parse().ok()).unwrap_or_default();
                let (file, i) = place(other);
                format!("is the name of rules[{i}] in {file} too")
            }
            None => error.reason,
        };
        Finding::error(file, name, format!("rules[{i}].{field}"), reason)
    });
    let mut findings: Vec<Finding> = errors.collect();
    for notice in found.notices {
        // Without any tools that nothing is known of them is no news.
        if schemas.is_none() && notice.message.contains("no tool that is known") {
            continue;
        }
        let at = rules.iter().position(|rule| rule.name == notice.rule).unwrap_or_default();
        let (file, i) = place(at);
        findings.push(Finding::warning(
            file,
            notice.rule,
            format!("rules[{i}].{}", notice.field),
            notice.message,
        ));
    }
    findings
}

/// The files that a path stands for, in order.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let kind = file.extension().and_then(|extension| extension.to_str());
        if file.is_file() && matches!(kind, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(
            Failure::usage(format!("there is no *.yaml, *.yml or *.json in {}", path.display())).into()
        );
    }
    Ok(files)
}

fn read_schemas(path: &Path) -> anyhow::Result<Schemas> {
    let text = file::text(path)?;
    let value = yaml_serde::from_str(&text).map_err(|error| error.to_string());
    value.and_then(|value| file::of("servers", value)).map_err(|reason| {
        Failure::failed(format!("{}: {reason}", path.display()))
            .next(
                "It maps the name of each server to what `wafflectl server tools NAME --output json` prints.",
            )
            .into()
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A call, and what is expected to be decided about it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows.
    name: String,
    #[serde(default)]
    principal: CasePrincipal,
    /// Id of an API key without limits.
    key: Option<String>,
    server: String,
    namespace: Option<String>,
    tool: Option<String>,
    /// What the registry says of the tool.
    #[serde(default)]
    marks: MarksDoc,
    args: Option<Value>,
    era: Option<String>,
    address: Option<IpAddr>,
    time: Option<DateTime<Utc>>,
    expect: Expected,
    /// The rule that is expected to decide, such as `rule:no-deletes`.
    rule: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CasePrincipal {
    name: String,
    service_account: bool,
    roles: Vec<String>,
    groups: Vec<String>,
}

impl Default for CasePrincipal {
    fn default() -> Self {
        Self {
            name: "someone@example.com".to_owned(),
            service_account: false,
            roles: vec!["user".to_owned()],
            groups: Vec::new(),
        }
    }
}

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Allow,
    Forbid,
}

/// `policy test`.
pub(super) fn test(global: &Global, rules: &Path, cases: &Path) -> anyhow::Result<()> {
    let compiled = compile(file::read(rules)?)
        .map_err(|reason| Failure::failed(format!("{}: {reason}", rules.display())))?;
    let text = file::text(cases)?;
    let value = yaml_serde::from_str(&text).map_err(|error| error.to_string());
    let read: Result<Vec<Case>, String> = value.and_then(|value| file::of("cases", value));
    let read = read.map_err(|reason| Failure::failed(format!("{}: {reason}", cases.display())))?;
    let results: anyhow::Result<Vec<TestResult>> = read.iter().map(|case| judge(case, &compiled)).collect();
    let results = results?;
    print(global.output, results.as_slice())?;
    match results.iter().filter(|result| !result.passed).count() {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} cases failed", results.len())).into()),
    }
}

fn compile(rules: Vec<RuleSpec>) -> Result<Policy, String> {
    let compile = |(i, spec): (usize, RuleSpec)| {
        let name = spec.name.clone();
        let rule = Rule { id: uuid(i), tenant: DEFAULT_TENANT.to_owned(), spec };
        CompiledRule::compile(rule).map(Arc::new).map_err(|reason| format!("rules[{i}] ({name}): {reason}"))
    };
    let rules: Result<Vec<_>, String> = rules.into_iter().enumerate().map(compile).collect();
    Ok(Policy::new(rules?))
}

fn judge(case: &Case, policy: &Policy) -> anyhow::Result<TestResult> {
    let kind = match case.principal.service_account {
        true => PrincipalKind::ServiceAccount,
        false => PrincipalKind::User,
    };
    let principal = Principal {
        id: uuid(0),
        tenant: DEFAULT_TENANT.to_owned(),
        name: case.principal.name.clone(),
        kind,
        roles: case.principal.roles.clone(),
        groups: case.principal.groups.clone(),
        active: true,
        ..Principal::default()
    };
    let now = case.time.unwrap_or_else(Utc::now);
    let key = case.key.as_ref().map(|id| key(id, now)).transpose();
    let key = key.map_err(|reason| Failure::failed(format!("case `{}`: key: {reason}", case.name)))?;
    let server = server(case, now);
    let tools = ToolSet::compile(&ToolFilter::default()).map_err(anyhow::Error::msg)?;
    let namespace = case.namespace.as_ref().map(|name| namespace(name, case, now)).transpose();
    let namespace = namespace.map_err(anyhow::Error::msg)?;
    let args = case.args.as_ref().map(ToString::to_string);
    let verdict = decide(&Question {
        caller: Caller { principal: &principal, key: key.as_ref(), address: case.address },
        policy,
        server: &server,
        tools: &tools,
        namespace: namespace.as_ref(),
        access: if case.tool.is_some() { Access::Call } else { Access::List },
        tool: case.tool.as_deref(),
        facts: Facts {
            era: case.era.as_deref().unwrap_or(ERA),
            now,
            args: Args::Given(args.as_ref().map(String::as_bytes)),
        },
    });
    let rule = verdict.decision.rule().to_owned();
    let decided = if verdict.decision.is_allowed() { Expected::Allow } else { Expected::Forbid };
    let passed = decided == case.expect && case.rule.as_ref().is_none_or(|expected| *expected == rule);
    let word = |expected| match expected {
        Expected::Allow => "allow",
        Expected::Forbid => "forbid",
    };
    Ok(TestResult {
        case: case.name.clone(),
        passed,
        expected: word(case.expect).to_owned(),
        decision: word(decided).to_owned(),
        rule,
    })
}

fn key(id: &str, now: DateTime<Utc>) -> Result<ApiKey, String> {
    ApiKey::compile(ApiKeyParts {
        id: id.to_owned(),
        tenant: DEFAULT_TENANT.to_owned(),
        name: id.to_owned(),
        owner: uuid(0),
        limits: KeyLimits::default(),
        created_at: now,
        expires_at: None,
        revoked_at: None,
        not_after: None,
    })
}

fn server(case: &Case, now: DateTime<Utc>) -> Server {
    let marks = ToolMark { pattern: "*".to_owned(), marks: case.marks.into() };
    Server {
        id: uuid(0),
        tenant: DEFAULT_TENANT.to_owned(),
        spec: Spec { name: case.server.clone(), marks: vec![marks], ..Spec::default() },
        credential: Credential::None,
        enabled: true,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

fn namespace(name: &str, case: &Case, now: DateTime<Utc>) -> Result<NamespaceEntry, String> {
    let level = PrincipalLevel { principal: case.principal.name.clone(), level: Level::Execute };
    NamespaceEntry::compile(Namespace {
        id: uuid(0),
        tenant: DEFAULT_TENANT.to_owned(),
        spec: NamespaceSpec {
            name: name.to_owned(),
            servers: vec![Member::whole(&case.server)],
            principals: vec![level],
            ..NamespaceSpec::default()
        },
        version: 1,
        created_at: now,
        updated_at: now,
    })
}

/// Ids that are never seen, each rule another one.
fn uuid(number: usize) -> uuid::Uuid {
    uuid::Uuid::from_u128(number as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "
- {name: no-deletes, effect: forbid, items: {tools: ['delete_*']}}
- {name: small-refunds, effect: forbid, items: {servers: [billing], tools: [refund]}, condition: args.amount > 100}
";

    fn found(rules: &str, schemas: Option<&str>) -> Vec<String> {
        let rules = file::parse(rules).unwrap();
        let places: Vec<_> = (0..rules.len()).map(|i| (PathBuf::from("rules.yaml"), i)).collect();
        let schemas: Option<Schemas> = schemas.map(|text| yaml_serde::from_str(text).unwrap());
        inspect(&rules, &places, schemas.as_ref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_sound_file_has_no_findings_and_a_typo_is_found_with_the_schemas() {
        assert_eq!(found(RULES, None), Vec::<String>::new());
        let schemas = "billing: {refund: {type: object, properties: {amount: {type: number}}}}";
        assert_eq!(found(RULES, Some(schemas)), Vec::<String>::new());
        let listed =
            "billing: [{name: refund, inputSchema: {type: object, properties: {amont: {type: number}}}}]";
        let texts = found(RULES, Some(listed));
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].contains("rules[1].condition") && texts[0].contains("billing/refund"), "{texts:?}");
    }

    #[test]
    fn cases_are_decided_as_a_proxy_decides_them() {
        let policy = compile(file::parse(RULES).unwrap()).unwrap();
        let cases = "
- {name: one, server: demo, tool: delete_all, expect: forbid, rule: 'rule:no-deletes'}
- {name: two, server: billing, tool: refund, args: {amount: 100}, expect: allow, rule: 'role:user'}
- {name: three, server: billing, tool: refund, args: {amount: 100.5}, expect: forbid}
- {name: four, server: billing, tool: refund, expect: forbid, rule: 'rule:small-refunds'}
- {name: five, server: demo, tool: echo, principal: {roles: [readonly]}, expect: forbid}
- {name: six, server: demo, namespace: team, tool: echo, expect: allow}
";
        let cases: Vec<Case> = yaml_serde::from_str(cases).unwrap();
        for case in cases {
            let result = judge(&case, &policy).unwrap();
            assert!(result.passed, "{}: {} by {}", result.case, result.decision, result.rule);
        }
    }

    /// The examples of the documentation, by what their first line says that they are.
    fn documented(kind: &str) -> Vec<String> {
        let text = include_str!("../../../docs/policy.md");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let of_kind = |block: &&str| match block.lines().next().unwrap_or_default() {
            "# schemas" => kind == "schemas",
            "# cases" => kind == "cases",
            _ => kind == "rules",
        };
        blocks.filter(of_kind).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn every_example_of_the_documentation_is_sound_and_decides_as_it_says() {
        let blocks = documented("rules");
        assert!(blocks.len() > 10, "{}", blocks.len());
        let mut rules = Vec::new();
        for block in &blocks {
            assert_eq!(found(block, None), Vec::<String>::new(), "{block}");
            rules.extend(file::parse(block).unwrap());
        }
        let schemas: Schemas = yaml_serde::from_str(&documented("schemas")[0]).unwrap();
        let places: Vec<_> = (0..rules.len()).map(|i| (PathBuf::from("docs"), i)).collect();
        let errors: Vec<Finding> =
            inspect(&rules, &places, Some(&schemas)).into_iter().filter(Finding::is_error).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let policy = compile(rules).unwrap();
        let cases: Vec<Case> = yaml_serde::from_str(&documented("cases")[0]).unwrap();
        for case in cases {
            let result = judge(&case, &policy).unwrap();
            assert!(result.passed, "{}: {} by {}", result.case, result.decision, result.rule);
        }
    }

    #[test]
    fn what_the_documentation_says_of_conditions_is_so() {
        let decide = |condition: &str, args: &str| {
            let rules = format!("- {{name: r, effect: forbid, condition: \"{condition}\"}}");
            let policy = compile(file::parse(&rules).unwrap()).unwrap();
            let case = format!("{{name: c, server: s, tool: t, args: {args}, expect: forbid}}");
            !judge(&yaml_serde::from_str(&case).unwrap(), &policy).unwrap().passed
        };
        // The table of arguments; a condition that fails forbids.
        for (args, below, has, null) in [
            ("{}", false, true, false),
            ("{n: null}", false, false, false),
            ("{n: '4'}", false, false, true),
            ("{n: [4]}", false, false, true),
            ("{n: 4}", false, false, true),
            ("{n: 4.0}", false, false, true),
        ] {
            assert_eq!(decide("args.n < 5", args), below, "args.n < 5 with {args}");
            assert_eq!(decide("has(args.n)", args), has, "has(args.n) with {args}");
            assert_eq!(decide("args.n == null", args), null, "args.n == null with {args}");
        }
        // What fails may not be told from what holds, so the other way round as well.
        for (args, below) in [("{}", false), ("{n: null}", false), ("{n: '4'}", false), ("{n: 4}", true)] {
            assert_eq!(decide("!(args.n < 5)", args), below, "!(args.n < 5) with {args}");
        }
        assert!(decide("has(args.n) && args.n < 5", "{}"));
        // Every function, in a condition that holds.
        let args = "{t: 'abc', l: [1, 2], o: {k: 1}, a: '10.1.1.1'}";
        for condition in [
            "args.t.contains('b') && args.t.startsWith('a') && args.t.endsWith('c')",
            "args.t.matches('^[a-c]+$')",
            "args.a.in_cidr('10.0.0.0/8')",
            "size(args.t) == 3 && size(args.l) == 2 && size(args.o) == 1",
            "1 in args.l && 'k' in args.o",
            "args.l.all(x, x > 0) && args.l.exists(x, x == 2) && args.l.exists_one(x, x == 2)",
            "size(args.l.map(x, x * 2)) == 2 && size(args.l.filter(x, x > 1)) == 1",
            "int('4') == 4 && uint('4') == uint(4) && double('0.5') == 0.5 && string(4) == '4'",
            "request.time > timestamp('2020-01-01T00:00:00Z') - duration('1h')",
            "request.time.getHours() >= 0 && request.time.getHours('Europe/Berlin') >= 0",
            "request.time.getMinutes('Europe/Berlin') >= 0 && request.time.getDayOfWeek('Europe/Berlin') >= 0",
            "request.time.getDate() > 0 && request.time.getMonth() >= 0 && request.time.getFullYear() > 2000",
            "request.era == 'stateless' && request.key == '' && principal.kind == 'user'",
            "(2 + 3) * 4 - 6 / 2 == 17 && 7 % 4 == 3 && (true ? 1 : 2) == 1",
        ] {
            let policy = format!("- {{name: r, effect: forbid, condition: \"!({condition})\"}}");
            assert!(file::parse(&policy).is_ok() && decide(&format!("!({condition})"), args), "{condition}");
        }
    }
}
