//! Results and errors on their way to a client: completed for the stateless revision, trimmed for the older ones.

use bytes::Bytes;

use super::input::InputRequest;
use super::{META, SERVER_INFO, schema};
use crate::edit::{Fate, Patch, Writer, elements, find, get, get_object, get_text, read};
use crate::era::Revision;
use crate::jsonrpc::{ParseError, code, json_string};
use crate::message::Method;
use crate::scan::{Fault, Json, Scanner, Span};

/// For a stateless client: with what its revision requires of every result [2026-07-28 basic/index#results,
/// server/utilities/caching]. What an older server says may not be kept by anybody.
pub fn for_stateless(
    method: &Method,
    result: &Bytes,
    server_info: Option<&[u8]>,
) -> Result<Bytes, ParseError> {
    let mut patch = Patch::default();
    let (mut kind, mut meta, mut odd_meta) = (None, None, false);
    let (mut has_info, mut has_ttl, mut has_scope) = (false, false, false);
    let object = read(result, |scanner| {
        patch.object(scanner, |patch, scanner, key| {
            match key {
                b"_meta" if scanner.peek() == Some(b'{') => {
                    let object = patch.object(scanner, |_, scanner, key| {
                        has_info |= key == SERVER_INFO.as_bytes();
                        scanner.value().map(|_| Fate::Keep)
                    })?;
                    meta = Some(object);
                }
                _ => {
                    let span = scanner.value()?;
                    match key {
                        b"resultType" => kind = Some(span),
                        b"ttlMs" => has_ttl = true,
                        b"cacheScope" => has_scope = true,
                        b"_meta" => odd_meta = true,
                        _ => {}
                    }
                }
            }
            Ok(Fate::Keep)
        })
    })?;
    let mut put: Vec<(&str, &[u8])> = Vec::with_capacity(4);
    if kind.is_none() {
        put.push(("resultType", br#""complete""#));
    }
    let complete = kind.is_none_or(|kind| kind.text(result).as_deref() == Some("complete"));
    if complete && is_cacheable(method) {
        if !has_ttl {
            put.push(("ttlMs", b"0"));
        }
        if !has_scope {
            put.push(("cacheScope", br#""private""#));
        }
    }
    let named = server_info.filter(|_| !has_info).map(|info| [(SERVER_INFO, info)]);
    let new_meta = match (named, meta) {
        (Some(named), Some(meta)) => {
            patch.put(meta, &named);
            None
        }
        (Some(named), None) if !odd_meta => Some(Writer::of(&named)),
        _ => None,
    };
    put.extend(new_meta.as_deref().map(|meta| (META, meta)));
    patch.put(object, &put);
    Ok(changed(patch, result))
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

fn changed(patch: Patch<'_>, text: &Bytes) -> Bytes {
    if patch.is_empty() { text.clone() } else { patch.apply(text) }
}

/// For a session client of this revision: without what only the stateless revision knows, and without content that the
/// client's revision cannot read.
pub fn for_session(method: &Method, result: &Bytes, revision: Revision) -> Result<Bytes, ParseError> {
    let mut patch = Patch::default();
    read(result, |scanner| {
        if scanner.peek() != Some(b'{') {
            // No revision has such results; what a server says of its own is left to the client.
            return scanner.value().map(drop);
        }
        let object = patch.object(scanner, |patch, scanner, key| {
            match (key, method) {
                (b"resultType", _) => return scanner.value().map(|_| Fate::Drop),
                (b"ttlMs" | b"cacheScope", method) if is_cacheable(method) => {
                    return scanner.value().map(|_| Fate::Drop);
                }
                (b"structuredContent", Method::ToolsCall) => {
                    let span = scanner.value()?;
                    if span.json != Json::Object {
                        // Objects only, until 2025-11-25.
                        patch.replace(span.range().start..span.range().start, &br#"{"result":"#[..]);
                        patch.replace(span.range().end..span.range().end, &b"}"[..]);
                    }
                }
                (b"content", Method::ToolsCall) => blocks(patch, scanner, revision)?,
                (b"messages", Method::PromptsGet) => {
                    each(scanner, &mut |scanner| prompt(patch, scanner, revision))?;
                }
                (b"tools", Method::ToolsList) => each(scanner, &mut |scanner| tool(patch, scanner))?,
                _ => drop(scanner.value()?),
            }
            Ok(Fate::Keep)
        });
        object.map(drop)
    })?;
    Ok(changed(patch, result))
}

/// Reads an array element by element, and anything else as it is.
fn each(
    scanner: &mut Scanner<'_>,
    element: &mut dyn FnMut(&mut Scanner<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    match scanner.peek() {
        Some(b'[') => scanner.array(element).map(drop),
        _ => scanner.value().map(drop),
    }
}

/// A message of a prompt.
fn prompt(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>, revision: Revision) -> Result<(), Fault> {
    if scanner.peek() != Some(b'{') {
        return scanner.value().map(drop);
    }
    let message = scanner.object(|scanner, key| match key {
        b"content" => blocks(patch, scanner, revision),
        _ => scanner.value().map(drop),
    });
    message.map(drop)
}

fn tool(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
    if scanner.peek() != Some(b'{') {
        return scanner.value().map(drop);
    }
    let tool = patch.object(scanner, |patch, scanner, key| match key {
        b"outputSchema" => schema::wrap(patch, scanner),
        _ => scanner.value().map(|_| Fate::Keep),
    });
    tool.map(drop)
}

/// Content, a block or several. Blocks that a client of this revision does not know become text.
fn blocks(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>, revision: Revision) -> Result<(), Fault> {
    match scanner.peek() {
        _ if revision >= Revision::V2025_06_18 => scanner.value().map(drop),
        Some(b'[') => each(scanner, &mut |scanner| blocks(patch, scanner, revision)),
        Some(b'{') => {
            let (mut kind, mut name, mut uri) = (None, None, None);
            let block = scanner.object(|scanner, key| {
                let span = scanner.value()?;
                match key {
                    b"type" => kind = Some(span),
                    b"name" => name = Some(span),
                    b"uri" => uri = Some(span),
                    _ => {}
                }
                Ok(())
            })?;
            let source = scanner.text();
            let text = |span: Option<Span>| span.and_then(|span| span.text(source)).unwrap_or_default();
            let text = match &*text(kind) {
                "resource_link" => format!("{}: {}", text(name), text(uri)),
                "audio" if revision < Revision::V2025_03_26 => {
                    "[audio, which this client cannot take]".into()
                }
                _ => return Ok(()),
            };
            let block_text = format!(r#"{{"type":"text","text":{}}}"#, json_string(&text));
            patch.replace(block.range(), block_text.into_bytes());
            Ok(())
        }
        _ => scanner.value().map(drop),
    }
}

/// An error for a stateless client: the code of an unknown resource is invalid params there
/// [2026-07-28 server/resources#error-handling], and a demand for a URL that names none is a fault of the server.
pub fn error_for_stateless(error: &Bytes) -> Bytes {
    let (Some(span), Some(number)) = (find(error, "code"), code_of(error)) else { return error.clone() };
    let new = match number {
        code::RESOURCE_NOT_FOUND_LEGACY => code::INVALID_PARAMS,
        code::URL_ELICITATION_REQUIRED_LEGACY => code::INTERNAL_ERROR,
        _ => return error.clone(),
    };
    let mut patch = Patch::default();
    patch.replace(span.range(), new.to_string().into_bytes());
    patch.apply(error)
}

/// An error for a session client. Every revision takes every code, so it stays what the server said.
pub fn error_for_session(error: &Bytes, _revision: Revision) -> Bytes {
    error.clone()
}

fn code_of(error: &[u8]) -> Option<i64> {
    std::str::from_utf8(get(error, "code")?).ok()?.parse().ok()
}

/// The URLs that a person must visit first, where the error of 2025-11-25 says so [2025-11-25 client/elicitation]; none
/// where it names none. Ids of elicitations are that revision's own.
pub fn url_elicitations(error: &[u8]) -> Option<Vec<InputRequest>> {
    if code_of(error)? != code::URL_ELICITATION_REQUIRED_LEGACY {
        return None;
    }
    let list = get(get_object(error, "data")?, "elicitations")?;
    let mut requests = Vec::new();
    for range in elements(list).ok()? {
        let asked = list.get(range)?;
        get_text(asked, "url")?;
        let mut patch = Patch::default();
        let object = read(asked, |scanner| {
            patch.object(scanner, |_, scanner, key| {
                scanner.value()?;
                Ok(if matches!(key, b"elicitationId" | b"mode") { Fate::Drop } else { Fate::Keep })
            })
        });
        patch.put(object.ok()?, &[("mode", br#""url""#)]);
        let params = patch.apply(asked);
        let number = requests.len() + 1;
        let key = format!("elicitation-{number}");
        requests.push(InputRequest { key, method: Method::ElicitationCreate.as_str().into(), params });
    }
    (!requests.is_empty()).then_some(requests)
}

#[cfg(test)]
mod tests;
