use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(text: &str) -> Result<Message, ParseError> {
    Message::parse(Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
}

#[test]
fn a_request_keeps_its_source_bytes() {
    let text = r#" {"id" : 7,"params":{ "name":"x", "arguments":{"n":1.50}},"jsonrpc":"2.0","method":"tools\/call"} "#;
    let message = parse(text).unwrap();
    assert_eq!(message.kind(), Kind::Request);
    assert_eq!(message.id(), Some(&Id::number(7)));
    assert_eq!(message.method(), Some("tools/call"));
    assert_eq!(message.params().unwrap(), r#"{ "name":"x", "arguments":{"n":1.50}}"#);
    assert_eq!(message.rewrite(), text);
    let odd = format!("{},\"jsonRPC2\":[]}} ", text.trim_end().trim_end_matches('}'));
    assert_eq!(
        parse(&odd).unwrap().rewrite(),
        r#"{"jsonrpc":"2.0","id":7,"method":"tools\/call","params":{ "name":"x", "arguments":{"n":1.50}}}"#,
        "what nobody knows is not passed on"
    );
}

#[test]
fn every_kind_is_told_by_its_members() {
    for (text, kind) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, Kind::Request),
        (r#"{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}"#, Kind::Notification),
        (r#"{"jsonrpc":"2.0","id":"a","result":{}}"#, Kind::Response),
        (r#"{"jsonrpc":"2.0","id":"a","error":{"code":-1,"message":"m"}}"#, Kind::Error),
        (r#"{"jsonrpc":"2.0","error":{"code":-1,"message":"m"}}"#, Kind::Error),
        (r#"{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"m"}}"#, Kind::Error),
    ] {
        let message = parse(text).unwrap();
        assert_eq!(message.kind(), kind, "{text}");
        assert_eq!(parse(std::str::from_utf8(&message.rewrite()).unwrap()).unwrap().kind(), kind, "{text}");
    }
}

#[test]
fn what_is_not_one_message_is_refused_by_name() {
    for (text, reason, code) in [
        ("", "invalid_json", -32700),
        ("{", "invalid_json", -32700),
        ("\u{feff}{}", "byte_order_mark", -32700),
        ("{}x", "trailing_data", -32700),
        ("3", "not_an_object", -32600),
        (r#""x""#, "not_an_object", -32600),
        ("[]", "batch", -32600),
        ("{}", "bad_jsonrpc", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, "bad_jsonrpc", -32600),
        (r#"{"jsonrpc":2.0,"id":1,"method":"m"}"#, "bad_jsonrpc", -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, "not_a_message", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","result":{}}"#, "not_a_message", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"error":{},"result":{}}"#, "not_a_message", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "bad_method", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[]}"#, "bad_params", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":null}"#, "bad_params", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"error":"x"}"#, "bad_error", -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","id":null,"result":{}}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","id":1.0,"method":"m"}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","id":1e2,"method":"m"}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","result":{}}"#, "bad_id", -32600),
        (r#"{"jsonrpc":"2.0","Id":1,"method":"m"}"#, "case_folded_key", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"METHOD":"m"}"#, "case_folded_key", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"param\u{17f}\":{}}", "case_folded_key", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"\u004eame":"x"}}"#, "case_folded_key", -32600),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{\"tas\u{212a}Id\":\"x\"}}",
            "case_folded_key",
            -32600,
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","m\u0065thod":"n"}"#, "duplicate_key", -32600),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"arguments":{"a":{"b":1,"b":1}}}}"#,
            "duplicate_key",
            -32600,
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!((error.reason(), error.code()), (reason, code), "{text}");
    }
}

#[test]
fn an_error_carries_the_id_unless_there_were_two() {
    let id = |text: &str| parse(text).unwrap_err().id().map(|id| id.as_json().to_string());
    assert_eq!(id(r#"{"jsonrpc":"2.0","id":"\u0061","method":7}"#).as_deref(), Some(r#""\u0061""#));
    assert_eq!(id(r#"{"id":3,"method":"m","params":{"a":1,"a":2}}"#).as_deref(), Some("3"));
    assert_eq!(id(r#"{"id":3,"method":"m","#).as_deref(), Some("3"));
    assert_eq!(id(r#"{"id":3,"id":4,"method":"m"}"#), None);
    assert_eq!(id(r#"{"id":3,"i\u0064":4,"method":"m"}"#), None);
    assert_eq!(id(r#"{"id":null,"method":"m"}"#), None);
}

#[test]
fn ids_keep_their_text_and_compare_by_meaning() {
    let big = "123456789012345678901234567890";
    let message = parse(&format!(r#"{{"jsonrpc":"2.0","id":{big},"method":"m"}}"#)).unwrap();
    assert_eq!(message.id().unwrap().as_json(), big);
    let message = parse(r#"{"jsonrpc":"2.0","id":"\u0061\"","method":"m"}"#).unwrap();
    assert_eq!(message.id().unwrap().as_json(), r#""\u0061\"""#);
    assert_eq!(message.id().unwrap(), &Id::string("a\""));
    assert_ne!(Id::number(1), Id::string("1"));
    assert_eq!(Id::from_json(b"12"), Some(Id::number(12)));
    for bad in ["null", "1.5", "{}", "", "1 2", "true"] {
        assert_eq!(Id::from_json(bad.as_bytes()), None, "{bad}");
    }
    let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"m"}}"#, "x".repeat(2000));
    assert_eq!(parse(&long).unwrap_err().reason(), "bad_id");
}

#[test]
fn a_rewrite_changes_only_what_it_was_told() {
    let message = parse(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","extra":1,"params":{"_meta":{"name":"m"},"name":"a__b" ,"arguments":{"name":"a__b"}}}"#,
    )
    .unwrap();
    assert_eq!(
        message.rewrite_with(Some(&Id::string("g")), &[(Slot::Name, "b\""), (Slot::Uri, "none")]),
        r#"{"jsonrpc":"2.0","id":"g","method":"tools/call","params":{"_meta":{"name":"m"},"name":"b\"" ,"arguments":{"name":"a__b"}}}"#
    );
    let response = parse(r#"{"jsonrpc":"2.0","id":9,"result":{"nextCursor":"c","tools":[ ]}}"#).unwrap();
    assert_eq!(
        response.rewrite_with(Some(&Id::number(4)), &[(Slot::ResultNextCursor, "sealed")]),
        r#"{"jsonrpc":"2.0","id":4,"result":{"nextCursor":"sealed","tools":[ ]}}"#
    );
    let notification = parse(r#"{"jsonrpc":"2.0","method":"m"}"#).unwrap();
    assert_eq!(notification.rewrite_id(&Id::number(4)), r#"{"jsonrpc":"2.0","method":"m"}"#);
}

#[test]
fn responses_are_written_without_a_null_id() {
    assert_eq!(
        error_response(None, code::PARSE_ERROR, "no \"JSON\"", None),
        r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"no \"JSON\""}}"#
    );
    let data = json!({"supported": ["2026-07-28"]});
    assert_eq!(
        error_response(Some(&Id::string("a")), code::UNSUPPORTED_PROTOCOL_VERSION, "m", Some(&data)),
        r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32022,"message":"m","data":{"supported":["2026-07-28"]}}}"#
    );
    assert_eq!(result_response(&Id::number(3), b"{}"), r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
}

#[test]
fn the_code_of_an_error_is_read() {
    let message =
        parse(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"m","data":{"a":1}}}"#).unwrap();
    assert_eq!(message.error_code(), Some(code::UNSUPPORTED_PROTOCOL_VERSION));
    assert_eq!(message.text(Slot::ErrorMessage).as_deref(), Some("m"));
    assert_eq!(message.raw(Slot::ErrorData).unwrap(), r#"{"a":1}"#);
}

#[test]
fn a_batch_is_split_and_each_item_judged_alone() {
    let text = Bytes::from_static(
        br#" [{"jsonrpc":"2.0","id":1,"method":"ping"}, 3,{"jsonrpc":"2.0","method":"n"}]"#,
    );
    let items = parse_batch(&text, &Limits::default(), 3).unwrap();
    let kinds: Vec<_> = items.into_iter().map(|item| item.map(|item| item.kind()).ok()).collect();
    assert_eq!(kinds, [Some(Kind::Request), None, Some(Kind::Notification)]);
    assert_eq!(parse_batch(&text, &Limits::default(), 2).unwrap_err().reason(), "batch_size");
    let reason = |text: &'static [u8]| {
        parse_batch(&Bytes::from_static(text), &Limits::default(), 3).unwrap_err().reason()
    };
    assert_eq!(reason(b"[]"), "batch_size");
    assert_eq!(reason(b"[{}"), "invalid_json");
    assert_eq!(reason(b"{}"), "invalid_json");
}

fn documents() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "jsonrpc",
        "id",
        "method",
        "params",
        "result",
        "error",
        "Method",
        "extra",
        "m\\u0065thod",
    ]);
    let value = prop::sample::select(vec![
        r#""2.0""#,
        r#""2.0""#,
        "1",
        "-7",
        "1.5",
        "null",
        r#""x""#,
        r#""\u0078""#,
        "{}",
        r#"{"name":"n"}"#,
        "[1]",
        r#"{"code":1,"message":"m"}"#,
        r#"{"a":1,"a":2}"#,
    ]);
    let field = (key, value).prop_map(|(key, value)| format!("\"{key}\":{value}"));
    let base = prop::sample::select(vec![
        vec![],
        vec![r#""jsonrpc":"2.0""#, r#""method":"m""#],
        vec![r#""jsonrpc":"2.0""#, r#""id":1"#],
    ]);
    (base, prop::collection::vec(field, 0..4)).prop_map(|(base, more)| {
        let fields: Vec<_> = base.into_iter().map(str::to_string).chain(more).collect();
        format!("{{{}}}", fields.join(","))
    })
}

proptest! {
    #[test]
    fn an_accepted_document_reads_the_same_in_serde_json(text in documents()) {
        if let Ok(message) = parse(&text) {
            for written in [Bytes::from(text), message.rewrite()] {
                let value: serde_json::Value = serde_json::from_slice(&written).unwrap();
                let same = |key: &str, raw: Option<Bytes>| {
                    value.get(key).cloned()
                        == raw.map(|raw| serde_json::from_slice::<serde_json::Value>(&raw).unwrap())
                };
                prop_assert_eq!(value.get("method").and_then(|method| method.as_str()), message.method());
                prop_assert!(same("params", message.params()));
                prop_assert!(same("result", message.result()));
                prop_assert!(same("error", message.error()));
                if let Some(id) = message.id() {
                    let id: serde_json::Value = serde_json::from_str(id.as_json()).unwrap();
                    prop_assert_eq!(value.get("id"), Some(&id));
                }
            }
        }
    }

    #[test]
    fn parse_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(Message::parse(bytes.clone().into(), &Limits::default()));
        drop(parse_batch(&bytes.into(), &Limits::default(), 4));
    }

    #[test]
    fn parse_never_panics_on_damaged_documents(text in documents(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = Message::parse(bytes.into(), &Limits::default()) {
            drop(crate::head(&message));
        }
    }
}
