//! A jobcell server elsewhere, over HTTP and one WebSocket.
//!
//! [`Shared::call`] is the one way out: rate, breaker, deadline and retry class of every call are decided there. [`link`] carries
//! output and orders, [`uplink`] decides which output goes next.

mod blobs;
mod call;
mod link;
mod results;
mod uplink;

use super::{Announcement, Answer, Ask, Backend, BackendError, BlobPieces, Grant, Load, Order};
use crate::blobs::BlobStore;
use crate::job::{
    Artifacts, AttemptId, Digest, JobSpec, JobStep, Later, LeaseToken, Millis, Phase, Progress, Report, UnixMillis,
};
use crate::logstore::LogStore;
use crate::net::{Breaker, Retry};
use crate::protocol::agent::{
    Advance, AttemptStanding, Capabilities, ClaimAnswer, ClaimRequest, Claimed, Holding, Holdings, LookupAnswer,
    Release, RenewAnswer, Renewed, ReportAnswer, ReportRequest, Reported, Step, StepAnswer,
};
use crate::tls::{ClientTls, Trust};
use futures_util::future::BoxFuture;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uplink::{Flushing, Uplink};

/// Orders that a slow agent may be behind. What it misses, the answer to its next renewal says again.
const ORDERS: usize = 256;
/// Deadline of a small call, with its repetitions.
const SMALL: Duration = Duration::from_secs(15);
/// On top of a claim's wait.
const CLAIM_SLACK: Duration = Duration::from_secs(15);
/// A flush to a backend that is there, and in which nothing becomes durable for so long, is given up: the end is reported with a
/// log that is not complete.
const FLUSH_STALL: Duration = Duration::from_secs(60);
/// A flush looks again so often: a channel that is being opened tells nobody.
const FLUSH_LOOK: Duration = Duration::from_secs(5);
/// Between two looks at how much output waits here.
const SPOOL_LOOK: Duration = Duration::from_secs(1);
/// A backend that takes nothing for so long, with so much there, is not asked for more jobs.
const SPOOL_STALL: Duration = Duration::from_secs(5);
/// A backend that answers calls for so long, and gives no stream, will not give one: something between takes no WebSockets.
const STREAM_AWAY: Duration = Duration::from_secs(180);
/// Characters of a backend's reason that are kept.
const MOST_REASON: usize = 500;
/// A lease as long as this is assumed until the backend has said its own.
/// Until a job is handed out again that this agent does not understand.
const NOT_UNDERSTOOD: Millis = Millis::from_secs(60);
const UNKNOWN_LEASE: Millis = Millis::from_secs(60);

/// Where the backend is.
#[derive(Clone)]
pub struct HttpSettings {
    /// Its name in the settings.
    pub name: String,
    /// `http://host:port` or `https://host:port`, without a slash at the end.
    pub url: String,
    /// The agent's key.
    pub key: String,
    /// Calls in a second, at most.
    pub rate: NonZeroU32,
    /// Bytes of output that the backend may be behind with. With more, the log store says that there is no room.
    pub spool_max: u64,
}

impl std::fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpSettings({} at {})", self.name, self.url)
    }
}

/// The backend.
#[derive(Debug)]
pub struct Http {
    shared: Arc<Shared>,
    /// Claims in flight are numbered; a number is kept until its answer has come.
    claim: tokio::sync::Mutex<ClaimNumber>,
}

#[derive(Debug)]
struct ClaimNumber {
    session: String,
    number: u64,
    /// The answer to this number has not come.
    open: bool,
    /// When it was sent for the first time.
    since: Instant,
}

impl ClaimNumber {
    fn new(session: String) -> Self {
        Self { session, number: 0, open: false, since: Instant::now() }
    }
}

#[derive(Debug)]
struct Shared {
    settings: HttpSettings,
    tls: ClientTls,
    http: reqwest::Client,
    rate: DefaultDirectRateLimiter,
    breaker: Mutex<Breaker>,
    who: Mutex<Announcement>,
    /// The session, once there is one; the lock is held while one is made.
    session: tokio::sync::Mutex<Option<String>>,
    capabilities: Mutex<Capabilities>,
    logs: LogStore,
    uplink: Mutex<Uplink>,
    /// There may be something new to send.
    poke: Notify,
    /// Counts what the backend said on the stream.
    progress: watch::Sender<u64>,
    /// Since when there is no stream.
    cut: Mutex<Option<tokio::time::Instant>>,
    /// Since when every call was answered.
    answering: Mutex<Option<tokio::time::Instant>>,
    load: watch::Sender<Load>,
    /// What the backend said last of whether this agent is drained.
    drained: Mutex<Option<String>>,
    orders: broadcast::Sender<Order>,
    /// How far jobs are, on its way.
    words: results::Words,
}

