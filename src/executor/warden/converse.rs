//! Carries out what the session decides: reads and writes the link, appends to the log store, attaches again, kills.
//!
//! Everything slow is a future in one set, so nothing here ever waits for one thing only: a full link, a slow disk or a
//! dead engine delays neither a cancel nor another job.

use super::epochs::Epochs;
use super::feed::Feed;
use super::keep::{Keep, Keeper, Kept};
use super::pace::Pace;
use super::session::{Action, Input, Over, Session, StopReason};
use super::verdict;
use crate::egress::{Door, Out, Outside};
use crate::executor::{Cell, CellOrder, Link, LinkInput, LinkOutput, Seen};
use crate::job::{ArtifactProblem, Artifacts, Cause, JobStep, LogTotals, Results, UnixMillis, Usage};
use crate::logstore::{FrameRef, Full, LogError, LogWriter};
use crate::protocol::wire::{
    Advance, Decoder, EGRESS_WINDOW, ExitKind, FromWarden, InputTotals, MARKER, ToWarden, egress_data,
};
use crate::supervise;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use zeroize::{Zeroize, Zeroizing};

/// A warden may have this much unacknowledged output on its way, twice over; beyond it, it does not keep to its window.
const MOST_PENDING_BYTES: usize = 4 * 1024 * 1024;
/// Who looks at a deadline so much too late was not running for a while.
const LATE: Duration = Duration::from_secs(1);
/// Thousandths of a core; with less, a warden may have to wait for its turn.
const FAIR_SHARE: u32 = 250;
/// What a frame costs beside its output.
const FRAME_COST: usize = 64;
/// Payload of one spec chunk.
const CHUNK_BYTES: usize = 32 * 1024;
/// With more on its way to the warden, nothing of the job's connections is added: an order would wait behind it.
const EGRESS_BACKLOG: usize = 64 * 1024;
/// Written bytes that are kept in memory because more stand behind them.
const WRITTEN_MAX: usize = 64 * 1024;
/// Inputs are handed to the link in such parts: whatever else is to be said comes behind one of them.
const AT_ONCE: usize = 64 * 1024;
/// For a warden to take its leave.
const FAREWELL: Duration = Duration::from_millis(100);
/// First and last pause between tries to attach again.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Between tries to kill a cell while the engine is away.
const KILL_PAUSE: Duration = Duration::from_secs(2);
/// What a warden needs to end its job, on top of the grace.
const LADDER: Duration = Duration::from_secs(5);

/// End the job.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// At once, without a grace.
    pub force: bool,
}

/// What the runner tells a conversation while it goes on. Closing either means nothing.
#[derive(Debug)]
pub struct Orders {
    /// To end the job.
    pub stops: mpsc::Receiver<Stop>,
    /// Until when the right to run it lasts; nobody knows before the first renewal.
    pub lease: watch::Receiver<Option<Instant>>,
}

/// What a conversation tells the runner while it goes on.
#[derive(Debug)]
pub enum Progress {
    /// What the job is given is in its place.
    InputsGiven,
    /// The job has started.
    Started,
    /// It has ended, and its files are fetched.
    Fetching,
    /// How far it says it is, and its steps so far.
    Told(Option<crate::job::Progress>, Vec<JobStep>),
}

/// How it ended.
#[derive(Debug)]
pub struct Finished {
    /// Why the attempt ended.
    pub cause: Cause,
    /// When the job started, by the agent's clock.
    pub started_at: Option<UnixMillis>,
    /// The job was not begun: the cell waits for it as an earlier process left it.
    pub not_begun: bool,
    /// What it used.
    pub usage: Option<Usage>,
    /// Isolation facts as read and tried from inside.
    pub receipt: Vec<(String, String)>,
    /// What the log holds.
    pub log: LogTotals,
    /// What it has given back.
    pub results: Results,
    /// Bytes that were no frame.
    pub skipped_bytes: u64,
    /// Links made after the first one.
    pub reattached: u32,
    /// Lets the warden go.
    pub farewell: Farewell,
}

/// The warden keeps the end of its job, for this process or the next one, until it is told that somebody has it safe.
pub struct Farewell {
    input: Option<LinkInput>,
    close: Vec<u8>,
}

impl std::fmt::Debug for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Farewell").finish_non_exhaustive()
    }
}

impl Farewell {
    /// Says it, if the link takes it now; the cell is removed in any case.
    pub async fn say(self) {
        let Some(mut input) = self.input else { return };
        let said = async {
            input.write_all(&self.close).await?;
            input.flush().await
        };
        let _ = tokio::time::timeout(FAREWELL, said).await;
    }
}

