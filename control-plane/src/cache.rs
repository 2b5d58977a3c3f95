//! What replicas share for a short while, in Redis: how often someone tried to log in. Without Redis, or while
//! it fails, each process counts by itself, so that a lost Redis neither locks anyone out nor opens the door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisError, Script};
use tokio::time::Instant;

/// Attempts are counted from the first one on, and forgotten after this time.
const WINDOW: Duration = Duration::from_secs(300);
/// What a command may take. Log-in must not wait for a dead Redis.
const BUDGET: Duration = Duration::from_millis(50);
/// Counters a process keeps; with more, the least used are forgotten.
const MOST: u64 = 100_000;

/// Counts up and answers with the milliseconds to wait, 0 when within all limits. One script, so that two
/// attempts at once cannot both be the last permitted one.
const SPEND: &str = "
local wait = 0
for i, key in ipairs(KEYS) do
  local count = redis.call('INCR', key)
  if count == 1 then redis.call('PEXPIRE', key, ARGV[1]) end
  if count > tonumber(ARGV[i + 1]) then wait = math.max(wait, redis.call('PTTL', key), 1) end
end
return wait";

/// Counts down again, without leaving a counter below zero or without an end.
const REFUND: &str = "
for _, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or '0') > 0 then redis.call('DECR', key) end
end
return 0";

/// What one attempt counts against.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Name of the counter; holds no personal data.
    pub key: String,
    /// Attempts in a window.
    pub most: u32,
}

/// Slows down guessing.
#[derive(Clone)]
pub(crate) struct Throttle {
    redis: Option<Redis>,
    local: moka::sync::Cache<String, Counter>,
}

#[derive(Clone)]
struct Counter {
    since: Instant,
    count: Arc<AtomicU32>,
}

#[derive(Clone)]
struct Redis {
    connection: ConnectionManager,
    spend: Arc<Script>,
    refund: Arc<Script>,
    failing: Arc<AtomicBool>,
}

impl Throttle {
    /// Counts in Redis where a URL is given. Does not connect yet, so Redis may be away at start.
    pub(crate) fn new(redis_url: Option<&str>) -> Result<Self, RedisError> {
        let redis = redis_url.map(Redis::new).transpose()?;
        let local = moka::sync::Cache::builder().max_capacity(MOST).time_to_live(WINDOW).build();
        Ok(Self { redis, local })
    }

    /// Counts an attempt; the error says how long to wait. Counted before the attempt is judged, so that many
    /// at once do not slip through.
    pub(crate) async fn spend(&self, budgets: &[Budget]) -> Result<(), Duration> {
        if let Some(redis) = &self.redis
            && let Some(wait) = redis.spend(budgets).await
        {
            return if wait.is_zero() { Ok(()) } else { Err(wait) };
        }
        let mut wait = Duration::ZERO;
        for budget in budgets {
            let counter = self.local.get_with_by_ref(&budget.key, || Counter {
                since: Instant::now(),
                count: Arc::new(AtomicU32::new(0)),
            });
            if counter.count.fetch_add(1, Ordering::Relaxed) >= budget.most {
                wait = wait.max(WINDOW.saturating_sub(counter.since.elapsed())).max(Duration::from_secs(1));
            }
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes an attempt back: it was a good one.
    pub(crate) async fn refund(&self, budgets: &[Budget]) {
        if let Some(redis) = &self.redis
            && redis.refund(budgets).await
        {
            return;
        }
        for counter in budgets.iter().filter_map(|budget| self.local.get(&budget.key)) {
            let lower = |count: u32| Some(count.saturating_sub(1));
            // Never fails: the closure always gives a value.
            counter.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower).ok();
        }
    }
}

impl Redis {
    fn new(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(BUDGET))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let connection = ConnectionManager::new_lazy_with_config(redis::Client::open(url)?, config)?;
        Ok(Self {
            connection,
            spend: Arc::new(Script::new(SPEND)),
            refund: Arc::new(Script::new(REFUND)),
            failing: Arc::default(),
        })
    }

    /// How long to wait; none when Redis gave no answer.
    async fn spend(&self, budgets: &[Budget]) -> Option<Duration> {
        let mut call = self.spend.prepare_invoke();
        call.arg(u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX));
        for budget in budgets {
            call.key(name(budget)).arg(budget.most);
        }
        self.answer(call).await.map(Duration::from_millis)
    }

    async fn refund(&self, budgets: &[Budget]) -> bool {
        let mut call = self.refund.prepare_invoke();
        for budget in budgets {
            call.key(name(budget));
        }
        self.answer(call).await.is_some()
    }

    async fn answer(&self, call: redis::ScriptInvocation<'_>) -> Option<u64> {
        let mut connection = self.connection.clone();
        let error = match tokio::time::timeout(BUDGET, call.invoke_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("redis answers again");
                }
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "redis does not answer; log-in attempts are counted in this process only");
        }
        None
    }
}

/// The braces keep the counters of one attempt in one slot of a cluster.
fn name(budget: &Budget) -> String {
    format!("{{waffles:login}}:{}", budget.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(most: u32) -> Vec<Budget> {
        vec![Budget { key: "account".into(), most }, Budget { key: "address".into(), most: most * 10 }]
    }

    #[tokio::test]
    async fn attempts_above_the_limit_wait_and_good_ones_do_not_count() {
        let throttle = Throttle::new(None).unwrap();
        for _ in 0..50 {
            throttle.spend(&budgets(3)).await.unwrap();
            throttle.refund(&budgets(3)).await;
        }
        for _ in 0..3 {
            throttle.spend(&budgets(3)).await.unwrap();
        }
        let wait = throttle.spend(&budgets(3)).await.unwrap_err();
        assert!(wait > Duration::ZERO && wait <= WINDOW);
        let other = [Budget { key: "other".into(), most: 3 }];
        throttle.spend(&other).await.unwrap();
    }

    /// Needs a Redis, which `WAFFLES_TEST_REDIS` names.
    #[tokio::test]
    async fn replicas_count_together() {
        #[allow(clippy::disallowed_methods, reason = "a test is told by the environment where Redis is")]
        let Ok(url) = std::env::var("WAFFLES_TEST_REDIS") else { return };
        let (one, other) = (Throttle::new(Some(&url)).unwrap(), Throttle::new(Some(&url)).unwrap());
        let key = format!("test-{}", uuid::Uuid::now_v7());
        let budget = [Budget { key, most: 2 }];
        one.spend(&budget).await.unwrap();
        one.refund(&budget).await;
        one.spend(&budget).await.unwrap();
        other.spend(&budget).await.unwrap();
        let wait = one.spend(&budget).await.unwrap_err();
        assert!(wait > Duration::from_secs(290) && wait <= WINDOW, "{wait:?}");
        assert!(one.local.get(&budget[0].key).is_none(), "Redis did not answer");
    }

    #[tokio::test]
    async fn a_dead_redis_is_not_waited_for_and_attempts_still_count() {
        let throttle = Throttle::new(Some("redis://127.0.0.1:1/")).unwrap();
        let before = Instant::now();
        throttle.spend(&budgets(1)).await.unwrap();
        assert!(throttle.spend(&budgets(1)).await.is_err());
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}
