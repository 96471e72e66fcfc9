//! Ended jobs that are not to be kept for ever: in which order they go.

use crate::job::{JobId, UnixMillis};

/// Most jobs that one call removes, or marks, so that nobody waits long for it.
pub const REMOVE_BATCH: usize = 16;

/// A place in the order of ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When the job ended.
    pub at: UnixMillis,
    /// Its number in the store.
    pub seq: u64,
}

impl Place {
    /// Behind all jobs that ended in this millisecond.
    pub fn behind(at: UnixMillis) -> Self {
        // A store's numbers are signed.
        Self { at, seq: i64::MAX.cast_unsigned() }
    }
}

/// A job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old {
    /// Which.
    pub id: JobId,
    /// Where it is in the order.
    pub place: Place,
    /// About what the output of its tries takes on the disk.
    pub output_bytes: u64,
}
