//! The operator's inventory: hosts by name, groups of them, credentials by name, and whose host keys are believed.
//!
//! Owns the document and what a destination comes to by it. Must never hold a secret: a [`Credential`] says where one is.

mod live;
mod read;

pub use live::{Found, LiveInventory};

use super::route::Route;
use crate::job::{Secret, shown, suggestion};
use crate::secrets::Source;
use russh::keys::ssh_key::Fingerprint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Hosts of a group that a sentence names.
const SHOWN_MEMBERS: usize = 20;
/// Jump hosts one after another, those of jump hosts included.
pub(super) const MOST_JUMPS: usize = 8;

/// What the operator says of hosts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    pub(super) hosts: BTreeMap<String, Host>,
    pub(super) groups: BTreeMap<String, Vec<String>>,
    pub(super) credentials: BTreeMap<String, Credential>,
    pub(super) known_hosts: KnownFiles,
    pub(super) direct: bool,
}

/// One host.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// A name or an address.
    pub address: String,
    /// Its SSH server's port.
    pub port: u16,
    /// Who runs jobs there, unless a job says another.
    pub login: Option<String>,
    /// The name of what opens it, unless a job says another.
    pub credential: Option<String>,
    /// The names of the hosts on the way there, in order.
    pub jump: Vec<String>,
    /// Its keys, and no others.
    pub fingerprints: Vec<Fingerprint>,
    /// Its name in known_hosts and in certificates, where that is not its address.
    pub known_as: Option<String>,
}

/// What opens a host.
#[derive(Debug, Clone, PartialEq)]
pub enum Credential {
    /// A private key.
    Key {
        /// Where it is.
        key: Place,
        /// Where its passphrase is.
        passphrase: Option<Place>,
        /// A certificate for it.
        certificate: Option<PathBuf>,
    },
    /// A key that an agent keeps.
    Agent {
        /// Where the agent listens.
        socket: PathBuf,
        /// Which of its keys; any of them otherwise.
        fingerprint: Option<Fingerprint>,
    },
    /// A password.
    Password(Place),
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq)]
pub struct Place(pub(super) Source);

/// A larger secret is none.
const LARGEST_SECRET: u64 = 64 * 1024;

impl Place {
    /// What is there now. May block for as long as the file system does. Errors: why it cannot be had, in words that have nothing of it.
    pub(super) fn read(&self) -> Result<Secret, String> {
        use crate::secrets::Provider;
        match &self.0 {
            Source::File(path) => {
                let read = crate::config::operator_file::read_secret(path, LARGEST_SECRET, "name another one");
                read.map_err(|(reason, fix)| format!("{}: {reason}; {fix}", path.display()))
            }
            other => other.read(),
        }
    }
}

/// The files of known host keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KnownFiles {
    /// In order.
    pub files: Vec<PathBuf>,
    /// The operator named them, so each must be there.
    pub named: bool,
}

/// Where a job is to run, as it says it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Destination<'a> {
    /// A name of the inventory; where `direct` allows it, also a host's name or address, with or without a port.
    pub host: &'a str,
    /// In place of the inventory's.
    pub port: Option<u16>,
    /// In place of the inventory's.
    pub login: Option<&'a str>,
    /// In place of the inventory's.
    pub credential: Option<&'a str>,
    /// In place of the inventory's.
    pub jump: Option<&'a [String]>,
}

/// Why there is no route to a destination: a sentence, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRoute(pub String);

impl Inventory {
    /// The way to a destination. Errors: what the job or the inventory has to say for there to be one.
    pub fn route(&self, to: &Destination<'_>) -> Result<Route, NoRoute> {
        let (name, host) = self.found(to)?;
        let login = to.login.or(host.login.as_deref()).ok_or_else(|| {
            NoRoute(format!("nothing says who logs in at {name}: give `login` in the job's target or in the inventory"))
        })?;
        let credential = to.credential.or(host.credential.as_deref()).ok_or_else(|| {
            let fix = "give `credential` in the job's target or in the inventory";
            NoRoute(format!("nothing says what opens {name}: {fix}"))
        })?;
        if !self.credentials.contains_key(credential) {
            let known: Vec<&str> = self.credentials.keys().map(String::as_str).collect();
            let fix = suggestion(credential, &known);
            return Err(NoRoute(format!("the inventory has no credential `{}` for {name}; {fix}", shown(credential))));
        }
        let jump = self.chain(to.jump.unwrap_or(&host.jump), MOST_JUMPS)?;
        Ok(Route {
            name,
            port: to.port.unwrap_or(host.port),
            login: login.to_owned(),
            credential: credential.to_owned(),
            known_as: host.known_as.clone(),
            fingerprints: host.fingerprints.iter().map(ToString::to_string).collect(),
            host: host.address,
            jump,
        })
    }

