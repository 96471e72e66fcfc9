//! Output that the agent does not have yet: numbered frames, kept until they are acknowledged. Pure.
//!
//! When it is full the job's pipes are not read any more, so the job waits and nothing is lost. Its memory is touched
//! once at the start: it must be there when the job has taken all that is left.

use crate::wire;
use std::collections::VecDeque;

/// All frames together, headers included. More than 1 MiB in an attached stream makes the engine's kill and remove hang
/// when the reader stops.
pub const RING_BYTES: usize = 1 << 20;
/// The largest frame.
const FRAME_BYTES: usize = wire::HEADER_BYTES + wire::MAX_PAYLOAD;

pub struct Ring {
    frames: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    limit: usize,
    last_seq: u64,
    /// How many from the front have been sent in this session.
    sent: usize,
    /// Buffers to use again: after a while nothing is allocated any more.
    spare: Vec<Vec<u8>>,
}

impl Ring {
    pub fn new() -> Self {
        let spare = (0..RING_BYTES.div_ceil(FRAME_BYTES) + 1).map(|_| {
            let mut buffer = vec![1; FRAME_BYTES];
            buffer.clear();
            buffer
        });
        Self { frames: VecDeque::new(), bytes: 0, limit: RING_BYTES, last_seq: 0, sent: 0, spare: spare.collect() }
    }

    /// The number of the last frame.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// True while there is room for a frame of any size.
    pub fn has_room(&self) -> bool {
        self.bytes + FRAME_BYTES <= self.limit || self.frames.is_empty()
    }

    /// Takes a piece of output.
    pub fn push(&mut self, epoch: u32, stream: u8, time_us: u64, bytes: &[u8]) {
        let mut frame = self.spare.pop().unwrap_or_default();
        self.last_seq += 1;
        let mut head = [0; 9];
        head[0] = stream;
        head[1..].copy_from_slice(&time_us.to_le_bytes());
        wire::encode(wire::KIND_OUTPUT, 0, epoch, self.last_seq, &[&head, bytes], &mut frame);
        self.bytes += frame.len();
        self.frames.push_back((self.last_seq, frame));
    }

    /// A session begins: the agent has everything up to `stored` and allows `window` bytes.
    pub fn attach(&mut self, stored: u64, window: u32) {
        self.limit = (window as usize).clamp(FRAME_BYTES, RING_BYTES);
        self.sent = 0;
        self.ack(stored);
    }

    /// Everything up to `seq` is stored.
    pub fn ack(&mut self, seq: u64) {
        while let Some((first, _)) = self.frames.front() {
            if *first > seq {
                break;
            }
            let (_, mut frame) = self.frames.pop_front().expect("there is a front");
            self.bytes -= frame.len();
            self.sent = self.sent.saturating_sub(1);
            // A small frame leaves a small buffer behind only until the spares are used up.
            frame.clear();
            if self.spare.len() * FRAME_BYTES < RING_BYTES {
                self.spare.push(frame);
            }
        }
    }

    /// The next frame to send in this session, stamped with its epoch.
    pub fn next(&mut self, epoch: u32) -> Option<&[u8]> {
        let (_, frame) = self.frames.get_mut(self.sent)?;
        self.sent += 1;
        if frame[8..12] != epoch.to_le_bytes() {
            wire::restamp(frame, epoch);
        }
        Some(frame)
    }

    /// True when everything has been sent in this session.
    pub fn all_sent(&self) -> bool {
        self.sent == self.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(ring: &mut Ring, epoch: u32) -> Vec<u64> {
        let mut decoder = wire::Decoder::new();
        let mut found = Vec::new();
        while let Some(frame) = ring.next(epoch) {
            decoder.feed(frame);
            let frame = decoder.next().expect("a whole frame");
            assert_eq!(frame.epoch, epoch);
            found.push(frame.seq);
        }
        found
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_in_the_next_session() {
        let mut ring = Ring::new();
        for _ in 0..4 {
            ring.push(1, 1, 0, b"x");
        }
        assert_eq!(seqs(&mut ring, 1), [1, 2, 3, 4]);
        ring.ack(2);
        ring.push(1, 2, 0, b"y");
        assert_eq!(seqs(&mut ring, 1), [5]);
        ring.attach(3, u32::MAX);
        assert_eq!(seqs(&mut ring, 9), [4, 5]);
        ring.ack(5);
        assert!(ring.all_sent() && seqs(&mut ring, 9).is_empty());
    }

    #[test]
    fn it_is_full_at_its_limit_and_has_room_again_after_an_acknowledgement() {
        let mut ring = Ring::new();
        let piece = vec![b'x'; wire::MAX_OUTPUT];
        while ring.has_room() {
            ring.push(1, 1, 0, &piece);
        }
        assert!(ring.bytes <= RING_BYTES && ring.bytes > RING_BYTES - 2 * FRAME_BYTES);
        ring.ack(2);
        assert!(ring.has_room());
    }

    #[test]
    fn a_window_of_nothing_still_lets_one_frame_through() {
        let mut ring = Ring::new();
        ring.attach(0, 0);
        assert!(ring.has_room());
        ring.push(1, 1, 0, &vec![b'x'; wire::MAX_OUTPUT]);
        assert!(!ring.has_room());
    }
}
