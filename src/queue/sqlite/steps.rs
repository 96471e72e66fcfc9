//! The schema as numbered steps: a new file goes through all of them, an older one through those it lacks.
//!
//! A step that was released is never edited, and never reads a job as the program of today does: what a row means may
//! change after it. A row that a step cannot read is passed over: it must not keep the others from going on.

use crate::database::Step;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

/// Every step; the version of a file is how many of them it has behind it.
pub(super) const STEPS: &[Step] = &[
    Step { what: "jobs, counts and tokens", run: |db| db.execute_batch(BEGINNING) },
    Step { what: "columns and labels for lists", run: for_lists },
    Step { what: "revisions", run: |db| db.execute_batch(REVISIONS) },
    Step { what: "days", run: |db| db.execute_batch(DAYS) },
    Step { what: "shapes", run: |db| db.execute_batch(SHAPES) },
    Step { what: "first jobs of shapes", run: |db| db.execute_batch(HEADS) },
    Step { what: "delayed jobs and dead letters", run: |db| db.execute_batch(RETRIES) },
    Step { what: "sealed secrets", run: |db| db.execute_batch(SEALED) },
    Step { what: "parents and children", run: |db| db.execute_batch(FAMILIES) },
    Step { what: "jobs of submitters", run: |db| db.execute_batch(HELD) },
    Step { what: "ended jobs by their ends", run: |db| db.execute_batch(ENDED) },
];

/// What queued jobs ask for, with how many ask for it. Rows of before have no shape; whoever opens the file gives them one.
const SHAPES: &str = "
CREATE TABLE shapes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, queued INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX shapes_queued ON shapes (id) WHERE queued > 0;
CREATE TABLE routing (groups TEXT NOT NULL) STRICT;
INSERT INTO routing VALUES ('');
ALTER TABLE jobs ADD COLUMN shape INTEGER REFERENCES shapes (id);
DROP INDEX claim_order;
CREATE INDEX shape_order ON jobs (shape, priority DESC, seq) WHERE phase = 'queued' AND parked IS NULL;
CREATE TRIGGER shape_insert AFTER INSERT ON jobs WHEN new.phase = 'queued' AND new.shape IS NOT NULL BEGIN
    UPDATE shapes SET queued = queued + 1 WHERE id = new.shape;
END;
CREATE TRIGGER shape_enter AFTER UPDATE OF phase, shape ON jobs
WHEN new.phase = 'queued' AND (old.phase <> 'queued' OR old.shape IS NOT new.shape) BEGIN
    UPDATE shapes SET queued = queued + 1 WHERE id = new.shape;
END;
CREATE TRIGGER shape_leave AFTER UPDATE OF phase, shape ON jobs
WHEN old.phase = 'queued' AND (new.phase <> 'queued' OR old.shape IS NOT new.shape) BEGIN
    UPDATE shapes SET queued = queued - 1 WHERE id = old.shape;
END;
";

/// The first queued job of each shape stands with it, so that shapes can be walked in that order. Ended jobs have none any more.
const HEADS: &str = "
DROP TRIGGER shape_insert;
DROP TRIGGER shape_enter;
DROP TRIGGER shape_leave;
DROP INDEX shapes_queued;
ALTER TABLE shapes DROP COLUMN queued;
ALTER TABLE shapes ADD COLUMN head_priority INTEGER;
ALTER TABLE shapes ADD COLUMN head_seq INTEGER;
UPDATE jobs SET shape = NULL WHERE phase = 'ended';
UPDATE shapes SET (head_priority, head_seq) =
    (SELECT priority, seq FROM jobs WHERE shape = shapes.id AND phase = 'queued' AND parked IS NULL
     ORDER BY priority DESC, seq LIMIT 1);
CREATE INDEX shape_heads ON shapes (head_priority DESC, head_seq) WHERE head_seq IS NOT NULL;
CREATE TRIGGER shape_insert AFTER INSERT ON jobs WHEN new.phase = 'queued' AND new.shape IS NOT NULL BEGIN
    UPDATE shapes SET head_priority = new.priority, head_seq = new.seq
    WHERE id = new.shape AND (head_seq IS NULL OR head_priority < new.priority
        OR (head_priority = new.priority AND head_seq > new.seq));
END;
CREATE TRIGGER shape_enter AFTER UPDATE OF phase, shape, parked ON jobs
WHEN new.phase = 'queued' AND new.parked IS NULL AND new.shape IS NOT NULL
    AND (old.phase <> 'queued' OR old.parked IS NOT NULL OR old.shape IS NOT new.shape) BEGIN
    UPDATE shapes SET head_priority = new.priority, head_seq = new.seq
    WHERE id = new.shape AND (head_seq IS NULL OR head_priority < new.priority
        OR (head_priority = new.priority AND head_seq > new.seq));
