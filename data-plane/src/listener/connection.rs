//! What is known of one connection of a client, and what its keeper does about it: connections that stall, that are reset
//! over and over, that never say who they are, and that idle while memory is short are ended; all are when the process is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;
use waffles_runtime::drain::Drain;

use crate::metrics::Metrics;
use crate::overload::{Guest, Memory, Stage};

/// What a reader takes nothing of for so long is held for nobody.
pub(super) const STALLED: Duration = Duration::from_secs(30);
/// A stranger that asks nothing is not kept for longer.
const STRANGER: Duration = Duration::from_secs(30);
/// How often connections are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while the process ends.
const LOOK_AT_END: Duration = Duration::from_millis(50);
/// An idle connection stays open for so long after the process began to end: a request may be on its way, and is served
/// and told that it was the last.
const LAST_CALL: Duration = Duration::from_millis(500);
/// Most requests of one connection that their client takes back within a while.
const MAX_RESETS: u32 = 100;
const RESETS_TIME: Duration = Duration::from_secs(10);
/// While memory is short, a connection may idle, and a reader may stall, no longer than this.
const IDLE_IN_NEED: Duration = Duration::from_secs(1);
/// Of a connection that carries many requests, so many must be turned away in a row before it is not read for a while.
const PATIENCE: u32 = 20;

/// How a connection shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Fate {
    /// Not at all.
    Open,
    /// After what it is doing.
    Graceful,
    /// Now, but with a word of farewell.
    Now,
}

/// One connection.
pub(super) struct Connection {
    pub(super) guest: Guest,
    opened: Instant,
    fate: AtomicU8,
    waker: AtomicWaker,
    /// Requests whose answers are not complete.
    active: AtomicUsize,
    /// Times since it was opened, in milliseconds.
    last: AtomicU64,
    paused_until: AtomicU64,
    blocked_since: AtomicU64,
    asked: AtomicBool,
    turned_away: AtomicU32,
    resets: Mutex<(Option<Instant>, u32)>,
    chunks: Mutex<Chunks>,
    metrics: Metrics,
}

/// Pieces of answers over HTTP/2 that were handed out and have not left: a window that its reader never opens holds them.
#[derive(Default)]
struct Chunks {
    next: u64,
    /// By age.
    waiting: BTreeMap<u64, Instant>,
}

impl Connection {
    pub(super) fn new(guest: Guest, metrics: Metrics) -> Self {
        Self {
            guest,
            opened: Instant::now(),
            fate: AtomicU8::new(Fate::Open as u8),
            waker: AtomicWaker::new(),
            active: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            paused_until: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            turned_away: AtomicU32::new(0),
            resets: Mutex::default(),
            chunks: Mutex::default(),
            metrics,
        }
    }

    /// Its fate; the task is woken when that changes.
    pub(super) fn fate(&self, cx: &Context<'_>) -> Fate {
        self.waker.register(cx.waker());
        match self.fate.load(Relaxed) {
            0 => Fate::Open,
            1 => Fate::Graceful,
            _ => Fate::Now,
        }
    }

    fn end(&self, fate: Fate) -> bool {
        let changed = self.fate.fetch_max(fate as u8, Relaxed) < fate as u8;
        if changed {
            self.waker.wake();
        }
        changed
    }

    /// Ends it at once for what its client does.
    fn close(&self, reason: &'static str) {
        if self.end(Fate::Now) {
            tracing::debug!(reason, "a client's connection is closed");
            self.metrics.overload.closed(reason);
        }
    }

    fn millis(&self) -> u64 {
        // 0 stands for never.
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>, counts_resets: bool) -> Turn {
        self.active.fetch_add(1, Relaxed);
        self.asked.store(true, Relaxed);
        Turn { connection: Arc::clone(self), counts: counts_resets }
    }

    /// A request was turned away for want of room. Who asks again before it was told to is not read for a while; a client
    /// that waits as told does not notice, and one that does not costs nothing.
    pub(super) fn turned_away(&self, pause: Duration, shared: bool) {
        let so_far = self.turned_away.fetch_add(1, Relaxed);
        if !shared || so_far >= PATIENCE {
            let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            self.paused_until.store(self.millis().saturating_add(pause), Relaxed);
        }
    }

    /// A request was not turned away.
    pub(super) fn was_served(&self) {
        if self.turned_away.load(Relaxed) > 0 {
            self.turned_away.store(0, Relaxed);
        }
    }

