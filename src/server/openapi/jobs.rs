//! Schemas of what is said of jobs. Mirrors of `crate::job`, which knows nothing of schemas: nothing is ever made of these
//! types. The tests hold real documents to them, and let no field pass that is not here.

#![expect(dead_code, reason = "the types are read by a derive only")]

use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A job's id: a UUID of version 7, so that ids sort by the time of submission.
#[derive(ToSchema)]
#[schema(value_type = String, format = "uuid", example = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b")]
pub(crate) struct JobId(String);

/// Milliseconds since 1970, UTC.
#[derive(ToSchema)]
#[schema(example = 1_795_249_800_000_u64)]
pub(crate) struct Moment(u64);

/// A length of time: numbers with `ms`, `s`, `m`, `h` or `d`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^([0-9]+(ms|s|m|h|d))+$", example = "1m30s")]
pub(crate) struct Span(String);

/// A number of bytes, with `KiB`, `MiB`, `GiB` or another unit.
#[derive(ToSchema)]
#[schema(value_type = String, example = "512MiB")]
pub(crate) struct Size(String);

/// Processor share, in cores.
#[derive(ToSchema)]
#[schema(value_type = String, example = "0.5")]
pub(crate) struct Cpus(String);

/// Where a job stands.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Queued,
    Claimed,
    Preparing,
    Running,
    Finishing,
    Ended,
}

/// The one-word result. `cell_error` and `lost` are no fault of the job.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    TimedOut,
    Canceled,
    CellError,
    Lost,
}

/// One expectation that a cell did not meet.
#[derive(ToSchema)]
pub(crate) struct Mismatch {
    key: String,
    wanted: String,
    got: String,
}

/// One reason why an operator's policy does not let a job run.
#[derive(ToSchema)]
pub(crate) struct PolicyRefusal {
    /// Where it is in the job, or what of the host it is; empty when it is the job as a whole.
    path: String,
    /// A stable code.
    code: String,
    /// For the user.
    sentence: String,
}

/// A limit that was made smaller.
#[derive(ToSchema)]
pub(crate) struct Clamp {
    /// Where it is in the spec.
    path: String,
    asked: String,
    given: String,
}

/// When a registry is asked for an image.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pull {
    IfAbsent,
    Always,
    Never,
}

/// What the image's name stood for.
#[derive(ToSchema)]
pub(crate) struct UsedImage {
    /// As the job or its preset has it.
    reference: String,
    /// The engine's id of the image that the cell was made of.
    id: String,
    /// `repository@sha256:…`; absent for an image that never was in a registry.
    #[schema(nullable = false)]
    digest: Option<String>,
    /// A registry was asked for it.
    pulled: bool,
}

/// One host of several whose job did not succeed.
#[derive(ToSchema)]
pub(crate) struct HostFailure {
    host: String,
    job: JobId,
    verdict: Verdict,
}

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

