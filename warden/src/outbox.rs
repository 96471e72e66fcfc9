//! What the agent is to be told beside output. Pure.
//!
//! Not a queue but a set of things to say, so it is bounded by itself: a newer pong replaces an older one, and the rest is
//! said once per session. Owns the bytes of the control frame that is being written. Control goes before output, at a
//! frame's end; the exit goes after all output.

use crate::wire::FromWarden;

#[derive(Default)]
pub(crate) struct Outbox {
    /// Being written.
    line: Vec<u8>,
    written: usize,
    epoch: u32,
    pub(crate) hello: bool,
    pub(crate) fault: Option<String>,
    pub(crate) refused: bool,
    pub(crate) started: bool,
    pub(crate) pong: Option<u64>,
    pub(crate) advance: bool,
    /// How much of the inputs is in its place; a newer word replaces an older one.
    pub(crate) taken: Option<u64>,
    pub(crate) exit: bool,
}

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Say {
    Hello,
    Fault(String),
    Refused,
    Started,
    Pong(u64),
    Advance,
    InputsTaken(u64),
    Exit,
}

impl Outbox {
    /// A session begins: what was to be said in the last one is not said any more, but a frame that is half written is
    /// finished; `torn` is the rest of an output frame.
    pub(crate) fn begin(&mut self, epoch: u32, torn: &[u8]) {
        let (mut line, written) = (std::mem::take(&mut self.line), self.written);
        line.extend_from_slice(torn);
        *self = Self { line, written, epoch, hello: true, ..Self::default() };
    }

    /// Whether control frames wait, the exit left out.
    pub(crate) fn urgent(&self) -> bool {
        self.hello
            || self.fault.is_some()
            || self.refused
            || self.started
            || self.pong.is_some()
            || self.advance
            || self.taken.is_some()
    }

    /// Whether there is nothing to say but that a session and a job have begun.
    pub(crate) fn is_beginning(&self) -> bool {
        let more = self.fault.is_some() || self.refused || self.pong.is_some() || self.advance || self.taken.is_some();
        !more && !self.exit && self.line.is_empty()
    }

    /// The next thing to say, which then counts as said. The exit only when `output_sent`.
    pub(crate) fn take(&mut self, output_sent: bool) -> Option<Say> {
        let once = |flag: &mut bool| std::mem::take(flag);
        if once(&mut self.hello) {
            Some(Say::Hello)
        } else if let Some(text) = self.fault.take() {
            Some(Say::Fault(text))
        } else if once(&mut self.refused) {
            Some(Say::Refused)
        } else if once(&mut self.started) {
            Some(Say::Started)
        } else if let Some(nonce) = self.pong.take() {
            Some(Say::Pong(nonce))
        } else if once(&mut self.advance) {
            Some(Say::Advance)
        } else if let Some(offset) = self.taken.take() {
            Some(Say::InputsTaken(offset))
        } else if output_sent && once(&mut self.exit) {
            Some(Say::Exit)
        } else {
            None
        }
    }

    /// Puts a frame on the line.
    pub(crate) fn say(&mut self, message: &FromWarden) {
        message.encode(self.epoch, 0, &mut self.line);
    }

    /// Puts a frame of somebody else's on the line, with the session's epoch.
    pub(crate) fn add(&mut self, encode: impl FnOnce(u32, &mut Vec<u8>)) {
        encode(self.epoch, &mut self.line);
    }

    /// What is to be written before anything else.
    pub(crate) fn line(&self) -> &[u8] {
        &self.line[self.written..]
    }

    /// The first `count` bytes of it are written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.written += count;
        if self.written >= self.line.len() {
            self.line.clear();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Decoder;

    #[test]
    fn the_hello_is_first_and_the_exit_last() {
        let mut outbox = Outbox::default();
        outbox.begin(1, &[]);
        (outbox.exit, outbox.started, outbox.pong) = (true, true, Some(1));
        outbox.pong = Some(2);
        assert!(outbox.urgent() && !outbox.is_beginning());
        assert_eq!(outbox.take(false), Some(Say::Hello));
        assert_eq!(outbox.take(false), Some(Say::Started));
        assert_eq!(outbox.take(false), Some(Say::Pong(2)));
        assert_eq!((outbox.take(false), outbox.urgent()), (None, false));
        assert_eq!((outbox.take(true), outbox.take(true)), (Some(Say::Exit), None));
    }

    #[test]
    fn a_beginning_is_a_hello_and_a_start_alone() {
        let mut outbox = Outbox::default();
        outbox.begin(1, &[]);
        outbox.started = true;
        assert!(outbox.is_beginning());
        let more: [fn(&mut Outbox); 4] = [
            |outbox| outbox.exit = true,
            |outbox| outbox.pong = Some(1),
            |outbox| outbox.refused = true,
            |outbox| outbox.say(&FromWarden::Pong { nonce: 1, stalled: 0 }),
        ];
        for more in more {
            let mut outbox = Outbox::default();
            outbox.begin(1, &[]);
            more(&mut outbox);
            assert!(!outbox.is_beginning());
        }
    }

    #[test]
    fn a_new_session_finishes_the_torn_frame_and_forgets_the_rest() {
        let mut outbox = Outbox::default();
        outbox.begin(1, &[]);
        outbox.fault = Some("old".into());
        outbox.say(&FromWarden::Pong { nonce: 1, stalled: 0 });
        let mut decoder = Decoder::new();
        decoder.feed(&outbox.line()[..10]);
        outbox.advance(10);
        outbox.begin(2, &[]);
        outbox.say(&FromWarden::Pong { nonce: 2, stalled: 0 });
        decoder.feed(outbox.line());
        outbox.advance(outbox.line().len());
        assert_eq!(decoder.next().map(|frame| frame.epoch), Some(1));
        assert_eq!(decoder.next().map(|frame| frame.epoch), Some(2));
        assert_eq!((outbox.take(true), outbox.take(true), outbox.line().len()), (Some(Say::Hello), None, 0));
    }
}
