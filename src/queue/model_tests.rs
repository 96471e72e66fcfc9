//! A random walk in which both stores must give the same answers.

use super::family_tests;
use super::tests::{ask, at, new, report};
use super::*;
use crate::job::{ByteSize, Cause, Verdict};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Submit(i32, Option<u8>),
    /// Hosts, how many at once, whether the first failure ends the others, and the key.
    FanOut(usize, Option<u32>, bool, Option<u8>),
    /// Of which job, and whether again.
    Settle(usize, bool),
    /// How many, by which of several agents, with how much memory free.
    Claim(u32, usize, u64),
    /// Of which claim; these and the next ones also say whether the holder asks, or a stranger who knows everything.
    Renew(usize, bool),
    Advance(usize, usize, bool),
    /// With this cause.
    Complete(usize, bool, Cause),
    /// By its holder or not, and whether until later.
    Release(usize, bool, bool),
    Lookup(usize, bool),
    Cancel(usize),
    Expire,
    Stuck,
    /// From which agent.
    TakeFrom(usize),
    Ready,
    Extend,
    /// Of which jobs the output is gone, and which are to go.
    OutputGone(Vec<usize>),
    Remove(Vec<usize>),
    Wait(u64),
    /// Priority and key of each, and whether some may be left out.
    SubmitAll(Vec<(i32, Option<u8>)>, bool),
    CancelIf(usize, u64),
    CancelMany(Vec<usize>),
    /// Each under the id of a job that was made for it.
    Replay(Vec<usize>),
    /// What is asked for, and which job it comes after.
    List(ListFilter, Option<usize>),
}

/// A filter as somebody might ask; its moments are counted from the walk's beginning.
fn filter() -> impl Strategy<Value = ListFilter> {
    let phases = prop::collection::vec(prop::sample::select(&Phase::ALL[..]), 0..3);
    let verdict = prop::option::weighted(0.2, prop::sample::select(&Verdict::ALL[..]));
    let label = prop::sample::select(&[("team", "Blue"), ("team", "red"), ("team", "blue"), ("priority", "1")][..]);
    let dead_letter = prop::option::weighted(0.3, any::<bool>());
    let labels = prop::collection::vec(label.prop_map(|(key, value)| (key.to_owned(), value.to_owned())), 0..3);
    let moment = || prop::option::weighted(0.2, (0u64..400).prop_map(at));
    let text = prop::sample::select(&["SPÄTE", "arbeit 2", "BLUE", "018b", "nowhere", "0"][..]).prop_map(str::to_owned);
    ((phases, verdict, dead_letter), labels, moment(), moment(), prop::option::weighted(0.3, text), 0u32..6).prop_map(
        |((phases, verdict, dead_letter), labels, submitted_after, submitted_before, text, limit)| ListFilter {
            phases,
            verdict,
            dead_letter,
            parent: None,
            labels,
            submitted_after,
            submitted_before,
            text,
            before: None,
            limit,
        },
    )
}

fn cause() -> impl Strategy<Value = Cause> {
    let exit = |exit_code| Cause::ExitCode { exit_code };
    let lost = Cause::CellLost { reason: "gone".to_owned() };
    prop::sample::select(vec![exit(0), exit(1), exit(2), lost, Cause::PresetMissing { preset: "bash".to_owned() }])
}

