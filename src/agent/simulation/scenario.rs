//! What happens in one run: drawn from its seed, and then a plain list, so that a run that fails can be tried again without
//! this or that.

use crate::executor::scripted::LinkFault;
use crate::job::{JobSpec, SpecRules};
use crate::journal::failing::{Call as Record, When};
use crate::seeded::Chance;
use serde_json::json;
use std::time::Duration;

/// Faults begin within this time, in milliseconds.
const FAULT_SPAN: u64 = 90_000;

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) agents: Vec<AgentPlan>,
    pub(super) jobs: Vec<JobPlan>,
    pub(super) faults: Vec<Fault>,
    /// Term of a lease of a job that does not say its own.
    pub(super) lease_ms: u64,
    pub(super) max_attempts: u32,
    /// So long a job may be held without getting on.
    pub(super) stuck_after_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct AgentPlan {
    pub(super) slots: u32,
    /// A drain leaves what runs to the next process.
    pub(super) handover: bool,
    pub(super) grace_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct JobPlan {
    pub(super) at: u64,
    pub(super) command: String,
    pub(super) lost_after_ms: Option<u64>,
    pub(super) timeout_ms: u64,
    /// What the job says of more tries.
    pub(super) retry: Option<RetryPlan>,
    /// Left out, when a smaller run is looked for.
    pub(super) left_out: bool,
}

/// How often a job is tried again.
#[derive(Debug, Clone)]
pub(super) struct RetryPlan {
    pub(super) failure: u64,
    pub(super) infrastructure: Option<u64>,
    pub(super) backoff_ms: u64,
    /// Of the failures, only this one.
    pub(super) only: Option<u64>,
}

/// The longest pause before a try, in milliseconds.
pub(super) const LONGEST_PAUSE: u64 = 30_000;

impl JobPlan {
    pub(super) fn spec(&self) -> JobSpec {
        let command: Vec<&str> = self.command.split(' ').collect();
        let mut document = json!({"image": "x", "command": command, "timeout": format!("{}ms", self.timeout_ms)});
        if let Some(span) = self.lost_after_ms {
            document["lost_after"] = json!(format!("{span}ms"));
        }
        if let Some(RetryPlan { failure, infrastructure, backoff_ms, only }) = &self.retry {
            document["retry"] = json!({
                "failure": failure,
                "backoff": format!("{backoff_ms}ms"),
                "backoff_max": format!("{LONGEST_PAUSE}ms"),
            });
            if let Some(infrastructure) = infrastructure {
                document["retry"]["infrastructure"] = json!(infrastructure);
            }
            if let Some(code) = only.filter(|_| *failure > 0) {
                document["retry"]["exit_codes"] = json!([code]);
            }
        }
        JobSpec::check(&document, &SpecRules::default()).expect("a valid job")
    }
}

/// What an agent asks of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Claim,
    Renew,
    Lookup,
    Advance,
    Report,
    Release,
    Flush,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It fails and nothing was done.
    Fails,
    /// It is done and nobody hears of it. Grants of a claim are gone.
    Unheard,
    /// The same, and the grants come with the answer to the next claim.
    Late,
    /// The answer comes again with the next one.
    Twice,
    /// It is done so much later.
    SlowBefore(u64),
    /// It is done, and the answer takes so long.
    SlowAfter(u64),
    /// Nothing is done, and it takes its whole deadline to find that out.
    Hangs,
}

/// What goes wrong, or is asked for at a bad moment. Times are milliseconds from the start. `CrashWhen`: at the moment at which a warden
/// of the agent does this for the nth time. `EngineStalls`: no cell that is asked for is made meanwhile, and nobody is told so.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Crash { agent: usize, at: u64, down: u64 },
    CrashAtRecord { agent: usize, life: u32, nth: u32, when: When, down: u64 },
    CrashWhen { agent: usize, moment: Moment, nth: u32, down: u64 },
    JournalFails { agent: usize, life: u32, call: Record, nth: u32, when: When },
    Freeze { agent: usize, at: u64, lasts: u64 },
    Drain { agent: usize, at: u64, force_after: Option<u64>, down: u64 },
    Call { agent: usize, call: Call, nth: u32, how: How },
    Outage { agent: usize, at: u64, lasts: u64, hangs: bool },
    EngineAway { agent: usize, at: u64, lasts: u64 },
    EngineStalls { agent: usize, at: u64, lasts: u64 },
    KillCell { agent: usize, at: u64, which: u64, removed: bool },
    Link { agent: usize, nth: u32, fault: LinkFault },
    BackendRestart { at: u64, down: u64 },
    Clock { at: u64, by_s: i64 },
    Cancel { job: usize, at: u64, force: bool },
}

