//! The calls of the agent protocol. Each can be made again with the same effect.

use super::keys::AgentName;
use crate::backend::{Ask, IntakeError, SessionError};
use crate::job::{PULL_NOTE, UnixMillis};
use crate::protocol::agent::{
    Advance, Announcement, ClaimAnswer, ClaimRequest, Claimed, Holding, Holdings, LookupAnswer, OLDEST, Register,
    Registered, Release, RenewAnswer, ReportAnswer, ReportRequest, SESSION_HEADER, StepAnswer, VERSION, common_version,
};
use crate::queue::{Claim, StoreError};
use crate::server::App;
use crate::server::extract::Received;
use crate::server::openapi::agents as schema;
use crate::server::problem::ProblemDocument;
use crate::supervise::spawn;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

type Answer<T> = Result<Json<T>, ProblemDocument>;

/// Most attempts in one call: more than any agent can hold.
const MOST_ATTEMPTS: usize = 10_000;

/// Most jobs in one claim, as the agent's own setting has it.
const MOST_CLAIMED: u32 = 1024;

/// Longest text, and most names of a kind, in what an agent says of itself.
const MOST_TEXT: usize = 255;
const MOST_NAMES: usize = 256;

/// Reads a body. Errors name what is wrong and where.
pub(in crate::server) fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, ProblemDocument> {
    serde_json::from_slice(body).map_err(|error| ProblemDocument::new("bad_body", error.to_string()))
}

/// What is remembered of each agent's session: the answer to its last claim, which may have been lost on its way.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Arc<LastClaim>>>);

type LastClaim = tokio::sync::Mutex<(u64, Vec<Claimed>)>;

impl Sessions {
    fn begin(&self, agent: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(agent.to_owned(), Arc::default());
    }

    pub(super) fn end(&self, agent: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(agent);
    }

    fn last_claim(&self, agent: &str) -> Arc<LastClaim> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(agent.to_owned()).or_default())
    }
}

/// An agent whose session is known.
pub(super) struct Known {
    pub(super) agent: String,
    pub(super) session: String,
}

impl FromRequestParts<App> for Known {
    type Rejection = ProblemDocument;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ProblemDocument> {
        let Some(AgentName(name)) = parts.extensions.get::<AgentName>().cloned() else {
            return Err(ProblemDocument::new("unauthorized", "this path is for agents"));
        };
        let session = parts.headers.get(SESSION_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match app.backend.roster().check(&name, session, UnixMillis::now()) {
            Ok(()) => Ok(Self { agent: name, session: session.to_owned() }),
            Err(error) => Err(ProblemDocument::new("session_unknown", error.to_string())),
        }
    }
}

/// Begin a session
#[utoipa::path(post, path = "/v1/agent/register", tag = "agent protocol",
    request_body = schema::Register,
    responses((status = 200, description = "The answer", body = schema::Registered)),
    extensions(("x-problems" = json!(["protocol_unsupported", "agent_taken", "session_unknown"]))))]
pub(super) async fn register(
    State(app): State<App>,
    Extension(AgentName(agent)): Extension<AgentName>,
    Received(body): Received,
) -> Answer<Registered> {
    let Register { protocols, who } = read(&body)?;
    let Some(protocol) = common_version(&protocols) else {
        let detail =
            format!("this server speaks versions {OLDEST} to {VERSION} of the protocol, the agent {protocols:?}");
        return Err(ProblemDocument::new("protocol_unsupported", detail));
    };
    bounded(&who)?;
    let version = who.version.chars().filter(|c| !c.is_control()).take(64).collect::<String>();
    let registration = app.backend.roster().register(&agent, who, UnixMillis::now()).map_err(|error| match error {
        SessionError::Taken { .. } => ProblemDocument::new("agent_taken", error.to_string()),
        SessionError::Unknown => ProblemDocument::new("session_unknown", error.to_string()),
    })?;
    app.sessions.begin(&agent);
    tracing::info!(%agent, version, "an agent registered");
    Ok(Json(Registered {
        protocol,
        session: registration.session,
        drained: drained(&app, &agent),
        agent,
        capabilities: app.backend.capabilities(),
        max_wait: app.settings.wait_max.into(),
    }))
}

/// What an agent says of itself is kept in memory and shown in lists: it has to be short.
fn bounded(who: &Announcement) -> Result<(), ProblemDocument> {
    let texts = [&who.version, &who.installation].into_iter().chain(&who.executors).chain(&who.presets);
    let pairs = who.labels.iter().flat_map(|(key, value)| [key, value]);
    let long = texts.chain(pairs).find(|text| text.len() > MOST_TEXT || text.chars().any(char::is_control));
    if let Some(text) = long {
        let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
        let detail = format!("`{shown}` …: texts have at most {MOST_TEXT} bytes and no control characters");
        return Err(ProblemDocument::new("bad_body", detail));
    }
    if who.labels.len() > MOST_NAMES || who.executors.len() > MOST_NAMES || who.presets.len() > MOST_NAMES {
        let detail = format!("labels, executors and presets: at most {MOST_NAMES} of each");
        return Err(ProblemDocument::new("bad_body", detail));
    }
    Ok(())
}

fn claimed(claim: &Claim) -> Result<Claimed, ProblemDocument> {
    let spec =
        serde_json::to_value(&claim.spec).map_err(|error| ProblemDocument::new("unavailable", error.to_string()))?;
    let secret = |name: &String| Some((name.clone(), claim.spec.secret(name)?.clone()));
    let secrets = claim.spec.secrets().keys().filter_map(secret).collect();
    Ok(Claimed {
        attempt: claim.attempt,
        token: claim.token,
        spec,
        submitter: claim.submitter.clone(),
        lease_until: claim.lease_until,
        secrets,
    })
}

