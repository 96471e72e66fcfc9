//! Contents that jobs are given, for the agents that run them.

use super::calls::Known;
use crate::server::App;
use crate::server::blobs;
use crate::server::extract::Path;
use crate::server::problem::ProblemDocument;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

/// Read a content
///
/// Its name is in the spec of the job that needs it.
#[utoipa::path(get, path = "/v1/agent/blobs/{digest}", tag = "agent protocol",
    params(("digest" = String, Path, description = "SHA-256 of the content"),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-`, to go on where it broke off")),
    responses(
        (status = 200, description = "The content", body = String, content_type = "application/octet-stream"),
        (status = 206, description = "The rest of it", body = String, content_type = "application/octet-stream",
            headers(("Content-Range" = String))),
        (status = 416, description = "There is no more of it", headers(("Content-Range" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "blob_not_found", "session_unknown", "unavailable"]))))]
pub(super) async fn read(
    State(app): State<App>,
    _: Known,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ProblemDocument> {
    blobs::answer(&app, &name, &headers, |pieces| Ok(Body::from_stream(pieces))).await
}
