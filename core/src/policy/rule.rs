//! Rules: who may, or may not, do what, and when. Data that an operator writes; `index` compiles it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::condition::{CONDITION_MOST, Condition};
use crate::server::{Marks, fits, is_pattern};
use crate::{FieldError, is_dns_label};

/// Entries of one list of a rule.
const MOST: usize = 1000;

/// What a rule does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Permits, unless another rule forbids.
    Allow,
    /// Forbids, whatever else permits.
    Forbid,
}

/// Whether a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It is counted and noted where it applies, and decides nothing.
    LogOnly,
}

/// Whom a rule is about: everybody of any of the lists; with all of them empty, everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Who {
    /// Names of roles, held in the whole tenant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Names of groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Names of principals: e-mail addresses of users, names of service accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// What a rule is about: what fits in every list that is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct What {
    /// Names of namespaces; the rule is then about their doors only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Names of servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Names of tools, or patterns in which `*` stands for any run of characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// Tools that the registry marks as reading only, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Tools that the registry marks as destructive, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destructive: Option<bool>,
    /// Tools that the registry marks as idempotent, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// Tools that the registry marks as reaching beyond the server, or all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_world: Option<bool>,
}

impl What {
    /// Whether the lists and marks that are about tools let this one in.
    pub(super) fn has_tool(&self, tool: &str, marks: Marks) -> bool {
        // What is not marked is not known to be harmless, nor to be harmful.
        let marked = |wanted: Option<bool>, said: Option<bool>| {
            wanted.is_none_or(|wanted| wanted == said.unwrap_or(false))
        };
        (self.tools.is_empty() || self.tools.iter().any(|pattern| fits(pattern, tool)))
            && marked(self.read_only, marks.read_only)
            && marked(self.destructive, marks.destructive)
            && marked(self.idempotent, marks.idempotent)
            && marked(self.open_world, marks.open_world)
    }
}

/// What an operator writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// A DNS label, unique in the tenant.
    pub name: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it does where it applies.
    pub effect: Effect,
    /// Whether it decides.
    #[serde(default)]
    pub mode: Mode,
    /// Whom it is about.
    #[serde(default)]
    pub principals: Who,
    /// What it is about.
    #[serde(default)]
    pub items: What,
    /// When it applies: an expression in CEL; empty: always.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub condition: String,
}

/// A rule of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// What the operator wrote.
    pub spec: RuleSpec,
}

impl RuleSpec {
    /// A rule that forbids everything to everybody: the start of others, and what stands for a rule that cannot be read.
    pub fn forbid_all(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            description: String::new(),
            effect: Effect::Forbid,
            mode: Mode::Enforce,
            principals: Who::default(),
            items: What::default(),
            condition: String::new(),
        }
    }

    /// Everything that is wrong with it, field by field; empty when it is sound. Whether its names exist and what tools
    /// take is not known here.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, reason: String| problems.push(FieldError::new(field, reason));
        if !is_dns_label(&self.name) {
            wrong("name".into(), "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens".into());
        }
        if self.description.chars().count() > 1000 || self.description.contains('\0') {
            wrong("description".into(), "must have at most 1000 characters and no NUL".into());
        }
        let text = |name: &str| !name.is_empty() && name.len() <= 320 && !name.chars().any(char::is_control);
        let text: fn(&str) -> bool = text;
        let (names, label) = ("must have 1 to 320 bytes and no control characters", "is not a name");
        let Who { roles, groups, names: principals } = &self.principals;
        let What { namespaces, servers, tools, .. } = &self.items;
        for (field, list, fits, reason) in [
            ("principals.roles", roles, is_dns_label as fn(&str) -> bool, label),
            ("principals.groups", groups, text, names),
            ("principals.names", principals, text, names),
            ("items.namespaces", namespaces, is_dns_label, label),
            ("items.servers", servers, is_dns_label, label),
            ("items.tools", tools, is_pattern, "must be 1 to 128 letters, digits or any of `_./-*`"),
        ] {
            if list.len() > MOST {
                wrong(field.into(), format!("must be at most {MOST}"));
            }
            for (i, _) in list.iter().enumerate().filter(|(_, entry)| !fits(entry)) {
                wrong(format!("{field}[{i}]"), reason.into());
            }
        }
        if self.condition.len() > CONDITION_MOST {
            wrong("condition".into(), format!("must have at most {CONDITION_MOST} bytes"));
        } else if !self.condition.trim().is_empty()
            && let Err(reasons) = Condition::compile(&self.condition)
        {
            for reason in reasons {
                wrong("condition".into(), reason);
            }
        }
        problems
    }
}
