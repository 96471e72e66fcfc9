//! The one key that opens `/v1`. Kept as a hash; what is compared are hashes, so timing tells nothing about the key.

use super::problem::ProblemDocument;
use super::{App, bearer};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// A key's hash.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// The hash of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    fn opens(&self, key: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        given.iter().zip(self.0).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

pub(super) async fn require_key(State(app): State<App>, request: Request, next: Next) -> Response {
    match bearer(request.headers()) {
        Some(key) if app.key.opens(key) => next.run(request).await,
        Some(_) => ProblemDocument::new("unauthorized", "the key is not this installation's").into_response(),
        None => ProblemDocument::new(
            "unauthorized",
            "send `Authorization: Bearer <key>`; the key is in <data_dir>/admin.key",
        )
        .into_response(),
    }
}
