//! The request path: one client message, from bytes to bytes, through the steps in order. Only this file knows the
//! order. `serve` is the frame round every exchange, whatever its end: it records and turns a refusal into an answer.

mod bridged;
mod federated;
mod handshake;
mod limits;
mod native;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use waffles_core::namespace::NamespaceEntry;
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::headers::{self, MCP_PROTOCOL_VERSION, MCP_SESSION_ID, check_singletons, singleton};
use waffles_mcp::jsonrpc::{parse_batch, result_response};
use waffles_mcp::{Era, Head, Id, Kind, Limits, Message, Method, Revision, head};
use waffles_runtime::drain::Drain;

use crate::authn::{Authenticator, Identity};
use crate::flow::Outbox;
use crate::front::{self, Front};
use crate::keys::Finder;
use crate::limit::Spent;
use crate::overload::{Guest, Hold, Overload, Priority};
use crate::permit::{Ask, Notes, Permit};
use crate::record::{Desk, End, Record};
use crate::reject::Reject;
use crate::session::Session;
use crate::shared::{Means, Shared};
use crate::state::Current;
use crate::stream::Body;
use crate::tasks;
use crate::upstream::eras::Speaks;
use crate::upstream::{Upstream, is_type, next_frame};
use native::translate;

pub use crate::federation::Scope;

/// Most bytes of a client's message.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Most messages of a batch.
const MAX_BATCH: usize = 50;
/// A body may start slowly, and must then come at 1 KiB a second.
const BODY_GRACE: Duration = Duration::from_secs(5);
const BODY_RATE: u64 = 1024;
/// How long a body waits for others to let go of the bytes that they hold.
const ROOM_TIME: Duration = Duration::from_millis(500);

/// How much of a refused message is read and thrown away, and for how long.
const MAX_DISCARD: usize = 4 * MAX_MESSAGE;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Which door a message came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The tenant that the path names; none means the caller's own.
    pub tenant: Option<String>,
    /// What the path names.
    pub scope: Scope,
}

/// Where the client's message comes from.
#[derive(Debug)]
pub enum Source {
    /// The body of its own HTTP request.
    Wire(Incoming),
    /// Bytes that another door has read: what was posted to an HTTP+SSE session, or what a REST call says.
    Read(Bytes),
    /// One message of a batch.
    Batched(Bytes),
    /// A whole batch, as it came. It is left behind for who serves its messages one by one.
    Batch(Bytes),
}

/// Marks the message of a door whose clients know nothing of mirrored headers: those that a server wants are made here.
#[derive(Debug, Clone, Copy)]
pub struct Unmirrored;

fn is_unmirrored(parts: &Parts) -> bool {
    parts.extensions.get::<Unmirrored>().is_some()
}

/// What one thread serves with. The configuration, the audit spool and the counters are shared by all threads.
pub struct Gateway {
    /// The configuration in force.
    pub current: Arc<Current>,
    /// Checks credentials.
    pub authenticator: Arc<Authenticator>,
    /// Asks for keys that are not here.
    pub keys: Arc<Finder>,
    /// The way to the servers.
    pub upstream: Upstream,
    /// What the threads share beside the configuration.
    pub shared: Arc<Shared>,
    /// Entries on one page of a federated list.
    pub page_size: usize,
    /// Where finished records go.
    pub desk: Arc<Desk>,
    /// Whether there is room.
    pub overload: Arc<Overload>,
    /// The process's end.
    pub drain: Drain,
}

/// One client message and its answer, while it is handled.
struct Exchange {
    snapshot: Arc<Snapshot>,
    peer: SocketAddr,
    verb: HttpMethod,
    record: Record,
    /// What the answer must echo.
    id: Option<Id>,
    modern: bool,
    era: Era,
    /// Who sent it, where another proxy has passed it on.
    passed: Option<Identity>,
    /// What the answer says of limits; none where no limit covers the message.
    spent: Option<Spent>,
    /// What is held of its bytes.
    hold: Hold,
}

/// How a message belongs to its server.
enum Attached {
    /// In its own era, perhaps in a session.
    Native(Option<Session>),
    /// In another era.
    Bridged(Front),
}

/// What a GET or DELETE comes to.
enum Stood {
    Done(Response<Body>),
    /// A standing stream, perhaps for a client that has missed something.
    Listens(Arc<front::Session>, Outbox, bool),
}

/// A client's message, read once.
struct Call {
    message: Message,
    /// None for an answer to the server's own request. Boxed, because it is large and passes through many hands.
    head: Option<Box<Head>>,
}

