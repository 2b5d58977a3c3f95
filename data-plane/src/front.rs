//! The client's side of a bridged exchange: its revision, what it can do, and its session where its revision has one.
//! The gateway's own session ids are sealed with all that is needed to serve them, so that any proxy with the same key
//! does; what changes during a session (log level, subscriptions, questions under way) lives in one proxy.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waffles_core::seal::SealRing;
use waffles_mcp::translate::Client;
use waffles_mcp::{Head, Id, Message, Revision, capability};

use crate::flow::Outbox;
use crate::reject::Reject;

const PURPOSE: &[u8] = b"waffles gateway session 1";
/// What the gateway's own session ids start with; a server's are sealed without it.
const MARK: &str = "g.";
/// A session ends by itself after this many seconds.
const MAX_AGE: i64 = 7 * 24 * 3600;
/// Most bytes of a client's own description that go into an id.
const MAX_INFO: usize = 512;
/// Sessions that this proxy holds at the most, for one principal and altogether.
const MAX_PER_PRINCIPAL: usize = 1000;
const MAX_SESSIONS: usize = 50_000;
/// What changes of a session is forgotten when it was quiet for so long. The id stays good.
const IDLE: Duration = Duration::from_secs(1800);
/// Streams of one session that are kept for a client that comes back.
const STREAMS: usize = 16;
/// Resources that one session may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 1000;

/// Who speaks to us in an exchange, and how.
#[derive(Debug, Clone)]
pub struct Front {
    /// The revision that the client speaks.
    pub revision: Revision,
    /// What it says of itself.
    pub client: Client,
    /// Its session, where its revision has one.
    pub session: Option<Arc<Session>>,
    /// The level from which on it wants log messages; none where it did not say.
    pub log_level: Option<String>,
}

impl Front {
    /// A client of the stateless revision: every message says it all.
    pub fn stateless(head: &Head) -> Self {
        let log_level = head.log_level.clone();
        Self { revision: Revision::V2026_07_28, client: client(head), session: None, log_level }
    }

    /// A client that opens a session.
    pub fn opening(head: &Head) -> Self {
        Self { revision: Revision::LATEST_LEGACY, client: client(head), session: None, log_level: None }
    }

    /// A client in a session of the gateway's own.
    pub fn of(session: Arc<Session>) -> Self {
        Self {
            revision: session.revision,
            client: session.client.clone(),
            log_level: session.log_level(),
            session: Some(session),
        }
    }

    /// Whether the client speaks the stateless revision.
    pub fn is_stateless(&self) -> bool {
        self.revision.is_modern()
    }
}

fn client(head: &Head) -> Client {
    let capabilities = head.client_capabilities.clone().unwrap_or_else(|| Bytes::from_static(b"{}"));
    Client { capabilities, info: head.client_info.clone() }
}

/// A session of the gateway's own.
#[derive(Debug)]
pub struct Session {
    /// Names it within the process.
    pub nonce: u128,
    /// Whose it is.
    pub principal: Uuid,
    /// The door that it was opened at.
    pub door: String,
    /// The revision that was agreed on.
    pub revision: Revision,
    /// What the client said of itself.
    pub client: Client,
    state: Mutex<State>,
    counter: AtomicU64,
}

#[derive(Debug)]
struct State {
    used: Instant,
    log_level: Option<String>,
    /// Questions of servers that the client has not answered.
    asked: HashMap<Id, oneshot::Sender<Message>>,
    /// Requests under way.
    running: HashMap<Id, (u64, CancellationToken)>,
    subscribed: BTreeSet<String>,
    streams: VecDeque<(u64, Outbox)>,
    /// The stream of what belongs to no request, where the client has opened one.
    standing: Option<Outbox>,
    ended: CancellationToken,
}

/// What an id is sealed with.
#[derive(Serialize, Deserialize)]
struct Sealed {
    n: u128,
    p: Uuid,
    d: String,
    r: String,
    i: i64,
    c: String,
    f: Option<String>,
}

