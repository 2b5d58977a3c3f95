//! Records on disk: segments that are appended to and dropped as a whole once acknowledged. A record is
//! written before `append` returns and synced with its neighbours a little later, by a thread of the spool's
//! own. What cannot be written waits in a bounded ring in memory; what does not fit there is lost and counted,
//! and its sequence number stays a gap.

mod files;
mod keeper;
mod read;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crc32fast::Hasher;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use uuid::Uuid;
use waffles_core::trail::{self, Hash};

pub use files::OpenError;
pub(crate) use read::{Cursor, Record};

/// Before each record: its length, its checksum, its sequence number and its hash.
pub(crate) const HEAD: usize = 48;
/// The same in a segment that was written before records had a hash.
const BARE_HEAD: usize = 16;
/// The longest record. With its place in a batch it stays within a batch's 1 MiB.
pub(crate) const MAX_PAYLOAD: usize = (1 << 20) - 128;
/// What a record in the ring costs beside its bytes.
const RING_OVERHEAD: usize = 48;

/// How much the spool may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes on disk.
    pub disk: u64,
    /// Bytes of one segment.
    pub segment: u64,
    /// Bytes in memory, while the disk takes nothing.
    pub ring: usize,
    /// How long a record may wait to be synced.
    pub sync_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { disk: 1 << 30, segment: 8 << 20, ring: 64 << 20, sync_every: Duration::from_millis(25) }
    }
}

/// The records of this proxy that are not known to be stored.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    keeper: Option<std::thread::JoinHandle<()>>,
    /// Held as long as the spool is open, so that two proxies never share one.
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    id: Uuid,
    /// Checksums begin with the spool's id: bytes inside a payload cannot be taken for a record.
    seed: Hasher,
    limits: Limits,
    book: Mutex<Book>,
    /// Wakes the keeper.
    work: Condvar,
    sound: AtomicBool,
    /// Everything up to this sequence number survives a power cut. Only that is sent up: a record that was
    /// stored and then lost here would leave its number to another one, which would pass for a duplicate.
    synced: watch::Sender<u64>,
}

/// What the lock protects.
#[derive(Debug)]
struct Book {
    /// Oldest first. The last one is never dropped, so that its name keeps the sequence going.
    segments: VecDeque<Segment>,
    /// The last segment, open; none where the next record begins a new one.
    active: Option<Arc<File>>,
    bytes: u64,
    next: u64,
    /// The hash of the record before `next`, wherever that one is: what is lost has none.
    hash: Hash,
    /// The last record on disk.
    stored: u64,
    acknowledged: u64,
    ring: VecDeque<Held>,
    ring_bytes: usize,
    lost: u64,
    /// Lost numbers that are not yet below `acknowledged`.
    lost_waiting: u64,
    last_lost: u64,
    /// Files with unsynced records.
    unsynced: Vec<Arc<File>>,
    new_names: bool,
    position_changed: bool,
    failure: Option<String>,
    hurry: bool,
    closed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    first: u64,
    bytes: u64,
}

impl Segment {
    fn is_empty(&self) -> bool {
        self.bytes <= files::SEGMENT_HEAD
    }
}

/// A record in the ring.
#[derive(Debug)]
struct Held {
    sequence: u64,
    frame: Box<[u8]>,
}

