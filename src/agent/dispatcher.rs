//! The dispatcher: claims what fits, starts a runner for each attempt, renews leases, hands on cancels, has ends delivered, drains.
//!
//! It owns the job table and nobody else touches it. It never awaits a runner, a cell, a backend or a full queue: what it asks of
//! others is in flight beside everything else, and what it tells a runner goes through a bounded channel by `try_send`; a
//! runner that is too busy to take it is told again.

use super::claims::{BackendState, Claims};
use super::inputs;
use super::obstacles::{Obstacles, Room};
use super::phases::PhaseClock;
use super::renewals::{Renewals, Terms};
use super::runner::{Attempt, End, Outcome, Runner};
use super::score::Score;
use super::settings::{AgentSettings, Drained, Status, UNSETTLED, is_of_a_start};
use super::settle::Unsettled;
use super::sweeper::Sweeper;
use crate::admission::{Ledger, Permit, resolve};
use crate::backend::{Backend, Grant, Order};
use crate::executor::warden::{Orders, Stop, StopReason};
use crate::executor::{Away, CellOrder, Executor, Present};
use crate::job::{AttemptId, ByteSize, Cause, Cpus, JobId, LeaseToken, Millis, UnixMillis};
use crate::journal::{Entry, EntryKey, Journal, Stage};
use crate::logstore::LogStore;
use crate::protocol::agent::{Load, Renewed};
use crate::queue::CONTAINERS;
use crate::queue::HOSTS;
use crate::supervise;
use crate::telemetry::{Metrics, Pulse};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Orders to one runner that may wait. A runner takes them within milliseconds; one that cannot is told again at the
/// next renewal.
pub(super) const ORDERS_PER_RUNNER: usize = 8;
/// Orders of all backends that may wait. One more is learnt from the next renewal.
const ORDERS: usize = 256;
/// Ends that may wait to be taken over; a runner that has one more waits.
const ENDS: usize = 64;
/// Hosts in plain mode that backends are told of.
const MOST_PLAIN: usize = 100;
/// Ends that may be on their way. With more, no jobs are claimed: what they would come to could not be told.
const MOST_UNDELIVERED: usize = 1000;
/// Cancels remembered while a claim is under way. One more is learnt from the next renewal.
const MOST_EARLY: usize = 256;
/// Between two tries to find out which cells there are.
const FIND_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the executor, and after it was seen to be unavailable.
pub(super) const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// A claim that was answered so fast is as good as a renewal.
const FRESH: Duration = Duration::from_secs(1);
/// On top of the grace, for runners to report and clean up when the drain time is over.
const FORCED_SLACK: Duration = Duration::from_secs(15);

/// An agent.
pub struct Agent<E: Executor> {
    pub(super) backends: Vec<Arc<dyn Backend>>,
    pub(super) executor: Arc<E>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) logs: LogStore,
    pub(super) settings: Arc<AgentSettings>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: watch::Sender<Status>,
    pulse: Pulse,
}

/// Which backend, by its place, and which of its attempts.
pub(super) type Key = (usize, AttemptId);
/// What a backend asks for; `None` when some of it was missed.
type Ordered = (usize, Option<Order>);

pub(super) struct Held {
    pub(super) token: LeaseToken,
    /// What its job says of the term of its lease.
    pub(super) lost_after: Option<Millis>,
    /// Until when it may run; nobody knows before the first renewal.
    pub(super) until: watch::Sender<Option<Instant>>,
    /// To its runner; closed when it has ended and is being delivered. The lease is renewed until its backend has the end.
    pub(super) stops: mpsc::Sender<Stop>,
}

