//! Jobs as rows: what is searched for has a column, the rest is one JSON document.
//!
//! Specs lie in a table of their own, because SQLite writes rows whole, and a spec can be a megabyte that never changes.
//! A row that does not read back (a damaged file, a spec that a later version no longer accepts) is *parked*: left out
//! of claims and expiries, so it delays no other job, with the reason kept beside it.

use super::shapes;
use crate::job::{
    Cause, Clamp, GivenUp, Job, JobId, JobSpec, LeaseToken, LogTotals, Millis, NextTry, PastTry, Phase, PhaseEvent,
    PutOff, Results, Submitter, Timing, UnixMillis, Usage, UsedImage,
};
use crate::queue::daily::{Day, Ended};
use crate::queue::held_by;
use crate::queue::routing::Shape;
use crate::queue::transition::{Lease, Row, Told};
use crate::queue::{EXPIRE_BATCH, Groups, READY_BATCH, own_key};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// Everything of a job that is neither searched for nor shown in a list.
#[derive(Serialize, Deserialize)]
struct State {
    tries: u32,
    /// These are absent where there is nothing to say, and in rows that were written before there were tries after failures.
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    past_tries: Vec<PastTry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_try: Option<NextTry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    put_off: Option<PutOff>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_up: Option<GivenUp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopped: bool,
    cancel_requested: bool,
    /// Absent in rows that were written before there were retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_of: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    submitter: Option<String>,
    /// Which key of that name; absent in rows of before keys had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    submitter_key: Option<String>,
    history: Vec<PhaseEvent>,
    usage: Option<Usage>,
    receipt: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    clamped: Vec<Clamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<UsedImage>,
    log: LogTotals,
    /// Absent as long as it is kept, and in rows of before it could go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_gone_at: Option<UnixMillis>,
    /// Absent where there is nothing to say, and in rows of before there were any.
    #[serde(default, skip_serializing_if = "Results::is_empty")]
    results: Results,
    /// The same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    timings: Vec<Timing>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn state_json(row: &Row) -> rusqlite::Result<String> {
    let job = &row.job;
    let state = State {
        tries: row.tries,
        failures: row.failures,
        past_tries: job.past_tries.clone(),
        next_try: job.next_try.clone(),
        put_off: job.put_off.clone(),
        given_up: job.given_up.clone(),
        told: row.told,
        stopped: row.stopped,
        cancel_requested: job.cancel_requested,
        retry_of: job.retry_of,
        submitter: job.submitter.as_ref().map(|submitter| submitter.name.clone()),
        submitter_key: job.submitter.as_ref().and_then(|submitter| submitter.key.clone()),
        history: job.history.clone(),
        usage: job.usage.clone(),
        receipt: job.receipt.clone(),
        clamped: job.clamped.clone(),
        image: job.image.clone(),
        log: job.log.clone(),
        output_gone_at: job.output_gone_at,
        results: job.results.clone(),
        timings: job.timings.clone(),
    };
    json(&state)
}

fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A job with its spec. An outer join: a job whose spec is missing must be found, to be parked.
const SELECT: &str = "SELECT id, phase, token, lease_until, spec, state, jobs.seq, \
                      attempt, agent, submitted_at, started_at, ended_at, cause, revision, not_before, dead, parent \
                      FROM jobs LEFT JOIN specs ON specs.seq = jobs.seq";

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    fn read<T: for<'a> Deserialize<'a>>(at: usize, text: &str) -> rusqlite::Result<T> {
        serde_json::from_str(text).map_err(|error| bad(at, error.to_string()))
    }
    fn bad(at: usize, reason: String) -> rusqlite::Error {
        rusqlite::Error::FromSqlConversionFailure(at, Type::Text, reason.into())
    }
    let text = |at: usize| row.get_ref(at)?.as_str().map(str::to_owned).map_err(rusqlite::Error::from);
    let state: State = read(5, &text(5)?)?;
    let spec: JobSpec = read(4, &text(4)?)?;
    let cause: Option<Cause> = match row.get::<_, Option<String>>(12)? {
        Some(cause) => Some(read(12, &cause)?),
        None => None,
    };
    let moment = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<u64>>(at)?.map(UnixMillis::new));
    let phase = text(1)?;
    let phase = Phase::named(&phase).ok_or_else(|| bad(1, format!("there is no phase {phase}")))?;
    let lease = match (row.get::<_, Option<u64>>(2)?, row.get::<_, Option<u64>>(3)?) {
        (Some(token), Some(until)) => Some(Lease { token: LeaseToken(token), until: UnixMillis::new(until) }),
        _ => None,
    };
    let mut job = Job {
        id: text(0)?.parse().map_err(|error: crate::job::BadId| bad(0, error.to_string()))?,
        revision: row.get(13)?,
        retry_of: state.retry_of,
        parent: match row.get::<_, Option<String>>(16)? {
            Some(parent) => Some(parent.parse().map_err(|error: crate::job::BadId| bad(16, error.to_string()))?),
            None => None,
        },
        children: None,
        submitter: state.submitter.map(|name| Submitter { name, key: state.submitter_key }),
        phase,
        ending: None,
        attempt: row.get(7)?,
        past_tries: state.past_tries,
        next_try: state.next_try,
        put_off: state.put_off,
        dead_letter: row.get::<_, Option<u32>>(15)?.is_some(),
        given_up: state.given_up,
        cancel_requested: state.cancel_requested,
        agent: row.get(8)?,
        submitted_at: UnixMillis::new(row.get(9)?),
        started_at: moment(10)?,
        ended_at: moment(11)?,
        spec,
        history: state.history,
        usage: state.usage,
        receipt: state.receipt,
        clamped: state.clamped,
        image: state.image,
        log: state.log,
        output_gone_at: state.output_gone_at,
        timings: state.timings,
        results: state.results,
    };
    job.ending = cause.map(|cause| job.ending_by(cause));
    let (tries, failures, told, stopped) = (state.tries, state.failures, state.told, state.stopped);
    Ok(Row { job, tries, failures, delayed: moment(14)?, told, stopped, lease })
}

/// A row that need not be there.
pub(super) fn optional<T>(found: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    found.optional()
}

pub(super) fn load(db: &Connection, id: JobId) -> rusqlite::Result<Option<Row>> {
    db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?.query_row([id.to_string()], row).optional()
}

/// The id of a job by its place; `None` when it cannot be read.
pub(super) fn id(db: &Connection, place: u64) -> rusqlite::Result<Option<JobId>> {
    let mut found = db.prepare_cached("SELECT id FROM jobs WHERE seq = ?1")?;
    Ok(found.query_row([place], |row| row.get::<_, String>(0)).optional()?.and_then(|id| id.parse().ok()))
}

pub(super) fn by_key(db: &Connection, key: &str) -> rusqlite::Result<Option<Row>> {
    db.prepare_cached(&format!("{SELECT} WHERE idempotency_key = ?1"))?.query_row([key], row).optional()
}

pub(super) fn has_key(db: &Connection, key: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM jobs WHERE idempotency_key = ?1")?.exists([key])
}

pub(super) fn insert(db: &Connection, row: &Row, groups: &Groups) -> rusqlite::Result<()> {
    let job = &row.job;
    db.prepare_cached(
        "INSERT INTO jobs (id, phase, priority, idempotency_key, state, name, submitted_at, shape, not_before, parent, host, \
         started_at, held_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        job.id.to_string(),
        job.phase.name(),
        job.spec.priority(),
        job.spec.idempotency_key().map(|key| own_key(job.submitter.as_ref(), key)),
        state_json(row)?,
        job.spec.name(),
        job.submitted_at.as_u64(),
        // Who is in no agent's hands has none.
        (job.phase == Phase::Queued).then(|| shapes::number(db, &Shape::of(&job.spec, groups))).transpose()?,
        row.delayed.map(UnixMillis::as_u64),
        job.parent.map(|parent| parent.to_string()),
        job.spec.host(),
        job.started_at.map(UnixMillis::as_u64),
        held_by(job),
    ])?;
    let seq = db.last_insert_rowid();
    db.prepare_cached("INSERT INTO specs (seq, spec) VALUES (?1, ?2)")?.execute(params![seq, json(&job.spec)?])?;
    for (name, value) in job.spec.sealed_secrets() {
        let mut insert = db.prepare_cached("INSERT INTO sealed (seq, name, value) VALUES (?1, ?2, ?3)")?;
        insert.execute(params![seq, name, value])?;
    }
    for (key, value) in job.spec.labels() {
        let mut insert = db.prepare_cached("INSERT INTO labels (seq, key, value) VALUES (?1, ?2, ?3)")?;
        insert.execute(params![seq, key, value])?;
    }
    Ok(())
}

