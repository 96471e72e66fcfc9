//! Cells that are hardened, single-use containers on a Docker engine.
//!
//! Owns everything that names the engine: calls with deadlines ([`engine`]; [`calls`] lists them), what a container is made of ([`create`]),
//! the read-only volume that carries the warden ([`volume`]), the network of a cell that has one ([`network`]), and the removal of what is ours: by a running agent ([`sweep`])
//! and by hand ([`leftovers`], [`shims`]). Only this room may name bollard. A job never chooses anything here but image, limits and what it runs.

mod calls;
mod cores;
mod create;
mod engine;
mod images;
mod leftovers;
mod network;
mod probe;
mod profiles;
mod runtimes;
mod shims;
mod sweep;
mod uids;
mod volume;

pub use calls::{ENGINE_CALLS, EngineCall};
pub use create::Shape;
pub use engine::{Engine, EngineError};
pub use images::{Bounds, ImageSettings, Images, Judged, Ledger, Logins};
pub use leftovers::{Kind, Leftover, Scope, find as find_leftovers, remove as remove_leftover};
pub use probe::{EngineFacts, probe};
pub use profiles::Profiles;
pub use runtimes::answers_calls_itself;

pub use super::warden::{WARDEN, warden_build};

use super::{Cell, CellOrder, Executor, Link, NoCell, Prepared, Present, Seen, Tell};
use crate::job::{Cause, OwnerId};
use crate::protocol::wire;
use bollard::models::ContainerCreateBody;
use engine::Listed;
use images::Failure;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

/// What the operator's configuration says about cells on this engine.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// How a container is made.
    pub shape: Shape,
    /// First user id of the range that cells take theirs from.
    pub uid_start: u32,
    /// How many there are.
    pub uid_count: u32,
    /// Starts at the same time; more only adds latency on this kind of engine.
    pub concurrent_starts: usize,
    /// For the start of a container alone: under load it takes far longer than any other call.
    pub start_timeout: Duration,
    /// Cells are held to cores, as many as they may use the time of.
    pub pin_cores: bool,
}

/// Makes containers.
#[derive(Clone)]
pub struct DockerExecutor {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    settings: DockerSettings,
    owner: OwnerId,
    starts: Semaphore,
    uids: uids::Uids,
    /// Asked of the engine when the first cell is made, and by nobody before.
    cores: OnceCell<cores::Cores>,
    /// What cells of an earlier process have, by their names, until these are adopted or removed.
    found: Mutex<HashMap<String, Found>>,
    /// Networks of cells that are there, or were at the last look.
    networks: Mutex<HashSet<String>>,
    /// Shims that the last look has found to be left over, by the names under which it told them.
    shims: Mutex<HashMap<String, shims::Shim>>,
    images: Images,
    volume: volume::WardenVolume,
    removals: sweep::Removals,
}

/// What a cell of an earlier process has.
struct Found {
    uid: uids::Uid,
    cores: Option<cores::Held>,
}

impl DockerExecutor {
    /// An executor on `engine`. `stop` ends the background removals; what is left then is found by the next start's sweep.
    pub fn new(
        engine: Engine,
        settings: DockerSettings,
        images: Images,
        owner: OwnerId,
        stop: CancellationToken,
    ) -> Self {
        images.look_after(stop.clone());
        let removals = sweep::Removals::spawn(engine.clone(), stop);
        Self {
            inner: Arc::new(Inner {
                starts: Semaphore::new(settings.concurrent_starts.max(1)),
                uids: uids::Uids::new(settings.uid_start, settings.uid_count),
                cores: OnceCell::new(),
                found: Mutex::default(),
                networks: Mutex::default(),
                shims: Mutex::default(),
                images,
                volume: volume::WardenVolume::new(engine.clone(), owner.clone()),
                engine,
                settings,
                owner,
                removals,
            }),
        }
    }

    /// The engine's calls.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Waits, for at most `limit`, until every removal that is under way is done.
    pub async fn settled(&self, limit: Duration) -> bool {
        self.inner.removals.settled(limit).await
    }
}

impl Executor for DockerExecutor {
    type Cell = DockerCell;

    async fn probe(&self) -> Result<super::Away, String> {
        self.inner.engine.ping().await.map(|()| super::Away::new()).map_err(|error| error.short())
    }

