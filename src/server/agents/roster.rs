//! The list of agents, and their keys, for people.

use super::KeyError;
use crate::backend::AgentEntry;
use crate::job::UnixMillis;
use crate::server::App;
use crate::server::problem::ProblemDocument;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize)]
pub(super) struct AgentList {
    agents: Vec<AgentEntry>,
    /// Names that have a key, and have not been seen since this server started.
    never_seen: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAgent {
    name: String,
}

#[derive(Debug, Serialize)]
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

pub(super) async fn list(State(app): State<App>) -> Json<AgentList> {
    let agents = app.backend.roster().list(UnixMillis::now());
    let seen = |name: &String| agents.iter().any(|agent| agent.name == *name);
    let never_seen = app.agent_keys.names().into_iter().filter(|name| !seen(name)).collect();
    Json(AgentList { agents, never_seen })
}

pub(super) async fn add(State(app): State<App>, body: Bytes) -> Result<(StatusCode, Json<Added>), ProblemDocument> {
    let NewAgent { name } = super::calls::read(&body)?;
    let key = app.agent_keys.add(&name)?;
    tracing::info!(agent = %name, "an agent's key was made");
    Ok((StatusCode::CREATED, Json(Added { name, key })))
}

pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, ProblemDocument> {
    app.agent_keys.remove(&name)?;
    app.backend.roster().remove(&name);
    app.sessions.end(&name);
    tracing::info!(agent = %name, "an agent's key was removed");
    Ok(StatusCode::NO_CONTENT)
}