fn op() -> impl Strategy<Value = Op> {
    let claim = || (0usize..20, prop::bool::weighted(0.8));
    prop_oneof![
        3 => (-2..=2, prop::option::of(0u8..4)).prop_map(|(priority, key)| Op::Submit(priority, key)),
        2 => (1usize..4, prop::option::of(1u32..3), any::<bool>(), prop::option::of(0u8..4))
            .prop_map(|(hosts, at_once, fail_fast, key)| Op::FanOut(hosts, at_once, fail_fast, key)),
        3 => (0usize..20, prop::bool::weighted(0.2)).prop_map(|(job, again)| Op::Settle(job, again)),
        3 => (1u32..4, 0usize..3, 50u64..1500).prop_map(|(max, agent, mib)| Op::Claim(max, agent, mib)),
        1 => claim().prop_map(|(claim, holder)| Op::Renew(claim, holder)),
        3 => (claim(), 0usize..6).prop_map(|((claim, holder), phase)| Op::Advance(claim, phase, holder)),
        3 => (claim(), cause()).prop_map(|((claim, holder), cause)| Op::Complete(claim, holder, cause)),
        1 => (claim(), any::<bool>()).prop_map(|((claim, holder), later)| Op::Release(claim, holder, later)),
        1 => claim().prop_map(|(claim, holder)| Op::Lookup(claim, holder)),
        1 => (0usize..20).prop_map(Op::Cancel),
        1 => Just(Op::Expire),
        1 => Just(Op::Stuck),
        1 => (0usize..3).prop_map(Op::TakeFrom),
        3 => Just(Op::Ready),
        1 => Just(Op::Extend),
        1 => prop::collection::vec(0usize..30, 0..4).prop_map(Op::OutputGone),
        2 => prop::collection::vec(0usize..30, 0..8).prop_map(Op::Remove),
        2 => (0u64..80).prop_map(Op::Wait),
        // Some walks go over several days.
        1 => Just(Op::Wait(40_000_000)),
        2 => (prop::collection::vec((-2..=2, prop::option::of(0u8..4)), 0..5), any::<bool>())
            .prop_map(|(jobs, partial)| Op::SubmitAll(jobs, partial)),
        1 => (0usize..20, 1u64..6).prop_map(|(job, revision)| Op::CancelIf(job, revision)),
        1 => prop::collection::vec(0usize..20, 0..4).prop_map(Op::CancelMany),
        1 => prop::collection::vec(0usize..20, 0..4).prop_map(Op::Replay),
        3 => (filter(), prop::option::weighted(0.3, 0usize..20)).prop_map(|(filter, before)| Op::List(filter, before)),
    ]
}

