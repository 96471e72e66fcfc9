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
    FrameRef { seq, stream, time_us: seq * 10, bytes }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_range_of_any_log_is_what_was_written(
        sizes in prop::collection::vec(0usize..60_000, 1..60), batch in 1usize..7, from in 1u64..70, range in (0u64..400_000, 0usize..200_000),
    ) {
        let (_dir, store, attempt) = store();
        let model: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| (0..*size).map(|at| (at * 7 + n) as u8).collect()).collect();
        let mut writer = store.create(attempt).expect("creates");
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
    }
}
