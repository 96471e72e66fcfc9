//! Makes what a job is given, below one folder and nowhere else.
//!
//! Every path is walked name by name from that folder, and a name that is a link is never followed: whatever the stream of entries says,
//! nothing outside can be made or written. What is there already is never opened. Owns the folder while there is no job.

use crate::sys;
use crate::wire::{BadPayload, INPUTS_CREDIT, InputReader, InputTotals, Place, Stuck};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What is in its place is told at the latest then: who brings a little at a time is not kept waiting for a word.
const TELL_WITHIN_NS: u64 = 20_000_000;
/// So much is worth a word at once. A word for each part would cost the transport as much as the part.
const TELL_BYTES: u64 = INPUTS_CREDIT / 4;

/// Inputs on their way in.
pub(crate) struct Unpack {
    reader: InputReader,
    beneath: Beneath,
    told: u64,
    /// When there began to be something to tell.
    untold_since: Option<u64>,
}

/// Why they are not all there; for an end that never started.
pub(crate) type Failed = (String, i32);

fn failed(path: &[u8], error: &io::Error) -> Failed {
    (format!("inputs {}", String::from_utf8_lossy(path)), error.raw_os_error().unwrap_or(sys::EIO))
}

impl Unpack {
    /// Begins, or begins again: whatever is in the folder goes first.
    pub(crate) fn begin(root: &str) -> Result<Self, Failed> {
        empty(Path::new(root)).map_err(|error| failed(root.as_bytes(), &error))?;
        Self::into(root)
    }

    fn into(root: &str) -> Result<Self, Failed> {
        let root = sys::folder(root).map_err(|error| failed(root.as_bytes(), &error))?;
        let beneath = Beneath { root, parent: None, file: None };
        Ok(Self { reader: InputReader::default(), beneath, told: 0, untold_since: None })
    }

    /// Takes a part of the stream. One that is not the next is a repeat, or behind a hole: it is passed over. Says how far it is now.
    pub(crate) fn part(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, Failed> {
        if offset == self.reader.taken() {
            self.reader.feed(bytes, &mut self.beneath).map_err(|stuck| match stuck {
                Stuck::Bad(BadPayload(what)) => (format!("inputs {what}"), sys::EINVAL),
                Stuck::Unmade(path, error) => failed(&path, &error),
            })?;
        }
        Ok(self.reader.taken())
    }

    /// How much is in its place, if that is to be told now.
    pub(crate) fn tell(&mut self, now: u64) -> Option<u64> {
        let taken = self.reader.taken();
        if taken == self.told {
            return None;
        }
        let since = *self.untold_since.get_or_insert(now);
        let due = taken - self.told >= TELL_BYTES || self.totals().is_some() || now >= since + TELL_WITHIN_NS;
        due.then(|| {
            (self.told, self.untold_since) = (taken, None);
            taken
        })
    }

    /// When the rest of it is to be told.
    pub(crate) fn tell_at(&self) -> Option<u64> {
        self.untold_since.map(|since| since + TELL_WITHIN_NS)
    }

    pub(crate) fn totals(&self) -> Option<InputTotals> {
        self.reader.totals()
    }
}

fn empty(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        // Neither follows a link.
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?
        } else {
            std::fs::remove_file(entry.path())?
        }
    }
    Ok(())
}

/// Everything is made relative to `root`.
struct Beneath {
    root: OwnedFd,
    /// The folder of the last entry: the next one is most often beside it.
    parent: Option<(Vec<u8>, OwnedFd)>,
    file: Option<File>,
}

impl Beneath {
    /// Does `make` in the folder of `path`, with the last name.
    fn within<T>(&mut self, path: &[u8], make: impl FnOnce(&OwnedFd, &[u8]) -> io::Result<T>) -> io::Result<T> {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return make(&self.root, path) };
        let (folders, name) = (&path[..slash], &path[slash + 1..]);
        if self.parent.as_ref().is_none_or(|(known, _)| known != folders) {
            let mut at: Option<OwnedFd> = None;
            for folder in folders.split(|byte| *byte == b'/') {
                at = Some(sys::folder_in(at.as_ref().unwrap_or(&self.root), folder)?);
            }
            self.parent = at.map(|at| (folders.to_vec(), at));
        }
        let parent = self.parent.as_ref().map_or(&self.root, |(_, parent)| parent);
        make(parent, name)
    }
}

impl Place for Beneath {
    type Error = io::Error;

    fn folder(&mut self, path: &[u8]) -> io::Result<()> {
        self.within(path, |parent, name| sys::make_folder(parent, name, 0o755))
    }

    fn file(&mut self, path: &[u8], executable: bool) -> io::Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        self.file = Some(self.within(path, |parent, name| sys::make_file(parent, name, mode))?);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::from_raw_os_error(sys::EIO)),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.file = None;
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.within(path, |parent, name| sys::make_link(target, parent, name))
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
