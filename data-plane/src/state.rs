//! What the proxy believes: one immutable snapshot behind one swap. The last good one also lies on disk,
//! sealed and in two generations, so that a proxy starts and serves with its control plane gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
use uuid::Uuid;
use waffles_core::seal::{SealError, SealKey, SealRing};
use waffles_core::snapshot::Snapshot;
use waffles_core::wire;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::FindKeysResponse;
use zeroize::Zeroizing;

use crate::durable;

/// What a sealed snapshot is sealed for, so that nothing else opens as one.
const PURPOSE: &[u8] = b"waffles/proxy/snapshot/1";
/// The two generations, written in turn.
const SLOTS: [&str; 2] = ["snapshot.a", "snapshot.b"];
/// Keys that were found one by one, and what they are sealed for.
const KEYS: &str = "keys.sealed";
const KEYS_PURPOSE: &[u8] = b"waffles/proxy/keys/1";
/// A larger file is not one of ours.
const MAX_FILE: u64 = 512 << 20;

/// What the proxy currently believes. Replaced whole, never edited.
#[derive(Debug)]
pub struct Current {
    snapshot: ArcSwap<Snapshot>,
    changes: watch::Sender<u64>,
    found: watch::Sender<()>,
}

impl Current {
    /// Starts from a snapshot: the one from the disk, or the empty one.
    pub fn new(snapshot: Snapshot) -> Self {
        let (changes, _) = watch::channel(snapshot.revision);
        Self { snapshot: ArcSwap::from_pointee(snapshot), changes, found: watch::Sender::new(()) }
    }

    /// One load a request: every step of that request sees the same revision.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The revision, whenever the snapshot is replaced: a hint to write it to disk. The same revision may come twice,
    /// when a refused resource was mended. Open streams do not wait for it: they look by themselves, since a key may end
    /// without any change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A key was found that was not here: a hint to write those to disk.
    pub(crate) fn found(&self) {
        self.found.send_replace(());
    }

    /// Tells when keys were found.
    pub(crate) fn findings(&self) -> watch::Receiver<()> {
        self.found.subscribe()
    }

    /// Puts the next snapshot in force.
    pub fn replace(&self, next: Snapshot) {
        let revision = next.revision;
        tracing::info!(revision, "serving a new configuration");
        self.snapshot.store(Arc::new(next));
        self.changes.send_replace(revision);
    }
}

/// Why the place for snapshots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file or directory.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The identity is damaged. A new one would orphan what the control plane knows of this proxy, so that is
    /// the operator's choice.
    #[error("{path} does not hold a UUID; remove it to give this proxy a new identity")]
    Identity {
        /// Which file.
        path: PathBuf,
    },
    /// Sealing.
    #[error("cannot seal the snapshot")]
    Seal(#[from] SealError),
    /// A later revision of the same lineage is on disk already.
    #[error("revision {offered} is older than {held}, which is on disk")]
    Older {
        /// The one to save.
        offered: u64,
        /// The one on disk.
        held: u64,
    },
}

