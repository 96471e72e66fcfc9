//! The HTTP API under `/v1`, health and metrics.
//!
//! Owns routes, status codes and error documents. Decides nothing about jobs: it reads a request, asks the backend, and
//! writes the answer. Bodies, waits and viewers are bounded; a viewer of a live log is a cursor on the log store.

mod agents;
mod artifacts;
mod audited;
mod auth;
mod blobs;
mod bulk;
mod connections;
mod content;
mod cors;
mod cursor;
mod dead;
mod etag;
mod events;
mod extract;
mod frames;
mod guards;
mod health;
mod jobs;
mod kept;
mod keys;
mod limits;
mod list;
mod live;
mod logs;
mod openapi;
mod pace;
mod places;
mod problem;
mod profile;
mod report;
mod retention;
mod stats;
mod steady;
mod tail;
mod unread;

pub use agents::{AgentDrains, AgentKeys, JoinTokens, KeyError, TokenError};
pub use connections::{Connections, serve};
pub use keys::{Role, UserKeyError, UserKeys};
pub use limits::{LimitSettings, LiveLimits};
pub use openapi::openapi_json;
pub use problem::{ERROR_CODES, ProblemDocument};

use crate::admission::Gate;
use crate::audit::Audit;
use crate::backend::Embedded;
use crate::job::SpecRules;
use crate::telemetry::{Health, Metrics};
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What the operator's configuration says about the API.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Largest request body, bytes.
    pub max_body: usize,
    /// For a request's body to be there; contents are not meant.
    pub body_timeout: Duration,
    /// Longest `?wait=`.
    pub wait_max: Duration,
    /// Live log streams at the same time.
    pub viewers_max: usize,
    /// How often keys and strangers may ask.
    pub limits: LiveLimits,
    /// Origins of web pages that may use the API from a browser, beside its own.
    pub origins: Vec<String>,
    /// What checking a spec needs to know.
    pub rules: SpecRules,
    /// What the agent in this process lets in, to say so at once; none where the agents are elsewhere.
    pub gate: Option<Gate>,
    /// From then on no more jobs are taken in: what runs them is about to leave.
    pub stopping: CancellationToken,
}

/// Who may come in, and what is written down of them.
pub struct Doors {
    /// Keys of people and programs.
    pub users: UserKeys,
    /// Keys of agents.
    pub agents: AgentKeys,
    /// What agents without a key come with.
    pub tokens: JoinTokens,
    /// Agents that get no jobs.
    pub drains: AgentDrains,
    /// Who did what.
    pub audit: Audit,
}

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    backend: Arc<Embedded>,
    health: Health,
    metrics: Arc<Metrics>,
    keys: UserKeys,
    agent_keys: AgentKeys,
    join_tokens: JoinTokens,
    agent_drains: AgentDrains,
    audit: Audit,
    limits: limits::Limits,
    sessions: agents::Sessions,
    settings: ServerSettings,
    /// Live streams.
    viewers: places::Shares,
    /// Contents that come from users, and that go to them.
    uploads: places::Shares,
    downloads: places::Shares,
    streams: agents::Streams,
    /// Taken by who looks at what the process does.
    profiling: tokio::sync::Semaphore,
    /// Ends live streams and waits when the server stops.
    stop: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Second names of paths.
const ALIASES: [(&str, &str); 3] = [("/live", "/livez"), ("/ready", "/readyz"), ("/health", "/healthz")];

/// Routes that a person's key opens, each with the role that `auth` says. Each handler says of itself what it takes and answers, and nothing is served that does
/// not: a new route is a line here and an annotation there.
fn for_users() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(jobs::submit, list::list))
        .routes(routes!(bulk::submit))
        .routes(routes!(bulk::cancel))
        .routes(routes!(dead::replay))
        .routes(routes!(retention::collect))
        .routes(routes!(blobs::post))
        .routes(routes!(blobs::put, blobs::get))
        .routes(routes!(jobs::get))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::explain))
        .routes(routes!(jobs::retry))
        .routes(routes!(report::read))
        .routes(routes!(stats::daily))
        .routes(routes!(profile::take))
        .routes(routes!(logs::read, logs::remove))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::read))
        .routes(routes!(live::follow))
        .routes(routes!(events::follow))
        .merge(agents::for_people())
        .merge(keys::for_people())
        .merge(audited::for_people())
}

