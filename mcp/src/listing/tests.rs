use serde_json::json;

use super::*;

const TOOLS: &str = r#"{ "tools":[ {"name":"a","inputSchema":{"x":1.0}}, {"name":"\u0062"} ,{"title":"no name"},{"name":"c"}], "nextCursor":"n"}"#;

fn filter(result: &str, key: &str, private: bool, keep: &[&str]) -> Option<String> {
    filter_list(result.as_bytes(), key, private, |name| keep.contains(&name))
        .unwrap()
        .map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn what_is_kept_is_kept_to_the_byte() {
    assert_eq!(
        filter(TOOLS, "tools", false, &["a", "c"]).unwrap(),
        r#"{ "tools":[{"name":"a","inputSchema":{"x":1.0}},{"name":"c"}], "nextCursor":"n"}"#
    );
    assert_eq!(
        filter(TOOLS, "tools", false, &["b"]).unwrap(),
        r#"{ "tools":[{"name":"\u0062"}], "nextCursor":"n"}"#
    );
    assert_eq!(filter(TOOLS, "tools", false, &[]).unwrap(), r#"{ "tools":[], "nextCursor":"n"}"#);
}

#[test]
fn a_list_that_loses_nothing_is_passed_on() {
    assert_eq!(filter(r#"{"tools":[{"name":"a"}]}"#, "tools", true, &["a"]), None);
    assert_eq!(filter(r#"{"tools":[]}"#, "tools", true, &[]), None);
    assert_eq!(filter(r#"{"prompts":[{"name":"a"}]}"#, "tools", true, &[]), None);
    assert_eq!(filter("{}", "tools", true, &[]), None);
}

#[test]
fn a_filtered_list_becomes_private() {
    assert_eq!(
        filter(r#"{"cacheScope":"public","tools":[{"name":"a"}]}"#, "tools", true, &[]).unwrap(),
        r#"{"cacheScope":"private","tools":[]}"#
    );
    assert_eq!(
        filter(r#"{"tools":[{"name":"a"}] }"#, "tools", true, &[]).unwrap(),
        r#"{"tools":[] ,"cacheScope":"private"}"#
    );
}

#[test]
fn each_list_has_its_own_identity() {
    let resources = r#"{"resources":[{"name":"n","uri":"file:///a"}]}"#;
    assert_eq!(names(resources.as_bytes(), "resources").unwrap(), ["file:///a"]);
    let templates = r#"{"resourceTemplates":[{"name":"n","uriTemplate":"file:///{x}"}]}"#;
    assert_eq!(names(templates.as_bytes(), "resourceTemplates").unwrap(), ["file:///{x}"]);
    assert_eq!(names(TOOLS.as_bytes(), "tools").unwrap(), ["a", "b", "c"]);
}

#[test]
fn entries_are_renamed_in_place() {
    let edited =
        edit_list(br#"{"tools":[{"title":"t","name":"a","x":[1 ]},{"name":"b"}]}"#, "tools", false, |item| {
            if item.name == "a" { Verdict::Rename("s__a".into()) } else { Verdict::Keep }
        });
    assert_eq!(edited.unwrap().unwrap(), br#"{"tools":[{"title":"t","name":"s__a","x":[1 ]},{"name":"b"}]}"#);
}

#[test]
fn a_list_that_is_not_one_is_refused() {
    for result in [r#"{"tools":{}}"#, r#"{"tools":[1]}"#, r#"{"tools":null}"#] {
        assert_eq!(names(result.as_bytes(), "tools").unwrap_err().reason(), "bad_list", "{result}");
    }
    for result in ["[]", "", r#"{"tools":[],"tools":[]}"#, r#"{"tools":[{"name":"a","name":"b"}]}"#] {
        assert!(names(result.as_bytes(), "tools").is_err(), "{result}");
    }
}

#[test]
fn annotations_are_found_along_properties() {
    let schema = json!({"type": "object", "properties": {
        "region": {"type": "string", "x-mcp-header": "Region", "default": {"x-mcp-header": 1}},
        "x-mcp-header": {"type": "string"},
        "page": {"type": "object", "properties": {"count": {"x-mcp-header": "Count", "type": "integer"}}},
    }});
    let found = param_headers(schema.to_string().as_bytes()).unwrap();
    let mut found: Vec<_> =
        found.iter().map(|header| (header.header.as_str(), header.path.join("/"), header.kind)).collect();
    found.sort_unstable_by_key(|(name, ..)| *name);
    assert_eq!(
        found,
        [
            ("Count", "page/count".to_string(), ParamKind::Integer),
            ("Region", "region".to_string(), ParamKind::String)
        ]
    );
    let tool = json!({"name": "t", "inputSchema": schema}).to_string();
    assert_eq!(tool_param_headers(tool.as_bytes()).unwrap().len(), 2);
    assert_eq!(tool_param_headers(br#"{"name":"t"}"#), Ok(vec![]));
}

#[test]
fn a_tool_with_an_invalid_annotation_is_refused() {
    let property = |schema: serde_json::Value| json!({"properties": {"a": schema}});
    for (schema, invalid) in [
        (property(json!({"type": "string", "x-mcp-header": ""})), Invalid::BadToken),
        (property(json!({"type": "string", "x-mcp-header": "a b"})), Invalid::BadToken),
        (property(json!({"type": "string", "x-mcp-header": "é"})), Invalid::BadToken),
        (property(json!({"type": "string", "x-mcp-header": 1})), Invalid::BadToken),
        (property(json!({"type": "number", "x-mcp-header": "A"})), Invalid::BadType),
        (property(json!({"type": ["string", "null"], "x-mcp-header": "A"})), Invalid::BadType),
        (property(json!({"$ref": "#/$defs/a", "x-mcp-header": "A"})), Invalid::BadType),
        (property(json!({"items": {"type": "string", "x-mcp-header": "A"}})), Invalid::BadPlace),
        (property(json!({"anyOf": [{"type": "string", "x-mcp-header": "A"}]})), Invalid::BadPlace),
        (json!({"$defs": {"a": {"type": "string", "x-mcp-header": "A"}}}), Invalid::BadPlace),
        (json!({"type": "string", "x-mcp-header": "A"}), Invalid::BadPlace),
        (
            json!({"properties": {
                "a": {"type": "string", "x-mcp-header": "Aa"},
                "b": {"type": "string", "x-mcp-header": "aA"},
            }}),
            Invalid::Repeated("Aa".into()),
        ),
    ] {
        assert_eq!(param_headers(schema.to_string().as_bytes()), Err(invalid), "{schema}");
    }
    let escaped = br#"{"properties":{"a":{"type":"string","x-mcp-h\u0065ader":""}}}"#;
    assert_eq!(param_headers(escaped), Err(Invalid::BadToken));
}

#[test]
fn a_page_is_taken_apart_and_put_together() {
    let page = bytes::Bytes::from_static(TOOLS.as_bytes());
    let (tools, next) = entries(&page, "tools").unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!((names, next.as_deref()), (vec!["a", "b", "c"], Some("n")));
    assert_eq!(tools[0].raw, r#"{"name":"a","inputSchema":{"x":1.0}}"#);
    let raw = tools.iter().map(|tool| &tool.raw);
    let whole = list_result("tools", raw, next.as_deref());
    assert_eq!(
        whole,
        r#"{"tools":[{"name":"a","inputSchema":{"x":1.0}},{"name":"\u0062"},{"name":"c"}],"nextCursor":"n"}"#
    );
    assert_eq!(list_result("prompts", [], None), r#"{"prompts":[]}"#);
    let odd = bytes::Bytes::from_static(
        br#"{"resources":[{"uri":"x:","name":"n"},{"name":"n"}],"nextCursor":null}"#,
    );
    let (resources, next) = entries(&odd, "resources").unwrap();
    assert_eq!((resources.len(), resources[0].name.as_str(), next), (1, "x:", None));
    assert!(entries(&odd, "tools").unwrap().0.is_empty());
    assert!(entries(&bytes::Bytes::from_static(br#"{"tools":{}}"#), "tools").is_err());
}

#[test]
fn an_entry_is_renamed_where_its_name_stands() {
    let tool = br#"{ "name" : "\u0061", "title":"name", "inputSchema":{"name":1.0}}"#;
    let renamed_tool = renamed(tool, "name", "s__a\"");
    assert_eq!(renamed_tool, r#"{ "name" : "s__a\"", "title":"name", "inputSchema":{"name":1.0}}"#);
    assert_eq!(renamed(br#"{"uri":"x:"}"#, "name", "n"), r#"{"uri":"x:"}"#);
}
