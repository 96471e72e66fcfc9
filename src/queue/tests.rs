//! The rules, each in one store or in both. Beside it, `model_tests` walks at random.

use super::*;
use crate::job::{ByteSize, Capacity, Cause, Cpus, LogTotals, SpecRules};
use serde_json::json;
use std::task::Poll;

pub(super) fn spec(priority: i32, key: Option<&str>) -> JobSpec {
    let labels = json!({"team": if priority > 0 { "Blue" } else { "red" }, "priority": priority.to_string()});
    let requires = match priority {
        2 => json!({"labels": {"zone": "eu"}}),
        -1 => json!({"apart": ["team"]}),
        -2 => json!({"labels": {"zone": {"not": ["us"]}}}),
        _ => json!({}),
    };
    let retry = match priority {
        2 => json!({"infrastructure": 1, "backoff": "20ms"}),
        1 => json!({"failure": 2, "backoff": "30ms"}),
        -1 => json!({"infrastructure": 0}),
        -2 => json!({"failure": 1, "exit_codes": [1], "backoff": "40ms", "backoff_max": "1m"}),
        _ => json!({"backoff": "0s"}),
    };
    let document = json!({"preset": "bash", "script": "true", "priority": priority, "retry": retry, "idempotency_key": key,
        "name": format!("Späte Arbeit {priority}"), "labels": labels, "requires": requires,
        "resources": {"memory": if priority == 1 { "512MiB" } else { "64MiB" }}});
    JobSpec::check(&document, &SpecRules::default()).expect("valid")
}

pub(super) fn at(ms: u64) -> UnixMillis {
    UnixMillis::new(1_700_000_000_000 + ms)
}

pub(super) fn new(ms: u64, priority: i32, key: Option<&str>) -> NewJob {
    NewJob {
        id: JobId::new(at(ms)),
        spec: spec(priority, key),
        at: at(ms),
        retry_of: None,
        submitter: None,
        quota: None,
        family: Family::Alone,
    }
}

pub(super) fn ask(max: u32, ms: u64) -> ClaimAsk {
    let free = Capacity {
        slots: 1000,
        cpu: Cpus::from_milli(1_000_000),
        memory: ByteSize::from_mib(1_000_000),
        ..Capacity::default()
    };
    ClaimAsk { agent: "a".into(), profile: None, peers: Vec::new(), free, max, lease: Millis::new(100), now: at(ms) }
}

pub(super) fn report(attempt: AttemptId) -> Report {
    Report {
        attempt,
        cause: Cause::ExitCode { exit_code: 0 },
        started_at: None,
        ended_at: at(0),
        usage: None,
        receipt: vec![("uid".into(), "1".into())],
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals::default(),
        results: crate::job::Results::default(),
        timings: Vec::new(),
    }
}

pub(super) fn sqlite() -> (tempfile::TempDir, SqliteStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(&dir.path().join("queue.db")).expect("opens");
    (dir, store)
}

#[tokio::test]
async fn claims_go_by_priority_then_age() {
    let store = MemoryStore::new();
    for (ms, priority) in [(1, 0), (2, 5), (3, 5), (4, -5)] {
        store.submit(new(ms, priority, None), 10).await.expect("submits");
    }
    let claims = store.claim(ask(3, 10)).await.expect("claims").claims;
    let order: Vec<_> = claims.iter().map(|claim| claim.spec.priority()).collect();
    assert_eq!(order, [5, 5, 0]);
    assert!(claims[0].attempt.job < claims[1].attempt.job);
}

#[tokio::test]
async fn a_full_queue_and_a_used_key_are_told_apart() {
    let (_dir, store) = sqlite();
    assert!(matches!(store.submit(new(1, 0, Some("k")), 1).await, Ok(Submitted::Created(_))));
    assert!(matches!(store.submit(new(2, 0, Some("k")), 1).await, Ok(Submitted::Existing(_))));
    assert!(matches!(store.submit(new(3, 1, Some("k")), 1).await, Ok(Submitted::KeyConflict(_))));
    assert!(matches!(store.submit(new(4, 0, None), 1).await, Ok(Submitted::QueueFull { queued: 1 })));
}

