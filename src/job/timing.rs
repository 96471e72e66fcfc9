//! How long each part of a try took, as its agent measured it.

use super::UnixMillis;
use serde::{Deserialize, Serialize};

/// Parts of a try that are kept; an agent tells of fewer.
pub const MOST_TIMINGS: usize = 16;

/// One part of a try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Which: `secrets`, `prepare`, `cell`, `inputs`, `start`, `run` or `collect`.
    pub phase: String,
    /// When it began, by the agent's clock.
    pub began_at: UnixMillis,
    /// When it was over.
    pub ended_at: UnixMillis,
}

impl Timing {
    /// From one moment to another, never backwards.
    pub fn new(phase: &str, began_at: UnixMillis, ended_at: UnixMillis) -> Self {
        Self { phase: phase.to_owned(), began_at, ended_at: ended_at.max(began_at) }
    }
}
