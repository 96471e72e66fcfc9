//! A plain list of frames beside the files: both must agree.

use super::*;
use crate::job::{JobId, UnixMillis};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

fn store() -> (tempfile::TempDir, LogStore, AttemptId) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let attempt = AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_000)), 1);
    (dir, store, attempt)
}

fn frame(seq: u64, bytes: &[u8]) -> FrameRef<'_> {
    let stream = if seq.is_multiple_of(3) { Stream::Stderr } else { Stream::Stdout };
    FrameRef { seq, stream, time_us: seq * 10, bytes, gap: 0 }
}

fn all(store: &LogStore, attempt: AttemptId, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut reader = store.reader(attempt).expect("is there");
    let (mut found, mut next) = (Vec::new(), from);
    loop {
        let frames = reader.read(next, 4096).expect("reads");
        let Some(last) = frames.last() else { return found };
        next = last.seq + 1;
        found.extend(frames.into_iter().map(|frame| (frame.seq, frame.bytes.to_vec())));
    }
}

#[test]
fn a_torn_end_is_cut_off_and_the_log_goes_on_with_the_same_hash() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    writer.append(&[frame(1, b"one"), frame(2, b"two")]).expect("appends");
    drop(writer);
    let path = segment_path(&store.dir(attempt), 1, "seg");
    let length = std::fs::metadata(&path).expect("there").len();
    OpenOptions::new().write(true).open(&path).expect("opens").set_len(length - 1).expect("torn");
    let mut writer = store.create(attempt).expect("goes on");
    assert_eq!(writer.totals().frames, 1);
    writer.append(&[frame(2, b"two"), frame(3, b"err")]).expect("appends");
    let totals = writer.finish();
    assert_eq!(all(&store, attempt, 1).len(), 3);
    assert_eq!((totals.stdout.bytes, totals.stderr.bytes), (6, 3));
    let one_shot: String = {
        use sha2::{Digest, Sha256};
        Sha256::digest(b"onetwo").iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(totals.stdout.sha256, one_shot);
}

#[test]
fn a_gap_is_a_frame_of_its_own_that_is_counted_and_is_no_output() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    let gap = |seq, stream, gap| FrameRef { seq, stream, time_us: 7, bytes: &[], gap };
    writer.append(&[frame(1, b"one"), gap(2, Stream::Stdout, 5), gap(3, Stream::Stderr, 1 << 40)]).expect("appends");
    let more: Vec<_> = (4..104).map(|seq| gap(seq, Stream::Stdout, 1)).collect();
    writer.append(&more).expect("appends");
    drop(writer);
    // Also when it is read back by another process.
    let totals = store.create(attempt).expect("goes on").finish();
    assert_eq!((totals.frames, totals.stdout.bytes, totals.stdout.dropped), (103, 3, 105));
    assert_eq!((totals.stderr.bytes, totals.stderr.dropped), (0, 1 << 40));
    let first = [("stdout", 3, 5), ("stderr", 0, 1 << 40), ("stdout", 3, 1)];
    let told = totals.gaps.iter().map(|gap| (gap.stream.as_str(), gap.at, gap.bytes));
    assert!(told.take(3).eq(first) && totals.gaps.len() == 64);
    let frames = store.reader(attempt).expect("reads").read(1, 1 << 20).expect("reads");
    assert_eq!((frames[1].gap, frames[1].bytes.len(), frames[2].stream), (5, 0, Stream::Stderr));
    assert_eq!(frames[1].as_ref().carry(), (3, b"5".as_slice().into()));
    for (number, bytes) in [(0, b"5".as_slice()), (5, b"5"), (3, b""), (3, b"0"), (4, b"-1"), (4, b"+1"), (4, b"\xff")]
    {
        assert!(FrameRef::carried(1, 0, number, bytes).is_err(), "{number} {bytes:?}");
    }
}

#[test]
fn a_repeat_is_passed_over_and_a_hole_refused_whole() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    writer.append(&[frame(1, b"a")]).expect("appends");
    assert_eq!(writer.append(&[frame(1, b"x")]).expect("a repeat").last_seq, 1);
    assert!(matches!(writer.append(&[frame(2, b"b"), frame(4, b"d")]), Err(LogError::Jump { wanted: 3, got: 4 })));
    assert_eq!(writer.append(&[frame(2, b"b")]).expect("appends").last_seq, 2);
    assert_eq!(all(&store, attempt, 1), [(1, b"a".to_vec()), (2, b"b".to_vec())]);
}

