//! Claims in flight at several backends. Free slots are lent to claims, so together they never bring more than fits; backends
//! take turns when there are fewer slots than backends, and one that fails is asked less and less often.

use crate::backend::{Ask, Backend, BackendError, Grant};
use crate::job::Capacity;
use crate::net::{Retry, pauses};
use crate::protocol::agent::Load;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One long poll for work. A backend wakes it at once; the end of it only bounds a wait that went wrong.
const CLAIM_WAIT: Duration = Duration::from_secs(20);
/// The same while others wait for the slot that it holds.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// First and longest pause after a claim that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Between two lines about a backend that goes on to fail.
const SAID_AGAIN: Duration = Duration::from_secs(600);

type Answered = (usize, Result<Vec<Grant>, BackendError>);

struct One {
    backend: Arc<dyn Backend>,
    /// Slots that its claim in flight may fill.
    lent: u32,
    not_before: Option<Instant>,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    state: BackendState,
    /// When the log heard of its trouble last.
    said: Option<Instant>,
}

/// How claims at a backend go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackendState {
    /// None has been answered yet.
    #[default]
    Unknown,
    /// The last one was answered.
    Well,
    /// The last one brought no answer, or one that passes; and why.
    Failing(String),
    /// The last one was refused, as the next ones will be until somebody does something; and why.
    Refusing(String),
}

impl BackendState {
    /// After a claim that failed.
    fn after(&self, error: &BackendError) -> Self {
        match (error.retry, self) {
            (Retry::Never, _) => Self::Refusing(error.to_string()),
            // Whoever is refused often is asked to wait; what is wrong is still what was said before.
            (Retry::Throttled(_), Self::Refusing(_)) => self.clone(),
            (Retry::Transient | Retry::Throttled(_), _) => Self::Failing(error.to_string()),
        }
    }

    /// Why claims bring nothing, if so.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::Unknown | Self::Well => None,
            Self::Failing(reason) | Self::Refusing(reason) => Some(reason),
        }
    }
}

/// The claims. Never to be dropped while one is in flight: what it claimed would be lost with it.
pub(super) struct Claims {
    all: Vec<One>,
    /// Who is next when slots are few.
    turn: usize,
    flying: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Ends the wait of those in flight.
    recall: CancellationToken,
}

impl Claims {
    pub(super) fn new(backends: &[Arc<dyn Backend>]) -> Self {
        let one = |backend: &Arc<dyn Backend>| One {
            backend: Arc::clone(backend),
            lent: 0,
            not_before: None,
            pauses: Box::new(pauses(PAUSES.0, PAUSES.1)),
            state: BackendState::Unknown,
            said: None,
        };
        let all = backends.iter().map(one).collect();
        Self { all, turn: 0, flying: FuturesUnordered::new(), recall: CancellationToken::new() }
    }

    /// No jobs are wanted any more, for now: claims that wait for some come back, with what they have.
    pub(super) fn recall(&mut self) {
        if !self.flying.is_empty() {
            self.recall.cancel();
        }
    }

    /// Starts claims for what is free.
    pub(super) fn start(&mut self, free: Capacity, batch: u32, load: &Load, stop: &CancellationToken) {
        if self.flying.is_empty() || self.recall.is_cancelled() {
            self.recall = stop.child_token();
        }
        let now = Instant::now();
        let idle: Vec<bool> = self.all.iter().map(|one| one.not_before.is_none_or(|at| at <= now)).collect();
        let lent: Vec<u32> = self.all.iter().map(|one| one.lent).collect();
        let wait = if self.all.len() > 1 && free.slots as usize <= self.all.len() { SHORT_WAIT } else { CLAIM_WAIT };
        for (index, max) in share(free.slots, batch, &lent, &idle, self.turn) {
            let one = &mut self.all[index];
            one.lent = max;
            let wait = wait_at(one.backend.is_elsewhere(), &one.state, wait);
            let (backend, stop) = (Arc::clone(&one.backend), self.recall.clone());
            let load = Load { drained: one.backend.drained().is_some(), ..load.clone() };
            let ask = Ask { max, free: Capacity { slots: max, ..free }, wait, load };
            self.flying.push(Box::pin(async move { (index, backend.claim(ask, &stop).await) }));
        }
    }

