//! The files that a job leaves to be kept: found beneath its workspace and read in parts, as the agent asks for them.
//!
//! Owns what was asked for and where the walk is. Nobody of the job is left by then, and still nothing is trusted: every name is opened
//! beneath the folder before it, no link is followed, only regular files are read. Memory is bounded by the depth of folders, one page
//! and the requests that wait. Must never block: a pipe is only looked at, and a turn looks at some hundred names.

use crate::mask::{Masker, Patterns};
use crate::sys;
use crate::wire::{
    Collect, Entry, EntryKind, FromWarden, MOST_PATH, MOST_PIECE, MOST_READS, OWN_PREFIX, Page, Piece, Stamp, matches,
};
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

/// Folders beneath each other; each is a descriptor while it is walked.
const MOST_DEPTH: usize = 64;
/// Names that one turn looks at.
const NAMES_PER_TURN: usize = 400;
/// One reading of a folder.
const FOLDER_BYTES: usize = 16 * 1024;
/// A page is sent when it has so much.
const PAGE_BYTES: usize = 32 * 1024;
const EOPNOTSUPP: i32 = 95;
const ENAMETOOLONG: i32 = 36;

pub(crate) struct Collector {
    what: Collect,
    /// What no path may show.
    secrets: Option<Arc<Patterns>>,
    walk: Option<Walk>,
    /// A page that is being made, and what is found before its first entry is passed over.
    page: Option<Page>,
    page_bytes: usize,
    /// At most [`MOST_READS`]; more is a mistake of the agent's, and told.
    reads: VecDeque<Wanted>,
    /// The file that was read last: its parts come one after the other.
    open: Option<(Vec<u8>, File)>,
}

struct Wanted {
    number: u32,
    offset: u64,
    left: u32,
    path: Vec<u8>,
}

impl Collector {
    pub(crate) fn new(what: Collect, secrets: Option<Arc<Patterns>>) -> Self {
        Self { what, secrets, walk: None, page: None, page_bytes: 0, reads: VecDeque::new(), open: None }
    }

    /// A new agent asks anew.
    pub(crate) fn forget(&mut self) {
        (self.page, self.open) = (None, None);
        self.reads.clear();
    }

    /// Begins to make the page whose first entry has this number.
    pub(crate) fn list(&mut self, from: u64) {
        if self.walk.as_ref().is_none_or(|walk| walk.found > from) {
            self.walk = None;
        }
        self.page = Some(Page { from, ..Page::default() });
        self.page_bytes = 0;
    }

    /// Takes a request. Error: a sentence.
    pub(crate) fn read(&mut self, number: u32, offset: u64, len: u32, path: Vec<u8>) -> Result<(), String> {
        if self.reads.len() >= MOST_READS {
            return Err(format!("more than {MOST_READS} requests for parts of files"));
        }
        self.reads.push_back(Wanted { number, offset, left: len, path });
        Ok(())
    }

    /// Whether a turn has something to do that no descriptor will announce.
    pub(crate) fn walks(&self) -> bool {
        self.page.as_ref().is_some_and(|page| !self.is_full(page))
    }

    fn is_full(&self, page: &Page) -> bool {
        page.end || self.page_bytes >= PAGE_BYTES
    }

    /// Looks at some more names for the page that is being made.
    pub(crate) fn turn(&mut self) {
        let Some(mut page) = self.page.take() else { return };
        let mut left = NAMES_PER_TURN;
        while left > 0 && !self.is_full(&page) {
            left -= 1;
            let walk = self.walk.get_or_insert_with(|| Walk::new(&self.what.root));
            let seen = walk.found;
            match walk.next(&self.what.rules) {
                Seen::Nothing => {}
                Seen::End => page.end = true,
                Seen::Found(_) if seen < page.from => {}
                Seen::Found(entry) => {
                    let entry = self.hide(entry);
                    self.page_bytes += entry.encoded_len();
                    page.entries.push(entry);
                }
            }
        }
        self.page = Some(page);
    }

    /// A job can make a secret the name of a file. The file is told of, and its name is not.
    fn hide(&self, entry: Entry) -> Entry {
        let Some(secrets) = &self.secrets else { return entry };
        let mut path = entry.path.clone();
        let length = Masker::new(Arc::clone(secrets)).pass(&mut path, true);
        path.truncate(length);
        if path == entry.path { entry } else { Entry { kind: EntryKind::Secret, path, ..entry } }
    }

