//! The bridge of `wafflectl run`: serves a program that speaks MCP on its standard streams as Streamable HTTP. It changes
//! the transport, not the messages: the program is served in the eras that it speaks itself, and the data plane
//! translates between eras as it does for any other server.
//!
//! A program of the session era is run once for each session, because it may keep state. A program of the stateless
//! revision must not draw on earlier requests, so one run of it serves all requests, with ids of the bridge's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use waffles_core::credential::random_text;

use backoff::Backoff;
use line::{Line, Refused, Said};
use message::Message;

pub(crate) mod backoff;
mod http;
mod line;
pub(crate) mod message;
mod probe;
mod process;
mod stream;

pub(crate) use http::{PATH, serve};
pub(crate) use probe::probe;
pub(crate) use process::Command;

/// How long a program may take to answer `initialize`; the first start of some downloads them.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A session that nobody uses is ended, with its program. Longer than the proxy keeps an idle session of its own.
const IDLE: Duration = Duration::from_secs(900);
/// A session that was idle for this long makes room for a new one where there is none.
const SPARE: Duration = Duration::from_secs(30);
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// The longest that a request waits for its program to be started again; what would wait longer is turned away.
const START_WAIT: Duration = Duration::from_secs(5);
/// Letters of a session's id: 190 random bits.
const SESSION_ID: usize = 32;

/// The eras that a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Eras {
    /// `initialize`.
    pub(crate) sessions: bool,
    /// `server/discover`.
    pub(crate) stateless: bool,
}

/// Why a message gets no answer of the program.
#[derive(Debug, thiserror::Error)]
enum Turned {
    /// The program ends again and again; it is started later.
    #[error("the program has ended and is started again in {0:?}")]
    Resting(Duration),
    /// There are as many programs as may be.
    #[error("as many programs run as may be (--max-children)")]
    Full,
    /// It cannot be started, or did not answer `initialize`. Why is said in the log only: callers need not know what
    /// runs here.
    #[error("the program does not start; the log of `wafflectl run` says why")]
    NotStarted(String),
    /// It runs, and does not take the message.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no such session.
    #[error("there is no such session")]
    Unknown,
}

/// One program, behind one address.
pub(crate) struct Bridge {
    /// The server's name, for the log.
    name: String,
    command: Command,
    eras: Eras,
    /// What callers present.
    token: String,
    most_children: usize,
    sessions: Mutex<HashMap<String, Arc<Line>>>,
    shared: tokio::sync::Mutex<Option<Arc<Line>>>,
    backoff: Mutex<Backoff>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Bridge {
    /// A bridge for a program that speaks these eras, for callers who know the token.
    pub(crate) fn new(
        name: &str,
        command: Command,
        eras: Eras,
        token: String,
        most_children: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            command,
            eras,
            token,
            most_children,
            sessions: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            backoff: Mutex::default(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Ends idle sessions until the bridge ends.
    pub(crate) async fn sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP);
        loop {
            interval.tick().await;
            self.sessions.lock().retain(|_, line| {
                let idle = line.idle() >= IDLE;
                if idle {
                    line.stop();
                }
                !idle && line.is_open()
            });
        }
    }

    /// Ends all programs, and waits for that.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.sessions.lock().drain().for_each(|(_, line)| line.stop());
        if let Some(line) = self.shared.lock().await.take() {
            line.stop();
        }
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Starts a session with the client's `initialize`. Gives the session's id, none where the program refuses, and what
    /// the program says to it.
    async fn open(self: &Arc<Self>, initialize: Message) -> Result<(Option<String>, Said), Turned> {
        let id = random_text(SESSION_ID).map_err(|error| Turned::NotStarted(error.to_string()))?;
        self.wait_for_turn().await?;
        let line = {
            let mut sessions = self.sessions.lock();
            sessions.retain(|_, line| line.is_open());
            if sessions.len() >= self.most_children {
                let idlest = sessions.iter().max_by_key(|(_, line)| line.idle());
                let idlest = idlest.filter(|(_, line)| line.idle() >= SPARE).map(|(id, _)| id.clone());
                let line = idlest.and_then(|id| sessions.remove(&id)).ok_or(Turned::Full)?;
                line.stop();
            }
            let line = self.start(false)?;
            sessions.insert(id.clone(), Arc::clone(&line));
            line
        };
        let refused = |turned| {
            line.stop();
            self.sessions.lock().remove(&id);
            turned
        };
        let mut answers = line.ask(initialize).await.map_err(|error| refused(error.into()))?;
        let answer = async {
            while let Some(said) = answers.next().await {
                if let Said::Answer(..) = said {
                    return Some(said);
                }
            }
            None
        };
        match timeout(START_LIMIT, answer).await {
            Ok(Some(Said::Answer(text, None))) => Ok((Some(id), Said::Answer(text, None))),
            Ok(Some(said)) if line.is_open() => {
                refused(Turned::Unknown);
                Ok((None, said))
            }
            Ok(_) => Err(refused(Turned::NotStarted("it ended before it answered".to_owned()))),
            Err(_) => Err(refused(Turned::NotStarted(format!("no answer within {START_LIMIT:?}")))),
        }
    }

    /// A session that is there.
    fn session(&self, id: &str) -> Result<Arc<Line>, Turned> {
        let line = self.sessions.lock().get(id).cloned();
        line.filter(|line| line.is_open()).ok_or(Turned::Unknown)
    }

    /// Ends a session.
    fn close(&self, id: &str) -> Result<(), Turned> {
        let line = self.sessions.lock().remove(id).ok_or(Turned::Unknown)?;
        line.stop();
        Ok(())
    }

    /// The run of the program that serves stateless requests, started again where it has ended.
    async fn shared(self: &Arc<Self>) -> Result<Arc<Line>, Turned> {
        let mut shared = self.shared.lock().await;
        if let Some(line) = shared.as_ref().filter(|line| line.is_open()) {
            return Ok(Arc::clone(line));
        }
        self.wait_for_turn().await?;
        let line = self.start(true)?;
        *shared = Some(Arc::clone(&line));
        Ok(line)
    }

    async fn wait_for_turn(&self) -> Result<(), Turned> {
        let wait = self.backoff.lock().wait();
        if wait > START_WAIT {
            return Err(Turned::Resting(wait));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn start(self: &Arc<Self>, shared: bool) -> Result<Arc<Line>, Turned> {
        if self.stop.is_cancelled() {
            return Err(Turned::NotStarted("the bridge is ending".to_owned()));
        }
        let started = Line::start(&self.command, &self.name, shared, &self.tracker);
        let line = started.map_err(|error| {
            self.backoff.lock().note(Duration::ZERO);
            Turned::NotStarted(format!("{error:#}"))
        })?;
        let (bridge, watched) = (Arc::clone(self), Arc::clone(&line));
        self.tracker.spawn(async move {
            watched.over.cancelled().await;
            if watched.ended_unasked() {
                bridge.backoff.lock().note(watched.age());
            }
        });
        Ok(line)
    }
}
