//! A warden that stays on a host: one program for all jobs of this installation there, many jobs over one channel.
//!
//! ```text
//!  shell   what is said to the host's shell, pure
//!  open    from a channel to a hub that has said hello
//!  hubs    one connection for each way and program, opened for all who want it
//!  hub     many jobs over one stream
//!  link    one job's part of it
//! ```
//!
//! Must never know what a job says, nor decide what becomes of it: a link to a job here is a link to a warden as any other.

mod hub;
mod hubs;
mod link;
mod open;
mod shell;

pub(super) use hubs::Hubs;
pub(super) use link::{End, Failed, Joint};
pub(super) use open::NoHub;
pub(super) use shell::is_program;
