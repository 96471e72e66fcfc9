//! Jobs for several hosts, with the backend's own task: who hears of what, and when.

use super::embedded_tests::{Here, ask};
use super::retry_tests::report;
use super::*;
use crate::backend::Waited;
use crate::job::{Cause, Job, JobId, JobSpec, Millis, Submitter, Verdict};
use crate::protocol::agent::Announcement;
use crate::queue::{Canceled, Claim, ListFilter, Submitted};
use serde_json::{Value, json};
use std::sync::Arc;

struct Stage {
    here: Here,
    stop: CancellationToken,
    expiry: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn new() -> Self {
        let (here, stop) = (Here::new(Millis::from_secs(600)), CancellationToken::new());
        let expiry = crate::supervise::spawn("expiry", Arc::clone(&here.backend).run_expiry(stop.clone()));
        let executors = vec!["docker".to_owned(), "ssh".to_owned()];
        let who = Announcement { capacity: ask(Duration::ZERO).free, executors, ..Announcement::default() };
        here.backend.roster().enter_local("a", who, UnixMillis::now());
        Self { here, stop, expiry }
    }

    async fn submit(&self, target: &Value) -> JobId {
        let spec = json!({"target": target, "command": ["x"], "secrets": {"TOKEN": {"value": "hunter22"}}});
        let spec = JobSpec::check(&spec, &crate::job::SpecRules::default()).expect("valid");
        let submitted = self
            .here
            .backend
            .submit(spec, Some(Submitter { name: "ops".to_owned(), key: None }))
            .await
            .expect("submits");
        let Submitted::Created(job) = submitted else { panic!("{submitted:?}") };
        job.id
    }

    /// What the agent gets, waiting for it.
    async fn claim(&self) -> Vec<Claim> {
        self.here.backend.claim("a", &ask(Duration::from_secs(3600)), &self.stop).await.expect("claims")
    }

    async fn end(&self, claim: &Claim, exit_code: i32) {
        let told = report(claim.attempt, Cause::ExitCode { exit_code });
        let reported = self.here.backend.report("a", &told, claim.token).await.expect("answers");
        assert_eq!(reported, Reported::Applied);
    }

    async fn ended(&self, id: JobId) -> Job {
        match self.here.backend.wait(id, Duration::from_secs(60)).await.expect("answers") {
            Waited::Ended(job) => *job,
            other => panic!("{other:?}"),
        }
    }

    async fn close(self) {
        self.stop.cancel();
        self.expiry.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_whole_hears_of_its_end_and_who_waits_for_work_gets_the_next_part() {
    let stage = Stage::new();
    let backend = &stage.here.backend;
    let id = stage.submit(&json!({"hosts": ["web1", "web2"], "at_once": 1})).await;
    for (at, host) in ["web1", "web2"].into_iter().enumerate() {
        let claims = stage.claim().await;
        assert_eq!(claims.iter().map(|claim| claim.spec.host()).collect::<Vec<_>>(), [Some(host)]);
        // Each has the secret, sealed for itself, and is its submitter's.
        assert_eq!(claims[0].spec.secret("TOKEN").map(|secret| secret.expose()), Some(&b"hunter22"[..]));
        assert_eq!(claims[0].submitter.as_deref(), Some("ops"));
        let children = backend.get(id).await.expect("reads").expect("is there").children.expect("has some");
        assert_eq!((children.all, children.queued, children.held, children.ended), (2, 1 - at as u32, 1, at as u32));
        let told = backend.explain(id).await.expect("reads").expect("is there");
        assert_eq!(told.code, "fanned_out");
        if at == 0 {
            let parts = backend.list(ListFilter { parent: Some(id), limit: 9, ..ListFilter::default() });
            let last = parts.await.expect("lists")[0].id;
            let told = backend.explain(last).await.expect("reads").expect("is there");
            assert!(told.code == "held_back" && told.reason.contains("target.at_once"), "{told:?}");
        }
        stage.end(&claims[0], 0).await;
    }
    let job = stage.ended(id).await;
    let ending = job.ending.expect("has one");
    assert_eq!((ending.verdict, ending.message.as_str()), (Verdict::Succeeded, "all 2 hosts succeeded"));
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn agents_are_told_when_the_whole_is_to_end() {
    let stage = Stage::new();
    let backend = &stage.here.backend;
    let fail_fast = stage.submit(&json!({"hosts": ["a", "b", "c"], "fail_fast": true})).await;
    let mut orders = backend.orders();
    let claims = stage.claim().await;
    let [first, rest @ ..] = &claims[..] else { panic!("nothing claimed") };
    stage.end(first, 3).await;
    for claim in rest {
        let Order::Cancel { job, force, .. } = orders.recv().await.expect("an order");
        assert_eq!((job, force), (claim.attempt.job, false));
        stage.end(claim, 0).await;
    }
    let job = stage.ended(fail_fast).await;
    assert_eq!(job.ending.map(|ending| ending.verdict), Some(Verdict::Failed));
    // One that nobody has ends at once, and answers so.
    let whole = stage.submit(&json!({"hosts": ["a", "b"]})).await;
    let canceled = backend.cancel(whole).await.expect("answers");
    assert!(matches!(&canceled, Canceled::Ended(job) if job.id == whole), "{canceled:?}");
    // Of one that an agent has, the agent is told; by force, again.
    let whole = stage.submit(&json!({"hosts": ["a"]})).await;
    let claims = stage.claim().await;
    for (force, at) in [(false, 0), (true, 1)] {
        let canceled = backend.cancel_if(whole, None, force).await.expect("answers");
        assert!(matches!(canceled, Canceled::Requested(_)), "{at}");
        let Order::Cancel { job, force: told, .. } = orders.recv().await.expect("an order");
        assert_eq!((job, told), (claims[0].attempt.job, force));
    }
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_left_undone_is_done_by_the_next_process() {
    let stage = Stage::new();
    let id = stage.submit(&json!({"hosts": ["a", "b"], "at_once": 1})).await;
    let claims = stage.claim().await;
    // The task ends before it hears of the end of the first one.
    stage.stop.cancel();
    stage.expiry.await.expect("ends");
    let Here { backend, .. } = &stage.here;
    let told = report(claims[0].attempt, Cause::ExitCode { exit_code: 0 });
    backend.report("a", &told, claims[0].token).await.expect("answers");
    backend.families.forget(id);
    let stop = CancellationToken::new();
    let expiry = crate::supervise::spawn("expiry", Arc::clone(backend).run_expiry(stop.clone()));
    let claims = backend.claim("a", &ask(Duration::from_secs(3600)), &stop).await.expect("claims");
    assert_eq!(claims[0].spec.host(), Some("b"));
    stop.cancel();
    expiry.await.expect("ends");
}
