//! One subscription at one server: the stream of a `subscriptions/listen`, or that of the session in which the same
//! client's calls are made, where resources are subscribed to one by one: a server may tell a session only of what was
//! done in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, StatusCode, header};
use tokio::time::{Instant, timeout, timeout_at};
use waffles_mcp::capability::Capabilities;
use waffles_mcp::headers::{MCP_METHOD, MCP_PROTOCOL_VERSION};
use waffles_mcp::jsonrpc::{code, error_response, result_response};
use waffles_mcp::translate::input;
use waffles_mcp::translate::notice::Filter;
use waffles_mcp::{Id, Kind, Message, Method, Revision, Slot, capability, head};
use waffles_runtime::task;

use super::feed::Seat;
use super::topic;
use crate::front::Session;
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::upstream::backs::{Back, Hold, Missed};
use crate::upstream::eras::waffles;
use crate::upstream::{Heard, Inbox, Manner, Outgoing};

/// How long a server may take to say what it honours, and to answer a `resources/subscribe`.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long a person may take to answer what a server asks.
const ASKED_TIME: Duration = Duration::from_secs(600);
/// How long a server is left alone before a stream is taken up again, whatever it says.
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// An open subscription.
pub(super) struct Source {
    inbox: Inbox,
    how: How,
    capabilities: Capabilities,
    /// The server gave an event before it said what it honours.
    first: Option<Message>,
    /// What was asked for.
    pub(super) asked: Filter,
    /// What of that the server honours.
    pub(super) honoured: Filter,
}

enum How {
    Stateless { id: Id },
    Session { back: Arc<Back>, _hold: Hold },
}

/// What a server says next.
pub(super) enum Said {
    /// Something that may concern listeners.
    Notification(Message),
    /// Nothing that concerns anybody.
    Nothing,
    /// The stream is over.
    Ended,
}

impl Source {
    /// Subscribes. None where the server offers nothing of what is wanted.
    pub(super) async fn open(
        means: &Means,
        permit: &Permit,
        seat: &Seat,
        wanted: &Filter,
    ) -> Result<Option<Self>, Reject> {
        let seen = means.shared.eras.seen(&permit.entry().server);
        if seat.sits(&seen) {
            return in_session(means, permit, seat, wanted).await;
        }
        match means.shared.eras.stateless(&means.upstream, permit).await? {
            Some(described) => {
                let capabilities = Capabilities::parse(&described.capabilities);
                let asked = offered(&capabilities, wanted);
                if asked.is_empty() {
                    return Ok(None);
                }
                listen(means, permit, capabilities, asked).await
            }
            None => in_session(means, permit, seat, wanted).await,
        }
    }

