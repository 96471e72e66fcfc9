//! What each transition does to one job. Pure, and the only place that decides: two stores cannot differ in it.
//!
//! The *number* of an attempt only grows: cells and logs are named after it, so it is never handed out twice. `tries`
//! counts the attempts that were not given back, and is what the limits of tries look at.
//!
//! A try that has ended and is followed by another one waits for it in the queue: *delayed*, which nobody claims, until
//! [`Row::ready`] says that its time has come.

use super::family::{FANNED_OUT, Family, HELD, HELD_BACK, LET_GO};
use super::{Applied, Canceled, Claim, Completion, Expired, NewJob, Renewal, Replay, Standing, Stuck};
use crate::job::{
    AttemptId, Cause, Class, GivenUp, Job, JobId, Later, LeaseToken, LogTotals, MOST_TIMINGS, Millis, PULL_NOTE,
    PastTry, Phase, PhaseEvent, PutOff, Report, Results, Then, Tried, UnixMillis, then,
};

use serde::{Deserialize, Serialize};

/// A longer history loses its oldest entries but the first: a job that is given back again and again must not make its
/// row grow for ever.
const MAX_HISTORY: usize = 128;
/// The same for the tries: as many as there can be of one class.
const MAX_PAST: usize = 100;

/// What a frame of output takes on the disk beside its bytes, about.
const FRAME_BYTES: u64 = 32;

/// Reason of a note: its holder is not trusted with jobs any more.
const QUARANTINED: &str = "quarantined";
/// The reason of each claim in a history.
const CLAIMED: &str = "claimed";
/// Reason of a note: its lease was given a full term, because nobody knew how much of it was left.
const EXTENDED: &str = "lease_extended";
/// A holder that was told to end a job that does not get on has so long; then the lease is taken from it.
const STUCK_GRACE: Millis = Millis::from_secs(60);

/// A job with what only the queue knows of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) job: Job,
    /// Attempts that count against the limits, the one that is held included.
    pub(super) tries: u32,
    /// Those of them that ended by the job's own doing and were followed by another one.
    pub(super) failures: u32,
    /// Nobody claims it before.
    pub(super) delayed: Option<UnixMillis>,
    /// When its holder was told to end it because it does not get on.
    pub(super) told: Option<Told>,
    /// Of a job for several hosts: all that had not ended were asked for their end.
    pub(super) stopped: bool,
    pub(super) lease: Option<Lease>,
}

