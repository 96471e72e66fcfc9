//! The durable store: one SQLite file in WAL mode, synchronous FULL but for what a server that starts knows anyway.
//!
//! One thread owns the writing connection and takes all commands that wait into one transaction, so a sync serves many;
//! an answer is given after the commit. Another thread reads, so a list never waits behind a sync.

mod kin;
mod list;
mod old;
mod open;
mod rows;
mod shapes;
mod steps;
mod still;

use super::batch;
use super::daily::Day;
use super::family::{self, Settled};
use super::old::{Old, Place as OldPlace};
use super::routing::{self, Asker, Glance, Running, Shape};
use super::transition::Row;
use super::{
    Applied, Batch, CancelMark, Canceled, Claim, ClaimAsk, Claims, Completion, Counts, EXPIRE_BATCH, Expired, Family,
    Groups, ListFilter, NewJob, Place, Renewal, Replay, Standing, Store, StoreError, Stuck, Submitted,
};
use crate::database::{self, Durability, Poster};
use crate::job::{AttemptId, Children, Job, JobId, JobSummary, Later, LeaseToken, Millis, Phase, Report, UnixMillis};
use rusqlite::Connection;
use std::cell::OnceCell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

pub use still::{Still, counts_in, fence};

type Worker = database::Worker<StoreError>;

/// The store.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
    groups: Arc<Groups>,
}

impl SqliteStore {
    /// Opens, and makes if need be, the file; one that an older version wrote is backed up beside itself and taken
    /// forward. Errors: it cannot be opened, is damaged, or was written by a newer version; each says what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_groups(path, Groups::new())
    }

    /// The same, with limits on groups of jobs.
    pub fn open_with_groups(path: &Path, groups: Groups) -> Result<Self, StoreError> {
        let mut writing = open::open(path)?;
        shapes::refresh(&mut writing, &groups).map_err(|error| open::refused(path, &error))?;
        let reading = open::open(path)?;
        let (writer, reader) = (Worker::grouping("queue writer", writing), Worker::single("queue reader", reading));
        Ok(Self { writer, reader, groups: Arc::new(groups) })
    }

    /// Loads a job, lets `change` decide, and saves it. `None` when there is no such job.
    async fn change<T: Send + 'static>(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Row) -> T + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        self.writer.run(move |db| change_row(db, id, change)).await
    }
}

/// Claims on their way to whoever asked. If nobody takes them (a caller in a `select!` went another way), they go back to the
/// queue at once, instead of waiting for their leases to run out with nobody knowing of them.
struct Handed {
    agent: String,
    claims: Vec<Claim>,
    now: UnixMillis,
    writer: Poster,
}

impl Handed {
    fn take(mut self) -> Vec<Claim> {
        std::mem::take(&mut self.claims)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let (claims, now, agent) = (std::mem::take(&mut self.claims), self.now, std::mem::take(&mut self.agent));
        if claims.is_empty() {
            return;
        }
        tracing::debug!(jobs = claims.len(), "claims that nobody took go back to the queue");
        self.writer.post(move |db| {
            for claim in &claims {
                let lease = (claim.attempt, claim.token);
                change_row(db, lease.0.job, |row| row.release(&agent, lease, now, "claim_not_taken", None))?;
            }
            Ok(())
        });
    }
}

fn change_row<T>(db: &Connection, id: JobId, change: impl FnOnce(&mut Row) -> T) -> rusqlite::Result<Option<T>> {
    let Some(before) = rows::load(db, id)? else { return Ok(None) };
    let mut row = before.clone();
    let result = change(&mut row);
    if row != before {
        rows::save(db, &row)?;
    }
    Ok(Some(result))
}

/// A job with its children, if it has any.
fn create(db: &Connection, mut new: NewJob, groups: &Groups) -> rusqlite::Result<Job> {
    let children = match &mut new.family {
        Family::Parent(children) => std::mem::take(children),
        Family::Alone | Family::Child { .. } => Vec::new(),
    };
    let row = Row::new(new);
    rows::insert(db, &row, groups)?;
    for child in children {
        rows::insert(db, &Row::new(child), groups)?;
    }
    Ok(row.job)
}

/// Jobs of a new one's submitter that have not ended; not counted where nothing bounds them.
fn held(db: &Connection, new: &NewJob) -> rusqlite::Result<u64> {
    match &new.submitter {
        Some(submitter) if new.quota.is_some() => rows::held(db, &submitter.name),
        _ => Ok(0),
    }
}

