//! What the strict parser accepts has one reading, the one that a slow reader finds too; what it refuses as no JSON or as
//! ambiguous, the slow reader refuses as well.

use bytes::Bytes;
use serde_json::Value;
use waffles_mcp::jsonrpc::{Fault, parse_batch};
use waffles_mcp::{Id, Kind, Limits, Message, head};

use super::slow;

pub fn check(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let slow = slow::read(data);
    match Message::parse(bytes.clone(), &Limits::default()) {
        Ok(message) => agree(&message, &slow.clone().expect("an accepted text has one reading")),
        Err(error) => {
            let unreadable = matches!(
                error.fault,
                Fault::InvalidUtf8
                    | Fault::InvalidJson
                    | Fault::TrailingData
                    | Fault::LoneSurrogate
                    | Fault::NumberOutOfRange
                    | Fault::DuplicateKey
                    | Fault::ByteOrderMark
            );
            assert!(!unreadable || slow.is_none(), "{} was refused with {}", show(data), error.fault);
        }
    }
    if let Ok(items) = parse_batch(&bytes, &Limits::default(), 16) {
        let values = slow.as_ref().and_then(Value::as_array).expect("a batch is an array");
        assert_eq!(items.len(), values.len());
        for (item, value) in items.iter().zip(values) {
            if let Ok(message) = item {
                agree(message, value);
            }
        }
    }
}

fn agree(message: &Message, value: &Value) {
    let kind = match (value.get("method"), value.get("id"), value.get("result"), value.get("error")) {
        (Some(Value::String(_)), Some(_), None, None) => Kind::Request,
        (Some(Value::String(_)), None, None, None) => Kind::Notification,
        (None, Some(_), Some(_), None) => Kind::Response,
        (None, _, None, Some(Value::Object(_))) => Kind::Error,
        _ => panic!("{value} is no message"),
    };
    assert_eq!(message.kind(), kind);
    assert_eq!(value["jsonrpc"], "2.0");
    assert_eq!(message.method(), value.get("method").and_then(Value::as_str));
    match (message.id(), value.get("id")) {
        (None, None | Some(Value::Null)) => {}
        (Some(Id::String(_)), Some(Value::String(text))) => {
            assert_eq!(message.id().map(Id::text).as_deref(), Some(text.as_str()));
        }
        (Some(Id::Number(text)), Some(Value::Number(number))) => {
            // Larger ones are kept as they were written, and have no type to compare in.
            if number.is_i64() || number.is_u64() {
                assert_eq!(**text, number.to_string());
            }
        }
        (ours, theirs) => panic!("the id {ours:?} is {theirs:?}"),
    }
    let parts = [("params", message.params()), ("result", message.result()), ("error", message.error())];
    for (key, raw) in &parts {
        let read =
            raw.as_ref().map(|raw| slow::read(raw).expect("a part of an accepted text has one reading"));
        assert_eq!(read.as_ref(), value.get(key), "{key}");
    }
    // A rewritten message is the same message.
    let rewritten = message.rewrite();
    let again = Message::parse(rewritten.clone(), &Limits::default()).expect("a rewritten message is one");
    assert_eq!((again.kind(), again.id(), again.method()), (message.kind(), message.id(), message.method()));
    assert_eq!([again.params(), again.result(), again.error()], parts.map(|(_, raw)| raw));
    assert_eq!(again.rewrite(), rewritten);
    if let Ok(head) = head(message) {
        assert_eq!(Some(head.method.as_str()), message.method());
        let params = value.get("params").cloned().unwrap_or_default();
        for (ours, key) in [(&head.name, "name"), (&head.name, "uri"), (&head.cursor, "cursor")] {
            if let (Some(ours), Some(theirs)) = (ours, params.get(key).and_then(Value::as_str)) {
                let subject = head.method.subject().map(|slot| format!("{slot:?}").to_lowercase());
                if key == "cursor" || subject.as_deref() == Some(key) {
                    assert_eq!(ours, theirs, "{key}");
                }
            }
        }
    }
}

fn show(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}
