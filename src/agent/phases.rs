//! Measures the parts of a try where they happen. A clock that is set meanwhile does not change how long they took.

use crate::job::{Millis, Timing, UnixMillis};
use tokio::time::Instant;

/// Measures one part after another.
#[derive(Debug, Clone)]
pub(super) struct PhaseClock {
    began: (UnixMillis, Instant),
    now_in: Option<(&'static str, UnixMillis)>,
    over: Vec<Timing>,
}

impl PhaseClock {
    /// Begins at `now`, in no part.
    pub(super) fn new(now: UnixMillis) -> Self {
        Self { began: (now, Instant::now()), now_in: None, over: Vec::new() }
    }

    /// When it began.
    pub(super) fn began_at(&self) -> UnixMillis {
        self.began.0
    }

    /// The moment.
    pub(super) fn now(&self) -> UnixMillis {
        self.began.0.plus(self.began.1.elapsed().into())
    }

    /// A part begins, and the one before it is over. The same one again goes on.
    pub(super) fn enter(&mut self, phase: &'static str) {
        let now = self.now();
        self.close(now);
        match self.over.last() {
            Some(last) if last.phase == phase => {
                let began = self.over.pop().map_or(now, |last| last.began_at);
                self.now_in = Some((phase, began));
            }
            _ => self.now_in = Some((phase, now)),
        }
    }

    /// What it is in is over, at that moment.
    pub(super) fn close(&mut self, at: UnixMillis) {
        if let Some((phase, began)) = self.now_in.take() {
            self.over.push(Timing::new(phase, began, at));
        }
    }

    /// A part whose moments are known from elsewhere.
    pub(super) fn add(&mut self, phase: &'static str, began_at: UnixMillis, ended_at: UnixMillis) {
        self.over.push(Timing::new(phase, began_at, ended_at));
    }

    /// The job has run: what it was given was in its place at `given`, it started at `started`, and it ran for so long. What follows is
    /// the collection of what it leaves.
    pub(super) fn ran(&mut self, given: Option<UnixMillis>, started: Option<UnixMillis>, wall: Option<Millis>) {
        let now = self.now();
        // Adopted from an earlier process, it is in no part of which this one has seen the begin.
        if let (Some(given), Some(("inputs", _))) = (given, self.now_in) {
            self.close(given);
            self.now_in = Some(("start", given));
        }
        let Some(started) = started else { return };
        self.close(started);
        // By the warden's measure where there is one: the agent may have been away at its end.
        let over = wall.map_or(now, |wall| started.plus(wall).min(now));
        self.add("run", started, over);
        self.now_in = Some(("collect", over.max(started)));
    }

    /// Everything so far, what it is in up to now.
    pub(super) fn timings(&self) -> Vec<Timing> {
        let mut all = self.clone();
        all.close(self.now());
        all.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_between_its_start_and_its_end() {
        let told = |clock: &PhaseClock| {
            let one = |timing: &Timing| (timing.phase.clone(), timing.ended_at.since(timing.began_at).as_u64());
            clock.timings().iter().map(one).collect::<Vec<_>>()
        };
        let mut clock = PhaseClock::new(UnixMillis::new(1000));
        clock.enter("inputs");
        clock.began.0 = UnixMillis::new(9000);
        clock.ran(Some(UnixMillis::new(1500)), Some(UnixMillis::new(2000)), Some(Millis::new(3000)));
        let named =
            |parts: &[(&str, u64)]| parts.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect::<Vec<_>>();
        let all = told(&clock);
        assert_eq!(all[..3], named(&[("inputs", 500), ("start", 500), ("run", 3000)])[..]);
        assert!(all[3].0 == "collect" && all[3].1 >= 4000, "{all:?}");
        // Of one that was adopted nobody here has seen the begin; of one that never ran there is no run.
        let mut adopted = PhaseClock::new(UnixMillis::new(5000));
        adopted.ran(None, Some(UnixMillis::new(2000)), None);
        assert_eq!(told(&adopted)[0].0, "run");
        let mut never = PhaseClock::new(UnixMillis::new(5000));
        never.enter("start");
        never.ran(None, None, None);
        assert_eq!(told(&never).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["start"]);
    }

    #[test]
    fn parts_follow_one_another_and_one_that_is_entered_again_goes_on() {
        let mut clock = PhaseClock::new(UnixMillis::new(1000));
        for phase in ["prepare", "cell", "prepare", "prepare", "start"] {
            clock.enter(phase);
        }
        clock.close(UnixMillis::new(0));
        clock.add("run", UnixMillis::new(5000), UnixMillis::new(4000));
        let told = clock.timings();
        let names: Vec<&str> = told.iter().map(|timing| timing.phase.as_str()).collect();
        assert_eq!(names, ["prepare", "cell", "prepare", "start", "run"]);
        assert!(told.iter().all(|timing| timing.began_at <= timing.ended_at), "{told:?}");
        assert!(told.iter().all(|timing| timing.began_at.as_u64() >= 1000));
    }
}
