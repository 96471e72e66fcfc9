//! One frame in a file: a header of 28 bytes, then the output.
//!
//! `len u32 · number u8 · 3 zero bytes · seq u64 · time_us u64 · crc32c u32` over everything but itself; little endian.
//! The number is that of the stream, 1 or 2; or 3 or 4 for a gap in the one or the other, and then its size in digits takes the place of
//! the output. The same two, number and bytes, stand for a frame wherever it travels.

use crate::crc::{crc32c, crc32c_append};
use bytes::Bytes;
use std::borrow::Cow;

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
    /// The output; none of a gap.
    pub bytes: &'a [u8],
    /// So many bytes are missing here, because nobody could take them when they were written; 0 for output.
    pub gap: u64,
}

/// Added to a stream's number, it names a gap in it.
const GAP: u8 = 2;

impl<'a> FrameRef<'a> {
    /// The frame that a number and bytes stand for. Errors: they stand for none.
    pub fn carried(seq: u64, time_us: u64, number: u8, bytes: &'a [u8]) -> Result<Self, &'static str> {
        if let Some(stream) = Stream::from_number(number) {
            return Ok(Self { seq, stream, time_us, bytes, gap: 0 });
        }
        let stream = number.checked_sub(GAP).and_then(Stream::from_number).ok_or("a stream that does not exist")?;
        let digits = std::str::from_utf8(bytes).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let gap = digits.and_then(|text| text.parse().ok()).filter(|gap| *gap > 0).ok_or("a gap without a size")?;
        Ok(Self { seq, stream, time_us, bytes: &[], gap })
    }

    /// The number and the bytes that stand for it.
    pub fn carry(&self) -> (u8, Cow<'a, [u8]>) {
        match self.gap {
            0 => (self.stream.number(), Cow::Borrowed(self.bytes)),
            gap => (self.stream.number() + GAP, Cow::Owned(gap.to_string().into_bytes())),
        }
    }
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
    /// The output; none of a gap.
    pub bytes: Bytes,
    /// So many bytes are missing here; 0 for output.
    pub gap: u64,
}

impl Frame {
    /// The same, borrowed.
    pub fn as_ref(&self) -> FrameRef<'_> {
        FrameRef { seq: self.seq, stream: self.stream, time_us: self.time_us, bytes: &self.bytes, gap: self.gap }
    }
}

pub(super) fn write(frame: &FrameRef<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    let (number, bytes) = frame.carry();
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&[number, 0, 0, 0]);
    out.extend_from_slice(&frame.seq.to_le_bytes());
    out.extend_from_slice(&frame.time_us.to_le_bytes());
    let sum = crc32c_append(crc32c(&out[start..]), &bytes);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&bytes);
}

/// A header that was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) len: usize,
    number: u8,
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
        Ok(Self {
            len,
            number: bytes[4],
            seq: long(8),
            time_us: long(16),
            sum: word(24),
            head_sum: crc32c(&bytes[..24]),
        })
    }

    /// The frame of this header and what follows on it; the error says what is wrong.
    pub(super) fn frame<'a>(&self, payload: &'a [u8]) -> Result<FrameRef<'a>, &'static str> {
        if crc32c_append(self.head_sum, payload) != self.sum {
            return Err("a checksum that does not fit");
        }
        FrameRef::carried(self.seq, self.time_us, self.number, payload)
    }
}
