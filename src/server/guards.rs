//! What holds for every request and every answer: how large a head may be, and what browsers are told to leave alone.

use super::problem::ProblemDocument;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Bytes of names and values of all headers and of the address: what a client sends is some hundred, and keys are short.
const MOST_HEAD: usize = 16 << 10;

/// What answers say to browsers, unless they say it themselves. Nothing of this API is a page to be framed, guessed at or kept.
const PROTECTION: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; sandbox"),
];

/// Refuses heads that are too large.
pub(super) async fn size(request: Request, next: Next) -> Response {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let address = request.uri().path_and_query().map_or(0, |both| both.as_str().len());
    if fields.sum::<usize>() + address > MOST_HEAD {
        let detail = format!("address and headers may have {MOST_HEAD} bytes together");
        return ProblemDocument::new("headers_too_large", detail).into_response();
    }
    next.run(request).await
}

/// Adds what browsers are told.
pub(super) async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in PROTECTION {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
