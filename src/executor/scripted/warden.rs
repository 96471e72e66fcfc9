//! A scripted warden: what it remembers over links, and its job's way through virtual time. It does what the real one does: keeps
//! output until it is acknowledged and the end until it is let go, obeys the highest epoch only, and ends its job by itself
//! when the lease or the wall clock runs out.

use super::play::{Ears, Play, Trick};
use super::{Scripted, Seeing};
use crate::job::{AttemptId, UnixMillis};
use crate::protocol::wire::{CellSpec, Exit, ExitKind, FromWarden, Mismatch, ToWarden, WardenState};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// What a slow job takes to end.
const SLOW: Duration = Duration::from_millis(700);
/// Bytes of output that it keeps.
const RING: usize = 1 << 20;
const TIMEOUT: u8 = 2;
const LEASE: u8 = 5;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// With this code, after the warden was given this reason to end it, if any.
    Exited { code: i32, reason: u8 },
    /// With everything in its cell, from outside.
    CellEnded,
}

/// A job that ran.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) from: Instant,
    pub(crate) to: Option<(Instant, How)>,
    /// Frames of output until now.
    pub(crate) frames: u64,
    pub(crate) play: Play,
}

pub(super) struct Warden {
    executor: Scripted,
    attempt: AttemptId,
    name: String,
    play: Play,
    state: Mutex<State>,
    news: watch::Sender<()>,
}

struct Job {
    began: Instant,
    began_at: UnixMillis,
    grace: Duration,
    /// When the next frame, or the end, is due.
    next_at: Instant,
    wall_at: Instant,
    lease_at: Option<Instant>,
    reason: u8,
    /// When it ends because it was asked to.
    ends_at: Option<Instant>,
    kill_at: Option<Instant>,
}

enum Phase {
    Waiting {
        head: Vec<u8>,
    },
    Running(Job),
    Ended(Exit),
    Refused,
    /// Process 1 has gone.
    Gone,
}

struct State {
    phase: Phase,
    epoch: u32,
    window: usize,
    kept: Ring,
    next_seq: u64,
    out: VecDeque<FromWarden>,
    exit_due: bool,
}

/// Output that is not acknowledged, the first part of it on its way.
#[derive(Default)]
struct Ring {
    frames: VecDeque<(u64, Vec<u8>)>,
    sent: usize,
    bytes: usize,
    sent_bytes: usize,
}

impl Ring {
    fn push(&mut self, seq: u64, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.frames.push_back((seq, bytes));
    }

    /// The next one that is to be sent and fits into the window.
    fn next(&self, window: usize) -> Option<&(u64, Vec<u8>)> {
        self.frames.get(self.sent).filter(|(_, bytes)| self.sent_bytes + bytes.len() <= window)
    }

    fn went(&mut self) {
        self.sent_bytes += self.frames[self.sent].1.len();
        self.sent += 1;
    }

    /// Everything is to be sent again, but for what is stored.
    fn rewind(&mut self, stored: u64) {
        (self.sent, self.sent_bytes) = (self.frames.len(), self.bytes);
        self.acknowledge(stored);
        (self.sent, self.sent_bytes) = (0, 0);
    }

    /// More than was sent cannot be acknowledged.
    fn acknowledge(&mut self, seq: u64) {
        while self.sent > 0
            && self.frames.front().is_some_and(|(kept, _)| *kept <= seq)
            && let Some((_, bytes)) = self.frames.pop_front()
        {
            self.sent -= 1;
            self.sent_bytes -= bytes.len();
            self.bytes -= bytes.len();
        }
    }
}

/// What goes over a link next.
pub(super) struct Said {
    pub(super) bytes: Vec<u8>,
    /// The link ends behind it.
    pub(super) last: bool,
}