impl Gateway {
    /// Serves one message, and sees to it that it is recorded and answered whatever happens.
    pub async fn serve(&self, door: Door, peer: SocketAddr, parts: Parts, source: Source) -> Response<Body> {
        self.serve_as(None, door, peer, parts, source).await
    }

    /// As [`Gateway::serve`], for a message that another proxy passed on, with who sent it.
    pub async fn serve_as(
        &self,
        passed: Option<Identity>,
        door: Door,
        peer: SocketAddr,
        parts: Parts,
        source: Source,
    ) -> Response<Body> {
        let mut source = source;
        // Boxed: the doors that come this way hold more than one message.
        let served = Box::pin(self.frame(passed, &door, peer, &parts, &mut source)).await;
        served.unwrap_or_else(|| {
            Reject::Internal("unserved_batch").response(None, Uuid::now_v7()).map(Body::full)
        })
    }

    /// As [`Gateway::serve`], but for a batch: there is no answer then and no record, for its messages are exchanges of
    /// their own, and `source` holds it.
    pub async fn receive(
        &self,
        door: &Door,
        peer: SocketAddr,
        parts: &Parts,
        source: &mut Source,
    ) -> Option<Response<Body>> {
        self.frame(None, door, peer, parts, source).await
    }

    async fn frame(
        &self,
        passed: Option<Identity>,
        door: &Door,
        peer: SocketAddr,
        parts: &Parts,
        source: &mut Source,
    ) -> Option<Response<Body>> {
        let snapshot = self.current.load();
        let record = Record::open(Arc::clone(&self.desk), peer.ip().to_canonical(), snapshot.revision);
        let mut exchange = Exchange {
            snapshot,
            peer,
            verb: parts.method.clone(),
            record,
            id: None,
            modern: false,
            era: Era::Sessions,
            passed,
            spent: None,
            hold: Hold::new(&self.shared.buffers),
        };
        match self.handle(&mut exchange, door, parts, source).await {
            Ok(mut response) => {
                if let Some(spent) = &exchange.spent {
                    spent.tell(response.headers_mut());
                }
                Some(response)
            }
            Err(reject) => {
                match source {
                    Source::Wire(body) => discard(parts, body).await,
                    Source::Batch(_) => {
                        exchange.record.leave();
                        return None;
                    }
                    Source::Read(_) | Source::Batched(_) => {}
                }
                if matches!(reject, Reject::Overloaded(_)) {
                    exchange.record.leave();
                }
                let response = reject.response(exchange.id.as_ref(), exchange.record.id());
                exchange.record.refuse(&reject, response.status().as_u16());
                Some(response.map(Body::full))
            }
        }
    }

    /// Who asks, for doors that read a message before they serve it, or that hold something open.
    pub async fn identify(&self, peer: SocketAddr, parts: &Parts) -> Result<Identity, Reject> {
        check_singletons(&parts.headers)?;
        let mut snapshot = self.current.load();
        let identity = self.recognize(&mut snapshot, parts, peer.ip(), Utc::now()).await?;
        is_known(parts);
        Ok(identity)
    }

    /// Who shows this credential. A key that is not here may be one that was not asked for yet; then the configuration in
    /// force is another one afterwards.
    async fn recognize(
        &self,
        snapshot: &mut Arc<Snapshot>,
        parts: &Parts,
        address: IpAddr,
        now: DateTime<Utc>,
    ) -> Result<Identity, Reject> {
        let found = self.authenticator.authenticate(snapshot, &parts.headers, address, now);
        let Err(Reject::Unauthenticated("unknown_key")) = found else { return found };
        let Some(hash) = self.authenticator.stranger(snapshot, &parts.headers) else { return found };
        Box::pin(self.keys.find(hash, address.to_canonical())).await?;
        *snapshot = self.current.load();
        self.authenticator.authenticate(snapshot, &parts.headers, address, now)
    }

