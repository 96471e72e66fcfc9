//! `jobcell agent`: claims from servers elsewhere and runs jobs here.

use super::home::Home;
use super::service::{Parts, Signals, exit_code, journal, run_agent};
use super::telling::Telling;
use super::{Failure, node, reload};
use crate::backend::{Backend, Http, HttpSettings};
use crate::config::{BackendConfig, Config, LoadInput};
use crate::job::Artifacts;
use crate::journal::Journal;
use crate::logstore::LogStore;
use crate::server::{admin_router, serve};
use crate::supervise::spawn;
use crate::telemetry::{Component, Health, Metrics};
use clap::Subcommand;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Subcommand)]
pub(super) enum AgentCommand {
    /// Remove what this installation has left on its engine, while no agent of it runs
    Sweep(super::sweep::SweepArgs),
}

/// Health answers that are being given when the agent stops.
const GRACE: Duration = Duration::from_secs(1);

/// Runs until a signal.
pub(super) async fn agent(config: Config, settings: LoadInput, quiet: bool) -> Result<u8, Failure> {
    if config.backends.is_empty() {
        return Err(Failure::config(
            "no backend: give --backend http://host:port, or `backends` in the settings, and the agent's key in \
             JOBCELL_AGENT_KEY or key_file; `jobcell agents add NAME` at the server makes one",
        ));
    }
    let seccomp = node::seccomp(&config)?;
    let inventory = node::inventory(&config)?;
    let gate = node::gate(&config, node::policy(&config)?, inventory.as_ref());
    let home = Home::open(&config.data_dir)?;
    let spool = home.path("spool");
    let unusable = |error| Failure::unavailable(format!("{}: {error}", spool.display()));
    let logs = LogStore::open(&spool, config.logs_sync_every.as_u64()).map_err(unusable)?;
    // Output of attempts that nobody remembers will never be passed on.
    let (journal, whole) = journal(&home)?;
    if whole {
        let entries = journal.entries().await.map_err(|error| Failure::unavailable(error.to_string()))?;
        logs.keep_only(&entries.iter().map(|entry| entry.key.attempt).collect()).map_err(unusable)?;
    }
    let artifacts = node::artifacts(&config, &node::blobs(&config, &home.path("blobs")).await?);
    if whole {
        let entries = journal.entries().await.map_err(|error| Failure::unavailable(error.to_string()))?;
        let held: HashSet<String> = entries.iter().map(|entry| Artifacts::holder(entry.key.attempt)).collect();
        node::release_artifacts(&artifacts, &held).await.map_err(|error| Failure::unavailable(error.to_string()))?;
    }
    let metrics = Arc::new(Metrics::with_counters(&config.telemetry.counters));
    let health = Health::new(&[Component::Engine, Component::Agent, Component::Backend]);
    let signals = Signals::listen()?;
    let stop = CancellationToken::new();

    let listen = config.agent.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::unavailable(format!("agent.listen {listen}: {error}; choose another with --listen"))
    })?;
    let address = listener.local_addr().map_err(|error| Failure::unavailable(error.to_string()))?;
    let admin = admin_router(health.clone(), Arc::clone(&metrics));
    let bounds = node::connections(&config, &metrics);
    let admin = spawn("health", serve(listener, admin, bounds, stop.clone(), GRACE));
    home.publish("health", &format!("http://{address}"))
        .map_err(|error| Failure::unavailable(format!("health file: {error}")))?;

    let sweeping = spawn("artifacts", node::sweep_artifacts(artifacts.clone(), stop.clone()));
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    for (name, backend) in &config.backends {
        let key = key(name, backend)?;
        let spool_max = config.agent.spool_max.as_u64();
        let settings =
            HttpSettings { name: name.clone(), url: backend.url.clone(), key, rate: backend.rate, spool_max };
        let http = Http::new(settings, logs.clone(), stop.clone()).map_err(Failure::new)?;
        backends.push(Arc::new(http));
    }
    if !quiet {
        println!("jobcell {} agent", env!("CARGO_PKG_VERSION"));
        for (name, backend) in &config.backends {
            println!("  backend  {name}: {}", backend.url);
        }
        println!("  health   http://{address}/healthz");
    }

    let audit = node::audit(&config, &home, &health, &metrics);
    let telling = Telling::begin(&config, &home.owner.to_string(), &metrics);
    let parts = Parts {
        config: &config,
        audit: audit.clone(),
        home: &home,
        seccomp,
        backends,
        journal,
        logs,
        metrics,
        health: &health,
        gate,
        inventory,
        artifacts,
        traces: telling.traces.clone(),
    };
    let watching = reload::watch(settings, health.clone(), reload::Held { audit: audit.clone(), limits: None })?;
    let drained = run_agent(parts, &signals).await;
    if let Some(watching) = watching {
        watching.abort();
    }
    stop.cancel();
    let _ = admin.await;
    let _ = sweeping.await;
    audit.close().await;
    telling.end().await;
    home.unpublish("health");
    Ok(exit_code(drained?))
}

/// The agent's key for a backend. Errors: there is none.
fn key(name: &str, backend: &BackendConfig) -> Result<String, Failure> {
    let key = match &backend.key_file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Failure::config(format!("backends.{name}.key_file {}: {error}", file.display())))?,
        None => std::env::var("JOBCELL_AGENT_KEY").unwrap_or_default(),
    };
    let key = key.trim().to_owned();
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Failure::config(format!(
            "backends.{name}: no key: put it into key_file, or into JOBCELL_AGENT_KEY; `jobcell agents add NAME` at the server \
             makes one"
        )));
    }
    Ok(key)
}
