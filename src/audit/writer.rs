//! The one task that writes: numbers lines, appends them, and keeps what a full disk does not take for as long as it can.

use super::file::Log;
use super::{Event, Outcome, Shared};
use crate::job::UnixMillis;
use crate::supervise::blocking;
use crate::telemetry::{Component, Health, Metrics, State};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

/// Lines that are kept while the disk takes none; what comes beyond is counted.
const KEPT: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;
/// Between two syncs, two tries and two looks at what was folded.
const TICK: Duration = Duration::from_secs(1);

/// What the task is told.
#[derive(Debug)]
pub(super) enum Command {
    Write(Box<Event>, Option<oneshot::Sender<()>>),
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    /// None while a thread works on it.
    log: Option<Log>,
    shared: Weak<Shared>,
    health: Health,
    metrics: Arc<Metrics>,
    next: u64,
    /// Numbered lines that are not written.
    waiting: VecDeque<Vec<u8>>,
    /// Lines that are gone, and since when.
    lost: Option<(u64, UnixMillis)>,
    unsynced: bool,
    /// Why the last try failed.
    failed: Option<String>,
}

impl Writer {
    pub(super) fn new(log: Log, shared: Weak<Shared>, health: Health, metrics: Arc<Metrics>) -> Self {
        health.set(Component::Audit, State::Ok);
        Self {
            log: Some(log),
            shared,
            health,
            metrics,
            next: 0,
            waiting: VecDeque::new(),
            lost: None,
            unsynced: false,
            failed: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.next = self.on_disk(|log| Ok(log.last_seq())).await.unwrap_or(0) + 1;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let closing = tokio::select! {
                got = commands.recv_many(&mut batch, BATCH) => if got == 0 { return } else { self.take(&mut batch).await },
                _ = tick.tick() => {
                    self.tick().await;
                    None
                }
            };
            if let Some(told) = closing {
                let folded = self.shared.upgrade().map(|shared| shared.folded(None)).unwrap_or_default();
                folded.iter().for_each(|event| self.number(event));
                self.write().await;
                self.sync().await;
                let _ = told.send(());
                return;
            }
        }
    }

    /// Writes what came; who waits is told, whatever came of it. Whoever wants the end is given back.
    async fn take(&mut self, batch: &mut Vec<Command>) -> Option<oneshot::Sender<()>> {
        let (mut told, mut closing) = (Vec::new(), None);
        for command in batch.drain(..) {
            match command {
                Command::Write(event, written) => {
                    self.number(&event);
                    told.extend(written);
                }
                Command::Close(done) => closing = Some(done),
            }
        }
        self.write().await;
        for written in told {
            let _ = written.send(());
        }
        closing
    }

    async fn tick(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let folded = shared.folded(Some(UnixMillis::now()));
        folded.iter().for_each(|event| self.number(event));
        let unheard = shared.unheard.swap(0, Ordering::Relaxed);
        if unheard > 0 {
            self.lose(unheard);
        }
        if !self.waiting.is_empty() || self.lost.is_some() {
            self.write().await;
        }
        self.sync().await;
    }

    fn number(&mut self, event: &Event) {
        // A line that finds no place has its number all the same, so that the gap is seen.
        let seq = self.next;
        self.next += 1;
        if self.waiting.len() < KEPT {
            self.waiting.push_back(event.line(seq));
        } else {
            self.lose(1);
        }
    }

    fn lose(&mut self, count: u64) {
        let (lost, _) = self.lost.get_or_insert_with(|| (0, UnixMillis::now()));
        *lost += count;
        self.metrics.audit_lost_total.inc_by(count);
    }

    /// Writes all that waits, and then how many lines are gone.
    async fn write(&mut self) {
        loop {
            if self.waiting.is_empty()
                && let Some((count, since)) = self.lost
            {
                let detail = Some(format!("since {since}"));
                let event = Event { count: Some(count), ..Event::own("audit.lost", Outcome::Failed, detail) };
                self.waiting.push_back(event.line(self.next));
                self.next += 1;
                self.lost = None;
            }
            let lines: Vec<u8> = self.waiting.iter().take(BATCH).flatten().copied().collect();
            if lines.is_empty() {
                return;
            }
            let count = self.waiting.len().min(BATCH);
            if let Err(error) = self.on_disk(move |log| log.append(&lines)).await {
                return self.say(error.to_string());
            }
            self.waiting.drain(..count);
            self.unsynced = true;
            if self.failed.take().is_some() {
                tracing::info!("the audit log is written again");
                self.health.set(Component::Audit, State::Ok);
            }
            if let Some(shared) = self.shared.upgrade() {
                shared.behind.store(false, Ordering::Relaxed);
            }
        }
    }

    async fn sync(&mut self) {
        if !std::mem::take(&mut self.unsynced) {
            return;
        }
        if let Err(error) = self.on_disk(|log| log.sync()).await {
            self.say(format!("what was written may not be on disk: {error}"));
        }
    }

    /// Says what is wrong, once for each reason.
    fn say(&mut self, reason: String) {
        if self.failed.as_ref() == Some(&reason) {
            return;
        }
        tracing::error!(%reason, "the audit log cannot be written; jobs go on, and lines that are lost are counted");
        self.health.set(Component::Audit, State::Degraded(format!("the audit log cannot be written: {reason}")));
        self.failed = Some(reason);
    }

    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Log) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let mut log = self.log.take().expect("the task does one thing after the other");
        let (log, done) = blocking(move || {
            let done = work(&mut log);
            (log, done)
        })
        .await;
        self.log = Some(log);
        done
    }
}
