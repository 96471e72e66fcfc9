//! One of the job's two pipes, on its way to numbered frames.
//!
//! Owns the bytes between pipe and ring, what of them is masked, and the rule that no frame ever holds a whole marker. Must
//! never wait: with no room in the ring nothing is read, the pipe fills, and the job waits; or, where the job wants it so, what
//! it writes is dropped, counted, and told as a gap as soon as there is room. What is written beyond the job's limit needs no room:
//! it is read, counted, and told as one gap at the stream's end.

use crate::mask::{Masker, Patterns};
use crate::ring::{Ring, memory};
use crate::sys;
use crate::wire::{MARKER, MAX_OUTPUT};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Reads in a row before the loop looks at its other work. Together they are half of the ring.
const READS_PER_TURN: usize = 8;

pub(crate) struct Source {
    /// Gone after the end.
    pipe: Option<OwnedFd>,
    /// 1 or 2.
    stream: u8,
    /// Bytes that were read and did not go into the last frame; at most one read.
    carry: Vec<u8>,
    taken: usize,
    /// All bytes of this stream that went into frames.
    bytes: u64,
    /// All that was read.
    seen: u64,
    /// Where bytes go that are not kept.
    waste: Vec<u8>,
    /// Bytes that have no room are among these; otherwise they wait.
    drops: bool,
    /// Nothing more of this stream is kept.
    cut: bool,
    /// Bytes that were not kept since the last frame.
    dropped: u64,
    /// Replaces secrets; there are none without it.
    masker: Option<Masker>,
    /// When what the masker holds back was waited for long enough, and what had been read when that was decided.
    show_at: Option<(u64, u64)>,
}

/// What both streams together may still put into frames.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: u64,
    left: u64,
    beyond: u64,
}

impl Allowance {
    /// So many bytes; 0 for no limit.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, left: if limit == 0 { u64::MAX } else { limit }, beyond: 0 }
    }

    /// Bytes beyond it.
    pub(crate) fn beyond(&self) -> u64 {
        self.beyond
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes `count` bytes, or what is left of it, and says how many.
    fn take(&mut self, count: usize) -> usize {
        let taken = usize::try_from(self.left).map_or(count, |left| left.min(count));
        self.left -= taken as u64;
        self.beyond += (count - taken) as u64;
        taken
    }
}

/// Added to a stream's number, it names a gap in it.
const GAP: u8 = 2;

/// What a turn of reading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The pipe was emptied, for now.
    Dry,
    /// There is more.
    More,
    /// The ring is full.
    Full,
}

impl Source {
    pub(crate) fn new(
        pipe: OwnedFd,
        stream: u8,
        drops: bool,
        patterns: Option<&Arc<Patterns>>,
        reserved: bool,
    ) -> Self {
        // Most jobs need neither; where it is not there for certain, it is not asked for before.
        let (waste, carry) =
            if reserved { (memory(MAX_OUTPUT, true), Vec::with_capacity(MAX_OUTPUT)) } else { Default::default() };
        Self {
            pipe: Some(pipe),
            stream,
            carry,
            taken: 0,
            bytes: 0,
            seen: 0,
            waste,
            drops,
            cut: false,
            dropped: 0,
            masker: patterns.map(|patterns| Masker::new(Arc::clone(patterns))),
            show_at: None,
        }
    }

    /// The next process writes to this pipe; the one before has ended.
    pub(crate) fn go_on(&mut self, pipe: OwnedFd) {
        self.pipe = Some(pipe);
        if let Some(masker) = &mut self.masker {
            masker.start_anew();
        }
    }

    /// Whether it is read also while there is no room.
    pub(crate) fn needs_no_room(&self) -> bool {
        self.drops || self.cut
    }

    /// How much was read so far.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The descriptor to wait for; none after the end.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether everything that was read is in frames and the pipe has ended.
    pub(crate) fn ended(&self) -> bool {
        self.pipe.is_none() && !self.holds_back()
    }

    /// Whether there is something to put into frames without reading.
    pub(crate) fn holds_back(&self) -> bool {
        // One gap tells of all that is beyond the limit, so it waits for the end.
        !self.carry.is_empty()
            || (self.pipe.is_none() && self.masked_back() > 0)
            || (self.dropped > 0 && (!self.cut || self.pipe.is_none()))
    }

    /// Bytes that may begin a secret.
    fn masked_back(&self) -> usize {
        self.masker.as_ref().map_or(0, Masker::waiting)
    }

