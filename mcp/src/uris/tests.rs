use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[test]
fn a_uri_is_wrapped_unless_it_is_of_the_web() {
    for (uri, wrapped) in [
        ("file:///README.md", "wfl+s+file:///README.md"),
        ("wfl+t+x:y", "wfl+s+wfl+t+x:y"),
        ("db://{table}/{+id}", "wfl+s+db://{table}/{+id}"),
        ("http://h/", "wfl+s+http://h/"),
        ("", "wfl+s+"),
        ("https://h/", "https://h/"),
        ("HTTPS:x", "HTTPS:x"),
    ] {
        assert_eq!(wrap("s", uri), wrapped);
        let unwrapped = if wrapped == uri { None } else { Some(("s", uri)) };
        assert_eq!(unwrap(wrapped), unwrapped, "{uri}");
    }
    for other in ["file:///x", "wfl+", "wfl+s", "wfl++x", "WFL+s+x", "wfl+S+x", "wfl+a/b+x", "wfl+a.b+x"] {
        assert_eq!(unwrap(other), None, "{other}");
    }
}

fn map(method: Method, result: &Value) -> Option<Value> {
    let wrap = |uri: &str| (uri != "keep:").then(|| wrap("s", uri));
    let mapped = map_uris(&method, &result.to_string().into_bytes(), &wrap).unwrap();
    mapped.map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn uris_in_content_are_mapped() {
    let link = |uri: &str| json!({"uri": uri, "type": "resource_link", "name": "n"});
    let embedded = |uri: &str| json!({"type": "resource", "resource": {"text": "x:", "uri": uri}});
    let other = json!({"type": "text", "uri": "x:", "resource": {"uri": "x:"}});
    let call = |uri: &str| json!({"content": [other, link(uri), embedded(uri), 1], "uri": "x:"});
    assert_eq!(map(Method::ToolsCall, &call("x:")), Some(call("wfl+s+x:")));
    let prompt =
        |uri: &str| json!({"messages": [{"role": "user", "content": embedded(uri)}, {"content": 1}, 2]});
    assert_eq!(map(Method::PromptsGet, &prompt("x:")), Some(prompt("wfl+s+x:")));
    let read = |uri: &str| json!({"contents": [{"uri": uri, "text": "t"}]});
    assert_eq!(map(Method::ResourcesRead, &read("x:")), Some(read("wfl+s+x:")));
}

#[test]
fn what_has_no_uri_is_left_alone() {
    for (method, result) in [
        (Method::ToolsCall, json!({"content": [{"type": "text", "text": "t"}]})),
        (Method::ToolsCall, json!({"content": [{"type": "resource_link", "uri": "keep:"}]})),
        (Method::ToolsCall, json!({"content": [{"type": "resource_link", "uri": 1}, {"type": "resource"}]})),
        (Method::ToolsCall, json!({"content": {"type": "resource_link", "uri": "x:"}})),
        (Method::ToolsCall, json!([])),
        (Method::ToolsList, json!({"content": [{"type": "resource_link", "uri": "x:"}]})),
    ] {
        assert_eq!(map(method, &result), None, "{result}");
    }
    assert!(map_uris(&Method::ToolsCall, b"{", &|_| None).is_err());
}

proptest! {
    #[test]
    fn what_is_wrapped_comes_back(server in "[a-z0-9-]{1,63}", uri in "\\PC{0,40}") {
        let wrapped = wrap(&server, &uri);
        if wrapped != uri {
            prop_assert_eq!(unwrap(&wrapped), Some((server.as_str(), uri.as_str())));
        }
    }
}
