use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn judged(text: &str, dropped: &[&str], put: &[(&str, &[u8])]) -> String {
    let mut patch = Patch::default();
    let object = read(text.as_bytes(), |scanner| {
        patch.object(scanner, |_, scanner, key| {
            scanner.value()?;
            let out = dropped.iter().any(|name| name.as_bytes() == key);
            Ok(if out { Fate::Drop } else { Fate::Keep })
        })
    });
    patch.put(object.unwrap(), put);
    String::from_utf8(patch.apply(text.as_bytes()).to_vec()).unwrap()
}

fn taken_out(text: &str, dropped: &[&str], put: &[(&str, &[u8])]) -> String {
    let (mut span, mut members) = (None, Vec::new());
    read(text.as_bytes(), |scanner| {
        span = Some(scanner.object(|scanner, key| {
            let start = scanner.key_at();
            scanner.value()?;
            if dropped.iter().any(|name| name.as_bytes() == key) {
                members.push(start..scanner.pos());
            }
            Ok(())
        })?);
        Ok(())
    })
    .unwrap();
    members.reverse();
    let mut patch = Patch::default();
    let object = patch.take_out(text.as_bytes(), span.unwrap(), &mut members);
    patch.put(object, put);
    String::from_utf8(patch.apply(text.as_bytes()).to_vec()).unwrap()
}

#[test]
fn members_leave_with_their_commas() {
    let text = r#" { "a" : 1 , "b":[2, 3] ,"c":{"a":4} } "#;
    for (dropped, left) in [
        (&[][..], r#" { "a" : 1 , "b":[2, 3] ,"c":{"a":4} } "#),
        (&["a"], r#" { "b":[2, 3] ,"c":{"a":4} } "#),
        (&["b"], r#" { "a" : 1 ,"c":{"a":4} } "#),
        (&["c"], r#" { "a" : 1 , "b":[2, 3] } "#),
        (&["a", "b"], r#" { "c":{"a":4} } "#),
        (&["b", "c"], r#" { "a" : 1 } "#),
        (&["a", "c"], r#" { "b":[2, 3] } "#),
        (&["a", "b", "c"], r#" { } "#),
    ] {
        let squeezed = |text: String| text.replace(' ', "");
        let want = squeezed(left.to_owned());
        assert_eq!(squeezed(judged(text, dropped, &[])), want, "{dropped:?}");
        assert_eq!(squeezed(taken_out(text, dropped, &[])), want, "{dropped:?}");
    }
}

#[test]
fn members_are_put_behind_the_others() {
    for edit in [judged, taken_out] {
        assert_eq!(edit("{}", &[], &[("k", b"1")]), r#"{"k":1}"#);
        assert_eq!(edit("{ }", &[], &[("k", b"1"), ("l", b"2")]), r#"{ "k":1,"l":2}"#);
        assert_eq!(edit(r#"{"a":1 }"#, &[], &[("k", b"1")]), r#"{"a":1 ,"k":1}"#);
        assert_eq!(edit(r#"{"a":1,"b":2}"#, &["b"], &[("k", b"1")]), r#"{"a":1,"k":1}"#);
        assert_eq!(edit(r#"{"a":1,"b":2}"#, &["a", "b"], &[("k", b"1")]), r#"{"k":1}"#);
    }
}

#[test]
fn a_change_inside_another_is_passed_over() {
    let mut patch = Patch::default();
    patch.replace(4..5, &b"y"[..]);
    patch.replace(2..6, &b"x"[..]);
    assert_eq!(patch.apply(b"0123456789"), "01x6789");
}

#[test]
fn a_text_without_a_reading_is_refused() {
    for text in ["", "1", "[]", r#"{"a":1,"a":2}"#, r#"{"a":1}x"#] {
        assert!(members(text.as_bytes()).is_err(), "{text}");
        assert!(find(text.as_bytes(), "a").is_none(), "{text}");
    }
    assert!(elements(b"{}").is_err());
    assert_eq!(get_text(br#"{"\u0061":"\u0062"}"#, "a").as_deref(), Some("b"));
    assert_eq!(get_object(br#"{"a":[]}"#, "a"), None);
}

/// An object as somebody writes it who likes blanks.
fn written(object: &Map<String, Value>, blanks: &[&str]) -> String {
    let mut blanks = blanks.iter().cycle();
    let mut blank = || *blanks.next().unwrap_or(&"");
    let members: Vec<String> = object
        .iter()
        .map(|(key, value)| {
            let key = serde_json::to_string(key).unwrap();
            format!("{}{key}{}:{}{value}{}", blank(), blank(), blank(), blank())
        })
        .collect();
    format!("{{{}{}}}", members.join(","), if members.is_empty() { blank() } else { "" })
}

proptest! {
    #[test]
    fn what_is_left_is_what_a_map_would_keep(
        keys in prop::collection::btree_set("[abc\\\\\"é]{0,2}", 0..8),
        drops in prop::collection::vec(any::<bool>(), 8),
        puts in 0usize..3,
        blanks in prop::collection::vec(prop::sample::select(vec!["", " ", "\n\t", "  "]), 1..5),
    ) {
        let object: Map<String, Value> =
            keys.iter().enumerate().map(|(n, key)| (key.clone(), json!({"n": [n, "},{,"]}))).collect();
        let text = written(&object, &blanks);
        let dropped: Vec<&str> =
            keys.iter().zip(&drops).filter(|(_, out)| **out).map(|(key, _)| key.as_str()).collect();
        let put: Vec<(&str, &[u8])> = [("new 1", &b"1"[..]), ("new 2", b"2")][..puts].to_vec();
        let mut want = object.clone();
        want.retain(|key, _| !dropped.contains(&key.as_str()));
        want.extend(put.iter().map(|(key, value)| ((*key).to_owned(), serde_json::from_slice(value).unwrap())));
        for edited in [judged(&text, &dropped, &put), taken_out(&text, &dropped, &put)] {
            let read: Value = serde_json::from_str(&edited).map_err(|_| TestCaseError::fail(edited.clone()))?;
            prop_assert_eq!(&read, &Value::Object(want.clone()), "{} became {}", text, edited);
        }
    }
}
