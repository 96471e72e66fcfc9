//! Carries out what is decided about what an earlier process left. Ends are delivered and leases renewed from the first moment; what
//! needs to know the cells waits until whoever runs them answers.

use super::delivery::{Delivery, return_left};
use super::dispatcher::{Held, PROBE_PAUSE, Table};
use super::recovery::{Plan, plan};
use super::runner::lost;
use crate::admission::Ledger;
use crate::executor::{Away, Executor, Present};
use crate::job::Report;
use crate::journal::{Entry, EntryKey, Stage};
use crate::queue::{CONTAINERS, HOSTS};
use crate::supervise;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Cells that are removed at the same time.
const REMOVALS: usize = 4;

/// What waits until it is known which cells there are.
pub(super) struct Unsettled {
    pub(super) entries: Vec<Entry>,
    /// Kinds of cells that are known, and whose entries are settled.
    pub(super) known: BTreeSet<&'static str>,
}

/// The kind of cell that an entry's job has.
pub(super) fn kind(entry: &Entry) -> &'static str {
    if entry.spec.source().is_elsewhere() { HOSTS } else { CONTAINERS }
}

impl<E: Executor> Table<E> {
    /// Reads the journal, begins to deliver what has ended and to hold on to the rest. False when the drain came first.
    pub(super) async fn remember(&mut self, drain: &CancellationToken) -> bool {
        let entries = loop {
            match self.agent.journal.entries().await {
                Ok(entries) => break entries,
                Err(error) => self.obstacles.cells = Some(error.to_string()),
            }
            self.publish(false);
            tokio::select! {
                biased;
                () = tokio::time::sleep(PROBE_PAUSE) => {}
                () = drain.cancelled() => return false,
            }
        };
        let mut unsettled = Vec::new();
        for entry in entries {
            if let Some(index) = self.backend_of(&entry.key) {
                let held = Held::new(entry.token, entry.spec.lost_after(), None).0;
                self.held.insert((index, entry.key.attempt), held);
            }
            match &entry.stage {
                Stage::Ended(_) if mutant!(EndsLeftForgotten) => {}
                Stage::Ended(report) => {
                    let report = Report::clone(report);
                    self.deliver_left(entry, report);
                }
                Stage::Intent | Stage::Committed => unsettled.push(entry),
            }
        }
        self.unsettled = Some(Unsettled { entries: unsettled, known: BTreeSet::new() });
        self.renew_all();
        true
    }

    /// Settles the rest, now that it is known which cells there are; of kinds that are `away` only when that is known too.
    /// False when nothing is known now that was not known before.
    pub(super) fn settle(&mut self, present: Vec<Present>, away: &Away) -> bool {
        let known_of = |kind: &&'static str| !away.contains_key(*kind);
        let known: BTreeSet<_> = [CONTAINERS, HOSTS].into_iter().filter(known_of).collect();
        if self.unsettled.as_ref().is_some_and(|left| !away.is_empty() && left.known == known) {
            return false;
        }
        let entries = self.unsettled.take().map(|unsettled| unsettled.entries).unwrap_or_default();
        let (later, entries) = entries.into_iter().partition(|entry| away.contains_key(kind(entry)));
        if !away.is_empty() {
            self.unsettled = Some(Unsettled { entries: later, known });
        }
        let Plan { adopt, deliver, give_back, lost: gone, remove } = plan(entries, present);
        debug_assert!(deliver.is_empty(), "what has ended is on its way already");
        if !(adopt.is_empty() && give_back.is_empty() && gone.is_empty() && remove.is_empty()) {
            let (adopt, give_back, lost, remove) = (adopt.len(), give_back.len(), gone.len(), remove.len());
            tracing::info!(adopt, give_back, lost, remove, "settling what an earlier run left");
        }
        for (entry, present) in adopt {
            self.adopt(entry, present);
        }
        for entry in give_back {
            self.give_back_left(entry);
        }
        for (entry, reason) in gone {
            if mutant!(LostForgotten) {
                continue;
            }
            self.lose(entry, reason);
        }
        if !remove.is_empty() {
            let executor = Arc::clone(&self.agent.executor);
            self.chores.push(Box::pin(async move {
                let remove = futures_util::stream::iter(remove);
                let one = |cell: Present| {
                    let executor = &executor;
                    async move { executor.remove(&cell.name).await }
                };
                remove.for_each_concurrent(REMOVALS, one).await;
            }));
        }
        // Their runners hear now what the last round said.
        self.renew_all();
        true
    }

    /// The backend of an entry. One that is not in the settings any more cannot be told anything.
    pub(super) fn backend_of(&self, key: &EntryKey) -> Option<usize> {
        let found = self.agent.backends.iter().position(|backend| backend.name() == key.backend);
        if found.is_none() {
            let (backend, attempt) = (&key.backend, key.attempt);
            tracing::error!(%backend, %attempt, "its backend is not in the settings any more; it is kept until it is there again");
        }
        found
    }

    fn adopt(&mut self, entry: Entry, present: Present) {
        let Some(index) = self.backend_of(&entry.key) else {
            let executor = Arc::clone(&self.agent.executor);
            return self.chores.push(Box::pin(async move { executor.remove(&present.name).await }));
        };
        let (held, orders) = Held::new(entry.token, entry.spec.lost_after(), None);
        self.held.insert((index, entry.key.attempt), held);
        let another = Ledger::new(self.ledger.capacity());
        let ledger = if mutant!(AdoptWithoutKeep) { &another } else { &self.ledger };
        let permit = ledger.keep(entry.spec.takes());
        self.start(index, entry, Ok(permit), Some(present), orders);
    }

    fn give_back_left(&mut self, entry: Entry) {
        let Some(index) = self.backend_of(&entry.key) else { return };
        let (backend, journal) = (Arc::clone(&self.agent.backends[index]), Arc::clone(&self.agent.journal));
        let key = (index, entry.key.attempt);
        self.deliveries.spawn(supervise::of_this_process(async move {
            return_left(backend.as_ref(), journal.as_ref(), &entry).await;
            key
        }));
    }

    fn deliver_left(&mut self, entry: Entry, report: Report) {
        let Some(index) = self.backend_of(&entry.key) else { return };
        let key = (index, entry.key.attempt);
        let (backend, journal) = (Arc::clone(&self.agent.backends[index]), Arc::clone(&self.agent.journal));
        let store = self.agent.settings.keep.as_ref().map(|keep| keep.store.clone());
        let delivery = Delivery { backend, journal, entry, report, store, again: true };
        self.deliveries.spawn(supervise::of_this_process(async move {
            delivery.run(None).await;
            key
        }));
    }

    /// Reports an attempt as lost, with what is left of its output.
    fn lose(&mut self, entry: Entry, reason: &'static str) {
        let Some(index) = self.backend_of(&entry.key) else { return };
        let key = (index, entry.key.attempt);
        let (backend, journal) = (Arc::clone(&self.agent.backends[index]), Arc::clone(&self.agent.journal));
        let logs = self.agent.logs.clone();
        self.deliveries.spawn(supervise::of_this_process(async move {
            let report = lost(&entry, reason.to_owned(), &logs).await;
            let entry = Entry { stage: Stage::Ended(Box::new(report.clone())), ..entry };
            if let Err(error) = journal.put(&entry).await {
                let attempt = entry.key.attempt;
                tracing::error!(%error, %attempt, "that it was lost cannot be journaled; it is told all the same");
            }
            Delivery { backend, journal, entry, report, store: None, again: true }.run(None).await;
            key
        }));
    }
}
