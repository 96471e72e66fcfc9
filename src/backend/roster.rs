//! The agents that a backend knows: what each said of itself, how it is, when it was last heard. In memory: an agent whose
//! session is not known says everything again.

use super::drains::{Drain, Drains};
use crate::job::{Capacity, UnixMillis};
use crate::protocol::agent::{Announcement, Load};
use crate::queue::Profile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An agent that was not heard for so long counts as offline. Three times what it may be silent on its stream.
const OFFLINE_AFTER: Duration = Duration::from_secs(45);

/// Characters of an agent's reason that are kept.
const MOST_REASON: usize = 400;

/// Kinds of cells that are away that are kept; there are two.
const MOST_AWAY: usize = 8;

/// Hosts in plain mode of one agent that are kept.
const MOST_PLAIN: usize = 100;

/// How an agent is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It takes jobs.
    Online,
    /// It is well, and takes none: `unavailable` says why.
    Unavailable,
    /// An operator said that it is to get no jobs.
    Drained,
    /// It ends when what it holds has ended.
    Draining,
    /// It was not heard for a while.
    Offline,
}

/// An agent as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentEntry {
    /// The name that its key has.
    pub name: String,
    /// In a word.
    pub state: AgentState,
    /// The program's version.
    pub version: String,
    /// What tells installations with one key apart.
    pub installation: String,
    /// What jobs can ask for.
    pub labels: BTreeMap<String, String>,
    /// Kinds of cells.
    pub executors: Vec<String>,
    /// Language environments.
    pub presets: Vec<String>,
    /// What it can run at the same time.
    pub capacity: Capacity,
    /// What it said last.
    pub load: Load,
    /// That it is drained, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drain>,
    /// When it was last heard.
    pub last_contact: UnixMillis,
}

impl AgentEntry {
    /// What it can do.
    pub fn profile(&self) -> Profile {
        Profile {
            labels: self.labels.clone(),
            presets: self.presets.clone(),
            executors: self.executors.clone(),
            // For what may be one day; what cannot be now is told apart.
            away: Vec::new(),
            capacity: self.capacity,
        }
    }
}

/// A new session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its id.
    pub session: String,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The name is in use.
    #[error(
        "agent `{name}` is in use by installation {installation}, heard {seconds} s ago; give each agent a key of its own"
    )]
    Taken {
        /// The name.
        name: String,
        /// Who uses it.
        installation: String,
        /// How long ago it was heard.
        seconds: u64,
    },
    /// It is not known (any more).
    #[error("the session is not known; register again")]
    Unknown,
}

#[derive(Debug)]
struct Entry {
    who: Announcement,
    load: Load,
    session: String,
    last_contact: UnixMillis,
    /// It lives in this process.
    local: bool,
}

impl Entry {
    fn offline(&self, now: UnixMillis) -> bool {
        !self.local && now.since(self.last_contact).as_duration() > OFFLINE_AFTER
    }

    fn state(&self, drained: bool, now: UnixMillis) -> AgentState {
        if self.offline(now) {
            AgentState::Offline
        } else if self.load.draining {
            AgentState::Draining
        } else if drained {
            AgentState::Drained
        } else if self.load.unavailable.is_some() {
            AgentState::Unavailable
        } else {
            AgentState::Online
        }
    }
}

/// The agents.
#[derive(Debug, Default)]
pub struct Roster {
    entries: Mutex<BTreeMap<String, Entry>>,
    drains: Drains,
}

impl Roster {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of them are drained, or will be when they come.
    pub fn drains(&self) -> &Drains {
        &self.drains
    }

    /// Takes in the agent of this process.
    pub fn enter_local(&self, name: &str, who: Announcement, now: UnixMillis) {
        let entry = Entry { who, load: healthy(), session: String::new(), last_contact: now, local: true };
        self.entries().insert(name.to_owned(), entry);
    }

    /// Begins a session. Errors: another installation uses the name and is alive.
    pub fn register(&self, name: &str, who: Announcement, now: UnixMillis) -> Result<Registration, SessionError> {
        let mut entries = self.entries();
        if let Some(there) = entries.get(name)
            && there.who.installation != who.installation
            && !there.offline(now)
        {
            let seconds = now.since(there.last_contact).as_duration().as_secs();
            let installation = there.who.installation.clone();
            return Err(SessionError::Taken { name: name.to_owned(), installation, seconds });
        }
        let session = uuid::Uuid::new_v4().simple().to_string();
        let entry = Entry { who, load: healthy(), session: session.clone(), last_contact: now, local: false };
        entries.insert(name.to_owned(), entry);
        Ok(Registration { session })
    }

    /// Looks whether a call belongs to the session of the agent, and notes that it was heard.
    pub fn check(&self, name: &str, session: &str, now: UnixMillis) -> Result<(), SessionError> {
        let mut entries = self.entries();
        let entry = entries.get_mut(name).filter(|entry| !entry.local && entry.session == session);
        entry.ok_or(SessionError::Unknown)?.last_contact = now;
        Ok(())
    }