/// What a warden does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// It starts its job, and nobody has heard of that yet.
    Starts,
    /// It hears that output is safe.
    HearsAck,
    /// It hears that it may go.
    HearsClose,
}

/// Kinds of faults, each as often as it is to be drawn.
const ALL_KINDS: [Kind; 25] = {
    use Kind::*;
    [
        Crash, Crash, Crash, Record, Record, Journal, Freeze, Drain, Call, Call, Call, Outage, Outage, Engine, Cell,
        Link, Link, Server, Clock, Cancel, Renewal, Stall, Moment, Word, Note,
    ]
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Crash,
    Record,
    Journal,
    Freeze,
    Drain,
    Call,
    Outage,
    Engine,
    Cell,
    Link,
    Server,
    Clock,
    Cancel,
    /// A renewal that is answered late, and none after it.
    Renewal,
    Stall,
    /// A crash at one.
    Moment,
    /// A word of a lease is lost with its link, and none comes after it.
    Word,
    /// The backend does not take how far jobs have come.
    Note,
}

impl Scenario {
    /// Whatever the seed says.
    pub(super) fn of(seed: u64) -> Self {
        Self::drawn(seed, &[])
    }

    /// Many faults of a few kinds.
    pub(super) fn full_of(kinds: &[Kind], seed: u64) -> Self {
        Self::drawn(seed, kinds)
    }

    fn drawn(seed: u64, kinds: &[Kind]) -> Self {
        let mut chance = Chance::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        let c = &mut chance;
        let agents: Vec<AgentPlan> = (0..if c.once_in(3) { 2 } else { 1 })
            .map(|_| AgentPlan {
                slots: u32::try_from(c.between(1, 4)).expect("small"),
                handover: c.once_in(2),
                grace_ms: *c.pick(&[1_000, 2_000, 10_000]),
            })
            .collect();
        let count = if c.once_in(4) { c.between(1, 12) } else { c.between(1, 4) };
        let mut at = 0;
        let jobs = (0..count).map(|_| job(c, !kinds.is_empty(), &mut at)).collect();
        let many = if kinds.is_empty() { *c.pick(&[0, 1, 1, 2, 2, 3, 4, 6, 9]) } else { c.between(2, 8) };
        let kinds = if kinds.is_empty() { &ALL_KINDS } else { kinds };
        let mut faults = Vec::new();
        for _ in 0..many {
            let kind = *c.pick(kinds);
            fault(c, kind, agents.len(), count, &mut faults);
        }
        let lease_ms = *c.pick(&[10_000, 20_000, 60_000]);
        let max_attempts = u32::try_from(c.between(2, 4)).expect("small");
        let stuck_after_ms = if c.once_in(3) { c.between(20_000, 60_000) } else { 7_200_000 };
        Self { seed, agents, jobs, faults, lease_ms, max_attempts, stuck_after_ms }
    }

    /// When the last of the faults that have a time is over.
    pub(super) fn healed_at(&self) -> u64 {
        let over = |fault: &Fault| match fault {
            Fault::Crash { at, down, .. } | Fault::BackendRestart { at, down } => at + down,
            Fault::Drain { at, down, force_after, .. } => at + down + force_after.unwrap_or_default(),
            Fault::Freeze { at, lasts, .. }
            | Fault::Outage { at, lasts, .. }
            | Fault::EngineAway { at, lasts, .. }
            | Fault::EngineStalls { at, lasts, .. } => at + lasts,
            Fault::KillCell { at, .. } | Fault::Clock { at, .. } | Fault::Cancel { at, .. } => *at,
            Fault::CrashAtRecord { .. }
            | Fault::CrashWhen { .. }
            | Fault::JournalFails { .. }
            | Fault::Call { .. }
            | Fault::Link { .. } => FAULT_SPAN,
        };
        let submitted = self.jobs.iter().map(|job| job.at).max().unwrap_or_default();
        self.faults.iter().map(over).max().unwrap_or_default().max(submitted) + 1
    }
}

