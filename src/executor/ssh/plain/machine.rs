//! Stands in for a warden where there is none: one job over one SSH channel, as a pure machine. What the agent says and what the host
//! says goes in; what is to be said to either comes out.
//!
//! ```text
//!  waiting ─commit─► starting ─go─► running ─exit─► closing ─closed─► ended
//!     └───────────────── connection lost: gone ────────┘
//! ```
//!
//! Owns the job's output until it is stored, what of it is masked, and the job's deadlines. Must never do I/O or read a clock.
//! What a warden does from inside a cell and a shell cannot (files in and out, limits of a cell, a receipt of isolation)
//! is refused before a job comes here.

use super::mask::{Masker, Patterns};
use super::output::Output;
use super::shell::{self, Job, Place, SIGN, Said};
use crate::crc::crc32c;
use crate::executor::ssh::Event;
use crate::protocol::wire::{CellSpec, Exit, ExitKind, Fact, FromWarden, Met, ToWarden, VERSION, WardenState};
use std::collections::VecDeque;
use std::sync::Arc;
use zeroize::Zeroize;

/// From the commit to the job: taking what was sent, and an exec.
const START_MS: u64 = 15_000;
/// After the job's end, for what it left to go and the channel to close.
const CLOSE_MS: u64 = 5_000;
/// What the opener says before the job begins.
const MOST_PREFACE: usize = 16 * 1024;
/// A spec is at most two texts of half a megabyte, and variables.
const MOST_SECTION: usize = 4 << 20;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const ENOSPC: i32 = 28;
const RLIMIT_NOFILE: u32 = 7;

/// Numbers of [`ToWarden::Stop`].
const TIMEOUT: u8 = 2;
const SILENCE: u8 = 3;
const LEASE: u8 = 5;
const OUTPUT: u8 = 8;

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Now {
    /// Milliseconds since the machine was made.
    pub(super) ms: u64,
    /// Microseconds since 1970.
    pub(super) us: u64,
}

#[derive(Debug)]
enum Phase {
    Waiting,
    Starting { until: u64 },
    Running,
    Closing { kind: ExitKind, code: i32, ended: Now, until: u64 },
    Ended(Box<Exit>),
    Gone(String),
}

/// The machine.
pub(super) struct Machine {
    attempt: String,
    place: Place,
    dir: String,
    facts: Vec<Fact>,
    phase: Phase,
    epoch: u32,
    window: usize,
    sections: [Vec<u8>; 3],
    output: Output,
    /// For the agent, before any output.
    out: VecDeque<FromWarden>,
    exit_due: bool,
    /// For the host.
    to_host: Vec<u8>,
    hang_up: bool,
    /// What each stream says before it is the job's; nothing any more when it is.
    prefaces: [Option<Vec<u8>>; 2],
    pid: u32,
    started: Now,
    grace_ms: u64,
    wall_ms: u64,
    wall_at: Option<u64>,
    lease_at: Option<u64>,
    silence: Option<(u64, u64)>,
    output_limit: u64,
    cut: bool,
    reason: u8,
    kill_at: Option<u64>,
    eof: bool,
    clean: bool,
    /// How the opener, or the job that it became, has ended, before either stream has said which it was.
    early: Option<(ExitKind, i32)>,
    /// Some of its output is missing, and nobody knows how much.
    torn: bool,
}

impl Machine {
    /// For `attempt`, whose opener said that it is process `pid` in `dir`.
    pub(super) fn new(attempt: String, place: Place, pid: u32, dir: String, facts: Vec<Fact>) -> Self {
        Self {
            attempt,
            place,
            dir,
            facts,
            phase: Phase::Waiting,
            epoch: 0,
            window: 0,
            sections: Default::default(),
            output: Output::default(),
            out: VecDeque::new(),
            exit_due: false,
            to_host: Vec::new(),
            hang_up: false,
            prefaces: [Some(Vec::new()), Some(Vec::new())],
            pid,
            started: Now::default(),
            grace_ms: 0,
            wall_ms: 0,
            wall_at: None,
            lease_at: None,
            silence: None,
            output_limit: 0,
            cut: false,
            reason: 0,
            kill_at: None,
            eof: false,
            clean: false,
            early: None,
            torn: false,
        }
    }

