//! What agents and those who look after them ask: keys and the list for people, the agent protocol for programs.

mod calls;
mod keys;
mod roster;
mod stream;

pub use keys::{AgentKeys, KeyError};

pub(super) use calls::Sessions;
pub(super) use keys::require_agent_key;

use super::App;
use axum::Router;
use axum::routing::{delete, get, post};

/// For people, with the admin key.
pub(super) fn for_people() -> Router<App> {
    Router::new()
        .route("/v1/agents", get(roster::list).post(roster::add))
        .route("/v1/agents/{name}", delete(roster::remove))
}

/// For agents, each with its own key.
pub(super) fn for_agents() -> Router<App> {
    Router::new()
        .route("/v1/agent/register", post(calls::register))
        .route("/v1/agent/claim", post(calls::claim))
        .route("/v1/agent/renew", post(calls::renew))
        .route("/v1/agent/lookup", post(calls::lookup))
        .route("/v1/agent/advance", post(calls::advance))
        .route("/v1/agent/release", post(calls::release))
        .route("/v1/agent/report", post(calls::report))
        .route("/v1/agent/stream", get(stream::open))
}
