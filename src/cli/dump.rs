//! SIGUSR1: how this process stands, in one line of its log. For an operator who looks at one that does not do what it should.
//!
//! Only looks. Must never say a secret: what it tells is what health, metrics and lists tell.

use super::Failure;
use crate::backend::Embedded;
use crate::executor::ssh::Pool;
use crate::journal::{Journal, Stage};
use crate::supervise::spawn;
use crate::telemetry::Health;
use serde_json::{Value, json};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A state that cannot be had within it is what there is to be told.
const LIMIT: Duration = Duration::from_secs(10);
/// Attempts and hosts that are told one by one.
const MOST: usize = 200;

/// Tells `state` whenever the signal comes. Errors: it cannot be listened to.
pub(super) fn listen<F, S>(health: Health, state: S) -> Result<JoinHandle<()>, Failure>
where
    F: Future<Output = Value> + Send,
    S: Fn() -> F + Send + 'static,
{
    let began = Instant::now();
    let mut asked =
        signal(SignalKind::user_defined1()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    Ok(spawn("state dump", async move {
        while asked.recv().await.is_some() {
            let more = timeout(LIMIT, state()).await.unwrap_or_else(|_| json!("could not be had in time"));
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            let told = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "up_seconds": began.elapsed().as_secs(),
                "health": health.report(),
                "tasks": tasks,
                "memory_bytes": memory(),
                "state": more,
            });
            // Whatever the filter of the log is: somebody asked.
            tracing::error!(target: "jobcell::state", state = %told, "the state that SIGUSR1 asked for");
        }
    }))
}

/// What a server has.
pub(super) async fn server(backend: &Embedded) -> Value {
    match backend.counts().await {
        Ok(counts) => json!({"jobs": counts}),
        Err(error) => json!(error.to_string()),
    }
}

/// What an agent holds, and how it gets to its hosts.
pub(super) async fn agent(status: String, journal: Arc<dyn Journal>, pool: Option<Pool>) -> Value {
    let attempts = match journal.entries().await {
        Err(error) => json!(error.to_string()),
        Ok(entries) => {
            let one = |entry: &crate::journal::Entry| {
                let stage = match &entry.stage {
                    Stage::Intent => "intent",
                    Stage::Committed => "committed",
                    Stage::Ended(_) => "ended",
                };
                json!({"attempt": entry.key.attempt.to_string(), "backend": entry.key.backend, "stage": stage})
            };
            json!({"count": entries.len(), "first": entries.iter().take(MOST).map(one).collect::<Vec<_>>()})
        }
    };
    let hosts = pool.map(|pool| {
        let states = pool.states();
        let one = |host: &crate::executor::ssh::HostState| {
            json!({"host": host.name, "login": host.login, "breaker": host.breaker,
                "connections": host.connections, "channels": host.channels})
        };
        json!({"count": states.len(), "first": states.iter().take(MOST).map(one).collect::<Vec<_>>()})
    });
    json!({"agent": status, "attempts": attempts, "hosts": hosts})
}

/// In memory, as the kernel counts it; nothing where that is not to be seen.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}
