//! The headers of MCP: read once and only once, compare with the body, write anew for the next hop
//! [2026-07-28 streamable-http#request-metadata, SEP-2243]. A header never decides anything by itself: it must say what
//! the body says.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use thiserror::Error;

use crate::era::Revision;
use crate::jsonrpc::{Kind, code};
use crate::listing::{ParamHeader, find};
use crate::message::{Head, Method};
use crate::scan::Json;

pub const MCP_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
pub const MCP_SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
pub const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
pub const MCP_NAME: HeaderName = HeaderName::from_static("mcp-name");
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What the names of headers that mirror arguments start with, in lower case.
pub const MCP_PARAM_PREFIX: &str = "mcp-param-";

/// Headers that have one value or none; two are two readings.
const SINGLETONS: [HeaderName; 11] = [
    header::AUTHORIZATION,
    header::HOST,
    header::ORIGIN,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    MCP_PROTOCOL_VERSION,
    MCP_SESSION_ID,
    MCP_METHOD,
    MCP_NAME,
    LAST_EVENT_ID,
    X_API_KEY,
];

const OPEN: &str = "=?base64?";
const CLOSE: &str = "?=";

/// Why the headers of a request are refused: HTTP 400, code -32020. Values are not repeated, they may be secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    #[error("header {0} is there more than once")]
    Duplicate(String),
    #[error("header {0} is required")]
    Missing(String),
    #[error("header {0} has a character that is not allowed")]
    BadCharacter(String),
    #[error("header {0} has broken base64")]
    BadEncoding(String),
    #[error("header {0} does not match the body")]
    Mismatch(String),
}

impl HeaderError {
    /// The JSON-RPC code, `HeaderMismatch`.
    pub fn code(&self) -> i64 {
        code::HEADER_MISMATCH
    }

    /// A stable name in `snake_case`, for metrics, audit and tests.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Duplicate(_) => "header_duplicate",
            Self::Missing(_) => "header_missing",
            Self::BadCharacter(_) => "header_bad_character",
            Self::BadEncoding(_) => "header_bad_encoding",
            Self::Mismatch(_) => "header_mismatch",
        }
    }

    /// The header in question, in lower case.
    pub fn header(&self) -> &str {
        match self {
            Self::Duplicate(name)
            | Self::Missing(name)
            | Self::BadCharacter(name)
            | Self::BadEncoding(name)
            | Self::Mismatch(name) => name,
        }
    }

    fn of(self, name: &HeaderName) -> Self {
        let name = name.to_string();
        match self {
            Self::Duplicate(_) => Self::Duplicate(name),
            Self::Missing(_) => Self::Missing(name),
            Self::BadCharacter(_) => Self::BadCharacter(name),
            Self::BadEncoding(_) => Self::BadEncoding(name),
            Self::Mismatch(_) => Self::Mismatch(name),
        }
    }
}

/// The one value of a header, without blanks at its ends; printable ASCII, inner blanks and tabs.
pub fn singleton<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, HeaderError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeaderError::Duplicate(name.to_string()));
    }
    let text = value.to_str().map_err(|_| HeaderError::BadCharacter(name.to_string()))?;
    Ok(Some(text.trim_matches([' ', '\t'])))
}

/// Refuses a request that has a header twice of which one value is used.
pub fn check_singletons(headers: &HeaderMap) -> Result<(), HeaderError> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    match SINGLETONS.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        Some(name) => Err(HeaderError::Duplicate(name.to_string())),
        None => Ok(()),
    }
}

/// Reads the value of a mirrored header: what stands between `=?base64?` and `?=` is canonical base64 of UTF-8,
/// decoded once; anything else is itself, of printable ASCII, inner blanks and tabs. Errors name no header.
pub fn decode_value(value: &str) -> Result<Cow<'_, str>, HeaderError> {
    let value = value.trim_matches([' ', '\t']);
    if let Some(inner) = value.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE)) {
        let bytes = STANDARD.decode(inner).map_err(|_| HeaderError::BadEncoding(String::new()))?;
        let text = String::from_utf8(bytes).map_err(|_| HeaderError::BadEncoding(String::new()))?;
        return Ok(Cow::Owned(text));
    }
    if value.bytes().all(is_literal) {
        Ok(Cow::Borrowed(value))
    } else {
        Err(HeaderError::BadCharacter(String::new()))
    }
}

/// Writes the value of a mirrored header: as it is where a reader would read just that, else in base64.
pub fn encode_value(text: &str) -> HeaderValue {
    let plain = text.bytes().all(is_literal)
        && text.trim_matches([' ', '\t']) == text
        && !(text.starts_with(OPEN) && text.ends_with(CLOSE));
    let written = match plain {
        true => Cow::Borrowed(text),
        false => Cow::Owned(format!("{OPEN}{}{CLOSE}", STANDARD.encode(text))),
    };
    HeaderValue::from_str(&written).expect("printable ASCII is a header value")
}

fn is_literal(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7E | b'\t')
}

/// Checks the mirrored headers of a modern message against its body: `MCP-Protocol-Version`, and on requests
/// `Mcp-Method` and (where the method has a subject) `Mcp-Name`. Notifications may leave the latter two out.
pub fn validate(headers: &HeaderMap, head: &Head) -> Result<(), HeaderError> {
    let version = singleton(headers, &MCP_PROTOCOL_VERSION)?
        .ok_or_else(|| HeaderError::Missing(MCP_PROTOCOL_VERSION.to_string()))?;
    let is_request = head.kind == Kind::Request;
    // A notification has no obligation to repeat the version in its body.
    if head.meta_version.as_deref().map_or(is_request, |stated| stated != version) {
        return Err(HeaderError::Mismatch(MCP_PROTOCOL_VERSION.to_string()));
    }
    compare(headers, &MCP_METHOD, Some(head.method.as_str()), is_request)?;
    if head.method.mirrors_name() {
        compare(headers, &MCP_NAME, head.name.as_deref(), is_request)?;
    }
    Ok(())
}

