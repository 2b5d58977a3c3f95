//! The arguments of a call, as conditions see them: only what they look at is read, and every number keeps its value or
//! fails the condition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::objects::{Key, Map, Value};
use serde_json::value::RawValue;

use super::condition::LOOP_MOST;

/// Values within values.
const DEPTH_MOST: usize = 16;
/// Bytes of what conditions look at, together.
const BYTES_MOST: usize = 1 << 20;

/// Which parts of the arguments are read.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// The whole of it.
    whole: bool,
    below: BTreeMap<String, Paths>,
}

impl Paths {
    pub(super) fn of(paths: &[Vec<String>]) -> Self {
        let mut root = Self::default();
        for path in paths {
            let mut at = &mut root;
            for step in path {
                at = at.below.entry(step.clone()).or_default();
            }
            at.whole = true;
        }
        root
    }
}

/// Reads the wanted parts. What is not there is not in the result.
pub(super) fn read(text: &[u8], wanted: &Paths) -> Result<Value, String> {
    let raw: &RawValue = serde_json::from_slice(text).map_err(|_| "the arguments cannot be read")?;
    let mut budget = BYTES_MOST;
    let value = part(raw, wanted, 0, &mut budget)?;
    if matches!(value, Value::Map(_)) { Ok(value) } else { Err("the arguments are no object".into()) }
}

fn part(raw: &RawValue, wanted: &Paths, depth: usize, budget: &mut usize) -> Result<Value, String> {
    let text = raw.get();
    if wanted.whole || !text.starts_with('{') {
        *budget = budget.checked_sub(text.len()).ok_or("the arguments are too large to judge")?;
        return whole(raw, depth);
    }
    let mut map = HashMap::with_capacity(wanted.below.len());
    for (key, value) in fields(text)? {
        if let Some(below) = wanted.below.get(key.as_ref()) {
            let value = part(value, below, depth + 1, budget)?;
            map.insert(Key::String(Arc::new(key.into_owned())), value);
        }
    }
    Ok(Value::Map(Map { map: Arc::new(map) }))
}

fn whole(raw: &RawValue, depth: usize) -> Result<Value, String> {
    if depth > DEPTH_MOST {
        return Err("the arguments are too deep to judge".into());
    }
    let text = raw.get();
    let unreadable = || "the arguments cannot be read".to_owned();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let fields = fields(text)?;
            if fields.len() > LOOP_MOST {
                return Err("an object has too many fields to judge".into());
            }
            let mut map = HashMap::with_capacity(fields.len());
            for (key, value) in fields {
                map.insert(Key::String(Arc::new(key.into_owned())), whole(value, depth + 1)?);
            }
            Value::Map(Map { map: Arc::new(map) })
        }
        Some(b'[') => {
            let entries: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| unreadable())?;
            if entries.len() > LOOP_MOST {
                return Err("a list has too many entries to judge".into());
            }
            let entries: Result<Vec<Value>, String> =
                entries.into_iter().map(|entry| whole(entry, depth + 1)).collect();
            Value::List(Arc::new(entries?))
        }
        Some(b'"') => Value::String(Arc::new(serde_json::from_str(text).map_err(|_| unreadable())?)),
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'n') => Value::Null,
        _ => number(text).ok_or("a number cannot be kept exactly")?,
    })
}

/// The fields of an object. A name that stands twice has no one meaning.
fn fields(text: &str) -> Result<Vec<(std::borrow::Cow<'_, str>, &RawValue)>, String> {
    struct Fields;
    impl<'de> serde::de::Visitor<'de> for Fields {
        type Value = Vec<(std::borrow::Cow<'de, str>, &'de RawValue)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            #[derive(serde::Deserialize)]
            struct Name<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);
            let mut fields: Self::Value = Vec::new();
            while let Some(Name(name)) = map.next_key()? {
                fields.push((name, map.next_value()?));
            }
            Ok(fields)
        }
    }
    use serde::Deserializer as _;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields =
        deserializer.deserialize_map(Fields).map_err(|_| "the arguments cannot be read".to_owned())?;
    let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err("a name stands twice in the arguments".into());
    }
    Ok(fields)
}

