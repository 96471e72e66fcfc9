//! Lists of jobs: what may be asked for, and a page as one document or as lines.
//!
//! Owns the reading of filters, for lists and for whoever else picks jobs by them. Says everything that is wrong with a
//! query at once; picks no jobs itself.

use super::App;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::job::{JobId, JobSummary, Phase, Problems, UnixMillis, Verdict, shown, suggestion};
use crate::queue::ListFilter;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// Longest page of a list.
const MOST_LISTED: u32 = 500;
/// Page of a list when none is asked for.
const LISTED: u32 = 50;
/// Longest text that is looked for: a name is not longer.
const MOST_TEXT: usize = 255;
/// Lines instead of one document.
pub(super) const LINES: &str = "application/x-ndjson";

const PARAMETERS: [&str; 11] =
    ["state", "phase", "verdict", "dead_letter", "parent", "label", "since", "until", "text", "before", "limit"];

/// A query as it came; keys may be there several times.
pub(super) type Pairs = Vec<(String, String)>;

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
struct JobList {
    #[schema(value_type = Vec<schema::JobSummary>)]
    jobs: Vec<JobSummary>,
    /// The `before` of the next page; null on the last one.
    #[schema(value_type = Option<schema::JobId>, required)]
    next: Option<JobId>,
}

/// What a list may be narrowed by; read by hand, so that everything wrong is said at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters only")]
struct ListQuery {
    /// In one of these phases, with commas between them.
    state: Option<String>,
    /// The same as `state`.
    phase: Option<String>,
    /// That ended so.
    #[param(inline)]
    verdict: Option<schema::Verdict>,
    /// That were given up for want of tries, and not replayed since; `false` for all others.
    dead_letter: Option<bool>,
    /// The jobs for the hosts of this one.
    #[param(inline)]
    parent: Option<schema::JobId>,
    /// With this label, `name=value`. May be given several times; all must be there.
    label: Option<Vec<String>>,
    /// Submitted at this moment or later: milliseconds since 1970, or RFC 3339.
    since: Option<String>,
    /// Submitted before this moment.
    until: Option<String>,
    /// With this text in name, id or the value of a label, in large letters or small.
    #[param(min_length = 1, max_length = 255)]
    text: Option<String>,
    /// Submitted before this job: `next` of the page before.
    #[param(inline)]
    before: Option<schema::JobId>,
    /// So many at most, default 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// List jobs, the newest first
///
/// With `Accept: application/x-ndjson`, every line is one job and `next` is a header.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery),
    responses((status = 200, description = "A page of jobs", content(
        (JobList = "application/json"), (schema::JobSummary = "application/x-ndjson")),
        headers(("Jobcell-Next-Before" = Option<String>, description = "The `before` of the next page, with lines only")))),
    extensions(("x-problems" = json!(["bad_query", "unavailable"]))))]
pub(super) async fn list(
    State(app): State<App>,
    asked: Result<Query<Pairs>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ProblemDocument> {
    let asked = super::jobs::query(asked)?;
    let mut filter = filter(&asked).map_err(|problems| ProblemDocument::query(&problems))?;
    // One more than asked for, to know whether there is a next page.
    filter.limit += 1;
    let limit = filter.limit as usize - 1;
    let mut jobs = app.backend.list(filter).await?;
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let next = jobs.last().map(|job| job.id).filter(|_| more);
    if !wants_lines(&headers) {
        return Ok(Json(JobList { jobs, next }).into_response());
    }
    let mut lines = Vec::new();
    for job in &jobs {
        serde_json::to_writer(&mut lines, job).expect("a summary has only string keys");
        lines.push(b'\n');
    }
    let mut response = ([(header::CONTENT_TYPE, LINES)], lines).into_response();
    if let Some(next) = next {
        let next = next.to_string().parse().expect("an id is ASCII");
        response.headers_mut().insert("jobcell-next-before", next);
    }
    Ok(response)
}

/// Whether a client asks for lines instead of one document.
pub(super) fn wants_lines(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains(LINES))
}

