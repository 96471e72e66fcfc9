//! The one checker. What it takes for granted about a fault is said by [`Allowed`]: which ends that are not the job's own the fault may
//! bring. Everything else is the same for all.

use super::work::{Submitted, Work};
use super::world::World;
use crate::stage::docker;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a fault may do to a job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Allowed {
    /// Causes with which a try may end that is not the job's own end. It may be followed by another one.
    pub(super) causes: &'static [&'static str],
    /// The answer to a claim may have died with the agent that asked: nobody knew of the attempt, and its lease ran out.
    pub(super) claims: bool,
}

/// What is wrong, a sentence for each.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Jobs without exactly one final record, or with one that is not true.
    pub(super) lost: Vec<String>,
    /// Attempts that nobody can explain, or that ran although they were given back.
    pub(super) doubled: Vec<String>,
    /// What is still there.
    pub(super) orphans: Vec<String>,
    /// Logs that are not what the job wrote.
    pub(super) gaps: Vec<String>,
}

impl World {
    /// Waits until nothing happens any more, then judges what was submitted since the last time.
    pub(super) async fn judge(&mut self, allowed: Allowed) -> Findings {
        let mut findings = Findings::default();
        let end = Instant::now() + self.rest;
        let mut jobs = Vec::new();
        for Submitted { id, work } in std::mem::take(&mut self.submitted) {
            let job = loop {
                let job = self.job(&id).await;
                if !job["ending"].is_null() || Instant::now() > end {
                    break job;
                }
                tokio::time::sleep(LOOK).await;
            };
            jobs.push((id, work, job));
        }
        loop {
            findings.orphans = self.engine.leftovers();
            findings.orphans.extend(self.left_on_host());
            if findings.orphans.is_empty() || Instant::now() > end {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        for (id, work, earlier) in &jobs {
            // Again: what comes late must not change an end.
            let job = self.job(id).await;
            if job["ending"] != earlier["ending"] || job["attempt"] != earlier["attempt"] {
                findings.lost.push(format!("{id}: its end changed from {} to {}", earlier["ending"], job["ending"]));
            }
            findings.job(self, id, work, &job, allowed).await;
        }
        self.judged.extend(jobs.into_iter().map(|(id, ..)| id));
        let now = self.get("/v1/stats/daily?days=1").await;
        let there: u64 = now["now"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        if there != self.judged.len() as u64 {
            findings.lost.push(format!("{} jobs were submitted, {there} are there", self.judged.len()));
        }
        findings
    }
}

impl Findings {
    async fn job(&mut self, world: &World, id: &str, work: &Work, job: &Value, allowed: Allowed) {
        let history = job["history"].as_array().cloned().unwrap_or_default();
        let events = |phase: &str, attempt: u64| {
            // A server that starts notes that it gave a lease a full term: nothing was entered by that.
            let entered = history.iter().filter(|event| event["reason"] != "lease_extended");
            entered.filter(|event| event["phase"] == phase && event["attempt"] == attempt).count()
        };
        let last = job["attempt"].as_u64().unwrap_or_default();
        let ends: usize = (0..=last).map(|attempt| events("ended", attempt)).sum();
        if job["phase"] != "ended" || ends != 1 {
            return self.lost.push(format!("{id} is {}, with {ends} ends: {history:?}", job["phase"]));
        }
        let ending = &job["ending"];
        let cause = ending["cause"]["code"].as_str().unwrap_or_default();
        let own = cause == "exit_code" && ending["process_exit_code"] == work.code;
        if !own && !allowed.causes.contains(&cause) {
            self.lost.push(format!("{id} ended with {ending}, attempt {last}: {history:?}"));
        }
        let past = job["past_tries"].as_array().cloned().unwrap_or_default();
        for attempt in 1..=last {
            let begun = (events("claimed", attempt), events("running", attempt));
            if begun.0 != 1 || begun.1 > 1 {
                self.doubled.push(format!("{id}: attempt {attempt} began {begun:?} times: {history:?}"));
            }
            let mut written = Vec::new();
            for stream in ["stdout", "stderr"] {
                written.push(world.output(id, attempt, stream).await);
            }
            let found = Attempt { id, attempt, wanted: work.output(attempt), written };
            let tried = past.iter().find(|one| one["attempt"] == attempt);
            match tried {
                _ if attempt == last => self.last(&found, job, own),
                // Nobody heard of it, so nothing of it can have begun.
                Some(tried)
                    if allowed.claims
                        && tried["cause"]["code"] == "agent_lost"
                        && events("preparing", attempt) == 0
                        && found.written.iter().all(Vec::is_empty) => {}
                // The way to its host went each time that it was to be begun.
                Some(tried)
                    if tried["cause"]["code"] == "host_unreachable"
                        && events("running", attempt) == 0
                        && found.written.iter().all(Vec::is_empty) => {}
                Some(tried) => self.tried(&found, tried, allowed),
                None if found.written.iter().any(|bytes| !bytes.is_empty()) => {
                    self.doubled.push(format!("{id}: attempt {attempt} was given back, and has written: {history:?}"));
                }
                None if events("queued", attempt) != 1 => {
                    self.doubled.push(format!("{id}: nobody says why attempt {attempt} was not the last: {history:?}"));
                }
                None => {}
            }
        }
    }

    /// The attempt with which the job ended.
    fn last(&mut self, found: &Attempt<'_>, job: &Value, own: bool) {
        let log = &job["log"];
        if log["complete"] != true {
            let told = job["ending"]["message"].as_str().is_some_and(|text| !text.is_empty());
            if own || !told {
                self.gaps.push(format!("{}: an incomplete log, and nobody says why: {}", found.name(), job["ending"]));
            }
            return self.gaps.extend(found.no_beginning());
        }
        // One that never began wrote nothing, and that is complete.
        let nothing = !own && found.written.iter().all(Vec::is_empty);
        if !nothing {
            self.gaps.extend(found.not_whole());
        }
        for (stream, bytes) in ["stdout", "stderr"].iter().zip(&found.written) {
            let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            if !nothing && (log[stream]["bytes"] != bytes.len() || log[stream]["sha256"] != sum.as_str()) {
                self.gaps.push(format!(
                    "{}: {stream} is {} bytes, {sum}, and not {}",
                    found.name(),
                    bytes.len(),
                    log[stream]
                ));
            }
        }
    }

    /// One that another one followed.
    fn tried(&mut self, found: &Attempt<'_>, tried: &Value, allowed: Allowed) {
        let cause = tried["cause"]["code"].as_str().unwrap_or_default();
        if !allowed.causes.contains(&cause) || tried["message"].as_str().is_none_or(str::is_empty) {
            self.doubled.push(format!("{} was followed by another one: {}", found.name(), tried["cause"]));
        }
        self.gaps.extend(found.no_beginning());
    }

    /// What an agent that has ended keeps must be nothing.
    pub(super) fn agent_at_rest(&mut self, data: &Path) {
        let journal = data.join("journal.db");
        let entries = Connection::open_with_flags(&journal, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|db| db.query_row("SELECT count(*) FROM entries", [], |row| row.get::<_, i64>(0)));
        if entries != Ok(0) {
            self.orphans.push(format!("entries in {}: {entries:?}", journal.display()));
        }
        for dir in std::fs::read_dir(data.join("spool")).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                self.orphans.push(format!("output that nobody fetches: {}", file.path().display()));
            }
        }
    }
}

/// What an attempt has written, and what it should have.
struct Attempt<'a> {
    id: &'a str,
    attempt: u64,
    wanted: [String; 2],
    written: Vec<Vec<u8>>,
}

