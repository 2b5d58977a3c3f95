//! Questions that a server asks the person at the terminal in the middle of a call (MCP elicitation).

use std::io::IsTerminal as _;

use dialoguer::{Confirm, Input, Select};
use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction};
use serde_json::{Map, Number, Value};

use crate::output::{clean, clean_lines, note};

/// Whether there is someone to ask.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Shows the question and takes the answer. Waits for a person, so it must not run where others wait.
pub(crate) fn ask(request: &ElicitRequestParams) -> anyhow::Result<ElicitResult> {
    match request {
        ElicitRequestParams::FormElicitationParams { message, requested_schema, .. } => {
            note(&format!("The server asks: {}", clean_lines(message)));
            if !Confirm::new().with_prompt("Answer it?").default(true).interact()? {
                return Ok(ElicitResult::new(ElicitationAction::Decline));
            }
            let schema = serde_json::to_value(requested_schema)?;
            let mut result = ElicitResult::new(ElicitationAction::Accept);
            result.content = Some(Value::Object(form(&schema)?));
            Ok(result)
        }
        // Opening an address that a server names is for the person to do, in a browser of their own.
        ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
            note(&format!("The server asks: {}\n  {}", clean_lines(message), clean(url)));
            let opened =
                Confirm::new().with_prompt("Have you done this at the address above?").default(false);
            let action =
                if opened.interact()? { ElicitationAction::Accept } else { ElicitationAction::Decline };
            Ok(ElicitResult::new(action))
        }
        _ => Ok(ElicitResult::new(ElicitationAction::Decline)),
    }
}

fn form(schema: &Value) -> anyhow::Result<Map<String, Value>> {
    let required = |name: &str| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|one| one == name))
    };
    let mut answers = Map::new();
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let text = |field: &str| property.get(field).and_then(Value::as_str).map(clean);
        let prompt = match (text("title").unwrap_or_else(|| clean(name)), text("description")) {
            (title, Some(description)) => format!("{title} ({description})"),
            (title, None) => title,
        };
        if let Some(answer) = field(&prompt, property, required(name))? {
            answers.insert(name.clone(), answer);
        }
    }
    Ok(answers)
}

fn field(prompt: &str, property: &Value, required: bool) -> anyhow::Result<Option<Value>> {
    let choices: Option<Vec<String>> = property
        .get("enum")
        .and_then(Value::as_array)
        .map(|choices| choices.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    if let Some(choices) = choices {
        let shown: Vec<String> = choices.iter().map(|choice| clean(choice)).collect();
        let chosen = Select::new().with_prompt(prompt).items(&shown).default(0).interact()?;
        return Ok(choices.get(chosen).cloned().map(Value::String));
    }
    let kind = property.get("type").and_then(Value::as_str).unwrap_or("string").to_owned();
    if kind == "boolean" {
        return Ok(Some(Value::Bool(Confirm::new().with_prompt(prompt).interact()?)));
    }
    let answer: String = Input::new()
        .with_prompt(prompt)
        .allow_empty(!required)
        .validate_with(move |text: &String| match typed(&kind, text) {
            Some(_) => Ok(()),
            None if text.is_empty() => Ok(()),
            None => Err(format!("give a {kind}")),
        })
        .interact_text()?;
    let kind = property.get("type").and_then(Value::as_str).unwrap_or("string");
    Ok(typed(kind, &answer).filter(|_| required || !answer.is_empty()))
}

/// A typed text as JSON of the kind asked for.
fn typed(kind: &str, text: &str) -> Option<Value> {
    match kind {
        "integer" => text.parse::<i64>().ok().map(Value::from),
        "number" => text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
        _ => Some(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_type_that_was_asked_for() {
        assert_eq!(typed("integer", "3"), Some(Value::from(3)));
        assert_eq!(typed("integer", "3.5"), None);
        assert_eq!(typed("number", "3.5"), Some(Value::from(3.5)));
        assert_eq!(typed("number", "NaN"), None);
        assert_eq!(typed("string", "3"), Some(Value::from("3")));
    }
}