    /// Why nothing more comes of it, if that is so: the connection is lost, and nobody knows the job's end.
    pub(super) fn gone(&self) -> Option<&str> {
        match &self.phase {
            Phase::Gone(reason) => Some(reason),
            _ => None,
        }
    }

    /// Everything that the job wrote is stored.
    pub(super) fn is_drained(&self) -> bool {
        self.output.is_empty()
    }

    /// Its host closed the channel after the job's end.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    /// The job has ended, and nothing of it is left on the host as far as can be seen from here.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Whether more of the job's output is taken.
    pub(super) fn has_room(&self) -> bool {
        match self.phase {
            Phase::Running | Phase::Closing { .. } => self.output.has_room() || self.output.needs_no_room(),
            _ => true,
        }
    }

    // ---- the agent ----

    /// The agent says something. Errors: what cannot be gone on with.
    pub(super) fn hear(&mut self, epoch: u32, message: ToWarden, now: Now) {
        if let ToWarden::Attach { attempt, stored, window, .. } = message {
            if epoch >= self.epoch && attempt == self.attempt {
                self.attached(epoch, stored, window);
            }
            return;
        }
        if epoch != self.epoch {
            return;
        }
        match message {
            ToWarden::SpecChunk { section, offset, bytes } => self.take(section, offset, &bytes),
            ToWarden::Commit { lengths, sums } => self.commit(lengths, sums, now),
            ToWarden::Ack { seq } => self.output.acknowledge(seq),
            ToWarden::Stop { level, reason, grace_ms } => self.stop(reason, level > 0, u64::from(grace_ms), now),
            ToWarden::Ping { nonce } => {
                let stalled = u8::from(!self.has_room());
                self.out.push_back(FromWarden::Pong { nonce, stalled });
            }
            ToWarden::Lease { remaining_ms } => {
                self.lease_at = self.lease_at.map(|_| now.ms.saturating_add(remaining_ms));
                if matches!(self.phase, Phase::Starting { .. } | Phase::Running) {
                    // The guard has it too, for a connection over which nothing comes any more.
                    self.to_host.extend_from_slice(format!("LEASE {}\n", remaining_ms / 1000).as_bytes());
                }
            }
            ToWarden::Close => self.hang_up = true,
            ToWarden::Inputs { .. }
            | ToWarden::InputsPart { .. }
            | ToWarden::List { .. }
            | ToWarden::Read { .. }
            | ToWarden::Egress(_) => {
                self.out.push_back(FromWarden::Fault { text: "plain mode carries no files and no connections".into() });
            }
            ToWarden::Attach { .. } => unreachable!("handled above"),
        }
    }

    fn attached(&mut self, epoch: u32, stored: u64, window: u32) {
        self.epoch = epoch;
        self.window = usize::try_from(window).unwrap_or(usize::MAX);
        self.output.rewind(stored);
        self.out.clear();
        let (state, attempt) = match &self.phase {
            Phase::Waiting | Phase::Starting { .. } => (WardenState::Waiting, String::new()),
            Phase::Running | Phase::Closing { .. } => (WardenState::Running, self.attempt.clone()),
            Phase::Ended(_) | Phase::Gone(_) => (WardenState::Ended, self.attempt.clone()),
        };
        self.exit_due = matches!(self.phase, Phase::Ended(_));
        self.out.push_back(FromWarden::Hello {
            version: VERSION,
            build: "plain".to_owned(),
            attempt,
            state,
            next_seq: self.output.next_seq(),
            receipt: self.facts.clone(),
        });
    }

    fn take(&mut self, section: u8, offset: u64, bytes: &[u8]) {
        let Some(section) = self.sections.get_mut(usize::from(section)) else { return };
        // In order; what came before comes again after a cut.
        if matches!(self.phase, Phase::Waiting)
            && offset == section.len() as u64
            && section.len() + bytes.len() <= MOST_SECTION
        {
            section.extend_from_slice(bytes);
        }
    }

