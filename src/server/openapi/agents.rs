//! Schemas of agents and of the agent protocol. Mirrors of `crate::protocol::agent` and of the roster, as in `jobs`.

#![expect(dead_code, reason = "the types are read by a derive only")]

use super::jobs::{
    Artifacts, Cause, Cpus, JobStep, LogTotals, Moment, Phase, Progress, Size, Span, Timing, Usage, UsedImage,
};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How an agent is, in a word.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AgentState {
    Online,
    Unavailable,
    Drained,
    Draining,
    Offline,
}

/// What an agent has to give, in all or at the moment.
#[derive(ToSchema)]
pub(crate) struct Capacity {
    slots: u32,
    cpu: Cpus,
    /// Of whole cells.
    memory: Size,
    #[schema(nullable = false)]
    beside: Option<Beside>,
}

/// Memory that each cell takes beside its job's, counted in what is reserved for it; left out when there is none.
#[derive(ToSchema)]
pub(crate) struct Beside {
    /// Of every cell.
    fixed: Size,
    /// The workspace of a job without `resources.disk`.
    disk: Size,
}

/// How an agent is at the moment.
#[derive(ToSchema)]
pub(crate) struct Load {
    /// Attempts that it holds.
    #[schema(required = false)]
    held: u32,
    /// 0 to 100: how many of the last attempts ended without a failure of the agent's own.
    #[schema(required = false)]
    health: u8,
    #[schema(required = false)]
    draining: bool,
    /// Why it takes no jobs.
    unavailable: Option<String>,
    /// It has heard that this backend hands no jobs to it; absent when it has not.
    #[schema(required = false)]
    drained: bool,
    /// Kinds of cells that it cannot make at the moment, while it takes jobs of others, with why; absent when there are none.
    #[schema(required = false)]
    away: BTreeMap<String, String>,
    /// Hosts whose jobs run in plain mode because no warden can stay there, by login and name, with why; absent when there are none.
    #[schema(required = false)]
    plain_hosts: BTreeMap<String, String>,
}

/// An agent.
#[derive(ToSchema)]
pub(crate) struct Agent {
    name: String,
    state: AgentState,
    version: String,
    /// Tells installations with one key apart.
    installation: String,
    labels: BTreeMap<String, String>,
    executors: Vec<String>,
    presets: Vec<String>,
    capacity: Capacity,
    load: Load,
    /// That an operator drained it; absent when not.
    #[schema(nullable = false)]
    drained: Option<Drain>,
    last_contact: Moment,
}

/// An operator's word that an agent is to get no more jobs.
#[derive(ToSchema)]
pub(crate) struct Drain {
    /// As the operator said; may be empty.
    reason: String,
    since: Moment,
    /// It is not trusted with jobs: absent when it is only drained.
    #[schema(nullable = false)]
    quarantined: Option<bool>,
}

/// Whether one component is well.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Condition {
    Ok,
    /// Well, and gets no work: an operator said so.
    Drained,
    /// At work, and not as it was told to be.
    Degraded,
    Down,
}

/// One component.
#[derive(ToSchema)]
pub(crate) struct ComponentHealth {
    state: Condition,
    /// Why it is down, degraded or drained.
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Every component with its state.
#[derive(ToSchema)]
pub(crate) struct HealthReport {
    /// True when no component is down.
    ready: bool,
    components: BTreeMap<String, ComponentHealth>,
}

/// `<job>/<attempt>/<part>`, attempts counting from 1.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    pattern = "^[0-9a-fA-F-]{36}/[0-9]+/[0-9]+$",
    example = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b/1/0"
)]
pub(crate) struct AttemptId(String);

/// Who an agent is. What is left out is empty.
#[derive(ToSchema)]
pub(crate) struct Register {
    /// Versions of the protocol that it speaks.
    protocols: Vec<u32>,
    #[schema(required = false)]
    version: String,
    #[schema(required = false)]
    installation: String,
    #[schema(required = false)]
    labels: BTreeMap<String, String>,
    #[schema(required = false)]
    executors: Vec<String>,
    #[schema(required = false)]
    presets: Vec<String>,
    #[schema(required = false)]
    capacity: Capacity,
}

/// A newcomer with its join token.
#[derive(ToSchema)]
pub(crate) struct Enroll {
    token: String,
    /// The name that it wants; that of the token comes first.
    name: String,
    /// SHA-256 of the key that it has made, 64 digits.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    key_sha256: String,
}

/// It is let in.
#[derive(ToSchema)]
pub(crate) struct Enrolled {
    /// The name that it has.
    agent: String,
}

/// The answer to a registration.
#[derive(ToSchema)]
pub(crate) struct Registered {
    /// The version to go on with.
    protocol: u32,
    /// For the header `Jobcell-Session` of every later call.
    session: String,
    /// The name that the key has.
    agent: String,
    /// Term of leases; absent or null: there are none.
    lease: Option<Span>,
    fenced_end: bool,
    log: bool,
    cancel: bool,
    /// It waits with a job that was given back until later; absent when it does not.
    #[schema(required = false)]
    later: bool,
    /// It tells a collector of jobs; absent: it does not.
    #[schema(nullable = false)]
    traces: Option<bool>,
    /// Longest wait for work.
    max_wait: Span,
    /// Why an operator lets no jobs be handed to the agent; absent when it gets some.
    #[schema(nullable = false)]
    drained: Option<String>,
}

