//! The durable record of one exchange or act, and what of a payload may stand in it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::server::Capture;

/// How an exchange or act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered with a result.
    #[default]
    Ok,
    /// Answered by the server with an error.
    Error,
    /// No valid credential.
    Unauthenticated,
    /// Not permitted.
    Denied,
    /// Malformed, or against the protocol.
    Invalid,
    /// The server could not be reached, broke off or timed out.
    UpstreamFailed,
    /// The client went away or cancelled.
    Cancelled,
    /// Turned away for lack of capacity.
    Shed,
    /// A fault in Waffles.
    Internal,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 9] = [
        Outcome::Ok,
        Outcome::Error,
        Outcome::Unauthenticated,
        Outcome::Denied,
        Outcome::Invalid,
        Outcome::UpstreamFailed,
        Outcome::Cancelled,
        Outcome::Shed,
        Outcome::Internal,
    ];

    /// One word, as in the API, the database and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::UpstreamFailed => "upstream_failed",
            Self::Cancelled => "cancelled",
            Self::Shed => "shed",
            Self::Internal => "internal",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// The record. Texts that do not apply are empty, numbers 0; in JSON they are left out, and payloads stay the texts that they
/// are, so that what is read back is the same to the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Also the request id that clients see.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant: String,
    /// When the exchange began, to the microsecond.
    pub occurred_at: DateTime<Utc>,
    /// `mcp.<method>`, or `<resource>.<action>`.
    pub action: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<Uuid>,
    /// Who asked, by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub principal_name: String,
    /// The API key used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_key_id: String,
    /// Address of the client.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_ip: String,
    /// What the client calls itself; not to be trusted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_name: String,
    /// MCP revision of the client.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol_version: String,
    /// The server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<Uuid>,
    /// The server, by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server_name: String,
    /// Tool, prompt or URI.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Why it was refused or failed, one stable word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// HTTP status of the answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub http_status: u16,
    /// JSON-RPC error code of the answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rpc_code: i64,
    /// From first byte in to last byte out, microseconds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub duration_us: u64,
    /// Of that, waiting for the server.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upstream_us: u64,
    /// Bytes of the client's message.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_bytes: u64,
    /// Bytes of the answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_bytes: u64,
    /// Captured arguments, JSON.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_payload: String,
    /// Captured result, JSON.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub response_payload: String,
    /// The revision of the configuration that decided.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revision: u64,
    /// The proxy that served it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_id: Option<Uuid>,
    /// What was acted upon.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// Details of an act, JSON, without secrets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Event {
    /// An event of which only the beginning is known.
    pub fn new(id: Uuid, occurred_at: DateTime<Utc>) -> Self {
        Self {
            id,
            tenant: String::new(),
            occurred_at: micros(occurred_at),
            action: String::new(),
            outcome: Outcome::Ok,
            principal_id: None,
            principal_name: String::new(),
            api_key_id: String::new(),
            client_ip: String::new(),
            client_name: String::new(),
            protocol_version: String::new(),
            server_id: None,
            server_name: String::new(),
            target: String::new(),
            rule: String::new(),
            reason: String::new(),
            http_status: 0,
            rpc_code: 0,
            duration_us: 0,
            upstream_us: 0,
            request_bytes: 0,
            response_bytes: 0,
            request_payload: String::new(),
            response_payload: String::new(),
            revision: 0,
            proxy_id: None,
            resource: String::new(),
            detail: String::new(),
        }
    }
}

/// Cuts a time to whole microseconds: the most that Postgres keeps.
pub fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// Makes a text fit for a record: control characters, which could forge lines or colour a terminal, and the
/// bidirectional overrides become U+FFFD; at most `most` bytes.
pub fn clean(text: &str, most: usize) -> String {
    // Almost every name is of this kind.
    if text.len() <= most && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let bad = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut clean = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        let c = if bad(c) { char::REPLACEMENT_CHARACTER } else { c };
        if clean.len() + c.len_utf8() > most {
            break;
        }
        clean.push(c);
    }
    clean
}

/// Field names that are always blanked, compared without case, hyphens and underscores.
const ALWAYS_REDACTED: [&str; 12] = [
    "password",
    "passwd",
    "secret",
    "token",
    "accesstoken",
    "refreshtoken",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "privatekey",
    "clientsecret",
];

/// What stands in place of a redacted value.
pub const REDACTED: &str = "[redacted]";

/// What the audit keeps of a payload. `raw` is one JSON value; one that cannot be read is not kept.
pub fn capture(raw: &[u8], capture: Capture, redact: &[String], most: usize) -> String {
    if capture == Capture::None {
        return String::new();
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(raw) else {
        return String::new();
    };
    if capture == Capture::Metadata {
        shape(&mut value);
    } else {
        blank(&mut value, redact);
    }
    let text = value.to_string();
    if text.len() <= most {
        return text;
    }
    // A cut text is no JSON any more, so it is kept as a JSON string that says so.
    Value::String(format!("{}… [cut from {} bytes]", clean(&text, most), text.len())).to_string()
}

fn blank(value: &mut Value, redact: &[String]) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                let plain: String =
                    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect();
                let named = redact.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
                if named || ALWAYS_REDACTED.contains(&plain.as_str()) {
                    *field = Value::String(REDACTED.into());
                } else {
                    blank(field, redact);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| blank(item, redact)),
        _ => {}
    }
}

fn shape(value: &mut Value) {
    let kind = match value {
        Value::Object(fields) => return fields.values_mut().for_each(shape),
        Value::Array(items) => {
            let count = items.len();
            *value = Value::String(format!("array({count})"));
            return;
        }
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
    };
    *value = Value::String(kind.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_captured_by_default() {
        assert_eq!(capture(br#"{"a":1}"#, Capture::None, &[], 100), "");
    }

    #[test]
    fn metadata_keeps_names_and_types_only() {
        let raw = br#"{"name":"x","n":1,"deep":{"list":[1,2],"none":null}}"#;
        let kept: Value = serde_json::from_str(&capture(raw, Capture::Metadata, &[], 1000)).unwrap();
        assert_eq!(
            kept,
            serde_json::json!({"name":"string","n":"number","deep":{"list":"array(2)","none":"null"}})
        );
    }

    #[test]
    fn secrets_are_blanked_at_any_depth() {
        let raw = br#"{"q":"ok","list":[{"Api-Key":"k1","note":"n1"}],"access_token":{"v":"k2"}}"#;
        let kept = capture(raw, Capture::Full, &["note".into()], 1000);
        for secret in ["k1", "k2", "n1"] {
            assert!(!kept.contains(secret), "{kept}");
        }
        assert!(kept.contains(r#""q":"ok""#));
    }

    #[test]
    fn a_long_payload_is_cut_and_says_so() {
        let raw = format!(r#"{{"text":"{}"}}"#, "x".repeat(1000));
        let kept = capture(raw.as_bytes(), Capture::Full, &[], 100);
        assert!(kept.len() < 200 && kept.contains("cut from"));
        assert!(serde_json::from_str::<Value>(&kept).is_ok());
    }

    #[test]
    fn a_record_cannot_be_forged_by_control_characters() {
        assert_eq!(clean("a\nb\u{1b}[31m\u{202e}c", 100), "a\u{fffd}b\u{fffd}[31m\u{fffd}c");
        assert_eq!(clean("äää", 5), "ää");
    }
}