    /// One client message, from bytes to bytes.
    async fn handle(
        &self,
        exchange: &mut Exchange,
        door: &Door,
        parts: &Parts,
        source: &mut Source,
    ) -> Result<Response<Body>, Reject> {
        check_singletons(&parts.headers)?;
        let identity = self.authenticate(exchange, parts).await?;
        let call = decode(exchange, parts, source).await?;
        self.admit(exchange, parts, call.as_ref())?;
        let head = call.as_ref().and_then(|call| call.head.as_deref());
        if !matches!(door.scope, Scope::Server(_)) {
            // The ways that are not the common one are boxed: they are large, and every exchange would carry their room.
            return Box::pin(self.federated(exchange, door, parts, identity, call)).await;
        }
        let entry = resolve(exchange, door, &identity)?;
        let message = call.as_ref().map(|call| &call.message);
        let permit = authorize(exchange, &identity, &entry, None, head, message)?;
        self.limit(exchange, parts, &identity, Some(&entry), head).await?;
        let session = match self.attach(exchange, parts, &permit, head).await? {
            Attached::Native(session) => session,
            Attached::Bridged(front) => {
                return Box::pin(self.bridge(exchange, parts, permit, front, call)).await;
            }
        };
        if let Some(head) = head.filter(|head| head.method == Method::SubscriptionsListen && exchange.modern)
        {
            return Box::pin(self.listen(exchange, &permit, head)).await;
        }
        let outgoing =
            translate(exchange, parts, call.as_ref(), session.as_ref(), &permit.entry().server.spec);
        let answer = self.forward(exchange, &permit, outgoing, call.as_ref()).await?;
        if head.is_some_and(|head| head.method == Method::Initialize && !exchange.modern) {
            return Box::pin(self.shake_hands(exchange, parts, permit, call, answer)).await;
        }
        self.encode(exchange, permit, call, answer).await
    }

    /// Whether there is room for it, now that it is clear what it is. What the head alone has said was asked there already.
    fn admit(&self, exchange: &mut Exchange, parts: &Parts, call: Option<&Call>) -> Result<(), Reject> {
        let early = Priority::of_head(&parts.method, &parts.headers);
        let priority = match call {
            Some(call) => {
                Priority::of_message(call.message.kind(), call.head.as_ref().map(|head| &head.method))
            }
            None => early.unwrap_or(Priority::Call),
        };
        exchange.record.keep_place(self.overload.admit(early, priority)?);
        Ok(())
    }

    /// Who asks. Comes before the body is read: a stranger shall not make us read megabytes.
    async fn authenticate(&self, exchange: &mut Exchange, parts: &Parts) -> Result<Identity, Reject> {
        let address = exchange.peer.ip();
        let now = exchange.record.opened_at();
        let identity = match &exchange.passed {
            Some(identity) => identity.clone(),
            None => self.recognize(&mut exchange.snapshot, parts, address, now).await?,
        };
        is_known(parts);
        exchange.record.note_identity(&identity);
        Ok(identity)
    }

    /// How the message belongs to the server: in its own era, perhaps in its session, or over the bridge.
    async fn attach(
        &self,
        exchange: &Exchange,
        parts: &Parts,
        permit: &Permit,
        head: Option<&Head>,
    ) -> Result<Attached, Reject> {
        if let (true, Some(head)) = (exchange.modern, head) {
            return Ok(match self.shared.eras.stateless(&self.upstream, permit).await? {
                // An id of a task is not the server's own, and nobody else makes the headers.
                Some(_) if tasks::is_about_one(&head.method) || is_unmirrored(parts) => {
                    Attached::Bridged(Front::stateless(head))
                }
                Some(_) => Attached::Native(None),
                None => Attached::Bridged(Front::stateless(head)),
            });
        }
        let sessions = self.shared.eras.seen(&permit.entry().server).sessions;
        if let Some(head) = head.filter(|head| head.method == Method::Initialize) {
            return Ok(match sessions {
                Speaks::No => Attached::Bridged(Front::opening(head)),
                _ => Attached::Native(None),
            });
        }
        let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
        let principal = permit.identity().principal().id;
        let now = exchange.record.opened_at();
        let server = permit.entry().server.id;
        match singleton(&parts.headers, &MCP_SESSION_ID)? {
            Some(id) if front::Session::is_own(id) => {
                let door = server.to_string();
                let sessions = &self.shared.sessions;
                let session = sessions.find(id, &settings.seal, principal, &door, now.timestamp())?;
                Ok(Attached::Bridged(Front::of(session)))
            }
            Some(id) => Session::open(id, &settings.seal, principal, server, now)
                .map(|session| Attached::Native(Some(session))),
            None if sessions.is_no() => Err(Reject::SessionRequired),
            None => Ok(Attached::Native(None)),
        }
    }

    fn means(&self) -> Means {
        Means {
            shared: Arc::clone(&self.shared),
            upstream: self.upstream.clone(),
            current: Arc::clone(&self.current),
            desk: Arc::clone(&self.desk),
            drain: self.drain.clone(),
        }
    }
}

