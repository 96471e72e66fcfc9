//! Live output as server-sent events, for viewers whose way has no WebSockets.
//!
//! `event: frame` with the frame as JSON and its number as `id:`, so that a client which comes again is served from the
//! next one on; `event: end` when nothing more can come. Owns the writing of events and the task that writes; where in the
//! log its viewer is, the cursor knows. Between task and connection lies one message, so that a viewer who takes nothing
//! is noticed: a body by itself is not told.

use super::App;
use super::cors::may_stream;
use super::cursor::{Cursor, LiveQuery, SEND_LIMIT, SIGN_EVERY, Seen};
use super::extract::Path;
use super::frames::FrameJson;
use super::jobs::{Answer, query};
use super::keys::Pass;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::logstore::Frame;
use crate::supervise::spawn;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Live output as server-sent events
///
/// `frame` with a frame as JSON and its number as `id`; `end` when nothing more can come.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs/events", tag = "output", params(("id" = inline(schema::JobId), Path, description = "The job"), LiveQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "Go on behind this frame")),
    responses((status = 200, description = "The stream", body = schema::LiveEvent, content_type = "text/event-stream")),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "has_parts", "gone", "foreign_origin", "unavailable"]))))]
pub(super) async fn follow(
    State(app): State<App>,
    Extension(pass): Extension<Pass>,
    Path(id): Path<String>,
    asked: Result<Query<LiveQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Answer<Response> {
    let mut asked = query(asked)?;
    may_stream(&app, &headers)?;
    // Who comes again asks with the same address as before and says here how far it has come.
    if let Some(last) = last_event(&headers)? {
        asked.from = Some(last.saturating_add(1));
    }
    let cursor = Cursor::open(&app, pass, &id, &asked).await?;
    let (give, taken) = mpsc::channel(1);
    let stop = app.stop.clone();
    let writing = AbortOnDropHandle::new(spawn("events", view(stop, cursor, give)));
    // The task goes with the body: a viewer who leaves ends both.
    let events = futures_util::stream::unfold((taken, writing), |(mut taken, writing)| async {
        let bytes = taken.recv().await?;
        Some((Ok::<_, Infallible>(bytes), (taken, writing)))
    });
    let headers = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        // Proxies that keep answers until they are whole are asked not to.
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// The number in `Last-Event-ID`. Errors: it has none.
fn last_event(headers: &HeaderMap) -> Answer<Option<u64>> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let bad = || ProblemDocument::new("bad_query", "Last-Event-ID: give the `id` of the last event, a number");
    number.map(Some).ok_or_else(bad)
}

async fn view(stop: CancellationToken, mut cursor: Cursor, give: mpsc::Sender<Bytes>) {
    if let Err(reason) = run(&stop, &mut cursor, &give).await {
        tracing::debug!(attempt = %cursor.attempt, %reason, "live events ended early");
    }
}

async fn run(stop: &CancellationToken, cursor: &mut Cursor, give: &mpsc::Sender<Bytes>) -> Result<(), String> {
    // Opens the stream at once, also of a job that says nothing yet.
    send(stop, give, ":\n\n".into()).await?;
    loop {
        let seen = tokio::select! {
            seen = tokio::time::timeout(SIGN_EVERY, cursor.next()) => seen,
            () = stop.cancelled() => return Err("the server stops".to_owned()),
        };
        match seen {
            Err(_) => send(stop, give, ":\n\n".into()).await?,
            Ok(seen) => match seen? {
                Seen::Frames(frames) => send(stop, give, events(&frames)).await?,
                Seen::End(last_seq) => {
                    let attempt = cursor.attempt.attempt;
                    let event = format!("event: end\ndata: {{\"last_seq\":{last_seq},\"attempt\":{attempt}}}\n\n");
                    return send(stop, give, event.into()).await;
                }
            },
        }
    }
}

/// JSON has no line ends of its own, so each frame is one line of data.
fn events(frames: &[Frame]) -> Bytes {
    let mut out = String::new();
    for frame in frames {
        let data = serde_json::to_string(&FrameJson::from(frame)).expect("a frame has only string keys");
        out.push_str(&format!("id: {}\nevent: frame\ndata: {data}\n\n", frame.seq));
    }
    out.into()
}

async fn send(stop: &CancellationToken, give: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<(), String> {
    tokio::select! {
        sent = give.send_timeout(bytes, SEND_LIMIT) => sent.map_err(|_| "the viewer takes nothing".to_owned()),
        () = stop.cancelled() => Err("the server stops".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logstore::Stream;
    use axum::http::HeaderValue;

    #[test]
    fn an_event_is_one_frame_whatever_it_says() {
        let frame = |seq, bytes: &'static [u8]| Frame {
            seq,
            stream: Stream::Stdout,
            time_us: 5,
            bytes: Bytes::from_static(bytes),
            gap: 0,
        };
        let text = events(&[frame(1, b"a\r\n\nid: 9\n"), frame(2, b"\xff")]);
        let text = std::str::from_utf8(&text).expect("UTF-8");
        let wanted = "id: 1\nevent: frame\ndata: {\"seq\":1,\"stream\":\"stdout\",\"time_us\":5,\"text\":\"a\\r\\n\\nid: 9\\n\"}\n\n\
                      id: 2\nevent: frame\ndata: {\"seq\":2,\"stream\":\"stdout\",\"time_us\":5,\"hex\":\"ff\"}\n\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn who_comes_again_says_how_far_it_has_come() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", HeaderValue::from_static(value));
            last_event(&headers).map_err(|problem| problem.code)
        };
        assert_eq!(last_event(&HeaderMap::new()).map_err(|problem| problem.code), Ok(None));
        assert_eq!((with(""), with("7"), with("x")), (Ok(None), Ok(Some(7)), Err("bad_query")));
    }
}
