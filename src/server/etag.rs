//! Tags of jobs: what a client has seen, so that it is told only of what is new and changes only what it knows.
//!
//! A tag is the job's revision and, since output comes without one, the number of its last frame. A condition on a
//! change looks at the revision alone: more output is no other job.

use crate::job::Job;
use axum::Json;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

fn tag(job: &Job) -> String {
    format!("\"{}-{}\"", job.revision, job.log.frames)
}

/// A job with its tag.
pub(super) fn answer(status: StatusCode, job: Job) -> Response {
    (status, [(header::ETAG, tag(&job))], Json(job)).into_response()
}

/// The job, or the word that it is the one which the client has.
pub(super) fn answer_if_new(headers: &HeaderMap, job: Job) -> Response {
    let tag = tag(&job);
    // A weak tag is the same here: nothing of a job changes without its tag.
    let has = tags(headers, header::IF_NONE_MATCH)
        .is_some_and(|tags| tags.iter().any(|one| *one == "*" || one.trim_start_matches("W/") == tag));
    if has { (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response() } else { answer(StatusCode::OK, job) }
}

/// The revisions that a change is for; `None` when it is for any. A tag that is none of ours fits no revision.
pub(super) fn wanted_revisions(headers: &HeaderMap) -> Option<Vec<u64>> {
    let tags = tags(headers, header::IF_MATCH)?;
    if tags.contains(&"*") {
        return None;
    }
    let revision = |tag: &&str| tag.strip_prefix('"')?.strip_suffix('"')?.split('-').next()?.parse().ok();
    Some(tags.iter().filter_map(revision).collect())
}

/// The tags in a header, which may be there several times.
fn tags(headers: &HeaderMap, name: HeaderName) -> Option<Vec<&str>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    Some(lines.flat_map(|line| line.to_str().unwrap_or_default().split(',').map(str::trim)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_names_revisions() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_MATCH, axum::http::HeaderValue::from_static(value));
            }
            wanted_revisions(&headers)
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&["*"]), None);
        assert_eq!(with(&["\"7-12\", \"8-0\"", "\"9\""]), Some(vec![7, 8, 9]));
        assert_eq!(with(&["W/\"7-0\", 7, \"x\", \"\""]), Some(vec![]), "weak and foreign tags fit nothing");
    }
}
