//! A job on its host, as a cell: looked after by a warden that stays there, or by a stand-in of this process.
//!
//! Owns what its spec says of places there. Must never say that a job is gone before it is sure that nothing of it runs: somebody else may
//! begin it then.

use super::Route;
use super::executor::{Busy, Inner};
use super::plain::{StandIn, Standing, WORK};
use super::resident::{End, Failed, Joint};
use crate::executor::spec::{self, Places};
use crate::executor::{Cell, CellOrder, LIMITS_MISSED, Link, Seen};
use crate::job::{AttemptId, ByteSize, Target, one_line};
use crate::protocol::wire::{CellSpec, Fact, GroupLimits, Rlimit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Kernel's number of the limit on open files.
const RLIMIT_NOFILE: u32 = 7;
/// The kernel's number for what is not there.
const ENOENT: i32 = 2;
/// How what looked after a job ends when that has ended and nothing of it is left.
const CLEAN: i32 = 0;
/// For what looked after a job to end, when it has taken its leave.
const LEAVE: Duration = Duration::from_secs(2);
/// Of a host's own words on what it cannot do.
const MOST_WHY: usize = 300;
/// The job's pipes. All pipes of a login have one bound together, which many jobs must not use up.
const OUTPUT_PIPE_BYTES: u32 = 128 * 1024;

fn places<'a>(workspace: &'a str, workdir: &'a str, script: &'a str) -> Places<'a> {
    Places { workspace, workdir, script }
}

fn bound(order: &CellOrder, output: ByteSize) -> u64 {
    order.spec.resources().output.unwrap_or(output).as_u64()
}

fn rlimits(order: &CellOrder) -> Vec<Rlimit> {
    let nofile = order.spec.resources().nofile;
    nofile.map(|most| Rlimit { resource: RLIMIT_NOFILE, soft: most, hard: most }).into_iter().collect()
}

/// What a warden can hold a job to by a control group, as it asks.
pub(super) fn group_limits(order: &CellOrder) -> GroupLimits {
    let asked = order.spec.resources();
    GroupLimits { memory_bytes: asked.memory.as_u64(), pids: u64::from(asked.pids), cpu_milli: asked.cpu.as_milli() }
}

/// What of it is held to where a warden has said this of its host, and what is not. `why`: there is no warden.
pub(super) fn limit_facts(order: &CellOrder, said: &[Fact], why: Option<&str>) -> Vec<Fact> {
    let said = |name: &str| said.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let (there, resources) = (said("cgroup_limits"), order.spec.resources());
    let text = |name: &str| match name {
        "memory" => format!("memory {}", resources.memory),
        "pids" => format!("pids {}", resources.pids),
        _ => format!("cpu {}", resources.cpu),
    };
    let asked = group_limits(order);
    let (held, not): (Vec<_>, Vec<_>) = asked.asked().partition(|name| there.split(',').any(|one| one == *name));
    let why = why.or(said("cgroup").strip_prefix("none of its own: ")).unwrap_or("its login has no such control group");
    let list = |names: Vec<&str>| names.into_iter().map(text).collect::<Vec<_>>().join(", ");
    let held = (!held.is_empty()).then(|| ("limits".to_owned(), list(held)));
    let not =
        (!not.is_empty()).then(|| (LIMITS_MISSED.to_owned(), format!("{}: {}", list(not), one_line(why, MOST_WHY))));
    held.into_iter().chain(not).collect()
}

/// What the stand-in for a warden is told of a job in `dir`.
pub(super) fn plain_spec(order: &CellOrder, dir: &str, output: ByteSize) -> CellSpec {
    let (workspace, script) = (format!("{dir}/{WORK}"), format!("{dir}/script"));
    CellSpec {
        rlimits: rlimits(order),
        // A shell brings no files.
        collect: None,
        ..spec::cell_spec(order, &places(&workspace, "", &script), &[], bound(order, output))
    }
}