/// `stubborn`: most run long and do not hear that they are asked to end.
fn job(c: &mut Chance, stubborn: bool, at: &mut u64) -> JobPlan {
    // Each in a millisecond of its own, so that ids are in order.
    *at += 1 + if c.once_in(3) { c.below(20_000) } else { c.below(300) };
    let stubborn = stubborn && !c.once_in(3);
    let ears = if stubborn { "none" } else { *c.pick(&["good", "good", "slow", "none"]) };
    let exit = *c.pick(&[0, 0, 0, 1, 7]);
    let (frames, every, bytes, rest) = match if stubborn { 2 } else { c.below(8) } {
        0 => (c.between(1, 8), 0, 0, 0),
        1 => (0, 0, 0, c.between(0, 3_000)),
        // Long enough for renewals, lost leases and cancels.
        2 => (0, 0, 0, c.between(30_000, 120_000)),
        3 => (c.between(2, 8), c.between(500, 20_000), 100, c.between(0, 5_000)),
        // More than fits into the ring and its window.
        4 if c.once_in(4) => (60, c.between(0, 20), 40_000, 10),
        _ => (c.between(1, 12), c.between(0, 700), c.between(10, 3_000), c.between(0, 2_000)),
    };
    let timeout_ms = if c.once_in(8) { c.between(100, 20_000) } else { 3_600_000 };
    let lost_after_ms = if c.once_in(2) { Some(*c.pick(&[10_000, 15_000, 20_000, 30_000, 120_000])) } else { None };
    let retry = c.once_in(2).then(|| RetryPlan {
        failure: c.below(4),
        infrastructure: c.once_in(2).then(|| c.below(4)),
        backoff_ms: *c.pick(&[1, 100, 1_000, 20_000]),
        only: c.once_in(4).then_some(7),
    });
    let command = format!("job {frames} {every} {bytes} {rest} {exit} {ears}");
    JobPlan { at: *at, command, lost_after_ms, timeout_ms, retry, left_out: false }
}

