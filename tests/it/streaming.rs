//! Event streams: passed on as they come, in whole messages, ended by exactly one answer, and given up when nobody reads
//! any more.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use waffles_core::audit::Outcome;
use waffles_tests::mcp_client::events;
use waffles_tests::{Behaviour, Era, RawServer, Seeded, until};

use crate::call::stream_of;

#[tokio::test]
async fn each_message_leaves_when_it_comes() {
    let waffles = Seeded::start().await;
    let pause = Duration::from_millis(300);
    waffles.upstream.on_tool("steps", Behaviour::Progress { steps: 3, pause });
    for era in Era::BOTH {
        let client = waffles.client().of(era).await;
        let started = Instant::now();
        let params = json!({"name": "steps", "_meta": {"progressToken": "t"}});
        let mut stream = client.ask_stream(1, "tools/call", params).await.unwrap();
        for step in 1..=3 {
            let message = stream.message().await.unwrap();
            assert_eq!(message["params"], json!({"progressToken": "t", "progress": step}));
            let late = started.elapsed().saturating_sub(pause * (step - 1));
            assert!(late < Duration::from_millis(250), "step {step} came {late:?} late");
        }
        assert!(stream.message().await.unwrap()["result"].is_object());
        assert_eq!(stream.rest().await.unwrap(), Vec::<Value>::new());
    }
}

#[tokio::test]
async fn an_odd_stream_is_written_anew_and_says_the_same() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("odd", Behaviour::OddSse);
    let text = "\u{e9}\u{20ac}\u{1f30a}\u{2028}".repeat(20);
    for (era, ids) in [(Era::Sessions, [None, Some("1"), Some("2")]), (Era::Stateless, [None; 3])] {
        let client = waffles.client().of(era).await;
        let answer = client.call("odd", json!({"x": text})).await.unwrap();
        assert!(answer.complete);
        assert_eq!(answer.messages().len(), 2);
        assert_eq!(answer.result()["structuredContent"]["x"], text, "cut byte by byte, and whole again");
        let found: Vec<_> = events(&answer.body).into_iter().map(|event| event.id).collect();
        let expected: Vec<_> = ids.iter().map(|id| id.map(str::to_owned)).collect();
        let expected = if era == Era::Stateless { expected[1..].to_vec() } else { expected };
        assert_eq!(found, expected);
        assert!(!answer.text().contains('\r') && !answer.text().contains("comment"));
    }
}

#[tokio::test]
async fn nothing_is_smuggled_in_an_event() {
    let waffles = Seeded::start().await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
    let result = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    let body = format!(
        "id: a\0b\nfoo: {result}\nevent: message\ndata: {note}\n\ndata: {result}\n\ndata: {note}\n\n"
    );
    waffles.upstream.on_tool("loud", stream_of(&body));
    let client = waffles.client().of(Era::Sessions).await;
    let answer = client.call("loud", json!({})).await.unwrap();
    let expected = format!("event: message\ndata: {note}\n\ndata: {result}\n\n");
    assert_eq!(answer.text(), expected, "nothing behind the answer, no field that is none");
}

#[tokio::test]
async fn a_flood_of_messages_arrives_whole_and_in_order() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("flood", Behaviour::Flood(5_000));
    let client = waffles.client().of(Era::Stateless).await;
    let messages = client.call("flood", json!({})).await.unwrap().messages();
    assert_eq!(messages.len(), 5_001);
    assert!((0..5_000).all(|n| messages[n]["params"]["data"] == n + 1));
}