impl Store for SqliteStore {
    async fn submit(&self, job: NewJob, max_queued: u64) -> Result<Submitted, StoreError> {
        let groups = Arc::clone(&self.groups);
        self.writer
            .run(move |db| {
                if let Some(key) = job.own_key()
                    && let Some(there) = rows::by_key(db, &key)?
                {
                    let same = there.job.spec == job.spec;
                    return Ok(if same {
                        Submitted::Existing(there.job)
                    } else {
                        Submitted::KeyConflict(there.job.id)
                    });
                }
                let queued = rows::count(db, Phase::Queued)?;
                if queued + job.family.queued() > max_queued {
                    return Ok(Submitted::QueueFull { queued });
                }
                if let Some(full) = job.beyond_quota(held(db, &job)?) {
                    return Ok(full);
                }
                Ok(Submitted::Created(create(db, job, &groups)?))
            })
            .await
    }

    async fn submit_all(&self, jobs: Vec<NewJob>, max_queued: u64, partial: bool) -> Result<Batch, StoreError> {
        let groups = Arc::clone(&self.groups);
        self.writer
            .run(move |db| {
                let mut there = Vec::with_capacity(jobs.len());
                for job in &jobs {
                    let holder = job.own_key().map(|key| rows::by_key(db, &key)).transpose()?.flatten();
                    there.push(holder.map(|row| row.job));
                }
                let queued = rows::count(db, Phase::Queued)?;
                let held = jobs.first().map_or(Ok(0), |job| held(db, job))?;
                let room = batch::Room { queued, max_queued, held };
                batch::take_in(jobs, there, room, partial, |job| create(db, job, &groups))
            })
            .await
    }

    async fn taken_keys(&self, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
        self.reader
            .run(move |db| {
                let mut taken = HashSet::new();
                for key in keys {
                    if rows::has_key(db, &key)? {
                        taken.insert(key);
                    }
                }
                Ok(taken)
            })
            .await
    }

    async fn claim(&self, ask: ClaimAsk) -> Result<Claims, StoreError> {
        let (writer, now, groups) = (self.writer.poster(), ask.now, Arc::clone(&self.groups));
        let agent = ask.agent.clone();
        let claim = move |db: &Connection| {
            // Ends: each further round has set at least one job aside.
            let (chosen, held_back, reserves) = loop {
                let (running, mut glance) = (OnceCell::new(), Glance::new(Asker::from(&ask), &groups));
                let queues = shapes::waiting(db, &mut glance, &running, ask.max)?;
                let choice = routing::choose(queues, Asker::from(&ask), running.get_or_init(Running::default), &groups);
                if let Some(chosen) = rows::chosen(db, &choice.jobs)? {
                    break (chosen, choice.held_back || glance.held_back, choice.reserves);
                }
            };
            let mut claims = Vec::with_capacity(chosen.len());
            for mut row in chosen {
                let token = rows::next_token(db)?;
                let mut claim = row.claim(&ask.agent, token, ask.lease, ask.now);
                rows::save(db, &row)?;
                if claim.spec.has_inline_secrets() {
                    claim.spec = claim.spec.with_sealed(rows::sealed(db, claim.attempt.job)?);
                }
                claims.push(claim);
            }
            let reserves = reserves.map(|seq| rows::id(db, seq)).transpose()?.flatten();
            Ok(Claims { claims, held_back, reserves })
        };
        let handed = move |mut found: Claims| {
            let claims = std::mem::take(&mut found.claims);
            (found, Handed { agent, claims, now, writer })
        };
        let (found, handed) = self.writer.run_then(claim, handed).await?;
        Ok(Claims { claims: handed.take(), ..found })
    }

    async fn place(&self, id: JobId) -> Result<Option<Place>, StoreError> {
        let groups = Groups::clone(&self.groups);
        self.reader
            .run(move |db| {
                let Some(row) = rows::load(db, id)?.filter(|row| row.job.phase == Phase::Queued) else {
                    return Ok(None);
                };
                let shape = Shape::of(&row.job.spec, &groups);
                let ahead = shapes::ahead(db, &id.to_string())?;
                Ok(Some(Place { ahead, shape, running: shapes::running(db)?, groups }))
            })
            .await
    }

