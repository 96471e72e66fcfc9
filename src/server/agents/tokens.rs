//! Join tokens: with one an agent gets in for the first time, and makes itself known with a key that nobody else has ever seen.
//!
//! A token is shown once, kept as a hash, good for a while and for one agent. The agent makes its key itself, writes it down and sends the
//! hash alone: whoever dies in the middle asks again with the same token and the same hash, and is answered as before. With another hash the
//! token is used up.

use super::keys::{KeyError, hash, is_name};
use crate::audit::Who;
use crate::job::{Millis, UnixMillis};
use crate::protocol::agent::{Enroll, Enrolled};
use crate::server::audited::{Attempt, Told};
use crate::server::extract::{Path, Received};
use crate::server::kept::Book;
use crate::server::openapi::{agents as schema, jobs as values};
use crate::server::problem::ProblemDocument;
use crate::server::{App, auth, same_hash};
use crate::supervise::spawn;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use utoipa::ToSchema;

/// Tokens that are remembered.
const MOST: usize = 1000;
/// Bytes of a request by which an agent gets in; it has three hundred.
const LARGEST: usize = 4096;
/// Without another word, and at most.
const USUAL: Millis = Millis::from_secs(3600);
const LONGEST: Millis = Millis::from_secs(30 * 24 * 3600);
/// After its end, so that whoever comes too late hears why.
const REMEMBERED: Millis = Millis::from_secs(24 * 3600);

/// Why a token was not made, found or taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody made it.
    #[error("the join token is not this installation's; `jobcell agents token create` makes one")]
    Unknown,
    /// It came too late.
    #[error("the join token is over since {0}; `jobcell agents token create` makes another one")]
    Expired(UnixMillis),
    /// Somebody else came first.
    #[error(
        "the join token was used at {at} by the agent `{agent}`; each is good for one, `jobcell agents token create` makes another one"
    )]
    Used {
        /// By whom.
        agent: String,
        /// When.
        at: UnixMillis,
    },
    /// There are too many.
    #[error("{MOST} join tokens are remembered; remove some first")]
    Full,
    /// It would be good for too long.
    #[error("a join token is good for 30 days at most")]
    TooLong,
    /// There is none with that id.
    #[error("no join token has the id `{0}`")]
    NotFound(String),
    /// Of the agent that wants to have a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The file.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    sha256: String,
    /// The name that its agent gets, in place of one that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    made_at: UnixMillis,
    expires_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<Used>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    agent: String,
    key_sha256: String,
    at: UnixMillis,
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = JoinToken)]
pub(super) struct Entry {
    id: String,
    /// The name that its agent gets; null when the agent says it.
    #[schema(required)]
    name: Option<String>,
    #[schema(value_type = values::Moment)]
    made_at: UnixMillis,
    #[schema(value_type = values::Moment)]
    expires_at: UnixMillis,
    /// The agent that came with it; null as long as it is good.
    #[schema(required)]
    used_by: Option<String>,
}

/// What a token was taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    /// The name that its agent is to have.
    agent: String,
    /// That is the operator's word.
    bound: bool,
    /// It was taken before, by the same agent with the same key.
    again: bool,
}

/// All tokens.
#[derive(Debug)]
pub struct JoinTokens(Book<Kept>);

