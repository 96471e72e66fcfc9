//! What keeps an agent from taking jobs: whoever makes its cells, its disk, output that has no room, ends that pile up, a row of
//! failures of its own. Pure; the dispatcher looks, and says it in a sentence to backends and operators.

use crate::job::{ByteSize, JobId, Millis};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;

/// Jobs in a row that the host failed before it takes none for a while: one or two can be chance, and each costs a user a try.
const ROW: usize = 5;
/// Jobs that are remembered; with more, the longest pause is reached.
const MOST_JOBS: usize = 256;
/// The first and the longest while; doubled each time that the first job after it fails too.
const WHILES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    /// Whoever makes cells, or the journal, cannot be used.
    pub(super) cells: Option<String>,
    /// The disk is almost full.
    pub(super) disk: Option<String>,
    /// Too many ends are on their way.
    pub(super) ends: Option<String>,
    /// Output waits for room.
    pub(super) output: Option<String>,
    pub(super) quarantine: Quarantine,
}

impl Obstacles {
    /// The one to tell, at `now`.
    pub(super) fn first(&self, now: Instant) -> Option<String> {
        let told = [&self.cells, &self.disk, &self.ends, &self.output].into_iter().flatten().next();
        told.cloned().or_else(|| self.quarantine.reason(now))
    }
}

/// How the disk stands that holds what the agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// Too little for more jobs.
    Low,
    /// Too little for more output of those that run.
    Tight,
}

impl Room {
    /// With `free` bytes where `floor` are to stay free. What was low is well again a tenth above the floor, so that it does not
    /// change with every file.
    pub(super) fn of(free: u64, floor: u64, before: Self) -> Self {
        let edge = |limit: u64, was: bool| if was { limit.saturating_add(limit / 10) } else { limit };
        if floor == 0 {
            Self::Enough
        } else if free < edge(floor / 4, before == Self::Tight) {
            Self::Tight
        } else if free < edge(floor, before != Self::Enough) {
            Self::Low
        } else {
            Self::Enough
        }
    }

    pub(super) fn reason(self, free: u64, floor: u64) -> Option<String> {
        let (free, floor) = (mib(free), mib(floor));
        match self {
            Self::Enough => None,
            Self::Low => Some(format!("the data directory has {free} free, and agent.disk_floor is {floor}")),
            Self::Tight => Some(format!(
                "the data directory has {free} free, less than a quarter of agent.disk_floor ({floor}): running jobs wait when they write"
            )),
        }
    }
}

fn mib(bytes: u64) -> ByteSize {
    ByteSize::from_mib(bytes >> 20)
}

/// A row of failures that were not the jobs'.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Jobs in a row; each counts once, however often it is tried.
    jobs: HashSet<JobId>,
    /// How long the last one was.
    last: Option<Duration>,
    until: Option<Instant>,
    fault: String,
}

impl Quarantine {
    /// An attempt has ended here; `fault` says what this host did wrong.
    pub(super) fn ended(&mut self, now: Instant, job: JobId, fault: Option<String>) {
        let Some(fault) = fault else {
            // One that ended after the row began says nothing of how it goes now, but that it goes at all.
            if self.until.is_none_or(|until| now >= until) {
                *self = Self::default();
            }
            return;
        };
        let is_new = self.jobs.len() < MOST_JOBS && self.jobs.insert(job);
        let enough = self.on_trial() || self.jobs.len() >= ROW;
        if !is_new || !enough || self.until.is_some_and(|until| now < until) {
            return;
        }
        let pause = self.last.map_or(WHILES.0, |last| (last * 2).min(WHILES.1));
        tracing::error!(in_a_row = self.jobs.len(), %fault, ?pause, "this host fails its jobs; it takes none for a while");
        (self.last, self.until, self.fault) = (Some(pause), Some(now + pause), fault);
    }

    /// Nothing has ended well since the last pause: one job at a time, and one more failure is enough.
    pub(super) fn on_trial(&self) -> bool {
        self.last.is_some()
    }

    fn reason(&self, now: Instant) -> Option<String> {
        let pause = self.last.filter(|_| self.until.is_some_and(|until| now < until))?;
        let pause = Millis::from(pause);
        Some(format!(
            "{ROW} jobs in a row failed because of this host, so it takes none for {pause}; the last: {}",
            self.fault
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Option<String> {
        Some("the engine failed".to_owned())
    }

    #[test]
    fn a_row_of_failures_pauses_it_longer_each_time_and_a_success_forgets_them() {
        let (mut obstacles, start) = (Obstacles::default(), Instant::now());
        let mut now = start;
        let job = || JobId::new(crate::job::UnixMillis::new(7));
        // One job that fails again and again says nothing of the host.
        let hostile = job();
        for _ in 0..20 {
            obstacles.quarantine.ended(now, hostile, fault());
        }
        for _ in 2..ROW {
            obstacles.quarantine.ended(now, job(), fault());
        }
        assert_eq!(obstacles.first(now), None);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            obstacles.quarantine.ended(now, job(), fault());
            let began = now;
            assert!(obstacles.first(now).expect("paused").ends_with("the last: the engine failed"));
            assert!(obstacles.quarantine.on_trial());
            // What ends meanwhile changes nothing.
            obstacles.quarantine.ended(now, job(), fault());
            obstacles.quarantine.ended(now, job(), None);
            while obstacles.first(now).is_some() {
                now += Duration::from_secs(1);
            }
            pauses.push((now - began).as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        obstacles.quarantine.ended(now, job(), None);
        assert!(!obstacles.quarantine.on_trial());
        for _ in 1..ROW {
            obstacles.quarantine.ended(now, job(), fault());
        }
        assert_eq!(obstacles.first(now), None);
        obstacles.quarantine.ended(now, job(), fault());
        assert!(obstacles.first(now + Duration::from_secs(29)).is_some());
        assert!(obstacles.first(now + Duration::from_secs(30)).is_none());
    }

    #[test]
    fn a_disk_has_edges_that_are_apart() {
        let floor = 1000;
        let steps =
            [(5000, Room::Enough), (1000, Room::Enough), (999, Room::Low), (1099, Room::Low), (1100, Room::Enough)];
        let more = [(999, Room::Low), (249, Room::Tight), (274, Room::Tight), (275, Room::Low), (0, Room::Tight)];
        let mut room = Room::Enough;
        for (free, wanted) in steps.into_iter().chain(more) {
            room = Room::of(free, floor, room);
            assert_eq!(room, wanted, "{free}");
        }
        assert_eq!(Room::of(0, 0, Room::Tight), Room::Enough);
    }
}
