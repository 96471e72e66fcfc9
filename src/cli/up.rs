//! `jobcell up`: agent and embedded backend in one process, with no settings at all.

use super::exit::TEMPORARY;
use super::home::Home;
use super::{Failure, node};
use crate::agent::{Drained, Status};
use crate::backend::Embedded;
use crate::config::Config;
use crate::executor::docker::DockerExecutor;
use crate::queue::{AnyStore, SqliteStore};
use crate::server::{ApiKey, ServerSettings, router, serve};
use crate::supervise::spawn;
use crate::telemetry::{Component, Health, Metrics, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two tries to reach an engine that does not answer.
const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// For removals that are under way at the end.
const SETTLE: Duration = Duration::from_secs(20);

/// Runs until a signal. SIGTERM or SIGINT: claim no more, let jobs end until agent.drain_timeout, then end them. A second
/// one: end them now. A third one: leave at once; the next start cleans up.
pub(super) async fn up(config: Config, quiet: bool) -> Result<u8, Failure> {
    let seccomp = node::seccomp(&config)?;
    let home = Home::open(&config.data_dir)?;
    let store = SqliteStore::open(&home.path("queue.db")).map_err(|error| Failure::unavailable(error.to_string()))?;
    let backend = node::backend(&config, AnyStore::Sqlite(store), &home.path("logs"))?;
    let listener = TcpListener::bind(config.server.listen).await.map_err(|error| {
        Failure::unavailable(format!("server.listen {}: {error}; choose another with --listen", config.server.listen))
    })?;
    let address = listener.local_addr().map_err(|error| Failure::unavailable(error.to_string()))?;
    let url = format!("http://{address}");
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the API is reachable from other hosts, without TLS: whoever sees the traffic sees the key");
    }
    let metrics = Arc::new(Metrics::new());
    let health = Health::new(&[Component::Queue, Component::Engine, Component::Agent]);
    let signals = Signals::listen()?;

    let server_stop = CancellationToken::new();
    let settings = ServerSettings {
        max_body: usize::try_from(config.server.max_body.as_u64()).unwrap_or(usize::MAX),
        wait_max: config.server.wait_max.as_duration(),
        viewers_max: config.server.viewers_max as usize,
        shutdown_grace: config.server.shutdown_grace.as_duration(),
        rules: node::rules(&config),
    };
    let grace = settings.shutdown_grace;
    let key = ApiKey::of(&home.admin_key);
    let app = router(Arc::clone(&backend), health.clone(), Arc::clone(&metrics), key, settings, server_stop.clone());
    let server = spawn("api", serve(listener, app, server_stop.clone(), grace));
    let expiry_stop = CancellationToken::new();
    let expiry = spawn("lease expiry", Arc::clone(&backend).run_expiry(expiry_stop.clone()));
    home.publish(&url).map_err(|error| Failure::unavailable(format!("endpoint file: {error}")))?;
    if !quiet {
        greet(&home, &url, &config);
    }

    let drained = run_agent(&config, &home, seccomp, backend, metrics, &health, &signals).await;
    home.unpublish();
    server_stop.cancel();
    expiry_stop.cancel();
    let _ = tokio::join!(server, expiry);
    match drained {
        Some(Drained::Forced(jobs)) => {
            tracing::warn!(jobs, "stopped; jobs were ended before their time");
            Ok(TEMPORARY)
        }
        Some(Drained::Clean) | None => {
            tracing::info!("stopped");
            Ok(0)
        }
    }
}

/// What a person who started this wants to know first. The key is shown once, when it is made.
fn greet(home: &Home, url: &str, config: &Config) {
    println!("jobcell {} is up", env!("CARGO_PKG_VERSION"));
    println!("  API    {url}");
    println!("  data   {}", config.data_dir.display());
    if home.new_key {
        println!("  key    {}  (shown once; kept in {})", home.admin_key, home.path("admin.key").display());
    } else {
        println!("  key    in {}", home.path("admin.key").display());
    }
    tracing::info!(%url, owner = %home.owner, "up");
}

struct Signals {
    drain: CancellationToken,
    force: CancellationToken,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
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

/// Waits for the engine, cleans up behind an earlier run, and runs the agent. `None` when there never was an engine.
async fn run_agent(
    config: &Config,
    home: &Home,
    seccomp: String,
    backend: Arc<Embedded>,
    metrics: Arc<Metrics>,
    health: &Health,
    signals: &Signals,
) -> Option<Drained> {
    let removals_stop = CancellationToken::new();
    let executor = tokio::select! {
        executor = reach_engine(config, home, seccomp, removals_stop.clone(), health) => Arc::new(executor),
        () = signals.drain.cancelled() => return None,
    };
    health.set(Component::Engine, State::Ok);
    let agent = node::agent(config, backend, Arc::clone(&executor), metrics);
    let watching = spawn("agent health", watch_agent(agent.status(), health.clone()));
    health.set(Component::Agent, State::Ok);
    let drained = agent.run(signals.drain.clone(), signals.force.clone()).await;
    watching.abort();
    if !executor.settled(SETTLE).await {
        tracing::error!("cells are left behind; the next start removes them");
    }
    removals_stop.cancel();
    Some(drained)
}

async fn reach_engine(
    config: &Config,
    home: &Home,
    seccomp: String,
    stop: CancellationToken,
    health: &Health,
) -> DockerExecutor {
    let mut said = String::new();
    loop {
        let reason = match node::connect(config).await {
            Ok(engine) => {
                let executor = node::executor(config, engine, seccomp.clone(), home.owner.clone(), stop.clone());
                match executor.sweep().await {
                    Ok(swept) => {
                        tracing::info!(host = %config.docker.host, swept, "engine answers");
                        return executor;
                    }
                    Err(error) => error.short(),
                }
            }
            Err(error) => error.short(),
        };
        if reason != said {
            tracing::error!(host = %config.docker.host, %reason, "no engine yet; jobs wait. `jobcell doctor` tells more");
            health.set(Component::Engine, State::Down(reason.clone()));
            said = reason;
        }
        tokio::time::sleep(ENGINE_PAUSE).await;
    }
}

async fn watch_agent(mut status: watch::Receiver<Status>, health: Health) {
    loop {
        let now = status.borrow_and_update().clone();
        health.set(Component::Engine, now.unavailable.map_or(State::Ok, State::Down));
        health.set(Component::Agent, if now.draining { State::Down("draining".into()) } else { State::Ok });
        if status.changed().await.is_err() {
            return;
        }
    }
}
