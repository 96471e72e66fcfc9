//! Damage: whatever was done to the files, the journal opens, and nothing in it is other than what was put without its being told.

use super::tests::{NOW, folder};
use super::*;
use crate::journal::DamagedEntry;
use crate::journal::tests::{ended, entry};
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The bytes of a journal's file and of its log, and what was put into them.
struct Written {
    file: Vec<u8>,
    log: Vec<u8>,
    /// Every state of every entry.
    states: Vec<Entry>,
    /// What is in it at the end.
    last: Vec<Entry>,
}

/// A journal with entries in all stages, with specs of a line and of several pages.
fn written(closed: bool) -> Written {
    let (_dir, path) = folder();
    let (db, _) = open(&path, NOW).expect("makes");
    let mut states = Vec::new();
    let mut last: Vec<Entry> = Vec::new();
    let put = |entry: &Entry| rows::put(&db, &Record::of(entry).expect("JSON")).expect("writes");
    for n in 0..12 {
        let document = serde_json::json!({"preset": "bash", "script": "x".repeat(if n % 4 == 3 { 9000 } else { 20 })});
        let spec = crate::job::JobSpec::check(&document, &crate::job::SpecRules::default()).expect("valid");
        let intent = Entry { spec, ..entry(n, Stage::Intent) };
        let committed = Entry { stage: Stage::Committed, ..intent.clone() };
        let over = ended(&committed);
        let steps = [intent, committed, over];
        let made = &steps[..1 + n as usize % 3];
        made.iter().for_each(put);
        states.extend_from_slice(made);
        last.extend_from_slice(&made[made.len() - 1..]);
        if n == 6 {
            // What comes before it is in the file, what comes after it in the log.
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("moves the log into the file");
            let gone = last.remove(2);
            rows::remove(&db, &gone.key.backend, &gone.key.attempt.to_string()).expect("writes");
        }
    }
    let log = path.with_file_name("journal.db-wal");
    if closed {
        db.close().expect("closes");
        assert!(!log.exists());
    }
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    Written { file: read(&path), log: read(&log), states, last }
}

static CLOSED: LazyLock<Written> = LazyLock::new(|| written(true));
static OPEN: LazyLock<Written> = LazyLock::new(|| written(false));

/// Opens what is left of a journal, uses it, and opens it again.
fn used(file: &[u8], log: &[u8]) -> Result<(Vec<Entry>, Vec<Damage>), JournalError> {
    let (_dir, path) = folder();
    std::fs::write(&path, file).expect("writes");
    if !log.is_empty() {
        std::fs::write(path.with_file_name("journal.db-wal"), log).expect("writes");
    }
    let Opened { journal, damage } = SqliteJournal::open(&path, NOW)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
    let entries = runtime.block_on(async {
        let entries = journal.entries().await.expect("reads");
        let one = entry(99, Stage::Intent);
        journal.put(&one).await.expect("can be written");
        assert_eq!(journal.entries().await.expect("reads").last(), Some(&one));
        journal.remove(&one.key).await.expect("can be written");
        for answer in futures_util::future::join_all(entries.iter().map(|one| journal.put(one))).await {
            answer.expect("can be written");
        }
        assert_eq!(journal.entries().await.expect("reads"), entries);
        entries
    });
    for told in &damage {
        if let Damage::File { kept, .. } = told {
            assert!(kept.exists());
        }
    }
    drop(journal);
    let again = SqliteJournal::open(&path, NOW).expect("opens again");
    assert_eq!(again.damage, [], "told of once");
    assert_eq!(runtime.block_on(again.journal.entries()).expect("reads"), entries);
    Ok((entries, damage))
}

/// What holds after any damage.
fn judge(written: &Written, file: &[u8], log: &[u8]) {
    let (entries, damage) = match used(file, log) {
        Ok(opened) => opened,
        // A bit of the version: nobody can tell that from a file of the future.
        Err(error) if error.to_string().contains("schema version") => return,
        Err(error) => panic!("does not open: {error}"),
    };
    let whole = damage.iter().any(|told| matches!(told, Damage::File { .. }));
    let end = damage.iter().any(|told| matches!(told, Damage::End { .. }));
    let single =
        damage.iter().find_map(|told| if let Damage::Entries(single) = told { Some(single.len()) } else { None });
    if whole {
        assert_eq!((entries, damage.len()), (Vec::new(), 1));
        return;
    }
    let possible = if end { &written.states } else { &written.last };
    for entry in &entries {
        assert!(possible.contains(entry), "never put: {entry:?}; told: {damage:?}");
    }
    if !end {
        assert_eq!(entries.len() + single.unwrap_or(0), written.last.len(), "told: {damage:?}");
    }
}

