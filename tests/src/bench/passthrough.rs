//! The floor: a proxy on one thread that copies bytes and keeps its upstream connections. It parses no body, knows no
//! caller and writes nothing down.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use waffles_runtime::task;

use super::{Listening, announce};

struct Pool {
    upstream: SocketAddr,
    host: HeaderValue,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

pub(super) async fn serve(upstream: SocketAddr) -> anyhow::Result<()> {
    let host = HeaderValue::from_str(&upstream.to_string())?;
    let pool = Arc::new(Pool { upstream, host, idle: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(&Listening { addr: listener.local_addr()? })?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let pool = Arc::clone(&pool);
        task::spawn("pass-through connection", async move {
            let service = service_fn(|request| forward(&pool, request));
            // A caller that breaks off is the load's to report.
            drop(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

async fn forward(
    pool: &Arc<Pool>,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Either<Full<Bytes>, Stream>>> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    head.headers.remove(CONNECTION);
    head.headers.insert(HOST, pool.host.clone());
    let mut sender = pool.take().await?;
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONNECTION);
    if body.size_hint().exact().is_none() {
        let body = Stream { body, sender: Some(sender), pool: Arc::clone(pool) };
        return Ok(Response::from_parts(head, Either::Right(body)));
    }
    let body = body.collect().await?.to_bytes();
    pool.idle.lock().push(sender);
    Ok(Response::from_parts(head, Either::Left(Full::new(body))))
}

/// A body of unknown length, passed on as it comes; its connection goes back to the pool with its end.
struct Stream {
    body: Incoming,
    sender: Option<SendRequest<Full<Bytes>>>,
    pool: Arc<Pool>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) {
            let pool = Arc::clone(&self.pool);
            pool.idle.lock().extend(self.sender.take());
        }
        polled
    }
}

impl Pool {
    async fn take(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut sender) = self.idle.lock().pop() else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let socket = TcpStream::connect(self.upstream).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = handshake(TokioIo::new(socket)).await?;
        task::spawn("upstream connection", async move {
            drop(connection.await);
        });
        sender.ready().await?;
        Ok(sender)
    }
}
