//! The dispatcher: claims what fits, starts a runner for each attempt, renews leases, hands on cancels, drains.
//!
//! It owns the job table and nobody else touches it. It never awaits a runner, a cell, a backend or a full queue: what it asks a
//! backend is in flight beside everything else, and what it tells a runner goes through a bounded channel by `try_send`; a
//! runner that is too busy to take it is told again.

use super::claims::{BackendState, Claims};
use super::runner::{Attempt, Outcome, Runner};
use super::score::Score;
use crate::admission::{Ledger, Presets, resolve};
use crate::backend::{Backend, BackendError, Grant, Order};
use crate::executor::warden::{Orders, StopReason};
use crate::executor::{CellOrder, Executor};
use crate::job::{AttemptId, Capacity, JobId, LeaseToken, Millis};
use crate::logstore::LogStore;
use crate::protocol::agent::{Announcement, Load, Renewed};
use crate::telemetry::Metrics;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Orders to one runner that may wait. A runner takes them within milliseconds; one that cannot is told again at the
/// next renewal.
const ORDERS_PER_RUNNER: usize = 8;
/// Orders of all backends that may wait. One more is learnt from the next renewal.
const ORDERS: usize = 256;
/// Cancels remembered while a claim is under way. One more is learnt from the next renewal.
const MOST_EARLY: usize = 256;
/// Between two looks at the executor, and after it was seen to be unavailable.
const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// On top of the grace, for runners to report and clean up when the drain time is over.
const FORCED_SLACK: Duration = Duration::from_secs(15);
/// What a warden is promised at a time for a job whose backend has no leases; renewed by the agent alone, so that the job ends
/// when the agent is gone.
const OWN_LEASE: Millis = Millis::from_secs(60);
/// Renewals are never closer together.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(50);

/// How the agent behaves.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// What backends are told of it.
    pub announcement: Announcement,
    /// What it has to give.
    pub capacity: Capacity,
    /// Most jobs in one claim.
    pub claim_batch: u32,
    /// Between TERM and KILL.
    pub grace: Millis,
    /// How long running jobs may go on after a stop was asked for.
    pub drain_timeout: Duration,
    /// How long whoever runs a cell may be away before the cell is given up.
    pub reconnect: Duration,
    /// Language environments.
    pub presets: Presets,
}

/// What an agent is doing, for health and status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Attempts it holds.
    pub held: usize,
    /// Why it makes no cells, if so.
    pub unavailable: Option<String>,
    /// It claims no more.
    pub draining: bool,
    /// How claims go, by the backends' names.
    pub backends: Vec<(String, BackendState)>,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every job ended by itself.
    Clean,
    /// Some were ended; the number.
    Forced(usize),
}

/// An agent.
pub struct Agent<E: Executor> {
    backends: Vec<Arc<dyn Backend>>,
    executor: Arc<E>,
    logs: LogStore,
    settings: Arc<AgentSettings>,
    metrics: Arc<Metrics>,
    status: watch::Sender<Status>,
}

/// Which backend, by its place, and which of its attempts.
type Key = (usize, AttemptId);
/// A renewal in flight: whose, when it was sent, and for which attempts.
type Renewing = BoxFuture<'static, (usize, Instant, Vec<(AttemptId, LeaseToken)>, Result<Vec<Renewed>, BackendError>)>;
/// A job whose end a backend asks for, and whether at once; `None` when some were missed.
type Ordered = (usize, Option<(JobId, bool)>);

struct Held {
    token: LeaseToken,
    orders: mpsc::Sender<Orders>,
}

struct Table<E: Executor> {
    agent: Agent<E>,
    ledger: Ledger,
    claims: Claims,
    held: BTreeMap<Key, Held>,
    /// Claimed, and waiting for cores or memory; in order. Claims are never larger than the free slots, so this is
    /// bounded by them.
    waiting: VecDeque<Waiting>,
    runners: JoinSet<Outcome>,
    /// Which runner has which attempt, for one that panics and cannot say.
    tasks: HashMap<task::Id, Key>,
    /// Jobs whose end was asked for while a claim was under way, and whether at once: it may be about to bring them.
    early: HashMap<(usize, JobId), bool>,
    /// At most one for each backend.
    renewing: FuturesUnordered<Renewing>,
    renews: Vec<bool>,
    orders: mpsc::Receiver<Ordered>,
    /// Bring the orders; end with the table.
    _listeners: JoinSet<()>,
    score: Score,
}

struct Waiting {
    backend: usize,
    claim: Grant,
    orders: mpsc::Receiver<Orders>,
}

impl<E: Executor> Agent<E> {
    /// An agent that runs what `backends` have on what `executor` makes, and writes output to `logs`.
    pub fn new(
        backends: Vec<Arc<dyn Backend>>,
        executor: Arc<E>,
        logs: LogStore,
        settings: AgentSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (status, _) = watch::channel(Status::default());
        Self { backends, executor, logs, settings: Arc::new(settings), metrics, status }
    }