    fn commit(&mut self, lengths: [u64; 3], sums: [u32; 3], now: Now) {
        if !matches!(self.phase, Phase::Waiting) {
            return;
        }
        let whole =
            |(section, (length, sum)): (&Vec<u8>, (u64, u32))| section.len() as u64 == length && crc32c(section) == sum;
        if !self.sections.iter().zip(lengths.into_iter().zip(sums)).all(whole) {
            return self.out.push_back(FromWarden::Fault { text: "the job did not arrive whole".to_owned() });
        }
        let Ok(mut spec) = CellSpec::decode(&self.sections[0]) else {
            return self.out.push_back(FromWarden::Fault { text: "the job cannot be read".to_owned() });
        };
        self.grace_ms = u64::from(spec.grace_ms);
        self.wall_ms = spec.wall_timeout_ms;
        self.silence = (spec.silence_ms > 0).then_some((spec.silence_ms, now.ms));
        self.lease_at = Some(now.ms.saturating_add(spec.lease_ms));
        (self.output_limit, self.cut) = (spec.output_limit, spec.cut_output);
        let patterns = (!spec.secrets.is_empty())
            .then(|| Arc::new(Patterns::new(spec.secrets.iter().map(|secret| secret.value.as_slice()))));
        let limit = if spec.output_limit == 0 { u64::MAX } else { spec.output_limit };
        self.output.begin(
            spec.drop_output,
            limit,
            patterns.map(|all| [Masker::new(Arc::clone(&all)), Masker::new(all)]),
        );
        let secrets = std::mem::take(&mut spec.secrets);
        let brought = !secrets.is_empty();
        spec.env.extend(secrets.iter().map(|secret| (secret.name.clone().into_bytes(), secret.value.clone())));
        let nofile = spec.rlimits.iter().find(|one| one.resource == RLIMIT_NOFILE).map(|one| one.soft);
        let job = Job {
            argv: &spec.argv,
            env: &spec.env,
            workdir: &spec.cwd,
            script: &self.sections[1],
            stdin: &self.sections[2],
            nofile,
            secrets: brought,
            lease: spec.lease_ms / 1000,
        };
        self.to_host = shell::given(&job, &self.place, &self.dir);
        spec.env.iter_mut().for_each(|(_, value)| value.zeroize());
        self.sections.iter_mut().for_each(Zeroize::zeroize);
        self.phase = Phase::Starting { until: now.ms + START_MS };
    }

    fn stop(&mut self, reason: u8, force: bool, grace_ms: u64, now: Now) {
        match self.phase {
            Phase::Waiting | Phase::Starting { .. } | Phase::Running => {}
            _ => return,
        }
        self.reason = self.reason.max(reason);
        if matches!(self.phase, Phase::Waiting) {
            // The opener goes with its input; nothing has begun.
            self.hang_up = true;
            return self.ended(ExitKind::Exited, 0, now, now);
        }
        let kill_at = if force { now.ms } else { now.ms.saturating_add(grace_ms) };
        // A second stop takes no time back.
        let first = self.kill_at.is_none();
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        if first && !force {
            // One that is stopped hears nothing.
            self.to_host.extend_from_slice(b"TERM\nCONT\n");
        }
        self.kill_if_due(now);
    }

    fn kill_if_due(&mut self, now: Now) {
        if self.kill_at.is_some_and(|at| at <= now.ms) {
            self.to_host.extend_from_slice(b"KILL\n");
            self.kill_at = Some(u64::MAX);
        }
    }

