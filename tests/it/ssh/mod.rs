//! SSH against real servers.
mod jobs;
mod sshd;
