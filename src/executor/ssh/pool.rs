//! Connections to hosts, shared by everybody who goes the same way.
//!
//! Owns how many there are, who opens one, and who gets a place on it. One flight opens a connection for all who wait for it, and goes on
//! when they go away. Must never know what runs on a channel.

use super::connection::{Carried, Connection, NoChannel, Slot};
use super::credentials::KeyCache;
use super::error::ConnectError;
use super::exec::Exec;
use super::handler::Ending;
use super::handshake::{Failed, Opened, Terms, handshake};
use super::host::Host;
use super::inventory::LiveInventory;
use super::known::{Asked, KnownCache};
use super::route::{Lane, Route, SshSettings};
use super::stream::QuickStream;
use crate::net::pauses;
use crate::supervise;
use russh::keys::ssh_key::Fingerprint;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bytes of a command: its host's kernel takes no more in one argument, and one of twice the size ends the whole connection.
pub const COMMAND_BYTES: usize = 100_000;
/// Hosts that are remembered although nobody goes there.
const MOST_HOSTS: usize = 4096;
/// So often a host may refuse the only channel on a connection before it is believed that it lets none be opened, with a pause between.
const MOST_REFUSED: u32 = 10;
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// First and longest pause before a host that throttles is tried again.
const THROTTLED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// All connections. Clones are the same one.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

/// An address, a port, and the way there.
type Whereabouts = (String, u16, Option<Box<Route>>);

struct Shared {
    settings: SshSettings,
    inventory: LiveInventory,
    keys: Arc<KeyCache>,
    known: Arc<KnownCache>,
    /// By where they are: one address behind two jump hosts is two machines.
    hosts: Mutex<HashMap<Whereabouts, Arc<Host>>>,
    groups: Mutex<HashMap<Route, Arc<Group>>>,
    stop: CancellationToken,
}

/// The connections of one route.
struct Group {
    route: Route,
    host: Arc<Host>,
    state: Mutex<GroupState>,
    news: Arc<Notify>,
}

#[derive(Default)]
struct GroupState {
    connections: Vec<Arc<Connection>>,
    flights: Vec<Arc<Flight>>,
    /// Session channels of one connection, as the host said by refusing one.
    learnt: Option<usize>,
}

/// A connection that is being opened.
struct Flight {
    result: watch::Receiver<Option<Result<(), ConnectError>>>,
    /// Those who wait for it.
    waiting: Mutex<usize>,
}

/// How a host stands, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Its name for people.
    pub name: String,
    /// Who logs in; nobody at the moment, at one that is left alone.
    pub login: Option<String>,
    /// Its breaker: `admit`, `probe` or `refuse`.
    pub breaker: &'static str,
    /// Connections that are open.
    pub connections: usize,
    /// Channels on them.
    pub channels: usize,
}

