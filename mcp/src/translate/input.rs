//! What a server asks in mid-call: a request on the client's stream in the older revisions, a result that asks for input
//! in the stateless one [2026-07-28 basic/patterns/mrtr].

use bytes::Bytes;

use crate::edit::{Fate, Writer, edit, get, get_text, members};
use crate::era::Revision;
use crate::jsonrpc::{Fault, Id, Kind, Message, ParseError, Slot, json_string};
use crate::scan::Json;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRequest {
    /// The name under which the answer comes back.
    pub key: String,
    /// `elicitation/create`, `sampling/createMessage` or `roots/list`.
    pub method: String,
    /// A JSON object.
    pub params: Bytes,
}

/// A result that asks for input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRequired {
    pub requests: Vec<InputRequest>,
    /// What the client brings back as it is.
    pub state: Option<String>,
}

/// Reads a result that asks for input; none where it is another one.
pub fn read_input_required(result: &[u8]) -> Result<Option<InputRequired>, ParseError> {
    if get_text(result, "resultType").as_deref() != Some("input_required") {
        return Ok(None);
    }
    let bad = || ParseError::new(Fault::NotAMessage, 0);
    let asked = get(result, "inputRequests").unwrap_or_else(|| Bytes::from_static(b"{}"));
    let mut requests = Vec::new();
    for member in members(&asked)? {
        let request = asked.get(member.value).unwrap_or_default();
        let method = get_text(request, "method").ok_or_else(bad)?;
        let params = get(request, "params").unwrap_or_else(|| Bytes::from_static(b"{}"));
        requests.push(InputRequest { key: member.key, method, params });
    }
    Ok(Some(InputRequired { requests, state: get_text(result, "requestState") }))
}

/// The bytes of a result that asks for input.
pub fn input_required(requests: &[InputRequest], state: Option<&str>) -> Bytes {
    let mut asked = Writer::new(256);
    for request in requests {
        let mut object = Writer::new(request.params.len() + 64);
        object.put("method", json_string(&request.method).as_bytes());
        if &request.params[..] != b"{}" {
            object.put("params", &request.params);
        }
        asked.put(&request.key, &object.end());
    }
    let mut result = Writer::new(512);
    result.put("resultType", b"\"input_required\"");
    result.put("inputRequests", &asked.end());
    if let Some(state) = state {
        result.put("requestState", json_string(state).as_bytes());
    }
    result.end().into()
}

/// A question as a request to a session client. A URL to visit needs an id of its own there
/// [2025-11-25 client/elicitation#url-mode-elicitation-requests].
pub fn server_request(id: &Id, request: &InputRequest, revision: Revision, elicitation_id: &str) -> Bytes {
    let by_url = get(&request.params, "mode").as_deref() == Some(br#""url""#);
    let mut params = request.params.to_vec();
    if by_url && get(&params, "elicitationId").is_none() {
        let text = json_string(elicitation_id);
        let put: &[(&str, &[u8])] = &[("elicitationId", text.as_bytes())];
        params = edit(&params, put, |_, _, _| Ok(Fate::Keep)).unwrap_or(params);
    }
    // Forms have no mode before 2025-11-25.
    if !by_url && revision < Revision::V2025_11_25 {
        params = edit(&params, &[], |key, _, _| Ok(if key == "mode" { Fate::Drop } else { Fate::Keep }))
            .unwrap_or(params);
    }
    let mut message = Writer::new(params.len() + 96);
    message.put("jsonrpc", b"\"2.0\"");
    message.put("id", id.as_json().as_bytes());
    message.put("method", json_string(&request.method).as_bytes());
    if params != b"{}" {
        message.put("params", &params);
    }
    message.end().into()
}

/// A session server's request as a question; none for what a stateless client cannot be asked.
pub fn from_server_request(key: &str, message: &Message) -> Option<InputRequest> {
    if message.kind() != Kind::Request {
        return None;
    }
    let method = message.method()?;
    if !matches!(method, "elicitation/create" | "sampling/createMessage" | "roots/list") {
        return None;
    }
    let params = message.raw(Slot::Params).unwrap_or_else(|| Bytes::from_static(b"{}"));
    // Ids of progress and of the elicitation belong to the session.
    let params = edit(&params, &[], |name, _, _| {
        Ok(if matches!(name, "_meta" | "elicitationId" | "task") { Fate::Drop } else { Fate::Keep })
    });
    Some(InputRequest { key: key.to_owned(), method: method.to_owned(), params: params.ok()?.into() })
}

/// Reads `inputResponses`: bare results by key.
pub fn read_input_responses(raw: &[u8]) -> Result<Vec<(String, Bytes)>, ParseError> {
    let mut answers = Vec::new();
    for member in members(raw)? {
        if member.json != Json::Object {
            return Err(ParseError::new(Fault::NotAMessage, member.value.start));
        }
        answers.push((member.key, Bytes::copy_from_slice(raw.get(member.value).unwrap_or_default())));
    }
    Ok(answers)
}

/// Writes `inputResponses`.
pub fn input_responses(answers: &[(String, Bytes)]) -> Bytes {
    let mut object = Writer::new(256);
    for (key, answer) in answers {
        object.put(key, answer);
    }
    object.end().into()
}
