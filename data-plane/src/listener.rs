//! Accepts connections: caps, TLS, the timers of HTTP/1.1 and HTTP/2, and the drain. One accept loop a thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use waffles_runtime::drain::Drain;
use waffles_runtime::{listen, task};

use crate::metrics::Metrics;
use crate::server::Server;

/// To send a whole head, and to say the next one on a connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// A reader that takes nothing for so long holds memory for nobody.
const STALLED: Duration = Duration::from_secs(30);
/// Bytes of the HTTP/2 preface (RFC 9113 3.4); with so many the version is known.
const PREFACE: usize = 24;
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 32 * 1024;

/// How many connections there may be, of all threads together.
pub struct Caps {
    total: usize,
    per_address: usize,
    open: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Caps {
    /// Caps for the process, and for each address.
    pub fn new(total: usize, per_address: usize) -> Self {
        Self { total, per_address, open: AtomicUsize::new(0), by_address: Mutex::default() }
    }

    fn enter(self: &Arc<Self>, address: IpAddr, metrics: &Metrics) -> Option<Seat> {
        if self.open.fetch_add(1, Ordering::SeqCst) >= self.total {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.per_address {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        *count += 1;
        metrics.connections.inc();
        Some(Seat { caps: Arc::clone(self), address, metrics: metrics.clone() })
    }
}

/// One connection's place under the caps.
struct Seat {
    caps: Arc<Caps>,
    address: IpAddr,
    metrics: Metrics,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.caps.open.fetch_sub(1, Ordering::SeqCst);
        let mut by_address = self.caps.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
        self.metrics.connections.dec();
    }
}

/// What one thread accepts with.
pub struct Listener {
    /// Its own socket on the shared port.
    pub socket: TcpListener,
    /// TLS, where configured.
    pub tls: Option<TlsAcceptor>,
    /// The caps of the process.
    pub caps: Arc<Caps>,
    /// The counters.
    pub metrics: Metrics,
    /// The HTTP surface.
    pub server: Arc<Server>,
}

impl Listener {
    /// Accepts until the drain starts. Whoever holds a `Hold` keeps the process alive.
    pub async fn run(self, drain: Drain) {
        let http = Arc::new(http());
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = drain.started() => return,
                accepted = listen::accept(&self.socket) => accepted,
            };
            let Some(seat) = self.caps.enter(peer.ip(), &self.metrics) else {
                self.metrics.refused_connections.inc();
                continue;
            };
            let (server, http) = (Arc::clone(&self.server), Arc::clone(&http));
            let (tls, drain) = (self.tls.clone(), drain.clone());
            task::spawn_hot(async move {
                let (_seat, _hold) = (seat, drain.hold());
                match tls {
                    None => serve(&http, Watched::new(stream), peer, server, &drain).await,
                    Some(tls) => match tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(&http, Watched::new(stream), peer, server, &drain).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    },
                }
            });
        }
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
    drain: &Drain,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        // Boxed, so that the connection gives its room back while an answer streams and while nothing is asked.
        let answer = Box::pin(Arc::clone(&server).serve(peer, request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // In a set, the wait for the drain is only looked at when it was woken, and not with every message that passes.
    let mut drained = FuturesUnordered::from_iter([drain.started()]);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        _ = drained.next() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = drain.forced() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// A connection that is closed when its reader has taken nothing for too long, or when it does not begin to speak: HTTP's
/// own timers start only when its version is known.
struct Watched<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Until so many bytes have come that the version is known.
    opening: Option<Pin<Box<Sleep>>>,
    came: usize,
}

impl<S> Watched<S> {
    fn new(stream: S) -> Self {
        let opening = Some(Box::pin(tokio::time::sleep(HEAD_TIMEOUT)));
        Self { stream, stalled: None, opening, came: 0 }
    }

    /// Passes a write's result on; starts the clock while it waits.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + STALLED)));
        match stalled.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(opening) = &mut self.opening {
            if polled.is_pending() && opening.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
            }
            self.came += buf.filled().len() - before;
            if self.came >= PREFACE {
                self.opening = None;
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}
