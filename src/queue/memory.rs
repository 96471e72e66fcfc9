//! A store that ends with the process: for one job without a server, and the model that the other store is tested with.

use super::batch;
use super::daily::{Day, Days};
use super::family::{self, Kin, Settled, Tally};
use super::list::Sieve;
use super::old::{Old, Place as OldPlace, REMOVE_BATCH};
use super::routing::{self, Asker, Candidate, Glance, Look, Running, Shape};
use super::transition::Row;
use super::{
    Applied, Batch, CancelMark, Canceled, ClaimAsk, Claims, Completion, Counts, EXPIRE_BATCH, Expired, Family, Groups,
    ListFilter, NewJob, Place, READY_BATCH, Renewal, Replay, Standing, Store, StoreError, Stuck, Submitted,
};
use crate::job::{
    AttemptId, Children, HostFailure, Job, JobId, JobSummary, Later, LeaseToken, Millis, Phase, Report, Submitter,
    UnixMillis, Verdict,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The store. Clones share their jobs.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    rows: BTreeMap<u64, Row>,
    by_id: HashMap<JobId, u64>,
    by_key: HashMap<String, u64>,
    /// Those that can be claimed: priority, then age.
    queued: BTreeSet<(Reverse<i32>, u64)>,
    /// Queued ones that are delayed, the first that becomes ready first.
    delayed: BTreeSet<(UnixMillis, u64)>,
    /// Of each parent, in their order.
    children: HashMap<JobId, Vec<JobId>>,
    days: Days,
    groups: Groups,
    last_seq: u64,
    last_token: u64,
}

impl Tables {
    /// Changes one job and keeps the index of queued ones right.
    fn change<T>(&mut self, id: JobId, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        let seq = *self.by_id.get(&id)?;
        let row = self.rows.get_mut(&seq)?;
        let (was_open, was_delayed) = (row.job.phase != Phase::Ended, row.delayed);
        let result = change(row);
        if was_open && row.job.phase == Phase::Ended {
            self.days.ended(&row.job);
        }
        let entry = (Reverse(row.job.spec.priority()), seq);
        if row.job.phase == Phase::Queued && row.delayed.is_none() {
            self.queued.insert(entry)
        } else {
            self.queued.remove(&entry)
        };
        if let Some(at) = was_delayed {
            self.delayed.remove(&(at, seq));
        }
        self.delayed.extend(row.delayed.map(|at| (at, seq)));
        Some(result)
    }
}

impl Tables {
    /// A job with its children, if it has any.
    fn create(&mut self, mut new: NewJob) -> Job {
        let children = match &mut new.family {
            Family::Parent(children) => std::mem::take(children),
            Family::Alone | Family::Child { .. } => Vec::new(),
        };
        let job = self.create_one(new);
        children.into_iter().for_each(|child| drop(self.create_one(child)));
        job
    }

    /// Jobs of this submitter that have not ended.
    fn held(&self, submitter: Option<&Submitter>) -> u64 {
        let Some(submitter) = submitter else { return 0 };
        let open = self.rows.values().filter(|row| row.job.phase != Phase::Ended);
        open.filter(|row| super::held_by(&row.job) == Some(&submitter.name)).count() as u64
    }

    fn create_one(&mut self, new: NewJob) -> Job {
        self.last_seq += 1;
        let seq = self.last_seq;
        let row = Row::new(new);
        let job = row.job.clone();
        self.by_id.insert(job.id, seq);
        let key = job.spec.idempotency_key().map(|key| super::own_key(job.submitter.as_ref(), key));
        self.by_key.extend(key.map(|key| (key, seq)));
        if let Some(at) = row.delayed {
            self.delayed.insert((at, seq));
        } else if job.phase == Phase::Queued {
            self.queued.insert((Reverse(job.spec.priority()), seq));
        }
        if let Some(parent) = job.parent {
            self.children.entry(parent).or_default().push(job.id);
        }
        self.days.submitted(&job);
        self.rows.insert(seq, row);
        job
    }
}

