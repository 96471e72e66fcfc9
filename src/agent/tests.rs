//! The whole agent on an in-memory queue and scripted cells, under a paused clock: minutes pass in milliseconds.

use super::*;
use crate::backend::simulated::Simulated;
use crate::backend::{Backend, Embedded, Local, QueueSettings, Waited};
use crate::executor::scripted::{Scripted, line};
use crate::job::{AttemptId, ByteSize, Capacity, Cause, Cpus, Job, JobId, JobSpec, Millis, Phase, SpecRules, Verdict};
use crate::journal::{Journal, MemoryJournal};
use crate::logstore::LogStore;
use crate::queue::{AnyStore, Canceled, MemoryStore, SqliteStore, Submitted};
use crate::telemetry::Metrics;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod draining;
mod sweeping;

struct Stage {
    backend: Arc<Embedded>,
    executor: Scripted,
    journal: MemoryJournal,
    drain: CancellationToken,
    force: CancellationToken,
    agent: JoinHandle<Drained>,
    status: tokio::sync::watch::Receiver<Status>,
    /// Of the process that is there now.
    metrics: Arc<Metrics>,
    how: (u32, bool),
    _dir: tempfile::TempDir,
}

fn stage(slots: u32) -> Stage {
    stage_on(slots, |_| AnyStore::Memory(MemoryStore::new()))
}

fn stage_on(slots: u32, store: impl FnOnce(&std::path::Path) -> AnyStore) -> Stage {
    stage_with(slots, false, store)
}

fn stage_with(slots: u32, handover: bool, store: impl FnOnce(&std::path::Path) -> AnyStore) -> Stage {
    let dir = tempfile::tempdir().expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let queue = QueueSettings {
        max_queued: 100,
        lease: Millis::from_secs(60),
        max_attempts: 3,
        stuck_after: Millis::from_secs(600),
    };
    let backend = Embedded::new(store(dir.path()), logs, queue);
    let (executor, journal) = (Scripted::default(), MemoryJournal::default());
    let (drain, force) = (CancellationToken::new(), CancellationToken::new());
    let how = (slots, handover);
    let (agent, status, metrics) = start(how, &backend, &executor, &journal, (&drain, &force));
    Stage { backend, executor, journal, drain, force, agent, status, metrics, how, _dir: dir }
}

/// A process of the agent.
fn start(
    (slots, handover): (u32, bool),
    backend: &Arc<Embedded>,
    executor: &Scripted,
    journal: &MemoryJournal,
    (drain, force): (&CancellationToken, &CancellationToken),
) -> (JoinHandle<Drained>, tokio::sync::watch::Receiver<Status>, Arc<Metrics>) {
    let settings = AgentSettings {
        // It has not the preset that it says: what a backend hands out by mistake is refused by the agent.
        announcement: crate::protocol::agent::Announcement {
            presets: vec!["none".into()],
            capacity: Capacity {
                slots,
                cpu: Cpus::from_milli(4000),
                memory: ByteSize::from_mib(1024),
                ..Capacity::default()
            },
            ..Default::default()
        },
        capacity: Capacity {
            slots,
            cpu: Cpus::from_milli(4000),
            memory: ByteSize::from_mib(1024),
            ..Capacity::default()
        },
        claim_batch: 16,
        grace: Millis::from_secs(2),
        handover,
        drain_timeout: Duration::from_secs(30),
        reconnect: Duration::from_secs(30),
        keep: None,
        output_share: ByteSize::from_mib(32),
        gate: crate::admission::Gate::default(),
        secrets: crate::secrets::Providers::default(),
        disk: (std::path::PathBuf::new(), ByteSize::new(0)),
        sweep: SweepTimes::default(),
        outside: crate::egress::Outside::default(),
        traces: crate::telemetry::Traces::default(),
    };
    let local: Arc<dyn Backend> = Arc::new(Local::new(Arc::clone(backend), "a"));
    let (logs, metrics) = (backend.logs().clone(), Arc::new(Metrics::new()));
    let (executor, journal) = (Arc::new(executor.clone()), Arc::new(journal.clone()));
    let agent = Agent::new(vec![local], executor, journal, logs, settings, Arc::clone(&metrics));
    let status = agent.status();
    (crate::supervise::spawn("agent", agent.run(drain.clone(), force.clone())), status, metrics)
}

