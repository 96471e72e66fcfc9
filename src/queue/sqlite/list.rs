//! Lists: summaries of jobs, read without their specs, histories and receipts.
//!
//! Every query walks an index that ends with the row's number, from the newest on, and stops when the page is full.
//! Which index is said in the query, and not left to a planner that has no figures to go by.

use super::rows::readable;
use crate::job::{Cause, Ending, JobSummary, Phase, UnixMillis};
use crate::queue::ListFilter;
use crate::queue::list::Sieve;
use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use std::collections::BTreeMap;

const COLUMNS: &str = "SELECT jobs.seq, id, name, phase, cause, attempt, agent, priority, submitted_at, started_at, ended_at, dead, parent, host";

/// Jobs looked at in one go: a search for text may look at every job there is, and others are served in between.
const LOOKED_AT: usize = if cfg!(test) { 3 } else { 5000 };

/// A part of a list.
pub(super) struct Slice {
    pub(super) found: Vec<JobSummary>,
    /// The row that the next part comes before; `None` when this was the last one.
    pub(super) rest: Option<i64>,
}

/// Jobs that a filter takes, newest first, from before the row `rest` on; at most `room` of them.
pub(super) fn slice(db: &Connection, filter: &ListFilter, rest: Option<i64>, room: usize) -> rusqlite::Result<Slice> {
    let sieve = Sieve::new(filter);
    let mut slice = Slice { found: Vec::new(), rest: None };
    let Some((first, last)) = range(db, filter)? else { return Ok(slice) };
    let (query, values) = query(filter, (first, rest.map_or(last, |rest| last.min(rest - 1))));
    let mut statement = db.prepare_cached(&query)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut looked_at = 0;
    // Not bounded in the query: text is looked for here, and rows are only read while there is room.
    while slice.found.len() < room
        && let Some(row) = rows.next()?
    {
        match readable(summary(db, row))? {
            Ok(job) if sieve.takes(&job) => slice.found.push(job),
            Ok(_) => {}
            // It must not hide the others; asked for by its id, it answers with what is wrong.
            Err(reason) => tracing::warn!(reason, "a stored job cannot be read; it is left out of a list"),
        }
        looked_at += 1;
        if looked_at == LOOKED_AT {
            slice.rest = Some(row.get(0)?);
            break;
        }
    }
    Ok(slice)
}

/// The first and the last row that can be in the list; `None` when none can.
fn range(db: &Connection, filter: &ListFilter) -> rusqlite::Result<Option<(i64, i64)>> {
    let mut last = i64::MAX;
    if let Some(id) = filter.before {
        let mut statement = db.prepare_cached("SELECT seq FROM jobs WHERE id = ?1")?;
        let Some(seq) = statement.query_row([id.to_string()], |row| row.get::<_, i64>(0)).optional()? else {
            return Ok(None);
        };
        last = seq - 1;
    }
    if filter.submitted_after.is_none() && filter.submitted_before.is_none() {
        return Ok(Some((1, last)));
    }
    // Rows follow each other as jobs were submitted, but for a clock that was set back: the moments give the rows to look
    // among, and each job's own moment is still looked at.
    let from = filter.submitted_after.map_or(0, UnixMillis::as_u64);
    let until = filter.submitted_before.map_or(u64::MAX, UnixMillis::as_u64);
    let among: (Option<i64>, Option<i64>) = db
        .prepare_cached(AMONG)?
        .query_row(params![signed(from), signed(until)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(match among {
        (Some(first), Some(newest)) => Some((first, newest.min(last))),
        _ => None,
    })
}

const AMONG: &str =
    "SELECT min(seq), max(seq) FROM jobs INDEXED BY submitted WHERE submitted_at >= ?1 AND submitted_at < ?2";

/// SQLite's integers have a sign; no moment comes near the end of them.
fn signed(moment: u64) -> i64 {
    i64::try_from(moment).unwrap_or(i64::MAX)
}

/// The query for these rows, with its values.
fn query(filter: &ListFilter, (first, last): (i64, i64)) -> (String, Vec<Value>) {
    let mut values = vec![Value::from(first), Value::from(last)];
    let mut place = |value: &str| {
        values.push(Value::from(value.to_owned()));
        values.len()
    };
    let mut conditions = String::new();
    let has_label = |key: usize, value: usize| {
        format!(
            " AND EXISTS (SELECT 1 FROM labels WHERE labels.seq = chosen.seq AND key = ?{key} AND value = ?{value})"
        )
    };
    let by_label = filter.parent.is_none() && !filter.labels.is_empty();
    let from = if let Some(parent) = filter.parent {
        conditions.push_str(&format!(" AND parent = ?{}", place(&parent.to_string())));
        for (key, value) in &filter.labels {
            conditions.push_str(&has_label(place(key), place(value)));
        }
        "jobs AS chosen INDEXED BY children"
    } else if let Some(((key, value), more)) = filter.labels.split_first() {
        conditions.push_str(&format!(" AND chosen.key = ?{} AND chosen.value = ?{}", place(key), place(value)));
        for (key, value) in more {
            conditions.push_str(&has_label(place(key), place(value)));
        }
        "labels AS chosen INDEXED BY label_order CROSS JOIN jobs ON jobs.seq = chosen.seq"
    } else if filter.dead_letter == Some(true) {
        "jobs AS chosen INDEXED BY dead_letters"
    } else if filter.verdict.is_some() {
        "jobs AS chosen INDEXED BY verdict_order"
    } else if !filter.phases.is_empty() && !filter.phases.contains(&Phase::Ended) {
        // The condition of the partial index, word for word. Of several phases the rows are sorted, and they are few: the
        // queue is bounded.
        conditions.push_str(" AND phase <> 'ended'");
        "jobs AS chosen INDEXED BY open_jobs"
    } else {
        "jobs AS chosen NOT INDEXED"
    };
    if let Some(verdict) = filter.verdict {
        conditions.push_str(&format!(" AND verdict = '{}'", verdict.name()));
    }
    match filter.dead_letter {
        Some(true) => conditions.push_str(" AND dead = 1"),
        Some(false) => conditions.push_str(" AND dead IS NULL"),
        None => {}
    }
    match filter.phases[..] {
        [] => {}
        [phase] => conditions.push_str(&format!(" AND phase = '{}'", phase.name())),
        ref several => {
            let names: Vec<String> = several.iter().map(|phase| format!("'{}'", phase.name())).collect();
            conditions.push_str(&format!(" AND phase IN ({})", names.join(", ")));
        }
    }
    let columns = if by_label { COLUMNS.to_owned() } else { COLUMNS.replace("jobs.", "chosen.") };
    let query = format!(
        "{columns} FROM {from} WHERE chosen.seq <= ?2 AND chosen.seq >= ?1{conditions} ORDER BY chosen.seq DESC"
    );
    (query, values)
}

fn summary(db: &Connection, row: &Row<'_>) -> rusqlite::Result<JobSummary> {
    let bad = |at: usize, reason: String| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, reason.into());
    let moment = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<u64>>(at)?.map(UnixMillis::new));
    let phase: String = row.get(3)?;
    let cause: Option<Cause> = match row.get::<_, Option<String>>(4)? {
        Some(text) => Some(serde_json::from_str(&text).map_err(|error| bad(4, error.to_string()))?),
        None => None,
    };
    Ok(JobSummary {
        id: row.get::<_, String>(1)?.parse().map_err(|error: crate::job::BadId| bad(1, error.to_string()))?,
        parent: match row.get::<_, Option<String>>(12)? {
            Some(parent) => Some(parent.parse().map_err(|error: crate::job::BadId| bad(12, error.to_string()))?),
            None => None,
        },
        name: row.get(2)?,
        host: row.get(13)?,
        phase: Phase::named(&phase).ok_or_else(|| bad(3, format!("there is no phase {phase}")))?,
        ending: cause.map(Ending::from),
        attempt: row.get(5)?,
        dead_letter: row.get::<_, Option<u32>>(11)?.is_some(),
        agent: row.get(6)?,
        priority: row.get(7)?,
        labels: labels(db, row.get(0)?)?,
        submitted_at: moment(8)?.unwrap_or(UnixMillis::new(0)),
        started_at: moment(9)?,
        ended_at: moment(10)?,
    })
}

