//! One call to the backend: rate, breaker, session, deadline, and what a failure means.

use super::Shared;
use crate::backend::BackendError;
use crate::net::{Admission, Retry, pauses};
use crate::protocol::agent::{OLDEST, Register, Registered, SESSION_HEADER, VERSION};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::Instant;

/// Deadline of a registration.
const REGISTER: Duration = Duration::from_secs(15);
/// One try of a call that is repeated.
const TRY: Duration = Duration::from_secs(5);
/// First and longest pause between tries of one call.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A renewal is never held back, by the breaker or by the rate: jobs end without it, and it is rare enough to find out for all when the backend
/// is back.
pub(super) const RENEW: &str = "renew";
/// Longest Retry-After that is kept to, seconds.
const MOST_AFTER: u64 = 60;
/// Most of an answer that is read as an error.
const LONGEST_REASON: usize = 500;

/// Why a call brought no answer.
#[derive(Debug)]
pub(super) enum Refused {
    /// The backend does not know the session (any more).
    Session(BackendError),
    /// Anything else, with the stable code of the answer where there is one.
    Other(Option<String>, BackendError),
}

fn transient(message: String) -> BackendError {
    BackendError { retry: Retry::Transient, message }
}

impl Shared {
    /// The session, made if there is none. Errors: the backend refuses this agent, or cannot be reached.
    pub(super) async fn session(&self) -> Result<String, BackendError> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref() {
            return Ok(session.clone());
        }
        let who = self.who.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = Register { protocols: (OLDEST..=VERSION).rev().collect(), who };
        let registered: Registered =
            self.send("register", None, &request, REGISTER).await.map_err(|(_, error)| error)?;
        if !(OLDEST..=VERSION).contains(&registered.protocol) {
            let message = format!("the backend wants version {} of the protocol", registered.protocol);
            return Err(BackendError { retry: Retry::Never, message });
        }
        tracing::info!(backend = %self.settings.name, agent = %registered.agent, "registered");
        *self.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = registered.capabilities;
        self.hear_drained(registered.drained);
        *session = Some(registered.session.clone());
        Ok(registered.session)
    }

    /// Waits for a session that somebody makes, or makes it.
    pub(super) async fn registered(&self) -> String {
        let mut pause = pauses(PAUSES.0, Duration::from_secs(5));
        loop {
            match self.session().await {
                Ok(session) => return session,
                Err(error) => tracing::debug!(backend = %self.settings.name, %error, "no session yet"),
            }
            tokio::time::sleep(pause.next().unwrap_or(PAUSES.1)).await;
        }
    }

    /// The backend does not know this session any more.
    pub(super) async fn forget(&self, known: &str) {
        let mut session = self.session.lock().await;
        if session.as_deref() == Some(known) {
            *session = None;
        }
    }

    /// Calls once under this session, within `limit`. A session that is not known is forgotten.
    pub(super) async fn under<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        session: &str,
        what: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, Refused> {
        match self.send(what, Some(session), request, limit).await {
            Ok(answer) => Ok(answer),
            Err((Some(code), error)) if code == "session_unknown" => {
                self.forget(session).await;
                Err(Refused::Session(error))
            }
            Err((code, error)) => Err(Refused::Other(code, error)),
        }
    }

    /// Calls once, within `limit`. A session that is not known is made anew, once.
    pub(super) async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        what: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, BackendError> {
        self.coded(what, request, limit).await.map_err(|(_, error)| error)
    }

    /// The same. Errors come with the code of the answer, where there is one.
    pub(super) async fn coded<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        what: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, (Option<String>, BackendError)> {
        for last in [false, true] {
            let session = self.session().await.map_err(|error| (None, error))?;
            match self.under(&session, what, request, limit).await {
                Ok(answer) => return Ok(answer),
                Err(Refused::Session(error)) if last => return Err((None, error)),
                Err(Refused::Session(_)) => {}
                Err(Refused::Other(code, error)) => return Err((code, error)),
            }
        }
        Err((None, transient(format!("{what}: no session"))))
    }

    /// Calls until it works, fails for good, or `limit` is over.
    pub(super) async fn retrying<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        what: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, BackendError> {
        let until = Instant::now() + limit;
        let mut pause = pauses(PAUSES.0, PAUSES.1);
        loop {
            // A session may have to be made first, and that takes longer than a try.
            let error = match tokio::time::timeout_at(until, self.call(what, request, TRY)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(transient(format!("{what}: no answer within {} s", limit.as_secs()))),
            };
            let wait = match error.retry {
                Retry::Never => return Err(error),
                Retry::Transient => pause.next().unwrap_or(PAUSES.1),
                Retry::Throttled(wait) => wait,
            };
            if Instant::now() + wait >= until {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One request. Errors come with the code of the problem document, where there is one.
    async fn send<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        what: &str,
        session: Option<&str>,
        request: &Q,
        limit: Duration,
    ) -> Result<A, (Option<String>, BackendError)> {
        // Before the clock starts: our own wait for our own limit says nothing about the backend. A renewal counts, and does not wait for
        // what others have to say.
        if what != RENEW {
            self.rate.until_ready().await;
        } else if self.rate.check().is_err() {
            tracing::debug!(backend = %self.settings.name, "a renewal goes beyond `rate`");
        }
        let admission = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).ask(Instant::now());
        if let Admission::Refuse(wait) = admission
            && what != RENEW
        {
            let message =
                format!("{what}: the backend has not answered for a while; next try in {} ms", wait.as_millis());
            return Err((None, transient(message)));
        }
        let sent = tokio::time::timeout(limit, async {
            let url = format!("{}/v1/agent/{what}", self.settings.url);
            let mut call = self.http.post(url).bearer_auth(&self.settings.key).timeout(limit).json(request);
            if let Some(session) = session {
                call = call.header(SESSION_HEADER, session);
            }
            let response = call.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        })
        .await;
        let (status, headers, body) = match sent {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err((None, self.no_answer(what, &crate::tls::reason(&error)))),
            Err(_) => return Err((None, self.no_answer(what, &format!("no answer within {} s", limit.as_secs())))),
        };
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            return Err((None, self.no_answer(what, &format!("it answered {status}"))));
        }
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).worked();
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        if status.is_success() {
            let read = serde_json::from_slice(&body);
            return read.map_err(|error| {
                let message = format!("{what}: the answer is not understood: {error}");
                (None, BackendError { retry: Retry::Never, message })
            });
        }
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail =
            document["detail"].as_str().map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
        let detail: String = detail.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect();
        let after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(MOST_AFTER)));
        let retry = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Retry::Throttled(after.unwrap_or(Duration::from_secs(1)))
            }
            StatusCode::REQUEST_TIMEOUT => Retry::Transient,
            _ => Retry::Never,
        };
        let code = document["code"].as_str().map(str::to_owned);
        Err((code, BackendError { retry, message: format!("{what}: the backend answered {status}: {detail}") }))
    }

    fn no_answer(&self, what: &str, reason: &str) -> BackendError {
        *self.answering.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let shut = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).failed(Instant::now());
        if shut {
            tracing::error!(backend = %self.settings.name, reason, "the backend does not answer; it is asked less often now");
        }
        transient(format!("{what}: {reason}"))
    }
}
