//! The schema, and jobs as rows: what is searched for has a column, the rest is one JSON document.

use crate::job::{Cause, Ending, Job, JobId, JobSpec, LogTotals, Phase, PhaseEvent, UnixMillis, Usage};
use crate::queue::transition::{Lease, Row};
use crate::queue::{LeaseToken, ListFilter, StoreError};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Version of the schema, kept in the file.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    phase TEXT NOT NULL,
    priority INTEGER NOT NULL,
    token INTEGER,
    lease_until INTEGER,
    idempotency_key TEXT UNIQUE,
    spec TEXT NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX claim_order ON jobs (priority DESC, seq) WHERE phase = 'queued';
CREATE INDEX expiry ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX open_jobs ON jobs (phase, seq) WHERE phase <> 'ended';
CREATE TABLE counts (phase TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counts VALUES ('queued', 0), ('claimed', 0), ('preparing', 0), ('running', 0), ('finishing', 0), ('ended', 0);
CREATE TRIGGER count_insert AFTER INSERT ON jobs BEGIN
    UPDATE counts SET jobs = jobs + 1 WHERE phase = new.phase;
END;
CREATE TRIGGER count_move AFTER UPDATE OF phase ON jobs WHEN old.phase <> new.phase BEGIN
    UPDATE counts SET jobs = jobs - 1 WHERE phase = old.phase;
    UPDATE counts SET jobs = jobs + 1 WHERE phase = new.phase;
END;
CREATE TABLE tokens (last INTEGER NOT NULL) STRICT;
INSERT INTO tokens VALUES (0);
";

/// Opens a connection; the first one makes the schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |reason: String, fix| StoreError::Open { path: path.to_owned(), reason, fix };
    let plain = |error: rusqlite::Error| {
        failed(error.to_string(), "check that the folder exists, is writable, and that the file is a jobcell queue")
    };
    let mut db = Connection::open(path).map_err(plain)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(plain)?;
    db.pragma_update(None, "journal_mode", "WAL").map_err(plain)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(plain)?;
    db.pragma_update(None, "foreign_keys", "ON").map_err(plain)?;
    db.set_prepared_statement_cache_capacity(64);
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(plain)?;
    match version {
        SCHEMA_VERSION => {}
        0 => {
            let transaction = db.transaction().map_err(plain)?;
            transaction.execute_batch(SCHEMA).map_err(plain)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(plain)?;
            transaction.commit().map_err(plain)?;
        }
        newer => {
            let reason = format!("it has schema version {newer}, and this program knows up to {SCHEMA_VERSION}");
            return Err(failed(reason, "run the newer program again, or start with another data_dir"));
        }
    }
    Ok(db)
}

/// Everything of a job that is never searched for.
#[derive(Serialize, Deserialize)]
struct State {
    attempt: u32,
    cancel_requested: bool,
    agent: Option<String>,
    submitted_at: UnixMillis,
    started_at: Option<UnixMillis>,
    ended_at: Option<UnixMillis>,
    cause: Option<Cause>,
    history: Vec<PhaseEvent>,
    usage: Option<Usage>,
    receipt: Vec<(String, String)>,
    log: LogTotals,
}

fn state_json(job: &Job) -> rusqlite::Result<String> {
    let state = State {
        attempt: job.attempt,
        cancel_requested: job.cancel_requested,
        agent: job.agent.clone(),
        submitted_at: job.submitted_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
        cause: job.ending.as_ref().map(|ending| ending.cause.clone()),
        history: job.history.clone(),
        usage: job.usage,
        receipt: job.receipt.clone(),
        log: job.log.clone(),
    };
    json(&state)
}

fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

