//! What is due to be removed, asked for by an operator: looked at, or removed now and not with the next look.

use super::App;
use super::audited::Told;
use super::jobs::{Answer, query};
use super::problem::ProblemDocument;
use crate::backend::Removed;
use crate::job::UnixMillis;
use crate::supervise::spawn;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GcQuery {
    /// Only say what would be removed.
    #[serde(default)]
    dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Collected {
    /// Nothing was removed.
    dry_run: bool,
    /// Jobs, with all that is known of them.
    jobs: u64,
    /// Jobs whose output went and that stay themselves.
    outputs: u64,
    /// What all that output took on the disk, about.
    bytes: u64,
    /// Jobs that are due and stay for now: their output is being read or written, or could not be removed.
    held: u64,
}

/// Remove ended jobs and output that are not to be kept any longer
///
/// As the settings in `retention` say; without asking it is done every five minutes.
#[utoipa::path(post, path = "/v1/jobs/gc", tag = "jobs", params(GcQuery),
    responses((status = 200, description = "What was removed", body = Collected)),
    extensions(("x-problems" = json!(["bad_query", "unavailable"]))))]
pub(super) async fn collect(
    State(app): State<App>,
    asked: Result<Query<GcQuery>, QueryRejection>,
) -> Answer<(Extension<Told>, Json<Collected>)> {
    let GcQuery { dry_run } = query(asked)?;
    let backend = std::sync::Arc::clone(&app.backend);
    // Goes on when the client hangs up: it is work that is due.
    let work = spawn("retention", async move { backend.remove_old(UnixMillis::now(), dry_run).await });
    let failed = |_| ProblemDocument::new("unavailable", "removing was given up; ask again");
    let Removed { jobs, outputs, bytes, held } = work.await.map_err(failed)??;
    let detail = if dry_run { "dry run".to_owned() } else { format!("{jobs} jobs; output of {outputs} more") };
    let count = Some(if dry_run { 0 } else { jobs + outputs });
    let told = Told { count, detail: Some(detail), ..Told::default() };
    Ok((Extension(told), Json(Collected { dry_run, jobs, outputs, bytes, held })))
}
