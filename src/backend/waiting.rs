//! Agents that wait for work, in the order they came. Each submit wakes the first one that was not woken yet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

type Row = VecDeque<Arc<Waiter>>;

/// The row.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Row>);

#[derive(Debug, Default)]
struct Waiter {
    woken: AtomicBool,
    notify: Notify,
}

/// A place in the row; left when it is dropped.
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    waiter: Arc<Waiter>,
}

impl Waiting {
    fn row(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end.
    pub(super) fn enter(&self) -> Place<'_> {
        let waiter = Arc::new(Waiter::default());
        self.row().push_back(Arc::clone(&waiter));
        Place { waiting: self, waiter }
    }

    /// There is work: the first who has not heard so yet looks. When all have, one of them will take it, or pass it on.
    pub(super) fn wake_one(&self) {
        if let Some(waiter) = self.row().iter().find(|waiter| !waiter.woken.swap(true, Ordering::AcqRel)) {
            waiter.notify.notify_one();
        }
    }
}

impl Place<'_> {
    /// How many wait, this one included.
    pub(super) fn row_length(&self) -> usize {
        self.waiting.row().len()
    }

    /// Returns when there may be work.
    pub(super) async fn woken(&self) {
        self.waiter.notify.notified().await;
        // From here on a new submit wakes it again: it is about to look.
        self.waiter.woken.store(false, Ordering::Release);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut row = self.waiting.row();
        row.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        drop(row);
        // Woken, and gone without having looked: somebody else must.
        if self.waiter.woken.load(Ordering::Acquire) {
            self.waiting.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn each_submit_wakes_another_one_in_order_and_no_wake_is_lost() {
        let waiting = Waiting::default();
        let (first, second) = (waiting.enter(), waiting.enter());
        waiting.wake_one();
        assert!(second.woken().now_or_never().is_none());
        waiting.wake_one();
        assert!(first.woken().now_or_never().is_some() && second.woken().now_or_never().is_some());
        waiting.wake_one();
        // It leaves without having looked: the wake goes on to the next.
        drop(first);
        assert!(second.woken().now_or_never().is_some());
        assert_eq!(second.row_length(), 1);
    }
}
