use super::*;
use crate::jsonrpc::Limits;

fn read(method: &str, params: &str) -> Result<Head, HeadError> {
    let text = format!(r#"{{"params":{params},"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
    head(&Message::parse(text.into(), &Limits::default()).unwrap())
}

#[test]
fn every_known_method_reads_back_its_own_name() {
    for method in Method::KNOWN {
        assert_eq!(&Method::parse(method.as_str()), method);
        assert_eq!(method.label(), method.as_str());
    }
    let other = Method::parse("Tools/Call");
    assert_eq!((other.as_str(), other.label()), ("Tools/Call", "other"));
}

#[test]
fn a_modern_call_is_read_whole() {
    let head = read(
        "tools/call",
        r#"{"name":"se\u0061rch","arguments":{ "q":1 },"requestState":"s","inputResponses":{"k":{}},"_meta":{
            "io.modelcontextprotocol/protocolVersion":"2026-07-28",
            "io.modelcontextprotocol/clientCapabilities":{"roots":{}},
            "io.modelcontextprotocol/clientInfo":{"name":"c"},
            "io.modelcontextprotocol/logLevel":"debug","progressToken":"t","traceparent":"x"}}"#,
    )
    .unwrap();
    assert_eq!(head.method, Method::ToolsCall);
    assert_eq!(head.name.as_deref(), Some("search"));
    assert_eq!(head.arguments.as_deref(), Some(&br#"{ "q":1 }"#[..]));
    assert_eq!(head.meta_version.as_deref(), Some("2026-07-28"));
    assert!(head.is_modern() && head.has_client_capabilities);
    assert_eq!(head.client_capabilities.as_deref(), Some(&br#"{"roots":{}}"#[..]));
    assert_eq!(head.log_level.as_deref(), Some("debug"));
    assert_eq!(head.progress_token.as_deref(), Some(&br#""t""#[..]));
    assert_eq!(head.request_state.as_deref(), Some("s"));
    assert_eq!(head.require_modern(), Ok(()));
}

#[test]
fn the_subject_comes_from_the_field_of_the_method() {
    let params = r#"{"name":"n","uri":"u","taskId":"t"}"#;
    for (method, name) in [
        ("tools/call", Some("n")),
        ("prompts/get", Some("n")),
        ("resources/read", Some("u")),
        ("resources/subscribe", Some("u")),
        ("tasks/get", Some("t")),
        ("tasks/cancel", Some("t")),
        ("tools/list", None),
        ("vendor/x", None),
    ] {
        assert_eq!(read(method, params).unwrap().name.as_deref(), name, "{method}");
    }
}

#[test]
fn the_rest_of_the_methods_have_their_own_fields() {
    let head =
        read("initialize", r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{}}"#).unwrap();
    assert_eq!(head.protocol_version.as_deref(), Some("2025-06-18"));
    assert!(head.client_capabilities.is_some() && !head.has_client_capabilities && !head.is_modern());
    assert_eq!(read("tools/list", r#"{"cursor":""}"#).unwrap().cursor.as_deref(), Some(""));
    assert_eq!(read("logging/setLevel", r#"{"level":"info"}"#).unwrap().log_level.as_deref(), Some("info"));
    assert_eq!(
        read("notifications/cancelled", r#"{"requestId":"a"}"#).unwrap().request_id,
        Some(Id::string("a"))
    );
    assert_eq!(
        read("notifications/progress", r#"{"progressToken":3,"progress":1}"#)
            .unwrap()
            .progress_token
            .unwrap(),
        "3"
    );
    assert_eq!(
        read("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"p"}}"#).unwrap().reference,
        Some(Reference::Prompt("p".into()))
    );
    assert_eq!(
        read("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"u"}}"#).unwrap().reference,
        Some(Reference::Resource("u".into()))
    );
}

#[test]
fn fields_of_the_wrong_type_are_invalid_params() {
    for (method, params, reason) in [
        ("tools/call", "{}", "missing_field"),
        ("tools/call", r#"{"name":7}"#, "not_a_string"),
        ("tools/call", r#"{"name":null}"#, "not_a_string"),
        ("tools/call", r#"{"name":"n","arguments":[]}"#, "params_not_an_object"),
        ("tools/call", r#"{"name":"n","requestState":{}}"#, "not_a_string"),
        ("tools/list", r#"{"cursor":1}"#, "not_a_string"),
        ("tools/list", r#"{"_meta":[]}"#, "params_not_an_object"),
        ("vendor/x", r#"{"_meta":null}"#, "params_not_an_object"),
        ("ping", r#"{"_meta":{"progressToken":1.5}}"#, "not_a_token"),
        ("ping", r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":1}}"#, "not_a_string"),
        ("ping", r#"{"_meta":{"io.modelcontextprotocol/clientCapabilities":[]}}"#, "params_not_an_object"),
        ("initialize", "{}", "missing_field"),
        ("subscriptions/listen", "{}", "missing_field"),
        ("subscriptions/listen", r#"{"notifications":[]}"#, "params_not_an_object"),
        ("completion/complete", "{}", "missing_field"),
        ("completion/complete", r#"{"ref":{"type":"ref/tool","name":"x"}}"#, "bad_reference"),
        ("completion/complete", r#"{"ref":{"type":"ref/prompt"}}"#, "missing_field"),
    ] {
        let error = read(method, params).unwrap_err();
        assert_eq!((error.reason(), error.code()), (reason, -32602), "{method} {params}");
    }
    assert!(read("tools/call", r#"{"name":"n","arguments":null}"#).unwrap().arguments.is_none());
    assert!(read("vendor/x", r#"{"cursor":1,"arguments":2,"name":3}"#).is_ok());
}

#[test]
fn a_modern_request_must_declare_version_and_capabilities() {
    let version = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
    for params in ["{}", version] {
        assert!(read("tools/list", params).unwrap().require_modern().is_err(), "{params}");
    }
}
