//! Submit, get, cancel.

use super::App;
use super::problem::ProblemDocument;
use crate::backend::Waited;
use crate::job::{Job, JobId, JobSpec, Millis, parse_json};
use crate::queue::{Canceled, Submitted};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::time::Duration;

/// Jobs leave the queue every second or so; a client that waits this long finds room or learns that there is none.
const QUEUE_FULL_RETRY_SECONDS: u64 = 5;

type Answer<T> = Result<T, ProblemDocument>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    wait: Option<String>,
}

pub(super) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    query.map(|Query(query)| query).map_err(|error| ProblemDocument::new("bad_query", error.body_text()))
}

pub(super) fn job_id(text: &str) -> Answer<JobId> {
    text.parse().map_err(|error: crate::job::BadId| ProblemDocument::new("bad_id", error.to_string()))
}

pub(super) fn not_found(id: JobId) -> ProblemDocument {
    ProblemDocument::new("job_not_found", format!("no job has the id {id}"))
}

impl WaitQuery {
    fn limit(&self, most: Duration) -> Answer<Option<Duration>> {
        let Some(text) = &self.wait else { return Ok(None) };
        let wait: Millis = text.parse().map_err(|error| ProblemDocument::new("bad_query", format!("wait: {error}")))?;
        Ok(Some(wait.as_duration().min(most)))
    }
}

pub(super) async fn submit(
    State(app): State<App>,
    wait: Result<Query<WaitQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Response> {
    let wait = query(wait)?.limit(app.settings.wait_max)?;
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ProblemDocument::new("body_too_large", format!("at most {} bytes are taken", app.settings.max_body))
        }
        _ => ProblemDocument::new("bad_body", error.body_text()),
    })?;
    let spec = read_spec(&app, &headers, &body)?;
    let (status, job) = match app.backend.submit(spec).await? {
        Submitted::Created(job) => {
            app.metrics.jobs_submitted_total.inc();
            (StatusCode::CREATED, job)
        }
        Submitted::Existing(job) => (StatusCode::OK, job),
        Submitted::KeyConflict(id) => {
            let detail = format!("the key belongs to job {id}, whose spec is another one");
            return Err(ProblemDocument::new("key_conflict", detail));
        }
        Submitted::QueueFull { queued } => {
            let detail = format!("{queued} jobs wait already; nothing was created");
            return Err(ProblemDocument::new("queue_full", detail).retry_after(QUEUE_FULL_RETRY_SECONDS));
        }
    };
    let location = format!("/v1/jobs/{}", job.id);
    let job = match wait {
        Some(limit) => waited(&app, job.id, limit).await?,
        None => job,
    };
    Ok((status, [(header::LOCATION, location)], Json(job)).into_response())
}

fn read_spec(app: &App, headers: &HeaderMap, body: &Bytes) -> Answer<JobSpec> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("\u{1}").to_owned());
    let yaml = text("content-type").is_some_and(|kind| kind.contains("yaml"));
    let rules = &app.settings.rules;
    let spec = if yaml {
        let body = std::str::from_utf8(body).map_err(|_| ProblemDocument::new("bad_body", "the body is not UTF-8"))?;
        JobSpec::from_yaml(body, rules)
    } else {
        parse_json(body).and_then(|document| JobSpec::check(&document, rules))
    };
    spec.and_then(|spec| spec.or_idempotency_key(text("idempotency-key").as_deref()))
        .map_err(|problems| ProblemDocument::spec(&problems))
}

/// The job at its end, or as it stands when the time is over or the server stops.
async fn waited(app: &App, id: JobId, limit: Duration) -> Answer<Job> {
    let waiting = app.backend.wait(id, limit);
    let waited = tokio::select! {
        waited = waiting => waited?,
        () = app.stop.cancelled() => app.backend.wait(id, Duration::ZERO).await?,
    };
    match waited {
        Waited::Ended(job) | Waited::StillOpen(job) => Ok(*job),
        Waited::Unknown => Err(not_found(id)),
    }
}

pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    wait: Result<Query<WaitQuery>, QueryRejection>,
) -> Answer<Json<Job>> {
    let id = job_id(&id)?;
    match query(wait)?.limit(app.settings.wait_max)? {
        Some(limit) => waited(&app, id, limit).await.map(Json),
        None => app.backend.get(id).await?.map(Json).ok_or_else(|| not_found(id)),
    }
}

pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Answer<(StatusCode, Json<Job>)> {
    let id = job_id(&id)?;
    match app.backend.cancel(id).await? {
        Canceled::Ended(job) | Canceled::AlreadyEnded(job) => Ok((StatusCode::OK, Json(*job))),
        // Its agent is told; the end comes with the agent's report.
        Canceled::Requested(job) => Ok((StatusCode::ACCEPTED, Json(*job))),
        Canceled::Unknown => Err(not_found(id)),
    }
}