impl Warden {
    pub(super) fn new(executor: &Scripted, attempt: AttemptId, play: Play) -> Arc<Self> {
        let state = State {
            phase: Phase::Waiting { head: Vec::new() },
            epoch: 0,
            window: 0,
            kept: Ring::default(),
            next_seq: 1,
            out: VecDeque::new(),
            exit_due: false,
        };
        let (executor, state, news) = (executor.clone(), Mutex::new(state), watch::Sender::new(()));
        Arc::new(Self { executor, attempt, name: attempt.to_string(), play, state, news })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    pub(super) fn is_mute(&self) -> bool {
        self.play.trick == Some(Trick::Mute)
    }

    pub(super) fn is_noisy(&self) -> bool {
        self.play.trick == Some(Trick::Garbage)
    }

    pub(super) fn job_runs(&self) -> bool {
        matches!(self.state().phase, Phase::Running(_))
    }

    /// Everything in the cell has ended.
    pub(super) fn killed(&self) {
        let before = std::mem::replace(&mut self.state().phase, Phase::Gone);
        if matches!(before, Phase::Running(_)) {
            self.over(How::CellEnded);
        }
        self.news.send_replace(());
    }

    fn see(&self, what: Seeing<'_>) {
        self.executor.world().see(&self.name, what);
    }

    fn over(&self, how: How) {
        if let Some(run) = self.executor.world().runs.get_mut(&self.attempt) {
            run.to = Some((Instant::now(), how));
        }
        self.see(Seeing::Over(how));
    }

    // ---- the agent ----

    /// What is to be said in this epoch; `None` when there is nobody any more who could say it.
    pub(super) fn say(&self, epoch: u32) -> Option<Said> {
        let mut state = self.state();
        let state = &mut *state;
        if matches!(state.phase, Phase::Gone) {
            return None;
        }
        let mut said = Said { bytes: Vec::new(), last: false };
        if epoch == 0 || epoch != state.epoch {
            return Some(said);
        }
        for message in state.out.drain(..) {
            message.encode(epoch, 0, &mut said.bytes);
        }
        let mut whole = 0;
        while let Some((seq, bytes)) = state.kept.next(state.window) {
            let before = said.bytes.len();
            let frame = FromWarden::Output { stream: self.play.stream(*seq), time_us: *seq, bytes: bytes.clone() };
            frame.encode(epoch, *seq, &mut said.bytes);
            if self.play.trick == Some(Trick::Cut) && whole == 2 {
                said.bytes.truncate(before + (said.bytes.len() - before) / 2);
                said.last = true;
                return Some(said);
            }
            whole += 1;
            state.kept.went();
        }
        if state.exit_due
            && state.kept.sent == state.kept.frames.len()
            && let Phase::Ended(exit) = &state.phase
        {
            FromWarden::Exit(exit.clone()).encode(epoch, 0, &mut said.bytes);
            state.exit_due = false;
        }
        Some(said)
    }

    pub(super) fn hear(self: &Arc<Self>, epoch: u32, message: ToWarden) {
        let current = self.state().epoch;
        if let ToWarden::Attach { attempt, stored, window, .. } = &message {
            if epoch >= current && *attempt == self.name {
                self.see(Seeing::Heard(&message));
                self.attached(epoch, *stored, *window);
            }
        } else if epoch == current && !matches!(self.state().phase, Phase::Gone) {
            self.see(Seeing::Heard(&message));
            self.obey(message);
        }
        self.news.send_replace(());
    }

    fn attached(&self, epoch: u32, stored: u64, window: u32) {
        let mut state = self.state();
        state.epoch = epoch;
        state.window = usize::try_from(window).unwrap_or(RING).min(RING);
        state.kept.rewind(stored);
        state.out.clear();
        let receipt = vec![("scripted".to_owned(), "1".to_owned())];
        let attempt = if self.play.trick == Some(Trick::Forge) { "other/1/0".to_owned() } else { String::new() };
        let now = match state.phase {
            Phase::Waiting { .. } => WardenState::Waiting,
            Phase::Running(_) => WardenState::Running,
            Phase::Ended(_) | Phase::Refused | Phase::Gone => WardenState::Ended,
        };
        let next_seq = state.next_seq;
        state.out.push_back(FromWarden::Hello {
            version: 1,
            build: "t".into(),
            attempt,
            state: now,
            next_seq,
            receipt,
        });
        let oldest = state.kept.frames.front().map_or(state.next_seq, |(seq, _)| *seq);
        if stored + 1 < oldest {
            state.out.push_back(FromWarden::Fault { text: format!("output before number {oldest} is gone") });
        }
        match &mut state.phase {
            Phase::Waiting { head } => head.clear(),
            Phase::Refused => state.out.push_back(refused()),
            Phase::Ended(_) => state.exit_due = true,
            Phase::Running(_) | Phase::Gone => {}
        }
    }

    fn obey(self: &Arc<Self>, message: ToWarden) {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        match (message, &mut state.phase) {
            (ToWarden::Ping { nonce }, _) => state.out.push_back(FromWarden::Pong { nonce, stalled: 0 }),
            (ToWarden::SpecChunk { section: 0, bytes, .. }, Phase::Waiting { head }) => head.extend(bytes),
            (ToWarden::Commit { .. }, Phase::Waiting { .. }) if self.play.trick == Some(Trick::Weak) => {
                state.phase = Phase::Refused;
                state.out.push_back(refused());
            }
            (ToWarden::Commit { .. }, Phase::Waiting { head }) => {
                let spec = CellSpec::decode(head).expect("the agent's spec is whole");
                let millis = |value: u64| (value > 0).then(|| now + Duration::from_millis(value));
                let job = Job {
                    began: now,
                    began_at: UnixMillis::now(),
                    grace: Duration::from_millis(spec.grace_ms.into()),
                    next_at: self.due(now, 1),
                    wall_at: now + Duration::from_millis(spec.wall_timeout_ms),
                    lease_at: millis(spec.lease_ms),
                    reason: 0,
                    ends_at: None,
                    kill_at: None,
                };
                state.phase = Phase::Running(job);
                state.out.push_back(FromWarden::Started { pid: 2, time_us: 1 });
                self.started();
            }
            (ToWarden::Ack { seq }, _) => state.kept.acknowledge(seq),
            (ToWarden::Stop { .. }, Phase::Running(_)) if self.play.trick == Some(Trick::Deaf) => {}
            (ToWarden::Stop { level, reason, grace_ms }, Phase::Running(job)) => {
                let grace = if level == 0 { grace_ms } else { 0 };
                job.ask(&self.play, reason, Duration::from_millis(grace.into()), now);
            }
            (ToWarden::Lease { remaining_ms }, Phase::Running(job)) => {
                job.lease_at = Some(now + Duration::from_millis(remaining_ms));
            }
            (ToWarden::Close, Phase::Waiting { .. } | Phase::Ended(_) | Phase::Refused) => {
                state.phase = Phase::Gone;
                if let Some(runs) = self.executor.world().cells.get_mut(&self.name) {
                    *runs = false;
                }
            }
            _ => {}
        }
    }

    // ---- the job ----

    fn started(self: &Arc<Self>) {
        {
            let mut world = self.executor.world();
            *world.started.entry(self.name.clone()).or_default() += 1;
            let run = Run { from: Instant::now(), to: None, frames: 0, play: self.play.clone() };
            world.runs.insert(self.attempt, run);
            world.see(&self.name, Seeing::Started);
        }
        crate::supervise::spawn("scripted job", Arc::clone(self).live());
    }

    /// When a frame is due, or with the one behind the last the end.
    fn due(&self, began: Instant, seq: u64) -> Instant {
        let frames = u32::try_from(seq.min(self.play.frames)).unwrap_or(u32::MAX);
        let rest = if seq > self.play.frames { self.play.rest } else { Duration::ZERO };
        began + self.play.every * frames + rest
    }

    async fn live(self: Arc<Self>) {
        let mut news = self.news.subscribe();
        loop {
            news.borrow_and_update();
            let (wake, mut said) = {
                let mut state = self.state();
                let mut said = false;
                (self.tick(&mut state, &mut said), said)
            };
            let Some(wake) = wake else {
                self.news.send_replace(());
                return;
            };
            if std::mem::take(&mut said) {
                self.news.send_replace(());
                news.borrow_and_update();
            }
            tokio::select! {
                biased;
                () = sleep_until(wake) => {}
                _ = news.changed() => {}
            }
        }
    }

    /// Does what is due, and says when it must be asked again; `None` when the job is over.
    fn tick(&self, state: &mut State, said: &mut bool) -> Option<Instant> {
        let now = Instant::now();
        let room = RING.saturating_sub(state.kept.bytes);
        let State { phase, kept, next_seq, .. } = state;
        let Phase::Running(job) = phase else { return None };
        for (clock, reason) in [(Some(job.wall_at), TIMEOUT), (job.lease_at, LEASE)] {
            if clock.is_some_and(|at| now >= at) && job.reason < reason {
                job.ask(&self.play, reason, job.grace, now);
            }
        }
        let mut room = room;
        let asked_over = job.ends_at.is_some_and(|at| now >= at);
        let killed = job.kill_at.is_some_and(|at| now >= at);
        while !asked_over && !killed && *next_seq <= self.play.frames && now >= job.next_at {
            let text = self.play.text(*next_seq);
            if text.len() > room {
                // It waits until somebody has stored something.
                break;
            }
            room -= text.len();
            kept.push(*next_seq, text);
            *next_seq += 1;
            job.next_at = self.due(job.began, *next_seq);
            *said = true;
        }
        if *said && let Some(run) = self.executor.world().runs.get_mut(&self.attempt) {
            run.frames = *next_seq - 1;
        }
        let by_itself = *next_seq > self.play.frames && now >= job.next_at;
        if asked_over || killed || by_itself {
            let (kind, code) = if killed { (ExitKind::Signaled, 9) } else { (ExitKind::Exited, self.play.exit_code) };
            let exit = self.exit(job, *next_seq - 1, kind, code);
            let how = How::Exited { code, reason: exit.stop_reason };
            state.phase = Phase::Ended(exit);
            state.exit_due = true;
            self.over(how);
            return None;
        }
        let next = (*next_seq > self.play.frames || now < job.next_at).then_some(job.next_at);
        let clocks = [
            next,
            (job.reason < TIMEOUT).then_some(job.wall_at),
            job.lease_at.filter(|_| job.reason < LEASE),
            job.ends_at,
            job.kill_at,
        ];
        clocks.into_iter().flatten().min().or(Some(now + Duration::from_secs(60)))
    }

    fn exit(&self, job: &Job, last_seq: u64, kind: ExitKind, code: i32) -> Exit {
        let bytes = |stream| {
            let of = (1..=last_seq).filter(|seq| self.play.stream(*seq) == stream);
            of.map(|seq| self.play.text(seq).len() as u64).sum()
        };
        Exit {
            last_seq,
            kind,
            code,
            step: String::new(),
            stop_reason: job.reason,
            started_us: job.began_at.as_u64() * 1000,
            ended_us: UnixMillis::now().as_u64() * 1000,
            wall_ms: u64::try_from(job.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            utime_us: 0,
            stime_us: 0,
            max_rss_bytes: 0,
            peak_memory_bytes: 0,
            oom_kills: 0,
            peak_pids: 0,
            stdout_bytes: bytes(1),
            stderr_bytes: bytes(2),
            leftover: 0,
            on_cancel: None,
            met: Vec::new(),
            results: None,
        }
    }
}

impl Job {
    fn ask(&mut self, play: &Play, reason: u8, grace: Duration, now: Instant) {
        self.reason = self.reason.max(reason.max(1));
        let ends = match play.ears {
            Ears::Good => Some(now),
            Ears::Slow => Some(now + SLOW),
            Ears::None => None,
        };
        // Asked once: who does not listen then does not listen later.
        self.ends_at = self.ends_at.or(ends);
        let kill_at = now + grace;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
    }
}

fn refused() -> FromWarden {
    let mismatch = Mismatch { key: "uid".into(), wanted: "7".into(), got: "0".into() };
    FromWarden::Refused { mismatches: vec![mismatch] }
}
