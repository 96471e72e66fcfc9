//! What happened on each day, counted as it happens and not by looking at the jobs: those may be gone one day.
//!
//! Says which number a transition adds to. The file does the same by triggers, and the tests hold the two together.

use crate::job::{Job, Millis, UnixMillis, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// Milliseconds of a day; the days are those of UTC.
const DAY: u64 = 86_400_000;

/// One day of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Day {
    /// Days since 1970.
    pub number: u64,
    /// Jobs taken in.
    pub submitted: u64,
    /// Jobs that ended, by verdict.
    pub ended: Ended,
    /// How long the jobs that ended on this day had run, from the start of their last try.
    pub run: Millis,
}

/// Jobs that ended, by verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "a field for each verdict")]
pub struct Ended {
    pub succeeded: u64,
    pub failed: u64,
    pub timed_out: u64,
    pub canceled: u64,
    pub cell_error: u64,
    pub lost: u64,
}

impl Day {
    /// The day of a moment.
    pub fn of(at: UnixMillis) -> u64 {
        at.as_u64() / DAY
    }

    /// Its first moment.
    pub fn begins(number: u64) -> UnixMillis {
        UnixMillis::new(number.saturating_mul(DAY))
    }
}

impl Ended {
    /// The number of one verdict.
    fn of(&mut self, verdict: Verdict) -> &mut u64 {
        match verdict {
            Verdict::Succeeded => &mut self.succeeded,
            Verdict::Failed => &mut self.failed,
            Verdict::TimedOut => &mut self.timed_out,
            Verdict::Canceled => &mut self.canceled,
            Verdict::CellError => &mut self.cell_error,
            Verdict::Lost => &mut self.lost,
        }
    }
}

/// The days of a store without a file.
#[derive(Debug, Default)]
pub(super) struct Days(BTreeMap<u64, Day>);

impl Days {
    fn day(&mut self, at: UnixMillis) -> &mut Day {
        let number = Day::of(at);
        self.0.entry(number).or_insert(Day { number, ..Day::default() })
    }

    /// A job was taken in.
    pub(super) fn submitted(&mut self, job: &Job) {
        self.day(job.submitted_at).submitted += 1;
    }

    /// A job has ended.
    pub(super) fn ended(&mut self, job: &Job) {
        let (Some(at), Some(ending)) = (job.ended_at, &job.ending) else { return };
        let run = job.started_at.map_or(Millis::default(), |start| at.since(start));
        let day = self.day(at);
        *day.ended.of(ending.verdict) += 1;
        day.run = Millis::new(day.run.as_u64() + run.as_u64());
    }

    /// From this day on.
    pub(super) fn from(&self, number: u64) -> Vec<Day> {
        self.0.range(number..).map(|(_, day)| *day).collect()
    }
}
