//! A token bucket, told what time it is.

use std::time::Duration;

const SECOND: u64 = 1_000_000_000;

/// What a bucket lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Rate {
    /// In a second; not zero.
    pub(in crate::server) per_second: u32,
    /// At once, after a quiet time; not zero.
    pub(in crate::server) burst: u32,
}

/// A bucket that was never used is full. What was taken is counted in parts of a request, so that another rate changes how fast it comes back
/// and nothing else: a nanosecond brings `per_second` parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bucket {
    /// Parts that are missing, at that moment of the clock of whoever asks.
    missing: u64,
    at: u64,
    /// As it was asked the last time.
    per_second: u64,
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Taken {
    /// How long until the next one is let through, when this one is not.
    pub(in crate::server) wait: Option<Duration>,
    /// Requests that would be let through now.
    pub(in crate::server) left: u32,
    /// How long until it is full again.
    pub(in crate::server) full_in: Duration,
}

/// Parts of one request.
const ONE: u64 = SECOND;

impl Bucket {
    /// What is missing by now.
    fn missing(self, now: u64) -> u64 {
        self.missing.saturating_sub(now.saturating_sub(self.at).saturating_mul(self.per_second))
    }

    /// One more request. The rate may be another one than before.
    pub(super) fn take(&mut self, rate: Rate, now: u64) -> Taken {
        let per_second = u64::from(rate.per_second.max(1));
        let whole = ONE * u64::from(rate.burst.max(1));
        let missing = self.missing(now).min(whole);
        let in_time = |parts: u64| Duration::from_nanos(parts.div_ceil(per_second));
        let (missing, wait) = match missing + ONE {
            after if after > whole => (missing, Some(in_time(after - whole))),
            after => (after, None),
        };
        *self = Self { missing, at: now, per_second };
        let left = u32::try_from((whole - missing) / ONE).unwrap_or(u32::MAX);
        Taken { wait, left, full_in: in_time(missing) }
    }

    pub(super) fn is_full(self, now: u64) -> bool {
        self.missing(now) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEN: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = Bucket::default();
        let left: Vec<u32> = (0..3).map(|_| bucket.take(TEN, 0).left).collect();
        assert_eq!(left, [2, 1, 0]);
        let refused = bucket.take(TEN, 0);
        assert_eq!((refused.wait, refused.left), (Some(Duration::from_millis(100)), 0));
        assert_eq!(bucket.take(TEN, SECOND / 10 - 1).wait, Some(Duration::from_nanos(1)));
        assert_eq!(bucket.take(TEN, SECOND / 10).wait, None, "who was refused has used nothing up");
        assert_eq!(bucket.take(TEN, SECOND).left, 2, "a quiet time fills it, and no more than that");
        assert!(!bucket.is_full(SECOND) && bucket.is_full(2 * SECOND));
    }

    #[test]
    fn another_rate_holds_at_once() {
        let mut bucket = Bucket::default();
        assert!((0..3).all(|_| bucket.take(TEN, 0).wait.is_none()));
        let more = Rate { per_second: 10, burst: 10 };
        assert_eq!(bucket.take(more, 0).left, 6);
        let fewer = Rate { per_second: 1, burst: 1 };
        assert_eq!(bucket.take(fewer, 0).wait, Some(Duration::from_secs(1)), "not for the four that are missing");
        let faster = Rate { per_second: 1000, burst: 1 };
        assert_eq!(bucket.take(faster, SECOND / 1000).wait, Some(Duration::from_micros(999)));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(
            per_second in 1u32..5000, burst in 1u32..100, steps in prop::collection::vec(0u64..200_000_000, 1..300),
        ) {
            let (mut bucket, mut now, mut through) = (Bucket::default(), 0, 0u64);
            for step in steps {
                now += step;
                let rate = Rate { per_second, burst };
                let taken = bucket.take(rate, now);
                through += u64::from(taken.wait.is_none());
                prop_assert!(through <= u64::from(burst) + now * u64::from(per_second) / SECOND);
                if let Some(wait) = taken.wait {
                    let mut later = bucket;
                    prop_assert_eq!(later.take(rate, now + u64::try_from(wait.as_nanos()).expect("fits")).wait, None);
                }
            }
        }
    }
}