/// Asks for work.
#[derive(ToSchema)]
pub(crate) struct ClaimRequest {
    /// Grows by one with each claim of a session; a repeated one asks for that answer again.
    number: u64,
    free: Capacity,
    max: u32,
    wait: Span,
    #[schema(required = false)]
    load: Load,
}

/// One claimed attempt.
#[derive(ToSchema)]
pub(crate) struct Claimed {
    attempt: AttemptId,
    token: u64,
    spec: super::jobs::NewJob,
    /// The key that the job was submitted with, by name.
    #[schema(nullable = false)]
    submitter: Option<String>,
    lease_until: Moment,
    /// Values of secrets that came with the job, by their names.
    #[schema(nullable = false)]
    secrets: Option<BTreeMap<String, String>>,
}

/// What was claimed.
#[derive(ToSchema)]
pub(crate) struct ClaimAnswer {
    claims: Vec<Claimed>,
    /// As in the answer to a registration.
    #[schema(nullable = false)]
    drained: Option<String>,
}

/// An attempt with the proof that it is the agent's.
#[derive(ToSchema)]
pub(crate) struct Holding {
    attempt: AttemptId,
    token: u64,
}

/// Attempts.
#[derive(ToSchema)]
pub(crate) struct Holdings {
    #[schema(max_items = 10_000)]
    attempts: Vec<Holding>,
}

/// How one renewal went.
#[derive(ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Renewal {
    Renewed { until: Moment, cancel_requested: bool },
    Refused,
}

/// One for each attempt, in their order.
#[derive(ToSchema)]
pub(crate) struct RenewAnswer {
    renewals: Vec<Renewal>,
    /// As in the answer to a registration.
    #[schema(nullable = false)]
    drained: Option<String>,
}

/// How an attempt stands.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    Held,
    Ended,
    Unknown,
}

/// One for each attempt, in their order.
#[derive(ToSchema)]
pub(crate) struct LookupAnswer {
    standings: Vec<Standing>,
}

/// A phase was entered.
#[derive(ToSchema)]
pub(crate) struct Advance {
    attempt: AttemptId,
    token: u64,
    phase: Phase,
    at: Moment,
    /// A stable code.
    reason: String,
}

/// How far a job is.
#[derive(ToSchema)]
pub(crate) struct TellProgress {
    attempt: AttemptId,
    token: u64,
    progress: Option<Progress>,
    #[schema(nullable = false, max_items = 128)]
    steps: Option<Vec<JobStep>>,
}

/// Contents of an attempt's files.
#[derive(ToSchema)]
pub(crate) struct ArtifactsWanted {
    attempt: AttemptId,
    token: u64,
    #[schema(max_items = 1000)]
    digests: Vec<String>,
}

/// Those that are not there.
#[derive(ToSchema)]
pub(crate) struct MissingAnswer {
    missing: Vec<String>,
}

/// All contents of an attempt's files are there.
#[derive(ToSchema)]
pub(crate) struct ArtifactsGiven {
    attempt: AttemptId,
    token: u64,
    /// The content with the list of the files.
    list: String,
}

/// An attempt that has not started goes back.
#[derive(ToSchema)]
pub(crate) struct Release {
    attempt: AttemptId,
    token: u64,
    /// A stable code.
    reason: String,
    /// It is not to be handed out again before; absent: at once.
    #[schema(nullable = false)]
    later: Option<Later>,
}

/// That something a job needs is away for a while.
#[derive(ToSchema)]
pub(crate) struct Later {
    /// For so long it is of no use to try; a server waits a second at least, and longer each time.
    after: Span,
    /// As a sentence.
    reason: String,
}

/// What a step came to.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Applied,
    AlreadyThere,
    Refused,
}

/// The answer to an advance and to a release.
#[derive(ToSchema)]
pub(crate) struct StepAnswer {
    step: Step,
}

/// The end of an attempt.
#[derive(ToSchema)]
pub(crate) struct AttemptReport {
    attempt: AttemptId,
    cause: Cause,
    started_at: Option<Moment>,
    ended_at: Moment,
    usage: Option<Usage>,
    /// Pairs of fact and value.
    receipt: Vec<Vec<String>>,
    /// The limits that it ran with, by their paths in the spec.
    #[schema(required = false)]
    given: BTreeMap<String, String>,
    /// What it ran in.
    #[schema(nullable = false)]
    image: Option<UsedImage>,
    log: LogTotals,
    /// What it has given back; absent when that is nothing.
    #[schema(nullable = false)]
    results: Option<Results>,
    /// How long its parts took; 16 at most are kept.
    #[schema(nullable = false)]
    timings: Option<Vec<Timing>>,
}

/// What an attempt has given back.
#[derive(ToSchema)]
pub(crate) struct Results {
    outputs: BTreeMap<String, String>,
    #[schema(nullable = false)]
    output_problems: Option<Vec<String>>,
    #[schema(required)]
    progress: Option<Progress>,
    steps: Vec<JobStep>,
    #[schema(required)]
    artifacts: Option<Artifacts>,
}

/// A report with the proof of the right to make it.
#[derive(ToSchema)]
pub(crate) struct ReportRequest {
    token: u64,
    report: AttemptReport,
}

/// What a report came to; each ends the matter.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Applied,
    AlreadyEnded,
    Unknown,
}

/// The answer to a report.
#[derive(ToSchema)]
pub(crate) struct ReportAnswer {
    outcome: Outcome,
}
