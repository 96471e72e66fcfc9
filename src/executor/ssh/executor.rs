//! Jobs on other hosts, as cells: each has a folder and a process group there, and whoever looks after it.
//!
//! Owns what is known of such jobs and the order of things: the record before the host hears of a job, and the record's removal when
//! nothing of the job is left there. Must never decide what the end of a job means.

use super::inventory::{Destination, LiveInventory};
use super::plain::{NotOpened, Opened, Place, StandIn, Standing, Swept, WORK, swept};
use super::records::{Record, Records};
use super::{ConnectError, Event, Lane, Pool, Route};
use crate::executor::{Cell, CellOrder, Executor, Link, NoCell, Prepared, Present, Seen, Tell};
use crate::job::{AttemptId, ByteSize, Cause, OutputExcess, OutputOverflow, OwnerId, Program, Source, Target};
use crate::protocol::wire::{CellSpec, Fact, Rlimit};
use crate::supervise;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// For a job to be ended from outside, once the host has let us in.
const SWEEP: Duration = Duration::from_secs(20);
/// What a sweeper says is a line.
const MOST_SAID: usize = 4096;
/// Removals of what earlier processes left at the same time; more wait.
const REMOVALS: usize = 8;
/// In front of a cell's name, where cells of all kinds are told together.
const PREFIX: &str = "ssh:";
/// Kernel's number of the limit on open files.
const RLIMIT_NOFILE: u32 = 7;

/// Runs jobs on other hosts. Clones are the same one.
#[derive(Clone)]
pub struct SshExecutor(Arc<Inner>);

struct Inner {
    pool: Pool,
    inventory: LiveInventory,
    owner: OwnerId,
    records: Records,
    /// Output of a job that does not say.
    output: ByteSize,
    removals: Semaphore,
    /// Names of what this process makes or removes at the moment.
    busy: Mutex<HashSet<String>>,
}

impl SshExecutor {
    /// On the hosts of `inventory`. What it knows of its jobs lies in `dir`. Errors: that cannot be made.
    pub fn new(
        pool: Pool,
        inventory: LiveInventory,
        owner: OwnerId,
        dir: &Path,
        output: ByteSize,
    ) -> std::io::Result<Self> {
        let records = Records::open(dir)?;
        Ok(Self(Arc::new(Inner {
            pool,
            inventory,
            owner,
            records,
            output,
            removals: Semaphore::new(REMOVALS),
            busy: Mutex::default(),
        })))
    }

    /// The connections.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Whether a cell of this name is of this kind.
    pub fn is_named(name: &str) -> bool {
        name.starts_with(PREFIX)
    }
}

/// The name of a job's folder on its host.
fn own_name(attempt: AttemptId) -> String {
    format!("{}-{}-{}", attempt.job.simple(), attempt.attempt, attempt.part)
}

/// Where a route leads, and as whom.
fn reached(route: &Route) -> String {
    format!("{}@{}:{}", route.login, route.host, route.port)
}

fn target_of(order: &CellOrder) -> Result<&Target, NoCell> {
    match order.spec.source() {
        Source::Target(target) => Ok(target),
        _ => Err(NoCell::Unavailable("the job names no host".to_owned())),
    }
}

/// What a job asks for and plain mode does not have.
fn unsupported(order: &CellOrder, host: &str) -> Option<Cause> {
    let spec = &order.spec;
    let file = spec.secrets().iter().find(|(_, ask)| ask.file).map(|(name, _)| format!("secrets.{name}.file"));
    let resources = spec.resources();
    let asked = |field: &str, is: bool, reason: &'static str| is.then(|| (field.to_owned(), reason));
    let found = asked(
        "inputs",
        !spec.inputs().is_empty(),
        "plain mode carries no files: put them into the script, or have the job fetch them",
    )
    .or_else(|| {
        asked(
            "artifacts",
            !spec.artifacts().is_empty(),
            "plain mode carries no files: have the job bring them where they belong",
        )
    })
    .or_else(|| {
        asked(
            "on_cancel",
            spec.on_cancel().is_some(),
            "plain mode runs nothing after a stop: have the job's script trap TERM",
        )
    })
    .or_else(|| {
        file.map(|field| (field, "a file on the host would outlive the job's memory: take the secret as a variable"))
    })
    .or_else(|| {
        asked("resources.disk", resources.disk.is_some(), "the folder of a job there is a part of the host's own disk")
    });
    found.map(|(field, reason)| Cause::TargetUnsupported { host: host.to_owned(), field, reason: reason.to_owned() })
}