pub(super) struct Table<E: Executor> {
    pub(super) agent: Agent<E>,
    pub(super) ledger: Ledger,
    claims: Claims,
    pub(super) held: BTreeMap<Key, Held>,
    /// Claimed, and waiting for cores or memory; in order. Claims are never larger than the free slots, so this is
    /// bounded by them.
    waiting: VecDeque<Waiting>,
    runners: JoinSet<Outcome>,
    /// Which runner has which attempt, for one that panics and cannot say.
    tasks: HashMap<task::Id, Key>,
    /// Jobs whose end was asked for while a claim was under way, and whether at once: it may be about to bring them.
    early: HashMap<(usize, JobId), bool>,
    pub(super) renewals: Renewals,
    orders: mpsc::Receiver<Ordered>,
    ends: (mpsc::Sender<End>, mpsc::Receiver<End>),
    pub(super) deliveries: JoinSet<Key>,
    /// Jobs on their way back, and cells of an earlier process on their way out.
    pub(super) chores: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Entries of an earlier process that wait until it is known which cells there are; `None` when they are settled.
    pub(super) unsettled: Option<Unsettled>,
    /// At most one.
    finding: FuturesUnordered<BoxFuture<'static, Found>>,
    /// At most one.
    probing: FuturesUnordered<BoxFuture<'static, Seen>>,
    pub(super) sweeper: Sweeper,
    pub(super) obstacles: Obstacles,
    /// The last job that was taken to see whether the host can run jobs again.
    trial: Option<Key>,
    /// Kinds of cells that cannot be made, while others can.
    away: Away,
    room: Room,
    /// Taken by a look at the disk: one at a time, however long a file system hangs.
    disk_look: Arc<Semaphore>,
    /// Bring the orders; end with the table.
    _listeners: JoinSet<()>,
    score: Score,
}

struct Waiting {
    backend: usize,
    claim: Grant,
    orders: Orders,
}

/// Which cells there are, and kinds of which nobody says.
type Found = Result<(Vec<Present>, Away), String>;

/// What a look at the host came to.
struct Seen {
    cells: Result<Away, String>,
    /// Bytes that are free where everything is written.
    free: Result<u64, String>,
}

/// A drain.
struct Drain {
    until: Instant,
    /// Jobs that were ended before their time.
    forced: Option<usize>,
}

impl Held {
    /// With what its runner hears.
    pub(super) fn new(token: LeaseToken, lost_after: Option<Millis>, until: Option<Instant>) -> (Self, Orders) {
        let ((until, lease), (sender, stops)) = (watch::channel(until), mpsc::channel(ORDERS_PER_RUNNER));
        (Self { token, lost_after, until, stops: sender }, Orders { stops, lease })
    }
}

impl<E: Executor> Agent<E> {
    /// An agent that runs what `backends` have on what `executor` makes, writes output to `logs`, and remembers in `journal`.
    pub fn new(
        backends: Vec<Arc<dyn Backend>>,
        executor: Arc<E>,
        journal: Arc<dyn Journal>,
        logs: LogStore,
        settings: AgentSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (status, _) = watch::channel(Status { starting: true, ..Status::default() });
        let (settings, pulse) = (Arc::new(settings), Pulse::default());
        Self { backends, executor, journal, logs, settings, metrics, status, pulse }
    }

    /// What it is doing, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Whether it gets on.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Settles what an earlier process left, then runs until `drain` and until every job has ended or was ended; `force` ends
    /// them at once. May be dropped at any moment: the next one settles what this one leaves.
    pub async fn run(self, drain: CancellationToken, force: CancellationToken) -> Drained {
        let (sender, orders) = mpsc::channel(ORDERS);
        let mut listeners = JoinSet::new();
        for (index, backend) in self.backends.iter().enumerate() {
            backend.announce(&self.settings.announcement);
            listeners.spawn(supervise::of_this_process(listen(index, backend.orders(), sender.clone())));
        }
        let table = Table {
            ledger: Ledger::new(self.settings.capacity),
            claims: Claims::new(&self.backends),
            held: BTreeMap::new(),
            waiting: VecDeque::new(),
            runners: JoinSet::new(),
            tasks: HashMap::new(),
            early: HashMap::new(),
            renewals: Renewals::new(&self.backends),
            orders,
            ends: mpsc::channel(ENDS),
            deliveries: JoinSet::new(),
            chores: FuturesUnordered::new(),
            unsettled: None,
            finding: FuturesUnordered::new(),
            probing: FuturesUnordered::new(),
            sweeper: Sweeper::default(),
            obstacles: Obstacles::default(),
            trial: None,
            away: Away::new(),
            room: Room::Enough,
            disk_look: Arc::new(Semaphore::new(1)),
            _listeners: listeners,
            score: Score::default(),
            agent: self,
        };
        table.run(drain, force).await
    }
}

