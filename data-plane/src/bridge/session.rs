//! A request to a server of an older revision, in a session. The server may ask in mid-call: a session client is asked at
//! once, for a stateless client the call is parked until it comes back with the answers. To stop it, the server is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::translate::input::{self, InputRequest};
use waffles_mcp::translate::{notice, request};
use waffles_mcp::{Id, Kind, Message, Method};
use waffles_runtime::task;

use super::{Done, Errand, Parked, cannot_ask, is_answer};
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::tasks;
use crate::upstream::Inbox;
use crate::upstream::backs::{Back, Busy, Missed};

/// Questions that come together are put to a stateless client together.
const COLLECT: Duration = Duration::from_millis(20);
/// How often a stream that the server closes early is taken up again, and how long it may want to wait before.
const TAKE_UPS: usize = 8;
const MAX_RETRY: Duration = Duration::from_secs(10);

/// A request under way in a session.
#[derive(Debug)]
pub struct Call {
    sent: Sent,
    inbox: Inbox,
}

/// A request that was sent. Dropped before its answer has come, it is cancelled at the server.
#[derive(Debug)]
struct Sent {
    means: MeansOf,
    back: Arc<Back>,
    permit: Permit,
    id: Id,
    answered: bool,
    _busy: Busy,
}

/// The way to servers, in a value that may print itself.
struct MeansOf(Means);

impl std::fmt::Debug for MeansOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Means")
    }
}

impl Drop for Sent {
    /// [2025-11-25 basic/utilities/cancellation]: a closed connection says nothing to the server.
    fn drop(&mut self) {
        if self.answered || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (means, back, permit) = (self.means.0.clone(), Arc::clone(&self.back), self.permit.clone());
        let body = notice::cancelled(&self.id, "the client has gone");
        task::spawn("cancel a call", async move {
            let told = timeout(Duration::from_secs(5), back.tell(&means.upstream, &permit, body)).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::debug!("a server could not be told that a call is cancelled");
            }
        });
    }
}

impl Errand {
    pub(super) async fn ask_in_session(&mut self, back: Arc<Back>) -> Result<Done, Reject> {
        if tasks::is_about_one(&self.head.method) {
            // The tasks of 2025-11-25 are another protocol under the same name.
            return Err(Reject::MethodNotFound { modern: self.front.is_stateless() });
        }
        let call = match self.start(back).await {
            Ok(call) => call,
            // It did nothing with the request, so it may have it once more, in a session that it knows.
            Err(Missed::Lost) => {
                let back = self.means.back(&self.front, &self.permit).await?;
                match self.start(back).await {
                    Ok(call) => call,
                    Err(Missed::Lost) => return Err(Reject::upstream(UpstreamFault::Failed, true)),
                    Err(Missed::Reject(reject)) => return Err(reject),
                    Err(Missed::Answered(message)) => return self.finish(&message, None),
                }
            }
            Err(Missed::Reject(reject)) => return Err(reject),
            Err(Missed::Answered(message)) => return self.finish(&message, None),
        };
        self.converse(call).await
    }

    async fn start(&mut self, back: Arc<Back>) -> Result<Call, Missed> {
        if let Some(level) = &self.front.log_level {
            back.set_level(&self.means.upstream, &self.permit, level).await;
        }
        let id = back.fresh_id();
        let edits = self.edits();
        let body = request::to_session(&self.message, Some(&id), &self.extra(&edits, &id));
        let (means, permit) = (MeansOf(self.means.clone()), self.permit.clone());
        let _busy = back.busy();
        // The client may go before the server has said a word.
        let mut sent = Sent { means, back, permit, id, answered: false, _busy };
        match sent.back.ask(&self.means.upstream, &self.permit, &sent.id, body).await {
            Ok(inbox) => Ok(Call { sent, inbox }),
            Err(missed) => {
                sent.answered = true;
                Err(missed)
            }
        }
    }

    /// Hears the server out, and gives it what it asks for.
    async fn converse(&mut self, mut call: Call) -> Result<Done, Reject> {
        let mut questions = FuturesUnordered::new();
        let mut taken_up = 0;
        loop {
            let heard = tokio::select! {
                Some((id, answer)) = questions.next(), if !questions.is_empty() => {
                    self.tell(&call, answer_for(&id, answer)).await?;
                    if questions.is_empty() {
                        self.goes_on();
                    }
                    continue;
                }
                heard = self.hear(&mut call.inbox) => heard?,
            };
            let Some(message) = heard else {
                taken_up += 1;
                self.take_up(&mut call, taken_up).await?;
                continue;
            };
            match message.kind() {
                Kind::Notification => self.pass_on(&message, &call.sent.id).await,
                Kind::Request => match self.question(&message) {
                    Question::Answer(bytes) => self.tell(&call, bytes).await?,
                    Question::Put(question) if self.front.is_stateless() => {
                        return self.park(call, question).await;
                    }
                    Question::Put((id, request)) => match self.ask_client(&request).await {
                        Some(answer) => questions.push(async move { (id, Self::answered(answer).await) }),
                        None => self.tell(&call, cannot_ask(&id)).await?,
                    },
                },
                Kind::Response | Kind::Error if message.id() == Some(&call.sent.id) => {
                    return self.answer(call, &message);
                }
                Kind::Response | Kind::Error => self.drop_quietly("answer_to_another_request"),
            }
        }
    }

