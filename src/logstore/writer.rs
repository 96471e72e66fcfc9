//! Appends. One write call for each batch; a reader sees whole batches only.

use super::record::{self, FrameRef, HEADER, Header, Stream};
use super::{LogError, Tail, make_dir, segment_path};
use crate::job::{AttemptId, LogTotals, StreamTotals};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// A segment that is larger gets a successor.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Between two entries of the index.
pub(super) const INDEX_BYTES: u64 = 256 << 10;

type Live = Arc<Mutex<HashMap<AttemptId, watch::Receiver<Tail>>>>;

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
    indexed: u64,
    last_seq: u64,
    streams: [StreamState; 2],
    unsynced: u64,
    sync_every: u64,
    buffer: Vec<u8>,
    tail: watch::Sender<Tail>,
    registered: Option<(AttemptId, Live)>,
}

#[derive(Debug, Clone, Default)]
struct StreamState {
    bytes: u64,
    hash: Sha256,
}

impl LogWriter {
    /// Opens what is there, cuts off a torn end, and goes on behind it.
    pub(super) fn open(dir: PathBuf, sync_every: u64) -> Result<(Self, watch::Receiver<Tail>), LogError> {
        make_dir(&dir)?;
        let mut streams = [StreamState::default(), StreamState::default()];
        let (mut segment, mut last_seq, mut length) = (1, 0, 0);
        while segment_path(&dir, segment, "seg").exists() {
            length = scan(&segment_path(&dir, segment, "seg"), &mut last_seq, &mut streams)?;
            segment += 1;
        }
        let segment = (segment - 1).max(1);
        let (file, index) = open_segment(&dir, segment)?;
        let path = segment_path(&dir, segment, "seg");
        file.set_len(length).map_err(LogError::io(&path))?;
        let (tail, follow) = watch::channel(Tail { last_seq, ended: false });
        let writer = Self {
            dir,
            segment,
            file,
            index,
            length,
            indexed: length,
            last_seq,
            streams,
            unsynced: 0,
            sync_every,
            buffer: Vec::new(),
            tail,
            registered: None,
        };
        Ok((writer, follow))
    }

    pub(super) fn registered(mut self, attempt: AttemptId, live: Live) -> Self {
        self.registered = Some((attempt, live));
        self
    }

    /// Appends frames in order. One that is there already is passed over; a hole is an error, and nothing of the batch is
    /// kept then. What was appended survives the process; [`sync`](Self::sync) makes it survive the power.
    pub fn append(&mut self, frames: &[FrameRef<'_>]) -> Result<Appended, LogError> {
        let mut next = self.last_seq + 1;
        self.buffer.clear();
        let mut streams = None;
        for frame in frames {
            if frame.seq < next {
                continue;
            }
            if frame.seq > next {
                return Err(LogError::Jump { wanted: next, got: frame.seq });
            }
            next += 1;
            record::write(frame, &mut self.buffer);
            let state =
                &mut streams.get_or_insert_with(|| self.streams.clone())[usize::from(frame.stream == Stream::Stderr)];
            state.bytes += frame.bytes.len() as u64;
            state.hash.update(frame.bytes);
        }
        let Some(streams) = streams else { return Ok(Appended { last_seq: self.last_seq }) };
        if self.length >= SEGMENT_BYTES {
            self.next_segment()?;
        }
        let path = segment_path(&self.dir, self.segment, "seg");
        if self.length == 0 || self.length - self.indexed >= INDEX_BYTES {
            self.write_index()?;
        }
        if let Err(error) = self.file.write_all(&self.buffer) {
            // Part of it may be there; the length is what counts, and what is behind it is cut off.
            let _ = self.file.set_len(self.length);
            return Err(LogError::Io { path, source: error });
        }
        self.length += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.last_seq = next - 1;
        self.streams = streams;
        self.tail.send_replace(Tail { last_seq: self.last_seq, ended: false });
        Ok(Appended { last_seq: self.last_seq })
    }

    /// The index says: the record at this place of the segment is the frame after `last_seq`.
    fn write_index(&mut self) -> Result<(), LogError> {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&(self.last_seq + 1).to_le_bytes());
        entry[8..].copy_from_slice(&self.length.to_le_bytes());
        let path = segment_path(&self.dir, self.segment, "idx");
        self.index.write_all(&entry).map_err(LogError::io(&path))?;
        self.indexed = self.length;
        Ok(())
    }

