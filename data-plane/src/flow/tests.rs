use http_body_util::BodyExt as _;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use super::*;

fn open() -> Open {
    Open::new(&Gauge::default())
}

fn message(text: &str) -> Bytes {
    Bytes::from(format!("{{\"x\":\"{text}\"}}"))
}

async fn frame(body: &mut Body) -> Option<String> {
    let data = body.frame().await?.unwrap().into_data().unwrap();
    Some(String::from_utf8_lossy(&data).into_owned())
}

#[tokio::test]
async fn an_answer_alone_is_one_json_body() {
    let flow = Flow::new(async { Last::ok(message("answer")) }, Outbox::default(), false, open());
    let response = flow.respond().await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), message("answer"));
}

#[tokio::test]
async fn what_comes_before_the_answer_makes_a_stream_of_it() {
    let outbox = Outbox::default();
    let work = {
        let outbox = outbox.clone();
        async move {
            outbox.send(message("first")).await;
            tokio::task::yield_now().await;
            Last::ok(message("last"))
        }
    };
    let response = Flow::new(work, outbox, false, open()).respond().await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut body = response.into_body();
    assert_eq!(frame(&mut body).await.unwrap(), "event: message\ndata: {\"x\":\"first\"}\n\n");
    assert_eq!(frame(&mut body).await.unwrap(), "event: message\ndata: {\"x\":\"last\"}\n\n");
    assert_eq!(frame(&mut body).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_long_comes_on_a_stream_that_is_kept_alive() {
    let work = async {
        tokio::time::sleep(Duration::from_secs(40)).await;
        Last::ok(message("late"))
    };
    let mut body = Flow::new(work, Outbox::default(), false, open()).respond().await.into_body();
    assert_eq!(frame(&mut body).await.unwrap().as_bytes(), KEEP_ALIVE);
    assert_eq!(frame(&mut body).await.unwrap().as_bytes(), KEEP_ALIVE);
    assert!(frame(&mut body).await.unwrap().contains("late"));
}

#[tokio::test]
async fn the_work_waits_for_a_slow_client() {
    let outbox = Outbox::default();
    let (sent, mut count) = tokio::sync::watch::channel(0);
    let work = {
        let outbox = outbox.clone();
        async move {
            for number in 1..=100 {
                outbox.send(message("x")).await;
                sent.send_replace(number);
            }
            Last::ok(message("last"))
        }
    };
    let mut body = Flow::new(work, outbox, false, open()).respond().await.into_body();
    assert_eq!(*count.borrow_and_update(), UNREAD, "it stopped when the client had that many to read");
    let mut frames = 0;
    while frame(&mut body).await.is_some() {
        frames += 1;
    }
    assert_eq!(frames, 101);
}

#[tokio::test]
async fn work_ends_with_its_client_or_goes_on_without_it() {
    for survives in [false, true] {
        let outbox = Outbox::new(Some("s1".into()));
        let (go, wait) = oneshot::channel::<()>();
        let work = {
            let outbox = outbox.clone();
            async move {
                outbox.send(message("first")).await;
                assert!(wait.await.is_ok(), "dropped with the work, not before");
                for _ in 0..(UNREAD * 2) {
                    outbox.send(message("more")).await;
                }
                Last::ok(message("last"))
            }
        };
        let mut body = Flow::new(work, outbox.clone(), survives, open()).respond().await.into_body();
        assert!(frame(&mut body).await.unwrap().starts_with("id: s1-1\n"));
        drop(body);
        assert_eq!(go.send(()).is_ok(), survives);
        if !survives {
            continue;
        }
        while !outbox.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(outbox.rewind(1), "what the client has not had is still there");
        let mut body = Flow::reading(outbox.clone(), open()).stream().into_body();
        let mut last = String::new();
        let mut frames = 0;
        while let Some(text) = frame(&mut body).await {
            last = text;
            frames += 1;
        }
        assert_eq!(frames, UNREAD * 2 + 1);
        assert!(last.contains("last") && last.starts_with(&format!("id: s1-{}\n", UNREAD * 2 + 2)), "{last}");
    }
}

#[test]
fn what_is_kept_of_a_stream_is_bounded() {
    let outbox = Outbox::new(Some("s1".into()));
    outbox.abandon();
    for _ in 0..(KEPT * 3) {
        assert!(outbox.try_send(Bytes::from(vec![b'x'; 8 * 1024])));
    }
    let state = outbox.0.lock();
    assert!(state.bytes <= KEPT_BYTES && state.messages.len() <= KEPT, "{} bytes", state.bytes);
    drop(state);
    assert!(!outbox.rewind(1), "the first of them are gone, and that is said");
}
