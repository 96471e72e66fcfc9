//! Integration tests, all in one binary. Those that need an engine use a real one: without one they are skipped
//! loudly, and fail where `JOBCELL_TEST_ENGINE=required` is set, as in CI.

mod api;
mod artifacts;
mod bad_input;
mod bridge;
mod causes;
mod cells;
mod chaos;
mod cli_snapshots;
mod commands;
mod degraded;
mod docs;
mod doctor;
mod draining;
mod engine_faults;
mod events;
mod fleet;
mod gvisor;
mod hostile;
mod keys;
mod listing;
mod old_warden;
mod openapi;
mod output;
mod policy;
mod private;
mod profiles;
mod ranks;
mod recovery;
mod retries;
mod seccomp;
mod stage;
mod stops;
mod sweep;
mod verbs;
mod warden;