END;
CREATE TRIGGER shape_leave AFTER UPDATE OF phase, shape, parked ON jobs
WHEN old.phase = 'queued' AND old.parked IS NULL AND old.shape IS NOT NULL
    AND (new.phase <> 'queued' OR new.parked IS NOT NULL OR old.shape IS NOT new.shape) BEGIN
    UPDATE shapes SET (head_priority, head_seq) =
        (SELECT priority, seq FROM jobs WHERE shape = old.shape AND phase = 'queued' AND parked IS NULL
         ORDER BY priority DESC, seq LIMIT 1)
    WHERE id = old.shape AND head_seq = old.seq;
END;
";

/// A queued job with a moment is delayed: it belongs to no shape's order until the moment is taken away. A dead letter has a one.
const RETRIES: &str = "
DROP TRIGGER shape_enter;
DROP TRIGGER shape_leave;
DROP INDEX shape_order;
ALTER TABLE jobs ADD COLUMN not_before INTEGER;
ALTER TABLE jobs ADD COLUMN dead INTEGER;
CREATE INDEX delayed ON jobs (not_before) WHERE not_before IS NOT NULL AND parked IS NULL;
CREATE INDEX dead_letters ON jobs (dead) WHERE dead IS NOT NULL;
CREATE INDEX shape_order ON jobs (shape, priority DESC, seq)
    WHERE phase = 'queued' AND parked IS NULL AND not_before IS NULL;
CREATE TRIGGER shape_enter AFTER UPDATE OF phase, shape, parked, not_before ON jobs
WHEN new.phase = 'queued' AND new.parked IS NULL AND new.not_before IS NULL AND new.shape IS NOT NULL
    AND (old.phase <> 'queued' OR old.parked IS NOT NULL OR old.not_before IS NOT NULL OR old.shape IS NOT new.shape)
BEGIN
    UPDATE shapes SET head_priority = new.priority, head_seq = new.seq
    WHERE id = new.shape AND (head_seq IS NULL OR head_priority < new.priority
        OR (head_priority = new.priority AND head_seq > new.seq));
END;
CREATE TRIGGER shape_leave AFTER UPDATE OF phase, shape, parked, not_before ON jobs
WHEN old.phase = 'queued' AND old.parked IS NULL AND old.not_before IS NULL AND old.shape IS NOT NULL
    AND (new.phase <> 'queued' OR new.parked IS NOT NULL OR new.not_before IS NOT NULL OR old.shape IS NOT new.shape)
BEGIN
    UPDATE shapes SET (head_priority, head_seq) =
        (SELECT priority, seq FROM jobs WHERE shape = old.shape AND phase = 'queued' AND parked IS NULL
         AND not_before IS NULL ORDER BY priority DESC, seq LIMIT 1)
    WHERE id = old.shape AND head_seq = old.seq;
END;
INSERT INTO counts VALUES ('dead_letter', 0);
CREATE TRIGGER count_dead AFTER UPDATE OF dead ON jobs WHEN (old.dead IS NULL) <> (new.dead IS NULL) BEGIN
    UPDATE counts SET jobs = jobs + iif(new.dead IS NULL, -1, 1) WHERE phase = 'dead_letter';
END;
";