    /// The next message. Nothing is lost where the wait is given up.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, UpstreamFault> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.inbox.next().await,
        }
    }

    /// What a message is. A question of the server is put to the session's client, where there is one.
    pub(super) async fn judge(
        &self,
        means: &Means,
        permit: &Permit,
        client: Option<&Arc<Session>>,
        message: Message,
    ) -> Said {
        match (message.kind(), &self.how) {
            (Kind::Notification, _) => Said::Notification(message),
            (Kind::Request, How::Session { back, .. }) => {
                let Some(id) = message.id() else { return Said::Nothing };
                if message.method() == Some(Method::Ping.as_str()) {
                    tell(means, permit, back, result_response(id, b"{}")).await;
                } else if !ask_client(means, permit, back, client, &message) {
                    let reason = "nobody can be asked this";
                    let refusal = error_response(Some(id), code::METHOD_NOT_FOUND, reason, None);
                    tell(means, permit, back, refusal).await;
                }
                Said::Nothing
            }
            (Kind::Response | Kind::Error, How::Stateless { id }) if message.id() == Some(id) => Said::Ended,
            _ => Said::Nothing,
        }
    }

    /// Ends what was subscribed to in a session that goes on.
    pub(super) async fn release(mut self, means: &Means, permit: &Permit) {
        let How::Session { back, .. } = &self.how else { return };
        let back = Arc::clone(back);
        if self.subscribe(means, permit, &back, &Filter::default()).await.is_err() {
            tracing::debug!("a server did not take the end of a subscription");
        }
    }

    /// Whether what is wanted now asks for another subscription, or for others in this one.
    pub(super) fn is_behind(&self, wanted: &Filter) -> bool {
        match &self.how {
            How::Stateless { .. } => !topic::names_all(&self.asked, &offered(&self.capabilities, wanted)),
            How::Session { .. } => self.asked.uris != wanted.uris,
        }
    }

    /// Brings the subscription up to what is wanted. The old one goes only when the new one is there, so that nothing is
    /// missed in between.
    pub(super) async fn follow(
        &mut self,
        means: &Means,
        permit: &Permit,
        wanted: &Filter,
    ) -> Result<(), Reject> {
        if let How::Session { back, .. } = &self.how {
            let back = Arc::clone(back);
            return self.subscribe(means, permit, &back, wanted).await;
        }
        let lost = || Reject::upstream(UpstreamFault::BrokeOff, true);
        // It was stateless a moment ago; if it is not any more, the stream is opened anew from the start.
        let Some(described) = means.shared.eras.stateless(&means.upstream, permit).await? else {
            return Err(lost());
        };
        let capabilities = Capabilities::parse(&described.capabilities);
        let asked = offered(&capabilities, wanted);
        let next = listen(means, permit, capabilities, asked).await?.ok_or_else(lost)?;
        if !matches!(next.how, How::Stateless { .. }) {
            return Err(lost());
        }
        *self = next;
        Ok(())
    }

    /// Subscribes to what is newly wanted and ends what nobody wants any more.
    async fn subscribe(
        &mut self,
        means: &Means,
        permit: &Permit,
        back: &Back,
        wanted: &Filter,
    ) -> Result<(), Reject> {
        let offers = self.capabilities.resources_subscribe;
        let gone: Vec<String> = self.asked.uris.difference(&wanted.uris).cloned().collect();
        let new: Vec<String> = wanted.uris.difference(&self.asked.uris).cloned().collect();
        for uri in gone {
            if self.honoured.uris.remove(&uri) {
                ask(means, permit, back, "resources/unsubscribe", &uri).await?;
            }
            self.asked.uris.remove(&uri);
        }
        for uri in new {
            if offers && ask(means, permit, back, "resources/subscribe", &uri).await? {
                self.honoured.uris.insert(uri.clone());
            }
            self.asked.uris.insert(uri);
        }
        self.asked.task_ids.clone_from(&wanted.task_ids);
        Ok(())
    }

    /// Takes up the stream where it ended, where the server keeps what was missed. False where it does not.
    pub(super) async fn take_up(&mut self, means: &Means, permit: &Permit) -> bool {
        let resume = self.inbox.resume().clone();
        let How::Session { back, .. } = &self.how else { return false };
        if resume.event_id.is_none() {
            return false;
        }
        let wait = Duration::from_millis(resume.retry.unwrap_or(500));
        tokio::time::sleep(wait.clamp(MIN_RETRY, MAX_RETRY)).await;
        match back.take_up(&means.upstream, permit, &resume).await {
            Ok(Some(inbox)) => {
                self.inbox = inbox.endless();
                true
            }
            _ => false,
        }
    }
}

/// What of a filter a server offers.
fn offered(capabilities: &Capabilities, wanted: &Filter) -> Filter {
    let uris = if capabilities.resources_subscribe { wanted.uris.clone() } else { BTreeSet::new() };
    Filter {
        // All lists, whoever wants which: then two clients who differ in that need no second stream.
        tools: capabilities.tools_list_changed,
        prompts: capabilities.prompts_list_changed,
        resources: capabilities.resources_list_changed,
        uris,
        task_ids: wanted.task_ids.clone(),
    }
}

