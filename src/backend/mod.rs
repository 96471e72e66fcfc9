//! Where jobs come from and results go.
//!
//! [`Backend`] is the seam: what an agent asks of a backend, wherever that is. [`Embedded`] is jobcell's own, in this process: it
//! owns the queue and the log store, wakes whoever waits, and hands cancels on; [`Local`] is the agent's door to it. [`Http`] is a
//! jobcell server elsewhere. Must never know how a job runs.

mod afar;
pub mod conformance;
#[cfg(test)]
mod drain_tests;
mod drains;
mod embedded;
#[cfg(test)]
mod embedded_tests;
mod examine;
mod explain;
mod families;
#[cfg(test)]
mod families_tests;
mod http;
mod intake;
mod keeper;
#[cfg(test)]
mod keeper_tests;
mod lists;
mod local;
mod results;
mod retention;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
mod retry_tests;
mod roster;
#[cfg(test)]
pub(crate) mod simulated;
mod steady;
mod traces;
mod waiting;

pub use drains::{Drain, Drains};
pub use embedded::{Change, Embedded, Order, QueueSettings, Waited};
pub use examine::Unready;
pub use explain::{AgentView, Explanation};
pub use http::{Http, HttpSettings};
pub use intake::{Intake, IntakeError};
pub use keeper::Contents;
pub use local::Local;
pub use retention::{DeleteError, Removed, RetentionSettings};
pub use roster::{AgentEntry, AgentState, Registration, Roster, SessionError};

use crate::blobs::BlobStore;
use crate::job::{
    Artifacts, AttemptId, Digest, JobSpec, JobStep, Later, LeaseToken, Phase, Progress, Report, UnixMillis,
};
use crate::net::Retry;
use crate::protocol::agent::{Announcement, AttemptStanding, Capabilities, Load, Renewed, Reported, Step};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// A backend that did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// Whether asking again makes sense.
    pub retry: Retry,
    /// What happened, in words.
    pub message: String,
}

/// What an agent has room for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Most jobs.
    pub max: u32,
    /// What they have to fit into together.
    pub free: crate::job::Capacity,
    /// How long to wait when there are none.
    pub wait: Duration,
    /// How the agent is.
    pub load: Load,
}

/// The right to run an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// The attempt.
    pub attempt: AttemptId,
    /// Proves the right.
    pub token: LeaseToken,
    /// What to run.
    pub spec: JobSpec,
    /// Whose key it was submitted with, as the backend knows them by name.
    pub submitter: Option<String>,
    /// The lease began at this moment or later: when it was first asked for, where nobody knows better.
    pub since: tokio::time::Instant,
}

/// A content as it comes: its whole size, and its bytes from where they were asked for.
pub type BlobPieces = (u64, BoxStream<'static, Result<Bytes, BackendError>>);

/// An answer that is on its way.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// What an agent asks of a backend. Every call has a deadline of its own. A call that failed may have been done all the same:
/// each can be made again with the same effect.
pub trait Backend: Send + Sync + 'static {
    /// For log lines and status.
    fn name(&self) -> &str;

    /// Whether it is reached over a network, so that only its answers say that it is there.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// What it can do; known for certain after the first claim.
    fn capabilities(&self) -> Capabilities;

    /// Why an operator of the backend lets it hand no jobs to this agent, if so; as far as is known here.
    fn drained(&self) -> Option<String> {
        None
    }

    /// Says what this agent is; told to the backend before the first claim, and again whenever it has forgotten.
    fn announce(&self, who: &Announcement);

    /// Says how this agent is, when that has changed.
    fn tell(&self, load: &Load);

    /// Claims what fits; with nothing there, waits for it. Not to be dropped in the middle: what was claimed is only known
    /// from the answer. `stop` ends the wait early.
    fn claim<'a>(&'a self, ask: Ask, stop: &'a CancellationToken) -> Answer<'a, Vec<Grant>>;

    /// Renews leases; one answer for each, in order. A backend without leases says yes to all.
    fn renew<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<Renewed>>;

    /// How attempts stand, in order.
    fn lookup<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<AttemptStanding>>;

    /// Says that an attempt entered a phase.
    fn advance<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        phase: Phase,
        at: UnixMillis,
        reason: &'a str,
    ) -> Answer<'a, Step>;

    /// Gives a terminal report.
    fn report<'a>(&'a self, report: &'a Report, token: LeaseToken) -> Answer<'a, Reported>;

    /// Gives back an attempt that never started, to be handed out again at once, or `later` by a backend that can wait with it
    /// ([`Capabilities::later`]).
    fn release<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        reason: &'a str,
        later: Option<&'a Later>,
    ) -> Answer<'a, Step>;

    /// What the agent is told without having asked. Who misses one learns it from the next renewal, though not that
    /// it was forced.
    fn orders(&self) -> broadcast::Receiver<Order>;

    /// Output of this attempt is being written to the agent's log store; from now on it is passed on.
    fn log_began(&self, attempt: AttemptId, token: LeaseToken);

    /// Waits until every frame up to `last` is durable at the backend, as long as it gets on; true when it is.
    fn flush_log(&self, attempt: AttemptId, last: u64) -> BoxFuture<'_, bool>;

    /// Says how far a job says it is, with its steps so far. A newer word replaces an older one; one that does not arrive is lost, and the
    /// report has the last one.
    fn tell_progress(&self, _: AttemptId, _: LeaseToken, _: Option<Progress>, _: Vec<JobStep>) {}

    /// Brings a job's files from the agent's store to the backend, as long as it gets on. Errors: why not all of them are there; none when
    /// the store is the backend's own.
    fn give_artifacts<'a>(
        &'a self,
        _: AttemptId,
        _: LeaseToken,
        _: &'a Artifacts,
        _: &'a BlobStore,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The bytes of a content that a job is given, from an offset on. The answer has a deadline; between the pieces that follow, whoever
    /// reads them looks at the clock. A backend that has no contents hands out no jobs that need one.
    fn read_blob(&self, digest: Digest, _from: u64) -> Answer<'_, BlobPieces> {
        let message = format!("{} has no contents, and so not {digest}", self.name());
        Box::pin(std::future::ready(Err(BackendError { retry: Retry::Never, message })))
    }

    /// The attempt is over for this agent: its output is not passed on any more, and its local copy is not needed.
    fn log_done(&self, attempt: AttemptId);
}
