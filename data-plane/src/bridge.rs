//! Lets a client of one era use a server of another, and a client of a federated door any server: one request, asked in
//! the server's words, answered in the client's. The words themselves are `waffles_mcp::translate`; here stands what has
//! to happen between them. `stateless` and `session` each know one kind of server.

pub mod inquiry;
pub mod local;
pub mod parked;
pub mod session;
mod stateless;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use waffles_core::audit::Outcome;
use waffles_mcp::jsonrpc::{error_response, result_response};
use waffles_mcp::listing::renamed;
use waffles_mcp::translate::handshake::Described;
use waffles_mcp::translate::input::{self, InputRequest};
use waffles_mcp::translate::{notice, request, result};
use waffles_mcp::{Head, Id, Kind, Message, Method, Slot, capability, uris};

use crate::flow::{Last, Outbox};
use crate::front::Front;
use crate::listing::visible;
use crate::peers;
use crate::permit::Permit;
use crate::record::{End, Record};
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::stream::end_of;
use crate::tasks;
use crate::upstream::Inbox;
use crate::upstream::backs::Back;
use parked::{Parked, State};

/// How often an open call looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one question may wait for a person's answer.
const ANSWER_TIME: Duration = Duration::from_secs(600);
/// How often a server may ask in one call.
const MAX_ROUNDS: usize = 16;

/// Under which names the client knows what the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// The server's own.
    Own,
    /// Those of a federated door, for the server of this name.
    Federated(String),
}

/// One request of a client, on its way to one server.
pub struct Errand {
    /// The way to servers.
    pub means: Means,
    /// The client.
    pub front: Front,
    /// The right to it.
    pub permit: Permit,
    /// Under which names the client knows things.
    pub naming: Naming,
    /// The request as it came.
    pub message: Message,
    /// Its head, with the server's own name for what it is about.
    pub head: Box<Head>,
    /// The server's own names, where the client's differ.
    pub edits: Vec<(Slot, String)>,
    /// The audit record.
    pub record: Record,
    /// Where messages before the answer go.
    pub out: Outbox,
    /// What the client brought back of an earlier round.
    pub state: Option<State>,
    /// When it must be over.
    pub until: Instant,
    /// Since when a question of the server waits for a person: that time counts for nothing.
    pub asked: Option<Instant>,
    /// How far the server has said that it is.
    pub progress: f64,
}

/// A server, in the era in which it is spoken to.
pub enum Way {
    /// Without a session.
    Stateless(Arc<Described>),
    /// In a session.
    Session(Arc<Back>),
}

/// The answer for the client.
struct Done {
    message: Bytes,
    status: StatusCode,
    end: End,
}

impl Means {
    /// How this server is spoken to for this client: in the client's own era where the server speaks it, else in
    /// whichever it does.
    pub async fn way(&self, front: &Front, permit: &Permit) -> Result<Way, Reject> {
        let server = &permit.entry().server;
        let in_session = !front.is_stateless() && self.shared.eras.seen(server).sessions.is_yes();
        if !in_session && let Some(described) = self.shared.eras.stateless(&self.upstream, permit).await? {
            return Ok(Way::Stateless(described));
        }
        self.back(front, permit).await.map(Way::Session)
    }

    async fn back(&self, front: &Front, permit: &Permit) -> Result<Arc<Back>, Reject> {
        let owner = front.session.as_ref().map(|session| session.nonce);
        self.shared.backs.get(&self.upstream, &self.shared.eras, permit, &front.client, owner).await
    }

    /// What a server says of itself, in whichever era.
    pub async fn describe(&self, front: &Front, permit: &Permit) -> Result<Arc<Described>, Reject> {
        Ok(match self.way(front, permit).await? {
            Way::Stateless(described) => described,
            Way::Session(back) => Arc::new(back.described.clone()),
        })
    }
}

