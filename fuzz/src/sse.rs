//! A stream is the same events however it is cut, and an event that is written reads back as itself.

use bytes::Bytes;
use waffles_mcp::sse::{Decoder, Event, Item, encode};

const MAX_EVENT: usize = 4096;

/// The first byte says how the rest is cut.
pub fn check(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = decode([stream]);
    let every = usize::from(*cut % 7) + 1;
    assert_eq!(decode(stream.chunks(every)), whole, "cut every {every} bytes");
    // Pieces that grow, so that every kind of line end is cut once.
    let mut rest = stream;
    let mut pieces = Vec::new();
    let mut size = usize::from(*cut);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(size.clamp(1, rest.len()));
        pieces.push(piece);
        rest = behind;
        size = (size + 1) % 17;
    }
    assert_eq!(decode(pieces), whole, "cut in growing pieces from {cut}");
    let (items, _) = whole;
    for item in items {
        let Item::Event(event) = item else { continue };
        let written = encode(&event);
        let (read, failed) = decode([&written[..]]);
        assert!(failed || read == [Item::Event(event.clone())], "{event:?} became {read:?}");
    }
    // Whatever the bytes are, they stay inside one event's data.
    let smuggled = encode(&Event::message(Bytes::copy_from_slice(stream)));
    let (read, failed) = decode([&smuggled[..]]);
    assert!(
        failed || matches!(&read[..], [Item::Event(event)] if event.id.is_none() && event.event.is_none())
    );
}

/// What was found, and whether it ended with an event that is too large.
fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Item>, bool) {
    let mut decoder = Decoder::new(MAX_EVENT);
    let mut items = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(_) => return (items, true),
            }
        }
    }
    (items, false)
}
