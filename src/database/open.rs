//! Opens a file: makes it with its mode, makes sure that it is ours and not damaged, and lets it be taken to the schema
//! of today.

use super::migrate::{self, Step};
use super::{Error, Obstacle, with_suffix};
use rusqlite::ffi::SQLITE_IOERR_SHORT_READ;
use rusqlite::{Connection, ErrorCode};
use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// A file of at most so many pages (64 MiB) is checked when it is opened; that takes well under a second.
const CHECKED_PAGES: i64 = 16_384;

/// What tells one kind of file from another.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// What people call it.
    pub name: &'static str,
    /// The number in its header: it is ours, and of no other program.
    pub application_id: i64,
    /// Its schema; the version of a file is how many of the steps it has behind it.
    pub steps: &'a [Step],
    /// How it is looked at before it is used.
    pub look: Thoroughness,
}

/// How thoroughly a file is looked at when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// Its pages and rows. What is wrong with an index or in the schema's text shows when it is used.
    Quick,
    /// Also that indexes fit their tables, that the schema is word for word what the steps make, and that the file can be
    /// written. For small files, whose owner can go on with a new one.
    Whole,
}

/// A file that cannot be opened, with why and what to do.
pub(super) fn failed(path: &Path, obstacle: Obstacle, reason: String, fix: impl Into<Cow<'static, str>>) -> Error {
    Error::Open { path: path.to_owned(), obstacle, reason, fix: fix.into() }
}

/// What the database says while a file is opened, with the remedy that fits.
pub fn refused(kind: &Kind<'_>, path: &Path, error: &rusqlite::Error) -> Error {
    let failure = error.sqlite_error();
    match failure.map(|failure| failure.code) {
        // A file that is shorter than it says of itself.
        _ if failure.is_some_and(|failure| failure.extended_code == SQLITE_IOERR_SHORT_READ) => {
            damaged(kind, path, "it is cut off")
        }
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted
            | ErrorCode::OutOfMemory
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure,
        ) => {
            let fix = "check that the folder exists, is writable, and that nothing else uses the file";
            failed(path, Obstacle::Outside, error.to_string(), fix)
        }
        // The rest is about what is in the file. A bit in the header can make it read-only, or of an unknown format.
        _ => damaged(kind, path, &error.to_string()),
    }
}

fn damaged(kind: &Kind<'_>, path: &Path, what: &str) -> Error {
    let fix = format!("restore it from a backup, or move it away to start with an empty {}", kind.name);
    failed(path, Obstacle::Damaged, format!("it is damaged: {what}"), fix)
}

/// Opens a connection; the first one makes the schema, or takes an older file to it. The file syncs at every commit
/// ([`Worker`](super::Worker) may change that). Errors: the file cannot be used; it is as it was.
pub fn open(path: &Path, kind: &Kind<'_>) -> Result<Connection, Error> {
    let length = |path: &Path| std::fs::metadata(path).ok().map(|about| about.len());
    let (found, log) = (length(path), length(&with_suffix(path, "-wal")));
    if found.unwrap_or(0) == 0 && log.is_some_and(|log| log > 0) {
        // SQLite would make a new file and delete the log, and with it what was not yet in the file.
        return Err(damaged(kind, path, "it is missing or empty, but its write-ahead log is there"));
    }
    if found == Some(0) && kind.look == Thoroughness::Whole {
        return Err(damaged(kind, path, "it is empty"));
    }
    // Made here for its mode: what is in it may be secret. SQLite gives its journals the mode of the file.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| {
        let fix = "check that the folder exists, is writable, and belongs to this user";
        failed(path, Obstacle::Outside, error.to_string(), fix)
    })?;
    let plain = |error: rusqlite::Error| refused(kind, path, &error);
    let mut db = Connection::open(path).map_err(plain)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(plain)?;
    // Whose file it is comes first: nothing of another program's database is changed.
    let owner: i64 = db.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(plain)?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(plain)?;
    if owner != kind.application_id && (owner != 0 || tables != 0) {
        let reason = "it is the database of another program".to_owned();
        return Err(failed(path, Obstacle::Foreign, reason, "start with another data_dir"));
    }
    db.pragma_update(None, "journal_mode", "WAL").map_err(plain)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(plain)?;
    db.pragma_update(None, "foreign_keys", "ON").map_err(plain)?;
    // What SQLite would put aside for a statement (so that it can be taken back alone) or for a sort: its folders for that are /var/tmp
    // and /tmp, and a container with a read-only root has neither. The data directory is all that is needed.
    db.pragma_update(None, "temp_store", "MEMORY").map_err(plain)?;
    db.set_prepared_statement_cache_capacity(64);
    // Before it is taken forward: a backup of a damaged file would help nobody.
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(plain)?;
    if pages <= CHECKED_PAGES {
        look(&db, kind).map_err(plain)?.map_err(|what| damaged(kind, path, &what))?;
    }
    migrate::bring_up(&mut db, path, kind)?;
    Ok(db)
}

/// What is wrong with a file, if anything.
fn look(db: &Connection, kind: &Kind<'_>) -> rusqlite::Result<Result<(), String>> {
    let check = match kind.look {
        Thoroughness::Quick => "PRAGMA quick_check(1)",
        Thoroughness::Whole => "PRAGMA integrity_check(1)",
    };
    let found: String = db.query_row(check, [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Err(found));
    }
    if kind.look == Thoroughness::Whole {
        db.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
        // A newer file has steps that nobody here knows; it is refused for that, later.
        if let Some(made) = kind.steps.get(..migrate::version(db)?)
            && schema(db)? != schema_of(made)?
        {
            return Ok(Err("its tables are not those that were made in it".to_owned()));
        }
    }
    Ok(Ok(()))
}

/// The text of every table, index and trigger.
fn schema(db: &Connection) -> rusqlite::Result<Vec<[Option<String>; 4]>> {
    let mut statement = db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")?;
    let rows = statement.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
    rows.collect()
}

/// What these steps make.
fn schema_of(steps: &[Step]) -> rusqlite::Result<Vec<[Option<String>; 4]>> {
    let db = Connection::open_in_memory()?;
    steps.iter().try_for_each(|step| (step.run)(&db))?;
    schema(&db)
}
