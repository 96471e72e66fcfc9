//! How a call to somebody else behaves when it does not work: what kind of failure it was, how long to pause, when to stop
//! asking at all.
//!
//! Owns no connection and knows no peer. Time is an argument, so every rule is tested without waiting.

mod breaker;

pub use breaker::{Admission, Breaker};

use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;

/// What a failure means for the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The peer or the way to it is not well; the same call may work later.
    Transient,
    /// The peer is well and asks for fewer calls; not before this much later.
    Throttled(Duration),
    /// The same call will fail again.
    Never,
}

/// Growing pauses between tries: from `first` on, doubled, at most `most`, each with a random part on top so that many who failed
/// together do not come back together. Has no end; the caller's deadline is the end.
pub fn pauses(first: Duration, most: Duration) -> impl Iterator<Item = Duration> + Send {
    let builder = ExponentialBuilder::new();
    #[cfg(test)]
    let builder = crate::seeded::random().map_or(builder, |seed| builder.with_jitter_seed(seed));
    builder
        .with_min_delay(first)
        .with_max_delay(most)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
        // The random part may reach past the cap.
        .map(move |pause| pause.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_never_end() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let found: Vec<Duration> = pauses(first, most).take(50).collect();
        assert_eq!(found.len(), 50);
        assert!(found.iter().all(|pause| *pause >= first && *pause <= most), "{found:?}");
        assert!(found[8..].iter().all(|pause| *pause == most), "{found:?}");
    }
}
