//! The schema as numbered steps: a new file goes through all of them, an older one through those it lacks.
//!
//! A step that was released is never edited, and never reads a job as the program of today does: what a row means may
//! change after it. A row that a step cannot read is passed over: it must not keep the others from going on.

use super::migrate::Step;

/// Every step; the version of a file is how many of them it has behind it.
pub(super) const STEPS: &[Step] = &[Step { what: "jobs, counts and tokens", run: |db| db.execute_batch(BEGINNING) }];

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
