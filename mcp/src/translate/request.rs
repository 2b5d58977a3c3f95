//! Requests and notifications on their way to a server: the stateless revision puts into `_meta` of each what the older
//! ones say once [2026-07-28 basic/index#meta].

use bytes::Bytes;

use super::{Client, Draft};
use crate::era::Revision;
use crate::jsonrpc::{Id, Message, Slot, json_string};
use crate::message::Method;

pub(super) const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(super) const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(super) const INFO: &str = "io.modelcontextprotocol/clientInfo";
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
    let (level, state) = (extra.log_level.map(json_string), extra.request_state.map(json_string));
    let mut draft = draft(message, extra);
    draft.set_meta(Slot::MetaVersion, VERSION, Some(version.as_bytes()));
    draft.set_meta(Slot::MetaCapabilities, CAPABILITIES, Some(&client.capabilities));
    draft.set_meta(Slot::MetaClientInfo, INFO, client.info.as_deref());
    draft.set_meta(Slot::MetaLogLevel, LEVEL, level.as_deref().map(str::as_bytes));
    answers(&mut draft, extra.input_responses, state.as_deref());
    draft.write(id, false)
}

/// For a server of an older revision, which has heard of the client in `initialize`.
pub fn to_session(message: &Message, id: Option<&Id>, extra: &Extra<'_>) -> Bytes {
    let mut draft = draft(message, extra);
    draft.set_meta(Slot::MetaVersion, VERSION, None);
    draft.set_meta(Slot::MetaCapabilities, CAPABILITIES, None);
    draft.set_meta(Slot::MetaClientInfo, INFO, None);
    draft.set_meta(Slot::MetaLogLevel, LEVEL, None);
    answers(&mut draft, None, None);
    draft.write(id, false)
}

fn draft<'m, 'a>(message: &'m Message, extra: &Extra<'a>) -> Draft<'m, 'a> {
    let mut draft = Draft::new(message);
    for (slot, text) in extra.edits {
        draft.replace(*slot, json_string(text).into_bytes());
    }
    if let Some(token) = extra.progress_token {
        draft.replace(Slot::MetaProgressToken, token.as_bytes());
    }
    if extra.drop_cursor {
        draft.set(Slot::Cursor, "cursor", None);
    }
    draft
}

/// What a client brings back for an earlier question [2026-07-28 basic/patterns/mrtr]. Other methods may have fields of
/// the same names, which stay unless there is something to put there.
fn answers<'a>(draft: &mut Draft<'_, 'a>, responses: Option<&'a [u8]>, state: Option<&'a str>) {
    let method = Method::parse(draft.message.method().unwrap_or_default());
    let repeats = matches!(method, Method::ToolsCall | Method::PromptsGet | Method::ResourcesRead);
    if repeats || responses.is_some() {
        draft.set(Slot::InputResponses, "inputResponses", responses);
    }
    if repeats || state.is_some() {
        draft.set(Slot::RequestState, "requestState", state.map(str::as_bytes));
    }
}

#[cfg(test)]
mod tests;
