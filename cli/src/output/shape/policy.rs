//! Rules, their versions, explanations and trials.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use waffles_core::policy::{Effect, Mode, RuleSpec, What, Who};
use waffles_core::wire::time;
use waffles_proto::policy::v1 as pb;

use super::super::{Shape, clean, columns, fields};
use super::{list, since, stamp};

/// A rule in force.
#[derive(Debug, Serialize)]
pub(crate) struct StoredRule {
    id: String,
    name: String,
    effect: &'static str,
    mode: &'static str,
    who: String,
    what: String,
    condition: String,
    description: String,
    version: u64,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
}

impl From<pb::PolicyRule> for StoredRule {
    fn from(rule: pb::PolicyRule) -> Self {
        let spec = rule.spec.unwrap_or_default();
        let effect = match pb::Effect::try_from(spec.effect) {
            Ok(pb::Effect::Allow) => "allow",
            Ok(pb::Effect::Forbid) => "forbid",
            _ => "unknown",
        };
        let mode = match pb::Mode::try_from(spec.mode) {
            Ok(pb::Mode::Enforce | pb::Mode::Unspecified) => "enforce",
            Ok(pb::Mode::LogOnly) => "log_only",
            Err(_) => "unknown",
        };
        let (who, what) = (spec.principals.unwrap_or_default(), spec.items.unwrap_or_default());
        let who = Who { roles: who.roles, groups: who.groups, names: who.names };
        let what = What {
            namespaces: what.namespaces,
            servers: what.servers,
            tools: what.tools,
            read_only: what.read_only,
            destructive: what.destructive,
            idempotent: what.idempotent,
            open_world: what.open_world,
        };
        Self {
            id: rule.id,
            name: spec.name,
            effect,
            mode,
            who: who_text(&who),
            what: what_text(&what),
            condition: spec.condition,
            description: spec.description,
            version: rule.version,
            created_at: time(rule.created_at),
            updated_at: time(rule.updated_at),
        }
    }
}

fn who_text(who: &Who) -> String {
    let parts = [("roles", &who.roles), ("groups", &who.groups), ("", &who.names)];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{word} {}", list(names)).trim().to_owned())
        .collect();
    if parts.is_empty() { "everybody".to_owned() } else { parts.join("; ") }
}

fn what_text(what: &What) -> String {
    let lists = [("namespaces", &what.namespaces), ("servers", &what.servers), ("tools", &what.tools)];
    let mut parts: Vec<String> = lists
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{word} {}", list(names)))
        .collect();
    for (word, mark) in [
        ("read-only", what.read_only),
        ("destructive", what.destructive),
        ("idempotent", what.idempotent),
        ("open-world", what.open_world),
    ] {
        parts.extend(mark.map(|mark| if mark { word.to_owned() } else { format!("not {word}") }));
    }
    if parts.is_empty() { "everything".to_owned() } else { parts.join("; ") }
}

fn effect_text(effect: &str, mode: &str) -> String {
    if mode == "enforce" { effect.to_owned() } else { format!("{effect} (log only)") }
}

impl Shape for StoredRule {
    fn text(&self) -> String {
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("description", self.description.clone()),
            ("effect", effect_text(self.effect, self.mode)),
            ("who", self.who.clone()),
            ("what", self.what.clone()),
            ("condition", self.condition.clone()),
            ("version", self.version.to_string()),
            ("created", stamp(self.created_at)),
            ("updated", stamp(self.updated_at)),
        ])
    }
}

impl Shape for [StoredRule] {
    fn text(&self) -> String {
        let rows = self.iter().map(|rule| {
            [
                rule.name.clone(),
                effect_text(rule.effect, rule.mode),
                rule.who.clone(),
                rule.what.clone(),
                if rule.condition.trim().is_empty() { "-" } else { "yes" }.to_owned(),
                since(rule.updated_at),
            ]
        });
        let empty = "There are no rules: roles and grants alone decide. Make some with `wafflectl policy set -f FILE`.";
        columns(["NAME", "EFFECT", "WHO", "WHAT", "CONDITION", "CHANGED"], rows, empty)
    }
}

