//! Copies of files that are in use, and looks at such copies.

use super::Error;
use super::migrate::back_up;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// Copies a file, as it is at one moment, whoever writes it meanwhile; nobody waits for it. The copy is there whole, or not at all.
/// Errors: why there is none.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let refused = |error: rusqlite::Error| Error::Refused(format!("{}: {error}", from.display()));
    // Not made when it is not there. Written to only by what SQLite does to a file that a crash has left.
    let db = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(refused)?;
    db.busy_timeout(Duration::from_secs(30)).map_err(refused)?;
    back_up(&db, to).map_err(|reason| Error::Refused(format!("{}: {reason}", to.display())))
}

/// Looks at every page, row and index of a file that nobody uses. Errors: what is wrong with it.
pub fn check(path: &Path) -> Result<(), Error> {
    let refused = |reason: String| Error::Refused(format!("{}: {reason}", path.display()));
    let db = read_only(path)?;
    let found: String =
        db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(|error| refused(error.to_string()))?;
    if found == "ok" { Ok(()) } else { Err(refused(found)) }
}

/// Opens a file to look at it; it is not changed and not taken to another schema. Errors: it cannot be.
pub fn read_only(path: &Path) -> Result<Connection, Error> {
    let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    opened.map_err(|error| Error::Refused(format!("{}: {error}", path.display())))
}
