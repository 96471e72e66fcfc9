//! Web pages of other origins: none may use the API from a browser, unless the operator names their origin.
//!
//! A page is told nothing of an answer that it may not read, by the browser. There are no cookies here, so a page without a key gets
//! nothing in any case; what is kept out is a page that was given one and whose origin nobody named.

use super::App;
use super::jobs::Answer;
use super::problem::ProblemDocument;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// What the API reads.
const TAKEN: &str = "Authorization, Content-Type, Accept, Idempotency-Key, Jobcell-Dedupe, If-Match, If-None-Match, Last-Event-ID, Range";
/// What it answers with beside the headers that every page may read.
const GIVEN: &str = "ETag, Location, Retry-After, RateLimit, RateLimit-Policy, Content-Range, Jobcell-Next-Seq, Jobcell-Log-End, \
                     Jobcell-Log-Dropped, Jobcell-Next-Before";
/// Seconds for which a browser need not ask again.
const MAX_AGE: &str = "600";

/// The origin of the page that sent this, if the operator named it.
fn named<'a>(app: &App, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    app.settings.origins.iter().any(|named| named.as_bytes() == origin.as_bytes()).then_some(origin)
}

/// Answers what browsers ask before they send, and says on answers who may read them.
pub(super) async fn share(State(app): State<App>, request: Request, next: Next) -> Response {
    if app.settings.origins.is_empty() {
        return next.run(request).await;
    }
    let origin = named(&app, request.headers()).cloned();
    let asks = request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &origin {
        Some(_) if asks => {
            let allowed = [
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, TAKEN),
                (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
            ];
            (StatusCode::NO_CONTENT, allowed).into_response()
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    // A cache must not give one page's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(GIVEN));
    }
    response
}

/// A browser names the page that opens a stream. Only one from here, or one that the operator named, may; programs name none.
pub(super) fn may_stream(app: &App, headers: &HeaderMap) -> Answer<()> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    if (page.is_some() && page == host) || named(app, headers).is_some() {
        Ok(())
    } else {
        let detail =
            "open the stream from a page of this server, of an origin in server.cors_origins, or from a program";
        Err(ProblemDocument::new("foreign_origin", detail))
    }
}
