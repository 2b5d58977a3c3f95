//! Exchanges in the era that client and server share: the client's own bytes, under headers made anew.

use std::sync::Arc;

use chrono::Utc;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use tokio::time::Instant;
use waffles_core::audit::Outcome;
use waffles_core::server::Spec;
use waffles_mcp::headers::{self, LAST_EVENT_ID, MCP_PARAM_PREFIX, MCP_PROTOCOL_VERSION, MCP_SESSION_ID};
use waffles_mcp::{Kind, Limits, Message, Method, Revision};

use super::{BODY_GRACE, Call, Exchange, Gateway, empty};
use crate::listing;
use crate::permit::Permit;
use crate::record::End;
use crate::reject::{Reject, UpstreamFault};
use crate::session::Session;
use crate::stream::{Body, MAX_ANSWER, Purpose, Relay, Terms, end_of};
use crate::upstream::{Answer, Manner, Outgoing, collect, is_type};

/// Most bytes of an answer that is only a refusal.
const MAX_REFUSAL: usize = 64 * 1024;

impl Gateway {
    /// Sends the message to the server. Under `audit = strict` not before a record of it is sure to be kept.
    pub(super) async fn forward(
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
    pub(super) async fn encode(
        &self,
        exchange: &mut Exchange,
        permit: Permit,
        call: Option<Call>,
        answer: Answer,
    ) -> Result<Response<Body>, Reject> {
        if !answer.status.is_success() {
            return Box::pin(refusal(exchange, answer)).await;
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
    pub(super) fn relay(
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
            hold: answer.body.hold(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        *response.body_mut() = Body::Relay(Box::new(Relay::new(answer.body, terms)));
        response
    }
}

/// The message for the server: the same in its bytes of `params` and `result`, under headers made anew. Nothing else
/// that the client sent leaves: above all not its credential.
pub(super) fn translate(
    exchange: &Exchange,
    parts: &Parts,
    call: Option<&Call>,
    session: Option<&Session>,
    spec: &Spec,
) -> Outgoing {
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
    let manner = match exchange.verb {
        HttpMethod::GET => Manner::Listens,
        HttpMethod::DELETE => Manner::Aside,
        _ => Manner::of(head, spec),
    };
    Outgoing {
        method: exchange.verb.clone(),
        headers: to,
        body: call.map(|call| call.message.rewrite()).unwrap_or_default(),
        endpoint: session.map(|session| session.endpoint),
        path: None,
        manner,
    }
}

/// The sealed id of a session that the server just began.
pub(super) fn new_session(
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
    let ring = exchange.snapshot.settings().map(|settings| &settings.seal);
    if let (Some(Method::ToolsList), Some(result)) = (method, message.result()) {
        exchange.record.note_tools(permit.entry(), &result);
    }
    let bytes = listing::answer_for(permit, exchange.modern, method, &message, ring).map_err(invalid)?;
    exchange.record.capture_response(permit.entry(), message.result().as_deref());
    exchange.record.note_bytes(bytes.len());
    exchange.record.finish(end_of(&message));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // It is held until the client has it: one that does not read must not keep what others could use.
    *response.body_mut() = Body::full(exchange.hold.of(bytes));
    Ok(response)
}

/// The server's own refusal. Its JSON-RPC error is what tells the client which era the server speaks, so it is passed
/// on as it is; what concerns our credential is our own trouble, and never becomes the client's challenge.
async fn refusal(exchange: &mut Exchange, answer: Answer) -> Result<Response<Body>, Reject> {
    let status = answer.status;
    if matches!(status.as_u16(), 401 | 403 | 407) {
        return Err(Reject::upstream(UpstreamFault::Credential, true));
    }
    let retry_after = answer.headers.get(header::RETRY_AFTER).cloned();
    let wait = answer.retry_after();
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
        _ => return Err(Reject::upstream(UpstreamFault::Failed, true).ask_again_in(wait)),
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