/// What a conversation needs besides the cell.
pub struct Conversation<'a> {
    /// What was asked for.
    pub order: &'a CellOrder,
    /// Where output goes.
    pub log: LogWriter,
    /// What the runner says.
    pub orders: Orders,
    /// How long whoever runs the cell may be away before the cell is given up.
    pub reconnect: Duration,
    /// How many processes have talked to this warden before.
    pub generation: u32,
    /// Where the files go that the job leaves; without it none are kept.
    pub keep: Option<&'a Keep>,
    /// The next process will know of this one.
    pub noted: bool,
    /// Bytes of output that are taken in a second while other jobs' output is written here too.
    pub output_share: u64,
    /// Where a job goes that may go out.
    pub outside: &'a Outside,
}

enum Done {
    Linked(Link),
    Gone(String),
    Lost(String),
    Killed(Result<(), String>),
    Appended(Box<LogWriter>, Result<u64, LogError>),
}

/// One frame of output on its way to the log store.
struct Held {
    seq: u64,
    number: u8,
    time_us: u64,
    bytes: Vec<u8>,
}

struct Talk<'a, C: Cell> {
    cell: &'a C,
    order: &'a CellOrder,
    reconnect: Duration,
    session: Session,
    began: Instant,
    epochs: Epochs,
    links: u32,
    /// There was a process before this one.
    resumed: bool,
    /// The spec may have reached the warden, and nothing said that it was refused.
    may_have_run: bool,
    output: Option<LinkOutput>,
    input: Option<LinkInput>,
    decoder: Decoder,
    skipped: u64,
    to_send: Vec<u8>,
    sent: usize,
    /// Bounded by the session's window, and by [`MOST_PENDING_BYTES`] against a warden that ignores it.
    pending: Vec<Held>,
    pending_bytes: usize,
    writer: Option<LogWriter>,
    /// What stands in the way of storing more.
    room: watch::Receiver<Full>,
    pace: Pace,
    /// More may be stored then.
    paced: Option<u64>,
    /// Inputs on their way to the warden.
    feed: Option<Feed>,
    /// What the inputs were, once all of them are in their places.
    given: Option<InputTotals>,
    /// The spec is among what is to be sent, or was.
    spec_queued: bool,
    /// At most one append, one attach and one kill at a time.
    tasks: FuturesUnordered<BoxFuture<'a, Done>>,
    /// A kill is under way.
    killing: bool,
    started_at: Option<UnixMillis>,
    /// What the warden was told of the lease with its job.
    lease_ms: Option<u64>,
    keep: Option<&'a Keep>,
    /// Fetches what the job leaves, once it has ended.
    keeper: Option<Keeper>,
    /// The last word of the job on how far it is.
    advance: Advance,
    /// The way out, for a job that asked for one.
    door: Option<Door>,
    over: Option<Over>,
}

