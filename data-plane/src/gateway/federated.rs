//! Exchanges at a door with many servers behind it.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use waffles_mcp::headers::{MCP_SESSION_ID, singleton};
use waffles_mcp::translate::notice::Filter;
use waffles_mcp::translate::result;
use waffles_mcp::{Era, Head, Method};

use super::bridged::Asked;
use super::{Call, Door, Exchange, Gateway, Stood, Unmirrored, answer, authorize, empty, own_tenant};
use crate::authn::Identity;
use crate::bridge::Naming;
use crate::bridge::local::{self, Local};
use crate::federation::Realm;
use crate::federation::catalogue::Kind as List;
use crate::federation::resolve::Found;
use crate::federation::search::{self, Searched};
use crate::flow::Outbox;
use crate::front::Front;
use crate::hub::{Ask, Audience, Renew};
use crate::reject::Reject;
use crate::stream::Body;

impl Gateway {
    /// A message at a door with many servers behind it.
    pub(super) async fn federated(
        &self,
        exchange: &mut Exchange,
        door: &Door,
        parts: &Parts,
        identity: Identity,
        call: Option<Call>,
    ) -> Result<Response<Body>, Reject> {
        own_tenant(door, &identity)?;
        let realm = Realm::of(&exchange.snapshot, &identity, exchange.era, &door.scope)?;
        let head = call.as_ref().and_then(|call| call.head.as_deref());
        let front = self.front(exchange, &parts.headers, &identity, &realm.door, head)?;
        let Some(Call { message, head }) = call else {
            self.limit(exchange, parts, &identity, None, None).await?;
            let session = front.session.clone().ok_or(Reject::SessionRequired)?;
            return match self.stand(exchange, parts, session).await? {
                Stood::Done(response) => Ok(response),
                Stood::Listens(session, outbox, again) => {
                    let filter = Ask::filter_of(&session);
                    let renew = realm_of(door, exchange.era);
                    let audience = Audience::Standing(session);
                    let client = front.client;
                    let ask =
                        Ask { audience, identity, client, filter, renew, federated: true, outbox, again };
                    self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
                }
            };
        };
        let Some(head) = head else {
            self.limit(exchange, parts, &identity, None, None).await?;
            return self.take_answer(exchange, parts, &identity, &front, message).await;
        };
        if head.method == Method::Initialize && front.session.is_none() && !front.is_stateless() {
            self.limit(exchange, parts, &identity, None, Some(&head)).await?;
            let (session, front) = self.begin(&identity, realm.door.clone(), &front, &head)?;
            let described = self.means().describe_all(&front, &realm).await;
            return self.open(exchange, &session, &described);
        }
        let local = local::of(&front, &head)?;
        // What is for a server is counted when it is known for which.
        if !is_for_a_server(&head, &local) {
            self.limit(exchange, parts, &identity, None, Some(&head)).await?;
        }
        match local {
            Local::Result(result) => self.answer_locally(exchange, &front, &head, &result).await,
            Local::Accepted => Ok(empty(exchange, Response::new(Body::Empty), StatusCode::ACCEPTED)),
            Local::Describe => {
                let described = self.means().describe_all(&front, &realm).await;
                answer(exchange, &local::describe(&described, front.revision))
            }
            Local::Listen => {
                let id = exchange.id.clone().ok_or(Reject::Internal("request_without_id"))?;
                let mut filter = Filter::parse(head.notifications.as_deref().unwrap_or(b"{}"))?;
                filter.task_ids.clear();
                let (audience, outbox) = (Audience::Listen(id), Outbox::default());
                let renew = realm_of(door, exchange.era);
                let client = front.client;
                let ask =
                    Ask { audience, identity, client, filter, renew, federated: true, outbox, again: false };
                self.shared.hub.listen(&self.means(), ask, &mut exchange.record).await
            }
            Local::Ask => match List::of(&head.method) {
                Some(List::Tools) if realm.searches() => {
                    answer(exchange, &for_client(&front, &head.method, search::list())?)
                }
                Some(kind) => {
                    let settings = Arc::clone(exchange.snapshot.settings().ok_or(Reject::NotReady)?);
                    let means = self.means();
                    let listed = means.list(&front, &realm, kind, &head, &settings, self.page_size).await?;
                    answer(exchange, &for_client(&front, &head.method, listed)?)
                }
                None if realm.searches() && head.method == Method::ToolsCall => {
                    match self.means().search(&front, &realm, &message, &head).await? {
                        Searched::Result(result) => {
                            self.limit(exchange, parts, &identity, None, Some(&head)).await?;
                            answer(exchange, &for_client(&front, &head.method, result)?)
                        }
                        Searched::Call(message, head) => {
                            // The arguments of the call that was packed into this one have no headers.
                            let mut parts = parts.clone();
                            parts.extensions.insert(Unmirrored);
                            let call = Call { message, head: Some(head) };
                            self.call_found(exchange, &parts, &identity, &realm, front, call).await
                        }
                    }
                }
                None => {
                    let call = Call { message, head: Some(head) };
                    self.call_found(exchange, parts, &identity, &realm, front, call).await
                }
            },
        }
    }

    /// A request at a federated door, for one of its servers.
    pub(super) async fn call_found(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        identity: &Identity,
        realm: &Realm,
        front: Front,
        call: Call,
    ) -> Result<Response<Body>, Reject> {
        let Call { message, head } = call;
        let head = head.ok_or(Reject::Internal("request_without_head"))?;
        let Found { entry, server, head: own, edits } = self.means().resolve(&front, realm, &head).await?;
        exchange.record.note_server(&entry, entry.server.spec.name.as_str().into());
        if let Some(name) = &own.name {
            exchange.record.note_target(name);
        }
        let namespace = realm.namespace.as_ref();
        let permit = authorize(exchange, identity, &entry, namespace, Some(&own), Some(&message));
        let permit = permit.map_err(|reject| match reject {
            // As the client named it: a server that it may not know of has no name of its own.
            Reject::UnknownTool { rule, .. } => {
                Reject::UnknownTool { tool: head.name.clone().unwrap_or_default(), rule }
            }
            reject => reject,
        })?;
        self.limit(exchange, parts, identity, Some(&entry), Some(&own)).await?;
        let asked = Asked { message, head: own, naming: Naming::Federated(server), edits };
        self.ask(exchange, parts, permit, front, asked).await
    }

    /// Who speaks at a door where every session is the gateway's own.
    pub(super) fn front(
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
}

/// Whether a message goes to one of the servers, or may: what is answered here does not.
fn is_for_a_server(head: &Head, local: &Local) -> bool {
    matches!(local, Local::Ask) && List::of(&head.method).is_none()
}

/// A result of our own, in the client's words.
fn for_client(front: &Front, method: &Method, result: Bytes) -> Result<Bytes, Reject> {
    match front.is_stateless() {
        true => Ok(result),
        false => Ok(result::for_session(method, &result, front.revision)?),
    }
}

/// What stands behind a federated door, whenever that is asked again.
fn realm_of(door: &Door, era: Era) -> Box<Renew> {
    let scope = door.scope.clone();
    Box::new(move |snapshot, identity| Some(Realm::of(snapshot, identity, era, &scope).ok()?.view()))
}
