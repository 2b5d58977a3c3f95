//! The request path: one client message, from bytes to bytes, through the steps in order. Only this file knows the
//! order. `serve` is the frame round every exchange, whatever its end: it records and turns a refusal into an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chrono::Utc;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use waffles_core::audit::Outcome;
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::headers::{
    self, LAST_EVENT_ID, MCP_PARAM_PREFIX, MCP_PROTOCOL_VERSION, MCP_SESSION_ID, check_singletons, singleton,
};
use waffles_mcp::jsonrpc::{parse_batch, result_response};
use waffles_mcp::translate::handshake::Described;
use waffles_mcp::translate::notice::Filter;
use waffles_mcp::translate::result;
use waffles_mcp::{Head, Id, Kind, Limits, Message, Method, Revision, Slot, head};
use waffles_runtime::drain::Drain;

use crate::authn::{Authenticator, Identity};
use crate::bridge::local::{self, Local};
use crate::bridge::parked::State;
use crate::bridge::{Errand, Naming};
use crate::federation::Realm;
use crate::federation::catalogue::Kind as List;
use crate::federation::resolve::Found;
use crate::flow::{Flow, Open, Outbox};
use crate::front::{self, Front};
use crate::hub::{Ask, Audience, Renew};
use crate::listing;
use crate::peers;
use crate::permit::Permit;
use crate::record::{Desk, End, Record};
use crate::reject::{Reject, UpstreamFault};
use crate::session::Session;
use crate::shared::{Means, Shared};
use crate::state::Current;
use crate::stream::{Body, MAX_ANSWER, Purpose, Relay, Terms, end_of};
use crate::upstream::eras::{Speaks, is_foreign};
use crate::upstream::{Answer, Outgoing, Upstream, collect, is_type, next_frame};

/// Most bytes of a client's message.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Most messages of a batch.
const MAX_BATCH: usize = 50;
/// Most bytes of an answer that is only a refusal.
const MAX_REFUSAL: usize = 64 * 1024;
/// A body may start slowly, and must then come at 1 KiB a second.
const BODY_GRACE: Duration = Duration::from_secs(5);
const BODY_RATE: u64 = 1024;

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

/// What stands behind a door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One server under its own names.
    Server(String),
    /// A namespace, federated.
    Namespace(String),
    /// Every server that the caller may use, federated.
    All,
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

