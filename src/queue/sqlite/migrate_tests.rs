//! Files of older versions, kept as they were written, are opened as they would be on somebody's disk.

use super::open::open_with;
use super::steps::STEPS;
use super::*;
use crate::database::Step;
use crate::job::Verdict;
use crate::queue::tests::ask;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Versions that are out there. Those between two of them differ by steps that the older one goes through.
const OLD: [(usize, &str); 2] = [
    (1, include_str!("../../../tests/fixtures/queue/v1.sql")),
    (6, include_str!("../../../tests/fixtures/queue/v6.sql")),
];

/// A file of an older version in a folder of its own.
fn old(version: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let db = Connection::open(&path).expect("makes");
    let (_, text) = OLD.iter().find(|(of, _)| *of == version).expect("is kept");
    db.execute_batch(text).expect("fills");
    (dir, path)
}

/// Everything in a file, as text.
fn dump(path: &Path) -> Vec<String> {
    let db = Connection::open(path).expect("opens");
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("reads");
    let mut lines = vec![version.to_string()];
    let mut read = |query: &str| {
        let mut statement = db.prepare(query).expect("a query");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("reads");
        while let Some(row) = rows.next().expect("reads") {
            lines.push((0..columns).map(|n| format!("{:?}|", row.get_ref(n).expect("a value"))).collect());
        }
    };
    read("SELECT name, sql FROM sqlite_schema ORDER BY name");
    for table in ["jobs", "specs", "counts", "tokens"] {
        read(&format!("SELECT * FROM {table}"));
    }
    lines
}

/// A step that fails after it has changed something.
const FAILS: Step = Step {
    what: "a test's step",
    run: |db| {
        db.execute_batch("UPDATE jobs SET phase = 'ended'; CREATE TABLE half (x); INSERT INTO nowhere VALUES (1)")
    },
};

#[test]
fn a_step_that_fails_leaves_the_file_as_it_was_and_says_so() {
    let (_dir, path) = old(1);
    let before = dump(&path);
    for _ in 0..2 {
        let error = open_with(&path, &[Step { ..STEPS[0] }, FAILS]).expect_err("fails").to_string();
        for part in ["queue.db", "version 1", "a test's step", "nowhere", "nothing was changed"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        assert_eq!(dump(&path), before);
        assert_eq!(dump(&path.with_file_name("queue.db.v1.bak")), before, "the backup is whole");
    }
    SqliteStore::open(&path).expect("goes forward when the step does not fail");
}

#[test]
fn a_process_that_dies_in_the_middle_leaves_the_older_version() {
    let (dir, path) = old(1);
    let before = dump(&path);
    // What a kill in the middle of the step leaves behind is a copy of the files at that moment.
    let dies = Step {
        what: "a test's step",
        run: |db| {
            db.pragma_update(None, "cache_size", 1)?;
            db.execute_batch("UPDATE jobs SET phase = 'ended', parked = hex(randomblob(40000))")?;
            let path = PathBuf::from(db.path().expect("a file"));
            for suffix in ["", "-wal"] {
                let name = format!("queue.db{suffix}");
                std::fs::copy(path.with_file_name(&name), path.with_file_name(format!("dead.db{suffix}")))
                    .expect("copies");
            }
            Ok(())
        },
    };
    open_with(&path, &[Step { ..STEPS[0] }, dies]).expect("goes on after the copy");
    let dead = dir.path().join("dead.db");
    let written = std::fs::metadata(dir.path().join("dead.db-wal")).expect("there").len();
    assert!(written > 100_000, "the step was under way: {written}");
    assert_eq!(dump(&dead), before);
    SqliteStore::open(&dead).expect("goes forward the next time");
}

#[test]
fn a_backup_is_kept_private_and_made_once() {
    let (dir, path) = old(1);
    let before = dump(&path);
    let two = [Step { ..STEPS[0] }, Step { what: "nothing", run: |_| Ok(()) }];
    open_with(&path, &two).expect("goes forward");
    let kept = dir.path().join("queue.db.v1.bak");
    let about = std::fs::metadata(&kept).expect("is there");
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    assert_eq!(dump(&kept), before);
    open_with(&path, &two).expect("opens again");
    assert_eq!(std::fs::metadata(&kept).expect("there").modified().ok(), about.modified().ok(), "no new backup");
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("reads").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["queue.db", "queue.db.v1.bak"], "nothing half done is left");

    // The program of before finds a newer file, and says how to go back; that works.
    let error = open_with(&path, &STEPS[..1]).expect_err("newer").to_string();
    assert!(error.contains("schema version 2") && error.contains(&kept.display().to_string()), "{error}");
    std::fs::copy(&kept, &path).expect("copies");
    open_with(&path, &STEPS[..1]).expect("opens what it wrote");
}

