//! Output frames that the agent has not yet stored. Pure: bytes in, bytes out.
//!
//! Owns the numbering of output and the one bound on it: [`RING_BYTES`], in a cell allocated and touched before any job runs. When
//! it is full there is no [`slot`](Ring::slot), so the caller stops reading the job's pipes and the job waits; nothing is
//! dropped. Must never forget a frame that is not acknowledged.
//!
//! ```text
//!        ack ►                   sent ►                  write ►
//!  ├──────┬───────────────────────┬───────────────────────┬──────┤
//!  free   head   in flight: acknowledge me   cursor   still to send   tail   free
//! ```
//! Frames lie whole: one that does not fit before the end begins again at the front, and `wrap` keeps where data ends.

use crate::wire::{HEADER_BYTES, KIND_OUTPUT, MARKER, MAX_OUTPUT, VERSION, seal};

/// All that the warden holds of a job's output. An attached stream takes 1 MiB before a stopped reader makes the
/// engine's kill hang, so holding more could never be in flight.
pub(crate) const RING_BYTES: usize = 1 << 20;
/// Stream and time, before the bytes.
const OUTPUT_HEAD: usize = 9;
const BEFORE_BYTES: usize = HEADER_BYTES + OUTPUT_HEAD;
/// The largest frame; a slot has room for one.
const FRAME_MAX: usize = BEFORE_BYTES + MAX_OUTPUT;
/// Most bytes offered for one write, so that a control frame never waits behind more than this.
const BATCH_BYTES: usize = 256 * 1024;

pub(crate) struct Ring {
    data: Box<[u8]>,
    epoch: u32,
    /// Where the oldest frame begins, and its number.
    head: usize,
    head_seq: u64,
    /// The frame that is sent next, or of which a part is written already.
    cursor: usize,
    cursor_seq: u64,
    written: usize,
    /// Whole frames between head and cursor.
    in_flight: usize,
    tail: usize,
    next_seq: u64,
    /// Where data ends while the tail is in front of the head.
    wrap: Option<usize>,
}

/// Memory of so many bytes. Reserved, it is written and so there before the job can take it; otherwise the kernel gives it when it is used.
pub(crate) fn memory(bytes: usize, reserved: bool) -> Vec<u8> {
    if reserved { vec![0xA5; bytes] } else { vec![0; bytes] }
}

impl Ring {
    #[cfg(test)]
    pub(crate) fn new(bytes: usize) -> Self {
        Self::with(bytes, true)
    }

    /// One whose memory is taken when it is needed, where that is not the job's own.
    pub(crate) fn with(bytes: usize, reserved: bool) -> Self {
        Self {
            data: memory(bytes.max(2 * FRAME_MAX), reserved).into_boxed_slice(),
            epoch: 0,
            head: 0,
            head_seq: 1,
            cursor: 0,
            cursor_seq: 1,
            written: 0,
            in_flight: 0,
            tail: 0,
            next_seq: 1,
            wrap: None,
        }
    }

    /// Number of the frame that comes next.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Number of the oldest frame that is still here; `next_seq` when there is none.
    pub(crate) fn oldest_seq(&self) -> u64 {
        self.head_seq
    }

    /// Whether there is room for a frame of any size.
    pub(crate) fn has_room(&self) -> bool {
        self.place().is_some()
    }

    /// Where the next frame goes, and whether that is over the end and back to the front.
    fn place(&self) -> Option<(usize, bool)> {
        if self.wrap.is_some() {
            // The tail may not reach the head: equal means empty.
            (self.head - self.tail > FRAME_MAX).then_some((self.tail, false))
        } else if self.data.len() - self.tail >= FRAME_MAX {
            Some((self.tail, false))
        } else {
            (self.head > FRAME_MAX).then_some((0, true))
        }
    }

    /// Room for the bytes of one more frame, [`MAX_OUTPUT`] of it; `None` while the ring is full.
    pub(crate) fn slot(&mut self) -> Option<&mut [u8]> {
        let (at, _) = self.place()?;
        Some(&mut self.data[at + BEFORE_BYTES..at + FRAME_MAX])
    }

