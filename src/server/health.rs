//! Health and metrics, open to whoever reaches the port.

use super::App;
use crate::telemetry::HealthReport;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;

pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// A line for a probe; `/healthz` has the reasons.
pub(super) async fn ready(State(app): State<App>) -> impl IntoResponse {
    if app.health.report().ready {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

pub(super) async fn all(State(app): State<App>) -> (StatusCode, Json<HealthReport>) {
    let report = app.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}

pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    if let Ok(counts) = app.backend.counts().await {
        app.metrics.jobs_queued.set(i64::try_from(counts.queued).unwrap_or(i64::MAX));
    }
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}
