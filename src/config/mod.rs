//! Settings: built-in < file < conf.d < environment < flags, merged by figment, then checked as a whole.
//!
//! [`keys`] lists every key with its default, so that the built-in layer, the example file and the check cannot differ.
//! A bad setting is named by its path, with where it came from and what to do; all of them at once. Only this room names
//! figment. The environment and facts of the host are passed in, so tests pass their own.

mod check;
mod host;
mod keys;
mod layers;

pub use check::{
    AgentConfig, BackendConfig, Config, DockerConfig, PresetConfig, QueueConfig, ServerConfig, TelemetryConfig,
};
pub use host::HostFacts;
pub use layers::{LoadInput, load};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/jobcell/config.yaml";

#[cfg(test)]
mod tests;
