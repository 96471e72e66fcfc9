//! The embedded backend's heart: a queue of jobs, changed by whole transitions only.
//!
//! What a transition does to a job is decided in [`transition`], once and without I/O; a [`Store`] loads, lets it decide,
//! and saves. Time is always an argument. Illegal, late and duplicate requests are refused or answered idempotently,
//! never half done.

mod batch;
mod daily;
mod family;
mod list;
mod memory;
mod old;
mod routing;
mod sqlite;
mod transition;

pub use batch::{Batch, CancelMark, Replay};
pub use daily::{Day, Ended};
pub use family::{Family, HELD_BACK, Settled, first_children};
pub use list::ListFilter;
pub use memory::MemoryStore;
pub use old::{Old, Place as OldPlace, REMOVE_BATCH};
pub use routing::{CONTAINERS, Groups, HOSTS, Obstacle, Peer, Profile};
pub use sqlite::{SqliteStore, Still, counts_in, fence};

use crate::job::{
    AttemptId, Capacity, Children, Job, JobId, JobSpec, JobSummary, Later, LeaseToken, Millis, Phase, Report,
    Submitter, UnixMillis,
};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::PathBuf;

/// Most leases that one call of expire settles: it bounds the transaction that everybody else waits for.
pub const EXPIRE_BATCH: u32 = 256;

/// Most delayed jobs that one call makes ready, for the same reason.
pub const READY_BATCH: u32 = 256;

/// Most jobs that are to be canceled, or replayed, by one call, for the same reason.
pub const CANCEL_BATCH: usize = 256;

/// A store that cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("queue file {path}: {reason}; {fix}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        fix: Cow<'static, str>,
    },
    /// The database refused.
    #[error("queue: {0}")]
    Database(String),
    /// What a job needs cannot be kept for it.
    #[error("{0}")]
    Contents(String),
    /// The store has been closed.
    #[error("the queue is closed")]
    Closed,
}

/// A job to be taken in.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// What is asked for.
    pub spec: JobSpec,
    /// When.
    pub at: UnixMillis,
    /// The job that this one does again.
    pub retry_of: Option<JobId>,
    /// The key that it was submitted with.
    pub submitter: Option<Submitter>,
    /// Most jobs of its submitter that have not ended, this one included.
    pub quota: Option<u64>,
    /// What it is to others.
    pub family: Family,
}

/// The name of the submitter who has the installation's first key.
pub const FIRST_SUBMITTER: &str = "admin";

/// Under what an idempotency key is kept: each submitter has their own, so that nobody takes another one's. Those of the first submitter, and
/// of jobs of before submitters had names, are kept as they are.
pub fn own_key(submitter: Option<&Submitter>, key: &str) -> String {
    let Some(Submitter { name, key: which }) = submitter else { return key.to_owned() };
    match which {
        // No name, no key and no number of one has a line's end.
        Some(which) => format!("{name}\n{which}\n{key}"),
        None if name == FIRST_SUBMITTER => key.to_owned(),
        None => format!("{name}\n{key}"),
    }
}

/// By whose name a job counts until it has ended: those of the first submitter are not counted, nor are jobs that run nothing themselves.
fn held_by(job: &Job) -> Option<&str> {
    let submitter = job.submitter.as_ref().map(|submitter| submitter.name.as_str());
    submitter.filter(|name| *name != FIRST_SUBMITTER && job.spec.fan_out().is_none())
}

impl NewJob {
    /// Whether it is one too many of its submitter's, who has so many.
    fn beyond_quota(&self, held: u64) -> Option<Submitted> {
        let most = self.quota?;
        (held + self.family.queued() > most).then_some(Submitted::QuotaFull { held, most })
    }

    /// Under what its idempotency key is kept.
    fn own_key(&self) -> Option<String> {
        self.spec.idempotency_key().map(|key| own_key(self.submitter.as_ref(), key))
    }
}

/// What a submit came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is queued.
    Created(Job),
    /// There was one with this idempotency key and an equal spec.
    Existing(Job),
    /// There was one with this idempotency key and another spec.
    KeyConflict(JobId),
    /// Too many jobs wait.
    QueueFull {
        /// How many.
        queued: u64,
    },
    /// Its submitter has too many that have not ended.
    QuotaFull {
        /// How many.
        held: u64,
        /// How many there may be.
        most: u64,
    },
}

