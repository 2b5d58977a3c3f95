//! How long an endpoint takes to answer: a mean that follows a rise at once and a fall slowly, so that an endpoint which
//! has become slow is believed, and one that nobody asks is given another chance.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// After so long half of what was is forgotten.
const MEMORY_US: u64 = 10_000_000;

/// The mean of one endpoint. Threads that meet lose one another's sample, and it is none the worse.
#[derive(Debug)]
pub(super) struct Latency {
    began: Instant,
    mean_us: AtomicU64,
    at_us: AtomicU64,
}

impl Latency {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, mean_us: AtomicU64::new(0), at_us: AtomicU64::new(0) }
    }

    pub(super) fn note(&self, took: Duration, now: Instant) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let now = self.micros(now);
        let (mean, at) = (self.mean_us.load(Ordering::Relaxed), self.at_us.load(Ordering::Relaxed));
        let next = match took >= mean {
            true => took,
            false => {
                let passed = now.saturating_sub(at);
                took + (mean - took).saturating_mul(MEMORY_US) / (MEMORY_US + passed)
            }
        };
        self.mean_us.store(next, Ordering::Relaxed);
        self.at_us.store(now, Ordering::Relaxed);
    }

    /// What to expect now; 0 where nothing was seen.
    pub(super) fn expected_us(&self, now: Instant) -> u64 {
        let passed = self.micros(now).saturating_sub(self.at_us.load(Ordering::Relaxed));
        self.mean_us.load(Ordering::Relaxed).saturating_mul(MEMORY_US) / (MEMORY_US + passed)
    }

    /// The mean as it was last; none where nothing was seen.
    pub(super) fn last(&self) -> Option<Duration> {
        let mean = self.mean_us.load(Ordering::Relaxed);
        (mean > 0).then(|| Duration::from_micros(mean))
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rises_at_once_and_falls_slowly() {
        let latency = Latency::new(Instant::now());
        assert_eq!(latency.last(), None);
        latency.note(Duration::from_millis(2), Instant::now());
        latency.note(Duration::from_millis(500), Instant::now());
        assert_eq!(latency.last(), Some(Duration::from_millis(500)));
        latency.note(Duration::from_millis(2), Instant::now());
        assert!(latency.last().unwrap() > Duration::from_millis(400));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(latency.expected_us(Instant::now()), 250_000, "half after ten seconds of silence");
        latency.note(Duration::from_millis(2), Instant::now());
        assert_eq!(latency.last(), Some(Duration::from_millis(251)));
    }
}
