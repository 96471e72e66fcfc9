//! How an attempt ended: every ending has a variant, with the facts that name it.
//!
//! The split that everything hangs on: `failed` is the job's own doing, `cell_error` and `lost` are ours. One never
//! looks like the other.

use super::{ByteSize, Class, JobId, Millis, Phase, Usage, limits};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The one-word result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Exit code 0.
    Succeeded,
    /// The job's own failure.
    Failed,
    /// Out of its time.
    TimedOut,
    /// Somebody asked for the end.
    Canceled,
    /// The cell, the engine or the host failed the job.
    CellError,
    /// Nobody knows how it went: its agent was lost.
    Lost,
}

impl Verdict {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Succeeded, Self::Failed, Self::TimedOut, Self::Canceled, Self::CellError, Self::Lost];

    /// The verdict of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }

    /// The stable lowercase name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Canceled => "canceled",
            Self::CellError => "cell_error",
            Self::Lost => "lost",
        }
    }
}

/// Hosts that a sentence names.
const TOLD_HOSTS: usize = 5;

/// One expectation that a cell did not meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MismatchLine {
    /// The fact, e.g. `cap_eff`.
    pub key: String,
    /// What was asked for.
    pub wanted: String,
    /// What is in force.
    pub got: String,
}

/// One reason why an operator's policy does not let a job run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRefusal {
    /// Where it is in the job, or what of the host it is; empty when it is the job as a whole.
    pub path: String,
    /// The stable code.
    pub code: String,
    /// For the user.
    pub sentence: String,
}

/// One host of several whose job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFailure {
    /// The host.
    pub host: String,
    /// Its job.
    pub job: JobId,
    /// How that ended.
    pub verdict: Verdict,
}