impl Errand {
    /// Runs it to its end, and completes its record.
    pub async fn run(mut self) -> Last {
        let session = self.front.session.clone();
        let running = session.as_ref().zip(self.message.id()).map(|(session, id)| session.run(id));
        let done = match &running {
            None => self.work().await,
            Some(running) => tokio::select! {
                biased;
                () = running.cancelled() => Err(Reject::Cancelled),
                done = self.work() => done,
            },
        };
        self.close(done)
    }

    async fn work(&mut self) -> Result<Done, Reject> {
        if let Some(name) = self.state.as_ref().and_then(|state| state.call) {
            let parked = self.means.shared.lot.take(name)?;
            return self.go_on(parked).await;
        }
        match self.means.way(&self.front, &self.permit).await? {
            Way::Stateless(described) => self.ask_stateless(&described).await,
            Way::Session(back) => self.ask_in_session(back).await,
        }
    }

    fn close(&mut self, done: Result<Done, Reject>) -> Last {
        self.record.note_answered();
        match done {
            Ok(Done { message, status, end }) => {
                self.record.note_bytes(message.len());
                self.record.finish(End { status: status.as_u16(), ..end });
                Last { message: Some(message), status }
            }
            // Nobody waits for an answer any more [2025-11-25 basic/utilities/cancellation].
            Err(Reject::Cancelled) => {
                let reason = Reject::Cancelled.reason();
                self.record.finish(End { outcome: Outcome::Cancelled, status: 200, code: 0, reason });
                Last { message: None, status: StatusCode::OK }
            }
            Err(reject) => {
                if !reject.rule().is_empty() {
                    self.record.note_rule(reject.rule());
                }
                let message = reject.message(self.message.id(), self.record.id());
                let status = reject.status();
                self.record.note_bytes(message.len());
                self.record.refuse(&reject, status.as_u16());
                Last { message: Some(message), status }
            }
        }
    }

    /// The next message of the server, within the limits of time, and for as long as the client may hear it.
    async fn hear(&mut self, inbox: &mut Inbox) -> Result<Option<Message>, Reject> {
        use futures_util::FutureExt as _;
        let fault = |fault| Reject::upstream(fault, true);
        if self.asked.is_some() {
            inbox.waits_for_a_person();
        }
        if let Some(next) = inbox.next().now_or_never() {
            return next.map_err(fault);
        }
        let quiet_until = Instant::now() + self.permit.entry().server.spec.timeouts.idle;
        loop {
            let now = Instant::now();
            if (now >= self.until || now >= quiet_until) && self.asked.is_none() {
                return Err(fault(inbox.failed(UpstreamFault::TimedOut)));
            }
            if let Ok(next) = timeout(LOOK_EVERY, inbox.next()).await {
                return next.map_err(fault);
            }
            let current = self.means.current.load();
            let renewed = self.permit.renewed(&current);
            self.permit = renewed.ok_or_else(|| Reject::Forbidden("revoked while open".into()))?;
        }
    }

    /// A notification of the server, as far as it is for this client's request.
    async fn pass_on(&mut self, message: &Message, token: &Id) {
        let bytes = match Method::parse(message.method().unwrap_or_default()) {
            Method::Progress => {
                let ours = message.raw(Slot::ProgressToken).and_then(|raw| Id::from_json(&raw));
                let progress = progress_of(message);
                match (&self.head.progress_token, ours.as_ref() == Some(token)) {
                    // It must grow [2025-11-25 basic/utilities/progress]: what was said before is not said again.
                    (Some(_), true) if progress <= self.progress => {
                        return self.drop_quietly("progress_not_growing");
                    }
                    (Some(own), true) => {
                        self.progress = progress;
                        notice::with_progress_token(message, &String::from_utf8_lossy(own))
                    }
                    _ => return self.drop_quietly("progress_of_nobody"),
                }
            }
            Method::LoggingMessage => {
                let level = message.text(Slot::Level).and_then(|level| notice::level_rank(&level));
                let wanted = self.front.log_level.as_deref().and_then(notice::level_rank);
                let wanted = match (wanted, self.front.is_stateless()) {
                    (Some(wanted), _) => wanted,
                    // Who did not ask for any gets none [2026-07-28 basic/index#meta]; in a session the server decides.
                    (None, true) => return self.drop_quietly("log_not_wanted"),
                    (None, false) => 0,
                };
                if level.is_some_and(|level| level < wanted) {
                    return self.drop_quietly("log_not_wanted");
                }
                message.rewrite()
            }
            // Those have streams of their own in the stateless revision.
            Method::ToolsListChanged
            | Method::PromptsListChanged
            | Method::ResourcesListChanged
            | Method::ResourcesUpdated
            | Method::ElicitationCompleted
            | Method::Cancelled
            | Method::TasksStatus
            | Method::TasksChanged
                if self.front.is_stateless() =>
            {
                return self.drop_quietly("notification_of_another_era");
            }
            Method::Cancelled | Method::SubscriptionsAcknowledged => return,
            Method::ResourcesUpdated => {
                let uri = message.text(Slot::Uri).map(|uri| self.public_uri(&uri)).unwrap_or_default();
                message.rewrite_with(None, &[(Slot::Uri, &uri)])
            }
            _ => message.rewrite(),
        };
        self.record.note_bytes(bytes.len());
        self.out.send(bytes).await;
    }

