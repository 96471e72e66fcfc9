//! The queue's file among those of the database room.

use super::steps::STEPS;
use crate::database::{self, Error, Kind, Step, Thoroughness};
use crate::queue::StoreError;
use rusqlite::Connection;
use std::path::Path;

/// "JCQ" and a number in the file's header: this is a jobcell queue.
const APPLICATION_ID: i64 = 0x4A43_5101;

fn kind(steps: &[Step]) -> Kind<'_> {
    Kind { name: "queue", application_id: APPLICATION_ID, steps, look: Thoroughness::Quick }
}

/// Opens a connection; the first one makes the schema, or takes an older file to it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    open_with(path, STEPS)
}

/// Opens with the schema that these steps make.
pub(super) fn open_with(path: &Path, steps: &[Step]) -> Result<Connection, StoreError> {
    Ok(database::open(path, &kind(steps))?)
}

/// What the database says while the file is opened, with the remedy that fits.
pub(super) fn refused(path: &Path, error: &rusqlite::Error) -> StoreError {
    database::refused(&kind(STEPS), path, error).into()
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Open { path, reason, fix, obstacle: _ } => Self::Open { path, reason, fix },
            Error::Refused(what) => Self::Database(what),
            Error::Closed => Self::Closed,
        }
    }
}
