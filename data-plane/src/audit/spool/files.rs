//! The files of a spool: its lock, its id, the position reached, and segments named by their first sequence
//! number. Opening them finds out where to go on.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use waffles_core::trail::Hash;

use super::{BARE_HEAD, Book, HEAD, Segment, read};
use crate::durable;

const MAGIC: [u8; 8] = *b"WFSPOOL2";
/// Of a segment whose records have no hash.
const BARE_MAGIC: [u8; 8] = *b"WFSPOOL1";
/// Before the records of a segment: the magic and the spool's id, in case that one's file is lost.
pub(super) const SEGMENT_HEAD: u64 = 24;
/// A larger segment is not one of ours.
const MAX_SEGMENT: u64 = 1 << 30;

/// Why the spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another proxy; give each its own data directory")]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// No thread.
    #[error("cannot start the thread that keeps the audit spool")]
    Thread(#[source] io::Error),
}

/// What was found on disk.
pub(super) struct Opened {
    pub(super) lock: File,
    pub(super) id: Uuid,
    pub(super) book: Book,
}

/// How far the spool has come. Written now and then and not synced: without it, records are sent again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) acknowledged: u64,
    pub(super) lost: u64,
    pub(super) next: u64,
    /// The hash of the record before `next`. Counts where no segment tells.
    #[serde(default)]
    pub(super) hash: Option<Hash>,
}

impl Position {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        durable::replace_lazily(&dir.join("position"), &serde_json::to_vec(self)?)
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join("position")).ok()?).ok()
    }
}

pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// Makes the file of a segment. One of that name can only be left from an attempt that failed.
pub(super) fn create_segment(dir: &Path, first: u64, id: Uuid) -> io::Result<File> {
    let mut file = durable::open_options().truncate(true).open(segment_path(dir, first))?;
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(id.as_bytes());
    file.write_all(&head)?;
    Ok(file)
}

pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    durable::directory(dir).map_err(at(dir))?;
    let lock_path = dir.join("lock");
    let lock = durable::open_options().open(&lock_path).map_err(at(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: lock_path }),
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: lock_path, source }),
    }
    let mut segments = segments(dir).map_err(at(dir))?;
    let position = Position::read(dir);
    let known = id(dir, &segments).map_err(at(&dir.join("spool.id")))?;
    // Without a segment, only the position tells which numbers are used up; without both, they begin anew,
    // which takes a new id.
    let id = match known {
        Some(id) if position.is_some() || !segments.is_empty() => id,
        _ => {
            let id = Uuid::new_v4();
            durable::replace(&dir.join("spool.id"), format!("{id}\n").as_bytes())
                .map_err(at(&dir.join("spool.id")))?;
            id
        }
    };
    let position = position.unwrap_or_default();
    let Tail { stored, floor, hash } = last_record(dir, id, &mut segments).map_err(at(dir))?;
    let first = segments.front().map_or(stored + 1, |segment| segment.first);
    let next = position.next.max(stored + 1).max(floor).max(position.acknowledged + 1);
    let book = Book {
        bytes: segments.iter().map(|segment| segment.bytes).sum(),
        segments,
        // The first record begins a segment of its own, so that the end of the last one, which may be torn,
        // is left alone.
        active: None,
        next,
        // A segment that was begun and never used, or is damaged, leaves what the position says.
        hash: hash.or(position.hash).unwrap_or(Hash::START),
        stored: stored.max(position.acknowledged),
        acknowledged: position.acknowledged.max(first.saturating_sub(1)),
        ring: VecDeque::new(),
        ring_bytes: 0,
        lost: position.lost,
        lost_waiting: 0,
        last_lost: 0,
        unsynced: Vec::new(),
        new_names: false,
        // Written at once: a spool without segments needs its position to be recognised.
        position_changed: true,
        failure: None,
        hurry: false,
        closed: false,
    };
    Ok(Opened { lock, id, book })
}

