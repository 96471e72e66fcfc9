//! What every journal has to keep to, and what the failing one does beyond it.

use super::failing::{Call, FailingJournal, When};
use super::*;
use crate::job::{Cause, JobId, LogTotals, SpecRules, UnixMillis};
use serde_json::json;

pub(super) fn entry(number: u64, stage: Stage) -> Entry {
    let attempt = AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_000 + number)), 1);
    let spec = JobSpec::check(&json!({"image": "x", "command": ["true"], "env": {"A": "1"}}), &SpecRules::default());
    let key = EntryKey { backend: "embedded".into(), attempt };
    Entry { key, token: LeaseToken(number), generation: 0, spec: spec.expect("valid"), stage }
}

pub(super) fn ended(entry: &Entry) -> Entry {
    let report = Report {
        attempt: entry.key.attempt,
        cause: Cause::ExitCode { exit_code: 3 },
        started_at: Some(UnixMillis::new(5)),
        ended_at: UnixMillis::new(9),
        usage: None,
        receipt: vec![("uid".into(), "20001".into())],
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals::default(),
        results: crate::job::Results::default(),
        timings: Vec::new(),
    };
    Entry { stage: Stage::Ended(Box::new(report)), ..entry.clone() }
}

/// Entries come back as they were put, in the order in which they were first put, until they are removed.
pub(super) async fn keeps_entries(journal: &dyn Journal) {
    let (first, second) = (entry(2, Stage::Intent), entry(1, Stage::Intent));
    for one in [&first, &second] {
        journal.put(one).await.expect("writes");
    }
    let committed = Entry { stage: Stage::Committed, generation: 1, ..first.clone() };
    journal.put(&committed).await.expect("writes");
    assert_eq!(journal.entries().await.expect("reads"), [committed.clone(), second.clone()]);
    let over = ended(&committed);
    journal.put(&over).await.expect("writes");
    assert_eq!(journal.entries().await.expect("reads"), [over, second.clone()]);
    for _ in 0..2 {
        journal.remove(&first.key).await.expect("writes");
    }
    assert_eq!(journal.entries().await.expect("reads"), [second]);
}

#[tokio::test]
async fn the_one_in_memory_keeps_entries() {
    keeps_entries(&MemoryJournal::default()).await;
}

#[tokio::test]
async fn the_failing_one_keeps_entries_when_nothing_is_planned() {
    let journal = FailingJournal::new(MemoryJournal::default());
    keeps_entries(&journal).await;
    let counts = [Call::Entries, Call::Put, Call::Remove, Call::Write].map(|call| journal.count(call));
    assert_eq!(counts, [3, 4, 2, 6]);
}

#[tokio::test]
async fn a_call_that_is_to_fail_does_so_on_the_side_that_was_planned() {
    let one = entry(1, Stage::Intent);
    for (when, kept) in [(When::Before, 0), (When::After, 1)] {
        let memory = MemoryJournal::default();
        let journal = FailingJournal::new(memory.clone()).fail_at(Call::Put, 2, when).fail_at(Call::Entries, 1, when);
        journal.put(&entry(2, Stage::Intent)).await.expect("the first one is not concerned");
        journal.put(&one).await.expect_err("planned");
        journal.entries().await.expect_err("planned");
        assert_eq!(journal.entries().await.expect("only the first one").len(), 1 + kept);
        journal.remove(&one.key).await.expect("not concerned");
        assert_eq!(memory.entries().await.expect("reads").len(), 1);
    }
    let journal = FailingJournal::new(MemoryJournal::default()).fail_at(Call::Remove, 1, When::Before);
    journal.put(&one).await.expect("not concerned");
    journal.remove(&one.key).await.expect_err("planned");
    assert_eq!(journal.inner().entries().await.expect("reads"), [one]);
}

/// A process that goes one job's way, with its last moment at each record, on each side of it.
#[tokio::test]
async fn after_its_last_moment_nothing_is_answered_or_done() {
    let intent = entry(1, Stage::Intent);
    let committed = Entry { stage: Stage::Committed, ..intent.clone() };
    let over = ended(&committed);
    let states = [vec![], vec![intent.clone()], vec![committed.clone()], vec![over.clone()], vec![]];
    for n in 1..=4 {
        for when in [When::Before, When::After] {
            let journal = FailingJournal::new(MemoryJournal::default()).crash_at(n as u32, when);
            let process = async {
                for step in [&intent, &committed, &over] {
                    journal.put(step).await.expect("writes");
                }
                journal.remove(&intent.key).await.expect("writes");
            };
            tokio::select! {
                () = process => panic!("it outlived its last moment"),
                () = journal.crashed() => {}
            }
            assert_eq!(journal.count(Call::Write), n as u32);
            // Whatever else of the process had not heard of it yet.
            let late = entry(2, Stage::Intent);
            let other = journal.clone();
            assert!(futures_util::poll!(other.put(&late)).is_pending());
            assert!(futures_util::poll!(other.entries()).is_pending());
            let left = journal.inner().entries().await.expect("reads");
            assert_eq!(left, states[if when == When::Before { n - 1 } else { n }], "{n} {when:?}");
        }
    }
}

#[tokio::test]
async fn a_process_can_die_while_it_reads() {
    let journal = FailingJournal::new(MemoryJournal::default()).crash_at_call(Call::Entries, 1, When::Before);
    journal.put(&entry(1, Stage::Intent)).await.expect("writes");
    assert!(futures_util::poll!(std::pin::pin!(journal.crashed())).is_pending());
    assert!(futures_util::poll!(journal.entries()).is_pending());
    journal.crashed().await;
}