fn no_channel(host: &str, error: &ConnectError, open: bool) -> NoCell {
    let (host, reason) = (host.to_owned(), error.to_string());
    match error {
        ConnectError::HostKey(_) | ConnectError::Login(_) | ConnectError::Unfit(_) => {
            NoCell::Failed(Cause::HostRefused { host, reason })
        }
        // Nothing of ours is there that it would have to make room beside.
        ConnectError::Throttled(_) if !open => NoCell::Failed(Cause::HostUnreachable { host, reason }),
        ConnectError::Refused { .. } | ConnectError::Unreachable(_) => {
            NoCell::Failed(Cause::HostUnreachable { host, reason })
        }
        // Others of its jobs are there, or logins: it is well, and its turn comes.
        ConnectError::Throttled(_) | ConnectError::Busy(_) => NoCell::Later(format!("{host}: {reason}")),
        ConnectError::Stopped => NoCell::Unavailable(reason),
    }
}

impl Inner {
    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn route(&self, target: &Target) -> Result<Route, String> {
        let access = &target.access;
        let to = Destination {
            host: &target.host,
            port: access.port,
            login: access.login.as_deref(),
            credential: access.credential.as_deref(),
            jump: Some(access.jump.as_slice()).filter(|jump| !jump.is_empty()),
        };
        self.inventory.current().route(&to).map_err(|error| error.to_string())
    }

    /// Removes what an earlier process has begun. What cannot be removed is still known, and tried again at the next look.
    async fn remove(&self, own: &str) {
        let record = self.records.get(own);
        let Some(target) = record.as_ref().and_then(Record::target) else { return };
        let swept = match self.route_of_record(&target, record.as_ref()) {
            Ok(route) => self.sweep(&route, own).await,
            Err(reason) => Err(reason),
        };
        match swept {
            Ok(()) => self.records.remove(own),
            Err(reason) => {
                tracing::warn!(cell = own, host = %target, %reason, "what a job may have left on its host could not be removed");
            }
        }
    }

    /// The way to where a job was begun. Errors: the inventory knows none, or leads to another place by now.
    fn route_of_record(&self, target: &Target, record: Option<&Record>) -> Result<Route, String> {
        let route = self.route(target)?;
        match record.map(Record::reached) {
            Some(before) if before != reached(&route) => {
                Err(format!("it was begun at {before}, and the inventory leads to {} by now", reached(&route)))
            }
            _ => Ok(route),
        }
    }

    /// Ends a job from outside, and removes what it left. Errors: what was said; it may still run.
    async fn sweep(&self, route: &Route, own: &str) -> Result<(), String> {
        let place = Place::new(&self.owner, own);
        let exec = self.pool.exec(route, &place.sweeper(), Lane::Control).await.map_err(|error| error.to_string())?;
        let said = timeout(SWEEP, said(exec)).await.map_err(|_| format!("no answer in {} s", SWEEP.as_secs()))??;
        match swept(&said) {
            Some(Swept::Gone) => Ok(()),
            Some(Swept::Folder) => {
                tracing::warn!(cell = own, host = %route, "nothing of the job runs, and its folder cannot be removed");
                Ok(())
            }
            Some(Swept::Left(left)) => Err(format!("something of it runs that this login cannot end: {left}")),
            None => Err("its shell does not do what it is told".to_owned()),
        }
    }
}

/// What a short command says on standard output. Errors: it did not come to its end.
async fn said(mut exec: super::Exec) -> Result<Vec<u8>, String> {
    let mut said = Vec::new();
    loop {
        match exec.output.next().await {
            Some(Event::Stdout(bytes)) => {
                said.extend_from_slice(&bytes);
                // The last of it counts: a login may print before.
                said.drain(..said.len().saturating_sub(MOST_SAID));
            }
            Some(Event::Lost(reason)) => return Err(reason),
            Some(Event::Closed) | None => return Ok(said),
            Some(_) => {}
        }
    }
}

impl Executor for SshExecutor {
    type Cell = SshCell;

