//! Errors as problem documents (RFC 9457) with stable codes.

use super::openapi::jobs as schema;
use crate::job::{Cause, PolicyRefusal, Problem, Problems};
use crate::queue::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Every code with its status and what it means; docs/errors.md lists the same, and a test compares them.
pub const ERROR_CODES: [(&str, u16, &str); 39] = [
    ("bad_spec", 422, "the job spec has problems; `problems` lists all of them"),
    ("policy_refused", 403, "the operator's policy does not allow the job; `problems` says what of it"),
    ("bad_query", 400, "a query parameter cannot be read"),
    ("bad_id", 400, "the id in the path is not a job's id, or no text"),
    ("bad_body", 400, "the request's body cannot be read"),
    ("body_too_large", 413, "the request's body is larger than server.max_body"),
    ("unauthorized", 401, "the request has no key, or a wrong one"),
    ("forbidden", 403, "the key has not the role that this needs, or the job is another key's"),
    ("foreign_origin", 403, "a web page of another origin tried to open a live stream"),
    ("profile_running", 409, "somebody looks at the process already"),
    ("job_not_found", 404, "no job has this id"),
    ("gone", 410, "the output was removed; the job says when"),
    ("artifact_not_found", 404, "the job has no such file, or its files are gone"),
    ("no_route", 404, "the API has no such path"),
    ("no_method", 405, "the path does not take this method"),
    ("key_conflict", 409, "the idempotency key was used with another spec"),
    ("agent_exists", 409, "an agent of this name has a key already"),
    ("agent_not_found", 404, "there is no agent of this name"),
    ("agent_quarantined", 409, "the agent is quarantined, and a plain resume does not end that"),
    ("key_exists", 409, "there is a key of this name already, or it is not changed here"),
    ("key_not_found", 404, "no key has this name"),
    ("agent_taken", 409, "another installation uses this agent's key and is alive"),
    ("session_unknown", 409, "the agent has to register (again)"),
    ("protocol_unsupported", 409, "agent and server have no version of the protocol in common"),
    ("has_parts", 409, "the job is for several hosts: the jobs for its hosts have what was asked for"),
    ("not_ended", 409, "the job has not ended; only one that has can be retried, or have its output deleted"),
    (
        "secrets_gone",
        409,
        "values of secrets came with the job and went with its end; it has to be submitted again with them",
    ),
    ("precondition_failed", 412, "the job has changed since it had the tag in If-Match"),
    ("blob_not_found", 404, "no content has this name"),
    ("blob_mismatch", 422, "the content is not what its name says"),
    ("blob_too_large", 413, "the content is larger than blobs.max_blob"),
    ("blobs_full", 507, "the contents together have blobs.max_bytes, or the disk is full"),
    ("rate_limited", 429, "the key makes more requests than it may, or too many from here had no good one"),
    ("quota_full", 429, "the key has as many jobs that have not ended as it may have"),
    ("headers_too_large", 431, "the request's headers are larger than 16 KiB"),
    ("queue_full", 429, "queue.max_queued jobs wait; Retry-After says when to try again"),
    ("not_held", 409, "the attempt is not the agent's, or has ended"),
    ("store_full", 507, "the store of files has no room; artifacts.quota bounds it, or the disk is full"),
    ("unavailable", 503, "the queue, the log or a stream cannot be had at the moment"),
];

/// The code of an answer that is a problem, for whoever passes the answer on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProblemCode(pub(super) &'static str);

/// A problem document (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProblemDocument {
    /// `urn:jobcell:error:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// What happened here.
    pub detail: String,
    /// For what has several parts that can be wrong, as a spec or a query: every problem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<schema::ProblemLine>, required = false)]
    pub problems: Vec<Problem>,
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl ProblemDocument {
    /// A problem with one of [`ERROR_CODES`].
    pub(super) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let (_, status, title) =
            ERROR_CODES.into_iter().find(|(known, ..)| *known == code).expect("only codes of the catalogue are used");
        let kind = format!("urn:jobcell:error:{code}");
        Self { kind, title, status, code, detail: detail.into(), problems: Vec::new(), retry_after: None }
    }

    pub(super) fn spec(problems: &Problems) -> Self {
        let count = problems.iter().count();
        let detail =
            format!("{count} problem{} in the job spec; nothing was created", if count == 1 { "" } else { "s" });
        Self::new("bad_spec", detail).listing(problems.iter().cloned().collect())
    }

    /// What an operator's policy does not allow.
    pub(super) fn policy(cause: &Cause) -> Self {
        let refusals = match cause {
            Cause::PolicyRefused { refusals, .. } => refusals.as_slice(),
            _ => &[],
        };
        let problem = |one: &PolicyRefusal| Problem {
            path: one.path.clone(),
            reason: one.sentence.clone(),
            fix: format!("change it, or ask the operator ({})", one.code),
        };
        Self::new("policy_refused", format!("{cause}; nothing was created"))
            .listing(refusals.iter().map(problem).collect())
    }

    /// Everything that is wrong with a query.
    pub(super) fn query(problems: &Problems) -> Self {
        let count = problems.iter().count();
        let detail = format!("{count} problem{} in the query", if count == 1 { "" } else { "s" });
        Self::new("bad_query", detail).listing(problems.iter().cloned().collect())
    }

    /// The document with its parts, each wrong by itself.
    pub(super) fn listing(self, problems: Vec<Problem>) -> Self {
        Self { problems, ..self }
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<StoreError> for ProblemDocument {
    fn from(error: StoreError) -> Self {
        if let StoreError::Contents(reason) = error {
            tracing::error!(reason, "the contents failed a request");
            return Self::new("unavailable", reason).retry_after(5);
        }
        tracing::error!(%error, "the queue failed a request");
        Self::new("unavailable", "the queue cannot be used at the moment; the operator's log says why").retry_after(5)
    }
}

impl IntoResponse for ProblemDocument {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (retry_after, code) = (self.retry_after, self.code);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if code == "unauthorized" {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ProblemCode(code));
        response
    }
}

pub(super) async fn no_route() -> ProblemDocument {
    ProblemDocument::new("no_route", "/docs and /openapi.json of this server describe the paths")
}

pub(super) async fn no_method() -> ProblemDocument {
    ProblemDocument::new("no_method", "/docs and /openapi.json of this server describe the methods")
}
