//! What handlers take from a request, with refusals that are problem documents.

use super::App;
use super::jobs;
use super::problem::ProblemDocument;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// Parameters of the path. Refused when they are no text.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ProblemDocument> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(error) => Err(ProblemDocument::new("bad_id", error.body_text())),
        }
    }
}

/// The whole body. Refused when it is too large or was cut off.
pub(super) struct Received(pub(super) Bytes);

impl FromRequest<App> for Received {
    type Rejection = ProblemDocument;

    async fn from_request(request: Request, app: &App) -> Result<Self, ProblemDocument> {
        jobs::body(app, Bytes::from_request(request, app).await).map(Self)
    }
}
