//! Settings that change while a process runs: its files are looked at every few seconds, and at once on SIGHUP. What is different is said
//! key by key; some of it holds at once, and the rest is said to need a restart. A file with problems changes nothing.
//!
//! The policy and the inventory are files of their own, and look after themselves.

use super::{Failure, systemd};
use crate::audit::{Audit, Event, Outcome};
use crate::config::operator_file::Mark;
use crate::config::{Config, LoadInput, Loaded, Setting, inspect};
use crate::job::Problems;
use crate::server::LiveLimits;
use crate::supervise::{self, spawn};
use crate::telemetry::{self, Component, Health, State};
use serde_json::Value;
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

/// What a process began with: its settings, and how the files were when they were read. A change that comes before anybody looks after
/// them is seen all the same.
pub(super) struct Began {
    input: LoadInput,
    loaded: Loaded,
    marks: Marks,
}

impl Began {
    /// Reads them. Errors: they have problems.
    pub(super) fn read(input: LoadInput) -> Result<Self, Problems> {
        // Before the files: what changes while they are read is looked at again.
        let marks = marks(&input);
        let loaded = inspect(&input)?;
        Ok(Self { input, loaded, marks })
    }

    /// What is in force.
    pub(super) fn config(&self) -> Config {
        self.loaded.config.clone()
    }

    /// Whether there is anything to look after. Without a file SIGHUP ends the process, as a terminal that is closed wants it.
    fn is_watched(&self) -> bool {
        !self.loaded.files.is_empty() || systemd::is_here()
    }

    /// Keeps a SIGHUP that comes before somebody listens from ending the process. Errors: it cannot be listened to.
    pub(super) fn expect_signals(&self) -> Result<(), Failure> {
        if self.is_watched() { expect(SignalKind::hangup()) } else { Ok(()) }
    }
}

/// Keeps a SIGUSR1 from ending the process, from before the settings are read: who asks how it stands may be early. Errors: it cannot be
/// listened to.
pub(super) fn expect_state_signal() -> Result<(), Failure> {
    expect(SignalKind::user_defined1())
}

/// Who listens once has the process live through the signal, for good.
fn expect(kind: SignalKind) -> Result<(), Failure> {
    signal(kind).map(drop).map_err(|error| Failure::unavailable(format!("signals: {error}")))
}

/// Looks after the settings that the process began with, for as long as it runs. Errors: the signal cannot be listened to.
pub(super) fn watch(began: Began, health: Health, held: Held) -> Result<Option<JoinHandle<()>>, Failure> {
    if !began.is_watched() {
        return Ok(None);
    }
    let mut hup = signal(SignalKind::hangup()).map_err(|error| Failure::unavailable(format!("signals: {error}")))?;
    health.set(Component::Settings, State::Ok);
    let mut live = began;
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
            for change in tell(found, asked, &health, &held) {
                live.holds(&change);
            }
        }
    })))
}

/// Says what was found, and has those take force that can; these are what it answers.
fn tell(found: Found, asked: bool, health: &Health, held: &Held) -> Vec<Change> {
    let mut in_force = Vec::new();
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
            let (mut waiting, mut failed) = (Vec::new(), Vec::new());
            for change in changes {
                let Change { key, from, to } = &change;
                match change.is_live().then(|| apply(key, to, held)) {
                    Some(Ok(Applied::Holds)) => {
                        tracing::info!(key, %from, %to, "a setting has changed and holds from now on");
                        in_force.push(change);
                    }
                    Some(Ok(Applied::Overruled(by))) => {
                        tracing::warn!(key, %from, %to, by, "a setting has changed, and something else comes first");
                        in_force.push(change);
                    }
                    Some(Err(reason)) => {
                        tracing::error!(key, %from, %to, reason, "a setting has changed and cannot hold");
                        failed.push(format!("{key} ({reason})"));
                    }
                    None => {
                        tracing::warn!(key, %from, %to, "a setting has changed and holds after a restart");
                        waiting.push(change.key);
                    }
                }
            }
            let mut told = Vec::new();
            if !failed.is_empty() {
                told.push(format!("changed, and cannot be put in force: {}", failed.join(", ")));
            }
            if !waiting.is_empty() {
                told.push(format!("changed, and in force after a restart: {}", waiting.join(", ")));
            }
            let state = if told.is_empty() { State::Ok } else { State::Degraded(told.join("; ")) };
            health.set(Component::Settings, state);
        }
    }
    in_force
}

