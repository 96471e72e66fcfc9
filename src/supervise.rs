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
