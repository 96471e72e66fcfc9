//! Queue files that no process has open: copies, and such that were put back.

use super::rows;
use crate::database;
use crate::job::{JobId, Phase};
use crate::queue::{Counts, StoreError};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// More than any queue gives out between a backup and the loss of what it was made of.
const FENCE: u64 = 1 << 32;

/// How many jobs stand where in a file, which is not changed. Errors: it cannot be read.
pub fn counts_in(path: &Path) -> Result<Counts, StoreError> {
    let db = database::read_only(path)?;
    let mut counts = Counts::default();
    for phase in Phase::ALL {
        *counts.of(phase) = rows::count(&db, phase).map_err(|error| failed(path, &error))?;
    }
    Ok(counts)
}

/// A file of before takes the place of one that has given out more tokens: from now on they are larger than any of those, so that nobody can
/// hold a claim by one that was given for another. Errors: it cannot be written.
pub fn fence(path: &Path) -> Result<(), StoreError> {
    let db =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|error| failed(path, &error))?;
    db.execute("UPDATE tokens SET last = last + ?1", [FENCE]).map(drop).map_err(|error| failed(path, &error))
}

/// What a queue file of nobody's knows.
#[derive(Debug)]
pub struct Still {
    path: PathBuf,
    db: Connection,
}

impl Still {
    /// Opens it to read. Errors: it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), db: database::read_only(path)? })
    }

    /// The number of a job's last try, from 1; 0 when it had none yet. `None`: there is no such job. Errors: it cannot be read.
    pub fn last_try(&self, job: JobId) -> Result<Option<u32>, StoreError> {
        let found = self.db.prepare_cached("SELECT attempt FROM jobs WHERE id = ?1");
        let found = found.and_then(|mut found| rows::optional(found.query_row([job.to_string()], |row| row.get(0))));
        found.map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError::Database(format!("{}: {error}", path.display()))
}
