//! What a job is given before it starts: one stream of plain entries, in which nothing is left to be interpreted. Archives are read by the
//! agent; the warden only makes what the stream names, and this file says what it may name.
//!
//! ```text
//! 1 folder  len u16, path
//! 2 file    executable u8, bytes u64, len u16, path, then the bytes
//! 3 link    len u16, path, len u16, target
//! 0 end     entries u64
//! ```

use super::fields::{BadPayload, Reader, Writer};
use crate::crc::crc32c_append;

/// Bytes of the stream that may be on their way: a cancel is never behind more.
pub const INPUTS_CREDIT: u64 = 256 * 1024;
/// Longest path, and longest target of a link.
const MOST_TEXT: usize = 1024;

const END: u8 = 0;
const FOLDER: u8 = 1;
const FILE: u8 = 2;
const LINK: u8 = 3;

/// What a whole stream was: the commit names it, and no job starts on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputTotals {
    /// Folders, files and links.
    pub entries: u64,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Its CRC-32C.
    pub sum: u32,
}

impl InputTotals {
    pub(super) fn write(&self, w: Writer) -> Writer {
        w.u64(self.entries).u64(self.bytes).u32(self.sum)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        Ok(Self { entries: r.u64()?, bytes: r.u64()?, sum: r.u32()? })
    }
}

/// Writes the heads of entries.
#[derive(Debug, Default)]
pub struct InputWriter {
    totals: InputTotals,
}

impl InputWriter {
    fn head(&mut self, out: &mut Vec<u8>, parts: &[&[u8]]) {
        let from = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        self.count(&out[from..]);
        self.totals.entries += 1;
    }

    fn count(&mut self, bytes: &[u8]) {
        self.totals.bytes += bytes.len() as u64;
        self.totals.sum = crc32c_append(self.totals.sum, bytes);
    }

    /// A folder.
    pub fn folder(&mut self, path: &str, out: &mut Vec<u8>) {
        self.head(out, &[&[FOLDER], &len(path), path.as_bytes()]);
    }

    /// A file, whose bytes follow.
    pub fn file(&mut self, path: &str, executable: bool, bytes: u64, out: &mut Vec<u8>) {
        self.head(out, &[&[FILE, u8::from(executable)], &bytes.to_le_bytes(), &len(path), path.as_bytes()]);
    }

    /// Bytes of the last file. They are only counted: they go out as they are.
    pub fn data(&mut self, bytes: &[u8]) {
        self.count(bytes);
    }

    /// A link.
    pub fn link(&mut self, path: &str, target: &str, out: &mut Vec<u8>) {
        self.head(out, &[&[LINK], &len(path), path.as_bytes(), &len(target), target.as_bytes()]);
    }

    /// The end, and what the whole was.
    pub fn end(mut self, out: &mut Vec<u8>) -> InputTotals {
        let entries = self.totals.entries;
        self.head(out, &[&[END], &entries.to_le_bytes()]);
        InputTotals { entries, ..self.totals }
    }
}

fn len(text: &str) -> [u8; 2] {
    (text.len() as u16).to_le_bytes()
}

/// Makes what the stream names, and says what the kernel said.
pub trait Place {
    /// What went wrong.
    type Error;
    /// Makes a folder.
    fn folder(&mut self, path: &[u8]) -> Result<(), Self::Error>;
    /// Makes a file and opens it.
    fn file(&mut self, path: &[u8], executable: bool) -> Result<(), Self::Error>;
    /// Writes to the open file.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Closes the open file.
    fn close(&mut self) -> Result<(), Self::Error>;
    /// Makes a link.
    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Self::Error>;
}

/// Why a stream is not carried on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stuck<E> {
    /// It is no stream of entries, or names what may not be made.
    Bad(BadPayload),
    /// What it names could not be made; the path, and why.
    Unmade(Vec<u8>, E),
}

impl<E> From<BadPayload> for Stuck<E> {
    fn from(bad: BadPayload) -> Self {
        Self::Bad(bad)
    }
}

/// Reads a stream as it comes, in any pieces. Holds the head of one entry at most.
#[derive(Debug, Default)]
pub struct InputReader {
    /// The beginning of a head.
    head: Vec<u8>,
    /// Of the open file: what is still to come.
    left: Option<u64>,
    /// Of the open file, or the last entry: for what is told.
    path: Vec<u8>,
    totals: InputTotals,
    ended: bool,
}