impl Session {
    /// Begins a session.
    pub fn begin(principal: Uuid, door: String, revision: Revision, client: &Client) -> Result<Self, Reject> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| Reject::Internal("no_random_numbers"))?;
        let info = client.info.clone().filter(|info| info.len() <= MAX_INFO);
        let client = Client { capabilities: capability::normalise(&client.capabilities), info };
        Ok(Self::new(u128::from_be_bytes(nonce), principal, door, revision, client))
    }

    fn new(nonce: u128, principal: Uuid, door: String, revision: Revision, client: Client) -> Self {
        let state = State {
            used: Instant::now(),
            log_level: None,
            asked: HashMap::new(),
            running: HashMap::new(),
            subscribed: BTreeSet::new(),
            streams: VecDeque::new(),
            standing: None,
            ended: CancellationToken::new(),
        };
        Self {
            nonce,
            principal,
            door,
            revision,
            client,
            state: Mutex::new(state),
            counter: AtomicU64::new(1),
        }
    }

    /// Whether an id is one of the gateway's own sessions.
    pub fn is_own(id: &str) -> bool {
        id.starts_with(MARK)
    }

    /// The id for the client.
    pub fn seal(&self, ring: &SealRing, now: i64) -> Result<HeaderValue, Reject> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let sealed = Sealed {
            n: self.nonce,
            p: self.principal,
            d: self.door.clone(),
            r: self.revision.as_str().to_owned(),
            i: now,
            c: text(&self.client.capabilities),
            f: self.client.info.as_ref().map(text),
        };
        let failed = || Reject::Internal("cannot_seal_session");
        let plain = serde_json::to_vec(&sealed).map_err(|_| failed())?;
        let sealed = ring.seal(PURPOSE, &plain).map_err(|_| failed())?;
        HeaderValue::try_from(format!("{MARK}{}", URL_SAFE_NO_PAD.encode(sealed))).map_err(|_| failed())
    }

    /// What an id says, and since when it does.
    fn open(id: &str, ring: &SealRing, now: i64) -> Option<(Self, i64)> {
        let sealed = URL_SAFE_NO_PAD.decode(id.strip_prefix(MARK)?).ok()?;
        let plain = ring.open(PURPOSE, &sealed).ok()?;
        let sealed: Sealed = serde_json::from_slice(&plain).ok()?;
        if now.saturating_sub(sealed.i) > MAX_AGE {
            return None;
        }
        let revision = Revision::parse(&sealed.r)?;
        let client = Client { capabilities: sealed.c.into(), info: sealed.f.map(Bytes::from) };
        Some((Self::new(sealed.n, sealed.p, sealed.d, revision, client), sealed.i))
    }

    /// A number that no other stream or question of this session has.
    pub fn count(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// The level from which on the client wants log messages.
    pub fn log_level(&self) -> Option<String> {
        self.state.lock().log_level.clone()
    }

    /// Sets that level.
    pub fn set_log_level(&self, level: &str) {
        self.state.lock().log_level = Some(level.to_owned());
    }

    /// Notes a question for the client; the answer comes where this returns to.
    pub fn ask(&self, id: Id) -> oneshot::Receiver<Message> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.asked.retain(|_, sender| !sender.is_closed());
        state.asked.insert(id, sender);
        receiver
    }

    /// Takes the client's answer to a question; false where nobody waits for it.
    pub fn answer(&self, message: Message) -> bool {
        let asked = message.id().and_then(|id| self.state.lock().asked.remove(id));
        asked.is_some_and(|asked| asked.send(message).is_ok())
    }

    /// Notes that a request runs.
    pub fn run(self: &Arc<Self>, id: &Id) -> Running {
        let token = CancellationToken::new();
        let number = self.count();
        self.state.lock().running.insert(id.clone(), (number, token.clone()));
        Running { session: Arc::clone(self), id: id.clone(), number, token }
    }

    /// Cancels a request that runs. One that does not is over already, and that is no error.
    pub fn cancel(&self, id: &Id) {
        if let Some((_, token)) = self.state.lock().running.remove(id) {
            token.cancel();
        }
    }

    /// Adds a resource to those that the client wants to hear of.
    pub fn subscribe(&self, uri: &str) -> Result<(), Reject> {
        let mut state = self.state.lock();
        if state.subscribed.len() >= MAX_SUBSCRIPTIONS && !state.subscribed.contains(uri) {
            return Err(Reject::TooMany("subscriptions of this session"));
        }
        state.subscribed.insert(uri.to_owned());
        Ok(())
    }

    /// Takes it away again.
    pub fn unsubscribe(&self, uri: &str) {
        self.state.lock().subscribed.remove(uri);
    }

    /// What the client wants to hear of.
    pub fn subscribed(&self) -> BTreeSet<String> {
        self.state.lock().subscribed.clone()
    }

    /// An outbox for the answer to a request, kept for a client that loses its connection and comes back.
    pub fn stream(&self) -> Outbox {
        let number = self.count();
        let outbox = Outbox::new(Some(format!("s{number}").into()));
        let mut state = self.state.lock();
        while state.streams.len() >= STREAMS {
            state.streams.pop_front();
        }
        state.streams.push_back((number, outbox.clone()));
        outbox
    }

    /// The stream that an event id belongs to, gone back to behind that event.
    pub fn resume(&self, event_id: &str) -> Option<Outbox> {
        let (stream, seen) = event_id.strip_prefix('s')?.split_once('-')?;
        let (stream, seen) = (stream.parse::<u64>().ok()?, seen.parse::<u64>().ok()?);
        let state = self.state.lock();
        let outbox = state.streams.iter().find(|(number, _)| *number == stream)?.1.clone();
        // One reader: a second would steal from the first.
        (!outbox.is_read() && outbox.rewind(seen)).then_some(outbox)
    }

    /// Takes the place of the standing stream, and ends the one that was there.
    pub fn stand(&self) -> Outbox {
        let outbox = self.stream();
        if let Some(old) = self.state.lock().standing.replace(outbox.clone()) {
            old.close();
        }
        outbox
    }

    /// The standing stream, where the client has one open.
    pub fn standing(&self) -> Option<Outbox> {
        self.state.lock().standing.clone().filter(|outbox| !outbox.is_closed())
    }

    /// Becomes true when the session ends.
    pub fn ended(&self) -> CancellationToken {
        self.state.lock().ended.clone()
    }

    fn touch(&self) {
        self.state.lock().used = Instant::now();
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let listening = state.standing.as_ref().is_some_and(|outbox| outbox.is_read() && !outbox.is_closed());
        state.running.is_empty() && !listening && state.used.elapsed() > IDLE
    }

    fn end(&self) {
        let state = self.state.lock();
        // What runs goes on: a lost connection is no cancellation, and the end of HTTP+SSE is no more.
        if let Some(standing) = &state.standing {
            standing.close();
        }
        state.ended.cancel();
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct Running {
    session: Arc<Session>,
    id: Id,
    number: u64,
    token: CancellationToken,
}

impl Running {
    /// Ends the wait when the client has cancelled the request.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.session.state.lock();
        if state.running.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            state.running.remove(&self.id);
        }
        state.used = Instant::now();
    }
}

