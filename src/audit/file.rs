//! The files: one is written, older ones are beside it with 1, 2, 3 … behind their name, the newest first.
//!
//! What is appended is there whole or not at all, as far as the process lives: half a line is cut off again, and one that a crash has left
//! stays by itself.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes at a file's end that are looked at for the last number: some lines.
const LAST_LINES: u64 = 64 << 10;

/// The files of a log.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    max: u64,
    keep: u32,
    /// The file that is written, with its bytes. Opened anew after an error: what is wrong may be the file itself.
    open: Option<(File, u64)>,
}

/// Whether this is the file of that name.
fn is_at(file: &File, path: &Path) -> bool {
    let which = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata().map(which), std::fs::metadata(path).map(which)), (Ok(one), Ok(other)) if one == other)
}

/// The name of an older file.
fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// All names that files can have, the newest first.
pub(super) fn all(path: &Path, keep: u32) -> Vec<PathBuf> {
    std::iter::once(path.to_owned()).chain((1..=keep).map(|number| older(path, number))).collect()
}

impl Log {
    pub(super) fn new(path: PathBuf, max: u64, keep: u32) -> Self {
        Self { path, max, keep, open: None }
    }

    /// The number of the last line in any file. Lines that cannot be read have none.
    pub(super) fn last_seq(&self) -> u64 {
        let in_file = |path: PathBuf| {
            let mut file = File::open(path).ok()?;
            // A pipe or a device in its place would be read for ever.
            let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
            file.seek(SeekFrom::Start(meta.len().saturating_sub(LAST_LINES))).ok()?;
            let mut end = Vec::new();
            file.take(LAST_LINES).read_to_end(&mut end).ok()?;
            end.split(|byte| *byte == b'\n').filter_map(super::read::seq).max()
        };
        all(&self.path, self.keep).into_iter().filter_map(in_file).max().unwrap_or(0)
    }

    /// Writes whole lines. Errors: nothing of them is there.
    pub(super) fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let full = |len: u64| len > 0 && len + lines.len() as u64 > self.max;
        // One that somebody has moved or removed is not the log any more, whatever can be written into it.
        let open = self.open.take().filter(|(file, _)| is_at(file, &self.path));
        let (mut file, mut len) = match open {
            Some(open) => open,
            None => self.reopen()?,
        };
        if full(len) {
            file.sync_data()?;
            drop(file);
            self.turn()?;
            (file, len) = self.reopen()?;
        }
        match file.write_all(lines) {
            Ok(()) => {
                self.open = Some((file, len + lines.len() as u64));
                Ok(())
            }
            Err(error) => {
                let _ = file.set_len(len);
                Err(error)
            }
        }
    }

    /// To disk.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |(file, _)| file.sync_data())
    }

    fn reopen(&self) -> std::io::Result<(File, u64)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let mut len = file.metadata()?.len();
        if len > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                len += 1;
            }
        }
        Ok((file, len))
    }

    /// The file that is written becomes the first of the older ones, and the oldest goes.
    fn turn(&self) -> std::io::Result<()> {
        let missing = |done: std::io::Result<()>| match done {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        if self.keep == 0 {
            return missing(std::fs::remove_file(&self.path));
        }
        for number in (1..self.keep).rev() {
            missing(std::fs::rename(older(&self.path, number), older(&self.path, number + 1)))?;
        }
        missing(std::fs::rename(&self.path, older(&self.path, 1)))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all())
    }
}
