//! Which contents stay, and until when.

use super::embedded_tests::Here;
use super::*;
use crate::blobs::{BlobSettings, BlobStore};
use crate::job::{Artifacts, AttemptId, ByteSize, Cause, Digest, JobId, Millis, SpecRules};
use crate::queue::{StoreError, Submitted};
use serde_json::json;

const KEEP: Millis = Millis::from_secs(24 * 3600);
const GRACE: Millis = Millis::from_secs(3600);

struct Kept {
    here: Here,
    blobs: BlobStore,
    _dir: tempfile::TempDir,
}

impl Kept {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let settings =
            BlobSettings { max_bytes: ByteSize::from_mib(64), max_blob: ByteSize::from_mib(64), grace: GRACE };
        let blobs = BlobStore::open(dir.path(), settings).await.expect("opens");
        let here = Here::new(Millis::from_secs(3600));
        here.backend.keep_contents(blobs.clone(), KEEP);
        Self { here, blobs, _dir: dir }
    }

    async fn put(&self, content: &'static [u8]) -> Digest {
        self.blobs.put_bytes(content).await.expect("is stored").digest
    }

    async fn has(&self, digest: Digest) -> bool {
        self.blobs.find(digest).await.expect("answers").is_some()
    }

    async fn look(&self, at: UnixMillis) {
        let contents = self.here.backend.contents.get().expect("was given");
        self.here.backend.look_after(contents, &mut String::new(), at).await.expect("looks");
    }
}

fn needs(digest: Digest) -> serde_json::Value {
    json!({"inputs": [{"path": "x", "blob": digest}]})
}

#[tokio::test]
async fn a_content_stays_while_a_job_needs_it_and_some_time_after() {
    let kept = Kept::new().await;
    let [needed, stray] = [kept.put(b"needed").await, kept.put(b"stray").await];
    let job = kept.here.submit(&needs(needed)).await;
    let now = UnixMillis::now();
    let after = |more: Millis| now.plus(more).plus(Millis::from_secs(60));
    kept.look(after(KEEP.and(KEEP))).await;
    assert!(kept.has(needed).await && !kept.has(stray).await);
    let (attempt, token) = kept.here.claim("a").await;
    let ended = super::retry_tests::report(attempt, Cause::ExitCode { exit_code: 0 });
    kept.here.backend.report("a", &ended, token).await.expect("is taken");
    let ended = kept.here.backend.get(job).await.expect("answers").expect("is there").ended_at.expect("has ended");
    let after = |more: Millis| ended.plus(more);
    kept.look(after(GRACE.and(GRACE))).await;
    assert!(kept.has(needed).await, "for who runs it again");
    // Asking for it was a sign of interest.
    kept.look(after(KEEP.and(GRACE).and(GRACE))).await;
    assert!(!kept.has(needed).await);
}

#[tokio::test]
async fn a_reference_whose_job_never_came_is_let_go() {
    let kept = Kept::new().await;
    let digest = kept.put(b"x").await;
    let now = UnixMillis::now();
    kept.blobs.refer(&format!("job:{}", JobId::new(now)), &[digest]).await.expect("is there");
    kept.look(now).await;
    assert_eq!(kept.blobs.holders("job:", "", 10).await.expect("answers").len(), 1, "it may be about to come");
    kept.look(now.plus(GRACE)).await;
    assert_eq!(kept.blobs.holders("job:", "", 10).await.expect("answers").len(), 0);
}

#[tokio::test]
async fn a_job_that_is_not_taken_in_needs_nothing_and_one_without_its_content_is_not_taken_in() {
    let kept = Kept::new().await;
    let digest = kept.put(b"x").await;
    let spec = |key: &str, digest: Digest| {
        let document = json!({"image": "x", "command": ["x"], "idempotency_key": key,
            "inputs": [{"path": "x", "blob": digest}]});
        JobSpec::check(&document, &SpecRules::default()).expect("valid")
    };
    for created in [true, false] {
        let submitted = kept.here.backend.submit(spec("one", digest), None).await.expect("answers");
        assert_eq!(matches!(submitted, Submitted::Created(_)), created);
    }
    kept.look(UnixMillis::now()).await;
    assert_eq!(kept.blobs.holders("job:", "", 10).await.expect("answers").len(), 1);
    let missing = kept.here.backend.submit(spec("two", Digest::of(b"never")), None).await;
    assert!(matches!(&missing, Err(StoreError::Contents(reason)) if reason.contains("is not there")), "{missing:?}");
    let many = vec![spec("one", digest), spec("three", digest)];
    kept.here.backend.submit_all(many, None, None, true).await.expect("answers");
    kept.look(UnixMillis::now()).await;
    assert_eq!(kept.blobs.holders("job:", "", 10).await.expect("answers").len(), 2);
}

#[tokio::test]
async fn what_is_known_of_inputs_is_filled_in_and_asked_for_once() {
    let kept = Kept::new().await;
    let archive = crate::archive::crafted::zstd(&crate::archive::crafted::tar(|tar| tar.file("a/b", &[1; 5000])));
    let digest = kept.blobs.put_bytes(archive).await.expect("is stored").digest;
    let document = json!({"image": "x", "command": ["x"], "inputs": [{"path": ".", "blob": digest, "kind": "archive", "entries": 7}]});
    let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
    for _ in 0..2 {
        let known = kept.here.backend.know_inputs(spec.clone()).await.unwrap_or_else(|unready| panic!("{unready:?}"));
        assert_eq!(known.inputs_need(), (8192, 2));
        assert!(kept.blobs.find(digest).await.expect("answers").is_some_and(|blob| blob.note.is_some()));
    }
}

#[tokio::test]
async fn the_files_of_a_try_that_was_never_told_of_go_when_their_time_is_over() {
    let kept = Kept::new().await;
    let bounds = (ByteSize::from_mib(32), ByteSize::from_mib(32));
    kept.here.backend.keep_artifacts(kept.blobs.within(bounds.0, bounds.1), KEEP);
    let job = kept.here.submit(&json!({})).await;
    let (attempt, token) = kept.here.claim("a").await;
    let [file, stray] = [kept.put(b"file").await, kept.put(b"stray").await];
    let nobodys = AttemptId::new(JobId::new(UnixMillis::now()), 1);
    kept.blobs.refer(&Artifacts::holder(attempt), &[file]).await.expect("is there");
    kept.blobs.refer(&Artifacts::holder(nobodys), &[stray]).await.expect("is there");
    let after = |more: Millis| UnixMillis::now().plus(more).plus(GRACE).plus(Millis::from_secs(60));
    kept.here.backend.end_strays().await.expect("looks");
    kept.look(after(KEEP)).await;
    assert!(kept.has(file).await, "its job goes on");
    assert!(!kept.has(stray).await, "of a job that is not there");
    // The end is told of without the files, as after a loss of them.
    let ended = super::retry_tests::report(attempt, Cause::ExitCode { exit_code: 0 });
    kept.here.backend.report("a", &ended, token).await.expect("is taken");
    let found = kept.here.backend.get(job).await.expect("answers").expect("is there");
    assert!(!kept.here.backend.artifacts_are_over(&found));
    kept.here.backend.end_strays().await.expect("looks");
    kept.look(after(Millis::new(0))).await;
    assert!(kept.has(file).await, "for its time");
    kept.look(after(KEEP.and(GRACE))).await;
    assert!(!kept.has(file).await);
}
