//! `initialize` at the door of one server: in the server's own session where it has one of the revision that the client
//! asked for, else in one of ours.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use tokio::time::timeout_at;
use waffles_mcp::headers::{MCP_PROTOCOL_VERSION, MCP_SESSION_ID};
use waffles_mcp::translate::handshake::Described;
use waffles_mcp::{Id, Kind, Message, Revision};

use super::native::new_session;
use super::{Call, Exchange, Gateway};
use crate::front::Front;
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::stream::{Body, end_of};
use crate::upstream::eras::{Speaks, is_foreign};
use crate::upstream::{Answer, Heard, Manner, Outgoing};

impl Gateway {
    /// The server's answer to `initialize`. A server that speaks another era has no session to give, and one that offers
    /// another revision than the client asked for would speak past it: then the client gets a session from us.
    pub(super) async fn shake_hands(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        permit: Permit,
        call: Option<Call>,
        answer: Answer,
    ) -> Result<Response<Body>, Reject> {
        let head = call.as_ref().and_then(|call| call.head.as_deref());
        let head = head.ok_or(Reject::Internal("handshake_without_head"))?;
        let front = Front::opening(head);
        if !answer.status.is_success() {
            if !self.has_no_sessions(&permit, answer.status).await? {
                return self.encode(exchange, permit, call, answer).await;
            }
            answer.body.recycle();
            return self.bridge(exchange, parts, permit, front, call).await;
        }
        let session = new_session(exchange, &permit, call.as_ref(), &answer)?;
        let (endpoint, own) = (answer.endpoint, answer.headers.get(MCP_SESSION_ID).cloned());
        let timeouts = permit.entry().server.spec.timeouts;
        let until = exchange.record.started() + timeouts.first_byte;
        let bad = || Reject::upstream(UpstreamFault::BadAnswer, true);
        let heard = timeout_at(until, first_answer(answer, exchange.id.as_ref()));
        let message = heard.await.map_err(|_| Reject::upstream(UpstreamFault::TimedOut, true))??;
        exchange.record.note_answered();
        if let Some(result) = message.result() {
            let agreed = Described::from_initialize(&result).ok().map(|described| described.revision);
            let asked = head.protocol_version.as_deref().and_then(Revision::parse);
            let asked = asked.filter(|revision| !revision.is_modern());
            let server = &permit.entry().server;
            if let Some(agreed) = agreed {
                self.shared.eras.note(server, |seen| seen.sessions = Speaks::Yes(agreed));
            }
            if agreed.is_some() && asked.is_some() && agreed != asked {
                if let Some(own) = own {
                    self.end_upstream(&permit, own, endpoint, agreed).await;
                }
                return self.bridge(exchange, parts, permit, front, call).await;
            }
        }
        let id = exchange.id.as_ref().filter(|id| message.id() == Some(id)).ok_or_else(bad)?;
        let bytes = message.rewrite_id(id);
        exchange.record.note_bytes(bytes.len());
        exchange.record.finish(end_of(&message));
        let mut response = Response::new(Body::full(bytes));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(session) = session {
            headers.insert(MCP_SESSION_ID, session);
        }
        Ok(response)
    }

    /// Whether a refusal of `initialize` means that the server speaks another era, which it is then known for.
    pub(super) async fn has_no_sessions(&self, permit: &Permit, status: StatusCode) -> Result<bool, Reject> {
        let server = &permit.entry().server;
        if !is_foreign(status.as_u16()) {
            return Ok(false);
        }
        let stateless = self.shared.eras.stateless(&self.upstream, permit).await?.is_some();
        let no_endpoint = matches!(status.as_u16(), 404 | 405);
        let http_sse = no_endpoint && !self.shared.eras.seen(server).http_sse.is_no();
        if stateless || http_sse {
            self.shared.eras.note(server, |seen| seen.sessions = Speaks::No);
        }
        Ok(stateless || http_sse)
    }

    /// Ends a session that the client will not use.
    pub(super) async fn end_upstream(
        &self,
        permit: &Permit,
        id: HeaderValue,
        endpoint: u16,
        revision: Option<Revision>,
    ) {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(MCP_SESSION_ID, id);
        if let Some(revision) = revision.filter(|revision| revision.has_version_header()) {
            headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(revision.as_str()));
        }
        let (method, endpoint) = (HttpMethod::DELETE, Some(endpoint));
        let (path, manner) = (None, Manner::Aside);
        let outgoing = Outgoing { method, headers, body: Bytes::new(), endpoint, path, manner };
        match self.upstream.call(permit, outgoing).await {
            Ok(answer) => answer.body.recycle(),
            // The server forgets it by itself.
            Err(reject) => tracing::debug!(reason = reject.reason(), "a session could not be ended"),
        }
    }
}

/// The answer to a request, past what a server may say before it.
async fn first_answer(answer: Answer, id: Option<&Id>) -> Result<Message, Reject> {
    let bad = || Reject::upstream(UpstreamFault::BadAnswer, true);
    let Heard::Inbox(mut inbox) = Heard::read(answer).await? else { return Err(bad()) };
    loop {
        let next = inbox.next().await.map_err(|fault| Reject::upstream(fault, true))?;
        let message = next.ok_or_else(|| Reject::upstream(UpstreamFault::BrokeOff, true))?;
        if matches!(message.kind(), Kind::Response | Kind::Error) {
            if message.id() != id {
                return Err(bad());
            }
            inbox.done();
            return Ok(message);
        }
    }
}
