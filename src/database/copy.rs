//! Copies of files that are in use, and looks at such copies.

use super::Error;
use super::migrate::back_up;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// For readers that are about to be done.
const FOLDING: Duration = Duration::from_secs(2);

/// Copies a file, as it is at one moment, whoever writes it meanwhile; nobody waits for it. The copy is there whole, or not at all.
/// Errors: why there is none.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let refused = |error: rusqlite::Error| Error::Refused(format!("{}: {error}", from.display()));
    // Not made when it is not there. Written to only by what SQLite does to a file that a crash has left.
    let db = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(refused)?;
    db.busy_timeout(Duration::from_secs(30)).map_err(refused)?;
    back_up(&db, to).map_err(|reason| Error::Refused(format!("{}: {reason}", to.display())))
}

/// Brings all that is in the write-ahead log into the file and empties the log, so that the file alone is all there is; for who is about to
/// end. Other connections may be open. Errors: why it could not be done; the two together are as whole as before.
pub fn fold_log(path: &Path) -> Result<(), Error> {
    let refused = |reason: String| Error::Refused(format!("{}: {reason}", path.display()));
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let db = db.map_err(|error| refused(error.to_string()))?;
    db.busy_timeout(FOLDING).map_err(|error| refused(error.to_string()))?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    match busy {
        Ok(0) => Ok(()),
        Ok(_) => Err(refused("somebody still reads it".to_owned())),
        Err(error) => Err(refused(error.to_string())),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_log_gets_into_the_file_while_it_is_open() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.db");
        let open = Connection::open(&path).expect("opens");
        open.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (7)")
            .expect("writes");
        let log = || std::fs::metadata(dir.path().join("x.db-wal")).expect("is there").len();
        assert!(log() > 0);
        fold_log(&path).expect("nobody reads it");
        assert_eq!(log(), 0);
        // The file alone, elsewhere.
        let alone = dir.path().join("alone.db");
        std::fs::copy(&path, &alone).expect("copies");
        let n: i64 =
            read_only(&alone).expect("opens").query_row("SELECT n FROM t", [], |row| row.get(0)).expect("reads");
        assert_eq!(n, 7);

        // Who reads what was before keeps the log from being emptied, and nothing is lost.
        let reader = Connection::open(&path).expect("opens");
        reader.execute_batch("BEGIN; SELECT n FROM t").expect("reads");
        open.execute_batch("INSERT INTO t VALUES (8)").expect("writes");
        let error = fold_log(&path).expect_err("is read").to_string();
        assert!(error.contains("somebody still reads it") && log() > 0, "{error}");
        drop(reader);
        fold_log(&path).expect("nobody reads it any more");
        assert_eq!(log(), 0);
        assert!(fold_log(&dir.path().join("none.db")).is_err() && !dir.path().join("none.db").exists());
    }
}
