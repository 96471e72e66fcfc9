//! Programs that a test makes and then runs.
//!
//! A file that somebody has open for writing cannot be run ("Text file busy"), and each process that another thread starts holds, until it
//! has become its program, all files of this one. So this process never opens such a file: another writes it, and has ended when it is used.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes a program with this content and mode. One that is there is replaced.
pub(crate) fn put(path: &Path, content: impl AsRef<[u8]>, mode: u32) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "rm -f -- \"$1\" && cat > \"$1\" && chmod \"$2\" \"$1\"", "sh"])
        .arg(path)
        .arg(format!("{mode:o}"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("the shell runs");
    writer.stdin.take().expect("is piped").write_all(content.as_ref()).expect("the writer takes it");
    assert!(writer.wait().expect("is a child").success(), "{} is not written", path.display());
}