const COLUMNS: &str = "id, phase, token, lease_until, spec, state";

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
    let phase = text(1)?;
    let phase = Phase::named(&phase).ok_or_else(|| bad(1, format!("there is no phase {phase}")))?;
    let lease = match (row.get::<_, Option<u64>>(2)?, row.get::<_, Option<u64>>(3)?) {
        (Some(token), Some(until)) => Some(Lease { token: LeaseToken(token), until: UnixMillis::new(until) }),
        _ => None,
    };
    let job = Job {
        id: text(0)?.parse().map_err(|error: crate::job::BadId| bad(0, error.to_string()))?,
        phase,
        ending: state.cause.map(Ending::from),
        attempt: state.attempt,
        cancel_requested: state.cancel_requested,
        agent: state.agent,
        submitted_at: state.submitted_at,
        started_at: state.started_at,
        ended_at: state.ended_at,
        spec,
        history: state.history,
        usage: state.usage,
        receipt: state.receipt,
        log: state.log,
    };
    Ok(Row { job, lease })
}

pub(super) fn load(db: &Connection, id: JobId) -> rusqlite::Result<Option<Row>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))?.query_row([id.to_string()], row).optional()
}

pub(super) fn by_key(db: &Connection, key: &str) -> rusqlite::Result<Option<Row>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE idempotency_key = ?1"))?
        .query_row([key], row)
        .optional()
}

pub(super) fn insert(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    let job = &row.job;
    db.prepare_cached(
        "INSERT INTO jobs (id, phase, priority, idempotency_key, spec, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        job.id.to_string(),
        job.phase.name(),
        job.spec.priority(),
        job.spec.idempotency_key(),
        json(&job.spec)?,
        state_json(job)?
    ])
    .map(drop)
}

pub(super) fn save(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    let job = &row.job;
    db.prepare_cached("UPDATE jobs SET phase = ?2, token = ?3, lease_until = ?4, state = ?5 WHERE id = ?1")?
        .execute(params![
            job.id.to_string(),
            job.phase.name(),
            row.lease.map(|lease| lease.token.0),
            row.lease.map(|lease| lease.until.as_u64()),
            state_json(job)?
        ])
        .map(drop)
}

pub(super) fn first_queued(db: &Connection, most: u32) -> rusqlite::Result<Vec<Row>> {
    let query = format!("SELECT {COLUMNS} FROM jobs WHERE phase = 'queued' ORDER BY priority DESC, seq LIMIT ?1");
    db.prepare_cached(&query)?.query_map([most], row)?.collect()
}

pub(super) fn next_token(db: &Connection) -> rusqlite::Result<LeaseToken> {
    db.prepare_cached("UPDATE tokens SET last = last + 1 RETURNING last")?
        .query_row([], |row| row.get(0))
        .map(LeaseToken)
}

pub(super) fn expired(db: &Connection, now: UnixMillis) -> rusqlite::Result<Vec<JobId>> {
    // In the order in which the jobs came, so that they queue up again in it.
    let mut query = db.prepare_cached("SELECT id FROM jobs WHERE lease_until <= ?1 ORDER BY seq")?;
    let ids = query.query_map([now.as_u64()], |row| row.get::<_, String>(0))?;
    Ok(ids.collect::<rusqlite::Result<Vec<_>>>()?.iter().filter_map(|id| id.parse().ok()).collect())
}

pub(super) fn count(db: &Connection, phase: Phase) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT jobs FROM counts WHERE phase = ?1")?.query_row([phase.name()], |row| row.get(0))
}

pub(super) fn list(db: &Connection, filter: &ListFilter) -> rusqlite::Result<Vec<Job>> {
    let before = match filter.before {
        None => i64::MAX,
        Some(id) => db
            .prepare_cached("SELECT seq FROM jobs WHERE id = ?1")?
            .query_row([id.to_string()], |row| row.get(0))
            .optional()?
            .unwrap_or(0),
    };
    let query =
        format!("SELECT {COLUMNS} FROM jobs WHERE seq < ?1 AND (?2 IS NULL OR phase = ?2) ORDER BY seq DESC LIMIT ?3");
    let mut query = db.prepare_cached(&query)?;
    let jobs =
        query.query_map(params![before, filter.phase.map(Phase::name), filter.limit], |found| Ok(row(found)?.job))?;
    jobs.collect()
}
