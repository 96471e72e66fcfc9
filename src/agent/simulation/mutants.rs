//! Whether the checks would notice: each deliberate bug (`crate::seeded`) has to be caught, and by a run that passes without it.

use super::run::run;
use super::scenario::{Kind, Scenario};
use super::{Watch, setting, story};
use crate::seeded::{Mutant, with_mutant};

/// Runs of one mutant before it is said that it gets away.
const TRIES: u64 = 1_500;

/// What brings a bug out, and from which seed on: nothing for one that anything brings out at once.
fn brought_out_by(mutant: Mutant) -> (&'static [Kind], u64) {
    use Kind::*;
    match mutant {
        Mutant::IntentErrorIgnored | Mutant::CommitErrorIgnored | Mutant::UncommittedCellStays => (&[Journal], 0),
        Mutant::CommitErrorBelieved => (&[], 106_974),
        Mutant::EndErrorIgnored => (&[Journal, Link], 0),
        Mutant::WardenWithoutLease | Mutant::AckBeforeStored => (&[Moment], 0),
        Mutant::EndNotJournaled | Mutant::EndsLeftForgotten => (&[Crash, Record, Outage], 0),
        Mutant::CommittedGivenBack | Mutant::NothingAdopted | Mutant::AdoptWithoutKeep => (&[Crash, Record], 0),
        Mutant::GenerationNotRaised | Mutant::LogBegunAnew | Mutant::StraysStay => (&[Crash, Record], 0),
        Mutant::BegunLate => (&[Crash, Record], 300),
        Mutant::LostForgotten => (&[Crash, Crash, Cell], 0),
        Mutant::LostWithoutLog => (&[Crash, Crash, Cell], 100),
        Mutant::GraceBeyondLease => (&[Crash, Outage], 870),
        Mutant::WholeLeaseAtCommit => (&[], 37_028),
        Mutant::KillTriedOnce => (&[], 49_451),
        Mutant::LostIsGone => (&[], 497_473),
        Mutant::TakeoverBelievedNoted => (&[], 383_081),
        Mutant::KillUnheard => (&[], 108_622),
        Mutant::ClockSeldomLookedAt => (&[], 494_849),
        Mutant::RenewalFromAnswer => (&[Renewal], 145),
        Mutant::DuplicateRun => (&[Call], 0),
        Mutant::LateClaimTrusted => (&[Call, Outage], 665),
        Mutant::ReportedOnce => (&[Call, Outage], 90),
        Mutant::CancelForgotten => (&[Outage, Cancel, Cancel], 280),
        Mutant::StoppedCellStays => (&[Cancel], 0),
        Mutant::CancelLostAtExpiry | Mutant::CancelLostAtRelease => (&[Cancel, Cancel, Crash, Record, Drain], 0),
        Mutant::ClockNotNoticed => (&[Clock], 0),
        Mutant::EarlyHandOut => (&[Outage, Crash], 120),
        Mutant::LostAtOnce => (&[Outage, Crash], 0),
        Mutant::CutIsTheEnd => (&[Link], 105),
        Mutant::OverBeforeStored => (&[Link], 0),
        Mutant::LeaseLostWithLink => (&[Word], 0),
        Mutant::AlwaysComplete => (&[Cell, Link], 290),
        Mutant::RetriedWhileCanceled => (&[Cancel, Cancel, Cell], 0),
        Mutant::TriesMixed => (&[Cell, Cell, Crash], 0),
        Mutant::StuckEndsNextTry | Mutant::StuckHoldForgotten => (&[Stall], 0),
        Mutant::StartToldOnce => (&[Note], 0),
        _ => (&[], 0),
    }
}

#[test]
fn the_bugs_are_listed_for_people() {
    let page = include_str!("../../../docs/simulation.md");
    let listed = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(listed, Mutant::ALL.len());
    for mutant in Mutant::ALL {
        let row = format!("| `{mutant:?}` | {} |", mutant.what());
        assert!(page.contains(&row), "docs/simulation.md lacks {row}");
    }
}

#[test]
fn every_bug_that_is_put_in_is_noticed() {
    let watch = Watch::new();
    let mut escaped = Vec::new();
    for (number, mutant) in Mutant::ALL.iter().enumerate() {
        if setting("JOBCELL_SIM_MUTANT").is_some_and(|only| only != number as u64) {
            continue;
        }
        let (kinds, first) = brought_out_by(*mutant);
        let caught = (first..first + TRIES).find_map(|seed| {
            watch.begins(seed);
            let scenario = if kinds.is_empty() { Scenario::of(seed) } else { Scenario::full_of(kinds, seed) };
            let violations = with_mutant(Some(*mutant), || run(&scenario, false).violations);
            violations.into_iter().next().map(|violation| (seed, scenario, violation))
        });
        match caught {
            Some((seed, scenario, violation)) => {
                let without = run(&scenario, false);
                let well = without.violations.is_empty();
                assert!(well, "{kinds:?} fails without {mutant:?}: {}", story(&scenario, &without));
                println!("{number} {mutant:?}: {seed}: {violation}");
            }
            None => escaped.push(format!("{number} {mutant:?} ({})", mutant.what())),
        }
    }
    assert!(escaped.is_empty(), "{} get away: {escaped:#?}", escaped.len());
}
