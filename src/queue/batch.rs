//! Many jobs at once: what becomes of each, decided once for both stores.
//!
//! Does no I/O of its own: a store brings what it found and makes what is decided here.

use super::{Canceled, NewJob, Submitted};
use crate::job::{Job, JobId};
use std::collections::HashMap;

/// What a submit of many came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Batch {
    /// One answer for each job, in their order.
    TakenIn(Vec<Submitted>),
    /// Nothing was created; these, by their places, stood in the way.
    Refused(Vec<(usize, Submitted)>),
}

/// What a cancel of one among many came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelMark {
    /// It was still queued and has ended.
    Ended,
    /// An agent holds it and is told.
    Requested {
        /// Which one.
        holder: Option<String>,
    },
    /// It is for several hosts: the jobs for them are to end.
    Children,
    /// It had ended before.
    AlreadyEnded,
    /// There is no such job.
    Unknown,
}

/// What a replay of one dead letter among many came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Replay {
    /// This new job does it again.
    Replayed(Box<Job>),
    /// This one does since an earlier replay.
    Already(JobId),
    /// It is no dead letter.
    NotDead,
    /// Values of secrets came with it, and they went with its end.
    SecretsGone,
    /// Too many jobs wait; nothing was done.
    QueueFull,
    /// There is no such job.
    Unknown,
}

impl From<&Canceled> for CancelMark {
    fn from(canceled: &Canceled) -> Self {
        match canceled {
            Canceled::Ended(_) => Self::Ended,
            Canceled::Requested(job) if job.spec.fan_out().is_some() => Self::Children,
            Canceled::Requested(job) => Self::Requested { holder: job.agent.clone() },
            Canceled::AlreadyEnded(_) | Canceled::Changed(_) => Self::AlreadyEnded,
            Canceled::Unknown => Self::Unknown,
        }
    }
}

/// What becomes of one job of a batch.
enum Fate {
    Create,
    /// The queue has one with its key and an equal spec.
    There(Box<Job>),
    /// The batch has one with its key and an equal spec before it, at this place.
    Twin(usize),
    Refused(Box<Submitted>),
}

/// What there is room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Jobs that wait.
    pub(super) queued: u64,
    /// Jobs that may wait.
    pub(super) max_queued: u64,
    /// Jobs that their submitter has, and that have not ended.
    pub(super) held: u64,
}

/// Takes jobs in, which all have one submitter. `there` are the jobs that hold their keys already, each at the place of the one that has the key. With
/// `partial`, what cannot be taken in does not keep out the others. Errors: those of `create`.
pub(super) fn take_in<E>(
    jobs: Vec<NewJob>,
    there: Vec<Option<Job>>,
    room: Room,
    partial: bool,
    mut create: impl FnMut(NewJob) -> Result<Job, E>,
) -> Result<Batch, E> {
    let fates = fates(&jobs, there, room);
    if !partial {
        let refusal = |(place, fate): (usize, &Fate)| match fate {
            Fate::Refused(answer) => Some((place, Submitted::clone(answer))),
            _ => None,
        };
        let refused: Vec<_> = fates.iter().enumerate().filter_map(refusal).collect();
        if !refused.is_empty() {
            return Ok(Batch::Refused(refused));
        }
    }
    let mut answers: Vec<Submitted> = Vec::with_capacity(jobs.len());
    for (job, fate) in jobs.into_iter().zip(fates) {
        let answer = match fate {
            Fate::Create => Submitted::Created(create(job)?),
            Fate::There(job) => Submitted::Existing(*job),
            Fate::Twin(first) => match &answers[first] {
                Submitted::Created(job) => Submitted::Existing(job.clone()),
                other => other.clone(),
            },
            Fate::Refused(answer) => *answer,
        };
        answers.push(answer);
    }
    Ok(Batch::TakenIn(answers))
}

fn fates(jobs: &[NewJob], there: Vec<Option<Job>>, Room { queued, max_queued, mut held }: Room) -> Vec<Fate> {
    let refused = |answer| Fate::Refused(Box::new(answer));
    let mut room = max_queued.saturating_sub(queued);
    let mut first_with: HashMap<String, usize> = HashMap::new();
    let mut fates = Vec::with_capacity(jobs.len());
    for (place, (job, there)) in jobs.iter().zip(there).enumerate() {
        let key = job.own_key();
        let twin = key.as_ref().and_then(|key| first_with.get(key)).copied();
        fates.push(match (there, twin) {
            (Some(there), _) if there.spec == job.spec => Fate::There(Box::new(there)),
            (Some(there), _) => refused(Submitted::KeyConflict(there.id)),
            (None, Some(twin)) if jobs[twin].spec == job.spec => Fate::Twin(twin),
            (None, Some(twin)) => refused(Submitted::KeyConflict(jobs[twin].id)),
            (None, None) if room < job.family.queued() => refused(Submitted::QueueFull { queued }),
            (None, None) => match job.beyond_quota(held) {
                Some(full) => refused(full),
                None => {
                    held += job.family.queued();
                    room -= job.family.queued();
                    first_with.extend(key.map(|key| (key, place)));
                    Fate::Create
                }
            },
        });
    }
    fates
}
