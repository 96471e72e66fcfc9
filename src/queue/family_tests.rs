//! Jobs for several hosts: what follows on what, in both stores. Beside it, `model_tests` walks at random.

use super::family::HELD;
use super::tests::{ask, at, report};
use super::*;
use crate::job::{Cause, SpecRules, Verdict};
use serde_json::json;

/// A job for hosts `h0`, `h1`, …, with the jobs for them.
pub(super) fn parent(ms: u64, hosts: usize, at_once: Option<u32>, fail_fast: bool, key: Option<&str>) -> NewJob {
    let hosts: Vec<String> = (0..hosts).map(|n| format!("h{n}")).collect();
    let document = json!({
        "target": {"hosts": hosts, "at_once": at_once, "fail_fast": fail_fast}, "command": ["x"], "idempotency_key": key,
        "labels": {"team": "red"}, "retry": {"failure": 0, "infrastructure": 1, "backoff": "30ms"},
    });
    let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
    // In their order, as the queue has them.
    let mut ids: Vec<JobId> = (0..=hosts.len()).map(|_| JobId::new(at(ms))).collect();
    ids.sort();
    let (id, first) = (ids[0], first_children(at_once));
    let child = |(place, spec): (usize, JobSpec)| NewJob {
        id: ids[place + 1],
        spec,
        at: at(ms),
        retry_of: None,
        submitter: None,
        quota: None,
        family: Family::Child { parent: id, held: place >= first },
    };
    let family = Family::Parent(spec.parts().enumerate().map(child).collect());
    NewJob { id, spec, at: at(ms), retry_of: None, submitter: None, quota: None, family }
}

/// What holds of every family that was just settled.
pub(super) async fn is_sound<S: Store>(store: &S, parent: JobId) {
    let Some(job) = store.get(parent).await.expect("reads").filter(|job| job.spec.fan_out().is_some()) else { return };
    let fan_out = job.spec.fan_out().expect("has hosts");
    let family = children(store, parent).await;
    assert_eq!(family.len(), fan_out.hosts.len());
    let open = family.iter().filter(|child| child.phase != Phase::Ended).count();
    assert_eq!(job.phase == Phase::Ended, open == 0, "it ends with the last of them, and not before");
    let waits_for_others = |child: &&Job| {
        child.phase == Phase::Queued && child.history.last().is_some_and(|last| last.reason == HELD_BACK)
    };
    let held = family.iter().filter(waits_for_others).count();
    let under_way = open - held;
    assert!(fan_out.at_once.is_none_or(|most| under_way <= most as usize), "{under_way} at once");
    let told = store.children(parent).await.expect("reads").expect("has some");
    assert_eq!((told.all as usize, told.ended as usize), (family.len(), family.len() - open));
    if fan_out.fail_fast
        && family.iter().any(|child| child.ending.as_ref().is_some_and(|end| end.verdict != Verdict::Succeeded))
    {
        assert!(family.iter().all(|child| child.phase == Phase::Ended || child.cancel_requested));
    } else if !job.cancel_requested {
        assert!(held == 0 || fan_out.at_once == u32::try_from(under_way).ok(), "nobody waits for nothing");
    }
}

async fn children<S: Store>(store: &S, parent: JobId) -> Vec<Job> {
    let filter = ListFilter { parent: Some(parent), limit: 10_000, ..ListFilter::default() };
    let mut family = Vec::new();
    for child in store.list(filter).await.expect("lists").into_iter().rev() {
        assert_eq!(child.parent, Some(parent));
        family.push(store.get(child.id).await.expect("reads").expect("is there"));
    }
    family
}

/// Both stores, one after the other.
fn stores() -> [(AnyStore, Option<tempfile::TempDir>); 2] {
    let dir = tempfile::tempdir().expect("a folder");
    let file = SqliteStore::open(&dir.path().join("queue.db")).expect("opens");
    [(AnyStore::Memory(MemoryStore::new()), None), (AnyStore::Sqlite(file), Some(dir))]
}

