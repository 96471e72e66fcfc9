//! What a log holds so far: bytes, hashes and gaps, counted frame by frame.

use super::record::{FrameRef, Stream};
use crate::job::{Gap, LogTotals, StreamTotals};
use sha2::{Digest, Sha256};

/// Gaps that are told one by one; a stream's totals count all of them.
const GAPS_TOLD: usize = 64;

#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    streams: [Counted; 2],
    gaps: Vec<Gap>,
}

#[derive(Debug, Clone, Default)]
struct Counted {
    bytes: u64,
    dropped: u64,
    hash: Sha256,
}

impl Held {
    pub(super) fn add(&mut self, frame: &FrameRef<'_>) {
        let stream = &mut self.streams[frame.stream.slot()];
        if frame.gap > 0 {
            stream.dropped = stream.dropped.saturating_add(frame.gap);
            if self.gaps.len() < GAPS_TOLD {
                self.gaps.push(Gap { stream: frame.stream.name().to_owned(), at: stream.bytes, bytes: frame.gap });
            }
        } else {
            stream.bytes += frame.bytes.len() as u64;
            stream.hash.update(frame.bytes);
        }
    }

    /// Bytes of each stream.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.streams[0].bytes, self.streams[1].bytes]
    }

    /// With the hashes, when they are asked for: they take time.
    pub(super) fn totals(&self, frames: u64, hashes: bool) -> LogTotals {
        let stream = |stream: Stream| {
            let Counted { bytes, dropped, hash } = &self.streams[stream.slot()];
            let hex = || hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            StreamTotals { bytes: *bytes, dropped: *dropped, sha256: if hashes { hex() } else { String::new() } }
        };
        let (stdout, stderr) = (stream(Stream::Stdout), stream(Stream::Stderr));
        LogTotals { frames, stdout, stderr, gaps: self.gaps.clone(), complete: false }
    }
}
