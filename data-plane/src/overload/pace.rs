//! How fast a server may say things on one stream. One that says more is not read for a moment, and so waits itself: what it
//! floods costs it as much as us.

use std::time::Duration;

use tokio::time::Instant;

/// Messages a second, in the long run.
const RATE: u32 = 1000;
/// Messages at once.
const BURST: u32 = 4000;
/// How long a wait for more is.
const WAIT: Duration = Duration::from_millis(20);

/// The pace of one stream. It looks at the clock only when a burst is used up.
#[derive(Debug)]
pub struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    /// A stream that begins now.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Takes one message; where it comes too early, says when to look again.
    pub fn take(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        if self.left == 0 {
            let now = now();
            let passed = now.duration_since(self.since).as_millis() * u128::from(RATE) / 1000;
            self.left = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST);
            if self.left == 0 {
                return Some(now + WAIT);
            }
            self.since = now;
        }
        self.left -= 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_a_thousand_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start + Duration::from_secs(1);
        let end = now + Duration::from_secs(10);
        let (mut passed, mut asked) = (0, 0);
        while now < end {
            asked += 1;
            match pace.take(|| now) {
                None => passed += 1,
                Some(later) => now = later,
            }
        }
        assert!((14_000..=15_000).contains(&passed), "{passed} in 11 seconds");
        assert!(asked < passed + 1_000, "it is not asked over and over");
        let quiet = end + Duration::from_secs(3600);
        let burst = (0..10_000).take_while(|_| pace.take(|| quiet).is_none()).count();
        assert_eq!(burst, BURST as usize, "an hour of silence saves up one burst");
    }
}
