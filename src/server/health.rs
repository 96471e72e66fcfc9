//! Health and metrics, open to whoever reaches the port.

use super::App;
use super::openapi::agents as schema;
use crate::queue::Counts;
use crate::telemetry::{Component, HealthReport, Metrics, OPENMETRICS, State as Condition, TEXT, wants_openmetrics};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use std::time::Duration;

/// The queue answers a question within microseconds; a probe must not hang on one that does not.
const QUEUE_ANSWER: Duration = Duration::from_secs(2);

/// Whether the process answers
#[utoipa::path(get, path = "/livez", tag = "health",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain; charset=utf-8")))]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Whether jobs can run
///
/// A line for a probe; `/healthz` has the reasons.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "They can", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 503, description = "They cannot", body = String, content_type = "text/plain; charset=utf-8")))]
pub(super) async fn ready(State(app): State<App>) -> impl IntoResponse {
    readiness(report(&app).await.ready)
}

pub(super) fn readiness(ready: bool) -> (StatusCode, &'static str) {
    if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

/// Every component with its state
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses(
        (status = 200, description = "All are well", body = schema::HealthReport),
        (status = 503, description = "At least one is not", body = schema::HealthReport)))]
pub(super) async fn all(State(app): State<App>) -> (StatusCode, Json<HealthReport>) {
    whole(report(&app).await)
}

pub(super) fn whole(report: HealthReport) -> (StatusCode, Json<HealthReport>) {
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "The numbers, as `Accept` would have them",
        content((String = "text/plain; version=0.0.4; charset=utf-8"), (String = "application/openmetrics-text; version=1.0.0; charset=utf-8")))))]
pub(super) async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    app.metrics.jobs_stuck_total.inc_by(app.backend.take_stuck());
    let quarantined = app.backend.roster().drains().all().values().filter(|drain| drain.quarantined).count();
    app.metrics.agents_quarantined.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
    if let Ok(counts) = counts(&app).await {
        let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
        app.metrics.jobs_queued.set(gauge(counts.queued));
        app.metrics.jobs_dead_letters.set(gauge(counts.dead_letters));
    }
    page(&app.metrics, &headers)
}

/// OpenMetrics for who asks for it, else Prometheus's older text.
pub(super) fn page(metrics: &Metrics, headers: &HeaderMap) -> impl IntoResponse + use<> {
    let accepts: Vec<&str> = headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).collect();
    let (kind, text) = if wants_openmetrics(&accepts.join(",")) {
        (OPENMETRICS, metrics.render_openmetrics())
    } else {
        (TEXT, metrics.render())
    };
    ([("content-type", kind), ("vary", "accept")], text)
}

/// How everything is. The queue is asked now; the others say by themselves when they change.
async fn report(app: &App) -> HealthReport {
    app.health.set(Component::Queue, counts(app).await.map_or_else(Condition::Down, |_| Condition::Ok));
    app.health.report()
}

async fn counts(app: &App) -> Result<Counts, String> {
    match tokio::time::timeout(QUEUE_ANSWER, app.backend.counts()).await {
        Ok(counts) => counts.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the queue did not answer within {} s", QUEUE_ANSWER.as_secs())),
    }
}
