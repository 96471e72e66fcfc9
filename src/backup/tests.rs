//! Backups made while jobs are taken in, run and end; damaged ones; and what goes on after one was put back.

use super::*;
use crate::backend::{Ask, Embedded, QueueSettings};
use crate::blobs::{BlobSettings, BlobStore};
use crate::job::{
    AttemptId, ByteSize, Capacity, Cause, Cpus, Job, JobId, JobSpec, LogTotals, Millis, Phase, Report, Results,
    SpecRules,
};
use crate::logstore::{FrameRef, LogStore, Stream};
use crate::queue::{AnyStore, Claim, SqliteStore, Submitted};
use crate::supervise::{blocking, spawn};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const LEASE: Millis = Millis::from_secs(2);

struct Here {
    backend: Arc<Embedded>,
    blobs: BlobStore,
}

impl Here {
    async fn open(data: &Path) -> Self {
        let logs = LogStore::open(&data.join(LOGS), 1 << 20).expect("opens");
        let settings =
            QueueSettings { max_queued: 10_000, lease: LEASE, max_attempts: 3, stuck_after: Millis::from_secs(600) };
        let store = AnyStore::Sqlite(SqliteStore::open(&data.join(QUEUE)).expect("opens"));
        let mib = ByteSize::from_mib(64);
        let blobs = BlobSettings { max_bytes: mib, max_blob: mib, grace: Millis::from_secs(3600) };
        let blobs = BlobStore::open(&data.join("blobs"), blobs).await.expect("opens");
        std::fs::write(data.join(OWNER), "0123456789abcdef\n").expect("writes");
        let backend = Embedded::new(store, logs, settings);
        backend.keep_contents(blobs.clone(), Millis::from_secs(3600));
        Self { backend, blobs }
    }

    async fn submit(&self, name: &str) -> JobId {
        let digest = self.blobs.put_bytes(name.to_owned().into_bytes()).await.expect("is stored").digest;
        let spec = json!({"image": "x", "command": ["x"], "name": name, "inputs": [{"path": "x", "blob": digest}]});
        let spec = JobSpec::check(&spec, &SpecRules::default()).expect("valid");
        match self.backend.submit(spec, None).await.expect("submits") {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self, agent: &str, max: u32) -> Vec<Claim> {
        let (cpu, memory) = (Cpus::from_milli(1_000_000), ByteSize::from_mib(1 << 20));
        let free = Capacity { slots: 100, cpu, memory, ..Capacity::default() };
        let ask = Ask { max, free, wait: Duration::ZERO, load: crate::protocol::agent::Load::default() };
        self.backend.claim(agent, &ask, &CancellationToken::new()).await.expect("claims")
    }

    fn write(&self, attempt: AttemptId, text: &str) -> LogTotals {
        let mut writer = self.backend.logs().create(attempt).expect("creates");
        let frame = FrameRef { seq: 1, stream: Stream::Stdout, time_us: 1, bytes: text.as_bytes(), gap: 0 };
        writer.append(&[frame]).expect("appends");
        writer.finish()
    }

    async fn end(&self, agent: &str, claim: &Claim) {
        let log = self.write(claim.attempt, &claim.attempt.job.to_string());
        let report = Report {
            attempt: claim.attempt,
            cause: Cause::ExitCode { exit_code: 0 },
            started_at: None,
            ended_at: UnixMillis::now(),
            usage: None,
            receipt: Vec::new(),
            given: std::collections::BTreeMap::new(),
            image: None,
            log,
            results: Results::default(),
            timings: Vec::new(),
        };
        self.backend.report(agent, &report, claim.token).await.expect("is taken");
    }

    async fn get(&self, id: JobId) -> Job {
        self.backend.get(id).await.expect("answers").expect("is there")
    }
}

fn folders() -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let [data, backup, again] = ["data", "backup", "again"].map(|name| dir.path().join(name));
    std::fs::create_dir(&data).expect("makes");
    (dir, data, backup, again)
}

