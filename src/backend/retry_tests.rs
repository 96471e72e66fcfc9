//! Tries that follow on one that has ended: when agents that wait get them, and what is said of them meanwhile.

use super::embedded_tests::{Here, ask};
use super::*;
use crate::job::{Cause, LogTotals, Millis};
use crate::protocol::agent::Announcement;
use serde_json::json;
use std::sync::Arc;
use tokio::time::Instant;

pub(super) fn report(attempt: AttemptId, cause: Cause) -> Report {
    Report {
        attempt,
        cause,
        started_at: None,
        ended_at: UnixMillis::now(),
        usage: None,
        receipt: Vec::new(),
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals::default(),
        results: crate::job::Results::default(),
        timings: Vec::new(),
    }
}

/// The backend with its task, and an agent that it knows.
struct Stage {
    here: Here,
    stop: CancellationToken,
    expiry: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn new(lease: Millis) -> Self {
        let (here, stop) = (Here::new(lease), CancellationToken::new());
        let expiry = crate::supervise::spawn("expiry", Arc::clone(&here.backend).run_expiry(stop.clone()));
        let capacity = ask(Duration::ZERO).free;
        let who = Announcement { capacity, ..Announcement::default() };
        here.backend.roster().enter_local("a", who, UnixMillis::now());
        Self { here, stop, expiry }
    }

    /// The next attempt that the agent gets; it is waiting when this returns.
    async fn waits(&self) -> tokio::task::JoinHandle<Vec<crate::queue::Claim>> {
        let (backend, stop) = (Arc::clone(&self.here.backend), self.stop.clone());
        let waits = crate::supervise::spawn("waits", async move {
            backend.claim("a", &ask(Duration::from_secs(3600)), &stop).await.expect("claims")
        });
        // Time only goes on when everybody waits for something.
        tokio::time::sleep(Duration::from_millis(1)).await;
        waits
    }

    /// The backend's process ends and comes again, and meanwhile the clock is set.
    async fn comes_again(mut self, set_by_ms: i64) -> Self {
        self.stop.cancel();
        self.expiry.await.expect("ends");
        crate::seeded::set_clock_off(set_by_ms);
        self.stop = CancellationToken::new();
        let backend = Arc::clone(&self.here.backend);
        self.expiry = crate::supervise::spawn("expiry", backend.run_expiry(self.stop.clone()));
        self
    }

    async fn close(self) {
        self.stop.cancel();
        self.expiry.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_waits_gets_the_next_try_when_it_is_due_and_not_before() {
    let stage = Stage::new(Millis::from_secs(600));
    let backend = &stage.here.backend;
    let id = stage.here.submit(&json!({"retry": {"failure": 2, "backoff": "20s", "backoff_max": "1h"}})).await;
    let mut held = stage.here.claim("a").await;
    for (number, longest) in [(2, 20), (3, 40)] {
        let (began, waits) = (Instant::now(), stage.waits().await);
        let (attempt, token) = held;
        let told = backend.report("a", &report(attempt, Cause::ExitCode { exit_code: 1 }), token).await;
        assert_eq!(told.expect("answers"), Reported::Applied);
        let due = backend.get(id).await.expect("reads").and_then(|job| job.next_try).expect("waits for one").not_before;
        let told = backend.explain(id).await.expect("reads").expect("is there");
        let wanted = format!("it waits until {due} for try {number} of 3: exit_code");
        assert_eq!((told.code.as_str(), told.reason), ("delayed", wanted));
        let claim = waits.await.expect("ends").remove(0);
        assert_eq!((claim.attempt.job, claim.attempt.attempt), (id, number));
        let (waited, late) = (began.elapsed(), UnixMillis::now().since(due));
        assert!(waited >= Duration::from_secs(longest / 2) && waited <= Duration::from_secs(longest + 1), "{waited:?}");
        assert!(UnixMillis::now() >= due && late < Millis::new(50), "{late} late");
        held = (claim.attempt, claim.token);
    }
    backend.report("a", &report(held.0, Cause::ExitCode { exit_code: 0 }), held.1).await.expect("answers");
    let job = backend.get(id).await.expect("reads").expect("is there");
    assert_eq!((job.phase, job.dead_letter, job.past_tries.len()), (Phase::Ended, false, 2));
    stage.close().await;
}

/// Seed 11479.
#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_while_the_backend_was_away_delays_no_try() {
    let stage = Stage::new(Millis::from_secs(600));
    let id = stage.here.submit(&json!({"retry": {"failure": 1, "backoff": "20s"}})).await;
    let (attempt, token) = stage.here.claim("a").await;
    let told = stage.here.backend.report("a", &report(attempt, Cause::ExitCode { exit_code: 1 }), token).await;
    assert_eq!(told.expect("answers"), Reported::Applied);
    let stage = stage.comes_again(-3_600_000).await;
    let claim = stage.waits().await.await.expect("ends").remove(0);
    assert_eq!((claim.attempt.job, claim.attempt.attempt), (id, 2));
    crate::seeded::set_clock_off(0);
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_job_of_a_lost_agent_is_tried_again_after_its_lease_and_a_pause() {
    let stage = Stage::new(Millis::from_secs(10));
    stage.here.submit(&json!({})).await;
    let (began, first) = (Instant::now(), stage.here.claim("a").await.0);
    let claim = stage.waits().await.await.expect("ends").remove(0);
    assert_eq!((claim.attempt.job, claim.attempt.attempt), (first.job, 2));
    let waited = began.elapsed();
    assert!((Duration::from_millis(10_400)..Duration::from_millis(11_100)).contains(&waited), "{waited:?}");
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_renews_and_does_nothing_loses_its_job() {
    let stage = Stage::new(Millis::from_secs(60));
    let backend = Arc::clone(&stage.here.backend);
    let mut orders = backend.orders();
    stage.here.submit(&json!({})).await;
    let (attempt, token) = stage.here.claim("a").await;
    let began = Instant::now();
    let told = loop {
        let renewed = backend.renew("a", &[(attempt, token)]).await.expect("answers");
        match renewed[..] {
            [Renewed::Renewed { .. }] => tokio::time::sleep(Duration::from_secs(20)).await,
            _ => break orders.try_recv().expect("was told before"),
        }
    };
    let wanted = Order::Cancel { job: attempt.job, attempt: Some(1), holder: Some("a".to_owned()), force: true };
    assert_eq!(told, wanted);
    let held = began.elapsed();
    assert!((Duration::from_secs(660)..Duration::from_secs(810)).contains(&held), "{held:?}");
    assert_eq!((backend.take_stuck(), backend.take_stuck()), (1, 0));
    let job = backend.get(attempt.job).await.expect("reads").expect("is there");
    assert_eq!(job.past_tries[0].cause.code(), "stuck");
    stage.close().await;
}