impl Tables {
    fn row(&self, id: JobId) -> Option<&Row> {
        self.by_id.get(&id).and_then(|seq| self.rows.get(seq))
    }

    fn running(&self) -> Running {
        let mut running = Running::default();
        let held = |row: &&Row| row.lease.is_some();
        for job in self.rows.values().filter(held).map(|row| &row.job) {
            for (label, value) in job.spec.labels() {
                running.add(job.agent.as_deref().unwrap_or_default(), label, value, 1);
            }
        }
        running
    }

    fn all_queued(&self) -> u64 {
        (self.queued.len() + self.delayed.len()) as u64
    }

    /// Queued jobs that can be claimed, in order, with their shapes.
    fn waiting(&self) -> impl Iterator<Item = (Shape, Candidate)> + '_ {
        self.queued.iter().map(|(Reverse(priority), seq)| {
            let job = &self.rows[seq].job;
            let candidate = Candidate { seq: *seq, priority: *priority, submitted_at: job.submitted_at };
            (Shape::of(&job.spec, &self.groups), candidate)
        })
    }
}

impl Tables {
    fn parent_goes_on(&self, row: &Row) -> bool {
        row.job.parent.and_then(|parent| self.row(parent)).is_some_and(|parent| parent.job.phase != Phase::Ended)
    }

    /// Ended jobs that are meant, the oldest end first, behind a place.
    fn old(&self, after: Option<OldPlace>, limit: u32, meant: impl Fn(&Self, &Row) -> bool) -> Vec<Old> {
        let old = |(seq, row): (&u64, &Row)| {
            let place = OldPlace { at: row.job.ended_at?, seq: *seq };
            let wanted = after.is_none_or(|after| place > after) && meant(self, row);
            let output_bytes = row.output_bytes().unwrap_or(0);
            wanted.then_some(Old { id: row.job.id, place, output_bytes })
        };
        let mut found: Vec<Old> = self.rows.iter().filter_map(old).collect();
        found.sort_by_key(|old| old.place);
        found.truncate(limit as usize);
        found
    }

    /// Removes a job that may go.
    fn remove(&mut self, id: JobId) -> bool {
        let Some((seq, row)) = self.by_id.get(&id).and_then(|seq| Some((*seq, self.rows.get(seq)?))) else {
            return false;
        };
        let is_parent = self.children.get(&id).is_some_and(|children| !children.is_empty());
        if row.job.phase != Phase::Ended || is_parent || self.parent_goes_on(row) {
            return false;
        }
        if let Some(siblings) = row.job.parent.and_then(|parent| self.children.get_mut(&parent)) {
            siblings.retain(|child| *child != id);
        }
        self.children.remove(&id);
        self.by_key.retain(|_, of| *of != seq);
        self.by_id.remove(&id);
        self.rows.remove(&seq);
        true
    }
}

/// One parent with its children.
struct OneFamily<'a> {
    tables: &'a mut Tables,
    parent: JobId,
}

impl OneFamily<'_> {
    fn rows(&self) -> impl Iterator<Item = &Row> {
        let children = self.tables.children.get(&self.parent).into_iter().flatten();
        children.filter_map(|child| self.tables.row(*child))
    }
}

