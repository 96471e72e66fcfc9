//! What every journal has to keep to.

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
        log: LogTotals::default(),
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
