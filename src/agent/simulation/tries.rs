//! That a job is tried again as its rules say, and not once more; and that nobody holds one that does not get on.

use super::scenario::{Fault, Scenario};
use crate::job::{AttemptId, Cause, Class, Job, Millis, Phase, PhaseEvent, Then, Tried, UnixMillis, then};
use crate::seeded::with_mutant;

/// The backend looks for jobs that do not get on once a minute; one that was told has a minute.
const LOOKS: u64 = 60_000;
/// What the end of a look, and a rounded one, may take.
const SLACK: u64 = 6_000;

/// Says what is against the rules, and whether the job is to be a dead letter.
pub(super) fn tried_by_the_rules(scenario: &Scenario, job: &Job, clock_was_set: bool, wrong: &mut Vec<String>) -> bool {
    let mut tried = Tried { all: 0, failures: 0 };
    let rules = |number, cause: &Cause, tried, at| {
        let attempt = AttemptId::new(job.id, number);
        // What the rules say, not what a bug in them would.
        with_mutant(None, || then(attempt, job.spec.retry(), cause, tried, scenario.max_attempts - 1, at))
    };
    for number in 1..=job.attempt {
        let Some(past) = job.past_tries.iter().find(|past| past.attempt == number) else { continue };
        tried.all += 1;
        lost_so_often(number, &past.cause, tried, wrong);
        match rules(number, &past.cause, tried, past.ended_at) {
            Then::Again(next) => {
                let again = claimed(job, number + 1);
                if again.is_some_and(|at| at < next.not_before) && !clock_was_set {
                    wrong.push(format!("try {} came before its time", next.number));
                }
            }
            Then::Over | Then::GivenUp(_) => {
                wrong.push(format!("attempt {number} ended with {:?}, and was tried again", past.cause));
            }
        }
        tried.failures += u32::from(past.cause.class() == Class::Failure);
    }
    let is_past = job.past_tries.iter().any(|past| past.attempt == job.attempt);
    let Some(ending) = &job.ending else { return false };
    // One that was canceled is not tried again, whatever it ended with; and one that waits has no try that could end.
    let then = if job.cancel_requested || is_past {
        Then::Over
    } else {
        tried.all += 1;
        lost_so_often(job.attempt, &ending.cause, tried, wrong);
        rules(job.attempt, &ending.cause, tried, UnixMillis::new(0))
    };
    if is_past && ending.cause != Cause::Canceled {
        wrong.push(format!("it ended with {:?} while it waited", ending.cause));
    }
    let reason = match then {
        Then::Again(next) => {
            wrong.push(format!("it ended with {:?}, and there were {} tries", ending.cause, next.of));
            None
        }
        Then::Over => None,
        Then::GivenUp(reason) => Some(reason),
    };
    let given_up = job.given_up.as_ref().map(|given_up| &given_up.reason);
    if given_up != reason.as_ref() || job.dead_letter != reason.is_some() {
        wrong.push(format!("it was given up ({}, {given_up:?}), and should have been: {reason:?}", job.dead_letter));
    }
    reason.is_some()
}

fn lost_so_often(number: u32, cause: &Cause, tried: Tried, wrong: &mut Vec<String>) {
    let times = tried.all - tried.failures;
    if matches!(cause, Cause::AgentLost { attempts } if *attempts != times) {
        wrong.push(format!("attempt {number} ended with {cause:?}, and it is {times} tries"));
    }
}

fn claimed(job: &Job, number: u32) -> Option<UnixMillis> {
    job.history.iter().find(|event| event.attempt == number && event.phase == Phase::Claimed).map(|event| event.at)
}

/// A job that is held gets on, or is taken from who holds it.
pub(super) fn held_no_longer_than_it_gets_on(scenario: &Scenario, job: &Job, wrong: &mut Vec<String>) {
    // Then looks are put off, and moments are not what they seem.
    let put_off = |fault: &Fault| matches!(fault, Fault::Clock { .. } | Fault::BackendRestart { .. });
    if scenario.faults.iter().any(put_off) {
        return;
    }
    let most = Millis::new(scenario.stuck_after_ms + 3 * LOOKS + SLACK);
    for number in 1..=job.attempt {
        let next =
            |event: &&PhaseEvent| event.attempt == number && !matches!(event.phase, Phase::Claimed | Phase::Preparing);
        let from = claimed(job, number);
        // What is before the claim of an attempt belongs to the one before it.
        let to = job.history.iter().filter(next).map(|event| event.at).find(|at| from.is_none_or(|from| *at >= from));
        if let (Some(from), Some(to)) = (from, to)
            && to > from.plus(most)
        {
            let held = to.since(from);
            wrong.push(format!("attempt {number} was held for {held}, and did not get on"));
        }
    }
}