/// One more fault, or a few that belong together.
fn fault(c: &mut Chance, kind: Kind, agents: usize, jobs: u64, faults: &mut Vec<Fault>) {
    let agent = usize::try_from(c.below(agents as u64)).expect("small");
    // Half of them early, when most jobs begin.
    let at = if c.once_in(2) { c.below(3_000) } else { c.below(FAULT_SPAN) };
    let short = |c: &mut Chance| if c.once_in(3) { c.between(1, 60_000) } else { c.between(1, 2_000) };
    let long = |c: &mut Chance| c.between(100, *c.clone().pick(&[2_000, 15_000, 70_000]));
    let when = *c.pick(&[When::Before, When::After]);
    let life = if c.once_in(3) { u32::try_from(c.between(1, 2)).expect("small") } else { 0 };
    faults.push(match kind {
        Kind::Crash => Fault::Crash { agent, at, down: short(c) },
        Kind::Record => {
            let nth = u32::try_from(c.between(1, 12)).expect("small");
            Fault::CrashAtRecord { agent, life, nth, when, down: short(c) }
        }
        Kind::Journal => {
            let call = *c.pick(&[Record::Put, Record::Put, Record::Remove, Record::Entries]);
            let nth = u32::try_from(c.between(1, if call == Record::Entries { 1 } else { 8 })).expect("small");
            Fault::JournalFails { agent, life, call, nth, when }
        }
        Kind::Freeze => Fault::Freeze { agent, at, lasts: long(c) },
        Kind::Drain => {
            let force_after = c.once_in(2).then(|| c.between(1, 3_000));
            Fault::Drain { agent, at, force_after, down: short(c) }
        }
        Kind::Call => {
            let call = *c.pick(&[
                Call::Claim,
                Call::Claim,
                Call::Renew,
                Call::Renew,
                Call::Advance,
                Call::Advance,
                Call::Report,
                Call::Report,
                Call::Release,
                Call::Flush,
            ]);
            let nth = u32::try_from(c.between(1, 6)).expect("small");
            for nth in nth..=nth + u32::try_from(c.below(3)).expect("small") {
                let how = *c.pick(&[
                    How::Fails,
                    How::Unheard,
                    How::Late,
                    How::Twice,
                    How::SlowBefore(c.clone().between(10, 14_000)),
                    How::SlowAfter(c.clone().between(10, 14_000)),
                    How::Hangs,
                ]);
                faults.push(Fault::Call { agent, call, nth, how });
            }
            return;
        }
        Kind::Outage => Fault::Outage { agent, at, lasts: long(c), hangs: c.once_in(2) },
        Kind::Engine => Fault::EngineAway { agent, at, lasts: long(c) },
        Kind::Stall => Fault::EngineStalls { agent, at, lasts: c.between(1_000, *c.clone().pick(&[20_000, 300_000])) },
        Kind::Cell => Fault::KillCell { agent, at, which: c.below(4), removed: c.once_in(3) },
        Kind::Link => {
            let nth = u32::try_from(c.between(1, 10)).expect("small");
            let many = if c.once_in(4) { 6 } else { 1 };
            for nth in nth..nth + many {
                let fault = match c.below(9) {
                    0..=3 => LinkFault::CutAfterWritten(usize::try_from(c.below(6_000)).expect("small")),
                    4..=5 => LinkFault::CutAfterRead(usize::try_from(c.below(900)).expect("small")),
                    6 => LinkFault::Stalls(Duration::from_millis(c.between(10, 30_000))),
                    7 => LinkFault::Noise,
                    _ => LinkFault::Mute,
                };
                faults.push(Fault::Link { agent, nth, fault });
            }
            return;
        }
        Kind::Renewal => {
            let nth = u32::try_from(c.between(1, 4)).expect("small");
            let slow = How::SlowAfter(c.between(5_000, 11_000));
            faults.push(Fault::Call { agent, call: Call::Renew, nth, how: slow });
            for nth in nth + 1..nth + 9 {
                faults.push(Fault::Call { agent, call: Call::Renew, nth, how: How::Fails });
            }
            return;
        }
        Kind::Moment => {
            let moment = *c.pick(&[Moment::Starts, Moment::HearsAck, Moment::HearsClose]);
            let nth = u32::try_from(c.between(1, if moment == Moment::HearsAck { 8 } else { 3 })).expect("small");
            Fault::CrashWhen { agent, moment, nth, down: short(c) }
        }
        Kind::Word => {
            let word = u32::try_from(c.between(2, 4)).expect("small");
            let nth = if c.once_in(4) { 2 } else { 1 };
            faults.push(Fault::Link { agent, nth, fault: LinkFault::LosesLease(word) });
            // The first word is the claim's, or that of the renewal that follows on it.
            let last = word + u32::try_from(c.below(3)).expect("small");
            for nth in last..last + 9 {
                faults.push(Fault::Call { agent, call: Call::Renew, nth, how: How::Fails });
            }
            return;
        }
        Kind::Note => {
            let nth = u32::try_from(c.between(1, 6)).expect("small");
            let how = *c.pick(&[How::Fails, How::Hangs]);
            Fault::Call { agent, call: Call::Advance, nth, how }
        }
        Kind::Server => Fault::BackendRestart { at, down: short(c) },
        Kind::Clock => Fault::Clock { at, by_s: *c.pick(&[86_400, -86_400, 3_600, -3_600, 30, -30]) },
        Kind::Cancel => {
            let job = usize::try_from(c.below(jobs)).expect("small");
            Fault::Cancel { job, at, force: c.once_in(3) }
        }
    });
}
