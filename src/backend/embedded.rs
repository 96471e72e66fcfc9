//! The backend in the same process as its agent.

use super::explain::{Explanation, explain};
use super::families::Families;
use super::results::ResultsRoom;
use super::steady::SteadyClock;
use super::waiting::Waiting;
use super::{Ask, Drain, Intake, Roster};
use crate::job::{
    AttemptId, Job, JobId, JobSpec, JobSummary, Later, LeaseToken, Millis, Phase, Report, Submitter, UnixMillis,
};
use crate::logstore::LogStore;
use crate::protocol::agent::{AttemptStanding, Capabilities, Renewed, Reported, Step};
use crate::queue::{
    AnyStore, Applied, Batch, CANCEL_BATCH, CancelMark, Canceled, Claim, ClaimAsk, Claims, Completion, Counts, Day,
    Expired, Family, ListFilter, NewJob, READY_BATCH, Renewal, Replay, Standing, Store, StoreError, Stuck, Submitted,
};
use crate::secrets::Keyring;
use crate::telemetry::Traces;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, RwLock, broadcast};
use tokio_util::sync::CancellationToken;

/// Changes that a slow waiter may be behind. One that is further behind reads its job again, so nothing is lost.
const CHANGES: usize = 1024;
/// Orders that a slow agent may be behind. What it misses, the answer to its next renewal says again.
const ORDERS: usize = 256;
/// An agent that has lost a lease, and may be frozen, looks for work so much later than others that wait.
const DOUBT: Duration = Duration::from_secs(1);
/// The expiry task sleeps no longer than this, whatever the store says.
const EXPIRY_PAUSE: Duration = Duration::from_secs(5);

/// Held jobs are looked at so often, for those that do not get on. Not at once after a start, or when the clock was set: what is to
/// be said of them may be on its way.
const STUCK_LOOKS: Duration = Duration::from_secs(60);

/// Later than every moment that the stores can keep.
/// The very last one stands for jobs that wait for something else than a moment.
const NEVER: UnixMillis = UnixMillis::new(i64::MAX as u64 - 1);

/// How the queue behaves.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// Jobs that may wait; a submit beyond it is refused.
    pub max_queued: u64,
    /// Term of a lease of a job that does not say its own.
    pub lease: Millis,
    /// Tries of a job that does not say how many, as long as their ends are not its own doing.
    pub max_attempts: u32,
    /// A held job that is so long on its way to its start, or beyond its timeout, is ended and tried again.
    pub stuck_after: Millis,
}

/// What an agent is told without having asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// End this job.
    Cancel {
        /// Which.
        job: JobId,
        /// This try of it and no other: the job is to go on with the next one. `None`: the job itself is to end.
        attempt: Option<u32>,
        /// The agent that holds it, where several listen. `None`: whoever hears this.
        holder: Option<String>,
        /// At once, without a grace. The queue does not keep this: who misses the order gives the grace after all.
        force: bool,
    },
}

/// A job has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub job: JobId,
    /// It has ended.
    pub ended: bool,
}

/// What a wait for a job's end came to.
#[derive(Debug)]
pub enum Waited {
    /// It has ended.
    Ended(Box<Job>),
    /// The time is over; this is how it stands.
    StillOpen(Box<Job>),
    /// There is no such job.
    Unknown,
}

/// The backend.
#[derive(Debug)]
pub struct Embedded {
    pub(super) store: AnyStore,
    pub(super) families: Families,
    keys: Keyring,
    logs: LogStore,
    settings: QueueSettings,
    intake: Arc<Intake>,
    roster: Roster,
    pub(super) waiting: Waiting,
    /// Claims that hand out hold it together; whoever drains an agent holds it alone, so that nothing is handed out behind it.
    handing_out: RwLock<()>,
    /// A claim has left something in the queue that suits its agent.
    held_back: AtomicBool,
    /// Counts what made room.
    ends: AtomicU64,
    /// Counts what left the queue.
    departures: AtomicU64,
    /// A job waits for its next try, and that may be due before everything else.
    delayed: Notify,
    pub(super) results: ResultsRoom,
    /// Jobs that did not get on, since somebody asked.
    stuck: AtomicU64,
    changes: broadcast::Sender<Change>,
    orders: broadcast::Sender<Order>,
    /// What jobs are given; none where nobody has said where that is.
    pub(super) contents: OnceLock<super::Contents>,
    /// How long what has ended is kept; for ever where nobody has said.
    pub(super) retention: OnceLock<super::retention::Retention>,
    /// Whom it tells of jobs; nobody where nobody was named.
    pub(super) tells: OnceLock<Traces>,
    clock: Mutex<Clock>,
}