/// Opens a `subscriptions/listen` [2026-07-28 basic/patterns/subscriptions].
async fn listen(
    means: &Means,
    permit: &Permit,
    capabilities: Capabilities,
    asked: Filter,
) -> Result<Option<Source>, Reject> {
    let until = Instant::now() + ANSWER_TIME;
    let id = means.shared.fresh_id();
    let answer = means.upstream.call(permit, listen_request(&id, &asked)).await?;
    let mut inbox = match Heard::read(answer).await? {
        Heard::Inbox(inbox) => inbox.endless(),
        Heard::Accepted => return Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
        Heard::Refused { status, message } => return refused(status, message.as_deref()),
    };
    let first = match timeout_at(until, inbox.next()).await {
        Err(_) => return Err(Reject::upstream(UpstreamFault::TimedOut, true)),
        Ok(Err(fault)) => return Err(Reject::upstream(fault, true)),
        Ok(Ok(None)) => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
        Ok(Ok(Some(first))) => first,
    };
    match first.kind() {
        Kind::Error => refused(StatusCode::OK, Some(&first)),
        Kind::Notification => {
            let acknowledged =
                head(&first).ok().filter(|head| head.method == Method::SubscriptionsAcknowledged);
            let honoured = match &acknowledged {
                Some(head) => head.notifications.as_ref().and_then(|raw| Filter::parse(raw).ok()),
                None => None,
            };
            // A server that does not say which of it, honours all of it.
            let honoured = honoured.map_or_else(|| asked.clone(), |honoured| honoured.intersect(&asked));
            let first = acknowledged.is_none().then_some(first);
            Ok(Some(Source { inbox, how: How::Stateless { id }, capabilities, first, asked, honoured }))
        }
        Kind::Request | Kind::Response => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
    }
}

/// A server may be of the stateless revision and offer no subscriptions.
fn refused(status: StatusCode, message: Option<&Message>) -> Result<Option<Source>, Reject> {
    let none = message.and_then(Message::error_code) == Some(code::METHOD_NOT_FOUND)
        || matches!(
            status,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        );
    if none { Ok(None) } else { Err(Reject::upstream(UpstreamFault::Failed, true)) }
}

