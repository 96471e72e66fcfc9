//! What jobs give back, on its way to the server: how far they are (the last word only), and their files (each content that is not there).

use super::{SMALL, Shared};
use crate::backend::BackendError;
use crate::blobs::BlobStore;
use crate::job::{Artifacts, AttemptId, Digest, JobStep, LeaseToken, Progress};
use crate::net::{Retry, pauses};
use crate::protocol::agent::{
    ArtifactsGiven, ArtifactsWanted, Holding, MissingAnswer, SESSION_HEADER, StepAnswer, TellProgress,
};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two words of the same job.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// For one word: others wait behind it, and it is soon out of date.
const TELL: Duration = Duration::from_secs(3);
/// Digests of one question.
const QUESTION: usize = 1000;
/// A content has this long, and a second more for each of its megabytes.
const CONTENT: Duration = Duration::from_secs(60);
const SLOWEST_BYTES: u64 = 1 << 20;
/// First and longest pause between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Tries of one content at a server that answers.
const TRIES: u32 = 5;
/// After a plain no that says nothing about the files: a key that is being changed, a proxy in between. Somebody has to put it right, and until then
/// the report would be refused as well.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Answers that will not be others: the attempt is not ours any more, the server is too old for files, or will not have these.
const FINAL: [&str; 5] = ["not_held", "no_route", "body_too_large", "store_full", "artifact_not_found"];

/// Words that have not gone yet: the newest of each attempt, so at most as many as there are jobs. One task brings them, one after the other:
/// however slowly a backend takes them, and however many jobs speak, one call of all that an agent has to say is theirs.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    newest: HashMap<AttemptId, TellProgress>,
    /// Whose turn it is, and from when on. Whoever is in `newest` is here once; the moments are in order, since each is so long after now.
    turns: VecDeque<(Instant, AttemptId)>,
    /// A task brings them.
    brought: bool,
}

impl Words {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a word, in place of an older one. True when nobody brings them: then it is for the caller to do so.
    fn keep(&self, word: TellProgress) -> bool {
        let (mut waiting, attempt) = (self.waiting(), word.holding.attempt);
        if waiting.newest.insert(attempt, word).is_none() {
            waiting.turns.push_back((Instant::now() + TELL_PAUSE, attempt));
        }
        !std::mem::replace(&mut waiting.brought, true)
    }

    /// When the next one goes. `None`: there are none, and nobody brings them from now on.
    fn next(&self) -> Option<Instant> {
        let mut waiting = self.waiting();
        let next = waiting.turns.front().map(|(at, _)| *at);
        waiting.brought = next.is_some();
        next
    }

    /// The one whose turn it is.
    fn take(&self) -> Option<TellProgress> {
        let mut waiting = self.waiting();
        let (_, attempt) = waiting.turns.pop_front()?;
        waiting.newest.remove(&attempt)
    }

    /// It has ended, and its report says it all.
    pub(super) fn forget(&self, attempt: AttemptId) {
        let mut waiting = self.waiting();
        if waiting.newest.remove(&attempt).is_some() {
            waiting.turns.retain(|(_, other)| *other != attempt);
        }
    }
}

/// Tells how far a job is, soon. One that the server does not take is not told again: a newer one comes, or the report.
pub(super) fn tell(
    shared: &Arc<Shared>,
    attempt: AttemptId,
    token: LeaseToken,
    progress: Option<Progress>,
    steps: Vec<JobStep>,
) {
    if !shared.words.keep(TellProgress { holding: Holding { attempt, token }, progress, steps }) {
        return;
    }
    let shared = Arc::clone(shared);
    let bring = async move {
        while let Some(at) = shared.words.next() {
            tokio::time::sleep_until(at).await;
            let Some(word) = shared.words.take() else { continue };
            if let Err(error) = shared.call::<_, StepAnswer>("progress", &word, TELL).await {
                tracing::debug!(attempt = %word.holding.attempt, %error, "how far it is could not be told");
            }
        }
    };
    crate::supervise::spawn("progress", crate::supervise::of_this_process(bring));
}

/// Brings an attempt's files to the server. While it is away, for as long as that takes. Errors: it does not want them.
pub(super) async fn give(
    shared: &Shared,
    attempt: AttemptId,
    token: LeaseToken,
    artifacts: &Artifacts,
    store: &BlobStore,
) -> Result<(), String> {
    let Some(list) = artifacts.list else { return Ok(()) };
    let holding = Holding { attempt, token };
    let digests = store.referred(&Artifacts::holder(attempt)).await.map_err(|error| error.to_string())?;
    for some in digests.chunks(QUESTION) {
        let wanted = ArtifactsWanted { holding, digests: some.to_vec() };
        let MissingAnswer { missing } = asked(shared, "artifacts/missing", &wanted).await?;
        for digest in missing.into_iter().filter(|digest| some.contains(digest)) {
            bring(shared, holding, digest, store).await?;
        }
    }
    asked::<_, StepAnswer>(shared, "artifacts/given", &ArtifactsGiven { holding, list }).await.map(drop)
}

