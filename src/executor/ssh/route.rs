//! Where a connection goes and as whom, and what the operator's settings say of connections.

use crate::config::SshConfig;
use crate::job::Millis;
use std::fmt;
use std::time::Duration;

/// Where a connection goes and as whom. Equal routes share connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Its name for people: the inventory's, or what the job said.
    pub name: String,
    /// A name or an address.
    pub host: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Who logs in.
    pub login: String,
    /// The name of what opens it, in the inventory.
    pub credential: String,
    /// The host's name in known_hosts and in certificates, where that is not its address.
    pub known_as: Option<String>,
    /// SHA-256 fingerprints of its keys; with them, no other key will do.
    pub fingerprints: Vec<String>,
    /// The host that it is reached over.
    pub jump: Option<Box<Route>>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.name != self.host {
            write!(f, " ({})", address(&self.host, self.port))?;
        } else if self.port != 22 {
            write!(f, " (port {})", self.port)?;
        }
        Ok(())
    }
}

/// A host and port in one text, as known_hosts has those with an unusual port.
pub fn address(host: &str, port: u16) -> String {
    match port {
        22 => host.to_owned(),
        _ => format!("[{host}]:{port}"),
    }
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A job: it waits for a place.
    Job,
    /// Word about a job, such as that it has to stop: a place is kept for it.
    Control,
}

/// What the operator says of connections (`ssh.*`).
#[derive(Debug, Clone)]
pub struct SshSettings {
    /// Connections to one host as one login.
    pub connections_per_host: usize,
    /// Jobs at the same time on one connection, until the host says fewer.
    pub channels_per_connection: usize,
    /// Handshakes with one host at the same time.
    pub handshakes_per_host: usize,
    /// For a connection to be there, from the first packet to the login, and for a place on one.
    pub connect_timeout: Duration,
    /// After so much silence the host is asked whether it is there; two unanswered and it is not.
    pub keepalive: Duration,
    /// A connection that nobody uses is closed after so long.
    pub idle_close: Duration,
    /// A connection takes no more jobs after so long, and is closed when its last one has ended.
    pub max_age: Duration,
    /// What is done with output that nobody takes.
    pub store: StoreBounds,
}

/// Bounds of the output of one channel that its consumer has not taken.
#[derive(Debug, Clone, Copy)]
pub struct StoreBounds {
    /// With so many bytes, the consumer is told to have the job stopped for a while.
    pub high: usize,
    /// With so few, to have it go on.
    pub low: usize,
    /// More bytes are not kept.
    pub most: usize,
}

impl Default for StoreBounds {
    fn default() -> Self {
        Self { high: 4 << 20, low: 1 << 20, most: 16 << 20 }
    }
}

impl SshSettings {
    /// Those of the settings.
    pub fn of(config: &SshConfig) -> Self {
        let time = |millis: Millis| Duration::from_millis(millis.as_u64());
        Self {
            connections_per_host: usize::from(config.connections_per_host),
            channels_per_connection: usize::from(config.channels_per_connection),
            handshakes_per_host: usize::from(config.handshakes_per_host),
            connect_timeout: time(config.connect_timeout),
            keepalive: time(config.keepalive),
            idle_close: time(config.idle_close),
            max_age: time(config.max_age),
            store: StoreBounds::default(),
        }
    }
}

impl Default for SshSettings {
    fn default() -> Self {
        Self {
            connections_per_host: 4,
            channels_per_connection: 9,
            handshakes_per_host: 8,
            connect_timeout: Duration::from_secs(15),
            keepalive: Duration::from_secs(5),
            idle_close: Duration::from_secs(300),
            max_age: Duration::from_secs(3600),
            store: StoreBounds::default(),
        }
    }
}
