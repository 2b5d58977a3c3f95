//! Sessions with servers of the older revisions, opened on a client's behalf. They are pooled by server, principal, key,
//! capabilities and the client's own session; never shared across principals, because a server may keep state in them.
//! One that the server has lost is opened anew once; one that nobody uses is ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;
use waffles_mcp::capability;
use waffles_mcp::headers::{LAST_EVENT_ID, MCP_PROTOCOL_VERSION, MCP_SESSION_ID};
use waffles_mcp::translate::Client;
use waffles_mcp::translate::handshake::{Described, initialize_request};
use waffles_mcp::{Era, Id, Kind, Message, Revision};

use super::eras::{Eras, Speaks, is_foreign};
use super::inbox::{Heard, Inbox, Resume};
use super::line::Line;
use super::{Manner, Outgoing, Upstream};
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};

/// Most sessions of one principal with one server at a time.
const MAX_PER_PRINCIPAL: usize = 256;
/// Most sessions altogether.
const MAX_SESSIONS: usize = 20_000;
/// HTTP+SSE sessions that one key opens, so that what a server says is said to one call.
const MAX_LINES: usize = 8;
/// A session that nobody uses is ended.
const IDLE: Duration = Duration::from_secs(300);
const END_TIME: Duration = Duration::from_secs(2);
/// A server has one standing stream a session, and says 409 to a second: also when the first was closed a moment ago and
/// it has not seen that yet.
const SECOND_STREAM: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: Uuid,
    version: u64,
    principal: Uuid,
    api_key: String,
    capabilities: Bytes,
    /// The client's own session, where it has one: what the server keeps for it is its own.
    owner: Option<u128>,
}

/// A session with a server.
#[derive(Debug)]
pub struct Back {
    /// What the server says of itself.
    pub described: Described,
    permit: Permit,
    endpoint: u16,
    id: Option<HeaderValue>,
    line: Option<Line>,
    next_id: AtomicU64,
    calls: AtomicUsize,
    holds: AtomicUsize,
    used: Mutex<Instant>,
    level: tokio::sync::Mutex<Option<String>>,
    /// The server has lost it.
    lost: AtomicBool,
    /// Whose it is has gone; it ends with the last call under way.
    orphaned: AtomicBool,
}

/// Why nothing comes of a question.
#[derive(Debug)]
pub enum Missed {
    /// The server does not know the session any more, so it did nothing.
    Lost,
    /// The server's own answer came with an HTTP error.
    Answered(Box<Message>),
    /// Anything else.
    Reject(Reject),
}

impl From<Reject> for Missed {
    fn from(reject: Reject) -> Self {
        Self::Reject(reject)
    }
}

type Slot = Arc<tokio::sync::Mutex<Vec<Arc<Back>>>>;

/// All sessions with servers. Shared by all threads.
#[derive(Debug, Default)]
pub struct Backs {
    open: Mutex<HashMap<Key, Slot>>,
}

impl Backs {
    /// A session for this caller: one that is there, or a new one.
    pub async fn get(
        &self,
        upstream: &Upstream,
        eras: &Eras,
        permit: &Permit,
        client: &Client,
        owner: Option<u128>,
    ) -> Result<Arc<Back>, Reject> {
        let identity = permit.identity();
        let server = &permit.entry().server;
        let key = Key {
            server: server.id,
            version: server.version,
            principal: identity.principal().id,
            api_key: identity.key().map(|key| key.id.clone()).unwrap_or_default(),
            capabilities: capability::normalise(&client.capabilities),
            owner,
        };
        let slot = self.slot(&key)?;
        let mut backs = slot.lock().await;
        backs.retain(|back| back.is_alive());
        let lined = backs.first().is_some_and(|back| back.line.is_some());
        let free = match lined {
            false => backs.first(),
            true => backs
                .iter()
                .min_by_key(|back| (back.calls(), back.holds.load(Ordering::Relaxed) == 0))
                .filter(|back| back.calls() == 0 || backs.len() >= MAX_LINES),
        };
        if let Some(back) = free {
            back.touch();
            return Ok(Arc::clone(back));
        }
        let client = Client { capabilities: key.capabilities.clone(), info: client.info.clone() };
        let back = Arc::new(Box::pin(open(upstream, eras, permit, &client)).await?);
        backs.push(Arc::clone(&back));
        Ok(back)
    }

    fn slot(&self, key: &Key) -> Result<Slot, Reject> {
        let mut open = self.open.lock();
        if let Some(slot) = open.get(key) {
            return Ok(Arc::clone(slot));
        }
        let own = open.keys().filter(|other| other.principal == key.principal && other.server == key.server);
        if open.len() >= MAX_SESSIONS || own.count() >= MAX_PER_PRINCIPAL {
            return Err(Reject::TooMany("sessions with this server"));
        }
        Ok(Arc::clone(open.entry(key.clone()).or_default()))
    }