/// Why a record did not go to disk.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the spool is full: {0} bytes, none of them acknowledged")]
    Full(u64),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Spool {
    /// Opens the spool in a directory of its own, made where absent, and goes on after its last record.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        let files::Opened { lock, id, book } = files::open(dir)?;
        let mut seed = Hasher::new();
        seed.update(id.as_bytes());
        let (synced, _) = watch::channel(book.stored);
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            id,
            seed,
            limits,
            book: Mutex::new(book),
            work: Condvar::new(),
            sound: AtomicBool::new(false),
            synced,
        });
        shared.judge(&shared.book.lock());
        let keeper = keeper::spawn(Arc::clone(&shared)).map_err(OpenError::Thread)?;
        Ok(Self { shared, keeper: Some(keeper), _lock: lock })
    }

    /// Its id: sequence numbers count within it.
    pub(crate) fn id(&self) -> Uuid {
        self.shared.id
    }

    /// Appends a record: `HEAD` bytes to fill in, then the payload.
    pub(crate) fn append(&self, frame: &mut [u8]) {
        self.append_within(frame, self.shared.limits.disk);
    }

    /// Appends a record about somebody who is nobody. Such records get half of the space: with the control plane away,
    /// strangers could else fill the spool and stop the calls that must not go unrecorded. What does not fit is counted.
    pub(crate) fn append_of_stranger(&self, frame: &mut [u8]) {
        self.append_within(frame, self.shared.limits.disk / 2);
    }

    fn append_within(&self, frame: &mut [u8], most: u64) {
        // All that does not need the sequence number is done before the lock.
        let checksum = self.shared.checksum(frame);
        let digest = trail::digest(frame.get(HEAD..).unwrap_or_default());
        let mut book = self.shared.book.lock();
        let sequence = book.next;
        book.next += 1;
        if book.bytes > most {
            book.lose(sequence);
            self.shared.work.notify_one();
            return;
        }
        let hash = trail::link(self.shared.id, sequence, &book.hash, &digest);
        seal(frame, checksum, sequence, &hash);
        if book.ring.is_empty() {
            match self.shared.write(&mut book, sequence, frame) {
                Ok(()) => {
                    book.hash = hash;
                    return;
                }
                Err(error) => book.fail(&error),
            }
        }
        if book.hold(sequence, frame, self.shared.limits.ring) {
            book.hash = hash;
        }
        self.shared.judge(&book);
        if book.ring.len() < 2 {
            self.shared.work.notify_one();
        }
    }

    /// Everything up to this number is stored by the control plane and may be dropped here.
    pub(crate) fn acknowledge(&self, through: u64) {
        let mut book = self.shared.book.lock();
        let through = through.min(book.stored);
        if through <= book.acknowledged {
            return;
        }
        book.acknowledged = through;
        book.position_changed = true;
        if through > book.last_lost {
            book.lost_waiting = 0;
        }
        self.shared.work.notify_one();
    }

    /// Tells whenever records are synced: the last one's number.
    pub(crate) fn synced(&self) -> watch::Receiver<u64> {
        self.shared.synced.subscribe()
    }

    /// Has what was written synced at once, and returns the number of the last record on disk.
    pub(crate) fn hurry(&self) -> u64 {
        let mut book = self.shared.book.lock();
        book.hurry = true;
        self.shared.work.notify_one();
        book.stored
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.book.lock().acknowledged
    }

    /// Whether a record that is appended now goes to disk, and the next few as well.
    pub(crate) fn is_sound(&self) -> bool {
        self.shared.sound.load(Ordering::Relaxed)
    }

    pub(crate) fn depth(&self) -> u64 {
        self.shared.book.lock().depth()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.shared.book.lock().lost
    }

    pub(crate) fn report(&self) -> serde_json::Value {
        let book = self.shared.book.lock();
        serde_json::json!({
            "spool_id": self.shared.id,
            "depth": book.depth(),
            "lost": book.lost,
            "acknowledged": book.acknowledged,
            "stored": book.stored,
            "segments": book.segments.len(),
            "bytes": book.bytes,
            "bytes_max": self.shared.limits.disk,
            "in_memory": book.ring.len(),
            "failure": book.failure,
        })
    }
}

impl Drop for Spool {
    /// The keeper makes a last attempt at what is in the ring, syncs and writes the position down.
    fn drop(&mut self) {
        self.shared.book.lock().closed = true;
        self.shared.work.notify_one();
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the keeper of the audit spool had panicked");
        }
    }
}

impl Shared {
    /// The checksum of everything but the sequence number, which is added by `seal`.
    fn checksum(&self, frame: &[u8]) -> Hasher {
        let payload = frame.get(HEAD..).unwrap_or_default();
        let mut checksum = self.seed.clone();
        checksum.update(&length(payload).to_le_bytes());
        checksum.update(payload);
        checksum
    }

