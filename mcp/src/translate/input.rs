//! What a server asks in mid-call: a request on the client's stream in the older revisions, a result that asks for input
//! in the stateless one [2026-07-28 basic/patterns/mrtr].

use bytes::Bytes;

use super::{META, message};
use crate::edit::{Fate, Patch, Writer, find, get, get_text, members, read};
use crate::era::Revision;
use crate::jsonrpc::{Fault, Id, Kind, Message, ParseError, json_string};
use crate::message::Method;
use crate::scan::{Json, Scanner};

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

/// Reads a result that asks for input; none where it is another one. One that asks for nothing and has no state to bring
/// back is refused: a client could repeat its request for ever.
pub fn read_input_required(result: &[u8]) -> Result<Option<InputRequired>, ParseError> {
    if get_text(result, "resultType").as_deref() != Some("input_required") {
        return Ok(None);
    }
    let bad = || ParseError::new(Fault::NotAMessage, 0);
    let asked = get(result, "inputRequests");
    let mut requests = Vec::new();
    for member in asked.map(members).transpose()?.unwrap_or_default() {
        let request = asked.and_then(|asked| asked.get(member.value)).unwrap_or_default();
        let method = get_text(request, "method").ok_or_else(bad)?;
        let params = match find(request, "params") {
            Some(span) if span.json == Json::Object => Bytes::copy_from_slice(span.of(request)),
            Some(_) => return Err(bad()),
            None => Bytes::from_static(b"{}"),
        };
        requests.push(InputRequest { key: member.key, method, params });
    }
    let state = match find(result, "requestState") {
        Some(span) => Some(span.text(result).ok_or_else(bad)?.into_owned()),
        None if requests.is_empty() => return Err(bad()),
        None => None,
    };
    Ok(Some(InputRequired { requests, state }))
}

/// The bytes of a result that asks for input.
pub fn input_required(requests: &[InputRequest], state: Option<&str>) -> Bytes {
    let mut asked = Writer::new(256);
    for request in requests {
        let mut object = Writer::new(request.params.len() + 64);
        object.put_text("method", &request.method);
        if &request.params[..] != b"{}" {
            object.put("params", &request.params);
        }
        asked.put(&request.key, &object.end());
    }
    let mut result = Writer::new(512);
    result.put("resultType", br#""input_required""#);
    if !requests.is_empty() {
        result.put("inputRequests", &asked.end());
    }
    if let Some(state) = state {
        result.put_text("requestState", state);
    }
    result.end().into()
}

/// A question as a request to a session client. A URL to visit needs an id of its own there
/// [2025-11-25 client/elicitation#url-mode-elicitation-requests].
pub fn server_request(id: &Id, request: &InputRequest, revision: Revision, elicitation_id: &str) -> Bytes {
    let params = match request.method.as_str() {
        "elicitation/create" => elicitation(&request.params, revision, elicitation_id),
        "sampling/createMessage" if revision < Revision::V2025_11_25 => single_blocks(&request.params),
        _ => None,
    };
    message(Some(id), &request.method, params.as_ref().unwrap_or(&request.params))
}

/// An elicitation in the words of an older revision; none where they are the same.
fn elicitation(params: &Bytes, revision: Revision, id: &str) -> Option<Bytes> {
    let by_url = get_text(params, "mode").as_deref() == Some("url");
    let mut patch = Patch::default();
    let mut has_id = false;
    let object = read(params, |scanner| {
        patch.object(scanner, |_, scanner, key| {
            scanner.value()?;
            has_id |= key == b"elicitationId";
            // There is nothing but forms before 2025-11-25.
            let unknown = key == b"mode" && !by_url && revision < Revision::V2025_11_25;
            Ok(if unknown { Fate::Drop } else { Fate::Keep })
        })
    });
    if by_url && !has_id {
        patch.put(object.ok()?, &[("elicitationId", json_string(id).as_bytes())]);
    }
    (!patch.is_empty()).then(|| patch.apply(params))
}

/// A message of a sampling request has one block of content until 2025-11-25, so a list of one is that one. A longer list
/// has no other form, and stays.
fn single_blocks(params: &Bytes) -> Option<Bytes> {
    let mut patch = Patch::default();
    let read = read(params, |scanner| {
        scanner.object(|scanner, key| match (key, scanner.peek()) {
            (b"messages", Some(b'[')) => scanner.array(|scanner| single_block(&mut patch, scanner)).map(drop),
            _ => scanner.value().map(drop),
        })
    });
    (read.is_ok() && !patch.is_empty()).then(|| patch.apply(params))
}

fn single_block(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
    if scanner.peek() != Some(b'{') {
        return scanner.value().map(drop);
    }
    let message = scanner.object(|scanner, key| {
        if key != b"content" || scanner.peek() != Some(b'[') {
            return scanner.value().map(drop);
        }
        let mut blocks = Vec::new();
        let list = scanner.array(|scanner| scanner.value().map(|span| blocks.push(span.range())))?.range();
        if let [block] = &blocks[..] {
            patch.replace(list.start..block.start, &b""[..]);
            patch.replace(block.end..list.end, &b""[..]);
        }
        Ok(())
    });
    message.map(drop)
}

/// A session server's request as a question; none for what a stateless client cannot be asked. What ties it to the
/// session goes: the id of the elicitation, a task, the token of its progress.
pub fn from_server_request(key: &str, message: &Message) -> Option<InputRequest> {
    if message.kind() != Kind::Request {
        return None;
    }
    let method = Method::parse(message.method()?);
    if !matches!(method, Method::ElicitationCreate | Method::SamplingCreateMessage | Method::RootsList) {
        return None;
    }
    let params = message.params().unwrap_or_else(|| Bytes::from_static(b"{}"));
    let mut patch = Patch::default();
    let judged = read(&params, |scanner| {
        patch.object(scanner, |patch, scanner, key| {
            if key == META.as_bytes() && scanner.peek() == Some(b'{') {
                let meta = patch.object(scanner, |_, scanner, key| {
                    scanner.value()?;
                    Ok(if key == b"progressToken" || key == RELATED_TASK { Fate::Drop } else { Fate::Keep })
                })?;
                return Ok(if meta.kept { Fate::Keep } else { Fate::Drop });
            }
            scanner.value()?;
            Ok(if matches!(key, b"elicitationId" | b"task") { Fate::Drop } else { Fate::Keep })
        })
    });
    let params = if judged.ok()?.kept { patch.apply(&params) } else { Bytes::from_static(b"{}") };
    Some(InputRequest { key: key.to_owned(), method: method.as_str().to_owned(), params })
}

const RELATED_TASK: &[u8] = b"io.modelcontextprotocol/related-task";

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

#[cfg(test)]
mod tests;
