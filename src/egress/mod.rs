//! The way out of a cell: what a job asks its proxy for, decided, dialled and carried here, on the agent's side.
//!
//! Owns the decision whether a job may go somewhere ([`judge`] and, for what is said in TLS, [`hello`]; both pure), the one look at where a name leads ([`resolve`]), the connection
//! ([`stream`]), and the count of it all ([`tally`]). [`door`] is one conversation's: it takes what the warden says and has what is to be
//! said to it. Must never dial an address that was not judged, nor ask twice where a name leads: the address that was looked at is the
//! one that is dialled. What comes from a warden is untrusted: it gets no more than its job was given.

mod door;
mod hello;
mod judge;
mod resolve;
mod stream;
mod tally;
#[cfg(test)]
mod tests;

pub use door::{Door, Out};

use crate::job::ByteSize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Names that are looked up at the same time for all jobs together. More wait, within their deadline: the system's resolver takes a
/// thread for each.
const LOOKUPS: usize = 16;

/// What the operator's settings say.
#[derive(Debug, Clone)]
pub struct EgressSettings {
    /// The name server that is asked; without one, the system's resolver.
    pub resolver: Option<SocketAddr>,
    /// For a name to be looked up, and then for somebody to answer.
    pub connect_timeout: Duration,
    /// A connection on which nothing moves for so long is cut off.
    pub idle_timeout: Duration,
    /// Connections of one job at a time.
    pub concurrent: u16,
    /// Connections of one job in all, those that are refused included.
    pub connections: u64,
    /// Bytes of one job in both directions together.
    pub bytes: ByteSize,
    /// Names that one job may have looked up.
    pub lookups: u64,
    /// Bytes of one job in a second, both directions together; 0 for no bound.
    pub max_rate: ByteSize,
}

impl Default for EgressSettings {
    fn default() -> Self {
        Self {
            resolver: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            concurrent: 64,
            connections: 100_000,
            bytes: ByteSize::from_mib(100 * 1024),
            lookups: 10_000,
            max_rate: ByteSize::new(0),
        }
    }
}

/// What all jobs of this process share.
#[derive(Debug, Clone)]
pub struct Outside {
    settings: EgressSettings,
    lookups: Arc<Semaphore>,
}

impl Outside {
    /// By these settings.
    pub fn new(settings: EgressSettings) -> Self {
        Self { settings, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Default for Outside {
    fn default() -> Self {
        Self::new(EgressSettings::default())
    }
}
