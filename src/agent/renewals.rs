//! Renewals in flight: when the next ones are due, and what is left of a lease when one was answered.

use crate::backend::{Backend, BackendError};
use crate::job::{AttemptId, LeaseToken, Millis};
use crate::net::Retry;
use crate::protocol::agent::Renewed;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What a warden is promised at a time for a job whose backend has no leases; renewed by the agent alone, so that the job ends
/// when the agent is gone.
const OWN_LEASE: Millis = Millis::from_secs(60);
/// Renewals are never closer together, and never further apart: their answers also tell of a cancel that was missed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(20));
/// One renewal is for all of a backend's attempts: the shortest lease among them must not cost the others theirs.
const SHORTEST_LIMIT: Duration = Duration::from_secs(5);
/// An agent that lost its backend ends its jobs so long before they may be handed out again: for the stop ladder, and for what
/// an answer takes on its way.
const MARGIN: Duration = Duration::from_secs(5);

type Leases = Vec<(AttemptId, LeaseToken)>;
type Answered = (usize, Instant, Leases, Result<Vec<Renewed>, BackendError>);

/// What a job may do of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// Between TERM and KILL: as configured, but of a short lease no more than a quarter.
    pub(super) grace: Duration,
    /// How long it may run on after a renewal was sent: it must be gone before the lease is over, also when it does not hear that it
    /// is asked to go.
    pub(super) usable: Duration,
}

impl Terms {
    /// The lease is the job's own, or what the backend has for all. Asked whenever they are needed: a backend elsewhere says its lease
    /// when it is first reached.
    pub(super) fn of(backend: &dyn Backend, lost_after: Option<Millis>, grace: Millis) -> Self {
        let lease = backend.capabilities().lease.map_or(OWN_LEASE, |lease| lost_after.unwrap_or(lease));
        Self::within(lease.as_duration(), grace.as_duration())
    }

    pub(super) fn within(lease: Duration, grace: Duration) -> Self {
        let grace = grace.min(lease / 4);
        let for_grace = if mutant!(GraceBeyondLease) { Duration::ZERO } else { grace };
        Self { grace, usable: lease - for_grace - MARGIN.min(lease / 4) }
    }
}

/// The renewals.
pub(super) struct Renewals {
    backends: Vec<Arc<dyn Backend>>,
    /// At most one for each backend.
    flying: FuturesUnordered<BoxFuture<'static, Answered>>,
    under_way: Vec<bool>,
    /// One was wanted while another one was under way, which may have left too early for what it is wanted for.
    again: Vec<bool>,
    /// When the last round began.
    round: Instant,
}

impl Renewals {
    pub(super) fn new(backends: &[Arc<dyn Backend>]) -> Self {
        let under_way = vec![false; backends.len()];
        let (flying, again) = (FuturesUnordered::new(), under_way.clone());
        Self { backends: backends.to_vec(), flying, under_way, again, round: Instant::now() }
    }

    /// When the next round is due: after a quarter of what the shortest lease is good for, so that two may fail before a job has to
    /// end.
    pub(super) fn due(&self, usable: impl Iterator<Item = Duration>) -> Instant {
        let shortest = usable.min().unwrap_or(PAUSES.1 * 4);
        self.round + (shortest / 4).clamp(PAUSES.0, PAUSES.1)
    }

    /// A round begins.
    pub(super) fn next_round(&mut self) {
        self.round = Instant::now();
    }

    /// Sends a renewal of what is held for one backend, unless one is on its way. `shortest`: what the shortest of its leases is good for.
    pub(super) fn send(&mut self, index: usize, leases: Leases, shortest: Duration) {
        if leases.is_empty() || std::mem::replace(&mut self.under_way[index], true) {
            return;
        }
        let backend = Arc::clone(&self.backends[index]);
        let limit = (shortest / 4).max(SHORTEST_LIMIT);
        self.flying.push(Box::pin(async move {
            // The lease counts from here, when the renewal is sent: an answer that was long on its way must not stretch it.
            let sent = Instant::now();
            let answer = tokio::time::timeout(limit, backend.renew(&leases)).await.unwrap_or_else(|_| {
                let message = format!("no answer within {} ms", limit.as_millis());
                Err(BackendError { retry: Retry::Transient, message })
            });
            (index, sent, leases, answer)
        }));
    }

    /// Whether one is under way; another one then follows it.
    pub(super) fn follow(&mut self, index: usize) -> bool {
        self.again[index] = self.under_way[index];
        self.again[index]
    }

    /// Whether one is to follow the one that was just answered.
    pub(super) fn again(&mut self, index: usize) -> bool {
        std::mem::take(&mut self.again[index])
    }

    /// The next answer: whose, when it was asked for, and what it says of each attempt. Pending when none is on its way.
    pub(super) async fn answer(&mut self) -> (usize, Instant, Vec<(AttemptId, Renewed)>) {
        let Some((index, sent, leases, answer)) = self.flying.next().await else { return std::future::pending().await };
        self.under_way[index] = false;
        let backend = self.backends[index].as_ref();
        let answers = answer.unwrap_or_else(|error| {
            tracing::error!(backend = backend.name(), %error, "leases could not be renewed");
            Vec::new()
        });
        (index, sent, leases.into_iter().map(|(attempt, _)| attempt).zip(answers).collect())
    }
}
