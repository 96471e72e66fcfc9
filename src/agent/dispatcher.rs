//! The dispatcher: claims what fits, starts a runner for each attempt, renews leases, hands on cancels, drains.
//!
//! It owns the job table and nobody else touches it. It never awaits a runner, a cell or a full queue: what it tells a
//! runner goes through a bounded channel by `try_send`, and a runner that is too busy to take it is told again.

use super::runner::{Attempt, Outcome, Runner};
use crate::admission::{Capacity, Ledger, Presets, resolve};
use crate::backend::{Embedded, Order};
use crate::executor::warden::{Orders, StopReason};
use crate::executor::{CellOrder, Executor};
use crate::job::{AttemptId, JobId, Millis};
use crate::queue::{Claim, LeaseToken, Renewal, StoreError};
use crate::telemetry::Metrics;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Orders to one runner that may wait. A runner takes them within milliseconds; one that cannot is told again at the
/// next renewal.
const ORDERS_PER_RUNNER: usize = 8;
/// Cancels remembered while a claim is under way. One more is learnt from the next renewal.
const MOST_EARLY: usize = 256;
/// One long poll for work. An embedded backend wakes it at once; the end of it only bounds a wait that went wrong.
const CLAIM_WAIT: Duration = Duration::from_secs(20);
/// After a claim that failed.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the executor, and after it was seen to be unavailable.
const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// On top of the grace, for runners to report and clean up when the drain time is over.
const FORCED_SLACK: Duration = Duration::from_secs(15);

/// How the agent behaves.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Its name.
    pub name: String,
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
    backend: Arc<Embedded>,
    executor: Arc<E>,
    settings: Arc<AgentSettings>,
    metrics: Arc<Metrics>,
    status: watch::Sender<Status>,
}

/// A claim under way.
type Claiming = BoxFuture<'static, Result<Vec<Claim>, StoreError>>;

struct Held {
    token: LeaseToken,
    orders: mpsc::Sender<Orders>,
}

struct Table<E: Executor> {
    agent: Agent<E>,
    ledger: Ledger,
    held: BTreeMap<AttemptId, Held>,
    /// Claimed, and waiting for cores or memory; in order. Claims are never larger than the free slots, so this is
    /// bounded by them.
    waiting: VecDeque<Waiting>,
    runners: JoinSet<Outcome>,
    /// Which runner has which attempt, for one that panics and cannot say.
    tasks: HashMap<task::Id, AttemptId>,
    /// Jobs whose end was asked for while a claim was under way: it may be about to bring them.
    early: HashSet<JobId>,
}

struct Waiting {
    claim: Claim,
    orders: mpsc::Receiver<Orders>,
}

impl<E: Executor> Agent<E> {
    /// An agent that runs what `backend` has on what `executor` makes.
    pub fn new(backend: Arc<Embedded>, executor: Arc<E>, settings: AgentSettings, metrics: Arc<Metrics>) -> Self {
        let (status, _) = watch::channel(Status::default());
        Self { backend, executor, settings: Arc::new(settings), metrics, status }
    }

    /// What it is doing, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until `drain` and then until every job has ended or was ended; `force` ends them at once.
    pub async fn run(self, drain: CancellationToken, force: CancellationToken) -> Drained {
        let ledger = Ledger::new(self.settings.capacity);
        let table = Table {
            agent: self,
            ledger,
            held: BTreeMap::new(),
            waiting: VecDeque::new(),
            runners: JoinSet::new(),
            tasks: HashMap::new(),
            early: HashSet::new(),
        };
        table.run(drain, force).await
    }
}

impl<E: Executor> Table<E> {
    async fn run(mut self, drain: CancellationToken, force: CancellationToken) -> Drained {
        let mut orders = self.agent.backend.orders();
        // A third of the lease: two renewals may fail before it runs out.
        let mut renew =
            tokio::time::interval((self.agent.backend.lease().as_duration() / 3).max(Duration::from_millis(50)));
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probe_at = Instant::now();
        // Kept over the rounds of the loop and never dropped before it has answered: what it claimed would be lost with it.
        let mut claiming: Option<Claiming> = None;
        while !drain.is_cancelled() {
            self.start_waiting();
            self.publish(false);
            if claiming.is_none() && self.available() {
                claiming = self.claim(&drain);
            }
            tokio::select! {
                // Claims last: what is held is looked after before more is taken.
                biased;
                () = drain.cancelled() => break,
                order = orders.recv() => self.ordered(order).await,
                _ = renew.tick() => self.renew().await,
                Some(ended) = self.runners.join_next_with_id() => {
                    if self.ended(ended) {
                        probe_at = Instant::now() + PROBE_PAUSE;
                    }
                }
                () = tokio::time::sleep_until(probe_at) => {
                    self.probe().await;
                    probe_at = Instant::now() + PROBE_PAUSE;
                }
                claims = answer(&mut claiming) => self.claimed(claims),
            }
        }
        if claiming.is_some() {
            // Its wait ends with the drain; what it has claimed nevertheless is given back with the rest.
            let claims = answer(&mut claiming).await;
            self.claimed(claims);
        }
        self.drain(orders, renew, force).await
    }

