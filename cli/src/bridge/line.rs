//! One program's conversation: who waits for which answer, and where what it says of its own accord goes.
//!
//! On standard streams nothing says which request a message belongs to, but for answers (by id), progress (by token) and
//! subscriptions (by tag). In a session the rest goes to the newest call that waits, for all calls are one client's. In a
//! shared program, where calls are of different clients, ids and tokens are replaced, and what cannot be told apart is
//! not passed on [2026-07-28 basic/transports/stdio].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::message::{self, Kind, Message};
use super::process::{Command, Lines, Process};
use crate::output::{clean, note};

/// Requests that wait for an answer of one program.
const MOST_PENDING: usize = 256;
/// Messages that wait for one reader. The program waits for the reader while it is full, but not for long.
const QUEUE: usize = 64;
/// How long a reader may hold up its program, before it is taken for gone.
const STALL: Duration = Duration::from_secs(5);
/// Messages that wait for somebody to listen; what comes on top is dropped.
const MOST_WAITING: usize = QUEUE;
/// How much of a line that is no message is shown.
const SHOWN: usize = 200;

/// Why a message does not reach the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The program has ended.
    #[error("the program has ended")]
    Ended,
    /// It has too much to do.
    #[error("the program has too many requests waiting")]
    Busy,
    /// The id is that of another request under way.
    #[error("another request with this id is under way")]
    SameId,
}

/// What a program says to one reader.
#[derive(Debug)]
pub(super) enum Said {
    /// Something on the way.
    Part(String),
    /// The answer, with the code where it is an error.
    Answer(String, Option<i64>),
}

impl Said {
    /// The message.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Part(text) | Self::Answer(text, _) => text,
        }
    }
}

/// Somebody who waits for an answer.
#[derive(Debug)]
struct Pending {
    /// The client's id, as it was written.
    id: String,
    /// The client's progress token, as it was written.
    token: Option<String>,
    reader: mpsc::Sender<Said>,
    /// Whether the program may ask the client something for it.
    may_ask: bool,
    /// Questions that are not answered yet.
    questions: BTreeSet<String>,
    wants_logs: bool,
}

#[derive(Debug)]
struct State {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    listener: Option<mpsc::Sender<Said>>,
    waiting: VecDeque<String>,
    used: Instant,
    over: bool,
}

/// A running program and those who talk to it.
#[derive(Debug)]
pub(super) struct Line {
    shared: bool,
    process: Process,
    started: Instant,
    state: Mutex<State>,
    /// Everybody has been told that it is over.
    pub(super) over: CancellationToken,
}

impl Line {
    /// Starts the program: for one session, or for all stateless requests.
    pub(super) fn start(
        command: &Command,
        name: &str,
        shared: bool,
        tracker: &TaskTracker,
    ) -> anyhow::Result<Arc<Self>> {
        let (process, lines) = command.start(name, tracker)?;
        let state = State {
            next: 1,
            pending: BTreeMap::new(),
            listener: None,
            waiting: VecDeque::new(),
            used: Instant::now(),
            over: false,
        };
        let over = CancellationToken::new();
        let line = Self { shared, process, started: Instant::now(), state: Mutex::new(state), over };
        let line = Arc::new(line);
        tracker.spawn(Arc::clone(&line).run(lines));
        Ok(line)
    }

    /// Ends the program.
    pub(super) fn stop(&self) {
        self.process.stop.cancel();
    }

    /// Whether it still takes messages.
    pub(super) fn is_open(&self) -> bool {
        !self.state.lock().over && !self.process.stop.is_cancelled()
    }

    /// Whether it ended without being told to.
    pub(super) fn ended_unasked(&self) -> bool {
        self.process.unasked.is_cancelled()
    }

    /// How long it has run.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// How long nobody has talked to it; nothing while somebody waits for it or listens.
    pub(super) fn idle(&self) -> Duration {
        let state = self.state.lock();
        let waited_for = state.pending.values().any(|pending| !pending.reader.is_closed());
        let heard = state.listener.as_ref().is_some_and(|listener| !listener.is_closed());
        if waited_for || heard { Duration::ZERO } else { state.used.elapsed() }
    }

    /// Sends a request and gives what is said to it.
    pub(super) async fn ask(self: &Arc<Self>, mut message: Message) -> Result<Answers, Refused> {
        let (reader, receiver) = mpsc::channel(QUEUE);
        let order = self.expect(&message, reader)?;
        let answers = Answers { receiver, line: Arc::clone(self), order };
        if self.shared {
            let own = order.to_string();
            let replaced = message.set_id(&own).and_then(|()| match message.progress_token() {
                Some(_) => message.set_progress_token(&own),
                None => Ok(()),
            });
            replaced.map_err(|_| Refused::Busy)?;
        }
        self.send(&message).await?;
        Ok(answers)
    }

