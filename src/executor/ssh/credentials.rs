//! What opens a host, read anew for each connection, so that a rotated key is used without a restart.
//!
//! Owns keys in memory: a key that was decrypted once is kept by the digest of what it was read from. Must never show one, nor put one
//! anywhere else.

mod short;

use super::error::ConnectError;
use super::inventory::{Credential, Place};
use super::known::moment;
use crate::job::{Secret, UnixMillis};
use crate::supervise;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::{Fingerprint, HashAlg};
use russh::keys::{Algorithm, Certificate, PrivateKey};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// For files, and for a key to be decrypted: some are made to take their time.
const DEADLINE: Duration = Duration::from_secs(10);
/// Keys that are kept.
const MOST_KEPT: usize = 256;
/// A larger certificate is none.
const LARGEST_CERTIFICATE: u64 = 64 * 1024;

/// What opens a host.
#[derive(Clone)]
pub(super) enum Opener {
    /// A key, and a certificate for it.
    Key { key: Arc<PrivateKey>, certificate: Option<Box<Certificate>> },
    /// An agent, and which of its keys.
    Agent { socket: PathBuf, fingerprint: Option<Fingerprint> },
    /// A password.
    Password(Secret),
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, .. } => write!(f, "Key({})", key.public_key().fingerprint(HashAlg::Sha256)),
            Self::Agent { socket, .. } => write!(f, "Agent({})", socket.display()),
            Self::Password(_) => f.write_str("Password(***)"),
        }
    }
}

type Kept = ([u8; 32], Arc<PrivateKey>);

/// Keys that were read before, the one used last at the end.
#[derive(Default)]
pub(super) struct KeyCache(Mutex<Vec<Kept>>);

impl KeyCache {
    /// What the credential `name` is now, for `login` to log in with. Errors: why it cannot be had; nothing of it is in the words.
    pub(super) async fn load(
        self: &Arc<Self>,
        name: &str,
        credential: &Credential,
        login: &str,
    ) -> Result<Opener, ConnectError> {
        let (cache, credential, login) = (Arc::clone(self), credential.clone(), login.to_owned());
        let read = supervise::blocking(move || cache.read(&credential, &login));
        let failed = |why: String| ConnectError::Login(format!("credential `{name}`: {why}"));
        match tokio::time::timeout(DEADLINE, read).await {
            Ok(read) => read.map_err(failed),
            Err(_) => Err(failed(format!("it could not be read within {} s", DEADLINE.as_secs()))),
        }
    }

    fn read(&self, credential: &Credential, login: &str) -> Result<Opener, String> {
        match credential {
            Credential::Key { key, passphrase, certificate } => {
                let key = self.key(key, passphrase.as_ref())?;
                let certificate = certificate.as_deref().map(|path| read_certificate(path, &key, login)).transpose()?;
                Ok(Opener::Key { key, certificate: certificate.map(Box::new) })
            }
            Credential::Agent { socket, fingerprint } => {
                Ok(Opener::Agent { socket: socket.clone(), fingerprint: *fingerprint })
            }
            Credential::Password(place) => place.read().map(Opener::Password),
        }
    }

    fn key(&self, key: &Place, passphrase: Option<&Place>) -> Result<Arc<PrivateKey>, String> {
        let (text, passphrase) = (key.read()?, passphrase.map(Place::read).transpose()?);
        let mut hash = Sha256::new();
        hash.update((text.expose().len() as u64).to_le_bytes());
        hash.update(text.expose());
        hash.update([u8::from(passphrase.is_some())]);
        hash.update(passphrase.as_ref().map_or(&[][..], Secret::as_variable));
        let digest: [u8; 32] = hash.finalize().into();
        if let Some(key) = self.kept(&digest) {
            return Ok(key);
        }
        let key = Arc::new(private_key(&text, passphrase.as_ref())?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.remove(0);
        }
        kept.push((digest, Arc::clone(&key)));
        Ok(key)
    }

    fn kept(&self, digest: &[u8; 32]) -> Option<Arc<PrivateKey>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == digest)?;
        let found = kept.remove(at);
        let key = Arc::clone(&found.1);
        kept.push(found);
        Some(key)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().expect("nobody panics").len()
    }
}