    /// When there is something to do that no descriptor announces.
    pub(crate) fn show_at(&self) -> Option<u64> {
        self.show_at.map(|(at, _)| at)
    }

    /// Lets go of bytes that may begin a secret and were waited for long enough. `turn` is what was found just now.
    pub(crate) fn settle(&mut self, turn: Turn, ring: &mut Ring, allowance: &mut Allowance, now: u64) {
        let patience = match &self.masker {
            Some(masker) if masker.waiting() > 0 && turn == Turn::Dry => masker.patience_ns(),
            _ => return self.show_at = None,
        };
        match self.show_at {
            Some((at, seen)) if seen == self.seen => {
                if now < at {
                    return;
                }
            }
            _ => return self.show_at = Some((now.saturating_add(patience), self.seen)),
        }
        // Without room it is tried again after as long.
        self.show_at = Some((now.saturating_add(patience), self.seen));
        if self.carry.is_empty()
            && let Some(masker) = &mut self.masker
            && let Some(slot) = ring.slot()
        {
            let kept = masker.show(slot);
            self.show_at = None;
            self.put(kept, ring, allowance);
        }
    }

    /// Makes a frame of the first `kept` bytes of the slot, as far as they are allowed; what follows a marker in them is carried over.
    fn put(&mut self, kept: usize, ring: &mut Ring, allowance: &mut Allowance) {
        let allowed = allowance.take(kept);
        self.dropped += (kept - allowed) as u64;
        self.commit(allowed, ring);
    }

    fn commit(&mut self, len: usize, ring: &mut Ring) {
        let Some(slot) = ring.slot().filter(|_| len > 0) else { return };
        let cut = unforgeable(&slot[..len]);
        self.keep(&slot[cut..len]);
        ring.commit(self.stream, sys::unix_us(), cut);
        self.bytes += cut as u64;
    }

    /// Nobody is left who could write: what is not there now never comes.
    pub(crate) fn close_if_dry(&mut self, turn: Turn) {
        if turn == Turn::Dry {
            self.pipe = None;
        }
    }

    /// Moves what is there into the ring.
    pub(crate) fn turn(&mut self, ring: &mut Ring, allowance: &mut Allowance) -> Turn {
        for _ in 0..READS_PER_TURN {
            self.cut = allowance.left == 0;
            if self.cut && self.carry.is_empty() && self.pipe.is_some() {
                return self.drop_all(Some(allowance));
            }
            let Some(slot) = ring.slot() else {
                return match (self.drops, self.cut && self.pipe.is_some()) {
                    (_, true) => self.drop_all(Some(allowance)),
                    (true, false) => self.drop_all(None),
                    (false, false) => Turn::Full,
                };
            };
            // Beyond the limit nothing is told before it is known how much that is.
            let more = !self.carry.is_empty() || (self.pipe.is_none() && self.masked_back() > 0);
            if self.dropped > 0 && !(self.cut && more) {
                // In digits: none of them is part of a marker.
                let digits = self.dropped.to_string();
                slot[..digits.len()].copy_from_slice(digits.as_bytes());
                ring.commit(self.stream + GAP, sys::unix_us(), digits.len());
                self.dropped = 0;
                continue;
            }
            if !self.carry.is_empty() {
                // It has been masked and counted.
                let rest = self.carry.len() - self.taken;
                slot[..rest].copy_from_slice(&self.carry[self.taken..]);
                self.commit(rest, ring);
                continue;
            }
            let held = self.masker.as_ref().map_or(0, |masker| masker.begin(slot));
            match self.pipe.as_ref().map(|pipe| sys::read_some(pipe.as_raw_fd(), &mut slot[held..])) {
                Some(Ok(Some(count))) if count > 0 => {
                    self.seen += count as u64;
                    let (all, whole) = (held + count, held + count == slot.len());
                    let kept = self.masker.as_mut().map_or(all, |masker| masker.pass(&mut slot[..all], false));
                    self.put(kept, ring, allowance);
                    if self.carry.is_empty() && !whole {
                        // A short read emptied the pipe; asking again would only cost a call.
                        return Turn::Dry;
                    }
                }
                Some(Ok(None)) => return Turn::Dry,
                // The end; a pipe that cannot be read has ended too. What was held back begins no secret any more.
                None | Some(Ok(Some(_)) | Err(_)) => {
                    self.pipe = None;
                    let kept = self.masker.as_mut().map_or(0, |masker| masker.pass(&mut slot[..held], true));
                    self.put(kept, ring, allowance);
                    return Turn::Dry;
                }
            }
        }
        Turn::More
    }

