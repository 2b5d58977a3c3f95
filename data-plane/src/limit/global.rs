//! The counts that proxies share, in Redis: one task asks for all threads, one round trip for all that waits, one atomic
//! script for all limits of a tenant. Redis that does not answer in time is not waited for: proxies then count by their
//! shares until it does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use prometheus_client::metrics::counter::Counter as Count;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisError, Script};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;
use waffles_core::limit::{CompiledLimit, Subject};
use waffles_runtime::drain::Drain;

use super::count::{Granted, Mode, Wanted};
use super::{Clock, Counter};

/// What a message may wait for Redis.
const BUDGET: Duration = Duration::from_millis(20);
/// What the look whether Redis is back may take.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often that look is taken, and how many of them pass between two words that this proxy is there.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 4;
/// Messages that wait to be asked for. What is more is decided by this proxy's share at once.
const WAITING: usize = 1024;
/// Of those, how many go in one round trip.
const TOGETHER: usize = 64;
/// Counts of what is open that are renewed in one round trip.
const RENEWED: usize = 200;
/// How often what is open is renewed: well before Redis forgets it.
const RENEW: Duration = Duration::from_secs(3);

/// Says that this proxy is there, and answers how many are. Who has said nothing for ten seconds is gone.
const PRESENT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 10000)
redis.call('PEXPIRE', KEYS[1], 60000)
return redis.call('ZCARD', KEYS[1])";