/// Runs one operation on a store; the answer as text is what must agree.
async fn apply<S: Store>(store: &S, op: &Op, now: u64, jobs: &[NewJob], claims: &mut Vec<(String, Claim)>) -> String {
    let held = |n: usize, holder: bool| {
        let (agent, claim) = claims.get(n % claims.len().max(1))?;
        Some((if holder { agent.clone() } else { "stranger".to_owned() }, (claim.attempt, claim.token)))
    };
    match op {
        Op::Settle(n, again) => match jobs.get(n % jobs.len().max(1)) {
            Some(job) => {
                let settled = store.settle(job.id, *again, at(now)).await.expect("settles");
                let nothing = store.settle(job.id, false, at(now)).await.expect("settles");
                assert_eq!(nothing, Settled::default(), "what is done is done once");
                family_tests::is_sound(store, job.id).await;
                format!("{settled:?} {:?}", store.children(job.id).await)
            }
            None => String::new(),
        },
        Op::Submit(..) | Op::FanOut(..) => format!("{:?}", store.submit(jobs.last().expect("made").clone(), 6).await),
        Op::Claim(max, agent, mib) => {
            let zone = ["eu", "us"].get(*agent).map(|zone| ("zone".to_owned(), (*zone).to_owned()));
            let capacity = ask(1, 0).free;
            // The last one has said nothing of itself.
            let profile = (*agent < 2).then(|| Profile {
                away: Vec::new(),
                labels: zone.into_iter().collect(),
                presets: vec!["bash".into()],
                executors: vec!["docker".into(), "ssh".into()],
                capacity: Capacity { memory: ByteSize::from_mib(1000), ..capacity },
            });
            let free = Capacity { slots: 3, memory: ByteSize::from_mib(*mib), ..capacity };
            // Sometimes there is another one that waits, and is roomier.
            let peers = profile.iter().filter(|_| mib % 3 == 0).map(|profile| Peer {
                agent: "peer".to_owned(),
                profile: profile.clone(),
                free: Capacity { memory: ByteSize::from_mib(mib % 1000), ..capacity },
            });
            let ask = ClaimAsk {
                agent: format!("agent {agent}"),
                profile: profile.clone(),
                peers: peers.collect(),
                free,
                ..ask(*max, now)
            };
            let mut delayed = Vec::new();
            for job in jobs {
                let job = store.get(job.id).await.expect("reads");
                delayed.extend(job.filter(|job| job.next_try.as_ref().is_some_and(|next| next.not_before > at(now))));
            }
            let Claims { claims: found, held_back, reserves } = store.claim(ask).await.expect("claims");
            assert!(
                found.iter().all(|claim| delayed.iter().all(|job| job.id != claim.attempt.job)),
                "not before its time"
            );
            let asked: u64 = found.iter().filter_map(|claim| claim.spec.takes()).map(|it| it.memory.as_u64()).sum();
            assert!(asked <= mib << 20 && found.len() <= *max as usize);
            for claim in &found {
                assert!(profile.as_ref().is_none_or(|profile| suits(&claim.spec, profile)), "{:?}", claim.spec);
                assert!(claims.iter().all(|(_, before)| before.token < claim.token), "tokens only grow");
                assert!(
                    claims.iter().all(|(_, before)| before.attempt != claim.attempt),
                    "an attempt is handed out once"
                );
            }
            let text = format!("{found:?} {held_back} {reserves:?}");
            claims.extend(found.into_iter().map(|claim| (format!("agent {agent}"), claim)));
            text
        }
        Op::Renew(n, holder) => match held(*n, *holder) {
            Some((agent, lease)) => {
                let renewed = store.renew(&agent, &[lease], Millis::new(50), at(now)).await.expect("answers");
                assert!(*holder || renewed == [Renewal::Refused]);
                format!("{renewed:?}")
            }
            None => String::new(),
        },
        Op::Advance(n, phase, holder) => match held(*n, *holder) {
            Some((agent, lease)) => {
                let applied = store.advance(&agent, lease, Phase::ALL[*phase], at(now), "test").await.expect("answers");
                assert!(*holder || applied == Applied::Refused);
                format!("{applied:?}")
            }
            None => String::new(),
        },
        Op::Complete(n, holder, cause) => match held(*n, *holder) {
            Some((agent, (attempt, token))) => {
                let ended = store
                    .complete(&agent, &Report { cause: cause.clone(), ..report(attempt) }, token, at(now), 3)
                    .await
                    .expect("answers");
                assert!(*holder || ended == Completion::Unknown);
                format!("{ended:?}")
            }
            None => String::new(),
        },
        Op::Release(n, holder, later_asked) => match held(*n, *holder) {
            Some((agent, lease)) => {
                let later = Later { after: Millis::from_secs(20), reason: "away".to_owned() };
                let later = Some(&later).filter(|_| *later_asked);
                let applied = store.release(&agent, lease, at(now), "test", later).await.expect("answers");
                assert!(*holder || applied == Applied::Refused);
                format!("{applied:?}")
            }
            None => String::new(),
        },
        Op::Lookup(n, holder) => match held(*n, *holder) {
            Some((agent, lease)) => {
                let standings = store.lookup(&agent, &[lease]).await.expect("answers");
                assert!(*holder || standings == [Standing::Unknown]);
                format!("{standings:?}")
            }
            None => String::new(),
        },
        Op::Cancel(n) => match jobs.get(n % jobs.len().max(1)) {
            Some(job) => format!("{:?}", store.cancel(job.id, at(now)).await),
            None => String::new(),
        },
        Op::SubmitAll(specs, partial) => {
            let before = store.counts().await.expect("counts");
            let batch =
                store.submit_all(jobs[jobs.len() - specs.len()..].to_vec(), 6, *partial).await.expect("answers");
            let after = store.counts().await.expect("counts");
            let created = match &batch {
                Batch::TakenIn(answers) => {
                    assert_eq!(answers.len(), specs.len());
                    answers.iter().filter(|answer| matches!(answer, Submitted::Created(_))).count()
                }
                Batch::Refused(places) => {
                    assert!(!partial && !places.is_empty());
                    0
                }
            };
            assert_eq!(after.queued - before.queued, created as u64);
            format!("{batch:?}")
        }
        Op::CancelIf(n, revision) => match jobs.get(n % jobs.len().max(1)) {
            Some(job) => format!("{:?}", store.cancel_if(job.id, &[*revision, *revision + 2], at(now)).await),
            None => String::new(),
        },
        Op::CancelMany(places) => {
            let ids: Vec<_> = places.iter().filter_map(|n| jobs.get(n % jobs.len().max(1))).map(|job| job.id).collect();
            format!("{:?}", store.cancel_many(&ids, at(now)).await)
        }
        Op::Replay(places) => {
            let made = jobs[jobs.len() - places.len()..].iter().map(|new| new.id);
            let dead = places.iter().map(|n| jobs[n % jobs.len()].id).zip(made).collect::<Vec<_>>();
            let before = store.counts().await.expect("counts");
            let replayed = store.replay(&dead, 6, at(now)).await.expect("answers");
            let after = store.counts().await.expect("counts");
            let new = replayed.iter().filter(|one| matches!(one, Replay::Replayed(_))).count() as u64;
            assert_eq!((after.queued - before.queued, before.dead_letters - after.dead_letters), (new, new));
            format!("{replayed:?}")
        }
        Op::Expire => format!("{:?}", store.expire(at(now), 3).await),
        Op::Stuck => format!("{:?}", store.end_stuck(at(now), Millis::new(60), 3).await),
        Op::TakeFrom(agent) => {
            let agent = format!("agent {agent}");
            let taken = store.take_from(&agent, at(now), 3).await.expect("answers");
            let again = store.take_from(&agent, at(now), 3).await.expect("answers");
            assert_eq!(again, [], "it has none any more");
            format!("{taken:?}")
        }
        Op::Ready => format!("{:?}", store.ready(at(now)).await),
        Op::Extend => format!("{:?}", store.extend(Millis::new(70), at(now)).await),
        Op::OutputGone(places) => {
            let ids = of_all(jobs, places);
            let marked = store.output_gone(&ids, at(now)).await.expect("answers");
            let again = store.output_gone(&ids, at(now + 1)).await.expect("answers");
            assert_eq!(again, 0, "it goes once");
            let bytes = store.output_bytes().await.expect("reads");
            let old = store.oldest_outputs(None, 100).await.expect("reads");
            assert!(old.iter().all(|old| old.output_bytes > 0 && !ids.contains(&old.id)), "{old:?}");
            format!("{marked} {bytes} {old:?}")
        }
        Op::Remove(places) => {
            let mut gone = Vec::new();
            // As often as some go: what there was no time for stays for the next call.
            loop {
                let some = store.remove(&of_all(jobs, places)).await.expect("answers");
                if some.is_empty() {
                    break;
                }
                gone.extend(some);
            }
            for id in &gone {
                assert_eq!(store.get(*id).await.expect("reads"), None);
            }
            gone.sort();
            let first = store.oldest_ended(None, 2).await.expect("reads");
            let rest = store.oldest_ended(first.last().map(|old| old.place), 100).await.expect("reads");
            assert!(first.iter().chain(&rest).is_sorted_by_key(|old| old.place), "{first:?} {rest:?}");
            format!("{gone:?} {first:?} {rest:?}")
        }
        Op::Wait(_) => String::new(),
        Op::List(filter, before) => {
            // A job that was refused is not there: a cursor that leads nowhere.
            let before = before.and_then(|n| jobs.get(n % jobs.len().max(1))).map(|job| job.id);
            // Sometimes only the children of one.
            let parent = jobs.get(now as usize % jobs.len().max(1)).map(|job| job.id).filter(|_| now.is_multiple_of(3));
            let filter = ListFilter { before, parent, ..filter.clone() };
            let found = store.list(filter.clone()).await.expect("lists");
            assert!(found.len() <= filter.limit as usize && found.windows(2).all(|two| two[0].id > two[1].id));
            for summary in &found {
                let job = store.get(summary.id).await.expect("reads").expect("is there");
                assert_eq!(*summary, JobSummary::from(&job));
            }
            format!("{found:?}")
        }
    }
}

