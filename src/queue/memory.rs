//! A store that ends with the process: for one job without a server, and the model that the other store is tested with.

use super::batch;
use super::daily::{Day, Days};
use super::list::Sieve;
use super::transition::Row;
use super::{
    Applied, Batch, CancelMark, Canceled, Claim, ClaimAsk, Completion, Counts, EXPIRE_BATCH, Expired, ListFilter,
    NewJob, Renewal, Standing, Store, StoreError, Submitted,
};
use crate::job::{AttemptId, Job, JobId, JobSummary, LeaseToken, Millis, Phase, Report, UnixMillis};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The store.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    rows: BTreeMap<u64, Row>,
    by_id: HashMap<JobId, u64>,
    by_key: HashMap<String, u64>,
    /// Priority, then age.
    queued: BTreeSet<(Reverse<i32>, u64)>,
    days: Days,
    last_seq: u64,
    last_token: u64,
}

impl Tables {
    /// Changes one job and keeps the index of queued ones right.
    fn change<T>(&mut self, id: JobId, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        let seq = *self.by_id.get(&id)?;
        let row = self.rows.get_mut(&seq)?;
        let was_open = row.job.phase != Phase::Ended;
        let result = change(row);
        if was_open && row.job.phase == Phase::Ended {
            self.days.ended(&row.job);
        }
        let entry = (Reverse(row.job.spec.priority()), seq);
        if row.job.phase == Phase::Queued {
            self.queued.insert(entry)
        } else {
            self.queued.remove(&entry)
        };
        Some(result)
    }
}

impl Tables {
    fn create(&mut self, new: NewJob) -> Job {
        self.last_seq += 1;
        let seq = self.last_seq;
        let row = Row::new(new);
        let job = row.job.clone();
        self.by_id.insert(job.id, seq);
        self.by_key.extend(job.spec.idempotency_key().map(|key| (key.to_owned(), seq)));
        self.queued.insert((Reverse(job.spec.priority()), seq));
        self.days.submitted(&job);
        self.rows.insert(seq, row);
        job
    }
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    async fn submit(&self, job: NewJob, max_queued: u64) -> Result<Submitted, StoreError> {
        let mut tables = self.tables();
        let key = job.spec.idempotency_key().map(str::to_owned);
        if let Some(seq) = key.as_ref().and_then(|key| tables.by_key.get(key)) {
            let there = &tables.rows[seq].job;
            let same = there.spec == job.spec;
            return Ok(if same { Submitted::Existing(there.clone()) } else { Submitted::KeyConflict(there.id) });
        }
        let queued = tables.queued.len() as u64;
        if queued >= max_queued {
            return Ok(Submitted::QueueFull { queued });
        }
        Ok(Submitted::Created(tables.create(job)))
    }

    async fn submit_all(&self, jobs: Vec<NewJob>, max_queued: u64, partial: bool) -> Result<Batch, StoreError> {
        let mut tables = self.tables();
        let holder = |key: &str| tables.by_key.get(key).map(|seq| tables.rows[seq].job.clone());
        let there = jobs.iter().map(|job| job.spec.idempotency_key().and_then(holder)).collect();
        let queued = tables.queued.len() as u64;
        batch::take_in(jobs, there, (queued, max_queued), partial, |job| Ok(tables.create(job)))
    }

    async fn claim(&self, ask: ClaimAsk) -> Result<Vec<Claim>, StoreError> {
        let mut tables = self.tables();
        let first: Vec<JobId> =
            tables.queued.iter().take(ask.max as usize).map(|(_, seq)| tables.rows[seq].job.id).collect();
        let mut claims = Vec::new();
        for id in first {
            tables.last_token += 1;
            let token = LeaseToken(tables.last_token);
            claims.extend(tables.change(id, |row| row.claim(&ask.agent, token, ask.lease, ask.now)));
        }
        Ok(claims)
    }

    async fn renew(
        &self,
        leases: &[(AttemptId, LeaseToken)],
        lease: Millis,
        now: UnixMillis,
    ) -> Result<Vec<Renewal>, StoreError> {
        let mut tables = self.tables();
        let one = |(attempt, token): &(AttemptId, LeaseToken)| {
            tables.change(attempt.job, |row| row.renew(*attempt, *token, lease, now)).unwrap_or(Renewal::Refused)
        };
        Ok(leases.iter().map(one).collect())
    }

