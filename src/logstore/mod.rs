//! The output of attempts: append-only segment files with a sparse index. Byte-exact.
//!
//! Agent and backend share this format and, in one process, the same files: a viewer is a cursor on them, and never a
//! queue in memory. Owns the files below its root. Synchronous: callers on a runtime use its blocking threads.
//!
//! ```text
//! <root>/<last 2 of job>/<job>/<attempt>-<part>/00000001.seg   records, one after the other
//!                                               00000001.idx   an entry for every quarter megabyte
//! ```

mod reader;
mod record;
mod writer;

pub use reader::LogReader;
pub use record::{Frame, FrameRef, Stream};
pub use writer::{Appended, LogWriter};

use crate::job::AttemptId;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// A log that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("log file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What lies there is not what was written.
    #[error("log file {path} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Frames are numbered without a hole.
    #[error("frame {got} was given where {wanted} comes next")]
    Jump {
        /// The number that comes next.
        wanted: u64,
        /// The number given.
        got: u64,
    },
    /// There is no such log.
    #[error("attempt {0} has no log")]
    Missing(AttemptId),
}

impl LogError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// How far a log that is being written has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// The last frame that can be read.
    pub last_seq: u64,
    /// Nothing more will come.
    pub ended: bool,
}

/// All logs below one folder.
#[derive(Debug, Clone)]
pub struct LogStore {
    root: PathBuf,
    live: Arc<Mutex<HashMap<AttemptId, watch::Receiver<Tail>>>>,
    /// Bytes after which a writer asks to be synced.
    sync_every: u64,
}

impl LogStore {
    /// Opens, and makes if need be, the folder. Errors: it cannot be made.
    pub fn open(root: &Path, sync_every: u64) -> Result<Self, LogError> {
        make_dir(root)?;
        Ok(Self { root: root.to_owned(), live: Arc::default(), sync_every })
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        let job = attempt.job.simple();
        // The last characters of an id are its random ones, so the folders fill evenly.
        self.root.join(&job[job.len() - 2..]).join(&job).join(format!("{}-{}", attempt.attempt, attempt.part))
    }

    /// A log for `attempt`: a new one, or an old one that is gone on with, its torn end cut off. Errors: file system.
    pub fn create(&self, attempt: AttemptId) -> Result<LogWriter, LogError> {
        let dir = self.dir(attempt);
        make_dir(&dir)?;
        let (writer, tail) = LogWriter::open(dir, self.sync_every)?;
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, tail);
        Ok(writer.registered(attempt, Arc::clone(&self.live)))
    }

    /// A reader from the first frame on. Errors: there is no such log.
    pub fn reader(&self, attempt: AttemptId) -> Result<LogReader, LogError> {
        let dir = self.dir(attempt);
        if dir.is_dir() { Ok(LogReader::new(dir)) } else { Err(LogError::Missing(attempt)) }
    }

    /// How far a log has come, for as long as it is being written; `None` when it is not.
    pub fn subscribe(&self, attempt: AttemptId) -> Option<watch::Receiver<Tail>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).cloned()
    }
}

fn make_dir(dir: &Path) -> Result<(), LogError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(LogError::io(dir))
}

fn segment_path(dir: &Path, number: u32, kind: &str) -> PathBuf {
    dir.join(format!("{number:08}.{kind}"))
}

#[cfg(test)]
mod tests;