    /// The next answer; pending when no claim is in flight.
    pub(super) async fn answer(&mut self) -> (usize, Vec<Grant>) {
        let Some((index, answer)) = self.flying.next().await else { return std::future::pending().await };
        let count = self.all.len();
        let one = &mut self.all[index];
        one.lent = 0;
        self.turn = (index + 1) % count;
        match answer {
            Ok(grants) => {
                one.said = None;
                if std::mem::replace(&mut one.state, BackendState::Well).trouble().is_some() {
                    tracing::info!(backend = one.backend.name(), "claims work again");
                }
                one.not_before = None;
                one.pauses = Box::new(pauses(PAUSES.0, PAUSES.1));
                (index, grants)
            }
            Err(error) => {
                let pause = match error.retry {
                    Retry::Throttled(wait) => wait,
                    Retry::Transient | Retry::Never => one.pauses.next().unwrap_or(PAUSES.1),
                };
                let now = Instant::now();
                one.not_before = Some(now + pause);
                let state = one.state.after(&error);
                if is_news(one.said, &one.state, &state, now) {
                    one.said = Some(now);
                    let backend = one.backend.name();
                    match state {
                        BackendState::Refusing(_) => tracing::error!(
                            backend,
                            %error,
                            "the backend refuses this agent, which gets no jobs until that is mended; asked again until it works"
                        ),
                        _ => tracing::error!(backend, %error, "claim failed; tried again until it works"),
                    }
                }
                one.state = state;
                (index, Vec::new())
            }
        }
    }

    /// When the pause of the first backend that pauses is over; long from now when none does.
    pub(super) fn pause_over(&self) -> Instant {
        // One that is over already waits for room or for the executor; what brings those wakes the dispatcher.
        let now = Instant::now();
        let pausing = self.all.iter().filter(|one| one.lent == 0).filter_map(|one| one.not_before);
        pausing.filter(|at| *at > now).min().unwrap_or(now + CLAIM_WAIT)
    }

    /// How claims go, by the backends' names.
    pub(super) fn states(&self) -> Vec<(String, BackendState)> {
        self.all.iter().map(|one| (one.backend.name().to_owned(), one.state.clone())).collect()
    }

    /// Nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }
}

/// Whether a claim that failed is to be told of: the first one, one of another kind (a backend that was away and now refuses), and else one
/// every while, so that the newest lines of a log say what is wrong.
fn is_news(said: Option<Instant>, before: &BackendState, after: &BackendState, now: Instant) -> bool {
    let another = std::mem::discriminant(before) != std::mem::discriminant(after);
    another || said.is_none_or(|said| now.duration_since(said) >= SAID_AGAIN)
}

/// How long a claim waits for jobs. One that is elsewhere and not known to be well is only asked, so that this is known at once and not when
/// a wait is over.
fn wait_at(elsewhere: bool, state: &BackendState, wait: Duration) -> Duration {
    if elsewhere && *state != BackendState::Well { Duration::ZERO } else { wait }
}

