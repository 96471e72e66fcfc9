//! Removal of what is ours: reads from labels whose it is, and removes, in the background, every cell and network whose removal failed
//! the first time, and every one of which nobody knows whether it was made.

use super::engine::{Engine, EngineError, Listed};
use super::{create, network};
use crate::executor::Present;
use crate::job::AttemptId;
use futures_util::{StreamExt, stream};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Cells that wait for another try. When it is full a further one is left to the sweeper, and said so.
const MOST_WAITING: usize = 1024;
/// Removals under way at the same time.
const AT_ONCE: usize = 8;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(5);

/// What a container with our label is.
pub(super) fn present(found: Listed, busy: bool) -> Present {
    let image = create::image_of(&found.labels);
    Present { attempt: attempt(&found.labels), name: found.name, cell: true, running: found.running, busy, image }
}

/// Whose cell a container is; `None` for what was made beside cells.
pub(super) fn attempt(labels: &HashMap<String, String>) -> Option<AttemptId> {
    let label = |name: &str| labels.get(name).map(String::as_str);
    let attempt: u32 = label("jobcell.attempt")?.parse().ok().filter(|attempt| *attempt > 0)?;
    let part = label("jobcell.part")?.parse().ok()?;
    Some(AttemptId { job: label("jobcell.job")?.parse().ok()?, attempt, part })
}

/// Removes, in the background, what could not be removed at once.
pub(super) struct Removals {
    waiting: mpsc::Sender<Removal>,
    /// What waits or is being removed, by name.
    open: watch::Sender<BTreeSet<String>>,
}

struct Removal {
    cell: String,
    /// Its making was not answered: it may be made yet.
    unsure: bool,
}

impl Removals {
    /// Starts the background task, which ends with `stop`.
    pub(super) fn spawn(engine: Engine, stop: CancellationToken) -> Self {
        let (waiting, arriving) = mpsc::channel::<Removal>(MOST_WAITING);
        let (open, _) = watch::channel(BTreeSet::new());
        let done = open.clone();
        crate::supervise::spawn("cell removals", async move {
            let arriving = stream::unfold(arriving, |mut arriving| async {
                let removal = arriving.recv().await?;
                Some((removal, arriving))
            });
            let each = arriving.for_each_concurrent(AT_ONCE, |Removal { cell, unsure }| {
                let (engine, stop, done) = (&engine, &stop, &done);
                async move {
                    tokio::select! {
                        () = remove(engine, &cell, unsure) => {
                            tracing::info!(%cell, "cell removed at last");
                            done.send_if_modified(|open| open.remove(&cell));
                        }
                        () = stop.cancelled() => tracing::error!(%cell, "left behind; the next start removes it"),
                    }
                }
            });
            tokio::select! {
                () = each => {}
                () = stop.cancelled() => {}
            }
        });
        Self { waiting, open }
    }

    /// Takes over a cell that could not be removed.
    pub(super) fn later(&self, cell: String) {
        self.take(Removal { cell, unsure: false });
    }

    /// Takes over a cell that may be made yet: an engine that did not answer in time may do what it was asked for all the same.
    pub(super) fn unsure(&self, cell: String) {
        self.take(Removal { cell, unsure: true });
    }

    fn take(&self, removal: Removal) {
        // One that is there is removed as soon as it can be; nobody has to ask twice.
        if !self.open.send_if_modified(|open| open.insert(removal.cell.clone())) {
            return;
        }
        if let Err(error) = self.waiting.try_send(removal) {
            let cell = error.into_inner().cell;
            self.open.send_if_modified(|open| open.remove(&cell));
            tracing::error!(cell, "too many cells wait for removal; the sweeper, or the next start, removes this one");
        }
    }

    /// Whether this cell waits to be removed, or is being removed.
    pub(super) fn has(&self, cell: &str) -> bool {
        self.open.borrow().contains(cell)
    }

    /// True when nothing waits any more, within `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        tokio::time::timeout(limit, open.wait_for(BTreeSet::is_empty)).await.is_ok_and(|seen| seen.is_ok())
    }
}

/// Until the engine says that it is not there. Of one that may be made yet it has to say so twice: an engine that wakes up does what it
/// was asked for in any order.
async fn remove(engine: &Engine, cell: &str, unsure: bool) {
    for last in [!unsure, true] {
        if unsure {
            tokio::time::sleep(PAUSE).await;
        }
        while let Err(error) = remove_once(engine, cell).await {
            tracing::warn!(%cell, error = %error.short(), "cell still cannot be removed");
            tokio::time::sleep(PAUSE).await;
        }
        if last {
            return;
        }
    }
}

/// A cell or a network, by its name.
pub(super) async fn remove_once(engine: &Engine, name: &str) -> Result<(), EngineError> {
    if network::cell(name).is_some() { engine.remove_network(name).await } else { engine.remove(name).await }
}