    /// Ends the sessions of a client's own session; one with a call under way when that is over.
    pub async fn end_of(&self, upstream: &Upstream, owner: u128) {
        let ends = |key: &Key, back: Option<&Back>| {
            let own = key.owner == Some(owner);
            if let Some(back) = back.filter(|_| own) {
                back.orphaned.store(true, Ordering::Relaxed);
            }
            own && back.is_none_or(Back::is_idle)
        };
        self.end_where(upstream, ends).await;
    }

    /// Ends the sessions that nobody has used for a while.
    pub async fn sweep(&self, upstream: &Upstream) {
        self.end_where(upstream, |_, back| back.is_none_or(Back::is_idle)).await;
    }

    /// Ends all of them: the proxy stops.
    pub async fn drain(&self, upstream: &Upstream) {
        self.end_where(upstream, |_, _| true).await;
    }

    async fn end_where(&self, upstream: &Upstream, ends: impl Fn(&Key, Option<&Back>) -> bool) {
        let mut ended = Vec::new();
        self.open.lock().retain(|key, slot| {
            // Somebody opens one just now.
            let Ok(mut backs) = slot.try_lock() else { return true };
            backs.retain(|back| {
                let over = ends(key, Some(back)) || !back.is_alive();
                if over {
                    ended.push(Arc::clone(back));
                }
                !over
            });
            !(backs.is_empty() && Arc::strong_count(slot) == 1)
        });
        let until = Instant::now() + END_TIME;
        let all = ended.iter().map(|back| back.end(upstream));
        // A server that does not take it forgets the session by itself.
        if timeout_at(until, futures_util::future::join_all(all)).await.is_err() {
            tracing::debug!("not every server took the end of its sessions in time");
        }
    }
}

