//! What happens when a server fails, is slow or is busy, as REST shows and takes it: times in milliseconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waffles_core::resilience as core;

/// What happens when a server fails, is slow or is busy. What is absent has its default.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::rest) struct Resilience {
    breaker: Breaker,
    outlier: Outlier,
    /// Most calls under way at a time, from one proxy; 0: no cap. Streams that listen do not count.
    max_concurrent: u32,
    /// Most calls that wait for one of these places.
    queue: u32,
    /// How long one waits for a place at the most.
    queue_wait_ms: u64,
    retry: Retry,
}

/// When an endpoint is left alone. One that fails is asked nothing for a while, then a few calls try it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::rest) struct Breaker {
    /// So many failures in a row; 0: not a reason.
    failures: u32,
    /// Such a share of the calls of the window, in percent; 0: not a reason.
    error_percent: u8,
    /// Fewer calls in the window than this say nothing about the share.
    least_calls: u32,
    /// What the share is counted over.
    window_ms: u64,
    /// How long it is left alone the first time, and each time after that twice as long.
    open_ms: u64,
    /// How long at the most.
    open_most_ms: u64,
    /// So many calls in a row must succeed before all go to it again.
    trials: u32,
    /// How long a `Retry-After` of the server is obeyed at the most; 0: it is only passed on to the client.
    retry_after_most_ms: u64,
}

/// When an endpoint that fails more than the others of its server is left out.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::rest) struct Outlier {
    /// By how many percentage points its share of errors is above that of the others; 0: never.
    margin_percent: u8,
    /// Most of the endpoints, in percent, that are left out at a time for this reason. One always stays.
    most_percent: u8,
}

/// What may be sent again: what never left the proxy, what lists or reads, and calls of tools that are marked as
/// read-only or idempotent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::rest) struct Retry {
    /// Most attempts after the first; 0: none.
    attempts: u32,
    /// Such a share of all messages, in percent.
    budget_percent: u8,
    /// So many a second, however few messages there are.
    budget_least: u32,
    /// The first wait, of which a part at random; each after that twice as long.
    backoff_ms: u64,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Default for Resilience {
    fn default() -> Self {
        core::Resilience::default().into()
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Resilience::default().breaker
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Resilience::default().outlier
    }
}

impl Default for Retry {
    fn default() -> Self {
        Resilience::default().retry
    }
}

impl From<core::Resilience> for Resilience {
    fn from(resilience: core::Resilience) -> Self {
        let core::Resilience { breaker, outlier, max_concurrent, queue, queue_wait, retry } = resilience;
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

impl From<Resilience> for core::Resilience {
    fn from(resilience: Resilience) -> Self {
        let Resilience { breaker, outlier, max_concurrent, queue, queue_wait_ms, retry } = resilience;
        Self {
            breaker: core::Breaker {
                failures: breaker.failures,
                error_percent: breaker.error_percent,
                least_calls: breaker.least_calls,
                window: Duration::from_millis(breaker.window_ms),
                open: Duration::from_millis(breaker.open_ms),
                open_most: Duration::from_millis(breaker.open_most_ms),
                trials: breaker.trials,
                retry_after_most: Duration::from_millis(breaker.retry_after_most_ms),
            },
            outlier: core::Outlier {
                margin_percent: outlier.margin_percent,
                most_percent: outlier.most_percent,
            },
            max_concurrent,
            queue,
            queue_wait: Duration::from_millis(queue_wait_ms),
            retry: core::Retry {
                attempts: retry.attempts,
                budget_percent: retry.budget_percent,
                budget_least: retry.budget_least,
                backoff: Duration::from_millis(retry.backoff_ms),
            },
        }
    }
}
