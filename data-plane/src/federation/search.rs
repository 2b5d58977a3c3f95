//! Two tools in the place of a long list, for agents that drown in tools: one finds tools by words, the other calls one.
//! A namespace asks for it. What is found and what is called is what the caller may, as ever.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use waffles_mcp::jsonrpc::ParseError;
use waffles_mcp::{Head, Limits, Message, Method, head};

use super::Realm;
use super::catalogue::Kind;
use crate::front::Front;
use crate::reject::Reject;
use crate::shared::Means;

const SEARCH: &str = "search_tools";
const CALL: &str = "call_tool";
/// Most tools that a search gives.
const MOST: usize = 50;
const USUAL: usize = 10;

/// What becomes of a call at a door with a search.
pub enum Searched {
    /// The bytes of the result.
    Result(Bytes),
    /// The call of a real tool, as if it had been called itself.
    Call(Message, Box<Head>),
}

#[derive(Deserialize)]
struct Query {
    query: String,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct Called<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl Realm {
    /// Whether this door shows a search in the place of its tools.
    pub fn searches(&self) -> bool {
        self.namespace.as_ref().is_some_and(|entry| entry.namespace.spec.tool_search)
    }
}

/// The list of tools at such a door: the bytes of a stateless result.
pub fn list() -> Bytes {
    let text = |description: &str| json!({"type": "string", "description": description});
    let search = json!({
        "name": SEARCH,
        "title": "Search tools",
        "description": "Finds tools by words of their names and descriptions. Call a tool that was found with call_tool.",
        "inputSchema": {"type": "object", "required": ["query"], "properties": {
            "query": text("Words to look for."),
            "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "description": "How many at the most."},
        }},
        "annotations": {"readOnlyHint": true},
    });
    let call = json!({
        "name": CALL,
        "title": "Call a tool",
        "description": "Calls a tool that search_tools has found.",
        "inputSchema": {"type": "object", "required": ["name"], "properties": {
            "name": text("The tool's name, as search_tools gave it."),
            "arguments": {"type": "object", "description": "What the tool's input schema asks for."},
        }},
    });
    let result = json!({
        "tools": [search, call], "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
    });
    result.to_string().into()
}

impl Means {
    /// Serves one of the two tools.
    pub async fn search(
        &self,
        front: &Front,
        realm: &Realm,
        message: &Message,
        asked: &Head,
    ) -> Result<Searched, Reject> {
        let arguments = asked.arguments.as_deref().unwrap_or(b"{}");
        let wrong = |reason: &str| Searched::Result(failure(reason));
        match asked.name.as_deref() {
            Some(SEARCH) => Ok(match serde_json::from_slice::<Query>(arguments) {
                Ok(query) => Searched::Result(self.found(front, realm, &query).await),
                Err(_) => wrong("search_tools takes a query, and perhaps a limit"),
            }),
            Some(CALL) => match serde_json::from_slice::<Called<'_>>(arguments) {
                Ok(called) => {
                    let message = unpacked(message, &called)?;
                    let head = Box::new(head(&message)?);
                    Ok(Searched::Call(message, head))
                }
                Err(_) => Ok(wrong("call_tool takes a name, and perhaps arguments")),
            },
            other => {
                let tool = other.unwrap_or_default().to_owned();
                Err(Reject::UnknownTool { tool, rule: "namespace:tool_search".into() })
            }
        }
    }

    /// The best tools for some words.
    async fn found(&self, front: &Front, realm: &Realm, query: &Query) -> Bytes {
        let (lists, missing) = self.lists(front, realm, Kind::Tools).await;
        let words = words(&query.query);
        let mut scored = Vec::new();
        for (member, listed) in &lists {
            for entry in listed.entries.iter().filter(|entry| member.shows(Kind::Tools, &entry.name)) {
                let score = score(&words, &entry.name, &entry.own);
                if score > 0 {
                    scored.push((score, &entry.public));
                }
            }
        }
        // The order of the lists decides among equals.
        scored.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
        let most = query.limit.unwrap_or(USUAL).clamp(1, MOST);
        let tools: Vec<Value> =
            scored.into_iter().take(most).filter_map(|(_, tool)| serde_json::from_slice(tool).ok()).collect();
        let missing: Vec<_> = missing.iter().map(|(server, _)| *server).collect();
        let found = json!({"tools": tools, "unavailable": missing});
        let result = json!({
            "content": [{"type": "text", "text": found.to_string()}], "structuredContent": found,
            "isError": false, "resultType": "complete",
        });
        result.to_string().into()
    }
}

