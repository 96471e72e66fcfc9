//! Agents that wait for work, in the order they came. Each submit wakes the first one that it suits and that was not woken yet.

use crate::job::{ByteSize, Capacity, Cpus, JobId, JobSpec, Resources};
use crate::queue::{Peer, Profile, suits};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

type Row = VecDeque<Arc<Waiter>>;

/// The row.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Row>);

#[derive(Debug)]
struct Waiter {
    agent: String,
    /// `None`: nobody knows what it can do, so everything may suit it.
    profile: Option<Profile>,
    /// What it has free: what it said, and what has ended there since.
    free: Mutex<Capacity>,
    /// The job that it keeps its room for.
    reserves: Mutex<Option<JobId>>,
    woken: AtomicBool,
    /// Nobody knows whether its agent still waits.
    doubted: AtomicBool,
    /// It gets nothing more, and is to come back.
    dismissed: AtomicBool,
    notify: Notify,
}

impl Waiter {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn reserves(&self) -> MutexGuard<'_, Option<JobId>> {
        self.reserves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self) -> MutexGuard<'_, Capacity> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the row; left when it is dropped.
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    waiter: Arc<Waiter>,
    /// The last wake has not been passed on.
    was_woken: AtomicBool,
}

impl Waiting {
    fn row(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end.
    pub(super) fn enter(&self, agent: &str, profile: Option<Profile>, free: Capacity) -> Place<'_> {
        let (reserves, woken, notify) = (Mutex::default(), AtomicBool::new(false), Notify::new());
        let (doubted, dismissed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (agent, free) = (agent.to_owned(), Mutex::new(free));
        let waiter = Arc::new(Waiter { agent, profile, free, reserves, woken, doubted, dismissed, notify });
        self.row().push_back(Arc::clone(&waiter));
        Place { waiting: self, waiter, was_woken: AtomicBool::new(false) }
    }

    /// There is this job: the first whom it suits and who has not heard of another one yet looks. When all have, one of them
    /// will take it, or pass it on.
    pub(super) fn wake_for(&self, spec: &JobSpec) {
        let suits = |waiter: &&Arc<Waiter>| waiter.profile.as_ref().is_none_or(|profile| suits(spec, profile));
        let row = self.row();
        let asleep = || row.iter().filter(|waiter| !waiter.woken.load(Ordering::Acquire)).filter(suits);
        let mut sure = asleep().filter(|waiter| !waiter.doubted.load(Ordering::Acquire));
        if let Some(waiter) = sure.next().or_else(|| asleep().next()) {
            waiter.wake();
        }
    }

    /// There may be work for anybody.
    pub(super) fn wake_all(&self) {
        self.row().iter().for_each(|waiter| waiter.wake());
    }

    /// One that was woken has found nothing for it: the next one behind it looks. Ends with the row, so nobody is asked twice.
    pub(super) fn pass_on(&self, place: &Place<'_>) {
        if !place.was_woken.swap(false, Ordering::AcqRel) {
            return;
        }
        let row = self.row();
        let mut behind = row.iter().skip_while(|waiter| !Arc::ptr_eq(waiter, &place.waiter)).skip(1);
        if let Some(waiter) = behind.find(|waiter| !waiter.woken.load(Ordering::Acquire)) {
            waiter.wake();
        }
    }

    /// These jobs are not in the queue any more: whoever kept room for one of them looks again.
    pub(super) fn left(&self, jobs: &[JobId]) {
        let kept = |waiter: &&Arc<Waiter>| waiter.reserves().is_some_and(|job| jobs.contains(&job));
        self.row().iter().filter(kept).for_each(|waiter| waiter.wake());
    }

    /// This agent is drained: what waits for it gets nothing, and comes back.
    pub(super) fn dismiss(&self, agent: &str) {
        for waiter in self.row().iter().filter(|waiter| waiter.agent == agent) {
            waiter.dismissed.store(true, Ordering::Release);
            waiter.wake();
        }
    }

    /// This agent has lost a lease, so it may be frozen, and its claim waits on for nobody: from now on others look first.
    pub(super) fn doubt(&self, agent: &str) {
        for waiter in self.row().iter().filter(|waiter| waiter.agent == agent) {
            waiter.doubted.store(true, Ordering::Release);
        }
    }

    /// Something has ended at this agent: a claim of its that waits has more room than it said.
    pub(super) fn freed(&self, agent: &str, resources: Resources) {
        for waiter in self.row().iter().filter(|waiter| waiter.agent == agent) {
            let mut free = waiter.free();
            free.cpu = Cpus::from_milli(free.cpu.as_milli().saturating_add(resources.cpu.as_milli()));
            let cell = free.beside.with(resources.memory, resources.disk);
            free.memory = ByteSize::new(free.memory.as_u64().saturating_add(cell.as_u64()));
        }
    }
}

impl Place<'_> {
    /// What the agent has free.
    pub(super) fn free(&self) -> Capacity {
        *self.waiter.free()
    }