    fn drop_quietly(&self, reason: &'static str) {
        self.record.metrics().dropped(reason);
    }

    fn public_uri(&self, uri: &str) -> String {
        match &self.naming {
            Naming::Own => uri.to_owned(),
            Naming::Federated(server) => uris::wrap(server, uri),
        }
    }

    /// Whether the client said that it can be asked this.
    fn can_ask(&self, request: &InputRequest) -> bool {
        capability::allows(&self.front.client.capabilities, &request.method, &request.params)
    }

    /// Sends a question to a session client; its answer comes where this returns to.
    async fn ask_client(&mut self, request: &InputRequest) -> Option<oneshot::Receiver<Message>> {
        let session = self.front.session.clone()?;
        let id = Id::string(&self.question_id(session.count()));
        let answer = session.ask(id.clone());
        let elicitation = format!("{:032x}", session.nonce ^ u128::from(session.count()));
        let question = input::server_request(&id, request, self.front.revision, &elicitation);
        self.asked.get_or_insert_with(Instant::now);
        self.out.send(question).await;
        Some(answer)
    }

    /// The id of a question. The answer may reach another proxy of the group, which must know whose it is.
    fn question_id(&self, number: u64) -> String {
        let snapshot = self.means.current.load();
        let ring = snapshot.settings().map(|settings| &settings.seal);
        let mark =
            ring.zip(self.means.shared.address.as_deref()).and_then(|(ring, own)| peers::mark(ring, own));
        match mark {
            Some(mark) => format!("waffles-{number}.{mark}"),
            None => format!("waffles-{number}"),
        }
    }

    /// The answer in the client's words.
    fn finish(&mut self, message: &Message, info: Option<&Bytes>) -> Result<Done, Reject> {
        let bad = |_| Reject::upstream(UpstreamFault::BadAnswer, true);
        let id = self.message.id().cloned().ok_or(Reject::Internal("request_without_id"))?;
        let method = &self.head.method;
        let end = end_of(message);
        let stateless = self.front.is_stateless();
        if let Some(error) = message.error() {
            if stateless && let Some(requests) = result::url_elicitations(&error) {
                let bytes = input::input_required(&requests, None);
                return Ok(Done::ok(result_response(&id, &bytes), End::default()));
            }
            let error = match stateless {
                true => result::error_for_stateless(&error),
                false => result::error_for_session(&error, self.front.revision),
            };
            let unknown = message.error_code() == Some(waffles_mcp::jsonrpc::code::METHOD_NOT_FOUND);
            let foreign = stateless && unknown && matches!(method, Method::Other(_));
            let status = if foreign { StatusCode::NOT_FOUND } else { StatusCode::OK };
            return Ok(Done { message: raw_error(&id, &error), status, end });
        }
        let mut bytes = message.result().unwrap_or_default();
        self.record.capture_response(self.permit.entry(), Some(&bytes));
        if stateless && let Some(own) = message.text(Slot::ResultTaskId) {
            let snapshot = self.means.current.load();
            let settings = snapshot.settings().ok_or(Reject::NotReady)?;
            let public = tasks::public(&settings.seal, &self.permit, &own).unwrap_or_default();
            bytes = renamed(&bytes, "taskId", &public);
        }
        if let Naming::Federated(server) = &self.naming {
            let wrap = |uri: &str| Some(uris::wrap(server, uri));
            bytes = uris::map_uris(method, &bytes, &wrap).map_err(bad)?.unwrap_or(bytes);
        }
        if *method == Method::ToolsList {
            self.record.note_tools(self.permit.entry(), &bytes);
        }
        if let Some(visible) = visible(&self.permit, Some(method), &bytes, stateless).map_err(bad)? {
            bytes = visible.into();
        }
        let bytes = match stateless {
            true => result::for_stateless(method, &bytes, info.map(Bytes::as_ref)).map_err(bad)?,
            false => result::for_session(method, &bytes, self.front.revision).map_err(bad)?,
        };
        Ok(Done::ok(result_response(&id, &bytes), end))
    }