#[test]
fn without_room_for_a_backup_nothing_is_done() {
    let (dir, path) = old(1);
    let before = dump(&path);
    // Where the backup is to be written lies a folder.
    std::fs::create_dir(dir.path().join("queue.db.v1.bak")).expect("makes");
    let error = open_with(&path, &[Step { ..STEPS[0] }, FAILS]).expect_err("fails").to_string();
    assert!(error.contains("no backup can be made") && error.contains("nothing was changed"), "{error}");
    assert_eq!(dump(&path), before);
}

#[tokio::test]
async fn shapes_of_before_learn_their_first_jobs() {
    let (_dir, path) = old(1);
    let db = open_with(&path, &STEPS[..5]).expect("opens");
    let name = Shape::of(&crate::queue::tests::spec(0, None), &Groups::new()).name();
    db.execute("INSERT INTO shapes (name) VALUES (?1), ('one that nobody has')", [name]).expect("writes");
    db.execute_batch("UPDATE jobs SET shape = 1; UPDATE routing SET groups = '{}'").expect("writes");
    drop(db);
    let store = SqliteStore::open(&path).expect("opens");
    let db = Connection::open(&path).expect("opens");
    let left: u32 = db.query_row("SELECT count(*) FROM shapes", [], |row| row.get(0)).expect("reads");
    let wrong: u32 = db.query_row(crate::queue::model_tests::WRONG_HEADS, [], |row| row.get(0)).expect("reads");
    assert_eq!((left, wrong), (1, 0));
    let claims = store.claim(ask(5, 0)).await.expect("claims").claims;
    let order: Vec<_> = claims.iter().map(|claim| (-claim.spec.priority(), claim.attempt.job)).collect();
    assert!(order.len() == 2 && order.is_sorted(), "{order:?}");
}

