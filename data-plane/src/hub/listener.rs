//! A client that listens, and the body of its stream. It has no task and no timer of its own: what is new waits in one
//! small list, the newest message for each topic, and goes out when the client takes it. So a client that does not read
//! costs little, and is told once when it does.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use parking_lot::Mutex;
use tokio::time::Instant;
use waffles_core::audit::Outcome;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::translate::notice::{self, Filter};
use waffles_mcp::{Id, Message};

use super::feed::{Feed, Seat};
use super::topic::Topic;
use super::waiting::Waiting;
use super::{Hub, View};
use crate::authn::Identity;
use crate::flow::{Open, Outbox};
use crate::front::Session;
use crate::record::{End, Record};
use crate::reject::Reject;
use crate::shared::Shared;
use crate::stream::Body;

/// A quiet stream says that it is alive this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// What a listener may listen to, under a configuration.
pub type Renew = dyn Fn(&Snapshot, &Identity) -> Option<View> + Send + Sync;

/// Who listens.
#[derive(Debug, Clone)]
pub enum Audience {
    /// A stateless client, with the id of its request: every message is tagged with it.
    Listen(Id),
    /// A client in a session of the gateway's own.
    Standing(Arc<Session>),
}

/// A client that listens.
pub struct Listener {
    /// Names it within the process.
    pub number: u64,
    /// Who it is.
    pub audience: Audience,
    /// In whose sessions it listens.
    pub seat: Seat,
    /// What it may listen to.
    pub renew: Box<Renew>,
    outbox: Outbox,
    state: Mutex<State>,
}

struct State {
    identity: Identity,
    /// What it asked for and was told that it gets, in its own words.
    filter: Filter,
    feeds: Vec<Arc<Feed>>,
    mark: u64,
    waiting: Waiting,
    record: Record,
    said: Instant,
    /// It was told what it gets. Nothing goes out before.
    begun: bool,
}

/// What a look at a listener finds.
pub struct Looked {
    /// Who it is now.
    pub identity: Identity,
    /// The subscriptions that it shares.
    pub feeds: Vec<Arc<Feed>>,
    /// What decided what it sees.
    pub mark: u64,
}

impl Listener {
    /// One that shares no subscription yet.
    pub fn new(
        number: u64,
        audience: Audience,
        seat: Seat,
        identity: Identity,
        renew: Box<Renew>,
        outbox: Outbox,
        record: Record,
    ) -> Self {
        let state = State {
            identity,
            filter: Filter::default(),
            feeds: Vec::new(),
            mark: 0,
            waiting: Waiting::default(),
            record,
            said: Instant::now(),
            begun: false,
        };
        Self { number, audience, seat, renew, outbox, state: Mutex::new(state) }
    }

    /// Tells it that something has changed. Of several messages about one topic it gets the newest.
    pub fn notice(&self, topic: Topic, message: &Arc<Message>) {
        let mut state = self.state.lock();
        if !state.waiting.put(topic, message) {
            return state.record.metrics().dropped("listener_lags");
        }
        drop(state);
        self.outbox.wake();
    }

    /// Tells it that all it asked for may have changed.
    pub fn announce(&self) {
        for topic in Topic::all(&self.filter()) {
            if let Some(message) = topic.announcement() {
                self.notice(topic, &message);
            }
        }
    }

    /// What it wants, in its own words.
    pub fn filter(&self) -> Filter {
        self.state.lock().filter.clone()
    }

    /// Sets what it wants.
    pub fn set_filter(&self, filter: Filter) {
        self.state.lock().filter = filter;
    }

    /// Says what it gets, and lets messages go out from now on.
    pub fn begin(&self, first: Option<Bytes>) {
        let mut state = self.state.lock();
        state.begun = true;
        if let Some(first) = first.filter(|_| !self.outbox.is_closed()) {
            state.record.note_bytes(first.len());
            self.outbox.try_send(first);
        }
        drop(state);
        self.outbox.wake();
    }

    /// Who it is and what it shares.
    pub fn look(&self) -> Looked {
        let state = self.state.lock();
        Looked { identity: state.identity.clone(), feeds: state.feeds.clone(), mark: state.mark }
    }

