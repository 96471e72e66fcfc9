//! Whether a certificate that a known authority signed holds for a host.

use super::entry::matches;
use russh::keys::Certificate;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::{Algorithm, HashAlg};

/// The certificate says that its key is the host's, now. Errors: why not, in words.
pub(super) fn holds(certificate: &Certificate, host: &str, now: u64) -> Result<(), String> {
    if certificate.cert_type() != CertType::Host {
        return Err("it is for users, not for hosts".to_owned());
    }
    if matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None } | Algorithm::Dsa) {
        return Err("its authority signed it with SHA-1".to_owned());
    }
    if now < certificate.valid_after() {
        return Err(format!("it is not valid yet, but from {} on", moment(certificate.valid_after())));
    }
    if now >= certificate.valid_before() {
        return Err(format!("it was valid until {}", moment(certificate.valid_before())));
    }
    // Without a list it would be valid for every host there is: whoever has one such key could be all of them.
    if certificate.valid_principals().is_empty() {
        return Err("it names no host, and so would stand for every one".to_owned());
    }
    if !certificate.valid_principals().iter().any(|name| matches(&name.to_ascii_lowercase(), host)) {
        let names: Vec<String> =
            certificate.valid_principals().iter().take(5).map(|name| crate::job::shown(name)).collect();
        return Err(format!("it is for {}, not for {host}", names.join(", ")));
    }
    if let Some((name, _)) = certificate.critical_options().iter().next() {
        return Err(format!("it asks for `{}`, which is not known", crate::job::shown(name)));
    }
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    certificate.validate_at(now, [&authority]).map_err(|_| "its signature is not its authority's".to_owned())
}

/// Seconds as a time of the world.
pub(in crate::executor::ssh) fn moment(seconds: u64) -> String {
    crate::job::UnixMillis::new(seconds.saturating_mul(1000)).to_string()
}