/// The host's clock, as it was last looked at.
#[derive(Debug)]
struct Clock {
    steady: SteadyClock,
    /// It was set by so many seconds, and that was not dealt with yet.
    set: Option<i64>,
}

impl Embedded {
    /// On these stores, with keys that end with the process.
    pub fn new(store: AnyStore, logs: LogStore, settings: QueueSettings) -> Arc<Self> {
        Self::with_keys(store, logs, settings, Keyring::random())
    }

    /// On these stores. `keys` seal the secrets that come with jobs: who opens the store another time needs the same.
    pub fn with_keys(store: AnyStore, logs: LogStore, settings: QueueSettings, keys: Keyring) -> Arc<Self> {
        let (changes, _) = broadcast::channel(CHANGES);
        let (orders, _) = broadcast::channel(ORDERS);
        let intake = Arc::new(Intake::new(logs.clone()));
        let (roster, waiting, held_back) = (Roster::default(), Waiting::default(), AtomicBool::new(false));
        Arc::new(Self {
            store,
            families: Families::default(),
            keys,
            logs,
            settings,
            intake,
            roster,
            waiting,
            handing_out: RwLock::default(),
            held_back,
            ends: AtomicU64::new(0),
            departures: AtomicU64::new(0),
            delayed: Notify::new(),
            results: ResultsRoom::default(),
            stuck: AtomicU64::new(0),
            changes,
            orders,
            contents: OnceLock::new(),
            retention: OnceLock::new(),
            tells: OnceLock::new(),
            clock: Mutex::new(Clock { steady: SteadyClock::new(), set: None }),
        })
    }

    /// Where output is kept. An agent in this process writes here too.
    pub fn logs(&self) -> &LogStore {
        &self.logs
    }

