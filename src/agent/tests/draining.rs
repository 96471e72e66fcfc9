//! An operator drains the agent, and lets it go on.

use super::*;
use crate::backend::Drain;
use crate::job::UnixMillis;
use std::collections::BTreeMap;

impl Stage {
    async fn set(&self, reason: Option<&str>) {
        let drain = |reason: &str| Drain { reason: reason.to_owned(), since: UnixMillis::new(1), quarantined: false };
        let drains: BTreeMap<_, _> = reason.map(|reason| ("a".to_owned(), drain(reason))).into_iter().collect();
        self.backend.set_drains(drains, "a").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_nothing_new_comes_and_the_agent_knows_also_after_its_death() {
    let mut stage = stage(2);
    let runs = stage.submit(&["sleep", "100000"]).await;
    stage.phase(runs, Phase::Running).await;
    stage.set(Some("a new kernel")).await;
    let told = vec![("embedded".to_owned(), "drained by an operator: a new kernel".to_owned())];
    stage.status.wait_for(|status| status.drained == told).await.expect("says so");
    assert_eq!(stage.metrics.takes_jobs.get(), 0);
    let waits = stage.submit(&["echo", "1"]).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    stage.crash().await;
    stage.status.wait_for(|status| status.drained == told && status.held == 1).await.expect("says so");
    let list = stage.backend.roster().list(UnixMillis::now());
    assert_eq!((list[0].state, list[0].load.drained), (crate::backend::AgentState::Drained, true));
    assert_eq!(stage.ended(runs).await.ending.expect("ended").cause, Cause::ExitCode { exit_code: 0 });
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(stage.backend.get(waits).await.expect("reads").expect("is there").phase, Phase::Queued);
    assert!(stage.status.borrow().unavailable.is_none(), "it is well");
    stage.set(None).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(stage.ended(waits).await.attempt, 1);
    assert!(asked.elapsed() < Duration::from_secs(2), "it was handed out at once");
    assert!(stage.status.borrow().drained.is_empty());
    assert_eq!(stage.metrics.takes_jobs.get(), 1);
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_a_free_slot_hears_of_it_too() {
    let mut stage = stage(1);
    let runs = stage.submit(&["sleep", "100000"]).await;
    stage.phase(runs, Phase::Running).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.set(Some("")).await;
    let asked = tokio::time::Instant::now();
    stage.status.wait_for(|status| !status.drained.is_empty()).await.expect("says so");
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(stage.status.borrow().drained[0].1, "drained by an operator");
    stage.set(None).await;
    stage.status.wait_for(|status| status.drained.is_empty()).await.expect("says so");
    stage.ended(runs).await;
    stage.close().await;
}