    fn expect(&self, message: &Message, reader: mpsc::Sender<Said>) -> Result<u64, Refused> {
        let mut state = self.state.lock();
        if state.over {
            return Err(Refused::Ended);
        }
        let id = message.id().unwrap_or_default().to_owned();
        if !self.shared
            && state.pending.values().any(|pending| pending.id == id && !pending.reader.is_closed())
        {
            return Err(Refused::SameId);
        }
        // Nobody waits any more for those, whether the program answers or not.
        if state.pending.len() >= MOST_PENDING {
            state.pending.retain(|_, pending| !pending.reader.is_closed());
        }
        if state.pending.len() >= MOST_PENDING {
            return Err(Refused::Busy);
        }
        let order = state.next;
        state.next += 1;
        state.used = Instant::now();
        let may_ask = matches!(message.method(), "tools/call" | "prompts/get" | "resources/read");
        let (token, wants_logs) = (message.progress_token(), message.wants_logs());
        let pending = Pending { id, token, reader, may_ask, questions: BTreeSet::new(), wants_logs };
        state.pending.insert(order, pending);
        Ok(order)
    }

    /// Sends a notification, or an answer to the program's own request.
    pub(super) async fn tell(&self, message: &Message) -> Result<(), Refused> {
        {
            let mut state = self.state.lock();
            state.used = Instant::now();
            if let (Kind::Answer, Some(id)) = (message.kind(), message.id()) {
                state.pending.values_mut().for_each(|pending| {
                    pending.questions.remove(id);
                });
            }
        }
        self.send(message).await?;
        if message.method() == "notifications/cancelled"
            && let Some(id) = message.param("requestId")
        {
            // No answer follows, so nobody waits for it.
            self.state.lock().pending.retain(|_, pending| pending.id != id);
        }
        Ok(())
    }

    /// Hears what belongs to no request, in the place of whoever did before.
    pub(super) fn listen(self: &Arc<Self>) -> Result<Answers, Refused> {
        let (reader, receiver) = mpsc::channel(QUEUE);
        let mut state = self.state.lock();
        if state.over {
            return Err(Refused::Ended);
        }
        while let Some(text) = state.waiting.pop_front() {
            // There is room for all that may wait.
            drop(reader.try_send(Said::Part(text)));
        }
        state.listener = Some(reader);
        state.used = Instant::now();
        Ok(Answers { receiver, line: Arc::clone(self), order: 0 })
    }

