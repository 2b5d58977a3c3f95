//! The stored form of what happens when a server fails. What an older version did not write has its default.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use waffles_core::resilience::{Breaker, Outlier, Resilience, Retry};

use super::micros;

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ResilienceDoc {
    failures: u32,
    error_percent: u8,
    least_calls: u32,
    window_us: u64,
    open_us: u64,
    open_most_us: u64,
    trials: u32,
    retry_after_most_us: u64,
    outlier_margin_percent: u8,
    outlier_most_percent: u8,
    max_concurrent: u32,
    queue: u32,
    queue_wait_us: u64,
    retry_attempts: u32,
    retry_budget_percent: u8,
    retry_budget_least: u32,
    retry_backoff_us: u64,
}

impl Default for ResilienceDoc {
    fn default() -> Self {
        Self::from(&Resilience::default())
    }
}

impl From<&Resilience> for ResilienceDoc {
    fn from(resilience: &Resilience) -> Self {
        let Resilience { breaker, outlier, max_concurrent, queue, queue_wait, retry } = *resilience;
        Self {
            failures: breaker.failures,
            error_percent: breaker.error_percent,
            least_calls: breaker.least_calls,
            window_us: micros(breaker.window),
            open_us: micros(breaker.open),
            open_most_us: micros(breaker.open_most),
            trials: breaker.trials,
            retry_after_most_us: micros(breaker.retry_after_most),
            outlier_margin_percent: outlier.margin_percent,
            outlier_most_percent: outlier.most_percent,
            max_concurrent,
            queue,
            queue_wait_us: micros(queue_wait),
            retry_attempts: retry.attempts,
            retry_budget_percent: retry.budget_percent,
            retry_budget_least: retry.budget_least,
            retry_backoff_us: micros(retry.backoff),
        }
    }
}

impl From<ResilienceDoc> for Resilience {
    fn from(doc: ResilienceDoc) -> Self {
        Self {
            breaker: Breaker {
                failures: doc.failures,
                error_percent: doc.error_percent,
                least_calls: doc.least_calls,
                window: Duration::from_micros(doc.window_us),
                open: Duration::from_micros(doc.open_us),
                open_most: Duration::from_micros(doc.open_most_us),
                trials: doc.trials,
                retry_after_most: Duration::from_micros(doc.retry_after_most_us),
            },
            outlier: Outlier {
                margin_percent: doc.outlier_margin_percent,
                most_percent: doc.outlier_most_percent,
            },
            max_concurrent: doc.max_concurrent,
            queue: doc.queue,
            queue_wait: Duration::from_micros(doc.queue_wait_us),
            retry: Retry {
                attempts: doc.retry_attempts,
                budget_percent: doc.retry_budget_percent,
                budget_least: doc.retry_budget_least,
                backoff: Duration::from_micros(doc.retry_backoff_us),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_version_did_not_write_has_its_default() {
        let doc: ResilienceDoc = serde_json::from_str(r#"{"failures": 0}"#).unwrap();
        let read = Resilience::from(doc);
        assert_eq!(read.breaker.failures, 0);
        assert_eq!(Resilience { breaker: Breaker::default(), ..read }, Resilience::default());
    }
}
