//! The word of an agent that an engine is its own, for agents of every user and in containers too.
//!
//! Owns the lock's file below `/run/lock`. Must never remove it: who waits for a file that is gone and who makes a new one would both have the
//! engine.

use super::Failure;
use std::fs::{File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One agent on an engine: two would each give out all of the host's memory and cores. Errors: another one holds it.
pub(super) fn lock_engine(id: &str) -> Result<File, Failure> {
    let name: String = id.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    let folders = [Some(PathBuf::from("/run/lock")), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)];
    let mut reasons = Vec::new();
    for folder in folders.into_iter().flatten() {
        let path = folder.join(format!("jobcell-engine-{name}.lock"));
        match lock_file(&path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::unavailable(format!(
                        "another jobcell agent uses this engine ({} is locked); stop it, or set docker.shared: true for both \
                         and divide agent.slots, agent.cpu and agent.memory between them",
                        path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => reasons.push(format!("{}: {error}", path.display())),
            },
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(Failure::unavailable(format!(
        "the engine cannot be locked ({}); set docker.shared: true if no other agent uses it",
        reasons.join("; ")
    )))
}

/// A file that agents of any user can lock: one that is there is only read, whoever made it, as the kernel lets nobody write to, or open
/// for making, a file of somebody else's in such a folder. Errors: it is not there and cannot be made; it cannot be read.
fn lock_file(path: &Path) -> std::io::Result<File> {
    // A pipe would be waited for at the opening, and a link leads where somebody else wants.
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW).bits().cast_signed();
    let there = || File::options().read(true).custom_flags(flags).open(path);
    match there() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        found => return found,
    }
    match File::options().write(true).create_new(true).open(path) {
        // Whatever mask a service has.
        Ok(file) => file.set_permissions(Permissions::from_mode(0o644)).map(|()| file),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => there(),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_locked_as_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("engine.lock");
        let first = lock_file(&path).expect("is made");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        first.try_lock().expect("is free");
        // Of somebody else, it could not be written.
        std::fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("sets");
        let second = lock_file(&path).expect("is read");
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(first);
        second.try_lock().expect("is free again");
    }

    #[test]
    fn a_link_leads_nowhere() {
        let dir = tempfile::tempdir().expect("a folder");
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).expect("links");
        assert!(lock_file(&link).is_err() && !target.exists());
    }
}
