//! Contents that jobs are given, out of the backend. Their answers are read as long as they come, so these calls go beside the others:
//! the same rate, key and session, and a deadline for the answer's beginning.

use super::Shared;
use crate::backend::{BackendError, BlobPieces};
use crate::job::Digest;
use crate::net::Retry;
use crate::protocol::agent::SESSION_HEADER;
use futures_util::StreamExt;
use reqwest::{Response, StatusCode, header};
use std::time::Duration;

/// For the beginning of an answer.
const BEGIN: Duration = Duration::from_secs(15);
/// Most of an answer that is read as an error.
const LONGEST_REASON: usize = 500;
/// What is waited for when the backend asks for fewer calls.
const THROTTLED: Duration = Duration::from_secs(1);

impl Shared {
    /// A content from an offset on. Errors: it is not there, or the backend is not well.
    pub(super) async fn read_blob(&self, digest: Digest, from: u64) -> Result<BlobPieces, BackendError> {
        let transient = |message: String| BackendError { retry: Retry::Transient, message };
        let session = self.session().await?;
        self.rate.until_ready().await;
        let url = format!("{}/v1/agent/blobs/{digest}", self.settings.url);
        let mut call = self.http.get(url).bearer_auth(&self.settings.key).header(SESSION_HEADER, &session);
        if from > 0 {
            call = call.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = tokio::time::timeout(BEGIN, call.send())
            .await
            .map_err(|_| transient(format!("content {digest}: no answer within {} s", BEGIN.as_secs())))?
            .map_err(|error| transient(format!("content {digest}: {}", crate::tls::reason(&error))))?;
        let size = match response.status() {
            StatusCode::OK if from == 0 => number(&response, header::CONTENT_LENGTH, |text| Some(text)),
            StatusCode::PARTIAL_CONTENT => {
                let begins = format!("bytes {from}-");
                number(&response, header::CONTENT_RANGE, |text| {
                    text.strip_prefix(&begins)?.split_once('/').map(|(_, size)| size)
                })
            }
            _ => return Err(self.refused(digest, &session, response).await),
        };
        let size = size.ok_or_else(|| transient(format!("content {digest}: the answer does not say its size")))?;
        let pieces = futures_util::stream::try_unfold(response, move |mut response| async move {
            let piece = response.chunk().await.map_err(|error| BackendError {
                retry: Retry::Transient,
                message: format!("content {digest}: {}", crate::tls::reason(&error)),
            })?;
            Ok(piece.map(|piece| (piece, response)))
        });
        Ok((size, pieces.boxed()))
    }

    async fn refused(&self, digest: Digest, session: &str, response: Response) -> BackendError {
        let status = response.status();
        let body = tokio::time::timeout(BEGIN, response.bytes()).await.ok().and_then(Result::ok).unwrap_or_default();
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail: String = document["detail"]
            .as_str()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST_REASON)
            .collect();
        let retry = match status {
            _ if document["code"] == "session_unknown" => {
                self.forget(session).await;
                Retry::Transient
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Retry::Throttled(THROTTLED),
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => Retry::Transient,
            _ => Retry::Never,
        };
        BackendError { retry, message: format!("content {digest}: the backend answered {status}: {detail}") }
    }
}

fn number(
    response: &Response,
    name: header::HeaderName,
    part: impl for<'a> Fn(&'a str) -> Option<&'a str>,
) -> Option<u64> {
    part(response.headers().get(name)?.to_str().ok()?)?.parse().ok()
}
