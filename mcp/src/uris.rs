//! Resource URIs at a federated door. Two servers may have one URI, so each is wrapped with its server's name, and
//! unwrapped again; templates too, because the expansion of a wrapped template is a wrapped URI. `https:` URIs are for
//! the client to fetch and stay as they are [2026-07-28 server/resources].

use bytes::Bytes;

use crate::edit::{Patch, read};
use crate::jsonrpc::{ParseError, json_string};
use crate::message::Method;
use crate::names::is_server;
use crate::scan::{Fault, Scanner, Span};

const MARK: &str = "wfl+";

/// The URI or template under which a federated door shows a server's.
pub fn wrap(server: &str, uri: &str) -> String {
    if is_web(uri) { uri.to_owned() } else { format!("{MARK}{server}+{uri}") }
}

/// The server and its own URI; none for a URI that is not wrapped.
pub fn unwrap(uri: &str) -> Option<(&str, &str)> {
    let (server, uri) = uri.strip_prefix(MARK)?.split_once('+')?;
    is_server(server).then_some((server, uri))
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
    let key: &[u8] = match method {
        Method::ToolsCall => b"content",
        Method::PromptsGet => b"messages",
        Method::ResourcesRead => b"contents",
        _ => return Ok(None),
    };
    let mut mapping = Mapping { patch: Patch::default(), map };
    read(result, |scanner| {
        if scanner.peek() != Some(b'{') {
            return scanner.value().map(drop);
        }
        let object = scanner.object(|scanner, name| match scanner.peek() {
            Some(b'[') if name == key => {
                let list = scanner.array(|scanner| match (scanner.peek(), method) {
                    (Some(b'{'), Method::ToolsCall) => mapping.block(scanner),
                    (Some(b'{'), Method::PromptsGet) => mapping.message(scanner),
                    (Some(b'{'), _) => mapping.contents(scanner),
                    _ => scanner.value().map(drop),
                });
                list.map(drop)
            }
            _ => scanner.value().map(drop),
        });
        object.map(drop)
    })?;
    Ok((!mapping.patch.is_empty()).then(|| mapping.patch.apply(result)))
}

struct Mapping<'m> {
    patch: Patch<'static>,
    map: &'m dyn Fn(&str) -> Option<String>,
}

impl Mapping<'_> {
    /// A message of a prompt: its content is a block.
    fn message(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        let message = scanner.object(|scanner, key| match scanner.peek() {
            Some(b'{') if key == b"content" => self.block(scanner),
            _ => scanner.value().map(drop),
        });
        message.map(drop)
    }

    /// A block of content: a link has a URI, an embedded resource is an object that has one.
    fn block(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        let text = scanner.text();
        let (mut kind, mut link, mut embedded) = (None, None, None);
        scanner.object(|scanner, key| {
            match (key, scanner.peek()) {
                (b"resource", Some(b'{')) => drop(scanner.object(|scanner, key| {
                    let span = scanner.value()?;
                    if key == b"uri" {
                        embedded = Some(span);
                    }
                    Ok(())
                })?),
                _ => {
                    let span = scanner.value()?;
                    match key {
                        b"type" => kind = span.text(text),
                        b"uri" => link = Some(span),
                        _ => {}
                    }
                }
            }
            Ok(())
        })?;
        match kind.as_deref() {
            Some("resource_link") => self.uri(link, text),
            Some("resource") => self.uri(embedded, text),
            _ => {}
        }
        Ok(())
    }

    /// Contents of a resource.
    fn contents(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        let text = scanner.text();
        let mut uri = None;
        scanner.object(|scanner, key| {
            let span = scanner.value()?;
            if key == b"uri" {
                uri = Some(span);
            }
            Ok(())
        })?;
        self.uri(uri, text);
        Ok(())
    }

    fn uri(&mut self, span: Option<Span>, text: &[u8]) {
        let Some(span) = span else { return };
        let Some(new) = span.text(text).and_then(|uri| (self.map)(&uri)) else { return };
        self.patch.replace(span.range(), json_string(&new).into_bytes());
    }
}

#[cfg(test)]
mod tests;
