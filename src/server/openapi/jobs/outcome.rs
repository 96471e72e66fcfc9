//! Schemas of how a job went: its end and why, what it used and met, what it left.

use super::words::{JobId, Moment, Phase, Size, Span, Verdict};
use utoipa::ToSchema;

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

/// A part of a try, and when it was.
#[derive(ToSchema)]
pub(crate) struct Timing {
    /// `secrets`, `prepare`, `cell`, `inputs`, `start`, `run` or `collect`.
    phase: String,
    began_at: Moment,
    ended_at: Moment,
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