/// One save of the policy.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyVersion {
    version: u64,
    author: String,
    comment: String,
    restored: Option<u64>,
    revision: u64,
    created_at: Option<DateTime<Utc>>,
}

impl From<pb::PolicyVersion> for PolicyVersion {
    fn from(version: pb::PolicyVersion) -> Self {
        Self {
            version: version.version,
            author: version.author,
            comment: version.comment,
            restored: Some(version.restored).filter(|restored| *restored != 0),
            revision: version.revision,
            created_at: time(version.created_at),
        }
    }
}

impl Shape for [PolicyVersion] {
    fn text(&self) -> String {
        let rows = self.iter().map(|version| {
            let back = version.restored.map(|restored| format!("back to {restored}"));
            let comment = [back, Some(version.comment.clone()).filter(|comment| !comment.is_empty())];
            [
                version.version.to_string(),
                version.author.clone(),
                stamp(version.created_at),
                comment.into_iter().flatten().collect::<Vec<_>>().join(": "),
            ]
        });
        columns(["VERSION", "AUTHOR", "SAVED", "COMMENT"], rows, "The policy was never saved.")
    }
}

/// How one rule differs between two states of the policy.
#[derive(Debug, Serialize)]
pub(crate) struct RuleChange {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<RuleSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<RuleSpec>,
}

impl RuleChange {
    /// Reads what the control plane sent.
    pub(crate) fn read(change: pb::RuleChange) -> anyhow::Result<Self> {
        let (before, after) = (change.before.map(crate::policy::read), change.after.map(crate::policy::read));
        Ok(Self { name: change.name, before: before.transpose()?, after: after.transpose()? })
    }

    fn lines(&self) -> Vec<String> {
        match (&self.before, &self.after) {
            (None, Some(after)) => vec![format!("+ {}: {}", self.name, rule_text(after))],
            (Some(before), None) => vec![format!("- {}: {}", self.name, rule_text(before))],
            (Some(before), Some(after)) => {
                let mut lines = vec![format!("~ {}", self.name)];
                for ((field, before), (_, after)) in parts(before).into_iter().zip(parts(after)) {
                    if before != after {
                        lines.push(format!("    {field}: {before}"));
                        lines.push(format!("    {:1$}  {after}", "->", field.len()));
                    }
                }
                lines
            }
            (None, None) => Vec::new(),
        }
    }
}