/// Routes that need no key.
fn for_everybody() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::all))
        .routes(routes!(health::metrics))
        .merge(agents::for_newcomers())
        .merge(openapi::routes())
}

/// Everything that is served, with what it says of itself.
fn every_route() -> OpenApiRouter<App> {
    for_users().merge(agents::for_agents()).merge(for_everybody())
}

/// The API on these parts.
pub fn router(
    backend: Arc<Embedded>,
    health: Health,
    metrics: Arc<Metrics>,
    doors: Doors,
    settings: ServerSettings,
    stop: CancellationToken,
) -> Router {
    let Doors { users: keys, agents: agent_keys, tokens: join_tokens, drains: agent_drains, audit } = doors;
    let viewers = places::Shares::new(settings.viewers_max);
    let max_body = settings.max_body;
    let sessions = agents::Sessions::default();
    let limits = limits::Limits::new(settings.limits.clone());
    let app = App(Arc::new(Shared {
        backend,
        health,
        metrics,
        keys,
        agent_keys,
        join_tokens,
        agent_drains,
        audit,
        limits,
        sessions,
        settings,
        viewers,
        uploads: places::Shares::new(blobs::UPLOADS),
        downloads: places::Shares::new(content::READS),
        streams: agents::Streams::default(),
        profiling: tokio::sync::Semaphore::new(1),
        stop,
    }));
    let v1 = for_users().route_layer(middleware::from_fn_with_state(app.clone(), auth::require_key));
    let agents =
        agents::for_agents().route_layer(middleware::from_fn_with_state(app.clone(), agents::require_agent_key));
    // What the routes say of themselves is written down by `openapi`.
    let (routes, _) = v1.merge(agents).merge(for_everybody()).split_for_parts();
    routes
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/health", get(health::all))
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(DefaultBodyLimit::max(max_body))
        .layer(middleware::from_fn_with_state(app.clone(), unread::drain))
        .layer(middleware::from_fn(guards::size))
        .layer(middleware::from_fn_with_state(app.clone(), cors::share))
        .layer(middleware::from_fn(guards::protect))
        .layer(middleware::from_fn_with_state(app.clone(), count))
        .with_state(app)
}

/// Health and metrics alone, for an agent whose backend is elsewhere.
pub fn admin_router(health: Health, metrics: Arc<Metrics>) -> Router {
    let ready = {
        let health = health.clone();
        move || async move { health::readiness(health.report().ready) }
    };
    let all = move || async move { health::whole(health.report()) };
    let metrics = move |headers: axum::http::HeaderMap| async move { health::page(&metrics, &headers) };
    Router::new()
        .route("/livez", get(health::live))
        .route("/live", get(health::live))
        .route("/readyz", get(ready.clone()))
        .route("/ready", get(ready))
        .route("/healthz", get(all.clone()))
        .route("/health", get(all))
        .route("/metrics", get(metrics))
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(middleware::from_fn(guards::size))
        .layer(middleware::from_fn(guards::protect))
}

/// Counts every answer by route and code. The route is the pattern, never the path: paths are without bound.
async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    app.metrics.http_requests_total.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    response
}

/// The key that a request carries.
fn bearer(headers: &axum::http::HeaderMap) -> Option<&str> {
    let given = headers.get(axum::http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer "))).map(str::trim)
}

/// Compares hashes of keys in a time that says nothing of where they differ.
fn same_hash(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |found, (one, other)| found | (one ^ other));
    one.len() == other.len() && differences == 0
}
