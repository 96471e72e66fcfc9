//! Which of the cells that are there nobody wants. Pure; `sweeper` looks and removes.
//!
//! A cell is wanted while a runner of this process has its attempt, and while the journal says that its job may start or run: that is
//! the next process's to settle, should this one have lost sight of it. What this process makes or removes at the moment is left
//! alone. All others are strays; since a look takes its time, only what was one at the look before, too, is removed.

use crate::executor::Present;
use crate::job::AttemptId;
use std::collections::BTreeSet;

/// What was seen before.
#[derive(Debug, Default)]
pub(super) struct Strays(BTreeSet<String>);

impl Strays {
    /// Takes in what is there now; gives what is to be removed. `wanted` is what was wanted when `present` had been seen, or later.
    pub(super) fn seen(&mut self, present: Vec<Present>, wanted: &BTreeSet<AttemptId>) -> Vec<Present> {
        let is_wanted = |cell: &Present| {
            cell.busy || (cell.attempt.is_some_and(|attempt| wanted.contains(&attempt)) && !mutant!(SweepsWhatRuns))
        };
        let strays: Vec<Present> = present.into_iter().filter(|cell| !is_wanted(cell)).collect();
        // One that is still there after its removal is seen again, and removed again.
        let before = std::mem::replace(&mut self.0, strays.iter().map(|cell| cell.name.clone()).collect());
        strays.into_iter().filter(|cell| before.contains(&cell.name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attempt(number: u64) -> AttemptId {
        AttemptId::new(format!("0190b2d4-0000-7000-8000-{number:012}").parse().expect("an id"), 1)
    }

    fn cell(number: u64, busy: bool) -> Present {
        // Every fifth is no attempt's.
        let of = (number % 5 != 4).then(|| attempt(number));
        Present {
            name: format!("cell-{number}"),
            attempt: of,
            cell: true,
            running: number.is_multiple_of(2),
            busy,
            image: None,
        }
    }

    fn names(cells: &[Present]) -> Vec<&str> {
        cells.iter().map(|cell| cell.name.as_str()).collect()
    }

    #[test]
    fn a_stray_is_removed_when_it_is_seen_for_the_second_time_in_a_row() {
        let (mut strays, wanted) = (Strays::default(), BTreeSet::from([attempt(1)]));
        let all = || vec![cell(0, false), cell(1, false), cell(4, false)];
        assert!(strays.seen(all(), &wanted).is_empty());
        assert_eq!(names(&strays.seen(all(), &wanted)), ["cell-0", "cell-4"], "the one that is wanted stays");
        // What could not be removed is tried again, unless somebody is at it.
        assert_eq!(names(&strays.seen(vec![cell(0, false), cell(4, true)], &wanted)), ["cell-0"]);
        assert!(
            strays.seen(vec![cell(4, false)], &wanted).is_empty(),
            "the row is broken by a look at which it was busy"
        );
        assert!(strays.seen(vec![], &wanted).is_empty() && strays.seen(vec![cell(4, false)], &wanted).is_empty());
        // Nobody wants it any more: it, too, has to be seen so twice.
        assert!(strays.seen(vec![cell(1, false)], &BTreeSet::new()).is_empty());
        assert_eq!(names(&strays.seen(vec![cell(1, false)], &BTreeSet::new())), ["cell-1"]);
    }

    proptest! {
        /// Whatever is seen, in whatever order: what is removed was a stray at this look and at the one before, and all of that is.
        #[test]
        fn what_goes_was_a_stray_twice_and_nothing_else_goes(
            looks in prop::collection::vec(prop::collection::btree_map(0u64..12, any::<bool>(), 0..12), 1..8),
            wanted in prop::collection::btree_set(0u64..12, 0..12),
        ) {
            let wanted_attempts = wanted.iter().map(|number| attempt(*number)).collect();
            let (mut strays, mut before) = (Strays::default(), BTreeSet::new());
            for look in looks {
                let now: BTreeSet<String> = look
                    .iter()
                    .filter(|(number, busy)| !(**busy || wanted.contains(number) && **number % 5 != 4))
                    .map(|(number, _)| format!("cell-{number}"))
                    .collect();
                let present = look.iter().map(|(number, busy)| cell(*number, *busy)).collect();
                let gone: BTreeSet<String> = strays.seen(present, &wanted_attempts).into_iter().map(|cell| cell.name).collect();
                prop_assert_eq!(&gone, &now.intersection(&before).cloned().collect());
                before = now;
            }
        }
    }
}
