//! Files beside the settings that say what may be done: who can write one rules this host, so whose it is is looked at before what is in it.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Tells one state of a file from the next: file system and inode, since an editor may put a new file in the place of the old one; the time of
/// its last change, of owner and mode too, which nobody can set back; and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(u64, u64, i64, i64, u64);

impl Mark {
    /// Of the file as it is; none when there is none.
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::of)
    }

    fn of(meta: &Metadata) -> Self {
        Self(meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.size())
    }
}

/// Whose word a file has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The operator's: root's or this user's own, and nobody else can write it.
    Operator,
    /// The operator's, and nobody else can read it either.
    Secret,
    /// The operator's, and strangers cannot read it; its group may.
    Kept,
    /// Anybody's, as nothing is run by it.
    Anybody,
}

/// What a file was when it was opened, and its text; of at most `largest` bytes. `or` is what helps beside correcting it.
/// Errors: why it is not read, and what helps.
pub fn read(path: &Path, largest: u64, whose: Whose, or: &str) -> (Option<Mark>, Result<String, (String, String)>) {
    let mut seen = None;
    let text = bytes(path, largest, whose, or, &mut seen).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| ("it is no text".to_owned(), format!("correct it, or {or}")))
    });
    (seen, text)
}

fn bytes(
    path: &Path,
    largest: u64,
    whose: Whose,
    or: &str,
    seen: &mut Option<Mark>,
) -> Result<Vec<u8>, (String, String)> {
    let unreadable = |reason: String| (reason, format!("correct its path, owner and mode, or {or}"));
    let failed = |error: std::io::Error| unreadable(error.to_string());
    // A pipe would be waited for at the opening already.
    let wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(wait).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let before = Mark::of(&meta);
    *seen = Some(before);
    if !meta.is_file() {
        return Err(unreadable("it is no file".to_owned()));
    }
    trusted(whose, meta.uid(), meta.mode(), rustix::process::geteuid().as_raw())?;
    if meta.size() > largest {
        return Err(unreadable(format!("it is larger than {largest} bytes")));
    }
    // In one piece from the beginning: a buffer that grows leaves copies of a secret behind.
    let mut bytes = Vec::with_capacity(usize::try_from(meta.size()).unwrap_or(0) + 2);
    (&file).take(meta.size() + 1).read_to_end(&mut bytes).map_err(failed)?;
    // The half of a policy may be a policy too. What it became is read at the next look.
    if Mark::of(&file.metadata().map_err(failed)?) != before || bytes.len() as u64 != meta.size() {
        let fix = "write a file beside it and rename that to it".to_owned();
        return Err(("it was written while it was read".to_owned(), fix));
    }
    Ok(bytes)
}

/// Who can write the file says what runs on this host.
fn trusted(whose: Whose, owner: u32, mode: u32, own: u32) -> Result<(), (String, String)> {
    if whose == Whose::Anybody {
        return Ok(());
    }
    if owner != 0 && owner != own {
        return Err((
            format!("user id {owner} owns it, and can let anything run here"),
            "run chown root on it".to_owned(),
        ));
    }
    if mode & 0o022 != 0 {
        let reason = format!("others than its owner can write it (mode {:04o})", mode & 0o7777);
        return Err((reason, "run chmod go-w on it".to_owned()));
    }
    if whose == Whose::Kept && mode & 0o007 != 0 {
        let reason = format!("strangers can read it (mode {:04o})", mode & 0o7777);
        return Err((reason, "run chmod o-rwx on it".to_owned()));
    }
    if whose == Whose::Secret && mode & 0o077 != 0 {
        let reason = format!("others than its owner can read it (mode {:04o})", mode & 0o7777);
        return Err((reason, "run chmod 600 on it".to_owned()));
    }
    Ok(())
}

/// The bytes of a secret, as [`read`] has text. Errors: as there.
pub fn read_secret(path: &Path, largest: u64, or: &str) -> Result<crate::job::Secret, (String, String)> {
    bytes(path, largest, Whose::Secret, or, &mut None).map(crate::job::Secret::new)
}

/// The same of one that its group may read, too: as Kubernetes mounts secrets, and as Debian's group ssl-cert has keys.
pub fn read_kept(path: &Path, largest: u64, or: &str) -> Result<crate::job::Secret, (String, String)> {
    bytes(path, largest, Whose::Kept, or, &mut None).map(crate::job::Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_file_it_is_is_looked_at() {
        for (owner, own, good) in [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false), (7, 8, false)] {
            assert_eq!(trusted(Whose::Operator, owner, 0o644, own).is_ok(), good, "of {owner}, for {own}");
            assert!(trusted(Whose::Anybody, owner, 0o666, own).is_ok());
        }
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)] {
            assert_eq!(trusted(Whose::Secret, 0, mode, 0).is_ok(), good, "{mode:o}");
        }
        for (mode, good) in [(0o600, true), (0o440, true), (0o644, false), (0o660, false), (0o604, false)] {
            assert_eq!(trusted(Whose::Kept, 0, mode, 7).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn a_secret_is_read_whole_and_from_nobody_elses_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key");
        std::fs::write(&path, b"\xff\x00key").expect("writes");
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("sets the mode");
        mode(0o640);
        let (reason, fix) = read_secret(&path, 100, "leave it out").expect_err("the group can read it");
        assert!(reason.contains("mode 0640") && fix.contains("chmod 600"), "{reason}; {fix}");
        mode(0o600);
        assert_eq!(read_secret(&path, 100, "leave it out").expect("reads").expose(), b"\xff\x00key");
        assert!(read_secret(&path, 4, "leave it out").expect_err("is too large").0.contains("larger than 4"));
    }
}
