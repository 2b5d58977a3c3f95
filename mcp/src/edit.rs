//! Edits of JSON objects as text: members are taken out, put in or replaced, and everything else stays as it was
//! written. A value that the gateway does not know passes through no type of ours.

use std::ops::Range;

use bytes::Bytes;

use crate::jsonrpc::{ParseError, json_string};
use crate::scan::{Json, Limits, Scanner};

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) value: Range<usize>,
    pub(crate) json: Json,
}

/// The members of an object, in the order of the text. Anything else has none.
pub(crate) fn members(text: &[u8]) -> Result<Vec<Member>, ParseError> {
    let mut scanner = Scanner::new(text, Limits::TRUSTED).map_err(|fault| ParseError::new(fault, 0))?;
    if scanner.peek() != Some(b'{') {
        return Ok(Vec::new());
    }
    let mut members = Vec::with_capacity(8);
    let read = scanner.object(|scanner, key| {
        let key = String::from_utf8_lossy(key).into_owned();
        let span = scanner.value()?;
        members.push(Member { key, value: span.range(), json: span.json });
        Ok(())
    });
    read.map_err(|fault| ParseError::new(fault, scanner.pos()))?;
    Ok(members)
}

/// The elements of an array; anything else has none.
pub(crate) fn elements(text: &[u8]) -> Result<Vec<Range<usize>>, ParseError> {
    let mut scanner = Scanner::new(text, Limits::TRUSTED).map_err(|fault| ParseError::new(fault, 0))?;
    if scanner.peek() != Some(b'[') {
        return Ok(Vec::new());
    }
    let mut elements = Vec::new();
    let read = scanner.array(|scanner| {
        elements.push(scanner.value()?.range());
        Ok(())
    });
    read.map_err(|fault| ParseError::new(fault, scanner.pos()))?;
    Ok(elements)
}

/// The value of one member.
pub(crate) fn get(text: &[u8], key: &str) -> Option<Bytes> {
    let member = members(text).ok()?.into_iter().find(|member| member.key == key)?;
    Some(Bytes::copy_from_slice(text.get(member.value)?))
}

/// The decoded text of one member that is a string.
pub(crate) fn get_text(text: &[u8], key: &str) -> Option<String> {
    serde_json::from_slice(&get(text, key)?).ok()
}

/// An object that is written member by member.
pub(crate) struct Writer {
    out: Vec<u8>,
    empty: bool,
}

impl Writer {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity + 2);
        out.push(b'{');
        Self { out, empty: true }
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        self.out.extend_from_slice(json_string(key).as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }
}

/// What becomes of one member.
pub(crate) enum Fate {
    Keep,
    Drop,
    Become(Vec<u8>),
}

/// The object with some members changed, and some put behind the others.
pub(crate) fn edit(
    text: &[u8],
    put: &[(&str, &[u8])],
    mut judge: impl FnMut(&str, &[u8], Json) -> Result<Fate, ParseError>,
) -> Result<Vec<u8>, ParseError> {
    let grown: usize = put.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
    let mut writer = Writer::new(text.len() + grown);
    for member in members(text)? {
        let value = text.get(member.value).unwrap_or_default();
        match judge(&member.key, value, member.json)? {
            Fate::Keep => writer.put(&member.key, value),
            Fate::Drop => {}
            Fate::Become(value) => writer.put(&member.key, &value),
        }
    }
    for (key, value) in put {
        writer.put(key, value);
    }
    Ok(writer.end())
}

/// The array with its elements changed; none where none is.
pub(crate) fn edit_elements(
    text: &[u8],
    mut change: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, ParseError>,
) -> Result<Option<Vec<u8>>, ParseError> {
    let mut out = Vec::with_capacity(text.len() + 32);
    let (mut from, mut changed) = (0, false);
    for element in elements(text)? {
        if let Some(new) = change(text.get(element.clone()).unwrap_or_default())? {
            out.extend_from_slice(text.get(from..element.start).unwrap_or_default());
            out.extend_from_slice(&new);
            from = element.end;
            changed = true;
        }
    }
    out.extend_from_slice(text.get(from..).unwrap_or_default());
    Ok(changed.then_some(out))
}
