//! What each transition does to one job. Pure, and the only place that decides: two stores cannot differ in it.
//!
//! The *number* of an attempt only grows: cells and logs are named after it, so it is never handed out twice. `tries`
//! counts the attempts that were not given back, and is what the limit of attempts looks at.

use super::{Applied, Canceled, Claim, Completion, Expired, NewJob, Renewal, Standing};
use crate::job::{AttemptId, Cause, Ending, Job, LeaseToken, LogTotals, Millis, Phase, PhaseEvent, Report, UnixMillis};

/// A longer history loses its oldest entries but the first: a job that is given back again and again must not make its
/// row grow for ever.
const MAX_HISTORY: usize = 128;

/// A job with what only the queue knows of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) job: Job,
    /// Attempts that count against the limit.
    pub(super) tries: u32,
    pub(super) lease: Option<Lease>,
}

/// Who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) token: LeaseToken,
    pub(super) until: UnixMillis,
}

impl Row {
    /// A job that was just submitted.
    pub(super) fn new(new: NewJob) -> Self {
        let job = Job {
            id: new.id,
            revision: 1,
            retry_of: new.retry_of,
            phase: Phase::Queued,
            ending: None,
            attempt: 0,
            cancel_requested: false,
            agent: None,
            submitted_at: new.at,
            started_at: None,
            ended_at: None,
            spec: new.spec,
            history: vec![PhaseEvent { attempt: 0, phase: Phase::Queued, at: new.at, reason: "submitted".to_owned() }],
            usage: None,
            receipt: Vec::new(),
            log: LogTotals::default(),
        };
        Self { job, tries: 0, lease: None }
    }

    fn enter(&mut self, phase: Phase, at: UnixMillis, reason: &str) {
        let step = self.job.phase.step(phase);
        debug_assert!(step.is_ok(), "the callers look first: {step:?}");
        self.job.phase = phase;
        self.job.revision += 1;
        if self.job.history.len() >= MAX_HISTORY {
            self.job.history.remove(1);
        }
        self.job.history.push(PhaseEvent { attempt: self.job.attempt, phase, at, reason: reason.to_owned() });
    }

    fn end(&mut self, cause: Cause, at: UnixMillis) {
        self.enter(Phase::Ended, at, cause.code());
        self.job.ended_at = Some(at);
        self.job.ending = Some(Ending::from(cause));
        self.lease = None;
    }

    /// Its last attempt is this one, and was this agent's.
    fn was_of(&self, agent: &str, attempt: AttemptId) -> bool {
        self.job.agent.as_deref() == Some(agent) && self.job.attempt == attempt.attempt && attempt.part == 0
    }

    /// Tokens are numbers that can be guessed, so they fence an agent against its own past only; against others its name does.
    fn held_by(&self, agent: &str, attempt: AttemptId, token: LeaseToken) -> bool {
        self.lease.is_some_and(|lease| lease.token == token) && self.was_of(agent, attempt)
    }

    /// Term of its leases: its own, or the queue's.
    fn term(&self, lease: Millis) -> Millis {
        self.job.spec.lost_after().unwrap_or(lease)
    }

    /// Gives its holder a full term from now on, whatever the clock said before.
    pub(super) fn extend(&mut self, lease: Millis, now: UnixMillis) {
        let until = now.plus(self.term(lease));
        self.lease = self.lease.map(|held| Lease { until, ..held });
    }

    /// Hands it out. Only for a queued one.
    pub(super) fn claim(&mut self, agent: &str, token: LeaseToken, lease: Millis, now: UnixMillis) -> Claim {
        self.job.attempt += 1;
        self.tries += 1;
        self.job.agent = Some(agent.to_owned());
        self.job.started_at = None;
        self.enter(Phase::Claimed, now, "claimed");
        let until = now.plus(self.term(lease));
        self.lease = Some(Lease { token, until });
        let attempt = AttemptId::new(self.job.id, self.job.attempt);
        Claim { attempt, token, spec: self.job.spec.clone(), lease_until: until }
    }

    /// Renews a lease, to a later end and never to an earlier one. One that ran out but was not handed out again yet still
    /// counts: the holder is alive.
    pub(super) fn renew(
        &mut self,
        agent: &str,
        (attempt, token): (AttemptId, LeaseToken),
        lease: Millis,
        now: UnixMillis,
    ) -> Renewal {
        let Some(held) = self.lease.filter(|_| self.held_by(agent, attempt, token)) else { return Renewal::Refused };
        let until = held.until.max(now.plus(self.term(lease)));
        self.lease = Some(Lease { token, until });
        Renewal::Renewed { until, cancel_requested: self.job.cancel_requested }
    }

