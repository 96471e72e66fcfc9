//! What jobs give back, on its way to the server: how far they are (the last word only), and their files (each content that is not there).

use super::{SMALL, Shared};
use crate::backend::BackendError;
use crate::blobs::BlobStore;
use crate::job::{Artifacts, AttemptId, Digest, JobStep, LeaseToken, Progress};
use crate::net::{Retry, pauses};
use crate::protocol::agent::{
    ArtifactsGiven, ArtifactsWanted, Holding, MissingAnswer, SESSION_HEADER, StepAnswer, TellProgress,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two words of the same job.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// Digests of one question.
const QUESTION: usize = 1000;
/// A content has this long, and a second more for each of its megabytes.
const CONTENT: Duration = Duration::from_secs(60);
const SLOWEST_BYTES: u64 = 1 << 20;
/// First and longest pause between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Tries of one content at a server that answers.
const TRIES: u32 = 5;

/// Words that have not gone yet: one for each attempt, so at most as many as there are jobs.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<HashMap<AttemptId, TellProgress>>);

impl Words {
    /// Keeps a word. True when nobody is on the way with an older one: then it is for the caller to send it.
    fn keep(&self, word: TellProgress) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(word.holding.attempt, word).is_none()
    }

    fn take(&self, attempt: AttemptId) -> Option<TellProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt)
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
    let send = async move {
        tokio::time::sleep(TELL_PAUSE).await;
        let Some(word) = shared.words.take(attempt) else { return };
        if let Err(error) = shared.call::<_, StepAnswer>("progress", &word, SMALL).await {
            tracing::debug!(%attempt, %error, "how far it is could not be told");
        }
    };
    crate::supervise::spawn("progress", crate::supervise::of_this_process(send));
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

/// Asks until there is an answer. Errors: a plain no.
async fn asked<Q: serde::Serialize + Sync, A: serde::de::DeserializeOwned>(
    shared: &Shared,
    what: &str,
    request: &Q,
) -> Result<A, String> {
    let mut pauses = pauses(PAUSES.0, PAUSES.1);
    loop {
        match shared.retrying(what, request, SMALL).await {
            Ok(answer) => return Ok(answer),
            Err(error) => pause(&error, &mut pauses).await?,
        }
    }
}

async fn pause(error: &BackendError, pauses: &mut (impl Iterator<Item = Duration> + Send)) -> Result<(), String> {
    let pause = match error.retry {
        Retry::Never => return Err(error.to_string()),
        Retry::Transient => pauses.next().unwrap_or(PAUSES.1),
        Retry::Throttled(pause) => pause,
    };
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
            Err(error) => {
                tries += 1;
                if tries >= TRIES {
                    return Err(format!("{error}, after {tries} tries"));
                }
                tracing::warn!(%digest, attempt = %holding.attempt, %error, "a file could not be passed on yet");
                pause(&error, &mut pauses).await?;
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
) -> Result<(), BackendError> {
    let transient = |message: String| BackendError { retry: Retry::Transient, message };
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
    let retry = if status.is_server_error() || status.as_u16() == 429 { Retry::Transient } else { Retry::Never };
    Err(BackendError { retry, message: format!("the backend answered {status}: {detail}") })
}
