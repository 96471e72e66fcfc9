//! The way of one attempt, as a machine.
//!
//! ```text
//! queued ─claim─► claimed ─acquire─► preparing ─commit─► running ─exit─► finishing ─report─► ended
//!    ▲               │                   │                 │                                  ▲
//!    └──release/lost─┴───────────────────┴──────(lost)─────┘   every phase may go to ended ───┘
//! ```

use super::UnixMillis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the reason of a note begins with that says how far the pull of an image is; words follow. A note takes the place of the one before.
pub const PULL_NOTE: &str = "image_pull: ";

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits to be claimed.
    Queued,
    /// An agent has the right to run it.
    Claimed,
    /// The cell is being made.
    Preparing,
    /// The job runs.
    Running,
    /// The job has ended; output and receipt are being collected.
    Finishing,
    /// Over, with an ending.
    Ended,
}

impl Phase {
    /// The stable lowercase name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Finishing => "finishing",
            Self::Ended => "ended",
        }
    }

    /// All there are, in their order.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Claimed, Self::Preparing, Self::Running, Self::Finishing, Self::Ended];

    /// The phase of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// Goes to `next`, or says that no arrow leads there. Forward only, skipping allowed (a cell that fails to be made
    /// never runs); back to `Queued` from every phase in which an agent holds the job.
    pub fn step(self, next: Self) -> Result<Self, IllegalStep> {
        let forward = next > self && self != Self::Ended;
        let requeued =
            next == Self::Queued && matches!(self, Self::Claimed | Self::Preparing | Self::Running | Self::Finishing);
        if forward || requeued { Ok(next) } else { Err(IllegalStep { from: self, to: next }) }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step that the machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no step leads from {from} to {to}")]
pub struct IllegalStep {
    /// Where it stood.
    pub from: Phase,
    /// Where it was asked to go.
    pub to: Phase,
}

/// One entry of a job's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseEvent {
    /// The try that it belongs to, from 1.
    pub attempt: u32,
    /// The phase entered.
    pub phase: Phase,
    /// When.
    pub at: UnixMillis,
    /// Why, as a stable code (`submitted`, `claimed`, `lease_expired`, `canceled`, …).
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::Phase::*;

    #[test]
    fn only_the_drawn_arrows_exist() {
        let all = [Queued, Claimed, Preparing, Running, Finishing, Ended];
        for from in all {
            for to in all {
                let wanted = from != Ended && (to > from || (to == Queued && from != Queued));
                assert_eq!(from.step(to).is_ok(), wanted, "{from} -> {to}");
            }
        }
    }
}
