//! What goes back to the client: a whole body, or a relayed event stream. A stream is decoded and encoded again, event
//! by event, never buffered: only complete messages that are legal on it leave. When it ends, for whatever reason, it
//! completes the audit record, before the last event is handed out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use waffles_core::audit::Outcome;
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::sse::{Decoder, Event, Item, KEEP_ALIVE, encode};
use waffles_mcp::{Id, Kind, Limits, Message, Method, Slot};
use waffles_runtime::drain::Drain;

use crate::flow::Flow;
use crate::hub::Listening;
use crate::listing;
use crate::overload::{Hold, Pace};
use crate::permit::Permit;
use crate::record::{End, Record};
use crate::reject::{Reject, UpstreamFault};
use crate::state::Current;
use crate::upstream::Lease;

/// So many events of one stream are passed on before the thread looks after others: a server that says much at once must not
/// hold up who waits for another.
const TURN: u32 = 64;
/// Most bytes of a server's answer, in one piece or as a stream.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// A quiet stream says that it is alive this often, for the intermediaries on its way.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How often an open stream looks whether it may stay open.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The body of an answer to a client.
pub enum Body {
    /// Nothing.
    Empty,
    /// A whole body.
    Full(Option<Bytes>),
    /// An event stream.
    Relay(Box<Relay>),
    /// Bridged work.
    Flow(Box<Flow>),
    /// A subscription.
    Listen(Box<Listening>),
    /// An event stream that another door makes.
    Made(BoxStream<'static, Bytes>),
    /// The answer of another proxy.
    Passed(Incoming),
}

impl Body {
    /// A whole body.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relay(relay) => relay.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            // Where the other proxy breaks off, so do we: the client cannot take it for the end of its answer.
            Self::Passed(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.and_then(Result::ok).map(Ok))
            }
            Self::Flow(flow) => flow.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Listen(stream) => stream.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Made(made) => {
                made.poll_next_unpin(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Full(None) => true,
            Self::Full(Some(bytes)) => bytes.is_empty(),
            Self::Relay(_) | Self::Flow(_) | Self::Made(_) | Self::Listen(_) => false,
            Self::Passed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(_) | Self::Flow(_) | Self::Made(_) | Self::Listen(_) | Self::Passed(_) => {
                SizeHint::default()
            }
        }
    }
}

/// What a stream is for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// It ends with the answer to this request.
    Answer(Id, Method),
    /// It stays open: a `subscriptions/listen`, with its id, or a GET stream, without one.
    Listen(Option<Id>),
}

/// What a relay needs to know besides the stream itself.
pub struct Terms {
    /// What the stream is for.
    pub purpose: Purpose,
    /// Whether the client speaks the stateless revision.
    pub modern: bool,
    /// The caller's right to it.
    pub permit: Permit,
    /// The audit record.
    pub record: Record,
    /// The configuration in force.
    pub current: Arc<Current>,
    /// The process's end.
    pub drain: Drain,
    /// What is held of an event that has not come whole.
    pub hold: Hold,
}

/// A stream on its way from a server to a client.
pub struct Relay {
    terms: Terms,
    lease: Option<Lease>,
    decoder: Decoder,
    out: VecDeque<Bytes>,
    /// Wakes for the earliest of: idle, total, keep-alive, look.
    timer: Pin<Box<Sleep>>,
    /// Bytes of the server.
    came: usize,
    heard: Instant,
    said: Instant,
    /// The server has asked the client something and may wait for a person.
    asked: bool,
    /// The server gives event ids: a client can come back for the rest.
    resumable: bool,
    /// Events that were passed on since others had their turn.
    turn: u32,
    pace: Pace,
    /// An event that comes too early waits until then.
    early: Option<Instant>,
}

