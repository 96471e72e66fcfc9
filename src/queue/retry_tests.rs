//! Tries that follow on one that has ended, in both stores.

use super::tests::{ask, at, report, sqlite};
use super::*;
use crate::job::{Cause, NextTry, SpecRules};
use serde_json::{Value, json};

/// Later than all that is delayed here.
const LATE: UnixMillis = UnixMillis::new(i64::MAX as u64);

fn both() -> (tempfile::TempDir, [AnyStore; 2]) {
    let (dir, file) = sqlite();
    (dir, [AnyStore::Sqlite(file), AnyStore::Memory(MemoryStore::new())])
}

/// Puts a job in, and has it claimed.
async fn held(store: &AnyStore, retry: &Value) -> Claim {
    let document = json!({"image": "x", "command": ["x"], "retry": retry});
    let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
    store
        .submit(
            NewJob {
                id: JobId::new(at(0)),
                spec,
                at: at(0),
                retry_of: None,
                submitter: None,
                quota: None,
                family: Family::Alone,
            },
            10,
        )
        .await
        .expect("submits");
    claim(store, 0).await.expect("there is one")
}

async fn claim(store: &AnyStore, ms: u64) -> Option<Claim> {
    store.claim(ask(1, ms)).await.expect("claims").claims.pop()
}

async fn ends(store: &AnyStore, claim: &Claim, cause: Cause, ms: u64) -> Completion {
    let report = Report { cause, started_at: Some(at(ms)), ..report(claim.attempt) };
    store.complete("a", &report, claim.token, at(ms), 3).await.expect("answers")
}

/// The job is queued for another try.
async fn next(store: &AnyStore, claim: &Claim) -> NextTry {
    let job = store.get(claim.attempt.job).await.expect("reads").expect("is there");
    assert_eq!((job.phase, &job.ending, job.dead_letter), (Phase::Queued, &None, false));
    job.next_try.expect("has a next try")
}

fn exit(exit_code: i32) -> Cause {
    Cause::ExitCode { exit_code }
}

#[tokio::test]
async fn a_failure_is_tried_again_when_its_time_has_come_and_given_up_when_no_try_is_left() {
    let (_dir, stores) = both();
    for store in stores {
        let first = held(&store, &json!({"failure": 1})).await;
        let id = first.attempt.job;
        assert!(
            matches!(ends(&store, &first, exit(1), 10).await, Completion::Applied(job) if job.phase == Phase::Queued)
        );
        let delayed = next(&store, &first).await;
        assert_eq!((delayed.number, delayed.of, delayed.cause.as_str()), (2, 2, "exit_code"));
        assert!((at(510)..=at(1010)).contains(&delayed.not_before), "{delayed:?}");
        assert_eq!(store.next_due().await.expect("reads"), Some(delayed.not_before));
        // It waits, and is one of those that do; nobody gets it.
        assert_eq!(store.counts().await.expect("counts").queued, 1);
        assert_eq!(store.place(id).await.expect("reads").expect("waits").ahead, 0);
        assert_eq!(claim(&store, 5000).await, None);
        let early = UnixMillis::new(delayed.not_before.as_u64() - 1);
        assert_eq!(store.ready(early).await.expect("answers"), 0);
        assert_eq!(store.ready(delayed.not_before).await.expect("answers"), 1);
        assert_eq!((store.next_due().await.expect("reads"), store.ready(LATE).await.expect("answers")), (None, 0));
        // Its holder asks again, having missed the answer: before the next try is claimed, and after.
        assert_eq!(ends(&store, &first, exit(1), 11).await, Completion::AlreadyEnded);
        let second = claim(&store, 2000).await.expect("is ready");
        assert_eq!((second.attempt.attempt, second.attempt.job), (2, id));
        assert_eq!(ends(&store, &first, exit(0), 12).await, Completion::AlreadyEnded);
        let lease = (first.attempt, first.token);
        assert_eq!(store.lookup("a", &[lease]).await.expect("answers"), [Standing::Ended]);
        assert_eq!(store.lookup("b", &[lease]).await.expect("answers"), [Standing::Unknown]);
        let renewed = store.renew("a", &[lease], Millis::new(100), at(2000)).await.expect("answers");
        assert_eq!(renewed, [Renewal::Refused]);
        let job = store.get(id).await.expect("reads").expect("is there");
        assert_eq!((job.next_try, job.started_at, job.receipt.len(), job.past_tries.len()), (None, None, 0, 1));
        let past = &job.past_tries[0];
        assert_eq!((past.attempt, past.agent.as_str(), &past.cause), (1, "a", &exit(1)));
        assert_eq!((past.started_at, past.ended_at), (Some(at(10)), at(10)));

        let Completion::Applied(job) = ends(&store, &second, exit(2), 2010).await else { panic!("not applied") };
        assert_eq!((job.phase, job.dead_letter), (Phase::Ended, true));
        assert_eq!(job.given_up.expect("was given up").reason, "the last of 2 tries ended with exit_code");
        assert_eq!(job.ending.expect("has ended").cause, exit(2));
        let reasons: Vec<(u32, &str)> =
            job.history.iter().map(|event| (event.attempt, event.reason.as_str())).collect();
        let wanted = [(0, "submitted"), (1, "claimed"), (1, "exit_code"), (2, "claimed"), (2, "exit_code")];
        assert_eq!(reasons, wanted);
        let listed = store.list(ListFilter { limit: 5, ..ListFilter::default() }).await.expect("lists");
        assert!(listed.len() == 1 && listed[0].dead_letter);
    }
}

