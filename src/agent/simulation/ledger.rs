//! What was seen of a run, in order, and what was seen to be wrong at once.

use crate::job::{AttemptId, JobId, Report};
use crate::protocol::agent::Reported;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Something that the backend did for an agent, or that an agent heard.
#[derive(Debug, Clone)]
pub(super) enum Note {
    Granted {
        attempt: AttemptId,
    },
    Renewed {
        attempt: AttemptId,
    },
    /// The agent heard of a grant or a renewal that it sent for then.
    Heard {
        attempt: AttemptId,
        sent: Instant,
    },
    Refused {
        attempt: AttemptId,
    },
    Reported {
        report: Box<Report>,
        reported: Reported,
    },
    FlushFailed {
        attempt: AttemptId,
    },
    /// Its cell was ended from outside.
    CellKilled {
        attempt: AttemptId,
    },
    /// A cancel was taken by the backend.
    Canceled {
        job: JobId,
    },
}

/// Something that may have kept an agent (or all) from its work.
#[derive(Debug, Clone)]
pub(super) struct Disturbance {
    pub(super) agent: Option<usize>,
    pub(super) from: Instant,
    pub(super) to: Instant,
    pub(super) what: &'static str,
}

#[derive(Default)]
struct Pages {
    notes: Vec<(Instant, usize, Note)>,
    disturbances: Vec<Disturbance>,
    violations: Vec<String>,
    trace: Vec<String>,
    jobs: Vec<JobId>,
}

impl Pages {
    /// Jobs by their numbers.
    fn named(&self, line: &str) -> String {
        let jobs = self.jobs.iter().enumerate();
        jobs.fold(line.to_owned(), |line, (number, job)| line.replace(&job.to_string(), &format!("j{number}")))
    }
}

/// The ledger.
pub(super) struct Ledger {
    began: Instant,
    tells: bool,
    pages: Mutex<Pages>,
}

thread_local! {
    /// The trace is shown as it grows.
    static LIVE: bool = std::env::var_os("JOBCELL_SIM_LIVE").is_some();
}

impl Ledger {
    pub(super) fn new(tells: bool) -> Self {
        let tells = tells || LIVE.with(|live| *live);
        Self { began: Instant::now(), tells, pages: Mutex::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds from the beginning.
    pub(super) fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Writes a line of the trace.
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if self.tells {
            let line = format!("{:>7} {}", self.ms(Instant::now()), line());
            if LIVE.with(|live| *live) {
                eprintln!("{line}");
            }
            self.pages().trace.push(line);
        }
    }

    /// In the trace, a job is called by its number.
    pub(super) fn named(&self, job: JobId) {
        self.pages().jobs.push(job);
    }

    pub(super) fn note(&self, agent: usize, note: Note) {
        self.tell(|| match &note {
            Note::Reported { report, reported } => {
                let (cause, frames, complete) = (report.cause.code(), report.log.frames, report.log.complete);
                format!(
                    "a{agent} Reported {} {cause} frames {frames} complete {complete}: {reported:?}",
                    report.attempt
                )
            }
            Note::Heard { attempt, sent } => format!("a{agent} Heard {attempt} sent {}", self.ms(*sent)),
            other => format!("a{agent} {other:?}"),
        });
        self.pages().notes.push((Instant::now(), agent, note));
    }

    pub(super) fn disturbed(&self, agent: Option<usize>, from: Instant, to: Instant, what: &'static str) {
        self.pages().disturbances.push(Disturbance { agent, from, to, what });
    }

    /// The engine of this agent was away, or is.
    pub(super) fn without_engine(&self, agent: usize) -> bool {
        self.pages().disturbances.iter().any(|one| one.what == "the engine" && one.agent == Some(agent))
    }

    /// The backend has the end of this attempt, or does not want it any more.
    pub(super) fn was_told_of(&self, attempt: AttemptId) -> bool {
        let of = |note: &Note| matches!(note, Note::Reported { report, .. } if report.attempt == attempt);
        self.pages().notes.iter().any(|(_, _, note)| of(note))
    }

    pub(super) fn violated(&self, what: String) {
        self.tell(|| format!("VIOLATION {what}"));
        self.pages().violations.push(what);
    }

    pub(super) fn notes(&self) -> Vec<(Instant, usize, Note)> {
        self.pages().notes.clone()
    }

    pub(super) fn disturbances(&self) -> Vec<Disturbance> {
        self.pages().disturbances.clone()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        let pages = self.pages();
        pages.violations.iter().map(|line| pages.named(line)).collect()
    }

    pub(super) fn trace(&self) -> Vec<String> {
        let pages = self.pages();
        pages.trace.iter().map(|line| pages.named(line)).collect()
    }
}
