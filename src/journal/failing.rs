//! A journal that fails or dies as it was told to: what an agent makes of that is tested with it.

use super::{Entry, EntryKey, Journal, JournalError, Journaled};
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Calls that are counted, each kind from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Entries,
    Put,
    Remove,
    /// A put or a remove.
    Write,
}

/// On which side of its effect a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing was done.
    Before,
    /// It was done, and nobody hears of it.
    After,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The call answers with an error.
    Fail,
    /// The process dies here: this call is never answered, and no later one does anything.
    Crash,
}

/// Does what the journal inside does, but for the calls that the plan names. Clones share journal, plan and counts.
#[derive(Debug)]
pub(crate) struct FailingJournal<J> {
    inner: Arc<J>,
    state: Arc<Mutex<State>>,
    crashed: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct State {
    plan: Vec<(Call, u32, When, Fault)>,
    entries: u32,
    puts: u32,
    removes: u32,
}

impl State {
    fn count(&self, call: Call) -> u32 {
        match call {
            Call::Entries => self.entries,
            Call::Put => self.puts,
            Call::Remove => self.removes,
            Call::Write => self.puts + self.removes,
        }
    }

    /// Counts a call, and says what is planned for it.
    fn next(&mut self, call: Call) -> Option<(When, Fault)> {
        match call {
            Call::Entries => self.entries += 1,
            Call::Put => self.puts += 1,
            Call::Remove => self.removes += 1,
            Call::Write => {}
        }
        let is_it = |planned: Call| planned == call || (planned == Call::Write && call != Call::Entries);
        let planned = self.plan.iter().find(|(planned, n, ..)| is_it(*planned) && self.count(*planned) == *n);
        planned.map(|(.., when, fault)| (*when, *fault))
    }
}

impl<J: Journal> FailingJournal<J> {
    pub(crate) fn new(inner: J) -> Self {
        Self { inner: Arc::new(inner), state: Arc::default(), crashed: Arc::new(watch::Sender::new(false)) }
    }

    /// The `n`-th write (put or remove, from 1) is the process's last moment.
    pub(crate) fn crash_at(self, n: u32, when: When) -> Self {
        self.planned(Call::Write, n, when, Fault::Crash)
    }

    /// The `n`-th call of this kind, from 1, is the process's last moment.
    pub(crate) fn crash_at_call(self, call: Call, n: u32, when: When) -> Self {
        self.planned(call, n, when, Fault::Crash)
    }

    /// The `n`-th call of this kind, from 1, answers with an error.
    pub(crate) fn fail_at(self, call: Call, n: u32, when: When) -> Self {
        self.planned(call, n, when, Fault::Fail)
    }

    fn planned(self, call: Call, n: u32, when: When, fault: Fault) -> Self {
        self.state().plan.push((call, n, when, fault));
        self
    }

    /// How many calls of this kind there were.
    pub(crate) fn count(&self, call: Call) -> u32 {
        self.state().count(call)
    }

    /// Resolves when the process has died: whatever holds the journal is to be dropped then.
    pub(crate) fn crashed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut crashed = self.crashed.subscribe();
        async move {
            // Without anybody who could still call the journal, it never crashes.
            if crashed.wait_for(|crashed| *crashed).await.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// What is there for the next process.
    pub(crate) fn inner(&self) -> Arc<J> {
        Arc::clone(&self.inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        if *self.crashed.borrow() {
            return pending().await;
        }
        let planned = self.state().next(call);
        let Some((when, fault)) = planned else {
            let answer = effect.await;
            // Another call was the last one in the meantime: this one did what it does, and is not answered any more.
            return if *self.crashed.borrow() { pending().await } else { answer };
        };
        if when == When::After {
            effect.await?;
        }
        match fault {
            Fault::Fail => Err(JournalError("planned to fail".to_owned())),
            Fault::Crash => {
                self.crashed.send_replace(true);
                pending().await
            }
        }
    }
}

impl<J> Clone for FailingJournal<J> {
    fn clone(&self) -> Self {
        let (inner, state, crashed) = (Arc::clone(&self.inner), Arc::clone(&self.state), Arc::clone(&self.crashed));
        Self { inner, state, crashed }
    }
}

impl<J: Journal> Journal for FailingJournal<J> {
    fn entries(&self) -> Journaled<'_, Vec<Entry>> {
        Box::pin(async move { self.call(Call::Entries, async { self.inner.entries().await }).await })
    }

    fn put<'a>(&'a self, entry: &'a Entry) -> Journaled<'a, ()> {
        Box::pin(async move { self.call(Call::Put, async { self.inner.put(entry).await }).await })
    }

    fn remove<'a>(&'a self, key: &'a EntryKey) -> Journaled<'a, ()> {
        Box::pin(async move { self.call(Call::Remove, async { self.inner.remove(key).await }).await })
    }
}
