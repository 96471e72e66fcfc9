//! Identities. Everything an attempt makes outside (containers, files, labels) carries a name derived from these,
//! so a restarted agent can find it again.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// A job's identity: a version 7 UUID, so that ids sort by the time of submission.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Uuid);

/// An id that does not parse; nothing else of it is ever used as a path, name or label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {what}")]
pub struct BadId {
    shown: String,
    what: &'static str,
}

impl BadId {
    fn new(text: &str, what: &'static str) -> Self {
        // At most 64 characters, control characters escaped: ids come from outside and end up in logs.
        let shown = text.chars().take(64).flat_map(char::escape_debug).collect();
        Self { shown, what }
    }
}

impl JobId {
    /// A new id for a job submitted at `at` (milliseconds since 1970).
    pub fn new(at: super::UnixMillis) -> Self {
        #[cfg(test)]
        if let (Some(high), Some(low)) = (crate::seeded::random(), crate::seeded::random()) {
            let random = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
            let random = random.first_chunk().expect("ten of sixteen bytes");
            return Self(uuid::Builder::from_unix_timestamp_millis(at.as_u64(), random).into_uuid());
        }
        let seconds = at.as_u64() / 1000;
        let nanos = u32::try_from(at.as_u64() % 1000).expect("below 1000") * 1_000_000;
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos)))
    }

    /// Its sixteen bytes.
    pub fn bytes(&self) -> [u8; 16] {
        *self.0.as_bytes()
    }

    /// Most of what tells it from others of the same moment.
    pub(super) fn low_bits(&self) -> u64 {
        self.0.as_u64_pair().1
    }

    /// By what [`JobId::simple`] gives.
    pub fn of_simple(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).map(Self).ok()?;
        (id.simple() == text).then_some(id)
    }

    /// The id without hyphens, for names where they would be noise.
    pub fn simple(&self) -> String {
        self.0.simple().to_string()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl JobId {
    /// When it was made, by the clock of whoever made it.
    pub fn created_at(&self) -> super::UnixMillis {
        // The first 48 bits of a UUID of version 7.
        super::UnixMillis::new((self.0.as_u128() >> 80) as u64)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        // Only the 36-character form: one job has one spelling.
        if text.len() != 36 {
            return Err(BadId::new(text, "a job id (expected 36 characters like 0190b2d4-…)"));
        }
        Uuid::parse_str(text).map(Self).map_err(|_| BadId::new(text, "a job id (expected a UUID)"))
    }
}

impl TryFrom<String> for JobId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

/// The identity of one try at a job: (job, attempt, part). Text form: `<job>/<attempt>/<part>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// Counts from 1.
    pub attempt: u32,
    /// 0, except for the parts of a fan-out that a foreign backend sends as one job.
    pub part: u32,
}

impl AttemptId {
    /// The identity of try number `attempt` (from 1) at `job`.
    pub fn new(job: JobId, attempt: u32) -> Self {
        Self { job, attempt, part: 0 }
    }

    /// The name of the cell of this attempt: `jobcell-<owner>-<job>-<attempt>-<part>`.
    pub fn cell_name(&self, owner: &OwnerId) -> String {
        format!("jobcell-{owner}-{}-{}-{}", self.job.simple(), self.attempt, self.part)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.job, self.attempt, self.part)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AttemptId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::new(text, "an attempt id (expected <job>/<attempt>/<part>)");
        let mut parts = text.split('/');
        let (Some(job), Some(attempt), Some(part), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        Ok(Self {
            job: job.parse()?,
            attempt: attempt.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            part: part.parse().map_err(|_| bad())?,
        })
    }
}

impl TryFrom<String> for AttemptId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<AttemptId> for String {
    fn from(id: AttemptId) -> Self {
        id.to_string()
    }
}

/// The number that tells the holder of an attempt from everybody who held it before; strictly increasing over a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseToken(pub u64);

/// The installation that owns what it makes: 8 lowercase hex characters, made once per data directory. The sweeper
/// touches only what carries its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OwnerId(String);

impl OwnerId {
    /// A random one, for a new data directory.
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..8].to_owned())
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for OwnerId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let hex = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex { Ok(Self(text.to_owned())) } else { Err(BadId::new(text, "an owner id (8 hex characters)")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::UnixMillis;

    #[test]
    fn attempt_id_round_trips_and_refuses_everything_else() {
        let id = AttemptId::new(JobId::new(UnixMillis::new(1_700_000_000_000)), 3);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "/", "../../etc", &format!("{}/0/0", id.job), &format!("{}/1", id.job), "ключ/1/0"] {
            assert!(bad.parse::<AttemptId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn job_ids_sort_by_time() {
        let early = JobId::new(UnixMillis::new(1_700_000_000_000));
        let late = JobId::new(UnixMillis::new(1_700_000_000_001));
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn bad_ids_are_shown_short_and_escaped() {
        let error = format!("{}\u{1b}[2J", "x".repeat(10)).parse::<JobId>().expect_err("not an id");
        assert!(!error.to_string().contains('\u{1b}'));
        assert!("y".repeat(10_000).parse::<JobId>().expect_err("not an id").to_string().len() < 200);
    }
}
