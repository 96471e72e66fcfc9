//! One attempt's session with its warden, as a pure machine: what happened goes in, what to do comes out.
//!
//! ```text
//!            ┌──────────── cut / lost frames: attach again, higher epoch ───────────┐
//!            ▼                                                                      │
//!  greeting ─hello(waiting)─► committed ─started─► running ─exit─► draining ─all stored─► over
//!      └─────hello(running|ended)────────────────────┘                  └──► collecting ───┘
//! ```
//!
//! Owns the sequence numbers and the deadlines. Must never do I/O or read a clock: `now` is milliseconds since the
//! session began.

use crate::job::{Cause, MismatchLine};
use crate::protocol::wire::{Exit, FromWarden, ToWarden, WardenState};
use std::collections::VecDeque;

/// From the first attach to the warden's hello. A started container answers within milliseconds; a host under full load
/// within seconds.
const GREETING_MS: u64 = 20_000;
/// From the commit to `started`: writing the script and an exec.
const START_MS: u64 = 20_000;
/// The same while inputs are on their way, from the last of them that arrived: whoever brings them has given up before.
const INPUTS_STALL_MS: u64 = 120_000;
/// A ping goes out this often; the same interval is what an unanswered one may take before the link is made anew.
const PING_MS: u64 = 5_000;
/// A warden that was told to stop its job has to answer within this, twice half of it: whoever looks at the clock late has had no
/// chance to hear the answer either, so the first half only warns.
const STOP_ANSWER_MS: u64 = 1_000;
/// The same in a cell with so little of a processor that its warden may not get a turn within a second.
const SLOW_ANSWER_MS: u64 = 5_000;
/// Attaches in a row that lead nowhere before the warden is given up.
const FRUITLESS_ATTACHES: u32 = 5;
/// What comes on top of the grace before the cell is ended from outside.
const STOP_SLACK_MS: u64 = 5_000;
/// The same for a stop without a grace. A warden kills within milliseconds; this is for the last output of the job.
const FORCED_SLACK_MS: u64 = 2_000;
/// Bytes of unacknowledged output that the warden may have in flight. More than 1 MiB in an attached stream makes kill
/// and remove hang when the reader stops.
pub(super) const WINDOW_BYTES: u32 = 960 * 1024;

/// Why the job is asked to end; a later one outranks an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// A user asked.
    Cancel,
    /// The wall clock.
    Timeout,
    /// The agent shuts down and its drain time is over.
    Drain,
    /// The right to run it was lost.
    Lease,
}

impl StopReason {
    /// The reason's number on the wire.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Cancel => 1,
            Self::Timeout => 2,
            Self::Drain => 4,
            Self::Lease => 5,
        }
    }
}

/// What happened.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Input {
    /// A link is up.
    Attached,
    /// The link ended or could not be made.
    Cut(String),
    /// Whoever runs the cell says that it is gone.
    Gone(String),
    /// For too long nobody could say whether it is there, or reach it: it may run.
    Lost(String),
    /// A control message arrived (output is told by [`Input::Output`]).
    Message(FromWarden),
    /// Output with this sequence number arrived.
    Output(u64),
    /// A frame of an earlier link of ours arrived.
    Stale,
    /// More of the inputs is in its place.
    InputsMoved,
    /// All inputs are in their places.
    InputsGiven,
    /// Everything up to this number is in the log store.
    Stored(u64),
    /// The files that the job leaves are kept, or will not be.
    Collected,
    /// Somebody wants the job to end.
    Stop {
        /// Why.
        reason: StopReason,
        /// At once, without a grace.
        force: bool,
    },
    /// The lease was renewed for this long.
    Renewed(u64),
    /// This process did not run for a while; what came meanwhile has not been heard yet.
    Late,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Send to the warden, in the current epoch.
    Send(ToWarden),
    /// Send the inputs, from the first byte on.
    SendInputs,
    /// Send spec, script, stdin and commit.
    SendSpec,
    /// Store the output frame just told; otherwise it is dropped (a repeat, or behind a hole).
    Keep,
    /// Drop the link and attach again with the next epoch.
    Reattach,
    /// End the cell from outside.
    Kill,
    /// The job has started.
    Started,
    /// Fetch the files that the job leaves, or go on with it over a new link.
    Collect,
    /// Nothing more will come.
    Over(Box<Over>),
}

