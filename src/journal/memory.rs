//! A journal that ends with the process: for tests, and for one job at a time on the command line.

use super::{Entry, EntryKey, Journal, Journaled};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The journal. Clones share their entries.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal(Arc<Mutex<Vec<Entry>>>);

impl MemoryJournal {
    fn all(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn entries(&self) -> Journaled<'_, Vec<Entry>> {
        let all = self.all().clone();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn put<'a>(&'a self, entry: &'a Entry) -> Journaled<'a, ()> {
        let mut all = self.all();
        match all.iter_mut().find(|there| there.key == entry.key) {
            Some(there) => there.clone_from(entry),
            None => all.push(entry.clone()),
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove<'a>(&'a self, key: &'a EntryKey) -> Journaled<'a, ()> {
        self.all().retain(|entry| entry.key != *key);
        Box::pin(std::future::ready(Ok(())))
    }
}
