//! The floor: a proxy on one thread that copies bytes and keeps its upstream connections. It parses no body, knows no
//! caller and writes nothing down.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
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

async fn forward(pool: &Pool, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    head.headers.remove(CONNECTION);
    head.headers.insert(HOST, pool.host.clone());
    let mut sender = pool.take().await?;
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (mut head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    pool.idle.lock().push(sender);
    head.headers.remove(CONNECTION);
    Ok(Response::from_parts(head, Full::new(body)))
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