    /// Asks the client of the stateless revision to come back with answers.
    fn need_input(&self, requests: &[InputRequest], state: &State) -> Result<Done, Reject> {
        let id = self.message.id().ok_or(Reject::Internal("request_without_id"))?;
        let snapshot = self.means.current.load();
        let settings = snapshot.settings().ok_or(Reject::NotReady)?;
        let sealed = state.seal(&settings.seal)?;
        let bytes = input::input_required(requests, Some(&sealed));
        Ok(Done::ok(result_response(id, &bytes), End { reason: "input_required", ..End::default() }))
    }

    fn new_state(&self) -> State {
        State::new(&self.permit, &self.head, Utc::now().timestamp())
    }

    /// The changes on the way to a server. Its progress comes under the request's own id.
    fn extra<'a>(&'a self, edits: &'a [(Slot, &'a str)], id: &'a Id) -> request::Extra<'a> {
        request::Extra { edits, progress_token: Some(id.as_json()), ..request::Extra::default() }
    }

    fn edits(&self) -> Vec<(Slot, &str)> {
        self.edits.iter().map(|(slot, text)| (*slot, text.as_str())).collect()
    }

    /// The server has its answers, so what happens now is its own affair again, and its time limits run on.
    fn goes_on(&mut self) {
        if let Some(since) = self.asked.take() {
            self.until += since.elapsed();
        }
    }

    /// A question's answer, or none where the client took too long or is gone.
    async fn answered(answer: oneshot::Receiver<Message>) -> Option<Message> {
        timeout(ANSWER_TIME, answer).await.ok()?.ok()
    }
}

impl Done {
    fn ok(message: Bytes, end: End) -> Self {
        Self { message, status: StatusCode::OK, end }
    }
}

/// A response with an error that is JSON text already.
fn raw_error(id: &Id, error: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(error.len() + id.as_json().len() + 36);
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id.as_json().as_bytes());
    out.extend_from_slice(b",\"error\":");
    out.extend_from_slice(error);
    out.push(b'}');
    out.into()
}

/// What a server gets whose question cannot be put to the client.
fn cannot_ask(id: &Id) -> Bytes {
    let code = waffles_mcp::jsonrpc::code::METHOD_NOT_FOUND;
    error_response(Some(id), code, "the client did not declare that it can be asked this", None)
}

/// How far a server says that it is. What cannot be read is as far as before.
fn progress_of(message: &Message) -> f64 {
    #[derive(serde::Deserialize)]
    struct Params {
        progress: f64,
    }
    let params = message.params().unwrap_or_default();
    serde_json::from_slice::<Params>(&params).map_or(f64::NEG_INFINITY, |params| params.progress)
}

fn is_answer(message: &Message) -> bool {
    matches!(message.kind(), Kind::Response | Kind::Error)
}