fn parts(spec: &RuleSpec) -> [(&'static str, String); 5] {
    let effect = match spec.effect {
        Effect::Allow => "allow",
        Effect::Forbid => "forbid",
    };
    let mode = match spec.mode {
        Mode::Enforce => "enforce",
        Mode::LogOnly => "log_only",
    };
    [
        ("effect", effect_text(effect, mode)),
        ("who", who_text(&spec.principals)),
        ("what", what_text(&spec.items)),
        ("condition", spec.condition.clone()),
        ("description", spec.description.clone()),
    ]
}

fn rule_text(spec: &RuleSpec) -> String {
    let [(_, effect), (_, who), (_, what), (_, condition), _] = parts(spec);
    let when = if condition.trim().is_empty() { String::new() } else { format!(" when {condition}") };
    format!("{effect} {who} on {what}{when}")
}

impl Shape for [RuleChange] {
    fn text(&self) -> String {
        if self.is_empty() {
            return "Nothing differs.".to_owned();
        }
        self.iter().flat_map(RuleChange::lines).map(|line| clean(&line)).collect::<Vec<_>>().join("\n")
    }
}

/// What decided about a call.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    decision: String,
    rule: String,
    steps: Vec<Step>,
    inputs: BTreeMap<String, Value>,
    version: u64,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<Recorded>,
    #[serde(skip_serializing_if = "String::is_empty")]
    now: String,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Step {
    rule: String,
    effect: String,
    log_only: bool,
    result: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    condition: String,
}

#[derive(Debug, Serialize)]
struct Recorded {
    decision: String,
    rule: String,
    reason: String,
    outcome: String,
    revision: u64,
}

impl From<pb::ExplainResponse> for Explanation {
    fn from(answer: pb::ExplainResponse) -> Self {
        let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
        let step = |step: pb::Step| Step {
            rule: step.rule,
            effect: step.effect,
            log_only: step.log_only,
            result: step.result,
            detail: step.detail,
            condition: step.condition,
        };
        let recorded = |recorded: pb::Recorded| Recorded {
            decision: recorded.decision,
            rule: recorded.rule,
            reason: recorded.reason,
            outcome: recorded.outcome,
            revision: recorded.revision,
        };
        Self {
            decision: answer.decision,
            rule: answer.rule,
            steps: answer.steps.into_iter().map(step).collect(),
            inputs: answer.inputs.into_iter().map(|(name, text)| (name, value(text))).collect(),
            version: answer.version,
            revision: answer.revision,
            recorded: answer.recorded.map(recorded),
            now: answer.now,
            notes: answer.notes,
        }
    }
}

impl Shape for Explanation {
    fn text(&self) -> String {
        let decided = match self.decision.is_empty() {
            true => "policy was not asked".to_owned(),
            false => format!("{} by {}", self.decision, self.rule),
        };
        let recorded = self.recorded.as_ref().map(|recorded| {
            let parts = [recorded.rule.as_str(), recorded.reason.as_str()];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            format!("{} ({}) at revision {}", recorded.decision, parts.join(", "), recorded.revision)
        });
        let inputs: Vec<String> =
            self.inputs.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let head = fields([
            ("decision", decided),
            ("recorded", recorded.unwrap_or_default()),
            ("now", self.now.clone()),
            ("policy", format!("version {}, revision {}", self.version, self.revision)),
            ("asked about", inputs.join("\n")),
            ("notes", self.notes.join("\n")),
        ]);
        if self.steps.is_empty() {
            return head;
        }
        let rows = self.steps.iter().map(|step| {
            let effect =
                if step.log_only { format!("{} (log only)", step.effect) } else { step.effect.clone() };
            let result = match step.result.as_str() {
                "does_not_apply" => "does not apply".to_owned(),
                "elsewhere" => "is about others".to_owned(),
                "failed" => format!("condition failed: {}", step.detail),
                other => other.to_owned(),
            };
            [step.rule.clone(), effect, result, step.condition.clone()]
        });
        format!("{head}\n\n{}", columns(["LOOKED AT", "EFFECT", "RESULT", "CONDITION"], rows, ""))
    }
}

/// What a draft would change.
#[derive(Debug, Serialize)]
pub(crate) struct Trial {
    calls: u64,
    gained: u64,
    lost: u64,
    unknown: u64,
    gone: u64,
    gains: Vec<Difference>,
    losses: Vec<Difference>,
    unknowns: Vec<Difference>,
    logged: BTreeMap<String, u64>,
    complete: bool,
    cut: bool,
}

#[derive(Debug, Serialize)]
struct Difference {
    principal: String,
    server: String,
    target: String,
    calls: u64,
    first_at: Option<DateTime<Utc>>,
    last_at: Option<DateTime<Utc>>,
    before: String,
    after: String,
    examples: Vec<String>,
}

impl From<pb::Trial> for Trial {
    fn from(trial: pb::Trial) -> Self {
        let difference = |found: pb::Difference| Difference {
            principal: found.principal,
            server: found.server,
            target: found.target,
            calls: found.calls,
            first_at: time(found.first_at),
            last_at: time(found.last_at),
            before: found.before,
            after: found.after,
            examples: found.examples,
        };
        let differences = |found: Vec<pb::Difference>| found.into_iter().map(difference).collect();
        Self {
            calls: trial.calls,
            gained: trial.gained,
            lost: trial.lost,
            unknown: trial.unknown,
            gone: trial.gone,
            gains: differences(trial.gains),
            losses: differences(trial.losses),
            unknowns: differences(trial.unknowns),
            logged: trial.logged.into_iter().map(|logged| (logged.rule, logged.calls)).collect(),
            complete: trial.complete,
            cut: trial.cut,
        }
    }
}

impl Shape for Trial {
    fn text(&self) -> String {
        let mut text = format!(
            "{} calls: {} would be permitted that are refused now, {} would be refused that are permitted now,\n\
             {} cannot be judged without their arguments, {} are of principals, keys or servers that are gone.",
            self.calls, self.gained, self.lost, self.unknown, self.gone
        );
        for (heading, found) in
            [("GAINS", &self.gains), ("LOSSES", &self.losses), ("CANNOT BE JUDGED", &self.unknowns)]
        {
            if found.is_empty() {
                continue;
            }
            let rows = found.iter().map(|row| {
                [
                    row.principal.clone(),
                    row.server.clone(),
                    row.target.clone(),
                    row.calls.to_string(),
                    since(row.last_at),
                    format!("{} -> {}", row.before, row.after),
                    row.examples.first().cloned().unwrap_or_default(),
                ]
            });
            let table = columns(["WHO", "SERVER", "TOOL", "CALLS", "LAST", "DECISION", "EXAMPLE"], rows, "");
            text.push_str(&format!("\n\n{heading}\n{table}"));
        }
        if !self.logged.is_empty() {
            let rows = self.logged.iter().map(|(rule, calls)| [rule.clone(), calls.to_string()]);
            text.push_str(&format!("\n\n{}", columns(["RULE THAT ONLY LOGS", "CALLS"], rows, "")));
        }
        if self.cut {
            text.push_str("\n\nThere is more than is shown; the counts are of all.");
        }
        if !self.complete {
            text.push_str("\n\nNot all calls of these days were looked at: the newest were.");
        }
        text
    }
}

/// What is wrong with a rule, or may not be meant.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    level: &'static str,
    file: String,
    rule: String,
    field: String,
    message: String,
}

