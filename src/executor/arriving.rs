//! An executor that comes later: an agent whose engine is away at its start delivers what has ended and keeps its leases meanwhile.

use super::{CellOrder, Executor, Link, NoCell, Prepared, Present, Tell};
use crate::job::AttemptId;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The reason at first, when nothing is wrong.
pub const STARTING: &str = "starting";

/// Says why there are no cells until there is an executor, and is that executor from then on. Clones are the same one.
pub struct Arriving<E>(Arc<(OnceLock<Arc<E>>, Mutex<String>)>);

impl<E> Clone for Arriving<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E> Default for Arriving<E> {
    fn default() -> Self {
        Self(Arc::new((OnceLock::new(), Mutex::new(STARTING.to_owned()))))
    }
}

impl<E> From<Arc<E>> for Arriving<E> {
    fn from(executor: Arc<E>) -> Self {
        let arriving = Self::default();
        arriving.arrive(executor);
        arriving
    }
}

impl<E> Arriving<E> {
    /// It is not there yet, for this reason.
    pub fn missing(&self, reason: &str) {
        reason.clone_into(&mut self.0.1.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// It is there. A second one changes nothing.
    pub fn arrive(&self, executor: Arc<E>) {
        let _ = self.0.0.set(executor);
    }

    /// The executor, once it is there.
    pub fn get(&self) -> Result<&Arc<E>, String> {
        self.0.0.get().ok_or_else(|| self.0.1.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl<E: Executor> Executor for Arriving<E> {
    type Cell = E::Cell;

    async fn probe(&self) -> Result<super::Away, String> {
        self.get()?.probe().await
    }

    async fn prepare(&self, order: &CellOrder, tell: Tell<'_>) -> Result<Prepared, NoCell> {
        self.get().map_err(NoCell::Unavailable)?.prepare(order, tell).await
    }

    async fn acquire(&self, order: &CellOrder, prepared: &Prepared) -> Result<(E::Cell, Link), NoCell> {
        self.get().map_err(NoCell::Unavailable)?.acquire(order, prepared).await
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        self.get()?.present().await
    }

    async fn adopt(&self, order: &CellOrder) -> Result<E::Cell, String> {
        self.get()?.adopt(order).await
    }

    fn outlives_us(&self, attempt: AttemptId) -> bool {
        self.get().map_or(true, |executor| executor.outlives_us(attempt))
    }

    async fn remove(&self, name: &str) {
        // Names come from `present`, so it is there.
        if let Ok(executor) = self.get() {
            executor.remove(name).await;
        }
    }
}