/// The identity of this proxy, which it gives itself at its first start.
pub fn proxy_id(dir: &Path) -> Result<Uuid, DiskError> {
    let path = dir.join("proxy.id");
    let failed = |source| DiskError::Io { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| DiskError::Identity { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            durable::directory(dir).map_err(failed)?;
            durable::replace(&path, format!("{id}\n").as_bytes()).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The last good snapshot on disk.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    seal: SealRing,
    newest: Mutex<Option<Place>>,
    foreign: AtomicBool,
}

/// Which file is the newest, and what it holds.
#[derive(Debug, Clone)]
struct Place {
    slot: usize,
    generation: u64,
    lineage: String,
    revision: u64,
}

/// A file that was opened and read whole.
struct Contents {
    place: Place,
    held: pb::Hello,
    state: pb::StreamResponse,
}

impl Disk {
    /// Opens the place, made where absent.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        durable::directory(dir).map_err(|source| DiskError::Io { path: dir.to_owned(), source })?;
        let seal = SealRing::new(vec![SealKey::new(1, &*state_key(&dir.join("state.key"))?)]);
        let disk =
            Self { dir: dir.to_owned(), seal, newest: Mutex::new(None), foreign: AtomicBool::new(false) };
        let newest = disk.contents().into_iter().next().map(|contents| contents.place);
        *disk.newest.lock() = newest;
        Ok(disk)
    }

    /// The newest snapshot that is whole and usable; none where there is none. Nothing is ever taken from a
    /// file that does not open as a whole.
    pub fn load(&self) -> Option<Snapshot> {
        for Contents { place, held, state } in self.contents() {
            let (mut snapshot, refusals) = Snapshot::default().with_update(state.into());
            for refusal in &refusals {
                tracing::warn!(resource = ?refusal.key, reason = refusal.reason, "refused a resource on disk");
            }
            snapshot.refused.extend(held.refused.iter().filter_map(wire::resource_key));
            self.load_keys(&snapshot);
            if snapshot.is_usable() {
                self.foreign.store(held.version != env!("CARGO_PKG_VERSION"), Ordering::Relaxed);
                tracing::info!(
                    revision = place.revision,
                    file = slot_name(place.slot),
                    "loaded the snapshot"
                );
                return Some(snapshot);
            }
        }
        None
    }

    /// Keys that were found one by one are in a file of their own, so that one more of them does not mean to write
    /// everything. It is true of a revision as the snapshot is: one that is older may hold keys that were revoked since.
    fn load_keys(&self, snapshot: &Snapshot) {
        let Some(found) = snapshot.found() else { return };
        let path = self.dir.join(KEYS);
        let sealed = match read_bounded(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::error!(file = KEYS, %error, "cannot read the keys");
                return;
            }
        };
        let plain = self.seal.open(KEYS_PURPOSE, &sealed).ok().map(Zeroizing::new);
        let Some(kept) = plain.and_then(|plain| FindKeysResponse::decode(plain.as_slice()).ok()) else {
            tracing::error!(file = KEYS, "the keys on disk are damaged or another proxy's, not used");
            return;
        };
        if kept.lineage != snapshot.lineage || kept.revision < snapshot.revision {
            tracing::warn!(file = KEYS, "the keys on disk are older than the snapshot, not used");
            return;
        }
        let keys = kept.keys.into_iter().filter_map(|key| wire::key_from_proto(key).ok());
        let count =
            keys.filter(|(hash, key)| found.insert(*hash, Arc::new(key.clone()), kept.revision)).count();
        tracing::info!(count, "loaded the keys that were asked for");
    }

    /// Writes the keys that were found. Blocks on the disk.
    pub fn save_keys(&self, snapshot: &Snapshot) -> Result<(), DiskError> {
        let Some(found) = snapshot.found() else { return Ok(()) };
        let _one_at_a_time = self.newest.lock();
        let (revision, keys) = found.all();
        let kept = FindKeysResponse {
            lineage: snapshot.lineage.clone(),
            revision,
            keys: keys.iter().map(|(hash, key)| wire::found_key(key, hash)).collect(),
        };
        let plain = Zeroizing::new(kept.encode_to_vec());
        let sealed = self.seal.seal(KEYS_PURPOSE, &plain)?;
        let path = self.dir.join(KEYS);
        durable::replace(&path, &sealed).map_err(|source| DiskError::Io { path, source })
    }

    /// Whether the loaded snapshot was written by another version of this program, which may not have
    /// understood all that it was sent.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Relaxed)
    }

    /// Writes a snapshot over the older of the two generations. Blocks on the disk.
    pub fn save(&self, snapshot: &Snapshot) -> Result<(), DiskError> {
        let mut newest = self.newest.lock();
        let (slot, generation) = match newest.as_ref() {
            Some(held) if held.lineage == snapshot.lineage && held.revision > snapshot.revision => {
                return Err(DiskError::Older { offered: snapshot.revision, held: held.revision });
            }
            Some(held) => (1 - held.slot, held.generation + 1),
            None => (0, 1),
        };
        let held = pb::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            lineage: snapshot.lineage.clone(),
            revision: snapshot.revision,
            refused: snapshot.refused.iter().map(wire::reference).collect(),
            ..pb::Hello::default()
        };
        let state = snapshot.to_update();
        let mut plain = Zeroizing::new(Vec::with_capacity(state.encoded_len() + held.encoded_len() + 32));
        plain.extend_from_slice(&generation.to_le_bytes());
        held.encode_length_delimited(&mut *plain).expect("a vector grows");
        state.encode_length_delimited(&mut *plain).expect("a vector grows");
        let sealed = self.seal.seal(PURPOSE, &plain)?;
        let path = self.path(slot);
        durable::replace(&path, &sealed).map_err(|source| DiskError::Io { path, source })?;
        let (lineage, revision) = (snapshot.lineage.clone(), snapshot.revision);
        *newest = Some(Place { slot, generation, lineage, revision });
        Ok(())
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.dir.join(slot_name(slot))
    }

    /// What is whole on disk, best first: within one lineage the later revision, whichever was written last,
    /// so that an old file put in place of the newest does not win; else what was written last.
    fn contents(&self) -> Vec<Contents> {
        let mut found: Vec<Contents> = (0..SLOTS.len()).filter_map(|slot| self.read(slot)).collect();
        found.sort_by_key(|contents| std::cmp::Reverse(contents.place.generation));
        if let [first, second] = found.as_slice()
            && first.place.lineage == second.place.lineage
            && first.place.revision < second.place.revision
        {
            tracing::error!(
                revision = first.place.revision,
                held = second.place.revision,
                "the newer snapshot file holds an older revision, not used"
            );
            found.reverse();
        }
        found
    }

    fn read(&self, slot: usize) -> Option<Contents> {
        let path = self.path(slot);
        let sealed = match read_bounded(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(file = slot_name(slot), %error, "cannot read a snapshot");
                return None;
            }
        };
        let contents = self.seal.open(PURPOSE, &sealed).ok().and_then(|plain| decode(slot, plain));
        if contents.is_none() {
            tracing::error!(file = slot_name(slot), "a snapshot is damaged or another proxy's, not used");
        }
        contents
    }
}

