//! Agents that an operator has drained: they get no more jobs until somebody says otherwise. Kept in a file by whoever serves the API;
//! here is what holds now.

use crate::job::UnixMillis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// An operator's word that an agent is to get no more jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Why, as the operator said it; may be empty.
    pub reason: String,
    /// Since when.
    pub since: UnixMillis,
    /// It is not trusted with jobs, for which it takes more than a plain resume to let it go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
}

impl Drain {
    /// For people: who did it, and why.
    pub fn sentence(&self) -> String {
        let what = if self.quarantined { "quarantined" } else { "drained" };
        match self.reason.as_str() {
            "" => format!("{what} by an operator"),
            reason => format!("{what} by an operator: {reason}"),
        }
    }
}

/// All of them, by the agents' names.
#[derive(Debug, Default)]
pub struct Drains(watch::Sender<BTreeMap<String, Drain>>);

impl Drains {
    /// That of an agent, if it is drained.
    pub fn of(&self, agent: &str) -> Option<Drain> {
        self.0.borrow().get(agent).cloned()
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<String, Drain> {
        self.0.borrow().clone()
    }

    /// What holds from now on.
    pub fn set(&self, drains: BTreeMap<String, Drain>) {
        self.0.send_replace(drains);
    }

    /// Returns when the agent is not drained (any more).
    pub(super) async fn over(&self, agent: &str) {
        // The sender is this value: it lives as long as this call.
        let _ = self.0.subscribe().wait_for(|drains| !drains.contains_key(agent)).await;
    }
}
