//! Reading a spool back, in order, from where the control plane has it. What is damaged is stepped over, byte
//! by byte, until the next whole record; it stays a gap in the numbers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use crc32fast::Hasher;
use waffles_core::trail::Hash;

use super::files::{SEGMENT_HEAD, head_of, segment_path};
use super::{BARE_HEAD, HEAD, MAX_PAYLOAD, Segment, Spool};

/// Read at once, as a rule.
const CHUNK: u64 = 448 << 10;
/// Read at once where the usual chunk holds no whole record. Any record fits, so that one that does not is damaged.
const LARGEST: u64 = (HEAD + MAX_PAYLOAD) as u64;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    /// Over everything up to it; none of one that was written before records had a hash.
    pub(crate) hash: Option<Hash>,
    /// The encoded event.
    pub(crate) payload: Bytes,
}

/// A place in the spool.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// The last number read or stepped over.
    after: u64,
    segment: u64,
    offset: u64,
    /// Bytes before each record of the segment.
    head: usize,
    file: Option<File>,
}

impl Cursor {
    /// Behind a record.
    pub(crate) fn after(sequence: u64) -> Self {
        Self { after: sequence, ..Self::default() }
    }
}

impl Spool {
    /// The next records, within limits: empty when there are no more that are synced. Blocks on the disk.
    pub(crate) fn read(
        &self,
        cursor: &mut Cursor,
        most: usize,
        most_bytes: usize,
    ) -> io::Result<Vec<Record>> {
        loop {
            let (segment, next_first, through) = {
                let book = self.shared.book.lock();
                let synced = *self.shared.synced.borrow();
                if cursor.after >= synced {
                    return Ok(Vec::new());
                }
                let behind = book.segments.partition_point(|segment| segment.first <= cursor.after + 1);
                let index = behind.saturating_sub(1);
                let Some(segment) = book.segments.get(index).copied() else { return Ok(Vec::new()) };
                let next_first = book.segments.get(index + 1).map(|next| next.first);
                (segment, next_first, next_first.map_or(synced, |first| synced.min(first - 1)))
            };
            cursor.enter(self, segment)?;
            let before = cursor.offset;
            let records = cursor.take(&self.shared.seed, segment.bytes, through, most, most_bytes)?;
            if cursor.offset >= segment.bytes {
                // What is missing at the end of a segment was lost or is damaged.
                cursor.after = cursor.after.max(next_first.map_or(through, |first| first - 1));
            } else if records.is_empty() && cursor.offset == before {
                return Ok(records);
            }
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }
}

impl Cursor {
    fn enter(&mut self, spool: &Spool, segment: Segment) -> io::Result<()> {
        if self.segment != segment.first || self.file.is_none() {
            let file = File::open(segment_path(&spool.shared.dir, segment.first))?;
            let mut magic = [0; 8];
            read_full_at(&file, &mut magic, 0)?;
            self.head = head_of(&magic);
            self.file = Some(file);
            self.segment = segment.first;
            self.offset = SEGMENT_HEAD;
            self.after = self.after.max(segment.first - 1);
        }
        Ok(())
    }

    /// Reads one chunk of the segment that was entered, and moves behind what was taken.
    fn take(
        &mut self,
        seed: &Hasher,
        end: u64,
        through: u64,
        most: usize,
        most_bytes: usize,
    ) -> io::Result<Vec<Record>> {
        let before = self.offset;
        let records = self.take_of(CHUNK, seed, end, through, most, most_bytes)?;
        if records.is_empty() && self.offset == before && end.saturating_sub(before) > CHUNK {
            return self.take_of(LARGEST, seed, end, through, most, most_bytes);
        }
        Ok(records)
    }

