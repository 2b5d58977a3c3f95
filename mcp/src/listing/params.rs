//! The `x-mcp-header` annotations of a tool: which arguments a request repeats in headers [2026-07-28
//! streamable-http#custom-headers, SEP-2243]. What the headers must say is checked in `headers`.

use std::ops::Range;

use thiserror::Error;

use crate::scan::{Fault, Json, Limits, Scanner, Span};

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
