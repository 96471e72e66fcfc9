//! Small files that are kept whole: read at the start, written anew at each change.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