/// Why an attempt ended: a stable code with its facts. docs/errors.md says what each one means.
#[derive(ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub(crate) enum Cause {
    /// It went well, and files that it requires are not there.
    ArtifactsMissing {
        /// The rules that were not kept to, and why.
        missing: Vec<String>,
    },
    /// It went well, and files that it requires could not be fetched or stored.
    ArtifactsFailed {
        reason: String,
    },
    ExitCode {
        exit_code: i32,
    },
    Signal {
        signal: i32,
    },
    OutOfMemory {
        limit: Size,
        peak: Size,
    },
    ProgramNotFound {
        program: String,
    },
    ProgramNotExecutable {
        program: String,
        reason: String,
    },
    PolicyViolation {
        call: Option<String>,
        program: Option<String>,
    },
    WorkdirUnusable {
        workdir: String,
        reason: String,
    },
    Timeout {
        limit: Span,
    },
    Silence {
        limit: Span,
    },
    OutputLimit {
        limit: Size,
        written: Size,
    },
    Canceled,
    AgentStopped,
    ImageMissing {
        image: String,
        reason: String,
    },
    ImageDenied {
        image: String,
        reason: String,
    },
    ImageCorrupt {
        image: String,
        reason: String,
    },
    RegistryUnreachable {
        image: String,
        reason: String,
    },
    RegistryLimited {
        image: String,
        reason: String,
    },
    PullTimeout {
        image: String,
        limit: Span,
        reached: String,
    },
    HostUnreachable {
        host: String,
        reason: String,
    },
    HostRefused {
        host: String,
        reason: String,
    },
    TargetUnsupported {
        host: String,
        field: String,
        reason: String,
    },
    PresetMissing {
        preset: String,
    },
    SecretMissing {
        secret: String,
        reason: String,
    },
    TooLarge {
        resource: String,
        asked: String,
        capacity: String,
    },
    PolicyRefused {
        rule: String,
        refusals: Vec<PolicyRefusal>,
    },
    CellWeaker {
        mismatches: Vec<Mismatch>,
    },
    EngineFailed {
        step: String,
        reason: String,
    },
    CellLost {
        reason: String,
    },
    WardenFault {
        reason: String,
    },
    LogStoreFailed {
        reason: String,
    },
    InputRefused {
        input: String,
        reason: String,
    },
    InputsFailed {
        reason: String,
    },
    LeaseExpired,
    AgentLost {
        attempts: u32,
    },
    /// The jobs for all its hosts have ended.
    FanOut {
        of: u32,
        succeeded: u32,
        verdict: Verdict,
        /// The first fifty that did not succeed.
        failed: Vec<HostFailure>,
    },
    Stuck {
        phase: Phase,
        limit: Span,
    },
}

/// How a job ended.
#[derive(ToSchema)]
pub(crate) struct Ending {
    verdict: Verdict,
    /// The exit code that a waiting command returns.
    process_exit_code: u8,
    cause: Cause,
    /// The cause in words.
    message: String,
    /// What to do about it.
    #[schema(required)]
    hint: Option<String>,
}

/// What a job used.
#[derive(ToSchema)]
pub(crate) struct Usage {
    wall: Span,
    cpu_user_us: u64,
    cpu_system_us: u64,
    peak_memory_bytes: u64,
    /// 0 where the kernel does not tell.
    peak_pids: u64,
    oom_kills: u64,
    /// Processes that were still there after the main one, and were ended.
    leftover_processes: u32,
    /// How its `on_cancel` command ended; absent when it did not run.
    #[schema(nullable = false)]
    on_cancel_exit_code: Option<i32>,
    /// Limits that were in its way, whatever became of it; left out when there were none.
    #[schema(nullable = false)]
    limits_met: Option<Vec<LimitMet>>,
    /// What went through its proxy; left out for a job that asked for no way out.
    #[schema(nullable = false)]
    egress: Option<EgressUse>,
}

/// What a job sent and got through its proxy since its agent was last started, and what it was refused.
#[derive(ToSchema)]
pub(crate) struct EgressUse {
    /// Connections that were made.
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Connections that were refused, came to nothing or were cut off.
    refused: u64,
    /// The first of these, each place and code once; left out when there were none.
    #[schema(nullable = false)]
    refusals: Option<Vec<EgressRefusal>>,
}

/// A place that a job did not reach.
#[derive(ToSchema)]
pub(crate) struct EgressRefusal {
    /// As it was asked for.
    host: String,
    port: u16,
    /// docs/egress.md lists them.
    code: String,
    /// The same in words.
    reason: String,
    times: u64,
}

/// A limit that was in a job's way.
#[derive(ToSchema)]
pub(crate) struct LimitMet {
    /// `memory`, `pids`, `disk` and `inodes` (of /workspace), `tmp` and `tmp_inodes` (of /tmp), `shm`, `output`, `cpu`.
    name: String,
    /// Bytes, processes, files, thousandths of a core.
    limit: u64,
    /// The highest use that was seen; of memory that of the whole cell. 0 where unknown.
    peak: u64,
    /// How often.
    times: u64,
}

/// One stream's totals.
#[derive(ToSchema)]
pub(crate) struct StreamTotals {
    bytes: u64,
    /// Bytes that were dropped; left out when none were.
    #[schema(nullable = false)]
    dropped: Option<u64>,
    /// Of the bytes, lowercase hex; empty until the job has ended.
    sha256: String,
}

