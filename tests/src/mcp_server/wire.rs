//! Answers as bytes.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Era;

/// The body of an answer; an error in it breaks the connection.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// The part of a request that answers depend on.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    pub headers: HeaderMap,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Feeds a body piece by piece. The body ends when all clones are dropped.
#[derive(Debug, Clone)]
pub struct Feed(mpsc::Sender<std::io::Result<Bytes>>);

impl Feed {
    /// A feed and its body.
    pub fn new() -> (Self, Body) {
        let (sender, receiver) = mpsc::channel(16);
        let frames = unfold(receiver, |mut receiver| async move {
            let next: std::io::Result<Bytes> = receiver.recv().await?;
            Some((next.map(Frame::data), receiver))
        });
        (Self(sender), StreamBody::new(frames).boxed())
    }

    /// Sends bytes; false when the other side has gone.
    pub async fn bytes(&self, bytes: impl Into<Bytes>) -> bool {
        self.0.send(Ok(bytes.into())).await.is_ok()
    }

    /// Sends a message as an event.
    pub async fn message(&self, message: &Value) -> bool {
        self.bytes(format!("event: message\ndata: {message}\n\n")).await
    }

    /// Breaks the connection.
    pub async fn reset(&self) {
        drop(self.0.send(Err(std::io::ErrorKind::ConnectionReset.into())).await);
    }

    /// Whether the other side has gone.
    pub fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until the other side has gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let body = Empty::new().map_err(|never: Infallible| match never {}).boxed();
    Response::builder().status(status).body(body).expect("it is well formed")
}

pub(super) fn json_answer(status: StatusCode, message: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(message.to_string()))
        .expect("it is well formed")
}

pub(super) fn sse(body: Body) -> Response<Body> {
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store")
        .body(body)
        .expect("it is well formed")
}

/// The answering message. The stateless era names the kind of a result.
pub(super) fn result_message(era: Era, request: &Value, mut result: Value) -> Value {
    if era == Era::Stateless
        && let Some(result) = result.as_object_mut()
    {
        result.entry("resultType").or_insert_with(|| json!("complete"));
    }
    json!({"jsonrpc": "2.0", "id": request["id"], "result": result})
}

pub(super) fn result(era: Era, request: &Value, result: Value) -> Response<Body> {
    json_answer(StatusCode::OK, &result_message(era, request, result))
}

pub(super) fn refusal(status: StatusCode, request: &Value, code: i64, text: &str) -> Response<Body> {
    let mut message = json!({"jsonrpc": "2.0", "error": {"code": code, "message": text}});
    if !request["id"].is_null() {
        message["id"] = request["id"].clone();
    }
    json_answer(status, &message)
}