async fn made(data: &Path, backup: &Path) -> About {
    let (data, backup) = (data.to_owned(), backup.to_owned());
    blocking(move || create(&data, &backup, UnixMillis::now())).await.expect("is made")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_made_under_load_has_all_that_had_ended_before_it() {
    let (_dir, data, backup, again) = folders();
    let here = Arc::new(Here::open(&data).await);
    let mut before = Vec::new();
    for n in 0..20 {
        before.push(here.submit(&format!("before {n}")).await);
    }
    for claim in here.claim("a", 20).await {
        here.end("a", &claim).await;
    }
    let (stop, load) = (CancellationToken::new(), Arc::clone(&here));
    let stopped = stop.clone();
    let load = spawn("load", async move {
        let mut n = 0;
        while !stopped.is_cancelled() {
            load.submit(&format!("during {n}")).await;
            for claim in load.claim("a", 4).await {
                load.end("a", &claim).await;
            }
            n += 1;
        }
        n
    });
    let about = made(&data, &backup).await;
    stop.cancel();
    let during = load.await.expect("ends");
    assert!(during > 0 && about.ended >= 20, "{during} {about:?}");
    let verified = verify(&backup).expect("can be read");
    assert_eq!((verified.problems.as_slice(), verified.missing_contents), (&[][..], 0));
    assert_eq!(std::fs::metadata(backup.join(QUEUE)).expect("there").permissions().mode() & 0o777, 0o600);

    restore(&backup, &again).expect("is put back");
    let restored = Here::open(&again).await;
    for id in before {
        let job = restored.get(id).await;
        assert_eq!((job.phase, &job), (Phase::Ended, &here.get(id).await));
        let mut reader = restored.backend.logs().reader(AttemptId::new(id, 1)).expect("is there");
        assert_eq!(reader.read(1, 1000).expect("reads")[0].bytes, id.to_string());
    }
    let counts = restored.backend.counts().await.expect("counts");
    assert_eq!(counts.ended, about.ended);
}

#[tokio::test]
async fn a_flipped_byte_is_found_wherever_it_is_and_nothing_is_put_back() {
    let (_dir, data, backup, again) = folders();
    let here = Here::open(&data).await;
    here.submit("one").await;
    for claim in here.claim("a", 1).await {
        here.end("a", &claim).await;
    }
    made(&data, &backup).await;
    let files = walk(&backup).expect("reads");
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let path = backup.join(&file);
        let whole = std::fs::read(&path).expect("reads");
        if whole.is_empty() {
            continue;
        }
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        std::fs::write(&path, &flipped).expect("writes");
        let found = verify(&backup).map(|verified| verified.problems);
        assert!(found.as_ref().map_or(true, |problems| !problems.is_empty()), "{}: {found:?}", file.display());
        restore(&backup, &again).expect_err("is not put back");
        assert!(!again.exists());
        std::fs::write(&path, &whole).expect("writes");
    }
    assert_eq!(verify(&backup).expect("can be read").problems, [""; 0]);
    let content = walk(&backup.join(CONTENT)).expect("reads").remove(0);
    std::fs::remove_file(backup.join(CONTENT).join(content)).expect("removes");
    let problems = verify(&backup).expect("can be read").problems;
    assert!(problems.len() == 1 && problems[0].ends_with("it is missing"), "{problems:?}");
    std::fs::remove_file(backup.join(SUMS)).expect("removes");
    assert!(verify(&backup).expect_err("is none").to_string().contains("it is no backup"));
}

#[tokio::test]
async fn what_ran_is_tried_again_after_its_lease_and_claims_of_later_are_not_believed() {
    let (_dir, data, backup, again) = folders();
    let here = Here::open(&data).await;
    let [running, waiting] = [here.submit("running").await, here.submit("waiting").await];
    let held = here.claim("a", 1).await.remove(0);
    assert_eq!(held.attempt.job, running);
    here.write(held.attempt, "of then");
    // Between the copies of queue and output.
    let late = AttemptId::new(waiting, 1);
    here.write(late, "of a try that the queue does not know");
    let about = made(&data, &backup).await;
    assert_eq!((about.queued, about.held, about.ended), (1, 1, 0));
    // After the backup.
    let later = here.claim("a", 1).await.remove(0);
    assert_eq!(later.attempt, late);
    drop(here);

    restore(&backup, &again).expect("is put back");
    let restored = Here::open(&again).await;
    let frames = |of| restored.backend.logs().reader(of).ok().map(|mut log| log.read(1, 9).expect("reads").len());
    assert_eq!((frames(held.attempt), frames(late).unwrap_or_default()), (Some(1), 0));
    let stop = CancellationToken::new();
    let expiry = spawn("expiry", Arc::clone(&restored.backend).run_expiry(stop.clone()));
    // Who held a job at the backup still holds it, for a full term; who got one later does not.
    let renewed = restored.backend.renew("a", &[(held.attempt, held.token), (later.attempt, later.token)]).await;
    let renewed = renewed.expect("answers");
    assert!(matches!(renewed[0], crate::protocol::agent::Renewed::Renewed { .. }), "{renewed:?}");
    assert!(matches!(renewed[1], crate::protocol::agent::Renewed::Refused), "{renewed:?}");
    let next = restored.claim("b", 1).await.remove(0);
    assert_eq!(next.attempt.job, waiting);
    assert!(next.token > later.token, "a token is given once, also over a restore");
    // Nobody renews: the job is tried again, and its history says that a try was lost.
    let again_running = async {
        loop {
            // The other one's lease runs out as well.
            let claim = restored.claim("b", 1).await.pop();
            if let Some(claim) = claim.filter(|claim| claim.attempt.job == running) {
                return claim;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let claim = tokio::time::timeout(Duration::from_secs(30), again_running).await.expect("its lease runs out");
    assert_eq!(claim.attempt, AttemptId::new(running, 2));
    let job = restored.get(running).await;
    assert_eq!((job.past_tries.len(), job.past_tries[0].agent.as_str()), (1, "a"), "{job:?}");
    stop.cancel();
    expiry.await.expect("ends");
}

#[test]
fn it_goes_into_empty_folders_only() {
    let (_dir, data, backup, again) = folders();
    let now = UnixMillis::now();
    assert!(create(&data, &backup, now).expect_err("nothing is there").to_string().contains("no queue.db"));
    drop(SqliteStore::open(&data.join(QUEUE)).expect("opens"));
    std::fs::create_dir(&backup).expect("makes");
    std::fs::write(backup.join("x"), "x").expect("writes");
    assert!(create(&data, &backup, now).expect_err("is not empty").to_string().contains("not empty"));
    std::fs::remove_file(backup.join("x")).expect("removes");
    create(&data, &backup, now).expect("is made");
    std::fs::create_dir(&again).expect("makes");
    std::fs::write(again.join("x"), "x").expect("writes");
    assert!(restore(&backup, &again).expect_err("is not empty").to_string().contains("not empty"));
    // Names that lead outside are damage.
    let sums = std::fs::read_to_string(backup.join(SUMS)).expect("reads");
    std::fs::write(backup.join(SUMS), sums.replace(ABOUT, "../x")).expect("writes");
    assert!(verify(&backup).expect_err("is damaged").to_string().contains("damaged"));
}
