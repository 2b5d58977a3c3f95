//! Lists of tools, prompts, resources and templates, filtered and renamed as bytes: what is kept is kept to the byte,
//! because schemas must not pass through a narrower type [2026-07-28 server/tools]. The annotations of a
//! tool are found in `params`. Who may see what is decided by the caller.

mod params;

use std::ops::Range;

use crate::jsonrpc::{ParseError, json_string};
use crate::scan::{Fault, Limits, Scanner, Span};

pub(crate) use params::find;
pub use params::{Invalid, ParamHeader, ParamKind, param_headers, tool_param_headers};

/// One entry of a list.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// What it is known by: `name` of tools and prompts, `uri` of resources, `uriTemplate` of templates. Decoded.
    pub name: &'a str,
    /// The whole object, as it came.
    pub raw: &'a [u8],
}

/// One entry of a list, kept beyond its message.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What it is known by.
    pub name: String,
    /// The whole object, as it came: a slice of its message.
    pub raw: bytes::Bytes,
}

/// The entries of a list, and where its next page starts. An entry without a readable name is left out.
pub fn entries(result: &bytes::Bytes, key: &str) -> Result<(Vec<Kept>, Option<String>), ParseError> {
    let list = read(result, key)?;
    let kept = |entry: &Entry| {
        let name = entry.name?.text(result)?.into_owned();
        Some(Kept { name, raw: result.slice(entry.item.range()) })
    };
    let kept = list.entries.iter().filter_map(kept).collect();
    let next = list.next_cursor.and_then(|cursor| cursor.text(result)).map(std::borrow::Cow::into_owned);
    Ok((kept, next))
}

/// An entry under another name; `field` is `name`, `uri` or `uriTemplate`.
pub fn renamed(raw: &[u8], field: &str, name: &str) -> bytes::Bytes {
    let Some(span) = crate::edit::find(raw, field) else { return bytes::Bytes::copy_from_slice(raw) };
    let mut patch = crate::edit::Patch::default();
    patch.replace(span.range(), json_string(name).into_bytes());
    patch.apply(raw)
}

/// The bytes of a list's result.
pub fn list_result<'a>(
    key: &str,
    entries: impl IntoIterator<Item = &'a bytes::Bytes>,
    next_cursor: Option<&str>,
) -> bytes::Bytes {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    out.extend_from_slice(json_string(key).as_bytes());
    out.extend_from_slice(b":[");
    let empty = out.len();
    for entry in entries {
        if out.len() > empty {
            out.push(b',');
        }
        out.extend_from_slice(entry);
    }
    out.push(b']');
    if let Some(cursor) = next_cursor {
        out.extend_from_slice(b",\"nextCursor\":");
        out.extend_from_slice(json_string(cursor).as_bytes());
    }
    out.push(b'}');
    out.into()
}

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Drop,
    /// Under another name; everything else stays.
    Rename(String),
}

/// Leaves out the entries that `keep` refuses (by name), and those without a readable name. `key` is `tools`,
/// `prompts`, `resources` or `resourceTemplates`. With `private`, a list that lost an entry is also marked
/// `cacheScope: private` (2026-07-28; a list filtered for one caller must not be served to another).
///
/// `Ok(None)` where nothing was left out: the result can be passed on as it is.
pub fn filter_list(
    result: &[u8],
    key: &str,
    private: bool,
    mut keep: impl FnMut(&str) -> bool,
) -> Result<Option<Vec<u8>>, ParseError> {
    edit_list(result, key, private, |item| if keep(item.name) { Verdict::Keep } else { Verdict::Drop })
}