/// Talks to the warden of `cell` until the job has ended and its output is stored, or the cell is lost. Without a first link it goes
/// on where an earlier process was. Never fails: every way to end is a cause. `progress` is called in order and must not block.
pub async fn converse<C: Cell + Sync>(
    cell: &C,
    first: Option<Link>,
    conversation: Conversation<'_>,
    mut progress: impl FnMut(Progress) + Send,
) -> Finished {
    let Conversation { order, log, mut orders, reconnect, generation, noted, keep, output_share, outside } =
        conversation;
    let (door, reconnect) = (Door::of(order.attempt, &order.spec, outside), cell.patience(reconnect));
    let began = Instant::now();
    let mut session = Session::new(
        order.attempt.to_string(),
        log.totals().frames,
        order.grace.as_u64(),
        order.spec.timeout().as_u64(),
    );
    // On another host nobody shares what this one has.
    session = session.starved(order.spec.takes().is_some_and(|takes| takes.cpu.as_milli() < FAIR_SHARE));
    if door.is_some() {
        session = session.sharing(EGRESS_WINDOW);
    }
    session = session.cleaning_up(order.spec.on_cancel().map_or(0, |after| after.timeout.as_u64()));
    session = session.with_inputs(order.inputs.is_some());
    let keep = keep.filter(|_| !order.spec.artifacts().is_empty());
    session = session.collecting(keep.map(|keep| keep.limits.timeout.as_u64()));
    if let Some(until) = *orders.lease.borrow_and_update() {
        session = session.leased(left(until));
    }
    let mut talk = Talk {
        cell,
        order,
        reconnect,
        session,
        began,
        epochs: Epochs::new(generation, noted, random_below),
        links: 0,
        resumed: first.is_none(),
        may_have_run: first.is_none(),
        output: None,
        input: None,
        decoder: Decoder::new(),
        skipped: 0,
        to_send: Vec::new(),
        sent: 0,
        pending: Vec::new(),
        pending_bytes: 0,
        room: log.room(),
        pace: Pace::new(output_share, 0),
        paced: None,
        writer: Some(log),
        feed: None,
        given: None,
        spec_queued: first.is_none(),
        tasks: FuturesUnordered::new(),
        killing: false,
        started_at: None,
        lease_ms: None,
        keep,
        keeper: None,
        advance: Advance { percent: u8::MAX, ..Advance::default() },
        door,
        over: None,
    };
    match first {
        Some(first) => talk.linked(first, &mut progress),
        None => {
            talk.session = talk.session.resumed();
            talk.tasks.push(Box::pin(reattach(cell, reconnect)));
        }
    }
    let (mut stops_open, mut lease_open, mut room) = (true, true, talk.room.clone());
    while talk.over.is_none() {
        // A stop, or the end, may have made room.
        talk.append_pending();
        talk.pass_inputs();
        let wake = talk.began + Duration::from_millis(talk.session.wake_at());
        let paced = talk.paced.map(|at| talk.began + Duration::from_millis(at));
        tokio::select! {
            // Orders and deadlines first, output last: each of the others is soon done with what it has.
            biased;
            stop = orders.stops.recv(), if stops_open => match stop {
                Some(Stop { reason, force }) => talk.on(Input::Stop { reason, force }, &mut progress),
                None => stops_open = false,
            },
            changed = orders.lease.changed(), if lease_open => {
                lease_open = changed.is_ok();
                if let Some(until) = *orders.lease.borrow_and_update() {
                    talk.on(Input::Renewed(left(until)), &mut progress);
                }
            }
            () = tokio::time::sleep_until(wake) => {
                if wake.elapsed() >= LATE && !mutant!(KillUnheard) {
                    talk.on(Input::Late, &mut progress);
                }
                talk.on(Input::Tick, &mut progress);
            }
            Ok(()) = room.changed() => {}
            () = tokio::time::sleep_until(paced.unwrap_or(wake)), if paced.is_some() => {}
            Some(done) = talk.tasks.next() => talk.done(done, &mut progress),
            () = changed(&mut talk.keeper) => talk.fetch(&mut progress),
            written = write_some(&mut talk.input, &talk.to_send[talk.sent..]) => match written {
                Ok(count) => talk.wrote(count),
                Err(error) => talk.cut(error.to_string(), &mut progress),
            },
            out = next_out(&mut talk.door), if talk.input.is_some() && talk.to_send.len() - talk.sent < EGRESS_BACKLOG => {
                talk.send_out(&out);
            }
            // One at a time, and only when what was there is on its way.
            piece = super::feed::next(&mut talk.feed) => talk.piece(piece, &mut progress),
            chunk = next_chunk(&mut talk.output) => match chunk {
                Some(Ok(bytes)) => talk.received(&bytes, &mut progress),
                Some(Err(reason)) => talk.cut(reason, &mut progress),
                None => talk.cut("the attached stream ended".to_owned(), &mut progress),
            },
        }
    }
    talk.finish().await
}

/// Milliseconds from now.
fn left(until: Instant) -> u64 {
    u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)
}

async fn next_chunk(output: &mut Option<LinkOutput>) -> Option<Result<Bytes, String>> {
    match output {
        Some(output) => output.next().await,
        None => std::future::pending().await,
    }
}

async fn changed(keeper: &mut Option<Keeper>) {
    match keeper {
        Some(keeper) => keeper.changed().await,
        None => std::future::pending().await,
    }
}

async fn next_out(door: &mut Option<Door>) -> Out {
    match door {
        Some(door) => door.next().await,
        None => std::future::pending().await,
    }
}

async fn write_some(input: &mut Option<LinkInput>, bytes: &[u8]) -> std::io::Result<usize> {
    match input {
        Some(input) if !bytes.is_empty() => {
            let count = input.write(bytes).await?;
            input.flush().await?;
            if count == 0 { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(count) }
        }
        _ => std::future::pending().await,
    }
}

impl<'a, C: Cell + Sync> Talk<'a, C> {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on(&mut self, input: Input, progress: &mut impl FnMut(Progress)) {
        for action in self.session.on(input, self.now()) {
            self.act(action, progress);
        }
    }