/// What one thread serves with. The configuration, the audit spool and the counters are shared by all threads.
pub struct Gateway {
    /// The configuration in force.
    pub current: Arc<Current>,
    /// Checks credentials.
    pub authenticator: Arc<Authenticator>,
    /// The way to the servers.
    pub upstream: Upstream,
    /// What the threads share beside the configuration.
    pub shared: Arc<Shared>,
    /// Entries on one page of a federated list.
    pub page_size: usize,
    /// Where finished records go.
    pub desk: Arc<Desk>,
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
    /// Who sent it, where another proxy has passed it on.
    passed: Option<Identity>,
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
        let served = self.frame(passed, &door, peer, &parts, &mut source).await;
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
        let mut exchange =
            Exchange { snapshot, peer, verb: parts.method.clone(), record, id: None, modern: false, passed };
        match self.handle(&mut exchange, door, parts, source).await {
            Ok(response) => Some(response),
            Err(reject) => {
                match source {
                    Source::Wire(body) => discard(parts, body).await,
                    Source::Batch(_) => {
                        exchange.record.leave();
                        return None;
                    }
                    Source::Read(_) | Source::Batched(_) => {}
                }
                let response = reject.response(exchange.id.as_ref(), exchange.record.id());
                exchange.record.refuse(&reject, response.status().as_u16());
                Some(response.map(Body::full))
            }
        }
    }

    /// Who asks, for doors that read a message before they serve it, or that hold something open.
    pub fn identify(&self, peer: SocketAddr, parts: &Parts) -> Result<Identity, Reject> {
        check_singletons(&parts.headers)?;
        self.authenticator.authenticate(&self.current.load(), &parts.headers, peer.ip(), Utc::now())
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
        let identity = self.authenticate(exchange, parts)?;
        let call = decode(exchange, parts, source).await?;
        let head = call.as_ref().and_then(|call| call.head.as_deref());
        if !matches!(door.scope, Scope::Server(_)) {
            return self.federated(exchange, door, parts, identity, call).await;
        }
        let entry = resolve(exchange, door, &identity)?;
        let permit = Permit::authorize(&identity, &entry, head)?;
        exchange.record.note_rule(permit.rule());
        let session = match self.attach(exchange, &parts.headers, &permit, head).await? {
            Attached::Native(session) => session,
            // The ways that are not the common one are boxed: they are large, and every exchange would carry their room.
            Attached::Bridged(front) => {
                return Box::pin(self.bridge(exchange, parts, permit, front, call)).await;
            }
        };
        if let Some(head) = head.filter(|head| head.method == Method::SubscriptionsListen && exchange.modern)
        {
            return Box::pin(self.listen(exchange, &permit, head)).await;
        }
        let outgoing = translate(exchange, parts, call.as_ref(), session.as_ref());
        let answer = self.forward(exchange, &permit, outgoing, call.as_ref()).await?;
        if let Some(front) = Box::pin(self.falls_back(exchange, &permit, head, &answer)).await? {
            answer.body.recycle();
            return Box::pin(self.bridge(exchange, parts, permit, front, call)).await;
        }
        self.encode(exchange, permit, call, answer).await
    }

    /// Who asks. Comes before the body is read: a stranger shall not make us read megabytes.
    fn authenticate(&self, exchange: &mut Exchange, parts: &Parts) -> Result<Identity, Reject> {
        let address = exchange.peer.ip();
        let now = exchange.record.opened_at();
        let identity = match &exchange.passed {
            Some(identity) => identity.clone(),
            None => self.authenticator.authenticate(&exchange.snapshot, &parts.headers, address, now)?,
        };
        exchange.record.note_identity(&identity);
        Ok(identity)
    }

    /// How the message belongs to the server: in its own era, perhaps in its session, or over the bridge.
    async fn attach(
        &self,
        exchange: &Exchange,
        headers: &HeaderMap,
        permit: &Permit,
        head: Option<&Head>,
    ) -> Result<Attached, Reject> {
        if let (true, Some(head)) = (exchange.modern, head) {
            return Ok(match self.shared.eras.stateless(&self.upstream, permit).await? {
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
        match singleton(headers, &MCP_SESSION_ID)? {
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

    /// Whether a server that was asked for a session has none to give, because it speaks another era; then its client
    /// gets one from us.
    async fn falls_back(
        &self,
        exchange: &Exchange,
        permit: &Permit,
        head: Option<&Head>,
        answer: &Answer,
    ) -> Result<Option<Front>, Reject> {
        let Some(head) = head.filter(|head| head.method == Method::Initialize && !exchange.modern) else {
            return Ok(None);
        };
        let server = &permit.entry().server;
        if answer.status.is_success() {
            let revision = Revision::LATEST_LEGACY;
            if !self.shared.eras.seen(server).sessions.is_yes() {
                self.shared.eras.note(server, |seen| seen.sessions = Speaks::Yes(revision));
            }
            return Ok(None);
        }
        if !is_foreign(answer.status.as_u16()) {
            return Ok(None);
        }
        let stateless = self.shared.eras.stateless(&self.upstream, permit).await?.is_some();
        let http_sse =
            matches!(answer.status.as_u16(), 404 | 405) && !self.shared.eras.seen(server).http_sse.is_no();
        if !stateless && !http_sse {
            return Ok(None);
        }
        self.shared.eras.note(server, |seen| seen.sessions = Speaks::No);
        Ok(Some(Front::opening(head)))
    }

    /// A message whose client and server speak different eras.
    async fn bridge(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        permit: Permit,
        front: Front,
        call: Option<Call>,
    ) -> Result<Response<Body>, Reject> {
        let Some(Call { message, head }) = call else {
            let session = front.session.clone().ok_or(Reject::SessionRequired)?;
            return match self.stand(exchange, parts, session).await? {
                Stood::Done(response) => Ok(response),
                Stood::Listens(session, outbox, again) => {
                    let filter = Ask::filter_of(&session);
                    let ask = Ask::at_server(&permit, Audience::Standing(session), filter, outbox);
                    self.shared.hub.listen(&self.means(), Ask { again, ..ask }, &mut exchange.record).await
                }
            };
        };
        let Some(head) = head else {
            return self.take_answer(exchange, parts, permit.identity(), &front, message).await;
        };
        if head.method == Method::Initialize && front.session.is_none() && !front.is_stateless() {
            let door = permit.entry().server.id.to_string();
            let (session, front) = self.begin(permit.identity(), door, &front, &head)?;
            let described = self.means().describe(&front, &permit).await?;
            return self.open(exchange, &session, &described);
        }
        match local::of(&front, &head)? {
            Local::Result(result) => self.answer_locally(exchange, &front, &head, &result),
            Local::Accepted => Ok(empty(exchange, Response::new(Body::Empty), StatusCode::ACCEPTED)),
            Local::Describe => {
                let described = self.means().describe(&front, &permit).await?;
                answer(exchange, &local::describe(&described, front.revision))
            }
            Local::Listen => self.listen(exchange, &permit, &head).await,
            Local::Ask => {
                self.ask(exchange, parts, permit, front, message, head, Naming::Own, Vec::new()).await
            }
        }
    }

    /// A message at a door with many servers behind it.
    async fn federated(
        &self,
        exchange: &mut Exchange,
        door: &Door,
        parts: &Parts,
        identity: Identity,
        call: Option<Call>,
    ) -> Result<Response<Body>, Reject> {
        own_tenant(door, &identity)?;
        let realm = Realm::of(&exchange.snapshot, &identity, &door.scope)?;
        let head = call.as_ref().and_then(|call| call.head.as_deref());
        let front = self.front(exchange, &parts.headers, &identity, &realm.door, head)?;
        let Some(Call { message, head }) = call else {
            let session = front.session.clone().ok_or(Reject::SessionRequired)?;
            return match self.stand(exchange, parts, session).await? {
                Stood::Done(response) => Ok(response),
                Stood::Listens(session, outbox, again) => {
                    let filter = Ask::filter_of(&session);
                    let renew = realm_of(door);
                    let audience = Audience::Standing(session);
                    let ask = Ask { audience, identity, filter, renew, federated: true, outbox, again };
                    self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
                }
            };
        };
        let Some(head) = head else {
            return self.take_answer(exchange, parts, &identity, &front, message).await;
        };
        if head.method == Method::Initialize && front.session.is_none() && !front.is_stateless() {
            let (session, front) = self.begin(&identity, realm.door.clone(), &front, &head)?;
            let described = self.means().describe_all(&front, &realm).await;
            return self.open(exchange, &session, &described);
        }
        match local::of(&front, &head)? {
            Local::Result(result) => self.answer_locally(exchange, &front, &head, &result),
            Local::Accepted => Ok(empty(exchange, Response::new(Body::Empty), StatusCode::ACCEPTED)),
            Local::Describe => {
                let described = self.means().describe_all(&front, &realm).await;
                answer(exchange, &local::describe(&described, front.revision))
            }
            Local::Listen => {
                let id = exchange.id.clone().ok_or(Reject::Internal("request_without_id"))?;
                let filter = Filter::parse(head.notifications.as_deref().unwrap_or(b"{}"))?;
                let (audience, outbox) = (Audience::Listen(id), Outbox::default());
                let renew = realm_of(door);
                let ask = Ask { audience, identity, filter, renew, federated: true, outbox, again: false };
                self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
            }
            Local::Ask => match List::of(&head.method) {
                Some(kind) => {
                    let settings = Arc::clone(exchange.snapshot.settings().ok_or(Reject::NotReady)?);
                    let means = self.means();
                    let listed = means.list(&front, &realm, kind, &head, &settings, self.page_size).await?;
                    let listed = match front.is_stateless() {
                        true => listed,
                        false => result::for_session(&head.method, &listed, front.revision)?,
                    };
                    answer(exchange, &listed)
                }
                None => self.call_found(exchange, parts, &identity, &realm, front, message, &head).await,
            },
        }
    }

    /// A request at a federated door, for one of its servers.
    async fn call_found(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        identity: &Identity,
        realm: &Realm,
        front: Front,
        message: Message,
        head: &Head,
    ) -> Result<Response<Body>, Reject> {
        let Found { entry, server, head: own, edits } = self.means().resolve(&front, realm, head).await?;
        exchange.record.note_server(&entry, entry.server.spec.name.as_str().into());
        if let Some(name) = &own.name {
            exchange.record.note_target(name);
        }
        let permit = Permit::authorize(identity, &entry, Some(&own)).map_err(|reject| match reject {
            // As the client named it: a server that it may not know of has no name of its own.
            Reject::UnknownTool { rule, .. } => {
                Reject::UnknownTool { tool: head.name.clone().unwrap_or_default(), rule }
            }
            reject => reject,
        })?;
        exchange.record.note_rule(permit.rule());
        self.ask(exchange, parts, permit, front, message, own, Naming::Federated(server), edits).await
    }

    /// Who speaks at a door where every session is the gateway's own.
    fn front(
        &self,
        exchange: &Exchange,
        headers: &HeaderMap,
        identity: &Identity,
        door: &str,
        head: Option<&Head>,
    ) -> Result<Front, Reject> {
        match head {
            Some(head) if exchange.modern => return Ok(Front::stateless(head)),
            Some(head) if head.method == Method::Initialize => return Ok(Front::opening(head)),
            _ => {}
        }
        let id = singleton(headers, &MCP_SESSION_ID)?.ok_or(Reject::SessionRequired)?;
        let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
        let now = exchange.record.opened_at().timestamp();
        let principal = identity.principal().id;
        self.shared.sessions.find(id, &settings.seal, principal, door, now).map(Front::of)
    }

    /// Begins a session of the gateway's own.
    fn begin(
        &self,
        identity: &Identity,
        door: String,
        front: &Front,
        head: &Head,
    ) -> Result<(Arc<front::Session>, Front), Reject> {
        let revision = local::agree(head.protocol_version.as_deref());
        let session = front::Session::begin(identity.principal().id, door, revision, &front.client)?;
        let session = self.shared.sessions.add(session)?;
        Ok((Arc::clone(&session), Front::of(session)))
    }

    /// The answer to `initialize` in a session of the gateway's own.
    fn open(
        &self,
        exchange: &mut Exchange,
        session: &front::Session,
        described: &Described,
    ) -> Result<Response<Body>, Reject> {
        let settings = Arc::clone(exchange.snapshot.settings().ok_or(Reject::NotReady)?);
        let id = session.seal(&settings.seal, exchange.record.opened_at().timestamp())?;
        let mut response = answer(exchange, &local::describe(described, session.revision))?;
        response.headers_mut().insert(MCP_SESSION_ID, id);
        Ok(response)
    }

    /// A result that needs no server; a session's subscriptions may have changed with it.
    fn answer_locally(
        &self,
        exchange: &mut Exchange,
        front: &Front,
        head: &Head,
        result: &[u8],
    ) -> Result<Response<Body>, Reject> {
        if let (Method::ResourcesSubscribe | Method::ResourcesUnsubscribe, Some(session)) =
            (&head.method, &front.session)
        {
            self.shared.hub.rewish(session);
        }
        answer(exchange, result)
    }

    /// The client's answer to a question of ours. One that nobody waits for is late, and dropped.
    async fn take_answer(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        identity: &Identity,
        front: &Front,
        message: Message,
    ) -> Result<Response<Body>, Reject> {
        if let Some(owner) = self.owner_of_question(exchange, &message) {
            return self.pass_on(exchange, &owner, identity, parts, message.bytes()).await;
        }
        if let Some(session) = &front.session {
            session.answer(message);
        }
        Ok(empty(exchange, Response::new(Body::Empty), StatusCode::ACCEPTED))
    }

    /// A GET or DELETE of a session of the gateway's own.
    async fn stand(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        session: Arc<front::Session>,
    ) -> Result<Stood, Reject> {
        if exchange.verb == HttpMethod::DELETE {
            self.shared.sessions.end(&session);
            self.shared.backs.end_of(&self.upstream, session.nonce).await;
            let response = empty(exchange, Response::new(Body::Empty), StatusCode::NO_CONTENT);
            return Ok(Stood::Done(response));
        }
        let event_id = singleton(&parts.headers, &LAST_EVENT_ID)?;
        let outbox = match event_id.and_then(|id| session.resume(id)) {
            Some(outbox) if session.standing().is_none_or(|standing| !standing.is_same(&outbox)) => {
                exchange.record.finish(End { status: 200, reason: "resumed", ..End::default() });
                let open = Open::new(&self.desk.metrics.open_streams);
                return Ok(Stood::Done(Flow::reading(outbox, open).stream()));
            }
            Some(outbox) => outbox,
            None => session.stand(),
        };
        Ok(Stood::Listens(session, outbox, event_id.is_some()))
    }

    /// A stateless client's subscription, which it shares with others.
    async fn listen(
        &self,
        exchange: &mut Exchange,
        permit: &Permit,
        head: &Head,
    ) -> Result<Response<Body>, Reject> {
        let id = exchange.id.clone().ok_or(Reject::Internal("request_without_id"))?;
        self.desk.trail.admit(permit.entry().server.spec.audit).map_err(|_| Reject::AuditUnavailable)?;
        let filter = Filter::parse(head.notifications.as_deref().unwrap_or(b"{}"))?;
        let ask = Ask::at_server(permit, Audience::Listen(id), filter, Outbox::default());
        self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
    }

    /// Asks the server, over the bridge.
    async fn ask(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        permit: Permit,
        front: Front,
        message: Message,
        head: Box<Head>,
        naming: Naming,
        edits: Vec<(Slot, String)>,
    ) -> Result<Response<Body>, Reject> {
        let entry = Arc::clone(permit.entry());
        let state = match head.request_state.as_deref().filter(|_| front.is_stateless()) {
            Some(text) => {
                let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
                Some(State::open(
                    text,
                    &settings.seal,
                    &permit,
                    &head,
                    exchange.record.opened_at().timestamp(),
                )?)
            }
            None => None,
        };
        let owner = state
            .as_ref()
            .and_then(|state| state.owner.clone())
            .filter(|owner| self.is_other(exchange, owner));
        if let Some(owner) = owner {
            return self.pass_on(exchange, &owner, permit.identity(), parts, message.bytes()).await;
        }
        self.desk.trail.admit(entry.server.spec.audit).map_err(|_| Reject::AuditUnavailable)?;
        exchange.record.capture_request(&entry, message.params().as_deref());
        exchange.record.note_asked();
        let survives = front.session.is_some();
        let out = front.session.as_ref().map_or_else(Outbox::default, |session| session.stream());
        let until = exchange.record.started() + entry.server.spec.timeouts.total;
        let errand = Errand {
            means: self.means(),
            front,
            permit,
            naming,
            message,
            head,
            edits,
            record: exchange.record.hand_over(),
            out: out.clone(),
            state,
            until,
            asked: false,
        };
        let open = Open::new(&self.desk.metrics.open_streams);
        Ok(Flow::new(errand.run(), out, survives, open).respond().await)
    }

    /// Whether an address is that of another proxy. What was passed on once is not passed on again.
    fn is_other(&self, exchange: &Exchange, owner: &str) -> bool {
        exchange.passed.is_none() && self.shared.address.as_deref() != Some(owner)
    }

    /// The other proxy that has asked the client what it answers here.
    fn owner_of_question(&self, exchange: &Exchange, answer: &Message) -> Option<String> {
        let id = answer.id()?.text();
        let (_, mark) = id.strip_prefix("waffles-")?.split_once('.')?;
        let owner = peers::marked(&exchange.snapshot.settings()?.seal, mark)?;
        self.is_other(exchange, &owner).then_some(owner)
    }

    /// Passes a message on to the proxy that holds what it is for. That proxy keeps the record.
    async fn pass_on(
        &self,
        exchange: &mut Exchange,
        owner: &str,
        identity: &Identity,
        parts: &Parts,
        message: &[u8],
    ) -> Result<Response<Body>, Reject> {
        let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
        let now = exchange.record.opened_at().timestamp();
        let response = peers::pass_on(owner, &settings.seal, identity, parts, message, now).await?;
        exchange.record.leave();
        Ok(response)
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

    /// Sends the message to the server. Under `audit = strict` not before a record of it is sure to be kept.
    async fn forward(
        &self,
        exchange: &mut Exchange,
        permit: &Permit,
        outgoing: Outgoing,
        call: Option<&Call>,
    ) -> Result<Answer, Reject> {
        let entry = permit.entry();
        self.desk.trail.admit(entry.server.spec.audit).map_err(|_| Reject::AuditUnavailable)?;
        exchange.record.capture_request(entry, call.and_then(|call| call.message.params()).as_deref());
        exchange.record.note_asked();
        self.upstream.call(permit, outgoing).await
    }

    /// The server's answer, as the client gets it.
    async fn encode(
        &self,
        exchange: &mut Exchange,
        permit: Permit,
        call: Option<Call>,
        answer: Answer,
    ) -> Result<Response<Body>, Reject> {
        if !answer.status.is_success() {
            return refusal(exchange, answer).await;
        }
        // We asked for none, and what is packed small may be large.
        if answer.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
        }
        let mut response = Response::new(Body::Empty);
        if let Some(id) = new_session(exchange, &permit, call.as_ref(), &answer)? {
            response.headers_mut().insert(MCP_SESSION_ID, id);
        }
        let is_stream = is_type(&answer.headers, "text/event-stream");
        match call {
            None if exchange.verb == HttpMethod::DELETE => Ok(empty(exchange, response, answer.status)),
            // To a notification, or to a client's own answer, there is nothing to say.
            Some(_) if exchange.id.is_none() => {
                answer.body.recycle();
                Ok(empty(exchange, response, StatusCode::ACCEPTED))
            }
            call if is_stream => Ok(self.relay(exchange, response, permit, call, answer)),
            Some(call) if is_type(&answer.headers, "application/json") => {
                whole(exchange, response, &permit, &call, answer).await
            }
            _ => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
        }
    }

    /// An event stream: the record goes with it, and is finished before its last event.
    fn relay(
        &self,
        exchange: &mut Exchange,
        mut response: Response<Body>,
        permit: Permit,
        call: Option<Call>,
        answer: Answer,
    ) -> Response<Body> {
        let method = call.and_then(|call| call.head).map(|head| head.method);
        let purpose = match (exchange.id.take(), method) {
            (Some(id), Some(method)) if method != Method::SubscriptionsListen => Purpose::Answer(id, method),
            (id, _) => Purpose::Listen(id),
        };
        let terms = Terms {
            purpose,
            modern: exchange.modern,
            permit,
            record: exchange.record.hand_over(),
            current: Arc::clone(&self.current),
            drain: self.drain.clone(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        *response.body_mut() = Body::Relay(Box::new(Relay::new(answer.body, terms)));
        response
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
            let bytes = read(body).await?;
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
pub async fn read(body: &mut Incoming) -> Result<Bytes, Reject> {
    read_up_to(body, MAX_MESSAGE).await
}

/// Reads a body of at most so many bytes, within the limits of time.
pub async fn read_up_to(body: &mut Incoming, most: usize) -> Result<Bytes, Reject> {
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

/// What stands behind a federated door, whenever that is asked again.
fn realm_of(door: &Door) -> Box<Renew> {
    let scope = door.scope.clone();
    Box::new(move |snapshot, identity| Some(Realm::of(snapshot, identity, &scope).ok()?.view()))
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

/// The message for the server: the same in its bytes of `params` and `result`, under headers made anew. Nothing else
/// that the client sent leaves: above all not its credential.
fn translate(exchange: &Exchange, parts: &Parts, call: Option<&Call>, session: Option<&Session>) -> Outgoing {
    let mut to = HeaderMap::with_capacity(12);
    let accept = if call.is_some() { "application/json, text/event-stream" } else { "text/event-stream" };
    to.insert(header::ACCEPT, HeaderValue::from_static(accept));
    if call.is_some() {
        to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let head = call.and_then(|call| call.head.as_deref());
    if let (true, Some(head)) = (exchange.modern, head) {
        headers::write(head, Revision::LATEST, &mut to);
        for (name, value) in &parts.headers {
            if name.as_str().starts_with(MCP_PARAM_PREFIX) {
                to.append(name.clone(), value.clone());
            }
        }
    } else {
        if let Some(version) = parts.headers.get(MCP_PROTOCOL_VERSION) {
            to.insert(MCP_PROTOCOL_VERSION, version.clone());
        }
        if let Some(session) = session {
            to.insert(MCP_SESSION_ID, session.upstream.clone());
            // Only within a session, which belongs to somebody: without one it could name anybody's stream.
            if let Some(id) = parts.headers.get(LAST_EVENT_ID) {
                to.insert(LAST_EVENT_ID, id.clone());
            }
        }
    }
    Outgoing {
        method: exchange.verb.clone(),
        headers: to,
        body: call.map(|call| call.message.rewrite()).unwrap_or_default(),
        endpoint: session.map(|session| session.endpoint),
        path: None,
    }
}

/// The sealed id of a session that the server just began.
fn new_session(
    exchange: &Exchange,
    permit: &Permit,
    call: Option<&Call>,
    answer: &Answer,
) -> Result<Option<HeaderValue>, Reject> {
    let method = call.and_then(|call| call.head.as_ref()).map(|head| &head.method);
    let begins = method == Some(&Method::Initialize) && !exchange.modern;
    let Some(upstream) = answer.headers.get(MCP_SESSION_ID).filter(|_| begins) else { return Ok(None) };
    let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
    let session = Session {
        principal: permit.identity().principal().id,
        server: permit.entry().server.id,
        endpoint: answer.endpoint,
        issued_at: Utc::now().timestamp(),
        upstream: upstream.clone(),
    };
    session.seal(&settings.seal).map(Some)
}

/// An answer in one piece.
async fn whole(
    exchange: &mut Exchange,
    mut response: Response<Body>,
    permit: &Permit,
    call: &Call,
    answer: Answer,
) -> Result<Response<Body>, Reject> {
    let timeouts = permit.entry().server.spec.timeouts;
    let until = exchange.record.started() + timeouts.total;
    let failed = |fault| Reject::upstream(fault, true);
    let bytes = collect(answer.body, MAX_ANSWER, timeouts.idle, until).await.map_err(failed)?;
    exchange.record.note_answered();
    let invalid = |_| failed(UpstreamFault::BadAnswer);
    let message = Message::parse(bytes, &Limits::RESPONSE).map_err(invalid)?;
    let is_answer = matches!(message.kind(), Kind::Response | Kind::Error);
    if !is_answer || message.id() != exchange.id.as_ref() {
        return Err(failed(UpstreamFault::BadAnswer));
    }
    let method = call.head.as_ref().map(|head| &head.method);
    let bytes = listing::answer_for(permit, exchange.modern, method, &message).map_err(invalid)?;
    exchange.record.capture_response(permit.entry(), message.result().as_deref());
    exchange.record.note_bytes(bytes.len());
    exchange.record.finish(end_of(&message));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::full(bytes);
    Ok(response)
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

/// The server's own refusal. Its JSON-RPC error is what tells the client which era the server speaks, so it is passed
/// on as it is; what concerns our credential is our own trouble, and never becomes the client's challenge.
async fn refusal(exchange: &mut Exchange, answer: Answer) -> Result<Response<Body>, Reject> {
    let status = answer.status;
    if matches!(status.as_u16(), 401 | 403 | 407) {
        return Err(Reject::upstream(UpstreamFault::Credential, true));
    }
    let retry_after = answer.headers.get(header::RETRY_AFTER).cloned();
    let until = Instant::now() + BODY_GRACE;
    let body = collect(answer.body, MAX_REFUSAL, BODY_GRACE, until).await.unwrap_or_default();
    exchange.record.note_answered();
    let message = Message::parse(body, &Limits::RESPONSE).ok().filter(|message| {
        let foreign = message.id().is_some() && message.id() != exchange.id.as_ref();
        message.kind() == Kind::Error && !foreign
    });
    let bytes = match (&message, status.as_u16()) {
        (Some(message), 400..) => message.rewrite(),
        (None, 400..=499) => Reject::Refused.message(exchange.id.as_ref(), exchange.record.id()),
        _ => return Err(Reject::upstream(UpstreamFault::Failed, true)),
    };
    let code = message.as_ref().and_then(Message::error_code).unwrap_or_default();
    exchange.record.note_bytes(bytes.len());
    let reason = Reject::Refused.reason();
    exchange.record.finish(End { outcome: Outcome::Error, status: status.as_u16(), code, reason });
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(retry_after) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after);
    }
    Ok(response)
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
