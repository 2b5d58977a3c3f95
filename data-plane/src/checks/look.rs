//! One look at one server, at each of its endpoints: does it answer as an MCP server does? It asks in the revision that the
//! server speaks, with the server's own credential and through the one connector, and ends whatever session it opens.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, StatusCode, header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::sync::Arc;
use tokio::time::{Instant, timeout, timeout_at};
use waffles_core::health::{CREDENTIAL, Check, Finding};
use waffles_core::snapshot::ServerEntry;
use waffles_mcp::headers::{MCP_METHOD, MCP_PROTOCOL_VERSION, MCP_SESSION_ID};
use waffles_mcp::jsonrpc::code;
use waffles_mcp::translate::Client;
use waffles_mcp::translate::handshake::{Described, discover_request, initialize_request};
use waffles_mcp::{Id, Kind, Message, Revision};

use crate::health::Found;
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::upstream::backs::{self, Missed};
use crate::upstream::eras::{Seen, Speaks, is_foreign, waffles};
use crate::upstream::{Heard, Inbox, Manner, Outgoing};

/// How long a server may take to hear that a session is over.
const END_TIME: Duration = Duration::from_secs(2);

/// What was seen, and what it comes to.
struct Sight {
    finding: Finding,
    saw: String,
}

impl Sight {
    fn good(saw: impl Into<String>) -> Self {
        Self { finding: Finding::Good, saw: saw.into() }
    }

    fn poor(reason: &'static str, saw: impl Into<String>) -> Self {
        Self { finding: Finding::Poor(reason.into()), saw: saw.into() }
    }

    fn bad(reason: &'static str, saw: impl Into<String>) -> Self {
        Self { finding: Finding::Bad(reason.into()), saw: saw.into() }
    }
}

impl From<Reject> for Sight {
    fn from(reject: Reject) -> Self {
        let saw = reject.to_string();
        match &reject {
            Reject::Upstream { fault: UpstreamFault::Credential, .. } => Self::poor(CREDENTIAL, saw),
            other => {
                let reason = other.reason();
                Self::bad(reason.strip_prefix("upstream_").unwrap_or(reason), saw)
            }
        }
    }
}

/// Looks at every endpoint, all at the same time.
pub(super) async fn look(means: &Means, entry: &Arc<ServerEntry>) -> Vec<Found> {
    let count = u16::try_from(entry.server.spec.endpoints.len()).unwrap_or(u16::MAX);
    join_all((0..count).map(|endpoint| look_at(means, entry, endpoint))).await
}

async fn look_at(means: &Means, entry: &Arc<ServerEntry>, endpoint: u16) -> Found {
    let started = Instant::now();
    let permit = Permit::for_check(entry);
    let mut visit = Visit { means, permit: &permit, endpoint, session: None, revision: None };
    let until = started + entry.server.spec.health.timeout;
    let sight = match timeout_at(until, Box::pin(visit.ask())).await {
        Ok(Ok(sight)) => sight,
        Ok(Err(reject)) => reject.into(),
        Err(_) => Sight::bad("timed_out", "no answer in time"),
    };
    let took = started.elapsed();
    // Whatever came of it: also of one that was given up half way.
    visit.end().await;
    Found { endpoint, finding: sight.finding, saw: sight.saw, took }
}

struct Visit<'a> {
    means: &'a Means,
    permit: &'a Permit,
    endpoint: u16,
    /// The session, known from the moment at which the server names it.
    session: Option<HeaderValue>,
    revision: Option<Revision>,
}

