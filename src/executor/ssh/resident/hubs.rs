//! Connections to hubs, one for each way to a host and each program: opened once for all who want one, and opened anew when one has ended.
//!
//! Owns what a host is known not to be able to do, for a while. Must never decide what becomes of a job there.

use super::hub::{Ages, Hub};
use super::open::{NoHub, open};
use super::shell::program;
use crate::executor::ssh::{Pool, Route};
use crate::job::OwnerId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A host that cannot have a warden is asked again after so long.
const DENIED: Duration = Duration::from_secs(300);
/// One that cannot have one now, after so long.
const NOT_NOW: Duration = Duration::from_secs(10);
/// Ways that are remembered although nobody goes there.
const MOST_WAYS: usize = 4096;

/// All of them. Clones are the same ones.
#[derive(Clone)]
pub(in crate::executor::ssh) struct Hubs(Arc<All>);

struct All {
    pool: Pool,
    owner: OwnerId,
    ways: Mutex<HashMap<(Route, String), Arc<Way>>>,
}

#[derive(Default)]
struct Way {
    hub: Mutex<Option<Hub>>,
    /// Whoever holds it opens one for all who wait.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Last>,
}

/// What became of the last opening.
#[derive(Default)]
struct Last {
    number: u64,
    failed: Option<NoHub>,
    denied: Option<(Instant, NoHub)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way {
    fn hub(&self) -> Option<Hub> {
        lock(&self.hub).as_ref().filter(|hub| hub.is_fresh()).cloned()
    }

    /// Why there can be none, from an earlier try.
    fn denied(&self) -> Option<NoHub> {
        let last = lock(&self.last);
        let (until, why) = last.denied.as_ref()?;
        (Instant::now() < *until).then(|| why.clone())
    }
}

impl Hubs {
    /// Over the connections of `pool`, for this installation.
    pub(in crate::executor::ssh) fn new(pool: Pool, owner: OwnerId) -> Self {
        Self(Arc::new(All { pool, owner, ways: Mutex::default() }))
    }

    /// The name of the program that new jobs are given to.
    pub(in crate::executor::ssh) fn program() -> String {
        program()
    }

    /// Where no warden can stay at the moment: the way there, why, and whether that lasts until somebody changes the host.
    pub(in crate::executor::ssh) fn denied(&self) -> Vec<(Route, String, bool)> {
        let ways = lock(&self.0.ways);
        let denied = ways.iter().filter(|(_, way)| way.hub().is_none()).filter_map(|((route, _), way)| {
            let why = way.denied()?;
            Some((route.clone(), why.to_string(), matches!(why, NoHub::Unfit(_))))
        });
        denied.collect()
    }

    fn way(&self, route: &Route, program: &str) -> Arc<Way> {
        let mut ways = lock(&self.0.ways);
        let key = (route.clone(), program.to_owned());
        if let Some(way) = ways.get(&key) {
            return Arc::clone(way);
        }
        if ways.len() >= MOST_WAYS {
            ways.retain(|_, way| Arc::strong_count(way) > 1 || way.hub().is_some());
        }
        let way = Arc::new(Way::default());
        ways.insert(key, Arc::clone(&way));
        way
    }

    /// The hub of this program at the end of `route`, for a new job. Errors: why there is none. May be dropped: then somebody else who waits
    /// goes on.
    pub(in crate::executor::ssh) async fn get(&self, route: &Route, program: &str) -> Result<Hub, NoHub> {
        let way = self.way(route, program);
        match way.denied().filter(|_| way.hub().is_none()) {
            Some(denied) => Err(denied),
            None => self.reach(way, route, program).await,
        }
    }

    /// The one that has a job already, whatever was said to new ones: the job is there, and waits for somebody.
    pub(in crate::executor::ssh) async fn find(&self, route: &Route, program: &str) -> Result<Hub, NoHub> {
        self.reach(self.way(route, program), route, program).await
    }

    async fn reach(&self, way: Arc<Way>, route: &Route, program: &str) -> Result<Hub, NoHub> {
        if let Some(hub) = way.hub() {
            return Ok(hub);
        }
        let before = lock(&way.last).number;
        let _turn = way.turn.lock().await;
        if let Some(hub) = way.hub() {
            return Ok(hub);
        }
        {
            let last = lock(&way.last);
            // Whoever waited for a try has its answer.
            if let Some(failed) = last.failed.as_ref().filter(|_| last.number != before) {
                return Err(failed.clone());
            }
        }
        let settings = self.0.pool.settings();
        let ages = Ages { idle: settings.idle_close, most: settings.max_age };
        let opened = open(&self.0.pool, route, &self.0.owner, program).await;
        let mut last = lock(&way.last);
        last.number += 1;
        match opened {
            Ok((link, decoder, greeting)) => {
                tracing::debug!(host = %route, pid = greeting.pid, build = greeting.build, "the warden there answers");
                let hub = Hub::begin(link, decoder, greeting.facts, ages);
                (last.failed, last.denied) = (None, None);
                *lock(&way.hub) = Some(hub.clone());
                Ok(hub)
            }
            Err(failed) => {
                if let NoHub::Unfit(reason) | NoHub::NotNow(reason) = &failed {
                    tracing::warn!(host = %route, %reason, "no warden can stay there; its jobs run in plain mode");
                    let span = if matches!(failed, NoHub::Unfit(_)) { DENIED } else { NOT_NOW };
                    last.denied = Some((Instant::now() + span, failed.clone()));
                }
                last.failed = Some(failed.clone());
                Err(failed)
            }
        }
    }
}