#[tokio::test]
async fn a_client_that_leaves_before_any_byte_cancels_at_the_server() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let client = waffles.client().of(Era::Stateless).await;
    let left = tokio::time::timeout(Duration::from_millis(300), client.call("never", json!({}))).await;
    assert!(left.is_err());
    until("the server was told", Duration::from_secs(1), || async { waffles.upstream.abandoned() == 1 })
        .await;
    let record = waffles.record();
    assert_eq!((record.outcome, record.reason.as_str()), (Outcome::Cancelled, "client_gone"));
    assert_eq!((record.http_status, record.target.as_str()), (0, "never"));
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_cancels_at_the_server() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("steps", Behaviour::Progress { steps: 1000, pause: Duration::from_millis(50) });
    waffles.upstream.on_tool("quiet", Behaviour::SilentStream);
    let client = waffles.client().of(Era::Stateless).await;
    for (tool, gone) in [("steps", 1), ("quiet", 2)] {
        let mut stream = client.ask_stream(1, "tools/call", json!({"name": tool})).await.unwrap();
        if tool == "steps" {
            stream.message().await.unwrap();
        }
        drop(stream);
        until("the server was told", Duration::from_secs(1), || async {
            waffles.upstream.abandoned() == gone
        })
        .await;
    }
    until("all streams are closed", Duration::from_secs(1), || async {
        waffles.proxy.metrics().await.contains("waffles_open_streams 0")
    })
    .await;
    let records = waffles.records();
    assert_eq!(records.len(), 2);
    assert!(
        records.iter().all(|record| record.outcome == Outcome::Cancelled && record.reason == "client_gone")
    );
    until("no connection is left", Duration::from_secs(5), || async {
        waffles.upstream.open_connections() == 0
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_or_never_ends_is_ended_with_an_answer() {
    let waffles = Seeded::with(|server| {
        server.spec.timeouts.idle = Duration::from_secs(1);
        server.spec.timeouts.total = Duration::from_secs(3);
    })
    .await;
    waffles.upstream.on_tool("quiet", Behaviour::SilentStream);
    let endless = Behaviour::Progress { steps: 100_000, pause: Duration::from_millis(100) };
    waffles.upstream.on_tool("endless", endless);
    for era in Era::BOTH {
        let client = waffles.client().of(era).await;
        for (tool, from, to) in [("quiet", 900, 2_500), ("endless", 2_900, 4_500)] {
            let started = Instant::now();
            let answer = client.call(tool, json!({})).await.unwrap();
            let took = started.elapsed().as_millis();
            assert!((from..to).contains(&took), "{tool}: {took} ms");
            assert!(answer.complete, "it ends as HTTP says");
            let answers: Vec<Value> =
                answer.messages().into_iter().filter(|message| message.get("id").is_some()).collect();
            assert_eq!(answers.len(), 1, "{tool}");
            assert_eq!((&answers[0]["id"], answer.error_code()), (&json!(1), -32603));
            let record = waffles.records().pop().unwrap();
            assert_eq!(record.outcome, Outcome::UpstreamFailed);
            assert_eq!(record.reason, "upstream_timed_out");
            assert_eq!((record.http_status, record.rpc_code), (200, -32603));
        }
    }
    until("the server was told", Duration::from_secs(1), || async { waffles.upstream.abandoned() == 4 })
        .await;
}

#[tokio::test]
async fn a_question_to_a_person_may_take_longer_than_silence() {
    let waffles = Seeded::with(|server| server.spec.timeouts.idle = Duration::from_secs(1)).await;
    let params = json!({"message": "?"});
    waffles.upstream.on_tool("ask", Behaviour::Ask { method: "elicitation/create".into(), params });
    let client = waffles.client().of(Era::Sessions).await;
    let mut stream = client.ask_stream(1, "tools/call", json!({"name": "ask"})).await.unwrap();
    let question = stream.message().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}});
    client.post(reply.to_string()).await.unwrap();
    assert!(stream.message().await.unwrap()["result"].is_object());
}

