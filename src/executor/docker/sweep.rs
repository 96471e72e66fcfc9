//! Removal of what is ours: reads from a container's labels whose it is, and tries again, in the background, to remove every cell
//! whose removal failed the first time.

use super::engine::{Engine, Listed};
use crate::executor::Present;
use crate::job::AttemptId;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Cells that wait for another try. When it is full a further one is left to the next start's sweep, and said so.
const MOST_WAITING: usize = 1024;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(5);

/// What a container with our label is.
pub(super) fn present(found: Listed) -> Present {
    let label = |name: &str| found.labels.get(name).map(String::as_str);
    let attempt = || {
        let attempt: u32 = label("jobcell.attempt")?.parse().ok().filter(|attempt| *attempt > 0)?;
        let part = label("jobcell.part")?.parse().ok()?;
        Some(AttemptId { job: label("jobcell.job")?.parse().ok()?, attempt, part })
    };
    Present { attempt: attempt(), name: found.name, running: found.running }
}

/// Tries again, in the background, to remove what could not be removed.
pub(super) struct Removals {
    waiting: mpsc::Sender<String>,
    open: watch::Sender<usize>,
}

impl Removals {
    /// Starts the background task, which ends with `stop`.
    pub(super) fn spawn(engine: Engine, stop: CancellationToken) -> Self {
        let (waiting, mut arriving) = mpsc::channel::<String>(MOST_WAITING);
        let (open, _) = watch::channel(0usize);
        let done = open.clone();
        crate::supervise::spawn("cell removals", async move {
            loop {
                let cell = tokio::select! {
                    cell = arriving.recv() => cell,
                    () = stop.cancelled() => None,
                };
                let Some(cell) = cell else { return };
                while let Err(error) = engine.remove(&cell).await {
                    tracing::warn!(%cell, error = %error.short(), "cell still cannot be removed");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = stop.cancelled() => {
                            tracing::error!(%cell, "left behind; the next start removes it");
                            return;
                        }
                    }
                }
                tracing::info!(%cell, "cell removed at last");
                done.send_modify(|open| *open -= 1);
            }
        });
        Self { waiting, open }
    }

    /// Takes over a cell that could not be removed.
    pub(super) fn later(&self, cell: String) {
        self.open.send_modify(|open| *open += 1);
        if let Err(error) = self.waiting.try_send(cell) {
            self.open.send_modify(|open| *open -= 1);
            tracing::error!(cell = %error.into_inner(), "too many cells wait for removal; the next start removes this one");
        }
    }

    /// True when nothing waits any more, within `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_ok_and(|seen| seen.is_ok())
    }
}
