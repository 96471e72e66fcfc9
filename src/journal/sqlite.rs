//! The journal that outlives its process: one SQLite file in WAL mode, one row for each entry, one thread.
//!
//! What is *written* is committed without a sync, what is *synced* is committed with one, which also serves everything before
//! it. A file that is damaged is moved aside, an entry that is damaged is set aside; both are told of when the journal is opened.

mod record;
mod rows;

use super::{Damage, Entry, EntryKey, Journal, JournalError, Journaled, Stage};
use crate::database::{self, Durability, Error, Kind, Obstacle, Thoroughness};
use crate::job::UnixMillis;
use record::{Record, Unreadable, VERSION};
use rows::{Looked, STEPS};
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// "JCJ" and a number in the file's header: this is a jobcell journal.
const APPLICATION_ID: i64 = 0x4A43_4A01;

const KIND: Kind<'static> =
    Kind { name: "journal", application_id: APPLICATION_ID, steps: STEPS, look: Thoroughness::Whole };

/// The journal. When 1,024 calls wait for its thread, more wait for them.
#[derive(Debug)]
pub struct SqliteJournal(database::Worker<JournalError>);

/// A journal that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: SqliteJournal,
    /// What of it could not be read; told of only this once.
    pub damage: Vec<Damage>,
}

impl SqliteJournal {
    /// Opens, and makes if need be, the file. One that an older version wrote is backed up beside itself and taken forward;
    /// one that is damaged is moved aside, and the journal begins with a new one. Errors: a newer version wrote it, or the
    /// folder, the disk or another process is in the way; each says what to do.
    pub fn open(path: &Path, now: UnixMillis) -> Result<Opened, JournalError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        Self::open_after(path, now, boot.as_deref())
    }

    /// `boot`: the host's of now; `None` where the kernel does not say.
    fn open_after(path: &Path, now: UnixMillis, boot: Option<&str>) -> Result<Opened, JournalError> {
        let lost = database::lost_end(path).map(|reason| Damage::End { reason });
        let (mut db, damage) = match open(path, now) {
            Ok((db, damaged)) => {
                let entries = (!damaged.is_empty()).then_some(Damage::Entries(damaged));
                (db, lost.into_iter().chain(entries).collect())
            }
            Err(Error::Open { obstacle: Obstacle::Damaged | Obstacle::Foreign, reason, .. }) => {
                let kept = database::move_aside(path, now.as_u64())?;
                // An error now is about the new file.
                (open(path, now)?.0, vec![Damage::File { kept, reason }])
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(boot) = boot {
            follow_boots(path, &mut db, boot).map_err(|error| database::refused(&KIND, path, &error))?;
        }
        Ok(Opened { journal: Self(database::Worker::grouping("journal", db)), damage })
    }
}

/// Opens the file, with every entry in it readable; the others are set aside.
fn open(path: &Path, now: UnixMillis) -> Result<(Connection, Vec<super::DamagedEntry>), Error> {
    let mut db = database::open(path, &KIND)?;
    match rows::set_aside(&mut db, now).map_err(|error| database::refused(&KIND, path, &error))? {
        Looked::Readable(damaged) => {
            begin_log(&db).map_err(|error| database::refused(&KIND, path, &error))?;
            Ok((db, damaged))
        }
        Looked::Newer(version) => Err(Error::Open {
            path: path.to_owned(),
            obstacle: Obstacle::Newer,
            reason: format!("it has entries of version {version}, and this program knows up to {VERSION}"),
            fix: format!(
                "run the newer program until the jobs that it holds have ended; or go back without knowing of them: move \
                 {file} and the files {file}-wal and {file}-shm away",
                file = path.display()
            )
            .into(),
        }),
    }
}

/// Empties the log, and sees to it that only what is committed gets into it. What an earlier process left behind the end of its
/// log would otherwise look as if it had been lost from this one's.
fn begin_log(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "cache_spill", false)?;
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// Where the boot is named in which the file was opened last.
fn boot_file(path: &Path) -> PathBuf {
    path.with_extension("boot")
}

/// When the host has booted since the file was last opened, its power may have been cut: then an intent may be what is left of a commitment, since
/// neither was synced and the log may have ended between the two. So the job of each may have run, and it counts as committed from now on. Error: SQLite's.
fn follow_boots(path: &Path, db: &mut Connection, boot: &str) -> rusqlite::Result<()> {
    let file = boot_file(path);
    // Without the file it is new, or an earlier program's.
    let before = std::fs::read_to_string(&file).ok();
    if before.as_deref() == Some(boot) {
        return Ok(());
    }
    if before.is_some() {
        let doubted = rows::doubt_intents(db)?;
        if doubted > 0 {
            tracing::warn!(
                attempts = doubted,
                "the host has booted since they were about to begin; whether they did is not known, and they are told as lost"
            );
        }
    }
    // Last: who dies before does it again. When it cannot be written, the next start does.
    if let Err(error) = std::fs::write(&file, boot) {
        tracing::warn!(%error, file = %file.display(), "which boot of the host this is cannot be kept");
    }
    Ok(())
}

/// What is promised of an entry in this stage.
fn durability(stage: &Stage) -> Durability {
    match stage {
        Stage::Intent | Stage::Committed => Durability::Written,
        Stage::Ended(_) => Durability::Synced,
    }
}

impl Journal for SqliteJournal {
    fn entries(&self) -> Journaled<'_, Vec<Entry>> {
        Box::pin(async move {
            let rows = self.0.run_as(Durability::Written, rows::all).await?;
            // Every entry could be read when the file was opened.
            let readable = |row: Result<Entry, Unreadable>| {
                row.map_err(|why| {
                    let why = match why {
                        Unreadable::Newer(version) => format!("it is of version {version}"),
                        Unreadable::Damaged(reason) => reason,
                    };
                    JournalError(format!("an entry was changed from outside: {why}; start the agent again"))
                })
            };
            rows.into_iter().map(readable).collect()
        })
    }

    fn put<'a>(&'a self, entry: &'a Entry) -> Journaled<'a, ()> {
        Box::pin(async move {
            let record = Record::of(entry).map_err(|error| JournalError(format!("an entry is no JSON: {error}")))?;
            self.0.run_as(durability(&entry.stage), move |db| rows::put(db, &record)).await
        })
    }

    fn remove<'a>(&'a self, key: &'a EntryKey) -> Journaled<'a, ()> {
        Box::pin(async move {
            let (backend, attempt) = (key.backend.clone(), key.attempt.to_string());
            self.0.run_as(Durability::Written, move |db| rows::remove(db, &backend, &attempt)).await
        })
    }
}

impl From<Error> for JournalError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