/// The connection has shown a good credential, and is no stranger any more.
fn is_known(parts: &Parts) {
    if let Some(guest) = parts.extensions.get::<Guest>() {
        guest.is_known_now();
    }
}

/// Reads the client's message: once, strictly, and with the headers that repeat parts of it. None for a GET or DELETE.
async fn decode(exchange: &mut Exchange, parts: &Parts, source: &mut Source) -> Result<Option<Call>, Reject> {
    let version = singleton(&parts.headers, &MCP_PROTOCOL_VERSION)?;
    let revision = version.and_then(Revision::parse);
    if exchange.verb != HttpMethod::POST {
        // The stateless revision has POST only [2026-07-28 basic/transports/streamable-http].
        if revision.is_some_and(Revision::is_modern) {
            return Err(Reject::MethodNotAllowed);
        }
        if exchange.verb == HttpMethod::GET && !accepts(&parts.headers, &["text/event-stream"]) {
            return Err(Reject::NotAcceptable);
        }
        exchange.record.note_stream(if exchange.verb == HttpMethod::GET { "stream" } else { "session_end" });
        return Ok(None);
    }
    if !is_type(&parts.headers, "application/json") || parts.headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reject::UnsupportedMediaType);
    }
    if !accepts(&parts.headers, &["application/json", "text/event-stream"]) {
        return Err(Reject::NotAcceptable);
    }
    let in_batch = matches!(source, Source::Batched(_));
    let bytes = match source {
        Source::Wire(body) => {
            let bytes = read(body, &mut exchange.hold).await?;
            // Only 2025-03-26 has batches [2025-03-26 basic#batching], and silence stands for that.
            let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
            let stated = version.map_or(Some(Revision::ASSUMED), Revision::parse);
            if first == Some(&b'[') && stated.is_some_and(Revision::has_batches) {
                parse_batch(&bytes, &Limits::default(), MAX_BATCH)?;
                *source = Source::Batch(bytes.clone());
            }
            bytes
        }
        Source::Read(bytes) | Source::Batched(bytes) | Source::Batch(bytes) => std::mem::take(bytes),
    };
    let message = Message::parse(bytes, &Limits::default())?;
    exchange.id = message.id().cloned().filter(|_| message.kind() == Kind::Request);
    let size = message.bytes().len();
    if matches!(message.kind(), Kind::Response | Kind::Error) {
        if revision.is_some_and(Revision::is_modern) {
            return Err(Reject::UnexpectedAnswer);
        }
        exchange.record.note_message(None, version.unwrap_or_default(), size);
        return Ok(Some(Call { message, head: None }));
    }
    let head = Box::new(head(&message)?);
    let stated = head.meta_version.as_deref().or(version).or(head.protocol_version.as_deref());
    exchange.record.note_message(Some(&head), stated.unwrap_or(Revision::ASSUMED.as_str()), size);
    if in_batch && head.method == Method::Initialize {
        return Err(Reject::InitializeInBatch);
    }
    exchange.modern = head.is_modern() || revision.is_some_and(Revision::is_modern);
    exchange.era = match revision.map(Revision::era) {
        _ if exchange.modern => Era::Stateless,
        Some(Era::HttpSse) => Era::HttpSse,
        _ => Era::Sessions,
    };
    if exchange.modern {
        head.require_modern()?;
        headers::validate(&parts.headers, &head)?;
    }
    // What a revision that we do not know asks of its messages, we cannot check.
    match version {
        Some(version) if revision.is_none_or(|revision| revision.is_modern() != exchange.modern) => {
            Err(Reject::UnsupportedVersion(version.to_owned()))
        }
        _ => Ok(Some(Call { message, head: Some(head) })),
    }
}

/// Reads a message within its limits of size and time.
pub async fn read(body: &mut Incoming, hold: &mut Hold) -> Result<Bytes, Reject> {
    read_up_to(body, MAX_MESSAGE, hold).await
}