/// Why an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Cause {
    /// The main process exited by itself.
    ExitCode {
        /// Its exit code.
        exit_code: i32,
    },
    /// A signal that did not come from us ended the main process.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed the main process because the cell's memory was used up.
    OutOfMemory {
        /// The memory the job asked for.
        limit: ByteSize,
        /// The highest use of the whole cell.
        peak: ByteSize,
    },
    /// The program was not found (exit code 127 by convention).
    ProgramNotFound {
        /// What was to be run.
        program: String,
    },
    /// The program is there but cannot be executed (126).
    ProgramNotExecutable {
        /// What was to be run.
        program: String,
        /// The kernel's reason.
        reason: String,
    },
    /// It made a system call that its seccomp profile ends jobs for.
    PolicyViolation {
        /// The call; `None` when the kernel ended the process and nobody saw the call.
        call: Option<String>,
        /// What the process called itself, which the job may choose; `None` as above.
        program: Option<String>,
    },
    /// The working directory cannot be entered.
    WorkdirUnusable {
        /// The directory.
        workdir: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The wall-clock limit ran out.
    Timeout {
        /// The limit.
        limit: Millis,
    },
    /// It wrote nothing for too long.
    Silence {
        /// The limit.
        limit: Millis,
    },
    /// It went well, and files that its spec requires are not there, or could not be kept for what they are.
    ArtifactsMissing {
        /// The rules that were not kept to, and why; the first few.
        missing: Vec<String>,
    },
    /// It went well, and files that its spec requires could not be fetched or stored.
    ArtifactsFailed {
        /// What failed.
        reason: String,
    },
    /// It wrote more than it may.
    OutputLimit {
        /// The limit.
        limit: ByteSize,
        /// What it wrote until it was ended.
        written: ByteSize,
    },
    /// Cancelled before it ran, or while it ran.
    Canceled,
    /// The agent was told to stop and the time to drain ran out.
    AgentStopped,
    /// The image is not on the engine, and could not be had.
    ImageMissing {
        /// The reference.
        image: String,
        /// What the engine said.
        reason: String,
    },
    /// The registry does not give the image to whoever asks with these credentials, or with none.
    ImageDenied {
        /// The reference.
        image: String,
        /// What was said.
        reason: String,
    },
    /// What the registry gave is not what it said it would give.
    ImageCorrupt {
        /// The reference.
        image: String,
        /// What was said.
        reason: String,
    },
    /// The image's registry does not answer, or not as a registry does.
    RegistryUnreachable {
        /// The reference.
        image: String,
        /// What was said.
        reason: String,
    },
    /// The image's registry wants fewer requests.
    RegistryLimited {
        /// The reference.
        image: String,
        /// What was said.
        reason: String,
    },
    /// The host that it was to run on does not answer.
    HostUnreachable {
        /// Its name.
        host: String,
        /// What was seen.
        reason: String,
    },
    /// The host is not let in, or does not let the agent in: its key, or the login.
    HostRefused {
        /// Its name.
        host: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The job asks for what cannot be had on this host in this way.
    TargetUnsupported {
        /// Its name.
        host: String,
        /// Where in the job.
        field: String,
        /// Why not.
        reason: String,
    },
    /// The image was not there in time.
    PullTimeout {
        /// The reference.
        image: String,
        /// The limit.
        limit: Millis,
        /// How far it was.
        reached: String,
    },
    /// The preset does not exist on the agent.
    PresetMissing {
        /// Its name.
        preset: String,
    },
    /// A secret that the job asks for cannot be had; nothing was made for it.
    SecretMissing {
        /// The variable that it would be.
        secret: String,
        /// Why, without a word of it.
        reason: String,
    },
    /// The job asks for more than the agent has in all.
    TooLarge {
        /// `cpu` or `memory`.
        resource: String,
        /// What it asks for.
        asked: String,
        /// What the agent has.
        capacity: String,
    },
    /// The operator of the host does not allow it; nothing was made for it.
    PolicyRefused {
        /// The rule of the policy that it matched; `default` when it matched none.
        rule: String,
        /// Everything that is not allowed.
        refusals: Vec<PolicyRefusal>,
    },
    /// The cell is weaker than asked for; the job was never given to it.
    CellWeaker {
        /// Each expectation that was not met.
        mismatches: Vec<MismatchLine>,
    },
    /// The engine did not answer, or refused, while the cell was made.
    EngineFailed {
        /// The call.
        step: String,
        /// What it said.
        reason: String,
    },
    /// The engine or the cell went away while the job ran.
    CellLost {
        /// What was seen.
        reason: String,
    },
    /// The warden did not keep to the protocol.
    WardenFault {
        /// What it did.
        reason: String,
    },
    /// The agent could not keep the job's output.
    LogStoreFailed {
        /// What the file system said.
        reason: String,
    },
    /// What it was to be given cannot be put into a workspace; it never began.
    InputRefused {
        /// Which: `inputs[2]`, or the path in the workspace.
        input: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What it was to be given could not be had from the backend, or put into the cell; it never began.
    InputsFailed {
        /// What happened.
        reason: String,
    },
    /// The lease ran out: the agent was cut off from its backend for too long.
    LeaseExpired,
    /// The agent that held the job was lost, and no try is left.
    AgentLost {
        /// How many tries there were.
        attempts: u32,
    },
    /// The jobs for all its hosts have ended.
    FanOut {
        /// How many hosts there are.
        of: u32,
        /// How many of their jobs succeeded.
        succeeded: u32,
        /// What they come to together.
        verdict: Verdict,
        /// Those that did not succeed: the first fifty.
        failed: Vec<HostFailure>,
    },
    /// Its holder renewed the lease, and the job did not get on.
    Stuck {
        /// Where it stood.
        phase: Phase,
        /// Longer than this.
        limit: Millis,
    },
}

/// What shells do themselves, and no program does on most systems.
const SHELL_WORDS: [&str; 14] = [
    "cd", "source", ".", "export", "unset", "set", "exec", "eval", "alias", "ulimit", "umask", "trap", "exit", "shift",
];

impl Cause {
    /// The stable code, as in JSON and in metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ExitCode { .. } => "exit_code",
            Self::Signal { .. } => "signal",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::ProgramNotFound { .. } => "program_not_found",
            Self::ProgramNotExecutable { .. } => "program_not_executable",
            Self::PolicyViolation { .. } => "policy_violation",
            Self::WorkdirUnusable { .. } => "workdir_unusable",
            Self::Timeout { .. } => "timeout",
            Self::Silence { .. } => "silence",
            Self::OutputLimit { .. } => "output_limit",
            Self::Canceled => "canceled",
            Self::AgentStopped => "agent_stopped",
            Self::ImageMissing { .. } => "image_missing",
            Self::ImageDenied { .. } => "image_denied",
            Self::ImageCorrupt { .. } => "image_corrupt",
            Self::RegistryUnreachable { .. } => "registry_unreachable",
            Self::RegistryLimited { .. } => "registry_limited",
            Self::PullTimeout { .. } => "pull_timeout",
            Self::HostUnreachable { .. } => "host_unreachable",
            Self::HostRefused { .. } => "host_refused",
            Self::TargetUnsupported { .. } => "target_unsupported",
            Self::PresetMissing { .. } => "preset_missing",
            Self::SecretMissing { .. } => "secret_missing",
            Self::TooLarge { .. } => "too_large",
            Self::PolicyRefused { .. } => "policy_refused",
            Self::CellWeaker { .. } => "cell_weaker",
            Self::EngineFailed { .. } => "engine_failed",
            Self::CellLost { .. } => "cell_lost",
            Self::WardenFault { .. } => "warden_fault",
            Self::LogStoreFailed { .. } => "log_store_failed",
            Self::ArtifactsMissing { .. } => "artifacts_missing",
            Self::ArtifactsFailed { .. } => "artifacts_failed",
            Self::InputRefused { .. } => "input_refused",
            Self::InputsFailed { .. } => "inputs_failed",
            Self::LeaseExpired => "lease_expired",
            Self::AgentLost { .. } => "agent_lost",
            Self::FanOut { .. } => "fan_out",
            Self::Stuck { .. } => "stuck",
        }
    }

    /// Whose doing it was.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::ExitCode { exit_code: 0 } => Verdict::Succeeded,
            Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::OutOfMemory { .. }
            | Self::ProgramNotFound { .. }
            | Self::ProgramNotExecutable { .. }
            | Self::PolicyViolation { .. }
            | Self::WorkdirUnusable { .. }
            | Self::ArtifactsMissing { .. }
            | Self::OutputLimit { .. } => Verdict::Failed,
            Self::Timeout { .. } | Self::Silence { .. } => Verdict::TimedOut,
            Self::Canceled => Verdict::Canceled,
            Self::AgentStopped
            | Self::ImageMissing { .. }
            | Self::ImageDenied { .. }
            | Self::ImageCorrupt { .. }
            | Self::RegistryUnreachable { .. }
            | Self::RegistryLimited { .. }
            | Self::PullTimeout { .. }
            | Self::HostUnreachable { .. }
            | Self::HostRefused { .. }
            | Self::TargetUnsupported { .. }
            | Self::PresetMissing { .. }
            | Self::SecretMissing { .. }
            | Self::TooLarge { .. }
            | Self::PolicyRefused { .. }
            | Self::CellWeaker { .. }
            | Self::EngineFailed { .. }
            | Self::CellLost { .. }
            | Self::WardenFault { .. }
            | Self::LogStoreFailed { .. }
            | Self::ArtifactsFailed { .. }
            | Self::InputRefused { .. }
            | Self::InputsFailed { .. }
            | Self::Stuck { .. } => Verdict::CellError,
            Self::LeaseExpired | Self::AgentLost { .. } => Verdict::Lost,
            Self::FanOut { verdict, .. } => *verdict,
        }
    }

    /// Whose turn it is now.
    pub const fn class(&self) -> Class {
        match self {
            Self::ExitCode { exit_code: 0 } => Class::Success,
            Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::OutOfMemory { .. }
            | Self::ProgramNotFound { .. }
            | Self::ProgramNotExecutable { .. }
            | Self::WorkdirUnusable { .. }
            | Self::Timeout { .. }
            | Self::Silence { .. }
            | Self::ArtifactsMissing { .. }
            | Self::OutputLimit { .. } => Class::Failure,
            // Another agent may have it, or this one by then.
            Self::SecretMissing { .. }
            | Self::AgentStopped
            | Self::ImageCorrupt { .. }
            | Self::RegistryUnreachable { .. }
            | Self::RegistryLimited { .. }
            | Self::PullTimeout { .. }
            | Self::HostUnreachable { .. }
            | Self::EngineFailed { .. }
            | Self::CellLost { .. }
            | Self::WardenFault { .. }
            | Self::LogStoreFailed { .. }
            | Self::ArtifactsFailed { .. }
            | Self::InputsFailed { .. }
            | Self::LeaseExpired
            | Self::AgentLost { .. }
            | Self::Stuck { .. } => Class::Infrastructure,
            // It would make the same call again.
            Self::PolicyViolation { .. }
            | Self::Canceled
            | Self::ImageMissing { .. }
            | Self::ImageDenied { .. }
            | Self::HostRefused { .. }
            | Self::TargetUnsupported { .. }
            | Self::PresetMissing { .. }
            | Self::TooLarge { .. }
            | Self::PolicyRefused { .. }
            | Self::InputRefused { .. }
            | Self::FanOut { .. }
            | Self::CellWeaker { .. } => Class::Permanent,
        }
    }

    /// Whether it speaks against the host that it happened on: the next job there may well end in the same way.
    pub const fn is_the_hosts(&self) -> bool {
        matches!(
            self,
            Self::CellWeaker { .. }
                | Self::EngineFailed { .. }
                | Self::CellLost { .. }
                | Self::WardenFault { .. }
                | Self::LogStoreFailed { .. }
                | Self::ArtifactsFailed { .. }
        )
    }

    /// The exit code of a command that waited for this job: the job's own; 124 timeout, 125 cell error, 126/127 as a
    /// shell has them, 128+n for a signal, 130 for a cancel (as after Ctrl-C), 153 for too much output.
    pub const fn process_exit_code(&self) -> u8 {
        match self {
            // A wait status keeps the low 8 bits.
            Self::ExitCode { exit_code } => (*exit_code & 0xff) as u8,
            // Signals are 1..=64.
            Self::Signal { signal } => 128 + (*signal & 0x7f) as u8,
            Self::OutOfMemory { .. } => 137,
            // As for SIGSYS, by which the kernel ends a process for a system call.
            Self::PolicyViolation { .. } => 159,
            Self::ProgramNotFound { .. } => 127,
            Self::ProgramNotExecutable { .. } | Self::WorkdirUnusable { .. } => 126,
            Self::Timeout { .. } | Self::Silence { .. } => 124,
            // As for a file that grew too large (SIGXFSZ).
            Self::OutputLimit { .. } => 153,
            // As sysexits has it for a file that was to be made and was not.
            Self::ArtifactsMissing { .. } => 73,
            Self::Canceled => 130,
            Self::FanOut { verdict, .. } => match verdict {
                Verdict::Succeeded => 0,
                Verdict::Failed | Verdict::TimedOut => 1,
                Verdict::Canceled => 130,
                Verdict::CellError | Verdict::Lost => 125,
            },
            _ => 125,
        }
    }

    /// The same for a job on another host, where that is something else than in a cell.
    pub fn hint_on_host(&self) -> Option<String> {
        Some(match self {
            Self::ProgramNotFound { program } if SHELL_WORDS.contains(&program.as_str()) => {
                format!("`{program}` is a word of the shell's and no program: give a `script` in place of `command`")
            }
            Self::ProgramNotFound { program } => {
                format!(
                    "`{program}` is not where this login looks for programs on the host: install it there, or give its whole path"
                )
            }
            Self::ProgramNotExecutable { .. } => {
                "check that it is an executable file for the host's processor, with a valid interpreter line".into()
            }
            Self::WorkdirUnusable { .. } => {
                "name a directory of the host that this login can enter, or leave `workdir` out".into()
            }
            Self::CellLost { .. } => {
                "see what became of the host: `jobcell ssh check` on the agent's host asks it".into()
            }
            Self::Signal { signal: 31 } => "something on the host ends programs for a system call of theirs".into(),
            Self::Signal { signal: 9 } => {
                "something killed it there: look at the host's memory, and at what else this login runs".into()
            }
            Self::Signal { signal: 25 } => "it made a file larger than the host lets this login (`ulimit -f`)".into(),
            _ => return None,
        })
    }

    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OutOfMemory { limit, .. } => format!("raise resources.memory above {limit}, or make the job smaller"),
            Self::ProgramNotFound { program } if SHELL_WORDS.contains(&program.as_str()) => {
                format!("`{program}` is a word of the shell's and no program: give a `script` in place of `command`")
            }
            Self::ProgramNotFound { program } => {
                format!("`{program}` is not in the image: choose another image or interpreter")
            }
            Self::ProgramNotExecutable { .. } => {
                "check that it is an executable file for x86-64 with a valid interpreter line".into()
            }
            Self::PolicyViolation { .. } => {
                "find out whether the job is what its owner believes; if it is, run it with another `seccomp` profile"
                    .into()
            }
            Self::Signal { signal: 31 } => {
                "its seccomp profile kills for 32-bit and x32 system calls: use 64-bit programs".into()
            }
            Self::WorkdirUnusable { .. } => "use /workspace, or a directory of the image".into(),
            Self::Timeout { limit } => format!("raise `timeout` above {limit}, or find what the job waits for"),
            Self::Silence { limit } => {
                format!("raise `silence_timeout` above {limit}, or have the job say that it goes on")
            }
            Self::OutputLimit { limit, .. } => {
                format!(
                    "raise resources.output above {limit}, write less, or have the rest cut with `output_excess: cut`"
                )
            }
            Self::ImageMissing { image, .. } => {
                format!(
                    "correct the name, or see to it that the agent's engine has `{image}` (`scripts/images.sh` makes the jobcell/* images)"
                )
            }
            Self::ImageDenied { .. } => {
                "correct the name, or give the agent credentials for its registry: `images.registries` or `images.auth_file`".into()
            }
            Self::ImageCorrupt { .. } => {
                "push it again: its registry, or what stands before it, gives other bytes than it promises".into()
            }
            Self::RegistryUnreachable { .. } => {
                "check the registry, and the way to it from the engine's host; more tries: `retry.infrastructure`".into()
            }
            Self::HostUnreachable { .. } => {
                "check the host, its disk, and the way to it from the agent (`jobcell ssh check`); more tries: `retry.infrastructure`".into()
            }
            Self::RegistryLimited { .. } => {
                "wait, give the agent credentials with a higher limit, or use `pull: if_absent` in place of `always`".into()
            }
            Self::PullTimeout { limit, .. } => {
                format!("raise `images.pull_timeout` above {limit}, make the image smaller, or pull it before: `jobcell image pull`")
            }
            Self::PresetMissing { .. } => "add the preset to the agent's configuration under `presets`".into(),
            Self::SecretMissing { .. } => {
                "see what the agent's settings say under `secrets`, and that what they name is there".into()
            }
            Self::TooLarge { resource, .. } => {
                let disk = if resource == "memory" { " or resources.disk" } else { "" };
                format!("lower resources.{resource}{disk}, or raise agent.{resource} in the configuration")
            }
            Self::PolicyRefused { .. } => {
                "change the job, or ask the operator; `jobcell policy explain` on the agent's host tells what is allowed".into()
            }
            Self::CellWeaker { .. } => "run `jobcell doctor`: the engine does not enforce what it was asked for".into(),
            Self::EngineFailed { .. } | Self::CellLost { .. } => "run `jobcell doctor` on the agent's host".into(),
            Self::Signal { signal: 9 } => {
                "something killed it: look at peak memory and at what else it ran".into()
            }
            Self::Signal { signal: 25 } => {
                "it made a file larger than its file systems: raise resources.disk, or write less".into()
            }
            Self::Stuck { .. } => {
                "look at the log of the agent that held it: it renewed the lease, and nothing more".into()
            }
            Self::InputRefused { .. } => {
                "give it something else, or more room with resources.disk and resources.inodes; docs/job-spec.md says what an archive may hold".into()
            }
            Self::InputsFailed { .. } => "look at the log of the agent that held it, and at its way to the backend".into(),
            Self::LogStoreFailed { .. } => "check free space and inodes of the data directory".into(),
            Self::ArtifactsFailed { .. } => {
                "check free space and inodes of the data directory, artifacts.quota and blobs.max_bytes".into()
            }
            Self::ArtifactsMissing { .. } => {
                "have the job make them in its workspace, correct the paths in `artifacts`, or leave out `required`".into()
            }
            Self::FanOut { of, succeeded, .. } if succeeded < of => {
                "each host has a job of its own, which says why: see `jobcell job get` of this one".into()
            }
            Self::TargetUnsupported { field, .. } => format!("leave `{field}` out, or run the job in a cell of its own (`image` or `preset`)"),
            // The reason has it.
            Self::HostRefused { .. } => return None,
            Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::FanOut { .. }
            | Self::Canceled
            | Self::AgentStopped
            | Self::WardenFault { .. }
            | Self::LeaseExpired
            | Self::AgentLost { .. } => return None,
        })
    }
}

