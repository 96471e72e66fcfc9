//! The audit log: who did what, when, from where, and what came of it, as lines of JSON in files of this installation.
//!
//! Owns the files, their numbers and their turns. A line is in the file before the answer that it tells of goes out, and on disk a second
//! later. Never holds up or fails what it tells of: a disk that is full or slow costs lines, and how many is counted, told in health and
//! written down when there is room again. Never has a key, a token or a secret: whoever records gives names.

mod event;
mod file;
mod folding;
mod read;
mod writer;

pub use event::{Event, Outcome, Who};
pub use read::{Filter, Page};

use crate::job::UnixMillis;
use crate::supervise::{blocking, spawn};
use crate::telemetry::{Health, Metrics};
use file::Log;
use folding::Folding;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use writer::{Command, Writer};

/// What waits for the writer. Full: what comes is counted as lost, and nobody waits.
const WAITING: usize = 4096;
/// An answer waits so long for its line. Disks take a line in microseconds; one that does not has something wrong with it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the log is and how much of it is kept.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// The file that is written; older ones are beside it, with a number behind their name.
    pub path: PathBuf,
    /// Bytes of one file.
    pub max_file: u64,
    /// Older files.
    pub keep: u32,
}

/// The log, or nothing where there is to be none. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Audit(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    settings: AuditSettings,
    commands: mpsc::Sender<Command>,
    folding: Mutex<Folding>,
    /// Lines that the writer could not be given.
    unheard: AtomicU64,
    /// The writer is behind: nobody waits for it until it has caught up.
    behind: AtomicBool,
    /// Reading a log costs processor time: one at a time.
    reading: Semaphore,
}

impl Audit {
    /// Opens the log. The task writes until [`Audit::close`]. A file that cannot be read or written is told in health, and is no reason not
    /// to start.
    pub fn open(settings: AuditSettings, health: Health, metrics: Arc<Metrics>) -> (Self, JoinHandle<()>) {
        let (commands, received) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared {
            commands,
            folding: Mutex::default(),
            unheard: AtomicU64::new(0),
            behind: AtomicBool::new(false),
            reading: Semaphore::new(1),
            settings: settings.clone(),
        });
        let log = Log::new(settings.path, settings.max_file, settings.keep);
        let writer = Writer::new(log, Arc::downgrade(&shared), health, metrics);
        (Self(Some(shared)), spawn("audit", writer.run(received)))
    }

    /// Writes that something was done, or tried. Comes back when the line is in the file, or after a second.
    pub async fn record(&self, event: Event) {
        let Some(shared) = &self.0 else { return };
        let (written, told) = oneshot::channel();
        if !shared.give(Command::Write(Box::new(event), Some(written))) || shared.behind.load(Ordering::Relaxed) {
            return;
        }
        if tokio::time::timeout(PATIENCE, told).await.is_err() {
            shared.behind.store(true, Ordering::Relaxed);
        }
    }

    /// The same, without waiting.
    pub fn note(&self, event: Event) {
        if let Some(shared) = &self.0 {
            shared.give(Command::Write(Box::new(event), None));
        }
    }

    /// Writes that somebody was refused. Anybody can be refused at any rate, so only the first ones of a kind have lines of their own, and
    /// the others one line a minute with their number: a flood of them pushes nothing out of the log.
    pub fn refused(&self, event: Event) {
        let Some(shared) = &self.0 else { return };
        let written = shared.folding.lock().unwrap_or_else(PoisonError::into_inner).see(event);
        if let Some(event) = written {
            shared.give(Command::Write(Box::new(event), None));
        }
    }

    /// The same, of what somebody with a key had refused or rejected. Comes back when the line, if it has one of its own, is in the file.
    pub async fn record_refused(&self, event: Event) {
        let Some(shared) = &self.0 else { return };
        let written = shared.folding.lock().unwrap_or_else(PoisonError::into_inner).see(event);
        if let Some(event) = written {
            self.record(event).await;
        }
    }

    /// What the log has, the newest first. Errors: it cannot be read.
    pub async fn read(&self, filter: Filter) -> Result<Page, String> {
        let Some(shared) = &self.0 else { return Err("audit.enabled is false: there is no log".to_owned()) };
        let _alone = shared.reading.acquire().await.map_err(|error| error.to_string())?;
        let files = file::all(&shared.settings.path, shared.settings.keep);
        blocking(move || read::read(&files, &filter)).await.map_err(|error| error.to_string())
    }

    /// Writes what is waiting, and ends the writer.
    pub async fn close(&self) {
        let Some(shared) = &self.0 else { return };
        let (written, told) = oneshot::channel();
        if shared.commands.send_timeout(Command::Close(written), PATIENCE).await.is_ok() {
            let _ = tokio::time::timeout(PATIENCE, told).await;
        }
    }
}

impl Shared {
    /// Whether the writer has it.
    fn give(&self, command: Command) -> bool {
        let given = self.commands.try_send(command).is_ok();
        if !given {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
        given
    }

    /// What refusals that had no lines of their own come to.
    fn folded(&self, now: Option<UnixMillis>) -> Vec<Event> {
        self.folding.lock().unwrap_or_else(PoisonError::into_inner).ended(now)
    }
}

#[cfg(test)]
mod tests;
