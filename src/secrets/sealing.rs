//! How values that came with a job lie in a database: sealed, with a key that is not in it.
//!
//! XChaCha20-Poly1305: its nonces are long enough to be drawn, so nobody has to count. A value is bound to its job and its name, so that one
//! cannot be put in another's place. The file of keys has one on each line, `number key`: the last one seals, all of them open. A new key is
//! a new line; an old one may go when no job waits that was sealed with it.

use crate::job::{JobId, Secret};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// Of a number.
const NUMBER_BYTES: usize = 4;

/// Keys that seal and open. Not to be seen.
pub struct Keyring {
    keys: BTreeMap<u32, XChaCha20Poly1305>,
    current: u32,
}

/// A file of keys that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("file of keys {path}: {reason}; {fix}")]
pub struct BadKeys {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
    /// What to do.
    pub fix: &'static str,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Keyring {
    /// A key that ends with the process.
    pub fn random() -> Self {
        Self { keys: BTreeMap::from([(1, cipher(&drawn()))]), current: 1 }
    }

    /// The keys of a file; one that is not there is made, for its owner alone. Errors: it cannot be read or made, others may read it, or a
    /// line of it is no key.
    pub fn load_or_make(path: &Path) -> Result<Self, BadKeys> {
        let bad = |reason: String, fix| BadKeys { path: path.to_owned(), reason, fix };
        let outside = |error: io::Error| bad(error.to_string(), "see that its folder is there and can be written");
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).map_err(outside)?,
            Err(error) => return Err(outside(error)),
        };
        let mode = std::fs::metadata(path).map_err(outside)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(bad(format!("others may read it (mode {:o})", mode & 0o777), "chmod 600 it"));
        }
        Self::read(&text).map_err(|reason| bad(reason, "write a number and 64 hex digits on each line, or restore it"))
    }

    fn read(text: &str) -> Result<Self, String> {
        let (mut keys, mut current) = (BTreeMap::new(), None);
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let (number, key) = line
                .split_once(' ')
                .and_then(|(number, key)| Some((number.parse::<u32>().ok()?, unhex(key.trim())?)))
                .ok_or_else(|| format!("line {at} is no key"))?;
            if keys.insert(number, cipher(&key)).is_some() {
                return Err(format!("line {at}: {number} is the number of another key"));
            }
            current = Some(number);
        }
        let current = current.ok_or("there is no key in it")?;
        Ok(Self { keys, current })
    }

    /// Seals a secret of a job.
    pub fn seal(&self, job: JobId, name: &str, secret: &Secret) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
        let payload = Payload { msg: secret.expose(), aad: &bound(job, name) };
        let sealed = self.keys[&self.current].encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.expect("a secret is far shorter than what can be sealed");
        [&self.current.to_le_bytes()[..], &nonce, &sealed].concat()
    }

    /// Opens it. Errors: why it cannot be, in words.
    pub fn open(&self, job: JobId, name: &str, sealed: &[u8]) -> Result<Secret, String> {
        let parts = sealed.split_first_chunk::<NUMBER_BYTES>().and_then(|(number, rest)| {
            let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>()?;
            Some((u32::from_le_bytes(*number), *nonce, rest))
        });
        let (number, nonce, rest) = parts.ok_or("it is cut off")?;
        let key =
            self.keys.get(&number).ok_or_else(|| format!("it was sealed with key {number}, which is not there"))?;
        let opened = key.decrypt(&XNonce::from(nonce), Payload { msg: rest, aad: &bound(job, name) });
        opened.map(Secret::new).map_err(|_| format!("it is not what was sealed with key {number} for this job"))
    }
}

/// What a sealed value is bound to.
fn bound(job: JobId, name: &str) -> Vec<u8> {
    format!("jobcell secret 1\0{job}\0{name}").into_bytes()
}

fn cipher(key: &[u8; KEY_BYTES]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

fn drawn() -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *key).expect("the kernel gives random bytes");
    key
}

fn make(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(128));
    text.push_str("1 ");
    for byte in drawn().iter() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
        }
    }
    text.push('\n');
    // Whole or not at all: a key of which a part is missing has sealed nothing, and half a file would keep the next start from going on.
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    // What is sealed with it must not outlive it: its name has to be on the disk as well.
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(text)
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::UnixMillis;

    fn job() -> JobId {
        JobId::new(UnixMillis::new(1))
    }

    #[test]
    fn what_is_sealed_opens_for_its_job_and_name_only() {
        let (keys, job, other) = (Keyring::random(), job(), job());
        let secret = Secret::new(b"hunter2".to_vec());
        let sealed = keys.seal(job, "TOKEN", &secret);
        assert!(!sealed.windows(7).any(|part| part == b"hunter2"));
        assert_ne!(sealed, keys.seal(job, "TOKEN", &secret), "no two are alike");
        assert_eq!(keys.open(job, "TOKEN", &sealed).expect("opens").expose(), b"hunter2");
        assert!(keys.open(other, "TOKEN", &sealed).is_err() && keys.open(job, "OTHER", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keys.open(job, "TOKEN", &changed).is_err() && keys.open(job, "TOKEN", &sealed[..at]).is_err());
        }
        assert!(Keyring::random().open(job, "TOKEN", &sealed).is_err());
        assert_eq!(format!("{keys:?}"), "Keyring { current: 1, .. }");
    }

    #[test]
    fn the_file_is_made_once_and_for_its_owner_and_a_new_line_is_a_new_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secrets.key");
        let (first, job) = (Keyring::load_or_make(&path).expect("made"), job());
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
        let secret = Secret::new(b"hunter2".to_vec());
        let old = first.seal(job, "A", &secret);
        let again = Keyring::load_or_make(&path).expect("read");
        assert!(again.open(job, "A", &old).is_ok());
        let mut text = std::fs::read_to_string(&path).expect("is there");
        text.push_str(&format!("# the next one\n\n2 {}\n", "ab".repeat(32)));
        std::fs::write(&path, &text).expect("writes");
        let both = Keyring::load_or_make(&path).expect("read");
        let new = both.seal(job, "A", &secret);
        assert!(both.open(job, "A", &old).is_ok() && both.open(job, "A", &new).is_ok());
        let said = first.open(job, "A", &new).expect_err("not its key");
        assert_eq!(said, "it was sealed with key 2, which is not there");
    }

    #[test]
    fn a_bad_file_is_told_of_without_what_is_in_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secrets.key");
        let key = "ab".repeat(32);
        for (text, mode, wanted) in [
            (format!("1 {key}\n"), 0o644, "others may read it (mode 644)"),
            (String::new(), 0o600, "there is no key in it"),
            (key.clone(), 0o600, "line 1 is no key"),
            (format!("1 {key}\n2 {}", &key[1..]), 0o600, "line 2 is no key"),
            (format!("1 {key}\n1 {key}"), 0o600, "line 2: 1 is the number of another key"),
        ] {
            std::fs::write(&path, text).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("sets");
            let said = Keyring::load_or_make(&path).expect_err("refused").to_string();
            assert!(said.contains(wanted) && !said.contains("abab"), "{said}");
        }
        let said = Keyring::load_or_make(Path::new("/nowhere/at/all")).expect_err("refused").to_string();
        assert!(said.contains("/nowhere/at/all") && said.contains("folder"), "{said}");
    }
}
