//! Copies of an installation's data: made while it is in use, looked at, and put back.
//!
//! Owns which files belong to a copy and in which order they are taken, so that what one refers to is in it: first the queue, at one moment;
//! then the index of contents, the contents and the output, which only get more, but for what has reached the end of its time. Never has the
//! agent's journal, since no cell outlives a host, nor anything that is open only to this host (keys that seal secrets, the first key).
//!
//! ```text
//! queue.db  blobs/index.db  blobs/content/…  logs/…  owner  keys.json  agents.json  drains.json
//! backup.json     when, by what, how many jobs
//! SHA256SUMS      of all files, in the form of sha256sum; written last: without it a folder is no backup
//! ```

mod files;
#[cfg(test)]
mod tests;

use crate::blobs;
use crate::database;
use crate::job::UnixMillis;
use crate::logstore::LogStore;
use crate::queue::{self, Counts, Still};
use files::{copied, hashed, make_dir, sync_dir, walk, write};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const SUMS: &str = "SHA256SUMS";
const ABOUT: &str = "backup.json";
const QUEUE: &str = "queue.db";
const INDEX: &str = "blobs/index.db";
const CONTENT: &str = "blobs/content";
const LOGS: &str = "logs";
/// Whose data it is; the last one that is put back, since it makes a folder a data directory.
const OWNER: &str = "owner";
/// Small files: hashes of keys, and what operators have said.
const SMALL: [&str; 4] = ["keys.json", "agents.json", "drains.json", OWNER];
/// There while a data directory is being put back.
pub const RESTORING: &str = "restoring";
/// The form of a backup.
const FORMAT: u32 = 1;

/// A backup that cannot be made, is not whole, or cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A database.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// Something else, in a sentence.
    #[error("{0}")]
    Other(String),
}

impl BackupError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Of its form.
    pub format: u32,
    /// When the queue was copied: what happened later is not in it.
    pub taken_at: UnixMillis,
    /// The program that made it.
    pub version: String,
    /// How many files it has, besides this one.
    pub files: u64,
    /// And bytes.
    pub bytes: u64,
    /// Jobs that waited.
    pub queued: u64,
    /// Jobs that agents held, or that have children which go on.
    pub held: u64,
    /// Jobs that had ended.
    pub ended: u64,
    /// Files that were removed while they were to be copied: their time was over.
    pub gone: u64,
}

/// Copies the data below `data` into a new folder. Errors: `to` is there already and not empty; a file cannot be copied. What was copied so
/// far stays, and is no backup.
pub fn create(data: &Path, to: &Path, now: UnixMillis) -> Result<About, BackupError> {
    if !data.join(QUEUE).is_file() {
        let reason =
            format!("{} has no queue.db: there is nothing to back up; name another with --data-dir", data.display());
        return Err(BackupError::Other(reason));
    }
    must_be_empty(to, "a backup is made in a folder of its own")?;
    make_dir(to)?;
    let mut sums = BTreeMap::new();
    database::copy(&data.join(QUEUE), &to.join(QUEUE))?;
    let index = data.join(INDEX);
    if index.is_file() {
        make_dir(&to.join("blobs"))?;
        database::copy(&index, &to.join(INDEX))?;
    }
    for name in [QUEUE, INDEX] {
        if to.join(name).is_file() {
            sums.insert(name.to_owned(), hashed(&to.join(name))?);
        }
    }
    let mut gone = 0;
    for root in [CONTENT, LOGS] {
        for file in walk(&data.join(root))? {
            let name = format!("{root}/{}", file.display());
            match copied(&data.join(&name), &to.join(&name))? {
                Some(sum) => drop(sums.insert(name, sum)),
                None => gone += 1,
            }
        }
    }
    for name in SMALL {
        if let Some(sum) = copied(&data.join(name), &to.join(name))? {
            sums.insert(name.to_owned(), sum);
        }
    }
    let counts = counts(&to.join(QUEUE))?;
    let about = About {
        format: FORMAT,
        taken_at: now,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: sums.len() as u64,
        bytes: sums.values().map(|(bytes, _)| bytes).sum(),
        queued: counts.queued,
        held: counts.claimed + counts.preparing + counts.running + counts.finishing,
        ended: counts.ended,
        gone,
    };
    let text = serde_json::to_vec_pretty(&about).map_err(|error| BackupError::Other(error.to_string()))?;
    write(&to.join(ABOUT), &text)?;
    sums.insert(ABOUT.to_owned(), hashed(&to.join(ABOUT))?);
    let lines: String = sums.iter().map(|(name, (_, sum))| format!("{sum}  {name}\n")).collect();
    sync_dir(to)?;
    write(&to.join(SUMS), lines.as_bytes())?;
    sync_dir(to)?;
    Ok(about)
}

/// What is wrong with a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// What it says of itself.
    pub about: About,
    /// Everything that is wrong; none for a good one.
    pub problems: Vec<String>,
    /// Contents that jobs of it refer to and that are not in it: they were gone before, or their time was over while it was made.
    pub missing_contents: u64,
}