    fn act(&mut self, action: Action, progress: &mut impl FnMut(Progress)) {
        match action {
            Action::Send(message) => message.encode(self.epochs.now(), &mut self.to_send),
            Action::SendSpec => self.queue_spec(),
            Action::SendInputs => self.begin_inputs(),
            // Only asked for by an output frame, and done where the frame is at hand.
            Action::Keep => {}
            Action::Reattach => {
                self.unlink();
                self.tasks.push(Box::pin(reattach(self.cell, self.reconnect)));
            }
            Action::Kill => {
                // The attach goes first: an attached stream that nobody reads makes the kill hang.
                self.unlink();
                let cell = self.cell;
                self.killing = true;
                self.tasks.push(Box::pin(async move { Done::Killed(cell.kill().await) }));
            }
            Action::Started => {
                self.feed = None;
                self.started_at = Some(UnixMillis::now());
                progress(Progress::Started);
            }
            Action::Collect => {
                progress(Progress::Fetching);
                if let Some(keep) = self.keep {
                    let (rules, attempt) = (self.order.spec.artifacts(), self.order.attempt);
                    let sends = self.keeper.get_or_insert_with(|| Keeper::new(keep, rules, attempt)).begin();
                    self.send_all(&sends);
                }
                self.fetch(progress);
            }
            Action::Over(over) => {
                self.may_have_run &= !matches!(*over, Over::Broken(Cause::CellWeaker { .. }));
                self.over = Some(*over);
            }
        }
    }

    fn send_all(&mut self, messages: &[ToWarden]) {
        // Without a link nothing is sent: what was under way is asked for again over the next one.
        for message in messages.iter().filter(|_| self.input.is_some()) {
            message.encode(self.epochs.now(), &mut self.to_send);
        }
    }

    /// Goes on with fetching what the job leaves.
    fn fetch(&mut self, progress: &mut impl FnMut(Progress)) {
        // Without a link nobody answers; the session says when there is one again.
        let sends = self.keeper.as_mut().filter(|_| self.input.is_some()).map(Keeper::ask).unwrap_or_default();
        self.send_all(&sends);
        if self.keeper.as_ref().is_none_or(Keeper::is_done) {
            self.on(Input::Collected, progress);
        }
    }

    /// Takes a part of what the job leaves.
    fn fetched(&mut self, message: FromWarden, progress: &mut impl FnMut(Progress)) {
        let taken = match (&mut self.keeper, message) {
            (Some(keeper), FromWarden::Page(page)) => keeper.page(page),
            (Some(keeper), FromWarden::Piece(piece)) => keeper.piece(piece),
            _ => Err("it sends files that nobody has asked for".to_owned()),
        };
        match taken {
            Ok(sends) => {
                self.send_all(&sends);
                // A sign of life.
                self.on(Input::Stale, progress);
                self.fetch(progress);
            }
            Err(text) => self.on(Input::Message(FromWarden::Fault { text }), progress),
        }
    }

    fn unlink(&mut self) {
        self.output = None;
        self.input = None;
        self.feed = None;
        self.to_send.clear();
        self.sent = 0;
        if let Some(door) = &mut self.door {
            door.reset();
        }
        self.skipped += self.decoder.skipped();
        self.decoder = Decoder::new();
    }

    fn linked(&mut self, link: Link, progress: &mut impl FnMut(Progress)) {
        self.unlink();
        self.epochs.next();
        self.links += 1;
        self.output = Some(link.output);
        self.input = Some(link.input);
        self.on(Input::Attached, progress);
    }

    fn cut(&mut self, reason: String, progress: &mut impl FnMut(Progress)) {
        tracing::debug!(attempt = %self.order.attempt, %reason, "link to the warden was cut");
        self.unlink();
        // What is pending is stored as ever; the session asks again only for what never arrived.
        self.on(Input::Cut(reason), progress);
    }

    fn wrote(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.to_send.len() {
            if !self.order.secrets.is_empty() {
                self.to_send.zeroize();
            }
            self.to_send.clear();
            self.sent = 0;
            if self.spec_queued {
                self.may_have_run = true;
                crash_point!("after-spec-sent");
            }
        } else if self.sent > WRITTEN_MAX {
            self.to_send.drain(..self.sent);
            self.sent = 0;
        }
    }

    fn send_out(&mut self, out: &Out) {
        match out {
            Out::Word(word) => ToWarden::Egress(word.clone()).encode(self.epochs.now(), &mut self.to_send),
            Out::Data(stream, bytes) => egress_data(false, *stream, bytes, self.epochs.now(), &mut self.to_send),
        }
    }

