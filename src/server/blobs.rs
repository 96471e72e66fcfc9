//! Contents: uploaded before the jobs that need them, looked for so that none is uploaded twice, and read.
//!
//! Owns how a content comes over HTTP. It is streamed to the store and out of it: what a request holds in memory is a few pieces.

use super::App;
use super::content;
use super::extract::Path;
use super::keys::Caller;
use super::pace::{LEAST_RATE, Pace};
use super::places::Taken;
use super::problem::ProblemDocument;
use crate::blobs::{Blob, BlobError, BlobStore, Stored};
use crate::job::Digest;
use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;

/// An upload of which too little comes for so long is given up.
const STALL: Duration = Duration::from_secs(30);
/// Uploads at the same time. One more is asked to come again: each holds a few pieces, and more would only share one disk.
pub(super) const UPLOADS: usize = 16;

/// A stored content.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BlobJson {
    /// Its name: `sha256:` and 64 digits.
    digest: String,
    /// Its size.
    bytes: u64,
}

impl From<BlobError> for ProblemDocument {
    fn from(error: BlobError) -> Self {
        let code = match &error {
            BlobError::Missing(_) => "blob_not_found",
            BlobError::TooLarge(_) => "blob_too_large",
            BlobError::Full(_) | BlobError::NoSpace => "blobs_full",
            BlobError::Mismatch { .. } => "blob_mismatch",
            BlobError::BrokenOff(_) => "bad_body",
            BlobError::Failed(_) => {
                tracing::error!(%error, "a content cannot be stored or read");
                "unavailable"
            }
        };
        Self::new(code, error.to_string())
    }
}

pub(super) fn store(app: &App) -> Result<&BlobStore, ProblemDocument> {
    app.backend.blobs().ok_or_else(|| ProblemDocument::new("unavailable", "this server keeps no contents"))
}

fn digest(text: &str) -> Result<Digest, ProblemDocument> {
    Digest::from_hex(text).map_err(|error| ProblemDocument::new("bad_id", format!("the content's name: {error}")))
}

/// Upload a content under its name
///
/// The body is the content itself, of any type. One that is there already is not read.
#[utoipa::path(put, path = "/v1/blobs/{digest}", tag = "contents",
    params(("digest" = String, Path, description = "SHA-256 of the content: 64 digits, `sha256:` before them or not")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is stored", body = BlobJson),
        (status = 200, description = "It was there", body = BlobJson)),
    extensions(("x-problems" = json!(["bad_id", "bad_body", "blob_mismatch", "blob_too_large", "blobs_full", "unavailable"]))))]
pub(super) async fn put(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ProblemDocument> {
    let digest = digest(&name)?;
    if let Some(blob) = store(&app)?.find(digest).await? {
        return Ok(stored(Stored { digest, bytes: blob.bytes, new: false }));
    }
    take(&app, &caller, Some(digest), &headers, body).await
}

/// Upload a content
///
/// The answer has its name.
#[utoipa::path(post, path = "/v1/blobs", tag = "contents",
    request_body(content = String, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is stored", body = BlobJson),
        (status = 200, description = "It was there", body = BlobJson)),
    extensions(("x-problems" = json!(["bad_body", "blob_too_large", "blobs_full", "unavailable"]))))]