impl Pool {
    /// No connection is open yet; with `stop`, all are closed.
    pub fn new(settings: SshSettings, inventory: LiveInventory, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared {
            settings,
            inventory,
            keys: Arc::default(),
            known: Arc::default(),
            hosts: Mutex::default(),
            groups: Mutex::default(),
            stop,
        }))
    }

    /// The inventory that it goes by.
    pub fn inventory(&self) -> &LiveInventory {
        &self.0.inventory
    }

    /// What it was told of connections.
    pub fn settings(&self) -> &SshSettings {
        &self.0.settings
    }

    /// Runs `command` by the login's shell on a channel to the end of `route`; waits for a place and a connection for as long as
    /// `ssh.connect_timeout` says. Errors: why there is none. May be dropped, and the command is not started then if it was not yet.
    pub async fn exec(&self, route: &Route, command: &str, lane: Lane) -> Result<Exec, ConnectError> {
        self.exec_within(route, command, lane, self.0.settings.connect_timeout).await
    }

    /// The same, with another time to wait.
    pub async fn exec_within(
        &self,
        route: &Route,
        command: &str,
        lane: Lane,
        wait: Duration,
    ) -> Result<Exec, ConnectError> {
        if command.len() > COMMAND_BYTES {
            let len = command.len();
            return Err(ConnectError::Unfit(format!("the command has {len} bytes; at most {COMMAND_BYTES} are taken")));
        }
        let deadline = Instant::now() + wait;
        let mut refused = 0;
        loop {
            let slot = Shared::seat(&self.0, route, lane, deadline).await?;
            let connection = Arc::clone(slot.connection());
            // It goes on by itself: a channel that the host opens for nobody would never be closed.
            let (answer, answered) = oneshot::channel();
            let (command, bounds) = (command.to_owned(), self.0.settings.store);
            drop(supervise::spawn("ssh channel opening", async move {
                let wanted = || !answer.is_closed();
                let opened = connection.exec(slot, &command, bounds, wanted).await;
                let _ = answer.send(opened);
            }));
            let late = || ConnectError::Unreachable(format!("{route} did not open a channel in time"));
            match tokio::time::timeout_at(deadline, answered).await.map_err(|_| late())? {
                Ok(Ok(exec)) => return Ok(exec),
                Ok(Err(NoChannel::Full(limit))) => self.0.learn(route, limit),
                // A host counts a channel for a moment after it has closed it.
                Ok(Err(NoChannel::None)) if refused < MOST_REFUSED && Instant::now() + REFUSED_PAUSE < deadline => {
                    refused += 1;
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                Ok(Err(NoChannel::None)) => {
                    let why = "its server lets no session be opened; look at MaxSessions in its sshd_config";
                    return Err(ConnectError::Unfit(format!("{route}: {why}")));
                }
                Ok(Err(NoChannel::Lost)) | Err(_) => {}
            }
        }
    }

    /// Connects, and does nothing more. Errors: why it cannot.
    pub async fn check(&self, route: &Route) -> Result<(), ConnectError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout;
        Shared::carrier(&self.0, route, deadline).await.map(drop)
    }

    /// How the hosts stand that somebody goes to, or that are left alone, by name and login.
    pub fn states(&self) -> Vec<HostState> {
        let groups: Vec<Arc<Group>> = lock(&self.0.groups).values().cloned().collect();
        let mut states: Vec<HostState> = groups
            .iter()
            .map(|group| {
                let state = lock(&group.state);
                let living = || state.connections.iter().filter(|connection| connection.lives());
                HostState {
                    name: group.route.name.clone(),
                    login: Some(group.route.login.clone()),
                    breaker: group.host.state(),
                    connections: living().count(),
                    channels: living().map(|connection| connection.open()).sum(),
                }
            })
            .collect();
        let mut alone: Vec<Arc<Host>> = lock(&self.0.hosts).values().cloned().collect();
        alone.retain(|host| host.state() != "admit" && !groups.iter().any(|group| Arc::ptr_eq(&group.host, host)));
        states.extend(alone.into_iter().map(|host| HostState {
            name: host.name.clone(),
            login: None,
            breaker: host.state(),
            connections: 0,
            channels: 0,
        }));
        states.sort_by(|a, b| (&a.name, &a.login).cmp(&(&b.name, &b.login)));
        states
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What somebody who waits found.
enum Next {
    Place(Slot),
    Flight(Arc<Flight>),
    Wait,
}

impl Shared {
    fn group(&self, route: &Route) -> Arc<Group> {
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.get(route) {
            return Arc::clone(group);
        }
        let group = Arc::new(Group {
            route: route.clone(),
            host: self.host(route),
            state: Mutex::default(),
            news: Arc::new(Notify::new()),
        });
        groups.insert(route.clone(), Arc::clone(&group));
        group
    }

    fn host(&self, route: &Route) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        let key = (route.host.clone(), route.port, route.jump.clone());
        if let Some(host) = hosts.get(&key) {
            return Arc::clone(host);
        }
        if hosts.len() >= MOST_HOSTS {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let host = Host::new(&route.name, self.settings.handshakes_per_host);
        hosts.insert(key, Arc::clone(&host));
        host
    }

    /// Forgets a route that nobody uses.
    fn forget(&self, group: &Arc<Group>) {
        let mut groups = lock(&self.groups);
        let state = lock(&group.state);
        // One is in the map and one is the caller's.
        if state.connections.is_empty() && state.flights.is_empty() && Arc::strong_count(group) <= 2 {
            drop(state);
            groups.remove(&group.route);
        }
    }

    /// A host said how many channels it lets be open on one connection.
    fn learn(&self, route: &Route, limit: usize) {
        let group = self.group(route);
        let mut state = lock(&group.state);
        if state.learnt.is_none_or(|known| limit < known) {
            tracing::info!(host = %route, limit, "the host lets fewer sessions be open on one connection (MaxSessions)");
            state.learnt = Some(limit);
        }
    }

    /// A place on a connection of the route, by `deadline`.
    async fn seat(shared: &Arc<Self>, route: &Route, lane: Lane, deadline: Instant) -> Result<Slot, ConnectError> {
        let held = Held(Arc::clone(shared), shared.group(route));
        let group = &held.1;
        let mut failed = None;
        loop {
            let news = group.news.notified();
            tokio::pin!(news);
            // From here on nothing is missed.
            news.as_mut().enable();
            let next = shared.next(group, lane, failed.is_some());
            match next {
                Next::Place(slot) => return Ok(slot),
                Next::Flight(flight) => {
                    if let Err(error) = shared.join(group, &flight, news, deadline).await? {
                        // With others there is still a place to wait for.
                        if error.is_permanent() || !lock(&group.state).connections.iter().any(|one| one.lives()) {
                            return Err(error);
                        }
                        failed = Some(error);
                    }
                }
                Next::Wait => tokio::select! {
                    () = news => {}
                    () = tokio::time::sleep_until(deadline) => {
                        let told = || ConnectError::Busy(format!("all places on the connections to {route} are taken"));
                        return Err(failed.unwrap_or_else(told));
                    }
                    () = shared.stop.cancelled() => return Err(ConnectError::Stopped),
                },
            }
        }
    }

    /// A connection of the route that carries another one, by `deadline`.
    async fn carrier(shared: &Arc<Self>, route: &Route, deadline: Instant) -> Result<Carried, ConnectError> {
        let held = Held(Arc::clone(shared), shared.group(route));
        let group = &held.1;
        loop {
            let news = group.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let flight = {
                let mut state = lock(&group.state);
                state.connections.retain(|connection| connection.lives());
                if let Some(carried) = state.connections.iter().find_map(Connection::carry) {
                    return Ok(carried);
                }
                match state.flights.first() {
                    Some(flight) => Arc::clone(flight),
                    None => shared.take_off(group, &mut state)?,
                }
            };
            shared.join(group, &flight, news, deadline).await??;
        }
    }

    /// Waits for a flight, or other news. Errors: the time is over; inside, what the flight came to.
    async fn join(
        &self,
        group: &Arc<Group>,
        flight: &Arc<Flight>,
        news: impl Future<Output = ()>,
        deadline: Instant,
    ) -> Result<Result<(), ConnectError>, ConnectError> {
        let _waiting = Waiting::on(flight);
        let mut result = flight.result.clone();
        tokio::select! {
            // A flight that has failed is news too, and must not be taken for a reason to try again.
            biased;
            landed = result.wait_for(Option::is_some) => Ok(match landed {
                Ok(landed) => landed.clone().unwrap_or(Err(ConnectError::Stopped)),
                Err(_) => Err(ConnectError::Unreachable(format!("{}: the task that connects ended", group.route))),
            }),
            () = news => Ok(Ok(())),
            () = tokio::time::sleep_until(deadline) => {
                Err(ConnectError::Unreachable(format!("{} could not be connected to in time", group.route)))
            }
            () = self.stop.cancelled() => Err(ConnectError::Stopped),
        }
    }

    /// A place, a flight to wait for, or nothing but to wait.
    fn next(self: &Arc<Self>, group: &Arc<Group>, lane: Lane, grounded: bool) -> Next {
        let mut state = lock(&group.state);
        state.connections.retain(|connection| connection.lives());
        let mut all: Vec<&Arc<Connection>> = state.connections.iter().collect();
        all.sort_by_key(|connection| connection.open());
        if let Some(slot) = all.into_iter().find_map(|connection| connection.seat(lane)) {
            return Next::Place(slot);
        }
        let seats = state.learnt.map_or(self.settings.channels_per_connection, |limit| limit.saturating_sub(1)).max(1);
        if let Some(flight) = state.flights.iter().find(|flight| *lock(&flight.waiting) < seats) {
            return Next::Flight(Arc::clone(flight));
        }
        // Word about a job must get through when jobs have taken everything.
        let extra = usize::from(lane == Lane::Control);
        let all = state.connections.len() + state.flights.len();
        if grounded || all >= self.settings.connections_per_host + extra {
            return Next::Wait;
        }
        match self.take_off(group, &mut state) {
            Ok(flight) => Next::Flight(flight),
            Err(_) => Next::Wait,
        }
    }

    /// Begins to open a connection. Errors: the agent stops.
    fn take_off(self: &Arc<Self>, group: &Arc<Group>, state: &mut GroupState) -> Result<Arc<Flight>, ConnectError> {
        if self.stop.is_cancelled() {
            return Err(ConnectError::Stopped);
        }
        let (tell, result) = watch::channel(None);
        let flight = Arc::new(Flight { result, waiting: Mutex::new(0) });
        state.flights.push(Arc::clone(&flight));
        let (shared, group, own) = (Arc::clone(self), Arc::clone(group), Arc::clone(&flight));
        drop(supervise::spawn("ssh connecting", async move {
            let landed = fly(Arc::clone(&shared), Arc::clone(&group)).await;
            let told = landed.as_ref().map(|_| ()).map_err(Clone::clone);
            {
                let mut state = lock(&group.state);
                state.flights.retain(|flight| !Arc::ptr_eq(flight, &own));
                state.connections.extend(landed.ok());
            }
            tell.send_replace(Some(told));
            group.news.notify_waiters();
            shared.forget(&group);
        }));
        Ok(flight)
    }
}

/// A route that somebody uses; forgotten with the last of them, unless there are connections.
struct Held(Arc<Shared>, Arc<Group>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.forget(&self.1);
    }
}

