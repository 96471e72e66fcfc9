//! What an agent is told at its start, and what it tells of itself.

use super::claims::BackendState;
use super::sweeper::SweepTimes;
use crate::admission::Gate;
use crate::egress::Outside;
use crate::executor::warden::Keep;
use crate::executor::{Away, STARTING};
use crate::job::{ByteSize, Capacity, Millis};
use crate::protocol::agent::Announcement;
use crate::secrets::Providers;
use crate::telemetry::Traces;
use std::path::PathBuf;
use std::time::Duration;

/// How the agent behaves.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// What backends are told of it.
    pub announcement: Announcement,
    /// What it has to give.
    pub capacity: Capacity,
    /// Most jobs in one claim.
    pub claim_batch: u32,
    /// Between TERM and KILL.
    pub grace: Millis,
    /// Running jobs are left for the next process when this one is told to stop.
    pub handover: bool,
    /// How long running jobs may go on after a stop was asked for.
    pub drain_timeout: Duration,
    /// How long whoever runs a cell may be away before the cell is given up.
    pub reconnect: Duration,
    /// Of a job's output, what is taken in a second while others run here.
    pub output_share: ByteSize,
    /// What may run here, and in which language environments.
    pub gate: Gate,
    /// What jobs can ask for that nobody else may see.
    pub secrets: Providers,
    /// Where everything is written, and how many bytes are to stay free there: with fewer no jobs are claimed, and with fewer than a quarter
    /// of it running jobs wait when they write. 0: nobody looks.
    pub disk: (PathBuf, ByteSize),
    /// Where the files go that jobs leave; without it none are kept.
    pub keep: Option<Keep>,
    /// When it looks for cells that nobody wants.
    pub sweep: SweepTimes,
    /// Where jobs go that may go out.
    pub outside: Outside,
    /// Whom it tells of tries.
    pub traces: Traces,
}

/// Whether a reason for taking no jobs is that of every start, when nobody has looked yet and nothing is wrong; mostly over within a second.
pub fn is_of_a_start(reason: &str) -> bool {
    [STARTING, UNSETTLED].contains(&reason)
}

/// Why jobs of a kind are not taken yet.
pub const UNSETTLED: &str = "what an earlier run left is not settled yet";

/// What an agent is doing, for health and status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Attempts that it runs, or is about to.
    pub held: usize,
    /// What is free for jobs.
    pub free: Capacity,
    /// Ends that its backends have not got yet.
    pub undelivered: usize,
    /// It has not settled yet what an earlier process left.
    pub starting: bool,
    /// Why it makes no cells, or no containers, if so.
    pub no_cells: Option<String>,
    /// Kinds of cells of which it takes no jobs, while it takes others, with why.
    pub away: Away,
    /// Why it takes no jobs, if so: that, or something else.
    pub unavailable: Option<String>,
    /// It claims no more.
    pub draining: bool,
    /// Backends that hand no jobs to it, by name, with why.
    pub drained: Vec<(String, String)>,
    /// How claims go, by the backends' names.
    pub backends: Vec<(String, BackendState)>,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every job ended by itself.
    Clean,
    /// Some were ended; the number.
    Forced(usize),
    /// Some run on, for the next start; the number.
    HandedOver(usize),
    /// Every job ended by itself, and the ends of some have not reached their backends; the next start delivers them.
    Undelivered(usize),
}