/// Claims by an agent that reaches hosts.
async fn claim(store: &AnyStore, max: u32, ms: u64) -> Vec<Claim> {
    let free = ask(max, ms).free;
    let profile = Profile { executors: vec!["ssh".to_owned()], capacity: free, ..Profile::default() };
    store.claim(ClaimAsk { profile: Some(profile), ..ask(max, ms) }).await.expect("claims").claims
}

async fn end(store: &AnyStore, claim: &Claim, cause: Cause, ms: u64) {
    let told = Report { cause, ..report(claim.attempt) };
    let ended = store.complete("a", &told, claim.token, at(ms), 3).await.expect("answers");
    assert!(matches!(ended, Completion::Applied(_)), "{ended:?}");
}

fn hosts(claims: &[Claim]) -> Vec<&str> {
    claims.iter().filter_map(|claim| claim.spec.host()).collect()
}

const WELL: Cause = Cause::ExitCode { exit_code: 0 };
const BADLY: Cause = Cause::ExitCode { exit_code: 1 };

#[tokio::test]
async fn so_many_run_at_once_and_each_end_lets_the_next_one_go() {
    for (store, _dir) in stores() {
        let new = parent(1, 4, Some(2), false, None);
        let id = new.id;
        let Ok(Submitted::Created(job)) = store.submit(new, 4).await else { panic!("not created") };
        assert_eq!((job.phase, job.started_at, job.children), (Phase::Running, Some(at(1)), None));
        let first = claim(&store, 9, 2).await;
        assert_eq!(hosts(&first), ["h0", "h1"]);
        assert!(first.iter().all(|claim| claim.spec.idempotency_key().is_none()));
        // Neither the clock nor its being set makes them ready.
        assert_eq!(store.ready(UnixMillis::new(HELD.as_u64() - 1)).await.expect("answers"), 0);
        assert_eq!(store.settle(id, false, at(3)).await.expect("settles"), Settled::default());
        // One that is tried again keeps its place.
        end(&store, &first[0], Cause::CellLost { reason: "gone".into() }, 3).await;
        assert_eq!(store.settle(id, false, at(4)).await.expect("settles").let_go, 0);
        assert!(claim(&store, 9, 4).await.is_empty());
        end(&store, &first[1], BADLY, 5).await;
        assert_eq!(store.settle(id, false, at(5)).await.expect("settles").let_go, 1);
        is_sound(&store, id).await;
        store.ready(at(1000)).await.expect("answers");
        let next = claim(&store, 9, 1000).await;
        assert_eq!(hosts(&next), ["h0", "h2"]);
        for one in &next {
            end(&store, one, WELL, 1001).await;
            store.settle(id, false, at(1001)).await.expect("settles");
        }
        let last = claim(&store, 9, 1002).await;
        assert_eq!(hosts(&last), ["h3"]);
        end(&store, &last[0], WELL, 1003).await;
        let ended = store.settle(id, false, at(1004)).await.expect("settles").ended.expect("has ended");
        let ending = ended.ending.expect("has one");
        assert_eq!((ending.verdict, ending.process_exit_code), (Verdict::Failed, 1));
        assert_eq!(ending.message, "1 of 4 hosts did not succeed: h1 (failed)");
        assert_eq!(store.settle(id, true, at(1005)).await.expect("settles"), Settled::default());
        assert!(store.open_families().await.expect("reads").is_empty());
    }
}

#[tokio::test]
async fn the_first_failure_ends_the_others_where_that_is_wanted() {
    for (store, _dir) in stores() {
        let new = parent(1, 5, Some(3), true, None);
        let id = new.id;
        store.submit(new, 10).await.expect("submits");
        let claims = claim(&store, 2, 2).await;
        end(&store, &claims[0], BADLY, 3).await;
        let settled = store.settle(id, false, at(4)).await.expect("settles");
        let marks: Vec<_> = settled.canceled.iter().map(|(_, mark)| mark.clone()).collect();
        let told = CancelMark::Requested { holder: Some("a".to_owned()) };
        assert_eq!(marks, [told, CancelMark::Ended, CancelMark::Ended, CancelMark::Ended]);
        assert!((settled.ended.is_none(), settled.let_go) == (true, 0) && claim(&store, 9, 5).await.is_empty());
        is_sound(&store, id).await;
        // The one that was told has ended well before it heard of it: that counts.
        end(&store, &claims[1], WELL, 6).await;
        let ended = store.settle(id, false, at(7)).await.expect("settles").ended.expect("has ended");
        let Some(Cause::FanOut { of: 5, succeeded: 1, verdict: Verdict::Failed, failed }) =
            ended.ending.map(|ending| ending.cause)
        else {
            panic!("another end")
        };
        let verdicts: Vec<_> = failed.iter().map(|one| (one.host.as_str(), one.verdict)).collect();
        let canceled = |host| (host, Verdict::Canceled);
        assert_eq!(verdicts, [("h0", Verdict::Failed), canceled("h2"), canceled("h3"), canceled("h4")]);
    }
}

