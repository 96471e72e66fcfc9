//! How long ended jobs and their output are kept: by age and by how much there is, the oldest end first.
//!
//! Works in small steps with pauses between them, so that nobody who claims or submits waits for it. Never touches a job that has not
//! ended, one with a child or a parent that goes on, or output that is being read or written. What is removed is counted, told in the log
//! and written down in the audit log. Contents and files of jobs have keepers of their own (`keeper`, `results`).

use super::Embedded;
use crate::audit::{Audit, Event, Outcome};
use crate::job::{ByteSize, JobId, Millis, UnixMillis};
use crate::logstore::LogError;
use crate::queue::{ListFilter, Old, OldPlace, REMOVE_BATCH, Store, StoreError};
use crate::supervise::blocking;
use crate::telemetry::Metrics;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// From the start to the first look, and between two looks.
const FIRST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(300);
/// Between two steps: others have the store for most of the time.
const BREATH: Duration = Duration::from_millis(20);
/// Jobs that are looked at together.
const PAGE: u32 = 256;

/// What is kept; `None` is no bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct RetentionSettings {
    /// Ended jobs, so long after their ends.
    pub jobs_keep: Option<Millis>,
    /// Ended jobs, so many.
    pub jobs_max: Option<u64>,
    /// Output, so long after the end of its job.
    pub output_keep: Option<Millis>,
    /// Output of ended jobs together.
    pub output_max: Option<ByteSize>,
}

/// What a look removed, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Removed {
    /// Jobs, with all that is known of them.
    pub jobs: u64,
    /// Jobs whose output went, those that went themselves not counted.
    pub outputs: u64,
    /// What all that output took on the disk, about.
    pub bytes: u64,
    /// Jobs that were due and stay for now: their output is being read or written, or could not be removed.
    pub held: u64,
}

/// Who removes, and who is told.
#[derive(Debug)]
pub(super) struct Retention {
    settings: RetentionSettings,
    metrics: Arc<Metrics>,
    audit: Audit,
    /// One look at a time.
    alone: Mutex<()>,
}

/// What is due of the oldest, decided one after the other.
#[derive(Debug)]
struct Due {
    before: Option<UnixMillis>,
    /// So much is to go, whatever its age.
    excess: u64,
}

impl Due {
    fn new(keep: Option<Millis>, most: Option<u64>, there: u64, now: UnixMillis) -> Self {
        let before = keep.map(|keep| UnixMillis::new(now.as_u64().saturating_sub(keep.as_u64())));
        Self { before, excess: most.map_or(0, |most| there.saturating_sub(most)) }
    }

    /// Whether this one goes. When it does not, none behind it does.
    fn takes(&self, ended: UnixMillis) -> bool {
        self.excess > 0 || self.before.is_some_and(|before| ended <= before)
    }

    fn gone(&mut self, amount: u64) {
        self.excess = self.excess.saturating_sub(amount);
    }
}

impl Embedded {
    /// Bounds what is kept; the first call counts.
    pub fn keep_for(&self, settings: RetentionSettings, metrics: Arc<Metrics>, audit: Audit) {
        let _ = self.retention.set(Retention { settings, metrics, audit, alone: Mutex::default() });
    }

