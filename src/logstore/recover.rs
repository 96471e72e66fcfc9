//! Goes over a log that is to be gone on with: what is whole, where it ends, and its hashes.
//!
//! A process that dies in a write leaves a record cut short at the very end, and a machine that loses its power may leave
//! zeros there: both are cut off, since nobody was told that those frames are stored. Everything else that does not read
//! back is damage, and is left as it is and reported: what lies behind it may be all that is left of a job's output.

use super::index::{Mark, SPACING};
use super::record::{HEADER, Header};
use super::totals::Held;
use super::{LogError, segment_path};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The segment to go on in, and how long its whole part is.
    pub(super) segment: u32,
    pub(super) length: u64,
    pub(super) last_seq: u64,
    pub(super) held: Held,
    /// Where the last index entry points.
    pub(super) indexed: u64,
}

/// Reads all segments of a log, in order, and makes their indexes anew.
pub(super) fn recover(dir: &Path) -> Result<Found, LogError> {
    let mut found = Found { segment: 1, length: 0, last_seq: 0, held: Held::default(), indexed: 0 };
    let mut segment = 1;
    while segment_path(dir, segment, "seg").exists() {
        let last = !segment_path(dir, segment + 1, "seg").exists();
        found.segment = segment;
        found.indexed = 0;
        let mut index = Vec::new();
        found.length = scan(dir, last, &mut found, &mut index)?;
        let path = segment_path(dir, segment, "idx");
        std::fs::write(&path, index).map_err(LogError::io(&path))?;
        segment += 1;
    }
    Ok(found)
}

/// Reads one segment; answers with the length up to which it is whole.
fn scan(dir: &Path, last: bool, found: &mut Found, index: &mut Vec<u8>) -> Result<u64, LogError> {
    let path = segment_path(dir, found.segment, "seg");
    let io = || LogError::io(&path);
    let file = File::open(&path).map_err(io())?;
    let length = file.metadata().map_err(io())?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (mut good, mut head, mut payload) = (0u64, [0; HEADER], Vec::new());
    while good < length {
        let left = length - good;
        if left < HEADER as u64 {
            return torn_end(&path, last, good, "a record cut short");
        }
        file.read_exact(&mut head).map_err(io())?;
        let header = match Header::read(&head) {
            Ok(header) => header,
            Err(what) => return zeros_or_damage(&path, last, good, what),
        };
        let size = (HEADER + header.len) as u64;
        if size > left {
            return torn_end(&path, last, good, "a record cut short");
        }
        payload.resize(header.len, 0);
        file.read_exact(&mut payload).map_err(io())?;
        let frame = match header.frame(&payload) {
            Ok(frame) => frame,
            Err(what) => return zeros_or_damage(&path, last, good, what),
        };
        if header.seq != found.last_seq + 1 {
            return Err(LogError::Damaged { path, offset: good, what: "a number that does not follow" });
        }
        if good == 0 || good - found.indexed >= SPACING {
            let bytes = found.held.bytes();
            index.extend(Mark { segment: found.segment, offset: good, seq: header.seq, bytes }.to_entry());
            found.indexed = good;
        }
        found.last_seq = header.seq;
        found.held.add(&frame);
        good += size;
    }
    Ok(good)
}

/// Only the last record of the last segment can have been cut short by a dying process.
fn torn_end(path: &Path, last: bool, offset: u64, what: &'static str) -> Result<u64, LogError> {
    if last { Ok(offset) } else { Err(LogError::Damaged { path: path.to_owned(), offset, what }) }
}

/// A record that is there in full and wrong is damage, unless nothing but zeros follows.
fn zeros_or_damage(path: &Path, last: bool, offset: u64, what: &'static str) -> Result<u64, LogError> {
    use std::io::{Seek, SeekFrom};
    let mut rest = BufReader::with_capacity(1 << 16, File::open(path).map_err(LogError::io(path))?);
    rest.seek(SeekFrom::Start(offset)).map_err(LogError::io(path))?;
    for byte in rest.bytes() {
        if byte.map_err(LogError::io(path))? != 0 {
            return Err(LogError::Damaged { path: path.to_owned(), offset, what });
        }
    }
    torn_end(path, last, offset, what)
}