    fn answer(&mut self, mut call: Call, message: &Message) -> Result<Done, Reject> {
        call.sent.answered = true;
        let info = call.sent.back.described.info.clone();
        self.finish(message, info.as_ref())
    }

    async fn tell(&self, call: &Call, body: Bytes) -> Result<(), Reject> {
        match call.sent.back.tell(&self.means.upstream, &self.permit, body).await {
            Ok(()) => Ok(()),
            Err(Missed::Reject(reject)) => Err(reject),
            Err(Missed::Lost | Missed::Answered(_)) => Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
        }
    }

    /// The server may close a stream before the answer and give the rest to who comes back for it
    /// [2025-11-25 basic/transports#sending-messages-to-the-server].
    async fn take_up(&self, call: &mut Call, times: usize) -> Result<(), Reject> {
        let broke_off = || Reject::upstream(UpstreamFault::BrokeOff, true);
        let resume = call.inbox.resume().clone();
        if times > TAKE_UPS || resume.event_id.is_none() {
            return Err(broke_off());
        }
        let wait = Duration::from_millis(resume.retry.unwrap_or(500));
        sleep(wait.min(MAX_RETRY)).await;
        match call.sent.back.take_up(&self.means.upstream, &self.permit, &resume).await {
            Ok(Some(inbox)) => {
                call.inbox = inbox;
                Ok(())
            }
            Ok(None) | Err(Missed::Lost | Missed::Answered(_)) => Err(broke_off()),
            Err(Missed::Reject(reject)) => Err(reject),
        }
    }

    fn question(&self, message: &Message) -> Question {
        let Some(id) = message.id().cloned() else { return Question::Answer(Bytes::new()) };
        if message.method() == Some(Method::Ping.as_str()) {
            return Question::Answer(result_response(&id, b"{}"));
        }
        match input::from_server_request(&id.text(), message).filter(|request| self.can_ask(request)) {
            Some(request) => Question::Put((id, request)),
            None => Question::Answer(cannot_ask(&id)),
        }
    }

    /// Lets the call wait at the server, and asks the client to come back with answers.
    async fn park(&mut self, mut call: Call, first: (Id, InputRequest)) -> Result<Done, Reject> {
        let mut asked = vec![first];
        while let Ok(heard) = timeout(COLLECT, self.hear(&mut call.inbox)).await {
            let Some(message) = heard? else { break };
            match message.kind() {
                Kind::Notification => self.pass_on(&message, &call.sent.id).await,
                Kind::Request => match self.question(&message) {
                    Question::Answer(bytes) => self.tell(&call, bytes).await?,
                    Question::Put(question) => asked.push(question),
                },
                // It did not wait for what it asked.
                _ if is_answer(&message) && message.id() == Some(&call.sent.id) => {
                    return self.answer(call, &message);
                }
                _ => self.drop_quietly("answer_to_another_request"),
            }
        }
        self.wait(call, name_apart(asked))
    }

    fn wait(&mut self, mut call: Call, asked: Vec<(Id, InputRequest)>) -> Result<Done, Reject> {
        let requests: Vec<_> = asked.iter().map(|(_, request)| request.clone()).collect();
        call.inbox.waits_for_a_person();
        let name = self.means.shared.lot.park(Parked { call, asked, permit: self.permit.clone() })?;
        let owner = self.means.shared.address.clone();
        let mut state = self.new_state();
        (state.owner, state.call) = (owner, Some(name));
        self.need_input(&requests, &state)
    }

    /// The client is back: the server gets its answers, and goes on. What is missing is asked for again.
    pub(super) async fn go_on(&mut self, parked: Parked) -> Result<Done, Reject> {
        let Parked { call, asked, .. } = parked;
        let raw = self.head.input_responses.clone().unwrap_or_else(|| Bytes::from_static(b"{}"));
        let answers =
            input::read_input_responses(&raw).map_err(|_| Reject::BadRequestState("bad_responses"))?;
        let mut missing = Vec::new();
        for (id, request) in asked {
            match answers.iter().find(|(key, _)| *key == request.key) {
                Some((_, answer)) => self.tell(&call, result_response(&id, answer)).await?,
                None => missing.push((id, request)),
            }
        }
        if !missing.is_empty() {
            return self.wait(call, missing);
        }
        self.converse(call).await
    }
}

/// What becomes of a server's request.
enum Question {
    /// It is answered at once.
    Answer(Bytes),
    /// It is put to the client.
    Put((Id, InputRequest)),
}

/// Two questions may have ids that differ in their type alone; their keys must differ.
fn name_apart(mut asked: Vec<(Id, InputRequest)>) -> Vec<(Id, InputRequest)> {
    for (number, (_, request)) in asked.iter_mut().enumerate() {
        request.key = format!("{}-{}", request.method.replace('/', "-"), number + 1);
    }
    asked
}

/// What the server gets for its question.
fn answer_for(id: &Id, answer: Option<Message>) -> Bytes {
    match answer {
        Some(answer) => answer.rewrite_id(id),
        None => waffles_mcp::jsonrpc::error_response(Some(id), -32603, "the client did not answer", None),
    }
}
