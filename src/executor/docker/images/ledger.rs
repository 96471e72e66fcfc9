//! What an installation remembers of images: which it pulled, and when each was last used.
//!
//! A small JSON document in the data directory, replaced as a whole under a lock, so that a command beside a running agent changes it too. A
//! pull is written down before it begins and when it has ended, and synced; a use at most once in a minute and not synced: what a crash
//! takes of it makes an image look a minute older.

use crate::job::UnixMillis;
use crate::supervise;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The version of the document.
const VERSION: u32 = 1;
/// Between two notes that an image was used.
const USE_EVERY: u64 = 60_000;
/// Images remembered; the longest unused are forgotten first, and what is forgotten is never removed.
const MOST: usize = 10_000;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    version: u32,
    /// By the engine's id.
    #[serde(default)]
    pub(super) images: BTreeMap<String, Entry>,
    /// Pulls that have begun, by the name in full.
    #[serde(default)]
    pub(super) pulling: BTreeMap<String, Pulling>,
}

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Names in full under which this installation brought it to the engine; none when somebody else did.
    #[serde(default)]
    pub(super) pulled_as: Vec<String>,
    /// When a job last began in it, or when it came.
    pub(super) last_used: UnixMillis,
}

/// A pull that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulling {
    /// What the name stood for before.
    pub(super) before: Option<String>,
    /// When.
    pub(super) at: UnixMillis,
}

impl Default for Book {
    fn default() -> Self {
        Self { version: VERSION, images: BTreeMap::new(), pulling: BTreeMap::new() }
    }
}

impl Book {
    /// A pull has ended, and the name stands for this image now. What the name stood for before was not brought by the pull.
    /// `before` is the pull's own word: of two processes that pull a name, the other one may have settled what is written here.
    pub(super) fn pulled(&mut self, name: &str, id: &str, before: Option<&str>, now: UnixMillis) {
        self.pulling.remove(name);
        let entry = self.used(id, now);
        if before != Some(id) && !entry.pulled_as.iter().any(|known| known == name) {
            entry.pulled_as.push(name.to_owned());
        }
    }

    fn used(&mut self, id: &str, now: UnixMillis) -> &mut Entry {
        let new = Entry { pulled_as: Vec::new(), last_used: now };
        let entry = self.images.entry(id.to_owned()).or_insert(new);
        entry.last_used = entry.last_used.max(now);
        entry
    }

    /// It is gone.
    pub(super) fn removed(&mut self, id: &str) {
        self.images.remove(id);
    }

    fn bounded(&mut self) {
        while self.images.len() > MOST {
            let oldest = self.images.iter().min_by_key(|(_, entry)| entry.last_used).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { return };
            self.images.remove(&oldest);
        }
    }
}

/// The document's place. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Ledger {
    file: Arc<PathBuf>,
    /// Uses that were written down by this process.
    used: Arc<Mutex<HashMap<String, UnixMillis>>>,
}

impl Ledger {
    /// In this data directory.
    pub fn new(dir: &Path) -> Self {
        Self { file: Arc::new(dir.join("images.json")), used: Arc::default() }
    }

    /// What is remembered; nothing when the document cannot be read, so that nothing is removed by a mistake.
    pub(super) async fn read(&self) -> Book {
        let file = Arc::clone(&self.file);
        supervise::blocking(move || {
            read(&file).unwrap_or_else(|unread| {
                tracing::warn!(file = %file.display(), reason = %unread, "what is known of images cannot be read; nothing of it counts");
                Book::default()
            })
        })
        .await
    }

    /// Changes it; `synced` survives the power. What cannot be written is told of and costs no job.
    pub(super) async fn change(&self, synced: bool, change: impl FnOnce(&mut Book) + Send + 'static) {
        let file = Arc::clone(&self.file);
        let done = supervise::blocking(move || write(&file, synced, change)).await;
        if let Err(error) = done {
            tracing::warn!(file = %self.file.display(), %error, "what is known of images cannot be written");
        }
    }

    /// A job begins in it.
    pub(super) async fn used(&self, id: &str, now: UnixMillis) {
        {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.get(id).is_some_and(|last| now.as_u64().saturating_sub(last.as_u64()) < USE_EVERY) {
                return;
            }
            // As bounded as the document.
            if used.len() >= MOST {
                used.clear();
            }
            used.insert(id.to_owned(), now);
        }
        let id = id.to_owned();
        self.change(false, move |book| {
            book.used(&id, now);
        })
        .await;
    }
}

/// Why the document says nothing.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it is damaged: {0}")]
    Damaged(serde_json::Error),
    #[error("it is of version {0}, and this program knows {VERSION}")]
    Newer(u32),
}

