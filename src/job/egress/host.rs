//! Names and addresses of hosts, in one form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name there is.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// Longest text that is looked at: a name in other letters is longer than it becomes.
const TEXT_MAX: usize = 1024;

/// Where somebody wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name: lowercase ASCII, without a dot at its end, and no number.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Puts a text into the one form. Errors: what is wrong with it. An address is only taken in its usual form: programs do not agree on
    /// what `010.0.0.1`, `0x7f.1` and `2130706433` are.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.len() > TEXT_MAX {
            return Err("is longer than any name");
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or("has a bracket that is not closed")?;
            return v6(inner);
        }
        if text.contains(':') {
            return v6(text);
        }
        let name = idna::domain_to_ascii(text).map_err(|_| "is not a name that a host can have")?;
        let (name, dot) = name.strip_suffix('.').map_or((name.as_str(), false), |name| (name, true));
        if is_number(name.rsplit('.').next().unwrap_or_default()) {
            let address = v4(name)?;
            return if dot || name != text { Err(OTHER_FORM) } else { Ok(Self::Address(address.into())) };
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return Err("is empty or longer than any name");
        }
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        for label in name.split('.') {
            if label.is_empty() || label.len() > LABEL_MAX {
                return Err("has an empty part between dots, or one that is too long");
            }
            if !label.bytes().all(known) {
                return Err("has characters that no host's name has");
            }
        }
        Ok(Self::Name(name.to_owned()))
    }
}

const OTHER_FORM: &str = "is an address in an unusual form; write it as 192.0.2.1";

/// Whether a last part makes the whole an address for some program: digits, or 0x and hex digits.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || (!label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()))
}

fn v4(text: &str) -> Result<Ipv4Addr, &'static str> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.iter().any(|part| part.starts_with("0x")) {
        return Err("is an address in hexadecimal form; write it as 192.0.2.1");
    }
    if parts.iter().any(|part| part.len() > 1 && part.starts_with('0')) {
        return Err("is an address in octal form; write it as 192.0.2.1");
    }
    if parts.len() != 4 {
        return Err("is an address in decimal or short form; write it as 192.0.2.1");
    }
    text.parse().map_err(|_| OTHER_FORM)
}

fn v6(text: &str) -> Result<Host, &'static str> {
    if text.contains('%') {
        return Err("names a network interface, and those of this host are not a job's business");
    }
    let address: Ipv6Addr = text.parse().map_err(|_| "is neither a name nor an address")?;
    match address.to_ipv4_mapped() {
        Some(_) => Err("is an IPv4 address in IPv6 form; write it as 192.0.2.1"),
        None => Ok(Host::Address(address.into())),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        Host::read(text).map_or_else(str::to_owned, |host| format!("={host}"))
    }

    #[test]
    fn one_host_has_one_form() {
        for (text, form) in [
            ("PyPI.org", "=pypi.org"),
            ("pypi.org.", "=pypi.org"),
            ("Bücher.example", "=xn--bcher-kva.example"),
            ("pypi。org", "=pypi.org"),
            ("_x.a-b.c", "=_x.a-b.c"),
            ("10.0.0.1", "=10.0.0.1"),
            ("[2001:DB8::1]", "=2001:db8::1"),
            ("::1", "=::1"),
            ("1.2.3.4.example", "=1.2.3.4.example"),
            ("0x7f.example", "=0x7f.example"),
        ] {
            assert_eq!(read(text), form, "{text}");
        }
    }

    #[test]
    fn addresses_in_other_forms_are_refused_by_name() {
        for (text, word) in [
            ("010.0.0.1", "octal"),
            ("0177.0.0.1", "octal"),
            ("127.0.0.01", "octal"),
            ("2130706433", "decimal"),
            ("127.1", "decimal or short"),
            ("0", "decimal or short"),
            ("0x7f000001", "hexadecimal"),
            ("0x7f.0.0.1", "hexadecimal"),
            ("0X7F.0.0.1", "hexadecimal"),
            ("127.0.0.1.", "unusual"),
            ("127.0.0.256", "unusual"),
            ("１２７.0.0.1", "unusual"),
            ("127。0。0。1", "unusual"),
            ("①②⑦.0.0.1", "unusual"),
            ("::ffff:10.0.0.1", "IPv4 address in IPv6"),
            ("[::ffff:a00:1]", "IPv4 address in IPv6"),
            ("fe80::1%eth0", "interface"),
        ] {
            assert!(read(text).contains(word) && !read(text).starts_with('='), "{text}: {}", read(text));
        }
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", "a b", "a/b", "a@b", "a\0b", "a%2eb", "[::1", "::x", "xn--a", &long, "a\r\nb"] {
            assert!(!read(text).starts_with('='), "{text}");
        }
    }

    proptest! {
        /// What was put into the form stays as it is, and is never an address for another reader.
        #[test]
        fn the_form_is_its_own(text in "[a-zA-Z0-9xX.\\-_:\\[\\]。１]{0,20}") {
            if let Ok(host) = Host::read(&text) {
                prop_assert_eq!(Host::read(&host.to_string()), Ok(host.clone()));
                if let Host::Name(name) = host {
                    prop_assert!(name.parse::<IpAddr>().is_err());
                    prop_assert!(!name.rsplit('.').next().unwrap_or_default().bytes().all(|byte| byte.is_ascii_digit()));
                }
            }
        }

        #[test]
        fn any_text_is_read_without_harm(text in "\\PC{0,60}") {
            let _ = Host::read(&text);
        }
    }
}
