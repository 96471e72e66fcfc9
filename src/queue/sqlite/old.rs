//! Ended jobs that are old: which there are, and how they go. Small steps: everybody waits for the one thread that writes.

use super::{change_row, rows};
use crate::job::{JobId, UnixMillis};
use crate::queue::old::{Old, Place, REMOVE_BATCH};
use rusqlite::{Connection, params};
use std::time::{Duration, Instant};

/// A step ends after so long, whatever is left of it: a claim behind it is to be answered within milliseconds. One job always goes.
const STEP: Duration = Duration::from_millis(2);

const ENDED: &str = "SELECT id, seq, ended_at, ifnull(output_bytes, 0) FROM jobs INDEXED BY ended_order \
     WHERE phase = 'ended' AND parent IS NULL AND parked IS NULL AND (ended_at, seq) > (?1, ?2) \
     ORDER BY ended_at, seq LIMIT ?3";

/// A child's output stays while its parent goes on.
const OUTPUTS: &str = "SELECT id, seq, ended_at, output_bytes FROM jobs INDEXED BY output_order \
     WHERE output_bytes IS NOT NULL AND parked IS NULL AND (ended_at, seq) > (?1, ?2) AND (parent IS NULL OR NOT EXISTS \
     (SELECT 1 FROM jobs AS above WHERE above.id = jobs.parent AND above.phase <> 'ended')) \
     ORDER BY ended_at, seq LIMIT ?3";

fn page(db: &Connection, query: &str, after: Option<Place>, limit: u32) -> rusqlite::Result<Vec<Old>> {
    let (at, seq) = after.map_or((0, 0), |place| (place.at.as_u64(), place.seq));
    let mut found = db.prepare_cached(query)?;
    let rows = found.query_map(params![at, seq, limit], |row| {
        let place = Place { at: UnixMillis::new(row.get(2)?), seq: row.get(1)? };
        // An id that cannot be read is nobody's to remove.
        Ok(row.get::<_, String>(0)?.parse().ok().zip(Some((place, row.get(3)?))))
    })?;
    let old = |(id, (place, output_bytes))| Old { id, place, output_bytes };
    rows.filter_map(|row| row.map(|row| row.map(old)).transpose()).collect()
}

pub(super) fn ended(db: &Connection, after: Option<Place>, limit: u32) -> rusqlite::Result<Vec<Old>> {
    page(db, ENDED, after, limit)
}

pub(super) fn outputs(db: &Connection, after: Option<Place>, limit: u32) -> rusqlite::Result<Vec<Old>> {
    page(db, OUTPUTS, after, limit)
}

pub(super) fn output_bytes(db: &Connection) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT jobs FROM counts WHERE phase = 'output_bytes'")?.query_row([], |row| row.get(0))
}

pub(super) fn output_gone(db: &Connection, ids: &[JobId], at: UnixMillis) -> rusqlite::Result<u64> {
    let mut marked = 0;
    for id in ids {
        match rows::readable(change_row(db, *id, |row| row.output_gone(at)))? {
            Ok(changed) => marked += u64::from(changed.unwrap_or(false)),
            // One that this version cannot read holds nobody up: its output counts no more.
            Err(reason) => {
                tracing::warn!(job_id = %id, reason, "an old job cannot be read; its output went all the same");
                let gone = "UPDATE jobs SET output_bytes = NULL WHERE id = ?1";
                db.prepare_cached(gone)?.execute([id.to_string()])?;
            }
        }
    }
    Ok(marked)
}

/// Removes those that may go, as many as there is time for; says which.
pub(super) fn remove(db: &Connection, ids: &[JobId]) -> rusqlite::Result<Vec<JobId>> {
    let (began, mut gone) = (Instant::now(), Vec::new());
    let mut find = db.prepare_cached(
        "SELECT seq FROM jobs WHERE id = ?1 AND phase = 'ended' AND parked IS NULL \
         AND NOT EXISTS (SELECT 1 FROM jobs AS child WHERE child.parent = jobs.id) AND (parent IS NULL OR NOT EXISTS \
         (SELECT 1 FROM jobs AS above WHERE above.id = jobs.parent AND above.phase <> 'ended'))",
    )?;
    for id in ids.iter().take(REMOVE_BATCH) {
        if !gone.is_empty() && began.elapsed() >= STEP {
            break;
        }
        let Some(seq) = rows::optional(find.query_row([id.to_string()], |row| row.get::<_, i64>(0)))? else { continue };
        for table in ["sealed", "labels", "specs", "jobs"] {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE seq = ?1"))?.execute([seq])?;
        }
        gone.push(*id);
    }
    Ok(gone)
}
