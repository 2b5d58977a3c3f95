//! Edits of JSON text. Changes are collected while the text is read, or from where its fields are known to stand, and
//! made in one copy; everything else stays as it was written. A value that the gateway does not know passes through no
//! type of ours.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::jsonrpc::{ParseError, json_string};
use crate::scan::{Fault, Json, Limits, Scanner, Span};

/// Reads a text as one value, from its start to its end.
pub(crate) fn read<'a, T>(
    text: &'a [u8],
    read: impl FnOnce(&mut Scanner<'a>) -> Result<T, Fault>,
) -> Result<T, ParseError> {
    let mut scanner = Scanner::new(text, Limits::TRUSTED).map_err(|fault| ParseError::new(fault, 0))?;
    let done = read(&mut scanner).and_then(|done| scanner.finish().map(|()| done));
    done.map_err(|fault| ParseError::new(fault, scanner.pos()))
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) value: Range<usize>,
    pub(crate) json: Json,
}

/// The members of an object, in the order of the text. Anything else is refused.
pub(crate) fn members(text: &[u8]) -> Result<Vec<Member>, ParseError> {
    let mut members = Vec::with_capacity(8);
    read(text, |scanner| {
        scanner.object(|scanner, key| {
            let key = String::from_utf8_lossy(key).into_owned();
            let span = scanner.value()?;
            members.push(Member { key, value: span.range(), json: span.json });
            Ok(())
        })
    })?;
    Ok(members)
}

/// The elements of an array; anything else is refused.
pub(crate) fn elements(text: &[u8]) -> Result<Vec<Range<usize>>, ParseError> {
    let mut elements = Vec::new();
    read(text, |scanner| {
        scanner.array(|scanner| {
            elements.push(scanner.value()?.range());
            Ok(())
        })
    })?;
    Ok(elements)
}

/// Where the value of one member stands; none in anything but an object.
pub(crate) fn find(text: &[u8], key: &str) -> Option<Span> {
    let mut found = None;
    let scanned = read(text, |scanner| {
        scanner.object(|scanner, name| {
            let span = scanner.value()?;
            if name == key.as_bytes() {
                found = Some(span);
            }
            Ok(())
        })
    });
    scanned.ok().and(found)
}

/// The value of one member.
pub(crate) fn get<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    find(text, key).map(|span| span.of(text))
}

/// The value of one member that is an object.
pub(crate) fn get_object<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    find(text, key).filter(|span| span.json == Json::Object).map(|span| span.of(text))
}

/// The decoded text of one member that is a string.
pub(crate) fn get_text(text: &[u8], key: &str) -> Option<String> {
    find(text, key)?.text(text).map(Cow::into_owned)
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

    pub(crate) fn put_text(&mut self, key: &str, text: &str) {
        self.put(key, json_string(text).as_bytes());
    }

    /// An object with these members.
    pub(crate) fn of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = Self::new(members.iter().map(|(key, value)| key.len() + value.len() + 4).sum());
        for (key, value) in members {
            writer.put(key, value);
        }
        writer.end()
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }
}

/// Changes to one text.
#[derive(Debug, Default)]
pub(crate) struct Patch<'a> {
    cuts: Vec<(Range<usize>, Cow<'a, [u8]>)>,
}

/// What becomes of a member of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Drop,
}

/// An object whose members were judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Object {
    pub(crate) span: Span,
    /// Whether any member is left.
    pub(crate) kept: bool,
}

impl<'a> Patch<'a> {
    /// Other text in the place of a range; ranges may touch, and one that starts inside another is passed over.
    pub(crate) fn replace(&mut self, range: Range<usize>, new: impl Into<Cow<'a, [u8]>>) {
        self.cuts.push((range, new.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }

    /// How many changes there are; with [`Patch::undo`], to take back those of one part of the text.
    pub(crate) fn mark(&self) -> usize {
        self.cuts.len()
    }

    pub(crate) fn undo(&mut self, mark: usize) {
        self.cuts.truncate(mark);
    }

    /// Reads the object at which the scanner stands. `each` reads the value of a member, may note changes in it, and says
    /// what becomes of the member.
    pub(crate) fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        mut each: impl FnMut(&mut Self, &mut Scanner<'_>, &[u8]) -> Result<Fate, Fault>,
    ) -> Result<Object, Fault> {
        let first = scanner.pos() + 1;
        let (mut kept, mut dropped, mut end) = (false, false, first);
        let span = scanner.object(|scanner, key| {
            let start = scanner.key_at();
            let fate = each(self, scanner, key)?;
            let before = std::mem::replace(&mut end, scanner.pos());
            match fate {
                // The comma before it goes with a member, or the one behind it where none is kept before.
                Fate::Drop if kept => self.replace(before..end, &b""[..]),
                Fate::Drop => dropped = true,
                Fate::Keep => {
                    if dropped && !kept {
                        self.replace(first..start, &b""[..]);
                    }
                    kept = true;
                }
            }
            Ok(())
        })?;
        if dropped && !kept {
            self.replace(first..span.range().end - 1, &b""[..]);
        }
        Ok(Object { span, kept })
    }

    /// Takes members, given from key to value, out of an object of the text without reading it again.
    pub(crate) fn take_out(&mut self, text: &[u8], span: Span, members: &mut [Range<usize>]) -> Object {
        members.sort_unstable_by_key(|member| member.start);
        let first = span.range().start + 1;
        let byte = |at: usize| text.get(at).copied().unwrap_or_default();
        // Where the run of members ends that are taken out from the start on.
        let mut run = skip_blanks(text, first);
        for member in members.iter() {
            if member.start == run {
                let behind = skip_blanks(text, member.end);
                run = if byte(behind) == b',' { skip_blanks(text, behind + 1) } else { behind };
                self.replace(member.start..run, &b""[..]);
                continue;
            }
            let back = text.get(..member.start).unwrap_or_default().iter();
            let blanks = back.rev().take_while(|byte| **byte != b',').count();
            self.replace(member.start - blanks - 1..member.end, &b""[..]);
        }
        Object { span, kept: byte(run) != b'}' }
    }

    /// Puts members behind the others of an object.
    pub(crate) fn put(&mut self, object: Object, members: &[(&str, &[u8])]) {
        if members.is_empty() {
            return;
        }
        let mut text = Writer::of(members);
        // Its brackets are those of the object.
        text.pop();
        match text.first_mut() {
            Some(first) if object.kept => *first = b',',
            _ => drop(text.drain(..1)),
        }
        let end = object.span.range().end - 1;
        self.replace(end..end, text);
    }

    /// Writes a part of the text with the changes inside it.
    pub(crate) fn write(&mut self, text: &[u8], part: Range<usize>, out: &mut Vec<u8>) {
        self.cuts.sort_by_key(|(range, _)| range.start);
        let mut from = part.start;
        for (range, new) in &self.cuts {
            if range.start < from || range.end > part.end {
                continue;
            }
            out.extend_from_slice(text.get(from..range.start).unwrap_or_default());
            out.extend_from_slice(new);
            from = range.end;
        }
        out.extend_from_slice(text.get(from..part.end).unwrap_or_default());
    }

    /// By how much the text may grow.
    pub(crate) fn growth(&self) -> usize {
        self.cuts.iter().map(|(_, new)| new.len()).sum()
    }

    /// The whole text, changed.
    pub(crate) fn apply(mut self, text: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(text.len() + self.growth());
        self.write(text, 0..text.len(), &mut out);
        out.into()
    }
}

fn skip_blanks(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).count()
}

#[cfg(test)]
mod tests;
