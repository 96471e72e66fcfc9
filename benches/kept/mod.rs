//! Claims while ended jobs are removed beside them, by the same steps as in a server that runs.

use super::{AGENT, Outcome, add, ask, fill, ms, percentile, row, spec, whole};
use jobcell::audit::Audit;
use jobcell::backend::{Ask, Embedded, QueueSettings, RetentionSettings};
use jobcell::job::{Millis, UnixMillis};
use jobcell::logstore::LogStore;
use jobcell::queue::{AnyStore, SqliteStore};
use jobcell::telemetry::Metrics;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Jobs that wait: enough for all claims.
const WAITING: usize = 10_000;
/// Between two claims, as long as agents that have something to do leave it be.
const PAUSE: Duration = Duration::from_millis(2);

/// The figure. Errors: a job that was to go is left, or a claim brought none.
pub(super) async fn retention(short: bool) -> Outcome<()> {
    let (callers, each) = (100, if short { 10 } else { 60 });
    let (spec, dir) = (spec()?, tempfile::tempdir()?);
    let store = Arc::new(SqliteStore::open(&dir.path().join("queue.db"))?);
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (store, spec) = (Arc::clone(&store), spec.clone());
            jobcell::supervise::spawn("caller", async move {
                for _ in 0..each {
                    whole(&store, &spec).await.expect("a job that ends");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    fill(&store, &spec, WAITING).await?;
    add(&store, &spec).await?;
    let store = Arc::into_inner(store).ok_or("somebody else has the store")?;

    let logs = LogStore::open(&dir.path().join("logs"), 1 << 20)?;
    let settings = QueueSettings {
        max_queued: 2 * WAITING as u64,
        lease: Millis::from_secs(3600),
        max_attempts: 3,
        stuck_after: Millis::from_secs(3600),
    };
    let backend = Embedded::new(AnyStore::Sqlite(store), logs, settings);
    let all = RetentionSettings { jobs_max: Some(0), ..RetentionSettings::default() };
    backend.keep_for(all, Arc::new(Metrics::new()), Audit::default());
    let claim = async || -> Outcome<f64> {
        let what = Ask { max: 1, free: ask().free, wait: Duration::ZERO, load: Default::default() };
        let begun = Instant::now();
        let claims = backend.claim(AGENT, &what, &CancellationToken::new()).await?;
        let took = ms(begun.elapsed());
        if claims.len() == 1 { Ok(took) } else { Err("a claim that brought nothing".into()) }
    };
    // The first one makes the agent known.
    claim().await?;
    let mut quiet = Vec::new();
    for _ in 0..500 {
        quiet.push(claim().await?);
        tokio::time::sleep(PAUSE).await;
    }
    let removing = {
        let backend = Arc::clone(&backend);
        jobcell::supervise::spawn("retention", async move { backend.remove_old(UnixMillis::now(), false).await })
    };
    let mut beside = Vec::new();
    while !removing.is_finished() {
        beside.push(claim().await?);
        tokio::time::sleep(PAUSE).await;
    }
    let removed = removing.await??;
    if removed.jobs != callers * each {
        return Err(format!("{} of {} jobs are gone", removed.jobs, callers * each).into());
    }
    let (p99, alone) = (percentile(&mut beside, 99), percentile(&mut quiet, 99));
    row("claim while old jobs are removed, p99 (ms)", p99, Some(alone), "< 5 ms (reference: nothing is removed)");
    row("the longest of those claims (ms)", beside.last().copied().unwrap_or_default(), quiet.last().copied(), "");
    Ok(())
}
