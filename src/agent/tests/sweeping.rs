//! Cells that nobody wants, while the agent runs.

use super::*;
use crate::journal::{Entry, EntryKey, Stage as Step};

/// Past the look at so many seconds after the start.
async fn past(began: tokio::time::Instant, seconds: u64) {
    tokio::time::sleep_until(began + Duration::from_secs(seconds) + Duration::from_millis(500)).await;
}

impl Stage {
    fn put_stray(&self, name: &str) {
        self.executor.world().cells.insert(name.to_owned(), true);
    }

    fn cells(&self) -> Vec<String> {
        self.executor.world().cells.keys().cloned().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_stray_is_removed_after_it_was_seen_twice_and_what_runs_is_not() {
    let stage = stage(2);
    let began = tokio::time::Instant::now();
    let id = stage.submit(&["sleep", "1500000"]).await;
    stage.phase(id, Phase::Running).await;
    let runs = AttemptId::new(id, 1).to_string();
    stage.put_stray("a stray");
    past(began, 60).await;
    stage.put_stray("b stray");
    past(began, 630).await;
    assert_eq!(stage.cells(), [runs.as_str(), "a stray", "b stray"], "seen once, or not yet");
    past(began, 660).await;
    assert_eq!(stage.cells(), [runs.as_str(), "b stray"]);
    past(began, 1260).await;
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec![runs], 2));
    let job = stage.ended(id).await;
    assert_eq!(job.ending.expect("ended").cause, Cause::ExitCode { exit_code: 0 });
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_journal_wants_stays_and_what_has_ended_does_not() {
    let stage = stage(1);
    let began = tokio::time::Instant::now();
    past(began, 1).await;
    // As after a runner that panicked: the next start settles it.
    let attempt = AttemptId::new(JobId::new(crate::job::UnixMillis::now()), 1);
    let spec = JobSpec::check(&json!({"image": "x", "command": ["x"]}), &SpecRules::default()).expect("valid");
    let key = EntryKey { backend: "embedded".to_owned(), attempt };
    let entry = Entry { key, token: crate::job::LeaseToken(1), generation: 0, spec, stage: Step::Committed };
    stage.journal.put(&entry).await.expect("is written");
    stage.put_stray(&attempt.to_string());
    past(began, 1860).await;
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec![attempt.to_string()], 0));
    stage.journal.remove(&entry.key).await.expect("is removed");
    past(began, 3060).await;
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec![], 1));
    stage.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_look_before_everything_is_settled_nor_during_a_drain_and_one_that_fails_is_made_up_for() {
    let mut stage = stage(1);
    stage.agent.abort();
    stage.executor.world().away = true;
    stage.crash().await;
    tokio::time::sleep(Duration::from_secs(2000)).await;
    stage.put_stray("a stray");
    stage.executor.world().away = false;
    // It was there at the start, so settling is what removes it.
    stage.status.wait_for(|status| !status.starting).await.expect("says so");
    let began = tokio::time::Instant::now();
    past(began, 1).await;
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec![], 0));
    stage.put_stray("a stray");
    past(began, 60).await;
    // The look at 660 s fails: the row goes on with the next one.
    past(began, 650).await;
    stage.executor.world().away = true;
    past(began, 665).await;
    stage.executor.world().away = false;
    assert_eq!(stage.cells(), ["a stray"]);
    past(began, 1262).await;
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec![], 1));
    stage.put_stray("b stray");
    past(began, 1862).await;
    let id = stage.submit(&["sleep", "20000"]).await;
    past(began, 2455).await;
    let last = stage.submit(&["sleep", "20000"]).await;
    stage.phase(last, Phase::Running).await;
    stage.drain.cancel();
    stage.ended(last).await;
    assert_eq!((&mut stage.agent).await.expect("ends"), Drained::Clean);
    assert!(tokio::time::Instant::now() > began + Duration::from_secs(2470), "a look was due in the drain");
    assert_eq!((stage.cells(), stage.metrics.swept_total.get()), (vec!["b stray".to_owned()], 1));
    assert_eq!(stage.ended(id).await.ending.expect("ended").verdict, Verdict::Succeeded);
}
