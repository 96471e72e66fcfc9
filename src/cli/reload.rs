//! Settings that change while a process runs: its files are looked at every few seconds, and at once on SIGHUP. What is different is said
//! key by key; some of it holds at once, and the rest is said to need a restart. A file with problems changes nothing.
//!
//! The policy and the inventory are files of their own, and look after themselves.

use super::{Failure, systemd};
use crate::audit::{Audit, Event, Outcome};
use crate::config::operator_file::Mark;
use crate::config::{LoadInput, Loaded, Setting, inspect};
use crate::server::LiveLimits;
use crate::supervise::{self, spawn};
use crate::telemetry::{self, Component, Health, State};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// What holds as soon as it is read.
const LIVE: [&str; 6] = [
    "telemetry.log_filter",
    "limits.rate",
    "limits.burst",
    "limits.jobs",
    "limits.refused_rate",
    "limits.refused_burst",
];

/// What changes are told to.
pub(super) struct Held {
    pub(super) audit: Audit,
    /// Of the server in this process.
    pub(super) limits: Option<LiveLimits>,
}

/// A setting that is another one in the files than before.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    key: String,
    from: Value,
    to: Value,
}

impl Change {
    fn is_live(&self) -> bool {
        LIVE.contains(&self.key.as_str())
    }
}

