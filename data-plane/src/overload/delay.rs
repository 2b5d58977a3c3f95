//! How late a thread is, and what part of the work it must turn away to catch up. As in `CoDel` (RFC 8289) a burst is let be and
//! a standing queue is not. Once one has stood, the part follows at once how late the thread is, for a while: clients that were
//! turned away are gone at once and come back in a second or two, so that what looks further back than the queue itself turns
//! away by turns too many and too few.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::WHOLE;

/// A thread that is late for no longer than this has met a burst.
const BURST: Duration = Duration::from_millis(100);
/// For so long after it was last late a burst is not let be.
const WARY: Duration = Duration::from_secs(3);
/// How late, in targets, a thread is from which something is turned away, and everything but a few.
const FROM: f64 = 0.8;
const ALL: f64 = 2.0;

/// The lag of one thread.
#[derive(Debug)]
pub struct Lag {
    target: f64,
    /// Since when it was never on time.
    since: Option<Instant>,
    /// Until when it is wary.
    wary: Option<Instant>,
    pressure: f64,
}

impl Lag {
    /// One that shall not be late by more than `target` for long.
    pub fn new(target: Duration) -> Self {
        Self { target: target.as_secs_f64().max(1e-6), since: None, wary: None, pressure: 0.0 }
    }

    /// Takes in how late the thread is now; says how much to turn away, in parts of [`WHOLE`].
    pub fn sample(&mut self, now: Instant, late: Duration) -> u32 {
        let late = late.as_secs_f64() / self.target;
        if late > 1.0 {
            let since = *self.since.get_or_insert(now);
            let burst = if self.wary.is_some() { BURST / 5 } else { BURST };
            if now.duration_since(since) >= burst {
                self.wary = Some(now + WARY);
            }
        } else {
            self.since = None;
        }
        self.wary = self.wary.filter(|until| now < *until);
        self.pressure = match self.wary {
            None => 0.0,
            // Half of what it was: one sample is a matter of chance.
            Some(_) => (self.pressure + ((late - FROM) / (ALL - FROM)).clamp(0.0, 1.0)) / 2.0,
        };
        (self.pressure * f64::from(WHOLE)) as u32
    }

    /// Whether it is watched closely: something is turned away, or was of late.
    pub fn is_wary(&self) -> bool {
        self.wary.is_some()
    }
}

#[cfg(test)]
mod tests;
