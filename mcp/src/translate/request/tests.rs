use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::translate::tests::{message, parse, value};

fn client() -> Client {
    Client {
        capabilities: Bytes::from_static(br#"{"roots": {}}"#),
        info: Some(Bytes::from_static(br#"{"name":"c", "version":"1"}"#)),
    }
}

fn envelope() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"roots": {}},
        "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
    })
}

fn with(mut meta: Value, more: &Value) -> Value {
    meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    meta
}

#[test]
fn a_stateless_request_says_who_asks() {
    let id = Id::number(7);
    for (params, want) in [
        (None, json!({"_meta": envelope()})),
        (Some(json!({})), json!({"_meta": envelope()})),
        (Some(json!({"cursor": "x"})), json!({"cursor": "x", "_meta": envelope()})),
        (Some(json!({"_meta": {}})), json!({"_meta": envelope()})),
        (Some(json!({"_meta": null})), json!({"_meta": envelope()})),
        (
            Some(json!({"_meta": {"traceparent": "t", "x.y/z": [1]}})),
            json!({"_meta": with(envelope(), &json!({"traceparent": "t", "x.y/z": [1]}))}),
        ),
    ] {
        let mut request = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/list"});
        if let Some(params) = &params {
            request["params"] = params.clone();
        }
        let sent = to_stateless(&message(&request), Some(&id), &client(), &Extra::default());
        let want = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": want});
        assert_eq!(value(&sent), want, "{params:?}");
    }
}

#[test]
fn what_another_client_claimed_is_replaced() {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "x", "inputResponses": {"old": {}}, "requestState": "old",
        "_meta": with(envelope(), &json!({
            "io.modelcontextprotocol/protocolVersion": "1999-01-01",
            "io.modelcontextprotocol/logLevel": "debug", "progressToken": "theirs",
        })),
    }});
    let anonymous = Client { info: None, ..client() };
    let extra = Extra { progress_token: Some("5"), ..Extra::default() };
    let sent = value(&to_stateless(&message(&request), None, &anonymous, &extra));
    assert_eq!(
        sent["params"],
        json!({"name": "x", "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {"roots": {}}, "progressToken": 5,
        }})
    );
    let extra = Extra {
        log_level: Some("error"),
        input_responses: Some(br#"{"k":{"a":1.0}}"#),
        request_state: Some("st\"ate"),
        ..Extra::default()
    };
    let sent = value(&to_stateless(&message(&request), None, &client(), &extra));
    assert_eq!(sent["params"]["inputResponses"], json!({"k": {"a": 1.0}}));
    assert_eq!(sent["params"]["requestState"], "st\"ate");
    assert_eq!(sent["params"]["_meta"]["io.modelcontextprotocol/logLevel"], "error");
    assert_eq!(sent["params"]["_meta"]["progressToken"], "theirs");
}

#[test]
fn a_session_request_says_nothing_of_the_client() {
    let stateless = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "x", "inputResponses": {}, "requestState": "s",
        "_meta": with(envelope(), &json!({"io.modelcontextprotocol/logLevel": "debug", "traceparent": "t"})),
    }});
    let sent = to_session(&message(&stateless), Some(&Id::string("é")), &Extra::default());
    assert_eq!(
        value(&sent),
        json!({"jsonrpc": "2.0", "id": "é", "method": "tools/call",
            "params": {"name": "x", "_meta": {"traceparent": "t"}}})
    );
    let bare = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": envelope()}});
    assert_eq!(value(&to_session(&message(&bare), None, &Extra::default()))["params"], json!({}));
    let none = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(value(&to_session(&message(&none), None, &Extra::default())), none);
}

#[test]
fn other_methods_keep_fields_of_the_same_name() {
    let vendor = json!({"jsonrpc": "2.0", "id": 1, "method": "acme/do", "params": {
        "inputResponses": 1, "requestState": [2], "_meta": {"m": 1},
    }});
    assert_eq!(value(&to_session(&message(&vendor), None, &Extra::default())), vendor);
    let sent = value(&to_stateless(&message(&vendor), None, &client(), &Extra::default()));
    assert_eq!(sent["params"]["inputResponses"], 1);
    assert_eq!(sent["params"]["requestState"], json!([2]));
}

#[test]
fn names_change_where_they_stand() {
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"completion\/complete","params":{"argument":{"name":"n","value":1.50},
        "ref":{"type":"ref/prompt","name":"s__p"},"_meta":{ "progressToken" : "t" , "a":1}}}"#;
    let extra = Extra {
        edits: &[(Slot::RefName, "p\"q"), (Slot::Name, "not there")],
        progress_token: Some("\"u\""),
        ..Extra::default()
    };
    let sent = to_session(&parse(text), None, &extra);
    assert_eq!(
        std::str::from_utf8(&sent).unwrap(),
        r#"{"jsonrpc":"2.0","id":1,"method":"completion\/complete","params":{"argument":{"name":"n","value":1.50},
        "ref":{"type":"ref/prompt","name":"p\"q"},"_meta":{ "progressToken" : "u" , "a":1}}}"#
    );
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": "c", "x": 1}});
    let extra = Extra { drop_cursor: true, ..Extra::default() };
    assert_eq!(value(&to_session(&message(&list), None, &extra))["params"], json!({"x": 1}));
}

proptest! {
    #[test]
    fn there_and_back_leaves_what_the_gateway_does_not_know(
        own in prop::collection::btree_map("[a-z.]{1,6}/[a-z]{1,3}", -9i64..9, 0..4),
        known in prop::collection::vec(any::<bool>(), 4),
        arguments in prop::collection::btree_map("[a-z_]{1,4}", "[ -~]{0,8}", 0..4),
        trace in any::<bool>(),
    ) {
        let mut meta = json!(own);
        for ((key, value), there) in [
            ("io.modelcontextprotocol/protocolVersion", json!("2025-06-18")),
            ("io.modelcontextprotocol/clientCapabilities", json!({"sampling": {}})),
            ("io.modelcontextprotocol/clientInfo", json!({"name": "x"})),
            ("io.modelcontextprotocol/logLevel", json!("info")),
        ].into_iter().zip(&known) {
            if *there {
                meta[key] = value;
            }
        }
        let mut want = json!(own);
        if trace {
            meta["traceparent"] = json!("00-x");
            want["traceparent"] = json!("00-x");
        }
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "n", "arguments": arguments, "_meta": meta}});
        let sent = to_stateless(&message(&request), None, &client(), &Extra::default());
        let params = value(&sent)["params"].clone();
        prop_assert_eq!(&params["_meta"], &with(envelope(), &want));
        let sent = to_session(&parse(std::str::from_utf8(&sent).unwrap()), None, &Extra::default());
        let back = value(&sent)["params"].clone();
        prop_assert_eq!(&back["arguments"], &json!(arguments));
        if want == json!({}) {
            prop_assert!(back.get("_meta").is_none());
        } else {
            prop_assert_eq!(&back["_meta"], &want);
        }
    }
}
