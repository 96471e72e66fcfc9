//! The journal in a file: what survives, how durable it is, and files of other versions.

use super::*;
use crate::job::{AttemptId, Cause, JobSpec, LeaseToken, LogTotals, Millis, Report, SpecRules, StreamTotals, Usage};
use crate::journal::tests::{ended, entry, keeps_entries};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Every version that was ever written, from 1.
const OLD: [&str; 1] = [include_str!("../../../tests/fixtures/journal/v1.sql")];

pub(super) const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);

pub(super) fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.db");
    (dir, path)
}

/// A journal with nothing to tell.
fn sound(path: &Path) -> SqliteJournal {
    let opened = SqliteJournal::open(path, NOW).expect("opens");
    assert_eq!(opened.damage, []);
    opened.journal
}

fn refusal(path: &Path) -> String {
    SqliteJournal::open(path, NOW).expect_err("is refused").to_string()
}

fn committed(entry: &Entry) -> Entry {
    Entry { stage: Stage::Committed, generation: entry.generation + 1, ..entry.clone() }
}

fn length(path: &Path, suffix: &str) -> u64 {
    std::fs::metadata(path.with_file_name(format!("journal.db{suffix}"))).map_or(0, |about| about.len())
}

#[tokio::test]
async fn it_keeps_entries() {
    let (_dir, path) = folder();
    keeps_entries(&sound(&path)).await;
}

#[tokio::test]
async fn after_a_boot_what_was_intended_may_have_run() {
    let (_dir, path) = folder();
    let open = |boot| SqliteJournal::open_after(&path, NOW, boot).expect("opens").journal;
    let all = [entry(1, Stage::Intent), committed(&entry(2, Stage::Intent)), ended(&entry(3, Stage::Intent))];
    let journal = open(Some("first"));
    for one in &all {
        journal.put(one).await.expect("writes");
    }
    // A process that dies, a kernel that does not say.
    for boot in [Some("first"), None] {
        assert_eq!(open(boot).entries().await.expect("reads"), all);
    }
    let doubted = [Entry { stage: Stage::Committed, ..all[0].clone() }, all[1].clone(), all[2].clone()];
    let journal = open(Some("second"));
    assert_eq!(journal.entries().await.expect("reads"), doubted);
    // What is intended now is known to be no more than that, until the next boot.
    let later = entry(4, Stage::Intent);
    journal.put(&later).await.expect("writes");
    assert_eq!(open(Some("second")).entries().await.expect("reads").last(), Some(&later));
    assert_eq!(open(Some("third")).entries().await.expect("reads").last().expect("is there").stage, Stage::Committed);
}