    /// Reads what is there, and keeps no more of it than its length. With an allowance, it is because that is used up.
    fn drop_all(&mut self, mut allowance: Option<&mut Allowance>) -> Turn {
        self.dropped += (self.carry.len() - self.taken) as u64;
        self.keep(&[]);
        self.waste.resize(MAX_OUTPUT, 0);
        for _ in 0..READS_PER_TURN {
            let held = self.masker.as_ref().map_or(0, |masker| masker.begin(&mut self.waste));
            match self.pipe.as_ref().map(|pipe| sys::read_some(pipe.as_raw_fd(), &mut self.waste[held..])) {
                Some(Ok(Some(count))) if count > 0 => {
                    self.seen += count as u64;
                    let all = held + count;
                    let kept = self.masker.as_mut().map_or(all, |masker| masker.pass(&mut self.waste[..all], false));
                    self.dropped += kept as u64;
                    if let Some(allowance) = &mut allowance {
                        allowance.take(kept);
                    }
                }
                Some(Ok(None)) | None => return Turn::Dry,
                Some(Ok(Some(_)) | Err(_)) => {
                    self.pipe = None;
                    return Turn::Dry;
                }
            }
        }
        Turn::More
    }

    /// Holds back the end of a read. Moves bytes only when a new read is cut: then the carry is empty.
    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.carry.clear();
            self.taken = 0;
        } else if self.carry.is_empty() {
            self.carry.extend_from_slice(rest);
        } else {
            self.taken = self.carry.len() - rest.len();
        }
    }
}

