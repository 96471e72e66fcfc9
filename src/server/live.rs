//! Live output over WebSocket, from any frame on.
//!
//! Binary messages carry records, one after the other: `len u32 · seq u64 · time_us u64 · stream u8 · bytes`, little
//! endian. When nothing more can come, one text message says so: `{"end":true,"last_seq":n}`. A viewer is a cursor on
//! the log store: one that stops reading stops its own cursor and nothing else, and may come back where it was.

use super::App;
use super::jobs::query;
use super::logs::attempt_of;
use super::problem::ProblemDocument;
use crate::backend::Change;
use crate::job::{AttemptId, JobId};
use crate::logstore::{Frame, LogReader};
use crate::protocol::record::{RECORD_HEADER, Record};
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

/// Output in one message.
const MESSAGE_BYTES: usize = 256 << 10;
/// A viewer that takes nothing for so long is sent away.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// A quiet connection is pinged this often, so that a dead one is noticed.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Viewers have nothing to say; anything longer ends the connection.
const MOST_FROM_VIEWER: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LiveQuery {
    from: Option<u64>,
    attempt: Option<u32>,
}

pub(super) async fn follow(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Result<Query<LiveQuery>, QueryRejection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ProblemDocument> {
    let asked = query(asked)?;
    same_origin(&headers)?;
    let upgrade = upgrade.map_err(|error| ProblemDocument::new("bad_body", error.body_text()))?;
    let (job, attempt) = attempt_of(&app, &id, asked.attempt).await?;
    let Ok(place) = std::sync::Arc::clone(&app.viewers).try_acquire_owned() else {
        return Err(ProblemDocument::new("unavailable", "server.viewers_max live streams are open").retry_after(5));
    };
    // A job that waits has no try yet; the first one is what a viewer means.
    let attempt = AttemptId::new(job.id, attempt.attempt.max(1));
    let from = asked.from.unwrap_or(1).max(1);
    let upgrade = upgrade.max_message_size(MOST_FROM_VIEWER).max_frame_size(MOST_FROM_VIEWER);
    Ok(upgrade.on_upgrade(move |socket| view(app, socket, attempt, from, place)))
}

/// A browser names the page that opens a stream. Only one from here may; programs name none.
fn same_origin(headers: &HeaderMap) -> Result<(), ProblemDocument> {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let page = origin.split_once("://").map(|(_, host)| host);
    if page.is_some() && page == host {
        Ok(())
    } else {
        Err(ProblemDocument::new("foreign_origin", "open the stream from a page of this server, or from a program"))
    }
}

async fn view(app: App, socket: WebSocket, attempt: AttemptId, from: u64, place: OwnedSemaphorePermit) {
    app.metrics.viewers.inc();
    let mut viewer = Viewer { app: &app, socket, reader: None, attempt, next: from, changes: app.backend.changes() };
    if let Err(reason) = viewer.run().await {
        tracing::debug!(%attempt, %reason, "live stream ended early");
    }
    app.metrics.viewers.dec();
    drop(place);
}

struct Viewer<'a> {
    app: &'a App,
    socket: WebSocket,
    reader: Option<LogReader>,
    attempt: AttemptId,
    next: u64,
    /// Open since before the first look, so no change is missed.
    changes: broadcast::Receiver<Change>,
}

impl Viewer<'_> {
    async fn run(&mut self) -> Result<(), String> {
        loop {
            // Looked at before reading: what was written before this look is read, what comes after it wakes us.
            let live = self.app.backend.logs().subscribe(self.attempt);
            let over = live.is_none() && self.over().await?;
            self.send_all().await?;
            match live {
                Some(mut tail) => {
                    let seen = self.next;
                    if tail.borrow().last_seq < seen && !tail.borrow().ended {
                        tokio::select! {
                            changed = tail.wait_for(|tail| tail.last_seq >= seen || tail.ended) => { let _ = changed; }
                            idle = idle(&mut self.socket, &self.app.stop, PING_EVERY) => idle?,
                        }
                    }
                }
                None if over => return self.end().await,
                None => tokio::select! {
                    () = job_changes(&mut self.changes, self.attempt.job) => {}
                    idle = idle(&mut self.socket, &self.app.stop, PING_EVERY) => idle?,
                },
            }
        }
    }

    /// True when this try can never have more output.
    async fn over(&mut self) -> Result<bool, String> {
        let job = self.app.backend.get(self.attempt.job).await.map_err(|error| error.to_string())?;
        Ok(job.is_none_or(|job| job.ending.is_some() || job.attempt > self.attempt.attempt))
    }

    /// Sends everything that is there.
    async fn send_all(&mut self) -> Result<(), String> {
        loop {
            let frames = self.read().await?;
            let Some(last) = frames.last() else { return Ok(()) };
            self.next = last.seq + 1;
            let mut message = Vec::with_capacity(MESSAGE_BYTES + 64 * RECORD_HEADER);
            for frame in &frames {
                let (stream, bytes) = (frame.stream.number(), &frame.bytes[..]);
                Record { seq: frame.seq, time_us: frame.time_us, stream, bytes }.write(&mut message);
            }
            self.send(Message::Binary(message.into())).await?;
        }
    }

    async fn read(&mut self) -> Result<Vec<Frame>, String> {
        let logs = self.app.backend.logs().clone();
        let (reader, attempt, next) = (self.reader.take(), self.attempt, self.next);
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => match logs.reader(attempt) {
                    Ok(reader) => reader,
                    Err(crate::logstore::LogError::Missing(_)) => return Ok((None, Vec::new())),
                    Err(error) => return Err(error.to_string()),
                },
            };
            let frames = reader.read(next, MESSAGE_BYTES).map_err(|error| error.to_string())?;
            Ok((Some(reader), frames))
        });
        let (reader, frames) = read.await.expect("reading does not panic")?;
        self.reader = reader;
        Ok(frames)
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        send(&mut self.socket, &self.app.stop, message).await
    }

    async fn end(&mut self) -> Result<(), String> {
        let text = format!("{{\"end\":true,\"last_seq\":{}}}", self.next - 1);
        self.send(Message::Text(text.into())).await?;
        self.send(Message::Close(None)).await
    }
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

/// The next change of this job. One that is too far behind to know returns too, and its caller looks again.
async fn job_changes(changes: &mut broadcast::Receiver<Change>, job: JobId) {
    while matches!(changes.recv().await, Ok(other) if other.job != job) {}
}
