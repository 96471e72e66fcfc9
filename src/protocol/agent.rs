//! What an agent and its backend say to each other over HTTP and one WebSocket; docs/agent-protocol.md describes it for people
//! who write a backend of their own.
//!
//! Readers pass over fields that they do not know and have a default for those that are missing, so a version can grow. What
//! cannot be done that way is a new version: both sides speak N and N−1, and the registration settles which.

use crate::job::{
    AttemptId, Capacity, Digest, JobId, JobStep, Later, LeaseToken, Millis, Phase, Progress, Report, Secret, UnixMillis,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version that is written.
pub const VERSION: u32 = 1;
/// The oldest version that is understood: the one before, once there is one.
pub const OLDEST: u32 = 1;
/// The newest version that both sides have. `None` when there is none.
pub fn common_version(theirs: &[u32]) -> Option<u32> {
    theirs.iter().copied().filter(|version| (OLDEST..=VERSION).contains(version)).max()
}

/// Request header of every call after the registration.
pub const SESSION_HEADER: &str = "jobcell-session";
/// Bytes of output that may be on their way for one attempt before the backend has said that they are durable.
pub const WINDOW: usize = 1 << 20;
/// Messages of output that may be on their way for one attempt.
pub const MESSAGES: usize = 256;
/// Bytes of output in one message, at most; a single larger frame goes alone.
pub const MESSAGE: usize = 128 << 10;
/// Longest message of either side.
pub const LONGEST_MESSAGE: usize = 2 << 20;
/// Either side pings when it has said nothing for so long.
pub const PING_SECONDS: u64 = 5;
/// Either side gives the connection up when it has heard nothing for so long.
pub const SILENCE_SECONDS: u64 = 15;

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Announcement {
    /// The program's version.
    pub version: String,
    /// Tells installations apart that use one key.
    pub installation: String,
    /// For `requires` of jobs.
    pub labels: BTreeMap<String, String>,
    /// Kinds of cells that it makes.
    pub executors: Vec<String>,
    /// Language environments that it has.
    pub presets: Vec<String>,
    /// What it can run at the same time.
    pub capacity: Capacity,
}

/// How an agent is at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Attempts that it holds.
    pub held: u32,
    /// 0 to 100: how many of the last attempts ended without a failure of the agent's own.
    pub health: u8,
    /// It takes no more jobs and ends when it holds none.
    pub draining: bool,
    /// Why it takes no jobs at the moment.
    pub unavailable: Option<String>,
    /// It has heard that this backend hands no jobs to it.
    #[serde(skip_serializing_if = "is_false")]
    pub drained: bool,
    /// Kinds of cells that it cannot make at the moment, while it takes jobs of others, with why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub away: BTreeMap<String, String>,
    /// Hosts whose jobs run in plain mode because no warden can stay there, by login and name, with why; the first hundred.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plain_hosts: BTreeMap<String, String>,
}

/// `POST /v1/agent/enroll`, before there is a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enroll {
    /// The join token, good for one agent.
    pub token: String,
    /// The name that the agent wants; that of the token comes first.
    pub name: String,
    /// SHA-256 of the key that the agent has made, in hexadecimal digits.
    pub key_sha256: String,
}

impl std::fmt::Debug for Enroll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Enroll({})", self.name)
    }
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The name that the agent has.
    pub agent: String,
}

/// `POST /v1/agent/register`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Versions of this protocol that the agent speaks.
    pub protocols: Vec<u32>,
    /// What it is.
    #[serde(flatten)]
    pub who: Announcement,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The version to go on with.
    pub protocol: u32,
    /// For [`SESSION_HEADER`].
    pub session: String,
    /// The agent's name, as its key says.
    pub agent: String,
    /// What the backend can do.
    #[serde(flatten)]
    pub capabilities: Capabilities,
    /// Longest wait for work that is granted.
    pub max_wait: Millis,
    /// Why an operator lets it hand no jobs to this agent, if so; here and in later answers what holds at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Term of its leases. `None`: it has none, a job stays with the agent that got it.
    #[serde(default)]
    pub lease: Option<Millis>,
    /// It refuses a late report by the token of the claim.
    #[serde(default)]
    pub fenced_end: bool,
    /// It takes output.
    #[serde(default)]
    pub log: bool,
    /// It tells of cancels.
    #[serde(default)]
    pub cancel: bool,
    /// It waits with a job that was given back until later.
    #[serde(default, skip_serializing_if = "is_false")]
    pub later: bool,
    /// It tells a collector of jobs: spans of tries are beneath the span of the job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub traces: bool,
}

/// `POST /v1/agent/claim`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Numbers the claims of a session. A repeated number asks for the answer of that claim again: it may have been lost on its
    /// way.
    pub number: u64,
    /// What is free; a job that does not fit into it is left for later.
    pub free: Capacity,
    /// Most jobs to hand out.
    pub max: u32,
    /// How long to wait when there are none.
    pub wait: Millis,
    /// How the agent is.
    #[serde(default)]
    pub load: Load,
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimAnswer {
    /// What was claimed.
    pub claims: Vec<Claimed>,
    /// Why there are none, if the agent is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
}

