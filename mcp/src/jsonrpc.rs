//! The JSON-RPC envelope: one strict parse, ids as their source text, `params`, `result` and `error` as the bytes that
//! came. What a method's params mean is read in `message`; the rules of the text itself stand in `scan`.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

pub use crate::fault::{Fault, Limits};
use crate::fields::Fields;
pub use crate::fields::Slot;
use crate::scan::{Json, Scanner, Span};

/// Error codes of JSON-RPC 2.0 and of MCP [2026-07-28 basic/index#errors, SEP-2243].
pub mod code {
    pub const PARSE_ERROR: i64 = -32700;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD_NOT_FOUND: i64 = -32601;
    pub const INVALID_PARAMS: i64 = -32602;
    pub const INTERNAL_ERROR: i64 = -32603;
    /// A mirrored header is missing, broken or differs from the body.
    pub const HEADER_MISMATCH: i64 = -32020;
    /// The server needs a capability that the client did not declare on this request.
    pub const MISSING_CLIENT_CAPABILITY: i64 = -32021;
    /// The revision is not served; `data.supported` lists what is.
    pub const UNSUPPORTED_PROTOCOL_VERSION: i64 = -32022;
    /// Until 2025-11-25 only; never sent by new code.
    pub const RESOURCE_NOT_FOUND_LEGACY: i64 = -32002;
    /// 2025-11-25 only.
    pub const URL_ELICITATION_REQUIRED_LEGACY: i64 = -32042;

    /// Whether only a modern server gives this code [2026-07-28 basic/versioning].
    pub fn is_modern(code: i64) -> bool {
        matches!(code, HEADER_MISMATCH | MISSING_CLIENT_CAPABILITY | UNSUPPORTED_PROTOCOL_VERSION)
    }
}

/// Longest id that is kept and echoed, in bytes of source text.
const MAX_ID: usize = 1024;

/// The id of a request, as it was written. Two ids are equal when they have one type and one decoded text.
#[derive(Debug, Clone)]
pub enum Id {
    /// Source text of an integer, of any size.
    Number(Box<str>),
    /// Source text of a string, with its quotes and escapes.
    String(Box<str>),
}

impl Id {
    /// An id of our own, for the hop to a server.
    pub fn number(number: u64) -> Self {
        Self::Number(number.to_string().into())
    }

    /// A string id from its decoded text.
    pub fn string(text: &str) -> Self {
        Self::String(json_string(text).into())
    }

    /// The exact JSON source text.
    pub fn as_json(&self) -> &str {
        match self {
            Self::Number(text) | Self::String(text) => text,
        }
    }

    /// The decoded text: digits of a number, characters of a string.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Number(text) => Cow::Borrowed(text),
            Self::String(raw) if raw.contains('\\') => {
                serde_json::from_str(raw).map_or(Cow::Borrowed(raw), Cow::Owned)
            }
            Self::String(raw) => Cow::Borrowed(raw.trim_matches('"')),
        }
    }

    /// Reads an id from its JSON text: a string or an integer.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        let mut scanner = Scanner::new(json, Limits::default()).ok()?;
        let span = scanner.value().ok()?;
        scanner.finish().ok()?;
        Self::from_span(span, json)
    }

    pub(crate) fn from_span(span: Span, text: &[u8]) -> Option<Self> {
        let source = std::str::from_utf8(span.of(text)).ok().filter(|source| source.len() <= MAX_ID)?;
        match span.json {
            Json::Number if !source.contains(['.', 'e', 'E']) => Some(Self::Number(source.into())),
            Json::Plain | Json::Escaped => Some(Self::String(source.into())),
            _ => None,
        }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(left), Self::Number(right)) => left == right,
            (Self::String(_), Self::String(_)) => self.text() == other.text(),
            _ => false,
        }
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        self.text().hash(state);
    }
}

/// What an envelope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `method` and `id`.
    Request,
    /// `method` without `id`.
    Notification,
    /// `id` and `result`.
    Response,
    /// `error`, with an `id` unless the peer could not read one.
    Error,
}

/// Why a text is not one message. Carries the id where exactly one could be read, so that the answer can echo it.
#[derive(Debug, Clone, Error)]
#[error("{fault}")]
pub struct ParseError {
    /// What is wrong.
    pub fault: Fault,
    /// Where the scan stopped, in bytes from the start.
    pub at: usize,
    id: Option<Id>,
}

impl ParseError {
    pub(crate) fn new(fault: Fault, at: usize) -> Self {
        Self { fault, at, id: None }
    }

    /// The JSON-RPC code: -32700 where there is no JSON text, -32600 where it is not an acceptable message.
    pub fn code(&self) -> i64 {
        match self.fault {
            Fault::ByteOrderMark
            | Fault::InvalidUtf8
            | Fault::Nul
            | Fault::LoneSurrogate
            | Fault::InvalidJson
            | Fault::TrailingData => code::PARSE_ERROR,
            _ => code::INVALID_REQUEST,
        }
    }