fn compare(
    headers: &HeaderMap,
    name: &HeaderName,
    stated: Option<&str>,
    required: bool,
) -> Result<(), HeaderError> {
    let Some(value) = singleton(headers, name)? else {
        return if required { Err(HeaderError::Missing(name.to_string())) } else { Ok(()) };
    };
    let decoded = decode_value(value).map_err(|error| error.of(name))?;
    if Some(&*decoded) == stated { Ok(()) } else { Err(HeaderError::Mismatch(name.to_string())) }
}

/// The headers that mirror arguments: the part of the name behind `mcp-param-` in lower case, and the value.
pub fn param_headers(headers: &HeaderMap) -> impl Iterator<Item = (&str, &HeaderValue)> {
    headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix(MCP_PARAM_PREFIX)?, value)))
}

/// Checks the `Mcp-Param-*` headers of a `tools/call` against its arguments. A value that is there must be mirrored
/// (integers numerically), `null` or an absent one must not be; headers that no annotation names are not looked at.
pub fn check_params(
    annotations: &[ParamHeader],
    arguments: Option<&[u8]>,
    headers: &HeaderMap,
) -> Result<(), HeaderError> {
    for annotation in annotations {
        let name = param_name(annotation)?;
        let value = singleton(headers, &name)?;
        let mismatch = || HeaderError::Mismatch(name.to_string());
        match (mirrored(annotation, arguments), value) {
            (None, None) => {}
            (None, Some(_)) => return Err(mismatch()),
            (Some(_), None) => return Err(HeaderError::Missing(name.to_string())),
            (Some(Mirrored::Text(stated)), Some(value)) => {
                if decode_value(value).map_err(|error| error.of(&name))? != stated {
                    return Err(mismatch());
                }
            }
            (Some(Mirrored::Number(stated)), Some(value)) => {
                let decoded = decode_value(value).map_err(|error| error.of(&name))?;
                let same = match (integer(&stated), integer(&decoded)) {
                    (Some(left), Some(right)) => left == right,
                    _ => stated == decoded,
                };
                if !same {
                    return Err(mismatch());
                }
            }
        }
    }
    Ok(())
}

/// Writes the `Mcp-Param-*` headers of a `tools/call` for a modern server, after its own annotations; any that were
/// there under these names are replaced.
pub fn write_params(annotations: &[ParamHeader], arguments: Option<&[u8]>, headers: &mut HeaderMap) {
    for annotation in annotations {
        let Ok(name) = param_name(annotation) else { continue };
        headers.remove(&name);
        match mirrored(annotation, arguments) {
            None => {}
            Some(Mirrored::Text(text)) => {
                headers.insert(name, encode_value(&text));
            }
            Some(Mirrored::Number(text)) => {
                let text = integer(&text).unwrap_or(text);
                headers.insert(name, encode_value(&text));
            }
        }
    }
}

/// Writes the headers of a message for the hop to a server that speaks `revision`, from what its body says. Mirrored
/// headers that were there are replaced or removed; other headers stay.
pub fn write(head: &Head, revision: Revision, headers: &mut HeaderMap) {
    headers.remove(MCP_METHOD);
    headers.remove(MCP_NAME);
    headers.remove(MCP_PROTOCOL_VERSION);
    if revision.is_modern() || (revision.has_version_header() && head.method != Method::Initialize) {
        headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(revision.as_str()));
    }
    if !revision.is_modern() {
        return;
    }
    headers.insert(MCP_METHOD, encode_value(head.method.as_str()));
    if let Some(name) = head.name.as_deref().filter(|_| head.method.mirrors_name()) {
        headers.insert(MCP_NAME, encode_value(name));
    }
}

enum Mirrored {
    Text(String),
    /// Source text of a number.
    Number(String),
}

fn param_name(annotation: &ParamHeader) -> Result<HeaderName, HeaderError> {
    let name = format!("{MCP_PARAM_PREFIX}{}", annotation.header);
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderError::BadCharacter(name))
}

/// What the header must say by the type that the value has; objects and arrays have no form in a header.
fn mirrored(annotation: &ParamHeader, arguments: Option<&[u8]>) -> Option<Mirrored> {
    let arguments = arguments?;
    let (json, range) = find(arguments, &annotation.path).ok()??;
    let raw = arguments.get(range)?;
    match json {
        Json::Plain | Json::Escaped => serde_json::from_slice(raw).ok().map(Mirrored::Text),
        Json::Number => Some(Mirrored::Number(String::from_utf8_lossy(raw).into_owned())),
        Json::True => Some(Mirrored::Text("true".into())),
        Json::False => Some(Mirrored::Text("false".into())),
        Json::Null | Json::Object | Json::Array => None,
    }
}

/// The plain decimal form of a number that is an integer: `42`, `42.0` and `4.2e1` are one. At most 64 digits.
fn integer(text: &str) -> Option<String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut value = format!("{whole}{fraction}");
    if whole.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) || value.len() > 64 {
        return None;
    }
    let mut shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    while shift < 0 && value.ends_with('0') {
        value.pop();
        shift += 1;
    }
    let value = value.trim_start_matches('0');
    if value.is_empty() {
        return Some("0".into());
    }
    if !(0..=64).contains(&shift) {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    let zeros = "0".repeat(usize::try_from(shift).ok()?);
    Some(format!("{sign}{value}{zeros}"))
}

#[cfg(test)]
mod tests;