/// What a log holds.
#[derive(ToSchema)]
pub(crate) struct LogTotals {
    /// The last frame's number.
    frames: u64,
    stdout: StreamTotals,
    stderr: StreamTotals,
    /// The first places where output was dropped: with `output_overflow: drop`, and beyond the job's limit.
    #[schema(nullable = false, max_items = 64)]
    gaps: Option<Vec<Gap>>,
    /// True when every frame that the warden numbered is there: then nothing is missing but what the gaps say.
    complete: bool,
}

/// A place where output is missing.
#[derive(ToSchema)]
pub(crate) struct Gap {
    /// `stdout` or `stderr`.
    stream: String,
    /// Behind so many bytes of it.
    at: u64,
    bytes: u64,
}

/// Runs in the cell after a cancel, a timeout or a silence has ended the job; its output goes into the same log.
#[derive(ToSchema)]
pub(crate) struct OnCancel {
    command: Vec<String>,
    /// It is killed when it takes longer.
    timeout: Span,
}

/// Runs in the cell after a cancel, a timeout or a silence has ended the job.
#[derive(ToSchema)]
pub(crate) struct NewOnCancel {
    #[schema(min_items = 1, max_items = 1024)]
    command: Vec<String>,
    /// It is killed when it takes longer; 100 ms to 10 minutes, default `10s`.
    timeout: Option<TextOrNumber>,
}

/// What becomes of output while nobody can take it: the job waits when it writes (the default), or it is dropped and the log says where
/// and how much.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputOverflow {
    Wait,
    Drop,
}

/// What becomes of a job that writes more than its limit: it is ended (the default), or what is beyond is dropped and the log says how
/// much.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputExcess {
    End,
    Cut,
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

/// Limits that bind a job. One with a target has the first three only if it asks for them.
#[derive(ToSchema)]
pub(crate) struct Resources {
    #[schema(nullable = false)]
    cpu: Option<Cpus>,
    #[schema(nullable = false)]
    memory: Option<Size>,
    #[schema(nullable = false)]
    pids: Option<u32>,
    /// Of /workspace; without it the agent's own.
    #[schema(nullable = false)]
    disk: Option<Size>,
    /// Files and folders in /workspace.
    #[schema(nullable = false)]
    inodes: Option<u64>,
    /// On both streams together.
    #[schema(nullable = false)]
    output: Option<Size>,
    /// Open files of each process.
    #[schema(nullable = false)]
    nofile: Option<u64>,
}

/// What the cell may reach.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    /// Loopback only.
    None,
    /// A bridge of its own; only where the operator's policy allows it.
    Bridge,
}

/// Which system calls a job may make.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seccomp {
    Default,
    Offline,
    Strict,
    Tripwire,
}

/// What the agent has to be. All of it has to hold.
#[derive(ToSchema)]
pub(crate) struct Requires {
    /// On the agent's labels, at most 16.
    #[schema(nullable = false)]
    labels: Option<BTreeMap<String, Wanted>>,
    /// Labels of jobs: not on an agent that runs a job with the same value of one of them.
    #[schema(nullable = false, max_items = 16)]
    apart: Option<Vec<String>>,
}

/// This value, one of these, or none of these.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Wanted {
    Value(TextOrNumber),
    OneOf(Vec<TextOrNumber>),
    NoneOf(Not),
}

/// None of these; an agent without the label will do.
#[derive(ToSchema)]
pub(crate) struct Not {
    not: Vec<TextOrNumber>,
}

/// When a job is tried again. An end of the job's own doing is a failure (exit code, signal, out of memory, timeout, program or
/// workdir that cannot be used); one that is not (cell, engine, log or agent lost) is of the infrastructure.
#[derive(ToSchema)]
pub(crate) struct Retry {
    /// More tries after failures.
    #[schema(maximum = 100)]
    failure: u32,
    /// More tries after ends of the infrastructure; without it, `queue.max_attempts` of the server less one.
    #[schema(nullable = false, maximum = 100)]
    infrastructure: Option<u32>,
    /// Pause before the second try, doubled with each one.
    backoff: Span,
    backoff_max: Span,
    /// Only after failures with one of these exit codes, as a waiting command has them.
    #[schema(nullable = false, max_items = 64)]
    exit_codes: Option<Vec<u8>>,
}

