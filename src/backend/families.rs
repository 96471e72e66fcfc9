//! Jobs for several hosts: when one of a family has ended, what follows on it is done, and whoever waits for it hears of it.
//!
//! Which job belongs to whom is kept in memory, so that the end of a job that belongs to nobody costs nothing. It is read from the store at
//! the start, and everything that may have been left undone is looked at again then.

use super::Embedded;
use crate::job::{JobId, JobSpec, UnixMillis};
use crate::queue::{Family, NewJob, Settled, Store, StoreError, first_children};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Who belongs to whom, as long as the parent has not ended.
#[derive(Debug, Default)]
pub(super) struct Families {
    known: Mutex<Known>,
    /// One is to be looked at.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    parent_of: HashMap<JobId, JobId>,
    /// Those that have not ended, so this is no larger than what the queue and its agents have.
    children_of: HashMap<JobId, HashSet<JobId>>,
    /// Parents that are to be looked at.
    due: HashSet<JobId>,
}

impl Families {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, parent: JobId, children: HashSet<JobId>) {
        let mut known = self.known();
        known.parent_of.extend(children.iter().map(|child| (*child, parent)));
        known.children_of.insert(parent, children);
    }

    pub(super) fn forget(&self, parent: JobId) {
        let mut known = self.known();
        known.due.remove(&parent);
        for child in known.children_of.remove(&parent).unwrap_or_default() {
            known.parent_of.remove(&child);
        }
    }

    /// A job has ended.
    pub(super) fn ended(&self, job: JobId) {
        let mut known = self.known();
        if let Some(parent) = known.parent_of.remove(&job) {
            known.children_of.entry(parent).or_default().remove(&job);
            known.due.insert(parent);
            drop(known);
            self.changed.notify_one();
        }
    }

    fn due(&self) -> HashSet<JobId> {
        std::mem::take(&mut self.known().due)
    }

    fn due_again(&self, parents: impl IntoIterator<Item = JobId>) {
        self.known().due.extend(parents);
    }
}

impl Embedded {
    /// A job with the jobs for its hosts, if it is for several.
    pub(super) fn with_family(&self, mut new: NewJob) -> NewJob {
        let Some(fan_out) = new.spec.fan_out() else { return new };
        let first = first_children(fan_out.at_once);
        let child = |(place, spec): (usize, JobSpec)| {
            let family = Family::Child { parent: new.id, held: place >= first };
            let spec = match self.seen_from(new.id, new.spec.trace()) {
                None => spec,
                context => spec.traced(context),
            };
            let child = self.new_job(spec, new.at, None, new.submitter.clone());
            NewJob { family, ..child }
        };
        let children = new.spec.parts().enumerate().map(child).collect();
        new.family = Family::Parent(children);
        // Whoever runs has them; the parent does not run.
        new.spec.forget_secrets();
        new
    }

    /// Those of a new job that run: itself, or the jobs for its hosts.
    pub(super) fn that_run(new: &NewJob) -> Vec<(JobId, JobSpec)> {
        match &new.family {
            Family::Parent(children) => children.iter().map(|child| (child.id, child.spec.clone())).collect(),
            Family::Alone | Family::Child { .. } => vec![(new.id, new.spec.clone())],
        }
    }

    /// From now on it is known who belongs to whom: before one of them can end.
    pub(super) fn family_comes(&self, new: &NewJob) {
        if let Family::Parent(children) = &new.family {
            self.families.enter(new.id, children.iter().map(|child| child.id).collect());
        }
    }

    /// Learns of all families, and has each looked at. Errors: the store cannot be read.
    pub(super) async fn learn_families(&self) -> Result<(), StoreError> {
        let mut families: HashMap<JobId, HashSet<JobId>> = HashMap::new();
        for (parent, child) in self.store.open_families().await? {
            families.entry(parent).or_default().extend(child);
        }
        for (parent, children) in families {
            self.families.enter(parent, children);
            self.families.due_again([parent]);
        }
        Ok(())
    }

    /// Looks at all families in which something has changed; true when that is done.
    pub(super) async fn settle_families(&self) -> bool {
        let mut due: Vec<JobId> = self.families.due().into_iter().collect();
        while let Some(parent) = due.pop() {
            if let Err(error) = self.settle(parent, None).await {
                tracing::error!(%error, %parent, "what follows on the end of a job for one of several hosts could not be done");
                self.families.due_again(due.into_iter().chain([parent]));
                return false;
            }
        }
        true
    }

    /// Does what follows on what has happened in a family. `stop`: its end was asked for, with or without a grace.
    pub(super) async fn settle(&self, parent: JobId, stop: Option<bool>) -> Result<(), StoreError> {
        let Settled { let_go, canceled, ended } =
            self.store.settle(parent, stop == Some(true), UnixMillis::now()).await?;
        for (child, mark) in canceled {
            self.canceled(child, &mark, stop == Some(true));
        }
        if let_go > 0 {
            self.waiting.wake_all();
        }
        if ended.is_some() {
            self.families.forget(parent);
            self.changed(parent, true);
        }
        Ok(())
    }
}
