//! HTTP+SSE of 2024-11-05: `GET …/sse` opens a session and its stream, `POST …/messages` takes a message of it at once, and
//! whatever is said back comes on the stream [2024-11-05 basic/transports#http-with-sse]. Behind that the gateway sees a
//! client of Streamable HTTP, whose session ends when the stream does.

mod session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, unfold};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::DropGuard;
use waffles_core::audit::Outcome;
use waffles_mcp::headers::MCP_SESSION_ID;
use waffles_mcp::sse::{Event, KEEP_ALIVE, encode, encode_message};
use waffles_mcp::{Era, Kind, Limits, Message, Method};
use waffles_runtime::task;

pub use self::session::Sessions;
use self::session::{Delivery, Ended, Said, Session};
use super::messages::{Messages, is_stream};
use super::{Caller, KEEP_ALIVE_EVERY, Visit, event_stream, of_session};
use crate::flow::Open;
use crate::gateway::{Door, Gateway, Scope, accepts};
use crate::permit::{Ask, Notes, Permit};
use crate::record::{End, Record};
use crate::reject::Reject;
use crate::stream::Body;

/// How often an open session looks whether it may stay open.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// An answer comes so much later than what was said before it: the TypeScript SDK forgets whom to tell of the progress that
/// it reads in one piece with the answer.
const GAP: Duration = Duration::from_millis(10);
/// How long to wait before the server's own stream is opened again, after it ended.
const REOPEN: Duration = Duration::from_secs(1);
/// How long other messages wait for its head. A server may send that with its first event only.
const OPENING: Duration = Duration::from_secs(1);
const LONGEST_REOPEN: Duration = Duration::from_secs(30);

/// Opens a session: the answer is its stream.
pub async fn open(
    gateway: &Arc<Gateway>,
    sessions: &Arc<Sessions>,
    door: &Door,
    peer: SocketAddr,
    parts: &Parts,
) -> Response<Body> {
    let mut visit = Visit::open(gateway, door, peer, parts, "sse_session");
    let (session, queue) = match begin(&mut visit, sessions).await {
        Ok(opened) => opened,
        Err(reject) => return visit.refuse(&reject, None).await.map(Body::full),
    };
    let path = parts.uri.path();
    let path = path.strip_suffix("/sse").unwrap_or(path);
    let data = format!("{path}/messages?sessionId={}", session.name()).into();
    let endpoint = encode(&Event { event: Some("endpoint".into()), data, ..Event::default() });
    let reader = Reader {
        session,
        sessions: Arc::clone(sessions),
        queue,
        first: Some(endpoint),
        record: visit.record,
        said: Instant::now(),
        answered: true,
        look: Instant::now() + LOOK_EVERY,
        _open: Open::new(&gateway.desk.metrics.open_streams),
    };
    let events = unfold(reader, |mut reader| async move { reader.next().await.map(|event| (event, reader)) });
    event_stream(events.boxed())
}

/// Takes a message for a session. Its answer comes on the stream; what is wrong with the message itself, or with who sent
/// it, is the answer to the POST.
pub async fn post(
    gateway: &Arc<Gateway>,
    sessions: &Arc<Sessions>,
    door: &Door,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, mut body) = request.into_parts();
    let mut visit = Visit::open(gateway, door, peer, &parts, "sse_message");
    match take(&mut visit, sessions, &mut body).await {
        Ok(delivery) => {
            visit.pass();
            let (sessions, hold) = (Arc::clone(sessions), gateway.drain.hold());
            task::spawn("message of an HTTP+SSE session", async move {
                deliver(delivery, sessions).await;
                drop(hold);
            });
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(reject) => visit.refuse(&reject, Some(&mut body)).await.map(Body::full),
    }
}

