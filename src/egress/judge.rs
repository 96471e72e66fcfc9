//! Whether a job may go somewhere. Pure, but for one question to the kernel: whether an address is this host's.

use crate::job::egress::{Class, EgressRule, Host, class};
use crate::protocol::wire::EgressFault;
use rustix::io::Errno;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

/// Why a connection is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct No {
    pub(super) fault: EgressFault,
    /// The stable code.
    pub(super) code: &'static str,
    /// For people; what of it is the job's own text is cut and escaped.
    pub(super) reason: String,
}

impl No {
    pub(super) fn new(fault: EgressFault, code: &'static str, reason: impl Into<String>) -> Self {
        Self { fault, code, reason: reason.into() }
    }
}

/// What was asked for, in its one form. Errors: it has none.
pub(super) fn host(text: &str) -> Result<Host, No> {
    Host::read(text).map_err(|why| No::new(EgressFault::Refused, "bad_host", format!("what was asked for {why}")))
}

/// Whether a rule lets the job ask for it.
pub(super) fn asked(rules: &[EgressRule], host: &Host, port: u16) -> Result<(), No> {
    if rules.iter().any(|rule| rule.admits(host, port)) {
        return Ok(());
    }
    let reason = match (rules.iter().any(|rule| rule.leads_to(host)), host) {
        (true, _) => format!("port {port} of it is not in the job's `egress.allow`"),
        (false, Host::Address(_)) => "no address or network of the job's `egress.allow` contains it".to_owned(),
        (false, Host::Name(_)) => "the name is not in the job's `egress.allow`".to_owned(),
    };
    Err(No::new(EgressFault::Refused, "not_allowed", reason))
}

/// Whether all that a name leads to may be dialled. One address that may not be is enough: who mixes them in means no good.
pub(super) fn found(
    rules: &[EgressRule],
    addresses: &[IpAddr],
    port: u16,
    own: impl Fn(IpAddr) -> bool,
) -> Result<(), No> {
    for address in addresses {
        let class = class(*address);
        let own = own(*address);
        let what = match class {
            _ if own && class != Some(Class::Metadata) => "an address of this host",
            None => continue,
            Some(Class::Metadata) => "where a cloud keeps the keys of its machines",
            Some(Class::Special(what) | Class::Embedded(what)) => what,
        };
        if !rules.iter().any(|rule| rule.opens(*address, port, own)) {
            let reason = format!("it leads to {address}, {what}, which no rule of the job opens");
            return Err(No::new(EgressFault::Refused, "address_not_allowed", reason));
        }
    }
    Ok(())
}

/// Whether an address is this host's: the kernel lets nobody bind another one. Where that cannot be found out, for want of descriptors say,
/// it is taken for one. Where `ip_nonlocal_bind` lets everybody bind everything, all are.
pub(super) fn is_own(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => {
            error.kind() != ErrorKind::AddrNotAvailable
                && error.raw_os_error() != Some(Errno::AFNOSUPPORT.raw_os_error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rules(texts: &[&str]) -> Vec<EgressRule> {
        texts.iter().map(|text| EgressRule::read(text).expect("a rule")).collect()
    }

    #[test]
    fn refusals_say_what_is_in_the_way() {
        let rules = rules(&["pypi.org:443", "10.0.0.0/8:443"]);
        let why = |text: &str, port| asked(&rules, &host(text).expect("a host"), port).map_err(|no| no.reason);
        assert_eq!(why("PyPI.org", 443), Ok(()));
        assert!(why("pypi.org", 22).expect_err("refused").contains("port 22"));
        assert!(why("evil.example", 443).expect_err("refused").contains("the name"));
        assert!(why("9.9.9.9", 443).expect_err("refused").contains("no address"));
        let no = host("0x7f.1").expect_err("refused");
        assert_eq!((no.code, no.reason.contains("hexadecimal")), ("bad_host", true));
    }

    #[test]
    fn this_hosts_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().expect("one")) && is_own("127.8.8.8".parse().expect("one")));
        assert!(!is_own("9.9.9.9".parse().expect("one")));
    }

    #[test]
    fn one_bad_address_among_good_ones_is_enough() {
        let list: Vec<IpAddr> = ["9.9.9.9", "169.254.169.254"].iter().map(|one| one.parse().expect("one")).collect();
        let no = found(&rules(&["*:443", "169.254.0.0/16:443"]), &list, 443, |_| false).expect_err("refused");
        assert!(no.reason.contains("169.254.169.254"), "{}", no.reason);
        assert_eq!(found(&rules(&["169.254.169.254:443"]), &list, 443, |_| false), Ok(()));
        assert!(
            found(&rules(&["9.9.9.0/24:443"]), &list[..1], 443, |_| true)
                .expect_err("refused")
                .reason
                .contains("this host")
        );
    }

    proptest! {
        /// Without a rule that names an address, a name leads to open ones only, whatever else is allowed.
        #[test]
        fn names_lead_to_open_addresses_only(v4 in any::<u32>(), v6 in any::<u128>(), port in 1u16..) {
            let rules = rules(&["*:1-65535", "0.0.0.0/0:1-65535", "[::/0]:1-65535"]);
            for address in [IpAddr::V4(Ipv4Addr::from_bits(v4)), IpAddr::V6(Ipv6Addr::from_bits(v6))] {
                prop_assert_eq!(found(&rules, &[address], port, |_| false).is_ok(), class(address).is_none());
                prop_assert!(found(&rules, &[address], port, |_| true).is_err());
            }
        }
    }
}