    /// What is to be said to the agent now, at most `most` bytes of output. Empty when there is nothing.
    pub(super) fn say(&mut self, most: usize) -> Vec<u8> {
        let mut said = Vec::new();
        if self.epoch == 0 {
            return said;
        }
        for message in self.out.drain(..) {
            message.encode(self.epoch, 0, &mut said);
        }
        self.output.send(self.epoch, self.window, most, &mut said);
        if self.exit_due
            && self.output.all_sent()
            && let Phase::Ended(exit) = &self.phase
        {
            FromWarden::Exit(Exit::clone(exit)).encode(self.epoch, 0, &mut said);
            self.exit_due = false;
        }
        said
    }

    // ---- the host ----

    /// What is to be sent to the host, and whether nothing follows.
    pub(super) fn for_host(&mut self) -> (&mut Vec<u8>, bool) {
        (&mut self.to_host, self.hang_up)
    }

    /// The host says something.
    pub(super) fn on(&mut self, event: Event, now: Now) {
        match event {
            Event::Stdout(bytes) => self.came(1, &bytes, now),
            Event::Stderr(bytes) => self.came(2, &bytes, now),
            Event::Exit(code) => self.exited(ExitKind::Exited, i32::try_from(code).unwrap_or(i32::MAX), now),
            Event::Signal { name, .. } => match signal_number(&name) {
                Some(number) => self.exited(ExitKind::Signaled, number, now),
                None => self.gone_for(format!("the host told of an unknown signal, {name:?}"), now),
            },
            Event::Refused => {}
            // It wrote on although it was stopped, and nobody can say how much.
            Event::Overrun if matches!(self.phase, Phase::Closing { .. }) => self.torn = true,
            // It was to end anyway, and that is why it does.
            Event::Overrun if self.reason > 0 => {
                self.torn = true;
                self.kill_at = Some(now.ms);
                self.kill_if_due(now);
            }
            Event::Overrun => {
                self.to_host.extend_from_slice(b"KILL\n");
                self.gone_for("its output came faster than it could be kept, and some of it is lost".to_owned(), now);
            }
            Event::Eof => self.eof = true,
            Event::Closed => match self.phase {
                Phase::Closing { .. } => {
                    self.clean = true;
                    self.close(now);
                }
                Phase::Starting { .. } if self.early.is_some() => self.not_begun(now),
                Phase::Ended(_) | Phase::Gone(_) => {}
                _ => self.gone_for("the host closed the channel and did not say how the job ended".to_owned(), now),
            },
            // It had ended before, and that is what became of it. Without the end of its output some of that may be missing.
            Event::Lost(reason) => match self.phase {
                Phase::Closing { .. } => {
                    self.torn |= !self.eof;
                    self.close(now);
                }
                Phase::Ended(_) | Phase::Gone(_) => {}
                _ => self.gone_for(reason, now),
            },
        }
    }

    fn gone_for(&mut self, reason: String, now: Now) {
        if matches!(self.phase, Phase::Closing { .. } | Phase::Running) {
            self.output.finish(now.us);
        }
        self.phase = Phase::Gone(reason);
    }

    fn came(&mut self, stream: u8, bytes: &[u8], now: Now) {
        let index = usize::from(stream - 1);
        match &mut self.prefaces[index] {
            None => self.wrote(stream, bytes, now),
            Some(preface) => {
                preface.extend_from_slice(bytes);
                while self.read_preface(stream, now) {}
            }
        }
    }