#[tokio::test]
async fn a_late_holder_is_refused_and_a_duplicate_report_is_answered() {
    let (_dir, store) = sqlite();
    store.submit(new(1, 0, None), 10).await.expect("submits");
    let first = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
    assert!(matches!(store.expire(at(100), 3).await.expect("expires")[..], [Expired::Requeued(_)]));
    let second = store.claim(ask(1, 200)).await.expect("claims").claims.remove(0);
    assert!(second.token > first.token && second.attempt.attempt == 2);
    assert_eq!(
        store.complete("a", &report(first.attempt), first.token, at(210), 3).await.expect("answers"),
        Completion::Unknown
    );
    let renewed = store.renew("a", &[(first.attempt, first.token)], Millis::new(100), at(210)).await.expect("answers");
    assert_eq!(renewed, [Renewal::Refused]);
    assert!(matches!(
        store.complete("a", &report(second.attempt), second.token, at(220), 3).await,
        Ok(Completion::Applied(_))
    ));
    let again = store.complete("a", &report(second.attempt), second.token, at(230), 3).await.expect("answers");
    assert_eq!(again, Completion::AlreadyEnded);
}

#[tokio::test]
async fn the_last_try_ends_and_a_canceled_one_is_not_queued_again() {
    let store = MemoryStore::new();
    store.submit(new(1, 0, None), 10).await.expect("submits");
    store.claim(ask(1, 0)).await.expect("claims");
    let expired = store.expire(at(100), 1).await.expect("expires");
    assert!(
        matches!(&expired[..], [Expired::Ended(job)] if job.ending.as_ref().is_some_and(|e| e.cause == Cause::AgentLost { attempts: 1 }))
    );
    let Ok(Submitted::Created(job)) = store.submit(new(2, 0, None), 10).await else { panic!("not created") };
    store.claim(ask(1, 200)).await.expect("claims");
    assert!(matches!(store.cancel(job.id, at(210)).await, Ok(Canceled::Requested(_))));
    let expired = store.expire(at(400), 3).await.expect("expires");
    assert!(
        matches!(&expired[..], [Expired::Ended(job)] if job.ending.as_ref().is_some_and(|e| e.cause == Cause::Canceled))
    );
}

#[tokio::test]
async fn a_reopened_file_has_everything_and_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let store = SqliteStore::open(&path).expect("opens");
    let Ok(Submitted::Created(job)) = store.submit(new(1, 3, Some("k")), 10).await else { panic!("not created") };
    let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
    drop(store);
    let store = SqliteStore::open(&path).expect("opens again");
    let found = store.get(job.id).await.expect("reads").expect("is there");
    assert_eq!((found.phase, found.spec.priority(), found.history.len()), (Phase::Claimed, 3, 2));
    assert_eq!(store.counts().await.expect("counts").claimed, 1);
    assert!(matches!(
        store.complete("a", &report(claim.attempt), claim.token, at(5), 3).await,
        Ok(Completion::Applied(_))
    ));
    drop(store);
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.pragma_update(None, "user_version", 99).expect("sets");
    let error = SqliteStore::open(&path).expect_err("newer").to_string();
    assert!(error.contains("schema version 99") && error.contains("queue.db"), "{error}");
}

#[tokio::test]
async fn pages_go_backwards_in_time() {
    let (_dir, store) = sqlite();
    for ms in 0..5 {
        store.submit(new(ms, 0, None), 10).await.expect("submits");
    }
    let first = store.list(ListFilter { limit: 2, ..ListFilter::default() }).await.expect("lists");
    let before = first.last().map(|job| job.id);
    let second = store.list(ListFilter { before, limit: 10, ..ListFilter::default() }).await.expect("lists");
    assert_eq!((first.len(), second.len()), (2, 3));
    assert!(first[1].submitted_at > second[0].submitted_at);
}