impl Shared {
    fn uplink(&self) -> MutexGuard<'_, Uplink> {
        self.uplink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an answer says of whether this agent is drained. It is shown to people, so it is short and steers nothing.
    fn hear_drained(&self, drained: Option<String>) {
        let shown = |text: String| text.chars().filter(|c| !c.is_control()).take(MOST_REASON).collect();
        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = drained.map(shown);
    }

    fn only_the_stream_is_away(&self) -> bool {
        let at = |time: &Mutex<Option<tokio::time::Instant>>| *time.lock().unwrap_or_else(PoisonError::into_inner);
        let since = at(&self.cut).zip(at(&self.answering)).map(|(cut, answering)| cut.max(answering));
        since.is_some_and(|since| since.elapsed() > STREAM_AWAY)
    }
}

impl Http {
    /// A backend at `settings`, whose output comes from `logs`, without TLS. Its stream is kept until `stop`. Errors: no HTTP client can be
    /// made.
    pub fn new(settings: HttpSettings, logs: LogStore, stop: CancellationToken) -> Result<Self, String> {
        Self::believing(ClientTls::new(Trust::Nobody)?, settings, logs, stop)
    }

    /// The same, with TLS where its address asks for it.
    pub fn believing(
        tls: ClientTls,
        settings: HttpSettings,
        logs: LogStore,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        // The backend is named by the operator: a proxy from the environment is not asked.
        let http = reqwest::Client::builder()
            .no_proxy()
            // Keys go nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(3))
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .tls_backend_preconfigured(tls.config())
            .build()
            .map_err(|error| error.to_string())?;
        let capabilities = Capabilities {
            lease: Some(UNKNOWN_LEASE),
            fenced_end: false,
            log: true,
            cancel: false,
            later: false,
            traces: false,
        };
        let shared = Arc::new(Shared {
            rate: RateLimiter::direct(Quota::per_second(settings.rate)),
            settings,
            tls,
            http,
            breaker: Mutex::default(),
            who: Mutex::default(),
            session: tokio::sync::Mutex::default(),
            capabilities: Mutex::new(capabilities),
            logs,
            uplink: Mutex::default(),
            poke: Notify::new(),
            progress: watch::channel(0).0,
            cut: Mutex::default(),
            answering: Mutex::default(),
            load: watch::channel(Load::default()).0,
            drained: Mutex::default(),
            orders: broadcast::channel(ORDERS).0,
            words: results::Words::default(),
        });
        crate::supervise::spawn("spool", watch_spool(Arc::clone(&shared), stop.clone()));
        crate::supervise::spawn("log stream", link::run(Arc::clone(&shared), stop));
        Ok(Self { shared, claim: tokio::sync::Mutex::new(ClaimNumber::new(String::new())) })
    }

    /// Its breaker's state: `admit`, `probe` or `refuse`.
    pub fn breaker(&self) -> &'static str {
        self.shared.breaker.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    async fn claim_once(&self, ask: Ask, stop: &CancellationToken) -> Result<(Vec<Claimed>, Instant), BackendError> {
        let mut state = self.claim.lock().await;
        // A session that was forgotten in the middle takes its numbers with it: the claim is made anew under the next one.
        for last in [false, true] {
            let session = tokio::select! {
                session = self.shared.session() => session?,
                () = stop.cancelled() => return Ok((Vec::new(), Instant::now())),
            };
            if state.session != session {
                *state = ClaimNumber::new(session.clone());
            }
            if !state.open {
                state.number += 1;
                state.open = true;
                state.since = Instant::now();
            }
            // One that decides for everybody whether the backend is back must not take its time.
            let wait = if self.breaker() == "admit" { ask.wait } else { Duration::ZERO };
            let load = ask.load.clone();
            let mut request =
                ClaimRequest { number: state.number, free: ask.free, max: ask.max, wait: wait.into(), load };
            let answer = tokio::select! {
                answer = self.shared.under::<_, ClaimAnswer>(&session, "claim", &request, wait + CLAIM_SLACK) => answer,
                () = stop.cancelled() => {
                    // What this number has brought, if anything, and nothing more.
                    (request.max, request.wait) = (0, Millis::new(0));
                    self.shared.under(&session, "claim", &request, SMALL).await
                }
            };
            match answer {
                Ok(answer) => {
                    state.open = false;
                    self.shared.hear_drained(answer.drained);
                    return Ok((answer.claims, state.since));
                }
                Err(call::Refused::Session(error)) if last => return Err(error),
                Err(call::Refused::Session(_)) => {}
                Err(call::Refused::Other(_, error)) => {
                    // An answer that will always be the same must not be asked for again.
                    state.open = error.retry != Retry::Never;
                    return Err(error);
                }
            }
        }
        Ok((Vec::new(), Instant::now()))
    }

