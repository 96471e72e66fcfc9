//! The output of attempts: append-only segment files with a sparse index. Byte-exact.
//!
//! Agent and backend share this format and, in one process, the same files: a viewer is a cursor on them, and never a
//! queue in memory. Owns the files below its root. Synchronous: callers on a runtime use its blocking threads.
//!
//! ```text
//! <root>/<last 2 of job>/<job>/<attempt>-<part>/00000001.seg   records, one after the other
//!                                               00000001.idx   an entry for every quarter megabyte
//! ```

mod index;
mod reader;
mod record;
mod recover;
mod room;
mod totals;
mod writer;

pub use reader::LogReader;
pub use record::{Frame, FrameRef, Stream};
pub use room::{Full, Room};
pub use writer::{Appended, LogWriter};

use crate::job::{AttemptId, JobId, LogTotals};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// A frame is larger than a record can be.
    #[error("frame {seq} has {len} bytes, more than a record holds")]
    TooLarge {
        /// Its number.
        seq: u64,
        /// Its size.
        len: usize,
    },
    /// A frame says nothing that a log could hold.
    #[error("frame {seq} is none: {what}")]
    Meaningless {
        /// Its number.
        seq: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A write failed, and so did taking back the part of it that was done: nothing more can be appended.
    #[error("log file {path} has a torn end that could not be cut off; free space, then start the agent again")]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// There is no such log.
    #[error("attempt {0} has no log")]
    Missing(AttemptId),
    /// It is being written.
    #[error("the log of attempt {0} is being written")]
    Busy(AttemptId),
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

/// The logs that are being written: one writer each.
#[derive(Debug, Clone, Default)]
struct Live {
    tails: Arc<Mutex<HashMap<AttemptId, watch::Receiver<Tail>>>>,
    /// Sent after every append to any log.
    appended: Arc<watch::Sender<()>>,
    /// Jobs whose logs are being read, with how many read them.
    readers: Arc<Mutex<HashMap<JobId, usize>>>,
}

impl Live {
    fn map(&self) -> MutexGuard<'_, HashMap<AttemptId, watch::Receiver<Tail>>> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far readers may go: a batch is there when its write has come back, not before.
    fn bound(&self, attempt: AttemptId) -> u64 {
        self.map().get(&attempt).map_or(u64::MAX, |tail| tail.borrow().last_seq)
    }
}

/// One reader of a job's logs: what is being read is not taken away for want of room.
#[derive(Debug)]
struct Reading {
    job: JobId,
    readers: Arc<Mutex<HashMap<JobId, usize>>>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = readers.entry(self.job) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// One writer's place among the living. Dropped, it tells followers that nothing more comes, also when the writer came
/// to no proper end.
#[derive(Debug)]
struct Registration {
    attempt: AttemptId,
    live: Live,
    tail: watch::Sender<Tail>,
}

impl Registration {
    fn new(attempt: AttemptId, live: &Live) -> Result<Self, LogError> {
        let (tail, follow) = watch::channel(Tail::default());
        match live.map().entry(attempt) {
            Entry::Occupied(_) => return Err(LogError::Busy(attempt)),
            Entry::Vacant(place) => place.insert(follow),
        };
        Ok(Self { attempt, live: live.clone(), tail })
    }

    fn publish(&self, last_seq: u64) {
        self.tail.send_replace(Tail { last_seq, ended: false });
        self.live.appended.send_replace(());
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // First out of the map: who is told of the end and looks again must not find it living.
        self.live.map().remove(&self.attempt);
        self.tail.send_modify(|tail| tail.ended = true);
    }
}

/// All logs below one folder.
#[derive(Debug, Clone)]
pub struct LogStore {
    root: PathBuf,
    live: Live,
    /// Bytes after which a writer asks to be synced.
    sync_every: u64,
    room: Room,
}

impl LogStore {
    /// Opens, and makes if need be, the folder. Errors: it cannot be made.
    pub fn open(root: &Path, sync_every: u64) -> Result<Self, LogError> {
        make_dir(root)?;
        // What was being removed when the process died.
        let leaving = root.join(LEAVING);
        match std::fs::remove_dir_all(&leaving) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LogError::Io { path: leaving, source: error });
            }
            Ok(()) | Err(_) => {}
        }
        Ok(Self { root: root.to_owned(), live: Live::default(), sync_every, room: Room::default() })
    }

    /// Whether there is room for more.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Bytes on disk behind frame `seq` of a log, or up to about a megabyte less; nothing where there is none.
    pub fn bytes_behind(&self, attempt: AttemptId, seq: u64) -> u64 {
        let dir = self.dir(attempt);
        let Ok(mark) = index::find(&dir, index::Target::Frame(seq.saturating_add(1))) else { return 0 };
        let size = |segment: u32| std::fs::metadata(segment_path(&dir, segment, "seg")).map(|file| file.len()).ok();
        let bytes: u64 = (mark.segment..).map_while(size).sum();
        // The place that the index knows is at the beginning of a batch, before the frame.
        bytes.saturating_sub(mark.offset + INDEXED_EARLIER)
    }

    /// Whose log a file is part of, by its path below the store.
    pub fn attempt_of(file: &Path) -> Option<AttemptId> {
        let mut parts = file.iter().map(|part| part.to_str());
        let (job, of) = (parts.nth(1)??, parts.next()??);
        let (attempt, part) = of.split_once('-')?;
        Some(AttemptId { job: JobId::of_simple(job)?, attempt: attempt.parse().ok()?, part: part.parse().ok()? })
    }

    fn job_dir(&self, job: JobId) -> PathBuf {
        let job = job.simple();
        // The last characters of an id are its random ones, so the folders fill evenly.
        self.root.join(&job[job.len() - 2..]).join(&job)
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        self.job_dir(attempt.job).join(format!("{}-{}", attempt.attempt, attempt.part))
    }

    /// A log for `attempt`: a new one, or an old one that is gone on with, its torn end cut off. Going on reads all of it,
    /// for its hashes. Errors: file system, damage, or another writer of the same log.
    pub fn create(&self, attempt: AttemptId) -> Result<LogWriter, LogError> {
        let registration = Registration::new(attempt, &self.live)?;
        let dir = self.dir(attempt);
        make_dir(&dir)?;
        LogWriter::open(dir, self.sync_every, SEGMENT_BYTES, registration, self.room.subscribe())
    }

    /// A reader from the first frame on. Errors: there is no such log.
    pub fn reader(&self, attempt: AttemptId) -> Result<LogReader, LogError> {
        let dir = self.dir(attempt);
        // Under the lock under which a log is taken away: it is there, or it is not.
        let mut readers = self.live.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if !dir.is_dir() {
            return Err(LogError::Missing(attempt));
        }
        *readers.entry(attempt.job).or_default() += 1;
        let reading = Reading { job: attempt.job, readers: Arc::clone(&self.live.readers) };
        drop(readers);
        Ok(LogReader::new(dir, attempt, self.live.clone(), reading))
    }

    /// What a log holds that nobody writes any more; nothing where there is none or it cannot be read. It is not complete: whoever
    /// wrote it came to no proper end.
    pub fn left(&self, attempt: AttemptId) -> LogTotals {
        if !self.dir(attempt).is_dir() {
            return LogTotals::default();
        }
        let totals = self.create(attempt).map(LogWriter::finish);
        totals.unwrap_or_else(|error| {
            tracing::error!(%error, %attempt, "what is left of a log cannot be read");
            LogTotals::default()
        })
    }

    /// Deletes all logs but those of these attempts, and what else lies there. Errors: file system.
    pub fn keep_only(&self, attempts: &HashSet<AttemptId>) -> Result<(), LogError> {
        let kept: HashSet<PathBuf> = attempts.iter().map(|attempt| self.dir(*attempt)).collect();
        for path in folders(&self.root, ATTEMPTS)? {
            if !kept.contains(&path) {
                std::fs::remove_dir_all(&path).map_err(LogError::io(&path))?;
            }
        }
        // A job's folder goes with its last log, also when that went just before a crash; with one in it, it stays.
        for path in folders(&self.root, JOBS)? {
            let _ = std::fs::remove_dir(path);
        }
        Ok(())
    }

    /// Deletes all logs of a job; one that has none is fine. Errors: file system, or one of them is being written.
    pub fn remove(&self, job: JobId) -> Result<(), LogError> {
        if let Some(attempt) = self.live.map().keys().find(|attempt| attempt.job == job) {
            return Err(LogError::Busy(*attempt));
        }
        let dir = self.job_dir(job);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::Io { path: dir, source: error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Deletes all logs of a job that nobody reads. Errors: file system, or one of them is being written or read.
    pub fn remove_unread(&self, job: JobId) -> Result<(), LogError> {
        let busy = |job| LogError::Busy(AttemptId::new(job, 0));
        if self.live.map().keys().any(|attempt| attempt.job == job) {
            return Err(busy(job));
        }
        let (dir, leaving) = (self.job_dir(job), self.root.join(LEAVING));
        make_dir(&leaving)?;
        let aside = leaving.join(job.simple());
        if aside.exists() {
            // An earlier try did not get it all away.
            std::fs::remove_dir_all(&aside).map_err(LogError::io(&aside))?;
        }
        {
            // Taken out of its place at once: removing a large log takes its time, and nobody is to wait for it.
            let readers = self.live.readers.lock().unwrap_or_else(PoisonError::into_inner);
            if readers.contains_key(&job) {
                return Err(busy(job));
            }
            match std::fs::rename(&dir, &aside) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(source) => return Err(LogError::Io { path: dir, source }),
                Ok(()) => {}
            }
        }
        std::fs::remove_dir_all(&aside).map_err(LogError::io(&aside))
    }

    /// Deletes the log of one attempt; that there is none is fine. Errors: file system, or it is being written.
    pub fn remove_attempt(&self, attempt: AttemptId) -> Result<(), LogError> {
        if self.live.map().contains_key(&attempt) {
            return Err(LogError::Busy(attempt));
        }
        let dir = self.dir(attempt);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::Io { path: dir, source: error }),
            Ok(()) | Err(_) => {
                // The job's folder goes with its last log; with another one in it, it stays.
                let _ = std::fs::remove_dir(self.job_dir(attempt.job));
                Ok(())
            }
        }
    }

    /// Tells of appends to any log.
    pub fn appended(&self) -> watch::Receiver<()> {
        self.live.appended.subscribe()
    }

    /// How far a log has come, for as long as it is being written; `None` when it is not.
    pub fn subscribe(&self, attempt: AttemptId) -> Option<watch::Receiver<Tail>> {
        self.live.map().get(&attempt).cloned()
    }
}

