//! Work on a client's request that says things before its answer. It runs inside the response body, so that it goes at
//! the client's pace and ends when the client goes; only a session client's work goes on by itself, because there a lost
//! connection cancels nothing [2025-11-25 basic/transports#sending-messages-to-the-server].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use waffles_mcp::sse::{Event, KEEP_ALIVE, encode};
use waffles_runtime::task;

use crate::limit::Held;
use crate::stream::Body;

/// Messages that wait for a client to take them. The work waits when there are more.
const UNREAD: usize = 16;
/// The same in bytes, beyond the first message.
const UNREAD_BYTES: usize = 256 * 1024;
/// What is kept of a stream for a client that comes back, in messages and bytes.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 1024 * 1024;
/// A quiet stream says that it is alive this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// An answer that takes longer than this comes as a stream, so that there is something to keep alive.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a client's request ends.
#[derive(Debug)]
pub struct Last {
    /// The answer; none where there is none to give, after a cancellation.
    pub message: Option<Bytes>,
    /// The HTTP status, where the answer is all there is.
    pub status: StatusCode,
}

impl Last {
    /// An answer with status 200.
    pub fn ok(message: Bytes) -> Self {
        Self { message: Some(message), status: StatusCode::OK }
    }
}

/// Where the work puts its messages.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// The number of the first message that is still there; they count from 1.
    first: u64,
    /// The number of the next message to hand out.
    next: u64,
    /// Names the stream, where its messages are kept for a client that comes back.
    name: Option<Box<str>>,
    /// Somebody reads. Without a reader nothing waits.
    read: bool,
    /// The reader shall say that the stream is alive.
    nudged: bool,
    done: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Outbox {
    /// An outbox; with a name, its messages get event ids and are kept for a while.
    pub fn new(name: Option<Box<str>>) -> Self {
        Self(Arc::new(Mutex::new(State {
            messages: VecDeque::new(),
            bytes: 0,
            first: 1,
            next: 1,
            name,
            read: true,
            nudged: false,
            done: false,
            reader: None,
            writer: None,
        })))
    }

    /// Hands a message over, and waits while too many are unread.
    pub async fn send(&self, message: Bytes) {
        let mut message = Some(message);
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.read && state.is_full() {
                state.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.push(message.take());
            Poll::Ready(())
        })
        .await;
    }

    /// Hands a message over at once; false where too many are unread, and then it is not taken.
    pub fn try_send(&self, message: Bytes) -> bool {
        let mut state = self.0.lock();
        let room = !state.read || state.unread() < KEPT;
        if room {
            state.push(Some(message));
        }
        room
    }

    /// How many messages more it takes before somebody should wait.
    pub fn room(&self) -> usize {
        UNREAD.saturating_sub(self.0.lock().unread())
    }

    /// Has the reader look again.
    pub fn wake(&self) {
        self.0.lock().wake_reader();
    }

    /// Has the reader say that the stream is alive, where it has nothing else to say.
    pub fn nudge(&self) {
        let mut state = self.0.lock();
        state.nudged = true;
        state.wake_reader();
    }

    /// Whether two are one.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Nothing more will come.
    pub fn close(&self) {
        let mut state = self.0.lock();
        state.done = true;
        state.wake_reader();
    }

    /// Whether nothing more will come.
    pub fn is_closed(&self) -> bool {
        self.0.lock().done
    }

    /// Whether somebody reads.
    pub fn is_read(&self) -> bool {
        self.0.lock().read
    }

    /// Goes back to behind a message that the client has had. False where that is not kept any more.
    pub fn rewind(&self, seen: u64) -> bool {
        let mut state = self.0.lock();
        let end = state.first + state.messages.len() as u64;
        if seen + 1 < state.first || seen >= end {
            return false;
        }
        state.next = seen + 1;
        state.read = true;
        true
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unread() == 0
    }

    /// The next event; pending where none is there, none where none will come.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.0.lock();
        match state.take() {
            Some(event) => {
                if let Some(writer) = state.writer.take() {
                    writer.wake();
                }
                Poll::Ready(Some(event))
            }
            None if state.done => Poll::Ready(None),
            None if std::mem::take(&mut state.nudged) => Poll::Ready(Some(Bytes::from_static(KEEP_ALIVE))),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nobody reads any more.
    pub(crate) fn abandon(&self) {
        let mut state = self.0.lock();
        state.read = false;
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }
}

