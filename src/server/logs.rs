//! A job's output by range: raw bytes of one stream or of both as they came, or frames as JSON, in one document or on
//! lines. Owns the query and the answer; which frames fit, `frames` knows.

use super::App;
use super::extract::Path;
use super::frames::{FrameJson, Picked, Wanted, pick};
use super::jobs::{job_id, not_found, query};
use super::list::{LINES, wants_lines};
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::backend::DeleteError;
use crate::job::{AttemptId, Job, JobId, JobSummary, Phase};
use crate::logstore::{LogError, LogReader, Stream};
use crate::queue::ListFilter;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Bytes of output in one answer when none are asked for, and at most.
const BYTES: usize = 1 << 20;
const MOST_BYTES: usize = 8 << 20;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Of this try; default the last one.
    attempt: Option<u32>,
    /// `stdout`, `stderr` or `both` (default).
    stream: Option<String>,
    /// From this frame on, default 1.
    from: Option<u64>,
    /// So much output at most; default 1 MiB, at most 8 MiB.
    max_bytes: Option<usize>,
    /// `raw` (default), `json` or `ndjson`.
    format: Option<String>,
    /// Written at this moment or later: milliseconds since 1970, or RFC 3339.
    since: Option<String>,
    /// Written before this moment.
    until: Option<String>,
}

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Json,
    Lines,
}

/// A part of a job's output.
#[derive(Debug, Serialize, ToSchema)]
struct Frames {
    frames: Vec<FrameJson>,
    /// The `from` that goes on behind this answer.
    next: u64,
    /// Nothing of this try comes after this answer, ever.
    end: bool,
}

/// Which log, of which job. Errors: no job, or no such try.
pub(super) async fn attempt_of(app: &App, id: &str, attempt: Option<u32>) -> Result<(Job, AttemptId), ProblemDocument> {
    let id = job_id(id)?;
    let job = app.backend.get(id).await?.ok_or_else(|| not_found(id))?;
    if job.spec.fan_out().is_some() {
        return Err(has_parts(app, id).await?);
    }
    let number = attempt.unwrap_or(job.attempt);
    if number > job.attempt {
        return Err(ProblemDocument::new("bad_query", format!("attempt: the job has had {} so far", job.attempt)));
    }
    Ok((job, AttemptId::new(id, number)))
}

/// Errors: the job's output was removed.
pub(super) fn is_kept(job: &Job) -> Result<(), ProblemDocument> {
    let Some(since) = job.output_gone_at else { return Ok(()) };
    let detail = format!(
        "the output of job {} was removed at {since}: somebody deleted it, or it was not to be kept any longer \
         (retention.output_keep, retention.output_max)",
        job.id
    );
    Err(ProblemDocument::new("gone", detail))
}

/// The jobs for how many hosts are named where one was meant.
const NAMED_PARTS: u32 = 10;

/// What is said to who wants the output or the files of a job for several hosts.
async fn has_parts(app: &App, id: JobId) -> Result<ProblemDocument, ProblemDocument> {
    let filter = ListFilter { parent: Some(id), limit: NAMED_PARTS + 1, ..ListFilter::default() };
    let parts = app.backend.list(filter).await?;
    let name = |part: &JobSummary| format!("{} {}", part.host.as_deref().unwrap_or("-"), part.id);
    let named: Vec<String> = parts.iter().take(NAMED_PARTS as usize).map(name).collect();
    let more = if parts.len() > named.len() { ", …" } else { "" };
    let detail = format!(
        "job {id} is for several hosts and has no output and no files of its own; the jobs for its hosts have: {}{more} (GET /v1/jobs?parent={id})",
        named.join(", ")
    );
    Ok(ProblemDocument::new("has_parts", detail))
}

/// Whether a try can have no more output. A job that waits for its next one is done with the one before.
pub(super) fn is_over(job: &Job, attempt: u32) -> bool {
    let waits = job.phase == Phase::Queued && attempt > 0 && job.attempt == attempt;
    job.ending.is_some() || job.attempt > attempt || waits
}

pub(super) fn log_problem(error: &LogError) -> ProblemDocument {
    tracing::error!(%error, "a log cannot be read");
    ProblemDocument::new("unavailable", error.to_string())
}