    async fn prepare(&self, order: &CellOrder, tell: Tell<'_>) -> Result<Prepared, NoCell> {
        match self.inner.images.ensure(&order.image, order.spec.pull(), tell).await {
            Ok(ready) => Ok(Prepared { image: Some(ready.used.clone()), hold: Some(Box::new(ready)) }),
            Err(Failure::NoEngine(reason)) => Err(NoCell::Unavailable(format!("image: {reason}"))),
            Err(failure) => Err(NoCell::Failed(failure.cause(&order.image))),
        }
    }

    async fn acquire(&self, order: &CellOrder, prepared: &Prepared) -> Result<(DockerCell, Link), NoCell> {
        let inner = &self.inner;
        let shape = &inner.settings.shape;
        let profile = shape.seccomp.in_force(order.spec.seccomp()).map_err(NoCell::Failed)?;
        let uid = inner.uids.take().ok_or_else(|| {
            NoCell::Unavailable(
                "every user id of docker.uid_range is in use; make it larger than agent.slots".to_owned(),
            )
        })?;
        let name = order.attempt.cell_name(&inner.owner);
        let cores = inner
            .cores()
            .await
            .map_err(|error| failed("info", &order.image, &error))?
            .take(order.spec.resources().cpu.as_milli());
        let list = cores.as_ref().map(cores::Held::list);
        let image = prepared.image.as_ref();
        let plan = create::plan(order, image, shape, profile, uid.number(), list.as_deref(), &inner.owner);
        let cell =
            DockerCell { inner: Arc::clone(inner), id: name.clone(), spec: plan.cell_spec, _uid: uid, _cores: cores };
        let network = create::network_of(order, &inner.owner);
        if let Some(network) = &network {
            inner.make_network(network, order).await?;
        }
        let made = self.make(order, &plan.container, cell).await;
        if let (Err(_), Some(network)) = (&made, &network) {
            inner.remove_network(network).await;
        }
        made
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let shims = self.inner.left_shims().await?;
        let found = self.inner.engine.list_labelled("jobcell.owner", &self.inner.owner.to_string()).await;
        let found = found.map_err(|error| error.short())?;
        let networks = self.inner.left_networks(&found).await?;
        // Before anything new is made: no cell gets the id of one that runs.
        let cores = self.inner.cores().await.map_err(|error| error.short())?;
        let keep = |cell: &Listed| {
            let uid = self.inner.uids.keep(cell.labels.get("jobcell.uid")?.parse().ok()?)?;
            let cores = cell.labels.get(create::CORES_LABEL).and_then(|list| cores.keep(list));
            Some((cell.name.clone(), Found { uid, cores }))
        };
        let kept: Vec<_> = found.iter().filter_map(keep).collect();
        let mut uids = self.inner.found();
        // A cell may have gone between the engine's answer and now: its id is kept until the next look, and no longer.
        uids.retain(|name, _| found.iter().any(|cell| cell.name == *name));
        uids.extend(kept);
        drop(uids);
        let present = |cell: Listed| {
            let busy = self.inner.removals.has(&cell.name) || self.inner.volume.is_filled_through(&cell.name);
            sweep::present(cell, busy)
        };
        Ok(found.into_iter().map(present).chain(networks).chain(shims).collect())
    }

    async fn adopt(&self, order: &CellOrder) -> Result<DockerCell, String> {
        let inner = &self.inner;
        let name = order.attempt.cell_name(&inner.owner);
        let Found { uid, cores } = inner.found().remove(&name).ok_or("nobody knows its user id")?;
        let shape = &inner.settings.shape;
        // It has its filter, and its warden has looked at it: what the settings want by now is for cells to come.
        let profile = order.spec.seccomp().unwrap_or_default();
        let spec = create::plan(order, None, shape, profile, uid.number(), None, &inner.owner).cell_spec;
        Ok(DockerCell { inner: Arc::clone(inner), id: name, spec, _uid: uid, _cores: cores })
    }

    async fn remove(&self, name: &str) {
        self.inner.remove(name).await;
    }
}

