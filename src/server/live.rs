//! Live output over WebSocket, from any frame on.
//!
//! Binary messages carry records, one after the other: `len u32 · seq u64 · time_us u64 · stream u8 · bytes`, little
//! endian. When nothing more can come, one text message says so: `{"end":true,"last_seq":n}`. Owns the socket; where in
//! the log its viewer is, the cursor knows.

use super::App;
use super::cors::may_stream;
use super::cursor::{Cursor, LiveQuery, READ_BYTES, SEND_LIMIT, SIGN_EVERY, Seen};
use super::extract::Path;
use super::jobs::query;
use super::keys::Pass;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::logstore::Frame;
use crate::protocol::record::{RECORD_HEADER, Record};
use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Viewers have nothing to say; anything longer ends the connection.
const MOST_FROM_VIEWER: usize = 4096;

/// Live output over WebSocket
///
/// docs/api.md says what the messages are.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs/live", tag = "output", params(("id" = inline(schema::JobId), Path, description = "The job"), LiveQuery),
    responses((status = 101, description = "The stream")),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "has_parts", "gone", "foreign_origin", "unavailable", "bad_body"]))))]
pub(super) async fn follow(
    State(app): State<App>,
    Extension(pass): Extension<Pass>,
    Path(id): Path<String>,
    asked: Result<Query<LiveQuery>, QueryRejection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ProblemDocument> {
    let asked = query(asked)?;
    may_stream(&app, &headers)?;
    let upgrade = upgrade.map_err(|error| ProblemDocument::new("bad_body", error.body_text()))?;
    let cursor = Cursor::open(&app, pass, &id, &asked).await?;
    let upgrade = upgrade.max_message_size(MOST_FROM_VIEWER).max_frame_size(MOST_FROM_VIEWER);
    Ok(upgrade.on_upgrade(move |socket| view(app, socket, cursor)))
}

async fn view(app: App, mut socket: WebSocket, mut cursor: Cursor) {
    if let Err(reason) = run(&app.stop, &mut socket, &mut cursor).await {
        tracing::debug!(attempt = %cursor.attempt, %reason, "live stream ended early");
    }
}

async fn run(stop: &CancellationToken, socket: &mut WebSocket, cursor: &mut Cursor) -> Result<(), String> {
    loop {
        let seen = tokio::select! {
            seen = cursor.next() => seen?,
            idle = idle(socket, stop, SIGN_EVERY) => {
                idle?;
                continue;
            }
        };
        match seen {
            Seen::Frames(frames) => send(socket, stop, message(&frames)).await?,
            Seen::End(last_seq) => {
                let text = format!("{{\"end\":true,\"last_seq\":{last_seq}}}");
                send(socket, stop, Message::Text(text.into())).await?;
                return send(socket, stop, Message::Close(None)).await;
            }
        }
    }
}

fn message(frames: &[Frame]) -> Message {
    let mut message = Vec::with_capacity(READ_BYTES + 64 * RECORD_HEADER);
    for frame in frames {
        let (stream, bytes) = frame.as_ref().carry();
        Record { seq: frame.seq, time_us: frame.time_us, stream, bytes: &bytes }.write(&mut message);
    }
    Message::Binary(message.into())
}

async fn send(socket: &mut WebSocket, stop: &CancellationToken, message: Message) -> Result<(), String> {
    tokio::select! {
        sent = tokio::time::timeout(SEND_LIMIT, socket.send(message)) => match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the viewer takes nothing".to_owned()),
        },
        () = stop.cancelled() => Err("the server stops".to_owned()),
    }
}

/// Nothing to send: listens for the viewer's going and for the server's end, and pings when the time is over.
async fn idle(socket: &mut WebSocket, stop: &CancellationToken, limit: Duration) -> Result<(), String> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        tokio::select! {
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_))) | None => return Err("the viewer left".to_owned()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
            },
            () = stop.cancelled() => return Err("the server stops".to_owned()),
            () = tokio::time::sleep_until(until) => return send(socket, stop, Message::Ping(Vec::new().into())).await,
        }
    }
}
