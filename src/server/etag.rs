//! Tags of jobs: what a client has seen, so that it is told only of what is new and changes only what it knows.
//!
//! A tag is the job's revision and what moves without one: the number of its last frame, how far the pull of its image is, how far it says it is.
//! A condition on a change looks at the revision alone: more output is no other job.

use crate::job::Job;
use axum::Json;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

fn tag(job: &Job) -> String {
    format!("\"{}-{}-{}\"", job.revision, job.log.frames, moved(job))
}

/// Another number whenever something has moved: the sum of the moments at which it last did, each of which only grows.
fn moved(job: &Job) -> u64 {
    let noted = job.history.last().map(|event| event.at);
    let said = job.results.progress.as_ref().map(|progress| progress.at);
    let steps = job.results.steps.iter().flat_map(|step| [Some(step.began_at), step.ended_at]);
    let moments = [noted, said].into_iter().chain(steps).flatten();
    moments.fold(0, |sum, at| sum.wrapping_add(at.as_u64()))
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

    #[tokio::test]
    async fn what_moves_is_another_answer_and_no_other_job() {
        use crate::job::{JobId, JobSpec, JobStep, PhaseEvent, Progress, SpecRules, UnixMillis};
        use crate::queue::{Family, MemoryStore, NewJob, Store, Submitted};
        let document = serde_json::json!({"preset": "bash", "script": "true"});
        let (spec, at) = (JobSpec::check(&document, &SpecRules::default()).expect("valid"), UnixMillis::new);
        let family = Family::Alone;
        let new =
            NewJob { id: JobId::new(at(5)), spec, at: at(5), retry_of: None, submitter: None, quota: None, family };
        let Ok(Submitted::Created(mut job)) = MemoryStore::new().submit(new, 1).await else { panic!("is taken in") };
        let mut tags = vec![tag(&job)];
        job.history.push(PhaseEvent { at: at(9), ..job.history[0].clone() });
        tags.push(tag(&job));
        job.results.progress = Some(Progress { percent: 1, message: String::new(), at: at(7), eta: None });
        tags.push(tag(&job));
        job.results.steps.push(JobStep { name: "s".into(), began_at: at(8), ended_at: None });
        tags.push(tag(&job));
        job.log.frames += 1;
        tags.push(tag(&job));
        assert!(
            tags.windows(2).all(|two| two[0] != two[1]) && tags.iter().all(|tag| tag.starts_with("\"1-")),
            "{tags:?}"
        );
    }

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
