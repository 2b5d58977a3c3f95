//! The sessions of HTTP+SSE. They live in this proxy alone, for their streams end here: an id is a random number, good for
//! the principal and the door that it was given to. Everything they hold is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::{Kind, Message, Method};

use super::super::Caller;
use crate::authn::Identity;
use crate::gateway::Door;
use crate::reject::Reject;

/// Sessions at the most, of one principal and altogether.
const MAX_PER_PRINCIPAL: usize = 1000;
const MAX_SESSIONS: usize = 20_000;
/// What may wait for a client to take it; servers wait when there is more, and the session ends when they wait too long.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 1024 * 1024;
const STALLED: Duration = Duration::from_secs(30);
/// Requests of one session that may be under way, and other messages.
const MAX_REQUESTS: usize = 32;
const MAX_NOTES: usize = 32;
/// A session that nothing was posted to, and one on which nothing was said for so long, is given up.
const UNUSED: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// Every session of this proxy.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<Register>,
}

#[derive(Default)]
struct Register {
    by_id: HashMap<u128, Arc<Session>>,
    by_principal: HashMap<Uuid, usize>,
}

/// One session.
pub(super) struct Session {
    id: u128,
    principal: Uuid,
    door: Door,
    over: CancellationToken,
    outlet: Outlet,
    requests: Arc<Semaphore>,
    notes: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    identity: Identity,
    caller: Caller,
    /// The session that the gateway sees.
    inner: Option<HeaderValue>,
    listens: bool,
    used: bool,
    /// When something was last said, by either side.
    heard: Instant,
    /// What messages wait for before they are served.
    turn: CancellationToken,
    ended: Option<Ended>,
}

/// A message on its way to the client.
pub(super) struct Said {
    pub(super) message: Bytes,
    /// It ends a request of the client.
    pub(super) is_answer: bool,
    _room: OwnedSemaphorePermit,
}

/// A message of the client, and all that it takes to serve it.
pub(super) struct Delivery {
    pub(super) session: Arc<Session>,
    pub(super) message: Message,
    pub(super) caller: Caller,
    /// Its place among those under way.
    pub(super) seat: OwnedSemaphorePermit,
    /// Cancelled when it may be served.
    pub(super) turn: CancellationToken,
    /// Lets those behind it go, when it is dropped.
    pub(super) holds: Option<DropGuard>,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Revoked,
    Drained,
    Idle,
    Stalled,
    Gone,
}

/// The client takes too little of what it is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IsStalled;

impl Sessions {
    pub(super) fn open(
        &self,
        identity: Identity,
        door: Door,
        caller: Caller,
    ) -> Result<(Arc<Session>, mpsc::Receiver<Said>), Reject> {
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| Reject::Internal("no_random_numbers"))?;
        let (outlet, waiting) = Outlet::new();
        let turn = CancellationToken::new();
        turn.cancel();
        let session = Arc::new(Session {
            id: u128::from_be_bytes(id),
            principal: identity.principal().id,
            door,
            over: CancellationToken::new(),
            outlet,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            notes: Arc::new(Semaphore::new(MAX_NOTES)),
            state: Mutex::new(State {
                identity,
                caller,
                inner: None,
                listens: false,
                used: false,
                heard: Instant::now(),
                turn,
                ended: None,
            }),
        });
        self.add(&session)?;
        Ok((session, waiting))
    }

    fn add(&self, session: &Arc<Session>) -> Result<(), Reject> {
        let mut open = self.open.lock();
        let own = open.by_principal.get(&session.principal).copied().unwrap_or_default();
        if own >= MAX_PER_PRINCIPAL || open.by_id.len() >= MAX_SESSIONS {
            return Err(Reject::TooMany("sessions"));
        }
        open.by_principal.insert(session.principal, own + 1);
        open.by_id.insert(session.id, Arc::clone(session));
        Ok(())
    }

    /// The session that a query names. One of somebody else, or of another door, is as unknown as one that never was.
    pub(super) fn find(
        &self,
        query: Option<&str>,
        principal: Uuid,
        door: &Door,
    ) -> Result<Arc<Session>, Reject> {
        let id = query.and_then(named).ok_or(Reject::UnknownSession)?;
        let session = self.open.lock().by_id.get(&id).cloned();
        session
            .filter(|session| session.principal == principal && session.door == *door)
            .ok_or(Reject::UnknownSession)
    }

    /// Ends a session; the first reason counts.
    pub(super) fn end(&self, session: &Session, why: Ended) {
        session.state.lock().ended.get_or_insert(why);
        session.over.cancel();
        let mut open = self.open.lock();
        if open.by_id.remove(&session.id).is_none() {
            return;
        }
        if let Some(own) = open.by_principal.get_mut(&session.principal) {
            *own -= 1;
            if *own == 0 {
                open.by_principal.remove(&session.principal);
            }
        }
    }
}

impl Session {
    /// The id as its client gets it.
    pub(super) fn name(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// Cancelled when it has ended.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    pub(super) fn ended(&self) -> Ended {
        self.state.lock().ended.unwrap_or(Ended::Drained)
    }

