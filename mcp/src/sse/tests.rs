use proptest::prelude::*;

use super::*;

fn decode(chunks: &[&[u8]]) -> Vec<Item> {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        while let Some(item) = decoder.next().unwrap() {
            items.push(item);
        }
    }
    items
}

fn message(data: &str) -> Item {
    Item::Event(Event::message(Bytes::copy_from_slice(data.as_bytes())))
}

#[test]
fn streams_decode_as_the_standard_says() {
    let named = |event: Event| Item::Event(event);
    for (text, items) in [
        ("data: a\n\n", vec![message("a")]),
        ("data:a\r\ndata: b\r\r\n", vec![message("a\nb")]),
        ("data: a\rdata:  b\r\r", vec![message("a\n b")]),
        ("\u{feff}data: a\n\n", vec![message("a")]),
        ("data\n\n", vec![message("")]),
        ("data\ndata\n\n", vec![message("\n")]),
        (": hi\n\ndata: a\n\n", vec![Item::Comment, message("a")]),
        ("data: a", vec![]),
        ("data: a\n", vec![]),
        ("event: x\n\ndata: a\n\n", vec![message("a")]),
        ("unknown: x\ndata: a\nretry: x1\n\n", vec![message("a")]),
        ("\n\n\r\n\r", vec![]),
        ("id: \0\ndata: a\n\n", vec![message("a")]),
        (
            "event: endpoint\ndata: /m\nid: 7\nretry: 10\n\n",
            vec![named(Event {
                id: Some("7".into()),
                event: Some("endpoint".into()),
                data: Bytes::from_static(b"/m"),
                retry: Some(10),
            })],
        ),
        ("id: 1\ndata:\n\n", vec![named(Event { id: Some("1".into()), ..Event::default() })]),
        ("id\n\n", vec![named(Event { id: Some(String::new()), ..Event::default() })]),
        ("retry: 5\n\n", vec![named(Event { retry: Some(5), ..Event::default() })]),
    ] {
        assert_eq!(decode(&[text.as_bytes()]), items, "{text:?}");
    }
}

#[test]
fn a_whole_event_in_one_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"event: message\ndata: {\"a\":1}\n\n");
    let inside = chunk.as_ptr_range();
    let mut decoder = Decoder::default();
    decoder.push(chunk.clone());
    let Some(Item::Event(event)) = decoder.next().unwrap() else { panic!("no event") };
    assert_eq!(event.data, r#"{"a":1}"#);
    assert!(event.is_message());
    assert!(inside.contains(&event.data.as_ptr()));
    assert!(decoder.is_idle());
}

#[test]
fn an_event_that_is_too_large_ends_the_decoder() {
    let mut decoder = Decoder::new(20);
    decoder.push(Bytes::from_static(b"data: 12345678901234\n\n"));
    assert!(matches!(decoder.next(), Ok(Some(Item::Event(_)))));
    for stream in
        [&b"data: 123456789012345\n\n"[..], b"data: 1234567\ndata: 1234567\n\n", b"xxxxxxxxxxxxxxxxxxxxx"]
    {
        let mut decoder = Decoder::new(20);
        let mut failed = false;
        for byte in stream {
            decoder.push(Bytes::copy_from_slice(&[*byte]));
            failed |= decoder.next().is_err();
        }
        assert!(failed);
        decoder.push(Bytes::from_static(b"\n\ndata: a\n\n"));
        assert_eq!(decoder.next(), Err(SseError::TooLarge { limit: 20 }));
    }
}

#[test]
fn an_encoded_event_cannot_say_more_than_it_was_told() {
    let event = Event {
        id: Some("1\n2".into()),
        event: Some("x\rdata: forged".into()),
        data: Bytes::from_static(b"a\r\nb\rdata: c\n"),
        retry: None,
    };
    assert_eq!(encode(&event), "data: a\ndata: b\ndata: data: c\ndata: \n\n");
    let full = Event { id: Some("1".into()), event: Some("m".into()), data: Bytes::new(), retry: Some(3) };
    assert_eq!(encode(&full), "id: 1\nevent: m\nretry: 3\ndata: \n\n");
    assert_eq!(encode_message(&Bytes::from_static(b"{}")), "event: message\ndata: {}\n\n");
    let odd = Event { event: Some("m\0".into()), data: Bytes::from_static(b"a"), ..Event::default() };
    assert_eq!(decode(&[&encode(&odd)]), [Item::Event(odd)], "it does not become a message");
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "data: a",
        "data:é😀",
        "data",
        ":",
        ":c",
        "id: 1",
        "id: \0",
        "event: m",
        "retry: 7",
        "retry: x",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\r\r",
        "\u{feff}",
        " ",
        "x",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn events_do_not_depend_on_how_the_stream_is_cut(
        stream in streams(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let chunks: Vec<_> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let bytes: Vec<_> = stream.chunks(1).collect();
        let whole = decode(&[&stream]);
        prop_assert_eq!(&decode(&chunks), &whole);
        prop_assert_eq!(&decode(&bytes), &whole);
        // A caller may also push everything first.
        let mut decoder = Decoder::default();
        chunks.iter().for_each(|chunk| decoder.push(Bytes::copy_from_slice(chunk)));
        let mut items = Vec::new();
        while let Some(item) = decoder.next().unwrap() {
            items.push(item);
        }
        prop_assert_eq!(&items, &whole);
    }

    #[test]
    fn an_event_survives_encoding(id in prop::option::of("[a-z0-9]{0,8}"), name in prop::option::of("[a-z]{1,8}"),
        data in "[^\r\0]{0,40}", retry in prop::option::of(0u64..100_000)) {
        let event = Event { id, event: name, data: Bytes::from(data), retry };
        prop_assert_eq!(decode(&[&encode(&event)]), vec![Item::Event(event)]);
    }
}
