//! What proxies recorded is stored once and found again.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;
use waffles_proto::audit::v1 as pb;
use waffles_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::audit::v1::upload_request::Message;

use prost::Message as _;
use waffles_control_plane::audit::retention;
use waffles_control_plane::store::{Db, DbConfig};
use waffles_control_plane::upkeep;
use waffles_core::trail::{Hash, Report, Signer, Verifier, digest, link};

use super::enrolled::Enrolled;
use super::{Database, Operator, Plane, SOON};

/// The proxy's end of an upload stream.
pub struct Upload {
    to: mpsc::Sender<pb::UploadRequest>,
    from: Streaming<pb::UploadResponse>,
}

impl Upload {
    pub async fn open(plane: &Plane, who: &Enrolled, spool: Uuid) -> (Self, u64) {
        let (to, requests) = mpsc::channel(8);
        let hello = pb::UploadHello { proxy_id: who.id.to_string(), spool_id: spool.to_string() };
        to.send(pb::UploadRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        let from = AuditIngestServiceClient::new(who.channel(plane).await)
            .upload(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        let mut upload = Self { to, from };
        let stored = upload.receipt().await;
        (upload, stored)
    }

    pub async fn send(&self, events: Vec<pb::SequencedEvent>) {
        let batch = pb::Batch { events, lost: 0 };
        self.to.send(pb::UploadRequest { message: Some(Message::Batch(batch)) }).await.unwrap();
    }

    pub async fn say(&self, health: pb::Health) {
        self.to.send(pb::UploadRequest { message: Some(Message::Health(health)) }).await.unwrap();
    }

    pub async fn receipt(&mut self) -> u64 {
        let receipt = tokio::time::timeout(SOON, self.from.message()).await.expect("no receipt came");
        receipt.unwrap().expect("the stream ended").stored_through
    }
}

/// Record `sequence` of a spool: the same id whenever it is sent.
pub fn record(spool: Uuid, sequence: u64) -> pb::SequencedEvent {
    let time = chrono::Utc::now();
    let event = pb::Event {
        id: Uuid::from_u128(spool.as_u128() ^ u128::from(sequence)).to_string(),
        tenant: "default".into(),
        occurred_at: Some(prost_types::Timestamp { seconds: time.timestamp(), nanos: 0 }),
        action: "mcp.tools/call".into(),
        outcome: pb::Outcome::Ok.into(),
        server_name: "demo".into(),
        target: format!("tool-{sequence}"),
        request_payload: r#"{"a":1}"#.into(),
        ..Default::default()
    };
    pb::SequencedEvent { sequence, event: Some(event), hash: Vec::new() }
}

fn records(spool: Uuid, range: std::ops::RangeInclusive<u64>) -> Vec<pb::SequencedEvent> {
    range.map(|sequence| record(spool, sequence)).collect()
}

pub async fn search(admin: &Operator, filter: pb::EventFilter, page_size: u32) -> Vec<pb::Event> {
    let mut client = AuditServiceClient::new(admin.channel.clone());
    let (mut events, mut cursor) = (Vec::new(), String::new());
    loop {
        let request = pb::SearchEventsRequest { filter: Some(filter.clone()), page_size, cursor };
        let page = client.search_events(admin.ask(request)).await.unwrap().into_inner();
        events.extend(page.events);
        cursor = page.next_cursor;
        if cursor.is_empty() {
            return events;
        }
    }
}

fn of(proxy: Uuid) -> pb::EventFilter {
    pb::EventFilter { proxy_id: proxy.to_string(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_stored_once_however_often_it_is_sent() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let proxy = who.id;
        let (mut upload, stored) = Upload::open(&plane, &who, spool).await;
        assert_eq!(stored, 0);
        upload.send(records(spool, 1..=600)).await;
        assert_eq!(upload.receipt().await, 600);
        upload.send(records(spool, 1..=600)).await;
        assert_eq!(upload.receipt().await, 600);
        let mut twice = records(spool, 599..=605);
        twice.extend(records(spool, 603..=607));
        upload.send(twice).await;
        assert_eq!(upload.receipt().await, 607);

        // A second stream, and a control plane that was started anew, go on where the first left off.
        let (second, stored) = Upload::open(&plane, &who, spool).await;
        assert_eq!(stored, 607);
        drop((upload, second));
        plane.stop().await;
        let plane = Plane::start(&database).await;
        let admin = Operator { channel: plane.channel().await, ..admin };
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(Upload::open(&plane, &who, spool).await.0);
        }
        for stream in &streams {
            stream.send(records(spool, 608..=800)).await;
        }
        for stream in &mut streams {
            assert_eq!(stream.receipt().await, 800);
        }
        let events = search(&admin, of(proxy), 1000).await;
        assert_eq!(events.len(), 800);
        let mut targets: Vec<_> = events.iter().map(|event| event.target.clone()).collect();
        targets.sort();
        targets.dedup();
        assert_eq!(targets.len(), 800);
        drop(streams);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_makes_no_sense_is_kept_as_one_that_says_so() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let proxy = who.id;
        let (mut upload, _) = Upload::open(&plane, &who, spool).await;
        let with = |sequence, change: fn(&mut pb::Event)| {
            let mut record = record(spool, sequence);
            change(record.event.as_mut().unwrap());
            record
        };
        upload
            .send(vec![
                with(1, |e| e.id = "x".into()),
                pb::SequencedEvent { sequence: 2, event: None, hash: Vec::new() },
                with(3, |e| e.tenant = "nobody".into()),
                with(4, |e| e.target = "a\0b\n\u{1b}[31m".into()),
                with(5, |e| e.request_payload = "\0".repeat(10)),
                with(6, |e| e.occurred_at.as_mut().unwrap().seconds = 200_000_000_000),
                with(7, |e| e.duration_us = u64::MAX),
                with(8, |e| e.proxy_id = Uuid::now_v7().to_string()),
                // The same id and time as another record.
                with(9, |e| {
                    e.occurred_at = Some(prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 })
                }),
                pb::SequencedEvent {
                    sequence: 10,
                    ..with(9, |e| {
                        e.occurred_at = Some(prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 })
                    })
                },
            ])
            .await;
        assert_eq!(upload.receipt().await, 10);
        let events = search(&admin, of(proxy), 2).await;
        assert_eq!(events.len(), 10, "the repeated one is kept as one that says so");
        let malformed: Vec<_> = events.iter().filter(|e| e.action == "audit.malformed").collect();
        assert_eq!(malformed.len(), 3);
        assert!(malformed.iter().all(|e| e.reason == "malformed_record" && e.detail.contains("sequence")));
        assert!(events.iter().all(|e| e.tenant == "default" && e.proxy_id == proxy.to_string()));
        assert!(events.iter().any(|e| e.detail.contains("claimed_tenant") && e.detail.contains("nobody")));
        assert!(events.iter().any(|e| e.detail.contains("claimed_time")));
        assert!(events.iter().any(|e| e.target == "a\u{fffd}b\u{fffd}\u{fffd}[31m"));
        drop(upload);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_was_asked_for_page_by_page() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let proxy = who.id;
        let (mut upload, _) = Upload::open(&plane, &who, spool).await;
        let mut sent = records(spool, 1..=10);
        for record in &mut sent {
            let event = record.event.as_mut().unwrap();
            // All at one moment, so that the id decides about the order.
            event.occurred_at = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 });
            if record.sequence > 7 {
                event.outcome = pb::Outcome::Denied.into();
                event.action = "mcp.tools/list".into();
                event.principal_name = "alice".into();
                event.principal_id = Uuid::from_u128(7).to_string();
            }
        }
        upload.send(sent.clone()).await;
        assert_eq!(upload.receipt().await, 10);
        let found = async |filter: pb::EventFilter| {
            search(&admin, pb::EventFilter { proxy_id: proxy.to_string(), ..filter }, 3).await.len()
        };
        let all = pb::EventFilter::default();
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        for (filter, expected) in [
            (all.clone(), 10),
            (pb::EventFilter { outcomes: vec![pb::Outcome::Denied.into()], ..all.clone() }, 3),
            (pb::EventFilter { action: "mcp.".into(), ..all.clone() }, 10),
            (pb::EventFilter { action: "MCP.".into(), ..all.clone() }, 0),
            (pb::EventFilter { action: "mcp.tools/list".into(), ..all.clone() }, 3),
            (pb::EventFilter { principal: "alice".into(), ..all.clone() }, 3),
            (pb::EventFilter { principal: Uuid::from_u128(7).to_string(), ..all.clone() }, 3),
            (pb::EventFilter { target: "tool-3".into(), ..all.clone() }, 1),
            (pb::EventFilter { server: "other".into(), ..all.clone() }, 0),
            (pb::EventFilter { id: sent[4].event.as_ref().unwrap().id.clone(), ..all.clone() }, 1),
            (pb::EventFilter { since: at(1_700_000_000, 123_456_000), ..all.clone() }, 10),
            (pb::EventFilter { since: at(1_700_000_000, 123_457_000), ..all.clone() }, 0),
            (pb::EventFilter { until: at(1_700_000_000, 123_456_000), ..all.clone() }, 0),
            (pb::EventFilter { until: at(1_700_000_001, 0), ..all.clone() }, 10),
        ] {
            assert_eq!(found(filter.clone()).await, expected, "{filter:?}");
        }
        drop(upload);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_sees_each_event_once_in_the_order_of_storing() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let proxy = who.id;
        let (mut upload, _) = Upload::open(&plane, &who, spool).await;
        upload.send(records(spool, 1..=3)).await;
        upload.receipt().await;
        let request = pb::TailEventsRequest { filter: Some(of(proxy)) };
        let mut tail = AuditServiceClient::new(admin.channel.clone())
            .tail_events(admin.ask(request))
            .await
            .unwrap()
            .into_inner();
        for batch in [4..=4, 5..=400, 401..=402] {
            upload.send(records(spool, batch)).await;
            upload.receipt().await;
        }
        let mut targets = Vec::new();
        while targets.len() < 399 {
            let message = tokio::time::timeout(SOON, tail.message()).await.expect("the tail stands still");
            targets.extend(message.unwrap().unwrap().events.into_iter().map(|event| event.target));
        }
        let expected: Vec<_> = (4..=402).map(|i| format!("tool-{i}")).collect();
        assert_eq!(targets, expected);
        drop(upload);
        let (ended, ()) = tokio::join!(tail.message(), plane.stop());
        assert!(ended.unwrap().is_none(), "the drain ends it");
        database.drop().await;
    }
}

