//! Many jobs in one request: submits and cancels.
//!
//! Owns how such requests are read and answered. All jobs of a submit are checked before any is given to the backend;
//! whether they are taken in is decided there, in one transaction.

use super::App;
use super::audited::Told;
use super::jobs::{self, Answer, CancelQuery, Dedupe};
use super::keys::Caller;
use super::list;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::backend::Embedded;
use crate::job::{Fields, JobId, JobSpec, JobSummary, Phase, Problem, Problems, parse_json, type_name};
use crate::queue::{Batch, CancelMark, ListFilter, Submitted, own_key};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Most jobs of one submit: they are one transaction.
const MOST_SUBMITTED: usize = 1000;
/// Most jobs of one cancel.
pub(super) const MOST_CANCELED: usize = 10_000;
/// Problems that are listed; the answer says how many there are.
const MOST_PROBLEMS: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BulkQuery {
    /// Take in those that can be, instead of all or none.
    partial: Option<bool>,
    /// `content` makes the idempotency keys of what is asked for.
    dedupe: Option<String>,
}

/// What became of one job of a submit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BulkItem)]
struct Item {
    index: usize,
    /// `created`, `existing` or `refused`.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::JobSummary>, nullable = false)]
    job: Option<JobSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<ProblemDocument>,
}

/// What became of a submit, with one entry for each spec in their order.
#[derive(Debug, Serialize, ToSchema)]
struct BulkAnswer {
    created: usize,
    existing: usize,
    refused: usize,
    jobs: Vec<Item>,
}

/// Submit many jobs
///
/// 1 to 1,000 specs as a JSON array, or one on each line. All are taken in or none, unless `partial` is true.
#[utoipa::path(post, path = "/v1/jobs/bulk", tag = "jobs",
    params(BulkQuery, ("Jobcell-Dedupe" = Option<String>, Header, description = "The same as `dedupe`")),
    request_body(content((Vec<schema::NewJob> = "application/json"), (schema::NewJob = "application/x-ndjson"))),
    responses(
        (status = 201, description = "At least one job was created", body = BulkAnswer),
        (status = 200, description = "None was created", body = BulkAnswer)),
    extensions(("x-problems" = json!(["bad_query", "bad_spec", "policy_refused", "key_conflict", "queue_full", "quota_full", "unavailable"]))))]
pub(super) async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    asked: Result<Query<BulkQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Response> {
    let asked = jobs::query(asked)?;
    let dedupe = Dedupe::read(asked.dedupe.as_deref(), &headers)?;
    let partial = asked.partial.unwrap_or(false);
    let documents = documents(&headers, &jobs::body(&app, body)?)?;
    let context = jobs::trace_context(&headers);
    let specs: Vec<Answer<JobSpec>> = documents
        .into_iter()
        .map(|document| document.and_then(|document| JobSpec::check(&document, &app.settings.rules)))
        .map(|spec| spec.map(|spec| spec.or_traced(context.clone())))
        .map(|spec| spec.map_err(|problems| ProblemDocument::spec(&problems)))
        .collect();
    let mut known: Vec<Answer<JobSpec>> = Vec::with_capacity(specs.len());
    for spec in specs {
        known.push(match spec {
            Ok(spec) => jobs::known(&app, spec)
                .await
                .and_then(|spec| dedupe.apply(spec).map_err(|problems| ProblemDocument::spec(&problems))),
            Err(problem) => Err(problem),
        });
    }
    let specs = known;
    // Only new ones are judged.
    let there = jobs::is_there(&app, &caller, specs.iter().flatten()).await?;
    let is_there = |spec: &JobSpec| {
        spec.idempotency_key().is_some_and(|key| there.contains(&own_key(Some(&caller.submitter()), key)))
    };
    let judged =
        |spec: JobSpec| if is_there(&spec) { Ok(spec) } else { jobs::allowed(&app, &caller, &spec).map(|()| spec) };
    let checked: Vec<Answer<JobSpec>> = specs.into_iter().map(|spec| spec.and_then(judged)).collect();
    if !partial && checked.iter().any(Result::is_err) {
        return Err(all_problems(&checked));
    }
    let good = checked.iter().filter_map(|spec| spec.as_ref().ok()).cloned().collect();
    let mut answers =
        match app.backend.submit_all(good, Some(caller.submitter()), app.limits.jobs(caller.limits), partial).await? {
            Batch::TakenIn(answers) => answers.into_iter(),
            Batch::Refused(refused) => return Err(refusal(&refused)),
        };
    let mut answer = BulkAnswer { created: 0, existing: 0, refused: 0, jobs: Vec::with_capacity(checked.len()) };
    for (index, checked) in checked.into_iter().enumerate() {
        let outcome = match checked {
            Ok(_) => answers.next().map_or_else(|| Err(gone()), jobs::taken_in),
            Err(problem) => Err(problem),
        };
        answer.add(index, outcome);
    }
    app.metrics.jobs_submitted_total.inc_by(answer.created as u64);
    let status = if answer.created > 0 { StatusCode::CREATED } else { StatusCode::OK };
    let detail = Some(format!("{} there before, {} refused", answer.existing, answer.refused));
    let told = Told { count: Some(answer.created as u64), detail, ..Told::default() };
    Ok((status, Extension(told), Json(answer)).into_response())
}

