//! Which piece of whose output goes next: channels, windows, turns, acknowledgements. Pure; the link carries it out.
//!
//! ```text
//! closed ─connection─► opening ─opened(durable)─► open ─sent─► … ─durable(n)─► …
//!    ▲                                             │
//!    └────────── connection lost ──────────────────┘      refused: for good
//! ```
//!
//! After a cut every channel is opened again, and goes on behind the last frame that is durable at the backend. Channels take
//! turns, one message each, and one whose window is full is passed over: a flood delays nobody but itself.

use crate::job::{AttemptId, LeaseToken};
use crate::protocol::agent::{FromAgent, Holding, MESSAGE, MESSAGES, ToAgent, WINDOW};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Opening,
    Open,
    Refused,
}

#[derive(Debug)]
struct Channel {
    attempt: AttemptId,
    token: LeaseToken,
    state: State,
    /// The last frame that was sent on this connection, or was durable when it began.
    sent: u64,
    durable: u64,
    /// Frame and bytes of each message that is not durable yet.
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
    /// Somebody waits for everything up to this frame.
    flush: Option<u64>,
    /// The backend was asked to be quick about it.
    flush_sent: bool,
}

/// How a flush stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushing {
    /// The backend cannot be reached.
    Away,
    /// So far; it goes on.
    At(u64),
    /// Done.
    Durable,
    /// It never will be.
    Never,
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A text message.
    Say(FromAgent),
    /// Output of this attempt, from this frame on, about so many bytes.
    Output { channel: u32, attempt: AttemptId, from: u64, bytes: usize },
}

/// All channels.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    channels: BTreeMap<u32, Channel>,
    last_channel: u32,
    /// The channel that had its turn last.
    turn: u32,
    /// Channels that are over and were open.
    closing: Vec<u32>,
}

impl Uplink {
    /// Output of this attempt is there, or will be.
    pub(super) fn add(&mut self, attempt: AttemptId, token: LeaseToken) {
        if self.channels.values().any(|channel| channel.attempt == attempt) {
            return;
        }
        self.last_channel += 1;
        let channel = Channel {
            attempt,
            token,
            state: State::Closed,
            sent: 0,
            durable: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            flush: None,
            flush_sent: false,
        };
        self.channels.insert(self.last_channel, channel);
    }

    /// The attempt is over.
    pub(super) fn remove(&mut self, attempt: AttemptId) {
        let found = self.channels.iter().find(|(_, channel)| channel.attempt == attempt).map(|(number, _)| *number);
        if let Some(number) = found
            && let Some(channel) = self.channels.remove(&number)
            && matches!(channel.state, State::Open | State::Opening)
        {
            self.closing.push(number);
        }
    }

    /// Which frame of each attempt is durable, of those whose output the backend wants.
    pub(super) fn behind(&self) -> Vec<(AttemptId, u64)> {
        let wanted = self.channels.values().filter(|channel| channel.state != State::Refused);
        wanted.map(|channel| (channel.attempt, channel.durable)).collect()
    }

    /// Asks for everything up to `last` to be made durable.
    pub(super) fn flush(&mut self, attempt: AttemptId, last: u64) {
        if let Some(channel) = self.channels.values_mut().find(|channel| channel.attempt == attempt) {
            channel.flush = Some(last);
        }
    }

    /// How far a flush is. An attempt that was never added has nothing to flush.
    pub(super) fn flushing(&self, attempt: AttemptId, last: u64) -> Flushing {
        match self.channels.values().find(|channel| channel.attempt == attempt) {
            _ if last == 0 => Flushing::Durable,
            Some(channel) if channel.durable >= last => Flushing::Durable,
            Some(Channel { state: State::Closed, .. }) => Flushing::Away,
            Some(channel) if channel.state != State::Refused => Flushing::At(channel.durable),
            Some(_) | None => Flushing::Never,
        }
    }

