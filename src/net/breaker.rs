//! Stops asking a peer that does not answer, and finds out when it does again.
//!
//! ```text
//! admit ─failures in a row─► refuse ─pause over─► probe (one call) ─works─► admit
//!                               ▲                      └──fails──► refuse, twice as long
//! ```

use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row after which the peer is left alone.
const FAILURES: u32 = 5;
/// First and longest time in which nobody asks.
const REFUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// May a call be made?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Admit,
    /// Yes, and it decides for everybody whether the peer is back.
    Probe,
    /// No, not for so long.
    Refuse(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Admit { failures: u32 },
    Refuse { until: Instant, pause: Duration },
    Probe { since: Instant, pause: Duration },
}

/// The breaker of one peer.
#[derive(Debug)]
pub struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Admit { failures: 0 } }
    }
}

impl Breaker {
    /// Asks for a call. Whoever gets a yes says how it went, by [`worked`](Self::worked) or [`failed`](Self::failed).
    pub fn ask(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Admit { .. } => Admission::Admit,
            State::Refuse { until, .. } if now < until => Admission::Refuse(until - now),
            State::Refuse { pause, .. } => {
                self.state = State::Probe { since: now, pause };
                Admission::Probe
            }
            // A probe whose caller went away without a word must not shut the door for ever.
            State::Probe { since, pause } if now.duration_since(since) >= REFUSE.1 => {
                self.state = State::Probe { since: now, pause };
                Admission::Probe
            }
            State::Probe { .. } => Admission::Refuse(REFUSE.0),
        }
    }

    /// The peer answered; a refusal of the call is an answer.
    pub fn worked(&mut self) {
        self.state = State::Admit { failures: 0 };
    }

    /// The peer did not answer. Returns true when it is left alone from now on, for whoever logs that.
    pub fn failed(&mut self, now: Instant) -> bool {
        match self.state {
            State::Admit { failures } if failures + 1 < FAILURES => {
                self.state = State::Admit { failures: failures + 1 };
                false
            }
            State::Admit { .. } => {
                self.state = State::Refuse { until: now + REFUSE.0, pause: REFUSE.0 };
                true
            }
            State::Probe { pause, .. } => {
                let pause = (pause * 2).min(REFUSE.1);
                self.state = State::Refuse { until: now + pause, pause };
                false
            }
            // A call that began before the door was shut.
            State::Refuse { .. } => false,
        }
    }

    /// Its state as a word: `admit`, `probe` or `refuse`.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Admit { .. } => "admit",
            State::Probe { .. } => "probe",
            State::Refuse { .. } => "refuse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_refuses_after_failures_in_a_row_and_admits_after_a_probe_that_worked() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert!(!breaker.failed(now));
        }
        breaker.worked();
        for _ in 0..4 {
            assert!(!breaker.failed(now));
        }
        assert_eq!(breaker.ask(now), Admission::Admit);
        assert!(breaker.failed(now));
        assert_eq!(breaker.ask(now), Admission::Refuse(after(1000)));
        assert_eq!(breaker.ask(now + after(1000)), Admission::Probe);
        assert_eq!(breaker.ask(now + after(1001)), Admission::Refuse(after(1000)), "one probe at a time");
        breaker.failed(now + after(1100));
        assert_eq!(breaker.ask(now + after(3000)), Admission::Refuse(after(100)), "twice as long");
        assert_eq!(breaker.ask(now + after(3100)), Admission::Probe);
        breaker.worked();
        assert_eq!((breaker.ask(now + after(3101)), breaker.state()), (Admission::Admit, "admit"));
    }

    #[test]
    fn a_probe_that_never_says_how_it_went_is_replaced() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..5 {
            breaker.failed(now);
        }
        assert_eq!(breaker.ask(now + after(1000)), Admission::Probe);
        assert_eq!(breaker.ask(now + after(17_000)), Admission::Probe);
    }
}
