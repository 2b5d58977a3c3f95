//! How late a thread is, and what part of the work it must turn away to catch up. As in `CoDel` (RFC 8289) a burst is let be and
//! a standing queue is not; as in PIE (RFC 8033) the part follows how late it is and whether that grows.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::WHOLE;

/// A thread that is late for no longer than this has met a burst.
const BURST: Duration = Duration::from_millis(100);
/// One sample counts for no longer than this.
const LONGEST_STEP: f64 = 0.1;
/// What a second at twice the target adds, and what a second without any lag takes away.
const GAIN: f64 = 1.0;
/// What a growth of the lag by one target adds.
const TREND: f64 = 0.05;
/// However late it is, it is not later than this many targets.
const MOST: f64 = 8.0;

/// The lag of one thread.
#[derive(Debug)]
pub struct Lag {
    target: f64,
    /// Since when it was never on time.
    since: Option<Instant>,
    last: Option<(Instant, f64)>,
    pressure: f64,
}

impl Lag {
    /// One that shall not be late by more than `target` for long.
    pub fn new(target: Duration) -> Self {
        Self { target: target.as_secs_f64().max(1e-6), since: None, last: None, pressure: 0.0 }
    }

    /// Takes in how late the thread is now; says how much to turn away, in parts of [`WHOLE`].
    pub fn sample(&mut self, now: Instant, late: Duration) -> u32 {
        let late = late.as_secs_f64() / self.target;
        let (step, before) = match self.last {
            Some((at, before)) => (now.duration_since(at).as_secs_f64().min(LONGEST_STEP), before),
            None => (0.0, late),
        };
        self.last = Some((now, late));
        if late <= 1.0 {
            self.since = None;
        }
        let stands = match self.since {
            Some(since) => now.duration_since(since) >= BURST,
            None => {
                self.since = (late > 1.0).then_some(now);
                false
            }
        };
        if self.is_shedding() || stands {
            let error = (late - 1.0).clamp(-1.0, MOST);
            let trend = (late - before).clamp(-1.0, MOST);
            self.pressure = (self.pressure + GAIN * error * step + TREND * trend).clamp(0.0, 1.0);
        }
        // Rounded up, so that there is no pressure that nobody feels and that is not forgotten.
        (self.pressure * f64::from(WHOLE)).ceil() as u32
    }

    /// Whether anything is turned away.
    pub fn is_shedding(&self) -> bool {
        self.pressure > 0.0
    }
}

#[cfg(test)]
mod tests;