/// Reads a query. Errors: everything that is wrong with it.
fn filter(asked: &Pairs) -> Result<ListFilter, Problems> {
    let mut problems = Problems::default();
    let mut filter = ListFilter { limit: LISTED, ..ListFilter::default() };
    for (n, (key, value)) in asked.iter().enumerate() {
        let repeats = matches!(key.as_str(), "state" | "phase" | "label");
        if !repeats && asked[..n].iter().any(|(before, _)| before == key) {
            problems.add(shown(key), "is given more than once", "keep one of them");
            continue;
        }
        match key.as_str() {
            "state" | "phase" => phases(key, value, &mut filter.phases, &mut problems),
            "label" => filter.labels.extend(label(key, value, &mut problems)),
            "verdict" => {
                filter.verdict = Verdict::named(value);
                if filter.verdict.is_none() {
                    let known = Verdict::ALL.map(Verdict::name);
                    problems.add(key, format!("`{}` is no verdict", shown(value)), choose(value, &known));
                }
            }
            "dead_letter" => match value.parse() {
                Ok(dead) => filter.dead_letter = Some(dead),
                Err(_) => {
                    problems.add(key, format!("`{}` is neither true nor false", shown(value)), "write true or false")
                }
            },
            "since" => filter.submitted_after = moment(key, value, &mut problems),
            "until" => filter.submitted_before = moment(key, value, &mut problems),
            "text" => match value.chars().count() {
                1..=MOST_TEXT => filter.text = Some(value.clone()),
                count => problems.add(key, format!("has {count} characters"), format!("give 1 to {MOST_TEXT}")),
            },
            "parent" => match value.parse() {
                Ok(id) => filter.parent = Some(id),
                Err(error) => problems.add(key, error.to_string(), "give the id of a job for several hosts"),
            },
            "before" => match value.parse() {
                Ok(id) => filter.before = Some(id),
                Err(error) => problems.add(key, error.to_string(), "give `next` of the page before"),
            },
            "limit" => match value.parse() {
                Ok(limit) if (1..=MOST_LISTED).contains(&limit) => filter.limit = limit,
                _ => problems.add(
                    key,
                    format!("`{}` is no length of a page", shown(value)),
                    format!("choose between 1 and {MOST_LISTED}"),
                ),
            },
            _ => problems.add(shown(key), "unknown parameter", suggestion(key, &PARAMETERS)),
        }
    }
    if let (Some(since), Some(until)) = (filter.submitted_after, filter.submitted_before)
        && since > until
    {
        problems.add("until", "is earlier than `since`", "exchange the two");
    }
    problems.or_value(filter)
}

/// Adds phases, written with commas between them.
pub(super) fn phases(path: &str, text: &str, into: &mut Vec<Phase>, problems: &mut Problems) {
    for name in text.split(',') {
        match Phase::named(name.trim()) {
            Some(phase) if into.contains(&phase) => {}
            Some(phase) => into.push(phase),
            None => {
                let known = Phase::ALL.map(Phase::name);
                problems.add(path, format!("`{}` is no state", shown(name)), choose(name, &known));
            }
        }
    }
}

/// Reads `key=value`. The value may be empty, and may have equals signs of its own.
pub(super) fn label(path: &str, text: &str, problems: &mut Problems) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
        _ => {
            let fix = "write the label's name, an equals sign and its value: team=blue";
            problems.add(path, format!("`{}` is no label", shown(text)), fix);
            None
        }
    }
}

/// Reads a moment of a query.
pub(super) fn moment(path: &str, text: &str, problems: &mut Problems) -> Option<UnixMillis> {
    // In a query a bare plus sign means a blank; the one of an offset is meant.
    text.replace(' ', "+")
        .parse()
        .map_err(|error| problems.add(path, format!("`{}` is no moment", shown(text)), format!("{error}")))
        .ok()
}

fn choose(word: &str, known: &[&str]) -> String {
    let near = suggestion(word.trim(), known);
    if near.starts_with("did you") { near } else { format!("choose among {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(asked: &[(&str, &str)]) -> Result<ListFilter, String> {
        let pairs: Pairs = asked.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        filter(&pairs).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_query_becomes_a_filter() {
        let asked = [
            ("state", "queued,running"),
            ("phase", "ended"),
            ("verdict", "timed_out"),
            ("dead_letter", "true"),
            ("label", "a=b"),
            ("label", "c=d=e"),
            ("since", "1700000000000"),
            ("until", "2023-11-14T23:13:20 01:00"),
            ("text", "Ü"),
            ("limit", "500"),
        ];
        let wanted = ListFilter {
            phases: vec![Phase::Queued, Phase::Running, Phase::Ended],
            verdict: Some(Verdict::TimedOut),
            dead_letter: Some(true),
            parent: None,
            labels: vec![("a".into(), "b".into()), ("c".into(), "d=e".into())],
            submitted_after: Some(UnixMillis::new(1_700_000_000_000)),
            submitted_before: Some(UnixMillis::new(1_700_000_000_000)),
            text: Some("Ü".into()),
            before: None,
            limit: 500,
        };
        assert_eq!(read(&asked), Ok(wanted));
        assert_eq!(read(&[]), Ok(ListFilter { limit: LISTED, ..ListFilter::default() }));
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_a_remedy() {
        for (key, value, wanted) in [
            ("state", "asleep", "state: `asleep` is no state; choose among queued, claimed"),
            ("state", "quued", "did you mean `queued`?"),
            ("verdict", "fail", "verdict: `fail` is no verdict; "),
            ("dead_letter", "yes", "dead_letter: `yes` is neither true nor false; write true or false"),
            ("label", "team", "label: `team` is no label; write"),
            ("label", "=x", "label: `=x` is no label"),
            ("since", "today", "since: `today` is no moment; expected milliseconds"),
            ("text", "", "text: has 0 characters; give 1 to 255"),
            ("limit", "501", "limit: `501` is no length of a page; choose between 1 and 500"),
            ("before", "x", "before: `x` is not a job id"),
            ("lable", "a=b", "lable: unknown parameter; did you mean `label`?"),
        ] {
            let said = read(&[(key, value)]).expect_err(value);
            assert!(said.contains(wanted), "{said}");
        }
        let said = read(&[("limit", "0"), ("limit", "1"), ("since", "2"), ("until", "1")]).expect_err("wrong");
        assert_eq!(said.lines().count(), 3, "{said}");
    }
}