    /// A stable name in `snake_case`, for metrics, audit and tests.
    pub fn reason(&self) -> &'static str {
        self.fault.reason()
    }

    /// The id to echo.
    pub fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }
}

/// One message that has exactly one reading. The text is shared, not copied, by everything that is taken out of it.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Bytes,
    fields: Fields,
    kind: Kind,
    id: Option<Id>,
    /// Only where the method was written with escapes.
    method: Option<Box<str>>,
}

impl Message {
    /// Reads one message. A batch, a second reading, a NUL, too much depth or too many keys are refused.
    pub fn parse(bytes: Bytes, limits: &Limits) -> Result<Self, ParseError> {
        let mut fields = Fields::new();
        let mut scanner = Scanner::new(&bytes, *limits).map_err(|fault| ParseError::new(fault, 0))?;
        let scanned = fields.read(&mut scanner);
        let at = scanner.pos();
        let id = fields.get(Slot::Id).and_then(|span| Id::from_span(span, &bytes));
        let kind = match scanned.and_then(|()| kind(&fields, &bytes, id.is_some())) {
            Ok(kind) => kind,
            Err(fault) => return Err(ParseError { fault, at, id }),
        };
        let method = fields
            .get(Slot::Method)
            .filter(|span| span.json == Json::Escaped)
            .and_then(|span| span.text(&bytes))
            .map(|text| text.into_owned().into_boxed_str());
        Ok(Self { bytes, fields, kind, id, method })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `None` for notifications, and for errors whose sender could not read one.
    pub fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }

    /// The decoded method of a request or notification.
    pub fn method(&self) -> Option<&str> {
        if let Some(method) = &self.method {
            return Some(method);
        }
        let span = self.fields.get(Slot::Method)?.range();
        self.bytes.get(span.start + 1..span.end - 1).and_then(|text| std::str::from_utf8(text).ok())
    }

    /// The bytes of `params`, as they came.
    pub fn params(&self) -> Option<Bytes> {
        self.raw(Slot::Params)
    }

    /// The bytes of `result`, as they came.
    pub fn result(&self) -> Option<Bytes> {
        self.raw(Slot::Result)
    }

    /// The bytes of `error`, as they came.
    pub fn error(&self) -> Option<Bytes> {
        self.raw(Slot::Error)
    }

    /// `error.code`, where it is an integer.
    pub fn error_code(&self) -> Option<i64> {
        let span = self.fields.get(Slot::ErrorCode).filter(|span| span.json == Json::Number)?;
        std::str::from_utf8(span.of(&self.bytes)).ok()?.parse().ok()
    }

    /// The bytes of any known field, a slice of the message.
    pub fn raw(&self, slot: Slot) -> Option<Bytes> {
        self.fields.get(slot).map(|span| self.bytes.slice(span.range()))
    }

    /// The decoded text of a known field that is a string; `None` where it is absent or has another type.
    pub fn text(&self, slot: Slot) -> Option<Cow<'_, str>> {
        self.fields.get(slot)?.text(&self.bytes)
    }

    /// The whole text as it came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn field(&self, slot: Slot) -> Option<Span> {
        self.fields.get(slot)
    }

    /// A known field with its key, from the key's quote to the end of the value.
    pub(crate) fn member(&self, slot: Slot) -> Option<Range<usize>> {
        self.fields.member(slot)
    }

    pub(crate) fn field_is(&self, slot: Slot, json: Json) -> bool {
        self.fields.is_a(slot, json)
    }

    /// The message for the next hop, without envelope keys that JSON-RPC does not know. A text that has none is passed on
    /// as it came: it has one reading only, and is shared, not copied. Where a message waits for long, take
    /// [`Message::rewrite_with`] instead, which keeps nothing but its own bytes.
    pub fn rewrite(&self) -> Bytes {
        // A null id is no id.
        let id_is_kept = self.id.is_some() || self.fields.get(Slot::Id).is_none();
        if !self.fields.is_foreign() && id_is_kept {
            return self.bytes.clone();
        }
        self.rewrite_with(None, &[])
    }

    /// As [`Message::rewrite`], under another id.
    pub fn rewrite_id(&self, id: &Id) -> Bytes {
        self.rewrite_with(Some(id), &[])
    }

    /// The envelope written anew, `params`, `result` and `error` byte for byte, with another id, and with other (decoded)
    /// strings in some fields, for example `(Slot::Name, "search")` where a prefix was taken off. A slot that the message does not have is passed over.
    pub fn rewrite_with(&self, id: Option<&Id>, edits: &[(Slot, &str)]) -> Bytes {
        let mut edits: Vec<_> = edits
            .iter()
            .filter_map(|(slot, text)| Some((self.fields.get(*slot)?.range(), json_string(text))))
            .collect();
        edits.sort_unstable_by_key(|(range, _)| range.start);
        let grown: usize = edits.iter().map(|(_, text)| text.len()).sum();
        let mut out = Vec::with_capacity(self.bytes.len() + grown + 64);
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
        if let Some(id) = self.id.as_ref().and(id).or(self.id.as_ref()) {
            out.extend_from_slice(b",\"id\":");
            out.extend_from_slice(id.as_json().as_bytes());
        }
        for (key, slot) in [
            (&b",\"method\":"[..], Slot::Method),
            (b",\"params\":", Slot::Params),
            (b",\"result\":", Slot::Result),
            (b",\"error\":", Slot::Error),
        ] {
            let Some(span) = self.fields.get(slot) else { continue };
            out.extend_from_slice(key);
            let mut from = span.range().start;
            for (range, text) in &edits {
                if range.start >= from && range.end <= span.range().end {
                    out.extend_from_slice(self.bytes.get(from..range.start).unwrap_or_default());
                    out.extend_from_slice(text.as_bytes());
                    from = range.end;
                }
            }
            out.extend_from_slice(self.bytes.get(from..span.range().end).unwrap_or_default());
        }
        out.push(b'}');
        out.into()
    }
}