    /// Notes what a look has brought about.
    pub fn note(&self, looked: Looked) {
        let mut state = self.state.lock();
        (state.identity, state.feeds, state.mark) = (looked.identity, looked.feeds, looked.mark);
    }

    /// Whether it still is who it was, where the configuration has not changed. A key or token ends by itself.
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        let mut state = self.state.lock();
        let renewed = state.identity.renew(snapshot);
        let is_current = renewed.is_some();
        if let Some(identity) = renewed {
            state.identity = identity;
        }
        is_current
    }

    /// Says that the stream is alive, where it was quiet for long.
    pub fn keep_alive(&self, now: Instant) {
        let mut state = self.state.lock();
        if now.duration_since(state.said) >= KEEP_ALIVE_EVERY {
            state.said = now;
            drop(state);
            self.outbox.nudge();
        }
    }

    /// Ends the stream in good order: the process stops.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        if self.outbox.is_closed() {
            return;
        }
        self.last_word(&mut state);
        state.record.finish(End { outcome: Outcome::Ok, status: 200, code: 0, reason: "drained" });
        drop(state);
        self.outbox.close();
    }

    /// Ends the stream of a client whose right to it has ended.
    pub fn revoke(&self) {
        let reject = Reject::Forbidden("revoked while open".into());
        let mut state = self.state.lock();
        if self.outbox.is_closed() {
            return;
        }
        state.waiting.clear();
        self.last_word(&mut state);
        state.record.note_rule(reject.rule());
        state.record.refuse(&reject, 200);
        drop(state);
        self.outbox.close();
    }

    /// The result that ends a subscription [2026-07-28 basic/patterns/subscriptions].
    fn last_word(&self, state: &mut State) {
        let Audience::Listen(id) = &self.audience else { return };
        let last = result_response(id, &notice::closing_result(id));
        state.record.note_bytes(last.len());
        self.outbox.try_send(last);
    }

    /// Puts what waits into the outbox, as far as there is room. False where there was nothing to put.
    fn fill(&self) -> bool {
        let mut state = self.state.lock();
        if !state.begun || state.waiting.is_empty() {
            return false;
        }
        let id = match &self.audience {
            Audience::Listen(id) => Some(id),
            Audience::Standing(_) => None,
        };
        let taken = state.waiting.take(self.outbox.room());
        let any = !taken.is_empty();
        for (topic, message) in taken {
            let bytes = topic.message(&message, id);
            state.record.note_bytes(bytes.len());
            self.outbox.try_send(bytes);
        }
        any
    }

    fn said(&self) {
        self.state.lock().said = Instant::now();
    }

    /// The stream is over, and if nobody has said why, it was another stream or the session's end.
    fn ended(&self) {
        let mut state = self.state.lock();
        state.record.finish(End { outcome: Outcome::Ok, status: 200, code: 0, reason: "stream_closed" });
    }

    /// What it leaves behind.
    pub(super) fn leave(&self) -> Vec<Arc<Feed>> {
        self.outbox.abandon();
        let mut state = self.state.lock();
        // One that was not finished is finished by its drop.
        drop(state.record.hand_over());
        std::mem::take(&mut state.feeds)
    }

    /// Gives the record back, for a stream that does not come about.
    pub(super) fn record(&self) -> Record {
        self.state.lock().record.hand_over()
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The body of a listener's stream. The listener leaves when it is dropped.
pub struct Listening {
    listener: Arc<Listener>,
    shared: Arc<Shared>,
    _open: [Open; 2],
}

impl Listening {
    /// The stream of a listener that the hub knows.
    pub fn new(listener: Arc<Listener>, shared: Arc<Shared>, open: [Open; 2]) -> Self {
        Self { listener, shared, _open: open }
    }

    /// The response.
    pub fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::Listen(Box::new(self)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match self.listener.outbox.poll(cx) {
                Poll::Ready(Some(event)) => {
                    self.listener.said();
                    return Poll::Ready(Some(event));
                }
                Poll::Ready(None) => {
                    self.listener.ended();
                    return Poll::Ready(None);
                }
                // What comes from now on wakes; what came before is found here.
                Poll::Pending if !self.listener.fill() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let hub: &Hub = &self.shared.hub;
        hub.leave(&self.listener);
    }
}
