//! Files are copied with their sums, and are on the disk before anybody relies on them.

use super::BackupError;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Read at once.
const PIECE: usize = 256 << 10;
/// Folders below folders: those of output are four deep.
const MOST_DEPTH: usize = 16;

/// Bytes, and their SHA-256 in hexadecimal digits.
pub(super) type Sum = (u64, String);

/// Makes a folder with what is above it, for its owner only.
pub(super) fn make_dir(dir: &Path) -> Result<(), BackupError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(BackupError::file(dir))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), BackupError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BackupError::file(dir))
}

/// All files below a folder, by their names in it, sorted. One that is not there has none.
pub(super) fn walk(root: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let (mut found, mut folders) = (Vec::new(), vec![(PathBuf::new(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let path = root.join(&folder);
        let entries = match std::fs::read_dir(&path) {
            // A log that was removed meanwhile, or a root that is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(BackupError::file(&path))?,
        };
        for entry in entries {
            let entry = entry.map_err(BackupError::file(&path))?;
            let kind = entry.file_type().map_err(BackupError::file(&path))?;
            let name = folder.join(entry.file_name());
            // Uploads and removals that are under way are nobody's.
            if kind.is_dir() && depth < MOST_DEPTH && !["arriving", "leaving"].iter().any(|it| entry.file_name() == *it)
            {
                folders.push((name, depth + 1));
            } else if kind.is_file() {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies a file and says what was copied; one that grows meanwhile is copied as far as it was. `None` when it is not there.
pub(super) fn copied(from: &Path, to: &Path) -> Result<Option<Sum>, BackupError> {
    let file = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(BackupError::file(from))?,
    };
    if let Some(folder) = to.parent() {
        make_dir(folder)?;
    }
    let length = file.metadata().map_err(BackupError::file(from))?.len();
    let mut target =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(BackupError::file(to))?;
    let sum = pass(file.take(length), from, |piece| target.write_all(piece).map_err(BackupError::file(to)))?;
    target.sync_all().map_err(BackupError::file(to))?;
    Ok(Some(sum))
}

/// Errors: it cannot be read.
pub(super) fn hashed(path: &Path) -> Result<Sum, BackupError> {
    pass(File::open(path).map_err(BackupError::file(path))?, path, |_| Ok(()))
}

/// Writes a small file, whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let fresh = path.with_extension("partial");
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(BackupError::file(&fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(BackupError::file(&fresh))?;
    std::fs::rename(&fresh, path).map_err(BackupError::file(path))
}

fn pass(
    mut from: impl Read,
    path: &Path,
    mut give: impl FnMut(&[u8]) -> Result<(), BackupError>,
) -> Result<Sum, BackupError> {
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(BackupError::file(path)(error)),
        };
        hash.update(&piece[..read]);
        give(&piece[..read])?;
        bytes += read as u64;
    }
    Ok((bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
