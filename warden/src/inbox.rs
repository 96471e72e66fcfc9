//! What the agent said, out of the bytes of the transport. Pure.
//!
//! One thing the decoder cannot do alone: an agent that dies in the middle of a frame leaves a head that promises bytes
//! which never come, and the next agent's short attach would be taken for them. So what is pending is kept here, and
//! when nothing has come for a while, [`rescue`](Inbox::rescue) looks for an attach behind the torn frame.

use crate::wire::{BadPayload, Decoder, Frame, HEADER_BYTES, MARKER, MAX_PAYLOAD, ToWarden};

/// No attach is longer; its only text is an attempt's identity.
const ATTACH_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Inbox {
    decoder: Decoder,
    /// Bytes fed since the start of the frame that the decoder waits for; at most one frame and one read.
    pending: Vec<u8>,
    skipped: u64,
}

impl Inbox {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
        self.pending.extend_from_slice(bytes);
    }

    /// The next message with its frame's epoch.
    pub(crate) fn next(&mut self) -> Option<(u32, Result<ToWarden, BadPayload>)> {
        let found = self.decoder.next().map(|frame| (frame.payload.len(), frame.epoch, ToWarden::decode(&frame)));
        let skipped = (self.decoder.skipped() - self.skipped) as usize;
        self.skipped = self.decoder.skipped();
        let frame = found.as_ref().map_or(0, |(payload, ..)| HEADER_BYTES + payload);
        self.pending.drain(..(skipped + frame).min(self.pending.len()));
        found.map(|(_, epoch, message)| (epoch, message))
    }

    /// Whether a frame has begun and is not complete.
    pub(crate) fn waits_for_more(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing has come for a while. If a whole attach of session `epoch` or a later one lies behind the beginning of the frame
    /// that is waited for, that frame is given up; says whether.
    pub(crate) fn rescue(&mut self, epoch: u32) -> bool {
        let opens_session = |at: usize| {
            let candidate = &self.pending[at..self.pending.len().min(at + HEADER_BYTES + ATTACH_MAX)];
            let mut decoder = Decoder::new();
            decoder.feed(candidate);
            // The decoder goes on to whatever is behind; only what begins right here counts.
            decoder.next().filter(|frame| is_attach(frame, epoch)).is_some() && decoder.skipped() == 0
        };
        let found = (1..self.pending.len())
            .filter(|at| self.pending[*at..].starts_with(&MARKER))
            // A text full of markers would make this a long search; an attach comes last, so the last ones are enough.
            .rev()
            .take(64)
            .find(|at| opens_session(*at));
        let Some(at) = found else { return false };
        let rest = self.pending.split_off(at);
        *self = Self::default();
        self.feed(&rest);
        true
    }
}

fn is_attach(frame: &Frame<'_>, from: u32) -> bool {
    frame.epoch >= from && matches!(ToWarden::decode(frame), Ok(ToWarden::Attach { .. }))
}

/// Pending bytes are bounded: a frame that is not complete, and one read of the transport.
const _: () = assert!(ATTACH_MAX < MAX_PAYLOAD);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VERSION;

    fn attach(epoch: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let attempt = "job/1/0".to_owned();
        ToWarden::Attach { min_version: VERSION, max_version: VERSION, attempt, stored: 3, window: 4096 }
            .encode(epoch, &mut out);
        out
    }

    fn chunk(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        ToWarden::SpecChunk { section: 2, offset: 0, bytes: vec![7; len] }.encode(1, &mut out);
        out
    }

    fn epochs(inbox: &mut Inbox) -> Vec<u32> {
        std::iter::from_fn(|| inbox.next()).map(|(epoch, _)| epoch).collect()
    }

    #[test]
    fn an_attach_behind_a_torn_frame_is_found_wherever_it_was_torn() {
        for torn in [1, 3, 4, 27, 28, 29, 500, 30_000] {
            let mut inbox = Inbox::default();
            inbox.feed(&attach(1));
            inbox.feed(&chunk(100));
            assert_eq!(epochs(&mut inbox), [1, 1]);
            inbox.feed(&chunk(32_000)[..torn]);
            inbox.feed(&attach(2));
            let direct = epochs(&mut inbox);
            if direct.is_empty() {
                assert!(inbox.waits_for_more() && inbox.rescue(1), "torn at {torn}");
                assert_eq!(epochs(&mut inbox), [2], "torn at {torn}");
            } else {
                assert_eq!(direct, [2], "torn at {torn}");
            }
            assert!(!inbox.waits_for_more());
        }
    }

    #[test]
    fn a_frame_that_is_only_slow_is_left_alone() {
        let mut inbox = Inbox::default();
        let whole = chunk(1000);
        inbox.feed(&whole[..900]);
        assert_eq!(epochs(&mut inbox), []);
        assert!(inbox.waits_for_more() && !inbox.rescue(0));
        inbox.feed(&whole[900..]);
        assert_eq!(epochs(&mut inbox), [1]);
        assert!(!inbox.waits_for_more());
    }

    #[test]
    fn an_old_session_is_not_a_rescue() {
        let mut inbox = Inbox::default();
        inbox.feed(&chunk(1000)[..500]);
        inbox.feed(&attach(4));
        assert_eq!(epochs(&mut inbox), []);
        assert!(!inbox.rescue(5));
        assert!(inbox.rescue(4));
    }

    #[test]
    fn garbage_is_passed_over_and_counted_out() {
        let mut inbox = Inbox::default();
        inbox.feed(&[b'x'; 5000]);
        inbox.feed(&MARKER);
        inbox.feed(&attach(1));
        inbox.feed(b"tail");
        assert_eq!(epochs(&mut inbox), [1]);
        assert_eq!(inbox.next(), None);
        assert!(!inbox.waits_for_more());
    }
}
