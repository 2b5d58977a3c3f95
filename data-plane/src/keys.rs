//! API keys that are not here because there are too many of them: asked for once each, over the channel that the
//! configuration comes by. A flood of keys that nobody has must not become a flood of questions.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use waffles_core::credential::KeyHash;
use waffles_core::found::FoundKeys;
use waffles_core::wire;
use waffles_proto::discovery::v1::key_service_client::KeyServiceClient;
use waffles_proto::discovery::v1::{FindKeysRequest, FindKeysResponse};
use waffles_runtime::task;

use crate::link::MAX_MESSAGE;
use crate::metrics::Metrics;
use crate::state::Current;

/// How long a question may take, attempts included.
const ASK_TIME: Duration = Duration::from_secs(2);
/// An answer from before a configuration that came meanwhile is asked for again.
const ATTEMPTS: usize = 3;
/// How long a key that does not exist is not asked for again. It can never come to exist: keys are made by the control
/// plane, at random.
const REFUSED_TIME: Duration = Duration::from_secs(300);
const REFUSED: u64 = 100_000;
/// Questions a second in all, and of one address; as many may come at once after a quiet time as two seconds bring.
const RATE: f64 = 200.0;
const RATE_OF_ADDRESS: f64 = 40.0;
const ADDRESSES: u64 = 10_000;
/// Questions under way. More of them are refused: that is a flood, or a control plane that hangs.
const MOST_WAITING: usize = 1000;
/// Keys in one question, when those that were known are looked up again.
const AT_ONCE: usize = 500;
/// How long that may take in all. Keys that are not answered by then are asked for when they are used.
const AGAIN_TIME: Duration = Duration::from_secs(5);

/// Why a key is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no such key, or not any more.
    #[error("there is no such key")]
    Unknown,
    /// The control plane cannot be asked.
    #[error("the control plane cannot be asked for the key")]
    Away,
    /// Too many unknown keys at once.
    #[error("too many unknown keys at once")]
    Busy,
}

type Answer = Result<(), Missing>;

/// Finds keys. Shared by all threads.
pub struct Finder {
    current: Arc<Current>,
    metrics: Metrics,
    line: Arc<Line>,
    /// Keys that are being asked for: whoever wants the same one waits for the same answer.
    waiting: Mutex<HashMap<KeyHash, watch::Receiver<Option<Answer>>>>,
    refused: Cache<KeyHash, ()>,
    bucket: Mutex<Bucket>,
    by_address: Cache<IpAddr, Arc<Mutex<Bucket>>>,
}

/// The way to the control plane, while there is one.
#[derive(Debug, Default)]
pub struct Line(ArcSwapOption<Open>);

#[derive(Debug)]
struct Open(Channel);

impl Line {
    /// A configuration stream is open on this channel.
    pub(crate) fn open(&self, channel: Channel) {
        self.0.store(Some(Arc::new(Open(channel))));
    }

    /// It is not any more.
    pub(crate) fn close(&self) {
        self.0.store(None);
    }

    async fn ask(&self, hashes: Vec<Vec<u8>>) -> Result<FindKeysResponse, Missing> {
        let open = self.0.load_full().ok_or(Missing::Away)?;
        let mut client = KeyServiceClient::new(open.0.clone()).max_decoding_message_size(MAX_MESSAGE);
        let answer = timeout(ASK_TIME, client.find_keys(FindKeysRequest { hashes })).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(%status, "keys cannot be asked for");
                Err(Missing::Away)
            }
            Err(_) => Err(Missing::Away),
        }
    }

    /// Looks up again what was found under another configuration, for one that is about to come into force.
    pub(crate) async fn again(&self, lineage: &str, before: &FoundKeys, next: &FoundKeys) {
        let hashes: Vec<Vec<u8>> = before.all().1.into_iter().map(|(hash, _)| hash.to_vec()).collect();
        let all = async {
            for some in hashes.chunks(AT_ONCE) {
                let Ok(answer) = self.ask(some.to_vec()).await else { return };
                take(answer, lineage, next);
            }
        };
        if timeout(AGAIN_TIME, all).await.is_err() {
            tracing::warn!("keys that were known could not all be looked up again in time");
        }
    }
}

impl Finder {
    /// None are found yet.
    pub fn new(current: Arc<Current>, line: Arc<Line>, metrics: Metrics) -> Self {
        Self {
            current,
            metrics,
            line,
            waiting: Mutex::default(),
            refused: Cache::builder().max_capacity(REFUSED).time_to_live(REFUSED_TIME).build(),
            bucket: Mutex::new(Bucket::new(RATE)),
            by_address: Cache::builder()
                .max_capacity(ADDRESSES)
                .time_to_idle(Duration::from_secs(60))
                .build(),
        }
    }

