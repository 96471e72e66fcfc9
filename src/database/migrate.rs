//! Takes a file from an older schema to that of today, and can always be gone back on.
//!
//! An older file is first copied whole to `<file>.v<version>.bak`; then all steps it lacks are made in one transaction,
//! so a file is of one version or of another and never between them. Knows versions and files, and nothing of what the
//! steps do.

use super::open::{Kind, failed, refused};
use super::{Error, Obstacle, with_suffix};
use rusqlite::{Connection, TransactionBehavior};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One step of the schema, from its version to the next.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// What it brings, for the log and for errors.
    pub what: &'static str,
    /// Makes it, inside a transaction.
    pub run: fn(&Connection) -> rusqlite::Result<()>,
}

/// Makes the steps that the file lacks. Errors: a newer file, a backup or a step that failed; the file is as it was.
pub(super) fn bring_up(db: &mut Connection, path: &Path, kind: &Kind<'_>) -> Result<(), Error> {
    let known = kind.steps.len();
    let found = version(db).map_err(|error| refused(kind, path, &error))?;
    if found == known {
        return Ok(());
    }
    if found > known {
        return Err(newer(path, found, known));
    }
    if found > 0 {
        let kept = backup_path(path, found);
        back_up(db, &kept).map_err(|reason| {
            let reason =
                format!("its schema version {found} is to be taken to {known}, and no backup can be made: {reason}");
            let fix = "make room and see that the folder is writable; nothing was changed";
            failed(path, Obstacle::Outside, reason, fix)
        })?;
        let (backup, file) = (kept.display(), path.display());
        tracing::info!(from = found, to = known, %backup, %file, "the {} is taken to a newer schema", kind.name);
    }
    forward(db, kind).map_err(|(made, error)| {
        let what = kind.steps.get(made).map_or("the end", |step| step.what);
        let reason = format!("schema version {found} could not be taken to {known}; it failed at `{what}`: {error}");
        let fix = "make room if the disk is full, else run the program that wrote it; nothing was changed";
        failed(path, Obstacle::Outside, reason, fix)
    })
}

pub(super) fn version(db: &Connection) -> rusqlite::Result<usize> {
    // A negative number would be nobody's; it is refused as a newer one.
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
        .map(|found: i64| usize::try_from(found).unwrap_or(usize::MAX))
}

/// Makes every step in one transaction. Errors: how many steps the file had behind it when one failed, and why.
fn forward(db: &mut Connection, kind: &Kind<'_>) -> Result<(), (usize, rusqlite::Error)> {
    let begun = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| (0, error))?;
    // Looked at again under the lock: another process may have been quicker.
    let found = version(&begun).map_err(|error| (0, error))?;
    for (made, step) in kind.steps.iter().enumerate().skip(found) {
        (step.run)(&begun).map_err(|error| (made, error))?;
    }
    let marked = begun
        .pragma_update(None, "application_id", kind.application_id)
        .and_then(|()| begun.pragma_update(None, "user_version", kind.steps.len().max(found)));
    marked.and_then(|()| begun.commit()).map_err(|error| (kind.steps.len(), error))
}

/// Where the file of this version is kept.
fn backup_path(path: &Path, version: usize) -> PathBuf {
    with_suffix(path, &format!(".v{version}.bak"))
}

/// Copies the whole database to `kept`, which is either there whole and on the disk or not at all. One of an earlier try,
/// or from before somebody went back, is older than this one and is replaced.
pub(super) fn back_up(db: &Connection, kept: &Path) -> Result<(), String> {
    let partial = with_suffix(kept, ".partial");
    let io = |error: io::Error| error.to_string();
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    // Made empty first, for its mode: specs can hold secrets. SQLite writes into an empty file as into none.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(io)?;
    let name = partial.to_str().ok_or("its path is not UTF-8")?;
    db.execute("VACUUM INTO ?1", [name]).map_err(|error| error.to_string())?;
    File::open(&partial).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&partial, kept).map_err(io)?;
    let folder = kept.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// A file from the future: run that program, or go back to the newest backup that this one can read.
fn newer(path: &Path, found: usize, known: usize) -> Error {
    let reason = format!("it has schema version {found}, and this program knows up to {known}");
    let backup = (1..=known).rev().map(|version| backup_path(path, version)).find(|kept| kept.exists());
    let fix = match backup {
        Some(kept) => format!(
            "run the newer program again; or go back, without what happened since: move {file} and the files {file}-wal \
             and {file}-shm away, and `cp --preserve {} {file}`, which keeps owner and mode",
            kept.display(),
            file = path.display()
        ),
        None => {
            "run the newer program again, or start with another data_dir; no backup from before is beside it".to_owned()
        }
    };
    failed(path, Obstacle::Newer, reason, fix)
}