    fn received(&mut self, bytes: &[u8], progress: &mut impl FnMut(Progress)) {
        self.decoder.feed(bytes);
        while self.output.is_some() && self.over.is_none() {
            let Some(frame) = self.decoder.next() else { break };
            if frame.epoch != self.epochs.now() {
                // What was under way over an earlier link still comes out of the engine's buffers first. It is sent again, so
                // it is dropped; but it tells that the warden lives.
                if self.epochs.was_ours(frame.epoch) {
                    self.on(Input::Stale, progress);
                }
                continue;
            }
            let seq = frame.seq;
            match FromWarden::decode(&frame) {
                Ok(FromWarden::Output { stream, time_us, bytes }) => {
                    let number = if mutant!(OneStream) { 1 } else { stream };
                    match FrameRef::carried(seq, time_us, number, &bytes) {
                        Ok(_) => self.output(Held { seq, number, time_us, bytes }, progress),
                        Err(what) => {
                            let text = format!("output that cannot be read: {what}");
                            self.on(Input::Message(FromWarden::Fault { text }), progress);
                        }
                    }
                }
                Ok(message @ (FromWarden::Page(_) | FromWarden::Piece(_))) => self.fetched(message, progress),
                Ok(FromWarden::Advance(advance)) => {
                    progress(Progress::Told(verdict::progress(&advance), verdict::steps(&advance)));
                    self.advance = advance;
                    self.on(Input::Stale, progress);
                }
                Ok(FromWarden::Egress(message)) => {
                    let taken = match &mut self.door {
                        Some(door) => door.take(message),
                        None => Err("it speaks of connections, and the job has none"),
                    };
                    if let Err(what) = taken {
                        self.on(Input::Message(FromWarden::Fault { text: what.to_owned() }), progress);
                    }
                }
                Ok(FromWarden::InputsTaken { offset }) => self.inputs_taken(offset, progress),
                Ok(message) => self.on(Input::Message(message), progress),
                Err(error) => {
                    let fault = FromWarden::Fault { text: format!("a frame that cannot be read: {error}") };
                    self.on(Input::Message(fault), progress);
                }
            }
        }
        self.append_pending();
    }

    fn output(&mut self, held: Held, progress: &mut impl FnMut(Progress)) {
        for action in self.session.on(Input::Output(held.seq), self.now()) {
            if action != Action::Keep {
                self.act(action, progress);
                continue;
            }
            self.pending_bytes += held.bytes.len() + FRAME_COST;
            if self.pending_bytes > MOST_PENDING_BYTES {
                let fault = FromWarden::Fault { text: "it sends more than its window allows".to_owned() };
                return self.on(Input::Message(fault), progress);
            }
            self.pending.push(held);
            return;
        }
    }

    /// Starts an append of all that is pending, unless one is under way.
    fn append_pending(&mut self) {
        // Without room nothing is stored, so nothing is acknowledged: the warden's window fills, and the job waits. What is left of one that
        // ends is no more than the warden holds, and its end comes behind it.
        let waits = || self.room.borrow().holds_up(self.order.attempt) && !self.session.is_ending();
        self.paced = None;
        if self.pending.is_empty() || waits() {
            return;
        }
        let now = self.now();
        let Some(writer) = &self.writer else { return };
        // Also while it is being stopped: its grace and its last command can be minutes.
        if !writer.is_alone() && !self.session.has_ended() {
            self.paced = self.pace.next(now);
            if self.paced.is_some() {
                return;
            }
        }
        let Some(mut writer) = self.writer.take() else { return };
        let batch = std::mem::take(&mut self.pending);
        self.pace.spend(self.pending_bytes, now);
        self.pending_bytes = 0;
        let append = supervise::blocking(move || {
            let mut result = writer.append(&frames(&batch));
            if result.is_ok() && writer.needs_sync() {
                result = writer.sync().and(result);
            }
            (writer, result)
        });
        self.tasks.push(Box::pin(async move {
            let (writer, result) = append.await;
            Done::Appended(Box::new(writer), result.map(|appended| appended.last_seq))
        }));
    }

    fn done(&mut self, done: Done, progress: &mut impl FnMut(Progress)) {
        match done {
            Done::Linked(link) => self.linked(link, progress),
            Done::Gone(reason) => self.on(Input::Gone(reason), progress),
            Done::Lost(reason) => self.on(Input::Lost(reason), progress),
            Done::Killed(Ok(())) => {
                self.killing = false;
                self.on(Input::Gone("ended from outside".to_owned()), progress);
            }
            Done::Killed(Err(reason)) => {
                self.killing = false;
                // The session asks again at its next deadline; meanwhile the link is wanted back.
                tracing::warn!(attempt = %self.order.attempt, %reason, "cell could not be killed");
                self.on(Input::Cut(reason), progress);
            }
            Done::Appended(writer, result) => {
                self.writer = Some(*writer);
                match result {
                    Ok(last) => {
                        crash_point!("mid-output");
                        self.on(Input::Stored(last), progress);
                    }
                    Err(error) => {
                        self.act(Action::Kill, progress);
                        let cause = Cause::LogStoreFailed { reason: error.to_string() };
                        self.over = Some(Over::Broken(cause));
                    }
                }
                if self.over.is_none() {
                    self.append_pending();
                }
            }
        }
    }

