//! At a federated door, no two things share a name, and every name and URI leads back to what it is of.

use serde_json::json;
use waffles_mcp::Method;
use waffles_mcp::names::{MAX_NAME, Public, is_short_of, join, split};
use waffles_mcp::uris::{map_uris, unwrap, wrap};

/// Four parts, with NUL between them: a server, a name, another server, another name.
pub fn check(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let one = (label(next()), text(next()));
    let two = (label(next()), text(next()));
    for (server, name) in [&one, &two] {
        let public = join(server, name);
        assert!(public.len() <= MAX_NAME, "{public}");
        match split(&public) {
            Public::Exact { server: found, name: own } => assert_eq!((found, own), (&**server, &**name)),
            Public::Short { text } => assert_eq!(text, public),
            Public::Bare(_) => panic!("{public} has no server"),
        }
        let wrapped = wrap(server, name);
        match unwrap(&wrapped) {
            Some(found) => assert_eq!(found, (&**server, &**name)),
            None => assert!(wrapped == *name && name[..6].eq_ignore_ascii_case("https:"), "{wrapped}"),
        }
        in_results(server, name);
        // A name that leads to a server has no second spelling, unless it is one that clients refuse.
        if let Public::Exact { server, name: own } = split(name) {
            let again = join(server, own);
            assert!(
                again == *name || matches!(split(&again), Public::Short { .. }),
                "{name} is also {again}"
            );
        }
    }
    let (first, second) = (join(&one.0, &one.1), join(&two.0, &two.1));
    assert_eq!(first == second, one == two, "{one:?} and {two:?} are {first} and {second}");
    let short = matches!(split(&first), Public::Short { .. });
    assert_eq!(is_short_of(&first, &one.0, &one.1), short);
    assert_eq!(is_short_of(&first, &two.0, &two.1), short && one == two);
}

/// A URI in a result leaves wrapped, wherever it stands, and everything else stays.
fn in_results(server: &str, uri: &str) {
    let call = |uri: &str| {
        json!({"content": [
            {"type": "resource_link", "uri": uri, "name": uri},
            {"resource": {"text": uri, "uri": uri}, "type": "resource"},
            {"type": "text", "text": uri, "uri": uri},
        ]})
    };
    let mut want = call(uri);
    want["content"][0]["uri"] = wrap(server, uri).into();
    want["content"][1]["resource"]["uri"] = wrap(server, uri).into();
    let came = call(uri).to_string();
    let map = |uri: &str| Some(wrap(server, uri));
    let left =
        map_uris(&Method::ToolsCall, came.as_bytes(), &map).expect("a sound result").expect("two URIs");
    assert_eq!(super::slow::read(&left), Some(want));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A DNS label out of any bytes.
fn label(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 37] = b"abcdefghijklmnopqrstuvwxyz0123456789-";
    let letters = bytes.iter().take(63).map(|byte| match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(*byte),
        _ => char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]),
    });
    let label: String = letters.collect();
    if label.is_empty() { "s".to_owned() } else { label }
}
