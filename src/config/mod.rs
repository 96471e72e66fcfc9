//! Settings: built-in < file < conf.d < environment < flags, merged by figment, then checked as a whole.
//!
//! [`keys`] lists every key with its kind and range, default and description: the built-in layer, the check and the
//! schema are made from it, and a test holds the example file to it.
//! A bad setting is named by its path, with where it came from and what to do; all of them at once. Only this room names
//! figment. The environment and facts of the host are passed in, so tests pass their own.

mod check;
mod counters;
mod effective;
mod host;
mod keys;
mod layers;
mod maps;
pub mod operator_file;
mod reference;
mod schema;

pub use check::{
    AgentConfig, AuditConfig, BlobsConfig, Config, DockerConfig, EgressConfig, ImagesConfig, LimitsConfig, QueueConfig,
    RetentionConfig, ServerConfig, SshConfig, TelemetryConfig,
};
pub use effective::{Loaded, Setting};
pub use host::HostFacts;
pub use layers::{LoadInput, data_dir, inspect, load};
pub use maps::{BackendConfig, CHECKS, CheckLevel, PasswordSource, PresetConfig, RegistryLogin, SecretConfig};
pub use reference::reference;
pub use schema::schema;

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/jobcell/config.yaml";

#[cfg(test)]
mod tests;
