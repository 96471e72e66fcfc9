//! Schemas of a job as it is shown: whole, in lists, explained, live.

use super::outcome::{Artifacts, Cause, Clamp, Ending, JobStep, LogTotals, Progress, Timing, Usage, UsedImage};
use super::spec::JobSpec;
use super::words::{JobId, Moment, Phase, Span};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How the jobs for the hosts of one job stand.
#[derive(ToSchema)]
pub(crate) struct Children {
    all: u32,
    /// They wait, also for their turn.
    queued: u32,
    /// Agents have them.
    held: u32,
    ended: u32,
    succeeded: u32,
}

/// One phase that was entered.
#[derive(ToSchema)]
pub(crate) struct PhaseEvent {
    attempt: u32,
    phase: Phase,
    at: Moment,
    /// A stable code.
    reason: String,
}

/// A try that has ended and was followed by another one.
#[derive(ToSchema)]
pub(crate) struct PastTry {
    /// The number of its attempt: `?attempt=` of its output.
    attempt: u32,
    agent: String,
    #[schema(required)]
    started_at: Option<Moment>,
    ended_at: Moment,
    cause: Cause,
    /// The cause in words.
    message: String,
    log: LogTotals,
}

/// That a job was given back until later, which costs it no try.
#[derive(ToSchema)]
pub(crate) struct PutOff {
    /// It is not handed out before.
    not_before: Moment,
    /// How often in a row, from 1.
    times: u32,
    /// Why, as a sentence.
    reason: String,
}

/// The try that a job waits for.
#[derive(ToSchema)]
pub(crate) struct NextTry {
    /// It is not handed out before.
    not_before: Moment,
    /// From 2; attempts that were given back do not count.
    number: u32,
    /// How many there are when they all end like the last one.
    of: u32,
    /// Code of the end that it follows on.
    cause: String,
}

/// That a job ended because no try was left.
#[derive(ToSchema)]
pub(crate) struct GivenUp {
    /// A sentence.
    reason: String,
    /// The job that does it again, once it was replayed.
    #[schema(required)]
    replayed_by: Option<JobId>,
}

/// Why a job stands where it stands.
#[derive(ToSchema)]
pub(crate) struct Explanation {
    job: JobId,
    phase: Phase,
    /// `no_agents`, `no_agent_suits`, `agents_away`, `no_room`, `held_back`, `next`, `delayed`, `put_off`, `fanned_out`, `image_pull`; or the code of its cause, or of the last
    /// entry of its history.
    code: String,
    /// A sentence.
    reason: String,
    /// For one that waits: jobs that ask for the same and are handed out before it.
    #[schema(nullable = false)]
    ahead: Option<u64>,
    #[schema(nullable = false)]
    agents: Option<Vec<AgentView>>,
    /// Each time that an agent had it, the oldest first; absent before the first one.
    #[schema(nullable = false)]
    tries: Option<Vec<TryView>>,
}

/// One time that an agent had a job.
#[derive(ToSchema)]
pub(crate) struct TryView {
    attempt: u32,
    /// Absent where that is not known any more.
    #[schema(nullable = false)]
    agent: Option<String>,
    /// How long it had waited before.
    waited: Span,
    /// Of a cause, or why it went back to the queue; of one that goes on, its phase.
    code: String,
    /// A sentence.
    reason: String,
}

/// One agent, as a job that waits sees it.
#[derive(ToSchema)]
pub(crate) struct AgentView {
    name: String,
    state: crate::server::openapi::agents::AgentState,
    /// It could run the job, at some time.
    suits: bool,
    obstacles: Vec<Obstacle>,
    /// In sentences.
    reasons: Vec<String>,
}

/// Why an agent does not get a job.
#[derive(ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub(crate) enum Obstacle {
    Away {
        /// `docker` or `ssh`.
        executor: String,
        /// Why it makes none at the moment, as it says.
        reason: String,
    },
    Label {
        label: String,
        wanted: String,
        #[schema(required)]
        has: Option<String>,
    },
    Preset {
        preset: String,
    },
    /// It does not make cells of that kind: `docker` or `ssh`.
    Executor {
        executor: String,
    },
    TooLarge {
        resource: String,
        asked: String,
        capacity: String,
    },
    NoRoom {
        resource: String,
    },
    Apart {
        label: String,
        value: String,
    },
    GroupFull {
        label: String,
        value: String,
        most: u32,
    },
}

