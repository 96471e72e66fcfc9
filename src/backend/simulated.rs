//! A backend as simple as one can be: in memory, without leases, tokens or output. For tests of what an agent does with one.

use super::conformance::{Desk, Seen};
use super::{Announcement, Answer, Ask, Backend, Grant, Load, Order};
use crate::job::{AttemptId, Cause, Ending, JobId, JobSpec, Later, LeaseToken, Phase, Report, SpecRules, UnixMillis};
use crate::protocol::agent::{AttemptStanding, Capabilities, Renewed, Reported, Step};
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Row {
    id: JobId,
    spec: JobSpec,
    attempt: u32,
    phase: Phase,
    cause: Option<Cause>,
}

/// The backend. It hands out whatever is next, whether it fits or not.
#[derive(Debug)]
pub(crate) struct Simulated {
    rows: Mutex<Vec<Row>>,
    work: Notify,
    orders: broadcast::Sender<Order>,
}

impl Simulated {
    pub(crate) fn new() -> Self {
        Self { rows: Mutex::default(), work: Notify::new(), orders: broadcast::channel(16).0 }
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the job of an attempt; `None` when the attempt is not the job's current one.
    fn change<T>(&self, attempt: AttemptId, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        let mut rows = self.rows();
        let row = rows.iter_mut().find(|row| row.id == attempt.job && row.attempt == attempt.attempt);
        row.map(change)
    }

    fn take(&self, max: u32) -> Vec<Grant> {
        let mut rows = self.rows();
        let mut waiting: Vec<&mut Row> = rows.iter_mut().filter(|row| row.phase == Phase::Queued).collect();
        waiting.sort_by_key(|row| -row.spec.priority());
        let grant = |row: &mut &mut Row| {
            row.attempt += 1;
            row.phase = Phase::Claimed;
            let token = LeaseToken(u64::from(row.attempt));
            Grant {
                attempt: AttemptId::new(row.id, row.attempt),
                token,
                spec: row.spec.clone(),
                submitter: None,
                since: tokio::time::Instant::now(),
            }
        };
        waiting.iter_mut().take(max as usize).map(grant).collect()
    }

    /// The causes of all that has ended, in the order of submission.
    pub(crate) fn ended(&self) -> Vec<Cause> {
        self.rows().iter().filter_map(|row| row.cause.clone()).collect()
    }

    /// Takes a job in.
    pub(crate) fn put(&self, spec: &Value) -> JobId {
        let spec = JobSpec::check(spec, &SpecRules::default()).expect("valid");
        let id = JobId::new(UnixMillis::now());
        self.rows().push(Row { id, spec, attempt: 0, phase: Phase::Queued, cause: None });
        self.work.notify_one();
        id
    }
}

impl Backend for Simulated {
    fn name(&self) -> &str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lease: None, fenced_end: false, log: false, cancel: true, later: false, traces: false }
    }

    fn announce(&self, _: &Announcement) {}

    fn tell(&self, _: &Load) {}

    fn claim<'a>(&'a self, ask: Ask, stop: &'a CancellationToken) -> Answer<'a, Vec<Grant>> {
        Box::pin(async move {
            let until = tokio::time::Instant::now() + ask.wait;
            loop {
                let grants = self.take(ask.max);
                if !grants.is_empty() {
                    return Ok(grants);
                }
                tokio::select! {
                    () = self.work.notified() => {}
                    () = tokio::time::sleep_until(until) => return Ok(Vec::new()),
                    () = stop.cancelled() => return Ok(Vec::new()),
                }
            }
        })
    }

    fn renew<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<Renewed>> {
        let yes = Renewed::Renewed { until: UnixMillis::now(), cancel_requested: false };
        Box::pin(async move { Ok(vec![yes; leases.len()]) })
    }

    fn lookup<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<AttemptStanding>> {
        let one = |(attempt, _): &(AttemptId, LeaseToken)| match self.change(*attempt, |row| row.phase) {
            Some(Phase::Ended) => AttemptStanding::Ended,
            Some(_) => AttemptStanding::Held,
            None => AttemptStanding::Unknown,
        };
        Box::pin(std::future::ready(Ok(leases.iter().map(one).collect())))
    }

    fn advance<'a>(
        &'a self,
        at: AttemptId,
        _: LeaseToken,
        phase: Phase,
        _: UnixMillis,
        _: &'a str,
    ) -> Answer<'a, Step> {
        let step = self.change(at, |row| {
            if row.phase >= phase {
                return Step::AlreadyThere;
            }
            row.phase = phase;
            Step::Applied
        });
        Box::pin(std::future::ready(Ok(step.unwrap_or(Step::Refused))))
    }

    fn report<'a>(&'a self, report: &'a Report, _: LeaseToken) -> Answer<'a, Reported> {
        let reported = self.change(report.attempt, |row| {
            if row.phase == Phase::Ended {
                return Reported::AlreadyEnded;
            }
            row.phase = Phase::Ended;
            row.cause = Some(report.cause.clone());
            Reported::Applied
        });
        Box::pin(std::future::ready(Ok(reported.unwrap_or(Reported::Unknown))))
    }

    fn release<'a>(&'a self, attempt: AttemptId, _: LeaseToken, _: &'a str, _: Option<&'a Later>) -> Answer<'a, Step> {
        let step = self.change(attempt, |row| {
            row.phase = Phase::Queued;
            Step::Applied
        });
        self.work.notify_one();
        Box::pin(std::future::ready(Ok(step.unwrap_or(Step::Refused))))
    }

    fn orders(&self) -> broadcast::Receiver<Order> {
        self.orders.subscribe()
    }

    fn log_began(&self, _: AttemptId, _: LeaseToken) {}

    fn flush_log(&self, _: AttemptId, _: u64) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }

    fn log_done(&self, _: AttemptId) {}
}

impl Desk for Simulated {
    fn submit(&self, spec: Value) -> BoxFuture<'_, Result<JobId, String>> {
        Box::pin(std::future::ready(Ok(self.put(&spec))))
    }

    fn see(&self, id: JobId) -> BoxFuture<'_, Result<Seen, String>> {
        let rows = self.rows();
        let seen = rows.iter().find(|row| row.id == id).map(|row| Seen {
            phase: row.phase.name().to_owned(),
            cause: row.cause.as_ref().map(|cause| Ending::from(cause.clone()).cause.code().to_owned()),
        });
        Box::pin(std::future::ready(seen.ok_or_else(|| "no such job".to_owned())))
    }

    fn cancel(&self, id: JobId) -> BoxFuture<'_, Result<(), String>> {
        for row in self.rows().iter_mut().filter(|row| row.id == id && row.phase == Phase::Queued) {
            row.phase = Phase::Ended;
            row.cause = Some(Cause::Canceled);
        }
        let _ = self.orders.send(Order::Cancel { job: id, attempt: None, holder: None, force: false });
        Box::pin(std::future::ready(Ok(())))
    }

    fn output(&self, _: JobId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(std::future::ready(Err("it takes no output".to_owned())))
    }
}
