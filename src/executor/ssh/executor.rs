//! Jobs on other hosts, as cells: each has a folder and a process group there, and whoever looks after it.
//!
//! Owns what is known of such jobs and the order of things: the record before the host may begin a job, and the record's removal when
//! nothing of the job is left there. Must never decide what the end of a job means.

use super::cell::{SshCell, Way, limit_facts, plain_spec, resident_spec};
use super::inventory::{Destination, LiveInventory};
use super::plain::{NotOpened, Opened, Place, Swept, swept};
use super::records::{Record, Records};
use super::resident::{Failed, Hubs, Joint, NoHub};
use super::{ConnectError, Event, Lane, Pool, Route};
use crate::executor::{Away, CellOrder, Executor, Link, NoCell, Prepared, Present, TAKEN, Tell};
use crate::job::{AttemptId, ByteSize, Cause, OwnerId, Source, Target, TargetMode};
use crate::protocol::wire::Fact;
use crate::supervise;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// For a job to be ended from outside, once the host has let us in.
const SWEEP: Duration = Duration::from_secs(20);
/// What a sweeper says is a line.
const MOST_SAID: usize = 4096;
/// Removals of what earlier processes left at the same time; more wait.
const REMOVALS: usize = 8;
/// Before each try of a removal.
const REMOVAL_PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// In front of a cell's name, where cells of all kinds are told together.
const PREFIX: &str = "ssh:";
/// A hub that has just ended, or whose connection went, is asked for again.
const TRIES: usize = 4;
/// The kernel's number for too many at once.
const EAGAIN: i32 = 11;
/// The kernel's number for what is there already.
const EEXIST: i32 = 17;

/// A host whose jobs run in plain mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainHost {
    /// Login and name.
    pub host: String,
    /// Why no warden can stay there.
    pub why: String,
    /// It will be so until somebody changes the host.
    pub lasting: bool,
}

/// Runs jobs on other hosts. Clones are the same one.
#[derive(Clone)]
pub struct SshExecutor(Arc<Inner>);

pub(super) struct Inner {
    pub(super) pool: Pool,
    pub(super) hubs: Hubs,
    inventory: LiveInventory,
    owner: OwnerId,
    pub(super) records: Records,
    /// Output of a job that does not say.
    output: ByteSize,
    removals: Semaphore,
    /// Names of what this process makes or removes at the moment.
    busy: Mutex<HashSet<String>>,
    /// Attempts in plain mode: their jobs end with this process.
    pub(super) plain: Mutex<HashSet<AttemptId>>,
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
            hubs: Hubs::new(pool.clone(), owner.clone()),
            pool,
            inventory,
            owner,
            records,
            output,
            removals: Semaphore::new(REMOVALS),
            busy: Mutex::default(),
            plain: Mutex::default(),
        })))
    }

    /// The connections.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Hosts whose jobs run in plain mode, because no warden could stay there when it was tried last; by name and login.
    pub fn plain_hosts(&self) -> Vec<PlainHost> {
        let named = |(route, why, lasting): (Route, String, bool)| PlainHost {
            host: format!("{}@{}", route.login, route.name),
            why,
            lasting,
        };
        let mut hosts: Vec<PlainHost> = self.0.hubs.denied().into_iter().map(named).collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        hosts
    }

    /// Whether a cell of this name is of this kind.
    pub fn is_named(name: &str) -> bool {
        name.starts_with(PREFIX)
    }
}

