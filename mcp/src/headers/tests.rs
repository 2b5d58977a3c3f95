use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::jsonrpc::{Limits, Message};
use crate::listing::ParamKind;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

fn call(name: &str) -> Head {
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":{},"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#,
        serde_json::to_string(name).unwrap()
    );
    crate::head(&Message::parse(Bytes::from(text), &Limits::default()).unwrap()).unwrap()
}

#[test]
fn values_decode_by_the_exact_sentinel() {
    for (value, text) in [
        ("plain", "plain"),
        ("  two words\t", "two words"),
        ("=?base64?w6k=?=", "é"),
        ("=?base64??=", ""),
        ("=?base64?PT9iYXNlNjQ/eD89?=", "=?base64?x?="),
        ("=?BASE64?w6k=?=", "=?BASE64?w6k=?="),
        ("=?base64?w6k=", "=?base64?w6k="),
        ("=?base64?=", "=?base64?="),
        ("w6k=?=", "w6k=?="),
    ] {
        assert_eq!(decode_value(value).unwrap(), text, "{value}");
    }
    for value in [
        "=?base64?w6k?=",
        "=?base64?w6l=?=",
        "=?base64?%%?=",
        "=?base64?w6k=\n?=",
        "=?base64?/w==?=",
        "é",
        "a\u{7f}",
    ] {
        assert!(decode_value(value).is_err(), "{value}");
    }
}

#[test]
fn headers_that_match_the_body_pass() {
    for (name, value) in
        [("search", "search"), ("é", "=?base64?w6k=?="), ("a b", "a b"), ("x", "=?base64?eA==?=")]
    {
        let map = headers(&[
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", " tools/call "),
            ("mcp-name", value),
        ]);
        assert_eq!(validate(&map, &call(name)), Ok(()), "{value}");
    }
}

#[test]
fn headers_that_differ_from_the_body_are_refused() {
    let version = ("mcp-protocol-version", "2026-07-28");
    let method = ("mcp-method", "tools/call");
    let name = ("mcp-name", "danger");
    for (pairs, reason, header) in [
        (&[method, name][..], "header_missing", "mcp-protocol-version"),
        (&[version, name], "header_missing", "mcp-method"),
        (&[version, method], "header_missing", "mcp-name"),
        (&[version, method, ("mcp-name", "safe")], "header_mismatch", "mcp-name"),
        (&[version, method, ("mcp-name", "Danger")], "header_mismatch", "mcp-name"),
        (&[version, ("mcp-method", "TOOLS/CALL"), name], "header_mismatch", "mcp-method"),
        (&[("mcp-protocol-version", "2025-11-25"), method, name], "header_mismatch", "mcp-protocol-version"),
        (&[version, method, name, ("mcp-name", "safe")], "header_duplicate", "mcp-name"),
        (&[version, method, name, name], "header_duplicate", "mcp-name"),
        (&[version, method, ("mcp-name", "=?base64?ZGFuZ2Vy=?=")], "header_bad_encoding", "mcp-name"),
    ] {
        let error = validate(&headers(pairs), &call("danger")).unwrap_err();
        assert_eq!((error.reason(), error.header(), error.code()), (reason, header, -32020), "{pairs:?}");
    }
    let mut map = headers(&[version, method]);
    map.insert(MCP_NAME, HeaderValue::from_bytes(b"dang\xC3\xA9r").unwrap());
    assert_eq!(validate(&map, &call("danger")).unwrap_err().reason(), "header_bad_character");
}

#[test]
fn a_repeated_singleton_is_refused_and_other_headers_may_repeat() {
    assert!(check_singletons(&headers(&[("accept", "a"), ("accept", "b"), ("host", "h")])).is_ok());
    for name in SINGLETONS {
        let map = headers(&[(name.as_str(), "1"), ("accept", "x"), (name.as_str(), "1")]);
        assert_eq!(check_singletons(&map), Err(HeaderError::Duplicate(name.to_string())));
    }
}

