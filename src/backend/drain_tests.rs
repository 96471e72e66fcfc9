//! What an agent that is drained gets, and what becomes of what was left to it.

use super::embedded_tests::{Here, ask, who};
use super::*;
use crate::job::{ByteSize, JobId, Millis};
use crate::queue::Claim;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

impl Here {
    fn waits(&self, agent: &'static str, mib: u64, seconds: u64) -> JoinHandle<Vec<Claim>> {
        let backend = Arc::clone(&self.backend);
        let mut ask = ask(Duration::from_secs(seconds));
        ask.free.memory = ByteSize::from_mib(mib);
        let stop = CancellationToken::new();
        crate::supervise::spawn("waits", async move { backend.claim(agent, &ask, &stop).await.expect("claims") })
    }

    async fn drain(&self, agent: &str) {
        let drain = Drain { reason: "a new kernel".to_owned(), since: UnixMillis::now(), quarantined: false };
        self.backend.set_drains([(agent.to_owned(), drain)].into(), agent).await;
    }

    async fn resume(&self, agent: &str) {
        self.backend.set_drains(BTreeMap::new(), agent).await;
    }
}

fn jobs(claims: Vec<Claim>) -> Vec<JobId> {
    claims.into_iter().map(|claim| claim.attempt.job).collect()
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_comes_back_empty_and_none_brings_anything_until_the_agent_is_resumed() {
    let here = Here::new(Millis::from_secs(60));
    let began = Instant::now();
    let waiting = here.waits("a", 8192, 600);
    sleep(Duration::from_secs(1)).await;
    here.drain("a").await;
    assert!(waiting.await.expect("ends").is_empty());
    assert_eq!(began.elapsed().as_secs(), 1);
    let job = here.submit(&json!({})).await;
    // The next one waits its time: an agent that is drained does not ask all the time.
    assert!(here.waits("a", 8192, 20).await.expect("ends").is_empty());
    assert_eq!(began.elapsed().as_secs(), 21);
    let explained = here.backend.explain(job).await.expect("reads").expect("is there");
    assert_eq!(explained.code, "no_agents", "nobody has registered");
    // Another one gets it, also one that waits behind.
    assert_eq!(jobs(here.waits("b", 8192, 0).await.expect("ends")), [job]);
    assert_eq!(here.backend.held().await.expect("reads"), [("b".to_owned(), 1)].into());
    let waiting = here.waits("a", 8192, 600);
    let job = here.submit(&json!({})).await;
    sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    here.resume("a").await;
    assert!(waiting.await.expect("ends").is_empty(), "it hears of it, and asks again");
    assert_eq!(began.elapsed().as_secs(), 26);
    assert_eq!(jobs(here.waits("a", 8192, 600).await.expect("ends")), [job]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_out_once_a_drain_is_answered() {
    let here = Here::new(Millis::from_secs(60));
    for _ in 0..40 {
        let claims: Vec<_> = (0..4).map(|_| here.waits("a", 8192, 30)).collect();
        here.submit(&json!({})).await;
        here.drain("a").await;
        let held = here.backend.held().await.expect("reads");
        here.submit(&json!({})).await;
        for claim in claims {
            claim.await.expect("ends");
        }
        assert_eq!(here.backend.held().await.expect("reads"), held);
        here.resume("a").await;
        for job in
            here.backend.list(crate::queue::ListFilter { limit: 100, ..Default::default() }).await.expect("reads")
        {
            here.backend.cancel(job.id).await.expect("cancels");
        }
    }
}

/// What lacks room is left to the agent where most of it fits. When that one is drained, the next one keeps its room for it, and at
/// once.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_left_to_a_drained_agent_is_left_to_another() {
    for drained in [false, true] {
        let here = Here::new(Millis::from_secs(60));
        for name in ["roomy", "small"] {
            here.backend.roster().enter_local(name, who(8192), UnixMillis::now());
        }
        let long_ago = UnixMillis::new(UnixMillis::now().as_u64() - 60_000);
        let large = here.submit_at(&json!({"resources": {"memory": "4GiB"}, "priority": 5}), long_ago).await;
        let (roomy, small) = (here.waits("roomy", 2048, 600), here.waits("small", 1024, 600));
        sleep(Duration::from_secs(1)).await;
        if drained {
            here.drain("roomy").await;
            assert!(roomy.await.expect("ends").is_empty());
        }
        let behind = here.submit(&json!({"resources": {"memory": "64MiB"}})).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(small.is_finished(), !drained, "its room is kept when it is the next one, and not before");
        let explained = here.backend.explain(large).await.expect("reads").expect("is there");
        let told = explained.agents.iter().flat_map(|agent| &agent.reasons).any(|told| told.contains("a new kernel"));
        assert_eq!(told, drained, "{explained:?}");
        if drained {
            here.backend.cancel(large).await.expect("cancels");
        }
        assert_eq!(jobs(small.await.expect("ends")), [behind]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_a_drained_agent_says_so() {
    let here = Here::new(Millis::from_secs(60));
    here.backend.roster().enter_local("a", who(8192), UnixMillis::now());
    here.drain("a").await;
    let job = here.submit(&json!({})).await;
    let explained = here.backend.explain(job).await.expect("reads").expect("is there");
    assert_eq!((explained.code.as_str(), explained.agents[0].state), ("agents_away", AgentState::Drained));
    assert!(explained.reason.ends_with("a: drained by an operator: a new kernel"), "{}", explained.reason);
    let drain = Drain { reason: String::new(), since: UnixMillis::now(), quarantined: false };
    here.backend.set_drains([("a".to_owned(), drain)].into(), "a").await;
    let explained = here.backend.explain(job).await.expect("reads").expect("is there");
    assert!(explained.reason.ends_with("a: drained by an operator"), "{}", explained.reason);
}

#[tokio::test]
async fn what_is_taken_from_a_quarantined_agent_is_anothers_and_its_word_counts_no_more() {
    let here = Here::new(Millis::from_secs(60));
    let mut orders = here.backend.orders();
    let job = here.submit(&json!({})).await;
    let (attempt, token) = here.claim("a").await;
    assert_eq!(here.backend.take_from("b").await.expect("answers"), 0, "another one's");
    let drain = Drain { reason: "its key leaked".to_owned(), since: UnixMillis::now(), quarantined: true };
    assert_eq!(drain.sentence(), "quarantined by an operator: its key leaked");
    here.backend.set_drains([("a".to_owned(), drain)].into(), "a").await;
    assert_eq!(here.backend.take_from("a").await.expect("answers"), 1);
    let wanted = Order::Cancel { job, attempt: Some(attempt.attempt), holder: Some("a".to_owned()), force: true };
    assert_eq!(orders.try_recv(), Ok(wanted));
    let report = super::retry_tests::report(attempt, crate::job::Cause::ExitCode { exit_code: 0 });
    let said = here.backend.report("a", &report, token).await.expect("answers");
    assert_ne!(said, crate::protocol::agent::Reported::Applied);
    let renewed = here.backend.renew("a", &[(attempt, token)]).await.expect("answers");
    assert!(matches!(renewed[..], [crate::protocol::agent::Renewed::Refused]), "{renewed:?}");
    let found = here.backend.get(job).await.expect("reads").expect("is there");
    assert!(found.ending.is_none() && found.history.iter().any(|event| event.reason == "quarantined"), "{found:?}");
}