/// A number of JSON (RFC 8259 §6) with its exact value: whole ones as int or uint, however they are written, others as
/// double if a double has that value as its shortest form. None where no type can hold it.
fn number(text: &str) -> Option<Value> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Value::Int(whole));
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(Value::UInt(whole));
    }
    let (digits, exponent) = decimal(text)?;
    if digits.is_empty() {
        return Some(Value::Int(0));
    }
    let negative = text.starts_with('-');
    if exponent >= 0 {
        // A whole number, such as 42.0 or 1e3.
        if digits.len() as i64 + exponent > 20 {
            return None;
        }
        let zeros = usize::try_from(exponent).ok()?;
        let whole = format!("{}{digits}{}", if negative { "-" } else { "" }, "0".repeat(zeros));
        return whole.parse().map(Value::Int).ok().or_else(|| whole.parse().map(Value::UInt).ok());
    }
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite() && *value != 0.0)?;
    (decimal(&format!("{value:e}"))? == (digits, exponent)).then_some(Value::Float(value))
}

/// A decimal number as its digits, without zeros at either end, and the power of ten of the last of them.
fn decimal(text: &str) -> Option<(String, i64)> {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok().filter(|e| e.abs() < 100_000)?),
        None => (text, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut exponent = exponent - i64::try_from(after.len()).ok()?;
    let all = format!("{before}{after}");
    let digits = all.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    exponent += i64::try_from(digits.len() - kept.len()).ok()?;
    Some((kept.to_owned(), exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_value_or_have_none() {
        for (text, expected) in [
            ("0", Some(Value::Int(0))),
            ("-0", Some(Value::Int(0))),
            ("0.0", Some(Value::Int(0))),
            ("42", Some(Value::Int(42))),
            ("42.0", Some(Value::Int(42))),
            ("4.2e1", Some(Value::Int(42))),
            ("1e3", Some(Value::Int(1000))),
            ("-1e3", Some(Value::Int(-1000))),
            ("9007199254740993", Some(Value::Int(9_007_199_254_740_993))),
            ("9223372036854775807", Some(Value::Int(i64::MAX))),
            ("-9223372036854775808", Some(Value::Int(i64::MIN))),
            ("9223372036854775808", Some(Value::UInt(1 << 63))),
            ("18446744073709551615", Some(Value::UInt(u64::MAX))),
            ("18446744073709551616", None),
            ("-9223372036854775809", None),
            ("1e19", Some(Value::UInt(10_000_000_000_000_000_000))),
            ("1e400", None),
            ("0.1", Some(Value::Float(0.1))),
            ("-2.5", Some(Value::Float(-2.5))),
            ("1.10", Some(Value::Float(1.1))),
            ("0.30000000000000004", Some(Value::Float(0.300_000_000_000_000_04))),
            ("0.1000000000000000055511151231257827", None),
            ("9007199254740993.5", None),
            ("1e-400", None),
            ("1e99999999999999999999", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn only_what_is_looked_at_is_read() {
        let wanted = Paths::of(&[vec!["a".into(), "b".into()]]);
        let read = |text: &str| read(text.as_bytes(), &wanted);
        let found = |text: &str| match read(text) {
            Ok(Value::Map(map)) => format!("{:?}", map.map.len()),
            Ok(_) => "no object".into(),
            Err(reason) => reason,
        };
        assert_eq!(found(r#"{"a": {"b": 1}, "c": 1e400}"#), "1");
        assert_eq!(found(r#"{"c": {"b": 1}}"#), "0");
        assert_eq!(found(r#"{"a": {"b": 1e400}}"#), "a number cannot be kept exactly");
        assert_eq!(found(r#"{"a": {"b": 1, "b": 2}}"#), "a name stands twice in the arguments");
        assert_eq!(found(r#"{"a": {"\u0062": 1, "b": 2}}"#), "a name stands twice in the arguments");
        assert_eq!(found("[]"), "the arguments are no object");
        assert_eq!(found("{"), "the arguments cannot be read");
        let list = format!(r#"{{"a": {{"b": [{}1]}}}}"#, "1,".repeat(LOOP_MOST));
        assert_eq!(found(&list), "a list has too many entries to judge");
        let deep = format!(r#"{{"a": {{"b": {}1{}}}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(found(&deep), "the arguments are too deep to judge");
    }
}