/// The call of the tool that is named in the arguments, with everything else of the message.
fn unpacked(message: &Message, called: &Called<'_>) -> Result<Message, ParseError> {
    let arguments = called.arguments.map_or("{}", RawValue::get);
    let name = Value::from(called.name.as_str());
    let mut params = format!(r#""name":{name},"arguments":{arguments}"#);
    for (key, slot) in [
        ("_meta", waffles_mcp::Slot::Meta),
        ("inputResponses", waffles_mcp::Slot::InputResponses),
        ("requestState", waffles_mcp::Slot::RequestState),
    ] {
        if let Some(raw) = message.raw(slot) {
            params.push_str(&format!(r#","{key}":{}"#, String::from_utf8_lossy(&raw)));
        }
    }
    let id = message.id().map_or_else(String::new, |id| format!(r#""id":{},"#, id.as_json()));
    let method = Method::ToolsCall;
    let text = format!(r#"{{"jsonrpc":"2.0",{id}"method":"{method}","params":{{{params}}}}}"#);
    Message::parse(text.into(), &Limits::default())
}

fn words(text: &str) -> Vec<String> {
    let apart = text.split(|char: char| !char.is_alphanumeric()).filter(|word| !word.is_empty());
    apart.take(32).map(str::to_lowercase).collect()
}

/// How well a tool fits: its name counts most.
fn score(wanted: &[String], name: &str, tool: &[u8]) -> usize {
    #[derive(Deserialize)]
    struct Text {
        title: Option<String>,
        description: Option<String>,
    }
    let text: Option<Text> = serde_json::from_slice(tool).ok();
    let (title, description) = text.map_or((None, None), |text| (text.title, text.description));
    let parts = [
        (name, 4),
        (title.as_deref().unwrap_or_default(), 3),
        (description.as_deref().unwrap_or_default(), 1),
    ];
    parts
        .iter()
        .map(|(part, weight)| {
            let there = words(part);
            let hits = wanted.iter().map(|word| {
                let whole = there.iter().any(|other| other == word);
                let within = there.iter().any(|other| other.contains(word.as_str()));
                2 * usize::from(whole) + usize::from(within)
            });
            weight * hits.sum::<usize>()
        })
        .sum()
}

fn failure(reason: &str) -> Bytes {
    let result = json!({
        "content": [{"type": "text", "text": reason}], "isError": true, "resultType": "complete",
    });
    result.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_counts_more_than_the_description() {
        let tool = |description: &str| json!({"description": description}).to_string().into_bytes();
        let wanted = words("Send mail");
        let scores = [
            score(&wanted, "send_mail", &tool("Delivers a letter.")),
            score(&wanted, "mailbox", &tool("Opens a box.")),
            score(&wanted, "post", &tool("Can send a mail.")),
            score(&wanted, "weather", &tool("Says whether it rains.")),
        ];
        assert!(scores[0] > scores[2] && scores[2] > scores[1] && scores[1] > scores[3], "{scores:?}");
        assert_eq!(scores[3], 0);
    }

    #[test]
    fn a_call_is_unpacked_with_all_that_belongs_to_it() {
        let text = r#"{"jsonrpc":"2.0","id":"7","method":"tools/call","params":{"name":"call_tool",
            "arguments":{"name":"a__b","arguments":{"x":1.50}},"_meta":{"progressToken":1},"requestState":"s"}}"#;
        let message = Message::parse(Bytes::from(text), &Limits::default()).unwrap();
        let arguments = head(&message).unwrap().arguments.unwrap();
        let called: Called<'_> = serde_json::from_slice(&arguments).unwrap();
        let unpacked = unpacked(&message, &called).unwrap();
        let head = head(&unpacked).unwrap();
        assert_eq!((head.name.as_deref(), head.request_state.as_deref()), (Some("a__b"), Some("s")));
        assert_eq!(head.arguments.as_deref(), Some(&br#"{"x":1.50}"#[..]));
        assert_eq!((unpacked.id(), head.progress_token.as_deref()), (message.id(), Some(&b"1"[..])));
    }
}