    async fn send(&self, message: &Message) -> Result<(), Refused> {
        let line = message.line().map_err(|_| Refused::Busy)?;
        match self.process.stdin.send_timeout(line, STALL).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Refused::Ended),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(Refused::Busy),
        }
    }

    async fn run(self: Arc<Self>, mut lines: Lines) {
        while let Some(line) = lines.next().await {
            let messages = match line.trim_start().starts_with('[') {
                // Revision 2025-03-26 has batches.
                true => serde_json::from_str::<Vec<Box<RawValue>>>(&line)
                    .map(|batch| batch.iter().map(|raw| raw.get().to_owned()).collect())
                    .unwrap_or_else(|_| vec![line]),
                false => vec![line],
            };
            for text in messages {
                match Message::parse(&text) {
                    Ok(message) => self.hear(message).await,
                    Err(_) => {
                        let shown: String = clean(&text).chars().take(SHOWN).collect();
                        note(&format!("{} wrote to its output what is no message: {shown}", lines.label()));
                    }
                }
            }
        }
        // The order matters: what is refused after this was not waited for.
        let pending = {
            let mut state = self.state.lock();
            state.over = true;
            state.listener = None;
            std::mem::take(&mut state.pending)
        };
        for pending in pending.into_values() {
            let text = "The program ended before it answered.";
            let answer = message::error(Some(&pending.id), INTERNAL, text, None);
            drop(pending.reader.try_send(Said::Answer(answer, Some(INTERNAL))));
        }
        self.process.gone.cancelled().await;
        self.over.cancel();
    }

    async fn hear(&self, message: Message) {
        match message.kind() {
            Kind::Answer => self.hear_answer(message).await,
            Kind::Request if self.shared => {
                // Servers of the stateless revision ask nothing of their own accord.
                self.refuse(&message, METHOD_NOT_FOUND, "The stateless revision has no requests of servers.");
            }
            Kind::Notification if self.shared => self.hear_shared(message).await,
            Kind::Request | Kind::Notification => self.hear_session(&message).await,
        }
    }

    async fn hear_answer(&self, mut message: Message) {
        let id = message.id().unwrap_or_default();
        let found = {
            let mut state = self.state.lock();
            let order = match self.shared {
                true => id.parse().ok(),
                false => state.pending.iter().find(|(_, pending)| pending.id == id).map(|(order, _)| *order),
            };
            order.and_then(|order| state.pending.remove(&order))
        };
        // An answer to what was cancelled, or a second one: nobody waits for it.
        let Some(pending) = found else { return };
        if self.shared {
            let restored =
                message.set_id(&pending.id).and_then(|()| message.set_result_subscription(&pending.id));
            if restored.is_err() {
                return;
            }
        }
        let code = message.error_code();
        if let Ok(line) = message.line() {
            deliver(&pending.reader, Said::Answer(line, code)).await;
        }
    }

    async fn hear_session(&self, message: &Message) {
        let Ok(line) = message.line() else { return };
        let reader = {
            let mut state = self.state.lock();
            state.used = Instant::now();
            let reader = match (message.kind(), message.method()) {
                (_, "notifications/progress") => {
                    let token = message.param("progressToken");
                    state.pending.values().find(|one| one.token == token).map(|one| one.reader.clone())
                }
                (_, "notifications/message") => {
                    state.pending.values().rfind(|one| !one.reader.is_closed()).map(|one| one.reader.clone())
                }
                (Kind::Request, _) => question_of(&mut state, message.id().unwrap_or_default()),
                _ => None,
            };
            let listener = || state.listener.clone();
            reader.or_else(listener).filter(|reader| !reader.is_closed())
        };
        if let Some(reader) = reader {
            deliver(&reader, Said::Part(line)).await;
            return;
        }
        let kept = {
            let mut state = self.state.lock();
            let room = state.waiting.len() < MOST_WAITING;
            if room {
                state.waiting.push_back(line);
            }
            room
        };
        if !kept && message.kind() == Kind::Request {
            self.refuse(message, INTERNAL, "Nobody listens who could be asked.");
        }
    }

    async fn hear_shared(&self, mut message: Message) {
        let of = |raw: Option<String>| raw.and_then(|raw| raw.parse::<u64>().ok());
        let tag = of(message.subscription());
        let about = match (tag, message.method()) {
            (Some(tag), _) => Some(tag),
            (None, "notifications/progress") => of(message.param("progressToken")),
            (None, "notifications/cancelled") => of(message.param("requestId")),
            (None, "notifications/message") => {
                // A log message names no request. Only while one request alone asks for them is it sure whose it is.
                let state = self.state.lock();
                let mut wanting = state.pending.iter().filter(|(_, pending)| pending.wants_logs);
                wanting.next().map(|(order, _)| *order).filter(|_| wanting.next().is_none())
            }
            _ => None,
        };
        let Some(about) = about else { return };
        if message.method() == "notifications/cancelled" {
            // The program ends a subscription; the end of its stream says so.
            self.state.lock().pending.remove(&about);
            return;
        }
        let found = self
            .state
            .lock()
            .pending
            .get(&about)
            .map(|one| (one.reader.clone(), one.id.clone(), one.token.clone()));
        let Some((reader, id, token)) = found else { return };
        let restored = match (tag, token) {
            (Some(_), _) => message.set_subscription(&id),
            (None, Some(token)) if message.method() == "notifications/progress" => {
                message.set_param("progressToken", &token)
            }
            _ => Ok(()),
        };
        if let (Ok(()), Ok(line)) = (restored, message.line())
            && !deliver(&reader, Said::Part(line)).await
        {
            // Its client does not read: the others must not wait for it.
            self.abandon(about);
        }
    }

    fn refuse(&self, message: &Message, code: i64, text: &str) {
        let answer = message::error(message.id(), code, text, None);
        // Where the queue is full, the program has other things to read first, and asked for nothing that it may.
        drop(self.process.stdin.try_send(answer));
    }

    /// A client has gone away, which in the stateless revision cancels its request. In a session it does not
    /// [2025-11-25 basic/transports].
    fn abandon(&self, order: u64) {
        if self.shared && self.state.lock().pending.remove(&order).is_some() {
            let note = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{order}}}}}"#
            );
            drop(self.process.stdin.try_send(note));
        }
    }
}

/// The reader that a question goes to: the newest call that has none open, else the newest one that may have some.
fn question_of(state: &mut State, question: &str) -> Option<mpsc::Sender<Said>> {
    let open = |pending: &Pending| pending.may_ask && !pending.reader.is_closed();
    let unasked = state.pending.iter().rfind(|(_, one)| open(one) && one.questions.is_empty());
    let order =
        unasked.or_else(|| state.pending.iter().rfind(|(_, one)| open(one))).map(|(order, _)| *order)?;
    let pending = state.pending.get_mut(&order)?;
    pending.questions.insert(question.to_owned());
    Some(pending.reader.clone())
}

/// Hands a message to a reader, who may be slow, but not very.
async fn deliver(reader: &mpsc::Sender<Said>, said: Said) -> bool {
    matches!(timeout(STALL, reader.send(said)).await, Ok(Ok(())))
}

/// JSON-RPC: internal error.
pub(super) const INTERNAL: i64 = -32603;
/// JSON-RPC: method not found.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;

/// What a program says to one request, or to whoever listens.
#[derive(Debug)]
pub(super) struct Answers {
    receiver: mpsc::Receiver<Said>,
    line: Arc<Line>,
    order: u64,
}

impl Answers {
    /// The next message; none at the end.
    pub(super) async fn next(&mut self) -> Option<Said> {
        self.receiver.recv().await
    }

    /// The same, for a body.
    pub(super) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Said>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.line.abandon(self.order);
    }
}