impl JoinTokens {
    /// Reads the file; one that is not there has no tokens. Errors: it cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, TokenError> {
        Book::open(path.clone()).map(Self).map_err(|reason| TokenError::File { path, reason })
    }

    async fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Kept>) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        self.0.change(change, |reason| TokenError::File { path: self.0.path().to_owned(), reason }).await
    }

    /// Makes one. It is not kept: only its hash is.
    async fn create(&self, name: Option<String>, term: Millis, now: UnixMillis) -> Result<Created, TokenError> {
        if let Some(name) = &name {
            is_name(name)?;
        }
        if term > LONGEST {
            return Err(TokenError::TooLong);
        }
        self.change(|all| {
            all.retain(|_, kept| kept.expires_at.plus(REMEMBERED) > now);
            if all.len() >= MOST {
                return Err(TokenError::Full);
            }
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
            let token = format!("jct_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
            let expires_at = now.plus(term);
            let kept = Kept { sha256: hash(&token), name: name.clone(), made_at: now, expires_at, used: None };
            all.insert(id.clone(), kept);
            Ok(Created { id, token, name, expires_at })
        })
        .await
    }

    /// All of them, the newest first.
    fn list(&self) -> Vec<Entry> {
        let entry = |(id, kept): (&String, &Kept)| Entry {
            id: id.clone(),
            name: kept.name.clone(),
            made_at: kept.made_at,
            expires_at: kept.expires_at,
            used_by: kept.used.as_ref().map(|used| used.agent.clone()),
        };
        let mut all: Vec<Entry> = self.0.look().iter().map(entry).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.made_at));
        all
    }

    async fn remove(&self, id: &str) -> Result<(), TokenError> {
        self.change(|all| all.remove(id).map(drop).ok_or_else(|| TokenError::NotFound(id.to_owned()))).await
    }

    /// An agent whose key was taken away does not get it back with the token of then.
    pub(super) async fn forget(&self, agent: &str) -> Result<(), TokenError> {
        let of_it = |kept: &Kept| kept.used.as_ref().is_some_and(|used| used.agent == agent);
        if !self.0.look().values().any(of_it) {
            return Ok(());
        }
        self.change(|all| {
            all.retain(|_, kept| !of_it(kept));
            Ok(())
        })
        .await
    }

    /// Takes a token for the agent that brings it. Those that it came with before are gone then: who still has one of them, and the key of then,
    /// does not come back with it.
    async fn take(&self, asked: &Enroll, now: UnixMillis) -> Result<Taken, TokenError> {
        let given = hash(&asked.token);
        self.change(|all| {
            let kept = all.values_mut().find(|kept| same_hash(&kept.sha256, &given)).ok_or(TokenError::Unknown)?;
            let agent = kept.name.clone().unwrap_or_else(|| asked.name.clone());
            is_name(&agent)?;
            let bound = kept.name.is_some();
            match &kept.used {
                // It asks again, since it did not hear the answer.
                Some(used) if used.agent == agent && same_hash(&used.key_sha256, &asked.key_sha256) => {
                    return Ok(Taken { agent, bound, again: true });
                }
                Some(Used { agent, at, .. }) => return Err(TokenError::Used { agent: agent.clone(), at: *at }),
                None => {}
            }
            if kept.expires_at <= now {
                return Err(TokenError::Expired(kept.expires_at));
            }
            let of_it = |kept: &Kept| kept.used.as_ref().is_some_and(|used| used.agent == agent);
            kept.used = None;
            all.retain(|_, kept| !of_it(kept));
            let used = Used { agent: agent.clone(), key_sha256: asked.key_sha256.clone(), at: now };
            all.values_mut()
                .filter(|kept| same_hash(&kept.sha256, &given))
                .for_each(|kept| kept.used = Some(used.clone()));
            Ok(Taken { agent, bound, again: false })
        })
        .await
    }

    /// A token whose agent could not be let in is good again.
    async fn give_back(&self, asked: &Enroll) -> Result<(), TokenError> {
        let given = hash(&asked.token);
        self.change(|all| {
            all.values_mut().filter(|kept| same_hash(&kept.sha256, &given)).for_each(|kept| kept.used = None);
            Ok(())
        })
        .await
    }
}

impl From<TokenError> for ProblemDocument {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Key(error) => return error.into(),
            TokenError::Unknown | TokenError::Expired(_) | TokenError::Used { .. } => "unauthorized",
            TokenError::TooLong => "bad_body",
            TokenError::NotFound(_) => "agent_not_found",
            TokenError::Full | TokenError::File { .. } => "unavailable",
        };
        Self::new(code, error.to_string())
    }
}

/// A token that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// The name that its agent gets; one that has it loses its key. Without it, the agent says a name that is new.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,63}$", example = "build-7", nullable = false)]
    name: Option<String>,
    /// How long it is good, default 1h, at most 30 days.
    #[schema(value_type = Option<values::Span>, nullable = false)]
    expires_in: Option<Millis>,
}

/// A new token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedToken)]
pub(super) struct Created {
    id: String,
    /// Shown here and never again.
    token: String,
    #[schema(required)]
    name: Option<String>,
    #[schema(value_type = values::Moment)]
    expires_at: UnixMillis,
}

/// Tokens that are remembered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenList {
    tokens: Vec<Entry>,
}

/// List join tokens
#[utoipa::path(get, path = "/v1/agent-tokens", tag = "agents",
    responses((status = 200, description = "The tokens, without their secrets", body = TokenList)),
    extensions(("x-problems" = json!([]))))]