/// Reads a body of at most so many bytes, within the limits of time and of what may be held.
pub async fn read_up_to(body: &mut Incoming, most: usize, hold: &mut Hold) -> Result<Bytes, Reject> {
    if body.size_hint().lower() > most as u64 {
        return Err(Reject::TooLarge(most));
    }
    let started = Instant::now();
    let mut whole = Bytes::new();
    loop {
        let due = || started + BODY_GRACE + Duration::from_secs(whole.len() as u64 / BODY_RATE);
        let frame = match next_frame(body, due).await {
            Ok(None) => return Ok(whole),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) | Err(_) => return Err(Reject::SlowBody),
        };
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > most {
            return Err(Reject::TooLarge(most));
        }
        if !hold.grow_until(data.len(), Instant::now() + ROOM_TIME).await {
            return Err(Reject::Overloaded(2));
        }
        if whole.is_empty() {
            whole = data;
        } else {
            let mut joined = match whole.try_into_mut() {
                Ok(joined) => joined,
                Err(shared) => BytesMut::from(&*shared),
            };
            joined.extend_from_slice(&data);
            whole = joined.freeze();
        }
    }
}

/// Throws away what else a client sends of a message that was refused, within limits: a connection that is closed on
/// unread bytes is reset, and the reset overtakes the refusal. Who waits to be told to go on has sent nothing.
pub async fn discard(parts: &Parts, body: &mut Incoming) {
    let until = Instant::now() + DISCARD_TIME;
    let mut left = MAX_DISCARD;
    while left > 0 && !body.is_end_stream() && !parts.headers.contains_key(header::EXPECT) {
        let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}

/// A door of another tenant does not exist.
fn own_tenant<'a>(door: &Door, identity: &'a Identity) -> Result<&'a str, Reject> {
    let own = &identity.principal().tenant;
    if door.tenant.as_ref().is_some_and(|tenant| tenant != own) {
        return Err(Reject::UnknownServer("tenant".into()));
    }
    Ok(own)
}

/// Which server the door leads to. One that the caller may not know of does not exist.
fn resolve(exchange: &mut Exchange, door: &Door, identity: &Identity) -> Result<Arc<ServerEntry>, Reject> {
    let own = own_tenant(door, identity)?;
    let Scope::Server(name) = &door.scope else { return Err(Reject::UnknownPath) };
    let entry = exchange.snapshot.server(own, name);
    let entry = Arc::clone(entry.ok_or(Reject::UnknownServer("registry".into()))?);
    exchange.record.note_server(&entry, entry.server.spec.name.as_str().into());
    Ok(entry)
}

/// Whether the caller may, and the note of what decided: also of a refusal, which may be asked about later.
fn authorize(
    exchange: &mut Exchange,
    identity: &Identity,
    entry: &Arc<ServerEntry>,
    namespace: Option<&Arc<NamespaceEntry>>,
    head: Option<&Head>,
    message: Option<&Message>,
) -> Result<Permit, Reject> {
    let ask = Ask { head, message, era: exchange.era, now: exchange.record.opened_at() };
    let mut notes = Notes::default();
    let permit = Permit::authorize(&exchange.snapshot, identity, entry, namespace, ask, &mut notes);
    if let Some(entry) = namespace {
        exchange.record.note_namespace(&entry.namespace.spec.name);
    }
    exchange.record.note_policy(&notes);
    match &permit {
        Ok(permit) => exchange.record.note_rule(permit.rule()),
        // Nothing goes on to where the arguments are kept, and whoever asks why would have to guess them.
        Err(_) => exchange.record.capture_request(entry, message.and_then(Message::params).as_deref()),
    }
    permit
}

/// A result of our own.
fn answer(exchange: &mut Exchange, result: &[u8]) -> Result<Response<Body>, Reject> {
    let id = exchange.id.as_ref().ok_or(Reject::Internal("request_without_id"))?;
    let bytes = result_response(id, result);
    exchange.record.note_answered();
    exchange.record.note_bytes(bytes.len());
    exchange.record.finish(End { status: 200, ..End::default() });
    let mut response = Response::new(Body::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// An answer without a body.
fn empty(exchange: &mut Exchange, mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    exchange.record.note_answered();
    exchange.record.finish(End { status: status.as_u16(), ..End::default() });
    *response.status_mut() = status;
    response
}

/// Whether the client takes all of these.
pub fn accepts(headers: &HeaderMap, wanted: &[&str]) -> bool {
    let listed = || {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .map(|range| range.split(';').next().unwrap_or_default().trim())
    };
    let covers = |range: &str, wanted: &str| match range.strip_suffix("/*") {
        Some(kind) => kind == "*" || wanted.split('/').next() == Some(kind),
        None => range == wanted,
    };
    listed().next().is_none() || wanted.iter().all(|wanted| listed().any(|range| covers(range, wanted)))
}
