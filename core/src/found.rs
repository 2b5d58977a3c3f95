//! API keys that a proxy was told one by one, where there are too many to tell it all of them. Shared by the snapshots of
//! one proxy, since a key that is found changes none of what a snapshot decides; what a later configuration takes away is
//! gone from it at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::credential::{ApiKey, KeyHash};

/// Threads that look for keys seldom meet at the same part.
const PARTS: usize = 16;
/// Keys that are remembered: about 60 MiB of them.
const MOST: usize = 100_000;

/// The keys.
#[derive(Debug)]
pub struct FoundKeys {
    parts: [RwLock<Part>; PARTS],
    /// Taken first by whoever changes anything.
    index: Mutex<Index>,
    most: usize,
}

#[derive(Debug, Default)]
struct Part {
    keys: HashMap<KeyHash, Entry>,
    /// In the order in which they were found, or found useful.
    line: VecDeque<KeyHash>,
}

#[derive(Debug)]
struct Entry {
    key: Arc<ApiKey>,
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Index {
    /// What was taken away up to this revision is gone from here.
    revision: u64,
    by_id: HashMap<String, KeyHash>,
}

impl FoundKeys {
    /// None yet, under the configuration of a revision.
    pub fn new(revision: u64) -> Self {
        Self::at_most(MOST, revision)
    }

    fn at_most(most: usize, revision: u64) -> Self {
        let index = Index { revision, by_id: HashMap::new() };
        Self { parts: Default::default(), index: Mutex::new(index), most }
    }

    /// A key by the hash of its text.
    pub fn get(&self, hash: &KeyHash) -> Option<Arc<ApiKey>> {
        let part = self.part(hash).read();
        let entry = part.keys.get(hash)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&entry.key))
    }

    /// A key by its public id.
    pub fn by_id(&self, id: &str) -> Option<Arc<ApiKey>> {
        let hash = *self.index.lock().by_id.get(id)?;
        self.get(&hash)
    }

    /// Remembers a key as it was at a revision. False, and not remembered, when a later configuration is in force, which
    /// may have taken the key away: then it must be asked for again.
    #[must_use]
    pub fn insert(&self, hash: KeyHash, key: Arc<ApiKey>, revision: u64) -> bool {
        let mut index = self.index.lock();
        if revision < index.revision {
            return false;
        }
        let mut part = self.part(&hash).write();
        while part.keys.len() >= (self.most / PARTS).max(1) {
            let Some(gone) = part.make_room() else { break };
            index.by_id.remove(&gone);
        }
        index.by_id.insert(key.id.clone(), hash);
        let entry = Entry { key, used: AtomicBool::new(false) };
        if part.keys.insert(hash, entry).is_none() {
            part.line.push_back(hash);
        }
        true
    }

    /// A later configuration comes into force. To be called before what it takes away is removed, so that what was asked
    /// for under the one before is not remembered after it.
    pub(crate) fn advance(&self, revision: u64) {
        let mut index = self.index.lock();
        index.revision = index.revision.max(revision);
    }

    /// Forgets a key.
    pub(crate) fn remove(&self, id: &str) {
        let mut index = self.index.lock();
        let Some(hash) = index.by_id.remove(id) else { return };
        let mut part = self.part(&hash).write();
        part.keys.remove(&hash);
        part.line.retain(|other| *other != hash);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.lock().by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, and the revision up to which they are true.
    pub fn all(&self) -> (u64, Vec<(KeyHash, Arc<ApiKey>)>) {
        let index = self.index.lock();
        let mut all = Vec::with_capacity(index.by_id.len());
        for part in &self.parts {
            all.extend(part.read().keys.iter().map(|(hash, entry)| (*hash, Arc::clone(&entry.key))));
        }
        (index.revision, all)
    }

    fn part(&self, hash: &KeyHash) -> &RwLock<Part> {
        let [first, ..] = hash;
        // Hashes are as good as random.
        self.parts.get(usize::from(*first) % PARTS).unwrap_or(&self.parts[0])
    }
}

impl Part {
    /// Forgets the key that was of no use for longest, and gives its id. One that an open stream was opened with stays: for
    /// that stream, a key that is not there is one that was taken away.
    fn make_room(&mut self) -> Option<String> {
        // Whatever is used all the time is passed over once; after two rounds there is nothing to be had.
        for _ in 0..self.line.len() * 2 {
            let hash = self.line.pop_front()?;
            let Some(entry) = self.keys.get(&hash) else { continue };
            if entry.used.swap(false, Ordering::Relaxed) || Arc::strong_count(&entry.key) > 1 {
                self.line.push_back(hash);
                continue;
            }
            return self.keys.remove(&hash).map(|entry| entry.key.id.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::KeyLimits;

    fn key(id: &str) -> Arc<ApiKey> {
        let mut key = ApiKey::for_test(KeyLimits::default());
        key.id = id.into();
        Arc::new(key)
    }

    fn hash(n: u8) -> KeyHash {
        let mut hash = [n; 32];
        // All of them in one part.
        hash[0] = 0;
        hash
    }

    #[test]
    fn a_key_is_found_by_its_hash_and_its_id_until_it_is_removed() {
        let found = FoundKeys::new(5);
        assert!(found.insert(hash(1), key("a"), 5));
        assert_eq!(found.get(&hash(1)).unwrap().id, "a");
        assert_eq!(found.by_id("a").unwrap().id, "a");
        found.remove("a");
        assert!(found.get(&hash(1)).is_none() && found.by_id("a").is_none() && found.is_empty());
    }

    #[test]
    fn an_answer_from_before_a_later_configuration_is_not_remembered() {
        let found = FoundKeys::new(5);
        found.advance(6);
        found.remove("a");
        assert!(!found.insert(hash(1), key("a"), 5), "it may have been revoked in 6");
        assert!(found.insert(hash(1), key("a"), 6));
        assert_eq!(found.all().0, 6);
    }

    #[test]
    fn what_is_of_use_stays_and_what_a_stream_holds_too() {
        let found = FoundKeys::at_most(4 * PARTS, 1);
        let held = key("held");
        assert!(found.insert(hash(1), Arc::clone(&held), 1));
        for n in 2..=4 {
            assert!(found.insert(hash(n), key(&n.to_string()), 1));
        }
        assert!(found.get(&hash(2)).is_some());
        for n in 5..=6 {
            assert!(found.insert(hash(n), key(&n.to_string()), 1));
        }
        let here: Vec<u8> = (1..=6).filter(|n| found.get(&hash(*n)).is_some()).collect();
        assert_eq!(here, [1, 2, 5, 6]);
        assert_eq!(found.len(), 4);
    }
}
