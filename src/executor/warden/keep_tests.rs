//! What becomes of a job's files when the store, or the time, is not what it should be.

use super::*;
use crate::blobs::BlobSettings;
use crate::executor::warden::verdict::with_artifacts;
use crate::job::{ByteSize, Cause, JobId, Millis, UnixMillis};
use crate::protocol::wire::{Entry, EntryKind, Stamp};
use std::collections::VecDeque;

const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 100_000;

struct Place {
    _dir: tempfile::TempDir,
    keep: Keep,
}

/// A store that takes so many bytes.
async fn place(bytes: u64) -> Place {
    let dir = tempfile::tempdir().expect("a folder");
    let (most, grace) = (ByteSize::new(bytes), Millis::from_secs(3600));
    let settings = BlobSettings { max_bytes: most, max_blob: most, grace };
    let store = BlobStore::open(dir.path(), settings).await.expect("opens");
    let limits = CollectLimits {
        max_size: ByteSize::from_mib(1),
        max_total: ByteSize::from_mib(100),
        max_count: 1000,
        timeout: Millis::from_secs(60),
    };
    Place { _dir: dir, keep: Keep { store, limits } }
}

fn rule(path: &str, required: bool) -> ArtifactRule {
    ArtifactRule { path: path.to_owned(), required, may_change: false, max_size: None, max_count: None }
}

fn keeper(place: &Place, required: bool) -> Keeper {
    Keeper::new(&place.keep, &[rule("**", required)], AttemptId::new(JobId::new(UnixMillis::now()), 1))
}

fn stamp() -> Stamp {
    Stamp { size: SIZE, mtime_ns: 5_000_000, inode: 7 }
}

/// Answers as a warden does that has `count` files, so many times at most.
async fn serve(keeper: &mut Keeper, count: u8, answers: usize) {
    serve_sized(keeper, count, answers, SIZE).await;
}

/// The same with files of this size. Says how many bytes it has sent.
async fn serve_sized(keeper: &mut Keeper, count: u8, answers: usize, size: u64) -> u64 {
    let (mut sent, stamp) = (0, || Stamp { size, ..stamp() });
    let mut asked: VecDeque<ToWarden> = keeper.begin().into();
    for _ in 0..answers {
        while asked.is_empty() && !keeper.is_done() {
            tokio::time::timeout(PATIENCE, keeper.changed()).await.expect("it goes on");
            asked.extend(keeper.ask());
        }
        if size != SIZE && !keeper.is_done() {
            // As a session does between two frames.
            let _ = tokio::time::timeout(Duration::ZERO, keeper.changed()).await;
        }
        match asked.pop_front() {
            None => return sent,
            Some(ToWarden::List { from }) => {
                let entry = |n: u8| Entry {
                    kind: EntryKind::File,
                    rules: 1,
                    mode: 0o644,
                    stamp: stamp(),
                    path: format!("file {n:03}").into_bytes(),
                };
                let page = Page { from, entries: (0..count).map(entry).collect(), end: true };
                asked.extend(keeper.page(page).expect("was asked for"));
            }
            Some(ToWarden::Read { number, offset, len, path }) => {
                // Each of its own: equal contents are one.
                let bytes = vec![path[path.len() - 1]; usize::try_from(len).expect("small")];
                sent += u64::from(len);
                let piece = Piece { number, offset, error: 0, last: true, stamp: stamp(), bytes };
                asked.extend(keeper.piece(piece).expect("was asked for"));
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    sent
}

#[tokio::test]
async fn what_the_store_refuses_is_not_carried_to_its_end() {
    let place = place(3 * SIZE).await;
    let mut keeper = keeper(&place, false);
    let size = 1 << 20;
    let sent = serve_sized(&mut keeper, 4, usize::MAX, size).await;
    // What is under way when it is refused comes: half of a file, at this size.
    assert!(keeper.is_done() && sent <= 4 * size * 3 / 4, "{sent} bytes were sent");
    let kept = keeper.wrap_up(None).await.artifacts;
    let codes: Vec<_> = kept.problems.iter().map(|problem| problem.code.as_str()).collect();
    assert_eq!(codes, ["not_stored"; 4], "each is told of, once");
}

#[tokio::test]
async fn a_store_without_room_holds_up_nothing_and_each_file_is_told_of() {
    let place = place(3 * SIZE).await;
    let mut keeper = keeper(&place, false);
    serve(&mut keeper, 60, usize::MAX).await;
    assert!(keeper.is_done() && keeper.held.load(Ordering::Relaxed) == 0);
    let kept = keeper.wrap_up(None).await;
    assert_eq!((kept.missing, kept.failed), (Vec::new(), None), "nothing is required");
    let artifacts = kept.artifacts;
    let told = artifacts.problems.len() as u64 + artifacts.more_problems;
    assert!(!artifacts.complete && told > 40, "{told}");
}

#[tokio::test]
async fn what_is_required_and_was_not_fetched_is_tried_again() {
    let well = || Cause::ExitCode { exit_code: 0 };
    // The list alone; the list and some of the files; nothing at all.
    for answers in [1, 4, 0] {
        for required in [true, false] {
            let place = place(100 * SIZE).await;
            let mut keeper = keeper(&place, required);
            serve(&mut keeper, 9, answers).await;
            let kept = keeper.wrap_up(Some("its time was over")).await;
            assert!(!kept.artifacts.complete && kept.missing.is_empty(), "{answers}");
            assert_eq!(kept.artifacts.problems[0].code, "not_fetched");
            let cause = with_artifacts(well(), &kept);
            assert_eq!(cause.code(), if required { "artifacts_failed" } else { "exit_code" }, "{answers}");
        }
    }
    // All files are there, and the list of them has no room.
    let place = place(9 * SIZE).await;
    let mut keeper = keeper(&place, true);
    serve(&mut keeper, 9, usize::MAX).await;
    assert!(keeper.is_done());
    let kept = keeper.wrap_up(None).await;
    assert_eq!(with_artifacts(well(), &kept).code(), "artifacts_failed");
    assert_eq!((kept.artifacts.count, kept.artifacts.list, kept.artifacts.complete), (0, None, false));
    // What the job itself did not do is not tried again, whatever else went wrong.
    let mut none = Keeper::new(&place.keep, &[rule("gone", true)], AttemptId::new(JobId::new(UnixMillis::now()), 1));
    serve(&mut none, 0, usize::MAX).await;
    assert_eq!(with_artifacts(well(), &none.wrap_up(None).await).code(), "artifacts_missing");
}
