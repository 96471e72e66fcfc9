//! Why one side does not believe the other, in sentences: of rustls's errors those that people meet.

use crate::job::UnixMillis;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error, InvalidMessage};

/// What is at the bottom of an error: in words where it is TLS, else the deepest cause, which is the one that says something.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(tls) = cause.downcast_ref::<Error>() {
            return words(tls);
        }
        // One of input and output hides what it is made of from `source`.
        let deeper = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => cause.source(),
        };
        match deeper {
            Some(deeper) => cause = deeper,
            None => return cause.to_string(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_is_wrong_is_found_however_deep_it_lies() {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let deep = io::Error::other(io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown.clone())));
        for error in [&deep as &(dyn std::error::Error + 'static), &unknown] {
            assert!(reason(error).contains("an authority that is not trusted here"), "{}", reason(error));
        }
        assert_eq!(reason(&io::Error::other("the link is down")), "the link is down");
        assert_eq!(
            reason(&Error::InvalidMessage(InvalidMessage::InvalidContentType)),
            "no TLS is spoken there; write http://"
        );
        let name = CertificateError::NotValidForNameContext {
            expected: "h.example".try_into().expect("a name"),
            presented: vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()],
        };
        let said = reason(&Error::InvalidCertificate(name));
        assert!(said.starts_with("its certificate is for a.example, 127.0.0.1, not for h.example;"), "{said}");
    }
}
