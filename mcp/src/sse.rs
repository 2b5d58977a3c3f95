//! Event-stream framing [WHATWG HTML, server-sent events], incremental and without I/O. A stream is decoded and encoded
//! again, never copied, so that nothing a server smuggles into it reaches a client. What an event may say is left to
//! others.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Default bound on one event, in bytes of all its lines.
pub const MAX_EVENT: usize = 4 * 1024 * 1024;

/// A comment that keeps a quiet stream open.
pub const KEEP_ALIVE: &[u8] = b":\n\n";

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The `id` of this event itself; an earlier one is not carried over. `Some("")` resets.
    pub id: Option<String>,
    /// The `event` field; absent means `message`.
    pub event: Option<String>,
    /// The `data` lines joined by line feeds, not checked for UTF-8. Empty in an event that only primes (an `id` or
    /// `retry` without data, 2025-11-25), which browsers do not dispatch.
    pub data: Bytes,
    /// Reconnection time in milliseconds.
    pub retry: Option<u64>,
}

impl Event {
    /// An event of the default type with data alone.
    pub fn message(data: Bytes) -> Self {
        Self { data, ..Self::default() }
    }

    /// Whether the type is `message`, named or not: the only one that carries JSON-RPC.
    pub fn is_message(&self) -> bool {
        matches!(self.event.as_deref(), None | Some("" | "message"))
    }
}

/// What the decoder found next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    /// The peer is alive, and says nothing.
    Comment,
}

/// Why a stream cannot be read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SseError {
    #[error("an event of the stream is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

/// Turns chunks into events, however the chunks are cut. At the end of the stream it is dropped, and with it an event
/// that has not ended.
#[derive(Debug)]
pub struct Decoder {
    max_event: usize,
    /// What has come and was not read.
    chunk: Bytes,
    /// The start of a line whose end has not come.
    partial: BytesMut,
    /// A carriage return ended the last line; a line feed right behind it belongs to it.
    after_cr: bool,
    started: bool,
    failed: bool,
    /// Bytes of the lines of the event that is being read.
    size: usize,
    open: bool,
    event: Event,
    data: Data,
}

/// The data of an event: one line is a slice of its chunk, more are joined.
#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Data {
    fn push(&mut self, line: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(line),
            Self::One(first) => {
                let mut joined = BytesMut::with_capacity(first.len() + line.len() + 1);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(b"\n");
                joined.extend_from_slice(&line);
                Self::Many(joined)
            }
            Self::Many(mut joined) => {
                joined.extend_from_slice(b"\n");
                joined.extend_from_slice(&line);
                Self::Many(joined)
            }
        };
    }

    fn finish(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(line) => line,
            Self::Many(joined) => joined.freeze(),
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_EVENT)
    }
}

impl Decoder {
    /// A decoder that refuses events of more than `max_event` bytes.
    pub fn new(max_event: usize) -> Self {
        Self {
            max_event,
            chunk: Bytes::new(),
            partial: BytesMut::new(),
            after_cr: false,
            started: false,
            failed: false,
            size: 0,
            open: false,
            event: Event::default(),
            data: Data::None,
        }
    }

