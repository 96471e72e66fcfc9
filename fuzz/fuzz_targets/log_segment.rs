//! A log whose file has anything in it opens or is told to be damaged; what is read of it is in order.
#![no_main]

use jobcell::job::{AttemptId, JobId, UnixMillis};
use jobcell::logstore::LogStore;
use libfuzzer_sys::fuzz_target;
use std::path::{Path, PathBuf};

/// The one segment below a folder.
fn segment(dir: &Path) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { segment(&path) } else { (path.extension()? == "seg").then_some(path) }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let root = std::env::temp_dir().join(format!("jobcell-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    let attempt = AttemptId::new(JobId::new(UnixMillis::new(1)), 1);
    let logs = LogStore::open(&root, 1 << 20).expect("an empty folder");
    drop(logs.create(attempt).expect("creates"));
    drop(logs);
    let path = segment(&root).expect("it was made");
    std::fs::write(&path, bytes).expect("writes");
    let logs = LogStore::open(&root, 1 << 20).expect("opens, whatever its logs are");
    drop(logs.create(attempt));
    if let Ok(mut reader) = logs.reader(attempt)
        && let Ok(frames) = reader.read(1, 1 << 20)
    {
        assert!(frames.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    }
});
