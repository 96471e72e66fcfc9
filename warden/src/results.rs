//! What a job gives back with its end: its last word about how far it came, and the file with its values.
//!
//! Owns how much of that file is taken. Nothing is trusted: it is opened beneath the job's folder, no link is followed, and it is masked before it is told.

use crate::mask::Masker;
use crate::progress::Progress;
use crate::secrets::Secrets;
use crate::sys;
use crate::wire::{MOST_OUTPUTS, OUTPUT_FILE, Results};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// What a job that is over gives back with its end.
pub(crate) fn of(root: &str, progress: &mut Progress, secrets: &Secrets) -> Results {
    let advance = progress.finish(&|bytes| secrets.hide(bytes));
    let mut results = Results { advance, ..Results::default() };
    match outputs(root) {
        Ok((mut bytes, length)) => {
            if let Some(patterns) = &secrets.patterns {
                // Where the file goes on, its end may begin a secret.
                let whole = length <= bytes.len() as u64;
                let kept = Masker::new(Arc::clone(patterns)).pass(&mut bytes, whole);
                bytes.truncate(kept);
            }
            // What is masked is another length; that it is not whole is said by being longer than the most.
            let whole = length <= MOST_OUTPUTS as u64;
            results.outputs_bytes = if whole { bytes.len() as u64 } else { length };
            results.outputs = bytes;
        }
        Err(error) => {
            let code = error.raw_os_error().unwrap_or(sys::EIO);
            results.outputs_error = if code == sys::ENOENT { 0 } else { code };
        }
    }
    results
}

/// The first bytes of the file with the outputs, and how long it is.
fn outputs(root: &str) -> io::Result<(Vec<u8>, u64)> {
    let (root, name) = (File::open(root)?, CString::new(OUTPUT_FILE)?);
    if !sys::look_at(root.as_raw_fd(), &name)?.metadata()?.is_file() {
        return Err(io::Error::from_raw_os_error(sys::EINVAL));
    }
    let file = sys::file_at(root.as_raw_fd(), &name)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.take(MOST_OUTPUTS as u64).read_to_end(&mut bytes)?;
    Ok((bytes, length))
}
