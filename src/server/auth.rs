//! Who may do what: a request's key is looked up, and its role compared with what the route needs.

use super::keys::{Caller, Closed, Pass, Role};
use super::problem::ProblemDocument;
use super::{App, bearer};
use crate::job::{Job, UnixMillis};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What a route needs. What is not named here changes the installation, or jobs of others, and needs the most.
pub(super) fn needed(method: &Method, route: &str) -> Role {
    let looks = matches!(*method, Method::GET | Method::HEAD);
    match route {
        _ if route.starts_with("/v1/keys") => Role::Admin,
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

/// Lets in who has a key with the role that the route needs.
pub(super) async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let Some(key) = bearer(request.headers()) else {
        let detail = "send `Authorization: Bearer <key>`; the first key is in <data_dir>/admin.key";
        return ProblemDocument::new("unauthorized", detail).into_response();
    };
    let pass = Pass::of(key);
    let caller = match app.keys.caller(&pass, UnixMillis::now()) {
        Ok(caller) => caller,
        Err(Closed::Unknown) => {
            return ProblemDocument::new("unauthorized", "the key is not this installation's").into_response();
        }
        Err(Closed::Expired { name, since }) => {
            let detail = format!("the key `{name}` is over since {since}; ask for another one");
            return ProblemDocument::new("unauthorized", detail).into_response();
        }
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let (needed, brings) = (needed(request.method(), route), takes_in(request.method(), route));
    if caller.role < needed {
        let detail = format!(
            "the key `{}` has the role `{}`, and this needs `{}`",
            caller.name,
            caller.role.name(),
            needed.name()
        );
        return ProblemDocument::new("forbidden", detail).into_response();
    }
    if brings && app.settings.stopping.is_cancelled() {
        let detail = "this installation is stopping and takes no more jobs; submit again when it is back";
        return ProblemDocument::new("unavailable", detail).retry_after(5).into_response();
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(pass);
    next.run(request).await
}
