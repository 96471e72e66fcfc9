//! What every long-running command does: signals, the wait for the engine, the agent with its health.

use super::engine_lock::lock_engine;
use super::exit::TEMPORARY;
use super::home::Home;
use super::{Failure, doctor, dump, node, systemd};
use crate::admission::policy::Looked;
use crate::admission::{Gate, LivePolicy};
use crate::agent::{BackendState, Drained, Status, is_of_a_start};
use crate::audit::{Audit, Event, Outcome};
use crate::backend::Backend;
use crate::blobs::BlobStore;
use crate::config::Config;
use crate::executor::docker::{DockerExecutor, Engine, EngineError, Profiles};
use crate::executor::ssh::SshExecutor;
use crate::executor::ssh::inventory::{Found, LiveInventory};
use crate::executor::{Arriving, Both};
use crate::job::UnixMillis;
use crate::journal::{Journal, Opened, SqliteJournal};
use crate::logstore::LogStore;
use crate::supervise::{self, spawn};
use crate::telemetry::{Component, Health, Metrics, State, Traces};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between two tries to reach an engine that does not answer.
const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at the policy's file.
const POLICY_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks at connections to hosts.
const SSH_PAUSE: Duration = Duration::from_secs(2);
/// For removals that are under way at the end.
const SETTLE: Duration = Duration::from_secs(20);

/// What signals ask for. SIGTERM or SIGINT: claim no more, let jobs end until agent.drain_timeout, then end them. A second one:
/// end them now. A third one: leave at once; the next start cleans up.
pub(super) struct Signals {
    pub(super) drain: CancellationToken,
    pub(super) force: CancellationToken,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::unavailable(format!("signals: {error}"));
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let signals = Self { drain: CancellationToken::new(), force: CancellationToken::new() };
        let (drain, force) = (signals.drain.clone(), signals.force.clone());
        spawn("signals", async move {
            for step in 1.. {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                match step {
                    1 => {
                        tracing::info!("stopping: no more claims, running jobs may end; a second signal ends them");
                        drain.cancel();
                    }
                    2 => {
                        tracing::warn!("stopping now: running jobs are ended; a third signal leaves at once");
                        force.cancel();
                    }
                    _ => {
                        tracing::error!("leaving at once; the next start removes what is left");
                        std::process::exit(i32::from(TEMPORARY));
                    }
                }
            }
        });
        Ok(signals)
    }
}

/// What an agent runs with.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) audit: Audit,
    pub(super) home: &'a Home,
    pub(super) seccomp: Profiles,
    pub(super) backends: Vec<Arc<dyn Backend>>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) logs: LogStore,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: &'a Health,
    pub(super) gate: Gate,
    /// The same that the gate asks.
    pub(super) inventory: Option<LiveInventory>,
    pub(super) artifacts: BlobStore,
    pub(super) traces: Traces,
}

/// Runs the agent, with the engine as soon as that answers. Errors: another agent uses the engine.
pub(super) async fn run_agent(parts: Parts<'_>, signals: &Signals) -> Result<Drained, Failure> {
    let Parts { config, audit, home, seccomp, backends, journal, logs, metrics, health, gate, .. } = parts;
    let Parts { inventory, artifacts, traces, .. } = parts;
    let removals_stop = CancellationToken::new();
    let executor = Arriving::default();
    let containers = config.docker.enabled.then(|| executor.clone());
    let hosts = inventory
        .clone()
        .map(|inventory| node::hosts(config, inventory, &home.owner, &home.path(""), removals_stop.clone()));
    let hosts = hosts.transpose()?;
    let counted = hosts.clone();
    let pool = hosts.as_ref().map(|hosts| hosts.pool().clone());
    let cells = Both::new(containers, hosts);
    // Without a file SIGHUP ends the process, as a terminal that is closed wants it; under systemd it is a reload, whatever there is to read.
    let watch = || watch_policy(gate.policy.clone(), health.clone(), audit.clone());
    let policy = (gate.policy.file().is_some() || systemd::is_here()).then(watch).transpose()?;
    let inventory = inventory.map(|inventory| watch_inventory(inventory, health.clone(), audit.clone())).transpose()?;
    let counting = counted.map(|hosts| spawn("ssh metrics", count_connections(hosts, Arc::clone(&metrics))));
    let held = Arc::clone(&journal);
    let agent = node::agent(config, backends, logs, &home.owner, cells, journal, metrics, gate, artifacts, traces);
    let watching = spawn("agent health", watch_agent(agent.status(), health.clone()));
    let told = systemd::follow(agent.status(), agent.pulse());
    let status = agent.status();
    let dump = dump::listen(health.clone(), move || {
        dump::agent(format!("{:?}", *status.borrow()), Arc::clone(&held), pool.clone())
    })?;
    let mut running = std::pin::pin!(agent.run(signals.drain.clone(), signals.force.clone()));
    // The agent does not wait for the engine: what has ended can be told, and leases kept, without one.
    let (drained, reached) = tokio::select! {
        drained = &mut running => (drained, Ok(None)),
        reached = reach_engine(config, home, seccomp, removals_stop.clone(), &executor), if config.docker.enabled => {
            if reached.is_err() {
                signals.drain.cancel();
            }
            (running.await, reached)
        }
    };
    watching.abort();
    for task in [policy, inventory, counting, told, Some(dump)].into_iter().flatten() {
        task.abort();
    }
    if let Ok(executor) = executor.get()
        && !executor.settled(SETTLE).await
    {
        tracing::error!("cells are left behind; the next start removes them");
    }
    removals_stop.cancel();
    // The engine is another agent's from here on.
    reached.map(|lock| {
        drop(lock);
        drained
    })
}