    /// Puts the whole spec on its way: head, script, stdin in chunks, then the commit.
    fn queue_spec(&mut self) {
        // It has the secrets in it.
        let mut head = Zeroizing::new(Vec::new());
        let mut spec = self.cell.cell_spec().clone();
        spec.inputs = self.given;
        self.spec_queued = true;
        // What is left of the lease: making the cell took its time, and this process may be gone before it can say so. After a cut it is
        // the same again, since the warden puts together what came before and after it.
        let left = self.session.lease_until().map(|until| until.saturating_sub(self.now()));
        if let Some(left) = left.filter(|_| spec.lease_ms > 0 && !mutant!(WholeLeaseAtCommit)) {
            spec.lease_ms = *self.lease_ms.get_or_insert(left.clamp(1, spec.lease_ms));
        }
        spec.encode(&mut head);
        let script = match self.order.spec.program() {
            crate::job::Program::Script { text, .. } => text.as_bytes(),
            crate::job::Program::Command(_) => &[],
        };
        let stdin = self.order.spec.stdin().unwrap_or_default().as_bytes();
        for (section, bytes) in [(0u8, head.as_slice()), (1, script), (2, stdin)] {
            let mut offset = 0;
            for chunk in pieces(bytes) {
                let message = ToWarden::SpecChunk { section, offset, bytes: chunk.to_vec() };
                message.encode(self.epochs.now(), &mut self.to_send);
                offset += chunk.len() as u64;
            }
        }
        ToWarden::commit(&head, script, stdin).encode(self.epochs.now(), &mut self.to_send);
    }

    /// Begins to give the inputs, from the first byte.
    fn begin_inputs(&mut self) {
        let Some(inputs) = &self.order.inputs else { return };
        // Where its cell has its workspace.
        let root = self.cell.cell_spec().collect.as_ref().map_or(&inputs.root, |collect| &collect.root).clone();
        ToWarden::Inputs { root }.encode(self.epochs.now(), &mut self.to_send);
        self.given = None;
        self.feed = Some(Feed::new(inputs.open()));
    }

    /// Puts on its way what of the inputs is at hand and has room: only behind everything else, so that nothing waits behind it.
    fn pass_inputs(&mut self) {
        if let Some(feed) = self.feed.as_mut().filter(|_| self.to_send.is_empty()) {
            for (offset, part) in std::iter::from_fn(|| feed.part()) {
                for piece in pieces(&part).scan(offset, |at, piece| {
                    let from = *at;
                    *at += piece.len() as u64;
                    Some((from, piece))
                }) {
                    let (offset, bytes) = (piece.0, piece.1.to_vec());
                    ToWarden::InputsPart { offset, bytes }.encode(self.epochs.now(), &mut self.to_send);
                }
                if self.to_send.len() >= AT_ONCE {
                    break;
                }
            }
        }
    }

    /// The next of what the job is given, from whoever brings it.
    fn piece(&mut self, piece: Result<(), Cause>, progress: &mut impl FnMut(Progress)) {
        match piece {
            Ok(()) => self.inputs_given(progress),
            Err(cause) => {
                self.unlink();
                let cell = self.cell;
                self.killing = true;
                self.tasks.push(Box::pin(async move { Done::Killed(cell.kill().await) }));
                self.over = Some(Over::Broken(cause));
            }
        }
    }

    fn inputs_taken(&mut self, offset: u64, progress: &mut impl FnMut(Progress)) {
        // Of inputs that are not being given: a last word about those of before.
        let Some(feed) = &mut self.feed else { return };
        match feed.taken(offset) {
            Ok(()) => {
                self.on(Input::InputsMoved, progress);
                self.inputs_given(progress);
            }
            Err(text) => self.on(Input::Message(FromWarden::Fault { text }), progress),
        }
    }

    /// Goes on with the job if all of its inputs are in their places.
    fn inputs_given(&mut self, progress: &mut impl FnMut(Progress)) {
        if let Some(totals) = self.feed.as_ref().and_then(Feed::whole) {
            self.given = Some(totals);
            self.feed = None;
            progress(Progress::InputsGiven);
            self.on(Input::InputsGiven, progress);
        }
    }

