//! `jobcell up`: agent and backend in one process, with no settings at all. `jobcell server`: the backend alone.

use super::api::Api;
use super::home::Home;
use super::reload::Began;
use super::service::{Parts, Signals, exit_code, journal, run_agent};
use super::telling::Telling;
use super::{Failure, dump, node, reload, systemd};
use crate::agent::Drained;
use crate::backend::{Backend, Local};
use crate::job::SpecRules;
use crate::telemetry::{Component, Health, Metrics};
use std::sync::Arc;

/// Runs both until a signal.
pub(super) async fn up(began: Began, quiet: bool) -> Result<u8, Failure> {
    let config = began.config();
    let seccomp = node::seccomp(&config)?;
    let inventory = node::inventory(&config)?;
    let gate = node::gate(&config, node::policy(&config)?, inventory.as_ref());
    let home = Home::open(&config.data_dir)?;
    let (journal, _) = journal(&home)?;
    let metrics = Arc::new(Metrics::with_counters(&config.telemetry.counters));
    let health = Health::new(&[Component::Queue, Component::Engine, Component::Agent]);
    let signals = Signals::listen()?;
    // The same gate at the door: whom the agent would refuse hears it at once.
    let rules = (node::rules(&config), Some(gate.clone()));
    let greeting = greeting(quiet, "");
    let stopping = signals.drain.clone();
    let telling = Telling::begin(&config, &home.owner.to_string(), &metrics);
    let (counted, told) = (Arc::clone(&metrics), &telling.traces);
    let api = Api::start(&config, &home, greeting, rules, stopping, counted, health.clone(), told).await?;
    let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Local::new(Arc::clone(&api.backend), &config.agent.name))];
    let logs = api.backend.logs().clone();
    let Some(artifacts) = api.backend.artifacts().cloned() else { return Err(Failure::new("no store for artifacts")) };
    let parts = Parts {
        config: &config,
        audit: api.audit.clone(),
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
    let watching = reload::watch(began, health.clone(), api.held())?;
    let drained = run_agent(parts, &signals).await;
    if let Some(watching) = watching {
        watching.abort();
    }
    api.stop(&home).await;
    home.fold_logs(&["journal.db"]).await;
    telling.end().await;
    Ok(exit_code(drained?))
}

/// Runs the backend until a signal.
pub(super) async fn server(began: Began, quiet: bool) -> Result<u8, Failure> {
    let config = began.config();
    let home = Home::open(&config.data_dir)?;
    let health = Health::new(&[Component::Queue]);
    // Which presets there are, and what their operators allow, the agents know.
    let rules = (SpecRules { presets: None }, None);
    let signals = Signals::listen()?;
    let (greeting, stopping) = (greeting(quiet, " (server only)"), signals.drain.clone());
    let metrics = Arc::new(Metrics::new());
    let telling = Telling::begin(&config, &home.owner.to_string(), &metrics);
    let told = &telling.traces;
    let api = Api::start(&config, &home, greeting, rules, stopping, metrics, health.clone(), told).await?;
    let watching = reload::watch(began, health.clone(), api.held())?;
    let backend = Arc::clone(&api.backend);
    let dump = dump::listen(health, move || {
        let backend = Arc::clone(&backend);
        async move { dump::server(backend.as_ref()).await }
    })?;
    systemd::ready("serving");
    signals.drain.cancelled().await;
    for task in watching.into_iter().chain([dump]) {
        task.abort();
    }
    systemd::stopping("stopping");
    api.stop(&home).await;
    telling.end().await;
    Ok(exit_code(Drained::Clean))
}

fn greeting(quiet: bool, what: &'static str) -> Option<&'static str> {
    Some(what).filter(|_| !quiet)
}
