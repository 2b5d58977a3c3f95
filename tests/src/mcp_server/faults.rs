//! What the scripted server does with one request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use waffles_runtime::task;

use super::wire::{self, Body, Feed};
use super::{Behaviour, State, Unanswered};
use crate::Era;

/// How long a behaviour that waits for the other side does so.
const LONGEST: Duration = Duration::from_secs(600);

/// So that what was written before a reset leaves: an error takes unsent bytes with it.
const FLUSH: Duration = Duration::from_millis(20);

pub(super) async fn behave(
    state: &Arc<State>,
    behaviour: Behaviour,
    era: Era,
    request: &Value,
    unanswered: Unanswered,
) -> Result<Response<Body>, std::io::Error> {
    let echo = wire::result_message(era, request, echo(request));
    if let Behaviour::Slow(time) = behaviour {
        tokio::time::sleep(time).await;
        unanswered.answered();
        return Ok(wire::json_answer(StatusCode::OK, &echo));
    }
    if let Behaviour::Never = behaviour {
        // Dropped before, it counts as abandoned.
        tokio::time::sleep(LONGEST).await;
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    if streams(&behaviour, era) {
        return Ok(wire::sse(streamed(state, behaviour, era, request.clone(), echo, unanswered)));
    }
    unanswered.answered();
    match behaviour {
        Behaviour::Echo => Ok(wire::json_answer(StatusCode::OK, &echo)),
        Behaviour::Result(result) => Ok(wire::result(era, request, result)),
        Behaviour::Error { code, message, data } => {
            let mut error = json!({"code": code, "message": message});
            if !data.is_null() {
                error["data"] = data;
            }
            let message = json!({"jsonrpc": "2.0", "id": request["id"], "error": error});
            Ok(wire::json_answer(StatusCode::OK, &message))
        }
        Behaviour::Raw { status, headers, body } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(wire::full(body)).map_err(std::io::Error::other)?)
        }
        Behaviour::HangUp => Err(std::io::ErrorKind::ConnectionReset.into()),
        Behaviour::WrongContentType => {
            let mut response = wire::json_answer(StatusCode::OK, &echo);
            response.headers_mut().insert(header::CONTENT_TYPE, "text/html".parse().expect("it is a value"));
            Ok(response)
        }
        Behaviour::WrongId => {
            let mut other = echo;
            other["id"] = json!("another");
            Ok(wire::json_answer(StatusCode::OK, &other))
        }
        Behaviour::Truncated => {
            let (feed, body) = Feed::new();
            let text = echo.to_string();
            let length = text.len();
            task::spawn("truncated answer", async move {
                feed.bytes(text[..length / 2].to_owned()).await;
                tokio::time::sleep(FLUSH).await;
                feed.reset().await;
            });
            let response = Response::builder()
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::CONTENT_LENGTH, length);
            response.body(body).map_err(std::io::Error::other)
        }
        Behaviour::NotJson => {
            let mut response = wire::json_answer(StatusCode::OK, &echo);
            *response.body_mut() = wire::full("{\"jsonrpc\": \"2.0\", oh no");
            Ok(response)
        }
        Behaviour::SessionGone => {
            Ok(wire::refusal(StatusCode::NOT_FOUND, request, -32001, "no such session"))
        }
        Behaviour::Large(size) => {
            let result = json!({"content": [{"type": "text", "text": "x".repeat(size)}]});
            Ok(wire::result(era, request, result))
        }
        Behaviour::Ask { method, params } => {
            let reply = &request["params"]["inputResponses"]["asked"];
            let result = if reply.is_null() {
                let asked = json!({"method": method, "params": params});
                json!({"resultType": "input_required", "inputRequests": {"asked": asked}, "requestState": "scripted"})
            } else {
                json!({"content": [{"type": "text", "text": reply.to_string()}], "structuredContent": reply})
            };
            Ok(wire::result(era, request, result))
        }
        other => unreachable!("{other:?} was answered above"),
    }
}

/// Which behaviours answer with an event stream.
fn streams(behaviour: &Behaviour, era: Era) -> bool {
    match behaviour {
        Behaviour::EchoSse
        | Behaviour::SilentStream
        | Behaviour::ResetMidStream
        | Behaviour::NoAnswer
        | Behaviour::Twice
        | Behaviour::OddSse
        | Behaviour::Flood(_)
        | Behaviour::Progress { .. } => true,
        Behaviour::Ask { .. } => era == Era::Sessions,
        _ => false,
    }
}