#[tokio::test]
async fn what_was_answered_is_there_for_the_next_process() {
    let (dir, path) = folder();
    let all = [entry(3, Stage::Intent), entry(2, Stage::Intent), entry(1, Stage::Intent), entry(4, Stage::Intent)];
    let wanted = [all[0].clone(), committed(&all[1]), ended(&all[2])];
    let journal = sound(&path);
    for one in all.iter().chain(&wanted) {
        journal.put(one).await.expect("writes");
    }
    journal.remove(&all[3].key).await.expect("writes");

    // What a kill leaves behind is a copy of the files at this moment.
    for suffix in ["", "-wal"] {
        let copy = dir.path().join(format!("killed.db{suffix}"));
        std::fs::copy(path.with_file_name(format!("journal.db{suffix}")), copy).expect("copies");
    }
    assert_eq!(sound(&dir.path().join("killed.db")).entries().await.expect("reads"), wanted);

    drop(journal);
    let journal = sound(&path);
    assert_eq!(journal.entries().await.expect("reads"), wanted);
    for one in &wanted {
        journal.remove(&one.key).await.expect("writes");
    }
    drop(journal);
    assert_eq!(sound(&path).entries().await.expect("reads"), []);
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn an_entry_is_known_by_its_backend_too() {
    let (_dir, path) = folder();
    let journal = sound(&path);
    let one = entry(1, Stage::Intent);
    let other = Entry { key: EntryKey { backend: "other".into(), ..one.key.clone() }, ..committed(&one) };
    journal.put(&one).await.expect("writes");
    journal.put(&other).await.expect("writes");
    assert_eq!(journal.entries().await.expect("reads"), [one.clone(), other.clone()]);
    journal.remove(&one.key).await.expect("writes");
    assert_eq!(journal.entries().await.expect("reads"), [other]);
}

#[tokio::test]
async fn a_spec_is_written_once_unless_it_is_another_one() {
    let (_dir, path) = folder();
    let journal = sound(&path);
    let document = |script: &str| {
        let document = json!({"preset": "bash", "script": script.repeat(400_000)});
        JobSpec::check(&document, &SpecRules::default()).expect("valid")
    };
    let intent = Entry { spec: document("a"), ..entry(1, Stage::Intent) };
    journal.put(&intent).await.expect("writes");
    let before = length(&path, "-wal");
    assert!(before > 400_000, "{before}");
    journal.put(&committed(&intent)).await.expect("writes");
    journal.put(&ended(&intent)).await.expect("writes");
    let grown = length(&path, "-wal") - before;
    assert!(grown < 40_000, "a few pages: {grown}");
    let changed = Entry { spec: document("b"), ..intent };
    journal.put(&changed).await.expect("writes");
    assert_eq!(journal.entries().await.expect("reads"), [changed]);
}

#[test]
fn only_an_end_waits_for_the_disk() {
    let intent = entry(1, Stage::Intent);
    let stages = [intent.stage.clone(), Stage::Committed, ended(&intent).stage];
    let wanted = [Durability::Written, Durability::Written, Durability::Synced];
    assert_eq!(stages.each_ref().map(durability), wanted);
}

#[tokio::test]
async fn many_at_once_are_all_kept() {
    let (_dir, path) = folder();
    let journal = sound(&path);
    let all: Vec<Entry> = (0..300).map(|n| entry(n, Stage::Intent)).collect();
    // Intents of some beside ends of others.
    let walk = all.iter().map(|one| async {
        journal.put(one).await?;
        journal.put(&ended(one)).await?;
        if one.token.0 % 2 == 0 { journal.remove(&one.key).await } else { Ok(()) }
    });
    for answer in futures_util::future::join_all(walk).await {
        answer.expect("writes");
    }
    let mut left = journal.entries().await.expect("reads");
    left.sort_by_key(|entry| entry.token.0);
    let wanted: Vec<Entry> = all.iter().filter(|one| one.token.0 % 2 == 1).map(ended).collect();
    assert_eq!(left, wanted);
}

#[test]
fn a_newer_schema_is_refused_with_the_way_back() {
    let (_dir, path) = folder();
    drop(open(&path, NOW).expect("makes"));
    let newer = Connection::open(&path).expect("opens");
    newer.execute_batch("CREATE TABLE future (x); PRAGMA user_version = 2").expect("writes");
    drop(newer);
    let error = refusal(&path);
    for part in ["journal.db", "schema version 2", "knows up to 1", "run the newer program again"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    // As if it had been taken forward from a file of ours.
    let backup = path.with_file_name("journal.db.v1.bak");
    std::fs::write(&backup, "").expect("writes");
    let error = refusal(&path);
    let copied = format!("cp --preserve {} {}`", backup.display(), path.display());
    assert!(error.contains(&copied) && error.contains("move"), "{error}");
}

#[test]
fn entries_of_a_newer_version_are_refused_and_left_alone() {
    let (_dir, path) = folder();
    let (db, _) = open(&path, NOW).expect("makes");
    let records = [entry(1, Stage::Intent), entry(2, Stage::Intent)].map(|one| Record::of(&one).expect("JSON"));
    records.iter().for_each(|record| rows::put(&db, record).expect("writes"));
    // One is damaged, the other one is sound and from the future.
    let sum = records[1].sum_as(2, VERSION + 1);
    db.execute("UPDATE entries SET stage = 'gone' WHERE seq = 1", []).expect("writes");
    db.execute("UPDATE entries SET version = version + 1, sum = ?1 WHERE seq = 2", [sum]).expect("writes");
    drop(db);
    let error = refusal(&path);
    for part in ["journal.db", "entries of version 2", "knows up to 1", "run the newer program", "move"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let db = Connection::open(&path).expect("opens");
    let left: i64 = db.query_row("SELECT count(*) FROM entries", [], |row| row.get(0)).expect("reads");
    assert_eq!(left, 2, "nothing was changed");
}

#[test]
fn a_folder_that_is_not_there_is_no_damage() {
    let (_dir, path) = folder();
    let error = refusal(&path.with_file_name("nowhere").join("journal.db"));
    assert!(error.contains("nowhere") && error.contains("check that the folder exists"), "{error}");
}

/// What the file of version 1 was made of.
pub(super) fn fixture() -> Vec<Entry> {
    let spec = |document| JobSpec::check(&document, &SpecRules::default()).expect("valid");
    let key = |backend: &str, attempt: &str| {
        let attempt: AttemptId = attempt.parse().expect("an attempt");
        EntryKey { backend: backend.into(), attempt }
    };
    let first = Entry {
        key: key("embedded", "018bcfe5-6be8-730e-b0a3-c55f4e8584bb/1/0"),
        token: LeaseToken(7),
        generation: 0,
        spec: spec(json!({"image": "busybox:1", "command": ["echo", "Grüße 'quoted' \"twice\"\n"]})),
        stage: Stage::Intent,
    };
    let second = Entry {
        key: key("eu-server", "018bcfe5-6fd0-7c92-bb14-eeb97f2a3fd3/12/0"),
        token: LeaseToken(u64::MAX),
        generation: 3,
        spec: spec(json!({
            "name": "nightly", "preset": "bash", "script": "echo $A\n", "workdir": "/srv", "env": {"A": "1", "B": ""},
            "stdin": "a\tb\n", "timeout": "90s", "resources": {"cpu": "0.5", "memory": "64MiB", "pids": 9},
            "labels": {"team": "blue"}, "requires": {"labels": {"zone": {"not": ["us"]}}, "apart": ["team"]},
            "priority": -7, "idempotency_key": "once"
        })),
        stage: Stage::Committed,
    };
    let report = Report {
        attempt: first.key.attempt,
        cause: Cause::OutOfMemory {
            limit: crate::job::ByteSize::from_mib(64),
            peak: crate::job::ByteSize::new(67_108_000),
        },
        started_at: Some(UnixMillis::new(1_700_000_000_100)),
        ended_at: UnixMillis::new(1_700_000_009_100),
        usage: Some(Usage {
            wall: Millis::new(9000),
            cpu_user_us: 1,
            cpu_system_us: 2,
            peak_memory_bytes: 3,
            peak_pids: 4,
            oom_kills: 5,
            leftover_processes: 6,
            on_cancel_exit_code: None,
            limits_met: Vec::new(),
            egress: None,
        }),
        receipt: vec![("uid".into(), "900001".into()), ("cap_eff".into(), "0".into())],
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals {
            frames: 3,
            stdout: StreamTotals { bytes: 6, dropped: 0, sha256: "ab".repeat(32) },
            stderr: StreamTotals::default(),
            gaps: Vec::new(),
            complete: true,
        },
        results: crate::job::Results::default(),
        timings: Vec::new(),
    };
    let third = Entry {
        key: EntryKey { backend: "eu-server".into(), ..first.key.clone() },
        generation: u32::MAX,
        stage: Stage::Ended(Box::new(report.clone())),
        ..first.clone()
    };
    let mismatch = |key: &str| crate::job::MismatchLine { key: key.into(), wanted: "0".into(), got: "3".into() };
    let never_ran = Report {
        attempt: second.key.attempt,
        cause: Cause::CellWeaker { mismatches: vec![mismatch("cap_eff"), mismatch("seccomp")] },
        started_at: None,
        usage: None,
        receipt: Vec::new(),
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals::default(),
        results: crate::job::Results::default(),
        timings: Vec::new(),
        ..report
    };
    let fourth = Entry {
        key: EntryKey { backend: "embedded".into(), ..second.key.clone() },
        stage: Stage::Ended(Box::new(never_ran)),
        ..second.clone()
    };
    vec![first, second, third, fourth]
}

#[tokio::test]
async fn every_old_version_opens_with_all_its_entries_and_goes_on() {
    for old in OLD {
        let (_dir, path) = folder();
        let db = Connection::open(&path).expect("makes");
        db.execute_batch(old).expect("fills");
        drop(db);
        let journal = sound(&path);
        let wanted = fixture();
        assert_eq!(journal.entries().await.expect("reads"), wanted);
        let over = ended(&wanted[0]);
        journal.put(&over).await.expect("writes");
        journal.remove(&wanted[1].key).await.expect("writes");
        assert_eq!(journal.entries().await.expect("reads"), [&over, &wanted[2], &wanted[3]].map(Entry::clone));
    }
}
