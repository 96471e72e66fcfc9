//! Whose host keys are believed: known_hosts, fingerprints, and certificates of authorities.
//!
//! Owns the decision, and fails closed: what cannot be read, is not known, or is in doubt is not believed. Pure; the files are read by
//! [`files`]. Must never learn a key by itself: an operator accepts it.

mod certificate;
mod entry;
mod files;

pub(super) use certificate::moment;
pub(super) use files::KnownCache;

use entry::{Entry, Marker};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{Algorithm, EcdsaCurve, Fingerprint, HashAlg};
use russh::keys::{PublicKey, PublicKeyOrCertificate};

/// A host key must have as many bits, if it is RSA.
const RSA_BITS: usize = 2048;

/// Every line of all files of known hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownHosts {
    entries: Vec<Entry>,
}

/// The host that shows a key, under the names it may be known by.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// As it stands in known_hosts: `web1`, `[web1]:2222`.
    pub(super) name: String,
    /// The name alone, where that is another one: it is believed under it too, never distrusted.
    pub(super) plain: String,
    /// SHA-256; no other key will do.
    pub(super) pinned: Vec<Fingerprint>,
}

/// Why a host key is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Distrust {
    /// Nobody accepted a key of this host.
    Unknown,
    /// Another key is known.
    Changed(String),
    /// The key, or the authority that signed for it, was revoked.
    Revoked(String),
    /// It is none of the fingerprints of the inventory.
    NotPinned,
    /// An authority signed for it, and its certificate does not hold.
    Certificate(String),
    /// It is too short to prove anything.
    Weak(usize),
}

/// What is known of a host before it shows its key, for asking it for a key that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Types {
    /// Of keys, as often as they are known.
    pub(super) plain: Vec<Algorithm>,
    /// An authority is known that may sign for it.
    pub(super) authority: bool,
}

impl Asked {
    /// The host at `host` and `port`, or by the name that it is known as.
    pub(super) fn new(host: &str, port: u16, known_as: Option<&str>, pinned: Vec<Fingerprint>) -> Self {
        // Where an operator says the name, the port is not part of it: as OpenSSH's HostKeyAlias.
        let (name, plain) = match known_as {
            Some(name) => (name.to_owned(), name.to_owned()),
            None => (super::route::address(host, port), host.to_owned()),
        };
        Self { name: name.to_ascii_lowercase(), plain: plain.to_ascii_lowercase(), pinned }
    }
}

impl KnownHosts {
    /// Adds what stands in a file. Errors: it says that a key is revoked, in a line that cannot be read.
    pub(super) fn add(&mut self, file: &str, text: &str) -> Result<(), String> {
        self.entries.extend(entry::read(file, text)?);
        Ok(())
    }

    /// How many lines there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn named<'a>(&'a self, name: &'a str, marker: Marker) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.marker == marker && entry.names.matches(name))
    }

    /// What is known of a host.
    pub(super) fn types(&self, asked: &Asked) -> Types {
        let mut types = Types::default();
        if asked.pinned.is_empty() {
            types.authority = self.authorities(asked).next().is_some();
            for entry in self.named(&asked.name, Marker::Plain).chain(self.named(&asked.plain, Marker::Plain)) {
                let kind = entry.key.algorithm();
                if !types.plain.contains(&kind) {
                    types.plain.push(kind);
                }
            }
        }
        types
    }

    fn authorities<'a>(&'a self, asked: &'a Asked) -> impl Iterator<Item = &'a Entry> {
        self.named(&asked.name, Marker::Authority).chain(self.named(&asked.plain, Marker::Authority))
    }

    /// Decides on a key that the host has proved to have, at this time of the world in seconds. Errors: why it is not believed.
    pub(super) fn check(&self, asked: &Asked, shown: &PublicKeyOrCertificate, now: u64) -> Result<(), Distrust> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data(),
            PublicKeyOrCertificate::Certificate(certificate) => certificate.public_key(),
        };
        self.not_revoked(asked, key)?;
        strong(key)?;
        if !asked.pinned.is_empty() {
            let shown = key.fingerprint(HashAlg::Sha256);
            return if asked.pinned.contains(&shown) { Ok(()) } else { Err(Distrust::NotPinned) };
        }
        if let PublicKeyOrCertificate::Certificate(certificate) = shown {
            self.not_revoked(asked, certificate.signature_key())?;
            if self.authorities(asked).any(|entry| entry.key == *certificate.signature_key()) {
                return certificate::holds(certificate, &asked.plain, now).map_err(Distrust::Certificate);
            }
            // Of an authority that is not known, the certificate says nothing; the key in it may be known by itself.
        }
        self.known(asked, key)
    }

    fn known(&self, asked: &Asked, key: &KeyData) -> Result<(), Distrust> {
        let mut other = None;
        for entry in self.named(&asked.name, Marker::Plain) {
            if entry.key == *key {
                return Ok(());
            }
            // One of the same type says more than another.
            if other.is_none() || entry.key.algorithm() == key.algorithm() {
                other = Some(entry);
            }
        }
        if let Some(entry) = other {
            let kind = entry.key.algorithm();
            return Err(Distrust::Changed(format!("{} has an {} key", entry.place, kind.as_str())));
        }
        if asked.name != asked.plain && self.named(&asked.plain, Marker::Plain).any(|entry| entry.key == *key) {
            return Ok(());
        }
        Err(Distrust::Unknown)
    }

    fn not_revoked(&self, asked: &Asked, key: &KeyData) -> Result<(), Distrust> {
        let mut revoked = self.named(&asked.name, Marker::Revoked).chain(self.named(&asked.plain, Marker::Revoked));
        match revoked.find(|entry| entry.key == *key) {
            Some(entry) => Err(Distrust::Revoked(entry.place.clone())),
            None => Ok(()),
        }
    }
}