#[test]
fn a_flipped_bit_is_named_by_file_and_offset() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    writer.append(&[frame(1, b"aaaa"), frame(2, b"bbbb")]).expect("appends");
    let path = segment_path(&store.dir(attempt), 1, "seg");
    let file = OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_at(b"X", record::HEADER as u64 + 4 + record::HEADER as u64).expect("flips");
    let error = store.reader(attempt).expect("there").read(1, 1000).expect_err("damaged");
    assert!(matches!(error, LogError::Damaged { offset: 32, .. }), "{error}");
}

#[test]
fn a_follower_sees_the_tail_and_the_end() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    let tail = store.subscribe(attempt).expect("is live");
    writer.append(&[frame(1, b"a")]).expect("appends");
    assert_eq!(*tail.borrow(), Tail { last_seq: 1, ended: false });
    writer.finish();
    assert_eq!(*tail.borrow(), Tail { last_seq: 1, ended: true });
    assert!(store.subscribe(attempt).is_none());
}

fn job() -> AttemptId {
    AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_000)), 1)
}

/// A writer whose segments are small, so that a test has many.
fn small_segments(store: &LogStore, attempt: AttemptId) -> LogWriter {
    let dir = store.dir(attempt);
    make_dir(&dir).expect("makes");
    LogWriter::open(
        dir,
        1 << 20,
        100_000,
        Registration::new(attempt, &store.live).expect("registers"),
        store.room().subscribe(),
    )
    .expect("opens")
}

fn bit_flipped(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_at(&[byte[0] ^ 1], offset).expect("flips");
}

#[test]
fn damage_in_the_middle_is_reported_and_nothing_is_cut_off() {
    let (_dir, store, attempt) = store();
    let mut writer = small_segments(&store, attempt);
    for seq in 1..=40 {
        writer.append(&[frame(seq, &[7; 10_000])]).expect("appends");
    }
    drop(writer);
    let dir = store.dir(attempt);
    let sizes = || -> Vec<u64> {
        (1..=4).map(|number| std::fs::metadata(segment_path(&dir, number, "seg")).expect("there").len()).collect()
    };
    let before = sizes();
    // In an earlier segment, then in the middle of the last one.
    for (segment, offset) in [(2, 0), (4, record::HEADER as u64 + 10_000)] {
        let path = segment_path(&dir, segment, "seg");
        bit_flipped(&path, offset + record::HEADER as u64 + 5);
        match store.create(attempt).expect_err("damaged") {
            LogError::Damaged { path: named, offset: at, .. } => assert_eq!((named, at), (path.clone(), offset)),
            other => panic!("{other}"),
        }
        assert_eq!(sizes(), before);
        bit_flipped(&path, offset + record::HEADER as u64 + 5);
    }
    assert_eq!(store.create(attempt).expect("whole again").totals().frames, 40);
}

#[test]
fn zeros_after_a_power_loss_are_a_torn_end() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    writer.append(&[frame(1, b"one"), frame(2, b"two")]).expect("appends");
    drop(writer);
    let path = segment_path(&store.dir(attempt), 1, "seg");
    let length = std::fs::metadata(&path).expect("there").len();
    OpenOptions::new().write(true).open(&path).expect("opens").set_len(length + 5000).expect("grows");
    let mut writer = store.create(attempt).expect("goes on");
    writer.append(&[frame(3, b"three")]).expect("appends");
    drop(writer);
    assert_eq!(all(&store, attempt, 1).len(), 3);
}

#[test]
fn after_a_torn_end_the_index_leads_to_what_is_written_instead() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    for seq in 1..=30 {
        writer.append(&[frame(seq, &[1; 50_000])]).expect("appends");
    }
    drop(writer);
    // Far enough back that index entries pointed into what is lost.
    let path = segment_path(&store.dir(attempt), 1, "seg");
    OpenOptions::new().write(true).open(&path).expect("opens").set_len(700_000).expect("torn");
    let mut writer = store.create(attempt).expect("goes on");
    let first = writer.totals().frames + 1;
    for seq in first..=60 {
        writer.append(&[frame(seq, &[2; 30_000])]).expect("appends");
    }
    drop(writer);
    for from in 1..=60 {
        assert_eq!(store.reader(attempt).expect("there").read(from, 1).expect("reads")[0].seq, from);
    }
}