    fn next_segment(&mut self) -> Result<(), LogError> {
        self.sync()?;
        self.segment += 1;
        (self.file, self.index) = open_segment(&self.dir, self.segment)?;
        self.length = 0;
        self.indexed = 0;
        Ok(())
    }

    /// True when so much was appended that a sync is due.
    pub fn needs_sync(&self) -> bool {
        self.unsynced >= self.sync_every
    }

    /// Makes everything survive the power.
    pub fn sync(&mut self) -> Result<(), LogError> {
        let path = segment_path(&self.dir, self.segment, "seg");
        self.file.sync_data().map_err(LogError::io(&path))?;
        self.unsynced = 0;
        Ok(())
    }

    /// What the log holds, without the hashes.
    pub fn totals(&self) -> LogTotals {
        let stream = |state: &StreamState| StreamTotals { bytes: state.bytes, sha256: String::new() };
        LogTotals {
            frames: self.last_seq,
            stdout: stream(&self.streams[0]),
            stderr: stream(&self.streams[1]),
            complete: false,
        }
    }

    /// Ends the log and says what it holds. It is synced on the way out; a sync that fails is only logged, since the
    /// bytes are there for every reader.
    pub fn finish(mut self) -> LogTotals {
        if self.unsynced > 0
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "log could not be synced");
        }
        let mut totals = self.totals();
        let hex =
            |state: &StreamState| state.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        totals.stdout.sha256 = hex(&self.streams[0]);
        totals.stderr.sha256 = hex(&self.streams[1]);
        totals
    }
}

impl Drop for LogWriter {
    /// Whoever follows learns that nothing more comes, also when the writer was dropped without an end.
    fn drop(&mut self) {
        if let Some((attempt, live)) = &self.registered {
            live.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
        }
        self.tail.send_replace(Tail { last_seq: self.last_seq, ended: true });
    }
}

fn open_segment(dir: &Path, segment: u32) -> Result<(File, File), LogError> {
    let open = |kind: &str| {
        let path = segment_path(dir, segment, kind);
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(LogError::io(&path))
    };
    Ok((open("seg")?, open("idx")?))
}

/// Reads a whole segment; answers with the length up to which it is good. Only the last record of a log can be torn.
fn scan(path: &Path, last_seq: &mut u64, streams: &mut [StreamState; 2]) -> Result<u64, LogError> {
    let mut file = std::io::BufReader::with_capacity(1 << 20, File::open(path).map_err(LogError::io(path))?);
    let length =
        file.seek(SeekFrom::End(0)).and_then(|length| file.rewind().map(|()| length)).map_err(LogError::io(path))?;
    let (mut good, mut head, mut payload) = (0u64, [0; HEADER], Vec::new());
    while good + HEADER as u64 <= length {
        file.read_exact(&mut head).map_err(LogError::io(path))?;
        let Ok(header) = Header::read(&head) else { break };
        if good + (HEADER + header.len) as u64 > length {
            break;
        }
        payload.resize(header.len, 0);
        file.read_exact(&mut payload).map_err(LogError::io(path))?;
        if !header.fits(&payload) || header.seq != *last_seq + 1 {
            break;
        }
        *last_seq = header.seq;
        let state = &mut streams[usize::from(header.stream == Stream::Stderr)];
        state.bytes += payload.len() as u64;
        state.hash.update(&payload);
        good += (HEADER + header.len) as u64;
    }
    Ok(good)
}
