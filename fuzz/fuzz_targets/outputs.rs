//! What a job writes as its outputs, and the patterns and paths of its files: read or told of, and bounded.
#![no_main]

use jobcell::job::{is_artifact_path, read_outputs};
use jobcell::protocol::wire::matches;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u16, Vec<u8>, Vec<u8>)| {
    let (file, more, pattern, path) = input;
    let (values, problems) = read_outputs(&file, file.len() as u64 + u64::from(more));
    assert!(values.len() <= 256 && problems.len() <= 8);
    assert!(values.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= file.len());
    let _ = matches(&pattern[..pattern.len().min(512)], &path[..path.len().min(4095)]);
    if let Ok(path) = std::str::from_utf8(&path) {
        assert!(!is_artifact_path(path) || !path.split('/').any(|name| name == ".."));
    }
});
