//! Whom a client believes, and the connection that WebSockets are opened on.

use super::{certificate, provider, words};
use crate::config::operator_file::{Whose, read};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Of a file of authorities: all that a system trusts have some hundred kilobytes.
const LARGEST: u64 = 16 << 20;

/// A connection, with TLS or without.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Whose certificates are believed.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Nobody's: there is no TLS.
    Nobody,
    /// Those of the authorities that the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
    System,
    /// Those of the authorities in this file, and no others.
    File(&'a Path),
    /// This one alone, in PEM, whatever name it is for.
    Exactly(&'a str),
}

/// The client's side.
#[derive(Debug, Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Believes these. Errors: they cannot be read, in words.
    pub fn new(trust: Trust<'_>) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = match trust {
            Trust::Nobody => builder.with_root_certificates(RootCertStore::empty()),
            Trust::System => builder.with_root_certificates(system()?),
            Trust::File(path) => builder.with_root_certificates(file(path)?),
            Trust::Exactly(pem) => {
                let own = certificate::read_all(pem.as_bytes())?.swap_remove(0);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Exactly(own)))
            }
        };
        Ok(Self(Arc::new(builder.with_no_client_auth())))
    }

    /// For a server at this address: nobody is believed where no TLS is spoken, and the system's authorities where no file names others.
    /// Errors: as [`ClientTls::new`].
    pub fn for_url(url: &str, ca_file: Option<&Path>) -> Result<Self, String> {
        match ca_file {
            _ if !url.starts_with("https://") => Self::new(Trust::Nobody),
            Some(file) => Self::new(Trust::File(file)),
            None => Self::new(Trust::System),
        }
    }

    /// For an HTTP client.
    pub fn config(&self) -> ClientConfig {
        self.0.as_ref().clone()
    }

    /// Connects to a host, with TLS or without. The caller sets a deadline. Errors: it cannot be reached or is not believed, in words.
    pub async fn connect(&self, secure: bool, host: &str, port: u16) -> Result<Box<dyn Wire>, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        if !secure {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is no name of a host"))?;
        let shaken = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await;
        shaken.map(|stream| Box::new(stream) as Box<dyn Wire>).map_err(|error| words::reason(&error))
    }
}

fn system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some of a system's authorities may be too old to be read; the rest is good.
    let (good, _) = roots.add_parsable_certificates(found.certs);
    if good == 0 {
        let why = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
        return Err(format!(
            "this system's authorities cannot be read ({why}); install ca-certificates, or name a file with ca_file or SSL_CERT_FILE"
        ));
    }
    Ok(roots)
}

fn file(path: &Path) -> Result<RootCertStore, String> {
    let bad = |reason: String| format!("ca_file: {}: {reason}", path.display());
    let (_, text) = read(path, LARGEST, Whose::Operator, "leave ca_file out");
    let text = text.map_err(|(reason, fix)| bad(format!("{reason}; {fix}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificate::read_all(text.as_bytes()).map_err(bad)? {
        roots
            .add(certificate)
            .map_err(|error| bad(format!("one of its certificates is none of an authority: {error}")))?;
    }
    Ok(roots)
}

/// Believes one certificate. Its holder has shown that the key is its own as ever.
#[derive(Debug)]
struct Exactly(CertificateDer<'static>);

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.0 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