/// Of these places among all jobs, children included.
fn of_all(jobs: &[NewJob], places: &[usize]) -> Vec<JobId> {
    let mut all: Vec<JobId> = Vec::new();
    for job in jobs {
        all.push(job.id);
        if let Family::Parent(children) = &job.family {
            all.extend(children.iter().map(|child| child.id));
        }
    }
    places.iter().filter_map(|n| all.get(n % all.len().max(1)).copied()).collect()
}

/// The sum of the fields.
fn total(numbers: &impl Serialize) -> u64 {
    let json = serde_json::to_value(numbers).expect("serialises");
    json.as_object().expect("a map").values().filter_map(serde_json::Value::as_u64).sum()
}

/// Shapes whose first queued job is another one than they say, and ended jobs that still have a shape.
pub(super) const WRONG_HEADS: &str = "SELECT count(*) FROM shapes WHERE (head_priority, head_seq) IS NOT
    (SELECT priority, seq FROM jobs WHERE shape = shapes.id AND phase = 'queued' AND parked IS NULL AND not_before IS NULL
     ORDER BY priority DESC, seq LIMIT 1)
    OR EXISTS (SELECT 1 FROM jobs WHERE phase = 'ended' AND shape = shapes.id)";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn both_stores_agree(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let groups = Groups::from([("team".to_owned(), 4)]);
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("queue.db");
            let file = SqliteStore::open_with_groups(&path, groups.clone()).expect("opens");
            let memory = MemoryStore::with_groups(groups);
            let (mut now, mut jobs, mut first, mut second) = (0, Vec::new(), Vec::new(), Vec::new());
            for op in &ops {
                now += 1;
                match op {
                    Op::Wait(ms) => now += ms,
                    Op::Submit(priority, key) => {
                        let retry_of = jobs.first().map(|job: &NewJob| job.id).filter(|_| *priority == 2);
                        let job = new(now, *priority, key.map(|key| format!("k{key}")).as_deref());
                        jobs.push(NewJob { retry_of, ..job });
                    }
                    Op::FanOut(hosts, at_once, fail_fast, key) => {
                        let key = key.map(|key| format!("k{key}"));
                        jobs.push(family_tests::parent(now, *hosts, *at_once, *fail_fast, key.as_deref()));
                    }
                    Op::Replay(places) => jobs.extend(places.iter().map(|_| new(now, 0, None))),
                    Op::SubmitAll(specs, _) => {
                        for (priority, key) in specs {
                            now += 1;
                            jobs.push(new(now, *priority, key.map(|key| format!("k{key}")).as_deref()));
                        }
                    }
                    _ => {}
                }
                let one = apply(&file, op, now, &jobs, &mut first).await;
                let two = apply(&memory, op, now, &jobs, &mut second).await;
                assert_eq!(one, two, "{op:?}");
            }
            let db = rusqlite::Connection::open(&path).expect("opens");
            let wrong: u32 = db.query_row(WRONG_HEADS, [], |row| row.get(0)).expect("reads");
            assert_eq!(wrong, 0, "each shape knows its first queued job");
            let mut all = jobs.clone();
            all.extend(jobs.iter().flat_map(|job| match &job.family {
                Family::Parent(children) => children.clone(),
                _ => Vec::new(),
            }));
            for job in &all {
                assert_eq!(file.get(job.id).await.expect("reads"), memory.get(job.id).await.expect("reads"));
            }
            assert_eq!(file.counts().await.expect("counts"), memory.counts().await.expect("counts"));
            let sorted = |mut families: Vec<(JobId, Option<JobId>)>| {
                families.sort();
                families
            };
            let families = sorted(file.open_families().await.expect("reads"));
            assert_eq!(families, sorted(memory.open_families().await.expect("reads")));
            assert_eq!(file.next_due().await.expect("reads"), memory.next_due().await.expect("reads"));
            let days = file.daily(0).await.expect("reads");
            assert_eq!(days, memory.daily(0).await.expect("reads"));
            let ended: u64 = days.iter().map(|day| total(&day.ended)).sum();
            let submitted: u64 = days.iter().map(|day| day.submitted).sum();
            let counts = memory.counts().await.expect("counts");
            let removed = submitted - total(&counts);
            assert_eq!(ended, counts.ended + removed, "days stay as they were");
            let all = ListFilter { limit: 1000, ..ListFilter::default() };
            assert_eq!(file.list(all.clone()).await.expect("lists"), memory.list(all).await.expect("lists"));
        });
    }
}