fn flip(bytes: &mut [u8], bits: &[(prop::sample::Index, u8)]) {
    for (at, bit) in bits {
        bytes[at.index(bytes.len())] ^= 1 << bit;
    }
}

fn bits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bits_of_a_file_at_rest(bits in bits()) {
        let mut file = CLOSED.file.clone();
        flip(&mut file, &bits);
        judge(&CLOSED, &file, &[]);
    }

    #[test]
    fn bits_of_a_file_with_its_log(in_file in bits(), in_log in bits()) {
        let (mut file, mut log) = (OPEN.file.clone(), OPEN.log.clone());
        flip(&mut log, &in_log);
        judge(&OPEN, &file, &log);
        flip(&mut file, &in_file);
        judge(&OPEN, &file, &log);
    }

    #[test]
    fn a_file_that_was_cut_off(keep in 0f64..1.0) {
        let keep = |bytes: &[u8]| bytes[..(bytes.len() as f64 * keep) as usize].to_vec();
        judge(&CLOSED, &keep(&CLOSED.file), &[]);
        judge(&OPEN, &keep(&OPEN.file), &OPEN.log);
    }
}

#[test]
fn every_bit_of_the_header() {
    for at in 0..100 {
        let mut file = CLOSED.file.clone();
        file[at] ^= 1 << (at % 8);
        judge(&CLOSED, &file, &[]);
    }
}

#[test]
fn what_is_no_journal_is_moved_aside() {
    let other = {
        let (_dir, path) = folder();
        Connection::open(&path).expect("makes").execute_batch("CREATE TABLE theirs (x)").expect("writes");
        std::fs::read(&path).expect("reads")
    };
    for (file, log, reason) in [
        (&b""[..], &b""[..], "it is empty"),
        (b"", b"something", "its write-ahead log is there"),
        (b"not a database, but a text of some length", b"", "not a database"),
        (&other, b"", "another program"),
        (&CLOSED.file[..5000], b"", "malformed"),
    ] {
        let (_dir, path) = folder();
        std::fs::write(&path, file).expect("writes");
        if !log.is_empty() {
            std::fs::write(path.with_file_name("journal.db-wal"), log).expect("writes");
        }
        let Opened { journal, damage } = SqliteJournal::open(&path, NOW).expect("opens");
        let kept: PathBuf = path.with_file_name(format!("journal.db.damaged-{}", NOW.as_u64()));
        assert!(matches!(&damage[..], [Damage::File { kept: there, .. }] if *there == kept), "{damage:?}");
        let sentence = damage[0].to_string();
        assert!(sentence.contains(reason) && sentence.contains(&kept.display().to_string()), "{sentence}");
        assert_eq!(std::fs::read(&kept).expect("reads"), file, "kept as it was");
        drop(journal);
    }
}