    /// The next thing to say, if there is one.
    pub(crate) fn say(&mut self) -> Option<FromWarden> {
        if self.page.as_ref().is_some_and(|page| self.is_full(page)) {
            return self.page.take().map(FromWarden::Page);
        }
        let mut wanted = self.reads.pop_front()?;
        let mut piece = Piece { number: wanted.number, offset: wanted.offset, ..Piece::default() };
        match self.piece(&wanted) {
            Ok((bytes, stamp)) => (piece.bytes, piece.stamp) = (bytes, stamp),
            Err(error) => piece.error = error.raw_os_error().unwrap_or(sys::EIO),
        }
        let read = piece.bytes.len();
        wanted.offset += read as u64;
        wanted.left = wanted.left.saturating_sub(read as u32);
        piece.last = piece.error != 0 || read == 0 || wanted.left == 0;
        if !piece.last {
            self.reads.push_front(wanted);
        }
        Some(FromWarden::Piece(piece))
    }

    fn piece(&mut self, wanted: &Wanted) -> io::Result<(Vec<u8>, Stamp)> {
        if self.open.as_ref().is_none_or(|(path, _)| *path != wanted.path) {
            self.open = None;
            self.open = Some((wanted.path.clone(), open(&self.what.root, &wanted.path)?));
        }
        let Some((_, file)) = &self.open else { return Err(io::Error::from_raw_os_error(sys::EIO)) };
        let mut bytes = vec![0; (wanted.left as usize).min(MOST_PIECE)];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], wanted.offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok((bytes, stamp(&file.metadata()?)))
    }
}

/// Opens a file beneath `root`, name by name. Errors: also for what is not a regular file, and for a path that is not one.
fn open(root: &str, path: &[u8]) -> io::Result<File> {
    let bad = || io::Error::from_raw_os_error(sys::EINVAL);
    let mut at = File::open(root)?;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        if name.is_empty() || name == b"." || name == b".." {
            return Err(bad());
        }
        let name = CString::new(name).map_err(|_| bad())?;
        if names.peek().is_some() {
            at = sys::folder_at(at.as_raw_fd(), &name)?;
            continue;
        }
        // Looked at before it is opened: to open a device may do something.
        if !sys::look_at(at.as_raw_fd(), &name)?.metadata()?.is_file() {
            return Err(io::Error::from_raw_os_error(EOPNOTSUPP));
        }
        let file = sys::file_at(at.as_raw_fd(), &name)?;
        return if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::from_raw_os_error(EOPNOTSUPP)) };
    }
    Err(bad())
}

fn stamp(of: &Metadata) -> Stamp {
    let nanos = of.mtime().max(0).unsigned_abs().saturating_mul(1_000_000_000);
    Stamp { size: of.len(), mtime_ns: nanos.saturating_add(of.mtime_nsec().unsigned_abs()), inode: of.ino() }
}

/// A walk over everything beneath the root, in the order of the file system. Nothing changes any more, so each walk goes the same way.
struct Walk {
    /// From the root to where it is.
    folders: Vec<Folder>,
    /// What was read of the last one and not looked at yet.
    read: Vec<u8>,
    at: usize,
    /// Of the last folder, with a slash behind it where it is not the root.
    path: Vec<u8>,
    /// Entries that a rule meant so far.
    found: u64,
    /// The root cannot be opened, or the walk not go on; told once.
    unopened: Option<io::Error>,
}

struct Folder {
    open: File,
    /// Length of the path of the folder above.
    above: usize,
    /// Where the next entry is.
    next: u64,
}

enum Seen {
    Nothing,
    Found(Entry),
    End,
}

impl Walk {
    fn new(root: &str) -> Self {
        let (mut folders, mut unopened) = (Vec::new(), None);
        match File::open(root) {
            Ok(open) => folders.push(Folder { open, above: 0, next: 0 }),
            Err(error) => unopened = Some(error),
        }
        Self { folders, read: Vec::new(), at: 0, path: Vec::new(), found: 0, unopened }
    }

