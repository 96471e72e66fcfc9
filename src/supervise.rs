//! Named spawns. Every task has a name that shows up when it dies, and somebody who can join it.

use std::future::Future;
use tokio::task::JoinHandle;

/// Spawns `task` under `name`. A panic in it is logged with the name; the handle gives the result.
pub fn spawn<T: Send + 'static>(name: &'static str, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let guard = Guard { name, finished: false };
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    tokio::spawn(async move {
        let mut guard = guard;
        let result = task.await;
        guard.finished = true;
        result
    })
}

/// Runs `work`, which may block, on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(test)]
    let work = match crate::seeded::in_place(work).await {
        Ok(done) => return done,
        Err(work) => work,
    };
    tokio::task::spawn_blocking(work).await.expect("work that blocks does not panic")
}

/// Marks a task as one of this process, which is frozen and killed with it: in tests, a process is not all there is.
#[cfg(test)]
pub(crate) fn of_this_process<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    crate::seeded::within(task)
}

/// Marks a task as one of this process.
#[cfg(not(test))]
pub(crate) fn of_this_process<F: Future>(task: F) -> F {
    task
}

/// Complains when a task is dropped by a panic.
struct Guard {
    name: &'static str,
    finished: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.finished && std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked");
        }
    }
}