#[tokio::test]
async fn tries_of_one_class_take_none_of_the_other_and_what_is_given_back_counts_for_none() {
    let (_dir, stores) = both();
    for store in stores {
        let mut held = held(&store, &json!({"failure": 1, "infrastructure": 1, "backoff": "0s"})).await;
        let lost = || Cause::CellLost { reason: "gone".into() };
        for cause in [Some(lost()), None, Some(exit(1)), None] {
            match cause {
                Some(cause) => drop(ends(&store, &held, cause, 1).await),
                None => {
                    let lease = (held.attempt, held.token);
                    assert_eq!(
                        store.release("a", lease, at(1), "no_cell", None).await.expect("answers"),
                        Applied::Applied
                    );
                }
            }
            // Without a pause nobody has to make it ready.
            held = claim(&store, 1).await.expect("is there again");
        }
        assert_eq!(held.attempt.attempt, 5);
        let Completion::Applied(job) = ends(&store, &held, lost(), 1).await else { panic!("not applied") };
        assert_eq!((job.dead_letter, job.past_tries.len()), (true, 2));
        assert_eq!(job.given_up.expect("was given up").reason, "the last of 3 tries ended with cell_lost");
    }
}

#[tokio::test]
async fn a_cancel_beats_a_retry() {
    let (_dir, stores) = both();
    for store in stores {
        // While it waits for the next try.
        let first = held(&store, &json!({"failure": 9})).await;
        ends(&store, &first, exit(1), 1).await;
        next(&store, &first).await;
        let Canceled::Ended(job) = store.cancel(first.attempt.job, at(2)).await.expect("answers") else {
            panic!("still open")
        };
        assert_eq!(
            (job.ending.map(|ending| ending.cause), job.next_try, job.dead_letter),
            (Some(Cause::Canceled), None, false)
        );
        assert_eq!((store.next_due().await.expect("reads"), store.ready(LATE).await.expect("answers")), (None, 0));
        // While it runs: however it ends.
        for cause in [exit(1), Cause::CellLost { reason: String::new() }] {
            let running = held(&store, &json!({"failure": 9})).await;
            store.cancel(running.attempt.job, at(3)).await.expect("answers");
            let Completion::Applied(job) = ends(&store, &running, cause.clone(), 4).await else {
                panic!("not applied")
            };
            assert_eq!((job.ending.map(|ending| ending.cause), job.dead_letter), (Some(cause), false));
        }
        assert_eq!(claim(&store, 9_000_000).await, None);
    }
}

