//! Operators drain agents and let them go on. What they said is kept in a file beside that of the keys, so that it outlives the server;
//! the backend is told after it is written.

use super::KeyError;
use crate::backend::{Drain, Embedded};
use crate::job::UnixMillis;
use crate::server::audited::Told;
use crate::server::extract::{Path, Received};
use crate::server::problem::ProblemDocument;
use crate::server::{App, kept};
use crate::supervise::spawn;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Characters of a reason.
const MOST_REASON: usize = 400;

/// The file.
#[derive(Debug)]
pub struct AgentDrains {
    path: PathBuf,
    /// One change at a time, from the file to the backend.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl AgentDrains {
    /// Reads the file, and tells the backend; one that is not there has none. Errors: it cannot be read.
    pub fn open(path: PathBuf, backend: &Embedded) -> Result<Self, KeyError> {
        let drains: BTreeMap<String, Drain> =
            kept::read(&path).map_err(|reason| KeyError::File { path: path.clone(), reason })?;
        for (agent, drain) in &drains {
            tracing::info!(agent, reason = %drain.reason, since = %drain.since, "this agent is drained");
        }
        backend.roster().drains().set(drains);
        Ok(Self { path, changing: Arc::default() })
    }

    /// Changes what is said of an agent; `change` gives what is to hold. Goes on when the caller is dropped: what is written is told.
    async fn change(
        &self,
        backend: &Arc<Embedded>,
        agent: &str,
        change: impl FnOnce(Option<Drain>) -> Option<Drain> + Send + 'static,
    ) -> Result<(), KeyError> {
        let (path, backend, agent) = (self.path.clone(), Arc::clone(backend), agent.to_owned());
        let changing = Arc::clone(&self.changing);
        let changed = spawn("drain", async move {
            let _one = changing.lock().await;
            let mut drains = backend.roster().drains().all();
            let before = drains.remove(&agent);
            let after = change(before.clone());
            if after == before {
                return Ok(());
            }
            drains.extend(after.clone().map(|drain| (agent.clone(), drain)));
            kept::write(&path, &drains).map_err(|reason| KeyError::File { path, reason })?;
            backend.set_drains(drains, &agent).await;
            match after {
                Some(Drain { quarantined: true, reason, .. }) => {
                    tracing::warn!(agent, reason, "an operator quarantined an agent")
                }
                Some(drain) => tracing::info!(agent, reason = %drain.reason, "an operator drained an agent"),
                None => tracing::info!(agent, "an operator lets a drained agent go on"),
            }
            Ok(())
        });
        changed.await.unwrap_or_else(|_| {
            Err(KeyError::File { path: self.path.clone(), reason: "it was not written".to_owned() })
        })
    }

    /// Nothing is said of an agent any more.
    pub(super) async fn forget(&self, backend: &Arc<Embedded>, agent: &str) -> Result<(), KeyError> {
        self.change(backend, agent, |_| None).await
    }
}

/// Why an agent is to be drained.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DrainRequest {
    /// For people, in lists and explanations. Without one, that of an earlier request stays.
    #[schema(required = false, max_length = 400, example = "a new kernel")]
    reason: Option<String>,
}

/// That an agent is drained.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Drained {
    /// As the operator said; may be empty.
    reason: String,
    /// Since when.
    #[schema(value_type = crate::server::openapi::jobs::Moment)]
    since: UnixMillis,
    /// It is not trusted with jobs: a plain resume does not let it go on. Absent when it is only drained.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    quarantined: bool,
    /// Jobs that it still has.
    held: u64,
}

/// Whether an agent is drained.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DrainAnswer {
    name: String,
    /// Null when it is not.
    drained: Option<Drained>,
    /// How many jobs were taken from it by this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stopped: Option<u64>,
}

/// All drained agents, by name, with what they still have.
pub(super) async fn all(app: &App) -> Result<BTreeMap<String, Drained>, ProblemDocument> {
    let drains = app.backend.roster().drains().all();
    if drains.is_empty() {
        return Ok(BTreeMap::new());
    }
    let held = app.backend.held().await?;
    let shown = |(name, Drain { reason, since, quarantined }): (String, Drain)| {
        let held = held.get(&name).copied().unwrap_or_default();
        (name, Drained { reason, since, quarantined, held })
    };
    Ok(drains.into_iter().map(shown).collect())
}

async fn answer(app: &App, name: String, stopped: Option<u64>) -> Result<Json<DrainAnswer>, ProblemDocument> {
    let drained = all(app).await?.remove(&name);
    Ok(Json(DrainAnswer { name, drained, stopped }))
}

/// Errors: there is no such agent, neither one with a key nor one that lives in this process.
fn known(app: &App, name: &str) -> Result<(), ProblemDocument> {
    let known = app.agent_keys.has(name) || app.backend.roster().profile(name).is_some();
    if known {
        Ok(())
    } else {
        Err(KeyError::Unknown(name.chars().take(64).flat_map(char::escape_debug).collect()).into())
    }
}

/// Hand no more jobs to an agent
///
/// What it has goes on. Holds until it is resumed, also over restarts of server and agent. Asking again changes nothing but the reason.
#[utoipa::path(post, path = "/v1/agents/{name}/drain", tag = "agents",
    params(("name" = String, Path, description = "The agent")), request_body = DrainRequest,
    responses((status = 200, description = "It is drained", body = DrainAnswer)),
    extensions(("x-problems" = json!(["agent_not_found", "bad_id", "unavailable"]))))]
