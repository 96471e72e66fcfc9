//! The data directory: who holds it, whose it is, the key and the address of its API.

use super::Failure;
use crate::backup::RESTORING;
use crate::job::OwnerId;
use crate::{database, supervise};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A data directory that this process holds until the value is dropped.
pub(crate) struct Home {
    dir: PathBuf,
    pub(crate) owner: OwnerId,
    /// The lock goes with the file.
    _lock: File,
}

impl Home {
    /// Takes the directory, and makes what is not there yet. Errors: another process holds it; it cannot be written.
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::unavailable(format!(
                "data directory {}: {what}: {error}; choose another with --data-dir, or correct its permissions",
                dir.display()
            ))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| failed("cannot be made", error))?;
        let held = || {
            format!(
                "data directory {} is held by another jobcell process; stop it, or choose another with --data-dir (server and agent of one \
                 host are one process: `jobcell up`)",
                dir.display()
            )
        };
        let lock = lock(dir, held)?;
        if dir.join(RESTORING).exists() {
            return Err(Failure::unavailable(format!(
                "data directory {}: a backup was being put back and that was not finished; remove the folder and do it again",
                dir.display()
            )));
        }
        let (owner, _) =
            kept(&dir.join("owner"), || OwnerId::random().to_string()).map_err(|error| failed("owner", error))?;
        let owner = owner.parse().map_err(|error| {
            Failure::unavailable(format!("{}: {error}; the file was changed by hand", dir.join("owner").display()))
        })?;
        Ok(Self { dir: dir.to_owned(), owner, _lock: lock })
    }

    /// Takes a directory that is there, for work on what it has left. Errors: there is none; a process holds it, of
    /// which `held` says what it does by itself.
    pub(crate) fn take(dir: &Path, held: &str) -> Result<Self, Failure> {
        let shown = dir.display();
        let owner = owner_of(dir).ok_or_else(|| {
            Failure::unavailable(format!(
                "data directory {shown}: no installation is there; choose another with --data-dir, or name one that is gone with \
                 --owner"
            ))
        })?;
        let owner = owner.parse().map_err(|error| {
            Failure::unavailable(format!("{}: {error}; the file was changed by hand", dir.join("owner").display()))
        })?;
        let held = || format!("data directory {shown} is held by a jobcell process: {held}");
        Ok(Self { dir: dir.to_owned(), owner, _lock: lock(dir, held)? })
    }

    /// The key that opens the API, and whether it was made just now. Errors: it can be neither read nor made.
    pub(crate) fn admin_key(&self) -> Result<(String, bool), Failure> {
        let file = self.path("admin.key");
        kept(&file, new_key).map_err(|error| Failure::unavailable(format!("{}: {error}", file.display())))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Says in a file where something is (`endpoint`: the API; `health`: an agent's health), for commands on this host. Errors:
    /// cannot be written.
    pub(crate) fn publish(&self, name: &str, url: &str) -> std::io::Result<()> {
        // Under its name at once and whole: somebody may be polling for it.
        let fresh = self.path(&format!("{name}.new"));
        std::fs::write(&fresh, format!("{url}\n"))?;
        std::fs::rename(&fresh, self.path(name))
    }

    /// Says in a file what certificate is shown there. Errors: cannot be written.
    pub(crate) fn publish_certificate(&self, pem: &str) -> std::io::Result<()> {
        self.publish(super::client::OWN_CERTIFICATE, pem.trim_end())
    }

    /// Brings what the write-ahead logs of these files have into the files: after an orderly end a file is whole without its log.
    pub(crate) async fn fold_logs(&self, names: &'static [&'static str]) {
        let files: Vec<PathBuf> = names.iter().map(|name| self.path(name)).filter(|file| file.exists()).collect();
        supervise::blocking(move || {
            for file in files {
                if let Err(error) = database::fold_log(&file) {
                    tracing::warn!(%error, "a write-ahead log is left; the next start reads it");
                }
            }
        })
        .await;
    }

    /// Nobody is there any more.
    pub(crate) fn unpublish(&self, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
    }
}

/// The text that says whose a data directory is; `None` when it is none.
pub(super) fn owner_of(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join("owner")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Takes the lock of a directory that is there. Errors: it cannot be taken; `held` says so when somebody has it.
fn lock(dir: &Path, held: impl FnOnce() -> String) -> Result<File, Failure> {
    let failed = |error: std::io::Error| {
        Failure::unavailable(format!(
            "data directory {}: cannot be locked: {error}; choose another with --data-dir, or correct its permissions",
            dir.display()
        ))
    };
    let lock = private(dir.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Failure::unavailable(held())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn private(path: PathBuf) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A short text that is made once and kept in a file of its own; true when it was made now.
fn kept(path: &Path, make: impl FnOnce() -> String) -> std::io::Result<(String, bool)> {
    let mut text = String::new();
    let mut file = private(path.to_owned())?;
    file.read_to_string(&mut text)?;
    if !text.trim().is_empty() {
        return Ok((text.trim().to_owned(), false));
    }
    let text = make();
    writeln!(file, "{text}")?;
    file.sync_all()?;
    Ok((text, true))
}

/// 256 random bits, with a prefix by which a leaked one is recognised.
fn new_key() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("jck_{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_process_holds_it_and_what_is_made_stays_and_is_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("data");
        let first = Home::open(&path).expect("opens");
        let (key, new) = first.admin_key().expect("is made");
        assert!(new && key.len() == 68);
        assert!(Home::open(&path).err().expect("is held").to_string().contains("held by another"));
        let owner = first.owner.clone();
        drop(first);
        let again = Home::open(&path).expect("opens again");
        assert!(again.owner == owner && again.admin_key().expect("is there") == (key, false));
        let mode = std::fs::metadata(path.join("admin.key")).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
