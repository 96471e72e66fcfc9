//! What of a journal could not be read when it was opened. Nothing is thrown away: it is kept for whoever wants to look.

use super::EntryKey;
use crate::job::shown;
use std::fmt;
use std::path::PathBuf;

/// Entries that a sentence names one by one; of the others it says how many there are.
const NAMED: usize = 5;

/// What could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The whole file. The journal has begun with an empty one.
    File {
        /// Where the damaged one is kept.
        kept: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The end of the write-ahead log: what was written last. An entry may be as it was before, be gone, or be there again. After
    /// a power cut that may be so of everything but ends.
    End {
        /// What is wrong with it.
        reason: String,
    },
    /// Single entries. They are kept in the table `damaged` of the file; all others are there.
    Entries(Vec<DamagedEntry>),
}

/// An entry that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedEntry {
    /// The backend's name, as it was read: it may be what is damaged.
    pub backend: String,
    /// The attempt, likewise.
    pub attempt: String,
    /// What is wrong.
    pub reason: String,
}

impl DamagedEntry {
    /// The key, if what was read is one.
    pub fn key(&self) -> Option<EntryKey> {
        Some(EntryKey { backend: self.backend.clone(), attempt: self.attempt.parse().ok()? })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { kept, reason } => {
                let kept = kept.display();
                write!(
                    f,
                    "the journal cannot be used and is kept as {kept}: {reason}; the agent goes on with an empty one"
                )
            }
            Self::End { reason } => write!(f, "the journal may be behind what was done: {reason}"),
            Self::Entries(entries) => {
                let number = entries.len();
                write!(f, "{number} of the journal's entries cannot be read and are kept in its table `damaged`")?;
                for (n, entry) in entries.iter().take(NAMED).enumerate() {
                    let start = if n == 0 { ": " } else { "; " };
                    write!(f, "{start}{} of {}: {}", shown(&entry.attempt), shown(&entry.backend), entry.reason)?;
                }
                if number > NAMED { write!(f, "; and {} more", number - NAMED) } else { Ok(()) }
            }
        }
    }
}
