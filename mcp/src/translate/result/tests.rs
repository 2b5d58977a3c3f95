use serde_json::{Value, json};

use super::*;
use crate::translate::tests::value;

fn stateless(method: Method, result: &Value, info: Option<&Value>) -> Value {
    let info = info.map(Value::to_string);
    let info = info.as_ref().map(String::as_bytes);
    value(&for_stateless(&method, &Bytes::from(result.to_string()), info).unwrap())
}

fn session(method: Method, result: &Value, revision: Revision) -> Value {
    value(&for_session(&method, &Bytes::from(result.to_string()), revision).unwrap())
}

#[test]
fn a_stateless_result_says_what_it_is_and_how_long_it_is_good() {
    use Method::{ResourcesRead, ToolsCall, ToolsList};
    for (method, result, want) in [
        (ToolsCall, json!({}), json!({"resultType": "complete"})),
        (ToolsCall, json!({"ttlMs": 1}), json!({"ttlMs": 1, "resultType": "complete"})),
        (
            ToolsList,
            json!({"tools": []}),
            json!({"tools": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}),
        ),
        (
            ResourcesRead,
            json!({"contents": [], "resultType": "complete", "ttlMs": 5, "cacheScope": "public"}),
            json!({"contents": [], "resultType": "complete", "ttlMs": 5, "cacheScope": "public"}),
        ),
        // Interim results carry no hints.
        (
            ResourcesRead,
            json!({"resultType": "input_required", "requestState": "s"}),
            json!({"resultType": "input_required", "requestState": "s"}),
        ),
    ] {
        assert_eq!(stateless(method, &result, None), want, "{result}");
    }
}

#[test]
fn a_stateless_result_names_its_server_unless_it_does() {
    let info = json!({"name": "s", "version": "1"});
    for (result, meta) in [
        (json!({}), json!({SERVER_INFO: info})),
        (json!({"_meta": {}}), json!({SERVER_INFO: info})),
        (json!({"_meta": {"a": 1}}), json!({"a": 1, SERVER_INFO: info})),
        (json!({"_meta": {SERVER_INFO: {"name": "own"}}}), json!({SERVER_INFO: {"name": "own"}})),
        (json!({"_meta": 5}), json!(5)),
    ] {
        assert_eq!(stateless(Method::ToolsCall, &result, Some(&info))["_meta"], meta, "{result}");
    }
    for odd in ["[]", "null", "1", "{\"a\":1,\"a\":2}"] {
        assert!(
            for_stateless(&Method::ToolsCall, &Bytes::from_static(odd.as_bytes()), None).is_err(),
            "{odd}"
        );
    }
}

