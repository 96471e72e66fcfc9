//! Whether the agent gets on: two moments that a watchdog looks at from outside.
//!
//! Owns when the dispatcher last turned and when whoever makes cells last answered, with whatever answer. Must never decide what follows
//! from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clones are the same one.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    began: Instant,
    turned_ms: AtomicU64,
    probed_ms: AtomicU64,
}

impl Default for Pulse {
    /// Everything beats now.
    fn default() -> Self {
        Self(Arc::new(Beats { began: Instant::now(), turned_ms: AtomicU64::new(0), probed_ms: AtomicU64::new(0) }))
    }
}

impl Pulse {
    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The dispatcher, which starts claims too, has looked at everything that waits for it.
    pub fn turned(&self) {
        self.0.turned_ms.store(self.now(), Ordering::Relaxed);
    }

    /// Whoever makes cells was asked, and there was an answer or a deadline.
    pub fn probed(&self) {
        self.0.probed_ms.store(self.now(), Ordering::Relaxed);
    }

    /// What has not beaten for longer than `limit`, if anything.
    pub fn stopped_for(&self, limit: Duration) -> Option<&'static str> {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let old = |at: &AtomicU64| self.now().saturating_sub(at.load(Ordering::Relaxed)) > limit;
        if old(&self.0.turned_ms) {
            return Some("the dispatcher does not turn");
        }
        old(&self.0.probed_ms).then_some("the look at the engine does not come back")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_to_beat() {
        let pulse = Pulse::default();
        assert_eq!(pulse.stopped_for(Duration::from_secs(60)), None);
        std::thread::sleep(Duration::from_millis(30));
        let limit = Duration::from_millis(20);
        assert_eq!(pulse.stopped_for(limit), Some("the dispatcher does not turn"));
        pulse.turned();
        assert_eq!(pulse.stopped_for(limit), Some("the look at the engine does not come back"));
        pulse.probed();
        assert_eq!(pulse.stopped_for(Duration::from_secs(60)), None);
    }
}
