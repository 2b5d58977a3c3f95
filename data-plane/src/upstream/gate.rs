//! How many calls of a server are under way at a time. Who finds no room waits in line, first come, first served; the line
//! is bounded, and who would wait for longer than is allowed is turned away at once and does not wait at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// What one call is weighed with in the mean time that a place is held: one eighth.
const WEIGH: u64 = 8;

/// The places of one server, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Most places; 0: no cap.
    most: AtomicU32,
    queue: AtomicU32,
    held: AtomicU32,
    /// How many wait: a copy of the line's length for who goes or comes without a lock.
    waiting: AtomicU32,
    /// How long a place is held in the mean, in microseconds.
    mean_us: AtomicU64,
    /// Bounded by `queue`; who comes when it is full is turned away.
    line: Mutex<VecDeque<oneshot::Sender<Place>>>,
}

/// A place. It is given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    since: Instant,
}

/// There is no place, and will be none in time: when it is worth to ask again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full(pub(super) Duration);

impl Gate {
    /// Takes on what the operator says now. Who is inside stays inside.
    pub(super) fn set(self: &Arc<Self>, most: u32, queue: u32) {
        self.most.store(most, Ordering::SeqCst);
        self.queue.store(queue, Ordering::SeqCst);
        self.call_in();
    }

    /// Places that are held, and calls that wait.
    pub(super) fn load(&self) -> (u32, u32) {
        (self.held.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed))
    }

    /// A place at once, where there is one and nobody waits for it; the outer none means that there is no cap.
    pub(super) fn try_enter(self: &Arc<Self>) -> Option<Option<Place>> {
        if self.most.load(Ordering::Relaxed) == 0 {
            return None;
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return Some(None);
        }
        Some(self.take())
    }

    /// Waits for a place, in line, until then at the most.
    pub(super) async fn enter(self: &Arc<Self>, now: Instant, until: Instant) -> Result<Place, Full> {
        let mut turn = {
            let mut line = self.line.lock();
            if line.len() >= usize::try_from(self.queue.load(Ordering::Relaxed)).unwrap_or(usize::MAX) {
                line.retain(|sender| !sender.is_closed());
            }
            let before = u32::try_from(line.len()).unwrap_or(u32::MAX);
            let wait = self.expected_wait(before);
            if before >= self.queue.load(Ordering::Relaxed) || now + wait > until {
                return Err(Full(wait));
            }
            let (sender, turn) = oneshot::channel();
            line.push_back(sender);
            self.waiting.store(before + 1, Ordering::SeqCst);
            turn
        };
        // A place may have become free between the look and the line.
        self.call_in();
        match timeout_at(until, &mut turn).await {
            Ok(Ok(place)) => Ok(place),
            // The place that was on its way all the same.
            Ok(Err(_)) | Err(_) => turn.try_recv().map_err(|_| {
                self.leave(turn);
                Full(self.expected_wait(1))
            }),
        }
    }

    /// Who gave up does not stand in the line for others.
    fn leave(self: &Arc<Self>, turn: oneshot::Receiver<Place>) {
        drop(turn);
        let mut line = self.line.lock();
        line.retain(|sender| !sender.is_closed());
        self.waiting.store(u32::try_from(line.len()).unwrap_or(u32::MAX), Ordering::SeqCst);
    }

    /// How long who comes now would wait behind so many.
    fn expected_wait(&self, before: u32) -> Duration {
        let most = u64::from(self.most.load(Ordering::Relaxed).max(1));
        let mean = self.mean_us.load(Ordering::Relaxed);
        Duration::from_micros(mean.saturating_mul(u64::from(before) + 1) / most)
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        let most = self.most.load(Ordering::SeqCst);
        let free = |held: u32| (held < most || most == 0).then_some(held + 1);
        self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
        Some(Place { gate: Arc::clone(self), since: Instant::now() })
    }

    /// Gives free places to who waits, in order.
    fn call_in(self: &Arc<Self>) {
        let mut spare = None;
        let mut line = self.line.lock();
        while !line.is_empty() {
            let Some(place) = spare.take().or_else(|| self.take()) else { break };
            let Some(next) = line.pop_front() else { break };
            // Who has given up hands the place back, for the next.
            spare = next.send(place).err();
        }
        self.waiting.store(u32::try_from(line.len()).unwrap_or(u32::MAX), Ordering::SeqCst);
        drop(line);
        // Outside of the lock: a place that nobody takes looks for who waits.
        drop(spare);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Threads that meet here lose one another's sample, and the mean is none the worse.
        let mean = self.gate.mean_us.load(Ordering::Relaxed);
        let next = mean - mean / WEIGH + held / WEIGH;
        self.gate.mean_us.store(next, Ordering::Relaxed);
        self.gate.held.fetch_sub(1, Ordering::SeqCst);
        if self.gate.waiting.load(Ordering::SeqCst) > 0 {
            self.gate.call_in();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn gate(most: u32, queue: u32) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        gate.set(most, queue);
        gate
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(2)
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cap_there_is_nothing_to_wait_for() {
        assert!(gate(0, 0).try_enter().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_in_order_and_nobody_overtakes() {
        let gate = gate(1, 2);
        let first = gate.try_enter().unwrap().unwrap();
        let mut second = Box::pin(gate.enter(Instant::now(), soon()));
        let mut third = Box::pin(gate.enter(Instant::now(), soon()));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert_eq!(gate.load(), (1, 2));
        assert!(gate.try_enter().unwrap().is_none());
        assert!(gate.enter(Instant::now(), soon()).await.is_err(), "the line is full");
        drop(first);
        assert!(gate.try_enter().unwrap().is_none(), "the place belongs to who waited");
        assert!((&mut third).now_or_never().is_none());
        let place = second.await.unwrap();
        drop(place);
        assert!(third.await.is_ok());
        assert_eq!(gate.load(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_served_in_time_is_turned_away_at_once() {
        let gate = gate(1, 100);
        let place = gate.try_enter().unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(80)).await;
        drop(place);
        let _place = gate.try_enter().unwrap().unwrap();
        // A place is held for ten seconds in the mean, and two may be waited.
        let before = Instant::now();
        assert_eq!(gate.enter(before, soon()).await.unwrap_err(), Full(Duration::from_secs(10)));
        assert_eq!(before, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_long_enough_goes_and_leaves_no_gap() {
        let gate = gate(1, 1);
        let place = gate.try_enter().unwrap().unwrap();
        assert!(gate.enter(Instant::now(), soon()).await.is_err());
        assert_eq!(gate.load(), (1, 0));
        drop(Box::pin(gate.enter(Instant::now(), soon())).now_or_never());
        assert_eq!(gate.load(), (1, 1), "who was dropped still stands there");
        drop(place);
        assert_eq!(gate.load(), (0, 0), "until a place is free");
        assert!(gate.try_enter().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_larger_cap_lets_in_who_waits() {
        let gate = gate(1, 5);
        let _place = gate.try_enter().unwrap().unwrap();
        let mut second = Box::pin(gate.enter(Instant::now(), soon()));
        assert!((&mut second).now_or_never().is_none());
        gate.set(2, 5);
        assert!(second.await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn threads_that_come_and_go_at_once_all_get_through_and_never_too_many() {
        let gate = gate(3, 1000);
        let inside = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                waffles_runtime::task::spawn("caller", async move {
                    let until = Instant::now() + Duration::from_secs(60);
                    let place = match gate.try_enter().unwrap() {
                        Some(place) => place,
                        None => gate.enter(Instant::now(), until).await.unwrap(),
                    };
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(place);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(gate.load(), (0, 0));
    }
}