#[tokio::test]
async fn a_lost_agent_is_of_the_infrastructure_and_its_late_report_is_not_taken() {
    let (_dir, stores) = both();
    for store in stores {
        let first = held(&store, &json!({"infrastructure": 1})).await;
        let expired = store.expire(at(100), 9).await.expect("expires");
        assert_eq!(expired, [Expired::Requeued(first.attempt)]);
        let delayed = next(&store, &first).await;
        assert_eq!((delayed.number, delayed.of, delayed.cause.as_str()), (2, 2, "agent_lost"));
        assert_eq!(ends(&store, &first, exit(0), 101).await, Completion::Unknown);
        store.ready(LATE).await.expect("answers");
        let second = claim(&store, 2000).await.expect("is ready");
        assert_eq!(ends(&store, &first, exit(0), 2001).await, Completion::Unknown);
        let expired = store.expire(at(3000), 9).await.expect("expires");
        let [Expired::Ended(job)] = &expired[..] else { panic!("{expired:?}") };
        assert_eq!(job.ending.as_ref().map(|ending| &ending.cause), Some(&Cause::AgentLost { attempts: 2 }));
        assert!(job.dead_letter && second.attempt.attempt == 2);
    }
}

#[tokio::test]
async fn delayed_jobs_keep_their_order_and_survive_the_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let store = AnyStore::Sqlite(SqliteStore::open(&path).expect("opens"));
    let mut claims = Vec::new();
    for seconds in [3, 1, 2] {
        let retry = json!({"failure": 1, "backoff": format!("{}s", seconds * 100), "backoff_max": "1h"});
        claims.push(held(&store, &retry).await);
    }
    for claim in &claims {
        ends(&store, claim, exit(1), 1).await;
    }
    drop(store);
    let store = AnyStore::Sqlite(SqliteStore::open(&path).expect("opens again"));
    let mut due = Vec::new();
    for claim in &claims {
        due.push((next(&store, claim).await.not_before, claim.attempt.job));
    }
    due.sort_unstable();
    for (moment, job) in due {
        assert_eq!(store.next_due().await.expect("reads"), Some(moment));
        assert_eq!(store.ready(moment).await.expect("answers"), 1);
        let claim = claim(&store, 1).await.expect("is ready");
        assert_eq!(claim.attempt.job, job);
        ends(&store, &claim, exit(0), 2).await;
    }
    assert_eq!(store.next_due().await.expect("reads"), None);
}

#[tokio::test]
async fn a_dead_letter_is_replayed_once_and_only_when_there_is_room() {
    let (_dir, stores) = both();
    for store in stores {
        let held = held(&store, &json!({"infrastructure": 0})).await;
        let id = held.attempt.job;
        ends(&store, &held, Cause::CellLost { reason: String::new() }, 1).await;
        assert_eq!(store.counts().await.expect("counts").dead_letters, 1);
        let dead = async || {
            let filter = ListFilter { dead_letter: Some(true), limit: 5, ..ListFilter::default() };
            store.list(filter).await.expect("lists").iter().map(|job| job.id).collect::<Vec<_>>()
        };
        assert_eq!(dead().await, [id]);
        let (new, other) = (JobId::new(at(2)), JobId::new(at(3)));
        let full = store.replay(&[(id, new)], 0, at(2)).await.expect("answers");
        assert_eq!((full, dead().await), (vec![Replay::QueueFull], vec![id]));
        let told = store.replay(&[(id, new), (id, other), (other, new)], 9, at(2)).await.expect("answers");
        let [Replay::Replayed(job), again, unknown] = &told[..] else { panic!("{told:?}") };
        assert_eq!((job.id, job.retry_of, job.phase), (new, Some(id), Phase::Queued));
        assert_eq!((again, unknown), (&Replay::Already(new), &Replay::Unknown));
        assert_eq!(store.replay(&[(new, other)], 9, at(2)).await.expect("answers"), [Replay::NotDead]);
        assert_eq!((dead().await.len(), store.counts().await.expect("counts").dead_letters), (0, 0));
        assert_eq!(claim(&store, 3).await.expect("is there").attempt.job, new);
    }
}

