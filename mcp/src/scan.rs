//! One strict pass over JSON text that leaves only one reading: no duplicate keys at any depth (however they are
//! escaped), UTF-8 only, no NUL, no byte order mark, no lone surrogates, bounded depth and key count. It builds no
//! values: callers get spans of the text. What a span means is left to `jsonrpc`, `message` and `listing`.

use std::borrow::Cow;

pub(crate) use crate::fault::{Fault, Limits};

/// The JSON type of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Json {
    Object,
    Array,
    /// A string without escapes: its text is what stands between the quotes.
    Plain,
    Escaped,
    Number,
    True,
    False,
    Null,
}

impl Json {
    pub(crate) fn is_string(self) -> bool {
        matches!(self, Self::Plain | Self::Escaped)
    }
}

/// Where a value stands in the text, in bytes, and what type it has. Quotes and brackets are inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) json: Json,
}

impl Span {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    pub(crate) fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.range()).unwrap_or_default()
    }

    /// The decoded text of a string, `None` for any other type.
    pub(crate) fn text(self, text: &[u8]) -> Option<Cow<'_, str>> {
        match self.json {
            Json::Plain => {
                let inner = text.get(self.start as usize + 1..(self.end as usize).checked_sub(1)?)?;
                std::str::from_utf8(inner).ok().map(Cow::Borrowed)
            }
            Json::Escaped => serde_json::from_slice(self.of(text)).ok().map(Cow::Owned),
            _ => None,
        }
    }
}

/// Reads one document. `keys` is a stack of the keys of all objects that are open.
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    pos: usize,
    depth: u16,
    seen: u32,
    /// Where the key that was read last starts.
    key_at: usize,
    keys: Vec<Cow<'a, [u8]>>,
    limits: Limits,
}

impl<'a> Scanner<'a> {
    /// Checks what concerns the text as a whole, so that spans are valid UTF-8 and fit `u32`.
    pub(crate) fn new(bytes: &'a [u8], limits: Limits) -> Result<Self, Fault> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(Fault::TooLarge);
        }
        if bytes.starts_with(b"\xEF\xBB\xBF") {
            return Err(Fault::ByteOrderMark);
        }
        if std::str::from_utf8(bytes).is_err() {
            return Err(Fault::InvalidUtf8);
        }
        let keys = Vec::with_capacity(24);
        let mut scanner = Self { bytes, pos: 0, depth: 0, seen: 0, key_at: 0, keys, limits };
        scanner.blanks();
        Ok(scanner)
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    /// Where the key of the member starts whose value is to be read next, at its quote.
    pub(crate) fn key_at(&self) -> usize {
        self.key_at
    }