/// Ask for work
///
/// Claims go on in a task of their own: an agent that hangs up in the middle asks for the same number again.
#[utoipa::path(post, path = "/v1/agent/claim", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::ClaimRequest,
    responses((status = 200, description = "The answer", body = schema::ClaimAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn claim(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<ClaimAnswer> {
    let request: ClaimRequest = read(&body)?;
    let last = app.sessions.last_claim(&agent);
    // Ends the wait when the server stops, and when the agent hangs up.
    let stop = app.stop.child_token();
    let hung_up = stop.clone().drop_guard();
    let wait = request.wait.as_duration().min(app.settings.wait_max);
    let (asks, served) = (agent.clone(), app.clone());
    let task = spawn("claim", async move {
        let (agent, app) = (asks, served);
        let mut last = last.lock().await;
        if last.0 == request.number {
            return Ok(last.1.clone());
        }
        if request.number < last.0 {
            return Ok(Vec::new());
        }
        if request.max == 0 {
            // The number is used up: the claim that it belongs to may still be on its way, and nobody would hear of its jobs.
            *last = (request.number, Vec::new());
            return Ok(Vec::new());
        }
        let ask = Ask { max: request.max.min(MOST_CLAIMED), free: request.free, wait, load: request.load };
        let claims = app.backend.claim(&agent, &ask, &stop).await?;
        let claims = claims.iter().map(claimed).collect::<Result<Vec<_>, _>>()?;
        *last = (request.number, claims.clone());
        Ok::<_, ProblemDocument>(claims)
    });
    let claims = task.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))?;
    drop(hung_up);
    Ok(Json(ClaimAnswer { claims, drained: drained(&app, &agent) }))
}

/// Why the agent gets no jobs, if it is drained.
fn drained(app: &App, agent: &str) -> Option<String> {
    app.backend.roster().drains().of(agent).map(|drain| drain.sentence())
}

fn leases(body: &Bytes) -> Result<Vec<(crate::job::AttemptId, crate::job::LeaseToken)>, ProblemDocument> {
    let Holdings { attempts } = read(body)?;
    if attempts.len() > MOST_ATTEMPTS {
        return Err(ProblemDocument::new("bad_body", format!("attempts: at most {MOST_ATTEMPTS} in one call")));
    }
    Ok(attempts.into_iter().map(|holding| (holding.attempt, holding.token)).collect())
}

/// Renew leases
#[utoipa::path(post, path = "/v1/agent/renew", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::Holdings,
    responses((status = 200, description = "The answer", body = schema::RenewAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn renew(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<RenewAnswer> {
    let renewals = app.backend.renew(&agent, &leases(&body)?).await?;
    Ok(Json(RenewAnswer { renewals, drained: drained(&app, &agent) }))
}

/// Ask how attempts stand
#[utoipa::path(post, path = "/v1/agent/lookup", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::Holdings,
    responses((status = 200, description = "The answer", body = schema::LookupAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn lookup(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<LookupAnswer> {
    let standings = app.backend.lookup(&agent, &leases(&body)?).await?;
    Ok(Json(LookupAnswer { standings }))
}

/// Say that a phase was entered
#[utoipa::path(post, path = "/v1/agent/advance", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::Advance,
    responses((status = 200, description = "The answer", body = schema::StepAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn advance(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<StepAnswer> {
    let Advance { holding: Holding { attempt, token }, phase, at, reason } = read(&body)?;
    let step = app.backend.advance(&agent, (attempt, token), phase, at, &short(&reason)).await?;
    Ok(Json(StepAnswer { step }))
}

/// Give an attempt back that has not started
#[utoipa::path(post, path = "/v1/agent/release", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::Release,
    responses((status = 200, description = "The answer", body = schema::StepAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn release(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<StepAnswer> {
    let Release { holding: Holding { attempt, token }, reason, later } = read(&body)?;
    let step = app.backend.release(&agent, (attempt, token), &short(&reason), later.as_ref()).await?;
    Ok(Json(StepAnswer { step }))
}

/// Report the end of an attempt
#[utoipa::path(post, path = "/v1/agent/report", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")), request_body = schema::ReportRequest,
    responses((status = 200, description = "The answer", body = schema::ReportAnswer)),
    extensions(("x-problems" = json!(["unavailable", "session_unknown"]))))]
pub(super) async fn report(
    State(app): State<App>,
    Known { agent, .. }: Known,
    Received(body): Received,
) -> Answer<ReportAnswer> {
    let ReportRequest { token, report } = read(&body)?;
    // Goes on when the agent hangs up: the log may have been ended already.
    let task = spawn("report", async move { app.backend.report_from_afar(&agent, report, token).await });
    let outcome = match task.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(IntakeError::Queue(error))) => return Err(error.into()),
        // The same report is being taken in: the agent asks again, and hears what became of it.
        Ok(Err(error)) => return Err(ProblemDocument::new("unavailable", error.to_string()).retry_after(1)),
        Err(_) => return Err(StoreError::Closed.into()),
    };
    Ok(Json(ReportAnswer { outcome }))
}

/// A reason ends up in every history: a code, and no essay. How far a pull is has a few words behind its code.
fn short(reason: &str) -> String {
    if let Some(words) = reason.strip_prefix(PULL_NOTE) {
        let plain = |c: &char| c.is_ascii_alphanumeric() || " .,_-".contains(*c);
        return words
            .chars()
            .filter(plain)
            .take(100)
            .fold(PULL_NOTE.to_owned(), |said, c| said + c.encode_utf8(&mut [0; 4]));
    }
    reason.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).take(64).collect()
}
