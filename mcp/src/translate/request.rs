//! Requests and notifications on their way to a server: the stateless revision puts into `_meta` of each what the older
//! ones say once [2026-07-28 basic/index#meta].

use bytes::Bytes;

use super::Client;
use crate::edit::{Writer, members};
use crate::era::Revision;
use crate::jsonrpc::{Id, Message, Slot, json_string};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const INFO: &str = "io.modelcontextprotocol/clientInfo";
const LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// What else changes on the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extra<'a> {
    /// Other (decoded) strings in fields that are there.
    pub edits: &'a [(Slot, &'a str)],
    /// JSON text in the place of a `_meta.progressToken` that is there.
    pub progress_token: Option<&'a str>,
    /// Stateless: `_meta` log level.
    pub log_level: Option<&'a str>,
    /// Stateless: `params.inputResponses`, a JSON object.
    pub input_responses: Option<&'a [u8]>,
    /// Stateless: `params.requestState`.
    pub request_state: Option<&'a str>,
    /// Without `params.cursor`.
    pub drop_cursor: bool,
}

/// For a server of the stateless revision.
pub fn to_stateless(message: &Message, id: Option<&Id>, client: &Client, extra: &Extra<'_>) -> Bytes {
    let version = json_string(Revision::V2026_07_28.as_str());
    let level = extra.log_level.map(json_string);
    let mut own: Vec<(&str, &[u8])> =
        vec![(VERSION, version.as_bytes()), (CAPABILITIES, &client.capabilities)];
    if let Some(info) = &client.info {
        own.push((INFO, info));
    }
    if let Some(level) = &level {
        own.push((LEVEL, level.as_bytes()));
    }
    let meta = meta(message, extra, &own);
    let state = extra.request_state.map(json_string);
    let mut put: Vec<(&str, &[u8])> = vec![("_meta", &meta)];
    if let Some(responses) = extra.input_responses {
        put.push(("inputResponses", responses));
    }
    if let Some(state) = &state {
        put.push(("requestState", state.as_bytes()));
    }
    write(message, id, extra, &put, true)
}

/// For a server of an older revision, which has heard of the client in `initialize`.
pub fn to_session(message: &Message, id: Option<&Id>, extra: &Extra<'_>) -> Bytes {
    let meta = meta(message, extra, &[]);
    let put: &[(&str, &[u8])] = if meta == b"{}" { &[] } else { &[("_meta", &meta)] };
    write(message, id, extra, put, false)
}

/// `_meta` with what is the protocol's own taken out, and these put in.
fn meta(message: &Message, extra: &Extra<'_>, own: &[(&str, &[u8])]) -> Vec<u8> {
    let old = message.raw(Slot::Meta).unwrap_or_default();
    let mut writer = Writer::new(old.len() + 256);
    for (key, value) in own {
        writer.put(key, value);
    }
    for member in members(&old).unwrap_or_default() {
        let value = old.get(member.value).unwrap_or_default();
        match member.key.as_str() {
            VERSION | CAPABILITIES | INFO | LEVEL => {}
            "progressToken" => {
                writer.put(&member.key, extra.progress_token.map_or(value, str::as_bytes));
            }
            key => writer.put(key, value),
        }
    }
    writer.end()
}

/// The message with other params.
fn write(
    message: &Message,
    id: Option<&Id>,
    extra: &Extra<'_>,
    put: &[(&str, &[u8])],
    needs_params: bool,
) -> Bytes {
    let old = message.params();
    let text = old.clone().unwrap_or_default();
    let mut writer = Writer::new(text.len() + 512);
    for member in members(&text).unwrap_or_default() {
        let value = text.get(member.value).unwrap_or_default();
        match member.key.as_str() {
            "_meta" | "inputResponses" | "requestState" => {}
            "cursor" if extra.drop_cursor => {}
            "ref" => writer.put("ref", &reference(value, extra)),
            key => match slot(key).and_then(|slot| extra.edits.iter().find(|(edited, _)| *edited == slot)) {
                Some((_, new)) => writer.put(key, json_string(new).as_bytes()),
                None => writer.put(key, value),
            },
        }
    }
    for (key, value) in put {
        writer.put(key, value);
    }
    let has_params = old.is_some() || needs_params || !writer.is_empty();
    let params = writer.end();
    let mut out = Vec::with_capacity(params.len() + 128);
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = message.id().and(id).or(message.id()) {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id.as_json().as_bytes());
    }
    out.extend_from_slice(b",\"method\":");
    out.extend_from_slice(json_string(message.method().unwrap_or_default()).as_bytes());
    if has_params {
        out.extend_from_slice(b",\"params\":");
        out.extend_from_slice(&params);
    }
    out.push(b'}');
    out.into()
}

fn slot(key: &str) -> Option<Slot> {
    Some(match key {
        "name" => Slot::Name,
        "uri" => Slot::Uri,
        "taskId" => Slot::TaskId,
        "cursor" => Slot::Cursor,
        _ => return None,
    })
}

/// What `completion/complete` is about, under another name.
fn reference(text: &[u8], extra: &Extra<'_>) -> Vec<u8> {
    let edited =
        |slot: Slot| extra.edits.iter().find(|(edited, _)| *edited == slot).map(|(_, new)| json_string(new));
    let mut writer = Writer::new(text.len() + 64);
    for member in members(text).unwrap_or_default() {
        let new = match member.key.as_str() {
            "name" => edited(Slot::RefName),
            "uri" => edited(Slot::RefUri),
            _ => None,
        };
        let value = text.get(member.value).unwrap_or_default();
        writer.put(&member.key, new.as_deref().map_or(value, str::as_bytes));
    }
    writer.end()
}