    /// Until when it is not read.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        let until = self.paused_until.load(Relaxed);
        if until == 0 {
            return None;
        }
        let until = self.opened + Duration::from_millis(until);
        if until > Instant::now() {
            return Some(until);
        }
        self.paused_until.store(0, Relaxed);
        None
    }

    /// Whether its reader takes nothing at the moment.
    pub(super) fn set_blocked(&self, blocked: bool) {
        match (blocked, self.blocked_since.load(Relaxed)) {
            (true, 0) => self.blocked_since.store(self.millis(), Relaxed),
            (false, 1..) => self.blocked_since.store(0, Relaxed),
            _ => {}
        }
    }

    /// A piece of an answer is handed out; the number names it.
    pub(super) fn hand_out(&self) -> u64 {
        let mut chunks = self.chunks.lock();
        chunks.next += 1;
        let number = chunks.next;
        chunks.waiting.insert(number, Instant::now());
        number
    }

    /// It has left.
    pub(super) fn has_left(&self, number: u64) {
        self.chunks.lock().waiting.remove(&number);
    }

    fn oldest_chunk(&self) -> Option<Instant> {
        self.chunks.lock().waiting.first_key_value().map(|(_, since)| *since)
    }

    fn note_reset(&self) {
        let mut resets = self.resets.lock();
        let now = Instant::now();
        let (since, count) = &mut *resets;
        match since {
            Some(begun) if now.duration_since(*begun) < RESETS_TIME => *count += 1,
            _ => (*since, *count) = (Some(now), 1),
        }
        if *count > MAX_RESETS {
            drop(resets);
            self.close("resets");
        }
    }

    /// What the keeper sees: how it shall go on.
    fn look(&self, stage: Stage, now: Instant) {
        let age = now.duration_since(self.opened);
        let is_idle = self.active.load(Relaxed) == 0;
        let since = |millis: u64| age.saturating_sub(Duration::from_millis(millis));
        let chunk = self.oldest_chunk().map(|oldest| now.duration_since(oldest));
        if chunk.is_some_and(|waits| waits >= STALLED) {
            return self.close("stalled");
        }
        if is_idle && age >= STRANGER && !self.guest.is_known() {
            return self.close("stranger");
        }
        if stage >= Stage::Critical {
            let blocked = match self.blocked_since.load(Relaxed) {
                0 => chunk,
                millis => Some(since(millis)),
            };
            if blocked.is_some_and(|waits| waits >= IDLE_IN_NEED) {
                return self.close("memory");
            }
        }
        let idles = is_idle && since(self.last.load(Relaxed)) >= IDLE_IN_NEED;
        if stage >= Stage::Scarce && idles {
            if !self.guest.is_known() {
                // Its head may be half there, and then it is in no hurry to leave.
                self.close("memory");
            } else if self.end(Fate::Graceful) {
                self.metrics.overload.closed("idle");
            }
        }
    }

    /// What the keeper does when the process ends. True when it has been told.
    fn drain(&self, draining_since: Instant) -> bool {
        let is_idle = self.active.load(Relaxed) == 0;
        if is_idle && draining_since.elapsed() < LAST_CALL {
            return false;
        }
        self.end(Fate::Graceful);
        true
    }
}

/// One request of a connection, until its answer is complete or nobody waits for it any more.
pub(super) struct Turn {
    connection: Arc<Connection>,
    /// It has not come to its end yet, and its end without an answer counts as a reset.
    counts: bool,
}

impl Turn {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// It came to its end.
    pub(super) fn done(&mut self) {
        self.counts = false;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.connection.active.fetch_sub(1, Relaxed);
        self.connection.last.store(self.connection.millis(), Relaxed);
        if self.counts {
            self.connection.note_reset();
        }
    }
}

/// All connections of a thread.
#[derive(Default)]
pub(super) struct Connections(Mutex<Vec<Weak<Connection>>>);

impl Connections {
    pub(super) fn add(&self, connection: &Arc<Connection>) {
        self.0.lock().push(Arc::downgrade(connection));
    }

    /// Those that are open still.
    fn open(&self) -> Vec<Arc<Connection>> {
        let mut open = Vec::new();
        self.0.lock().retain(|connection| match connection.upgrade() {
            Some(connection) => {
                open.push(connection);
                true
            }
            None => false,
        });
        open
    }

    /// Looks after them until the process has ended.
    pub(super) async fn keep(self: Arc<Self>, memory: Arc<Memory>, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.started() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let (stage, now) = (memory.stage(), Instant::now());
            for connection in self.open() {
                connection.look(stage, now);
            }
        }
        let since = Instant::now();
        loop {
            for connection in self.open() {
                connection.drain(since);
            }
            tokio::select! {
                () = drain.ended() => break,
                () = tokio::time::sleep(LOOK_AT_END) => {}
            }
        }
        for connection in self.open() {
            connection.end(Fate::Now);
        }
    }
}