/// Reads a backup whole. Errors: it is none, or cannot be read.
pub fn verify(backup: &Path) -> Result<Verified, BackupError> {
    let sums = sums(backup)?;
    let mut problems = Vec::new();
    for (name, wanted) in &sums {
        match hashed(&backup.join(name)) {
            Ok((_, found)) if found == *wanted => {}
            Ok(_) => problems.push(format!("{name}: it is not what was written")),
            Err(BackupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                problems.push(format!("{name}: it is missing"));
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    for file in walk(backup)? {
        let name = file.display().to_string();
        if name != SUMS && !sums.contains_key(&name) {
            problems.push(format!("{name}: it does not belong here"));
        }
    }
    for name in [QUEUE, INDEX] {
        if sums.contains_key(name)
            && let Err(error) = database::check(&backup.join(name))
        {
            problems.push(error.to_string());
        }
    }
    let about = std::fs::read(backup.join(ABOUT)).map_err(BackupError::file(&backup.join(ABOUT)))?;
    let about: About = serde_json::from_slice(&about)
        .map_err(|error| BackupError::Other(format!("{}: {error}", backup.join(ABOUT).display())))?;
    if about.format > FORMAT {
        problems.push(format!("a newer version made it ({}): use that one", about.version));
    }
    let mut missing_contents = 0;
    if sums.contains_key(INDEX) && problems.is_empty() {
        let listed = blobs::listed(&backup.join(INDEX)).map_err(|error| BackupError::Other(error.to_string()))?;
        let there =
            |hex: &String| sums.get(&format!("{CONTENT}/{}/{}", &hex[..2], &hex[2..])).is_some_and(|sum| sum == hex);
        missing_contents = listed.iter().filter(|hex| !there(hex)).count() as u64;
    }
    Ok(Verified { about, problems, missing_contents })
}

/// Puts a backup into a data directory that is not there, or empty. Claims of before are not believed any more: agents that still run something
/// from after the backup are told so. Errors: it is not whole; the folder is not empty; a file cannot be written.
pub fn restore(backup: &Path, data: &Path) -> Result<Verified, BackupError> {
    let verified = verify(backup)?;
    if let [first, more @ ..] = &verified.problems[..] {
        let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
        return Err(BackupError::Other(format!(
            "{} is not whole: {first}{more}; nothing was put back",
            backup.display()
        )));
    }
    must_be_empty(data, "a backup is put back into an empty data directory; move away what is there")?;
    make_dir(data)?;
    write(
        &data.join(RESTORING),
        b"a backup was being put back; when no process does that any more, remove this folder and try again\n",
    )?;
    let sums = sums(backup)?;
    let still = Still::open(&backup.join(QUEUE)).map_err(|error| BackupError::Other(error.to_string()))?;
    for (name, sum) in sums.iter().filter(|(name, _)| ![ABOUT, OWNER].contains(&name.as_str())) {
        // Output was copied after the queue: that of a try which it does not know would be gone on with by another one of that number.
        if let Some(of) = Path::new(name).strip_prefix(LOGS).ok().and_then(LogStore::attempt_of)
            && still.last_try(of.job).map_err(|error| BackupError::Other(error.to_string()))? < Some(of.attempt)
        {
            continue;
        }
        put_back(backup, data, (name, sum))?;
    }
    queue::fence(&data.join(QUEUE)).map_err(|error| BackupError::Other(error.to_string()))?;
    if let Some(sum) = sums.get(OWNER) {
        put_back(backup, data, (OWNER, sum))?;
    }
    sync_dir(data)?;
    std::fs::remove_file(data.join(RESTORING)).map_err(BackupError::file(&data.join(RESTORING)))?;
    sync_dir(data)?;
    Ok(verified)
}

/// Errors: it is not what was looked at before.
fn put_back(backup: &Path, data: &Path, (name, sum): (&str, &str)) -> Result<(), BackupError> {
    match copied(&backup.join(name), &data.join(name))? {
        Some((_, copied)) if copied == sum => Ok(()),
        _ => Err(BackupError::Other(format!("{name} changed while the backup was put back"))),
    }
}

fn counts(queue: &Path) -> Result<Counts, BackupError> {
    queue::counts_in(queue).map_err(|error| BackupError::Other(error.to_string()))
}

/// Errors: something is in the folder.
fn must_be_empty(dir: &Path, why: &str) -> Result<(), BackupError> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(BackupError::Other(format!("{} is not empty: {why}", dir.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BackupError::file(dir)(error)),
    }
}

/// The sums that a backup has, by the files' names. Errors: it is no backup.
fn sums(backup: &Path) -> Result<BTreeMap<String, String>, BackupError> {
    let path = backup.join(SUMS);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!("{} has no {SUMS}: it is no backup, or one that was not finished", backup.display());
            return Err(BackupError::Other(reason));
        }
        read => read.map_err(BackupError::file(&path))?,
    };
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let good = |(sum, name): &(&str, &str)| {
            // Nothing outside of the folder is ever read or written.
            let inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
            sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()) && !name.is_empty() && inside
        };
        let Some((sum, name)) = line.split_once("  ").filter(good) else {
            return Err(BackupError::Other(format!("{}: a line is damaged: {line:?}", path.display())));
        };
        sums.insert(name.to_owned(), sum.to_owned());
    }
    if !sums.contains_key(QUEUE) || !sums.contains_key(ABOUT) {
        return Err(BackupError::Other(format!("{}: lines are missing", path.display())));
    }
    Ok(sums)
}
