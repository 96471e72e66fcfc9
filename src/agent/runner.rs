//! One attempt, from its claim to its report. Every way out goes through a report or gives the job back.

use crate::admission::Permit;
use crate::backend::{Backend, BackendError};
use crate::executor::warden::{Conversation, Finished, Orders, Progress, StopReason, converse};
use crate::executor::{Cell, CellOrder, Executor, NoCell};
use crate::job::{AttemptId, Cause, LeaseToken, LogTotals, Phase, Report, UnixMillis, Verdict};
use crate::logstore::LogStore;
use crate::net::{Retry, pauses};
use crate::protocol::agent::{Reported, Step};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

/// First and last pause between tries to report.
const REPORT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a report is tried. After it the lease has run out and the backend hands the job out again or gives it up.
const REPORT_LIMIT: Duration = Duration::from_secs(120);
/// A report that takes longer does not keep the cell any more.
const REPORT_FIRST: Duration = Duration::from_millis(500);
/// Phase notes on their way to the backend: at most one of each phase exists, so this is never full.
const NOTES: usize = 4;

pub(super) struct Runner<E: Executor> {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) executor: Arc<E>,
    pub(super) logs: LogStore,
    pub(super) metrics: Arc<Metrics>,
    pub(super) id: AttemptId,
    pub(super) token: LeaseToken,
    pub(super) reconnect: Duration,
}

/// What an admitted attempt runs with.
pub(super) struct Attempt {
    pub(super) order: CellOrder,
    pub(super) permit: Permit,
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its end was reported, or nobody wants the report any more; `well` when no failure of the agent's own ended it.
    Reported { well: bool },
    /// It never started and went back to the queue.
    GivenBack,
    /// The same, because no cells can be made here now.
    NoCells { reason: String },
}

impl<E: Executor> Runner<E> {
    /// Runs it. `attempt` is an error when admission refused the job.
    pub(super) async fn run(self, attempt: Result<Attempt, Cause>, orders: mpsc::Receiver<Orders>) -> Outcome {
        // A job's id is 128 bits, as a trace's is: the one is the other.
        let trace_id = self.id.job.simple();
        let span = tracing::info_span!("attempt", job_id = %self.id.job, attempt = self.id.attempt, trace_id);
        async move {
            match attempt {
                Ok(Attempt { order, permit }) => {
                    let outcome = self.in_a_cell(order, orders).await;
                    // What was reserved is free when the cell is gone, not before.
                    drop(permit);
                    outcome
                }
                Err(cause) => self.finish(self.never_ran(cause)).await,
            }
        }
        .instrument(span)
        .await
    }