    /// Reads a line of the opener's, if there is one; true if there was and the stream is not the job's yet.
    fn read_preface(&mut self, stream: u8, now: Now) -> bool {
        let index = usize::from(stream - 1);
        let Some(preface) = &mut self.prefaces[index] else { return false };
        let Some(at) = find(preface, SIGN) else {
            // A login's files may print what they like.
            if preface.len() > MOST_PREFACE {
                preface.drain(..preface.len() - SIGN.len());
            }
            return false;
        };
        let line = at + SIGN.len();
        let Some(end) = preface[line..].iter().position(|byte| *byte == b'\n').map(|end| line + end) else {
            if preface.len() - line > MOST_PREFACE {
                preface.clear();
                self.gone_for("its shell does not do what it is told".to_owned(), now);
            }
            return false;
        };
        let said = shell::said(&preface[line..end]);
        let before = String::from_utf8_lossy(&preface[..at]).trim().to_owned();
        let rest = preface.split_off(end + 1);
        match said {
            Some(Said::Go) => {
                self.prefaces[index] = None;
                self.begun(now);
                if !rest.is_empty() {
                    self.wrote(stream, &rest, now);
                }
                return false;
            }
            Some(Said::Fail(step)) => {
                let (step, code) = match step.as_str() {
                    "program" => ("interpreter", ENOENT),
                    "noexec" => ("interpreter", EACCES),
                    "workdir" => ("workdir", ENOENT),
                    "disk" => ("disk", ENOSPC),
                    _ => (step.as_str(), EIO),
                };
                let step = if before.is_empty() || step == "interpreter" || step == "workdir" {
                    step.to_owned()
                } else {
                    format!("{step}: {before}")
                };
                self.hang_up = true;
                self.failed(step, code, now);
            }
            // Its first word again, or none of its own.
            Some(Said::Ready { .. }) | None => {}
        }
        self.prefaces[index] = Some(rest);
        true
    }

    /// The job runs; the first stream that says so counts.
    fn begun(&mut self, now: Now) {
        if !matches!(self.phase, Phase::Starting { .. }) {
            return;
        }
        self.started = now;
        self.phase = Phase::Running;
        self.wall_at = Some(now.ms.saturating_add(self.wall_ms));
        self.silence = self.silence.map(|(limit, _)| (limit, now.ms));
        self.out.push_back(FromWarden::Started { pid: self.pid, time_us: now.us });
        if let Some((kind, code)) = self.early.take() {
            self.exited(kind, code, now);
        }
    }

    fn wrote(&mut self, stream: u8, bytes: &[u8], now: Now) {
        match &mut self.phase {
            Phase::Running => {}
            // There is more.
            Phase::Closing { until, .. } => *until = now.ms + CLOSE_MS,
            _ => return,
        }
        if let Some((_, since)) = &mut self.silence {
            *since = now.ms;
        }
        self.output.take(stream, bytes, now);
        if !self.cut && self.output.beyond() > 0 && self.reason == 0 {
            self.stop(OUTPUT, true, 0, now);
        }
    }

    fn exited(&mut self, kind: ExitKind, code: i32, now: Now) {
        match self.phase {
            Phase::Running => {
                // What the job left in its group goes, as with a cell; the guard sees to the rest.
                self.to_host.extend_from_slice(b"KILL\n");
                self.hang_up = true;
                self.phase = Phase::Closing { kind, code, ended: now, until: now.ms + CLOSE_MS };
            }
            // A server tells of an end before what was written before it, if it likes: whether the job ran is known when the channel closes.
            Phase::Starting { .. } => self.early = Some((kind, code)),
            Phase::Waiting => self.not_begun(now),
            _ => {}
        }
    }

    /// The opener has ended, and the job never was.
    fn not_begun(&mut self, now: Now) {
        let preface = self.prefaces[1].as_deref().unwrap_or_default();
        let said = String::from_utf8_lossy(preface).trim().to_owned();
        self.hang_up = true;
        self.failed(format!("the shell ended: {said}"), EIO, now);
    }

    fn failed(&mut self, step: String, errno: i32, now: Now) {
        self.ended(ExitKind::StartFailed, errno, now, now);
        if let Phase::Ended(exit) = &mut self.phase {
            (exit.step, exit.started_us) = (step, 0);
        }
    }

    fn close(&mut self, now: Now) {
        if let Phase::Closing { kind, code, ended, .. } = self.phase {
            self.output.finish(now.us);
            self.ended(kind, code, self.started, ended);
        }
    }