/// Counts who waits for a flight.
struct Waiting<'a>(&'a Flight);

impl<'a> Waiting<'a> {
    fn on(flight: &'a Flight) -> Self {
        *lock(&flight.waiting) += 1;
        Self(flight)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *lock(&self.0.waiting) -= 1;
    }
}

type Flying = Pin<Box<dyn Future<Output = Result<Arc<Connection>, ConnectError>> + Send>>;

/// Opens a connection, and has it kept. Boxed: the way to a host can need another flight first.
fn fly(shared: Arc<Shared>, group: Arc<Group>) -> Flying {
    Box::pin(async move {
        let route = &group.route;
        let deadline = Instant::now() + shared.settings.connect_timeout;
        group.host.ask(route)?;
        let tried = tokio::select! {
            tried = open(&shared, &group, deadline) => tried,
            () = shared.stop.cancelled() => Err(NotIn::Way(ConnectError::Stopped)),
        };
        match &tried {
            Ok(_) => group.host.tell(route, &Ok(())),
            Err(NotIn::Host(error)) => group.host.tell(route, &Err(error.clone())),
            // What is on the way to a host is not its fault.
            Err(NotIn::Way(_)) => {}
        }
        let (opened, over) = tried.map_err(|(NotIn::Host(error) | NotIn::Way(error))| error)?;
        let limit = lock(&group.state).learnt.unwrap_or(shared.settings.channels_per_connection + 1);
        let connection = Connection::new(opened, limit, Arc::clone(&group.news), over);
        tracing::debug!(host = %route, login = %route.login, connection = connection.number, "connected");
        let settings = &shared.settings;
        let kept = Arc::clone(&connection).keep(settings.idle_close, settings.max_age, shared.stop.clone());
        let (shared, group, own) = (Arc::clone(&shared), Arc::clone(&group), Arc::clone(&connection));
        drop(supervise::spawn("ssh connection", async move {
            let ending = kept.await;
            let route = &group.route;
            tracing::debug!(host = %route, connection = own.number, ending = ending.sentence(), "disconnected");
            if ending == Ending::Silent {
                group.host.went_silent(route, &ending.sentence());
            }
            lock(&group.state).connections.retain(|connection| !Arc::ptr_eq(connection, &own));
            group.news.notify_waiters();
            shared.forget(&group);
        }));
        Ok(connection)
    })
}