/// As [`filter_list`], with the whole entry to judge by, and new names.
pub fn edit_list(
    result: &[u8],
    key: &str,
    private: bool,
    mut judge: impl FnMut(Item<'_>) -> Verdict,
) -> Result<Option<Vec<u8>>, ParseError> {
    let list = read(result, key)?;
    let mut out = Vec::with_capacity(result.len() + 32);
    let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let mut changed = false;
    if let Some(array) = list.array {
        out.push(b'[');
        for entry in &list.entries {
            let raw = entry.item.of(result);
            let name = entry.name.and_then(|name| name.text(result));
            let verdict = match &name {
                Some(name) => judge(Item { name, raw }),
                None => Verdict::Drop,
            };
            changed |= verdict != Verdict::Keep;
            if verdict == Verdict::Drop {
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            match (verdict, entry.name) {
                (Verdict::Rename(to), Some(name)) => {
                    let (item, name) = (entry.item.range(), name.range());
                    out.extend_from_slice(result.get(item.start..name.start).unwrap_or_default());
                    out.extend_from_slice(json_string(&to).as_bytes());
                    out.extend_from_slice(result.get(name.end..item.end).unwrap_or_default());
                }
                _ => out.extend_from_slice(raw),
            }
        }
        out.push(b']');
        edits.push((array.range(), out));
    }
    if !changed {
        return Ok(None);
    }
    if private {
        match list.cache_scope {
            Some(scope) => edits.push((scope.range(), b"\"private\"".to_vec())),
            None => {
                // The array is inside the object, so the object is not empty.
                let end = list.object.range().end - 1;
                edits.push((end..end, b",\"cacheScope\":\"private\"".to_vec()));
            }
        }
    }
    Ok(Some(splice(result, edits)))
}

/// The names of a list, in order; entries without a readable name are passed over.
pub fn names(result: &[u8], key: &str) -> Result<Vec<String>, ParseError> {
    let list = read(result, key)?;
    let name = |entry: &Entry| Some(entry.name?.text(result)?.into_owned());
    Ok(list.entries.iter().filter_map(name).collect())
}

/// Calls `each` with every entry that has a readable name, in order.
pub fn each(result: &[u8], key: &str, mut each: impl FnMut(Item<'_>)) -> Result<(), ParseError> {
    let list = read(result, key)?;
    for entry in &list.entries {
        if let Some(name) = entry.name.and_then(|name| name.text(result)) {
            each(Item { name: &name, raw: entry.item.of(result) });
        }
    }
    Ok(())
}

struct Entry {
    item: Span,
    name: Option<Span>,
}

struct List {
    object: Span,
    array: Option<Span>,
    entries: Vec<Entry>,
    cache_scope: Option<Span>,
    next_cursor: Option<Span>,
}

fn read(result: &[u8], key: &str) -> Result<List, ParseError> {
    let identity = match key {
        "resources" => "uri",
        "resourceTemplates" => "uriTemplate",
        "tasks" => "taskId",
        _ => "name",
    };
    let mut scanner = Scanner::new(result, Limits::TRUSTED).map_err(|fault| ParseError::new(fault, 0))?;
    let mut entries = Vec::new();
    let (mut array, mut cache_scope, mut next_cursor) = (None, None, None);
    let scanned = scanner.object(|scanner, field| {
        if field == key.as_bytes() {
            if scanner.peek() != Some(b'[') {
                return Err(Fault::BadList);
            }
            array = Some(scanner.array(|scanner| {
                if scanner.peek() != Some(b'{') {
                    return Err(Fault::BadList);
                }
                let mut name = None;
                let item = scanner.object(|scanner, field| {
                    let value = scanner.value()?;
                    if field == identity.as_bytes() && value.json.is_string() {
                        name = Some(value);
                    }
                    Ok(())
                })?;
                entries.push(Entry { item, name });
                Ok(())
            })?);
            return Ok(());
        }
        let value = scanner.value()?;
        match field {
            b"cacheScope" => cache_scope = Some(value),
            b"nextCursor" => next_cursor = Some(value),
            _ => {}
        }
        Ok(())
    });
    let object = scanned.and_then(|object| scanner.finish().map(|()| object));
    let object = object.map_err(|fault| ParseError::new(fault, scanner.pos()))?;
    Ok(List { object, array, entries, cache_scope, next_cursor })
}

fn splice(text: &[u8], mut edits: Vec<(Range<usize>, Vec<u8>)>) -> Vec<u8> {
    edits.sort_unstable_by_key(|(range, _)| range.start);
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for (range, new) in edits {
        out.extend_from_slice(text.get(from..range.start).unwrap_or_default());
        out.extend_from_slice(&new);
        from = range.end;
    }
    out.extend_from_slice(text.get(from..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests;