/// That a holder was told to end a job that does not get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    at: UnixMillis,
    phase: Phase,
    limit: Millis,
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
        let at = new.at;
        let event = |phase, reason: &str| PhaseEvent { attempt: 0, phase, at, reason: reason.to_owned() };
        let (parent, held, children) = match new.family {
            Family::Alone => (None, false, false),
            Family::Parent(_) => (None, false, true),
            Family::Child { parent, held } => (Some(parent), held, false),
        };
        let mut history = vec![event(Phase::Queued, if held { HELD_BACK } else { "submitted" })];
        history.extend(children.then(|| event(Phase::Running, FANNED_OUT)));
        let job = Job {
            id: new.id,
            revision: 1,
            retry_of: new.retry_of,
            parent,
            children: None,
            submitter: new.submitter,
            phase: if children { Phase::Running } else { Phase::Queued },
            ending: None,
            attempt: 0,
            past_tries: Vec::new(),
            next_try: None,
            put_off: None,
            dead_letter: false,
            given_up: None,
            cancel_requested: false,
            agent: None,
            submitted_at: at,
            started_at: children.then_some(at),
            ended_at: None,
            spec: new.spec,
            history,
            usage: None,
            receipt: Vec::new(),
            clamped: Vec::new(),
            image: None,
            log: LogTotals::default(),
            output_gone_at: None,
            timings: Vec::new(),
            results: Results::default(),
        };
        Self { job, tries: 0, failures: 0, delayed: held.then_some(HELD), told: None, stopped: false, lease: None }
    }

    fn enter(&mut self, phase: Phase, at: UnixMillis, reason: &str) {
        let step = self.job.phase.step(phase);
        debug_assert!(step.is_ok(), "the callers look first: {step:?}");
        self.job.phase = phase;
        self.job.revision += 1;
        self.note(phase, at, reason);
    }

    /// Its output is not kept any more; true when that is new.
    pub(super) fn output_gone(&mut self, at: UnixMillis) -> bool {
        let new = self.job.phase == Phase::Ended && self.job.output_gone_at.is_none();
        if new {
            self.job.output_gone_at = Some(at);
            self.job.revision += 1;
        }
        new
    }

    /// About how many bytes its output takes on the disk; nothing while it has not ended, and where there is none (any more).
    pub(super) fn output_bytes(&self) -> Option<u64> {
        let Job { phase, output_gone_at, log, past_tries, .. } = &self.job;
        let bytes = |log: &LogTotals| {
            let frames = log.frames.saturating_mul(FRAME_BYTES);
            frames.saturating_add(log.stdout.bytes).saturating_add(log.stderr.bytes)
        };
        let all = past_tries.iter().fold(bytes(log), |sum, past| sum.saturating_add(bytes(&past.log)));
        // What a database can keep as a number.
        Some(all.min(1 << 60)).filter(|bytes| *phase == Phase::Ended && output_gone_at.is_none() && *bytes > 0)
    }

    fn note(&mut self, phase: Phase, at: UnixMillis, reason: &str) {
        if self.job.history.len() >= MAX_HISTORY {
            self.job.history.remove(1);
        }
        self.job.history.push(PhaseEvent { attempt: self.job.attempt, phase, at, reason: reason.to_owned() });
    }

    /// How far the pull of its image is, in place of what was said of it before: it gets on. The job is no other one by that: whoever changes it
    /// on the condition that it is as they saw it (`If-Match`) is not held up by a pull.
    fn note_pull(&mut self, at: UnixMillis, reason: &str) {
        let attempt = self.job.attempt;
        match self.job.history.last_mut() {
            Some(last) if last.attempt == attempt && last.reason.starts_with(PULL_NOTE) => {
                *last = PhaseEvent { at, reason: reason.to_owned(), ..last.clone() };
            }
            _ => self.note(Phase::Preparing, at, reason),
        }
    }

    fn end(&mut self, cause: Cause, at: UnixMillis) {
        self.job.spec.forget_secrets();
        self.enter(Phase::Ended, at, cause.code());
        self.job.ended_at = Some(at);
        self.job.ending = Some(self.job.ending_by(cause));
        self.job.next_try = None;
        self.job.put_off = None;
        self.delayed = None;
        self.lease = None;
    }

    /// Ends one that is canceled and does not run. When none of its tries ever did there is no output, and nothing of it is missing.
    fn end_unstarted(&mut self, at: UnixMillis) {
        if self.job.past_tries.is_empty() {
            self.job.log = LogTotals { complete: true, ..LogTotals::default() };
        }
        self.end(Cause::Canceled, at);
    }

    /// It waits for others of its parent no more; true when it did.
    pub(super) fn let_go(&mut self, now: UnixMillis) -> bool {
        let held = self.job.phase == Phase::Queued && self.delayed == Some(HELD);
        if held {
            self.delayed = None;
            self.job.revision += 1;
            self.note(Phase::Queued, now, LET_GO);
        }
        held
    }

    /// All its children have ended.
    pub(super) fn end_family(&mut self, cause: Cause, now: UnixMillis) -> Job {
        // It has no output of its own, and nothing of it is missing.
        self.job.log = LogTotals { complete: true, ..LogTotals::default() };
        self.end(cause, now);
        self.job.clone()
    }

    /// A try has ended: the job ends with it, or waits for the next one, for `reason`. `infrastructure`: tries after ends that
    /// are ours, of a job that does not say how many.
    fn try_ended(&mut self, cause: Cause, at: UnixMillis, infrastructure: u32, reason: &str) {
        let attempt = AttemptId::new(self.job.id, self.job.attempt);
        let tried = Tried { all: self.tries, failures: self.failures };
        match then(attempt, self.job.spec.retry(), &cause, tried, infrastructure, at) {
            Then::Over => self.end(cause, at),
            Then::GivenUp(reason) => {
                self.end(cause, at);
                self.job.dead_letter = !mutant!(DeadLetterLost);
                self.job.given_up = Some(GivenUp { reason, replayed_by: None });
            }
            Then::Again(next) => {
                self.failures += u32::from(cause.class() == Class::Failure && !mutant!(FailuresNotCounted));
                if !mutant!(PastTryForgotten) {
                    self.remember(cause, at);
                }
                self.enter(Phase::Queued, at, reason);
                self.delayed = Some(next.not_before).filter(|moment| *moment > at && !mutant!(RetriedAtOnce));
                self.job.next_try = Some(next);
                self.job.put_off = None;
                self.job.started_at = None;
                self.lease = None;
            }
        }
    }

    fn remember(&mut self, cause: Cause, at: UnixMillis) {
        if self.job.past_tries.len() >= MAX_PAST {
            self.job.past_tries.remove(0);
        }
        self.job.past_tries.push(PastTry {
            attempt: self.job.attempt,
            agent: self.job.agent.clone().unwrap_or_default(),
            started_at: self.job.started_at,
            ended_at: at,
            message: cause.to_string(),
            cause,
            log: self.job.log.clone(),
        });
    }

    /// Its holder has reported the end of this attempt, and the job went on to another try. One that was lost was not reported.
    fn was_reported(&self, agent: &str, attempt: AttemptId) -> bool {
        let reported = |past: &PastTry| {
            past.attempt == attempt.attempt
                && past.agent == agent
                && !matches!(past.cause, Cause::AgentLost { .. } | Cause::Stuck { .. })
        };
        attempt.part == 0 && self.job.past_tries.iter().any(reported)
    }

    /// Its time has come: it may be claimed.
    pub(super) fn ready(&mut self) {
        self.delayed = None;
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
        if self.lease.is_some() && matches!(self.job.phase, Phase::Claimed | Phase::Preparing) && !self.is_extended() {
            self.job.revision += 1;
            self.note(self.job.phase, now, EXTENDED);
        }
    }

    /// A server has started since it was claimed. That it runs was only written, and a loss of power forgets what was.
    fn is_extended(&self) -> bool {
        let attempt = self.job.attempt;
        self.job.history.iter().any(|event| event.attempt == attempt && event.reason == EXTENDED)
    }

    /// Hands it out. Only for a queued one.
    pub(super) fn claim(&mut self, agent: &str, token: LeaseToken, lease: Millis, now: UnixMillis) -> Claim {
        self.job.attempt += 1;
        self.tries += 1;
        self.job.agent = Some(agent.to_owned());
        // What is said of the job from here on is said of this try.
        self.job.started_at = None;
        self.told = None;
        self.job.next_try = None;
        self.job.usage = None;
        self.job.receipt = Vec::new();
        self.job.clamped = Vec::new();
        self.job.image = None;
        self.job.timings = Vec::new();
        self.job.log = LogTotals::default();
        self.job.results = Results::default();
        self.enter(Phase::Claimed, now, CLAIMED);
        let until = now.plus(self.term(lease));
        self.lease = Some(Lease { token, until });
        let attempt = AttemptId::new(self.job.id, self.job.attempt);
        let submitter = self.job.submitter.as_ref().map(|submitter| submitter.name.clone());
        let spec = self.job.spec.clone();
        Claim { attempt, token, spec, submitter, lease_until: until }
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
        // Who missed the order hears it here.
        Renewal::Renewed { until, cancel_requested: self.job.cancel_requested || self.told.is_some() }
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
        if self.job.phase == Phase::Preparing && phase == Phase::Preparing && reason.starts_with(PULL_NOTE) {
            self.note_pull(at, reason);
            return Applied::Applied;
        }
        if self.job.phase >= phase {
            return Applied::AlreadyThere;
        }
        self.enter(phase, at, reason);
        if phase == Phase::Running {
            self.job.put_off = None;
            self.job.started_at = Some(at);
        }
        Applied::Applied
    }

    /// Ends the try with the holder's report, and the job with it unless it is tried again. What was asked to end is not.
    pub(super) fn complete(
        &mut self,
        agent: &str,
        report: &Report,
        token: LeaseToken,
        now: UnixMillis,
        max_attempts: u32,
    ) -> Completion {
        if self.is_over(agent, report.attempt) {
            return Completion::AlreadyEnded;
        }
        if !self.held_by(agent, report.attempt, token) {
            return Completion::Unknown;
        }
        self.job.started_at = report.started_at;
        self.job.usage.clone_from(&report.usage);
        self.job.receipt.clone_from(&report.receipt);
        self.job.clamped = self.job.spec.clamped_to(&report.given);
        self.job.image.clone_from(&report.image);
        self.job.log = report.log.clone();
        self.job.results = report.results.clone();
        self.job.timings = report.timings.iter().take(MOST_TIMINGS).cloned().collect();
        if self.job.cancel_requested && !mutant!(RetriedWhileCanceled) {
            self.end(report.cause.clone(), now);
        } else {
            // Told to end it, its holder takes it for canceled.
            let cause = match (&report.cause, self.told) {
                (Cause::Canceled, Some(Told { phase, limit, .. })) => Cause::Stuck { phase, limit },
                (cause, _) => cause.clone(),
            };
            let code = cause.code();
            self.try_ended(cause, now, max_attempts.saturating_sub(1), code);
        }
        Completion::Applied(Box::new(self.job.clone()))
    }

    /// Goes back to the queue unstarted, until `later` if that is given; the try does not count, unless its end was asked for.
    pub(super) fn release(
        &mut self,
        agent: &str,
        (attempt, token): (AttemptId, LeaseToken),
        now: UnixMillis,
        reason: &str,
        later: Option<&Later>,
    ) -> Applied {
        // A number is handed out once, so a queued job with this one was given back (or lost) by this very holder.
        if self.job.phase == Phase::Queued && self.was_of(agent, attempt) {
            return Applied::AlreadyThere;
        }
        if !self.held_by(agent, attempt, token) || self.job.phase >= Phase::Running {
            return Applied::Refused;
        }
        self.tries = self.tries.saturating_sub(u32::from(!mutant!(GivenBackCounts)));
        if self.job.cancel_requested && !mutant!(CancelLostAtRelease) {
            self.end_unstarted(now);
            return Applied::Applied;
        }
        self.enter(Phase::Queued, now, reason);
        self.job.put_off = later.map(|later| PutOff::after(attempt, self.job.put_off.as_ref(), later, now));
        self.delayed = self.job.put_off.as_ref().map(|put_off| put_off.not_before);
        self.lease = None;
        Applied::Applied
    }

    /// Notes of a dead letter that a new job does it again, and gives that one. `room`: the queue takes one more.
    pub(super) fn replay(&mut self, by: JobId, now: UnixMillis, room: bool) -> Result<NewJob, Replay> {
        let Some(given_up) = &mut self.job.given_up else { return Err(Replay::NotDead) };
        if let Some(by) = given_up.replayed_by {
            return Err(Replay::Already(by));
        }
        if self.job.spec.has_inline_secrets() {
            return Err(Replay::SecretsGone);
        }
        if !room {
            return Err(Replay::QueueFull);
        }
        given_up.replayed_by = Some(by);
        self.job.dead_letter = false;
        self.job.revision += 1;
        Ok(NewJob {
            id: by,
            spec: self.job.spec.clone().without_idempotency_key(),
            at: now,
            retry_of: Some(self.job.id),
            // What may be done is decided for who asked for the work, not for who has it done again.
            submitter: self.job.submitter.clone(),
            quota: None,
            family: Family::Alone,
        })
    }

    /// How an attempt of it stands, for one who says that it is theirs.
    pub(super) fn standing(&self, agent: &str, attempt: AttemptId, token: LeaseToken) -> Standing {
        if self.held_by(agent, attempt, token) {
            Standing::Held
        } else if self.is_over(agent, attempt) {
            Standing::Ended
        } else {
            Standing::Unknown
        }
    }

    /// The attempt was this agent's, and its end is known: by a report, or as the job's own.
    fn is_over(&self, agent: &str, attempt: AttemptId) -> bool {
        (self.job.phase == Phase::Ended && self.was_of(agent, attempt)) || self.was_reported(agent, attempt)
    }

    /// Ends it, or asks its holder to.
    pub(super) fn cancel(&mut self, now: UnixMillis) -> Canceled {
        match self.job.phase {
            Phase::Ended => return Canceled::AlreadyEnded(Box::new(self.job.clone())),
            Phase::Queued => {
                self.job.cancel_requested = true;
                self.end_unstarted(now);
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

    /// Looks whether it gets on: one that does not is to be ended by its holder, and taken from it when that does not help.
    /// `after`: so long it may be on its way to its start, and beyond its timeout.
    pub(super) fn stuck(&mut self, now: UnixMillis, after: Millis, max_attempts: u32) -> Option<Stuck> {
        self.lease?;
        let (since, limit) = self.way(after)?;
        if now < since.plus(limit) {
            return None;
        }
        let Some(told) = self.told else {
            self.told = Some(Told { at: now, phase: self.job.phase, limit });
            self.job.revision += 1;
            self.note(self.job.phase, now, "stuck");
            let attempt = AttemptId::new(self.job.id, self.job.attempt);
            return Some(Stuck::Told { attempt, holder: self.job.agent.clone() });
        };
        if now < told.at.plus(STUCK_GRACE) || mutant!(StuckHoldForgotten) {
            return None;
        }
        if self.job.cancel_requested {
            self.end(Cause::Canceled, now);
        } else {
            let cause = Cause::Stuck { phase: told.phase, limit: told.limit };
            self.try_ended(cause, now, max_attempts.saturating_sub(1), "stuck");
        }
        Some(Stuck::Taken(self.expired()))
    }

    /// Since when it is in the part of its way that it is in, and how long that may take at most. A holder's clock may be behind
    /// ours: nothing began before the claim.
    fn way(&self, after: Millis) -> Option<(UnixMillis, Millis)> {
        // Not the note that it was stuck there.
        let claim = |event: &&PhaseEvent| event.phase == Phase::Claimed && event.reason == CLAIMED;
        let claimed = self.job.history.iter().rfind(claim)?.at;
        match self.job.phase {
            // One that finishes has ended, and its output is on its way for as long as it takes.
            Phase::Queued | Phase::Finishing | Phase::Ended => None,
            // How far it was before a start of this server may be forgotten.
            Phase::Claimed | Phase::Preparing if self.is_extended() => {
                Some((claimed, self.job.spec.timeout().and(after)))
            }
            Phase::Claimed | Phase::Preparing => {
                let pull = self.job.history.last().filter(|event| event.reason.starts_with(PULL_NOTE));
                Some((pull.map_or(claimed, |event| event.at.max(claimed)), after))
            }
            Phase::Running => {
                let began = self.job.started_at.unwrap_or(claimed).max(claimed);
                Some((began, self.job.spec.timeout().and(after)))
            }
        }
    }

    fn expired(&self) -> Expired {
        match self.job.phase {
            Phase::Ended => Expired::Ended(Box::new(self.job.clone())),
            _ => Expired::Requeued(AttemptId::new(self.job.id, self.job.attempt)),
        }
    }

    /// Takes it from a holder that is not trusted with it any more; `None` when it is not held by that one.
    pub(super) fn take_from(&mut self, agent: &str, now: UnixMillis, max_attempts: u32) -> Option<Expired> {
        if self.job.agent.as_deref() != Some(agent) {
            return None;
        }
        self.lease.as_mut()?.until = now;
        self.note(self.job.phase, now, QUARANTINED);
        self.expire(now, max_attempts)
    }

    /// Settles it if its lease ran out.
    pub(super) fn expire(&mut self, now: UnixMillis, max_attempts: u32) -> Option<Expired> {
        if self.lease.is_none_or(|lease| lease.until > now) {
            return None;
        }
        if self.job.cancel_requested && !mutant!(CancelLostAtExpiry) {
            self.end(Cause::Canceled, now);
        } else if mutant!(LostAtOnce) {
            self.end(Cause::AgentLost { attempts: self.tries }, now);
        } else {
            let cause = Cause::AgentLost { attempts: self.tries - self.failures };
            self.try_ended(cause, now, max_attempts.saturating_sub(1), "lease_expired");
        }
        Some(self.expired())
    }
}
