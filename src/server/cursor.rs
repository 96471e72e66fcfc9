//! A viewer's place in a log that may still grow: what a live stream is made of, however it is sent.
//!
//! Owns the waiting for more output and the number of viewers. A cursor on the log store and never a queue: one that is
//! not asked for more holds up itself and nothing else. Sends nothing; knows nothing of WebSockets or events.

use super::App;
use super::jobs::Answer;
use super::keys::Pass;
use super::logs::{attempt_of, is_kept, is_over};
use super::places::{Share, Taken};
use super::problem::ProblemDocument;
use crate::backend::Change;
use crate::job::{AttemptId, JobId, Phase, UnixMillis};
use crate::logstore::{Frame, LogReader};
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::broadcast;

/// Output that is read, and sent, at once.
pub(super) const READ_BYTES: usize = 256 << 10;
/// A viewer that takes nothing for so long is sent away.
pub(super) const SEND_LIMIT: Duration = Duration::from_secs(60);
/// A quiet stream says something this often, so that a dead connection is noticed.
pub(super) const SIGN_EVERY: Duration = Duration::from_secs(20);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LiveQuery {
    /// From this frame on, default 1.
    pub(super) from: Option<u64>,
    /// Of this try; default the last one, or the next one of a job that waits.
    pub(super) attempt: Option<u32>,
}

/// One of the places for viewers; given back when it is dropped.
struct Place {
    app: App,
    _share: Share,
}

impl Place {
    fn take(app: &App, key: &str) -> Answer<Self> {
        let share = app.viewers.take(key).map_err(|taken| {
            let detail = match taken {
                Taken::All(_) => "server.viewers_max live streams are open".to_owned(),
                Taken::Own(most) => format!("{most} live streams of this key are open, half of server.viewers_max"),
            };
            ProblemDocument::new("unavailable", detail).retry_after(5)
        })?;
        app.metrics.viewers.inc();
        Ok(Self { app: app.clone(), _share: share })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.metrics.viewers.dec();
    }
}

/// What a viewer is told next.
pub(super) enum Seen {
    /// Output, never none.
    Frames(Vec<Frame>),
    /// Nothing more can come; the number of the last frame.
    End(u64),
}

/// A viewer's place in one try's log.
pub(super) struct Cursor {
    place: Place,
    /// Whose eyes these are.
    pass: Pass,
    pub(super) attempt: AttemptId,
    next: u64,
    reader: Option<LogReader>,
    /// This try can have no more output.
    over: bool,
    /// Open since before the first look, so no change is missed.
    changes: broadcast::Receiver<Change>,
}

impl Cursor {
    /// A viewer of that job's output, let in. Errors: no such job or try, or all places are taken.
    pub(super) async fn open(app: &App, pass: Pass, id: &str, asked: &LiveQuery) -> Answer<Self> {
        let (job, attempt) = attempt_of(app, id, asked.attempt).await?;
        is_kept(&job)?;
        let caller = app.keys.caller(&pass, UnixMillis::now());
        let caller = caller.map_err(|_| ProblemDocument::new("unauthorized", "the key opens nothing any more"))?;
        let place = Place::take(app, &caller.name)?;
        // Of a job that waits, the try that comes next is what a viewer means who names none.
        let comes = asked.attempt.is_none() && job.phase == Phase::Queued;
        let attempt = AttemptId::new(job.id, (attempt.attempt + u32::from(comes)).max(1));
        let next = asked.from.unwrap_or(1).max(1);
        Ok(Self { attempt, next, reader: None, over: false, changes: app.backend.changes(), pass, place })
    }

    /// The next output, as soon as there is some, or the end. May be given up at any time and asked again. Errors: the log cannot be read, or
    /// the viewer's key opens nothing any more.
    pub(super) async fn next(&mut self) -> Result<Seen, String> {
        let app = self.place.app.clone();
        loop {
            let mut keys = app.keys.changes();
            if app.keys.caller(&self.pass, UnixMillis::now()).is_err() {
                return Err("its key opens nothing any more".to_owned());
            }
            tokio::select! {
                seen = self.seen(&app) => return seen,
                _ = keys.changed() => {}
            }
        }
    }

    async fn seen(&mut self, app: &App) -> Result<Seen, String> {
        loop {
            // Looked at before reading: what was written before this look is read, what comes after it wakes us.
            let live = app.backend.logs().subscribe(self.attempt);
            if live.is_none() && !self.over {
                let job = app.backend.get(self.attempt.job).await.map_err(|error| error.to_string())?;
                self.over = job.is_none_or(|job| is_over(&job, self.attempt.attempt));
            }
            let frames = self.read().await?;
            if let Some(last) = frames.last() {
                self.next = last.seq + 1;
                return Ok(Seen::Frames(frames));
            }
            match live {
                Some(mut tail) => {
                    let next = self.next;
                    let _ = tail.wait_for(|tail| tail.last_seq >= next || tail.ended).await;
                }
                None if self.over => return Ok(Seen::End(self.next - 1)),
                None => job_changes(&mut self.changes, self.attempt.job).await,
            }
        }
    }

    async fn read(&mut self) -> Result<Vec<Frame>, String> {
        let logs = self.place.app.backend.logs().clone();
        // Given up in the middle, the next read opens another one.
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
            let frames = reader.read(next, READ_BYTES).map_err(|error| error.to_string())?;
            Ok((Some(reader), frames))
        });
        let (reader, frames) = read.await.expect("reading does not panic")?;
        self.reader = reader;
        Ok(frames)
    }
}

/// The next change of this job. One that is too far behind to know returns too, and its caller looks again.
async fn job_changes(changes: &mut broadcast::Receiver<Change>, job: JobId) {
    while matches!(changes.recv().await, Ok(other) if other.job != job) {}
}