impl BulkAnswer {
    fn add(&mut self, index: usize, outcome: Result<(bool, crate::job::Job), ProblemDocument>) {
        let (counter, result) = match &outcome {
            Ok((true, _)) => (&mut self.created, "created"),
            Ok((false, _)) => (&mut self.existing, "existing"),
            Err(_) => (&mut self.refused, "refused"),
        };
        *counter += 1;
        let (job, problem) = match outcome {
            Ok((_, job)) => (Some(JobSummary::from(&job)), None),
            Err(problem) => (None, Some(problem)),
        };
        self.jobs.push(Item { index, result, job, problem });
    }
}

/// A batch has an answer for each of its jobs.
fn gone() -> ProblemDocument {
    ProblemDocument::new("unavailable", "the queue did not answer for this job")
}

/// The documents of a body: a JSON array, or lines of JSON. Errors: it is neither, or has too many.
fn documents(headers: &HeaderMap, body: &Bytes) -> Answer<Vec<Result<Value, Problems>>> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let documents: Vec<_> = if kind.contains("ndjson") {
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        lines.take(MOST_SUBMITTED + 1).map(parse_json).collect()
    } else {
        match parse_json(body).map_err(|problems| ProblemDocument::spec(&problems))? {
            Value::Array(items) => items.into_iter().map(Ok).collect(),
            other => {
                let detail = format!(
                    "the body is {}; give a JSON array of job specs, or one on each line with Content-Type: \
                     application/x-ndjson",
                    type_name(&other)
                );
                return Err(ProblemDocument::new("bad_body", detail));
            }
        }
    };
    match documents.len() {
        1..=MOST_SUBMITTED => Ok(documents),
        0 => Err(ProblemDocument::new("bad_body", format!("there is no job in it; give 1 to {MOST_SUBMITTED}"))),
        _ => {
            let detail = format!("more than {MOST_SUBMITTED} jobs; split them over several requests");
            Err(ProblemDocument::new("bad_body", detail))
        }
    }
}

fn at(index: usize, path: &str) -> String {
    let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
    format!("[{index}]{dot}{path}")
}

/// Every problem of every spec, with its place. What is no spec comes before what is not allowed.
fn all_problems(checked: &[Answer<JobSpec>]) -> ProblemDocument {
    let bad = checked.iter().enumerate().filter_map(|(index, spec)| Some((index, spec.as_ref().err()?)));
    let all: Vec<Problem> = bad
        .clone()
        .flat_map(|(index, problem)| {
            problem.problems.iter().map(move |one| Problem { path: at(index, &one.path), ..one.clone() })
        })
        .collect();
    let code = if bad.clone().any(|(_, problem)| problem.code == "bad_spec") { "bad_spec" } else { "policy_refused" };
    let detail =
        format!("{} problems in {} of {} job specs; nothing was created", all.len(), bad.count(), checked.len());
    ProblemDocument::new(code, detail).listing(all.into_iter().take(MOST_PROBLEMS).collect())
}