/// When a job is tried again; what is left out has its default.
#[derive(ToSchema)]
pub(crate) struct NewRetry {
    /// More tries after failures of the job's own, default 0.
    #[schema(maximum = 100)]
    failure: Option<u32>,
    /// More tries after ends that are not the job's own doing; default: the server's `queue.max_attempts` less one.
    #[schema(maximum = 100)]
    infrastructure: Option<u32>,
    /// Pause before the second try, doubled with each one; default `1s`.
    backoff: Option<TextOrNumber>,
    /// The longest pause, default `5m`.
    backoff_max: Option<TextOrNumber>,
    /// Only after failures with one of these exit codes, as a waiting command has them (124: timeout, 137: out of memory).
    #[schema(min_items = 1, max_items = 64)]
    exit_codes: Option<Vec<u8>>,
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
    state: super::agents::AgentState,
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

/// Where the job has a secret from.
#[derive(ToSchema)]
pub(crate) struct SecretAsk {
    /// The name of one of the agent's.
    #[schema(nullable = false)]
    from: Option<String>,
    /// Its value came with the job; it is never shown.
    #[schema(nullable = false)]
    inline: Option<bool>,
    /// `file` when the variable says where the file is.
    #[schema(nullable = false, rename = "as")]
    r#as: Option<String>,
}

/// A secret: the name of one of the agent's, or more about it.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum NewSecret {
    Named(String),
    Asked(NewSecretAsk),
}

/// One of `from` and `value`.
#[derive(ToSchema)]
pub(crate) struct NewSecretAsk {
    /// The name of one of the agent's.
    from: Option<String>,
    /// The value itself, at least 6 bytes. It is sealed while the job waits, and forgotten when it has ended.
    #[schema(write_only)]
    value: Option<String>,
    /// `env`, the default, or `file`: then the variable says where the file is.
    #[schema(rename = "as")]
    r#as: Option<String>,
    /// As a job is shown: a value came with it. Not taken without it.
    inline: Option<bool>,
}

/// Something that a job is given: one of `text`, `content_base64` and `blob`.
#[derive(ToSchema)]
pub(crate) struct Input {
    /// Where it goes, relative to the workspace; of an archive the folder.
    path: String,
    #[schema(nullable = false)]
    text: Option<String>,
    #[schema(nullable = false)]
    content_base64: Option<String>,
    /// The name of an uploaded content.
    #[schema(nullable = false)]
    blob: Option<String>,
    /// `file`, the default, or `archive`.
    #[schema(nullable = false)]
    kind: Option<String>,
    /// `0644`, the default, or `0755`.
    #[schema(nullable = false)]
    mode: Option<String>,
    /// What a content is large, and what an archive takes of the workspace; the server says it.
    #[schema(nullable = false)]
    bytes: Option<u64>,
    /// How many files and folders an archive makes; the server says it.
    #[schema(nullable = false)]
    entries: Option<u64>,
}

/// Something that a job is to be given: one of `text`, `content_base64` and `blob`.
#[derive(ToSchema)]
pub(crate) struct NewInput {
    /// Where it goes, relative to the workspace; of an archive the folder, and `.` is the workspace.
    path: String,
    text: Option<String>,
    content_base64: Option<String>,
    /// The name of an uploaded content: `sha256:` and 64 digits.
    blob: Option<String>,
    /// `file`, the default, or `archive`: a tar, plain or packed by zstd.
    kind: Option<String>,
    /// `0644`, the default, or `0755`.
    mode: Option<TextOrNumber>,
    /// As a job is shown; the server says what is right.
    bytes: Option<u64>,
    /// As a job is shown; the server says what is right.
    entries: Option<u64>,
}

