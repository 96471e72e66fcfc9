//! Submit, get, cancel, retry.

use super::App;
use super::audited::Naming;
use super::auth;
use super::etag;
use super::extract::Path;
use super::keys::Caller;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::backend::{Explanation, Local, Unready, Waited};
use crate::job::{Cause, Job, JobId, JobSpec, Millis, Problems, TraceContext, parse_json};
use crate::queue::{Canceled, Submitted, own_key};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::collections::HashSet;
use std::time::Duration;
use utoipa::IntoParams;

/// Jobs leave the queue every second or so; a client that waits this long finds room or learns that there is none.
const QUEUE_FULL_RETRY_SECONDS: u64 = 5;

pub(super) type Answer<T> = Result<T, ProblemDocument>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Answer with the finished job, or as it stands after this time, such as `30s`. The server has a longest wait.
    wait: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SubmitQuery {
    /// Answer with the finished job, or as it stands after this time, such as `30s`. The server has a longest wait.
    wait: Option<String>,
    /// `content` makes the idempotency key of what is asked for.
    dedupe: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CancelQuery {
    /// At once, without a grace.
    #[serde(default)]
    #[param(required = false)]
    pub(super) force: bool,
}

/// Whether a submit's idempotency key is to be made of what it asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dedupe(bool);

impl Dedupe {
    /// Reads `?dedupe=content`, or the header `Jobcell-Dedupe: content`.
    pub(super) fn read(asked: Option<&str>, headers: &HeaderMap) -> Answer<Self> {
        match asked.or(headers.get("jobcell-dedupe").map(|value| value.to_str().unwrap_or_default())) {
            None => Ok(Self(false)),
            Some("content") => Ok(Self(true)),
            Some(_) => Err(ProblemDocument::new("bad_query", "dedupe: write content, or leave it out")),
        }
    }

    pub(super) fn apply(self, spec: JobSpec) -> Result<JobSpec, Problems> {
        if self.0 { spec.keyed_by_content() } else { Ok(spec) }
    }
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

/// A request's body. Errors: it is too large, or was cut off.
pub(super) fn body(app: &App, body: Result<Bytes, BytesRejection>) -> Answer<Bytes> {
    body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ProblemDocument::new("body_too_large", format!("at most {} bytes are taken", app.settings.max_body))
        }
        _ => ProblemDocument::new("bad_body", error.body_text()),
    })
}

/// Submit a job
///
/// With an idempotency key that was used for an equal spec, the job of then is the answer.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs",
    params(SubmitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Two submits with one key are one job"),
        ("Jobcell-Dedupe" = Option<String>, Header, description = "The same as `dedupe`"),
        ("traceparent" = Option<String>, Header, description = "W3C Trace Context: the job becomes a part of this trace. One that is none is as good as absent"),
        ("tracestate" = Option<String>, Header, description = "Handed on with it")),
    request_body(content((schema::NewJob = "application/json"), (schema::NewJob = "application/yaml"))),
    responses(
        (status = 201, description = "The job was created", body = schema::Job,
            headers(("Location" = String, description = "Path of the job"), ("ETag" = String))),
        (status = 200, description = "The job was there", body = schema::Job,
            headers(("Location" = String, description = "Path of the job"), ("ETag" = String)))),
    extensions(("x-problems" = json!(["bad_query", "bad_spec", "policy_refused", "key_conflict", "queue_full", "quota_full", "unavailable", "job_not_found"]))))]
pub(super) async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(naming): Extension<Naming>,
    asked: Result<Query<SubmitQuery>, QueryRejection>,
    headers: HeaderMap,
    received: Result<Bytes, BytesRejection>,
) -> Answer<Response> {
    let SubmitQuery { wait, dedupe } = query(asked)?;
    let wait = WaitQuery { wait }.limit(app.settings.wait_max)?;
    let dedupe = Dedupe::read(dedupe.as_deref(), &headers)?;
    let spec = read_spec(&app, &headers, &body(&app, received)?)?;
    let spec = known(&app, spec).await?;
    let spec = dedupe.apply(spec).map_err(|problems| ProblemDocument::spec(&problems))?;
    if let Err(problem) = allowed(&app, &caller, &spec)
        && is_there(&app, &caller, [&spec]).await?.is_empty()
    {
        return Err(problem);
    }
    let quota = app.limits.jobs(caller.limits);
    let (created, job) = taken_in(app.backend.submit_within(spec, Some(caller.submitter()), quota).await?)?;
    naming.is(job.id.to_string());
    if created {
        app.metrics.jobs_submitted_total.inc();
    }
    let job = match wait {
        Some(limit) => waited(&app, job.id, limit).await?,
        None => job,
    };
    Ok(located(if created { StatusCode::CREATED } else { StatusCode::OK }, job))
}

