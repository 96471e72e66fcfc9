//! How well this agent does, as a number that recovers: of the attempts that ended here lately, how many did not end by a
//! failure of the agent's own.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Attempts that are looked at, and for how long.
const MOST: usize = 20;
const WINDOW: Duration = Duration::from_secs(600);

/// The window.
#[derive(Debug, Default)]
pub(super) struct Score(VecDeque<(Instant, bool)>);

impl Score {
    /// An attempt ended; `well` when no failure of ours ended it.
    pub(super) fn add(&mut self, now: Instant, well: bool) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((now, well));
    }

    /// 0 to 100; 100 when nothing is known.
    pub(super) fn value(&self, now: Instant) -> u8 {
        let lately = || self.0.iter().filter(|(at, _)| now.duration_since(*at) < WINDOW);
        let (all, well) = (lately().count(), lately().filter(|(_, well)| *well).count());
        u8::try_from((well * 100).checked_div(all).unwrap_or(100)).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_lower_it_and_time_or_success_bring_it_back() {
        let (mut score, now) = (Score::default(), Instant::now());
        assert_eq!(score.value(now), 100);
        score.add(now, true);
        score.add(now, false);
        assert_eq!(score.value(now), 50);
        assert_eq!(score.value(now + WINDOW), 100);
        for _ in 0..MOST {
            score.add(now, true);
        }
        assert_eq!(score.value(now), 100);
    }
}
