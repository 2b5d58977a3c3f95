//! What can be said of rules before they decide anything: fields that are wrong, names that nobody has, arguments that no
//! tool takes, rules that can never matter. Asked by the control plane before it saves and by `wafflectl` without one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::condition::Condition;
use super::rule::{Effect, Mode, RuleSpec, What, Who};
use crate::FieldError;
use crate::server::{Marks, fits};

/// Tools that a finding names; of the others it says how many there are.
const NAMED: usize = 3;
/// Findings that are told at the most.
const MOST: usize = 500;

/// Something about a rule that is no error, but may not be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The rule's name.
    pub rule: String,
    /// The field of the rule, such as `condition`.
    pub field: String,
    /// What is odd about it, as a sentence without a full stop.
    pub message: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// What is wrong: such rules are not saved. Fields are named as in `rules[0].condition`.
    pub errors: Vec<FieldError>,
    /// What may not be meant.
    pub notices: Vec<Notice>,
}

/// The names that there are in a tenant; none: they are not known.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Of roles.
    pub roles: Option<BTreeSet<String>>,
    /// Of groups.
    pub groups: Option<BTreeSet<String>>,
    /// Of principals.
    pub principals: Option<BTreeSet<String>>,
    /// Of servers.
    pub servers: Option<BTreeSet<String>>,
    /// Of namespaces.
    pub namespaces: Option<BTreeSet<String>>,
}

/// A tool of a server, as the catalogue knows it.
#[derive(Debug, Clone, Copy)]
pub struct Tool<'a> {
    /// The server's name.
    pub server: &'a str,
    /// The namespaces that the server is in.
    pub namespaces: &'a [String],
    /// The tool's name.
    pub name: &'a str,
    /// What the registry says of it.
    pub marks: Marks,
    /// The JSON Schema of its arguments; none where it cannot be read.
    pub schema: Option<&'a Value>,
}

/// Looks at rules. Servers and tools are shown to it one by one, so that nobody has to hold all their schemas at once.
#[derive(Debug)]
pub struct Inspector<'a> {
    rules: &'a [RuleSpec],
    findings: Findings,
    /// Rules whose conditions look at arguments.
    readers: Vec<Reader<'a>>,
}

/// A rule whose condition looks at arguments, and what tools say to that.
#[derive(Debug)]
struct Reader<'a> {
    at: usize,
    spec: &'a RuleSpec,
    condition: Condition,
    /// Covered tools whose schema is known.
    known: usize,
    /// Of these, tools that lack some path: whether types fit cannot be told there.
    lacking: usize,
    /// Covered tools and servers about which nothing is known.
    unknown: Tally,
    complaints: BTreeMap<String, Tally>,
}

/// How many there are of something, and the names of the first few.
#[derive(Debug, Default)]
struct Tally {
    count: usize,
    named: Vec<String>,
}

