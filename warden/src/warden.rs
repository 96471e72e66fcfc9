//! The event loop: one thread, one poll. It owns all state and never waits to write without reading: control frames
//! are read and answered first, whatever the job or the transport does.

use crate::cgroup;
use crate::facts;
use crate::intake::Intake;
use crate::job::{self, Job, StartFailed};
use crate::ladder::{Ladder, Step};
use crate::ring::Ring;
use crate::sys::{self, POLLIN, POLLOUT, PollFd, Reaped};
use crate::wire::{self, Decoder, Exit, ExitKind, Fact, FromWarden, Mismatch, ToWarden, WardenState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const STDIN: i32 = 0;
const STDOUT: i32 = 1;
/// Answers that wait for a reader. Only pings and attaches make answers; beyond this, pings go unanswered.
const MAX_CONTROL: usize = 256 * 1024;
/// How long an end waits to be fetched by an agent that is away.
const LINGER_US: u64 = 3_600 * 1_000_000;
/// A transport that is at its end is looked at again after this: the engine may come back.
const TRANSPORT_PAUSE_US: u64 = 200_000;
/// A pipe that gave less than this in one read, again and again, is left alone for a moment, so that the next read is
/// worth its cost.
const WORTHWHILE_READ: usize = 32 * 1024;
/// That many small reads in a row make a pipe hot.
const HOT_READS: u32 = 8;
/// The moment.
const HOT_PAUSE_US: u64 = 500;
/// Small reads further apart than this are no flood.
const HOT_GAP_US: u64 = 1_000;

/// Ended by its own deadline, unfetched.
const EXIT_ALONE: u8 = 3;

pub struct Warden {
    receipt: Vec<Fact>,
    signals: OwnedFd,
    decoder: Decoder,
    transport_ended_until: u64,
    epoch: u32,
    attempt: String,
    intake: Intake,
    state: State,
    ring: Ring,
    /// Whole control frames, to be sent before any output.
    control: Vec<u8>,
    /// What is being written now; never abandoned in the middle, so that a reader does not lose its place.
    writing: Vec<u8>,
    written: usize,
    start_deadline: u64,
    buffer: Vec<u8>,
    hot: [Hot; 2],
    out_bytes: [u64; 2],
}

#[derive(Default, Clone, Copy)]
struct Hot {
    small_reads: u32,
    last_read: u64,
    rest_until: u64,
}

enum State {
    Waiting,
    Running(Running),
    /// Refused, or over.
    Ended { last_word: FromWarden, sent: bool, until: u64 },
}

struct Running {
    job: Job,
    ladder: Ladder,
    started: u64,
    started_unix_us: u64,
    main: Option<MainEnd>,
    leftover: u32,
    all_reaped: bool,
}

struct MainEnd {
    status: i32,
    stop_reason: u8,
    at: u64,
}

impl Warden {
    pub fn new(start_deadline_ms: u64) -> io::Result<Self> {
        let signals = sys::signals_as_fd()?;
        sys::set_nonblocking(STDIN)?;
        sys::set_nonblocking(STDOUT)?;
        Ok(Self {
            receipt: facts::gather(),
            signals,
            decoder: Decoder::new(),
            transport_ended_until: 0,
            epoch: 0,
            attempt: String::new(),
            intake: Intake::default(),
            state: State::Waiting,
            ring: Ring::new(),
            control: Vec::new(),
            writing: Vec::new(),
            written: 0,
            start_deadline: sys::boot_us() + start_deadline_ms * 1000,
            buffer: vec![1; 64 * 1024],
            hot: [Hot::default(); 2],
            out_bytes: [0; 2],
        })
    }

    /// Runs until the agent closes or a deadline is over; answers with the exit code.
    pub fn run(mut self) -> u8 {
        loop {
            let now = sys::boot_us();
            if let Some(code) = self.deadlines(now) {
                return code;
            }
            self.flush();
            let mut fds = self.interests(now);
            sys::wait_ready(&mut fds, self.timeout(now));
            let ready = |fd: i32| fds.iter().any(|one| one.fd == fd && one.revents != 0);
            if ready(STDIN)
                && let Some(code) = self.read_control()
            {
                return code;
            }
            if ready(self.signals.as_raw_fd()) {
                // Their content does not matter: a child may have ended.
                while matches!(sys::read_some(self.signals.as_raw_fd(), &mut self.buffer), Ok(Some(1..))) {}
                self.reap();
            }
            for index in 0..2 {
                if self.pipe(index).is_some_and(ready) {
                    self.read_output(index);
                }
            }
            self.settle();
        }
    }

    fn pipe(&self, index: usize) -> Option<i32> {
        match &self.state {
            State::Running(running) => running.job.pipe(index),
            State::Waiting | State::Ended { .. } => None,
        }
    }

    fn interests(&self, now: u64) -> Vec<PollFd> {
        let one = |fd, events| PollFd { fd, events, revents: 0 };
        let mut fds = vec![one(self.signals.as_raw_fd(), POLLIN)];
        if now >= self.transport_ended_until {
            fds.push(one(STDIN, POLLIN));
            if self.has_output() {
                fds.push(one(STDOUT, POLLOUT));
            }
        }
        if self.ring.has_room() {
            for index in 0..2 {
                if let Some(fd) = self.pipe(index)
                    && now >= self.hot[index].rest_until
                {
                    fds.push(one(fd, POLLIN));
                }
            }
        }
        fds
    }

    fn timeout(&self, now: u64) -> Option<Duration> {
        let state = match &self.state {
            State::Waiting => Some(self.start_deadline),
            State::Running(running) => running.ladder.wake_at(),
            State::Ended { until, .. } => Some(*until),
        };
        let resting = self.hot.iter().map(|hot| hot.rest_until).filter(|until| *until > now).min();
        let transport = Some(self.transport_ended_until).filter(|until| *until > now);
        let next = [state, resting, transport].into_iter().flatten().min()?;
        Some(Duration::from_micros(next.saturating_sub(now)))
    }

    /// Acts on every deadline that is over; an exit code ends the warden.
    fn deadlines(&mut self, now: u64) -> Option<u8> {
        match &mut self.state {
            State::Waiting if now >= self.start_deadline => {
                eprintln!("warden: no spec was committed in time");
                return Some(EXIT_ALONE);
            }
            State::Running(running) if running.main.is_none() => {
                if let Some(step) = running.ladder.tick(now) {
                    carry_out(step);
                }
            }
            State::Ended { until, .. } if now >= *until => return Some(EXIT_ALONE),
            State::Waiting | State::Running(_) | State::Ended { .. } => {}
        }
        None
    }

    // ---- from the agent ----

    fn read_control(&mut self) -> Option<u8> {
        match sys::read_some(STDIN, &mut self.buffer) {
            Ok(Some(0)) | Err(_) => self.transport_ended_until = sys::boot_us() + TRANSPORT_PAUSE_US,
            Ok(None) => {}
            Ok(Some(count)) => self.decoder.feed(&self.buffer[..count]),
        }
        while let Some(frame) = self.decoder.next() {
            let epoch = frame.epoch;
            // A frame that cannot be read is as if it had been torn.
            let Ok(message) = ToWarden::decode(&frame) else { continue };
            if let Some(code) = self.message(epoch, message) {
                return Some(code);
            }
        }
        None
    }

    fn message(&mut self, epoch: u32, message: ToWarden) -> Option<u8> {
        if let ToWarden::Attach { min_version, max_version, attempt, stored, window } = message {
            if epoch > self.epoch {
                self.attach(epoch, min_version, max_version, &attempt, stored, window);
            }
            return None;
        }
        if epoch != self.epoch || epoch == 0 {
            return None;
        }
        let now = sys::boot_us();
        match message {
            ToWarden::Attach { .. } => {}
            ToWarden::SpecChunk { section, offset, bytes } => {
                if matches!(self.state, State::Waiting)
                    && let Err(reason) = self.intake.chunk(section, offset, &bytes)
                {
                    self.refuse_spec(reason);
                }
            }
            ToWarden::Commit { lengths, sums } => {
                if matches!(self.state, State::Waiting) {
                    self.commit(lengths, sums);
                }
            }
            ToWarden::Ack { seq } => self.ring.ack(seq),
            ToWarden::Stop { level, reason, grace_ms } => {
                if let State::Running(running) = &mut self.state
                    && running.main.is_none()
                    && let Some(step) = running.ladder.stop(now, level, reason, grace_ms)
                {
                    carry_out(step);
                }
            }
            ToWarden::Ping { nonce } => {
                let stalled = u8::from(!self.ring.has_room());
                self.say(&FromWarden::Pong { nonce, stalled });
            }
            ToWarden::Lease { remaining_ms } => {
                if let State::Running(running) = &mut self.state {
                    running.ladder.renew(now, remaining_ms);
                }
            }
            ToWarden::Close => {
                if matches!(self.state, State::Ended { .. } | State::Waiting) {
                    return Some(0);
                }
            }
        }
        None
    }

    fn attach(&mut self, epoch: u32, min: u8, max: u8, attempt: &str, stored: u64, window: u32) {
        self.epoch = epoch;
        self.control.clear();
        self.ring.attach(stored, window);
        if let State::Ended { sent, .. } = &mut self.state {
            *sent = false;
        }
        if !(min..=max).contains(&wire::VERSION) {
            return self.say(&FromWarden::Fault { text: format!("versions {min} to {max} are not spoken here") });
        }
        if !self.attempt.is_empty() && self.attempt != attempt {
            return self.say(&FromWarden::Fault { text: "another attempt runs here".to_owned() });
        }
        let state = match self.state {
            State::Waiting => WardenState::Waiting,
            State::Running(_) => WardenState::Running,
            State::Ended { .. } => WardenState::Ended,
        };
        let hello = FromWarden::Hello {
            version: wire::VERSION,
            build: env!("WARDEN_BUILD").to_owned(),
            attempt: self.attempt.clone(),
            state,
            next_seq: self.ring.last_seq() + 1,
            receipt: self.receipt.clone(),
        };
        self.say(&hello);
    }

    fn refuse_spec(&mut self, got: String) {
        self.refuse(vec![Mismatch { key: "spec".to_owned(), wanted: "a whole spec".to_owned(), got }]);
    }

    fn refuse(&mut self, mismatches: Vec<Mismatch>) {
        self.end(FromWarden::Refused { mismatches });
    }

    fn end(&mut self, last_word: FromWarden) {
        self.state = State::Ended { last_word, sent: false, until: sys::boot_us() + LINGER_US };
    }

    fn commit(&mut self, lengths: [u64; 3], sums: [u32; 3]) {
        let spec = match self.intake.commit(lengths, sums) {
            Ok(spec) => spec,
            Err(reason) => return self.refuse_spec(reason),
        };
        self.attempt = spec.cell.attempt.clone();
        let weaker = wire::unmet(&spec.cell.expect, &self.receipt);
        if !weaker.is_empty() {
            return self.refuse(weaker);
        }
        let started = sys::boot_us();
        let mut ladder = Ladder::default();
        ladder.start(started, spec.cell.wall_timeout_ms, spec.cell.lease_ms, spec.cell.grace_ms);
        let started_unix_us = unix_us();
        match job::start(spec) {
            Ok(job) => {
                self.say(&FromWarden::Started { pid: job.pid as u32, time_us: started_unix_us });
                self.state = State::Running(Running {
                    job,
                    ladder,
                    started,
                    started_unix_us,
                    main: None,
                    leftover: 0,
                    all_reaped: false,
                });
            }
            Err(StartFailed { step, errno }) => {
                let mut exit = self.exit_facts();
                exit.kind = ExitKind::StartFailed;
                exit.code = errno;
                exit.step = step.to_owned();
                self.end(FromWarden::Exit(exit));
            }
        }
    }

    // ---- from the job ----

    /// Takes every child that has ended. With the main one, everything else is ended too.
    fn reap(&mut self) {
        loop {
            let reaped = sys::reap();
            let State::Running(running) = &mut self.state else {
                if matches!(reaped, Reaped::Child { .. }) {
                    continue;
                }
                return;
            };
            match reaped {
                Reaped::Child { pid, status } if pid == running.job.pid => {
                    let (at, stop_reason) = (sys::boot_us(), running.ladder.reason());
                    running.main = Some(MainEnd { status, stop_reason, at });
                    sys::signal_all(sys::SIGKILL);
                }
                Reaped::Child { .. } => running.leftover += u32::from(running.main.is_some()),
                Reaped::NoneYet => return,
                Reaped::NoChildren => {
                    running.all_reaped = running.main.is_some();
                    return;
                }
            }
        }
    }

    fn read_output(&mut self, index: usize) {
        let Some(fd) = self.pipe(index) else { return };
        let count = match sys::read_some(fd, &mut self.buffer[..wire::MAX_OUTPUT]) {
            Ok(None) => return,
            Ok(Some(0)) | Err(_) => {
                if let State::Running(running) = &mut self.state {
                    running.job.pipes[index] = None;
                }
                return;
            }
            Ok(Some(count)) => count,
        };
        let now = sys::boot_us();
        let hot = &mut self.hot[index];
        let flood = count < WORTHWHILE_READ && now.saturating_sub(hot.last_read) < HOT_GAP_US;
        hot.small_reads = if flood { hot.small_reads + 1 } else { 0 };
        hot.last_read = now;
        if hot.small_reads >= HOT_READS {
            hot.rest_until = now + HOT_PAUSE_US;
        }
        let bytes = mask(&self.buffer[..count]);
        self.out_bytes[index] += bytes.len() as u64;
        self.ring.push(self.epoch, index as u8 + 1, unix_us(), bytes);
    }

    /// The job is over when its main process and everything after it are gone and the pipes are read to their end.
    fn settle(&mut self) {
        let State::Running(running) = &self.state else { return };
        let Some(main) = &running.main else { return };
        if !running.all_reaped || !running.job.drained() {
            return;
        }
        let mut exit = self.exit_facts();
        exit.stop_reason = main.stop_reason;
        exit.started_us = running.started_unix_us;
        exit.wall_ms = main.at.saturating_sub(running.started) / 1000;
        exit.leftover = running.leftover;
        let signal = main.status & 0x7f;
        (exit.kind, exit.code) =
            if signal == 0 { (ExitKind::Exited, main.status >> 8 & 0xff) } else { (ExitKind::Signaled, signal) };
        self.end(FromWarden::Exit(exit));
    }

    fn exit_facts(&self) -> Exit {
        let group = cgroup::read();
        let (utime_us, stime_us, max_rss_bytes) = sys::children_usage();
        Exit {
            last_seq: self.ring.last_seq(),
            kind: ExitKind::Exited,
            code: 0,
            step: String::new(),
            stop_reason: 0,
            started_us: 0,
            ended_us: unix_us(),
            wall_ms: 0,
            utime_us,
            stime_us,
            max_rss_bytes,
            peak_memory_bytes: group.memory_peak.unwrap_or_default(),
            oom_kills: group.oom_kills.unwrap_or_default(),
            peak_pids: group.pids_peak.unwrap_or_default(),
            stdout_bytes: self.out_bytes[0],
            stderr_bytes: self.out_bytes[1],
            leftover: 0,
        }
    }

    // ---- to the agent ----

    fn say(&mut self, message: &FromWarden) {
        if self.control.len() < MAX_CONTROL {
            message.encode(self.epoch, 0, &mut self.control);
        }
    }

    fn has_output(&self) -> bool {
        let last_word = matches!(&self.state, State::Ended { sent: false, .. });
        self.epoch > 0
            && (self.written < self.writing.len() || !self.control.is_empty() || !self.ring.all_sent() || last_word)
    }

    /// Writes what the transport takes: what was begun, then control, then output, then the last word.
    fn flush(&mut self) {
        while self.has_output() {
            if self.written == self.writing.len() {
                self.load();
            }
            match sys::write_some(STDOUT, &self.writing[self.written..]) {
                Ok(Some(count)) if count > 0 => self.written += count,
                Ok(_) => return,
                Err(_) => {
                    self.transport_ended_until = sys::boot_us() + TRANSPORT_PAUSE_US;
                    return;
                }
            }
        }
    }

    /// Puts the next frames into the write buffer.
    fn load(&mut self) {
        self.written = 0;
        self.writing.clear();
        if !self.control.is_empty() {
            std::mem::swap(&mut self.writing, &mut self.control);
        } else if let Some(frame) = self.ring.next(self.epoch) {
            self.writing.extend_from_slice(frame);
        } else if let State::Ended { last_word, sent, .. } = &mut self.state {
            last_word.encode(self.epoch, 0, &mut self.writing);
            *sent = true;
        }
    }
}

/// The one place that all output passes before it is numbered. Secrets are taken out here once jobs can be given any;
/// until then every byte goes through as it is.
fn mask(bytes: &[u8]) -> &[u8] {
    bytes
}

fn carry_out(step: Step) {
    match step {
        Step::Ask => sys::signal_all(sys::SIGTERM),
        Step::Kill => sys::signal_all(sys::SIGKILL),
    }
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
