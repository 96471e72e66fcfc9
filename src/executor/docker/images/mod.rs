//! Images of cells: sees to it that the one that a job wants is there, and removes those that nothing uses.
//!
//! Owns the pulls ([`flight`]: one for each name, however many jobs wait), the logins ([`login`]), what is remembered ([`ledger`]) and the
//! choice of what goes ([`plan`]). An image is held from the look at it until its container is made: what this process removes is never
//! what a job is about to begin in. Must never remove what somebody else brought to the engine, unless the operator has it so.

mod collect;
mod failure;
mod flight;
mod holds;
mod ledger;
mod login;
mod plan;
mod progress;

pub(super) use failure::Failure;
pub use ledger::Ledger;
pub use login::Logins;
pub(super) use plan::Listed;
pub use plan::{Bounds, Judged};

use super::engine::{Engine, EngineError};
use crate::job::{Cause, ImageName, Pull, UnixMillis, UsedImage};
use crate::net::Breaker;
use flight::{Flights, State};
use holds::{Hold, Holds};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, Semaphore};

/// Pulls at the same time. One more waits for its turn, and its job with it.
const AT_ONCE: usize = 3;

/// What the operator's configuration says about images.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// For jobs that do not say.
    pub pull: Pull,
    /// Deadline of a pull, from its turn on.
    pub timeout: Duration,
    /// Logins at registries.
    pub logins: Logins,
    /// What is removed when.
    pub bounds: Bounds,
}

impl Default for ImageSettings {
    /// No logins, and nothing is ever removed.
    fn default() -> Self {
        Self {
            pull: Pull::default(),
            timeout: Duration::from_secs(300),
            logins: Logins::default(),
            bounds: Bounds::default(),
        }
    }
}

/// Images on one engine. Clones are the same one.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    engine: Engine,
    settings: ImageSettings,
    ledger: Ledger,
    holds: Holds,
    flights: Flights,
    turns: Semaphore,
    /// By the registry's host; as many as jobs name, of which there are few.
    breakers: Mutex<HashMap<String, Breaker>>,
    /// One removal of what is not needed at a time.
    collecting: tokio::sync::Mutex<()>,
    /// Something came: it may be too much.
    came: Notify,
    /// Where the engine keeps images, if that can be seen from here.
    root: OnceCell<Option<std::path::PathBuf>>,
}

/// An image as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The engine's id.
    pub(super) id: String,
    /// Its names with digests.
    pub(super) digests: Vec<String>,
}

/// An image that is there, and stays until this is dropped.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) used: UsedImage,
    _hold: Arc<Hold>,
}

impl Images {
    /// Images on `engine`.
    pub fn new(engine: Engine, settings: ImageSettings, ledger: Ledger) -> Self {
        Self(Arc::new(Inner {
            engine,
            settings,
            ledger,
            holds: Holds::default(),
            flights: Flights::default(),
            turns: Semaphore::new(AT_ONCE),
            breakers: Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            came: Notify::new(),
            root: OnceCell::new(),
        }))
    }

    /// Sees to it that the image is there. `tell` hears how a pull gets on. May be dropped at any moment: a pull that others wait for goes
    /// on. Errors: why it is not there.
    pub(super) async fn ensure(
        &self,
        reference: &str,
        pull: Option<Pull>,
        tell: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Ready, Failure> {
        let pull = pull.unwrap_or(self.0.settings.pull);
        let name = ImageName::parse(reference);
        // In full: of a bare word, an engine would also take any image whose id begins like it.
        let full = name.as_ref().map_or_else(|| reference.to_owned(), ToString::to_string);
        let here = match pull {
            Pull::Always if name.is_some() => None,
            Pull::IfAbsent | Pull::Never | Pull::Always => self.0.here(&full).await?,
        };
        let (found, hold, pulled) = match (here, name, pull) {
            (Some((found, hold)), ..) => (found, Arc::new(hold), false),
            (None, Some(name), Pull::IfAbsent | Pull::Always) => {
                let (found, hold) = self.pulled(&name, tell).await?;
                (found, hold, true)
            }
            (None, _, Pull::Never) => {
                return Err(Failure::Missing(
                    "the engine does not have it, and no registry is to be asked (pull: never)".to_owned(),
                ));
            }
            (None, None, _) => {
                return Err(Failure::Missing("the engine does not have it, and an id cannot be pulled".to_owned()));
            }
        };
        self.0.ledger.used(&found.id, UnixMillis::now()).await;
        let used = UsedImage { reference: reference.to_owned(), digest: digest(&found, &full), id: found.id, pulled };
        Ok(Ready { used, _hold: hold })
    }

    /// Asks the registry, whatever is there; for a person. Errors: a sentence.
    pub async fn pull(&self, reference: &str, tell: &(dyn Fn(String) + Send + Sync)) -> Result<UsedImage, Cause> {
        let ready = self.ensure(reference, Some(Pull::Always), tell).await;
        ready.map(|ready| ready.used).map_err(|failure| failure.cause(reference))
    }

    async fn pulled(
        &self,
        name: &ImageName,
        tell: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(Found, Arc<Hold>), Failure> {
        let flight = self.0.flights.join(&self.0, name);
        let mut state = flight.state();
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Going(reached) => tell(reached),
                State::Done(done) => return done,
            }
            if state.changed().await.is_err() {
                return Err(Failure::Engine("the pull broke off by itself".to_owned()));
            }
        }
    }
}

impl Inner {
    /// The image, if the engine has it, with a hold of it.
    async fn here(&self, full: &str) -> Result<Option<(Found, Hold)>, Failure> {
        loop {
            let Some(found) = self.look(full).await? else { return Ok(None) };
            // It was being removed: it is looked for again.
            if let Some(hold) = self.holds.hold(&found.id).await {
                return Ok(Some((found, hold)));
            }
        }
    }

    async fn look(&self, full: &str) -> Result<Option<Found>, Failure> {
        self.engine.find_image(full).await.map_err(|error| engine_failure(&error))
    }
}

fn engine_failure(error: &EngineError) -> Failure {
    if error.is_refusal() { Failure::Engine(error.short()) } else { Failure::NoEngine(error.short()) }
}

/// The name with a digest under which the content can be had again, best in the repository that was named.
fn digest(found: &Found, full: &str) -> Option<String> {
    let repository = |text: &str| ImageName::parse(text).map(|name| name.repository());
    let wanted = repository(full);
    let same = found.digests.iter().find(|digest| repository(digest) == wanted);
    same.or(found.digests.first()).cloned()
}
