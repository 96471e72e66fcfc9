//! What the embedded backend does for agents elsewhere only: their output is received here, and their reports are held against it.

use super::{Embedded, Intake, IntakeError};
use crate::job::{AttemptId, LeaseToken, LogTotals, Report};
use crate::logstore::LogError;
use crate::protocol::agent::{AttemptStanding, Reported};
use crate::supervise;
use std::sync::Arc;

impl Embedded {
    async fn holds(&self, agent: &str, attempt: AttemptId, token: LeaseToken) -> Result<bool, IntakeError> {
        Ok(self.lookup(agent, &[(attempt, token)]).await? == [AttemptStanding::Held])
    }

    /// Runs `work` on a thread that may block: it reads and syncs files.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Intake) -> T + Send + 'static) -> T {
        let intake = Arc::clone(self.intake());
        supervise::blocking(move || work(&intake)).await
    }

    /// Gives a terminal report, of an agent elsewhere. What its log holds is what was received here, recomputed; the log is only
    /// called complete when both agree. Errors: the queue fails, or the same report is just being taken in; both may be tried
    /// again.
    pub async fn report_from_afar(
        &self,
        agent: &str,
        mut report: Report,
        token: LeaseToken,
    ) -> Result<Reported, IntakeError> {
        let attempt = report.attempt;
        if self.holds(agent, attempt, token).await? {
            report.log = match self.blocking(move |intake| intake.finish(attempt)).await {
                Ok(received) => agreed(&report.log, received),
                // Only the one that ends the log knows what is in it.
                Err(busy @ IntakeError::Log(LogError::Busy(_))) => return Err(busy),
                Err(error) => {
                    tracing::error!(%error, %attempt, "the log could not be ended");
                    LogTotals { complete: false, ..report.log }
                }
            };
        }
        let reported = self.report(agent, &report, token).await?;
        if reported != Reported::Unknown {
            // The agent's stream may have opened it once more before the end was written down.
            self.close_logs(attempt).await;
        }
        Ok(reported)
    }

    /// Opens the log of an attempt that runs elsewhere, and says which frame of it is durable; `None` when the attempt is not the
    /// asker's. Errors: the queue or the log fails.
    pub async fn open_log(
        &self,
        agent: &str,
        attempt: AttemptId,
        token: LeaseToken,
    ) -> Result<Option<u64>, IntakeError> {
        if !self.holds(agent, attempt, token).await? {
            return Ok(None);
        }
        let durable = self.blocking(move |intake| intake.open(attempt)).await?;
        if !self.holds(agent, attempt, token).await? {
            // Lost in between, and so perhaps opened after the end.
            self.close_logs(attempt).await;
            return Ok(None);
        }
        // Viewers who came before the log look again.
        self.changed(attempt.job, false);
        Ok(Some(durable))
    }

    /// Ends the logs that are open of an attempt that is over, and of older ones.
    pub(super) async fn close_logs(&self, over: AttemptId) {
        self.blocking(move |intake| intake.abandon(over)).await;
    }
}

/// What was received, called complete only when it is what was sent.
fn agreed(sent: &LogTotals, received: LogTotals) -> LogTotals {
    let same = sent.frames == received.frames && sent.stdout == received.stdout && sent.stderr == received.stderr;
    if !same && sent.complete {
        tracing::warn!(sent = sent.frames, received = received.frames, "a log has not arrived whole");
    }
    // A job that never ran has no output, and no hashes on the agent's side.
    let none = sent.frames == 0 && received.frames == 0;
    LogTotals { complete: sent.complete && (same || none), ..if none { sent.clone() } else { received } }
}