/// A checked spec with every default filled in. It is a valid `NewJob` too, but for values of secrets, which are never shown.
#[derive(ToSchema)]
pub(crate) struct JobSpec {
    #[schema(required)]
    name: Option<String>,
    #[schema(nullable = false)]
    image: Option<String>,
    #[schema(nullable = false)]
    preset: Option<String>,
    #[schema(nullable = false)]
    target: Option<Target>,
    #[schema(nullable = false)]
    pull: Option<Pull>,
    #[schema(nullable = false)]
    script: Option<String>,
    #[schema(nullable = false)]
    interpreter: Option<Vec<String>>,
    #[schema(nullable = false)]
    command: Option<Vec<String>>,
    /// Absent for a job on a target that begins in a folder of its own.
    #[schema(nullable = false)]
    workdir: Option<String>,
    env: BTreeMap<String, String>,
    #[schema(nullable = false)]
    secrets: Option<BTreeMap<String, SecretAsk>>,
    #[schema(nullable = false)]
    stdin: Option<String>,
    #[schema(nullable = false)]
    inputs: Option<Vec<Input>>,
    timeout: Span,
    #[schema(nullable = false)]
    silence_timeout: Option<Span>,
    #[schema(nullable = false)]
    on_cancel: Option<OnCancel>,
    #[schema(nullable = false)]
    output_overflow: Option<OutputOverflow>,
    #[schema(nullable = false)]
    output_excess: Option<OutputExcess>,
    #[schema(nullable = false)]
    artifacts: Option<Vec<ArtifactRule>>,
    #[schema(nullable = false)]
    lost_after: Option<Span>,
    resources: Resources,
    /// Absent for a job on a host, which has the host's own.
    #[schema(nullable = false)]
    network: Option<Network>,
    #[schema(nullable = false)]
    egress: Option<Egress>,
    #[schema(nullable = false)]
    seccomp: Option<Seccomp>,
    labels: BTreeMap<String, String>,
    #[schema(nullable = false)]
    requires: Option<Requires>,
    #[schema(nullable = false)]
    retry: Option<Retry>,
    #[schema(minimum = -100, maximum = 100)]
    priority: i32,
    #[schema(nullable = false)]
    idempotency_key: Option<String>,
    /// Where whoever asked for it stands in a trace.
    #[schema(nullable = false)]
    trace: Option<TraceContext>,
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

/// A part of a try, and when it was.
#[derive(ToSchema)]
pub(crate) struct Timing {
    /// `secrets`, `prepare`, `cell`, `inputs`, `start`, `run` or `collect`.
    phase: String,
    began_at: Moment,
    ended_at: Moment,
}

/// A place in a trace: W3C Trace Context.
#[derive(ToSchema)]
pub(crate) struct TraceContext {
    /// As the header `traceparent`.
    parent: String,
    /// As the header `tracestate`.
    #[schema(nullable = false)]
    state: Option<String>,
}

/// Files that are kept.
#[derive(ToSchema)]
pub(crate) struct ArtifactRule {
    /// In the workspace; `*` and `?` in a name, `**` for folders; a folder stands for what is beneath it.
    #[schema(max_length = 512)]
    path: String,
    /// The job has failed without them.
    #[schema(nullable = false)]
    required: Option<bool>,
    /// A file that changes while it is read is kept as it was read.
    #[schema(nullable = false)]
    may_change: Option<bool>,
    #[schema(nullable = false)]
    max_size: Option<Size>,
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000)]
    max_count: Option<u64>,
}

/// A path, or a rule with its conditions.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum NewArtifactRule {
    Path(String),
    Rule(ArtifactRule),
}

/// How far a job says it is.
#[derive(ToSchema)]
pub(crate) struct Progress {
    #[schema(maximum = 100)]
    percent: u8,
    /// In its words.
    message: String,
    /// When it said so.
    at: Moment,
    /// When it will be done, if it goes on as it did so far.
    #[schema(nullable = false)]
    eta: Option<Moment>,
}

/// A part of a job that it named itself.
#[derive(ToSchema)]
pub(crate) struct JobStep {
    name: String,
    began_at: Moment,
    #[schema(required)]
    ended_at: Option<Moment>,
}

/// A file of a job that is kept.
#[derive(ToSchema)]
pub(crate) struct Artifact {
    /// In the workspace.
    path: String,
    size: u64,
    /// Permission bits.
    mode: u16,
    /// Last change of its content.
    modified_at: Moment,
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
}

/// Why a file is not kept.
#[derive(ToSchema)]
pub(crate) struct ArtifactProblem {
    /// The file, or the rule's pattern; empty when it is all of them.
    path: String,
    /// A stable code.
    code: String,
    sentence: String,
}

