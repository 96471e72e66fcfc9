//! An executor for tests: its cells are tasks in this process that speak the wire as a warden does, and misbehave on
//! demand. No engine, no waiting: it runs under a paused clock. Cells and wardens are the world's: they outlive the agent that made them.

mod link;
mod play;
mod warden;

pub(crate) use link::LinkFault;
pub(crate) use play::line;
pub(crate) use warden::{How, Run};

use super::{Cell, CellOrder, Executor, Link, NoCell, Prepared, Present, Seen};
use crate::job::{AttemptId, Cause};
use crate::protocol::wire::{CellSpec, ToWarden};
use crate::seeded;
use play::Play;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use warden::Warden;

/// How long an engine takes to make a cell.
const MAKING: Duration = Duration::from_millis(200);
/// How long it takes to remove one.
const REMOVING: Duration = Duration::from_millis(20);
/// Between tries to remove a cell.
const REMOVAL_PAUSE: Duration = Duration::from_secs(2);

/// What somebody sees of what goes on, as it happens: of which attempt, and what.
pub(crate) type Witness = Box<dyn Fn(Option<AttemptId>, Seeing<'_>) + Send>;

/// What is seen.
#[derive(Debug)]
pub(crate) enum Seeing<'a> {
    /// A cell is made.
    Made,
    /// Its warden hears this.
    Heard(&'a ToWarden),
    /// Its job starts.
    Started,
    /// Its job has ended.
    Over(How),
    /// It is removed.
    Removed,
}

/// What is seen of an executor from a test.
#[derive(Default)]
pub(crate) struct World {
    /// Cells that are there, by attempt, with whether they run.
    pub(crate) cells: BTreeMap<String, bool>,
    /// How many there ever were.
    pub(crate) made: usize,
    /// How often a job was started, by attempt.
    pub(crate) started: BTreeMap<String, u32>,
    /// No cell can be made, and why.
    pub(crate) unavailable: Option<String>,
    /// No cell of the image `crowded` can be made, and every other can.
    pub(crate) crowded: bool,
    /// Whoever runs the cells does not answer at all.
    pub(crate) away: bool,
    /// Nothing is made before.
    pub(crate) stalled_until: Option<Instant>,
    /// Cells that wait to be removed.
    removing: BTreeSet<String>,
    /// What becomes of the next links.
    pub(crate) link_faults: VecDeque<Option<LinkFault>>,
    /// Jobs that ran, by attempt.
    pub(crate) runs: BTreeMap<AttemptId, Run>,
    /// Sees everything.
    pub(crate) witness: Option<Witness>,
    /// The wardens, by attempt.
    wardens: BTreeMap<String, Arc<Warden>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("cells", &self.cells).finish_non_exhaustive()
    }
}

impl World {
    fn answers(&self) -> Result<(), String> {
        if self.away { Err("the engine does not answer".to_owned()) } else { Ok(()) }
    }

    fn see(&self, attempt: &str, what: Seeing<'_>) {
        if let Some(witness) = &self.witness {
            witness(attempt.parse().ok(), what);
        }
    }
}

/// The executor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scripted(Arc<Mutex<World>>);

impl Scripted {
    pub(crate) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cells whose jobs run now.
    pub(crate) fn running(&self) -> Vec<String> {
        let wardens: Vec<_> =
            self.world().wardens.iter().map(|(name, warden)| (name.clone(), warden.clone())).collect();
        wardens.into_iter().filter(|(_, warden)| warden.job_runs()).map(|(name, _)| name).collect()
    }

    /// Ends a cell, with everything in it, as the kernel or a person would.
    pub(crate) fn end_cell(&self, name: &str) {
        let warden = self.world().wardens.get(name).cloned();
        if let Some(warden) = warden {
            warden.killed();
        }
        if let Some(runs) = self.world().cells.get_mut(name) {
            *runs = false;
        }
    }

    /// Removes a cell.
    pub(crate) fn take_away(&self, name: &str) {
        self.end_cell(name);
        let mut world = self.world();
        world.wardens.remove(name);
        if world.cells.remove(name).is_some() {
            world.see(name, Seeing::Removed);
        }
    }

    fn warden(&self, name: &str) -> Option<Arc<Warden>> {
        self.world().wardens.get(name).cloned()
    }
}

/// A cell.
pub(crate) struct ScriptedCell {
    executor: Scripted,
    attempt: String,
    spec: CellSpec,
    warden: Arc<Warden>,
}