/// One sentence fragment, for people.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExitCode { exit_code } => write!(f, "exited with code {exit_code}"),
            Self::Signal { signal } => write!(f, "killed by signal {signal}"),
            Self::OutOfMemory { limit, peak } => {
                write!(f, "out of memory: the job's limit is {limit}, the cell used {} MiB", peak.as_u64() >> 20)
            }
            Self::ProgramNotFound { program } => write!(f, "`{program}` was not found"),
            Self::ProgramNotExecutable { program, reason } => write!(f, "`{program}` cannot be executed: {reason}"),
            Self::PolicyViolation { call: Some(call), program } => {
                write!(f, "made the system call {call}, which ends a job under its seccomp profile")?;
                program.as_ref().map_or(Ok(()), |program| write!(f, " (process `{program}`)"))
            }
            Self::PolicyViolation { call: None, .. } => {
                f.write_str("made a 32-bit or x32 system call, or one that a filter of its own kills for (SIGSYS)")
            }
            Self::WorkdirUnusable { workdir, reason } => {
                write!(f, "working directory `{workdir}` cannot be used: {reason}")
            }
            Self::Timeout { limit } => write!(f, "ran longer than its timeout of {limit}"),
            Self::Silence { limit } => write!(f, "wrote nothing for its silence_timeout of {limit}"),
            Self::OutputLimit { limit, written } => {
                write!(f, "wrote more than its output limit of {limit}: {} bytes", written.as_u64())
            }
            Self::Canceled => f.write_str("canceled"),
            Self::AgentStopped => f.write_str("the agent was stopped while the job ran"),
            Self::ImageMissing { image, reason } => write!(f, "image `{image}` is not available: {reason}"),
            Self::ImageDenied { image, reason } => write!(f, "the registry does not give image `{image}`: {reason}"),
            Self::ImageCorrupt { image, reason } => {
                write!(f, "what the registry gave for image `{image}` is damaged: {reason}")
            }
            Self::RegistryUnreachable { image, reason } => {
                write!(f, "the registry of image `{image}` cannot be reached: {reason}")
            }
            Self::RegistryLimited { image, reason } => {
                write!(f, "the registry of image `{image}` wants fewer requests: {reason}")
            }
            Self::PullTimeout { image, limit, reached } => {
                write!(f, "image `{image}` was not there within {limit}; {reached}")
            }
            Self::HostUnreachable { host, reason } => write!(f, "no job can be begun on host `{host}` now: {reason}"),
            Self::HostRefused { host, reason } => write!(f, "no job was given to host `{host}`: {reason}"),
            Self::TargetUnsupported { host, field, reason } => {
                write!(f, "`{field}` cannot be had on host `{host}`: {reason}")
            }
            Self::PresetMissing { preset } => write!(f, "the agent has no preset `{preset}`"),
            Self::SecretMissing { secret, reason } => write!(f, "secret `{secret}` cannot be had: {reason}"),
            Self::TooLarge { resource, asked, capacity } => {
                write!(f, "asks for {asked} of {resource}, and the agent has {capacity} in all")
            }
            Self::PolicyRefused { rule, refusals } => {
                write!(f, "the operator's policy does not allow it (rule `{rule}`)")?;
                for (at, refusal) in refusals.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { ": " } else { "; " }, refusal.sentence)?;
                }
                Ok(())
            }
            Self::CellWeaker { mismatches } => {
                write!(f, "the cell is weaker than asked for")?;
                for line in mismatches {
                    write!(f, "; {} is {} instead of {}", line.key, line.got, line.wanted)?;
                }
                Ok(())
            }
            Self::EngineFailed { step, reason } => write!(f, "the engine failed at {step}: {reason}"),
            Self::CellLost { reason } => write!(f, "the cell was lost: {reason}"),
            Self::WardenFault { reason } => write!(f, "the warden broke the protocol: {reason}"),
            Self::LogStoreFailed { reason } => write!(f, "the job's output could not be stored: {reason}"),
            Self::ArtifactsMissing { missing } => write!(f, "required artifacts are missing: {}", missing.join("; ")),
            Self::ArtifactsFailed { reason } => write!(f, "the job's artifacts could not be kept: {reason}"),
            Self::InputRefused { input, reason } => write!(f, "it cannot be given {input}: {reason}"),
            Self::InputsFailed { reason } => write!(f, "its inputs could not be given to it: {reason}"),
            Self::LeaseExpired => f.write_str("the agent lost its backend for longer than the lease"),
            Self::Stuck { phase, limit } => write!(f, "it did not get on: {phase} for longer than {limit}"),
            Self::AgentLost { attempts } => write!(f, "its agent was lost, {attempts} times in all"),
            Self::FanOut { of, succeeded, failed, .. } if succeeded == of && failed.is_empty() => {
                write!(f, "all {of} hosts succeeded")
            }
            Self::FanOut { of, succeeded, failed, .. } => {
                write!(f, "{} of {of} hosts did not succeed", of.saturating_sub(*succeeded))?;
                for (at, HostFailure { host, verdict, .. }) in failed.iter().take(TOLD_HOSTS).enumerate() {
                    let what = verdict.name().replace('_', " ");
                    write!(f, "{} {host} ({what})", if at == 0 { ":" } else { "," })?;
                }
                f.write_str(if of.saturating_sub(*succeeded) as usize > TOLD_HOSTS { ", …" } else { "" })
            }
        }
    }
}