    fn take_of(
        &mut self,
        chunk: u64,
        seed: &Hasher,
        end: u64,
        through: u64,
        most: usize,
        most_bytes: usize,
    ) -> io::Result<Vec<Record>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let size = end.saturating_sub(self.offset).min(chunk);
        let mut chunk = vec![0; usize::try_from(size).expect("a chunk fits into memory")];
        let read = read_full_at(file, &mut chunk, self.offset)?;
        chunk.truncate(read);
        let is_end = (read as u64) < size || self.offset + size >= end;
        let chunk = Bytes::from(chunk);
        let mut frames = Frames { bytes: &chunk, head: self.head, seed, at: 0, after: self.after, is_end };
        let mut records = Vec::new();
        let mut taken = 0;
        while records.len() < most {
            let before = frames.at;
            let Some(frame) = frames.next() else { break };
            let payload = frame.end - frame.start;
            if frame.sequence > through || (taken + payload > most_bytes && !records.is_empty()) {
                frames.at = before;
                break;
            }
            taken += payload;
            self.after = frame.sequence;
            let payload = chunk.slice(frame.start..frame.end);
            records.push(Record { sequence: frame.sequence, hash: frame.hash, payload });
        }
        self.offset += frames.at as u64;
        if (read as u64) < size && frames.at >= read {
            // The file is shorter than it was: nothing more will come of it.
            self.offset = end;
        }
        Ok(records)
    }
}

/// The last whole record of a segment, with its place in all of the segment.
pub(super) fn last(bytes: &[u8], seed: &Hasher, first: u64) -> Option<Frame> {
    let begin = SEGMENT_HEAD as usize;
    let head = head_of(bytes);
    let bytes = bytes.get(begin..)?;
    let frames = Frames { bytes, head, seed, at: 0, after: first - 1, is_end: true };
    frames.last().map(|frame| Frame { start: begin + frame.start, end: begin + frame.end, ..frame })
}

/// Whole records in a stretch of a segment.
struct Frames<'a> {
    bytes: &'a [u8],
    /// Bytes before each record.
    head: usize,
    seed: &'a Hasher,
    /// Everything before was read or stepped over.
    at: usize,
    /// Numbers grow.
    after: u64,
    /// The segment ends with these bytes, so that what is cut off here is damaged.
    is_end: bool,
}

/// Where a payload stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) sequence: u64,
    pub(super) hash: Option<Hash>,
    start: usize,
    pub(super) end: usize,
}

enum Look {
    Whole(Frame),
    Cut,
    Damaged,
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        while self.at < self.bytes.len() {
            match self.look() {
                Look::Whole(frame) => {
                    self.at = frame.end;
                    self.after = frame.sequence;
                    return Some(frame);
                }
                Look::Cut if !self.is_end => return None,
                Look::Cut | Look::Damaged => self.at += 1,
            }
        }
        None
    }
}

impl Frames<'_> {
    fn look(&self) -> Look {
        let rest = self.bytes.get(self.at..);
        let Some((head, rest)) = rest.and_then(|rest| rest.split_at_checked(self.head)) else {
            return Look::Cut;
        };
        let Some((word, linked)) = head.split_first_chunk::<BARE_HEAD>() else { return Look::Cut };
        let word = u128::from_le_bytes(*word);
        let length = word as u32 as usize;
        let sequence = (word >> 64) as u64;
        // A spool does not live to write so many; a damaged number must not hide those that follow.
        let plausible = self.after < sequence && sequence - self.after < 1 << 40;
        if length > MAX_PAYLOAD || !plausible {
            return Look::Damaged;
        }
        let Some(payload) = rest.get(..length) else { return Look::Cut };
        let mut checksum = self.seed.clone();
        checksum.update(&(length as u32).to_le_bytes());
        checksum.update(payload);
        checksum.update(&sequence.to_le_bytes());
        checksum.update(linked);
        if checksum.finalize() != (word >> 32) as u32 {
            return Look::Damaged;
        }
        let start = self.at + self.head;
        Look::Whole(Frame { sequence, hash: Hash::read(linked), start, end: start + length })
    }
}

fn read_full_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
