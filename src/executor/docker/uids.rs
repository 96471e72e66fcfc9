//! One user id per live cell. Cells that shared one would share the kernel's per-user quotas: one could take all inotify
//! instances or pending signals from the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The ids that are free, handed out lowest last-used first.
pub(super) struct Uids(Arc<Mutex<Pool>>);

struct Pool {
    start: u32,
    count: u32,
    next: u32,
    taken: BTreeSet<u32>,
}

/// One id, given back on drop.
pub(super) struct Uid {
    number: u32,
    pool: Arc<Mutex<Pool>>,
}

impl Uids {
    pub(super) fn new(start: u32, count: u32) -> Self {
        Self(Arc::new(Mutex::new(Pool { start, count, next: 0, taken: BTreeSet::new() })))
    }

    /// A free id; `None` when all are in use. Goes round, so that an id rests as long as possible before it is used
    /// again.
    pub(super) fn take(&self) -> Option<Uid> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for step in 0..pool.count {
            let offset = (pool.next + step) % pool.count;
            let number = pool.start + offset;
            if pool.taken.insert(number) {
                pool.next = (offset + 1) % pool.count;
                return Some(Uid { number, pool: Arc::clone(&self.0) });
            }
        }
        None
    }
}

impl Uids {
    /// The one that a cell of an earlier process has; `None` when it is kept already.
    pub(super) fn keep(&self, number: u32) -> Option<Uid> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).taken.insert(number);
        new.then(|| Uid { number, pool: Arc::clone(&self.0) })
    }
}

impl Uid {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_while_held_and_come_back() {
        let uids = Uids::new(100, 3);
        let held: Vec<_> = (0..3).map(|_| uids.take().expect("free")).collect();
        assert_eq!(held.iter().map(Uid::number).collect::<Vec<_>>(), [100, 101, 102]);
        assert!(uids.take().is_none());
        drop(held);
        assert_eq!(uids.take().expect("free again").number(), 100);
        assert_eq!(uids.take().expect("free").number(), 101);
        let kept = uids.keep(102).expect("free");
        assert!(uids.keep(102).is_none());
        assert_eq!(uids.take().expect("free").number(), 100, "the kept one is passed over");
        drop(kept);
        assert_eq!(uids.take().expect("free").number(), 101);
    }
}
