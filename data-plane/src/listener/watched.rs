//! A connection's bytes, with the limits of time that HTTP does not know of: it must begin to speak, it must take what it
//! asked for, and it is not read while it does not heed that it was turned away.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::HEAD_TIMEOUT;
use super::connection::{Connection, STALLED};

/// Bytes of the HTTP/2 preface (RFC 9113 3.4); with so many the version is known.
const PREFACE: usize = 24;
/// What a reader must take within [`STALLED`], while there is something for it: 1 KiB a second.
const LEAST: usize = 30 * 1024;

/// A connection that is closed when its reader has taken too little for too long, or when it does not begin to speak: HTTP's
/// own timers start only when its version is known.
pub(super) struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
    /// Runs while the reader does not take everything.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes that it took since that clock started.
    taken: usize,
    /// Until so many bytes have come that the version is known.
    opening: Option<Pin<Box<Sleep>>>,
    came: usize,
    paused: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        let opening = Some(Box::pin(tokio::time::sleep(HEAD_TIMEOUT)));
        Self { stream, connection, stalled: None, taken: 0, opening, came: 0, paused: None }
    }

    /// Passes a write's result on. The clock starts when the reader takes nothing more for now, and stops when it has
    /// everything; what it takes in between only counts when it is not next to nothing.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<std::io::Result<usize>>,
    ) -> Poll<std::io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(bytes)) if self.stalled.is_some() => {
                self.taken = self.taken.saturating_add(bytes);
                if self.taken >= LEAST {
                    self.flowing();
                }
                polled
            }
            Poll::Ready(_) => polled,
            Poll::Pending => match self.wait(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(error) => Poll::Ready(Err(error)),
            },
        }
    }

    /// As [`Watched::wrote`], for a flush: after it, nothing waits.
    fn flushed(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<std::io::Result<()>>,
    ) -> Poll<std::io::Result<()>> {
        match polled {
            Poll::Ready(_) => {
                self.flowing();
                polled
            }
            Poll::Pending => match self.wait(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(error) => Poll::Ready(Err(error)),
            },
        }
    }

    fn flowing(&mut self) {
        if self.stalled.is_some() {
            self.stalled = None;
            self.taken = 0;
            self.connection.set_blocked(false);
        }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Error> {
        let connection = &self.connection;
        let stalled = self.stalled.get_or_insert_with(|| {
            connection.set_blocked(true);
            Box::pin(tokio::time::sleep_until(Instant::now() + STALLED))
        });
        stalled.as_mut().poll(cx).map(|()| std::io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(until) = self.connection.paused_until() {
            let paused = self.paused.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if paused.deadline() < until {
                paused.as_mut().reset(until);
            }
            if paused.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.paused = None;
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
        self.wrote(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(cx, polled)
    }
}