#[tokio::test]
async fn a_released_try_does_not_count_and_its_number_is_not_used_again() {
    let (_dir, file) = sqlite();
    for store in [AnyStore::Sqlite(file), AnyStore::Memory(MemoryStore::new())] {
        store.submit(new(1, 0, None), 10).await.expect("submits");
        for number in 1..=4 {
            let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
            assert_eq!(claim.attempt.attempt, number);
            let back = || store.release("a", (claim.attempt, claim.token), at(1), "no_cell", None);
            assert_eq!(back().await.expect("answers"), Applied::Applied);
            assert_eq!(back().await.expect("answers again"), Applied::AlreadyThere);
        }
        // Its first try that counts is the fifth attempt.
        let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
        assert!(matches!(store.expire(at(100), 2).await.expect("expires")[..], [Expired::Requeued(_)]));
        let last = store.claim(ask(1, 200)).await.expect("claims").claims.remove(0);
        assert_eq!((claim.attempt.attempt, last.attempt.attempt), (5, 6));
        let ended = store.expire(at(300), 2).await.expect("expires");
        assert!(
            matches!(&ended[..], [Expired::Ended(job)] if job.ending.as_ref().is_some_and(|e| e.cause == Cause::AgentLost { attempts: 2 }))
        );
    }
}

#[tokio::test]
async fn a_renewal_never_makes_a_lease_shorter() {
    let (_dir, store) = sqlite();
    store.submit(new(1, 0, None), 10).await.expect("submits");
    let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
    let renewed = store.renew("a", &[(claim.attempt, claim.token)], Millis::new(1), at(10)).await.expect("renews");
    assert_eq!(renewed, [Renewal::Renewed { until: at(100), cancel_requested: false }]);
}

#[tokio::test]
async fn a_history_stays_short() {
    let (_dir, store) = sqlite();
    let Ok(Submitted::Created(job)) = store.submit(new(1, 0, None), 10).await else { panic!("not created") };
    for _ in 0..100 {
        let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
        let back = store.release("a", (claim.attempt, claim.token), at(1), "no_cell", None).await.expect("answers");
        assert_eq!(back, Applied::Applied);
    }
    let history = store.get(job.id).await.expect("reads").expect("is there").history;
    assert_eq!((history.len(), history[0].reason.as_str()), (128, "submitted"));
}

/// A caller in a `select!` that goes another way drops its claim at whatever point it has come to.
#[tokio::test]
async fn a_claim_that_nobody_takes_goes_back_to_the_queue() {
    let (_dir, store) = sqlite();
    store.submit(new(1, 0, None), 10).await.expect("submits");
    for round in 0..50u32 {
        let mut claim = Box::pin(store.claim(ask(1, 0)));
        // Sent, and then let go of: before the writer saw it, while it worked, or after it answered.
        if let Poll::Ready(taken) = futures_util::poll!(&mut claim) {
            // The writer was faster than this look: somebody took it.
            let claim = taken.expect("claims").claims.remove(0);
            store.release("a", (claim.attempt, claim.token), at(1), "no_cell", None).await.expect("answers");
            continue;
        }
        for _ in 0..round % 10 {
            // An operation behind it was answered, so this one was too.
            store.renew("a", &[], Millis::new(1), at(0)).await.expect("answers");
        }
        drop(claim);
        // Everything posted before this is done when it is answered.
        store.renew("a", &[], Millis::new(1), at(0)).await.expect("answers");
        store.renew("a", &[], Millis::new(1), at(0)).await.expect("answers");
        let counts = store.counts().await.expect("counts");
        assert_eq!((counts.queued, counts.claimed), (1, 0), "round {round}");
    }
    let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
    assert!(matches!(store.expire(at(100), 1).await.expect("expires")[..], [Expired::Ended(_)]), "one try: {claim:?}");
}

#[tokio::test]
async fn a_job_that_cannot_be_read_delays_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let store = SqliteStore::open(&path).expect("opens");
    let mut ids = Vec::new();
    for ms in 0..4 {
        let Ok(Submitted::Created(job)) = store.submit(new(ms, 0, None), 10).await else { panic!("not created") };
        ids.push(job.id);
    }
    store.claim(ask(1, 0)).await.expect("claims");
    drop(store);
    let vandal = rusqlite::Connection::open(&path).expect("opens");
    vandal.execute("UPDATE jobs SET state = '{}' WHERE seq = 1", []).expect("writes");
    vandal.execute("UPDATE specs SET spec = '{\"unknown\":1}' WHERE seq = 2", []).expect("writes");
    vandal.execute("DELETE FROM specs WHERE seq = 3", []).expect("writes");
    let store = SqliteStore::open(&path).expect("opens");
    let claims = store.claim(ask(1, 1)).await.expect("claims").claims;
    assert_eq!(claims.iter().map(|claim| claim.attempt.job).collect::<Vec<_>>(), [ids[3]]);
    assert_eq!(store.expire(at(1000), 3).await.expect("expires"), [Expired::Requeued(AttemptId::new(ids[3], 1))]);
    assert_eq!(store.next_due().await.expect("reads"), None);
    let all = store.list(ListFilter { limit: 10, ..ListFilter::default() }).await.expect("lists");
    assert_eq!(all.len(), 4, "a list does not need what cannot be read");
    for id in &ids[..3] {
        store.get(*id).await.expect_err("asked for by its id, it says what is wrong");
    }
    let parked: i64 =
        vandal.query_row("SELECT count(*) FROM jobs WHERE parked IS NOT NULL", [], |row| row.get(0)).expect("reads");
    assert_eq!(parked, 3);
}

