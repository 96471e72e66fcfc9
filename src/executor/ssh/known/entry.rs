//! Lines of known_hosts, as sshd(8) describes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PublicKey;
use russh::keys::ssh_key::public::KeyData;
use sha1::Sha1;

/// What a line says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// It is the host's.
    Plain,
    /// It is never to be believed.
    Revoked,
    /// It signs for hosts.
    Authority,
}

/// One line.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) marker: Marker,
    pub(super) names: Names,
    pub(super) key: KeyData,
    /// `file:line`, for people.
    pub(super) place: String,
}

/// Whom a line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// Names with `*` and `?`; those with true exclude.
    Patterns(Vec<(bool, String)>),
    /// One name that only who knows it finds.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Names {
    /// Reads the first field of a line.
    pub(super) fn read(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("|1|") {
            let (salt, hash) = rest.split_once('|')?;
            let (salt, hash) = (STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?);
            return (hash.len() == 20).then_some(Self::Hashed { salt, hash });
        }
        // Another kind of hash is none that can be found.
        if text.starts_with('|') {
            return None;
        }
        let one = |part: &str| match part.strip_prefix('!') {
            Some(rest) => (true, rest.to_ascii_lowercase()),
            None => (false, part.to_ascii_lowercase()),
        };
        Some(Self::Patterns(text.split(',').filter(|part| !part.is_empty()).map(one).collect()))
    }

    /// The line is about this name, in lower case.
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => {
                let hit = |(_, pattern): &&(bool, String)| matches(pattern, name);
                !patterns.iter().filter(|(not, _)| *not).any(|one| hit(&one))
                    && patterns.iter().filter(|(not, _)| !*not).any(|one| hit(&one))
            }
            Self::Hashed { salt, hash } => {
                let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(salt) else { return false };
                mac.update(name.as_bytes());
                mac.verify_slice(hash).is_ok()
            }
        }
    }
}

/// `*` stands for any text, `?` for one character. Linear in the length of both but for the last star.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The lines of one file. One that cannot be read says nothing, and so nobody is believed by it. Errors: one that revokes cannot be read.
pub(super) fn read(file: &str, text: &str) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{file}:{}", at + 1);
        let (marker, rest) = match line.split_once([' ', '\t']) {
            Some(("@revoked", rest)) => (Marker::Revoked, rest),
            Some(("@cert-authority", rest)) => (Marker::Authority, rest),
            Some((word, _)) if word.starts_with('@') => continue,
            _ => (Marker::Plain, line),
        };
        match one(rest.trim_start()) {
            Some((names, key)) => entries.push(Entry { marker, names, key, place }),
            None if marker == Marker::Revoked => {
                return Err(format!("{place} revokes a key and cannot be read; correct the line, or remove it"));
            }
            None => tracing::debug!(%place, "a line of known_hosts says nothing that is understood"),
        }
    }
    Ok(entries)
}

fn one(text: &str) -> Option<(Names, KeyData)> {
    let (names, key) = text.split_once([' ', '\t'])?;
    let key = PublicKey::from_openssh(key.trim_start()).ok()?;
    let names = Names::read(names)?;
    Some((names, key.key_data().clone()))
}