    /// Hosts come and go by themselves; each says so to those who want it.
    async fn probe(&self) -> Result<(), String> {
        Ok(())
    }

    async fn prepare(&self, order: &CellOrder, _: Tell<'_>) -> Result<Prepared, NoCell> {
        let target = target_of(order)?;
        match unsupported(order, &target.host) {
            Some(cause) => Err(NoCell::Failed(cause)),
            None => Ok(Prepared::default()),
        }
    }

    async fn acquire(&self, order: &CellOrder, _: &Prepared) -> Result<(SshCell, Link), NoCell> {
        let (inner, target) = (&self.0, target_of(order)?);
        let refused = |reason| NoCell::Failed(Cause::HostRefused { host: target.host.clone(), reason });
        let route = inner.route(target).map_err(refused)?;
        let own = own_name(order.attempt);
        let _busy = Busy::new(inner, &own);
        let (place, record) = (Place::new(&inner.owner, &own), Record::new(order.attempt, target, &reached(&route)));
        // The host hears of it after this process would be remembered to have told it.
        inner.records.put(&own, &record).map_err(|error| NoCell::Unavailable(format!("ssh records: {error}")))?;
        let grace = order.grace.as_u64().div_ceil(1000);
        let exec = match inner.pool.exec(&route, &place.opener(grace), Lane::Job).await {
            Ok(exec) => exec,
            Err(error) => {
                inner.records.remove(&own);
                let open = inner.pool.states().iter().any(|host| host.name == route.name && host.connections > 0);
                return Err(no_channel(&target.host, &error, open));
            }
        };
        match Opened::wait(exec).await {
            Ok(opened) => {
                let spec = cell_spec(order, opened.dir(), inner.output);
                let standing_in = opened.stand_in(order.attempt.to_string(), place, facts(&route));
                let link = standing_in.link().await.map_err(NoCell::Unavailable)?;
                let cell =
                    SshCell { inner: Arc::clone(inner), own, route: Ok(route), spec, standing_in: Some(standing_in) };
                Ok((cell, link))
            }
            // It was told nothing of the job, and goes with the channel: at most an empty folder stays.
            Err(NotOpened::Unfit(reason)) => {
                inner.records.remove(&own);
                Err(refused(reason))
            }
            Err(NotOpened::Lost(reason)) => {
                inner.records.remove(&own);
                Err(NoCell::Failed(Cause::HostUnreachable { host: target.host.clone(), reason }))
            }
        }
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let records = self.0.records.all().map_err(|error| format!("ssh records: {error}"))?;
        let busy = self.0.busy();
        let present = |(own, record): (String, Record)| Present {
            name: format!("{PREFIX}{own}"),
            attempt: record.attempt(),
            cell: true,
            // Nobody knows before its host was asked, and whoever takes it over asks.
            running: true,
            busy: busy.contains(&own),
            image: None,
        };
        Ok(records.into_iter().map(present).collect())
    }

    /// In plain mode nothing outlives its connection by more than the grace; that is made sure of here.
    async fn adopt(&self, order: &CellOrder) -> Result<SshCell, String> {
        let inner = &self.0;
        let target = target_of(order).map_err(|_| "the job names no host".to_owned())?;
        let own = own_name(order.attempt);
        let route = inner.route_of_record(target, inner.records.get(&own).as_ref())?;
        inner.sweep(&route, &own).await?;
        let spec = cell_spec(order, "", inner.output);
        Ok(SshCell { inner: Arc::clone(inner), own, route: Ok(route), spec, standing_in: None })
    }

    /// In the background: a host that does not answer holds up nobody.
    async fn remove(&self, name: &str) {
        let Some(own) = name.strip_prefix(PREFIX).map(str::to_owned) else { return };
        let inner = Arc::clone(&self.0);
        if !inner.busy().insert(own.clone()) {
            return;
        }
        drop(supervise::spawn("ssh removal", async move {
            let _turn = inner.removals.acquire().await;
            inner.remove(&own).await;
            inner.busy().remove(&own);
        }));
    }
}

/// A name that this process is at work on.
struct Busy<'a>(&'a Inner, String);

impl<'a> Busy<'a> {
    fn new(inner: &'a Inner, own: &str) -> Self {
        inner.busy().insert(own.to_owned());
        Self(inner, own.to_owned())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy().remove(&self.1);
    }
}

