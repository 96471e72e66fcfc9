//! What this installation has begun on hosts: a line for each job, on the disk before its host is told what to do, and one more when nothing of it is
//! left there. So the process that comes after one that died knows where to look.
//!
//! All that wait at a time are written together and synced once. Must never be asked what became of a job; the host is. Must never call a
//! record written that a loss of power could take.

use super::resident::is_program;
use crate::job::{AttemptId, JobSpec, Source, SpecRules, Target};
use crate::protocol::wire::Fact;
use crate::supervise;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Where a job was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The try.
    attempt: String,
    /// Where, as in a job's spec.
    target: Value,
    /// Where that led to.
    reached: String,
    /// The program of the warden that it was given to; none in plain mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warden: Option<String>,
    /// What it is held to there, and what not, for whoever takes it over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Fact>,
}

impl Record {
    /// That of a try of a job with this target.
    pub(super) fn new(attempt: AttemptId, target: &Target, reached: &str, warden: Option<&str>) -> Self {
        let warden = warden.map(str::to_owned);
        let (attempt, target, reached) = (attempt.to_string(), json!(target), reached.to_owned());
        Self { attempt, target, reached, warden, limits: Vec::new() }
    }

    /// The same of a job with these limits.
    pub(super) fn held(self, limits: Vec<Fact>) -> Self {
        Self { limits, ..self }
    }

    /// What it is held to there, and what not.
    pub(super) fn limits(&self) -> &[Fact] {
        &self.limits
    }

    /// The program of the warden that it was given to; none in plain mode.
    pub(super) fn warden(&self) -> Option<&str> {
        // It becomes an argument.
        self.warden.as_deref().filter(|program| is_program(program))
    }

    /// Where that led to.
    pub(super) fn reached(&self) -> &str {
        &self.reached
    }

    /// The try.
    pub(super) fn attempt(&self) -> Option<AttemptId> {
        self.attempt.parse().ok()
    }

    /// Where.
    pub(super) fn target(&self) -> Option<Target> {
        let document = json!({"target": self.target, "command": ["true"]});
        match JobSpec::check(&document, &SpecRules::default()).ok()?.source() {
            Source::Target(target) => Some(target.clone()),
            _ => None,
        }
    }
}

/// The file of them.
const FILE: &str = "records";
/// What it is called until all of it is written.
const HALF: &str = "records.half";
/// What is kept of one with lines that cannot be read.
const DAMAGED: &str = "records.damaged";
/// A file of so many bytes is written anew, with what is still true, when that is less than a quarter of it.
const LONG: u64 = 1 << 20;

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    own: String,
    /// None: nothing of it is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
}

impl Line {
    fn encode(own: &str, record: Option<&Record>) -> Vec<u8> {
        let mut line = json!(Self { own: own.to_owned(), record: record.cloned() }).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// All of them. Clones are the same ones.
#[derive(Clone)]
pub(super) struct Records(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: BTreeMap<String, Record>,
    /// Lines that are not in the file yet, and who waits for them.
    waiting: Vec<(Vec<u8>, Option<Waiter>)>,
    /// Who writes them has the file meanwhile.
    file: Option<Writing>,
    /// Somebody writes.
    busy: bool,
}

struct Waiter {
    own: String,
    tell: oneshot::Sender<io::Result<()>>,
}

/// The file, as far as it is good.
struct Writing {
    file: File,
    bytes: u64,
    /// Nobody knows how it ends: it is written anew before anything is added.
    torn: bool,
}

impl Records {
    /// Those below `dir`, which is made. Lines that cannot be read are told of, kept beside and passed over. Errors: it cannot be read or
    /// written.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let (known, damaged) = read(&text);
        if damaged > 0 {
            std::fs::copy(&path, dir.join(DAMAGED))?;
            let file = dir.join(DAMAGED);
            tracing::error!(file = %file.display(), lines = damaged, "what was begun on hosts cannot be read in full; look for the rest by hand");
        }
        let file = write_anew(dir, &known)?;
        let state = State { known, file: Some(file), ..State::default() };
        Ok(Self(Arc::new(Shared { dir: dir.to_owned(), state: Mutex::new(state) })))
    }

    /// Writes one, for good: what runs on a host outlives a loss of power here. Errors: it is not written. May be dropped; then it may be
    /// written all the same.
    pub(super) async fn put(&self, own: &str, record: Record) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let line = Line::encode(own, Some(&record));
        {
            let mut state = self.0.state();
            state.known.insert(own.to_owned(), record);
            state.waiting.push((line, Some(Waiter { own: own.to_owned(), tell })));
        }
        self.0.begin_to_write();
        told.await.unwrap_or_else(|_| Err(io::Error::other("nobody writes them any more")))
    }