/// The sessions that this proxy holds. Shared by all threads.
#[derive(Debug, Default)]
pub struct Sessions {
    held: Mutex<HashMap<u128, Arc<Session>>>,
    /// Ids that were opened before, and what they say: opening one costs more than the rest of a look-up.
    opened: Mutex<HashMap<Box<str>, (u128, i64)>>,
    /// Sessions that were ended here, until their ids are too old anyway.
    ended: Mutex<(VecDeque<u128>, HashSet<u128>)>,
}

/// Ended sessions that are remembered.
const ENDED: usize = 10_000;

impl Sessions {
    /// Holds a new session.
    pub fn add(&self, session: Session) -> Result<Arc<Session>, Reject> {
        let mut held = self.held.lock();
        let own = held.values().filter(|other| other.principal == session.principal).count();
        if held.len() >= MAX_SESSIONS || own >= MAX_PER_PRINCIPAL {
            return Err(Reject::TooMany("sessions"));
        }
        let session = Arc::new(session);
        held.insert(session.nonce, Arc::clone(&session));
        Ok(session)
    }

    /// The session of an id: held here, or begun on another proxy. Whatever does not open, or is of somebody else or of
    /// another door, is unknown.
    pub fn find(
        &self,
        id: &str,
        ring: &SealRing,
        principal: Uuid,
        door: &str,
        now: i64,
    ) -> Result<Arc<Session>, Reject> {
        let remembered = self.opened.lock().get(id).copied();
        if let Some((nonce, issued)) = remembered
            && now.saturating_sub(issued) <= MAX_AGE
            && let Some(held) = self.held.lock().get(&nonce)
            && held.principal == principal
            && held.door == door
        {
            held.touch();
            return Ok(Arc::clone(held));
        }
        let (session, issued) = Session::open(id, ring, now).ok_or(Reject::UnknownSession)?;
        let is_ended = self.ended.lock().1.contains(&session.nonce);
        if session.principal != principal || session.door != door || is_ended {
            return Err(Reject::UnknownSession);
        }
        let mut opened = self.opened.lock();
        if opened.len() >= MAX_SESSIONS {
            opened.clear();
        }
        opened.insert(id.into(), (session.nonce, issued));
        drop(opened);
        if let Some(held) = self.held.lock().get(&session.nonce) {
            held.touch();
            return Ok(Arc::clone(held));
        }
        self.add(session)
    }

    /// Ends a session.
    pub fn end(&self, session: &Session) {
        session.end();
        self.held.lock().remove(&session.nonce);
        let (order, nonces) = &mut *self.ended.lock();
        while order.len() >= ENDED {
            if let Some(oldest) = order.pop_front() {
                nonces.remove(&oldest);
            }
        }
        order.push_back(session.nonce);
        nonces.insert(session.nonce);
    }

    /// Forgets what was quiet for long.
    pub fn sweep(&self) {
        let mut held = self.held.lock();
        held.retain(|_, session| !session.is_idle());
        self.opened.lock().retain(|_, (nonce, _)| held.contains_key(nonce));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.held.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