    async fn in_a_cell(&self, order: CellOrder, mut orders: mpsc::Receiver<Orders>) -> Outcome {
        // The intent, before the first effect outside: the cell's name derives from the attempt.
        let intent = self.backend.advance(self.id, self.token, Phase::Preparing, UnixMillis::now(), "cell_intent");
        match intent.await {
            Ok(Step::Applied | Step::AlreadyThere) => {}
            Ok(Step::Refused) => {
                tracing::warn!("the lease is not ours any more; nothing was started");
                return Outcome::GivenBack;
            }
            Err(error) => {
                tracing::error!(%error, backend = self.backend.name(), "the intent is not taken; nothing was started");
                self.give_back("intent_not_taken").await;
                return Outcome::GivenBack;
            }
        }
        let asked = std::time::Instant::now();
        // A stop that comes meanwhile waits until the cell is there: a half-made one dropped here would be left behind.
        let mut stop = None;
        let acquired = {
            let mut acquire = std::pin::pin!(self.executor.acquire(&order));
            loop {
                tokio::select! {
                    acquired = &mut acquire => break acquired,
                    reason = stop_order(&mut orders), if stop.is_none() => stop = Some(reason),
                }
            }
        };
        if let Some(reason) = stop {
            let report = self.finish(self.never_ran(stopped(reason)));
            let Ok((cell, link)) = acquired else { return report.await };
            drop(link);
            let outcome = report.await;
            cell.destroy().await;
            return outcome;
        }
        let (cell, link) = match acquired {
            Ok(made) => made,
            Err(NoCell::Failed(cause)) => return self.finish(self.never_ran(cause)).await,
            Err(NoCell::Unavailable(reason)) => {
                self.give_back("no_cell").await;
                return Outcome::NoCells { reason };
            }
        };
        self.metrics.cell_acquire_seconds.observe(asked.elapsed().as_secs_f64());
        let (logs, id) = (self.logs.clone(), self.id);
        let writer = tokio::task::spawn_blocking(move || logs.create(id)).await.expect("creating a log does not panic");
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => {
                drop(link);
                cell.destroy().await;
                return self.finish(self.never_ran(Cause::LogStoreFailed { reason: error.to_string() })).await;
            }
        };
        self.backend.log_began(self.id, self.token);
        let (notes, mut noted) = mpsc::channel(NOTES);
        let conversation = Conversation { order: &order, log: writer, orders, reconnect: self.reconnect };
        // The closure owns the sender, so the notes end with the conversation.
        let talk = converse(&cell, link, conversation, move |progress| match progress {
            Progress::Started => {
                let _ = notes.try_send(UnixMillis::now());
            }
        });
        let tell = async {
            while let Some(at) = noted.recv().await {
                if let Err(error) = self.backend.advance(self.id, self.token, Phase::Running, at, "started").await {
                    tracing::warn!(%error, "the backend does not take that the job runs");
                }
            }
        };
        let (finished, ()) = tokio::join!(talk, tell);
        self.count(&finished);
        // The report first, since somebody waits for it; but a backend that is slow does not keep the cell.
        let (told, tells) = oneshot::channel::<()>();
        let tell = async {
            let outcome = self.finish(self.report(finished)).await;
            drop(told);
            outcome
        };
        let clean = async {
            let _ = tokio::time::timeout(REPORT_FIRST, tells).await;
            cell.destroy().await;
        };
        tokio::join!(tell, clean).0
    }

    fn never_ran(&self, cause: Cause) -> Report {
        Report {
            attempt: self.id,
            cause,
            started_at: None,
            ended_at: UnixMillis::now(),
            usage: None,
            receipt: Vec::new(),
            log: LogTotals { complete: true, ..LogTotals::default() },
        }
    }

    fn report(&self, finished: Finished) -> Report {
        Report {
            attempt: self.id,
            cause: finished.cause,
            started_at: finished.started_at,
            ended_at: UnixMillis::now(),
            usage: finished.usage,
            receipt: finished.receipt,
            log: finished.log,
        }
    }

    fn count(&self, finished: &Finished) {
        self.metrics.log_frames_total.inc_by(finished.log.frames);
        self.metrics.log_bytes_total.with_label_values(&["stdout"]).inc_by(finished.log.stdout.bytes);
        self.metrics.log_bytes_total.with_label_values(&["stderr"]).inc_by(finished.log.stderr.bytes);
        self.metrics.wire_skipped_bytes_total.inc_by(finished.skipped_bytes);
        self.metrics.reattach_total.inc_by(u64::from(finished.reattached));
    }

    /// Passes on the output that is still here, then reports until the backend has it, with growing pauses.
    async fn finish(&self, mut report: Report) -> Outcome {
        let ending = crate::job::Ending::from(report.cause.clone());
        tracing::info!(verdict = ending.verdict.name(), cause = report.cause.code(), reason = %ending.message, "attempt ended");
        self.metrics.jobs_ended_total.with_label_values(&[ending.verdict.name()]).inc();
        if let Some(usage) = &report.usage {
            let seconds = usage.wall.as_duration().as_secs_f64();
            self.metrics.job_duration_seconds.with_label_values(&[ending.verdict.name()]).observe(seconds);
        }
        // The end leaves last: whoever sees it can read all of the output.
        if report.log.frames > 0 && !self.backend.flush_log(self.id, report.log.frames).await {
            tracing::error!("the backend does not have all of the output; the report says so");
            report.log.complete = false;
        }
        match self.deliver(&report).await {
            Ok(Reported::Applied | Reported::AlreadyEnded) => {}
            Ok(Reported::Unknown) => {
                tracing::warn!("the backend does not want the report: the lease is not ours any more");
            }
            Err(error) => tracing::error!(%error, "the report could not be delivered; the lease will run out"),
        }
        self.backend.log_done(self.id);
        Outcome::Reported { well: ending.verdict != Verdict::CellError }
    }

    async fn deliver(&self, report: &Report) -> Result<Reported, BackendError> {
        let until = tokio::time::Instant::now() + REPORT_LIMIT;
        let mut pauses = pauses(REPORT_PAUSES.0, REPORT_PAUSES.1);
        loop {
            let error = match self.backend.report(report, self.token).await {
                Ok(reported) => return Ok(reported),
                Err(error) => error,
            };
            let pause = match error.retry {
                Retry::Never => return Err(error),
                Retry::Transient => pauses.next().unwrap_or(REPORT_PAUSES.1),
                Retry::Throttled(pause) => pause,
            };
            if tokio::time::Instant::now() + pause >= until {
                return Err(error);
            }
            tracing::warn!(%error, "report failed; trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn give_back(&self, reason: &str) {
        if let Err(error) = self.backend.release(self.id, self.token, reason).await {
            tracing::error!(%error, "the job could not be given back; its lease will run out");
        }
    }
}

/// Waits for an order to stop; renewals mean nothing before there is a warden.
async fn stop_order(orders: &mut mpsc::Receiver<Orders>) -> StopReason {
    loop {
        match orders.recv().await {
            // Nothing runs yet that a grace could be for.
            Some(Orders::Stop { reason, .. }) => return reason,
            Some(Orders::Renewed(_)) => {}
            None => std::future::pending().await,
        }
    }
}

fn stopped(reason: StopReason) -> Cause {
    match reason {
        StopReason::Cancel | StopReason::Timeout => Cause::Canceled,
        StopReason::Drain => Cause::AgentStopped,
        StopReason::Lease => Cause::LeaseExpired,
    }
}
