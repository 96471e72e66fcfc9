//! What goes when what has ended is not kept for ever, and what stays.

use super::*;
use crate::audit::Audit;
use crate::job::{ByteSize, Capacity, Cause, Cpus, Job, JobId, JobSpec, LogTotals, Millis, SpecRules, UnixMillis};
use crate::logstore::{FrameRef, LogStore, Stream};
use crate::queue::{AnyStore, ListFilter, MemoryStore, SqliteStore, Store, Submitted};
use crate::telemetry::Metrics;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const DAY: Millis = Millis::from_secs(24 * 3600);

struct Kept {
    backend: Arc<Embedded>,
    metrics: Arc<Metrics>,
    _dir: tempfile::TempDir,
}

impl Kept {
    fn new(settings: RetentionSettings, file: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(&dir.path().join("logs"), 1 << 20).expect("opens");
        let queue = QueueSettings { max_queued: 10_000, lease: DAY, max_attempts: 3, stuck_after: DAY };
        let store = if file {
            AnyStore::Sqlite(SqliteStore::open(&dir.path().join("queue.db")).expect("opens"))
        } else {
            AnyStore::Memory(MemoryStore::new())
        };
        let (backend, metrics) = (Embedded::new(store, logs, queue), Arc::new(Metrics::new()));
        backend.keep_for(settings, Arc::clone(&metrics), Audit::default());
        Self { backend, metrics, _dir: dir }
    }