/// The name of a job's folder on its host.
pub(super) fn own_name(attempt: AttemptId) -> String {
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

/// What a job asks for and no host gives, or none in this mode.
fn unsupported(order: &CellOrder, host: &str, mode: &Mode) -> Option<Cause> {
    let spec = &order.spec;
    let file = spec.secrets().iter().find(|(_, ask)| ask.file).map(|(name, _)| format!("secrets.{name}.file"));
    let asked = |field: &str, is: bool, reason: &'static str| is.then(|| (field.to_owned(), reason));
    let (resources, own) = (spec.resources(), "the folder of a job there is a part of the host's own disk");
    let disk = asked("resources.disk", resources.disk.is_some(), own);
    let disk = disk.or_else(|| asked("resources.inodes", resources.inodes.is_some(), own));
    if let Some((field, reason)) = disk {
        return Some(Cause::TargetUnsupported { host: host.to_owned(), field, reason: reason.to_owned() });
    }
    let (Mode::Plain { why, lasting }, host) = (mode, host.to_owned()) else { return None };
    let (field, reason) = {
        let files = "plain mode carries no files: put them into the script, or have the job fetch them";
        let kept = "plain mode carries no files: have the job bring them where they belong";
        let after = "plain mode runs nothing after a stop: have the job's script trap TERM";
        let secret = "a file on the host would outlive the job's memory: take the secret as a variable";
        asked("inputs", !spec.inputs().is_empty(), files)
            .or_else(|| asked("artifacts", !spec.artifacts().is_empty(), kept))
            .or_else(|| asked("on_cancel", spec.on_cancel().is_some(), after))
            .or_else(|| file.map(|field| (field, secret)))
    }?;
    Some(match why.as_str() {
        "" => Cause::TargetUnsupported { host, field, reason: reason.to_owned() },
        // The next try may have one.
        why if !lasting => Cause::HostUnreachable {
            host,
            reason: format!("no warden can stay there now, and `{field}` needs one: {why}"),
        },
        why => Cause::TargetUnsupported { host, field, reason: format!("{reason} (no warden can stay there: {why})") },
    })
}

/// How a job is looked after on its host.
enum Mode {
    /// By a warden that stays there, which has said this of its host.
    Resident(Vec<Fact>),
    /// Over a channel of its own.
    Plain {
        /// Why, if it was not asked for.
        why: String,
        /// It will be so until somebody changes the host.
        lasting: bool,
    },
}

fn no_channel(host: &str, error: &ConnectError, open: bool) -> NoCell {
    let (host, reason) = (host.to_owned(), error.to_string());
    match error {
        ConnectError::HostKey(_) | ConnectError::Login(_) | ConnectError::Unfit(_) => {
            NoCell::Failed(Cause::HostRefused { host, reason })
        }
        // Nothing of ours is there that it would have to make room beside.
        ConnectError::Throttled(_) if !open => NoCell::Failed(Cause::HostUnreachable { host, reason }),
        ConnectError::Unreachable(_) => NoCell::Failed(Cause::HostUnreachable { host, reason }),
        // Nobody has tried, so it is no try of the job's either.
        ConnectError::Refused { wait, .. } => NoCell::later(*wait, reason),
        // Others of its jobs are there, or logins: it is well, and its turn comes.
        ConnectError::Throttled(_) | ConnectError::Busy(_) => NoCell::later(TAKEN, format!("{host}: {reason}")),
        ConnectError::Stopped => NoCell::Unavailable(reason),
    }
}

impl Inner {
    /// Removes in the background what a job may have left, with a few tries: a connection may be cut at any moment. Then it is the sweeper's.
    pub(super) fn remove_soon(self: &Arc<Self>, own: String) {
        if !self.busy().insert(own.clone()) {
            return;
        }
        let inner = Arc::clone(self);
        drop(supervise::spawn("ssh removal", async move {
            for pause in REMOVAL_PAUSES {
                sleep(pause).await;
                let turn = inner.removals.acquire().await;
                inner.remove(&own).await;
                drop(turn);
                if inner.records.get(&own).is_none() {
                    break;
                }
            }
            inner.busy().remove(&own);
        }));
    }

    pub(super) fn plain(&self) -> MutexGuard<'_, HashSet<AttemptId>> {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        let warden = record.as_ref().and_then(Record::warden);
        let swept = match self.route_of_record(&target, record.as_ref()) {
            Ok(route) => self.end(&route, own, warden).await,
            Err(reason) => Err(reason),
        };
        match swept {
            Ok(()) => self.records.remove(own),
            Err(reason) => {
                tracing::warn!(cell = own, host = %target, %reason, "what a job may have left on its host could not be removed");
            }
        }
    }

    /// The way to a job's host. Errors: there is none now.
    pub(super) fn route_of(&self, way: &Way, own: &str) -> Result<Route, String> {
        match way {
            Way::Known(route) => Ok(route.clone()),
            Way::Sought(target) => self.route_of_record(target, self.records.get(own).as_ref()),
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

    /// Ends a job and removes what it left: by the warden that it was given to, and from outside where that cannot be asked. Errors: what
    /// was said; it may still run.
    pub(super) async fn end(&self, route: &Route, own: &str, warden: Option<&str>) -> Result<(), String> {
        let Some(warden) = warden else { return self.sweep(route, own).await };
        let hub = timeout(SWEEP, self.hubs.find(route, warden)).await;
        let said = match hub {
            // As long as it takes: it says itself when that is too long.
            Ok(Ok(hub)) => hub.kill(own).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        };
        match said {
            // What it does not know may be of one before it, which is gone: then something of the job may still be there.
            Ok(()) => self.sweep(route, own).await,
            Err(reason) => {
                tracing::debug!(host = %route, cell = own, %reason, "its warden cannot end it; it is ended from outside");
                self.sweep(route, own).await
            }
        }
    }

    /// How a job is to be looked after at the end of `route`, which may take as long as bringing a warden there does. Errors: the host
    /// cannot be reached.
    async fn mode(&self, target: &Target, route: &Route) -> Result<Mode, NoCell> {
        if target.access.mode == TargetMode::Plain {
            return Ok(Mode::Plain { why: String::new(), lasting: true });
        }
        match self.hubs.get(route, &Hubs::program()).await {
            Ok(hub) => Ok(Mode::Resident(hub.facts().to_vec())),
            Err(NoHub::Unfit(why)) => Ok(Mode::Plain { why, lasting: true }),
            Err(NoHub::NotNow(why)) => Ok(Mode::Plain { why, lasting: false }),
            Err(error) => Err(self.no_hub(&target.host, route, &error)),
        }
    }

    fn no_hub(&self, host: &str, route: &Route, error: &NoHub) -> NoCell {
        match error {
            NoHub::Connect(error) => no_channel(host, error, self.is_open(route)),
            NoHub::Unfit(reason) => {
                NoCell::Failed(Cause::HostRefused { host: host.to_owned(), reason: reason.clone() })
            }
            NoHub::NotNow(_) | NoHub::Missing | NoHub::Lost(_) => {
                NoCell::Failed(Cause::HostUnreachable { host: host.to_owned(), reason: error.to_string() })
            }
        }
    }

    fn is_open(&self, route: &Route) -> bool {
        self.pool.states().iter().any(|host| host.name == route.name && host.connections > 0)
    }

    /// A new job at the hub there. Errors: why not.
    async fn open(&self, host: &str, route: &Route, own: &str) -> Result<(Arc<Joint>, Vec<Fact>), NoCell> {
        let mut tries = TRIES;
        loop {
            let hub = self.hubs.get(route, &Hubs::program()).await;
            let hub = hub.map_err(|error| self.no_hub(host, route, &error))?;
            tries -= 1;
            let opened = match hub.open(own).await {
                // Of the try before, whose answer was lost: it waits to be told what to do, and nobody has told it.
                Err(Failed::Said { errno: EEXIST, .. }) if tries + 1 < TRIES => hub.attach(own).await,
                opened => opened,
            };
            let reason = match opened {
                Ok(joint) => return Ok((joint, resident_facts(&route.name, &route.login))),
                Err(Failed::Said { errno: EAGAIN, step }) => {
                    return Err(NoCell::later(TAKEN, format!("{host}: {step}")));
                }
                // It has ended in between, as one that nobody used does.
                Err(Failed::Cut(_)) if tries > 0 => continue,
                Err(Failed::Cut(reason)) => reason,
                Err(Failed::Said { errno, step }) => {
                    format!("its warden cannot begin a job ({step}): {}", std::io::Error::from_raw_os_error(errno))
                }
            };
            return Err(NoCell::Failed(Cause::HostUnreachable { host: host.to_owned(), reason }));
        }
    }

    /// Ends a job from outside, and removes what it left. Errors: what was said; it may still run.
    pub(super) async fn sweep(&self, route: &Route, own: &str) -> Result<(), String> {
        let place = Place::new(&self.owner, own);
        let exec = self.pool.exec(route, &place.sweeper(), Lane::Control).await.map_err(|error| error.to_string())?;
        let said = timeout(SWEEP, said(exec)).await.map_err(|_| format!("no answer in {} s", SWEEP.as_secs()))??;
        match swept(&said) {
            Some(Swept::Gone) => Ok(()),
            Some(Swept::Folder) => {
                let folder = format!("~/.jobcell/{}/{own}", self.owner);
                tracing::warn!(cell = own, host = %route, folder, "nothing of the job runs, and its folder cannot be removed: look whose its files are, and remove it by hand");
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
    async fn probe(&self) -> Result<Away, String> {
        Ok(Away::new())
    }

    /// Where a warden can stay it is brought, if it is not there.
    async fn prepare(&self, order: &CellOrder, _: Tell<'_>) -> Result<Prepared, NoCell> {
        let (inner, target) = (&self.0, target_of(order)?);
        let refused = |reason| NoCell::Failed(Cause::HostRefused { host: target.host.clone(), reason });
        // No warden is brought for what no host gives.
        if let Some(cause) = unsupported(order, &target.host, &Mode::Resident(Vec::new())) {
            return Err(NoCell::Failed(cause));
        }
        let route = inner.route(target).map_err(refused)?;
        match unsupported(order, &target.host, &inner.mode(target, &route).await?) {
            Some(cause) => Err(NoCell::Failed(cause)),
            None => Ok(Prepared::default()),
        }
    }

    async fn acquire(&self, order: &CellOrder, _: &Prepared) -> Result<(SshCell, Link), NoCell> {
        let (inner, target) = (&self.0, target_of(order)?);
        let refused = |reason| NoCell::Failed(Cause::HostRefused { host: target.host.clone(), reason });
        let route = inner.route(target).map_err(refused)?;
        let own = own_name(order.attempt);
        let mode = inner.mode(target, &route).await?;
        // It may be another one than it was prepared for.
        if let Some(cause) = unsupported(order, &target.host, &mode) {
            return Err(NoCell::Failed(cause));
        }
        let (warden, why, limits) = match mode {
            Mode::Resident(said) => (Some(Hubs::program()), String::new(), limit_facts(order, &said, None)),
            Mode::Plain { why, .. } => (None, why, Vec::new()),
        };
        let busy = Busy::new(inner, &own);
        let record = Record::new(order.attempt, target, &reached(&route), warden.as_deref()).held(limits.clone());
        let written = inner.records.put(&own, record);
        let made = match warden {
            Some(warden) => {
                self.resident(order, target, route, own.clone(), (warden, limits), written).await.map_err(|no| {
                    let heard = matches!(no, NoCell::Failed(_));
                    (no, heard)
                })
            }
            None => {
                // The host hears of it after this process would be remembered to have told it.
                written.await.map_err(|error| not_written(&error))?;
                self.plain(order, target, route, own.clone(), &why).await
            }
        };
        drop(busy);
        match made {
            Ok(made) => Ok(made),
            // It may have a folder there all the same; nobody there was told anything of the job.
            Err((no, true)) => {
                self.remove(&format!("{PREFIX}{own}")).await;
                Err(no)
            }
            Err((no, false)) => {
                inner.records.remove(&own);
                Err(no)
            }
        }
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let records = self.0.records.all();
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

    /// What was given to a warden goes on. In plain mode nothing outlives its connection by more than the grace; that is made sure of here.
    async fn adopt(&self, order: &CellOrder) -> Result<SshCell, String> {
        let inner = &self.0;
        let target = target_of(order).map_err(|_| "the job names no host".to_owned())?;
        let own = own_name(order.attempt);
        let record = inner.records.get(&own);
        let route = inner.route_of_record(target, record.as_ref());
        if let Some((record, warden)) = record.as_ref().and_then(|record| Some((record, record.warden()?))) {
            let login = record.reached().rsplit_once('@').map_or("", |(login, _)| login);
            let mut facts = match &route {
                Ok(route) => resident_facts(&route.name, &route.login),
                Err(_) => resident_facts(&target.host, login),
            };
            facts.extend_from_slice(record.limits());
            let way = match route {
                Ok(route) => Way::Known(route),
                Err(reason) => {
                    tracing::warn!(cell = own, host = target.host, %reason, "a job on a host cannot be reached");
                    Way::Sought(target.clone())
                }
            };
            // Its warden has had its spec.
            let spec = resident_spec(order, "", inner.output);
            return Ok(SshCell::resident(Arc::clone(inner), own, way, spec, (warden.to_owned(), None, facts)));
        }
        let route = route?;
        inner.sweep(&route, &own).await?;
        Ok(SshCell::ended(Arc::clone(inner), own, route, plain_spec(order, "", inner.output)))
    }

    fn plain_hosts(&self) -> BTreeMap<String, String> {
        Self::plain_hosts(self).into_iter().map(|plain| (plain.host, plain.why)).collect()
    }

    fn outlives_us(&self, attempt: AttemptId) -> bool {
        !self.0.plain().contains(&attempt)
    }

    /// In the background: a host that does not answer holds up nobody.
    async fn remove(&self, name: &str) {
        if let Some(own) = name.strip_prefix(PREFIX) {
            self.0.remove_soon(own.to_owned());
        }
    }
}

impl SshExecutor {
    /// Gives a job to the warden there, while its record is `written`: what is begun there waits to be told the job, which it is not before both are
    /// done, and ends by itself when it never is. Errors: why not.
    async fn resident(
        &self,
        order: &CellOrder,
        target: &Target,
        route: Route,
        own: String,
        (warden, limits): (String, Vec<Fact>),
        written: impl Future<Output = std::io::Result<()>>,
    ) -> Result<(SshCell, Link), NoCell> {
        let inner = &self.0;
        let (written, opened) = tokio::join!(written, inner.open(&target.host, &route, &own));
        if let Err(error) = written {
            if opened.is_ok() {
                let inner = Arc::clone(inner);
                drop(supervise::spawn("ssh removal", async move { inner.end(&route, &own, Some(&warden)).await }));
            }
            return Err(not_written(&error));
        }
        let (joint, mut facts) = opened?;
        facts.extend(limits);
        let spec = resident_spec(order, joint.dir(), inner.output);
        let link = joint.link();
        let way = Way::Known(route);
        Ok((SshCell::resident(Arc::clone(inner), own, way, spec, (warden, Some(joint), facts)), link))
    }

    /// Opens a channel for a job. Errors: why not, and whether the host may have heard of it; nothing was told of the job itself.
    async fn plain(
        &self,
        order: &CellOrder,
        target: &Target,
        route: Route,
        own: String,
        why: &str,
    ) -> Result<(SshCell, Link), (NoCell, bool)> {
        let inner = &self.0;
        let place = Place::new(&inner.owner, &own);
        let opener = place.opener(order.grace.as_u64().div_ceil(1000));
        let exec = inner.pool.exec(&route, &opener, Lane::Job).await;
        let exec = exec.map_err(|error| (no_channel(&target.host, &error, inner.is_open(&route)), false))?;
        let host = || target.host.clone();
        let opened = Opened::wait(exec).await.map_err(|failed| match failed {
            NotOpened::Unfit(reason) => (NoCell::Failed(Cause::HostRefused { host: host(), reason }), false),
            NotOpened::Lost(reason) => (NoCell::Failed(Cause::HostUnreachable { host: host(), reason }), true),
        })?;
        let spec = plain_spec(order, opened.dir(), inner.output);
        let standing_in = opened.stand_in(order.attempt.to_string(), place, plain_facts(order, &route, why));
        let link = standing_in.link().await.map_err(|reason| (NoCell::Unavailable(reason), true))?;
        Ok((SshCell::plain(Arc::clone(inner), order.attempt, own, (route, spec, standing_in)), link))
    }
}

fn not_written(error: &std::io::Error) -> NoCell {
    NoCell::Unavailable(format!("ssh records: {error}"))
}

/// Where a job is, as the agent calls it.
fn resident_facts(host: &str, login: &str) -> Vec<Fact> {
    vec![("host".to_owned(), host.to_owned()), ("login".to_owned(), login.to_owned())]
}

/// What is in force for a job in plain mode, and what is not; and why it is in that, if nobody asked for it.
fn plain_facts(order: &CellOrder, route: &Route, why: &str) -> Vec<Fact> {
    let fact = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut facts = vec![
        fact("executor", "ssh"),
        fact("mode", "plain"),
        fact("host", &route.name),
        fact("login", &route.login),
        // It can do whatever else this login can do there.
        fact("isolation", "none: shared login"),
    ];
    if !why.is_empty() {
        facts.push(fact("plain_because", why));
    }
    facts.extend(limit_facts(order, &[], Some("plain mode makes no control groups")));
    facts
}

/// A name that this process is at work on.
pub(super) struct Busy<'a>(&'a Inner, String);

impl<'a> Busy<'a> {
    pub(super) fn new(inner: &'a Inner, own: &str) -> Self {
        inner.busy().insert(own.to_owned());
        Self(inner, own.to_owned())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy().remove(&self.1);
    }
}
