//! Whether there is room for one more. A thread that lags, too much work in flight and too little memory each turn away
//! what matters least first: clients that listen, then lists, then calls. What is in flight, signs of life and the admin
//! port never wait behind that. The rule is `admission::decide`; this file asks it, on one thread, without a lock.

pub mod admission;
pub mod buffers;
pub mod caps;
pub mod delay;
pub mod memory;
pub mod pace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use waffles_runtime::process::thread_time;

pub use self::admission::{Cause, Priority};
use self::admission::{Load, WHOLE, decide};
pub use self::buffers::{Buffers, Hold};
pub use self::caps::{Caps, Guest};
use self::delay::Lag;
pub use self::memory::{Memory, Stage};
pub use self::pace::Pace;
use crate::metrics::Metrics;
use crate::reject::Reject;

/// How often a busy thread looks how late it is.
const TICK: Duration = Duration::from_millis(5);
/// The same while it turns work away, or did of late: what it turns away shall follow its queue closely.
const SHORT_TICK: Duration = Duration::from_millis(1);
/// How often gauges are brought up to date.
const GAUGES: Duration = Duration::from_secs(1);
/// After so many ticks without a request a thread stops looking, until one comes: idleness shall cost nothing.
const QUIET: u32 = 40;

/// What is the same for all threads.
pub struct Common {
    /// The process's memory.
    pub memory: Arc<Memory>,
    /// How late a thread may be for long.
    most_lag: Duration,
    /// Exchanges in flight, on each thread.
    most_in_flight: usize,
    metrics: Metrics,
    threads: Mutex<Vec<Arc<Overload>>>,
}

impl Common {
    /// Of a process with so many threads.
    pub fn new(
        memory: Arc<Memory>,
        most_lag: Duration,
        most_in_flight: usize,
        threads: usize,
        metrics: Metrics,
    ) -> Self {
        let most_in_flight = most_in_flight.div_ceil(threads.max(1)).max(1);
        Self { memory, most_lag, most_in_flight, metrics, threads: Mutex::default() }
    }

    /// Looks after memory, and keeps the gauges, for as long as the process runs. `trim` gives up what can be had again.
    pub async fn keep(&self, trim: impl Fn()) {
        let measure = async {
            loop {
                self.measure();
                tokio::time::sleep(GAUGES).await;
            }
        };
        tokio::join!(self.memory.keep(trim), measure);
    }

    /// Brings the gauges up to date.
    fn measure(&self) {
        let (mut in_flight, mut pressure, mut lag) = (0, 0, 0);
        for thread in self.threads.lock().iter() {
            in_flight += thread.in_flight.load(Relaxed);
            pressure = thread.pressure.load(Relaxed).max(pressure);
            lag = thread.lag_micros.load(Relaxed).max(lag);
        }
        let metrics = &self.metrics.overload;
        metrics.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        metrics.pressure.set(f64::from(pressure) / f64::from(WHOLE));
        metrics.lag.set(f64::from(lag) / 1e6);
        metrics.stage.set(self.memory.stage() as i64);
        metrics.buffered.set(i64::try_from(self.memory.buffers().used()).unwrap_or(i64::MAX));
    }

    /// For operators.
    pub fn report(&self) -> Value {
        let threads: Vec<_> = self.threads.lock().iter().map(|thread| thread.report()).collect();
        json!({"threads": threads, "memory": self.memory.report(), "most_in_flight_per_thread": self.most_in_flight})
    }
}

/// One thread's view.
pub struct Overload {
    common: Arc<Common>,
    /// How much is turned away for the thread's lag, in parts of [`WHOLE`].
    pressure: AtomicU32,
    lag_micros: AtomicU32,
    in_flight: AtomicUsize,
    dice: AtomicU32,
    /// A request has come since the last tick.
    touched: AtomicBool,
    asleep: AtomicBool,
    wake: Notify,
}

impl Overload {
    /// That of one more thread.
    pub fn new(common: &Arc<Common>) -> Arc<Self> {
        let mut threads = common.threads.lock();
        let overload = Arc::new(Self {
            common: Arc::clone(common),
            pressure: AtomicU32::new(0),
            lag_micros: AtomicU32::new(0),
            in_flight: AtomicUsize::new(0),
            // Any number but 0 will do, and another one for each thread.
            dice: AtomicU32::new(0x9e37_79b9 ^ u32::try_from(threads.len()).unwrap_or(1)),
            touched: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake: Notify::new(),
        });
        threads.push(Arc::clone(&overload));
        overload
    }