    async fn submit(&self, more: &Value) -> JobId {
        let mut document = json!({"image": "x", "command": ["x"]});
        for (key, value) in more.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        if more.get("target").is_some() {
            document.as_object_mut().expect("a map").remove("image");
        }
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
        match self.backend.submit(spec, None).await.expect("submits") {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    /// Runs what waits to its end, each with so much output.
    async fn run_all(&self, output: usize) -> Vec<JobId> {
        let free = Capacity {
            slots: 100,
            cpu: Cpus::from_milli(1_000_000),
            memory: ByteSize::from_mib(1 << 20),
            ..Capacity::default()
        };
        let mut ended = Vec::new();
        loop {
            let ask = Ask { max: 16, free, wait: std::time::Duration::ZERO, load: Default::default() };
            let claims = self.backend.claim("a", &ask, &CancellationToken::new()).await.expect("claims");
            if claims.is_empty() {
                return ended;
            }
            for claim in claims {
                let log = self.write(claim.attempt, output);
                let report = crate::job::Report {
                    log,
                    ..super::retry_tests::report(claim.attempt, Cause::ExitCode { exit_code: 0 })
                };
                self.backend.report("a", &report, claim.token).await.expect("is taken");
                ended.push(claim.attempt.job);
            }
        }
    }

    fn write(&self, attempt: crate::job::AttemptId, output: usize) -> LogTotals {
        let mut writer = self.backend.logs().create(attempt).expect("creates");
        let bytes = vec![b'x'; output];
        writer
            .append(&[FrameRef { seq: 1, stream: Stream::Stdout, time_us: 1, bytes: &bytes, gap: 0 }])
            .expect("writes");
        writer.finish()
    }

    async fn one(&self, output: usize) -> JobId {
        let id = self.submit(&json!({})).await;
        assert_eq!(self.run_all(output).await, [id]);
        id
    }

    async fn get(&self, id: JobId) -> Option<Job> {
        self.backend.get(id).await.expect("answers")
    }

    fn has_output(&self, id: JobId) -> bool {
        self.backend.logs().reader(crate::job::AttemptId::new(id, 1)).is_ok()
    }

    async fn look(&self, at: UnixMillis) -> Removed {
        let would = self.backend.remove_old(at, true).await.expect("looks");
        let removed = self.backend.remove_old(at, false).await.expect("removes");
        if removed.held == 0 {
            assert_eq!(would, removed, "a dry look says what a real one does");
        }
        removed
    }

    fn counted(&self, what: &str) -> u64 {
        self.metrics.retention_removed_total.with_label_values(&[what]).get()
    }
}

fn keep(jobs: Option<Millis>, output: Option<Millis>) -> RetentionSettings {
    RetentionSettings { jobs_keep: jobs, output_keep: output, ..RetentionSettings::default() }
}

#[tokio::test]
async fn without_bounds_everything_stays_and_what_has_not_ended_always_does() {
    for file in [false, true] {
        let kept = Kept::new(RetentionSettings::default(), file);
        let old = kept.one(10).await;
        assert_eq!(kept.look(UnixMillis::new(u64::MAX >> 12)).await, Removed::default());
        assert!(kept.get(old).await.is_some() && kept.has_output(old));

        let kept = Kept::new(keep(Some(DAY), Some(DAY)), file);
        let waits = kept.submit(&json!({})).await;
        assert_eq!(kept.look(UnixMillis::new(u64::MAX >> 12)).await, Removed::default());
        assert!(kept.get(waits).await.is_some());
    }
}

#[tokio::test]
async fn output_goes_before_its_job_and_the_job_says_so() {
    for file in [false, true] {
        let kept = Kept::new(keep(Some(DAY.and(DAY)), Some(DAY)), file);
        let id = kept.one(1000).await;
        let ended = kept.get(id).await.and_then(|job| job.ended_at).expect("has ended");
        let just_before = UnixMillis::new(ended.as_u64() + DAY.as_u64() - 1);
        assert_eq!(kept.look(just_before).await, Removed::default());
        let removed = kept.look(ended.plus(DAY)).await;
        assert_eq!((removed.jobs, removed.outputs, removed.bytes), (0, 1, 1032));
        let job = kept.get(id).await.expect("stays");
        assert_eq!((job.output_gone_at, job.log.stdout.bytes), (Some(ended.plus(DAY)), 1000));
        assert!(!kept.has_output(id));
        assert_eq!(kept.look(ended.plus(DAY)).await, Removed::default(), "once");
        let removed = kept.look(ended.plus(DAY.and(DAY))).await;
        assert_eq!((removed.jobs, removed.outputs, removed.bytes), (1, 0, 0));
        assert!(kept.get(id).await.is_none());
        assert_eq!((kept.counted("jobs"), kept.counted("outputs")), (1, 1));
        assert_eq!(kept.backend.counts().await.expect("counts").ended, 0);
    }
}

#[tokio::test]
async fn by_size_the_oldest_ends_go_first_and_only_as_many_as_needed() {
    for file in [false, true] {
        let most = RetentionSettings {
            jobs_max: Some(30),
            output_max: Some(ByteSize::new(5 * 1032)),
            ..RetentionSettings::default()
        };
        let kept = Kept::new(most, file);
        let mut ids = Vec::new();
        for _ in 0..40 {
            ids.push(kept.one(1000).await);
        }
        let removed = kept.look(UnixMillis::now()).await;
        assert_eq!((removed.jobs, removed.outputs), (10, 25));
        for (n, id) in ids.iter().enumerate() {
            assert_eq!((kept.get(*id).await.is_some(), kept.has_output(*id)), (n >= 10, n >= 35), "job {n}");
        }
        assert_eq!(kept.look(UnixMillis::now()).await, Removed::default());
    }
}

#[tokio::test]
async fn output_that_is_being_read_stays_until_it_is_not() {
    for file in [false, true] {
        let kept = Kept::new(keep(Some(DAY), None), file);
        let (read, other) = (kept.one(10).await, kept.one(10).await);
        let reader = kept.backend.logs().reader(crate::job::AttemptId::new(read, 1)).expect("reads");
        let late = UnixMillis::now().plus(DAY.and(DAY));
        let removed = kept.look(late).await;
        assert_eq!((removed.jobs, removed.held), (1, 1));
        assert!(kept.get(read).await.is_some() && kept.get(other).await.is_none());
        drop(reader);
        assert_eq!(kept.look(late).await.jobs, 1);
    }
}

#[tokio::test]
async fn a_family_goes_together_and_not_before_its_parent_has_ended() {
    for file in [false, true] {
        let kept = Kept::new(keep(Some(DAY), Some(DAY)), file);
        let hosts: Vec<String> = (0..40).map(|n| format!("h{n}")).collect();
        let parent = kept.submit(&json!({"target": {"hosts": hosts}})).await;
        // Their ends are all told; the parent's own is the work of another task, which does not run here.
        assert_eq!(kept.run_all(10).await.len(), 40);
        let late = UnixMillis::now().plus(DAY.and(DAY));
        assert_eq!(kept.look(late).await, Removed::default(), "the parent goes on");
        // In the millisecond of its last child.
        let filter = ListFilter { parent: Some(parent), limit: 40, ..ListFilter::default() };
        let children = kept.backend.store.list(filter).await.expect("lists");
        let last = children.iter().filter_map(|child| child.ended_at).max().expect("have ended");
        let settled = kept.backend.store.settle(parent, false, last).await.expect("settles");
        assert!(kept.get(parent).await.is_some_and(|job| job.ending.is_some()), "{settled:?}");
        assert_eq!(kept.look(late).await.jobs, 41);
        assert!(kept.get(parent).await.is_none());
        assert_eq!(kept.backend.counts().await.expect("counts").ended, 0);
    }
}

#[tokio::test]
async fn a_key_is_free_again_when_its_job_has_gone() {
    let kept = Kept::new(keep(Some(DAY), None), true);
    let first = kept.submit(&json!({"idempotency_key": "k", "labels": {"a": "b"}})).await;
    kept.run_all(1).await;
    kept.look(UnixMillis::now().plus(DAY.and(DAY))).await;
    let second = kept.submit(&json!({"idempotency_key": "k", "labels": {"a": "b"}})).await;
    assert!(first != second && kept.get(first).await.is_none());
}
