//! The sparse index: where in which segment a frame, or a byte of a stream, is to be found.
//!
//! A help and never the truth: the records say themselves which frames they are. A part of it that is missing or does
//! not fit its checksum only makes a seek begin earlier.

use super::record::Stream;
use super::{LogError, segment_path};
use crate::crc::crc32c;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Between two entries.
pub(super) const SPACING: u64 = 256 << 10;
/// `seq u64 · offset u64 · stdout u64 · stderr u64 · crc32c u32` of these; little endian.
pub(super) const ENTRY: usize = 36;

/// A place from which a log can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) segment: u32,
    pub(super) offset: u64,
    /// The frame that begins there.
    pub(super) seq: u64,
    /// Bytes of either stream before it.
    pub(super) bytes: [u64; 2],
}

impl Mark {
    /// The beginning of every log.
    pub(super) const START: Self = Self { segment: 1, offset: 0, seq: 1, bytes: [0, 0] };

    pub(super) fn to_entry(self) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        for (place, number) in
            entry.as_chunks_mut::<8>().0.iter_mut().zip([self.seq, self.offset, self.bytes[0], self.bytes[1]])
        {
            *place = number.to_le_bytes();
        }
        let sum = crc32c(&entry[..32]);
        entry[32..].copy_from_slice(&sum.to_le_bytes());
        entry
    }

    fn from_entry(segment: u32, entry: &[u8; ENTRY]) -> Option<Self> {
        let (numbers, sum) = entry.as_chunks::<8>();
        if sum != crc32c(&entry[..32]).to_le_bytes() {
            return None;
        }
        let number = |at: usize| u64::from_le_bytes(numbers[at]);
        Some(Self { segment, seq: number(0), offset: number(1), bytes: [number(2), number(3)] })
    }
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Frame(u64),
    Byte(Stream, u64),
}

impl Target {
    /// Whether reading from `mark` on comes to it.
    fn is_at_or_behind(self, mark: &Mark) -> bool {
        match self {
            Self::Frame(seq) => mark.seq <= seq,
            Self::Byte(stream, offset) => mark.bytes[stream.slot()] <= offset,
        }
    }
}

/// The last known mark from which reading comes to the target. Takes a few small reads, however long the log is.
pub(super) fn find(dir: &Path, target: Target) -> Result<Mark, LogError> {
    let (mut low, mut high) = (1, last_segment(dir));
    // The segments before `low` begin at or before the target; the first one always does.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if first_entry(dir, middle).is_some_and(|mark| target.is_at_or_behind(&mark)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let entries = std::fs::read(segment_path(dir, low, "idx")).unwrap_or_default();
    let marks = entries.as_chunks::<ENTRY>().0.iter().map_while(|entry| Mark::from_entry(low, entry));
    let best = marks.take_while(|mark| target.is_at_or_behind(mark)).last();
    // Without a readable index only the first segment's beginning is known.
    Ok(best.unwrap_or(Mark::START))
}

fn first_entry(dir: &Path, segment: u32) -> Option<Mark> {
    let mut entry = [0; ENTRY];
    File::open(segment_path(dir, segment, "idx")).and_then(|file| file.read_exact_at(&mut entry, 0)).ok()?;
    Mark::from_entry(segment, &entry)
}

/// The number of the last segment, found by doubling and halving; 1 also when there is none.
fn last_segment(dir: &Path) -> u32 {
    let exists = |segment: u32| segment_path(dir, segment, "seg").exists();
    let mut beyond = 2;
    while exists(beyond) {
        beyond *= 2;
    }
    let (mut last, mut beyond) = (beyond / 2, beyond);
    while beyond - last > 1 {
        let middle = last + (beyond - last) / 2;
        if exists(middle) { last = middle } else { beyond = middle }
    }
    last
}