/// The files of a job's last try.
#[derive(ToSchema)]
pub(crate) struct Artifacts {
    count: u64,
    bytes: u64,
    /// Everything that the rules mean is kept.
    complete: bool,
    /// The first 50 by their paths; `/v1/jobs/{id}/artifacts` has all.
    files: Vec<Artifact>,
    /// Digest of the document with all of them.
    #[schema(nullable = false)]
    list: Option<String>,
    #[schema(nullable = false)]
    problems: Option<Vec<ArtifactProblem>>,
    /// Problems that are not named for want of room.
    #[schema(nullable = false)]
    more_problems: Option<u64>,
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

/// One thing that is wrong, of several.
#[derive(ToSchema)]
pub(crate) struct ProblemLine {
    /// Where: `resources.memory`, `command[2]`; empty for the whole.
    path: String,
    reason: String,
    fix: String,
}

/// A text or a number, whose own text is taken.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum TextOrNumber {
    Text(String),
    Number(f64),
}

/// A program with its arguments, or the program alone.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Interpreter {
    Program(String),
    Argv(Vec<String>),
}

/// Limits; what is left out has its default.
/// What a job asks to reach by the proxy in its cell.
#[derive(ToSchema)]
pub(crate) struct NewEgress {
    /// Such as `pypi.org:443`, `*.example.com:80,443` or `10.1.2.0/24:8000-8100`; without a port, 80 and 443.
    #[schema(min_items = 1, max_items = 256)]
    allow: Vec<String>,
    /// Connections in all, those that are refused included; default and most: the agent's `egress.connections`.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    connections: Option<u64>,
    /// Bytes in both directions together; default and most: the agent's `egress.bytes`.
    bytes: Option<TextOrNumber>,
}

/// What a job may reach by the proxy in its cell.
#[derive(ToSchema)]
pub(crate) struct Egress {
    /// Each place, in its one form.
    allow: Vec<String>,
    #[schema(nullable = false)]
    connections: Option<u64>,
    #[schema(nullable = false)]
    bytes: Option<Size>,
}

#[derive(ToSchema)]
pub(crate) struct NewResources {
    /// Default `1`; none with a target, as of the next two.
    cpu: Option<TextOrNumber>,
    /// 4MiB to 4TiB, default `256MiB`.
    memory: Option<TextOrNumber>,
    /// Default 128.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pids: Option<u32>,
    /// Of /workspace, on top of `memory`; 1MiB to 1TiB, default the agent's `docker.workspace_size`.
    disk: Option<TextOrNumber>,
    /// Files and folders in /workspace; default one for each KiB of `disk`, or the agent's `docker.workspace_inodes`.
    #[schema(minimum = 16, maximum = 4_294_967_296_u64)]
    inodes: Option<u64>,
    /// On both streams together, from 1KiB; default the agent's `logs.output_limit`.
    output: Option<TextOrNumber>,
    /// Open files of each process; default the agent's `docker.nofile`.
    #[schema(minimum = 16, maximum = 1_048_576)]
    nofile: Option<u64>,
}

/// How a job is looked after on a target.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TargetMode {
    Auto,
    Plain,
}

/// Another host that the job runs on, over SSH. docs/ssh.md says all about it.
#[derive(ToSchema)]
#[schema(example = json!({"host": "web1", "login": "deploy"}))]
pub(crate) struct NewTarget {
    /// A name of the agent's inventory; or a host's name or address, where the agent takes those.
    host: Option<String>,
    /// In place of `host`: each has a job of its own, and this one is their parent.
    #[schema(min_items = 1, max_items = 1000)]
    hosts: Option<Vec<String>>,
    /// Of `hosts`: so many at the same time; all of them without it.
    #[schema(minimum = 1, maximum = 1000)]
    at_once: Option<u32>,
    /// Of `hosts`: the first that does not succeed ends the others.
    fail_fast: Option<bool>,
    #[schema(minimum = 1, maximum = 65535)]
    port: Option<u16>,
    login: Option<String>,
    /// A name of the agent's inventory.
    credential: Option<String>,
    /// Hosts on the way, the first one first.
    jump: Option<OneOrMany>,
    /// Default `auto`.
    mode: Option<TargetMode>,
}

