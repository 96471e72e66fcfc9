//! One attempt, from its claim to its end. Every way out is journaled: an end that has to reach the backend, or the job goes back.
//!
//! Owns the order of things: the intent before the cell, the word that the job may run before the warden gets it, the end before
//! the warden is let go. So whatever the moment at which this process dies, the next one knows what to do.

use super::delivery::{Delivery, forget, span_of};
use super::phases::PhaseClock;
use crate::admission::Permit;
use crate::backend::Backend;
use crate::egress::Outside;
use crate::executor::warden::{Conversation, Finished, Keep, Orders, Progress, Stop, StopReason, converse};
use crate::executor::{Cell, CellOrder, Executor, LIMITS_MISSED, Link, NoCell, Prepared, Present};
use crate::job::{
    Cause, Ending, Later, LogTotals, PULL_NOTE, Phase, Report, Results, Timing, TraceId, UnixMillis, UsedImage,
};
use crate::journal::{Entry, Journal, Stage};
use crate::logstore::LogStore;
use crate::net::pauses;
use crate::protocol::agent::Step;
use crate::secrets::Providers;
use crate::supervise;
use crate::telemetry::{AttemptEnd, Metrics, Traces, attempt_spans};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

/// A report that takes longer does not keep the cell any more.
const REPORT_FIRST: Duration = Duration::from_millis(500);
/// A job whose cell cannot be made now, while others can, goes back after so long at least to a backend that does not wait with it: at once, it
/// would be claimed again at once.
const LATER: Duration = Duration::from_secs(5);
/// And after so long at most.
const MOST_LATER: Duration = Duration::from_secs(60);
/// First and longest pause between tries to take over a cell.
const ADOPT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A renewal that says whether an attempt is still ours is waited for as long as this: it is sent at once, and repeated in
/// the next round.
const UNSURE: Duration = Duration::from_secs(30);
/// Phase notes on their way to the backend: at most one of each phase exists, so this is never full.
const NOTES: usize = 4;
/// Fetching a job's files that takes longer is told: the job has ended, and is not to be taken for one that does not get on.
const SLOW_FETCH: Duration = Duration::from_secs(20);
/// How far a preparation is, is told at most so often.
const PREPARING_EVERY: Duration = Duration::from_secs(2);
/// First and longest pause between tries to bring one there.
const NOTE_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

pub(super) struct Runner<E: Executor> {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) executor: Arc<E>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) logs: LogStore,
    pub(super) metrics: Arc<Metrics>,
    pub(super) entry: Entry,
    /// The journal knows of this process's part in it.
    pub(super) noted: bool,
    pub(super) secrets: Providers,
    pub(super) reconnect: Duration,
    pub(super) keep: Option<Keep>,
    pub(super) output_share: u64,
    pub(super) outside: Outside,
    /// How long its parts take.
    pub(super) phases: PhaseClock,
    /// Where its spans go.
    pub(super) traces: Traces,
    /// The agent's installation, as spans name it.
    pub(super) worker: String,
    /// Takes the end, for its delivery. Full: the runner waits with its cell, and nothing else does.
    pub(super) ends: mpsc::Sender<End>,
}

/// What an admitted attempt runs with.
pub(super) struct Attempt {
    pub(super) order: CellOrder,
    pub(super) permit: Permit,
    /// The cell that an earlier process made for it.
    pub(super) adopted: Option<Present>,
}

/// An end to be delivered.
pub(super) struct End {
    pub(super) delivery: Delivery,
    /// Told when it is delivered.
    pub(super) told: Option<oneshot::Sender<()>>,
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It has ended; with what the host did wrong, if that was why.
    Ended { fault: Option<String> },
    /// It never started and went back to the queue.
    GivenBack,
    /// The same, because nothing can be begun here now.
    Unable { reason: String },
}

/// A cell that was made, or found again, and what its warden is talked to by.
type Made<C> = (C, Option<Link>);