/// What the warden there is told of a job in `dir`. It adds itself what it alone knows of the place.
pub(super) fn resident_spec(order: &CellOrder, dir: &str, output: ByteSize) -> CellSpec {
    let (workspace, script) = (format!("{dir}/{WORK}"), format!("{dir}/script"));
    CellSpec {
        // The login's own, its home too.
        inherit_env: vec!["*".to_owned(), "HOME".to_owned()],
        rlimits: rlimits(order),
        output_pipe_bytes: OUTPUT_PIPE_BYTES,
        limits: group_limits(order),
        ..spec::cell_spec(order, &places(&workspace, &workspace, &script), &[], bound(order, output))
    }
}

/// A job on its host.
pub struct SshCell {
    inner: Arc<Inner>,
    own: String,
    way: Way,
    spec: CellSpec,
    by: By,
}

/// How its host is reached.
pub(super) enum Way {
    /// So.
    Known(Route),
    /// As the inventory has it by then: where the job was begun, it knew no way there when the job was taken over.
    Sought(Target),
}

/// Who looks after it.
enum By {
    /// A warden that stays there.
    Warden(Resident),
    /// A task of this process.
    StandIn(StandIn, AttemptId),
    /// Nobody: an earlier process began it in plain mode, and it has been ended.
    Nobody,
}

struct Resident {
    /// The program of the warden that has it.
    warden: String,
    /// Where it is, as the agent calls it.
    facts: Vec<Fact>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// The last channel to it.
    joint: Option<Arc<Joint>>,
    /// Nobody there knows of it any more.
    gone: Option<String>,
}

impl Resident {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nobody there knows of it any more, if it is so.
    fn gone(&self) -> Option<String> {
        let now = self.now();
        let ended = || match now.joint.as_ref()?.end()? {
            End::Over(code) => Some(format!("what looked after it on its host has ended ({code})")),
            End::Failed { .. } | End::Cut(_) => None,
        };
        now.gone.clone().or_else(ended)
    }
}

impl SshCell {
    /// One that a warden has; behind its program, the channel to it and what is known of where it is.
    pub(super) fn resident(
        inner: Arc<Inner>,
        own: String,
        way: Way,
        spec: CellSpec,
        (warden, joint, facts): (String, Option<Arc<Joint>>, Vec<Fact>),
    ) -> Self {
        let now = Mutex::new(Now { joint, gone: None });
        Self { inner, own, way, spec, by: By::Warden(Resident { warden, facts, now }) }
    }

    /// One in plain mode.
    pub(super) fn plain(
        inner: Arc<Inner>,
        attempt: AttemptId,
        own: String,
        (route, spec, standing_in): (Route, CellSpec, StandIn),
    ) -> Self {
        inner.plain().insert(attempt);
        Self { inner, own, way: Way::Known(route), spec, by: By::StandIn(standing_in, attempt) }
    }

    /// One that was in plain mode, and has been ended.
    pub(super) fn ended(inner: Arc<Inner>, own: String, route: Route, spec: CellSpec) -> Self {
        Self { inner, own, way: Way::Known(route), spec, by: By::Nobody }
    }

    /// The way to its host. Errors: there is none now.
    fn route(&self) -> Result<Route, String> {
        self.inner.route_of(&self.way, &self.own)
    }

    async fn sweep(&self) -> Result<(), String> {
        self.inner.sweep(&self.route()?, &self.own).await
    }

