use chrono::DateTime;
use uuid::Uuid;

use super::*;
use spool::Cursor;

fn event(n: u128) -> Event {
    let mut event = Event::new(Uuid::from_u128(n), DateTime::from_timestamp(1_800_000_000, 123_000).unwrap());
    event.tenant = "default".into();
    event.action = "mcp.tools/call".into();
    event.principal_id = Some(Uuid::from_u128(7));
    event.principal_name = "alice".into();
    event.api_key_id = "k1".into();
    event.client_ip = "127.0.0.1".into();
    event.client_name = "client/1.0".into();
    event.protocol_version = "2025-11-25".into();
    event.server_id = Some(Uuid::from_u128(9));
    event.server_name = "demo".into();
    event.target = "echo".into();
    event.rule = "role:user".into();
    event.http_status = 200;
    event.duration_us = 812;
    event.upstream_us = 640;
    event.request_bytes = 180;
    event.response_bytes = 260;
    event.revision = 42;
    event.proxy_id = Some(Uuid::from_u128(11));
    event
}

fn stored(trail: &Trail) -> Vec<Event> {
    let mut cursor = Cursor::after(0);
    let mut events = Vec::new();
    loop {
        let records = trail.spool().read(&mut cursor, 100, 1 << 20).unwrap();
        if records.is_empty() {
            return events;
        }
        for record in records {
            events.push(wire::event_from_proto(pb::Event::decode(record.payload).unwrap()).unwrap());
        }
    }
}

#[test]
fn a_record_is_read_back_as_it_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), Limits::default()).unwrap();
    trail.record(event(1));
    trail.record(event(2));
    assert_eq!((trail.depth(), trail.lost()), (2, 0));
    assert!(trail.healthy());
    drop(trail);
    let trail = Trail::open(dir.path(), Limits::default()).unwrap();
    assert_eq!(stored(&trail), [event(1), event(2)]);
}

#[test]
fn a_record_that_is_too_long_is_kept_without_its_payloads() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), Limits::default()).unwrap();
    let mut long = event(1);
    long.request_payload = "x".repeat(spool::MAX_PAYLOAD);
    long.response_payload = "short".into();
    trail.record(long);
    let mut longer = event(2);
    longer.target = "x".repeat(2 * spool::MAX_PAYLOAD);
    trail.record(longer);
    drop(trail);
    let trail = Trail::open(dir.path(), Limits::default()).unwrap();
    let events = stored(&trail);
    assert_eq!(events[0].request_payload, format!("\"[left out: {} bytes]\"", spool::MAX_PAYLOAD));
    assert_eq!(events[0].target, "echo");
    assert_eq!(events[1].target, "[left out]");
}

#[test]
fn a_strict_call_needs_room_and_a_counted_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { disk: 16 << 10, segment: 4 << 10, ring: 4 << 10, ..Limits::default() };
    let trail = Trail::open(dir.path(), limits).unwrap();
    let mut strict = 0;
    for n in 0..200 {
        assert_eq!(trail.admit(AuditMode::Count), Ok(()));
        if trail.admit(AuditMode::Strict) == Ok(()) {
            strict += 1;
            assert_eq!(trail.lost(), 0, "a strict call was let in and lost");
        }
        trail.record(event(n));
    }
    assert!((10..100).contains(&strict), "{strict}");
    assert_eq!(trail.admit(AuditMode::Strict), Err(AuditUnavailable));
    assert!(trail.lost() > 0);
    assert_eq!(trail.depth() + trail.lost(), 200);
}

/// With `--release … -- --nocapture the_cost`, prints the figures.
#[test]
fn the_cost_of_a_record_is_some_microseconds() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), Limits::default()).unwrap();
    let count = 50_000;
    let events: Vec<Event> = (0..count).map(event).collect();
    let mut times: Vec<_> = events
        .into_iter()
        .map(|event| {
            let start = tokio::time::Instant::now();
            trail.record(event);
            start.elapsed()
        })
        .collect();
    times.sort();
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    let mean = times.iter().sum::<std::time::Duration>() / u32::try_from(count).unwrap();
    eprintln!("mean {mean:?} p50 {:?} p99 {:?} p99.9 {:?}", at(0.5), at(0.99), at(0.999));
    eprintln!("slowest {:?}; {}", times.last(), trail.report());
    assert!(mean < std::time::Duration::from_millis(1), "{mean:?}");
}