fn decode(slot: usize, plain: Vec<u8>) -> Option<Contents> {
    let plain = Zeroizing::new(plain);
    let (generation, mut rest) = plain.split_first_chunk::<8>()?;
    let held = pb::Hello::decode_length_delimited(&mut rest).ok()?;
    let state = pb::StreamResponse::decode_length_delimited(&mut rest).ok()?;
    let place = Place {
        slot,
        generation: u64::from_le_bytes(*generation),
        lineage: held.lineage.clone(),
        revision: held.revision,
    };
    Some(Contents { place, held, state })
}

fn slot_name(slot: usize) -> &'static str {
    SLOTS.get(slot).copied().unwrap_or_default()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a snapshot"));
    }
    fs::read(path)
}

/// The key that snapshots are sealed with. A damaged one is replaced: what it sealed cannot be opened anyway,
/// and a proxy without a snapshot waits for its control plane.
fn state_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    match fs::read(path).map(Zeroizing::new) {
        Ok(bytes) => match bytes.as_slice().try_into() {
            Ok(key) => return Ok(Zeroizing::new(key)),
            Err(_) => tracing::error!("the key of the snapshots on disk is damaged, making a new one"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| DiskError::Random)?;
    durable::replace(path, &*key).map_err(failed)?;
    Ok(key)
}

#[cfg(test)]
pub(crate) mod tests;
