//! The backend of a run: the embedded one, which can go and come again on the same store, and the way to it, which fails as it was
//! told to.

use super::ledger::{Ledger, Note};
use super::scenario::{Call, How, Scenario};
use crate::backend::{Ask, Backend, BackendError, Embedded, Grant, Local, Order, QueueSettings};
use crate::job::{AttemptId, Later, LeaseToken, Millis, Phase, Report, UnixMillis};
use crate::logstore::LogStore;
use crate::net::Retry;
use crate::protocol::agent::{Announcement, AttemptStanding, Capabilities, Load, Renewed, Reported, Step};
use crate::queue::{AnyStore, MemoryStore};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Deadline of a small call, as of one over HTTP.
const DEADLINE: Duration = Duration::from_secs(15);

/// The server. It can be away.
pub(super) struct Server {
    store: MemoryStore,
    pub(super) logs: LogStore,
    settings: QueueSettings,
    now: Mutex<Option<(Arc<Embedded>, CancellationToken)>>,
    /// Counts its starts.
    starts: watch::Sender<u32>,
    pub(super) ledger: Arc<Ledger>,
    links: Mutex<Vec<Arc<Wire>>>,
}

/// The way of one agent to it.
pub(super) struct Wire {
    pub(super) agent: usize,
    name: String,
    state: Mutex<WireState>,
    orders: broadcast::Sender<Order>,
}

#[derive(Default)]
struct WireState {
    plan: Vec<(Call, u32, How)>,
    counts: BTreeMap<Call, u32>,
    /// Cut, and whether a call notices that at once.
    cut: Option<bool>,
    /// There was a renewal since somebody looked.
    renewed: bool,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, WireState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cut(&self, cut: Option<bool>) {
        self.state().cut = cut;
    }

    /// Whether there was a renewal since the last look.
    pub(super) fn renewed(&self) -> bool {
        std::mem::take(&mut self.state().renewed)
    }

    pub(super) fn heal(&self) {
        let mut state = self.state();
        state.plan.clear();
        state.cut = None;
    }
}

impl Server {
    pub(super) fn new(logs: LogStore, scenario: &Scenario, ledger: Arc<Ledger>) -> Arc<Self> {
        let settings = QueueSettings {
            max_queued: 1000,
            lease: Millis::new(scenario.lease_ms),
            max_attempts: scenario.max_attempts,
            stuck_after: Millis::new(scenario.stuck_after_ms),
        };
        let (store, now) = (MemoryStore::new(), Mutex::default());
        Arc::new(Self { store, logs, settings, now, starts: watch::Sender::new(0), ledger, links: Mutex::default() })
    }

    pub(super) fn wire(&self, agent: usize, plan: Vec<(Call, u32, How)>) -> Arc<Wire> {
        let state = Mutex::new(WireState { plan, ..WireState::default() });
        let wire = Arc::new(Wire { agent, name: format!("a{agent}"), state, orders: broadcast::channel(256).0 });
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&wire));
        wire
    }

    /// A process of it begins.
    pub(super) fn start(self: &Arc<Self>) {
        let store = AnyStore::Memory(self.store.clone());
        let embedded = Embedded::new(store, self.logs.clone(), self.settings.clone());
        let stop = CancellationToken::new();
        drop(crate::supervise::spawn("expiry", Arc::clone(&embedded).run_expiry(stop.clone())));
        let (mut orders, server, over) = (embedded.orders(), Arc::clone(self), stop.clone());
        drop(crate::supervise::spawn("orders", async move {
            while let Some(Ok(order)) = over.run_until_cancelled(orders.recv()).await {
                let Order::Cancel { holder, .. } = &order;
                for wire in server.links.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    if wire.state().cut.is_none() && holder.as_deref() == Some(&wire.name) {
                        let _ = wire.orders.send(order.clone());
                    }
                }
            }
        }));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some((embedded, stop));
        self.starts.send_modify(|starts| *starts += 1);
    }

    pub(super) fn stop(&self) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, stop)) = now {
            stop.cancel();
            self.starts.send_modify(|_| {});
        }
    }

    pub(super) fn embedded(&self) -> Option<Arc<Embedded>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(embedded, _)| Arc::clone(embedded))
    }

    /// Returns when the process that is there now is gone.
    async fn gone(&self) {
        let Some((_, stop)) = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        stop.cancelled().await;
    }
}

/// An agent's backend. Each process of an agent has one.
pub(super) struct Flaky {
    server: Arc<Server>,
    wire: Arc<Wire>,
    announced: Mutex<Announcement>,
    /// Grants whose answer is late.
    late: Mutex<Vec<Grant>>,
    /// Up to which frame the backend said that an attempt's output is durable.
    durable: Mutex<BTreeMap<AttemptId, u64>>,
}