fn listen_request(id: &Id, asked: &Filter) -> Outgoing {
    let capabilities = match asked.task_ids.is_empty() {
        true => "{}",
        false => r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#,
    };
    let body = format!(
        concat!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"subscriptions/listen","params":{{"notifications":{},"_meta":{{"#,
            r#""io.modelcontextprotocol/protocolVersion":"{}","io.modelcontextprotocol/clientCapabilities":{},"#,
            r#""io.modelcontextprotocol/clientInfo":{}}}}}}}"#
        ),
        id.as_json(),
        String::from_utf8_lossy(&asked.to_json()),
        Revision::V2026_07_28.as_str(),
        capabilities,
        String::from_utf8_lossy(&waffles()),
    );
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(Revision::V2026_07_28.as_str()));
    headers.insert(MCP_METHOD, HeaderValue::from_static("subscriptions/listen"));
    Outgoing {
        method: HttpMethod::POST,
        headers,
        body: body.into(),
        endpoint: None,
        path: None,
        manner: Manner::Listens,
    }
}

/// Opens the stream of the session in which the same client's calls are made.
async fn in_session(
    means: &Means,
    permit: &Permit,
    seat: &Seat,
    wanted: &Filter,
) -> Result<Option<Source>, Reject> {
    let (shared, upstream) = (&means.shared, &means.upstream);
    let back = shared.backs.get(upstream, &shared.eras, permit, &seat.client, seat.owner).await?;
    let capabilities = Capabilities::parse(&back.described.capabilities);
    // In a client's own session the server may say more on its stream than what changes.
    if offered(&capabilities, wanted).is_empty() && seat.owner.is_none() {
        return Ok(None);
    }
    let Some(inbox) = back.listen(upstream, permit).await.map_err(failed)? else { return Ok(None) };
    let lists = Filter { uris: BTreeSet::new(), task_ids: BTreeSet::new(), ..offered(&capabilities, wanted) };
    let how = How::Session { _hold: back.hold(), back: Arc::clone(&back) };
    let mut source = Source { inbox, how, capabilities, first: None, asked: lists.clone(), honoured: lists };
    source.subscribe(means, permit, &back, wanted).await?;
    Ok(Some(source))
}

async fn tell(means: &Means, permit: &Permit, back: &Back, answer: Bytes) {
    if back.tell(&means.upstream, permit, answer).await.is_err() {
        tracing::debug!("a server did not take the answer to its question");
    }
}

/// Puts a question to the client of a session on its standing stream, and gives the server the answer when it comes.
/// False where that cannot be.
fn ask_client(
    means: &Means,
    permit: &Permit,
    back: &Arc<Back>,
    client: Option<&Arc<Session>>,
    message: &Message,
) -> bool {
    let (Some(session), Some(upstream_id)) = (client, message.id()) else { return false };
    let (Some(standing), Some(request)) =
        (session.standing(), input::from_server_request(&upstream_id.text(), message))
    else {
        return false;
    };
    if !capability::allows(&session.client.capabilities, &request.method, &request.params) {
        return false;
    }
    let number = session.count();
    let id = Id::string(&format!("waffles-{number}"));
    let answer = session.ask(id.clone());
    let elicitation = format!("{:032x}", session.nonce ^ u128::from(number));
    if !standing.try_send(input::server_request(&id, &request, session.revision, &elicitation)) {
        return false;
    }
    let (means, permit, back) = (means.clone(), permit.clone(), Arc::clone(back));
    let upstream_id = upstream_id.clone();
    task::spawn("question on a standing stream", async move {
        let answer = timeout(ASKED_TIME, answer).await.ok().and_then(Result::ok);
        let told = match answer {
            Some(answer) => answer.rewrite_id(&upstream_id),
            None => {
                error_response(Some(&upstream_id), code::INTERNAL_ERROR, "the client did not answer", None)
            }
        };
        tell(&means, &permit, &back, told).await;
    });
    true
}

fn failed(missed: Missed) -> Reject {
    match missed {
        Missed::Reject(reject) => reject,
        Missed::Lost | Missed::Answered(_) => Reject::upstream(UpstreamFault::Failed, true),
    }
}

/// Asks in the session about one resource. False where the server does not want to.
async fn ask(means: &Means, permit: &Permit, back: &Back, method: &str, uri: &str) -> Result<bool, Reject> {
    let until = Instant::now() + ANSWER_TIME;
    let id = back.fresh_id();
    let uri = serde_json::Value::from(uri);
    let body =
        format!(r#"{{"jsonrpc":"2.0","id":{},"method":"{method}","params":{{"uri":{uri}}}}}"#, id.as_json());
    let mut inbox = match back.ask(&means.upstream, permit, &id, body.into()).await {
        Ok(inbox) => inbox,
        Err(Missed::Answered(_)) => return Ok(false),
        Err(missed) => return Err(failed(missed)),
    };
    loop {
        let next = timeout_at(until, inbox.next()).await;
        let next = next.map_err(|_| Reject::upstream(UpstreamFault::TimedOut, true))?;
        match next.map_err(|fault| Reject::upstream(fault, true))? {
            None => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
            Some(message) if message.id() == Some(&id) && message.kind() != Kind::Request => {
                inbox.done();
                return Ok(message.kind() == Kind::Response);
            }
            Some(message) => {
                let method = message.method().unwrap_or_default();
                let about = message.text(Slot::Uri);
                tracing::debug!(method, ?about, "a server says something else than it was asked");
            }
        }
    }
}