/// Everything that is known of a job.
#[derive(ToSchema)]
pub(crate) struct Job {
    id: JobId,
    /// Counts its changes, from 1.
    revision: u64,
    /// The job that this one does again.
    #[schema(required)]
    retry_of: Option<JobId>,
    /// The job for several hosts that this one is the part of for its host.
    #[schema(nullable = false)]
    parent: Option<JobId>,
    /// How the jobs for its hosts stand; of a job for several hosts only.
    #[schema(nullable = false)]
    children: Option<Children>,
    /// The key that it was submitted with, by name.
    #[schema(required)]
    submitter: Option<String>,
    phase: Phase,
    #[schema(required)]
    ending: Option<Ending>,
    /// The current try, from 1; 0 before the first claim.
    attempt: u32,
    /// The oldest first.
    past_tries: Vec<PastTry>,
    #[schema(required)]
    next_try: Option<NextTry>,
    /// That it was given back until later; absent once it runs.
    #[schema(nullable = false)]
    put_off: Option<PutOff>,
    /// It was given up, and nobody has had it replayed since.
    dead_letter: bool,
    #[schema(required)]
    given_up: Option<GivenUp>,
    cancel_requested: bool,
    /// Who holds or held it.
    #[schema(required)]
    agent: Option<String>,
    submitted_at: Moment,
    #[schema(required)]
    started_at: Option<Moment>,
    #[schema(required)]
    ended_at: Option<Moment>,
    spec: JobSpec,
    history: Vec<PhaseEvent>,
    #[schema(required)]
    usage: Option<Usage>,
    /// The isolation in force, as read and tried from inside: pairs of fact and value.
    receipt: Vec<Vec<String>>,
    /// What its last try was given less of than it asks for, by its operator's policy.
    clamped: Vec<Clamp>,
    /// What its last try ran in.
    #[schema(required)]
    image: Option<UsedImage>,
    log: LogTotals,
    /// When its output was removed, of all its tries; `log` stays as it was.
    #[schema(nullable = false)]
    output_gone_at: Option<Moment>,
    /// How long the parts of its last try took, by its agent's clock; absent until it has ended.
    #[schema(nullable = false)]
    timings: Option<Vec<Timing>>,
    /// Values that it has named, by their names.
    outputs: BTreeMap<String, String>,
    /// What was wrong with what it wrote as outputs.
    #[schema(nullable = false)]
    output_problems: Option<Vec<String>>,
    #[schema(required)]
    progress: Option<Progress>,
    /// Parts that it named itself, in the order of their begins.
    steps: Vec<JobStep>,
    #[schema(required)]
    artifacts: Option<Artifacts>,
}

/// What a list says of a job.
#[derive(ToSchema)]
pub(crate) struct JobSummary {
    id: JobId,
    /// The job for several hosts that this one is the part of for its host.
    #[schema(nullable = false)]
    parent: Option<JobId>,
    #[schema(required)]
    name: Option<String>,
    /// The host of its target.
    #[schema(nullable = false)]
    host: Option<String>,
    phase: Phase,
    #[schema(required)]
    ending: Option<Ending>,
    attempt: u32,
    /// It ended because no try was left, and nobody has had it replayed since.
    dead_letter: bool,
    #[schema(required)]
    agent: Option<String>,
    priority: i32,
    labels: BTreeMap<String, String>,
    submitted_at: Moment,
    #[schema(required)]
    started_at: Option<Moment>,
    #[schema(required)]
    ended_at: Option<Moment>,
}

/// Jobs by phase.
#[derive(ToSchema)]
pub(crate) struct Counts {
    queued: u64,
    claimed: u64,
    preparing: u64,
    running: u64,
    finishing: u64,
    ended: u64,
}

/// Jobs that ended, by verdict.
#[derive(ToSchema)]
pub(crate) struct Ended {
    succeeded: u64,
    failed: u64,
    timed_out: u64,
    canceled: u64,
    cell_error: u64,
    lost: u64,
}

/// One event of a live stream.
#[derive(ToSchema)]
pub(crate) struct LiveEvent {
    /// `frame` or `end`.
    event: String,
    /// JSON: a `Frame`, or `last_seq` and `attempt`.
    data: String,
    /// The frame's number; an end has none.
    #[schema(nullable = false)]
    id: Option<String>,
}