fn failed<T>(message: &str) -> Result<T, BackendError> {
    Err(BackendError { retry: Retry::Transient, message: message.to_owned() })
}

impl Flaky {
    pub(super) fn new(server: &Arc<Server>, wire: &Arc<Wire>) -> Self {
        let (server, wire) = (Arc::clone(server), Arc::clone(wire));
        Self { server, wire, announced: Mutex::default(), late: Mutex::default(), durable: Mutex::default() }
    }

    fn note(&self, note: Note) {
        self.server.ledger.note(self.wire.agent, note);
    }

    fn late(&self) -> MutexGuard<'_, Vec<Grant>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn claimed(
        &self,
        flight: &mut Flight<'_>,
        ask: Ask,
        stop: &CancellationToken,
        taken: &mut Vec<Grant>,
    ) -> Result<(), BackendError> {
        let door = flight.there().await?;
        let since = flight.began;
        let granted = tokio::select! {
            biased;
            granted = door.claim(ask, stop) => granted?,
            () = self.server.gone() => return failed("the server went away"),
        };
        for grant in &granted {
            self.note(Note::Granted { attempt: grant.attempt });
        }
        // As over a network: nobody knows when it was claimed, only when it was asked for.
        taken.extend(granted.into_iter().map(|grant| Grant { since, ..grant }));
        flight.back().await
    }

    /// A call of this kind begins.
    fn begin(&self, call: Call) -> Flight<'_> {
        let mut state = self.wire.state();
        let nth = state.counts.entry(call).or_default();
        *nth += 1;
        let nth = *nth;
        state.renewed |= call == Call::Renew;
        let how = state.plan.iter().find(|(of, at, _)| *of == call && *at == nth).map(|(.., how)| *how);
        Flight { flaky: self, call, how, began: Instant::now(), well: false }
    }

    fn door(&self) -> Option<Local> {
        let local = Local::new(self.server.embedded()?, &self.wire.name);
        // A server that was started again is told who is there with the next call.
        local.announce(&self.announced.lock().unwrap_or_else(PoisonError::into_inner));
        Some(local)
    }
}

/// A call under way.
struct Flight<'a> {
    flaky: &'a Flaky,
    call: Call,
    how: Option<How>,
    began: Instant,
    well: bool,
}

impl Flight<'_> {
    /// The way there.
    async fn there(&self) -> Result<Local, BackendError> {
        match self.how {
            Some(How::Fails) => return failed("as planned"),
            Some(How::Hangs) => {
                sleep(DEADLINE).await;
                return failed("no answer, as planned");
            }
            Some(How::SlowBefore(span)) => sleep(Duration::from_millis(span)).await,
            _ => sleep(Duration::from_millis(1)).await,
        }
        let cut = self.flaky.wire.state().cut;
        if let Some(hangs) = cut {
            sleep(if hangs { DEADLINE } else { Duration::from_millis(3) }).await;
            return failed("the way is cut");
        }
        self.flaky.door().map_or_else(|| failed("the server is away"), Ok)
    }

    /// The way back.
    async fn back(&mut self) -> Result<(), BackendError> {
        match self.how {
            Some(How::Unheard | How::Late) => return failed("done, and not heard, as planned"),
            Some(How::SlowAfter(span)) => sleep(Duration::from_millis(span)).await,
            _ => sleep(Duration::from_millis(1)).await,
        }
        if self.flaky.wire.state().cut.is_some() {
            return failed("the way was cut before the answer");
        }
        self.well = true;
        Ok(())
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let (agent, ledger) = (self.flaky.wire.agent, &self.flaky.server.ledger);
        if self.how.is_some() || (self.call == Call::Release && !self.well) {
            // The next renewal, or claim, comes so much later.
            let after = match self.call {
                Call::Renew => Duration::from_secs(20),
                // What was lost on its way, and what could not be given back, waits for the end of its lease.
                Call::Claim if self.how == Some(How::Unheard) => Duration::from_secs(130),
                Call::Release => Duration::from_secs(130),
                Call::Claim => Duration::from_secs(35),
                _ => Duration::ZERO,
            };
            ledger.disturbed(Some(agent), self.began, Instant::now() + after, "a call");
        }
        if self.call != Call::Claim || self.how.is_some() {
            let (how, well) = (self.how, if self.well { "well" } else { "badly" });
            ledger.tell(|| {
                format!(
                    "a{agent} {:?} went {well} {}",
                    self.call,
                    how.map(|how| format!("{how:?}")).unwrap_or_default()
                )
            });
        }
    }
}

