//! How much a server may fail before it is left alone, how much of it is used at a time, and what may be sent to it again:
//! what an operator decides of these. The counting is the proxy's.

use std::time::Duration;

use crate::FieldError;

/// What an operator decides about a server that fails, is slow or is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resilience {
    /// When an endpoint is left alone, and for how long.
    pub breaker: Breaker,
    /// When an endpoint that fails more than the others is left out.
    pub outlier: Outlier,
    /// Most calls under way at a time, from one proxy; 0: no cap. Streams that listen do not count.
    pub max_concurrent: u32,
    /// Most calls that wait for one of these places.
    pub queue: u32,
    /// How long one waits for a place at the most.
    pub queue_wait: Duration,
    /// What may be sent again.
    pub retry: Retry,
}

/// When an endpoint is left alone. One that fails is asked nothing for a while, then a few calls try it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// So many failures in a row; 0: not a reason.
    pub failures: u32,
    /// Such a share of the calls of the window, in percent; 0: not a reason.
    pub error_percent: u8,
    /// Fewer calls in the window than this say nothing about the share.
    pub least_calls: u32,
    /// What the share is counted over.
    pub window: Duration,
    /// How long it is left alone the first time. Each time after that twice as long, give or take a quarter.
    pub open: Duration,
    /// How long at the most.
    pub open_most: Duration,
    /// So many calls in a row must succeed then, no more than that at a time, before all go to it again.
    pub trials: u32,
    /// How long a `Retry-After` of the server is obeyed at the most; 0: it is only passed on to the client.
    pub retry_after_most: Duration,
}

/// When an endpoint that fails more than the others of its server is left out, though it would do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// By how many percentage points its share of errors is above that of the others; 0: never.
    pub margin_percent: u8,
    /// Most of the endpoints, in percent, that are left out at a time for this reason. One always stays.
    pub most_percent: u8,
}

/// What may be sent again. A message of which anything was sent goes out again only where it lists or reads, or calls a
/// tool that the registry marks as read-only or idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Most attempts after the first; 0: none.
    pub attempts: u32,
    /// Such a share of all messages, in percent, may be sent again, counted over ten seconds.
    pub budget_percent: u8,
    /// So many a second may be, however few messages there are.
    pub budget_least: u32,
    /// The first wait; each after that twice as long, and of each a part at random.
    pub backoff: Duration,
}

impl Default for Resilience {
    fn default() -> Self {
        Self {
            breaker: Breaker::default(),
            outlier: Outlier::default(),
            max_concurrent: 1000,
            queue: 200,
            queue_wait: Duration::from_secs(2),
            retry: Retry::default(),
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 5,
            error_percent: 50,
            least_calls: 20,
            window: Duration::from_secs(10),
            open: Duration::from_secs(1),
            open_most: Duration::from_secs(30),
            trials: 2,
            retry_after_most: Duration::from_secs(30),
        }
    }
}

impl Breaker {
    /// One that never opens.
    pub fn off() -> Self {
        Self { failures: 0, error_percent: 0, retry_after_most: Duration::ZERO, ..Self::default() }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self { margin_percent: 25, most_percent: 50 }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, budget_percent: 20, budget_least: 10, backoff: Duration::from_millis(25) }
    }
}

impl Resilience {
    /// Everything that is wrong with it, field by field.
    pub(crate) fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut number = |field: &str, value: u32, least: u32, most: u32| {
            if !(least..=most).contains(&value) {
                let reason = format!("must be {least} to {most}");
                problems.push(FieldError::new(format!("resilience.{field}"), reason));
            }
        };
        let Self { breaker, outlier, retry, .. } = self;
        number("breaker.failures", breaker.failures, 0, 10_000);
        number("breaker.error_percent", breaker.error_percent.into(), 0, 100);
        number("breaker.least_calls", breaker.least_calls, 1, 100_000);
        number("breaker.trials", breaker.trials, 1, 100);
        number("outlier.margin_percent", outlier.margin_percent.into(), 0, 100);
        number("outlier.most_percent", outlier.most_percent.into(), 0, 100);
        number("max_concurrent", self.max_concurrent, 0, 1_000_000);
        number("queue", self.queue, 0, 100_000);
        number("retry.attempts", retry.attempts, 0, 10);
        number("retry.budget_percent", retry.budget_percent.into(), 0, 100);
        number("retry.budget_least", retry.budget_least, 0, 10_000);
        let mut span = |field: &str, value: Duration, least_ms: u64, most: u64| {
            if value < Duration::from_millis(least_ms) || value > Duration::from_secs(most) {
                let reason = format!("must be {least_ms} ms to {most} s");
                problems.push(FieldError::new(format!("resilience.{field}"), reason));
            }
        };
        span("breaker.window", breaker.window, 1000, 300);
        span("breaker.open", breaker.open, 10, 600);
        span("breaker.open_most", breaker.open_most, 10, 3600);
        span("breaker.retry_after_most", breaker.retry_after_most, 0, 3600);
        span("queue_wait", self.queue_wait, 0, 60);
        span("retry.backoff", retry.backoff, 1, 10);
        if breaker.open_most < breaker.open {
            problems.push(FieldError::new("resilience.breaker.open_most", "must not be less than `open`"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_so_is_none_of_it() {
        assert_eq!(Resilience::default().problems(), []);
        let none = Resilience {
            breaker: Breaker::off(),
            outlier: Outlier { margin_percent: 0, most_percent: 0 },
            max_concurrent: 0,
            queue: 0,
            queue_wait: Duration::ZERO,
            retry: Retry { attempts: 0, budget_percent: 0, budget_least: 0, ..Retry::default() },
        };
        assert_eq!(none.problems(), []);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let bad = Resilience {
            breaker: Breaker {
                error_percent: 101,
                trials: 0,
                window: Duration::ZERO,
                open: Duration::from_secs(60),
                ..Breaker::default()
            },
            queue_wait: Duration::from_secs(61),
            retry: Retry { attempts: 11, ..Retry::default() },
            ..Resilience::default()
        };
        let fields: Vec<_> = bad.problems().into_iter().map(|p| p.field).collect();
        assert_eq!(
            fields,
            [
                "resilience.breaker.error_percent",
                "resilience.breaker.trials",
                "resilience.retry.attempts",
                "resilience.breaker.window",
                "resilience.queue_wait",
                "resilience.breaker.open_most",
            ]
        );
    }
}
