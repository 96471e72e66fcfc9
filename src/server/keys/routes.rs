//! Keys, for people with the role `admin`.

use super::{Entry, Role, UserKeyError};
use crate::job::{Millis, UnixMillis};
use crate::server::App;
use crate::server::agents::read;
use crate::server::audited::Told;
use crate::server::extract::{Path, Received};
use crate::server::limits::KeyLimits;
use crate::server::openapi::jobs as schema;
use crate::server::problem::ProblemDocument;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Routes of keys.
pub(in crate::server) fn for_people() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(remove))
        .routes(routes!(rotate))
        .routes(routes!(limit))
}

/// A key, without its secret.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by a derive only")]
struct Key {
    name: String,
    role: Role,
    /// Absent for the one in `admin.key`.
    #[schema(required)]
    made_at: Option<schema::Moment>,
    #[schema(required)]
    expires_at: Option<schema::Moment>,
    /// Until when one of the secrets before this one is good as well.
    #[schema(required)]
    old_until: Option<schema::Moment>,
    /// What an operator said of it; the rest is as the settings have it.
    limits: KeyLimits,
}

/// All keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyList {
    #[schema(value_type = Vec<Key>)]
    keys: Vec<Entry>,
}

/// A key that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    #[schema(pattern = "^[A-Za-z0-9._-]{1,63}$", example = "ci")]
    name: String,
    role: Role,
    /// Its time, such as `90d`; without it, it is good until it is removed.
    #[schema(value_type = Option<schema::Span>, nullable = false)]
    expires_in: Option<Millis>,
}

/// How a key is given another secret.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// How long the old secret stays good, 30 days at most; without it, it ends now, and so do all before it.
    #[schema(value_type = Option<schema::Span>, nullable = false)]
    overlap: Option<Millis>,
}

/// A key's secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AddedKey {
    name: String,
    /// Shown here and never again.
    key: String,
}

impl From<UserKeyError> for ProblemDocument {
    fn from(error: UserKeyError) -> Self {
        let code = match &error {
            UserKeyError::BadName(_) | UserKeyError::TooLong | UserKeyError::BadLimits => "bad_body",
            UserKeyError::Exists(_)
            | UserKeyError::Full
            | UserKeyError::Fixed
            | UserKeyError::Expired(_)
            | UserKeyError::TooMany(_) => "key_exists",
            UserKeyError::Unknown(_) => "key_not_found",
            UserKeyError::File { .. } => "unavailable",
        };
        Self::new(code, error.to_string())
    }
}

/// List keys
#[utoipa::path(get, path = "/v1/keys", tag = "keys",
    responses((status = 200, description = "The keys, without their secrets", body = KeyList)),
    extensions(("x-problems" = json!([]))))]
pub(super) async fn list(State(app): State<App>) -> Json<KeyList> {
    Json(KeyList { keys: app.keys.list(UnixMillis::now()) })
}

/// Make a key
#[utoipa::path(post, path = "/v1/keys", tag = "keys", request_body = NewKey,
    responses((status = 201, description = "The key, shown here and never again", body = AddedKey)),
    extensions(("x-problems" = json!(["key_exists", "unavailable"]))))]
pub(super) async fn add(
    State(app): State<App>,
    Received(body): Received,
) -> Result<(StatusCode, Extension<Told>, Json<AddedKey>), ProblemDocument> {
    let NewKey { name, role, expires_in } = read(&body)?;
    let key = app.keys.add(&name, role, expires_in, UnixMillis::now()).await?;
    tracing::info!(key = %name, role = role.name(), "a key was made");
    let detail = Some(format!("role {}", role.name()));
    let told = Told { object: Some(name.clone()), detail, ..Told::default() };
    Ok((StatusCode::CREATED, Extension(told), Json(AddedKey { name, key })))
}

/// Give a key another secret
#[utoipa::path(post, path = "/v1/keys/{name}/rotate", tag = "keys", request_body = Rotation,
    params(("name" = String, Path, description = "The key")),
    responses((status = 200, description = "The new secret, shown here and never again", body = AddedKey)),
    extensions(("x-problems" = json!(["key_not_found", "key_exists", "bad_id", "unavailable"]))))]
pub(super) async fn rotate(
    State(app): State<App>,
    Path(name): Path<String>,
    Received(body): Received,
) -> Result<Json<AddedKey>, ProblemDocument> {
    let Rotation { overlap } = read(&body)?;
    let key = app.keys.rotate(&name, overlap.unwrap_or_else(|| Millis::from_secs(0)), UnixMillis::now()).await?;
    tracing::info!(key = %name, "a key has another secret");
    Ok(Json(AddedKey { name, key }))
}

/// A key with its limits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Limited {
    name: String,
    limits: KeyLimits,
}

/// Say how much a key may do
///
/// In place of what was said before, from the next request on. What is left out is as the settings say; 0 is no bound.
#[utoipa::path(put, path = "/v1/keys/{name}/limits", tag = "keys", request_body = KeyLimits,
    params(("name" = String, Path, description = "The key")),
    responses((status = 200, description = "What was said", body = Limited)),
    extensions(("x-problems" = json!(["key_not_found", "key_exists", "bad_id", "unavailable"]))))]
pub(super) async fn limit(
    State(app): State<App>,
    Path(name): Path<String>,
    Received(body): Received,
) -> Result<(Extension<Told>, Json<Limited>), ProblemDocument> {
    let limits: KeyLimits = read(&body)?;
    app.keys.limit(&name, limits).await?;
    tracing::info!(key = %name, ?limits, "a key has other limits");
    let said = |name: &str, limit: Option<u64>| limit.map(|limit| format!("{name} {limit}"));
    let said = [
        said("rate", limits.rate.map(u64::from)),
        said("burst", limits.burst.map(u64::from)),
        said("jobs", limits.jobs),
    ];
    let said = said.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let detail = Some(if said.is_empty() { "as the settings say".to_owned() } else { said });
    Ok((Extension(Told { detail, ..Told::default() }), Json(Limited { name, limits })))
}

/// Take a key away
#[utoipa::path(delete, path = "/v1/keys/{name}", tag = "keys",
    params(("name" = String, Path, description = "The key")),
    responses((status = 204, description = "The key opens nothing any more")),
    extensions(("x-problems" = json!(["key_not_found", "key_exists", "bad_id", "unavailable"]))))]
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, ProblemDocument> {
    app.keys.remove(&name).await?;
    tracing::info!(key = %name, "a key was removed");
    Ok(StatusCode::NO_CONTENT)
}
