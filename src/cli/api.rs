//! The backend with its API, as `up` and `server` run it.

use super::home::Home;
use super::reload::Held;
use super::{Failure, certificate, node};
use crate::admission::Gate;
use crate::audit::{Audit, Event, Outcome};
use crate::backend::Embedded;
use crate::config::{Config, LimitsConfig};
use crate::job::SpecRules;
use crate::queue::{AnyStore, SqliteStore};
use crate::server::{
    AgentDrains, AgentKeys, Doors, JoinTokens, LimitSettings, LiveLimits, ServerSettings, UserKeys, router, serve,
};
use crate::supervise::spawn;
use crate::telemetry::{Health, Metrics, Traces};
use std::io::IsTerminal;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running API.
pub(super) struct Api {
    pub(super) backend: Arc<Embedded>,
    pub(super) audit: Audit,
    pub(super) limits: LiveLimits,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Api {
    /// Opens queue and logs, binds the address, serves, and says where, with what it is if `greeting` is given. Errors: one of them cannot be had.
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own, and this is where they come together")]
    pub(super) async fn start(
        config: &Config,
        home: &Home,
        greeting: Option<&str>,
        (rules, gate): (SpecRules, Option<Gate>),
        stopping: CancellationToken,
        metrics: Arc<Metrics>,
        health: Health,
        traces: &Traces,
    ) -> Result<Self, Failure> {
        let unavailable = |error: &dyn std::fmt::Display| Failure::unavailable(error.to_string());
        let tls = certificate::load(config)?;
        let store = SqliteStore::open_with_groups(&home.path("queue.db"), config.queue.groups.clone())
            .map_err(|error| unavailable(&error))?;
        let agent_keys = AgentKeys::open(home.path("agents.json")).map_err(|error| unavailable(&error))?;
        let tokens = JoinTokens::open(home.path("join-tokens.json")).map_err(|error| unavailable(&error))?;
        let backend = node::backend(config, AnyStore::Sqlite(store), &home.path("logs"))?;
        let blobs = node::blobs(config, &home.path("blobs")).await?;
        backend.keep_artifacts(node::artifacts(config, &blobs), config.artifacts.keep);
        backend.keep_contents(blobs, config.blobs.keep);
        backend.tell_traces(traces);
        let agent_drains =
            AgentDrains::open(home.path("drains.json"), &backend).map_err(|error| unavailable(&error))?;
        let listener = TcpListener::bind(config.server.listen).await.map_err(|error| {
            let listen = config.server.listen;
            Failure::unavailable(format!("server.listen {listen}: {error}; choose another with --listen"))
        })?;
        let address = listener.local_addr().map_err(|error| unavailable(&error))?;
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        if !address.ip().is_loopback() && tls.is_none() {
            tracing::warn!(%address, "the API is reachable from other hosts, without TLS: whoever sees the traffic sees the keys");
        }
        let (key, new_key) = home.admin_key()?;
        let limits = LiveLimits::new(limits(config));
        let settings = ServerSettings {
            max_body: usize::try_from(config.server.max_body.as_u64()).unwrap_or(usize::MAX),
            body_timeout: config.server.body_timeout.as_duration(),
            wait_max: config.server.wait_max.as_duration(),
            viewers_max: config.server.viewers_max as usize,
            limits: limits.clone(),
            origins: config.server.cors_origins.clone(),
            rules,
            gate,
            stopping,
        };
        let stop = CancellationToken::new();
        let keys = UserKeys::open(home.path("keys.json"), &key).map_err(|error| unavailable(&error))?;
        let audit = node::audit(config, home, &health, &metrics);
        backend.keep_for(node::retention(config), Arc::clone(&metrics), audit.clone());
        let doors = Doors { users: keys, agents: agent_keys, tokens, drains: agent_drains, audit: audit.clone() };
        let mut bounds = node::connections(config, &metrics);
        bounds.tls.clone_from(&tls);
        let watching = match tls {
            Some(tls) => {
                let failed = |error| Failure::unavailable(format!("certificate file: {error}"));
                home.publish_certificate(&tls.own_pem()).map_err(failed)?;
                let told = certificate::Told::new(audit.clone(), health.clone(), Arc::clone(&metrics), home);
                Some(certificate::watch(tls, told, stop.clone())?)
            }
            None => {
                home.unpublish(super::client::OWN_CERTIFICATE);
                None
            }
        };
        let app = router(Arc::clone(&backend), health, metrics, doors, settings, stop.clone());
        let grace = config.server.shutdown_grace.as_duration();
        let server = spawn("api", serve(listener, app, bounds, stop.clone(), grace));
        let expiry = spawn("lease expiry", Arc::clone(&backend).run_expiry(stop.clone()));
        let telling = spawn("traces", Arc::clone(&backend).run_traces(stop.clone()));
        let keeper = spawn("contents", Arc::clone(&backend).run_keeper(stop.clone()));
        let retention = spawn("retention", Arc::clone(&backend).run_retention(stop.clone()));
        home.publish("endpoint", &url).map_err(|error| Failure::unavailable(format!("endpoint file: {error}")))?;
        if let Some(what) = greeting {
            greet(what, home, &url, config, new_key.then_some(key.as_str()));
        }
        tracing::info!(%url, owner = %home.owner, "up");
        let version = concat!("version ", env!("CARGO_PKG_VERSION"));
        audit.record(Event::own("server.start", Outcome::Done, Some(version.to_owned()))).await;
        Ok(Self {
            backend,
            audit,
            limits,
            stop,
            tasks: [server, expiry, keeper, retention, telling].into_iter().chain(watching).collect(),
        })
    }

    /// What other settings are told to.
    pub(super) fn held(&self) -> Held {
        Held { audit: self.audit.clone(), limits: Some(self.limits.clone()) }
    }

    /// Takes no more requests, lets those that are being answered end, and leaves.
    pub(super) async fn stop(self, home: &Home) {
        home.unpublish("endpoint");
        home.unpublish(super::client::OWN_CERTIFICATE);
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        self.audit.record(Event::own("server.stop", Outcome::Done, None)).await;
        self.audit.close().await;
        home.fold_logs(&["queue.db", "blobs/index.db"]).await;
    }
}

fn limits(config: &Config) -> LimitSettings {
    let LimitsConfig { rate, burst, jobs, refused_rate, refused_burst } = config.limits;
    LimitSettings { rate, burst, jobs, refused_rate, refused_burst }
}

/// What a person who started this wants to know first. The key is shown once, when it is made, and on a terminal only: what a service or a
/// container prints is kept in a log that others read.
fn greet(what: &str, home: &Home, url: &str, config: &Config, new_key: Option<&str>) {
    println!("jobcell {} is up{what}", env!("CARGO_PKG_VERSION"));
    println!("  API    {url}");
    println!("  data   {}", config.data_dir.display());
    match new_key {
        Some(key) if std::io::stdout().is_terminal() => {
            println!("  key    {key}  (shown once; kept in {})", home.path("admin.key").display())
        }
        _ => println!("  key    in {}", home.path("admin.key").display()),
    }
}