/// The file of version 1 has a job in every phase.
#[tokio::test]
async fn every_old_version_opens_with_all_its_jobs_and_goes_on() {
    for (version, _) in OLD {
        let (_dir, path) = old(version);
        let ids: Vec<JobId> = {
            let db = Connection::open(&path).expect("opens");
            let mut statement = db.prepare("SELECT id FROM jobs ORDER BY seq").expect("a query");
            let ids = statement.query_map([], |row| row.get::<_, String>(0)).expect("reads");
            ids.map(|id| id.expect("reads").parse().expect("an id")).collect()
        };
        let store = SqliteStore::open(&path).expect("opens");
        let mut jobs = Vec::new();
        for id in &ids {
            jobs.push(store.get(*id).await.expect("reads").expect("is there"));
        }
        let counts = store.counts().await.expect("counts");
        assert_eq!((jobs.len(), counts.queued, counts.claimed, counts.running, counts.ended), (14, 2, 2, 1, 7));
        let ended = &jobs[2];
        assert_eq!((ended.spec.name(), ended.history.len()), (Some("out-of-memory"), 6));
        let ending = ended.ending.as_ref().expect("has ended");
        assert_eq!((ending.cause.code(), ended.receipt.len(), ended.log.frames), ("out_of_memory", 2, 3));
        assert_eq!(ended.usage.as_ref().map(|usage| usage.wall), Some(Millis::new(1500)));

        // What lists filter by is there for the old jobs too.
        for (filter, wanted) in [
            (ListFilter { verdict: Some(Verdict::Canceled), ..ListFilter::default() }, vec![ids[11]]),
            (
                ListFilter { labels: vec![("team".into(), "red".into())], ..ListFilter::default() },
                vec![ids[12], ids[11]],
            ),
            (ListFilter { text: Some("überr".into()), ..ListFilter::default() }, vec![ids[12]]),
            (ListFilter { submitted_before: Some(jobs[1].submitted_at), ..ListFilter::default() }, vec![ids[0]]),
        ] {
            let found = store.list(ListFilter { limit: 100, ..filter.clone() }).await.expect("lists");
            assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), wanted, "{filter:?}");
        }
        let all = store.list(ListFilter { limit: 100, ..ListFilter::default() }).await.expect("lists");
        for (summary, job) in all.iter().rev().zip(&jobs) {
            assert_eq!(*summary, JobSummary::from(job));
        }

        let days = store.daily(0).await.expect("reads");
        let ended = crate::queue::Ended { succeeded: 1, failed: 2, timed_out: 1, canceled: 1, cell_error: 1, lost: 1 };
        assert_eq!((days.len(), days[0].submitted, days[0].ended), (1, 14, ended));
        assert_eq!(days[0].run, Millis::new(5 * 1600));

        // The holder of a running job goes on with the token it has, and what waits is claimed in its order.
        let now = UnixMillis::new(1_700_000_015_000);
        let running = AttemptId::new(jobs[7].id, 1);
        let holder = jobs[7].agent.as_deref().expect("has one");
        let renewed = store.renew(holder, &[(running, LeaseToken(8))], Millis::new(1000), now).await.expect("renews");
        assert!(matches!(renewed[..], [Renewal::Renewed { .. }]));
        let report = Report {
            attempt: running,
            cause: crate::job::Cause::ExitCode { exit_code: 0 },
            started_at: jobs[7].started_at,
            ended_at: now,
            usage: None,
            receipt: Vec::new(),
            given: std::collections::BTreeMap::new(),
            image: None,
            log: crate::job::LogTotals::default(),
            results: crate::job::Results::default(),
            timings: Vec::new(),
        };
        let completion = store.complete(holder, &report, LeaseToken(8), now, 3).await.expect("completes");
        assert!(matches!(completion, Completion::Applied(job) if job.spec.name() == Some("running")));
        let ask = ClaimAsk { agent: "b".into(), max: 5, lease: Millis::new(1000), now, ..ask(5, 0) };
        let claims = store.claim(ask).await.expect("claims").claims;
        let order: Vec<_> = claims.iter().map(|claim| (claim.attempt.job, claim.token)).collect();
        assert_eq!(order, [(ids[13], LeaseToken(12)), (ids[12], LeaseToken(13))]);
        let again = NewJob {
            id: JobId::new(now),
            spec: jobs[12].spec.clone(),
            at: now,
            retry_of: None,
            submitter: None,
            quota: None,
            family: Family::Alone,
        };
        assert!(matches!(store.submit(again, 100).await, Ok(Submitted::Existing(job)) if job.id == ids[12]));
        assert!(matches!(store.cancel(ids[5], now).await, Ok(Canceled::Requested(_))));
    }
}

#[tokio::test]
async fn jobs_that_cannot_be_read_do_not_stop_a_migration() {
    let (_dir, path) = old(1);
    let vandal = Connection::open(&path).expect("opens");
    vandal
        .execute_batch(
            "UPDATE jobs SET state = '{' WHERE seq = 1; UPDATE jobs SET state = '[]' WHERE seq = 2;
             UPDATE specs SET spec = '{\"name\": 7, \"labels\": [1]}' WHERE seq = 3; DELETE FROM specs WHERE seq = 4",
        )
        .expect("writes");
    drop(vandal);
    let store = SqliteStore::open(&path).expect("opens");
    let all = store.list(ListFilter { limit: 100, ..ListFilter::default() }).await.expect("lists");
    assert_eq!(all.len(), 14);
    for job in &all[10..] {
        store.get(job.id).await.expect_err("asked for by its id, it says what is wrong");
    }
    store.get(all[9].id).await.expect("reads").expect("is there");
}