/// Keys that no type or length makes worthless.
fn strong(key: &KeyData) -> Result<(), Distrust> {
    match key {
        KeyData::Rsa(rsa) => {
            let bits = rsa.key_size() as usize;
            if bits < RSA_BITS { Err(Distrust::Weak(bits)) } else { Ok(()) }
        }
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => Ok(()),
        _ => Err(Distrust::Weak(0)),
    }
}

/// Types of host keys that are taken, the best first.
pub(super) fn all_types() -> Vec<Algorithm> {
    let ecdsa = |curve| Algorithm::Ecdsa { curve };
    let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
    vec![
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        rsa(HashAlg::Sha512),
        rsa(HashAlg::Sha256),
    ]
}

/// All types, those that are known of a host first: asked like this, it shows a key that is known if it has it.
pub(super) fn preferred_types(known: &Types) -> Vec<Algorithm> {
    let is_known = |kind: &Algorithm| {
        known.plain.iter().any(|known| match (known, kind) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (known, kind) => known == kind,
        })
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = all_types().into_iter().partition(is_known);
    first.extend(rest);
    first
}

/// A key's fingerprint, and its type for people: `ED25519 SHA256:…`.
pub(super) fn described(key: &PublicKey) -> String {
    format!("{} {}", short_type(&key.algorithm()), key.fingerprint(HashAlg::Sha256))
}

fn short_type(kind: &Algorithm) -> String {
    match kind {
        Algorithm::Ed25519 => "ED25519".to_owned(),
        Algorithm::Ecdsa { .. } => "ECDSA".to_owned(),
        Algorithm::Rsa { .. } => "RSA".to_owned(),
        other => other.as_str().to_owned(),
    }
}

impl Distrust {
    /// The sentence for whoever has to do something about it.
    pub(super) fn sentence(&self, host: &str, scan: &str, key: &str) -> String {
        let accept = format!(
            "run `jobcell ssh scan {scan}`, compare the fingerprints with what the host's operator says, and put its lines into a file of known_hosts"
        );
        match self {
            Self::Unknown => format!("the host key of {host} is not known ({key}); {accept}"),
            Self::Changed(place) => format!(
                "the host key of {host} is another one than was accepted ({key}, and {place}): somebody may be in between; \
                 if its operator says that it changed, remove that line, then {accept}"
            ),
            Self::Revoked(place) => {
                format!("the host key of {host} was revoked ({key}, by {place}); give the host a new key")
            }
            Self::NotPinned => format!(
                "the host key of {host} is none of the fingerprints that the inventory has for it ({key}): somebody may be in between; \
                 if its operator says that it changed, correct `fingerprints` there"
            ),
            Self::Certificate(why) => {
                format!(
                    "the certificate of the host key of {host} does not hold: {why} ({key}); give the host a new certificate"
                )
            }
            Self::Weak(0) => {
                format!("the host key of {host} is of a type that is not taken ({key}); give it an ED25519 key")
            }
            Self::Weak(bits) => {
                format!(
                    "the host key of {host} has {bits} bits, and fewer than {RSA_BITS} prove nothing ({key}); give it another key"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
