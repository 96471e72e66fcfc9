//! Certificates in PEM files, and from when to when one is good. Reads no more of a certificate than that: the rest is rustls's to judge.

use crate::job::UnixMillis;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// All certificates of a text, the server's own first. Errors: there is none, or it is damaged.
pub(super) fn read_all(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate in it (-----BEGIN CERTIFICATE-----)".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("it is no PEM file: {error}")),
    }
}

/// From when to when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: UnixMillis,
    pub(super) until: UnixMillis,
}

/// Of a certificate; none for what is no certificate.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let mut all: &[u8] = certificate;
    let mut outer = within(&mut all, SEQUENCE)?;
    let mut fields = within(&mut outer, SEQUENCE)?;
    // The version, which may be left out, then number, algorithm and issuer.
    if element(&mut fields)?.0 == VERSION {
        element(&mut fields)?;
    }
    element(&mut fields)?;
    element(&mut fields)?;
    let mut times = within(&mut fields, SEQUENCE)?;
    Some(Validity { from: moment(element(&mut times)?)?, until: moment(element(&mut times)?)? })
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The next element of DER, as tag and content.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((tag, content))
}

fn within<'a>(input: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    element(input).filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
}

/// `YYMMDDhhmmssZ`, of 1950 to 2049, or `YYYYMMDDhhmmssZ`. What is before 1970 is as good as 1970.
fn moment((tag, text): (u8, &[u8])) -> Option<UnixMillis> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 || !rest.is_ascii() {
        return None;
    }
    if year < 1970 {
        return Some(UnixMillis::new(0));
    }
    let part = |at: usize| &rest[at..at + 2];
    format!("{year:04}-{}-{}T{}:{}:{}Z", part(0), part(2), part(4), part(6), part(8)).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_certificate_is_good_is_read_from_both_forms_of_time() {
        let key = rcgen::KeyPair::generate().expect("a key");
        for (from, until) in
            [((2024, 2, 29), (2031, 12, 31)), ((2049, 12, 31), (2050, 1, 1)), ((1969, 1, 1), (9999, 12, 31))]
        {
            let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
            params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
            let certificate = params.self_signed(&key).expect("is made");
            let moment = |(year, month, day): (i32, u8, u8)| {
                let text = format!("{year:04}-{month:02}-{day:02}T00:00:00Z");
                if year < 1970 { UnixMillis::new(0) } else { text.parse().expect("a moment") }
            };
            let read = validity(certificate.der()).expect("is read");
            assert_eq!(read, Validity { from: moment(from), until: moment(until) });
            // Nothing of it that is cut off makes anything of it but none.
            for length in 0..60 {
                assert_eq!(validity(&CertificateDer::from(certificate.der()[..length].to_vec())), None);
            }
        }
    }

    #[test]
    fn a_file_without_a_certificate_says_so() {
        assert!(read_all(b"").expect_err("is empty").contains("no certificate"));
        assert!(read_all(b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n").is_err());
    }
}