impl DockerExecutor {
    /// Makes the container and starts it. Errors: why not; nothing of it is left then, or its removal is under way.
    async fn make(
        &self,
        order: &CellOrder,
        container: &ContainerCreateBody,
        cell: DockerCell,
    ) -> Result<(DockerCell, Link), NoCell> {
        let (inner, name) = (&self.inner, cell.id.clone());
        let image = container.image.as_deref().unwrap_or(&order.image);
        // A second try is for one thing only: the warden's volume was removed by hand since it was made sure of.
        for last in [false, true] {
            let volume = inner.volume.ensure(image).await.map_err(|error| failed("volume", &order.image, &error))?;
            let body = container.clone();
            if let Err(error) = inner.engine.create(&name, create::with_volume(body, &volume)).await {
                // No answer is not a no.
                if !error.is_refusal() {
                    inner.removals.unsure(name);
                }
                // Somebody took them from the engine since it was asked: the next try asks for none.
                if error.says("CPUs are not available") {
                    inner.no_cores(&error);
                    return Err(NoCell::later(super::TAKEN, format!("create: {}", error.short())));
                }
                return Err(failed("create", &order.image, &error));
            }
            crash_point!("after-create");
            match start(&cell).await {
                Ok(link) => {
                    crash_point!("after-start");
                    return Ok((cell, link));
                }
                Err((step, error)) => {
                    // The container alone: its network is for the second try too.
                    inner.remove_or_later(&name).await;
                    if last || !error.says(volume::WARDEN_PATH) {
                        return Err(failed(step, &order.image, &error));
                    }
                    inner.volume.forget();
                }
            }
        }
        unreachable!("the second try returns")
    }
}

impl Inner {
    fn found(&self) -> MutexGuard<'_, HashMap<String, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cores of the engine's host. Errors: it does not answer.
    async fn cores(&self) -> Result<&cores::Cores, EngineError> {
        self.cores
            .get_or_try_init(async || {
                // gVisor gives a control group that is new no cores to choose from, and fails.
                if !self.settings.pin_cores || runtimes::answers_calls_itself(&self.settings.shape.oci_runtime) {
                    return Ok(cores::Cores::new(None));
                }
                let count = match self.engine.cores().await {
                    Err(error) if !error.is_refusal() => return Err(error),
                    count => count.ok().flatten(),
                };
                // Two agents on one engine do not both begin with its first core.
                let start =
                    self.owner.to_string().bytes().fold(0, |sum: u32, byte| sum.rotate_left(5) ^ u32::from(byte));
                let siblings = |core| self.engine.is_local().then(|| cores::siblings_here(core)).flatten();
                Ok(cores::Cores::new(count.map(|count| cores::order(count, start, siblings))))
            })
            .await
    }

    /// From now on cells run on all cores.
    fn no_cores(&self, error: &EngineError) {
        if let Some(cores) = self.cores.get() {
            tracing::warn!(error = %error.short(), "the engine does not have the cores that it has told of: cells run on any from now on");
            cores.turn_off();
        }
    }

    /// Shims of ours without a container: an engine that dies in the middle of a start leaves them. None where the engine's processes
    /// are not to be seen from here.
    async fn left_shims(&self) -> Result<Vec<Present>, String> {
        if !self.engine.is_local() {
            return Ok(Vec::new());
        }
        let left = shims::left(&self.engine, &self.owner).await.map_err(|error| error.short())?;
        let named = left.into_iter().map(|shim| (shim.to_string(), shim));
        let named: HashMap<String, shims::Shim> = named.collect();
        let present = |name: &String| Present {
            name: name.clone(),
            attempt: None,
            cell: false,
            running: false,
            busy: false,
            image: None,
        };
        let present = named.keys().map(present).collect();
        *self.shims.lock().unwrap_or_else(PoisonError::into_inner) = named;
        Ok(present)
    }

    async fn remove(&self, name: &str) {
        let shim = self.shims.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(shim) = shim {
            // One that stays is seen again by the next look.
            if let Err(reason) = shim.end().await {
                tracing::warn!(shim = name, %reason, "a shim that looks after nothing could not be ended");
            }
            return;
        }
        if network::cell(name).is_some() {
            return self.remove_network(name).await;
        }
        let _found = self.found().remove(name);
        self.remove_or_later(name).await;
        let network = network::name(name);
        let has_network = self.networks().contains(&network);
        if has_network {
            self.remove_network(&network).await;
        }
    }

    async fn remove_or_later(&self, name: &str) {
        if let Err(error) = sweep::remove_once(&self.engine, name).await {
            tracing::warn!(cell = name, error = %error.short(), "it could not be removed now; will be tried again");
            self.removals.later(name.to_owned());
        }
    }

