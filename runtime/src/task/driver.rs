//! Periodic work: the driver owns period, poke, one at a time, drain, and the last report, which
//! the admin port shows.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::drain::Drain;

/// The wait after a first panic; it doubles up to [`BACK_OFF_MAX`].
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// A job that may run at any moment, any number of times, to the same effect. It takes no input:
/// what there is to do, it finds out.
pub trait Task: Send + 'static {
    /// Its name in logs and on the admin port.
    const NAME: &'static str;
    /// What one run did; the admin port shows the last.
    type Report: Serialize + Send;
    /// One run.
    fn activate(&mut self) -> impl Future<Output = Self::Report> + Send;
}

/// Runs a [`Task`] at once, then after every period or poke, never twice at a time, until the drain.
#[derive(Debug)]
pub struct Driver<T> {
    task: T,
    period: Duration,
    poke: Arc<Notify>,
}

impl<T: Task> Driver<T> {
    /// A driver that has not started.
    #[must_use]
    pub fn new(task: T, period: Duration) -> Self {
        Self { task, period, poke: Arc::new(Notify::new()) }
    }

    /// A handle that wakes the task early.
    #[must_use]
    pub fn poker(&self) -> Poker {
        Poker { poke: self.poke.clone() }
    }

    /// Starts the task, entered in `tasks`.
    pub fn spawn(self, tasks: &Tasks, drain: Drain) -> JoinHandle<()> {
        let entry = tasks.enter(T::NAME, self.period);
        super::spawn(T::NAME, self.run(entry, drain))
    }

    async fn run(mut self, entry: Arc<Mutex<Status>>, drain: Drain) {
        let mut back_off = BACK_OFF;
        while !drain.is_started() {
            let Some(panicked) = self.activate(&entry, &drain).await else { return };
            let wait = async {
                if panicked {
                    // A poke does not shorten this: a job that always panics must not spin.
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                    return;
                }
                back_off = BACK_OFF;
                tokio::select! {
                    () = tokio::time::sleep(self.period) => {}
                    () = self.poke.notified() => {}
                }
            };
            tokio::select! {
                biased;
                () = drain.started() => return,
                () = wait => {}
            }
        }
    }

    /// One run, which the drain waits for: whether it panicked, or `None` if it was cut off.
    async fn activate(&mut self, entry: &Mutex<Status>, drain: &Drain) -> Option<bool> {
        let _hold = drain.hold();
        let started = Instant::now();
        entry.lock().begin();
        let result = tokio::select! {
            biased;
            () = drain.forced() => return None,
            result = AssertUnwindSafe(self.task.activate()).catch_unwind() => result,
        };
        let report = match result {
            Ok(report) => Some(serde_json::to_value(report).unwrap_or_else(|error| error.to_string().into())),
            Err(panic) => {
                super::report_panic(panic.as_ref());
                None
            }
        };
        let panicked = report.is_none();
        entry.lock().finish(started.elapsed(), report);
        Some(panicked)
    }
}

/// Wakes one task early. Pokes while it runs lead to one more run, not to many.
#[derive(Debug, Clone)]
pub struct Poker {
    poke: Arc<Notify>,
}

impl Poker {
    /// Wakes the task.
    pub fn poke(&self) {
        self.poke.notify_one();
    }
}

/// The periodic tasks of this process and how each last went.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    entries: Arc<Mutex<Vec<Arc<Mutex<Status>>>>>,
}

impl Tasks {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All of them, as the admin port shows them.
    #[must_use]
    pub fn report(&self) -> Value {
        let entries = self.entries.lock().clone();
        let shown = entries.iter().map(|entry| {
            serde_json::to_value(&*entry.lock()).unwrap_or_else(|error| error.to_string().into())
        });
        Value::Array(shown.collect())
    }

    fn enter(&self, name: &'static str, period: Duration) -> Arc<Mutex<Status>> {
        let period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        let entry = Arc::new(Mutex::new(Status { name, period_ms, ..Status::default() }));
        self.entries.lock().push(entry.clone());
        entry
    }
}

#[derive(Debug, Default, Serialize)]
struct Status {
    name: &'static str,
    period_ms: u64,
    running: bool,
    runs: u64,
    panics: u64,
    /// Wall clock, milliseconds since 1970.
    last_started_ms: Option<u64>,
    last_duration_ms: Option<u64>,
    /// The last run panicked; `last_report` is then of the run before.
    last_panicked: bool,
    last_report: Option<Value>,
}

impl Status {
    fn begin(&mut self) {
        self.running = true;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_started_ms = u64::try_from(now.as_millis()).ok();
    }

    fn finish(&mut self, took: Duration, report: Option<Value>) {
        self.running = false;
        self.runs += 1;
        self.last_duration_ms = u64::try_from(took.as_millis()).ok();
        self.last_panicked = report.is_none();
        match report {
            Some(report) => self.last_report = Some(report),
            None => self.panics += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::drain;

    const PERIOD: Duration = Duration::from_secs(10);

    struct Count {
        runs: Arc<AtomicU64>,
        panics: u64,
    }

    impl Task for Count {
        const NAME: &'static str = "count";
        type Report = u64;

        async fn activate(&mut self) -> u64 {
            let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(run > self.panics, "on purpose");
            tokio::time::sleep(Duration::from_millis(5)).await;
            run
        }
    }

    async fn runs_after(panics: u64, wait: Duration, pokes: usize) -> (u64, Value) {
        let (trigger, drain) = drain::channel(PERIOD);
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicU64::new(0));
        let driver = Driver::new(Count { runs: runs.clone(), panics }, PERIOD);
        let poker = driver.poker();
        let handle = driver.spawn(&tasks, drain);
        tokio::time::sleep(Duration::from_millis(1)).await;
        (0..pokes).for_each(|_| poker.poke());
        tokio::time::sleep(wait).await;
        assert_eq!(trigger.drained().await, drain::Outcome::Clean);
        handle.await.unwrap();
        (runs.load(Ordering::SeqCst), tasks.report())
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_runs_at_once_and_then_by_its_period() {
        let (runs, report) = runs_after(0, PERIOD * 3, 0).await;
        assert_eq!(runs, 3);
        assert_eq!(report[0]["name"], "count");
        assert_eq!(report[0]["last_report"], 3);
        assert_eq!(report[0]["running"], false);
    }

    #[tokio::test(start_paused = true)]
    async fn pokes_during_a_run_lead_to_one_more_run() {
        assert_eq!(runs_after(0, PERIOD / 2, 5).await.0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_restarted_with_back_off() {
        // Runs at 0 s and 1 s panic, the one at 3 s does not.
        let (runs, report) = runs_after(2, Duration::from_secs(4), 3).await;
        assert_eq!(runs, 4, "three attempts and one poked run");
        assert_eq!(report[0]["panics"], 2);
        assert_eq!(report[0]["last_panicked"], false);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_run_and_force_cuts_it_off() {
        struct Endless;
        impl Task for Endless {
            const NAME: &'static str = "endless";
            type Report = ();
            async fn activate(&mut self) {
                std::future::pending().await
            }
        }
        let (trigger, drain) = drain::channel(PERIOD);
        let handle = Driver::new(Endless, PERIOD).spawn(&Tasks::new(), drain);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(trigger.drained().await, drain::Outcome::Forced { held: 1 });
        handle.await.unwrap();
    }
}