impl Kin for OneFamily<'_> {
    type Error = Infallible;

    fn parent(&mut self) -> Result<Option<Row>, Infallible> {
        Ok(self.tables.row(self.parent).cloned())
    }

    fn tally(&mut self) -> Result<Tally, Infallible> {
        let mut tally = Tally::default();
        for row in self.rows() {
            tally.add(row.job.phase, row.job.ending.as_ref().map(|ending| ending.verdict), row.delayed, 1);
        }
        Ok(tally)
    }

    fn open(&mut self) -> Result<Vec<JobId>, Infallible> {
        Ok(self.rows().filter(|row| row.job.phase != Phase::Ended).map(|row| row.job.id).collect())
    }

    fn held(&mut self, most: u32) -> Result<Vec<JobId>, Infallible> {
        let held = self.rows().filter(|row| row.job.phase == Phase::Queued && row.delayed == Some(family::HELD));
        Ok(held.take(most as usize).map(|row| row.job.id).collect())
    }

    fn failed(&mut self, most: usize) -> Result<Vec<HostFailure>, Infallible> {
        let failure = |row: &Row| {
            let verdict = row.job.ending.as_ref()?.verdict;
            let host = row.job.spec.host().unwrap_or_default().to_owned();
            (verdict != Verdict::Succeeded).then_some(HostFailure { host, job: row.job.id, verdict })
        };
        Ok(self.rows().filter_map(failure).take(most).collect())
    }

    fn change<T>(&mut self, id: JobId, change: impl FnOnce(&mut Row) -> T) -> Result<Option<T>, Infallible> {
        Ok(self.tables.change(id, change))
    }
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one with limits on groups of jobs.
    pub fn with_groups(groups: Groups) -> Self {
        Self(Arc::new(Mutex::new(Tables { groups, ..Tables::default() })))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    async fn submit(&self, job: NewJob, max_queued: u64) -> Result<Submitted, StoreError> {
        let mut tables = self.tables();
        let key = job.own_key();
        if let Some(seq) = key.as_ref().and_then(|key| tables.by_key.get(key)) {
            let there = &tables.rows[seq].job;
            let same = there.spec == job.spec;
            return Ok(if same { Submitted::Existing(there.clone()) } else { Submitted::KeyConflict(there.id) });
        }
        let queued = tables.all_queued();
        if queued + job.family.queued() > max_queued {
            return Ok(Submitted::QueueFull { queued });
        }
        if let Some(full) = job.beyond_quota(tables.held(job.submitter.as_ref())) {
            return Ok(full);
        }
        Ok(Submitted::Created(tables.create(job)))
    }

    async fn submit_all(&self, jobs: Vec<NewJob>, max_queued: u64, partial: bool) -> Result<Batch, StoreError> {
        let mut tables = self.tables();
        let holder = |key: &str| tables.by_key.get(key).map(|seq| tables.rows[seq].job.clone());
        let there = jobs.iter().map(|job| job.own_key().as_deref().and_then(holder)).collect();
        let queued = tables.all_queued();
        let held = tables.held(jobs.first().and_then(|job| job.submitter.as_ref()));
        let room = batch::Room { queued, max_queued, held };
        batch::take_in(jobs, there, room, partial, |job| Ok(tables.create(job)))
    }

    async fn taken_keys(&self, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
        let tables = self.tables();
        Ok(keys.into_iter().filter(|key| tables.by_key.contains_key(key)).collect())
    }

    async fn claim(&self, ask: ClaimAsk) -> Result<Claims, StoreError> {
        let mut tables = self.tables();
        let mut queues: BTreeMap<String, (Shape, Vec<Candidate>)> = BTreeMap::new();
        for (shape, candidate) in tables.waiting() {
            queues.entry(shape.name()).or_insert((shape, Vec::new())).1.push(candidate);
        }
        let mut queues: Vec<_> = queues.into_values().collect();
        queues.sort_by_key(|(_, jobs)| jobs[0].order());
        let (running, groups) = (tables.running(), tables.groups.clone());
        let mut glance = Glance::new(Asker::from(&ask), &groups);
        queues.retain(|(shape, _)| glance.at(shape, || Ok::<_, Infallible>(&running)) == Ok(Look::Take));
        let choice = routing::choose(queues, Asker::from(&ask), &running, &groups);
        let reserves = choice.reserves.map(|seq| tables.rows[&seq].job.id);
        let mut claims = Vec::new();
        for seq in choice.jobs {
            let id = tables.rows[&seq].job.id;
            tables.last_token += 1;
            let token = LeaseToken(tables.last_token);
            claims.extend(tables.change(id, |row| row.claim(&ask.agent, token, ask.lease, ask.now)));
        }
        Ok(Claims { claims, held_back: choice.held_back || glance.held_back, reserves })
    }

    async fn place(&self, id: JobId) -> Result<Option<Place>, StoreError> {
        let tables = self.tables();
        let Some(row) = tables.by_id.get(&id).map(|seq| &tables.rows[seq]) else { return Ok(None) };
        if row.job.phase != Phase::Queued {
            return Ok(None);
        }
        let (shape, seq) = (Shape::of(&row.job.spec, &tables.groups), tables.by_id[&id]);
        let order = (Reverse(row.job.spec.priority()), seq);
        let before = tables.waiting().take_while(|(_, one)| one.order() < order);
        let ahead = before.filter(|(other, _)| *other == shape).count();
        let groups = tables.groups.clone();
        Ok(Some(Place { ahead: ahead as u64, shape, running: tables.running(), groups }))
    }

    async fn renew(
        &self,
        agent: &str,
        leases: &[(AttemptId, LeaseToken)],
        lease: Millis,
        now: UnixMillis,
    ) -> Result<Vec<Renewal>, StoreError> {
        let mut tables = self.tables();
        let one = |held: &(AttemptId, LeaseToken)| {
            tables.change(held.0.job, |row| row.renew(agent, *held, lease, now)).unwrap_or(Renewal::Refused)
        };
        Ok(leases.iter().map(one).collect())
    }

    async fn advance(
        &self,
        agent: &str,
        lease: (AttemptId, LeaseToken),
        phase: Phase,
        at: UnixMillis,
        reason: &str,
    ) -> Result<Applied, StoreError> {
        let applied = self.tables().change(lease.0.job, |row| row.advance(agent, lease, phase, at, reason));
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
        let change = |row: &mut Row| row.complete(agent, report, token, now, max_attempts);
        let completion = self.tables().change(report.attempt.job, change);
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
        let applied = self.tables().change(lease.0.job, |row| row.release(agent, lease, now, reason, later));
        Ok(applied.unwrap_or(Applied::Refused))
    }

    async fn lookup(&self, agent: &str, attempts: &[(AttemptId, LeaseToken)]) -> Result<Vec<Standing>, StoreError> {
        let tables = self.tables();
        let one = |(attempt, token): &(AttemptId, LeaseToken)| {
            let row = tables.by_id.get(&attempt.job).and_then(|seq| tables.rows.get(seq));
            row.map_or(Standing::Unknown, |row| row.standing(agent, *attempt, *token))
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

    async fn replay(
        &self,
        dead: &[(JobId, JobId)],
        max_queued: u64,
        now: UnixMillis,
    ) -> Result<Vec<Replay>, StoreError> {
        let mut tables = self.tables();
        let one = |(id, by): &(JobId, JobId)| {
            let room = tables.all_queued() < max_queued;
            match tables.change(*id, |row| row.replay(*by, now, room)) {
                Some(Ok(new)) => Replay::Replayed(Box::new(tables.create(new))),
                Some(Err(answer)) => answer,
                None => Replay::Unknown,
            }
        };
        Ok(dead.iter().map(one).collect())
    }

    async fn expire(&self, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        let mut tables = self.tables();
        let now = if mutant!(EarlyHandOut) { now.plus(Millis::from_secs(4)) } else { now };
        let over = tables.rows.values().filter(|row| row.lease.is_some_and(|lease| lease.until <= now));
        let held: Vec<JobId> = over.take(EXPIRE_BATCH as usize).map(|row| row.job.id).collect();
        Ok(held.into_iter().filter_map(|id| tables.change(id, |row| row.expire(now, max_attempts)).flatten()).collect())
    }

    async fn end_stuck(&self, now: UnixMillis, after: Millis, max_attempts: u32) -> Result<Vec<Stuck>, StoreError> {
        let mut tables = self.tables();
        let held: Vec<JobId> = tables.rows.values().filter(|row| row.lease.is_some()).map(|row| row.job.id).collect();
        let look = |id| tables.change(id, |row| row.stuck(now, after, max_attempts)).flatten();
        Ok(held.into_iter().filter_map(look).collect())
    }

    async fn take_from(&self, agent: &str, now: UnixMillis, max_attempts: u32) -> Result<Vec<Expired>, StoreError> {
        let mut tables = self.tables();
        let held: Vec<JobId> = tables.rows.values().filter(|row| row.lease.is_some()).map(|row| row.job.id).collect();
        let take = |id| tables.change(id, |row| row.take_from(agent, now, max_attempts)).flatten();
        Ok(held.into_iter().filter_map(take).take(EXPIRE_BATCH as usize).collect())
    }

    async fn ready(&self, now: UnixMillis) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let due = tables.delayed.iter().take_while(|(at, _)| *at <= now).take(READY_BATCH as usize);
        let due: Vec<JobId> = due.map(|(_, seq)| tables.rows[seq].job.id).collect();
        for id in &due {
            tables.change(*id, Row::ready);
        }
        Ok(due.len() as u64)
    }

    async fn extend(&self, lease: Millis, now: UnixMillis) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let held = tables.rows.values_mut().filter(|row| row.lease.is_some());
        Ok(held.map(|row| row.extend(lease, now)).count() as u64)
    }

    async fn settle(&self, parent: JobId, again: bool, now: UnixMillis) -> Result<Settled, StoreError> {
        let mut tables = self.tables();
        match family::settle(&mut OneFamily { tables: &mut tables, parent }, again, now) {
            Ok(settled) => Ok(settled),
        }
    }

    async fn children(&self, parent: JobId) -> Result<Option<Children>, StoreError> {
        let mut tables = self.tables();
        let is_one = tables.row(parent).is_some_and(|row| row.job.spec.fan_out().is_some());
        match (OneFamily { tables: &mut tables, parent }).tally() {
            Ok(tally) => Ok(is_one.then(|| tally.shown())),
        }
    }

    async fn open_families(&self) -> Result<Vec<(JobId, Option<JobId>)>, StoreError> {
        let tables = self.tables();
        let open = |job: &JobId| tables.row(*job).is_some_and(|row| row.job.phase != Phase::Ended);
        let of = |(parent, children): (&JobId, &Vec<JobId>)| {
            let all: Vec<_> =
                children.iter().filter(|child| open(child)).map(|child| (*parent, Some(*child))).collect();
            if all.is_empty() { vec![(*parent, None)] } else { all }
        };
        Ok(tables.children.iter().filter(|(parent, _)| open(parent)).flat_map(of).collect())
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

    async fn oldest_ended(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        Ok(self.tables().old(after, limit, |_, row| row.job.parent.is_none()))
    }

    async fn oldest_outputs(&self, after: Option<OldPlace>, limit: u32) -> Result<Vec<Old>, StoreError> {
        Ok(self.tables().old(after, limit, |tables, row| row.output_bytes().is_some() && !tables.parent_goes_on(row)))
    }

    async fn output_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.tables().rows.values().filter_map(Row::output_bytes).sum())
    }

    async fn output_gone(&self, ids: &[JobId], at: UnixMillis) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let new = |id: &&JobId| tables.change(**id, |row| row.output_gone(at)).unwrap_or(false);
        Ok(ids.iter().filter(new).count() as u64)
    }

    async fn remove(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let mut tables = self.tables();
        Ok(ids.iter().take(REMOVE_BATCH).copied().filter(|id| tables.remove(*id)).collect())
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for row in self.tables().rows.values() {
            *counts.of(row.job.phase) += 1;
            counts.dead_letters += u64::from(row.job.dead_letter);
        }
        Ok(counts)
    }

    async fn daily(&self, from: u64) -> Result<Vec<Day>, StoreError> {
        Ok(self.tables().days.from(from))
    }

    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError> {
        let tables = self.tables();
        let leases = tables.rows.values().filter_map(|row| row.lease.map(|lease| lease.until));
        Ok(leases.chain(tables.delayed.first().map(|(at, _)| *at)).min())
    }
}
