//! Whether this process can do its work, component by component, in sentences.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A part that can be well or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The queue's file.
    Queue,
    /// The Docker engine.
    Engine,
    /// The agent's claim loop.
    Agent,
    /// Backends elsewhere.
    Backend,
    /// The operator's policy, where a file says it.
    Policy,
    /// The hosts that jobs go to, where a file says which.
    Inventory,
    /// The settings' files, where there are some.
    Settings,
    /// The audit log, where there is one.
    Audit,
    /// The certificate of the API, where it speaks TLS.
    Tls,
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum State {
    /// Well.
    Ok,
    /// Well, and without work: an operator said so, as the sentence tells.
    Drained(String),
    /// Able to work, and not as it was told to: the sentence says why.
    Degraded(String),
    /// Not able to work; the sentence says why.
    Down(String),
}

/// The registry.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<Component, State>>>);

/// What `/healthz` answers.
#[derive(Debug, Clone, Serialize)]
pub struct HealthReport {
    /// True when no component is down.
    pub ready: bool,
    /// One by one.
    pub components: BTreeMap<Component, State>,
}

impl Health {
    /// Every component that is named starts as down: readiness is shown, not assumed.
    pub fn new(components: &[Component]) -> Self {
        let starting = || State::Down("starting".to_owned());
        Self(Arc::new(Mutex::new(components.iter().map(|component| (*component, starting())).collect())))
    }

    /// Says how a component is.
    pub fn set(&self, component: Component, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(component, state);
    }

    /// Whether it has this component.
    pub fn has(&self, component: Component) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&component)
    }

    /// How everything is.
    pub fn report(&self) -> HealthReport {
        let components = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        HealthReport { ready: !components.values().any(|state| matches!(state, State::Down(_))), components }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_component_said_so() {
        let health = Health::new(&[Component::Queue, Component::Engine]);
        assert!(!health.report().ready);
        health.set(Component::Queue, State::Ok);
        assert!(!health.report().ready);
        health.set(Component::Engine, State::Ok);
        assert!(health.report().ready);
        health.set(Component::Queue, State::Drained("by an operator".into()));
        assert!(health.report().ready, "who is drained is well");
        health.set(Component::Policy, State::Degraded("the last good one holds".into()));
        assert!(health.report().ready, "what was good holds");
        health.set(Component::Engine, State::Down("gone".into()));
        let json = serde_json::to_value(health.report()).expect("serialises");
        assert_eq!(json["components"]["engine"]["reason"], "gone");
    }
}