    async fn grants(&self, claims: Vec<Claimed>, since: Instant) -> Vec<Grant> {
        let mut grants = Vec::with_capacity(claims.len());
        for claim in claims {
            match JobSpec::check_stored(&claim.spec) {
                Ok(spec) => grants.push(Grant {
                    attempt: claim.attempt,
                    token: claim.token,
                    spec: spec.with_secrets(claim.secrets),
                    submitter: claim.submitter,
                    since,
                }),
                Err(problems) => {
                    // A spec that a newer server accepts and this agent does not understand.
                    tracing::error!(attempt = %claim.attempt, %problems, "a claimed job's spec is not understood; it goes back");
                    // Without a pause it would be handed out again at once, to this agent too.
                    let reason = "an agent that is older than the server does not understand it".to_owned();
                    let later = Later { after: NOT_UNDERSTOOD, reason };
                    if let Err(error) =
                        self.release(claim.attempt, claim.token, "spec_not_understood", Some(&later)).await
                    {
                        tracing::error!(%error, attempt = %claim.attempt, "it could not be given back; its lease will run out");
                    }
                }
            }
        }
        grants
    }
}

/// Says whose output has no room while the backend is too far behind with it: of those that have more than an equal part of what may wait.
/// One that floods waits alone, as long as the backend takes something.
async fn watch_spool(shared: Arc<Shared>, stop: CancellationToken) {
    let (name, most) = (shared.settings.name.clone(), shared.settings.spool_max);
    let why = format!("what {name} has not got of it is more than agent.spool_max");
    let (mut full, mut known, mut since) = (false, 0, tokio::time::Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(SPOOL_LOOK) => {}
            () = stop.cancelled() => break,
        }
        let (logs, behind) = (shared.logs.clone(), shared.uplink().behind());
        let durable = behind.iter().fold(0u64, |sum, (_, durable)| sum.wrapping_add(*durable));
        if durable != known {
            (known, since) = (durable, tokio::time::Instant::now());
        }
        let look = move || {
            let waits = behind.into_iter().map(|(attempt, durable)| (attempt, logs.bytes_behind(attempt, durable)));
            waits.collect::<Vec<_>>()
        };
        let Ok(waits) = tokio::task::spawn_blocking(look).await else { break };
        let all = waits.iter().map(|(_, bytes)| bytes).sum::<u64>();
        full = all > if full { most - most / 10 } else { most };
        let part = most / waits.len().max(1) as u64;
        let beyond = waits.iter().filter(|(_, bytes)| full && *bytes > part).map(|(attempt, _)| *attempt);
        let stalled = (full && since.elapsed() > SPOOL_STALL).then(|| why.clone());
        shared.logs.room().share(&name, beyond.collect(), stalled);
    }
    shared.logs.room().share(&name, BTreeSet::new(), None);
}

fn holdings(leases: &[(AttemptId, LeaseToken)]) -> Holdings {
    Holdings { attempts: leases.iter().map(|(attempt, token)| Holding { attempt: *attempt, token: *token }).collect() }
}

/// An answer must have one entry for each question.
fn one_each<T>(answers: Vec<T>, asked: usize) -> Result<Vec<T>, BackendError> {
    if answers.len() == asked {
        return Ok(answers);
    }
    let message = format!("the backend gave {} answers to {asked} questions", answers.len());
    Err(BackendError { retry: Retry::Never, message })
}

