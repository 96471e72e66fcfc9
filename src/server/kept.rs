//! Small files that are kept whole: read at the start, written anew at each change.

use crate::supervise;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads one; one that is not there is empty. Errors: it cannot be read, in words.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, String> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error.to_string()),
    }
}

/// Writes one, whole or not at all. Errors: it cannot be written, in words.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let fresh = path.with_extension("new");
    let text = serde_json::to_vec_pretty(value).map_err(|error| error.to_string())?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    // The name too: what was taken away must not come back with a power cut.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// A map that is kept in such a file. Looking things up waits for no disk, changes come one after the other, and nobody on a thread of the
/// runtime waits for any of it.
#[derive(Debug)]
pub(super) struct Book<V> {
    path: PathBuf,
    kept: Arc<Mutex<BTreeMap<String, V>>>,
    /// Held by whoever changes the file.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl<V: Clone + Serialize + DeserializeOwned + Send + 'static> Book<V> {
    /// Reads the file; one that is not there is empty. Errors: it cannot be read, in words.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let kept = read(&path)?;
        Ok(Self { path, kept: Arc::new(Mutex::new(kept)), changing: Arc::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it now.
    pub(super) fn look(&self) -> MutexGuard<'_, BTreeMap<String, V>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the file, and what is known of it only when that worked. Goes on when the caller is dropped: what is written is what holds.
    /// Errors: those of the change; `failed` makes one of a file that cannot be written.
    pub(super) async fn change<T, E>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, V>) -> Result<T, E>,
        failed: impl FnOnce(String) -> E,
    ) -> Result<T, E> {
        let alone = Arc::clone(&self.changing).lock_owned().await;
        let mut with = self.look().clone();
        let changed = change(&mut with)?;
        let (path, kept) = (self.path.clone(), Arc::clone(&self.kept));
        let written = supervise::spawn("book", async move {
            let _alone = alone;
            let with = supervise::blocking(move || write(&path, &with).map(|()| with)).await?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = with;
            Ok(())
        });
        written.await.unwrap_or_else(|_| Err("it was not written".to_owned())).map_err(failed)?;
        Ok(changed)
    }
}
