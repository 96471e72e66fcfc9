//! jobcell runs other people's jobs, each in its own sealed, single-use cell, and never loses a job, a line of its
//! output, or the reason why it ended.
//!
//! The rooms, by rank; a room may only use rooms of a lower rank (`tests/it/ranks.rs` holds the code to it):
//!
//! | rank | room | what it owns |
//! |---|---|---|
//! | 0 | [`job`] | pure values: ids, units, the checked spec, phases, endings |
//! | 1 | [`config`], [`protocol`], [`telemetry`], [`supervise`], [`net`], [`database`], [`archive`], [`crash`] | settings, wires, metrics and health, named tasks, retries and breakers, SQLite files, archives from strangers, where tests may kill it |
//! | 2 | [`queue`], [`logstore`], [`journal`], [`blobs`], [`secrets`], [`audit`] | the durable queue, the append-only logs, what an agent remembers, contents by their digests, where secrets come from and how they lie, who did what |
//! | 3 | [`backend`] | where jobs come from and results go |
//! | 4 | [`egress`] | the way out of a cell: judged, dialled, carried |
//! | 5 | [`executor`], [`admission`] | cells and the talk with their wardens; what fits |
//! | 6 | [`agent`], [`server`] | claims and runs jobs; the HTTP API |
//! | 7 | [`cli`] | the command line |

/// True in a test that runs with this deliberate bug (`src/seeded/mutants.rs`); else false, at no cost.
macro_rules! mutant {
    ($name:ident) => {{
        #[cfg(test)]
        let active = $crate::seeded::active($crate::seeded::Mutant::$name);
        #[cfg(not(test))]
        let active = false;
        active
    }};
}

#[macro_use]
pub mod crash;

pub mod admission;
pub mod agent;
pub mod archive;
pub mod audit;
pub mod backend;
pub mod backup;
pub mod blobs;
pub mod cli;
pub mod config;
mod crc;
pub mod database;
pub mod egress;
pub mod executor;
pub mod job;
pub mod journal;
pub mod logstore;
pub mod net;
#[cfg(test)]
#[path = "../tests/it/programs.rs"]
pub(crate) mod programs;
pub mod protocol;
pub mod queue;
pub mod secrets;
#[cfg(test)]
pub(crate) mod seeded;
pub mod server;
pub mod supervise;
pub mod telemetry;
pub mod tls;

// What lies beside the warden's wire names it by its place there (src/executor/ssh/plain).
pub(crate) use protocol::wire;
