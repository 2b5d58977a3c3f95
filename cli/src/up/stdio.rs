//! The imported programs of `up`: each under a `wafflectl run` of its own, as if somebody had given that command in
//! another terminal. One that ends is started again, later and later; it never takes the rest of Waffles along.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::child::Program;
use super::{POLL, STOP_MARGIN};
use crate::bridge::backoff::Backoff;
use crate::output::note;
use crate::output::shape::StdioProgram;

/// How long a start of `up` waits for them. The first start of some downloads them, which nobody need wait for.
const WAIT: Duration = Duration::from_secs(10);
/// How long one may take to leave the registry and to end its program.
const GRACE: Duration = Duration::from_secs(10);

/// What has become of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Served,
    Ended,
}

/// All of them.
#[derive(Default)]
pub(super) struct Runs {
    keepers: JoinSet<()>,
    stop: CancellationToken,
    states: Arc<Mutex<BTreeMap<String, State>>>,
    logs: BTreeMap<String, PathBuf>,
}

impl Runs {
    /// Starts one and keeps it running. The program is made anew for each start.
    pub(super) fn add(&mut self, name: &str, program: impl Fn() -> Program + Send + 'static) {
        self.states.lock().insert(name.to_owned(), State::Starting);
        self.logs.insert(name.to_owned(), program().log);
        let (name, states, stop) = (name.to_owned(), Arc::clone(&self.states), self.stop.clone());
        self.keepers.spawn(async move {
            let mut backoff = Backoff::default();
            loop {
                let begun = Instant::now();
                // What goes wrong again and again is said once; the log has the rest.
                let note_state = |state| states.lock().insert(name.clone(), state) != Some(State::Ended);
                if keep(program(), &stop, note_state).await.is_break() {
                    return;
                }
                backoff.note(begun.elapsed());
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.wait()) => {}
                }
            }
        });
    }

    /// Waits until each is served or has failed, for a while, and says what has become of them.
    pub(super) async fn started(&self) -> Vec<StdioProgram> {
        let end = Instant::now() + WAIT;
        let starting = || self.states.lock().values().any(|state| *state == State::Starting);
        while starting() && Instant::now() < end {
            tokio::time::sleep(POLL).await;
        }
        let states = self.states.lock();
        let shown = states.iter().map(|(name, state)| StdioProgram {
            name: name.clone(),
            state: match state {
                State::Starting => "starting",
                State::Served => "served",
                State::Ended => "ended",
            },
            log: self.logs.get(name).map(|path| path.display().to_string()).unwrap_or_default(),
        });
        shown.collect()
    }

    /// Asks all to end, and waits for that.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        while self.keepers.join_next().await.is_some() {}
    }

    /// Ends all at once.
    pub(super) async fn kill(&mut self) {
        // Their processes end with their keepers.
        self.keepers.shutdown().await;
    }
}

/// One run, from its start to its end. Breaks when it was told to end.
async fn keep(
    program: Program,
    stop: &CancellationToken,
    note_state: impl Fn(State) -> bool,
) -> std::ops::ControlFlow<()> {
    let name = program.name.clone();
    let mut child = match program.start() {
        Ok(child) => child,
        Err(error) => {
            if note_state(State::Ended) {
                note(&format!("{name}: {error:#}"));
            }
            return std::ops::ControlFlow::Continue(());
        }
    };
    let ended = async {
        // It says one line when it is registered.
        if child.line().await.is_some() {
            note_state(State::Served);
        }
        child.died().await
    };
    tokio::select! {
        error = ended => {
            if note_state(State::Ended) {
                note(&format!("{error:#}"));
            }
            std::ops::ControlFlow::Continue(())
        }
        () = stop.cancelled() => {
            child.stop(GRACE + STOP_MARGIN).await;
            std::ops::ControlFlow::Break(())
        }
    }
}
