//! What the audit log is told of requests: every one that changes something or tries to, and every refusal. Reads are not told.
//!
//! The line of an answer is in the file before the answer goes out. A request whose sender hangs up is told too, as `unanswered`.

use super::App;
use super::connections::Peer;
use super::jobs::{self, Answer};
use super::list::moment;
use super::openapi::jobs as schema;
use super::problem::{ProblemCode, ProblemDocument};
use crate::audit::{Audit, Event, Filter, Outcome, Who};
use crate::job::{Problems, UnixMillis, shown, suggestion};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{Method, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Entries of a page, and when no number is asked for.
const MOST_LISTED: usize = 1000;
const LISTED: usize = 100;

/// Each route that changes something, with its name in the log. A test holds it to the routes that there are.
pub(super) const ACTIONS: [(&str, &str, &str); 24] = [
    ("POST", "/v1/jobs", "job.submit"),
    ("POST", "/v1/jobs/bulk", "job.submit_many"),
    ("POST", "/v1/jobs/bulk-cancel", "job.cancel_many"),
    ("POST", "/v1/jobs/replay", "job.replay"),
    ("POST", "/v1/jobs/gc", "job.gc"),
    ("POST", "/v1/jobs/{id}/cancel", "job.cancel"),
    ("POST", "/v1/jobs/{id}/retry", "job.retry"),
    ("DELETE", "/v1/jobs/{id}/logs", "output.delete"),
    ("POST", "/v1/blobs", "content.upload"),
    ("PUT", "/v1/blobs/{digest}", "content.upload"),
    ("POST", "/v1/keys", "key.add"),
    ("DELETE", "/v1/keys/{name}", "key.remove"),
    ("POST", "/v1/keys/{name}/rotate", "key.rotate"),
    ("PUT", "/v1/keys/{name}/limits", "key.limit"),
    ("POST", "/v1/agents", "agent.add"),
    ("DELETE", "/v1/agents/{name}", "agent.remove"),
    ("POST", "/v1/agents/{name}/drain", "agent.drain"),
    ("POST", "/v1/agents/{name}/quarantine", "agent.quarantine"),
    ("POST", "/v1/agents/{name}/resume", "agent.resume"),
    ("POST", "/v1/agent-tokens", "token.add"),
    ("DELETE", "/v1/agent-tokens/{id}", "token.remove"),
    ("POST", "/v1/profile", "process.profile"),
    ("POST", "/v1/agent/register", "agent.register"),
    ("POST", "/v1/agent/enroll", "agent.enroll"),
];

/// What a handler says of what it did, beside what the request and the answer's status say.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// To what, where the path does not say.
    pub(super) object: Option<String>,
    /// How many.
    pub(super) count: Option<u64>,
    /// More of it. Never a secret.
    pub(super) detail: Option<String>,
}

/// Where a handler says what its request is about as soon as it knows: whoever hangs up before the answer is told of with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Naming(Arc<OnceLock<String>>);

impl Naming {
    pub(super) fn is(&self, object: String) {
        let _ = self.0.set(object);
    }
}

/// A request, as the log names it.
pub(super) struct Attempt {
    /// None for one that changes nothing.
    action: Option<&'static str>,
    event: Event,
    naming: Naming,
}

impl Attempt {
    pub(super) fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        let named = ACTIONS.iter().find(|(method, of, _)| *method == request.method().as_str() && *of == route);
        // What an agent says of its jobs is in their histories.
        let action = match named {
            Some((.., action)) => Some(*action),
            None if looks || route.starts_with("/v1/agent/") => None,
            None => Some("other"),
        };
        let usual = if route.starts_with("/v1/agent/") { "agent.call" } else { "read" };
        let event = Event {
            at: UnixMillis::now(),
            who: Who::Nobody,
            from: request.extensions().get::<Peer>().map(|peer| peer.0),
            action: action.unwrap_or(usual),
            object: object(route, request.uri().path()),
            outcome: Outcome::Unanswered,
            status: None,
            detail: None,
            count: None,
        };
        Self { action, event, naming: Naming::default() }
    }

    /// For the handler.
    pub(super) fn naming(&self) -> Naming {
        self.naming.clone()
    }

    pub(super) fn from(&self) -> Option<std::net::IpAddr> {
        self.event.from
    }

    /// It is not let in.
    pub(super) fn refused(self, audit: &Audit, who: Who, problem: &ProblemDocument) {
        let (status, detail) = (Some(problem.status), Some(problem.code.to_owned()));
        audit.refused(Event { who, outcome: Outcome::Refused, status, detail, ..self.event });
    }

    /// Lets it in, and says what came of it.
    pub(super) async fn run(self, audit: &Audit, who: Who, answer: impl Future<Output = Response>) -> Response {
        if self.action.is_none() {
            return answer.await;
        }
        let mut open = Open { audit, event: Some(Event { who, ..self.event }), naming: self.naming };
        let response = answer.await;
        if let Some(event) = open.event.take() {
            let event = answered(event, &response);
            // Somebody with a key, too, can be turned down at any rate.
            match event.outcome {
                Outcome::Refused | Outcome::Rejected => audit.record_refused(event).await,
                Outcome::Done | Outcome::Failed | Outcome::Unanswered => audit.record(event).await,
            }
        }
        response
    }
}