/// Brings a backend's orders to the dispatcher.
async fn listen(index: usize, mut orders: broadcast::Receiver<Order>, to: mpsc::Sender<Ordered>) {
    loop {
        let order = match orders.recv().await {
            Ok(order) => Some(order),
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
        if !self.remember(&drain).await {
            return Drained::Clean;
        }
        let mut find_at = Instant::now();
        let mut stop: Option<Drain> = None;
        let mut probe_at = Instant::now();
        loop {
            self.agent.pulse.turned();
            match &stop {
                None => {
                    self.start_waiting();
                    self.publish(false);
                    // What is not known of one kind of cell keeps nobody from jobs of another.
                    let settled =
                        self.unsettled.as_ref().is_none_or(|left| !left.known.is_empty()) && self.chores.is_empty();
                    if settled && self.available() && self.waiting.is_empty() {
                        let load = self.load(false);
                        // One job shows whether the host can run jobs again; a batch would cost each of them a try.
                        let trial = self.obstacles.quarantine.on_trial();
                        let batch = if trial { 1 } else { self.agent.settings.claim_batch };
                        // What ran before says nothing of it, however long it runs.
                        if !trial || self.trial.is_none_or(|key| !self.held.contains_key(&key)) {
                            let mut free = self.ledger.free();
                            if load.away.contains_key(CONTAINERS) {
                                // A server that reads nothing of what is away hands out nothing that takes more than a slot.
                                (free.cpu, free.memory) = (Cpus::from_milli(0), ByteSize::new(0));
                            }
                            self.claims.start(free, batch, &load, &drain);
                        }
                    } else if !self.available() {
                        self.claims.recall();
                    }
                }
                Some(stop) => {
                    self.give_back_waiting();
                    self.publish(true);
                    if self.agent.settings.handover && self.can_hand_over() {
                        let (jobs, undelivered) = (self.runners.len(), self.deliveries.len());
                        tracing::info!(jobs, undelivered, "left to the next start");
                        return Drained::HandedOver(jobs);
                    }
                    if self.idle() {
                        return stop.forced.filter(|jobs| *jobs > 0).map_or(Drained::Clean, Drained::Forced);
                    }
                }
            }
            let (pause_over, look_at) = (self.claims.pause_over(), self.sweeper.due());
            let renew_at =
                self.renewals.due(self.held.iter().map(|((of, _), held)| self.terms(*of, held.lost_after).usable));
            tokio::select! {
                // Claims last: what is held is looked after before more is taken.
                biased;
                () = drain.cancelled(), if stop.is_none() => stop = Some(self.stop()),
                () = force.cancelled(), if stop.as_ref().is_some_and(|stop| stop.forced.is_none()) => self.force(&mut stop),
                () = at(stop.as_ref().map(|stop| stop.until)), if stop.is_some() => match self.time_is_over(stop.as_ref()) {
                    Some(drained) => return drained,
                    None => self.force(&mut stop),
                },
                Some((index, order)) = self.orders.recv() => self.ordered(index, order.as_ref()),
                (index, sent, answers) = self.renewals.answer() => self.renewed(index, sent, answers),
                () = tokio::time::sleep_until(renew_at) => self.renew_all(),
                Some(end) = self.ends.1.recv() => self.deliver(end),
                Some(delivered) = self.deliveries.join_next() => self.delivered(delivered),
                Some(()) = self.chores.next() => {}
                Some(ended) = self.runners.join_next_with_id() => {
                    if self.ended(ended) {
                        probe_at = Instant::now() + PROBE_PAUSE;
                    }
                }
                Some(found) = self.finding.next() => match found {
                    Ok((present, away)) => {
                        if self.settle(present, &away) {
                            self.sweeper.in_a(self.agent.settings.sweep.first);
                            probe_at = Instant::now();
                        }
                        find_at = Instant::now() + FIND_PAUSE;
                    }
                    Err(reason) => {
                        self.obstacles.cells = Some(reason);
                        find_at = Instant::now() + FIND_PAUSE;
                    }
                },
                () = tokio::time::sleep_until(find_at), if self.unsettled.is_some() && self.finding.is_empty() && stop.is_none() => {
                    let executor = Arc::clone(&self.agent.executor);
                    let known = self.unsettled.as_ref().map(|left| left.known.clone()).unwrap_or_default();
                    self.finding.push(Box::pin(async move { executor.present_but(known).await }));
                }
                Some(done) = self.sweeper.done() => {
                    // What a look that was begun before a drain has found is the next start's.
                    if let Some(found) = done.filter(|_| stop.is_none()) {
                        self.strays_found(found);
                    }
                }
                () = at(look_at), if stop.is_none() => self.look_for_strays(),
                Some(seen) = self.probing.next() => {
                    self.agent.pulse.probed();
                    self.seen(seen);
                    probe_at = Instant::now() + PROBE_PAUSE;
                }
                () = tokio::time::sleep_until(probe_at), if self.probing.is_empty() => {
                    let (executor, settings) = (Arc::clone(&self.agent.executor), Arc::clone(&self.agent.settings));
                    let look = Arc::clone(&self.disk_look);
                    self.probing.push(Box::pin(async move {
                        Seen { cells: executor.probe().await, free: free(&settings.disk, look).await }
                    }));
                }
                (index, grants) = self.claims.answer() => self.take(index, grants),
                () = tokio::time::sleep_until(pause_over), if stop.is_none() => {}
            }
        }
    }

    // ---- what is claimed and runs ----

    fn available(&self) -> bool {
        self.agent.status.borrow().unavailable.is_none()
    }

    /// Attempts that runners have.
    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.tasks.values().map(|(_, attempt)| *attempt)
    }

    /// Attempts that run, or are about to.
    fn running(&self) -> usize {
        self.runners.len() + self.waiting.len()
    }

    /// Kinds of cells of which no jobs are taken now, while others are.
    fn away(&self) -> Away {
        let mut away = self.away.clone();
        if let Some(left) = self.unsettled.as_ref().filter(|left| !left.known.is_empty()) {
            for kind in [CONTAINERS, HOSTS].into_iter().filter(|kind| !left.known.contains(kind)) {
                away.entry(kind).or_insert_with(|| UNSETTLED.to_owned());
            }
        }
        away
    }

    fn load(&self, draining: bool) -> Load {
        Load {
            held: u32::try_from(self.running()).unwrap_or(u32::MAX),
            health: self.score.value(Instant::now()),
            draining,
            unavailable: self.agent.status.borrow().unavailable.clone(),
            // Each backend's own; said where it is told.
            drained: false,
            away: self.away().into_iter().map(|(kind, reason)| (kind.to_owned(), reason)).collect(),
            plain_hosts: self.agent.executor.plain_hosts().into_iter().take(MOST_PLAIN).collect(),
        }
    }

    fn seen(&mut self, Seen { cells, free }: Seen) {
        let away = cells.as_ref().cloned().unwrap_or_default();
        if away != self.away {
            // What was asked for with the old word is not asked for any more.
            self.claims.recall();
        }
        (self.away, self.obstacles.cells) = (away, cells.err());
        let floor = self.agent.settings.disk.1.as_u64();
        self.agent.metrics.disk_floor_bytes.set(i64::try_from(floor).unwrap_or(i64::MAX));
        match free {
            Ok(free) => {
                self.agent.metrics.disk_free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
                self.room = Room::of(free, floor, self.room);
                self.obstacles.disk = self.room.reason(free, floor);
            }
            // Nothing is known of it, so nothing is changed but what is told.
            Err(reason) => self.obstacles.disk = Some(reason),
        }
        self.agent.logs.room().set("the disk", self.room == Room::Tight);
    }

    /// Tells health, backends and the log how the agent is.
    pub(super) fn publish(&mut self, draining: bool) {
        let ends = self.deliveries.len();
        self.obstacles.ends =
            (ends >= MOST_UNDELIVERED).then(|| format!("{MOST_UNDELIVERED} ends wait for their backends"));
        let output = self.agent.logs.room().obstacle();
        self.obstacles.output = output.map(|what| format!("output waits for room: {what}"));
        let unavailable = self.obstacles.first(Instant::now());
        let drained: Vec<(String, String)> = self.agent.backends.iter().filter_map(drained).collect();
        // One that still hands out jobs is enough.
        let gets_jobs = drained.len() < self.agent.backends.len();
        self.agent.metrics.takes_jobs.set(i64::from(unavailable.is_none() && !draining && gets_jobs));
        let (held, undelivered) = (self.running(), self.deliveries.len());
        self.agent.metrics.jobs_running.set(i64::try_from(held).unwrap_or(i64::MAX));
        let backends = self.claims.states();
        self.agent.metrics.ends_undelivered.set(i64::try_from(undelivered).unwrap_or(i64::MAX));
        for (name, state) in &backends {
            if *state != BackendState::Unknown {
                let (up, refuses) = (state.trouble().is_none(), matches!(state, BackendState::Refusing(_)));
                self.agent.metrics.backend_up.with_label_values(&[name.as_str()]).set(i64::from(up));
                self.agent.metrics.backend_refuses.with_label_values(&[name.as_str()]).set(i64::from(refuses));
            }
        }
        self.agent.status.send_if_modified(|status| {
            let starting = self.unsettled.as_ref().is_some_and(|left| left.known.is_empty());
            let away = self.away();
            for kind in [CONTAINERS, HOSTS] {
                self.agent.metrics.kind_away.with_label_values(&[kind]).set(i64::from(away.contains_key(kind)));
            }
            let no_cells = self.obstacles.cells.clone().or_else(|| away.get(CONTAINERS).cloned());
            let free = self.ledger.free();
            let now =
                Status { held, free, undelivered, starting, no_cells, away, unavailable, draining, drained, backends };
            if status.away != now.away {
                match now.away.iter().next() {
                    // As every start begins, and mostly over within a second.
                    Some((_, reason)) if is_of_a_start(reason) => {
                        tracing::debug!(%reason, "no jobs of some kinds are claimed yet");
                    }
                    Some((kind, reason)) => {
                        tracing::error!(kind, %reason, "no jobs of this kind are claimed until they can be run")
                    }
                    None => tracing::info!("jobs of all kinds can be run"),
                }
            }
            if status.unavailable != now.unavailable {
                match &now.unavailable {
                    Some(reason) if is_of_a_start(reason) => {}
                    Some(reason) => tracing::error!(%reason, "no jobs are claimed until they can be run"),
                    None => tracing::info!("jobs can be run"),
                }
            }
            tell_drained(&status.drained, &now.drained);
            let changed = *status != now;
            *status = now;
            changed
        });
        let load = self.load(draining);
        for backend in &self.agent.backends {
            backend.tell(&Load { drained: backend.drained().is_some(), ..load.clone() });
        }
    }

    fn take(&mut self, backend: usize, claims: Vec<Grant>) {
        if !claims.is_empty() {
            self.agent.metrics.claims_total.inc();
            self.agent.metrics.claimed_jobs_total.inc_by(claims.len() as u64);
        }
        let mut unsure = false;
        for claim in claims {
            let key = (backend, claim.attempt);
            if self.held.contains_key(&key) && !mutant!(DuplicateRun) {
                // An answer that came twice.
                tracing::debug!(attempt = %claim.attempt, "is here already");
                continue;
            }
            let lost_after = claim.spec.lost_after();
            let usable = self.terms(backend, lost_after).usable;
            let since = if mutant!(LateClaimTrusted) { Instant::now() } else { claim.since };
            unsure |= since.elapsed() > FRESH.min(usable / 4);
            let (held, orders) = Held::new(claim.token, lost_after, Some(since + usable));
            if let Some(force) = self.early.get(&(backend, claim.attempt.job)) {
                tell(claim.attempt, &held, Stop { reason: StopReason::Cancel, force: *force });
            }
            self.trial = self.obstacles.quarantine.on_trial().then_some(key);
            self.held.insert(key, held);
            self.waiting.push_back(Waiting { backend, claim, orders });
        }
        if unsure {
            // How much of their leases is left, only a renewal can tell.
            self.renew_now(backend);
        }
        self.early.retain(|(of, _), _| *of != backend);
    }

    /// Starts what fits now, in order.
    fn start_waiting(&mut self) {
        while let Some(first) = self.waiting.front() {
            let backend = self.agent.backends[first.backend].name();
            let admitted = self.agent.settings.gate.admit(backend, first.claim.submitter.as_deref(), &first.claim.spec);
            let (asked, given) = match admitted {
                Err(cause) => (Err(cause), None),
                Ok(given) => {
                    let asked = given.takes();
                    (self.ledger.could_fit(asked).map(|()| asked), Some(given))
                }
            };
            let permit = match asked {
                Err(cause) => Err(cause),
                Ok(asked) if mutant!(FreePermits) => Ok(Ledger::new(self.ledger.capacity()).keep(asked)),
                Ok(asked) => match self.ledger.reserve(asked) {
                    Some(permit) => Ok(permit),
                    None => return,
                },
            };
            // Only now is the job the one that it is given to be: what waits is judged anew, by what it asks for.
            let given = given.and_then(|given| if let Cow::Owned(given) = given { Some(given) } else { None });
            let Some(Waiting { backend: index, claim, orders }) = self.waiting.pop_front() else { return };
            let Grant { attempt, token, spec, .. } = claim;
            let spec = given.unwrap_or(spec);
            let key = EntryKey { backend: self.agent.backends[index].name().to_owned(), attempt };
            let entry = Entry { key, token, generation: 0, spec, stage: Stage::Intent };
            self.start(index, entry, permit, None, orders);
        }
    }

    pub(super) fn start(
        &mut self,
        index: usize,
        entry: Entry,
        permit: Result<Permit, Cause>,
        adopted: Option<Present>,
        orders: Orders,
    ) {
        let settings = Arc::clone(&self.agent.settings);
        let backend = Arc::clone(&self.agent.backends[index]);
        let Terms { grace, usable } = self.terms(index, entry.spec.lost_after());
        let id = entry.key.attempt;
        let handed = settings.traces.handed(id, &entry.spec, backend.capabilities().traces);
        let attempt = permit.and_then(|permit| {
            let resolved = resolve(&entry.spec, &settings.gate.presets);
            // The warden of a cell that runs already has been told.
            let (image, argv) = if adopted.is_some() { resolved.unwrap_or_default() } else { resolved? };
            let order = CellOrder {
                attempt: entry.key.attempt,
                // The job itself stands beneath what is told of it.
                spec: Arc::new(entry.spec.clone().traced(handed)),
                image,
                argv,
                // Its runner gets them, when it begins.
                secrets: Vec::new(),
                grace: grace.into(),
                inputs: inputs::of(&entry.spec, &backend, &settings.gate.defaults),
                lease: if mutant!(WardenWithoutLease) { Duration::ZERO } else { usable }.into(),
            };
            Ok(Attempt { order, permit, adopted })
        });
        let key = (index, entry.key.attempt);
        let runner = Runner {
            backend,
            executor: Arc::clone(&self.agent.executor),
            journal: Arc::clone(&self.agent.journal),
            logs: self.agent.logs.clone(),
            metrics: Arc::clone(&self.agent.metrics),
            entry,
            noted: true,
            secrets: settings.secrets.clone(),
            reconnect: settings.reconnect,
            keep: settings.keep.clone(),
            output_share: settings.output_share.as_u64(),
            outside: settings.outside.clone(),
            phases: PhaseClock::new(UnixMillis::now()),
            traces: settings.traces.clone(),
            worker: settings.announcement.installation.clone(),
            ends: self.ends.0.clone(),
        };
        let task = self.runners.spawn(supervise::of_this_process(runner.run(attempt, orders)));
        self.tasks.insert(task.id(), key);
    }

    /// Takes a runner's end; true when it says that nothing can be begun here.
    fn ended(&mut self, ended: Result<(task::Id, Outcome), task::JoinError>) -> bool {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let key = self.tasks.remove(&id);
        let mut let_go = || key.map(|key| self.held.remove(&key));
        match ended {
            // It is held until it is delivered.
            Ok((_, Outcome::Ended { fault })) => {
                self.judge(key, fault);
                false
            }
            Ok((_, Outcome::GivenBack)) => {
                let_go();
                false
            }
            Ok((_, Outcome::Unable { reason })) => {
                let_go();
                // It cost no job a try, and the next look at the host says how it is.
                self.score.add(Instant::now(), false);
                self.obstacles.cells = Some(reason);
                true
            }
            Err(error) => {
                let_go();
                // Its lease is not renewed any more and runs out; the next start settles its entry and its cell.
                tracing::error!(%error, "a runner panicked");
                self.judge(key, Some("the agent failed by itself".to_owned()));
                false
            }
        }
    }

    /// An attempt ended here; `fault` says what this host did wrong.
    fn judge(&mut self, key: Option<Key>, fault: Option<String>) {
        let now = Instant::now();
        self.score.add(now, fault.is_none());
        if let Some((_, attempt)) = key {
            self.obstacles.quarantine.ended(now, attempt.job, fault);
        }
    }

    fn deliver(&mut self, End { delivery, told }: End) {
        let Some(index) = self.backend_of(&delivery.entry.key) else { return };
        let key = (index, delivery.entry.key.attempt);
        if mutant!(EndsNotDelivered) {
            return;
        }
        self.deliveries.spawn(supervise::of_this_process(async move {
            delivery.run(told).await;
            key
        }));
    }

    fn delivered(&mut self, delivered: Result<Key, task::JoinError>) {
        match delivered {
            Ok(_) if mutant!(HeldForEver) => {}
            Ok(key) => drop(self.held.remove(&key)),
            Err(error) => tracing::error!(%error, "a delivery panicked; the next start begins it anew"),
        }
    }

    // ---- what backends say ----

    fn ordered(&mut self, backend: usize, order: Option<&Order>) {
        // What was missed is in the answers to a renewal.
        let Some(&Order::Cancel { job, attempt: only, force, .. }) = order else { return self.renew_now(backend) };
        let only = only.filter(|_| !mutant!(StuckEndsNextTry));
        // A claim that is under way may bring the try after the one that is to end.
        if only.is_none() && self.early.len() < MOST_EARLY {
            *self.early.entry((backend, job)).or_default() |= force;
        }
        for ((of, attempt), held) in &self.held {
            if *of == backend && attempt.job == job && only.is_none_or(|only| only == attempt.attempt) {
                tell(*attempt, held, Stop { reason: StopReason::Cancel, force });
            }
        }
        self.let_go_waiting();
    }

    pub(super) fn renew_all(&mut self) {
        self.renewals.next_round();
        if mutant!(NoRenewals) {
            return;
        }
        for backend in 0..self.agent.backends.len() {
            self.renew(backend);
        }
    }

    /// Also when one is under way, which may have left too early.
    fn renew_now(&mut self, index: usize) {
        if !self.renewals.follow(index) {
            self.renew(index);
        }
    }

    fn renew(&mut self, index: usize) {
        let held = || self.held.iter().filter(|((of, _), _)| *of == index);
        let Some(shortest) = held().map(|(_, held)| self.terms(index, held.lost_after).usable).min() else { return };
        let leases = held().map(|((_, attempt), held)| (*attempt, held.token)).collect();
        self.renewals.send(index, leases, shortest);
    }

    /// Of the lease of an attempt.
    fn terms(&self, index: usize, lost_after: Option<Millis>) -> Terms {
        Terms::of(self.agent.backends[index].as_ref(), lost_after, self.agent.settings.grace)
    }

    fn renewed(&mut self, index: usize, sent: Instant, answers: Vec<(AttemptId, Renewed)>) {
        if self.renewals.again(index) {
            self.renew(index);
        }
        for (attempt, answer) in answers {
            let Some(held) = self.held.get(&(index, attempt)) else { continue };
            match answer {
                Renewed::Renewed { cancel_requested, .. } => {
                    let sent = if mutant!(RenewalFromAnswer) { Instant::now() } else { sent };
                    // What it gives is never less than what an earlier one gave.
                    let until = sent + self.terms(index, held.lost_after).usable;
                    if !mutant!(RenewalNotTold) {
                        held.until.send_modify(|known| *known = (*known).max(Some(until)));
                    }
                    if cancel_requested && !mutant!(CancelForgotten) {
                        // It does not say whether the cancel was forced; one that was, and came, is not weakened by this.
                        tell(attempt, held, Stop { reason: StopReason::Cancel, force: false });
                    }
                }
                Renewed::Refused => tell(attempt, held, Stop { reason: StopReason::Lease, force: false }),
            }
        }
        self.let_go_waiting();
    }

    /// What waits for room and is to end need not wait for it: nothing of it has begun.
    fn let_go_waiting(&mut self) {
        let asked = |one: &Waiting| !one.orders.stops.is_empty();
        let (ending, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(asked);
        self.waiting = waiting;
        self.give_back(ending, "stopped_before_start");
    }

    // ---- the end ----

    fn stop(&self) -> Drain {
        Drain { until: Instant::now() + self.agent.settings.drain_timeout, forced: None }
    }

    /// Nothing is left to wait for. Claims end with the drain; what they have brought nevertheless is given back.
    fn idle(&self) -> bool {
        self.runners.is_empty() && self.deliveries.is_empty() && self.claims.is_empty() && self.chores.is_empty()
    }

    /// Nothing is half done but what the next process expects: a runner that hears no orders any more removes its cell.
    fn can_hand_over(&self) -> bool {
        let cleans_up = |key| self.held.get(key).is_none_or(|held: &Held| held.stops.is_closed());
        // Such as a job on a host that ends with the connection that this process has.
        let ends_with_us = self.attempts().any(|attempt| !self.agent.executor.outlives_us(attempt));
        self.claims.is_empty() && self.chores.is_empty() && !ends_with_us && !self.tasks.values().any(cleans_up)
    }

    fn give_back_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.give_back(waiting, "agent_draining");
    }

    fn give_back(&mut self, those: VecDeque<Waiting>, code: &'static str) {
        for Waiting { backend: index, claim, .. } in those {
            let (attempt, token) = (claim.attempt, claim.token);
            self.held.remove(&(index, attempt));
            let backend = Arc::clone(&self.agent.backends[index]);
            self.chores.push(Box::pin(async move {
                if let Err(error) = backend.release(attempt, token, code, None).await {
                    tracing::error!(%error, %attempt, "could not be given back; its lease will run out");
                }
            }));
        }
    }

    fn force(&self, stop: &mut Option<Drain>) {
        let jobs = self.runners.len();
        tracing::warn!(jobs, "jobs that still run are ended");
        for ((_, attempt), held) in &self.held {
            tell(*attempt, held, Stop { reason: StopReason::Drain, force: false });
        }
        let until = Instant::now() + self.agent.settings.grace.as_duration() + FORCED_SLACK;
        *stop = Some(Drain { until, forced: Some(jobs) });
    }

    /// What is to be said when the drain's time is over; nothing the first time, while jobs run.
    fn time_is_over(&self, stop: Option<&Drain>) -> Option<Drained> {
        let forced = stop.and_then(|stop| stop.forced);
        if self.agent.settings.handover && forced.is_none() {
            return Some(Drained::HandedOver(self.runners.len()));
        }
        if self.runners.is_empty() {
            let undelivered = self.deliveries.len();
            let forced = forced.filter(|jobs| *jobs > 0).map(Drained::Forced);
            if undelivered > 0 {
                tracing::error!(undelivered, "ends that their backends have not got; the next start delivers them");
            }
            let otherwise = if undelivered > 0 { Drained::Undelivered(undelivered) } else { Drained::Clean };
            return Some(forced.unwrap_or(otherwise));
        }
        let jobs = forced?;
        let left: Vec<String> = self.tasks.values().map(|(_, attempt)| attempt.to_string()).collect();
        tracing::error!(?left, "left running; the next start settles them");
        Some(Drained::Forced(jobs))
    }
}

