//! Rules: `pypi.org:443`, `*.example.com:80,443`, `10.1.2.0/24:8000-8100`, `[2001:db8::/32]:443`.

use super::address::{embedded, is_metadata, names_special};
use super::{Class, Host, class};
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;

/// Ports of a rule that names none.
const USUAL_PORTS: [(u16, u16); 2] = [(80, 80), (443, 443)];
const MOST_PORTS: usize = 16;

/// Where a rule leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `*`: any name, but no address.
    AnyName,
    /// `*.example.com`: what is below it, not itself.
    Below(String),
    /// One name.
    Name(String),
    /// An address or a network.
    Net(IpNet),
}

/// Something that may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    to: Destination,
    /// First and last, in order, none touching the next.
    ports: Vec<(u16, u16)>,
}

impl EgressRule {
    /// Reads one. Errors: what is wrong with it, for behind its text.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err("is a URL; write the host and the port, such as pypi.org:443".to_owned());
        }
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']').ok_or("has a bracket that is not closed")?;
                let ports = match behind.strip_prefix(':') {
                    Some(ports) => Some(ports),
                    None if behind.is_empty() => None,
                    None => return Err("has something behind the bracket that is no port".to_owned()),
                };
                (host, ports)
            }
            None if text.matches(':').count() > 1 => {
                return Err("is an IPv6 address without brackets; write [2001:db8::1]:443".to_owned());
            }
            None => text.split_once(':').map_or((text, None), |(host, ports)| (host, Some(ports))),
        };
        let bracketed = text.starts_with('[');
        let to = destination(host, bracketed)?;
        let ports = ports.map_or_else(|| Ok(USUAL_PORTS.to_vec()), read_ports)?;
        Ok(Self { to, ports })
    }

    /// Where it leads.
    pub fn to(&self) -> &Destination {
        &self.to
    }

    fn has_port(&self, port: u16) -> bool {
        self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// Whether it lets a job ask for this.
    pub fn admits(&self, host: &Host, port: u16) -> bool {
        self.has_port(port) && self.leads_to(host)
    }

    /// Whether it is this one place and nothing else, on any port.
    pub fn names(&self, host: &Host) -> bool {
        match (&self.to, host) {
            (Destination::Name(wanted), Host::Name(name)) => wanted == name,
            (Destination::Net(net), Host::Address(address)) => {
                net.prefix_len() == net.max_prefix_len() && net.addr() == *address
            }
            _ => false,
        }
    }

    /// Whether it lets a job ask for this on any port.
    pub fn leads_to(&self, host: &Host) -> bool {
        match (&self.to, host) {
            (Destination::AnyName, Host::Name(_)) => true,
            (Destination::Below(domain), Host::Name(name)) => is_below(name, domain),
            (Destination::Name(wanted), Host::Name(name)) => wanted == name,
            (Destination::Net(net), Host::Address(address)) => net.contains(address),
            _ => false,
        }
    }

    /// Whether it opens an address that is not of the open Internet: it has to name what is there. `own`: it is the host's.
    pub fn opens(&self, address: IpAddr, port: u16, own: bool) -> bool {
        let Destination::Net(net) = &self.to else { return false };
        let exact = net.prefix_len() == net.max_prefix_len();
        let named = match class(address) {
            Some(Class::Special(_)) => names_special(net),
            Some(Class::Metadata) => exact,
            Some(Class::Embedded(_)) => false,
            // A service of the host's that faces the world is not opened by who may go out into it.
            None => !own,
        };
        named && (exact || !own) && self.has_port(port) && net.contains(&address)
    }

    /// Whether all that `other` leads to is within this, the ports apart.
    fn covers(&self, other: &Destination) -> bool {
        match (&self.to, other) {
            (Destination::AnyName, Destination::AnyName | Destination::Below(_) | Destination::Name(_)) => true,
            (Destination::Below(domain), Destination::Below(other)) => domain == other || is_below(other, domain),
            (Destination::Below(domain), Destination::Name(name)) => is_below(name, domain),
            (Destination::Name(name), Destination::Name(other)) => name == other,
            // What is opened by its name has to be named here as well.
            (Destination::Net(net), Destination::Net(other)) => {
                net.contains(other)
                    && (names_special(net) || !names_special(other))
                    && (is_metadata(net) || !is_metadata(other))
            }
            _ => false,
        }
    }
}

