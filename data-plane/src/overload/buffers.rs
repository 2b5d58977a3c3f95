//! The budget of bytes that are held of messages: of clients that are being read, of answers that are put together, of
//! answers that a client does not take. Small messages are not counted one by one; how many of them there may be is what
//! the cap on work in flight is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// What each message may take without being counted.
const FREE: usize = 32 * 1024;
/// What a larger one takes beside its bytes: what was read of its connection and not looked at, and the room it grows into.
const EXTRA: usize = 128 * 1024;
/// What is claimed for one message before it is read, at the most, in parts of the budget: who has a claim comes to its end,
/// and a few whose senders stall leave room for others.
const CLAIMS: usize = 16;
/// How often one that waits for others to let go looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The budget of the process.
#[derive(Debug)]
pub struct Buffers {
    most: usize,
    used: AtomicUsize,
    denied: AtomicU64,
}

impl Default for Buffers {
    /// Without an end, for what is no request path.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Buffers {
    /// So many bytes.
    pub fn new(most: usize) -> Self {
        Self { most, used: AtomicUsize::new(0), denied: AtomicU64::new(0) }
    }

    /// Bytes that are held now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that may be held.
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many messages did not get what they needed.
    pub fn denied(&self) -> u64 {
        self.denied.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(bytes) <= self.most;
        if !fits {
            self.used.fetch_sub(bytes, Relaxed);
        }
        fits
    }
}

/// What one message holds of the budget, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    buffers: Arc<Buffers>,
    /// What it asked for.
    bytes: usize,
}

impl Hold {
    /// One that holds nothing yet.
    pub fn new(buffers: &Arc<Buffers>) -> Self {
        Self { buffers: Arc::clone(buffers), bytes: 0 }
    }

    /// Holds so many bytes more. False where they are not to be had, and then it holds what it held.
    #[must_use]
    pub fn grow(&mut self, by: usize) -> bool {
        let bytes = self.bytes.saturating_add(by);
        let more = counted(bytes) - counted(self.bytes);
        let fits = more == 0 || self.buffers.take(more);
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    /// As [`Hold::grow`], but waits until others let go, not beyond `until`.
    #[must_use]
    pub async fn grow_until(&mut self, by: usize, until: Instant) -> bool {
        while !self.grow(by) {
            if Instant::now() >= until {
                self.buffers.denied.fetch_add(1, Relaxed);
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Claims room for a message that is said to have so many bytes, before any of them is read; waits as
    /// [`Hold::grow_until`]. Many that were read in part would fill the budget, and none could come to its end.
    #[must_use]
    pub async fn claim_until(&mut self, said: usize, until: Instant) -> bool {
        self.grow_until(said.min(self.buffers.most / CLAIMS).saturating_sub(self.bytes), until).await
    }

    /// As [`Hold::grow_until`], up to so many bytes in all.
    #[must_use]
    pub async fn reach_until(&mut self, bytes: usize, until: Instant) -> bool {
        self.grow_until(bytes.saturating_sub(self.bytes), until).await
    }

    /// Holds so many bytes more of a message whose room grows by doubling: the room before is there as well for a while.
    #[must_use]
    pub fn grow_twice(&mut self, by: usize) -> bool {
        self.grow(by.saturating_mul(2))
    }

    /// Lets go of all but so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.buffers.used.fetch_sub(counted(self.bytes) - counted(bytes), Relaxed);
            self.bytes = bytes;
        }
    }

    /// Puts what it holds into the bytes that it was held for.
    #[must_use]
    pub fn keep(mut self, bytes: Bytes) -> Bytes {
        self.shrink_to(bytes.len());
        if counted(self.bytes) == 0 { bytes } else { Bytes::from_owner(Held { bytes, _hold: self }) }
    }

    /// Bytes that are held for as long as anybody has them: until they are on their way to the client.
    #[must_use]
    pub fn of(&self, bytes: Bytes) -> Bytes {
        let counts = counted(bytes.len());
        if counts == 0 {
            return bytes;
        }
        // They are there already, so they are counted even where that is too much.
        self.buffers.used.fetch_add(counts, Relaxed);
        let hold = Self { buffers: Arc::clone(&self.buffers), bytes: bytes.len() };
        Bytes::from_owner(Held { bytes, _hold: hold })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

fn counted(bytes: usize) -> usize {
    if bytes <= FREE { 0 } else { bytes.saturating_add(EXTRA) }
}

struct Held {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_held_and_all_is_given_back() {
        let buffers = Arc::new(Buffers::new(100_000 + 2 * EXTRA));
        let mut small = Hold::new(&buffers);
        assert!(small.grow(FREE));
        assert_eq!(buffers.used(), 0, "small messages are not counted");
        let mut large = Hold::new(&buffers);
        assert!(large.grow(30_000) && large.grow(30_000));
        assert_eq!(buffers.used(), 60_000 + EXTRA);
        let mut other = Hold::new(&buffers);
        assert!(!other.grow(50_000));
        assert_eq!(buffers.used(), 60_000 + EXTRA, "a refusal holds nothing");
        large.shrink_to(40_000);
        assert!(other.grow(50_000));
        assert_eq!(buffers.used(), 90_000 + 2 * EXTRA);
        large.shrink_to(10_000);
        assert_eq!(buffers.used(), 50_000 + EXTRA);
        drop((large, other, small));
        assert_eq!(buffers.used(), 0);
    }

    #[test]
    fn bytes_are_held_until_the_last_of_them_is_gone() {
        let buffers = Arc::new(Buffers::new(100_000 + EXTRA));
        let hold = Hold::new(&buffers);
        let bytes = hold.of(Bytes::from(vec![7; 50_000]));
        drop(hold);
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!((buffers.used(), &part[..2]), (50_000 + EXTRA, &[7, 7][..]));
        drop(part);
        assert_eq!(buffers.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_a_part_of_the_budget_and_is_read_into() {
        let most = 160 * (FREE + EXTRA);
        let buffers = Arc::new(Buffers::new(most));
        let mut small = Hold::new(&buffers);
        assert!(small.claim_until(FREE, Instant::now()).await);
        assert_eq!(buffers.used(), 0);
        let mut holds: Vec<Hold> = Vec::new();
        loop {
            let mut hold = Hold::new(&buffers);
            if !hold.claim_until(usize::MAX, Instant::now()).await {
                break;
            }
            holds.push(hold);
        }
        assert_eq!(holds.len(), 14, "sixteen, but for what they take beside their bytes");
        let used = buffers.used();
        assert!(holds[0].reach_until(most / CLAIMS, Instant::now()).await);
        assert_eq!(buffers.used(), used, "what was claimed is there to be read into");
        assert!(!holds[0].reach_until(most, Instant::now()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_others_let_go() {
        let buffers = Arc::new(Buffers::new(100_000 + EXTRA));
        let mut first = Hold::new(&buffers);
        assert!(first.grow(80_000));
        let mut second = Hold::new(&buffers);
        let until = Instant::now() + Duration::from_secs(1);
        assert!(!second.grow_until(50_000, until).await, "nobody has let go");
        assert!(Instant::now() >= until);
        let release = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(first);
        };
        let until = Instant::now() + Duration::from_secs(1);
        let (got, ()) = tokio::join!(second.grow_until(50_000, until), release);
        assert!(got && Instant::now() < until);
    }
}
