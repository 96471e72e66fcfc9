//! From the warden's exit frame to the cause that the user reads. Pure.

use super::keep::Kept;
use super::session::StopReason;
use crate::job::{
    Artifacts, ByteSize, Cause, JobSpec, JobStep, LimitMet, Millis, Progress, Results, Source, UnixMillis, Usage,
    read_outputs,
};
use crate::protocol::wire::{self, Advance, Exit, ExitKind, Met};

const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;
/// The step of a start at which inputs are put into their places; behind it is which.
const INPUTS: &str = "inputs ";
const SIGKILL: i32 = 9;
/// A warden knows of fewer, and is not believed to know of more.
const MOST_MET: usize = 16;
const MOST_NAME: usize = 32;
/// Rules that a cause names.
const MOST_MISSING: usize = 8;

/// The cause of a job that was asked to end.
pub(super) fn stopped(reason: StopReason, wall_ms: u64) -> Cause {
    match reason {
        StopReason::Cancel => Cause::Canceled,
        StopReason::Timeout => Cause::Timeout { limit: Millis::new(wall_ms) },
        StopReason::Drain => Cause::AgentStopped,
        StopReason::Lease => Cause::LeaseExpired,
    }
}

/// The cause that an exit frame stands for. A stop that the warden carried out outranks how the process then ended.
pub(super) fn cause(exit: &Exit, spec: &JobSpec, argv0: &str) -> Cause {
    match exit.stop_reason {
        0 => {}
        1 => return Cause::Canceled,
        2 => return Cause::Timeout { limit: spec.timeout() },
        3 => return Cause::Silence { limit: spec.silence_timeout().unwrap_or(Millis::new(0)) },
        4 => return Cause::AgentStopped,
        5 => return Cause::LeaseExpired,
        7 => return policy_violation(&exit.step),
        8 => {
            let met = exit.met.iter().find(|met| met.name == "output");
            let (limit, written) = met.map_or((0, 0), |met| (met.limit, met.peak));
            return Cause::OutputLimit { limit: ByteSize::new(limit), written: ByteSize::new(written) };
        }
        other => return Cause::WardenFault { reason: format!("it stopped the job for the unknown reason {other}") },
    }
    match exit.kind {
        ExitKind::Exited => Cause::ExitCode { exit_code: exit.code },
        ExitKind::Signaled if exit.code == SIGKILL && exit.oom_kills > 0 => {
            Cause::OutOfMemory { limit: spec.resources().memory, peak: ByteSize::new(exit.peak_memory_bytes) }
        }
        ExitKind::Signaled => Cause::Signal { signal: exit.code },
        ExitKind::StartFailed => {
            let reason = std::io::Error::from_raw_os_error(exit.code).to_string();
            match exit.step.as_str() {
                "interpreter" if exit.code == ENOENT => Cause::ProgramNotFound { program: argv0.to_owned() },
                "interpreter" => Cause::ProgramNotExecutable { program: argv0.to_owned(), reason },
                "workdir" => Cause::WorkdirUnusable { workdir: spec.workdir().unwrap_or_default().to_owned(), reason },
                step if step.starts_with(INPUTS) => {
                    let input = crate::job::shown(&step[INPUTS.len()..]);
                    match exit.code {
                        ENOSPC => {
                            Cause::InputRefused { input, reason: "it does not fit into the workspace".to_owned() }
                        }
                        _ => Cause::InputsFailed { reason: format!("{input}: {reason}") },
                    }
                }
                // On another host there is no warden to blame.
                step => match spec.source() {
                    Source::Target(target) if step.starts_with("nofile") => Cause::TargetUnsupported {
                        host: target.host.clone(),
                        field: "resources.nofile".to_owned(),
                        reason: "the host's own limit is lower".to_owned(),
                    },
                    Source::Target(target) => Cause::HostUnreachable {
                        host: target.host.clone(),
                        reason: format!("it could not begin the job ({}): {reason}", crate::job::shown(step)),
                    },
                    _ => Cause::WardenFault {
                        reason: format!("it could not prepare the job ({}): {reason}", crate::job::shown(step)),
                    },
                },
            }
        }
    }
}

/// The cause of a job whose files were fetched: one that went well has failed when it did not leave what it was required to.
pub(super) fn with_artifacts(cause: Cause, kept: &Kept) -> Cause {
    match (cause, &kept.failed) {
        // First what another try would not change.
        (Cause::ExitCode { exit_code: 0 }, _) if !kept.missing.is_empty() => {
            Cause::ArtifactsMissing { missing: kept.missing.iter().take(MOST_MISSING).cloned().collect() }
        }
        (Cause::ExitCode { exit_code: 0 }, Some(reason)) => Cause::ArtifactsFailed { reason: reason.clone() },
        (cause, _) => cause,
    }
}

