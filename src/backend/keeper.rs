//! Which contents jobs need, and for how long: a job refers to its inputs from before it is taken in until some time after its end.
//!
//! References are made before the job, so that no moment exists at which the job is there and its inputs may go. One whose job was
//! never taken in is found and let go later.

use super::Embedded;
use crate::blobs::{BlobError, BlobStore, Held};
use crate::job::{Digest, JobId, JobSpec, Millis, UnixMillis};
use crate::queue::{Store, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What holders of inputs begin with; behind it is the job's id.
const PREFIX: &str = "job:";
/// Between two looks at who needs what.
const PAUSE: Duration = Duration::from_secs(60);
/// Jobs of one look; the next one goes on behind them.
const LOOK: u32 = 256;
/// Archives that are looked at at the same time.
const LOOKING: usize = 2;
/// A reference is this old before it is believed that its job will never come.
const YOUNG: Millis = Millis::from_secs(600);

/// The contents of a backend.
#[derive(Debug)]
pub struct Contents {
    /// The store.
    pub blobs: BlobStore,
    /// How long the inputs of a job that has ended are kept, for those who run it again.
    pub keep: Millis,
    /// Archives that are looked at at the same time; each takes a processor. More wait.
    pub(super) looking: Arc<Semaphore>,
}

fn holder(job: JobId) -> String {
    format!("{PREFIX}{job}")
}

/// The contents that a job is given.
fn needed(spec: &JobSpec) -> Vec<Digest> {
    spec.inputs().iter().filter_map(crate::job::Input::blob).collect()
}

impl From<BlobError> for StoreError {
    fn from(error: BlobError) -> Self {
        Self::Contents(error.to_string())
    }
}

impl Embedded {
    /// Gives it a store of contents; once.
    pub fn keep_contents(&self, blobs: BlobStore, keep: Millis) {
        if self.contents.set(Contents { blobs, keep, looking: Arc::new(Semaphore::new(LOOKING)) }).is_err() {
            tracing::error!("the contents were given twice; the first ones stay");
        }
    }

    /// Where contents are, if it has any.
    pub fn blobs(&self) -> Option<&BlobStore> {
        self.contents.get().map(|contents| &contents.blobs)
    }

    /// A job is about to be taken in: what it needs stays. Errors: a content is not there.
    pub(super) async fn need(&self, job: JobId, spec: &JobSpec) -> Result<(), StoreError> {
        let needed = needed(spec);
        match self.blobs() {
            _ if needed.is_empty() => Ok(()),
            Some(blobs) => Ok(blobs.refer(&holder(job), &needed).await?),
            None => Err(StoreError::Contents("this backend has no contents".to_owned())),
        }
    }

    /// The job was not taken in after all.
    pub(super) async fn need_no_more(&self, job: JobId, spec: &JobSpec) {
        if let Some(blobs) = self.blobs().filter(|_| !needed(spec).is_empty())
            && let Err(error) = blobs.release(&holder(job)).await
        {
            // The keeper finds it.
            tracing::debug!(%error, %job, "a reference to contents stays for a while");
        }
    }

    /// A job is to be done again by another one: that needs the same, as far as it is still there.
    pub(super) async fn need_alike(&self, old: JobId, new: JobId) -> Result<(), StoreError> {
        let Some(blobs) = self.blobs() else { return Ok(()) };
        let needed = blobs.referred(&holder(old)).await?;
        if needed.is_empty() { Ok(()) } else { Ok(blobs.refer(&holder(new), &needed).await?) }
    }

    /// Lets contents go that nobody needs any more, until `stop`.
    pub async fn run_keeper(self: Arc<Self>, stop: CancellationToken) {
        let Some(contents) = self.contents.get() else { return };
        let mut after = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            self.results.lists.forget_unused();
            if let Err(error) = self.end_strays().await {
                tracing::warn!(%error, "files of tries that were lost could not be looked for; tried again in a minute");
            }
            match self.look_after(contents, &mut after, UnixMillis::now()).await {
                Ok(Held { blobs: 0, .. }) => {}
                Ok(Held { blobs, bytes }) => {
                    tracing::info!(blobs, bytes, "contents that nobody needs any more are gone")
                }
                Err(error) => tracing::warn!(%error, "contents could not be looked after; tried again in a minute"),
            }
        }
    }

    /// One look: at jobs behind `after`, then at what can go.
    pub(super) async fn look_after(
        &self,
        contents: &Contents,
        after: &mut String,
        now: UnixMillis,
    ) -> Result<Held, StoreError> {
        let holders = contents.blobs.holders(PREFIX, after, LOOK).await?;
        *after =
            if holders.len() < LOOK as usize { String::new() } else { holders.last().cloned().unwrap_or_default() };
        for holder in holders {
            let job = holder[PREFIX.len()..].parse::<JobId>().ok();
            let found = match job {
                Some(job) => self.store.get(job).await?,
                None => None,
            };
            match (found, job) {
                (Some(job), _) if job.ending.is_some() => {
                    let ended = job.ended_at.unwrap_or(now);
                    contents.blobs.keep_until(&holder, ended.plus(contents.keep)).await?;
                }
                (Some(_), _) => {}
                (None, Some(job)) if now.since(job.created_at()) < YOUNG => {}
                (None, _) => contents.blobs.release(&holder).await?,
            }
        }
        Ok(contents.blobs.sweep(now).await?)
    }
}
