//! The thread that keeps a spool: it syncs what was written, writes what waits in the ring, notes the position
//! and drops what is acknowledged. It does no disk work while it holds the lock, but for the ring's.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::files::{Position, segment_path};
use super::{Book, RING_OVERHEAD, Segment, Shared};
use crate::durable;

/// Between attempts to write what is in the ring or to sync what failed.
const RETRY: Duration = Duration::from_millis(250);
/// Between two notes of the position.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Records of the ring that are written under one lock.
const RING_STEP: usize = 256;

pub(super) fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("audit-spool".into()).spawn(move || keep(&shared))
}

fn keep(shared: &Shared) {
    let mut noted = None::<Instant>;
    loop {
        let closed = wait(shared);
        empty_ring(shared);
        let is_synced = sync(shared);
        if closed || noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY) {
            note(shared, closed);
            noted = Some(Instant::now());
        }
        drop_acknowledged(shared);
        if closed {
            return;
        }
        let mut book = shared.book.lock();
        if !is_synced {
            shared.work.wait_while_for(&mut book, |book| !book.closed, RETRY);
        }
    }
}

/// Waits for work, and then a little for more of it. Returns whether the spool was closed.
fn wait(shared: &Shared) -> bool {
    let mut book = shared.book.lock();
    loop {
        if book.closed {
            return true;
        }
        if !book.ring.is_empty() {
            shared.work.wait_while_for(&mut book, |book| !book.closed, RETRY);
            return book.closed;
        }
        if !book.unsynced.is_empty() {
            break;
        }
        if book.position_changed {
            let over = shared.work.wait_while_for(&mut book, |book| !book.has_urgent_work(), NOTE_EVERY);
            if over.timed_out() {
                return book.closed;
            }
            continue;
        }
        shared.work.wait(&mut book);
    }
    shared.work.wait_while_for(&mut book, |book| !book.closed && !book.hurry, shared.limits.sync_every);
    book.hurry = false;
    book.closed
}

impl Book {
    fn has_urgent_work(&self) -> bool {
        self.closed || !self.unsynced.is_empty() || !self.ring.is_empty()
    }
}

/// Writes what waits in memory, in order, as far as the disk takes it.
fn empty_ring(shared: &Shared) {
    loop {
        let mut book = shared.book.lock();
        for _ in 0..RING_STEP {
            let Some(held) = book.ring.pop_front() else { break };
            if let Err(error) = shared.write(&mut book, held.sequence, &held.frame) {
                book.ring.push_front(held);
                book.fail(&error);
                return;
            }
            book.ring_bytes -= held.frame.len() + RING_OVERHEAD;
        }
        if book.ring.is_empty() {
            book.ring.shrink_to(0);
            return;
        }
    }
}

/// Makes everything that was written survive a power cut. Returns whether it does.
fn sync(shared: &Shared) -> bool {
    let (files, through, new_names) = {
        let mut book = shared.book.lock();
        (std::mem::take(&mut book.unsynced), book.stored, std::mem::take(&mut book.new_names))
    };
    let synced = files.iter().try_for_each(|file| file.sync_data()).and_then(|()| match new_names {
        true => durable::sync_directory(&shared.dir),
        false => Ok(()),
    });
    let mut book = shared.book.lock();
    if let Err(error) = &synced {
        // The system may have dropped what it could not write, so nothing more is added to this file.
        book.fail(&super::WriteError::Io(io::Error::new(error.kind(), error.to_string())));
        book.active = None;
        book.new_names |= new_names;
        let later = std::mem::replace(&mut book.unsynced, files);
        book.unsynced.extend(later);
    } else if book.ring.is_empty()
        && let Some(failure) = book.failure.take()
    {
        tracing::info!(failure, lost = book.lost, "audit records go to disk again");
    }
    shared.judge(&book);
    drop(book);
    if synced.is_ok() {
        shared.synced.send_if_modified(|last| {
            let is_later = *last < through;
            *last = through.max(*last);
            is_later
        });
    }
    synced.is_ok()
}

/// Writes the position down.
fn note(shared: &Shared, closed: bool) {
    let position = {
        let mut book = shared.book.lock();
        // What is in the ring is not on disk yet, and may never be, so that nothing can follow its hash.
        let hash = book.ring.is_empty().then_some(book.hash);
        if closed && !book.ring.is_empty() {
            for held in std::mem::take(&mut book.ring) {
                book.lose(held.sequence);
            }
            tracing::error!(
                lost = book.lost,
                "audit records that never went to disk are lost with this process"
            );
        }
        if !book.position_changed {
            return;
        }
        book.position_changed = false;
        Position { acknowledged: book.acknowledged, lost: book.lost, next: book.next, hash }
    };
    if let Err(error) = position.write(&shared.dir) {
        tracing::debug!(%error, "cannot note the position of the audit spool");
        shared.book.lock().position_changed = true;
    }
}

/// Drops the segments of which everything is acknowledged, once something of the next is as well: what was
/// acknowledged had been synced, so that the sequence goes on from there whatever happens.
fn drop_acknowledged(shared: &Shared) {
    loop {
        let segment = {
            let book = shared.book.lock();
            match (book.segments.front(), book.segments.get(1)) {
                (Some(first), Some(next)) if next.first <= book.acknowledged => *first,
                _ => return,
            }
        };
        let Segment { first, bytes } = segment;
        match std::fs::remove_file(segment_path(&shared.dir, first)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, "cannot remove a segment of the audit spool");
                return;
            }
            _ => {}
        }
        let mut book = shared.book.lock();
        book.segments.pop_front();
        book.bytes = book.bytes.saturating_sub(bytes);
        shared.judge(&book);
    }
}