/// A request for jobs.
#[derive(Debug, Clone)]
pub struct ClaimAsk {
    /// Who asks.
    pub agent: String,
    /// What it can do. `None` when nobody knows: it gets whatever is next.
    pub profile: Option<Profile>,
    /// Others that wait for work: a job that lacks room is waited for by one agent only.
    pub peers: Vec<Peer>,
    /// What is free there.
    pub free: Capacity,
    /// How many at most.
    pub max: u32,
    /// Term of the leases.
    pub lease: Millis,
    /// Now.
    pub now: UnixMillis,
}

/// What a claim brought.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Claims {
    /// By priority, then by age.
    pub claims: Vec<Claim>,
    /// Something that suits the agent was left in the queue for the moment, for want of room or because of what runs elsewhere.
    pub held_back: bool,
    /// The job that the agent keeps its room for: nothing behind it is handed out there.
    pub reserves: Option<JobId>,
}

/// Why a queued job waits, as far as the queue knows.
#[derive(Debug, Clone)]
pub struct Place {
    /// Jobs that are handed out before it, of those that ask for the same.
    pub ahead: u64,
    shape: routing::Shape,
    running: routing::Running,
    groups: Groups,
}

impl Place {
    /// What is in the way of it at an agent that cannot make its kind of cell now, for this reason of those.
    pub fn away(&self, reasons: &BTreeMap<String, String>) -> Option<Obstacle> {
        let executor = self.shape.executor();
        reasons.get(executor).map(|reason| Obstacle::Away { executor, reason: reason.clone() })
    }

    /// Why this agent does not get it; empty when it would, had it come to its turn. `free`: what it has free, where known.
    pub fn obstacles(&self, agent: &str, profile: &Profile, free: Option<Capacity>) -> Vec<Obstacle> {
        let mut found = self.shape.lasting(profile);
        if found.is_empty() {
            found = self.shape.passing(free.unwrap_or(profile.capacity), agent, &self.running, &self.groups);
        }
        found
    }
}

/// Whether an agent like this can run the job at some time.
pub fn suits(spec: &JobSpec, profile: &Profile) -> bool {
    routing::Shape::of(spec, &Groups::new()).suits(profile)
}

/// The right to run an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The attempt.
    pub attempt: AttemptId,
    /// Proves the right.
    pub token: LeaseToken,
    /// What to run.
    pub spec: JobSpec,
    /// The key that it was submitted with, by name.
    pub submitter: Option<String>,
    /// Until when, unless renewed.
    pub lease_until: UnixMillis,
}

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It holds on.
    Renewed {
        /// Until when.
        until: UnixMillis,
        /// Somebody asked for the job's end.
        cancel_requested: bool,
    },
    /// The attempt is not the asker's (any more).
    Refused,
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Done.
    Applied,
    /// It was done before.
    AlreadyThere,
    /// Not done: the token is not the holder's, or no such step exists.
    Refused,
}

/// What a terminal report came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Completion {
    /// The job has ended with it, or is queued again.
    Applied(Box<Job>),
    /// The attempt had ended before.
    AlreadyEnded,
    /// The attempt is not the reporter's (any more).
    Unknown,
}

/// How an attempt stands, seen from one who says that it is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Held,
    /// It has ended, with a report or without one.
    Ended,
    /// It is somebody else's, or there is no such attempt.
    Unknown,
}

/// What a cancel came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Canceled {
    /// It was still queued and has ended.
    Ended(Box<Job>),
    /// An agent holds it and is told.
    Requested(Box<Job>),
    /// It had ended before.
    AlreadyEnded(Box<Job>),
    /// It has changed since the asker looked: nothing was done.
    Changed(Box<Job>),
    /// There is no such job.
    Unknown,
}

/// A lease that ran out.
#[derive(Debug, Clone, PartialEq)]
pub enum Expired {
    /// The job is queued again, after this attempt.
    Requeued(AttemptId),
    /// No try was left, or its end was asked for.
    Ended(Box<Job>),
}

/// A held job that did not get on.
#[derive(Debug, Clone, PartialEq)]
pub enum Stuck {
    /// Its holder is to end it.
    Told {
        /// Which.
        attempt: AttemptId,
        /// Who holds it.
        holder: Option<String>,
    },
    /// That did not help: its lease is over.
    Taken(Expired),
}

/// Jobs by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "a field for each phase")]
pub struct Counts {
    pub queued: u64,
    pub claimed: u64,
    pub preparing: u64,
    pub running: u64,
    pub finishing: u64,
    pub ended: u64,
    /// Of those that have ended.
    #[serde(skip)]
    pub dead_letters: u64,
}