    /// In whose name it is kept, by the newest credential that was shown.
    pub(super) fn caller(&self) -> Caller {
        self.state.lock().caller.clone()
    }

    /// Takes a message of the client, with who sent it: a fresh credential keeps the session open.
    pub(super) fn take(
        self: &Arc<Self>,
        message: Message,
        identity: Identity,
        caller: Caller,
    ) -> Result<Delivery, Reject> {
        let seats = if message.kind() == Kind::Request { &self.requests } else { &self.notes };
        let seat = Arc::clone(seats).try_acquire_owned().map_err(|_| Reject::TooMany("messages"))?;
        let mut state = self.state.lock();
        state.identity = identity;
        state.caller.credential.clone_from(&caller.credential);
        state.used = true;
        state.heard = Instant::now();
        let turn = state.turn.clone();
        let mut holds = None;
        if message.method().map(Method::parse) == Some(Method::Initialized) {
            state.turn = CancellationToken::new();
            holds = Some(state.turn.clone().drop_guard());
        }
        drop(state);
        Ok(Delivery { session: Arc::clone(self), message, caller, seat, turn, holds })
    }

    /// Puts a message on the stream, when there is room for it.
    pub(super) async fn say(&self, message: Bytes, is_answer: bool) -> Result<(), IsStalled> {
        let said = self.over.run_until_cancelled(self.outlet.put(message, is_answer)).await;
        self.state.lock().heard = Instant::now();
        said.unwrap_or(Ok(()))
    }

    /// The session that the gateway sees.
    pub(super) fn inner(&self) -> Option<HeaderValue> {
        self.state.lock().inner.clone()
    }

    /// Another one has begun, or none; gives back the one before.
    pub(super) fn begin(&self, inner: Option<HeaderValue>) -> Option<HeaderValue> {
        let mut state = self.state.lock();
        state.listens = false;
        std::mem::replace(&mut state.inner, inner)
    }

    /// Whether the server's own stream is still to be opened.
    pub(super) fn listens(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().listens, true)
    }

    /// Looks at who it belongs to under a newer configuration. False where that is nobody any more.
    pub(super) fn renew(&self, snapshot: &Snapshot) -> bool {
        let mut state = self.state.lock();
        match state.identity.renew(snapshot) {
            Some(identity) => {
                state.identity = identity;
                true
            }
            None => false,
        }
    }

    /// Whether nothing is under way, and nothing waits to be taken.
    pub(super) fn is_quiet(&self) -> bool {
        let under_way =
            self.requests.available_permits() < MAX_REQUESTS || self.notes.available_permits() < MAX_NOTES;
        !under_way && self.outlet.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let most = if state.used { IDLE } else { UNUSED };
        state.heard.elapsed() >= most && self.is_quiet()
    }
}

/// What waits for a client to take it.
struct Outlet {
    queue: mpsc::Sender<Said>,
    room: Arc<Semaphore>,
}

impl Outlet {
    fn new() -> (Self, mpsc::Receiver<Said>) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        (Self { queue, room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)) }, waiting)
    }

    async fn put(&self, message: Bytes, is_answer: bool) -> Result<(), IsStalled> {
        // A message that is larger than all the room takes all of it.
        let size = message.len().clamp(1, MAX_WAITING_BYTES);
        let weight = u32::try_from(size).unwrap_or(u32::MAX);
        let put = async {
            let room = Arc::clone(&self.room).acquire_many_owned(weight).await.ok()?;
            // Where the reader is gone, the session is over, and that is known elsewhere.
            self.queue.send(Said { message, is_answer, _room: room }).await.ok()
        };
        timeout(STALLED, put).await.map(|_| ()).map_err(|_| IsStalled)
    }

    fn is_empty(&self) -> bool {
        self.room.available_permits() == MAX_WAITING_BYTES
    }
}

/// The id in a query that says nothing else.
fn named(query: &str) -> Option<u128> {
    let id = query.strip_prefix("sessionId=").filter(|id| id.len() == 32)?;
    let plain = id.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
    u128::from_str_radix(id, 16).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(named(&format!("sessionId={id}")), Some(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
        for query in [
            String::new(),
            format!("sessionid={id}"),
            format!("sessionId={}", id.to_uppercase()),
            format!("sessionId=+{}", id.get(1..).unwrap()),
            format!("sessionId={id}0"),
            format!("sessionId={id}&x=1"),
            format!("x=1&sessionId={id}"),
        ] {
            assert_eq!(named(&query), None, "{query}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        for (size, most) in [(10, MAX_WAITING), (300_000, 3), (5_000_000, 1)] {
            let (outlet, mut waiting) = Outlet::new();
            let message = Bytes::from(vec![b'x'; size]);
            for _ in 0..most {
                assert_eq!(outlet.put(message.clone(), false).await, Ok(()));
            }
            let before = Instant::now();
            assert_eq!(outlet.put(message.clone(), false).await, Err(IsStalled), "{size}");
            assert_eq!(before.elapsed(), STALLED);
            waiting.recv().await.unwrap();
            assert_eq!(outlet.put(message.clone(), false).await, Ok(()), "{size}");
            while waiting.try_recv().is_ok() {}
            assert!(outlet.is_empty());
        }
    }
}
