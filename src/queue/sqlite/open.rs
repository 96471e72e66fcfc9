//! Opens the file: makes it with its mode, makes sure that it is ours and not damaged, and lets it be taken to the
//! schema of today. Knows nothing of jobs.

use super::migrate::{self, Step};
use super::steps::STEPS;
use crate::queue::StoreError;
use rusqlite::{Connection, ErrorCode};
use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// "JCQ" and a number in the file's header: this is a jobcell queue and no other program's database.
pub(super) const APPLICATION_ID: i64 = 0x4A43_5101;
/// A file of at most so many pages (64 MiB) is checked whole when it is opened; that takes well under a second.
const CHECKED_PAGES: i64 = 16_384;

/// A file that cannot be opened, with why and what to do.
pub(super) fn failed(path: &Path, reason: String, fix: impl Into<Cow<'static, str>>) -> StoreError {
    StoreError::Open { path: path.to_owned(), reason, fix: fix.into() }
}

/// What the database says, with the remedy that fits.
pub(super) fn refused(path: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => damaged(path, &error.to_string()),
        _ => failed(
            path,
            error.to_string(),
            "check that the folder exists, is writable, and that nothing else uses the file",
        ),
    }
}

fn damaged(path: &Path, what: &str) -> StoreError {
    let fix = "restore it from a backup, or move it away to start with an empty queue";
    failed(path, format!("it is damaged: {what}"), fix)
}

/// Opens a connection; the first one makes the schema, or takes an older file to it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    open_with(path, STEPS)
}

/// Opens with the schema that these steps make.
pub(super) fn open_with(path: &Path, steps: &[Step]) -> Result<Connection, StoreError> {
    // Made here for its mode: specs can hold secrets. SQLite gives its journals the mode of the file.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| {
        failed(path, error.to_string(), "check that the folder exists, is writable, and belongs to this user")
    })?;
    let plain = |error: rusqlite::Error| refused(path, &error);
    let mut db = Connection::open(path).map_err(plain)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(plain)?;
    // Whose file it is comes first: nothing of another program's database is changed.
    let owner: i64 = db.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(plain)?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(plain)?;
    if owner != APPLICATION_ID && (owner != 0 || tables != 0) {
        return Err(failed(path, "it is the database of another program".to_owned(), "start with another data_dir"));
    }
    db.pragma_update(None, "journal_mode", "WAL").map_err(plain)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(plain)?;
    db.pragma_update(None, "foreign_keys", "ON").map_err(plain)?;
    db.set_prepared_statement_cache_capacity(64);
    // Before it is taken forward: a backup of a damaged file would help nobody.
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(plain)?;
    if pages <= CHECKED_PAGES {
        let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(plain)?;
        if found != "ok" {
            return Err(damaged(path, &found));
        }
    }
    migrate::bring_up(&mut db, path, steps)?;
    Ok(db)
}
