//! Results and errors on their way to a client: completed for the stateless revision, trimmed for the older ones.

use std::borrow::Cow;

use bytes::Bytes;

use super::input::InputRequest;
use crate::edit::{Fate, edit, edit_elements, elements, get, get_text, members};
use crate::era::Revision;
use crate::jsonrpc::{ParseError, code, json_string};
use crate::message::Method;

const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// For a stateless client: with what its revision requires of every result [2026-07-28 basic/index#results,
/// server/utilities/caching]. What an older server says may not be kept by anybody.
pub fn for_stateless(
    method: &Method,
    result: &[u8],
    server_info: Option<&[u8]>,
) -> Result<Bytes, ParseError> {
    let there = members(result)?;
    let has = |key: &str| there.iter().any(|member| member.key == key);
    let complete = !has("resultType") || get_text(result, "resultType").as_deref() == Some("complete");
    let mut put: Vec<(&str, &[u8])> = Vec::with_capacity(4);
    if !has("resultType") {
        put.push(("resultType", b"\"complete\""));
    }
    if complete && is_cacheable(method) {
        if !has("ttlMs") {
            put.push(("ttlMs", b"0"));
        }
        if !has("cacheScope") {
            put.push(("cacheScope", b"\"private\""));
        }
    }
    let mut meta = Vec::new();
    if let Some(info) = server_info {
        if has("_meta") {
            let old = get(result, "_meta").unwrap_or_default();
            if get(&old, SERVER_INFO).is_none() {
                meta = edit(&old, &[(SERVER_INFO, info)], |_, _, _| Ok(Fate::Keep))?;
            }
        } else {
            meta = edit(b"{}", &[(SERVER_INFO, info)], |_, _, _| Ok(Fate::Keep))?;
            put.push(("_meta", &meta));
        }
    }
    if put.is_empty() && meta.is_empty() {
        return Ok(Bytes::copy_from_slice(result));
    }
    let edited = edit(result, &put, |key, _, _| {
        Ok(if key == "_meta" && !meta.is_empty() { Fate::Become(meta.clone()) } else { Fate::Keep })
    })?;
    Ok(edited.into())
}

fn is_cacheable(method: &Method) -> bool {
    matches!(
        method,
        Method::ServerDiscover
            | Method::ToolsList
            | Method::PromptsList
            | Method::ResourcesList
            | Method::ResourcesTemplatesList
            | Method::ResourcesRead
    )
}

/// For a session client of this revision: without what only the stateless revision knows, and without content that the
/// client's revision cannot read.
pub fn for_session(method: &Method, result: &[u8], revision: Revision) -> Result<Bytes, ParseError> {
    let edited = edit(result, &[], |key, value, json| {
        Ok(match key {
            "resultType" => Fate::Drop,
            "ttlMs" | "cacheScope" if is_cacheable(method) => Fate::Drop,
            "structuredContent" if *method == Method::ToolsCall && json != crate::scan::Json::Object => {
                Fate::Become(wrapped(value))
            }
            "content" if *method == Method::ToolsCall => {
                kept_or(edit_elements(value, |block| degrade(block, revision))?)
            }
            "messages" if *method == Method::PromptsGet => kept_or(edit_elements(value, |message| {
                let mut changed = false;
                let edited = edit(message, &[], |key, value, _| {
                    let new = if key == "content" { degrade(value, revision)? } else { None };
                    changed |= new.is_some();
                    Ok(kept_or(new))
                })?;
                Ok(changed.then_some(edited))
            })?),
            "tools" if *method == Method::ToolsList => kept_or(edit_elements(value, wrap_schema)?),
            _ => Fate::Keep,
        })
    })?;
    Ok(edited.into())
}

fn kept_or(new: Option<Vec<u8>>) -> Fate {
    new.map_or(Fate::Keep, Fate::Become)
}

fn wrapped(value: &[u8]) -> Vec<u8> {
    [b"{\"result\":", value, b"}"].concat()
}

/// Structured content is an object until 2025-11-25 [2025-11-25 server/tools#structured-content].
fn wrap_schema(tool: &[u8]) -> Result<Option<Vec<u8>>, ParseError> {
    let Some(schema) = get(tool, "outputSchema") else { return Ok(None) };
    if get_text(&schema, "type").as_deref() == Some("object") {
        return Ok(None);
    }
    let object =
        [br#"{"type":"object","properties":{"result":"#, &schema[..], br#"},"required":["result"]}"#]
            .concat();
    edit(tool, &[], |key, _, _| {
        Ok(if key == "outputSchema" { Fate::Become(object.clone()) } else { Fate::Keep })
    })
    .map(Some)
}

/// A block that a client of this revision does not know, as text.
fn degrade(block: &[u8], revision: Revision) -> Result<Option<Vec<u8>>, ParseError> {
    let kind = get_text(block, "type").unwrap_or_default();
    let text: Cow<'_, str> = match kind.as_str() {
        "resource_link" if revision < Revision::V2025_06_18 => {
            let (name, uri) = (get_text(block, "name"), get_text(block, "uri"));
            format!("{}: {}", name.unwrap_or_default(), uri.unwrap_or_default()).into()
        }
        "audio" if revision < Revision::V2025_03_26 => "[audio, which this client cannot take]".into(),
        _ => return Ok(None),
    };
    Ok(Some(format!(r#"{{"type":"text","text":{}}}"#, json_string(&text)).into_bytes()))
}

/// An error for a stateless client: the code of an unknown resource is invalid params there
/// [2026-07-28 server/resources#error-handling].
pub fn error_for_stateless(error: &[u8]) -> Bytes {
    let old = code::RESOURCE_NOT_FOUND_LEGACY.to_string();
    let edited = edit(error, &[], |key, value, _| {
        let unknown = key == "code" && value == old.as_bytes();
        Ok(if unknown { Fate::Become(code::INVALID_PARAMS.to_string().into_bytes()) } else { Fate::Keep })
    });
    edited.map_or_else(|_| Bytes::copy_from_slice(error), Bytes::from)
}

/// An error for a session client. Every revision takes every code, so it stays what the server said.
pub fn error_for_session(error: &[u8], _revision: Revision) -> Bytes {
    Bytes::copy_from_slice(error)
}

/// The URLs that a person must visit first, where the error of 2025-11-25 says so [2025-11-25 client/elicitation].
pub fn url_elicitations(error: &[u8]) -> Option<Vec<InputRequest>> {
    let code: i64 = serde_json::from_slice(&get(error, "code")?).ok()?;
    if code != code::URL_ELICITATION_REQUIRED_LEGACY {
        return None;
    }
    let list = get(&get(error, "data")?, "elicitations")?;
    let requests = elements(&list).ok()?.into_iter().enumerate().filter_map(|(number, range)| {
        let params = Bytes::copy_from_slice(list.get(range)?);
        let key = get_text(&params, "elicitationId").unwrap_or_else(|| format!("elicitation-{}", number + 1));
        Some(InputRequest { key, method: "elicitation/create".into(), params })
    });
    Some(requests.collect())
}
