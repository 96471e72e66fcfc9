//! Carries out what is decided about what an earlier process left.

use super::delivery::{Delivery, return_left};
use super::dispatcher::{Agent, Held, ORDERS_PER_RUNNER, PROBE_PAUSE, Table};
use super::recovery::{Plan, plan};
use super::renewals::lease;
use super::runner::lost;
use crate::admission::Ledger;
use crate::executor::{Executor, Present};
use crate::job::Report;
use crate::journal::{Entry, EntryKey, Stage};
use crate::supervise;
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Cells that are removed at the same time.
const REMOVALS: usize = 4;

impl<E: Executor> Agent<E> {
    /// What an earlier process left.
    async fn left(&self) -> Result<(Vec<Entry>, Vec<Present>), String> {
        let entries = self.journal.entries().await.map_err(|error| error.to_string())?;
        Ok((entries, self.executor.present().await?))
    }
}

impl<E: Executor> Table<E> {
    /// Settles it, and says whether that could be begun before the drain.
    pub(super) async fn recover(&mut self, drain: &CancellationToken) -> bool {
        let (entries, present) = loop {
            match self.agent.left().await {
                Ok(left) => break left,
                Err(reason) => self.agent.set_unavailable(Some(reason)),
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(PROBE_PAUSE) => {}
                () = drain.cancelled() => return false,
            }
        };
        let Plan { adopt, deliver, give_back, lost: gone, remove } = plan(entries, present);
        if !(adopt.is_empty() && deliver.is_empty() && give_back.is_empty() && gone.is_empty() && remove.is_empty()) {
            let (adopt, deliver, give_back) = (adopt.len(), deliver.len(), give_back.len());
            let (lost, remove) = (gone.len(), remove.len());
            tracing::info!(adopt, deliver, give_back, lost, remove, "settling what an earlier run left");
        }
        let executor = Arc::clone(&self.agent.executor);
        self.chores.push(Box::pin(async move {
            let remove = futures_util::stream::iter(remove);
            remove
                .for_each_concurrent(REMOVALS, |cell| {
                    let executor = &executor;
                    async move { executor.remove(&cell.name).await }
                })
                .await;
        }));
        for entry in give_back {
            self.give_back_left(entry);
        }
        for (entry, reason) in gone {
            let mut report = lost(&entry, reason.to_owned());
            let (logs, attempt) = (self.agent.logs.clone(), entry.key.attempt);
            if !mutant!(LostWithoutLog) {
                report.log = supervise::blocking(move || logs.left(attempt)).await;
            }
            let entry = Entry { stage: Stage::Ended(Box::new(report.clone())), ..entry };
            if let Err(error) = self.agent.journal.put(&entry).await {
                tracing::error!(%error, attempt = %entry.key.attempt, "that it was lost cannot be journaled; it is told all the same");
            }
            self.deliver_left(entry, report);
        }
        for entry in deliver {
            if let Stage::Ended(report) = &entry.stage {
                let report = Report::clone(report);
                self.deliver_left(entry, report);
            }
        }
        for (entry, present) in adopt {
            self.adopt(entry, present);
        }
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
        let lease = lease(self.agent.backends[index].as_ref(), &entry.spec);
        self.held.insert(key, Held { token: entry.token, lease, orders: mpsc::channel(1).0 });
        let (backend, journal) = (Arc::clone(&self.agent.backends[index]), Arc::clone(&self.agent.journal));
        let delivery = Delivery { backend, journal, entry, report, again: true };
        self.deliveries.spawn(supervise::of_this_process(async move {
            delivery.run().await;
            key
        }));
    }

    fn adopt(&mut self, entry: Entry, present: Present) {
        let Some(index) = self.backend_of(&entry.key) else {
            let executor = Arc::clone(&self.agent.executor);
            return self.chores.push(Box::pin(async move { executor.remove(&present.name).await }));
        };
        let (sender, orders) = mpsc::channel(ORDERS_PER_RUNNER);
        let lease = lease(self.agent.backends[index].as_ref(), &entry.spec);
        self.held.insert((index, entry.key.attempt), Held { token: entry.token, lease, orders: sender });
        let another = Ledger::new(self.ledger.capacity());
        let ledger = if mutant!(AdoptWithoutKeep) { &another } else { &self.ledger };
        let permit = ledger.keep(entry.spec.resources());
        self.start(index, entry, Ok(permit), (Some(present), None), orders);
    }
}