#[test]
fn files_that_are_not_ours_are_refused_by_name_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a folder");
    let refusal = |name: &str| SqliteStore::open(&dir.path().join(name)).expect_err("refused").to_string();
    let ours = dir.path().join("ours.db");
    drop(SqliteStore::open(&ours).expect("opens"));
    assert_eq!(std::fs::metadata(&ours).expect("there").permissions().mode() & 0o777, 0o600);

    let theirs = rusqlite::Connection::open(dir.path().join("theirs.db")).expect("opens");
    theirs.execute_batch("CREATE TABLE theirs (x)").expect("writes");
    let error = refusal("theirs.db");
    assert!(error.contains("theirs.db") && error.contains("another program"), "{error}");
    let tables: i64 = theirs.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).expect("reads");
    assert_eq!(tables, 1, "nothing of it was changed");

    std::fs::write(dir.path().join("letter.db"), "Dear reader, this is not a database. ".repeat(40)).expect("writes");
    let error = refusal("letter.db");
    assert!(error.contains("it is damaged") && error.contains("restore it from a backup"), "{error}");
    assert!(refusal("missing/queue.db").contains("check that the folder exists"));
}

#[tokio::test]
async fn a_damaged_page_is_found_on_opening() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let store = SqliteStore::open(&path).expect("opens");
    for ms in 0..200 {
        store.submit(new(ms, 0, None), 1000).await.expect("submits");
    }
    drop(store);
    // Folds the journal into the file, whichever of the two threads closed last.
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.busy_timeout(std::time::Duration::from_secs(5)).expect("sets");
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folds");
    drop(db);
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xA5);
    std::fs::write(&path, bytes).expect("writes");
    let error = SqliteStore::open(&path).expect_err("damaged").to_string();
    assert!(error.contains("it is damaged") && error.contains("queue.db"), "{error}");
}

/// Tokens are consecutive numbers: whoever guesses one has nothing by it.
#[tokio::test]
async fn an_attempt_is_its_holders_alone_whoever_knows_the_token() {
    let (_dir, file) = sqlite();
    for store in [AnyStore::Sqlite(file), AnyStore::Memory(MemoryStore::new())] {
        let Ok(Submitted::Created(job)) = store.submit(new(1, 0, None), 10).await else { panic!("not created") };
        let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
        let (lease, other) = ((claim.attempt, claim.token), "b");
        let before = store.get(job.id).await.expect("reads");
        assert_eq!(store.lookup(other, &[lease]).await.expect("answers"), [Standing::Unknown]);
        let renewed = store.renew(other, &[lease], Millis::new(9999), at(1)).await.expect("answers");
        assert_eq!(renewed, [Renewal::Refused]);
        let step = store.advance(other, lease, Phase::Running, at(1), "x").await.expect("answers");
        assert_eq!(step, Applied::Refused);
        assert_eq!(store.release(other, lease, at(1), "x", None).await.expect("answers"), Applied::Refused);
        let ended = store.complete(other, &report(claim.attempt), claim.token, at(1), 3).await.expect("answers");
        assert_eq!(ended, Completion::Unknown);
        assert_eq!(store.get(job.id).await.expect("reads"), before);
        assert_eq!(store.next_due().await.expect("reads"), Some(at(100)));
        // Its own, it still is.
        assert_eq!(store.lookup("a", &[lease]).await.expect("answers"), [Standing::Held]);
        assert!(matches!(
            store.complete("a", &report(claim.attempt), claim.token, at(2), 3).await,
            Ok(Completion::Applied(_))
        ));
        let told = store.lookup(other, &[lease]).await.expect("answers");
        assert_eq!(
            (told, store.lookup("a", &[lease]).await.expect("answers")),
            (vec![Standing::Unknown], vec![Standing::Ended])
        );
    }
}