/// Asks until there is an answer. Errors: a no that stays one.
async fn asked<Q: serde::Serialize + Sync, A: serde::de::DeserializeOwned>(
    shared: &Shared,
    what: &str,
    request: &Q,
) -> Result<A, String> {
    let mut pauses = pauses(PAUSES.0, PAUSES.1);
    loop {
        match shared.coded(what, request, SMALL).await {
            Ok(answer) => return Ok(answer),
            Err((code, error)) => {
                tracing::debug!(what, %error, "asked again");
                pause(code.as_deref(), &error, &mut pauses).await?;
            }
        }
    }
}

/// How long to wait after this. Errors: there is nothing to wait for.
fn patience(
    code: Option<&str>,
    error: &BackendError,
    pauses: &mut impl Iterator<Item = Duration>,
) -> Result<Duration, String> {
    match error.retry {
        _ if code.is_some_and(|code| FINAL.contains(&code)) => Err(error.to_string()),
        Retry::Never => Ok(REFUSED_PAUSE),
        Retry::Transient => Ok(pauses.next().unwrap_or(PAUSES.1)),
        Retry::Throttled(pause) => Ok(pause),
    }
}

async fn pause(
    code: Option<&str>,
    error: &BackendError,
    pauses: &mut (impl Iterator<Item = Duration> + Send),
) -> Result<(), String> {
    let pause = patience(code, error, pauses)?;
    tokio::time::sleep(pause).await;
    Ok(())
}

async fn bring(shared: &Shared, holding: Holding, digest: Digest, store: &BlobStore) -> Result<(), String> {
    let mut pauses = pauses(PAUSES.0, PAUSES.1);
    let mut tries = 0;
    loop {
        let blob = store.find(digest).await.map_err(|error| error.to_string())?;
        let size = blob.ok_or_else(|| format!("content {digest} is gone from this agent's store"))?.bytes;
        // A server that is away is waited for here, so that the tries below are those of one that answers.
        let session = shared.registered().await;
        match put(shared, &session, holding, (digest, size), store).await {
            Ok(()) => return Ok(()),
            Err((code, error)) => {
                tries += 1;
                if tries >= TRIES {
                    return Err(format!("{error}, after {tries} tries"));
                }
                tracing::warn!(%digest, attempt = %holding.attempt, %error, "a file could not be passed on yet");
                pause(code.as_deref(), &error, &mut pauses).await?;
                // A question that is answered says that the server is there.
                let wanted = ArtifactsWanted { holding, digests: vec![digest] };
                let MissingAnswer { missing } = asked(shared, "artifacts/missing", &wanted).await?;
                if missing.is_empty() {
                    return Ok(());
                }
            }
        }
    }
}

/// One try.
async fn put(
    shared: &Shared,
    session: &str,
    holding: Holding,
    (digest, size): (Digest, u64),
    store: &BlobStore,
) -> Result<(), (Option<String>, BackendError)> {
    let transient = |message: String| (None, BackendError { retry: Retry::Transient, message });
    let content = store.read(digest, 0..size).await.map_err(|error| transient(error.to_string()))?;
    shared.rate.until_ready().await;
    let limit = CONTENT + Duration::from_secs(size / SLOWEST_BYTES);
    let Holding { attempt, token: LeaseToken(token) } = holding;
    let url = format!("{}/v1/agent/artifacts/content/{digest}?attempt={attempt}&token={token}", shared.settings.url);
    let call = shared.http.put(url).bearer_auth(&shared.settings.key).header(SESSION_HEADER, session);
    let call = call.header("content-length", size).body(reqwest::Body::wrap_stream(content));
    let answer = call.timeout(limit).send().await.map_err(|error| transient(error.to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let document: serde_json::Value = answer.json().await.unwrap_or_default();
    if document["code"] == "session_unknown" {
        shared.forget(session).await;
        return Err(transient("the session was forgotten".to_owned()));
    }
    let detail: String =
        document["detail"].as_str().unwrap_or_default().chars().filter(|c| !c.is_control()).take(500).collect();
    let code = document["code"].as_str().map(str::to_owned);
    // What broke off on the way is told as a body that is not what it should be.
    let soon = status.is_server_error() || matches!(status.as_u16(), 408 | 429) || code.as_deref() == Some("bad_body");
    let retry = if soon { Retry::Transient } else { Retry::Never };
    Err((code, BackendError { retry, message: format!("the backend answered {status}: {detail}") }))
}

#[cfg(test)]
#[path = "results_tests.rs"]
mod tests;
