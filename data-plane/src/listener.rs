//! Accepts connections: caps, TLS, the timers of HTTP/1.1 and HTTP/2, and the drain. One accept loop a thread.

mod answer;
mod connection;
mod watched;

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Request, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use waffles_runtime::drain::Drain;
use waffles_runtime::{listen, task};

use self::answer::Outgoing;
use self::connection::{Connection, Connections, Fate};
use self::watched::Watched;
use crate::metrics::Metrics;
use crate::overload::{Caps, Memory};
use crate::server::Server;

/// To send a whole head, and to say the next one on a connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 32 * 1024;
/// Most streams of one connection that we reset for a client's mistakes before the connection is closed
/// (CVE-2025-8671).
const MAX_LOCAL_RESETS: usize = 100;
/// How long handshakes that are under way may take once the drain has started.
const HANDSHAKES: Duration = Duration::from_millis(300);
/// Most connections that are taken then.
const MAX_LEFT: usize = 4096;

/// What one thread accepts with.
pub struct Listener {
    /// Its own socket on the shared port.
    pub socket: TcpListener,
    /// TLS, where configured.
    pub tls: Option<TlsAcceptor>,
    /// The caps of the process.
    pub caps: Arc<Caps>,
    /// Its memory.
    pub memory: Arc<Memory>,
    /// The counters.
    pub metrics: Metrics,
    /// The HTTP surface.
    pub server: Arc<Server>,
}

impl Listener {
    /// Accepts until the drain starts, and then what has come until then. Whoever holds a `Hold` keeps the process alive.
    pub async fn run(self, drain: Drain) {
        let _hold = drain.hold();
        let http = Arc::new(http());
        let connections = Arc::new(Connections::default());
        let keeper = Arc::clone(&connections).keep(Arc::clone(&self.memory), drain.clone());
        task::spawn("connections", keeper);
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = drain.started() => break,
                accepted = listen::accept(&self.socket) => accepted,
            };
            self.take(stream, peer, &http, &connections, &drain);
        }
        // What the kernel has accepted already would be reset with the socket, as would be what shakes hands meanwhile.
        if let Err(error) = listen::hush(&self.socket) {
            tracing::debug!(%error, "connections that come at the very end may be reset");
        }
        let until = Instant::now() + HANDSHAKES;
        for _ in 0..MAX_LEFT {
            match timeout_at(until, listen::accept(&self.socket)).await {
                Ok((stream, peer)) => self.take(stream, peer, &http, &connections, &drain),
                Err(_) => return,
            }
        }
    }

    fn take(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        http: &Arc<auto::Builder<TokioExecutor>>,
        connections: &Connections,
        drain: &Drain,
    ) {
        let Some(guest) = self.caps.enter(peer.ip(), self.memory.stage(), &self.metrics) else {
            self.metrics.refused_connections.inc();
            return;
        };
        let connection = Arc::new(Connection::new(guest, self.metrics.clone()));
        connections.add(&connection);
        let (server, http) = (Arc::clone(&self.server), Arc::clone(http));
        let (tls, hold) = (self.tls.clone(), drain.hold());
        task::spawn_hot(async move {
            let _hold = hold;
            match tls {
                None => serve(&http, stream, peer, server, connection).await,
                Some(tls) => match tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(&http, stream, peer, server, connection).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                },
            }
        });
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(32 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    http
}

async fn serve<S>(
    http: &auto::Builder<TokioExecutor>,
    stream: S,
    peer: SocketAddr,
    server: Arc<Server>,
    connection: Arc<Connection>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Watched::new(stream, Arc::clone(&connection));
    let service = {
        let connection = Arc::clone(&connection);
        service_fn(move |mut request: Request<Incoming>| {
            let version = request.version();
            let turn = connection.begin(version == Version::HTTP_2);
            if !connection.guest.is_known() {
                request.extensions_mut().insert(connection.guest.clone());
            }
            let overload = Arc::clone(&server.gateway.overload);
            // Boxed, so that the connection gives its room back while an answer streams and while nothing is asked.
            let answer = Box::pin(Arc::clone(&server).serve(peer, request));
            async move {
                let mut response = answer.await;
                let connection = turn.connection();
                let is_shared = version == Version::HTTP_2;
                if response.status() != StatusCode::SERVICE_UNAVAILABLE {
                    connection.was_served();
                } else if let Some(pause) = overload.pause() {
                    connection.turned_away(pause, is_shared);
                }
                if connection.guest.is_to_leave() && !is_shared {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(Outgoing::of(response, version, turn))
            }
        })
    };
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let mut told = false;
    let ended = poll_fn(|cx| {
        let fate = connection.fate(cx);
        if fate > Fate::Open && !told {
            told = true;
            served.as_mut().graceful_shutdown();
        }
        match served.as_mut().poll(cx) {
            Poll::Pending if fate == Fate::Now => Poll::Ready(Ok(())),
            polled => polled,
        }
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}