/// What the path names: the part in the place of the route's first parameter.
fn object(route: &str, path: &str) -> Option<String> {
    let named = route.split('/').zip(path.split('/')).find(|(part, _)| part.starts_with('{'));
    named.map(|(_, name)| decoded(name))
}

/// A part of a path as it was meant. What is no text is shown as far as it is.
fn decoded(part: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(part.len()), part.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let code =
            (first == b'%').then(|| behind.get(..2)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn answered(event: Event, response: &Response) -> Event {
    let status = response.status().as_u16();
    let told = response.extensions().get::<Told>().cloned().unwrap_or_default();
    let location = response.headers().get(header::LOCATION).and_then(|at| at.to_str().ok()?.rsplit('/').next());
    let code = response.extensions().get::<ProblemCode>().map(|code| code.0.to_owned());
    // A new job's own id says more than that of the one that it does again, which is in the job.
    let object = told.object.or(location.map(str::to_owned)).or(event.object);
    let (detail, count) = (code.or(told.detail), told.count);
    Event { object, outcome: Outcome::of_status(status), status: Some(status), detail, count, ..event }
}

/// A request without an answer so far.
struct Open<'a> {
    audit: &'a Audit,
    event: Option<Event>,
    naming: Naming,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Whoever asked hung up; what was begun may go on.
        if let Some(event) = self.event.take() {
            let object = self.naming.0.get().cloned().or(event.object);
            self.audit.note(Event { object, ..event });
        }
    }
}

/// Routes of the log.
pub(super) fn for_people() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Who did it.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes the entries only")]
enum By {
    Key,
    Agent,
    Nobody,
    Jobcell,
}

/// What came of it.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case", as = AuditOutcome)]
#[expect(dead_code, reason = "describes the entries only")]
enum OutcomeName {
    Done,
    Refused,
    Rejected,
    Failed,
    Unanswered,
}

/// A line of the log. What is not known has no field.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the entries only")]
struct AuditEntry {
    /// Grows by one with every line; a gap is lines that were lost.
    seq: u64,
    at: schema::Moment,
    /// The same moment, for people.
    time: String,
    by: By,
    /// The name of the key or of the agent.
    #[schema(nullable = false)]
    who: Option<String>,
    #[schema(nullable = false)]
    role: Option<String>,
    /// The address.
    #[schema(nullable = false)]
    from: Option<String>,
    action: String,
    /// What it was done to: an id or a name.
    #[schema(nullable = false)]
    object: Option<String>,
    outcome: OutcomeName,
    #[schema(nullable = false)]
    status: Option<u16>,
    /// More of it, or the code of the problem.
    #[schema(nullable = false)]
    detail: Option<String>,
    /// How many it was about.
    #[schema(nullable = false)]
    count: Option<u64>,
}

/// A page of the log, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    #[schema(value_type = Vec<AuditEntry>)]
    entries: Vec<Value>,
    /// The `before` of the next page; null on the last one.
    #[schema(required)]
    next: Option<u64>,
    /// Lines that could not be read.
    unreadable: u64,
}

/// What of the log is asked for; read by hand, so that everything wrong is said at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters only")]
struct AuditQuery {
    /// At this moment or later: milliseconds since 1970, or RFC 3339.
    since: Option<String>,
    /// Before this moment.
    until: Option<String>,
    /// By the key or agent of this name.
    who: Option<String>,
    /// Of this action (`key.add`), or of all that begin with it (`key`).
    action: Option<String>,
    /// About this id or name.
    object: Option<String>,
    /// With this outcome.
    #[param(inline)]
    outcome: Option<OutcomeName>,
    /// With a lower number: `next` of the page before.
    before: Option<u64>,
    /// So many at most, default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

const PARAMETERS: [&str; 8] = ["since", "until", "who", "action", "object", "outcome", "before", "limit"];

/// Who did what, the newest first
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, description = "A page of the audit log", body = AuditPage)),
    extensions(("x-problems" = json!(["bad_query", "unavailable"]))))]
