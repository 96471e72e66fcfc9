//! What an agent has to remember across its own death: every attempt that it holds, from before the first effect outside until its
//! backend has acknowledged the end.
//!
//! Owns one entry for each such attempt, and nothing else: output is the log store's, and what a cell is doing is asked of whoever
//! runs it. An entry is written before what it announces is done. Must never decide what an entry means after a restart.
//!
//! Two classes of durability. *Written*: it survives the process (an intent needs no more: after a power cut the cells are gone
//! too). *Synced*: it survives the power (an end, which is also the report that has to reach the backend).
//!
//! ```text
//!  intent ──a cell waits──► committed ──over──► ended ──acknowledged──► (no entry)
//!    └────────given back───────► (no entry)       ▲
//!    └────────────never ran───────────────────────┘
//! ```

mod damage;
#[cfg(test)]
pub(crate) mod failing;
mod memory;
mod sqlite;
#[cfg(test)]
mod tests;

pub use damage::{Damage, DamagedEntry};
pub use memory::MemoryJournal;
pub use sqlite::{Opened, SqliteJournal};

use crate::job::{AttemptId, JobSpec, LeaseToken, Report};
use futures_util::future::BoxFuture;

/// What is remembered of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Whose attempt it is.
    pub key: EntryKey,
    /// Proves the right to it.
    pub token: LeaseToken,
    /// How many agent processes have talked to its warden before this one: each takes its session numbers above those of all
    /// earlier ones.
    pub generation: u32,
    /// What is to run.
    pub spec: JobSpec,
    /// How far it has come.
    pub stage: Stage,
}

/// Which attempt, of which backend. A backend is known by its name in the settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKey {
    /// The backend's name.
    pub backend: String,
    /// The attempt.
    pub attempt: AttemptId,
}

/// How far an attempt has come. Only forward, but for a step that could not be announced and is not made.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// A cell may be made for it from now on. Nothing of the job has run.
    Intent,
    /// Its warden may have been given the job: from now on it may have run.
    Committed,
    /// It is over for this agent; the report has to reach the backend.
    Ended(Box<Report>),
}

/// A journal that cannot do what it was asked: the step that was to be announced must not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("journal: {0}")]
pub struct JournalError(pub String);

/// An answer that is on its way.
pub type Journaled<'a, T> = BoxFuture<'a, Result<T, JournalError>>;

/// The entries. After an error nobody knows whether the entry is as it was: the step is not made, and what was written before is written
/// again where that matters.
pub trait Journal: Send + Sync + 'static {
    /// All entries, the oldest first.
    fn entries(&self) -> Journaled<'_, Vec<Entry>>;

    /// Makes an entry, or replaces the one with this key. Answered when it is written or, for one that has ended, synced.
    fn put<'a>(&'a self, entry: &'a Entry) -> Journaled<'a, ()>;

    /// Removes an entry; one that is not there is fine. Answered when it is written. After a power cut it may be there again.
    fn remove<'a>(&'a self, key: &'a EntryKey) -> Journaled<'a, ()>;
}
