//! What happens when a server fails, to and from the wire. What a message leaves out has its default.

use waffles_proto::registry::v1 as pb;

use super::{duration, duration_or};
use crate::resilience::{Breaker, Outlier, Resilience, Retry};

pub(super) fn to_proto(resilience: &Resilience) -> pb::Resilience {
    let Resilience { breaker, outlier, max_concurrent, queue, queue_wait, retry } = *resilience;
    pb::Resilience {
        breaker: Some(pb::Breaker {
            failures: Some(breaker.failures),
            error_percent: Some(breaker.error_percent.into()),
            least_calls: Some(breaker.least_calls),
            window: Some(duration(breaker.window)),
            open: Some(duration(breaker.open)),
            open_most: Some(duration(breaker.open_most)),
            trials: Some(breaker.trials),
            retry_after_most: Some(duration(breaker.retry_after_most)),
        }),
        outlier: Some(pb::Outlier {
            margin_percent: Some(outlier.margin_percent.into()),
            most_percent: Some(outlier.most_percent.into()),
        }),
        max_concurrent: Some(max_concurrent),
        queue: Some(queue),
        queue_wait: Some(duration(queue_wait)),
        retry: Some(pb::Retry {
            attempts: Some(retry.attempts),
            budget_percent: Some(retry.budget_percent.into()),
            budget_least: Some(retry.budget_least),
            backoff: Some(duration(retry.backoff)),
        }),
    }
}

/// As it is meant, with the defaults of what is not set. Values out of range come out as such, for `Spec::problems` to name.
pub fn from_proto(message: pb::Resilience) -> Resilience {
    let default = Resilience::default();
    let (b, o, r) = (default.breaker, default.outlier, default.retry);
    let breaker = message.breaker.unwrap_or_default();
    let outlier = message.outlier.unwrap_or_default();
    let retry = message.retry.unwrap_or_default();
    let percent = |value: Option<u32>, default: u8| {
        value.map_or(default, |value| u8::try_from(value).unwrap_or(u8::MAX))
    };
    Resilience {
        breaker: Breaker {
            failures: breaker.failures.unwrap_or(b.failures),
            error_percent: percent(breaker.error_percent, b.error_percent),
            least_calls: breaker.least_calls.unwrap_or(b.least_calls),
            window: duration_or(breaker.window, b.window),
            open: duration_or(breaker.open, b.open),
            open_most: duration_or(breaker.open_most, b.open_most),
            trials: breaker.trials.unwrap_or(b.trials),
            retry_after_most: duration_or(breaker.retry_after_most, b.retry_after_most),
        },
        outlier: Outlier {
            margin_percent: percent(outlier.margin_percent, o.margin_percent),
            most_percent: percent(outlier.most_percent, o.most_percent),
        },
        max_concurrent: message.max_concurrent.unwrap_or(default.max_concurrent),
        queue: message.queue.unwrap_or(default.queue),
        queue_wait: duration_or(message.queue_wait, default.queue_wait),
        retry: Retry {
            attempts: retry.attempts.unwrap_or(r.attempts),
            budget_percent: percent(retry.budget_percent, r.budget_percent),
            budget_least: retry.budget_least.unwrap_or(r.budget_least),
            backoff: duration_or(retry.backoff, r.backoff),
        },
    }
}