/// What is in force for a job there, and what is not.
fn facts(route: &Route) -> Vec<Fact> {
    let fact = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![
        fact("executor", "ssh"),
        fact("mode", "plain"),
        fact("host", &route.name),
        fact("login", &route.login),
        // It can do whatever else this login can do there.
        fact("isolation", "none: shared login"),
    ]
}

fn cell_spec(order: &CellOrder, dir: &str, output: ByteSize) -> CellSpec {
    let spec = &order.spec;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |key: &str, value: &str| {
        if !spec.env().contains_key(key) {
            env.push((key.into(), value.into()));
        }
    };
    set("JOBCELL_JOB_ID", &order.attempt.job.to_string());
    set("JOBCELL_ATTEMPT", &order.attempt.attempt.to_string());
    set("JOBCELL_WORKSPACE", &format!("{dir}/{WORK}"));
    env.extend(spec.env().iter().map(|(key, value)| (key.clone().into_bytes(), value.clone().into_bytes())));
    let nofile = spec.resources().nofile.map(|most| Rlimit { resource: RLIMIT_NOFILE, soft: most, hard: most });
    CellSpec {
        attempt: order.attempt.to_string(),
        argv: order.argv.clone(),
        env,
        cwd: spec.workdir().unwrap_or_default().to_owned(),
        script_path: match spec.program() {
            Program::Script { .. } => format!("{dir}/script"),
            Program::Command(_) => String::new(),
        },
        wall_timeout_ms: spec.timeout().as_u64(),
        grace_ms: u32::try_from(order.grace.as_u64()).unwrap_or(u32::MAX),
        lease_ms: order.lease.as_u64(),
        rlimits: nofile.into_iter().collect(),
        silence_ms: spec.silence_timeout().map_or(0, crate::job::Millis::as_u64),
        drop_output: spec.output_overflow() == OutputOverflow::Drop,
        output_limit: spec.resources().output.unwrap_or(output).as_u64(),
        cut_output: spec.output_excess() == OutputExcess::Cut,
        secrets: order.secrets.clone(),
        ..CellSpec::default()
    }
}

/// A job on its host.
pub struct SshCell {
    inner: Arc<Inner>,
    own: String,
    route: Result<Route, String>,
    spec: CellSpec,
    /// Absent for one that an earlier process began: it has been ended.
    standing_in: Option<StandIn>,
}

impl SshCell {
    async fn sweep(&self) -> Result<(), String> {
        self.inner.sweep(self.route.as_ref().map_err(String::clone)?, &self.own).await
    }
}

impl Cell for SshCell {
    fn cell_spec(&self) -> &CellSpec {
        &self.spec
    }

    async fn attach(&self) -> Result<Link, String> {
        match &self.standing_in {
            Some(standing_in) => standing_in.link().await,
            None => Err("its agent went, and its connection with it".to_owned()),
        }
    }

    async fn look(&self) -> Result<Seen, String> {
        let reason = match &self.standing_in {
            None => "its agent went, and its connection with it".to_owned(),
            Some(standing_in) => match standing_in.standing() {
                Standing::Open | Standing::Over { .. } => return Ok(Seen::Running),
                Standing::Gone(reason) => reason,
            },
        };
        // It is not lost before it is sure that it does not run: somebody else may begin it then.
        self.sweep().await?;
        Ok(Seen::Gone(format!("{reason}; what ran there was ended")))
    }

    async fn kill(&self) -> Result<(), String> {
        self.sweep().await
    }

    async fn destroy(self) {
        let over = self
            .standing_in
            .as_ref()
            .is_some_and(|standing_in| standing_in.standing() == Standing::Over { clean: true });
        // Its channel first: the guard removes what is left when that has ended.
        drop(self.standing_in);
        let _busy = Busy::new(&self.inner, &self.own);
        if over {
            return self.inner.records.remove(&self.own);
        }
        let swept = match &self.route {
            Ok(route) => self.inner.sweep(route, &self.own).await,
            Err(reason) => Err(reason.clone()),
        };
        match swept {
            Ok(()) => self.inner.records.remove(&self.own),
            Err(reason) => {
                tracing::warn!(cell = self.own, %reason, "what a job left on its host could not be removed; it is tried again")
            }
        }
    }
}