/// Output of a job, by range
///
/// Also as lines of JSON with `Accept: application/x-ndjson`.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs", tag = "output",
    params(("id" = inline(schema::JobId), Path, description = "The job"), LogQuery,
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-LAST` of one stream")),
    responses(
        (status = 200, description = "Output", content(
            (String = "application/octet-stream"), (Frames = "application/json"), (FrameJson = "application/x-ndjson")),
            headers(
                ("Jobcell-Next-Seq" = Option<u64>, description = "The `from` to go on with; in the document with JSON"),
                ("Jobcell-Log-End" = Option<bool>, description = "Nothing more will come; in the document with JSON"))),
        (status = 206, description = "The bytes of the range", body = String, content_type = "application/octet-stream",
            headers(("Content-Range" = String))),
        (status = 416, description = "There are no such bytes (yet)", headers(("Content-Range" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "has_parts", "gone", "unavailable"]))))]
pub(super) async fn read(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Result<Query<LogQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ProblemDocument> {
    let asked = query(asked)?;
    let (job, attempt) = attempt_of(&app, &id, asked.attempt).await?;
    is_kept(&job)?;
    let wanted = Wanted::read(asked.stream.as_deref(), asked.since.as_deref(), asked.until.as_deref())?;
    let format = match asked.format.as_deref() {
        None if wants_lines(&headers) => Format::Lines,
        None | Some("raw") => Format::Raw,
        Some("json") => Format::Json,
        Some("ndjson") => Format::Lines,
        Some(_) => return Err(ProblemDocument::new("bad_query", "format: raw, json or ndjson")),
    };
    let most = asked.max_bytes.unwrap_or(BYTES).clamp(1, MOST_BYTES);
    let over = is_over(&job, attempt.attempt);
    let total = |stream| match stream {
        _ if attempt.attempt != job.attempt => None,
        Stream::Stdout => Some(job.log.stdout.bytes),
        Stream::Stderr => Some(job.log.stderr.bytes),
    };
    // A byte range makes sense for the bytes of one stream only, and not for some of them.
    if let (Some(stream), Some(range), Format::Raw, false) =
        (wanted.stream, byte_range(&headers)?, format, wanted.by_time())
    {
        return bytes_answer(&app, attempt, stream, range, total(stream).filter(|_| over)).await;
    }
    let from = asked.from.unwrap_or(1).max(1);
    let there = on_reader(&app, attempt, move |reader| pick(reader, from, &wanted, most).map(Some)).await?;
    // Where there is no log (any more), nothing will come of it.
    let gone = there.is_none();
    let Picked { frames, next, whole } = there.unwrap_or_default();
    let next = next.unwrap_or(from);
    // What an earlier try's log holds, only the log knows.
    let is_last = job.ending.is_some() && job.attempt == attempt.attempt;
    let end = over && (gone || if is_last { next > job.log.frames } else { whole });
    let (kind, body) = match format {
        Format::Json => {
            let frames = frames.iter().map(FrameJson::from).collect();
            return Ok(Json(Frames { frames, next, end }).into_response());
        }
        Format::Lines => {
            let mut lines = Vec::new();
            for frame in &frames {
                serde_json::to_writer(&mut lines, &FrameJson::from(frame)).expect("a frame has only string keys");
                lines.push(b'\n');
            }
            (LINES, lines)
        }
        Format::Raw => {
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend_from_slice(&frame.bytes);
            }
            ("application/octet-stream", bytes)
        }
    };
    let headers = [
        ("content-type", kind.to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("jobcell-next-seq", next.to_string()),
        ("jobcell-log-end", end.to_string()),
        // Bytes alone cannot say that some are missing among them.
        ("jobcell-log-dropped", frames.iter().fold(0u64, |sum, frame| sum.saturating_add(frame.gap)).to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Delete a job's output
///
/// Of all its tries, once it has ended. The job's totals stay, as the record of what there was, and who asks for the output hears `gone`.
#[utoipa::path(delete, path = "/v1/jobs/{id}/logs", tag = "output",
    params(("id" = inline(schema::JobId), Path, description = "The job")),
    responses((status = 204, description = "It is gone")),
    extensions(("x-problems" = json!(["bad_id", "job_not_found", "not_ended", "unavailable"]))))]
pub(super) async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ProblemDocument> {
    let id = job_id(&id)?;
    let job = app.backend.get(id).await?.ok_or_else(|| not_found(id))?;
    if job.ending.is_none() {
        let detail = format!("job {id} is {}; cancel it or wait for its end, and then delete its output", job.phase);
        return Err(ProblemDocument::new("not_ended", detail));
    }
    app.backend.delete_output(id).await.map_err(|error| match error {
        DeleteError::Log(error) => log_problem(&error),
        DeleteError::Store(error) => error.into(),
    })?;
    tracing::info!(job_id = %id, "output deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Runs a read on a blocking thread. A job that never ran has no log, which reads as an empty one.
pub(super) async fn on_reader<T: Default + Send + 'static>(
    app: &App,
    attempt: AttemptId,
    read: impl FnOnce(&mut LogReader) -> Result<T, LogError> + Send + 'static,
) -> Result<T, ProblemDocument> {
    let logs = app.backend.logs().clone();
    let task = tokio::task::spawn_blocking(move || match logs.reader(attempt) {
        Ok(mut reader) => read(&mut reader),
        Err(LogError::Missing(_)) => Ok(T::default()),
        Err(error) => Err(error),
    });
    task.await.expect("reading does not panic").map_err(|error| log_problem(&error))
}

/// `Range: bytes=first-last`, with the last one left out for "to the end". Other forms count as absent, as the standard
/// allows; a range that is none is refused.
pub(super) fn byte_range(headers: &HeaderMap) -> Result<Option<(u64, Option<u64>)>, ProblemDocument> {
    let Some(value) = headers.get(header::RANGE) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let bad = || ProblemDocument::new("bad_query", "Range: write bytes=FIRST-LAST or bytes=FIRST-");
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    if first.is_empty() || last.contains(',') {
        return Ok(None);
    }
    let first: u64 = first.parse().map_err(|_| bad())?;
    let last = if last.is_empty() { None } else { Some(last.parse::<u64>().map_err(|_| bad())?) };
    if last.is_some_and(|last| last < first) { Err(bad()) } else { Ok(Some((first, last))) }
}

async fn bytes_answer(
    app: &App,
    attempt: AttemptId,
    stream: Stream,
    (first, last): (u64, Option<u64>),
    total: Option<u64>,
) -> Result<Response, ProblemDocument> {
    let wanted = last.map_or(u64::MAX, |last| last - first + 1);
    let most = usize::try_from(wanted).unwrap_or(usize::MAX).min(MOST_BYTES);
    let bytes = on_reader(app, attempt, move |reader| reader.read_bytes(stream, first, most)).await?;
    // While the job runs nobody knows the total, and of a try that was lost nobody ever does.
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    if bytes.is_empty() {
        let headers = [("content-range", format!("bytes */{total}"))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response());
    }
    let end = first + bytes.len() as u64 - 1;
    let headers = [
        ("content-type", "application/octet-stream".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("content-range", format!("bytes {first}-{end}/{total}")),
    ];
    Ok((StatusCode::PARTIAL_CONTENT, headers, bytes).into_response())
}
