//! What this installation has begun on hosts: a file for each job, written before its host hears of it and removed when nothing of it is
//! left there. So the process that comes after one that died knows where to look.
//!
//! Must never be asked what became of a job; the host is.

use super::resident::is_program;
use crate::job::{AttemptId, JobSpec, Source, SpecRules, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
}

impl Record {
    /// That of a try of a job with this target.
    pub(super) fn new(attempt: AttemptId, target: &Target, reached: &str, warden: Option<&str>) -> Self {
        let warden = warden.map(str::to_owned);
        Self { attempt: attempt.to_string(), target: json!(target), reached: reached.to_owned(), warden }
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

/// What one is called until all of it is written.
const HALF: &str = "half";

/// The folder of them.
#[derive(Debug, Clone)]
pub(super) struct Records(PathBuf);

impl Records {
    /// Those below `dir`, which is made. Errors: it cannot be.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)?.flatten() {
            // A process that died while it wrote one had told no host.
            if entry.path().extension().is_some_and(|extension| extension == HALF) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self(dir.to_owned()))
    }

    fn path(&self, own: &str) -> PathBuf {
        self.0.join(format!("{own}.json"))
    }

    /// Writes one, for good: what runs on a host outlives a loss of power here. Errors: it is not written.
    pub(super) fn put(&self, own: &str, record: &Record) -> io::Result<()> {
        let (path, half) = (self.path(own), self.0.join(format!("{own}.{HALF}")));
        let mut file = File::create(&half)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        std::fs::rename(half, path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Removes one.
    pub(super) fn remove(&self, own: &str) {
        if let Err(error) = std::fs::remove_file(self.path(own))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(cell = own, %error, "what is known of it could not be removed; its host is asked again");
        }
    }

    /// One of them.
    pub(super) fn get(&self, own: &str) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.path(own)).ok()?).ok()
    }

    /// All. What cannot be read is told of and passed over. Errors: the folder cannot be read.
    pub(super) fn all(&self) -> io::Result<Vec<(String, Record)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match self.get(&name) {
                Some(record) => all.push((name, record)),
                None => {
                    tracing::error!(file = %path.display(), "what was begun there cannot be read; look for it by hand")
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_record_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("a-1-0.half"), "{").expect("writes");
        std::fs::write(dir.path().join("b-1-0.json"), "{").expect("writes");
        let records = Records::open(dir.path()).expect("opens");
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("reads").flatten().map(|one| one.file_name()).collect();
        assert_eq!(left, ["b-1-0.json"], "what is damaged is not ours to remove");
        assert!(records.all().expect("reads").is_empty());
    }
}