/// Who may claim how many: what is free and not lent, in equal parts over those who may claim and have no claim in flight, from
/// `turn` on.
fn share(free: u32, batch: u32, lent: &[u32], idle: &[bool], turn: usize) -> Vec<(usize, u32)> {
    let mut left = free.saturating_sub(lent.iter().sum());
    let in_order = (0..lent.len()).map(|step| (turn + step) % lent.len());
    let askers: Vec<usize> = in_order.filter(|index| lent[*index] == 0 && idle[*index]).collect();
    let mut shares = Vec::new();
    for (step, index) in askers.iter().enumerate() {
        let others = u32::try_from(askers.len() - step).unwrap_or(u32::MAX);
        let part = left.div_ceil(others).min(batch);
        if part == 0 {
            break;
        }
        left -= part;
        shares.push((*index, part));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_slots_go_round_and_many_are_shared() {
        assert_eq!(share(1, 16, &[0, 0, 0], &[true; 3], 1), [(1, 1)]);
        assert_eq!(share(4, 16, &[0, 0], &[true; 2], 0), [(0, 2), (1, 2)]);
        assert_eq!(share(5, 16, &[3, 0], &[true; 2], 0), [(1, 2)]);
        assert_eq!(share(9, 4, &[0], &[true], 0), [(0, 4)]);
        assert_eq!(share(9, 16, &[0, 0], &[false, true], 0), [(1, 9)]);
    }

    #[test]
    fn a_pause_that_is_over_is_not_waited_for_again() {
        let backend: Arc<dyn Backend> = Arc::new(crate::backend::simulated::Simulated::new());
        let (mut claims, now) = (Claims::new(&[backend]), Instant::now());
        claims.all[0].not_before = Some(now);
        assert!(claims.pause_over() > now + SHORT_WAIT, "it would be ready at once, for ever");
        claims.all[0].not_before = Some(now + SHORT_WAIT);
        assert_eq!(claims.pause_over(), now + SHORT_WAIT);
    }

    #[test]
    fn trouble_is_told_when_it_begins_when_it_is_another_one_and_every_while() {
        let error = |retry| BackendError { retry, message: "x".to_owned() };
        let away = BackendState::Unknown.after(&error(Retry::Transient));
        let refuses = BackendState::Well.after(&error(Retry::Never));
        assert_eq!((&away, &refuses), (&BackendState::Failing("x".into()), &BackendState::Refusing("x".into())));
        let throttled = BackendError { retry: Retry::Throttled(SHORT_WAIT), message: "later".to_owned() };
        assert_eq!(away.after(&throttled), BackendState::Failing("later".into()), "it passes");
        assert_eq!(refuses.after(&throttled), refuses, "it would still be refused");
        let began = Instant::now();
        assert!(is_news(None, &BackendState::Unknown, &refuses, began));
        assert!(!is_news(Some(began), &refuses, &refuses, began + SAID_AGAIN - SHORT_WAIT));
        assert!(is_news(Some(began), &refuses, &refuses, began + SAID_AGAIN));
        assert!(is_news(Some(began), &away, &refuses, began + SHORT_WAIT), "it is back, and does not know us");
    }

    #[test]
    fn a_backend_elsewhere_is_asked_before_its_jobs_are_waited_for() {
        let failing = BackendState::Failing("away".to_owned());
        for (elsewhere, state, wait) in [
            (true, BackendState::Unknown, Duration::ZERO),
            (true, failing.clone(), Duration::ZERO),
            (true, BackendState::Well, CLAIM_WAIT),
            (false, BackendState::Unknown, CLAIM_WAIT),
            (false, failing, CLAIM_WAIT),
        ] {
            assert_eq!(wait_at(elsewhere, &state, CLAIM_WAIT), wait, "{elsewhere} {state:?}");
        }
    }

    proptest! {
        #[test]
        fn no_more_is_lent_than_is_free(
            free in 0u32..40, batch in 1u32..20, lent in prop::collection::vec(0u32..6, 1..6), turn in 0usize..6,
        ) {
            prop_assume!(lent.iter().sum::<u32>() <= free);
            let shares = share(free, batch, &lent, &vec![true; lent.len()], turn % lent.len());
            let total: u32 = lent.iter().sum::<u32>() + shares.iter().map(|(_, part)| part).sum::<u32>();
            prop_assert!(total <= free);
            prop_assert!(shares.iter().all(|(index, part)| lent[*index] == 0 && *part >= 1 && *part <= batch));
        }
    }
}