pub(super) async fn drain(
    State(app): State<App>,
    Path(name): Path<String>,
    Received(body): Received,
) -> Result<Json<DrainAnswer>, ProblemDocument> {
    let DrainRequest { reason } = if body.is_empty() { DrainRequest::default() } else { super::calls::read(&body)? };
    let reason = reason.as_deref().map(checked).transpose()?;
    known(&app, &name)?;
    let now = UnixMillis::now();
    let change = move |before: Option<Drain>| {
        let before = before.unwrap_or(Drain { reason: String::new(), since: now, quarantined: false });
        // What was said of a quarantine is not for somebody to replace who only works on the host.
        let reason = reason.filter(|_| !before.quarantined);
        Some(Drain { reason: reason.unwrap_or(before.reason), ..before })
    };
    app.agent_drains.change(&app.backend, &name, change).await?;
    answer(&app, name, None).await
}

/// Why an agent is to be quarantined.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QuarantineRequest {
    /// For people, in lists, explanations and the audit log.
    #[schema(max_length = 400, example = "its key was seen in a log")]
    reason: String,
    /// Take the jobs from it that it has: they are tried again elsewhere, as after a lost agent.
    #[serde(default)]
    #[schema(required = false)]
    stop: bool,
}

/// Trust an agent with no more jobs
///
/// As a drain, but a plain resume does not end it; what the agent has can be taken from it at once. Asking again replaces the reason.
#[utoipa::path(post, path = "/v1/agents/{name}/quarantine", tag = "agents",
    params(("name" = String, Path, description = "The agent")), request_body = QuarantineRequest,
    responses((status = 200, description = "It is quarantined", body = DrainAnswer)),
    extensions(("x-problems" = json!(["agent_not_found", "bad_id", "unavailable"]))))]
pub(super) async fn quarantine(
    State(app): State<App>,
    Path(name): Path<String>,
    Received(body): Received,
) -> Result<(Extension<Told>, Json<DrainAnswer>), ProblemDocument> {
    let QuarantineRequest { reason, stop } = super::calls::read(&body)?;
    let reason = checked(&reason)?;
    if reason.is_empty() {
        return Err(ProblemDocument::new("bad_body", "reason: it is empty; say why, for those who find the agent so"));
    }
    known(&app, &name)?;
    let (now, said) = (UnixMillis::now(), reason.clone());
    let change = move |before: Option<Drain>| {
        let since = before.filter(|before| before.quarantined).map_or(now, |before| before.since);
        Some(Drain { reason, since, quarantined: true })
    };
    app.agent_drains.change(&app.backend, &name, change).await?;
    // Behind it: nothing is handed out to it any more.
    let stopped = if stop {
        let (backend, agent) = (Arc::clone(&app.backend), name.clone());
        // Goes on when the caller hangs up: what is taken from the agent is told to all who wait for it.
        let work = spawn("quarantine", async move { backend.take_from(&agent).await });
        let failed = |_| ProblemDocument::new("unavailable", "taking jobs from it was given up; ask again");
        Some(work.await.map_err(failed)??)
    } else {
        None
    };
    let told = Told { count: stopped, detail: Some(said), ..Told::default() };
    Ok((Extension(told), answer(&app, name, stopped).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ResumeQuery {
    /// Also when it is quarantined.
    #[serde(default)]
    quarantined: bool,
}

/// Hand jobs to a drained agent again
///
/// Asking for one that is not drained changes nothing. One that is quarantined is resumed only with `quarantined=true`.
#[utoipa::path(post, path = "/v1/agents/{name}/resume", tag = "agents",
    params(("name" = String, Path, description = "The agent"), ResumeQuery),
    responses((status = 200, description = "It is not drained", body = DrainAnswer)),
    extensions(("x-problems" = json!(["agent_not_found", "agent_quarantined", "bad_id", "bad_query", "unavailable"]))))]
pub(super) async fn resume(
    State(app): State<App>,
    Path(name): Path<String>,
    asked: Result<Query<ResumeQuery>, QueryRejection>,
) -> Result<Json<DrainAnswer>, ProblemDocument> {
    let ResumeQuery { quarantined } = crate::server::jobs::query(asked)?;
    known(&app, &name)?;
    // Decided where nobody else changes it.
    app.agent_drains
        .change(&app.backend, &name, move |before| before.filter(|drain| drain.quarantined && !quarantined))
        .await?;
    if let Some(drain) = app.backend.roster().drains().of(&name).filter(|drain| drain.quarantined && !quarantined) {
        let detail = format!(
            "agent {name} is {}; to trust it again, ask with quarantined=true (`jobcell resume {name} --quarantined`)",
            drain.sentence()
        );
        return Err(ProblemDocument::new("agent_quarantined", detail));
    }
    answer(&app, name, None).await
}

/// A reason is shown in lists and logs: it has to be short, and one line.
fn checked(reason: &str) -> Result<String, ProblemDocument> {
    let length = reason.chars().count();
    let wrong = if length > MOST_REASON {
        format!("reason: it has {length} characters; use at most {MOST_REASON}")
    } else if reason.chars().any(char::is_control) {
        "reason: it has control characters; write one line of text".to_owned()
    } else {
        return Ok(reason.trim().to_owned());
    };
    Err(ProblemDocument::new("bad_body", wrong))
}
