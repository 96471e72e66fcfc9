//! The one loop: the transport, the job, the clocks.
//!
//! Owns the session with the agent and where the attempt stands. One thread; every descriptor is non-blocking; what is
//! not ready is waited for in one place. Must never wait to write without reading: a transport that takes nothing delays
//! output, never an order.
//!
//! ```text
//!            chunks                      ┌── weaker, or bad ──► refused ──┐
//!   waiting ─────── commit ──receipt?────┤                                ├─close─► exit 0
//!      │                                 └─► running ──over──► ended ─────┘
//!      └──start deadline (exit 3)
//! ```

use crate::collect::Collector;
use crate::egress::Egress;
use crate::inbox::Inbox;
use crate::intake::{Failed, Intake};
use crate::job::{self, Job};
use crate::ladder::Level;
use crate::outbox::{Outbox, Say};
use crate::place::Place;
use crate::plan;
use crate::progress::Progress;
use crate::receipt::{self, Receipt};
use crate::results;
use crate::ring::{RING_BYTES, Ring, memory};
use crate::room::Room;
use crate::secrets::{self, Secrets};
use crate::sys::{self, POLLIN, POLLOUT, PollFd};
use crate::tripwire;
use crate::unpack::{self, Unpack};
use crate::wire::{
    Collect, Exit, ExitKind, FromWarden, MUX_THINGS_LEFT, Mismatch, ToWarden, VERSION, WardenState, is_clean_end, unmet,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

const STDIN: RawFd = 0;
const STDOUT: RawFd = 1;
/// The agent has the end, or gave the cell up.
pub(crate) const EXIT_CLOSED: u8 = 0;
/// No job was committed in time.
pub(crate) const EXIT_START_DEADLINE: u8 = 3;
/// The transport ended, so nobody can ever come for what is left to tell.
pub(crate) const EXIT_NO_TRANSPORT: u8 = 4;
/// The job on a host has ended, its lease too, and nobody has come.
pub(crate) const EXIT_LEFT_ALONE: u8 = 6;
// Those of a keeper are part of what a hub tells.
const _: () = {
    let own = [EXIT_CLOSED, EXIT_START_DEADLINE, EXIT_NO_TRANSPORT, EXIT_LEFT_ALONE];
    let mut at = 0;
    while at < own.len() {
        assert!(is_clean_end(own[at] as i32) && own[at] as i32 != MUX_THINGS_LEFT);
        at += 1;
    }
};

/// As in [`ToWarden::Stop`]; nobody will hear of it.
const FORCED: u8 = 6;
/// One read of the transport: a pipe's usual size.
const READ_BYTES: usize = 64 * 1024;
/// How long half a frame may lie before an attach behind it is looked for.
const RESCUE_AFTER_NS: u64 = 100_000_000;
/// poll counts time without suspend, the deadlines with: so it never sleeps longer than this while there is one.
const LONGEST_SLEEP_NS: u64 = 1_000_000_000;
/// A refusal must fit one frame; the first ones tell enough.
const MISMATCHES_MAX: usize = 64;
const TEXT_MAX: usize = 200;
/// For what a job has sent before its end.
const LINGER_NS: u64 = 2_000_000_000;
/// For how long a job's beginning may wait for what follows, to be told with it: most of the short ones have ended by then, and each word of its own
/// costs every hop on its way to the agent as much as all of them together. Output and answers wait for nothing.
const HUSH_NS: u64 = 20_000_000;
/// What is waited for beside the clients of the proxy.
const OWN_ENTRIES: usize = 8;

enum Phase {
    Waiting(Box<Intake>),
    Running(Box<Job>),
    Ended(Box<Exit>),
    Refused(Vec<Mismatch>),
}

pub(crate) struct Warden {
    inbox: Inbox,
    outbox: Outbox,
    ring: Ring,
    receipt: Receipt,
    place: Place,
    secrets: Secrets,
    signals: OwnedFd,
    phase: Phase,
    /// What is asked for of the job's results, and what it says of itself until it is over.
    results: Option<(Collect, Progress)>,
    /// Its files, once it is over.
    collector: Option<Collector>,
    /// Empty until an attach names it.
    attempt: String,
    /// The highest epoch that was attached; 0 for none.
    epoch: u32,
    window: usize,
    /// The agent of this session is here for another attempt: it is greeted, and gets nothing.
    stranger: bool,
    start_by: u64,
    start_deadline_ns: u64,
    input_open: bool,
    output_open: bool,
    /// The transport took less than it was given, so it is asked before more is written.
    blocked: bool,
    last_input: u64,
    /// When the lease is over, and when the job was.
    lease_end: u64,
    ended_at: u64,
    rescue_due: bool,
    reap_again: bool,
    /// The proxy of a job that asked for a way out, while it runs.
    egress: Option<Egress>,
    /// It is the proxy's turn to send a frame, and not that of output.
    egress_next: bool,
    /// The job is over, and what it has sent is still being carried.
    linger_until: Option<u64>,
    /// That a job has begun is not told before, unless there is more to tell.
    hush_until: u64,
    /// What is waited for; kept, since the proxy has many.
    polled: Vec<PollFd>,
}

impl Warden {
    pub(crate) fn new(receipt: Receipt, signals: OwnedFd, start_deadline_ms: u64, place: Place) -> Self {
        Self {
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            ring: Ring::with(RING_BYTES, place.reserves()),
            receipt,
            place,
            secrets: Secrets::default(),
            signals,
            phase: Phase::Waiting(Box::default()),
            results: None,
            collector: None,
            attempt: String::new(),
            epoch: 0,
            window: 0,
            stranger: false,
            start_by: sys::boot_ns().saturating_add(start_deadline_ms.saturating_mul(1_000_000)),
            start_deadline_ns: start_deadline_ms.saturating_mul(1_000_000),
            input_open: true,
            output_open: true,
            blocked: false,
            last_input: 0,
            lease_end: 0,
            ended_at: 0,
            rescue_due: false,
            reap_again: false,
            egress: None,
            egress_next: false,
            linger_until: None,
            hush_until: 0,
            polled: Vec::new(),
        }
    }

    /// Serves until there is nothing left to do; the answer is the exit code.
    pub(crate) fn run(&mut self) -> u8 {
        let mut buffer = memory(READ_BYTES, self.place.reserves());
        loop {
            let ready = self.wait();
            // Orders first.
            if ready.input
                && let Some(code) = self.read_input(&mut buffer)
            {
                return code;
            }
            if let Some(code) = self.look_at_clocks() {
                return code;
            }
            self.look_after_job(&ready);
            self.look_after_results();
            if let Some(egress) = &mut self.egress {
                egress.turn(self.polled.get(OWN_ENTRIES..).unwrap_or_default(), sys::boot_ns());
            }
            self.write_output();
            if !self.input_open && self.has_nobody() {
                return EXIT_NO_TRANSPORT;
            }
        }
    }

    fn wait(&mut self) -> Ready {
        let now = sys::boot_ns();
        let room = self.ring.has_room();
        let job = match &self.phase {
            Phase::Running(job) => Some(job),
            Phase::Waiting(_) | Phase::Ended(_) | Phase::Refused(_) => None,
        };
        let entry = |fd: Option<RawFd>, events| PollFd::new(fd.unwrap_or(-1), if fd.is_some() { events } else { 0 });
        // What keeps nothing reads in any case.
        let reads = room || job.is_some_and(|job| job.needs_no_room());
        let source = |stream| job.filter(|_| reads).and_then(|job| job.source_fd(stream, now));
        let own: [PollFd; OWN_ENTRIES] = [
            entry(self.input_open.then_some(STDIN), POLLIN),
            entry((self.blocked && self.output_open).then_some(STDOUT), POLLOUT),
            entry(Some(self.signals.as_raw_fd()), POLLIN),
            entry(job.filter(|_| !self.is_hushed(now)).and_then(|job| job.report_fd()), POLLIN),
            entry(source(0), POLLIN),
            entry(source(1), POLLIN),
            entry(job.and_then(|job| job.tripwire_fd()), POLLIN),
            entry(self.results.as_ref().filter(|_| job.is_some()).and_then(|(_, progress)| progress.fd(now)), POLLIN),
        ];
        let walks = self.collector.as_ref().is_some_and(Collector::walks);
        let at_once = walks || self.reap_again || job.is_some_and(|job| room && job.must_read());
        let wake_at = if at_once { Some(now) } else { self.wake_at(now, reads) };
        let mut fds = std::mem::take(&mut self.polled);
        fds.clear();
        fds.extend(own);
        if let Some(egress) = &mut self.egress {
            egress.poll_entries(now, &mut fds);
        }
        sys::poll(&mut fds, wake_at.map(|at| at.saturating_sub(now).min(LONGEST_SLEEP_NS)));
        let ready = |at: usize| fds[at].ready();
        let (input, output, signals, report, tripped) = (ready(0), ready(1), ready(2), ready(3), ready(6));
        self.polled = fds;
        self.blocked &= !output;
        if signals {
            sys::drain_signals(&self.signals);
        }
        Ready { input, children: signals || report, tripped }
    }

    fn wake_at(&self, now: u64, reads: bool) -> Option<u64> {
        let phase = match &self.phase {
            Phase::Running(job) => job.wake_at(now, reads),
            Phase::Waiting(intake) => {
                let tell_at = intake.inputs.as_ref().and_then(Unpack::tell_at);
                Some(tell_at.map_or(self.start_by, |at| at.min(self.start_by)))
            }
            Phase::Refused(_) => Some(self.start_by),
            Phase::Ended(_) => self.left_at(),
        };
        let rescue = self.rescue_due.then(|| self.last_input.saturating_add(RESCUE_AFTER_NS));
        let heard = self.epoch > 0 && !self.stranger && matches!(self.phase, Phase::Running(_));
        let progress = self.results.as_ref().and_then(|(_, progress)| progress.wake_at(now, heard));
        let egress = self.egress.as_ref().and_then(Egress::wake_at);
        let linger = self.linger_until.filter(|_| self.egress.is_some());
        let hush = Some(self.hush_until).filter(|_| self.is_hushed(now));
        [phase, rescue, progress, egress, linger, hush].into_iter().flatten().min()
    }

    /// Whether there is nothing to tell but that a job has begun, which has just been.
    fn is_hushed(&self, now: u64) -> bool {
        now < self.hush_until
            && matches!(self.phase, Phase::Running(_))
            && self.outbox.is_beginning()
            && self.ring.all_sent()
            && !self.egress_has_frame()
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> Option<u8> {
        match sys::read_some(STDIN, buffer) {
            Ok(None) => return None,
            Ok(Some(0)) | Err(_) => {
                self.input_open = false;
                // The hub is gone, so nobody can ever come, and nobody else would ever end it.
                if let (Phase::Running(job), Place::Host(_)) = (&mut self.phase, &self.place) {
                    job.stop(Level::Now, FORCED, 0, sys::boot_ns());
                }
            }
            Ok(Some(count)) => {
                self.inbox.feed(&buffer[..count]);
                self.last_input = sys::boot_ns();
            }
        }
        let code = self.obey_all();
        self.rescue_due = self.inbox.waits_for_more();
        code
    }

    fn obey_all(&mut self) -> Option<u8> {
        while let Some((epoch, message)) = self.inbox.next() {
            let code = match message {
                Ok(ToWarden::Attach { min_version, max_version, attempt, stored, window }) => {
                    self.attached(epoch, min_version..=max_version, &attempt, stored, window);
                    None
                }
                // An older session is over, and one that never attached has not begun.
                _ if epoch != self.epoch || epoch == 0 => None,
                Ok(message) => self.obey(message),
                Err(bad) => {
                    self.outbox.fault = Some(format!("a message that cannot be read: {bad}"));
                    None
                }
            };
            if code.is_some() {
                return code;
            }
        }
        None
    }

    fn attached(
        &mut self,
        epoch: u32,
        versions: std::ops::RangeInclusive<u8>,
        attempt: &str,
        stored: u64,
        window: u32,
    ) {
        if epoch == 0 || epoch < self.epoch {
            return;
        }
        self.epoch = epoch;
        self.outbox.begin(epoch, self.ring.torn());
        if let Phase::Waiting(intake) = &mut self.phase
            && attempt != self.attempt
        {
            // A cell that waits takes whoever comes, from the beginning.
            **intake = Intake::default();
            self.attempt = attempt.to_owned();
        }
        if let Some(egress) = &mut self.egress {
            egress.begin();
        }
        self.stranger = attempt != self.attempt || !versions.contains(&VERSION);
        if !versions.contains(&VERSION) {
            let text = format!("version {VERSION} is spoken here, not {} to {}", versions.start(), versions.end());
            self.outbox.fault = Some(text);
        }
        self.window = usize::try_from(window).unwrap_or(RING_BYTES).min(RING_BYTES);
        self.ring.rewind(epoch, if self.stranger { 0 } else { stored });
        if self.stranger {
            return;
        }
        if stored.saturating_add(1) < self.ring.oldest_seq() {
            let oldest = self.ring.oldest_seq();
            self.outbox.fault = Some(format!("output before number {oldest} was acknowledged once, and is gone"));
        }
        match &self.phase {
            Phase::Refused(_) => self.outbox.refused = true,
            Phase::Ended(_) => self.outbox.exit = true,
            Phase::Waiting(_) | Phase::Running(_) => {}
        }
        if let Some(collector) = &mut self.collector {
            collector.forget();
        }
        if let Some((_, progress)) = &mut self.results {
            progress.tell_again();
        }
    }

    fn obey(&mut self, message: ToWarden) -> Option<u8> {
        if let ToWarden::Ping { nonce } = message {
            self.outbox.pong = Some(nonce);
            return None;
        }
        if self.stranger {
            return None;
        }
        let now = sys::boot_ns();
        if let ToWarden::Lease { remaining_ms } = message {
            self.lease_end = now.saturating_add(remaining_ms.saturating_mul(1_000_000));
        }
        match (message, &mut self.phase) {
            (ToWarden::SpecChunk { section, offset, bytes }, Phase::Waiting(intake)) => {
                intake.chunk(section, offset, &bytes);
            }
            (ToWarden::Inputs { root }, Phase::Waiting(intake)) => {
                intake.inputs = None;
                if !self.place.may_fill(&root) {
                    return self.not_there(&root);
                }
                match Unpack::begin(&root) {
                    Ok(unpack) => {
                        intake.inputs = Some(unpack);
                        self.outbox.taken = Some(0);
                        self.start_by = now.saturating_add(self.start_deadline_ns);
                    }
                    Err(failed) => self.without_inputs(&failed),
                }
            }
            (ToWarden::InputsPart { offset, bytes }, Phase::Waiting(intake)) => {
                match intake.inputs.as_mut().map(|inputs| inputs.part(offset, &bytes)) {
                    Some(Ok(_)) => {
                        // Who brings something comes to an end.
                        self.start_by = now.saturating_add(self.start_deadline_ns);
                    }
                    Some(Err(failed)) => self.without_inputs(&failed),
                    None => {}
                }
            }
            (ToWarden::Commit { lengths, sums }, Phase::Waiting(intake)) => {
                let intake = std::mem::take(intake);
                self.committed(*intake, lengths, sums);
            }
            (ToWarden::Ack { seq }, _) => self.ring.acknowledge(seq),
            (ToWarden::Stop { level, reason, grace_ms }, Phase::Running(job)) => {
                let level = if level == 0 { Level::Ladder } else { Level::Now };
                job.stop(level, reason, grace_ms, now);
            }
            (ToWarden::Lease { remaining_ms }, Phase::Running(job)) => job.renew(remaining_ms, now),
            (ToWarden::List { from }, Phase::Ended(_)) => {
                if let Some(collector) = &mut self.collector {
                    collector.list(from);
                }
            }
            (ToWarden::Read { number, offset, len, path }, Phase::Ended(_)) => {
                if let Some(collector) = &mut self.collector
                    && let Err(text) = collector.read(number, offset, len, path)
                {
                    self.outbox.fault = Some(text);
                }
            }
            (ToWarden::Egress(message), _) => {
                if let Some(egress) = &mut self.egress {
                    egress.obey(message);
                }
            }
            // A close while the job runs is a mistake: ending it is what stop is for.
            (ToWarden::Close, Phase::Waiting(_) | Phase::Ended(_) | Phase::Refused(_)) => return Some(EXIT_CLOSED),
            // Repeats after the start, and orders that came too late or too early, change nothing.
            (
                ToWarden::SpecChunk { .. }
                | ToWarden::Commit { .. }
                | ToWarden::Stop { .. }
                | ToWarden::Lease { .. }
                | ToWarden::Close
                | ToWarden::List { .. }
                | ToWarden::Read { .. }
                | ToWarden::Inputs { .. }
                | ToWarden::InputsPart { .. }
                | ToWarden::Attach { .. }
                | ToWarden::Ping { .. },
                _,
            ) => {}
        }
        None
    }

    fn committed(&mut self, intake: Intake, lengths: [u64; 3], sums: [u32; 3]) {
        let mut complete = match intake.commit(lengths, sums) {
            Ok(complete) if complete.spec.attempt != self.attempt => {
                return self.refuse_spec(&format!("it is for attempt {}", complete.spec.attempt));
            }
            Ok(complete) => complete,
            Err(Failed::Spec(text)) => return self.refuse_spec(&text),
            Err(Failed::Step(step, error)) => return self.ended(job::never_started(step, error)),
        };
        self.receipt.refresh();
        let mismatches = unmet(&complete.spec.expect, self.receipt.facts());
        if !mismatches.is_empty() {
            return self.refuse(mismatches);
        }
        self.lease_end = sys::boot_ns().saturating_add(complete.spec.lease_ms.saturating_mul(1_000_000));
        self.place.complete(&mut complete.spec);
        self.secrets = match Secrets::give(&mut complete.spec, &self.place) {
            Ok(secrets) => secrets,
            Err(Failed::Spec(text)) => return self.refuse_spec(&text),
            Err(Failed::Step(step, error)) => return self.ended(job::never_started(step, error)),
        };
        if complete.spec.egress_connections > 0 {
            match Egress::start(complete.spec.egress_connections) {
                Ok(mut egress) => {
                    egress.hide(self.secrets.patterns.clone());
                    let more = egress.variables(&complete.spec.env);
                    complete.spec.env.extend(more);
                    self.egress = Some(egress);
                }
                Err(error) => {
                    return self.ended(job::never_started("egress", error.raw_os_error().unwrap_or(sys::EIO)));
                }
            }
        }
        let own_env = plan::own_env();
        let plans =
            plan::plan(&complete.spec, &own_env).and_then(|plan| Ok((plan, plan::clean_up(&complete.spec, &own_env)?)));
        let (mut plan, mut clean_up) = match plans {
            Ok(plans) => plans,
            Err(text) => return self.refuse_spec(&self.secrets.text(text)),
        };
        match self.place.group(&complete.spec.limits) {
            Ok(None) => {}
            Ok(Some(own)) => {
                clean_up.iter_mut().for_each(|clean_up| clean_up.doors = Arc::clone(&own.doors));
                plan.doors = own.doors;
                self.receipt.holds(own.group);
            }
            Err((step, error)) => return self.ended(job::never_started(&step, error)),
        }
        let room = Room::new(self.receipt.facts(), sys::space);
        let tripwire = match complete.spec.tripwire.then(|| sys::tripwire(&tripwire::program(tripwire::TRIPS))) {
            None => None,
            Some(Ok(fd)) => Some(fd),
            // The job asked for it, so it does not run without.
            Some(Err(error)) => {
                return self.ended(job::never_started("tripwire", error.raw_os_error().unwrap_or(sys::EIO)));
            }
        };
        // Before the job, which finds the pipe there.
        self.results = complete.spec.collect.clone().map(|collect| (collect, Progress::new(&self.place.progress())));
        let patterns = self.secrets.patterns.as_ref();
        let started =
            Job::start((&plan, clean_up), &complete.spec, complete.stdin, tripwire, room, patterns, &self.place);
        secrets::forget(&mut complete.spec);
        plan.forget();
        match started {
            Ok(job) => {
                if self.place.host().is_some() {
                    self.hush_until = sys::boot_ns().saturating_add(HUSH_NS);
                }
                self.phase = Phase::Running(Box::new(job));
            }
            Err((step, error)) => self.ended(job::never_started(step, error)),
        }
    }

    fn refuse_spec(&mut self, text: &str) {
        let wanted = "a spec that can be run".to_owned();
        self.refuse(vec![Mismatch { key: "spec".to_owned(), wanted, got: text.to_owned() }]);
    }

    fn refuse(&mut self, mut mismatches: Vec<Mismatch>) {
        mismatches.truncate(MISMATCHES_MAX);
        for text in mismatches.iter_mut().flat_map(|one| [&mut one.key, &mut one.wanted, &mut one.got]) {
            if let Some((at, _)) = text.char_indices().nth(TEXT_MAX) {
                text.truncate(at);
            }
        }
        self.phase = Phase::Refused(mismatches);
        self.outbox.refused = true;
    }

    /// What the job is to be given cannot be put into its place: the cell was not made for it, or what comes is no stream of entries.
    fn without_inputs(&mut self, (step, error): &unpack::Failed) {
        let shown: String = step.chars().take(TEXT_MAX).collect();
        self.outbox.taken = None;
        self.ended(job::never_started(&shown, *error));
    }

    /// The folder for inputs is not the job's own, so nothing in it is touched.
    fn not_there(&mut self, root: &str) -> Option<u8> {
        self.without_inputs(&(format!("inputs {root}"), sys::EINVAL));
        None
    }

    fn ended(&mut self, exit: Exit) {
        self.ended_at = sys::boot_ns();
        self.secrets.take_away();
        self.egress = None;
        self.phase = Phase::Ended(Box::new(exit));
        self.outbox.exit = true;
        // The end has the last word.
        self.outbox.advance = false;
    }

    fn look_at_clocks(&mut self) -> Option<u8> {
        let now = sys::boot_ns();
        if self.rescue_due && now >= self.last_input.saturating_add(RESCUE_AFTER_NS) {
            // Once: without more input there is nothing new to find.
            self.rescue_due = false;
            if self.inbox.rescue(self.epoch.max(1))
                && let Some(code) = self.obey_all()
            {
                return Some(code);
            }
        }
        let left_at = self.left_at();
        match &mut self.phase {
            Phase::Running(job) => job.tick(now),
            Phase::Waiting(_) | Phase::Refused(_) if now >= self.start_by => return Some(EXIT_START_DEADLINE),
            Phase::Waiting(intake) => {
                if let Some(taken) = intake.inputs.as_mut().and_then(|inputs| inputs.tell(now)) {
                    self.outbox.taken = Some(taken);
                }
            }
            Phase::Ended(_) if left_at.is_some_and(|at| now >= at) => return Some(EXIT_LEFT_ALONE),
            Phase::Refused(_) | Phase::Ended(_) => {}
        }
        None
    }

    /// When an end on a host that nobody has asked for is given up. A cell is its maker's to remove.
    fn left_at(&self) -> Option<u64> {
        let linger = self.place.host()?.linger_ns;
        Some(self.lease_end.max(self.ended_at).max(self.last_input).saturating_add(linger))
    }

    fn look_after_job(&mut self, ready: &Ready) {
        let Phase::Running(job) = &mut self.phase else {
            // Nobody should be there; what the engine put into the cell from outside still needs to be reaped.
            while ready.children && matches!(sys::reap(), sys::Reaped::Child { .. }) {}
            return;
        };
        if ready.tripped {
            job.listen();
        }
        if ready.children || self.reap_again {
            let found = job.look();
            self.reap_again = found.again;
            self.outbox.started |= found.started;
        }
        job.read(&mut self.ring, sys::boot_ns());
        if job.over() && job.begin_clean_up(sys::boot_ns()) {
            return;
        }
        if job.over() && self.egress.as_ref().is_some_and(|egress| !egress.is_quiet()) && !job.was_stopped() {
            // What a program sent before it ended is on its way, as it would be without a proxy.
            let now = sys::boot_ns();
            let until = *self.linger_until.get_or_insert(now.saturating_add(LINGER_NS));
            if now < until {
                return;
            }
        }
        if job.over() {
            self.reap_again = false;
            let group = self.receipt.group.as_ref();
            let told = group.map(|group| (group.limits(receipt::read), group.peaks(receipt::read)));
            let (limits, mut peaks) = told.unwrap_or_default();
            if !limits.bounds_memory() {
                // Its host ran short, and not the job.
                peaks.oom_kills = 0;
            }
            let mut exit = job.exit(self.ring.next_seq() - 1, &limits, peaks);
            if let Some((collect, mut progress)) = self.results.take()
                && exit.kind != ExitKind::StartFailed
            {
                exit.results = Some(results::of(&collect.root, &mut progress, &self.secrets));
                self.collector = Some(Collector::new(collect, self.secrets.patterns.clone()));
            }
            // The start is told even when the end came in the same turn.
            self.ended(exit);
        }
    }

    fn look_after_results(&mut self) {
        let now = sys::boot_ns();
        if let (Some((_, progress)), Phase::Running(_)) = (&mut self.results, &self.phase) {
            let secrets = &self.secrets;
            progress.read(now, &|bytes| secrets.hide(bytes));
            // Told to the agent of this session only, and kept for the next one.
            if self.epoch > 0 && !self.stranger && progress.tells_now(now) {
                self.outbox.advance = true;
            }
        }
        if let Some(collector) = &mut self.collector {
            collector.turn();
        }
    }

    fn message(&self, say: Say) -> FromWarden {
        match say {
            Say::Hello => FromWarden::Hello {
                version: VERSION,
                build: crate::BUILD.to_owned(),
                attempt: if matches!(self.phase, Phase::Waiting(_)) { String::new() } else { self.attempt.clone() },
                state: match self.phase {
                    Phase::Waiting(_) => WardenState::Waiting,
                    Phase::Running(_) => WardenState::Running,
                    Phase::Ended(_) | Phase::Refused(_) => WardenState::Ended,
                },
                next_seq: self.ring.next_seq(),
                receipt: self.receipt.facts().to_vec(),
            },
            Say::Fault(text) => FromWarden::Fault { text: self.secrets.text(text) },
            Say::Refused => match &self.phase {
                Phase::Refused(mismatches) => FromWarden::Refused { mismatches: mismatches.clone() },
                Phase::Waiting(_) | Phase::Running(_) | Phase::Ended(_) => unexpected("a refusal"),
            },
            Say::Started => match &self.phase {
                Phase::Running(job) => FromWarden::Started { pid: job.pid(), time_us: job.began_us() },
                // It ran so shortly that it is over.
                Phase::Ended(exit) => FromWarden::Started { pid: 0, time_us: exit.started_us },
                Phase::Waiting(_) | Phase::Refused(_) => unexpected("a start"),
            },
            Say::Pong(nonce) => {
                let stalled = matches!(self.phase, Phase::Running(_)) && !self.ring.has_room();
                FromWarden::Pong { nonce, stalled: u8::from(stalled) }
            }
            Say::Advance => match &self.results {
                Some((_, progress)) => FromWarden::Advance(progress.said().clone()),
                None => unexpected("progress"),
            },
            Say::InputsTaken(offset) => FromWarden::InputsTaken { offset },
            Say::Exit => match &self.phase {
                Phase::Ended(exit) => FromWarden::Exit((**exit).clone()),
                Phase::Waiting(_) | Phase::Running(_) | Phase::Refused(_) => unexpected("an end"),
            },
        }
    }

    /// What is to be written next: a control frame that is begun, the rest of an output frame before a control frame, or as
    /// much output as the window allows.
    fn next_bytes(&self) -> (bool, &[u8]) {
        let line = self.outbox.line();
        if !line.is_empty() {
            return (true, line);
        }
        // Output and the proxy take turns, frame by frame.
        if self.outbox.urgent() || (self.egress_next && self.egress_has_frame()) {
            return (false, self.ring.torn());
        }
        (false, if self.epoch == 0 || self.stranger { &[] } else { self.ring.sendable(self.window) })
    }

    fn egress_has_frame(&self) -> bool {
        !self.stranger && self.egress.as_ref().is_some_and(Egress::has_frame)
    }

    /// Whether, without a transport, there is nothing left to wait for.
    fn has_nobody(&self) -> bool {
        match (&self.place, &self.phase) {
            (Place::Cell, _) => self.can_do_nothing(),
            (Place::Host(_), Phase::Running(job)) => job.nobody_left(),
            (Place::Host(_), _) => true,
        }
    }

    /// Whether only an agent could move this on. Then, without a transport, nothing ever will.
    fn can_do_nothing(&self) -> bool {
        let waits = match &self.phase {
            Phase::Waiting(_) | Phase::Ended(_) | Phase::Refused(_) => true,
            // What is left in the pipes has no room.
            Phase::Running(job) => job.nobody_left() && !self.ring.has_room(),
        };
        waits && (!self.output_open || self.blocked || self.next_bytes().1.is_empty())
    }

    fn write_output(&mut self) {
        if self.hush_until > 0 {
            if self.is_hushed(sys::boot_ns()) {
                return;
            }
            self.hush_until = 0;
            if let Phase::Running(job) = &mut self.phase {
                self.outbox.started |= job.has_started();
            }
        }
        while self.output_open && !self.blocked && self.epoch > 0 {
            let (control, bytes) = self.next_bytes();
            if bytes.is_empty() {
                // All of it in one write.
                while let Some(say) = self.outbox.take(self.ring.all_sent()) {
                    let message = self.message(say);
                    self.outbox.say(&message);
                }
                if !self.outbox.line().is_empty() {
                    continue;
                }
                // Only as much as was asked for: nothing waits behind more of it than the agent has chosen.
                let collector = self.collector.as_mut().filter(|_| !self.stranger);
                if let Some(message) = collector.and_then(Collector::say) {
                    self.outbox.say(&message);
                    continue;
                }
                if !self.egress_has_frame() {
                    return;
                }
                if let Some(egress) = &mut self.egress {
                    self.outbox.add(|epoch, line| egress.frame(epoch, line));
                }
                self.egress_next = false;
                continue;
            }
            let wanted = bytes.len();
            let count = match sys::write_some(STDOUT, bytes) {
                Ok(count) => count.unwrap_or_default(),
                Err(_) => {
                    self.output_open = false;
                    return;
                }
            };
            self.blocked = count < wanted;
            if control {
                self.outbox.advance(count);
            } else {
                self.ring.advance(count);
                self.egress_next = true;
            }
        }
    }
}

struct Ready {
    input: bool,
    children: bool,
    tripped: bool,
}

/// A state that this program does not reach; told rather than trusted.
fn unexpected(what: &str) -> FromWarden {
    FromWarden::Fault { text: format!("{what} was to be told in a state that has none") }
}