/// A queue in which each job is of a shape of its own: a claim looks at so many of them, and nobody waits behind what is not for
/// this agent or waits for others.
#[tokio::test]
async fn shapes_without_end_are_looked_at_from_the_front_and_hide_nothing_that_can_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("queue.db");
    let groups = Groups::from([("user".to_owned(), 1)]);
    let file = SqliteStore::open_with_groups(&path, groups.clone()).expect("opens");
    let job = |ms: u64, user: u64, zone: &str| {
        let document = json!({"image": "x", "command": ["x"], "labels": {"user": format!("u{user}")}, "priority": user % 3,
            "requires": {"labels": {"zone": zone}}});
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
        NewJob {
            id: JobId::new(at(ms)),
            spec,
            at: at(ms),
            retry_of: None,
            submitter: None,
            quota: None,
            family: Family::Alone,
        }
    };
    // Elsewhere, then two of each user, then one of somebody else.
    let mut jobs: Vec<NewJob> = (0..200).map(|n| job(n, n, "us")).collect();
    jobs.extend((200..600).map(|n| job(n, n % 200, "eu")));
    jobs.push(job(600, 999, "eu"));
    let last = jobs[600].id;
    let profile =
        Profile { labels: [("zone".into(), "eu".into())].into(), capacity: ask(1, 0).free, ..Profile::default() };
    for store in [AnyStore::Sqlite(file), AnyStore::Memory(MemoryStore::with_groups(groups.clone()))] {
        store.submit_all(jobs.clone(), 1000, false).await.expect("submits");
        let mut users = std::collections::BTreeSet::new();
        let mut order = Vec::new();
        for _ in 0..200 {
            let asked = ClaimAsk { profile: Some(profile.clone()), ..ask(1, 700) };
            let found = store.claim(asked).await.expect("claims");
            assert!(found.held_back, "there is more");
            let claim = &found.claims[0];
            order.push((claim.spec.priority(), std::cmp::Reverse(claim.attempt.job)));
            assert!(users.insert(claim.spec.labels()["user"].clone()), "one of each");
        }
        assert!(order.windows(2).all(|two| two[0] > two[1]), "by priority, then by age");
        // Every user but the last has one that runs, and that one's job is behind all of theirs that wait.
        let asked = ClaimAsk { profile: Some(profile.clone()), ..ask(5, 700) };
        let found = store.claim(asked).await.expect("claims").claims;
        assert_eq!(found.iter().map(|claim| claim.attempt.job).collect::<Vec<_>>(), [last]);
    }
    // Shapes that nobody has any more go when the file is opened.
    let shapes = || {
        let db = rusqlite::Connection::open(&path).expect("opens");
        db.query_row("SELECT count(*) FROM shapes", [], |row| row.get::<_, u32>(0)).expect("reads")
    };
    assert_eq!(shapes(), 401);
    let store = SqliteStore::open_with_groups(&path, groups.clone()).expect("opens again");
    for elsewhere in &jobs[..200] {
        store.cancel(elsewhere.id, at(800)).await.expect("cancels");
    }
    drop(store);
    let store = SqliteStore::open_with_groups(&path, groups).expect("opens again");
    assert_eq!(shapes(), 201);
    assert_eq!(store.counts().await.expect("counts").queued, 200);
}

#[tokio::test]
async fn one_claim_decides_about_a_bounded_number_of_shapes() {
    let (_dir, file) = sqlite();
    let most = routing::MOST_SHAPES;
    for store in [AnyStore::Sqlite(file), AnyStore::Memory(MemoryStore::new())] {
        let job = |n: usize| {
            let memory = format!("{}MiB", 64 + n);
            let document = json!({"image": "x", "command": ["x"], "resources": {"memory": memory}});
            let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
            NewJob {
                id: JobId::new(at(n as u64)),
                spec,
                at: at(n as u64),
                retry_of: None,
                submitter: None,
                quota: None,
                family: Family::Alone,
            }
        };
        let jobs: Vec<NewJob> = (0..most + 10).map(job).collect();
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        store.submit_all(jobs, 1000, false).await.expect("submits");
        let mut found = store.claim(ask(1000, 500)).await.expect("claims");
        assert_eq!((found.claims.len(), found.held_back), (most, true));
        let rest = store.claim(ask(1000, 500)).await.expect("claims");
        assert_eq!((rest.claims.len(), rest.held_back), (10, false));
        found.claims.extend(rest.claims);
        assert_eq!(found.claims.iter().map(|claim| claim.attempt.job).collect::<Vec<_>>(), ids);
    }
}