    async fn finish(mut self) -> Finished {
        // What is half sent has to be whole before anything else is understood.
        let mut close = self.to_send.split_off(self.sent);
        ToWarden::Close.encode(self.epochs.now(), &mut close);
        let farewell = Farewell { input: self.input.take(), close };
        let went_out = match &mut self.door {
            Some(door) => {
                if matches!(self.over, Some(Over::Exited(_))) {
                    door.close().await;
                }
                Some(door.told())
            }
            None => None,
        };
        self.unlink();
        // What runs in the cell is ended before its end is told, since another try may follow at once. What is asked of the engine has a
        // deadline; while it is away, the warden ends its job when its lease is over, and that is waited for.
        let lease_until = self.session.lease_until().unwrap_or_default();
        let gone_by = self.began + Duration::from_millis(lease_until) + self.order.grace.as_duration() + LADDER;
        while self.writer.is_none() || self.killing {
            match self.tasks.next().await {
                Some(Done::Appended(writer, _)) => self.writer = Some(*writer),
                Some(Done::Killed(Err(reason)))
                    if matches!(self.over, Some(Over::Broken(_)))
                        && Instant::now() < gone_by
                        && !mutant!(KillTriedOnce) =>
                {
                    tracing::warn!(attempt = %self.order.attempt, %reason, "cell could not be killed yet");
                    let cell = self.cell;
                    self.tasks.push(Box::pin(async move {
                        sleep(KILL_PAUSE).await;
                        Done::Killed(cell.kill().await)
                    }));
                }
                Some(Done::Killed(_)) => self.killing = false,
                Some(Done::Linked(_) | Done::Gone(_) | Done::Lost(_)) => {}
                None => break,
            }
        }
        let over = self.over.expect("the loop ends with it");
        let kept = kept(self.keeper, self.order, self.keep.is_some(), &over).await;
        let mut writer = self.writer.expect("an append always gives it back");
        let mut rest = std::mem::take(&mut self.pending);
        if mutant!(OverBeforeStored) {
            rest.clear();
        }
        let mut log = supervise::blocking(move || {
            // What came and is not stored yet: it is the job's output, however it ended.
            if let Err(error) = writer.append(&frames(&rest)) {
                tracing::error!(%error, "the last output could not be stored");
            }
            writer.finish()
        })
        .await;
        let mut receipt = self.session.receipt().to_vec();
        if !receipt.is_empty() {
            receipt.splice(..0, self.cell.facts().iter().cloned());
        }
        let spec = &self.order.spec;
        let mut started_at = self.started_at;
        let (cause, usage) = match &over {
            Over::Exited(exit) => {
                if self.resumed && exit.started_us > 0 {
                    started_at = Some(UnixMillis::new(exit.started_us / 1000));
                }
                log.complete = log.frames == exit.last_seq
                    && log.stdout.bytes == exit.stdout_bytes
                    && log.stderr.bytes == exit.stderr_bytes;
                let argv0 = self.order.argv.first().map(String::as_str).unwrap_or_default();
                let usage = Usage { egress: went_out, ..verdict::usage(exit, spec) };
                let cause = verdict::cause(exit, spec, argv0);
                (verdict::with_artifacts(cause, &kept), Some(usage))
            }
            Over::Broken(cause) => {
                // Nothing can be missing where nothing ever ran.
                log.complete = !self.may_have_run || mutant!(AlwaysComplete);
                (cause.clone(), None)
            }
            Over::NotBegun => {
                log.complete = true;
                (Cause::LeaseExpired, None)
            }
        };
        let told = match &over {
            Over::Exited(exit) => exit.results.as_ref(),
            Over::Broken(_) | Over::NotBegun => None,
        };
        let artifacts = Some(kept.artifacts).filter(|_| !spec.artifacts().is_empty() && over != Over::NotBegun);
        Finished {
            results: verdict::results(told, &self.advance, artifacts),
            cause,
            started_at,
            usage,
            not_begun: over == Over::NotBegun,
            receipt,
            log,
            skipped_bytes: self.skipped,
            reattached: self.links.saturating_sub(1),
            farewell,
        }
    }
}

/// What became of the files that the job leaves.
async fn kept(keeper: Option<Keeper>, order: &CellOrder, wanted: bool, over: &Over) -> Kept {
    if let Some(keeper) = keeper {
        return keeper.wrap_up(None).await;
    }
    let rules = order.spec.artifacts();
    if rules.is_empty() {
        return Kept::default();
    }
    let why = match over {
        Over::Exited(exit) if exit.kind == ExitKind::StartFailed => "the job never ran",
        Over::Exited(exit) if exit.results.is_none() => "the warden of its cell is of an older version",
        Over::Exited(_) if !wanted => "this agent keeps no files",
        Over::Exited(_) => "it was ended before the first of it was fetched",
        Over::Broken(_) | Over::NotBegun => "its cell was gone before",
    };
    let mut artifacts = Artifacts::default();
    artifacts.tell(ArtifactProblem::new(b"", "not_fetched", format!("nothing was fetched: {why}")));
    let missing = rules.iter().filter(|rule| rule.required).map(|rule| format!("{}: {why}", rule.path)).collect();
    Kept { artifacts, missing, failed: Some(why.to_owned()) }
}

