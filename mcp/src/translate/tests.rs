use serde_json::{Value, json};

use super::*;
use crate::jsonrpc::Limits;

pub(super) fn message(value: &Value) -> Message {
    parse(&value.to_string())
}

pub(super) fn parse(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes()), &Limits::default()).unwrap()
}

pub(super) fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(bytes)))
}

#[test]
fn an_object_loses_only_what_is_named() {
    assert_eq!(without(br#"{"a":1,"b": {"a":2}}"#, &["a"]), r#"{"b": {"a":2}}"#);
    assert_eq!(without(br#"{"a":1}"#, &["a"]), "{}");
    assert_eq!(without(b"[1]", &["a"]), "{}");
}

#[test]
fn a_message_of_our_own_says_nothing_in_vain() {
    assert_eq!(super::message(None, "m", b"{}"), r#"{"jsonrpc":"2.0","method":"m"}"#);
    let whole = super::message(Some(&Id::number(1)), "m", br#"{"a":1}"#);
    assert_eq!(value(&whole), json!({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"a": 1}}));
}