impl Backend for Flaky {
    fn name(&self) -> &str {
        "server"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            lease: Some(self.server.settings.lease),
            fenced_end: true,
            log: true,
            cancel: true,
            later: true,
            traces: false,
        }
    }

    fn announce(&self, who: &Announcement) {
        who.clone_into(&mut self.announced.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn tell(&self, _: &Load) {}

    fn claim<'a>(&'a self, ask: Ask, stop: &'a CancellationToken) -> BoxFuture<'a, Result<Vec<Grant>, BackendError>> {
        Box::pin(async move {
            let mut flight = self.begin(Call::Claim);
            let how = flight.how;
            // What an earlier answer had.
            let mut got = std::mem::take(&mut *self.late());
            let mut taken = Vec::new();
            let answer = self.claimed(&mut flight, ask, stop, &mut taken).await;
            match answer {
                Ok(()) => {
                    if how == Some(How::Twice) {
                        self.late().extend(taken.iter().cloned());
                    }
                    got.extend(taken);
                    for grant in &got {
                        self.note(Note::Heard { attempt: grant.attempt, sent: grant.since });
                    }
                    Ok(got)
                }
                Err(error) => {
                    // Asked again under its number, the server says the same: but not for what was planned to be lost.
                    if how != Some(How::Unheard) {
                        got.extend(taken);
                    }
                    self.late().extend(got);
                    Err(error)
                }
            }
        })
    }

    fn renew<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> BoxFuture<'a, Result<Vec<Renewed>, BackendError>> {
        Box::pin(async move {
            let sent = Instant::now();
            let mut flight = self.begin(Call::Renew);
            let renewed = flight.there().await?.renew(leases).await?;
            for ((attempt, _), renewed) in leases.iter().zip(&renewed) {
                if matches!(renewed, Renewed::Renewed { .. }) {
                    self.note(Note::Renewed { attempt: *attempt });
                }
            }
            flight.back().await?;
            for ((attempt, _), renewed) in leases.iter().zip(&renewed) {
                self.note(match renewed {
                    Renewed::Renewed { .. } => Note::Heard { attempt: *attempt, sent },
                    Renewed::Refused => Note::Refused { attempt: *attempt },
                });
            }
            Ok(renewed)
        })
    }

    fn lookup<'a>(
        &'a self,
        leases: &'a [(AttemptId, LeaseToken)],
    ) -> BoxFuture<'a, Result<Vec<AttemptStanding>, BackendError>> {
        Box::pin(async move {
            let mut flight = self.begin(Call::Lookup);
            let standings = flight.there().await?.lookup(leases).await?;
            flight.back().await?;
            Ok(standings)
        })
    }

    fn advance<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        phase: Phase,
        at: UnixMillis,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<Step, BackendError>> {
        Box::pin(async move {
            let mut flight = self.begin(Call::Advance);
            let step = flight.there().await?.advance(attempt, token, phase, at, reason).await?;
            flight.back().await?;
            Ok(step)
        })
    }

    fn report<'a>(&'a self, report: &'a Report, token: LeaseToken) -> BoxFuture<'a, Result<Reported, BackendError>> {
        Box::pin(async move {
            let durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner).get(&report.attempt).copied();
            if report.log.complete && durable.unwrap_or_default() < report.log.frames {
                self.server.ledger.violated(format!("{}: the end comes before its output", report.attempt));
            }
            let mut flight = self.begin(Call::Report);
            let reported = flight.there().await?.report(report, token).await?;
            self.note(Note::Reported { report: Box::new(report.clone()), reported });
            flight.back().await?;
            Ok(reported)
        })
    }

    fn release<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        reason: &'a str,
        later: Option<&'a Later>,
    ) -> BoxFuture<'a, Result<Step, BackendError>> {
        Box::pin(async move {
            let mut flight = self.begin(Call::Release);
            let step = flight.there().await?.release(attempt, token, reason, later).await?;
            flight.back().await?;
            Ok(step)
        })
    }

    fn orders(&self) -> broadcast::Receiver<Order> {
        self.wire.orders.subscribe()
    }

    fn log_began(&self, _: AttemptId, _: LeaseToken) {}

    fn flush_log(&self, attempt: AttemptId, last: u64) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let flight = self.begin(Call::Flush);
            match flight.how {
                Some(How::Fails | How::Unheard) => {
                    self.note(Note::FlushFailed { attempt });
                    return false;
                }
                Some(How::SlowBefore(span) | How::SlowAfter(span)) => sleep(Duration::from_millis(span)).await,
                _ => sleep(Duration::from_millis(2)).await,
            }
            self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, last);
            true
        })
    }

    fn log_done(&self, _: AttemptId) {}
}