    /// Removes what is not to be kept any longer, until `stop`.
    pub async fn run_retention(self: Arc<Self>, stop: CancellationToken) {
        let Some(retention) = self.retention.get() else { return };
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = PAUSE;
            let removed = tokio::select! {
                () = stop.cancelled() => return,
                removed = self.remove_old(UnixMillis::now(), false) => removed,
            };
            match removed {
                Ok(Removed { jobs: 0, outputs: 0, .. }) => {}
                Ok(removed) => {
                    let Removed { jobs, outputs, bytes, held } = removed;
                    tracing::info!(jobs, outputs, bytes, held, "old jobs and output were removed");
                    let detail = format!("{jobs} jobs; output of {outputs} more; {bytes} bytes of output");
                    let event = Event::own("retention", Outcome::Done, Some(detail));
                    retention.audit.record(Event { count: Some(jobs + outputs), ..event }).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "old jobs and output could not be removed; tried again in five minutes");
                    retention.audit.record(Event::own("retention", Outcome::Failed, Some(error.to_string()))).await;
                }
            }
        }
    }

    /// One look: removes what is due now. `dry`: only says what that is. May be given up at any time; the next one goes on.
    pub async fn remove_old(&self, now: UnixMillis, dry: bool) -> Result<Removed, StoreError> {
        let Some(retention) = self.retention.get() else { return Ok(Removed::default()) };
        let _alone = retention.alone.lock().await;
        let mut removed = Removed::default();
        let told = Told { metrics: (!dry).then_some(retention.metrics.as_ref()) };
        // Jobs first: their output goes with them.
        let until = self.remove_jobs(&retention.settings, now, &told, &mut removed).await?;
        self.remove_outputs(&retention.settings, now, until.filter(|_| dry), (&told, &mut removed)).await?;
        let kept = self.store.output_bytes().await?;
        retention.metrics.output_bytes.set(i64::try_from(kept).unwrap_or(i64::MAX));
        Ok(removed)
    }

    /// Says how far in the order of ends they went.
    async fn remove_jobs(
        &self,
        settings: &RetentionSettings,
        now: UnixMillis,
        told: &Told<'_>,
        removed: &mut Removed,
    ) -> Result<Option<OldPlace>, StoreError> {
        let mut until = None;
        let there = self.store.counts().await?.ended;
        let mut due = Due::new(settings.jobs_keep, settings.jobs_max, there, now);
        let mut after: Option<OldPlace> = None;
        loop {
            let page = self.store.oldest_ended(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(until) };
            after = Some(last.place);
            let mut waiting: Vec<Old> = Vec::new();
            for old in &page {
                if !due.takes(old.place.at) {
                    self.remove_some(&mut waiting, told, removed).await?;
                    return Ok(until);
                }
                let children = self.store.children(old.id).await?.map_or(0, |children| u64::from(children.all));
                // A child that ended in its parent's millisecond has the higher number, and goes with it.
                until = until.max(Some(if children > 0 { OldPlace::behind(old.place.at) } else { old.place }));
                due.gone(1 + children);
                if children > 0 && !self.remove_children(old.id, told, removed).await? {
                    removed.held += 1;
                    continue;
                }
                waiting.push(*old);
                if waiting.len() >= REMOVE_BATCH {
                    self.remove_some(&mut waiting, told, removed).await?;
                }
            }
            self.remove_some(&mut waiting, told, removed).await?;
        }
    }

    /// The children of a job that has ended, which have ended before it. False when one of them stays.
    async fn remove_children(&self, of: JobId, told: &Told<'_>, removed: &mut Removed) -> Result<bool, StoreError> {
        let mut before = None;
        let held = removed.held;
        loop {
            let filter = ListFilter { parent: Some(of), before, limit: PAGE, ..ListFilter::default() };
            let ids: Vec<JobId> = self.store.list(filter).await?.into_iter().map(|child| child.id).collect();
            let Some(last) = ids.last() else { return Ok(removed.held == held) };
            before = Some(*last);
            for some in ids.chunks(REMOVE_BATCH) {
                let mut some = self.as_old(some, removed).await;
                self.remove_some(&mut some, told, removed).await?;
            }
            if told.is_dry() {
                continue;
            }
            // The cursor has gone with its job: from the first one that is left.
            before = None;
            if removed.held > held {
                return Ok(false);
            }
        }
    }

    async fn as_old(&self, ids: &[JobId], removed: &mut Removed) -> Vec<Old> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let job = match self.store.get(*id).await {
                Ok(Some(job)) => job,
                Ok(None) => continue,
                // One that this version cannot read stays, with its parent, and holds up no other family.
                Err(error) => {
                    tracing::warn!(job_id = %id, %error, "an old job cannot be read, and stays");
                    removed.held += 1;
                    continue;
                }
            };
            let kept = job.output_gone_at.is_none();
            let output_bytes = if kept { job.log.stdout.bytes.saturating_add(job.log.stderr.bytes) } else { 0 };
            let place = OldPlace { at: job.ended_at.unwrap_or(job.submitted_at), seq: 0 };
            found.push(Old { id: *id, place, output_bytes });
        }
        found
    }

    /// Removes these jobs with their output, and leaves the list empty.
    async fn remove_some(&self, jobs: &mut Vec<Old>, told: &Told<'_>, removed: &mut Removed) -> Result<(), StoreError> {
        let jobs = std::mem::take(jobs);
        if told.is_dry() {
            removed.jobs += jobs.len() as u64;
            removed.bytes += jobs.iter().map(|old| old.output_bytes).sum::<u64>();
            return Ok(());
        }
        let mut left: Vec<JobId> = Vec::with_capacity(jobs.len());
        for old in &jobs {
            if self.remove_output(old.id).await {
                removed.bytes += old.output_bytes;
                told.output(old.output_bytes);
                left.push(old.id);
            } else {
                removed.held += 1;
            }
        }
        while !left.is_empty() {
            let gone = self.store.remove(&left).await?;
            left.retain(|id| !gone.contains(id));
            removed.jobs += gone.len() as u64;
            told.jobs(gone.len() as u64);
            if gone.is_empty() {
                // They are not as they were when they were looked for; the next look finds them as they are.
                removed.held += left.len() as u64;
                return Ok(());
            }
            tokio::time::sleep(BREATH).await;
        }
        Ok(())
    }

    async fn remove_outputs(
        &self,
        settings: &RetentionSettings,
        now: UnixMillis,
        behind: Option<OldPlace>,
        (told, removed): (&Told<'_>, &mut Removed),
    ) -> Result<(), StoreError> {
        let mut there = self.store.output_bytes().await?;
        if told.is_dry() {
            there = there.saturating_sub(removed.bytes);
        }
        let most = settings.output_max.map(ByteSize::as_u64);
        let mut due = Due::new(settings.output_keep, most, there, now);
        // In a dry look the jobs that would go are still there: what counts begins behind them.
        let mut after = behind;
        loop {
            let page = self.store.oldest_outputs(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.place);
            for some in page.chunks(REMOVE_BATCH) {
                let mut marked = Vec::with_capacity(some.len());
                let mut over = false;
                for old in some {
                    if !due.takes(old.place.at) {
                        over = true;
                        break;
                    }
                    if told.is_dry() || self.remove_output(old.id).await {
                        due.gone(old.output_bytes);
                        removed.bytes += old.output_bytes;
                        removed.outputs += 1;
                        told.output(old.output_bytes);
                        marked.push(old.id);
                    } else {
                        removed.held += 1;
                    }
                }
                if !told.is_dry() && !marked.is_empty() {
                    self.store.output_gone(&marked, now).await?;
                    told.outputs(marked.len() as u64);
                    tokio::time::sleep(BREATH).await;
                }
                if over {
                    return Ok(());
                }
            }
        }
    }

    /// Removes a job's output from the disk, unless somebody reads or writes it. True when it is gone.
    async fn remove_output(&self, job: JobId) -> bool {
        let logs = self.logs().clone();
        match blocking(move || logs.remove_unread(job)).await {
            Ok(()) => true,
            Err(LogError::Busy(_)) => false,
            Err(error) => {
                tracing::warn!(job_id = %job, %error, "output of an old job could not be removed");
                false
            }
        }
    }

    /// Removes the output of a job that has ended, because somebody said so. Errors: the disk, or it is being written.
    pub async fn delete_output(&self, job: JobId) -> Result<(), DeleteError> {
        let logs = self.logs().clone();
        blocking(move || logs.remove(job)).await?;
        self.store.output_gone(&[job], UnixMillis::now()).await?;
        Ok(())
    }
}

/// Output that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The queue.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Counts what goes; nothing in a look that removes nothing.
struct Told<'a> {
    metrics: Option<&'a Metrics>,
}

impl Told<'_> {
    fn is_dry(&self) -> bool {
        self.metrics.is_none()
    }

    fn count(&self, what: &str, by: u64) {
        if let Some(metrics) = self.metrics {
            metrics.retention_removed_total.with_label_values(&[what]).inc_by(by);
        }
    }

    fn jobs(&self, count: u64) {
        self.count("jobs", count);
    }

    fn outputs(&self, count: u64) {
        self.count("outputs", count);
    }

    fn output(&self, bytes: u64) {
        if let Some(metrics) = self.metrics {
            metrics.retention_removed_bytes_total.inc_by(bytes);
        }
    }
}