/// The first port that `rule` asks for and none of `allowed` has for the same place; `None` when all are there.
pub fn uncovered(rule: &EgressRule, allowed: &[EgressRule]) -> Option<u16> {
    let covering: Vec<&EgressRule> = allowed.iter().filter(|one| one.covers(&rule.to)).collect();
    for (first, last) in &rule.ports {
        let mut next = u32::from(*first);
        while next <= u32::from(*last) {
            let reach = covering
                .iter()
                .flat_map(|one| &one.ports)
                .filter(|(from, to)| (u32::from(*from)..=u32::from(*to)).contains(&next))
                .map(|(_, to)| u32::from(*to))
                .max();
            match reach {
                Some(reach) => next = reach + 1,
                None => return u16::try_from(next).ok(),
            }
        }
    }
    None
}

/// What is a cell's own, and not to be asked of its proxy.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What `NO_PROXY` says, where these rules make it another one than usual: an address that a job is allowed by name is the host's, and only the
/// proxy leads there.
pub fn past_proxy(rules: &[EgressRule]) -> Option<String> {
    let theirs = |own: &&str| Host::read(own).is_ok_and(|host| rules.iter().any(|rule| rule.names(&host)));
    let mine: Vec<&str> = OWN.into_iter().filter(|own| !theirs(own)).collect();
    (mine.len() < OWN.len()).then(|| mine.join(","))
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
}

fn destination(text: &str, bracketed: bool) -> Result<Destination, String> {
    if text == "*" && !bracketed {
        return Ok(Destination::AnyName);
    }
    if let Some(domain) = text.strip_prefix("*.").filter(|_| !bracketed) {
        return match Host::read(domain)? {
            Host::Name(name) => Ok(Destination::Below(name)),
            Host::Address(_) => Err("has a wildcard before an address; write a network such as 10.1.2.0/24".to_owned()),
        };
    }
    if text.contains('*') {
        return Err("has a wildcard that is not its first part; write *.example.com".to_owned());
    }
    let net = match text.split_once('/') {
        Some((address, prefix)) => {
            // The same strictness for both: who is wrong about one digit opens something else.
            let address = match Host::read(address)? {
                Host::Address(address) => address,
                Host::Name(_) => return Err("has a path, or a prefix behind a name; write host:port".to_owned()),
            };
            let bad = "has a prefix that is no number of bits";
            let canonical = prefix.len() == 1 || !prefix.starts_with('0');
            let prefix: u8 = prefix.parse().ok().filter(|_| canonical).ok_or(bad)?;
            let net = IpNet::new(address, prefix).map_err(|_| bad)?;
            if net.addr() != net.network() {
                return Err(format!("has bits behind its prefix; write {}", net.trunc()));
            }
            net
        }
        None => match Host::read(text)? {
            Host::Name(name) if bracketed => return Err(format!("has brackets around {name}, which is no address")),
            Host::Name(name) => return Ok(Destination::Name(name)),
            Host::Address(address) => IpNet::from(address),
        },
    };
    if let Some(what) = embedded(&net) {
        return Err(format!("is {what}, which nothing opens; write the IPv4 address"));
    }
    Ok(Destination::Net(net))
}

fn read_ports(text: &str) -> Result<Vec<(u16, u16)>, String> {
    const HELP: &str = "write 443, 80,443 or 8000-8100";
    let port = |text: &str| -> Result<u16, String> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|port| plain && *port > 0);
        number.ok_or_else(|| format!("has a port that is no number from 1 to 65535; {HELP}"))
    };
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("has a range of ports that ends before it begins; {HELP}"));
        }
        ports.push((first, last));
    }
    if ports.len() > MOST_PORTS {
        return Err(format!("has more than {MOST_PORTS} ports and ranges; {HELP}"));
    }
    ports.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ports {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    Ok(joined)
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = |net: &IpNet| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        };
        match &self.to {
            Destination::AnyName => f.write_str("*")?,
            Destination::Below(domain) => write!(f, "*.{domain}")?,
            Destination::Name(name) => f.write_str(name)?,
            Destination::Net(one @ IpNet::V4(_)) => f.write_str(&net(one))?,
            Destination::Net(one @ IpNet::V6(_)) => write!(f, "[{}]", net(one))?,
        }
        for (at, (first, last)) in self.ports.iter().enumerate() {
            let before = if at == 0 { ":" } else { "," };
            match first == last {
                true => write!(f, "{before}{first}")?,
                false => write!(f, "{before}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for EgressRule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
