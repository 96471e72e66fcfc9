//! Bodies of requests: how long one may take, and the rest of one when the answer came before its end.
//!
//! Who sends a body drop by drop holds a connection and memory for it, so there is a deadline. Contents, which are streamed and may be large,
//! have one for each piece instead (`blobs`).
//!
//! A server that answers and closes while the client still sends makes the client's kernel throw the answer away: the
//! sender of a body that is too large, or that came without a key, would see a broken connection instead of the reason. So
//! what was not read is read and thrown away before the answer goes out, within two bounds.

use super::App;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// Most bytes that are read to be thrown away. Who sends more sees a cut connection.
const MOST_DRAINED: usize = 64 << 20;
/// Longest time for it.
const LONGEST_DRAIN: Duration = Duration::from_secs(10);

/// Paths whose bodies are contents.
const CONTENTS: [&str; 2] = ["/v1/blobs", "/v1/agent/artifacts/content"];

/// A body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("it did not come within {0:?} (server.body_timeout)")]
struct TooSlow(Duration);

/// A body that comes back when its reader drops it before its end.
struct Returning {
    body: Body,
    /// How long it may take, and when that is over.
    limit: Option<(Duration, Pin<Box<Sleep>>)>,
    read: bool,
    back: Option<oneshot::Sender<(Body, bool)>>,
}

impl HttpBody for Returning {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.read = true;
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending()
            && let Some((limit, over)) = &mut self.limit
            && over.as_mut().poll(cx).is_ready()
        {
            let error = axum::Error::new(TooSlow(*limit));
            // Nobody waits for the rest of it either.
            self.back = None;
            return Poll::Ready(Some(Err(error)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some(back) = self.back.take()
            && !self.body.is_end_stream()
        {
            let _ = back.send((std::mem::take(&mut self.body), self.read));
        }
    }
}

/// Answers only after the request's body was read, or dropped for good.
pub(super) async fn drain(State(app): State<App>, request: Request, next: Next) -> Response {
    // A client that asks first sends nothing before it is told to: nothing of it is on the way.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let (back, mut came_back) = oneshot::channel();
    let streamed = CONTENTS.iter().any(|path| request.uri().path().starts_with(path));
    let limit = app.settings.body_timeout;
    let limit = (!streamed && !request.body().is_end_stream()).then(|| (limit, Box::pin(tokio::time::sleep(limit))));
    let request = request.map(|body| Body::new(Returning { body, limit, read: false, back: Some(back) }));
    let response = next.run(request).await;
    if let Ok((body, was_read)) = came_back.try_recv()
        && (was_read || !asks_first)
    {
        let _ = tokio::time::timeout(LONGEST_DRAIN, discard(body)).await;
    }
    response
}

async fn discard(mut body: Body) {
    let mut drained = 0;
    while let Some(Ok(frame)) = body.frame().await {
        drained += frame.data_ref().map_or(0, Bytes::len);
        if drained > MOST_DRAINED {
            return;
        }
    }
}