    /// Others that wait, as far as it is known what they can do.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let row = self.waiting.row();
        // One that is dismissed gets nothing, so nothing is left to it.
        let waits = |waiter: &&Arc<Waiter>| !waiter.dismissed.load(Ordering::Acquire);
        let others = row.iter().filter(|waiter| waiter.agent != self.waiter.agent).filter(waits);
        let peer = |waiter: &Arc<Waiter>| {
            let profile = waiter.profile.clone()?;
            Some(Peer { agent: waiter.agent.clone(), profile, free: *waiter.free() })
        };
        others.filter_map(peer).collect()
    }

    /// It has looked, and keeps its room for this job. Whoever kept theirs for it may let go: they look again.
    pub(super) fn reserves(&self, job: Option<JobId>) {
        *self.waiter.reserves() = job;
        let row = self.waiting.row();
        let others = row.iter().filter(|waiter| waiter.agent != self.waiter.agent);
        others.filter(|waiter| job.is_some() && *waiter.reserves() == job).for_each(|waiter| waiter.wake());
    }

    /// It gets nothing more.
    pub(super) fn dismissed(&self) -> bool {
        self.waiter.dismissed.load(Ordering::Acquire)
    }

    /// Others wait too, and look first.
    pub(super) fn looks_last(&self) -> bool {
        self.waiter.doubted.load(Ordering::Acquire) && self.row_length() > 1
    }

    /// How many wait, this one included.
    pub(super) fn row_length(&self) -> usize {
        self.waiting.row().len()
    }

    /// Returns when there may be work.
    pub(super) async fn woken(&self) {
        self.waiter.notify.notified().await;
        // From here on a new submit wakes it again: it is about to look.
        self.waiter.woken.store(false, Ordering::Release);
        self.was_woken.store(true, Ordering::Release);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut row = self.waiting.row();
        row.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        drop(row);
        // Woken, and gone without having looked: somebody else must.
        if self.waiter.woken.load(Ordering::Acquire) {
            self.waiting.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;
    use futures_util::FutureExt;
    use serde_json::json;

    fn spec(zone: &str) -> JobSpec {
        let document = json!({"image": "x", "command": ["x"], "requires": {"labels": {"zone": zone}}});
        JobSpec::check(&document, &SpecRules::default()).expect("valid")
    }

    fn profile(zone: &str) -> Option<Profile> {
        let capacity =
            Capacity { slots: 1, cpu: Cpus::from_milli(9000), memory: ByteSize::from_mib(9000), ..Capacity::default() };
        Some(Profile {
            away: Vec::new(),
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            presets: Vec::new(),
            executors: Vec::new(),
            capacity,
        })
    }

    #[test]
    fn each_submit_wakes_another_one_whom_it_suits_and_no_wake_is_lost() {
        let waiting = Waiting::default();
        let enter = |zone| waiting.enter("a", profile(zone), Capacity::default());
        let (other, first, second) = (enter("us"), enter("eu"), enter("eu"));
        waiting.wake_for(&spec("eu"));
        assert!(second.woken().now_or_never().is_none());
        waiting.wake_for(&spec("eu"));
        assert!(first.woken().now_or_never().is_some() && second.woken().now_or_never().is_some());
        assert!(other.woken().now_or_never().is_none(), "it does not suit this one");
        waiting.wake_for(&spec("eu"));
        // It leaves without having looked: somebody else must.
        drop(first);
        assert!(second.woken().now_or_never().is_some());
        assert_eq!(second.row_length(), 2);
        waiting.freed("a", Resources::default());
        assert_eq!(second.free().memory, Resources::default().memory);
        let beside = waiting.enter("c", profile("eu"), Capacity::default());
        assert_eq!(beside.peers().len(), 2);
        waiting.dismiss("b");
        assert!(!second.dismissed());
        waiting.dismiss("a");
        assert!(second.dismissed() && second.woken().now_or_never().is_some());
        assert!(beside.peers().is_empty(), "those that are dismissed count for nobody");
        drop(beside);
        waiting.doubt("b");
        assert!(!second.looks_last());
        waiting.doubt("a");
        assert!(second.looks_last());
        drop(other);
        assert!(!second.looks_last(), "nobody else is there");
    }

    #[test]
    fn one_that_finds_nothing_passes_its_wake_on_once() {
        let waiting = Waiting::default();
        let enter = || waiting.enter("a", profile("eu"), Capacity::default());
        let (full, roomy) = (enter(), enter());
        waiting.wake_for(&spec("eu"));
        assert!(full.woken().now_or_never().is_some() && roomy.woken().now_or_never().is_none());
        waiting.pass_on(&full);
        waiting.pass_on(&full);
        assert!(roomy.woken().now_or_never().is_some() && roomy.woken().now_or_never().is_none());
        // The last in the row asks nobody again.
        waiting.pass_on(&roomy);
        assert!(full.woken().now_or_never().is_none());
    }
}