/// For each key: spends what there is of what is wanted, and answers how much that was, what is left, and in how many
/// microseconds there is more. A key holds what was spent by slots of time; `b` says since when it is there, and in its
/// first window `p:` which proxies have told it what they knew before, for Redis may have been emptied. What is open (no slots) is held by each proxy under its name, with an end.
const SPEND: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local me = 'p:' .. ARGV[1]
local out = {}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 6 + 1
  local amount, step, slots = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local want, unreported, told = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local all = redis.call('HGETALL', key)
  local gone = {}
  if slots == 0 then
    local others = 0
    for j = 1, #all, 2 do
      local held, until_ = string.match(all[j + 1], '^(%d+):(%d+)$')
      if not held or tonumber(until_) < now then
        gone[#gone + 1] = all[j]
      elseif all[j] ~= me then
        others = others + tonumber(held)
      end
    end
    local granted = math.max(0, math.min(want, amount - others))
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    if granted > 0 then
      redis.call('HSET', key, me, string.format('%d:%.0f', granted, now + 10000000))
      redis.call('PEXPIRE', key, 20000)
    else
      redis.call('HDEL', key, me)
    end
    out[i] = {granted, math.max(0, amount - others - granted), 1000000}
  else
    local slot = math.floor(now / step)
    local first = slot - slots + 1
    local used, known, birth, live, marks = 0, false, nil, {}, {}
    for j = 1, #all, 2 do
      local field, value = all[j], tonumber(all[j + 1])
      local n = tonumber(field)
      if n and n < first then
        gone[#gone + 1] = field
      elseif n then
        used = used + value
        live[#live + 1] = {n, value}
      elseif field == 'b' then
        birth = value
      else
        marks[#marks + 1] = field
        known = known or field == me
      end
    end
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    local young = not birth or now - birth < step * slots
    if not birth then redis.call('HSET', key, 'b', string.format('%.0f', now)) end
    if young and not known then
      redis.call('HSET', key, me, 1)
      unreported = unreported + told
    elseif not young and #marks > 0 then
      redis.call('HDEL', key, unpack(marks))
    end
    local granted = math.max(0, math.min(want, amount - used - unreported))
    local spent = granted + unreported
    if spent > 0 then
      redis.call('HINCRBY', key, string.format('%.0f', slot), spent)
      live[#live + 1] = {slot, spent}
      used = used + spent
    end
    redis.call('PEXPIRE', key, math.ceil(step * slots / 1000) + 1000)
    local wait = 0
    if granted < want then
      table.sort(live, function(a, b) return a[1] < b[1] end)
      local left = used
      for _, s in ipairs(live) do
        left = left - s[2]
        if left < amount then
          wait = (s[1] + slots) * step - now
          break
        end
      end
      if wait < 1 then wait = 1 end
    end
    out[i] = {granted, math.max(0, amount - used), wait}
  end
end
return out";

/// The way to the shared counts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Global {
    queue: mpsc::Sender<Request>,
    status: Arc<Status>,
    pub(super) clock: Clock,
}

#[derive(Debug)]
struct Status {
    /// Redis answers, as far as is known.
    answers: AtomicBool,
    /// How many proxies count with it, as it said last.
    proxies: AtomicU64,
}

/// What waits for an answer.
#[derive(Debug)]
struct Request {
    asked: Vec<(Arc<CompiledLimit>, Arc<Counter>)>,
    reply: oneshot::Sender<bool>,
}

/// What is counted of the asking.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Round trips.
    pub asked: Count,
    /// Those that failed, or took too long.
    pub failed: Count,
}

/// The task that asks.
pub struct Keeper {
    queue: mpsc::Receiver<Request>,
    status: Arc<Status>,
    clock: Clock,
    connection: ConnectionManager,
    spend: Script,
    present: Script,
    me: String,
    counts: Counts,
    /// What is open at this proxy by the leave of Redis, which has to be renewed. As many as counts that are kept.
    seated: HashMap<Subject, Seat>,
}

struct Seat {
    limit: Arc<CompiledLimit>,
    counter: Arc<Counter>,
    renewed: Instant,
}

impl Seat {
    /// Whether Redis must hear of it: it is about to be forgotten, or less is open than Redis gave leave for.
    fn is_due(&self) -> bool {
        let open = self.counter.open.load(Ordering::Relaxed);
        self.renewed.elapsed() >= RENEW || self.counter.state.lock().has_spare_seats(open)
    }
}

/// One key of a script.
struct Key {
    limit: Arc<CompiledLimit>,
    counter: Arc<Counter>,
    waiting: u64,
}

impl Global {
    /// Does not connect yet, so that Redis may be away at the start.
    pub fn new(url: &SecretString, proxy: Uuid, counts: Counts) -> Result<(Self, Keeper), RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let client = redis::Client::open(url.expose_secret())?;
        let connection = ConnectionManager::new_lazy_with_config(client, config)?;
        let (sender, queue) = mpsc::channel(WAITING);
        // Until it has answered once, nobody waits for it.
        let status = Arc::new(Status { answers: AtomicBool::new(false), proxies: AtomicU64::new(1) });
        let clock = Clock::new();
        let keeper = Keeper {
            queue,
            status: Arc::clone(&status),
            clock,
            connection,
            spend: Script::new(SPEND),
            present: Script::new(PRESENT),
            me: proxy.to_string(),
            counts,
            seated: HashMap::new(),
        };
        Ok((Self { queue: sender, status, clock }, keeper))
    }

    /// Whether Redis answers.
    pub fn answers(&self) -> bool {
        self.status.answers.load(Ordering::Relaxed)
    }

    /// How many proxies count together, as was known last.
    pub fn proxies(&self) -> u64 {
        self.status.proxies.load(Ordering::Relaxed).max(1)
    }

    pub(super) fn mode(&self) -> Mode {
        if self.answers() { Mode::Shared(self.proxies()) } else { self.share() }
    }

    pub(super) fn share(&self) -> Mode {
        Mode::Share(self.proxies())
    }

    /// Asks for what claims need; false where there was no answer in time.
    pub(super) async fn ask(&self, asked: Vec<(Arc<CompiledLimit>, Arc<Counter>)>) -> bool {
        let (reply, answer) = oneshot::channel();
        // A full queue means that Redis is slower than the messages come: their shares decide then.
        if !self.answers() || self.queue.try_send(Request { asked, reply }).is_err() {
            return false;
        }
        matches!(timeout(BUDGET, answer).await, Ok(Ok(true)))
    }
}

impl Keeper {
    /// Asks until the process ends.
    pub async fn run(mut self, drain: Drain) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        loop {
            tokio::select! {
                () = drain.ended() => return,
                _ = looks.tick() => {
                    if !self.status.answers.load(Ordering::Relaxed) || count % LOOKS == 0 {
                        self.look().await;
                    }
                    if count % 2 == 0 {
                        self.renew().await;
                    }
                    count = count.wrapping_add(1);
                }
                request = self.queue.recv() => {
                    let Some(first) = request else { return };
                    self.serve(first).await;
                }
            }
        }
    }

    /// Asks for all that waits, in one round trip.
    async fn serve(&mut self, first: Request) {
        let mut requests = vec![first];
        while requests.len() < TOGETHER
            && let Ok(next) = self.queue.try_recv()
        {
            requests.push(next);
        }
        let mut keys: HashMap<usize, Key> = HashMap::new();
        for (limit, counter) in requests.iter().flat_map(|request| &request.asked) {
            let key = keys.entry(Arc::as_ptr(counter).addr()).or_insert_with(|| Key {
                limit: Arc::clone(limit),
                counter: Arc::clone(counter),
                waiting: 0,
            });
            key.waiting += 1;
        }
        let answered = self.status.answers.load(Ordering::Relaxed)
            && self.spend(keys.into_values().collect(), BUDGET).await;
        for request in requests {
            // Who has gone already did not wait.
            request.reply.send(answered).ok();
        }
    }

    /// One script for each tenant, for its keys are in one slot of a cluster; all of them at once.
    async fn spend(&mut self, keys: Vec<Key>, budget: Duration) -> bool {
        let mut tenants: HashMap<String, Vec<Key>> = HashMap::new();
        for key in keys {
            tenants.entry(key.limit.limit.tenant.clone()).or_default().push(key);
        }
        let (now, proxies) = (self.clock.now(), self.status.proxies.load(Ordering::Relaxed));
        let mut calls = Vec::new();
        for keys in tenants.into_values() {
            let mut invocation = self.spend.prepare_invoke();
            invocation.arg(&self.me);
            let mut asked: Vec<(Key, Wanted)> = Vec::with_capacity(keys.len());
            for key in keys {
                let (limit, shape) = (&key.limit.limit.spec, key.limit.shape);
                let wanted = match limit.kind.has_window() {
                    true => {
                        let mut state = key.counter.state.lock();
                        state.wanted(shape, now, limit.amount, key.waiting, proxies)
                    }
                    false => {
                        let open = key.counter.open.load(Ordering::Relaxed);
                        let want = open.saturating_add(key.waiting).min(limit.amount);
                        Wanted { want, unreported: 0, told: 0 }
                    }
                };
                let slots = if limit.kind.has_window() { shape.slots } else { 0 };
                invocation.key(name(&key.limit, &key.counter.subject));
                invocation.arg(limit.amount).arg(shape.step).arg(slots);
                invocation.arg(wanted.want).arg(wanted.unreported).arg(wanted.told);
                asked.push((key, wanted));
            }
            let mut connection = self.connection.clone();
            calls.push(async move {
                let answer: Result<Vec<(u64, u64, u64)>, RedisError> =
                    invocation.invoke_async(&mut connection).await;
                (asked, answer)
            });
        }
        self.counts.asked.inc();
        let answers = match timeout(budget, join_all(calls)).await {
            Ok(answers) => answers,
            Err(_) => {
                self.failed("it took too long");
                return false;
            }
        };
        let mut sound = true;
        for (asked, answer) in answers {
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.failed(&error.to_string());
                    sound = false;
                    continue;
                }
            };
            let now = self.clock.now();
            for ((key, wanted), (granted, remaining, wait)) in asked.into_iter().zip(answer) {
                let granted = Granted { granted, remaining, wait };
                if key.limit.limit.spec.kind.has_window() {
                    key.counter.state.lock().granted(key.limit.shape, now, wanted, granted);
                    continue;
                }
                key.counter.state.lock().seated(now, wanted.want, granted);
                let subject = key.counter.subject.clone();
                if granted.granted > 0 {
                    let (limit, counter) = (key.limit, key.counter);
                    self.seated.insert(subject, Seat { limit, counter, renewed: Instant::now() });
                } else {
                    self.seated.remove(&subject);
                }
            }
        }
        sound
    }

    /// Renews what is open, and gives back what is not any more.
    async fn renew(&mut self) {
        let key = |seat: &Seat| Key {
            limit: Arc::clone(&seat.limit),
            counter: Arc::clone(&seat.counter),
            waiting: 0,
        };
        let mut due: Vec<Key> = self.seated.values().filter(|seat| seat.is_due()).map(key).collect();
        while !due.is_empty() && self.status.answers.load(Ordering::Relaxed) {
            let rest = due.split_off(due.len().min(RENEWED));
            self.spend(due, PATIENCE).await;
            due = rest;
        }
    }

    /// Whether Redis is there, and who else.
    async fn look(&mut self) {
        let mut invocation = self.present.prepare_invoke();
        invocation.key("{waffles:limit}:proxies").arg(&self.me);
        let mut connection = self.connection.clone();
        let began = Instant::now();
        let answer = timeout(PATIENCE, invocation.invoke_async::<u64>(&mut connection)).await;
        match answer {
            // One that takes so long would be waited for in vain.
            Ok(Ok(proxies)) if began.elapsed() <= BUDGET => {
                self.status.proxies.store(proxies.max(1), Ordering::Relaxed);
                if !self.status.answers.swap(true, Ordering::Relaxed) {
                    tracing::info!(proxies, "redis answers; limits are counted by all proxies together");
                }
            }
            Ok(Ok(_)) => self.failed("it took too long"),
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("it took too long"),
        }
    }

    fn failed(&self, reason: &str) {
        self.counts.failed.inc();
        if self.status.answers.swap(false, Ordering::Relaxed) {
            let proxies = self.status.proxies.load(Ordering::Relaxed);
            tracing::warn!(reason, proxies, "redis does not answer; each proxy counts its share of limits");
        }
    }
}

/// The key of a count. The braces keep the counts of a tenant in one slot of a cluster. A limit that gets another window
/// gets another key.
fn name(limit: &CompiledLimit, subject: &Subject) -> String {
    let text = |id: Option<Uuid>| id.map(|id| id.simple().to_string()).unwrap_or_default();
    let (shape, empty) = (limit.shape, String::new());
    format!(
        "{{waffles:limit:{}}}:{}:{}x{}:{}:{}:{}:{}",
        limit.limit.tenant,
        subject.limit.simple(),
        shape.step,
        shape.slots,
        text(subject.principal),
        subject.key.as_ref().unwrap_or(&empty),
        text(subject.server),
        subject.tool.as_ref().unwrap_or(&empty),
    )
}
