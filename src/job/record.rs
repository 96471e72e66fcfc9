//! What is known of a job, and what an agent reports at its end.

use super::egress::EgressUse;
use super::{
    AttemptId, Cause, Clamp, Ending, JobId, JobSpec, LimitMet, Millis, NextTry, PastTry, Phase, PhaseEvent, PutOff,
    Results, Timing, UnixMillis, UsedImage,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the job used, as the warden measured it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// From the job's start to its end.
    pub wall: Millis,
    /// Processor time in user mode, microseconds, of the whole tree.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Highest memory use of the whole cell, bytes.
    pub peak_memory_bytes: u64,
    /// Highest number of processes and threads in the cell; 0 where the kernel does not tell.
    pub peak_pids: u64,
    /// How often the kernel killed a process of the cell for memory, the main one or another.
    pub oom_kills: u64,
    /// Processes that were still there after the main one, and were ended.
    pub leftover_processes: u32,
    /// How its `on_cancel` command ended, as an exit code (128 and the signal's number for one that was killed, 127 for one that could not be
    /// started); absent when it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_cancel_exit_code: Option<i32>,
    /// Limits that were in its way, whatever became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_met: Vec<LimitMet>,
    /// What went through its proxy; absent for a job that asked for no way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressUse>,
}

/// One stream's totals.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamTotals {
    /// Bytes of output.
    pub bytes: u64,
    /// Bytes that are missing: nobody could take them when they were written, and the job had it so; or they are beyond its limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// SHA-256 of the bytes, lowercase hex; empty until the job has ended.
    pub sha256: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A place where output is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Behind so many bytes of it.
    pub at: u64,
    /// So many bytes.
    pub bytes: u64,
}

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogTotals {
    /// The last sequence number; frames are numbered 1, 2, 3 … over both streams.
    pub frames: u64,
    /// Standard output.
    pub stdout: StreamTotals,
    /// Standard error.
    pub stderr: StreamTotals,
    /// The first 64 places where output was dropped; each is a frame of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// True when every frame that the warden numbered is here: then nothing is missing but what the gaps say.
    pub complete: bool,
}

/// The terminal report of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The attempt.
    pub attempt: AttemptId,
    /// Why it ended.
    pub cause: Cause,
    /// When the job started; absent when it never did.
    pub started_at: Option<UnixMillis>,
    /// When it ended.
    pub ended_at: UnixMillis,
    /// What it used; absent when it never started.
    pub usage: Option<Usage>,
    /// The isolation in force, as read and tried from inside: (fact, value) in the order read. Empty when there was no cell.
    pub receipt: Vec<(String, String)>,
    /// The limits that it ran with, by path; empty when it never ran, and from agents that do not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, String>,
    /// What it ran in; absent when there was no cell, and from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<UsedImage>,
    /// What the log holds.
    pub log: LogTotals,
    /// What it has given back; empty from agents that do not say.
    #[serde(default, skip_serializing_if = "Results::is_empty")]
    pub results: Results,
    /// How long its parts took; empty from agents that do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timing>,
}

/// That a job ended because no try was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Why, as a sentence.
    pub reason: String,
    /// The job that does it again, once it was replayed.
    pub replayed_by: Option<JobId>,
}

/// Who submitted a job: a key. What is shown of it is its name, which another key may have had before, or get after it; whose a job is goes by both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitter {
    /// Its name.
    pub name: String,
    /// Which key of that name; absent for the first one of an installation, and for keys of before they had one.
    pub key: Option<String>,
}

impl Serialize for Submitter {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name)
    }
}

/// How the jobs for the hosts of one job stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Children {
    /// How many there are.
    pub all: u32,
    /// Those that wait, also for their turn.
    pub queued: u32,
    /// Those that agents have.
    pub held: u32,
    /// Those that have ended, however.
    pub ended: u32,
    /// Those that have ended well.
    pub succeeded: u32,
}