/// Where logs are put that are being removed.
const LEAVING: &str = "leaving";

/// How far below the root the folders of jobs are, and those of attempts; above them are those of first letters.
const JOBS: u32 = 2;
const ATTEMPTS: u32 = 3;

/// The folders so far below a root.
fn folders(root: &Path, depth: u32) -> Result<Vec<PathBuf>, LogError> {
    let mut found = vec![root.to_owned()];
    for _ in 0..depth {
        let mut below = Vec::new();
        for dir in found {
            for entry in std::fs::read_dir(&dir).map_err(LogError::io(&dir))? {
                let path = entry.map_err(LogError::io(&dir))?.path();
                below.extend(path.is_dir().then_some(path));
            }
        }
        found = below;
    }
    Ok(found)
}

/// A place in the index may be so far before the frame that is looked for: its spacing, and a batch.
const INDEXED_EARLIER: u64 = index::SPACING + (1 << 20);
/// A segment that is larger gets a successor.
const SEGMENT_BYTES: u64 = 64 << 20;

fn make_dir(dir: &Path) -> Result<(), LogError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(LogError::io(dir))
}

/// A file for appending, made if need be; for its owner only.
fn open_append(path: &Path) -> Result<File, LogError> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(LogError::io(path))
}

fn segment_path(dir: &Path, number: u32, kind: &str) -> PathBuf {
    dir.join(format!("{number:08}.{kind}"))
}

#[cfg(test)]
mod tests;