    /// Looks at the next name.
    fn next(&mut self, rules: &[String]) -> Seen {
        if let Some(error) = self.unopened.take() {
            return self.found(unreadable(&error), u64::MAX, Vec::new());
        }
        let Some(folder) = self.folders.last_mut() else { return Seen::End };
        if self.at >= self.read.len() {
            self.read.resize(FOLDER_BYTES, 0);
            self.at = 0;
            let read = sys::entries(folder.open.as_raw_fd(), &mut self.read);
            self.read.truncate(*read.as_ref().unwrap_or(&0));
            let path = self.path.strip_suffix(b"/").unwrap_or(&self.path).to_vec();
            if self.read.is_empty() {
                self.up();
            }
            return match read {
                Ok(_) => Seen::Nothing,
                Err(error) => self.found(unreadable(&error), u64::MAX, path),
            };
        }
        let Some((next, length, name)) = entry(&self.read[self.at..]) else {
            // Not as the kernel writes it; the rest of what was read is passed over.
            self.at = self.read.len();
            return Seen::Nothing;
        };
        self.at += length;
        folder.next = next;
        let own = self.path.is_empty() && name.to_bytes().starts_with(OWN_PREFIX.as_bytes());
        if own || [b".".as_slice(), b".."].contains(&name.to_bytes()) {
            return Seen::Nothing;
        }
        let name = name.to_owned();
        self.look(&name, rules)
    }

    fn look(&mut self, name: &CStr, rules: &[String]) -> Seen {
        let Some(folder) = self.folders.last() else { return Seen::End };
        let mut path = self.path.clone();
        path.extend_from_slice(name.to_bytes());
        let meant = || {
            let bits = rules.iter().enumerate().filter(|(_, rule)| matches(rule.as_bytes(), &path));
            bits.fold(0u64, |bits, (bit, _)| bits | 1 << bit)
        };
        let dir = folder.open.as_raw_fd();
        let seen = match sys::look_at(dir, name).and_then(|file| file.metadata()) {
            Ok(seen) if seen.is_dir() => {
                // What lies in it could be meant by any of them.
                if self.folders.len() >= MOST_DEPTH || path.len() >= MOST_PATH {
                    return self.found((EntryKind::TooDeep, 0, Stamp::default()), u64::MAX, path);
                }
                return match sys::folder_at(dir, name) {
                    Ok(open) => {
                        self.down(open, name.to_bytes());
                        Seen::Nothing
                    }
                    Err(error) => self.found(unreadable(&error), u64::MAX, path),
                };
            }
            Ok(seen) => {
                let kind = match seen.file_type() {
                    kind if kind.is_file() => EntryKind::File,
                    kind if kind.is_symlink() => EntryKind::Link,
                    _ => EntryKind::Other,
                };
                (kind, (seen.mode() & 0o7777) as u16, stamp(&seen))
            }
            Err(error) => unreadable(&error),
        };
        let rules = meant();
        if rules == 0 { Seen::Nothing } else { self.found(seen, rules, path) }
    }

    fn found(&mut self, (kind, mode, stamp): (EntryKind, u16, Stamp), rules: u64, mut path: Vec<u8>) -> Seen {
        self.found += 1;
        if path.len() > MOST_PATH {
            path.truncate(MOST_PATH);
            let stamp = Stamp { size: ENAMETOOLONG.unsigned_abs().into(), ..Stamp::default() };
            return Seen::Found(Entry { kind: EntryKind::Unreadable, rules, mode, stamp, path });
        }
        Seen::Found(Entry { kind, rules, mode, stamp, path })
    }

    fn down(&mut self, open: File, name: &[u8]) {
        let above = self.path.len();
        self.path.extend_from_slice(name);
        self.path.push(b'/');
        self.folders.push(Folder { open, above, next: 0 });
        self.read.clear();
        self.at = 0;
    }

    /// Back to the folder above, where it was left.
    fn up(&mut self) {
        if let Some(folder) = self.folders.pop() {
            self.path.truncate(folder.above);
        }
        if let Some(above) = self.folders.last_mut()
            && let Err(error) = above.open.seek(SeekFrom::Start(above.next))
        {
            // Without its place it would begin anew, for ever.
            self.folders.clear();
            self.unopened = Some(error);
        }
    }
}

fn unreadable(error: &io::Error) -> (EntryKind, u16, Stamp) {
    let code = error.raw_os_error().unwrap_or(sys::EIO).unsigned_abs();
    (EntryKind::Unreadable, 0, Stamp { size: code.into(), ..Stamp::default() })
}

/// The first of the entries as the kernel writes them: where the next one is in the folder, how long this one is here, and its name.
fn entry(bytes: &[u8]) -> Option<(u64, usize, &CStr)> {
    let next = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = CStr::from_bytes_until_nul(bytes.get(19..length)?).ok()?;
    Some((next, length, name))
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
