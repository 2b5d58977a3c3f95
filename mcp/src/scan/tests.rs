use proptest::prelude::*;

use super::*;

fn scan(text: &[u8]) -> Result<Json, Fault> {
    let mut scanner = Scanner::new(text, Limits::default())?;
    let span = scanner.value()?;
    scanner.finish()?;
    Ok(span.json)
}

#[test]
fn valid_json_is_accepted_with_its_type() {
    for (text, json) in [
        ("{}", Json::Object),
        (" [ ] ", Json::Array),
        (r#""a""#, Json::Plain),
        (r#""\u00e9\ud83d\ude00\n""#, Json::Escaped),
        ("-0", Json::Number),
        ("12.50e-3", Json::Number),
        ("true", Json::True),
        ("false", Json::False),
        ("null", Json::Null),
        (r#"{"a":{"a":[{"a":1},{"a":2}]},"b":"a"}"#, Json::Object),
        (r#"{"":0," ":1}"#, Json::Object),
        ("\"abcdefgh\u{7f}é\"", Json::Plain),
    ] {
        assert_eq!(scan(text.as_bytes()), Ok(json), "{text}");
    }
}

#[test]
fn a_text_with_a_second_reading_is_refused_by_name() {
    let surrogate = br#"["\ud800"]"#;
    let cases: &[(&[u8], Fault)] = &[
        (b"\xEF\xBB\xBF{}", Fault::ByteOrderMark),
        (b"\"\xFF\"", Fault::InvalidUtf8),
        (b"\"\xED\xA0\x80\"", Fault::InvalidUtf8),
        (b"\"a\0\"", Fault::Nul),
        (b"{\0}", Fault::Nul),
        (b"\0", Fault::Nul),
        (b"{}\0", Fault::Nul),
        (br#""\u0000""#, Fault::Nul),
        (br#"{"\u0000":1}"#, Fault::Nul),
        (surrogate, Fault::LoneSurrogate),
        (br#""\udc00""#, Fault::LoneSurrogate),
        (br#""\ud800\ud800""#, Fault::LoneSurrogate),
        (br#""\ud800x""#, Fault::LoneSurrogate),
        (b"{} {}", Fault::TrailingData),
        (b"{},", Fault::TrailingData),
        (b"1e999", Fault::NumberOutOfRange),
        (br#"{"a":1,"a":1}"#, Fault::DuplicateKey),
        (br#"{"a":1,"\u0061":1}"#, Fault::DuplicateKey),
        (br#"[{"x":{"a":1,"b":2,"a":3}}]"#, Fault::DuplicateKey),
        (br#"{"\u00e9":1,"\u00E9":2}"#, Fault::DuplicateKey),
        (r#"{"é":1,"\u00e9":2}"#.as_bytes(), Fault::DuplicateKey),
    ];
    for (text, fault) in cases {
        assert_eq!(scan(text), Err(*fault), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn what_is_not_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[",
        "{]",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{,}",
        "[,]",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "Infinity",
        "nul",
        "True",
        "\"a",
        "\"\\x\"",
        "\"\\",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"a\nb\"",
        "\"\t\"",
        "//x\n1",
        "[1 2]",
        "\u{a0}1",
    ] {
        let fault = scan(text.as_bytes());
        assert!(fault.is_err(), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
    }
}

#[test]
fn depth_and_keys_are_bounded() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(scan(nested(64).as_bytes()), Ok(Json::Array));
    assert_eq!(scan(nested(65).as_bytes()), Err(Fault::TooDeep));
    assert_eq!(scan("[".repeat(4 << 20).as_bytes()), Err(Fault::TooDeep));
    let object = |keys: usize| {
        let fields: Vec<_> = (0..keys).map(|key| format!("\"{key}\":0")).collect();
        format!("{{{}}}", fields.join(","))
    };
    assert_eq!(scan(object(10_000).as_bytes()), Ok(Json::Object));
    assert_eq!(scan(object(10_001).as_bytes()), Err(Fault::TooManyKeys));
    let half = format!("[{},{}]", object(5_000), object(5_001));
    assert_eq!(scan(half.as_bytes()), Err(Fault::TooManyKeys));
}

#[test]
fn a_repeated_key_is_found_in_large_objects() {
    let fields: Vec<_> = (0..500).map(|key| format!("\"k{key}\":0")).collect();
    let text = format!("{{{},\"\\u006b17\":1}}", fields.join(","));
    assert_eq!(scan(text.as_bytes()), Err(Fault::DuplicateKey));
}

#[test]
fn keys_fold_as_readers_that_ignore_case_fold_them() {
    for (key, known) in [
        ("Method", "method"),
        ("taskid", "taskId"),
        ("TASKID", "taskId"),
        ("re\u{17f}ult", "result"),
        ("params", "params"),
        ("tas\u{212a}Id", "taskId"),
        ("param\u{17f}", "params"),
    ] {
        assert!(folds_to(key.as_bytes(), known), "{key}");
    }
    for (key, known) in
        [("methods", "method"), ("metho", "method"), ("name", "uri"), ("ıd", "id"), ("", "id")]
    {
        assert!(!folds_to(key.as_bytes(), known), "{key}");
    }
}

/// JSON-like texts that are often, but not always, valid.
fn texts() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_string()),
        Just("true".to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(r#""\ud83d\ude00""#.to_string()),
        Just(r#""\ud83d""#.to_string()),
        Just("1e400".to_string()),
        Just("01".to_string()),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        let key = prop_oneof![Just("a".to_string()), Just("\\u0061".to_string()), "[a-z]{1,3}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((key, inner), 0..5).prop_map(|fields| {
                let fields: Vec<_> =
                    fields.into_iter().map(|(key, value)| format!("\"{key}\" :{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

/// The keys of all objects, counted by a parser that keeps the last of two equal keys.
fn keys(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Object(map) => map.len() + map.values().map(keys).sum::<usize>(),
        serde_json::Value::Array(items) => items.iter().map(keys).sum(),
        _ => 0,
    }
}

proptest! {
    #[test]
    fn an_accepted_text_is_accepted_by_serde_json_with_no_key_lost(text in texts()) {
        let mut scanner = Scanner::new(text.as_bytes(), Limits::default()).unwrap();
        if scanner.value().and_then(|_| scanner.finish()).is_ok() {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(keys(&value), scanner.seen as usize);
        }
    }

    #[test]
    fn what_serde_json_writes_is_accepted(text in texts()) {
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
            let written = value.to_string();
            let nul = written.contains("\\u0000");
            prop_assert!(nul || scan(written.as_bytes()).is_ok(), "{}", written);
        }
    }

    #[test]
    fn a_string_is_scanned_as_serde_json_scans_it(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut text = vec![b'"'];
        text.extend(bytes);
        text.push(b'"');
        let ours = scan(&text);
        let theirs = serde_json::from_slice::<String>(&text);
        match ours {
            Ok(_) => prop_assert!(theirs.is_ok()),
            Err(Fault::Nul) => {}
            Err(fault) => prop_assert!(theirs.is_err(), "{:?}", fault),
        }
    }
}
