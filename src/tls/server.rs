//! What a server shows: a certificate and its key, from two files, exchanged while it runs.
//!
//! A pair that is not good is refused, at the start and at every look after it; then the last good one stays. Connections that are open keep
//! what they were begun with.

use super::certificate::{self, Validity};
use super::provider;
use crate::config::operator_file::{Mark, Whose, read, read_kept};
use crate::job::UnixMillis;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of a file: a chain has some kilobytes.
const LARGEST: u64 = 1 << 20;

/// What the files held when they were read.
#[derive(Debug)]
struct Pair {
    config: Arc<ServerConfig>,
    own: CertificateDer<'static>,
    until: UnixMillis,
}

type Marks = [Option<Mark>; 2];

/// The last good pair, and how the files were at the last look.
#[derive(Debug)]
struct Held {
    pair: Pair,
    marks: Marks,
    refused: bool,
}

/// The pair of files, and what of them holds.
#[derive(Debug)]
pub struct ServerTls {
    files: [PathBuf; 2],
    held: Mutex<Held>,
}

/// What a look at the files found.
#[derive(Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nobody has touched them.
    Same,
    /// Another pair, or a good one again, which holds from now on.
    Loaded,
    /// They are not good; the last good pair holds. In words.
    Refused(String),
}

impl ServerTls {
    /// Reads certificate and key. Errors: what is wrong with them, and what helps.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let files = [certificate.to_owned(), key.to_owned()];
        let marks = marks(&files);
        let pair = read_pair(&files, UnixMillis::now())?;
        Ok(Self { files, held: Mutex::new(Held { pair, marks, refused: false }) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the files have changed, and takes what is good; `asked` looks whether they have changed or not. Blocks on the files.
    pub fn look(&self, asked: bool) -> Looked {
        let now = marks(&self.files);
        if now == self.held().marks && !asked {
            return Looked::Same;
        }
        let read = read_pair(&self.files, UnixMillis::now());
        let mut held = self.held();
        held.marks = now;
        let was_refused = std::mem::replace(&mut held.refused, read.is_err());
        match read {
            Ok(pair) => {
                let same = pair.own == held.pair.own && !was_refused;
                // Of the same certificate the chain may be another one.
                held.pair = pair;
                if same { Looked::Same } else { Looked::Loaded }
            }
            Err(reason) => Looked::Refused(reason),
        }
    }

    /// For the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.held().pair.config)
    }

    /// When the certificate that holds is over.
    pub fn until(&self) -> UnixMillis {
        self.held().pair.until
    }

    /// The certificate that holds, for clients on this host that believe it and no other.
    pub fn own_pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.held().pair.own);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or("")).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }
}

fn marks(files: &[PathBuf; 2]) -> Marks {
    [Mark::at(&files[0]), Mark::at(&files[1])]
}

fn read_pair([certificate, key]: &[PathBuf; 2], now: UnixMillis) -> Result<Pair, String> {
    let bad = |what: &str, path: &Path, reason: &str| format!("server.tls.{what}: {}: {reason}", path.display());
    let or = "leave server.tls out";
    let (_, text) = read(certificate, LARGEST, Whose::Operator, or);
    let text = text.map_err(|(reason, fix)| bad("cert", certificate, &format!("{reason}; {fix}")))?;
    let chain = certificate::read_all(text.as_bytes()).map_err(|reason| bad("cert", certificate, &reason))?;
    let own = chain[0].clone();
    let Some(Validity { from, until }) = certificate::validity(&own) else {
        return Err(bad("cert", certificate, "its first certificate cannot be read"));
    };
    if until <= now {
        return Err(bad("cert", certificate, &format!("the certificate is over since {until}; have it made anew")));
    }
    if from > now {
        return Err(bad(
            "cert",
            certificate,
            &format!("the certificate is good from {from} on; is this host's clock right?"),
        ));
    }
    let secret = read_kept(key, LARGEST, or).map_err(|(reason, fix)| bad("key", key, &format!("{reason}; {fix}")))?;
    let secret = PrivateKeyDer::from_pem_slice(secret.expose()).map_err(|_| {
        bad("key", key, "there is no private key in it (-----BEGIN PRIVATE KEY-----), or it has a password")
    })?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                bad("key", key, "it is not the key of the certificate; give both of one pair")
            }
            other => bad("key", key, &other.to_string()),
        })?;
    let mut config = config;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Pair { config: Arc::new(config), own, until })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn made(until: i32) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        (params.self_signed(&key).expect("is made").pem(), key.serialize_pem())
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).expect("writes");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("sets the mode");
    }

    #[test]
    fn a_good_pair_is_taken_and_a_bad_one_never_takes_its_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let ((first, first_key), (second, second_key), (over, over_key)) = (made(2090), made(2091), made(2021));
        write(&cert, &first, 0o644);
        write(&key, &first_key, 0o600);
        let tls = ServerTls::load(&cert, &key).expect("is good");
        assert_eq!(tls.own_pem().replace('\n', ""), first.replace(['\r', '\n'], ""));
        assert_eq!(tls.look(false), Looked::Same);
        let refused = |wanted: &str| match tls.look(false) {
            Looked::Refused(reason) => {
                assert!(reason.contains(wanted), "{reason}");
                assert_eq!(tls.until(), "2090-01-01T00:00:00Z".parse().expect("a moment"), "{reason}");
                // It is said once.
                assert_eq!(tls.look(false), Looked::Same);
            }
            other => panic!("{other:?} in place of: {wanted}"),
        };
        write(&cert, &second, 0o644);
        refused("not the key of the certificate");
        write(&cert, "nothing", 0o644);
        refused("no certificate in it");
        write(&cert, &over, 0o644);
        write(&key, &over_key, 0o600);
        refused("over since 2021-01-01");
        write(&cert, &second, 0o644);
        write(&key, &second_key, 0o644);
        refused("strangers can read it");
        write(&key, "", 0o600);
        refused("no private key");
        std::fs::remove_file(&cert).expect("was there");
        refused("server.tls.cert");
        write(&cert, &second, 0o644);
        write(&key, &second_key, 0o600);
        assert_eq!(tls.look(false), Looked::Loaded);
        assert_eq!(tls.until(), "2091-01-01T00:00:00Z".parse().expect("a moment"));
        assert_eq!(tls.look(true), Looked::Same);
        // What is put right again is told, though the certificate is the same.
        write(&cert, "nothing", 0o644);
        assert!(matches!(tls.look(true), Looked::Refused(_)));
        write(&cert, &second, 0o644);
        assert_eq!(tls.look(false), Looked::Loaded);
    }

    #[test]
    fn a_server_does_not_begin_with_a_bad_pair() {
        let dir = tempfile::tempdir().expect("a folder");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        assert!(ServerTls::load(&cert, &key).expect_err("is not there").contains("server.tls.cert"));
        let (over, over_key) = made(2021);
        write(&cert, &over, 0o644);
        write(&key, &over_key, 0o600);
        assert!(ServerTls::load(&cert, &key).expect_err("is over").contains("have it made anew"));
    }
}
