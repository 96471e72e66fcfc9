//! `jobcell agent`: claims from servers elsewhere and runs jobs here.

use super::home::Home;
use super::reload::{self, Began};
use super::service::{Parts, Signals, exit_code, journal, run_agent};
use super::telling::Telling;
use super::{Failure, node};
use crate::backend::{Backend, Http, HttpSettings};
use crate::job::Artifacts;
use crate::journal::Journal;
use crate::logstore::LogStore;
use crate::server::{admin_router, serve};
use crate::supervise::spawn;
use crate::telemetry::{Component, Health, Metrics};
use crate::tls::ClientTls;
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
pub(super) async fn agent(began: Began, quiet: bool) -> Result<u8, Failure> {
    let config = began.config();
    if config.backends.is_empty() {
        return Err(Failure::config(
            "no backend: give --backend http://host:port, or `backends` in the settings, and a join token in JOBCELL_JOIN_TOKEN \
             (`jobcell agents token create` at the server makes one) or the agent's key in JOBCELL_AGENT_KEY",
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
        let spool_max = config.agent.spool_max.as_u64();
        let tls = ClientTls::for_url(&backend.url, backend.ca_file.as_deref());
        let tls = tls.map_err(|reason| Failure::config(format!("backends.{name}: {reason}")))?;
        let key = tokio::select! {
            key = super::enroll::key(name, backend, &config, &home, &tls) => key?,
            () = signals.drain.cancelled() => return Err(Failure::unavailable("stopped before the join token was used")),
        };
        let settings =
            HttpSettings { name: name.clone(), url: backend.url.clone(), key, rate: backend.rate, spool_max };
        let http = Http::believing(tls, settings, logs.clone(), stop.clone()).map_err(Failure::new)?;
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
    let watching = reload::watch(began, health.clone(), reload::Held { audit: audit.clone(), limits: None })?;
    let drained = run_agent(parts, &signals).await;
    if let Some(watching) = watching {
        watching.abort();
    }
    stop.cancel();
    let _ = admin.await;
    let _ = sweeping.await;
    audit.close().await;
    home.fold_logs(&["journal.db", "blobs/index.db"]).await;
    telling.end().await;
    home.unpublish("health");
    Ok(exit_code(drained?))
}