/// How far the job says it is. What it says comes from the cell, so it is text that cannot harm and times that are given.
pub(super) fn progress(advance: &Advance) -> Option<Progress> {
    let at = UnixMillis::new(advance.time_us / 1000);
    let message = crate::job::one_line(&advance.text, wire::MOST_PROGRESS_TEXT);
    (advance.percent <= 100).then_some(Progress { percent: advance.percent, message, at, eta: None })
}

/// Its steps.
pub(super) fn steps(advance: &Advance) -> Vec<JobStep> {
    let one = |step: &wire::StepMark| JobStep {
        name: crate::job::one_line(&step.name, wire::MOST_STEP_NAME),
        began_at: UnixMillis::new(step.began_us / 1000),
        ended_at: (step.ended_us > 0).then(|| UnixMillis::new(step.ended_us / 1000)),
    };
    advance.steps.iter().map(one).collect()
}

/// What a job gives back, with what is kept of its files.
pub(super) fn results(told: Option<&wire::Results>, last: &Advance, artifacts: Option<Artifacts>) -> Results {
    let Some(told) = told else {
        return Results { progress: progress(last), steps: steps(last), artifacts, ..Results::default() };
    };
    let (outputs, mut output_problems) = read_outputs(&told.outputs, told.outputs_bytes);
    if told.outputs_error != 0 {
        let error = std::io::Error::from_raw_os_error(told.outputs_error);
        output_problems.push(format!("the file cannot be read: {error}"));
    }
    let (progress, steps) = (progress(&told.advance), steps(&told.advance));
    Results { outputs, output_problems, progress, steps, artifacts }
}

/// What the warden says of a call that tripped it: the call, the number of its process, and what that calls itself. The last is the job's
/// own text.
fn policy_violation(told: &str) -> Cause {
    let mut words = told.splitn(3, ' ').map(crate::job::shown).filter(|word| !word.is_empty());
    let (call, _, program) = (words.next(), words.next(), words.next());
    Cause::PolicyViolation { call, program }
}

/// What the job used.
pub(super) fn usage(exit: &Exit, spec: &JobSpec) -> Usage {
    Usage {
        wall: Millis::new(exit.wall_ms),
        cpu_user_us: exit.utime_us,
        cpu_system_us: exit.stime_us,
        peak_memory_bytes: exit.peak_memory_bytes.max(exit.max_rss_bytes),
        peak_pids: exit.peak_pids,
        oom_kills: exit.oom_kills,
        leftover_processes: exit.leftover,
        on_cancel_exit_code: exit.on_cancel.map(|end| match end.kind {
            ExitKind::Exited => end.code,
            ExitKind::Signaled => end.code.saturating_add(128),
            ExitKind::StartFailed => 127,
        }),
        // The agent's own count.
        egress: None,
        limits_met: exit.met.iter().take(MOST_MET).map(|met| limit_met(met, spec)).collect(),
    }
}

/// A limit as the job knows it: a cell has a little more, for its warden and what the job leaves in memory as files.
fn limit_met(met: &Met, spec: &JobSpec) -> LimitMet {
    let name: String = met.name.chars().take(MOST_NAME).collect();
    let (limit, peak) = match name.as_str() {
        "memory" => (spec.resources().memory.as_u64(), met.peak),
        "pids" => {
            let limit = u64::from(spec.resources().pids);
            (limit, met.peak.min(limit))
        }
        _ => (met.limit, met.peak),
    };
    LimitMet { name, limit, peak, times: met.times }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;
    use serde_json::json;

    #[test]
    fn what_tripped_a_job_is_told_in_words_that_cannot_harm() {
        let cause = |told: &str| match policy_violation(told) {
            Cause::PolicyViolation { call, program } => (call, program),
            other => panic!("{other}"),
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(cause("unshare(0x10000000) 12 sh"), (some("unshare(0x10000000)"), some("sh")));
        assert_eq!(cause("bpf 12 a b\u{1b}[2J"), (some("bpf"), some("a b\\u{1b}[2J")));
        assert_eq!(cause("bpf 12 "), (some("bpf"), None));
        assert_eq!(cause(""), (None, None));
    }

    #[test]
    fn limits_are_told_as_the_job_asked_for_them_and_no_more_than_there_can_be() {
        let document = json!({"image": "x", "command": ["x"], "resources": {"pids": 8, "memory": "32MiB"}});
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
        let told = |name: &str, limit, peak| {
            let met = limit_met(&Met { name: name.into(), limit, peak, times: 3 }, &spec);
            (met.limit, met.peak, met.times)
        };
        // The cell has room for four more processes, and for its file systems.
        assert_eq!(told("pids", 12, 12), (8, 8, 3));
        assert_eq!(told("memory", 400 << 20, 390 << 20), (32 << 20, 390 << 20, 3));
        assert_eq!(told("disk", 4096, 4096), (4096, 4096, 3));
        let long = limit_met(&Met { name: "x".repeat(60_000), limit: 1, peak: 1, times: 1 }, &spec);
        assert_eq!(long.name.len(), MOST_NAME);
    }
}
