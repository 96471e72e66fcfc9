//! What may have ended an attempt, and whether it ended for what is said of it.

use super::check::{MOMENT, Seen};
use super::ledger::{Disturbance, Note};
use super::scenario::{Fault, Scenario};
use crate::agent::renewals::Terms;
use crate::executor::scripted::{How, LinkFault, Run};
use crate::job::{AttemptId, Cause, Job, PhaseEvent};
use std::time::Duration;
use tokio::time::Instant;

/// What may have ended an attempt, apart from itself.
pub(super) struct Reasons<'a> {
    seen: &'a Seen,
    scenario: &'a Scenario,
    job: &'a Job,
    attempt: AttemptId,
    agent: Option<usize>,
    run: Option<&'a Run>,
    /// When it was over: its run, or its report.
    over: Instant,
}

impl<'a> Reasons<'a> {
    pub(super) fn new(seen: &'a Seen, scenario: &'a Scenario, job: &'a Job, attempt: AttemptId) -> Self {
        let run = seen.runs.get(&attempt).map(|(_, run)| run);
        let reported = seen.reports(attempt).next().map(|(at, _)| *at);
        let at = reported.unwrap_or_else(Instant::now);
        let agent = seen.runs.get(&attempt).map(|(agent, _)| *agent);
        let agent = agent.or_else(|| seen.granted(attempt, at).map(|(_, agent)| agent));
        let over = run.and_then(|run| run.to).map_or(at, |(over, _)| over);
        Self { seen, scenario, job, attempt, agent, run, over }
    }

    fn has_fault(&self, wanted: impl Fn(&Fault, usize) -> bool) -> bool {
        self.agent.is_some_and(|agent| self.scenario.faults.iter().any(|fault| wanted(fault, agent)))
    }

    fn canceled(&self) -> bool {
        self.seen.canceled(self.job.id).is_some()
    }

    fn forced(&self) -> bool {
        self.has_fault(|fault, agent| matches!(fault, Fault::Drain { agent: of, .. } if *of == agent))
    }

    pub(super) fn killed(&self) -> bool {
        self.seen.any(|note| matches!(note, Note::CellKilled { attempt: of } if *of == self.attempt))
    }

    pub(super) fn engine_away(&self) -> bool {
        let from = self.run.map_or(self.over, |run| run.from);
        let of = |one: &&Disturbance| one.what == "the engine" && one.agent == self.agent;
        self.seen.disturbances.iter().filter(of).any(|one| one.from <= self.over + MOMENT && one.to >= from)
    }

    /// Its warden was not heard, or did not hear, for longer than a moment.
    fn silent_link(&self) -> bool {
        let silent = |fault: &LinkFault| matches!(fault, LinkFault::Mute | LinkFault::Stalls(_));
        self.has_fault(
            |fault, agent| matches!(fault, Fault::Link { agent: of, fault, .. } if *of == agent && silent(fault)),
        )
    }

    pub(super) fn bad_links(&self) -> bool {
        let of = |fault: &&Fault| matches!(fault, Fault::Link { agent: of, .. } if Some(*of) == self.agent);
        self.silent_link() || self.scenario.faults.iter().filter(of).count() >= 5
    }

    fn lease_over(&self) -> bool {
        let lease =
            Duration::from_millis(self.job.spec.lost_after().map_or(self.scenario.lease_ms, |span| span.as_u64()));
        let grace = Duration::from_millis(self.scenario.agents[self.agent.unwrap_or_default()].grace_ms);
        let usable = Terms::within(lease, grace).usable;
        let refused = self.seen.any(|note| matches!(note, Note::Refused { attempt: of } if *of == self.attempt));
        refused || self.seen.longest_gap(self.attempt, self.over) + MOMENT > usable
    }

    fn timed_out(&self) -> bool {
        self.run.is_some_and(|run| self.over >= run.from + self.job.spec.timeout().as_duration())
    }

    /// When the backend said that it does not get on.
    fn told_stuck(&self) -> Option<Instant> {
        let of = |event: &&PhaseEvent| event.attempt == self.attempt.attempt && event.reason == "stuck";
        self.job.history.iter().find(of).map(|event| self.seen.moment(event.at))
    }

    /// It ran, and nothing kept its agent from saying so, for longer than it takes.
    fn got_on(&self, told: Instant) -> bool {
        let (Some(run), Some(agent)) = (self.run, self.agent) else { return false };
        let said = self.seen.disturbed_for(agent, run.from, told) + Duration::from_secs(20);
        told.saturating_duration_since(run.from) > said
    }

    pub(super) fn stopped(&self) -> bool {
        self.canceled() || self.forced() || self.lease_over() || self.timed_out() || self.told_stuck().is_some()
    }
}

pub(super) fn true_cause(
    seen: &Seen,
    scenario: &Scenario,
    job: &Job,
    attempt: AttemptId,
    cause: &Cause,
) -> Result<(), String> {
    let why = Reasons::new(seen, scenario, job, attempt);
    let over = why.run.and_then(|run| run.to);
    let no = |what: &str| Err(format!("{what}; it ran {:?}", why.run));
    let when = |holds: bool, what: &str| if holds { Ok(()) } else { no(what) };
    match cause {
        Cause::ExitCode { exit_code } => match over {
            Some((_, How::Exited { code, reason: 0 })) if code == *exit_code => {
                let run = why.run.ok_or("it never ran")?;
                when(run.frames == run.play.frames, "it had more to say")
            }
            _ => no("it did not end so"),
        },
        Cause::Canceled => when(why.canceled(), "nobody canceled it"),
        Cause::Timeout { limit } => {
            // Its agent has the time itself, for a warden that says nothing, and for a cell of which nothing is seen.
            let unseen = why.silent_link() || why.engine_away();
            when(*limit == job.spec.timeout() && (why.timed_out() || unseen), "its time was not over")
        }
        Cause::AgentStopped => when(why.forced(), "its agent was not stopped"),
        Cause::LeaseExpired => {
            let agent = why.agent.ok_or("it had no agent")?;
            let from = seen.heard(attempt, why.over).unwrap_or(why.over).min(why.run.map_or(why.over, |run| run.from));
            // Its agent may know that it has the lease, and cannot tell the warden, or dies, or hands over, before it does.
            let handover = scenario.agents[agent].handover;
            let left = |what: &str| what == "a crash" || (handover && what == "a drain");
            let left = seen
                .disturbances
                .iter()
                .any(|one| left(one.what) && one.agent == Some(agent) && one.from <= why.over && one.to >= from);
            when(why.lease_over() || why.silent_link() || why.engine_away() || left, "its lease was not over")?;
            when(why.silent_link() || seen.disturbed(agent, from, why.over), "nothing was in the way of a renewal")
        }
        Cause::CellLost { .. } => {
            // Or its agent ended it, for a reason, or the cell of a warden that was not heard, and died before it could say so.
            let ended = matches!(over, Some((_, How::CellEnded))) && why.stopped();
            when(why.killed() || why.engine_away() || why.bad_links() || ended, "its cell was not lost")
        }
        Cause::WardenFault { .. } => when(why.bad_links(), "its warden did nothing wrong"),
        Cause::Stuck { .. } => match why.told_stuck() {
            Some(told) => when(seen.clock_was_set || !why.got_on(told), "it got on"),
            None => no("nobody said so"),
        },
        // Whether its lease was over is looked at elsewhere.
        Cause::AgentLost { .. } => Ok(()),
        _ => no("nothing here could have done that"),
    }
}