/// One claimed attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    /// The attempt.
    pub attempt: AttemptId,
    /// Proves the right to it.
    pub token: LeaseToken,
    /// The job's spec. Read apart from the rest, so that one spec that is not understood costs one job.
    pub spec: Value,
    /// The key that the job was submitted with, by name; absent when there is none, and from servers of before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitter: Option<String>,
    /// Until when the attempt is the agent's, by the backend's clock.
    pub lease_until: UnixMillis,
    /// Values of secrets that came with the job, by their names. Here and nowhere else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "exposed")]
    pub secrets: BTreeMap<String, Secret>,
}

/// An attempt with the proof that it is the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its token.
    pub token: LeaseToken,
}

/// `POST /v1/agent/renew` and `POST /v1/agent/lookup`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Which.
    pub attempts: Vec<Holding>,
}

/// The answer to a renewal, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// One for each.
    pub renewals: Vec<Renewed>,
    /// Why the agent gets no more jobs, if it is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
}

/// How one renewal went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Renewed {
    /// It is the agent's for another term.
    Renewed {
        /// Until when, by the backend's clock.
        until: UnixMillis,
        /// Somebody asked for the job's end.
        #[serde(default)]
        cancel_requested: bool,
    },
    /// It is not the agent's (any more): the job has to be stopped.
    Refused,
}

/// The answer to a lookup, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupAnswer {
    /// One for each.
    pub standings: Vec<AttemptStanding>,
}

/// How an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptStanding {
    /// It is the agent's.
    Held,
    /// It has ended.
    Ended,
    /// It is not the agent's, or there is no such attempt.
    Unknown,
}

/// `POST /v1/agent/advance`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// The attempt.
    #[serde(flatten)]
    pub holding: Holding,
    /// The phase that it entered: `preparing`, `running` or `finishing`.
    pub phase: Phase,
    /// When, by the agent's clock.
    pub at: UnixMillis,
    /// Why, as a stable code.
    pub reason: String,
}

/// `POST /v1/agent/progress`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TellProgress {
    /// The attempt.
    #[serde(flatten)]
    pub holding: Holding,
    /// How far it says it is; absent when it has not said.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Its steps so far.
    #[serde(default)]
    pub steps: Vec<JobStep>,
}

/// `POST /v1/agent/artifacts/missing`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsWanted {
    /// The attempt.
    #[serde(flatten)]
    pub holding: Holding,
    /// Contents of its files; at most 1000.
    pub digests: Vec<Digest>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingAnswer {
    /// Those that the backend has not.
    pub missing: Vec<Digest>,
}

/// `POST /v1/agent/artifacts/given`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsGiven {
    /// The attempt.
    #[serde(flatten)]
    pub holding: Holding,
    /// The content with the list of its files.
    pub list: Digest,
}

/// `POST /v1/agent/release`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The attempt, which has not started and never will.
    #[serde(flatten)]
    pub holding: Holding,
    /// Why, as a stable code.
    pub reason: String,
    /// It is not to be handed out again before; absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<Later>,
}

/// The answer to an advance and to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAnswer {
    /// What it came to.
    pub step: Step,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Done.
    Applied,
    /// It was done before.
    AlreadyThere,
    /// Not done: the attempt is not the agent's, or no such step exists.
    Refused,
}

/// `POST /v1/agent/report`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRequest {
    /// Proves the right to report.
    pub token: LeaseToken,
    /// The end.
    pub report: Report,
}

/// The answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// What it came to.
    pub outcome: Reported,
}

/// What a terminal report came to. All three end the matter for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reported {
    /// The job has ended with it.
    Applied,
    /// The attempt had ended before.
    AlreadyEnded,
    /// The attempt is not the agent's (any more).
    Unknown,
}

/// Text messages of the stream, agent to backend. Output goes in binary messages: `channel u32` little endian, then records as
/// in [`record`](super::record).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// Output of this attempt will come on this channel. Numbers of channels are used once in a connection.
    Open {
        /// The channel.
        channel: u32,
        /// Whose output.
        #[serde(flatten)]
        holding: Holding,
    },
    /// Say `durable` as soon as it is, without waiting for more.
    Flush {
        /// The channel.
        channel: u32,
    },
    /// Nothing more comes on this channel.
    Close {
        /// The channel.
        channel: u32,
    },
    /// How the agent is, whenever that changes.
    Status {
        /// The load.
        load: Load,
    },
}

/// Text messages of the stream, backend to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// The channel is open; go on behind this frame.
    Opened {
        /// The channel.
        channel: u32,
        /// The last frame that is durable; 0 for none.
        durable: u64,
    },
    /// Everything up to this frame survives the loss of power.
    Durable {
        /// The channel.
        channel: u32,
        /// The frame.
        durable: u64,
    },
    /// Nothing of this attempt is taken (any more).
    Refused {
        /// The channel.
        channel: u32,
        /// Why, in words.
        reason: String,
    },
    /// End this job.
    Cancel {
        /// Which.
        job: JobId,
        /// This try of it and no other; absent when the job itself is to end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// At once, without a grace.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// What a later version says; passed over.
    #[serde(other)]
    Other,
}

/// Secrets on their way. What came with a job in a document is text.
mod exposed {
    use super::{BTreeMap, Secret};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(secrets: &BTreeMap<String, Secret>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(secrets.iter().map(|(name, secret)| (name, String::from_utf8_lossy(secret.expose()))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Secret>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(from)?;
        Ok(texts.into_iter().map(|(name, text)| (name, Secret::new(text.into_bytes()))).collect())
    }
}

/// What is not said is not written: an older program reads what it always read.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks in this way")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