impl Backend for Http {
    fn name(&self) -> &str {
        &self.shared.settings.name
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn capabilities(&self) -> Capabilities {
        *self.shared.capabilities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drained(&self) -> Option<String> {
        self.shared.drained.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn announce(&self, who: &Announcement) {
        *self.shared.who.lock().unwrap_or_else(PoisonError::into_inner) = who.clone();
    }

    fn tell(&self, load: &Load) {
        self.shared.load.send_if_modified(|known| {
            let changed = known != load;
            known.clone_from(load);
            changed
        });
    }

    fn claim<'a>(&'a self, ask: Ask, stop: &'a CancellationToken) -> Answer<'a, Vec<Grant>> {
        Box::pin(async move {
            let (claims, since) = self.claim_once(ask, stop).await?;
            Ok(self.grants(claims, since).await)
        })
    }

    fn renew<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<Renewed>> {
        Box::pin(async move {
            let answer: RenewAnswer = self.shared.retrying(call::RENEW, &holdings(leases), SMALL).await?;
            self.shared.hear_drained(answer.drained);
            one_each(answer.renewals, leases.len())
        })
    }

    fn lookup<'a>(&'a self, leases: &'a [(AttemptId, LeaseToken)]) -> Answer<'a, Vec<AttemptStanding>> {
        Box::pin(async move {
            let answer: LookupAnswer = self.shared.retrying("lookup", &holdings(leases), SMALL).await?;
            one_each(answer.standings, leases.len())
        })
    }

    fn advance<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        phase: Phase,
        at: UnixMillis,
        reason: &'a str,
    ) -> Answer<'a, Step> {
        let request = Advance { holding: Holding { attempt, token }, phase, at, reason: reason.to_owned() };
        Box::pin(async move { Ok(self.shared.retrying::<_, StepAnswer>("advance", &request, SMALL).await?.step) })
    }

    fn report<'a>(&'a self, report: &'a Report, token: LeaseToken) -> Answer<'a, Reported> {
        Box::pin(async move {
            let request = ReportRequest { token, report: report.clone() };
            Ok(self.shared.retrying::<_, ReportAnswer>("report", &request, SMALL).await?.outcome)
        })
    }

    fn release<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        reason: &'a str,
        later: Option<&'a Later>,
    ) -> Answer<'a, Step> {
        let request = Release { holding: Holding { attempt, token }, reason: reason.to_owned(), later: later.cloned() };
        Box::pin(async move { Ok(self.shared.retrying::<_, StepAnswer>("release", &request, SMALL).await?.step) })
    }

    fn orders(&self) -> broadcast::Receiver<Order> {
        self.shared.orders.subscribe()
    }

    fn log_began(&self, attempt: AttemptId, token: LeaseToken) {
        self.shared.uplink().add(attempt, token);
        self.shared.poke.notify_one();
    }

    fn flush_log(&self, attempt: AttemptId, last: u64) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let mut progress = self.shared.progress.subscribe();
            self.shared.uplink().flush(attempt, last);
            self.shared.poke.notify_one();
            let (mut at, mut until) = (None, tokio::time::Instant::now() + FLUSH_STALL);
            loop {
                let state = self.shared.uplink().flushing(attempt, last);
                match state {
                    Flushing::Durable => return true,
                    Flushing::Never => return false,
                    // However long a backend is away, its output is kept for it.
                    Flushing::Away if self.shared.only_the_stream_is_away() => {
                        tracing::error!(%attempt, backend = self.name(), "calls are answered and no stream can be had: output stays behind");
                        return false;
                    }
                    Flushing::Away => at = None,
                    Flushing::At(durable) if at == Some(durable) => {}
                    Flushing::At(durable) => {
                        at = Some(durable);
                        until = tokio::time::Instant::now() + FLUSH_STALL;
                    }
                }
                tokio::select! {
                    changed = progress.changed() => match changed {
                        Ok(()) => {}
                        Err(_) => return false,
                    },
                    () = tokio::time::sleep(FLUSH_LOOK) => {}
                    () = tokio::time::sleep_until(until), if state != Flushing::Away => {
                        tracing::error!(%attempt, backend = self.name(), "output could not be passed on in time");
                        return false;
                    }
                }
            }
        })
    }

    fn tell_progress(&self, attempt: AttemptId, token: LeaseToken, progress: Option<Progress>, steps: Vec<JobStep>) {
        results::tell(&self.shared, attempt, token, progress, steps);
    }

    fn give_artifacts<'a>(
        &'a self,
        attempt: AttemptId,
        token: LeaseToken,
        artifacts: &'a Artifacts,
        store: &'a BlobStore,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let given = results::give(&self.shared, attempt, token, artifacts, store).await;
            // Either it has them, or it does not want them.
            if let Err(error) = store.release(&Artifacts::holder(attempt)).await {
                tracing::warn!(%attempt, %error, "its files stay in this agent's store until the next start");
            }
            given
        })
    }

    fn read_blob(&self, digest: Digest, from: u64) -> Answer<'_, BlobPieces> {
        Box::pin(self.shared.read_blob(digest, from))
    }

    fn log_done(&self, attempt: AttemptId) {
        self.shared.uplink().remove(attempt);
        self.shared.words.forget(attempt);
        self.shared.poke.notify_one();
        let logs = self.shared.logs.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = logs.remove_attempt(attempt) {
                tracing::warn!(%error, %attempt, "the local copy of a log could not be removed");
            }
        });
    }
}