/// The agent's journal, and whether it is whole. What of it is damaged is kept and told of. Errors: a newer version wrote it, or it cannot be written.
pub(super) fn journal(home: &Home) -> Result<(Arc<SqliteJournal>, bool), Failure> {
    let opened = SqliteJournal::open(&home.path("journal.db"), UnixMillis::now());
    let Opened { journal, damage } = opened.map_err(|error| Failure::unavailable(error.to_string()))?;
    for damage in &damage {
        tracing::error!("{damage}");
    }
    Ok((Arc::new(journal), damage.is_empty()))
}

/// The exit code that says how a stop went.
pub(super) fn exit_code(drained: Drained) -> u8 {
    match drained {
        Drained::Forced(jobs) => {
            tracing::warn!(jobs, "stopped; jobs were ended before their time");
            TEMPORARY
        }
        Drained::HandedOver(jobs) => {
            tracing::info!(jobs, "stopped; the next start goes on with the jobs that run");
            0
        }
        Drained::Undelivered(ends) => {
            tracing::warn!(ends, "stopped; the next start delivers what could not be told");
            TEMPORARY
        }
        Drained::Clean => {
            tracing::info!("stopped");
            0
        }
    }
}

/// Waits for the engine and makes the executor on it; answers with the lock on the engine. Errors: another agent uses it.
async fn reach_engine(
    config: &Config,
    home: &Home,
    seccomp: Profiles,
    stop: CancellationToken,
    arriving: &Arriving<DockerExecutor>,
) -> Result<Option<File>, Failure> {
    let mut said = String::new();
    loop {
        let reason = match engine_with_id(config).await {
            Ok((engine, id)) => match doctor::enforced(config).await {
                None => {
                    let lock = id.map(|id| lock_engine(&id)).transpose()?;
                    tracing::info!(host = %config.docker.host, "engine answers");
                    arriving.arrive(Arc::new(node::executor(
                        config,
                        engine,
                        seccomp,
                        &home.path(""),
                        home.owner.clone(),
                        stop,
                    )));
                    return Ok(lock);
                }
                Some(reason) => reason,
            },
            Err(error) => format!("{}: {}", config.docker.host, error.short()),
        };
        if reason != said {
            tracing::error!(%reason, "no cells yet; jobs wait. `jobcell doctor` tells more");
            arriving.missing(&reason);
            said = reason;
        }
        tokio::time::sleep(ENGINE_PAUSE).await;
    }
}

/// The engine, and its id where that is to be locked.
async fn engine_with_id(config: &Config) -> Result<(Engine, Option<String>), EngineError> {
    let engine = node::connect(config).await?;
    let id = if config.docker.shared { None } else { engine.id().await? };
    Ok((engine, id))
}