/// How the session ended.
#[derive(Debug, PartialEq)]
pub(super) enum Over {
    /// The warden reported the end and all its output is stored.
    Exited(Exit),
    /// The session ended without the warden's word.
    Broken(Cause),
    /// An earlier process made the cell and never got to giving it the job.
    NotBegun,
}

#[derive(Debug, PartialEq)]
enum State {
    Greeting { until: u64 },
    Committed { until: u64 },
    Running,
    Draining(Exit),
    Collecting { exit: Exit, until: u64 },
    Over,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Session {
    attempt: String,
    state: State,
    linked: bool,
    /// There was a process before this one.
    resumed: bool,
    /// The job has inputs, which go before its spec.
    inputs: bool,
    /// Attaches since anything useful came.
    fruitless: u32,
    /// The highest sequence number in the log store.
    stored: u64,
    /// The highest one received without a hole.
    received: u64,
    /// The number up to which the warden has been told.
    acked: u64,
    stop: Option<StopReason>,
    /// The stop has no grace.
    forced: bool,
    /// When the cell is ended from outside.
    kill_at: Option<u64>,
    killed: bool,
    grace_ms: u64,
    /// Absolute; the warden enforces it first, this is the second lock.
    wall_until: Option<u64>,
    wall_ms: u64,
    /// Absolute. The warden has the same clock; this is for one that does not keep to it.
    lease_until: Option<u64>,
    next_ping: u64,
    unanswered: Option<(u64, u64)>,
    /// The ping behind a stop, when it must have come back, and whether that was already put off once.
    stop_heard: Option<(u64, u64, bool)>,
    stop_answer_ms: u64,
    /// For the command that runs after a stop.
    clean_up_ms: u64,
    /// How long fetching what the job leaves may take; `None` when nothing of it is wanted.
    collect_ms: Option<u64>,
    nonce: u64,
    /// Bytes of unacknowledged output that the warden may have in flight.
    window: u32,
    receipt: Vec<(String, String)>,
}

impl Session {
    /// A session for `attempt` that already has output up to `stored`.
    pub(super) fn new(attempt: String, stored: u64, grace_ms: u64, wall_ms: u64) -> Self {
        Self {
            attempt,
            state: State::Greeting { until: GREETING_MS },
            linked: false,
            resumed: false,
            inputs: false,
            fruitless: 0,
            stored,
            received: stored,
            acked: stored,
            stop: None,
            forced: false,
            kill_at: None,
            killed: false,
            grace_ms,
            wall_until: None,
            wall_ms,
            lease_until: None,
            next_ping: PING_MS,
            unanswered: None,
            stop_heard: None,
            stop_answer_ms: STOP_ANSWER_MS,
            clean_up_ms: 0,
            collect_ms: None,
            nonce: 0,
            window: WINDOW_BYTES,
            receipt: Vec::new(),
        }
    }

    /// After a stop, a command of the job's may run for so long.
    pub(super) fn cleaning_up(mut self, clean_up_ms: u64) -> Self {
        self.clean_up_ms = clean_up_ms;
        self
    }

    /// The job has inputs: its spec goes out when they are in their places.
    pub(super) fn with_inputs(mut self, inputs: bool) -> Self {
        self.inputs = inputs;
        self
    }

    /// Files that the job leaves are wanted, and fetching them may take so long.
    pub(super) fn collecting(mut self, collect_ms: Option<u64>) -> Self {
        self.collect_ms = collect_ms;
        self
    }

    /// The cell has so little of a processor that its warden may not get a turn within a second.
    pub(super) fn starved(mut self, starved: bool) -> Self {
        self.stop_answer_ms = if starved { SLOW_ANSWER_MS } else { STOP_ANSWER_MS };
        self
    }

    /// So many bytes of what may be in flight are for something else than output.
    pub(super) fn sharing(mut self, bytes: u32) -> Self {
        self.window = WINDOW_BYTES - bytes.min(WINDOW_BYTES / 2);
        self
    }

    /// It is about to end, or has ended: what output is left has a bound.
    pub(super) fn is_ending(&self) -> bool {
        self.stop.is_some() || matches!(self.state, State::Draining(_) | State::Collecting { .. } | State::Over)
    }

    /// It has ended; only what is left of its output comes.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Draining(_) | State::Collecting { .. } | State::Over)
    }

    /// The right to run the job lasts so long, unless it is renewed.
    pub(super) fn leased(mut self, left_ms: u64) -> Self {
        self.lease_until = Some(left_ms);
        self
    }

