//! What an operator sees: log lines, metrics, health.
//!
//! Owns their names. No label ever carries a job's id or anything else without bound.

mod health;
mod logging;
mod metrics;
mod pulse;

pub use health::{Component, Health, HealthReport, State};
pub use logging::{LogFormat, check_filter, init, set_filter};
pub use metrics::Metrics;
pub use pulse::Pulse;