/// What stood in the way of a whole batch. A full queue, or too many jobs of this key, come first: that will be so for the next one too.
fn refusal(refused: &[(usize, Submitted)]) -> ProblemDocument {
    let is_full = |answer: &Submitted| matches!(answer, Submitted::QueueFull { .. } | Submitted::QuotaFull { .. });
    if let Some((_, full)) = refused.iter().find(|(_, answer)| is_full(answer))
        && let Err(problem) = jobs::taken_in(full.clone())
    {
        return problem;
    }
    let conflicts = refused.iter().filter_map(|(index, answer)| match answer {
        Submitted::KeyConflict(id) => Some(Problem {
            path: at(*index, "idempotency_key"),
            reason: format!("belongs to job {id}, or to one before it in the batch, whose spec is another one"),
            fix: "use another key".to_owned(),
        }),
        _ => None,
    });
    let problems: Vec<_> = conflicts.collect();
    let detail = format!("{} jobs have keys that are used; nothing was created", problems.len());
    ProblemDocument::new("key_conflict", detail).listing(problems)
}

/// Which jobs are to be canceled.
enum Which {
    These(Vec<JobId>),
    Those(ListFilter),
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = BulkGroup)]
pub(super) struct Group {
    count: usize,
    #[schema(value_type = Vec<schema::JobId>)]
    ids: Vec<JobId>,
}

impl Group {
    fn count(&self) -> u64 {
        self.count as u64
    }
}

/// What became of a bulk cancel.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct BulkCanceled {
    /// They waited and have ended.
    ended: Group,
    /// Their agents are told.
    requested: Group,
    /// They had ended before.
    already_ended: Group,
    /// There are no such jobs.
    unknown: Group,
    /// More jobs fit the filter: ask again.
    more: bool,
}

/// Cancel many jobs
///
/// `ids`, or a filter of `label` and `state`, which takes the newest 10,000 that have not ended.
#[utoipa::path(post, path = "/v1/jobs/bulk-cancel", tag = "jobs", params(CancelQuery), request_body = schema::BulkCancel,
    responses((status = 200, description = "What became of each", body = BulkCanceled)),
    extensions(("x-problems" = json!(["bad_query", "unavailable"]))))]
pub(super) async fn cancel(
    State(app): State<App>,
    asked: Result<Query<CancelQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(Extension<Told>, Json<BulkCanceled>)> {
    let CancelQuery { force } = jobs::query(asked)?;
    let body = jobs::body(&app, body)?;
    let which = parse_json(&body).and_then(|document| which(&document)).map_err(|problems| {
        let detail = "which jobs to cancel cannot be read from the body; nothing was canceled";
        ProblemDocument::new("bad_body", detail).listing(problems.iter().cloned().collect())
    })?;
    let mut answer = BulkCanceled::default();
    let ids = match which {
        Which::These(ids) => ids,
        Which::Those(filter) => {
            let mut ids = picked(&app.backend, filter).await?;
            answer.more = ids.len() > MOST_CANCELED;
            ids.truncate(MOST_CANCELED);
            ids
        }
    };
    for (id, mark) in app.backend.cancel_many(ids, force).await? {
        let group = match mark {
            CancelMark::Ended => &mut answer.ended,
            CancelMark::Requested { .. } | CancelMark::Children => &mut answer.requested,
            CancelMark::AlreadyEnded => &mut answer.already_ended,
            CancelMark::Unknown => &mut answer.unknown,
        };
        group.add(id);
    }
    let told = Told { count: Some(answer.ended.count() + answer.requested.count()), ..Told::default() };
    Ok((Extension(told), Json(answer)))
}

impl Group {
    pub(super) fn add(&mut self, id: JobId) {
        self.count += 1;
        self.ids.push(id);
    }
}

/// The ids of jobs that fit, the newest first: one more than can be done at once, if there are more.
pub(super) async fn picked(backend: &Arc<Embedded>, filter: ListFilter) -> Answer<Vec<JobId>> {
    let limit = u32::try_from(MOST_CANCELED + 1).unwrap_or(u32::MAX);
    let jobs = backend.list(ListFilter { limit, ..filter }).await?;
    Ok(jobs.into_iter().map(|job| job.id).collect())
}

/// Reads `{"ids": […]}`, or `{"label": …, "state": …}`. Errors: everything that is wrong with it.
fn which(document: &Value) -> Result<Which, Problems> {
    let mut problems = Problems::default();
    let Value::Object(map) = document else {
        let fix = "write {\"ids\": […]}, or {\"label\": \"team=blue\", \"state\": \"queued\"}";
        return Err(Problems::one("", format!("is {}", type_name(document)), fix));
    };
    let mut fields = Fields::new("", map);
    let ids = fields.take("ids");
    let (label, state) = (fields.take("label"), fields.take("state"));
    fields.finish(&mut problems);
    let mut filter = ListFilter::default();
    for (path, text) in texts("label", label, &mut problems) {
        filter.labels.extend(list::label(&path, text, &mut problems));
    }
    for (path, text) in texts("state", state, &mut problems) {
        list::phases(&path, text, &mut filter.phases, &mut problems);
    }
    if filter.phases.contains(&Phase::Ended) {
        problems.add("state", "`ended` jobs cannot be canceled", "leave it out");
    }
    if filter.phases.is_empty() {
        filter.phases = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Ended).collect();
    }
    let by_filter = label.is_some() || state.is_some();
    let Some(ids) = ids else {
        if !by_filter {
            problems.add("", "says of no job that it is to be canceled", "give `ids`, or `label` or `state` or both");
        }
        return problems.or_value(Which::Those(filter));
    };
    if by_filter {
        problems.add("ids", "is given together with a filter", "keep one of the two");
    }
    let these = these(ids, &mut problems);
    problems.or_value(Which::These(these))
}

