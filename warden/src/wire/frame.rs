//! Frames, and how they are found in a byte stream.

use crate::crc::{crc32c, crc32c_append};

/// The version of this wire. A peer states a range; the highest common one is spoken.
pub const VERSION: u8 = 1;
/// First four bytes of every frame; not valid UTF-8, so that no text contains it.
pub const MARKER: [u8; 4] = [0xC3, 0x4A, 0x43, 0x9B];
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 28;
/// Largest payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Most bytes of output in one frame: 15 pages, which leaves room for the stream and the time.
pub const MAX_OUTPUT: usize = 60 * 1024;

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u8,
    /// Which attempt of a warden that serves many; 0 in a container.
    pub channel: u16,
    /// Session epoch.
    pub epoch: u32,
    /// Number of an output frame; 0 otherwise.
    pub seq: u64,
    /// The rest.
    pub payload: &'a [u8],
}

/// Appends a frame to `out`. The payload's parts together are at most [`MAX_PAYLOAD`]; what is over is a bug of the
/// caller and is cut off.
pub fn encode(kind: u8, channel: u16, epoch: u32, seq: u64, payload: &[&[u8]], out: &mut Vec<u8>) {
    let start = out.len();
    let mut room = MAX_PAYLOAD;
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&channel.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    let total = payload.iter().map(|part| part.len()).sum::<usize>().min(MAX_PAYLOAD);
    out.extend_from_slice(&(total as u32).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for part in payload {
        let part = &part[..part.len().min(room)];
        room -= part.len();
        out.extend_from_slice(part);
    }
    seal(&mut out[start..]);
}

/// Computes the checksum of a whole frame that has everything else in place.
pub fn seal(frame: &mut [u8]) {
    let sum = frame_sum(frame);
    frame[24..28].copy_from_slice(&sum.to_le_bytes());
}

/// Stamps another epoch on a whole frame and seals it again.
pub fn restamp(frame: &mut [u8], epoch: u32) {
    frame[8..12].copy_from_slice(&epoch.to_le_bytes());
    seal(frame);
}

fn frame_sum(frame: &[u8]) -> u32 {
    crc32c_append(crc32c(&frame[4..24]), &frame[HEADER_BYTES..])
}

/// Finds frames in a byte stream that may begin anywhere and may be torn.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
}

enum Found {
    Frame(usize),
    NotHere,
    NeedMore,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes passed over because they were no frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Adds what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.copy_within(self.start.., 0);
            self.buffer.truncate(self.buffer.len() - self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    #[allow(clippy::should_implement_trait)] // The frame borrows from the decoder, which an iterator cannot say.
    pub fn next(&mut self) -> Option<Frame<'_>> {
        loop {
            match look(&self.buffer[self.start..]) {
                Found::Frame(len) => {
                    let at = self.start;
                    self.start += len;
                    let frame = &self.buffer[at..at + len];
                    return Some(Frame {
                        kind: frame[5],
                        channel: u16_at(frame, 6),
                        epoch: u32_at(frame, 8),
                        seq: u64_at(frame, 16),
                        payload: &frame[HEADER_BYTES..],
                    });
                }
                Found::NeedMore => return None,
                Found::NotHere => {
                    // On to the next byte that can begin a marker.
                    let rest = &self.buffer[self.start + 1..];
                    let step = 1 + rest.iter().position(|byte| *byte == MARKER[0]).unwrap_or(rest.len());
                    self.start += step;
                    self.skipped += step as u64;
                }
            }
        }
    }
}

fn look(bytes: &[u8]) -> Found {
    let head = bytes.len().min(MARKER.len());
    if bytes[..head] != MARKER[..head] {
        return Found::NotHere;
    }
    if bytes.len() < HEADER_BYTES {
        return Found::NeedMore;
    }
    let len = u32_at(bytes, 12) as usize;
    if len > MAX_PAYLOAD || bytes[4] != VERSION {
        return Found::NotHere;
    }
    let Some(frame) = bytes.get(..HEADER_BYTES + len) else { return Found::NeedMore };
    if frame_sum(frame) == u32_at(frame, 24) { Found::Frame(frame.len()) } else { Found::NotHere }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