impl<E: Executor> Runner<E> {
    /// Runs it. `attempt` is an error when admission refused the job.
    pub(super) async fn run(self, attempt: Result<Attempt, Cause>, orders: Orders) -> Outcome {
        let span = span_of(&self.entry);
        let run = async move {
            match attempt {
                Ok(Attempt { order, permit, adopted }) => {
                    let outcome = match adopted {
                        None => self.begin(order, orders).await,
                        Some(present) => self.go_on(order, &present, orders).await,
                    };
                    // What was reserved is free when the cell is gone, not before.
                    drop(permit);
                    outcome
                }
                Err(cause) => self.end(never_ran(&self.entry, cause), None).await,
            }
        };
        run.instrument(span).await
    }

    async fn begin(mut self, order: CellOrder, mut orders: Orders) -> Outcome {
        // The intent, before the first effect outside: the cell's name derives from the attempt.
        if !mutant!(NoIntent)
            && let Err(error) = self.journal.put(&self.entry).await
            && !mutant!(IntentErrorIgnored)
        {
            return self.unable("intent_not_journaled", error.to_string()).await;
        }
        crash_point!("after-intent");
        let (attempt, token) = (self.entry.key.attempt, self.entry.token);
        match self.backend.advance(attempt, token, Phase::Preparing, UnixMillis::now(), "cell_intent").await {
            Ok(Step::Applied | Step::AlreadyThere) => {}
            Ok(Step::Refused) => {
                tracing::warn!(event = "attempt.lease_lost", "the lease is not ours any more; nothing was started");
                forget(self.journal.as_ref(), &self.entry).await;
                return Outcome::GivenBack;
            }
            Err(error) => {
                tracing::error!(%error, backend = self.backend.name(), "the intent is not taken; nothing was started");
                self.give_back("intent_not_taken").await;
                return Outcome::GivenBack;
            }
        }
        // One that came meanwhile saves the cell.
        if let Ok(Stop { reason, .. }) = orders.stops.try_recv() {
            return self.end(never_ran(&self.entry, stopped(reason)), None).await;
        }
        // Nothing is made for a job that cannot have what it needs.
        self.phases.enter("secrets");
        let fetched = tokio::select! {
            biased;
            Some(Stop { reason, .. }) = orders.stops.recv() => return self.end(never_ran(&self.entry, stopped(reason)), None).await,
            fetched = self.secrets.fetch(&order.spec) => fetched,
        };
        let order = match fetched {
            Ok(secrets) => CellOrder { secrets, ..order },
            Err(cause) => return self.end(never_ran(&self.entry, cause), None).await,
        };
        let (mut asked, mut stop, mut again) = (Instant::now(), None, true);
        let (acquired, image) = loop {
            self.phases.enter("prepare");
            let prepared = tokio::select! {
                // A stop that is there counts; nothing runs yet that a grace could be for, and nothing is left behind.
                biased;
                Some(Stop { reason, .. }) = orders.stops.recv() => return self.end(never_ran(&self.entry, stopped(reason)), None).await,
                prepared = self.prepare(&order) => prepared,
            };
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(refused) => break (Err(refused), None),
            };
            asked = Instant::now();
            self.phases.enter("cell");
            // A stop that comes meanwhile waits until the cell is there: a half-made one dropped here would be left behind.
            let acquired = {
                let mut acquire = std::pin::pin!(self.executor.acquire(&order, &prepared));
                loop {
                    tokio::select! {
                        biased;
                        Some(Stop { reason, .. }) = orders.stops.recv() => stop = stop.max(Some(reason)),
                        acquired = &mut acquire => break acquired,
                    }
                }
            };
            // Somebody took it away between the two; who does so twice has the word.
            if again && stop.is_none() && matches!(acquired, Err(NoCell::Vanished(_))) {
                again = false;
                tracing::warn!("what was prepared for its cell is gone; it is prepared again");
                continue;
            }
            break (acquired, prepared.image);
        };
        let sure = acquired.is_err() || stop.is_some() || lasts(&mut orders.lease).await;
        if let Some(reason) = stop {
            let made = acquired.ok().map(|(cell, link)| (cell, Some(link))).filter(|_| !mutant!(StoppedCellStays));
            return self.end(never_ran(&self.entry, stopped(reason)), made).await;
        }
        let (cell, link) = match acquired {
            Ok(made) => made,
            Err(NoCell::Failed(cause) | NoCell::Vanished(cause)) => {
                return self.end(never_ran(&self.entry, cause), None).await;
            }
            Err(NoCell::Unavailable(reason)) => return self.unable("no_cell", reason).await,
            Err(NoCell::Later(later)) => return self.later(&later, &mut orders).await,
        };
        if !sure {
            tracing::error!(
                event = "attempt.given_back",
                "the claim was answered late, and no renewal was; nothing was started"
            );
            drop(link);
            cell.destroy().await;
            self.give_back("lease_unsure").await;
            return Outcome::GivenBack;
        }
        self.metrics.observe_acquire(asked.elapsed().as_secs_f64(), self.kept_trace());
        // From here on the job may run: nobody who finds this entry may hand it out again.
        self.entry.stage = Stage::Committed;
        if !mutant!(CommittedNotJournaled)
            && let Err(error) = self.journal.put(&self.entry).await
            && !mutant!(CommitErrorIgnored)
        {
            // It may have been written all the same. While the cell is there its warden knows better; without it nobody would.
            self.entry.stage = Stage::Intent;
            if !mutant!(CommitErrorBelieved)
                && let Err(error) = self.journal.put(&self.entry).await
            {
                tracing::error!(%error, "nor that it does not start; a crash now is told as the loss of its cell");
            }
            drop(link);
            if !mutant!(UncommittedCellStays) {
                cell.destroy().await;
            }
            return self.unable("start_not_journaled", error.to_string()).await;
        }
        crash_point!("after-commit");
        self.talk(order, (cell, Some(link)), image, orders).await
    }

    /// Sees to it that what the cell needs is there, and tells the backend meanwhile how far that is.
    async fn prepare(&self, order: &CellOrder) -> Result<Prepared, NoCell> {
        // The latest word counts; what nobody has told yet is forgotten.
        let (say, mut said) = watch::channel(String::new());
        let hear = |words: String| drop(say.send_replace(words));
        let (attempt, token) = (self.entry.key.attempt, self.entry.token);
        let tell = async |words: &str| {
            let note = format!("{PULL_NOTE}{words}");
            self.backend.advance(attempt, token, Phase::Preparing, UnixMillis::now(), &note).await
        };
        let telling = async {
            while said.changed().await.is_ok() {
                let words = said.borrow_and_update().clone();
                // A word that does not arrive is followed by another one.
                let _ = tell(&words).await;
                sleep(PREPARING_EVERY).await;
            }
            std::future::pending::<()>().await;
        };
        let began = Instant::now();
        let prepared = tokio::select! {
            biased;
            prepared = self.executor.prepare(order, &hear) => prepared,
            () = telling => unreachable!("it never ends"),
        };
        if let Ok(Prepared { image: Some(image), .. }) = &prepared
            && image.pulled
        {
            let words = format!("it is there after {:.1} s", began.elapsed().as_secs_f64());
            let _ = timeout(REPORT_FIRST, tell(&words)).await;
        }
        prepared
    }

    /// Goes on where an earlier process was.
    async fn go_on(mut self, order: CellOrder, present: &Present, orders: Orders) -> Outcome {
        // Before the first word to the warden: the session numbers of this process are above those of the last one.
        self.entry.generation += u32::from(!mutant!(GenerationNotRaised));
        if let Err(error) = self.journal.put(&self.entry).await {
            tracing::error!(%error, "that the cell is taken over could not be journaled");
            self.noted = mutant!(TakeoverBelievedNoted);
        }
        let until = Instant::now() + self.reconnect;
        let mut pauses = pauses(ADOPT_PAUSES.0, ADOPT_PAUSES.1);
        let reason = loop {
            match self.executor.adopt(&order).await {
                Ok(cell) => {
                    tracing::info!(event = "attempt.adopted", "its cell runs: going on where the last process was");
                    let image = present.image.clone();
                    return self.talk(order, (cell, None), image, orders).await;
                }
                Err(reason) => {
                    let pause = pauses.next().unwrap_or(ADOPT_PAUSES.1);
                    if Instant::now() + pause >= until {
                        break reason;
                    }
                    sleep(pause).await;
                }
            }
        };
        self.executor.remove(&present.name).await;
        let reason = format!("it was there when the agent came back, and could not be taken over: {reason}");
        let report = lost(&self.entry, reason, &self.logs).await;
        self.end(report, None).await
    }

    async fn talk(
        mut self,
        order: CellOrder,
        (cell, link): Made<E::Cell>,
        image: Option<UsedImage>,
        orders: Orders,
    ) -> Outcome {
        let adopted = link.is_none();
        if !adopted {
            self.phases.enter(if order.inputs.is_some() { "inputs" } else { "start" });
        }
        let (logs, id) = (self.logs.clone(), self.entry.key.attempt);
        if mutant!(LogBegunAnew) {
            let _ = logs.remove_attempt(id);
        }
        let writer = supervise::blocking(move || logs.create(id)).await;
        let log = match writer {
            Ok(writer) => writer,
            Err(error) => {
                let mut report = never_ran(&self.entry, Cause::LogStoreFailed { reason: error.to_string() });
                report.log.complete = self.entry.generation == 0;
                return self.end(report, Some((cell, link))).await;
            }
        };
        self.backend.log_began(id, self.entry.token);
        let (notes, mut noted) = mpsc::channel(NOTES);
        let (fetches, mut fetching) = mpsc::channel(1);
        let (reconnect, generation) = (self.reconnect, self.entry.generation);
        let (keep, output_share, outside) = (self.keep.as_ref(), self.output_share, &self.outside);
        let (backend, token) = (Arc::clone(&self.backend), self.entry.token);
        let conversation = Conversation {
            order: &order,
            log,
            orders,
            reconnect,
            generation,
            noted: self.noted,
            keep,
            output_share,
            outside,
        };
        let clock = self.phases.clone();
        let mut given_at = None;
        let given = &mut given_at;
        // The closure owns the sender, so the notes end with the conversation.
        let talk = converse(&cell, link, conversation, move |progress| match progress {
            Progress::InputsGiven => *given = Some(clock.now()),
            Progress::Started => {
                let _ = notes.try_send(UnixMillis::now());
            }
            Progress::Fetching => {
                // Said again over a new link; the first word is enough.
                let _ = fetches.try_send(());
            }
            Progress::Told(progress, steps) => backend.tell_progress(id, token, progress, steps),
        });
        let tell = async {
            let Some(at) = noted.recv().await else { return };
            // A job that ends with this process's connection has less than others: its history says so.
            let missed = cell.facts().iter().any(|(key, _)| key == LIMITS_MISSED);
            let how = match (self.executor.outlives_us(id), missed) {
                (false, _) => "started_plain",
                (true, true) => "started_unlimited",
                (true, false) => "started",
            };
            let advance = || self.backend.advance(id, self.entry.token, Phase::Running, at, how);
            let Err(error) = advance().await else { return };
            tracing::warn!(%error, "the backend does not take that the job runs");
            // Until it does, or the job has ended: for the backend, a job that never starts does not get on.
            let again = async {
                for pause in pauses(NOTE_PAUSES.0, NOTE_PAUSES.1) {
                    sleep(pause).await;
                    if mutant!(StartToldOnce) || advance().await.is_ok() {
                        return;
                    }
                }
            };
            let over = async { while noted.recv().await.is_some() {} };
            tokio::select! {
                biased;
                () = over => {}
                () = again => {}
            }
        };
        let tell_of_fetching = async {
            if fetching.recv().await.is_none() {
                return;
            }
            let at = UnixMillis::now();
            let told = async {
                sleep(SLOW_FETCH).await;
                let advance = || self.backend.advance(id, self.entry.token, Phase::Finishing, at, "fetching_files");
                for pause in pauses(NOTE_PAUSES.0, NOTE_PAUSES.1) {
                    if advance().await.is_ok() {
                        return;
                    }
                    sleep(pause).await;
                }
            };
            let over = async { while fetching.recv().await.is_some() {} };
            tokio::select! {
                biased;
                () = over => {}
                () = told => {}
            }
        };
        let (finished, (), ()) = tokio::join!(talk, tell, tell_of_fetching);
        if finished.not_begun {
            tracing::info!(
                event = "attempt.given_back",
                "the last process died before it gave the job to its cell; it goes back"
            );
            self.give_back("not_begun").await;
            // Nothing was written, and its log was begun all the same.
            self.backend.log_done(id);
            cell.destroy().await;
            return Outcome::GivenBack;
        }
        self.count(&finished);
        self.phases.ran(given_at, finished.started_at, finished.usage.as_ref().map(|usage| usage.wall));
        crash_point!("after-exit");
        let farewell = finished.farewell;
        let report = Report {
            attempt: id,
            cause: finished.cause,
            started_at: finished.started_at,
            ended_at: UnixMillis::now(),
            usage: finished.usage,
            receipt: finished.receipt,
            given: self.entry.spec.limits(),
            image,
            log: finished.log,
            results: finished.results,
            timings: Vec::new(),
        };
        self.end_with(report, Some((cell, None)), farewell.say()).await
    }

    async fn end(&self, report: Report, made: Option<Made<E::Cell>>) -> Outcome {
        self.end_with(report, made, std::future::ready(())).await
    }

    /// Journals the end, has it delivered, and removes the cell; `farewell` is for when the end is safe.
    async fn end_with(
        &self,
        report: Report,
        made: Option<Made<E::Cell>>,
        farewell: impl Future<Output = ()>,
    ) -> Outcome {
        let report = Report { timings: self.phases.timings(), ..report };
        let ending = Ending::of(report.cause.clone(), report.usage.as_ref());
        tracing::info!(event = "attempt.ended", verdict = ending.verdict.name(), cause = report.cause.code(), reason = %ending.message, "attempt ended");
        self.metrics.jobs_ended_total.with_label_values(&[ending.verdict.name()]).inc();
        if let Some(usage) = &report.usage {
            let seconds = usage.wall.as_duration().as_secs_f64();
            self.metrics.observe_job(ending.verdict.name(), seconds, self.kept_trace());
        }
        self.metrics.count_outputs(&report.results.outputs, self.entry.spec.labels());
        let entry = Entry { stage: Stage::Ended(Box::new(report.clone())), ..self.entry.clone() };
        let mut farewell = Some(farewell);
        if mutant!(ClosedBeforeJournal)
            && let Some(farewell) = farewell.take()
        {
            farewell.await;
        }
        let journaled = if mutant!(EndNotJournaled) { Ok(()) } else { self.journal.put(&entry).await };
        crash_point!("after-end");
        let (backend, journal) = (Arc::clone(&self.backend), Arc::clone(&self.journal));
        let (told, delivered) = oneshot::channel();
        // An adopted one may not have come to tell the backend of its output.
        let again = entry.generation > 0;
        let store = self.keep.as_ref().map(|keep| keep.store.clone());
        let told_of = self.is_traced().then(|| report.clone());
        let delivery = Delivery { backend, journal, entry, report, store, again };
        // Closed: the agent goes without its table, as in a crash; the journal has the end.
        let _ = self.ends.send(End { delivery, told: Some(told) }).await;
        if let Some((cell, link)) = made {
            drop(link);
            match journaled {
                // The report first, since somebody waits for it; but a backend that is slow does not keep the cell.
                Ok(()) => drop(timeout(REPORT_FIRST, delivered).await),
                Err(_) if mutant!(EndErrorIgnored) => {}
                Err(error) => {
                    tracing::error!(%error, "the end cannot be journaled; the cell keeps it until the backend has it");
                    let _ = delivered.await;
                }
            }
            if let Some(farewell) = farewell {
                farewell.await;
            }
            if !mutant!(CellsStay) {
                cell.destroy().await;
            }
            crash_point!("after-removal");
        }
        if let Some(report) = told_of {
            self.trace(Ok(&report), &report.timings);
        }
        Outcome::Ended { fault: ending.cause.is_the_hosts().then_some(ending.message) }
    }

    fn is_traced(&self) -> bool {
        self.traces.wants(self.entry.key.attempt.job, self.entry.spec.trace())
    }

    /// For examples beside the numbers.
    fn kept_trace(&self) -> Option<TraceId> {
        self.traces.kept(self.entry.key.attempt.job, self.entry.spec.trace())
    }

    /// Tells of the try, which is over.
    fn trace(&self, outcome: Result<&Report, &str>, timings: &[Timing]) {
        self.traces.tell(attempt_spans(&AttemptEnd {
            attempt: self.entry.key.attempt,
            spec: &self.entry.spec,
            outcome,
            timings,
            began: self.phases.began_at(),
            ended: self.phases.now(),
            worker: &self.worker,
            backend: self.backend.name(),
            backend_tells: self.backend.capabilities().traces,
        }));
    }

    async fn unable(&self, code: &str, reason: String) -> Outcome {
        tracing::error!(event = "attempt.given_back", %reason, code, "nothing was started; the job goes back");
        self.give_back(code).await;
        Outcome::Unable { reason }
    }

    /// Gives the job back until later. To a backend that would hand it out again at once it goes after a while, and its slot is held
    /// meanwhile: so no more jobs wait like this than there are slots.
    async fn later(&self, later: &Later, orders: &mut Orders) -> Outcome {
        tracing::warn!(
            event = "attempt.given_back",
            reason = later.reason,
            "its cell cannot be made now; the job goes back"
        );
        if !self.backend.capabilities().later {
            tokio::select! {
                biased;
                Some(Stop { reason, .. }) = orders.stops.recv() => {
                    return self.end(never_ran(&self.entry, stopped(reason)), None).await;
                }
                () = sleep(later.after.as_duration().clamp(LATER, MOST_LATER)) => {}
            }
        }
        self.back("no_cell_yet", Some(later)).await;
        Outcome::GivenBack
    }

    async fn give_back(&self, code: &str) {
        self.back(code, None).await;
    }

    async fn back(&self, code: &str, later: Option<&Later>) {
        if self.is_traced() {
            self.trace(Err(code), &self.phases.timings());
        }
        if let Err(error) = self.backend.release(self.entry.key.attempt, self.entry.token, code, later).await {
            tracing::error!(%error, "the job could not be given back; its lease will run out");
        }
        forget(self.journal.as_ref(), &self.entry).await;
    }

    fn count(&self, finished: &Finished) {
        self.metrics.log_frames_total.inc_by(finished.log.frames);
        self.metrics.log_bytes_total.with_label_values(&["stdout"]).inc_by(finished.log.stdout.bytes);
        self.metrics.log_bytes_total.with_label_values(&["stderr"]).inc_by(finished.log.stderr.bytes);
        self.metrics.wire_skipped_bytes_total.inc_by(finished.skipped_bytes);
        self.metrics.reattach_total.inc_by(u64::from(finished.reattached));
    }
}