/// How much of `bytes` goes into one frame: all of it, or up to the last byte of the first marker in it. So no payload ever
/// holds a whole marker. A session can begin in the middle of a frame, and its reader then looks for the next marker: it
/// must be ours, not one that the job printed with a forged end behind it.
fn unforgeable(bytes: &[u8]) -> usize {
    const LAST: usize = MARKER.len() - 1;
    let mut from = 0;
    while let Some(found) = sys::find_byte(&bytes[from..], MARKER[LAST]) {
        let at = from + found;
        if at >= LAST && bytes[at - LAST..=at] == MARKER {
            return at;
        }
        from = at + 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Decoder, FromWarden};
    use std::io::Write;

    /// No limit.
    fn all() -> Allowance {
        Allowance::new(0)
    }

    fn source(drops: bool) -> (Source, std::fs::File) {
        let (from, to) = sys::pipe().expect("a pipe");
        sys::widen_pipe(from.as_raw_fd(), 1 << 20);
        (Source::new(from, 2, drops, None, true), std::fs::File::from(to))
    }

    /// Sends all that the ring holds, and gives back the streams and payloads.
    fn sent_frames(ring: &mut Ring) -> Vec<(u8, Vec<u8>)> {
        let (mut decoder, mut pieces) = (Decoder::new(), Vec::new());
        loop {
            let count = ring.sendable(usize::MAX).len();
            if count == 0 {
                break;
            }
            decoder.feed(ring.sendable(usize::MAX));
            ring.advance(count);
        }
        while let Some(frame) = decoder.next() {
            let Ok(FromWarden::Output { stream, bytes, .. }) = FromWarden::decode(&frame) else { panic!("no output") };
            pieces.push((stream, bytes));
        }
        ring.acknowledge(u64::MAX);
        pieces
    }

    /// The same of one stream without gaps.
    fn sent(ring: &mut Ring) -> Vec<Vec<u8>> {
        let frames = sent_frames(ring).into_iter();
        frames.inspect(|(stream, _)| assert_eq!(*stream, 2)).map(|(_, bytes)| bytes).collect()
    }

    #[test]
    fn no_frame_holds_a_marker_and_no_byte_is_lost() {
        let (mut source, mut job) = source(false);
        let mut ring = Ring::new(1 << 20);
        let mut text = Vec::new();
        let mut forged = Vec::new();
        FromWarden::Fault { text: "forged".into() }.encode(1, 0, &mut forged);
        for piece in [b"plain ".as_slice(), &MARKER, &MARKER, &forged, &MARKER[..3], &MARKER, b"\x9b\xc3 tail"] {
            text.extend_from_slice(piece);
        }
        job.write_all(&text).expect("room");
        drop(job);
        while !source.ended() {
            source.turn(&mut ring, &mut all());
        }
        let pieces = sent(&mut ring);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.windows(4).any(|four| four == MARKER)));
        assert_eq!((pieces.len(), source.bytes()), (5, text.len() as u64));
    }

    fn masking(drops: bool) -> (Source, std::fs::File) {
        let (from, to) = sys::pipe().expect("a pipe");
        let patterns = Arc::new(Patterns::new([b"hunter2-hunter2".as_slice()].into_iter()));
        (Source::new(from, 2, drops, Some(&patterns), true), std::fs::File::from(to))
    }

    #[test]
    fn secrets_are_masked_over_reads_and_the_bytes_of_what_is_left_are_counted() {
        let (mut source, mut job) = masking(false);
        let mut ring = Ring::new(1 << 20);
        for piece in [&b"one hunter2-"[..], b"hunter2 two hunt", b"er2-hunter2, hunter2"] {
            job.write_all(piece).expect("room");
            assert_eq!(source.turn(&mut ring, &mut all()), Turn::Dry);
        }
        drop(job);
        assert!(!source.ended());
        while !source.ended() {
            source.turn(&mut ring, &mut all());
        }
        assert_eq!(sent(&mut ring).concat(), b"one *** two ***, hunter2");
        assert_eq!((source.bytes(), source.seen()), (24, 48));
    }

    #[test]
    fn a_line_that_is_not_ended_comes_after_a_while_and_a_secret_never() {
        let (mut source, mut job) = masking(false);
        let (mut ring, mut now) = (Ring::new(1 << 20), 1_000);
        let mut look = |source: &mut Source, ring: &mut Ring, later: u64| {
            now += later;
            let turn = source.turn(ring, &mut all());
            source.settle(turn, ring, &mut all(), now);
            (sent(ring).concat(), source.show_at().map(|at| at - now))
        };
        job.write_all(b"Who? hu").expect("room");
        assert_eq!(look(&mut source, &mut ring, 0), (b"Who? ".to_vec(), Some(100_000_000)));
        assert_eq!(look(&mut source, &mut ring, 99_999_999), (vec![], Some(1)));
        assert_eq!(look(&mut source, &mut ring, 1), (b"hu".to_vec(), None));
        job.write_all(b"nter2-hunter2 is it").expect("room");
        assert_eq!(look(&mut source, &mut ring, 5), (b"*** is it".to_vec(), None));
        // More than a few bytes of one are waited for longer.
        job.write_all(b"hunter2-").expect("room");
        assert_eq!(look(&mut source, &mut ring, 5), (vec![], Some(1_000_000_000)));
        job.write_all(b"hunter2").expect("room");
        assert_eq!(look(&mut source, &mut ring, 5), (b"***".to_vec(), None));
    }

    #[test]
    fn limits_and_gaps_count_what_is_masked() {
        // Twelve bytes are left of the first line; the second one is beyond.
        let (mut source, mut job) = masking(false);
        let (mut ring, mut allowance) = (Ring::new(1 << 20), Allowance::new(12));
        job.write_all(b"a hunter2-hunter2 line\nhunter2-hunter2 hunter2-").expect("room");
        drop(job);
        while !source.ended() {
            source.turn(&mut ring, &mut allowance);
        }
        assert_eq!(sent_frames(&mut ring), [(2, b"a *** line\n*".to_vec()), (4, b"11".to_vec())]);
        assert_eq!((source.bytes(), allowance.beyond()), (12, 11));
    }

    #[test]
    fn reading_stops_while_the_ring_is_full_and_goes_on_after() {
        let (mut source, mut job) = source(false);
        let mut ring = Ring::new(0);
        let text: Vec<u8> = (0..500_000u32).map(|n| (n % 251) as u8).collect();
        job.write_all(&text).expect("room");
        drop(job);
        let (mut got, mut was_full) = (Vec::new(), false);
        while !source.ended() {
            if source.turn(&mut ring, &mut all()) == Turn::Full {
                was_full = true;
                assert_eq!(source.turn(&mut ring, &mut all()), Turn::Full);
                got.extend(sent(&mut ring).concat());
            }
        }
        got.extend(sent(&mut ring).concat());
        assert!(was_full && got == text);
    }

    #[test]
    fn what_has_no_room_is_counted_where_that_is_wanted_and_nothing_else_is_missing() {
        let (mut source, mut job) = source(true);
        let mut ring = Ring::new(0);
        let text: Vec<u8> = (0..500_000u32).map(|n| (n % 251) as u8).collect();
        let (mut got, mut at, mut gaps) = (0, 0, 0);
        for piece in text.chunks(200_000) {
            job.write_all(piece).expect("room");
            while source.turn(&mut ring, &mut all()) != Turn::Dry {}
        }
        drop(job);
        let mut frames = Vec::new();
        while !source.ended() || !ring.all_sent() {
            frames.extend(sent_frames(&mut ring));
            source.turn(&mut ring, &mut all());
        }
        for (stream, bytes) in frames {
            if stream == 4 {
                let dropped: usize = std::str::from_utf8(&bytes).expect("digits").parse().expect("a number");
                (at, gaps) = (at + dropped, gaps + 1);
            } else {
                assert_eq!((stream, &text[at..at + bytes.len()]), (2, &bytes[..]));
                (at, got) = (at + bytes.len(), got + bytes.len());
            }
        }
        assert_eq!((at, source.seen(), source.bytes()), (text.len(), text.len() as u64, got as u64));
        assert!(gaps > 0 && got > 0);
    }

    /// Writes `text` in three parts, reads it with room for `limit` bytes, and gives back what was kept, the gaps, and what was beyond.
    fn cut(text: &[u8], limit: u64, drops: bool, room: usize) -> (Vec<u8>, Vec<u64>, u64) {
        let (mut source, mut job) = source(drops);
        let (mut ring, mut allowance) = (Ring::new(room), Allowance::new(limit));
        let (mut kept, mut gaps) = (Vec::new(), Vec::new());
        let mut take = |ring: &mut Ring| {
            for (stream, bytes) in sent_frames(ring) {
                match stream {
                    2 => kept.extend(bytes),
                    _ => gaps.push(std::str::from_utf8(&bytes).expect("digits").parse().expect("a number")),
                }
            }
        };
        for piece in text.chunks(text.len() / 3) {
            job.write_all(piece).expect("room");
            while source.turn(&mut ring, &mut allowance) != Turn::Dry {
                take(&mut ring);
            }
            assert!(!source.cut || !source.holds_back(), "it would be asked again at once, for ever");
        }
        drop(job);
        while !source.ended() {
            source.turn(&mut ring, &mut allowance);
            take(&mut ring);
        }
        assert_eq!((source.bytes(), source.seen()), (kept.len() as u64, text.len() as u64));
        (kept, gaps, allowance.beyond())
    }

    #[test]
    fn what_is_beyond_the_limit_is_one_gap_of_exactly_its_length() {
        let mut text: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        // Two markers, so that the end of the allowance is held back for a frame of its own.
        text[99_990..99_994].copy_from_slice(&MARKER);
        text[99_996..100_000].copy_from_slice(&MARKER);
        for drops in [false, true] {
            for (limit, beyond) in [(1, 399_999), (99_998, 300_002), (100_000, 300_000), (399_999, 1)] {
                let (kept, gaps, told) = cut(&text, limit, drops, 1 << 20);
                assert!(kept == text[..limit as usize], "{limit}");
                assert_eq!((gaps, told), (vec![beyond], beyond), "{limit}");
            }
            // As much as may be written is not too much.
            for limit in [0, 400_000, u64::MAX] {
                let (kept, gaps, told) = cut(&text, limit, drops, 1 << 20);
                assert!(kept == text);
                assert_eq!((gaps, told), (vec![], 0), "{limit}");
            }
        }
        // With little room, too, each byte is kept or counted, and what is kept is the beginning.
        let (kept, gaps, beyond) = cut(&text, 250_000, false, 0);
        assert!(kept == text[..kept.len()] && gaps.len() == 1);
        assert_eq!((kept.len() as u64 + gaps[0], beyond), (400_000, 150_000));
    }

    #[test]
    fn an_empty_pipe_is_dry_and_ends_only_when_nobody_can_write() {
        let (mut source, job) = source(false);
        let mut ring = Ring::new(0);
        let turn = source.turn(&mut ring, &mut all());
        assert_eq!((turn, source.ended()), (Turn::Dry, false));
        source.close_if_dry(turn);
        assert!(source.ended());
        drop(job);
    }

    #[test]
    fn markers_are_found_where_they_end() {
        assert_eq!(unforgeable(b""), 0);
        assert_eq!(unforgeable(b"\x9b\x9b\x9b"), 3);
        assert_eq!(unforgeable(&MARKER), 3);
        assert_eq!(unforgeable(b"a\xc3\x4a\x43\x9b\x9b"), 4);
        assert_eq!(unforgeable(b"\xc3\x4a\x43"), 3);
    }
}