    /// What it is doing, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until `drain` and then until every job has ended or was ended; `force` ends them at once.
    pub async fn run(self, drain: CancellationToken, force: CancellationToken) -> Drained {
        let (sender, orders) = mpsc::channel(ORDERS);
        let mut listeners = JoinSet::new();
        for (index, backend) in self.backends.iter().enumerate() {
            backend.announce(&self.settings.announcement);
            listeners.spawn(listen(index, backend.orders(), sender.clone()));
        }
        let table = Table {
            ledger: Ledger::new(self.settings.capacity),
            claims: Claims::new(&self.backends),
            held: BTreeMap::new(),
            waiting: VecDeque::new(),
            runners: JoinSet::new(),
            tasks: HashMap::new(),
            early: HashMap::new(),
            renewing: FuturesUnordered::new(),
            renews: vec![false; self.backends.len()],
            orders,
            _listeners: listeners,
            score: Score::default(),
            agent: self,
        };
        table.run(drain, force).await
    }

    async fn probe(&self) {
        let unavailable = self.executor.probe().await.err();
        self.status.send_if_modified(|status| {
            if status.unavailable == unavailable {
                return false;
            }
            match &unavailable {
                Some(reason) => tracing::error!(%reason, "no cells can be made; no jobs are claimed until they can"),
                None => tracing::info!("cells can be made again"),
            }
            status.unavailable = unavailable;
            true
        });
    }

    async fn give_back(&self, one: &Waiting) {
        let (attempt, token) = (one.claim.attempt, one.claim.token);
        if let Err(error) = self.backends[one.backend].release(attempt, token, "agent_draining").await {
            tracing::error!(%error, %attempt, "could not be given back; its lease will run out");
        }
    }
}