/// Reads a private key: PEM (PKCS#1, PKCS#8, SEC1) or OpenSSH, or base64 around one of them. Errors: why it is none.
fn private_key(secret: &Secret, passphrase: Option<&Secret>) -> Result<PrivateKey, String> {
    let text = pem(secret)?;
    let passphrase = passphrase
        .map(|secret| std::str::from_utf8(secret.as_variable()))
        .transpose()
        .map_err(|_| "its passphrase is no text".to_owned())?;
    let read = russh::keys::decode_secret_key(&text, passphrase);
    let read = read.or_else(|error| match short::whole(&text) {
        Some(text) => russh::keys::decode_secret_key(&text, passphrase),
        None => Err(error),
    });
    let key = read.map_err(|error| {
        // The library's words name positions and algorithms, and no contents; these three are what people get wrong.
        match (error, passphrase) {
            (russh::keys::Error::KeyIsEncrypted, None) => {
                "the key is encrypted; name its passphrase with `passphrase_file`".to_owned()
            }
            (_, None) if text.contains("ENCRYPTED") => {
                "the key is encrypted; name its passphrase with `passphrase_file`".to_owned()
            }
            (error, Some(_)) if is_encrypted(&text) => {
                format!("the key cannot be decrypted, so the passphrase is not its own ({error})")
            }
            (error, _) => format!("it is no private key that is understood ({error}); give an ED25519, ECDSA or RSA key as PEM or OpenSSH writes it"),
        }
    })?;
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => Ok(key),
        other => Err(format!("it is a key of type {}; give an ED25519, ECDSA or RSA key", other.as_str())),
    }
}

fn is_encrypted(text: &str) -> bool {
    text.contains("ENCRYPTED") || PrivateKey::from_openssh(text.as_bytes()).is_ok_and(|key| key.is_encrypted())
}

/// The text of a key, without what may be wrapped around it.
fn pem(secret: &Secret) -> Result<Zeroizing<String>, String> {
    let none = || "it is neither a key as PEM or OpenSSH writes it nor base64 of one".to_owned();
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN ")).map(normal);
    if let Some(found) = text(secret.expose()) {
        return Ok(found);
    }
    let mut packed = Zeroizing::new(Vec::with_capacity(secret.expose().len()));
    packed.extend(secret.expose().iter().copied().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; packed.len()]);
    let len = STANDARD.decode_slice(&*packed, &mut bytes).map_err(|_| none())?;
    text(&bytes[..len]).ok_or_else(none)
}

/// Lines end as the reader wants them, whatever a variable or an editor made of them.
fn normal(text: &str) -> Zeroizing<String> {
    let mut lines = Zeroizing::new(String::with_capacity(text.len() + 1));
    for line in text.trim().lines() {
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// A certificate for `key` and `login` that holds now. Errors: why it does not.
fn read_certificate(path: &Path, key: &PrivateKey, login: &str) -> Result<Certificate, String> {
    use crate::config::operator_file::{Whose, read};
    let (_, text) = read(path, LARGEST_CERTIFICATE, Whose::Operator, "leave certificate_file out");
    let told = |reason: String| format!("certificate {}: {reason}", path.display());
    let text = text.map_err(|(reason, fix)| told(format!("{reason}; {fix}")))?;
    let certificate = Certificate::from_openssh(text.trim()).map_err(|error| told(format!("it is none ({error})")))?;
    holds(&certificate, key, login, UnixMillis::now().as_u64() / 1000).map_err(told)?;
    Ok(certificate)
}

/// The host would say no more than that the login failed.
fn holds(certificate: &Certificate, key: &PrivateKey, login: &str, now: u64) -> Result<(), String> {
    if certificate.cert_type() != CertType::User {
        return Err("it is for hosts, not for users".to_owned());
    }
    if certificate.public_key() != key.public_key().key_data() {
        return Err("it is for another key".to_owned());
    }
    if now < certificate.valid_after() {
        return Err(format!("it is not valid yet, but from {} on", moment(certificate.valid_after())));
    }
    if now >= certificate.valid_before() {
        return Err(format!("it was valid until {}; have a new one signed", moment(certificate.valid_before())));
    }
    let names = certificate.valid_principals();
    if !names.is_empty() && !names.iter().any(|name| name == login) {
        let shown: Vec<String> = names.iter().take(5).map(|name| crate::job::shown(name)).collect();
        // A host may map principals to logins of its own, so this is no more than a word in its log.
        tracing::debug!(principals = shown.join(", "), %login, "the certificate does not name the login");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