    async fn advance(
        &self,
        attempt: AttemptId,
        token: LeaseToken,
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Result<Applied, StoreError> {
        let applied = self.tables().change(attempt.job, |row| row.advance(attempt, token, phase, at, reason));
        Ok(applied.unwrap_or(Applied::Refused))
    }

    async fn complete(&self, report: &Report, token: LeaseToken, now: UnixMillis) -> Result<Completion, StoreError> {
        let completion = self.tables().change(report.attempt.job, |row| row.complete(report, token, now));
        Ok(completion.unwrap_or(Completion::Unknown))
    }

    async fn release(
        &self,
        attempt: AttemptId,
        token: LeaseToken,
        now: UnixMillis,
        reason: &str,
    ) -> Result<Applied, StoreError> {
        let applied = self.tables().change(attempt.job, |row| row.release(attempt, token, now, reason));
        Ok(applied.unwrap_or(Applied::Refused))
    }

    async fn lookup(&self, attempts: &[(AttemptId, LeaseToken)]) -> Result<Vec<Standing>, StoreError> {
        let tables = self.tables();
        let one = |(attempt, token): &(AttemptId, LeaseToken)| {
            let row = tables.by_id.get(&attempt.job).and_then(|seq| tables.rows.get(seq));
            row.map_or(Standing::Unknown, |row| row.standing(*attempt, *token))
        };
        Ok(attempts.iter().map(one).collect())
    }

    async fn cancel(&self, id: JobId, now: UnixMillis) -> Result<Canceled, StoreError> {
        Ok(self.tables().change(id, |row| row.cancel(now)).unwrap_or(Canceled::Unknown))
    }

    async fn cancel_if(&self, id: JobId, revisions: &[u64], now: UnixMillis) -> Result<Canceled, StoreError> {
        Ok(self.tables().change(id, |row| row.cancel_if(revisions, now)).unwrap_or(Canceled::Unknown))
    }

    async fn cancel_many(&self, ids: &[JobId], now: UnixMillis) -> Result<Vec<CancelMark>, StoreError> {
        let mut tables = self.tables();
        let one =
            |id: &JobId| tables.change(*id, |row| CancelMark::from(&row.cancel(now))).unwrap_or(CancelMark::Unknown);
        Ok(ids.iter().map(one).collect())
    }

    async fn expire(&self, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        let mut tables = self.tables();
        let over = tables.rows.values().filter(|row| row.lease.is_some_and(|lease| lease.until <= now));
        let held: Vec<JobId> = over.take(EXPIRE_BATCH as usize).map(|row| row.job.id).collect();
        Ok(held.into_iter().filter_map(|id| tables.change(id, |row| row.expire(now, max_attempts)).flatten()).collect())
    }

    async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let tables = self.tables();
        Ok(tables.by_id.get(&id).map(|seq| tables.rows[seq].job.clone()))
    }

    async fn list(&self, filter: ListFilter) -> Result<Vec<JobSummary>, StoreError> {
        let tables = self.tables();
        let before = match filter.before {
            None => u64::MAX,
            Some(id) => tables.by_id.get(&id).copied().unwrap_or_default(),
        };
        let sieve = Sieve::new(&filter);
        let jobs = tables.rows.range(..before).rev().map(|(_, row)| JobSummary::from(&row.job));
        Ok(jobs.filter(|job| sieve.takes(job)).take(filter.limit as usize).collect())
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for row in self.tables().rows.values() {
            *counts.of(row.job.phase) += 1;
        }
        Ok(counts)
    }

    async fn daily(&self, from: u64) -> Result<Vec<Day>, StoreError> {
        Ok(self.tables().days.from(from))
    }

    async fn next_expiry(&self) -> Result<Option<UnixMillis>, StoreError> {
        Ok(self.tables().rows.values().filter_map(|row| row.lease.map(|lease| lease.until)).min())
    }
}