    async fn renew(
        &self,
        agent: &str,
        leases: &[(AttemptId, LeaseToken)],
        lease: Millis,
        now: UnixMillis,
    ) -> Result<Vec<Renewal>, StoreError> {
        let (agent, leases) = (agent.to_owned(), leases.to_vec());
        // Written is enough: a server that starts gives every lease a full term.
        self.writer
            .run_as(Durability::Written, move |db| {
                let one = |held: (AttemptId, LeaseToken)| {
                    let renewed = change_row(db, held.0.job, |row| row.renew(&agent, held, lease, now))?;
                    Ok(renewed.unwrap_or(Renewal::Refused))
                };
                leases.into_iter().map(one).collect()
            })
            .await
    }

    async fn advance(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Result<Applied, StoreError> {
        let (agent, reason) = (agent.to_owned(), reason.to_owned());
        // Written is enough: once it is claimed, a job counts as one that may have run, however far it is said to have come. So a job costs
        // three syncs: taken in, claimed, ended.
        let change = move |row: &mut Row| row.advance(&agent, lease, phase, at, &reason);
        let advance = move |db: &Connection| change_row(db, lease.0.job, change);
        let applied = self.writer.run_as(Durability::Written, advance).await?;
        Ok(applied.unwrap_or(Applied::Refused))
    }

    async fn complete(
        &self,
        agent: &str,
        report: &Report,
        token: LeaseToken,
        now: UnixMillis,
        max_attempts: u32,
    ) -> Result<Completion, StoreError> {
        let (agent, report) = (agent.to_owned(), report.clone());
        let job = report.attempt.job;
        let change = move |row: &mut Row| row.complete(&agent, &report, token, now, max_attempts);
        let completion = self.change(job, change).await?;
        Ok(completion.unwrap_or(Completion::Unknown))
    }

    async fn release(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        now: UnixMillis,
        reason: &str,
        later: Option<&Later>,
    ) -> Result<Applied, StoreError> {
        let (agent, reason, later) = (agent.to_owned(), reason.to_owned(), later.cloned());
        let applied =
            self.change(lease.0.job, move |row| row.release(&agent, lease, now, &reason, later.as_ref())).await?;
        Ok(applied.unwrap_or(Applied::Refused))
    }

    async fn lookup(&self, agent: &str, attempts: &[(AttemptId, LeaseToken)]) -> Result<Vec<Standing>, StoreError> {
        let (agent, attempts) = (agent.to_owned(), attempts.to_vec());
        // By the writer: what was claimed or reported a moment ago counts.
        self.writer
            .run(move |db| {
                let one = |(attempt, token): (AttemptId, LeaseToken)| {
                    let row = rows::load(db, attempt.job)?;
                    Ok(row.map_or(Standing::Unknown, |row| row.standing(&agent, attempt, token)))
                };
                attempts.into_iter().map(one).collect()
            })
            .await
    }

    async fn cancel(&self, id: JobId, now: UnixMillis) -> Result<Canceled, StoreError> {
        Ok(self.change(id, move |row| row.cancel(now)).await?.unwrap_or(Canceled::Unknown))
    }

    async fn cancel_if(&self, id: JobId, revisions: &[u64], now: UnixMillis) -> Result<Canceled, StoreError> {
        let revisions = revisions.to_vec();
        Ok(self.change(id, move |row| row.cancel_if(&revisions, now)).await?.unwrap_or(Canceled::Unknown))
    }

    async fn cancel_many(&self, ids: &[JobId], now: UnixMillis) -> Result<Vec<CancelMark>, StoreError> {
        let ids = ids.to_vec();
        self.writer
            .run(move |db| {
                let one = |id| {
                    let mark = change_row(db, id, |row| CancelMark::from(&row.cancel(now)))?;
                    Ok(mark.unwrap_or(CancelMark::Unknown))
                };
                ids.into_iter().map(one).collect()
            })
            .await
    }

    async fn replay(
        &self,
        dead: &[(JobId, JobId)],
        max_queued: u64,
        now: UnixMillis,
    ) -> Result<Vec<Replay>, StoreError> {
        let (dead, groups) = (dead.to_vec(), Arc::clone(&self.groups));
        self.writer
            .run(move |db| {
                let one = |(id, by): (JobId, JobId)| {
                    let room = rows::count(db, Phase::Queued)? < max_queued;
                    Ok(match change_row(db, id, |row| row.replay(by, now, room))? {
                        Some(Ok(new)) => Replay::Replayed(Box::new(create(db, new, &groups)?)),
                        Some(Err(answer)) => answer,
                        None => Replay::Unknown,
                    })
                };
                dead.into_iter().map(one).collect()
            })
            .await
    }

    async fn expire(&self, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        self.writer
            .run(move |db| {
                let mut expired = Vec::new();
                for mut row in rows::expired(db, now)? {
                    expired.extend(row.expire(now, max_attempts));
                    rows::save(db, &row)?;
                }
                Ok(expired)
            })
            .await
    }

    async fn end_stuck(&self, now: UnixMillis, after: Millis, max_attempts: u32) -> Result<Vec<Stuck>, StoreError> {
        self.writer
            .run(move |db| {
                let mut found = Vec::new();
                // One by one: a job can be a megabyte.
                for place in rows::leased(db)? {
                    let Some(mut row) = rows::at(db, place)? else { continue };
                    if let Some(stuck) = row.stuck(now, after, max_attempts) {
                        rows::save(db, &row)?;
                        found.push(stuck);
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn take_from(&self, agent: &str, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        let agent = agent.to_owned();
        self.writer
            .run(move |db| {
                let mut taken = Vec::new();
                for place in rows::leased(db)? {
                    if taken.len() >= EXPIRE_BATCH as usize {
                        break;
                    }
                    let Some(mut row) = rows::at(db, place)? else { continue };
                    if let Some(expired) = row.take_from(&agent, now, max_attempts) {
                        rows::save(db, &row)?;
                        taken.push(expired);
                    }
                }
                Ok(taken)
            })
            .await
    }

    async fn ready(&self, now: UnixMillis) -> Result<u64, StoreError> {
        self.writer.run(move |db| rows::ready(db, now)).await
    }

    async fn extend(&self, lease: Millis, now: UnixMillis) -> Result<u64, StoreError> {
        self.writer
            .run(move |db| {
                let mut held = 0;
                for place in rows::leased(db)? {
                    let Some(mut row) = rows::at(db, place)? else { continue };
                    row.extend(lease, now);
                    rows::save(db, &row)?;
                    held += 1;
                }
                Ok(held)
            })
            .await
    }

    async fn settle(&self, parent: JobId, again: bool, now: UnixMillis) -> Result<Settled, StoreError> {
        self.writer.run(move |db| family::settle(&mut kin::OneFamily { db, parent }, again, now)).await
    }

    async fn children(&self, parent: JobId) -> Result<Option<Children>, StoreError> {
        self.reader.run(move |db| kin::children(db, parent)).await
    }

    async fn open_families(&self) -> Result<Vec<(JobId, Option<JobId>)>, StoreError> {
        self.reader.run(kin::open_families).await
    }

    async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.reader.run(move |db| Ok(rows::load(db, id)?.map(|row| row.job))).await
    }

    async fn list(&self, filter: ListFilter) -> Result<Vec<JobSummary>, StoreError> {
        let (most, mut found, mut rest) = (filter.limit as usize, Vec::new(), None);
        loop {
            let (filter, room) = (filter.clone(), most - found.len());
            let slice = self.reader.run(move |db| list::slice(db, &filter, rest, room)).await?;
            found.extend(slice.found);
            rest = slice.rest;
            if rest.is_none() || found.len() >= most {
                return Ok(found);
            }
        }
    }

    async fn oldest_ended(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        self.reader.run(move |db| old::ended(db, after, limit)).await
    }

    async fn oldest_outputs(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        self.reader.run(move |db| old::outputs(db, after, limit)).await
    }

    async fn output_bytes(&self) -> Result<u64, StoreError> {
        self.reader.run(old::output_bytes).await
    }

    async fn output_gone(&self, ids: &[JobId], at: UnixMillis) -> Result<u64, StoreError> {
        let ids = ids.to_vec();
        // Written is enough: what a power cut brings back goes again with the next look. A sync would be one more that others wait for.
        self.writer.run_as(Durability::Written, move |db| old::output_gone(db, &ids, at)).await
    }

    async fn remove(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids = ids.to_vec();
        self.writer.run_as(Durability::Written, move |db| old::remove(db, &ids)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.reader
            .run(|db| {
                let mut counts = Counts::default();
                for name in ["queued", "claimed", "preparing", "running", "finishing", "ended"] {
                    if let Some(phase) = Phase::named(name) {
                        *counts.of(phase) = rows::count(db, phase)?;
                    }
                }
                counts.dead_letters = rows::dead_letters(db)?;
                Ok(counts)
            })
            .await
    }

    async fn daily(&self, from: u64) -> Result<Vec<Day>, StoreError> {
        self.reader.run(move |db| rows::days(db, from)).await
    }

    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.reader.run(rows::next_due).await
    }
}

#[cfg(test)]
mod migrate_tests;
