//! What agents and those who look after them ask: keys and the list for people, the agent protocol for programs.

mod artifacts;
mod calls;
mod contents;
mod drains;
mod keys;
mod roster;
mod stream;
mod tokens;

pub use drains::AgentDrains;
pub use keys::{AgentKeys, KeyError};
pub use tokens::{JoinTokens, TokenError};

pub(super) use calls::{Sessions, read};
pub(super) use keys::require_agent_key;
pub(super) use stream::Streams;

use super::App;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// For people, with the admin key.
pub(super) fn for_people() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(roster::list, roster::add))
        .routes(routes!(roster::remove))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::remove))
        .routes(routes!(drains::drain))
        .routes(routes!(drains::quarantine))
        .routes(routes!(drains::resume))
}

/// For agents that have no key yet.
pub(super) fn for_newcomers() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(tokens::enroll))
}

/// For agents, each with its own key.
pub(super) fn for_agents() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(calls::register))
        .routes(routes!(calls::claim))
        .routes(routes!(calls::renew))
        .routes(routes!(calls::lookup))
        .routes(routes!(calls::advance))
        .routes(routes!(calls::release))
        .routes(routes!(calls::report))
        .routes(routes!(artifacts::missing))
        .routes(routes!(artifacts::put))
        .routes(routes!(artifacts::given))
        .routes(routes!(artifacts::progress))
        .routes(routes!(contents::read))
        .routes(routes!(stream::open))
}