impl Counts {
    fn of(&mut self, phase: Phase) -> &mut u64 {
        match phase {
            Phase::Queued => &mut self.queued,
            Phase::Claimed => &mut self.claimed,
            Phase::Preparing => &mut self.preparing,
            Phase::Running => &mut self.running,
            Phase::Finishing => &mut self.finishing,
            Phase::Ended => &mut self.ended,
        }
    }
}

/// Whole transitions on stored jobs. An error means that nothing was changed.
#[allow(missing_docs, reason = "each method is described by its answer's type")]
pub trait Store: Send + Sync + 'static {
    fn submit(&self, job: NewJob, max_queued: u64) -> impl Future<Output = Result<Submitted, StoreError>> + Send;
    /// All of them or, unless `partial`, none: when one cannot be taken in.
    fn submit_all(
        &self,
        jobs: Vec<NewJob>,
        max_queued: u64,
        partial: bool,
    ) -> impl Future<Output = Result<Batch, StoreError>> + Send;
    /// Which of these idempotency keys jobs have.
    fn taken_keys(&self, keys: Vec<String>) -> impl Future<Output = Result<HashSet<String>, StoreError>> + Send;
    /// What suits the agent and fits, by priority, then by age.
    fn claim(&self, ask: ClaimAsk) -> impl Future<Output = Result<Claims, StoreError>> + Send;
    /// Why a job waits; `None` for one that is not queued.
    fn place(&self, id: JobId) -> impl Future<Output = Result<Option<Place>, StoreError>> + Send;
    /// One answer for each lease, in order. Here and below, `agent` is who says so: what is somebody else's is refused.
    fn renew(
        &self,
        agent: &str,
        leases: &[(AttemptId, LeaseToken)],
        lease: Millis,
        now: UnixMillis,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send;
    fn advance(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> impl Future<Output = Result<Applied, StoreError>> + Send;
    /// `max_attempts`: tries of a job that does not say how many, as long as their ends are ours.
    fn complete(
        &self,
        agent: &str,
        report: &Report,
        token: LeaseToken,
        now: UnixMillis,
        max_attempts: u32,
    ) -> impl Future<Output = Result<Completion, StoreError>> + Send;
    /// Gives back what never started, to be handed out again at once or `later`; the try does not count, and its number is not used again.
    fn release(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        now: UnixMillis,
        reason: &str,
        later: Option<&Later>,
    ) -> impl Future<Output = Result<Applied, StoreError>> + Send;
    /// One answer for each, in order. Changes nothing.
    fn lookup(
        &self,
        agent: &str,
        attempts: &[(AttemptId, LeaseToken)],
    ) -> impl Future<Output = Result<Vec<Standing>, StoreError>> + Send;
    fn cancel(&self, id: JobId, now: UnixMillis) -> impl Future<Output = Result<Canceled, StoreError>> + Send;
    /// Like a cancel, for a job that still is at one of these revisions.
    fn cancel_if(
        &self,
        id: JobId,
        revisions: &[u64],
        now: UnixMillis,
    ) -> impl Future<Output = Result<Canceled, StoreError>> + Send;
    /// One answer for each job, in order; at most [`CANCEL_BATCH`] of them are to be asked for at once.
    fn cancel_many(
        &self,
        ids: &[JobId],
        now: UnixMillis,
    ) -> impl Future<Output = Result<Vec<CancelMark>, StoreError>> + Send;
    /// Makes a new job of each dead letter, under the id that is given with it. One answer for each, in order; at most
    /// [`CANCEL_BATCH`] of them are to be asked for at once.
    fn replay(
        &self,
        dead: &[(JobId, JobId)],
        max_queued: u64,
        now: UnixMillis,
    ) -> impl Future<Output = Result<Vec<Replay>, StoreError>> + Send;
    /// Settles leases that ran out by `now`, at most [`EXPIRE_BATCH`] of them: more are due while [`Store::next_due`] is
    /// not in the future.
    fn expire(
        &self,
        now: UnixMillis,
        max_attempts: u32,
    ) -> impl Future<Output = Result<Vec<Expired>, StoreError>> + Send;
    /// Looks at all held jobs for those that do not get on. `after`: so long they may be on their way to their start, and beyond
    /// their timeout.
    fn end_stuck(
        &self,
        now: UnixMillis,
        after: Millis,
        max_attempts: u32,
    ) -> impl Future<Output = Result<Vec<Stuck>, StoreError>> + Send;
    /// Takes jobs from an agent as if their leases had run out, at most [`EXPIRE_BATCH`] of them.
    fn take_from(
        &self,
        agent: &str,
        now: UnixMillis,
        max_attempts: u32,
    ) -> impl Future<Output = Result<Vec<Expired>, StoreError>> + Send;
    /// Makes delayed jobs ready to be claimed whose time has come, at most [`READY_BATCH`] of them, and says how many. Without it
    /// a delayed job stays delayed.
    fn ready(&self, now: UnixMillis) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Gives every lease a full term from now on, and says how many there are: after a time in which nobody could renew, and when
    /// the clock was set.
    fn extend(&self, lease: Millis, now: UnixMillis) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Does what is to be done about a job for several hosts: lets children go that waited for others, asks for the ends of those that are
    /// to end (with `again`, also of those that were asked before), ends it when all have ended. To be called when one of them has ended or
    /// when its own end was asked for; does nothing when there is nothing to do.
    fn settle(
        &self,
        parent: JobId,
        again: bool,
        now: UnixMillis,
    ) -> impl Future<Output = Result<Settled, StoreError>> + Send;
    /// How the children of a job stand; `None` for one that is for no list of hosts.
    fn children(&self, parent: JobId) -> impl Future<Output = Result<Option<Children>, StoreError>> + Send;
    /// All parents that have not ended, with each of their children that has not; one that has none left is there too.
    fn open_families(&self) -> impl Future<Output = Result<Vec<(JobId, Option<JobId>)>, StoreError>> + Send;
    fn get(&self, id: JobId) -> impl Future<Output = Result<Option<Job>, StoreError>> + Send;
    /// Newest first.
    fn list(&self, filter: ListFilter) -> impl Future<Output = Result<Vec<JobSummary>, StoreError>> + Send;
    /// Jobs that have ended and are no other one's children, the oldest end first, behind a place.
    fn oldest_ended(
        &self,
        after: Option<OldPlace>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Old>, StoreError>> + Send;
    /// Jobs that have ended and whose output is kept, the oldest end first, behind a place; no children of a job that goes on.
    fn oldest_outputs(
        &self,
        after: Option<OldPlace>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Old>, StoreError>> + Send;
    /// About what the output of all ended jobs takes on the disk.
    fn output_bytes(&self) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// The output of these jobs was removed; says for how many of them, which have ended, that is new. At most [`REMOVE_BATCH`] at once.
    fn output_gone(&self, ids: &[JobId], at: UnixMillis) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Removes jobs, at most [`REMOVE_BATCH`], and says which have gone: what has not ended stays, what has children, and a child whose
    /// parent goes on. When it takes long, some that may go stay for the next call; one goes at least.
    fn remove(&self, ids: &[JobId]) -> impl Future<Output = Result<Vec<JobId>, StoreError>> + Send;
    fn counts(&self) -> impl Future<Output = Result<Counts, StoreError>> + Send;
    /// Days on which something happened, from this one on (counted from 1970), the oldest first.
    fn daily(&self, from: u64) -> impl Future<Output = Result<Vec<Day>, StoreError>> + Send;
    /// When the next lease runs out, or the next delayed job becomes ready.
    fn next_due(&self) -> impl Future<Output = Result<Option<UnixMillis>, StoreError>> + Send;
}

/// Either store, for those who learn at run time which.
#[derive(Debug)]
pub enum AnyStore {
    /// A file.
    Sqlite(SqliteStore),
    /// Nothing outlives the process.
    Memory(MemoryStore),
}

macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Sqlite($store) => $call.await,
            Self::Memory($store) => $call.await,
        }
    };
}

