//! The job: its process tree, its pipes, its clocks, its end.
//!
//! ```text
//!   starting ──exec──► running ──main process ended──► KILL to all ──nobody left──► pipes drained ──► over
//!       └─────cannot start (step, error)──────┘  ▲                                       │
//!                                                └── cleaning up, once, after a stop ◄───┘
//! ```
//! Owns every process of the job: in a cell all but the warden, on a host what descends from its keeper. Must never let one outlive the main
//! one, and never tell the end before the last byte of output is in the ring.

use crate::cgroup::{self, Limits, Peaks};
use crate::ladder::{self, Ladder, Level, Push};
use crate::mask::Patterns;
use crate::place::{Place, Reach, Ways};
use crate::plan::Plan;
use crate::ring::Ring;
use crate::room::Room;
use crate::source::{Allowance, Source, Turn};
use crate::sys::{self, Reaped, Status, Usage};
use crate::wire::{CellSpec, CleanUp, Exit, ExitKind, Met};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// At a high rate the pipes are read this often at most, so that reads are large: the same bytes in a tenth of the frames
/// and wake-ups. Output that comes after a silence is read at once.
const READ_PAUSE_NS: u64 = 500_000;
/// A pipe of so many bytes is not full before that, whoever writes. Of a smaller one that was half full the next read comes as much sooner: its writer
/// would stand still for the rest of the pause.
const WIDE_PIPE_BYTES: u64 = 1 << 20;
/// What a pipe holds that nobody asks for more.
const USUAL_PIPE_BYTES: u64 = 64 << 10;
/// Ended processes taken before the loop looks at its other work.
const REAPS_PER_TURN: usize = 256;
const MS: u64 = 1_000_000;
/// Between two looks at what is left of a job on a host, which is longer each time up to the second.
const REST_PAUSE_NS: u64 = 5 * MS;
const LONGEST_REST_PAUSE_NS: u64 = 500 * MS;
/// How long what runs as another user may outlive a job on a host before its end is told: no signal of ours reaches it.
const OUT_OF_REACH_NS: u64 = 10_000 * MS;

pub(crate) struct Job {
    main: i32,
    reach: Reach,
    ways: Ways,
    rest: Rest,
    /// Ends when the program runs, or tells why it does not.
    report: Option<OwnedFd>,
    failed: Option<(&'static str, i32)>,
    sources: [Source; 2],
    allowance: Allowance,
    /// What is beyond the allowance is dropped, and the job goes on; otherwise it is ended.
    cuts: bool,
    room: Room,
    /// What a pipe holds, as far as it could be had.
    pipe_bytes: u64,
    /// No read before this; nanoseconds since boot, like every time here but `_us`.
    read_at: u64,
    ladder: Ladder,
    grace_ms: u32,
    wall_at: Option<u64>,
    lease_at: Option<u64>,
    began: u64,
    began_us: u64,
    /// What children before the job have used.
    before: Usage,
    main_ended: Option<Ended>,
    nobody_left: bool,
    leftover: u32,
    /// How long it may write nothing.
    silence: Option<u64>,
    /// When it last wrote.
    heard_at: u64,
    /// Nobody takes its output, so its silence says nothing.
    stalled: bool,
    /// What runs after a stop, and for how long at most; gone when it was begun.
    clean_up: Option<(Plan, u64)>,
    cleaning: Option<Cleaning>,
    cleaned: Option<CleanUp>,
    /// Where calls are told that no honest job makes.
    tripwire: Option<OwnedFd>,
    /// What tripped it; empty when the kernel ended a process and nobody saw the call.
    tripped: Option<String>,
    /// What is not to be seen of it.
    patterns: Option<Arc<Patterns>>,
}

/// The command that runs after a stop.
struct Cleaning {
    pid: i32,
    /// Tells why it did not start.
    report: OwnedFd,
    /// When it is ended; `None` once it was.
    until: Option<u64>,
}

#[derive(Clone, Copy)]
struct Ended {
    status: Status,
    at: u64,
    at_us: u64,
}

/// What is left of a job on a host when its main process has ended.
#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    /// When it is to be looked for.
    at: Option<u64>,
    pause: u64,
    /// Since when nothing is left but what no signal reaches.
    out_of_reach: Option<u64>,
}

