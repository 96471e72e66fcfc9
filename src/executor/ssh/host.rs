//! What is known of one host, whoever logs in there: its breaker, and how many handshakes it does at once.

use super::error::ConnectError;
use super::route::Route;
use crate::net::{Admission, Breaker};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// One host.
pub(super) struct Host {
    /// Its name for people, as whoever went there first said it.
    pub(super) name: String,
    breaker: Mutex<(Breaker, String)>,
    /// Places for handshakes.
    pub(super) handshakes: Arc<Semaphore>,
}

impl Host {
    pub(super) fn new(name: &str, handshakes: usize) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            breaker: Mutex::new((Breaker::default(), String::new())),
            handshakes: Arc::new(Semaphore::new(handshakes)),
        })
    }

    /// Asks for a handshake. Errors: it did not answer lately.
    pub(super) fn ask(&self, route: &Route) -> Result<(), ConnectError> {
        let mut state = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.ask(Instant::now()) {
            Admission::Admit | Admission::Probe => Ok(()),
            Admission::Refuse(wait) => {
                Err(ConnectError::Refused { host: route.to_string(), wait, last: state.1.clone() })
            }
        }
    }

    /// What a handshake came to. A host that answers is well, whatever it answers; of one that throttles nothing is learnt.
    pub(super) fn tell(&self, route: &Route, result: &Result<(), ConnectError>) {
        let mut state = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(ConnectError::Unreachable(said)) => count(&mut state, route, said),
            Ok(_) | Err(ConnectError::HostKey(_) | ConnectError::Login(_) | ConnectError::Unfit(_)) => state.0.worked(),
            // It answers, if only to say no: a probe has its answer.
            Err(ConnectError::Throttled(_)) if state.0.state() == "probe" => state.0.worked(),
            Err(_) => {}
        }
    }

    /// A connection that was well went silent.
    pub(super) fn went_silent(&self, route: &Route, said: &str) {
        let mut state = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut state, route, said);
    }

    /// As a word.
    pub(super) fn state(&self) -> &'static str {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).0.state()
    }
}

fn count(state: &mut (Breaker, String), route: &Route, said: &str) {
    said.clone_into(&mut state.1);
    if state.0.failed(Instant::now()) {
        tracing::warn!(host = %route, reason = %said, "the host does not answer and is left alone for a while");
    }
}
