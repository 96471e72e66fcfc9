//! A process of a test: tasks that stop together, as by SIGSTOP, or end together, as by SIGKILL.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Condition {
    #[default]
    Runs,
    Frozen,
    Dead,
}

#[derive(Debug, Default)]
struct Inner {
    condition: Condition,
    /// Of tasks that were to go on while it was frozen.
    wakers: Vec<Waker>,
    /// Tasks that are there.
    tasks: usize,
}

/// The process. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process(Arc<Mutex<Inner>>);

thread_local! {
    /// Whose task is being polled.
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

impl Process {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a task part of it.
    pub(crate) fn task<F: Future>(&self, task: F) -> Task<F> {
        self.inner().tasks += 1;
        Task { process: Some(self.clone()), task: Box::pin(task) }
    }

    /// Nothing of it gets on.
    pub(crate) fn freeze(&self) {
        let mut inner = self.inner();
        if inner.condition == Condition::Runs {
            inner.condition = Condition::Frozen;
        }
    }

    /// It gets on again; every timer that fell due meanwhile is late.
    pub(crate) fn thaw(&self) {
        let mut inner = self.inner();
        if inner.condition == Condition::Frozen {
            inner.condition = Condition::Runs;
            std::mem::take(&mut inner.wakers).into_iter().for_each(Waker::wake);
        }
    }

    /// Nothing of it ever gets on again. Its tasks are dropped by whoever holds them.
    pub(crate) fn kill(&self) {
        self.inner().condition = Condition::Dead;
    }

    /// Tasks that are there.
    pub(crate) fn tasks(&self) -> usize {
        self.inner().tasks
    }
}

/// Makes a task part of the process whose task is being polled, if there is one.
pub(crate) fn within<F: Future>(task: F) -> Task<F> {
    let process = CURRENT.with_borrow(Clone::clone);
    match process {
        Some(process) => process.task(task),
        None => Task { process: None, task: Box::pin(task) },
    }
}

pub(crate) struct Task<F> {
    process: Option<Process>,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(process) = &self.process {
            let mut inner = process.inner();
            match inner.condition {
                Condition::Runs => {}
                Condition::Frozen => {
                    inner.wakers.push(cx.waker().clone());
                    return Poll::Pending;
                }
                Condition::Dead => return Poll::Pending,
            }
        }
        let before = CURRENT.replace(self.process.clone());
        let polled = self.task.as_mut().poll(cx);
        CURRENT.set(before);
        polled
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.inner().tasks -= 1;
        }
    }
}