#[test]
fn a_lost_or_spoiled_index_costs_time_and_nothing_else() {
    let (_dir, store, attempt) = store();
    let mut writer = small_segments(&store, attempt);
    let frames: Vec<Vec<u8>> = (1..=60u8).map(|seq| vec![seq; 9_000]).collect();
    for (bytes, seq) in frames.iter().zip(1..) {
        writer.append(&[frame(seq, bytes)]).expect("appends");
    }
    drop(writer);
    let dir = store.dir(attempt);
    let reads = || {
        let mut reader = store.reader(attempt).expect("there");
        for from in [60, 1, 37] {
            assert_eq!(reader.read(from, 1).expect("reads")[0].bytes, frames[from as usize - 1]);
        }
        let stdout: Vec<u8> =
            frames.iter().zip(1u64..).filter(|(_, seq)| seq % 3 != 0).flat_map(|(b, _)| b.clone()).collect();
        assert_eq!(reader.read_bytes(Stream::Stdout, 300_000, 20_000).expect("reads"), &stdout[300_000..320_000]);
    };
    reads();
    bit_flipped(&segment_path(&dir, 3, "idx"), 3);
    OpenOptions::new().write(true).open(segment_path(&dir, 5, "idx")).expect("opens").set_len(7).expect("torn");
    reads();
    for number in 1..=5 {
        std::fs::remove_file(segment_path(&dir, number, "idx")).expect("removes");
    }
    reads();
    // Going on with the log makes them anew.
    assert_eq!(store.create(attempt).expect("goes on").totals().frames, 60);
    assert!(index::find(&dir, index::Target::Frame(60)).expect("finds").segment > 4);
    reads();
}

#[test]
fn a_frame_larger_than_a_record_is_refused_before_anything_is_written() {
    let (_dir, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    let large = vec![0; record::MAX_LEN + 1];
    let refused = writer.append(&[frame(1, b"a"), frame(2, &large)]);
    assert!(matches!(refused, Err(LogError::TooLarge { seq: 2, .. })));
    writer.append(&[frame(1, b"a"), frame(2, &large[..record::MAX_LEN])]).expect("the largest fits");
    assert_eq!(all(&store, attempt, 1).iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [1, record::MAX_LEN]);
}

#[test]
fn a_log_has_one_writer_and_is_removed_when_it_has_none() {
    use std::os::unix::fs::PermissionsExt;
    let (root, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    assert!(matches!(store.create(attempt), Err(LogError::Busy(named)) if named == attempt));
    writer.append(&[frame(1, b"a")]).expect("the first one is not disturbed");
    assert!(matches!(store.remove(attempt.job), Err(LogError::Busy(_))));
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&segment_path(&store.dir(attempt), 1, "seg")), 0o600);
    assert_eq!((mode(&store.dir(attempt)), mode(&store.job_dir(attempt.job))), (0o700, 0o700));
    drop(writer);
    let other = job();
    drop(store.create(other).expect("another job"));
    store.remove(attempt.job).expect("removes");
    store.remove(attempt.job).expect("again is fine");
    assert!(matches!(store.reader(attempt), Err(LogError::Missing(_))));
    assert!(store.reader(other).is_ok() && root.path().is_dir());
}

