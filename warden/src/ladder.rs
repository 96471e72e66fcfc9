//! How a job is asked to end. Pure: orders and time in, the signal to send out.
//!
//! ```text
//!   running ──ladder──► asked (TERM) ──grace over──► killed (KILL)
//!      └───────────────── kill now ─────────────────────┘
//! ```
//! After a stop that a person or the job's own clocks gave, a command of the job's may run with a budget of its own: not after an
//! order to kill now. Reasons are ordered, cancel < timeout < silence < drain < lease < forced < tripwire: a stronger one replaces a weaker one, and no
//! order ever lengthens the grace that an earlier one gave.
//! Too much output is a reason only where there is no other, and stays: what a job writes while it is being ended for something else is
//! beside the point.

/// Numbers as in [`crate::wire::ToWarden::Stop`].
pub(crate) const CANCEL: u8 = 1;
pub(crate) const TIMEOUT: u8 = 2;
pub(crate) const SILENCE: u8 = 3;
pub(crate) const LEASE: u8 = 5;
pub(crate) const TRIPWIRE: u8 = 7;
pub(crate) const OUTPUT: u8 = 8;

/// What is to be sent to the whole tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    Ask,
    Kill,
}

/// How urgent an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// TERM, grace, KILL.
    Ladder,
    /// KILL now.
    Now,
}

#[derive(Debug, Default)]
pub(crate) struct Ladder {
    reason: u8,
    /// When the grace is over; nanoseconds since boot.
    kill_at: Option<u64>,
    killed: bool,
    /// An order said so, and not only that a grace is over.
    at_once: bool,
}

impl Ladder {
    /// Why the job was asked to end; 0 when it was not.
    pub(crate) fn reason(&self) -> u8 {
        self.reason
    }

    /// Whether nothing but the end is wanted.
    pub(crate) fn at_once(&self) -> bool {
        self.at_once
    }

    /// When [`tick`](Self::tick) wants to be called.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        if self.killed { None } else { self.kill_at }
    }

    /// Somebody, or a clock, wants the job to end.
    #[must_use]
    pub(crate) fn order(&mut self, level: Level, reason: u8, grace_ms: u32, now: u64) -> Option<Push> {
        // Zero would mean that nobody asked.
        self.reason = self.reason.max(reason.max(1));
        self.at_once |= level == Level::Now;
        let first = self.kill_at.is_none();
        let kill_at = match level {
            Level::Now => now,
            Level::Ladder => now.saturating_add(u64::from(grace_ms) * 1_000_000),
        };
        self.kill_at = Some(self.kill_at.map_or(kill_at, |before| before.min(kill_at)));
        self.tick(now).or_else(|| first.then_some(Push::Ask))
    }

    /// Time has passed.
    #[must_use]
    pub(crate) fn tick(&mut self, now: u64) -> Option<Push> {
        if self.killed || self.kill_at.is_none_or(|at| now < at) {
            return None;
        }
        self.killed = true;
        Some(Push::Kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn asks_waits_and_kills_once() {
        let mut ladder = Ladder::default();
        assert_eq!((ladder.reason(), ladder.wake_at(), ladder.tick(9 * MS)), (0, None, None));
        assert_eq!(ladder.order(Level::Ladder, 1, 100, 10 * MS), Some(Push::Ask));
        assert_eq!(ladder.wake_at(), Some(110 * MS));
        assert_eq!(ladder.tick(109 * MS), None);
        assert_eq!(ladder.tick(110 * MS), Some(Push::Kill));
        assert_eq!((ladder.tick(111 * MS), ladder.wake_at()), (None, None));
    }

    #[test]
    fn a_stronger_reason_stays_and_the_shorter_grace_counts() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.order(Level::Ladder, LEASE, 100, 0), Some(Push::Ask));
        assert_eq!(ladder.order(Level::Ladder, TIMEOUT, 5000, 0), None);
        assert_eq!((ladder.reason(), ladder.wake_at()), (LEASE, Some(100 * MS)));
        assert_eq!(ladder.order(Level::Ladder, 6, 10, 0), None);
        assert_eq!((ladder.reason(), ladder.wake_at()), (6, Some(10 * MS)));
    }

    #[test]
    fn kill_now_is_now_and_no_grace_is_none() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.order(Level::Ladder, 1, 60_000, 0), Some(Push::Ask));
        assert_eq!(ladder.order(Level::Now, 6, 60_000, MS), Some(Push::Kill));
        assert_eq!(ladder.order(Level::Now, 6, 0, MS), None);
        assert_eq!(Ladder::default().order(Level::Ladder, 0, 0, 5), Some(Push::Kill));
    }
}
