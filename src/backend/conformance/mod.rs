//! What every backend has to do for an agent, as a suite: it is run against jobcell's own backends in tests, and by
//! `jobcell conformance` against one that somebody else wrote.
//!
//! A case speaks to the backend as an agent does, and to its other side, the [`Desk`], as a user does. What a backend says that it
//! cannot do is not asked of it. The backend must be empty and have no other agent.

mod cases;
#[cfg(test)]
pub(crate) mod desk;

use super::{Ask, Backend, Grant};
use crate::job::{AttemptId, ByteSize, Capacity, Cause, Cpus, JobId, LogTotals, Report, UnixMillis};
use crate::logstore::LogStore;
use crate::protocol::agent::Announcement;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a user sees of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its phase.
    pub phase: String,
    /// The code of its cause, once it has ended.
    pub cause: Option<String>,
}

/// The user's side of a backend. Errors are sentences.
pub trait Desk: Send + Sync {
    /// Submits a job.
    fn submit(&self, spec: Value) -> BoxFuture<'_, Result<JobId, String>>;
    /// Looks at one.
    fn see(&self, id: JobId) -> BoxFuture<'_, Result<Seen, String>>;
    /// Asks for its end.
    fn cancel(&self, id: JobId) -> BoxFuture<'_, Result<(), String>>;
    /// Its standard output.
    fn output(&self, id: JobId) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// Not asked for, and why.
    Skipped(String),
    /// Not as it should be, and how.
    Failed(String),
}

/// One case with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was tried, as a stable name.
    pub name: &'static str,
    /// What the backend has to do.
    pub rule: &'static str,
    /// What it came to.
    pub verdict: Verdict,
}

/// What the cases work with.
pub struct Suite {
    backend: Arc<dyn Backend>,
    desk: Arc<dyn Desk>,
    /// Where the backend reads output that is passed on.
    logs: LogStore,
    /// Cases that wait for a lease to run out are left out when it is longer.
    patience: Duration,
}

/// Why a case ends before its end.
enum Stop {
    Skip(String),
    Fail(String),
}

type Case = Result<(), Stop>;

impl Suite {
    /// A suite for `backend`, which passes on output from `logs`, and its `desk`.
    pub fn new(backend: Arc<dyn Backend>, desk: Arc<dyn Desk>, logs: LogStore, patience: Duration) -> Self {
        let capacity = Capacity {
            slots: 64,
            cpu: Cpus::from_milli(64_000),
            memory: ByteSize::from_mib(65_536),
            ..Capacity::default()
        };
        backend.announce(&Announcement {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            installation: uuid::Uuid::new_v4().simple().to_string(),
            executors: vec!["docker".to_owned()],
            capacity,
            ..Announcement::default()
        });
        Self { backend, desk, logs, patience }
    }

    /// Runs every case and tells each outcome as it comes. Ends early when the backend is not empty.
    pub async fn run(&self, mut tell: impl FnMut(&Outcome)) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (name, rule, case) in cases::ALL {
            let verdict = match case(self).await {
                Ok(()) => Verdict::Passed,
                Err(Stop::Skip(why)) => Verdict::Skipped(why),
                Err(Stop::Fail(how)) => Verdict::Failed(how),
            };
            let outcome = Outcome { name, rule, verdict };
            tell(&outcome);
            let hopeless = matches!(outcome.verdict, Verdict::Failed(_)) && *name == cases::FIRST;
            outcomes.push(outcome);
            if hopeless {
                break;
            }
        }
        outcomes
    }

    async fn submit(&self, priority: i32) -> Result<JobId, Stop> {
        let spec = serde_json::json!({"image": "conformance", "command": ["true"], "priority": priority});
        self.desk.submit(spec).await.map_err(|error| Stop::Fail(format!("submit: {error}")))
    }

    async fn claim(&self, max: u32, wait: Duration) -> Result<Vec<Grant>, Stop> {
        let capacity = Capacity {
            slots: max,
            cpu: Cpus::from_milli(64_000),
            memory: ByteSize::from_mib(65_536),
            ..Capacity::default()
        };
        let ask =
            Ask { max, free: capacity, wait, load: crate::protocol::agent::Load { health: 100, ..Default::default() } };
        let grants = self.backend.claim(ask, &CancellationToken::new()).await.map_err(failed("claim"))?;
        if grants.len() > max as usize {
            return Err(Stop::Fail(format!("claim: {} jobs came where at most {max} were asked for", grants.len())));
        }
        Ok(grants)
    }

    /// Submits one and claims it.
    async fn held(&self) -> Result<Grant, Stop> {
        let id = self.submit(0).await?;
        let grant = self.claim(1, Duration::from_secs(5)).await?.pop();
        let grant = grant.ok_or_else(|| Stop::Fail("claim: the submitted job did not come within 5 s".to_owned()))?;
        same("the claimed job", &grant.attempt.job, &id)?;
        Ok(grant)
    }

    /// Ends an attempt well, so that nothing is left for the next case.
    async fn end(&self, grant: &Grant) -> Case {
        self.backend
            .report(&report(grant.attempt, LogTotals::default()), grant.token)
            .await
            .map_err(failed("report"))?;
        Ok(())
    }
}

fn report(attempt: AttemptId, log: LogTotals) -> Report {
    let now = UnixMillis::now();
    Report {
        attempt,
        cause: Cause::ExitCode { exit_code: 0 },
        started_at: Some(now),
        ended_at: now,
        usage: None,
        receipt: Vec::new(),
        given: std::collections::BTreeMap::new(),
        image: None,
        log,
        results: crate::job::Results::default(),
        timings: Vec::new(),
    }
}

fn failed(what: &'static str) -> impl Fn(super::BackendError) -> Stop {
    move |error| Stop::Fail(format!("{what}: {error}"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, wanted: &T) -> Case {
    if got == wanted { Ok(()) } else { Err(Stop::Fail(format!("{what} is {got:?}, and should be {wanted:?}"))) }
}

#[cfg(test)]
pub(crate) mod tests;