/// Opens a journal of two entries to the first of which something was done, and says what is told of it.
fn told_of(change: &str) -> Vec<DamagedEntry> {
    let (_dir, path) = folder();
    let (db, _) = open(&path, NOW).expect("makes");
    let all = [ended(&entry(1, Stage::Intent)), entry(2, Stage::Committed)];
    all.iter().for_each(|one| rows::put(&db, &Record::of(one).expect("JSON")).expect("writes"));
    db.execute_batch(change).expect("changes");
    drop(db);
    let (db, damaged) = open(&path, NOW).expect("opens");
    let left: Vec<Entry> = rows::all(&db).expect("reads").into_iter().map(|row| row.expect("can be read")).collect();
    assert_eq!(left, all[1..], "{change}: the other one is there");
    let kept: (i64, i64, String) = db
        .query_row("SELECT at, seq, reason FROM damaged", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .expect("is kept");
    assert_eq!(kept, (i64::try_from(NOW.as_u64()).expect("fits"), 1, damaged[0].reason.clone()));
    let specs: i64 = db.query_row("SELECT count(*) FROM specs", [], |row| row.get(0)).expect("reads");
    assert_eq!(specs, 1);
    damaged
}

#[test]
fn an_entry_that_was_changed_is_set_aside_and_told_of() {
    for (change, reason) in [
        ("UPDATE entries SET stage = 'intent', report = NULL WHERE seq = 1", "checksum"),
        ("UPDATE entries SET token = token + 1 WHERE seq = 1", "checksum"),
        ("UPDATE entries SET generation = -1 WHERE seq = 1", "checksum"),
        ("UPDATE entries SET report = replace(report, '3', '4') WHERE seq = 1", "checksum"),
        ("UPDATE entries SET version = 9 WHERE seq = 1", "checksum"),
        ("UPDATE entries SET backend = 'other' WHERE seq = 1", "checksum"),
        ("UPDATE specs SET spec = replace(spec, 'true', 'rm') WHERE seq = 1", "spec's checksum"),
        ("UPDATE entries SET attempt = CAST(x'ff00' AS TEXT) WHERE seq = 1", "no text"),
        ("DELETE FROM specs WHERE seq = 1", "its spec is gone"),
    ] {
        let damaged = told_of(change);
        assert_eq!(damaged.len(), 1);
        assert!(damaged[0].reason.contains(reason), "{change}: {}", damaged[0].reason);
        let key = damaged[0].key();
        assert_eq!(key.is_none(), change.contains("ff00"));
        let sentence = Damage::Entries(damaged).to_string();
        assert!(sentence.starts_with("1 of the journal's entries") && sentence.contains(reason), "{sentence}");
    }
}

/// Makes the sums right again, as a program would that wrote such a record.
fn told_of_sound(change: impl Fn(&mut Record)) -> String {
    let (_dir, path) = folder();
    let (db, _) = open(&path, NOW).expect("makes");
    let mut record = Record::of(&ended(&entry(1, Stage::Intent))).expect("JSON");
    change(&mut record);
    rows::put(&db, &record).expect("writes");
    drop(db);
    let (_db, damaged) = open(&path, NOW).expect("opens");
    damaged.into_iter().map(|entry| entry.reason).collect()
}

#[test]
fn a_record_that_makes_no_sense_is_set_aside() {
    let with_spec = |record: &mut Record, spec: &str| {
        record.spec = spec.to_owned();
        record.spec_sum = record::sum(&[spec.as_bytes()]);
    };
    assert!(told_of_sound(|record| with_spec(record, "{\"image\": 7}")).contains("spec is not valid"));
    assert!(told_of_sound(|record| with_spec(record, "[")).contains("spec is not valid"));
    assert!(told_of_sound(|record| record.report = Some("{}".into())).contains("report is not valid"));
    assert!(told_of_sound(|record| record.report = None).contains("no stage `ended` without a report"));
    assert!(told_of_sound(|record| record.stage = "begun").contains("no stage `begun` with a report"));
    assert!(told_of_sound(|record| record.attempt = "x".into()).contains("is not an attempt id"));
    assert_eq!(told_of_sound(|_| {}), "");
}

#[test]
fn of_the_damaged_ones_the_newest_are_kept() {
    let (_dir, path) = folder();
    let (mut db, _) = open(&path, NOW).expect("makes");
    for round in 0..3u64 {
        db.execute_batch("BEGIN").expect("begins");
        for n in 0..400 {
            rows::put(&db, &Record::of(&entry(round * 400 + n, Stage::Intent)).expect("JSON")).expect("writes");
        }
        db.execute_batch("UPDATE entries SET generation = 5; COMMIT").expect("changes");
        let damaged = match rows::set_aside(&mut db, NOW).expect("sets aside") {
            Looked::Readable(damaged) => damaged,
            Looked::Newer(version) => panic!("{version}"),
        };
        assert_eq!(damaged.len(), 400);
        let sentence = Damage::Entries(damaged).to_string();
        assert!(sentence.ends_with("; and 395 more"), "{sentence}");
    }
    let (kept, oldest, newest): (i64, i64, i64) = db
        .query_row("SELECT count(*), min(token), max(token) FROM damaged", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .expect("reads");
    assert_eq!((kept, oldest, newest), (1000, 200, 1199));
}
