//! Serves a router on a socket: a cap on connections, limits on heads, pings, and an end with the drain.
//! REST and gRPC are served alike; what differs stands in `Limits`.

mod guests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use waffles_runtime::drain::{Drain, Hold};
use waffles_runtime::{listen, task};

use crate::authz::Channel;
use crate::enrolment::Enrolment;
use guests::Guests;

/// How long a peer may take over its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Handshakes of one address at a time, among which may be those of many proxies behind one router.
const MOST_HANDSHAKES: usize = 512;
const HEADER_TIME: Duration = Duration::from_secs(10);
const MOST_HEAD_BYTES: usize = 32 * 1024;
const MOST_HEADERS: usize = 100;
/// A peer that is gone without a word is noticed within two of these.
const PING: Duration = Duration::from_secs(20);
const MOST_STREAMS: u32 = 256;
/// Requests that a peer takes back before they are looked at, and streams that we reset for its mistakes: more end the
/// connection.
const MOST_PENDING_RESETS: usize = 20;
const MOST_LOCAL_RESETS: usize = 100;
/// Bytes of one answer that wait for its reader.
const MOST_UNSENT: usize = 256 * 1024;

/// What differs between the doors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at a time; further ones wait in the kernel.
    pub(crate) connections: usize,
    /// Those of one address that have shown no proxy's certificate; further ones are closed.
    pub(crate) per_address: usize,
    /// Bytes of a request; none where requests are streams.
    pub(crate) body: Option<usize>,
    /// An answer begins within this time; none where the door has a limit of its own.
    pub(crate) answer: Option<Duration>,
    /// Only HTTP/2.
    pub(crate) http2_only: bool,
}

/// The handshakes of a door where proxies come in too.
#[derive(Clone)]
pub(crate) struct Secure {
    /// Whose certificates count.
    pub(crate) enrolment: Enrolment,
    /// Whether connections in the clear are taken as well: on loopback only.
    pub(crate) plain: bool,
}

/// Accepts until the drain starts. Connections then end after the requests that they carry.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    limits: Limits,
    secure: Option<Secure>,
    drain: Drain,
) {
    let listener = match listen::adopt(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot watch a listening socket");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(limits.connections));
    let (greeting, strangers) = (Guests::new(MOST_HANDSHAKES), Guests::new(limits.per_address));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listen::accept(&listener).await)
        };
        let (place, (stream, peer)) = tokio::select! {
            biased;
            () = drain.started() => return,
            next = next => next,
        };
        let Some(greeted) = greeting.enter(peer.ip()) else { continue };
        let (router, drain, hold) = (router.clone(), drain.clone(), drain.hold());
        let (secure, strangers) = (secure.clone(), strangers.clone());
        task::spawn("connection", async move {
            let opened = match secure {
                None => Ok(Greeted::Plain(stream)),
                Some(secure) => tokio::select! {
                    () = drain.started() => return,
                    opened = tokio::time::timeout(HANDSHAKE_TIME, greet(stream, &secure)) => {
                        opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                    }
                },
            };
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) => return tracing::debug!(%error, peer = %peer, "a connection was refused"),
            };
            let stranger = match &opened {
                Greeted::Encrypted(_, Channel::Proxy(_)) => None,
                _ => match strangers.enter(peer.ip()) {
                    Some(stranger) => Some(stranger),
                    None => return,
                },
            };
            drop(greeted);
            match opened {
                Greeted::Plain(stream) => {
                    connection(stream, peer, Channel::Plain, router, limits, drain, hold).await;
                }
                Greeted::Encrypted(stream, channel) => {
                    connection(*stream, peer, channel, router, limits, drain, hold).await;
                }
            }
            drop(stranger);
            drop(place);
        });
    }
}

/// A connection that may speak.
enum Greeted {
    Plain(TcpStream),
    Encrypted(Box<tokio_rustls::server::TlsStream<TcpStream>>, Channel),
}

/// Shakes hands. The first byte tells TLS from HTTP/2 in the clear.
async fn greet(stream: TcpStream, secure: &Secure) -> std::io::Result<Greeted> {
    const TLS_HANDSHAKE: u8 = 0x16;
    let mut first = [0; 1];
    if stream.peek(&mut first).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    if first != [TLS_HANDSHAKE] {
        let refused = || std::io::Error::other("it is in the clear, which is spoken on loopback only");
        return secure.plain.then_some(Greeted::Plain(stream)).ok_or_else(refused);
    }
    let config = secure.enrolment.server_config().map_err(std::io::Error::other)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let channel = match shown {
        None => Channel::Encrypted,
        Some(shown) => {
            let peer = secure.enrolment.peer(shown);
            let stranger = || std::io::Error::other("the certificate is no proxy's of this Waffles");
            Channel::Proxy(peer.ok_or_else(stranger)?)
        }
    };
    Ok(Greeted::Encrypted(Box::new(stream), channel))
}

/// Also ends a request whose body does not come. The answer is the problem document that REST gives elsewhere.
async fn answer(
    router: Router,
    request: Request<Body>,
    most: Option<Duration>,
) -> Result<Response<Body>, Infallible> {
    let Some(most) = most else { return router.oneshot(request).await };
    match tokio::time::timeout(most, router.oneshot(request)).await {
        Ok(answered) => answered,
        Err(_) => {
            tracing::warn!("a request was given up, it took too long");
            let problem = r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the request took too long; whether it was done is not known"}"#;
            let mut response = Response::new(Body::from(problem));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(response)
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    channel: Channel,
    router: Router,
    limits: Limits,
    drain: Drain,
    _hold: Hold,
) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(channel.clone());
        let request = request.map(|body| match limits.body {
            Some(most) => Body::new(Limited::new(body, most)),
            None => Body::new(body),
        });
        answer(router.clone(), request, limits.answer)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if limits.http2_only {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(MOST_STREAMS)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(MOST_LOCAL_RESETS)
        .max_send_buf_size(MOST_UNSENT)
        .max_header_list_size(u32::try_from(MOST_HEAD_BYTES).unwrap_or(u32::MAX));
    let serve = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serve);
    let ended = tokio::select! {
        ended = serve.as_mut() => ended,
        () = drain.started() => {
            serve.as_mut().graceful_shutdown();
            tokio::select! {
                ended = serve => ended,
                () = drain.forced() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %peer, "a connection failed");
    }
}
