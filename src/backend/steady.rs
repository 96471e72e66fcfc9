//! Tells when the host's clock was set.

use crate::job::UnixMillis;
use tokio::time::Instant;

/// A difference that is no drift and no slow answer: a clock that is slewed moves by half a millisecond in a second.
const STEP_MS: u64 = 2_000;

/// Wall time beside time that nobody can set.
#[derive(Debug)]
pub(super) struct SteadyClock {
    wall: UnixMillis,
    steady: Instant,
}

impl SteadyClock {
    pub(super) fn new() -> Self {
        Self { wall: UnixMillis::now(), steady: Instant::now() }
    }

    /// By how many seconds it was set since the last look, if it was. A suspended host wakes with a clock that is ahead: that is no
    /// different.
    pub(super) fn was_set(&mut self) -> Option<i64> {
        let now = Self::new();
        let set = self.difference(&now);
        *self = now;
        set
    }

    fn difference(&self, now: &Self) -> Option<i64> {
        let expected = self.wall.plus(now.steady.saturating_duration_since(self.steady).into()).as_u64();
        let off = now.wall.as_u64().abs_diff(expected);
        let seconds = i64::try_from(off / 1000).unwrap_or(i64::MAX);
        (off >= STEP_MS && !mutant!(ClockNotNoticed)).then_some(if now.wall.as_u64() < expected {
            -seconds
        } else {
            seconds
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_a_step_is_one() {
        let (wall, steady) = (UnixMillis::new(1_000_000_000), Instant::now());
        let clock = SteadyClock { wall, steady };
        let after = |wall: u64, steady_s: u64| {
            clock.difference(&SteadyClock {
                wall: UnixMillis::new(wall),
                steady: steady + Duration::from_secs(steady_s),
            })
        };
        assert_eq!(after(1_000_010_000, 10), None);
        assert_eq!(after(1_000_011_500, 10), None, "a slow look");
        assert_eq!(after(1_086_410_000, 10), Some(86_400));
        assert_eq!(after(913_610_000, 10), Some(-86_400));
    }
}