/// Looks after the settings that `input` leads to, for as long as the process runs. Errors: the signal cannot be listened to.
pub(super) fn watch(input: LoadInput, health: Health, held: Held) -> Result<Option<JoinHandle<()>>, Failure> {
    let loaded = inspect(&input).map_err(|problems| super::bad_settings(&problems))?;
    // Without a file SIGHUP ends the process, as a terminal that is closed wants it.
    if loaded.files.is_empty() && !systemd::is_here() {
        return Ok(None);
    }
    let mut hup = signal(SignalKind::hangup()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    health.set(Component::Settings, State::Ok);
    let mut live = Live { marks: marks(&loaded.files), input, loaded };
    Ok(Some(spawn("settings", async move {
        loop {
            let asked = tokio::select! {
                _ = hup.recv() => true,
                () = tokio::time::sleep(PAUSE) => false,
            };
            let looked = supervise::blocking(move || {
                let found = live.look(asked);
                (live, found)
            });
            let found;
            (live, found) = looked.await;
            tell(found, asked, &health, &held);
        }
    })))
}

fn tell(found: Found, asked: bool, health: &Health, held: &Held) {
    match found {
        Found::Same => {}
        Found::Refused { problems, keys } => {
            tracing::error!(%problems, "the settings have problems; those that were read before hold");
            // Values are for who reads the log of the process: an address may have a login in it, and health is open to everybody.
            held.audit.note(Event::own("settings.reload", Outcome::Rejected, Some(keys.clone())));
            let told = format!("what was read before holds; the log says what is wrong with {keys}");
            health.set(Component::Settings, State::Degraded(told));
        }
        Found::Changed(changes) => {
            if changes.is_empty() && asked {
                tracing::info!("the settings are as they were");
            }
            if !changes.is_empty() {
                let keys: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
                held.audit.note(Event::own("settings.reload", Outcome::Done, Some(keys.join(", "))));
            }
            let mut waiting = Vec::new();
            for change in &changes {
                let Change { key, from, to } = change;
                match change.is_live().then(|| apply(key, to, held)) {
                    Some(Ok(())) => tracing::info!(key, %from, %to, "a setting has changed and holds from now on"),
                    Some(Err(reason)) => {
                        tracing::warn!(key, %from, %to, reason, "a setting has changed and cannot hold")
                    }
                    None => {
                        tracing::warn!(key, %from, %to, "a setting has changed and holds after a restart");
                        waiting.push(key.as_str());
                    }
                }
            }
            let state = match &waiting[..] {
                [] => State::Ok,
                keys => State::Degraded(format!("changed, and in force after a restart: {}", keys.join(", "))),
            };
            health.set(Component::Settings, state);
        }
    }
}

fn apply(key: &str, to: &Value, held: &Held) -> Result<(), String> {
    if let Some(name) = key.strip_prefix("limits.") {
        // From a variable a number comes as text.
        let number = to.as_u64().or_else(|| to.as_str()?.trim().parse().ok()).ok_or("it is no number")?;
        let known = held.limits.as_ref().is_none_or(|limits| limits.set(name, number));
        return if known { Ok(()) } else { Err("it is no limit".to_owned()) };
    }
    match (key, to.as_str()) {
        ("telemetry.log_filter", _) if std::env::var_os("RUST_LOG").is_some_and(|said| !said.is_empty()) => {
            Err("RUST_LOG is set, and comes first".to_owned())
        }
        ("telemetry.log_filter", Some(filter)) => telemetry::set_filter(filter),
        _ => Err("it is no text".to_owned()),
    }
}

/// What a look found.
#[derive(Debug)]
enum Found {
    /// Nobody has touched them.
    Same,
    /// Against what is in force; none, when all of it is.
    Changed(Vec<Change>),
    /// What is wrong, and with which keys.
    Refused { problems: String, keys: String },
}

struct Live {
    input: LoadInput,
    /// What was in force at the start, but for what has been applied since.
    loaded: Loaded,
    marks: Vec<(PathBuf, Option<Mark>)>,
}

impl Live {
    fn look(&mut self, asked: bool) -> Found {
        let now = marks(&files(&self.input, &self.loaded));
        if now == self.marks && !asked {
            return Found::Same;
        }
        self.marks = now;
        match inspect(&self.input) {
            Err(problems) => {
                let keys: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
                Found::Refused { problems: problems.to_string().replace('\n', "; "), keys: keys.join(", ") }
            }
            Ok(loaded) => {
                let changes = changes(&self.loaded.settings, &loaded.settings);
                for change in changes.iter().filter(|change| change.is_live()) {
                    for held in self.loaded.settings.iter_mut().filter(|held| held.key == change.key) {
                        held.value.clone_from(&change.to);
                    }
                }
                self.loaded.files = loaded.files;
                Found::Changed(changes)
            }
        }
    }
}

/// Those that were read, and the folders that more of them may come into.
fn files(input: &LoadInput, loaded: &Loaded) -> Vec<PathBuf> {
    let named = input.file.iter().cloned();
    let all: BTreeSet<PathBuf> = loaded.files.iter().cloned().chain(named).collect();
    let folders: BTreeSet<PathBuf> = all.iter().filter_map(|file| Some(file.parent()?.join("conf.d"))).collect();
    all.into_iter().chain(folders).collect()
}

fn marks(files: &[PathBuf]) -> Vec<(PathBuf, Option<Mark>)> {
    files.iter().map(|file| (file.clone(), Mark::at(file))).collect()
}

/// Keys that are not the same, in the order of the example file. One that is in only one of the two (as of a map) is `null` in the other.
fn changes(before: &[Setting], after: &[Setting]) -> Vec<Change> {
    let value = |all: &[Setting], key: &str| all.iter().find(|one| one.key == key).map(|one| one.value.clone());
    let gone = before.iter().filter(|one| value(after, &one.key).is_none());
    let keys = after.iter().chain(gone).map(|one| one.key.clone());
    keys.filter_map(|key| {
        let (from, to) = (value(before, &key), value(after, &key));
        (from != to).then(|| Change { key, from: from.unwrap_or_default(), to: to.unwrap_or_default() })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostFacts;
    use std::collections::BTreeMap;

    fn live(dir: &std::path::Path, text: &str) -> Live {
        let file = dir.join("config.yaml");
        std::fs::write(&file, text).expect("writes");
        let input = LoadInput { file: Some(file), env: BTreeMap::new(), flags: Vec::new(), host: HostFacts::read() };
        let loaded = inspect(&input).expect("is good");
        Live { marks: marks(&files(&input, &loaded)), input, loaded }
    }

    fn keys(found: &Found) -> Vec<&str> {
        match found {
            Found::Changed(changes) => changes.iter().map(|change| change.key.as_str()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_different_is_told_by_key_until_it_is_in_force_or_taken_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut live = live(dir.path(), "agent: {slots: 2}\n");
        let file = dir.path().join("config.yaml");
        let write = |text: &str| std::fs::write(&file, text).expect("writes");
        assert!(matches!(live.look(false), Found::Same));
        write("agent: {slots: 3}\ntelemetry: {log_filter: debug}\n");
        assert_eq!(keys(&live.look(false)), ["agent.slots", "telemetry.log_filter"]);
        // What waits for a restart is told to whoever asks; what holds is not different any more.
        assert!(matches!(live.look(false), Found::Same));
        assert_eq!(keys(&live.look(true)), ["agent.slots"]);
        write("agent: {slots: 2}\ntelemetry: {log_filter: debug}\n# the same again\n");
        assert!(keys(&live.look(true)).is_empty());
    }

    #[test]
    fn a_bad_file_changes_nothing_and_says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut live = live(dir.path(), "agent: {slots: 2}\n");
        let file = dir.path().join("config.yaml");
        let bad = "agent: {slots: many}\ndocker: {host: 'htp://u:hunter2@h:1'}\ntelemetry: {log_filter: debug}\n";
        std::fs::write(&file, bad).expect("writes");
        match live.look(false) {
            Found::Refused { problems, keys } => {
                assert!(problems.contains("agent.slots") && problems.contains("htp:"), "{problems}");
                assert!(
                    keys.contains("agent.slots") && keys.contains("docker.host") && !keys.contains("hunter2"),
                    "{keys}"
                );
            }
            other => panic!("{other:?}"),
        }
        let held = live.loaded.settings.iter().find(|one| one.key == "telemetry.log_filter").expect("is there");
        assert_ne!(held.value, "debug");
    }

    #[test]
    fn a_file_beside_the_file_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut live = live(dir.path(), "agent: {slots: 2}\n");
        std::fs::create_dir(dir.path().join("conf.d")).expect("is made");
        std::fs::write(dir.path().join("conf.d/10.yaml"), "agent: {slots: 5}\n").expect("writes");
        assert_eq!(keys(&live.look(false)), ["agent.slots"]);
    }
}