    /// The whole text.
    pub(crate) fn text(&self) -> &'a [u8] {
        self.bytes
    }

    /// Nothing but blanks may follow.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        self.blanks();
        match self.peek() {
            None => Ok(()),
            Some(0) => Err(Fault::Nul),
            Some(_) => Err(Fault::TrailingData),
        }
    }

    /// Reads any value and checks everything below it.
    pub(crate) fn value(&mut self) -> Result<Span, Fault> {
        let start = self.pos;
        let json = match self.peek() {
            Some(b'"') => match self.string()? {
                true => Json::Escaped,
                false => Json::Plain,
            },
            Some(b'{') => {
                return self.object(|scanner, _| scanner.value().map(drop));
            }
            Some(b'[') => {
                return self.array(|scanner| scanner.value().map(drop));
            }
            Some(b't') => self.word(b"true", Json::True)?,
            Some(b'f') => self.word(b"false", Json::False)?,
            Some(b'n') => self.word(b"null", Json::Null)?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(0) => return Err(Fault::Nul),
            _ => return Err(Fault::InvalidJson),
        };
        Ok(self.span(start, json))
    }

    /// Reads an object; `each` gets the decoded key and must read the value (with one of these methods).
    pub(crate) fn object<F>(&mut self, mut each: F) -> Result<Span, Fault>
    where
        F: FnMut(&mut Self, &[u8]) -> Result<(), Fault>,
    {
        let start = self.pos;
        let base = self.keys.len();
        self.open(b'{')?;
        if self.peek() != Some(b'}') {
            loop {
                let key = self.key()?;
                self.keys.push(key.clone());
                self.blanks();
                self.expect(b':')?;
                self.blanks();
                each(self, &key)?;
                self.blanks();
                if self.peek() != Some(b',') {
                    break;
                }
                self.pos += 1;
                self.blanks();
            }
        }
        self.expect(b'}')?;
        self.depth -= 1;
        self.check_unique(base)?;
        self.keys.truncate(base);
        Ok(self.span(start, Json::Object))
    }

    /// Reads an array; `each` must read one element (with one of these methods).
    pub(crate) fn array<F>(&mut self, mut each: F) -> Result<Span, Fault>
    where
        F: FnMut(&mut Self) -> Result<(), Fault>,
    {
        let start = self.pos;
        self.open(b'[')?;
        if self.peek() != Some(b']') {
            loop {
                each(self)?;
                self.blanks();
                if self.peek() != Some(b',') {
                    break;
                }
                self.pos += 1;
                self.blanks();
            }
        }
        self.expect(b']')?;
        self.depth -= 1;
        Ok(self.span(start, Json::Array))
    }

    fn span(&self, start: usize, json: Json) -> Span {
        // `new` refused texts whose offsets do not fit.
        Span { start: start as u32, end: self.pos as u32, json }
    }

    fn open(&mut self, bracket: u8) -> Result<(), Fault> {
        self.expect(bracket)?;
        if self.depth >= self.limits.max_depth {
            return Err(Fault::TooDeep);
        }
        self.depth += 1;
        self.blanks();
        Ok(())
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        match self.peek() {
            Some(found) if found == byte => {
                self.pos += 1;
                Ok(())
            }
            Some(0) => Err(Fault::Nul),
            _ => Err(Fault::InvalidJson),
        }
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.pos += 1;
        }
    }

    fn word(&mut self, word: &[u8], json: Json) -> Result<Json, Fault> {
        if !self.rest().starts_with(word) {
            return Err(Fault::InvalidJson);
        }
        self.pos += word.len();
        Ok(json)
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.pos..).unwrap_or_default()
    }

    fn key(&mut self) -> Result<Cow<'a, [u8]>, Fault> {
        self.seen += 1;
        if self.seen > self.limits.max_keys {
            return Err(Fault::TooManyKeys);
        }
        let start = self.pos;
        self.key_at = start;
        match self.peek() {
            Some(b'"') => {}
            Some(0) => return Err(Fault::Nul),
            _ => return Err(Fault::InvalidJson),
        }
        if self.string()? {
            let raw = self.bytes.get(start..self.pos).unwrap_or_default();
            let decoded: String = serde_json::from_slice(raw).map_err(|_| Fault::InvalidJson)?;
            return Ok(Cow::Owned(decoded.into_bytes()));
        }
        Ok(Cow::Borrowed(self.bytes.get(start + 1..self.pos - 1).unwrap_or_default()))
    }

    /// Sorting large objects instead of hashing them needs no seed and cannot be flooded.
    fn check_unique(&mut self, base: usize) -> Result<(), Fault> {
        let keys = self.keys.get_mut(base..).unwrap_or_default();
        let repeated = if keys.len() <= 12 {
            keys.iter()
                .enumerate()
                .any(|(at, key)| keys.get(at + 1..).is_some_and(|later| later.contains(key)))
        } else {
            keys.sort_unstable();
            keys.windows(2).any(|pair| matches!(pair, [left, right] if left == right))
        };
        if repeated { Err(Fault::DuplicateKey) } else { Ok(()) }
    }

    /// From the opening quote to behind the closing one; says whether the string has escapes.
    fn string(&mut self) -> Result<bool, Fault> {
        self.pos += 1;
        let mut escaped = false;
        loop {
            self.pos += plain_prefix(self.rest());
            match self.peek() {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(0) => return Err(Fault::Nul),
                _ => return Err(Fault::InvalidJson),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        self.pos += 1;
        let code = self.peek();
        self.pos += 1;
        match code {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => match self.hex()? {
                0 => Err(Fault::Nul),
                0xD800..=0xDBFF => {
                    if !self.rest().starts_with(b"\\u") {
                        return Err(Fault::LoneSurrogate);
                    }
                    self.pos += 2;
                    match self.hex()? {
                        0xDC00..=0xDFFF => Ok(()),
                        _ => Err(Fault::LoneSurrogate),
                    }
                }
                0xDC00..=0xDFFF => Err(Fault::LoneSurrogate),
                _ => Ok(()),
            },
            _ => Err(Fault::InvalidJson),
        }
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let digits = self.rest().get(..4).ok_or(Fault::InvalidJson)?;
        self.pos += 4;
        digits.iter().try_fold(0, |code, byte| {
            let digit = char::from(*byte).to_digit(16).ok_or(Fault::InvalidJson)?;
            Ok(code * 16 + digit)
        })
    }

    fn number(&mut self) -> Result<Json, Fault> {
        let start = self.pos;
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        match self.peek() {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(Fault::InvalidJson),
        }
        let mut exponent = false;
        if self.peek() == Some(b'.') {
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            exponent = true;
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        // Readers disagree on what is infinite: some refuse it, some read null.
        if exponent || self.pos - start > 300 {
            let text = std::str::from_utf8(self.bytes.get(start..self.pos).unwrap_or_default());
            let finite = text.ok().and_then(|text| text.parse::<f64>().ok()).is_some_and(f64::is_finite);
            if !finite {
                return Err(Fault::NumberOutOfRange);
            }
        }
        Ok(Json::Number)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.pos += count;
        if count == 0 { Err(Fault::InvalidJson) } else { Ok(()) }
    }
}

/// How many bytes from the start are neither a quote, a backslash nor a control character: most of a long text is passed
/// over in blocks, which the compiler compares with one instruction a few bytes at a time.
fn plain_prefix(bytes: &[u8]) -> usize {
    const BLOCK: usize = 64;
    // Most strings are short: a block is tried only behind so many bytes that are plain.
    const SHORT: usize = 16;
    let ends = |byte: u8| (byte == b'"') | (byte == b'\\') | (byte < 0x20);
    let plain = |bytes: &[u8]| bytes.iter().take_while(|&&byte| !ends(byte)).count();
    let (start, mut rest) = bytes.split_at(bytes.len().min(SHORT));
    let mut count = plain(start);
    if count < start.len() {
        return count;
    }
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        if block.iter().fold(false, |found, &byte| found | ends(byte)) {
            break;
        }
        count += BLOCK;
        rest = behind;
    }
    count + plain(rest)
}

/// Whether `key` reads as `known` to a reader that ignores case: ASCII letters, U+017F for `s`, U+212A for `k`.
pub(crate) fn folds_to(key: &[u8], known: &str) -> bool {
    let mut rest = key;
    for want in known.bytes() {
        let want = want.to_ascii_lowercase();
        rest = match rest {
            [first, behind @ ..] if first.to_ascii_lowercase() == want => behind,
            [0xC5, 0xBF, behind @ ..] if want == b's' => behind,
            [0xE2, 0x84, 0xAA, behind @ ..] if want == b'k' => behind,
            _ => return false,
        };
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests;