#[tokio::test]
async fn both_stores_say_which_keys_are_taken() {
    async fn taken(store: &impl Store) -> HashSet<String> {
        for (ms, key) in [(1, Some("a")), (2, Some("b")), (3, None)] {
            store.submit(new(ms, 0, key), 10).await.expect("submits");
        }
        store.taken_keys(["b", "c", "a", ""].map(str::to_owned).to_vec()).await.expect("answers")
    }
    let (_dir, durable) = sqlite();
    let wanted: HashSet<String> = ["a", "b"].map(str::to_owned).into();
    assert_eq!((taken(&durable).await, taken(&MemoryStore::new()).await), (wanted.clone(), wanted));
}

#[tokio::test]
async fn a_job_that_is_canceled_before_it_ran_says_so_and_misses_no_output() {
    let (_dir, store) = sqlite();
    let Ok(Submitted::Created(waits)) = store.submit(new(1, 0, None), 10).await else { panic!("is taken in") };
    let Canceled::Ended(ended) = store.cancel(waits.id, at(5)).await.expect("answers") else { panic!("has ended") };
    let message = |job: &crate::job::Job| job.ending.as_ref().expect("has ended").message.clone();
    assert_eq!((message(&ended), ended.log.complete), ("canceled before it started".to_owned(), true));
    // One that was claimed and given back did not run either.
    store.submit(new(2, 0, None), 10).await.expect("submits");
    let claim = store.claim(ask(1, 10)).await.expect("claims").claims.remove(0);
    store.release("a", (claim.attempt, claim.token), at(11), "full", None).await.expect("answers");
    let canceled = store.cancel(claim.attempt.job, at(12)).await.expect("answers");
    let Canceled::Ended(ended) = canceled else { panic!("has ended") };
    assert_eq!((message(&ended), ended.log.complete), ("canceled before it started".to_owned(), true));
    // Of one that had run, nobody says that.
    store.submit(new(3, 0, None), 10).await.expect("submits");
    let claim = store.claim(ask(1, 20)).await.expect("claims").claims.remove(0);
    assert!(matches!(store.expire(at(9000), 3).await.expect("expires")[..], [Expired::Requeued(_)]));
    let canceled = store.cancel(claim.attempt.job, at(9001)).await.expect("answers");
    let Canceled::Ended(ended) = canceled else { panic!("has ended") };
    assert_eq!((message(&ended), ended.log.complete), ("canceled".to_owned(), false));
}

#[tokio::test]
async fn how_far_a_pull_is_makes_a_job_no_other_one() {
    let (_dir, store) = sqlite();
    store.submit(new(1, 0, None), 10).await.expect("submits");
    let claim = store.claim(ask(1, 0)).await.expect("claims").claims.remove(0);
    let advance = |ms, reason: &'static str| {
        store.advance("a", (claim.attempt, claim.token), crate::job::Phase::Preparing, at(ms), reason)
    };
    assert_eq!(advance(1, "begins").await.expect("answers"), Applied::Applied);
    let seen = store.get(claim.attempt.job).await.expect("answers").expect("is there");
    for (ms, note) in [(2, "image_pull: 1 of 9 MiB"), (3, "image_pull: 5 of 9 MiB")] {
        assert_eq!(advance(ms, note).await.expect("answers"), Applied::Applied);
    }
    let now = store.get(claim.attempt.job).await.expect("answers").expect("is there");
    assert_eq!((now.revision, now.history.last().map(|event| event.at)), (seen.revision, Some(at(3))));
    let canceled = store.cancel_if(now.id, &[seen.revision], at(4)).await.expect("answers");
    assert!(matches!(canceled, Canceled::Requested(_)), "{canceled:?}");
}
