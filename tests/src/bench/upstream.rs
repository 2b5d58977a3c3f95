//! A fast MCP server: right answers in both eras for as little work as possible.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use waffles_runtime::task;

use super::load::{EVENTS, Shape};
use super::{Listening, announce};
use crate::Era;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<Params<'a>>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    arguments: Option<Arguments<'a>>,
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
}

pub(super) async fn serve(only: Option<Era>) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(&Listening { addr: listener.local_addr()? })?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        task::spawn("upstream connection", async move {
            // A caller that breaks off is the load's to report.
            let service = service_fn(|request| answer(request, only));
            drop(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    only: Option<Era>,
) -> Result<Response<Either<Full<Bytes>, Events>>, hyper::Error> {
    let method = request.method().clone();
    let version = request.headers().get("mcp-protocol-version").and_then(|version| version.to_str().ok());
    let stateless = version == Some(Era::Stateless.revision());
    if only.is_some_and(|era| (era == Era::Stateless) != stateless) {
        return Ok(empty(StatusCode::BAD_REQUEST));
    }
    let body = request.into_body().collect().await?.to_bytes();
    if method != Method::POST {
        let status = if method == Method::DELETE { StatusCode::OK } else { StatusCode::METHOD_NOT_ALLOWED };
        return Ok(empty(status));
    }
    let Ok(message) = serde_json::from_slice::<Message<'_>>(&body) else {
        return Ok(empty(StatusCode::BAD_REQUEST));
    };
    let Some(id) = message.id else { return Ok(empty(StatusCode::ACCEPTED)) };
    let mut session = false;
    let result: Cow<'_, str> = match message.method.as_ref() {
        "tools/call" => {
            let name = message.params.as_ref().map_or("", |params| &params.name);
            if name == Shape::Events.tool() {
                return Ok(events(id.get()));
            }
            let large = name == Shape::Large.tool();
            let text = message.params.and_then(|params| params.arguments).map_or("\"\"", |found| found.message.get());
            let text = if large { format!("{}{}\"", &text[..text.len() - 1], &*FILLING).into() } else { Cow::from(text) };
            format!(r#"{{"content":[{{"type":"text","text":{text}}}],"isError":false,"resultType":"complete"}}"#).into()
        }
        "initialize" => {
            session = true;
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}"#.into()
        }
        "server/discover" => {
            r#"{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":60000,"cacheScope":"public","resultType":"complete"}"#.into()
        }
        "tools/list" => {
            r#"{"tools":[{"name":"echo","description":"Says it again.","inputSchema":{"type":"object","properties":{"message":{"type":"string"}},"required":["message"]}}],"ttlMs":60000,"cacheScope":"public","resultType":"complete"}"#.into()
        }
        _ => r#"{"resultType":"complete"}"#.into(),
    };
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if session {
        response
            .headers_mut()
            .insert("mcp-session-id", HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
    }
    Ok(response)
}

fn empty(status: StatusCode) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::new())));
    *response.status_mut() = status;
    response
}

/// What makes an answer large: words, since a run of one letter would be kinder than real text.
static FILLING: LazyLock<String> = LazyLock::new(|| " lorem ipsum".repeat((64 << 10) / 12));

/// An answer in so many events, each written by itself.
struct Events {
    id: String,
    sent: usize,
    rest: bool,
}

fn events(id: &str) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Right(Events { id: id.to_owned(), sent: 0, rest: false }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

impl Body for Events {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // A pause after each event has it written before the next.
        if std::mem::take(&mut self.rest) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let event = match self.sent {
            ..EVENTS => format!(
                "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{{\"level\":\"info\",\"data\":\"step {}\"}}}}\n\n",
                self.sent
            ),
            EVENTS => format!(
                "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{\"content\":[{{\"type\":\"text\",\"text\":\"done\"}}],\"resultType\":\"complete\"}}}}\n\n",
                self.id
            ),
            _ => return Poll::Ready(None),
        };
        self.sent += 1;
        self.rest = true;
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