fn frames(batch: &[Held]) -> Vec<FrameRef<'_>> {
    batch.iter().filter_map(|held| FrameRef::carried(held.seq, held.time_us, held.number, &held.bytes).ok()).collect()
}

/// Looks whether the cell still runs and attaches again, for as long as `limit`.
async fn reattach<C: Cell>(cell: &C, limit: Duration) -> Done {
    let until = Instant::now() + limit;
    let mut pause = RECONNECT_PAUSES.0;
    let mut away = false;
    loop {
        let reason = match cell.look().await {
            Ok(Seen::Gone(reason)) if away => return Done::Gone(format!("the engine was away, and then {reason}")),
            Ok(Seen::Gone(reason)) => return Done::Gone(reason),
            Ok(Seen::Running) => match cell.attach().await {
                Ok(link) => return Done::Linked(link),
                Err(reason) => reason,
            },
            Err(reason) => {
                away = true;
                reason
            }
        };
        if Instant::now() + pause >= until {
            let reason = format!("no answer for {} s: {reason}", limit.as_secs());
            return if mutant!(LostIsGone) { Done::Gone(reason) } else { Done::Lost(reason) };
        }
        sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_PAUSES.1);
    }
}

/// Cuts a section into chunks, none of which holds a whole marker: what a torn stream shows of a script must not look like a
/// frame.
fn pieces(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let most = rest.len().min(CHUNK_BYTES);
        let marker = marker_in(&rest[..most]);
        let (chunk, behind) = rest.split_at(marker.map_or(most, |at| at + 1));
        rest = behind;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Where the first marker is. All inputs pass here: first a look that takes many bytes at a time, at the marker's first two.
fn marker_in(bytes: &[u8]) -> Option<usize> {
    const LOOK: usize = 256;
    let mut at = 0;
    while at + 1 < bytes.len() {
        let end = bytes.len().min(at + LOOK + 1);
        let (firsts, seconds) = (&bytes[at..end - 1], &bytes[at + 1..end]);
        let pairs = firsts
            .iter()
            .zip(seconds)
            .fold(0, |found, (first, second)| found | u8::from(*first == MARKER[0]) & u8::from(*second == MARKER[1]));
        if pairs != 0 {
            // It may go on behind what was looked at.
            let near = &bytes[at..bytes.len().min(end + MARKER.len())];
            if let Some(found) = near.windows(MARKER.len()).position(|part| part == MARKER) {
                return Some(at + found);
            }
        }
        at += LOOK;
    }
    None
}

fn random_below(limit: u32) -> u32 {
    #[cfg(test)]
    if let Some(random) = crate::seeded::random() {
        return (random >> 32) as u32 % limit;
    }
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    u32::from_le_bytes(bytes) % limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_holds_a_marker_and_together_they_are_the_whole() {
        let mut bytes = vec![7; CHUNK_BYTES - 2];
        bytes.extend(MARKER);
        bytes.extend(MARKER);
        bytes.extend([1, 2, 3]);
        let all: Vec<&[u8]> = pieces(&bytes).collect();
        assert_eq!(all.concat(), bytes);
        assert!(all.iter().all(|piece| !piece.windows(4).any(|part| part == MARKER)));
        assert_eq!(pieces(b"").count(), 0);
    }

    #[test]
    fn a_marker_is_found_wherever_it_is_and_the_first_of_two() {
        for length in [0, 1, 3, 4, 5, 255, 256, 257, 258, 260, 700] {
            let mut bytes = vec![MARKER[0]; length];
            assert_eq!(marker_in(&bytes), None, "{length} bytes");
            for at in 0..(length + 1).saturating_sub(MARKER.len()) {
                bytes.fill(MARKER[0]);
                let end = bytes.len() - MARKER.len();
                for place in [end, at] {
                    bytes[place..place + MARKER.len()].copy_from_slice(&MARKER);
                }
                let plain = bytes.windows(MARKER.len()).position(|part| part == MARKER);
                assert_eq!(marker_in(&bytes), plain, "{length} bytes, one at {at}");
            }
            // The beginning of one is none.
            bytes.fill(0);
            bytes.iter_mut().rev().zip(MARKER[..3].iter().rev()).for_each(|(to, from)| *to = *from);
            assert_eq!(marker_in(&bytes), None, "{length} bytes");
        }
    }
}