    /// Takes the next chunk. Call [`Decoder::next`] until it has nothing before the next push; what was left unread is
    /// kept all the same.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// The next event or comment; `None` where another chunk is needed. After an error there is only that error.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator ends at None; this goes on after the next push"
    )]
    pub fn next(&mut self) -> Result<Option<Item>, SseError> {
        if self.failed {
            return Err(SseError::TooLarge { limit: self.max_event });
        }
        while let Some(line) = self.line()? {
            if let Some(item) = self.take(line)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Whether nothing is pending: the stream may end here without losing an event.
    pub fn is_idle(&self) -> bool {
        self.chunk.is_empty() && self.partial.is_empty() && !self.open
    }

    /// The next whole line, without its end.
    fn line(&mut self) -> Result<Option<Bytes>, SseError> {
        if self.after_cr && !self.chunk.is_empty() {
            if self.chunk.first() == Some(&b'\n') {
                self.chunk.advance(1);
            }
            self.after_cr = false;
        }
        let Some(end) = memchr::memchr2(b'\r', b'\n', &self.chunk) else {
            self.partial.extend_from_slice(&self.chunk);
            self.chunk.clear();
            self.check(self.partial.len())?;
            return Ok(None);
        };
        let mut line = self.chunk.split_to(end);
        self.after_cr = self.chunk.first() == Some(&b'\r');
        self.chunk.advance(1);
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&line);
            line = self.partial.split().freeze();
        }
        if !self.started {
            self.started = true;
            if line.starts_with(b"\xEF\xBB\xBF") {
                line.advance(3);
            }
        }
        Ok(Some(line))
    }

    fn take(&mut self, mut line: Bytes) -> Result<Option<Item>, SseError> {
        if line.is_empty() {
            self.size = 0;
            if !std::mem::take(&mut self.open) {
                // A type alone is no event.
                self.event = Event::default();
                return Ok(None);
            }
            let mut event = std::mem::take(&mut self.event);
            event.data = std::mem::take(&mut self.data).finish();
            return Ok(Some(Item::Event(event)));
        }
        let colon = memchr::memchr(b':', &line);
        if colon == Some(0) {
            self.check(line.len())?;
            return Ok(Some(Item::Comment));
        }
        self.check(line.len())?;
        self.size += line.len();
        let field = line.split_to(colon.unwrap_or(line.len()));
        if !line.is_empty() {
            line.advance(1);
        }
        if line.first() == Some(&b' ') {
            line.advance(1);
        }
        match &*field {
            b"data" => {
                self.open = true;
                self.data.push(line);
            }
            b"event" => self.event.event = Some(String::from_utf8_lossy(&line).into_owned()),
            b"id" if !line.contains(&0) => {
                self.open = true;
                self.event.id = Some(String::from_utf8_lossy(&line).into_owned());
            }
            b"retry" if !line.is_empty() && line.iter().all(u8::is_ascii_digit) => {
                let millis = std::str::from_utf8(&line).ok().and_then(|text| text.parse().ok());
                self.open |= millis.is_some();
                self.event.retry = millis.or(self.event.retry);
            }
            _ => {}
        }
        Ok(None)
    }

    fn check(&mut self, more: usize) -> Result<(), SseError> {
        if self.size.saturating_add(more) > self.max_event {
            self.failed = true;
            self.chunk.clear();
            self.partial = BytesMut::new();
            self.data = Data::None;
            return Err(SseError::TooLarge { limit: self.max_event });
        }
        Ok(())
    }
}

/// The bytes of one event. An `id` with a line end or NUL is left out, and an `event` with a line end; every line of the
/// data, whatever ends it, becomes a `data` line.
pub fn encode(event: &Event) -> Bytes {
    let mut out = BytesMut::with_capacity(event.data.len() + 64);
    // A NUL ends no type: without it, an event that nobody reads would become a message.
    let id = event.id.as_deref().filter(|id| !id.contains('\0'));
    for (name, value) in [(&b"id: "[..], id), (b"event: ", event.event.as_deref())] {
        if let Some(value) = value.filter(|value| !value.contains(['\r', '\n'])) {
            out.extend_from_slice(name);
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\n");
        }
    }
    if let Some(retry) = event.retry {
        out.extend_from_slice(b"retry: ");
        out.extend_from_slice(retry.to_string().as_bytes());
        out.extend_from_slice(b"\n");
    }
    let mut rest: &[u8] = &event.data;
    loop {
        let end = memchr::memchr2(b'\r', b'\n', rest);
        let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
        rest = match behind {
            [b'\r', b'\n', behind @ ..] | [_, behind @ ..] => behind,
            [] => break,
        };
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

/// The bytes of an `event: message` with one JSON text.
pub fn encode_message(data: &Bytes) -> Bytes {
    encode(&Event { event: Some("message".into()), data: data.clone(), ..Event::default() })
}

#[cfg(test)]
mod tests;