impl Finding {
    /// What is wrong.
    pub(crate) fn error(file: String, rule: String, field: String, message: String) -> Self {
        Self { level: "error", file, rule, field, message }
    }

    /// What may not be meant.
    pub(crate) fn warning(file: String, rule: String, field: String, message: String) -> Self {
        Self { level: "warning", file, rule, field, message }
    }

    /// Whether it is wrong.
    pub(crate) fn is_error(&self) -> bool {
        self.level == "error"
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: ", self.level, self.file)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.rule.is_empty() {
            write!(f, "({}) ", self.rule)?;
        }
        f.write_str(&self.message)
    }
}

impl Shape for [Finding] {
    fn text(&self) -> String {
        if self.is_empty() {
            return "Nothing is wrong.".to_owned();
        }
        self.iter().map(|finding| clean(&finding.to_string())).collect::<Vec<_>>().join("\n")
    }
}

/// How a case of `policy test` ended.
#[derive(Debug, Serialize)]
pub(crate) struct TestResult {
    /// What it shows.
    pub(crate) case: String,
    /// Whether it was decided as expected.
    pub(crate) passed: bool,
    /// What was expected.
    pub(crate) expected: String,
    /// What was decided.
    pub(crate) decision: String,
    /// By what.
    pub(crate) rule: String,
}

impl Shape for [TestResult] {
    fn text(&self) -> String {
        let rows = self.iter().map(|result| {
            [
                if result.passed { "ok" } else { "FAILED" }.to_owned(),
                result.case.clone(),
                result.expected.clone(),
                format!("{} by {}", result.decision, result.rule),
            ]
        });
        columns(["", "CASE", "EXPECTED", "DECIDED"], rows, "There are no cases.")
    }
}