    /// A session that goes on where that of an earlier process was: there is no link yet, and it takes as long as it takes to
    /// find out whether there can be one.
    pub(super) fn resumed(mut self) -> Self {
        self.state = State::Greeting { until: u64::MAX };
        self.resumed = true;
        self
    }

    /// When the warden ends its job unless it hears of a renewal.
    pub(super) fn lease_until(&self) -> Option<u64> {
        self.lease_until
    }

    /// The isolation facts of the last hello.
    pub(super) fn receipt(&self) -> &[(String, String)] {
        &self.receipt
    }

    /// When [`Input::Tick`] must come at the latest.
    pub(super) fn wake_at(&self) -> u64 {
        let state = match self.state {
            State::Greeting { until } | State::Committed { until } | State::Collecting { until, .. } => Some(until),
            State::Running | State::Draining(_) | State::Over => None,
        };
        let ping = self.unanswered.map_or(self.next_ping, |(_, due)| due);
        let heard = self.stop_heard.map(|(_, due, _)| due);
        [state, self.kill_at, self.wall_guard(), self.lease_guard(), heard, Some(ping)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(ping)
    }

    fn wall_guard(&self) -> Option<u64> {
        self.wall_until.filter(|_| !self.is_ending())
    }

    fn lease_guard(&self) -> Option<u64> {
        let ended = matches!(self.state, State::Draining(_));
        self.lease_until.filter(|_| !ended && self.stop.is_none_or(|stop| stop < StopReason::Lease))
    }

    /// Takes one input at `now` and says what to do, in order.
    pub(super) fn on(&mut self, input: Input, now: u64) -> VecDeque<Action> {
        let mut actions = VecDeque::new();
        if self.state == State::Over {
            return actions;
        }
        match input {
            Input::Attached => self.attached(now, &mut actions),
            Input::Cut(reason) if mutant!(CutIsTheEnd) => self.broken(&reason, &mut actions),
            Input::Cut(reason) => self.reattach(&reason, now, &mut actions),
            Input::Gone(reason) => self.gone(reason, &mut actions),
            Input::Lost(reason) => self.given_up(Cause::CellLost { reason }, &mut actions),
            Input::Message(message) => self.message(message, now, &mut actions),
            Input::Output(seq) => self.output(seq, now, &mut actions),
            Input::Stale => self.fruitless = 0,
            Input::InputsMoved => self.inputs_moved(now),
            Input::InputsGiven => {
                if let State::Greeting { until } | State::Committed { until } = &mut self.state {
                    *until = now + START_MS;
                    actions.push_back(Action::SendSpec);
                }
            }
            Input::Stored(seq) => self.stored_up_to(seq, now, &mut actions),
            Input::Collected => self.collected(&mut actions),
            Input::Stop { reason, force } => self.stop_for(reason, force, now, &mut actions),
            Input::Renewed(remaining_ms) => {
                // An answer that was overtaken takes nothing back.
                self.lease_until = self.lease_until.max(Some(now.saturating_add(remaining_ms)));
                self.tell_lease(now, &mut actions);
            }
            Input::Late => self.was_away(now),
            Input::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn send(&self, message: ToWarden, actions: &mut VecDeque<Action>) {
        // Without a link there is nobody to send to; everything that matters is sent again after the next attach.
        if self.linked {
            actions.push_back(Action::Send(message));
        }
    }

    fn attached(&mut self, now: u64, actions: &mut VecDeque<Action>) {
        self.linked = true;
        self.unanswered = None;
        self.next_ping = now + PING_MS;
        // What was received and is not stored yet is still on its way to the store: it comes again and is passed over.
        self.acked = self.stored;
        let attach = ToWarden::Attach {
            min_version: crate::protocol::wire::VERSION,
            max_version: crate::protocol::wire::VERSION,
            attempt: self.attempt.clone(),
            stored: self.stored,
            window: self.window,
        };
        self.send(attach, actions);
        // Inputs that were cut off begin again, whatever of them has arrived.
        if self.inputs && matches!(self.state, State::Committed { .. }) {
            // An attach that leads to nothing counts as such.
            let fruitless = self.fruitless;
            self.inputs_moved(now);
            self.fruitless = fruitless;
            actions.push_back(Action::SendInputs);
        } else if let State::Greeting { until } = &mut self.state {
            // The spec follows at once, unasked: waiting for the hello would cost a round trip. The warden takes it
            // only if it has none for this attempt, and starts nothing before its own comparison of the receipt.
            *until = now + GREETING_MS;
            // Unless the warden should have it from an earlier process. When it has not, much time may have passed: the job may be
            // another agent's by now.
            if !self.resumed || mutant!(BegunLate) {
                actions.push_back(if self.inputs { Action::SendInputs } else { Action::SendSpec });
            }
        } else if !mutant!(LeaseLostWithLink) {
            // The last word of it may have been lost with the link.
            self.tell_lease(now, actions);
        }
        if let Some(reason) = self.stop {
            self.send_stop(reason, now, actions);
        }
    }

    fn inputs_moved(&mut self, now: u64) {
        self.fruitless = 0;
        if let State::Committed { until } = &mut self.state {
            *until = now + INPUTS_STALL_MS;
        }
    }

    fn send_stop(&mut self, reason: StopReason, now: u64, actions: &mut VecDeque<Action>) {
        self.send(self.stop_message(reason), actions);
        if self.linked {
            self.nonce += 1;
            self.stop_heard = Some((self.nonce, now + self.stop_answer_ms / 2, false));
            self.send(ToWarden::Ping { nonce: self.nonce }, actions);
        }
    }

    fn reattach(&mut self, reason: &str, now: u64, actions: &mut VecDeque<Action>) {
        self.linked = false;
        (self.unanswered, self.stop_heard) = (None, None);
        self.next_ping = now + PING_MS;
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_ATTACHES {
            self.broken(&format!("nothing came over {FRUITLESS_ATTACHES} links in a row; the last: {reason}"), actions);
        } else {
            actions.push_back(Action::Reattach);
        }
    }

    fn gone(&mut self, reason: String, actions: &mut VecDeque<Action>) {
        if let State::Draining(exit) | State::Collecting { exit, .. } = &self.state {
            // It had ended before, and that is what became of it, whatever of its output is missing.
            let exit = exit.clone();
            return self.over(Over::Exited(exit), actions);
        }
        let cause = match self.stop {
            // We ended it from outside, so this is the expected sight. And who cancels a job wants it to be over, however it came to that.
            Some(stop) if self.killed || stop == StopReason::Cancel => super::verdict::stopped(stop, self.wall_ms),
            _ => Cause::CellLost { reason },
        };
        self.over(Over::Broken(cause), actions);
    }

    fn broken(&mut self, reason: &str, actions: &mut VecDeque<Action>) {
        self.given_up(Cause::WardenFault { reason: reason.to_owned() }, actions);
    }

    /// The session ends, and its cell is to be ended: for `cause`, unless there was a stop or it had ended before.
    fn given_up(&mut self, cause: Cause, actions: &mut VecDeque<Action>) {
        if let State::Draining(exit) | State::Collecting { exit, .. } = &self.state {
            let exit = exit.clone();
            actions.push_back(Action::Kill);
            return self.over(Over::Exited(exit), actions);
        }
        let cause = match self.stop {
            Some(stop) => super::verdict::stopped(stop, self.wall_ms),
            None => cause,
        };
        actions.push_back(Action::Kill);
        self.over(Over::Broken(cause), actions);
    }

    fn over(&mut self, over: Over, actions: &mut VecDeque<Action>) {
        self.state = State::Over;
        actions.push_back(Action::Over(Box::new(over)));
    }

    fn message(&mut self, message: FromWarden, now: u64, actions: &mut VecDeque<Action>) {
        self.fruitless = 0;
        match message {
            FromWarden::Hello { state, receipt, attempt, .. } => {
                if !attempt.is_empty() && attempt != self.attempt {
                    return self.broken("it works for another attempt", actions);
                }
                self.receipt = receipt;
                match (state, &self.state) {
                    (WardenState::Waiting, State::Greeting { .. }) if self.resumed && !mutant!(BegunLate) => {
                        self.over(Over::NotBegun, actions);
                    }
                    (WardenState::Waiting, State::Greeting { .. }) => {
                        let patience = if self.inputs { INPUTS_STALL_MS } else { START_MS };
                        self.state = State::Committed { until: now + patience };
                    }
                    (WardenState::Running | WardenState::Ended, State::Greeting { .. } | State::Committed { .. }) => {
                        self.running(now, actions);
                    }
                    _ => {}
                }
            }
            FromWarden::Refused { mismatches } => {
                let mismatches =
                    mismatches.into_iter().map(|m| MismatchLine { key: m.key, wanted: m.wanted, got: m.got }).collect();
                self.over(Over::Broken(Cause::CellWeaker { mismatches }), actions);
            }
            FromWarden::Started { .. } => {
                if matches!(self.state, State::Greeting { .. } | State::Committed { .. }) {
                    self.running(now, actions);
                }
            }
            FromWarden::Exit(exit) => {
                self.stop_heard = None;
                if matches!(self.state, State::Collecting { .. }) {
                    // Said again, since the link is a new one.
                    return actions.push_back(Action::Collect);
                }
                if !matches!(self.state, State::Draining(_)) {
                    if matches!(self.state, State::Greeting { .. } | State::Committed { .. }) && exit.started_us > 0 {
                        self.running(now, actions);
                    }
                    self.state = State::Draining(exit);
                    // Nothing is left to be ended but the cell.
                    self.kill_at = None;
                }
                self.over_when_stored(now, actions);
                // The exit comes after the last output: if something is missing now, it was lost on the way.
                if let State::Draining(exit) = &self.state
                    && self.received < exit.last_seq
                {
                    self.reattach("the end came before all output", now, actions);
                }
            }
            FromWarden::Pong { nonce, .. } => {
                self.stop_heard = self.stop_heard.filter(|(sent, ..)| *sent > nonce);
                // A warden answers the last of several.
                if self.unanswered.is_some_and(|(sent, _)| sent <= nonce) {
                    self.unanswered = None;
                    self.next_ping = now + PING_MS;
                }
            }
            FromWarden::Fault { text } => {
                let reason: String = text.chars().take(200).flat_map(char::escape_debug).collect();
                self.given_up(Cause::WardenFault { reason }, actions);
            }
            // Told by inputs of their own; here only if a caller mixes the two up.
            FromWarden::Output { .. } | FromWarden::InputsTaken { .. } => {}
            // Signs of life to the machine, and no more.
            FromWarden::Advance(_) | FromWarden::Page(_) | FromWarden::Piece(_) | FromWarden::Egress(_) => {}
        }
    }

    fn running(&mut self, now: u64, actions: &mut VecDeque<Action>) {
        self.state = State::Running;
        // The warden's own clock comes first; the slack is for its ladder to finish.
        self.wall_until = Some(now.saturating_add(self.wall_ms).saturating_add(STOP_SLACK_MS));
        actions.push_back(Action::Started);
        // The warden counts from its commit, and the lease began earlier.
        self.tell_lease(now, actions);
    }

    fn tell_lease(&self, now: u64, actions: &mut VecDeque<Action>) {
        if let Some(until) = self.lease_until.filter(|_| !mutant!(LeaseNotTold)) {
            self.send(ToWarden::Lease { remaining_ms: until.saturating_sub(now) }, actions);
        }
    }

    fn output(&mut self, seq: u64, now: u64, actions: &mut VecDeque<Action>) {
        self.fruitless = 0;
        if seq == self.received + 1 {
            self.received = seq;
            if mutant!(AckBeforeStored) {
                self.send(ToWarden::Ack { seq }, actions);
            }
            actions.push_back(Action::Keep);
        } else if seq > self.received + 1 && self.linked {
            // A frame was torn: attach again, and the warden sends from the first one that is not stored.
            self.reattach("a frame was lost", now, actions);
        }
    }

    fn stored_up_to(&mut self, seq: u64, now: u64, actions: &mut VecDeque<Action>) {
        self.stored = self.stored.max(seq);
        if self.stored > self.acked {
            self.acked = self.stored;
            if mutant!(NoAck) {
                return self.over_when_stored(now, actions);
            }
            self.send(ToWarden::Ack { seq: self.stored }, actions);
        }
        self.over_when_stored(now, actions);
    }

    /// The warden keeps the end until it is told to close, and that is for whoever has put the end where it is safe.
    fn over_when_stored(&mut self, now: u64, actions: &mut VecDeque<Action>) {
        let State::Draining(exit) = &self.state else { return };
        if self.stored >= exit.last_seq || mutant!(OverBeforeStored) {
            let exit = exit.clone();
            // Without results it is a warden of before, or nothing of the job ran.
            match self.collect_ms.filter(|_| exit.results.is_some()) {
                Some(limit) => {
                    self.state = State::Collecting { exit, until: now.saturating_add(limit) };
                    actions.push_back(Action::Collect);
                }
                None => self.over(Over::Exited(exit), actions),
            }
        }
    }

    /// Also when not all of it could be had: the job has ended as it did.
    fn collected(&mut self, actions: &mut VecDeque<Action>) {
        if let State::Collecting { exit, .. } = &self.state {
            let exit = exit.clone();
            self.over(Over::Exited(exit), actions);
        }
    }

    fn stop_message(&self, reason: StopReason) -> ToWarden {
        let grace_ms = if self.forced { 0 } else { u32::try_from(self.grace_ms).unwrap_or(u32::MAX) };
        ToWarden::Stop { level: u8::from(self.forced), reason: reason.code(), grace_ms }
    }

    /// A stop counts when it is stronger than the one before, by its reason or because it gives no grace. Neither is ever
    /// taken back: the reason is the strongest that was given, and no stop lengthens what an earlier one left.
    fn stop_for(&mut self, reason: StopReason, force: bool, now: u64, actions: &mut VecDeque<Action>) {
        if matches!(self.state, State::Draining(_)) {
            return;
        }
        if matches!(self.state, State::Collecting { .. }) {
            // A cancel came too late. Who has no time or no right any more goes without the rest.
            if force || reason >= StopReason::Drain {
                self.collected(actions);
            }
            return;
        }
        let stronger = self.stop.is_none_or(|current| current < reason);
        if !stronger && (self.forced || !force) {
            return;
        }
        let reason = self.stop.map_or(reason, |current| current.max(reason));
        self.stop = Some(reason);
        self.forced |= force;
        let limit = match reason {
            _ if self.forced => FORCED_SLACK_MS,
            StopReason::Cancel | StopReason::Timeout => self.grace_ms + self.clean_up_ms + STOP_SLACK_MS,
            StopReason::Drain | StopReason::Lease => self.grace_ms + STOP_SLACK_MS,
        };
        self.kill_at = Some(self.kill_at.map_or(now + limit, |at| at.min(now + limit)));
        if !self.resumed && matches!(self.state, State::Greeting { .. } | State::Committed { .. }) {
            // It has not started as far as we know, and must not any more.
            actions.push_back(Action::Kill);
            self.over(Over::Broken(super::verdict::stopped(reason, self.wall_ms)), actions);
        } else {
            self.send_stop(reason, now, actions);
        }
    }

    /// A cell is not ended for what may have been said by now: there is time to hear it.
    fn was_away(&mut self, now: u64) {
        let heard = now + self.stop_answer_ms;
        self.kill_at = self.kill_at.map(|at| at.max(heard));
        self.stop_heard = self.stop_heard.map(|(nonce, due, warned)| (nonce, due.max(heard), warned));
        self.unanswered = self.unanswered.map(|(nonce, due)| (nonce, due.max(heard)));
        if let State::Greeting { until } | State::Committed { until } | State::Collecting { until, .. } =
            &mut self.state
        {
            *until = (*until).max(heard);
        }
    }

    fn tick(&mut self, now: u64, actions: &mut VecDeque<Action>) {
        match self.state {
            State::Greeting { until } if now >= until => return self.broken("it did not say hello in time", actions),
            State::Committed { until } if now >= until => {
                return self.broken("it did not start the job in time", actions);
            }
            State::Collecting { until, .. } if now >= until => return self.collected(actions),
            _ => {}
        }
        if self.wall_guard().is_some_and(|until| now >= until) {
            self.stop_for(StopReason::Timeout, false, now, actions);
        }
        if self.lease_guard().is_some_and(|until| now >= until) {
            self.stop_for(StopReason::Lease, false, now, actions);
        }
        match self.stop_heard {
            Some((nonce, due, false)) if now >= due => {
                self.stop_heard = Some((nonce, now + self.stop_answer_ms / 2, true));
            }
            // Who does not hear a stop has no grace to give.
            Some((_, due, true)) if now >= due => {
                self.stop_heard = None;
                self.kill_at = Some(now);
            }
            _ => {}
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = Some(now + STOP_SLACK_MS);
            self.killed = true;
            actions.push_back(Action::Kill);
        }
        match self.unanswered {
            Some((_, due)) if now >= due => self.reattach("a ping was not answered", now, actions),
            None if now >= self.next_ping && self.linked => {
                self.nonce += 1;
                self.unanswered = Some((self.nonce, now + PING_MS));
                self.send(ToWarden::Ping { nonce: self.nonce }, actions);
            }
            None if now >= self.next_ping => self.next_ping = now + PING_MS,
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
