//! Reads by number or by bytes, also while the log is being written. A reader is a cursor: it holds a file and a place.

use super::record::{Frame, HEADER, Header, Stream};
use super::{LogError, segment_path};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A cursor on one log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    segment: u32,
    file: File,
    offset: u64,
    next_seq: u64,
}

/// Read at once from the file; a frame is at most 64 KiB, so several fit.
const BLOCK: usize = 256 << 10;

impl LogReader {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, place: None }
    }

    /// The frames from number `from` on, as many as have about `max_bytes` of output; none when there are none (yet).
    /// Reading on from where the last call ended costs no seek. Errors: damage, with file and offset.
    pub fn read(&mut self, from: u64, max_bytes: usize) -> Result<Vec<Frame>, LogError> {
        let from = from.max(1);
        if self.place.as_ref().is_none_or(|place| place.next_seq != from) {
            self.place = seek(&self.dir, from)?;
        }
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes {
            let Some(place) = &mut self.place else { break };
            let block = read_block(&self.dir, place)?;
            if block.is_empty() {
                let next = place.segment + 1;
                let path = segment_path(&self.dir, next, "seg");
                if !path.exists() {
                    break;
                }
                let file = File::open(&path).map_err(LogError::io(&path))?;
                self.place = Some(Place { segment: next, file, offset: 0, next_seq: place.next_seq });
                continue;
            }
            for (size, frame) in block {
                if bytes >= max_bytes {
                    break;
                }
                place.offset += size;
                if frame.seq >= from {
                    bytes += frame.bytes.len();
                    frames.push(frame);
                }
                place.next_seq += 1;
            }
        }
        Ok(frames)
    }

    /// Bytes `offset..offset + len` of one stream, as far as they are there. Errors: damage.
    pub fn read_bytes(&mut self, stream: Stream, offset: u64, len: usize) -> Result<Vec<u8>, LogError> {
        let (mut out, mut at, mut seq) = (Vec::new(), 0u64, 1);
        while out.len() < len {
            let frames = self.read(seq, BLOCK)?;
            let Some(last) = frames.last() else { break };
            seq = last.seq + 1;
            for frame in frames.iter().filter(|frame| frame.stream == stream) {
                let end = at + frame.bytes.len() as u64;
                let skip = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(frame.bytes.len());
                let take = (frame.bytes.len() - skip).min(len - out.len());
                out.extend_from_slice(&frame.bytes[skip..skip + take]);
                at = end;
            }
        }
        Ok(out)
    }
}

/// Every whole record in the next block, with its size in the file. A torn last one is not there yet.
fn read_block(dir: &Path, place: &Place) -> Result<Vec<(u64, Frame)>, LogError> {
    let path = || segment_path(dir, place.segment, "seg");
    let mut block = vec![0; BLOCK];
    let mut filled =
        fill(&place.file, &mut block, place.offset).map_err(|source| LogError::Io { path: path(), source })?;
    let damaged = |at: usize, what| LogError::Damaged { path: path(), offset: place.offset + at as u64, what };
    // A record larger than a block: read it whole.
    if let Some(head) = block[..filled].first_chunk::<HEADER>() {
        let size = HEADER + Header::read(head).map_err(|what| damaged(0, what))?.len;
        if size > block.len() {
            block.resize(size, 0);
            filled =
                fill(&place.file, &mut block, place.offset).map_err(|source| LogError::Io { path: path(), source })?;
        }
    }
    block.truncate(filled);
    let block = Bytes::from(block);
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(head) = block[at..].first_chunk::<HEADER>() {
        let header = Header::read(head).map_err(|what| damaged(at, what))?;
        let Some(payload) = block.get(at + HEADER..at + HEADER + header.len) else { break };
        if !header.fits(payload) {
            return Err(damaged(at, "a checksum that does not fit"));
        }
        let size = HEADER + header.len;
        let bytes = block.slice(at + HEADER..at + size);
        found.push((size as u64, Frame { seq: header.seq, stream: header.stream, time_us: header.time_us, bytes }));
        at += size;
    }
    if let Some((_, first)) = found.first()
        && first.seq != place.next_seq
    {
        return Err(damaged(0, "a number that does not follow"));
    }
    Ok(found)
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

/// The place of frame `from`, or of the nearest indexed one before it.
fn seek(dir: &Path, from: u64) -> Result<Option<Place>, LogError> {
    let mut best = None;
    let mut segment = 1;
    loop {
        let path = segment_path(dir, segment, "idx");
        let Ok(entries) = std::fs::read(&path) else { break };
        let (entries, _) = entries.as_chunks::<16>();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let mut later = false;
        for entry in entries {
            let (seq, offset) = (number(&entry[..8]), number(&entry[8..]));
            if seq > from {
                later = true;
                break;
            }
            best = Some((segment, seq, offset));
        }
        if later {
            break;
        }
        segment += 1;
    }
    let Some((segment, next_seq, offset)) = best else { return Ok(None) };
    let path = segment_path(dir, segment, "seg");
    let file = File::open(&path).map_err(LogError::io(&path))?;
    Ok(Some(Place { segment, file, offset, next_seq }))
}