/// The end of an attempt that nothing of ran.
fn never_ran(entry: &Entry, cause: Cause) -> Report {
    Report {
        attempt: entry.key.attempt,
        cause,
        started_at: None,
        ended_at: UnixMillis::now(),
        usage: None,
        receipt: Vec::new(),
        given: BTreeMap::new(),
        image: None,
        log: LogTotals { complete: true, ..LogTotals::default() },
        results: Results::default(),
        timings: Vec::new(),
    }
}

/// The end of an attempt that may have run, and whose cell is gone; with what is left of its output.
pub(super) async fn lost(entry: &Entry, reason: String, logs: &LogStore) -> Report {
    let (logs, attempt) = (logs.clone(), entry.key.attempt);
    let log = if mutant!(LostWithoutLog) {
        LogTotals::default()
    } else {
        supervise::blocking(move || logs.left(attempt)).await
    };
    Report { log, given: entry.spec.limits(), ..never_ran(entry, Cause::CellLost { reason }) }
}

/// Whether the right to run an attempt still lasts. An answer to a claim that was long on its way says nothing of how much of the lease
/// is left: the answer to a renewal does, and is waited for.
async fn lasts(lease: &mut watch::Receiver<Option<Instant>>) -> bool {
    let lasts = |until: &Option<Instant>| until.is_some_and(|until| until > Instant::now());
    matches!(timeout(UNSURE, lease.wait_for(lasts)).await, Ok(Ok(_)))
}

fn stopped(reason: StopReason) -> Cause {
    match reason {
        StopReason::Cancel | StopReason::Timeout => Cause::Canceled,
        StopReason::Drain => Cause::AgentStopped,
        StopReason::Lease => Cause::LeaseExpired,
    }
}