async fn begin(
    visit: &mut Visit<'_>,
    sessions: &Sessions,
) -> Result<(Arc<Session>, mpsc::Receiver<Said>), Reject> {
    let identity = visit.identify().await?;
    if !accepts(&visit.parts.headers, &["text/event-stream"]) {
        return Err(Reject::NotAcceptable);
    }
    // What may be known before there is a message: a door that the caller may not know of does not exist.
    let own = &identity.principal().tenant;
    if visit.door.tenant.as_ref().is_some_and(|tenant| tenant != own) {
        return Err(Reject::UnknownServer("tenant".into()));
    }
    let snapshot = visit.gateway.current.load();
    let mut server = None;
    if let Scope::Server(name) = &visit.door.scope {
        let entry = snapshot.server(own, name).ok_or(Reject::UnknownServer("registry".into()))?;
        visit.record.note_server(entry, entry.server.spec.name.as_str().into());
        let ask = Ask { era: Era::HttpSse, ..Ask::stream(visit.record.opened_at()) };
        let mut notes = Notes::default();
        let permit = Permit::authorize(&snapshot, &identity, entry, None, ask, &mut notes);
        visit.record.note_policy(&notes);
        visit.record.note_rule(permit?.rule());
        server = Some(Arc::clone(entry));
    }
    let (gateway, record) = (visit.gateway, &mut visit.record);
    gateway.limit_stream(&snapshot, record, &identity, server.as_deref()).await?;
    sessions.open(identity, visit.door.clone(), visit.caller())
}

async fn take(visit: &mut Visit<'_>, sessions: &Sessions, body: &mut Incoming) -> Result<Delivery, Reject> {
    let identity = visit.identify().await?;
    let session = sessions.find(visit.parts.uri.query(), identity.principal().id, visit.door)?;
    let bytes = visit.read(body).await?;
    let message = Message::parse(bytes, &Limits::default())?;
    session.take(message, identity, visit.caller())
}

/// Serves one message of a session and puts on its stream what is said back. A client that goes away takes nothing back:
/// the message is served all the same, and nobody is told.
async fn deliver(delivery: Delivery, sessions: Arc<Sessions>) {
    let Delivery { session, message, caller, seat: _seat, turn, mut holds } = delivery;
    // Messages behind `notifications/initialized` wait until the server has it.
    turn.cancelled().await;
    let method = message.method().map(Method::parse);
    let id = message.id().filter(|_| message.kind() == Kind::Request).cloned();
    let inner = session.inner();
    let response = caller.post(message.bytes().clone(), of_session(inner.as_ref())).await;
    match method {
        Some(Method::Initialize) if response.status().is_success() => {
            let begun = response.headers().get(MCP_SESSION_ID).cloned();
            let before = session.begin(begun);
            if let Some(before) = before {
                drop(caller.delete(&before).await);
            }
            // The stream may have ended in the meantime, and could not end what it did not know of.
            if session.over().is_cancelled() {
                close(&session, &caller).await;
            }
        }
        Some(Method::Initialized) if response.status().is_success() => {
            let stream = listen(Arc::clone(&session), caller.clone(), Arc::clone(&sessions), holds.take());
            task::spawn("stream of an HTTP+SSE session", stream);
        }
        _ => {}
    }
    drop(holds);
    if id.is_none() {
        return;
    }
    let inner = session.inner();
    let messages = Messages::of(response, id).resumed_by(caller, inner);
    pump(messages, &session, &sessions).await;
}

/// Puts messages on a session's stream, at its client's pace. Gives back the last event that had an id, and whether
/// anything came.
async fn pump(mut messages: Messages, session: &Session, sessions: &Sessions) -> (Option<String>, bool) {
    let mut came = false;
    while let Some(Some(message)) = session.over().run_until_cancelled(messages.next()).await {
        came = true;
        if session.say(message, messages.is_over()).await.is_err() {
            sessions.end(session, Ended::Stalled);
            break;
        }
    }
    (messages.last_event().map(ToOwned::to_owned), came)
}