#[tokio::test]
async fn a_job_that_does_not_get_on_is_ended_and_then_taken_and_tried_again() {
    let (_dir, stores) = both();
    let after = Millis::from_secs(600);
    for store in stores {
        let first = held(&store, &json!({"infrastructure": 2, "backoff": "0s"})).await;
        let lease = (first.attempt, first.token);
        let look = async |ms| store.end_stuck(at(ms), after, 3).await.expect("answers");
        assert_eq!(look(599_999).await, []);
        assert_eq!(look(600_000).await, [Stuck::Told { attempt: first.attempt, holder: Some("a".into()) }]);
        // Once; and a holder that missed it hears it with its next renewal.
        assert_eq!(look(659_999).await, []);
        let renewed = store.renew("a", &[lease], Millis::from_secs(9999), at(610_000)).await.expect("answers");
        assert!(matches!(renewed[..], [Renewal::Renewed { cancel_requested: true, .. }]));
        assert_eq!(look(660_000).await, [Stuck::Taken(Expired::Requeued(first.attempt))]);
        assert_eq!(next(&store, &first).await.cause, "stuck");
        assert_eq!(ends(&store, &first, exit(0), 660_001).await, Completion::Unknown);

        // One that runs has its timeout first; a holder that ends it says that it was canceled.
        let second = claim(&store, 700_000).await.expect("is there again");
        let step = store.advance("a", (second.attempt, second.token), Phase::Running, at(0), "started").await;
        assert_eq!(step.expect("answers"), Applied::Applied);
        let hour = 3_600_000;
        assert_eq!(look(700_000 + hour + 599_999).await, [], "whatever the holder's clock says");
        assert!(matches!(look(700_000 + hour + 600_000).await[..], [Stuck::Told { .. }]));
        let Completion::Applied(job) = ends(&store, &second, Cause::Canceled, 5_000_000).await else {
            panic!("not applied")
        };
        let wanted = Cause::Stuck { phase: Phase::Running, limit: Millis::new(hour + 600_000) };
        assert_eq!((job.phase, &job.past_tries[1].cause), (Phase::Queued, &wanted));
        assert!(job.history.iter().any(|event| event.phase == Phase::Running && event.reason == "stuck"));

        // The last one is given up; and one that somebody canceled ends as that.
        let third = claim(&store, 6_000_000).await.expect("is there again");
        look(6_600_000).await;
        let taken = look(6_660_000).await;
        let [Stuck::Taken(Expired::Ended(job))] = &taken[..] else { panic!("{taken:?}") };
        assert!(job.dead_letter && job.attempt == third.attempt.attempt);
        let canceled = held(&store, &json!({})).await;
        store.cancel(canceled.attempt.job, at(1)).await.expect("answers");
        look(600_000).await;
        let taken = look(660_000).await;
        let [Stuck::Taken(Expired::Ended(job))] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!(job.ending.as_ref().map(|ending| &ending.cause), Some(&Cause::Canceled));
    }
}

#[tokio::test]
async fn sealed_values_go_with_each_try_and_are_gone_with_the_end() {
    let (_dir, stores) = both();
    for store in stores {
        let document = json!({"image": "x", "command": ["x"], "retry": {"failure": 1, "backoff": "0s"},
            "secrets": {"A": {"value": "hunter2"}, "B": "named"}});
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid").sealed(|_, _| b"sealed".to_vec());
        let job = NewJob {
            id: JobId::new(at(0)),
            spec,
            at: at(0),
            retry_of: None,
            submitter: None,
            quota: None,
            family: Family::Alone,
        };
        store.submit(job, 10).await.expect("submits");
        let sealed = |claim: &Claim| -> Vec<(String, Vec<u8>)> {
            claim.spec.sealed_secrets().map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
        };
        let wanted = vec![("A".to_owned(), b"sealed".to_vec())];
        let first = claim(&store, 0).await.expect("there is one");
        assert_eq!(sealed(&first), wanted);
        // Given back, lost and tried again: whoever gets it next gets them too.
        store.release("a", (first.attempt, first.token), at(1), "no_cell", None).await.expect("answers");
        let second = claim(&store, 2).await.expect("it came back");
        assert_eq!(sealed(&second), wanted);
        ends(&store, &second, exit(1), 3).await;
        store.ready(at(5000)).await.expect("answers");
        let third = claim(&store, 5000).await.expect("it is tried again");
        assert_eq!(sealed(&third), wanted);
        ends(&store, &third, exit(1), 5001).await;
        let job = store.get(third.attempt.job).await.expect("reads").expect("is there");
        assert!(job.dead_letter && job.spec.sealed_secrets().next().is_none());
        let dead = [(job.id, JobId::new(at(6000)))];
        assert_eq!(store.replay(&dead, 10, at(6000)).await.expect("answers"), [Replay::SecretsGone]);
    }
}