    /// A new channel to the warden that has it. Errors: there is none now, or never again.
    async fn join(&self, resident: &Resident) -> Result<Link, String> {
        let route = self.route()?;
        // The one before first: whoever attaches last has it.
        let before = resident.now().joint.take();
        drop(before);
        let hub = match self.inner.hubs.find(&route, &resident.warden).await {
            Ok(hub) => hub,
            Err(super::resident::NoHub::Missing) => {
                let reason = "the warden that had it is not there any more".to_owned();
                resident.now().gone = Some(reason.clone());
                return Err(reason);
            }
            Err(error) => return Err(error.to_string()),
        };
        match hub.attach(&self.own).await {
            Ok(joint) => {
                let link = joint.link();
                resident.now().joint = Some(joint);
                Ok(link)
            }
            Err(Failed::Said { errno: ENOENT, .. }) => {
                let reason = "the warden on its host does not know of it any more".to_owned();
                resident.now().gone = Some(reason.clone());
                Err(reason)
            }
            Err(Failed::Said { errno, step }) => Err(format!("{step}: {}", std::io::Error::from_raw_os_error(errno))),
            Err(Failed::Cut(reason)) => Err(reason),
        }
    }
}

impl Cell for SshCell {
    fn cell_spec(&self) -> &CellSpec {
        &self.spec
    }

    fn facts(&self) -> &[Fact] {
        match &self.by {
            By::Warden(resident) => &resident.facts,
            By::StandIn(..) | By::Nobody => &[],
        }
    }

    /// A warden there goes on without us until the lease is over, so that long it is worth looking for it.
    fn patience(&self, usual: Duration) -> Duration {
        match &self.by {
            By::Warden(_) => usual.max(Duration::from_millis(self.spec.lease_ms)),
            By::StandIn(..) | By::Nobody => usual,
        }
    }

    async fn attach(&self) -> Result<Link, String> {
        match &self.by {
            By::Warden(resident) => self.join(resident).await,
            By::StandIn(standing_in, _) => standing_in.link().await,
            By::Nobody => Err("its agent went, and its connection with it".to_owned()),
        }
    }

    async fn look(&self) -> Result<Seen, String> {
        let reason = match &self.by {
            By::Nobody => "its agent went, and its connection with it".to_owned(),
            By::StandIn(standing_in, _) => match standing_in.standing() {
                Standing::Open | Standing::Over { .. } => return Ok(Seen::Running),
                Standing::Gone(reason) => reason,
            },
            By::Warden(resident) => match resident.gone() {
                // With no way to it, it is away as an engine is: nobody knows that it does not run, and it does as long as its lease.
                None => return self.route().map(|_| Seen::Running),
                Some(reason) => reason,
            },
        };
        // It is not lost before it is sure that it does not run.
        self.sweep().await?;
        Ok(Seen::Gone(format!("{reason}; what ran there was ended")))
    }

    async fn kill(&self) -> Result<(), String> {
        let warden = match &self.by {
            By::Warden(resident) => Some(resident.warden.as_str()),
            By::StandIn(..) | By::Nobody => None,
        };
        self.inner.end(&self.route()?, &self.own, warden).await
    }

    async fn destroy(self) {
        let busy = Busy::new(&self.inner, &self.own);
        let (clean, warden) = match self.by {
            By::StandIn(standing_in, attempt) => {
                let clean = standing_in.standing() == Standing::Over { clean: true };
                // Its channel first: the guard removes what is left when that has ended.
                drop(standing_in);
                self.inner.plain().remove(&attempt);
                (clean, None)
            }
            By::Warden(resident) => {
                let joint = resident.now().joint.take();
                let end = match &joint {
                    // What looked after it ends when it has heard that its end is safe.
                    Some(joint) => joint.ended(LEAVE).await,
                    None => None,
                };
                // Every other end of its says that it may have left something.
                (end == Some(End::Over(CLEAN)), Some(resident.warden))
            }
            By::Nobody => (false, None),
        };
        if clean {
            return self.inner.records.remove(&self.own);
        }
        let ended = match self.inner.route_of(&self.way, &self.own) {
            Ok(route) => self.inner.end(&route, &self.own, warden.as_deref()).await,
            Err(reason) => Err(reason),
        };
        match ended {
            Ok(()) => self.inner.records.remove(&self.own),
            Err(reason) => {
                tracing::warn!(cell = self.own, %reason, "what a job left on its host could not be removed; it is tried again");
                drop(busy);
                self.inner.remove_soon(self.own);
            }
        }
    }
}
