//! Exchanges whose client and server speak different eras, and all that happens in sessions of the gateway's own.

use std::sync::Arc;

use http::request::Parts;
use http::{Method as HttpMethod, Response, StatusCode};
use waffles_mcp::headers::{LAST_EVENT_ID, MCP_SESSION_ID, check_params, singleton};
use waffles_mcp::translate::handshake::Described;
use waffles_mcp::translate::notice::Filter;
use waffles_mcp::{Head, Message, Method, Slot};

use super::{Call, Exchange, Gateway, Stood, answer, empty, is_unmirrored};
use crate::authn::Identity;
use crate::bridge::local::{self, Local};
use crate::bridge::parked::State;
use crate::bridge::{Errand, Naming};
use crate::flow::{Flow, Open, Outbox};
use crate::front::{self, Front};
use crate::hub::{Ask, Audience};
use crate::peers;
use crate::permit::Permit;
use crate::record::End;
use crate::reject::Reject;
use crate::stream::Body;
use crate::tasks;

/// A request as it is asked of a server.
pub(super) struct Asked {
    /// As it came.
    pub(super) message: Message,
    /// Its head, with the server's own name for what it is about.
    pub(super) head: Box<Head>,
    /// Under which names the client knows what the server has.
    pub(super) naming: Naming,
    /// The server's own names, where the client's differ.
    pub(super) edits: Vec<(Slot, String)>,
}

impl Gateway {
    /// A message whose client and server speak different eras.
    pub(super) async fn bridge(
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
                    let ask =
                        Ask::at_server(&permit, Audience::Standing(session), front.client, filter, outbox);
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
            Local::Result(result) => self.answer_locally(exchange, &front, &head, &result).await,
            Local::Accepted => Ok(empty(exchange, Response::new(Body::Empty), StatusCode::ACCEPTED)),
            Local::Describe => {
                let described = self.means().describe(&front, &permit).await?;
                answer(exchange, &local::describe(&described, front.revision))
            }
            Local::Listen => self.listen(exchange, &permit, &head).await,
            Local::Ask => {
                let asked = Asked { message, head, naming: Naming::Own, edits: Vec::new() };
                self.ask(exchange, parts, permit, front, asked).await
            }
        }
    }

    /// Begins a session of the gateway's own.
    pub(super) fn begin(
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
    pub(super) fn open(
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
    pub(super) async fn answer_locally(
        &self,
        exchange: &mut Exchange,
        front: &Front,
        head: &Head,
        result: &[u8],
    ) -> Result<Response<Body>, Reject> {
        if let (Method::ResourcesSubscribe | Method::ResourcesUnsubscribe, Some(session)) =
            (&head.method, &front.session)
        {
            self.shared.hub.rewish(session).await;
        }
        answer(exchange, result)
    }

    /// The client's answer to a question of ours. One that nobody waits for is late, and dropped.
    pub(super) async fn take_answer(
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
    pub(super) async fn stand(
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
                let open = Open::new(&self.desk.metrics.open_streams).holding(exchange.record.take_held());
                exchange.record.finish(End { status: 200, reason: "resumed", ..End::default() });
                return Ok(Stood::Done(Flow::reading(outbox, open).stream()));
            }
            Some(outbox) => outbox,
            None => session.stand(),
        };
        Ok(Stood::Listens(session, outbox, event_id.is_some()))
    }

    /// A stateless client's subscription, which it shares with others.
    pub(super) async fn listen(
        &self,
        exchange: &mut Exchange,
        permit: &Permit,
        head: &Head,
    ) -> Result<Response<Body>, Reject> {
        let id = exchange.id.clone().ok_or(Reject::Internal("request_without_id"))?;
        self.desk.trail.admit(permit.entry().server.spec.audit).map_err(|_| Reject::AuditUnavailable)?;
        let mut filter = Filter::parse(head.notifications.as_deref().unwrap_or(b"{}"))?;
        // Tasks are asked for, not listened to: what a subscription says of them has the server's own ids.
        filter.task_ids.clear();
        let ask = Ask::at_server(
            permit,
            Audience::Listen(id),
            Front::stateless(head).client,
            filter,
            Outbox::default(),
        );
        self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
    }

    /// Asks the server, over the bridge.
    pub(super) async fn ask(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        permit: Permit,
        front: Front,
        asked: Asked,
    ) -> Result<Response<Body>, Reject> {
        let Asked { message, mut head, naming, mut edits } = asked;
        if tasks::is_about_one(&head.method) {
            let settings = exchange.snapshot.settings().ok_or(Reject::NotReady)?;
            let public = head.name.take().unwrap_or_default();
            let own = tasks::own(&settings.seal, &permit, &public).ok_or(Reject::Unknown("task", public))?;
            edits.push((Slot::TaskId, own.clone()));
            head.name = Some(own);
        }
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
        if front.is_stateless() && head.method == Method::ToolsCall && !is_unmirrored(parts) {
            self.check_params(parts, &permit, &front, &head).await?;
        }
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
            asked: None,
            progress: f64::NEG_INFINITY,
        };
        let open = Open::new(&self.desk.metrics.open_streams);
        Ok(Flow::new(errand.run(), out, survives, open).respond().await)
    }

    /// The headers that mirror arguments must say what the arguments say, also where the server is of an older revision
    /// and would not look [2026-07-28 streamable-http#request-metadata].
    async fn check_params(
        &self,
        parts: &Parts,
        permit: &Permit,
        front: &Front,
        head: &Head,
    ) -> Result<(), Reject> {
        let means = self.means();
        for last in [false, true] {
            let Some(annotations) = means.annotations(front, permit, head).await else { return Ok(()) };
            match check_params(&annotations, head.arguments.as_deref(), &parts.headers) {
                Ok(()) => return Ok(()),
                Err(error) if last => return Err(error.into()),
                // The tool may have changed since its list was read.
                Err(_) => self.shared.schemas.forget(&permit.entry().server),
            }
        }
        Ok(())
    }

    /// Whether an address is that of another proxy. What was passed on once is not passed on again.
    pub(super) fn is_other(&self, exchange: &Exchange, owner: &str) -> bool {
        exchange.passed.is_none() && self.shared.address.as_deref() != Some(owner)
    }

    /// The other proxy that has asked the client what it answers here.
    pub(super) fn owner_of_question(&self, exchange: &Exchange, answer: &Message) -> Option<String> {
        let id = answer.id()?.text();
        let (_, mark) = id.strip_prefix("waffles-")?.split_once('.')?;
        let owner = peers::marked(&exchange.snapshot.settings()?.seal, mark)?;
        self.is_other(exchange, &owner).then_some(owner)
    }

    /// Passes a message on to the proxy that holds what it is for. That proxy keeps the record.
    pub(super) async fn pass_on(
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
}