    /// The process's memory.
    pub fn memory(&self) -> &Memory {
        &self.common.memory
    }

    /// Whether there is room for something of this priority; counts what is turned away.
    ///
    /// # Errors
    /// [`Reject::Overloaded`], where there is none.
    pub fn look(&self, priority: Priority) -> Result<(), Reject> {
        self.touch();
        let load = Load {
            pressure: self.pressure.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            most_in_flight: self.common.most_in_flight,
            stage: self.common.memory.stage(),
        };
        decide(priority, &load, || self.roll()).map_err(|cause| self.turn_away(priority, cause))
    }

    /// Takes a place among what is in flight. `early` is what [`Overload::look`] was asked before the message was read:
    /// the same question is not asked twice, or chance would be against it twice.
    ///
    /// # Errors
    /// [`Reject::Overloaded`], where there is no room.
    pub fn admit(self: &Arc<Self>, early: Option<Priority>, priority: Priority) -> Result<Ticket, Reject> {
        if early != Some(priority) {
            self.look(priority)?;
        }
        let counts = priority != Priority::Listen;
        if counts {
            self.in_flight.fetch_add(1, Relaxed);
        }
        Ok(Ticket(counts.then(|| Arc::clone(self))))
    }

    /// For how long who was turned away now should not be read: one who heeds `Retry-After` does not notice.
    pub fn pause(&self) -> Option<Duration> {
        let share = Priority::Call.share(self.pressure.load(Relaxed));
        (share >= WHOLE / 2).then(|| Duration::from_millis(share.into()))
    }

    fn turn_away(&self, priority: Priority, cause: Cause) -> Reject {
        self.common.metrics.overload.shed(priority, cause);
        // Not all of those that come at once shall come back at once.
        let after = match cause {
            Cause::Lag | Cause::InFlight => 1 + (self.roll() & 1),
            Cause::Memory => 2 + (self.roll() & 3),
        };
        Reject::Overloaded(u8::try_from(after).unwrap_or(1))
    }

    /// A number below [`WHOLE`], by xorshift: what is turned away must not be foreseeable by counting, no more.
    fn roll(&self) -> u32 {
        let mut dice = self.dice.load(Relaxed);
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        self.dice.store(dice, Relaxed);
        (dice >> 8) % WHOLE
    }

    fn touch(&self) {
        if !self.touched.load(Relaxed) {
            self.touched.store(true, Relaxed);
            if self.asleep.swap(false, Relaxed) {
                self.wake.notify_one();
            }
        }
    }

    /// Watches how late this thread is, for as long as it runs. A timer that is due waits behind all that is due before it,
    /// as a request does, so its delay is theirs: as far as the thread had work to do. Where others had the processor
    /// instead, it is not helped by turning its own work away.
    pub async fn keep(self: Arc<Self>) {
        let mut lag = Lag::new(self.common.most_lag);
        let mut quiet = 0;
        let mut worked = thread_time();
        loop {
            if quiet >= QUIET {
                self.asleep.store(true, Relaxed);
                self.wake.notified().await;
                lag = Lag::new(self.common.most_lag);
                quiet = 0;
                worked = thread_time();
            }
            let due = Instant::now() + if lag.is_wary() { SHORT_TICK } else { TICK };
            tokio::time::sleep_until(due).await;
            let now = Instant::now();
            let before = std::mem::replace(&mut worked, thread_time());
            let late = now.saturating_duration_since(due).min(worked.saturating_sub(before));
            self.pressure.store(lag.sample(now, late), Relaxed);
            self.lag_micros.store(u32::try_from(late.as_micros()).unwrap_or(u32::MAX), Relaxed);
            let busy = self.touched.swap(false, Relaxed) || lag.is_wary();
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }

    fn report(&self) -> Value {
        json!({
            "in_flight": self.in_flight.load(Relaxed),
            "pressure": f64::from(self.pressure.load(Relaxed)) / f64::from(WHOLE),
            "lag_us": self.lag_micros.load(Relaxed),
        })
    }
}

/// A place among what is in flight, given back when it is dropped.
pub struct Ticket(Option<Arc<Overload>>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(overload) = &self.0 {
            overload.in_flight.fetch_sub(1, Relaxed);
        }
    }
}
