//! Lists of tools, prompts, resources and templates, filtered and renamed as bytes: what is kept is kept to the byte,
//! because schemas must not pass through a narrower type [2026-07-28 server/tools]. Also finds the `x-mcp-header`
//! annotations of a tool. Who may see what is decided by the caller.

use std::ops::Range;

use thiserror::Error;

use crate::jsonrpc::{ParseError, json_string};
use crate::scan::{Fault, Json, Limits, Scanner, Span};

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

/// The type of an annotated argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    String,
    Integer,
    Boolean,
}

/// An argument of a tool that 2026-07-28 mirrors in a header [SEP-2243].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamHeader {
    /// The part of the header's name behind `Mcp-Param-`, as annotated.
    pub header: String,
    /// Keys from `arguments` to the value.
    pub path: Vec<String>,
    pub kind: ParamKind,
}

/// Why a tool must be left out of lists: its annotations are not to be relied on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    #[error("the schema cannot be read: {0}")]
    Schema(Fault),
    #[error("`x-mcp-header` must be a non-empty header token")]
    BadToken,
    #[error("two properties are annotated with the header {0}")]
    Repeated(String),
    #[error("`x-mcp-header` stands on a property that is not a string, integer or boolean")]
    BadType,
    #[error("`x-mcp-header` stands where `properties` alone do not lead")]
    BadPlace,
}

const ANNOTATION: &[u8] = b"x-mcp-header";

/// Finds the `x-mcp-header` annotations of an `inputSchema` and checks that each is a unique RFC 9110 token, on a
/// string, integer or boolean that `properties` alone lead to.
pub fn param_headers(schema: &[u8]) -> Result<Vec<ParamHeader>, Invalid> {
    if memchr::memmem::find(schema, ANNOTATION).is_none() && !schema.contains(&b'\\') {
        return Ok(Vec::new());
    }
    let mut found = Found { path: Vec::new(), headers: Vec::new(), invalid: None };
    let mut scanner = Scanner::new(schema, Limits::TRUSTED).map_err(Invalid::Schema)?;
    let scanned = found.schema(&mut scanner, schema).and_then(|()| scanner.finish());
    scanned.map_err(Invalid::Schema)?;
    if let Some(invalid) = found.invalid {
        return Err(invalid);
    }
    for (at, header) in found.headers.iter().enumerate() {
        let later = found.headers.get(at + 1..).unwrap_or_default();
        if later.iter().any(|other| other.header.eq_ignore_ascii_case(&header.header)) {
            return Err(Invalid::Repeated(header.header.clone()));
        }
    }
    Ok(found.headers)
}

/// The annotations of a tool, from the whole entry of a list. A tool without `inputSchema` has none.
pub fn tool_param_headers(tool: &[u8]) -> Result<Vec<ParamHeader>, Invalid> {
    let mut scanner = Scanner::new(tool, Limits::TRUSTED).map_err(Invalid::Schema)?;
    let mut schema = None;
    let scanned = scanner.object(|scanner, key| {
        let value = scanner.value()?;
        if key == b"inputSchema" {
            schema = Some(value);
        }
        Ok(())
    });
    scanned.map_err(Invalid::Schema)?;
    schema.map_or(Ok(Vec::new()), |schema| param_headers(schema.of(tool)))
}

struct Found {
    path: Vec<String>,
    headers: Vec<ParamHeader>,
    invalid: Option<Invalid>,
}

impl Found {
    /// A schema at a place that `properties` alone lead to.
    fn schema(&mut self, scanner: &mut Scanner<'_>, text: &[u8]) -> Result<(), Fault> {
        if scanner.peek() != Some(b'{') {
            return scanner.value().map(drop);
        }
        let (mut annotation, mut kind) = (None, None);
        scanner.object(|scanner, key| {
            match (key, scanner.peek()) {
                (ANNOTATION, _) => annotation = Some(scanner.value()?),
                (b"type", _) => kind = Some(scanner.value()?),
                (b"properties", Some(b'{')) => {
                    scanner.object(|scanner, name| {
                        self.path.push(String::from_utf8_lossy(name).into_owned());
                        self.schema(scanner, text)?;
                        self.path.pop();
                        Ok(())
                    })?;
                }
                // What these hold are values, not schemas.
                (b"default" | b"const" | b"enum" | b"examples", _) => {
                    scanner.value()?;
                }
                _ => self.elsewhere(scanner)?,
            }
            Ok(())
        })?;
        let Some(annotation) = annotation else { return Ok(()) };
        let kind = match kind.and_then(|kind| kind.text(text)).as_deref() {
            Some("string") => Some(ParamKind::String),
            Some("integer") => Some(ParamKind::Integer),
            Some("boolean") => Some(ParamKind::Boolean),
            _ => None,
        };
        let header = annotation.text(text).filter(|header| is_token(header));
        match (header, kind) {
            _ if self.path.is_empty() => self.refuse(Invalid::BadPlace),
            (None, _) => self.refuse(Invalid::BadToken),
            (_, None) => self.refuse(Invalid::BadType),
            (Some(header), Some(kind)) => {
                let (header, path) = (header.into_owned(), self.path.clone());
                self.headers.push(ParamHeader { header, path, kind });
            }
        }
        Ok(())
    }

    /// Anything else: an annotation down here is misplaced.
    fn elsewhere(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        match scanner.peek() {
            Some(b'{') => scanner.object(|scanner, key| {
                if key == ANNOTATION {
                    self.refuse(Invalid::BadPlace);
                }
                self.elsewhere(scanner)
            }),
            Some(b'[') => scanner.array(|scanner| self.elsewhere(scanner)),
            _ => scanner.value(),
        }
        .map(drop)
    }

    fn refuse(&mut self, invalid: Invalid) {
        self.invalid.get_or_insert(invalid);
    }
}

fn is_token(text: &str) -> bool {
    let special = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
}

/// The value at a path of keys; `None` where it is absent.
pub(crate) fn find(text: &[u8], path: &[String]) -> Result<Option<(Json, Range<usize>)>, Fault> {
    let mut scanner = Scanner::new(text, Limits::TRUSTED)?;
    let mut found = None;
    descend(&mut scanner, path, &mut found)?;
    Ok(found.map(|span: Span| (span.json, span.range())))
}

fn descend(scanner: &mut Scanner<'_>, path: &[String], found: &mut Option<Span>) -> Result<(), Fault> {
    let Some((first, below)) = path.split_first() else {
        *found = Some(scanner.value()?);
        return Ok(());
    };
    if scanner.peek() != Some(b'{') {
        return scanner.value().map(drop);
    }
    let object = scanner.object(|scanner, key| {
        if key == first.as_bytes() { descend(scanner, below, found) } else { scanner.value().map(drop) }
    });
    object.map(drop)
}

#[cfg(test)]
mod tests;