impl Back {
    /// A fresh id of a request on this session. It is also the request's progress token.
    pub fn fresh_id(&self) -> Id {
        Id::number(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Which era the session is of.
    pub fn era(&self) -> Era {
        if self.line.is_some() { Era::HttpSse } else { Era::Sessions }
    }

    /// Which of the server's endpoints holds it.
    pub fn endpoint(&self) -> u16 {
        self.endpoint
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Counts a call as under way until the guard goes.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Keeps it open until the guard goes, though no call is under way.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(self))
    }

    fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    fn is_idle(&self) -> bool {
        let free = self.calls() == 0 && self.holds.load(Ordering::Relaxed) == 0;
        free && (self.orphaned.load(Ordering::Relaxed) || self.used.lock().elapsed() > IDLE)
    }

    fn is_alive(&self) -> bool {
        !self.lost.load(Ordering::Relaxed) && self.line.as_ref().is_none_or(Line::is_open)
    }

    /// Sends a request and gives what the server says to it.
    pub async fn ask(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        id: &Id,
        body: Bytes,
    ) -> Result<Inbox, Missed> {
        self.touch();
        let expected = match &self.line {
            Some(line) => Some(line.expect(id)?),
            None => None,
        };
        let mut answer = upstream.call(permit, self.outgoing(HttpMethod::POST, body, Manner::Once)).await?;
        // Over HTTP+SSE the answer comes on the other stream, and the call is not over before that.
        let expected = expected.map(|inbox| inbox.holding(answer.body.take_place()));
        match (Heard::read(answer).await?, expected) {
            // A 404 in a session says that the session is gone, whatever its body says.
            (Heard::Refused { status, message: Some(message) }, _)
                if message.id() == Some(id) && (status != StatusCode::NOT_FOUND || self.id.is_none()) =>
            {
                Err(Missed::Answered(message))
            }
            (Heard::Refused { status, message }, _) => Err(self.refused(status.as_u16(), message.as_deref())),
            (Heard::Accepted, Some(inbox)) => Ok(inbox),
            // Some servers of 2024-11-05 say `Accepted` in a body.
            (Heard::Inbox(_), Some(inbox)) => Ok(inbox),
            (Heard::Inbox(inbox), None) => Ok(inbox),
            (Heard::Accepted, None) => Err(Reject::upstream(UpstreamFault::BadAnswer, true).into()),
        }
    }

    /// Sends a notification, or an answer to the server's own request.
    pub async fn tell(&self, upstream: &Upstream, permit: &Permit, body: Bytes) -> Result<(), Missed> {
        self.touch();
        let outgoing = self.outgoing(HttpMethod::POST, body, Manner::Aside);
        let answer = upstream.call(permit, outgoing).await?;
        match Heard::read(answer).await? {
            Heard::Refused { status, message } => Err(self.refused(status.as_u16(), message.as_deref())),
            Heard::Accepted | Heard::Inbox(_) => Ok(()),
        }
    }

    /// Opens the stream of what belongs to no request. None where the server has none.
    pub async fn listen(&self, upstream: &Upstream, permit: &Permit) -> Result<Option<Inbox>, Missed> {
        self.touch();
        match &self.line {
            Some(line) => Ok(Some(line.strays())),
            None => self.get(upstream, permit, None).await,
        }
    }

    /// Takes up a stream that the server closed before its answer.
    pub async fn take_up(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        resume: &Resume,
    ) -> Result<Option<Inbox>, Missed> {
        match (&self.line, &resume.event_id) {
            (None, Some(event_id)) => self.get(upstream, permit, Some(event_id)).await,
            _ => Ok(None),
        }
    }

    async fn get(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        event_id: Option<&str>,
    ) -> Result<Option<Inbox>, Missed> {
        let mut outgoing = self.outgoing(HttpMethod::GET, Bytes::new(), Manner::Listens);
        outgoing.headers.remove(header::CONTENT_TYPE);
        outgoing.headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(value) = event_id.and_then(|id| HeaderValue::try_from(id).ok()) {
            outgoing.headers.insert(LAST_EVENT_ID, value);
        }
        let until = Instant::now() + SECOND_STREAM;
        loop {
            let answer = upstream.call(permit, outgoing.clone()).await?;
            return match Heard::read(answer).await? {
                Heard::Inbox(inbox) => Ok(Some(inbox.endless())),
                Heard::Accepted | Heard::Refused { status: StatusCode::METHOD_NOT_ALLOWED, .. } => Ok(None),
                Heard::Refused { status: StatusCode::CONFLICT, .. } if Instant::now() < until => {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                Heard::Refused { status, message } => Err(self.refused(status.as_u16(), message.as_deref())),
            };
        }
    }

    /// Sets the lowest level of log messages, where it is not set already. A server that has no levels says so, and
    /// nothing is lost.
    pub async fn set_level(&self, upstream: &Upstream, permit: &Permit, level: &str) {
        let mut now = self.level.lock().await;
        if now.as_deref() == Some(level) {
            return;
        }
        let id = self.fresh_id();
        let params = format!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"logging/setLevel","params":{{"level":"{level}"}}}}"#,
            id.as_json()
        );
        if let Ok(mut inbox) = self.ask(upstream, permit, &id, params.into()).await {
            let until = Instant::now() + END_TIME;
            while let Ok(Ok(Some(message))) = timeout_at(until, inbox.next()).await {
                if message.id() == Some(&id) {
                    *now = Some(level.to_owned());
                    break;
                }
            }
            inbox.done();
        }
    }

    async fn end(&self, upstream: &Upstream) {
        if self.id.is_none() || self.line.is_some() {
            return;
        }
        let mut outgoing = self.outgoing(HttpMethod::DELETE, Bytes::new(), Manner::Aside);
        outgoing.headers.remove(header::CONTENT_TYPE);
        match upstream.call(&self.permit, outgoing).await {
            Ok(answer) => answer.body.recycle(),
            Err(error) => tracing::debug!(reason = error.reason(), "a session could not be ended"),
        }
    }

    fn outgoing(&self, method: HttpMethod, body: Bytes, manner: Manner) -> Outgoing {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.described.revision.has_version_header() {
            let version = HeaderValue::from_static(self.described.revision.as_str());
            headers.insert(MCP_PROTOCOL_VERSION, version);
        }
        if let Some(id) = &self.id {
            headers.insert(MCP_SESSION_ID, id.clone());
        }
        let path = self.line.as_ref().map(|line| line.post.clone());
        Outgoing { method, headers, body, endpoint: Some(self.endpoint), path, manner }
    }

    /// 404 says that the session is gone; some servers say 400 [2025-11-25 basic/transports#session-management].
    fn refused(&self, status: u16, message: Option<&Message>) -> Missed {
        let gone = status == 404 || (status == 400 && self.id.is_some());
        if gone {
            self.lost.store(true, Ordering::Relaxed);
            return Missed::Lost;
        }
        let code = message.and_then(Message::error_code);
        tracing::debug!(status, ?code, "a server refused a message of a session");
        Missed::Reject(Reject::upstream(UpstreamFault::Failed, true))
    }
}

