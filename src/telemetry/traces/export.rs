//! The way of spans to a collector, beside everything else: in batches, each with a deadline, tried again a few times, and then gone and
//! counted.

use super::settings::OtlpSettings;
use super::span::Span;
use super::wire::{encode, rejected};
use crate::telemetry::Metrics;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Pauses before a batch is sent again; then it is given up.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// A collector may ask for a longer one, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For what is left when the process stops.
const LAST: Duration = Duration::from_secs(5);
/// Of an answer, more is not read.
const ANSWER: usize = 64 * 1024;

/// Empties the queue of spans.
pub struct Exporter {
    settings: OtlpSettings,
    spans: mpsc::Receiver<Span>,
    metrics: Arc<Metrics>,
    http: Option<reqwest::Client>,
    /// What was wrong last, so that it is told once.
    said: Option<String>,
}

/// What became of one try.
enum Sent {
    /// Taken, but for so many.
    Taken(u64),
    /// Not now.
    Later(String, Option<Duration>),
    /// Never.
    Refused(String),
}

impl Exporter {
    pub(super) fn new(
        settings: OtlpSettings,
        http: reqwest::ClientBuilder,
        spans: mpsc::Receiver<Span>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                _ => {
                    tracing::warn!(header = %crate::job::shown(name), "a header for the collector is none, and left out")
                }
            }
        }
        let http = http
            .no_proxy()
            // A redirect would take the headers somewhere else.
            .redirect(redirect::Policy::none())
            .connect_timeout(settings.timeout)
            .timeout(settings.timeout)
            .default_headers(headers)
            .user_agent(concat!("jobcell/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = http.inspect_err(|error| tracing::error!(%error, "no HTTP client for spans: none are sent")).ok();
        Self { settings, spans, metrics, http, said: None }
    }

    /// Sends what comes, until `stop`; then what there is, as far as that is done in a few seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        tracing::info!(url = %self.settings.url, "spans of jobs are sent there");
        let mut batch = Vec::with_capacity(self.settings.batch);
        loop {
            let most = self.settings.batch;
            let taken = tokio::select! {
                biased;
                taken = self.spans.recv_many(&mut batch, most) => taken,
                () = stop.cancelled() => break,
            };
            if taken == 0 {
                return;
            }
            self.gather(&mut batch, &stop).await;
            let spans = std::mem::take(&mut batch);
            tokio::select! {
                biased;
                () = self.send(&spans, &PAUSES) => {}
                // What is being tried again is tried once more, with the rest.
                () = stop.cancelled() => {
                    batch = spans;
                    break;
                }
            }
        }
        self.spans.close();
        let until = Instant::now() + LAST;
        loop {
            while batch.len() < self.settings.batch
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            if timeout_at(until, self.send(&batch, &[])).await.is_err() {
                let left = std::iter::from_fn(|| self.spans.try_recv().ok()).count();
                self.metrics.spans_dropped("shutdown", batch.len() + left);
                return;
            }
            batch.clear();
        }
    }

    /// Waits a while for more of them.
    async fn gather(&mut self, batch: &mut Vec<Span>, stop: &CancellationToken) {
        let until = Instant::now() + self.settings.delay;
        while batch.len() < self.settings.batch {
            let left = self.settings.batch - batch.len();
            let more = tokio::select! {
                biased;
                more = timeout_at(until, self.spans.recv_many(batch, left)) => more,
                () = stop.cancelled() => return,
            };
            if matches!(more, Err(_) | Ok(0)) {
                return;
            }
        }
    }

    /// Sends a batch, with these pauses between tries.
    async fn send(&mut self, spans: &[Span], pauses: &[Duration]) {
        let body = bytes::Bytes::from(encode(&self.settings.resource, spans));
        let mut pauses = pauses.iter();
        loop {
            let (reason, dropped) = match self.try_once(body.clone()).await {
                Sent::Taken(rejected) => {
                    let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(spans.len());
                    self.metrics.spans_exported_total.inc_by((spans.len() - rejected) as u64);
                    if rejected > 0 {
                        self.metrics.spans_dropped("rejected", rejected);
                    }
                    if self.said.take().is_some() {
                        tracing::info!("the collector takes spans again");
                    }
                    return;
                }
                Sent::Later(reason, asked) => match pauses.next() {
                    Some(pause) => {
                        self.say(&reason);
                        sleep(asked.map_or(*pause, |asked| asked.max(*pause).min(LONGEST_PAUSE))).await;
                        continue;
                    }
                    None => (reason, "unreachable"),
                },
                Sent::Refused(reason) => (reason, "refused"),
            };
            self.say(&reason);
            self.metrics.spans_dropped(dropped, spans.len());
            return;
        }
    }

    fn say(&mut self, reason: &str) {
        if self.said.as_deref() != Some(reason) {
            tracing::warn!(reason, url = %self.settings.url, "spans do not get to the collector; jobs go on");
            self.said = Some(reason.to_owned());
        }
    }

    async fn try_once(&self, body: bytes::Bytes) -> Sent {
        let Some(http) = &self.http else { return Sent::Refused("there is no HTTP client".to_owned()) };
        let request = http.post(&self.settings.url).header("content-type", "application/x-protobuf").body(body);
        let mut response = match timeout(self.settings.timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Sent::Later(cause_of(&error), None),
            Err(_) => return Sent::Later("no answer in time".to_owned(), None),
        };
        let status = response.status();
        if status.is_success() {
            let mut answer = Vec::new();
            // An answer that is cut off has been given all the same.
            while let Ok(Some(piece)) = response.chunk().await {
                if answer.len() + piece.len() > ANSWER {
                    break;
                }
                answer.extend_from_slice(&piece);
            }
            return Sent::Taken(rejected(&answer));
        }
        let reason = format!("it answers {status}");
        // Those, and no others, are to be tried again, as OTLP has it.
        if !matches!(status.as_u16(), 429 | 502 | 503 | 504) {
            return Sent::Refused(reason);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        Sent::Later(reason, after.map(Duration::from_secs))
    }
}

/// The innermost reason, which says most.
fn cause_of(error: &reqwest::Error) -> String {
    let mut at: &dyn std::error::Error = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