/// Values of secrets that came with a job. They go with its end.
const SEALED: &str = "
CREATE TABLE sealed (
    seq INTEGER NOT NULL REFERENCES jobs (seq),
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (seq, name)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER sealed_gone AFTER UPDATE OF phase ON jobs WHEN old.phase <> 'ended' AND new.phase = 'ended' BEGIN
    DELETE FROM sealed WHERE seq = new.seq;
END;
";

/// A job for several hosts has a child for each. A child can be delayed from the start.
const FAMILIES: &str = "
ALTER TABLE jobs ADD COLUMN parent TEXT;
ALTER TABLE jobs ADD COLUMN host TEXT;
CREATE INDEX children ON jobs (parent) WHERE parent IS NOT NULL;
DROP TRIGGER shape_insert;
CREATE TRIGGER shape_insert AFTER INSERT ON jobs
WHEN new.phase = 'queued' AND new.shape IS NOT NULL AND new.not_before IS NULL BEGIN
    UPDATE shapes SET head_priority = new.priority, head_seq = new.seq
    WHERE id = new.shape AND (head_seq IS NULL OR head_priority < new.priority
        OR (head_priority = new.priority AND head_seq > new.seq));
END;
";

/// Whose a job is that has not ended, so that each submitter's can be counted. Those of the first key are not, nor is one for several hosts:
/// the jobs for its hosts are.
const HELD: &str = "
ALTER TABLE jobs ADD COLUMN held_by TEXT;
UPDATE jobs SET held_by = CASE WHEN json_valid(state) THEN json_extract(state, '$.submitter') END
    WHERE phase <> 'ended' AND NOT EXISTS (SELECT 1 FROM jobs AS child WHERE child.parent = jobs.id);
UPDATE jobs SET held_by = NULL WHERE held_by = 'admin';
CREATE INDEX held ON jobs (held_by) WHERE held_by IS NOT NULL;
";

/// Ended jobs in the order in which they go when they are not kept for ever, and about what their output takes on the disk. What goes is
/// counted in the same transaction.
const ENDED: &str = "
ALTER TABLE jobs ADD COLUMN output_bytes INTEGER;
UPDATE jobs SET output_bytes = nullif(min(1152921504606846976,
        ifnull(json_extract(state, '$.log.stdout.bytes'), 0) + ifnull(json_extract(state, '$.log.stderr.bytes'), 0)
        + 32 * ifnull(json_extract(state, '$.log.frames'), 0)
        + ifnull((SELECT sum(ifnull(json_extract(value, '$.log.stdout.bytes'), 0)
            + ifnull(json_extract(value, '$.log.stderr.bytes'), 0) + 32 * ifnull(json_extract(value, '$.log.frames'), 0))
            FROM json_each(state, '$.past_tries')), 0)), 0)
    WHERE phase = 'ended' AND iif(json_valid(state), json_type(state) = 'object', 0);
CREATE INDEX ended_order ON jobs (ended_at, seq) WHERE phase = 'ended' AND parent IS NULL AND parked IS NULL;
CREATE INDEX output_order ON jobs (ended_at, seq) WHERE output_bytes IS NOT NULL;
INSERT INTO counts SELECT 'output_bytes', ifnull(sum(output_bytes), 0) FROM jobs;
CREATE TRIGGER count_output AFTER UPDATE OF output_bytes ON jobs WHEN old.output_bytes IS NOT new.output_bytes BEGIN
    UPDATE counts SET jobs = jobs + ifnull(new.output_bytes, 0) - ifnull(old.output_bytes, 0)
    WHERE phase = 'output_bytes';
END;
CREATE TRIGGER count_delete AFTER DELETE ON jobs BEGIN
    UPDATE counts SET jobs = jobs - 1 WHERE phase = old.phase;
    UPDATE counts SET jobs = jobs - 1 WHERE phase = 'dead_letter' AND old.dead IS NOT NULL;
    UPDATE counts SET jobs = jobs - old.output_bytes WHERE phase = 'output_bytes' AND old.output_bytes IS NOT NULL;
END;
";

const BEGINNING: &str = "
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    phase TEXT NOT NULL,
    priority INTEGER NOT NULL,
    token INTEGER,
    lease_until INTEGER,
    idempotency_key TEXT UNIQUE,
    state TEXT NOT NULL,
    parked TEXT
) STRICT;
CREATE TABLE specs (seq INTEGER PRIMARY KEY REFERENCES jobs (seq), spec TEXT NOT NULL) STRICT;
CREATE INDEX claim_order ON jobs (priority DESC, seq) WHERE phase = 'queued' AND parked IS NULL;
CREATE INDEX expiry ON jobs (lease_until) WHERE lease_until IS NOT NULL AND parked IS NULL;
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

const REVISIONS: &str = "ALTER TABLE jobs ADD COLUMN revision INTEGER NOT NULL DEFAULT 1";