impl Tally {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(name.to_owned());
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.named.join(", "))?;
        match self.count.saturating_sub(self.named.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl<'a> Inspector<'a> {
    /// Begins with what the rules alone tell. `is_new` says which of them are looked at; the others are there to be compared
    /// with.
    pub fn new(rules: &'a [RuleSpec], is_new: impl Fn(&RuleSpec) -> bool) -> Self {
        let mut findings = Findings::default();
        let mut readers = Vec::new();
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (at, spec) in rules.iter().enumerate() {
            if let Some(before) = first.get(spec.name.as_str()) {
                let reason = format!("is the name of rules[{before}] too");
                findings.errors.push(FieldError::new(format!("rules[{at}].name"), reason));
            }
            first.entry(&spec.name).or_insert(at);
            if !is_new(spec) {
                continue;
            }
            let problems = spec.problems();
            if problems.is_empty()
                && !spec.condition.trim().is_empty()
                && let Ok(condition) = Condition::compile(&spec.condition)
                && condition.looks().args
            {
                readers.push(Reader::new(at, spec, condition));
            }
            let placed = problems
                .into_iter()
                .map(|problem| FieldError { field: format!("rules[{at}].{}", problem.field), ..problem });
            findings.errors.extend(placed);
        }
        let forbids: Vec<&RuleSpec> = rules.iter().filter(|rule| decides(rule, Effect::Forbid)).collect();
        for spec in rules.iter().filter(|spec| is_new(spec)) {
            findings.notices.extend(unreachable(spec, &forbids));
        }
        Self { rules, findings, readers }
    }

    /// Whether any rule looks at arguments: without one, tools need not be shown.
    pub fn reads_arguments(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Compares the names in the rules with those that there are. A rule may be written before what it is about.
    pub fn names(&mut self, names: &Names, is_new: impl Fn(&RuleSpec) -> bool) {
        for spec in self.rules.iter().filter(|spec| is_new(spec)) {
            let Who { roles, groups, names: principals } = &spec.principals;
            let What { namespaces, servers, .. } = &spec.items;
            for (field, list, known) in [
                ("principals.roles", roles, &names.roles),
                ("principals.groups", groups, &names.groups),
                ("principals.names", principals, &names.principals),
                ("items.namespaces", namespaces, &names.namespaces),
                ("items.servers", servers, &names.servers),
            ] {
                let Some(known) = known else { continue };
                for (i, name) in list.iter().enumerate().filter(|(_, name)| !known.contains(*name)) {
                    self.findings.notices.push(Notice {
                        rule: spec.name.clone(),
                        field: format!("{field}[{i}]"),
                        message: format!("`{name}` is not there yet"),
                    });
                }
            }
        }
    }

    /// Shows a server whose tools were never listed.
    pub fn unlisted(&mut self, server: &str, namespaces: &[String]) {
        for reader in
            self.readers.iter_mut().filter(|reader| of_place(&reader.spec.items, server, namespaces))
        {
            reader.unknown.add(&format!("server {server}"));
        }
    }

    /// Shows a tool.
    pub fn tool(&mut self, tool: &Tool<'_>) {
        for reader in &mut self.readers {
            let items = &reader.spec.items;
            if of_place(items, tool.server, tool.namespaces) && items.has_tool(tool.name, tool.marks) {
                reader.see(tool);
            }
        }
    }

    /// What was found.
    pub fn finish(mut self) -> Findings {
        for reader in self.readers {
            reader.finish(&mut self.findings);
        }
        self.findings.errors.truncate(MOST);
        self.findings.notices.truncate(MOST);
        self.findings
    }
}

impl<'a> Reader<'a> {
    fn new(at: usize, spec: &'a RuleSpec, condition: Condition) -> Self {
        let complaints = BTreeMap::new();
        Self { at, spec, condition, known: 0, lacking: 0, unknown: Tally::default(), complaints }
    }

    fn see(&mut self, tool: &Tool<'_>) {
        let name = format!("{}/{}", tool.server, tool.name);
        let Some(schema) = tool.schema else {
            self.unknown.add(&name);
            return;
        };
        self.known += 1;
        let complaints = self.condition.check_args(schema);
        self.lacking += usize::from(complaints.iter().any(|complaint| is_about_path(complaint)));
        for text in complaints {
            self.complaints.entry(text).or_default().add(&name);
        }
    }

    fn finish(self, findings: &mut Findings) {
        let Self { at, spec, known, lacking, unknown, complaints, .. } = self;
        let Findings { errors, notices } = findings;
        let mut notice = |message: String| {
            notices.push(Notice { rule: spec.name.clone(), field: "condition".into(), message });
        };
        for (text, of) in complaints {
            let of_path = is_about_path(&text);
            let could = if of_path { known } else { known - lacking };
            let found = if of_path { format!("{text} of {of}") } else { format!("{text}, for {of}") };
            if of.count == could && unknown.count == 0 {
                errors.push(FieldError::new(format!("rules[{at}].condition"), found));
            } else {
                notice(format!("{found}; there the condition fails, which counts against the caller"));
            }
        }
        if unknown.count > 0 {
            notice(format!("what {unknown} takes is not known, so its arguments were not checked"));
        } else if known == 0 {
            notice("it covers no tool that is known, so its arguments were not checked".to_owned());
        }
    }
}

fn is_about_path(complaint: &str) -> bool {
    complaint.ends_with("is no argument")
}

/// Whether a rule can be about a server, at its own door or at one of its namespaces.
fn of_place(items: &What, server: &str, namespaces: &[String]) -> bool {
    (items.servers.is_empty() || items.servers.iter().any(|name| name == server))
        && (items.namespaces.is_empty() || items.namespaces.iter().any(|name| namespaces.contains(name)))
}

/// Whether a rule always decides, where it is about something.
fn decides(rule: &RuleSpec, effect: Effect) -> bool {
    rule.effect == effect && rule.mode == Mode::Enforce && rule.condition.trim().is_empty()
}

/// Why a rule can never matter, where that can be told for certain.
fn unreachable(spec: &RuleSpec, forbids: &[&RuleSpec]) -> Option<Notice> {
    if spec.mode == Mode::LogOnly {
        return None;
    }
    let over = forbids.iter().find(|forbid| {
        // Of two that say the same, the later name is the one too many.
        let twin = spec.effect == Effect::Forbid
            && spec.condition.trim().is_empty()
            && covers(spec, forbid)
            && spec.name <= forbid.name;
        forbid.name != spec.name && covers(forbid, spec) && !twin
    })?;
    let message = match spec.effect {
        Effect::Allow => format!("it never applies: `{}` forbids all that it allows", over.name),
        Effect::Forbid => format!("it changes nothing: `{}` forbids all that it forbids", over.name),
    };
    Some(Notice { rule: spec.name.clone(), field: "items".into(), message })
}

/// Whether one rule is about everything that the other is about.
fn covers(wide: &RuleSpec, narrow: &RuleSpec) -> bool {
    covers_who(&wide.principals, &narrow.principals) && covers_what(&wide.items, &narrow.items)
}

fn covers_who(wide: &Who, narrow: &Who) -> bool {
    let everybody = |who: &Who| who.roles.is_empty() && who.groups.is_empty() && who.names.is_empty();
    let within = |narrow: &[String], wide: &[String]| narrow.iter().all(|name| wide.contains(name));
    everybody(wide)
        || (!everybody(narrow)
            && within(&narrow.roles, &wide.roles)
            && within(&narrow.groups, &wide.groups)
            && within(&narrow.names, &wide.names))
}

fn covers_what(wide: &What, narrow: &What) -> bool {
    let within = |narrow: &[String], wide: &[String]| {
        wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|name| wide.contains(name)))
    };
    // A pattern that fits the text of another one fits all that this one stands for: a `*` in it can only have been met by
    // a `*`.
    let tools = wide.tools.is_empty()
        || (!narrow.tools.is_empty()
            && narrow.tools.iter().all(|inner| wide.tools.iter().any(|outer| fits(outer, inner))));
    let marked = |wide: Option<bool>, narrow: Option<bool>| wide.is_none() || wide == narrow;
    within(&narrow.namespaces, &wide.namespaces)
        && within(&narrow.servers, &wide.servers)
        && tools
        && marked(wide.read_only, narrow.read_only)
        && marked(wide.destructive, narrow.destructive)
        && marked(wide.idempotent, narrow.idempotent)
        && marked(wide.open_world, narrow.open_world)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(name: &str, effect: Effect) -> RuleSpec {
        RuleSpec { effect, ..RuleSpec::forbid_all(name) }
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn inspect(rules: &[RuleSpec], tools: &[(&str, &str, Option<Value>)]) -> Findings {
        let mut inspector = Inspector::new(rules, |_| true);
        for (server, name, schema) in tools {
            inspector.tool(&Tool {
                server,
                namespaces: &[],
                name,
                marks: Marks::default(),
                schema: schema.as_ref(),
            });
        }
        inspector.finish()
    }

    fn refund() -> Value {
        json!({"type": "object", "properties": {"amount": {"type": "number"}, "to": {"type": "string"}}})
    }

    fn with_condition(condition: &str, servers: &[&str]) -> RuleSpec {
        let items = What { servers: texts(servers), ..What::default() };
        RuleSpec { items, condition: condition.into(), ..rule("big", Effect::Forbid) }
    }

    #[test]
    fn a_path_that_no_covered_tool_has_is_an_error_that_names_both() {
        let rules = [with_condition("args.amuont > 100", &["billing"])];
        let found =
            inspect(&rules, &[("billing", "refund", Some(refund())), ("other", "x", Some(json!({})))]);
        assert_eq!(
            found.errors,
            [FieldError::new("rules[0].condition", "args.amuont is no argument of billing/refund")]
        );
        let found = inspect(
            &[with_condition("args.amount > 100", &["billing"])],
            &[("billing", "refund", Some(refund()))],
        );
        assert_eq!(found, Findings::default());
    }

    #[test]
    fn a_path_that_some_have_or_that_may_be_elsewhere_is_only_noticed() {
        let rules = [with_condition("args.amount > 100", &[])];
        let other = json!({"properties": {"text": {}}});
        let found =
            inspect(&rules, &[("billing", "refund", Some(refund())), ("demo", "echo", Some(other.clone()))]);
        assert!(found.errors.is_empty());
        assert_eq!(found.notices.len(), 1);
        assert!(found.notices[0].message.starts_with("args.amount is no argument of demo/echo; "));
        let found = inspect(&rules, &[("demo", "echo", Some(other)), ("demo", "odd", None)]);
        assert!(found.errors.is_empty(), "{found:?}");
        assert!(found.notices.iter().any(|n| n.message.contains("demo/odd takes is not known")), "{found:?}");
        let found = inspect(&rules, &[]);
        assert!(found.notices[0].message.starts_with("it covers no tool that is known"));
    }

    #[test]
    fn a_server_that_was_never_listed_leaves_the_question_open() {
        let rules = [with_condition("args.amuont > 100", &["billing"])];
        let mut inspector = Inspector::new(&rules, |_| true);
        inspector.unlisted("billing", &[]);
        inspector.unlisted("elsewhere", &[]);
        let found = inspector.finish();
        assert!(found.errors.is_empty());
        assert_eq!(found.notices.len(), 1);
        assert!(found.notices[0].message.contains("server billing"));
    }

    #[test]
    fn values_that_can_never_compare_are_an_error() {
        let rules = [with_condition("args.amount == 'much'", &["billing"])];
        let found = inspect(&rules, &[("billing", "refund", Some(refund()))]);
        assert_eq!(found.errors.len(), 1);
        assert!(found.errors[0].reason.ends_with(", for billing/refund"), "{found:?}");
    }

    #[test]
    fn only_a_rule_that_is_covered_for_certain_is_called_unreachable() {
        let who = |roles: &[&str]| Who { roles: texts(roles), ..Who::default() };
        let what = |servers: &[&str], tools: &[&str]| What {
            servers: texts(servers),
            tools: texts(tools),
            ..What::default()
        };
        let wide = RuleSpec { items: what(&["a", "b"], &["get_*", "drop"]), ..rule("wide", Effect::Forbid) };
        for (narrow, never) in [
            (RuleSpec { items: what(&["a"], &["get_*"]), ..rule("n", Effect::Allow) }, true),
            (
                RuleSpec {
                    items: what(&["a"], &["get_w*x"]),
                    principals: who(&["user"]),
                    ..rule("n", Effect::Allow)
                },
                true,
            ),
            (
                RuleSpec {
                    items: what(&["a"], &["get_w*x"]),
                    condition: "true".into(),
                    ..rule("n", Effect::Forbid)
                },
                true,
            ),
            (RuleSpec { items: what(&["a"], &["*"]), ..rule("n", Effect::Allow) }, false),
            (RuleSpec { items: what(&["a"], &[]), ..rule("n", Effect::Allow) }, false),
            (RuleSpec { items: what(&[], &["drop"]), ..rule("n", Effect::Allow) }, false),
            (RuleSpec { items: what(&["c"], &["drop"]), ..rule("n", Effect::Allow) }, false),
            (
                RuleSpec { items: what(&["a"], &["drop"]), mode: Mode::LogOnly, ..rule("n", Effect::Allow) },
                false,
            ),
        ] {
            let found = inspect(&[wide.clone(), narrow.clone()], &[]);
            let said = found.notices.iter().any(|notice| notice.rule == "n" && notice.field == "items");
            assert_eq!(said, never, "{narrow:?}: {found:?}");
        }
        let twins = [rule("one", Effect::Forbid), rule("two", Effect::Forbid)];
        let found = inspect(&twins, &[]);
        assert_eq!(found.notices.iter().map(|n| n.rule.as_str()).collect::<Vec<_>>(), ["two"]);
        let conditional = RuleSpec { condition: "tool.name == 'x'".into(), ..wide };
        let allow = RuleSpec { items: what(&["a"], &["drop"]), ..rule("n", Effect::Allow) };
        assert!(inspect(&[conditional, allow], &[]).notices.is_empty());
    }

    #[test]
    fn names_that_nobody_has_and_names_that_two_have_are_told() {
        let who = Who { roles: texts(&["user", "usr"]), ..Who::default() };
        let rules = [RuleSpec { principals: who, ..rule("a", Effect::Allow) }, rule("a", Effect::Allow)];
        let mut inspector = Inspector::new(&rules, |_| true);
        let names = Names { roles: Some(["user".to_owned()].into()), ..Names::default() };
        inspector.names(&names, |_| true);
        let found = inspector.finish();
        assert_eq!(found.errors, [FieldError::new("rules[1].name", "is the name of rules[0] too")]);
        assert_eq!(found.notices.len(), 1);
        assert_eq!(
            (found.notices[0].field.as_str(), found.notices[0].message.as_str()),
            ("principals.roles[1]", "`usr` is not there yet")
        );
    }
}
