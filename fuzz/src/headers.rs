//! A header never says anything but what the body says: a mirrored value reads back as what was written, and a request
//! passes validation only if its decoded header equals its body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use waffles_mcp::headers::{
    MCP_METHOD, MCP_NAME, MCP_PROTOCOL_VERSION, decode_value, encode_value, validate, write,
};
use waffles_mcp::{Head, Limits, Message, Revision, head};

/// The bytes up to the first NUL are a header's value, the rest is the body's name.
pub fn check(data: &[u8]) {
    let cut = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (value, name) = data.split_at(cut);
    let name = String::from_utf8_lossy(name.get(1..).unwrap_or_default()).replace('\0', "");
    round_trip(&name);
    let Some(head) = call(&name) else { return };
    let mut written = HeaderMap::new();
    write(&head, Revision::V2026_07_28, &mut written);
    assert_eq!(validate(&written, &head), Ok(()), "what we write is what we accept");
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static("2026-07-28"));
    headers.insert(MCP_METHOD, HeaderValue::from_static("tools/call"));
    headers.insert(MCP_NAME, value.clone());
    let accepted = validate(&headers, &head).is_ok();
    assert_eq!(accepted, slow_decode(&value).as_deref() == Some(name.as_str()), "{value:?} for {name:?}");
    if let Some(text) = value.to_str().ok().and_then(|text| decode_value(text).ok()) {
        round_trip(&text);
    }
    headers.append(MCP_NAME, encode_value(&name));
    assert!(validate(&headers, &head).is_err(), "two values are two readings");
}

fn round_trip(text: &str) {
    let written = encode_value(text);
    let written = written.to_str().expect("a written value is printable");
    assert_eq!(decode_value(written).as_deref(), Ok(text), "{written:?}");
}

fn call(name: &str) -> Option<Head> {
    let text = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
    }}});
    head(&Message::parse(Bytes::from(text.to_string()), &Limits::default()).ok()?).ok()
}

/// As the specification says it, without regard to speed: blanks at the ends go, what stands in the sentinel is base64,
/// and anything else is itself, of printable ASCII, blanks and tabs.
fn slow_decode(value: &HeaderValue) -> Option<String> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    if !text.chars().all(|char| char == '\t' || (' '..='~').contains(&char)) {
        return None;
    }
    let text = text.trim_matches(|char| char == ' ' || char == '\t');
    match text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(inner) => {
            let bytes = STANDARD.decode(inner).ok()?;
            // There is one way to write it.
            (STANDARD.encode(&bytes) == inner).then(|| String::from_utf8(bytes).ok())?
        }
        None => Some(text.to_owned()),
    }
}