/// What came of a change that can hold at once.
enum Applied {
    Holds,
    /// By something that comes first, after a restart too.
    Overruled(&'static str),
}

fn apply(key: &str, to: &Value, held: &Held) -> Result<Applied, String> {
    if let Some(name) = key.strip_prefix("limits.") {
        // From a variable a number comes as text.
        let number = to.as_u64().or_else(|| to.as_str()?.trim().parse().ok()).ok_or("it is no number")?;
        let known = held.limits.as_ref().is_none_or(|limits| limits.set(name, number));
        return if known { Ok(Applied::Holds) } else { Err("it is no limit".to_owned()) };
    }
    match (key, to.as_str()) {
        ("telemetry.log_filter", _) if std::env::var_os("RUST_LOG").is_some_and(|said| !said.is_empty()) => {
            Ok(Applied::Overruled("RUST_LOG is set"))
        }
        ("telemetry.log_filter", Some(filter)) => telemetry::set_filter(filter).map(|()| Applied::Holds),
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

type Marks = Vec<(PathBuf, Option<Mark>)>;

impl Began {
    fn look(&mut self, asked: bool) -> Found {
        let now = marks(&self.input);
        if now == self.marks && !asked {
            return Found::Same;
        }
        self.marks = now;
        let looked = match self.lost() {
            Some(lost) => Err(lost),
            None => inspect(&self.input),
        };
        match looked {
            Err(problems) => {
                let keys: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
                Found::Refused { problems: problems.to_string().replace('\n', "; "), keys: keys.join(", ") }
            }
            Ok(loaded) => {
                self.loaded.files = loaded.files;
                Found::Changed(changes(&self.loaded.settings, &loaded.settings))
            }
        }
    }

    /// What is wrong when a file that had settings is empty or gone: nobody means the defaults by that. A file of `conf.d` may be taken away.
    fn lost(&self) -> Option<Problems> {
        let main = self.input.main_file();
        let mut problems = Problems::default();
        for file in &self.loaded.files {
            let path = file.display().to_string();
            match std::fs::read(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && *file == main => {
                    problems.add(path, "is gone", "put it back; to run without it, restart");
                }
                Ok(bytes) if bytes.trim_ascii().is_empty() => {
                    problems.add(
                        path,
                        "is empty, and had settings",
                        "put back what was in it; to run without, restart",
                    );
                }
                // What else is wrong with it is told by who reads it.
                Ok(_) | Err(_) => {}
            }
        }
        problems.or_value(()).err()
    }

    /// A change is in force from now on.
    fn holds(&mut self, change: &Change) {
        let same = |held: &&mut Setting| held.key == change.key;
        self.loaded.settings.iter_mut().filter(same).for_each(|held| held.value.clone_from(&change.to));
    }
}

fn marks(input: &LoadInput) -> Marks {
    input.watched().into_iter().map(|file| (file.clone(), Mark::at(&file))).collect()
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

    fn live(dir: &std::path::Path, text: &str) -> Began {
        let file = dir.join("config.yaml");
        std::fs::write(&file, text).expect("writes");
        let input = LoadInput { file: Some(file), env: BTreeMap::new(), flags: Vec::new(), host: HostFacts::read() };
        Began::read(input).expect("is good")
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
        let found = live.look(false);
        assert_eq!(keys(&found), ["agent.slots", "telemetry.log_filter"]);
        assert_eq!(
            keys(&live.look(true)),
            ["agent.slots", "telemetry.log_filter"],
            "nothing holds before it was put in force"
        );
        let Found::Changed(changes) = found else { panic!("{found:?}") };
        live.holds(&changes[1]);
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

    #[test]
    fn a_file_that_is_emptied_or_gone_is_no_word_for_the_defaults() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut live = live(dir.path(), "agent: {slots: 2}\n");
        let file = dir.path().join("config.yaml");
        let refused = |found: Found, what: &str| match found {
            Found::Refused { problems, keys } => {
                assert!(problems.contains(what) && keys.contains("config.yaml"), "{problems} {keys}");
            }
            other => panic!("{other:?}"),
        };
        std::fs::write(&file, " \n").expect("writes");
        refused(live.look(false), "is empty");
        std::fs::remove_file(&file).expect("removes");
        refused(live.look(false), "is gone");
        refused(live.look(true), "is gone");
        // It is still looked at: what comes back counts.
        std::fs::write(&file, "agent: {slots: 4}\n").expect("writes");
        assert_eq!(keys(&live.look(false)), ["agent.slots"]);
        // Somebody who comments everything out means it.
        std::fs::write(&file, "# agent: {slots: 4}\n").expect("writes");
        assert_eq!(keys(&live.look(false)), ["agent.slots"]);
    }

    #[test]
    fn a_folder_of_files_may_lose_some_and_a_change_is_seen_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let more = dir.path().join("conf.d");
        std::fs::create_dir(&more).expect("is made");
        std::fs::write(more.join("10.yaml"), "agent: {slots: 5}\n").expect("writes");
        let mut live = live(dir.path(), "agent: {grace: 5s}\n");
        assert!(matches!(live.look(false), Found::Same), "nobody has touched them since they were read");
        std::fs::write(more.join("20.yaml"), "agent: {slots: 6}\n").expect("writes");
        assert_eq!(keys(&live.look(false)), ["agent.slots"]);
        assert!(matches!(live.look(false), Found::Same));
        for name in ["10.yaml", "20.yaml"] {
            std::fs::remove_file(more.join(name)).expect("removes");
        }
        assert_eq!(keys(&live.look(false)), ["agent.slots"]);
        // The usual file is looked at whether it is there or not.
        let usual = LoadInput { file: None, ..live.input.clone() };
        assert!(usual.watched().contains(&PathBuf::from(crate::config::DEFAULT_FILE)));
    }
}
