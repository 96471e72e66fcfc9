//! Appends. One write call for each batch; a reader sees whole batches only.

use super::index::{ENTRY, Mark, SPACING};
use super::record::{self, FrameRef, MAX_LEN};
use super::recover::recover;
use super::room::Full;
use super::totals::Held;
use super::{LogError, Registration, open_append, segment_path};
use crate::job::LogTotals;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// What an append came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The last frame of the log.
    pub last_seq: u64,
}

/// The one writer of a log.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    segment: u32,
    file: File,
    index: File,
    /// Length of the segment.
    length: u64,
    /// Where in the segment the last index entry points.
    indexed: u64,
    last_seq: u64,
    held: Held,
    unsynced: u64,
    sync_every: u64,
    segment_bytes: u64,
    /// The end of the file is not where it should be.
    broken: bool,
    buffer: Vec<u8>,
    registration: Registration,
    room: watch::Receiver<Full>,
}

impl LogWriter {
    /// Opens what is there, cuts off a torn end, and goes on behind it.
    pub(super) fn open(
        dir: PathBuf,
        sync_every: u64,
        segment_bytes: u64,
        registration: Registration,
        room: watch::Receiver<Full>,
    ) -> Result<Self, LogError> {
        let found = recover(&dir)?;
        let (file, index) = open_segment(&dir, found.segment)?;
        file.set_len(found.length).map_err(LogError::io(&segment_path(&dir, found.segment, "seg")))?;
        registration.publish(found.last_seq);
        Ok(Self {
            dir,
            segment: found.segment,
            file,
            index,
            length: found.length,
            indexed: found.indexed,
            last_seq: found.last_seq,
            held: found.held,
            unsynced: 0,
            sync_every,
            segment_bytes,
            broken: false,
            buffer: Vec::new(),
            registration,
            room,
        })
    }

    /// What stands in the way of more output; whoever appends without looking is let do so.
    pub fn room(&self) -> watch::Receiver<Full> {
        self.room.clone()
    }

    /// No other log of the store is being written at the moment.
    pub fn is_alone(&self) -> bool {
        self.registration.live.map().len() <= 1
    }

    /// Appends frames in order. One that is there already is passed over; a hole is an error, and nothing of the batch is
    /// kept then. What was appended survives the process; [`sync`](Self::sync) makes it survive the power.
    pub fn append(&mut self, frames: &[FrameRef<'_>]) -> Result<Appended, LogError> {
        let first = self.last_seq + 1;
        let new = || frames.iter().filter(|frame| frame.seq >= first);
        self.buffer.clear();
        for (frame, wanted) in new().zip(first..) {
            if frame.seq != wanted {
                return Err(LogError::Jump { wanted, got: frame.seq });
            }
            if frame.bytes.len() > MAX_LEN {
                return Err(LogError::TooLarge { seq: frame.seq, len: frame.bytes.len() });
            }
            record::write(frame, &mut self.buffer);
        }
        let Some(last) = new().next_back() else { return Ok(Appended { last_seq: self.last_seq }) };
        self.write()?;
        self.last_seq = last.seq;
        for frame in new() {
            self.held.add(frame);
        }
        self.registration.publish(self.last_seq);
        Ok(Appended { last_seq: self.last_seq })
    }

    /// Puts the buffer behind what is there.
    fn write(&mut self) -> Result<(), LogError> {
        if self.length >= self.segment_bytes {
            self.next_segment()?;
        }
        let path = segment_path(&self.dir, self.segment, "seg");
        if self.broken {
            return Err(LogError::Broken { path });
        }
        if self.length == 0 || self.length - self.indexed >= SPACING {
            self.write_index();
        }
        if let Err(source) = self.file.write_all(&self.buffer) {
            // Part of it may be there. Behind that nothing can be read, so nothing may be written.
            self.broken = self.file.set_len(self.length).is_err();
            return Err(LogError::Io { path, source });
        }
        self.length += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        Ok(())
    }

    /// The index says: the record at this place of the segment is the frame after `last_seq`. An entry that fails is left
    /// out: the index only helps.
    fn write_index(&mut self) {
        let bytes = self.held.bytes();
        let mark = Mark { segment: self.segment, offset: self.length, seq: self.last_seq + 1, bytes };
        if let Err(error) = self.index.write_all(&mark.to_entry()) {
            tracing::warn!(%error, dir = %self.dir.display(), "log index entry left out");
            // What is behind half an entry could not be read.
            let whole = self.index.metadata().map(|file| file.len() / ENTRY as u64 * ENTRY as u64);
            let _ = whole.and_then(|whole| self.index.set_len(whole));
        }
        self.indexed = self.length;
    }

    fn next_segment(&mut self) -> Result<(), LogError> {
        self.sync()?;
        (self.file, self.index) = open_segment(&self.dir, self.segment + 1)?;
        self.segment += 1;
        self.length = 0;
        self.indexed = 0;
        Ok(())
    }

    /// True when so much was appended that a sync is due.
    pub fn needs_sync(&self) -> bool {
        self.unsynced >= self.sync_every
    }

    /// Makes everything survive the power. The names of new files are not synced by themselves: ext4, XFS and btrfs
    /// write them with the first sync of the file.
    pub fn sync(&mut self) -> Result<(), LogError> {
        let path = segment_path(&self.dir, self.segment, "seg");
        self.file.sync_data().map_err(LogError::io(&path))?;
        self.unsynced = 0;
        Ok(())
    }

    /// What the log holds, without the hashes.
    pub fn totals(&self) -> LogTotals {
        self.held.totals(self.last_seq, false)
    }

    /// Ends the log and says what it holds. It is synced on the way out; a sync that fails is only logged, since the
    /// bytes are there for every reader.
    pub fn finish(mut self) -> LogTotals {
        if self.unsynced > 0
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "log could not be synced");
        }
        self.held.totals(self.last_seq, true)
    }
}

fn open_segment(dir: &Path, segment: u32) -> Result<(File, File), LogError> {
    Ok((open_append(&segment_path(dir, segment, "seg"))?, open_append(&segment_path(dir, segment, "idx"))?))
}

#[cfg(test)]
mod tests {
    use super::super::{LogError, LogStore};
    use crate::job::{AttemptId, JobId, UnixMillis};
    use crate::logstore::{FrameRef, Stream};

    #[test]
    fn a_write_that_fails_leaves_the_log_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = LogStore::open(dir.path(), 1 << 20).expect("opens");
        let attempt = AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_000)), 1);
        let mut writer = store.create(attempt).expect("creates");
        let frame = |seq| FrameRef { seq, stream: Stream::Stdout, time_us: 0, bytes: b"abc", gap: 0 };
        writer.append(&[frame(1)]).expect("appends");
        let before = writer.totals();
        // A handle that can neither write nor cut, as on a file system that went read-only.
        let path = super::segment_path(&writer.dir, 1, "seg");
        let file = std::mem::replace(&mut writer.file, std::fs::File::open(&path).expect("opens"));
        assert!(matches!(writer.append(&[frame(2)]), Err(LogError::Io { .. })));
        assert!(matches!(writer.append(&[frame(2)]), Err(LogError::Broken { path: named }) if named == path));
        assert_eq!((writer.totals(), store.subscribe(attempt).expect("live").borrow().last_seq), (before, 1));
        writer.file = file;
        drop(writer);
        let mut writer = store.create(attempt).expect("goes on");
        assert_eq!(writer.append(&[frame(2)]).expect("appends").last_seq, 2);
    }
}
