//! How slow somebody may be who takes an answer, or brings a content.
//!
//! Owns the judgement alone, without a clock: what counts is the time that the other side was waited for, and what moved meanwhile. Somebody
//! who is quiet because there is nothing to say is never slow.

use std::time::Duration;

/// Bytes in a second, on average over the time that one is waited for.
pub(super) const LEAST_RATE: u64 = 1024;

/// One direction of one connection, or one body.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Duration,
    waited: Duration,
    moved: u64,
}

impl Pace {
    /// Judged whenever it was waited for so long in all.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, moved: 0 }
    }

    /// What is left to wait until the next judgement; never nothing.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited).max(Duration::from_millis(1))
    }

    /// So much moved after so long a wait. False when that is too little in all.
    pub(super) fn goes_on(&mut self, waited: Duration, moved: usize) -> bool {
        self.waited += waited;
        self.moved = self.moved.saturating_add(moved as u64);
        if self.waited < self.limit {
            return true;
        }
        let enough = u128::from(self.moved) * 1000 >= u128::from(LEAST_RATE) * self.waited.as_millis();
        *self = Self::new(self.limit);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_moves_less_than_the_least_rate_is_found_out_within_two_limits() {
        let judged = |each: usize| {
            let mut pace = Pace::new(10 * SECOND);
            (1..=40).find(|_| !pace.goes_on(SECOND, each))
        };
        assert_eq!((judged(0), judged(1), judged(1023), judged(1024)), (Some(10), Some(10), Some(10), None));
        // What was quick first does not help for ever.
        let mut pace = Pace::new(10 * SECOND);
        assert!(pace.goes_on(SECOND, 1 << 30));
        assert_eq!((2..=40).find(|_| !pace.goes_on(SECOND, 0)), Some(20));
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let mut pace = Pace::new(10 * SECOND);
        assert!((0..1_000_000).all(|_| pace.goes_on(Duration::ZERO, 1)));
        assert_eq!(pace.left(), 10 * SECOND);
        // Small pieces, each waited for a moment: a long live stream.
        assert!((0..1_000_000).all(|_| pace.goes_on(Duration::from_micros(900), 1)));
    }
}