    fn ended(&mut self, kind: ExitKind, code: i32, started: Now, ended: Now) {
        let [stdout_bytes, stderr_bytes] = self.output.bytes();
        let beyond = self.output.beyond();
        let met = (beyond > 0).then(|| Met {
            name: "output".to_owned(),
            limit: self.output_limit,
            peak: self.output_limit.saturating_add(beyond),
            times: 1,
        });
        self.phase = Phase::Ended(Box::new(Exit {
            last_seq: self.output.next_seq() - 1,
            kind,
            code,
            step: String::new(),
            stop_reason: self.reason,
            started_us: started.us,
            ended_us: ended.us,
            wall_ms: ended.ms.saturating_sub(started.ms),
            // A host's shell does not tell.
            utime_us: 0,
            stime_us: 0,
            max_rss_bytes: 0,
            peak_memory_bytes: 0,
            oom_kills: 0,
            peak_pids: 0,
            // One more than came, where some is missing: so nobody takes what there is for all.
            stdout_bytes: stdout_bytes + u64::from(self.torn),
            stderr_bytes,
            leftover: 0,
            on_cancel: None,
            met: met.into_iter().collect(),
            results: None,
        }));
        self.exit_due = true;
    }

    /// So much of its output waits that the job has to be stopped for a while; or so little that it may go on.
    pub(super) fn press(&mut self, on: bool) {
        if matches!(self.phase, Phase::Running) && self.reason == 0 {
            self.to_host.extend_from_slice(if on { b"STOP\n" } else { b"CONT\n" });
        }
    }

    // ---- time ----

    /// When [`tick`](Self::tick) must come at the latest.
    pub(super) fn wake_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Starting { until } | Phase::Closing { until, .. } => {
                [Some(until), self.kill_at, self.output.show_at()].into_iter().flatten().min()
            }
            Phase::Running => {
                let (wall, lease) = (self.wall_at, self.lease_at);
                let silence = self.silence.map(|(limit, since)| since.saturating_add(limit));
                let asked = |at: Option<u64>, reason: u8| at.filter(|_| self.reason < reason);
                let deadlines = [asked(wall, TIMEOUT), asked(lease, LEASE), asked(silence, SILENCE)];
                let kill = self.kill_at.filter(|at| *at < u64::MAX);
                deadlines.into_iter().chain([kill, self.output.show_at()]).flatten().min()
            }
            _ => None,
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Now) {
        self.output.show(now);
        self.kill_if_due(now);
        match self.phase {
            Phase::Starting { until } if now.ms >= until => {
                self.hang_up = true;
                self.gone_for(format!("the host did not begin the job within {} s", START_MS / 1000), now);
            }
            // What waits for room is not what the host keeps back.
            Phase::Closing { .. } if !self.has_room() => {
                if let Phase::Closing { until, .. } = &mut self.phase {
                    *until = now.ms + CLOSE_MS;
                }
            }
            // Whatever still holds the channel open is the sweeper's.
            Phase::Closing { until, .. } if now.ms >= until => {
                self.torn |= !self.eof;
                self.close(now);
            }
            Phase::Running => {
                // It waits for us while there is no room: that is not its silence.
                let stalled = !self.has_room();
                if let Some((_, since)) = self.silence.as_mut().filter(|_| stalled) {
                    *since = now.ms;
                }
                let grace = self.grace_ms;
                if self.reason < TIMEOUT && self.wall_at.is_some_and(|at| at <= now.ms) {
                    self.stop(TIMEOUT, false, grace, now);
                }
                let silent = self.silence.is_some_and(|(limit, since)| since.saturating_add(limit) <= now.ms);
                if self.reason < SILENCE && silent {
                    self.stop(SILENCE, false, grace, now);
                }
                if self.reason < LEASE && self.lease_at.is_some_and(|at| at <= now.ms) {
                    self.stop(LEASE, false, grace, now);
                }
            }
            _ => {}
        }
    }
}

/// Where `what` begins in `bytes`.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The number of a signal by the name that RFC 4254 has for it, and what servers add to that.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let name = name.split('@').next().unwrap_or(name);
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "XCPU" => 24,
        "XFSZ" => 25,
        "SYS" => 31,
        // OpenSSH's word for those that have no name in the standard: which one it was, nobody says.
        "" => 0,
        other => return other.parse().ok().filter(|number| (1..=64).contains(number)),
    })
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