#[tokio::test]
async fn a_cancel_of_the_whole_is_one_of_each_part() {
    for (store, _dir) in stores() {
        let new = parent(1, 3, None, false, None);
        let id = new.id;
        store.submit(new, 10).await.expect("submits");
        let claims = claim(&store, 1, 2).await;
        assert_eq!(store.cancel_many(&[id], at(3)).await.expect("cancels"), [CancelMark::Children]);
        let settled = store.settle(id, false, at(3)).await.expect("settles");
        assert_eq!((settled.canceled.len(), settled.ended), (3, None));
        // Without a grace: who has it is told again.
        let again = store.settle(id, true, at(4)).await.expect("settles");
        let told = CancelMark::Requested { holder: Some("a".to_owned()) };
        assert_eq!(again.canceled, [(claims[0].attempt.job, told)]);
        // It is lost meanwhile: what was to end is not tried again.
        let expired = store.expire(at(5000), 3).await.expect("settles");
        assert!(matches!(&expired[..], [Expired::Ended(job)] if job.parent == Some(id)), "{expired:?}");
        let ended = store.settle(id, false, at(5001)).await.expect("settles").ended.expect("has ended");
        assert_eq!(
            ended.ending.map(|ending| (ending.verdict, ending.process_exit_code)),
            Some((Verdict::Canceled, 130))
        );
        let one_more = store.cancel(id, at(5002)).await.expect("answers");
        assert!(matches!(one_more, Canceled::AlreadyEnded(_)));
    }
}

#[tokio::test]
async fn a_family_is_taken_in_whole_or_not_at_all() {
    for (store, _dir) in stores() {
        let full = store.submit(parent(1, 4, None, false, None), 3).await.expect("answers");
        assert_eq!(full, Submitted::QueueFull { queued: 0 });
        let batch = vec![parent(1, 2, None, false, None), parent(1, 2, None, false, None)];
        let refused = store.submit_all(batch.clone(), 3, false).await.expect("answers");
        assert!(matches!(&refused, Batch::Refused(places) if places.len() == 1), "{refused:?}");
        assert_eq!(store.counts().await.expect("counts"), Counts::default());
        let partly = store.submit_all(batch, 3, true).await.expect("answers");
        assert!(matches!(&partly, Batch::TakenIn(answers) if matches!(answers[1], Submitted::QueueFull { queued: 0 })));
        let counts = store.counts().await.expect("counts");
        assert_eq!((counts.queued, counts.running), (2, 1));
        // One key is one family.
        let keyed = parent(5, 2, None, false, Some("once"));
        let id = keyed.id;
        assert!(matches!(store.submit(keyed, 9).await, Ok(Submitted::Created(_))));
        let again = store.submit(parent(6, 2, None, false, Some("once")), 9).await.expect("answers");
        assert!(matches!(again, Submitted::Existing(job) if job.id == id));
        let other = store.submit(parent(7, 3, None, false, Some("once")), 9).await.expect("answers");
        assert_eq!(other, Submitted::KeyConflict(id));
        assert_eq!(store.counts().await.expect("counts").queued, 4);
    }
}

