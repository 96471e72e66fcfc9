//! A job for several hosts and the jobs for each of them: a parent and its children. A parent is in no agent's hands: it is running from
//! the moment it is taken in until its last child has ended.
//!
//! Decided once for both stores, and without I/O: a store is [`Kin`], which knows one parent and its children, and does what is
//! decided in one transaction. All of it can be done again at any time: what is done already is not done twice.

use super::transition::Row;
use super::{CancelMark, NewJob};
use crate::job::{Cause, Children, HostFailure, Job, JobId, Phase, UnixMillis, Verdict};

/// What a new job is to others.
#[derive(Debug, Clone, Default)]
pub enum Family {
    /// Nothing.
    #[default]
    Alone,
    /// The parent of these, which are taken in with it, or none of them is.
    Parent(Vec<NewJob>),
    /// A part of this one.
    Child {
        /// The parent.
        parent: JobId,
        /// It waits until others of its parent have ended.
        held: bool,
    },
}

impl Family {
    /// Jobs that come to wait in the queue with one that is this.
    pub(super) fn queued(&self) -> u64 {
        match self {
            Self::Alone | Self::Child { .. } => 1,
            Self::Parent(children) => children.len() as u64,
        }
    }
}

/// Until when a child waits that waits for others: later than every moment of a clock, and than what stands for all of them.
pub(super) const HELD: UnixMillis = UnixMillis::new(i64::MAX as u64);

/// Why a child is in the queue, in its history: it waits for others of its parent.
pub const HELD_BACK: &str = "held_back";
/// It waits for no others any more.
pub(super) const LET_GO: &str = "let_go";
/// Why a parent is running, in its history.
pub(super) const FANNED_OUT: &str = "fanned_out";

/// Hosts that an end names.
const MOST_NAMED: usize = 50;

/// What was done about a family.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settled {
    /// Children that may be claimed from now on.
    pub let_go: u32,
    /// Children whose end was asked for.
    pub canceled: Vec<(JobId, CancelMark)>,
    /// The parent, when it has ended by this.
    pub ended: Option<Box<Job>>,
}

/// How the children of one parent stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    all: u32,
    queued: u32,
    /// Of those that are queued: they wait for others.
    held: u32,
    succeeded: u32,
    /// Their own doing.
    failed: u32,
    canceled: u32,
    cell_error: u32,
    lost: u32,
}

impl Tally {
    /// Counts `count` children that stand so.
    pub(super) fn add(&mut self, phase: Phase, verdict: Option<Verdict>, delayed: Option<UnixMillis>, count: u32) {
        self.all += count;
        match (phase, verdict) {
            (Phase::Queued, _) => {
                self.queued += count;
                self.held += if delayed == Some(HELD) { count } else { 0 };
            }
            (_, None) => {}
            (_, Some(Verdict::Succeeded)) => self.succeeded += count,
            (_, Some(Verdict::Failed | Verdict::TimedOut)) => self.failed += count,
            (_, Some(Verdict::Canceled)) => self.canceled += count,
            (_, Some(Verdict::CellError)) => self.cell_error += count,
            (_, Some(Verdict::Lost)) => self.lost += count,
        }
    }

    fn ended(&self) -> u32 {
        self.succeeded + self.failed + self.canceled + self.cell_error + self.lost
    }

    fn open(&self) -> u32 {
        self.all - self.ended()
    }

    /// As a parent shows it.
    pub(super) fn shown(&self) -> Children {
        let Self { all, queued, succeeded, .. } = *self;
        Children { all, queued, held: self.open() - queued, ended: self.ended(), succeeded }
    }

    /// What the ends come to together. A failure that is the jobs' own stands before one that is ours, and that before a cancel.
    fn verdict(&self, canceled: bool) -> Verdict {
        if self.succeeded == self.all {
            Verdict::Succeeded
        } else if canceled {
            Verdict::Canceled
        } else if self.failed > 0 {
            Verdict::Failed
        } else if self.cell_error > 0 {
            Verdict::CellError
        } else if self.lost > 0 {
            Verdict::Lost
        } else {
            Verdict::Canceled
        }
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    /// All that have not ended are to end.
    Stop,
    /// So many that wait for others wait no more.
    LetGo(u32),
    /// All have ended.
    End,
}

fn next(parent: &Row, tally: &Tally, again: bool) -> Next {
    let Some(fan_out) = parent.job.spec.fan_out().filter(|_| parent.job.phase != Phase::Ended) else {
        return Next::Nothing;
    };
    let failed = tally.ended() > tally.succeeded;
    if tally.open() == 0 {
        Next::End
    } else if parent.job.cancel_requested || (fan_out.fail_fast && failed) {
        if parent.stopped && !again { Next::Nothing } else { Next::Stop }
    } else {
        let room = fan_out.at_once.unwrap_or(u32::MAX).saturating_sub(tally.open() - tally.held);
        match tally.held.min(room) {
            0 => Next::Nothing,
            some => Next::LetGo(some),
        }
    }
}

/// A parent with its children, as a store has them.
pub(super) trait Kin {
    /// What a store can fail with.
    type Error;
    /// The parent; `None` when there is no such job.
    fn parent(&mut self) -> Result<Option<Row>, Self::Error>;
    fn tally(&mut self) -> Result<Tally, Self::Error>;
    /// Children that have not ended, the first one first.
    fn open(&mut self) -> Result<Vec<JobId>, Self::Error>;
    /// The first of those that wait for others.
    fn held(&mut self, most: u32) -> Result<Vec<JobId>, Self::Error>;
    /// The first of those that have ended and did not succeed.
    fn failed(&mut self, most: usize) -> Result<Vec<HostFailure>, Self::Error>;
    /// Changes one job, and keeps it.
    fn change<T>(&mut self, id: JobId, change: impl FnOnce(&mut Row) -> T) -> Result<Option<T>, Self::Error>;
}

/// Does whatever is to be done. `again`: who was asked for their end are asked once more.
pub(super) fn settle<K: Kin>(kin: &mut K, mut again: bool, now: UnixMillis) -> Result<Settled, K::Error> {
    let mut settled = Settled::default();
    loop {
        let Some(parent) = kin.parent()? else { return Ok(settled) };
        let tally = kin.tally()?;
        match next(&parent, &tally, again) {
            Next::Nothing => return Ok(settled),
            Next::Stop => {
                for id in kin.open()? {
                    let mark = kin.change(id, |child| CancelMark::from(&child.cancel(now)))?;
                    settled.canceled.push((id, mark.unwrap_or(CancelMark::Unknown)));
                }
                kin.change(parent.job.id, |parent| parent.stopped = true)?;
                again = false;
            }
            Next::LetGo(some) => {
                for id in kin.held(some)? {
                    settled.let_go += kin.change(id, |child| u32::from(child.let_go(now)))?.unwrap_or(0);
                }
                return Ok(settled);
            }
            Next::End => {
                let cause = Cause::FanOut {
                    of: tally.all,
                    succeeded: tally.succeeded,
                    verdict: tally.verdict(parent.job.cancel_requested),
                    failed: kin.failed(MOST_NAMED)?,
                };
                settled.ended = kin.change(parent.job.id, |parent| parent.end_family(cause, now))?.map(Box::new);
                return Ok(settled);
            }
        }
    }
}

/// How many of the children may be claimed from the start.
pub fn first_children(at_once: Option<u32>) -> usize {
    at_once.map_or(usize::MAX, |some| some as usize)
}
