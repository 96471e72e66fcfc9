//! The output of one channel on its way from the task that drains it to whoever takes it, bounded.
//!
//! The connection's library opens a channel's window again by itself, as soon as data has arrived: there is no way to let the window of
//! one channel run out. So what a consumer does not take is kept here, up to a bound; the consumer hears early that it should have the job
//! stopped for a while ([`StoreBounds::high`]). What happens at the bound is the drain's to decide.

use super::route::StoreBounds;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// What a message costs besides its bytes, so that a million empty ones are no way around the bound.
const OVERHEAD: usize = 128;

/// What happens on a channel. The last one is [`Event::Closed`] or [`Event::Lost`]; code, signal and lost connection are three
/// outcomes, and the order of the others is the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Output, split anywhere.
    Stdout(Bytes),
    /// Error output, split anywhere.
    Stderr(Bytes),
    /// The command ended with this code.
    Exit(u32),
    /// The command ended by a signal.
    Signal {
        /// Without `SIG`.
        name: String,
        /// It left a core file.
        core_dumped: bool,
    },
    /// No more output comes.
    Eof,
    /// The host did not run the command.
    Refused,
    /// Output was not kept from here on, as nobody took it: the job has to be ended.
    Overrun,
    /// The host closed the channel: everything was said.
    Closed,
    /// The connection is lost, and what becomes of the command is not known.
    Lost(String),
}

impl Event {
    fn bytes(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Stdout(bytes) | Self::Stderr(bytes) => bytes.len(),
                _ => 0,
            }
    }

    fn is_output(&self) -> bool {
        matches!(self, Self::Stdout(_) | Self::Stderr(_))
    }
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is kept.
    Yes,
    /// There is no room for it now.
    Full(Event),
    /// Nobody will take anything any more.
    Gone,
}

/// Between drain and consumer.
#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    bounds: StoreBounds,
    filled: Notify,
    /// There is room again, or nobody takes anything any more.
    pub(super) taken: Notify,
    /// Nobody takes anything any more.
    pub(super) left: Notify,
    pressure: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    bytes: usize,
    ended: bool,
    gone: bool,
    overrun: bool,
}

impl Store {
    pub(super) fn new(bounds: StoreBounds) -> Self {
        let (pressure, _) = watch::channel(false);
        Self {
            state: Mutex::default(),
            bounds,
            filled: Notify::new(),
            taken: Notify::new(),
            left: Notify::new(),
            pressure,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event if there is room; what is no output always has.
    pub(super) fn push(&self, event: Event) -> Kept {
        let bytes = {
            let mut state = self.state();
            if state.gone {
                return Kept::Gone;
            }
            if event.is_output() {
                if state.overrun {
                    return Kept::Yes;
                }
                if state.bytes + event.bytes() > self.bounds.most && state.bytes > 0 {
                    return Kept::Full(event);
                }
            }
            state.ended |= matches!(event, Event::Closed | Event::Lost(_));
            state.bytes += event.bytes();
            state.events.push_back(event);
            state.bytes
        };
        self.filled.notify_one();
        if bytes >= self.bounds.high {
            self.press(true);
        }
        Kept::Yes
    }

    /// No output is kept from here on; the consumer comes upon that behind what is.
    pub(super) fn overrun(&self) {
        let before = std::mem::replace(&mut self.state().overrun, true);
        if !before {
            self.push(Event::Overrun);
        }
    }

    fn press(&self, on: bool) {
        self.pressure.send_if_modified(|now| std::mem::replace(now, on) != on);
    }

    /// The next event; none after the last. May be dropped while it waits, and nothing is lost.
    pub(super) async fn next(&self) -> Option<Event> {
        loop {
            let (event, bytes, ended) = {
                let mut state = self.state();
                let event = state.events.pop_front();
                state.bytes -= event.as_ref().map_or(0, Event::bytes);
                (event, state.bytes, state.ended)
            };
            if event.is_some() {
                if bytes <= self.bounds.low {
                    self.press(false);
                }
                self.taken.notify_one();
                return event;
            }
            if ended {
                return None;
            }
            self.filled.notified().await;
        }
    }

    /// Nobody takes anything any more.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.gone = true;
        state.events = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.taken.notify_one();
        self.left.notify_one();
    }

    pub(super) fn is_left(&self) -> bool {
        self.state().gone
    }

    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    pub(super) fn pressure(&self) -> watch::Receiver<bool> {
        self.pressure.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(bytes: usize) -> Event {
        Event::Stdout(Bytes::from(vec![b'x'; bytes]))
    }

    #[tokio::test]
    async fn what_nobody_takes_is_kept_up_to_the_bound_and_says_so_before() {
        let store = Store::new(StoreBounds { high: 1000, low: 300, most: 2000 });
        let pressure = store.pressure();
        assert_eq!((store.push(out(500)), *pressure.borrow()), (Kept::Yes, false));
        assert_eq!((store.push(out(500)), *pressure.borrow()), (Kept::Yes, true));
        assert_eq!(store.push(out(500)), Kept::Yes);
        assert_eq!((store.push(out(500)), store.bytes()), (Kept::Full(out(500)), 3 * 628));
        assert_eq!(store.push(Event::Exit(3)), Kept::Yes, "an end is not output");
        for _ in 0..2 {
            assert_eq!((store.next().await, *pressure.borrow()), (Some(out(500)), true));
        }
        assert_eq!((store.next().await, *pressure.borrow()), (Some(out(500)), false));
        assert_eq!(store.next().await, Some(Event::Exit(3)));
        store.push(Event::Closed);
        assert_eq!((store.next().await, store.next().await, store.next().await), (Some(Event::Closed), None, None));
    }

    #[tokio::test]
    async fn an_overrun_stands_behind_what_is_kept_and_before_the_end() {
        let store = Store::new(StoreBounds { high: 100, low: 10, most: 400 });
        assert_eq!((store.push(out(200)), store.push(out(200))), (Kept::Yes, Kept::Full(out(200))));
        store.overrun();
        store.overrun();
        assert_eq!(
            (store.push(out(1)), store.push(Event::Exit(0)), store.push(Event::Closed)),
            (Kept::Yes, Kept::Yes, Kept::Yes)
        );
        let mut all = Vec::new();
        while let Some(event) = store.next().await {
            all.push(event);
        }
        assert_eq!(all, [out(200), Event::Overrun, Event::Exit(0), Event::Closed]);
    }

    #[test]
    fn empty_messages_are_bounded_too_and_one_that_is_larger_than_all_room_passes() {
        let store = Store::new(StoreBounds { high: 1000, low: 10, most: 1280 });
        let kept = (0..100).take_while(|_| store.push(out(0)) == Kept::Yes).count();
        assert_eq!(kept, 10);
        store.leave();
        assert_eq!((store.push(out(1)), store.bytes(), store.is_left()), (Kept::Gone, 0, true));
        let small = Store::new(StoreBounds { high: 1, low: 1, most: 1 });
        assert_eq!((small.push(out(100)), small.push(out(0))), (Kept::Yes, Kept::Full(out(0))));
    }
}
