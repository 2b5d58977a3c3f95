//! A translated message or result is what a slow translation of its value is: what the gateway does not know is still
//! there, what only one revision knows is not, and the text still has one reading.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use waffles_mcp::translate::Client;
use waffles_mcp::translate::input::{input_required, read_input_required};
use waffles_mcp::translate::notice::{tagged, untagged};
use waffles_mcp::translate::request::{Extra, to_session, to_stateless};
use waffles_mcp::translate::result::{error_for_stateless, for_session, for_stateless, url_elicitations};
use waffles_mcp::{Id, Kind, Limits, Message, Method, Revision};

use super::slow;

const OWN: [&str; 4] = [
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/logLevel",
];
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
const METHODS: [Method; 5] = [
    Method::ToolsCall,
    Method::PromptsGet,
    Method::ResourcesRead,
    Method::ToolsList,
    Method::SubscriptionsListen,
];

/// The first byte says whose answer and for which revision; the rest is a message or a result.
pub fn check(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(text);
    if let Ok(message) = Message::parse(bytes.clone(), &Limits::default())
        && matches!(message.kind(), Kind::Request | Kind::Notification)
    {
        request(&message);
        notice(&message);
    }
    let Some(value) = slow::read(text) else { return };
    let choice = usize::from(*choice);
    let method = &METHODS[choice % METHODS.len()];
    stateless(method, &bytes, &value);
    session(method, &bytes, &value, Revision::ALL[choice / METHODS.len() % 4]);
    errors(&bytes, &value);
}

fn request(message: &Message) {
    let value = slow::read(message.bytes()).expect("an accepted text has one reading");
    let capabilities = json!({"roots": {}});
    let client = Client { capabilities: capabilities.to_string().into(), info: None };
    let method = value["method"].as_str().unwrap_or_default();
    let repeats = ["tools/call", "prompts/get", "resources/read"].contains(&method);

    let mut want = envelope(&value);
    let mut meta = value.pointer("/params/_meta").and_then(Value::as_object).cloned().unwrap_or_default();
    let had = !meta.is_empty();
    meta.retain(|key, _| !OWN.contains(&key.as_str()));
    if let Some(params) = want.get_mut("params").and_then(Value::as_object_mut) {
        if repeats {
            params.remove("inputResponses");
            params.remove("requestState");
        }
        if params.get("_meta").is_some_and(Value::is_object) {
            params.insert("_meta".into(), meta.clone().into());
            if meta.is_empty() {
                params.remove("_meta");
            }
        }
    }
    let sent = to_session(message, None, &Extra::default());
    assert_eq!(slow::read(&sent), Some(want.clone()), "had {had}");

    meta.insert(OWN[0].into(), "2026-07-28".into());
    meta.insert(OWN[1].into(), capabilities);
    let params = want.as_object_mut().expect("a message").entry("params").or_insert_with(|| json!({}));
    params["_meta"] = meta.into();
    let sent = to_stateless(message, None, &client, &Extra::default());
    assert_eq!(slow::read(&sent), Some(want));
    let sent = Message::parse(sent, &Limits::RESPONSE).expect("a translated message is one");
    assert_eq!(sent.id(), message.id());
    // Twice is the same as once.
    assert_eq!(to_stateless(&sent, None, &client, &Extra::default()), sent.bytes());
}

fn notice(message: &Message) {
    let value = slow::read(message.bytes()).expect("an accepted text has one reading");
    let id = Id::string("l");
    let mut want = envelope(&value);
    let params = want.as_object_mut().expect("a message").entry("params").or_insert_with(|| json!({}));
    if !params.get("_meta").is_some_and(Value::is_object) {
        params["_meta"] = json!({});
    }
    params["_meta"][SUBSCRIPTION] = "l".into();
    let sent = tagged(message, &id);
    assert_eq!(slow::read(&sent), Some(want.clone()));

    // The tag goes, and with it what would be empty without it.
    let params = want["params"].as_object_mut().expect("there is a tag");
    let meta = params["_meta"].as_object_mut().expect("there is a tag");
    meta.remove(SUBSCRIPTION);
    if meta.is_empty() {
        params.remove("_meta");
    }
    if params.is_empty() {
        want.as_object_mut().expect("a message").remove("params");
    }
    let sent = Message::parse(sent, &Limits::RESPONSE).expect("a tagged message is one");
    assert_eq!(slow::read(&untagged(&sent)), Some(want));
}

/// The members of an envelope that leave.
fn envelope(value: &Value) -> Value {
    let mut envelope = value.as_object().cloned().unwrap_or_default();
    envelope.retain(|key, _| ["jsonrpc", "id", "method", "params"].contains(&key.as_str()));
    envelope.into()
}

