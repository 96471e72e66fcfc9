//! Bytes that nobody is to see.

use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Fewer bytes cannot be masked in a job's output: they would be found everywhere.
pub const SECRET_MIN: usize = 6;
/// Bytes of all secrets of a job together: what is looked for in its output is many times that, and lies in its cell.
pub const SECRETS_BYTES: usize = 64 * 1024;
/// Secrets of a job.
pub const SECRETS_MOST: usize = 1024;
/// Secrets of a job that are files.
pub const SECRET_FILES_MOST: usize = 64;

/// A secret's bytes. Not to be seen in any form but by asking for them; shared by its clones, and overwritten with the last of them.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes. Whoever asks has to see to it that they get nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes count: without the line ends that a file has behind it.
    pub fn len(&self) -> usize {
        trimmed(&self.0).len()
    }

    /// Nothing counts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a variable has it: without the line ends behind it.
    pub fn as_variable(&self) -> &[u8] {
        trimmed(&self.0)
    }

    /// What of it cannot be given to a job, and what to do about it; nothing of it is in the words.
    pub fn unfit(&self, file: bool) -> Option<(String, &'static str)> {
        let len = self.len();
        if len < SECRET_MIN {
            let reason = format!("has {len} bytes, and fewer than {SECRET_MIN} cannot be masked in the job's output");
            return Some((reason, "use a longer one"));
        }
        if self.0.len() > SECRETS_BYTES {
            let reason = format!("has {} bytes; all secrets of a job have at most {SECRETS_BYTES}", self.0.len());
            return Some((reason, "give the job a key, and what it opens in another way"));
        }
        if !file && self.0.contains(&0) {
            return Some(("has a NUL byte, which no variable can have".to_owned(), "add `as: file`"));
        }
        None
    }
}

fn trimmed(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = bytes {
        bytes = rest;
    }
    bytes
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_it_and_what_is_unfit_is_told_without_it() {
        let secret = Secret::new(b"hunter2\r\n".to_vec());
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "Secret(***) Some(\n    Secret(***),\n)");
        assert_eq!((secret.as_variable(), secret.expose(), secret.len()), (&b"hunter2"[..], &b"hunter2\r\n"[..], 7));
        assert_eq!(secret.unfit(false), None);
        for (bytes, file, wanted) in [
            (b"12345\n\n".to_vec(), true, "has 5 bytes, and fewer than 6"),
            (vec![b'x'; SECRETS_BYTES + 1], true, "has 65537 bytes"),
            (b"hunter2\0".to_vec(), false, "has a NUL byte"),
        ] {
            let (reason, _) = Secret::new(bytes).unfit(file).expect("is unfit");
            assert!(reason.contains(wanted) && !reason.contains("12345"), "{reason}");
        }
        assert_eq!(Secret::new(b"hunter2\0".to_vec()).unfit(true), None);
    }
}