/// The segments by their names, oldest first.
fn segments(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        let Some(first) = number.and_then(|number| number.parse().ok()).filter(|first| *first > 0) else {
            continue;
        };
        let bytes = entry.metadata()?.len();
        if bytes <= MAX_SEGMENT && entry.path() == segment_path(dir, first) {
            found.push(Segment { first, bytes });
        }
    }
    found.sort_by_key(|segment| segment.first);
    Ok(found.into())
}

/// The spool's id: from its file, else from a segment.
fn id(dir: &Path, segments: &VecDeque<Segment>) -> io::Result<Option<Uuid>> {
    match fs::read_to_string(dir.join("spool.id")) {
        Ok(text) => {
            if let Ok(id) = text.trim().parse() {
                return Ok(Some(id));
            }
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {}
        Err(error) => return Err(error),
    }
    let found = segments.iter().rev().find_map(|segment| {
        let mut head = [0; SEGMENT_HEAD as usize];
        File::open(segment_path(dir, segment.first)).ok()?.read_exact(&mut head).ok()?;
        let (magic, id) = head.split_first_chunk::<8>()?;
        (*magic == MAGIC || *magic == BARE_MAGIC).then(|| Uuid::from_slice(id).ok())?
    });
    if let Some(id) = found {
        tracing::warn!(spool.id = %id, "the file with the spool's id was lost, took it from a segment");
        durable::replace(&dir.join("spool.id"), format!("{id}\n").as_bytes())?;
    }
    Ok(found)
}

/// The bytes before each record of a segment that begins with these.
pub(super) fn head_of(segment: &[u8]) -> usize {
    if segment.starts_with(&BARE_MAGIC) { BARE_HEAD } else { HEAD }
}

/// The end of what is on disk.
struct Tail {
    /// The last record.
    stored: u64,
    /// The least number that can follow.
    floor: u64,
    /// The last record's hash, where it is whole and has one.
    hash: Option<Hash>,
}

/// The last record on disk, which is made to survive a power cut.
fn last_record(dir: &Path, id: Uuid, segments: &mut VecDeque<Segment>) -> io::Result<Tail> {
    let mut seed = Hasher::new();
    seed.update(id.as_bytes());
    let Some(last) = segments.back().copied() else { return Ok(Tail { stored: 0, floor: 1, hash: None }) };
    let path = segment_path(dir, last.first);
    let file = File::open(&path)?;
    let mut bytes = Vec::new();
    io::Read::by_ref(&mut &file).take(MAX_SEGMENT).read_to_end(&mut bytes)?;
    let found = read::last(&bytes, &seed, last.first);
    file.sync_data()?;
    durable::sync_directory(dir)?;
    let torn = bytes.len().saturating_sub(found.map_or(0, |last| last.end));
    if found.is_none() && last.is_empty() {
        // Begun and never used: its name is the next record's, which will begin it again.
        segments.pop_back();
        let hash = hash_behind(dir, &seed, segments)?;
        return Ok(Tail { stored: last.first - 1, floor: last.first, hash });
    }
    if torn > 0 {
        tracing::warn!(bytes = torn, "the end of the audit spool is torn: a record was being written");
    }
    // Where no record is whole there was at least one, whose number stays a gap.
    let stored = found.map_or(last.first - 1, |record| record.sequence);
    let hash = match found {
        Some(record) => record.hash,
        None => hash_behind(dir, &seed, segments)?,
    };
    Ok(Tail { stored, floor: last.first + 1, hash })
}

/// The hash of the last whole record of some segments, which are looked through from the end.
fn hash_behind(dir: &Path, seed: &Hasher, segments: &VecDeque<Segment>) -> io::Result<Option<Hash>> {
    for segment in segments.iter().rev() {
        let bytes = std::fs::read(segment_path(dir, segment.first))?;
        if let Some(record) = read::last(&bytes, seed, segment.first) {
            return Ok(record.hash);
        }
    }
    Ok(None)
}