    /// Whether this session is the agent's.
    pub fn knows(&self, name: &str, session: &str) -> bool {
        self.entries().get(name).is_some_and(|entry| !entry.local && entry.session == session)
    }

    /// The agent was heard, and perhaps said how it is.
    pub fn heard(&self, name: &str, load: Option<&Load>, now: UnixMillis) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.last_contact = now;
            if let Some(load) = load {
                entry.load = load.clone();
                // What an agent says ends up in lists.
                let short = |text: String| text.chars().filter(|c| !c.is_control()).take(MOST_REASON).collect();
                entry.load.unavailable = entry.load.unavailable.take().map(short);
                let away = std::mem::take(&mut entry.load.away).into_iter().take(MOST_AWAY);
                entry.load.away = away.map(|(kind, reason)| (short(kind), short(reason))).collect();
                let plain = std::mem::take(&mut entry.load.plain_hosts).into_iter().take(MOST_PLAIN);
                entry.load.plain_hosts = plain.map(|(host, why)| (short(host), short(why))).collect();
            }
        }
    }

    /// Forgets an agent.
    pub fn remove(&self, name: &str) {
        self.entries().remove(name);
    }

    /// What an agent can do at the moment, as it said.
    pub fn profile(&self, name: &str) -> Option<Profile> {
        self.entries().get(name).map(|entry| profile(&entry.who, &entry.load))
    }

    /// All of them, by name.
    pub fn list(&self, now: UnixMillis) -> Vec<AgentEntry> {
        let mut drains = self.drains.all();
        let show = |(name, entry): (&String, &Entry)| AgentEntry {
            name: name.clone(),
            state: entry.state(drains.contains_key(name), now),
            version: entry.who.version.clone(),
            installation: entry.who.installation.clone(),
            labels: entry.who.labels.clone(),
            executors: entry.who.executors.clone(),
            presets: entry.who.presets.clone(),
            capacity: entry.who.capacity,
            load: entry.load.clone(),
            drained: drains.remove(name),
            last_contact: entry.last_contact,
        };
        self.entries().iter().map(show).collect()
    }
}

fn profile(who: &Announcement, load: &Load) -> Profile {
    Profile {
        labels: who.labels.clone(),
        presets: who.presets.clone(),
        executors: who.executors.clone(),
        away: load.away.keys().cloned().collect(),
        capacity: who.capacity,
    }
}

fn healthy() -> Load {
    Load { health: 100, ..Load::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(installation: &str) -> Announcement {
        Announcement { installation: installation.to_owned(), ..Announcement::default() }
    }

    fn at(seconds: u64) -> UnixMillis {
        UnixMillis::new(1_700_000_000_000 + seconds * 1000)
    }

    #[test]
    fn a_name_is_one_installations_until_it_is_silent() {
        let roster = Roster::default();
        let first = roster.register("a", who("one"), at(0)).expect("is free");
        assert!(matches!(roster.register("a", who("two"), at(10)), Err(SessionError::Taken { seconds: 10, .. })));
        // The same installation may come again at once: it was started anew.
        let again = roster.register("a", who("one"), at(11)).expect("is its own");
        assert_eq!(roster.check("a", &first.session, at(12)), Err(SessionError::Unknown));
        assert_eq!(roster.check("a", &again.session, at(12)), Ok(()));
        assert_eq!(roster.list(at(57))[0].state, AgentState::Online);
        assert_eq!(roster.list(at(58))[0].state, AgentState::Offline);
        roster.register("a", who("two"), at(58)).expect("the other one is gone");
    }

    #[test]
    fn its_state_follows_what_it_says() {
        let roster = Roster::default();
        roster.enter_local("here", who("one"), at(0));
        assert_eq!(roster.list(at(9999))[0].state, AgentState::Online, "this process is alive");
        let away = Load { unavailable: Some("no engine".into()), ..Load::default() };
        roster.heard("here", Some(&away), at(1));
        assert_eq!(roster.list(at(1))[0].state, AgentState::Unavailable);
        roster.heard("here", Some(&Load { draining: true, ..Load::default() }), at(2));
        assert_eq!(roster.list(at(2))[0].state, AgentState::Draining);
        assert_eq!(roster.check("here", "", at(3)), Err(SessionError::Unknown), "a local one has no session to use");
        // That it goes is more than that it gets nothing; that it is ill is less.
        let drain = Drain { reason: "a new kernel".to_owned(), since: at(3), quarantined: false };
        roster.drains().set([("here".to_owned(), drain.clone()), ("gone".to_owned(), drain.clone())].into());
        assert_eq!(roster.list(at(3))[0].state, AgentState::Draining);
        roster.heard("here", Some(&away), at(4));
        let list = roster.list(at(4));
        assert_eq!((list.len(), list[0].state, &list[0].drained), (1, AgentState::Drained, &Some(drain)));
        roster.drains().set(BTreeMap::new());
        assert_eq!(roster.list(at(4))[0].state, AgentState::Unavailable);
    }
}