    /// The connection is gone: nothing is open until there is a new one.
    pub(super) fn cut(&mut self) {
        self.closing.clear();
        for channel in self.channels.values_mut().filter(|channel| channel.state != State::Refused) {
            channel.state = State::Closed;
            channel.in_flight.clear();
            channel.in_flight_bytes = 0;
            channel.flush_sent = false;
        }
    }

    /// What the backend said. Returns false for a channel that it cannot know.
    pub(super) fn heard(&mut self, said: &ToAgent) {
        let (ToAgent::Opened { channel: number, .. }
        | ToAgent::Durable { channel: number, .. }
        | ToAgent::Refused { channel: number, .. }) = said
        else {
            return;
        };
        let Some(channel) = self.channels.get_mut(number) else { return };
        match said {
            ToAgent::Opened { durable, .. } => {
                channel.state = State::Open;
                channel.sent = *durable;
                channel.durable = *durable;
                channel.in_flight.clear();
                channel.in_flight_bytes = 0;
                channel.flush_sent = false;
            }
            ToAgent::Durable { durable, .. } if channel.state == State::Open => {
                // No backend can have more than was sent.
                channel.durable = channel.durable.max((*durable).min(channel.sent));
                while let Some((last, bytes)) = channel.in_flight.front().copied()
                    && last <= channel.durable
                {
                    channel.in_flight.pop_front();
                    channel.in_flight_bytes -= bytes;
                }
            }
            ToAgent::Refused { .. } => channel.state = State::Refused,
            ToAgent::Durable { .. } | ToAgent::Cancel { .. } | ToAgent::Other => {}
        }
    }

    /// What to send next; `written` says which frame of an attempt is the last one there is. `None`: nothing at the moment.
    pub(super) fn next(&mut self, written: impl Fn(AttemptId) -> u64) -> Option<Next> {
        if let Some(channel) = self.closing.pop() {
            return Some(Next::Say(FromAgent::Close { channel }));
        }
        for (number, channel) in &mut self.channels {
            if channel.state == State::Closed {
                channel.state = State::Opening;
                let holding = Holding { attempt: channel.attempt, token: channel.token };
                return Some(Next::Say(FromAgent::Open { channel: *number, holding }));
            }
            let all_sent = channel.flush.is_some_and(|last| channel.sent >= last && channel.durable < last);
            if channel.state == State::Open && all_sent && !channel.flush_sent {
                channel.flush_sent = true;
                return Some(Next::Say(FromAgent::Flush { channel: *number }));
            }
        }
        let ready = |channel: &Channel| {
            let last = channel.flush.unwrap_or(0).max(written(channel.attempt));
            let room = channel.in_flight_bytes < WINDOW && channel.in_flight.len() < MESSAGES;
            channel.state == State::Open && room && channel.sent < last
        };
        let after = self.channels.range(self.turn + 1..).find(|(_, channel)| ready(channel));
        let (number, channel) = after.or_else(|| self.channels.iter().find(|(_, channel)| ready(channel)))?;
        self.turn = *number;
        let bytes = MESSAGE.min(WINDOW - channel.in_flight_bytes);
        Some(Next::Output { channel: *number, attempt: channel.attempt, from: channel.sent + 1, bytes })
    }

