//! Pulls: one for each name, however many wait for it. It ends when it is done, when its time is over, or when nobody waits any more.

use super::failure::{self, Failure};
use super::holds::Hold;
use super::ledger::Pulling;
use super::progress::Progress;
use super::{Found, Inner};
use crate::executor::docker::engine::PullError;
use crate::job::{ImageName, UnixMillis};
use crate::net::Admission;
use crate::supervise;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Registries that did not answer of late, and are remembered.
const BREAKERS_MAX: usize = 1_000;

/// How a pull stands.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// In words.
    Going(String),
    /// It is over.
    Done(Result<(Found, Arc<Hold>), Failure>),
}

/// A pull, as long as somebody waits for it: the task goes with the last one.
pub(super) struct Flight {
    state: watch::Receiver<State>,
    _task: AbortOnDropHandle<()>,
}

impl Flight {
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

/// Pulls that are under way, by name. As many as jobs that begin.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<String, (u64, Weak<Flight>)>>,
    number: AtomicU64,
}

impl Flights {
    fn under_way(&self) -> MutexGuard<'_, HashMap<String, (u64, Weak<Flight>)>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.under_way().get(name).is_some_and(|(_, flight)| flight.strong_count() > 0)
    }

    /// The pull of that name: the one that is under way, or a new one.
    pub(super) fn join(&self, inner: &Arc<Inner>, name: &ImageName) -> Arc<Flight> {
        let mut under_way = self.under_way();
        let key = name.to_string();
        if let Some(flight) = under_way.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (say, state) = watch::channel(State::Going("waits for its turn".to_owned()));
        let (inner, name) = (Arc::clone(inner), name.clone());
        let task = supervise::spawn("pull", async move {
            let done = inner.fetch(&name, &say).await;
            // Who comes from now on asks anew.
            let mut under_way = inner.flights.under_way();
            if under_way.get(&name.to_string()).is_some_and(|(of, _)| *of == number) {
                under_way.remove(&name.to_string());
            }
            drop(under_way);
            say.send_replace(State::Done(done));
        });
        let flight = Arc::new(Flight { state, _task: AbortOnDropHandle::new(task) });
        under_way.retain(|_, (_, flight)| flight.strong_count() > 0);
        under_way.insert(key, (number, Arc::downgrade(&flight)));
        flight
    }
}

impl Inner {
    async fn fetch(&self, name: &ImageName, say: &watch::Sender<State>) -> Result<(Found, Arc<Hold>), Failure> {
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        self.admit(name.registry())?;
        let mut progress = Progress::default();
        let limit = self.settings.timeout;
        let began = Instant::now();
        let done = match timeout(limit, self.pull(name, &mut progress, say)).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Late(limit.into(), format!("{progress}"))),
        };
        self.judge(name.registry(), done.as_ref().map_or_else(Failure::answered, |_| true));
        match &done {
            Ok((found, _)) => {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(image = %name, id = found.id, seconds, %progress, "image pulled");
                self.came.notify_one();
            }
            Err(failure) => tracing::warn!(image = %name, ?failure, "image could not be pulled"),
        }
        done
    }

    /// Errors: its registry is left alone at the moment.
    fn admit(&self, registry: &str) -> Result<(), Failure> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        match breakers.get_mut(registry).map(|breaker| breaker.ask(Instant::now())) {
            None | Some(Admission::Admit | Admission::Probe) => Ok(()),
            Some(Admission::Refuse(pause)) => Err(Failure::Unreachable(format!(
                "{registry} did not answer several times in a row, and is not asked for {} ms",
                pause.as_millis()
            ))),
        }
    }

    fn judge(&self, registry: &str, answered: bool) {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            breakers.remove(registry);
            return;
        }
        // Jobs name registries. With so many that do not answer, all are asked anew.
        if breakers.len() >= BREAKERS_MAX && !breakers.contains_key(registry) {
            breakers.clear();
        }
        if breakers.entry(registry.to_owned()).or_default().failed(Instant::now()) {
            tracing::error!(registry, "the registry does not answer; it is left alone for a while");
        }
    }

    async fn pull(
        &self,
        name: &ImageName,
        progress: &mut Progress,
        say: &watch::Sender<State>,
    ) -> Result<(Found, Arc<Hold>), Failure> {
        say.send_replace(State::Going("asks its registry".to_owned()));
        let login = self.settings.logins.find(name.registry()).await.map_err(Failure::Denied)?;
        self.make_room().await;
        let full = name.to_string();
        // A second try is for one thing only: the image was being removed when it came.
        for last in [false, true] {
            // Before it begins: what a crash leaves of it is known to be ours.
            let before = self.look(&full).await?.map(|found| found.id);
            let pulling = Pulling { before: before.clone(), at: UnixMillis::now() };
            let key = full.clone();
            self.ledger.change(true, move |book| drop(book.pulling.insert(key, pulling))).await;
            let mut lines = std::pin::pin!(self.engine.pull(name, login.as_ref().map(super::login::Login::header)));
            while let Some(line) = lines.next().await {
                match line {
                    Ok(line) => {
                        progress.hear(&line.layer, &line.status, line.done, line.size);
                        let reached = progress.to_string();
                        say.send_if_modified(|state| match state {
                            State::Going(before) if *before == reached => false,
                            state => {
                                *state = State::Going(reached);
                                true
                            }
                        });
                    }
                    Err(error) => {
                        let key = full.clone();
                        // It did not come, and will not.
                        self.ledger.change(false, move |book| drop(book.pulling.remove(&key))).await;
                        return Err(told(error, name));
                    }
                }
            }
            let missing = || Failure::Missing("the engine said that it came, and does not have it".to_owned());
            let found = self.look(&full).await?.ok_or_else(missing)?;
            let (key, id) = (full.clone(), found.id.clone());
            self.ledger.change(true, move |book| book.pulled(&key, &id, before.as_deref(), UnixMillis::now())).await;
            match self.holds.hold(&found.id).await {
                Some(hold) => return Ok((found, Arc::new(hold))),
                None if last => return Err(missing()),
                None => {}
            }
        }
        unreachable!("the second try returns")
    }
}

fn told(error: PullError, name: &ImageName) -> Failure {
    match error {
        PullError::Said { status, text } => failure::read(status, &text, name),
        PullError::Silent(text) => Failure::Unreachable(text),
        PullError::NoEngine(text) => Failure::NoEngine(text),
    }
}