/// Reads a list of ids.
pub(super) fn these(ids: &Value, problems: &mut Problems) -> Vec<JobId> {
    let Value::Array(items) = ids else {
        problems.add("ids", format!("is {}", type_name(ids)), "give a list of job ids");
        return Vec::new();
    };
    if items.len() > MOST_CANCELED {
        problems.add("ids", format!("has {} entries", items.len()), format!("give at most {MOST_CANCELED} at once"));
        return Vec::new();
    }
    let mut these = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match item.as_str().map(str::parse::<JobId>) {
            Some(Ok(id)) => these.push(id),
            Some(Err(error)) => problems.add(format!("ids[{index}]"), error.to_string(), "give a job's id"),
            None => problems.add(format!("ids[{index}]"), format!("is {}", type_name(item)), "give a job's id"),
        }
    }
    these
}

/// A text or a list of texts, each with its path.
pub(super) fn texts<'a>(key: &str, value: Option<&'a Value>, problems: &mut Problems) -> Vec<(String, &'a str)> {
    let items: Vec<(String, &Value)> = match value {
        None => Vec::new(),
        Some(Value::Array(items)) => items.iter().enumerate().map(|(n, item)| (format!("{key}[{n}]"), item)).collect(),
        Some(one) => vec![(key.to_owned(), one)],
    };
    let mut texts = Vec::new();
    for (path, item) in items {
        match item.as_str() {
            Some(text) => texts.push((path, text)),
            None => problems.add(path, format!("is {}", type_name(item)), "give a string"),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_to_cancel_is_read_strictly() {
        let read = |document: Value| which(&document).map_err(|problems| problems.to_string());
        let id = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b";
        assert!(matches!(read(json!({"ids": [id]})), Ok(Which::These(ids)) if ids.len() == 1));
        let Ok(Which::Those(filter)) = read(json!({"label": ["a=b", "c=d"], "state": "queued,claimed"})) else {
            panic!("a filter")
        };
        assert_eq!((filter.labels.len(), filter.phases), (2, vec![Phase::Queued, Phase::Claimed]));
        let Ok(Which::Those(filter)) = read(json!({"label": "a=b"})) else { panic!("a filter") };
        assert_eq!(filter.phases.len(), 5);
        for (document, wanted) in [
            (json!([]), "is a list; write {\"ids\""),
            (json!({}), "says of no job"),
            (json!({"ids": null}), "says of no job"),
            (json!({"ids": [id, 7, "x"]}), "ids[2]: `x` is not a job id"),
            (json!({"ids": [id], "label": "a=b"}), "keep one of the two"),
            (json!({"state": "ended"}), "cannot be canceled"),
            (json!({"state": 3}), "state: is a number"),
            (json!({"label": ["a"]}), "label[0]: `a` is no label"),
            (json!({"labels": "a=b"}), "did you mean `label`?"),
        ] {
            let said = read(document.clone()).map(|_| ()).expect_err("refused");
            assert!(said.contains(wanted), "{document}: {said}");
        }
    }
}