/// As a proxy sends it, behind a record of this hash.
fn linked(proxy: Uuid, spool: Uuid, sequence: u64, previous: &mut Hash) -> pb::SequencedEvent {
    let mut record = record(spool, sequence);
    record.event.as_mut().unwrap().proxy_id = proxy.to_string();
    let encoded = record.event.as_ref().unwrap().encode_to_vec();
    *previous = link(spool, sequence, previous, &digest(&encoded));
    pb::SequencedEvent { hash: previous.0.to_vec(), ..record }
}

async fn verified(admin: &Operator) -> Report {
    let request = admin.ask(pb::ExportEventsRequest::default());
    let mut client = AuditServiceClient::new(admin.channel.clone());
    let mut parts = client.export_events(request).await.unwrap().into_inner();
    let (mut verifier, mut number) = (Verifier::new(None), 0);
    while let Some(part) = parts.message().await.unwrap() {
        for line in String::from_utf8(part.lines).unwrap().lines() {
            number += 1;
            verifier.text(number, line);
        }
    }
    verifier.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_breaks_on_the_way_is_stored_and_told() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let (mut upload, _) = Upload::open(&plane, &who, spool).await;
        let mut hash = Hash::START;
        let mut records: Vec<_> = (1..=3).map(|n| linked(who.id, spool, n, &mut hash)).collect();
        // The fourth was linked, and is lost from the disk of the proxy; the sixth and seventh had never been there.
        linked(who.id, spool, 4, &mut hash);
        records.extend([5, 8].map(|n| linked(who.id, spool, n, &mut hash)));
        // One that has to be cleaned is no break.
        let mut unclean = record(spool, 9);
        unclean.event.as_mut().unwrap().target = "a\u{202e}b".into();
        hash = link(spool, 9, &hash, &digest(&unclean.event.as_ref().unwrap().encode_to_vec()));
        records.push(pb::SequencedEvent { hash: hash.0.to_vec(), ..unclean });
        records.push(linked(who.id, spool, 10, &mut hash));
        upload.send(records).await;
        assert_eq!(upload.receipt().await, 10);
        let told = pb::EventFilter { action: "audit.chain_broken".into(), ..Default::default() };
        let told = search(&admin, told, 100).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].resource.contains(&who.id.to_string()) && told[0].detail.contains("\"sequence\":5"));
        let report = verified(&admin).await;
        assert_eq!(report.findings, []);
        assert_eq!((report.attested, report.lost), (2, 3), "{report:?}");
        assert!(report.events > 7 && report.unchained == 0);
        // A proxy of the version before links nothing, and the control plane does.
        let old = Uuid::now_v7();
        let (mut upload, _) = Upload::open(&plane, &who, old).await;
        upload.send(records_of(old)).await;
        upload.receipt().await;
        assert!(verified(&admin).await.is_clean());
        plane.stop().await;
        database.drop().await;
    }
}

