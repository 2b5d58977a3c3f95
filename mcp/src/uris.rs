//! Resource URIs at a federated door. Two servers may have one URI, so each is wrapped with its server's name, and
//! unwrapped again; templates too, because the expansion of a wrapped template is a wrapped URI. `https:` URIs are for
//! the client to fetch and stay as they are [2026-07-28 server/resources].

use bytes::Bytes;

use crate::edit::{Fate, edit, edit_elements, get_text};
use crate::jsonrpc::{ParseError, json_string};
use crate::message::Method;

const MARK: &str = "wfl+";

/// The URI or template under which a federated door shows a server's.
pub fn wrap(server: &str, uri: &str) -> String {
    if is_web(uri) { uri.to_owned() } else { format!("{MARK}{server}+{uri}") }
}

/// The server and its own URI; none for a URI that is not wrapped.
pub fn unwrap(uri: &str) -> Option<(&str, &str)> {
    let (server, uri) = uri.strip_prefix(MARK)?.split_once('+')?;
    (!server.is_empty()).then_some((server, uri))
}

/// Whether a URI is for the client itself to fetch, and so is not wrapped.
pub fn is_web(uri: &str) -> bool {
    uri.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// The URIs in a result under other names: links and embedded resources in content, and the contents of a resource. None
/// where nothing was there to map.
pub fn map_uris(
    method: &Method,
    result: &[u8],
    map: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Bytes>, ParseError> {
    let key = match method {
        Method::ToolsCall => "content",
        Method::PromptsGet => "messages",
        Method::ResourcesRead => "contents",
        _ => return Ok(None),
    };
    let mut changed = false;
    let edited = edit(result, &[], |name, value, _| {
        if name != key {
            return Ok(Fate::Keep);
        }
        let mapped = edit_elements(value, |element| match method {
            Method::ToolsCall => block(element, map),
            Method::PromptsGet => message(element, map),
            _ => field(element, "uri", map),
        })?;
        changed |= mapped.is_some();
        Ok(mapped.map_or(Fate::Keep, Fate::Become))
    })?;
    Ok(changed.then(|| edited.into()))
}

/// The content of a prompt's message.
fn message(text: &[u8], map: &dyn Fn(&str) -> Option<String>) -> Result<Option<Vec<u8>>, ParseError> {
    inside(text, "content", |content| block(content, map))
}

/// One block of content.
fn block(text: &[u8], map: &dyn Fn(&str) -> Option<String>) -> Result<Option<Vec<u8>>, ParseError> {
    match get_text(text, "type").as_deref() {
        Some("resource_link") => field(text, "uri", map),
        Some("resource") => inside(text, "resource", |resource| field(resource, "uri", map)),
        _ => Ok(None),
    }
}

fn inside(
    text: &[u8],
    key: &str,
    change: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, ParseError>,
) -> Result<Option<Vec<u8>>, ParseError> {
    let mut changed = false;
    let edited = edit(text, &[], |name, value, _| {
        let new = if name == key { change(value)? } else { None };
        changed |= new.is_some();
        Ok(new.map_or(Fate::Keep, Fate::Become))
    })?;
    Ok(changed.then_some(edited))
}

fn field(
    text: &[u8],
    key: &str,
    map: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Vec<u8>>, ParseError> {
    inside(text, key, |value| {
        let uri: Option<String> = serde_json::from_slice(value).ok();
        Ok(uri.and_then(|uri| map(&uri)).map(|uri| json_string(&uri).into_bytes()))
    })
}