impl Stage {
    async fn submit(&self, command: &[&str]) -> JobId {
        // What goes wrong with a cell is to be seen as it was told.
        self.submit_with(json!({"image": "x", "command": command, "retry": {"infrastructure": 0}})).await
    }

    async fn submit_with(&self, document: Value) -> JobId {
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
        match self.backend.submit(spec, None).await.expect("submits") {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    async fn ended(&self, id: JobId) -> Job {
        match self.backend.wait(id, Duration::from_secs(600)).await.expect("waits") {
            Waited::Ended(job) => *job,
            other => panic!("it never ends: {other:?}"),
        }
    }

    async fn cause(&self, command: &[&str]) -> Cause {
        let id = self.submit(command).await;
        self.ended(id).await.ending.expect("has ended").cause
    }

    async fn phase(&self, id: JobId, phase: Phase) {
        let mut changes = self.backend.changes();
        while self.backend.get(id).await.expect("reads").expect("is there").phase < phase {
            let _ = changes.recv().await;
        }
    }

    fn log(&self, id: JobId) -> Vec<u8> {
        let mut reader = self.backend.logs().reader(AttemptId::new(id, 1)).expect("has a log");
        reader.read(1, 1 << 20).expect("reads").iter().flat_map(|frame| frame.bytes.to_vec()).collect()
    }

    /// The process dies, as by `kill -9`, and another one is started.
    async fn crash(&mut self) {
        self.agent.abort();
        if !self.agent.is_finished() {
            let _ = (&mut self.agent).await;
        }
        let tokens = (&self.drain, &self.force);
        (self.agent, self.status, self.metrics) = start(self.how, &self.backend, &self.executor, &self.journal, tokens);
    }

    /// Drains, and checks that nothing is left.
    async fn close(self) -> Drained {
        self.drain.cancel();
        let drained = self.agent.await.expect("ends");
        assert!(self.journal.entries().await.expect("reads").is_empty(), "entries are left");
        let world = self.executor.world();
        assert!(world.cells.is_empty(), "left behind: {:?}", world.cells);
        assert!(world.started.values().all(|times| *times == 1), "started twice: {:?}", world.started);
        drained
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_and_its_output_is_byte_exact() {
    let stage = stage(2);
    let id = stage.submit(&["echo", "500"]).await;
    let job = stage.ended(id).await;
    assert_eq!(job.ending.expect("ended").verdict, Verdict::Succeeded);
    let wanted: Vec<u8> = (1..=500).flat_map(line).collect();
    assert_eq!(stage.log(id), wanted);
    assert!(job.log.complete && job.log.frames == 500 && job.log.stdout.bytes == wanted.len() as u64);
    let phases: Vec<_> = job.history.iter().map(|event| event.phase).collect();
    assert_eq!(phases, [Phase::Queued, Phase::Claimed, Phase::Preparing, Phase::Running, Phase::Ended]);
    assert_eq!(job.receipt, [("scripted".to_owned(), "1".to_owned())]);
    assert_eq!(stage.close().await, Drained::Clean);
}

#[tokio::test(start_paused = true)]
async fn links_that_break_in_the_middle_of_frames_lose_nothing() {
    let stage = stage(1);
    let id = stage.submit(&["cut", "41"]).await;
    let job = stage.ended(id).await;
    assert_eq!(job.ending.as_ref().map(|ending| &ending.cause), Some(&Cause::ExitCode { exit_code: 0 }));
    assert_eq!(stage.log(id), (1..=41).flat_map(line).collect::<Vec<u8>>());
    assert!(job.log.complete);
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_frames_are_passed_over() {
    let stage = stage(1);
    let id = stage.submit(&["garbage"]).await;
    assert_eq!(stage.ended(id).await.ending.expect("ended").verdict, Verdict::Succeeded);
    assert_eq!(stage.log(id), (1..=3).flat_map(line).collect::<Vec<u8>>());
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn every_way_a_cell_can_fail_has_its_own_cause() {
    let stage = stage(4);
    assert!(matches!(stage.cause(&["weak"]).await, Cause::CellWeaker { .. }));
    assert!(matches!(stage.cause(&["mute"]).await, Cause::WardenFault { .. }));
    assert!(matches!(stage.cause(&["forge"]).await, Cause::WardenFault { .. }));
    let id = stage.submit_with(json!({"image": "missing", "command": ["x"]})).await;
    assert!(matches!(stage.ended(id).await.ending.expect("ended").cause, Cause::ImageMissing { .. }));
    let id = stage.submit_with(json!({"preset": "none", "command": ["x"]})).await;
    assert!(matches!(stage.ended(id).await.ending.expect("ended").cause, Cause::PresetMissing { .. }));
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_no_agent_can_run_waits_and_says_why() {
    let stage = stage(1);
    let explained = async |id| stage.backend.explain(id).await.expect("reads").expect("is there");
    let large = stage.submit_with(json!({"image": "x", "command": ["x"], "resources": {"memory": "2GiB"}})).await;
    let elsewhere = json!({"image": "x", "command": ["x"], "requires": {"labels": {"zone": "eu"}}});
    let elsewhere = stage.submit_with(elsewhere).await;
    // Behind the two that wait, and not delayed by them.
    let fits = stage.submit(&["echo", "1"]).await;
    assert_eq!(stage.ended(fits).await.ending.expect("ended").verdict, Verdict::Succeeded);
    let told = explained(large).await;
    assert_eq!((told.code.as_str(), told.ahead), ("no_agent_suits", Some(0)), "{told:?}");
    assert!(told.reason.contains("2GiB of memory are asked for, and it has 1GiB in all"), "{}", told.reason);
    let told = explained(elsewhere).await;
    assert!(told.reason.contains("it has no label zone, and eu is required"), "{}", told.reason);
    let running = stage.submit(&["sleep", "500000"]).await;
    stage.phase(running, Phase::Running).await;
    let behind = stage.submit(&["echo", "1"]).await;
    assert_eq!(explained(behind).await.code, "no_room");
    assert!(explained(running).await.reason.contains("agent a has it"));
    assert!(explained(fits).await.reason.contains("it has ended"));
    for id in [running, behind, large, elsewhere] {
        stage.backend.cancel(id).await.expect("cancels");
    }
    stage.ended(running).await;
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_works_before_during_and_after() {
    let stage = stage(1);
    let running = stage.submit(&["sleep", "500000"]).await;
    stage.phase(running, Phase::Running).await;
    let queued = stage.submit(&["echo", "1"]).await;
    assert!(matches!(stage.backend.cancel(queued).await, Ok(Canceled::Ended(_))));
    assert!(matches!(stage.backend.cancel(running).await, Ok(Canceled::Requested(_))));
    let job = stage.ended(running).await;
    assert_eq!(job.ending.expect("ended").cause, Cause::Canceled);
    assert!(matches!(stage.backend.cancel(running).await, Ok(Canceled::AlreadyEnded(_))));
    // In the moment of its claim, which is over before the agent has seen the answer.
    let claimed = stage.submit(&["sleep", "500000"]).await;
    stage.backend.cancel(claimed).await.expect("cancels");
    assert_eq!(stage.ended(claimed).await.ending.expect("ended").cause, Cause::Canceled);
    // While its cell is being made.
    let early = stage.submit(&["sleep", "500000"]).await;
    stage.phase(early, Phase::Preparing).await;
    stage.backend.cancel(early).await.expect("cancels");
    assert_eq!(stage.ended(early).await.ending.expect("ended").cause, Cause::Canceled);
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_hears_no_stop_is_killed_from_outside() {
    let stage = stage(1);
    let id = stage.submit(&["deaf"]).await;
    stage.phase(id, Phase::Running).await;
    let asked = tokio::time::Instant::now();
    stage.backend.cancel(id).await.expect("cancels");
    let job = stage.ended(id).await;
    assert_eq!(job.ending.expect("ended").cause, Cause::Canceled);
    // Grace and slack, and not much more.
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_cancel_waits_for_no_grace_also_after_a_plain_one() {
    let stage = stage(1);
    let force = async |id| stage.backend.cancel_if(id, None, true).await.expect("cancels");
    for plain_first in [false, true] {
        let id = stage.submit(&["deaf"]).await;
        stage.phase(id, Phase::Running).await;
        let asked = tokio::time::Instant::now();
        if plain_first {
            stage.backend.cancel(id).await.expect("cancels");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(matches!(force(id).await, Canceled::Requested(_)));
        assert_eq!(stage.ended(id).await.ending.expect("ended").cause, Cause::Canceled);
        // Less than the grace and its slack, which are 7 s together.
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    }
    // One that hears it ends at once; and in every moment before it runs.
    let slow = stage.submit(&["sleep", "500000"]).await;
    stage.phase(slow, Phase::Running).await;
    let asked = tokio::time::Instant::now();
    force(slow).await;
    assert_eq!(stage.ended(slow).await.ending.expect("ended").cause, Cause::Canceled);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    for phase in [Phase::Queued, Phase::Preparing] {
        let id = stage.submit(&["deaf"]).await;
        stage.phase(id, phase).await;
        force(id).await;
        assert_eq!(stage.ended(id).await.ending.expect("ended").cause, Cause::Canceled);
    }
    let ids = [stage.submit(&["deaf"]).await, stage.submit(&["deaf"]).await];
    stage.phase(ids[0], Phase::Running).await;
    let asked = tokio::time::Instant::now();
    stage.backend.cancel_many(ids.to_vec(), true).await.expect("cancels");
    for id in ids {
        assert_eq!(stage.ended(id).await.ending.expect("ended").cause, Cause::Canceled);
    }
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_deaf_job_ends_by_its_timeout() {
    let stage = stage(1);
    let id = stage.submit_with(json!({"image": "x", "command": ["deaf"], "timeout": "3s"})).await;
    assert!(matches!(stage.ended(id).await.ending.expect("ended").cause, Cause::Timeout { .. }));
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn leases_of_long_jobs_are_renewed_and_no_more_run_than_fit() {
    let stage = stage(2);
    let expiry = crate::supervise::spawn("expiry", Arc::clone(&stage.backend).run_expiry(stage.force.clone()));
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(stage.submit(&["sleep", "300000"]).await);
    }
    let mut most = stage.status.clone();
    for id in jobs {
        assert!(most.borrow_and_update().held <= 2);
        let job = stage.ended(id).await;
        assert_eq!((job.ending.expect("ended").verdict, job.attempt), (Verdict::Succeeded, 1));
    }
    assert_eq!(stage.executor.world().made, 6);
    stage.force.cancel();
    expiry.await.expect("ends");
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn without_cells_jobs_wait_in_the_queue_and_run_later() {
    let stage = stage(1);
    stage.executor.world().unavailable = Some("engine away".into());
    let id = stage.submit(&["echo", "1"]).await;
    let mut status = stage.status.clone();
    status.wait_for(|status| status.unavailable.is_some()).await.expect("says so");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.backend.get(id).await.expect("reads").expect("there").phase, Phase::Queued);
    stage.executor.world().unavailable = None;
    assert_eq!(stage.ended(id).await.ending.expect("ended").verdict, Verdict::Succeeded);
    stage.close().await;
}

/// With a real clock: what is put off is put off in wall time.
#[tokio::test]
async fn a_job_whose_cell_cannot_be_made_yet_keeps_no_other_from_running() {
    let stage = stage(1);
    let expiry = crate::supervise::spawn("expiry", Arc::clone(&stage.backend).run_expiry(stage.force.clone()));
    stage.executor.world().crowded = true;
    let crowded = json!({"image": "crowded", "command": ["echo", "1"], "retry": {"infrastructure": 0}});
    let put_off = async |id| {
        let mut changes = stage.backend.changes();
        loop {
            let job = stage.backend.get(id).await.expect("reads").expect("there");
            match job.put_off.filter(|_| job.phase == Phase::Queued) {
                Some(put_off) => return put_off,
                None => drop(changes.recv().await),
            }
        }
    };
    let first = stage.submit_with(crowded.clone()).await;
    let told = put_off(first).await;
    assert_eq!((told.times, told.reason.as_str()), (1, "no network is free"));
    assert_eq!(stage.backend.explain(first).await.expect("reads").expect("there").code, "put_off");
    // The only slot is others' meanwhile, and the host is none that fails.
    for _ in 0..10 {
        let id = stage.submit(&["echo", "1"]).await;
        assert_eq!(stage.ended(id).await.ending.expect("ended").verdict, Verdict::Succeeded);
        assert!(stage.status.borrow().unavailable.is_none(), "it is well");
    }
    stage.executor.world().crowded = false;
    let job = stage.ended(first).await;
    assert_eq!(job.ending.expect("ended").verdict, Verdict::Succeeded);
    assert!(job.started_at.is_some_and(|at| at >= told.not_before), "not before its time");
    assert_eq!((job.put_off, job.past_tries.len()), (None, 0));
    assert!(stage.journal.entries().await.expect("reads").is_empty());

    // Who waits like this can be ended.
    stage.executor.world().crowded = true;
    let canceled = stage.submit_with(crowded).await;
    put_off(canceled).await;
    stage.backend.cancel(canceled).await.expect("cancels");
    let ended = stage.ended(canceled).await;
    assert_eq!((ended.ending.expect("ended").cause, ended.put_off), (Cause::Canceled, None));
    stage.force.cancel();
    expiry.await.expect("ends");
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_jobs_end_and_then_ends_them() {
    let short = stage(1);
    let id = short.submit(&["sleep", "5000"]).await;
    short.phase(id, Phase::Running).await;
    let backend = Arc::clone(&short.backend);
    assert_eq!(short.close().await, Drained::Clean);
    let job = backend.get(id).await.expect("reads").expect("there");
    assert_eq!(job.ending.expect("ended").verdict, Verdict::Succeeded);

    let long = stage(1);
    let id = long.submit(&["sleep", "500000"]).await;
    long.phase(id, Phase::Running).await;
    let waiting = long.submit(&["echo", "1"]).await;
    let backend = Arc::clone(&long.backend);
    assert_eq!(long.close().await, Drained::Forced(1));
    let job = backend.get(id).await.expect("reads").expect("there");
    assert_eq!(job.ending.expect("ended").cause, Cause::AgentStopped);
    assert_eq!(backend.get(waiting).await.expect("reads").expect("there").phase, Phase::Queued);
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_jobs_at_once() {
    let stage = stage(1);
    let id = stage.submit(&["sleep", "500000"]).await;
    stage.phase(id, Phase::Running).await;
    let asked = tokio::time::Instant::now();
    stage.force.cancel();
    assert_eq!(stage.close().await, Drained::Forced(1));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// A claim is made by the store's thread before its answer is seen, so an answer must never be dropped: with jobs that end
/// while others are claimed, each is still claimed once. In real time, since the store has a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_claim_is_lost_while_other_jobs_end() {
    let stage = stage_on(4, |dir| AnyStore::Sqlite(SqliteStore::open(&dir.join("queue.db")).expect("opens")));
    let mut jobs = Vec::new();
    for _ in 0..60 {
        jobs.push(stage.submit(&["echo", "3"]).await);
    }
    for id in jobs {
        let job = stage.ended(id).await;
        assert_eq!((job.attempt, job.history.len()), (1, 5), "{:?}", job.history);
    }
    stage.close().await;
}

/// One agent on two backends: each with more jobs than there are slots.
#[tokio::test(start_paused = true)]
async fn several_backends_share_an_agent_fairly_and_one_that_hands_out_what_cannot_run_is_told_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let backends: Vec<Arc<Simulated>> = (0..2).map(|_| Arc::new(Simulated::new())).collect();
    let executor = Scripted::default();
    let capacity =
        Capacity { slots: 2, cpu: Cpus::from_milli(4000), memory: ByteSize::from_mib(1024), ..Capacity::default() };
    let settings = AgentSettings {
        announcement: crate::protocol::agent::Announcement::default(),
        capacity,
        claim_batch: 16,
        grace: Millis::from_secs(2),
        handover: false,
        drain_timeout: Duration::from_secs(30),
        reconnect: Duration::from_secs(30),
        keep: None,
        output_share: ByteSize::from_mib(32),
        gate: crate::admission::Gate::default(),
        secrets: crate::secrets::Providers::default(),
        disk: (std::path::PathBuf::new(), ByteSize::new(0)),
        sweep: SweepTimes::default(),
        outside: crate::egress::Outside::default(),
        traces: crate::telemetry::Traces::default(),
    };
    let seen = backends.iter().map(|backend| Arc::clone(backend) as Arc<dyn Backend>).collect();
    let journal = Arc::new(MemoryJournal::default());
    let agent = Agent::new(seen, Arc::new(executor.clone()), journal, logs, settings, Arc::new(Metrics::new()));
    let drain = CancellationToken::new();
    // Minutes: longer than the lease that the agent gives its own cells, which it has to renew by itself.
    for backend in &backends {
        for _ in 0..10 {
            backend.put(&json!({"image": "x", "command": ["sleep", "150000"]}));
        }
    }
    let large = backends[0].put(&json!({"image": "x", "command": ["x"], "resources": {"memory": "2GiB"}}));
    let agent = crate::supervise::spawn("agent", agent.run(drain.clone(), CancellationToken::new()));
    let count = |backend: &Arc<Simulated>| backend.ended().len();
    while backends.iter().map(count).sum::<usize>() < 12 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (one, two) = (count(&backends[0]), count(&backends[1]));
        assert!(one.abs_diff(two) <= 2, "{one} against {two}");
    }
    while backends.iter().map(count).sum::<usize>() < 21 {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let causes = backends[0].ended();
    assert!(causes[..10].iter().all(|cause| *cause == Cause::ExitCode { exit_code: 0 }), "{causes:?}");
    assert!(matches!(causes[10], Cause::TooLarge { .. }), "{large}: {causes:?}");
    drain.cancel();
    assert_eq!(agent.await.expect("ends"), Drained::Clean);
    assert!(executor.world().started.values().all(|times| *times == 1));
}

/// What waits for room is judged when its turn comes, by what it asks for and not by what it was once given.
#[tokio::test(start_paused = true)]
async fn a_policy_that_is_loosened_holds_for_what_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("policy.yaml");
    let strict = "{version: 1, rules: [{name: b, when: {labels: {b: '*'}}, allow: {limits: {timeout: {max: 1s, over: clamp}}}}]}";
    std::fs::write(&file, strict).expect("writes");
    let policy = crate::admission::LivePolicy::load(Some(&file)).expect("loads");
    let backend = Arc::new(Simulated::new());
    let capacity =
        Capacity { slots: 2, cpu: Cpus::from_milli(4000), memory: ByteSize::from_mib(1024), ..Capacity::default() };
    let settings = AgentSettings {
        announcement: crate::protocol::agent::Announcement::default(),
        capacity,
        claim_batch: 16,
        grace: Millis::from_secs(2),
        handover: false,
        drain_timeout: Duration::from_secs(30),
        reconnect: Duration::from_secs(30),
        keep: None,
        output_share: ByteSize::from_mib(32),
        gate: crate::admission::Gate { policy: policy.clone(), ..crate::admission::Gate::default() },
        secrets: crate::secrets::Providers::default(),
        disk: (std::path::PathBuf::new(), ByteSize::new(0)),
        sweep: SweepTimes::default(),
        outside: crate::egress::Outside::default(),
        traces: crate::telemetry::Traces::default(),
    };
    // One at a time fits.
    for labels in [json!({}), json!({"b": "1"})] {
        let resources = json!({"memory": "900MiB"});
        backend.put(&json!({"image": "x", "command": ["sleep", "60000"], "resources": resources, "labels": labels}));
    }
    let logs = LogStore::open(&dir.path().join("logs"), 1 << 20).expect("opens");
    let (journal, metrics) = (Arc::new(MemoryJournal::default()), Arc::new(Metrics::new()));
    let seen: Vec<Arc<dyn Backend>> = vec![Arc::clone(&backend) as Arc<dyn Backend>];
    let agent = Agent::new(seen, Arc::new(Scripted::default()), journal, logs, settings, metrics);
    let (drain, mut status) = (CancellationToken::new(), agent.status());
    let agent = crate::supervise::spawn("agent", agent.run(drain.clone(), CancellationToken::new()));
    status.wait_for(|status| status.held == 2).await.expect("both are there, and one of them waits");
    assert_eq!(backend.ended(), []);
    std::fs::write(&file, "version: 1\n").expect("writes");
    assert_eq!(policy.look(true), crate::admission::policy::Looked::Loaded);
    while backend.ended().len() < 2 {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let zero = Cause::ExitCode { exit_code: 0 };
    assert_eq!(backend.ended(), [zero.clone(), zero]);
    drain.cancel();
    assert_eq!(agent.await.expect("ends"), Drained::Clean);
}

/// Wherever the process dies, the next one goes on: the job runs once, its output is whole, its end is told once.
#[tokio::test(start_paused = true)]
async fn a_job_survives_its_agent() {
    let mut stage = stage(2);
    let id = stage.submit(&["sleep", "600000"]).await;
    stage.phase(id, Phase::Running).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        stage.crash().await;
    }
    let job = stage.ended(id).await;
    assert_eq!(job.ending.expect("ended").cause, Cause::ExitCode { exit_code: 0 });
    assert_eq!((job.attempt, stage.executor.world().made), (1, 1));
    stage.close().await;
}

/// The same at any moment of a job that writes: every millisecond of its way is died at once.
#[tokio::test(start_paused = true)]
async fn an_agent_may_die_at_any_moment() {
    let mut stage = stage(2);
    let expiry = crate::supervise::spawn("expiry", Arc::clone(&stage.backend).run_expiry(stage.force.clone()));
    for after in (0..230).step_by(7) {
        let id = stage.submit(&["cut", "21"]).await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        stage.crash().await;
        let job = stage.ended(id).await;
        assert_eq!(job.ending.expect("ended").cause, Cause::ExitCode { exit_code: 0 }, "after {after} ms");
        assert!(job.log.complete, "after {after} ms");
        let mut reader = stage.backend.logs().reader(AttemptId::new(id, job.attempt)).expect("has a log");
        let log: Vec<u8> =
            reader.read(1, 1 << 20).expect("reads").iter().flat_map(|frame| frame.bytes.to_vec()).collect();
        assert_eq!(log, (1..=21).flat_map(line).collect::<Vec<u8>>(), "after {after} ms");
    }
    stage.force.cancel();
    expiry.await.expect("ends");
    stage.close().await;
}

/// A cell that is gone when the agent comes back: the job may have run, and is not run again by it.
#[tokio::test(start_paused = true)]
async fn a_cell_that_died_with_its_agent_is_reported_as_lost() {
    let mut stage = stage(2);
    let (gone, over) = (stage.submit(&["sleep", "600000"]).await, stage.submit(&["sleep", "600000"]).await);
    for id in [gone, over] {
        stage.phase(id, Phase::Running).await;
    }
    stage.agent.abort();
    stage.executor.world().cells.remove(&AttemptId::new(gone, 1).to_string());
    stage.executor.world().cells.insert(AttemptId::new(over, 1).to_string(), false);
    stage.executor.world().cells.insert("a stray".to_owned(), true);
    stage.crash().await;
    for id in [gone, over] {
        let job = stage.ended(id).await;
        assert!(matches!(job.ending.expect("ended").cause, Cause::CellLost { .. }));
        assert!(!job.log.complete);
    }
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn jobs_are_handed_over_to_the_next_process() {
    let mut stage = stage_with(2, true, |_| AnyStore::Memory(MemoryStore::new()));
    let id = stage.submit(&["sleep", "300000"]).await;
    stage.phase(id, Phase::Running).await;
    stage.drain.cancel();
    assert_eq!((&mut stage.agent).await.expect("ends"), Drained::HandedOver(1));
    stage.drain = CancellationToken::new();
    stage.crash().await;
    let job = stage.ended(id).await;
    assert_eq!((job.ending.expect("ended").cause, job.attempt), (Cause::ExitCode { exit_code: 0 }, 1));
    assert_eq!(stage.executor.world().made, 1);
    // In this mode a drain does not wait for the removal of the cell.
    stage.status.wait_for(|status| status.held == 0).await.expect("says so");
    stage.close().await;
}