    /// A host by its name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.get(name)
    }

    fn found(&self, to: &Destination<'_>) -> Result<(String, Host), NoRoute> {
        if let Some(host) = self.hosts.get(to.host) {
            return Ok((to.host.to_owned(), host.clone()));
        }
        if let Some(members) = self.groups.get(to.host) {
            let (name, shown_ones) = (shown(to.host), members.iter().take(SHOWN_MEMBERS).map(String::as_str));
            let (list, more) = (shown_ones.collect::<Vec<_>>().join(","), members.len().saturating_sub(SHOWN_MEMBERS));
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(NoRoute(format!(
                "`{name}` is a group of the inventory, and no host; name its hosts: {list}{more}"
            )));
        }
        if !self.direct {
            let known: Vec<&str> = self.hosts.keys().map(String::as_str).collect();
            // With thousands of hosts the list helps nobody.
            let fix =
                if known.len() > 20 { "see the agent's inventory".to_owned() } else { suggestion(to.host, &known) };
            return Err(NoRoute(format!("the inventory has no host `{}`; {fix}", shown(to.host))));
        }
        let (address, port) = address(to.host).map_err(|reason| NoRoute(format!("`{}` {reason}", shown(to.host))))?;
        let host = Host {
            address,
            port: port.unwrap_or(22),
            login: None,
            credential: None,
            jump: Vec::new(),
            fingerprints: Vec::new(),
            known_as: None,
        };
        Ok((to.host.to_owned(), host))
    }

    /// The last of the hosts on a way, each reached over the one before it.
    fn chain(&self, names: &[String], left: usize) -> Result<Option<Box<Route>>, NoRoute> {
        let mut before: Option<Box<Route>> = None;
        if names.len() > left {
            return Err(NoRoute(format!("there are more than {MOST_JUMPS} hosts on the way; name fewer jump hosts")));
        }
        for (at, name) in names.iter().enumerate() {
            let Some(host) = self.hosts.get(name) else {
                return Err(NoRoute(format!("jump host `{}` is not in the inventory; add it there", shown(name))));
            };
            let (Some(login), Some(credential)) = (&host.login, &host.credential) else {
                return Err(NoRoute(format!(
                    "jump host {name} has no login or no credential; add them to the inventory"
                )));
            };
            let jump = if at == 0 { self.chain(&host.jump, left - 1)? } else { before.take() };
            before = Some(Box::new(Route {
                name: name.clone(),
                host: host.address.clone(),
                port: host.port,
                login: login.clone(),
                credential: credential.clone(),
                known_as: host.known_as.clone(),
                fingerprints: host.fingerprints.iter().map(ToString::to_string).collect(),
                jump,
            }));
        }
        Ok(before)
    }

    /// The names of all hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }

    /// The hosts of a group.
    pub fn group(&self, name: &str) -> Option<&[String]> {
        self.groups.get(name).map(Vec::as_slice)
    }

    /// Whether a credential of this name is a password.
    pub fn is_password(&self, name: &str) -> bool {
        matches!(self.credentials.get(name), Some(Credential::Password(_)))
    }

    /// Where a credential is.
    pub(super) fn credential(&self, name: &str) -> Option<&Credential> {
        self.credentials.get(name)
    }

    /// The files of known host keys.
    pub fn known_files(&self) -> &[PathBuf] {
        &self.known_hosts.files
    }
}

/// The files that hold when the inventory names none.
fn usual_known_hosts(data_dir: &Path) -> KnownFiles {
    KnownFiles { files: vec![PathBuf::from("/etc/ssh/ssh_known_hosts"), data_dir.join("known_hosts")], named: false }
}

/// A name or an address, with or without a port: `web1`, `10.0.0.1:2222`, `[fd00::1]:22`, `fd00::1`. Errors: why it is none.
pub fn address(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        // As known_hosts has every host with an unusual port.
        Some(Some((host, rest))) => match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("has no port behind its brackets; write [fd00::1]:22"),
        },
        Some(None) => return Err("has an open bracket; write [fd00::1]:22"),
        None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port.map(|port| if port.starts_with('+') { Err(()) } else { port.parse::<u16>().map_err(drop) }) {
        Some(Ok(0) | Err(_)) => return Err("has no port between 1 and 65535; write host:22"),
        Some(Ok(port)) => Some(port),
        None => None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
        return Err("has no IPv6 address in its brackets; write [fd00::1]:22");
    }
    if host.is_empty() || host.len() > 253 || host.starts_with('-') || !host.chars().all(plain) {
        return Err("is no name or address of a host; write letters, digits, dots, dashes and underscores");
    }
    Ok((host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests;