    /// Its log cannot be read here: nothing more of it will come, and nobody else is to wait for it.
    pub(super) fn unreadable(&mut self, number: u32) {
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.state = State::Refused;
            self.closing.push(number);
        }
    }

    /// A message with output up to `last` is on its way.
    pub(super) fn sent(&mut self, number: u32, from: u64, last: u64, bytes: usize) {
        // The channel may have been opened anew meanwhile; then this message counts for nothing.
        if let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.sent + 1 == from) {
            channel.sent = last;
            channel.in_flight.push_back((last, bytes));
            channel.in_flight_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    fn attempt(number: u32) -> AttemptId {
        let job: JobId = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b".parse().expect("an id");
        AttemptId::new(job, number)
    }

    fn open(uplink: &mut Uplink, durable: u64) -> u32 {
        match uplink.next(|_| 0) {
            Some(Next::Say(FromAgent::Open { channel, .. })) => {
                uplink.heard(&ToAgent::Opened { channel, durable });
                channel
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_window_passes_the_turn_and_an_acknowledgement_gives_it_back() {
        let mut uplink = Uplink::default();
        uplink.add(attempt(1), LeaseToken(1));
        uplink.add(attempt(2), LeaseToken(2));
        let (flood, quiet) = (open(&mut uplink, 0), open(&mut uplink, 0));
        let mut turns = Vec::new();
        let mut frame = 0;
        while let Some(Next::Output { channel, from, bytes, .. }) = uplink.next(|_| 1_000_000) {
            turns.push(channel);
            frame = frame.max(from);
            uplink.sent(channel, from, from, bytes);
        }
        // Taking turns until both windows are full.
        assert_eq!(turns[..4], [flood, quiet, flood, quiet]);
        assert_eq!(turns.len(), 2 * WINDOW / MESSAGE);
        uplink.heard(&ToAgent::Durable { channel: quiet, durable: 3 });
        assert!(matches!(uplink.next(|_| 1_000_000), Some(Next::Output { channel, .. }) if channel == quiet));
        // A backend that says more than it can know is not believed.
        uplink.heard(&ToAgent::Durable { channel: flood, durable: u64::MAX });
        assert_eq!(uplink.flushing(attempt(1), 900_000), Flushing::At(frame));
    }

    #[test]
    fn after_a_cut_it_goes_on_behind_what_is_durable() {
        let mut uplink = Uplink::default();
        uplink.add(attempt(1), LeaseToken(1));
        let channel = open(&mut uplink, 0);
        uplink.sent(channel, 1, 10, 100);
        uplink.heard(&ToAgent::Durable { channel, durable: 4 });
        uplink.cut();
        // A late word of the old connection.
        uplink.heard(&ToAgent::Durable { channel, durable: 10 });
        assert_eq!(uplink.flushing(attempt(1), 10), Flushing::Away);
        assert_eq!(open(&mut uplink, 6), channel);
        assert_eq!(uplink.flushing(attempt(1), 10), Flushing::At(6));
        assert!(matches!(uplink.next(|_| 10), Some(Next::Output { from: 7, .. })));
        uplink.sent(channel, 7, 10, 40);
        uplink.flush(attempt(1), 10);
        assert_eq!(uplink.next(|_| 10), Some(Next::Say(FromAgent::Flush { channel })));
        assert_eq!(uplink.next(|_| 10), None);
        uplink.heard(&ToAgent::Durable { channel, durable: 10 });
        assert_eq!(uplink.flushing(attempt(1), 10), Flushing::Durable);
        uplink.remove(attempt(1));
        assert_eq!(uplink.next(|_| 10), Some(Next::Say(FromAgent::Close { channel })));
    }

    #[test]
    fn a_refused_channel_is_never_opened_again() {
        let mut uplink = Uplink::default();
        uplink.add(attempt(1), LeaseToken(1));
        let channel = open(&mut uplink, 0);
        uplink.heard(&ToAgent::Refused { channel, reason: "lease".into() });
        uplink.cut();
        assert_eq!((uplink.next(|_| 10), uplink.flushing(attempt(1), 10)), (None, Flushing::Never));
        assert_eq!(uplink.flushing(attempt(1), 0), Flushing::Durable, "nothing was written");
    }

    #[test]
    fn a_log_that_cannot_be_read_holds_up_no_other() {
        let mut uplink = Uplink::default();
        uplink.add(attempt(1), LeaseToken(1));
        uplink.add(attempt(2), LeaseToken(2));
        let (damaged, good) = (open(&mut uplink, 0), open(&mut uplink, 0));
        uplink.unreadable(damaged);
        assert_eq!(uplink.flushing(attempt(1), 5), Flushing::Never);
        assert_eq!(uplink.next(|_| 5), Some(Next::Say(FromAgent::Close { channel: damaged })));
        assert!(matches!(uplink.next(|_| 5), Some(Next::Output { channel, .. }) if channel == good));
    }
}
