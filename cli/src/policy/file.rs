//! Files of rules: a list of them in YAML or JSON, or an object with the list as `rules`. What `policy get` prints is one.

use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use waffles_core::policy::RuleSpec;
use waffles_core::wire;
use waffles_proto::policy::v1 as pb;
use yaml_serde::Value;

use crate::args::Format;
use crate::failure::Failure;
use crate::output::line;

/// Bytes of a file at the most; what the control plane takes is less.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// Reads a file of rules; `-` is the standard input.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<RuleSpec>> {
    let text = text(path)?;
    parse(&text).map_err(|reason| Failure::failed(format!("{}: {reason}", path.display())).into())
}

/// Reads rules from a text.
pub(super) fn parse(text: &str) -> Result<Vec<RuleSpec>, String> {
    let value: Value = yaml_serde::from_str(text).map_err(|error| error.to_string())?;
    let list = match value {
        Value::Null => Value::Sequence(Vec::new()),
        Value::Mapping(mut fields) => {
            let list = fields.remove("rules").ok_or("must be a list of rules, or an object with `rules`")?;
            if let Some((name, _)) = fields.iter().next() {
                return Err(format!("{}: is not known here; there is `rules`", shown(name)));
            }
            list
        }
        list => list,
    };
    of("rules", list)
}

/// Reads a value, with the path of what is wrong with it.
pub(super) fn of<T: DeserializeOwned>(at: &str, value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = match path.as_str() {
            "." => at.to_owned(),
            path if path.starts_with('[') => format!("{at}{path}"),
            path => format!("{at}.{path}"),
        };
        format!("{place}: {}", error.inner())
    })
}

/// The text of a file, with a bound.
pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(MOST_BYTES + 1).read_to_string(&mut text),
        false => {
            std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
        }
    };
    read.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(Failure::usage(format!("{} is too large", path.display())).into());
    }
    Ok(text)
}

/// Prints rules as a file of them.
pub(super) fn print(format: Format, rules: &[RuleSpec]) -> anyhow::Result<()> {
    line(&match format {
        Format::Json => serde_json::to_string_pretty(rules)?,
        Format::Yaml | Format::Table => yaml_serde::to_string(rules)?.trim_end().to_owned(),
    })
}

/// What would change, rule by rule.
pub(super) fn differences(present: Vec<pb::PolicyRule>, wanted: Vec<pb::RuleSpec>) -> Vec<pb::RuleChange> {
    let mut changes: std::collections::BTreeMap<String, pb::RuleChange> = Default::default();
    for spec in present.into_iter().filter_map(|rule| rule.spec) {
        let name = spec.name.clone();
        changes.insert(name.clone(), pb::RuleChange { name, before: Some(spec), after: None });
    }
    for spec in wanted {
        let name = spec.name.clone();
        let change = changes.entry(name.clone()).or_default();
        (change.name, change.after) = (name, Some(spec));
    }
    // As the control plane compares them: by what they say, not by how they are written.
    let said =
        |spec: &Option<pb::RuleSpec>| spec.clone().and_then(|spec| wire::rule_spec_from_proto(spec).ok());
    changes.into_values().filter(|change| said(&change.before) != said(&change.after)).collect()
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| format!("{value:?}"), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use waffles_core::policy::{Effect, Mode};

    const TEXT: &str = "
- name: no-deletes
  effect: forbid
  principals: {roles: [user]}
  items: {tools: ['delete_*']}
- name: look
  effect: allow
  mode: log_only
  items: {servers: [demo], read_only: true}
  condition: request.address.in_cidr('10.0.0.0/8')
";

    #[test]
    fn rules_are_read_as_a_list_or_as_an_object_with_one_and_come_back_the_same() {
        let rules = parse(TEXT).unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!((rules[0].effect, rules[1].mode), (Effect::Forbid, Mode::LogOnly));
        let wrapped = format!("rules:{}", TEXT.replace('\n', "\n  "));
        assert_eq!(parse(&wrapped).unwrap(), rules);
        assert_eq!(parse(&yaml_serde::to_string(&rules).unwrap()).unwrap(), rules);
        assert_eq!(parse(&serde_json::to_string(&rules).unwrap()).unwrap(), rules);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (text, expected) in [
            ("- {name: a, effect: forbid, items: {tols: [x]}}", "rules[0].items"),
            ("- {name: a, effect: perhaps}", "rules[0].effect"),
            ("- {name: a}", "rules[0]"),
            ("rule: []", "must be a list of rules"),
            ("{rules: [], more: 1}", "more: is not known here"),
            ("- {name: a, effect: allow, effect: forbid}", "duplicate"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
