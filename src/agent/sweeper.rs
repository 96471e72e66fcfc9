//! Looks, from time to time, for cells of this installation that nobody wants, and removes them. `strays` decides which these are.
//!
//! There should be none: whoever makes a cell removes it. This is for what was left all the same: a removal that had to be given up,
//! a cell that its engine made long after it was asked to, one that a person gave our label. Never while what an earlier process
//! left is not settled, and never when the agent ends: then it is the next start that looks.

use super::dispatcher::Table;
use super::strays::Strays;
use crate::executor::{Executor, Present};
use crate::job::AttemptId;
use crate::journal::Stage;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Cells that are removed at the same time.
const REMOVALS: usize = 4;

/// When it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepTimes {
    /// So long after what an earlier process left is settled.
    pub first: Duration,
    /// So long after each look.
    pub every: Duration,
}

impl Default for SweepTimes {
    /// After a minute, and then every ten.
    fn default() -> Self {
        Self { first: Duration::from_secs(60), every: Duration::from_secs(600) }
    }
}

/// What a look has found: cells, and attempts whose cells the journal wants.
pub(super) type Found = Result<(Vec<Present>, BTreeSet<AttemptId>), String>;

/// What is under way of it.
#[derive(Default)]
pub(super) struct Sweeper {
    strays: Strays,
    /// At most one: a look, or the removals that it led to, which find nothing.
    working: FuturesUnordered<BoxFuture<'static, Option<Found>>>,
    /// Nothing before everything is settled.
    next: Option<Instant>,
}

impl Sweeper {
    /// The next look.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.working.is_empty())
    }

    /// The next thing that is done; `None` when nothing is under way.
    pub(super) async fn done(&mut self) -> Option<Option<Found>> {
        self.working.next().await
    }

    pub(super) fn in_a(&mut self, while_: Duration) {
        self.next = Instant::now().checked_add(while_);
    }
}

impl<E: Executor> Table<E> {
    /// Begins a look.
    pub(super) fn look_for_strays(&mut self) {
        let (executor, journal) = (Arc::clone(&self.agent.executor), Arc::clone(&self.agent.journal));
        self.sweeper.in_a(self.agent.settings.sweep.every);
        self.sweeper.working.push(Box::pin(async move {
            // The cells first: whatever is made later is not among them.
            let look = async {
                let present = executor.present().await?;
                let entries = journal.entries().await.map_err(|error| error.to_string())?;
                let open = entries.into_iter().filter(|entry| !matches!(entry.stage, Stage::Ended(_)));
                Ok((present, open.map(|entry| entry.key.attempt).collect()))
            };
            Some(look.await)
        }));
    }

    /// Takes in what a look has found, and begins to remove what is to go.
    pub(super) fn strays_found(&mut self, found: Found) {
        let (present, mut wanted) = match found {
            Ok(found) => found,
            // Whoever runs the cells is looked after elsewhere; the next look is as good.
            Err(reason) => return tracing::warn!(%reason, "no look for strays now"),
        };
        wanted.extend(self.attempts());
        let remove = self.sweeper.strays.seen(present, &wanted);
        if remove.is_empty() {
            return;
        }
        for Present { name, attempt, running, .. } in &remove {
            let attempt = attempt.map(|attempt| attempt.to_string());
            tracing::warn!(cell = %name, attempt, running, "a cell of ours that nobody wants is removed");
            self.agent.metrics.swept_total.inc();
        }
        let executor = Arc::clone(&self.agent.executor);
        self.sweeper.working.push(Box::pin(async move {
            let remove = futures_util::stream::iter(remove);
            let one = |cell: Present| {
                let executor = &executor;
                async move { executor.remove(&cell.name).await }
            };
            remove.for_each_concurrent(REMOVALS, one).await;
            None
        }));
    }
}
