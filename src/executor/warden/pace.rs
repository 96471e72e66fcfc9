//! How much of a job's output is taken while others run beside it. Whoever carries a flood of bytes, the engine and the agent, works
//! outside of the cell's share of the processor: without a bound, a job that writes as fast as it can takes that time from all others.
//!
//! Pure: a budget that fills with time and is spent by bytes. `now` is any clock that does not go back, in milliseconds.

/// A budget holds as much as comes in so long: a burst of lines passes at once.
const BURST_MS: u64 = 250;

/// The budget of one job.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// In bytes. Below zero after a batch that was larger than what was left, which keeps the next one back for longer.
    left: i64,
    filled_at: u64,
}

impl Pace {
    /// A full budget.
    pub(super) fn new(bytes_per_second: u64, now: u64) -> Self {
        let mut pace = Self { bytes_per_second: bytes_per_second.max(1), left: 0, filled_at: now };
        pace.left = pace.most();
        pace
    }

    fn most(&self) -> i64 {
        i64::try_from(self.bytes_per_second.saturating_mul(BURST_MS) / 1000).unwrap_or(i64::MAX).max(1)
    }

    fn fill(&mut self, now: u64) {
        let bytes = u128::from(self.bytes_per_second) * u128::from(now.saturating_sub(self.filled_at)) / 1000;
        if bytes > 0 {
            self.left = self.left.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX)).min(self.most());
            self.filled_at = now;
        }
    }

    /// Bytes were taken.
    pub(super) fn spend(&mut self, bytes: usize, now: u64) {
        self.fill(now);
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When more may be taken; `None` for now.
    pub(super) fn next(&mut self, now: u64) -> Option<u64> {
        self.fill(now);
        let missing = u128::try_from(1 - self.left).ok().filter(|missing| *missing > 0)?;
        let wait = (missing * 1000).div_ceil(u128::from(self.bytes_per_second));
        Some(now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_and_then_it_is_so_much_a_second() {
        let mut pace = Pace::new(1_000_000, 0);
        pace.spend(200_000, 0);
        assert_eq!(pace.next(0), None);
        pace.spend(300_000, 0);
        // 250,000 too much, and one byte.
        assert_eq!(pace.next(0), Some(251));
        assert_eq!((pace.next(250), pace.next(251)), (Some(251), None));
        // What is not used does not grow beyond a burst.
        pace.spend(1_250_000, 1_000_000);
        assert_eq!(pace.next(1_000_000), Some(1_001_001));
    }

    proptest! {
        /// Whoever waits when told to gets what was promised: never more than a burst and the largest batch above it, and never nothing.
        #[test]
        fn over_any_time_it_is_the_promised_amount(
            rate in 1u64..1_000_000_000,
            batches in prop::collection::vec((1usize..5_000_000, 0u64..500), 1..200),
        ) {
            let (mut pace, mut now, mut taken, mut largest) = (Pace::new(rate, 0), 0u64, 0u128, 0u128);
            for (bytes, pause) in batches {
                now += pause;
                if let Some(until) = pace.next(now) {
                    prop_assert!(until > now);
                    now = until;
                    prop_assert_eq!(pace.next(now), None, "it is due when it was said to be");
                }
                pace.spend(bytes, now);
                taken += bytes as u128;
                largest = largest.max(bytes as u128);
                let promised = u128::from(rate) * u128::from(now + BURST_MS) / 1000 + 1;
                prop_assert!(taken <= promised + largest, "{} in {} ms at {}", taken, now, rate);
            }
        }
    }
}