/// What looking after the processes found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// The program runs since this moment.
    pub(crate) started: bool,
    /// There may be more to reap.
    pub(crate) again: bool,
}

impl Job {
    /// Starts it, with what is to run after a stop. Error: the step that failed and the kernel's error number.
    pub(crate) fn start(
        (plan, clean_up): (&Plan, Option<Plan>),
        spec: &CellSpec,
        stdin: Option<File>,
        tripwire: Option<OwnedFd>,
        room: Room,
        patterns: Option<&Arc<Patterns>>,
        place: &Place,
    ) -> Result<Self, (&'static str, i32)> {
        let step = |name: &'static str| move |error: io::Error| (name, error.raw_os_error().unwrap_or(sys::EIO));
        let stdin = OwnedFd::from(match stdin {
            Some(file) => file,
            None => File::open("/dev/null").map_err(step("stdin"))?,
        });
        let (out, out_job) = sys::pipe().map_err(step("pipes"))?;
        let (err, err_job) = sys::pipe().map_err(step("pipes"))?;
        for pipe in [&out, &err] {
            sys::widen_pipe(pipe.as_raw_fd(), spec.output_pipe_bytes);
        }
        let launch = plan.launch([&stdin, &out_job, &err_job], place.ways());
        let (began, began_us) = (sys::boot_ns(), sys::unix_us());
        let (main, report) = sys::start(&launch).map_err(step("fork"))?;
        // Zero means that there is no such clock.
        let after = |ms: u64| (ms > 0).then(|| began.saturating_add(ms.saturating_mul(MS)));
        let source = |pipe, stream| Source::new(pipe, stream, spec.drop_output, patterns, place.reserves());
        Ok(Self {
            main,
            reach: place.reach(),
            ways: place.ways(),
            rest: Rest::default(),
            report: Some(report),
            failed: None,
            sources: [source(out, 1), source(err, 2)],
            allowance: Allowance::new(spec.output_limit),
            cuts: spec.cut_output,
            room,
            pipe_bytes: u64::from(spec.output_pipe_bytes).clamp(USUAL_PIPE_BYTES, WIDE_PIPE_BYTES),
            read_at: 0,
            ladder: Ladder::default(),
            grace_ms: spec.grace_ms,
            wall_at: after(spec.wall_timeout_ms),
            lease_at: after(spec.lease_ms),
            began,
            began_us,
            before: sys::children_usage(),
            main_ended: None,
            nobody_left: false,
            leftover: 0,
            silence: (spec.silence_ms > 0).then(|| spec.silence_ms.saturating_mul(MS)),
            heard_at: began,
            stalled: false,
            clean_up: clean_up.map(|plan| (plan, u64::from(spec.on_cancel_ms) * MS)),
            cleaning: None,
            cleaned: None,
            tripwire,
            tripped: None,
            patterns: patterns.cloned(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.main.unsigned_abs()
    }

    pub(crate) fn began_us(&self) -> u64 {
        self.began_us
    }

    /// The descriptor that tells how the start went, while that is not known.
    pub(crate) fn report_fd(&self) -> Option<RawFd> {
        self.report.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The descriptor that tells of calls, until the first one.
    pub(crate) fn tripwire_fd(&self) -> Option<RawFd> {
        self.tripwire.as_ref().filter(|_| self.tripped.is_none()).map(AsRawFd::as_raw_fd)
    }

    /// The pipe of a stream, while it is to be waited for.
    pub(crate) fn source_fd(&self, stream: usize, now: u64) -> Option<RawFd> {
        if self.main_ended.is_none() && now < self.read_at { None } else { self.sources[stream].fd() }
    }

    /// The next moment at which something is to be done without anybody asking.
    pub(crate) fn wake_at(&self, now: u64, reads: bool) -> Option<u64> {
        let show_at = self.sources.iter().filter_map(Source::show_at).min().filter(|_| reads);
        if self.main_ended.is_some() {
            let until = self.cleaning.as_ref().and_then(|cleaning| cleaning.until);
            let until = until.map(|until| self.lease_at.map_or(until, |lease| lease.min(until)));
            return [until, show_at, self.rest.at].into_iter().flatten().min();
        }
        // While no pipe is waited for, the pause does not matter.
        let read_at = Some(self.read_at).filter(|at| reads && now < *at);
        let silent_at = self.silent_at().filter(|_| !self.stalled);
        [self.ladder.wake_at(), self.wall_at, self.lease_at, silent_at, read_at, show_at].into_iter().flatten().min()
    }

    /// When its silence is too long.
    fn silent_at(&self) -> Option<u64> {
        self.silence.map(|silence| self.heard_at.saturating_add(silence))
    }

    /// Whether output is dropped, so that the pipes are read in any case.
    pub(crate) fn needs_no_room(&self) -> bool {
        self.sources.iter().any(Source::needs_no_room)
    }

    /// Somebody wants it to end.
    pub(crate) fn stop(&mut self, level: Level, reason: u8, grace_ms: u32, now: u64) {
        // A process that ended by itself was not stopped.
        if self.main_ended.is_none() {
            let push = self.ladder.order(level, reason, grace_ms, now);
            self.send(push);
        } else if level == Level::Now {
            self.clean_up = None;
            self.end_cleaning();
        }
    }

    fn end_cleaning(&mut self) {
        if let Some(cleaning) = &mut self.cleaning {
            cleaning.until = None;
            self.reach.signal(sys::SIGKILL);
        }
    }

    /// The lease lasts this much longer.
    pub(crate) fn renew(&mut self, remaining_ms: u64, now: u64) {
        self.lease_at = Some(now.saturating_add(remaining_ms.saturating_mul(MS)));
    }

    /// Looks at the clocks.
    pub(crate) fn tick(&mut self, now: u64) {
        if self.main_ended.is_some() {
            let until = self.cleaning.as_ref().and_then(|cleaning| cleaning.until);
            if until.is_some_and(|until| now >= until || self.lease_at.is_some_and(|lease| now >= lease)) {
                self.end_cleaning();
            }
            if self.rest.at.is_some_and(|at| now >= at) {
                self.end_rest(now);
            }
            return;
        }
        if !self.stalled && self.silent_at().is_some_and(|at| now >= at) {
            self.silence = None;
            let push = self.ladder.order(Level::Ladder, ladder::SILENCE, self.grace_ms, now);
            self.send(push);
        }
        for (clock, reason) in [(&mut self.wall_at, ladder::TIMEOUT), (&mut self.lease_at, ladder::LEASE)] {
            if clock.is_some_and(|at| now >= at) {
                *clock = None;
                let push = self.ladder.order(Level::Ladder, reason, self.grace_ms, now);
                send(self.reach, push);
            }
        }
        let push = self.ladder.tick(now);
        self.send(push);
    }

    fn send(&self, push: Option<Push>) {
        send(self.reach, push);
    }

    /// The main process, or what runs after it, has ended, and nobody may outlive it.
    fn rest_goes(&mut self) {
        match self.reach {
            // A daemon in a session of its own has no other owner than process 1.
            Reach::Everybody => sys::signal_all(sys::SIGKILL),
            // Most leave nothing, so that is asked first: finding descendants costs more than all else.
            Reach::Descendants => self.rest = Rest { at: Some(0), ..Rest::default() },
        }
    }

    /// Kills what is left of a job on a host. What was forked in the meantime, or is slow to go, is found the next time.
    fn end_rest(&mut self, now: u64) {
        let found = self.reach.signal(sys::SIGKILL);
        self.rest.pause = (2 * self.rest.pause).clamp(REST_PAUSE_NS, LONGEST_REST_PAUSE_NS);
        self.rest.at = Some(now.saturating_add(self.rest.pause));
        // The kernel has said that there is somebody; nobody seen is one who is hidden.
        if found.out_of_reach < found.there {
            self.rest.out_of_reach = None;
            return;
        }
        let since = *self.rest.out_of_reach.get_or_insert(now);
        if now >= since.saturating_add(OUT_OF_REACH_NS) {
            self.leftover = self.leftover.saturating_add(u32::try_from(found.there.max(1)).unwrap_or(u32::MAX));
            self.gone();
        }
    }

    /// Nobody is left whom we could wait for.
    fn gone(&mut self) {
        self.nobody_left = self.main_ended.is_some() && self.cleaning.is_none();
        self.rest.at = None;
    }

    /// Ends everything when a call was made that no honest job makes. Its process waits in the call, which never returns.
    pub(crate) fn listen(&mut self) {
        let Some(fd) = self.tripwire_fd() else { return };
        let Some(caught) = sys::caught(fd) else { return };
        let name = std::fs::read_to_string(format!("/proc/{}/comm", caught.pid)).unwrap_or_default();
        // It calls itself what it likes.
        let name = self.patterns.as_ref().map_or_else(|| name.clone(), |patterns| patterns.text(&name));
        self.trip(caught.told(name.trim_end()));
    }

    fn trip(&mut self, what: String) {
        self.tripped = Some(what);
        let push = self.ladder.order(Level::Now, ladder::TRIPWIRE, 0, sys::boot_ns());
        self.send(push);
        // Also where the ladder has killed before: the command that runs after a stop.
        self.reach.signal(sys::SIGKILL);
    }

    /// The kernel kills for calls by the entries for other architectures, which nobody is told of. Only children of ours are seen.
    fn tripped_by(&mut self, status: Status) {
        if self.tripwire_fd().is_some() && status == Status::Signaled(sys::SIGSYS) {
            self.trip(String::new());
        }
    }

    /// Takes processes that have ended, and the word of the child about its start.
    pub(crate) fn look(&mut self) -> Found {
        // Before what it leaves is ended, and removes what it has written.
        self.room.look(sys::boot_ns());
        let mut found = Found { started: self.has_started(), again: true };
        for _ in 0..REAPS_PER_TURN {
            let reaped = sys::reap();
            if let Reaped::Child { status, .. } = reaped {
                // Before anybody is killed who may wait in a call.
                self.listen();
                self.tripped_by(status);
            }
            match reaped {
                Reaped::Child { pid, status } if pid == self.main && self.main_ended.is_none() => {
                    // It may have failed, or run and ended, since its report was looked at.
                    found.started |= self.has_started();
                    self.room.look_once_more(sys::boot_ns());
                    self.main_ended = Some(Ended { status, at: sys::boot_ns(), at_us: sys::unix_us() });
                    self.rest_goes();
                }
                Reaped::Child { pid, status } if self.cleaning.as_ref().is_some_and(|cleaning| cleaning.pid == pid) => {
                    self.cleaned = self.cleaning.take().map(|cleaning| cleaning.ended(status));
                    self.rest_goes();
                }
                Reaped::Child { status, .. } => {
                    if self.main_ended.is_some() && status == Status::Signaled(sys::SIGKILL) {
                        self.leftover = self.leftover.saturating_add(1);
                    }
                }
                Reaped::NoneYet => {
                    found.again = false;
                    if self.rest.at == Some(0) {
                        self.end_rest(sys::boot_ns());
                    }
                    break;
                }
                Reaped::NoChildren => {
                    self.gone();
                    found.again = false;
                    break;
                }
            }
        }
        found
    }

    /// Says whether the program runs since now: once.
    pub(crate) fn has_started(&mut self) -> bool {
        let Some(report) = &self.report else { return false };
        let mut bytes = [0; 5];
        match sys::read_some(report.as_raw_fd(), &mut bytes) {
            Ok(None) => return false,
            Ok(Some(5)) => {
                let [step, error @ ..] = bytes;
                let name = sys::START_STEPS.get(usize::from(step)).copied().unwrap_or("start");
                self.failed = Some((name, i32::from_le_bytes(error)));
            }
            Ok(Some(_)) => {}
            Err(error) => self.failed = Some(("start", error.raw_os_error().unwrap_or(sys::EIO))),
        }
        self.report = None;
        self.failed.is_none()
    }

    /// Moves output into the ring, if it is time.
    pub(crate) fn read(&mut self, ring: &mut Ring, now: u64) {
        if self.main_ended.is_none() && now < self.read_at {
            return;
        }
        // A process that finds no room complains, and then often removes what was in the way.
        self.room.look(now);
        let seen = self.seen();
        let (mut pause, mut stalled) = (true, false);
        for source in &mut self.sources {
            let turn = source.turn(ring, &mut self.allowance);
            pause &= turn == Turn::Dry;
            stalled |= turn == Turn::Full;
            source.settle(turn, ring, &mut self.allowance, now);
            if self.nobody_left {
                source.close_if_dry(turn);
            }
        }
        if pause && self.seen() > seen {
            self.read_at = now + pause_after(self.seen() - seen, self.pipe_bytes);
        }
        self.stalled = stalled;
        if self.wrote_too_much() && self.main_ended.is_none() {
            let push = self.ladder.order(Level::Ladder, ladder::OUTPUT, self.grace_ms, now);
            self.send(push);
        }
        if stalled || self.seen() > seen {
            self.heard_at = now;
        }
    }

    /// Whether it is to be ended for what it writes, or was: nothing else came first.
    fn wrote_too_much(&self) -> bool {
        !self.cuts && self.allowance.beyond() > 0 && self.ladder.reason() == 0
    }

    fn seen(&self) -> u64 {
        self.sources.iter().map(Source::seen).sum()
    }

    /// Begins what is to run after a stop, if there is such a thing and the job was stopped for a reason that leaves time for it.
    /// The job is [`over`](Self::over); says whether it goes on.
    pub(crate) fn begin_clean_up(&mut self, now: u64) -> bool {
        let Some((mut plan, budget)) = self.clean_up.take() else { return false };
        let reason = match self.ladder.reason() {
            ladder::CANCEL => "cancel",
            ladder::TIMEOUT => "timeout",
            ladder::SILENCE => "silence",
            ladder::OUTPUT => "output_limit",
            _ => return false,
        };
        if self.failed.is_some() || self.ladder.at_once() || self.lease_at.is_some_and(|lease| now >= lease) {
            return false;
        }
        plan.envp.push(CString::new(format!("JOBCELL_STOP_REASON={reason}")).unwrap_or_default());
        match self.start_cleaning(&plan, now.saturating_add(budget)) {
            Ok(cleaning) => {
                self.cleaning = Some(cleaning);
                self.nobody_left = false;
                true
            }
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(sys::EIO);
                self.cleaned = Some(CleanUp { kind: ExitKind::StartFailed, code });
                false
            }
        }
    }

    fn start_cleaning(&mut self, plan: &Plan, until: u64) -> io::Result<Cleaning> {
        let stdin = OwnedFd::from(File::open("/dev/null")?);
        let ((out, out_job), (err, err_job)) = (sys::pipe()?, sys::pipe()?);
        let (pid, report) = sys::start(&plan.launch([&stdin, &out_job, &err_job], self.ways))?;
        for (source, pipe) in self.sources.iter_mut().zip([out, err]) {
            source.go_on(pipe);
        }
        Ok(Cleaning { pid, report, until: Some(until) })
    }

    /// Whether there is output to move that no descriptor will announce.
    pub(crate) fn must_read(&self) -> bool {
        self.sources.iter().any(Source::holds_back) || (self.nobody_left && !self.drained())
    }

    /// Whether every process of the job is gone.
    pub(crate) fn nobody_left(&self) -> bool {
        self.nobody_left
    }

    fn drained(&self) -> bool {
        self.sources.iter().all(Source::ended)
    }

    /// Whether nothing more will happen: nobody is left, and all output is in the ring.
    pub(crate) fn over(&self) -> bool {
        self.nobody_left && self.drained()
    }

    /// The limits that were in its way.
    fn met(&self, limits: &Limits, peaks: Peaks) -> Vec<Met> {
        let (limit, beyond) = (self.allowance.limit(), self.allowance.beyond());
        let output = Met { name: "output".to_owned(), limit, peak: limit.saturating_add(beyond), times: 1 };
        let mut met = cgroup::met(limits, peaks);
        met.extend(self.room.met());
        met.extend((beyond > 0).then_some(output));
        met
    }

    /// Whether somebody or something ended it.
    pub(crate) fn was_stopped(&self) -> bool {
        self.ladder.reason() != 0 || self.tripped.is_some()
    }

    /// Its end, once it is [`over`](Self::over).
    pub(crate) fn exit(&self, last_seq: u64, limits: &Limits, peaks: Peaks) -> Exit {
        let usage = sys::children_usage();
        let ended =
            self.main_ended.unwrap_or(Ended { status: Status::Exited(0), at: self.began, at_us: self.began_us });
        let (kind, code) = match (self.failed, ended.status) {
            (Some((_, error)), _) => (ExitKind::StartFailed, error),
            (None, Status::Exited(code)) => (ExitKind::Exited, code),
            (None, Status::Signaled(signal)) => (ExitKind::Signaled, signal),
        };
        Exit {
            last_seq,
            kind,
            code,
            step: self.tripped.clone().or(self.failed.map(|(step, _)| step.to_owned())).unwrap_or_default(),
            stop_reason: match self.ladder.reason() {
                // Whatever it was being ended for, this is worse.
                _ if self.tripped.is_some() => ladder::TRIPWIRE,
                // One that wrote the last of it and ended before it was read is no better than one that was caught.
                _ if self.wrote_too_much() => ladder::OUTPUT,
                reason => reason,
            },
            // What never ran has no start.
            started_us: if self.failed.is_some() { 0 } else { self.began_us },
            ended_us: ended.at_us,
            wall_ms: (ended.at - self.began) / MS,
            utime_us: usage.user_us.saturating_sub(self.before.user_us),
            stime_us: usage.system_us.saturating_sub(self.before.system_us),
            max_rss_bytes: usage.max_rss_bytes,
            peak_memory_bytes: peaks.memory_bytes,
            oom_kills: peaks.oom_kills,
            peak_pids: peaks.pids,
            stdout_bytes: self.sources[0].bytes(),
            stderr_bytes: self.sources[1].bytes(),
            leftover: self.leftover,
            on_cancel: self.cleaned,
            met: self.met(limits, peaks),
            results: None,
        }
    }
}

impl Cleaning {
    fn ended(&self, status: Status) -> CleanUp {
        // Where the start failed the report holds the step and the error; where it did not, it ended with the exec.
        let mut bytes = [0; 5];
        match (sys::read_some(self.report.as_raw_fd(), &mut bytes), status) {
            (Ok(Some(5)), _) => {
                let [_, error @ ..] = bytes;
                CleanUp { kind: ExitKind::StartFailed, code: i32::from_le_bytes(error) }
            }
            (_, Status::Exited(code)) => CleanUp { kind: ExitKind::Exited, code },
            (_, Status::Signaled(signal)) => CleanUp { kind: ExitKind::Signaled, code: signal },
        }
    }
}

/// The end of a job that could not even be prepared.
pub(crate) fn never_started(step: &str, error: i32) -> Exit {
    let now = sys::unix_us();
    Exit {
        last_seq: 0,
        kind: ExitKind::StartFailed,
        code: error,
        step: step.to_owned(),
        stop_reason: 0,
        started_us: 0,
        ended_us: now,
        wall_ms: 0,
        utime_us: 0,
        stime_us: 0,
        max_rss_bytes: 0,
        peak_memory_bytes: 0,
        oom_kills: 0,
        peak_pids: 0,
        stdout_bytes: 0,
        stderr_bytes: 0,
        leftover: 0,
        on_cancel: None,
        met: Vec::new(),
        results: None,
    }
}

/// When the pipes are read next that have just given so much.
fn pause_after(bytes: u64, pipe_bytes: u64) -> u64 {
    if bytes < pipe_bytes / 2 { READ_PAUSE_NS } else { READ_PAUSE_NS * pipe_bytes / WIDE_PIPE_BYTES }
}

fn send(reach: Reach, push: Option<Push>) {
    match push {
        Some(Push::Ask) => {
            reach.signal(sys::SIGTERM);
            // A stopped process could not hear it.
            reach.signal(sys::SIGCONT);
        }
        Some(Push::Kill) => drop(reach.signal(sys::SIGKILL)),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pipe_that_was_half_full_is_read_again_before_it_is_full() {
        let small = 128 << 10;
        assert_eq!(pause_after(100, small), READ_PAUSE_NS, "a log is read in large pieces");
        assert_eq!(pause_after(small / 2, small), READ_PAUSE_NS / 8);
        assert_eq!(pause_after(WIDE_PIPE_BYTES, WIDE_PIPE_BYTES), READ_PAUSE_NS, "cells have wide ones");
    }
}