    /// What it can do for an agent: everything.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            lease: Some(self.settings.lease),
            fenced_end: true,
            log: true,
            cancel: true,
            later: true,
            traces: self.tells.get().is_some(),
        }
    }

    /// Output that comes from other processes.
    pub fn intake(&self) -> &Arc<Intake> {
        &self.intake
    }

    /// The agents.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Most jobs that may wait.
    pub fn max_queued(&self) -> u64 {
        self.settings.max_queued
    }

    pub(super) fn changed(&self, job: JobId, ended: bool) {
        if ended {
            self.families.ended(job);
        }
        // Nobody listening is fine.
        let _ = self.changes.send(Change { job, ended });
    }

    // ---- for users ----

    /// Takes a job in, with the name of the key that it came with. Goes on to its end when the caller is dropped (a client that hangs up): a job that was taken in
    /// without a word to the agent would wait for the next one.
    pub async fn submit(
        self: &Arc<Self>,
        spec: JobSpec,
        submitter: Option<Submitter>,
    ) -> Result<Submitted, StoreError> {
        self.submit_within(spec, submitter, None).await
    }

    /// The same, unless its submitter has so many jobs that have not ended.
    pub async fn submit_within(
        self: &Arc<Self>,
        spec: JobSpec,
        submitter: Option<Submitter>,
        quota: Option<u64>,
    ) -> Result<Submitted, StoreError> {
        self.take_in(spec, None, (submitter, quota), UnixMillis::now()).await
    }

    /// Takes in a job that does another one again. What may be done is decided for who asked for the work, not for who has it done again.
    pub async fn retry(self: &Arc<Self>, job: Job, quota: Option<u64>) -> Result<Submitted, StoreError> {
        let whose = (job.submitter, quota);
        self.take_in(job.spec.without_idempotency_key(), Some(job.id), whose, UnixMillis::now()).await
    }

    pub(super) async fn take_in(
        self: &Arc<Self>,
        spec: JobSpec,
        retry_of: Option<JobId>,
        (submitter, quota): (Option<Submitter>, Option<u64>),
        at: UnixMillis,
    ) -> Result<Submitted, StoreError> {
        let backend = Arc::clone(self);
        let task = crate::supervise::spawn("submit", async move {
            let job = backend.with_family(backend.new_job(spec, at, retry_of, submitter));
            let job = NewJob { quota, ..job };
            let (id, that_run) = (job.id, Self::that_run(&job));
            for (id, spec) in &that_run {
                backend.need(*id, spec).await?;
            }
            backend.family_comes(&job);
            let submitted = backend.store.submit(job, backend.settings.max_queued).await;
            if !matches!(submitted, Ok(Submitted::Created(_))) {
                backend.families.forget(id);
                for (id, spec) in &that_run {
                    backend.need_no_more(*id, spec).await;
                }
            }
            let submitted = submitted?;
            if let Submitted::Created(job) = &submitted {
                match job.spec.fan_out() {
                    Some(_) => backend.waiting.wake_all(),
                    None => backend.waiting.wake_for(&job.spec),
                }
            }
            Ok(submitted)
        });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// A job as it is kept.
    pub(super) fn new_job(
        &self,
        spec: JobSpec,
        at: UnixMillis,
        retry_of: Option<JobId>,
        submitter: Option<Submitter>,
    ) -> NewJob {
        let id = JobId::new(at);
        // The jobs for its hosts have them, each sealed for itself.
        let spec = match spec.fan_out() {
            Some(_) => spec,
            None => spec.sealed(|name, secret| self.keys.seal(id, name, secret)),
        };
        NewJob { id, spec, at, retry_of, submitter, quota: None, family: Family::Alone }
    }

    /// A job as its agent gets it. A value that cannot be opened is missing, and the agent says so.
    fn opened(&self, claim: Claim) -> Claim {
        let job = claim.attempt.job;
        let open = |name: &str, sealed: &[u8]| match self.keys.open(job, name, sealed) {
            Ok(secret) => Some(secret),
            Err(reason) => {
                tracing::error!(%job, secret = name, %reason, "a secret that came with a job cannot be opened");
                None
            }
        };
        Claim { spec: claim.spec.opened(open), ..claim }
    }

    /// Takes many jobs in, in one transaction; with `partial`, those that can be. `quota` is as in [`Embedded::submit_within`].
    pub async fn submit_all(
        self: &Arc<Self>,
        specs: Vec<JobSpec>,
        submitter: Option<Submitter>,
        quota: Option<u64>,
        partial: bool,
    ) -> Result<Batch, StoreError> {
        let backend = Arc::clone(self);
        let task = crate::supervise::spawn("submit_all", async move {
            let at = UnixMillis::now();
            let new = |spec| backend.with_family(backend.new_job(spec, at, None, submitter.clone()));
            let jobs: Vec<NewJob> = specs.into_iter().map(new).map(|job| NewJob { quota, ..job }).collect();
            let has_inputs = |job: &&NewJob| !job.spec.inputs().is_empty();
            // Each that needs something, with the job that it is taken in with.
            let given: Vec<(JobId, JobId, JobSpec)> = jobs
                .iter()
                .filter(has_inputs)
                .flat_map(|job| Self::that_run(job).into_iter().map(|(id, spec)| (job.id, id, spec)))
                .collect();
            for (_, id, spec) in &given {
                backend.need(*id, spec).await?;
            }
            let all: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
            jobs.iter().for_each(|job| backend.family_comes(job));
            let batch = backend.store.submit_all(jobs, backend.settings.max_queued, partial).await;
            let created = |id: JobId| match &batch {
                Ok(Batch::TakenIn(answers)) => {
                    answers.iter().any(|answer| matches!(answer, Submitted::Created(job) if job.id == id))
                }
                Ok(Batch::Refused(_)) | Err(_) => false,
            };
            all.iter().filter(|id| !created(**id)).for_each(|id| backend.families.forget(*id));
            for (_, id, spec) in given.iter().filter(|(whole, ..)| !created(*whole)) {
                backend.need_no_more(*id, spec).await;
            }
            let batch = batch?;
            backend.waiting.wake_all();
            Ok(batch)
        });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Which of these idempotency keys jobs have, at the moment.
    pub async fn taken_keys(&self, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
        self.store.taken_keys(keys).await
    }

    /// One job.
    pub async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let Some(mut job) = self.store.get(id).await? else { return Ok(None) };
        // While it runs, the log's totals are not in any report yet.
        if job.ending.is_none()
            && job.attempt > 0
            && let Some(tail) = self.logs.subscribe(AttemptId::new(id, job.attempt))
        {
            job.log.frames = tail.borrow().last_seq;
        }
        self.results.add_to(&mut job);
        if job.spec.fan_out().is_some() {
            job.children = self.store.children(id).await?;
        }
        Ok(Some(job))
    }

    /// Jobs, newest first.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<JobSummary>, StoreError> {
        self.store.list(filter).await
    }

    /// How many stand in each phase.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.store.counts().await
    }

    /// What happened on each day, from this one on (counted from 1970).
    pub async fn daily(&self, from: u64) -> Result<Vec<Day>, StoreError> {
        self.store.daily(from).await
    }

    /// Asks for a job's end. Goes on when the caller is dropped, as a submit does.
    pub async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Canceled, StoreError> {
        self.cancel_if(id, None, false).await
    }

    /// Asks for a job's end; with revisions, only if it still is at one of them; with `force`, without a grace.
    pub async fn cancel_if(
        self: &Arc<Self>,
        id: JobId,
        revisions: Option<Vec<u64>>,
        force: bool,
    ) -> Result<Canceled, StoreError> {
        let backend = Arc::clone(self);
        let task = crate::supervise::spawn("cancel", async move {
            let now = UnixMillis::now();
            let canceled = match revisions {
                Some(revisions) => backend.store.cancel_if(id, &revisions, now).await?,
                None => backend.store.cancel(id, now).await?,
            };
            // A job that has changed is told of like one that has ended: nothing was done.
            let mark = CancelMark::from(&canceled);
            backend.canceled(id, &mark, force);
            if mark != CancelMark::Children {
                return Ok(canceled);
            }
            backend.settle(id, Some(force)).await?;
            // It may have ended by that.
            Ok(match backend.get(id).await? {
                Some(job) if job.phase == Phase::Ended => Canceled::Ended(Box::new(job)),
                Some(job) => Canceled::Requested(Box::new(job)),
                None => canceled,
            })
        });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Asks for the end of many jobs, some hundred in a transaction. Errors: what was done before one stays done.
    pub async fn cancel_many(
        self: &Arc<Self>,
        ids: Vec<JobId>,
        force: bool,
    ) -> Result<Vec<(JobId, CancelMark)>, StoreError> {
        let backend = Arc::clone(self);
        let task = crate::supervise::spawn("cancel_many", async move {
            let mut marks = Vec::with_capacity(ids.len());
            for some in ids.chunks(CANCEL_BATCH) {
                let told = backend.store.cancel_many(some, UnixMillis::now()).await?;
                for (id, mark) in some.iter().copied().zip(told) {
                    backend.canceled(id, &mark, force);
                    if mark == CancelMark::Children {
                        backend.settle(id, Some(force)).await?;
                    }
                    marks.push((id, mark));
                }
            }
            Ok(marks)
        });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Makes new jobs of dead letters, some hundred in a transaction. Errors: what was done before one stays done.
    pub async fn replay(self: &Arc<Self>, ids: Vec<JobId>) -> Result<Vec<(JobId, Replay)>, StoreError> {
        let backend = Arc::clone(self);
        let task = crate::supervise::spawn("replay", async move {
            let mut replayed = Vec::with_capacity(ids.len());
            for some in ids.chunks(CANCEL_BATCH) {
                let now = UnixMillis::now();
                let pairs: Vec<(JobId, JobId)> = some.iter().map(|id| (*id, JobId::new(now))).collect();
                for (old, new) in &pairs {
                    backend.need_alike(*old, *new).await?;
                }
                let told = backend.store.replay(&pairs, backend.settings.max_queued, now).await?;
                for ((id, _), replay) in pairs.into_iter().zip(told) {
                    if let Replay::Replayed(job) = &replay {
                        backend.waiting.wake_for(&job.spec);
                        backend.changed(id, true);
                    }
                    replayed.push((id, replay));
                }
            }
            Ok(replayed)
        });
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(super) fn canceled(&self, id: JobId, mark: &CancelMark, force: bool) {
        match mark {
            CancelMark::Requested { holder } => {
                let _ = self.orders.send(Order::Cancel { job: id, attempt: None, holder: holder.clone(), force });
                self.changed(id, false);
            }
            CancelMark::Ended => {
                self.changed(id, true);
                self.left(&[id]);
            }
            CancelMark::Children => self.changed(id, false),
            CancelMark::AlreadyEnded | CancelMark::Unknown => {}
        }
    }

    /// Waits until a job has ended, at most for `limit`.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Result<Waited, StoreError> {
        // Subscribed before the first look, so an end between the two is not missed.
        let mut changes = self.changes.subscribe();
        let until = tokio::time::Instant::now() + limit;
        loop {
            let Some(job) = self.get(id).await? else { return Ok(Waited::Unknown) };
            if job.phase == Phase::Ended {
                return Ok(Waited::Ended(Box::new(job)));
            }
            loop {
                match tokio::time::timeout_at(until, changes.recv()).await {
                    Err(_) => return Ok(Waited::StillOpen(Box::new(job))),
                    Ok(Ok(change)) if change.job != id || !change.ended => {}
                    // This job, or too far behind to know which: look again.
                    Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => break,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return Ok(Waited::StillOpen(Box::new(job))),
                }
            }
        }
    }

    /// Jobs as they change. One who is too far behind looks at the jobs again.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    // ---- for an agent ----

    /// Claims what fits into `ask`; with nothing there, waits for a submit as long as it says, or until `stop`. Agents that wait
    /// are served in the order they came, and share what there is. Not to be dropped in the middle: a claim that was made is
    /// only known from the answer. To end a wait early, use `stop`.
    pub async fn claim(&self, agent: &str, ask: &Ask, stop: &CancellationToken) -> Result<Vec<Claim>, StoreError> {
        self.roster.heard(agent, Some(&ask.load), UnixMillis::now());
        let until = tokio::time::Instant::now() + ask.wait;
        if self.roster.drains().of(agent).is_some() {
            // In no row: nobody is to leave anything to it. It asks again when it may have something, and hears that with the answer.
            tokio::select! {
                biased;
                () = self.roster.drains().over(agent) => {}
                () = tokio::time::sleep_until(until) => {}
                () = stop.cancelled() => {}
            }
            return Ok(Vec::new());
        }
        let profile = self.roster.profile(agent);
        // In the row before the first look: a submit between look and wait wakes it.
        let place = self.waiting.enter(agent, profile.clone(), ask.free);
        loop {
            let max = self.share(ask.max, place.row_length()).await?;
            if !mutant!(ClockSeldomLookedAt) {
                self.look_at_clock();
            }
            let (lease, now, agent, profile) =
                (self.settings.lease, UnixMillis::now(), agent.to_owned(), profile.clone());
            let (free, peers) = (place.free(), place.peers());
            let asked = ClaimAsk { agent, profile, peers, free, max, lease, now };
            let (ends, departures) = (self.ends.load(Ordering::SeqCst), self.departures.load(Ordering::SeqCst));
            let handing_out = self.handing_out.read().await;
            if self.roster.drains().of(&asked.agent).is_some() {
                drop((handing_out, place));
                // Somebody may have left something to it.
                self.waiting.wake_all();
                return Ok(Vec::new());
            }
            let Claims { claims, held_back, reserves } = self.store.claim(asked).await?;
            drop(handing_out);
            place.reserves(reserves);
            if held_back {
                self.held_back.store(true, Ordering::SeqCst);
            }
            if !claims.is_empty() {
                for claim in &claims {
                    self.changed(claim.attempt.job, false);
                }
                drop(place);
                self.left(&claims.iter().map(|claim| claim.attempt.job).collect::<Vec<_>>());
                if claims.len() == max as usize {
                    // There may be more than was taken; whoever else waits looks too.
                    self.waiting.wake_all();
                }
                return Ok(claims.into_iter().map(|claim| self.opened(claim)).collect());
            }
            let ended = held_back && self.ends.load(Ordering::SeqCst) != ends;
            let left = reserves.is_some() && self.departures.load(Ordering::SeqCst) != departures;
            if ended || left {
                // Between the look and the flag, or the note of what room is kept for.
                continue;
            }
            // It was woken for a job that is not for it at the moment; somebody else may have room.
            self.waiting.pass_on(&place);
            tokio::select! {
                biased;
                () = place.woken() => {
                    if place.dismissed() {
                        return Ok(Vec::new());
                    }
                    if place.looks_last() && tokio::time::timeout(DOUBT, stop.cancelled()).await.is_ok() {
                        return Ok(Vec::new());
                    }
                }
                () = tokio::time::sleep_until(until) => return Ok(Vec::new()),
                () = stop.cancelled() => return Ok(Vec::new()),
            }
        }
    }

    /// Which agents are drained from now on; what is said of `changed` is new. When this returns, an agent that is drained gets no more
    /// jobs: its claims that wait have come back, and what was left to it is others'.
    pub async fn set_drains(&self, drains: BTreeMap<String, Drain>, changed: &str) {
        let drained = drains.contains_key(changed);
        {
            let _alone = self.handing_out.write().await;
            self.roster.drains().set(drains);
        }
        if drained {
            self.waiting.dismiss(changed);
            self.waiting.wake_all();
        }
    }

    /// Takes all jobs from an agent that is not trusted with them any more, and says how many. It is told to end them at once; whether it does
    /// or not, it cannot say anything of them any more. They are tried again as after a lost agent.
    pub async fn take_from(&self, agent: &str) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let taken = self.store.take_from(agent, UnixMillis::now(), self.settings.max_attempts).await?;
            if taken.is_empty() {
                return Ok(all);
            }
            all += taken.len() as u64;
            for one in taken {
                let (job, attempt) = match &one {
                    Expired::Requeued(attempt) => (attempt.job, attempt.attempt),
                    Expired::Ended(job) => (job.id, job.attempt),
                };
                let order = Order::Cancel { job, attempt: Some(attempt), holder: Some(agent.to_owned()), force: true };
                // Nobody listening is fine: what the agent asks next for it is refused.
                let _ = self.orders.send(order);
                self.lost(one, "its agent was quarantined").await;
            }
        }
    }

    /// How many jobs each agent has, as the queue knows it.
    pub async fn held(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let phases = vec![Phase::Claimed, Phase::Preparing, Phase::Running, Phase::Finishing];
        let jobs = self.store.list(ListFilter { phases, limit: u32::MAX, ..ListFilter::default() }).await?;
        let mut held = BTreeMap::new();
        for agent in jobs.into_iter().filter_map(|job| job.agent) {
            *held.entry(agent).or_default() += 1;
        }
        Ok(held)
    }

    /// Something ended or went back: what was held back for it may go now.
    fn made_room(&self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
        if self.held_back.swap(false, Ordering::SeqCst) {
            self.waiting.wake_all();
        }
    }

    /// These jobs left the queue: an agent that kept its room for one of them hands it to others now.
    fn left(&self, jobs: &[JobId]) {
        self.departures.fetch_add(1, Ordering::SeqCst);
        self.waiting.left(jobs);
    }

    /// Why a job stands where it stands; `None` when there is no such job.
    pub async fn explain(&self, id: JobId) -> Result<Option<Explanation>, StoreError> {
        let Some(job) = self.store.get(id).await? else { return Ok(None) };
        let place = if job.phase == Phase::Queued { self.store.place(id).await? } else { None };
        let job =
            if job.spec.fan_out().is_some() { Job { children: self.store.children(id).await?, ..job } } else { job };
        let now = UnixMillis::now();
        Ok(Some(explain(&job, place.as_ref(), &self.roster.list(now), now)))
    }

    /// How many jobs one agent takes when others wait too: an equal part of what is queued, rounded up.
    async fn share(&self, max: u32, waiting: usize) -> Result<u32, StoreError> {
        if max <= 1 || waiting <= 1 {
            return Ok(max);
        }
        let queued = self.store.counts().await?.queued;
        let part = queued.div_ceil(waiting as u64).max(1);
        Ok(max.min(u32::try_from(part).unwrap_or(u32::MAX)))
    }

    /// Renews leases; the answers come in the order asked.
    pub async fn renew(&self, agent: &str, leases: &[(AttemptId, LeaseToken)]) -> Result<Vec<Renewed>, StoreError> {
        if !mutant!(ClockSeldomLookedAt) {
            self.look_at_clock();
        }
        let answers = self.store.renew(agent, leases, self.settings.lease, UnixMillis::now()).await?;
        let shown = |answer| match answer {
            Renewal::Renewed { until, cancel_requested } => Renewed::Renewed { until, cancel_requested },
            Renewal::Refused => Renewed::Refused,
        };
        Ok(answers.into_iter().map(shown).collect())
    }

    /// How attempts stand, for one who says that they are theirs; in the order asked.
    pub async fn lookup(
        &self,
        agent: &str,
        leases: &[(AttemptId, LeaseToken)],
    ) -> Result<Vec<AttemptStanding>, StoreError> {
        let standings = self.store.lookup(agent, leases).await?;
        let shown = |standing| match standing {
            Standing::Held => AttemptStanding::Held,
            Standing::Ended => AttemptStanding::Ended,
            Standing::Unknown => AttemptStanding::Unknown,
        };
        Ok(standings.into_iter().map(shown).collect())
    }

    /// Tells that an attempt entered a phase.
    pub async fn advance(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Result<Step, StoreError> {
        let applied = self.store.advance(agent, lease, phase, at, reason).await?;
        if applied == Applied::Applied {
            self.changed(lease.0.job, false);
        }
        Ok(step(applied))
    }

    /// Gives a terminal report, of an agent that wrote the output into this log store itself.
    pub async fn report(&self, agent: &str, report: &Report, token: LeaseToken) -> Result<Reported, StoreError> {
        let (now, max_attempts) = (UnixMillis::now(), self.settings.max_attempts);
        let completion = self.store.complete(agent, report, token, now, max_attempts).await?;
        if let Completion::Applied(job) = &completion {
            self.report_taken(report).await;
            if let Some(resources) = job.spec.takes() {
                self.waiting.freed(agent, resources);
            }
            self.changed(job.id, job.phase == Phase::Ended);
            self.made_room();
            self.tried_again(job, now);
        }
        Ok(match completion {
            Completion::Applied(_) => Reported::Applied,
            Completion::AlreadyEnded => Reported::AlreadyEnded,
            Completion::Unknown => Reported::Unknown,
        })
    }

    /// A job that has a next try is claimed when that is due.
    fn tried_again(&self, job: &Job, now: UnixMillis) {
        let Some(next) = &job.next_try else { return };
        let (id, cause, number, of, at) = (job.id, &next.cause, next.number, next.of, next.not_before);
        tracing::info!(job_id = %id, cause, "it is tried again: try {number} of {of}, not before {at}");
        if at > now {
            self.delayed.notify_one();
        } else {
            self.waiting.wake_for(&job.spec);
        }
    }

    /// Gives back an attempt that never started, to be handed out again at once or `later`.
    pub async fn release(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        reason: &str,
        later: Option<&Later>,
    ) -> Result<Step, StoreError> {
        let applied = self.store.release(agent, lease, UnixMillis::now(), reason, later).await?;
        if applied == Applied::Applied {
            self.results.forget(lease.0.job);
            self.close_logs(lease.0).await;
            // A release ends a job whose end was asked for.
            let ended = self.store.get(lease.0.job).await?.is_some_and(|job| job.phase == Phase::Ended);
            self.changed(lease.0.job, ended);
            if later.is_some() {
                self.delayed.notify_one();
            }
            // The job is there again, and so is what it would have used.
            self.waiting.wake_all();
        }
        Ok(step(applied))
    }

    /// What the agent is told without having asked.
    pub fn orders(&self) -> broadcast::Receiver<Order> {
        self.orders.subscribe()
    }

    // ---- its own task ----

    /// Hands out again what lost agents held, until `stop`.
    pub async fn run_expiry(self: Arc<Self>, stop: CancellationToken) {
        // While this process was not there nobody could renew: what was held gets a full term, so a short absence takes no job
        // from its agent.
        let mut extended = self.extend().await;
        let mut failed = false;
        let mut learned = false;
        if self.is_behind().await {
            tracing::warn!(
                "the host's clock is behind what is stored; jobs that wait for their next try are tried at once"
            );
            self.ready(NEVER).await;
        }
        let mut look = tokio::time::Instant::now() + STUCK_LOOKS;
        loop {
            if !learned {
                match self.learn_families().await {
                    Ok(()) => learned = true,
                    Err(error) => tracing::error!(%error, "jobs for several hosts cannot be looked at"),
                }
            }
            // What could not be done is done with the next look.
            let settled = self.settle_families().await;
            let next = self.store.next_due().await.unwrap_or_else(|error| {
                tracing::error!(%error, "queue cannot be read");
                None
            });
            tokio::select! {
                biased;
                () = tokio::time::sleep(expiry_pause(next, failed || !settled, UnixMillis::now())) => {}
                // That one may be due before.
                () = self.delayed.notified() => continue,
                // Somebody of a family has ended.
                () = self.families.changed.notified() => continue,
                () = stop.cancelled() => return,
            }
            // Leases and delays are kept in wall time. When that is set, they mean something else: nobody is lost by it, and what is
            // delayed comes early rather than a day late.
            self.look_at_clock();
            let set = self.clock.lock().unwrap_or_else(PoisonError::into_inner).set.take();
            if let Some(set) = set {
                tracing::warn!(by_seconds = set, "the host's clock was set; each lease has a full term from now on");
                extended = false;
                look = tokio::time::Instant::now() + STUCK_LOOKS;
            }
            let all_ready = self.ready(if set.is_some() { NEVER } else { UnixMillis::now() }).await;
            if !extended {
                extended = self.extend().await;
                failed = !(extended && all_ready);
                continue;
            }
            if tokio::time::Instant::now() >= look {
                self.end_stuck().await;
                look = tokio::time::Instant::now() + STUCK_LOOKS;
            }
            let expired = self.store.expire(UnixMillis::now(), self.settings.max_attempts).await;
            failed = expired.is_err() || !all_ready;
            match expired {
                Ok(expired) => {
                    for one in expired {
                        self.lost(one, "its agent was lost").await;
                    }
                }
                Err(error) => tracing::error!(%error, "expired leases cannot be settled"),
            }
        }
    }

    /// Notes when the clock was set. Before each lease too: a clock that is set, and set back before anybody looks, was right at both looks
    /// and not between them.
    fn look_at_clock(&self) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by) = clock.steady.was_set() {
            clock.set = Some(by);
        }
    }

    /// Makes delayed jobs ready that are due at this moment, and wakes agents for them; true when that is done.
    async fn ready(&self, moment: UnixMillis) -> bool {
        loop {
            match self.store.ready(moment).await {
                Ok(0) => return true,
                Ok(some) => {
                    self.waiting.wake_all();
                    if some < u64::from(READY_BATCH) {
                        return true;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "jobs that are to be tried again cannot be taken up");
                    return false;
                }
            }
        }
    }

    /// The clock was set back while this process was not there: the last job was submitted later than now. Small steps may not show; what
    /// they cost is as small.
    async fn is_behind(&self) -> bool {
        let newest = self.store.list(ListFilter { limit: 1, ..ListFilter::default() }).await;
        newest.is_ok_and(|newest| newest.iter().any(|job| job.submitted_at > UnixMillis::now()))
    }

    /// Gives every lease a full term; true when that is done.
    async fn extend(&self) -> bool {
        match self.store.extend(self.settings.lease, UnixMillis::now()).await {
            Ok(0) => true,
            Ok(leases) => {
                tracing::info!(leases, "jobs are held by agents; each has a full lease from now on");
                true
            }
            Err(error) => {
                tracing::error!(%error, "leases could not be extended; none runs out before they are");
                false
            }
        }
    }

    /// Has jobs ended that do not get on, and takes those from their holders that were not.
    async fn end_stuck(&self) {
        let (after, max_attempts) = (self.settings.stuck_after, self.settings.max_attempts);
        let found = match self.store.end_stuck(UnixMillis::now(), after, max_attempts).await {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "held jobs cannot be looked at"),
        };
        for one in found {
            match one {
                Stuck::Told { attempt: AttemptId { job, attempt, .. }, holder } => {
                    tracing::warn!(job_id = %job, attempt, holder, "a job does not get on; its agent is told to end it");
                    self.stuck.fetch_add(1, Ordering::SeqCst);
                    let _ = self.orders.send(Order::Cancel { job, attempt: Some(attempt), holder, force: true });
                    self.changed(job, false);
                }
                Stuck::Taken(expired) => self.lost(expired, "it did not get on, and its agent did not end it").await,
            }
        }
    }

    /// How many jobs did not get on, since this was asked before.
    pub fn take_stuck(&self) -> u64 {
        self.stuck.swap(0, Ordering::SeqCst)
    }

    async fn lost(&self, expired: Expired, why: &str) {
        let (attempt, ended) = match expired {
            Expired::Requeued(attempt) => (attempt, false),
            Expired::Ended(job) => (AttemptId::new(job.id, job.attempt), true),
        };
        self.results.forget(attempt.job);
        tracing::warn!(%attempt, ended, "{why}");
        // Else an agent that is frozen could be the first to get it again, and would lose it again.
        if let Ok(Some(job)) = self.store.get(attempt.job).await {
            let holder = job.past_tries.iter().find(|past| past.attempt == attempt.attempt).map(|past| &past.agent);
            if let Some(holder) = holder.or(job.agent.as_ref()) {
                self.waiting.doubt(holder);
            }
        }
        self.close_logs(attempt).await;
        self.changed(attempt.job, ended);
        // What was held back for it may go now; it itself may have to wait for its time.
        self.waiting.wake_all();
    }
}

/// How long the expiry task sleeps. A lease that is due and cannot be settled stays due: that is not tried again at once.
pub(super) fn expiry_pause(next: Option<UnixMillis>, failed: bool, now: UnixMillis) -> Duration {
    match next {
        Some(at) if !failed => at.since(now).as_duration().min(EXPIRY_PAUSE),
        Some(_) | None => EXPIRY_PAUSE,
    }
}

fn step(applied: Applied) -> Step {
    match applied {
        Applied::Applied => Step::Applied,
        Applied::AlreadyThere => Step::AlreadyThere,
        Applied::Refused => Step::Refused,
    }
}
