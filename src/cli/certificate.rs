//! The API's certificate while a process runs: its files are looked at every few seconds, and at once on SIGHUP.
//!
//! Owns who is told of another one, or of one that is not good: log, health, audit log, metrics, and the file for clients on this host.

use super::Failure;
use super::home::Home;
use crate::audit::{Audit, Event, Outcome};
use crate::config::Config;
use crate::job::UnixMillis;
use crate::supervise::{self, spawn};
use crate::telemetry::{Component, Health, Metrics, State};
use crate::tls::{Looked, ServerTls};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// A certificate that is over so soon is told of at the start and when it is taken; the alert looks at the metric.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The certificate and key that the settings name. Errors: they are not good.
pub(super) fn load(config: &Config) -> Result<Option<Arc<ServerTls>>, Failure> {
    let Some((certificate, key)) = &config.server.tls else { return Ok(None) };
    ServerTls::load(certificate, key).map(|tls| Some(Arc::new(tls))).map_err(Failure::config)
}

/// Whom a change is told to.
pub(super) struct Told {
    pub(super) audit: Audit,
    pub(super) health: Health,
    pub(super) metrics: Arc<Metrics>,
    /// Where clients on this host find it.
    published: PathBuf,
}

impl Told {
    pub(super) fn new(audit: Audit, health: Health, metrics: Arc<Metrics>, home: &Home) -> Self {
        Self { audit, health, metrics, published: home.path(super::client::OWN_CERTIFICATE) }
    }

    fn holds(&self, tls: &ServerTls) {
        let (until, now) = (tls.until(), UnixMillis::now());
        self.metrics.tls_certificate_expiry.set(i64::try_from(until.as_u64() / 1000).unwrap_or(i64::MAX));
        let left = Duration::from_millis(until.as_u64().saturating_sub(now.as_u64()));
        if left < SOON {
            tracing::warn!(%until, "the API's certificate is over soon; put another one in its place");
        }
        self.health.set(Component::Tls, State::Ok);
    }

    fn found(&self, tls: &ServerTls, found: Looked) {
        match found {
            Looked::Same => {}
            Looked::Loaded => {
                let until = tls.until();
                tracing::info!(%until, "another certificate was read and holds for new connections");
                self.audit.note(Event::own("tls.reload", Outcome::Done, Some(format!("until {until}"))));
                // Under its name at once and whole, as it was at the start.
                let fresh = self.published.with_extension("new");
                let written =
                    std::fs::write(&fresh, tls.own_pem()).and_then(|()| std::fs::rename(&fresh, &self.published));
                if let Err(error) = written {
                    tracing::error!(%error, "clients on this host cannot be told of the new certificate");
                }
                self.holds(tls);
            }
            Looked::Refused(reason) => {
                tracing::error!(%reason, "the certificate's files are not good; the last good certificate holds");
                self.audit.note(Event::own("tls.reload", Outcome::Rejected, Some(reason.clone())));
                self.health.set(Component::Tls, State::Degraded(format!("the last good certificate holds; {reason}")));
            }
        }
    }
}

/// Looks after it until `stop`. Errors: the signal cannot be listened to.
pub(super) fn watch(tls: Arc<ServerTls>, told: Told, stop: CancellationToken) -> Result<JoinHandle<()>, Failure> {
    let mut hup = signal(SignalKind::hangup()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    told.holds(&tls);
    Ok(spawn("certificate", async move {
        let told = Arc::new(told);
        loop {
            let asked = tokio::select! {
                _ = hup.recv() => true,
                () = tokio::time::sleep(PAUSE) => false,
                () = stop.cancelled() => return,
            };
            let (tls, told) = (Arc::clone(&tls), Arc::clone(&told));
            supervise::blocking(move || {
                let found = tls.look(asked);
                told.found(&tls, found);
            })
            .await;
        }
    }))
}