#[test]
fn written_headers_pass_validation() {
    for name in ["search", "é", " padded ", "=?base64?x?=", ""] {
        let head = call(name);
        let mut map = headers(&[("mcp-name", "stale"), ("mcp-name", "stale2"), ("accept", "x")]);
        write(&head, Revision::LATEST, &mut map);
        assert_eq!(validate(&map, &head), Ok(()), "{name}");
        assert_eq!(map.len(), 4);
    }
    let mut map = headers(&[("mcp-method", "stale")]);
    write(&call("search"), Revision::V2025_11_25, &mut map);
    assert_eq!(map, headers(&[("mcp-protocol-version", "2025-11-25")]));
    write(&call("search"), Revision::V2025_03_26, &mut map);
    assert!(map.is_empty());
}

#[test]
fn argument_headers_must_say_what_the_arguments_say() {
    let annotation = |header: &str, path: &[&str], kind| ParamHeader {
        header: header.into(),
        path: path.iter().map(|key| (*key).to_string()).collect(),
        kind,
    };
    let annotations = [
        annotation("Region", &["region"], ParamKind::String),
        annotation("Count", &["page", "count"], ParamKind::Integer),
        annotation("Dry", &["dry"], ParamKind::Boolean),
    ];
    let arguments = r#"{"region":"eu","page":{"count":42.0},"dry":null}"#;
    let check = |pairs: &[(&str, &str)]| {
        check_params(&annotations, Some(arguments.as_bytes()), &headers(pairs))
            .map_err(|error| error.reason())
    };
    let (region, count) = (("mcp-param-region", "eu"), ("Mcp-Param-Count", "42"));
    assert_eq!(check(&[region, count]), Ok(()));
    assert_eq!(check(&[region, ("mcp-param-count", "4.2e1"), ("mcp-param-unknown", "x")]), Ok(()));
    assert_eq!(check(&[region]), Err("header_missing"));
    assert_eq!(check(&[region, ("mcp-param-count", "43")]), Err("header_mismatch"));
    assert_eq!(check(&[("mcp-param-region", "EU"), count]), Err("header_mismatch"));
    assert_eq!(check(&[region, region, count]), Err("header_duplicate"));
    assert_eq!(check(&[region, count, ("mcp-param-dry", "false")]), Err("header_mismatch"));
    assert_eq!(check_params(&annotations, None, &headers(&[])), Ok(()));
    assert!(check_params(&annotations, None, &headers(&[region])).is_err());

    let mut map = headers(&[("mcp-param-dry", "true"), ("mcp-param-region", "us")]);
    write_params(&annotations, Some(arguments.as_bytes()), &mut map);
    assert_eq!(map, headers(&[region, count]));
    assert_eq!(check_params(&annotations, Some(arguments.as_bytes()), &map), Ok(()));
    let mut names: Vec<_> = param_headers(&map).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["count", "region"]);
}

#[test]
fn integers_are_compared_as_numbers() {
    for (text, plain) in [
        ("42", Some("42")),
        ("42.0", Some("42")),
        ("420e-1", Some("42")),
        ("-0", Some("0")),
        ("0.0e5", Some("0")),
        ("-7.50e1", Some("-75")),
        ("1.5", None),
        ("1e999", None),
        ("1e-2147483648", None),
        ("", None),
        ("x", None),
        ("+1", None),
    ] {
        assert_eq!(integer(text).as_deref(), plain, "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_survives_a_header(text in ".{0,40}") {
        let value = encode_value(&text);
        prop_assert_eq!(decode_value(value.to_str().unwrap()).unwrap(), text);
    }

    #[test]
    fn decoding_never_panics(text in ".{0,40}", number in "-?[0-9.eE+-]{0,30}") {
        drop(decode_value(&text));
        drop(integer(&number));
    }
}
