//! A parent and its children in the file: which there are, how they stand. What is done about them is decided in `family`.

use super::{change_row, rows};
use crate::job::{Children, HostFailure, JobId, Phase, UnixMillis, Verdict};
use crate::queue::family::{HELD, Kin, Tally};
use crate::queue::transition::Row;
use rusqlite::types::Type;
use rusqlite::{Connection, params};

/// One parent with its children.
pub(super) struct OneFamily<'a> {
    pub(super) db: &'a Connection,
    pub(super) parent: JobId,
}

impl Kin for OneFamily<'_> {
    type Error = rusqlite::Error;

    fn parent(&mut self) -> rusqlite::Result<Option<Row>> {
        rows::load(self.db, self.parent)
    }

    fn tally(&mut self) -> rusqlite::Result<Tally> {
        tally(self.db, self.parent)
    }

    fn open(&mut self) -> rusqlite::Result<Vec<JobId>> {
        let query = "SELECT id FROM jobs INDEXED BY children WHERE parent = ?1 AND phase <> 'ended' AND parked IS NULL \
                     ORDER BY seq";
        self.db.prepare_cached(query)?.query_map([self.parent.to_string()], |row| id(row, 0))?.collect()
    }

    fn held(&mut self, most: u32) -> rusqlite::Result<Vec<JobId>> {
        let query = "SELECT id FROM jobs INDEXED BY children WHERE parent = ?1 AND phase = 'queued' AND not_before = ?2 \
                     AND parked IS NULL ORDER BY seq LIMIT ?3";
        let values = params![self.parent.to_string(), HELD.as_u64(), most];
        self.db.prepare_cached(query)?.query_map(values, |row| id(row, 0))?.collect()
    }

    fn failed(&mut self, most: usize) -> rusqlite::Result<Vec<HostFailure>> {
        let query = "SELECT host, id, verdict FROM jobs INDEXED BY children WHERE parent = ?1 AND phase = 'ended' \
                     AND verdict <> 'succeeded' ORDER BY seq LIMIT ?2";
        let failure = |row: &rusqlite::Row<'_>| {
            let host = row.get::<_, Option<String>>(0)?.unwrap_or_default();
            let verdict = verdict(row, 2)?.unwrap_or(Verdict::Lost);
            Ok(HostFailure { host, job: id(row, 1)?, verdict })
        };
        let values = params![self.parent.to_string(), most as u64];
        self.db.prepare_cached(query)?.query_map(values, failure)?.collect()
    }

    fn change<T>(&mut self, id: JobId, change: impl FnOnce(&mut Row) -> T) -> rusqlite::Result<Option<T>> {
        change_row(self.db, id, change)
    }
}

fn bad(at: usize, reason: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, Type::Text, reason.into())
}

fn id(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<JobId> {
    row.get::<_, String>(at)?.parse().map_err(|error: crate::job::BadId| bad(at, error.to_string()))
}

fn verdict(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Option<Verdict>> {
    let Some(name) = row.get::<_, Option<String>>(at)? else { return Ok(None) };
    Verdict::named(&name).map(Some).ok_or_else(|| bad(at, format!("there is no verdict {name}")))
}

/// One that was set aside because it cannot be read is counted as it stands: its parent waits for whoever looks at it.
fn tally(db: &Connection, parent: JobId) -> rusqlite::Result<Tally> {
    let mut statement = db.prepare_cached(
        "SELECT phase, verdict, not_before, count(*) FROM jobs INDEXED BY children WHERE parent = ?1 GROUP BY 1, 2, 3",
    )?;
    let mut found = statement.query([parent.to_string()])?;
    let mut tally = Tally::default();
    while let Some(row) = found.next()? {
        let phase: String = row.get(0)?;
        let phase = Phase::named(&phase).ok_or_else(|| bad(0, format!("there is no phase {phase}")))?;
        let delayed = row.get::<_, Option<u64>>(2)?.map(UnixMillis::new);
        tally.add(phase, verdict(row, 1)?, delayed, row.get(3)?);
    }
    Ok(tally)
}

/// How the children of a job stand; `None` when it has none.
pub(super) fn children(db: &Connection, parent: JobId) -> rusqlite::Result<Option<Children>> {
    let shown = tally(db, parent)?.shown();
    Ok((shown.all > 0).then_some(shown))
}

/// All parents that have not ended, with each of their children that has not. A parent is the only running job that nobody holds.
pub(super) fn open_families(db: &Connection) -> rusqlite::Result<Vec<(JobId, Option<JobId>)>> {
    let query = "SELECT parent.id, child.id FROM jobs AS parent INDEXED BY open_jobs \
                 LEFT JOIN jobs AS child ON child.parent = parent.id AND child.phase <> 'ended' \
                 WHERE parent.phase = 'running' AND parent.phase <> 'ended' AND parent.lease_until IS NULL";
    let both = |row: &rusqlite::Row<'_>| {
        let child = row.get::<_, Option<String>>(1)?.map(|_| id(row, 1)).transpose()?;
        Ok((id(row, 0)?, child))
    };
    db.prepare_cached(query)?.query_map([], both)?.collect()
}
