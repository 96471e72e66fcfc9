//! The way of a report to its backend: the output first, then the report, for as long as it takes; and the way back of what an
//! earlier process did not begin. The journal keeps the entry until the backend knows, so either may be dropped at any moment,
//! and the next process begins it anew.

use crate::backend::{Backend, BackendError};
use crate::blobs::BlobStore;
use crate::job::{Cause, Phase, Report, SpanId, trace_of};
use crate::journal::{Entry, Journal};
use crate::net::{Retry, pauses};
use crate::protocol::agent::{AttemptStanding, Reported};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::Instrument;

/// First and longest pause between tries to report. The longest is short beside an outage that is worth the word, and long beside
/// what a try costs a backend.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// Between tries after a plain no. An operator has to put something right: a key, a version, a full disk.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// An end that takes longer is told to be on its way, so that nobody takes the job for one that does not get on.
const SLOW: Duration = Duration::from_secs(20);
/// A journal that does not take the end of an entry is asked again after this.
const JOURNAL_PAUSE: Duration = Duration::from_secs(5);

/// An end on its way.
pub(super) struct Delivery {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) entry: Entry,
    pub(super) report: Report,
    /// Where its files are.
    pub(super) store: Option<BlobStore>,
    /// An earlier process began it: it may have delivered the report already, and has not told this one of the output.
    pub(super) again: bool,
}

/// What log lines are about that tell of this attempt: the ids of its span are there also where nobody is told of spans.
pub(super) fn span_of(entry: &Entry) -> tracing::Span {
    let id = entry.key.attempt;
    let trace_id = trace_of(id.job, entry.spec.trace());
    let span_id = SpanId::of_attempt(id);
    tracing::info_span!("attempt", job_id = %id.job, attempt = id.attempt, %trace_id, %span_id)
}

/// Gives back an attempt that an earlier process was about to begin, and forgets it; as long as it takes.
pub(super) async fn return_left(backend: &dyn Backend, journal: &dyn Journal, entry: &Entry) {
    let give_back = async {
        let attempt = entry.key.attempt;
        let mut pauses = pauses(PAUSES.0, PAUSES.1);
        while let Err(error) = backend.release(attempt, entry.token, "agent_restarted", None).await {
            pause("what was not begun could not be given back yet", backend, &error, &mut pauses).await;
        }
        forget(journal, entry).await;
    };
    give_back.instrument(span_of(entry)).await;
}

/// Until an entry is gone, another process would settle it again: harmless, and still not left at that.
pub(super) async fn forget(journal: &dyn Journal, entry: &Entry) {
    if mutant!(EntriesStay) {
        return;
    }
    while let Err(error) = journal.remove(&entry.key).await {
        tracing::error!(%error, "it is settled, and its entry stays for the moment");
        tokio::time::sleep(JOURNAL_PAUSE).await;
    }
}

async fn pause(
    what: &str,
    backend: &dyn Backend,
    error: &BackendError,
    pauses: &mut (impl Iterator<Item = Duration> + Send),
) {
    let pause = match error.retry {
        Retry::Never => REFUSED_PAUSE,
        Retry::Transient => pauses.next().unwrap_or(PAUSES.1),
        Retry::Throttled(pause) => pause,
    };
    tracing::warn!(backend = backend.name(), %error, again_in = ?pause, what);
    tokio::time::sleep(pause).await;
}

impl Delivery {
    /// Ends when the backend has the report, or does not want it any more; `told` hears of that first.
    pub(super) async fn run(self, told: Option<oneshot::Sender<()>>) {
        let span = span_of(&self.entry);
        self.carry(told).instrument(span).await;
    }

    async fn carry(self, told: Option<oneshot::Sender<()>>) {
        let attempt = self.entry.key.attempt;
        let delivered = self.bring();
        tokio::select! {
            biased;
            () = delivered => {}
            never = self.tell_that_it_finishes() => match never {},
        }
        crash_point!("after-report");
        // Nobody may be waiting.
        let _ = told.map(|told| told.send(()));
        self.backend.log_done(attempt);
        forget(self.journal.as_ref(), &self.entry).await;
        crash_point!("after-forget");
    }

    /// The output, and then the report.
    async fn bring(&self) {
        let (attempt, token) = (self.entry.key.attempt, self.entry.token);
        let mut report = self.report.clone();
        if !self.settled().await {
            if report.log.frames > 0 {
                if self.again {
                    self.backend.log_began(attempt, token);
                }
                // The end leaves last: whoever sees it can read all of the output.
                if !mutant!(ReportBeforeFlush) && !self.backend.flush_log(attempt, report.log.frames).await {
                    tracing::error!("the backend does not have all of the output; the report says so");
                    report.log.complete = false;
                }
            }
            self.give_artifacts(&mut report).await;
            self.deliver(&report).await;
        }
    }

    /// Its files are there before its end is told; what of them is not, the report says.
    async fn give_artifacts(&self, report: &mut Report) {
        let (Some(artifacts), Some(store)) = (&mut report.results.artifacts, &self.store) else { return };
        let (attempt, token) = (self.entry.key.attempt, self.entry.token);
        if let Err(reason) = self.backend.give_artifacts(attempt, token, artifacts, store).await {
            tracing::error!(%reason, "the backend does not have its files; the report says so");
            artifacts.not_delivered(&reason);
            let required = self.entry.spec.artifacts().iter().any(|rule| rule.required);
            if required && report.cause == (Cause::ExitCode { exit_code: 0 }) {
                report.cause = Cause::ArtifactsFailed { reason: crate::job::one_line(&reason, 500) };
            }
        }
    }

    /// Output that waited for a backend can take longer than the job itself.
    async fn tell_that_it_finishes(&self) -> Infallible {
        tokio::time::sleep(SLOW).await;
        let (attempt, token, at) = (self.entry.key.attempt, self.entry.token, self.report.ended_at);
        let mut pauses = pauses(PAUSES.0, PAUSES.1);
        while let Err(error) = self.backend.advance(attempt, token, Phase::Finishing, at, "delivering").await {
            self.pause(&error, &mut pauses).await;
        }
        std::future::pending().await
    }

    /// A backend that takes every report twice is asked before one is given again.
    async fn settled(&self) -> bool {
        if !self.again || self.backend.capabilities().fenced_end {
            return false;
        }
        let mut pauses = pauses(PAUSES.0, PAUSES.1);
        loop {
            match self.backend.lookup(&[(self.entry.key.attempt, self.entry.token)]).await {
                Ok(standings) => return standings.first() == Some(&AttemptStanding::Ended),
                Err(error) => self.pause(&error, &mut pauses).await,
            }
        }
    }

    async fn deliver(&self, report: &Report) {
        let mut pauses = pauses(PAUSES.0, PAUSES.1);
        loop {
            match self.backend.report(report, self.entry.token).await {
                Ok(Reported::Applied | Reported::AlreadyEnded) => return,
                Ok(Reported::Unknown) => {
                    return tracing::warn!(
                        event = "attempt.lease_lost",
                        "the backend does not want the report: the lease is not ours any more"
                    );
                }
                Err(_) if mutant!(ReportedOnce) => return,
                Err(error) => self.pause(&error, &mut pauses).await,
            }
        }
    }

    async fn pause(&self, error: &BackendError, pauses: &mut (impl Iterator<Item = Duration> + Send)) {
        pause("the end could not be delivered yet", self.backend.as_ref(), error, pauses).await;
    }
}