/// A call under way on a session.
#[derive(Debug)]
pub struct Busy(Arc<Back>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

/// Something that needs a session to stay open.
#[derive(Debug)]
pub struct Hold(Arc<Back>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

/// Opens a session: over Streamable HTTP where the server is not known not to speak it, else over HTTP+SSE.
pub async fn open(
    upstream: &Upstream,
    eras: &Eras,
    permit: &Permit,
    client: &Client,
) -> Result<Back, Reject> {
    let server = &permit.entry().server;
    let seen = eras.seen(server);
    if !seen.sessions.is_no() {
        match initialize(upstream, permit, client).await? {
            Some(back) => {
                let revision = back.described.revision;
                eras.note(server, |seen| seen.sessions = Speaks::Yes(revision));
                return Ok(back);
            }
            None => eras.note(server, |seen| seen.sessions = Speaks::No),
        }
    }
    if seen.http_sse.is_no() {
        // Nothing is left that it could speak, so what was believed of it is wrong, or it speaks no MCP.
        eras.forget(server);
        return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
    }
    let line = match Line::open(upstream, permit).await {
        Ok(line) => line,
        Err(reject) => {
            eras.forget(server);
            return Err(reject);
        }
    };
    let mut back = Back::new(permit, line.endpoint);
    back.line = Some(line);
    match back.handshake(upstream, permit, client).await? {
        Some(back) => {
            eras.note(server, |seen| seen.http_sse = Speaks::Yes(()));
            Ok(back)
        }
        None => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
    }
}

/// `initialize` over Streamable HTTP. None where the server's answer says that it does not speak that.
async fn initialize(upstream: &Upstream, permit: &Permit, client: &Client) -> Result<Option<Back>, Reject> {
    let mut back = Back::new(permit, 0);
    let id = back.fresh_id();
    let hello = initialize_request(&id, client, Revision::LATEST_LEGACY);
    let mut outgoing = back.outgoing(HttpMethod::POST, hello, Manner::Once);
    outgoing.endpoint = None;
    outgoing.headers.remove(MCP_PROTOCOL_VERSION);
    let answer = upstream.call(permit, outgoing).await?;
    back.endpoint = answer.endpoint;
    back.id = answer.headers.get(MCP_SESSION_ID).cloned();
    match Heard::read(answer).await? {
        Heard::Accepted => Ok(None),
        Heard::Refused { status, message } => {
            let code = message.as_deref().and_then(Message::error_code);
            if is_foreign(status.as_u16()) || code.is_some_and(waffles_mcp::jsonrpc::code::is_modern) {
                return Ok(None);
            }
            Err(Reject::upstream(UpstreamFault::Failed, true))
        }
        Heard::Inbox(inbox) => back.agreed(upstream, permit, inbox, &id).await,
    }
}

impl Back {
    fn new(permit: &Permit, endpoint: u16) -> Self {
        Self {
            described: Described {
                revision: Revision::V2024_11_05,
                capabilities: Bytes::from_static(b"{}"),
                info: None,
                instructions: None,
            },
            permit: permit.clone(),
            endpoint,
            id: None,
            line: None,
            next_id: AtomicU64::new(1),
            calls: AtomicUsize::new(0),
            holds: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
            level: tokio::sync::Mutex::default(),
            lost: false.into(),
            orphaned: false.into(),
        }
    }

    async fn handshake(
        self,
        upstream: &Upstream,
        permit: &Permit,
        client: &Client,
    ) -> Result<Option<Self>, Reject> {
        let id = self.fresh_id();
        // Some servers of that transport speak newer revisions on it; the others say which they speak.
        let body = initialize_request(&id, client, Revision::LATEST_LEGACY);
        match self.ask(upstream, permit, &id, body).await {
            Ok(inbox) => self.agreed(upstream, permit, inbox, &id).await,
            Err(Missed::Reject(reject)) => Err(reject),
            Err(Missed::Lost | Missed::Answered(_)) => Ok(None),
        }
    }

    /// Reads the answer to `initialize` and says that it was understood.
    async fn agreed(
        mut self,
        upstream: &Upstream,
        permit: &Permit,
        mut inbox: Inbox,
        id: &Id,
    ) -> Result<Option<Self>, Reject> {
        let until = Instant::now() + permit.entry().server.spec.timeouts.first_byte;
        let result = loop {
            match timeout_at(until, inbox.next()).await {
                Err(_) => return Err(Reject::upstream(UpstreamFault::TimedOut, true)),
                Ok(Err(fault)) => return Err(Reject::upstream(fault, true)),
                Ok(Ok(None)) => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
                Ok(Ok(Some(message))) if message.id() == Some(id) => match message.kind() {
                    Kind::Response => break message.result().unwrap_or_default(),
                    Kind::Error => return Ok(None),
                    _ => {}
                },
                Ok(Ok(Some(_))) => {}
            }
        };
        inbox.done();
        self.described = Described::from_initialize(&result)
            .map_err(|_| Reject::upstream(UpstreamFault::BadAnswer, true))?;
        let told = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        match self.tell(upstream, permit, told).await {
            Ok(()) => Ok(Some(self)),
            Err(Missed::Reject(reject)) => Err(reject),
            Err(Missed::Lost | Missed::Answered(_)) => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
        }
    }
}