    /// Removes one. A loss of power may bring it back; then its host is asked again.
    pub(super) fn remove(&self, own: &str) {
        {
            let mut state = self.0.state();
            if state.known.remove(own).is_none() {
                return;
            }
            state.waiting.push((Line::encode(own, None), None));
        }
        self.0.begin_to_write();
    }

    /// One of them.
    pub(super) fn get(&self, own: &str) -> Option<Record> {
        self.0.state().known.get(own).cloned()
    }

    /// All.
    pub(super) fn all(&self) -> Vec<(String, Record)> {
        self.0.state().known.iter().map(|(own, record)| (own.clone(), record.clone())).collect()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what waits written, unless somebody does already.
    fn begin_to_write(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.state().busy, true) {
            let own = Arc::clone(self);
            drop(supervise::spawn("ssh records", supervise::blocking(move || own.write_all())));
        }
    }

    /// Writes until nothing waits.
    fn write_all(&self) {
        loop {
            let (batch, writing, anew) = {
                let mut state = self.state();
                if state.waiting.is_empty() {
                    state.busy = false;
                    return;
                }
                let batch = std::mem::take(&mut state.waiting);
                let writing = state.file.take();
                let live: u64 = state.known.len() as u64 * 512;
                let anew = writing.as_ref().is_none_or(|one| one.torn || (one.bytes > LONG && one.bytes / 4 > live));
                (batch, writing, anew.then(|| state.known.clone()))
            };
            let written = match (anew, writing) {
                (Some(known), before) => write_anew(&self.dir, &known).map_err(|error| (before, error)),
                (None, Some(writing)) => writing.append(&batch),
                (None, None) => Err((None, io::Error::other("there is no file"))),
            };
            let mut state = self.state();
            match written {
                Ok(file) => {
                    state.file = Some(file);
                    drop(state);
                    batch.into_iter().filter_map(|(_, waiter)| waiter).for_each(|one| drop(one.tell.send(Ok(()))));
                }
                Err((file, error)) => {
                    state.file = file.map(|file| Writing { torn: true, ..file });
                    let told: Vec<Waiter> = batch.into_iter().filter_map(|(_, waiter)| waiter).collect();
                    told.iter().for_each(|one| drop(state.known.remove(&one.own)));
                    drop(state);
                    tracing::warn!(%error, "what is begun on hosts cannot be written");
                    let again = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
                    told.into_iter().for_each(|one| drop(one.tell.send(Err(again(&error)))));
                }
            }
        }
    }
}

impl Writing {
    /// Adds lines; synced, if somebody waits for one of them. Errors: this, of which nobody knows how it ends now, and why.
    fn append(mut self, batch: &[(Vec<u8>, Option<Waiter>)]) -> Result<Self, (Option<Self>, io::Error)> {
        let lines: Vec<u8> = batch.iter().flat_map(|(line, _)| line).copied().collect();
        let waited_for = batch.iter().any(|(_, waiter)| waiter.is_some());
        let written =
            self.file.write_all(&lines).and_then(|()| if waited_for { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.bytes += lines.len() as u64;
                Ok(self)
            }
            Err(error) => Err((Some(self), error)),
        }
    }
}

/// What a file says, and how many of its lines cannot be read. A last one without its end was not acknowledged.
fn read(text: &[u8]) -> (BTreeMap<String, Record>, usize) {
    let (mut known, mut damaged) = (BTreeMap::new(), 0);
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line { own, record: Some(record) }) => drop(known.insert(own, record)),
            Ok(Line { own, record: None }) => drop(known.remove(&own)),
            Err(_) => damaged += 1,
        }
    }
    (known, damaged)
}

