//! One frame in a file: a header of 28 bytes, then the output.
//!
//! `len u32 · stream u8 · 3 zero bytes · seq u64 · time_us u64 · crc32c u32` over everything but itself; little endian.

use crate::protocol::wire::{crc32c, crc32c_append};
use bytes::Bytes;

pub(super) const HEADER: usize = 28;
/// Larger than any frame on the wire; a length beyond it is damage.
pub(super) const MAX_LEN: usize = 1 << 20;

/// Which stream a piece of output belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The stream of that number on the wire.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
    /// Its number on the wire and in files.
    pub const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
    /// Its place in pairs that are kept per stream.
    pub(super) const fn slot(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A frame to be appended.
#[derive(Debug, Clone, Copy)]
pub struct FrameRef<'a> {
    /// Its number.
    pub seq: u64,
    /// Its stream.
    pub stream: Stream,
    /// When it was written, microseconds since 1970.
    pub time_us: u64,
    /// The output.
    pub bytes: &'a [u8],
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub seq: u64,
    /// Its stream.
    pub stream: Stream,
    /// When it was written, microseconds since 1970.
    pub time_us: u64,
    /// The output.
    pub bytes: Bytes,
}

pub(super) fn write(frame: &FrameRef<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&[frame.stream.number(), 0, 0, 0]);
    out.extend_from_slice(&frame.seq.to_le_bytes());
    out.extend_from_slice(&frame.time_us.to_le_bytes());
    let sum = crc32c_append(crc32c(&out[start..]), frame.bytes);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(frame.bytes);
}

/// A header that was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) len: usize,
    pub(super) stream: Stream,
    pub(super) seq: u64,
    pub(super) time_us: u64,
    sum: u32,
    head_sum: u32,
}

impl Header {
    /// Reads a header; the error says what is wrong.
    pub(super) fn read(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let len = word(0) as usize;
        if len > MAX_LEN {
            return Err("a length that no record has");
        }
        let stream = Stream::from_number(bytes[4]).ok_or("a stream that does not exist")?;
        Ok(Self { len, stream, seq: long(8), time_us: long(16), sum: word(24), head_sum: crc32c(&bytes[..24]) })
    }

    pub(super) fn fits(&self, payload: &[u8]) -> bool {
        crc32c_append(self.head_sum, payload) == self.sum
    }
}