fn is_cacheable(method: &Method) -> bool {
    matches!(method, Method::ResourcesRead | Method::ToolsList)
}

fn stateless(method: &Method, bytes: &Bytes, value: &Value) {
    let info = json!({"name": "s"});
    let Ok(sent) = for_stateless(method, bytes, Some(info.to_string().as_bytes())) else {
        assert!(!value.is_object() || is_odd(value), "{value}");
        return;
    };
    let mut want = value.clone();
    let object = want.as_object_mut().expect("a result is an object");
    let kind = object.entry("resultType").or_insert_with(|| "complete".into());
    if kind == "complete" && is_cacheable(method) {
        object.entry("ttlMs").or_insert_with(|| 0.into());
        object.entry("cacheScope").or_insert_with(|| "private".into());
    }
    let meta = object.entry("_meta").or_insert_with(|| json!({}));
    if let Some(meta) = meta.as_object_mut() {
        meta.entry(SERVER_INFO).or_insert(info);
    }
    assert_eq!(slow::read(&sent), Some(want));
    assert_eq!(for_stateless(method, &sent, None).as_ref().ok(), Some(&sent), "twice is the same as once");
    if let Ok(Some(asked)) = read_input_required(&sent) {
        let written = input_required(&asked.requests, asked.state.as_deref());
        assert_eq!(read_input_required(&written).ok(), Some(Some(asked)));
    }
}

fn session(method: &Method, bytes: &Bytes, value: &Value, revision: Revision) {
    let Ok(sent) = for_session(method, bytes, revision) else {
        assert!(is_odd(value), "{value}");
        return;
    };
    let mut want = value.clone();
    if let Some(object) = want.as_object_mut() {
        object.remove("resultType");
        if is_cacheable(method) {
            object.remove("ttlMs");
            object.remove("cacheScope");
        }
        match method {
            Method::ToolsCall => {
                if let Some(content) =
                    object.get_mut("structuredContent").filter(|content| !content.is_object())
                {
                    *content = json!({"result": content.take()});
                }
                blocks(object.get_mut("content"), revision);
            }
            Method::PromptsGet => {
                for message in object.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten()
                {
                    blocks(message.get_mut("content"), revision);
                }
            }
            _ => {}
        }
    }
    let mut read = slow::read(&sent).expect("a translated result has one reading");
    if *method == Method::ToolsList {
        schemas(&read);
        drop_schemas(&mut read);
        drop_schemas(&mut want);
    }
    assert_eq!(read, want);
}

fn blocks(content: Option<&mut Value>, revision: Revision) {
    match content {
        Some(Value::Array(list)) => list.iter_mut().for_each(|block| blocks(Some(block), revision)),
        Some(Value::Object(block)) => {
            let text = |key: &str| block.get(key).and_then(Value::as_str).unwrap_or_default();
            let text = match text("type") {
                "resource_link" if revision < Revision::V2025_06_18 => {
                    format!("{}: {}", text("name"), text("uri"))
                }
                "audio" if revision < Revision::V2025_03_26 => {
                    "[audio, which this client cannot take]".to_owned()
                }
                _ => return,
            };
            *block = Map::from_iter([("type".to_owned(), "text".into()), ("text".to_owned(), text.into())]);
        }
        _ => {}
    }
}

fn tools(result: &Value) -> impl Iterator<Item = &Value> {
    result.get("tools").and_then(Value::as_array).into_iter().flatten()
}

/// Session clients take schemas of objects alone.
fn schemas(result: &Value) {
    for schema in tools(result).filter_map(|tool| tool.get("outputSchema")) {
        assert_eq!(schema["type"], "object", "{schema}");
    }
}

fn drop_schemas(result: &mut Value) {
    for tool in result.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(tool) = tool.as_object_mut() {
            tool.remove("outputSchema");
        }
    }
}

fn errors(bytes: &Bytes, value: &Value) {
    let sent = slow::read(&error_for_stateless(bytes)).expect("a translated error has one reading");
    let mut want = value.clone();
    if !is_odd(value)
        && let Some(code) = want.get_mut("code")
    {
        match code.as_i64() {
            Some(-32002) => *code = (-32602).into(),
            Some(-32042) => *code = (-32603).into(),
            _ => {}
        }
    }
    assert_eq!(sent, want);
    for request in url_elicitations(bytes).into_iter().flatten() {
        let params = slow::read(&request.params).expect("a question has one reading");
        assert!(
            params["mode"] == "url" && params["url"].is_string() && params.get("elicitationId").is_none()
        );
    }
}

/// What the scan refuses and the slow reader takes: a NUL.
fn is_odd(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(is_odd),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains('\0') || is_odd(value)),
        _ => false,
    }
}
