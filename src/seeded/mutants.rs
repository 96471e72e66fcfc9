//! Deliberate bugs. Each is one line in the code that it breaks, and is switched on for a run of the simulation, which has to
//! notice it.

use std::cell::Cell;

macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        /// A deliberate bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Mutant { $(#[doc = $what] $name,)* }

        impl Mutant {
            /// All there are.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it does.
            pub(crate) const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

mutants! {
    NoIntent: "the intent is not journaled",
    IntentErrorIgnored: "an intent that could not be journaled is as good as one that was",
    CommittedNotJournaled: "that the job may run is not journaled",
    CommitErrorIgnored: "that the job may run could not be journaled, and it runs",
    CommitErrorBelieved: "that the job may run could not be journaled, and is taken for not written",
    UncommittedCellStays: "a cell that could not be journaled stays",
    EndNotJournaled: "the end is not journaled",
    EndErrorIgnored: "the warden is let go with an end that could not be journaled",
    ClosedBeforeJournal: "the warden is let go before the end is journaled",
    CellsStay: "cells are not removed",
    StoppedCellStays: "the cell of a job that was stopped before it ran stays",
    GenerationNotRaised: "a new process takes its session numbers from those of the last one",
    TakeoverBelievedNoted: "a process whose taking over could not be journaled talks as if the next one knew of it",
    LogBegunAnew: "an adopted job's log begins anew",
    GraceBeyondLease: "a job's grace is not part of its lease",
    WardenWithoutLease: "a warden is not told of the lease",
    WholeLeaseAtCommit: "a warden is told of the whole lease when it gets the job, however much of it is left",
    KillTriedOnce: "a cell that could not be killed is taken for one that was",
    LostIsGone: "a cell that cannot be reached for too long is taken for one that is gone",
    KillUnheard: "a process that did not run for a while ends a cell before it hears what was said meanwhile",
    ClockSeldomLookedAt: "the clock is looked at now and then, and not before a lease is given",
    RenewalFromAnswer: "a lease counts from the answer",
    RenewalNotTold: "runners are not told of renewals",
    NoRenewals: "leases are not renewed",
    CancelForgotten: "a cancel in the answer to a renewal is passed over",
    DuplicateRun: "an answer that comes twice is taken twice",
    FreePermits: "what is reserved is not counted",
    EndsNotDelivered: "ends are not delivered",
    HeldForEver: "what is delivered is held for ever",
    LostWithoutLog: "the end of a lost job names no output",
    AdoptWithoutKeep: "an adopted job takes no room",
    EntriesStay: "what is settled stays in the journal",
    ReportBeforeFlush: "the end goes before the output",
    ReportedOnce: "a report is tried once",
    EndsLeftForgotten: "ends of an earlier process are passed over",
    CommittedGivenBack: "what may have run is given back",
    NothingAdopted: "cells that run are not adopted",
    LostForgotten: "a job whose cell is gone is passed over",
    StraysStay: "cells that no entry knows stay",
    SweepsWhatRuns: "the sweeper takes cells whose jobs run for strays",
    OneStream: "standard error is taken for standard output",
    AlwaysComplete: "a log is called complete whatever happened",
    CutIsTheEnd: "a link that is cut is not made again",
    LeaseNotTold: "the warden is not told of renewals",
    LeaseLostWithLink: "a word of the lease that was lost with a link is not said again",
    AckBeforeStored: "output is acknowledged before it is stored",
    NoAck: "output is never acknowledged",
    OverBeforeStored: "the end does not wait for the output",
    ClockNotNoticed: "a clock that is set is believed",
    EarlyHandOut: "a job is handed out again before its lease is over",
    CancelLostAtExpiry: "a lost job is queued again although it was canceled",
    CancelLostAtRelease: "a job that is given back is queued although it was canceled",
    LateClaimTrusted: "a claim that was answered late has its whole lease before it",
    BegunLate: "a new process gives a job to the cell of an old one, however late it is",
    LostAtOnce: "a job is given up with tries left",
    RetriedAfterSuccess: "a job that did well is tried again",
    RetriedWhileCanceled: "a job that was canceled is tried again",
    FailuresNotCounted: "tries after failures are not counted",
    GivenBackCounts: "an attempt that was given back counts as a try",
    TriesMixed: "a try after a failure counts for the others too",
    RetriedAtOnce: "the pause before the next try is left out",
    PastTryForgotten: "a try that is followed by another one leaves no note",
    DeadLetterLost: "a job whose tries are used up is no dead letter",
    StuckEndsNextTry: "an order to end a try is taken for one to end the job",
    StartToldOnce: "that a job has started is told once",
    StuckHoldForgotten: "a job that does not get on stays with its agent",
}

thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this bug is there now.
pub(crate) fn active(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Runs `work` with this bug.
pub(crate) fn with_mutant<T>(mutant: Option<Mutant>, work: impl FnOnce() -> T) -> T {
    struct Back(Option<Mutant>);
    impl Drop for Back {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _back = Back(ACTIVE.replace(mutant));
    work()
}
