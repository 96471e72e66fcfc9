//! What this process does at the moment, for an operator who asks: one look at a time, of a bounded length.

use super::App;
use super::audited::Told;
use super::jobs::{Answer, query};
use super::problem::ProblemDocument;
use crate::job::Millis;
use crate::supervise;
use crate::telemetry::{Profile, Snapshot};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

/// The shortest and the longest look.
const TIMES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A look that does not say.
const USUAL: Duration = Duration::from_secs(5);
/// Between two looks at the threads.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ProfileQuery {
    /// How long to look, such as `5s`, which is the default; from `100ms` to `30s`.
    time: Option<String>,
}

/// A thread of the process.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by a derive only")]
pub(super) struct ThreadUse {
    id: u32,
    name: String,
    /// Processor time of its own.
    user_ms: u64,
    /// Processor time of the kernel for it.
    system_ms: u64,
    /// How often it was looked at.
    looks: u32,
    /// How often of these it ran or wanted to.
    running: u32,
    /// How often it waited for something that cannot be interrupted, such as a disk.
    blocked: u32,
}

/// A worker of the runtime.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by a derive only")]
pub(super) struct WorkerUse {
    /// Time in which it polled tasks.
    busy_ms: u64,
    /// How often it went to sleep for want of work.
    parks: u64,
}

/// The process over a while.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by a derive only")]
pub(super) struct ProcessProfile {
    /// How long it was looked at.
    ms: u64,
    /// Processor time of all threads.
    cpu_ms: u64,
    /// Those with the most processor time first; 256 at most.
    threads: Vec<ThreadUse>,
    workers: Vec<WorkerUse>,
    /// Tasks that have not ended.
    alive_tasks: u64,
    /// Tasks that wait for a worker and belong to none.
    queued_tasks: u64,
    /// Bytes at the end, by kind.
    memory: BTreeMap<String, u64>,
    /// Bytes of disks and switches of threads, meanwhile.
    counts: BTreeMap<String, u64>,
}

/// Look at what the process does
///
/// Processor time by thread, the runtime's workers and tasks, memory and disks, over a few seconds. No stacks. One look at a time.
#[utoipa::path(post, path = "/v1/profile", tag = "health", params(ProfileQuery),
    responses((status = 200, description = "What it did", body = ProcessProfile)),
    extensions(("x-problems" = json!(["bad_query", "profile_running", "unavailable"]))))]
pub(super) async fn take(
    State(app): State<App>,
    asked: Result<Query<ProfileQuery>, QueryRejection>,
) -> Answer<(Extension<Told>, Json<Profile>)> {
    let time = match query(asked)?.time {
        None => USUAL,
        Some(text) => {
            let time = text.parse::<Millis>().map(Millis::as_duration);
            let bad = |reason: String| ProblemDocument::new("bad_query", format!("time: {reason}"));
            let time = time.map_err(|error| bad(error.to_string()))?;
            if !(TIMES.0..=TIMES.1).contains(&time) {
                return Err(bad("choose between 100ms and 30s".to_owned()));
            }
            time
        }
    };
    let Ok(_only) = app.profiling.try_acquire() else {
        let detail = "somebody looks at the process already; one look at a time";
        return Err(ProblemDocument::new("profile_running", detail).retry_after(TIMES.1.as_secs()));
    };
    let first = supervise::blocking(Snapshot::take).await;
    let (began, mut looks) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        tokio::select! {
            () = tokio::time::sleep(PAUSE.min(time.saturating_sub(began.elapsed()))) => {}
            () = app.stop.cancelled() => break,
        }
        looks.push(supervise::blocking(Snapshot::look).await);
    }
    let last = supervise::blocking(Snapshot::take).await;
    let profile = Profile::between(&first, &looks, &last, began.elapsed());
    let told = Told { detail: Some(format!("{} ms", profile.ms)), ..Told::default() };
    Ok((Extension(told), Json(profile)))
}
