//! What an operator sees: log lines, metrics, health, traces.
//!
//! Owns their names. No label ever carries a job's id or anything else without bound.

mod counters;
mod health;
mod lines;
mod logging;
mod metrics;
mod openmetrics;
mod profile;
mod pulse;
mod traces;

pub use counters::{CounterSpec, MOST_COUNTERS, MOST_LABELS, MOST_SERIES};
pub use health::{Component, Health, HealthReport, State};
pub use logging::{LogFormat, check_filter, init, set_filter};
pub use metrics::Metrics;
pub use openmetrics::{OPENMETRICS, TEXT, wanted as wants_openmetrics};
pub use profile::{Profile, Snapshot, ThreadUse, WorkerUse};
pub use pulse::Pulse;
pub use traces::{
    AttemptEnd, Exporter, Kind, OtlpSettings, Sampler, Span, SpanEvent, Traces, Unusable, Value, attempt_spans, encode,
    job_spans, rejected,
};