/// The job, and whether it is new. Errors: it was not taken in.
pub(super) fn taken_in(submitted: Submitted) -> Answer<(bool, Job)> {
    match submitted {
        Submitted::Created(job) => Ok((true, job)),
        Submitted::Existing(job) => Ok((false, job)),
        Submitted::KeyConflict(id) => {
            let detail = format!("the key belongs to job {id}, whose spec is another one");
            Err(ProblemDocument::new("key_conflict", detail))
        }
        Submitted::QuotaFull { held, most } => {
            let detail =
                format!("this key has {held} jobs that have not ended, and may have {most}; nothing was created");
            Err(ProblemDocument::new("quota_full", detail).retry_after(QUEUE_FULL_RETRY_SECONDS))
        }
        Submitted::QueueFull { queued } => {
            let detail = format!("{queued} jobs wait already; nothing was created");
            Err(ProblemDocument::new("queue_full", detail).retry_after(QUEUE_FULL_RETRY_SECONDS))
        }
    }
}

fn located(status: StatusCode, job: Job) -> Response {
    let location = format!("/v1/jobs/{}", job.id);
    ([(header::LOCATION, location)], etag::answer(status, job)).into_response()
}

/// Where a request stands in its sender's trace. Headers that are none are as good as absent: so their standard has it.
pub(super) fn trace_context(headers: &HeaderMap) -> Option<TraceContext> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    // Several lines are one list.
    let state: Vec<&str> = headers.get_all("tracestate").iter().filter_map(|line| line.to_str().ok()).collect();
    TraceContext::parse(parent, Some(&state.join(",")))
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
    spec.map(|spec| spec.or_traced(trace_context(headers)))
        .and_then(|spec| spec.or_idempotency_key(text("idempotency-key").as_deref()))
        .map_err(|problems| ProblemDocument::spec(&problems))
}

/// Whether the agent in this process would let it in at the moment; when it runs, the agent decides. Errors: what the policy says.
pub(super) fn allowed(app: &App, caller: &Caller, spec: &JobSpec) -> Answer<()> {
    let Some(gate) = &app.settings.gate else { return Ok(()) };
    if spec.fan_out().is_some() {
        return spec.parts().try_for_each(|part| allowed(app, caller, &part));
    }
    match gate.admit(Local::NAME, Some(&caller.name), spec) {
        Err(cause @ Cause::PolicyRefused { .. }) => Err(ProblemDocument::policy(&cause)),
        Err(Cause::InputRefused { input, reason }) => {
            Err(ProblemDocument::spec(&Problems::one(input, reason, "raise resources.disk, or leave some out")))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The job with what is known of its inputs. Errors: one is not there, or is not what it should be.
pub(super) async fn known(app: &App, spec: JobSpec) -> Answer<JobSpec> {
    let (most, hosts) = (app.backend.max_queued(), spec.fan_out().map_or(0, |fan_out| fan_out.hosts.len() as u64));
    if hosts > most {
        let reason = format!("has {hosts} hosts, each with a job of its own, and at most {most} jobs may wait here");
        let problems =
            Problems::one("target.hosts", reason, "split the hosts, or raise queue.max_queued of the server");
        return Err(ProblemDocument::spec(&problems));
    }
    app.backend.know_inputs(spec).await.map_err(|unready| match unready {
        Unready::Problems(problems) => ProblemDocument::spec(&problems),
        Unready::Away(error) => error.into(),
    })
}

/// Which idempotency keys of these jobs are taken. Such a job is not judged: it is there already, or its key is another one's.
pub(super) async fn is_there(
    app: &App,
    caller: &Caller,
    specs: impl IntoIterator<Item = &JobSpec>,
) -> Answer<HashSet<String>> {
    let own = |key: &str| own_key(Some(&caller.submitter()), key);
    let keys: Vec<String> = specs.into_iter().filter_map(|spec| spec.idempotency_key().map(own)).collect();
    if keys.is_empty() { Ok(HashSet::new()) } else { Ok(app.backend.taken_keys(keys).await?) }
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

/// Get a job
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = inline(schema::JobId), Path, description = "The job"), WaitQuery,
        ("If-None-Match" = Option<String>, Header, description = "Tags of the job that the client has")),
    responses(
        (status = 200, description = "The job", body = schema::Job, headers(("ETag" = String))),
        (status = 304, description = "The job is the one that the client has", headers(("ETag" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "unavailable"]))))]
pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    wait: Result<Query<WaitQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Answer<Response> {
    let id = job_id(&id)?;
    let job = match query(wait)?.limit(app.settings.wait_max)? {
        Some(limit) => waited(&app, id, limit).await?,
        None => app.backend.get(id).await?.ok_or_else(|| not_found(id))?,
    };
    Ok(etag::answer_if_new(&headers, job))
}

/// Cancel a job
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs",
    params(("id" = inline(schema::JobId), Path, description = "The job"),
        ("If-Match" = Option<String>, Header, description = "Only if the job has one of these tags' revisions"), CancelQuery),
    responses(
        (status = 200, description = "It has ended, now or before", body = schema::Job, headers(("ETag" = String))),
        (status = 202, description = "Its agent was told", body = schema::Job, headers(("ETag" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "precondition_failed", "unavailable"]))))]
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    asked: Result<Query<CancelQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Answer<Response> {
    let id = job_id(&id)?;
    let CancelQuery { force } = query(asked)?;
    // Whose a job is never changes.
    auth::own(&caller, &app.backend.get(id).await?.ok_or_else(|| not_found(id))?)?;
    match app.backend.cancel_if(id, etag::wanted_revisions(&headers), force).await? {
        Canceled::Ended(job) | Canceled::AlreadyEnded(job) => Ok(etag::answer(StatusCode::OK, *job)),
        // Its agent is told; the end comes with the agent's report.
        Canceled::Requested(job) => Ok(etag::answer(StatusCode::ACCEPTED, *job)),
        Canceled::Changed(job) => {
            let detail = format!("job {id} is {} by now, at revision {}; it was not canceled", job.phase, job.revision);
            Err(ProblemDocument::new("precondition_failed", detail))
        }
        Canceled::Unknown => Err(not_found(id)),
    }
}

/// Run a job that has ended again, as a new job
///
/// The new one has the same spec without the idempotency key; `retry_of` names the old one.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "jobs", params(("id" = inline(schema::JobId), Path, description = "The job")),
    responses((status = 201, description = "The new job", body = schema::Job,
        headers(("Location" = String, description = "Path of the job"), ("ETag" = String)))),
    extensions(("x-problems" = json!(["bad_id", "job_not_found", "not_ended", "secrets_gone", "key_conflict", "queue_full", "quota_full", "unavailable"]))))]
pub(super) async fn retry(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Response> {
    let id = job_id(&id)?;
    let job = app.backend.get(id).await?.ok_or_else(|| not_found(id))?;
    auth::own(&caller, &job)?;
    if job.ending.is_none() {
        let detail = format!("job {id} is {}; cancel it or wait for its end, and then retry it", job.phase);
        return Err(ProblemDocument::new("not_ended", detail));
    }
    if job.spec.has_inline_secrets() {
        let detail =
            format!("values of secrets came with job {id} and were forgotten at its end; submit it again with them");
        return Err(ProblemDocument::new("secrets_gone", detail));
    }
    let job = Job { spec: known(&app, job.spec.clone()).await?, ..job };
    // An operator who has somebody's job run again does not wait for that one's others.
    let own = job.submitter.as_ref() == Some(&caller.submitter());
    let quota = if own { app.limits.jobs(caller.limits) } else { None };
    let (_, job) = taken_in(app.backend.retry(job, quota).await?)?;
    app.metrics.jobs_submitted_total.inc();
    Ok(located(StatusCode::CREATED, job))
}

/// Say why a job stands where it stands
///
/// For one that waits: how many are before it, and for each agent what is in the way.
#[utoipa::path(get, path = "/v1/jobs/{id}/explain", tag = "jobs", params(("id" = inline(schema::JobId), Path, description = "The job")),
    responses((status = 200, description = "Why", body = schema::Explanation)),
    extensions(("x-problems" = json!(["bad_id", "job_not_found", "unavailable"]))))]
pub(super) async fn explain(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<Explanation>> {
    let id = job_id(&id)?;
    app.backend.explain(id).await?.map(Json).ok_or_else(|| not_found(id))
}