/// Brings a backend's orders to the dispatcher.
async fn listen(index: usize, mut orders: broadcast::Receiver<Order>, to: mpsc::Sender<Ordered>) {
    loop {
        let order = match orders.recv().await {
            Ok(Order::Cancel { job, force, .. }) => Some((job, force)),
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        // Full: what is lost here, the next renewal says again.
        if let Err(mpsc::error::TrySendError::Closed(_)) = to.try_send((index, order)) {
            return;
        }
    }
}

impl<E: Executor> Table<E> {
    async fn run(mut self, drain: CancellationToken, force: CancellationToken) -> Drained {
        let mut renew_at = Instant::now() + self.renew_pause();
        let mut probe_at = Instant::now();
        while !drain.is_cancelled() {
            self.start_waiting();
            self.publish(false);
            if self.available() && self.waiting.is_empty() {
                let load = self.load(false);
                self.claims.start(self.ledger.free(), self.agent.settings.claim_batch, &load, &drain);
            }
            let pause_over = self.claims.pause_over();
            // A backend elsewhere says its lease when it is first reached, and that may be shorter than what was assumed.
            renew_at = renew_at.min(Instant::now() + self.renew_pause());
            tokio::select! {
                // Claims last: what is held is looked after before more is taken.
                biased;
                () = drain.cancelled() => break,
                Some((index, order)) = self.orders.recv() => self.ordered(index, order),
                Some((index, sent, leases, answer)) = self.renewing.next() => self.renewed(index, sent, &leases, answer),
                () = tokio::time::sleep_until(renew_at) => {
                    self.renew_all();
                    renew_at = Instant::now() + self.renew_pause();
                }
                Some(ended) = self.runners.join_next_with_id() => {
                    if self.ended(ended) {
                        probe_at = Instant::now() + PROBE_PAUSE;
                    }
                }
                () = tokio::time::sleep_until(probe_at) => {
                    self.agent.probe().await;
                    probe_at = Instant::now() + PROBE_PAUSE;
                }
                (index, grants) = self.claims.answer() => self.take(index, grants),
                () = tokio::time::sleep_until(pause_over) => {}
            }
        }
        // Their waits end with the drain; what they have claimed nevertheless is given back with the rest.
        while !self.claims.is_empty() {
            let (index, grants) = self.claims.answer().await;
            self.take(index, grants);
        }
        self.drain(renew_at, force).await
    }

    fn available(&self) -> bool {
        self.agent.status.borrow().unavailable.is_none()
    }

    /// A third of the shortest lease: two renewals may fail before it runs out.
    fn renew_pause(&self) -> Duration {
        let shortest = self.agent.backends.iter().map(|backend| lease(backend.as_ref())).min().unwrap_or(OWN_LEASE);
        (shortest.as_duration() / 3).max(SHORTEST_RENEWAL)
    }

    fn load(&self, draining: bool) -> Load {
        Load {
            held: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
            health: self.score.value(Instant::now()),
            draining,
            unavailable: self.agent.status.borrow().unavailable.clone(),
        }
    }

    fn publish(&self, draining: bool) {
        let held = self.held.len();
        self.agent.metrics.jobs_running.set(i64::try_from(held).unwrap_or(i64::MAX));
        let backends = self.claims.states();
        self.agent.status.send_if_modified(|status| {
            let changed = status.held != held || status.draining != draining || status.backends != backends;
            (status.held, status.draining, status.backends) = (held, draining, backends);
            changed
        });
        let load = self.load(draining);
        for backend in &self.agent.backends {
            backend.tell(&load);
        }
    }

    fn take(&mut self, backend: usize, claims: Vec<Grant>) {
        if !claims.is_empty() {
            self.agent.metrics.claims_total.inc();
            self.agent.metrics.claimed_jobs_total.inc_by(claims.len() as u64);
        }
        for claim in claims {
            let key = (backend, claim.attempt);
            if self.held.contains_key(&key) {
                // An answer that came twice.
                tracing::debug!(attempt = %claim.attempt, "is here already");
                continue;
            }
            let (sender, orders) = mpsc::channel(ORDERS_PER_RUNNER);
            let held = Held { token: claim.token, orders: sender };
            if let Some(force) = self.early.get(&(backend, claim.attempt.job)) {
                tell(claim.attempt, &held, Orders::Stop { reason: StopReason::Cancel, force: *force });
            }
            self.held.insert(key, held);
            self.waiting.push_back(Waiting { backend, claim, orders });
        }
        self.early.retain(|(of, _), _| *of != backend);
    }

    /// Starts what fits now, in order.
    fn start_waiting(&mut self) {
        while let Some(first) = self.waiting.front() {
            let asked = first.claim.spec.resources();
            let permit = match self.ledger.could_fit(asked) {
                Err(cause) => Err(cause),
                Ok(()) => match self.ledger.reserve(asked) {
                    Some(permit) => Ok(permit),
                    None => return,
                },
            };
            let Some(Waiting { backend: index, claim, orders }) = self.waiting.pop_front() else { return };
            let settings = Arc::clone(&self.agent.settings);
            let backend = Arc::clone(&self.agent.backends[index]);
            let attempt = permit.and_then(|permit| {
                let (image, argv) = resolve(&claim.spec, &settings.presets)?;
                let order = CellOrder {
                    attempt: claim.attempt,
                    spec: Arc::new(claim.spec.clone()),
                    image,
                    argv,
                    grace: settings.grace,
                    lease: lease(backend.as_ref()),
                };
                Ok(Attempt { order, permit })
            });
            let runner = Runner {
                backend,
                executor: Arc::clone(&self.agent.executor),
                logs: self.agent.logs.clone(),
                metrics: Arc::clone(&self.agent.metrics),
                id: claim.attempt,
                token: claim.token,
                reconnect: settings.reconnect,
            };
            let task = self.runners.spawn(runner.run(attempt, orders));
            self.tasks.insert(task.id(), (index, claim.attempt));
        }
    }

    /// Takes a runner's end; true when it says that no cells can be made.
    fn ended(&mut self, ended: Result<(task::Id, Outcome), task::JoinError>) -> bool {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(key) = self.tasks.remove(&id) {
            self.held.remove(&key);
        }
        match ended {
            Ok((_, Outcome::Reported { well })) => {
                self.score.add(Instant::now(), well);
                false
            }
            Ok((_, Outcome::GivenBack)) => false,
            Ok((_, Outcome::NoCells { reason })) => {
                tracing::error!(%reason, "no cell can be made; the job went back to the queue");
                self.agent.status.send_modify(|status| status.unavailable = Some(reason));
                true
            }
            Err(error) => {
                // Its lease is not renewed any more and runs out; the next start's sweep finds the cell.
                tracing::error!(%error, "a runner panicked");
                self.score.add(Instant::now(), false);
                false
            }
        }
    }

    fn ordered(&mut self, backend: usize, order: Option<(JobId, bool)>) {
        // What was missed is in the answers to a renewal.
        let Some((job, force)) = order else { return self.renew(backend) };
        if self.early.len() < MOST_EARLY {
            *self.early.entry((backend, job)).or_default() |= force;
        }
        for ((of, attempt), held) in &self.held {
            if *of == backend && attempt.job == job {
                tell(*attempt, held, Orders::Stop { reason: StopReason::Cancel, force });
            }
        }
    }

    fn renew_all(&mut self) {
        for backend in 0..self.agent.backends.len() {
            self.renew(backend);
        }
    }

    /// Sends a renewal of everything that is held for one backend, unless one is on its way.
    fn renew(&mut self, index: usize) {
        let held = self.held.iter().filter(|((of, _), _)| *of == index);
        let leases: Vec<_> = held.map(|((_, attempt), held)| (*attempt, held.token)).collect();
        if leases.is_empty() || std::mem::replace(&mut self.renews[index], true) {
            return;
        }
        let backend = Arc::clone(&self.agent.backends[index]);
        let limit = lease(backend.as_ref()).as_duration() / 3;
        self.renewing.push(Box::pin(async move {
            // The lease counts from here, when the renewal is sent: an answer that was long on its way must not stretch it.
            let sent = Instant::now();
            let answer = tokio::time::timeout(limit, backend.renew(&leases)).await.unwrap_or_else(|_| {
                let message = format!("no answer within {} ms", limit.as_millis());
                Err(BackendError { retry: crate::net::Retry::Transient, message })
            });
            (index, sent, leases, answer)
        }));
    }

    fn renewed(
        &mut self,
        index: usize,
        sent: Instant,
        leases: &[(AttemptId, LeaseToken)],
        answer: Result<Vec<Renewed>, BackendError>,
    ) {
        self.renews[index] = false;
        let backend = &self.agent.backends[index];
        let answers = match answer {
            Ok(answers) => answers,
            Err(error) => {
                return tracing::error!(backend = backend.name(), %error, "leases could not be renewed");
            }
        };
        let left = Millis::from(lease(backend.as_ref()).as_duration().saturating_sub(sent.elapsed()));
        for ((attempt, _), answer) in leases.iter().zip(answers) {
            let Some(held) = self.held.get(&(index, *attempt)) else { continue };
            match answer {
                Renewed::Renewed { cancel_requested, .. } => {
                    tell(*attempt, held, Orders::Renewed(left));
                    if cancel_requested {
                        // It does not say whether the cancel was forced; one that was, and came, is not weakened by this.
                        tell(*attempt, held, Orders::Stop { reason: StopReason::Cancel, force: false });
                    }
                }
                Renewed::Refused => tell(*attempt, held, Orders::Stop { reason: StopReason::Lease, force: false }),
            }
        }
    }

    fn stop_all(&self, reason: StopReason) {
        for ((_, attempt), held) in &self.held {
            tell(*attempt, held, Orders::Stop { reason, force: false });
        }
    }

    /// Gives back what has not started, lets the rest end, and ends it when the time is over.
    async fn drain(mut self, mut renew_at: Instant, force: CancellationToken) -> Drained {
        let waiting: Vec<Waiting> = self.waiting.drain(..).collect();
        for one in &waiting {
            self.held.remove(&(one.backend, one.claim.attempt));
        }
        join_all(waiting.iter().map(|one| self.agent.give_back(one))).await;
        let mut until = Instant::now() + self.agent.settings.drain_timeout;
        let mut forced = 0;
        while !self.runners.is_empty() {
            self.publish(true);
            tokio::select! {
                () = force.cancelled(), if forced == 0 => {
                    forced = self.held.len();
                    self.stop_all(StopReason::Drain);
                    until = Instant::now() + self.agent.settings.grace.as_duration() + FORCED_SLACK;
                }
                () = tokio::time::sleep_until(until) => {
                    if forced > 0 {
                        let held: Vec<String> = self.held.keys().map(|(_, attempt)| attempt.to_string()).collect();
                        tracing::error!(?held, "left running; the next start removes their cells");
                        return Drained::Forced(forced);
                    }
                    forced = self.held.len();
                    tracing::warn!(jobs = forced, "drain time is over; jobs that still run are ended");
                    self.stop_all(StopReason::Drain);
                    until = Instant::now() + self.agent.settings.grace.as_duration() + FORCED_SLACK;
                }
                Some((index, order)) = self.orders.recv() => self.ordered(index, order),
                Some((index, sent, leases, answer)) = self.renewing.next() => self.renewed(index, sent, &leases, answer),
                () = tokio::time::sleep_until(renew_at) => {
                    self.renew_all();
                    renew_at = Instant::now() + self.renew_pause();
                }
                Some(ended) = self.runners.join_next_with_id() => { self.ended(ended); }
            }
        }
        self.publish(true);
        if forced > 0 { Drained::Forced(forced) } else { Drained::Clean }
    }
}

fn lease(backend: &dyn Backend) -> Millis {
    backend.capabilities().lease.unwrap_or(OWN_LEASE)
}

fn tell(attempt: AttemptId, held: &Held, order: Orders) {
    // Full: the runner is busy making its cell, and reads them in order as soon as it can; the next renewal repeats what
    // matters. Closed: it has just ended.
    if let Err(mpsc::error::TrySendError::Full(order)) = held.orders.try_send(order) {
        tracing::debug!(%attempt, ?order, "runner has too many orders waiting");
    }
}
