//! What jobs give back, from agents elsewhere: contents, the word that they are all there, and how far a job is. Each call is for an attempt
//! that the agent holds, and can be made again with the same effect.

use super::calls::{Known, read};
use crate::blobs::{BlobError, BlobStore};
use crate::job::{Artifacts, Digest};
use crate::protocol::agent::{
    ArtifactsGiven, ArtifactsWanted, AttemptStanding, Holding, MissingAnswer, Step, StepAnswer, TellProgress,
};
use crate::server::App;
use crate::server::blobs::timely;
use crate::server::extract::{Path, Received};
use crate::server::jobs::query;
use crate::server::openapi::agents as schema;
use crate::server::problem::ProblemDocument;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};

/// Contents of one call.
const MOST_DIGESTS: usize = 1000;
/// Steps that a job can have, and bytes of what it says of itself.
const MOST_STEPS: usize = 128;
const MOST_TEXT: usize = 1024;

/// Refuses an attempt that is not the agent's.
async fn held(app: &App, agent: &str, Holding { attempt, token }: Holding) -> Result<(), ProblemDocument> {
    match app.backend.lookup(agent, &[(attempt, token)]).await?.first() {
        Some(AttemptStanding::Held) => Ok(()),
        _ => Err(ProblemDocument::new("not_held", format!("attempt {attempt} is not this agent's, or has ended"))),
    }
}

fn store(app: &App) -> Result<&BlobStore, ProblemDocument> {
    app.backend.artifacts().ok_or_else(|| ProblemDocument::new("unavailable", "this server keeps no files"))
}

fn blob_problem(error: BlobError) -> ProblemDocument {
    match error {
        BlobError::Full(_) | BlobError::NoSpace => ProblemDocument::new("store_full", error.to_string()),
        BlobError::TooLarge(_) => ProblemDocument::new("body_too_large", error.to_string()),
        BlobError::Mismatch { .. } | BlobError::BrokenOff(_) => ProblemDocument::new("bad_body", error.to_string()),
        BlobError::Missing(_) => ProblemDocument::new("artifact_not_found", error.to_string()),
        BlobError::Failed(_) => ProblemDocument::new("unavailable", error.to_string()),
    }
}

/// Ask which contents are not there
#[utoipa::path(post, path = "/v1/agent/artifacts/missing", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::ArtifactsWanted,
    responses((status = 200, description = "The answer", body = schema::MissingAnswer)),
    extensions(("x-problems" = json!(["not_held", "unavailable", "session_unknown"]))))]
pub(super) async fn missing(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Result<Json<MissingAnswer>, ProblemDocument> {
    let ArtifactsWanted { holding, digests } = read(&body)?;
    if digests.len() > MOST_DIGESTS {
        return Err(ProblemDocument::new("bad_body", format!("digests: at most {MOST_DIGESTS} in one call")));
    }
    held(&app, &agent, holding).await?;
    let (mut missing, mut there) = (Vec::new(), Vec::new());
    for digest in digests {
        let found = store(&app)?.find(digest).await.map_err(blob_problem)?;
        if found.is_some() { there.push(digest) } else { missing.push(digest) }
    }
    // Until all of them are there: that may take longer than a content stays that nobody needs.
    store(&app)?.refer(&Artifacts::holder(holding.attempt), &there).await.map_err(blob_problem)?;
    Ok(Json(MissingAnswer { missing }))
}

/// Bring a content
#[utoipa::path(put, path = "/v1/agent/artifacts/content/{digest}", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration"),
        ("digest" = String, Path, description = "`sha256:` and 64 hexadecimal digits"),
        ("attempt" = String, Query, description = "The attempt"), ("token" = u64, Query, description = "Its token")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 204, description = "It is there")),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "not_held", "store_full", "unavailable", "session_unknown"]))))]
pub(super) async fn put(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Path(digest): Path<String>,
    asked: Result<Query<Holding>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ProblemDocument> {
    let digest: Digest =
        digest.parse().map_err(|error: crate::job::BadDigest| ProblemDocument::new("bad_id", error.to_string()))?;
    let holding: Holding = query(asked)?;
    held(&app, &agent, holding).await?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let store = store(&app)?;
    store.put(timely(body), Some(digest), length).await.map_err(blob_problem)?;
    store.refer(&Artifacts::holder(holding.attempt), &[digest]).await.map_err(blob_problem)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Say that all contents of an attempt are there
#[utoipa::path(post, path = "/v1/agent/artifacts/given", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::ArtifactsGiven,
    responses((status = 200, description = "They are kept from now on", body = schema::StepAnswer)),
    extensions(("x-problems" = json!(["not_held", "artifact_not_found", "unavailable", "session_unknown"]))))]
pub(super) async fn given(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Result<Json<StepAnswer>, ProblemDocument> {
    let ArtifactsGiven { holding, list } = read(&body)?;
    held(&app, &agent, holding).await?;
    app.backend.take_artifacts(holding.attempt, list).await.map_err(blob_problem)?;
    Ok(Json(StepAnswer { step: Step::Applied }))
}

/// Say how far a job is
#[utoipa::path(post, path = "/v1/agent/progress", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::TellProgress,
    responses((status = 200, description = "The answer", body = schema::StepAnswer)),
    extensions(("x-problems" = json!(["not_held", "unavailable", "session_unknown"]))))]
pub(super) async fn progress(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Result<Json<StepAnswer>, ProblemDocument> {
    let TellProgress { holding, progress, steps } = read(&body)?;
    let long = progress.as_ref().is_some_and(|progress| progress.message.len() > MOST_TEXT || progress.percent > 100)
        || steps.iter().any(|step| step.name.len() > MOST_TEXT);
    if long || steps.len() > MOST_STEPS {
        return Err(ProblemDocument::new("bad_body", "there is more progress than there can be"));
    }
    held(&app, &agent, holding).await?;
    app.backend.progressed(holding.attempt, progress, steps);
    Ok(Json(StepAnswer { step: Step::Applied }))
}