    fn networks(&self) -> MutexGuard<'_, HashSet<String>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make_network(&self, name: &str, order: &CellOrder) -> Result<(), NoCell> {
        // Known before it is there: a look that comes between finds it to be somebody's.
        self.networks().insert(name.to_owned());
        let request = network::request(name, create::labels(order, &self.owner));
        let Err(error) = self.engine.create_network(request).await else { return Ok(()) };
        self.networks().remove(name);
        // No answer is not a no.
        if !error.is_refusal() {
            self.removals.unsure(name.to_owned());
        }
        if error.is_out_of_networks() {
            let reason = format!("the engine has no address pool left for its network: {}", error.short());
            return Err(NoCell::later(super::TAKEN, reason));
        }
        Err(failed("create network", &order.image, &error))
    }

    async fn remove_network(&self, name: &str) {
        self.networks().remove(name);
        self.remove_or_later(name).await;
    }

    /// Networks of cells that are not there. Those of cells that are go with these.
    async fn left_networks(&self, cells: &[Listed]) -> Result<Vec<Present>, String> {
        let listed = match self.engine.list_networks("jobcell.owner", &self.owner.to_string()).await {
            Ok(listed) => listed,
            // Whoever stands before the engine and lets nobody see networks lets nobody make one.
            Err(error) if error.is_refusal() => {
                tracing::debug!(error = %error.short(), "networks are not to be seen");
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.short()),
        };
        let listed: Vec<_> = listed.into_iter().filter(|(name, _)| network::cell(name).is_some()).collect();
        self.networks().extend(listed.iter().map(|(name, _)| name.clone()));
        let has_cell = |name: &str| cells.iter().any(|cell| network::cell(name) == Some(&cell.name));
        let left = listed.into_iter().filter(|(name, _)| !has_cell(name));
        let present = |(name, labels): (String, HashMap<String, String>)| {
            let busy = self.removals.has(&name);
            Present { attempt: sweep::attempt(&labels), name, cell: false, running: false, busy, image: None }
        };
        Ok(left.map(present).collect())
    }
}

/// Attach first, then start: what the warden writes is never without a reader.
async fn start(cell: &DockerCell) -> Result<Link, (&'static str, EngineError)> {
    let inner = &cell.inner;
    let link = inner.engine.attach(&cell.id).await.map_err(|error| ("attach", error))?;
    let _turn = inner.starts.acquire().await.expect("the semaphore is never closed");
    inner.engine.start(&cell.id, inner.settings.start_timeout).await.map_err(|error| ("start", error))?;
    Ok(link)
}

fn failed(step: &str, image: &str, error: &EngineError) -> NoCell {
    if error.is_missing_image() {
        NoCell::Vanished(Cause::ImageMissing { image: image.to_owned(), reason: error.short() })
    } else if error.is_refusal() {
        NoCell::Failed(Cause::EngineFailed { step: step.to_owned(), reason: error.short() })
    } else {
        NoCell::Unavailable(format!("{step}: {}", error.short()))
    }
}

/// One container.
pub struct DockerCell {
    inner: Arc<Inner>,
    /// The derived name, by which the engine takes every call.
    id: String,
    spec: wire::CellSpec,
    /// Held as long as the cell lives: no two live cells share a user id.
    _uid: uids::Uid,
    /// As long as that, these cores are promised to it.
    _cores: Option<cores::Held>,
}

impl Cell for DockerCell {
    fn cell_spec(&self) -> &wire::CellSpec {
        &self.spec
    }

    async fn attach(&self) -> Result<Link, String> {
        self.inner.engine.attach(&self.id).await.map_err(|error| error.short())
    }

    async fn look(&self) -> Result<Seen, String> {
        match self.inner.engine.inspect_state(&self.id).await {
            Ok(Some(state)) if state.running => Ok(Seen::Running),
            Ok(Some(state)) => Ok(Seen::Gone(state.sentence())),
            Ok(None) => Ok(Seen::Gone("its container does not exist any more".to_owned())),
            Err(error) => Err(error.short()),
        }
    }

    async fn kill(&self) -> Result<(), String> {
        self.inner.engine.kill(&self.id).await.map_err(|error| error.short())
    }

    async fn destroy(self) {
        self.inner.remove(&self.id).await;
    }
}
