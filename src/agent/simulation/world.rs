//! What the world of a run does to an agent, and what is seen of the agent there.

use super::ledger::Ledger;
use super::scenario::{Fault, Moment, Scenario};
use crate::executor::scripted::{How, LinkFault, Scripted, Seeing};
use crate::journal::{Journal, MemoryJournal, Stage as Step};
use crate::protocol::wire::ToWarden;
use crate::seeded::Process;
use futures_util::FutureExt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// An agent, which of its lives has ended, and how long it stays away.
pub(super) type Death = (usize, u32, u64);
/// The process that an agent is now, and which of its lives that is.
pub(super) type Now = Arc<Mutex<(Process, u32)>>;

/// What becomes of the links of an agent, in order.
pub(super) fn link_faults(scenario: &Scenario, agent: usize) -> std::collections::VecDeque<Option<LinkFault>> {
    let mut faults = std::collections::VecDeque::new();
    for fault in &scenario.faults {
        if let Fault::Link { agent: of, nth, fault } = fault
            && *of == agent
        {
            let nth = *nth as usize;
            faults.resize(faults.len().max(nth), None);
            faults[nth - 1] = Some(*fault);
        }
    }
    faults
}

/// Moments at which an agent ends: which, how many of them are still to come, and how long it stays away.
pub(super) fn moments(scenario: &Scenario, agent: usize) -> Vec<(Moment, u32, u64)> {
    let of = |fault: &Fault| match fault {
        Fault::CrashWhen { agent: of, moment, nth, down } if *of == agent => Some((*moment, *nth, *down)),
        _ => None,
    };
    scenario.faults.iter().filter_map(of).collect()
}

/// Ends an agent at such moments: at once, before anything of it hears of them.
pub(super) struct Ends {
    pub(super) now: Now,
    pub(super) moments: Mutex<Vec<(Moment, u32, u64)>>,
    pub(super) deaths: mpsc::Sender<Death>,
}

impl Ends {
    fn at(&self, agent: usize, what: &Seeing<'_>) {
        let moment = match what {
            Seeing::Started => Moment::Starts,
            Seeing::Heard(ToWarden::Ack { .. }) => Moment::HearsAck,
            Seeing::Heard(ToWarden::Close) => Moment::HearsClose,
            _ => return,
        };
        for (of, left, down) in self.moments.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if *of == moment && *left > 0 {
                *left -= 1;
                if *left == 0 {
                    let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
                    now.0.kill();
                    let _ = self.deaths.try_send((agent, now.1, *down));
                }
            }
        }
    }
}

/// Holds what an agent does in the world against its journal: nothing outside before it is written down.
pub(super) fn watch_world(agent: usize, world: &Scripted, journal: &MemoryJournal, ledger: &Arc<Ledger>, ends: Ends) {
    let (journal, ledger) = (journal.clone(), Arc::clone(ledger));
    world.world().witness = Some(Box::new(move |attempt, what| {
        let Some(attempt) = attempt else { return };
        let entries = journal.entries().now_or_never().expect("at once").expect("reads");
        let stage = entries.into_iter().find(|entry| entry.key.attempt == attempt).map(|entry| entry.stage);
        let wrong = match &what {
            Seeing::Made => !matches!(stage, Some(Step::Intent)),
            // What is on its way to a warden may come after the end, when the engine that should end the cell is away.
            Seeing::Started if ledger.without_engine(agent) => matches!(stage, Some(Step::Intent)),
            Seeing::Started => !matches!(stage, Some(Step::Committed)),
            // The end is safe: in the journal, or with the backend.
            Seeing::Heard(ToWarden::Close) => {
                matches!(stage, Some(Step::Intent | Step::Committed)) && !ledger.was_told_of(attempt)
            }
            _ => false,
        };
        match &what {
            Seeing::Heard(ToWarden::Ping { .. } | ToWarden::SpecChunk { .. } | ToWarden::Commit { .. }) => {}
            Seeing::Heard(message) => ledger.tell(|| format!("a{agent} {attempt} hears {message:?}")),
            other => ledger.tell(|| format!("a{agent} {attempt} {other:?}")),
        }
        if wrong {
            let stage = stage.map(|stage| format!("{stage:?}"));
            ledger.violated(format!("{attempt}: {what:?}, and the journal says {stage:?}"));
        }
        ends.at(agent, &what);
        if let Seeing::Over(How::CellEnded) = what {
            ledger.tell(|| format!("a{agent} {attempt} was ended with its cell"));
        }
    }));
}
