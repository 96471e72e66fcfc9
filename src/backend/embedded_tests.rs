//! The embedded backend's rules that need no agent.

use super::embedded::expiry_pause;
use super::*;
use crate::job::JobId;
use crate::job::{ByteSize, Capacity, Cause, Cpus, LogTotals, Millis, SpecRules};
use crate::logstore::{FrameRef, LogError, LogStore, Stream};
use crate::protocol::record::Record;
use crate::queue::{AnyStore, MemoryStore, Submitted};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct Here {
    pub(super) backend: Arc<Embedded>,
    _dir: tempfile::TempDir,
}

impl Here {
    pub(super) fn new(lease: Millis) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
        let settings = QueueSettings { max_queued: 100, lease, max_attempts: 3, stuck_after: Millis::from_secs(600) };
        Self { backend: Embedded::new(AnyStore::Memory(MemoryStore::new()), logs, settings), _dir: dir }
    }

    pub(super) async fn submit(&self, more: &Value) -> JobId {
        self.submit_at(more, UnixMillis::now()).await
    }

    pub(super) async fn submit_at(&self, more: &Value, at: UnixMillis) -> JobId {
        let mut document = json!({"image": "x", "command": ["x"]});
        for (key, value) in more.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
        match self.backend.take_in(spec, None, (None, None), at).await.expect("submits") {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn claim(&self, agent: &str) -> (AttemptId, LeaseToken) {
        let claims = self.backend.claim(agent, &ask(Duration::ZERO), &CancellationToken::new()).await;
        let claim = claims.expect("claims").remove(0);
        (claim.attempt, claim.token)
    }

    /// Claims a job, and receives a byte of its output.
    async fn with_output(&self) -> (AttemptId, LeaseToken) {
        self.submit(&json!({})).await;
        let (attempt, token) = self.claim("a").await;
        assert_eq!(self.backend.open_log("a", attempt, token).await.expect("opens"), Some(0));
        let record = Record { seq: 1, time_us: 1, stream: 1, bytes: b"x" };
        self.backend.intake().append(attempt, &[record]).expect("appends");
        (attempt, token)
    }

    fn is_open(&self, attempt: AttemptId) -> bool {
        self.backend.logs().subscribe(attempt).is_some()
    }
}

pub(super) fn ask(wait: Duration) -> Ask {
    let free =
        Capacity { slots: 8, cpu: Cpus::from_milli(8000), memory: ByteSize::from_mib(8192), ..Capacity::default() };
    Ask { max: 1, free, wait, load: Load::default() }
}

/// The report of an agent whose log has the one byte.
fn report(attempt: AttemptId) -> Report {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = LogStore::open(dir.path(), 1 << 20).expect("opens").create(attempt).expect("creates");
    writer.append(&[FrameRef { seq: 1, stream: Stream::Stdout, time_us: 1, bytes: b"x", gap: 0 }]).expect("appends");
    Report {
        attempt,
        cause: Cause::ExitCode { exit_code: 0 },
        started_at: None,
        ended_at: UnixMillis::now(),
        usage: None,
        receipt: Vec::new(),
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals { complete: true, ..writer.finish() },
        results: crate::job::Results::default(),
        timings: Vec::new(),
    }
}

#[tokio::test]
async fn the_end_of_an_attempt_closes_its_log_and_older_ones_only() {
    let here = Here::new(Millis::from_secs(60));
    let (first, token) = here.with_output().await;
    here.backend.release("b", (first, token), "test", None).await.expect("answers");
    assert!(here.is_open(first), "a stranger's word closes nothing");
    here.backend.release("a", (first, token), "test", None).await.expect("releases");
    assert!(!here.is_open(first));
    let (second, token) = here.claim("a").await;
    here.backend.open_log("a", second, token).await.expect("opens");
    here.backend.close_logs(first).await;
    assert!(here.is_open(second), "it is not over");
}

#[tokio::test]
async fn a_log_that_was_opened_beside_the_report_is_closed_with_it() {
    let here = Here::new(Millis::from_secs(60));
    let (attempt, token) = here.with_output().await;
    // As when the stream opens it again behind the finish: the end is written down, and the log is open.
    here.backend.report("a", &report(attempt), token).await.expect("reports");
    assert!(here.is_open(attempt));
    let again = here.backend.report_from_afar("a", report(attempt), token).await.expect("answers");
    assert_eq!((again, here.is_open(attempt)), (Reported::AlreadyEnded, false));
}

#[tokio::test]
async fn a_report_that_comes_twice_at_once_is_not_taken_in_without_its_log() {
    let here = Here::new(Millis::from_secs(60));
    let (attempt, token) = here.with_output().await;
    here.backend.intake().finish(attempt).expect("ends");
    // The first copy of the report still ends the log.
    let ending = here.backend.logs().create(attempt).expect("goes on");
    let second = here.backend.report_from_afar("a", report(attempt), token).await;
    assert!(matches!(second, Err(IntakeError::Log(LogError::Busy(_)))), "{second:?}");
    ending.finish();
    let reported = here.backend.report_from_afar("a", report(attempt), token).await.expect("answers");
    let job = here.backend.get(attempt.job).await.expect("reads").expect("is there");
    assert_eq!((reported, job.log.complete, job.log.frames), (Reported::Applied, true, 1));
}

#[test]
fn expiry_sleeps_until_the_next_lease_is_due_and_does_not_spin_when_it_cannot_be_settled() {
    let now = UnixMillis::new(1_000_000);
    let long = Duration::from_secs(5);
    assert_eq!(expiry_pause(Some(UnixMillis::new(1_000_300)), false, now), Duration::from_millis(300));
    assert_eq!(expiry_pause(Some(UnixMillis::new(9_000_000)), false, now), long);
    assert_eq!(expiry_pause(Some(UnixMillis::new(1)), false, now), Duration::ZERO);
    assert_eq!(expiry_pause(Some(UnixMillis::new(1)), true, now), long);
    assert_eq!(expiry_pause(None, false, now), long);
}

#[tokio::test]
async fn an_order_names_the_holder_of_its_job() {
    let here = Here::new(Millis::from_secs(60));
    let mut orders = here.backend.orders();
    here.submit(&json!({})).await;
    here.submit(&json!({})).await;
    let (one, two) = (here.claim("a").await.0.job, here.claim("b").await.0.job);
    here.backend.cancel(one).await.expect("cancels");
    here.backend.cancel_many(vec![two], true).await.expect("cancels");
    for (job, holder, force) in [(one, "a", false), (two, "b", true)] {
        let wanted = Order::Cancel { job, attempt: None, holder: Some(holder.to_owned()), force };
        assert_eq!(orders.try_recv().expect("was told"), wanted);
    }
}

pub(super) fn who(memory: u64) -> Announcement {
    let capacity = Capacity { memory: ByteSize::from_mib(memory), ..ask(Duration::ZERO).free };
    Announcement { capacity, ..Announcement::default() }
}

/// Two agents wait; one keeps its room for a job that is too large for what is free, and is not to sleep on when that job is gone.
#[tokio::test(start_paused = true)]
async fn whoever_keeps_room_for_a_job_looks_again_when_it_leaves_the_queue() {
    for ending in ["canceled", "claimed", "taken over"] {
        let here = Here::new(Millis::from_secs(60));
        for name in ["full", "other"] {
            here.backend.roster().enter_local(name, who(8192), UnixMillis::now());
        }
        let long_ago = UnixMillis::new(UnixMillis::now().as_u64() - 60_000);
        let large = here.submit_at(&json!({"resources": {"memory": "4GiB"}, "priority": 5}), long_ago).await;
        let small = here.submit(&json!({"resources": {"memory": "64MiB"}})).await;
        let stop = CancellationToken::new();
        let waits = |agent: &'static str, mib: u64, seconds| {
            let (backend, stop) = (Arc::clone(&here.backend), stop.clone());
            let mut ask = ask(Duration::from_secs(seconds));
            ask.free.memory = ByteSize::from_mib(mib);
            crate::supervise::spawn("waits", async move { backend.claim(agent, &ask, &stop).await.expect("claims") })
        };
        let began = tokio::time::Instant::now();
        let first = waits("full", 1024, 600);
        // Both sleep: time only goes on when everybody waits for something.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!first.is_finished(), "{ending}: the room is kept");
        match ending {
            "canceled" => drop(here.backend.cancel(large).await.expect("cancels")),
            "claimed" => {
                let claims = waits("other", 8192, 0).await.expect("ends");
                assert_eq!(claims[0].attempt.job, large);
            }
            _ => {
                // More of it fits there; nothing behind it is for that one now, and everything for the first one.
                assert!(waits("other", 2048, 30).await.expect("ends").is_empty());
            }
        }
        let claims = first.await.expect("ends");
        assert_eq!(claims.iter().map(|claim| claim.attempt.job).collect::<Vec<_>>(), [small], "{ending}");
        assert!(began.elapsed() < Duration::from_secs(40), "{ending}: it slept on");
    }
}