/// An ending as it is shown: the cause with everything derived from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// Whose doing.
    pub verdict: Verdict,
    /// The exit code that a waiting command returns.
    pub process_exit_code: u8,
    /// The cause with its facts.
    pub cause: Cause,
    /// The cause in words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Ending {
    /// With what the job used: where the cause alone says nothing of what to do, the limits that it met may.
    pub fn of(cause: Cause, usage: Option<&Usage>) -> Self {
        let ending = Self::from(cause);
        let own_doing = matches!(ending.verdict, Verdict::Failed | Verdict::TimedOut);
        let met = usage.filter(|_| own_doing).and_then(|usage| limits::hint(&usage.limits_met));
        let told = match &ending.cause {
            // These name their limit themselves; a signal only guesses.
            Cause::ExitCode { .. } | Cause::Signal { .. } => met.or(ending.hint),
            _ => ending.hint.or(met),
        };
        Self { hint: told, ..ending }
    }
}

impl From<Cause> for Ending {
    fn from(cause: Cause) -> Self {
        Self {
            verdict: cause.verdict(),
            process_exit_code: cause.process_exit_code(),
            message: cause.to_string(),
            hint: cause.hint(),
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_in_json_are_the_codes_in_metrics() {
        for cause in [
            Cause::ExitCode { exit_code: 3 },
            Cause::OutOfMemory { limit: ByteSize::from_mib(1), peak: ByteSize::from_mib(2) },
            Cause::OutputLimit { limit: ByteSize::from_mib(1), written: ByteSize::from_mib(2) },
            Cause::Canceled,
            Cause::ArtifactsMissing { missing: vec!["x".into()] },
            Cause::ArtifactsFailed { reason: "x".into() },
            Cause::PolicyViolation { call: Some("bpf".into()), program: Some("x".into()) },
            Cause::PolicyViolation { call: None, program: None },
            Cause::CellWeaker { mismatches: vec![] },
            Cause::AgentLost { attempts: 3 },
            Cause::FanOut { of: 2, succeeded: 2, verdict: Verdict::Succeeded, failed: vec![] },
            Cause::Stuck { phase: Phase::Claimed, limit: Millis::new(5) },
        ] {
            let json = serde_json::to_value(&cause).expect("serialises");
            assert_eq!(json["code"], cause.code());
            assert_eq!(serde_json::from_value::<Cause>(json).expect("reads back"), cause);
        }
    }

    #[test]
    fn a_failure_is_hinted_at_by_the_limits_that_it_met() {
        let limits_met = vec![crate::job::LimitMet { name: "pids".into(), limit: 8, peak: 8, times: 3 }];
        let usage = Usage { limits_met, ..Usage::default() };
        let hint = |cause: Cause, usage: &Usage| Ending::of(cause, Some(usage)).hint;
        let exit = |exit_code| Cause::ExitCode { exit_code };
        assert!(hint(exit(1), &usage).is_some_and(|hint| hint.contains("resources.pids")));
        assert!(hint(Cause::Signal { signal: 9 }, &usage).is_some_and(|hint| hint.contains("resources.pids")));
        assert_eq!(hint(exit(0), &usage), None, "it went well");
        assert_eq!(hint(exit(1), &Usage::default()), None);
        // It has a limit of its own, and an end that is ours has nothing to do with them.
        let timeout = Cause::Timeout { limit: Millis::new(1) };
        assert!(hint(timeout, &usage).is_some_and(|hint| hint.contains("timeout")));
        assert_eq!(hint(Cause::LeaseExpired, &usage), None);
    }

    #[test]
    fn on_hosts_nothing_is_said_of_images_and_cells() {
        let (program, reason) = ("x".to_owned(), String::new());
        let all = [
            Cause::ProgramNotFound { program: program.clone() },
            Cause::ProgramNotExecutable { program: program.clone(), reason: reason.clone() },
            Cause::WorkdirUnusable { workdir: "/x".into(), reason: reason.clone() },
            Cause::CellLost { reason },
            Cause::Signal { signal: 9 },
            Cause::Signal { signal: 25 },
            Cause::Signal { signal: 31 },
        ];
        for cause in all {
            let hint = cause.hint_on_host().expect("one");
            for word in ["image", "/workspace", " cell", "resources.", "seccomp"] {
                assert!(!hint.contains(word), "{cause:?}: {hint}");
            }
        }
        let word = Cause::ProgramNotFound { program: "cd".into() };
        assert!(word.hint().is_some_and(|hint| hint.contains("`script`")));
        assert!(word.hint_on_host().is_some_and(|hint| hint.contains("`script`")));
        assert_eq!(Cause::Canceled.hint_on_host(), None);
    }

    #[test]
    fn waiting_commands_exit_as_documented() {
        assert_eq!(Cause::ExitCode { exit_code: 7 }.process_exit_code(), 7);
        assert_eq!(Cause::Signal { signal: 15 }.process_exit_code(), 143);
        assert_eq!(Cause::Timeout { limit: Millis::new(1) }.process_exit_code(), 124);
        assert_eq!(Cause::CellLost { reason: String::new() }.process_exit_code(), 125);
        assert_eq!(Cause::ProgramNotFound { program: String::new() }.process_exit_code(), 127);
    }
}