    /// Makes a numbered frame of the first `len` bytes of the slot. Without a slot it does nothing.
    pub(crate) fn commit(&mut self, stream: u8, time_us: u64, len: usize) {
        let Some((at, over)) = self.place() else { return };
        if over {
            // All frames before are sent in order, so a cursor that stands at the end goes along.
            self.wrap = Some(self.tail);
            if self.cursor == self.tail {
                self.cursor = 0;
            }
        }
        let payload = OUTPUT_HEAD + len.min(MAX_OUTPUT);
        let frame = &mut self.data[at..at + HEADER_BYTES + payload];
        frame[..4].copy_from_slice(&MARKER);
        frame[4] = VERSION;
        frame[5] = KIND_OUTPUT;
        frame[6..8].fill(0);
        frame[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        frame[12..16].copy_from_slice(&(payload as u32).to_le_bytes());
        frame[16..24].copy_from_slice(&self.next_seq.to_le_bytes());
        frame[HEADER_BYTES] = stream;
        frame[HEADER_BYTES + 1..BEFORE_BYTES].copy_from_slice(&time_us.to_le_bytes());
        seal(frame);
        self.tail = at + HEADER_BYTES + payload;
        self.next_seq += 1;
    }

    fn frame_len(&self, at: usize) -> usize {
        let len = &self.data[at + 12..at + 16];
        HEADER_BYTES + u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize
    }

    /// The place after a frame, back at the front when data ends there.
    fn after(&self, at: usize) -> usize {
        let next = at + self.frame_len(at);
        if self.wrap == Some(next) { 0 } else { next }
    }

    /// The agent has everything up to `seq`. More than was sent cannot be acknowledged, and is ignored.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        while self.head_seq <= seq && self.head_seq < self.cursor_seq {
            self.in_flight -= self.frame_len(self.head);
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let next = self.after(self.head);
        if next < self.head {
            self.wrap = None;
        }
        self.head = next;
        self.head_seq += 1;
        if self.head_seq == self.next_seq {
            // Nothing is left: begin at the front, where a frame fits without a detour.
            (self.head, self.cursor, self.tail, self.wrap) = (0, 0, 0, None);
        }
    }

    /// What is left of a frame of which a part is written already; empty between frames.
    pub(crate) fn torn(&self) -> &[u8] {
        if self.written == 0 {
            return &[];
        }
        &self.data[self.cursor + self.written..self.cursor + self.frame_len(self.cursor)]
    }

    /// A session begins: forgets what the agent has, and goes back to send all the rest again, under the new epoch.
    /// What [`torn`](Self::torn) tells must have been taken before.
    pub(crate) fn rewind(&mut self, epoch: u32, stored: u64) {
        self.epoch = epoch;
        (self.cursor, self.cursor_seq, self.written, self.in_flight) = (self.head, self.head_seq, 0, 0);
        while self.head_seq <= stored && self.head_seq < self.next_seq {
            self.drop_oldest();
        }
        (self.cursor, self.cursor_seq) = (self.head, self.head_seq);
        let mut at = self.head;
        for _ in self.head_seq..self.next_seq {
            let len = self.frame_len(at);
            let frame = &mut self.data[at..at + len];
            frame[8..12].copy_from_slice(&epoch.to_le_bytes());
            seal(frame);
            at = self.after(at);
        }
    }

    /// What may be written now, as one piece: whole frames within `window` bytes of unacknowledged ones, and the rest of
    /// a torn one. A frame always goes when nothing is in flight, so that a window smaller than a frame still moves.
    pub(crate) fn sendable(&self, window: usize) -> &[u8] {
        let (from, mut end, mut seq, mut in_flight) = (self.cursor, self.cursor, self.cursor_seq, self.in_flight);
        while seq < self.next_seq {
            let len = self.frame_len(end);
            let fits = in_flight == 0 || in_flight + len <= window || (seq == self.cursor_seq && self.written > 0);
            if !fits || (end > from && end + len - from > BATCH_BYTES) {
                break;
            }
            end += len;
            in_flight += len;
            seq += 1;
            if self.wrap == Some(end) {
                break;
            }
        }
        if end == from { &[] } else { &self.data[from + self.written..end] }
    }

    /// The first `count` bytes of what was sendable are written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.written += count;
        while self.cursor_seq < self.next_seq && self.written >= self.frame_len(self.cursor) {
            let len = self.frame_len(self.cursor);
            self.written -= len;
            self.in_flight += len;
            self.cursor = self.after(self.cursor);
            self.cursor_seq += 1;
        }
    }

    /// Whether every frame has been written.
    pub(crate) fn all_sent(&self) -> bool {
        self.cursor_seq == self.next_seq
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
