//! What a new process does about what an earlier one left. The decision is pure: what the journal says of an attempt, and what is
//! seen of its cell.
//!
//! | journal | cell runs | cell is over, or not there |
//! |---|---|---|
//! | intent | give back: nothing of the job has run | give back |
//! | committed | adopt: the warden goes on, or has the end; one that still waits for the job is not given it, which goes back | lost: it may have run, and nobody knows how it ended |
//! | ended | deliver the report | deliver the report |
//! | nothing | remove: nobody wants it | remove |
//!
//! Nobody is asked whether an attempt is still ours: a renewal, a release and a report of one that is not are refused by the
//! backend, and each of these follows at once.

use crate::executor::Present;
use crate::journal::{Entry, Stage};
use std::collections::BTreeMap;

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Their jobs run: talk to their wardens again.
    pub(super) adopt: Vec<(Entry, Present)>,
    /// They have ended: their reports have to reach their backends.
    pub(super) deliver: Vec<Entry>,
    /// They have not started: their backends may hand them out again.
    pub(super) give_back: Vec<Entry>,
    /// They may have run, and their cells are gone; with what is seen.
    pub(super) lost: Vec<(Entry, &'static str)>,
    /// Cells that nobody wants any more.
    pub(super) remove: Vec<Present>,
}

/// Decides.
pub(super) fn plan(entries: Vec<Entry>, present: Vec<Present>) -> Plan {
    let mut plan = Plan::default();
    let mut cells = BTreeMap::new();
    for cell in present {
        // The engine has names only once, so each attempt has one cell; one that is not an attempt's is nobody's. What was made beside
        // a cell is told of when the cell is gone: it says nothing of how that ended.
        match cell.attempt.filter(|_| cell.cell) {
            Some(attempt) => drop(cells.insert(attempt, cell)),
            None => plan.remove.push(cell),
        }
    }
    for entry in entries {
        match entry.stage {
            Stage::Intent => plan.give_back.push(entry),
            Stage::Ended(_) => plan.deliver.push(entry),
            Stage::Committed if mutant!(CommittedGivenBack) => plan.give_back.push(entry),
            Stage::Committed => match cells.remove(&entry.key.attempt) {
                Some(cell) if cell.running && !mutant!(NothingAdopted) => plan.adopt.push((entry, cell)),
                Some(cell) => {
                    plan.remove.push(cell);
                    plan.lost.push((entry, "it had ended when the agent came back"));
                }
                None => plan.lost.push((entry, "it was gone when the agent came back")),
            },
        }
    }
    if !mutant!(StraysStay) {
        plan.remove.extend(cells.into_values());
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{AttemptId, Cause, JobSpec, LeaseToken, LogTotals, Report, SpecRules, UnixMillis};
    use crate::journal::EntryKey;
    use proptest::prelude::*;
    use serde_json::json;

    fn attempt(number: u64) -> AttemptId {
        let id = format!("0190b2d4-0000-7000-8000-{number:012}");
        AttemptId::new(id.parse().expect("an id"), 1)
    }

    fn entry(number: u64, stage: u8) -> Entry {
        let attempt = attempt(number);
        let spec = JobSpec::check(&json!({"image": "x", "command": ["x"]}), &SpecRules::default()).expect("valid");
        let report = Report {
            attempt,
            cause: Cause::Canceled,
            started_at: None,
            ended_at: UnixMillis::new(1),
            usage: None,
            receipt: vec![],
            given: BTreeMap::new(),
            image: None,
            log: LogTotals::default(),
            results: crate::job::Results::default(),
            timings: Vec::new(),
        };
        let stage = match stage {
            0 => Stage::Intent,
            1 => Stage::Committed,
            _ => Stage::Ended(Box::new(report)),
        };
        let key = EntryKey { backend: "b".into(), attempt };
        Entry { key, token: LeaseToken(number), generation: 0, spec, stage }
    }

    proptest! {
        /// Every entry is settled once, by its row of the table, and every cell is either adopted or removed.
        #[test]
        fn nothing_is_forgotten_and_nothing_is_done_twice(
            // For each attempt: its stage or none (3), its cell (none, over, running), and whether there is something beside that.
            all in prop::collection::vec((0u8..4, 0u8..3, any::<bool>()), 0..30), strays in 0usize..3,
        ) {
            let (mut entries, mut present) = (Vec::new(), Vec::new());
            for (number, (stage, cell, beside)) in all.iter().enumerate() {
                let number = number as u64;
                if *stage < 3 {
                    entries.push(entry(number, *stage));
                }
                if *cell > 0 {
                    let name = format!("cell-{number}");
                    let running = *cell == 2;
                    present.push(Present { name, attempt: Some(attempt(number)), cell: true, running, busy: false, image: None });
                }
                if *beside {
                    let (name, attempt) = (format!("beside-{number}"), Some(attempt(number)));
                    present.push(Present { name, attempt, cell: false, running: false, busy: false, image: None });
                }
            }
            for stray in 0..strays {
                let name = format!("stray-{stray}");
                present.push(Present { name, attempt: None, cell: true, running: true, busy: false, image: None });
            }
            let plan = plan(entries, present);
            for (number, (stage, cell, beside)) in all.iter().enumerate() {
                let (at, name) = (attempt(number as u64), format!("cell-{number}"));
                let has = |list: &[Entry]| list.iter().filter(|entry| entry.key.attempt == at).count();
                let lost = plan.lost.iter().filter(|(entry, _)| entry.key.attempt == at).count();
                let adopted = plan.adopt.iter().filter(|(entry, _)| entry.key.attempt == at).count();
                let found = (has(&plan.give_back), adopted, lost, has(&plan.deliver));
                let wanted = match (stage, cell) {
                    (0, _) => (1, 0, 0, 0),
                    (1, 2) => (0, 1, 0, 0),
                    (1, _) => (0, 0, 1, 0),
                    (2, _) => (0, 0, 0, 1),
                    _ => (0, 0, 0, 0),
                };
                prop_assert_eq!(found, wanted);
                let removed = plan.remove.iter().filter(|removed| removed.name == name).count();
                prop_assert_eq!(removed, usize::from(*cell > 0 && wanted.1 == 0));
                let removed = plan.remove.iter().filter(|removed| removed.name == format!("beside-{number}")).count();
                prop_assert_eq!(removed, usize::from(*beside));
                // What was beside it says nothing of it.
                let said = plan.lost.iter().find(|(entry, _)| entry.key.attempt == at);
                let was_gone = said.map(|(_, said)| said.starts_with("it was gone"));
                prop_assert_eq!(was_gone, (lost > 0).then_some(*cell == 0));
            }
            prop_assert_eq!(plan.remove.iter().filter(|cell| cell.name.starts_with("stray")).count(), strays);
        }
    }
}
