use serde_json::{Value, json};

use super::*;
use crate::translate::tests::{message, value};

fn request(method: &str, params: &Value) -> InputRequest {
    InputRequest { key: "k".into(), method: method.into(), params: params.to_string().into() }
}

#[test]
fn a_result_that_asks_is_read_and_written() {
    let result = json!({"resultType": "input_required", "requestState": "s\"", "inputRequests": {
        "b": {"method": "elicitation/create", "params": {"message": "m"}},
        "a\"": {"method": "roots/list"},
    }});
    let read = read_input_required(result.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!(read.state.as_deref(), Some("s\""));
    assert_eq!(value(&input_required(&read.requests, read.state.as_deref())), result);
    let only_state = json!({"resultType": "input_required", "requestState": "s"});
    let read = read_input_required(only_state.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!(value(&input_required(&read.requests, read.state.as_deref())), only_state);
}

#[test]
fn other_results_ask_for_nothing() {
    for other in [
        json!({}),
        json!({"resultType": "complete", "inputRequests": {}}),
        json!({"resultType": 1}),
        json!([]),
    ] {
        assert_eq!(read_input_required(other.to_string().as_bytes()).unwrap(), None, "{other}");
    }
    for broken in [
        json!({}),
        json!({"inputRequests": {}}),
        json!({"inputRequests": []}),
        json!({"inputRequests": {"a": {}}}),
        json!({"inputRequests": {"a": "roots/list"}}),
        json!({"inputRequests": {"a": {"method": "roots/list", "params": []}}}),
        json!({"requestState": 1}),
    ] {
        let mut result = broken.clone();
        result["resultType"] = json!("input_required");
        assert!(read_input_required(result.to_string().as_bytes()).is_err(), "{broken}");
    }
}

fn asked(request: &InputRequest, revision: Revision) -> Value {
    let sent = value(&server_request(&Id::string("q"), request, revision, "e-1"));
    assert_eq!(
        (&sent["jsonrpc"], &sent["id"], &sent["method"]),
        (&json!("2.0"), &json!("q"), &json!(request.method))
    );
    sent.get("params").cloned().unwrap_or(Value::Null)
}

#[test]
fn a_question_is_put_in_the_words_of_the_revision() {
    let form = request("elicitation/create", &json!({"mode": "form", "message": "m", "requestedSchema": {}}));
    let url = request("elicitation/create", &json!({"mode": "url", "message": "m", "url": "https://a"}));
    assert_eq!(asked(&form, Revision::V2025_11_25)["mode"], "form");
    assert_eq!(asked(&form, Revision::V2025_06_18), json!({"message": "m", "requestedSchema": {}}));
    assert_eq!(asked(&url, Revision::V2025_11_25)["elicitationId"], "e-1");
    let named = request("elicitation/create", &json!({"mode": "url", "url": "u", "elicitationId": "own"}));
    assert_eq!(asked(&named, Revision::V2025_11_25)["elicitationId"], "own");
    assert_eq!(asked(&request("roots/list", &json!({})), Revision::V2025_11_25), Value::Null);
}

#[test]
fn a_list_of_one_block_is_that_block_for_older_clients() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let sampling = request(
        "sampling/createMessage",
        &json!({"maxTokens": 1, "messages": [
            {"role": "user", "content": [text("a")]},
            {"role": "user", "content": text("b")},
            {"role": "user", "content": [text("c"), text("d")]},
        ]}),
    );
    let content = |revision| {
        let params = asked(&sampling, revision);
        let messages = params["messages"].as_array().unwrap();
        messages.iter().map(|message| message["content"].clone()).collect::<Vec<_>>()
    };
    let rest = [text("b"), json!([text("c"), text("d")])];
    assert_eq!(content(Revision::V2025_06_18), [text("a"), rest[0].clone(), rest[1].clone()]);
    assert_eq!(content(Revision::V2025_11_25), [json!([text("a")]), rest[0].clone(), rest[1].clone()]);
}

#[test]
fn a_question_loses_what_ties_it_to_a_session() {
    let ask = |method: &str, params: Option<Value>| {
        let mut text = json!({"jsonrpc": "2.0", "id": 0, "method": method});
        if let Some(params) = params {
            text["params"] = params;
        }
        from_server_request("k", &message(&text))
    };
    for (given, want) in [
        (None, json!({})),
        (Some(json!({"_meta": {"progressToken": 1}})), json!({})),
        (
            Some(json!({"message": "m", "mode": "url", "elicitationId": "e", "task": {"ttl": 1}})),
            json!({"message": "m", "mode": "url"}),
        ),
        (
            Some(json!({"_meta": {"progressToken": 1, "io.modelcontextprotocol/related-task": {}, "a": 1}})),
            json!({"_meta": {"a": 1}}),
        ),
    ] {
        let asked = ask("elicitation/create", given).unwrap();
        assert_eq!((asked.key.as_str(), asked.method.as_str()), ("k", "elicitation/create"));
        assert_eq!(value(&asked.params), want);
    }
    assert!(ask("roots/list", None).is_some() && ask("sampling/createMessage", None).is_some());
    for other in ["ping", "tools/call", "acme/ask"] {
        assert_eq!(ask(other, None), None, "{other}");
    }
    let notice = json!({"jsonrpc": "2.0", "method": "roots/list"});
    assert_eq!(from_server_request("k", &message(&notice)), None);
}

#[test]
fn answers_are_bare_results_by_key() {
    let raw = br#"{"a":{"action":"accept", "content":{"n":1.0}},"b":{"roots":[]}}"#;
    let answers = read_input_responses(raw).unwrap();
    assert_eq!(answers[0], ("a".into(), Bytes::from_static(br#"{"action":"accept", "content":{"n":1.0}}"#)));
    assert_eq!(input_responses(&answers), &raw[..]);
    assert_eq!(input_responses(&[]), "{}");
    for broken in [&b"[]"[..], b"1", br#"{"a":1}"#, br#"{"a":{},"a":{}}"#] {
        assert!(read_input_responses(broken).is_err());
    }
}