/// Another host that the job runs on. What is absent is the agent's inventory's to say.
#[derive(ToSchema)]
pub(crate) struct Target {
    /// Absent where there are several.
    #[schema(nullable = false)]
    host: Option<String>,
    #[schema(nullable = false)]
    hosts: Option<Vec<String>>,
    #[schema(nullable = false)]
    at_once: Option<u32>,
    #[schema(nullable = false)]
    fail_fast: Option<bool>,
    #[schema(nullable = false)]
    port: Option<u16>,
    #[schema(nullable = false)]
    login: Option<String>,
    #[schema(nullable = false)]
    credential: Option<String>,
    #[schema(nullable = false)]
    jump: Option<Vec<String>>,
    /// Absent: `auto`.
    #[schema(nullable = false)]
    mode: Option<TargetMode>,
}

/// A job spec: one of `image`, `preset` and `target`, and one of `script` and `command`; a script in an image needs an `interpreter`.
/// docs/job-spec.md says all about it.
#[derive(ToSchema)]
#[schema(example = json!({"preset": "bash", "script": "echo hello"}))]
pub(crate) struct NewJob {
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    image: Option<String>,
    preset: Option<String>,
    target: Option<NewTarget>,
    /// Default: the agent's `images.pull`.
    pull: Option<Pull>,
    script: Option<String>,
    interpreter: Option<Interpreter>,
    #[schema(min_items = 1)]
    command: Option<Vec<String>>,
    /// An absolute path; default `/workspace`, and on a target a folder of the job's own.
    workdir: Option<String>,
    env: Option<BTreeMap<String, TextOrNumber>>,
    /// By the names of their variables.
    secrets: Option<BTreeMap<String, NewSecret>>,
    stdin: Option<String>,
    /// Files and archives that are in the workspace before the job starts.
    inputs: Option<Vec<NewInput>>,
    /// Default `10m`.
    timeout: Option<TextOrNumber>,
    /// It is ended when it writes nothing for so long; default: never. The time in which nobody can take its output does not count.
    silence_timeout: Option<TextOrNumber>,
    on_cancel: Option<NewOnCancel>,
    output_overflow: Option<OutputOverflow>,
    output_excess: Option<OutputExcess>,
    /// Files that are kept when it is over, however it ended.
    #[schema(nullable = false, max_items = 64)]
    artifacts: Option<Vec<NewArtifactRule>>,
    /// How long an agent that cannot reach the server may hold the job; default: the server's `queue.lease`.
    lost_after: Option<TextOrNumber>,
    resources: Option<NewResources>,
    network: Option<Network>,
    egress: Option<NewEgress>,
    /// Default: the agent's `docker.seccomp`, and nothing weaker than that is ever in force.
    seccomp: Option<Seccomp>,
    labels: Option<BTreeMap<String, TextOrNumber>>,
    requires: Option<Requires>,
    retry: Option<NewRetry>,
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    /// Two submits with one key are one job.
    idempotency_key: Option<String>,
    /// The job becomes a part of this trace; the header `traceparent` does the same.
    trace: Option<TraceContext>,
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

/// A string or a list of them.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Which dead letters are to be replayed: one of these.
#[derive(ToSchema)]
#[schema(example = json!({"label": "team=blue"}))]
pub(crate) struct ReplayAsk {
    #[schema(max_items = 10_000)]
    ids: Option<Vec<JobId>>,
    /// `name=value`; all of several must be there.
    label: Option<OneOrMany>,
    /// All there are; only `true` has a meaning.
    all: Option<bool>,
}

/// Which jobs are to be canceled: `ids`, or a filter of `label` and `state`.
#[derive(ToSchema)]
#[schema(example = json!({"label": "team=blue", "state": "queued"}))]
pub(crate) struct BulkCancel {
    #[schema(max_items = 10_000)]
    ids: Option<Vec<JobId>>,
    /// `name=value`; all of several must be there.
    label: Option<OneOrMany>,
    /// Phases, also with commas between them.
    state: Option<OneOrMany>,
}
