//! When and how hard the job is stopped. Pure: times are microseconds since boot.

/// Numbers as on the wire; a higher one replaces a lower one.
pub const TIMEOUT: u8 = 2;
pub const LEASE: u8 = 5;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Ask,
    Kill,
}

#[derive(Debug, Default)]
pub struct Ladder {
    wall_until: Option<u64>,
    lease_until: Option<u64>,
    kill_at: Option<u64>,
    grace_us: u64,
    reason: u8,
    killing: bool,
}

impl Ladder {
    /// The job starts at `now`.
    pub fn start(&mut self, now: u64, wall_ms: u64, lease_ms: u64, grace_ms: u32) {
        self.wall_until = Some(now.saturating_add(wall_ms.saturating_mul(1000)));
        self.grace_us = u64::from(grace_ms) * 1000;
        self.renew(now, lease_ms);
    }

    /// The lease lasts `remaining_ms` from now.
    pub fn renew(&mut self, now: u64, remaining_ms: u64) {
        self.lease_until = Some(now.saturating_add(remaining_ms.saturating_mul(1000)));
    }

    /// Why the job was asked to end; 0 when it was not.
    pub fn reason(&self) -> u8 {
        self.reason
    }

    /// Somebody wants the end.
    pub fn stop(&mut self, now: u64, level: u8, reason: u8, grace_ms: u32) -> Option<Step> {
        self.grace_us = u64::from(grace_ms) * 1000;
        self.climb(now, level, reason)
    }

    fn climb(&mut self, now: u64, level: u8, reason: u8) -> Option<Step> {
        let first = self.reason == 0;
        self.reason = self.reason.max(reason);
        if level >= 1 && !self.killing {
            self.killing = true;
            return Some(Step::Kill);
        }
        if first {
            self.kill_at = Some(now.saturating_add(self.grace_us));
            return Some(Step::Ask);
        }
        None
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) -> Option<Step> {
        let over = |at: Option<u64>| at.is_some_and(|at| now >= at);
        if over(self.kill_at) && !self.killing {
            self.killing = true;
            return Some(Step::Kill);
        }
        if over(self.lease_until) && self.reason < LEASE {
            return self.climb(now, 0, LEASE);
        }
        if over(self.wall_until) && self.reason == 0 {
            return self.climb(now, 0, TIMEOUT);
        }
        None
    }

    /// When [`tick`](Self::tick) is due.
    pub fn wake_at(&self) -> Option<u64> {
        let lease = self.lease_until.filter(|_| self.reason < LEASE);
        let wall = self.wall_until.filter(|_| self.reason == 0);
        let kill = self.kill_at.filter(|_| !self.killing);
        [lease, wall, kill].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Ladder {
        let mut ladder = Ladder::default();
        ladder.start(0, 10_000, 60_000, 2_000);
        ladder
    }

    #[test]
    fn the_wall_clock_asks_then_kills() {
        let mut ladder = started();
        assert_eq!((ladder.wake_at(), ladder.tick(9_999_999)), (Some(10_000_000), None));
        assert_eq!((ladder.tick(10_000_000), ladder.reason()), (Some(Step::Ask), TIMEOUT));
        assert_eq!(ladder.tick(11_000_000), None);
        assert_eq!(ladder.tick(12_000_000), Some(Step::Kill));
        assert_eq!(ladder.tick(13_000_000), None);
    }

    #[test]
    fn a_renewed_lease_does_not_expire_and_a_lost_one_outranks() {
        let mut ladder = Ladder::default();
        ladder.start(0, 1_000_000, 5_000, 1_000);
        ladder.renew(4_000_000, 5_000);
        assert_eq!(ladder.tick(6_000_000), None);
        assert_eq!((ladder.tick(9_000_000), ladder.reason()), (Some(Step::Ask), LEASE));
        assert_eq!((ladder.stop(9_500_000, 0, 1, 1_000), ladder.reason()), (None, LEASE));
    }

    #[test]
    fn a_stop_can_kill_at_once_and_only_once() {
        let mut ladder = started();
        assert_eq!(ladder.stop(1, 0, 1, 2_000), Some(Step::Ask));
        assert_eq!(ladder.stop(2, 1, 6, 2_000), Some(Step::Kill));
        assert_eq!((ladder.stop(3, 1, 6, 0), ladder.reason()), (None, 6));
    }
}
