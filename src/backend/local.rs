//! The agent's door to the backend in its own process. Agent and backend share the log store, so output needs no way.

use super::{Announcement, Answer, Ask, Backend, BackendError, BlobPieces, Embedded, Grant, Load, Order};
use crate::blobs::BlobError;
use crate::job::{AttemptId, Digest, JobStep, Later, LeaseToken, Phase, Progress, Report, UnixMillis};
use crate::net::Retry;
use crate::protocol::agent::{AttemptStanding, Capabilities, Renewed, Reported, Step};
use crate::queue::StoreError;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The door, for one agent.
#[derive(Debug)]
pub struct Local {
    backend: Arc<Embedded>,
    agent: String,
}

impl Local {
    /// What it is called.
    pub const NAME: &str = "embedded";

    /// For the agent of that name.
    pub fn new(backend: Arc<Embedded>, agent: &str) -> Self {
        Self { backend, agent: agent.to_owned() }
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        Self { retry: Retry::Transient, message: error.to_string() }
    }
}

impl From<BlobError> for BackendError {
    fn from(error: BlobError) -> Self {
        let retry = if matches!(error, BlobError::Missing(_)) { Retry::Never } else { Retry::Transient };
        Self { retry, message: error.to_string() }
    }
}

impl Backend for Local {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn drained(&self) -> Option<String> {
        self.backend.roster().drains().of(&self.agent).map(|drain| drain.sentence())
    }

    fn announce(&self, who: &Announcement) {
        self.backend.roster().enter_local(&self.agent, who.clone(), UnixMillis::now());
    }

    fn tell(&self, load: &Load) {
        self.backend.roster().heard(&self.agent, Some(load), UnixMillis::now());
    }

    fn claim<'a>(&'a self, ask: Ask, stop: &'a CancellationToken) -> Answer<'a, Vec<Grant>> {
        Box::pin(async move {
            let claims = self.backend.claim(&self.agent, &ask, stop).await?;
            // It was claimed just now, in this process.
            let since = Instant::now();
            let grant = |claim: crate::queue::Claim| Grant {
                attempt: claim.attempt,
                token: claim.token,
                spec: claim.spec,
                submitter: claim.submitter,
                since,
            };
            Ok(claims.into_iter().map(grant).collect())
        })
    }

    fn renew<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<Renewed>> {
        Box::pin(async move {
            self.backend.roster().heard(&self.agent, None, UnixMillis::now());
            Ok(self.backend.renew(&self.agent, leases).await?)
        })
    }

    fn lookup<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<AttemptStanding>> {
        Box::pin(async move { Ok(self.backend.lookup(&self.agent, leases).await?) })
    }

    fn advance<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        phase: Phase,
        at: UnixMillis,
        reason: &'a str,
    ) -> Answer<'a, Step> {
        Box::pin(async move { Ok(self.backend.advance(&self.agent, (attempt, token), phase, at, reason).await?) })
    }

    fn report<'a>(&'a self, report: &'a Report, token: LeaseToken) -> Answer<'a, Reported> {
        Box::pin(async move { Ok(self.backend.report(&self.agent, report, token).await?) })
    }

    fn release<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        reason: &'a str,
        later: Option<&'a Later>,
    ) -> Answer<'a, Step> {
        Box::pin(async move { Ok(self.backend.release(&self.agent, (attempt, token), reason, later).await?) })
    }

    fn orders(&self) -> broadcast::Receiver<Order> {
        self.backend.orders()
    }

    fn log_began(&self, _: AttemptId, _: LeaseToken) {}

    fn flush_log(&self, _: AttemptId, _: u64) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }

    fn tell_progress(&self, attempt: AttemptId, _: LeaseToken, progress: Option<Progress>, steps: Vec<JobStep>) {
        self.backend.progressed(attempt, progress, steps);
    }

    fn read_blob(&self, digest: Digest, from: u64) -> Answer<'_, BlobPieces> {
        Box::pin(async move {
            let missing = || BackendError::from(BlobError::Missing(digest));
            let blobs = self.backend.blobs().ok_or_else(missing)?;
            let blob = blobs.find(digest).await?.ok_or_else(missing)?;
            let pieces = blobs.read(digest, from..blob.bytes).await?;
            Ok((blob.bytes, pieces.map(|piece| piece.map_err(BackendError::from)).boxed()))
        })
    }

    fn log_done(&self, _: AttemptId) {}
}
