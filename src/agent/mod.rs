//! Claims jobs and runs them.
//!
//! [`dispatcher`] is the one task that owns the table of what runs; it never awaits a job. [`runner`] takes one attempt
//! from its claim to its end, [`delivery`] the end to its backend; [`claims`] shares free slots between backends, [`renewals`] keeps
//! leases, [`recovery`] decides what becomes of what an earlier process left, and [`settle`] does it; [`sweeper`] removes the cells that [`strays`] says
//! nobody wants; [`phases`] measures. Must never know what kind of cell a job runs in, or where its backend is.

mod claims;
mod delivery;
mod dispatcher;
mod inputs;
mod obstacles;
mod phases;
mod recovery;
mod renewals;
mod runner;
mod score;
mod settings;
mod settle;
mod strays;
mod sweeper;

pub use claims::BackendState;
pub use dispatcher::Agent;
pub use settings::{AgentSettings, Drained, Status, UNSETTLED, is_of_a_start};
pub use sweeper::SweepTimes;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