    /// Enters a phase on the holder's word.
    pub(super) fn advance(
        &mut self,
        agent: &str,
        (attempt, token): (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Applied {
        if !self.held_by(agent, attempt, token) || matches!(phase, Phase::Queued | Phase::Claimed | Phase::Ended) {
            return Applied::Refused;
        }
        if self.job.phase >= phase {
            return Applied::AlreadyThere;
        }
        self.enter(phase, at, reason);
        if phase == Phase::Running {
            self.job.started_at = Some(at);
        }
        Applied::Applied
    }

    /// Ends with the holder's report.
    pub(super) fn complete(&mut self, agent: &str, report: &Report, token: LeaseToken, now: UnixMillis) -> Completion {
        if self.job.phase == Phase::Ended && self.was_of(agent, report.attempt) {
            return Completion::AlreadyEnded;
        }
        if !self.held_by(agent, report.attempt, token) {
            return Completion::Unknown;
        }
        self.job.started_at = report.started_at;
        self.job.usage = report.usage;
        self.job.receipt.clone_from(&report.receipt);
        self.job.log = report.log.clone();
        self.end(report.cause.clone(), now);
        Completion::Applied(Box::new(self.job.clone()))
    }

    /// Goes back to the queue unstarted; the try does not count, unless its end was asked for.
    pub(super) fn release(
        &mut self,
        agent: &str,
        (attempt, token): (AttemptId, LeaseToken),
        now: UnixMillis,
        reason: &str,
    ) -> Applied {
        // A number is handed out once, so a queued job with this one was given back (or lost) by this very holder.
        if self.job.phase == Phase::Queued && self.was_of(agent, attempt) {
            return Applied::AlreadyThere;
        }
        if !self.held_by(agent, attempt, token) || self.job.phase >= Phase::Running {
            return Applied::Refused;
        }
        self.tries = self.tries.saturating_sub(1);
        if self.job.cancel_requested && !mutant!(CancelLostAtRelease) {
            self.end(Cause::Canceled, now);
            return Applied::Applied;
        }
        self.enter(Phase::Queued, now, reason);
        self.lease = None;
        Applied::Applied
    }

    /// How an attempt of it stands, for one who says that it is theirs.
    pub(super) fn standing(&self, agent: &str, attempt: AttemptId, token: LeaseToken) -> Standing {
        if self.held_by(agent, attempt, token) {
            Standing::Held
        } else if self.job.phase == Phase::Ended && self.was_of(agent, attempt) {
            Standing::Ended
        } else {
            Standing::Unknown
        }
    }

    /// Ends it, or asks its holder to.
    pub(super) fn cancel(&mut self, now: UnixMillis) -> Canceled {
        match self.job.phase {
            Phase::Ended => return Canceled::AlreadyEnded(Box::new(self.job.clone())),
            Phase::Queued => {
                self.job.cancel_requested = true;
                self.end(Cause::Canceled, now);
                return Canceled::Ended(Box::new(self.job.clone()));
            }
            Phase::Claimed | Phase::Preparing | Phase::Running | Phase::Finishing => {}
        }
        if !self.job.cancel_requested {
            self.job.cancel_requested = true;
            self.job.revision += 1;
        }
        Canceled::Requested(Box::new(self.job.clone()))
    }

    /// Cancels it if it is at one of these revisions.
    pub(super) fn cancel_if(&mut self, revisions: &[u64], now: UnixMillis) -> Canceled {
        if revisions.contains(&self.job.revision) {
            self.cancel(now)
        } else {
            Canceled::Changed(Box::new(self.job.clone()))
        }
    }

    /// Settles it if its lease ran out.
    pub(super) fn expire(&mut self, now: UnixMillis, max_attempts: u32) -> Option<Expired> {
        let early = Millis::from_secs(if mutant!(EarlyHandOut) { 4 } else { 0 });
        if self.lease.is_none_or(|lease| lease.until > now.plus(early)) {
            return None;
        }
        if self.job.cancel_requested && !mutant!(CancelLostAtExpiry) {
            self.end(Cause::Canceled, now);
        } else if self.tries >= max_attempts || mutant!(LostAtOnce) {
            self.end(Cause::AgentLost { attempts: self.tries }, now);
        } else {
            self.enter(Phase::Queued, now, "lease_expired");
            self.job.started_at = None;
            self.lease = None;
            return Some(Expired::Requeued(AttemptId::new(self.job.id, self.job.attempt)));
        }
        Some(Expired::Ended(Box::new(self.job.clone())))
    }
}
