//! Who may do what: a request's key is looked up, its role compared with what the route needs, and its requests counted.

use super::audited::Attempt;
use super::keys::{Caller, Closed, Pass, Role};
use super::limits::{Budget, seconds};
use super::problem::ProblemDocument;
use super::{App, bearer};
use crate::audit::Who;
use crate::job::{Job, UnixMillis};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// What a route needs. What is not named here changes the installation, or jobs of others, and needs the most.
pub(super) fn needed(method: &Method, route: &str) -> Role {
    let looks = matches!(*method, Method::GET | Method::HEAD);
    match route {
        _ if route.starts_with("/v1/keys") || route.starts_with("/v1/agent-tokens") || route == "/v1/audit" => {
            Role::Admin
        }
        _ if looks => Role::Read,
        "/v1/jobs"
        | "/v1/jobs/bulk"
        | "/v1/jobs/{id}/cancel"
        | "/v1/jobs/{id}/retry"
        | "/v1/blobs"
        | "/v1/blobs/{digest}" => Role::Submit,
        _ => Role::Admin,
    }
}

/// Whether a call brings jobs.
fn takes_in(method: &Method, route: &str) -> bool {
    *method == Method::POST && matches!(route, "/v1/jobs" | "/v1/jobs/bulk" | "/v1/jobs/{id}/retry" | "/v1/jobs/replay")
}

/// Refuses what a caller may not do with somebody else's job.
pub(super) fn own(caller: &Caller, job: &Job) -> Result<(), ProblemDocument> {
    if caller.role == Role::Admin || job.submitter.as_ref() == Some(&caller.submitter()) {
        return Ok(());
    }
    let same_name = job.submitter.as_ref().is_some_and(|submitter| submitter.name == caller.name);
    let other = if same_name { "this key" } else { "the key" };
    let detail = format!(
        "job {} was not submitted with {other} `{}`, whose role `{}` is for its own jobs; use that key, or one with the role `admin`",
        job.id,
        caller.name,
        caller.role.name()
    );
    Err(ProblemDocument::new("forbidden", detail))
}

/// Why somebody without a good key is not let in. Who has been refused too often is told so: it changes nothing for good keys.
pub(super) fn stranger(app: &App, from: Option<IpAddr>, detail: impl Into<String>) -> ProblemDocument {
    match app.limits.refusal(from) {
        None => ProblemDocument::new("unauthorized", detail),
        Some(wait) => {
            let detail = "too many requests without a good key came from this address; one with a good key is let in";
            ProblemDocument::new("rate_limited", detail).retry_after(seconds(wait))
        }
    }
}

/// Somebody who is let in.
struct Admitted {
    caller: Caller,
    pass: Pass,
    budget: Option<Budget>,
}

/// Why somebody is not.
type Refused = Box<(Who, ProblemDocument, Option<Budget>)>;

fn who(caller: &Caller) -> Who {
    Who::Key { name: caller.name.clone(), role: caller.role.name() }
}

fn admit(app: &App, request: &Request, from: Option<IpAddr>) -> Result<Admitted, Refused> {
    let nobody = |detail: String| Box::new((Who::Nobody, stranger(app, from, detail), None));
    let Some(key) = bearer(request.headers()) else {
        return Err(nobody("send `Authorization: Bearer <key>`; the first key is in <data_dir>/admin.key".to_owned()));
    };
    let pass = Pass::of(key);
    let caller = match app.keys.caller(&pass, UnixMillis::now()) {
        Ok(caller) => caller,
        Err(Closed::Unknown) => return Err(nobody("the key is not this installation's".to_owned())),
        Err(Closed::Expired { name, since }) => {
            let mut refused = nobody(format!("the key `{name}` is over since {since}; ask for another one"));
            refused.0 = Who::Key { name, role: "expired" };
            return Err(refused);
        }
    };
    let budget = app.limits.request(&caller.name, caller.limits);
    if let Some(problem) = budget.as_ref().and_then(|budget| budget.refusal(&caller.name)) {
        return Err(Box::new((who(&caller), problem, budget)));
    }
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let needed = needed(request.method(), route);
    if caller.role < needed {
        let detail = format!(
            "the key `{}` has the role `{}`, and this needs `{}`",
            caller.name,
            caller.role.name(),
            needed.name()
        );
        return Err(Box::new((who(&caller), ProblemDocument::new("forbidden", detail), budget)));
    }
    Ok(Admitted { caller, pass, budget })
}

/// Lets in who has a key with the role that the route needs.
pub(super) async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let attempt = Attempt::of(&request);
    let told = |budget: Option<Budget>, response: Response| match budget {
        Some(budget) => budget.told(response),
        None => response,
    };
    let Admitted { caller, pass, budget } = match admit(&app, &request, attempt.from()) {
        Ok(admitted) => admitted,
        Err(refused) => {
            let (who, problem, budget) = *refused;
            attempt.refused(&app.audit, who, &problem);
            return told(budget, problem.into_response());
        }
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let brings = takes_in(request.method(), route);
    let who = who(&caller);
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(pass);
    request.extensions_mut().insert(attempt.naming());
    let answer = async {
        if brings && app.settings.stopping.is_cancelled() {
            let detail = "this installation is stopping and takes no more jobs; submit again when it is back";
            return ProblemDocument::new("unavailable", detail).retry_after(5).into_response();
        }
        next.run(request).await
    };
    told(budget, attempt.run(&app.audit, who, answer).await)
}
