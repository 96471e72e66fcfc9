//! The way of traces out of this process: begun with it, and emptied at its end.

use crate::config::Config;
use crate::supervise::spawn;
use crate::telemetry::{Metrics, Traces};
use crate::tls::ClientTls;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// For what is left at the end; the exporter's own deadline is shorter.
const LAST: Duration = Duration::from_secs(8);

/// Spans on their way, if anybody wants them.
pub(super) struct Telling {
    pub(super) traces: Traces,
    way: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Telling {
    /// Begins it, where the settings name a collector. `instance`: which installation tells.
    pub(super) fn begin(config: &Config, instance: &str, metrics: &Arc<Metrics>) -> Self {
        for ignored in &config.telemetry.ignored {
            tracing::warn!("{ignored}");
        }
        let Some(settings) = &config.telemetry.otlp else { return Self { traces: Traces::default(), way: None } };
        let settings = settings.clone().told_by(&[
            ("service.name", env!("CARGO_PKG_NAME")),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", instance),
        ]);
        let tls = match ClientTls::for_url(&settings.url, settings.ca_file.as_deref()) {
            Ok(tls) => tls,
            // Jobs do not wait for those who watch them.
            Err(reason) => {
                tracing::error!(url = %settings.url, %reason, "no spans are sent");
                return Self { traces: Traces::default(), way: None };
            }
        };
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls.config());
        let (traces, exporter) = Traces::new(&settings, http, metrics);
        let stop = CancellationToken::new();
        let task = spawn("spans", exporter.run(stop.clone()));
        Self { traces, way: Some((task, stop)) }
    }

    /// Sends what is left, as far as that is done in a few seconds.
    pub(super) async fn end(self) {
        if let Some((mut task, stop)) = self.way {
            stop.cancel();
            if tokio::time::timeout(LAST, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}