/// The sealed values that came with a job.
pub(super) fn sealed(db: &Connection, id: JobId) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
    let query = "SELECT name, value FROM sealed WHERE seq = (SELECT seq FROM jobs WHERE id = ?1)";
    let mut found = db.prepare_cached(query)?;
    found.query_map([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

pub(super) fn save(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    let job = &row.job;
    let cause = job.ending.as_ref().map(|ending| json(&ending.cause)).transpose()?;
    db.prepare_cached(
        "UPDATE jobs SET phase = ?2, shape = iif(?2 = 'ended', NULL, shape), held_by = iif(?2 = 'ended', NULL, held_by), token = ?3, lease_until = ?4, state = ?5, attempt = ?6, agent = ?7, \
         started_at = ?8, ended_at = ?9, verdict = ?10, cause = ?11, revision = ?12, not_before = ?13, dead = ?14, \
         output_bytes = ?15 WHERE id = ?1",
    )?
    .execute(params![
        job.id.to_string(),
        job.phase.name(),
        row.lease.map(|lease| lease.token.0),
        row.lease.map(|lease| lease.until.as_u64()),
        state_json(row)?,
        job.attempt,
        job.agent,
        job.started_at.map(UnixMillis::as_u64),
        job.ended_at.map(UnixMillis::as_u64),
        job.ending.as_ref().map(|ending| ending.verdict.name()),
        cause,
        job.revision,
        row.delayed.map(UnixMillis::as_u64),
        job.dead_letter.then_some(1),
        row.output_bytes()
    ])
    .map(drop)
}

/// Queued jobs by their places; `None` when one could not be read: it is set aside then, and the choice has to be made anew.
pub(super) fn chosen(db: &Connection, places: &[u64]) -> rusqlite::Result<Option<Vec<Row>>> {
    let mut statement = db.prepare_cached(&format!("{SELECT} WHERE jobs.seq = ?1"))?;
    let (mut good, mut all_good) = (Vec::with_capacity(places.len()), true);
    for place in places {
        let mut found = statement.query([place])?;
        let Some(found) = found.next()? else { continue };
        match readable(row(found))? {
            Ok(row) => good.push(row),
            Err(reason) => {
                park(db, found.get(6)?, &reason)?;
                all_good = false;
            }
        }
    }
    Ok(Some(good).filter(|_| all_good))
}

/// Tells what is wrong with a row (inner) from what is wrong with the database (outer).
pub(super) fn readable<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Result<T, String>> {
    match read {
        Ok(value) => Ok(Ok(value)),
        Err(
            error @ (rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)),
        ) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

pub(super) fn park(db: &Connection, seq: i64, reason: &str) -> rusqlite::Result<()> {
    tracing::error!(seq, reason, "a stored job cannot be read; it is set aside");
    db.prepare_cached("UPDATE jobs SET parked = ?2 WHERE seq = ?1")?.execute(params![seq, reason]).map(drop)
}

pub(super) fn next_token(db: &Connection) -> rusqlite::Result<LeaseToken> {
    db.prepare_cached("UPDATE tokens SET last = last + 1 RETURNING last")?
        .query_row([], |row| row.get(0))
        .map(LeaseToken)
}

/// Held jobs whose lease is over, the oldest jobs first.
pub(super) fn expired(db: &Connection, now: UnixMillis) -> rusqlite::Result<Vec<Row>> {
    let query = format!(
        "{SELECT} WHERE lease_until IS NOT NULL AND parked IS NULL AND lease_until <= ?1 ORDER BY jobs.seq LIMIT ?2"
    );
    let mut statement = db.prepare_cached(&query)?;
    let mut found = statement.query(params![now.as_u64(), EXPIRE_BATCH])?;
    let mut good = Vec::new();
    while let Some(found) = found.next()? {
        good.extend(or_parked(db, found)?);
    }
    Ok(good)
}

/// The places of all held jobs: no more than all agents together have slots, and still too many to be loaded together.
pub(super) fn leased(db: &Connection) -> rusqlite::Result<Vec<i64>> {
    let query = "SELECT seq FROM jobs WHERE lease_until IS NOT NULL AND parked IS NULL ORDER BY seq";
    db.prepare_cached(query)?.query_map([], |row| row.get(0))?.collect()
}

/// The job at a place; `None` when it cannot be read.
pub(super) fn at(db: &Connection, seq: i64) -> rusqlite::Result<Option<Row>> {
    let mut statement = db.prepare_cached(&format!("{SELECT} WHERE jobs.seq = ?1"))?;
    let mut found = statement.query([seq])?;
    found.next()?.map_or(Ok(None), |found| or_parked(db, found))
}

fn or_parked(db: &Connection, found: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Row>> {
    match readable(row(found))? {
        Ok(row) => Ok(Some(row)),
        Err(reason) => park(db, found.get(6)?, &reason).map(|()| None),
    }
}

/// Makes delayed jobs ready whose time has come, and says how many.
pub(super) fn ready(db: &Connection, now: UnixMillis) -> rusqlite::Result<u64> {
    let mut update = db.prepare_cached(
        "UPDATE jobs SET not_before = NULL WHERE seq IN (SELECT seq FROM jobs INDEXED BY delayed \
         WHERE not_before IS NOT NULL AND parked IS NULL AND not_before <= ?1 ORDER BY not_before, seq LIMIT ?2)",
    )?;
    Ok(update.execute(params![now.as_u64(), READY_BATCH])? as u64)
}

/// When the next lease runs out, or the next delayed job becomes ready.
pub(super) fn next_due(db: &Connection) -> rusqlite::Result<Option<UnixMillis>> {
    let least = |query: &str| db.prepare_cached(query)?.query_row([], |row| row.get::<_, Option<u64>>(0));
    let lease = least("SELECT min(lease_until) FROM jobs WHERE lease_until IS NOT NULL AND parked IS NULL")?;
    let ready = least("SELECT min(not_before) FROM jobs WHERE not_before IS NOT NULL AND parked IS NULL")?;
    Ok(lease.into_iter().chain(ready).min().map(UnixMillis::new))
}

pub(super) fn count(db: &Connection, phase: Phase) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT jobs FROM counts WHERE phase = ?1")?.query_row([phase.name()], |row| row.get(0))
}

/// Jobs of a submitter that have not ended.
pub(super) fn held(db: &Connection, submitter: &str) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT count(*) FROM jobs WHERE held_by = ?1")?.query_row([submitter], |row| row.get(0))
}

pub(super) fn dead_letters(db: &Connection) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT jobs FROM counts WHERE phase = 'dead_letter'")?.query_row([], |row| row.get(0))
}

pub(super) fn days(db: &Connection, from: u64) -> rusqlite::Result<Vec<Day>> {
    let mut statement = db.prepare_cached(
        "SELECT day, submitted, succeeded, failed, timed_out, canceled, cell_error, lost, run_ms FROM days \
         WHERE day >= ?1 ORDER BY day",
    )?;
    let day = |row: &rusqlite::Row<'_>| {
        Ok(Day {
            number: row.get(0)?,
            submitted: row.get(1)?,
            ended: Ended {
                succeeded: row.get(2)?,
                failed: row.get(3)?,
                timed_out: row.get(4)?,
                canceled: row.get(5)?,
                cell_error: row.get(6)?,
                lost: row.get(7)?,
            },
            run: Millis::new(row.get(8)?),
        })
    };
    statement.query_map([from], day)?.collect()
}