    /// A claim for what is free, if anything is. The room only grows while it waits: only what it brings takes any.
    fn claim(&self, stop: &CancellationToken) -> Option<Claiming> {
        let room = self.room();
        let (backend, name) = (Arc::clone(&self.agent.backend), self.agent.settings.name.clone());
        let stop = stop.clone();
        let claim = async move {
            let claims = backend.claim(&name, room, CLAIM_WAIT, &stop).await;
            if claims.is_err() {
                // The next one follows at once otherwise.
                tokio::time::sleep(CLAIM_PAUSE).await;
            }
            claims
        };
        (room > 0).then(|| Box::pin(claim) as Claiming)
    }

    fn claimed(&mut self, claims: Result<Vec<Claim>, StoreError>) {
        match claims {
            Ok(claims) => self.take(claims),
            Err(error) => tracing::error!(%error, "claim failed"),
        }
    }

    fn available(&self) -> bool {
        self.agent.status.borrow().unavailable.is_none()
    }

    /// How many more jobs to claim. None while a claimed one waits: it is next.
    fn room(&self) -> u32 {
        if self.waiting.is_empty() { self.ledger.free_slots().min(self.agent.settings.claim_batch) } else { 0 }
    }

    fn publish(&self, draining: bool) {
        let held = self.held.len();
        self.agent.metrics.jobs_running.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.agent.status.send_if_modified(|status| {
            let changed = status.held != held || status.draining != draining;
            status.held = held;
            status.draining = draining;
            changed
        });
    }