impl Attempt<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.id, self.attempt)
    }

    fn not_whole(&self) -> Option<String> {
        let same = self.wanted.iter().zip(&self.written).all(|(wanted, written)| wanted.as_bytes() == written);
        (!same).then(|| self.difference("is not what it wrote"))
    }

    fn no_beginning(&self) -> Option<String> {
        let starts =
            self.wanted.iter().zip(&self.written).all(|(wanted, written)| wanted.as_bytes().starts_with(written));
        (!starts).then(|| self.difference("is not the beginning of what it wrote"))
    }

    fn difference(&self, what: &str) -> String {
        let mut text = format!("{}: its log {what}", self.name());
        for ((name, wanted), written) in ["stdout", "stderr"].iter().zip(&self.wanted).zip(&self.written) {
            let same = wanted.bytes().zip(written).take_while(|(wanted, written)| wanted == *written).count();
            let there = String::from_utf8_lossy(&written[same..written.len().min(same + 60)]).into_owned();
            text += &format!(
                "; {name}: {} bytes of {}, the same up to {same}, then {there:?}",
                written.len(),
                wanted.len()
            );
        }
        text
    }
}

/// A checker is worth what it notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_notices_each_kind_of_wrong() {
    let none = Allowed::default();
    let Some(mut world) = World::new(&["one"]).await else { return };
    let counts = |Findings { lost, doubled, orphans, gaps }: Findings| {
        eprintln!("{lost:?} {doubled:?} {orphans:?} {gaps:?}");
        [lost.len(), doubled.len(), orphans.len(), gaps.len()]
    };
    world.submit(Work::short()).await;
    assert_eq!(counts(world.judge(none).await), [0; 4]);
    // It wrote something else than it should have; and it was to end with another code.
    for (other, wanted) in [(Work::flood(), [0, 0, 0, 1]), (Work::short().code(9), [1, 0, 0, 0])] {
        world.submit(Work::short()).await;
        world.submitted[0].work = other;
        assert_eq!(counts(world.judge(none).await), wanted);
    }
    // It ran twice, and nothing is known that could be the reason.
    let job = world.submit(Work::slow(1)).await;
    world.wrote(&job, "line 5 ").await;
    for shim in world.engine.shims() {
        let killed = std::process::Command::new("kill").args(["-KILL", &shim.to_string()]).status();
        assert!(killed.expect("kill runs").success());
    }
    assert_eq!(counts(world.judge(none).await), [0, 1, 0, 0]);
    // Nobody asked for this one.
    world.submit(Work::short()).await;
    world.judged.push(world.submitted.remove(0).id);
    world.judged.push("one that never came".to_owned());
    assert_eq!(counts(world.judge(none).await), [1, 0, 0, 0]);
    // Nobody needs this container.
    world.rest = Duration::from_secs(1);
    docker(&world.engine.host(), &["create", "--network", "none", "jobcell/bash:1", "true"]);
    assert_eq!(counts(world.judge(none).await), [1, 0, 1, 0]);
}
