//! Output of attempts that run elsewhere, on its way into this backend's log store.
//!
//! One writer for each attempt, kept over broken connections: opening a log again reads all of it for its hashes. Two
//! connections of one attempt (an old one that is not known to be dead yet) write through the same lock, and a frame that is
//! there already is passed over. Blocking: callers use blocking threads.

use crate::job::{AttemptId, LogTotals};
use crate::logstore::{FrameRef, LogError, LogStore, LogWriter};
use crate::protocol::record::Record;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Why output was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// Its attempt is over, or was never opened.
    #[error("the attempt takes no output (any more)")]
    Closed,
    /// It cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Nobody can say whose it is.
    #[error(transparent)]
    Queue(#[from] crate::queue::StoreError),
}

/// The logs that are being received.
#[derive(Debug)]
pub struct Intake {
    logs: LogStore,
    open: Mutex<HashMap<AttemptId, Arc<Mutex<Option<LogWriter>>>>>,
}

impl Intake {
    /// Into this store.
    pub fn new(logs: LogStore) -> Self {
        Self { logs, open: Mutex::default() }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Arc<Mutex<Option<LogWriter>>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the open log of an attempt. The map is not locked meanwhile: one slow log holds up no other.
    fn with<T>(
        &self,
        attempt: AttemptId,
        work: impl FnOnce(&mut LogWriter) -> Result<T, LogError>,
    ) -> Result<T, IntakeError> {
        let place = self.map().get(&attempt).cloned().ok_or(IntakeError::Closed)?;
        let mut writer = place.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(work(writer.as_mut().ok_or(IntakeError::Closed)?)?)
    }

    /// Opens a log, a new one or one that is gone on with, and says which frame of it is durable. The caller has looked that the
    /// attempt is the sender's.
    pub fn open(&self, attempt: AttemptId) -> Result<u64, IntakeError> {
        let place = Arc::clone(self.map().entry(attempt).or_default());
        {
            let mut writer = place.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.is_none() {
                *writer = Some(self.logs.create(attempt)?);
            }
        }
        self.sync(attempt)
    }

    /// Appends frames and says which is the last one now. Errors: a hole in the numbers, among others.
    pub fn append<'a>(&self, attempt: AttemptId, records: &[Record<'a>]) -> Result<u64, IntakeError> {
        let frame = |record: &Record<'a>| {
            let frame = FrameRef::carried(record.seq, record.time_us, record.stream, record.bytes);
            frame.map_err(|what| LogError::Meaningless { seq: record.seq, what })
        };
        let frames: Vec<FrameRef<'a>> = records.iter().map(frame).collect::<Result<_, _>>()?;
        self.with(attempt, |writer| writer.append(&frames).map(|appended| appended.last_seq))
    }

    /// Makes everything that was appended survive the loss of power, and says up to which frame that is.
    pub fn sync(&self, attempt: AttemptId) -> Result<u64, IntakeError> {
        self.with(attempt, |writer| {
            writer.sync()?;
            Ok(writer.totals().frames)
        })
    }

    /// Ends a log and says what it holds. One that is not open (this process has started since) is read again.
    pub fn finish(&self, attempt: AttemptId) -> Result<LogTotals, IntakeError> {
        let place = self.map().remove(&attempt);
        let writer = place.and_then(|place| place.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(match writer {
            Some(writer) => writer.finish(),
            None if self.logs.reader(attempt).is_ok() => self.logs.create(attempt)?.finish(),
            None => LogTotals::default(),
        })
    }

    /// Ends what is open of a job, up to this attempt: it is over. A newer attempt may have begun already, and goes on.
    pub fn abandon(&self, over: AttemptId) {
        let is_over = |open: &&AttemptId| open.job == over.job && open.attempt <= over.attempt;
        let attempts: Vec<AttemptId> = self.map().keys().filter(is_over).copied().collect();
        for attempt in attempts {
            if let Err(error) = self.finish(attempt) {
                tracing::error!(%error, %attempt, "the log of an attempt that is over could not be ended");
            }
        }
    }
}
