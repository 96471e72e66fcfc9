//! Rows of entries: put, removed, read, and set aside when they are damaged.
//!
//! Specs lie in a table of their own: SQLite writes rows whole, and a spec can be a megabyte that never changes.

use super::record::{self, Record, SELECT, Unreadable, VERSION};
use crate::database::Step;
use crate::job::UnixMillis;
use crate::journal::{DamagedEntry, Entry, Stage};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// Damaged entries that are kept: the newest.
const KEPT: i64 = 1000;

/// The schema. A step that was released is never edited.
pub(super) const STEPS: &[Step] = &[Step { what: "entries, specs and damaged", run: |db| db.execute_batch(BEGINNING) }];

const BEGINNING: &str = "
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    backend TEXT NOT NULL,
    attempt TEXT NOT NULL,
    token INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    stage TEXT NOT NULL,
    version INTEGER NOT NULL,
    spec_sum INTEGER NOT NULL,
    report TEXT,
    sum INTEGER NOT NULL,
    UNIQUE (attempt, backend)
) STRICT;
CREATE TABLE specs (seq INTEGER PRIMARY KEY, spec TEXT NOT NULL) STRICT;
CREATE TABLE damaged (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    seq ANY, backend ANY, attempt ANY, token ANY, generation ANY, stage ANY, version ANY, spec_sum ANY, report ANY,
    sum ANY, spec ANY
) STRICT;
";

/// Makes the entry's row, or brings it up to date; the spec is written only when it is another one.
pub(super) fn put(db: &Connection, record: &Record) -> rusqlite::Result<()> {
    let mut known =
        db.prepare_cached("SELECT seq, spec_sum, version FROM entries WHERE attempt = ?1 AND backend = ?2")?;
    let known = known.query_row([&record.attempt, &record.backend], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    let (seq, spec_is_there) = match known.optional()? {
        Some((seq, spec_sum, version)) => (seq, spec_sum == record.spec_sum && version == VERSION),
        // Only this thread writes, so nobody else takes the number.
        None => {
            let mut next = db.prepare_cached("SELECT coalesce(max(seq), 0) + 1 FROM entries")?;
            (next.query_row([], |row| row.get(0))?, false)
        }
    };
    if !spec_is_there {
        db.prepare_cached("INSERT OR REPLACE INTO specs (seq, spec) VALUES (?1, ?2)")?
            .execute(params![seq, record.spec])?;
    }
    db.prepare_cached(
        "INSERT INTO entries (seq, backend, attempt, token, generation, stage, version, spec_sum, report, sum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         ON CONFLICT (seq) DO UPDATE SET token = excluded.token, generation = excluded.generation, \
         stage = excluded.stage, version = excluded.version, spec_sum = excluded.spec_sum, report = excluded.report, \
         sum = excluded.sum",
    )?
    .execute(params![
        seq,
        record.backend,
        record.attempt,
        record.token,
        record.generation,
        record.stage,
        VERSION,
        record.spec_sum,
        record.report,
        record.sum(seq)
    ])?;
    Ok(())
}

/// Removes an entry, if it is there.
pub(super) fn remove(db: &Connection, backend: &str, attempt: &str) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached("DELETE FROM entries WHERE attempt = ?1 AND backend = ?2 RETURNING seq")?;
    if let Some(seq) = delete.query_row([attempt, backend], |row| row.get::<_, i64>(0)).optional()? {
        db.prepare_cached("DELETE FROM specs WHERE seq = ?1")?.execute([seq])?;
    }
    Ok(())
}

/// Every entry, in the order in which they were first put.
pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Result<Entry, Unreadable>>> {
    let mut statement = db.prepare_cached(&format!("{SELECT} ORDER BY entries.seq"))?;
    let mut rows = statement.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(record::read(row));
    }
    Ok(entries)
}

/// Makes a commitment of every intent, all or none; the answer is how many. Every entry must be readable.
pub(super) fn doubt_intents(db: &mut Connection) -> rusqlite::Result<usize> {
    let transaction = db.transaction()?;
    let mut doubted = 0;
    for entry in all(&transaction)?.into_iter().flatten().filter(|entry| entry.stage == Stage::Intent) {
        let committed = Entry { stage: Stage::Committed, ..entry };
        let record = Record::of(&committed).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        put(&transaction, &record)?;
        doubted += 1;
    }
    transaction.commit()?;
    Ok(doubted)
}

/// What came of looking for damaged entries.
pub(super) enum Looked {
    /// All that are left can be read; these could not.
    Readable(Vec<DamagedEntry>),
    /// There is one of a newer version; nothing was changed.
    Newer(i64),
}

/// Moves every entry that cannot be read into the table of damaged ones.
pub(super) fn set_aside(db: &mut Connection, now: UnixMillis) -> rusqlite::Result<Looked> {
    let transaction = db.transaction()?;
    let mut damaged = Vec::new();
    {
        let mut statement = transaction.prepare(&format!("{SELECT} ORDER BY entries.seq"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            match record::read(row) {
                Ok(_) => {}
                Err(Unreadable::Newer(version)) => return Ok(Looked::Newer(version)),
                Err(Unreadable::Damaged(reason)) => {
                    let entry = DamagedEntry { backend: lossy(row, 1)?, attempt: lossy(row, 2)?, reason };
                    damaged.push((row.get::<_, i64>(0)?, entry));
                }
            }
        }
    }
    for (seq, entry) in &damaged {
        // As it lies in the file, whatever that is.
        let columns = SELECT.strip_prefix("SELECT ").unwrap_or(SELECT);
        let keep = format!(
            "INSERT INTO damaged (at, reason, seq, backend, attempt, token, generation, stage, version, spec_sum, report, \
             sum, spec) SELECT ?2, ?3, {columns} WHERE entries.seq = ?1"
        );
        transaction.execute(&keep, params![seq, i64::try_from(now.as_u64()).unwrap_or(i64::MAX), entry.reason])?;
        transaction.execute("DELETE FROM specs WHERE seq = ?1", [seq])?;
        transaction.execute("DELETE FROM entries WHERE seq = ?1", [seq])?;
    }
    transaction.execute("DELETE FROM damaged WHERE id <= (SELECT max(id) FROM damaged) - ?1", [KEPT])?;
    transaction.commit()?;
    Ok(Looked::Readable(damaged.into_iter().map(|(_, entry)| entry).collect()))
}

/// A column for people.
fn lossy(row: &Row<'_>, at: usize) -> rusqlite::Result<String> {
    let value = row.get_ref(at)?;
    Ok(value.as_bytes().map_or_else(|_| format!("{value:?}"), |bytes| String::from_utf8_lossy(bytes).into_owned()))
}