/// Keeps the policy as its file is, and says in health when the file does not hold. A look is made every few seconds, and at once on
/// SIGHUP. Errors: the signal cannot be listened to.
fn watch_policy(policy: LivePolicy, health: Health, audit: Audit) -> Result<JoinHandle<()>, Failure> {
    let mut hup = signal(SignalKind::hangup()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    if policy.file().is_some() {
        health.set(Component::Policy, State::Ok);
    }
    Ok(spawn("policy", async move {
        loop {
            let asked = tokio::select! {
                _ = hup.recv() => true,
                () = tokio::time::sleep(POLICY_PAUSE) => false,
            };
            let live = policy.clone();
            match supervise::blocking(move || live.look(asked)).await {
                Looked::Same => {}
                Looked::Loaded => {
                    let rules = policy.current().rules();
                    tracing::info!(rules, "the policy was read and holds from now on");
                    audit.note(Event::own("policy.reload", Outcome::Done, Some(format!("{rules} rules"))));
                    health.set(Component::Policy, State::Ok);
                }
                Looked::Refused(reason) => {
                    tracing::error!(%reason, "the policy's file has problems; the last good one holds");
                    audit.note(Event::own("policy.reload", Outcome::Rejected, Some(reason.clone())));
                    health.set(Component::Policy, State::Degraded(format!("the last good policy holds; {reason}")));
                }
            }
        }
    }))
}

/// Keeps the inventory as its file is, in the same way.
fn watch_inventory(inventory: LiveInventory, health: Health, audit: Audit) -> Result<JoinHandle<()>, Failure> {
    let mut hup = signal(SignalKind::hangup()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    health.set(Component::Inventory, State::Ok);
    Ok(spawn("inventory", async move {
        loop {
            let asked = tokio::select! {
                _ = hup.recv() => true,
                () = tokio::time::sleep(POLICY_PAUSE) => false,
            };
            let live = inventory.clone();
            match supervise::blocking(move || live.look(asked)).await {
                Found::Same => {}
                Found::Loaded => {
                    let hosts = inventory.current().hosts().count();
                    tracing::info!(hosts, "the inventory was read and holds from now on");
                    audit.note(Event::own("inventory.reload", Outcome::Done, Some(format!("{hosts} hosts"))));
                    health.set(Component::Inventory, State::Ok);
                }
                Found::Refused(reason) => {
                    tracing::error!(%reason, "the inventory's file has problems; the last good one holds");
                    audit.note(Event::own("inventory.reload", Outcome::Rejected, Some(reason.clone())));
                    health
                        .set(Component::Inventory, State::Degraded(format!("the last good inventory holds; {reason}")));
                }
            }
        }
    }))
}

/// Tells in metrics how the hosts stand.
async fn count_connections(hosts: SshExecutor, metrics: Arc<Metrics>) {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    loop {
        let states = hosts.pool().states();
        metrics.ssh_connections.set(number(states.iter().map(|host| host.connections).sum()));
        metrics.ssh_channels.set(number(states.iter().map(|host| host.channels).sum()));
        for breaker in ["admit", "probe", "refuse"] {
            let count = states.iter().filter(|host| host.breaker == breaker).count();
            metrics.ssh_hosts.with_label_values(&[breaker]).set(number(count));
        }
        let plain = hosts.plain_hosts();
        for (why, lasting) in [("unfit", true), ("not_now", false)] {
            let count = plain.iter().filter(|host| host.lasting == lasting).count();
            metrics.ssh_plain_hosts.with_label_values(&[why]).set(number(count));
        }
        tokio::time::sleep(SSH_PAUSE).await;
    }
}

async fn watch_agent(mut status: watch::Receiver<Status>, health: Health) {
    loop {
        let now = status.borrow_and_update().clone();
        let starting = now.starting.then(|| "starting".to_owned());
        let other = now.unavailable.filter(|_| now.no_cells.is_none() || !now.away.is_empty());
        health.set(Component::Engine, engine(now.no_cells, starting, !now.away.is_empty()));
        health.set(
            Component::Agent,
            if now.draining {
                State::Down("draining".into())
            } else {
                other.map(State::Down).or_else(|| drained(&now.drained, now.backends.len())).unwrap_or(State::Ok)
            },
        );
        // An embedded backend cannot be away, and has no component.
        if health.has(Component::Backend) {
            health.set(Component::Backend, backends(&now.backends));
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// How the engine is. `others`: the agent takes jobs that need none, and so it can work.
fn engine(no_cells: Option<String>, starting: Option<String>, others: bool) -> State {
    match no_cells {
        // What was not asked yet is not away.
        Some(reason) if others && starting.is_none() && !is_of_a_start(&reason) => {
            State::Degraded(format!("jobs for hosts are taken, those in containers wait: {reason}"))
        }
        no_cells => no_cells.or(starting).map_or(State::Ok, State::Down),
    }
}

/// Which backends hand no jobs to the agent, of so many.
fn drained(drained: &[(String, String)], backends: usize) -> Option<State> {
    match drained {
        [] => None,
        [(_, reason)] if backends == 1 => Some(State::Drained(reason.clone())),
        several => {
            let told = several.iter().map(|(name, reason)| format!("{name}: {reason}")).collect::<Vec<_>>();
            Some(State::Drained(told.join("; ")))
        }
    }
}

/// Well as long as one of them is: there is work to do.
fn backends(all: &[(String, BackendState)]) -> State {
    if all.iter().any(|(_, state)| *state == BackendState::Well) {
        return State::Ok;
    }
    let told = all.iter().map(|(name, state)| match state {
        BackendState::Failing(reason) => format!("{name}: {reason}"),
        BackendState::Refusing(reason) => format!("{name} refuses this agent: {reason}"),
        BackendState::Unknown | BackendState::Well => format!("{name}: no answer yet"),
    });
    State::Down(told.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::UNSETTLED;
    use crate::executor::STARTING;

    #[test]
    fn an_agent_without_its_engine_is_well_only_as_far_as_it_has_other_work() {
        let (away, none) = (|| Some("no engine".to_owned()), || None);
        assert_eq!(engine(none(), none(), false), State::Ok);
        assert_eq!(engine(away(), none(), false), State::Down("no engine".to_owned()));
        assert!(matches!(engine(away(), none(), true), State::Degraded(why) if why.ends_with("wait: no engine")));
        // At its start nothing is known yet.
        assert_eq!(engine(Some(STARTING.to_owned()), none(), true), State::Down(STARTING.to_owned()));
        assert_eq!(engine(Some(UNSETTLED.to_owned()), none(), true), State::Down(UNSETTLED.to_owned()));
        assert_eq!(engine(away(), Some(STARTING.to_owned()), true), State::Down("no engine".to_owned()));
        assert_eq!(engine(none(), Some(STARTING.to_owned()), true), State::Down(STARTING.to_owned()));
    }
}