/// Splits a batch of 2025-03-26 into its messages, in order; each is judged by itself. The batch as a whole obeys the
/// same limits as a message, and has 1 to `max_items` items.
pub fn parse_batch(
    bytes: &Bytes,
    limits: &Limits,
    max_items: usize,
) -> Result<Vec<Result<Message, ParseError>>, ParseError> {
    let mut scanner = Scanner::new(bytes, *limits).map_err(|fault| ParseError::new(fault, 0))?;
    let mut spans = Vec::new();
    let scanned = scanner
        .array(|scanner| {
            if spans.len() >= max_items {
                return Err(Fault::BatchSize);
            }
            spans.push(scanner.value()?);
            Ok(())
        })
        .and_then(|_| scanner.finish());
    match scanned {
        Err(fault) => Err(ParseError::new(fault, scanner.pos())),
        Ok(()) if spans.is_empty() => Err(ParseError::new(Fault::BatchSize, scanner.pos())),
        Ok(()) => {
            Ok(spans.into_iter().map(|span| Message::parse(bytes.slice(span.range()), limits)).collect())
        }
    }
}

/// An error response. The id is left out where it is unknown: MCP knows no `null` id [2025-11-25 schema].
pub fn error_response(id: Option<&Id>, code: i64, message: &str, data: Option<&serde_json::Value>) -> Bytes {
    let mut out = String::with_capacity(message.len() + 96);
    out.push_str("{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        out.push_str(",\"id\":");
        out.push_str(id.as_json());
    }
    out.push_str(",\"error\":{\"code\":");
    out.push_str(&code.to_string());
    out.push_str(",\"message\":");
    out.push_str(&json_string(message));
    if let Some(data) = data {
        out.push_str(",\"data\":");
        out.push_str(&data.to_string());
    }
    out.push_str("}}");
    out.into()
}

/// A response with a result that is JSON text already.
pub fn result_response(id: &Id, result_json: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(result_json.len() + id.as_json().len() + 36);
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id.as_json().as_bytes());
    out.extend_from_slice(b",\"result\":");
    out.extend_from_slice(result_json);
    out.push(b'}');
    out.into()
}

/// A string as JSON text, with quotes.
pub(crate) fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string always serialises")
}

/// Checks the envelope and says what it is.
fn kind(fields: &Fields, bytes: &[u8], has_id: bool) -> Result<Kind, Fault> {
    if fields.get(Slot::Jsonrpc).and_then(|span| span.text(bytes)).as_deref() != Some("2.0") {
        return Err(Fault::BadJsonrpc);
    }
    let id = fields.get(Slot::Id);
    let kind = match (fields.get(Slot::Method), fields.get(Slot::Result), fields.get(Slot::Error)) {
        (Some(method), None, None) if !method.json.is_string() => return Err(Fault::BadMethod),
        (Some(_), None, None) if id.is_some() => Kind::Request,
        (Some(_), None, None) => Kind::Notification,
        (None, Some(_), None) => Kind::Response,
        (None, None, Some(error)) if error.json != Json::Object => return Err(Fault::BadError),
        (None, None, Some(_)) => Kind::Error,
        _ => return Err(Fault::NotAMessage),
    };
    if fields.get(Slot::Params).is_some_and(|params| params.json != Json::Object) {
        return Err(Fault::BadParams);
    }
    match id {
        None if kind == Kind::Response => Err(Fault::BadId),
        // JSON-RPC 2.0 has servers answer what they cannot read under a null id, and older ones do.
        Some(id) if kind == Kind::Error && id.json == Json::Null => Ok(kind),
        Some(_) if !has_id => Err(Fault::BadId),
        _ => Ok(kind),
    }
}

#[cfg(test)]
mod tests;
