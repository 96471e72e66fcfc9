//! The list of agents, and their keys, for people.

use super::KeyError;
use super::drains::{self, Drained};
use crate::backend::AgentEntry;
use crate::job::UnixMillis;
use crate::server::App;
use crate::server::audited::Told;
use crate::server::extract::{Path, Received};
use crate::server::openapi::agents as schema;
use crate::server::problem::ProblemDocument;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Agents that are known.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AgentList {
    #[schema(value_type = Vec<schema::Agent>)]
    agents: Vec<AgentEntry>,
    /// Names that have a key, and have not been seen since this server started.
    never_seen: Vec<String>,
    /// Those that are drained, by name, whether they were seen or not.
    drained: BTreeMap<String, Drained>,
}

/// An agent that is to have a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAgent {
    #[schema(pattern = "^[A-Za-z0-9._-]{1,63}$", example = "build-7")]
    name: String,
}

/// A new agent's key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AddedAgent)]
pub(super) struct Added {
    name: String,
    /// Shown here and never again.
    key: String,
}

impl From<KeyError> for ProblemDocument {
    fn from(error: KeyError) -> Self {
        let code = match &error {
            KeyError::BadName(_) => "bad_body",
            KeyError::Exists(_) | KeyError::Full => "agent_exists",
            KeyError::Unknown(_) => "agent_not_found",
            KeyError::File { .. } => "unavailable",
        };
        Self::new(code, error.to_string())
    }
}

/// List agents
#[utoipa::path(get, path = "/v1/agents", tag = "agents",
    responses((status = 200, description = "The agents", body = AgentList)),
    extensions(("x-problems" = json!(["unavailable"]))))]
pub(super) async fn list(State(app): State<App>) -> Result<Json<AgentList>, ProblemDocument> {
    let drained = drains::all(&app).await?;
    let agents = app.backend.roster().list(UnixMillis::now());
    let seen = |name: &String| agents.iter().any(|agent| agent.name == *name);
    let never_seen = app.agent_keys.names().into_iter().filter(|name| !seen(name)).collect();
    Ok(Json(AgentList { agents, never_seen, drained }))
}

/// Make a key for a new agent
#[utoipa::path(post, path = "/v1/agents", tag = "agents", request_body = NewAgent,
    responses((status = 201, description = "The key, shown here and never again", body = Added)),
    extensions(("x-problems" = json!(["agent_exists", "unavailable"]))))]
pub(super) async fn add(
    State(app): State<App>,
    Received(body): Received,
) -> Result<(StatusCode, Extension<Told>, Json<Added>), ProblemDocument> {
    let NewAgent { name } = super::calls::read(&body)?;
    let key = app.agent_keys.add(&name).await?;
    tracing::info!(agent = %name, "an agent's key was made");
    let told = Told { object: Some(name.clone()), ..Told::default() };
    Ok((StatusCode::CREATED, Extension(told), Json(Added { name, key })))
}

/// Take an agent's key away
#[utoipa::path(delete, path = "/v1/agents/{name}", tag = "agents",
    params(("name" = String, Path, description = "The agent")),
    responses((status = 204, description = "The key opens nothing any more")),
    extensions(("x-problems" = json!(["agent_not_found", "bad_id", "unavailable"]))))]
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, ProblemDocument> {
    app.agent_keys.remove(&name).await?;
    app.join_tokens.forget(&name).await?;
    app.backend.roster().remove(&name);
    app.sessions.end(&name);
    // Another agent that gets this name some day is another one.
    app.agent_drains.forget(&app.backend, &name).await?;
    tracing::info!(agent = %name, "an agent's key was removed");
    Ok(StatusCode::NO_CONTENT)
}