impl Visit<'_> {
    /// Asks in the newest era first, as calls do. What the server is known not to speak is not asked again.
    async fn ask(&mut self) -> Result<Sight, Reject> {
        let (eras, server) = (&self.means.shared.eras, &self.permit.entry().server);
        let alone = server.spec.endpoints.len() == 1;
        let seen = eras.seen(server);
        // With several endpoints, each may speak for itself only.
        let note = |change: &dyn Fn(&mut Seen)| {
            if alone {
                eras.note(server, change);
            }
        };
        if !seen.stateless.is_no() {
            if let Some((sight, described)) = self.discover().await? {
                let described = Arc::new(described);
                note(&|seen| seen.stateless = Speaks::Yes(Arc::clone(&described)));
                return Ok(sight);
            }
            note(&|seen| seen.stateless = Speaks::No);
        }
        if !seen.sessions.is_no() {
            if let Some(sight) = self.initialize().await? {
                if let Some(revision) = self.revision {
                    note(&|seen| seen.sessions = Speaks::Yes(revision));
                }
                return Ok(sight);
            }
            note(&|seen| seen.sessions = Speaks::No);
        }
        if !seen.http_sse.is_no() {
            return self.listen().await;
        }
        // What was believed of it is wrong, or it speaks no MCP; either way it is found out anew next time.
        eras.forget(server);
        Ok(Sight::bad("no_mcp", "it answers, but to no revision of MCP"))
    }

    fn wants_tools(&self) -> bool {
        self.permit.entry().server.spec.health.check == Check::Tools
    }

    /// None where the server does not know the stateless revision.
    async fn discover(&mut self) -> Result<Option<(Sight, Described)>, Reject> {
        self.revision = Some(Revision::V2026_07_28);
        let id = Id::number(1);
        let heard = self.post("server/discover", discover_request(&id, &client())).await?;
        let message = match self.answer(heard, &id).await? {
            Answered::Message(message) => message,
            Answered::Refused(status) => return refused(status).map(|()| None),
            Answered::Nothing => return Ok(None),
        };
        if message.kind() == Kind::Error {
            let code = message.error_code().unwrap_or_default();
            let ours = code::is_modern(code) && code != code::UNSUPPORTED_PROTOCOL_VERSION;
            return if ours { Err(Reject::upstream(UpstreamFault::BadAnswer, true)) } else { Ok(None) };
        }
        let Ok(described) = Described::from_discover(&message.result().unwrap_or_default()) else {
            return Ok(None);
        };
        let saw = format!("{} without sessions", Revision::V2026_07_28.as_str());
        let sight = match self.wants_tools() {
            false => Sight::good(saw),
            true => {
                let id = Id::number(2);
                let heard = self.post("tools/list", stateless_list(&id)).await?;
                tools(saw, self.answer(heard, &id).await?)
            }
        };
        Ok(Some((sight, described)))
    }

    /// None where the server does not know `initialize` over Streamable HTTP.
    async fn initialize(&mut self) -> Result<Option<Sight>, Reject> {
        self.revision = None;
        let id = Id::number(1);
        let heard =
            self.post("initialize", initialize_request(&id, &client(), Revision::LATEST_LEGACY)).await?;
        let message = match self.answer(heard, &id).await? {
            Answered::Message(message) => message,
            Answered::Refused(status) => return refused(status).map(|()| None),
            Answered::Nothing => return Ok(None),
        };
        if message.kind() == Kind::Error {
            return Ok(None);
        }
        let described = Described::from_initialize(&message.result().unwrap_or_default())
            .map_err(|_| Reject::upstream(UpstreamFault::BadAnswer, true))?;
        self.revision = Some(described.revision);
        let told = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        self.post("notifications/initialized", told).await?;
        let with = if self.session.is_some() { "with a session" } else { "without a session" };
        let saw = format!("{} {with}", described.revision.as_str());
        let id = Id::number(2);
        let heard = self.post("ping", bare("ping", &id)).await?;
        let sight = pinged(saw, self.answer(heard, &id).await?);
        if sight.finding != Finding::Good || !self.wants_tools() {
            return Ok(Some(sight));
        }
        let id = Id::number(3);
        let heard = self.post("tools/list", bare("tools/list", &id)).await?;
        Ok(Some(tools(sight.saw, self.answer(heard, &id).await?)))
    }

    /// HTTP+SSE: its session is its stream, which ends when it is let go.
    async fn listen(&mut self) -> Result<Sight, Reject> {
        let (upstream, eras) = (&self.means.upstream, &self.means.shared.eras);
        let back = backs::open(upstream, eras, self.permit, &client()).await?;
        let saw = format!("{} on HTTP+SSE", back.described.revision.as_str());
        let permit = self.permit;
        let asked = async |method: &'static str| {
            let id = back.fresh_id();
            match back.ask(upstream, permit, &id, bare(method, &id)).await {
                Ok(inbox) => read(inbox, &id).await.map(Answered::Message),
                Err(Missed::Answered(message)) => Ok(Answered::Message(message)),
                Err(Missed::Lost) => Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
                Err(Missed::Reject(reject)) => Err(reject),
            }
        };
        let sight = pinged(saw, asked("ping").await?);
        if sight.finding != Finding::Good || !self.wants_tools() {
            return Ok(sight);
        }
        Ok(tools(sight.saw, asked("tools/list").await?))
    }

    async fn post(&mut self, method: &'static str, body: Bytes) -> Result<Heard, Reject> {
        let mut headers = self.headers();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.revision.is_some_and(Revision::is_modern) {
            headers.insert(MCP_METHOD, HeaderValue::from_static(method));
        }
        let outgoing = Outgoing {
            method: HttpMethod::POST,
            headers,
            body,
            endpoint: Some(self.endpoint),
            path: None,
            manner: Manner::Looks,
        };
        let answer = self.means.upstream.call(self.permit, outgoing).await?;
        if self.session.is_none() && method == "initialize" {
            self.session = answer.headers.get(MCP_SESSION_ID).cloned();
        }
        Heard::read(answer).await
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        if let Some(revision) =
            self.revision.filter(|revision| revision.is_modern() || revision.has_version_header())
        {
            headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(revision.as_str()));
        }
        if let Some(session) = &self.session {
            headers.insert(MCP_SESSION_ID, session.clone());
        }
        headers
    }

    async fn answer(&self, heard: Heard, id: &Id) -> Result<Answered, Reject> {
        match heard {
            Heard::Accepted => Ok(Answered::Nothing),
            Heard::Refused { message: Some(message), status } if !is_busy(status) => {
                Ok(Answered::Message(message))
            }
            Heard::Refused { status, .. } => Ok(Answered::Refused(status)),
            Heard::Inbox(inbox) => read(inbox, id).await.map(Answered::Message),
        }
    }

    /// Ends the session, if there is one. A server that has no such thing says 405, and that is well.
    async fn end(&mut self) {
        if self.session.is_none() {
            return;
        }
        let headers = self.headers();
        let outgoing = Outgoing {
            method: HttpMethod::DELETE,
            headers,
            body: Bytes::new(),
            endpoint: Some(self.endpoint),
            path: None,
            manner: Manner::Looks,
        };
        match timeout(END_TIME, self.means.upstream.call(self.permit, outgoing)).await {
            Ok(Ok(answer)) => answer.body.recycle(),
            _ => tracing::debug!("the session of a check could not be ended"),
        }
    }
}