/// Numbers of each day of UTC, kept by triggers in the transaction of what they count.
const DAYS: &str = "
CREATE TABLE days (
    day INTEGER PRIMARY KEY,
    submitted INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    timed_out INTEGER NOT NULL DEFAULT 0,
    canceled INTEGER NOT NULL DEFAULT 0,
    cell_error INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    run_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO days (day, submitted) SELECT submitted_at / 86400000, count(*) FROM jobs GROUP BY 1;
INSERT INTO days (day, succeeded, failed, timed_out, canceled, cell_error, lost, run_ms)
    SELECT ended_at / 86400000, sum(verdict IS 'succeeded'), sum(verdict IS 'failed'), sum(verdict IS 'timed_out'),
        sum(verdict IS 'canceled'), sum(verdict IS 'cell_error'), sum(verdict IS 'lost'),
        sum(max(0, ended_at - ifnull(started_at, ended_at)))
    FROM jobs WHERE phase = 'ended' AND ended_at IS NOT NULL GROUP BY 1
    ON CONFLICT (day) DO UPDATE SET succeeded = excluded.succeeded, failed = excluded.failed,
        timed_out = excluded.timed_out, canceled = excluded.canceled, cell_error = excluded.cell_error,
        lost = excluded.lost, run_ms = excluded.run_ms;
CREATE TRIGGER day_submitted AFTER INSERT ON jobs BEGIN
    INSERT INTO days (day, submitted) VALUES (new.submitted_at / 86400000, 1)
        ON CONFLICT (day) DO UPDATE SET submitted = submitted + 1;
END;
CREATE TRIGGER day_ended AFTER UPDATE OF phase ON jobs
WHEN old.phase <> 'ended' AND new.phase = 'ended' AND new.ended_at IS NOT NULL BEGIN
    INSERT INTO days (day, succeeded, failed, timed_out, canceled, cell_error, lost, run_ms)
        VALUES (new.ended_at / 86400000, new.verdict IS 'succeeded', new.verdict IS 'failed',
            new.verdict IS 'timed_out', new.verdict IS 'canceled', new.verdict IS 'cell_error', new.verdict IS 'lost',
            max(0, new.ended_at - ifnull(new.started_at, new.ended_at)))
        ON CONFLICT (day) DO UPDATE SET succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
            timed_out = timed_out + excluded.timed_out, canceled = canceled + excluded.canceled,
            cell_error = cell_error + excluded.cell_error, lost = lost + excluded.lost,
            run_ms = run_ms + excluded.run_ms;
END;
";

/// What lists show, filter and sort by moves out of the JSON documents.
const FOR_LISTS: &str = "
ALTER TABLE jobs ADD COLUMN name TEXT;
ALTER TABLE jobs ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN agent TEXT;
ALTER TABLE jobs ADD COLUMN submitted_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN started_at INTEGER;
ALTER TABLE jobs ADD COLUMN ended_at INTEGER;
ALTER TABLE jobs ADD COLUMN verdict TEXT;
ALTER TABLE jobs ADD COLUMN cause TEXT;
CREATE TABLE labels (
    seq INTEGER NOT NULL REFERENCES jobs (seq),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (seq, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX label_order ON labels (key, value, seq);
CREATE INDEX verdict_order ON jobs (verdict) WHERE verdict IS NOT NULL;
CREATE INDEX submitted ON jobs (submitted_at);
";

fn for_lists(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(FOR_LISTS)?;
    let mut next = db.prepare(
        "SELECT jobs.seq, state, spec FROM jobs LEFT JOIN specs ON specs.seq = jobs.seq \
         WHERE jobs.seq > ?1 ORDER BY jobs.seq LIMIT 1",
    )?;
    let mut fill = db.prepare(
        "UPDATE jobs SET name = ?2, attempt = ?3, agent = ?4, submitted_at = ?5, started_at = ?6, ended_at = ?7, \
         verdict = ?8, cause = ?9 WHERE seq = ?1",
    )?;
    let mut label = db.prepare("INSERT INTO labels (seq, key, value) VALUES (?1, ?2, ?3)")?;
    let mut last = 0;
    loop {
        let found = next.query_row([last], |row| {
            let json = |at| row.get_ref(at).ok().and_then(|text| serde_json::from_str(text.as_str().ok()?).ok());
            Ok((row.get::<_, i64>(0)?, json(1).unwrap_or(Value::Null), json(2).unwrap_or(Value::Null)))
        });
        let Some((seq, state, spec)) = found.optional()? else { return Ok(()) };
        last = seq;
        let cause = Some(&state["cause"]).filter(|cause| cause.is_object());
        fill.execute(params![
            seq,
            spec["name"].as_str(),
            state["attempt"].as_i64().unwrap_or(0),
            state["agent"].as_str(),
            state["submitted_at"].as_i64().unwrap_or(0),
            state["started_at"].as_i64(),
            state["ended_at"].as_i64(),
            cause.and_then(verdict_of),
            cause.map(Value::to_string)
        ])?;
        for (key, value) in spec["labels"].as_object().into_iter().flatten() {
            if let Some(value) = value.as_str() {
                label.execute(params![seq, key, value])?;
            }
        }
    }
}

/// The verdict of a cause, as version 1 had it.
fn verdict_of(cause: &Value) -> Option<&'static str> {
    Some(match cause["code"].as_str()? {
        "exit_code" if cause["exit_code"] == 0 => "succeeded",
        "exit_code"
        | "signal"
        | "out_of_memory"
        | "program_not_found"
        | "program_not_executable"
        | "workdir_unusable" => "failed",
        "timeout" => "timed_out",
        "canceled" => "canceled",
        "lease_expired" | "agent_lost" => "lost",
        _ => "cell_error",
    })
}