fn labels(db: &Connection, seq: i64) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut statement = db.prepare_cached("SELECT key, value FROM labels WHERE seq = ?1")?;
    statement.query_map([seq], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, Verdict};

    fn plan(db: &Connection, query: &str, values: Vec<Value>) -> String {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {query}")).expect("a query");
        let lines = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).expect("explains");
        lines.map(|line| line.expect("a line")).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn every_list_walks_an_index() {
        let dir = tempfile::tempdir().expect("a folder");
        let db = crate::queue::sqlite::open::open(&dir.path().join("queue.db")).expect("opens");
        let label = |key: &str| (key.to_owned(), "x".to_owned());
        let none = ListFilter::default;
        for (filter, wanted) in [
            (none(), "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (ListFilter { phases: vec![Phase::Ended], ..none() }, "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (ListFilter { phases: vec![Phase::Queued], ..none() }, "INDEX open_jobs (phase=? AND seq>? AND seq<?)"),
            (
                ListFilter { verdict: Some(Verdict::Lost), ..none() },
                "INDEX verdict_order (verdict=? AND rowid>? AND rowid<?)",
            ),
            (
                ListFilter { dead_letter: Some(true), verdict: Some(Verdict::Lost), ..none() },
                "INDEX dead_letters (dead=? AND rowid>? AND rowid<?)",
            ),
            (
                ListFilter { parent: Some(JobId::new(UnixMillis::new(1))), labels: vec![label("a")], ..none() },
                "INDEX children (parent=? AND rowid>? AND rowid<?)",
            ),
            (
                ListFilter { labels: vec![label("a")], ..none() },
                "COVERING INDEX label_order (key=? AND value=? AND seq>? AND seq<?)",
            ),
            (
                ListFilter { labels: vec![label("a"), label("b")], verdict: Some(Verdict::Failed), ..none() },
                "COVERING INDEX label_order (key=? AND value=? AND seq>? AND seq<?)",
            ),
        ] {
            let (query, values) = query(&filter, (1, 100));
            let plan = plan(&db, &query, values);
            assert!(plan.contains(wanted), "{filter:?}: {plan}");
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{filter:?}: {plan}");
        }
        let several = ListFilter { phases: vec![Phase::Queued, Phase::Running], ..none() };
        let (query, values) = query(&several, (1, 100));
        let plan_of_several = plan(&db, &query, values);
        assert!(plan_of_several.contains("INDEX open_jobs (phase=? AND seq>? AND seq<?)"), "{plan_of_several}");
        let among = plan(&db, AMONG, vec![Value::from(1), Value::from(2)]);
        assert!(among.contains("COVERING INDEX submitted (submitted_at>? AND submitted_at<?)"), "{among}");
        let claims = plan(&db, crate::queue::sqlite::shapes::FIRST, vec![1.into(), 1.into()]);
        assert!(claims.contains("INDEX shape_order (shape=?)") && !claims.contains("TEMP B-TREE"), "{claims}");
    }
}
