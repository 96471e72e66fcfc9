//! Moves a file that cannot be used out of the way, and keeps it for whoever wants to look.

use super::open::failed;
use super::{Error, Obstacle, with_suffix};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Damaged files that are kept, with this one. A disk that fails at every start must not fill itself with them.
const KEPT: usize = 10;

/// Moves the file, its write-ahead log and that one's index to `<file>.damaged-<stamp>` (with the same `-wal` and `-shm`),
/// and answers with the new name. Of those from before only the newest stay. Nothing may have the file open.
/// Errors: it cannot be moved.
pub fn move_aside(path: &Path, stamp: u64) -> Result<PathBuf, Error> {
    let taken = |kept: &PathBuf| kept.exists();
    let kept = (stamp..).map(|stamp| with_suffix(path, &format!(".damaged-{stamp}"))).find(|kept| !taken(kept));
    let kept = kept.unwrap_or_else(|| with_suffix(path, ".damaged"));
    // The file first: if the process dies in between, a log without its file tells of it at the next start.
    for suffix in ["", "-wal", "-shm"] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let reason = format!("it is damaged, and cannot be moved to {}: {error}", kept.display());
                let fix = "see that the folder is writable";
                return Err(failed(path, Obstacle::Outside, reason, fix));
            }
            _ => {}
        }
    }
    forget_oldest(path);
    Ok(kept)
}

/// Only tidies up: what cannot be removed stays.
fn forget_oldest(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let prefix = format!("{name}.damaged-");
    let names =
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut stamps: Vec<u64> = names.filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect();
    stamps.sort_unstable_by(|a, b| b.cmp(a));
    for stamp in stamps.into_iter().skip(KEPT) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(with_suffix(path, &format!(".damaged-{stamp}{suffix}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_none_replaces_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.db");
        for n in 0..12u64 {
            fs::write(&path, n.to_string()).expect("writes");
            fs::write(dir.path().join("x.db-wal"), "log").expect("writes");
            // Two at the same moment.
            let kept = move_aside(&path, 100 + n.min(10)).expect("moves");
            assert_eq!(fs::read_to_string(&kept).expect("is there"), n.to_string());
            assert!(!path.exists() && with_suffix(&kept, "-wal").exists());
        }
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).expect("reads").map(|entry| entry.expect("an entry").file_name()).collect();
        left.sort();
        let wanted: Vec<String> =
            (102..112u64).flat_map(|n| [format!("x.db.damaged-{n}"), format!("x.db.damaged-{n}-wal")]).collect();
        assert_eq!(left, wanted.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>());
    }

    #[test]
    fn a_file_that_cannot_be_moved_is_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.db");
        fs::write(&path, "x").expect("writes");
        // Something lies where the log is to go, and cannot be replaced by a file.
        fs::create_dir_all(dir.path().join("x.db.damaged-7-wal/full")).expect("makes");
        fs::write(dir.path().join("x.db-wal"), "log").expect("writes");
        let error = move_aside(&path, 7).expect_err("cannot").to_string();
        assert!(error.contains("x.db.damaged-7") && error.contains("writable"), "{error}");
    }
}
