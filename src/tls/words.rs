//! Why one side does not believe the other, in sentences: of rustls's errors those that people meet.

use crate::job::UnixMillis;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error, InvalidMessage};

/// What is at the bottom of an error: in words where it is TLS, else the deepest cause, which is the one that says something.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(tls) = tls(cause) {
            return words(tls);
        }
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => return cause.to_string(),
        }
    }
}

/// An error of TLS, by itself or within one of input and output, which hides what it is made of from `source`.
fn tls<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let within = |error: &'a std::io::Error| error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    cause.downcast_ref::<Error>().or_else(|| cause.downcast_ref::<std::io::Error>().and_then(within))
}

fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "no TLS is spoken there; write http://".to_owned(),
        other => format!("TLS: {other}"),
    }
}

fn moment(time: &UnixTime) -> UnixMillis {
    UnixMillis::new(time.as_secs().saturating_mul(1000))
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "its certificate is of an authority that is not trusted here; name the authority's \
             certificate with ca_file (--ca-file), or with SSL_CERT_FILE"
                .to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!(
                "its certificate is over since {}; its operator has to renew it (is this host's clock right?)",
                moment(not_after)
            )
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is good from {} on; is this host's clock right?", moment(not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // As `DnsName("example.com")`, `IpAddress(127.0.0.1)`.
            let name = |name: &String| {
                let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
                inner.trim_end_matches(')').trim_matches('"').to_owned()
            };
            let names: Vec<String> = presented.iter().map(name).collect();
            let expected = expected.to_str();
            let others = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            format!("its certificate is for {others}, not for {expected}; write the address with a name that it is for")
        }
        CertificateError::ApplicationVerificationFailure => {
            "it shows another certificate than the process of this data directory".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is one of an authority (CA:TRUE) and not of a server; have one made with CA:FALSE"
                .to_owned()
        }
        other => format!("its certificate is not good: {other}"),
    }
}