    /// Sees to it that a key is in the snapshot in force, if it exists. Its form and checksum were found right.
    pub async fn find(self: &Arc<Self>, hash: KeyHash, address: IpAddr) -> Result<(), Missing> {
        if self.refused.contains_key(&hash) {
            return Err(Missing::Unknown);
        }
        let joined = self.join(hash, address);
        if joined.is_err() {
            self.metrics.key_lookup("busy");
        }
        let mut answer = joined?;
        let answered = timeout(ASK_TIME * 2, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answer)) => answer.unwrap_or(Err(Missing::Away)),
            // The task is gone, or hangs.
            Ok(Err(_)) | Err(_) => Err(Missing::Away),
        }
    }

    fn join(
        self: &Arc<Self>,
        hash: KeyHash,
        address: IpAddr,
    ) -> Result<watch::Receiver<Option<Answer>>, Missing> {
        let mut waiting = self.waiting.lock();
        if let Some(answer) = waiting.get(&hash) {
            return Ok(answer.clone());
        }
        if waiting.len() >= MOST_WAITING {
            return Err(Missing::Busy);
        }
        let now = Instant::now();
        let of_address =
            self.by_address.get_with(address, || Arc::new(Mutex::new(Bucket::new(RATE_OF_ADDRESS))));
        if !of_address.lock().take(now) || !self.bucket.lock().take(now) {
            return Err(Missing::Busy);
        }
        let (told, answer) = watch::channel(None);
        waiting.insert(hash, answer.clone());
        drop(waiting);
        let finder = Arc::clone(self);
        // A task of its own, so that a client that hangs up takes nobody's answer away.
        task::spawn("find-key", async move {
            let found = finder.ask(hash).await;
            if found == Err(Missing::Unknown) {
                finder.refused.insert(hash, ());
            }
            finder.metrics.key_lookup(match found {
                Ok(()) => "found",
                Err(Missing::Unknown) => "unknown",
                Err(Missing::Away) => "away",
                Err(Missing::Busy) => "busy",
            });
            finder.waiting.lock().remove(&hash);
            told.send_replace(Some(found));
        });
        Ok(answer)
    }

    async fn ask(&self, hash: KeyHash) -> Answer {
        for _ in 0..ATTEMPTS {
            let answer = self.line.ask(vec![hash.to_vec()]).await?;
            let snapshot = self.current.load();
            let Some(found) = snapshot.found() else { return Err(Missing::Unknown) };
            if answer.lineage != snapshot.lineage {
                return Err(Missing::Away);
            }
            if answer.keys.is_empty() {
                return Err(Missing::Unknown);
            }
            if take(answer, &snapshot.lineage, found) > 0 {
                self.current.found();
                return Ok(());
            }
        }
        Err(Missing::Away)
    }
}

/// Remembers the keys of an answer; how many of them could be.
fn take(answer: FindKeysResponse, lineage: &str, found: &FoundKeys) -> usize {
    let FindKeysResponse { lineage: theirs, revision, keys } = answer;
    if theirs != lineage {
        return 0;
    }
    let mut taken = 0;
    for key in keys {
        match wire::key_from_proto(key) {
            Ok((hash, key)) => taken += usize::from(found.insert(hash, Arc::new(key), revision)),
            // What narrows it is not understood, so it counts as absent.
            Err(reason) => tracing::error!(reason, "refused an API key"),
        }
    }
    taken
}

/// So many a second, and twice as many at once.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn new(rate: f64) -> Self {
        Self { rate, left: rate * 2.0, at: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + since * self.rate).min(self.rate * 2.0);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_rate_and_no_more() {
        let mut bucket = Bucket::new(10.0);
        let now = Instant::now();
        assert_eq!((0..100).filter(|_| bucket.take(now)).count(), 20);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 10);
    }

    #[tokio::test]
    async fn without_a_control_plane_a_key_is_not_said_to_be_unknown() {
        let metrics = Metrics::new(&waffles_runtime::telemetry::Metrics::new());
        let current = Arc::new(Current::new(Default::default()));
        let finder = Arc::new(Finder::new(current, Arc::default(), metrics));
        let address = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(finder.find([1; 32], address).await, Err(Missing::Away));
        for n in 0..200 {
            assert!(finder.find([n; 32], address).await.is_err());
        }
        assert_eq!(finder.find([201; 32], address).await, Err(Missing::Busy));
        assert_eq!(finder.find([201; 32], IpAddr::from([127, 0, 0, 2])).await, Err(Missing::Away));
    }
}