impl Store for AnyStore {
    async fn submit(&self, job: NewJob, max_queued: u64) -> Result<Submitted, StoreError> {
        either!(self, store => store.submit(job, max_queued))
    }
    async fn submit_all(&self, jobs: Vec<NewJob>, max_queued: u64, partial: bool) -> Result<Batch, StoreError> {
        either!(self, store => store.submit_all(jobs, max_queued, partial))
    }
    async fn taken_keys(&self, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
        either!(self, store => store.taken_keys(keys))
    }
    async fn claim(&self, ask: ClaimAsk) -> Result<Claims, StoreError> {
        either!(self, store => store.claim(ask))
    }
    async fn place(&self, id: JobId) -> Result<Option<Place>, StoreError> {
        either!(self, store => store.place(id))
    }
    async fn renew(
        &self,
        agent: &str,
        leases: &[(AttemptId, LeaseToken)],
        lease: Millis,
        now: UnixMillis,
    ) -> Result<Vec<Renewal>, StoreError> {
        either!(self, store => store.renew(agent, leases, lease, now))
    }
    async fn advance(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Result<Applied, StoreError> {
        either!(self, store => store.advance(agent, lease, phase, at, reason))
    }
    async fn complete(
        &self,
        agent: &str,
        report: &Report,
        token: LeaseToken,
        now: UnixMillis,
        max_attempts: u32,
    ) -> Result<Completion, StoreError> {
        either!(self, store => store.complete(agent, report, token, now, max_attempts))
    }
    async fn release(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        now: UnixMillis,
        reason: &str,
        later: Option<&Later>,
    ) -> Result<Applied, StoreError> {
        either!(self, store => store.release(agent, lease, now, reason, later))
    }
    async fn lookup(&self, agent: &str, attempts: &[(AttemptId, LeaseToken)]) -> Result<Vec<Standing>, StoreError> {
        either!(self, store => store.lookup(agent, attempts))
    }
    async fn cancel(&self, id: JobId, now: UnixMillis) -> Result<Canceled, StoreError> {
        either!(self, store => store.cancel(id, now))
    }
    async fn cancel_if(&self, id: JobId, revisions: &[u64], now: UnixMillis) -> Result<Canceled, StoreError> {
        either!(self, store => store.cancel_if(id, revisions, now))
    }
    async fn cancel_many(&self, ids: &[JobId], now: UnixMillis) -> Result<Vec<CancelMark>, StoreError> {
        either!(self, store => store.cancel_many(ids, now))
    }
    async fn replay(
        &self,
        dead: &[(JobId, JobId)],
        max_queued: u64,
        now: UnixMillis,
    ) -> Result<Vec<Replay>, StoreError> {
        either!(self, store => store.replay(dead, max_queued, now))
    }
    async fn expire(&self, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        either!(self, store => store.expire(now, max_attempts))
    }
    async fn end_stuck(&self, now: UnixMillis, after: Millis, max_attempts: u32) -> Result<Vec<Stuck>, StoreError> {
        either!(self, store => store.end_stuck(now, after, max_attempts))
    }
    async fn take_from(&self, agent: &str, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        either!(self, store => store.take_from(agent, now, max_attempts))
    }
    async fn ready(&self, now: UnixMillis) -> Result<u64, StoreError> {
        either!(self, store => store.ready(now))
    }
    async fn extend(&self, lease: Millis, now: UnixMillis) -> Result<u64, StoreError> {
        either!(self, store => store.extend(lease, now))
    }
    async fn settle(&self, parent: JobId, again: bool, now: UnixMillis) -> Result<Settled, StoreError> {
        either!(self, store => store.settle(parent, again, now))
    }
    async fn children(&self, parent: JobId) -> Result<Option<Children>, StoreError> {
        either!(self, store => store.children(parent))
    }
    async fn open_families(&self) -> Result<Vec<(JobId, Option<JobId>)>, StoreError> {
        either!(self, store => store.open_families())
    }
    async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        either!(self, store => store.get(id))
    }
    async fn list(&self, filter: ListFilter) -> Result<Vec<JobSummary>, StoreError> {
        either!(self, store => store.list(filter))
    }
    async fn oldest_ended(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        either!(self, store => store.oldest_ended(after, limit))
    }
    async fn oldest_outputs(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        either!(self, store => store.oldest_outputs(after, limit))
    }
    async fn output_bytes(&self) -> Result<u64, StoreError> {
        either!(self, store => store.output_bytes())
    }
    async fn output_gone(&self, ids: &[JobId], at: UnixMillis) -> Result<u64, StoreError> {
        either!(self, store => store.output_gone(ids, at))
    }
    async fn remove(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        either!(self, store => store.remove(ids))
    }
    async fn counts(&self) -> Result<Counts, StoreError> {
        either!(self, store => store.counts())
    }
    async fn daily(&self, from: u64) -> Result<Vec<Day>, StoreError> {
        either!(self, store => store.daily(from))
    }
    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError> {
        either!(self, store => store.next_due())
    }
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod retry_tests;
#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod tests;
