//! How a process ends: signal, drain, deadline, force. A drain is something that is held: whoever
//! has a [`Hold`] keeps the process alive until it is dropped or the grace period is over.
//!
//! Turning readiness off ([`Gates::drain`](crate::admin::Gates::drain)) and still accepting while
//! load balancers notice comes before [`Trigger::start`] and is the program's own step.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal as listen};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// A drain with its deadline: the [`Trigger`] starts it, every [`Drain`] hears of it.
#[must_use]
pub fn channel(grace: Duration) -> (Trigger, Drain) {
    let (stage, _) = watch::channel(Stage::Serving);
    let shared = Arc::new(Shared {
        stage,
        started: AtomicBool::new(false),
        started_at: OnceLock::new(),
        held: AtomicUsize::new(0),
        emptied: Notify::new(),
        grace,
    });
    (Trigger { shared: shared.clone() }, Drain { shared })
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every hold was dropped in time.
    Clean,
    /// The grace period passed, or someone forced, while this many holds were left.
    Forced {
        /// Holds that were cut off.
        held: usize,
    },
}

/// The end of the channel that starts the drain and waits for it.
#[derive(Debug)]
pub struct Trigger {
    shared: Arc<Shared>,
}

impl Trigger {
    /// Tells everyone to finish. The grace period counts from the first call; later ones do nothing.
    pub fn start(&self) {
        self.shared.started_at.get_or_init(Instant::now);
        self.shared.started.store(true, Ordering::SeqCst);
        self.shared.advance(Stage::Draining);
    }

    /// Ends the grace period now.
    pub fn force(&self) {
        self.start();
        self.shared.advance(Stage::Forced);
    }

    /// Waits until all holds are dropped or the grace period passes, then forces. Starts the drain
    /// if nobody did.
    pub async fn drained(&self) -> Outcome {
        self.start();
        let started_at = *self.shared.started_at.get_or_init(Instant::now);
        tokio::select! {
            biased;
            () = self.shared.emptied() => {
                self.shared.advance(Stage::Drained);
                Outcome::Clean
            }
            () = self.shared.reached(Stage::Forced) => self.cut_off(),
            () = tokio::time::sleep_until(started_at + self.shared.grace) => self.cut_off(),
        }
    }

    /// Like [`Trigger::drained`], and forces at once when another signal arrives.
    pub async fn drained_or_signal(&self, signals: &mut Signals) -> Outcome {
        tokio::select! {
            biased;
            outcome = self.drained() => outcome,
            name = signals.next() => {
                tracing::warn!(signal = name, "second signal, not waiting any longer");
                self.cut_off()
            }
        }
    }

    /// How many holds there are.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    fn cut_off(&self) -> Outcome {
        let held = self.held();
        self.shared.advance(Stage::Forced);
        Outcome::Forced { held }
    }
}

/// The end of the channel that work listens on; cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

impl Drain {
    /// Resolves when the drain starts, at once if it has.
    pub async fn started(&self) {
        self.shared.reached(Stage::Draining).await;
    }

    /// Whether the drain has started; one atomic load.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.shared.started.load(Ordering::Relaxed)
    }

    /// When the grace period is over; none before the drain has started.
    #[must_use]
    pub fn forced_at(&self) -> Option<Instant> {
        self.shared.started_at.get().map(|started| *started + self.shared.grace)
    }

    /// Keeps the process alive until dropped. Two atomic operations, so one a request is fine.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.shared.held.fetch_add(1, Ordering::SeqCst);
        Hold { shared: self.shared.clone() }
    }

    /// How many holds there are.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Resolves when the grace period is over: stop now, finished or not. Never, after a clean drain.
    pub async fn forced(&self) {
        self.shared.reached(Stage::Forced).await;
    }

    /// Resolves when the drain is over, clean or forced.
    pub async fn ended(&self) {
        self.shared.reached(Stage::Drained).await;
    }
}

/// Keeps the process alive while it exists.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let last = self.shared.held.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.shared.started.load(Ordering::SeqCst) {
            self.shared.emptied.notify_waiters();
        }
    }
}

/// SIGTERM and SIGINT. Kept from start to end, so that no signal falls between two waits.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals from the system's default.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for one SIGTERM or SIGINT. A program that also heeds the second keeps [`Signals`].
///
/// # Panics
/// When the system refuses signal handlers.
pub async fn signal() -> &'static str {
    Signals::listen().expect("a process may listen to its own signals").next().await
}

/// Ordered: a later stage includes the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    Drained,
    Forced,
}

#[derive(Debug)]
struct Shared {
    stage: watch::Sender<Stage>,
    started: AtomicBool,
    started_at: OnceLock<Instant>,
    held: AtomicUsize,
    emptied: Notify,
    grace: Duration,
}

impl Shared {
    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let later = *stage < to;
            if later {
                *stage = to;
            }
            later
        });
    }

    async fn reached(&self, wanted: Stage) {
        let mut stage = self.stage.subscribe();
        stage.wait_for(|stage| *stage >= wanted).await.expect("the sender lives in the same value");
    }

    async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Listening starts before the look, or a hold dropped in between would be missed.
            emptied.as_mut().enable();
            if self.held.load(Ordering::SeqCst) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_ends_at_once() {
        let (trigger, drain) = channel(GRACE);
        let before = Instant::now();
        assert!(!drain.is_started());
        assert_eq!(trigger.drained().await, Outcome::Clean);
        assert!(drain.is_started());
        assert_eq!(before.elapsed(), Duration::ZERO);
        drain.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_keeps_the_process_alive_until_it_is_dropped() {
        let (trigger, drain) = channel(GRACE);
        let hold = drain.hold();
        assert_eq!(drain.held(), 1);
        let before = Instant::now();
        let release = async {
            drain.started().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(hold);
        };
        let (outcome, ()) = tokio::join!(trigger.drained(), release);
        assert_eq!(outcome, Outcome::Clean);
        assert_eq!(before.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_period_counts_from_the_start_and_then_forces() {
        let (trigger, drain) = channel(GRACE);
        let _hold = drain.hold();
        let _other = drain.hold();
        let before = Instant::now();
        trigger.start();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(trigger.drained().await, Outcome::Forced { held: 2 });
        assert_eq!(before.elapsed(), GRACE);
        drain.forced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn forcing_ends_the_wait_at_once() {
        let (trigger, drain) = channel(GRACE);
        let _hold = drain.hold();
        let before = Instant::now();
        let (outcome, ()) = tokio::join!(trigger.drained(), async { trigger.force() });
        assert_eq!(outcome, Outcome::Forced { held: 1 });
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_second_signal_forces_at_once() {
        let kill = || async {
            let pid = std::process::id().to_string();
            let status = tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await;
            assert!(status.unwrap().success());
        };
        let mut signals = Signals::listen().unwrap();
        let (trigger, drain) = channel(GRACE);
        let _hold = drain.hold();
        kill().await;
        assert_eq!(signals.next().await, "SIGTERM");
        let (outcome, ()) = tokio::join!(trigger.drained_or_signal(&mut signals), kill());
        assert_eq!(outcome, Outcome::Forced { held: 1 });
        drain.forced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_drain_never_forces() {
        let (trigger, drain) = channel(GRACE);
        trigger.drained().await;
        assert!(tokio::time::timeout(GRACE * 2, drain.forced()).await.is_err());
    }
}
