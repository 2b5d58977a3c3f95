//! How soon a program that has ended unasked may be started again: at once the first time it is needed after a long
//! life, later and later when it ends again and again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
/// A program that lived this long did not fail at its start.
const SETTLED: Duration = Duration::from_secs(60);

/// When the next start may be.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes that a program has ended unasked after it lived for a time.
    pub(crate) fn note(&mut self, lived: Duration) {
        if lived >= SETTLED {
            self.failures = 0;
        }
        self.until = Some(Instant::now() + jittered(delay(self.failures)));
        self.failures = self.failures.saturating_add(1);
    }

    /// How long to wait before the next start.
    pub(crate) fn wait(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

fn delay(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(LONGEST)
}

/// Between half of it and all of it, so that many do not start at one moment.
fn jittered(delay: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    delay.mul_f64(0.5 + random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_waits_longer_each_time_and_forgets_after_a_long_life() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.wait(), Duration::ZERO);
        for most in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            backoff.note(Duration::from_secs(1));
            let wait = backoff.wait();
            let most = Duration::from_millis(most);
            assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
        }
        backoff.note(SETTLED);
        assert!(backoff.wait() <= FIRST);
        tokio::time::advance(FIRST).await;
        assert_eq!(backoff.wait(), Duration::ZERO);
    }
}