#[test]
fn what_need_not_change_is_not_copied() {
    let result = Bytes::from_static(
        br#"{"content":[{"type":"text","text":"a\u00e9"}], "structuredContent":{"n":1.0}}"#,
    );
    let passed = for_session(&Method::ToolsCall, &result, Revision::V2025_11_25).unwrap();
    assert_eq!((passed.as_ptr(), passed.len()), (result.as_ptr(), result.len()));
    let complete = Bytes::from_static(br#"{"resultType":"complete"}"#);
    assert_eq!(for_stateless(&Method::ToolsCall, &complete, None).unwrap().as_ptr(), complete.as_ptr());
}

#[test]
fn a_session_result_loses_what_only_the_stateless_revision_knows() {
    let result = json!({"resultType": "complete", "tools": [], "ttlMs": 5, "cacheScope": "public", "x": 1});
    assert_eq!(session(Method::ToolsList, &result, Revision::V2025_11_25), json!({"tools": [], "x": 1}));
    // Where no hints are meant, the fields are somebody's own.
    let result = json!({"resultType": "complete", "content": [], "ttlMs": 5});
    assert_eq!(
        session(Method::ToolsCall, &result, Revision::V2025_11_25),
        json!({"content": [], "ttlMs": 5})
    );
    let odd = Bytes::from_static(b"null");
    assert_eq!(for_session(&Method::Ping, &odd, Revision::V2025_11_25).unwrap(), odd);
}

#[test]
fn content_of_later_revisions_becomes_text() {
    let link = json!({"uri": "file:///a", "name": "A", "type": "resource_link"});
    let audio = json!({"type": "audio", "data": "AA==", "mimeType": "audio/wav"});
    let embedded = json!({"type": "resource", "resource": {"uri": "x:y", "text": "t"}});
    let text = json!({"type": "text", "text": "A: file:///a"});
    let note = json!({"type": "text", "text": "[audio, which this client cannot take]"});
    for (revision, want) in [
        (Revision::V2024_11_05, [&text, &note, &embedded]),
        (Revision::V2025_03_26, [&text, &audio, &embedded]),
        (Revision::V2025_06_18, [&link, &audio, &embedded]),
        (Revision::V2025_11_25, [&link, &audio, &embedded]),
    ] {
        let result = json!({"content": [link, audio, embedded, 7]});
        let want_all = json!({"content": [want[0], want[1], want[2], 7]});
        assert_eq!(session(Method::ToolsCall, &result, revision), want_all, "{revision}");
        let prompt = |block: &Value| json!({"messages": [{"role": "user", "content": block}]});
        assert_eq!(session(Method::PromptsGet, &prompt(&link), revision), prompt(want[0]), "{revision}");
        assert_eq!(
            session(Method::PromptsGet, &prompt(&json!([audio])), revision),
            prompt(&json!([want[1]]))
        );
    }
}

#[test]
fn structured_content_becomes_an_object() {
    for (given, want) in [
        (json!({"a": 1}), json!({"a": 1})),
        (json!([1, 2]), json!({"result": [1, 2]})),
        (json!("x"), json!({"result": "x"})),
        (json!(null), json!({"result": null})),
    ] {
        let result = json!({"content": [], "structuredContent": given});
        let want = json!({"content": [], "structuredContent": want});
        assert_eq!(session(Method::ToolsCall, &result, Revision::V2025_06_18), want);
        assert_eq!(session(Method::ResourcesRead, &result, Revision::V2025_06_18), result);
    }
}

fn schema(given: &Value) -> Option<Value> {
    let result = json!({"tools": [{"name": "t", "outputSchema": given, "inputSchema": {"$ref": "#"}}]});
    let sent = session(Method::ToolsList, &result, Revision::V2025_11_25);
    assert_eq!(sent["tools"][0]["inputSchema"], json!({"$ref": "#"}));
    sent["tools"][0].get("outputSchema").cloned()
}

#[test]
fn output_schemas_are_of_objects() {
    let wrapped = |schema: Value| {
        Some(json!({"type": "object", "properties": {"result": schema}, "required": ["result"]}))
    };
    for same in [json!({"type": "object"}), json!({"properties": {"a": {"$ref": "#"}}, "type": "object"})] {
        assert_eq!(schema(&same), Some(same));
    }
    for kind in ["array", "string", "number", "integer", "boolean", "null"] {
        assert_eq!(schema(&json!({"type": kind})), wrapped(json!({"type": kind})));
    }
    // These do not tell whether values are wrapped.
    for either in [json!({}), json!({"anyOf": []}), json!({"type": ["object", "null"]}), json!(true)] {
        assert_eq!(schema(&either), None, "{either}");
    }
}

#[test]
fn references_in_a_wrapped_schema_lead_to_its_new_place() {
    let given = json!({
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#"}, {"$ref": "#anchor"}, {"$ref": "http://h/#/x"}]},
        "$defs": {
            "a": {"type": "object", "properties": {"$ref": {"$dynamicRef": "#/$defs/a"}, "default": {"$ref": "#"}}},
            "based": {"items": {"$ref": "#/x"}, "$id": "urn:b"},
            "anchored": {"$id": "#c", "items": {"$ref": "#/x"}},
        },
        "default": [{"$ref": "#"}],
    });
    let sent = schema(&given).unwrap()["properties"]["result"].clone();
    let at = |pointer: &str| sent.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    assert_eq!(at("/items/anyOf/0/$ref"), "#/properties/result/$defs/a");
    assert_eq!(at("/items/anyOf/1/$ref"), "#/properties/result");
    assert_eq!(at("/items/anyOf/2/$ref"), "#anchor");
    assert_eq!(at("/items/anyOf/3/$ref"), "http://h/#/x");
    assert_eq!(at("/$defs/a/properties/$ref/$dynamicRef"), "#/properties/result/$defs/a");
    assert_eq!(at("/$defs/a/properties/default/$ref"), "#/properties/result");
    assert_eq!(at("/$defs/based/items/$ref"), "#/x", "it has a base of its own");
    assert_eq!(at("/$defs/anchored/items/$ref"), "#/properties/result/x");
    assert_eq!(at("/default/0/$ref"), "#", "data");
    let based = json!({"type": "array", "items": {"$ref": "#/x"}, "$id": "urn:a"});
    assert_eq!(schema(&based).unwrap()["properties"]["result"], based);
}

#[test]
fn codes_of_errors_are_those_of_the_revision() {
    let error = |code: i64| Bytes::from(format!(r#"{{"data":{{"code":1}}, "code":{code},"message":"m"}}"#));
    for (code, want) in [(-32002, -32602), (-32042, -32603), (-32601, -32601), (0, 0), (-32021, -32021)] {
        assert_eq!(error_for_stateless(&error(code)), error(want));
        assert_eq!(error_for_session(&error(code), Revision::V2025_06_18), error(code));
    }
    let odd = Bytes::from_static(br#"{"code":"x"}"#);
    assert_eq!(error_for_stateless(&odd), odd);
}

#[test]
fn urls_to_visit_are_asked_for_as_input() {
    let error = |elicitations: Value| {
        json!({"code": -32042, "message": "m", "data": {"elicitations": elicitations}}).to_string()
    };
    let asked = url_elicitations(
        error(json!([
            {"mode": "url", "elicitationId": "e", "url": "https://a", "message": "go"},
            {"elicitationId": "f", "url": "https://b", "message": "go", "x": 1},
            {"mode": "form"},
        ]))
        .as_bytes(),
    );
    // One that is no URL makes the whole unusable.
    assert_eq!(asked, None);
    let asked = url_elicitations(
        error(json!([
            {"mode": "url", "elicitationId": "e", "url": "https://a", "message": "go"},
            {"elicitationId": "f", "url": "https://b", "message": "go", "x": 1},
        ]))
        .as_bytes(),
    )
    .unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0].key.as_str(), asked[0].method.as_str()), ("elicitation-1", "elicitation/create"));
    assert_eq!(value(&asked[0].params), json!({"mode": "url", "url": "https://a", "message": "go"}));
    assert_eq!(value(&asked[1].params), json!({"mode": "url", "url": "https://b", "message": "go", "x": 1}));
    for none in [error(json!([])), error(json!({})), json!({"code": -32042}).to_string(), "{}".into()] {
        assert_eq!(url_elicitations(none.as_bytes()), None, "{none}");
    }
    let other = json!({"code": -1, "data": {"elicitations": [{"url": "x"}]}}).to_string();
    assert_eq!(url_elicitations(other.as_bytes()), None);
}