pub(super) async fn list(
    State(app): State<App>,
    asked: Result<Query<super::list::Pairs>, QueryRejection>,
) -> Answer<Json<AuditPage>> {
    let filter = filter(&jobs::query(asked)?).map_err(|problems| ProblemDocument::query(&problems))?;
    let page = app.audit.read(filter).await.map_err(|reason| ProblemDocument::new("unavailable", reason))?;
    let next = page.entries.last().and_then(|entry| entry["seq"].as_u64()).filter(|_| page.more);
    Ok(Json(AuditPage { entries: page.entries, next, unreadable: page.unreadable }))
}

/// Reads a query. Errors: everything that is wrong with it.
fn filter(asked: &[(String, String)]) -> Result<Filter, Problems> {
    let mut problems = Problems::default();
    let mut filter = Filter { limit: LISTED, ..Filter::default() };
    for (n, (key, value)) in asked.iter().enumerate() {
        if asked[..n].iter().any(|(before, _)| before == key) {
            problems.add(shown(key), "is given more than once", "keep one of them");
            continue;
        }
        match key.as_str() {
            "since" => filter.since = moment(key, value, &mut problems),
            "until" => filter.until = moment(key, value, &mut problems),
            "who" => filter.who = Some(value.clone()),
            "action" => filter.action = Some(value.clone()),
            "object" => filter.object = Some(value.clone()),
            "outcome" => {
                let known = Outcome::ALL.map(Outcome::name);
                if !known.contains(&value.as_str()) {
                    problems.add(key, format!("`{}` is no outcome", shown(value)), suggestion(value, &known));
                }
                filter.outcome = Some(value.clone());
            }
            "before" => match value.parse() {
                Ok(seq) => filter.before = Some(seq),
                Err(_) => {
                    problems.add(key, format!("`{}` is no number", shown(value)), "give `next` of the page before")
                }
            },
            "limit" => match value.parse() {
                Ok(limit) if (1..=MOST_LISTED).contains(&limit) => filter.limit = limit,
                _ => {
                    let reason = format!("`{}` is no length of a page", shown(value));
                    problems.add(key, reason, format!("choose between 1 and {MOST_LISTED}"));
                }
            },
            _ => problems.add(shown(key), "unknown parameter", suggestion(key, &PARAMETERS)),
        }
    }
    problems.or_value(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_that_changes_something_has_a_name_in_the_log() {
        let document: Value = serde_json::from_str(crate::server::openapi_json()).expect("is JSON");
        let mut changes = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in
                item.as_object().expect("a path").keys().filter(|method| *method != "get" && *method != "head")
            {
                let told = !path.starts_with("/v1/agent/")
                    || matches!(path.as_str(), "/v1/agent/register" | "/v1/agent/enroll");
                if told {
                    changes.insert((method.to_uppercase(), path.clone()));
                }
            }
        }
        let named = ACTIONS.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(changes, named);
    }

    #[test]
    fn what_a_request_is_about_is_read_from_its_path() {
        assert_eq!(object("/v1/keys/{name}/rotate", "/v1/keys/ci/rotate").as_deref(), Some("ci"));
        assert_eq!(object("/v1/keys/{name}", "/v1/keys/build%2E1%zz%").as_deref(), Some("build.1%zz%"));
        assert_eq!(object("/v1/keys/{name}", "/v1/keys/%ff%C3%A9").as_deref(), Some("\u{fffd}é"));
        assert_eq!(object("/v1/jobs", "/v1/jobs"), None);
        assert_eq!(object("", "/v1/nothing"), None);
    }

    #[test]
    fn a_query_is_read_strictly() {
        let read = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            filter(&pairs).map_err(|problems| problems.to_string())
        };
        assert_eq!(read(&[]), Ok(Filter { limit: 100, ..Filter::default() }));
        let said = read(&[
            ("outcom", "x"),
            ("outcome", "don"),
            ("limit", "0"),
            ("limit", "5"),
            ("before", "x"),
            ("since", "soon"),
        ]);
        let said = said.expect_err("is all wrong");
        for part in [
            "did you mean `outcome`?",
            "did you mean `done`?",
            "choose between 1 and 1000",
            "more than once",
            "`x` is no number",
            "since",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