impl State {
    fn unread(&self) -> usize {
        let read = usize::try_from(self.next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.messages.len().saturating_sub(read)
    }

    /// Whether the work should wait until the client has taken something.
    fn is_full(&self) -> bool {
        let unread = self.unread();
        // What is kept for a client that comes back was read; where nothing is kept, all of it is unread.
        unread >= UNREAD || (unread > 0 && self.name.is_none() && self.bytes > UNREAD_BYTES)
    }

    fn push(&mut self, message: Option<Bytes>) {
        let Some(message) = message else { return };
        self.bytes += message.len();
        self.messages.push_back(message);
        while self.messages.len() > KEPT || (self.bytes > KEPT_BYTES && self.messages.len() > 1) {
            // What nobody has read yet goes only where nobody reads.
            if self.read && self.unread() == self.messages.len() {
                break;
            }
            self.forget_first();
        }
        self.wake_reader();
    }

    fn forget_first(&mut self) {
        if let Some(gone) = self.messages.pop_front() {
            self.bytes -= gone.len();
            self.first += 1;
            self.next = self.next.max(self.first);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let at = usize::try_from(self.next - self.first).ok()?;
        let data = self.messages.get(at)?.clone();
        let id = self.name.as_ref().map(|name| format!("{name}-{}", self.next));
        self.next += 1;
        if self.name.is_none() {
            self.forget_first();
        }
        Some(encode(&Event { id, event: Some("message".into()), data, ..Event::default() }))
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Work and its messages, as a response body.
pub struct Flow {
    work: Option<BoxFuture<'static, Last>>,
    outbox: Outbox,
    /// The work goes on where the client goes away.
    survives: bool,
    alive: Pin<Box<Sleep>>,
    /// Counts the stream as open for as long as it lives.
    _open: Option<Open>,
}

/// Counts an open stream.
pub struct Open(prometheus_client::metrics::gauge::Gauge, Vec<Held>);

impl Open {
    /// Counts until it is dropped.
    pub fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone(), Vec::new())
    }

    /// Keeps what limits count as open as well.
    #[must_use]
    pub fn holding(mut self, held: Vec<Held>) -> Self {
        self.1 = held;
        self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Flow {
    /// Work that puts its messages into an outbox. `survives` says that it goes on without its client.
    pub fn new(
        work: impl Future<Output = Last> + Send + 'static,
        outbox: Outbox,
        survives: bool,
        open: Open,
    ) -> Self {
        let alive = Box::pin(tokio::time::sleep(KEEP_ALIVE_EVERY));
        Self { work: Some(Box::pin(work)), outbox, survives, alive, _open: Some(open) }
    }

    /// The messages of an outbox that somebody else fills.
    pub fn reading(outbox: Outbox, open: Open) -> Self {
        let alive = Box::pin(tokio::time::sleep(KEEP_ALIVE_EVERY));
        Self { work: None, outbox, survives: false, alive, _open: Some(open) }
    }

    /// The response: one JSON body where the answer is all there is to say, and a stream otherwise.
    pub async fn respond(mut self) -> Response<Body> {
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let last = std::future::poll_fn(|cx| {
            let Some(work) = &mut self.work else { return Poll::Ready(None) };
            if let Poll::Ready(last) = work.as_mut().poll(cx) {
                self.work = None;
                return Poll::Ready(Some(last));
            }
            if !self.outbox.is_empty() || patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;
        match last {
            Some(Last { message, status }) if self.outbox.is_empty() => {
                let mut response = Response::new(message.map_or(Body::Empty, Body::full));
                *response.status_mut() = status;
                if let Body::Full(_) = response.body() {
                    let json = HeaderValue::from_static("application/json");
                    response.headers_mut().insert(header::CONTENT_TYPE, json);
                } else if status == StatusCode::OK {
                    *response.status_mut() = StatusCode::ACCEPTED;
                }
                response
            }
            last => {
                if let Some(last) = last {
                    self.finish(last);
                }
                self.stream()
            }
        }
    }

    /// The response as a stream, whatever comes.
    pub fn stream(self) -> Response<Body> {
        let mut response = Response::new(Body::Flow(Box::new(self)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Poll::Ready(event) = self.outbox.poll(cx) {
                self.alive.as_mut().reset(Instant::now() + KEEP_ALIVE_EVERY);
                return Poll::Ready(event);
            }
            if let Some(work) = &mut self.work
                && let Poll::Ready(last) = work.as_mut().poll(cx)
            {
                self.work = None;
                self.finish(last);
                continue;
            }
            if !self.outbox.is_empty() {
                continue;
            }
            if self.alive.as_mut().poll(cx).is_ready() {
                self.alive.as_mut().reset(Instant::now() + KEEP_ALIVE_EVERY);
                return Poll::Ready(Some(Bytes::from_static(KEEP_ALIVE)));
            }
            return Poll::Pending;
        }
    }

    fn finish(&mut self, last: Last) {
        finish(&self.outbox, last);
    }
}

fn finish(outbox: &Outbox, last: Last) {
    let mut state = outbox.0.lock();
    state.push(last.message);
    drop(state);
    outbox.close();
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.outbox.abandon();
        // When the program ends, there is nothing left that it could go on in.
        let survives = self.survives && tokio::runtime::Handle::try_current().is_ok();
        if let Some(work) = self.work.take().filter(|_| survives) {
            let outbox = self.outbox.clone();
            task::spawn("work without its client", async move { finish(&outbox, work.await) });
        }
    }
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("survives", &self.survives).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