impl InputReader {
    /// What the whole was, once its end has come.
    pub fn totals(&self) -> Option<InputTotals> {
        self.ended.then_some(self.totals)
    }

    /// Bytes that have been taken.
    pub fn taken(&self) -> u64 {
        self.totals.bytes
    }

    /// Takes the next bytes. After an error nothing more may be fed.
    pub fn feed<P: Place>(&mut self, mut bytes: &[u8], place: &mut P) -> Result<(), Stuck<P::Error>> {
        self.totals.bytes += bytes.len() as u64;
        self.totals.sum = crc32c_append(self.totals.sum, bytes);
        while !bytes.is_empty() {
            if self.ended {
                return Err(BadPayload("something follows the end of the inputs").into());
            }
            if let Some(left) = self.left {
                let here = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let (data, rest) = bytes.split_at(here);
                place.data(data).map_err(|error| Stuck::Unmade(self.path.clone(), error))?;
                bytes = rest;
                self.left = Some(left - here as u64);
                self.close_if_whole(place)?;
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            // All of a head but its last byte is waited for in one go.
            while let Some(more) = missing(&self.head)? {
                let here = more.min(bytes.len());
                self.head.extend_from_slice(&bytes[..here]);
                bytes = &bytes[here..];
                if here < more {
                    return Ok(());
                }
            }
            let head = std::mem::take(&mut self.head);
            self.entry(&head, place)?;
        }
        Ok(())
    }

    fn close_if_whole<P: Place>(&mut self, place: &mut P) -> Result<(), Stuck<P::Error>> {
        if self.left == Some(0) {
            self.left = None;
            place.close().map_err(|error| Stuck::Unmade(self.path.clone(), error))?;
        }
        Ok(())
    }

    fn entry<P: Place>(&mut self, head: &[u8], place: &mut P) -> Result<(), Stuck<P::Error>> {
        let mut r = Reader(head);
        let kind = r.u8()?;
        if kind == END {
            if r.u64()? != self.totals.entries {
                return Err(BadPayload("the end of the inputs counts other entries").into());
            }
            self.ended = true;
            return Ok(());
        }
        let (executable, bytes) = if kind == FILE { (r.u8()? == 1, r.u64()?) } else { (false, 0) };
        let path = text(&mut r)?;
        if !is_beneath(path) {
            return Err(BadPayload("an input's path leads out of its place").into());
        }
        self.path = path.to_vec();
        self.totals.entries += 1;
        let made = match kind {
            FOLDER => place.folder(path),
            FILE => place.file(path, executable),
            _ => {
                let target = text(&mut r)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(BadPayload("an input is a link to nothing").into());
                }
                place.link(path, target)
            }
        };
        made.map_err(|error| Stuck::Unmade(self.path.clone(), error))?;
        if kind == FILE {
            self.left = Some(bytes);
            self.close_if_whole(place)?;
        }
        Ok(())
    }
}

/// Bytes that a head still lacks before its next length, or its end, is known; `None` when it is whole.
fn missing(head: &[u8]) -> Result<Option<usize>, BadPayload> {
    let text_at = |at: usize| -> Result<Result<usize, usize>, BadPayload> {
        let Some(len) = head.get(at..at + 2) else { return Ok(Err(at + 2 - head.len())) };
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        if len > MOST_TEXT {
            return Err(BadPayload("an input's path is too long"));
        }
        let end = at + 2 + len;
        Ok(if head.len() < end { Err(end - head.len()) } else { Ok(end) })
    };
    let first = match head[0] {
        END => return Ok((head.len() < 9).then(|| 9 - head.len())),
        FOLDER | LINK => text_at(1)?,
        FILE => text_at(10)?,
        _ => return Err(BadPayload("an unknown kind of input")),
    };
    match first {
        Err(more) => Ok(Some(more)),
        Ok(end) if head[0] == LINK => Ok(text_at(end)?.err()),
        Ok(_) => Ok(None),
    }
}

fn text<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], BadPayload> {
    let len = r.take(2)?;
    r.take(usize::from(u16::from_le_bytes([len[0], len[1]])))
}

/// A path that stays where it begins, as long as none of its folders is a link: whoever makes it sees to that.
fn is_beneath(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}