/// Everything the backend knows of a job; what the API answers with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Identity.
    pub id: JobId,
    /// Counts its changes, from 1.
    pub revision: u64,
    /// The job that this one does again.
    pub retry_of: Option<JobId>,
    /// The job for several hosts that this one is the part of for its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    /// How the jobs for its hosts stand, where it is for several; a store does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Children>,
    /// The key that it was submitted with; absent for jobs of before there were named keys.
    pub submitter: Option<Submitter>,
    /// Where it stands.
    pub phase: Phase,
    /// How it ended.
    pub ending: Option<Ending>,
    /// The current try, from 1; 0 before the first claim.
    pub attempt: u32,
    /// Tries that have ended and were followed by another one, the oldest first.
    pub past_tries: Vec<PastTry>,
    /// The try that it waits for, after one that has ended.
    pub next_try: Option<NextTry>,
    /// That it was given back until later, until it runs; a claim alone changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub put_off: Option<PutOff>,
    /// It was given up, and nobody has had it replayed since.
    pub dead_letter: bool,
    /// Why it was given up, once it was.
    pub given_up: Option<GivenUp>,
    /// True from the moment somebody asked for its end.
    pub cancel_requested: bool,
    /// Who holds or held it.
    pub agent: Option<String>,
    /// When it was submitted.
    pub submitted_at: UnixMillis,
    /// When its last try started to run.
    pub started_at: Option<UnixMillis>,
    /// When it ended.
    pub ended_at: Option<UnixMillis>,
    /// What was asked for.
    pub spec: JobSpec,
    /// Every phase entered, with time and reason.
    pub history: Vec<PhaseEvent>,
    /// What the last try used.
    pub usage: Option<Usage>,
    /// The last try's isolation, as proved from inside.
    pub receipt: Vec<(String, String)>,
    /// What the last try was given less of than the job asks for, by its operator's policy.
    pub clamped: Vec<Clamp>,
    /// What the last try ran in.
    pub image: Option<UsedImage>,
    /// What the last try's log holds.
    pub log: LogTotals,
    /// When its output was removed, of all its tries; the totals stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_gone_at: Option<UnixMillis>,
    /// How long the parts of the last try took, by its agent's clock; empty until it has ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timing>,
    /// What the last try has given back, or says of itself while it runs.
    #[serde(flatten)]
    pub results: Results,
}

impl Job {
    /// How it ends by this cause. That nothing of it ever ran is said in words: a log without a byte says it too, and makes one look for output.
    pub fn ending_by(&self, cause: Cause) -> Ending {
        let unstarted = self.started_at.is_none() && self.past_tries.is_empty() && self.log.frames == 0;
        let mut ending = Ending::of(cause, self.usage.as_ref());
        if self.spec.source().is_elsewhere()
            && let Some(hint) = ending.cause.hint_on_host()
        {
            ending.hint = Some(hint);
        }
        if ending.cause == Cause::Canceled && unstarted && self.log.complete {
            ending.message = "canceled before it started".to_owned();
        }
        ending
    }
}

/// What a list says of a job: everything but its spec, history and receipt, which can be a megabyte each.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the job and of its spec")]
pub struct JobSummary {
    pub id: JobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    pub name: Option<String>,
    /// The host of its target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub phase: Phase,
    pub ending: Option<Ending>,
    pub attempt: u32,
    pub dead_letter: bool,
    pub agent: Option<String>,
    pub priority: i32,
    pub labels: BTreeMap<String, String>,
    pub submitted_at: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub ended_at: Option<UnixMillis>,
}

impl From<&Job> for JobSummary {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id,
            parent: job.parent,
            name: job.spec.name().map(str::to_owned),
            host: job.spec.host().map(str::to_owned),
            phase: job.phase,
            // As a store has it that reads no more of a job than its columns.
            ending: job.ending.as_ref().map(|ending| Ending::from(ending.cause.clone())),
            attempt: job.attempt,
            dead_letter: job.dead_letter,
            agent: job.agent.clone(),
            priority: job.spec.priority(),
            labels: job.spec.labels().clone(),
            submitted_at: job.submitted_at,
            started_at: job.started_at,
            ended_at: job.ended_at,
        }
    }
}