pub(super) async fn list(State(app): State<App>) -> Json<TokenList> {
    Json(TokenList { tokens: app.join_tokens.list() })
}

/// Make a join token for a new agent
#[utoipa::path(post, path = "/v1/agent-tokens", tag = "agents", request_body = NewToken,
    responses((status = 201, description = "The token, shown here and never again", body = Created)),
    extensions(("x-problems" = json!(["unavailable"]))))]
pub(super) async fn create(
    State(app): State<App>,
    Received(body): Received,
) -> Result<(StatusCode, Extension<Told>, Json<Created>), ProblemDocument> {
    let NewToken { name, expires_in } = super::calls::read(&body)?;
    let created = app.join_tokens.create(name, expires_in.unwrap_or(USUAL), UnixMillis::now()).await?;
    tracing::info!(id = %created.id, agent = created.name.as_deref(), "a join token was made");
    let detail = created.name.as_ref().map(|name| format!("for agent {name}"));
    let told = Told { object: Some(created.id.clone()), detail, ..Told::default() };
    Ok((StatusCode::CREATED, Extension(told), Json(created)))
}

/// Take a join token away
///
/// The key of an agent that has come with it stays.
#[utoipa::path(delete, path = "/v1/agent-tokens/{id}", tag = "agents",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 204, description = "The token opens nothing any more")),
    extensions(("x-problems" = json!(["agent_not_found", "bad_id", "unavailable"]))))]
pub(super) async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ProblemDocument> {
    app.join_tokens.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get in with a join token
///
/// Needs no key: it brings the hash of one that the agent has made. Can be made again with the same effect, as long as the token is remembered.
#[utoipa::path(post, path = "/v1/agent/enroll", tag = "agent protocol", request_body = schema::Enroll,
    responses((status = 200, description = "The key opens", body = schema::Enrolled)),
    extensions(("x-problems" = json!(["unauthorized", "rate_limited", "agent_exists", "bad_body", "unavailable"]))))]
pub(super) async fn enroll(State(app): State<App>, request: Request) -> Response {
    // Goes on when the caller hangs up: a key that opens from now on is a line of the audit log.
    let work = spawn("enroll", let_in(app, request));
    work.await.unwrap_or_else(|_| ProblemDocument::new("unavailable", "it was given up; ask again").into_response())
}

async fn let_in(app: App, request: Request) -> Response {
    let attempt = Attempt::of(&request);
    match enrolled(&app, request).await {
        Ok(agent) => {
            tracing::info!(%agent, "an agent got in with a join token");
            let told = Told { object: Some(agent.clone()), ..Told::default() };
            let answer = (Extension(told), Json(Enrolled { agent: agent.clone() })).into_response();
            attempt.run(&app.audit, Who::Agent(agent), async { answer }).await
        }
        // Anybody can come here, so these are told as strangers are.
        Err(problem) => {
            let stranger = problem.code == "unauthorized";
            let problem = if stranger { auth::stranger(&app, attempt.from(), problem.detail) } else { problem };
            attempt.refused(&app.audit, Who::Nobody, &problem);
            problem.into_response()
        }
    }
}