    /// Writes a record to the end of the last segment. A failed write leaves the end where it was, so that
    /// the next one overwrites what came of it.
    fn write(&self, book: &mut Book, sequence: u64, frame: &[u8]) -> Result<(), WriteError> {
        let size = frame.len() as u64;
        if book.bytes + size > self.limits.disk {
            return Err(WriteError::Full(book.bytes));
        }
        let most = self.limits.segment.min(self.limits.disk / 4);
        let file = match (&book.active, book.segments.back()) {
            (Some(file), Some(last)) if last.bytes + size <= most || last.is_empty() => Arc::clone(file),
            _ => self.begin(book, sequence)?,
        };
        let last = book.segments.back_mut().expect("an open file has its segment");
        file.write_all_at(frame, last.bytes)?;
        last.bytes += size;
        book.bytes += size;
        book.stored = sequence;
        if book.unsynced.is_empty() {
            self.work.notify_one();
        }
        if !book.unsynced.last().is_some_and(|unsynced| Arc::ptr_eq(unsynced, &file)) {
            book.unsynced.push(file);
        }
        if book.bytes + self.headroom() > self.limits.disk {
            self.judge(book);
        }
        Ok(())
    }

    /// Begins a segment with the record of this number.
    fn begin(&self, book: &mut Book, first: u64) -> io::Result<Arc<File>> {
        let file = Arc::new(files::create_segment(&self.dir, first, self.id)?);
        if book.segments.back().is_some_and(|last| last.first == first) {
            // It was begun before, and its first record failed.
            book.segments.pop_back();
            book.bytes -= files::SEGMENT_HEAD;
        }
        book.segments.push_back(Segment { first, bytes: files::SEGMENT_HEAD });
        book.bytes += files::SEGMENT_HEAD;
        book.active = Some(Arc::clone(&file));
        book.new_names = true;
        Ok(file)
    }

    /// Works out anew whether strict calls may go ahead. They need room for themselves and for those that
    /// were let in at the same time.
    fn judge(&self, book: &Book) {
        let room = book.bytes + self.headroom() <= self.limits.disk;
        let sound = room && book.ring.is_empty() && book.failure.is_none();
        self.sound.store(sound, Ordering::Relaxed);
    }

    fn headroom(&self) -> u64 {
        (self.limits.disk / 8).min(8 << 20)
    }
}

impl Book {
    fn depth(&self) -> u64 {
        let last = self.ring.back().map_or(self.stored, |held| held.sequence);
        if last <= self.acknowledged {
            return 0;
        }
        // Never none while one is left, though lost numbers below the acknowledged are counted off as well.
        (self.next - 1 - self.acknowledged).saturating_sub(self.lost_waiting).max(1)
    }

    fn fail(&mut self, error: &WriteError) {
        if self.failure.is_none() {
            tracing::error!(%error, "audit records do not go to disk, keeping them in memory");
        }
        self.failure = Some(error.to_string());
    }

    /// Keeps a record in the ring, or counts it as lost. Says which.
    fn hold(&mut self, sequence: u64, frame: &[u8], most: usize) -> bool {
        let cost = frame.len() + RING_OVERHEAD;
        let fits = self.ring_bytes + cost <= most;
        if fits {
            self.ring_bytes += cost;
            self.ring.push_back(Held { sequence, frame: frame.into() });
        } else {
            self.lose(sequence);
        }
        // Its number is used up, whatever becomes of this process.
        self.position_changed = true;
        fits
    }

    fn lose(&mut self, sequence: u64) {
        if self.lost_waiting == 0 {
            tracing::error!(
                lost = self.lost + 1,
                "no room for audit records on disk or in memory, losing them"
            );
        }
        self.lost += 1;
        self.lost_waiting += 1;
        self.last_lost = self.last_lost.max(sequence);
        self.position_changed = true;
    }
}

/// Fills in the head of a record.
fn seal(frame: &mut [u8], mut checksum: Hasher, sequence: u64, hash: &Hash) {
    let Some((head, payload)) = frame.split_first_chunk_mut::<HEAD>() else { return };
    checksum.update(&sequence.to_le_bytes());
    checksum.update(&hash.0);
    let mut word = u128::from(length(payload));
    word |= u128::from(checksum.finalize()) << 32;
    word |= u128::from(sequence) << 64;
    let (bare, linked) = head.split_at_mut(BARE_HEAD);
    bare.copy_from_slice(&word.to_le_bytes());
    linked.copy_from_slice(&hash.0);
}

fn length(payload: &[u8]) -> u32 {
    u32::try_from(payload.len()).expect("a payload is below 1 MiB")
}

#[cfg(test)]
mod tests;