/// A new file with these, in the place of the one before.
fn write_anew(dir: &Path, known: &BTreeMap<String, Record>) -> io::Result<Writing> {
    let text: Vec<u8> = known.iter().flat_map(|(own, record)| Line::encode(own, Some(record))).collect();
    let half = dir.join(HALF);
    let mut file = File::create(&half)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(half, dir.join(FILE))?;
    File::open(dir)?.sync_all()?;
    Ok(Writing { file, bytes: text.len() as u64, torn: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(attempt: &str) -> Record {
        Record {
            attempt: attempt.to_owned(),
            target: json!({"host": "web"}),
            reached: "a@b:22".to_owned(),
            warden: None,
            limits: Vec::new(),
        }
    }

    fn names(records: &Records) -> Vec<String> {
        records.all().into_iter().map(|(own, _)| own).collect()
    }

    #[tokio::test]
    async fn what_was_written_is_there_for_the_next_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path()).expect("opens");
        let puts = (0..50).map(|n| {
            let records = records.clone();
            async move { records.put(&format!("{n:02}"), record("x")).await }
        });
        futures_util::future::join_all(puts).await.into_iter().for_each(|put| put.expect("is written"));
        // Written for good: another process would find all, whatever becomes of this one.
        assert_eq!(names(&Records::open(dir.path()).expect("opens")).len(), 50);
        let records = Records::open(dir.path()).expect("opens");
        (0..49).for_each(|n| records.remove(&format!("{n:02}")));
        // Behind them, in the file's order.
        records.put("last", record("y")).await.expect("is written");
        assert_eq!(names(&Records::open(dir.path()).expect("opens")), ["49", "last"]);
        assert_eq!(records.get("last"), Some(record("y")));
    }

    #[tokio::test]
    async fn a_torn_line_is_none_and_a_damaged_file_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let good = Line::encode("a", Some(&record("x")));
        let torn = [good.as_slice(), b"{\"own\":\"b\",\"rec"].concat();
        std::fs::write(dir.path().join(FILE), &torn).expect("writes");
        let records = Records::open(dir.path()).expect("opens");
        records.put("c", record("z")).await.expect("is written");
        assert_eq!(names(&Records::open(dir.path()).expect("opens")), ["a", "c"]);
        assert!(!dir.path().join(DAMAGED).exists(), "nobody was told that `b` is written");

        let damaged = [b"{\n".as_slice(), &good].concat();
        std::fs::write(dir.path().join(FILE), &damaged).expect("writes");
        assert_eq!(names(&Records::open(dir.path()).expect("opens")), ["a"]);
        assert_eq!(std::fs::read(dir.path().join(DAMAGED)).expect("is kept"), damaged);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_known_and_the_next_may_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path()).expect("opens");
        records.put("a", record("x")).await.expect("is written");
        // A file that takes nothing, as on a full disk.
        let full = File::options().write(true).open("/dev/full").expect("is there");
        records.0.state().file = Some(Writing { file: full, bytes: 0, torn: false });
        assert!(records.put("b", record("x")).await.is_err());
        assert_eq!(names(&records), ["a"]);
        records.put("c", record("x")).await.expect("is written");
        assert_eq!(names(&Records::open(dir.path()).expect("opens")), ["a", "c"]);
    }

    #[tokio::test]
    async fn a_long_file_of_what_is_gone_is_written_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path()).expect("opens");
        records.put("stays", record("x")).await.expect("is written");
        if let Some(file) = &mut records.0.state().file {
            file.bytes = LONG + 1;
        }
        records.put("more", record("x")).await.expect("is written");
        let bytes = records.0.state().file.as_ref().map(|file| file.bytes);
        assert_eq!(bytes, Some(std::fs::metadata(dir.path().join(FILE)).expect("is there").len()));
        assert_eq!(names(&Records::open(dir.path()).expect("opens")), ["more", "stays"]);
    }
}
