//! Why a decision is what it is: everything that was looked at on the way to it, one step each, in words.

use super::condition::Asked;
use super::index::{CompiledRule, enforced};
use super::rule::Effect;
use super::{Permission, Question, Verdict, asked, decide, holds, place};

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It applies.
    Applies,
    /// It does not.
    DoesNot,
    /// It is about somebody or something else.
    Elsewhere,
    /// Its condition failed, for this reason, which counts against the caller.
    Failed(String),
}

impl Outcome {
    /// One word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applies => "applies",
            Self::DoesNot => "does_not_apply",
            Self::Elsewhere => "elsewhere",
            Self::Failed(_) => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is: `role:user`, `role:user@server/github`, `rule:NAME`.
    pub what: String,
    /// What it does where it applies.
    pub effect: Effect,
    /// Whether it decides, or only takes note.
    pub enforced: bool,
    /// What became of it.
    pub outcome: Outcome,
}

/// A decision with the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub verdict: Verdict,
    /// Everything that was looked at: roles first, then rules by name.
    pub steps: Vec<Step>,
}

/// Decides, and says what was looked at. The decision is the one that [`decide`] makes.
pub fn explain(question: &Question<'_>) -> Explanation {
    let principal = question.caller.principal;
    let step = |what: String, outcome: Outcome| Step { what, effect: Effect::Allow, enforced: true, outcome };
    let uses = |role: &str| principal.permissions_of(role).contains(Permission::GatewayUse);
    let said = |role: &str| if uses(role) { Outcome::Applies } else { Outcome::DoesNot };
    let mut steps: Vec<Step> =
        principal.roles.iter().map(|role| step(format!("role:{role}"), said(role))).collect();
    for held in &principal.grants {
        let narrow = super::Question {
            caller: super::Caller { principal: &only(principal, held), ..question.caller },
            policy: &super::Policy::default(),
            ..*question
        };
        let covers = super::covered(&narrow, &super::Ruled::Nothing).is_ok();
        let outcome = match (uses(&held.role), covers) {
            (true, true) => Outcome::Applies,
            (true, false) => Outcome::Elsewhere,
            (false, _) => Outcome::DoesNot,
        };
        steps.push(step(format!("role:{}@{}", held.role, held.scope), outcome));
    }
    let place = place(question);
    let asked = asked(question, &place);
    if question.server.tenant == principal.tenant {
        let about = question.policy.applicable(&place);
        for rule in question.policy.rules() {
            let here = about.rules.iter().any(|other| other.rule.id == rule.rule.id);
            steps.push(of_rule(rule, here, question, &asked));
        }
    }
    Explanation { verdict: decide(question), steps }
}

fn of_rule(rule: &CompiledRule, here: bool, question: &Question<'_>, asked: &Asked<'_>) -> Step {
    let outcome = match here.then(|| holds(rule, question, asked)) {
        None => Outcome::Elsewhere,
        Some(Ok(true)) => Outcome::Applies,
        Some(Ok(false)) => Outcome::DoesNot,
        Some(Err(reason)) => Outcome::Failed(reason),
    };
    let what = rule.label.to_string();
    Step { what, effect: rule.rule.spec.effect, enforced: enforced(rule), outcome }
}

/// The principal as it would be with one of its grants alone.
fn only(principal: &crate::principal::Principal, held: &super::Held) -> crate::principal::Principal {
    crate::principal::Principal { roles: Vec::new(), grants: vec![held.clone()], ..principal.clone() }
}
