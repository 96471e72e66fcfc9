//! The users' side of the embedded backend, for its own tests.

use super::{Desk, Seen};
use crate::backend::Embedded;
use crate::job::{AttemptId, JobId, JobSpec, SpecRules};
use crate::logstore::Stream;
use crate::queue::Submitted;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::Arc;

/// A desk at an embedded backend.
pub(crate) struct EmbeddedDesk(pub(crate) Arc<Embedded>);

impl Desk for EmbeddedDesk {
    fn submit(&self, spec: Value) -> BoxFuture<'_, Result<JobId, String>> {
        Box::pin(async move {
            let spec = JobSpec::check(&spec, &SpecRules::default()).map_err(|problems| problems.to_string())?;
            match self.0.submit(spec, None).await {
                Ok(Submitted::Created(job)) => Ok(job.id),
                other => Err(format!("{other:?}")),
            }
        })
    }

    fn see(&self, id: JobId) -> BoxFuture<'_, Result<Seen, String>> {
        Box::pin(async move {
            let job = self.0.get(id).await.map_err(|error| error.to_string())?.ok_or("no such job")?;
            let cause = job.ending.map(|ending| ending.cause.code().to_owned());
            Ok(Seen { phase: job.phase.name().to_owned(), cause })
        })
    }

    fn cancel(&self, id: JobId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.0.cancel(id).await.map(drop).map_err(|error| error.to_string()) })
    }

    fn output(&self, id: JobId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let job = self.0.get(id).await.map_err(|error| error.to_string())?.ok_or("no such job")?;
            let mut reader =
                self.0.logs().reader(AttemptId::new(id, job.attempt)).map_err(|error| error.to_string())?;
            let frames = reader.read(1, usize::MAX).map_err(|error| error.to_string())?;
            let out = frames.iter().filter(|frame| frame.stream == Stream::Stdout);
            Ok(out.flat_map(|frame| frame.bytes.to_vec()).collect())
        })
    }
}