/// A parent is in nobody's hands.
#[tokio::test]
async fn nothing_that_befalls_held_jobs_befalls_a_parent() {
    for (store, _dir) in stores() {
        let new = parent(1, 1, None, false, None);
        let id = new.id;
        store.submit(new, 10).await.expect("submits");
        let far = at(90 * 86_400_000);
        assert!(store.expire(far, 3).await.expect("answers").is_empty());
        assert!(store.end_stuck(far, Millis::new(1), 3).await.expect("answers").is_empty());
        assert_eq!(store.extend(Millis::new(1), far).await.expect("answers"), 0);
        let lease = (AttemptId::new(id, 0), LeaseToken(0));
        assert_eq!(store.release("a", lease, far, "no", None).await.expect("answers"), Applied::Refused);
        assert_eq!(store.complete("a", &report(lease.0), lease.1, far, 3).await.expect("answers"), Completion::Unknown);
        assert_eq!(store.get(id).await.expect("reads").map(|job| job.phase), Some(Phase::Running));
    }
}

/// What a process that died left undone is found by the next one.
#[tokio::test]
async fn a_family_outlives_the_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let new = parent(1, 3, Some(1), false, None);
    let id = new.id;
    {
        let store = AnyStore::Sqlite(SqliteStore::open(&path).expect("opens"));
        store.submit(new, 10).await.expect("submits");
        let claims = claim(&store, 9, 2).await;
        end(&store, &claims[0], WELL, 3).await;
    }
    let store = AnyStore::Sqlite(SqliteStore::open(&path).expect("opens"));
    let families = store.open_families().await.expect("reads");
    assert_eq!((families.len(), families.iter().all(|(parent, child)| *parent == id && child.is_some())), (2, true));
    assert!(claim(&store, 9, 4).await.is_empty());
    assert_eq!(store.settle(id, false, at(5)).await.expect("settles").let_go, 1);
    assert_eq!(hosts(&claim(&store, 9, 6).await), ["h1"]);
    is_sound(&store, id).await;
}

#[tokio::test]
async fn jobs_of_a_submitter_are_counted_until_they_end_and_those_of_others_are_not() {
    for (store, _dir) in stores() {
        let by = |name: &str, quota: Option<u64>, job: NewJob| {
            let submitter = Some(Submitter { name: name.to_owned(), key: None });
            let mut job = NewJob { submitter: submitter.clone(), quota, ..job };
            if let Family::Parent(children) = &mut job.family {
                children.iter_mut().for_each(|child| child.submitter.clone_from(&submitter));
            }
            job
        };
        let plain = |ms: u64| super::tests::new(ms, 0, None);
        for ms in 1..4 {
            store.submit(by("other", None, plain(ms)), 100).await.expect("answers");
            store.submit(by("admin", None, plain(ms)), 100).await.expect("answers");
        }
        let one = by("ci", Some(3), plain(5));
        let id = one.id;
        assert!(matches!(store.submit(one, 100).await, Ok(Submitted::Created(_))));
        // Those for hosts count, the job that they are of does not.
        let family = |ms| by("ci", Some(3), parent(ms, 2, None, false, None));
        assert!(matches!(store.submit(family(6), 100).await, Ok(Submitted::Created(_))));
        let full = Ok(Submitted::QuotaFull { held: 3, most: 3 });
        assert_eq!(store.submit(by("ci", Some(3), plain(7)), 100).await.map_err(|error| error.to_string()), full);
        assert!(matches!(store.submit(by("ci", None, plain(8)), 100).await, Ok(Submitted::Created(_))), "unbounded");
        store.cancel(id, at(9)).await.expect("answers");
        assert!(matches!(store.submit(by("ci", Some(4), plain(10)), 100).await, Ok(Submitted::Created(_))));
        let batch = vec![by("ci", Some(5), plain(11)), by("ci", Some(5), plain(12))];
        let refused = store.submit_all(batch.clone(), 100, false).await.expect("answers");
        assert_eq!(refused, Batch::Refused(vec![(1, Submitted::QuotaFull { held: 5, most: 5 })]));
        let partly = store.submit_all(batch, 100, true).await.expect("answers");
        assert!(
            matches!(&partly, Batch::TakenIn(answers) if matches!(answers[..], [Submitted::Created(_), Submitted::QuotaFull { .. }])),
            "{partly:?}"
        );
    }
}