fn records_of(spool: Uuid) -> Vec<pb::SequencedEvent> {
    records(spool, 1..=5)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_because_of_its_age_leaves_a_trail_that_is_whole() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let (who, spool) = (Enrolled::new(&plane).await, Uuid::now_v7());
        let (mut upload, _) = Upload::open(&plane, &who, spool).await;
        let db = Db::connect(&DbConfig::new(database.url.clone())).await.unwrap();
        let now = waffles_core::audit::micros(chrono::Utc::now());
        // So that on Postgres some of it is in months of its own.
        upkeep::make_partitions(&db, now - chrono::TimeDelta::days(400)).await.unwrap();
        let mut hash = Hash::START;
        let mut sent = Vec::new();
        // Ages in days: a long stream ends late, so that the order of writing is not that of beginning.
        for (sequence, days) in (1..).zip([400, 399, 30, 398, 20, 10, 397, 396, 2, 1, 500]) {
            let mut record = record(spool, sequence * 2);
            let event = record.event.as_mut().unwrap();
            event.occurred_at.as_mut().unwrap().seconds -= days * 86_400;
            hash = link(spool, record.sequence, &hash, &digest(&event.encode_to_vec()));
            sent.push(pb::SequencedEvent { hash: hash.0.to_vec(), ..record });
        }
        upload.send(sent).await;
        assert_eq!(upload.receipt().await, 22);
        let before = verified(&admin).await;
        assert_eq!(before.findings, []);
        let cutoff = now - chrono::TimeDelta::days(100);
        // The key of another control plane signs for nothing here.
        let report = {
            let signer = plane.services.audit.signer();
            while retention::forget(&db, signer, cutoff, 2).await.unwrap() > 0 {}
            verified(&admin).await
        };
        assert_eq!(report.findings, []);
        assert_eq!(report.events + 6, before.events);
        assert!(report.forgotten >= 6 && report.forgotten_before == Some(cutoff), "{report:?}");
        retention::forget(&db, &Signer::new(&[1; 32]), now - chrono::TimeDelta::days(15), 100).await.unwrap();
        assert!(!verified(&admin).await.is_clean());
        db.close().await;
        plane.stop().await;
        database.drop().await;
    }
}
