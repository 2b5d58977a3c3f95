//! Readiness: a program is ready when every gate it made is open.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// All gates of a program; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Gates {
    shared: Arc<Shared>,
}

impl Gates {
    /// None yet, which counts as ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more gate, closed. Name what is waited for: `snapshot`, `database`.
    #[must_use]
    pub fn gate(&self, name: &'static str) -> Gate {
        let mut states = self.shared.states.lock();
        let index = states.len();
        states.push(State { name, open: false });
        drop(states);
        self.shared.changed();
        Gate { index, shared: self.shared.clone() }
    }

    /// Not ready any more, for good: the first step of a drain. Shows as `draining`.
    pub fn drain(&self) {
        self.shared.states.lock().push(State { name: "draining", open: false });
        self.shared.changed();
    }

    /// The gates that are not open.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.shared.states.lock().iter().filter(|state| !state.open).map(|state| state.name).collect()
    }

    /// Whether all are open.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.states.lock().iter().all(|state| state.open)
    }

    /// Resolves when all are open, at once if they are.
    pub async fn ready(&self) {
        let mut version = self.shared.version.subscribe();
        while !self.is_ready() {
            version.changed().await.expect("the sender lives in the same value");
        }
    }
}

/// One thing a program needs before it is ready.
#[derive(Debug, Clone)]
pub struct Gate {
    index: usize,
    shared: Arc<Shared>,
}

impl Gate {
    /// What was waited for is there.
    pub fn open(&self) {
        self.set(true);
    }

    /// It is gone again.
    pub fn close(&self) {
        self.set(false);
    }

    fn set(&self, open: bool) {
        if let Some(state) = self.shared.states.lock().get_mut(self.index) {
            state.open = open;
        }
        self.shared.changed();
    }
}

#[derive(Debug, Default)]
struct Shared {
    states: Mutex<Vec<State>>,
    version: watch::Sender<u64>,
}

impl Shared {
    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

#[derive(Debug)]
struct State {
    name: &'static str,
    open: bool,
}
