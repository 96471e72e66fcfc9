//! What a job may reach: hosts in one form, rules, and which addresses no rule opens by accident. Pure.
//!
//! A host is put into one form exactly once, [`Host::read`], and everything behind it (rules, the resolver, what is told) sees that
//! form only. So there is no second reader that could take the same text for another place.

mod address;
mod host;
mod rule;

pub use address::{Class, class};
pub use host::Host;
pub use rule::{Destination, EgressRule, past_proxy, uncovered};

use serde::{Deserialize, Serialize};

/// What a job sent and got through its proxy, and what it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EgressUse {
    /// Connections that were made.
    pub connections: u64,
    /// Bytes that came in by them.
    pub bytes_in: u64,
    /// Bytes that went out.
    pub bytes_out: u64,
    /// Connections that were refused or came to nothing.
    pub refused: u64,
    /// The first of these, each place and reason once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<EgressRefusal>,
}

/// A place that a job did not reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRefusal {
    /// What it asked for, in the form in which it was looked at.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The stable code.
    pub code: String,
    /// Why, for people.
    pub reason: String,
    /// How often.
    pub times: u64,
}
