//! Commands on hosts over SSH: who is where, whose host key is believed, what opens it, and connections that are shared.
//!
//! The only place that names russh. Must never decide what a command is, nor what its end means.

mod algorithms;
mod cell;
mod check;
mod connection;
mod credentials;
mod error;
mod exec;
mod executor;
mod handler;
mod handshake;
mod host;
pub mod inventory;
mod known;
mod login;
mod plain;
mod pool;
mod records;
mod resident;
mod route;
mod scan;
mod store;
mod stream;

pub use cell::SshCell;
pub use check::{Mode, NoJobs};
pub use error::ConnectError;
pub use exec::{Exec, Input, Output};
pub use executor::{PlainHost, SshExecutor};
pub use pool::{COMMAND_BYTES, HostState, Pool};
pub use route::{Lane, Route, SshSettings, StoreBounds};
pub use scan::{Scanned, ScannedKey, scan};
pub use store::Event;