    async fn probe(&self) {
        let unavailable = self.agent.executor.probe().await.err();
        self.agent.status.send_if_modified(|status| {
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

    fn take(&mut self, claims: Vec<Claim>) {
        if !claims.is_empty() {
            self.agent.metrics.claims_total.inc();
            self.agent.metrics.claimed_jobs_total.inc_by(claims.len() as u64);
        }
        for claim in claims {
            let (sender, orders) = mpsc::channel(ORDERS_PER_RUNNER);
            let held = Held { token: claim.token, orders: sender };
            if self.early.contains(&claim.attempt.job) {
                tell(claim.attempt, &held, Orders::Stop(StopReason::Cancel));
            }
            self.held.insert(claim.attempt, held);
            self.waiting.push_back(Waiting { claim, orders });
        }
        self.early.clear();
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
            let Some(Waiting { claim, orders }) = self.waiting.pop_front() else { return };
            let settings = Arc::clone(&self.agent.settings);
            let attempt = permit.and_then(|permit| {
                let (image, argv) = resolve(&claim.spec, &settings.presets)?;
                let order = CellOrder {
                    attempt: claim.attempt,
                    spec: Arc::new(claim.spec.clone()),
                    image,
                    argv,
                    grace: settings.grace,
                    lease: self.agent.backend.lease(),
                };
                Ok(Attempt { order, permit })
            });
            let runner = Runner {
                backend: Arc::clone(&self.agent.backend),
                executor: Arc::clone(&self.agent.executor),
                metrics: Arc::clone(&self.agent.metrics),
                id: claim.attempt,
                token: claim.token,
                reconnect: settings.reconnect,
            };
            let task = self.runners.spawn(runner.run(attempt, orders));
            self.tasks.insert(task.id(), claim.attempt);
        }
    }

    /// Takes a runner's end; true when it says that no cells can be made.
    fn ended(&mut self, ended: Result<(task::Id, Outcome), task::JoinError>) -> bool {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(attempt) = self.tasks.remove(&id) {
            self.held.remove(&attempt);
        }
        match ended {
            Ok((_, Outcome::Reported)) => false,
            Ok((_, Outcome::Returned { reason })) => {
                tracing::error!(%reason, "no cell can be made; the job went back to the queue");
                self.agent.status.send_modify(|status| status.unavailable = Some(reason));
                true
            }
            Err(error) => {
                // Its lease is not renewed any more and runs out; the next start's sweep finds the cell.
                tracing::error!(%error, "a runner panicked");
                false
            }
        }
    }

    async fn ordered(&mut self, order: Result<Order, broadcast::error::RecvError>) {
        match order {
            Ok(Order::Cancel(job)) => {
                if self.early.len() < MOST_EARLY {
                    self.early.insert(job);
                }
                for (attempt, held) in &self.held {
                    if attempt.job == job {
                        tell(*attempt, held, Orders::Stop(StopReason::Cancel));
                    }
                }
            }
            // What was missed is in the answers to a renewal.
            Err(broadcast::error::RecvError::Lagged(_)) => self.renew().await,
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    async fn renew(&mut self) {
        let leases: Vec<_> = self.held.iter().map(|(attempt, held)| (*attempt, held.token)).collect();
        if leases.is_empty() {
            return;
        }
        let lease = self.agent.backend.lease();
        // The lease counts from here, when the renewal is sent: an answer that was long on its way must not stretch it.
        let sent = Instant::now();
        let limit = lease.as_duration() / 3;
        let answers = match tokio::time::timeout(limit, self.agent.backend.renew(&leases)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return tracing::error!(%error, "leases could not be renewed"),
            Err(_) => return tracing::error!(?limit, "leases could not be renewed in time"),
        };
        let left = Millis::from(lease.as_duration().saturating_sub(sent.elapsed()));
        for ((attempt, _), answer) in leases.iter().zip(answers) {
            let Some(held) = self.held.get(attempt) else { continue };
            match answer {
                Renewal::Renewed { cancel_requested, .. } => {
                    tell(*attempt, held, Orders::Renewed(left));
                    if cancel_requested {
                        tell(*attempt, held, Orders::Stop(StopReason::Cancel));
                    }
                }
                Renewal::Refused => tell(*attempt, held, Orders::Stop(StopReason::Lease)),
            }
        }
    }

    fn stop_all(&self, reason: StopReason) {
        for (attempt, held) in &self.held {
            tell(*attempt, held, Orders::Stop(reason));
        }
    }

    /// Gives back what has not started, lets the rest end, and ends it when the time is over.
    async fn drain(
        mut self,
        mut orders: broadcast::Receiver<Order>,
        mut renew: tokio::time::Interval,
        force: CancellationToken,
    ) -> Drained {
        while let Some(Waiting { claim, .. }) = self.waiting.pop_front() {
            self.held.remove(&claim.attempt);
            if let Err(error) = self.agent.backend.release(claim.attempt, claim.token, "agent_draining").await {
                tracing::error!(%error, attempt = %claim.attempt, "could not be given back; its lease will run out");
            }
        }
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
                        tracing::error!(held = ?self.held.keys(), "left running; the next start removes their cells");
                        return Drained::Forced(forced);
                    }
                    forced = self.held.len();
                    tracing::warn!(jobs = forced, "drain time is over; jobs that still run are ended");
                    self.stop_all(StopReason::Drain);
                    until = Instant::now() + self.agent.settings.grace.as_duration() + FORCED_SLACK;
                }
                order = orders.recv() => self.ordered(order).await,
                _ = renew.tick() => self.renew().await,
                Some(ended) = self.runners.join_next_with_id() => { self.ended(ended); }
            }
        }
        self.publish(true);
        if forced > 0 { Drained::Forced(forced) } else { Drained::Clean }
    }
}

/// Waits for the answer of a claim under way, without dropping it when something else comes first.
async fn answer(claiming: &mut Option<Claiming>) -> Result<Vec<Claim>, StoreError> {
    match claiming {
        Some(claim) => {
            let claims = claim.await;
            *claiming = None;
            claims
        }
        None => std::future::pending().await,
    }
}

fn tell(attempt: AttemptId, held: &Held, order: Orders) {
    // Full: the runner is busy making its cell, and reads them in order as soon as it can; the next renewal repeats what
    // matters. Closed: it has just ended.
    if let Err(mpsc::error::TrySendError::Full(order)) = held.orders.try_send(order) {
        tracing::debug!(%attempt, ?order, "runner has too many orders waiting");
    }
}
