//! A page goes out as it came in: its entries to the byte, and the server's cursor, which is opaque, character by
//! character, there and back.

use bytes::Bytes;
use serde_json::json;
use waffles_mcp::listing::{entries, filter_list, list_result, renamed};
use waffles_mcp::translate::request::{Extra, to_session};
use waffles_mcp::{Limits, Message, Slot};

/// The first NUL ends the cursor; the other parts are the names of tools.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let cursor = parts.next().unwrap_or_default();
    let names: Vec<&str> = parts.collect();
    let tools: Vec<Bytes> = names
        .iter()
        .map(|name| json!({"inputSchema": {"n": 1.0}, "name": name}).to_string().into())
        .collect();

    let page = list_result("tools", &tools, Some(cursor));
    let (read, next) = entries(&page, "tools").expect("a written list is one");
    assert_eq!(next.as_deref(), Some(cursor));
    assert_eq!(read.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), names);
    assert_eq!(read.iter().map(|entry| entry.raw.clone()).collect::<Vec<_>>(), tools);
    for entry in &read {
        let other = renamed(&entry.raw, "name", cursor);
        let back = renamed(&other, "name", &entry.name);
        assert_eq!(back, entry.raw);
    }
    let (last, end) = entries(&list_result("tools", &tools, None), "tools").expect("a written list is one");
    assert_eq!((last.len(), end), (tools.len(), None));

    // A page that loses entries loses nothing else.
    let kept = filter_list(&page, "tools", false, |name| name.len() % 2 == 0).expect("a written list is one");
    let kept = kept.map_or(page.clone(), Bytes::from);
    let (left, next) = entries(&kept, "tools").expect("a filtered list is one");
    assert_eq!(next.as_deref(), Some(cursor));
    assert!(
        left.iter().map(|entry| &*entry.name).eq(names.iter().copied().filter(|name| name.len() % 2 == 0))
    );

    // On its way to a server, a cursor is replaced or dropped, and the rest of the request stays.
    let request =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": "ours", "a.b/c": 1}});
    let request = message(request.to_string().into());
    let asked =
        message(to_session(&request, None, &Extra { edits: &[(Slot::Cursor, cursor)], ..Extra::default() }));
    assert_eq!(asked.text(Slot::Cursor).as_deref(), Some(cursor));
    let first = message(to_session(&request, None, &Extra { drop_cursor: true, ..Extra::default() }));
    assert_eq!(first.params().as_deref(), Some(&br#"{"a.b/c":1}"#[..]));
}

fn message(bytes: Bytes) -> Message {
    Message::parse(bytes, &Limits::RESPONSE).expect("a sound message")
}
