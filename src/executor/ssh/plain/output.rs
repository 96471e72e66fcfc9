//! What a job of plain mode writes, from the channel to numbered frames that the agent has stored. Pure.
//!
//! Owns what is masked, numbered, not yet stored, and what was dropped. With no room nothing more is to be taken, and the job waits;
//! or, where the job wants it so, what it writes is dropped, counted, and told as a gap.

use super::machine::Now;
use super::mask::{Masker, PIECE};
use crate::protocol::wire::{FromWarden, MAX_OUTPUT};
use std::collections::VecDeque;

/// Bytes that are kept until they are stored.
const ROOM: usize = 1 << 20;
/// What a frame costs beside its bytes, here and with the agent: many small ones are no way around the bounds.
const FRAME_COST: usize = 64;
/// Added to a stream's number, it names a gap in it.
const GAP: u8 = 2;

struct Frame {
    seq: u64,
    stream: u8,
    time_us: u64,
    bytes: Vec<u8>,
}

impl Frame {
    fn cost(&self) -> usize {
        self.bytes.len() + FRAME_COST
    }
}

#[derive(Default)]
struct Stream {
    masker: Option<Masker>,
    /// Bytes in frames.
    bytes: u64,
    /// Bytes dropped since the last frame.
    dropped: u64,
    /// When what the masker holds back was waited for long enough.
    show_at: Option<u64>,
}

/// The output of one job.
#[derive(Default)]
pub(super) struct Output {
    frames: VecDeque<Frame>,
    /// The first of them that is not sent.
    sent: usize,
    /// Bytes of those that are.
    sent_bytes: usize,
    held_bytes: usize,
    /// Number of the last frame.
    last: u64,
    streams: [Stream; 2],
    drops: bool,
    /// Bytes that both streams together may have in frames.
    limit: u64,
    /// Bytes of both streams together that were read.
    read: u64,
    /// Those of them that are beyond the limit.
    beyond: u64,
}

impl Output {
    /// The job begins. Without room what it writes is dropped if it `drops`; beyond `limit` it is dropped in any
    /// case; its secrets are replaced.
    pub(super) fn begin(&mut self, drops: bool, limit: u64, maskers: Option<[Masker; 2]>) {
        (self.drops, self.limit) = (drops, limit);
        if let Some(maskers) = maskers {
            for (stream, masker) in self.streams.iter_mut().zip(maskers) {
                stream.masker = Some(masker);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.held_bytes < ROOM
    }

    pub(super) fn needs_no_room(&self) -> bool {
        self.drops
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.last + 1
    }

    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.streams[0].bytes, self.streams[1].bytes]
    }

    /// Bytes beyond the job's limit.
    pub(super) fn beyond(&self) -> u64 {
        self.beyond
    }

    /// Takes what was read of stream 1 or 2.
    pub(super) fn take(&mut self, number: u8, bytes: &[u8], now: Now) {
        let index = usize::from(number - 1);
        let masked = match &mut self.streams[index].masker {
            None => bytes.to_vec(),
            Some(masker) => {
                let mut all = vec![0; PIECE + bytes.len()];
                let held = masker.begin(&mut all);
                all.truncate(held + bytes.len());
                all[held..].copy_from_slice(bytes);
                let kept = masker.pass(&mut all, false);
                all.truncate(kept);
                let patience = (masker.waiting() > 0).then(|| now.ms + masker.patience_ns() / 1_000_000);
                self.streams[index].show_at = patience;
                all
            }
        };
        self.put(number, &masked, now.us);
    }

    fn put(&mut self, number: u8, bytes: &[u8], time_us: u64) {
        let index = usize::from(number - 1);
        let left = self.limit.saturating_sub(self.read);
        let take = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.read += bytes.len() as u64;
        self.beyond += (bytes.len() - take) as u64;
        if take < bytes.len() {
            self.streams[index].dropped += (bytes.len() - take) as u64;
        }
        for piece in bytes[..take].chunks(MAX_OUTPUT) {
            if self.drops && !self.has_room() {
                self.streams[index].dropped += piece.len() as u64;
                continue;
            }
            if self.beyond == 0 {
                self.tell_gap(number, time_us);
            }
            self.streams[index].bytes += piece.len() as u64;
            self.push(number, time_us, piece.to_vec());
        }
    }

    fn tell_gap(&mut self, number: u8, time_us: u64) {
        let dropped = std::mem::take(&mut self.streams[usize::from(number - 1)].dropped);
        if dropped > 0 {
            self.push(number + GAP, time_us, dropped.to_string().into_bytes());
        }
    }

    fn push(&mut self, stream: u8, time_us: u64, bytes: Vec<u8>) {
        self.last += 1;
        let frame = Frame { seq: self.last, stream, time_us, bytes };
        self.held_bytes += frame.cost();
        self.frames.push_back(frame);
    }

    /// When [`show`](Self::show) has something to do.
    pub(super) fn show_at(&self) -> Option<u64> {
        self.streams.iter().filter_map(|stream| stream.show_at).min()
    }

    /// Lets go of what may begin a secret and was waited for long enough.
    pub(super) fn show(&mut self, now: Now) {
        for number in [1, 2] {
            let stream = &mut self.streams[usize::from(number - 1)];
            if stream.show_at.is_none_or(|at| at > now.ms) {
                continue;
            }
            stream.show_at = None;
            if let Some(masker) = &mut stream.masker {
                let mut room = vec![0; PIECE];
                let kept = masker.show(&mut room);
                room.truncate(kept);
                self.put(number, &room, now.us);
            }
        }
    }

    /// Nothing more comes: what was held back begins no secret any more, and what was dropped is told.
    pub(super) fn finish(&mut self, time_us: u64) {
        for number in [1, 2] {
            let stream = &mut self.streams[usize::from(number - 1)];
            stream.show_at = None;
            if let Some(mut masker) = stream.masker.take() {
                let mut rest = vec![0; PIECE];
                let held = masker.begin(&mut rest);
                rest.truncate(held);
                let kept = masker.pass(&mut rest, true);
                rest.truncate(kept);
                self.put(number, &rest, time_us);
            }
            self.tell_gap(number, time_us);
        }
    }

    /// Everything up to this frame is stored.
    pub(super) fn acknowledge(&mut self, seq: u64) {
        // More than was sent cannot be acknowledged.
        while self.sent > 0
            && self.frames.front().is_some_and(|frame| frame.seq <= seq)
            && let Some(frame) = self.frames.pop_front()
        {
            self.sent -= 1;
            self.sent_bytes -= frame.cost();
            self.held_bytes -= frame.cost();
        }
    }

    /// Everything is to be sent again, but for what is stored.
    pub(super) fn rewind(&mut self, stored: u64) {
        (self.sent, self.sent_bytes) = (self.frames.len(), self.held_bytes);
        self.acknowledge(stored);
        (self.sent, self.sent_bytes) = (0, 0);
    }

    /// Appends frames that fit into the agent's window, to about `most` bytes.
    pub(super) fn send(&mut self, epoch: u32, window: usize, most: usize, said: &mut Vec<u8>) {
        while said.len() < most
            && let Some(frame) = self.frames.get(self.sent)
            && self.sent_bytes + frame.cost() <= window
        {
            self.sent += 1;
            self.sent_bytes += frame.cost();
            let bytes = frame.bytes.clone();
            FromWarden::Output { stream: frame.stream, time_us: frame.time_us, bytes }.encode(epoch, frame.seq, said);
        }
    }

    pub(super) fn all_sent(&self) -> bool {
        self.sent == self.frames.len()
    }
}