/// Why a host does not let anybody in.
enum NotIn {
    /// By the host.
    Host(ConnectError),
    /// By something else, before it or here.
    Way(ConnectError),
}

/// Tries until the host lets this login in, or says no, or the time is over.
async fn open(shared: &Arc<Shared>, group: &Group, deadline: Instant) -> Result<(Opened, Option<Carried>), NotIn> {
    let route = &group.route;
    let place = tokio::time::timeout_at(deadline, group.host.handshakes.acquire());
    let many = || NotIn::Way(ConnectError::Throttled(format!("too many connect to {route} at once")));
    let _place = place.await.map_err(|_| many())?;
    let inventory = shared.inventory.current();
    let credential = inventory.credential(&route.credential).ok_or_else(|| {
        NotIn::Way(ConnectError::Login(format!("the inventory has no credential `{}` any more", route.credential)))
    })?;
    let opener = shared.keys.load(&route.credential, credential, &route.login).await.map_err(NotIn::Way)?;
    let known = shared.known.load(&inventory.known_hosts).await;
    let known = known.map_err(|why| NotIn::Way(ConnectError::HostKey(why)))?;
    let pinned = route.fingerprints.iter().filter_map(|text| Fingerprint::from_str(text).ok()).collect();
    let asked = Asked::new(&route.host, route.port, route.known_as.as_deref(), pinned);
    let mut only = None;
    let mut pauses = pauses(THROTTLED.0, THROTTLED.1);
    loop {
        let terms = Terms {
            route,
            known: Arc::clone(&known),
            asked: asked.clone(),
            opener: &opener,
            keepalive: shared.settings.keepalive,
            only: only.take(),
        };
        let failed = match tokio::time::timeout_at(deadline, attempt(shared, terms, deadline)).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(failed)) => failed,
            Err(_) => {
                let said = format!("{route} did not finish the handshake in time");
                return Err(NotIn::Host(ConnectError::Unreachable(said)));
            }
        };
        match failed {
            Failed::Way(error) => return Err(NotIn::Way(error)),
            Failed::Permanent(error) => return Err(NotIn::Host(error)),
            Failed::Unreachable(said) => return Err(NotIn::Host(ConnectError::Unreachable(said))),
            Failed::OtherKey(rest) => only = Some(rest),
            Failed::Throttled(said) => {
                let pause = pauses.next().unwrap_or(THROTTLED.1);
                if Instant::now() + pause >= deadline {
                    return Err(NotIn::Host(ConnectError::Throttled(said)));
                }
                tracing::debug!(host = %route, reason = %said, "the host has too many connections; it is asked again");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    terms: Terms<'_>,
    deadline: Instant,
) -> Result<(Opened, Option<Carried>), Failed> {
    let route = terms.route;
    let Some(jump) = route.jump.as_deref() else {
        let stream = QuickStream::connect(&route.host, route.port, deadline).await;
        let stream = stream.map_err(|why| Failed::Unreachable(format!("{route} cannot be reached: {why}")))?;
        return Ok((handshake(terms, stream).await?, None));
    };
    let over = Shared::carrier(shared, jump, deadline).await;
    let over = over.map_err(|error| Failed::Way(error.on_the_way(&jump.to_string())))?;
    let stream = over.connection().forward(&route.host, route.port).await;
    let stream = stream
        .map_err(|error| Failed::Unreachable(format!("{route} cannot be reached from jump host {jump}: {error}")))?;
    Ok((handshake(terms, stream).await?, Some(over)))
}
