//! What happens when a server fails, is slow or is busy.

use std::time::Duration;

use serde::Serialize;
use waffles_core::resilience as core;
use waffles_core::wire::resilience_from_proto;
use waffles_proto::registry::v1 as pb;

/// All of it, with the defaults of what is not set.
#[derive(Debug, Serialize)]
pub(crate) struct Resilience {
    breaker: Breaker,
    outlier: Outlier,
    max_concurrent: u32,
    queue: u32,
    queue_wait_ms: u64,
    retry: Retry,
}

#[derive(Debug, Serialize)]
struct Breaker {
    failures: u32,
    error_percent: u8,
    least_calls: u32,
    window_ms: u64,
    open_ms: u64,
    open_most_ms: u64,
    trials: u32,
    retry_after_most_ms: u64,
}

#[derive(Debug, Serialize)]
struct Outlier {
    margin_percent: u8,
    most_percent: u8,
}

#[derive(Debug, Serialize)]
struct Retry {
    attempts: u32,
    budget_percent: u8,
    budget_least: u32,
    backoff_ms: u64,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<pb::Resilience> for Resilience {
    fn from(message: pb::Resilience) -> Self {
        let core::Resilience { breaker, outlier, max_concurrent, queue, queue_wait, retry } =
            resilience_from_proto(message);
        Self {
            breaker: Breaker {
                failures: breaker.failures,
                error_percent: breaker.error_percent,
                least_calls: breaker.least_calls,
                window_ms: ms(breaker.window),
                open_ms: ms(breaker.open),
                open_most_ms: ms(breaker.open_most),
                trials: breaker.trials,
                retry_after_most_ms: ms(breaker.retry_after_most),
            },
            outlier: Outlier { margin_percent: outlier.margin_percent, most_percent: outlier.most_percent },
            max_concurrent,
            queue,
            queue_wait_ms: ms(queue_wait),
            retry: Retry {
                attempts: retry.attempts,
                budget_percent: retry.budget_percent,
                budget_least: retry.budget_least,
                backoff_ms: ms(retry.backoff),
            },
        }
    }
}

impl Resilience {
    /// When an endpoint is left alone.
    pub(super) fn breaker(&self) -> String {
        let b = &self.breaker;
        let mut reasons = Vec::new();
        if b.failures > 0 {
            reasons.push(format!("{} failures in a row", b.failures));
        }
        if b.error_percent > 0 {
            let (share, calls, window) = (b.error_percent, b.least_calls, b.window_ms);
            reasons.push(format!("{share} % of {calls} or more calls in {window} ms"));
        }
        if self.outlier.margin_percent > 0 {
            reasons.push(format!("{} points more errors than the others", self.outlier.margin_percent));
        }
        match reasons.is_empty() {
            true => "off".to_owned(),
            false => format!("{}; open {} to {} ms", reasons.join(", "), b.open_ms, b.open_most_ms),
        }
    }

    /// How much of the server is used.
    pub(super) fn capacity(&self) -> String {
        match self.max_concurrent {
            0 => "no cap".to_owned(),
            most => format!("{most} at a time, {} wait up to {} ms", self.queue, self.queue_wait_ms),
        }
    }

    /// What is sent again.
    pub(super) fn retries(&self) -> String {
        let r = &self.retry;
        match r.attempts {
            0 => "none".to_owned(),
            most => {
                let (share, least) = (r.budget_percent, r.budget_least);
                format!("up to {most}, of {share} % of all messages or {least} a second")
            }
        }
    }
}
