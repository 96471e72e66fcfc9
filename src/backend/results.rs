//! What jobs give back, at the embedded backend: how far running ones say they are, and how long the files of ended ones are kept.

use super::Embedded;
use super::lists::Lists;
use crate::blobs::{BlobError, BlobStore};
use crate::job::{
    Artifact, Artifacts, AttemptId, Digest, Job, JobId, JobStep, Millis, Phase, Progress, Report, UnixMillis,
};
use crate::queue::{Store, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Jobs whose progress is known. With more than an installation can run, a further one is not shown until its end.
const MOST_LIVE: usize = 20_000;
const HOLDERS: u32 = 500;

/// Where files are kept, and for how long after their job's end.
#[derive(Debug)]
struct Kept {
    store: BlobStore,
    keep: Millis,
}

/// What this room adds to the backend.
#[derive(Debug, Default)]
pub(super) struct ResultsRoom {
    kept: OnceLock<Kept>,
    live: Mutex<HashMap<JobId, Live>>,
    pub(super) lists: Lists,
}

#[derive(Debug)]
struct Live {
    attempt: u32,
    progress: Option<Progress>,
    steps: Vec<JobStep>,
}

impl ResultsRoom {
    fn live(&self) -> MutexGuard<'_, HashMap<JobId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a job that runs says of itself.
    pub(super) fn add_to(&self, job: &mut Job) {
        if job.ending.is_some() || job.phase == Phase::Queued {
            return;
        }
        if let Some(live) = self.live().get(&job.id).filter(|live| live.attempt == job.attempt) {
            job.results.progress = live.progress.clone().map(|progress| progress.with_eta(job.started_at));
            job.results.steps.clone_from(&live.steps);
        }
    }

    /// A try of the job has ended.
    pub(super) fn forget(&self, job: JobId) {
        self.live().remove(&job);
    }
}

impl Embedded {
    /// Keeps the files of jobs in this store, so long after their jobs' ends. The first one counts.
    pub fn keep_artifacts(&self, store: BlobStore, keep: Millis) {
        let _ = self.results.kept.set(Kept { store, keep });
    }

    /// Where the files of jobs are kept, if they are.
    pub fn artifacts(&self) -> Option<&BlobStore> {
        self.results.kept.get().map(|kept| &kept.store)
    }

    /// Whether the time of a job's files is over. Then they are gone, whatever is still on the disk.
    pub fn artifacts_are_over(&self, job: &Job) -> bool {
        let kept = self.results.kept.get();
        job.ended_at.zip(kept).is_some_and(|(ended, kept)| UnixMillis::now() >= ended.plus(kept.keep))
    }

    /// An agent in this process, or one that holds the attempt, says how far it is.
    pub fn progressed(&self, attempt: AttemptId, progress: Option<Progress>, steps: Vec<JobStep>) {
        let mut live = self.results.live();
        if live.len() >= MOST_LIVE && !live.contains_key(&attempt.job) {
            return;
        }
        live.insert(attempt.job, Live { attempt: attempt.attempt, progress, steps });
        drop(live);
        self.changed(attempt.job, false);
    }

    /// The list of a job's files, by their paths. Errors: it is gone, or cannot be read.
    pub async fn artifact_list(&self, list: Digest) -> Result<Arc<[Artifact]>, BlobError> {
        self.results.lists.get(self.artifacts().ok_or(BlobError::Missing(list))?, list).await
    }

    /// The files that an agent elsewhere has brought are the attempt's from now on. Errors: one is not there.
    pub async fn take_artifacts(&self, attempt: AttemptId, list: Digest) -> Result<(), BlobError> {
        let store = self.artifacts().ok_or(BlobError::Missing(list))?;
        let files = self.artifact_list(list).await?;
        let mut digests: Vec<Digest> = files.iter().map(|file| file.digest).chain([list]).collect();
        digests.sort_unstable();
        digests.dedup();
        store.refer(&Artifacts::holder(attempt), &digests).await
    }

    /// A report was taken: from now on its files have an end.
    pub(super) async fn report_taken(&self, report: &Report) {
        self.results.forget(report.attempt.job);
        let Some(kept) = self.results.kept.get() else { return };
        if report.results.artifacts.as_ref().is_none_or(|artifacts| artifacts.list.is_none()) {
            return;
        }
        let until = UnixMillis::now().plus(kept.keep);
        if let Err(error) = kept.store.keep_until(&Artifacts::holder(report.attempt), until).await {
            // The sweep finds it.
            tracing::warn!(attempt = %report.attempt, %error, "how long its files are kept could not be written down yet");
        }
    }

    /// Gives an end to files of tries whose report never came.
    pub(super) async fn end_strays(&self) -> Result<(), StoreError> {
        let Some(kept) = self.results.kept.get() else { return Ok(()) };
        let mut after = String::new();
        loop {
            let holders = kept.store.holders(Artifacts::HOLDERS, &after, HOLDERS).await?;
            let Some(last) = holders.last() else { return Ok(()) };
            after.clone_from(last);
            for holder in &holders {
                let attempt: Option<AttemptId> =
                    holder.strip_prefix(Artifacts::HOLDERS).and_then(|text| text.parse().ok());
                let job = match attempt {
                    Some(attempt) => self.store.get(attempt.job).await?,
                    None => None,
                };
                let over = attempt
                    .zip(job.as_ref())
                    .is_none_or(|(attempt, job)| job.ending.is_some() || job.attempt > attempt.attempt);
                if over {
                    let until = UnixMillis::now().plus(if job.is_some() { kept.keep } else { Millis::new(0) });
                    kept.store.keep_until(holder, until).await?;
                }
            }
        }
    }
}