/// What came of a question.
enum Answered {
    /// A result or an error.
    Message(Box<Message>),
    /// An HTTP status without a message.
    Refused(StatusCode),
    /// The server took it, and said nothing.
    Nothing,
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429)
}

/// Whether a status says that the server does not know what it was asked: then another era is tried.
fn refused(status: StatusCode) -> Result<(), Reject> {
    if is_foreign(status.as_u16()) { Ok(()) } else { Err(Reject::upstream(UpstreamFault::Failed, true)) }
}

async fn read(mut inbox: Inbox, id: &Id) -> Result<Box<Message>, Reject> {
    loop {
        match inbox.next().await.map_err(|fault| Reject::upstream(fault, true))? {
            None => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
            Some(message)
                if message.id() == Some(id) && matches!(message.kind(), Kind::Response | Kind::Error) =>
            {
                inbox.done();
                return Ok(Box::new(message));
            }
            Some(_) => {}
        }
    }
}

fn pinged(saw: String, answered: Answered) -> Sight {
    match answered {
        Answered::Message(message) if message.kind() == Kind::Response => Sight::good(saw),
        // It is not for us to mark a server down for what it never offered.
        Answered::Message(message) if message.error_code() == Some(code::METHOD_NOT_FOUND) => {
            Sight::good(format!("{saw}, does not know ping"))
        }
        Answered::Message(message) => {
            let code = message.error_code().unwrap_or_default();
            Sight::poor("ping_failed", format!("{saw}, ping answered with error {code}"))
        }
        Answered::Refused(status) => {
            Sight::poor("ping_failed", format!("{saw}, ping answered with status {}", status.as_u16()))
        }
        Answered::Nothing => Sight::poor("ping_failed", format!("{saw}, ping was not answered")),
    }
}

#[derive(Deserialize)]
struct Listed {
    tools: Vec<IgnoredAny>,
    #[serde(rename = "nextCursor")]
    next: Option<IgnoredAny>,
}

/// A server may offer nothing, and be well: it is said how much was seen.
fn tools(saw: String, answered: Answered) -> Sight {
    let failed = |what: String| Sight::poor("tools_list_failed", format!("{saw}, tools/list {what}"));
    let message = match answered {
        Answered::Message(message) => message,
        Answered::Refused(status) => return failed(format!("answered with status {}", status.as_u16())),
        Answered::Nothing => return failed("was not answered".into()),
    };
    if let Some(error) = message.error_code().filter(|_| message.kind() == Kind::Error) {
        return match error == code::METHOD_NOT_FOUND {
            true => Sight::good(format!("{saw}, does not know tools/list")),
            false => failed(format!("answered with error {error}")),
        };
    }
    match serde_json::from_slice::<Listed>(&message.result().unwrap_or_default()) {
        Ok(Listed { tools, next }) => {
            let more = if next.is_some() { " on the first page" } else { "" };
            let count = match tools.len() {
                0 => "no tools".to_owned(),
                1 => "1 tool".to_owned(),
                many => format!("{many} tools"),
            };
            Sight::good(format!("{saw}, {count}{more}"))
        }
        Err(_) => failed("gave no list".into()),
    }
}

fn client() -> Client {
    Client { capabilities: Bytes::from_static(b"{}"), info: Some(waffles()) }
}

fn bare(method: &str, id: &Id) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","id":{},"method":"{method}"}}"#, id.as_json()).into()
}

/// A stateless request says with each message what the client is.
fn stateless_list(id: &Id) -> Bytes {
    let discover = discover_request(id, &client());
    let text = String::from_utf8_lossy(&discover);
    text.replacen("\"server/discover\"", "\"tools/list\"", 1).into()
}