#[tokio::test]
async fn an_event_or_a_stream_that_is_too_large_is_ended_with_an_answer() {
    let waffles = Seeded::start().await;
    let huge = format!("data: {}\n\n", "x".repeat(5 << 20));
    waffles.upstream.on_tool("event", stream_of(&huge));
    let note = json!({"jsonrpc": "2.0", "method": "notifications/message",
        "params": {"level": "info", "data": "x".repeat(1 << 20)}});
    waffles.upstream.on_tool("stream", stream_of(&format!("data: {note}\n\n").repeat(80)));
    let client = waffles.client().of(Era::Stateless).await;
    for tool in ["event", "stream"] {
        let answer = client.call(tool, json!({})).await.unwrap();
        assert!(answer.complete, "{tool}");
        assert_eq!(answer.error_code(), -32603, "{tool}");
        assert_eq!(answer.message()["error"]["data"]["reason"], "upstream_answer_too_large", "{tool}");
        assert!(answer.body.len() < 66 << 20, "{tool}");
        assert_eq!(waffles.records().pop().unwrap().reason, "upstream_answer_too_large");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("flood", Behaviour::Flood(1_000_000));
    let client = waffles.client().of(Era::Stateless).await;
    let mut held = Vec::new();
    for id in 0..8 {
        held.push(client.ask_stream(id, "tools/call", json!({"name": "flood"})).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(client.call("echo", json!({})).await.unwrap().status, 200);
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    }
    drop(held);
    until("all are given up", Duration::from_secs(2), || async { waffles.upstream.abandoned() == 8 }).await;
}

#[tokio::test]
async fn a_get_stream_carries_what_the_server_pushes_and_outlives_its_silence() {
    let waffles = Seeded::with(|server| {
        server.spec.timeouts.idle = Duration::from_millis(500);
        server.spec.timeouts.total = Duration::from_millis(500);
    })
    .await;
    let client = waffles.client().of(Era::Sessions).await;
    let mut stream = client.get_stream().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let request = json!({"jsonrpc": "2.0", "id": "r1", "method": "roots/list"});
    let note = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    for message in [&request, &note] {
        assert_eq!(waffles.upstream.push(message).await, 1);
        assert_eq!(stream.message().await.unwrap(), *message);
    }
    waffles.upstream.kill();
    assert!(stream.event().await.unwrap().is_none(), "it ends when the server does");
    let record = waffles.record_of("mcp.stream");
    assert!(matches!(record.outcome, Outcome::Ok | Outcome::UpstreamFailed), "{record:?}");
}

#[tokio::test]
async fn an_answer_in_a_head_and_no_more_is_broken_off() {
    let upstream = RawServer::start(|mut connection| async move {
        connection.request().await;
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        connection.write("40\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"res").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        connection.reset();
    })
    .await;
    let waffles = Seeded::and(|seed, _| {
        seed.server("raw", &upstream.url(), |_| {});
    })
    .await;
    let mut client = waffles_tests::McpClient::new(&waffles.proxy.server_url("raw"));
    client = client.with_bearer(&waffles.key).of(Era::Stateless).await;
    let answer = client.call("x", json!({})).await.unwrap();
    assert!(answer.complete);
    assert_eq!(answer.messages().len(), 1);
    assert_eq!(answer.message()["error"]["data"]["reason"], "upstream_broke_off");
    assert_eq!(upstream.requests(), 1, "it is not asked twice");
}

#[tokio::test]
async fn a_stream_ends_when_its_key_does_though_nothing_has_changed() {
    let mut key = String::new();
    let waffles = Seeded::and(|seed, _| {
        let bob = seed.principal("bob", "user");
        key = seed.key_with(bob, |parts| {
            parts.expires_at = Some(chrono::Utc::now() + chrono::TimeDelta::seconds(4));
        });
    })
    .await;
    let client = waffles.anonymous().with_bearer(&key).of(Era::Sessions).await;
    let stream = client.get_stream().await.unwrap();
    let rest = tokio::time::timeout(Duration::from_secs(12), stream.rest()).await;
    assert!(rest.is_ok(), "the stream outlives its key");
    let record = waffles.record_of("mcp.stream");
    assert_eq!((record.outcome, record.rule.as_str()), (Outcome::Denied, "revoked while open"));
}