/// Bytes that are free for this user. A file system can hang.
async fn free((path, floor): &(PathBuf, ByteSize), one: Arc<Semaphore>) -> Result<u64, String> {
    if floor.as_u64() == 0 {
        return Ok(u64::MAX);
    }
    let (shown, path) = (path.display().to_string(), path.clone());
    let Ok(turn) = one.try_acquire_owned() else { return Err(format!("{shown}: the file system does not answer")) };
    let look = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        // What is not there yet will be made on the file system of what is.
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(&path);
        rustix::fs::statvfs(there)
    });
    match tokio::time::timeout(PROBE_PAUSE, look).await {
        Ok(Ok(Ok(found))) => Ok(found.f_bavail.saturating_mul(found.f_frsize)),
        Ok(Ok(Err(error))) => Err(format!("{shown}: how much is free there cannot be found out: {error}")),
        Ok(Err(_)) | Err(_) => Err(format!("{shown}: the file system does not answer")),
    }
}

/// A backend that hands no jobs to this agent, with why.
fn drained(backend: &Arc<dyn Backend>) -> Option<(String, String)> {
    Some((backend.name().to_owned(), backend.drained()?))
}

fn tell_drained(before: &[(String, String)], now: &[(String, String)]) {
    for (backend, reason) in now.iter().filter(|one| !before.contains(one)) {
        tracing::warn!(%backend, %reason, "the backend hands no jobs to this agent");
    }
    for (backend, _) in before.iter().filter(|(backend, _)| !now.iter().any(|(other, _)| other == backend)) {
        tracing::info!(%backend, "the backend hands jobs to this agent again");
    }
}

/// At a moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn tell(attempt: AttemptId, held: &Held, stop: Stop) {
    // Full: the runner is busy making its cell, and reads them in order as soon as it can; the next renewal repeats what
    // matters. Closed: it has ended.
    if let Err(mpsc::error::TrySendError::Full(stop)) = held.stops.try_send(stop) {
        tracing::debug!(%attempt, ?stop, "runner has too many orders waiting");
    }
}