pub(super) async fn post(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ProblemDocument> {
    take(&app, &caller, None, &headers, body).await
}

async fn take(
    app: &App,
    caller: &Caller,
    said: Option<Digest>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ProblemDocument> {
    let _turn = app.uploads.take(&caller.name).map_err(|taken| {
        let detail = match taken {
            Taken::All(most) => format!("{most} contents are being uploaded already"),
            Taken::Own(most) => format!("{most} contents are being uploaded with this key already"),
        };
        ProblemDocument::new("unavailable", detail).retry_after(1)
    })?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(stored(store(app)?.put(timely(body), said, length).await?))
}

/// The pieces of a body, and an error when too little of it comes while it is waited for.
pub(super) fn timely(body: Body) -> impl Stream<Item = Result<axum::body::Bytes, String>> + Send {
    let slow = || format!("it came with less than {LEAST_RATE} bytes in a second for {} s", STALL.as_secs());
    futures_util::stream::unfold(Some((body.into_data_stream(), Pace::new(STALL))), move |state| async move {
        let (mut pieces, mut pace) = state?;
        loop {
            let begun = Instant::now();
            let came = tokio::time::timeout(pace.left(), pieces.next()).await;
            let bytes = if let Ok(Some(Ok(piece))) = &came { piece.len() } else { 0 };
            let goes_on = pace.goes_on(begun.elapsed(), bytes);
            return match came {
                Ok(None) => None,
                Ok(Some(Err(error))) => Some((Err(error.to_string()), None)),
                _ if !goes_on => Some((Err(slow()), None)),
                Ok(Some(Ok(piece))) => Some((Ok(piece), Some((pieces, pace)))),
                Err(_) => continue,
            };
        }
    })
}

fn stored(stored: Stored) -> Response {
    let status = if stored.new { StatusCode::CREATED } else { StatusCode::OK };
    (status, Json(BlobJson { digest: stored.digest.to_string(), bytes: stored.bytes })).into_response()
}

/// Read a content
///
/// With HEAD, whether it is there: then it stays for `blobs.grace` at least, without a job that needs it too.
#[utoipa::path(get, path = "/v1/blobs/{digest}", tag = "contents",
    params(("digest" = String, Path, description = "SHA-256 of the content"),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-LAST`")),
    responses(
        (status = 200, description = "The content", body = String, content_type = "application/octet-stream"),
        (status = 206, description = "The bytes of the range", body = String, content_type = "application/octet-stream",
            headers(("Content-Range" = String))),
        (status = 416, description = "There are no such bytes", headers(("Content-Range" = String)))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "blob_not_found", "unavailable"]))))]
pub(super) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ProblemDocument> {
    answer(&app, &name, &headers, |pieces| Ok(content::body(content::place(&app, &caller)?, pieces))).await
}

/// What is in an answer, piece by piece.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, BlobError>>;

/// A content, or a range of it, with its pieces made into a body.
pub(super) async fn answer(
    app: &App,
    name: &str,
    headers: &HeaderMap,
    body: impl FnOnce(Pieces) -> Result<Body, ProblemDocument>,
) -> Result<Response, ProblemDocument> {
    let digest = digest(name)?;
    let blobs = store(app)?;
    let blob = blobs.find(digest).await?.ok_or(BlobError::Missing(digest))?;
    let Some(range) = range(headers, &blob)? else {
        let none = [(header::CONTENT_RANGE, format!("bytes */{}", blob.bytes))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, none).into_response());
    };
    let (whole, length) = (range.end - range.start == blob.bytes, range.end - range.start);
    let about = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{}\"", digest.hex())),
    ];
    let place = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), blob.bytes);
    let body = body(blobs.read(digest, range).await?.boxed())?;
    if whole && !headers.contains_key(header::RANGE) {
        return Ok((about, body).into_response());
    }
    Ok((StatusCode::PARTIAL_CONTENT, about, [(header::CONTENT_RANGE, place)], body).into_response())
}

/// Which bytes are asked for; `None` when there are no such. Errors: what cannot be read.
fn range(headers: &HeaderMap, blob: &Blob) -> Result<Option<Range<u64>>, ProblemDocument> {
    let Some(asked) = headers.get(header::RANGE) else { return Ok(Some(0..blob.bytes)) };
    let bad = || ProblemDocument::new("bad_query", "Range: write bytes=FIRST-, bytes=FIRST-LAST or bytes=-COUNT");
    let text = asked.to_str().ok().and_then(|text| text.strip_prefix("bytes=")).ok_or_else(bad)?;
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
    let range = match (first, last) {
        ("", count) => blob.bytes.saturating_sub(number(count)?)..blob.bytes,
        (first, "") => number(first)?..blob.bytes,
        (first, last) => number(first)?..number(last)?.saturating_add(1).min(blob.bytes),
    };
    Ok(Some(range).filter(|range| range.start < range.end))
}
