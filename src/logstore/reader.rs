//! Reads by number or by bytes, also while the log is being written. A reader is a cursor: it holds a file and a place.

use super::index::{self, Mark, Target};
use super::record::{Frame, FrameRef, HEADER, Header, Stream};
use super::{Live, LogError, Reading, segment_path};
use crate::job::AttemptId;
use bytes::Bytes;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A cursor on one log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    attempt: AttemptId,
    live: Live,
    place: Option<Place>,
    /// As long as it is there, nothing takes the log away for want of room.
    _reading: Reading,
}

#[derive(Debug)]
struct Place {
    segment: u32,
    file: File,
    offset: u64,
    next_seq: u64,
}

/// Read at once from the file; a frame is at most 64 KiB, so several fit.
const BLOCK: u64 = 256 << 10;
/// So many frames may always be read at once.
const FEW: usize = 1024;

impl LogReader {
    pub(super) fn new(dir: PathBuf, attempt: AttemptId, live: Live, reading: Reading) -> Self {
        Self { dir, attempt, live, place: None, _reading: reading }
    }

    /// The frames from number `from` on, as many as have about `max_bytes` of output; none when there are none (yet).
    /// Reading on from where the last call ended costs no seek. Errors: damage, with file and offset.
    pub fn read(&mut self, from: u64, max_bytes: usize) -> Result<Vec<Frame>, LogError> {
        let from = from.max(1);
        // Looked at before the files: what was there then is there whole.
        let bound = self.live.bound(self.attempt);
        if self.place.as_ref().is_none_or(|place| place.next_seq != from) {
            self.place = Place::open(&self.dir, index::find(&self.dir, Target::Frame(from))?)?;
        }
        let (mut frames, mut bytes) = (Vec::new(), 0);
        // Frames without output count too.
        let most = FEW.max(max_bytes / HEADER);
        while bytes < max_bytes && frames.len() < most {
            let Some(place) = self.place.as_mut().filter(|place| place.next_seq <= bound) else { break };
            let mut block = place.read(&self.dir)?;
            if block.is_empty() {
                let Some(next) = place.successor(&self.dir)? else { break };
                // The segment may have grown between the two looks; now that it has a successor it does not any more.
                block = place.read(&self.dir)?;
                if block.is_empty() {
                    place.must_be_at_the_end(&self.dir)?;
                    *place = next;
                    continue;
                }
            }
            for (size, frame) in block {
                if bytes >= max_bytes || frames.len() >= most || frame.seq > bound {
                    break;
                }
                place.offset += size;
                place.next_seq += 1;
                if frame.seq >= from {
                    bytes += frame.bytes.len();
                    frames.push(frame);
                }
            }
        }
        Ok(frames)
    }

    /// Bytes `offset..offset + len` of one stream, as far as they are there. Errors: damage.
    pub fn read_bytes(&mut self, stream: Stream, offset: u64, len: usize) -> Result<Vec<u8>, LogError> {
        let mark = index::find(&self.dir, Target::Byte(stream, offset))?;
        let (mut out, mut at, mut seq) = (Vec::new(), mark.bytes[stream.slot()], mark.seq);
        while out.len() < len {
            let frames = self.read(seq, usize::try_from(BLOCK).unwrap_or(usize::MAX))?;
            let Some(last) = frames.last() else { break };
            seq = last.seq + 1;
            for frame in frames.iter().filter(|frame| frame.stream == stream) {
                let skip = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(frame.bytes.len());
                let take = (frame.bytes.len() - skip).min(len - out.len());
                out.extend_from_slice(&frame.bytes[skip..skip + take]);
                at += frame.bytes.len() as u64;
            }
        }
        Ok(out)
    }
}

impl Place {
    /// `None` when the segment is not there (yet).
    fn open(dir: &Path, mark: Mark) -> Result<Option<Self>, LogError> {
        let path = segment_path(dir, mark.segment, "seg");
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { segment: mark.segment, file, offset: mark.offset, next_seq: mark.seq })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { path, source }),
        }
    }

    /// The beginning of the next segment, if there is one.
    fn successor(&self, dir: &Path) -> Result<Option<Self>, LogError> {
        let mark = Mark { segment: self.segment + 1, offset: 0, seq: self.next_seq, ..Mark::START };
        Self::open(dir, mark)
    }

    /// A record that is cut short is not there yet in the last segment, and never will be in an earlier one.
    fn must_be_at_the_end(&self, dir: &Path) -> Result<(), LogError> {
        let path = segment_path(dir, self.segment, "seg");
        let length = self.file.metadata().map_err(LogError::io(&path))?.len();
        if length > self.offset {
            return Err(LogError::Damaged { path, offset: self.offset, what: "a record cut short" });
        }
        Ok(())
    }

    /// Every whole record in the next block, with its size in the file. A torn last one is not there yet.
    fn read(&self, dir: &Path) -> Result<Vec<(u64, Frame)>, LogError> {
        let path = || segment_path(dir, self.segment, "seg");
        let io = |source| LogError::Io { path: path(), source };
        let damaged = |at: usize, what| LogError::Damaged { path: path(), offset: self.offset + at as u64, what };
        // No more than is there: most reads of a follower are small.
        let length = self.file.metadata().map_err(io)?.len();
        let want = length.saturating_sub(self.offset).min(BLOCK);
        let mut block = vec![0; usize::try_from(want).unwrap_or(usize::MAX)];
        let mut filled = fill(&self.file, &mut block, self.offset).map_err(io)?;
        // A record larger than a block: read it whole.
        if let Some(head) = block[..filled].first_chunk::<HEADER>() {
            let size = HEADER + Header::read(head).map_err(|what| damaged(0, what))?.len;
            if size > block.len() {
                block.resize(size, 0);
                filled = fill(&self.file, &mut block, self.offset).map_err(io)?;
            }
        }
        block.truncate(filled);
        let block = Bytes::from(block);
        let (mut found, mut at, mut next_seq) = (Vec::new(), 0, self.next_seq);
        while let Some(head) = block[at..].first_chunk::<HEADER>() {
            let header = Header::read(head).map_err(|what| damaged(at, what))?;
            let Some(payload) = block.get(at + HEADER..at + HEADER + header.len) else { break };
            let frame = header.frame(payload).map_err(|what| damaged(at, what))?;
            if header.seq != next_seq {
                return Err(damaged(at, "a number that does not follow"));
            }
            next_seq += 1;
            let size = HEADER + header.len;
            let FrameRef { seq, stream, time_us, gap, .. } = frame;
            let bytes = if gap > 0 { Bytes::new() } else { block.slice(at + HEADER..at + size) };
            found.push((size as u64, Frame { seq, stream, time_us, bytes, gap }));
            at += size;
        }
        Ok(found)
    }
}

fn fill(file: &File, block: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match file.read_at(&mut block[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
