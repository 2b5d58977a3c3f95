//! How many calls there were of late, and how many of them were bad: ten slots in a ring, each one number that threads add
//! to without a lock. A slot that is found to be of an earlier round begins anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

const SLOTS: u64 = 10;
/// A slot holds, from the top, 16 bits of its round, 24 of bad calls, 24 of all.
const BITS: u32 = 24;
const MASK: u64 = (1 << BITS) - 1;
const BAD: u64 = 1 << BITS;
const ROUND: u32 = 2 * BITS;

/// Counts of late.
#[derive(Debug)]
pub(super) struct Window {
    began: Instant,
    slots: [AtomicU64; SLOTS as usize],
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, slots: Default::default() }
    }

    /// Counts a call.
    pub(super) fn add(&self, length: Duration, now: Instant, bad: bool) {
        let number = self.number(length, now);
        let Some(slot) = self.slot(number) else { return };
        let round = (number / SLOTS) & 0xffff;
        let one = if bad { BAD + 1 } else { 1 };
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            let fresh = seen >> ROUND == round;
            let next = match fresh {
                // Full: it says enough as it is.
                true if seen & MASK == MASK => return,
                true => seen + one,
                false => (round << ROUND) | one,
            };
            match slot.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// All calls of the window, and the bad ones among them.
    pub(super) fn counts(&self, length: Duration, now: Instant) -> (u64, u64) {
        let last = self.number(length, now);
        let (mut calls, mut bad) = (0, 0);
        for number in last.saturating_sub(SLOTS - 1)..=last {
            let Some(slot) = self.slot(number) else { continue };
            let seen = slot.load(Ordering::Relaxed);
            if seen >> ROUND == (number / SLOTS) & 0xffff {
                calls += seen & MASK;
                bad += (seen >> BITS) & MASK;
            }
        }
        (calls, bad)
    }

    /// Forgets what was.
    pub(super) fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn number(&self, length: Duration, now: Instant) -> u64 {
        let slot = (length.as_micros() / u128::from(SLOTS)).max(1);
        let passed = now.saturating_duration_since(self.began).as_micros();
        u64::try_from(passed / slot).unwrap_or(u64::MAX)
    }

    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(number % SLOTS).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_what_was_within_its_length_and_forgets_the_rest() {
        let length = Duration::from_secs(10);
        let window = Window::new(Instant::now());
        for i in 0..25 {
            window.add(length, Instant::now(), i % 5 == 0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // The slot of this second is still empty, so nine are counted.
        assert_eq!(window.counts(length, Instant::now()), (9, 1));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(window.counts(length, Instant::now()), (0, 0));
    }

    #[tokio::test]
    async fn threads_that_count_at_once_lose_nothing() {
        let (window, now) = (Window::new(Instant::now()), Instant::now());
        let length = Duration::from_secs(300);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|i| window.add(length, now, i % 4 == 0)));
            }
        });
        assert_eq!(window.counts(length, now), (40_000, 10_000));
    }
}