async fn enrolled(app: &App, request: Request) -> Result<String, ProblemDocument> {
    // Whoever comes has no key yet: no more than it takes is held of what they send.
    let body = axum::body::to_bytes(request.into_body(), LARGEST).await.map_err(|error| {
        ProblemDocument::new("bad_body", format!("it has more than {LARGEST} bytes, or was cut off: {error}"))
    })?;
    let asked: Enroll = super::calls::read(&body)?;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if asked.key_sha256.len() != 64 || !asked.key_sha256.bytes().all(hex) {
        return Err(ProblemDocument::new("bad_body", "key_sha256: give the SHA-256 of the key, 64 digits"));
    }
    let Taken { agent, bound, again } = app.join_tokens.take(&asked, UnixMillis::now()).await?;
    // Written after the token: a crash between the two leaves a token that is used, by an agent that asks again and is let in then.
    match app.agent_keys.put(&agent, &asked.key_sha256, bound).await {
        Ok(false) => {}
        Ok(true) => {
            // Whoever had the name has no session any more either.
            app.backend.roster().remove(&agent);
            app.sessions.end(&agent);
        }
        Err(error) => {
            // One that was taken before stays so: its agent may ask again, and nobody else.
            if !again {
                app.join_tokens.give_back(&asked).await?;
            }
            return Err(error.into());
        }
    }
    Ok(agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis::new(millis)
    }

    fn asked(token: &str, name: &str, key: &str) -> Enroll {
        Enroll { token: token.to_owned(), name: name.to_owned(), key_sha256: hash(key) }
    }

    #[tokio::test]
    async fn a_token_is_good_once_and_whoever_did_not_hear_may_ask_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokens.json");
        let tokens = JoinTokens::open(path.clone()).expect("opens");
        let made = tokens.create(None, USUAL, at(0)).await.expect("is made");
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(!text.contains(&made.token[4..]), "the token itself is nowhere");
        let taken = |agent: &str, bound, again| Taken { agent: agent.to_owned(), bound, again };
        let first = tokens.take(&asked(&made.token, "one", "k"), at(1)).await.expect("is good");
        assert_eq!(first, taken("one", false, false));
        // Also after a restart, and when its time is over: it was used in time.
        let tokens = JoinTokens::open(path).expect("opens again");
        let again = tokens.take(&asked(&made.token, "one", "k"), at(2 * HOUR)).await.expect("is its own");
        assert_eq!(again, taken("one", false, true));
        for (name, key) in [("one", "another"), ("two", "k")] {
            let said = tokens.take(&asked(&made.token, name, key), at(3)).await.expect_err("is used").to_string();
            assert!(said.contains("was used at 1970-01-01T00:00:00.001Z by the agent `one`"), "{said}");
        }
        assert_eq!(tokens.list()[0].used_by.as_deref(), Some("one"));
        // Who is removed does not come back with it.
        tokens.forget("one").await.expect("is written");
        assert!(matches!(tokens.take(&asked(&made.token, "one", "k"), at(4)).await, Err(TokenError::Unknown)));
    }

    #[tokio::test]
    async fn a_token_ends_is_removed_and_is_given_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let tokens = JoinTokens::open(dir.path().join("tokens.json")).expect("opens");
        let made = tokens.create(Some("build-1".to_owned()), USUAL, at(0)).await.expect("is made");
        let late = tokens.take(&asked(&made.token, "x", "k"), at(HOUR)).await.expect_err("is over").to_string();
        assert!(late.contains("is over since 1970-01-01T01:00:00"), "{late}");
        let taken = tokens.take(&asked(&made.token, "x", "k"), at(1)).await.expect("is good");
        assert_eq!(taken, Taken { agent: "build-1".to_owned(), bound: true, again: false });
        tokens.give_back(&asked(&made.token, "x", "k")).await.expect("is written");
        assert!(tokens.take(&asked(&made.token, "x", "other"), at(2)).await.is_ok());
        tokens.remove(&made.id).await.expect("was there");
        assert!(matches!(tokens.remove(&made.id).await, Err(TokenError::NotFound(_))));
        assert!(matches!(tokens.take(&asked(&made.token, "x", "k"), at(3)).await, Err(TokenError::Unknown)));
        assert!(matches!(tokens.create(None, Millis::from_secs(31 * 86400), at(0)).await, Err(TokenError::TooLong)));
        assert!(matches!(
            tokens.create(Some("a b".to_owned()), USUAL, at(0)).await,
            Err(TokenError::Key(KeyError::BadName(_)))
        ));
        // Those that are long over make room.
        for _ in 0..3 {
            tokens.create(None, USUAL, at(0)).await.expect("is made");
        }
        tokens.create(None, USUAL, at(30 * HOUR)).await.expect("is made");
        assert_eq!(tokens.list().len(), 1);
    }

    #[tokio::test]
    async fn who_has_the_token_and_the_key_of_before_does_not_take_the_name_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let tokens = JoinTokens::open(dir.path().join("tokens.json")).expect("opens");
        let made = async || tokens.create(Some("build-1".to_owned()), USUAL, at(0)).await.expect("is made").token;
        let (old, new) = (made().await, made().await);
        tokens.take(&asked(&old, "x", "old"), at(1)).await.expect("is good");
        tokens.take(&asked(&new, "x", "new"), at(2)).await.expect("is good");
        assert!(matches!(tokens.take(&asked(&old, "x", "old"), at(3)).await, Err(TokenError::Unknown)));
        assert!(tokens.take(&asked(&new, "x", "new"), at(3)).await.expect("is its own").again);
    }
}