impl Relay {
    /// A relay of an answer's body.
    pub fn new(lease: Lease, terms: Terms) -> Self {
        let now = Instant::now();
        terms.record.metrics().open_streams.inc();
        let mut relay = Self {
            terms,
            lease: Some(lease),
            decoder: Decoder::default(),
            out: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep_until(now)),
            came: 0,
            heard: now,
            said: now,
            asked: false,
            resumable: false,
            turn: 0,
            pace: Pace::new(now),
            early: None,
        };
        let next = relay.next_wake();
        relay.timer.as_mut().reset(next);
        relay
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.turn >= TURN {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.next(cx);
        self.turn = if polled.is_ready() { self.turn + 1 } else { 0 };
        polled
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                self.said = Instant::now();
                return Poll::Ready(Some(bytes));
            }
            match self.early {
                _ if self.lease.is_none() => return Poll::Ready(None),
                Some(until) if Instant::now() < until => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.wake_up();
                    continue;
                }
                Some(_) => {
                    self.early = None;
                    let next = self.next_wake();
                    self.timer.as_mut().reset(next);
                }
                None => {}
            }
            let Some(lease) = &mut self.lease else { return Poll::Ready(None) };
            match self.decoder.next() {
                Ok(Some(Item::Comment)) => continue,
                Ok(Some(Item::Event(event))) => {
                    self.terms.hold.shrink_to(0);
                    self.take(event);
                    // What was taken is passed on; the next one waits.
                    self.early = self.pace.take(Instant::now);
                    if let Some(until) = self.early {
                        self.timer.as_mut().reset(until);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(_) => {
                    self.fail(UpstreamFault::TooLarge);
                    continue;
                }
            }
            match Pin::new(lease).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.heard = Instant::now();
                    if let Ok(data) = frame.into_data() {
                        self.came = self.came.saturating_add(data.len());
                        let fits = self.terms.hold.grow_twice(data.len());
                        self.decoder.push(data);
                        if !fits {
                            self.fail(UpstreamFault::NoRoom);
                            continue;
                        }
                    }
                    if self.came > MAX_ANSWER && matches!(self.terms.purpose, Purpose::Answer(..)) {
                        self.fail(UpstreamFault::TooLarge);
                    }
                }
                Poll::Ready(Some(Err(_))) => self.broke_off(false),
                Poll::Ready(None) => self.broke_off(true),
                Poll::Pending => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.wake_up();
                }
            }
        }
    }

    fn wake_up(&mut self) {
        self.look();
        let next = self.next_wake();
        self.timer.as_mut().reset(self.early.map_or(next, |until| until.min(next)));
    }

    /// One event of the server: passed on, dropped, or the end.
    fn take(&mut self, mut event: Event) {
        if self.terms.modern {
            // There is nothing to resume in the stateless revision [2026-07-28 basic/transports/streamable-http].
            event.id = None;
            event.retry = None;
        }
        self.resumable |= event.id.is_some();
        if event.data.is_empty() {
            if event.id.is_some() || event.retry.is_some() {
                self.out.push_back(encode(&event));
            }
            return;
        }
        if !event.is_message() {
            return self.terms.record.metrics().dropped("unknown_event_type");
        }
        match Message::parse(event.data.clone(), &Limits::RESPONSE) {
            Ok(message) => self.relay(event, &message),
            Err(error) => {
                tracing::debug!(reason = error.reason(), "a server sent an event that is no message");
                self.terms.record.metrics().dropped("malformed_event");
                if matches!(self.terms.purpose, Purpose::Answer(..)) {
                    self.fail(UpstreamFault::BadAnswer);
                }
            }
        }
    }

    fn relay(&mut self, event: Event, message: &Message) {
        match message.kind() {
            Kind::Request if self.terms.modern => {
                self.terms.record.metrics().dropped("request_on_stateless_stream")
            }
            Kind::Request => {
                self.asked = true;
                if let Some(lease) = &mut self.lease {
                    lease.waits_for_a_person();
                }
                self.pass(event, message.rewrite());
            }
            Kind::Notification => self.pass(event, message.rewrite()),
            Kind::Response | Kind::Error => self.answer(event, message),
        }
    }

    fn answer(&mut self, event: Event, message: &Message) {
        let (id, method) = match &self.terms.purpose {
            Purpose::Answer(id, method) => (Some(id), Some(method)),
            Purpose::Listen(id) => (id.as_ref(), None),
        };
        let is_ours = id.is_some() && message.id() == id;
        // Answers on a GET stream are those of a resumed POST: the session's own, whatever their id.
        let resumed = id.is_none() && !self.terms.modern;
        if !is_ours && !resumed {
            return self.terms.record.metrics().dropped("answer_to_another_request");
        }
        let snapshot = self.terms.current.load();
        let ring = snapshot.settings().map(|settings| &settings.seal);
        let answer = listing::answer_for(&self.terms.permit, self.terms.modern, method, message, ring);
        let Ok(bytes) = answer else {
            return self.fail(UpstreamFault::BadAnswer);
        };
        if resumed {
            return self.pass(event, bytes);
        }
        let end = end_of(message);
        let bytes = encode(&Event { data: bytes, ..event });
        self.terms.record.capture_response(self.terms.permit.entry(), message.result().as_deref());
        self.end(end, Some(bytes));
        if let Some(lease) = self.lease.take() {
            lease.recycle();
        }
    }

    fn pass(&mut self, event: Event, data: Bytes) {
        let bytes = encode(&Event { data, ..event });
        self.terms.record.note_bytes(bytes.len());
        self.out.push_back(bytes);
    }

    /// Completes the record, then lets the last bytes out. The caller takes the lease: dropped, it tells the server
    /// that nobody listens any more.
    fn end(&mut self, end: End, last: Option<Bytes>) {
        let record = &mut self.terms.record;
        record.note_answered();
        record.note_bytes(last.as_ref().map_or(0, Bytes::len));
        record.finish(end);
        self.out.extend(last);
    }

    /// The server's stream is over without an answer.
    fn broke_off(&mut self, cleanly: bool) {
        let listening = matches!(self.terms.purpose, Purpose::Listen(_));
        // A server of 2025-11-25 may close a stream whose events have ids; the client comes back for the rest.
        let resumed_later = self.resumable && !self.terms.modern;
        if listening || resumed_later {
            let outcome = if cleanly { Outcome::Ok } else { Outcome::UpstreamFailed };
            let reason = if cleanly { "stream_closed" } else { UpstreamFault::BrokeOff.reason() };
            self.end(End { outcome, status: 200, code: 0, reason }, None);
            self.lease = None;
        } else {
            self.fail(UpstreamFault::BrokeOff);
        }
    }

    /// Ends the stream with the one terminal answer that its request is owed.
    fn fail(&mut self, fault: UpstreamFault) {
        // What makes no sense may be one tool's trouble, and says nothing of the server's others.
        if let Some(lease) = self.lease.as_mut().filter(|_| fault != UpstreamFault::BadAnswer) {
            lease.failed(fault);
        }
        self.refuse(&Reject::upstream(fault, true));
    }

    fn refuse(&mut self, reject: &Reject) {
        if !reject.rule().is_empty() {
            self.terms.record.note_rule(reject.rule());
        }
        let last = match &self.terms.purpose {
            Purpose::Answer(id, _) => {
                let data = reject.message(Some(id), self.terms.record.id());
                Some(encode(&Event { event: Some("message".into()), data, ..Event::default() }))
            }
            Purpose::Listen(_) => None,
        };
        self.terms.record.note_answered();
        self.terms.record.note_bytes(last.as_ref().map_or(0, Bytes::len));
        self.terms.record.refuse(reject, 200);
        self.out.extend(last);
        self.lease = None;
    }

    /// What time brings: a limit, a changed configuration, a drain, or a sign of life.
    fn look(&mut self) {
        let now = Instant::now();
        let timeouts = self.terms.permit.entry().server.spec.timeouts;
        if matches!(self.terms.purpose, Purpose::Answer(..)) {
            let too_quiet = !self.asked && now.duration_since(self.heard) >= timeouts.idle;
            let too_long = now.duration_since(self.terms.record.started()) >= timeouts.total;
            if too_quiet || too_long {
                return self.fail(UpstreamFault::TimedOut);
            }
        } else if self.terms.drain.is_started() {
            return self.close_listen();
        }
        // Always, not only after a change: a token or key may have ended by itself.
        match self.terms.permit.renewed(&self.terms.current.load()) {
            Some(permit) => self.terms.permit = permit,
            None => return self.refuse(&Reject::Forbidden("revoked while open".into())),
        }
        if now.duration_since(self.said) >= KEEP_ALIVE_EVERY {
            self.out.push_back(Bytes::from_static(KEEP_ALIVE));
        }
    }

    /// Ends a listening stream in good order [2026-07-28 basic/patterns/subscriptions].
    fn close_listen(&mut self) {
        let last = match &self.terms.purpose {
            Purpose::Listen(Some(id)) => {
                let key = "io.modelcontextprotocol/subscriptionId";
                let result = format!(r#"{{"resultType":"complete","_meta":{{"{key}":{}}}}}"#, id.as_json());
                let data = result_response(id, result.as_bytes());
                Some(encode(&Event { event: Some("message".into()), data, ..Event::default() }))
            }
            _ => None,
        };
        self.end(End { outcome: Outcome::Ok, status: 200, code: 0, reason: "drained" }, last);
        self.lease = None;
    }

    fn next_wake(&self) -> Instant {
        let timeouts = self.terms.permit.entry().server.spec.timeouts;
        let mut next = Instant::now() + LOOK_EVERY;
        if matches!(self.terms.purpose, Purpose::Answer(..)) {
            next = next.min(self.terms.record.started() + timeouts.total);
            if !self.asked {
                next = next.min(self.heard + timeouts.idle);
            }
        }
        next
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.terms.record.metrics().open_streams.dec();
    }
}

/// How an answer of a server is recorded: a tool's own error is an error, not a failure.
pub fn end_of(message: &Message) -> End {
    let failed =
        message.kind() == Kind::Error || message.raw(Slot::ResultIsError).as_deref() == Some(b"true");
    End {
        outcome: if failed { Outcome::Error } else { Outcome::Ok },
        status: 200,
        code: message.error_code().unwrap_or_default(),
        reason: "",
    }
}