fn read(file: &Path) -> Result<Book, Unread> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Book::default()),
        Err(error) => return Err(error.into()),
    };
    match serde_json::from_slice::<Versioned>(&text).map_err(Unread::Damaged)?.version {
        VERSION => serde_json::from_slice(&text).map_err(Unread::Damaged),
        newer => Err(Unread::Newer(newer)),
    }
}

fn write(file: &Path, synced: bool, change: impl FnOnce(&mut Book)) -> Result<(), Unread> {
    let private = |path: PathBuf| -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    };
    // Held for milliseconds, by an agent or a command on this host.
    let lock = private(file.with_extension("lock"))?;
    lock.lock()?;
    let before = match read(file) {
        Ok(book) => book,
        // Put aside for whoever wants to know: what follows is a new beginning.
        Err(Unread::Damaged(error)) => {
            tracing::warn!(file = %file.display(), %error, "what is known of images is damaged, and is put aside");
            std::fs::rename(file, file.with_extension("damaged"))?;
            Book::default()
        }
        // What a newer program has written is not ours to change.
        Err(unread) => return Err(unread),
    };
    let mut book = before.clone();
    change(&mut book);
    book.bounded();
    if book == before {
        return Ok(());
    }
    // Under its name at once and whole.
    let fresh = file.with_extension("new");
    let mut new = private(fresh.clone())?;
    new.set_len(0)?;
    new.write_all(serde_json::to_string_pretty(&book).map_err(std::io::Error::from)?.as_bytes())?;
    if synced {
        new.sync_all()?;
    }
    Ok(std::fs::rename(&fresh, file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> UnixMillis {
        UnixMillis::new(ms)
    }

    #[test]
    fn only_what_a_pull_brought_is_ours() {
        let mut book = Book::default();
        let begin = |book: &mut Book, before: Option<&str>| {
            book.pulling.insert("r/x:1".into(), Pulling { before: before.map(str::to_owned), at: at(1) });
        };
        begin(&mut book, None);
        book.pulled("r/x:1", "a", None, at(5));
        assert_eq!(book.images["a"], Entry { pulled_as: vec!["r/x:1".into()], last_used: at(5) });
        // The tag was moved, and both are ours.
        begin(&mut book, Some("a"));
        book.pulled("r/x:1", "b", Some("a"), at(6));
        assert_eq!(book.images["b"].pulled_as, ["r/x:1"]);
        // It was there before, and nobody knows from where.
        begin(&mut book, Some("c"));
        // Another process has settled what was written of the pull.
        book.pulling.clear();
        book.pulled("r/x:1", "c", Some("c"), at(7));
        assert_eq!(book.images["c"].pulled_as, [""; 0]);
        begin(&mut book, Some("a"));
        book.pulled("r/x:1", "a", Some("a"), at(8));
        assert_eq!(book.images["a"].pulled_as, ["r/x:1"], "it stays ours");
        assert!(book.pulling.is_empty());
    }

    #[tokio::test]
    async fn it_outlives_the_process_and_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::new(dir.path());
        assert_eq!(ledger.read().await, Book::default());
        ledger.change(true, |book| book.pulled("r/x:1", "a", None, at(5))).await;
        ledger.used("a", at(100_000)).await;
        ledger.used("a", at(100_001)).await;
        let again = Ledger::new(dir.path());
        assert_eq!(again.read().await.images["a"].last_used, at(100_000), "one note in a minute");
        // Two at a time: none is lost.
        let both: Vec<_> =
            (0..20).map(|n| again.change(false, move |book| book.pulled("n", &n.to_string(), None, at(1)))).collect();
        futures_util::future::join_all(both).await;
        assert_eq!(again.read().await.images.len(), 21);
        let (file, aside) = (dir.path().join("images.json"), dir.path().join("images.damaged"));
        for damaged in ["{", "[]", "{\"version\": 1, \"images\": 5}"] {
            std::fs::write(&file, damaged).expect("writes");
            assert_eq!(again.read().await, Book::default(), "{damaged}");
            again.change(false, |book| book.pulled("r/x:1", "a", None, at(5))).await;
            assert_eq!(again.read().await.images.len(), 1, "a new beginning");
            assert_eq!(std::fs::read_to_string(&aside).expect("is there"), damaged);
        }
        let newer = "{\"version\": 2, \"images\": []}";
        std::fs::write(&file, newer).expect("writes");
        again.change(false, |book| book.pulled("r/x:1", "a", None, at(5))).await;
        assert_eq!(again.read().await, Book::default());
        assert_eq!(std::fs::read_to_string(&file).expect("is there"), newer, "it is not changed");
    }
}