/// The body of those.
fn streamed(
    state: &Arc<State>,
    behaviour: Behaviour,
    era: Era,
    request: Value,
    echo: Value,
    unanswered: Unanswered,
) -> Body {
    let (feed, body) = Feed::new();
    let state = Arc::clone(state);
    task::spawn("scripted stream", async move {
        if feed_all(&state, behaviour, era, &request, &echo, &feed).await {
            unanswered.answered();
        }
    });
    body
}

/// Writes the stream; false when its reader went away before the end.
async fn feed_all(
    state: &State,
    behaviour: Behaviour,
    era: Era,
    request: &Value,
    echo: &Value,
    feed: &Feed,
) -> bool {
    match behaviour {
        Behaviour::SilentStream => {
            feed.bytes(": here\n\n").await;
            drop(tokio::time::timeout(LONGEST, feed.gone()).await);
            // Only the other side's leaving ends it, and that is no answer.
            return false;
        }
        Behaviour::ResetMidStream => {
            feed.message(&progress(request, 1)).await;
            feed.bytes("data: {\"jsonrpc\":\"2.0\",").await;
            tokio::time::sleep(FLUSH).await;
            feed.reset().await;
        }
        Behaviour::NoAnswer => {
            feed.message(&progress(request, 1)).await;
        }
        Behaviour::Twice => {
            feed.message(echo).await;
            let second = json!({"content": [{"type": "text", "text": "second"}]});
            feed.message(&wire::result_message(era, request, second)).await;
        }
        Behaviour::OddSse => {
            for byte in odd(request, echo) {
                if !feed.bytes(Bytes::copy_from_slice(&[byte])).await {
                    return false;
                }
                tokio::task::yield_now().await;
            }
        }
        Behaviour::Flood(count) => {
            for step in 1..=count {
                if !feed.message(&progress(request, step)).await {
                    return false;
                }
            }
            feed.message(echo).await;
        }
        Behaviour::Progress { steps, pause } => {
            for step in 1..=steps {
                if !feed.message(&progress(request, step)).await {
                    return false;
                }
                if tokio::time::timeout(pause, feed.gone()).await.is_ok() {
                    return false;
                }
            }
            feed.message(echo).await;
        }
        Behaviour::Ask { method, params } => {
            let id = format!("ask-{}", state.numbers.fetch_add(1, Ordering::Relaxed));
            let (sender, receiver) = oneshot::channel();
            state.asked.lock().insert(id.clone(), sender);
            feed.message(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
            let reply = tokio::select! {
                reply = tokio::time::timeout(LONGEST, receiver) => reply,
                () = feed.gone() => return false,
            };
            let Ok(Ok(reply)) = reply else { return false };
            let result =
                json!({"content": [{"type": "text", "text": reply.to_string()}], "structuredContent": reply});
            feed.message(&wire::result_message(era, request, result)).await;
        }
        // `EchoSse`; the others were answered above.
        _ => {
            feed.message(echo).await;
        }
    }
    true
}

fn echo(request: &Value) -> Value {
    let arguments = &request["params"]["arguments"];
    json!({"content": [{"type": "text", "text": arguments.to_string()}], "structuredContent": arguments})
}

/// A notification of progress, or a log message where the caller asked for no progress.
fn progress(request: &Value, step: usize) -> Value {
    let token = &request["params"]["_meta"]["progressToken"];
    if token.is_null() {
        return json!({"jsonrpc": "2.0", "method": "notifications/message",
            "params": {"level": "info", "data": step}});
    }
    json!({"jsonrpc": "2.0", "method": "notifications/progress",
        "params": {"progressToken": token, "progress": step}})
}

/// The answer after a notification, written in every way that the event-stream format allows.
fn odd(request: &Value, echo: &Value) -> Vec<u8> {
    let notification = progress(request, 1).to_string();
    let (first, second) = notification.split_at(1);
    // A line feed may stand between two tokens of JSON, which is how data goes over several lines.
    let mut text =
        format!("\u{feff}: a comment\r\nretry: 5000\r\n\r\nid: 1\r\ndata:{first}\r\ndata: {second}\r\n\r\n");
    text.push_str(": keep-alive\r\rnonsense\nunknown: field\nevent: message\rid: 2\rdata: ");
    text.push_str(&echo.to_string());
    text.push_str("\r\r");
    text.into_bytes()
}
