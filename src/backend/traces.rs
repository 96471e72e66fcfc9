//! Tells a collector of jobs that have ended: of the job itself and its waits. Its tries are told by their agents.
//!
//! Looks at what changes, as everybody else may, and reads a job again when it has ended. Must never be in the way of one: what it cannot
//! follow is counted and left out.

use super::Embedded;
use crate::job::{JobId, SpanId, TraceContext, trace_of};
use crate::telemetry::{Traces, job_spans};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

impl Embedded {
    /// From now on jobs are told of there.
    pub fn tell_traces(&self, traces: &Traces) {
        if traces.is_on() {
            // A second one would be a mistake of the program's, and changes nothing.
            let _ = self.tells.set(traces.clone());
        }
    }

    /// Tells of jobs as they end, until `stop`.
    pub async fn run_traces(self: Arc<Self>, stop: CancellationToken) {
        let Some(traces) = self.tells.get() else { return };
        let mut changes = self.changes();
        loop {
            let change = tokio::select! {
                // What has happened is told before the end.
                biased;
                change = changes.recv() => change,
                () = stop.cancelled() => return,
            };
            match change {
                Ok(change) if change.ended => self.tell_of(change.job, traces).await,
                Ok(_) => {}
                // Each may have been the end of a job, which has a span at least.
                Err(RecvError::Lagged(changes)) => traces.missed(usize::try_from(changes).unwrap_or(usize::MAX)),
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn tell_of(&self, id: JobId, traces: &Traces) {
        match self.get(id).await {
            Ok(Some(job)) if traces.wants(id, job.spec.trace()) => traces.tell(job_spans(&job)),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, %id, "a job that has ended cannot be told of");
                traces.missed(1);
            }
        }
    }

    /// Where a job for one of several hosts stands: beneath the job for all of them. `None`: nobody tells of that one, and each stands where
    /// their submitter does.
    pub(super) fn seen_from(&self, parent: JobId, context: Option<&TraceContext>) -> Option<TraceContext> {
        let traces = self.tells.get()?;
        let flags = u8::from(traces.wants(parent, context));
        let state = context.map(|context| context.state.clone()).unwrap_or_default();
        Some(TraceContext { trace: trace_of(parent, context), parent: SpanId::of_job(parent), flags, state })
    }
}