/// Keeps the stream open on which the server says what belongs to no request, for as long as the session lives. A server
/// that has none says so once. Messages that wait go when it is open, for what they bring about is said there.
async fn listen(
    session: Arc<Session>,
    caller: Caller,
    sessions: Arc<Sessions>,
    mut holds: Option<DropGuard>,
) {
    if !session.listens() {
        return;
    }
    let inner = session.inner();
    let mut after = None;
    let mut pause = REOPEN;
    loop {
        let opened = {
            let opening = session.over().run_until_cancelled(caller.listen(inner.as_ref(), after.as_deref()));
            tokio::pin!(opening);
            match timeout(OPENING, opening.as_mut()).await {
                Ok(opened) => opened,
                Err(_) => {
                    drop(holds.take());
                    opening.await
                }
            }
        };
        drop(holds.take());
        let Some(response) = opened.filter(is_stream) else { return };
        let (last, came) = pump(Messages::of(response, None), &session, &sessions).await;
        after = last.or(after);
        pause = if came { REOPEN } else { (pause * 2).min(LONGEST_REOPEN) };
        let waited = session.over().run_until_cancelled(tokio::time::sleep(pause)).await;
        if waited.is_none() || caller.gateway.drain.is_started() {
            return;
        }
    }
}

/// Ends the session that the gateway sees.
async fn close(session: &Session, caller: &Caller) {
    if let Some(inner) = session.begin(None) {
        drop(caller.delete(&inner).await);
    }
}

/// The client's end of a session: its stream.
struct Reader {
    session: Arc<Session>,
    sessions: Arc<Sessions>,
    queue: mpsc::Receiver<Said>,
    first: Option<Bytes>,
    record: Record,
    said: Instant,
    /// What was said last was an answer.
    answered: bool,
    look: Instant,
    _open: Open,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            tokio::select! {
                biased;
                () = self.session.over().cancelled() => return self.ended(),
                Some(said) = self.queue.recv() => {
                    if said.is_answer && !self.answered {
                        sleep_until(self.said + GAP).await;
                    }
                    self.answered = said.is_answer;
                    self.said = Instant::now();
                    self.record.note_bytes(said.message.len());
                    return Some(encode_message(&said.message));
                }
                () = sleep_until(self.look) => {}
            }
            self.look = Instant::now() + LOOK_EVERY;
            if let Some(ended) = self.why_not() {
                self.sessions.end(&self.session, ended);
                continue;
            }
            if self.said.elapsed() >= KEEP_ALIVE_EVERY {
                self.said = Instant::now();
                return Some(Bytes::from_static(KEEP_ALIVE));
            }
        }
    }

    /// Why the session may not stay open.
    fn why_not(&self) -> Option<Ended> {
        let gateway = self.session.caller().gateway;
        if !self.session.renew(&gateway.current.load()) {
            return Some(Ended::Revoked);
        }
        if gateway.drain.is_started() && self.session.is_quiet() {
            return Some(Ended::Drained);
        }
        self.session.is_idle().then_some(Ended::Idle)
    }

    fn ended(&mut self) -> Option<Bytes> {
        let (outcome, reason) = match self.session.ended() {
            Ended::Revoked => {
                let reject = Reject::Forbidden("revoked while open".into());
                self.record.note_rule(reject.rule());
                self.record.refuse(&reject, 200);
                return None;
            }
            Ended::Drained => (Outcome::Ok, "drained"),
            Ended::Idle => (Outcome::Ok, "idle"),
            Ended::Stalled => (Outcome::Cancelled, "client_stalled"),
            Ended::Gone => (Outcome::Cancelled, "client_gone"),
        };
        self.record.finish(End { outcome, status: 200, code: 0, reason });
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.sessions.end(&self.session, Ended::Gone);
        // When the program ends, there is nothing left to tell the server in.
        if tokio::runtime::Handle::try_current().is_ok() {
            let session = Arc::clone(&self.session);
            let caller = session.caller();
            // Held from now on: when the connection is gone, the process may end.
            let hold = caller.gateway.drain.hold();
            task::spawn("end of an HTTP+SSE session", async move {
                close(&session, &caller).await;
                drop(hold);
            });
        }
    }
}
