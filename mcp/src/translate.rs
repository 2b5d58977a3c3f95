//! One message in the words of another revision: data in, data out. Each module is one side of the conversation; each
//! function names the revision that it writes for. Fields that the gateway does not know pass through as they were
//! written.

pub mod handshake;
pub mod input;
pub mod notice;
pub mod request;
pub mod result;
mod schema;

use bytes::Bytes;

use crate::edit::{Object, Patch, Writer};
use crate::jsonrpc::{Id, Message, Slot};
use crate::scan::Json;

const META: &str = "_meta";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// What a client says of itself: in `initialize`, or in `_meta` of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// A JSON object.
    pub capabilities: Bytes,
    /// A JSON object.
    pub info: Option<Bytes>,
}

/// Changes to the params of a request or notification, gathered before the message is written once.
struct Draft<'m, 'a> {
    message: &'m Message,
    patch: Patch<'a>,
    params: Vec<(&'static str, &'a [u8])>,
    params_out: Vec<std::ops::Range<usize>>,
    meta: Vec<(&'static str, &'a [u8])>,
    meta_out: Vec<std::ops::Range<usize>>,
}

impl<'m, 'a> Draft<'m, 'a> {
    fn new(message: &'m Message) -> Self {
        let (params, params_out, meta, meta_out) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { message, patch: Patch::default(), params, params_out, meta, meta_out }
    }

    /// Other JSON text in the place of a field that is there.
    fn replace(&mut self, slot: Slot, value: impl Into<std::borrow::Cow<'a, [u8]>>) {
        if let Some(span) = self.message.field(slot) {
            self.patch.replace(span.range(), value);
        }
    }

    /// A field of `params` as it must be: with this value, or not at all.
    fn set(&mut self, slot: Slot, key: &'static str, value: Option<&'a [u8]>) {
        match (self.message.member(slot), value) {
            (Some(_), Some(value)) => self.replace(slot, value),
            (Some(member), None) => self.params_out.push(member),
            (None, Some(value)) => self.params.push((key, value)),
            (None, None) => {}
        }
    }

    /// A field of `params._meta` as it must be.
    fn set_meta(&mut self, slot: Slot, key: &'static str, value: Option<&'a [u8]>) {
        match (self.message.member(slot), value) {
            (Some(_), Some(value)) => self.replace(slot, value),
            (Some(member), None) => self.meta_out.push(member),
            (None, Some(value)) => self.meta.push((key, value)),
            (None, None) => {}
        }
    }

    /// The message with its changes. A `_meta` that they emptied goes, and so do emptied params where `spare`.
    fn write(mut self, id: Option<&Id>, spare: bool) -> Bytes {
        let text = self.message.bytes();
        let mut new_meta = Vec::new();
        match self.message.field(Slot::Meta) {
            Some(span) if span.json == Json::Object => {
                let object = self.patch.take_out(text, span, &mut self.meta_out);
                self.patch.put(object, &self.meta);
                if !object.kept && self.meta.is_empty() {
                    self.params_out.extend(self.message.member(Slot::Meta));
                }
            }
            _ if self.meta.is_empty() => {}
            Some(span) => self.patch.replace(span.range(), Writer::of(&self.meta)),
            None => new_meta = Writer::of(&self.meta),
        }
        let mut put: Vec<(&str, &[u8])> = self.params;
        if !new_meta.is_empty() {
            put.push((META, &new_meta));
        }
        let params = self.message.field(Slot::Params);
        let kept = params.is_some_and(|span| {
            let object = self.patch.take_out(text, span, &mut self.params_out);
            self.patch.put(object, &put);
            object.kept || !put.is_empty()
        });
        let grown: usize = put.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
        let mut out = Vec::with_capacity(text.len() + self.patch.growth() + grown + 64);
        out.extend_from_slice(br#"{"jsonrpc":"2.0""#);
        if let Some(id) = self.message.id().and(id).or(self.message.id()) {
            out.extend_from_slice(br#","id":"#);
            out.extend_from_slice(id.as_json().as_bytes());
        }
        if let Some(method) = self.message.field(Slot::Method) {
            out.extend_from_slice(br#","method":"#);
            out.extend_from_slice(method.of(text));
        }
        match params {
            Some(span) if kept || !spare => {
                out.extend_from_slice(br#","params":"#);
                self.patch.write(text, span.range(), &mut out);
            }
            None if !put.is_empty() => {
                out.extend_from_slice(br#","params":"#);
                out.extend_from_slice(&Writer::of(&put));
            }
            _ => {}
        }
        out.push(b'}');
        out.into()
    }
}

/// A request or notification of our own. Params that say nothing are left out.
fn message(id: Option<&Id>, method: &str, params: &[u8]) -> Bytes {
    let mut message = Writer::new(params.len() + method.len() + 96);
    message.put("jsonrpc", br#""2.0""#);
    if let Some(id) = id {
        message.put("id", id.as_json().as_bytes());
    }
    message.put_text("method", method);
    if params != b"{}" {
        message.put("params", params);
    }
    message.end().into()
}

/// The object without some of its members.
fn without(object: &[u8], keys: &[&str]) -> Bytes {
    let mut patch = Patch::default();
    let judged = crate::edit::read(object, |scanner| {
        patch.object(scanner, |_, scanner, key| {
            scanner.value()?;
            Ok(match keys.iter().any(|known| known.as_bytes() == key) {
                true => crate::edit::Fate::Drop,
                false => crate::edit::Fate::Keep,
            })
        })
    });
    match judged {
        Ok(Object { kept: true, .. }) => patch.apply(object),
        _ => Bytes::from_static(b"{}"),
    }
}

#[cfg(test)]
mod tests;
