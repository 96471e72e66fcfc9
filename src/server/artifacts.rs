//! The files of a job: their list, and each of them.

use super::App;
use super::content;
use super::extract::Path;
use super::jobs::{Answer, query};
use super::keys::Caller;
use super::logs::{attempt_of, byte_range};
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::blobs::BlobError;
use crate::job::{Artifact, Artifacts, Job};
use axum::Extension;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

const PAGE: usize = 1000;
const MOST_PAGE: usize = 10_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Behind this path; `next` of the page before.
    after: Option<String>,
    /// So many at most; default 1000, at most 10000.
    limit: Option<usize>,
}

/// A part of the files of a job's last try, by their paths.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ArtifactPage {
    #[schema(value_type = Vec<schema::Artifact>)]
    artifacts: Vec<Artifact>,
    /// How many there are in all.
    count: u64,
    /// Goes on behind this page; absent with the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    next: Option<String>,
}

fn gone(job: &Job) -> ProblemDocument {
    let detail = format!("the files of job {} were kept as long as artifacts.keep says, and are gone", job.id);
    ProblemDocument::new("artifact_not_found", detail)
}

/// All files. Errors: none were kept, or none are any more.
async fn files(app: &App, id: &str) -> Answer<(Job, Arc<[Artifact]>)> {
    let (job, _) = attempt_of(app, id, None).await?;
    let list = match &job.results.artifacts {
        Some(Artifacts { list: Some(list), .. }) => *list,
        _ => return Ok((job, Arc::default())),
    };
    if app.backend.artifacts_are_over(&job) {
        return Err(gone(&job));
    }
    match app.backend.artifact_list(list).await {
        Ok(files) => Ok((job, files)),
        Err(BlobError::Missing(_)) => Err(gone(&job)),
        Err(error) => Err(ProblemDocument::new("unavailable", error.to_string())),
    }
}

/// Files of a job
///
/// Those that its `artifacts` mean and that are kept, of its last try. Empty before its end.
#[utoipa::path(get, path = "/v1/jobs/{id}/artifacts", tag = "artifacts",
    params(("id" = inline(schema::JobId), Path, description = "The job"), ListQuery),
    responses((status = 200, description = "The files", body = ArtifactPage)),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "has_parts", "artifact_not_found", "unavailable"]))))]
pub(super) async fn list(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Json<ArtifactPage>> {
    let asked = query(asked)?;
    let (_, files) = files(&app, &id).await?;
    let count = files.len() as u64;
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, MOST_PAGE);
    let from = asked.after.map_or(0, |after| files.partition_point(|file| file.path <= after));
    let page: Vec<Artifact> = files[from..].iter().take(limit).cloned().collect();
    let next = (from + page.len() < files.len()).then(|| page.last().map(|file| file.path.clone())).flatten();
    Ok(Json(ArtifactPage { artifacts: page, count, next }))
}

/// A file of a job
///
/// By ranges too. Its tag is the digest of its content, which never changes.
#[utoipa::path(get, path = "/v1/jobs/{id}/artifacts/{*path}", tag = "artifacts",
    params(("id" = inline(schema::JobId), Path, description = "The job"),
        ("path" = String, Path, description = "The file's path in the workspace, with its slashes"),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-LAST`"),
        ("If-None-Match" = Option<String>, Header, description = "Not if it has this tag")),
    responses(
        (status = 200, description = "The file", body = String, content_type = "application/octet-stream", headers(("ETag" = String))),
        (status = 206, description = "The bytes of the range", body = String, content_type = "application/octet-stream",
            headers(("Content-Range" = String), ("ETag" = String))),
        (status = 304, description = "It has this tag"),
        (status = 416, description = "There are no such bytes", headers(("Content-Range" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "has_parts", "artifact_not_found", "unavailable"]))))]
pub(super) async fn read(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((id, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    let (job, files) = files(&app, &id).await?;
    let Ok(at) = files.binary_search_by(|file| file.path.as_str().cmp(&path)) else {
        let detail = format!("job {} has kept no file of this path; its list has the paths", job.id);
        return Err(ProblemDocument::new("artifact_not_found", detail));
    };
    let file = &files[at];
    let tag = format!("\"{}\"", file.digest.hex());
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag || known.trim() == "*") {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    // Whoever goes on with an older content gets this one whole.
    let goes_on = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == tag.as_bytes());
    let range = byte_range(&headers)?.filter(|_| goes_on);
    let (first, end) = range.map_or((0, file.size), |(first, last)| {
        (first, last.map_or(file.size, |last| last.saturating_add(1).min(file.size)))
    });
    if range.is_some() && first >= end {
        let headers = [(header::CONTENT_RANGE, format!("bytes */{}", file.size))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response());
    }
    let Some(store) = app.backend.artifacts() else { return Err(gone(&job)) };
    let place = content::place(&app, &caller)?;
    let pieces = match store.read(file.digest, first..end).await {
        Ok(pieces) => pieces,
        Err(BlobError::Missing(_)) => return Err(gone(&job)),
        Err(error) => return Err(ProblemDocument::new("unavailable", error.to_string())),
    };
    let headers = [
        // Never what its name says: it is a job's, and a browser must not run it here.
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CONTENT_LENGTH, (end - first).to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, tag),
    ];
    let body = content::body(place, pieces);
    Ok(match range {
        None => (headers, body).into_response(),
        Some(_) => {
            let range = format!("bytes {first}-{}/{}", end - 1, file.size);
            (StatusCode::PARTIAL_CONTENT, headers, [(header::CONTENT_RANGE, range)], body).into_response()
        }
    })
}