impl ScriptedCell {
    fn new(executor: &Scripted, order: &CellOrder, warden: Arc<Warden>) -> Self {
        let attempt = order.attempt.to_string();
        let spec = CellSpec {
            attempt: attempt.clone(),
            wall_timeout_ms: order.spec.timeout().as_u64(),
            grace_ms: u32::try_from(order.grace.as_u64()).unwrap_or(u32::MAX),
            lease_ms: order.lease.as_u64(),
            ..CellSpec::default()
        };
        Self { executor: executor.clone(), attempt, spec, warden }
    }

    fn link(&self) -> Link {
        let fault = self.executor.world().link_faults.pop_front().flatten();
        link::open(&self.warden, fault)
    }
}

impl Executor for Scripted {
    type Cell = ScriptedCell;

    async fn probe(&self) -> Result<super::Away, String> {
        let world = self.world();
        world.answers()?;
        world.unavailable.clone().map_or(Ok(super::Away::new()), Err)
    }

    async fn acquire(&self, order: &CellOrder, _: &Prepared) -> Result<(ScriptedCell, Link), NoCell> {
        // An engine takes its time, before there is a cell and after.
        sleep(MAKING / 2).await;
        let stalled_until = self.world().stalled_until;
        if let Some(until) = stalled_until {
            sleep_until(until).await;
        }
        if let Some(reason) = self.probe().await.err() {
            return Err(NoCell::Unavailable(reason));
        }
        if order.image == "crowded" && self.world().crowded {
            return Err(NoCell::later(super::TAKEN, "no network is free".to_owned()));
        }
        if order.image == "missing" {
            let reason = "no such image".to_owned();
            return Err(NoCell::Failed(Cause::ImageMissing { image: order.image.clone(), reason }));
        }
        let attempt = order.attempt.to_string();
        let warden = Warden::new(self, order.attempt, Play::of(order));
        {
            let mut world = self.world();
            assert!(world.cells.insert(attempt.clone(), true).is_none(), "no attempt has two cells");
            world.made += 1;
            world.wardens.insert(attempt.clone(), Arc::clone(&warden));
            world.see(&attempt, Seeing::Made);
        }
        sleep(MAKING / 2).await;
        let answers = self.world().answers();
        if let Err(reason) = answers {
            self.take_away(&attempt);
            return Err(NoCell::Unavailable(reason));
        }
        let cell = ScriptedCell::new(self, order, warden);
        let link = cell.link();
        Ok((cell, link))
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let world = self.world();
        self.probe_of(&world)?;
        let present = |(name, running): (&String, &bool)| Present {
            name: name.clone(),
            attempt: name.parse().ok(),
            cell: true,
            running: *running,
            busy: world.removing.contains(name),
            image: None,
        };
        Ok(world.cells.iter().map(present).collect())
    }

    async fn adopt(&self, order: &CellOrder) -> Result<ScriptedCell, String> {
        self.world().answers()?;
        let warden = self.warden(&order.attempt.to_string()).ok_or("no such cell")?;
        Ok(ScriptedCell::new(self, order, warden))
    }

    async fn remove(&self, name: &str) {
        sleep(REMOVING).await;
        if self.world().answers().is_ok() {
            return self.take_away(name);
        }
        // In the background, by this process, as long as it is there.
        let (executor, name) = (self.clone(), name.to_owned());
        self.world().removing.insert(name.clone());
        crate::supervise::spawn(
            "scripted removal",
            seeded::within(async move {
                while executor.world().answers().is_err() {
                    sleep(REMOVAL_PAUSE).await;
                }
                executor.take_away(&name);
                executor.world().removing.remove(&name);
            }),
        );
    }
}

impl Scripted {
    fn probe_of(&self, world: &World) -> Result<(), String> {
        world.answers()?;
        world.unavailable.clone().map_or(Ok(()), Err)
    }
}

impl Cell for ScriptedCell {
    fn cell_spec(&self) -> &CellSpec {
        &self.spec
    }

    async fn attach(&self) -> Result<Link, String> {
        self.executor.world().answers()?;
        Ok(self.link())
    }

    async fn look(&self) -> Result<Seen, String> {
        let world = self.executor.world();
        world.answers()?;
        match world.cells.get(&self.attempt) {
            Some(true) => Ok(Seen::Running),
            _ => Ok(Seen::Gone("it was killed".to_owned())),
        }
    }

    async fn kill(&self) -> Result<(), String> {
        self.executor.world().answers()?;
        self.executor.end_cell(&self.attempt);
        self.executor.world().cells.insert(self.attempt.clone(), false);
        Ok(())
    }

    async fn destroy(self) {
        self.executor.remove(&self.attempt).await;
    }
}