/// The reader meets every state of the file that there is between two appends, segment changes included.
#[test]
fn a_reader_beside_the_writer_sees_each_frame_once() {
    let (_dir, store, attempt) = store();
    let mut writer = small_segments(&store, attempt);
    let mut tail = store.subscribe(attempt).expect("is live");
    const LAST: u64 = 3_000;
    let writing = std::thread::spawn(move || {
        for seq in (1..=LAST).step_by(3) {
            let bytes: Vec<Vec<u8>> = (seq..seq + 3).map(|seq| seq.to_le_bytes().repeat(100)).collect();
            let frames: Vec<_> = bytes.iter().zip(seq..).map(|(bytes, seq)| frame(seq, bytes)).collect();
            writer.append(&frames).expect("appends");
        }
        writer.finish()
    });
    let mut reader = store.reader(attempt).expect("there");
    let mut next = 1;
    loop {
        let ended = tail.borrow_and_update().ended;
        let frames = reader.read(next, 10_000).expect("reads");
        for frame in &frames {
            assert_eq!((frame.seq, &frame.bytes[..]), (next, &next.to_le_bytes().repeat(100)[..]));
            next += 1;
        }
        if ended && frames.is_empty() {
            break;
        }
    }
    assert_eq!(next, LAST + 1);
    assert_eq!(writing.join().expect("writes").frames, LAST);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_range_of_any_log_is_what_was_written(
        sizes in prop::collection::vec(0usize..60_000, 1..60), batch in 1usize..7, from in 1u64..70, range in (0u64..400_000, 0usize..200_000),
    ) {
        let (_dir, store, attempt) = store();
        let model: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| (0..*size).map(|at| (at * 7 + n) as u8).collect()).collect();
        let mut writer = small_segments(&store, attempt);
        let frames: Vec<_> = model.iter().zip(1..).map(|(bytes, seq)| frame(seq, bytes)).collect();
        for chunk in frames.chunks(batch) {
            writer.append(chunk).expect("appends");
        }
        let wanted: Vec<_> = model.iter().cloned().zip(1u64..).filter(|(_, seq)| *seq >= from).map(|(bytes, seq)| (seq, bytes)).collect();
        prop_assert_eq!(all(&store, attempt, from), wanted);
        let stdout: Vec<u8> = frames.iter().filter(|frame| frame.stream == Stream::Stdout).flat_map(|frame| frame.bytes.to_vec()).collect();
        let (offset, len) = range;
        let start = (offset as usize).min(stdout.len());
        let end = (start + len).min(stdout.len());
        let read = store.reader(attempt).expect("there").read_bytes(Stream::Stdout, offset, len).expect("reads");
        prop_assert_eq!(read, &stdout[start..end]);
        // Going on with it finds the same log, and the same hash.
        let totals = writer.finish();
        prop_assert_eq!(small_segments(&store, attempt).finish(), totals);
    }
}

#[test]
fn one_attempts_log_goes_without_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let job = crate::job::JobId::new(crate::job::UnixMillis::now());
    let (first, second) = (AttemptId::new(job, 1), AttemptId::new(job, 2));
    let writer = store.create(first).expect("creates");
    assert!(matches!(store.remove_attempt(first), Err(LogError::Busy(_))), "it is being written");
    drop(writer);
    drop(store.create(second).expect("creates"));
    store.remove_attempt(first).expect("goes");
    assert!(store.reader(first).is_err() && store.reader(second).is_ok());
    store.remove_attempt(second).expect("goes");
    store.remove_attempt(second).expect("is gone already");
    assert!(!store.job_dir(job).exists());
}

#[test]
fn what_nobody_remembers_goes_with_its_folders() {
    let (_dir, store, kept) = store();
    let gone = AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_001)), 1);
    // Of a crash between the removal of the last log and that of its job's folder.
    let empty = store.job_dir(JobId::new(UnixMillis::new(1_700_000_000_002)));
    std::fs::create_dir_all(&empty).expect("makes");
    for attempt in [kept, gone] {
        drop(store.create(attempt).expect("creates"));
    }
    store.keep_only(&[kept].into()).expect("removes");
    assert!(store.reader(kept).is_ok());
    assert!(!store.job_dir(gone.job).exists() && !empty.exists());
}

#[test]
fn what_is_read_or_written_is_not_taken_away_for_want_of_room() {
    let (root, store, attempt) = store();
    let mut writer = store.create(attempt).expect("creates");
    writer.append(&[frame(1, b"a")]).expect("appends");
    assert!(matches!(store.remove_unread(attempt.job), Err(LogError::Busy(_))));
    writer.finish();
    let (mut one, other) = (store.reader(attempt).expect("reads"), store.reader(attempt).expect("reads"));
    drop(other);
    assert!(matches!(store.remove_unread(attempt.job), Err(LogError::Busy(_))));
    assert_eq!(one.read(1, 100).expect("is there").len(), 1);
    drop(one);
    store.remove_unread(attempt.job).expect("goes");
    store.remove_unread(attempt.job).expect("again is fine");
    assert!(matches!(store.reader(attempt), Err(LogError::Missing(_))));
    let leaving = root.path().join("leaving");
    assert_eq!(std::fs::read_dir(&leaving).expect("is there").count(), 0);
    // What a process has left there that died goes with the next start.
    std::fs::create_dir(leaving.join("x")).expect("makes");
    LogStore::open(root.path(), 1 << 20).expect("opens");
    assert!(!leaving.exists());
}
