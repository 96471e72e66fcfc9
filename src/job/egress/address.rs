//! Addresses that are not of the open Internet: whoever resolves a name to one of these leads a job to where it has no business.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not open to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Only a rule that names this very address opens it: what answers there gives keys of the host to whoever asks.
    Metadata,
    /// A rule that lies within such a range opens it; the text says what it is.
    Special(&'static str),
    /// Another address is written into it; no rule opens it.
    Embedded(&'static str),
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(head: [u16; 3], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], head[2], 0, 0, 0, 0, 0), prefix)
}

/// Where clouds tell a machine its keys, as far as it is not asked by name.
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // Containers and pods of one of them.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Of the open ranges, and answered by the host below the machine.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// IANA's registry of special addresses, as of 2025.
const SPECIAL_V4: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 0, 8), "no host's address"),
    (v4(10, 0, 0, 0, 8), "a private address"),
    (v4(100, 64, 0, 0, 10), "an address between providers"),
    (v4(127, 0, 0, 0, 8), "a loopback address"),
    (v4(169, 254, 0, 0, 16), "a link-local address"),
    (v4(172, 16, 0, 0, 12), "a private address"),
    (v4(192, 0, 0, 0, 24), "an address of protocols"),
    (v4(192, 0, 2, 0, 24), "an address for documentation"),
    (v4(192, 31, 196, 0, 24), "an address of protocols"),
    (v4(192, 88, 99, 0, 24), "an address of relays"),
    (v4(192, 168, 0, 0, 16), "a private address"),
    (v4(198, 18, 0, 0, 15), "an address for measurements"),
    (v4(198, 51, 100, 0, 24), "an address for documentation"),
    (v4(203, 0, 113, 0, 24), "an address for documentation"),
    (v4(224, 0, 0, 0, 4), "a multicast address"),
    (v4(240, 0, 0, 0, 4), "a reserved address"),
];

/// Looked at in order.
const SPECIAL_V6: [(Ipv6Net, &str); 7] = [
    (v6([0xfc00, 0, 0], 7), "a private address"),
    (v6([0xfe80, 0, 0], 10), "a link-local address"),
    (v6([0xfec0, 0, 0], 10), "a site-local address"),
    (v6([0xff00, 0, 0], 8), "a multicast address"),
    (v6([0x2001, 0x0db8, 0], 32), "an address for documentation"),
    (v6([0x3fff, 0, 0], 20), "an address for documentation"),
    (v6([0x2001, 0, 0], 23), "an address of protocols"),
];

/// All that is open to everybody lies in here.
const OPEN_V6: Ipv6Net = v6([0x2000, 0, 0], 3);

const EMBEDDED_V6: [(Ipv6Net, &str); 5] = [
    (v6([0x64, 0xff9b, 0], 96), "an IPv4 address in IPv6 form (NAT64)"),
    (v6([0x64, 0xff9b, 1], 48), "an IPv4 address in IPv6 form (NAT64)"),
    (v6([0x2002, 0, 0], 16), "an IPv4 address in IPv6 form (6to4)"),
    (v6([0x2001, 0, 0], 32), "an IPv4 address in IPv6 form (Teredo)"),
    // Compatible (::a.b.c.d); the mapped form is told first. Loopback and no address are special, and stand before.
    (v6([0, 0, 0], 96), "an IPv4 address in IPv6 form"),
];

/// What an address is, unless it is one like any other.
pub fn class(address: IpAddr) -> Option<Class> {
    if METADATA.contains(&address) {
        return Some(Class::Metadata);
    }
    let found = match address {
        IpAddr::V4(address) => SPECIAL_V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, what)| *what),
        IpAddr::V6(address) if address.is_loopback() => Some("a loopback address"),
        IpAddr::V6(address) if address.is_unspecified() => Some("no host's address"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            return Some(Class::Embedded("an IPv4 address in IPv6 form (mapped)"));
        }
        IpAddr::V6(address) => {
            if let Some((_, what)) = EMBEDDED_V6.iter().find(|(net, _)| net.contains(&address)) {
                return Some(Class::Embedded(what));
            }
            let special = SPECIAL_V6.iter().find(|(net, _)| net.contains(&address)).map(|(_, what)| *what);
            special.or((!OPEN_V6.contains(&address)).then_some("a reserved address"))
        }
    };
    found.map(Class::Special)
}

/// Whether a network lies within one special range, so that who writes it down means what is there. One that only reaches over such
/// ranges, as 0.0.0.0/0 does, opens none of them.
pub(super) fn names_special(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => SPECIAL_V4.iter().any(|(range, _)| range.contains(net)) || is_metadata(&IpNet::V4(*net)),
        IpNet::V6(net) => {
            let one = net.prefix_len() == 128 && class(net.addr().into()).is_some();
            SPECIAL_V6.iter().any(|(range, _)| range.contains(net)) || one
        }
    }
}

/// Whether a network is the one address of a metadata service.
pub(super) fn is_metadata(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len() && METADATA.contains(&net.addr())
}

/// What of other addresses a network has written into it.
pub(super) fn embedded(net: &IpNet) -> Option<&'static str> {
    let IpNet::V6(net) = net else { return None };
    if net.prefix_len() == 128 && (net.addr().is_loopback() || net.addr().is_unspecified()) {
        return None;
    }
    const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
    let mapped = MAPPED.contains(net).then_some("an IPv4 address in IPv6 form (mapped)");
    mapped.or(EMBEDDED_V6.iter().find(|(range, _)| range.contains(net)).map(|(_, what)| *what))
}
