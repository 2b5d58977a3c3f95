//! Output schemas for session clients. Until 2025-11-25 structured content is an object, and its schema says so at the
//! root; the stateless revision takes any value and any schema [2026-07-28 server/tools, SEP-2106].

use std::borrow::Cow;

use crate::edit::{Fate, Patch};
use crate::scan::{Fault, Json, Scanner};

const BEFORE: &[u8] = br#"{"type":"object","properties":{"result":"#;
const BEHIND: &[u8] = br#"},"required":["result"]}"#;
const ROOT: &[u8] = b"/properties/result";

/// Reads the schema at which the scanner stands, and puts one of no object into one of an object with it as `result`,
/// as [`super::result::for_session`] does with the value. Where the schema does not tell which of them values will be,
/// it goes: without a schema, a client checks nothing.
pub(super) fn wrap(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>) -> Result<Fate, Fault> {
    let (mark, text) = (patch.mark(), scanner.text());
    if scanner.peek() != Some(b'{') {
        scanner.value()?;
        return Ok(Fate::Drop);
    }
    let (mut kind, mut has_base) = (None, false);
    let span = scanner.object(|scanner, key| {
        match key {
            b"type" => kind = scanner.value()?.text(text),
            b"$id" => has_base = is_base(scanner.value()?.text(text)),
            _ => member(patch, scanner, key, Place::Keywords)?,
        }
        Ok(())
    })?;
    match kind.as_deref() {
        Some("object") => patch.undo(mark),
        Some("array" | "string" | "number" | "integer" | "boolean" | "null") => {
            if has_base {
                patch.undo(mark);
            }
            patch.replace(span.range().start..span.range().start, BEFORE);
            patch.replace(span.range().end..span.range().end, BEHIND);
        }
        _ => {
            patch.undo(mark);
            return Ok(Fate::Drop);
        }
    }
    Ok(Fate::Keep)
}

/// What the keys of an object are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Keywords,
    /// Names that the author chose.
    Names,
}

/// Reads one member. References to the schema itself must lead to its new place.
fn member(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>, key: &[u8], place: Place) -> Result<(), Fault> {
    let below = match (place, key) {
        (Place::Keywords, b"$ref" | b"$dynamicRef") => {
            let span = scanner.value()?;
            let source = span.of(scanner.text());
            if span.json == Json::Plain && (source == br##""#""## || source.starts_with(br##""#/"##)) {
                let behind = span.range().start + 2;
                patch.replace(behind..behind, ROOT);
            }
            return Ok(());
        }
        (Place::Keywords, b"const" | b"enum" | b"default" | b"examples") => {
            return scanner.value().map(drop);
        }
        (
            Place::Keywords,
            b"properties" | b"patternProperties" | b"$defs" | b"definitions" | b"dependentSchemas"
            | b"dependencies",
        ) => Place::Names,
        _ => Place::Keywords,
    };
    descend(patch, scanner, below)
}

/// Whether references below an `$id` resolve against it; one of a fragment alone is only an anchor.
fn is_base(id: Option<Cow<'_, str>>) -> bool {
    id.is_some_and(|id| !id.starts_with('#'))
}

fn descend(patch: &mut Patch<'_>, scanner: &mut Scanner<'_>, place: Place) -> Result<(), Fault> {
    let (mark, text) = (patch.mark(), scanner.text());
    match scanner.peek() {
        Some(b'{') => {
            let mut has_base = false;
            scanner.object(|scanner, key| {
                if place == Place::Keywords && key == b"$id" {
                    has_base = is_base(scanner.value()?.text(text));
                    return Ok(());
                }
                member(patch, scanner, key, place)
            })?;
            if has_base {
                patch.undo(mark);
            }
        }
        Some(b'[') => drop(scanner.array(|scanner| descend(patch, scanner, Place::Keywords))?),
        _ => drop(scanner.value()?),
    }
    Ok(())
}
